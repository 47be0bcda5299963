"""Chains against every path enumerated, on both ways through: the compiled kernel and plain torch."""

import math

import numpy as np
import pytest
import torch
from chain_truth import INF, D, Exact, Paths, close, logs, random_chain, recursions_agree, rows, score
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from probgen import chains, kernels
from probgen.chains import logspace, scaled
from probgen.errors import ShapeError

quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
NATIVE = kernels.native


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["kernel", "torch"])
def way(request, monkeypatch):
    if request.param == "kernel" and NATIVE is None:
        pytest.skip("the kernel is not built")
    monkeypatch.setattr(kernels, "native", NATIVE if request.param == "kernel" else None)
    return request.param


def agrees(chain):
    """Everything that a chain says, beside the enumeration."""
    truth = Paths(chain)
    found, filtered = chains.posterior(chain), chains.filter(chain)
    pairs = chains.posterior(chain, pairs=True).transitions
    path, best = chains.viterbi(chain)
    sums = torch.stack([part.sum() for part in filtered.nats.split(chain.lengths.tolist())])
    possible = truth.best > -INF
    assert close(chains.log_likelihood(chain), truth.nats)
    assert close(found.nats, truth.nats)
    assert close(sums, truth.nats)
    assert close(chains.advance(chain)[0], truth.nats)
    assert close(found.marginals, truth.marginals)
    assert close(found.initial, truth.marginals[chain.starts])
    assert close(pairs, truth.pairs)
    assert close(found.transitions, truth.pairs.sum(0) if chain.homogeneous else truth.pairs)
    assert close(best, truth.best)
    assert close(score(chain, path)[possible], truth.best[possible])
    assert torch.equal(chains.first_impossible(chain) >= 0, ~possible)
    assert not filtered.probabilities.isnan().any()
    assert not filtered.nats.isnan().any()
    return truth


@pytest.mark.parametrize("moving", [False, True], ids=["homogeneous", "moving"])
@pytest.mark.parametrize("own_initial", [False, True], ids=["one initial", "an initial each"])
@pytest.mark.parametrize(("lengths", "states"), [([5, 1, 8, 3], 3), ([1], 1), ([7], 1), ([1, 1], 4), ([4, 4, 2], 9)])
def test_every_answer_is_that_of_all_paths(way, lengths, states, own_initial, moving):
    for zeros in (0.0, 0.4):
        agrees(random_chain(lengths, states, states, zeros, own_initial, moving))


def two(initial, moves, potentials):
    return chains.Chain(rows(initial), rows(moves), rows(potentials), torch.tensor([len(potentials)]))


EVEN = [math.log(0.5)] * 2
MIXED = np.log([[0.9, 0.1], [0.2, 0.8]])
APART = [[0.0, -INF], [-INF, 0.0]]
HARD = {
    "an outlier of the only first state": two([0.0, -INF], MIXED, [[-1e5, 0.0], [0.0, -1.0]]),
    "a first state of probability 1e-600": two([0.0, -1400.0], MIXED, [[-800.0, 0.0], [0.0, -1.0]]),
    "initial weights of 1e-390": two([-900.0, -901.0], MIXED, [[0.0, -1.0], [-1.0, 0.0], [0.0, -1.0]]),
    "chains apart, outliers in turn": two(EVEN, APART, [[0.0, -1e5], [-1e5, 0.0], [0.0, 0.0]]),
    "chains apart, slowly lost and found": two(EVEN, APART, [[0.0, -400.0]] * 3 + [[-400.0, 0.0]] * 3),
    "left to right, late": two([0.0, -INF], [*np.log([[0.5, 0.5]]), [-INF, 0.0]], [[-900.0, 0.0]] * 3 + [[0, -900.0]]),
    "moves of 1e-200": two([0.0, -INF], [[0.0, -460.0], [-460.0, 0.0]], [[0.0, -1e5], [-1e5, 0.0], [0.0, -1e5]]),
    "moves of 1e-350": two([0.0, -INF], [[0.0, -800.0], [-800.0, 0.0]], [[0.0, -1e5], [-1e5, 0.0], [0.0, -1e5]]),
    "potentials of 1e5 either way": two(EVEN, MIXED, [[1e5, -1e5], [-1e5, 1e5], [1e5, 1e5]]),
    "denormal weights": two(EVEN, APART, [[0.0, -740.0], [-740.0, 0.0], [0.0, 0.0]]),
    "impossible in the middle": two(EVEN, APART, [[0.0, -INF], [-INF, 0.0], [0.0, 0.0]]),
    "an impossible row": two(EVEN, MIXED, [[0.0, 0.0], [-INF, -INF], [0.0, 0.0]]),
    "impossible at once": two([0.0, -INF], MIXED, [[-INF, 0.0], [0.0, 0.0]]),
}


@pytest.mark.parametrize("name", HARD)
def test_underflow_and_impossibility_are_told_apart(way, name):
    agrees(HARD[name])


def test_a_hard_sequence_among_easy_ones_changes_nothing_for_them(way):
    easy = random_chain([6, 6, 6], 2, 3)
    potentials = easy.potentials.clone()
    potentials[6:12] = rows([[0.0, -1e5], [-1e5, 0.0]] * 3)
    mixed = chains.Chain(easy.initial, rows(APART), potentials, easy.lengths)
    agrees(mixed)
    agrees(chains.Chain(easy.initial, easy.transition, potentials, easy.lengths))


def test_moments_of_easy_and_hard_sequences_together_are_those_of_their_marginals(way):
    """One sequence jumps where it can't but through an outlier; one step's cells are half missing."""
    rng = np.random.default_rng(2)
    loc, scale = rows([[0.0, 0.0], [60.0, 1.0], [120.0, -1.0]]), rows(rng.uniform(0.5, 2, (3, 2)))
    x = loc[[0, 1, 2, 0, 1, 2, 1, 0, 0, 1]] + rows(rng.normal(size=(10, 2)))
    x[1, 0] = math.nan
    moves = logs([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
    chain = chains.Chain(logs(np.full(3, 1 / 3)), moves, chains.Normals(x, loc, scale), torch.tensor([4, 4, 2]))
    weights = rows([2.0, 3.0, 5.0])
    truth = Paths(chain.tabled())
    found = chains.expected(chain, weights)
    shares = (truth.marginals * weights.repeat_interleave(chain.lengths)[:, None]).numpy()
    away, seen = np.nan_to_num((x[:, None] - loc).numpy()), ~x.isnan()[:, None].expand(-1, 3, -1).numpy()
    assert close(found.nats, truth.nats)
    for k, part in enumerate([seen, away, away**2]):
        assert close(found.moments[k], np.einsum("ts,tsd->sd", shares, part), 1e-11)
    assert close(found.initial, shares[chain.starts])
    assert close(found.transitions, (truth.pairs * weights.repeat_interleave(chain.lengths)[:, None, None]).sum(0))


def test_impossible_sequences_say_where_and_have_no_posterior(way):
    chain = chains.Chain(
        rows(EVEN), rows(APART), rows([[0, -INF], [-INF, 0], [0, 0], [0, -1], [-1, 0]]), torch.tensor([3, 2])
    )
    found, filtered = chains.posterior(chain), chains.filter(chain)
    path, nats = chains.viterbi(chain)
    assert chains.first_impossible(chain).tolist() == [1, -1]
    assert found.nats[0] == nats[0] == -INF
    assert found.marginals[:3].abs().sum() == 0
    assert found.initial[0].abs().sum() == 0
    assert close(found.transitions.sum(), 1.0)
    assert path[:3].tolist() == [0, 0, 0]
    assert filtered.nats[1:3].tolist() == [-INF, -INF]
    assert filtered.probabilities[1:3].abs().sum() == 0


def test_ties_go_to_the_lowest_state(way):
    chain = chains.Chain(
        torch.zeros(3, dtype=D), torch.zeros(3, 3, dtype=D), torch.zeros(9, 3, dtype=D), torch.tensor([4, 5])
    )
    assert chains.viterbi(chain)[0].tolist() == [0] * 9
    tied = chain.potentials.clone()
    tied[:, 0] = -1.0
    assert chains.viterbi(chains.Chain(chain.initial, chain.transition, tied, chain.lengths))[0].tolist() == [1] * 9


def periodic(states, length, seed=0):
    """A ring without rest: what it started from is never forgotten."""
    moves = torch.full((states, states), -INF, dtype=D)
    moves[torch.arange(states), (torch.arange(states) + 1) % states] = 0.0
    potentials = 0.05 * torch.randn(length, states, generator=torch.Generator().manual_seed(seed), dtype=D)
    return chains.Chain(
        logs(np.arange(1.0, states + 1) / (states * (states + 1) / 2)), moves, potentials, torch.tensor([length])
    )


def sticky(length, stay, seed=0, flat=1e-3):
    """Hardly mixing, hardly informed: windows can't have forgotten their guess."""
    moves = logs([[stay, 1 - stay], [1 - stay, stay]])
    potentials = flat * torch.randn(length, 2, generator=torch.Generator().manual_seed(seed), dtype=D)
    return chains.Chain(logs([0.99, 0.01]), moves, potentials, torch.tensor([length]))


LONG = {
    "mixing": lambda: random_chain([9000], 4, 1),
    "identity": lambda: chains.Chain(
        logs([0.3, 0.7]), rows(APART), 0.05 * torch.randn(9000, 2, generator=torch.Generator().manual_seed(4), dtype=D),
        torch.tensor([9000])),
    "a ring": lambda: periodic(3, 9000),
    "sticky": lambda: sticky(9000, 1 - 1e-7),
    "half sticky": lambda: sticky(9000, 0.99),
    "one long among short": lambda: random_chain([3, 9000, 1, 40, 17], 5, 2),
    "many states": lambda: random_chain([5000], 33, 3),
    "sparse": lambda: random_chain([5000], 6, 5, zeros=0.3),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_long_sequences_in_windows_say_what_the_recursion_says(way, name):
    chain = LONG[name]()
    truth = Exact(chain)
    assert (truth.nats > -INF).all()
    found = chains.posterior(chain)
    assert close(chains.log_likelihood(chain), truth.nats)
    assert close(found.nats, truth.nats)
    assert close(found.marginals, truth.marginals)
    assert close(found.transitions, truth.counts)
    assert close(chains.filter(chain).probabilities, truth.filtered)
    path, best = chains.viterbi(chain)
    assert close(score(chain, path), best)
    assert (best <= truth.nats).all()


@pytest.mark.parametrize("rare", [-60.0, -217.0, -500.0])
def test_rare_moves_that_are_the_only_way_are_not_lost(way, rare):
    """Each move underflows times a share that does not; states die now and then, so that it must be taken."""
    drawn = random_chain([400, 3, 20], 6, 0, zeros=0.3, spread=1.0)
    moves = torch.full((6, 6), -INF, dtype=D)
    moves[torch.arange(6), (torch.arange(6) + 1) % 6] = rare
    moves.diagonal().zero_()
    chain = chains.Chain(drawn.initial, moves, drawn.potentials, drawn.lengths)
    assert Exact(chain).nats[0] > -INF
    assert recursions_agree(chain) == []


def test_windows_on_a_sticky_chain_would_be_wrong_without_their_check(monkeypatch):
    """The planted twin of the test above: with the check switched off the answer is off, so the check is needed."""
    monkeypatch.setattr(kernels, "native", None)
    chain = sticky(9000, 1 - 1e-7)
    wanted = Exact(chain).nats
    assert close(chains.log_likelihood(chain), wanted)
    monkeypatch.setattr(scaled, "_APART", INF)
    assert not close(chains.log_likelihood(chain), wanted)


@pytest.mark.skipif(NATIVE is None, reason="the kernel is not built")
@quick
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    states=st.integers(1, 70),
    zeros=st.sampled_from([0.0, 0.0, 0.2, 0.6]),
    spread=st.sampled_from([0.1, 3.0, 100.0, 1000.0]),
    own=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_kernel_says_what_torch_says(lengths, states, zeros, spread, own, seed):
    chain = random_chain(lengths, states, seed, zeros, own, spread=spread)
    bests = []
    for native in (NATIVE, None):
        kernels.native = native
        try:
            assert recursions_agree(chain) == []
            bests.append(chains.viterbi(chain)[1])
        finally:
            kernels.native = NATIVE
    assert close(*bests)


@pytest.mark.skipif(NATIVE is None, reason="the kernel is not built")
def test_threads_do_not_change_a_bit():
    chain = random_chain([*range(1, 120), 9000], 12, 8)
    answers = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = chains.posterior(chain)
        answers.append((chains.log_likelihood(chain), found.marginals, found.nats, chains.viterbi(chain)[0]))
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))


@pytest.mark.parametrize("zeros", [0.0, 0.3])
def test_blocks_give_what_the_whole_gives(way, zeros):
    whole = random_chain([50], 4, 11, zeros)
    initial, total = whole.initial, 0.0
    for block in whole.potentials.split(7):
        nats, state = chains.advance(chains.Chain(initial, whole.transition, block, torch.tensor([len(block)])))
        initial, total = (state[0][:, None] + whole.transition).logsumexp(0), total + nats
    assert close(total, logspace.log_likelihood(whole))


@pytest.mark.parametrize("moving", [False, True], ids=["homogeneous", "moving"])
def test_gradients_are_the_derivatives_once_and_twice(way, moving):
    chain = random_chain([3, 1, 4], 3, 2, own_initial=True, moving=moving)
    parts = [part.clone().requires_grad_() for part in (chain.initial, chain.transition, chain.potentials)]

    def nats(*parts):
        return chains.log_likelihood(chains.Chain(*parts, chain.lengths))

    assert torch.autograd.gradcheck(nats, parts)
    assert torch.autograd.gradgradcheck(nats, parts)


def test_gradients_are_expected_counts_and_zero_where_impossible(way):
    chain = random_chain([4, 6, 2], 3, 7, zeros=0.4)
    parts = [part.clone().requires_grad_() for part in (chain.initial, chain.transition, chain.potentials)]
    nats = chains.log_likelihood(chains.Chain(*parts, chain.lengths))
    slopes = rows([2.0, -0.5, 3.0])
    some = nats > -INF
    assert some.any()
    found = torch.autograd.grad(torch.where(some, nats * slopes, 0.0).sum(), parts, create_graph=True)
    truth = Paths(chain)
    factor = (slopes * some).repeat_interleave(chain.lengths)
    assert close(found[2], truth.marginals * factor[:, None])
    assert close(found[1], (truth.pairs * factor[:, None, None]).sum(0))
    assert close(found[0], (truth.marginals * factor[:, None])[chain.starts].sum(0))
    again = torch.autograd.grad(sum((part.square()).sum() for part in found), parts)
    assert not any(part.isnan().any() for part in again)


def test_the_other_direction_of_the_gradient_weighs_each_sequence(way):
    chain = random_chain([4, 6, 2], 3, 7)
    potentials = chain.potentials.clone().requires_grad_()
    nats = chains.log_likelihood(chains.Chain(chain.initial, chain.transition, potentials, chain.lengths))
    (found,) = torch.autograd.grad(nats @ rows([2.0, 0.0, -1.0]), potentials)
    assert close(found, Paths(chain).marginals * rows([2.0, 0.0, -1.0]).repeat_interleave(chain.lengths)[:, None])


def drawn(chain, n, seed=0):
    return chains.sample(chain, n, torch.Generator().manual_seed(seed)).numpy()


def fit_of_draws(chain, truth, n=20_000):
    """p-value of drawn paths beside their enumerated posterior."""
    z, _, share, _ = truth.each[0]
    place = chain.size ** np.arange(z.shape[1])
    counts = np.bincount(drawn(chain, n) @ place, minlength=len(z))[z @ place]
    if counts[share == 0].any():
        return 0.0
    rare = share * n < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(share[~rare], share[rare].sum()).astype(float)
    return stats.chisquare(observed[wanted > 0], (wanted * n)[wanted > 0]).pvalue


@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_drawn_paths_follow_the_posterior_and_a_planted_error_is_seen(way, zeros):
    chain = random_chain([4], 3, 13, zeros, spread=1.0)
    truth = Paths(chain)
    assert fit_of_draws(chain, truth) > 1e-6
    hot = chains.Chain(chain.initial, chain.transition, chain.potentials / 1.2, chain.lengths)
    assert fit_of_draws(hot, truth) < 1e-6


def test_drawn_paths_of_ragged_sequences_follow_their_own_marginals(way):
    chain = random_chain([1, 5, 3], 3, 4, zeros=0.2)
    truth = Paths(chain)
    n = 20_000
    paths = drawn(chain, n)
    assert paths.shape == (n, 9)
    share = np.stack([(paths == k).mean(0) for k in range(3)], 1)
    assert (np.abs(share - truth.marginals.numpy()) < 5.5 * np.sqrt(0.25 / n)).all()
    pairs = np.mean((paths[:, 1] == 0) & (paths[:, 2] == 0))
    assert abs(pairs - truth.pairs[2, 0, 0]) < 5.5 * math.sqrt(0.25 / n)


def test_draws_repeat_under_one_seed_and_differ_under_another(way):
    chain = random_chain([30], 3, 1)
    assert (drawn(chain, 5) == drawn(chain, 5)).all()
    assert (drawn(chain, 5) != drawn(chain, 5, seed=1)).any()


def test_single_precision_takes_the_torch_path_and_is_near():
    chain = random_chain([40, 3], 5, 6)
    less = chains.Chain(chain.initial.float(), chain.transition.float(), chain.potentials.float(), chain.lengths)
    assert chains.log_likelihood(less).dtype == torch.float32
    assert close(chains.log_likelihood(less).double(), logspace.log_likelihood(chain), 1e-5)
    assert close(chains.posterior(less).marginals.double(), chains.posterior(chain).marginals, 1e-4)


def test_a_single_precision_outlier_is_not_impossible():
    """Moves that are rare but possible in float32, where shares underflow at 1e-38 already."""
    chain = two([0.0, -INF], [[0.0, -50.0], [-50.0, 0.0]], [[0.0, -90.0], [-90.0, 0.0], [0.0, -90.0], [-90.0, 0.0]])
    less = chains.Chain(chain.initial.float(), chain.transition.float(), chain.potentials.float(), chain.lengths)
    assert close(chains.log_likelihood(less).double(), logspace.log_likelihood(chain), 1e-5)


def test_lengths_that_differ_wildly_do_not_fill_memory(way):
    chain = random_chain([20_000, *([10] * 2000)], 3, 9)
    assert close(chains.log_likelihood(chain)[1:], logspace.log_likelihood(chain.part(torch.arange(1, 2001))[0]))


@pytest.mark.parametrize(
    "broken",
    [
        {"initial": torch.zeros(4, dtype=D)},
        {"initial": torch.zeros(3, 3, dtype=D)},
        {"transition": torch.zeros(3, 4, dtype=D)},
        {"transition": torch.zeros(5, 3, 3, dtype=D)},
        {"lengths": torch.tensor([3, 4])},
        {"lengths": torch.tensor([6, 0])},
        {"lengths": torch.tensor([7, -1])},
        {"lengths": torch.tensor([], dtype=torch.int64)},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(way, broken):
    parts = {"initial": torch.zeros(3, dtype=D), "transition": torch.zeros(3, 3, dtype=D),
             "potentials": torch.zeros(6, 3, dtype=D), "lengths": torch.tensor([2, 4])} | broken  # fmt: skip
    chain = chains.Chain(**parts)
    for ask in (chains.log_likelihood, chains.filter, chains.posterior, chains.viterbi):
        with pytest.raises(ShapeError, match="add up"):
            ask(chain)


@pytest.mark.parametrize("turn", ["transposed", "strided"])
def test_tables_that_are_views_are_read_right(way, turn):
    chain = random_chain([5, 4], 3, 5)
    potentials = (
        chain.potentials.T.contiguous().T if turn == "transposed" else chain.potentials.repeat_interleave(2, 1)[:, ::2]
    )
    moves = chain.transition.T.contiguous().T
    agrees(chains.Chain(chain.initial, moves, potentials, chain.lengths))
