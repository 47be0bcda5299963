"""Gradients by hand against autograd; calibration of whole families, by quantities that do not depend on labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from probgen import emissions
from probgen.events import Array, Category, Series, Table
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.hmm import HMM
from probgen.models.mixture import Mixture
from probgen.models.regression import Regression
from probgen.models.regression import bayes as regression_bayes
from probgen.models.regression import posterior as conjugate
from probgen.models.regression.linear import Rows
from probgen.models.statespace import StateSpace
from probgen.posterior import Density, Plan, ess, sampled

pytestmark = pytest.mark.filterwarnings("ignore::probgen.posterior.fitting.ConvergenceWarning")

RNG = np.random.default_rng(0)
WALKS = [0.3 * RNG.normal(size=t).cumsum() + RNG.normal(size=t) for t in (12, 12, 9)]
GAPPY = [walk.copy() for walk in WALKS]
GAPPY[0][3] = GAPPY[2][5:7] = np.nan
PAIRS = [np.stack([walk, walk[::-1]], 1) for walk in WALKS]
HOLED = [pair.copy() for pair in PAIRS]
HOLED[1][4, 1] = np.nan


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def family_of(model, x, **options):
    return model.fit(x, seed=0, max_iter=5, **options)._parametric(), model._check(x).x


SPACES = {
    "level": (StateSpace(Series(), structure="level"), WALKS),
    "season and gaps": (StateSpace(Series(), structure="trend", seasonal=4), GAPPY),
    "free": (StateSpace(Series((2,)), latent_dim=2), PAIRS),
    "autoregression with gaps": (StateSpace(Series((2,)), structure="ar", latent_dim=4), HOLED),
}


@pytest.mark.parametrize("name", SPACES)
def test_scores_of_state_space_models_from_smoothed_disturbances_are_autograd_s(name):
    family, x = family_of(*SPACES[name])
    size = family.coordinates.size
    z = 0.4 * np.random.default_rng(1).normal(size=(3, size))
    nats, slopes = Density(family.log_joint(x, None), size).batch(z)
    found = replace(family, recorded=False).density(x, None).batch(z)
    assert np.isfinite(nats).all()
    np.testing.assert_allclose(found[0], nats, rtol=1e-11)
    np.testing.assert_allclose(found[1], slopes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Mixture(Array((1,)), 2, emissions.Normal(1, "full")), np.array(WALKS[0])[:, None]),
        (HMM(Series(), 2, emissions.Normal(1)), WALKS),
        (StateSpace(Series(), structure="level"), WALKS),
    ],
)
def test_a_recorded_batch_of_points_is_each_point_on_its_own(model, x):
    family, rows = family_of(model, x)
    density = family.density(rows, None)
    assert density.recorded
    z = 0.4 * np.random.default_rng(1).normal(size=(3, density.size))
    z[1] = np.nan
    plain = Density(family.log_joint(rows, None), density.size).batch(z)
    for width in (1, 4):
        found = density.batch(z, width)
        np.testing.assert_allclose(found[0], plain[0], rtol=1e-9)
        np.testing.assert_allclose(found[1], plain[1], rtol=1e-8, atol=1e-8)
    assert found[0][1] == -np.inf
    assert not (found[1][1]).any()


def test_data_sets_of_a_check_share_their_parameters_where_scores_have_a_closed_form():
    x = np.random.default_rng(2).normal(size=(12, 1))
    m = Regression(Array(()), Array((1,))).fit(x[:, 0], given=x, method="conjugate", draws=100, chains=1, seed=1)
    far = m._prior_numbers(400, generator())
    assert far.shape == (400, 3)
    offsets = torch.stack([m._sample_at(z, 12, torch.from_numpy(x), generator(i)).mean() for i, z in enumerate(far)])
    prior = m._sample_prior(1, torch.from_numpy(x), generator(1))
    assert prior.shape == (12, 1)
    assert float(offsets.std()) > 5 * m.sample(400, given=x[:1], seed=0).std()  # the prior is far wider
    table = Table({"a": Category((0, 1))})
    net = BayesianNetwork(table).fit({"a": np.array([0.0, 1, 1])}, method="conjugate", prior="k2", draws=50, seed=0)
    numbers = net._prior_numbers(200, generator())
    shares = torch.stack([net._parametric().sample_at(z, 40, None, generator(i)).mean() for i, z in enumerate(numbers)])
    assert abs(float(shares.std()) - (1 / 12 + 1 / 6 / 40) ** 0.5) < 0.06  # Beta(1, 1) and 40 throws; of one 0.08


# Simulation-based calibration (Talts et al. 2018) under priors that are held fixed


def ranks(family, quantity, runs, bent=False, size=4):
    """Of the true parameters' log-likelihood among those of 15 draws; ``bent``: every row counts four times."""
    found, family = [], replace(family, recorded=False)
    for seed in range(runs):
        source = generator(seed)
        z = family.coordinates.draw(1, source)
        x = family.sample_at(z[0], size, None, source)
        density = family.density(x, None)
        if bent:
            once = density.batch
            prior = Density(lambda u: family.coordinates.log_prior(u[None], family.coordinates.unpack(u[None])[0])[0]
                            + family.coordinates.unpack(u[None])[1][0], density.size)  # fmt: skip
            density = FourTimes(once, prior, density.size)
        drawn = sampled(density, z[0].numpy(), Plan("nuts", 60, 1, 60), source).z[0, 3::4]
        values = torch.stack([quantity(family, x, u) for u in (*drawn, z[0])])
        found.append(int((values[:-1] < values[-1]).sum()))
    return np.array(found)


class FourTimes:
    """A planted bug: a posterior in which all data count four times."""

    def __init__(self, once, prior, size):
        self.once, self.prior, self.size = once, prior, size

    def batch(self, z, width=1):
        (a, b), (c, d) = self.once(z), self.prior.batch(z)
        return 4 * a - 3 * c, 4 * b - 3 * d

    def __call__(self, z):
        nats, slopes = self.batch(z[None])
        return float(nats[0]), slopes[0]


def log_likelihood(family, x, z):
    return family.log_lik(x, None, z[None]).sum()


def fit_of(found, bins=4):
    return stats.chisquare(np.bincount(found * bins // 16, minlength=bins)).pvalue


REFERENCE = np.random.default_rng(3).normal(size=(30, 1))


def of_mixture():
    return family_of(Mixture(Array((1,)), 2, emissions.Normal(1)), REFERENCE)[0]


def of_hmm():
    from probgen.models.hmm import bayes

    model = HMM(Series(), 2, emissions.Normal(1)).fit([REFERENCE[:, 0]], seed=0, max_iter=5)
    return bayes.parametric(model, length=10)


@pytest.mark.long
@pytest.mark.parametrize("made", [of_mixture, of_hmm])
def test_ranks_of_log_likelihoods_are_uniform_and_those_under_data_counted_four_times_are_not(made):
    size = 20 if made is of_mixture else 2
    assert fit_of(ranks(made(), log_likelihood, 30, size=size)) > 1e-6
    assert fit_of(ranks(made(), log_likelihood, 30, bent=True, size=size)) < 1e-6


# Geweke's (2004) joint-distribution test of exact draws


def geweke_table(steps, strength):
    """z-scores of the moments of a share under turns of data given the share and of the share given data."""
    rng, event, share, seen = np.random.default_rng(0), Table({"a": Category((0, 1))}), 0.5, []
    for step in range(steps):
        data = {"a": (rng.random(4) < share).astype(float)}
        net = BayesianNetwork(event).fit(
            data, method="conjugate", prior="dirichlet", strength=strength, draws=1, chains=1, seed=step
        )
        share = float(net.draws.values["a"][0, 0, 1])
        seen.append([share, share**2])
    drawn = np.array(seen)
    error = drawn.std(0) / np.sqrt(ess(torch.from_numpy(drawn)[None]).numpy())
    return (drawn.mean(0) - [1 / 2, 1 / 3]) / error


@pytest.mark.long
def test_conjugate_tables_leave_the_joint_distribution_alone_and_another_prior_does_not():
    assert (abs(geweke_table(800, 1.0)) < 5).all()
    assert abs(geweke_table(800, 4.0)).max() > 6  # as if three more rows of each level had been seen


def averaged_regression(turns, bug=1.0):
    """z-scores of moments of posterior draws given data that the prior made, which have the prior's own distribution.

    Turns are independent: in a chain of them the scale of the data would hardly move.
    """
    m, x = Regression(Array(()), Array((1,))), np.linspace(-1, 1, 8)[:, None]
    m.fit(x[:, 0] + 0.1 * np.cos(9 * x[:, 0]), given=x, method="conjugate", draws=1, chains=1, seed=0)
    source, seen, plan = generator(5), [], Plan("nuts", 1, 1)
    design, none = torch.from_numpy(np.concatenate([np.ones_like(x), x / x.std()], 1)), torch.zeros(8).double()
    truth = regression_bayes.draw_prior(m, turns, source)
    for theta in truth:
        y = design @ theta[:-1] + theta[-1].exp() * torch.randn(8, generator=source, dtype=torch.float64)
        rows = Rows(bug * y, design, none)
        found, _ = conjugate.conjugate(rows, m.prior)
        z = regression_bayes.drawn_conjugate(rows, m.prior, found, plan, 0.0, source)[0].z[0, 0]
        seen.append(moments(z) - moments(theta))
    off = np.array(seen)
    return off.mean(0) / (off.std(0) / np.sqrt(turns))


def moments(theta):
    return np.array([float(theta[-1]), float(theta[1].tanh()), float(theta[0].square().log())])


@pytest.mark.long
def test_conjugate_regressions_leave_the_joint_distribution_alone_and_scaled_responses_do_not():
    assert (abs(averaged_regression(1500)) < 5).all()
    assert abs(averaged_regression(1500, bug=1.5)).max() > 6
