"""State-space models against the dense normal of a whole sequence, and the laws of EM, grids and draws."""

import copy
import itertools
import math
import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from probgen.errors import DataError, FitError, ParameterError, ProbgenError, ShapeError, StructureError
from probgen.events import Array, Ragged, Series
from probgen.logprob import Kind
from probgen.models.statespace import StateSpace, System, em, fitting, kalman, paths
from probgen.models.statespace.structure import STRUCTURES

ALPHA = 1e-6
NILE = np.array(
    [1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140,
     1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969,
     831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845, 864, 862, 698, 845, 744, 796, 1040, 759, 781, 865,
     845, 944, 984, 897, 822, 1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890, 744, 749, 838, 1050,
     918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740], dtype=float,
)  # fmt: skip
NILE += 0.01 * np.sin(np.arange(100))  # untied


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tensor(value):
    return torch.as_tensor(np.asarray(value, dtype=np.float64))


def random_system(s=3, d=2, u=0, seed=0, singular=False):
    """Matrices without any symmetry to hide behind; singular: one state without noise and a known start."""
    rng = np.random.default_rng(seed)
    a = np.linalg.qr(rng.normal(size=(s, s)))[0] * 0.9
    q, r, p = (m @ m.T + 0.1 * np.eye(len(m)) for m in (rng.normal(size=(k, k)) for k in (s, d, s)))
    if singular:
        q[-1], q[:, -1], p[0], p[:, 0] = 0, 0, 0, 0
    b, c, f = rng.normal(size=(s, u)), rng.normal(size=(d, s)), rng.normal(size=(d, u))
    return System(*map(tensor, (a, b, q, c, f, rng.normal(size=d), r, rng.normal(size=s), p)))


def event_of(d):
    return Series((d,))


def dense(m, total, u=None):
    """Mean and covariance of all states (total * S) and of all cells (total * D), and the cells' weights on states."""
    a, b, q, c, f, d, r, m0, p0 = (part.numpy() for part in m)
    u = np.zeros((total, 0)) if u is None else u
    s = len(a)
    mean, blocks = [m0], [p0]
    for t in range(1, total):
        mean.append(a @ mean[-1] + b @ u[t])
        blocks.append(a @ blocks[-1] @ a.T + q)
    cov = np.zeros((total, s, total, s))
    for t in range(total):
        block = blocks[t]
        for k in range(t, total):
            cov[k, :, t], cov[t, :, k] = block, block.T
            block = a @ block
    cov = cov.reshape(total * s, total * s)
    weights = np.kron(np.eye(total), c)
    x_mean = weights @ np.concatenate(mean) + np.concatenate([f @ row + d for row in u])
    return np.concatenate(mean), cov, x_mean, weights @ cov @ weights.T + np.kron(np.eye(total), r), weights


def conditional(m, x, u=None, upto=None):
    """Mean and covariance of all states given the cells recorded (before step ``upto``)."""
    mz, vz, mx, vx, weights = dense(m, len(x), u)
    cells = x.reshape(-1).copy()
    if upto is not None:
        cells[upto * x.shape[1] :] = np.nan
    o = ~np.isnan(cells)
    gain = vz @ weights[o].T @ np.linalg.inv(vx[np.ix_(o, o)])
    return mz + gain @ (cells - mx)[o], vz - gain @ weights[o] @ vz


def dense_log_prob(m, x, u=None):
    _, _, mx, vx, _ = dense(m, len(x), u)
    o = ~np.isnan(x.reshape(-1))
    return stats.multivariate_normal(mx[o], vx[np.ix_(o, o)]).logpdf(x.reshape(-1)[o]) if o.any() else 0.0


def gappy(rng, lengths, d, share=0.25, whole=0.15):
    """Sequences with single cells and whole steps missing; every third is complete."""
    made = []
    for i, total in enumerate(lengths):
        x = rng.normal(size=(total, d)) * 2
        if i % 3:
            x[rng.random(x.shape) < share] = np.nan
            x[rng.random(total) < whole] = np.nan
        made.append(x)
    return made


LENGTHS = (9, 1, 7, 2, 12, 12, 5, 1, 30)
SYSTEMS = {
    "free": random_system(),
    "one column": random_system(2, 1, seed=1),
    "wide": random_system(1, 3, seed=2),
    "singular": random_system(3, 2, seed=3, singular=True),
    "inputs": random_system(2, 2, u=2, seed=4),
}
systems = pytest.mark.parametrize("name", SYSTEMS)


def known(name):
    """A model of known matrices, gappy data and inputs (a list, or None)."""
    m = SYSTEMS[name]
    rng = np.random.default_rng(len(name))
    x = gappy(rng, LENGTHS, len(m.offset))
    k = m.control.shape[1]
    u = [rng.normal(size=(total, k)) for total in LENGTHS] if k else None
    return StateSpace.from_matrices(m, event_of(len(m.offset))), m, x, u


def each(x, u):
    return zip(x, u if u is not None else [None] * len(x), strict=True)


@systems
def test_log_prob_is_that_of_the_dense_normal(name):
    model, m, x, u = known(name)
    lp = model.log_prob(x, given=u)
    assert lp.kind is Kind.EXACT
    truth = [dense_log_prob(m, part, v) for part, v in each(x, u)]
    np.testing.assert_allclose(lp.nats, truth, rtol=1e-10, atol=1e-10)
    shifted = System(*(part + 1e-4 if i == 2 else part for i, part in enumerate(m)))  # the oracle sees a wrong Q
    wrong = [dense_log_prob(shifted, part, v) for part, v in each(x, u)]
    assert np.abs(lp.nats - wrong).max() > 1e-6


@systems
def test_steps_add_up_and_are_the_differences_of_prefixes(name):
    model, m, x, u = known(name)
    lp = model.log_prob_steps(x, given=u)
    assert lp.of == "x_t|x_<t"
    truth = []
    for part, v in each(x, u):
        ends = [dense_log_prob(m, part[: t + 1], None if v is None else v[: t + 1]) for t in range(len(part))]
        truth.extend(np.diff(ends, prepend=0.0))
    np.testing.assert_allclose(lp.nats, truth, rtol=1e-9, atol=1e-9)


@systems
def test_smoothed_moments_are_those_of_the_dense_normal(name):
    model, m, x, u = known(name)
    states = model.smooth(x, given=u)
    s = len(m.start_mean)
    answers = (states.means.split(), states.covariances.split(), states.lagged.split())
    for (part, v), mean, cov, lagged in zip(each(x, u), *answers, strict=True):
        mz, vz = conditional(m, part, v)
        vz = vz.reshape(len(part), s, len(part), s)
        np.testing.assert_allclose(mean.numpy().reshape(-1), mz, rtol=1e-9, atol=1e-9)
        for t in range(len(part)):
            np.testing.assert_allclose(cov[t], vz[t, :, t], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(lagged[t], vz[t, :, t - 1] if t else np.zeros((s, s)), rtol=1e-9, atol=1e-9)


@systems
def test_filtered_moments_are_those_of_the_dense_normal(name):
    model, m, x, u = known(name)
    states = model.filter(x, given=u)
    s = len(m.start_mean)
    for (part, v), mean, cov in zip(each(x, u), states.means.split(), states.covariances.split(), strict=True):
        for t in range(len(part)):
            mz, vz = conditional(m, part, v, t + 1)
            np.testing.assert_allclose(mean[t], mz[t * s : t * s + s], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(cov[t], vz[t * s : t * s + s, t * s : t * s + s], rtol=1e-9, atol=1e-9)


@systems
def test_forecasts_are_those_of_the_dense_normal(name):
    model, m, x, u = known(name)
    h, rng = 4, np.random.default_rng(5)
    future = None if u is None else [rng.normal(size=(h, 2)) for _ in x]
    ahead = model.forecast(x, h, given=u, future=future)
    y = gappy(rng, [h] * len(x), len(m.offset))
    nats = ahead.log_prob(y).nats
    for i, (part, v) in enumerate(each(x, u)):
        both = None if v is None else np.concatenate([v, future[i]])
        blank = np.concatenate([part, np.full((h, part.shape[1]), np.nan)])
        mz, vz = conditional(m, blank, both)
        _, _, _, _, weights = dense(m, len(blank), both)
        inputs = 0 if both is None else (both @ m.feedthrough.numpy().T).reshape(-1)
        mx = weights @ mz + np.tile(m.offset, len(blank)) + inputs
        vx = weights @ vz @ weights.T + np.kron(np.eye(len(blank)), m.noise)
        new = slice(part.size, None)
        np.testing.assert_allclose(ahead.mean[i].reshape(-1), mx[new], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ahead.variance[i].reshape(-1), np.diag(vx)[new], rtol=1e-9)
        whole = np.concatenate([part, y[i]])
        expected = dense_log_prob(m, whole, both) - dense_log_prob(m, part, v)
        assert nats[i] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    low, high = ahead.quantiles([0.1, 0.9])
    np.testing.assert_allclose((high - low) / 2, stats.norm.ppf(0.9) * ahead.variance.sqrt(), rtol=1e-9)
    assert ahead.quantiles(0.5).shape == ahead.mean.shape


@systems
def test_gaps_are_filled_with_their_conditional_means(name):
    model, m, x, u = known(name)
    for (part, v), filled in zip(each(x, u), model.impute(x, given=u), strict=True):
        o = ~np.isnan(part.reshape(-1))
        _, _, mx, vx, _ = dense(m, len(part), v)
        expected = mx + vx[:, o] @ np.linalg.inv(vx[np.ix_(o, o)]) @ (part.reshape(-1) - mx)[o]
        np.testing.assert_allclose(filled.reshape(-1), expected, rtol=1e-8, atol=1e-8)
        np.testing.assert_array_equal(filled.reshape(-1)[o], part.reshape(-1)[o])


@systems
def test_the_pyro_program_scores_as_log_prob_does(name):
    model, _, x, u = known(name)
    checked = model.event.check(x).x
    given = None if u is None else model.context.check(u).x
    trace = poutine.trace(model.model).get_trace(checked, given)
    assert float(trace.log_prob_sum().detach()) == pytest.approx(model.log_prob(x, given=u).sum().value, rel=1e-10)


def test_the_pyro_program_draws_what_the_event_takes():
    pyro.set_rng_seed(0)
    assert len(StateSpace.from_matrices(SYSTEMS["free"]).model(n=3, length=4)) == 3
    counts = StateSpace(Series(support="count"), structure="level").fit([[3, 4, 5], [2, 2]], seed=0)
    assert len(counts.event.check(counts.model(n=3, length=4).split())) == 3


# Draws


def whitened_p(draws, mean, cov):
    """p-values that draws (n, k) have this mean and this scale, the smaller of the two."""
    white = np.linalg.solve(np.linalg.cholesky(cov), (draws - mean).T).T
    n, k = white.shape
    spread = stats.chi2.cdf((white**2).sum(), n * k)
    centre = stats.chi2.sf(n * (white.mean(0) ** 2).sum(), k)
    cross = white.T @ white / n - np.eye(k)
    off = stats.norm.sf(np.abs(cross[np.triu_indices(k, 1)]).max() * math.sqrt(n)) * k * (k - 1) if k > 1 else 1.0
    return min(2 * min(spread, 1 - spread), centre, off)


def test_sampled_paths_follow_the_states_given_the_data_and_filtered_ones_do_not():
    m = random_system(2, 2, seed=6)
    model = StateSpace.from_matrices(m)
    x = gappy(np.random.default_rng(0), (5, 6), 2)
    paths_drawn = model.sample_paths(x, 4000, seed=1)
    for part, drawn in zip(x, paths_drawn.split(), strict=True):
        mz, vz = conditional(m, part)
        drawn = drawn.transpose(0, 1).reshape(4000, -1).numpy()
        assert whitened_p(drawn, mz, vz) > ALPHA
        assert whitened_p(mz + 1.05 * (drawn - mz), mz, vz) < ALPHA  # a wrong temperature
        middle, _ = conditional(m, part, upto=3)
        assert whitened_p(drawn - mz + middle, mz, vz) < ALPHA  # states that do not know what comes later


@pytest.mark.parametrize("name", ["free", "one column", "inputs"])
def test_samples_follow_the_dense_normal_and_a_wrong_parameter_is_caught(name):
    m = SYSTEMS[name]
    model = StateSpace.from_matrices(m)
    k = m.control.shape[1]
    u = np.random.default_rng(3).normal(size=(6, k)) if k else None
    draws = model.sample(4000, given=[u], seed=2) if k else model.sample(4000, length=6, seed=2)
    draws = np.stack(draws).reshape(4000, -1)
    _, _, mx, vx, _ = dense(m, 6, u)
    assert whitened_p(draws, mx, vx) > ALPHA
    assert whitened_p(draws, mx, 1.1 * vx) < ALPHA
    slower = m._replace(transition=0.7 * m.transition)
    assert whitened_p(draws, *dense(slower, 6, u)[2:4]) < ALPHA


def test_forecast_draws_follow_the_forecast():
    m = SYSTEMS["free"]
    x = gappy(np.random.default_rng(1), (8, 5), 2)
    ahead = StateSpace.from_matrices(m).forecast(x, 3)
    draws = ahead.sample(3000, seed=4)
    assert draws.shape == (3000, 2, 3, 2)
    for i in range(2):
        for t in range(3):
            mean, cov = ahead.mean[i, t].numpy(), ahead.covariance[i, t].numpy()
            assert whitened_p(draws[:, i, t].numpy(), mean, cov) > ALPHA
            assert whitened_p(draws[:, i, t].numpy(), mean, 0.85 * cov) < ALPHA


def test_one_condition_gives_n_draws_of_its_own_length():
    model = StateSpace.from_matrices(SYSTEMS["inputs"])
    draws = model.sample(2, given=[np.ones((3, 2)), np.ones((5, 2))], seed=0)
    assert [len(part) for part in draws] == [3, 3, 5, 5]
    with pytest.raises(ParameterError, match="length=4"):
        model.sample(2, given=[np.ones((3, 2))], length=4)


# The shortcut


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", ["free", "one column", "inputs", "singular"])
def test_the_steady_shortcut_gives_the_numbers_of_the_plain_recursion(monkeypatch, name, gaps):
    m, rng = SYSTEMS[name], np.random.default_rng(0)
    x = rng.normal(size=(700, len(m.offset)))
    if gaps:
        x[[90, 400, 401]] = np.nan
        x[555, 0] = np.nan
    k = m.control.shape[1]
    u = [rng.normal(size=(700, k))] if k else None
    model = StateSpace.from_matrices(m)
    batch = model._made(model.event.check([x]).x, None if u is None else model.context.check(u).x)[0]
    assert sum(b - a for a, b in kalman.filtered(m, batch).steady) > 300  # the shortcut is taken

    def answers():
        lp, states = model.log_prob_steps([x], given=u), model.smooth([x], given=u)
        return lp.nats, states.means.values, states.covariances.values, states.lagged.values

    quick = answers()
    monkeypatch.setattr(kalman, "_has_settled", lambda *_: False)
    assert not kalman.filtered(m, batch).steady
    for fast, slow in zip(quick, answers(), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-12)


def test_a_covariance_that_never_settles_is_not_taken_for_settled():
    still = random_system(1, 1)._replace(transition=torch.eye(1).double(), state_noise=torch.zeros(1, 1).double())
    x = np.random.default_rng(0).normal(size=300)
    model = StateSpace.from_matrices(still, Series())
    batch = model._made(model.event.check([x]).x, None)[0]
    assert not kalman.filtered(still, batch).steady
    assert model.log_prob([x]).nats[0] == pytest.approx(dense_log_prob(still, x[:, None]), rel=1e-10)


def test_the_scan_is_the_loop():
    generator = torch.Generator().manual_seed(0)
    f = 0.6 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    g = torch.randn(77, 4, 3, generator=generator, dtype=torch.float64)
    h = start = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    loop = [h := h @ f.T + push for push in g]
    torch.testing.assert_close(kalman.scan(f, g, start), torch.stack(loop), rtol=1e-12, atol=1e-12)
    assert len(kalman.scan(f, g[:0], start)) == 0


def test_lengths_that_differ_wildly_cost_no_padding():
    rng = np.random.default_rng(0)
    x = [rng.normal(size=3000), *(rng.normal(size=1 + i % 5) for i in range(300))]
    model = StateSpace.from_matrices(random_system(2, 1), Series())
    made = model._made(model.event.check(x).x, None)
    assert sum(batch.rows.numel() for batch in made) < 2 * sum(map(len, x))
    alone = np.concatenate([model.log_prob([part]).nats for part in x[:20]])
    np.testing.assert_allclose(model.log_prob(x).nats[:20], alone, rtol=1e-12)


# Closed forms


def test_the_steady_gain_of_the_local_level_is_the_textbooks():
    q, r = 0.3, 2.0
    level = random_system(1, 1)._replace(
        transition=tensor([[1.0]]), emission=tensor([[1.0]]), state_noise=tensor([[q]]), noise=tensor([[r]])
    )
    model = StateSpace.from_matrices(level, Series())
    ahead = model.forecast([np.zeros(400)], 1)
    p = (q + math.sqrt(q * q + 4 * q * r)) / 2  # Harvey (1989), section 3.3.4
    assert float(ahead.variance) == pytest.approx(p + r, rel=1e-12)


def test_the_local_level_of_the_nile_has_the_published_variances():
    model = StateSpace(Series(), structure="level").fit([NILE], seed=0)
    m = model.matrices()
    assert float(m.noise) == pytest.approx(15099, rel=0.01)  # Durbin and Koopman (2012), section 2.10
    assert float(m.state_noise) == pytest.approx(1469, rel=0.02)
    assert model.log_likelihood == pytest.approx(float(model.log_prob([NILE]).nats[0]), abs=1e-9)
    assert (model.n_params, model.n_rows) == (3, 100)
    assert model.bic() == pytest.approx(3 * math.log(100) - 2 * model.log_likelihood)
    assert model.aic() == pytest.approx(6 - 2 * model.log_likelihood)


# Fits


def simulated(name, seed=0, n=6, gaps=True, d=2, length=25):
    """Data of a random system, an event and inputs for a structure."""
    rng = np.random.default_rng(seed)
    m = random_system(2, d, seed=seed)
    x = [np.array(part) for part in StateSpace.from_matrices(m).sample(n, length=length, seed=seed)]
    if gaps:
        for part in x[::2]:
            part[rng.random(part.shape) < 0.2] = np.nan
            part[3:5] = np.nan
    return x


def prepared(structure, x, inputs=None, **options):
    """A model with its units taken, and the data of a fit."""
    model = StateSpace(Series(x[0].shape[1:]), structure=structure, inputs=2 if inputs else 0, **options)
    ragged = model.event.check(x).x
    given = model.context.check(inputs).x if inputs else None
    values = ragged.values.reshape(len(ragged.values), -1)
    model.parts.measure(values, None if given is None else given.values, 0.0, len(ragged))
    standard, u = model._standard(ragged, given)
    return model, em.Sequences.of(standard, u, ragged.lengths, 0.0)


CASES = [(s, inputs) for s in STRUCTURES for inputs in (False, True)]


@pytest.mark.parametrize(("structure", "with_inputs"), CASES)
def test_em_never_goes_down_on_data_with_gaps(structure, with_inputs):
    x = simulated(structure)
    u = [np.random.default_rng(i).normal(size=(len(part), 2)) for i, part in enumerate(x)] if with_inputs else None
    model, data = prepared(structure, x, u)
    system = fitting.start(model.shape, data, 0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, history, _ = fitting.em(system, data, model.shape, 1e-8, False, 25, -1.0, lambda _: None)
    assert len(history) == 26
    assert min(np.diff(history)) >= 0
    assert history[-1] > history[0] + 0.5


def walks(n=12):
    """Random walks of two columns seen through noise, with gaps; none of the variances near zero."""
    rng = np.random.default_rng(2)
    x = [rng.normal(size=(12, 2)).cumsum(0) + rng.normal(size=2) * 2 + 0.7 * rng.normal(size=(12, 2)) for _ in range(n)]
    for part in x[::2]:
        part[rng.random(part.shape) < 0.15] = np.nan
    return x


@pytest.mark.parametrize(("structure", "with_inputs"), [("free", False), ("ar", True), ("level", True)])
def test_where_em_rests_the_gradient_is_zero(structure, with_inputs):
    x = walks() if structure == "level" else simulated(structure, seed=1, n=12, length=12)
    u = [np.random.default_rng(i).normal(size=(len(part), 2)) for i, part in enumerate(x)] if with_inputs else None
    model, data = prepared(structure, x, u)
    system = fitting.start(model.shape, data, 0, torch.Generator().manual_seed(0))
    sizes = []
    for steps in (3, 250):
        with torch.no_grad():
            system, _, _ = fitting.em(system, data, model.shape, 1e-8, False, steps, 0.0, lambda _: None)
        model.parts.write(system)
        model.zero_grad()
        (model._scores(data.made).sum() / len(data.lengths)).backward()
        sizes.append(max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None))
    assert sizes[0] > 0.05
    assert sizes[1] < 0.02 * sizes[0]


def test_a_broken_m_step_is_refused(monkeypatch):
    def broken(*args, **kwargs):
        return em.maximise(*args, **kwargs)._replace(start_mean=tensor([30.0, -30.0]))

    monkeypatch.setattr(fitting, "maximise", broken)
    model = StateSpace(Series((2,)), structure="level")
    fresh = copy.deepcopy(model.state_dict())
    with pytest.raises(FitError, match="went down"):
        model.fit(simulated("level"), seed=0)
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("structure", ["free", "level", "ar"])
def test_em_and_gradient_find_the_same_optimum(structure):
    x = walks() if structure == "level" else simulated(structure, seed=2, n=10, gaps=False)
    x = [part[:, 0] for part in x]
    options = {"latent_dim": 1} if structure == "free" else {}
    fits = [
        StateSpace(Series(), structure=structure, **options).fit(x, seed=0, method=method, tol=1e-7, max_iter=300)
        for method in ("em", "gradient")
    ]
    assert fits[0].log_likelihood == pytest.approx(fits[1].log_likelihood, abs=0.02)
    for fit in fits:
        assert min(np.diff(fit.report.objective)) >= 0
        assert fit.log_likelihood == pytest.approx(fit.log_prob(x).sum().value, rel=1e-9)


def gradient_pairs(model, objective, step=1e-6):
    """Analytic and central-difference slopes along random directions."""
    rng = torch.Generator().manual_seed(0)
    parameters = [
        p for name, p in model.named_parameters() if "start_factor" not in name or not model.parts.spread_known
    ]
    grads = torch.autograd.grad(objective(), parameters)
    for _ in range(3):
        ways = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in parameters]
        exact = sum(float((g * w).sum()) for g, w in zip(grads, ways, strict=True))
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                for p, w in zip(parameters, ways, strict=True):
                    p.add_(sign * step * w)
                values.append(float(objective()))
        yield exact, (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("case", ["gaps", "steady", "masses"])
def test_the_gradient_is_that_of_finite_differences(case):
    rng = np.random.default_rng(0)
    if case == "masses":
        x, model = [rng.poisson(4, 30).astype(float), [0.0, 9, 0]], StateSpace(Series(support="count"), 2)
    elif case == "gaps":
        x, model = simulated("free", n=3), StateSpace(Series((2,)), 2)
    else:
        x, model = [rng.normal(size=(300, 2))], StateSpace(Series((2,)), 2)
    model.fit(x, seed=0, max_iter=3, restarts=1)
    made = model._made(model.event.check(x).x, None)
    if case == "steady":
        assert kalman.filtered(model.parts.system(), made[0]).steady
    for exact, measured in gradient_pairs(model, lambda: model._scores(made).sum()):
        assert exact == pytest.approx(measured, rel=2e-6, abs=1e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_units_change_the_density_by_their_logarithm_only(structure):
    x = simulated(structure, seed=3, n=2, length=9)
    seen = np.array([(~np.isnan(part)).sum() for part in x])

    def found(factor):
        scaled = [factor * part for part in x]
        model = StateSpace(Series((2,)), structure=structure).fit(scaled, seed=0, max_iter=8, restarts=1)
        return model.log_prob(scaled).nats + seen * math.log(factor), model.matrices().noise / factor**2

    nats, noise = found(1.0)
    for factor in (1e-12, 1e12):
        scaled, scaled_noise = found(factor)
        np.testing.assert_allclose(scaled, nats, rtol=1e-6)
        np.testing.assert_allclose(scaled_noise, noise, rtol=1e-3)


def test_a_large_offset_does_not_drown_the_noise():
    x = [NILE[:50], NILE[50:]]
    near = StateSpace(structure="level").fit(x, seed=0, max_iter=5)
    far = StateSpace(structure="level").fit([part + 1e9 for part in x], seed=0, max_iter=5)
    assert far.log_likelihood == pytest.approx(near.log_likelihood, abs=1e-3)


def test_a_seasonal_trend_foresees_the_next_season():
    t = np.arange(60)
    rng = np.random.default_rng(0)
    x = 0.5 * t + np.array([5, -2, 0, -3])[t % 4] + 0.3 * rng.normal(size=60)
    model = StateSpace(structure="trend", seasonal=4).fit([x], seed=0, restarts=2)
    assert model.state_names == ("level", "slope", "seasonal", "seasonal.lag1", "seasonal.lag2")
    new = np.arange(60, 68)
    wanted = 0.5 * new + np.array([5, -2, 0, -3])[new % 4]
    ahead = model.forecast([x], 8)
    assert np.abs(ahead.mean[0].numpy() - wanted).max() < 1.0
    plain = StateSpace(structure="trend").fit([x], seed=0, restarts=1).forecast([x], 8)
    assert np.abs(plain.mean[0].numpy() - wanted).max() > 2.0
    slope = model.smooth([x]).means.values[:, 1]
    assert float(slope.mean()) == pytest.approx(0.5, abs=0.1)


def test_covariates_explain_what_they_moved():
    rng = np.random.default_rng(0)
    u = [rng.normal(size=(40, 1)) * 1e3 for _ in range(3)]
    x = [np.cumsum(0.1 * rng.normal(size=40)) + 0.002 * part[:, 0] + 0.1 * rng.normal(size=40) for part in u]
    model = StateSpace(structure="level", inputs=1).fit(x, given=u, seed=0)
    assert float(model.matrices().feedthrough) == pytest.approx(0.002, rel=0.05)
    with pytest.raises(ParameterError, match="without given"):
        model.log_prob(x)
    with pytest.raises(ParameterError, match="future"):
        model.forecast(x, 2, given=u)
    with pytest.raises(ShapeError, match="future"):
        model.forecast(x, 2, given=u, future=[np.zeros((3, 1))] * 3)
    assert model.forecast(x, 2, given=u, future=[np.zeros((2, 1))] * 3).mean.shape == (3, 2)


def test_several_columns_have_correlated_noises_and_names_of_their_own():
    model = StateSpace(Series((2,)), structure="trend").fit(simulated("trend"), seed=0, max_iter=9, restarts=1)
    assert model.state_names == ("level[0]", "level[1]", "slope[0]", "slope[1]")
    q = model.matrices().state_noise
    assert abs(float(q[0, 1])) > 0
    assert float(q[:2, 2:].abs().max()) == 0
    assert model.n_params == 3 + 3 + 3 + 4 + 10


def test_free_parameters_do_not_count_a_change_of_basis():
    x = simulated("free", n=4)
    many = StateSpace(Series((2,)), 3).fit(x, seed=0, max_iter=2, restarts=1)
    assert many.n_params == 9 + 6 + 6 + 2 + 3 + 3 + 6 - 9
    one = StateSpace(Series((2,)), 3).fit(x[:1], seed=0, max_iter=2, restarts=1)
    assert one.n_params == 9 + 6 + 6 + 2 + 3 + 3 - 3
    assert any("one sequence" in note for note in one.report.notes)


# Grids


GRIDS = {
    "levels": (Series(levels=3), [np.array([0, 1, 2, 2, 1, 2]), np.array([0, 0, 1])]),
    "count": (Series(support="count"), [np.array([2, 3, 0, 5, 4, 4]), np.array([1, 1, 0])]),
    "rounded": (Series(resolution=0.5), [np.array([0.5, 1.0, -0.5, 2.0]), np.array([0.0, 0.5])]),
}


def grid_model(name, **options):
    event, x = GRIDS[name]
    return StateSpace(event, **{"structure": "level", **options}).fit(x, seed=0)


def values_of(name):
    return {"levels": np.arange(3), "count": np.arange(60), "rounded": np.arange(-120, 121) * 0.5}[name]


@pytest.mark.parametrize("name", GRIDS)
def test_masses_of_all_short_sequences_sum_to_one(name):
    model = grid_model(name)
    pairs = [np.array(pair) for pair in itertools.product(values_of(name), repeat=2)]
    assert np.exp(model.log_prob(pairs).nats).sum() == pytest.approx(1, abs=1e-8)
    threes = [np.array([1, 1, v]) for v in values_of(name)]
    steps = model.log_prob_steps(threes).nats.reshape(-1, 3)[:, 2]
    assert np.exp(steps).sum() == pytest.approx(1, abs=1e-8)


def test_samples_follow_the_masses_and_a_wrong_scale_is_caught():
    model = grid_model("levels")
    draws = np.stack(model.sample(20_000, length=3, seed=0))
    counts = np.bincount(np.ravel_multi_index(draws.T, (3, 3, 3)), minlength=27)
    outcomes = [np.array(o) for o in itertools.product(range(3), repeat=3)]

    def p_value(scored):
        p = np.exp(scored.log_prob(outcomes).nats)
        return stats.chisquare(counts, 20_000 * p / p.sum()).pvalue

    assert p_value(model) > ALPHA
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.parts.start_mean.add_(0.2)
    assert p_value(wrong) < ALPHA


@pytest.mark.parametrize("name", GRIDS)
def test_fits_on_a_grid_raise_the_masses(name):
    model = grid_model(name)
    assert model.report.objective[-1] > model.report.objective[0]
    assert min(np.diff(model.report.objective)) >= 0
    x = GRIDS[name][1]
    assert model.log_likelihood == pytest.approx(model.log_prob(x).sum().value, rel=1e-9)
    assert "cell masses" in model.log_prob(x).by


@pytest.mark.parametrize("name", GRIDS)
def test_the_pyro_program_scores_masses(name):
    model, x = grid_model(name), GRIDS[name][1]
    trace = poutine.trace(model.model).get_trace(model.event.check(x).x)
    assert float(trace.log_prob_sum().detach()) == pytest.approx(model.log_prob(x).sum().value, rel=1e-10)


def test_rows_that_go_on_after_a_gap_are_estimates_on_a_grid():
    model = grid_model("count")
    lp = model.log_prob([[1, 2, math.nan], [1, math.nan, 2], [3, 1]])
    assert list(lp.kinds) == [Kind.EXACT, Kind.ESTIMATE, Kind.EXACT]
    assert list(model.log_prob_steps([[1, math.nan, 2]]).kinds) == [Kind.EXACT, Kind.EXACT, Kind.ESTIMATE]
    np.testing.assert_allclose(lp.nats[0], model.log_prob([[1, 2]]).nats[0], rtol=1e-12)


def test_a_forecast_on_a_grid_is_a_mass_and_draws_recorded_values():
    model, x = grid_model("count"), GRIDS["count"][1]
    ahead = model.forecast(x, 2)
    joint = model.log_prob([np.append(part, [2, 4]) for part in x]).nats - model.log_prob(x).nats
    np.testing.assert_allclose(ahead.log_prob([[2, 4], [2, 4]]).nats, joint, rtol=1e-9)
    draws = ahead.sample(2000, seed=0)
    assert float(draws.min()) >= 0
    assert bool((draws == draws.round()).all())
    p = np.exp(model.forecast(x, 1).log_prob([[0], [0]]).nats)
    for share, expected in zip((draws[:, :, 0] == 0).double().mean(0), p, strict=True):
        assert stats.binomtest(int(share * 2000), 2000, expected).pvalue > ALPHA
        assert stats.binomtest(int(share * 2000), 2000, min(1.0, expected * 2)).pvalue < ALPHA
    assert bool((ahead.quantiles(0.9) == ahead.quantiles(0.9).round()).all())
    assert isinstance(model.impute([np.array([1.0, math.nan, 3.0])])[0][1], np.int64 | np.float64)


def test_far_counts_have_finite_masses():
    nats = grid_model("count").log_prob([[10**9], [0, 10**6, 0]]).nats
    assert np.isfinite(nats).all()
    assert nats.max() < -1e3


# Corners


def test_short_constant_and_empty_looking_data_fit():
    for structure in STRUCTURES:
        for x in ([np.array([1.0])], [np.full(9, 5.0)], [np.zeros(6), np.zeros(3)], [np.array([1.0]), np.array([3.0])]):
            model = StateSpace(structure=structure).fit(x, seed=0, max_iter=4, restarts=1)
            assert np.isfinite(model.log_prob(x).nats).all()
            assert np.isfinite(np.concatenate(model.sample(3, length=4, seed=0))).all()
    blank = np.full((5, 2), np.nan)
    model = StateSpace(Series((2,))).fit([blank, np.random.default_rng(0).normal(size=(8, 2))], seed=0)
    assert model.log_prob([blank]).nats[0] == 0
    assert np.isfinite(model.impute([blank])[0]).all()


def test_an_outlier_scores_finitely():
    model = StateSpace(structure="level").fit([NILE], seed=0, max_iter=2, restarts=1)
    assert np.isfinite(model.log_prob([np.append(NILE, 1e12)]).nats).all()


def test_a_budget_is_turned_into_iterations():
    model = StateSpace(Series((2,)), 2).fit(simulated("free"), seed=0, budget=0.5)
    assert "budget 0.5 s" in model.report.notes[0]
    with pytest.raises(ParameterError, match="budget"):
        StateSpace().fit([NILE], seed=0, budget=-1)


def test_known_matrices_are_checked():
    m = random_system()
    with pytest.raises(ShapeError, match="transition has shape"):
        StateSpace.from_matrices(m._replace(emission=m.emission[:, :2]))
    with pytest.raises(StructureError, match="noise is no covariance"):
        StateSpace.from_matrices(m._replace(noise=-m.noise))
    with pytest.raises(ShapeError, match="2 columns"):
        StateSpace.from_matrices(m, Series())
    silent = m._replace(noise=0 * m.noise, state_noise=0 * m.state_noise, start_cov=0 * m.start_cov)
    with pytest.raises(StructureError, match="singular"):
        StateSpace.from_matrices(silent).log_prob([np.zeros((4, 2))])
    back = StateSpace.from_matrices(m).matrices()
    for ours, theirs in zip(back, m, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"structure": "lvel"}, "level"),
        ({"latent_dim": 0}, "latent_dim=0"),
        ({"latent_dim": 2, "structure": "level"}, "latent_dim=2"),
        ({"seasonal": 1, "structure": "level"}, "seasonal=1"),
        ({"seasonal": 4}, "seasonal=4"),
        ({"inputs": -1}, "inputs=-1"),
        ({"floor": 2.0}, "floor=2.0"),
    ],
)
def test_wrong_arguments_are_named(options, named):
    with pytest.raises(ParameterError, match=named):
        StateSpace(Series(), **options)


@pytest.mark.parametrize("options", [{"method": "grad"}, {"restarts": 0}, {"max_iter": 0}, {"tol": -1.0}])
def test_wrong_options_of_fit_are_named(options):
    with pytest.raises(ParameterError, match=next(iter(options))):
        StateSpace().fit([NILE], seed=0, **options)


def test_questions_with_wrong_numbers_are_refused():
    model = StateSpace(structure="level").fit([NILE], seed=0, max_iter=2)
    for ask in (lambda: model.forecast([NILE], 0), lambda: model.sample_paths([NILE], 0),
                lambda: model.sample(2, length=0), lambda: model.forecast([NILE], 2, future=[[1.0]]),
                lambda: model.forecast([NILE]).quantiles(1.0), lambda: model.forecast([NILE]).sample(0)):  # fmt: skip
        with pytest.raises(ParameterError):
            ask()
    with pytest.raises(ShapeError, match="2 steps"):
        model.forecast([NILE], 2).log_prob([[1.0]])
    with pytest.raises(ProbgenError):
        StateSpace().smooth([NILE])
    with pytest.raises(DataError):
        model.smooth([np.array([math.inf])])
    assert "steps=2" in repr(model.forecast([NILE], 2))


def test_events_that_do_not_suit_say_why():
    assert "Series" in StateSpace.suits(Array((2,)))
    assert "logarithms" in StateSpace.suits(Series(support="positive"))
    assert "one column" in StateSpace.suits(Series((2,), support="count"))
    assert StateSpace.suits(Series((1,), levels=4)) is None
    assert StateSpace.for_event(Series()).structure == "level"
    assert StateSpace.for_event(Series((3,))).structure == "free"
    assert len(StateSpace.for_event(Series((3,))).state_names) == 2
    assert StateSpace.for_event(Series(), latent_dim=3).structure == "free"


def test_batches_keep_complete_sequences_apart_from_gappy_ones():
    x = Ragged(tensor([1.0, 2, 3, math.nan, 5])[:, None], torch.tensor([2, 3]))
    made = kalman.batches(x.values, x.lengths, torch.zeros(5, 0))
    assert [batch.seen is None for batch in made] == [True, False]
    back = kalman.unpad(made, [batch.rows.double() for batch in made])
    assert back.tolist() == [0, 1, 2, 3, 4]


def test_sequences_of_one_length_share_their_smoothed_covariances():
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(k, 2)) for k in (5, 9, 5, 9, 9, 7)]
    model = StateSpace.from_matrices(SYSTEMS["free"])
    batch = model._made(model.event.check(x).x, None)[0]
    assert kalman.smoothed(SYSTEMS["free"], batch, kalman.filtered(SYSTEMS["free"], batch)).covs.shape[1] == 3
    together, alone = model.smooth(x), [model.smooth([part]) for part in x]
    for name in ("means", "covariances", "lagged"):
        expected = torch.cat([getattr(one, name).values for one in alone])
        torch.testing.assert_close(getattr(together, name).values, expected, rtol=1e-12, atol=1e-12)


def test_a_shared_gap_keeps_one_covariance():
    x = np.random.default_rng(0).normal(size=(3, 6, 2))
    x[:, 2, 1] = np.nan
    model = StateSpace.from_matrices(SYSTEMS["free"])
    batch = model._made(model.event.check(list(x)).x, None)[0]
    assert kalman.filtered(SYSTEMS["free"], batch).covs.shape[1] == 1
    x[0, 3, 0] = np.nan
    batch = model._made(model.event.check(list(x)).x, None)[0]
    assert kalman.filtered(SYSTEMS["free"], batch).covs.shape[1] == 3


def test_no_question_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = StateSpace(structure="trend").fit([NILE], seed=0, max_iter=3, restarts=1)
        model.forecast([NILE], 3).quantiles([0.1])
        assert isinstance(paths.Scale(tensor([0.0]), tensor([1.0])).inside(tensor([2.0])), torch.Tensor)


@systems
def test_the_differentiable_filter_and_the_quick_one_agree(name):
    model, _, x, u = known(name)
    made = model._made(model.event.check(x).x, None if u is None else model.context.check(u).x)
    slow = [kalman.filtered(model.parts.system(), batch) for batch in made]
    quick = [kalman.filtered(model.parts.found(), batch) for batch in made]
    for ours, theirs in zip(slow, quick, strict=True):
        assert ours.means.requires_grad
        assert not theirs.means.requires_grad
        for a, b in zip(ours[:5], theirs[:5], strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=1e-12, atol=1e-12)
