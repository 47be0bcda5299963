"""Three programs after Pyro's examples, wrapped, fitted and held against the truth; what may go wrong with others."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from scipy import stats
from torch import nn
from torch.distributions import constraints

from probgen.errors import DataError, FitError, NotFittedError, ParameterError, StructureError
from probgen.estimate import ELBO, IWAE, Enumerate
from probgen.events import Array, Series
from probgen.foreign import wrap
from probgen.foreign.pyro.predictive import PosteriorPredictive
from probgen.logprob import Kind
from probgen.model import Latent, pyro_pair

pytestmark = pytest.mark.filterwarnings("ignore::probgen.posterior.fitting.ConvergenceWarning")  # short chains

ALPHA = 1e-6
CRITICAL = stats.norm.isf(ALPHA)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
LOG_WEIGHTS = np.log(WEIGHTS) - 0.5 * math.log(2 * math.pi)  # E f(z) = sum_i exp(LOG_WEIGHTS_i) f(NODES_i), z ~ N(0, 1)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# A variational autoencoder, after examples/vae


class VAE(nn.Module):
    """One latent, so that quadrature tells the truth."""

    def __init__(self, cells=8, hidden=16, binary=True):
        super().__init__()
        torch.manual_seed(0)
        self.binary = binary
        self.encoder = nn.Sequential(nn.Linear(cells, hidden), nn.Softplus(), nn.Linear(hidden, 2))
        self.decoder = nn.Sequential(nn.Linear(1, hidden), nn.Softplus(), nn.Linear(hidden, cells))

    def observed(self, z):
        if self.binary:
            return dist.Bernoulli(logits=self.decoder(z)).to_event(1)
        return dist.Normal(self.decoder(z), 0.5).to_event(1)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], 1), x.new_ones(x.shape[0], 1)).to_event(1))
            pyro.sample("obs", self.observed(z), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    def truth(self, x):
        """log p(x) of each row by quadrature over z."""
        with torch.no_grad():
            at = self.observed(torch.tensor(NODES, dtype=torch.float32)[:, None, None])
            log_p = at.log_prob(torch.as_tensor(x, dtype=torch.float32)).double().numpy()
        return np.logaddexp.reduce(LOG_WEIGHTS[:, None] + log_p, axis=0)


def stripes(n, seed=0):
    """Cells that turn from 0 to 1 at a place that differs from row to row."""
    rng = np.random.default_rng(seed)
    places = rng.normal(0, 2.5, (n, 1))
    return (rng.random((n, 8)) < 1 / (1 + np.exp(-2 * (np.arange(8) - 3.5 - places)))).astype(float)


@pytest.fixture(scope="module")
def vae():
    net = VAE()
    model = wrap((net.model, net.guide), event=Array((8,), levels=2))
    return net, model.fit(stripes(600), steps=500, learning_rate=0.01, seed=0)


def test_a_vae_is_fitted_and_its_rows_are_bounded_from_below(vae):
    net, model = vae
    x = stripes(200, seed=1)
    answer, truth = model.log_prob(x, seed=0), net.truth(x)
    assert answer.kind is Kind.LOWER
    assert answer.measure == "counting"
    assert model.report.objective[-1] > model.report.objective[0] + 1
    trusted = np.isfinite(answer.stderr)
    assert trusted.mean() > 0.5
    errors = (answer.nats - truth)[trusted] / answer.stderr[trusted]
    assert stats.binom.cdf((abs(errors) < 1.96).sum(), trusted.sum(), 0.935) > ALPHA
    assert stats.binom.cdf((abs(errors) < 0.98).sum(), trusted.sum(), 0.935) < ALPHA  # planted: errors half as large
    elbo = model.log_prob(x, by=ELBO(64), seed=0).nats
    assert elbo.mean() < answer.nats.mean() < truth.mean() + 0.05
    assert isinstance(model, Latent)


def test_a_rows_number_depends_on_the_seed_and_that_row_alone(vae):
    _, model = vae
    x = stripes(40, seed=1)
    whole = model.log_prob(x, by=IWAE(200), seed=3).nats
    np.testing.assert_allclose(model.log_prob(x[[7, 3]], by=IWAE(200), seed=3).nats, whole[[7, 3]], rtol=1e-5)
    assert not np.allclose(model.log_prob(x, by=IWAE(200), seed=4).nats, whole, rtol=1e-5)


def test_samples_of_a_vae_follow_its_density(vae):
    """Counts of ones a cell and of pairs of cells against quadrature."""
    net, model = vae
    x = model.sample(4000, seed=0)
    assert x.shape == (4000, 8)
    with torch.no_grad():
        p = net.observed(torch.tensor(NODES, dtype=torch.float32)[:, None]).base_dist.probs.double().numpy()
    pairs = np.einsum("i,ij,ik->jk", np.exp(LOG_WEIGHTS), p, p)[np.triu_indices(8, 1)]
    found = (x.T @ x / 4000)[np.triu_indices(8, 1)]
    error = np.sqrt(pairs * (1 - pairs) / 4000)
    assert (abs(found - pairs) < stats.norm.isf(ALPHA / 56) * error).all()
    alone = np.outer(*[np.exp(LOG_WEIGHTS) @ p] * 2)[np.triu_indices(8, 1)]
    assert (abs(found - alone) > stats.norm.isf(ALPHA / 56) * error).any()  # planted: cells drawn alone


def test_a_second_fit_starts_where_the_first_did_and_the_same_seed_gives_the_same(vae):
    net = VAE()
    model = wrap((net.model, net.guide), event=Array((8,), levels=2))
    x, by, quick = stripes(9), IWAE(20), {"steps": 20, "record": False}
    first, second = (model.fit(stripes(100), seed=1, **quick).log_prob(x, by=by, seed=0).nats for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, model.fit(stripes(100), seed=2, **quick).log_prob(x, by=by, seed=0).nats)


def test_a_copy_of_a_fitted_model_is_its_own(vae):
    net = VAE()
    x, by = stripes(9), IWAE(20)
    model = wrap((net.model, net.guide), event=Array((8,), levels=2)).fit(stripes(100), steps=20, seed=1)
    before = model.log_prob(x, by=by, seed=0).nats
    copied = copy.deepcopy(model)
    np.testing.assert_array_equal(copied.log_prob(x, by=by, seed=0).nats, before)
    copied.fit(stripes(100), steps=30, seed=5, record=False)
    assert not np.array_equal(copied.log_prob(x, by=by, seed=0).nats, before)
    np.testing.assert_array_equal(model.log_prob(x, by=by, seed=0).nats, before)


def test_the_store_generator_and_flags_stay_as_they_were(vae):
    net, model = vae
    pyro.clear_param_store()
    state = torch.get_rng_state()
    model.log_prob(stripes(5), seed=0)
    model.sample(5, seed=0)
    wrap((net.model, net.guide), event=Array((8,), levels=2)).fit(stripes(60), steps=5, seed=0)
    assert not list(pyro.get_param_store().keys())
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="scale"):
        dist.Normal(0.0, -1.0)


def test_a_pair_that_was_trained_by_pyro_is_scored_as_it_stands():
    net = VAE()
    pyro.clear_param_store()
    svi = pyro.infer.SVI(net.model, net.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    x = stripes(200)
    for _ in range(60):
        svi.step(torch.tensor(x, dtype=torch.float32))
    model = wrap((net.model, net.guide), event=Array((8,), levels=2), fitted=True)
    pyro.clear_param_store()
    answer = model.log_prob(x[:50], seed=0)
    assert model.report.stopped == "imported"
    assert abs(answer.nats - net.truth(x[:50])).max() < 0.2
    assert model.sample(3, seed=0).shape == (3, 8)


def test_the_user_may_train_it_by_pyro_too(vae):
    net = VAE()
    model = wrap((net.model, net.guide), event=Array((8,), levels=2)).fit(stripes(60), steps=2, seed=0)
    pyro.clear_param_store()
    program, guide = pyro_pair(model)
    svi = pyro.infer.SVI(program, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    before = net.decoder[0].weight.detach().clone()
    svi.step(torch.tensor(stripes(60)))
    pyro.clear_param_store()
    assert not torch.equal(before, net.decoder[0].weight)


# Eight schools: latents that all rows share, and covariates

SCHOOLS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def eight_schools(guide=None, **options):
    covariates = {"data": "y", "given": "sigma", "context": Array((), support="positive")}
    return wrap((schools, guide), event=Array(()), **covariates, **options)


def posterior_on_a_grid():
    """Grid over (mu, log tau), its posterior weights, and log p(y_j | mu, tau) of each school."""
    mu, log_tau = np.meshgrid(np.linspace(-25, 30, 300), np.linspace(-6, 6, 500), indexing="ij")
    tau = np.exp(log_tau)
    rows = np.stack([stats.norm.logpdf(y, mu, np.hypot(tau, s)) for y, s in zip(SCHOOLS, SIGMA, strict=True)])
    log_p = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, 0, 5) + log_tau + rows.sum(0)
    weights = np.exp(log_p - log_p.max())
    return mu, tau, weights / weights.sum(), rows


def test_eight_schools_by_nuts_scores_a_school_as_quadrature_does():
    model = eight_schools().fit(SCHOOLS, given=SIGMA, method="nuts", draws=200, warmup=150, seed=0)
    mu, _, weights, rows = posterior_on_a_grid()
    truth = np.log((np.exp(rows) * weights).sum((1, 2)))
    answer = model.log_prob(SCHOOLS, given=SIGMA, seed=0)
    assert answer.kind is Kind.ESTIMATE
    assert answer.target == "p(x_i | D)"
    assert (abs(answer.nats - truth) < CRITICAL * answer.stderr + 1e-3).all()
    assert (abs(answer.nats - truth - 0.2) > CRITICAL * answer.stderr + 1e-3).any()  # planted: a fifth of a nat off
    drawn = model.posterior(200)
    spread = math.sqrt((weights * mu**2).sum() - (weights * mu).sum() ** 2)
    assert abs(drawn["mu"].mean() - (weights * mu).sum()) < CRITICAL * spread / math.sqrt(model.rows.independent)
    assert "R-hat" in model.report.notes[0]
    # rows share their draws: the error of the sum is the sum of the errors
    assert answer.mean().monte_carlo == pytest.approx(answer.stderr.mean())


@pytest.fixture(scope="module")
def guided_schools():
    return eight_schools().fit(SCHOOLS, given=SIGMA, steps=500, seed=0)


def test_eight_schools_by_an_automatic_guide_averages_over_that_guide(guided_schools):
    """log E_q[p(y_j | mu, tau)]: the guide's draws put through the closed form p(y_j | mu, tau)."""
    answer = guided_schools.log_prob(SCHOOLS, given=SIGMA, seed=0)
    drawn = guided_schools.posterior(5000, seed=9)
    scale = np.hypot(drawn["tau"][:, None], SIGMA)
    p = stats.norm.pdf(SCHOOLS, drawn["mu"][:, None], scale)
    error = np.hypot(answer.stderr, p.std(0) / p.mean(0) / math.sqrt(5000))
    assert (abs(answer.nats - np.log(p.mean(0))) < CRITICAL * error).all()
    assert (abs(answer.nats - np.log(p.mean(0)) - 0.1) > CRITICAL * error).any()
    assert answer.target == "E_q[p(x_i | theta)]"
    assert "parameters for every row (eta)" in guided_schools.report.notes[0]
    assert not isinstance(guided_schools, Latent)


def test_new_schools_are_scored_and_drawn(guided_schools):
    guided_schools = copy.deepcopy(guided_schools)  # what was recorded comes along
    by = PosteriorPredictive(draws=100)
    answer = guided_schools.log_prob([5.0, 30.0], given=[3.0, 20.0], by=by, seed=0)
    alone = guided_schools.log_prob([30.0], given=[20.0], by=by, seed=0)
    assert answer.nats[1] == pytest.approx(alone.nats[0], rel=1e-5)
    drawn = guided_schools.sample(2000, given=[3.0, 20.0], seed=0)
    assert drawn.shape == (2, 2000)
    assert drawn[1].std() == pytest.approx(20.5, rel=0.15)
    assert drawn[0].std() < 8


def test_a_shared_latent_may_be_held_fixed():
    """With tau = 10 the posterior is normal, in closed form; a guide with all covariances finds it."""
    model = eight_schools(AutoMultivariateNormal, condition={"tau": 10.0})
    model.fit(SCHOOLS, given=SIGMA, steps=600, learning_rate=0.1, seed=0)
    precision = 1 / 25 + (1 / (100 + SIGMA**2)).sum()
    mean = (SCHOOLS / (100 + SIGMA**2)).sum() / precision
    drawn = model.posterior(4000)
    assert set(drawn) == {"mu"}
    assert (drawn["mu"].mean() - mean) * math.sqrt(precision) == pytest.approx(0, abs=0.4)
    assert drawn["mu"].std() * math.sqrt(precision) == pytest.approx(1, abs=0.2)
    assert mean * math.sqrt(precision) > 0.8  # the prior's mean would be seen
    with pytest.raises(StructureError, match="Did you mean 'tau'"):
        eight_schools(condition={"tua": 10.0}).fit(SCHOOLS, given=SIGMA, steps=2)
    with pytest.raises(StructureError, match="each row's own"):
        eight_schools(condition={"eta": 0.0}).fit(SCHOOLS, given=SIGMA, steps=2)


def regression(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    shift = pyro.sample("shift", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(shift + slope * x, 0.5), obs=y)


def line(n=40):
    rng = np.random.default_rng(3)
    x = rng.normal(size=n)
    return x, 1.0 - 0.7 * x + 0.5 * rng.normal(size=n)


@pytest.mark.parametrize("guide", ["instance", None], ids=["an instance", "none"])
def test_a_bayesian_line_is_scored_as_in_closed_form(guide):
    x, y = line()
    made = AutoMultivariateNormal(regression) if guide else None
    options = {"data": "y", "given": "x", "context": Array(())}
    model = wrap((regression, made), event=Array(()), **options).fit(y, given=x, steps=800, seed=0)
    design = np.stack([x, np.ones_like(x)], 1)
    cov = np.linalg.inv(np.eye(2) / 4 + design.T @ design / 0.25)
    mean = cov @ design.T @ y / 0.25
    new_x, new_y = np.array([-2.0, 0.0, 3.0]), np.array([2.0, 0.0, -1.0])
    new = np.stack([new_x, np.ones(3)], 1)
    truth = stats.norm.logpdf(new_y, new @ mean, np.sqrt(0.25 + np.einsum("ij,jk,ik->i", new, cov, new)))
    answer = model.log_prob(new_y, given=new_x, seed=0)
    assert answer.kind is Kind.ESTIMATE
    assert abs(answer.nats - truth).max() < 0.1
    assert abs(answer.nats - stats.norm.logpdf(new_y, 0, np.sqrt(0.25 + 4 + 4 * new_x**2))).max() > 0.3  # the prior


def test_a_guide_at_one_point_makes_the_likelihood_exact():
    x, y = line()
    options = {"data": "y", "given": "x", "context": Array(())}
    model = wrap((regression, AutoDelta), event=Array(()), **options).fit(y, given=x, steps=600, seed=0)
    at = {name: float(value[0]) for name, value in model.posterior(1).items()}
    answer = model.log_prob(y, given=x)
    assert answer.kind is Kind.EXACT
    np.testing.assert_allclose(
        answer.nats, stats.norm.logpdf(y, at["shift"] + at["slope"] * x, 0.5), rtol=1e-4, atol=1e-5
    )
    assert at["slope"] == pytest.approx(-0.7, abs=0.3)


# Mixtures: finite latents, summed out


def mixture(x):
    weights = pyro.param("weights", lambda: torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", lambda: torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[k], scale[k]), obs=x)


def clumps(n=500, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.3, rng.normal(-3, 1, n), rng.normal(2, 0.5, n))


@pytest.fixture(scope="module")
def mixed():
    return wrap(mixture, event=Array(())).fit(clumps(), steps=500, learning_rate=0.05, seed=0)


def test_a_mixture_is_fitted_and_scored_exactly(mixed):
    x = clumps(200, seed=1)
    found = {name: value.double().numpy() for name, value in mixed.program.constrained().items()}
    wanted = np.log((found["weights"] * stats.norm.pdf(x[:, None], found["loc"], found["scale"])).sum(1))
    answer = mixed.log_prob(x)
    assert answer.kind is Kind.EXACT
    assert answer.stderr is None
    np.testing.assert_allclose(answer.nats, wanted, atol=1e-5)
    np.testing.assert_allclose(mixed.log_prob(x, by=Enumerate()).nats, wanted, atol=1e-5)
    assert sorted(found["loc"]) == pytest.approx([-3, 2], abs=0.3)


def test_samples_of_a_mixture_follow_its_density(mixed):
    x = np.asarray(mixed.sample(5000, seed=0))
    found = {name: value.double().numpy() for name, value in mixed.program.constrained().items()}

    def pvalue(temper):
        uniform = (found["weights"] * stats.norm.cdf(x[:, None], found["loc"], temper * found["scale"])).sum(1)
        return stats.kstest(uniform, "uniform").pvalue

    assert pvalue(1.0) > ALPHA
    assert pvalue(0.7) < ALPHA


class Classes(VAE):
    """After examples/vae/ss_vae_M2: a class that nobody has labelled, beside a continuous latent."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Linear(3, 8)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        pyro.module("shift", self.shift)
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.OneHotCategorical(x.new_ones(3) / 3))
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], 1), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z) + self.shift(k)).to_event(1), obs=x)

    def truth(self, x):
        with torch.no_grad():
            at = self.decoder(torch.tensor(NODES, dtype=torch.float32)[:, None, None])
            each = [dist.Bernoulli(logits=at + self.shift(k)).to_event(1) for k in torch.eye(3)]
            log_p = np.stack([d.log_prob(torch.as_tensor(x, dtype=torch.float32)).double().numpy() for d in each])
        return np.logaddexp.reduce(LOG_WEIGHTS[:, None] + np.logaddexp.reduce(log_p - math.log(3), axis=0), axis=0)


def test_classes_are_summed_out_beside_a_continuous_latent():
    net = Classes()
    model = wrap((net.model, net.guide), event=Array((8,), levels=2)).fit(stripes(400), steps=120, seed=0)
    x = stripes(100, seed=1)
    answer, truth = model.log_prob(x, seed=0), net.truth(x)
    assert answer.kind is Kind.LOWER
    trusted = np.isfinite(answer.stderr)
    assert trusted.mean() > 0.5
    assert (abs(answer.nats - truth)[trusted] < CRITICAL * answer.stderr[trusted] + 1e-4).all()
    assert not (abs(answer.nats - truth - 0.3)[trusted] < CRITICAL * answer.stderr[trusted] + 1e-4).all()


# Guides that do not serve new rows


@pytest.mark.parametrize("guide", [None, AutoNormal], ids=["none", "AutoNormal"])
def test_local_latents_under_an_automatic_guide_are_sought_at_the_mode(guide):
    """Factor analysis with a Gamma scale a row would have no closed form; with none it has: N(0, w w' + I / 4)."""

    def model(x):
        w = pyro.param("w", lambda: torch.tensor([1.0, -0.5, 2.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None] * w, 0.5).to_event(1), obs=x)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1)) * np.array([1.0, -0.5, 2.0]) + 0.5 * rng.normal(size=(60, 3))
    wrapped = wrap((model, guide), event=Array((3,))).fit(x, steps=200, seed=0)
    w = wrapped.program.constrained()["w"].double().numpy()
    new = np.array([[2.0, -1.0, 4.0], [0.0, 0.0, 0.0], [5.0, 5.0, 5.0]])
    truth = stats.multivariate_normal(np.zeros(3), np.outer(w, w) + np.eye(3) / 4).logpdf(new)
    answer = wrapped.log_prob(new, seed=0)
    assert np.isfinite(answer.stderr).all()
    assert (abs(answer.nats - truth) < CRITICAL * answer.stderr + 1e-4).all()


def test_a_positive_latent_is_sought_on_the_whole_line():
    """Poisson with a Gamma rate is negative binomial; the Gamma guide has no map from normal noise."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(3.0, 1.5))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        shape = pyro.param("shape", lambda: torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(shape + x, 2.5))

    counts = np.random.default_rng(0).poisson(2.0, 80)
    wrapped = wrap((model, guide), event=Array((), support="count")).fit(counts, steps=100, seed=0)
    x = np.arange(8)
    answer, truth = wrapped.log_prob(x, seed=0), stats.nbinom.logpmf(x, 3, 1.5 / 2.5)
    assert (abs(answer.nats - truth) < CRITICAL * np.nan_to_num(answer.stderr, nan=0.02) + 1e-4).all()
    assert (abs(answer.nats - stats.poisson.logpmf(x, 2)) > 0.1).any()


def test_the_gradient_for_chains_is_played_back_and_is_that_of_the_program(vae):
    _, model = vae
    x = torch.tensor(stripes(6))
    slopes = []
    for z in (torch.randn(3, 6, 1, generator=torch.Generator().manual_seed(s), requires_grad=True) for s in (0, 1)):
        played = torch.autograd.grad(model._log_joint(x, z, None).sum(), z)[0]
        theirs = torch.autograd.grad(model.rows.joint(x.float(), z, None, {}).sum(), z)[0]
        torch.testing.assert_close(played, theirs)
        slopes.append(played)
    assert not torch.allclose(*slopes)
    assert any(key[0] == "slope" and graph for key, graph in model.rows._graphs.items())


def test_two_latents_that_depend_on_each_other_in_the_guide():
    """x ~ N(a + b, 1/4) with a, b ~ N(0, 1): N(0, 2.25). The guide draws b given a."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + b, 0.5), obs=x)

    def guide(x):
        half = pyro.param("half", lambda: torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(half * x, 0.8))
            pyro.sample("b", dist.Normal(0.8 * (x - a), 0.5))

    wrapped = wrap((model, guide), event=Array(())).fit(line()[1], steps=50, seed=0)
    x = np.array([-1.0, 0.3, 2.5])
    answer = wrapped.log_prob(x, seed=0)
    assert np.isfinite(answer.stderr).all()
    assert (abs(answer.nats - stats.norm.logpdf(x, 0, 1.5)) < CRITICAL * answer.stderr + 1e-4).all()


def nested(x):
    """x_ij = z_i + w_ij + e_ij: a plate inside the rows' own, with latents in both."""
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, dim=-1):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w, 0.5), obs=x)


def nested_guide(x):
    slope = pyro.param("slope", lambda: torch.tensor(0.5))
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(slope * x.mean(-1, keepdim=True), 0.6))
        with pyro.plate("columns", 3, dim=-1):
            pyro.sample("w", dist.Normal(0.8 * (x - z), 0.45))


@pytest.mark.parametrize("guide", [None, nested_guide], ids=["the mode", "a guide"])
def test_latents_in_nested_plates_keep_their_places(guide):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 1)) + rng.normal(size=(50, 3)) * math.sqrt(1.25)
    wrapped = wrap((nested, guide), event=Array((3,))).fit(x, steps=30, seed=0)
    new = np.array([[1.0, 2.0, -1.0], [0.0, 0.5, 4.0]])
    truth = stats.multivariate_normal(np.zeros(3), np.ones((3, 3)) + 1.25 * np.eye(3)).logpdf(new)
    answer = wrapped.log_prob(new, by=IWAE(4000), seed=0)
    assert wrapped.latent_dim == 4
    error = np.nan_to_num(answer.stderr, nan=0.05)
    assert (abs(answer.nats - truth) < CRITICAL * error + 1e-4).all()
    assert wrapped.sample(5, seed=0).shape == (5, 3)
    np.testing.assert_allclose(np.cov(wrapped.sample(4000, seed=0).T), np.ones((3, 3)) + 1.25 * np.eye(3), atol=0.3)


class Labels(Classes):
    """The guide has the class too: q(k | x) q(z | x, k)."""

    def __init__(self):
        super().__init__()
        self.classes, self.given_class = nn.Linear(8, 3), nn.Linear(3, 2)

    def guide(self, x):
        for name in ("classes", "given_class", "encoder"):
            pyro.module(name, getattr(self, name))
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.OneHotCategorical(logits=self.classes(x)))
            loc, raw = (self.encoder(x) + self.given_class(k)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def test_a_guide_over_classes_trains_by_pyros_estimator_and_is_scored_by_sums():
    net = Labels()
    model = wrap((net.model, net.guide), event=Array((8,), levels=2)).fit(stripes(200), steps=60, seed=0)
    answer, truth = model.log_prob(stripes(20, seed=1), seed=0), net.truth(stripes(20, seed=1))
    assert model.report.objective[-1] > model.report.objective[0]
    assert (abs(answer.nats - truth) < CRITICAL * np.nan_to_num(answer.stderr, nan=0.02) + 1e-3).all()


def test_a_budget_in_seconds_is_turned_into_steps():
    model = wrap(mixture, event=Array(())).fit(clumps(200), budget=0.5, seed=0)
    assert "by a pilot" in model.report.notes[0]


# Bad input


def plain(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.param("loc", lambda: torch.zeros(())), 1.0), obs=x)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"data": "xx"}, "Did you mean 'x'"),
        ({"given": "x"}, "context=None"),
        ({"constants": {"k": 3}}, "no argument 'k'"),
    ],
)
def test_arguments_are_checked_when_it_is_wrapped(options, wanted):
    with pytest.raises(ParameterError, match=wanted):
        wrap(plain, event=Array(()), **options)


def test_an_argument_without_a_value_is_named():
    with pytest.raises(ParameterError, match="'width' has no value"):
        wrap(lambda x, width: None, event=Array(()))


def test_what_is_no_program_is_refused():
    with pytest.raises(StructureError, match="a Pyro program"):
        wrap((3, 4), event=Array(()))
    with pytest.raises(StructureError, match="one tensor"):
        wrap(plain, event=Series(()))


def test_an_event_of_another_kind_than_the_site_is_refused():
    with pytest.raises(StructureError, match="'obs' scores whole numbers"):
        wrap((VAE().model, VAE().guide), event=Array((8,))).fit(stripes(9) * 0.5, steps=2)
    net = VAE(binary=False)
    with pytest.raises(StructureError, match="'obs' scores reals"):
        wrap((net.model, net.guide), event=Array((8,), levels=2)).fit(stripes(9), steps=2)


@pytest.mark.parametrize("guide", [None, AutoNormal])
def test_a_program_that_subsamples_is_refused_under_an_automatic_guide_too(guide):
    """pyro issue 3468: an autoguide draws rows of its own, and training looks completely normal."""

    def model(x, rows):
        with pyro.plate("data", len(x), subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    wrapped = wrap((model, guide), event=Array(()), constants={"rows": torch.arange(3)})
    with pytest.raises(StructureError, match="'data' takes 3 of 6 rows"):
        wrapped.fit(clumps(60), steps=2)


def test_data_outside_a_sites_support_name_it():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("share", dist.Beta(2.0, 2.0), obs=x)

    with pytest.raises(DataError, match="'share' observes values outside"):
        wrap(model, event=Array(())).fit(np.linspace(0, 2, 9), steps=2)


def test_a_program_that_reads_its_data_does_not_sample():
    def model(x):
        loc = pyro.param("loc", lambda: torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + x.roll(1, 0), 1.0), obs=x)

    fitted = wrap(model, event=Array(())).fit(clumps(60), steps=5, seed=0)
    with pytest.raises(StructureError, match="depend on the data"):
        fitted.sample(3)


def test_a_scaled_program_is_trained_and_not_scored():
    def model(x):
        with pyro.poutine.scale(scale=0.5):
            plain(x)

    fitted = wrap(model, event=Array(())).fit(clumps(60), steps=5, seed=0)
    assert fitted.log_prob(clumps(3)).refused.all()
    assert "scales" in fitted.log_prob(clumps(3)).reason


def test_options_are_checked(mixed):
    with pytest.raises(ParameterError, match="method='hmc'"):
        wrap(plain, event=Array(())).fit(clumps(60), method="hmc")
    with pytest.raises(StructureError, match="all rows share"):
        wrap(mixture, event=Array(())).fit(clumps(60), method="nuts")
    with pytest.raises(ParameterError, match="draws=0"):
        eight_schools().fit(SCHOOLS, given=SIGMA, method="nuts", draws=0)
    with pytest.raises(ParameterError, match="inner=1"):
        PosteriorPredictive(inner=1)
    with pytest.raises(NotFittedError):
        wrap(plain, event=Array(())).log_prob(clumps(3))
    assert mixed.log_prob(clumps(3), by=IWAE(8)).refused.all() or mixed.latent_dim == 0


def test_a_fit_that_breaks_names_the_site():
    def model(x):
        scale = pyro.param("scale", lambda: torch.tensor(1.0))  # nothing keeps it positive
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    with pytest.raises(FitError, match="'x' of the model"):
        wrap(model, event=Array(())).fit(1e-3 * clumps(60), steps=400, learning_rate=0.5, seed=0)
