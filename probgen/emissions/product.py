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
        parts: Emissions, by name or in order; each takes the next ``width`` cells. Those with covariates share them.
    """

    def __init__(self, parts: Mapping[str, Emission] | Sequence[Emission], states: int = 1) -> None:
        super().__init__()
        named = parts if isinstance(parts, Mapping) else {str(i): part for i, part in enumerate(parts)}
        self.names, self.states = tuple(named), states
        self.of = nn.ModuleList(part.with_states(states) for part in named.values())
        self.width = sum(part.width for part in self._all)
        self.covariates = self._shared_covariates()
        self.additive = all(part.additive for part in self._all)

    def _shared_covariates(self) -> int:
        """How many covariates the parts share.

        Raises:
            StructureError: they differ, or a part looks back at its own cells.
        """
        looking_back = [name for name, part in self.parts.items() if part.lags]
        if looking_back:
            raise StructureError(
                f"Part {looking_back[0]!r} of a Product has lags", "parts without lags", "Autoregressive over all cells"
            )
        counts = {part.covariates for part in self._all} - {0}
        if len(counts) > 1:
            raise StructureError(f"Parts with {sorted(counts)} covariates", "all with the same covariates")
        return max(counts, default=0)

    @property
    def _all(self) -> list[Emission]:
        return cast(list[Emission], list(self.of))

    @property
    def parts(self) -> dict[str, Emission]:
        return dict(zip(self.names, self._all, strict=True))

    def _split(self, x: Tensor) -> list[Tensor]:
        """Each part's cells, followed by the covariates where it has any."""
        cells, given = self.split(x)
        columns = cells.split([part.width for part in self._all], dim=1)
        return [
            own if given is None or not part.covariates else torch.cat([own, given], dim=1)
            for part, own in zip(self._all, columns, strict=True)
        ]

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.stack([part.log_prob(cells) for part, cells in zip(self._all, self._split(x), strict=True)]).sum(0)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        raise StructureError("A Product as one Pyro distribution", "observe(name, state, x), which gives a site a part")

    def observe(self, name: str, state: Tensor, x: Tensor | None, given: Tensor | None = None) -> Tensor:
        cells = [None] * len(self._all) if x is None else self._split(x)
        sites = [
            part.observe(f"{name}.{n}", state, c, given if part.covariates else None)
            for (n, part), c in zip(self.parts.items(), cells, strict=True)
        ]
        return torch.cat(sites, dim=-1)

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        draws = [part.sample(state, generator, given if part.covariates else None) for part in self._all]
        return torch.cat(draws, dim=1)

    @property
    def event(self) -> Array | None:
        """One Array, where all parts have the same support, resolution and kind; else None."""
        events = [part.event for part in self._all]
        if any(event is None for event in events):
            return None
        each = cast(list[Array], events)
        if len({(e.support, e.resolution, e.levels is None) for e in each}) > 1:
            return None
        levels = [int(v) for e in each for v in e.cell_levels] if each[0].levels is not None else None
        shared = levels and (levels[0] if len(set(levels)) == 1 else tuple(levels))
        return self._array(support=each[0].support, resolution=each[0].resolution, levels=shared)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        return {f"of.{i}.{name}": p for i, part in enumerate(self._all) for name, p in part.priors().items()}

    def natural(self) -> dict[str, Tensor]:
        """Those of the parts, named ``part.parameter``."""
        return {f"{n}.{name}": value for n, part in self.parts.items() for name, value in part.natural().items()}

    def cdf(self, x: Tensor) -> Tensor:
        return torch.cat([part.cdf(cells) for part, cells in zip(self._all, self._split(x), strict=True)], dim=-1)

    def mean(self, given: Tensor | None = None) -> Tensor:
        return self._together([part.mean(given if part.covariates else None) for part in self._all])

    def variance(self, given: Tensor | None = None) -> Tensor:
        return self._together([part.variance(given if part.covariates else None) for part in self._all])

    @staticmethod
    def _together(moments: list[Tensor]) -> Tensor:
        """Side by side; parts without covariates are the same in every row."""
        rows = next((len(m) for m in moments if m.ndim == 3), None)
        return torch.cat([m if rows is None or m.ndim == 3 else m.expand(rows, *m.shape) for m in moments], dim=-1)

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
