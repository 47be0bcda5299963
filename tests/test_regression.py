"""Regressions against statsmodels, scikit-learn, SciPy and finite differences."""

import copy
import math
import warnings

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge

from probgen import store
from probgen.errors import DataError, FitError, NotFittedError, ParameterError, ShapeError, StructureError, SupportError
from probgen.estimate import Enumerate
from probgen.events import Array, Category, Count, Real, Table
from probgen.logprob import Kind
from probgen.models.regression import Regression, SeparationWarning
from probgen.models.regression.counts import Binomial, Categorical, NegativeBinomial, Poisson
from probgen.models.regression.linear import derivatives
from probgen.models.regression.reals import Gamma, Normal, StudentT

ALPHA = 1e-6
N = 250
COVARIATES = Table({"age": Real(), "dose": Real("mg"), "group": Category(("a", "b", "c"))})
REAL, POSITIVE, COUNT, BINARY = Array(()), Array((), "positive"), Array((), "count"), Array((), levels=2)


def covariates(seed=0, n=N):
    rng = np.random.default_rng(seed)
    group = rng.integers(3, size=n)
    given = {
        "age": rng.normal(50, 10, n),
        "dose": rng.gamma(2.0, 1.0, n),
        "group": np.array(["a", "b", "c"])[group],
    }
    matrix = np.column_stack([np.ones(n), given["age"], given["dose"], group == 1, group == 2]).astype(float)
    return given, matrix, matrix @ [-1.0, 0.02, 0.3, 0.4, -0.5]


GIVEN, X, ETA = covariates()


def respond(head, eta=ETA, seed=1):
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-eta))
    three = np.exp(np.column_stack([0 * eta, eta, -eta]))
    return {
        "normal": lambda: eta + rng.normal(size=len(eta)),
        "student_t": lambda: eta + 0.5 * rng.standard_t(3, len(eta)),
        "gamma": lambda: rng.gamma(2.0, np.exp(eta) / 2),
        "poisson": lambda: rng.poisson(np.exp(1 + eta)),
        "negative_binomial": lambda: rng.negative_binomial(2, 2 / (2 + np.exp(1 + eta))),
        "bernoulli": lambda: (rng.random(len(eta)) < p).astype(int),
        "binomial": lambda: rng.binomial(7, p),
        "categorical": lambda: (rng.random(len(eta))[:, None] > np.cumsum(three / three.sum(1)[:, None], 1)).sum(1),
    }[head]()


EVENTS = {
    "normal": REAL, "student_t": REAL, "gamma": POSITIVE, "poisson": COUNT, "negative_binomial": COUNT,
    "bernoulli": BINARY, "binomial": Array((), levels=8), "categorical": Array((), levels=3),
}  # fmt: skip
_fitted = {}


def fitted(head, **options):
    key = (head, *options.items())
    if key not in _fitted:
        made = Regression(EVENTS[head], COVARIATES, head=head, **options)
        _fitted[key] = made.fit(respond(head), given=GIVEN, seed=1)
    return _fitted[key]


def peer(head, link=None):
    """statsmodels' fit: coefficients, standard errors, log-likelihood and deviance (None where it has none)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sm = pytest.importorskip("statsmodels.api")
        y, tight = respond(head), {"tol": 1e-14, "maxiter": 300}
        if head == "normal":
            r = sm.OLS(y, X).fit()
            return r.params, r.bse, r.llf, r.ssr
        if head == "negative_binomial":
            r = sm.NegativeBinomial(y, X).fit(method="newton", disp=0, tol=1e-14, start_params=[0, 0, 0, 0, 0, 0.5])
            return r.params[:5], r.bse[:5], r.llf, None
        if head == "categorical":
            r = sm.MNLogit(y, X).fit(method="newton", disp=0, **tight)
            return r.params.T.ravel(), r.bse.T.ravel(), r.llf, None
        links = sm.families.links
        family = {
            "gamma": sm.families.Gamma(links.Log()),
            "poisson": sm.families.Poisson(),
            "binomial": sm.families.Binomial(),
            "bernoulli": sm.families.Binomial({"probit": links.Probit(), "cloglog": links.CLogLog()}.get(link)),
        }[head]
        r = sm.GLM(np.column_stack([y, 7 - y]) if head == "binomial" else y, X, family=family).fit(**tight)
        shape = 1.0 if head != "gamma" else math.exp(fitted("gamma").extras.item())
        return (
            r.params,
            r.bse,
            family.loglike(r.model.endog, r.mu, r.model.var_weights, r.model.freq_weights, 1 / shape)
            if head == "gamma"
            else r.llf,
            r.deviance,
        )


HEADS_OF_PEER = [
    ("normal", None), ("gamma", None), ("poisson", None), ("negative_binomial", None), ("bernoulli", "logit"),
    ("bernoulli", "probit"), ("bernoulli", "cloglog"), ("binomial", None), ("categorical", None),
]  # fmt: skip


@pytest.mark.parametrize(("head", "link"), HEADS_OF_PEER)
def test_coefficients_errors_likelihood_and_deviance_are_those_of_statsmodels(head, link):
    m = fitted(head, link=link)
    coefficients, errors, likelihood, deviance = peer(head, link)
    found = m.summary()
    np.testing.assert_allclose(found.estimate[: len(coefficients)], coefficients, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.stderr[: len(coefficients)], errors, rtol=1e-8)
    assert m.log_likelihood == pytest.approx(likelihood, rel=1e-10)
    assert deviance is None or m.deviance == pytest.approx(deviance, rel=1e-10)
    assert m.report.stopped == "converged"


def test_p_values_and_intervals_of_least_squares_are_those_of_statsmodels():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sm = pytest.importorskip("statsmodels.api")
        r = sm.OLS(respond("normal"), X).fit()
    found = fitted("normal").summary()
    np.testing.assert_allclose(found.p_value[:5], r.pvalues, rtol=1e-9)
    np.testing.assert_allclose(np.column_stack([found.low, found.high])[:5], r.conf_int(), rtol=1e-9)


def test_dispersion_of_a_negative_binomial_is_that_of_statsmodels():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sm = pytest.importorskip("statsmodels.api")
        start = [0, 0, 0, 0, 0, 0.5]
        r = sm.NegativeBinomial(respond("negative_binomial"), X).fit(method="newton", disp=0, start_params=start)
    found = fitted("negative_binomial").summary()
    assert math.exp(-found["log_size"]) == pytest.approx(r.params[5], rel=1e-7)
    assert found.stderr[-1] * r.params[5] == pytest.approx(r.bse[5], rel=1e-6)  # of its logarithm


def test_an_offset_enters_with_coefficient_one():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sm = pytest.importorskip("statsmodels.api")
        exposure = np.random.default_rng(5).gamma(3.0, 1.0, N)
        y = np.random.default_rng(6).poisson(exposure * np.exp(ETA))
        r = sm.GLM(y, X, family=sm.families.Poisson(), offset=np.log(exposure)).fit(tol=1e-14)
    context = Table({**COVARIATES.columns, "log_exposure": Real()})
    given = {**GIVEN, "log_exposure": np.log(exposure)}
    m = Regression(COUNT, context, offset="log_exposure").fit(y, given=given, seed=1)
    np.testing.assert_allclose(m.summary().estimate, r.params, rtol=1e-8)
    np.testing.assert_allclose(m.predict(given), r.mu, rtol=1e-8)


def numbers_alone(m):
    """Standardised covariates as the fit sees them."""
    return ((m.design(COVARIATES.check(GIVEN).x, N) - m.centre) / m.spread).numpy()


def test_ridge_is_that_of_scikit_learn():
    y = respond("normal")
    m = Regression(REAL, COVARIATES).fit(y, given=GIVEN, seed=1, ridge=30.0)
    z = numbers_alone(m)
    theirs = Ridge(alpha=30.0).fit(z, y)
    np.testing.assert_allclose(m.predict(GIVEN), theirs.predict(z), rtol=1e-9)
    y = respond("bernoulli")
    m = Regression(BINARY, COVARIATES).fit(y, given=GIVEN, seed=1, ridge=4.0)
    theirs = LogisticRegression(C=1 / 4.0, tol=1e-10, max_iter=10_000).fit(z, y)
    np.testing.assert_allclose(m.weight.detach()[0, 1:], theirs.coef_[0], rtol=1e-5)
    np.testing.assert_allclose(m.predict(GIVEN), theirs.predict_proba(z)[:, 1], rtol=1e-5)


def t_log_likelihood(theta, y):
    return stats.t.logpdf(y, math.exp(theta[6]), X @ theta[:5], math.exp(theta[5])).sum()


def test_a_t_regression_stands_at_the_maximum_with_errors_by_finite_differences():
    m, y = fitted("student_t"), respond("student_t")
    found = m.summary()
    theta = found.estimate
    assert m.log_likelihood == pytest.approx(t_log_likelihood(theta, y), rel=1e-12)
    steps = np.diag(0.05 * found.stderr)
    for step in steps:
        gain = t_log_likelihood(theta + 1e-3 * step, y) - t_log_likelihood(theta - 1e-3 * step, y)
        assert abs(gain) < 1e-8  # 1e-4 of a standard error gains nothing to first order
        assert t_log_likelihood(theta + step, y) < m.log_likelihood
    f = lambda a, b: t_log_likelihood(theta + a + b, y)  # noqa: E731
    hessian = np.array([
        [(f(a, b) - f(a, -b) - f(-a, b) + f(-a, -b)) / (4 * 0.05**2 * found.stderr[i] * found.stderr[j])
         for j, b in enumerate(steps)] for i, a in enumerate(steps)
    ])  # fmt: skip
    np.testing.assert_allclose(found.stderr, np.sqrt(np.diag(np.linalg.inv(-hessian))), rtol=3e-3)


def test_fixed_degrees_of_freedom_and_the_limit_of_normal_data():
    y = respond("student_t")
    m = Regression(REAL, COVARIATES, head="student_t", df=3.0).fit(y, given=GIVEN, seed=1)
    truth = stats.t.logpdf(y, 3.0, m.predict(GIVEN), math.exp(m.summary()["log_scale"])).sum()
    assert m.log_likelihood == pytest.approx(truth, rel=1e-12)
    assert m.log_likelihood <= fitted("student_t").log_likelihood
    wavy = np.cos(np.arange(N))  # bounded: lighter tails than a normal's
    bounded = Regression(REAL, COVARIATES, head="student_t").fit(wavy, given=GIVEN, seed=1)
    assert "log_df went to its limit" in bounded.report.notes
    normal = Regression(REAL, COVARIATES).fit(wavy, given=GIVEN, seed=1)
    assert bounded.log_likelihood == pytest.approx(normal.log_likelihood, abs=1e-5)


CASES = {
    "normal": (Normal(), [0.3, -0.2], [-1.0, 0.5, 9.0], lambda y: stats.norm.logpdf(y, 0.3, math.exp(-0.2))),
    "t": (StudentT(), [0.3, -0.2, 1.0], [-1.0, 0.5, 9.0], lambda y: stats.t.logpdf(y, math.e, 0.3, math.exp(-0.2))),
    "gamma": (Gamma(), [0.4, 1.1], [0.01, 1.0, 30.0],
              lambda y: stats.gamma.logpdf(y, math.exp(1.1), scale=math.exp(0.4 - 1.1))),
    "poisson": (Poisson(), [1.3], [0.0, 4.0, 60.0], lambda y: stats.poisson.logpmf(y, math.exp(1.3))),
    "negative binomial": (NegativeBinomial(), [1.3, 0.6], [0.0, 4.0, 60.0],
                          lambda y: stats.nbinom.logpmf(y, math.exp(0.6), 1 / (1 + math.exp(1.3 - 0.6)))),
    "logit": (Binomial(5), [0.4], [0.0, 2.0, 5.0], lambda y: stats.binom.logpmf(y, 5, 1 / (1 + math.exp(-0.4)))),
    "probit": (Binomial(5, "probit"), [0.4], [0.0, 2.0, 5.0], lambda y: stats.binom.logpmf(y, 5, stats.norm.cdf(0.4))),
    "cloglog": (Binomial(1, "cloglog"), [0.4], [0.0, 1.0, 1.0],
                lambda y: stats.bernoulli.logpmf(y, 1 - math.exp(-math.exp(0.4)))),
    "categorical": (Categorical(3), [0.4, -0.7], [0.0, 1.0, 2.0],
                    lambda y: np.log(np.exp([0, 0.4, -0.7]) / np.exp([0, 0.4, -0.7]).sum())[y.astype(int)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_heads_numbers_are_scipys_and_its_derivatives_finite_differences(name):
    head, at, y, truth = CASES[name]
    y = torch.tensor(y, dtype=torch.float64)
    u = torch.tensor(at, dtype=torch.float64).expand(len(y), -1)
    nats, slope, bend = derivatives(head, y, u)
    np.testing.assert_allclose(nats, truth(y.numpy()), rtol=1e-11)
    with pyro.validation_enabled(False):
        np.testing.assert_allclose(head.distribution(u).log_prob(y), nats, rtol=1e-9)
    for j in range(head.width):
        step = torch.zeros(head.width, dtype=torch.float64)
        step[j] = 1e-5
        (up, up_slope, _), (down, down_slope, _) = (derivatives(head, y, u + s) for s in (step, -step))
        np.testing.assert_allclose(slope[:, j], (up - down) / 2e-5, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(bend[:, j], (up_slope - down_slope) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_heads_stay_numbers_far_out(name):
    head, at, y, _ = CASES[name]
    for far in (-800.0, -60.0, 60.0, 700.0):
        u = torch.tensor([[far, *at[1:]]] * len(y), dtype=torch.float64)
        nats = head.log_prob(torch.tensor(y, dtype=torch.float64), u)
        assert not nats.isnan().any()
        assert (nats <= 10).all()


def test_huge_counts_keep_their_digits():
    y = np.floor(np.exp(np.linspace(30, 34, 40)))
    m = Regression(COUNT, Array((1,))).fit(y, given=np.linspace(30, 34, 40)[:, None], seed=1)
    np.testing.assert_allclose(m.summary().estimate, [0, 1], atol=1e-6)
    # at its mean a Poisson is a normal of that variance
    np.testing.assert_allclose(
        m.log_prob(y, given=np.linspace(30, 34, 40)[:, None]).nats, -0.5 * np.log(2 * np.pi * y), rtol=1e-6
    )


# What rows leave undetermined


@pytest.mark.parametrize("head", EVENTS)
def test_scaling_and_standardising_change_coefficients_and_nothing_else(head):
    y, plain = respond(head), fitted(head)
    scaled = {**GIVEN, "dose": 1e6 * GIVEN["dose"] + 3e6}
    other = Regression(EVENTS[head], COVARIATES, head=head).fit(y, given=scaled, seed=1)
    raw = Regression(EVENTS[head], COVARIATES, head=head, standardise=False).fit(y, given=GIVEN, seed=1)
    nats = plain.log_prob(y, given=GIVEN).nats
    np.testing.assert_allclose(other.log_prob(y, given=scaled).nats, nats, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(raw.log_prob(y, given=GIVEN).nats, nats, rtol=1e-7, atol=1e-7)
    assert other.summary().estimate[2] * 1e6 == pytest.approx(plain.summary().estimate[2], rel=1e-6)
    np.testing.assert_allclose(raw.summary().stderr, plain.summary().stderr, rtol=1e-5)


def test_summary_is_in_the_units_of_the_data():
    m = fitted("normal")
    np.testing.assert_allclose(X @ m.summary().estimate[:5], m.predict(GIVEN), rtol=1e-10)
    assert m.summary().names == ("intercept", "age", "dose", "group[b]", "group[c]", "log_scale")
    assert m.summary()["age"] == m.summary().estimate[1]
    assert m.summary().frame().column_names == ["name", "estimate", "stderr", "low", "high", "p_value"]
    assert str(m.summary()).count("\n") == 7
    y = respond("normal")
    sigma = math.sqrt(((y - m.predict(GIVEN)) ** 2).mean())
    assert m.summary()["log_scale"] == pytest.approx(math.log(sigma))


def test_constant_and_collinear_columns_have_no_error_and_do_no_harm():
    context, g = Table({**COVARIATES.columns, "twice": Real(), "one": Real()}), GIVEN["age"]
    given = {**GIVEN, "twice": 3 - 2 * g, "one": np.full(N, 7.0)}
    for head in ("normal", "poisson", "categorical"):
        m = Regression(EVENTS[head], context, head=head).fit(respond(head), given=given, seed=1)
        assert m.log_likelihood == pytest.approx(fitted(head).log_likelihood, rel=1e-9)
        assert m.n_params == fitted(head).n_params
        np.testing.assert_allclose(m.predict(given), fitted(head).predict(GIVEN), rtol=1e-6)
        errors = dict(zip(m.summary().names, m.summary().stderr, strict=True))
        before = "level 1: " if head == "categorical" else ""
        assert all(math.isinf(errors[before + name]) for name in ("age", "twice", "one"))
        plain = dict(zip(fitted(head).summary().names, fitted(head).summary().stderr, strict=True))
        assert errors[before + "dose"] == pytest.approx(plain[before + "dose"], rel=1e-6)
        assert any("collinear" in note for note in m.report.notes)


@pytest.mark.parametrize("head", ["bernoulli", "categorical"])
def test_separated_responses_warn_and_stay_finite_with_ridge(head):
    x = np.linspace(-1, 1, 40)
    y = (x > 0).astype(int)
    m = Regression(BINARY, Array((1,)), head=head)
    with pytest.warns(SeparationWarning, match="ridge"):
        m.fit(y, given=x[:, None], seed=1)
    assert np.isfinite(m.log_prob(y, given=x[:, None]).nats).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.fit(y, given=x[:, None], seed=1, ridge=1.0)
        free = Regression(BINARY, COVARIATES, head=head).fit(respond("bernoulli"), given=GIVEN, seed=1)
    assert abs(m.weight.detach()[0, 1]) < 5
    assert np.isfinite(m.summary().stderr).all()
    assert free.report.stopped == "converged"


def test_a_category_that_never_succeeds_separates_only_itself():
    group = np.repeat(["a", "b", "c"], 20)
    y = np.r_[np.tile([0, 1], 20), np.ones(20)]
    m = Regression(BINARY, Table({"group": Category(("a", "b", "c"))}))
    with pytest.warns(SeparationWarning):
        m.fit(y, given={"group": group}, seed=1)
    np.testing.assert_allclose(m.predict({"group": ["a", "b", "c"]}), [0.5, 0.5, 1.0], atol=1e-8)
    assert m.summary().stderr[1] < 1


@pytest.mark.parametrize("head", ["normal", "student_t", "gamma"])
def test_densities_without_bound_are_refused_and_leave_the_model_as_it_was(head):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 30)), rng.gamma(3.0, size=20)
    m = Regression(EVENTS[head], Array((30,)), head=head)
    with pytest.raises(FitError, match="passes through the rows") as caught:
        m.fit(y, given=x, seed=1)
    assert caught.value.do
    assert m.report is None
    assert all(
        torch.equal(a, b)
        for a, b in zip(m.buffers(), Regression(EVENTS[head], Array((30,)), head=head).buffers(), strict=True)
    )
    with pytest.raises(FitError, match="no bound"):
        m.fit(y[:1], given=x[:1], seed=1)
    with pytest.raises(FitError, match="no bound"):
        Regression(EVENTS[head], None, head=head).fit(np.full(9, 2.5), seed=1)


def test_fewer_rows_than_columns_and_single_rows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 30)), rng.gamma(3.0, size=20)
    m = Regression(REAL, Array((30,))).fit(y, given=x, seed=1, ridge=2.0)
    z = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(m.predict(x), Ridge(alpha=2.0).fit(z, y).predict(z), rtol=1e-8)
    assert np.isfinite(m.summary().stderr).all()
    one = Regression(COUNT, Array((1,))).fit([3], given=[[2.0]], seed=1)
    assert one.predict([[2.0]])[0] == pytest.approx(3.0)
    with pytest.warns(SeparationWarning):
        sure = Regression(BINARY, Array((1,))).fit([1], given=[[2.0]], seed=1)
    assert sure.predict([[2.0]])[0] == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-200, 1e-5, 1e8, 1e200, 1e300])
def test_huge_and_tiny_units_change_the_unit_only(scale):
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 40)
    for event, y in ((REAL, 2 + 3 * x + 0.1 * rng.normal(size=40)), (POSITIVE, np.exp(x) * rng.gamma(3.0, size=40))):
        plain = Regression(event, Array((1,))).fit(y, given=x[:, None], seed=1)
        m = Regression(event, Array((1,))).fit(y * scale, given=scale * x[:, None], seed=1)
        nats = m.log_prob(y * scale, given=scale * x[:, None]).nats + math.log(scale)
        np.testing.assert_allclose(nats, plain.log_prob(y, given=x[:, None]).nats, rtol=1e-9, atol=1e-9)
        slope = 1 if event is REAL else scale
        assert m.summary().estimate[1] * slope == pytest.approx(plain.summary().estimate[1], rel=1e-8)
        assert m.summary().stderr[1] * slope == pytest.approx(plain.summary().stderr[1], rel=1e-8)


# Laws with covariates

NETWORKS = {
    "mdn": {"head": "normal", "hidden": (12,), "components": 3},
    "net": {"head": "negative_binomial", "hidden": (8,)},
    "classes": {"head": "categorical", "hidden": (8,)},
    "experts": {"head": "gamma", "components": 2},
}


def network(name, steps=60):
    options = NETWORKS[name]
    key = (name, steps)
    if key not in _fitted:
        made = Regression(EVENTS[options["head"]], COVARIATES, **options)
        _fitted[key] = made.fit(respond(options["head"]), given=GIVEN, seed=1, steps=steps)
    return _fitted[key]


def any_model(name):
    return (network(name), NETWORKS[name]["head"]) if name in NETWORKS else (fitted(name), name)


ALL = [*EVENTS, *NETWORKS]


@pytest.mark.parametrize("name", ALL)
def test_every_row_has_an_exact_number_of_y_given_x_that_is_the_programs(name):
    m, head = any_model(name)
    y = respond(head)
    lp = m.log_prob(y, given=GIVEN)
    assert lp.kind is Kind.EXACT
    assert lp.of == "y|x"
    assert lp.measure == EVENTS[head].measure
    np.testing.assert_allclose(m.log_prob(y, given=GIVEN, by=Enumerate()).nats, lp.nats, rtol=1e-9, atol=1e-9)
    assert lp.sum().value == pytest.approx(m.log_likelihood, rel=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_order_and_slices_do_not_matter_and_seeds_and_copies_repeat(name, tmp_path, monkeypatch):
    m, head = any_model(name)
    y, rows = respond(head), np.array([7, 3, 3, 100])
    part = {column: values[rows] for column, values in GIVEN.items()}
    tolerance = 1e-12 if m.linear else 1e-5
    nats = m.log_prob(y, given=GIVEN).nats
    np.testing.assert_allclose(m.log_prob(y[rows], given=part).nats, nats[rows], rtol=tolerance, atol=tolerance)
    options = {} if m.linear else {"steps": 60}
    twin = copy.deepcopy(m).fit(y, given=GIVEN, seed=1, **options)
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), m.state_dict().values(), strict=True))
    monkeypatch.setitem(store.FAMILIES, "Regression", "probgen.models.regression")
    again = store.load(store.save(m, tmp_path / "m"))
    assert repr(again) == repr(m)
    assert again.aic() == m.aic()
    np.testing.assert_array_equal(again.log_prob(y, given=GIVEN).nats, nats)
    np.testing.assert_array_equal(again.sample(4, given=part, seed=2), m.sample(4, given=part, seed=2))
    if m.linear:
        assert str(again.summary()) == str(m.summary())


def p_of(counts, p):
    keep = p * counts.sum() > 10
    observed = np.append(counts[keep], counts[~keep].sum())
    expected = np.append(p[keep], max(1 - p[keep].sum(), 1e-12)) * counts.sum()
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1] * observed[:-1].sum() / expected[:-1].sum()
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1)


@pytest.mark.parametrize("name", ALL)
def test_draws_follow_the_conditional_density_and_a_wrong_temperature_is_caught(name):
    m, _ = any_model(name)
    one = {column: values[5:6] for column, values in GIVEN.items()}
    draws = np.asarray(m.sample(120_000, given=one, seed=3), dtype=float)
    if m.event.discrete:
        top = m.event.levels or int(draws.max()) + 30
        grid = np.arange(top)
        p = np.exp(m.log_prob(grid, given={c: np.repeat(v, top) for c, v in one.items()}).nats)
        counts = np.bincount(draws.astype(int), minlength=top)
        hot = p**0.9 / (p**0.9).sum()
    else:
        edges = np.quantile(draws, [0.001, 0.999])
        fine = np.linspace(*edges, 40 * 100 + 1)
        middle, step = (fine[1:] + fine[:-1]) / 2, fine[1] - fine[0]
        density = np.exp(m.log_prob(middle, given={c: np.repeat(v, len(middle)) for c, v in one.items()}).nats) * step
        counts = np.histogram(draws, np.linspace(*edges, 41))[0]
        cells, warm = density.reshape(40, 100).sum(1), (density**0.9).reshape(40, 100).sum(1)
        p, hot = cells / cells.sum(), warm / warm.sum()
    assert p.sum() == pytest.approx(1, abs=1e-6)
    assert p_of(counts, p) > ALPHA
    if m.event.levels != 2:  # a coin has one temperature-free chance: near one half it is not told apart
        assert p_of(counts, hot) < ALPHA


@pytest.mark.parametrize("name", ["mdn", "experts"])
def test_mixture_densities_integrate_to_one_at_every_covariate(name):
    m, _ = any_model(name)
    low, high = (-40.0, 40.0) if name == "mdn" else (1e-6, 400.0)
    grid = np.linspace(low, high, 40_001) if name == "mdn" else np.geomspace(low, high, 40_001)
    for row in (0, 9, 30):
        density = np.exp(m.log_prob(grid, given={c: np.repeat(v[row], len(grid)) for c, v in GIVEN.items()}).nats)
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=2e-3)


def two_branches(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, n)
    return x[:, None], np.where(rng.random(n) < 0.5, 1, -1) * (1 + x**2 / 2) + 0.2 * rng.normal(size=n)


def true_nats(x, y):
    branch = 1 + x[:, 0] ** 2 / 2
    return np.logaddexp(stats.norm.logpdf(y, branch, 0.2), stats.norm.logpdf(y, -branch, 0.2)) - math.log(2)


def test_a_mixture_density_network_finds_two_branches_where_one_normal_can_not():
    (x, y), (new, held) = two_branches(1500, 0), two_branches(1000, 1)
    m = Regression(REAL, Array((1,)), hidden=(24,), components=2).fit(y, given=x, seed=1, steps=700)
    single = Regression(REAL, Array((1,)), hidden=(24,)).fit(y, given=x, seed=1, steps=200)
    truth = true_nats(new, held)
    loss = truth - m.log_prob(held, given=new).nats
    assert loss.mean() + 5 * loss.std() / math.sqrt(1000) > 0
    assert loss.mean() < 0.12
    assert (truth - single.log_prob(held, given=new).nats).mean() > 1
    assert len(m.report.validation) > 2
    assert max(m.report.objective) > m.report.objective[0]


def test_a_linear_network_comes_near_the_linear_model():
    m = Regression(COUNT, COVARIATES, head="poisson", hidden=(4,)).fit(
        respond("poisson"), given=GIVEN, seed=1, steps=300, validation=0.0
    )
    assert m.log_likelihood > fitted("poisson").log_likelihood - 5


def test_without_covariates_it_is_the_response_alone():
    y = respond("poisson")
    m = Regression.for_event(COUNT).fit(y, seed=1)
    assert m.log_prob(y).of == "x"
    np.testing.assert_allclose(m.log_prob(y).nats, stats.poisson.logpmf(y, y.mean()), rtol=1e-9)
    assert m.sample(5, seed=1).shape == (5,)
    assert m.predict()[0] == pytest.approx(y.mean())


def test_draws_have_one_axis_for_one_condition_and_two_for_several():
    m, two = fitted("normal"), {column: values[:2] for column, values in GIVEN.items()}
    one = {column: values[:1] for column, values in GIVEN.items()}
    assert m.sample(7, given=one, seed=1).shape == (7,)
    assert m.sample(7, given=two, seed=1).shape == (2, 7)
    wide = Regression(Array((1,)), COVARIATES).fit(respond("normal")[:, None], given=GIVEN, seed=1)
    assert wide.sample(7, given=two, seed=1).shape == (2, 7, 1)
    table = Regression(Table({"y": Category(("no", "yes"))}), COVARIATES)
    table.fit({"y": np.array(["no", "yes"])[respond("bernoulli")]}, given=GIVEN, seed=1)
    drawn = table.sample(3, given=two, seed=1)
    assert set(drawn["y"]) <= {"no", "yes"}
    assert len(drawn["y"]) == 6
    np.testing.assert_allclose(table.summary().estimate, fitted("bernoulli").summary().estimate)


def test_the_program_draws_what_its_plate_says():
    m = fitted("gamma")
    x = COVARIATES.check(GIVEN).x
    with pyro.validation_enabled(False), torch.random.fork_rng():
        assert m.model(given=x[:3]).shape == (3,)
        assert m.model(given=x[:1], n=5).shape == (5,)
        assert Regression.for_event(COUNT).fit([1, 2, 3], seed=1).model(n=4).shape == (4,)


# Bad input


def test_missing_cells_are_refused_by_name():
    m, y = Regression(REAL, COVARIATES), respond("normal")
    holes = {**GIVEN, "dose": np.where(np.arange(N) == 4, np.nan, GIVEN["dose"])}
    for verb in (m.fit, fitted("normal").log_prob):
        with pytest.raises(DataError, match="Row 4, covariate dose is missing"):
            verb(y, given=holes)
        with pytest.raises(DataError, match="row 9"):
            verb(np.where(np.arange(N) == 9, np.nan, y), given=GIVEN)
    with pytest.raises(DataError, match="covariate dose is missing"):
        fitted("normal").sample(2, given=holes)
    table = Regression(Table({"y": Real()}), COVARIATES)
    with pytest.raises(DataError, match="Row 9, column y is missing"):
        table.fit({"y": np.where(np.arange(N) == 9, np.nan, y)}, given=GIVEN)
    with pytest.raises(SupportError, match="'d'"):
        fitted("normal").predict({"age": [1.0], "dose": [1.0], "group": ["d"]})
    with pytest.raises(ShapeError, match="10 rows"):
        fitted("normal").log_prob(y, given={c: v[:10] for c, v in GIVEN.items()})
    with pytest.raises(ParameterError, match="without given="):
        fitted("normal").log_prob(y)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((Array((2,)),), StructureError, "one number"),
        ((Array((), "unit"),), StructureError, "unit"),
        ((Array((), resolution=0.1),), StructureError, "resolution"),
        ((Table({"y": Real(), "z": Count()}),), StructureError, "one column"),
        ((Table({"y": Category(("a",))}),), StructureError, "one level"),
        ((REAL, Array((2, 2))), StructureError, "Array"),
        ((REAL, REAL, "poisson"), StructureError, "normal"),
        ((REAL, REAL, "norml"), ParameterError, "normal"),
        ((COUNT, REAL, None, "logit"), StructureError, "log"),
        ((BINARY, REAL, None, "identity"), StructureError, "probit"),
        ((REAL, None, None, None, (8,)), StructureError, "without covariates"),
        ((REAL, REAL, None, None, (0,)), ParameterError, "hidden"),
        ((BINARY, REAL, None, None, (), 2), StructureError, "components"),
        ((REAL, REAL, "student_t", None, (), 1, 0.1), ParameterError, "df"),
        ((COUNT, COVARIATES, None, None, (), 1, "free", "group"), StructureError, "offset"),
        ((COUNT, COVARIATES, None, None, (), 1, "free", "agee"), StructureError, "age"),
        ((COUNT, COVARIATES, None, None, (8,), 1, "free", "age"), StructureError, "linear"),
    ],
)
def test_wrong_parts_are_refused_by_name(arguments, error, named):
    with pytest.raises(error, match=named):
        Regression(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"method": "mcmc"}, ParameterError, "laplace"),
        ({"ridge": -1.0}, ParameterError, "ridge"),
        ({"ridge": 1.0, "method": "laplace"}, ParameterError, "prior_scale"),
        ({"max_iter": 0}, ParameterError, "max_iter"),
        ({"draws": 30, "chains": 0, "method": "nuts"}, ParameterError, "chain"),
        ({"prior_scale": 0.0}, ParameterError, "slope"),
        ({"method": "conjugate"}, StructureError, "normal"),
    ],
)
def test_wrong_options_are_refused_by_name(options, error, named):
    with pytest.raises(error, match=named):
        Regression(COUNT, COVARIATES).fit(respond("poisson"), given=GIVEN, **options)


def test_a_network_has_no_coefficients_to_report():
    m = network("mdn")
    for question in (m.summary, m.log_evidence, lambda: m.deviance):
        with pytest.raises(StructureError, match="linear"):
            question()
    with pytest.raises(StructureError, match="weight_decay"):
        Regression(REAL, COVARIATES, hidden=(4,)).fit(respond("normal"), given=GIVEN, ridge=1.0)
    with pytest.raises(NotFittedError, match="fit"):
        Regression(REAL, COVARIATES).summary()
