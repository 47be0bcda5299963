"""p(x | z): what each cell of a row is, given numbers from the decoder."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from probgen.errors import ParameterError, StructureError, nearest
from probgen.events import Array, Category, Count, Event, Table
from probgen.latent.cells import (
    Bernoulli,
    Categorical,
    Cells,
    ContinuousBernoulli,
    Grid,
    LogNormal,
    NegativeBinomial,
    Normal,
    Poisson,
)  # fmt: skip

__all__ = ["NAMES", "Observation", "Observed", "observation_for"]

NAMES = (
    "bernoulli", "categorical", "continuous_bernoulli", "logistic", "lognormal", "negative_binomial", "normal",
    "poisson",
)  # fmt: skip


class Group(NamedTuple):
    """Cells of one kind: their places in a row, and what they are."""

    places: list[int]
    cells: Cells


class Observation(nn.Module):
    """Independent cells given the decoder's numbers, in groups of one kind; missing cells are left out of the sum.

    ``width`` is how many numbers the decoder gives a row: group after group, (numbers of a cell, cells of the group).

    Arguments:
        groups: By kind; their places cover 0..cells-1.
    """

    start: Tensor

    def __init__(self, groups: Sequence[Group]) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(group.cells for group in groups)
        self.places = [group.places for group in groups]
        self.cells = sum(map(len, self.places))
        self.whole = len(groups) == 1
        self.sizes = [part.numbers * len(places) for part, places in zip(self.parts, self.places, strict=True)]
        self.width: int = sum(self.sizes)
        self.register_buffer("start", torch.zeros(self.width, dtype=torch.float32))

    @property
    def parts(self) -> list[Cells]:
        """The kinds of cells, group by group."""
        return list(self.kinds)  # type: ignore[arg-type]

    def _groups(self, rows: Tensor) -> list[Tensor]:
        return [rows] if self.whole else [rows[..., places] for places in self.places]

    def _numbers(self, raw: Tensor) -> list[Tensor]:
        """The decoder's numbers (..., width) of each group, (..., numbers, cells)."""
        found = raw + self.start
        if self.whole:
            return [found.unflatten(-1, (-1, self.cells))]
        parts = found.split(self.sizes, -1)
        return [p.unflatten(-1, (-1, len(places))) for p, places in zip(parts, self.places, strict=True)]

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Scales of the data (n, cells), and first numbers that give each cell its own margin."""
        starts = [part.measure(own) for part, own in zip(self.parts, self._groups(x), strict=True)]
        self.start.copy_(torch.cat([start.reshape(-1) for start in starts]))

    def ready(self, x: Tensor) -> Tensor:
        """Cells (n, cells) in the units that the networks work in, of their dtype; NaN stays."""
        if self.whole:
            return self.parts[0].ready(x).to(self.start.dtype)
        y = torch.empty(x.shape, dtype=self.start.dtype)
        for part, places in zip(self.parts, self.places, strict=True):
            y[:, places] = part.ready(x[:, places]).to(y.dtype)
        return y

    def log_prob(self, raw: Tensor, y: Tensor) -> Tensor:
        """log p of ready cells y (n, cells) given the decoder's numbers (..., n, width): (..., n), in nats."""
        total = None
        for part, numbers, own in zip(self.parts, self._numbers(raw), self._groups(y), strict=True):
            nats = part.log_prob(numbers, own)
            total = nats if total is None else total + nats
        return total if total is not None else raw.sum(-1)

    def draw(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """Cells (..., cells), float64, in the data's units."""
        return self._each(raw, lambda part, numbers: part.draw(numbers, generator))

    def mean(self, raw: Tensor) -> Tensor:
        """Expected cells (..., cells), float64; of categories the likeliest level."""
        return self._each(raw, lambda part, numbers: part.mean(numbers))

    def _each(self, raw: Tensor, what: Any) -> Tensor:
        found = [what(part, n).to(torch.float64) for part, n in zip(self.parts, self._numbers(raw), strict=True)]
        if self.whole:
            return found[0]
        order = torch.tensor([place for places in self.places for place in places])
        return torch.cat(found, -1)[..., order.argsort()]


class Observed(dist.TorchDistribution):
    """An Observation as one site of a Pyro program: rows of cells in the data's units."""

    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self, observation: Observation, raw: Tensor) -> None:
        self.observation, self.raw = observation, raw
        super().__init__(raw.shape[:-1], torch.Size((observation.cells,)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def log_prob(self, value: Tensor) -> Tensor:
        return self.observation.log_prob(self.raw, self.observation.ready(value.reshape(-1, self.observation.cells)))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        with torch.no_grad():
            return self.observation.draw(self.raw.expand(*sample_shape, *self.raw.shape), generator)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "Observed":
        return Observed(self.observation, self.raw.expand(*batch_shape, self.raw.shape[-1]))


def observation_for(event: Event, name: str | None, components: int) -> Observation:
    """The observation model of a name for an event; None takes the one that suits.

    Raises:
        ParameterError: an unknown name, or no such number of components.
        StructureError: one that lives on another support than the event.
    """
    if name is not None and name not in NAMES:
        raise ParameterError(f"observation={name!r}", "an observation model", nearest(str(name), NAMES))
    if isinstance(event, Table):
        if name is not None or components != 1:
            raise StructureError(
                f"observation={name!r}, mixture={components} for a Table", "None and 1: each column by its own type"
            )
        return Observation(_of_table(event))
    array: Any = event
    return Observation(_of_array(array, _chosen(array, name), components))


def _chosen(event: Array, name: str | None) -> str:
    suited = _suited(event)
    if name is None:
        return suited[0]
    if name in suited:
        return name
    if name == "bernoulli":
        raise StructureError(
            f"observation='bernoulli' for {event!r}",
            "binary data: of grey values it is no probability, and its numbers compare with nothing",
            "For values in [0, 1] take 'continuous_bernoulli' (support='unit'), for 8-bit pixels levels=256 and "
            "'logistic'; or binarise the data, levels=2",
        )
    raise StructureError(f"observation={name!r} for {event!r}", f"one of {', '.join(suited)}", "Or another event")


def _suited(event: Array) -> tuple[str, ...]:
    """Observation models for an array's cells, the default first."""
    if event.levels is not None:
        if isinstance(event.levels, tuple):
            return ("categorical",)
        return ("bernoulli", "categorical") if event.levels == 2 else ("logistic", "categorical")
    if event.resolution is not None and event.support != "count":
        return ("logistic",)
    return {
        "real": ("normal",), "positive": ("lognormal",), "unit": ("continuous_bernoulli",),
        "count": ("negative_binomial", "poisson"),
    }[event.support]  # fmt: skip


def _of_array(event: Array, name: str, components: int) -> list[Group]:
    n = max(event.dims, 1)
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise ParameterError(f"mixture={components!r}", "a whole number of logistics, at least 1")
    if components > 1 and name != "logistic":
        raise ParameterError(f"mixture={components} of {name}", "1: only logistics are mixed")
    if name == "logistic":
        last = None if event.levels is None else float(event.levels) - 1  # type: ignore[arg-type]
        return [_group(range(n), _grid(event.resolution or 1.0, event.support, last, n, components))]
    if name == "categorical":
        return _categories([int(k) for k in event.cell_levels])
    made: dict[str, type[Cells]] = {
        "bernoulli": Bernoulli, "normal": Normal, "lognormal": LogNormal,
        "continuous_bernoulli": ContinuousBernoulli, "negative_binomial": NegativeBinomial, "poisson": Poisson,
    }  # fmt: skip
    return [_group(range(n), made[name](n))]


def _grid(step: float, support: str, last: float | None, n: int, components: int = 1) -> Grid:
    if last is not None:
        return Grid(n, step, 0.0, last, components)
    first = {"positive": step, "unit": 0.0}.get(support)
    return Grid(n, step, first, math.floor(1 / step + 1e-6) * step if support == "unit" else None, components)


def _group(places: Sequence[int], cells: Cells) -> Group:
    return Group(list(places), cells)


def _categories(levels: list[int]) -> list[Group]:
    """One group for each number of levels."""
    kinds = sorted(set(levels))
    places = {k: [i for i, own in enumerate(levels) if own == k] for k in kinds}
    return [_group(places[k], Categorical(len(places[k]), k)) for k in kinds]


def _of_table(event: Table) -> list[Group]:
    """Columns of one kind together; a rounded column by itself, since it has a step of its own."""
    columns, groups = list(event.columns.values()), []
    real = {True: LogNormal, False: Normal}
    for positive, kind in real.items():
        places = [
            i for i, c in enumerate(columns)
            if not isinstance(c, Category | Count) and c.resolution is None and c.positive is positive  # type: ignore[attr-defined]
        ]  # fmt: skip
        groups += [_group(places, kind(len(places)))] if places else []
    counts = [i for i, column in enumerate(columns) if isinstance(column, Count)]
    groups += [_group(counts, NegativeBinomial(len(counts)))] if counts else []
    for i, column in enumerate(columns):
        if step := getattr(column, "resolution", None):
            groups.append(_group([i], _grid(step, "positive" if column.positive else "real", None, 1)))  # type: ignore[attr-defined]
    coded = [i for i, column in enumerate(columns) if isinstance(column, Category)]
    found = _categories([len(columns[i].levels) for i in coded])  # type: ignore[attr-defined]
    return groups + [_group([coded[i] for i in group.places], group.cells) for group in found]
