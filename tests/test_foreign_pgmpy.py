"""pgmpy's networks as ours and ours as theirs, and files through its readers: the same numbers, or a refusal."""

import itertools
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from probgen import conditionals as cd
from probgen import events as ev
from probgen import foreign
from probgen.errors import (
    MissingExtra,
    NotFittedError,
    ParameterError,
    ProbgenError,
    StoreError,
    StructureError,
)
from probgen.models.bayesnet import BayesianNetwork

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = pytest.importorskip("pgmpy.models")
    import networkx
    from pgmpy.factors.continuous import LinearGaussianCPD
    from pgmpy.factors.discrete import TabularCPD
    from pgmpy.readwrite import NETWriter, XDSLWriter, XMLBIFWriter


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


STATES = {"a": ["no", "yes"], "b": ["low", "mid", "high"], "c": ["u", "v", "w", "x"], "d": [1, 0], "e": ["p", "q", "r"]}
PARENTS = {"a": [], "b": ["a"], "c": ["b", "a"], "d": ["c"], "e": ["a", "d", "b"]}  # not in the order of the nodes


def tables_model(seed=0, states=STATES, parents=PARENTS):
    """Random tables of unequal sizes, some cells impossible."""
    rng = np.random.default_rng(seed)
    made = theirs.DiscreteBayesianNetwork()
    made.add_nodes_from(rng.permutation(list(states)).tolist())
    made.add_edges_from([(p, v) for v in states for p in parents[v]])
    for v, own in states.items():
        cards = [len(states[p]) for p in parents[v]]
        values = rng.dirichlet(np.ones(len(own)), int(np.prod(cards))).T
        values[0, 0] = 0.0
        values /= values.sum(0)
        names = {each: list(states[each]) for each in (v, *parents[v])}
        made.add_cpds(TabularCPD(v, len(own), values, parents[v] or None, cards or None, names))
    return made


def all_rows(states):
    return [dict(zip(states, row, strict=True)) for row in itertools.product(*states.values())]


def their_probability(model, row):
    """The product of the CPDs' entries, looked up by state names."""
    return np.prod([cpd.get_value(**{v: row[v] for v in cpd.variables}) for cpd in model.get_cpds()])


def our_probabilities(net, rows):
    frame = {name: np.array([row[name] for row in rows], dtype=object) for name in net.variables}
    return np.exp(net.log_prob(frame).nats)


def agree(net, model, states=STATES):
    rows = all_rows(states)
    wanted = [their_probability(model, row) for row in rows]
    np.testing.assert_allclose(our_probabilities(net, rows), wanted, rtol=1e-12, atol=1e-300)
    assert np.sum(wanted) == pytest.approx(1)


# Networks of tables


@pytest.mark.parametrize("seed", range(3))
def test_every_configuration_has_the_probability_that_pgmpys_tables_give_it(seed):
    model = tables_model(seed)
    net = foreign.wrap(model)
    agree(net, model)
    assert net.variables == tuple(model.nodes())
    assert net.event.columns["d"].levels == (1, 0)  # in their order, not sorted
    assert net.report.stopped == "imported"
    other = tables_model(seed + 10)
    assert max(abs(their_probability(other, row) - their_probability(model, row)) for row in all_rows(STATES)) > 1e-3


def test_marginals_given_gaps_are_those_of_their_elimination():
    model = tables_model()
    found = foreign.wrap(model).marginals({"c": np.array(["w"]), "d": np.array([0])})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pgmpy.inference import VariableElimination

        for name in ("a", "b", "e"):
            factor = VariableElimination(model).query([name], {"c": "w", "d": 0}, show_progress=False)
            wanted = [factor.get_value(**{name: level}) for level in STATES[name]]
            np.testing.assert_allclose(found.probs[name][0], wanted, rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_there_and_back_is_the_same_network(seed):
    model = tables_model(seed)
    net = foreign.wrap(model)
    back = foreign.export(net, "pgmpy")
    assert type(back).__name__ == "DiscreteBayesianNetwork"
    assert back.check_model()
    agree(net, back)
    again = foreign.wrap(back)
    assert (again.variables, again.parents) == (net.variables, net.parents)
    for a, b in zip(again.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.exp(), b.exp(), rtol=1e-14, atol=0)


def test_a_noisy_or_of_ours_goes_out_as_its_table():
    yes = ev.Category(("no", "yes"))
    net = BayesianNetwork(
        ev.Table({"x": yes, "y": yes, "z": yes}), [("x", "z"), ("y", "z")], {"z": cd.NoisyOr()}
    ).imported()
    back = foreign.export(net, "pgmpy")
    agree(net, back, {name: ["no", "yes"] for name in "xyz"})


def test_their_fit_comes_in():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pandas as pd
        from pgmpy.estimators import MaximumLikelihoodEstimator

        frame = pd.DataFrame({"a": ["x", "y", "y", "x", "y"] * 4, "b": [0, 1, 1, 1, 0] * 4})
        model = theirs.DiscreteBayesianNetwork([("a", "b")])
        model.add_cpds(*MaximumLikelihoodEstimator(model, frame).get_parameters())
    net = foreign.wrap(model)
    table = net.conditional("b").log_table().exp().detach()
    np.testing.assert_allclose(table, [[1 / 2, 1 / 2], [1 / 3, 2 / 3]], rtol=1e-12)


def test_nodes_that_are_no_text_become_text_and_it_is_said():
    model = theirs.DiscreteBayesianNetwork([(0, 1)])
    model.add_cpds(TabularCPD(0, 2, [[0.3], [0.7]]), TabularCPD(1, 2, [[0.1, 0.6], [0.9, 0.4]], [0], [2]))
    net = foreign.wrap(model)
    assert net.variables == ("0", "1")
    assert any("[0, 1]" in note for note in net.report.notes)
    assert our_probabilities(net, [{"0": 1, "1": 0}])[0] == pytest.approx(0.7 * 0.6)


# Linear Gaussian networks


def linear_model():
    made = theirs.LinearGaussianBayesianNetwork([("x", "z"), ("y", "z"), ("x", "y")])
    made.add_cpds(
        LinearGaussianCPD("x", [1.0], 2.0),
        LinearGaussianCPD("y", [-1.0, 0.5], 0.7, ["x"]),
        LinearGaussianCPD("z", [0.3, -2.0, 0.25], 1.5, ["y", "x"]),  # not in the order of the edges
    )
    return made


def by_the_joint(model, net, cells):
    mean, covariance = model.to_joint_gaussian()
    order = [list(networkx.topological_sort(model)).index(name) for name in net.variables]
    return stats.multivariate_normal(mean[order], covariance[np.ix_(order, order)]).logpdf(cells)


def test_a_linear_gaussian_network_has_the_density_of_its_joint_normal():
    model = linear_model()
    net = foreign.wrap(model)
    cells = np.random.default_rng(0).normal(size=(20, 3))
    wanted = by_the_joint(model, net, cells)
    np.testing.assert_allclose(net.log_prob(dict(zip(net.variables, cells.T, strict=True))).nats, wanted, rtol=1e-10)
    back = foreign.export(net, "pgmpy")
    np.testing.assert_allclose(by_the_joint(back, net, cells), wanted, rtol=1e-12)
    back.get_cpds("z").beta[1] += 0.1  # the same look sees another network
    assert np.abs(by_the_joint(back, net, cells) - wanted).max() > 0.01


def test_mixed_networks_do_not_go_out_and_the_node_is_named():
    event = ev.Table({"a": ev.Category((0, 1)), "y": ev.Real()})
    net = BayesianNetwork(event, [("a", "y")]).imported()
    with pytest.raises(StructureError, match="'a'"):
        foreign.export(net, "pgmpy")


# Refusals


def broken(change):
    model = tables_model()
    change(model)
    return model


def off_by(amount):
    def change(model):
        model.get_cpds("e").values[1, 0, 0, 0] += amount

    return change


def reordered(model):
    names = model.get_cpds("c").state_names
    names["b"] = names["b"][::-1]


def renamed(model):
    model.get_cpds("c").state_names["b"] = ["low", "mid", "other"]


def not_a_number(model):
    model.get_cpds("e").values[0, 0, 0, 0] = np.nan


def lacking(model):
    model.remove_cpds("d")


def of_other_parents(model):
    model.add_edge("c", "e")


@pytest.mark.parametrize(
    ("change", "named", "error"),
    [(off_by(2e-6), "'e'", StructureError), (off_by(0.009), "'e'", StructureError), (reordered, "'b'", StructureError),
     (renamed, "'b'", StructureError), (not_a_number, "'e'", StructureError), (lacking, "'d'", NotFittedError),
     (of_other_parents, "'e'", StructureError)],
    ids=["off 2e-6", "off 0.009", "reordered", "renamed", "NaN", "lacking", "other parents"],
)  # fmt: skip
def test_cpds_that_do_not_fit_are_refused_by_name(change, named, error):
    with pytest.raises(error, match=named):
        foreign.wrap(broken(change))


def test_pgmpy_itself_bears_rows_that_are_refused_here():
    assert broken(off_by(0.009)).check_model()


def test_rows_off_by_little_are_renormalised_and_it_is_said():
    net = foreign.wrap(broken(off_by(5e-7)))
    assert net.conditional("e").log_table().exp().sum(-1).detach().numpy() == pytest.approx(1, abs=1e-14)
    assert any("renormalised" in note for note in net.report.notes)


def test_kinds_without_a_counterpart_are_refused_by_name():
    with pytest.raises(StructureError, match="DynamicBayesianNetwork"):
        foreign.wrap(theirs.DynamicBayesianNetwork())
    with pytest.raises(StructureError):
        foreign.wrap(theirs.DiscreteBayesianNetwork())
    with pytest.raises(ParameterError, match="pgmpy"):
        foreign.export(foreign.wrap(tables_model()), "pgmppy")


def test_without_pgmpy_the_extra_is_named(monkeypatch, tmp_path):
    net = foreign.wrap(tables_model())
    path = tmp_path / "m.net"
    path.write_text(NET)
    for module in ("pgmpy", "pgmpy.models", "pgmpy.readwrite"):
        monkeypatch.setitem(sys.modules, module, None)
    for ask in (lambda: foreign.export(net, "pgmpy"), lambda: foreign.wrap(path)):
        with pytest.raises(MissingExtra, match=r"probgen\[pgmpy\]"):
            ask()


# Files: a child of 3 levels, parents of 2 and 4, so that axes in a wrong order can't fit or give other numbers

CARDS = {"a": 2, "b": 4, "c": 3}
TEXT_STATES = {"a": ["n", "y"], "b": ["u", "v", "w", "x"], "c": ["p", "q", "r"]}
A, B = np.array([0.25, 0.75]), np.array([0.1, 0.2, 0.3, 0.4])
C = np.random.default_rng(5).dirichlet(np.ones(3), (2, 4))  # axes a, b, c: in every format the last one turns fastest

NET = """net { node_size = (80 40); }  % Hugin's comments
node a { states = ("n" "y"); label = "100 %"; }
node b { states = ("u" "v" "w" "x"); }
node c { states = ("p" "q" "r"); }
potential (a) { data = (0.25 0.75); }
potential (b) { data = (0.1 0.2 0.3 0.4); }
potential (c | a b) { data = (%s); }  %% (p q r) for a=n b=u, then b=v
"""  # fmt: skip
XDSL = """<?xml version="1.0" encoding="UTF-8"?>
<smile version="1.0" id="m"><nodes>
<cpt id="a"><state id="n"/><state id="y"/><probabilities>0.25 0.75</probabilities></cpt>
<cpt id="b"><state id="u"/><state id="v"/><state id="w"/><state id="x"/>
<probabilities>0.1 0.2 0.3 0.4</probabilities></cpt>
<cpt id="c"><state id="p"/><state id="q"/><state id="r"/><parents>a b</parents>
<probabilities>%s</probabilities></cpt>
</nodes></smile>"""
XMLBIF = """<?xml version="1.0"?>
<BIF VERSION="0.3"><NETWORK><NAME>m</NAME>
<VARIABLE TYPE="nature"><NAME>a</NAME><OUTCOME>n</OUTCOME><OUTCOME>y</OUTCOME></VARIABLE>
<VARIABLE TYPE="nature"><NAME>b</NAME>
<OUTCOME>u</OUTCOME><OUTCOME>v</OUTCOME><OUTCOME>w</OUTCOME><OUTCOME>x</OUTCOME></VARIABLE>
<VARIABLE TYPE="nature"><NAME>c</NAME><OUTCOME>p</OUTCOME><OUTCOME>q</OUTCOME><OUTCOME>r</OUTCOME></VARIABLE>
<DEFINITION><FOR>a</FOR><TABLE>0.25 0.75</TABLE></DEFINITION>
<DEFINITION><FOR>b</FOR><TABLE>0.1 0.2 0.3 0.4</TABLE></DEFINITION>
<DEFINITION><FOR>c</FOR><GIVEN>a</GIVEN><GIVEN>b</GIVEN><TABLE>%s</TABLE></DEFINITION>
</NETWORK></BIF>"""
UAI = """BAYES
3
2 4 3
3
1 0
1 1
3 0 1 2  # the child last

2
 2.5e-1 0.75
4
 0.1 0.2 0.3 0.4
24
 %s
"""
FORMATS = {".net": NET, ".xdsl": XDSL, ".xmlbif": XMLBIF, ".xml": XMLBIF, ".uai": UAI}


def written(tmp_path, suffix, text=None):
    path = tmp_path / f"m{suffix}"
    text = FORMATS[suffix] if text is None else text
    path.write_text(text.replace("%s", " ".join(map(repr, C.ravel().tolist()))).replace("%%", "%"))
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_means_what_its_format_says(suffix, tmp_path):
    net = foreign.wrap(written(tmp_path, suffix))
    if suffix == ".uai":
        assert net.variables == ("var_0", "var_1", "var_2")
        assert net.event.columns["var_1"].levels == (0, 1, 2, 3)
    else:
        assert {name: list(column.levels) for name, column in net.event.columns.items()} == TEXT_STATES
    cells = torch.tensor(list(itertools.product(range(2), range(4), range(3))), dtype=torch.float64)
    names = ["var_0", "var_1", "var_2"] if suffix == ".uai" else ["a", "b", "c"]
    x = torch.empty_like(cells)
    for column, name in zip(cells.T, names, strict=True):
        x[:, net.index[name]] = column
    nats = net._log_prob(x, None, generator=torch.Generator()).nats
    np.testing.assert_allclose(np.exp(nats), (A[:, None, None] * B[:, None] * C).ravel(), rtol=1e-12)


@pytest.mark.parametrize(("suffix", "writer"), [(".net", NETWriter), (".xdsl", XDSLWriter), (".xmlbif", XMLBIFWriter)])
def test_what_pgmpy_writes_is_read(suffix, writer, tmp_path):
    states = {**TEXT_STATES, "d": ["k", "l"]}
    model = tables_model(4, states, {"a": [], "b": [], "c": ["b", "a"], "d": ["c"]})
    path = tmp_path / f"m{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer(model).write(str(path))
    net = foreign.wrap(path)
    rows = all_rows(states)
    wanted = [their_probability(model, row) for row in rows]
    np.testing.assert_allclose(our_probabilities(net, rows), wanted, atol=1e-6)  # they write so many digits


def test_a_bif_file_goes_to_our_own_reader(tmp_path):
    net = BayesianNetwork.from_tables(
        {"a": {"n": 0.25, "y": 0.75}, "b": ("a", {"n": {"p": 1, "q": 0}, "y": {"p": 0.5, "q": 0.5}})}
    )
    path = net.save_file(tmp_path / "m.bif")
    assert our_probabilities(foreign.wrap(str(path)), [{"a": "y", "b": "q"}])[0] == pytest.approx(0.375, rel=1e-14)


DAMAGED = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "of another kind": lambda text: "\x00\x01 not a network",
    "short of a number": lambda text: text.replace("%s", "0.5 0.5"),
    "negative": lambda text: text.replace("0.75", "-0.75"),
    "off": lambda text: text.replace("0.75", "0.74"),
    "without a table": lambda text: text.replace("0.25 0.75", ""),
}


@pytest.mark.parametrize("suffix", [".net", ".xdsl", ".xmlbif", ".uai"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_an_error_of_ours(suffix, damage, tmp_path):
    text = DAMAGED[damage](FORMATS[suffix].replace("2.5e-1", "0.25"))
    with pytest.raises((StoreError, StructureError)) as raised:
        foreign.wrap(written(tmp_path, suffix, text))
    assert isinstance(raised.value, ProbgenError)


@pytest.mark.parametrize(
    ("suffix", "old", "new"),
    [(".net", '"n" "y"', '"very much" "y"'), (".net", "node b", "node b.b"), (".net", "potential (b)", "potential (a)"),
     (".xdsl", '<cpt id="a">', '<noisymax id="z"/><cpt id="a">'), (".xdsl", '<cpt id="b">', '<cpt id="a">'),
     (".xmlbif", "<FOR>b</FOR>", "<FOR>a</FOR>"), (".uai", "BAYES", "LIMID"), (".uai", "1 1", "1 0"),
     (".uai", "24\n", "23\n"), (".uai", "3 0 1 2", "3 0 9 2")],
)  # fmt: skip
def test_what_a_reader_would_misread_is_refused(suffix, old, new, tmp_path):
    assert old in FORMATS[suffix]
    with pytest.raises((StoreError, StructureError)):
        foreign.wrap(written(tmp_path, suffix, FORMATS[suffix].replace(old, new)))


@pytest.mark.parametrize("name", ["none.net", "none.uai", "none.xdsl", "none.bif", "m.csv", "m.net.gz", "alarm"])
def test_paths_that_lead_nowhere_are_named(name, tmp_path):
    with pytest.raises((StoreError, StructureError), match=name):
        foreign.wrap(tmp_path / name)


@pytest.mark.parametrize("name", ["none.xml", "none.bif", "none.uai", "none.bif.gz"])
def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path, name):
    with pytest.raises(StoreError, match=r"There is no file .*none"):
        foreign.wrap(tmp_path / name)


def test_states_that_are_no_levels_are_refused_by_the_name_of_their_node():
    net = theirs.DiscreteBayesianNetwork()
    net.add_node("odd")
    net.add_cpds(TabularCPD("odd", 2, [[0.5], [0.5]], state_names={"odd": [(0, 1), (1, 0)]}))
    with pytest.raises(StructureError, match=r"states of 'odd'.*tuple"):
        foreign.wrap(net)
