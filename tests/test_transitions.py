"""Transitions: tables against NumPy and SciPy, M steps against optimisers and counts, run lengths by their laws."""

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from probgen import transitions as tr
from probgen.errors import FitError, ParameterError, StructureError
from probgen.transitions.markov import log_stationary

D = torch.float64
KINDS = {
    "free": tr.Markov(states=3),
    "stationary": tr.Markov("stationary", states=3),
    "fixed": tr.Markov((0.2, 0.5, 0.3), states=3),
    "left_right": tr.Markov(allowed=tr.left_right(3), states=3),
    "cyclic": tr.Markov("stationary", allowed=tr.cyclic(3), states=3),
    "sticky": tr.Markov(concentration=1.5, sticky=2.0, states=3),
    "inputs": tr.InputDriven(2, states=3),
    "geometric": tr.Durations(phases=1, states=3),
    "phases": tr.Durations(phases=3, smoothing=0.5, states=3),
    "table": tr.Durations("categorical", longest=4, smoothing=0.5, states=3),
    "factorial": tr.Factorial((2, 3)),
}
SINGLE = {
    "one table": tr.Durations("categorical", longest=4, smoothing=0.5, states=1),
    "one of phases": tr.Durations(phases=3, states=1),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cells(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def put(t, seed=0, spread=1.0):
    """Random parameters, as far from special as they can be."""
    draw = torch.Generator().manual_seed(seed)
    for p in t.parameters():
        if p.requires_grad:
            p.data = spread * torch.randn(p.shape, generator=draw, dtype=D)
    return t


def made(kind, seed=0):
    return put(copy.deepcopy((KINDS | SINGLE)[kind]), seed)


def inputs_of(t, n=5, seed=0):
    return cells(np.random.default_rng(seed).normal(size=(n, t.covariates))) if t.covariates else None


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def rows_of(counts):
    return counts / counts.sum(1, keepdims=True)


def counts_of(size, seed=0):
    return np.random.default_rng(seed).gamma(1.0, 5.0, (size, size))


def long_run(matrix):
    """The stationary distribution as the left eigenvector of eigenvalue 1."""
    values, vectors = np.linalg.eig(matrix.T)
    found = np.real(vectors[:, np.argmin(abs(values - 1))])
    return found / found.sum()


# Masks


def test_masks_are_what_their_names_say():
    assert np.array(tr.left_right(4)).astype(int).tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert np.array(tr.left_right(3, jump=2)).astype(int).tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert np.array(tr.cyclic(3)).astype(int).tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    assert np.array(tr.banded(4)).astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("mask", [tr.left_right(4), tr.cyclic(4), tr.banded(4), np.eye(4, dtype=bool)])
def test_structural_zeros_are_exact_and_no_parameters(mask):
    t = put(tr.Markov(allowed=mask, states=4))
    matrix = t.log_matrix().exp().detach().numpy()
    assert (matrix[~np.array(mask)] == 0).all()
    assert (matrix[np.array(mask)] > 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-15)
    assert t.n_params == 3 + np.sum(mask) - 4
    t.maximise(torch.ones(4, dtype=D), cells(counts_of(4)))
    assert (t.log_matrix().exp().detach().numpy()[~np.array(mask)] == 0).all()
    t.start(torch.Generator().manual_seed(0))
    assert (t.log_matrix().exp().detach().numpy()[~np.array(mask)] == 0).all()


# Every kind


@every_kind
def test_rows_add_up_to_one(kind):
    t = made(kind)
    given = inputs_of(t)
    initial, matrix = t(given)
    assert initial.shape == (t.size,)
    assert matrix.shape[-2:] == (t.size, t.size)
    assert len(t.emitting()) == t.size
    np.testing.assert_allclose(initial.exp().sum().item(), 1, rtol=1e-12)
    np.testing.assert_allclose(matrix.exp().sum(-1).detach(), 1, rtol=1e-12)


@every_kind
def test_with_states_keeps_all_but_the_number(kind):
    t = KINDS[kind]
    again = t.with_states(t.states)
    assert again == t
    assert repr(again) == repr(t)
    assert again.n_params == t.n_params
    assert eval(repr(t), vars(tr)).with_states(t.states) == t


@every_kind
def test_priors_cover_the_parameters_and_natural_is_differentiable(kind):
    t = made(kind)
    free = {name: p for name, p in t.named_parameters() if p.requires_grad}
    priors = t.priors()
    assert {n: (p.batch_shape, p.event_shape) for n, p in priors.items()} == {
        n: (torch.Size(), p.shape) for n, p in free.items()
    }
    total = sum(value.square().sum() for value in t.natural().values())
    slopes = torch.autograd.grad(total, list(free.values()), allow_unused=True)
    assert all(slope is not None and slope.isfinite().all() for slope in slopes)


@every_kind
def test_start_follows_the_generator(kind):
    first, same, other = (copy.deepcopy(KINDS[kind]) for _ in range(3))
    for t, seed in ((first, 1), (same, 1), (other, 2)):
        t.start(torch.Generator().manual_seed(seed))
    given = inputs_of(first)
    assert torch.equal(first.log_matrix(given), same.log_matrix(given))
    assert not torch.equal(first.log_matrix(given), other.log_matrix(given))
    assert first.log_initial().exp().sum().item() == pytest.approx(1)


def complete(t, initial, counts, given):
    """Expected complete-data log-likelihood with the penalty."""
    start, moves = (part.detach() for part in t(given))
    gain = torch.where(counts > 0, counts * moves, 0.0).sum() + torch.where(initial > 0, initial * start, 0.0).sum()
    return float((gain + t.penalty()).detach())


@pytest.mark.parametrize("kind", [*KINDS, *SINGLE])
@pytest.mark.parametrize("seed", range(5))
def test_maximise_never_lowers_and_ends_where_no_direction_gains(kind, seed):
    t = made(kind, seed)
    rng = np.random.default_rng(seed)
    given = inputs_of(t, seed=seed)
    initial, matrix = (part.exp().detach() for part in made(kind, seed + 50)(given))
    # counts that the chain could have made: no mass on structural zeros
    counts = matrix * cells(rng.gamma(1.0, 5.0, matrix.shape))
    initial = initial * cells(rng.gamma(1.0, 3.0, initial.shape))
    before = complete(t, initial, counts, given)
    for _ in range(6 if t.covariates else 2):
        t.maximise(initial, counts, given)
    best, noise = complete(t, initial, counts, given), torch.Generator().manual_seed(seed)
    assert best > before
    for p in t.parameters():
        if not p.requires_grad:
            continue
        raw = p.data.clone()
        for _ in range(4):
            step = torch.where(raw.isfinite(), torch.randn(raw.shape, generator=noise, dtype=D), 0.0)
            p.data = raw + 1e-2 * step
            assert complete(t, initial, counts, given) <= best + 1e-7 * abs(best)
        p.data = raw


# Markov


def test_rows_are_their_counts():
    t = tr.Markov(states=4)
    counts, starts = counts_of(4), np.array([3.0, 1.0, 0.0, 0.0])
    assert t.maximise(cells(starts), cells(counts)) == []
    np.testing.assert_allclose(t.log_matrix().exp().detach(), rows_of(counts), rtol=1e-14)
    np.testing.assert_allclose(t.log_initial().exp().detach(), [0.75, 0.25, 0, 0], rtol=1e-14, atol=0)


def test_priors_are_pseudo_counts():
    t = tr.Markov(concentration=1.5, sticky=2.0, states=3)
    counts, starts = counts_of(3), np.array([3.0, 1.0, 0.0])
    t.maximise(cells(starts), cells(counts))
    np.testing.assert_allclose(t.log_matrix().exp().detach(), rows_of(counts + 0.5 + 2 * np.eye(3)), rtol=1e-14)
    np.testing.assert_allclose(t.log_initial().exp().detach(), (starts + 0.5) / (starts + 0.5).sum(), rtol=1e-14)


def test_the_penalty_is_the_dirichlet_density_up_to_a_constant():
    def density(t):
        matrix, first = t.log_matrix().exp().detach().numpy(), t.log_initial().exp().detach().numpy()
        rows = sum(stats.dirichlet.logpdf(row, 1.5 + 2.0 * np.eye(3)[i]) for i, row in enumerate(matrix))
        return rows + stats.dirichlet.logpdf(first, np.full(3, 1.5))

    a, b = (made("sticky", seed) for seed in (1, 2))
    gap = (a.penalty() - b.penalty()).item()
    assert gap == pytest.approx(density(a) - density(b), rel=1e-12)


def test_an_empty_state_keeps_its_row_and_is_named():
    t = made("free")
    row = t.log_matrix().exp().detach()[1].clone()
    counts = counts_of(3)
    counts[1] = 0
    assert t.maximise(cells([1, 0, 0]), cells(counts)) == [1]
    np.testing.assert_allclose(t.log_matrix().exp().detach()[1], row, rtol=1e-14)


def test_a_fixed_start_stays():
    t = made("fixed")
    t.maximise(cells([9, 0, 0]), cells(counts_of(3)))
    np.testing.assert_allclose(t.log_initial().exp(), [0.2, 0.5, 0.3], rtol=1e-14)
    assert not t.initial_logits.requires_grad
    assert t.n_params == 6


@pytest.mark.parametrize("initial", [np.array([0.2, 0.8]), torch.tensor([0.2, 0.8], dtype=D), [0.2, 0.8], (0.0, 1.0)])
def test_a_fixed_start_is_any_row_of_numbers(initial):
    t = tr.Markov(initial, states=2)
    assert t.log_initial().exp().tolist() == [float(p) for p in initial]


@pytest.mark.parametrize("states", [1, 2, 3, 7])
def test_the_stationary_start_is_the_eigenvector(states):
    t = put(tr.Markov("stationary", states=states), spread=2.0)
    initial, matrix = (part.exp().detach().numpy() for part in t())
    np.testing.assert_allclose(initial, long_run(matrix), rtol=1e-9, atol=1e-15)


def test_the_stationary_start_is_differentiable():
    logits = cells(np.random.default_rng(0).normal(size=(4, 4))).requires_grad_()
    assert torch.autograd.gradcheck(lambda raw: log_stationary(raw.log_softmax(1)), logits)


def test_states_that_are_left_for_good_have_no_long_run_share():
    matrix = cells([[0.1, 0.9, 0, 0, 0], [0, 0.3, 0.7, 0, 0], [0, 0, 0.77, 0.23, 0], [0, 0, 0, 0.61, 0.39],
                    [0, 0, 0, 0, 1]])  # fmt: skip
    assert log_stationary(matrix.log()).exp().tolist() == [0, 0, 0, 0, 1]
    matrix[4] = cells([0, 0, 0, 0.2, 0.8])
    found = log_stationary(matrix.log())
    assert found[:3].isneginf().all()
    np.testing.assert_allclose(found[3:].exp(), [0.2 / 0.59, 0.39 / 0.59], rtol=1e-14)
    assert log_stationary(cells([[0, 1], [1, 0]]).log()).exp().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("transient", [0, 1])
def test_a_chain_that_falls_apart_has_no_stationary_start(transient):
    matrix = np.zeros((4 + transient, 4 + transient))
    matrix[:2, :2], matrix[2:4, 2:4] = [[0.5, 0.5], [0.3, 0.7]], [[0.1, 0.9], [0.6, 0.4]]
    matrix[4:] = 1 / len(matrix)
    with pytest.raises(FitError, match="no unique stationary"):
        log_stationary(cells(matrix).log())


@pytest.mark.parametrize("kind", ["stationary", "cyclic"])
def test_the_stationary_m_step_is_an_optimisers(kind):
    t = made(kind)
    counts = counts_of(3) * t.mask.numpy()
    starts = np.array([5.0, 1.0, 0.5])

    def lost(flat):
        raw = np.where(t.mask, flat.reshape(3, 3), -np.inf)
        matrix = softmax(raw)
        with np.errstate(divide="ignore"):
            moves = np.where(counts > 0, counts * np.log(np.where(matrix > 0, matrix, 1)), 0).sum()
        return -moves - starts @ np.log(long_run(matrix))

    best = optimize.minimize(lost, np.zeros(9), method="BFGS", options={"gtol": 1e-7})
    for _ in range(3):
        t.maximise(cells(starts), cells(counts))
    assert complete(t, cells(starts), cells(counts), None) == pytest.approx(-best.fun, rel=1e-8)
    plain = tr.Markov(allowed=t.allowed, states=3)  # what ignores the start falls short
    plain.maximise(cells(starts), cells(counts))
    assert -lost(plain.log_matrix().detach().numpy().clip(-700).ravel()) < -best.fun - 1e-3


# Durations


def run_lengths(t, state, most):
    """P(a visit to a state lasts d steps), d = 1..most, by pushing mass through the chain's table."""
    matrix = t.log_matrix().exp().detach().numpy()
    own = t.emitting().numpy() == state
    inside = matrix[np.ix_(own, own)]
    mass, found = np.eye(t.depth)[0], []  # a visit enters at its first phase or age
    for _ in range(most):
        found.append(mass @ (1 - inside.sum(1)))
        mass = mass @ inside
    return np.array(found)


@pytest.mark.parametrize("phases", [1, 2, 5])
def test_phases_last_as_long_as_the_negative_binomial_says(phases):
    t = put(tr.Durations(phases=phases, states=3))
    for k, leaving in enumerate(t.natural()["leaving"].tolist()):
        law = stats.nbinom(phases, leaving)
        np.testing.assert_allclose(run_lengths(t, k, 40), law.pmf(np.arange(1, 41) - phases), rtol=1e-10, atol=1e-16)
        other = stats.nbinom(phases, 0.9 * leaving)
        assert abs(run_lengths(t, k, 40) - other.pmf(np.arange(1, 41) - phases)).max() > 1e-3
        assert t.mean_duration()[k].item() == pytest.approx(law.mean() + phases, rel=1e-12)


def test_a_table_of_durations_is_the_law_of_run_lengths():
    t = made("table")
    for k, table in enumerate(t.natural()["duration"].detach().numpy()):
        lengths = run_lengths(t, k, 6)
        np.testing.assert_allclose(lengths[:4], table, rtol=1e-12)
        assert (lengths[4:] == 0).all()
        assert t.mean_duration()[k].item() == pytest.approx(table @ [1, 2, 3, 4], rel=1e-12)


def test_smoothing_spreads_visits_evenly_over_the_table():
    """In hazards the penalty is that of a Dirichlet table; what nobody lasts for is learned from it alone."""
    t = made("table")
    table = t.natural()["duration"].detach().numpy()
    assert t.penalty().item() == pytest.approx(0.5 / 4 * np.log(table).sum(), rel=1e-12)
    t.maximise(*visits(t, [(0, 2), (1, 1), (0, 2), (1, 1), (2, 4)]))
    unfinished = t.natural()["duration"].detach().numpy()[2]  # lasted 4 steps at least, where 4 are the most
    np.testing.assert_allclose(unfinished, np.array([0.125, 0.125, 0.125, 1.125]) / 1.5, rtol=1e-12)
    whole = t.natural()["duration"].detach().numpy()[0]
    np.testing.assert_allclose(whole, np.array([0.125, 2.125, 0.125, 0.125]) / 2.5, rtol=1e-12)


def test_an_unfinished_visit_counts_as_having_lasted():
    """Kaplan and Meier (1958): the last visit tells of the ages that it reached, not of its end."""
    t = tr.Durations("categorical", longest=4, states=2)
    t.maximise(*visits(t, [(0, 1), (1, 2), (0, 3), (1, 2), (0, 3), (1, 2), (0, 2)]))
    np.testing.assert_allclose(t.natural()["duration"].detach()[0], [1 / 4, 0, 3 / 4, 0], atol=1e-15)
    assert t.natural()["duration"].detach()[1].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("kind", ["geometric", "phases", "table"])
def test_a_visit_never_follows_itself(kind):
    t = made(kind)
    assert (t.natural()["transition"].diagonal() == 0).all()
    t.maximise(torch.ones(t.size, dtype=D), t.log_matrix().exp().detach() * 7)
    assert (t.natural()["transition"].diagonal() == 0).all()
    np.testing.assert_allclose(t.natural()["transition"].sum(1).detach(), 1, rtol=1e-14)


def visits(t, runs):
    """Counts of starts and moves on the chain's states when visits (state, length) follow each other."""
    moves = np.zeros((t.size, t.size))
    path = []
    for state, length in runs:
        path += [state * t.depth + age for age in range(length)]
    for a, b in itertools.pairwise(path):
        moves[a, b] += 1
    return cells(np.eye(t.size)[path[0]]), cells(moves)


def test_moves_that_never_happen_are_learned_as_never():
    """A count of exactly zero is a probability of zero, not an equal share."""
    t = tr.Durations("categorical", longest=3, states=3)
    t.maximise(*visits(t, [(0, 2), (1, 1), (2, 3), (0, 2), (1, 2), (0, 1)]))
    np.testing.assert_allclose(t.natural()["transition"].detach(), [[0, 1, 0], [0.5, 0, 0.5], [1, 0, 0]], atol=1e-15)
    np.testing.assert_allclose(t.natural()["duration"].detach()[1], [0.5, 0.5, 0], atol=1e-15)
    assert t.natural()["initial"].tolist() == [1, 0, 0]


@pytest.mark.parametrize(("kind", "wanted"), [("geometric", 3 + 3 + 2), ("phases", 3 + 3 + 2), ("table", 9 + 3 + 2)])
def test_durations_count_their_free_parameters(kind, wanted):
    assert made(kind).n_params == wanted


# Factorial


def test_the_joint_chain_is_the_kronecker_product():
    t = made("factorial")
    matrices = [softmax(p.detach().numpy()) for p in t.logits]
    starts = [softmax(p.detach().numpy()) for p in t.initial_logits]
    np.testing.assert_allclose(t.log_matrix().exp().detach(), np.kron(*matrices), rtol=1e-13)
    np.testing.assert_allclose(t.log_initial().exp().detach(), np.kron(*starts), rtol=1e-13)
    assert t.n_params == 3 + 8
    assert t.labels() == ["0,0", "0,1", "0,2", "1,0", "1,1", "1,2"]


def test_each_chain_learns_from_its_own_moves():
    t = made("factorial")
    rng = np.random.default_rng(0)
    own = [rng.integers(0, k, 200) for k in (2, 3)]
    joint = own[0] * 3 + own[1]
    counts = np.zeros((6, 6))
    np.add.at(counts, (joint[:-1], joint[1:]), 1)
    t.maximise(cells(np.eye(6)[joint[0]]), cells(counts))
    for path, logits, first in zip(own, t.logits, t.initial_logits, strict=True):
        wanted = np.zeros(logits.shape)
        np.add.at(wanted, (path[:-1], path[1:]), 1)
        np.testing.assert_allclose(logits.softmax(1).detach(), rows_of(wanted), rtol=1e-13)
        assert first.softmax(0).argmax() == path[0]


# Inputs


def test_moves_are_a_regression_on_the_inputs():
    t = made("inputs")
    u = inputs_of(t)
    weight, logits = t.weight.detach().numpy(), t.logits.detach().numpy()
    for moves, row in zip(t.log_matrix(u).exp().detach().numpy(), u.numpy(), strict=True):
        wanted = softmax(logits + row[0] * weight[0] + row[1] * weight[1])
        np.testing.assert_allclose(moves, wanted, rtol=1e-12)
    assert t.n_params == 2 + 6 * 3
    assert t.covariates == 2


def test_moves_that_take_inputs_refuse_to_do_without():
    with pytest.raises(StructureError, match="without inputs"):
        made("inputs").log_matrix()


def test_inputs_that_separate_the_moves_leave_weights_finite():
    t = tr.InputDriven(1, states=2)
    u = cells(np.repeat([-1.0, 1.0], 20)[:, None])
    counts = torch.zeros(40, 2, 2, dtype=D)
    counts[:20, :, 0] = counts[20:, :, 1] = 1.0
    for _ in range(10):
        t.maximise(cells([1, 0]), counts, u)
    assert t.weight.isfinite().all()
    assert t.weight.abs().max() < 20
    assert t.log_matrix(u).exp()[30, 0, 1] > 0.99


# Bad input


@pytest.mark.parametrize(
    "build",
    [
        lambda: tr.Markov("frei"), lambda: tr.Markov(None), lambda: tr.Markov(5), lambda: tr.Markov([], states=2),
        lambda: tr.Markov([0.5, 0.6], states=2), lambda: tr.Markov([1.5, -0.5], states=2),
        lambda: tr.Markov([np.nan, 1.0], states=2), lambda: tr.Markov([0.3, 0.3, 0.4], states=2),
        lambda: tr.Markov([[0.5, 0.5]], states=2), lambda: tr.Markov(["a", "b"], states=2),
        lambda: tr.Markov(concentration=0.5), lambda: tr.Markov(concentration=np.nan),
        lambda: tr.Markov(concentration=np.inf), lambda: tr.Markov(sticky=-1.0), lambda: tr.Markov(sticky=np.nan),
        lambda: tr.Markov(allowed=tr.cyclic(3), states=2), lambda: tr.Markov(allowed=((1, 1), (0, 0)), states=2),
        lambda: tr.Markov(allowed=((1,), (1, 1)), states=2),
        lambda: tr.Durations("geometric"), lambda: tr.Durations(phases=0), lambda: tr.Durations(phases=2.5),
        lambda: tr.Durations("categorical", longest=0), lambda: tr.Durations(phases=True),
        lambda: tr.Durations(smoothing=-1.0), lambda: tr.Durations(smoothing=np.nan),
        lambda: tr.Durations(smoothing=np.inf),
        lambda: tr.Factorial(()), lambda: tr.Factorial((2, 0)), lambda: tr.Factorial((2.0, 2)),
        lambda: tr.Factorial((-2, -2)), lambda: tr.Factorial("22"), lambda: tr.Factorial((600,)),
        lambda: tr.Factorial((2, 2), states=3),
        lambda: tr.InputDriven(0), lambda: tr.InputDriven(1.5), lambda: tr.InputDriven(1, ridge=-1.0),
        lambda: tr.InputDriven(1, ridge=np.nan),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(build):
    with pytest.raises(ParameterError):
        build()
