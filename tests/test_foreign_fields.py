"""pgmpy's Markov networks and factor graphs as fields and back: every configuration has the same probability."""

import itertools
import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from probgen import cli, foreign
from probgen.errors import NotFittedError, ProbgenError, StoreError, StructureError
from probgen.models.markovfield import MarkovField

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = pytest.importorskip("pgmpy.models")
    from pgmpy.factors.discrete import DiscreteFactor

STATES = {"a": ["n", "y"], "b": ["low", "mid", "high"], "c": [1, 0], "d": ["u", "v", "w", "x"]}
SCOPES = ["ba", "cbd", "dc", "a", "ab", "dcb"]  # two of them twice, in other orders


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def factor(rng, scope, states=STATES):
    cards = [len(states[v]) for v in scope]
    values = rng.gamma(0.5, size=cards)
    values.flat[rng.integers(values.size)] = 0.0
    return DiscreteFactor(list(scope), cards, values, {v: list(states[v]) for v in scope})


def network(seed=0, factors=None, latents=()):
    rng = np.random.default_rng(seed)
    made = theirs.DiscreteMarkovNetwork(latents=list(latents))
    made.add_nodes_from("dacb")
    made.add_edges_from([pair for scope in SCOPES for pair in itertools.combinations(scope, 2)])
    made.add_factors(*(factors or [factor(rng, scope) for scope in SCOPES]))
    return made


def factor_graph(seed=0):
    made, factors = theirs.FactorGraph(), network(seed).factors
    made.add_nodes_from("dacb")
    made.add_factors(*factors)
    made.add_nodes_from(factors)
    made.add_edges_from([(v, f) for f in factors for v in f.variables])
    return made


def all_rows(states=STATES):
    return [dict(zip(states, row, strict=True)) for row in itertools.product(*states.values())]


def potential(model, row):
    """The product of the factors' entries, looked up by state names."""
    return np.prod([f.get_value(**{v: row[v] for v in f.variables}) for f in model.factors])


def ours(field, rows, names=None):
    frame = {n: np.array([row[n] for row in rows], dtype=object) for n in names or field.event.columns}
    return np.exp(field.log_prob(frame).nats)


def agree(field, model, rtol=1e-12):
    rows = all_rows()
    wanted = np.array([potential(model, row) for row in rows])
    np.testing.assert_allclose(ours(field, rows), wanted / wanted.sum(), rtol=rtol, atol=1e-300)
    return wanted.sum()


@pytest.mark.parametrize("make", [network, factor_graph, lambda seed: network(seed).to_factor_graph()],
                         ids=["network", "factor graph", "named factors"])  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_every_configuration_has_its_share_of_the_products_of_potentials(seed, make):
    model = make(seed)
    field = foreign.wrap(model)
    total = agree(field, model)
    assert float(field.log_partition()) == pytest.approx(math.log(total), rel=1e-12)
    assert set(field.variables) == set("abcd")
    assert field.variables == tuple("dacb")
    assert field.event.columns["c"].levels == (1, 0)
    assert "2 factors" in field.report.notes[0]
    with pytest.raises(AssertionError):  # the same look sees another network
        agree(field, network(seed + 1))


def test_the_partition_function_is_pgmpys():
    model = network(4)
    found = float(foreign.wrap(model).log_partition())
    assert found == pytest.approx(math.log(model.get_partition_function()), rel=1e-10)


def test_factors_of_any_scale_are_one_distribution():
    model, field = network(1), foreign.wrap(network(1))
    for f, scale in zip(model.factors, [1e-200, 1e180, 3.0, 1e-90, 1e100, 7.0], strict=True):
        f.values = f.values * scale
    scaled = foreign.wrap(model)
    rows = all_rows()
    np.testing.assert_allclose(ours(scaled, rows), ours(field, rows), rtol=1e-10)
    shift = sum(math.log(s) for s in [1e-200, 1e180, 3.0, 1e-90, 1e100, 7.0])
    assert float(scaled.log_partition()) == pytest.approx(float(field.log_partition()) + shift, abs=1e-8)


def test_latents_are_summed_out():
    model = network(2, latents=["b"])
    field = foreign.wrap(model)
    assert "b" not in field.event.columns
    assert field.variables[-1] == "b"
    visible = {v: STATES[v] for v in "acd"}
    rows = all_rows(visible)
    wanted = np.array([sum(potential(model, {**row, "b": level}) for level in STATES["b"]) for row in rows])
    np.testing.assert_allclose(ours(field, rows), wanted / wanted.sum(), rtol=1e-12, atol=1e-300)
    assert foreign.wrap(foreign.export(field, "pgmpy")).hidden == field.hidden


@pytest.mark.parametrize("seed", range(3))
def test_there_and_back_is_the_same_field(seed):
    field = foreign.wrap(network(seed))
    back = foreign.export(field, "pgmpy")
    assert back.check_model()
    total = agree(field, back)
    assert math.log(total) == pytest.approx(float(field.log_partition()), rel=1e-12)
    again = foreign.wrap(back)
    assert again.factors == field.factors
    for scope in field.factors:
        np.testing.assert_allclose(again.potential(*scope), field.potential(*scope), rtol=1e-12, atol=1e-13)


def test_an_ising_grid_goes_out():
    field = MarkovField.ising(2, 3, coupling=0.7, field=0.2)
    back = foreign.export(field, "pgmpy")
    assert math.log(back.get_partition_function()) == pytest.approx(float(field.log_partition()), rel=1e-10)
    assert set(back.factors[0].state_names.values().__iter__().__next__()) == {-1, 1}


def test_log_potentials_that_are_no_floats_are_shifted_or_refused():
    high = MarkovField(
        {("a", "b"): [[800.0, 799.0], [798.0, -np.inf]], ("b",): [-900.0, -901.0]}, levels={"a": 2, "b": 2}
    )
    back = foreign.export(high, "pgmpy")
    rows = all_rows({"a": [0, 1], "b": [0, 1]})
    wanted = np.array([potential(back, row) for row in rows])
    np.testing.assert_allclose(ours(high, rows), wanted / wanted.sum(), rtol=1e-12)
    with pytest.raises(StructureError, match="apart"):
        foreign.export(MarkovField({("a",): [0.0, 2000.0]}), "pgmpy")


def test_bare_numbers_give_way_to_names_as_in_pgmpys_products():
    named = DiscreteFactor(["a"], [2], [1.0, 3.0], {"a": ["n", "y"]})
    bare = DiscreteFactor(["b", "a"], [3, 2], np.arange(1.0, 7.0))
    for factors in ([named, bare], [bare, named]):
        model = theirs.DiscreteMarkovNetwork([("a", "b")])
        model.add_factors(*factors)
        field = foreign.wrap(model)
        assert field.event.columns["a"].levels == ("n", "y")
        assert field.event.columns["b"].levels == (0, 1, 2)
        wanted = bare.values * [1.0, 3.0]
        rows = [{"a": a, "b": b} for b in range(3) for a in ("n", "y")]
        np.testing.assert_allclose(ours(field, rows), wanted.ravel() / wanted.sum(), rtol=1e-12)


def test_nodes_that_are_no_text_become_text_and_it_is_said():
    model = theirs.DiscreteMarkovNetwork([(0, 1)])
    model.add_factors(DiscreteFactor([0, 1], [2, 2], [1.0, 2.0, 3.0, 4.0]))
    field = foreign.wrap(model)
    assert ours(field, [{"0": 1, "1": 0}])[0] == pytest.approx(0.3)
    assert any("[0, 1]" in note for note in field.report.notes)


# Refusals


def broken(change):
    model = network()
    change(model)
    return model


def set_value(value):
    def change(model):
        model.factors[1].values[0, 1, 2] = value

    return change


def emptied(model):
    model.factors[2].values[:] = 0.0


def disjoint(model):
    model.factors[0].values[:] = np.eye(3, 2)
    model.factors[4].values[:] = 1 - np.eye(2, 3)
    model.factors[0].values[2] = 0.0


def reordered(model):
    model.factors[1].state_names["b"] = ["high", "mid", "low"]


def of_other_size(model):
    model.factors[3] = DiscreteFactor(["a"], [3], np.ones(3), {"a": ["n", "y", "z"]})


def alone(model):
    model.add_node("z")


def joined_but_without_factor(model):
    model.add_edges_from([("z", "a"), ("z", "b")])  # neighbours that are some factor's scope


@pytest.mark.parametrize(
    ("change", "named"),
    [(set_value(-1e-9), "'c', 'b', 'd'"), (set_value(np.nan), "'c', 'b', 'd'"), (set_value(np.inf), "'c', 'b', 'd'"),
     (emptied, "'d', 'c'"), (disjoint, "'b', 'a'"), (reordered, "'b'"), (of_other_size, "'a'"), (alone, "'z'"),
     (joined_but_without_factor, "'z'")],
    ids=["negative", "NaN", "infinite", "all zero", "zero together", "reordered", "other size", "alone", "joined"],
)  # fmt: skip
def test_factors_that_do_not_fit_are_refused_by_name(change, named):
    with pytest.raises(StructureError, match=named):
        foreign.wrap(broken(change))


def test_a_factor_graph_holds_all_its_factors():
    model = factor_graph()
    model.factors.pop()
    with pytest.raises(StructureError, match="factors"):
        foreign.wrap(model)
    for empty in (theirs.DiscreteMarkovNetwork([("a", "b")]), theirs.FactorGraph()):
        with pytest.raises(NotFittedError, match="add_factors"):
            foreign.wrap(empty)


# UAI files


MARKOV = "MARKOV\n3\n2 2 3\n2\n2 0 1\n2 2 1\n\n4\n 4.0 2.4\n 1.0 0.0\n\n6\n 2 5\n 3 3\n 1 7\n"


def test_a_markov_file_is_a_field_with_the_last_variable_fastest(tmp_path):
    path = tmp_path / "f.uai"
    path.write_text(MARKOV)
    field = foreign.wrap(str(path))
    assert isinstance(field, MarkovField)
    first, second = np.array([[4.0, 2.4], [1.0, 0.0]]), np.array([[2.0, 5.0], [3.0, 3.0], [1.0, 7.0]])
    wanted = np.einsum("ab,cb->abc", first, second)
    rows = all_rows({"x0": [0, 1], "x1": [0, 1], "x2": [0, 1, 2]})
    np.testing.assert_allclose(ours(field, rows), wanted.ravel() / wanted.sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("old", "new"), [("4.0", "-4.0"), ("MARKOV", "LIMID"), (" 1 7\n", ""), ("2 2 1", "1 0"), ("2.4", "nan")]
)
def test_a_faulty_markov_file_is_an_error_of_ours(tmp_path, old, new):
    assert old in MARKOV
    (tmp_path / "f.uai").write_text(MARKOV.replace(old, new))
    with pytest.raises(StoreError) as raised:
        foreign.wrap(tmp_path / "f.uai")
    assert isinstance(raised.value, ProbgenError)


def test_the_command_line_scores_both_kinds_of_uai_file(tmp_path):
    markov, bayes = tmp_path / "m.uai", tmp_path / "b.uai"
    markov.write_text(MARKOV)
    bayes.write_text("BAYES\n2\n2 2\n2\n1 0\n2 0 1\n2\n 0.25 0.75\n4\n 0.1 0.9 0.5 0.5\n")
    pd.DataFrame({"x0": [0, 1], "x1": [0, None], "x2": [2, 1]}).to_csv(tmp_path / "m.csv", index=False)
    pd.DataFrame({"var_0": [0, None], "var_1": [1, 0]}).to_csv(tmp_path / "b.csv", index=False)
    total = 4 * 6 + 2.4 * 15 + 6
    for path, wanted in ((markov, [4 / total, 3 / total]), (bayes, [0.225, 0.4])):
        out = path.with_suffix(".parquet")
        answer = CliRunner().invoke(cli.app, ["score", str(path), str(path.with_suffix(".csv")), "-o", str(out)])
        assert answer.exit_code == 0, answer.output
        np.testing.assert_allclose(np.exp(pd.read_parquet(out)["log_prob"]), wanted, rtol=1e-12)
    about = CliRunner().invoke(cli.app, ["card", str(markov)])
    assert json.loads(about.stdout)["family"] == "MarkovField"
