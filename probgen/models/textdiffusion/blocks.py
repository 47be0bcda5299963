"""Observations as blocks of symbols, each behind those that came before it; and back."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probgen.events import Array, Ragged
from probgen.events.symbols import Alphabet

__all__ = ["Blocks", "Layout"]


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
class Layout(Alphabet):
    """How an event's observations are cut: symbols 0 .. size - 1, then an end, a mask and a start.

    A text is its tokens, then ends up to the end of its last block, all of them modelled. The steps of a Series are
    one symbol each and its length is given; the cells of an Array are read in raster order.

    Arguments:
        context: Symbols before a block that it is given; starts where there are fewer.
        block: Symbols of a block.
    """

    context: int
    block: int
    advice: ClassVar[str] = "Fill the gaps by infill(x, known=...)"

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

    def legal_at(self, place: Tensor) -> Tensor | None:
        """Which symbols the places of blocks can hold, (m, block, size), bool; None where that is all of them."""
        if not isinstance(self.event, Array) or len(set(self.radix)) == 1:
            return None
        levels = torch.tensor([*self.radix, *[self.size] * self.block])
        return torch.arange(self.size) < levels[place[:, None] + torch.arange(self.block)][..., None]

    def sequences(self, x: Tensor | Ragged) -> list[Tensor]:
        """Symbol ids of checked data, one tensor a sequence; raises as ``ids``."""
        return self.ids(x).split()

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
