"""The target of training, the posterior mean over a batch, with its biased twin; and the sampler of four calls."""

import math

import numpy as np
import pytest
import torch

from probgen.events import Array
from probgen.models.diffusion import Diffusion, learning
from probgen.models.diffusion.learning import others
from probgen.models.diffusion.trig import flow_times, solve


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_rows(x, noise, t):
    """E[x_j | y_i] - x_i row by row, from the densities of y_i under each row j."""
    found = []
    for own, z, at in zip(x, noise, t.tolist(), strict=True):
        y = math.cos(at) * own + math.sin(at) * z
        log_p = -0.5 * ((y - math.cos(at) * x) / math.sin(at)).square().sum(1)
        found.append(log_p.softmax(0) @ x - own)
    return torch.stack(found)


@pytest.mark.parametrize("width", [1, 2, 30])
def test_the_mean_over_rows_that_a_noised_row_could_come_from_is_the_posterior_mean(width):
    x, noise = torch.randn(2, 40, width, generator=seeded(1), dtype=torch.float64)
    t = torch.linspace(0.021, 1.57, 40, dtype=torch.float64)
    expected = by_rows(x, noise, t)
    torch.testing.assert_close(others(x, noise, t), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(others(x.float(), noise.float(), t.float()).double(), expected, rtol=0, atol=2e-4)
    assert (others(x, noise, t * 0 + 0.019) == 0).all(), "early rows keep their own velocity"


def drift(without_own):
    """Means over batches of the change of the target times what a network may make of y, in standard errors."""
    gen, sums = seeded(5), []
    t = torch.linspace(0.2, 1.4, 6, dtype=torch.float64)
    for _ in range(1000):
        x = torch.where(torch.rand(6, 1, generator=gen, dtype=torch.float64) < 0.3, -1.0, 1.0)
        x = x + 0.3 * torch.randn(6, 1, generator=gen, dtype=torch.float64)
        noise = torch.randn(6, 1, generator=gen, dtype=torch.float64)
        y = t.cos()[:, None] * x + t.sin()[:, None] * noise
        change = others(x, noise, t)
        if without_own:  # the planted bug: a row is not among those that it could come from
            change = torch.stack([_left_out(x, y[i], i, float(t[i])) for i in range(6)])
        sums.append(torch.cat([change, change * y, change * (2 * y).sin()], 1))
    each = torch.stack(sums)
    return (each.mean(0) / each.std(0) * math.sqrt(len(each))).abs().max()


def _left_out(x, y, i, t):
    rest = torch.cat([x[:i], x[i + 1 :]])
    log_p = -0.5 * ((y - math.cos(t) * rest) / math.sin(t)).square().sum(1)
    return log_p.softmax(0) @ rest - x[i]


def test_the_target_of_training_keeps_its_mean_and_a_row_left_out_would_not():
    assert drift(without_own=False) < 5.5  # of 18 standard normal numbers: once in a million
    assert drift(without_own=True) > 5.5


def test_training_hears_the_quieter_target_and_held_out_rows_the_plain_one(monkeypatch):
    heard = []
    monkeypatch.setattr(learning, "others", lambda x, noise, t: heard.append(len(x)) or torch.zeros_like(x))
    x = np.random.default_rng(0).normal(size=(300, 2))
    Diffusion(Array((2,)), hidden=8, blocks=1, chain=2).fit(x, steps=3, batch_size=20, seed=0)
    assert heard == [20, 20, 20]
    heard.clear()
    Diffusion(Array((2,)), Array((1,)), hidden=8, blocks=1, chain=2).fit(x, given=x[:, :1], steps=3, seed=0)
    assert not heard, "rows under other covariates are no candidates"


def test_four_calls_extrapolate_cubic_velocities_without_error_and_two_do_not():
    times = torch.tensor([1.5, 1.2, 1.0, 0.7, 0.6, 0.1, 0.0], dtype=torch.float64)
    y = torch.zeros(3, 1, dtype=torch.float64)

    def after(solver, start):
        """From the fourth time on, with what was asked before; the field is t^3 whatever y."""
        asked = []

        def field(y, t):
            asked.append(t)
            return torch.full_like(y, t**3)

        return float(solve(field, y, times, solver)[0, 0] - solve(field, y, times[:start], solver)[0, 0]), len(asked)

    exact = (0.0 - 0.7**4) / 4
    assert after("ab4", 4)[0] == pytest.approx(exact, abs=1e-12)
    assert abs(after("ab2", 4)[0] - exact) > 1e-3
    assert after("ab4", 4)[1] == 6 + 3


def test_on_eighteen_calls_four_come_nearer_to_the_flow_than_two():
    z, far = torch.randn(200, 1, generator=seeded(2), dtype=torch.float64), {}

    def field(y, t):  # of normal data of deviation 0.1
        return y * math.sin(t) * math.cos(t) * (1 - 0.01) / (0.01 * math.cos(t) ** 2 + math.sin(t) ** 2)

    for solver in ("ab2", "ab4"):
        far[solver] = float((solve(field, z, flow_times(18), solver) - 0.1 * z).abs().mean())
    assert far["ab4"] < 0.7 * far["ab2"]
