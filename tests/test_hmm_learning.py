"""How hidden Markov models learn: published optima, numerical ones, and what may not happen on the way."""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from enumerated import (
    cells,
    fitted,
    probabilities,
    steps_of_two,
)
from scipy import stats

import probgen as pg
from probgen import emissions as em
from probgen import transitions as tr
from probgen.errors import (
    FitError,
    NotFittedError,
    ParameterError,
    ProbgenError,
)
from probgen.models.hmm import learning


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def quakes():
    return pg.datasets.load("earthquakes").x


# Learning


@pytest.mark.parametrize(("states", "nats"), [(1, 391.9189), (2, 342.3183), (3, 329.4603), (4, 327.8316)])
def test_stationary_fits_of_the_earthquakes_are_as_published(quakes, states, nats):
    m = pg.HMM(states=states, emission=em.Poisson(), transitions=tr.Markov("stationary"))
    m.fit(quakes, seed=1, restarts=1, tol=1e-8)
    assert -m.log_likelihood == pytest.approx(nats, abs=1e-4)
    assert m.n_params == states**2
    assert m.aic() == pytest.approx(2 * nats + 2 * m.n_params, abs=2e-4)
    assert m.bic() == pytest.approx(2 * nats + m.n_params * math.log(107), abs=2e-4)


@pytest.mark.parametrize(("states", "nats"), [(2, 341.8787), (3, 328.5275)])
def test_free_fits_of_the_earthquakes_are_as_published(quakes, states, nats):
    m = pg.HMM(states=states, emission=em.Poisson()).fit(quakes, seed=0, restarts=3, tol=1e-9)
    assert -m.log_likelihood == pytest.approx(nats, abs=1e-4)
    assert m.n_params == states**2 + states - 1


def test_restarts_find_what_a_single_start_misses(quakes):
    """Four states: a search reaches 326.2850, below the local optimum 326.6749 that stands in the literature.

    About one start in 250 comes out there; most end at 326.4106. Seed 13 has it among its first starts.
    """
    m = pg.HMM(states=4, emission=em.Poisson()).fit(quakes, seed=13, restarts=6, tol=1e-5)
    optima = np.array(m.report.optima)
    assert len(optima) == 6
    assert (np.diff(optima) <= 0).all()
    assert optima[0] == m.report.objective[-1]
    assert (optima[0] - optima[1]) * 107 > 0.1
    m.fit(quakes, start="current", tol=1e-10, max_iter=2000)
    assert -m.log_likelihood <= 326.2851


def slope(model, x):
    """The gradient of log p(x) in each raw parameter; of logits it is that on the simplex."""
    model.zero_grad()
    model.distribution(len(x)).log_prob(cells(x)[:, None]).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_em_ends_where_the_gradient_is_zero(quakes):
    m = pg.HMM(states=2, emission=em.Poisson()).fit(quakes, seed=0, restarts=1, tol=0.0, max_iter=3000)
    assert all(g.abs().max() < 1e-5 for g in slope(m, quakes[0]).values())
    early = pg.HMM(states=2, emission=em.Poisson()).fit(quakes, seed=0, restarts=1, max_iter=3)
    assert max(g.abs().max() for g in slope(early, quakes[0]).values()) > 1e-2


@pytest.mark.parametrize("transitions", [None, tr.Markov("stationary"), tr.Durations(phases=2)], ids=repr)
def test_twenty_iterations_are_ten_and_ten(quakes, transitions):
    def build():
        return pg.HMM(states=2, emission=em.Poisson(), transitions=transitions)

    once = build().fit(quakes, seed=0, restarts=1, max_iter=20, tol=0.0)
    twice = build().fit(quakes, seed=0, restarts=1, max_iter=10, tol=0.0)
    twice.fit(quakes, start="current", max_iter=10, tol=0.0)
    assert all(map(torch.equal, once.parameters(), twice.parameters()))
    assert once.report.objective[10:] == twice.report.objective


def test_going_on_with_a_budget_goes_on(quakes):
    m = pg.HMM(states=2, emission=em.Poisson()).fit(quakes, seed=0, restarts=1)
    reached = m.report.objective[-1]
    m.fit(quakes, start="current", budget=5.0, max_iter=3, tol=0.0)
    assert m.report.objective[0] >= reached - 1e-12


def test_going_on_needs_somewhere_to_go_on_from(quakes):
    with pytest.raises((NotFittedError, ParameterError)):
        pg.HMM(states=2, emission=em.Poisson()).fit(quakes, start="current")


@pytest.mark.parametrize("budget", [0, -1.0, math.nan, math.inf, "long", True])
def test_a_budget_is_a_number_of_seconds(quakes, budget):
    with pytest.raises(ParameterError):
        pg.HMM(states=2, emission=em.Poisson()).fit(quakes, budget=budget, max_iter=2)


def test_a_budget_is_recorded_as_steps(quakes):
    m = pg.HMM(states=2, emission=em.Poisson()).fit(quakes, seed=0, budget=0.5, max_iter=20)
    assert "budget 0.5 s" in m.report.notes[0]
    assert len(m.report.optima) <= 5


def test_a_fall_of_the_objective_raises(quakes, monkeypatch):
    """With the parameters of the last good state kept."""
    m = pg.HMM(states=2, emission=em.Poisson()).fit(quakes, seed=0, restarts=1)
    kept = copy.deepcopy(m.state_dict())
    honest = em.Poisson.maximise
    calls = []

    def spoiled(self, statistics):
        calls.append(1)
        found = honest(self, statistics)
        if len(calls) == 6:
            with torch.no_grad():
                self.log_rate.add_(1.0)
        return found

    monkeypatch.setattr(em.Poisson, "maximise", spoiled)
    with pytest.raises(FitError, match="went down") as caught:
        m.fit(quakes, seed=0, restarts=1)
    assert caught.value.step >= 1
    assert all(torch.equal(kept[name], value) for name, value in m.state_dict().items())


def test_empty_states_keep_their_row_and_are_reported():
    z, x = steps_of_two()
    m = pg.HMM(states=3, emission=em.Normal()).fit(x, seed=0, restarts=1, labels=[z])
    assert any("without data: [2]" in note for note in m.report.notes)
    row = m.parameters_by_name()["transition"][2]
    assert row.sum() == pytest.approx(1)
    assert (row > 0).all()
    assert math.isfinite(m.log_prob(x).nats[0])


def test_tied_states_are_reported_by_their_own_numbers():
    """An emission without data is not the state of that number."""
    z, x = steps_of_two()
    m = pg.HMM(states=4, emission=em.Normal(), tie=(0, 0, 1, 1)).fit(x, seed=0, restarts=1, labels=[z])
    assert m.report.notes[0] == "states without data: [2, 3]"


def test_a_state_that_is_never_visited_is_reported_though_its_emission_has_data():
    z, x = steps_of_two()
    m = pg.HMM(states=3, emission=em.Normal(), tie=(0, 0, 1)).fit(x, seed=0, restarts=1, labels=[2 * z])
    assert m.report.notes[0] == "states without data: [1]"
    all_seen = pg.HMM(states=2, emission=em.Normal()).fit(x, seed=0, restarts=1)
    assert all_seen.report.notes == ()


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.filterwarnings("ignore::probgen.model.TiesWarning")
def test_variances_stay_above_a_floor_relative_to_the_data(scale):
    x = (
        scale
        * np.r_[np.random.default_rng(0).normal(0, 1, 40), np.full(20, 3.0), np.random.default_rng(1).normal(0, 1, 40)]
    )
    m = pg.HMM(states=2, emission=em.Normal(floor=1e-4)).fit(x, seed=0, restarts=2)
    least = m.parameters_by_name()["scale"].min()
    assert least == pytest.approx(1e-2 * x.std(), rel=1e-6)


def test_a_fit_worse_than_no_sequence_at_all_warns(monkeypatch):
    _, x = steps_of_two()
    t = tr.Durations("categorical", longest=1)  # a state never lasts, in data where all do
    pg.HMM(states=2, emission=em.Normal(), transitions=t).fit(x, seed=0, restarts=1)  # learns to look alike: no warning
    monkeypatch.setattr(learning, "_maximise", lambda *a: [])  # and here it learns nothing
    with pytest.warns(learning.WorseThanIndependent, match="one emission for all steps"):
        pg.HMM(states=2, emission=em.Normal(), transitions=t).fit(x, seed=0, restarts=1)


@pytest.mark.parametrize("transitions", [None, tr.Markov("stationary"), tr.Durations(phases=2)], ids=repr)
def test_the_gradient_reaches_where_em_does(quakes, transitions):
    def build():
        return pg.HMM(states=2, emission=em.Poisson(), transitions=transitions)

    by_em = build().fit(quakes, seed=0, restarts=1, tol=1e-12, max_iter=2000)
    by_gradient = build().fit(quakes, seed=0, restarts=1, tol=1e-10, method="gradient")
    assert by_gradient.log_likelihood == pytest.approx(by_em.log_likelihood, abs=1e-4)
    went_on = by_em.fit(quakes, method="gradient", start="current")
    assert went_on.log_likelihood >= by_em.log_likelihood - 1e-9


def test_steps_of_the_gradient_are_quasi_newton_iterations(quakes):
    m = pg.HMM(states=2, emission=em.Poisson())
    m.fit(quakes, seed=0, restarts=1, method="gradient", max_iter=7, tol=0.0)
    assert (m.report.steps, m.report.stopped, len(m.report.objective)) == (7, "steps", 8)
    climbed = np.array(m.report.objective)
    assert (np.diff(climbed) > 0).all()
    m.fit(quakes, start="current", method="gradient", max_iter=1, tol=0.0)
    assert m.report.steps == 1
    assert m.report.objective[0] == pytest.approx(climbed[-1], rel=1e-14)


def test_known_states_are_counted():
    z, x = steps_of_two()
    m = pg.HMM(states=2, emission=em.Normal()).fit(x, seed=0, restarts=1, labels=[z])
    moves = np.zeros((2, 2))
    np.add.at(moves, (z[:-1], z[1:]), 1)
    np.testing.assert_allclose(m.parameters_by_name()["transition"], moves / moves.sum(1, keepdims=True), rtol=1e-10)
    np.testing.assert_allclose(m.parameters_by_name()["loc"].ravel(), [x[z == 0].mean(), x[z == 1].mean()], rtol=1e-10)
    np.testing.assert_allclose(m.parameters_by_name()["scale"].ravel(), [x[z == 0].std(), x[z == 1].std()], rtol=1e-8)


def test_criteria_of_a_labelled_fit_are_of_the_data_alone():
    """Else they would compare with those of other models by log p(x, z) against log p(x)."""
    z, x = steps_of_two(apart=1.0)
    m = pg.HMM(states=2, emission=em.Normal()).fit(x, seed=0, restarts=1, labels=[z])
    assert m.log_likelihood == pytest.approx(m.log_prob(x).nats[0].item(), rel=1e-12)
    assert m.report.objective[-1] * len(x) < m.log_likelihood - 1.0
    assert m.aic() == pytest.approx(2 * m.n_params - 2 * m.log_prob(x).nats[0].item())
    assert any("labels" in note for note in m.report.notes)


def test_steps_without_a_cell_are_no_observations_to_bic():
    _, x = steps_of_two(120)
    rows = np.c_[x, x + 1.0]
    rows[10:30, 1] = np.nan  # half a step is one
    gappy = np.insert(rows, [5, 50, 50, 90], np.nan, axis=0)
    m = pg.HMM(states=2, emission=em.Normal(2)).fit([gappy], seed=0, restarts=1, max_iter=5)
    assert m.bic() == pytest.approx(m.n_params * math.log(120) - 2 * m.log_likelihood)


def test_a_few_known_states_name_the_rest():
    z, x = steps_of_two()
    few = np.full(len(z), -1)
    few[[3, 40]] = [1, 0]  # the other way round than by mean
    m = pg.HMM(states=2, emission=em.Normal()).fit(x, seed=0, restarts=3, labels=[few])
    assert (m.decode(x)[0] == 1 - z).mean() > 0.95


@pytest.mark.parametrize(
    "labels",
    [[np.zeros(179)], [np.full(180, 2)], [np.full(180, 0.5)], [None], [np.full(180, "a")], np.zeros(180),
     (np.zeros(180), [180]), 5],
    ids=lambda v: str(v)[:24],
)  # fmt: skip
def test_labels_that_fit_nothing_are_refused(labels):
    _, x = steps_of_two()
    with pytest.raises(ProbgenError):
        pg.HMM(states=2, emission=em.Normal()).fit(x, seed=0, restarts=1, max_iter=1, labels=labels)


def test_labels_of_a_single_state_are_no_news():
    z, x = steps_of_two()
    m = pg.HMM(states=1, emission=em.Normal()).fit(x, seed=0, labels=[0 * z])
    assert m.log_likelihood == pytest.approx(stats.norm.logpdf(x, x.mean(), x.std()).sum(), rel=1e-10)


def test_labels_that_structure_forbids_are_named_as_impossible():
    z, x = steps_of_two()
    t = tr.Markov(allowed=tr.left_right(2))
    with pytest.raises(FitError, match="labels"):
        pg.HMM(states=2, emission=em.Normal(), transitions=t).fit(x, seed=0, labels=[z])


def test_parameters_by_name_are_copies():
    _, x = steps_of_two()
    m = pg.HMM(states=2, emission=em.Normal()).fit(x, seed=0, restarts=1)
    nats = m.log_prob(x).nats
    for value in m.parameters_by_name().values():
        value[...] = 0.5
    np.testing.assert_array_equal(m.log_prob(x).nats, nats)


# Structure


def test_learning_keeps_structural_zeros_fixed_starts_and_ties():
    _, x = steps_of_two()
    t = tr.Markov((1.0, 0.0, 0.0, 0.0), allowed=tr.cyclic(4))
    m = pg.HMM(states=4, emission=em.Normal(), transitions=t, tie=(0, 1, 0, 1)).fit(x, seed=0, restarts=2, max_iter=20)
    first, matrix = probabilities(m)
    assert first.tolist() == [1, 0, 0, 0]
    assert (matrix[~np.array(tr.cyclic(4))] == 0).all()
    assert m.parameters_by_name()["loc"].shape == (2, 1)
    assert m.n_params == 4 + 4


@pytest.mark.parametrize(
    "transitions",
    [tr.Durations(phases=2), tr.Durations("categorical", longest=40), tr.Factorial((2, 2)), tr.Markov("stationary"),
     tr.Markov(concentration=1.5, sticky=3.0), tr.Markov(allowed=tr.left_right(4))],
    ids=repr,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::probgen.models.hmm.learning.WorseThanIndependent")
def test_learning_is_monotone_in_every_structure(transitions):
    _, x = steps_of_two(120)
    m = pg.HMM(states=4, emission=em.Normal(), transitions=transitions)
    m.fit(x, seed=1, restarts=1, max_iter=15, tol=0.0)
    climbed = np.array(m.report.objective)
    assert (np.diff(climbed) >= -1e-9 * abs(climbed[1:])).all()
    assert climbed[-1] > climbed[0]
    total = m.log_prob(x).sum().value + float(m.transitions.penalty().detach())
    assert climbed[-1] * len(x) == pytest.approx(total, rel=1e-9)
    assert m.log_likelihood == pytest.approx(m.log_prob(x).sum().value, rel=1e-9)


def test_labels_with_durations_count_visits():
    """Moves between states are counted, and what never happened is learned as never."""
    z = np.array([0, 0, 1, 1, 2, 2] * 3)
    x = np.random.default_rng(0).normal(5.0 * z, 1.0)
    for t in (tr.Durations(phases=1), tr.Durations("categorical", longest=4)):
        m = pg.HMM(states=3, emission=em.Normal(), transitions=t).fit(x, seed=0, labels=[z], restarts=1)
        wanted = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
        np.testing.assert_allclose(m.transitions.natural()["transition"].detach(), wanted, atol=1e-12)


# Standard errors


def log_likelihood_in_natural(sequences, law, start):
    """log p in (p_01, p_10, emission parameters...) by a forward recursion of its own."""

    def value(theta):
        a, b, *rest = theta
        matrix = np.array([[1 - a, a], [b, 1 - b]])
        total = 0.0
        for x in sequences:
            first, rest_of = start(a, b, rest)
            state = first * law(x[0], rest_of)
            for v in x[1:]:
                total += math.log(state.sum())
                state = (state / state.sum()) @ matrix * law(v, rest_of)
            total += math.log(state.sum())
        return total

    return value


def numerical_errors(value, theta):
    """From second differences of the log-likelihood itself."""
    h = 1e-4 * np.maximum(abs(theta), 1e-2)
    n = len(theta)
    hessian = np.zeros((n, n))
    for i, j in itertools.product(range(n), repeat=2):
        e, f = np.eye(n)[i] * h, np.eye(n)[j] * h
        hessian[i, j] = value(theta + e + f) - value(theta + e - f) - value(theta - e + f) + value(theta - e - f)
        hessian[i, j] /= 4 * h[i] * h[j]
    return np.sqrt(np.diag(np.linalg.inv(-hessian)))


def stationary_of(a, b, rest):
    return np.array([b, a]) / (a + b), rest


def test_standard_errors_are_those_of_a_numerical_hessian(quakes):
    m = pg.HMM(states=2, emission=em.Poisson(), transitions=tr.Markov("stationary"))
    m.fit(quakes, seed=0, restarts=1, tol=0.0, max_iter=2000)
    p = m.parameters_by_name()
    theta = np.array([p["transition"][0, 1], p["transition"][1, 0], *p["rate"].ravel()])
    value = log_likelihood_in_natural(quakes, lambda v, rate: stats.poisson.pmf(v, np.array(rate)), stationary_of)
    assert value(theta) == pytest.approx(m.log_likelihood, rel=1e-9)
    wanted = numerical_errors(value, theta)
    found = m.standard_errors(quakes)
    got = np.array([found["transition"][0, 1], found["transition"][1, 0], *found["rate"].ravel()])
    np.testing.assert_allclose(got, wanted, rtol=2e-3)
    np.testing.assert_allclose(found["transition"][:, 0], found["transition"][:, 1], rtol=1e-8)


def test_standard_errors_of_a_free_start_come_from_the_starts():
    """Many sequences: the start is inside its simplex."""
    rng = np.random.default_rng(0)
    model = fitted(pg.HMM(states=2, emission=em.Poisson()), seed=5, spread=0.7)
    model.emission.log_rate.data = cells(np.log([[2.0], [9.0]]))
    x = [part for n in rng.integers(6, 15, 60) for part in model.sample(1, length=int(n), seed=int(n))]
    x = [model.sample(1, length=int(n), seed=i)[0] for i, n in enumerate(rng.integers(6, 15, 60))]
    m = pg.HMM(states=2, emission=em.Poisson()).fit(x, seed=0, restarts=1, tol=0.0, max_iter=3000)
    p = m.parameters_by_name()
    theta = np.array([p["transition"][0, 1], p["transition"][1, 0], *p["rate"].ravel(), p["initial"][0]])

    def start(a, b, rest):
        return np.array([rest[2], 1 - rest[2]]), rest[:2]

    value = log_likelihood_in_natural(x, lambda v, rate: stats.poisson.pmf(v, np.array(rate)), start)
    found = m.standard_errors(x)
    got = [found["transition"][0, 1], found["transition"][1, 0], *found["rate"].ravel(), found["initial"][0]]
    np.testing.assert_allclose(got, numerical_errors(value, theta), rtol=2e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e6])
def test_standard_errors_carry_the_units_of_the_data(scale):
    _, x = steps_of_two()
    found = []
    for part in (x, x * scale):
        m = pg.HMM(states=2, emission=em.Normal(), transitions=tr.Markov("stationary"))
        found.append(m.fit(part, seed=0, restarts=1, tol=0.0, max_iter=500).standard_errors(part))
    for name in found[0]:
        unit = scale if name in ("loc", "scale") else 1.0
        np.testing.assert_allclose(found[1][name], unit * found[0][name], rtol=1e-3)


def test_standard_errors_of_an_autoregression_are_those_of_least_squares():
    """One state; its penalised start is held fixed, and has none."""
    rng = np.random.default_rng(0)
    x = np.zeros(200)
    for t in range(1, 200):
        x[t] = 1.0 + 0.6 * x[t - 1] + rng.normal()
    m = pg.HMM(states=1, emission=em.Autoregressive()).fit(x, seed=0, restarts=1, tol=0.0, max_iter=100)
    found = m.standard_errors(x)
    design = np.c_[np.ones(199), x[:-1]]
    residual = x[1:] - design @ np.linalg.lstsq(design, x[1:], rcond=None)[0]
    variance = np.mean(residual**2)
    loc, slope = np.sqrt(np.diag(variance * np.linalg.inv(design.T @ design)))
    np.testing.assert_allclose(found["coefficients"].ravel(), slope, rtol=1e-4)
    np.testing.assert_allclose(found["scale"].ravel(), np.sqrt(variance / (2 * 199)), rtol=1e-4)
    np.testing.assert_allclose(found["intercept"].ravel(), loc, rtol=1e-4)
    assert np.isnan(found["start_loc"]).all()
    early = pg.HMM(states=2, emission=em.Autoregressive()).fit(x, seed=0, restarts=1, max_iter=2)
    with pytest.raises(ParameterError):
        early.standard_errors(x)


def test_standard_errors_of_two_states_with_durations_are_there():
    """Two states always move to each other: a probability of 1 that is no boundary."""
    _, x = steps_of_two()
    m = pg.HMM(states=2, emission=em.Normal(), transitions=tr.Durations(phases=1))
    m.fit(x, seed=0, restarts=1, tol=0.0, max_iter=500)
    plain = pg.HMM(states=2, emission=em.Normal()).fit(x, seed=0, restarts=1, tol=0.0, max_iter=500)
    found, wanted = m.standard_errors(x), plain.standard_errors(x)
    np.testing.assert_allclose(found["leaving"], wanted["transition"][[0, 1], [1, 0]], rtol=1e-3)


def test_standard_errors_are_refused_at_a_boundary_and_away_from_an_optimum(quakes):
    _, x = steps_of_two(60)
    once = np.sort(x)  # one move up, none back: a probability of zero
    m = pg.HMM(states=2, emission=em.Normal()).fit(once, seed=0, restarts=1, tol=0.0, max_iter=300)
    with pytest.raises(ParameterError, match="boundary"):
        m.standard_errors(once)
    early = pg.HMM(states=2, emission=em.Poisson()).fit(quakes, seed=0, restarts=1, max_iter=2)
    with pytest.raises(ParameterError, match=r"optimum|maximum"):
        early.standard_errors(quakes)
    floored = np.r_[
        np.random.default_rng(0).normal(0, 1, 40), np.full(20, 3.0), np.random.default_rng(1).normal(0, 1, 40)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = pg.HMM(states=2, emission=em.Normal(), transitions=tr.Markov("stationary"))
        m.fit(floored, seed=0, restarts=1, tol=0.0, max_iter=500)
    with pytest.raises(ParameterError):
        m.standard_errors(floored)
