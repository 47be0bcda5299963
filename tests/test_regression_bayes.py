"""Posteriors of regressions against closed forms, quadrature and each other."""

import copy
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from probgen import store
from probgen.errors import LikelihoodUnavailable, NotFittedError, StructureError
from probgen.estimate import Enumerate
from probgen.events import Array
from probgen.logprob import Kind
from probgen.models.regression import Regression
from probgen.models.regression.counts import Binomial, Poisson
from probgen.models.regression.posterior import by_quadrature
from probgen.models.regression.posterior import log_mean_over as averaged

pytestmark = pytest.mark.filterwarnings("ignore::probgen.posterior.fitting.ConvergenceWarning")

REAL, COUNT, BINARY, ONE = Array(()), Array((), "count"), Array((), levels=2), Array((1,))
SHORT = {"draws": 150, "chains": 2, "warmup": 60}
TINY = {"draws": 30, "chains": 2, "warmup": 15}


def rows(seed=0, n=40):
    x = np.random.default_rng(seed).normal(size=(n, 1))
    return x, 0.5 + 0.8 * x[:, 0]


X, ETA = rows()
RNG = np.random.default_rng(1)
COUNTS = RNG.poisson(np.exp(ETA))
COINS = (RNG.random(40) < 1 / (1 + np.exp(-ETA))).astype(int)
NORMALS = ETA + 0.7 * RNG.normal(size=40)
GAMMAS = RNG.gamma(2.0, np.exp(ETA))
_fitted = {}


def fitted(event, y, method, **options):
    key = (repr(event), method, *sorted(options.items()))
    if key not in _fitted:
        extra = SHORT if method == "nuts" else {}
        built = {name: options[name] for name in ("head", "standardise") if name in options}
        rest = {name: value for name, value in options.items() if name not in built}
        _fitted[key] = Regression(event, ONE, **built).fit(y, given=X, seed=1, method=method, **extra, **rest)
    return _fitted[key]


# The conjugate case

PRIOR = {"prior_scale": 1.5, "intercept_scale": 4.0, "noise_prior": (2.0, 0.7)}


def marginal(x, y):
    """log p(y | x) of the normal-inverse-gamma model: a multivariate t."""
    design = np.column_stack([np.ones(len(x)), x])
    shape = 0.7 / 2.0 * (np.eye(len(x)) + design @ np.diag([16.0, 2.25]) @ design.T)
    return stats.multivariate_t.logpdf(y, np.zeros(len(x)), shape, df=4.0)


def test_conjugate_evidence_and_predictions_are_the_multivariate_t_exactly():
    m = fitted(REAL, NORMALS, "conjugate", standardise=False, **PRIOR)
    evidence = m.log_evidence()
    assert evidence.kind is Kind.EXACT
    assert evidence.nats[0] == pytest.approx(marginal(X[:, 0], NORMALS), rel=1e-10)
    new, at = np.array([-1.0, 0.3, 4.0]), np.array([[0.2], [-2.0], [5.0]])
    lp = m.log_prob(new, given=at)
    assert lp.kind is Kind.EXACT
    for i in range(3):
        longer = marginal(np.append(X[:, 0], at[i]), np.append(NORMALS, new[i]))
        assert lp.nats[i] == pytest.approx(longer - evidence.nats[0], abs=1e-8)
    np.testing.assert_allclose(m.log_prob(new, given=at, by=Enumerate()).nats, lp.nats, rtol=1e-10)


def test_conjugate_evidence_of_standardised_rows_has_the_units_of_the_data():
    m = Regression(REAL, ONE).fit(NORMALS, given=X, seed=1, method="conjugate")
    z, r = (X[:, 0] - X.mean()) / X.std(), (NORMALS - NORMALS.mean()) / NORMALS.std()
    design = np.column_stack([np.ones(40), z])
    shape = 0.05 / 0.5 * (np.eye(40) + design @ np.diag([100.0, 6.25]) @ design.T)
    truth = stats.multivariate_t.logpdf(r, np.zeros(40), shape, df=1.0) - 40 * math.log(NORMALS.std())
    assert m.log_evidence().nats[0] == pytest.approx(truth, rel=1e-10)
    longer = Regression(REAL, ONE).fit(NORMALS * 1000, given=X, seed=1, method="conjugate")
    assert longer.log_evidence().nats[0] == pytest.approx(truth - 40 * math.log(1000), rel=1e-10)


def test_evidence_prefers_the_covariate_that_matters():
    noise = np.random.default_rng(9).normal(size=(40, 1))
    for event, y, method in ((REAL, NORMALS, "conjugate"), (COUNT, COUNTS, "laplace"), (BINARY, COINS, "laplace")):
        right = Regression(event, ONE).fit(y, given=X, seed=1, method=method).log_evidence()
        wrong = Regression(event, ONE).fit(y, given=noise, seed=1, method=method).log_evidence()
        assert right.nats[0] > wrong.nats[0] + 0.5


def test_conjugate_draws_follow_the_predictive_t_and_a_normal_of_that_scale_is_caught():
    x, y = X[:4], NORMALS[:4]
    m = Regression(REAL, ONE).fit(y, given=x, seed=1, method="conjugate")
    draws = m.sample(40_000, given=[[1.0]], seed=2)
    grid = np.linspace(-60, 60, 240_001)
    density = np.exp(m.log_prob(grid, given=np.ones((len(grid), 1))).nats)
    cdf = np.cumsum(density) * (grid[1] - grid[0])
    cdf += (1 - cdf[-1]) / 2
    inside = draws[abs(draws) < 59]
    assert len(inside) > 39_000
    assert stats.kstest(inside, lambda v: np.interp(v, grid, cdf)).statistic < 0.016  # 1e-6 for 40,000 draws is 0.0137
    narrow = stats.norm(np.median(draws), np.quantile(draws, 0.8413) - np.median(draws))
    assert stats.kstest(draws, narrow.cdf).statistic > 0.016


# Normal approximations


def log_joint(y, head, slope=2.5, intercept=10.0):
    """log p(y, intercept, slope) of a two-coefficient model in the units of the fit, on a grid."""
    z = (X[:, 0] - X.mean()) / X.std()

    def at(a, b):
        u = a[..., None] + b[..., None] * z
        if head == "poisson":
            nats = stats.poisson.logpmf(y, np.exp(u)).sum(-1)
        else:
            nats = -np.logaddexp(0, -(2 * y - 1) * u).sum(-1)
        return nats + stats.norm.logpdf(a, 0, intercept) + stats.norm.logpdf(b, 0, slope)

    return at, z


def grid_posterior(y, head):
    """Truth by brute force: grid of coefficients, weights, log evidence."""
    at, z = log_joint(y, head)
    a, b = np.meshgrid(np.linspace(-3, 4, 351), np.linspace(-3, 5, 401), indexing="ij")
    joint = at(a, b)
    cell = (a[1, 0] - a[0, 0]) * (b[0, 1] - b[0, 0])
    evidence = np.log(np.exp(joint - joint.max()).sum() * cell) + joint.max()
    return a, b, np.exp(joint - evidence) * cell, evidence, z


@pytest.mark.parametrize(("head", "event", "y"), [("poisson", COUNT, COUNTS), ("bernoulli", BINARY, COINS)])
def test_laplace_stands_at_the_mode_near_the_evidence_by_quadrature(head, event, y):
    m = fitted(event, y, "laplace")
    a, b, p, evidence, _ = grid_posterior(y, head)
    assert m.log_evidence().kind is Kind.ESTIMATE
    assert m.log_evidence().nats[0] == pytest.approx(evidence, abs=0.05)
    best = np.unravel_index(p.argmax(), p.shape)
    np.testing.assert_allclose(m.weight.detach()[0], [a[best], b[best]], atol=0.02)
    spread = np.sqrt([(p * (v - (p * v).sum()) ** 2).sum() for v in (a, b)])
    np.testing.assert_allclose(m.covariance.diagonal().sqrt(), spread, rtol=0.12)


@pytest.mark.parametrize(("head", "event", "y"), [("poisson", COUNT, COUNTS), ("bernoulli", BINARY, COINS)])
def test_quadrature_gives_the_integral_over_the_normal_posterior(head, event, y):
    m = fitted(event, y, "laplace")
    lp = m.log_prob(y, given=X)
    assert lp.kind is Kind.ESTIMATE
    assert lp.of == "y|x"
    assert lp.stderr is None
    z = torch.from_numpy(np.column_stack([np.ones(40), (X[:, 0] - X.mean()) / X.std()]))
    mean, sd = z @ m.weight.detach()[0], ((z @ m.covariance) * z).sum(1).sqrt()
    u = mean + sd * torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None]
    weights = torch.distributions.Normal(mean, sd).log_prob(u) + (sd * 18 / 20_000).log()
    truth = (m.likelihood.log_prob(torch.from_numpy(y).double(), u[..., None]) + weights).logsumexp(0)
    np.testing.assert_allclose(lp.nats, truth, atol=1e-9)
    assert lp.diagnostics["quadrature_error"].max() < 1e-9


@pytest.mark.parametrize(
    ("head", "y", "mean", "variance"),
    [
        (Poisson(), 10_000.0, 0.0, 4.0),
        (Poisson(), 0.0, 6.0, 9.0),
        (Poisson(), 3.0, 1.0, 1e-20),
        (Binomial(), 1.0, -40.0, 25.0),
        (Binomial(1, "probit"), 0.0, 8.0, 4.0),
        (Binomial(1, "cloglog"), 1.0, -3.0, 9.0),
        (Binomial(900), 20.0, 3.0, 9.0),
    ],
)
def test_quadrature_finds_integrands_far_from_the_posterior_and_narrow_ones(head, y, mean, variance):
    one = torch.ones(1, dtype=torch.float64)
    nats, error = by_quadrature(head, y * one, mean * one, variance * one)
    u = torch.linspace(-120, 120, 2_400_001, dtype=torch.float64)
    prior = -0.5 * ((u - mean) ** 2 / variance + math.log(2 * math.pi * variance))
    narrow = variance < 1e-10
    truth = head.log_prob(y * one, mean * one[:, None] if narrow else u[:, None])
    truth = truth if narrow else (truth + prior).logsumexp(0) + math.log(1e-4)
    assert float(nats) == pytest.approx(float(truth), abs=1e-6)
    assert abs(float(nats) - float(truth)) <= float(error) + 1e-12


def test_where_no_quadrature_reaches_draws_are_averaged_with_an_error_that_covers():
    """Each seed's estimate lies about the truth by its own standard error; half that error is caught."""
    m = fitted(REAL, NORMALS, "laplace", head="normal")
    y, at = NORMALS[3:4], X[3:4]
    answers = [m.log_prob(y, given=at, seed=seed) for seed in range(60)]
    assert all(lp.kind is Kind.ESTIMATE for lp in answers)
    nats, errors = np.array([lp.nats[0] for lp in answers]), np.array([lp.stderr[0] for lp in answers])
    z = (nats - predictive_truth(m, y, at)) / errors
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], 60)
    assert low < (z**2).sum() < high
    assert ((2 * z) ** 2).sum() > high


def predictive_truth(m, y, at):
    """The predictive density over location and log scale by a product rule of 200 x 200 points."""
    x = torch.tensor([[1.0, (at[0, 0] - X.mean()) / X.std()]], dtype=torch.float64)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite.hermgauss(120))
    top = torch.linalg.cholesky(m.covariance)
    loc_row = torch.cat([x[0], torch.zeros(1, dtype=torch.float64)]) @ top
    scale_row = top[2]
    # both are linear in three standard normals: reduce them to two
    pair = torch.stack([loc_row, scale_row])
    factor = torch.linalg.cholesky(pair @ pair.T)
    grid = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1) * math.sqrt(2)
    shift = grid @ factor.T
    loc, log_scale = x[0] @ m.weight.detach()[0] + shift[..., 0], m.extras.detach()[0] + shift[..., 1]
    r = (float(y[0]) - float(m.response_centre)) / float(m.response_spread)
    nats = -0.5 * ((r - loc) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)
    product = (weights[:, None] * weights).log() - math.log(math.pi)
    return float((nats + product).logsumexp((0, 1))) - math.log(float(m.response_spread))


def test_rows_share_the_posteriors_draws_whatever_the_batch():
    m = fitted(REAL, NORMALS, "laplace", head="normal")
    lp = m.log_prob(NORMALS, given=X, seed=4)
    assert len(set(lp.draws)) == 1
    assert lp.mean().monte_carlo == pytest.approx(lp.stderr.mean())
    part = m.log_prob(NORMALS[[7, 2]], given=X[[7, 2]], seed=4)
    np.testing.assert_allclose(part.nats, lp.nats[[7, 2]], rtol=1e-12)
    assert m.log_prob(NORMALS, given=X, seed=5).nats[0] != lp.nats[0]


def test_laplace_predictions_are_wider_than_the_plug_ins():
    plug = Regression(BINARY, ONE).fit(COINS, given=X, seed=1)
    far = [[6.0]]
    assert plug.predict(far)[0] > fitted(BINARY, COINS, "laplace").predict(far)[0] + 0.005


# Draws by NUTS


@pytest.mark.parametrize(
    ("head", "event", "y"),
    [("bernoulli", BINARY, COINS), pytest.param("poisson", COUNT, COUNTS, marks=pytest.mark.long)],
)
def test_nuts_finds_the_posterior_by_quadrature_and_a_wrong_prior_is_caught(head, event, y):
    m = fitted(event, y, "nuts")
    a, b, p, _, _ = grid_posterior(y, head)
    mean = np.array([(p * v).sum() for v in (a, b)])
    spread = np.sqrt([(p * (v - c) ** 2).sum() for v, c in zip((a, b), mean, strict=True)])
    found = m.kept.z().mean(0).numpy()
    assert (abs(found - mean) / spread < 6.5 / math.sqrt(150)).all()  # at least 150 effective draws of 300
    assert (abs(np.log(m.kept.z().std(0).numpy() / spread)) < 0.35).all()
    narrow = Regression(event, ONE).fit(
        y, given=X, seed=1, method="nuts", prior_scale=0.05, draws=80, chains=1, warmup=30
    )
    assert abs(narrow.kept.z().mean(0).numpy() - mean)[1] / spread[1] > 6.5 / math.sqrt(150)


def test_nuts_predictions_cover_the_truth_and_are_the_enumerated_program():
    m = fitted(BINARY, COINS, "nuts")
    a, b, p, _, z = grid_posterior(COINS, "bernoulli")
    truth = [math.log((p / (1 + np.exp(-(2 * y - 1) * (a + b * v)))).sum()) for y, v in zip(COINS, z, strict=True)]
    lp = m.log_prob(COINS, given=X)
    assert lp.kind is Kind.ESTIMATE
    assert lp.by == "300 NUTS draws"
    assert (abs(lp.nats - truth) < 6 * lp.stderr).all()
    assert not (abs(lp.nats - truth) < 0.02 * lp.stderr).all()
    assert (lp.diagnostics["ess"] > 50).all()
    np.testing.assert_allclose(m.log_prob(COINS, given=X, by=Enumerate()).nats, lp.nats, rtol=1e-9)
    assert "R-hat" in m.report.notes[0]
    assert m.summary().names == ("intercept", "x0")
    assert m.summary().low[1] < m.summary()["x0"] < m.summary().high[1]


def test_errors_of_dependent_draws_are_larger_than_those_of_independent_ones():
    """Each draw repeated five times has five times the error's square; a count of rows would not see it."""
    m = fitted(BINARY, COINS, "nuts")
    y = torch.from_numpy(COINS[:5]).double()
    from probgen.models.regression.predictive import predictors

    at = predictors(m, torch.from_numpy(X[:5]), 5)
    plain = averaged(m.likelihood, y, m.kept.z(), at, 2)
    slow = averaged(m.likelihood, y, m.kept.z().repeat_interleave(5, 0), at, 2)
    np.testing.assert_allclose(slow[0], plain[0], rtol=1e-12)
    assert (slow[1] > 0.7 * plain[1]).all()
    independent = averaged(m.likelihood, y, m.kept.z().repeat_interleave(5, 0), at, 0)
    assert (independent[1] < 0.5 * plain[1]).all()


@pytest.mark.parametrize(
    ("event", "y", "head"), [(REAL, NORMALS, "student_t"), (Array((), "positive"), GAMMAS, "gamma")]
)
def test_the_sampled_density_is_that_of_the_bayes_program(event, y, head):
    m = fitted(event, y, "laplace", head=head)
    from probgen.models.regression.linear import Rows
    from probgen.models.regression.posterior import objective_of
    from probgen.models.regression.predictive import linear_inputs

    inputs = linear_inputs(m, torch.from_numpy(X), 40)
    r = (torch.from_numpy(y) - m.response_centre) / m.response_spread
    objective, constant = objective_of(m.likelihood, Rows(r, *inputs), m.prior)
    for shift in (0.0, 0.3, -0.2):
        theta = m.theta().detach() + shift
        sites = {"weight": theta[:2], "extras": theta[2:]}
        with pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(m.bayes_model, sites)).get_trace(y, X)
        nats = float(objective.value(theta)) + constant - 40 * float(m.response_spread.log())
        assert float(trace.log_prob_sum()) == pytest.approx(nats, rel=1e-10)


def test_the_laplace_program_draws_a_normal_predictor_for_each_row():
    m = fitted(COUNT, COUNTS, "laplace")
    with pyro.validation_enabled(False), torch.random.fork_rng():
        torch.manual_seed(0)
        trace = poutine.trace(m.model).get_trace(None, torch.from_numpy(X))
        site = trace.nodes["predictor"]["fn"]
        mean, covariance = site.mean.detach(), site.covariance_matrix.detach()
    z = np.column_stack([np.ones(40), (X[:, 0] - X.mean()) / X.std()])
    np.testing.assert_allclose(mean[:, 0], z @ m.weight.detach()[0].numpy(), rtol=1e-10)
    np.testing.assert_allclose(covariance[:, 0, 0], ((z @ m.covariance.numpy()) * z).sum(1), rtol=1e-10)


@pytest.mark.parametrize("method", ["laplace", "nuts"])
def test_posterior_predictive_draws_follow_the_predictive_masses_and_the_plug_ins_are_caught(method):
    x, y = X[:8], COUNTS[:8]
    m = Regression(COUNT, ONE).fit(y, given=x, seed=1, method=method, **(TINY if method == "nuts" else {}))
    plug = Regression(COUNT, ONE).fit(y, given=x, seed=1)
    draws = np.minimum(m.sample(40_000, given=[[1.5]], seed=3), 39)
    counts = np.bincount(draws, minlength=40)
    p_values = []
    for model in (m, plug):
        p = np.exp(model.log_prob(np.arange(39), given=np.full((39, 1), 1.5)).nats)
        p = np.append(p, max(1 - p.sum(), 1e-12))
        keep = p * 40_000 > 10
        observed, expected = np.append(counts[keep], counts[~keep].sum()), np.append(p[keep], p[~keep].sum()) * 40_000
        if expected[-1] < 10:
            observed, expected = observed[:-1], expected[:-1]
        p_values.append(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1))
    assert p_values[0] > 1e-6
    assert p_values[1] < 1e-6


@pytest.mark.parametrize("method", ["laplace", "nuts", "conjugate"])
def test_posteriors_are_saved_repeated_and_replaced(method, tmp_path, monkeypatch):
    monkeypatch.setitem(store.FAMILIES, "Regression", "probgen.models.regression")
    event, y = (REAL, NORMALS) if method == "conjugate" else (COUNT, COUNTS)
    short = TINY if method == "nuts" else {}
    m = Regression(event, ONE).fit(y, given=X, seed=1, method=method, **short)
    again = store.load(store.save(m, tmp_path / "m"))
    assert (again.method, again.prior) == (method, m.prior)
    np.testing.assert_array_equal(again.log_prob(y, given=X, seed=1).nats, m.log_prob(y, given=X, seed=1).nats)
    np.testing.assert_array_equal(again.sample(9, given=X[:2], seed=1), m.sample(9, given=X[:2], seed=1))
    assert str(again.summary()) == str(m.summary())
    twin = copy.deepcopy(again).fit(y, given=X, seed=1, method=method, **short)
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), m.state_dict().values(), strict=True))
    plain = copy.deepcopy(again).fit(y, given=X, seed=1)
    assert plain.log_prob(y, given=X).kind is Kind.EXACT
    assert plain.draws is None


def test_sampling_leaves_the_process_as_it_was():
    before = torch.get_rng_state(), len(pyro.get_param_store()), torch.distributions.Distribution._validate_args
    Regression(COUNT, ONE).fit(COUNTS, given=X, seed=1, method="nuts", draws=20, chains=1, warmup=5)
    after = torch.get_rng_state(), len(pyro.get_param_store()), torch.distributions.Distribution._validate_args
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_evidence_and_programs_are_refused_where_there_are_none():
    refusal = fitted(BINARY, COINS, "nuts").log_evidence()
    with pytest.raises(LikelihoodUnavailable, match="laplace"):
        _ = refusal.nats
    with pytest.raises(NotFittedError, match="fit"):
        Regression(COUNT, ONE).bayes_model(COUNTS, X)
    network = Regression(COUNT, ONE, hidden=(4,)).fit(COUNTS, given=X, seed=1, steps=5)
    with pytest.raises(StructureError, match="linear"):
        network.bayes_model(COUNTS, X)
