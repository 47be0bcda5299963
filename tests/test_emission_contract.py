"""What mixtures and sequence models ask of every emission, and the emissions with covariates or latent parts."""

import copy
import math

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import optimize, stats
from test_emissions import (
    ALPHA,
    MADE,
    ONE_CELL,
    D,
    agree,
    cells,
    draws,
    gamma,
    negative_binomial,
    normal_mixture,
    objective,
    poisson,
    rule,
    student,
    weights,
    with_gaps,
)  # fmt: skip
from torch import nn
from torch.func import functional_call

from probgen import emissions as em
from probgen.errors import ParameterError, ProbgenError, StructureError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def regression(covariance="diag", intercept=True, width=2, inputs=3):
    e = em.LinearRegression(width, inputs, intercept, covariance, states=2)
    rng = np.random.default_rng(8)
    e.weight.data = cells(rng.normal(0, 1, e.weight.shape))
    if intercept:
        e.loc.data = cells(rng.normal(0, 1, e.loc.shape))
    e.log_scale.data = cells(np.tril(rng.normal(-0.3, 0.3, e.log_scale.shape)))
    return e


def autoregressive(covariance="diag", dim=2, lags=2):
    e = em.Autoregressive(dim, lags, covariance, states=2)
    rng = np.random.default_rng(9)
    e.of.weight.data = cells(rng.normal(0, 0.3, e.of.weight.shape))
    e.of.loc.data = cells(rng.normal(0, 1, e.of.loc.shape))
    for part in (e.of, e.start):
        part.log_scale.data = cells(np.tril(rng.normal(-0.3, 0.3, part.log_scale.shape)))
    e.start.loc.data = cells(rng.normal(0, 1, e.start.loc.shape))
    return e


class Counts(nn.Module):
    """Poisson cells, written by a user."""

    def __init__(self, width=2, inputs=0):
        super().__init__()
        self.rate = nn.Parameter(cells(np.linspace(-0.5, 1.5, 2 * width)).reshape(2, width))
        self.slope = nn.Parameter(torch.full((2, width, inputs), 0.2, dtype=D)) if inputs else None

    def forward(self, given):
        if given is None:
            return dist.Poisson(self.rate.exp()).to_event(1)
        return dist.Poisson((self.rate + (self.slope * given[:, None, None]).sum(-1)).exp()).to_event(1)


def mixed():
    e = em.Product({"y": em.LinearRegression(1, 2), "n": em.Poisson(), "z": em.LinearRegression(2, 2)}, states=2)
    for part in (e.of[0], e.of[2]):
        part.weight.data = part.weight.data + 0.3
    return e


WITH_COVARIATES = {
    "regression": regression,
    "regression full": lambda: regression("full"),
    "regression origin": lambda: regression(intercept=False),
    "autoregressive": autoregressive,
    "autoregressive full": lambda: autoregressive("full"),
    "product inputs": mixed,
    "program inputs": lambda: em.Program(Counts(2, 1), 2, 1),
}
ALL = {**MADE, **WITH_COVARIATES, "program": lambda: em.Program(Counts(), 2)}
HISTOGRAMS = {name for name in ALL if name.startswith("histogram")}
everything = pytest.mark.parametrize("name", [name for name in ALL if name not in HISTOGRAMS])


def inputs_of(e, n, seed=0, early=True):
    """Covariates, with rows at the start of sequences where the emission looks back."""
    if not e.covariates:
        return None
    given = cells(np.random.default_rng(seed).normal(0.5, 1.5, (n, e.covariates)))
    if e.lags and early:
        given[::7, -e.width :] = math.nan
        given[::14] = math.nan
    return given


def rows_of(e, n=200, seed=3):
    """Rows of both states with their covariates, and the states."""
    state = torch.arange(n) % 2
    given = inputs_of(e, n, seed)
    x = e.sample(state, torch.Generator().manual_seed(seed), given).detach()
    return x if given is None else torch.cat([x, given], 1), state


def m_step(e, x, w, sweeps=1):
    with torch.no_grad():
        e.prepare(x)
        for _ in range(sweeps):
            empty = e.maximise(e.statistics(x, w))
    return empty


# The contract


@everything
def test_priors_cover_every_raw_parameter_and_their_draws_are_usable(name):
    e = ALL[name]()
    x, _ = rows_of(e)
    e.prepare(x)
    priors = e.priors()
    assert set(priors) == {name for name, _ in e.named_parameters()}
    pyro.set_rng_seed(0)
    drawn = {n: prior.sample() for n, prior in priors.items()}
    for n, parameter in e.named_parameters():
        assert priors[n].event_shape == parameter.shape
        assert priors[n].batch_shape == ()
        assert priors[n].log_prob(drawn[n]).isfinite()
    nats = functional_call(e, drawn, (x,))
    assert nats.shape == (len(x), 2)
    assert nats.isfinite().all()
    assert not torch.equal(nats, e.log_prob(x))


@pytest.mark.parametrize("c", [1e-12, 1e12])
@pytest.mark.parametrize(
    "name", ["normal full", "normal diag", "student", "mixture full", "regression", "autoregressive"]
)
def test_priors_follow_the_scale_of_the_data(name, c):
    def spread(factor):
        e = ALL[name]()
        x = rows_of(e)[0] * factor
        e.prepare(x)
        with torch.no_grad():
            return e, x, functional_call(e, {n: p.mean for n, p in e.priors().items()}, (x,))

    (e, _, plain), (_, _, scaled) = spread(1.0), spread(c)
    agree(scaled, plain - e.width * math.log(c), rtol=1e-6)


@everything
def test_natural_parameters_have_states_first_and_a_gradient(name):
    e = ALL[name]()
    natural = e.natural()
    assert natural
    for value in natural.values():
        assert len(value) == 2
    sum(value.nan_to_num(posinf=0.0, neginf=0.0).square().sum() for value in natural.values()).backward()
    assert any(p.grad is not None and (p.grad != 0).any() for p in e.parameters())


@pytest.mark.parametrize("name", [*ALL])
def test_samples_pass_the_check_of_the_emissions_event(name):
    e = ALL[name]()
    x = rows_of(e, 50)[0][:, : e.width]
    if name.startswith("product"):
        assert e.event is None
        return
    assert e.event.shape == ((e.width,) if e.width > 1 else ())
    e.event.check(x.numpy().reshape(50, *e.event.shape))
    one = {"poisson": lambda: poisson(1), "gamma": lambda: gamma(1), "student": lambda: student(dim=1)}
    if name in one:
        assert one[name]().event.shape == ()


def test_a_product_of_like_parts_names_its_event():
    same = em.Product({"a": em.Normal(2), "b": em.StudentT(1)})
    assert same.event.shape == (3,)
    assert same.event.support == "real"
    tables = em.Product({"a": em.Categorical(3), "b": em.Bernoulli(1)})
    assert tables.event.levels == (3, 2)


@pytest.mark.parametrize("name", [*ONE_CELL, "bernoulli", "categorical", "mixture"])
def test_the_distribution_function_sums_or_integrates_the_density(name):
    made = {"bernoulli": lambda: em.Bernoulli(1, states=2), "mixture": lambda: normal_mixture(dim=1)}
    made["categorical"] = lambda: em.Categorical(4, states=2)
    e = {**ONE_CELL, **made}[name]()
    node, weight = rule(e if name != "mixture" else em.Normal())
    density = e.log_prob(cells(node)[:, None]).exp().detach().numpy() * weight[:, None]
    below = e.cdf(cells(node)[:, None])[:, :, 0].detach().numpy()
    grid = e.cells(torch.zeros(1, dtype=torch.int64)).support.is_discrete or getattr(e, "step", None)
    if grid:
        tail = below[0] - density[0] if name == "histogram step" else 0  # the background reaches beyond the grid
        agree(below, np.cumsum(density, 0) + tail, rtol=1e-8, atol=1e-9)
    else:
        summed = np.cumsum(density, 0) - density / 2  # a trapezoid rule stands in the middle of its weights
        # a histogram's rule has few nodes a bin, whose weights are wide
        np.testing.assert_allclose(below, summed, atol=0.06 if name.startswith("histogram") else 2e-4)


@pytest.mark.parametrize(
    "name", [n for n in ONE_CELL if not n.startswith(("histogram", "student"))] + ["bernoulli", "mixture"]
)
def test_mean_and_variance_are_the_moments_of_the_density(name):
    made = {"bernoulli": lambda: em.Bernoulli(1, states=2), "mixture": lambda: normal_mixture(dim=1)}
    e = {**ONE_CELL, **made}[name]()
    node, weight = rule(e if name != "mixture" else em.Normal())
    mass = e.log_prob(cells(node)[:, None]).exp().detach().numpy() * weight[:, None]
    mean = (mass * node[:, None]).sum(0)
    agree(e.mean()[:, 0], mean, rtol=1e-7)
    agree(e.variance()[:, 0], (mass * (node[:, None] - mean) ** 2).sum(0), rtol=1e-7)


@pytest.mark.parametrize("scale", [0.05, 0.4, 1.4, 1.6, 30.0])
def test_moments_of_rounded_normals_are_sums_over_the_grid(scale):
    e = em.DiscretisedNormal(1, 0.5)
    e.loc.data[:], e.log_scale.data[:] = 12.17, math.log(0.5 * scale)
    x = np.arange(-1000, 1100) * 0.5
    mass = e.log_prob(cells(x)[:, None])[:, 0].exp().detach().numpy()
    agree(e.mean()[0, 0], (mass * x).sum(), rtol=1e-10)
    agree(e.variance()[0, 0], (mass * (x - (mass * x).sum()) ** 2).sum(), rtol=1e-9)


DISTRIBUTION = {
    "normal": (lambda: em.Normal(1), lambda e: stats.norm(e.loc.item(), e.scale().item())),
    "gamma": (
        lambda: em.Gamma(1),
        lambda e: stats.gamma(e.log_shape.exp().item(), scale=(e.mean() / e.log_shape.exp()).item()),
    ),
    "poisson": (lambda: em.Poisson(1), lambda e: stats.poisson(e.mean().item())),
    "student": (lambda: em.StudentT(1), lambda e: stats.t(e.degrees().item(), e.loc.item(), e.log_scale.exp().item())),
    "negative binomial": (
        lambda: em.NegativeBinomial(1),
        lambda e: stats.nbinom(e.log_size.exp().item(), e.log_size.exp().item() / (e.log_size.exp() + e.mean()).item()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", DISTRIBUTION)
def test_density_and_distribution_function_are_scipys(name, seed):
    make, other = DISTRIBUTION[name]
    e, rng = make(), np.random.default_rng(seed)
    for parameter in e.parameters():
        parameter.data = cells(rng.normal(1, 1.5, parameter.shape))
    truth = other(e)
    x = np.concatenate([truth.rvs(size=40, random_state=rng), truth.ppf([1e-4, 0.5, 0.9999])])
    log_density = truth.logpmf(x) if name in ("poisson", "negative binomial") else truth.logpdf(x)
    agree(e.log_prob(cells(x)[:, None])[:, 0], log_density, rtol=1e-9, atol=1e-11)
    agree(e.cdf(cells(x)[:, None])[:, 0, 0], truth.cdf(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1e-6, 1e-2, 1e3, 1e8, 1e12])
def test_negative_binomial_keeps_its_digits_at_any_size(size):
    e = em.NegativeBinomial(1)
    e.log_mean.data[:], e.log_size.data[:] = math.log(40), math.log(size)
    k = np.arange(200)
    if size >= 1e8:  # a Poisson, with the first correction in 1 / size
        truth = stats.poisson.logpmf(k, 40) + ((k - 40) ** 2 - k) / (2 * size)
    else:
        truth = [
            float(mpmath.loggamma(int(j) + size) - mpmath.loggamma(size) - mpmath.loggamma(int(j) + 1)
            + size * mpmath.log(size / (mpmath.mpf(size) + 40)) + int(j) * mpmath.log(40 / (mpmath.mpf(size) + 40)))
            for j in k
        ]  # fmt: skip
    agree(e.log_prob(cells(k)[:, None])[:, 0], np.array(truth), rtol=1e-10)


@pytest.mark.parametrize("shape", [1e-3, 0.5, 30.0, 1e6, 1e10])
def test_gamma_keeps_its_digits_at_any_shape(shape):
    e = em.Gamma(1)
    e.log_mean.data[:], e.log_shape.data[:] = math.log(7), math.log(shape)
    x = 7 * np.exp(np.linspace(-3, 3, 21) / math.sqrt(shape))
    truth = stats.gamma.logpdf(x, shape, scale=7 / shape)
    agree(e.log_prob(cells(x)[:, None])[:, 0], truth, rtol=1e-9, atol=4e-16 * shape * 100)


def test_the_distribution_function_of_large_counts_is_scipys():
    e, size = em.NegativeBinomial(1), 3.0
    e.log_mean.data[:], e.log_size.data[:] = math.log(1e7), math.log(size)
    x = np.array([0.0, 1e3, 1e6, 1e7, 5e7])
    agree(e.cdf(cells(x)[:, None])[:, 0, 0], stats.nbinom.cdf(x, size, size / (size + 1e7)), rtol=1e-7)
    p = em.Poisson(1)
    p.log_rate.data[:] = math.log(1e6)
    x = 1e6 + np.arange(-4000, 4001, 1000)
    agree(p.cdf(cells(x)[:, None])[:, 0, 0], stats.poisson.cdf(x, 1e6), rtol=1e-6)


@everything
def test_gradients_of_log_prob_are_those_of_finite_differences(name):
    e = ALL[name]()
    x = rows_of(e, 9)[0]
    named = {n: p.detach().clone() for n, p in e.named_parameters()}
    moved = {n: torch.where(p.isfinite(), p, 0.0).requires_grad_() for n, p in named.items()}

    def score(*values):
        return functional_call(e, dict(zip(moved, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(score, tuple(moved.values()), eps=1e-6, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("top", [3, 40, 10**7])
def test_tables_of_distinct_counts_score_as_row_by_row(k, top):
    x = cells(np.random.default_rng(0).integers(0, top, (400, 2)))
    x[::9, 1] = math.nan
    for e in (em.Poisson(2, states=k), em.NegativeBinomial(2, states=k)):
        for parameter in e.parameters():
            parameter.data = cells(np.random.default_rng(1).uniform(-1, 1, parameter.shape)) + math.log(top)
        agree(e.log_prob(x), torch.cat([e.log_prob(row[None]) for row in x]).detach().numpy())


# Samples


def uniforms(e, x, state, seed=0):
    """Randomised probability integral transforms, which are uniform if x follows e (Brockwell 2007)."""
    n = torch.arange(len(x))
    upper = e.cdf(x)[n, state].detach().numpy()
    whole = x.clone()
    counts = torch.cat([(x[:, : e.width] == x[:, : e.width].round()).all(0), torch.zeros(e.covariates).bool()])
    whole[:, counts] = x[:, counts] - 1
    lower = np.where(counts[: e.width], e.cdf(whole)[n, state].detach().numpy(), upper)
    return lower + (upper - lower) * np.random.default_rng(seed).uniform(size=upper.shape)


def p_value(scorer, sampler):
    n = 6000
    state, given = torch.arange(n) % 2, inputs_of(sampler, n, 5)
    x = sampler.sample(state, torch.Generator().manual_seed(6), given).detach()
    u = uniforms(scorer, x if given is None else torch.cat([x, given], 1), state)
    return min(1.0, u.shape[1] * min(stats.kstest(column, "uniform").pvalue for column in u.T))


@pytest.mark.parametrize(
    "name",
    [
        *WITH_COVARIATES,
        "program",
        "bernoulli",
        "negative binomial",
        "gamma",
        "student",
        "mixture diag",
        "mixture full",
        "categorical",
    ],
)
def test_samples_follow_the_distribution_function_and_a_planted_bug_is_found(name):
    e = ALL[name]()
    twin = copy.deepcopy(e)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.7).add_(0.15)
    assert p_value(e, e) > ALPHA
    assert p_value(twin, e) < ALPHA


# Covariates


@pytest.mark.parametrize("name", [*WITH_COVARIATES, "program"])
def test_the_pyro_sites_of_rows_with_covariates_score_as_log_prob(name):
    e = ALL[name]()
    x, state = rows_of(e, 60)

    def program(choice):
        with pyro.plate("rows", len(x), dim=-1):
            e.observe("x", choice, x)

    def scored(choice):
        trace = poutine.trace(program).get_trace(choice)
        trace.compute_log_prob()
        found = [s["log_prob"] for n, s in trace.nodes.items() if s["type"] == "sample" and n.startswith("x")]
        return sum(found).detach().numpy()

    agree(e.log_prob(x)[torch.arange(60), state], scored(state))
    agree(e.log_prob(x).T, scored(torch.arange(2)[:, None]))  # the states enumerated, as Pyro does it


@pytest.mark.parametrize("name", WITH_COVARIATES)
def test_pyro_draws_cells_from_the_covariates(name):
    e = ALL[name]()
    given = inputs_of(e, 30)
    pyro.set_rng_seed(0)
    with pyro.plate("rows", 30):
        drawn = e.observe("x", torch.arange(30) % 2, None, given)
    assert drawn.shape == (30, e.width)
    assert drawn.isfinite().all()


@pytest.mark.parametrize("name", WITH_COVARIATES)
def test_moments_given_the_covariates_are_those_of_samples(name):
    e = ALL[name]()
    row = inputs_of(e, 1, early=False)
    n = 20000
    for state in (0, 1):
        x = e.sample(torch.full((n,), state), torch.Generator().manual_seed(1), row.expand(n, -1)).detach().numpy()
        mean, variance = e.mean(row)[0, state].detach().numpy(), e.variance(row)[0, state].detach().numpy()
        assert (abs(x.mean(0) - mean) < 5.5 * np.sqrt(variance / n)).all()
        assert (abs(x.mean(0) - mean - 0.3) > 5.5 * np.sqrt(variance / n)).any()
        kurtosis = ((x - x.mean(0)) ** 4).mean(0) / x.var(0) ** 2
        assert (abs(x.var(0) / variance - 1) < 5.5 * np.sqrt((kurtosis - 1) / n)).all()


@pytest.mark.parametrize("name", WITH_COVARIATES)
def test_an_emission_with_inputs_refuses_to_do_without(name):
    e = ALL[name]()
    with pytest.raises(StructureError, match="covariates"):
        e.mean()
    with pytest.raises(ProbgenError):
        e.sample(torch.zeros(3, dtype=torch.int64), torch.Generator())


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_the_regression_m_step_is_weighted_least_squares(covariance, intercept):
    e = regression(covariance, intercept)
    x, _ = rows_of(e)
    w = weights(len(x))
    m_step(e, x, w, 2)
    y, u = x[:, :2].numpy(), x[:, 2:].numpy()
    design = np.column_stack([np.ones(len(u)), u]) if intercept else u
    natural = {n: v.detach().numpy() for n, v in e.natural().items()}
    for k in (0, 1):
        root = np.sqrt(w[:, k].numpy())[:, None]
        b = np.linalg.lstsq(design * root, y * root, rcond=None)[0]
        agree(natural["coefficients"][k], b[intercept:].T, rtol=1e-9)
        if intercept:
            agree(natural["intercept"][k], b[0], rtol=1e-9)
        S = np.cov((y - design @ b).T, aweights=w[:, k], ddof=0) if intercept else None
        if intercept and covariance == "full":
            agree(natural["covariance"][k], S, rtol=1e-9)
        if intercept and covariance == "diag":
            agree(natural["scale"][k] ** 2, np.diag(S), rtol=1e-9)


def test_missing_responses_are_left_out_of_the_regression():
    e = regression()
    x, _ = rows_of(e)
    x[::3, 0] = math.nan
    w = weights(len(x))
    m_step(e, x, w, 2)
    kept = torch.cat([x[:, :1], x[:, 2:]], 1)[~x[:, 0].isnan()]
    alone = em.LinearRegression(1, 3, states=2)
    m_step(alone, kept, w[~x[:, 0].isnan()], 2)
    agree(e.natural()["coefficients"][:, :1], alone.natural()["coefficients"].detach().numpy(), rtol=1e-9)
    agree(e.natural()["scale"][:, :1], alone.natural()["scale"].detach().numpy(), rtol=1e-9)


def test_equal_inputs_leave_the_weights_and_the_fit_finite():
    e = em.LinearRegression(1, 2, states=1)
    u = np.linspace(0, 1, 40)
    x = cells(np.column_stack([3 + 2 * u + 0.1 * np.cos(40 * u), u, 2 * u]))
    m_step(e, x, torch.ones(40, 1, dtype=D), 2)
    assert e.log_prob(x).isfinite().all()
    agree(e.mean(x[:, 1:])[:, 0, 0], np.polyval(np.polyfit(u, x[:, 0].numpy(), 1), u), rtol=1e-8)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_steps_at_the_start_of_a_sequence_have_a_normal_of_their_own(covariance):
    e = autoregressive(covariance)
    x, _ = rows_of(e)
    early = x[:, 2:].isnan().any(1)
    assert 0 < early.sum() < len(x)
    agree(e.log_prob(x)[early], e.start.log_prob(x[early, :2]).detach().numpy())
    later, natural = x[~early].numpy(), {n: v.detach().numpy() for n, v in e.natural().items()}
    for k in (0, 1):
        mean = natural["intercept"][k] + later[:, 2:] @ natural["coefficients"][k].T
        S = natural["covariance"][k] if covariance == "full" else np.diag(natural["scale"][k] ** 2)
        agree(e.log_prob(x)[~early, k], stats.multivariate_normal(np.zeros(2), S).logpdf(later[:, :2] - mean))


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("early", [True, False])
def test_blocks_of_only_starts_or_of_none_are_blocks_like_others(covariance, early):
    e = autoregressive(covariance)
    x, _ = rows_of(e)
    kind = x[:, 2:].isnan().any(1) == early
    w = weights(len(x))
    whole, part, rest = e.statistics(x, w), e.statistics(x[kind], w[kind]), e.statistics(x[~kind], w[~kind])
    for key, value in whole.items():
        agree(part[key] + rest[key], value.detach().numpy(), rtol=1e-11, atol=1e-9)


def test_a_start_has_one_observation_of_the_whole_data_as_prior():
    e = em.Autoregressive(1, 1, states=1)
    y = np.random.default_rng(0).normal(5, 2, 50)
    x = cells(np.column_stack([y, np.r_[np.nan, y[:-1]]]))
    m_step(e, x, torch.ones(50, 1, dtype=D), 2)
    mean = (y[0] + y.mean()) / 2
    agree(e.start.loc[0], [mean])
    agree(e.start.scale()[0] ** 2, [((y[0] - mean) ** 2 + (y.mean() - mean) ** 2 + y.var()) / 2])


@pytest.mark.parametrize(
    "name",
    ["regression", "regression full", "regression origin", "autoregressive", "autoregressive full", "product inputs"],
)
def test_after_the_m_step_with_covariates_the_objective_is_stationary(name):
    e = ALL[name]()
    x, _ = rows_of(e)
    w = weights(len(x))
    m_step(e, x, w, 2)
    e.zero_grad()
    objective(e, x, w).backward()
    assert max(p.grad.abs().max() for p in e.parameters()) < 1e-8 * len(x)


@pytest.mark.parametrize("name", [*WITH_COVARIATES, "program"])
@pytest.mark.parametrize("gaps", [False, True])
def test_em_with_covariates_never_goes_down(name, gaps):
    e = ALL[name]()
    x, _ = rows_of(e, 120)
    if gaps:
        x = torch.cat([with_gaps(x[:, : e.width]), x[:, e.width :]], 1)
    with torch.no_grad():
        m_step(e, x, weights(len(x)), 2)
        scores = []
        for _ in range(12):
            scores.append((torch.logsumexp(e.log_prob(x) + math.log(0.5), 1).sum() + e.penalty()).item())
            e.maximise(e.statistics(x, e.log_prob(x).softmax(1)))
    assert (np.diff(scores) > -1e-9 * abs(scores[0])).all()
    assert scores[-1] > scores[0] + 1e-4


@pytest.mark.parametrize("name", [n for n in WITH_COVARIATES if ALL[n]().additive])
def test_statistics_of_rows_with_covariates_add_up(name):
    e = ALL[name]()
    x, _ = rows_of(e)
    w = weights(len(x))
    parts = [e.statistics(a, b) for a, b in zip(x.split(37), w.split(37), strict=True)]
    for key, value in e.statistics(x, w).items():
        agree(sum(part[key] for part in parts), value.detach().numpy(), rtol=1e-11, atol=1e-9)


def test_parts_with_covariates_share_them_and_lags_are_refused():
    e = mixed()
    x, _ = rows_of(e, 20)
    u = x[:, 4:]
    parts = [e.of[0].log_prob(torch.cat([x[:, :1], u], 1)), e.of[1].log_prob(x[:, 1:2])]
    parts.append(e.of[2].log_prob(torch.cat([x[:, 2:4], u], 1)))
    agree(e.log_prob(x), sum(parts).detach().numpy())
    with pytest.raises(StructureError, match="lags"):
        em.Product({"a": em.Autoregressive(1), "b": em.Normal(1)})
    with pytest.raises(StructureError, match="covariates"):
        em.Product({"a": em.LinearRegression(1, 1), "b": em.LinearRegression(1, 2)})


# Maximum likelihood against SciPy's optimisers


def best(score, start):
    """The highest value that a general optimiser finds."""
    options = {"xatol": 1e-9, "fatol": 1e-10, "maxiter": 4000}
    found = optimize.minimize(lambda p: -score(p), start, method="Nelder-Mead", options=options)
    return found.x, -found.fun


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["gamma", "negative binomial", "student"])
def test_the_m_step_is_the_optimum_that_scipy_finds(name, seed):
    e = {"gamma": gamma, "negative binomial": negative_binomial, "student": lambda w: student(dim=w)}[name](1)
    x, _ = draws(e, 300, seed)
    w = weights(300, seed=seed)
    m_step(e, x, w, 60 if name == "student" else 2)
    y = x[:, 0].numpy()
    score = {
        "gamma": lambda p: stats.gamma.logpdf(y, np.exp(p[1]), scale=np.exp(p[0] - p[1])),
        "negative binomial": lambda p: stats.nbinom.logpmf(y, np.exp(p[1]), 1 / (1 + np.exp(p[0] - p[1]))),
        "student": lambda p: stats.t.logpdf(y, np.exp(min(p[2], math.log(1e4))), p[0], np.exp(p[1])),
    }[name]
    for k in (0, 1):
        start = [p[k, 0].item() for p in e.parameters()]
        found, top = best(lambda p, k=k: (w[:, k].numpy() * score(p)).sum(), np.array(start) + 0.2)
        agree((w[:, k] * e.log_prob(x)[:, k]).sum(), top, rtol=1e-9)
        if name != "student" or e.degrees()[k, 0] < 50:  # from there on the likelihood is flat in df
            np.testing.assert_allclose(start, found, atol=1e-3)


def test_counts_that_vary_less_than_a_poisson_end_as_a_poisson():
    e, p = em.NegativeBinomial(1), em.Poisson(1)
    x = cells(np.random.default_rng(0).integers(4, 7, (200, 1)))
    w = torch.ones(200, 1, dtype=D)
    m_step(e, x, w, 2)
    m_step(p, x, w)
    agree(e.log_prob(x), p.log_prob(x).detach().numpy(), rtol=1e-4)
    agree(e.mean(), p.mean().detach().numpy())


def test_equal_positive_values_stop_at_the_floor():
    e = em.Gamma(1, floor=1e-4)
    x = cells(np.r_[np.full(20, 3.0), np.random.default_rng(0).gamma(2, 2, 80)])[:, None]
    w = torch.zeros(100, 1, dtype=D)
    w[:20] = 1
    m_step(e, x, w, 2)
    agree(
        e.variance() / e.mean().square(), (1e-4 * x.var(correction=0) / x.mean() ** 2).reshape(1, 1).numpy(), rtol=1e-9
    )
    agree(e.mean(), [[3.0]])


def test_equal_values_under_a_student_t_stop_at_the_floor():
    e = em.StudentT(1, floor=1e-4)
    x = cells(np.r_[np.full(50, 3.0), np.random.default_rng(0).normal(0, 1, 50)])[:, None]
    w = torch.zeros(100, 1, dtype=D)
    w[:50] = 1
    m_step(e, x, w, 30)
    agree(e.log_scale.exp() ** 2, (1e-4 * x.var(correction=0)).reshape(1, 1).numpy(), rtol=1e-6)


def test_components_part_and_find_the_clusters_within_a_state():
    rng = np.random.default_rng(0)
    centres = np.array([[-4.0, 0.0], [0.0, 5.0], [4.0, 0.0]])
    x = cells(np.concatenate([rng.normal(far + c, 0.5, (100, 2)) for far in (0, 50) for c in centres]))
    e = em.NormalMixture(2, 3, "full", states=2)
    w = torch.zeros(600, 2, dtype=D)
    w[:300, 0] = w[300:, 1] = 1
    m_step(e, x, w, 60)
    for k in (0, 1):
        found = e.natural()["loc"][k].detach().numpy()
        np.testing.assert_allclose(found[found[:, 0].argsort()], centres + 50 * k, atol=0.25)


@pytest.mark.parametrize("c", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize(
    "name",
    [
        "gamma",
        "student",
        "student df",
        "mixture diag",
        "mixture full",
        "regression",
        "regression full",
        "autoregressive full",
    ],
)
def test_fits_of_new_emissions_do_not_depend_on_units(name, c):
    x, _ = rows_of(ALL[name]())
    w = weights(len(x))

    def fitted(factor):
        e = ALL[name]().with_states(2)
        m_step(e, x * factor, w, 12)
        return e.log_prob(x * factor)

    e = ALL[name]()
    agree(fitted(c), fitted(1.0).detach().numpy() - e.width * math.log(c), rtol=1e-6)


# A user's program


def test_a_program_scores_and_fits_as_the_emission_that_it_spells():
    e, p = em.Program(Counts(), 2), em.Poisson(2, states=2)
    p.log_rate.data = e.build.rate.data.clone()
    x, _ = rows_of(e)
    x[::5, 0], x[::11] = math.nan, math.nan
    agree(e.log_prob(x), p.log_prob(x).detach().numpy())
    w = weights(len(x))
    m_step(e, x, w, 3)
    m_step(p, x, w)
    agree(e.build.rate, p.log_rate.detach().numpy(), rtol=1e-5)
    assert e.event.support == "count"


def test_a_copy_of_a_program_starts_where_the_module_started():
    e = em.Program(Counts(), 2)
    before = e.build.rate.detach().clone()
    x, _ = rows_of(e)
    m_step(e, x, weights(len(x)))
    assert not torch.equal(e.build.rate, before)
    assert torch.equal(e.with_states(2).build.rate, before)


def test_joint_cells_of_a_program_integrate_out_only_as_whole_rows():
    loc = cells([[0.0, 0.0], [1.0, 2.0]])
    e = em.Program(lambda given: dist.MultivariateNormal(loc, torch.eye(2, dtype=D) + 0.3), 2)
    x = cells([[0.3, -0.2], [math.nan, math.nan]])
    assert (e.log_prob(x)[1] == 0).all()
    agree(e.log_prob(x)[0], e.log_prob(x[:1])[0].numpy())
    with pytest.raises(ParameterError, match="joint"):
        e.log_prob(cells([[0.3, math.nan]]))
    assert e.maximise(e.statistics(x, torch.ones(2, 2, dtype=D))) == []


def test_a_step_that_lowers_the_likelihood_is_not_taken():
    class Wall(nn.Module):
        """A scale that becomes invalid as soon as the optimiser moves far."""

        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(cells([[0.0], [1.0]]))

        def forward(self, given):
            return dist.Normal(self.loc, (1 - self.loc.square() / 4).clamp(max=1.0)).to_event(1)

    e = em.Program(Wall(), 1)
    x = cells([[30.0], [31.0]])
    w = torch.full((2, 2), 0.5, dtype=D)
    before = objective(e, x, w).item()
    e.maximise(e.statistics(x, w))
    assert objective(e, x, w).item() >= before


@pytest.mark.parametrize("made", [3.0, dist.Normal(torch.zeros(2), 1.0), dist.Normal(torch.zeros(2, 3, 4), 1.0)])
def test_a_program_of_the_wrong_shape_is_a_structure_error(made):
    with pytest.raises(StructureError, match="build"):
        em.Program(lambda given: made, 3)


def test_a_program_has_as_many_states_as_it_returns():
    with pytest.raises(StructureError, match="2 states"):
        em.Program(Counts(), 2).with_states(3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: em.Bernoulli(0), lambda: em.Bernoulli(1, smoothing=-1), lambda: em.NegativeBinomial(0),
        lambda: em.Gamma(floor=0.0), lambda: em.StudentT(df="heavy"), lambda: em.StudentT(df=0.0),
        lambda: em.NormalMixture(components=0), lambda: em.NormalMixture(covariance="round"),
        lambda: em.LinearRegression(1, 0), lambda: em.LinearRegression(covariance="tied"),
        lambda: em.Autoregressive(lags=0), lambda: em.Program(3), lambda: em.Program(Counts(), 0),
    ],
)  # fmt: skip
def test_wrong_arguments_are_parameter_errors(wrong):
    with pytest.raises(ParameterError):
        wrong()


COUNTED = {
    "regression": 2 * 2 * (3 + 1 + 1), "regression full": 2 * (2 * 4 + 3), "regression origin": 2 * 2 * 4,
    "autoregressive": 2 * 2 * (4 + 1 + 1) + 2 * 4, "autoregressive full": 2 * (2 * 5 + 3) + 2 * 5,
    "product inputs": 2 * 4 + 2 + 2 * 8, "program": 4, "program inputs": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_free_parameters_are_counted(name):
    assert ALL[name]().n_params == COUNTED[name]


@pytest.mark.parametrize("name", WITH_COVARIATES)
def test_the_same_emission_of_another_size_is_equal(name):
    e = ALL[name]()
    assert e.with_states(2) == e
    assert repr(e).startswith(type(e).__name__)
