"""Emissions: densities against SciPy and hand computations, M steps against closed forms, samples against densities."""

import copy
import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import special, stats

from probgen import emissions as em
from probgen.errors import ParameterError

D = torch.float64
COVARIANCES = ("full", "tied", "diag", "spherical")
ALPHA = 1e-6


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cells(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def factors(dim, seed, states=2):
    rng = np.random.default_rng(seed)
    return cells(
        np.tril(rng.normal(0, 0.4, (states, dim, dim)), -1) + np.stack([np.diag(rng.uniform(0.5, 2, dim))] * states)
    )


def normal(covariance, dim=3, kind=em.Normal, spread=1.0, floor=1e-6, seed=0):
    e = kind(dim, covariance, floor=floor, states=2)
    rng = np.random.default_rng(seed)
    e.loc.data = cells(rng.normal(0, 1, (2, dim))) * spread
    if e.matrix:
        e._set_factor((factors(dim, seed) if covariance == "full" else factors(dim, seed)[0]) * spread)
    else:
        e.log_scale.data = cells(rng.uniform(-0.7, 0.7, e.log_scale.shape)) + math.log(spread)
    return e


def covariance_of(e):
    scale = e.scale().detach()
    return (scale @ scale.mT if e.matrix else torch.diag_embed(scale.square())).numpy()


def categorical(levels=(4, 2, 3), smoothing=1.0):
    e = em.Categorical(levels, 3, smoothing, states=2)
    noise = torch.randn(e.logits.shape, generator=torch.Generator().manual_seed(1), dtype=D)
    e.logits.data = e.logits.data + 0.7 * noise
    return e


def discretised(width=2, step=1.0, levels=None, loc=0.0, scale=1.5):
    e = em.DiscretisedNormal(width, step, levels, states=2)
    e.loc.data = cells(loc + step * np.linspace(0.2, 2.3, 2 * width).reshape(2, width))
    e.log_scale.data = cells(np.log(step * scale * np.linspace(0.6, 1.4, 2 * width)).reshape(2, width))
    e.fresh = False
    return e


def poisson(width=2):
    e = em.Poisson(width, states=2)
    e.log_rate.data = cells(np.log(np.linspace(0.4, 7.0, 2 * width)).reshape(2, width))
    return e


def histogram(support="real", step=None, width=2, seed=2):
    e = em.Histogram(width, support, step, states=2)
    rng = np.random.default_rng(seed)
    x = {
        "real": rng.normal(0, 1, (60, width)),
        "positive": rng.lognormal(0, 1, (60, width)),
        "unit": rng.beta(2, 3, (60, width)),
    }
    x = x[support] if step is None else np.round(x[support] * 4 / step) * step
    e.prepare(cells(x))
    shares = rng.dirichlet((1, 1), 60)
    e.maximise(e.statistics(cells(x), cells(shares)))
    return e


def product():
    e = em.Product({"a": em.Normal(1), "b": em.Categorical(3), "c": em.Poisson()}, states=2)
    e.of[0].loc.data = cells([[0.0], [2.0]])
    e.of[1].logits.data = cells([[[0.1, 0.5, -0.3]], [[-1.0, 0.0, 1.0]]])
    e.of[2].log_rate.data = cells([[0.3], [1.4]])
    return e


def bernoulli():
    e = em.Bernoulli(3, states=2)
    e.logits.data = cells([[-2.0, 0.1, 1.3], [0.7, -0.4, 3.0]])
    return e


def negative_binomial(width=2):
    e = em.NegativeBinomial(width, states=2)
    e.log_mean.data = cells(np.log(np.linspace(0.7, 9.0, 2 * width)).reshape(2, width))
    e.log_size.data = cells(np.log(np.linspace(0.6, 5.0, 2 * width)).reshape(2, width))
    return e


def gamma(width=2):
    e = em.Gamma(width, states=2)
    e.log_mean.data = cells(np.log(np.linspace(0.7, 5.0, 2 * width)).reshape(2, width))
    e.log_shape.data = cells(np.log(np.linspace(0.5, 30.0, 2 * width)).reshape(2, width))
    return e


def student(df="free", dim=2):
    e = em.StudentT(dim, df, states=2)
    e.loc.data = cells(np.linspace(-1, 3, 2 * dim).reshape(2, dim))
    e.log_scale.data = cells(np.linspace(-0.7, 0.7, 2 * dim).reshape(2, dim))
    if df == "free":
        e.log_df.data = cells(np.log(np.linspace(1.5, 4, 2 * dim)).reshape(2, dim))
    return e


def normal_mixture(covariance="diag", dim=2):
    e = em.NormalMixture(dim, 3, covariance, states=2)
    rng = np.random.default_rng(5)
    e.of.loc.data = cells(rng.normal(0, 2, (6, dim)))
    e.logits.data = cells(rng.normal(0, 0.5, (2, 3)))
    if e.of.matrix:
        e.of._set_factor(factors(dim, 5, 6) if covariance == "full" else factors(dim, 5)[0])
    else:
        e.of.log_scale.data = cells(rng.uniform(-0.7, 0.3, e.of.log_scale.shape))
    return e


def factor(noise="diag", dim=4, rank=2):
    e = em.FactorNormal(dim, rank, noise, states=2)
    rng = np.random.default_rng(11)
    e.loc.data = cells(rng.normal(0, 1, (2, dim)))
    e.loadings.data = cells(rng.normal(0, 1, e.loadings.shape))
    e.log_noise.data = cells(rng.uniform(-0.7, 0.7, e.log_noise.shape))
    return e


MADE = {
    "bernoulli": bernoulli,
    "negative binomial": negative_binomial,
    "gamma": gamma,
    "student": student,
    "student df": lambda: student(df=4),
    **{f"mixture {c}": lambda c=c: normal_mixture(c) for c in ("diag", "full", "tied")},
    **{f"normal {c}": lambda c=c: normal(c) for c in COVARIANCES},
    **{f"lognormal {c}": lambda c=c: normal(c, kind=em.LogNormal) for c in ("full", "diag")},
    "categorical": categorical,
    "levels": lambda: discretised(levels=6),
    "step": lambda: discretised(step=0.25),
    "poisson": poisson,
    **{f"histogram {s}": lambda s=s: histogram(s) for s in ("real", "positive", "unit")},
    "histogram step": lambda: histogram(step=0.5),
    "product": product,
    **{f"factor {n}": lambda n=n: factor(n) for n in ("diag", "spherical")},
}
every = pytest.mark.parametrize("name", MADE)


def draws(e, n=200, seed=3):
    """Rows of both states, and the states."""
    state = torch.arange(n) % 2
    return e.sample(state, torch.Generator().manual_seed(seed)).detach(), state


def with_gaps(x, seed=4, share=0.3):
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(gaps, torch.nan, x)


def agree(ours, truth, rtol=1e-10, atol=1e-12):
    np.testing.assert_allclose(ours.detach().numpy() if torch.is_tensor(ours) else ours, truth, rtol=rtol, atol=atol)


# Densities and masses


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("spread", [1e-12, 1e-3, 1.0, 1e6, 1e12])
def test_normal_density_is_scipys_at_every_scale(covariance, spread):
    e = normal(covariance, spread=spread)
    x, _ = draws(e)
    unit = normal(covariance)  # the same in units of the spread, where SciPy's eigenvalue cuts do not bite
    S = covariance_of(e) / spread**2
    agree(S, covariance_of(unit))
    loc = e.loc.detach().numpy() / spread
    truth = [
        stats.multivariate_normal(loc[k], S[k]).logpdf(x.numpy() / spread) - 3 * math.log(spread) for k in range(2)
    ]
    agree(e.log_prob(x), np.stack(truth, 1))


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_columns_twenty_four_orders_of_magnitude_apart_keep_their_digits(covariance):
    units = np.array([1e-12, 1.0, 1e12])
    plain, e = normal(covariance), normal(covariance)
    e.loc.data = plain.loc.data * cells(units)
    if e.matrix:
        e._set_factor(cells(units)[:, None] * plain.scale().detach())
    else:
        e.log_scale.data = plain.log_scale.data + cells(units).log()
    x, _ = draws(plain)
    agree(e.log_prob(x * cells(units)), plain.log_prob(x).detach().numpy() - np.log(units).sum(), rtol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_normal_far_tails_are_finite_and_quadratic(covariance):
    e = normal(covariance, dim=1)
    x = cells([[1e3], [-1e6], [1e9], [1e100]])
    z = (x.numpy() - e.loc.detach().numpy()[:, 0]) / np.sqrt(covariance_of(e)[:, 0, 0])
    truth = -0.5 * z**2 - 0.5 * np.log(2 * np.pi * covariance_of(e)[:, 0, 0])
    agree(torch.cat([e.log_prob(row[None]) for row in x]), truth)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("far", [1e6, 1e12, 1e17])
def test_a_rows_density_does_not_depend_on_an_outlier_in_its_batch(covariance, far):
    e = normal(covariance, dim=2)
    row = cells([[0.5, -0.3]])
    together = e.log_prob(torch.cat([row, cells([[far, far]])]))[:1]
    agree(together, e.log_prob(row).detach().numpy(), rtol=1e-12)


def test_a_narrow_state_keeps_its_digits_beside_far_away_rows():
    e = em.Normal(1, "full", states=2)
    e.loc.data, width = cells([[0.0], [1e6]]), 1e-6
    e._set_factor(cells([[[width]], [[1.0]]]))
    x = cells([[width], [1e6], [1e6 + 1]])
    agree(e.log_prob(x)[0, 0], stats.norm.logpdf(width, 0, width))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_lognormal_density_is_the_normal_of_the_logarithm(covariance):
    e = normal(covariance, kind=em.LogNormal)
    x, _ = draws(e)
    S, loc, y = covariance_of(e), e.loc.detach().numpy(), np.log(x.numpy())
    truth = [stats.multivariate_normal(loc[k], S[k]).logpdf(y) - y.sum(1) for k in range(2)]
    agree(e.log_prob(x), np.stack(truth, 1))
    if covariance == "diag":
        truth = [stats.lognorm.logpdf(x, np.sqrt(np.diag(S[k])), scale=np.exp(loc[k])).sum(1) for k in range(2)]
        agree(e.log_prob(x), np.stack(truth, 1))


def test_categorical_is_a_table_look_up():
    e = categorical()
    own = np.arange(4) < np.array([[4], [2], [3]])  # what stands beyond a cell's own levels means nothing
    logits = np.where(own, e.logits.detach().numpy(), -np.inf)
    table = logits - special.logsumexp(logits, axis=-1, keepdims=True)
    for row in itertools.product(range(4), range(2), range(3)):
        truth = [sum(table[k, d, level] for d, level in enumerate(row)) for k in range(2)]
        agree(e.log_prob(cells([row])), [truth])


@pytest.mark.parametrize("width", [3, 3000])  # by matrix product, and by look-up
def test_a_level_of_probability_zero_is_exactly_minus_infinity(width):
    e = em.Categorical(2, width, smoothing=0.0, states=2)
    x = torch.zeros(5, width, dtype=D)
    with torch.no_grad():
        e.maximise(e.statistics(x, torch.ones(5, 2, dtype=D)))
        possible, impossible = e.log_prob(torch.stack([x[0], x[0].index_fill(0, torch.tensor([1]), 1.0)]))
    assert (possible == 0).all()
    assert (impossible == -math.inf).all()


@pytest.mark.parametrize("grad", [True, False])
def test_tiny_categorical_probabilities_are_not_clamped(grad):
    e = em.Categorical(2, 50)
    e.logits.data = torch.stack([torch.zeros(1, 50, dtype=D), torch.full((1, 50), -690.0, dtype=D)], -1)
    with torch.set_grad_enabled(grad):
        agree(e.log_prob(torch.ones(1, 50, dtype=D)), [[-34500.0]])


@pytest.mark.parametrize("spread", [1e-12, 1e-3, 1.0, 1e12])
def test_rounded_normal_is_scipys_mass_at_every_unit(spread):
    e = discretised(width=1, step=spread)
    x = np.arange(-20, 25)[:, None] * spread
    edges = [
        ((x + s * spread / 2) - e.loc.detach().numpy()[:, 0]) / e.log_scale.detach().exp().numpy()[:, 0]
        for s in (-1, 1)
    ]
    low = np.where(edges[0] > 0, -edges[1], edges[0])
    high = np.where(edges[0] > 0, -edges[0], edges[1])
    log_high = special.log_ndtr(high)
    agree(e.log_prob(cells(x)), log_high + np.log1p(-np.exp(special.log_ndtr(low) - log_high)), rtol=1e-9)


@pytest.mark.parametrize("base", ["normal", "logistic"])
@pytest.mark.parametrize("scale", [1e3, 1e6, 1e9, 1e12, 1e17])
def test_mass_of_a_narrow_cell_is_density_times_step(base, scale):
    cell = em.Discretised(base, cells(0.0), cells(scale), step=1.0)
    density = stats.norm if base == "normal" else stats.logistic
    x = np.array([0.0, 1.0, np.round(scale / 3), np.round(2 * scale)])
    agree(cell.log_prob(cells(x)), density.logpdf(x, 0, scale), rtol=1e-10 + 1 / scale**2)


@pytest.mark.parametrize("base", ["normal", "logistic"])
@pytest.mark.parametrize(("levels", "scale"), [(256, 0.05), (1024, 4.5e-4), (65536, 0.02)])
def test_end_levels_take_the_whole_tail_however_narrow_the_base(base, levels, scale):
    log_prob = em.Discretised(base, cells(0.0), cells(scale), levels=levels).log_prob(
        cells([0.0, levels - 2, levels - 1.0])
    )
    density = stats.norm if base == "normal" else stats.logistic
    assert not log_prob.isnan().any()
    edge = (levels - 1.5) / scale
    agree(log_prob[2], special.log_ndtr(-edge) if base == "normal" else density.logsf(edge), rtol=1e-9)


def test_poisson_mass_is_scipys():
    e = poisson()
    x = cells(np.random.default_rng(0).integers(0, 40, (50, 2)))
    truth = stats.poisson.logpmf(x[:, None], e.log_rate.detach().exp()).sum(-1)
    agree(e.log_prob(x), truth)


@pytest.mark.parametrize("rate", [1e-12, 1e-3, 1e3, 1e6, 1e9, 1e12])
def test_poisson_mass_keeps_its_digits_at_large_counts(rate):
    e = em.Poisson()
    e.log_rate.data[:] = math.log(rate)
    k = max(round(rate), 1)
    # Stirling: k log r - r - log k! = k (log(r/k) + 1 - r/k) - log(2 pi k)/2 - 1/(12 k) + ...
    stirling = (
        k * (math.log(rate / k) + 1 - rate / k) - 0.5 * math.log(2 * math.pi * k) - 1 / (12 * k) + 1 / (360 * k**3)
    )
    truth = stirling if k > 100 else k * math.log(rate) - rate - math.lgamma(k + 1)
    agree(e.log_prob(cells([[k]])), [[truth]])


def histogram_by_hand(x, edges, mass, tail, bounded):
    used = edges[1:] > edges[:-1]
    low, high, mass = edges[:-1][used], edges[1:][used], mass[used]
    height = sum(m / (b - a) * ((x >= a) & (x < b)) for a, b, m in zip(low, high, mass, strict=True))
    centre, half = (low[0] + high[-1]) / 2, (high[-1] - low[0]) / 2
    background = stats.uniform.pdf(x, low[0], 2 * half) if bounded else stats.cauchy.pdf(x, centre, half)
    return np.log((1 - tail) * height + tail * background)


@pytest.mark.parametrize("support", ["real", "positive", "unit"])
def test_histogram_density_is_bins_plus_tail(support):
    e = histogram(support, width=1)
    x = {
        "real": np.linspace(-50, 50, 301),
        "positive": np.geomspace(1e-12, 1e12, 301),
        "unit": np.linspace(0, 0.999, 99),
    }[support]
    inner = np.log(x) if support == "positive" else x
    for k in range(2):
        mass = special.softmax(e.logits[k, 0].detach().numpy())
        truth = histogram_by_hand(inner, e.edges[0].numpy(), mass, float(e.tail[0]), support == "unit")
        agree(e.log_prob(cells(x)[:, None])[:, k], truth - (np.log(x) if support == "positive" else 0))


@pytest.mark.parametrize("far", [1e3, 1e6, 1e8, 1e12])
def test_histogram_of_rounded_data_keeps_its_tail_far_out(far):
    e = histogram(step=0.5, width=1)
    half = float(e.edges[0, -1] - e.edges[0, 0]) / 2
    centre = float(e.edges[0, -1] + e.edges[0, 0]) / 2
    truth = math.log(float(e.tail[0]) * 0.5) + stats.cauchy.logpdf(far, centre, half)  # step x density, far out
    agree(e.log_prob(cells([[far]])), [[truth, truth]], rtol=1e-6)


@every
def test_extreme_rows_give_numbers_and_never_nan(name):
    e = MADE[name]()
    x, _ = draws(e, 8)
    whole = {
        "bernoulli",
        "negative binomial",
        "categorical",
        "levels",
        "poisson",
        "product",
        "step",
        "histogram step",
        "histogram unit",
    }
    far = [x] if name in whole else [x * 1e-12, x * 1e12, x * 1e100]
    log_prob = torch.cat([e.log_prob(some) for some in far])
    assert not log_prob.isnan().any()
    assert (log_prob < math.inf).all()
    assert log_prob.shape == (8 * len(far), 2)


def tangent_rule(e, cell_edges, positive):
    """Nodes and weights on the whole line, split at the bins' edges: x = m + h tan(t)."""
    m, h = (cell_edges[0] + cell_edges[-1]) / 2, (cell_edges[-1] - cell_edges[0]) / 2
    cuts = np.unique(np.concatenate([[-np.pi / 2], np.arctan((cell_edges - m) / h), [np.pi / 2]]))
    node, weight = np.polynomial.legendre.leggauss(60)
    t = np.concatenate([a + (b - a) * (node + 1) / 2 for a, b in itertools.pairwise(cuts)])
    w = np.concatenate([(b - a) / 2 * weight for a, b in itertools.pairwise(cuts)])
    y = m + h * np.tan(t)
    w = w * h / np.cos(t) ** 2
    ok = abs(y) < 600
    return (np.exp(y[ok]), w[ok] * np.exp(y[ok])) if positive else (y, w)


def rule(e, column=0):
    """Nodes and weights that sum or integrate over one cell."""
    if isinstance(e, em.Histogram) and e.step is None:
        edges = np.unique(e.edges[column].numpy())
        if e.support == "unit":
            node, weight = np.polynomial.legendre.leggauss(5)
            x = np.concatenate([a + (b - a) * (node + 1) / 2 for a, b in itertools.pairwise(edges)])
            return x, np.concatenate([(b - a) / 2 * weight for a, b in itertools.pairwise(edges)])
        return tangent_rule(e, edges, e.support == "positive")
    if isinstance(e, em.LogNormal):
        y = np.linspace(-30, 30, 6001)
        return np.exp(y), np.exp(y) * (y[1] - y[0])
    if isinstance(e, em.Normal):
        y = np.linspace(-30, 30, 6001)
        return y, np.full(6001, y[1] - y[0])
    if isinstance(e, em.Histogram):
        x = np.arange(-20000, 20001) * e.step
        return x, np.ones(len(x))
    if isinstance(e, em.Poisson | em.NegativeBinomial):
        return np.arange(2000), np.ones(2000)
    if isinstance(e, em.Bernoulli):
        return np.arange(2), np.ones(2)
    if isinstance(e, em.Gamma):
        y = np.linspace(-90, 10, 10001)
        return np.exp(y), np.exp(y) * (y[1] - y[0])
    if isinstance(e, em.StudentT):
        y = np.linspace(-30, 30, 6001)
        return np.sinh(y), np.cosh(y) * (y[1] - y[0])
    if isinstance(e, em.Categorical):
        levels = np.broadcast_to(e.levels, e.width)[column]
        return np.arange(levels), np.ones(levels)
    n = np.arange(e.levels) if e.levels else np.arange(-300, 300) * e.step
    return n, np.ones(len(n))


ONE_CELL = {
    **{f"normal {c}": lambda c=c: normal(c, dim=1) for c in COVARIANCES},
    "lognormal": lambda: normal("full", dim=1, kind=em.LogNormal),
    "levels": lambda: discretised(1, levels=6),
    "step": lambda: discretised(1, step=0.25),
    "poisson": lambda: poisson(1),
    "negative binomial": lambda: negative_binomial(1),
    "gamma": lambda: gamma(1),
    "student": lambda: student(dim=1),
    **{f"histogram {s}": lambda s=s: histogram(s, width=1) for s in ("real", "positive", "unit")},
    "histogram step": lambda: histogram(step=0.5, width=1),
}


@pytest.mark.parametrize("name", ONE_CELL)
def test_masses_sum_and_densities_integrate_to_one(name):
    e = ONE_CELL[name]()
    x, w = rule(e)
    total = (e.log_prob(cells(x)[:, None]).exp() * cells(w)[:, None]).sum(0)
    tolerance = 1e-9 if name != "histogram positive" else 1e-3  # a Cauchy of log x beyond 600 does not fit in a float
    if name == "histogram step":
        half, reach = float(e.edges[0, -1] - e.edges[0, 0]) / 2, 20000.5 * e.step
        total = total + float(e.tail[0]) * 2 * math.atan(half / reach) / math.pi
        tolerance = 1e-7
    agree(total, [1, 1], rtol=tolerance)


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_correlated_densities_integrate_to_one(covariance):
    e = normal(covariance, dim=2)
    y = np.linspace(-20, 20, 501)
    x = cells(np.stack(np.meshgrid(y, y), -1).reshape(-1, 2))
    agree(e.log_prob(x).exp().sum(0) * (y[1] - y[0]) ** 2, [1, 1], rtol=1e-9)


def test_categorical_rows_sum_to_one():
    x = cells(list(itertools.product(range(4), range(2), range(3))))
    agree(categorical().log_prob(x).exp().sum(0), [1, 1])


# Missing cells


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_missing_cells_leave_scipys_marginal_normal(covariance):
    e = normal(covariance)
    x, _ = draws(e, 8)
    S, loc = covariance_of(e), e.loc.detach().numpy()
    for row, seen in zip(x, itertools.product([True, False], repeat=3), strict=True):
        gapped = torch.where(torch.tensor(seen), row, torch.nan)[None]
        s = np.array(seen)
        truth = [
            stats.multivariate_normal(loc[k][s], S[k][np.ix_(s, s)]).logpdf(row[s].numpy()) if s.any() else 0
            for k in (0, 1)
        ]
        agree(e.log_prob(gapped), [truth])


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli",
        "negative binomial",
        "gamma",
        "student",
        "lognormal diag",
        "categorical",
        "levels",
        "step",
        "poisson",
        "histogram real",
        "histogram unit",
    ],
)
def test_a_missing_cell_is_summed_or_integrated_out(name):
    e = MADE[name]()
    row = draws(e, 1)[0][0]
    x, w = rule(e, column=1)
    filled = row.repeat(len(x), 1)
    filled[:, 1] = cells(x)
    brute = torch.logsumexp(e.log_prob(filled) + cells(w).log()[:, None], 0)
    row[1] = math.nan
    agree(e.log_prob(row[None])[0], brute.detach().numpy(), rtol=1e-9)


@every
def test_a_row_without_any_cell_has_log_probability_zero(name):
    e = MADE[name]()
    assert (e.log_prob(torch.full((2, e.width), torch.nan, dtype=D)) == 0).all()


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_gradients_reach_the_parameters_through_rows_with_gaps(covariance):
    e = normal(covariance)
    e.log_prob(with_gaps(draws(e, 20)[0])).sum().backward()
    assert e.loc.grad is not None
    assert (e.loc.grad != 0).all()


# The Pyro program


def pyro_log_prob(e, x, state):
    def program():
        with pyro.plate("rows", len(x)):
            e.observe("x", state, x)

    trace = poutine.trace(program).get_trace()
    trace.compute_log_prob()
    sites = [s for name, s in trace.nodes.items() if s["type"] == "sample" and s["is_observed"] and name != "rows"]
    return sum(s["log_prob"] for s in sites).detach()


@every
def test_log_prob_is_the_pyro_sites_log_prob(name):
    e = MADE[name]()
    x, state = draws(e, 60)
    ours = e.log_prob(x)[torch.arange(60), state]
    agree(ours, pyro_log_prob(e, x, state))


@every
def test_the_pyro_site_integrates_missing_cells_out(name):
    e = MADE[name]()
    x, state = draws(e, 60)
    x = with_gaps(x)
    agree(e.log_prob(x)[torch.arange(60), state], pyro_log_prob(e, x, state))


# Samples


def chi_square(counts, expected):
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    order = np.argsort(expected)
    group = np.minimum(np.cumsum(expected[order]) // 20, 1e9)
    _, group = np.unique(group, return_inverse=True)
    c, m = np.bincount(group, counts[order]), np.bincount(group, expected[order])
    if m[0] < 5 and len(m) > 1:
        c, m = np.r_[c[0] + c[1], c[2:]], np.r_[m[0] + m[1], m[2:]]
    return stats.chi2.sf(((c - m) ** 2 / m).sum(), len(c) - 1)


def p_value_of_samples(density, sampler, seed=11):
    """Counts per cell of the line against exp(log_prob) summed or integrated over it, for state 1."""
    n = 6000 if isinstance(density, em.Histogram) else 20000
    sample = (
        sampler.sample(torch.ones(n, dtype=torch.int64), torch.Generator().manual_seed(seed)).detach().numpy()[:, 0]
    )
    x, w = rule(density)
    mass = density.log_prob(cells(x)[:, None])[:, 1].detach().exp().numpy() * w
    if density.cells(torch.zeros(1, dtype=torch.int64)).support.is_discrete or getattr(density, "step", None):
        index = np.searchsorted(x, sample - 1e-9 * (x[1] - x[0]))
        inside = index < len(x)
        return chi_square(np.bincount(index[inside], minlength=len(x))[mass > 0], n * mass[mass > 0])
    inner = np.unique(density.edges[0].numpy()) if isinstance(density, em.Histogram) else np.linspace(-3, 4, 41)
    positive = isinstance(density, em.LogNormal | em.Gamma) or getattr(density, "support", "") == "positive"
    inner = np.exp(inner) if positive else inner
    place = np.searchsorted(inner, x, side="right")
    step_of = np.bincount(place, mass, len(inner) + 1)
    if isinstance(density, em.Normal):  # the trapezoid rule is coarse at bin edges; the cdf is at hand
        S, loc = covariance_of(density)[1, 0, 0], float(density.loc[1, 0].detach())
        edge = np.log(inner) if positive else inner
        step_of = np.diff(np.r_[0, stats.norm.cdf(edge, loc, math.sqrt(S)), 1])
    if isinstance(density, em.StudentT | em.Gamma):
        step_of = np.diff(np.r_[0, density.cdf(cells(inner)[:, None])[:, 1, 0].detach().numpy(), 1])
    counts = np.bincount(np.searchsorted(inner, sample, side="right"), minlength=len(inner) + 1)
    return chi_square(np.r_[counts[0] + counts[-1], counts[1:-1]], n * np.r_[1 - step_of[1:-1].sum(), step_of[1:-1]])


def bugged(e):
    twin = copy.deepcopy(e)
    if isinstance(e, em.Normal | em.DiscretisedNormal | em.StudentT):
        twin.log_scale.data = e.log_scale.data + math.log(1.15)
    elif isinstance(e, em.Gamma | em.NegativeBinomial):
        twin.log_mean.data = e.log_mean.data + math.log(1.15)
    elif isinstance(e, em.Poisson):
        twin.log_rate.data = e.log_rate.data + math.log(1.15)
    else:
        twin.logits.data = torch.where(e.logits.isfinite(), e.logits.data * 0.7, e.logits.data)
    return twin


SAMPLED = {**ONE_CELL, "categorical": lambda: categorical((4, 4, 4))}


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_follow_the_density_and_a_planted_bug_is_found(name):
    e = SAMPLED[name]()
    if name == "categorical":
        one, logits = em.Categorical(4, 1, states=2), e.logits.data[:, :1]
        one.logits.data = logits
        e = one
    assert p_value_of_samples(e, e) > ALPHA
    assert p_value_of_samples(e, bugged(e)) < ALPHA


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("kind", [em.Normal, em.LogNormal])
def test_correlated_samples_have_the_right_mahalanobis_distances(covariance, kind):
    e = normal(covariance, kind=kind)

    def p_values(sampler):
        x = sampler.sample(torch.ones(20000, dtype=torch.int64), torch.Generator().manual_seed(5)).detach().numpy()
        x = np.log(x) if kind is em.LogNormal else x
        white = np.linalg.solve(np.linalg.cholesky(covariance_of(e)[1]), (x - e.loc[1].detach().numpy()).T)
        tests = [stats.kstest((white**2).sum(0), stats.chi2(3).cdf), *[stats.kstest(z, stats.norm.cdf) for z in white]]
        return min(t.pvalue for t in tests) * len(tests)

    assert p_values(e) > ALPHA
    assert p_values(bugged(e)) < ALPHA


@every
def test_sampling_is_a_function_of_the_generator_alone(name):
    e = MADE[name]()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = draws(e, 50, seed=1)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, draws(e, 50, seed=1)[0])
    assert not torch.equal(a, draws(e, 50, seed=2)[0])


# The M step


def weights(n, states=2, seed=6):
    return cells(np.random.default_rng(seed).dirichlet([1.0] * states, n))


def m_step(e, x, w, sweeps=2):
    e.prepare(x)
    for _ in range(sweeps):
        empty = e.maximise(e.statistics(x, w))
    return empty


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("kind", [em.Normal, em.LogNormal])
def test_the_normal_m_step_is_weighted_maximum_likelihood(covariance, kind):
    e = normal(covariance, kind=kind)
    x, _ = draws(e)
    w = weights(len(x))
    m_step(e, x, w)
    y = np.log(x.numpy()) if kind is em.LogNormal else x.numpy()
    S = np.stack([np.cov(y.T, aweights=w[:, k], ddof=0) for k in (0, 1)])
    if covariance == "tied":
        S[:] = np.average(S, axis=0, weights=w.sum(0))
    if covariance == "diag":
        S = S * np.eye(3)
    if covariance == "spherical":
        S = np.stack([np.eye(3) * np.trace(s) / 3 for s in S])
    agree(e.loc, np.stack([np.average(y, axis=0, weights=w[:, k]) for k in (0, 1)]))
    agree(covariance_of(e), S)


def test_the_poisson_m_step_is_the_weighted_mean():
    e = poisson()
    x, _ = draws(e)
    w = weights(len(x))
    m_step(e, x, w)
    agree(e.log_rate.exp(), (w.T @ x) / w.sum(0)[:, None])


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 2.5])
def test_the_categorical_m_step_is_the_smoothed_weighted_frequency(smoothing):
    e = categorical(smoothing=smoothing)
    x, _ = draws(e)
    w = weights(len(x)).numpy()
    m_step(e, x, cells(w))
    table = e.table().exp()
    for d, levels in enumerate((4, 2, 3)):
        seen = np.stack([(x[:, d].numpy() == level) for level in range(levels)], 1).astype(float)
        margin = (seen.sum(0) + 1 / levels) / (len(x) + 1)
        counts = w.T @ seen + smoothing * margin
        agree(table[:, d, :levels], counts / counts.sum(1, keepdims=True))
        assert (table[:, d, levels:] == 0).all()


def objective(e, x, w):
    return (w * e.log_prob(x)).sum() + e.penalty()


# a histogram shares rows with its background, a Student t has latent precisions, a mixture its components, factors
# their noise
SWEEPS = {"histogram": 300, "student": 60, "mixture": 1500, "factor": 300}


@pytest.mark.parametrize("name", [name for name in MADE if name not in ("levels", "step")])
def test_after_the_m_step_the_expected_penalised_log_likelihood_is_stationary(name):
    e = MADE[name]()
    x, _ = draws(e)
    w = weights(len(x))
    m_step(e, x, w, sweeps=SWEEPS.get(name.split()[0], 1))
    objective(e, x, w).backward()
    for parameter in e.parameters():
        gradient = parameter.grad[parameter.isfinite()]
        assert gradient.abs().max() < 1e-8 * len(x)


@pytest.mark.parametrize("name", ["levels", "step"])
def test_em_on_rounded_normals_ends_where_the_likelihood_is_stationary(name):
    e = MADE[name]()
    x, _ = draws(e)
    w = weights(len(x))
    m_step(e, x, w, sweeps=400)
    objective(e, x, w).backward()
    assert max(p.grad.abs().max() for p in e.parameters()) < 1e-7 * len(x)


@pytest.mark.parametrize("name", [name for name in MADE if MADE[name]().additive])
@pytest.mark.parametrize("gaps", [False, True])
def test_statistics_add_up_over_chunks(name, gaps):
    e = MADE[name]()
    x, _ = draws(e)
    x, w = with_gaps(x) if gaps else x, weights(len(x))
    whole = e.statistics(x, w)
    parts = [e.statistics(a, b) for a, b in zip(x.split(37), w.split(37), strict=True)]
    for key, value in whole.items():
        agree(sum(part[key] for part in parts), value.detach().numpy(), rtol=1e-12, atol=1e-10)


def observed(e, x):
    return torch.logsumexp(e.log_prob(x) + math.log(0.5), 1).sum() + e.penalty()


@every
@pytest.mark.parametrize("gaps", [False, True])
def test_em_steps_never_lower_the_observed_penalised_log_likelihood(name, gaps):
    e = MADE[name]()
    x, _ = draws(e, 120)
    x = with_gaps(x) if gaps else x
    with torch.no_grad():
        e.prepare(x)
        e.maximise(e.statistics(x, weights(len(x))))
        e.maximise(e.statistics(x, weights(len(x))))
        scores = [observed(e, x)]
        for _ in range(15):
            e.maximise(e.statistics(x, e.log_prob(x).softmax(1)))
            scores.append(observed(e, x))
    gains = torch.stack(scores).diff()
    assert (gains > -1e-9 * abs(scores[0])).all(), gains.min()
    assert gains.sum() > 1e-3


@every
def test_a_state_without_data_keeps_its_row_and_is_reported(name):
    e = MADE[name]()
    x, _ = draws(e)
    w = torch.stack([torch.ones(len(x), dtype=D), torch.zeros(len(x), dtype=D)], 1)
    e.prepare(x)
    before = copy.deepcopy(e)
    assert e.maximise(e.statistics(x, w)) == [1]
    if name == "mixture tied":
        assert torch.equal(e.of.loc[3:], before.of.loc[3:])
    elif name == "normal tied":
        assert torch.equal(e.loc[1], before.loc[1])
    else:
        agree(e.log_prob(x)[:, 1], before.log_prob(x)[:, 1].detach().numpy(), rtol=1e-12)


@every
def test_no_state_is_reported_empty_when_all_have_data(name):
    e = MADE[name]()
    x, _ = draws(e)
    assert m_step(e, x, weights(len(x))) == []


# Floors


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_equal_rows_get_the_floor_and_not_zero_variance(covariance):
    e = em.Normal(2, covariance, floor=1e-4, states=1)
    x = cells(np.random.default_rng(0).normal(0, (1.0, 5.0), (100, 2)))
    e.prepare(x)
    same = x[:1].repeat(10, 1)
    for _ in range(2):
        e.maximise(e.statistics(same, torch.ones(10, 1, dtype=D)))
    variance = x.var(0, correction=0)
    expected = torch.diag(variance.mean().expand(2) if covariance == "spherical" else variance) * 1e-4
    agree(covariance_of(e)[0], expected, atol=1e-9)


def test_the_floored_covariance_maximises_under_the_constraint():
    e = em.Normal(2, "full", floor=0.05, states=1)
    t = np.linspace(-1, 1, 50)
    x = cells(np.stack([t, 3 * t + 0.01 * np.cos(9 * t)], 1))
    w = torch.ones(50, 1, dtype=D)
    m_step(e, x, w)
    unit = x.std(0, correction=0)
    values = np.linalg.eigvalsh(covariance_of(e)[0] / np.outer(unit, unit))
    assert values.min() == pytest.approx(0.05)
    best, rng = objective(e, x, w).item(), np.random.default_rng(0)
    for _ in range(200):
        other = copy.deepcopy(e)
        a = rng.normal(0, rng.choice([0.01, 0.1, 1]), (2, 2))
        shaped = covariance_of(e)[0] / np.outer(unit, unit)
        moved = (np.eye(2) + a) @ shaped @ (np.eye(2) + a).T
        v, q = np.linalg.eigh(moved)
        feasible = cells((q * v.clip(0.05)) @ q.T * np.outer(unit, unit))
        other._set_factor(torch.linalg.cholesky(feasible)[None])
        assert objective(other, x, w).item() <= best + 1e-9


def test_a_count_never_seen_stays_possible():
    e = em.Poisson(1)
    x = torch.zeros(9, 1, dtype=D)
    m_step(e, x, torch.ones(9, 1, dtype=D))
    agree(e.log_rate.exp(), [[0.1]])


def test_rounded_equal_rows_keep_a_twentieth_of_the_step():
    e = em.DiscretisedNormal(1, 0.5)
    m_step(e, cells([[2.5]] * 9), torch.ones(9, 1, dtype=D), sweeps=300)
    assert e.log_scale.exp().item() >= 0.05 * 0.5 - 1e-12
    assert e.log_prob(cells([[2.5]])).item() == pytest.approx(0.0, abs=1e-3)


# Scale


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("c", [1e-12, 1e-9, 1e-3, 1e3, 1e9, 1e12])
def test_an_m_step_on_rescaled_data_shifts_log_prob_by_d_log_c(covariance, c):
    x, _ = draws(normal(covariance))
    w = weights(len(x))
    plain, scaled = em.Normal(3, covariance, states=2), em.Normal(3, covariance, states=2)
    m_step(plain, x, w)
    m_step(scaled, c * x, w)
    agree(scaled.log_prob(c * x), plain.log_prob(x).detach().numpy() - 3 * math.log(c), rtol=1e-9)


# Arguments


@pytest.mark.parametrize(
    "arguments", [{"covariance": "round"}, {"dim": 0}, {"states": 0}, {"floor": -0.1}, {"floor": 1.0}]
)
def test_a_wrong_argument_of_normal_is_a_parameter_error(arguments):
    with pytest.raises(ParameterError):
        em.Normal(**arguments)


def test_negative_smoothing_is_a_parameter_error():
    with pytest.raises(ParameterError):
        em.Categorical(3, smoothing=-1.0)


PARAMETERS = {
    "normal full": 2 * (3 + 6), "normal tied": 6 + 6, "normal diag": 12, "normal spherical": 8,
    "lognormal full": 18, "lognormal diag": 12, "categorical": 2 * (3 + 1 + 2), "levels": 8, "step": 8, "poisson": 4,
    "product": 2 * (2 + 2 + 1), "bernoulli": 6, "negative binomial": 8, "gamma": 8, "student": 12, "student df": 8,
    "mixture diag": 2 * (2 + 3 * 4), "mixture full": 2 * (2 + 3 * 5), "mixture tied": 2 * (2 + 3 * 2) + 3,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_free_parameters_are_counted_by_hand(name):
    assert MADE[name]().n_params == PARAMETERS[name]


@every
def test_more_states_make_the_same_emission_of_another_size(name):
    e = MADE[name]()
    wide = e.with_states(5)
    assert wide == e
    assert wide.log_prob(draws(e, 7)[0]).shape == (7, 5)
