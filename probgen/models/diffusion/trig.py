"""Trigonometric time: y = cos t x + sin t z for t in [0, pi/2], its grids, its two reverse processes.

x are coordinates of a row, z ~ N(0, I). At t = 0 y is the data and at t = pi/2 pure noise: nothing is truncated. With
v(y, t) = E[dy/dt | y] = E[cos t z - sin t x | y] the probability flow is dy/dt = v, and the data seen from y are
E[x | y] = cos t y - sin t v.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from probgen.errors import ParameterError, nearest

__all__ = [
    "END",
    "LATEST",
    "SOLVERS",
    "Bridge",
    "Field",
    "Sampler",
    "bridge",
    "chain_times",
    "descend",
    "extrapolation",
    "flow_times",
    "solve",
]

Field = Callable[[Tensor, float], Tensor]
Sampler = Literal["ab2", "ab4", "heun", "rk4", "ancestral"]
SOLVERS = ("ab2", "ab4", "heun", "rk4")
END = math.pi / 2
LATEST = 1.45  # of the chain's times before pi/2


def flow_times(steps: int, first: float = 0.0, power: float = 1.5) -> Tensor:
    """Times from pi/2 down to ``first``: first + (pi/2 - first) u^power at equal steps of u, (steps + 1,), float64."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return first + (END - first) * u**power


def chain_times(steps: int, first: float) -> Tensor:
    """Times of a chain, ascending: from ``first`` to 1.45 at equal ratios of tan t, then pi/2; (steps,), float64."""
    low, high = math.log(math.tan(first)), math.log(math.tan(LATEST))
    return torch.cat([
        torch.linspace(low, high, steps - 1, dtype=torch.float64).exp().atan(),
        torch.tensor([END], dtype=torch.float64),
    ])  # fmt: skip


class Bridge(NamedTuple):
    """q(y_s | y_t, x) = N(keep y_t + pull x, variance) for s < t; and q(y_t | y_s) = N(decay y_s, noise)."""

    keep: float
    pull: float
    variance: float
    decay: float
    noise: float


def bridge(s: float, t: float) -> Bridge:
    """The Gaussian posterior of the forward noising (Ho, Jain and Abbeel 2020, eq. 7, in trigonometric time)."""
    before, after = math.sin(s) ** 2, math.sin(t) ** 2
    decay = math.cos(t) / math.cos(s) if t < END else 0.0
    noise = after - decay**2 * before
    return Bridge(decay * before / after, math.cos(s) * noise / after, before * noise / after, decay, noise)


def solve(field: Field, y: Tensor, times: Tensor, solver: str) -> Tensor:
    """The probability flow from times[0] to times[-1].

    "ab2" is second-order Adams-Bashforth with one call a step (its first step is Euler's), "ab4" the same through the
    last four calls, nearer the flow on few steps, though its first steps leave it of second order; "heun" takes two
    calls and "rk4" four.

    Raises:
        ParameterError: an unknown solver.
    """
    if solver not in SOLVERS:
        raise ParameterError(f"sampler={solver!r}", "", nearest(str(solver), (*SOLVERS, "ancestral")))
    at = times.tolist()
    before, last = None, 0.0
    past: list[tuple[float, Tensor]] = []
    for t, s in pairwise(at):
        h, v = s - t, field(y, t)
        if solver == "heun":
            step = (v + field(y + h * v, s)) / 2
        elif solver == "rk4":
            step = _runge_kutta(field, y, v, t, h)
        elif solver == "ab4":
            past = [*past[-3:], (t, v)]
            step = _extrapolated(past, h)
        else:
            step = v if before is None else v + h / (2 * last) * (v - before)
            before, last = v, h
        y = y + h * step
    return y


def _extrapolated(past: list[tuple[float, Tensor]], h: float) -> Tensor:
    weights = extrapolation([t for t, _ in past], h)
    return sum((w * v for w, (_, v) in zip(weights.tolist(), past, strict=True)), torch.zeros_like(past[0][1]))


def extrapolation(times: list[float], h: float) -> Tensor:
    """Weights of past velocities in the mean, over the next h, of the polynomial through them and their times
    (Adams-Bashforth on any grid), (len(times),), float64."""
    offsets = torch.tensor([(t - times[-1]) / h for t in times], dtype=torch.float64)
    powers = torch.arange(len(times), dtype=torch.float64)
    return torch.linalg.solve(offsets ** powers[:, None], 1 / (powers + 1))


def _runge_kutta(field: Field, y: Tensor, first: Tensor, t: float, h: float) -> Tensor:
    second = field(y + h / 2 * first, t + h / 2)
    third = field(y + h / 2 * second, t + h / 2)
    return (first + 2 * second + 2 * third + field(y + h * third, t + h)) / 6


def descend(
    seen: Callable[[Tensor, float], Tensor],
    residual: Callable[[float], Tensor],
    y: Tensor,
    times: Tensor,
    generator: torch.Generator,
    hold: Callable[[Tensor, float], Tensor] | None = None,
    repeats: int = 1,
) -> Tensor:
    """The reverse chain from pi/2 through ascending ``times`` to their first.

    Arguments:
        seen: E[x | y_t] by the network.
        residual: Variance of x about it, a coordinate.
        hold: Puts known coordinates in their place at a time (inpainting).
        repeats: So often each step is noised again and redone, which lets the rest agree with what is held
            (Lugmayr et al. 2022).
    """

    def noise() -> Tensor:
        return torch.randn(y.shape, generator=generator, dtype=y.dtype)

    at = times.tolist()
    for s, t in zip(at[-2::-1], at[:0:-1], strict=True):
        b = bridge(s, t)
        scale = (b.variance + b.pull**2 * residual(t)).sqrt().to(y.dtype)
        for again in range(repeats):
            y = hold(y, t) if hold else y
            low = b.keep * y + b.pull * seen(y, t) + scale * noise()
            if again < repeats - 1:
                y = b.decay * low + math.sqrt(b.noise) * noise()
        y = low
    return hold(y, at[0]) if hold else y
