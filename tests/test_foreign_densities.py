"""Foreign densities behind the verbs: scikit-learn, zuko, torch and Pyro distributions, plain pairs of functions."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as pd
import pytest
import torch
import torch.distributions as td
from scipy import stats
from sklearn import covariance, decomposition
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PowerTransformer, StandardScaler

from probgen import bijections  # noqa: F401  the door that keeps torch's argument checks on
from probgen.errors import NotFittedError, ParameterError, ShapeError, StructureError
from probgen.events import Array, Real, Table
from probgen.foreign import wrap
from probgen.foreign.pair import ForeignDensity
from probgen.foreign.sklearn import kernel_density
from probgen.logprob import Kind
from probgen.models.mixture import Mixture

KERNELS = ("gaussian", "tophat", "epanechnikov", "exponential", "linear", "cosine")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3)) @ RNG.normal(size=(3, 3)) + 5
NEW = X[:30] + 0.1


def mass(model, low, high, steps=400):
    """The integral of a density of one or two cells over a box, by the midpoint rule."""
    dim = len(low)
    ends = [np.linspace(a, b, steps + 1) for a, b in zip(low, high, strict=True)]
    middle = [(e[1:] + e[:-1]) / 2 for e in ends]
    points = np.stack(np.meshgrid(*middle, indexing="ij"), -1).reshape(-1, dim)
    cell = math.prod((b - a) / steps for a, b in zip(low, high, strict=True))
    return float(np.exp(model.log_prob(points if model.event.shape else points[:, 0]).nats).sum() * cell)


# scikit-learn


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_gaussian_mixture_keeps_its_score_and_becomes_ours(kind):
    theirs = GaussianMixture(3, covariance_type=kind, random_state=0).fit(X)
    ours = wrap(theirs)
    assert isinstance(ours, Mixture)
    np.testing.assert_allclose(ours.log_prob(NEW).nats, theirs.score_samples(NEW), rtol=0, atol=1e-10)
    gap = NEW.copy()
    gap[0, 1] = np.nan
    with pytest.raises(ValueError, match="missing"):
        ours.log_prob(gap)  # its event was complete
    gaps = wrap(theirs, event=Array((3,), missing=True)).log_prob(gap).nats
    assert gaps[0] != pytest.approx(theirs.score_samples(NEW)[0])
    np.testing.assert_allclose(gaps[1:], theirs.score_samples(NEW)[1:], atol=1e-10)


def test_a_bayesian_mixture_is_the_plug_in_density_which_its_own_score_is_not():
    theirs = BayesianGaussianMixture(n_components=2, random_state=0, max_iter=500).fit(X[:, :2])
    ours = wrap(theirs)
    assert "plug-in" in ours.report.notes[0]
    low, high = X[:, :2].min(0) - 8, X[:, :2].max(0) + 8
    assert mass(ours, low, high) == pytest.approx(1, abs=1e-3)
    own = wrap((None, theirs.score_samples), event=Array((2,)), kind="score")
    assert abs(mass(own, low, high) - 1) > 0.01
    plain = GaussianMixture(2)
    plain.weights_, plain.means_, plain.covariances_ = theirs.weights_, theirs.means_, theirs.covariances_
    plain.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(theirs.covariances_))
    np.testing.assert_allclose(ours.log_prob(NEW[:, :2]).nats, plain.score_samples(NEW[:, :2]), atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_keep_their_score_with_and_without_weights(kernel):
    for weights in (None, RNG.random(len(X))):
        theirs = KernelDensity(kernel=kernel, bandwidth=0.8).fit(X, sample_weight=weights)
        ours, expected = wrap(theirs).log_prob(NEW).nats, theirs.score_samples(NEW)
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(ours), finite)
        np.testing.assert_allclose(ours[finite], expected[finite], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_densities_integrate_to_one_and_draw_what_they_score(kernel):
    model = wrap(KernelDensity(kernel=kernel, bandwidth=0.7).fit(np.zeros((1, 2))))
    side = {"gaussian": 6, "exponential": 12}.get(kernel, 0.8)
    assert mass(model, (-side, -side), (side, side), 500) == pytest.approx(1, abs=5e-3)
    # radii of draws in three dimensions against r^2 k(r), whose integral is taken numerically
    grid = np.linspace(0, 40, 200_001)
    model = kernel_density(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1), kernel, 0.7, Array((3,)))
    points = np.stack([grid, 0 * grid, 0 * grid], 1)
    density = 4 * math.pi * grid**2 * np.exp(model.log_prob(points).nats)
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    assert cumulative[-1] == pytest.approx(1, abs=1e-3)

    def p_value(drawn):
        far = np.linalg.norm(drawn, axis=1)
        return stats.kstest(far, lambda r: np.interp(r, grid, cumulative)).pvalue

    assert p_value(model.sample(4000, seed=1)) > 1e-6
    other = "exponential" if kernel == "tophat" else "tophat"
    planted = kernel_density(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1), other, 0.7, Array((3,)))
    assert p_value(planted.sample(4000, seed=1)) < 1e-6


@pytest.mark.parametrize("name", ["EmpiricalCovariance", "ShrunkCovariance", "LedoitWolf", "OAS", "MinCovDet"])
def test_covariance_estimators_keep_their_mean_score(name):
    theirs = getattr(covariance, name)(**({"random_state": 0} if name == "MinCovDet" else {})).fit(X)
    assert wrap(theirs).log_prob(NEW).mean().value == pytest.approx(theirs.score(NEW), abs=1e-10)


@pytest.mark.parametrize("name", ["PCA", "FactorAnalysis"])
def test_linear_latent_models_keep_their_score(name):
    theirs = getattr(decomposition, name)(2).fit(X)
    np.testing.assert_allclose(wrap(theirs).log_prob(NEW).nats, theirs.score_samples(NEW), rtol=0, atol=1e-10)


def test_a_singular_covariance_is_refused():
    with pytest.raises(StructureError, match="singular"):
        wrap(covariance.EmpiricalCovariance().fit(np.stack([X[:, 0], X[:, 0]], 1)))


def test_a_pipeline_of_affine_steps_scores_in_the_datas_units():
    rows = X[:, :2] * [1.0, 30.0]
    steps = (StandardScaler(), decomposition.PCA(2, whiten=True), MinMaxScaler())
    theirs = make_pipeline(*steps, KernelDensity(bandwidth=0.2)).fit(rows)
    ours = wrap(theirs)
    low, high = rows.min(0) - 3 * rows.std(0), rows.max(0) + 3 * rows.std(0)
    assert mass(ours, low, high) == pytest.approx(1, abs=1e-3)
    shift = theirs.score_samples(rows[:5]) - ours.log_prob(rows[:5]).nats
    np.testing.assert_allclose(shift, shift[0], atol=1e-9)
    assert abs(shift[0]) > 1  # what a user of the bare pipeline is off by
    np.testing.assert_allclose(ours.sample(3000, seed=0).mean(0), rows.mean(0), atol=rows.std(0).max() * 0.12)


def test_steps_that_can_not_be_undone_are_refused_by_name():
    for step in (PowerTransformer(), decomposition.PCA(2)):
        with pytest.raises(StructureError, match=type(step).__name__):
            wrap(make_pipeline(step, KernelDensity()).fit(np.abs(X) + 1))


def test_columns_named_by_a_frame_make_a_table():
    frame = __import__("pandas").DataFrame(X, columns=["a", "b", "c"])
    ours = wrap(GaussianMixture(2, random_state=0).fit(frame))
    assert ours.event == Table({"a": Real(), "b": Real(), "c": Real()})
    np.testing.assert_allclose(ours.log_prob(frame[["c", "a", "b"]]).nats, ours.log_prob(frame).nats)


def test_scikit_learn_models_without_a_density_and_unfitted_ones_are_refused():
    with pytest.raises(NotFittedError):
        wrap(KernelDensity())
    with pytest.raises(NotFittedError):
        wrap(GaussianMixture())
    with pytest.raises(StructureError, match="Euclidean"):
        wrap(KernelDensity(metric="manhattan").fit(X))
    with pytest.raises(StructureError, match="StandardScaler"):
        wrap(StandardScaler())
    with pytest.raises(StructureError, match="shape"):
        wrap(GaussianMixture().fit(X), event=Array((2,)))
    with pytest.raises(ParameterError, match="evnt"):
        wrap(GaussianMixture().fit(X), evnt=Array((3,)))


# zuko


def zuko_flows():
    import zuko.flows

    return zuko.flows


def own_score(flow, x, given=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its distributions lack arg_constraints
        return flow(given).log_prob(torch.as_tensor(x)).detach().numpy()


def test_zuko_flows_keep_their_score_and_their_parameters():
    torch.manual_seed(0)
    for flow in (zuko_flows().NSF(2, transforms=2, hidden_features=(16,)).double(), zuko_flows().GMM(2).double()):
        model = wrap(flow)
        np.testing.assert_allclose(model.log_prob(NEW[:, :2]).nats, own_score(flow, NEW[:, :2]), rtol=0, atol=1e-10)
        assert {id(p) for p in flow.parameters()} <= {id(p) for p in model.parameters()}
        assert model.sample(4, seed=0).shape == (4, 2)
        np.testing.assert_array_equal(model.sample(4, seed=0), model.sample(4, seed=0))


def test_a_zuko_flow_integrates_to_one():
    torch.manual_seed(1)
    assert mass(wrap(zuko_flows().NSF(1, transforms=2, hidden_features=(8,)).double()), (-30,), (30,), 6000) == (
        pytest.approx(1, abs=1e-3)
    )


def test_a_conditional_flow_needs_its_context_and_takes_given():
    torch.manual_seed(2)
    flow = zuko_flows().MAF(2, 3, transforms=2, hidden_features=(16,)).double()
    with pytest.raises(StructureError, match="context="):
        wrap(flow)
    model = wrap(flow, context=Array((3,)))
    given = RNG.normal(size=(30, 3))
    found = model.log_prob(NEW[:, :2], given=given).nats
    np.testing.assert_allclose(found, own_score(flow, NEW[:, :2], torch.as_tensor(given)), atol=1e-10)
    assert model.sample(5, given=given[:2], seed=0).shape == (2, 5, 2)
    assert model.sample(5, given=given[:1], seed=0).shape == (5, 2)
    with pytest.raises(ParameterError, match="given"):
        model.log_prob(NEW[:, :2])


def test_a_continuous_flow_is_an_estimate_and_a_transform_alone_is_refused():
    assert wrap(zuko_flows().CNF(2, hidden_features=(8,))).log_prob(NEW[:2, :2]).kind == Kind.ESTIMATE
    with pytest.raises(StructureError, match="no density"):
        wrap(zuko_flows().NSF(2, transforms=1).transform)


def test_wrapping_a_flow_leaves_torchs_argument_checks_on():
    wrap(zuko_flows().NSF(2, transforms=1)).log_prob(NEW[:3, :2])
    with pytest.raises(ValueError, match="scale"):
        td.Normal(0.0, -1.0)


# torch and Pyro


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


ONE = f64(1.0)[0]
CONTINUOUS = {
    "normal": (td.Normal(ONE, 2 * ONE), (-30,), (30,)),
    "gamma": (pd.Gamma(2 * ONE, ONE), (0,), (60,)),
    "beta": (td.Beta(2 * ONE, 3 * ONE), (0,), (1,)),
    "uniform": (td.Uniform(2 * ONE, 5 * ONE), (0,), (8,)),
    "von Mises": (td.VonMises(ONE, ONE), (-9,), (9,)),
    "mixture": (
        td.MixtureSameFamily(td.Categorical(f64(0.3, 0.7)), td.Normal(f64(-1.0, 2.0), f64(1.0, 0.5))), (-20,), (20,),
    ),
    "log-normal": (td.TransformedDistribution(td.Normal(0 * ONE, ONE / 2), [td.ExpTransform()]), (0,), (60,)),
    "two independent": (td.Independent(td.Normal(f64(0.0, 1.0), f64(1.0, 2.0)), 1), (-9, -15), (9, 17)),
    "two correlated": (td.MultivariateNormal(f64(0.0, 1.0), torch.eye(2).double() + 0.5), (-9, -9), (9, 11)),
    "half-open": (td.Pareto(ONE, 3 * ONE), (0,), (200,)),
}  # fmt: skip
DISCRETE = {
    "categorical": (td.Categorical(f64(0.2, 0.3, 0.5)), np.arange(3)),
    "bernoulli": (td.Bernoulli(0.3 * ONE), np.arange(2)),
    "binomial": (td.Binomial(5, 0.3 * ONE), np.arange(6)),
    "poisson": (td.Poisson(3 * ONE), np.arange(80)),
    "zero-inflated": (pd.ZeroInflatedPoisson(2 * ONE, gate=0.1 * ONE), np.arange(80)),
    "two bits": (
        td.Independent(td.Bernoulli(f64(0.3, 0.9)), 1), np.stack(np.meshgrid([0, 1], [0, 1]), -1).reshape(-1, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTINUOUS)
def test_densities_keep_their_score_and_integrate_to_one(name):
    theirs, low, high = CONTINUOUS[name]
    model = wrap(theirs)
    assert "lebesgue" in model.event.measure
    assert mass(model, low, high, 20_000 if len(low) == 1 else 500) == pytest.approx(1, abs=2e-3)
    drawn = model.sample(40, seed=0)
    answer = model.log_prob(drawn)
    assert answer.kind == Kind.EXACT
    np.testing.assert_allclose(answer.nats, theirs.log_prob(torch.as_tensor(drawn)).numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", DISCRETE)
def test_masses_sum_to_one_under_the_counting_measure(name):
    theirs, values = DISCRETE[name]
    model = wrap(theirs)
    answer = model.log_prob(values)
    assert answer.measure == "counting"
    assert np.exp(answer.nats).sum() == pytest.approx(1, abs=1e-9)


def test_values_outside_the_support_are_impossible_not_errors():
    assert wrap(td.Uniform(2.0, 5.0)).log_prob([1.0, 3.0]).nats.tolist() == [-math.inf, pytest.approx(-math.log(3))]


@pytest.mark.parametrize(
    "bad",
    [
        td.Normal(torch.zeros(3), 1.0), td.Dirichlet(torch.ones(3)), pd.Delta(torch.tensor(1.0)),
        pd.Normal(0.0, 1.0).mask(False), td.OneHotCategorical(torch.ones(3)), td.LKJCholesky(3),
        td.Wishart(torch.tensor(3.0), torch.eye(2)), td.Multinomial(5, torch.ones(3)),
    ],
    ids=lambda bad: type(bad).__name__,
)  # fmt: skip
def test_distributions_that_are_no_density_of_cells_are_refused(bad):
    with pytest.raises(StructureError):
        wrap(bad)


def test_a_wrapped_density_is_a_pyro_program_and_is_not_fitted_here():
    model = wrap(td.Normal(ONE, 2 * ONE))
    x = torch.tensor([0.5, 1.5], dtype=torch.float64)
    trace = pyro.poutine.trace(model.model).get_trace(x)
    assert float(trace.log_prob_sum()) == pytest.approx(model.log_prob(x).sum().value, abs=1e-12)
    assert pyro.poutine.trace(model.model).get_trace(None, None, 7).nodes["x"]["value"].shape == (7,)
    with pytest.raises(StructureError, match="torch"):
        model.fit(x)
    with pytest.raises(StructureError, match="wrap"):
        ForeignDensity.for_event(Array(()))


# Pairs of functions


def test_a_pair_keeps_its_numbers_its_kind_and_its_seed():
    def sample(n, seed):
        return stats.norm.rvs(size=n, random_state=seed)

    model = wrap((sample, stats.norm.logpdf), event=Array(()))
    np.testing.assert_array_equal(model.log_prob([0.0, 2.0]).nats, stats.norm.logpdf([0.0, 2.0]))
    assert model.log_prob([0.0]).kind == Kind.EXACT
    assert model.log_prob([0.0]).by == "user's function"
    np.testing.assert_array_equal(model.sample(5, seed=1), model.sample(5, seed=1))
    bound = wrap((None, lambda x: stats.norm.logpdf(x) - 1), event=Array(()), kind="lower", by="my bound")
    assert (bound.log_prob([0.0]).kind, bound.log_prob([0.0]).by) == (Kind.LOWER, "my bound")
    with pytest.raises(StructureError, match="sampler"):
        bound.sample(2)


def test_a_sampler_without_a_seed_draws_under_ours_and_leaves_the_global_states():
    model = wrap((lambda n: stats.norm.rvs(size=n) + torch.rand(n).numpy(), stats.norm.logpdf), event=Array(()))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one, two = model.sample(5, seed=3), model.sample(5, seed=3)
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, model.sample(5, seed=4))
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_pair_without_event_kind_or_functions_is_refused():
    with pytest.raises(StructureError, match="event="):
        wrap((None, stats.norm.logpdf))
    with pytest.raises(ParameterError, match="kind"):
        wrap((None, stats.norm.logpdf), event=Array(()), kind="exactly")
    with pytest.raises(StructureError, match="functions"):
        wrap((3, stats.norm.logpdf), event=Array(()))


def test_numbers_that_are_nan_become_refusals_and_wrong_shapes_raise():
    rows = wrap((None, np.log), event=Array(()), kind="exact")
    with np.errstate(invalid="ignore"):
        answer = rows.log_prob([1.0, -1.0])
    assert answer.refused.tolist() == [False, True]
    with pytest.raises(ShapeError, match="one a row"):
        wrap((None, lambda x: x), event=Array((2,)), kind="exact").log_prob(np.zeros((3, 2)))
    with pytest.raises(ShapeError, match="drew"):
        wrap((lambda n: np.zeros((n, 3)), lambda x: x[:, 0]), event=Array((2,)), kind="exact").sample(2)


def test_other_pairs_are_still_pyro_programs():
    def program(x=None):
        with pyro.plate("rows", 1 if x is None else len(x)):
            pyro.sample("x", pd.Normal(0.0, 1.0), obs=x)

    assert type(wrap((program, None), event=Array(()))).__name__ == "PyroProgram"
    assert type(wrap(program, event=Array(()))).__name__ == "PyroProgram"


def test_two_lambdas_of_a_number_and_of_rows_are_a_pair_and_a_program_of_a_number_is_none():
    rng = np.random.default_rng(0)
    density = wrap((lambda n: rng.normal(size=n), lambda x: stats.norm.logpdf(x)), event=Array(()))
    assert isinstance(density, ForeignDensity)
    assert density.log_prob(torch.zeros(2)).nats[0] == pytest.approx(-0.5 * math.log(2 * math.pi))

    def guide(n, x=None):
        return None

    assert type(wrap((lambda n, x=None: None, guide), event=Array(()))).__name__ == "PyroProgram"
