"""Whole rows of an event as coordinates, block by block."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from probgen.errors import StructureError
from probgen.events import Array, Category, Count, Event, Table
from probgen.models.diffusion.coordinates import Block, Lattice, Levels, OneHot, Reals, Seen

__all__ = ["Decoded", "Rows", "rows_for"]

_MOST_LEVELS = 1024  # of a table of margins


class Part(NamedTuple):
    """Cells of one kind: their places in a row, and what they are."""

    places: list[int]
    block: Block


class Rows(nn.Module):
    """Cells (n, cells) to coordinates (n, width) and back; coordinates stand block after block.

    Arguments:
        parts: By kind; their places cover 0..cells-1.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(part.block for part in parts)
        self.places = [part.places for part in parts]
        self.cells = sum(map(len, self.places))
        ends = [sum(part.block.width for part in parts[: i + 1]) for i in range(len(parts))]
        self.slices = [slice(end - part.block.width, end) for part, end in zip(parts, ends, strict=True)]
        self.width: int = ends[-1]
        self.order = torch.tensor([place for places in self.places for place in places]).argsort()
        self.discrete = any(part.block.discrete for part in parts)
        self.reals = any(not part.block.discrete for part in parts)

    @property
    def blocks(self) -> list[Block]:
        return list(self.kinds)  # type: ignore[arg-type]

    def _own(self, x: Tensor) -> list[Tensor]:
        return [x] if len(self.places) == 1 else [x[:, places] for places in self.places]

    def _each(self, what: Callable[[Block, slice], Tensor]) -> Tensor:
        found = [what(block, part) for block, part in zip(self.blocks, self.slices, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, -1)[..., self.order]

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Scales of the data (n, cells)."""
        for block, own in zip(self.blocks, self._own(x), strict=True):
            block.measure(own)

    def encode(self, x: Tensor) -> Tensor:
        """Coordinates (n, width), float64."""
        return torch.cat([block.encode(own) for block, own in zip(self.blocks, self._own(x), strict=True)], 1)

    def decode(self, y: Tensor) -> Tensor:
        """Cells (n, cells) at coordinates without noise."""
        return self._each(lambda block, part: block.decode(y[..., part]))

    def nats(self, x: Tensor, seen: Seen) -> Tensor:
        """log p(x | y) at the chain's first time, (..., n)."""
        parts = zip(self.blocks, self._own(x), self.slices, strict=True)
        return sum((block.nats(own, seen[part]) for block, own, part in parts), seen.y.new_zeros(()))

    def draw(self, seen: Seen, generator: torch.Generator) -> Tensor:
        """Cells (n, cells) from p(x | y)."""
        return self._each(lambda block, part: block.draw(seen[part], generator))

    @property
    def deviation(self) -> Tensor:
        """Of each coordinate in the data, (width,)."""
        return torch.cat([block.deviation for block in self.blocks])

    def first_time(self) -> float:
        """Of the chain: late enough to need few steps, early enough that neighbouring values are told apart."""
        return min(0.02 if self.reals else 0.2, max(1e-3, min(block.gap for block in self.blocks) / 5))

    def known(self, cells: Tensor) -> Tensor:
        """Which coordinates belong to cells that are known: (n, cells) bool to (n, width) bool."""
        parts = zip(self.blocks, self._own(cells), strict=True)
        return torch.cat([own.repeat_interleave(block.width // block.cells, 1) for block, own in parts], 1)

    # Dequantised cells

    @property
    def ordinal(self) -> bool:
        """Whether every discrete cell is a number, so that it can be spread over its rounding interval."""
        return not any(isinstance(block, OneHot) for block in self.blocks)

    def _steps(self) -> list[float]:
        return [getattr(block, "step", 1.0) if block.discrete else 0.0 for block in self.blocks]

    def spread_out(self, x: Tensor, u: Tensor) -> Tensor:
        """x + step (u - 1/2) of each discrete cell, u in [0, 1], (n, cells)."""
        steps = torch.zeros(self.cells, dtype=torch.float64)
        for step, places in zip(self._steps(), self.places, strict=True):
            steps[places] = step
        return x + steps * (u - 0.5)

    def log_offset(self, v: Tensor) -> Tensor:
        """log |dc/dv| of real or spread-out cells, plus log of each rounding interval: log P(x) >= E log p_c + this."""
        total = v.new_zeros(len(v))
        for block, own, step in zip(self.blocks, self._own(v), self._steps(), strict=True):
            total = total + block.log_slope(own) + (len(own[0]) * math.log(step) if step else 0.0)  # type: ignore[operator]
        return total


class Decoded(dist.TorchDistribution):
    """p(x | y) at the chain's first time as one site of a Pyro program: rows of cells in the data's units.

    Arguments:
        dtype: Of its log-probabilities: that of the program's other sites, which Pyro adds them to.
    """

    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self, rows: Rows, seen: Seen, dtype: torch.dtype = torch.float64) -> None:
        self.rows, self.seen, self.dtype = rows, seen, dtype
        super().__init__(seen.y.shape[:-1], torch.Size((rows.cells,)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def log_prob(self, value: Tensor) -> Tensor:
        return self.rows.nats(value.reshape(-1, self.rows.cells), self.seen).to(self.dtype)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        with torch.no_grad():
            return self._wide(sample_shape).draw(generator)

    def draw(self, generator: torch.Generator) -> Tensor:
        return self.rows.draw(self.seen, generator)

    def _wide(self, shape: Sequence[int]) -> "Decoded":
        y, mean = (t.expand(*shape, *t.shape) for t in (self.seen.y, self.seen.mean))
        return Decoded(self.rows, Seen(y, mean, self.seen.variance, self.seen.t), self.dtype)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "Decoded":
        y, mean = (t.expand(*batch_shape, t.shape[-1]) for t in (self.seen.y, self.seen.mean))
        return Decoded(self.rows, Seen(y, mean, self.seen.variance, self.seen.t), self.dtype)


def rows_for(event: Event, shared: bool) -> Rows:
    """The coordinates of an event's rows.

    Arguments:
        shared: Whether numbers have one spread together, as pixels do.

    Raises:
        StructureError: another event than an Array or a Table.
    """
    if isinstance(event, Table):
        return Rows(_of_table(event))
    if not isinstance(event, Array):
        raise StructureError(f"{event!r}", "an Array or a Table of cells")
    return Rows([Part(list(range(max(event.dims, 1))), _of_array(event, shared))])


def _of_array(event: Array, shared: bool) -> Block:
    n = max(event.dims, 1)
    if event.levels is not None:
        levels = [int(k) for k in event.cell_levels]
        if max(levels) > _MOST_LEVELS:
            return Lattice(n, 1.0, 0.0, float(max(levels) - 1))
        return Levels(levels, shared and len(set(levels)) == 1)
    if event.support == "count":
        return Lattice(n, 1.0, 0.0, log=True)
    if event.resolution is None:
        return Reals(n, event.support, shared)
    step = event.resolution
    first = {"positive": step, "unit": 0.0}.get(event.support)
    return Lattice(n, step, first, math.floor(1 / step + 1e-6) * step if event.support == "unit" else None)


def _of_table(event: Table) -> list[Part]:
    """Columns of one kind together; a rounded column by itself, since it has a step of its own."""
    columns: list[Any] = list(event.columns.values())
    plain = [i for i, c in enumerate(columns) if not isinstance(c, Category | Count)]
    parts = []
    for positive in (False, True):
        places = [i for i in plain if columns[i].positive is positive and columns[i].resolution is None]
        parts += [Part(places, Reals(len(places), "positive" if positive else "real"))] if places else []
    for i in plain:
        if step := columns[i].resolution:
            parts.append(Part([i], Lattice(1, step, step if columns[i].positive else None)))
    counts = [i for i, c in enumerate(columns) if isinstance(c, Count)]
    parts += [Part(counts, Lattice(len(counts), 1.0, 0.0, log=True))] if counts else []
    coded = {i: len(c.levels) for i, c in enumerate(columns) if isinstance(c, Category)}
    for k in sorted(set(coded.values())):
        places = [i for i, levels in coded.items() if levels == k]
        parts.append(Part(places, OneHot(len(places), k)))
    return parts
