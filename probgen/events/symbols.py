"""Observations as sequences of symbol ids, as models of symbols see them; and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from probgen.errors import DataError
from probgen.events.array import Array
from probgen.events.cells import Ragged
from probgen.events.event import Event
from probgen.events.sequences import Series
from probgen.events.text import Text

__all__ = ["Alphabet", "why_not"]

_MOST = 1 << 16


def why_not(event: Event, does: str = "reads") -> str | None:
    """None, or why observations of an event are no sequences of symbols; ``does``: what a model does with them."""
    if isinstance(event, Text):
        return None
    if not isinstance(event, Array | Series):
        return f"it {does} sequences of symbols, not {type(event).__name__}"
    levels = event.levels
    if levels is None:
        return "its symbols need a known number of levels: declare levels="
    if isinstance(event, Array):
        return None if event.dims else f"it {does} sequences of symbols, not single ones"
    size = math.prod(event.step.cell_levels)
    return None if size <= _MOST else f"a step has {size} possible values, more than {_MOST} symbols"


@dataclass(frozen=True)
class Alphabet:
    """Symbol ids of an event's observations, and back.

    Text is its tokens, then an end. The cells of a step of a Series are one symbol, the last cell running fastest; a
    length is given, not modelled, as in every family over series. An Array is read in raster order.

    Arguments:
        event: Text, a Series of levels, or an Array of levels.
    """

    event: Event
    advice: ClassVar[str] = "Fill the gaps, or use HMM, which sums over them"

    @cached_property
    def size(self) -> int:
        """How many symbols there are, the end aside."""
        if isinstance(self.event, Text):
            return self.event.tokens
        return math.prod(self.radix) if isinstance(self.event, Series) else max(self.radix)

    @property
    def ends(self) -> bool:
        """Whether the end of a sequence is part of it."""
        return isinstance(self.event, Text)

    @cached_property
    def radix(self) -> tuple[int, ...]:
        """Levels of each cell: of a step of a Series, of an Array."""
        step = self.event.step if isinstance(self.event, Series) else self.event
        return tuple(int(levels) for levels in step.cell_levels)  # type: ignore[attr-defined]

    @property
    def length(self) -> int | None:
        """Of every sequence, where it is fixed."""
        return len(self.radix) if isinstance(self.event, Array) else None

    @cached_property
    def legal(self) -> Tensor | None:
        """Which symbols each place of an Array can hold, (length, size), bool; None where that is all of them."""
        if not isinstance(self.event, Array) or len(set(self.radix)) == 1:
            return None
        return torch.arange(self.size) < torch.tensor(self.radix)[:, None]

    def ids(self, x: Tensor | Ragged) -> Ragged:
        """Of checked data.

        Raises:
            DataError: a missing step.
        """
        if isinstance(self.event, Text) and isinstance(x, Ragged):
            return x
        if isinstance(x, Ragged):
            cells = x.values.reshape(len(x.values), -1)
            self._refuse_gaps(cells, x)
            codes = np.ravel_multi_index(tuple(cells.long().numpy().T), self.radix)
            return Ragged(torch.as_tensor(codes, dtype=torch.int64), x.lengths)
        cells = x.reshape(len(x), -1).long()
        return Ragged(cells.flatten(), torch.full((len(x),), cells.shape[1]))

    def _refuse_gaps(self, cells: Tensor, x: Ragged) -> None:
        if cells.isnan().any():
            place = int(cells.isnan().any(1).nonzero()[0])
            row = int((x.starts <= place).sum()) - 1
            came = f"Sequence {row}, step {place - int(x.starts[row])} is missing"
            raise DataError(came, "complete sequences", self.advice)

    def observations(self, sequences: Sequence[np.ndarray | Tensor]) -> Tensor | Ragged:
        """Checked data of symbol ids."""
        lengths = torch.tensor([len(one) for one in sequences])
        ids = torch.as_tensor(np.concatenate(sequences), dtype=torch.int64)
        if isinstance(self.event, Text):
            return Ragged(ids, lengths)
        if isinstance(self.event, Series):
            cells = np.stack(np.unravel_index(ids.numpy(), self.radix), 1).astype(np.float64)
            return Ragged(torch.from_numpy(cells).reshape(len(ids), *self.event.shape), lengths)
        return ids.double().reshape(len(sequences), *self.event.shape)  # type: ignore[attr-defined]

    def bytes(self, ids: np.ndarray) -> np.ndarray:
        """Bytes of each token of a text."""
        tokenizer = getattr(self.event, "tokenizer", None)
        if tokenizer is None or isinstance(tokenizer, str):
            return np.ones(len(ids), dtype=np.int64)
        return np.array([len(piece) for piece in tokenizer.pieces])[ids]
