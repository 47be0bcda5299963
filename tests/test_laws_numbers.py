"""Laws that every family obeys (see laws.py): one number a row, of one distribution, which its samples follow."""

import copy
import itertools
import math
import warnings

import numpy as np
import pyro
import pytest
import torch
from laws import ALPHA, CASES, DATA, LATENT, every, few, fitted, rows_of, tolerance
from pyro import poutine
from scipy import stats

from probgen.estimate import ELBO, IWAE, Enumerate
from probgen.events import Panel, Series, row_hash
from probgen.logprob import Kind
from probgen.model import Latent


@every("numbers")
def test_there_is_one_number_a_row_or_a_refusal(family, event):
    x = few(event, 40)
    lp = fitted(family, event).log_prob(x, seed=1)
    assert len(lp) == len(DATA[event][0].check(x))
    if lp.refused.any():
        assert lp.refused.all()
        assert len(lp.reason) > 20
        assert len(lp.instead) > 20
    else:
        assert not np.isnan(lp.nats).any()
        assert not np.isposinf(lp.nats).any()
        assert lp.measure == DATA[event][0].measure


@every("slices")
def test_batch_order_and_slicing_do_not_matter(family, event):
    model, about = fitted(family, event), DATA[event][0]
    x = few(event, 30 if family == "Diffusion" or (family, event) in LATENT else 150)
    whole = model.log_prob(x, seed=5)
    checked = about.check(x)
    for rows in (np.arange(len(checked))[::-1].copy(), np.array([17]), np.array([3, 3, len(checked) - 1, 4])):
        part = model.log_prob(rows_of(about, checked, rows), seed=5)
        if whole.refused.any():
            assert part.reason == whole.reason
        else:
            np.testing.assert_allclose(part.nats, whole.nats[rows], rtol=tolerance(model), atol=tolerance(model))


def all_outcomes(event):
    return np.array(list(itertools.product(*(range(n) for n in event.cell_levels)))).reshape(-1, *event.shape)


@every("exact", {"levels", "binary"})
def test_exact_masses_sum_to_one(family, event):
    nats = fitted(family, event).log_prob(all_outcomes(DATA[event][0])).nats
    assert np.exp(nats).sum() == pytest.approx(1, abs=1e-10)


def square(side):
    return np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)


def grid(low, high, n):
    return square(low + (high - low) * (np.arange(n) + 0.5) / n), (high - low) / n


def graded(reach, n):
    """Cells of a square, narrow around 0 and ever wider: their midpoints on the scale of asinh, and their areas."""
    end = math.asinh(reach)
    side = -end + 2 * end * (np.arange(n) + 0.5) / n
    return square(np.sinh(side)), square(np.cosh(side) * 2 * end / n).prod(1)


@every("exact", {"real"})
def test_exact_densities_integrate_to_one(family, event):
    # histograms have edges and Cauchy tails: the midpoint rule and the box leave the rest
    points, areas = graded(60.0, 240)
    total = np.exp(fitted(family, event).log_prob(points).nats) @ areas
    assert total == pytest.approx(1, abs=0.02)


@every("exact", {"rounded"})
def test_exact_interval_masses_sum_to_one(family, event):
    points = square(np.arange(-60, 61) * 0.5)
    assert np.exp(fitted(family, event).log_prob(points).nats).sum() == pytest.approx(1, abs=0.01)


@every("program scores")
def test_exact_is_the_enumerated_pyro_program(family, event):
    model = fitted(family, event)
    x = DATA[event][1]
    lp = model.log_prob(x)
    if isinstance(model.event, Series | Panel):
        assert lp.sum().value == pytest.approx(program_total(model, x), rel=1e-10)
        return
    np.testing.assert_allclose(model.log_prob(x, by=Enumerate()).nats, lp.nats, rtol=1e-9, atol=1e-9)


def program_total(model, x):
    """Of a program over sequences: its discrete states are summed out by Pyro."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # families without states have nothing to enumerate
        return -pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(
            model.model, lambda *args: None, model.event.check(x).x
        )


SEQUENCES = {"series", "real series", "rounded series", "count series", "panel"}


@every("steps", SEQUENCES)
def test_one_step_ahead_scores_add_up_to_the_sequence(family, event):
    model, x = fitted(family, event), DATA[event][1]
    steps, whole = model.log_prob_steps(x), model.log_prob(x)
    lengths = model.event.check(x).x.lengths.tolist()
    totals = [part.sum() for part in np.split(steps.nats, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(totals, whole.nats, rtol=1e-10, atol=1e-10)
    assert steps.of == "x_t|x_<t"
    assert int(steps.event.dims.sum()) == int(whole.event.dims.sum())


def all_series(length, levels):
    return np.array(list(itertools.product(range(levels), repeat=length)))


@every("exact", {"series"})
def test_masses_of_all_short_sequences_sum_to_one(family, event):
    nats = fitted(family, event).log_prob(list(all_series(4, 3))).nats
    assert np.exp(nats).sum() == pytest.approx(1, abs=1e-10)


@every("exact", {"series"})
def test_sampled_sequences_follow_the_masses_and_a_wrong_temperature_is_caught(family, event):
    model = fitted(family, event)
    p = np.exp(model.log_prob(list(all_series(4, 3))).nats)
    draws = np.stack(model.sample(enough(p), seed=11, length=4)).astype(int)
    counts = np.bincount(np.ravel_multi_index(draws.T, (3,) * 4), minlength=81)
    assert goodness(counts, p) > ALPHA
    assert goodness(counts, tempered(p)) < ALPHA


latent_cases = pytest.mark.parametrize(("family", "event"), LATENT, ids=[f"{f}-{e}" for f, e in LATENT])


@latent_cases
def test_the_hooks_of_a_latent_model_are_its_traces(family, event):
    model = copy.deepcopy(fitted(family, event)).double()
    x = model.event.check(DATA[event][1]).x[:20]
    noise = torch.randn(1, 20, model.latent_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, log_q = model._propose(x, None, noise)
    given_z = {"z": z[0].detach()}
    with pyro.validation_enabled(False):
        joint = poutine.trace(poutine.condition(model.model, given_z)).get_trace(x).log_prob_sum()
        guide = poutine.trace(poutine.condition(model.guide, given_z)).get_trace(x).log_prob_sum()
    assert float(model._log_joint(x, z, None).sum().detach()) == pytest.approx(float(joint.detach()), rel=1e-9)
    assert float(log_q.sum().detach()) == pytest.approx(float(guide.detach()), rel=1e-9)


def by_quadrature(model, x):
    """log p(x) of a model with up to four latent numbers, by the trapezoidal rule: an oracle without draws."""
    rows, back = torch.unique(x, dim=0, return_inverse=True) if torch.is_tensor(x) else (x, torch.arange(len(x)))
    end, steps = {1: (9, 3000), 2: (5, 60), 3: (5, 16), 4: (5, 12)}[model.latent_dim]
    side = torch.linspace(-end, end, steps + 1, dtype=torch.float64)
    points = torch.cartesian_prod(*[side] * model.latent_dim).reshape(-1, 1, model.latent_dim)
    with torch.no_grad():
        joint = copy.deepcopy(model).double()._log_joint(rows, points.expand(-1, len(rows), -1), None)
    return (joint.logsumexp(0) + model.latent_dim * math.log(2 * end / steps))[back].numpy()


@latent_cases
def test_bounds_stand_in_order_below_the_truth(family, event):
    model, about = fitted(family, event), DATA[event][0]
    checked = about.check(DATA[event][1])
    first = np.unique(row_hash(checked.x), return_index=True)[1]  # equal rows share draws: each counts once a seed
    x, seeds = rows_of(about, checked, first), range(2, 2 + math.ceil(150 / len(first)))
    truth = np.tile(by_quadrature(model, checked.x[torch.as_tensor(first)]), len(seeds))
    ladder = []
    for by in (ELBO(200), IWAE(5), IWAE(200)):
        answers = [model.log_prob(x, by=by, seed=seed) for seed in seeds]
        assert all(lp.kind is Kind.LOWER for lp in answers)
        ladder.append(np.concatenate([lp.nats for lp in answers]))
    ladder.append(truth)
    for lower, upper in itertools.pairwise(ladder):
        assert one_sided_p(upper - lower) > ALPHA
    assert one_sided_p(ladder[2] - ladder[3] - 0.3) < ALPHA  # the twin: a bound 0.3 nats too high is caught


def one_sided_p(gain):
    """p-value of 'the mean gain is not below zero'."""
    error = gain.std(ddof=1) / math.sqrt(len(gain)) + 1e-6
    return stats.norm.cdf(gain.mean() / error)


def goodness(counts, probabilities):
    """Chi-square p-value of counts against cell probabilities; rare cells are pooled."""
    expected = counts.sum() * probabilities
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1)


def masses(model, event):
    outcomes = all_outcomes(event)
    if isinstance(model, Latent):
        return np.exp(by_quadrature(model, event.check(outcomes).x))
    return np.exp(model.log_prob(outcomes).nats)


def tempered(probabilities):
    warm = probabilities**0.9
    return warm / warm.sum()


def enough(p):
    """Draws whose chi-square sees a wrong temperature: its mean exceeds the critical value by six of its deviations."""
    kept, q = p > 0, tempered(p)
    distance, degrees = ((p - q)[kept] ** 2 / q[kept]).sum(), len(p) - 1
    critical, n = stats.chi2.isf(ALPHA, degrees), 1000
    while degrees + n * distance - 6 * math.sqrt(2 * (degrees + 2 * n * distance)) < critical:
        n *= 2
    return n


WITH_MASSES = [c for c in CASES if c[1] in ("levels", "binary") and c[0] not in ("Diffusion", "GAN", "TextDiffusion")]


@pytest.mark.parametrize(("family", "event"), WITH_MASSES, ids=[f"{f}-{e}" for f, e in WITH_MASSES])
def test_samples_follow_the_masses_and_a_wrong_temperature_is_caught(family, event):
    model, about = fitted(family, event), DATA[event][0]
    p = masses(model, about)
    draws = np.asarray(model.sample(n := enough(p), seed=11)).reshape(n, -1)
    codes = np.ravel_multi_index(draws.T.astype(int), about.cell_levels)
    counts = np.bincount(codes, minlength=math.prod(about.cell_levels))
    assert goodness(counts, p) > ALPHA
    assert goodness(counts, tempered(p)) < ALPHA


@every("exact", {"real", "reals"})
def test_samples_follow_the_density_and_a_wrong_temperature_is_caught(family, event):
    model = fitted(family, event)
    draws = model.event.check(model.sample(20_000, seed=12)).x.numpy()
    low, high, bins, fine = -4.0, 6.0, 8, 24
    points, step = grid(low, high, bins * fine)
    asked = points if event == "real" else {"a": points[:, 0], "b": points[:, 1]}
    p = np.exp(model.log_prob(asked).nats).reshape(bins, fine, bins, fine).sum((1, 3)).reshape(-1) * step**2
    assert p.sum() == pytest.approx(1, abs=0.02)  # the box holds nearly all; the law is tested inside it
    edges = np.linspace(low, high, bins + 1)
    counts = np.histogram2d(*draws.T, bins=[edges, edges])[0].reshape(-1)
    assert goodness(counts, p / p.sum()) > ALPHA
    assert goodness(counts, tempered(p)) < ALPHA
