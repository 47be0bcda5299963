"""Evidence of whole data sets under Pyro programs: conjugate pairs in closed form, eight schools by quadrature."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from latents import D
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy import special, stats

from probgen.errors import ParameterError, StructureError, SupportError
from probgen.estimate import AIS, ELBO, IWAE, evidence
from probgen.estimate.program import Program
from probgen.logprob import Kind


@pytest.fixture(autouse=True)
def one_thread_and_an_empty_store():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    torch.set_num_threads(threads)


RNG = np.random.default_rng(11)
FLIPS = torch.tensor(RNG.random(40) < 0.3, dtype=D)
REALS = torch.tensor(RNG.normal(1.5, 1.0, 25))
COUNTS = torch.tensor(RNG.poisson(4.0, 30), dtype=D)
X = torch.tensor(RNG.normal(0, 1, (30, 3)))
Y = X @ torch.tensor([1.0, -2.0, 0.5], dtype=D) + 0.7 * torch.tensor(RNG.normal(0, 1, 30))


def number(value):
    return torch.tensor(float(value), dtype=D)


def beta_binomial(flips):
    p = pyro.sample("p", dist.Beta(number(2), number(3)))
    with pyro.plate("flips", len(flips)):
        pyro.sample("x", dist.Bernoulli(p), obs=flips)


def normal_normal(x):
    mean = pyro.sample("mean", dist.Normal(number(0), number(2)))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def gamma_poisson(x):
    rate = pyro.sample("rate", dist.Gamma(number(3), number(0.5)))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def regression(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3, dtype=D), 1.5).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, 0.7), obs=y)


def beta_binomial_truth():
    heads, tails = FLIPS.sum().item(), (1 - FLIPS).sum().item()
    return special.betaln(2 + heads, 3 + tails) - special.betaln(2, 3)


def normal_normal_truth():
    n = len(REALS)
    return stats.multivariate_normal(np.zeros(n), np.eye(n) + 4.0).logpdf(REALS.numpy())


def gamma_poisson_truth():
    a, b, total, n = 3, 0.5, COUNTS.sum().item(), len(COUNTS)
    shape = special.gammaln(a + total) - special.gammaln(a) - special.gammaln(COUNTS.numpy() + 1).sum()
    return shape + a * math.log(b) - (a + total) * math.log(b + n)


def regression_truth():
    covariance = 1.5**2 * X @ X.T + 0.7**2 * torch.eye(30, dtype=D)
    return stats.multivariate_normal(np.zeros(30), covariance.numpy()).logpdf(Y.numpy())


PAIRS = {
    "Beta-Binomial": (beta_binomial, FLIPS, beta_binomial_truth()),
    "Normal-Normal": (normal_normal, REALS, normal_normal_truth()),
    "Gamma-Poisson": (gamma_poisson, COUNTS, gamma_poisson_truth()),
    "linear regression": (regression, (X, Y), regression_truth()),
}
SEEDS = range(4)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_evidence_of_a_conjugate_pair_is_the_closed_form(pair):
    model, data, truth = PAIRS[pair]
    answers = [evidence(model, None, data, seed=seed) for seed in SEEDS]
    nats, stderr = (np.array([getattr(a, name)[0] for a in answers]) for name in ("nats", "stderr"))
    assert (stderr < 0.08).all(), "no error was printed, or a large one"
    assert (abs(nats - truth) < 5 * stderr + 1e-9).all()
    assert (abs(nats - truth - 0.5) > 5 * stderr).all(), "half a nat off would not be seen"
    assert {a.kind for a in answers} == {Kind.LOWER}
    assert {len(a) for a in answers} == {1}
    assert answers[0].of == "data"


@pytest.mark.parametrize("by", [AIS(16, 60), AIS(16, 200, start="prior"), IWAE(2000, refine=True)], ids=repr)
def test_named_estimators_find_the_evidence_as_well(by):
    model, data, truth = PAIRS["Gamma-Poisson"]
    answer = evidence(model, None, data, by=by, seed=0)
    assert answer.by == repr(by)
    assert abs(answer.nats[0] - truth) < 0.3


def test_the_elbo_of_the_prior_lies_below():
    model, data, truth = PAIRS["Normal-Normal"]
    assert evidence(model, None, data, by=ELBO(200), seed=0).nats[0] < truth - 1


def test_a_trained_autoguide_is_a_guide():
    model, data, truth = PAIRS["linear regression"]
    guide = AutoMultivariateNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    with pyro.validation_enabled(False):
        for _ in range(300):
            svi.step(*data)
    answer = evidence(model, guide, data, seed=1)
    assert abs(answer.nats[0] - truth) < 5 * answer.stderr[0]
    trained, prior = (evidence(model, g, data, by=ELBO(500), seed=1).nats[0] for g in (guide, None))
    assert truth - 1 < trained < truth + 0.1
    assert prior < truth - 5


def test_data_come_as_a_tuple_a_mapping_or_one_argument():
    truth = PAIRS["linear regression"][2]
    answers = [evidence(regression, None, data, seed=2).nats[0] for data in ((X, Y), {"x": X, "y": Y})]
    assert answers[0] == answers[1]
    assert abs(answers[0] - truth) < 0.3


def test_the_evidence_is_that_of_its_seed_and_leaves_the_process_alone():
    torch.manual_seed(0)
    before, checks = torch.get_rng_state(), torch.distributions.Distribution._validate_args
    first, again, other = (evidence(normal_normal, None, REALS, seed=s).nats[0] for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert torch.equal(before, torch.get_rng_state())
    assert torch.distributions.Distribution._validate_args == checks
    assert len(pyro.get_param_store()) == 0


# Eight schools, Rubin (1981); Gelman et al. (2013), table 5.2

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=D)
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=D)


def eight_schools(effects, errors):
    mu = pyro.sample("mu", dist.Normal(number(0), number(5)))
    tau = pyro.sample("tau", dist.HalfCauchy(number(5)))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(number(0), number(1)))
        pyro.sample("y", dist.Normal(mu + tau * eta, errors), obs=effects)


def eight_schools_truth():
    """Quadrature over mu and tau = tan(angle); the schools' own effects integrate to normals."""
    mu, angle = np.linspace(-40, 40, 2001), (np.arange(4000) + 0.5) / 4000 * np.pi / 2
    tau = 5 * np.tan(angle)
    deviation = np.sqrt(ERRORS.numpy()[:, None] ** 2 + tau**2)
    total = sum(stats.norm.logpdf(y, mu[:, None], s) for y, s in zip(EFFECTS.numpy(), deviation, strict=True))
    total = total + stats.norm.logpdf(mu, 0, 5)[:, None] - math.log(4000)  # tau's density is even in its angle
    return special.logsumexp(total) + math.log(mu[1] - mu[0])


def test_the_evidence_of_eight_schools_is_the_quadrature():
    truth = eight_schools_truth()
    answers = [evidence(eight_schools, None, (EFFECTS, ERRORS), seed=seed) for seed in SEEDS]
    nats, stderr = (np.array([getattr(a, name)[0] for a in answers]) for name in ("nats", "stderr"))
    printed = np.isfinite(stderr)
    assert printed.sum() >= 3
    assert (abs(nats - truth)[printed] < 5 * stderr[printed]).all()
    assert abs(nats - truth).max() < 0.4
    assert abs(nats.mean() - truth) < 0.1


# Programs as tensor graphs


def test_a_program_is_traced_into_one_graph_and_scored_as_the_program_is():
    program = Program(eight_schools, None, (EFFECTS, ERRORS), torch.Generator().manual_seed(0))
    assert program.traced
    z = torch.randn(5, 1, 10, generator=torch.Generator().manual_seed(1), dtype=D)
    fast = program._log_joint(None, z, None)
    program.graph = None
    np.testing.assert_allclose(fast, program._log_joint(None, z, None), rtol=1e-12)


def forking(x):
    z = pyro.sample("z", dist.Normal(number(0), number(1)))
    scale = 1.0 if z > 0 else 2.0
    pyro.sample("x", dist.Normal(number(0), scale), obs=x)


def test_a_program_whose_flow_depends_on_its_latents_is_run_draw_by_draw():
    x = number(3.0)
    assert not Program(forking, None, x, torch.Generator().manual_seed(0)).traced
    truth = math.log(0.5 * stats.norm.pdf(3.0) + 0.5 * stats.norm.pdf(3.0, 0, 2))
    answer = evidence(forking, None, x, by=IWAE(500), seed=0)
    assert abs(answer.nats[0] - truth) < 0.25


def test_the_volume_of_the_move_to_unconstrained_space_counts():
    def scales(x):
        s = pyro.sample("s", dist.Gamma(number(2), number(1)))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3, dtype=D)))
        pyro.sample("x", dist.Normal(number(0), s + 0 * w.sum()), obs=x)

    s = np.linspace(1e-6, 40, 400_001)
    truth = math.log(np.trapezoid(stats.gamma.pdf(s, 2) * stats.norm.pdf(1.3, 0, s), s))
    answer = evidence(scales, None, number(1.3), seed=0)
    assert np.isfinite(answer.stderr[0])
    assert abs(answer.nats[0] - truth) < 5 * answer.stderr[0]


# Refusals


def test_a_discrete_latent_is_refused_by_name():
    def mixture(x):
        k = pyro.sample("component", dist.Categorical(torch.ones(2, dtype=D)))
        pyro.sample("x", dist.Normal(k.to(D), 1.0), obs=x)

    def counted(x):
        k = pyro.sample("visits", dist.Poisson(number(3)))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    for model, name in ((mixture, "component"), (counted, "visits")):
        with pytest.raises(StructureError, match=f"{name}.*Sum it out"):
            evidence(model, None, number(0.0))


def test_a_subsampled_plate_is_refused_by_name():
    def minibatches(x):
        mean = pyro.sample("mean", dist.Normal(number(0), number(2)))
        with pyro.plate("batches", 25, subsample_size=5) as rows:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])

    with pytest.raises(StructureError, match="'batches' takes 5 of 25"):
        evidence(minibatches, None, REALS)


def test_a_scaled_site_is_refused_by_name():
    def scaled(x):
        mean = pyro.sample("mean", dist.Normal(number(0), number(2)))
        with pyro.poutine.scale(scale=2.0), pyro.plate("rows", len(x)):
            pyro.sample("heavy", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(StructureError, match="heavy"):
        evidence(scaled, None, REALS)


def guide_of(**sites):
    def guide(*args):
        for name, law in sites.items():
            pyro.sample(name, law)

    return guide


def test_a_guide_with_another_support_is_refused_by_name():
    with pytest.raises(SupportError, match=r"'p'.*outside the support"):
        evidence(beta_binomial, guide_of(p=dist.Normal(number(3), number(0.1))), FLIPS)
    with pytest.raises(SupportError, match="'mean'"):
        evidence(normal_normal, guide_of(mean=dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1)), REALS)


@pytest.mark.parametrize(
    "sites", [{}, {"man": dist.Normal(0.0, 1.0)}, {"mean": dist.Normal(0.0, 1.0), "more": dist.Beta(1.0, 1.0)}]
)
def test_a_guide_that_lacks_or_adds_sites_is_refused(sites):
    with pytest.raises(StructureError, match=r"those of the model, \['mean'\]"):
        evidence(normal_normal, guide_of(**sites), REALS)


def test_a_program_without_latents_and_an_estimator_that_is_none_are_refused():
    def known(x):
        pyro.sample("x", dist.Normal(number(0), 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(StructureError, match="without latents"):
        evidence(known, None, REALS)
    for by in ("IWAE", 5):
        with pytest.raises(ParameterError, match="by="):
            evidence(normal_normal, None, REALS, by=by)


def test_impossible_data_have_no_evidence():
    def bounded(x):
        top = pyro.sample("top", dist.Uniform(number(1), number(2)))
        pyro.sample("x", dist.Uniform(number(0), top), obs=x)

    assert evidence(bounded, None, number(5.0), by=IWAE(500), seed=0).nats[0] == -math.inf
    with pytest.raises(StructureError):
        evidence(lambda: None, None)
