"""Samplers against closed forms; joint-distribution tests and simulation-based calibration, each with planted bugs."""

import math

import arviz as az
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from probgen.errors import FitError, NotFittedError, ParameterError
from probgen.posterior import (
    ConvergenceWarning,
    Coordinates,
    Density,
    Draws,
    Kept,
    Plan,
    ess,
    log_mean,
    nuts,
    rhat,
    sampled,
)
from probgen.posterior.normal import laplace, mode
from probgen.posterior.nuts import Metric, told
from probgen.posterior.predictive import predictive, predictive_steps
from probgen.posterior.warmup import StepSize, chain_from, windows

UNSURE = 5.0  # standard errors: two-sided 6e-7


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def start_point(density, z):
    return told(nuts.start_point(z), density)


def leapfrog(density, metric, at, step):
    return told(nuts.leapfrog(metric, at, step), density)


def transition(density, metric, step, at, rng):
    return told(nuts.transition(metric, step, at, rng), density)


def run_chain(density, start, draws, warmup, rng):
    return told(chain_from(start, draws, warmup, rng), density)


# Diagnostics


@pytest.mark.parametrize("shape", [(4, 500), (2, 101), (3, 8), (4, 40), (2, 9), (4, 200)])
@pytest.mark.parametrize("pull", [0.0, 0.6, -0.7, 0.98])
def test_rhat_and_ess_are_arviz_s_to_ten_digits(shape, pull):
    x = np.random.default_rng(0).standard_normal(shape)
    for t in range(1, shape[1]):
        x[:, t] += pull * x[:, t - 1]
    x[0] += 0.3
    mine = torch.from_numpy(x)
    assert float(rhat(mine)) == pytest.approx(float(az.rhat(x)), rel=1e-10)
    assert float(ess(mine)) == pytest.approx(float(az.ess(x)), rel=1e-10)


def test_rhat_and_ess_of_many_numbers_are_those_of_each_and_ties_share_ranks():
    x = np.random.default_rng(1).integers(0, 4, size=(3, 60, 2, 2)).astype(float)
    found, worth = rhat(torch.from_numpy(x)), ess(torch.from_numpy(x))
    assert found.shape == worth.shape == (2, 2)
    for place in np.ndindex(2, 2):
        assert float(found[place]) == pytest.approx(float(az.rhat(x[(..., *place)])), rel=1e-10)
        assert float(worth[place]) == pytest.approx(float(az.ess(x[(..., *place)])), rel=1e-10)


def test_constants_infinities_and_too_few_draws_have_no_rhat():
    assert rhat(torch.ones(2, 50)).isnan()
    assert float(ess(torch.ones(2, 50))) == 100
    assert rhat(torch.full((2, 50), math.inf)).isnan()
    assert ess(torch.full((2, 50), math.nan)).isnan()
    assert rhat(torch.randn(2, 3)).isnan()
    assert ess(torch.randn(2, 3)).isnan()


def test_chains_that_disagree_are_seen():
    x = torch.randn(4, 200, generator=generator(), dtype=torch.float64)
    assert float(rhat(x)) < 1.02
    x[0] += 2
    assert float(rhat(x)) > 1.2


# Coordinates

PRIORS = {
    "loc": dist.Normal(torch.zeros(2, dtype=torch.float64), 3.0).to_event(1),
    "rate": dist.Gamma(torch.tensor(2.0, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)),
    "share": dist.Beta(torch.tensor(2.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)),
    "weights": dist.Dirichlet(torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64)),
}


def log_joint_of(coordinates, likelihood=None, jacobian=True):
    def joint(z):
        values, volume = coordinates.unpack(z[None])
        total = coordinates.log_prior(z[None], values)[0] + (volume[0] if jacobian else 0.0)
        return total if likelihood is None else total + likelihood({n: v[0] for n, v in values.items()})

    return joint


def test_coordinates_go_there_and_back():
    c = Coordinates(PRIORS)
    assert c.size == 2 + 1 + 1 + 2
    z = torch.randn(7, c.size, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(c.pack(c.unpack(z)[0]), z, rtol=1e-9, atol=1e-9)


def test_log_prior_and_jacobian_are_torch_s():
    c = Coordinates(PRIORS)
    z = torch.randn(5, c.size, generator=generator(), dtype=torch.float64)
    values, volume = c.unpack(z)
    prior = sum(PRIORS[name].log_prob(value) for name, value in values.items())
    torch.testing.assert_close(c.log_prior(z, values), prior)

    def constrained(one):
        values = c.unpack(one[None])[0]
        return torch.cat([values["loc"][0], values["rate"], values["share"], values["weights"][0, :2]])

    for i in range(5):
        slopes = torch.autograd.functional.jacobian(constrained, z[i])
        assert float(volume[i]) == pytest.approx(float(torch.linalg.slogdet(slopes)[1]), rel=1e-10)


@pytest.mark.parametrize("jacobian", [True, False])
def test_draws_of_priors_have_their_moments_and_a_missing_jacobian_is_caught(jacobian):
    c = Coordinates(PRIORS)
    density = Density(log_joint_of(c, jacobian=jacobian), c.size, recorded=True)
    assert density.recorded
    found = sampled(density, np.zeros(c.size), Plan("nuts", 150, 2, 60), generator(1))
    values = c.unpack(found.z.reshape(-1, c.size))[0]
    off = []
    for name, mean in (("rate", 2 / 1.5), ("share", 0.4), ("weights", torch.tensor([1, 2, 3]) / 6.0)):
        draws = values[name].reshape(2, 150, -1)
        error = draws.flatten(0, 1).std(0) / ess(draws).sqrt()
        off.append(((draws.mean((0, 1)) - mean).abs() / error).max())
    assert (max(off) < UNSURE) == jacobian


def test_a_function_that_breaks_down_has_density_zero_and_no_gradient():
    def broken(z):
        return torch.linalg.cholesky(z.reshape(1, 1)).sum()

    density = Density(broken, 1)
    assert density(np.array([4.0]))[0] == pytest.approx(2.0)
    assert density(np.array([-1.0]))[0] == -np.inf
    assert density.values(np.array([[4.0], [-1.0]])).tolist() == [2.0, -np.inf]
    nan = Density(lambda z: z.log().sum(), 1)
    assert nan(np.array([-1.0]))[0] == -np.inf


# The sampler: arrays alone


def normal_density(z):
    """Two correlated normals, of deviations 1 and 5."""
    precision = np.linalg.inv(np.array([[1.0, 3.0], [3.0, 25.0]]))
    pull = precision @ z
    return -0.5 * float(z @ pull), -pull


def test_leapfrog_runs_back_where_it_came_from_and_keeps_the_energy():
    metric, rng = Metric(np.array([[1.0, 0.3], [0.3, 2.0]])), np.random.default_rng(0)
    momentum = metric.momentum(rng)
    at = start_point(normal_density, np.array([0.5, -1.0]))._replace(momentum=momentum)
    at = at._replace(velocity=metric.velocity(momentum))
    there = at
    for _ in range(20):
        there = leapfrog(normal_density, metric, there, 0.05)
    assert there.log_joint == pytest.approx(at.log_joint, abs=5e-3)
    back = there
    for _ in range(20):
        back = leapfrog(normal_density, metric, back, -0.05)
    np.testing.assert_allclose(back.z, at.z, atol=1e-10)


def test_momenta_have_the_inverse_of_the_metric_as_their_covariance():
    inverse = np.array([[1.0, 0.6], [0.6, 2.0]])
    rng = np.random.default_rng(0)
    drawn = np.stack([Metric(inverse).momentum(rng) for _ in range(4000)])
    np.testing.assert_allclose(np.cov(drawn.T), np.linalg.inv(inverse), atol=0.15)


def test_a_chain_finds_means_and_covariances_of_a_normal():
    chain = run_chain(normal_density, np.array([3.0, -9.0]), 1200, 200, np.random.default_rng(3))
    z = torch.from_numpy(chain.z)[None]
    error = torch.tensor([1.0, 5.0]) / ess(z).sqrt()
    assert (z.mean((0, 1)).abs() < UNSURE * error).all()
    np.testing.assert_allclose(np.cov(chain.z.T), [[1, 3], [3, 25]], rtol=0.25, atol=0.25)
    assert 0.6 < chain.stats["acceptance_rate"].mean() < 0.97
    assert not chain.stats["diverging"].any()
    assert len(set(chain.stats["step_size"])) == 1
    np.testing.assert_allclose(chain.stats["lp"], [normal_density(z)[0] for z in chain.z])
    assert (chain.stats["energy"] >= -chain.stats["lp"]).all()


def test_a_wall_is_a_divergence():
    def wall(z):
        return (-0.5 * float(z @ z) * 1e8, -z * 1e8) if abs(z[0]) > 0.5 else (-0.5 * float(z @ z), -z)

    at = start_point(wall, np.array([0.4]))
    rng = np.random.default_rng(0)
    said = [transition(wall, Metric.unit(1), 0.5, at, rng)[1]["diverging"] for _ in range(50)]
    assert sum(said) > 10


def test_windows_of_warm_up_double_and_leave_the_end_to_the_step_size():
    assert windows(1000) == [100, 150, 250, 450, 950]
    assert windows(500) == [100, 150, 250, 450]
    assert windows(100) == [90]
    assert windows(10) == []
    size = StepSize(1.0)
    for _ in range(300):
        size.see(0.3)  # always too low: smaller steps
    assert size.final < 1e-3


# Geweke's (2004) joint-distribution test: theta ~ N(0, 1), x | theta ~ N(theta, 1), three x


def geweke(rng, steps=12_000, change=lambda transition: transition):
    """z-scores of moments of theta under alternating draws of x | theta and transitions that leave theta | x alone."""
    theta, moments = 0.0, []
    move = change(transition)
    for _ in range(steps):
        total = 3 * theta + math.sqrt(3) * rng.standard_normal()

        def density(z, total=total):
            return float(-0.5 * z[0] ** 2 + total * z[0] - 1.5 * z[0] ** 2), total - 4 * z

        point, _ = move(density, Metric.unit(1), 0.45, start_point(density, np.array([theta])), rng)
        theta = float(point.z[0])
        moments.append([theta, theta**2, theta**4])
    drawn = np.array(moments)
    worth = ess(torch.from_numpy(drawn)[None]).numpy()
    return (drawn.mean(0) - [0.0, 1.0, 3.0]) / (drawn.std(0) / np.sqrt(worth))


def test_transitions_of_nuts_leave_the_joint_distribution_alone():
    assert (abs(geweke(np.random.default_rng(0), 2500)) < UNSURE).all()


def always_far(_):
    """A planted bug: the last point of a leapfrog run is always taken, as if its energy were kept."""

    def move(density, metric, step, at, rng):
        momentum = metric.momentum(rng)
        at = at._replace(momentum=momentum, velocity=metric.velocity(momentum))
        for _ in range(1):
            at = leapfrog(density, metric, at, 2 * step)
        return at, {}

    return move


def half_a_gradient(move):
    """A planted bug: the density's gradient is right, its value counts the prior twice."""

    def moved(density, metric, step, at, rng):
        def bent(z):
            value, slope = density(z)
            return value - 0.5 * float(z @ z), slope

        return move(bent, metric, step, start_point(bent, at.z), rng)

    return moved


@pytest.mark.parametrize("bug", [always_far, half_a_gradient])
def test_planted_bugs_fail_the_joint_distribution_test(bug):
    assert abs(geweke(np.random.default_rng(0), 2500, bug)).max() > 6


# Simulation-based calibration (Talts et al. 2018) of the same model, by ranks


def ranks(rng, runs, density_of, draws=15):
    found = []
    for _ in range(runs):
        theta = rng.standard_normal()
        total = 3 * theta + math.sqrt(3) * rng.standard_normal()
        chain = run_chain(density_of(total), np.array([total / 4]), 2 * draws, 30, rng)
        found.append(int((chain.z[::2, 0] < theta).sum()))
    return np.array(found)


def uniform_p(found, bins, most):
    counts = np.bincount(found * bins // (most + 1), minlength=bins)
    return stats.chisquare(counts).pvalue


def right(total):
    return lambda z: (float(-2 * z[0] ** 2 + total * z[0]), total - 4 * z)


def without_prior(total):
    return lambda z: (float(-1.5 * z[0] ** 2 + total * z[0]), total - 3 * z)


def test_ranks_of_true_parameters_among_draws_of_nuts_are_uniform_and_those_without_a_prior_are_not():
    assert uniform_p(ranks(np.random.default_rng(1), 100, right), 8, 15) > 1e-6
    # 100 runs cannot see a prior of a third of the information; a posterior that forgets half of the data is seen
    narrow = ranks(
        np.random.default_rng(1), 100, lambda total: lambda z: (4 * right(total)(z)[0], 4 * right(total)(z)[1])
    )
    assert uniform_p(narrow, 8, 15) < 1e-6


@pytest.mark.long
def test_many_ranks_see_a_prior_that_is_left_out():
    assert uniform_p(ranks(np.random.default_rng(2), 1500, right), 16, 15) > 1e-6
    assert uniform_p(ranks(np.random.default_rng(2), 1500, without_prior), 16, 15) < 1e-6


# Conjugate oracles through coordinates, for all methods


def beta_binomial(recorded=True):
    c = Coordinates({"share": dist.Beta(torch.tensor(2.0).double(), torch.tensor(2.0).double())})

    def likelihood(values):
        return 7 * values["share"].log() + 3 * (-values["share"]).log1p()

    return c, Density(log_joint_of(c, likelihood), 1, recorded)


@pytest.mark.parametrize(("method", "slack"), [("nuts", 0.0), ("svi", 0.02), ("laplace", 0.03)])
def test_beta_binomial_posterior_by_every_method(method, slack):
    c, density = beta_binomial()
    found = sampled(density, np.zeros(1), Plan(method, 500, 2, 100), generator(2))
    share = c.unpack(found.z.reshape(-1, 1))[0]["share"].reshape(2, 500)
    truth = stats.beta(9, 5)
    error = truth.std() / math.sqrt(float(ess(share)))
    assert abs(float(share.mean()) - truth.mean()) < UNSURE * error + slack * truth.std() * 10
    assert abs(math.log(float(share.std()) / truth.std())) < 0.2
    if method == "nuts":
        thinned = share.flatten()[::2]
        assert stats.kstest(thinned, truth.cdf).pvalue > 1e-6
        assert stats.kstest(thinned, stats.beta(8, 2).cdf).pvalue < 1e-6  # one tail of the coin left out
        assert found.log_p is None
    else:
        assert found.log_p.shape == found.log_q.shape == (2, 500)
        evidence = stats.betabinom(10, 2, 2).logpmf(7) - math.log(math.comb(10, 7))
        ratio = (found.log_p - found.log_q).flatten()
        estimate = float(ratio.logsumexp(0)) - math.log(len(ratio))
        assert estimate == pytest.approx(evidence, abs=0.05)  # importance sampling: log_p and log_q fit together


def test_laplace_of_a_normal_is_that_normal_and_its_elbo_is_tight():
    density = Density(lambda z: -0.5 * (z[0] ** 2 + (z[1] - 2 * z[0]) ** 2 / 4), 2)
    at, history = mode(density, np.array([3.0, -4.0]))
    np.testing.assert_allclose(at, 0, atol=1e-5)
    assert history == sorted(history)
    found, proper = laplace(density, at)
    assert proper
    np.testing.assert_allclose(found.covariance(), [[1, 2], [2, 8]], rtol=1e-4)
    guide = sampled(density, np.ones(2), Plan("svi", 10, 1), generator())
    evidence = torch.full((1, 10), math.log(4 * math.pi), dtype=torch.float64)
    torch.testing.assert_close(guide.log_p - guide.log_q, evidence, atol=0.15, rtol=0)


def test_a_saddle_is_told_and_a_start_without_density_refused():
    saddle, proper = laplace(Density(lambda z: 0.5 * z[0] ** 2 - z[1] ** 2, 2), np.zeros(2))
    assert not proper
    assert np.isfinite(saddle.covariance()).all()
    with pytest.raises(FitError, match="finite"):
        mode(Density(lambda z: z.log().sum(), 1), np.array([-1.0]))


# Predictive densities


def test_log_mean_and_its_error_by_hand_and_rows_without_any_chance():
    logs = torch.log(torch.tensor([[0.1, 0.0], [0.3, 0.0]], dtype=torch.float64))
    nats, error, worth = log_mean(logs, 0)
    assert float(nats[0]) == pytest.approx(math.log(0.2))
    assert float(error[0]) == pytest.approx(math.sqrt(0.02) / 0.2 / math.sqrt(2))
    assert nats[1] == -math.inf
    assert error[1].isnan()
    assert worth.tolist() == [2.0, 2.0]


def test_predictive_of_a_conjugate_normal_covers_the_truth_and_its_error_is_no_guess():
    """theta | D ~ N(1, 0.2^2), x | theta ~ N(theta, 1)."""
    truth = stats.norm(1, math.sqrt(1.04))
    x = np.linspace(-2, 4, 7)
    scores = []
    for seed in range(60):
        theta = 1 + 0.2 * torch.randn(200, 1, generator=generator(seed), dtype=torch.float64)
        table = torch.from_numpy(stats.norm(theta.numpy(), 1).logpdf(x))
        lp = predictive(lambda some, t=table: t[:, some], 7, 200, method="nuts", chains=2, key=theta.flatten())
        assert lp.target == "p(x_i | D)"
        assert lp.kind == "estimate"
        assert len(set(lp.draws.tolist())) == 1
        scores.append((lp.nats - truth.logpdf(x)) / lp.stderr)
    z = np.array(scores)
    assert (abs(z) < 6).all()
    assert (z.std(0) > 0.6).all()
    assert (z.std(0) < 1.6).all()


def test_steps_average_over_what_the_earlier_ones_say_of_theta():
    """Coins of an unknown bias, uniform on a grid: the second step's chance is that of Laplace's rule of succession."""
    grid = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    heads = grid.log()[:, None].expand(-1, 3)
    lp = predictive_steps(heads, torch.tensor([3]), method="conjugate", chains=0, key=grid)
    np.testing.assert_allclose(np.exp(lp.nats), [1 / 2, 2 / 3, 3 / 4], rtol=1e-5)
    again = predictive_steps(heads, torch.tensor([1, 2]), method="conjugate", chains=0, key=grid)
    np.testing.assert_allclose(np.exp(again.nats), [1 / 2, 1 / 2, 2 / 3], rtol=1e-5)


# Draws


def test_a_summary_names_every_number():
    draws = Draws(
        {"a": torch.randn(2, 50, generator=generator()), "b": torch.randn(2, 50, 2, 2, generator=generator())}
    )
    table = draws.summary()
    assert table.column("name").to_pylist() == ["a", "b[0,0]", "b[0,1]", "b[1,0]", "b[1,1]"]
    assert table.column("mean")[0].as_py() == pytest.approx(float(draws.values["a"].mean()), abs=1e-6)
    assert (draws.chains, draws.draws, len(draws)) == (2, 50, 100)
    assert "nuts: 2 chains of 50" in repr(draws)
    assert "an approximation" in repr(Draws(draws.values, {}, "svi"))


def test_nothing_kept_is_told():
    assert not Kept()
    assert Kept().draws(lambda z: {}) is None
    with pytest.raises(NotFittedError, match="nuts"):
        Kept().z()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"method": "nutz"}, "Did you mean 'nuts'"), ({"draws": 0}, "draws=0"), ({"chains": 0}, "chains=0"),
     ({"chains": 2.0}, "chains=2.0"), ({"warmup": -1}, "warmup=-1"), ({"target": 1.0}, "target=1.0")],
)  # fmt: skip
def test_options_out_of_range_are_named(options, text):
    with pytest.raises(ParameterError, match=text):
        Plan(**options)


def test_chains_that_disagree_are_warned_of():
    from probgen.posterior import Found, judged

    z = torch.randn(2, 100, 1, generator=generator(), dtype=torch.float64)
    found = Found(z, {"lp": z[..., 0], "diverging": torch.zeros(2, 100, dtype=torch.bool)}, torch.zeros(1))
    z[0] += 3
    with pytest.warns(ConvergenceWarning, match="R-hat"):
        judged(Plan("nuts", 100, 2), found, {"z": z})
