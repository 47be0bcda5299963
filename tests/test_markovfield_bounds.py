"""The side of every bound on fields that can be enumerated, with planted bugs that must be seen; belief propagation;
a restricted Boltzmann machine of digits, bracketed."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from probgen import datasets
from probgen.errors import Incomparable, ParameterError
from probgen.logprob import Kind
from probgen.models.markovfield import (
    RAISE,
    LoopyBP,
    MarkovField,
    PartitionAIS,
    PartitionReverseAIS,
    TreeReweighted,
    annealing,
    reweighted,
)
from probgen.models.markovfield.annealing import Annealed
from probgen.models.markovfield.partition import sides

SIGMAS = 5.0  # of a mean: a false alarm in a few million


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def field(seed, scale=1.0, zero=False):
    rng = np.random.default_rng(seed)
    cards = dict(zip("abcde", (2, 3, 2, 2, 2), strict=True))
    scopes = [("a",), ("c",), ("b", "a"), ("b", "c", "d"), ("d", "a"), ("d", "e"), ("e", "a"), ("c", "a")]
    tables = {scope: scale * rng.normal(size=[cards[n] for n in scope]) for scope in scopes}
    if zero:
        tables["d", "e"][0, 1] = -math.inf
    return MarkovField(tables)


def rbm(visible=5, hidden=3, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    sizes = {"weights": (visible, hidden), "visible_bias": (visible,), "hidden_bias": (hidden,)}
    return MarkovField.rbm(visible, hidden, **{k: scale * rng.normal(size=s) for k, s in sizes.items()})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cells(m, n=5, seed=0):
    return m.sample(n, seed=seed)


# Tree-reweighted: above log Z, always


def exceeds(m, by):
    return float(m.log_partition(by)) >= float(m.log_partition()) - 1e-10


@pytest.mark.parametrize("configurations", [1, 4])
@pytest.mark.parametrize("max_iter", [1, 100])
def test_the_tree_reweighted_number_is_never_below_log_z(configurations, max_iter):
    by = TreeReweighted(max_iter, 2, configurations)
    for seed in range(12):
        for m in (field(seed, (0.3, 1.0, 4.0)[seed % 3], zero=seed % 2 == 1), rbm(4, 3, seed)):
            assert exceeds(m, by), seed
    assert exceeds(MarkovField.ising(4, 4, 0.8, periodic=True), by)


def test_forests_that_forget_to_share_the_couplings_are_seen(monkeypatch):
    """Planted bug: factors enter the forests undivided by their appearance probabilities."""
    real = torch.bincount
    m = MarkovField.ising(4, 4, 0.8, periodic=True)
    by = TreeReweighted(20, 3, 1)
    assert exceeds(m, by)
    members = reweighted.subgraphs(m, 3, 1)
    monkeypatch.setattr(
        reweighted.torch, "bincount", lambda x, minlength: torch.full_like(real(x, minlength=minlength), len(members))
    )
    assert not exceeds(m, by)


def test_more_iterations_and_hubs_make_the_bound_smaller_and_a_tree_makes_it_exact():
    m = rbm(6, 5, 3)
    bounds = [float(m.log_partition(TreeReweighted(i, 2, c))) for i, c in ((1, 1), (100, 1), (100, 4), (100, 32))]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[1] > bounds[2] > bounds[3]
    assert bounds[3] == pytest.approx(float(m.log_partition()), abs=1e-9)
    chain = MarkovField.ising(1, 8, 0.7, 0.2)
    assert float(chain.log_partition(TreeReweighted(1, 2, 1))) == pytest.approx(float(chain.log_partition()), abs=1e-9)


def test_every_factor_is_in_some_forest_and_no_forest_has_a_loop():
    m = MarkovField.ising(5, 5, periodic=True)
    members = reweighted.subgraphs(m, 2, 1)
    assert set().union(*members) == {i for i, s in enumerate(m.plan.scopes) if len(s) > 1}
    for own in members:
        edges = [m.plan.scopes[i] for i in own]
        assert len(edges) == len(m.cards) - 1
        reached = {0}
        for _ in m.cards:
            reached |= {v for e in edges if set(e) & reached for v in e}
        assert len(reached) == len(m.cards)


# Annealing: unbiased for Z and 1/Z, so below and above log Z in expectation


def weights(m, runs, how, temperatures=3):
    annealed, betas = Annealed(m, *sides(m)), annealing._betas(temperatures)
    if how == "forward":
        return annealed.forward(runs, betas, generator())
    codes = m.codes(m.event.check(m.sample(runs, seed=5)).x) if m.hidden is None else joint_draws(m, runs)
    codes[:, annealed.summed] = torch.nan
    return annealed.backward(codes, betas, generator())


def joint_draws(m, n):
    from probgen import cliques

    return cliques.sample(m.plan, m.tables(), m.nothing, n, generator(5))[0]


def apart(log_w, log_mean):
    """How many standard errors the mean weight is from what it should be."""
    w = (log_w - log_mean).exp()
    return float((w.mean() - 1) / (w.std() / math.sqrt(len(w)))), w


@pytest.mark.parametrize(
    "make", [lambda: field(1, 0.6), lambda: rbm(5, 3, 2, 0.7), lambda: MarkovField.ising(3, 3, 0.3, 0.2)]
)
@pytest.mark.parametrize("how", ["forward", "backward"])
def test_annealing_weights_have_the_mean_they_should(make, how, monkeypatch):
    m = make()
    log_z = float(m.log_partition()) * (1 if how == "forward" else -1)
    assert abs(apart(weights(m, 40_000, how), log_z)[0]) < SIGMAS
    # planted bug: the transitions stay at the start's distribution
    step = Annealed.step
    monkeypatch.setattr(Annealed, "step", lambda s, c, p, b, g, back=False: step(s, c, p, 0.0 if b < 1 else b, g, back))
    assert abs(apart(weights(m, 40_000, how), log_z)[0]) > SIGMAS


def test_backward_weights_from_other_than_exact_draws_are_seen():
    m = rbm(5, 3, 2, 0.7)
    annealed, betas = Annealed(m, *sides(m)), annealing._betas(3)
    wrong = annealed.backward(annealed.starts(40_000, generator(1)), betas, generator())
    assert abs(apart(wrong, -float(m.log_partition()))[0]) > SIGMAS


@pytest.mark.parametrize(("by", "side"), [(PartitionAIS(2, 2), -1), (PartitionReverseAIS(2, 2), 1)])
def test_few_chains_are_off_to_the_side_that_is_claimed(by, side):
    """A noisy bound bounds in expectation: means over repetitions lie strictly on their side."""
    m = rbm(6, 4, 3, 1.2)
    exact = float(m.log_partition())
    found = np.array([float(m.log_partition(by, seed=i)) for i in range(300)])
    z = (found.mean() - exact) / (found.std() / math.sqrt(len(found)))
    assert side * z > SIGMAS
    assert m.log_partition(by, seed=0).kind is (Kind.LOWER if side < 0 else Kind.UPPER)


def test_the_side_turns_for_log_p_and_rows_share_their_error():
    m = rbm(6, 4, 3)
    x = cells(m, 20)
    exact, low, tree = m.log_prob(x), m.log_prob(x, by=PartitionAIS(), seed=1), m.log_prob(x, by=TreeReweighted())
    assert (low.kind, tree.kind) == (Kind.UPPER, Kind.LOWER)
    assert (tree.nats <= exact.nats + 1e-10).all()
    assert tree.stderr is None
    assert abs(low.nats - exact.nats).max() < SIGMAS * low.stderr[0]
    assert len(set(low.draws)) == 1
    assert low.mean().monte_carlo == pytest.approx(low.stderr[0])
    assert (exact - tree).kind is Kind.UPPER
    with pytest.raises(Incomparable):
        _ = tree + low
    again = m.log_prob(x, by=PartitionAIS(), seed=1)
    assert (again.nats == low.nats).all()
    assert (m.log_prob(x, by=PartitionAIS(), seed=2).nats != low.nats).any()


def test_a_standard_error_is_printed_only_where_the_pilot_allows_and_then_covers():
    m = rbm(6, 4, 3)
    assert math.isnan(m.log_partition(PartitionAIS(64, 3), seed=0).stderr)
    exact = float(m.log_partition())
    z = [(p.nats - exact) / p.stderr for p in (m.log_partition(PartitionAIS(512, 30), seed=i) for i in range(60))]
    assert np.isfinite(z).all()
    assert stats.binomtest(int((np.abs(z) < 2).sum()), 60, 0.95).pvalue > 1e-6
    assert stats.binomtest(int((np.abs(z) < 0.5).sum()), 60, 0.95).pvalue < 1e-6  # an error four times too small


def test_reverse_annealing_from_gibbs_chains_claims_nothing():
    m = MarkovField.ising(8, 8, 0.3)
    m.limit = 10
    assert m.log_partition(PartitionReverseAIS(8, 4, 5), seed=0).kind is Kind.ESTIMATE
    assert m.log_partition(PartitionAIS(8, 4), seed=0).kind is Kind.LOWER


def test_chains_that_meet_nothing_possible_give_a_refusal():
    never = np.full((2, 2), -math.inf)
    never[1, 1] = 0.0
    names = [f"x{i}" for i in range(30)]
    m = MarkovField(dict.fromkeys(itertools.pairwise(names), never))
    m.limit = 10
    lp = m.log_prob({n: [1] for n in names}, by=PartitionAIS(4, 1), seed=0)
    assert lp.refused.all()
    assert "none of 4 annealed chains" in lp.reason


# RAISE: a lower bound on what annealing chains end in


def ends(m, temperatures, visible):
    """Distribution of the annealing chain's last state by products of dense matrices; classes in the order drawn."""
    annealed = Annealed(m, torch.arange(visible), m.unseen)
    states = np.array(list(itertools.product(*(range(c) for c in m.cards[:visible]))), dtype=float)
    codes = m.codes(torch.from_numpy(states))
    pieces = annealed.pieces(codes)
    start = annealed.log_f(pieces, 0.0).softmax(0).numpy()
    p = start
    for beta in annealing._betas(temperatures)[1:]:
        for own in annealed.classes if not len(m.unseen) else [torch.arange(visible)]:
            p = p @ _kernel(m, annealed, states, own.tolist(), beta)
    return states, p


def _kernel(m, annealed, states, own, beta):
    if len(m.unseen):
        return _through_hidden(m, annealed, states, beta)
    logs = annealed.log_f(annealed.pieces(m.codes(torch.from_numpy(states))), beta).numpy()
    rest = [v for v in range(states.shape[1]) if v not in own]
    same = (states[:, None, rest] == states[None, :, rest]).all(2)
    odds = np.where(same, np.exp(logs - logs.max()), 0.0)
    return odds / odds.sum(1, keepdims=True)


def _through_hidden(m, annealed, states, beta):
    """v -> h -> v' of a small RBM."""
    hidden = np.array(list(itertools.product(*(range(m.cards[v]) for v in m.unseen.tolist()))), dtype=float)
    full = torch.from_numpy(np.array([np.concatenate([v, h]) for v in states for h in hidden]))
    local = annealed.local
    start = (local.marks(full) * local.unary).sum((1, 2))
    logs = ((1 - beta) * start + beta * local.energy(full)).reshape(len(states), len(hidden)).numpy()
    joint = np.exp(logs - logs.max())
    return (joint / joint.sum(1, keepdims=True)) @ (joint / joint.sum(0)).T


@pytest.mark.parametrize("make", [lambda: rbm(3, 2, 5, 2.0), lambda: triangle()])
def test_raise_is_unbiased_for_where_chains_end_and_its_logarithm_is_below(make, monkeypatch):
    m = make()
    visible = len(m.event.columns)
    states, p = ends(m, 3, visible)
    annealed = Annealed(m, torch.arange(visible), m.unseen)

    def z_scores():
        n, worst = 40_000, 0.0
        for state, own in zip(states, p, strict=True):
            codes = m.codes(torch.from_numpy(state[None])).repeat(n, 1)
            worst = max(
                worst, abs(apart(annealed.unrolled(codes, annealing._betas(3), generator(3)), math.log(own))[0])
            )
        return worst

    assert z_scores() < SIGMAS
    if not m.hidden:  # planted bug: the classes are not taken in reverse
        step = Annealed.step
        monkeypatch.setattr(Annealed, "step", lambda s, c, q, b, g, back=False: step(s, c, q, b, g, False))
        assert z_scores() > SIGMAS
    levels = m.event.restore(torch.from_numpy(np.repeat(states, 200, 0)), "dict")
    lp = m.log_prob(levels, by=RAISE(2, 3), seed=0)
    assert lp.kind is Kind.LOWER
    assert lp.target == "p^AIS(3 temperatures)"


def triangle():
    rng = np.random.default_rng(0)
    return MarkovField({pair: 2.5 * rng.normal(size=(2, 2)) for pair in (("a", "b"), ("b", "c"), ("a", "c"))})


def test_raise_lies_below_on_its_own_target_and_comes_near_p():
    m = rbm(4, 2, 6, 1.5)
    states, p = ends(m, 2, 4)
    means = []
    for seed in range(60):
        lp = m.log_prob(states, by=RAISE(2, 2), seed=seed)
        means.append(lp.nats - np.log(p))
    means = np.array(means).mean(1)
    assert means.mean() < -SIGMAS * means.std() / math.sqrt(len(means))
    near = m.log_prob(states, by=RAISE(200, 300), seed=0)
    assert np.abs(near.nats - m.log_prob(states).nats).max() < 0.1


def test_a_row_of_raise_depends_on_the_seed_and_that_row_alone():
    m = rbm(5, 3, 7)
    x = m.event.check(m.sample(6, seed=0)).x.numpy()
    whole = m.log_prob(x, by=RAISE(), seed=3).nats
    np.testing.assert_allclose(m.log_prob(x[::-1].copy(), by=RAISE(), seed=3).nats[::-1], whole, rtol=1e-12)
    np.testing.assert_allclose(m.log_prob(x[2:3], by=RAISE(), seed=3).nats, whole[2:3], rtol=1e-12)
    assert (m.log_prob(x, by=RAISE(), seed=4).nats != whole).all()


def test_raise_refuses_what_its_chains_can_not_end_in():
    m = rbm(5, 3, 7)
    gaps = m.event.restore(torch.tensor([[1.0, 0, 1, 0, math.nan]], dtype=torch.float64), "dict")
    assert "gaps" in m.log_prob(gaps, by=RAISE(), seed=0).reason
    deep = MarkovField({("a", "h"): np.eye(2), ("h", "g"): np.eye(2)}, hidden=("h", "g"))
    assert "share" in deep.log_prob({"a": [0]}, by=RAISE(), seed=0).reason


# Belief propagation


@pytest.mark.parametrize("zero", [False, True])
def test_belief_propagation_is_exact_without_loops(zero):
    rng = np.random.default_rng(1)
    tables = {
        ("a", "b"): rng.normal(size=(2, 3)),
        ("b", "c", "d"): rng.normal(size=(3, 2, 2)),
        ("d",): rng.normal(size=2),
    }
    if zero:
        tables["a", "b"][0, 1:] = -math.inf
    m = MarkovField(tables)
    found = m.log_partition(LoopyBP())
    assert found.kind is Kind.ESTIMATE
    assert found.nats == pytest.approx(float(m.log_partition()), abs=1e-7)
    assert found.diagnostics["residual"] <= 1e-8
    rows = {"a": [0, None, 1], "b": [None, None, 2], "c": [1, None, None], "d": [None, 1, None]}
    if zero:
        rows["b"][2] = None
    exact, ours = m.marginals(rows), m.marginals(rows, by=LoopyBP())
    for name in m.variables:
        np.testing.assert_allclose(ours[name], exact[name], atol=1e-7)


def test_belief_propagation_on_a_grid_is_near_and_says_when_it_did_not_converge():
    m = MarkovField.ising(8, 8, 0.2, 0.1)
    exact, ours = m.marginals(), m.marginals(by=LoopyBP())
    assert ours.kind is Kind.ESTIMATE
    assert max(np.abs(exact[n] - ours[n]).max() for n in m.variables) < 0.01
    assert m.log_partition(LoopyBP()).nats == pytest.approx(float(m.log_partition()), abs=1.0)
    assert m.log_partition(LoopyBP(2)).diagnostics["residual"] > 1e-3
    frustrated = MarkovField.ising(6, 6, 0.2, 0.1)
    frustrated.limit = 10
    x = frustrated.sample(3, seed=0, sweeps=5)
    one = frustrated.log_prob(x, by=LoopyBP())
    assert one.kind is Kind.ESTIMATE
    blank = {n: [None] if i < 30 else [1] for i, n in enumerate(frustrated.variables)}
    estimated = frustrated.log_prob(blank, by=LoopyBP()).nats[0]
    assert estimated == pytest.approx(MarkovField.ising(6, 6, 0.2, 0.1).log_prob(blank).nats[0], abs=0.2)


@pytest.mark.parametrize("build", [
    lambda: TreeReweighted(0), lambda: TreeReweighted(forests=0), lambda: TreeReweighted(configurations=1.5),
    lambda: PartitionAIS(1), lambda: PartitionAIS(True), lambda: PartitionReverseAIS(sweeps=0),
    lambda: RAISE(temperatures=0), lambda: LoopyBP(0),
])  # fmt: skip
def test_estimators_of_no_sense_are_refused(build):
    with pytest.raises(ParameterError):
        build()


# Digits


def digits():
    images = datasets.digits().x.reshape(-1, 64)
    return (images > 8).astype(float)[np.random.default_rng(0).permutation(len(images))]


def bracket(m, held, chains, temperatures, raised, configurations):
    exact = m.log_prob(held)
    tree = m.log_prob(held, by=TreeReweighted(60, 2, configurations))
    above = m.log_prob(held, by=PartitionAIS(chains, temperatures), seed=0)
    below = m.log_prob(held, by=PartitionReverseAIS(chains, temperatures), seed=0)
    unrolled = m.log_prob(held, by=raised, seed=0)
    assert (tree.kind, below.kind, above.kind) == (Kind.LOWER, Kind.LOWER, Kind.UPPER)
    figures = {
        n: lp.mean()
        for n, lp in (("tree", tree), ("reverse", below), ("exact", exact), ("ais", above), ("raise", unrolled))
    }
    for name, value in figures.items():
        print(f"{name:8} {value}")  # noqa: T201
    return {n: v.value for n, v in figures.items()}, above, below


def test_an_rbm_of_digits_is_bracketed_from_both_sides():
    x = digits()
    m = MarkovField.rbm(64, 10).fit(x[:1500], method="persistent", steps=400, learning_rate=0.02, l2=1e-4, seed=0)
    held = x[1500:1560]
    figures, above, below = bracket(m, held, 600, 200, RAISE(4, 40), 32)
    slack = 5 * float(np.nanmax([above.stderr[0], below.stderr[0]]))
    assert figures["tree"] < figures["exact"]
    assert figures["reverse"] < figures["exact"] + slack
    assert figures["exact"] < figures["ais"] + slack
    assert figures["ais"] - figures["reverse"] < 1.0
    assert figures["raise"] < figures["ais"] + slack
    independent = np.clip(x[:1500].mean(0), 0.002, 0.998)
    coins = (held * np.log(independent) + (1 - held) * np.log(1 - independent)).sum(1).mean()
    assert figures["exact"] > coins + 2


@pytest.mark.long
def test_an_rbm_of_twenty_hidden_units_on_digits_is_bracketed():
    x = digits()
    m = MarkovField.rbm(64, 20).fit(x[:1500], method="persistent", steps=6000, learning_rate=0.01, l2=2e-4, seed=0)
    figures, above, below = bracket(m, x[1500:], 1000, 1000, RAISE(20, 1000), 1024)
    slack = 5 * max(above.stderr[0], below.stderr[0])
    assert figures["tree"] < figures["exact"]
    assert figures["reverse"] - slack < figures["exact"] < figures["ais"] + slack
    assert figures["ais"] - figures["reverse"] < 0.3
