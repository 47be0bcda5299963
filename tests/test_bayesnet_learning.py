"""How networks of categories learn: EM by enumeration, other libraries' answers, and what may go wrong."""

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from learned import (
    CARDS,
    EDGES,
    discrete,
    drawn,
    learn,
    nats_of,
    randomised,
    seeded,
    slope,
    tables_of,
)

from probgen.conditionals import NoisyOr, PoissonRegression, Softmax
from probgen.errors import DataError, FitError, ParameterError, StructureError
from probgen.events import Category, Count, Real, Table
from probgen.models.bayesnet import BayesianNetwork, em


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# EM against EM by enumeration


def enumerated_em(net, x, tables, iterations, pseudo, drop=False):
    """EM by listing every completion of every row; ``drop`` leaves incomplete rows out, as other libraries do."""
    names, rows = list(net.variables), x.numpy()
    if drop:
        rows = rows[~np.isnan(rows).any(1)]
    tables = {n: t.copy() for n, t in tables.items()}
    history = []
    for _ in range(iterations):
        counts, nats = {n: np.full(t.shape, pseudo(t.shape)) for n, t in tables.items()}, 0.0
        nats += sum((pseudo(t.shape) * np.log(t)).sum() for t in tables.values())
        for row in rows:
            options = [range(CARDS[n]) if math.isnan(c) else [int(c)] for n, c in zip(names, row, strict=True)]
            completions = list(itertools.product(*options))
            places = [
                {n: tuple(dict(zip(names, c, strict=True))[m] for m in (*net.parents[n], n)) for n in names}
                for c in completions
            ]
            odds = np.array([np.prod([tables[n][p[n]] for n in names]) for p in places])
            nats += math.log(odds.sum())
            for share, place in zip(odds / odds.sum(), places, strict=True):
                for n in names:
                    counts[n][place[n]] += share
        history.append(nats / len(x))
        tables = {n: c / c.sum(-1, keepdims=True) for n, c in counts.items()}
    return tables, history


PRIORS = {
    "none": lambda shape: 0.0,
    "dirichlet": lambda shape: 0.7,
    "bdeu": lambda shape: 0.7 / np.prod(shape),
    "k2": lambda shape: 1.0,
}


def em_and_enumeration(prior, drop=False):
    net = randomised(discrete(), 3)
    x = drawn(net, 60, 5, gaps=0.35)
    x[7] = torch.nan  # a row without anything
    net = randomised(discrete(), 4)
    expected, history = enumerated_em(net, x, tables_of(net), 6, PRIORS[prior], drop)
    report = learn(net, x, max_iter=6, tol=0.0, start="current", prior=prior, strength=0.7)
    got = tables_of(net)
    apart = max(np.abs(got[n] - expected[n]).max() for n in got)
    return max(apart, np.abs(np.array(report.objective[:6]) - history).max())


@pytest.mark.parametrize("prior", PRIORS)
def test_em_takes_the_steps_of_em_by_enumeration(prior):
    assert em_and_enumeration(prior) < 1e-12


def test_that_comparison_notices_dropped_rows():
    assert em_and_enumeration("dirichlet", drop=True) > 1e-3


def test_tied_nodes_learn_from_the_sum_of_their_counts():
    cards, edges = {"a": 3, "b": 3, "c": 3}, [("a", "b"), ("b", "c")]
    truth = randomised(discrete(cards, edges, tie={"c": "b"}), 1)
    x = drawn(truth, 500, 2)
    net = discrete(cards, edges, tie={"c": "b"})
    learn(net, x)
    counts = np.zeros((3, 3))
    for past, now in ((0, 1), (1, 2)):
        np.add.at(counts, (x[:, past].long().numpy(), x[:, now].long().numpy()), 1)
    assert tables_of(net)["c"] == pytest.approx(counts / counts.sum(1, keepdims=True), abs=1e-14)
    assert net.conditional("b") is net.conditional("c")
    x = drawn(truth, 2000, 3, gaps=0.3)
    free = discrete(cards, edges)
    assert learn(net, x, max_iter=500).objective[-1] < learn(free, x, max_iter=500).objective[-1]
    assert np.abs(tables_of(net)["b"] - tables_of(truth)["b"]).max() < 0.1


# Complete rows


def pgmpy_tables(edges, frame, prior):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pgmpy.estimators import BayesianEstimator, MaximumLikelihoodEstimator
        from pgmpy.models import DiscreteBayesianNetwork

        model, found = DiscreteBayesianNetwork(edges), {}
        states = {n: list(range(CARDS[n])) for n in frame}
        for name in frame:
            if prior == "none":
                cpd = MaximumLikelihoodEstimator(model, frame, state_names=states).estimate_cpd(name)
            else:
                how = {"bdeu": {"prior_type": "BDeu", "equivalent_sample_size": 0.7}, "k2": {"prior_type": "K2"}}[prior]
                cpd = BayesianEstimator(model, frame, state_names=states).estimate_cpd(name, **how)
            family = [*(p for p, child in edges if child == name), name]
            found[name] = np.transpose(cpd.values, [cpd.variables.index(v) for v in family])
    return found


@pytest.mark.parametrize("prior", ["none", "bdeu", "k2"])
def test_pgmpy_learns_the_same_tables_from_complete_rows(prior):
    pytest.importorskip("pgmpy")
    x = drawn(randomised(discrete(), 3), 400, 6)
    net = discrete()
    report = learn(net, x, prior=prior, strength=0.7)
    frame = pd.DataFrame(x.numpy().astype(int), columns=list(CARDS))
    expected = pgmpy_tables(EDGES, frame, prior)
    for name, table in tables_of(net).items():
        assert table == pytest.approx(expected[name], abs=1e-12)
    assert (report.stopped, report.steps) == ("closed form", 1)
    assert net.log_likelihood == pytest.approx(nats_of(net, x).sum(), rel=1e-12)
    assert net.n_rows == 400


def test_complete_rows_need_no_clique_tree():
    """Sixteen parents of one child: summing over them is refused, counting is not."""
    cards = {f"p{i}": 2 for i in range(16)} | {"child": 2}
    net = discrete(cards, [(f"p{i}", "child") for i in range(16)])
    net.limit = 10
    x = (torch.rand(500, 17, generator=seeded(1), dtype=torch.float64) < 0.5).double()
    assert learn(net, x).stopped == "closed form"
    gaps = x.clone()
    gaps[3] = torch.nan
    before = tables_of(net)
    with pytest.raises(StructureError, match="limit=10"):
        learn(net, gaps)
    assert all(np.array_equal(before[n], t) for n, t in tables_of(net).items())


def test_regressions_of_complete_rows_are_least_squares():
    net = randomised(BayesianNetwork(Table({"u": Real(), "v": Real(), "y": Real()}), [("u", "y"), ("v", "y")]), 2)
    x = drawn(net, 300, 3) * torch.tensor([1.0, 10.0, 1.0]) + 1e6
    fresh = BayesianNetwork(net.event, net.edges)
    assert learn(fresh, x).stopped == "closed form"
    centred = (x - x.mean(0)).numpy()
    slopes, rest, *_ = np.linalg.lstsq(centred[:, :2], centred[:, 2], rcond=None)
    own = fresh.conditional("y").natural()
    assert own["coefficients"].detach().numpy() == pytest.approx(slopes, rel=1e-9)
    assert own["scale"].item() == pytest.approx(math.sqrt(rest[0] / 300), rel=1e-9)


def test_conditionals_without_a_closed_form_end_where_the_slope_is_zero():
    columns = {"a": Category((0, 1)), "b": Category((0, 1)), "c": Category((0, 1)), "u": Real(), "k": Count(),
               "s": Category((0, 1, 2))}  # fmt: skip
    edges = [("a", "c"), ("b", "c"), ("u", "k"), ("u", "s"), ("a", "s")]
    net = randomised(BayesianNetwork(Table(columns), edges, {"c": NoisyOr()}), 1)
    net.conditional("c").set_natural(probs=[0.7, 0.4], leak=0.1)
    x = drawn(net, 400, 2)
    fresh = BayesianNetwork(net.event, edges, {"c": NoisyOr()})
    report = learn(fresh, x, tol=1e-12)
    assert report.stopped == "converged"
    assert isinstance(fresh.conditional("k"), PoissonRegression)
    assert isinstance(fresh.conditional("s"), Softmax)
    assert slope(fresh, x) < 1e-5


# Gaps


def test_pyagrum_ends_just_below_and_ours_goes_on_from_there_to_the_same_optimum(tmp_path):
    """Its EM drops no rows either. It stops early, on "likelihood divergence", and at random."""
    pytest.importorskip("pyagrum")
    x = drawn(randomised(discrete(), 3), 200, 8, gaps=0.25)
    net = discrete()
    learn(net, x, tol=1e-12, max_iter=3000)
    best = nats_of(net, x).sum()
    frame = pd.DataFrame(x.numpy(), columns=list(CARDS)).astype("Int64")
    frame.to_csv(tmp_path / "rows.csv", index=False, na_rep="?")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyagrum as gum

        gum.initRandom(1)
        other = gum.BayesNet()
        for n, k in CARDS.items():
            other.add(gum.LabelizedVariable(n, n, [str(i) for i in range(k)]))
        for edge in EDGES:
            other.addArc(*edge)
        learner = gum.BNLearner(str(tmp_path / "rows.csv"), other, ["?"])
        learner.useEM(1e-6)
        found = learner.learnParameters(other)
    for n in CARDS:
        cpt = found.cpt(n)
        order = [list(cpt.names)[::-1].index(v) for v in (*net.parents[n], n)]
        net.conditional(n).set_table(np.transpose(np.array(cpt.tolist()), order))
    assert best - 0.5 < nats_of(net, x).sum() < best + 1e-6
    learn(net, x, tol=1e-12, max_iter=3000, start="current")
    assert nats_of(net, x).sum() == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_em_never_goes_down(seed):
    cards = {f"v{i}": 2 + (i + seed) % 3 for i in range(7)}
    names, rng = list(cards), np.random.default_rng(seed)
    edges = [(names[j], names[i]) for i in range(7) for j in range(i) if rng.random() < 0.4]
    x = drawn(randomised(discrete(cards, edges), seed), 120, seed, gaps=0.5)
    net = discrete(cards, edges)
    report = learn(net, x, max_iter=60, tol=0.0)
    assert np.diff(report.objective).min() > -1e-12
    assert report.objective[-1] - report.objective[0] > 1e-3
    assert net.log_likelihood == pytest.approx(nats_of(net, x).sum(), rel=1e-10)
    assert report.objective[-1] == pytest.approx(net.log_likelihood / 120, rel=1e-12)


def test_an_m_step_that_goes_down_is_an_error_that_names_the_iteration(monkeypatch):
    x = drawn(randomised(discrete(), 3), 80, 5, gaps=0.35)
    net = randomised(discrete(), 4)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    right, calls = em.maximise_counts, itertools.count(1)

    def wrong(conditional, counts, fill):
        return right(conditional, counts.flip(-1) if next(calls) > 3 * len(CARDS) else counts, fill)

    monkeypatch.setattr(em, "maximise_counts", wrong)
    with pytest.raises(FitError, match="iteration 4") as failure:
        learn(net, x)
    assert failure.value.step == 4
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_ten_and_ten_iterations_are_twenty_to_the_bit():
    x = drawn(randomised(discrete(), 3), 200, 5, gaps=0.35)
    whole, parts = discrete(), discrete()
    learn(whole, x, max_iter=20, tol=0.0)
    learn(parts, x, max_iter=10, tol=0.0)
    report = learn(parts, x, max_iter=10, tol=0.0, start="current", seed=99)
    assert report.steps == 10
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])


def test_gradients_end_where_em_ends():
    x = drawn(randomised(discrete(), 3), 300, 5, gaps=0.2)
    options = {"prior": "dirichlet", "strength": 0.5, "tol": 1e-13, "max_iter": 2000}
    by_em, by_slope = discrete(), discrete()
    first = learn(by_em, x, **options)
    second = learn(by_slope, x, method="gradient", **options)
    assert second.objective[-1] == pytest.approx(first.objective[-1], abs=1e-9)
    for name, table in tables_of(by_em).items():
        assert tables_of(by_slope)[name] == pytest.approx(table, abs=1e-4)
    assert slope(by_em, x) < 1e-6


def test_the_verb_fits_frames_with_gaps():
    x = drawn(randomised(discrete(), 3), 300, 5, gaps=0.2)
    net = discrete()
    assert net.fit(net.event.restore(x, "pandas"), seed=3, prior="bdeu", strength=2.0) is net
    assert net.report.seed == 3
    assert any("missing at random" in note for note in net.report.notes)
    assert any("posterior means under bdeu" in note for note in net.report.notes)
    assert net.bic() > net.aic()


# Odd data


def test_configurations_that_no_row_has_stay_uniform_and_are_reported():
    x = drawn(randomised(discrete(), 3), 300, 5)
    x = x[(x[:, 1] != 2) | (x[:, 2] != 0)]
    net = randomised(discrete(), 9)
    report = learn(net, x)
    assert tables_of(net)["d"][2, 0] == pytest.approx([1 / 3] * 3)
    assert [n for n in report.notes if "'d': 1 of 6 configurations" in n and "uniform" in n]
    x[:40, 0] = torch.nan
    report = learn(net, x)
    assert tables_of(net)["d"][2, 0] == pytest.approx([1 / 3] * 3)
    assert [n for n in report.notes if "'d': 1 of 6 configurations" in n and "uniform" in n]
    report = learn(net, x, prior="bdeu", strength=3.0)
    assert [n for n in report.notes if "'d': 1 of 6 configurations" in n and "prior" in n]


def test_one_row_is_enough():
    net = discrete()
    learn(net, torch.tensor([[0.0, 2.0, 1.0, 1.0]], dtype=torch.float64))
    assert net.log_likelihood == 0.0
    learn(net, torch.tensor([[0.0, torch.nan, 1.0, 1.0]], dtype=torch.float64))
    assert net.log_likelihood == pytest.approx(0.0, abs=1e-3)


def test_constant_columns_and_rows_without_cells_are_learned_from():
    x = drawn(randomised(discrete(), 3), 100, 5, gaps=0.3)
    x[:, 2] = 1.0
    x[:5] = torch.nan
    net = discrete()
    report = learn(net, x, prior="k2")
    assert net.n_rows == 95
    assert math.isfinite(report.objective[-1])
    without = discrete()
    learn(without, x[5:], prior="k2")
    assert net.log_likelihood == pytest.approx(without.log_likelihood, abs=0.02)


def test_a_column_that_is_never_there_leaves_the_others_alone():
    x = drawn(randomised(discrete(), 3), 200, 5)
    x[:, 3] = torch.nan
    net, smaller = discrete(), discrete({n: CARDS[n] for n in "abc"}, EDGES[:2])
    report = learn(net, x)
    learn(smaller, x[:, :3])
    assert net.log_likelihood == pytest.approx(smaller.log_likelihood, rel=1e-12)
    assert tables_of(net)["b"] == pytest.approx(tables_of(smaller)["b"], abs=1e-12)
    assert any("'d'; the data do not determine" in note for note in report.notes)


def test_what_no_data_determine_is_uniform_and_not_random():
    x = drawn(randomised(discrete(), 3), 200, 5)
    x[:, 3] = torch.nan
    found = []
    for seed in (0, 1):
        net = discrete()
        report = learn(net, x, seed=seed)
        assert len(report.optima) == 1  # nothing that restarts could find
        found.append(tables_of(net)["d"])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], 1 / CARDS["d"])
    x[:, 3], x[:, 0] = 1.0, torch.nan  # the twin: something was seen below
    net = discrete()
    report = learn(net, x)
    assert len(report.optima) == 5
    assert any("hidden: 'a'" in note for note in report.notes)


def test_data_without_any_cell_are_refused():
    with pytest.raises(DataError, match="without any observed cell"):
        learn(discrete(), torch.full((4, 4), torch.nan, dtype=torch.float64))


def test_rows_that_the_present_tables_exclude_are_an_error():
    net = randomised(discrete(), 1)
    net.conditional("a").set_table([1.0, 0.0])
    x = drawn(randomised(discrete(), 3), 100, 5, gaps=0.2)
    with pytest.raises(FitError, match="impossible"):
        learn(net, x, start="current")
    learn(net, x)
    assert math.isfinite(net.log_likelihood)


@pytest.mark.parametrize(
    "options",
    [{"prior": "jeffreys"}, {"strength": 0.0}, {"strength": math.nan}, {"strength": "1"}, {"method": "nuts"},
     {"max_iter": 0}, {"max_iter": 2.5}, {"max_iter": True}, {"tol": -1.0}, {"tol": math.nan}, {"restarts": 0},
     {"start": "here"}, {"steps": 5}, {"steps": 0, "method": "gradient"}],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ParameterError):
        learn(discrete(), drawn(randomised(discrete(), 3), 5, 5), **options)
