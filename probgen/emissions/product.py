"""Cells of mixed types, and the emission that suits an event."""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.categorical import Categorical
from probgen.emissions.discretised import DiscretisedNormal
from probgen.emissions.emission import Emission, Statistics
from probgen.emissions.normal import LogNormal, Normal
from probgen.emissions.poisson import Poisson
from probgen.errors import StructureError
from probgen.events import Array, Category, Event, Real, Table

__all__ = ["Product", "for_event"]


class Product(Emission):
    """Parts that are independent given the state, side by side in one row of cells.

    Arguments:
        parts: Emissions, by name or in order; each takes the next ``width`` cells.
    """

    def __init__(self, parts: Mapping[str, Emission] | Sequence[Emission], states: int = 1) -> None:
        super().__init__()
        named = parts if isinstance(parts, Mapping) else {str(i): part for i, part in enumerate(parts)}
        self.names, self.states = tuple(named), states
        self.of = nn.ModuleList(part.with_states(states) for part in named.values())
        self.width = sum(part.width for part in self._all)

    @property
    def _all(self) -> list[Emission]:
        return cast(list[Emission], list(self.of))

    @property
    def parts(self) -> dict[str, Emission]:
        return dict(zip(self.names, self._all, strict=True))

    def _split(self, x: Tensor) -> list[Tensor]:
        return list(x.split([part.width for part in self._all], dim=1))

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.stack([part.log_prob(cells) for part, cells in zip(self._all, self._split(x), strict=True)]).sum(0)

    def cells(self, state: Tensor) -> dist.TorchDistribution:
        raise StructureError("A Product as one Pyro distribution", "observe(name, state, x), which gives a site a part")

    def observe(self, name: str, state: Tensor, x: Tensor | None) -> Tensor:
        cells = [None] * len(self._all) if x is None else self._split(x)
        sites = [part.observe(f"{name}.{n}", state, c) for (n, part), c in zip(self.parts.items(), cells, strict=True)]
        return torch.cat(sites, dim=-1)

    def sample(self, state: Tensor, generator: torch.Generator) -> Tensor:
        return torch.cat([part.sample(state, generator) for part in self._all], dim=1)

    def prepare(self, x: Tensor) -> None:
        for part, cells in zip(self._all, self._split(x), strict=True):
            part.prepare(cells)

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        return {
            f"{i}.{name}": value
            for i, (part, cells) in enumerate(zip(self._all, self._split(x), strict=True))
            for name, value in part.statistics(cells, weights).items()
        }

    def maximise(self, statistics: Statistics) -> list[int]:
        empty = []
        for i, part in enumerate(self._all):
            own = {name.partition(".")[2]: v for name, v in statistics.items() if name.partition(".")[0] == str(i)}
            empty.append(set(part.maximise(own)))
        return sorted(set.intersection(*empty))

    def penalty(self) -> Tensor:
        return torch.stack([part.penalty() for part in self._all]).sum()

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([part.features(c) for part, c in zip(self._all, self._split(x), strict=True)], dim=1)

    @property
    def n_params(self) -> int:
        return sum(part.n_params for part in self._all)


def for_event(event: Event, covariance: Literal["full", "tied", "diag", "spherical"] = "full") -> Emission | str:
    """The emission that suits an event, or why none does."""
    if isinstance(event, Table):
        rounded = [
            n for n, c in event.columns.items() if isinstance(c, Real) and c.positive and c.resolution is not None
        ]
        if rounded:
            return f"no emission is both positive and rounded: column {rounded[0]!r}"
        return Product({name: _for_column(column) for name, column in event.columns.items()})
    if not isinstance(event, Array):
        return f"it emits rows of numbers, not {type(event).__name__}"
    width = max(event.dims, 1)
    if event.levels is not None:
        levels = event.levels
        if isinstance(levels, int) and levels > 2 and width * levels > 512:  # tables would learn each number by itself
            return DiscretisedNormal(width, levels=levels)
        return Categorical(levels, width)
    if event.support == "count":
        return Poisson(width)
    if event.support == "unit":
        return "no emission lives on [0, 1]; declare levels or another support"
    if event.support == "positive":
        return LogNormal(width, covariance) if event.resolution is None else "no emission is both positive and rounded"
    if event.resolution is not None:
        return DiscretisedNormal(width, event.resolution)
    return Normal(width, covariance)


def _for_column(column: object) -> Emission:
    if isinstance(column, Category):
        return Categorical(len(column.levels))
    if isinstance(column, Real):
        if column.resolution is not None:
            return DiscretisedNormal(1, column.resolution)
        return LogNormal(1) if column.positive else Normal(1)
    return Poisson(1)
