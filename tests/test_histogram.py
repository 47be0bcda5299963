"""Quantiles of histograms: those that bisection finds, in the time of a look into a table."""

import math
import time

import pytest
import torch

from probgen.emissions import Histogram, HistogramDensity

D = torch.float64


def density(n, bounded, width=3, states=2):
    """Of n cells on very different scales; bins of two states, unused ones of width zero at the end."""
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, width, dtype=D, generator=generator) ** 2
    if not bounded:
        x = torch.randn(n, width, dtype=D, generator=generator) ** 3 * torch.tensor([1.0, 100.0, 1e-3], dtype=D)
    e = Histogram(width, "unit" if bounded else "real", states=states)
    e.prepare(x)
    e.maximise(e.statistics(x, torch.rand(n, states, dtype=D, generator=generator)))
    with torch.no_grad():
        return e.density()


def bisected(d, u, steps=200):
    """An oracle that asks for nothing but P(X <= x)."""
    centre, half = d._middle()
    reach = half * (1.0 if d.bounded else 1e9)
    low, high = (centre - reach).expand(u.shape).clone(), (centre + reach).expand(u.shape).clone()
    for _ in range(steps):
        middle = (low + high) / 2
        below = d.cdf(middle) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("n", [2, 50, 3000])
def test_quantiles_are_those_of_bisection(n, bounded):
    d = density(n, bounded)
    ends = torch.tensor([1e-9, 1e-6, 0.5, 1 - 1e-6, 1 - 1e-9], dtype=D)[:, None, None].expand(5, 2, 3)
    u = torch.cat([torch.rand(1500, 2, 3, dtype=D), ends])
    found, truth = d.icdf(u), bisected(d, u)
    scale = d.edges[..., -1] - d.edges[..., 0]
    told_apart = 4e-16 / d.log_prob(found).exp()  # what a rounding of P(X <= x) is worth in x
    assert ((found - truth).abs() <= 1e-12 * scale + told_apart).all()
    assert (d.cdf(found) - u).abs().max() < 1e-14
    near = d.icdf((u + 1e-9).clamp(max=1.0))
    assert ((near - truth).abs() > 1e-12 * scale + told_apart).all()  # the twin: off by a billionth


def test_ends_are_the_supports_own_and_far_quantiles_are_kept_in_reach():
    unit, real = density(50, True), density(50, False)
    ends = torch.tensor([0.0, 1.0], dtype=D)[:, None, None].expand(2, 2, 3)
    assert torch.equal(unit.icdf(ends), ends)
    centre, half = real._middle()
    assert torch.allclose(real.icdf(ends), torch.stack([centre - 1e9 * half, centre + 1e9 * half]), rtol=1e-12)
    assert real.icdf(torch.tensor(0.3, dtype=D)).shape == (2, 3)
    single = HistogramDensity(torch.tensor([0.0, 1.0, 1.0], dtype=D), torch.tensor([0.0, -math.inf], dtype=D),
                              torch.tensor(0.5, dtype=D), True)  # fmt: skip
    assert single.icdf(torch.tensor([0.25, 0.75], dtype=D)).tolist() == pytest.approx([0.25, 0.75], abs=1e-15)


def test_quantiles_cost_a_fraction_of_a_bisection():
    d, u = density(3000, False), torch.rand(2000, 2, 3, dtype=D)
    costs = []
    for draw in (d.icdf, lambda u: bisected(d, u, 100)):
        began = time.process_time()
        draw(u)
        costs.append(time.process_time() - began)
    assert costs[0] < costs[1] / 10
