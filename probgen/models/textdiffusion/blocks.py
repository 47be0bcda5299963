"""Observations as blocks of symbols, each behind those that came before it; and back."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from probgen.errors import DataError
from probgen.events import Array, Event, Ragged, Series, Text

__all__ = ["Blocks", "Layout", "why_not"]

_MOST = 1 << 16


def why_not(event: Event) -> str | None:
    """None, or why observations of an event are no sequences of symbols."""
    if isinstance(event, Text):
        return None
    if not isinstance(event, Array | Series):
        return f"it masks sequences of symbols, not {type(event).__name__}"
    if event.levels is None:
        return "its symbols need a known number of levels: declare levels="
    if isinstance(event, Array):
        return None if event.dims else "it masks sequences of symbols, not single ones"
    size = math.prod(event.step.cell_levels)
    return None if size <= _MOST else f"a step has {size} possible values, more than {_MOST} symbols"


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of sequences, those of one after the other.

    Arguments:
        ids: Context, then the block, (m, context + block), int64.
        free: How many symbols of each block are modelled, the first ones; behind them stand ends that are given. (m,)
        place: Of each block's first symbol in its sequence, (m,).
        owner: The sequence of each block, (m,).
    """

    ids: Tensor
    free: Tensor
    place: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor) -> "Blocks":
        return Blocks(self.ids[rows], self.free[rows], self.place[rows], self.owner[rows])

    def packed(self) -> Tensor:
        """One tensor a block, (m, context + block + 2), for the training loop."""
        return torch.cat([self.ids, self.free[:, None], self.place[:, None]], 1)

    @classmethod
    def of_packed(cls, rows: Tensor) -> "Blocks":
        return cls(rows[:, :-2], rows[:, -2], rows[:, -1], torch.arange(len(rows)))


@dataclass(frozen=True)
class Layout:
    """How an event's observations are cut: symbols 0 .. size - 1, then an end, a mask and a start.

    A text is its tokens, then ends up to the end of its last block, all of them modelled. The steps of a Series are
    one symbol each and its length is given; the cells of an Array are read in raster order.

    Arguments:
        event: Text, a Series of levels, or an Array of levels.
        context: Symbols before a block that it is given; starts where there are fewer.
        block: Symbols of a block.
    """

    event: Event
    context: int
    block: int

    @cached_property
    def radix(self) -> tuple[int, ...]:
        """Levels of each cell: of a step of a Series, of an Array."""
        step = self.event.step if isinstance(self.event, Series) else self.event
        return tuple(int(levels) for levels in step.cell_levels)  # type: ignore[attr-defined]

    @cached_property
    def size(self) -> int:
        if isinstance(self.event, Text):
            return self.event.tokens
        return math.prod(self.radix) if isinstance(self.event, Series) else max(self.radix)

    @property
    def ends(self) -> bool:
        """Whether the length is modelled."""
        return isinstance(self.event, Text)

    @property
    def end(self) -> int:
        return self.size

    @property
    def mask(self) -> int:
        return self.size + 1

    @property
    def start(self) -> int:
        return self.size + 2

    @property
    def outcomes(self) -> int:
        """How many symbols can be predicted."""
        return self.size + self.ends

    @property
    def length(self) -> int | None:
        """Of every sequence, where it is fixed."""
        return len(self.radix) if isinstance(self.event, Array) else None

    def legal(self, place: Tensor) -> Tensor | None:
        """Which symbols the places of blocks can hold, (m, block, size), bool; None where that is all of them."""
        if not isinstance(self.event, Array) or len(set(self.radix)) == 1:
            return None
        levels = torch.tensor([*self.radix, *[self.size] * self.block])
        return torch.arange(self.size) < levels[place[:, None] + torch.arange(self.block)][..., None]

    def sequences(self, x: Tensor | Ragged) -> list[Tensor]:
        """Symbol ids of checked data.

        Raises:
            DataError: a missing step.
        """
        if isinstance(self.event, Text) and isinstance(x, Ragged):
            return x.split()
        if not isinstance(x, Ragged):
            return list(x.reshape(len(x), -1).long())
        cells = x.values.reshape(len(x.values), -1)
        if cells.isnan().any():
            place = int(cells.isnan().any(1).nonzero()[0])
            row = int((x.starts <= place).sum()) - 1
            came = f"Sequence {row}, step {place - int(x.starts[row])} is missing"
            raise DataError(came, "complete sequences", "Fill the gaps by infill(x, known=...)")
        codes = np.ravel_multi_index(tuple(cells.long().numpy().T), self.radix)
        return list(Ragged(torch.as_tensor(codes, dtype=torch.int64), x.lengths).split())

    def observations(self, sequences: list[Tensor]) -> Tensor | Ragged:
        """Checked data of symbol ids."""
        lengths, ids = torch.tensor([len(one) for one in sequences]), torch.cat(sequences)
        if isinstance(self.event, Text):
            return Ragged(ids, lengths)
        if isinstance(self.event, Series):
            cells = np.stack(np.unravel_index(ids.numpy(), self.radix), 1).astype(np.float64)
            return Ragged(torch.from_numpy(cells).reshape(len(ids), *self.event.shape), lengths)
        return ids.double().reshape(len(sequences), *self.event.shape)  # type: ignore[attr-defined]

    def blocks(self, sequences: list[Tensor], stride: int = 0) -> Blocks:
        """Blocks of symbols; with a ``stride`` they overlap, for learning."""
        stride, c, b = stride or self.block, self.context, self.block
        ids, free, place, owner = [], [], [], []
        for row, one in enumerate(sequences):
            last = len(one) + 1 if self.ends else len(one)
            filled = torch.cat([one.new_full((c,), self.start), one, one.new_full((b,), self.end)])
            for begin in range(0, last, stride):
                ids.append(filled[begin : begin + c + b])
                free.append(b if self.ends else min(b, len(one) - begin))
                place.append(begin)
                owner.append(row)
        return Blocks(torch.stack(ids), torch.tensor(free), torch.tensor(place), torch.tensor(owner))
