"""Networks of categories and reals before other judges: pyAgrum, sixty digits, a structural model, other units."""

import itertools
import math
import warnings
from importlib import resources

import mpmath
import numpy as np
import pytest
import torch

from probgen.conditionals import LinearGaussian, Tabular
from probgen.events import Category, Count, Real, Table
from probgen.logprob import Kind
from probgen.models.bayesnet import BayesianNetwork

SHIPPED = ("asia", "sachs", "child", "insurance", "alarm", "hailfinder", "win95pts", "hepar2")


def random_network(columns, edges, rng, units=None):
    """Random tables and regressions; the reals in their ``units``."""
    units = dict.fromkeys(columns, 1.0) | (units or {})
    net = BayesianNetwork(Table(columns), edges)
    for name in net.variables:
        part = net.conditional(name)
        if isinstance(part, Tabular):
            part.set_table(rng.dirichlet([1.0] * part.cards[-1], part.parent_cards))
        elif isinstance(part, LinearGaussian):
            above = [units[p] for p in net.parents[name] if p not in net.discrete]
            slopes = rng.normal(size=(*part.parent_cards, len(above))) * units[name] / np.array(above)
            part.set_natural(
                intercept=rng.normal(size=part.parent_cards) * 2 * units[name],
                coefficients=slopes,
                scale=rng.gamma(4.0, 0.25, part.parent_cards) * units[name],
            )
        else:
            with torch.no_grad():
                for p in part.parameters():
                    p.copy_(torch.as_tensor(rng.normal(size=p.shape)) / 2)
    net.form = "dict"
    return net.imported()


def frame(net, x):
    return net.event.restore(torch.as_tensor(x), "dict")


def gappy(net, n, share, seed):
    x = net.event.check(net.sample(n, seed=seed)).x
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(gaps, torch.nan, x)


# pyAgrum


def agrum(net):
    """The network in pyAgrum, its tables handed over in double precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gum = pytest.importorskip("pyagrum")
    made = gum.BayesNet()
    for i, card in enumerate(net.cards):
        made.add(gum.LabelizedVariable(f"n{i}", "", card))
    for a, b in net.edges:
        made.addArc(f"n{net.index[a]}", f"n{net.index[b]}")
    for name in net.variables:
        table = net.conditional(name).log_table().exp().detach().numpy()
        scope = [f"n{net.index[v]}" for v in (*net.parents[name], name)]
        into = made.cpt(scope[-1])
        into.fillWith(table.transpose([scope.index(v) for v in into.names]).flatten(order="F").tolist())
    return gum, made


@pytest.mark.parametrize("name", SHIPPED)
def test_pyagrum_gives_the_same_likelihoods_and_posteriors(name):
    path = next(
        p for p in resources.files("pgmpy").joinpath("utils", "example_models").iterdir() if p.name == f"{name}.bif.gz"
    )
    net = BayesianNetwork.load_file(str(path))
    gum, other = agrum(net)
    for share in (0.0, 0.3, 0.7, 0.9):
        x = gappy(net, 4, share, seed=int(10 * share))
        nats, found = net.log_prob(net.event.restore(x, "pandas")).nats, net.marginals(net.event.restore(x, "pandas"))
        for i, row in enumerate(x.numpy()):
            judge = gum.LazyPropagation(other)
            judge.setEvidence({f"n{v}": int(code) for v, code in enumerate(row) if not math.isnan(code)})
            assert nats[i] == pytest.approx(math.log(judge.evidenceProbability()), abs=1e-10)
            judge.makeInference()
            for v in np.flatnonzero(np.isnan(row))[:12]:
                wanted = judge.posterior(f"n{v}").toarray()
                np.testing.assert_allclose(found[net.variables[v]][i], wanted, atol=1e-10)


# Sixty digits


def normal_of(net, level):
    """Mean and covariance of all reals in one configuration of the categories, in sixty digits."""
    reals = [n for n in net.variables if n not in net.discrete]
    r = len(reals)
    weights, shift, noise = mpmath.matrix(r, r), mpmath.matrix(r, 1), mpmath.matrix(r, r)
    for i, name in enumerate(reals):
        where = tuple(level[p] for p in net.parents[name] if p in level)
        own = {k: v.detach().numpy()[where] for k, v in net.conditional(name).natural().items()}
        shift[i], noise[i, i] = float(own["intercept"]), mpmath.mpf(float(own["scale"])) ** 2
        for j, p in enumerate(p for p in net.parents[name] if p not in level):
            weights[i, reals.index(p)] = float(own["coefficients"][j])
    spread = (mpmath.eye(r) - weights) ** -1
    return reals, spread * shift, spread * noise * spread.T


def block(matrix, rows, columns):
    return mpmath.matrix([[matrix[i, j] for j in columns] for i in rows])


def density_and_moments(net, row, level):
    """The density of the observed reals, and mean and variance of each missing one, of one configuration."""
    reals, mean, cov = normal_of(net, level)
    seen = [i for i, n in enumerate(reals) if not math.isnan(row[net.index[n]])]
    gone = [i for i in range(len(reals)) if i not in seen]
    if not seen:
        return mpmath.mpf(1), {reals[i]: (mean[i], cov[i, i]) for i in gone}
    away = mpmath.matrix([mpmath.mpf(float(row[net.index[reals[i]]])) - mean[i] for i in seen])
    inner = block(cov, seen, seen)
    inverse = inner**-1
    density = mpmath.exp(-(away.T * inverse * away)[0] / 2) / mpmath.sqrt(
        (2 * mpmath.pi) ** len(seen) * mpmath.det(inner)
    )
    moments = {}
    for i in gone:
        pull = block(cov, [i], seen) * inverse
        moments[reals[i]] = mean[i] + (pull * away)[0], cov[i, i] - (pull * block(cov, seen, [i]))[0]
    return density, moments


def in_sixty_digits(net, row):
    """log p of a row, and mean and standard deviation of each missing real."""
    with mpmath.workdps(60):
        parts = []
        for codes in itertools.product(*map(range, net.cards)):
            level = dict(zip(net.discrete, codes, strict=True))
            if any(row[net.index[n]] not in (c,) and not math.isnan(row[net.index[n]]) for n, c in level.items()):
                continue
            mass = mpmath.mpf(1)
            for n in net.discrete:
                table = net.conditional(n).log_table().detach().numpy()
                mass *= mpmath.exp(float(table[tuple(level[p] for p in (*net.parents[n], n))]))
            density, moments = density_and_moments(net, row, level)
            parts.append((mass * density, moments))
        total = sum(weight for weight, _ in parts)
        found = {}
        for name in parts[0][1]:
            mean = sum(w * m[name][0] for w, m in parts) / total
            variance = sum(w * (m[name][1] + (m[name][0] - mean) ** 2) for w, m in parts) / total
            found[name] = float(mean), float(mpmath.sqrt(variance))
        return float(mpmath.log(total)), found


def clg_of_any_units(seed, spread):
    """Categories of one to three levels, two to four reals, any edges, units from 10^-spread to 10^spread."""
    rng = np.random.default_rng(seed)
    discrete = [f"d{i}" for i in range(rng.integers(1, 4))]
    order = [*discrete, *(f"r{i}" for i in rng.permutation(rng.integers(2, 5)))]
    edges = [(a, b) for j, b in enumerate(order) for a in order[:j] if rng.random() < 0.45]
    kinds = {n: Category(tuple(range(rng.integers(1, 4)))) if n in discrete else Real() for n in order}
    columns = {str(n): kinds[n] for n in rng.permutation(order)}
    return random_network(columns, edges, rng, {n: 10.0 ** rng.integers(-spread, spread + 1) for n in order})


@pytest.mark.parametrize(("seed", "spread"), [(s, 8 * (s % 2)) for s in range(12)])
def test_mixed_networks_of_any_units_agree_with_sixty_digits(seed, spread):
    net = clg_of_any_units(seed, spread)
    x = gappy(net, 4, 0.5, seed)
    nats, found = net.log_prob(frame(net, x)).nats, net.marginals(frame(net, x))
    for i, row in enumerate(x.numpy()):
        wanted, moments = in_sixty_digits(net, row)
        assert nats[i] == pytest.approx(wanted, abs=1e-10)
        for name, (mean, sd) in moments.items():
            assert abs(found[name][0][i] - mean) < 1e-10 * sd
            assert found[name][1][i] == pytest.approx(sd, rel=1e-10)


def test_single_precision_coefficients_would_be_noticed():
    """The twin: parameters rounded to floats are off by more than the tolerance above."""
    net = clg_of_any_units(3, 0)
    x = gappy(net, 20, 0.3, 1)
    nats = net.log_prob(frame(net, x)).nats
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(p.float().double())
    assert np.abs(net.log_prob(frame(net, x)).nats - nats).max() > 1e-8


@pytest.mark.parametrize("wide", [1e2, 1e5, 1e7])
def test_small_noise_below_a_wide_missing_real_keeps_its_digits(wide):
    """A covariance of wide^2 beside 1: its Cholesky factor would lose the noise (0.02 nats, 10 % at 1e7)."""
    rng = np.random.default_rng(3)
    names = [f"y{i}" for i in range(4)]
    columns = {"x": Real()} | dict.fromkeys(names, Real())
    net = random_network(columns, [("x", n) for n in names], rng)
    net.conditional("x").set_natural(intercept=0.3 * wide, coefficients=[], scale=wide)
    x = gappy(net, 5, 0.0, 1)
    x[:, 0] = torch.nan
    nats, (mean, sd) = net.log_prob(frame(net, x)).nats, net.marginals(frame(net, x))["x"]
    for i, row in enumerate(x.numpy()):
        wanted, moments = in_sixty_digits(net, row)
        assert nats[i] == pytest.approx(wanted, abs=1e-7)
        assert abs(mean[i] - moments["x"][0]) < 1e-7 * moments["x"][1]
        assert sd[i] == pytest.approx(moments["x"][1], rel=1e-9)


# Large ones


@pytest.mark.parametrize(("levels", "length"), [(2, 1000), (100, 20)])
def test_long_and_wide_chains_agree_with_the_forward_algorithm(levels, length):
    names = [f"v{i}" for i in range(length)]
    columns = dict.fromkeys(names, Category(tuple(range(levels))))
    net = random_network(columns, list(itertools.pairwise(names)), np.random.default_rng(levels))
    x = gappy(net, 5, 0.5, 0)
    nats = net.log_prob(frame(net, x)).nats
    tables = [net.conditional(name).log_table().exp().detach().numpy() for name in names]
    for i, row in enumerate(x.numpy()):
        total, state = 0.0, np.ones(1)
        for table, code in zip(tables, row, strict=True):
            state = state @ table.reshape(len(state), levels)
            state = state if math.isnan(code) else state * (np.arange(levels) == code)
            total, state = total + math.log(state.sum()), state / state.sum()
        assert nats[i] == pytest.approx(total, rel=1e-12)


# Rows among others


MIXED = {
    "a": Category(("p", "q")), "one": Category(("only",)), "b": Category((0, 1, 2)), "r": Real(), "s": Real(),
    "t": Real(), "c": Category(("n", "y")), "k": Count(),
}  # fmt: skip
MIXED_EDGES = [
    ("a", "b"), ("one", "b"), ("a", "r"), ("r", "s"), ("b", "s"), ("s", "t"), ("b", "c"), ("a", "k"), ("t", "c"),
    ("r", "k"),
]  # fmt: skip


def test_scores_do_not_depend_on_order_duplicates_company_or_threads():
    """Exact rows and bounds in one frame; a shared sum may differ in its last bits with the company of a row."""
    net = random_network(MIXED, MIXED_EDGES, np.random.default_rng(0))
    x = gappy(net, 50, 0.3, 1)
    lp = net.log_prob(frame(net, x), seed=3)
    assert set(lp.kinds) == {Kind.EXACT, Kind.LOWER}
    turn = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    assert np.array_equal(net.log_prob(frame(net, x[turn]), seed=3).nats, lp.nats[turn.numpy()])
    twice = net.log_prob(frame(net, torch.cat([x, x])), seed=3).nats
    assert np.array_equal(twice[: len(x)], twice[len(x) :])
    alone = [net.log_prob(frame(net, x[i : i + 1]), seed=3).nats[0] for i in range(10)]
    np.testing.assert_allclose(alone, lp.nats[:10], rtol=1e-12)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads % 2 + 1)
        assert np.array_equal(net.log_prob(frame(net, x), seed=3).nats, lp.nats)
    finally:
        torch.set_num_threads(threads)
    other = net.log_prob(frame(net, x), seed=4)
    assert np.array_equal(other.nats == lp.nats, np.array(lp.kinds) == Kind.EXACT)  # the twin: bounds are drawn


def test_refused_rows_leave_the_others_as_they_are():
    columns = {f"d{i}": Category((0, 1, 2)) for i in range(6)} | {"u": Real(), "v": Real()}
    edges = [*((f"d{i}", "u") for i in range(6)), ("u", "v")]
    net = random_network(columns, edges, np.random.default_rng(1))
    x = gappy(net, 40, 0.2, 2)
    x[:, 6], x[::7, :6] = torch.nan, torch.nan
    x[::7, 7] = 1.0
    whole = net.log_prob(frame(net, x))
    net.configurations = 300
    some = net.log_prob(frame(net, x))
    assert some.refused.tolist() == [i % 7 == 0 for i in range(40)]
    assert np.array_equal(some[~some.refused].nats, whole[~some.refused].nats)


# Learning


def learned_in_units(size):
    """EM on rows with gaps, one real ``size`` times as large, the other as much smaller; nats a row less the units'."""
    rng = np.random.default_rng(0)
    n = 60
    a = rng.integers(0, 2, n)
    r = 2 * a + rng.normal(size=n)
    s = 0.5 * r + 0.3 * rng.normal(size=n)
    r, s = np.where(rng.random(n) < 0.3, np.nan, r * size), np.where(rng.random(n) < 0.2, np.nan, s / size)
    a = [None if gap else int(level) for gap, level in zip(rng.random(n) < 0.2, a, strict=True)]
    net = BayesianNetwork(Table({"a": Category((0, 1)), "r": Real(), "s": Real()}), [("a", "r"), ("r", "s")])
    history = np.array(net.fit({"a": a, "r": r, "s": s}, seed=0).report.objective)
    return history + (np.isfinite(r).sum() - np.isfinite(s).sum()) * math.log(size) / n


def test_em_does_not_see_the_units():
    plain = learned_in_units(1.0)
    assert (np.diff(plain) > -1e-12).all()
    assert len(plain) > 3
    for size in (1e-8, 1e8):
        np.testing.assert_allclose(learned_in_units(size), plain, rtol=1e-9)
    assert abs(plain[-1] - plain[0]) > 1e-3  # the twin: iterations differ by more than that
