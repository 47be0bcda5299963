"""Mixtures against scikit-learn, EM's laws, and the corners of a fit."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.mixture import GaussianMixture

from probgen import emissions as em
from probgen.emissions.factor import FactorNormal
from probgen.errors import DataError, FitError, NotFittedError, ParameterError, StructureError
from probgen.estimate import Enumerate
from probgen.events import Array, Category, Count, Real, Table
from probgen.logprob import Kind
from probgen.model import TiesWarning
from probgen.models.mixture import Mixture

COVARIANCES = ("full", "tied", "diag", "spherical")
quick = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
covariances = pytest.mark.parametrize("covariance", COVARIANCES)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cells(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def clusters(n=200, dim=2, seed=0, apart=4.0):
    rng = np.random.default_rng(seed)
    centre = apart * np.array([[0.0, 0.0, 0.0], [1.0, 0.5, -1.0], [-0.5, 1.0, 0.7]])[:, :dim]
    return centre[rng.integers(0, 3, n)] + rng.normal(0, 1, (n, dim)) @ rng.normal(0, 1, (dim, dim))


def normals(dim=2, components=3, covariance="full", floor=1e-6, missing=False):
    event = Table({f"x{d}": Real() for d in range(dim)}) if missing else Array((dim,))
    return Mixture(event, components, em.Normal(dim, covariance, floor=floor))


def learner(covariance, x, steps, seed=0):
    """A scikit-learn mixture after so many EM iterations from a start that can be copied."""
    rng = np.random.default_rng(seed)
    dim = x.shape[1]
    means = x[rng.choice(len(x), 3, replace=False)]
    precision = np.linalg.inv(np.cov(x.T))
    start = {
        "full": np.stack([precision] * 3),
        "tied": precision,
        "diag": np.ones((3, dim)) / 2,
        "spherical": np.ones(3) / 2,
    }
    theirs = GaussianMixture(
        3, covariance_type=covariance, tol=0.0, reg_covar=0.0, max_iter=max(steps, 1), weights_init=[0.5, 0.3, 0.2],
        means_init=means, precisions_init=start[covariance],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(x)
    return theirs, means, start[covariance]


def put(m, weights, means, covariances):
    """Sets a mixture's parameters; matrices for full and tied, variances for diag and spherical."""
    m.logits.data, m.emission.loc.data = cells(np.log(weights)), cells(means)
    if m.emission.matrix:
        m.emission._set_factor(torch.linalg.cholesky(cells(covariances)))
    else:
        m.emission.log_scale.data = 0.5 * cells(covariances).log().reshape(m.emission.log_scale.shape)


def started(monkeypatch, *parameters):
    """Makes every fit start from these parameters."""
    monkeypatch.setattr(Mixture, "_start", lambda self, cells, generator: put(self, *parameters))


def objective(m, x):
    return m.log_prob(x).nats.sum()


# Against scikit-learn


@covariances
@pytest.mark.parametrize("steps", [1, 20])
def test_log_likelihood_is_scikit_learns_for_the_same_parameters(covariance, steps):
    x = clusters(dim=3)
    theirs, _, _ = learner(covariance, x, steps)
    m = normals(3, covariance=covariance).fit(x, seed=0, restarts=1, max_iter=1)
    put(m, theirs.weights_, theirs.means_, theirs.covariances_)
    np.testing.assert_allclose(m.log_prob(x).nats, theirs.score_samples(x), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(m.responsibilities(x), theirs.predict_proba(x), rtol=1e-8, atol=1e-10)


@covariances
@pytest.mark.parametrize("steps", [1, 2, 5, 25])
def test_em_is_scikit_learns_step_by_step(covariance, steps, monkeypatch):
    x = clusters(dim=3)
    theirs, means, precision = learner(covariance, x, steps)
    start = np.linalg.inv(precision) if covariance in ("full", "tied") else 1 / precision
    started(monkeypatch, [0.5, 0.3, 0.2], means, start)
    m = normals(3, covariance=covariance, floor=0.0).fit(x, seed=0, restarts=1, max_iter=steps, tol=0.0)
    assert m.report.steps == steps
    np.testing.assert_allclose(m.log_prob(x).nats.mean(), theirs.score(x), rtol=1e-8)
    assert m.report.objective[-1] == pytest.approx(theirs.score(x), rel=1e-8)


@covariances
def test_sizes_and_criteria_are_scikit_learns(covariance):
    x = clusters(dim=3)
    m = normals(3, covariance=covariance).fit(x, seed=0)
    theirs = GaussianMixture(3, covariance_type=covariance).fit(x)
    put(m, theirs.weights_, theirs.means_, theirs.covariances_)
    m.log_likelihood = float(objective(m, x))
    assert m.n_params == theirs._n_parameters()
    assert m.aic() == pytest.approx(theirs.aic(x), rel=1e-10)
    assert m.bic() == pytest.approx(theirs.bic(x), rel=1e-10)


def test_another_covariance_would_be_told_from_scikit_learns():
    x = clusters(dim=3)
    theirs, _, _ = learner("full", x, 5)
    m = normals(3).fit(x, seed=0, restarts=1, max_iter=1)
    put(m, theirs.weights_, theirs.means_, theirs.covariances_ * (1 + 1e-7))
    assert abs(m.log_prob(x).nats - theirs.score_samples(x)).max() > 1e-8


# EM's laws


def climbs(history):
    return all(b >= a - 1e-9 * max(1.0, abs(a)) for a, b in itertools.pairwise(history))


def test_the_check_of_climbing_can_fail():
    assert climbs((-2.0, -1.5, -1.5))
    assert not climbs((-2.0, -1.5, -1.6))


numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3))


@covariances
@quick
@given(data=st.data())
def test_em_climbs_on_any_data_with_gaps(covariance, data):
    value = st.one_of(numbers, st.floats(-3, 3), st.sampled_from([0.0, 1.0, math.nan]))
    x = np.array(data.draw(st.lists(st.tuples(value, value, value), min_size=4, max_size=19)))
    m = normals(3, 2, covariance, missing=True).fit(x, seed=0, restarts=1, max_iter=15, tol=0.0)
    assert climbs(m.report.objective)
    assert np.isfinite(m.report.objective).all()
    assert not np.isnan(m.log_prob(x).nats).any()


TABLE = Table(
    {"r": Real(), "p": Real(positive=True), "s": Real(resolution=0.5), "n": Count(), "c": Category(("a", "b", "c"))}
)


@quick
@given(data=st.data())
def test_em_climbs_on_mixed_tables_with_gaps(data):
    column = {
        "r": st.floats(-1e3, 1e3),
        "p": st.floats(1e-6, 1e6),
        "s": st.integers(-40, 40).map(lambda i: i / 2),
        "n": st.integers(0, 1000).map(float),
        "c": st.sampled_from(["a", "b", "c"]),
    }
    n = data.draw(st.integers(3, 15))
    x = {name: data.draw(st.lists(st.one_of(st.none(), s), min_size=n, max_size=n)) for name, s in column.items()}
    x = {k: v if k == "c" else np.array(v, dtype=np.float64) for k, v in x.items()}
    m = Mixture(TABLE, 2).fit(x, seed=0, restarts=1, max_iter=10, tol=0.0)
    assert climbs(m.report.objective)
    assert np.isfinite(m.log_prob(x).nats).all()


@pytest.mark.parametrize(
    "event", [Array((1,)), Array((1,), resolution=0.1), Array((1,), "positive"), Array((1,), "unit")]
)
@pytest.mark.parametrize("seed", range(2))
def test_em_climbs_with_histograms(event, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (30, 1)) if event.resolution is None else np.round(rng.normal(0, 1, (30, 1)), 1)
    x = {"positive": np.exp(x), "unit": special.expit(x)}.get(event.support, x)
    # an event without a default emission still takes one by hand
    emission = em.Histogram(1, event.support, event.resolution)
    if Mixture.suits(event):
        event = Array((1,))
    m = Mixture(event, 3, emission).fit(x, seed=seed, restarts=2, max_iter=20)
    assert climbs(m.report.objective)


@covariances
@pytest.mark.parametrize("gaps", [False, True])
def test_the_fixed_point_of_em_has_zero_gradient(covariance, gaps, monkeypatch):
    x = clusters(dim=2, apart=6.0)
    if gaps:
        x[np.random.default_rng(1).uniform(size=x.shape) < 0.15] = np.nan
    m = normals(2, covariance=covariance, missing=True).fit(x, seed=0, restarts=1, max_iter=2000, tol=1e-15)
    m.zero_grad()
    m._joint(cells(x)).logsumexp(1).mean().backward()
    assert m.logits.grad.abs().max() < 1e-5
    if not (gaps and m.emission.matrix):  # held by test_gradients_reach_the_parameters_through_rows_with_gaps
        assert m.emission.loc.grad.abs().max() < 1e-5
    m.emission.loc.data += 0.1
    m.zero_grad()
    m._joint(cells(x)).logsumexp(1).mean().backward()
    assert m.logits.grad.abs().max() > 1e-5  # elsewhere it has not


class Falling(em.Poisson):
    """A planted bug: the M step goes the wrong way from the third call on."""

    calls = 0

    @torch.no_grad()
    def maximise(self, statistics):
        Falling.calls += 1
        empty = super().maximise(statistics)
        if Falling.calls > 3:
            self.log_rate += 1.0
        return empty


def counts(seed=0, n=100):
    return np.random.default_rng(seed).poisson(4.0, (n, 1))


def test_a_decreasing_m_step_raises_a_fit_error_that_names_the_step():
    Falling.calls = 0
    with pytest.raises(FitError, match="down at iteration") as caught:
        Mixture(Array((1,), "count"), 2, Falling()).fit(counts(), seed=0, restarts=1, tol=0.0)
    assert caught.value.step >= 1


def test_a_failed_fit_keeps_the_last_good_state():
    m = Mixture(Array((1,), "count"), 2, Falling())
    Falling.calls = -(10**6)
    before = m.fit(counts(), seed=0, restarts=1).log_prob(counts()).nats
    Falling.calls = 0
    with pytest.raises(FitError):
        m.fit(counts(1), seed=0, restarts=1, tol=0.0)
    assert m.log_prob(counts()).nats.mean() > before.mean() - 0.5
    assert np.isfinite(m.log_prob(counts()).nats).all()


@pytest.mark.parametrize("restarts", [1, 5])
def test_restarts_report_their_optima_best_first(restarts):
    m = normals(2, 5).fit(clusters(), seed=3, restarts=restarts, max_iter=30)
    optima = m.report.optima
    assert len(optima) == restarts
    assert list(optima) == sorted(optima, reverse=True)
    assert optima[0] == m.report.objective[-1]
    assert m.report.objective[-1] == pytest.approx(m.log_prob(clusters()).nats.mean(), rel=1e-12)


def test_restarts_differ():
    assert len(set(normals(2, 6).fit(clusters(), seed=3, restarts=5, max_iter=10).report.optima)) > 1


def test_the_same_seed_gives_the_same_fit_and_another_seed_another():
    fits = [normals(2, 5).fit(clusters(), seed=s, restarts=1, max_iter=5).log_prob(clusters()).nats for s in (1, 1, 2)]
    assert (fits[0] == fits[1]).all()
    assert (fits[0] != fits[2]).any()


# Counts and criteria


SIZES = [
    (normals(3, 4, "full"), 3 + 4 * 3 + 4 * 6),
    (normals(3, 4, "tied"), 3 + 4 * 3 + 6),
    (normals(3, 4, "diag"), 3 + 4 * 3 + 4 * 3),
    (normals(3, 4, "spherical"), 3 + 4 * 3 + 4),
    (Mixture(Array((2,), levels=5), 3), 2 + 3 * 2 * 4),
    (Mixture(Array((2,), levels=(2, 4)), 3), 2 + 3 * (1 + 3)),
    (Mixture(Array((2,), "count"), 3), 2 + 3 * 2),
    (Mixture(Array((2,), resolution=0.1), 3), 2 + 3 * 2 * 2),
    (Mixture(TABLE, 2), 1 + 2 * (2 + 2 + 2 + 1 + 2)),
    (normals(1, 1, "full"), 2),
]


@pytest.mark.parametrize(("m", "count"), SIZES, ids=[repr(m.emission)[:40] for m, _ in SIZES])
def test_free_parameters_are_counted_by_hand(m, count):
    assert m.n_params == count


@pytest.mark.parametrize("event", [Array((2,)), Array((2,), "count"), Array((2,), levels=6)])
def test_aic_and_bic_are_their_formulas(event):
    x = np.random.default_rng(0).poisson(2.0, (150, 2)).clip(0, 5) + (0.0 if event.discrete else 1e-3)
    x = x if event.discrete else x + np.random.default_rng(1).normal(0, 1, x.shape)
    m = Mixture(event, 3).fit(x, seed=0)
    total = objective(m, x)
    assert m.log_likelihood == pytest.approx(total, rel=1e-12)
    assert m.aic() == pytest.approx(2 * m.n_params - 2 * total, rel=1e-12)
    assert m.bic() == pytest.approx(m.n_params * math.log(150) - 2 * total, rel=1e-12)


@pytest.mark.parametrize("verb", ["aic", "bic"])
def test_criteria_before_a_fit_are_refused(verb):
    with pytest.raises(NotFittedError):
        getattr(normals(), verb)()


# Answers


@covariances
def test_responsibilities_sum_to_one_and_log_prob_is_exact(covariance):
    x = clusters()
    x[::7, 0] = np.nan
    m = normals(2, covariance=covariance, missing=True).fit(x, seed=0)
    r = m.responsibilities(x)
    assert r.shape == (200, 3)
    np.testing.assert_allclose(r.sum(1), 1.0, rtol=1e-12)
    assert ((r >= 0) & (r <= 1)).all()
    assert m.log_prob(x).kind is Kind.EXACT
    assert m.log_prob(x).stderr is None


def test_a_row_impossible_under_every_component_has_equal_shares_and_minus_infinity():
    m = Mixture(Array((1,), levels=3), 2, em.Categorical(3, 1, smoothing=0.0)).fit(np.array([[0], [1]] * 9), seed=0)
    assert m.log_prob(np.array([[2]])).nats[0] == -math.inf
    np.testing.assert_array_equal(m.responsibilities(np.array([[2]])), [[0.5, 0.5]])


@covariances
@pytest.mark.parametrize("c", [1e-9, 1e-3, 1e3, 1e9])
def test_a_fit_on_rescaled_data_shifts_log_prob_by_d_log_c(covariance, c):
    x = clusters()
    plain, scaled = (normals(2, covariance=covariance).fit(f * x, seed=4, max_iter=40, tol=0.0) for f in (1.0, c))
    np.testing.assert_allclose(
        scaled.log_prob(c * x).nats, plain.log_prob(x).nats - 2 * math.log(c), rtol=1e-7, atol=1e-7
    )


@covariances
@pytest.mark.parametrize("shift", [-1e6, 1e6])
def test_a_fit_on_shifted_data_gives_the_same_log_prob(covariance, shift):
    x = np.round(clusters(), 6)
    plain, moved = (normals(2, covariance=covariance).fit(x + s, seed=4, max_iter=40) for s in (0.0, shift))
    np.testing.assert_allclose(moved.log_prob(x + shift).nats, plain.log_prob(x).nats, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("covariance", ["full", "tied"])
@pytest.mark.parametrize("far", [1e6, 1e9])
def test_the_answer_for_a_row_is_the_same_alone_and_beside_an_outlier(covariance, far):
    x = clusters()
    m = normals(2, covariance=covariance).fit(x, seed=0)
    alone = m.log_prob(x[:1]).nats
    together = m.log_prob(np.concatenate([x[:1], [[far, far]]])).nats[:1]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@covariances
def test_batches_and_order_do_not_matter(covariance):
    x = clusters(600)
    m = normals(2, covariance=covariance).fit(x, seed=0)
    whole, order = m.log_prob(x).nats, np.random.default_rng(0).permutation(600)
    parts = np.concatenate([m.log_prob(x[i : i + 7]).nats for i in range(0, 600, 7)])
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    np.testing.assert_allclose(m.log_prob(x[order]).nats, whole[order], rtol=1e-12)


def shares_of(m, n=20000):
    """Standardised distance of the first cell's mean and of shares beyond it, samples against density."""
    x = m.sample(n, seed=8)[:, 0]
    w, loc = m.weights().detach().numpy(), m.emission.loc[:, 0].detach().numpy()
    sd = m.emission.scale().detach().numpy()[:, 0]
    return x, lambda y, s=1.0: (w * stats.norm.cdf(np.asarray(y)[:, None], loc, s * sd)).sum(1)


def test_samples_follow_the_mixture_and_a_planted_scale_does_not():
    m = normals(2, covariance="diag").fit(clusters(), seed=0)
    x, cdf = shares_of(m)
    assert stats.kstest(x, cdf).pvalue > 1e-6
    assert stats.kstest(x, lambda y: cdf(y, 1.15)).pvalue < 1e-6


# Corners


@covariances
def test_one_component_is_the_maximum_likelihood_normal(covariance):
    x = clusters(dim=3)
    m = normals(3, 1, covariance).fit(x, seed=0)
    S = np.cov(x.T, ddof=0)
    S = np.diag(np.diag(S)) if covariance == "diag" else S
    S = np.eye(3) * np.trace(S) / 3 if covariance == "spherical" else S
    np.testing.assert_allclose(m.log_prob(x).nats, stats.multivariate_normal(x.mean(0), S).logpdf(x), rtol=1e-9)


@covariances
def test_a_constant_column_is_no_obstacle(covariance):
    x = clusters(dim=3)
    x[:, 1] = 7.0
    with pytest.warns(TiesWarning, match="column 1"):
        m = normals(3, covariance=covariance).fit(x, seed=0)
    assert np.isfinite(m.log_prob(x).nats).all()
    assert m.log_prob(x).nats.mean() > m.log_prob(x + np.array([0.0, 1.0, 0.0])).nats.mean()


@covariances
def test_all_rows_equal_is_no_obstacle(covariance):
    m = normals(2, covariance=covariance).fit(np.full((12, 2), 3.0), seed=0)
    assert np.isfinite(m.log_prob(np.full((2, 2), 3.0)).nats).all()


@covariances
def test_duplicate_rows_are_no_obstacle(covariance):
    x = np.repeat(clusters(4), 4, axis=0)
    m = normals(2, 4, covariance).fit(x, seed=0)
    assert climbs(m.report.objective)
    assert np.isfinite(m.log_prob(x).nats).all()


@covariances
@pytest.mark.parametrize("far", [1e6, 1e12])
def test_a_far_outlier_is_no_obstacle(covariance, far):
    x = np.concatenate([clusters(), [[far, -far]]])
    m = normals(2, covariance=covariance).fit(x, seed=0)
    assert climbs(m.report.objective)
    assert np.isfinite(m.log_prob(x).nats).all()
    assert np.isfinite(m.log_prob(np.array([[1e100, 0.0]])).nats).all()


@covariances
def test_zero_floor_on_collapsing_data_ends_in_a_number_or_an_error_of_ours(covariance):
    x = np.repeat([[1.0, 2.0], [3.0, 5.0]], 6, axis=0)
    try:
        m = normals(2, 2, covariance, floor=0.0).fit(x, seed=0)
    except FitError:
        return
    assert not np.isnan(m.log_prob(x).nats).any()


def test_a_column_without_a_single_value_is_no_obstacle():
    x = clusters()
    x[:, 1] = np.nan
    m = normals(2, 2, missing=True).fit(x, seed=0)
    assert np.isfinite(m.log_prob(x).nats).all()


def test_missing_cells_are_no_ties():
    x = clusters()
    x[::7, 0] = np.nan
    assert Array((2,), missing=True).ties(cells(x)) is None
    assert Array((2,), missing=True).ties(cells(np.round(x))) is not None


@pytest.mark.parametrize("rows", [1, 2])
def test_fewer_rows_than_components_is_a_parameter_error(rows):
    with pytest.raises(ParameterError, match="3 components"):
        normals().fit(clusters(rows), seed=0)


def test_as_many_rows_as_components_is_enough():
    assert np.isfinite(normals().fit(clusters(3), seed=0).log_prob(clusters(3)).nats).all()


@pytest.mark.parametrize("components", [0, -1, 2.5, True, "3"])
def test_a_wrong_number_of_components_is_a_parameter_error(components):
    with pytest.raises(ParameterError):
        Mixture(Array((2,)), components)


@pytest.mark.parametrize(
    "options",
    [
        {"restarts": 0},
        {"restarts": 2.5},
        {"max_iter": 0},
        {"max_iter": 1.5},
        {"tol": -1.0},
        {"tol": math.nan},
        {"steps": 3},
    ],
)
def test_a_wrong_fit_option_is_a_parameter_error(options):
    with pytest.raises(ParameterError):
        normals().fit(clusters(), seed=0, **options)


def test_an_emission_of_another_width_is_a_structure_error():
    with pytest.raises(StructureError):
        Mixture(Array((2,)), 3, em.Normal(3))


def test_missing_cells_where_the_event_has_none_are_named():
    x = clusters()
    x[4, 1] = np.nan
    with pytest.raises(DataError, match="row 4"):
        normals().fit(x, seed=0)


def test_emissions_whose_statistics_do_not_add_up_see_all_rows_at_once():
    rng = np.random.default_rng(5)
    x = np.where(
        rng.random(70_000) < 0.3, rng.negative_binomial(3, 0.5, 70_000), rng.negative_binomial(20, 0.2, 70_000)
    )
    event = Array((1,), support="count")
    mixture = Mixture(event, 2, em.NegativeBinomial()).fit(x[:, None], seed=0, restarts=1, max_iter=40)
    assert len(list(Mixture(event, 2, em.Poisson())._chunks(torch.zeros(300_000, 1)))) > 1  # it would see pieces
    assert sorted(mixture.emission.mean()[:, 0].tolist()) == pytest.approx([3.0, 80.0], rel=0.05)


def test_an_emission_that_needs_covariates_is_refused():
    with pytest.raises(StructureError, match="no covariates"):
        Mixture(Array((1,)), 2, em.LinearRegression(1, inputs=2))


# Factor analysers and probabilistic PCA


NOISES = ("diag", "spherical")
noises = pytest.mark.parametrize("noise", NOISES)


def factored(n=300, dim=5, rank=2, seed=0, noise="diag"):
    """Rows of one factor model."""
    rng = np.random.default_rng(seed)
    loadings, std = rng.normal(0, 1.5, (dim, rank)), rng.uniform(0.3, 1.2, dim) if noise == "diag" else 0.6
    return rng.normal(size=(n, rank)) @ loadings.T + std * rng.normal(size=(n, dim)) + 3.0


def factors(dim=5, rank=2, noise="diag", components=1, missing=False, floor=1e-6):
    event = Table({f"x{d}": Real() for d in range(dim)}) if missing else Array((dim,))
    return Mixture(event, components, FactorNormal(dim, rank, noise, floor))


def covariance_of(m, k=0):
    return m.emission.natural()["covariance"][k].detach().numpy()


@noises
@pytest.mark.parametrize("gaps", [False, True])
def test_a_factor_model_is_the_normal_of_its_covariance_with_or_without_gaps(noise, gaps):
    x = factored(60)
    x[np.random.default_rng(2).random(x.shape) < 0.3 * gaps] = np.nan
    x[7] = np.nan if gaps else x[7]
    m = factors(noise=noise, components=2, missing=True).fit(x, seed=0, restarts=1, max_iter=5)
    w, loc = m.weights().detach().numpy(), m.emission.loc.detach().numpy()
    for row, nats in zip(x, m.log_prob(x).nats, strict=True):
        seen = ~np.isnan(row)
        each = [
            stats.multivariate_normal(loc[k, seen], covariance_of(m, k)[np.ix_(seen, seen)]).logpdf(row[seen])
            if seen.any()
            else 0.0
            for k in (0, 1)
        ]
        assert nats == pytest.approx(special.logsumexp(each, b=w), rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(m.log_prob(x, by=Enumerate()).nats, m.log_prob(x).nats, rtol=1e-9, atol=1e-9)


def test_probabilistic_pca_is_scikit_learns_in_one_m_step():
    x = factored(noise="spherical")
    theirs = PCA(2).fit(x)
    m = factors(noise="spherical").fit(x, seed=0, restarts=1, max_iter=1)
    shrunk = (len(x) - 1) / len(x)  # theirs is not the likelihood's maximum but the unbiased covariance's
    np.testing.assert_allclose(covariance_of(m), theirs.get_covariance() * shrunk, rtol=1e-9, atol=1e-9)
    assert m.log_prob(x).nats.mean() > theirs.score(x)
    latents = m.emission.factors(cells(x))[:, 0].detach().numpy()
    scores = theirs.transform(x)
    for own, other in zip(latents.T[::-1], scores.T, strict=True):  # the same axes, up to sign and shrinkage
        assert abs(np.corrcoef(own, other)[0, 1]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_factor_analysis_reaches_scikit_learns_optimum(seed):
    x = factored(300, 8, seed=seed)
    theirs = FactorAnalysis(2, tol=1e-7, max_iter=5000, svd_method="lapack").fit(x)
    m = factors(8).fit(x, seed=0, restarts=1, max_iter=500, tol=1e-12)
    assert m.log_prob(x).nats.mean() > theirs.score(x) - 1e-7
    other = np.cov(x.T, ddof=0)  # which a diagonal or a full covariance would miss
    assert abs(covariance_of(m) - other).max() > 1e-3


def test_the_latents_of_a_factor_model_are_regressions_on_what_is_seen():
    x = factored(20)
    m = factors(missing=True).fit(x, seed=0)
    x[3, [1, 4]] = np.nan
    W = m.emission.loadings[0].detach().numpy()
    for row, found in zip(x, m.emission.factors(cells(x))[:, 0].detach().numpy(), strict=True):
        seen = ~np.isnan(row)
        away = (row - m.emission.loc[0].detach().numpy())[seen]
        truth = W[seen].T @ np.linalg.solve(covariance_of(m)[np.ix_(seen, seen)], away)
        np.testing.assert_allclose(found, truth, rtol=1e-8, atol=1e-10)


@noises
@quick
@given(data=st.data())
def test_em_climbs_with_factors_on_any_data_with_gaps(noise, data):
    value = st.one_of(numbers, st.floats(-3, 3), st.sampled_from([0.0, 1.0, math.nan]))
    x = np.array(data.draw(st.lists(st.tuples(value, value, value), min_size=4, max_size=19)))
    m = factors(3, 1, noise, 2, missing=True).fit(x, seed=0, restarts=1, max_iter=10, tol=0.0)
    assert climbs(m.report.objective)
    assert np.isfinite(m.report.objective).all()
    assert not np.isnan(m.log_prob(x).nats).any()


@noises
def test_the_fixed_point_of_em_with_factors_has_zero_gradient(noise):
    x = np.concatenate([factored(150, 8, seed=0), 12 + factored(150, 8, seed=1)])
    m = factors(8, noise=noise, components=2).fit(x, seed=0, restarts=1, max_iter=400, tol=1e-15)
    for parameter, still in ((m.emission.loadings, True), (m.emission.log_noise, True), (m.emission.loc, False)):
        parameter.data += 0.0 if still else 0.1
        m.zero_grad()
        m._joint(cells(x)).logsumexp(1).mean().backward()
        assert (parameter.grad.abs().max() < 1e-5) == still


@noises
@pytest.mark.parametrize("c", [1e-9, 1e9])
def test_a_factor_fit_on_rescaled_data_shifts_log_prob_by_d_log_c(noise, c):
    x = factored()
    plain, scaled = (factors(noise=noise, components=2).fit(f * x, seed=4, max_iter=30, tol=0.0) for f in (1.0, c))
    np.testing.assert_allclose(
        scaled.log_prob(c * x).nats, plain.log_prob(x).nats - 5 * math.log(c), rtol=1e-7, atol=1e-7
    )


@noises
def test_samples_follow_the_factor_model_and_planted_loadings_do_not(noise):
    m = factors(noise=noise).fit(factored(noise=noise), seed=0)
    x = m.sample(20_000, seed=3) - m.emission.loc[0].detach().numpy()
    W = m.emission.loadings[0].detach().numpy()
    right, wrong = covariance_of(m), covariance_of(m) + 0.2 * W @ W.T
    squares = [np.einsum("nd,nd->n", x, np.linalg.solve(S, x.T).T) for S in (right, wrong)]
    assert stats.kstest(squares[0], stats.chi2(5).cdf).pvalue > 1e-6
    assert stats.kstest(squares[1], stats.chi2(5).cdf).pvalue < 1e-6


def test_a_few_rows_of_many_cells_are_better_off_with_factors_than_with_a_full_covariance():
    rows = factored(1060, 25, 2, seed=3)
    x, held = rows[:60], rows[60:]
    few = factors(25, 2).fit(x, seed=0).log_prob(held).nats.mean()
    full = normals(25, 1).fit(x, seed=0).log_prob(held).nats.mean()
    assert few > full + 2


@pytest.mark.parametrize(
    ("emission", "count"),
    [(FactorNormal(5, 2), 5 + 10 - 1 + 5), (FactorNormal(5, 2, "spherical"), 5 + 10 - 1 + 1), (FactorNormal(4, 1), 12)],
)
def test_free_parameters_of_factor_models_are_counted_by_hand(emission, count):
    assert emission.n_params == count
    assert emission.with_states(3).n_params == 3 * count


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"rank": 4}, {"noise": "full"}, {"states": 0}, {"floor": 0.0}, {"floor": 1.0}]
)
def test_a_wrong_argument_of_a_factor_model_is_a_parameter_error(wrong):
    with pytest.raises(ParameterError):
        FactorNormal(4, **wrong)


@noises
def test_rows_in_a_plane_stop_at_the_floor_of_the_noise(noise):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2)) @ rng.normal(size=(2, 4))
    m = factors(4, 2, noise, floor=1e-4).fit(x, seed=0, max_iter=50)
    assert np.isfinite(m.log_prob(x).nats).all()
    least = 1e-4 * (x.var(0) if noise == "diag" else x.var(0).mean())
    assert (m.emission.noise_variance()[0].detach().numpy() >= least * (1 - 1e-9)).all()


def test_a_small_budget_takes_fewer_rows_and_says_so():
    x = np.random.default_rng(0).integers(256, size=(20_000, 30))
    mixture = Mixture(Array((30,), levels=256), components=8).fit(x, budget=1.0, seed=0)
    assert "rows, drawn at random" in mixture.report.notes[0]
    assert mixture.n_rows < 20_000
    small = Mixture(Array((2,)), components=2).fit(np.random.default_rng(1).normal(size=(500, 2)), budget=5.0, seed=0)
    assert small.n_rows == 500
    assert "drawn" not in small.report.notes[0]
