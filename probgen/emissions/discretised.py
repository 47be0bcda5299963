"""Rounded reals and integer levels: the mass that a continuous distribution puts on each cell of a grid."""

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions.utils import broadcast_all

from probgen.emissions.categorical import distinct, on_grid, table_counts, table_log_prob
from probgen.emissions.emission import Emission, Statistics, column_moments
from probgen.errors import ParameterError
from probgen.events import Array

__all__ = ["Discretised", "DiscretisedNormal"]


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0 (Maechler 2012)."""
    return torch.where(x < math.log(2), torch.log(-torch.expm1(-x)), torch.log1p(-torch.exp(-x)))


def logistic_mass(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    """log(sigmoid(b) - sigmoid(a)), width = b - a: log s(b) + log s(-a) + log(1 - e^-width), stable in both tails."""
    return nn.functional.logsigmoid(b) + nn.functional.logsigmoid(-a) + _log1mexp(width)


def normal_mass(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)), width = b - a, taken in the lower tail, where nothing cancels.

    A cell far narrower than the scale has its midpoint density times its width, with the next term of the series.
    """
    flip = a + b > 0
    low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    tiny = torch.finfo(a.dtype).tiny
    wide = log_high + _log1mexp((log_high - log_low).clamp(min=tiny))
    small = width < _NARROW
    middle = torch.where(small, (a + b) / 2, 0.0)
    bend = torch.log1p(width.clamp(max=_NARROW).square() * (middle.square() - 1) / 24)
    return torch.where(small, width.log() - 0.5 * middle.square() - 0.5 * math.log(2 * math.pi) + bend, wide)


_NARROW = 1e-4
_FAR = 1e6  # in standard units beyond the other edge: the tail there is 0 in float64
_MASS = {"normal": normal_mass, "logistic": logistic_mass}


class Discretised(dist.TorchDistribution):
    """P(x) = F(x + step/2) - F(x - step/2) for a normal or logistic F.

    Arguments:
        base: "normal" or "logistic".
        loc, scale: Of the base, broadcast together.
        step: Width of a cell.
        levels: Cells are 0..levels-1 (with step 1) and the two end cells take the tails; None for an endless grid.
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, base: str, loc: Tensor, scale: Tensor, step: float = 1.0, levels: int | None = None) -> None:
        if base not in _MASS or (levels is not None and step != 1.0):
            raise ParameterError(
                f"base={base!r}, step={step}, levels={levels}", "normal or logistic; levels have step 1"
            )
        self.base, self.step, self.levels = base, step, levels
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real if self.levels is None else constraints.integer_interval(0, self.levels - 1)

    def edges(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The cell around x in standard units; the end cells reach to infinity."""
        low = (x - self.step / 2 - self.loc) / self.scale
        high = (x + self.step / 2 - self.loc) / self.scale
        if self.levels is not None:
            low = torch.where(x <= 0, -math.inf, low)
            high = torch.where(x >= self.levels - 1, math.inf, high)
        return low, high

    def log_prob(self, value: Tensor) -> Tensor:
        x = value.to(self.loc.dtype)
        a, b = (x - self.step / 2 - self.loc) / self.scale, (x + self.step / 2 - self.loc) / self.scale
        width = self.step / self.scale
        if self.levels is not None:  # far but finite ends keep gradients free of inf - inf
            first, last = x <= 0, x >= self.levels - 1
            a = torch.where(first, b.detach().clamp(max=0) - _FAR, a)
            b = torch.where(last, a.detach().clamp(min=0) + _FAR, b)
            width = torch.where(first | last, _FAR, width)
        return _MASS[self.base](a, b, width)

    def quantise(self, y: Tensor) -> Tensor:
        """The cell that a draw of the base falls into."""
        x = torch.round(y / self.step) * self.step
        return x if self.levels is None else x.clamp(0, self.levels - 1)

    def draw(self, uniform: Tensor) -> Tensor:
        """Cells from uniform numbers in (0, 1)."""
        u = uniform.clamp(1e-12, 1 - 1e-12)
        z = torch.special.ndtri(u) if self.base == "normal" else torch.logit(u)
        return self.quantise(self.loc + self.scale * z)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self.draw(torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype))

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "Discretised":
        return Discretised(
            self.base, self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.step, self.levels
        )


class DiscretisedNormal(Emission):
    """Independent cells on a grid: the mass of N(loc, scale^2) on the cell around each value.

    Arguments:
        width: Cells.
        step: The rounding step.
        levels: Whole numbers 0..levels-1 whose end cells take the tails; None for an endless grid.

    EM augments the unrounded value: the M step uses the moments of truncated normals, so each step is monotone.
    """

    data_mean: Tensor
    data_variance: Tensor

    def __init__(self, width: int = 1, step: float = 1.0, levels: int | None = None, states: int = 1) -> None:
        super().__init__()
        self.width, self.step, self.levels, self.states = width, step, levels, states
        self.loc = nn.Parameter(torch.zeros(states, width, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.full((states, width), math.log(step), dtype=torch.float64))
        self.register_buffer("data_mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("data_variance", torch.full((width,), float(step) ** 2, dtype=torch.float64))
        self.fresh = True

    def _on(self, grid: Tensor) -> Discretised:
        """All states over grid points (width, g), as a distribution of batch shape (K, width, g)."""
        shape = (self.states, *grid.shape)
        loc, scale = self.loc[..., None].expand(shape), self.log_scale.exp()[..., None].expand(shape)
        return Discretised("normal", loc, scale, self.step, self.levels)

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct values of each cell, (width, g), and codes of x among them, (n, width)."""
        if self.levels is not None:
            return torch.arange(self.levels, dtype=x.dtype).expand(self.width, -1), x
        first = torch.nan_to_num(x, nan=torch.inf).amin(0).nan_to_num(posinf=0.0)
        index = ((x - first) / self.step).round()
        if torch.nan_to_num(first + index * self.step - x).abs().max() > 1e-9 * self.step:
            return distinct(x)
        grid, codes = on_grid(index)
        return first[:, None] + grid * self.step, codes

    def log_prob(self, x: Tensor) -> Tensor:
        grid, codes = self._grid(x)
        return table_log_prob(self._on(grid).log_prob(grid), codes)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        return Discretised("normal", self.loc[state], self.log_scale[state].exp(), self.step, self.levels)

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        uniform = torch.rand(len(state), self.width, generator=generator, dtype=torch.float64)
        return Discretised("normal", self.loc[state], self.log_scale[state].exp(), self.step, self.levels).draw(uniform)

    def prepare(self, x: Tensor) -> None:
        self.fresh = True
        self.data_mean, self.data_variance = column_moments(x)
        self.data_variance = self.data_variance.clamp(min=self.step**2 / 12)

    @property
    def event(self) -> Array:
        return self._array(levels=self.levels) if self.levels is not None else self._array(resolution=self.step)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        std, shape = self.data_variance.sqrt(), (self.states, self.width)
        return {
            "loc": dist.Normal(self.data_mean, 2 * std).expand(shape).to_event(2),
            "log_scale": dist.Normal(std.log(), torch.ones_like(std)).expand(shape).to_event(2),
        }

    def natural(self) -> dict[str, Tensor]:
        """``loc`` and ``scale`` (K, width) of the unrounded values."""
        return {"loc": self.loc, "scale": self.log_scale.exp()}

    def cdf(self, x: Tensor) -> Tensor:
        """Up to the upper edge of the cell that x lies in."""
        cell = (x / self.step + 1e-9).floor()[:, None]
        below = torch.special.ndtr(((cell + 0.5) * self.step - self.loc) / self.log_scale.exp())
        if self.levels is None:
            return below
        return torch.where(cell < 0, 0.0, torch.where(cell >= self.levels - 1, torch.ones_like(below), below))

    def mean(self, given: Tensor | None = None) -> Tensor:
        return self._moments()[0]

    def variance(self, given: Tensor | None = None) -> Tensor:
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the rounded values: sums over the levels or the cells nearby.

        On an endless grid with a scale beyond 1.5 steps they are loc and scale^2 + step^2 / 12 to float64 precision:
        the corrections are of order exp(-2 pi^2 scale^2 / step^2) (Kullback 1935).
        """
        if self.levels is not None:
            x = torch.arange(self.levels, dtype=self.loc.dtype).expand(self.states, self.width, -1)
        else:
            near = (self.loc.detach() / self.step).round()
            x = (near[..., None] + torch.arange(-15, 16, dtype=self.loc.dtype)) * self.step
        loc, scale = self.loc[..., None].expand(x.shape), self.log_scale.exp()[..., None].expand(x.shape)
        mass = Discretised("normal", loc, scale, self.step, self.levels).log_prob(x).exp()
        shift = (mass * (x - loc)).sum(-1)
        spread = (mass * (x - loc - shift[..., None]).square()).sum(-1)
        if self.levels is not None:
            return self.loc + shift, spread
        wide = self.log_scale.exp() > 1.5 * self.step
        smooth = (2 * self.log_scale).exp() + self.step**2 / 12
        return torch.where(wide, self.loc, self.loc + shift), torch.where(wide, smooth, spread)

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        """Expected moments of the unrounded values about the present means; plain ones at the very start."""
        grid, codes = self._grid(x)
        counts = table_counts(codes, weights, grid.shape[-1])
        if self.fresh:
            mean, square = grid - self.loc[..., None], (grid - self.loc[..., None]).square() + self.step**2 / 12
        else:
            mean, square = _truncated_moments(self._on(grid), grid)
        return {"n": counts.sum(-1), "first": (counts * mean).sum(-1), "second": (counts * square).sum(-1)}

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        n, alive = statistics["n"], statistics["n"] > 1e-8
        weight = torch.where(alive, n, 1.0)
        delta = torch.where(alive, statistics["first"] / weight, 0.0)
        variance = (statistics["second"] / weight - delta.square()).clamp(min=(0.05 * self.step) ** 2)
        self.loc.add_(delta)
        self.log_scale.copy_(torch.where(alive, 0.5 * variance.log(), self.log_scale))
        self.fresh = False
        return (~alive).all(1).nonzero()[:, 0].tolist()

    @property
    def n_params(self) -> int:
        return 2 * self.states * self.width


def _truncated_moments(cells: Discretised, x: Tensor) -> tuple[Tensor, Tensor]:
    """E[y - loc | cell] and E[(y - loc)^2 | cell] under the normal (Johnson, Kotz and Balakrishnan 1994, 13.10)."""
    a, b = cells.edges(x)
    log_mass = cells.log_prob(x)

    def density(edge: Tensor) -> Tensor:
        return torch.exp(-0.5 * edge.square() - 0.5 * math.log(2 * math.pi) - log_mass)

    finite_a, finite_b = a.nan_to_num(neginf=0.0), b.nan_to_num(posinf=0.0)
    fa, fb = density(a), density(b)
    first = (fa - fb).clamp(a, b)
    second = 1 + finite_a * fa - finite_b * fb
    second = torch.maximum(second, first.square())  # rounding must not make a variance negative
    return cells.scale * first, cells.scale.square() * second
