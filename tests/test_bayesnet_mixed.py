"""Networks of categories and reals: against a dense joint normal for each configuration of the categories."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from probgen.conditionals import LinearGaussian, Point, PoissonRegression, Softmax, Tabular
from probgen.errors import ParameterError, ShapeError, StructureError, ZeroEvidenceError
from probgen.events import Category, Count, Real, Table
from probgen.logprob import Kind
from probgen.models.bayesnet import BayesianNetwork, LikelihoodWeighting, PosteriorWeighting

ALPHA = 1e-6
KINDS = {"a": Category(("x", "y")), "b": Category((0, 1, 2)), "u": Real(), "v": Real("cm"), "w": Real(), "z": Real()}
EDGES = [("a", "b"), ("a", "u"), ("b", "v"), ("u", "v"), ("u", "w"), ("v", "w"), ("a", "w"), ("v", "z")]


def clg(seed, edges=EDGES, columns=None):
    """A conditional linear Gaussian network with random numbers."""
    net = BayesianNetwork(Table(columns or KINDS), edges)
    rng = np.random.default_rng(seed)
    for name in net.variables:
        part = net.conditional(name)
        if isinstance(part, Tabular):
            part.set_table(rng.dirichlet([1.0] * part.cards[-1], part.parent_cards))
        elif isinstance(part, LinearGaussian):
            reals = len(part.continuous_parents)
            part.set_natural(
                intercept=rng.normal(size=part.parent_cards) * 2,
                coefficients=rng.normal(size=(*part.parent_cards, reals)),
                scale=rng.gamma(4.0, 0.25, part.parent_cards),
            )
        else:
            with torch.no_grad():
                for p in part.parameters():
                    p.copy_(torch.as_tensor(rng.normal(size=p.shape)))
    net.form = "dict"
    return net.imported()


def dense(net):
    """By configuration of all categories: log mass, mean and covariance of all reals, by plain linear algebra."""
    reals = [n for n in net.variables if n not in net.discrete]
    found = {}
    for codes in itertools.product(*(range(c) for c in net.cards)):
        level = dict(zip(net.discrete, codes, strict=True))
        mass = sum(
            math.log(
                net.conditional(n).natural()["probs"][tuple(level[p] for p in (*net.parents[n], n))].item() or 1e-300
            )
            for n in net.discrete
        )
        weights, shift, noise = np.zeros((len(reals), len(reals))), np.zeros(len(reals)), np.zeros(len(reals))
        for i, n in enumerate(reals):
            where = tuple(level[p] for p in net.parents[n] if p in level)
            own = {k: value.detach().numpy()[where] for k, value in net.conditional(n).natural().items()}
            shift[i], noise[i] = own["intercept"], own["scale"] ** 2
            for j, p in enumerate(p for p in net.parents[n] if p not in level):
                weights[i, reals.index(p)] = own["coefficients"][j]
        spread = np.linalg.inv(np.eye(len(reals)) - weights)
        found[codes] = (mass, spread @ shift, spread @ np.diag(noise) @ spread.T)
    return reals, found


def answers(net, row):
    """log p of a row's observed cells; by configuration its log weight and the missing reals' mean and covariance."""
    reals, table = dense(net)
    cells = {n: row[net.index[n]] for n in net.variables}
    seen = [i for i, n in enumerate(reals) if not math.isnan(cells[n])]
    gone = [i for i, n in enumerate(reals) if math.isnan(cells[n])]
    x = np.array([cells[reals[i]] for i in seen])
    parts = {}
    for codes, (mass, mean, cov) in table.items():
        if any(not math.isnan(cells[n]) and cells[n] != c for n, c in zip(net.discrete, codes, strict=True)):
            continue
        nats, left, spread = mass, mean[gone], cov[np.ix_(gone, gone)]
        if seen:
            nats += stats.multivariate_normal.logpdf(x, mean[seen], cov[np.ix_(seen, seen)])
            pull = cov[np.ix_(gone, seen)] @ np.linalg.inv(cov[np.ix_(seen, seen)])
            left, spread = left + pull @ (x - mean[seen]), spread - pull @ cov[np.ix_(seen, gone)]
        parts[codes] = nats, left, spread
    return logsumexp([nats for nats, _, _ in parts.values()]), [reals[i] for i in gone], parts


def gappy(net, n, share, seed):
    x = net.event.check(net.sample(n, seed=seed)).x
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(gaps, torch.nan, x)


def frame(net, x):
    return net.event.restore(torch.as_tensor(x), "dict")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_are_those_of_a_dense_normal_a_configuration(seed, share):
    net = clg(seed)
    x = gappy(net, 25, share, seed)
    lp = net.log_prob(frame(net, x))
    assert lp.kind is Kind.EXACT
    np.testing.assert_allclose(lp.nats, [answers(net, row)[0] for row in x.numpy()], rtol=1e-9, atol=1e-9)


def test_random_graphs_agree_with_the_dense_normal():
    rng = np.random.default_rng(5)
    names = list(KINDS)
    for seed in range(25):
        order = [n for n in ("a", "b") if n] + rng.permutation(names[2:]).tolist()
        edges = [(p, c) for i, c in enumerate(order) for p in order[:i] if rng.random() < 0.5]
        net = clg(seed, edges)
        x = gappy(net, 8, 0.5, seed)
        wanted = [answers(net, row)[0] for row in x.numpy()]
        np.testing.assert_allclose(net.log_prob(frame(net, x)).nats, wanted, rtol=1e-9, atol=1e-9)


def test_a_coefficient_of_the_wrong_parent_is_caught():
    """The twin: exchanged parents change the scores by more than the tolerance above."""
    edges = [(p, c) for p, c in EDGES if c != "w"] + [("v", "w"), ("u", "w"), ("a", "w")]
    net, turned = clg(0), clg(0, edges)
    x = gappy(net, 20, 0.3, 1)
    assert np.abs(net.log_prob(frame(net, x)).nats - turned.log_prob(frame(net, x)).nats).max() > 1e-3


def test_masses_and_densities_integrate_to_one():
    net = clg(3, [("a", "u"), ("b", "u")], {k: KINDS[k] for k in ("a", "b", "u")})
    grid = np.linspace(-40, 40, 8001)
    total = np.exp(net.log_prob({"a": [None] * 8001, "b": [None] * 8001, "u": grid}).nats).sum() * (grid[1] - grid[0])
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("share", [0.4, 0.8])
def test_marginals_and_moments_are_those_of_the_dense_mixture(share):
    net = clg(4)
    x = gappy(net, 12, share, 9)
    found = net.marginals(frame(net, x))
    for i, row in enumerate(x.numpy()):
        nats, gone, parts = answers(net, row)
        weights = {codes: math.exp(part[0] - nats) for codes, part in parts.items()}
        for v, name in enumerate(net.discrete):
            wanted = [sum(w for codes, w in weights.items() if codes[v] == k) for k in range(net.cards[v])]
            np.testing.assert_allclose(found[name][i], wanted, atol=1e-9)
        for j, name in enumerate(gone):
            mean = sum(w * parts[codes][1][j] for codes, w in weights.items())
            square = sum(w * (parts[codes][2][j, j] + parts[codes][1][j] ** 2) for codes, w in weights.items())
            assert found[name][0][i] == pytest.approx(mean, abs=1e-8)
            assert found[name][1][i] == pytest.approx(math.sqrt(square - mean**2), abs=1e-7)
        for name in set(net.variables) - set(net.discrete) - set(gone):
            assert found[name][0][i] == row[net.index[name]]
            assert found[name][1][i] == 0


def test_the_most_probable_completion_maximises_the_joint_density():
    net = clg(6)
    x = gappy(net, 15, 0.6, 2)
    done = net.event.check(net.mpe(frame(net, x))).x.numpy()
    assert np.array_equal(done[~np.isnan(x.numpy())], x.numpy()[~np.isnan(x.numpy())])
    top = net.log_prob(frame(net, done)).nats
    for i, row in enumerate(x.numpy()):
        _, gone, parts = answers(net, row)
        peaks = [n - 0.5 * np.linalg.slogdet(2 * np.pi * c)[1] if gone else n for n, _, c in parts.values()]
        assert top[i] == pytest.approx(max(peaks), rel=1e-9)
        nudged = done[i].copy()
        for name in gone:
            nudged[net.index[name]] += 0.05
            assert net.log_prob(frame(net, nudged[None])).nats[0] < top[i]


def test_conditional_draws_have_the_moments_of_the_dense_mixture_and_a_shift_is_caught():
    net = clg(7)
    row = gappy(net, 40, 0.0, 3)[11].clone()
    row[[net.index[n] for n in ("b", "u", "w")]] = torch.nan
    given = {n: frame(net, row[None])[n].tolist()[0] for n in net.variables if not row[net.index[n]].isnan()}
    draws = net.event.check(net.sample(40_000, given=given, seed=5)).x.numpy()
    nats, gone, parts = answers(net, row.numpy())
    assert gone == ["u", "w"]
    weights = np.array([math.exp(part[0] - nats) for part in parts.values()])
    counts = np.bincount(draws[:, net.index["b"]].astype(int), minlength=3)
    assert stats.chisquare(counts, counts.sum() * weights).pvalue > ALPHA
    for j, name in enumerate(gone):
        values = np.sort(draws[:, net.index[name]])
        p = ks(values, weights, [(part[1][j], math.sqrt(part[2][j, j])) for part in parts.values()])
        shifted = ks(values + 0.05, weights, [(part[1][j], math.sqrt(part[2][j, j])) for part in parts.values()])
        assert p > ALPHA
        assert shifted < ALPHA
    left = draws[:, [net.index[n] for n in gone]]
    mean = sum(w * part[1] for w, part in zip(weights, parts.values(), strict=True))
    second = sum(w * (part[2] + np.outer(part[1], part[1])) for w, part in zip(weights, parts.values(), strict=True))
    np.testing.assert_allclose(np.cov(left.T), second - np.outer(mean, mean), atol=0.06)


def ks(values, weights, parts):
    """Kolmogorov-Smirnov p-value of draws against a mixture of normals."""
    return stats.kstest(
        values, lambda x: sum(w * stats.norm.cdf(x, m, s) for w, (m, s) in zip(weights, parts, strict=True))
    ).pvalue


def test_unconditional_draws_follow_the_marginals():
    net = clg(8)
    draws = net.event.check(net.sample(40_000, seed=6)).x.numpy()
    _, gone, parts = answers(net, np.full(6, np.nan))
    weights = [math.exp(part[0]) for part in parts.values()]
    for j, name in enumerate(gone):
        mixture = [(part[1][j], math.sqrt(part[2][j, j])) for part in parts.values()]
        assert ks(draws[:, net.index[name]], weights, mixture) > ALPHA
        assert ks(draws[:, net.index[name]] * 1.05 + 0.05, weights, mixture) < ALPHA


def test_learning_moments_are_the_posterior_second_moments():
    net = clg(9)
    x = gappy(net, 10, 0.5, 4)
    totals = {}
    from probgen import cliques

    for group in net.groups(x):
        found = group.scored
        counts = cliques.expected(found.plan, found.tables, found.codes)[1]
        for node, weights in zip(found.nodes, counts, strict=True):
            if not isinstance(node, str | None):
                for name, part in node.second_moments(net, group.x, weights).items():
                    totals[name] = totals.get(name, 0) + part
    assert "w" in totals
    family = ["u", "v", "w"]
    wanted = np.zeros((2, 4, 4))
    for row in x.numpy():
        nats, gone, parts = answers(net, row)
        live = {n for n in net.variables if not math.isnan(row[net.index[n]])}
        if not (set(family) & set(gone)) or not needed(net, "w", live):
            continue
        for codes, (own, mean, cov) in parts.items():
            u, spread = np.ones(4), np.zeros((4, 4))
            for i, n in enumerate(family):
                u[i + 1] = mean[gone.index(n)] if n in gone else row[net.index[n]]
                for k, m in enumerate(family):
                    if n in gone and m in gone:
                        spread[i + 1, k + 1] = cov[gone.index(n), gone.index(m)]
            wanted[codes[0]] += math.exp(own - nats) * (np.outer(u, u) + spread)
    np.testing.assert_allclose(totals["w"].detach().numpy(), wanted, rtol=1e-8, atol=1e-8)


def needed(net, name, live):
    return name in live or any(needed(net, child, live) for child in net.offspring[name])


# Limits


def test_many_discrete_parents_are_exact_while_observed_and_refused_when_open():
    n = 15
    columns = {f"d{i}": Category((0, 1)) for i in range(n)} | {"u": Real(), "v": Real()}
    edges = [(f"d{i}", "u") for i in range(n)] + [("u", "v")]
    net = clg(1, edges, columns)
    row = np.zeros((3, n + 2))
    row[:, n] = np.nan
    row[:, n + 1] = 1.5
    row[1, :5] = np.nan
    row[2, :] = np.nan
    row[2, n + 1] = 1.5
    lp = net.log_prob(frame(net, row))
    assert lp.refused.tolist() == [False, False, True]
    assert "32768 configurations" in lp.reason
    assert "LikelihoodWeighting" in lp.instead
    own = {k: v.detach().numpy() for k, v in net.conditional("u").natural().items()}
    out = {k: v.item() for k, v in net.conditional("v").natural().items()}
    odds = [net.conditional(f"d{i}").natural()["probs"].detach().numpy() for i in range(n)]
    for i, opened in ((0, 0), (1, 5)):
        terms = []
        for codes in itertools.product((0, 1), repeat=opened):
            where = (*codes, *[0] * (n - opened))
            mass = sum(math.log(odds[k][c]) for k, c in enumerate(where))
            mean = out["intercept"] + out["coefficients"] * own["intercept"][where]
            sd = math.hypot(out["scale"], out["coefficients"] * own["scale"][where])
            terms.append(mass + stats.norm.logpdf(1.5, mean, sd))
        assert lp[i].nats[0] == pytest.approx(logsumexp(terms), rel=1e-10)
    bound = net.log_prob(frame(net, row[2:]), by=LikelihoodWeighting(samples=2000), seed=0)
    assert bound.kind is Kind.LOWER
    with pytest.raises(StructureError, match="32768"):
        net.marginals(frame(net, row[2:]))


ODD = {"a": Category(("x", "y")), "u": Real(), "c": Category(("no", "yes")), "k": Count()}
ODD_EDGES = [("a", "u"), ("u", "c"), ("u", "k")]


def quadrature(net, row):
    """log p of a row with u missing, by a fine sum over u."""
    grid = np.linspace(-30, 30, 12_001)
    rows = np.tile(row, (len(grid), 1))
    rows[:, net.index["u"]] = grid
    return logsumexp(net.log_prob(frame(net, rows)).nats) + math.log(grid[1] - grid[0])


def test_odd_children_of_a_missing_real_parent_get_a_lower_bound_and_say_so():
    net = clg(2, ODD_EDGES, ODD)
    x = gappy(net, 30, 0.0, 8).numpy()
    x[:, net.index["u"]] = np.nan
    x[::3, net.index["a"]] = np.nan
    lp = net.log_prob(frame(net, x), seed=1)
    assert set(lp.kinds) == {Kind.LOWER}
    assert lp.by == "PosteriorWeighting(samples=1000)"
    truth = np.array([quadrature(net, row) for row in x])
    z = (lp.nats - truth) / np.where(np.isnan(lp.stderr), np.inf, lp.stderr)
    assert np.abs(z).max() < 6
    assert (~np.isnan(lp.stderr)).sum() >= 5
    assert np.abs((lp.nats + 0.5 - truth) / lp.stderr)[~np.isnan(lp.stderr)].max() > 6  # the twin
    again = net.log_prob(frame(net, x[::-1].copy()), seed=1)
    assert np.array_equal(again.nats[::-1], lp.nats)
    for ask in (net.marginals, net.mpe, lambda f: net.sample(2, given={k: v for k, v in f.items() if k in "ck"})):
        with pytest.raises(StructureError, match=r"'c'|'k'"):
            ask(frame(net, x[:1]))


def test_gaps_below_gaps_are_drawn_and_what_hangs_on_them_is_weighed():
    """A missing category below a missing real, and a missing count, each with an observed child."""
    columns = {"u": Real(), "c": Category((0, 1)), "d": Category((0, 1)), "k": Count(), "s": Real()}
    net = clg(12, [("u", "c"), ("c", "d"), ("d", "k"), ("k", "s")], columns)
    net.conditional("k").set_natural(intercept=[0.5, 1.0])
    own = {"intercept": 0.3, "coefficients": [0.4], "scale": 1.5}
    net.conditional("s").set_natural(**own)
    row = np.array([[np.nan, np.nan, 1.0, np.nan, 1.2], [np.nan, np.nan, 1.0, np.nan, np.nan]])
    lp = net.log_prob(frame(net, row), by=PosteriorWeighting(samples=20_000), seed=2)
    grid = np.linspace(-30, 30, 4001)
    terms = []
    for c, k in itertools.product((0, 1), range(40)):
        rows = np.tile([0.0, c, 1.0, k, 1.2], (len(grid), 1))
        rows[:, 0] = grid
        terms.append(logsumexp(net.log_prob(frame(net, rows)).nats) + math.log(grid[1] - grid[0]))
    wanted = logsumexp(terms)
    assert lp.kind is Kind.LOWER
    assert lp.stderr[0] < 0.1
    assert abs(lp.nats[0] - wanted) < 6 * lp.stderr[0]
    assert abs(lp.nats[0] + 0.5 - wanted) > 6 * lp.stderr[0]
    plain = net.log_prob(frame(net, row[:1]), by=LikelihoodWeighting(samples=20_000), seed=3)
    assert abs(plain.nats[0] - wanted) < 6 * plain.stderr[0]


def test_draws_from_the_posterior_of_the_exact_part_beat_draws_from_the_prior():
    columns = {"u": Real(), "c": Category((0, 1)), **{f"y{i}": Real() for i in range(4)}}
    net = clg(5, [("u", "c"), *((("u", f"y{i}")) for i in range(4))], columns)
    for i in range(4):
        net.conditional(f"y{i}").set_natural(intercept=0.0, coefficients=[1.0], scale=0.05)
    net.conditional("u").set_natural(intercept=0.0, scale=3.0)
    row = np.array([[np.nan, 1.0, 5.0, 5.02, 4.97, 5.01]])
    guided = net.log_prob(frame(net, row), seed=1)
    blind = net.log_prob(frame(net, row), by=LikelihoodWeighting(samples=1000), seed=1)
    wanted = quadrature(net, row[0])
    assert abs(guided.nats[0] - wanted) < 0.01
    assert guided.stderr[0] < 0.01
    assert guided.diagnostics["ess"][0] > 900 > 100 > blind.diagnostics["ess"][0]


def test_odd_children_that_nobody_observed_leave_the_score_exact():
    net = clg(2, ODD_EDGES, ODD)
    x = np.array([[0.0, np.nan, np.nan, np.nan], [1.0, 0.7, np.nan, np.nan], [np.nan, 0.7, 1.0, np.nan]])
    lp = net.log_prob(frame(net, x))
    assert lp.kind is Kind.EXACT
    assert lp.nats[0] == pytest.approx(math.log(net.conditional("a").natural()["probs"][0].item()))
    found = net.marginals(frame(net, x[1:]))
    own = net.conditional("k")
    parents = torch.full((1, 1), 0.7, dtype=torch.float64)
    np.testing.assert_allclose(found["k"][0], own.mean(parents).detach().expand(2), rtol=1e-9)
    np.testing.assert_allclose(found["k"][1] ** 2, own.variance(parents).detach().expand(2), rtol=1e-9)
    with pytest.raises(StructureError, match=r"'c'|'k'"):
        net.marginals({"a": "x"})
    draws = net.event.check(net.sample(20_000, given={"a": "x"}, seed=3)).x.numpy()
    same = net.event.check(net.sample(40_000, seed=4)).x.numpy()
    same = same[same[:, 0] == 0]
    assert stats.ks_2samp(draws[:, 1], same[:, 1]).pvalue > ALPHA
    assert abs(draws[:, 2].mean() - same[:, 2].mean()) < 0.03
    assert stats.ks_2samp(draws[:, 1] + 0.2, same[:, 1]).pvalue < ALPHA


def test_counts_below_open_categories_have_mixture_moments():
    net = clg(3, [("a", "k")], {"a": Category(("x", "y")), "k": Count()})
    odds = net.conditional("a").natural()["probs"].detach().numpy()
    rates = net.conditional("k").mean(torch.tensor([[0.0], [1.0]], dtype=torch.float64)).detach().numpy()
    mean = odds @ rates
    found = net.marginals()
    assert found["k"][0][0] == pytest.approx(mean)
    assert found["k"][1][0] ** 2 == pytest.approx(odds @ (rates + rates**2) - mean**2)


def test_a_network_of_reals_alone_is_one_normal():
    columns = {k: Real() for k in "uvwz"}
    net = clg(1, [e for e in EDGES if set(e) <= set("uvwz")], columns)
    x = gappy(net, 20, 0.4, 1)
    np.testing.assert_allclose(
        net.log_prob(frame(net, x)).nats, [answers(net, row)[0] for row in x.numpy()], rtol=1e-9, atol=1e-9
    )
    assert net.plan.cost().entries == 0
    draws = net.event.check(net.sample(1000, given={"z": 0.0}, seed=1)).x
    assert draws[:, 3].abs().max() == 0
    done = net.event.check(net.mpe({"z": 0.0})).x.numpy()
    np.testing.assert_allclose(done[0, :3], answers(net, np.array([np.nan] * 3 + [0.0]))[2][()][1], rtol=1e-9)


def test_reals_that_are_set_are_known():
    net = BayesianNetwork(Table({"u": Real(), "c": Category((0, 1))}), [("u", "c")], {"u": Point(0.5), "c": Softmax()})
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel(), dtype=p.dtype).reshape(p.shape))
    net.imported()
    p = net.conditional("c").cells(torch.tensor([[0.5]], dtype=torch.float64)).probs[0].detach().numpy()
    np.testing.assert_allclose(net.marginals()["c"][0], p)
    lp = net.log_prob({"u": [None, 0.5, 0.6], "c": [1, 1, 1]})
    np.testing.assert_allclose(lp.nats, [math.log(p[1]), math.log(p[1]), -math.inf])
    assert lp.kind is Kind.EXACT


def test_rows_of_several_patterns_are_no_one_product():
    net = clg(0)
    x = gappy(net, 20, 0.5, 1)
    with pytest.raises(StructureError, match=r"net\.groups"):
        net.scored(x)
    assert len(net.scored(x[:1]).codes) == 1


def test_zero_evidence_among_mixed_cells_is_named():
    net = clg(0)
    net.conditional("b").set_table([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    with pytest.raises(ZeroEvidenceError):
        net.sample(2, given={"a": "x", "b": 1, "z": 0.3})
    lp = net.log_prob(frame(net, np.array([[0.0, 1.0, np.nan, np.nan, np.nan, 0.3]])))
    assert lp.nats[0] == -math.inf


def test_a_conditional_density_is_measured_by_what_is_scored():
    net = clg(0)
    rows = {n: [None] for n in net.variables}
    lp = net.log_prob({**rows, "v": [1.0]}, given={"a": "x", "z": 0.2})
    both = net.log_prob({**rows, "v": [1.0], "a": ["x"], "z": [0.2]}).nats
    assert lp.nats[0] == pytest.approx(both[0] - net.log_prob({**rows, "a": ["x"], "z": [0.2]}).nats[0])
    assert lp.measure == "counting(b) x lebesgue(u) x lebesgue(v cm) x lebesgue(w)"


def test_wrong_kinds_of_cells_are_refused():
    net = clg(0)
    with pytest.raises(ParameterError, match="given"):
        net.sample(2, given=[0.3])
    with pytest.raises(ShapeError):
        net.log_prob(np.zeros((2, 3)))
    assert isinstance(clg(0, ODD_EDGES, ODD).conditional("k"), PoissonRegression)
