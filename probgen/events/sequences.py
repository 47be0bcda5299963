"""Observations of varying length: series of numbers."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ShapeError
from probgen.events.array import Array, Support
from probgen.events.cells import Ragged, row_hash, whole
from probgen.events.event import Checked, Event, refuse_empty
from probgen.events.outside import float_cells, from_tensor, is_array, named, rows, unboxed
from probgen.logprob import Fingerprint


@dataclass(frozen=True, repr=False)
class Series(Event):
    """Sequences of equal or unequal length: a Ragged, NaN = missing.

    Arguments:
        shape: Of one step; () for one number a step.
        support, levels, resolution, unit, missing: As of Array, for one step.

    Takes a list of arrays, a pair (values, lengths), an array (n, T, *shape) of n equally long sequences, or one
    sequence (T, *shape). In a pair, values (T, 1) are single numbers too. Data frames are events.Panel's.
    """

    shape: tuple[int, ...] = ()
    support: Support = "real"
    levels: int | tuple[int, ...] | None = None
    resolution: float | None = None
    unit: str = ""
    missing: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.step.shape)
        object.__setattr__(self, "levels", self.step.levels)

    @property
    def step(self) -> Array:
        """The event of one step."""
        return Array(self.shape, self.support, self.levels, self.resolution, self.unit, self.missing)

    @property
    def measure(self) -> str:
        return self.step.measure

    def check(self, data: Any) -> Checked:
        if frames.is_frame(data) or isinstance(data, str | os.PathLike):
            raise DataError(
                f"A table ({type(data).__name__}) for sequences: where one ends and the next begins is not known",
                "a list of arrays, or a pair (values, lengths)",
                'For a frame use events.Panel(columns, sequence="id"), events.infer(frame, sequence="id") makes one; '
                "or give (frame.to_numpy(), lengths)",
            )
        values, lengths, form = self._gathered(data)
        refuse_empty(len(lengths))
        cells = values.reshape(len(values), -1)
        gaps = self.step.check_cells(cells, _Steps(lengths))
        ragged = Ragged(torch.from_numpy(values), torch.from_numpy(lengths))
        seen = ragged.sums(~np.isnan(cells)) if gaps else lengths * cells.shape[1]
        keys = np.arange(len(lengths))
        about = Fingerprint(keys, lambda: row_hash(ragged), seen, repr(self), self.measure, whole(values))
        return Checked(ragged, about, form)

    def _gathered(self, data: Any) -> tuple[np.ndarray, np.ndarray, str]:
        """(values (total, *shape), lengths, form) of whatever holds sequences; the values are a copy."""
        data, rank = unboxed(data), len(self.shape)
        if isinstance(data, Ragged):
            data = data.values, data.lengths
        if isinstance(data, tuple) and len(data) == 2:
            values, lengths = _pair(*data)
            values = values[:, 0] if rank == 0 and values.shape[1:] == (1,) else values
            self._check_shape(0, values)
            return values, lengths, "list"
        if isinstance(data, list | tuple) and any(map(is_array, set(map(type, data)))):
            parts = _arrays(data) or [_sequence(i, part) for i, part in enumerate(data)]
            if parts[0].ndim > rank:
                return *self._joined(parts), "torch" if isinstance(data[0], Tensor) else "list"
        values, _, form = float_cells(data)
        if values.ndim == rank + 2:
            self._refuse_column(values)
            return *self._joined(list(values)), "array"
        return *self._joined([values] if values.size or form != "list" else []), "list"

    def _joined(self, parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        refuse_empty(len(parts))
        for i, part in enumerate(parts):
            self._check_shape(i, part)
        return np.concatenate(parts, dtype=np.float64), np.array([len(part) for part in parts])

    def _check_shape(self, i: int, part: np.ndarray) -> None:
        if part.shape[1:] != self.shape or not len(part):
            column = part.shape[1:] == (1,) and not self.shape
            raise ShapeError(
                f"Sequence {i} has shape {part.shape}" if len(part) else f"Sequence {i} is empty",
                f"({', '.join(['T >= 1', *map(str, self.shape)])})" if self.shape else "(T,), T >= 1",
                "Leave it out" if not len(part) else "Give x[:, 0]" if column else f"Event: {self!r}",
            )

    def _refuse_column(self, values: np.ndarray) -> None:
        """An array (T, 1) of single numbers is one sequence to its owner, and T sequences by the rule."""
        if values.shape[1:] == (1,) and len(values) > 1:
            raise ShapeError(
                f"An array of shape {values.shape} for {self!r}: one sequence, or {len(values)} of one step",
                "x[:, 0] for one sequence, a list of arrays for several, or (x, lengths)",
                "Or declare steps of one column: Series((1,))",
            )

    def ties(self, x: Ragged) -> str | None:
        """As of Array, over all steps."""
        return self.step.ties(x.values)

    def restore(self, x: Ragged, form: str = "list") -> Any:
        parts = [self.step.restore(part, "torch" if form == "torch" else "numpy") for part in x.split()]
        stacks = form == "array" and len(set(map(len, parts))) == 1
        column = not self.shape and len(parts) > 1 and len(parts[0]) == 1  # refused where it comes in
        return np.stack(parts) if stacks and not column else parts


class _Steps:
    """Row keys of single steps: "3, step 7"."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.ends = np.cumsum(lengths)

    def __getitem__(self, place: int) -> str:
        row = int(np.searchsorted(self.ends, place, side="right"))
        return f"{row}, step {place - (self.ends[row - 1] if row else 0)}"


def _arrays(data: Sequence) -> list[np.ndarray] | None:
    """Plain arrays and tensors of numbers as arrays; None where any needs to be read cell by cell."""
    with frames.reading(data):
        parts = [from_tensor(part) if isinstance(part, Tensor) else part for part in data]
    plain = all(type(part) is np.ndarray and part.ndim and part.dtype.kind in "biuf" for part in parts)
    return parts if plain and not any(part.dtype == np.longdouble for part in parts) else None


def _sequence(i: int, part: Any) -> np.ndarray:
    if not is_array(type(part)):
        raise DataError(f"Sequence {i} is {part!r:.80}", "an array or list of steps", "Drop the row, or give its steps")
    with named(f"Sequence {i}"):
        return float_cells(part)[0]


def _pair(data: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
    values, counts = float_cells(data)[0], np.empty(0)
    with suppress(DataError):
        counts = rows(lengths)[0]
    whole_numbers = counts.ndim == 1 and counts.dtype.kind in "iu"
    if not whole_numbers or (counts < 1).any() or sum(counts.tolist()) != len(values):
        shown = lengths.tolist() if isinstance(lengths, np.ndarray | Tensor) else lengths
        raise ShapeError(
            f"lengths {shown!r:.80} for {len(values)} rows",
            "positive whole numbers that add up to the number of rows",
            "Give a list of arrays instead, one a sequence",
        )
    return values, counts.astype(np.int64)
