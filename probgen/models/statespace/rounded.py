"""Counts, levels and rounded reals: the mass of a normal on the cell around each recorded value."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

from probgen.emissions.discretised import normal_mass
from probgen.events import Array

__all__ = ["Cells", "RoundedNormal", "cells_of"]

_FAR = 1e6  # in standard units beyond the other edge: the tail there is 0 in float64


@dataclass(frozen=True)
class Cells:
    """A grid of recorded values; the end cells take the tails.

    Arguments:
        step: Between neighbours.
        lowest, highest: Ends of the grid; None where it goes on.
    """

    step: float = 1.0
    lowest: float | None = None
    highest: float | None = None

    def log_mass(self, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """log P(the recorded value is x) in nats, for a normal with that mean and standard deviation."""
        a, b = (x - self.step / 2 - loc) / scale, (x + self.step / 2 - loc) / scale
        width = self.step / scale
        # far but finite ends keep gradients free of inf - inf
        first = torch.zeros_like(a, dtype=torch.bool) if self.lowest is None else x <= self.lowest
        last = torch.zeros_like(a, dtype=torch.bool) if self.highest is None else x >= self.highest
        low = torch.where(first, b.detach().clamp(max=0) - _FAR, a)
        high = torch.where(last, a.detach().clamp(min=0) + _FAR, b)
        return normal_mass(low, high, torch.where(first | last, _FAR, width))

    def recorded(self, y: Tensor) -> Tensor:
        """The value whose cell a number falls into."""
        x = torch.round(y / self.step) * self.step
        low = -math.inf if self.lowest is None else self.lowest
        return x.clamp(low, math.inf if self.highest is None else self.highest)


def cells_of(step: Array) -> Cells | None:
    """The grid of a step's event; None for a density."""
    if step.levels is not None:
        return Cells(1.0, 0.0, float(step.cell_levels[0] - 1))
    if step.support == "count":
        return Cells(1.0, 0.0)
    return None if step.resolution is None else Cells(step.resolution)


class RoundedNormal(dist.TorchDistribution):
    """A normal recorded on a grid of cells.

    Arguments:
        loc, scale: Of the normal, broadcast together.
        cells: The grid.
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real

    def __init__(self, loc: Tensor, scale: Tensor, cells: Cells) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.cells = cells
        super().__init__(self.loc.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.cells.log_mass(value, self.loc, self.scale)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype)
            return self.cells.recorded(self.loc + self.scale * noise)

    def expand(self, batch_shape: Any, _instance: None = None) -> "RoundedNormal":
        return RoundedNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.cells)
