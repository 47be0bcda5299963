"""Rows of many patterns of gaps at once: against the same rows one pattern at a time."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from probgen.conditionals import LinearGaussian, PoissonRegression
from probgen.errors import ParameterError
from probgen.events import Category, Count, Real, Table
from probgen.logprob import Kind
from probgen.models.bayesnet import BayesianNetwork, bundles, em, gaussian, scoring
from probgen.models.bayesnet.problem import Problem
from probgen.models.bayesnet.queries import few

COLUMNS = {
    "a": Category(("x", "y")), "b": Category((0, 1, 2)), "r": Real(), "s": Real(), "t": Real(), "u": Real(),
    "k": Count(), "c": Category(("n", "y")), "e": Category(("n", "y")),
}  # fmt: skip
EDGES = [
    ("a", "b"), ("a", "r"), ("r", "s"), ("b", "s"), ("s", "t"), ("a", "t"), ("b", "u"), ("r", "u"), ("b", "k"),
    ("t", "c"), ("b", "e"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(seed, edges=EDGES, columns=COLUMNS):
    """Random numbers in a network of all kinds of columns."""
    net, generator = BayesianNetwork(Table(columns), edges), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.7 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    net.form = "dict"
    return net.imported()


def gappy(net, n, share, seed, whole=()):
    """Draws with gaps; columns of ``whole`` have none."""
    x = net.event.check(net.sample(n, seed=seed)).x.clone()
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    holes[:, [net.index[name] for name in whole]] = False
    x[holes] = torch.nan
    return x


def frame(net, x):
    """Rows as a frame of levels and numbers, None where missing."""
    found = {}
    for name, column in zip(net.variables, x.T.tolist(), strict=True):
        levels = getattr(net.event.columns[name], "levels", None)
        found[name] = (
            [v if v == v else np.nan for v in column] if levels is None
            else [None if v != v else levels[int(v)] for v in column]
        )  # fmt: skip
    return found


def one_by_one(net, x):
    """Scores by ``net.groups``, NaN where a row has no exact sum."""
    nats = torch.full((len(x),), torch.nan, dtype=torch.float64)
    for group in net.groups(x):
        if group.scored is not None:
            nats[group.rows] = scoring.summed(net, group.scored)
    return nats


@pytest.mark.parametrize("seed", range(3))
def test_many_patterns_at_once_score_as_one_pattern_at_a_time(seed):
    net = network(seed)
    x = gappy(net, 300, 0.35, seed)
    found, wanted = net.log_prob(frame(net, x), seed=0), one_by_one(net, x).detach().numpy()
    exact = ~np.isnan(wanted)
    assert 30 < exact.sum() < 300  # a class below a missing real has no exact sum
    assert ((found.kinds == Kind.EXACT) == exact).all()
    np.testing.assert_allclose(found.nats[exact], wanted[exact], rtol=1e-12, atol=1e-12)
    assert np.abs(np.sort(found.nats[exact]) - wanted[exact]).max() > 1  # rows in another order are caught


def test_rows_without_any_observed_cell_have_probability_one():
    for columns, edges in ((COLUMNS, EDGES), ({"r": Real(), "s": Real()}, [("r", "s")])):
        net = network(0, edges, columns)
        x = torch.full((2, len(columns)), torch.nan, dtype=torch.float64)
        assert net.log_prob(frame(net, x)).nats == pytest.approx(np.zeros(2), abs=1e-12)


def test_rows_over_the_limits_are_refused_and_the_others_scored():
    net = network(0)
    x = gappy(net, 300, 0.35, 0, whole=("t",))
    wanted = net.log_prob(frame(net, x)).nats
    for name, low in (("limit", 4), ("configurations", 2)):
        small = copy.deepcopy(net)
        setattr(small, name, low)
        found = small.log_prob(frame(net, x))
        assert 0 < found.refused.sum() < 300
        np.testing.assert_allclose(found[~found.refused].nats, wanted[~found.refused], rtol=1e-12, atol=1e-12)


def expectations(problem):
    """Log-likelihood, slopes, and all that an M step reads, in one row; rows in order of their cells."""
    nats, found = em.expect(problem)
    for p in problem.net.parameters():
        p.grad = None
    em.log_likelihood(problem).backward()
    slopes = [p.grad.reshape(-1) for p in problem.net.parameters() if p.grad is not None]
    sums = [t.reshape(-1) for part in (found.counts, found.moments) for _, t in sorted(part.items())]
    for _, parts in sorted(found.rows.items()):
        child, parents, weights = (torch.cat(p) for p in zip(*parts, strict=True))
        sums.append(
            torch.einsum("n,nq,nk->qk", child.nan_to_num() + 1, 1 + parents.nan_to_num(), weights.flatten(1)).reshape(
                -1
            )
        )
    return nats, torch.cat([*slopes, *sums]).detach()


def test_many_patterns_at_once_teach_what_one_pattern_at_a_time_does(monkeypatch):
    net = network(3)
    x = gappy(net, 300, 0.35, 3, whole=("t",))
    generator = torch.Generator().manual_seed(0)
    net.fit(frame(net, x), max_iter=1, seed=0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    nats, found = expectations(Problem(net, x))
    monkeypatch.setattr(bundles, "FEW", 0)  # nothing is small enough to be put together
    monkeypatch.setattr(gaussian, "_NUMBERS", 0)  # nor to be solved together
    other = Problem(net, x)
    assert sum(isinstance(block, em.Open) for block in other.blocks) > 25
    plain, wanted = expectations(other)
    assert nats == pytest.approx(plain, abs=1e-9)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-8)


def test_portions_of_rows_add_up(monkeypatch):
    net = network(4)
    x = gappy(net, 3000, 0.3, 4, whole=("t",))
    whole = net.log_prob(frame(net, x)).nats
    at_once = expectations(Problem(net, x))
    monkeypatch.setattr(bundles, "_NUMBERS", 40)
    np.testing.assert_allclose(net.log_prob(frame(net, x)).nats, whole, rtol=1e-13)
    apart = Problem(net, x)
    assert any(isinstance(block, em.Open) for block in apart.blocks)  # too many matrices at once: these rows go apart
    assert sum(isinstance(block, bundles.Layout) for block in apart.blocks) == 3
    assert apart.known
    nats, found = expectations(apart)
    assert nats == pytest.approx(at_once[0], abs=1e-8)
    torch.testing.assert_close(found, at_once[1], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("offset", [1e8, 1.7e9])
def test_em_with_gaps_climbs_on_reals_far_from_zero_and_ends_where_it_does_near_zero(offset):
    rng = np.random.default_rng(2)
    a = rng.integers(0, 2, 80)
    r = np.round((rng.normal(size=80) + 2 * a) * 1024) / 1024  # exact at any offset
    s = np.round((0.5 * r + 0.3 * rng.normal(size=80)) * 1024) / 1024
    holes = rng.random((2, 80)) < 0.3
    ends = []
    for shift in (0.0, offset):
        columns = {"a": Category((0, 1)), "r": Real(), "s": Real()}
        net = BayesianNetwork(Table(columns), [("a", "r"), ("r", "s")])
        data = {"a": a, "r": np.where(holes[0], np.nan, r + shift), "s": np.where(holes[1], np.nan, s - shift)}
        net.fit(data, seed=0)
        assert net.report.stopped == "converged"
        ends.append((net.report.objective[-1], net.log_prob(data).nats))
    assert ends[1][0] == pytest.approx(ends[0][0], abs=1e-6)
    np.testing.assert_allclose(ends[1][1], ends[0][1], atol=1e-4)


def lines(n=40):
    """A real that is its parent's double in most rows of one class: without a floor the likelihood is unbounded."""
    rng = np.random.default_rng(0)
    a, r = rng.integers(0, 2, n), rng.normal(size=n)
    s = np.where(a == 1, 2 * r, 2 * r + rng.normal(size=n))
    data = {"a": a, "r": r, "s": np.where(rng.random(n) < 0.2, np.nan, s)}
    columns = {"a": Category((0, 1)), "r": Real(), "s": Real()}
    return BayesianNetwork(Table(columns), [("a", "r"), ("a", "s"), ("r", "s")]), data


def least(net):
    part = net.conditional("s")
    return float(part.log_scale.detach().exp().min() / part.least_variance.sqrt())


def test_quasi_newton_keeps_the_floor_that_em_keeps():
    net, data = lines()
    net.fit(data, seed=0)
    assert least(net) == pytest.approx(1, abs=1e-9)
    top = net.report.objective[-1]
    net.fit(data, method="gradient", seed=0)
    assert 1 - 1e-9 < least(net) < 1.5
    assert net.report.objective[-1] == pytest.approx(top, abs=1e-3)


@pytest.mark.parametrize("options", [{"steps": 1}, {"max_iter": 1}], ids=["Adam", "quasi-Newton"])
def test_gradients_lift_scales_that_stand_below_their_floor(options):
    net, data = lines()
    net.fit(data, seed=0)
    with torch.no_grad():
        net.conditional("s").log_scale.sub_(3)
    net.fit(data, method="gradient", start="current", seed=0, **options)
    assert least(net) > 1 - 1e-9


@pytest.mark.parametrize("max_iter", [1, 200])
def test_going_on_by_gradients_from_a_scale_at_its_floor_loses_nothing(max_iter):
    net, data = lines()
    net.fit(data, seed=0, tol=1e-12)
    top = net.log_likelihood
    net.fit(data, method="gradient", start="current", max_iter=max_iter)
    assert top - 1e-9 <= net.log_likelihood <= top + 1e-3


def test_counts_of_a_mean_beyond_whole_numbers_are_refused_with_that_mean():
    net = BayesianNetwork(Table({"r": Real(), "k": Count()}), [("r", "k")])
    assert isinstance(net.conditional("k"), PoissonRegression)
    net.conditional("k").set_natural(intercept=30.0, coefficients=[0.0])
    assert net.imported().sample(3, seed=0).to_pandas()["k"].min() > 1e12
    for intercept, mean in ((50.0, "5.18471e"), (800.0, "inf")):
        net.conditional("k").set_natural(intercept=intercept, coefficients=[0.0])
        with pytest.raises(ParameterError, match=f"mean {mean}"):
            net.sample(3, seed=0)


def test_a_small_limit_of_configurations_counts_missing_parents_only():
    columns = {**{f"d{i}": Category((0, 1, 2)) for i in range(5)}, "u": Real(), "v": Real()}
    net = network(1, [*((f"d{i}", "u") for i in range(5)), ("u", "v")], columns)
    x = gappy(net, 6, 0.0, 0)
    x[:, 5] = torch.nan
    wanted = net.log_prob(frame(net, x)).nats
    x[3:, :5] = torch.nan
    net.configurations = 100
    found = net.log_prob(frame(net, x))
    np.testing.assert_array_equal(found.refused, [False] * 3 + [True] * 3)
    np.testing.assert_allclose(found[:3].nats, wanted[:3], rtol=1e-12)
    assert "243 configurations" in found[5].reason


def test_answers_of_large_networks_print_in_one_line():
    net = network(0, [("v1", f"v{i}") for i in range(2, 60)], {f"v{i}": Category(("n", "y")) for i in range(60)})
    one, two = net.marginals(), net.marginals({"v0": ["n", "y"]})
    assert "52 more" in repr(one)
    assert len(repr(one)) < 400
    assert repr(two) == "Marginals(2 rows of v0, v1, v2, v3, v4, v5, v6, v7, 52 more)"
    told = net.counterfactual({"v0": "n"}, {"v1": "y"})
    assert "more" in repr(told)
    assert len(repr(told)) < 200
    assert few(["a", "b"]) == "a, b"


def test_learning_graphs_of_mixed_columns_never_walks_through_impossible_ones():
    rng = np.random.default_rng(0)
    n = 300
    data = pd.DataFrame({
        "flag": rng.random(n) < 0.3, "grp": rng.integers(0, 3, n), "score": rng.normal(size=n),
        "cnt": rng.poisson(3, n), "txt": rng.choice(["u", "v"], n),
    })  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [BayesianNetwork.learn(data, seed=seed) for seed in range(3)]
    for net in found:
        assert all(np.isfinite(step.total) for step in net.structure.history)
        assert isinstance(net.conditional("score"), LinearGaussian)
