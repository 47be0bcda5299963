"""Checked cells: ragged rows, choosing rows, hashes of rows, and the way back to the form that came in."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames

__all__ = ["Parts", "Ragged", "prefix_hash", "row_hash", "take", "to_form", "whole"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of unequal length, one after the other.

    Arguments:
        values: Shape (total, ...).
        lengths: Shape (n,), int64, positive, adding up to total.
    """

    values: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> Tensor:
        """Where each row begins, shape (n,)."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def places(self) -> Tensor:
        """Of each step in its row, from 0, shape (total,)."""
        return torch.arange(len(self.values)) - self.starts.repeat_interleave(self.lengths)

    def sums(self, steps: np.ndarray) -> np.ndarray:
        """Totals of numbers of each step (total, ...) over each row, shape (n,)."""
        return np.add.reduceat(steps.reshape(len(steps), -1).sum(axis=1), self.starts.numpy())

    def split(self) -> list[Tensor]:
        return list(self.values.split(self.lengths.tolist()))

    def __getitem__(self, rows: Any) -> "Ragged":
        chosen = torch.arange(len(self))[rows].reshape(-1)
        parts = self.split()
        kept = [parts[i] for i in chosen.tolist()] or [self.values[:0]]
        return Ragged(torch.cat(kept), self.lengths[chosen])


class Parts(Mapping):
    """Several parts of n rows, checked: values by name, None where a part is missing in all rows.

    Where a part is missing in a single row its value is a filling: NaN in a tensor, one token -1 in a text. ``len`` is
    the number of rows.

    Arguments:
        values: By name, a tensor (n, ...), a Ragged of n rows, or None.
        seen: By name, which rows have the part, bool (n,); without it all rows of what is there.
        groups: Into how many the rows fall, one after the other and of equal size: draws of several conditions.
    """

    def __init__(self, values: Mapping[str, Any], seen: Mapping[str, Tensor] | None = None, groups: int = 1) -> None:
        self.values_of, self.groups = dict(values), groups
        rows = next(len(part) for part in self.values_of.values() if part is not None)
        there = {name: torch.full((rows,), part is not None) for name, part in self.values_of.items()}
        self.seen: dict[str, Tensor] = there if seen is None else dict(seen)
        self._rows = rows

    def __getitem__(self, name: Any) -> Any:
        """A part by its name; or some rows, as of a tensor."""
        return self.values_of[name] if isinstance(name, str) else take(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return self._rows

    def take(self, rows: Any) -> "Parts":
        values = {name: None if part is None else take(part, rows) for name, part in self.values_of.items()}
        return Parts(values, {name: there[rows].reshape(-1) for name, there in self.seen.items()})

    def hash(self) -> np.ndarray:
        """Of each row: a part counts where it is there, whatever fills its place elsewhere."""
        hashes = []
        for name, part in sorted(self.values_of.items()):
            own = np.zeros(len(self), np.uint64) if part is None else row_hash(part)
            salted = row_hash(np.frombuffer(name.encode(), dtype=np.uint8)[None])
            hashes.append(np.where(self.seen[name].numpy(), own ^ salted, np.uint64(0)))
        return row_hash(np.stack(hashes, axis=1).view(np.int64))


def take(x: Any, rows: Any) -> Any:
    """Some rows of checked data: a tensor, a Ragged, Parts or a dict of them."""
    if isinstance(x, Parts):
        return x.take(torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows)
    if isinstance(x, Mapping):
        return {name: None if part is None else take(part, rows) for name, part in x.items()}
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(rows)
    return x[rows]


def whole(values: np.ndarray) -> bool:
    """Whether every observed cell is a whole number."""
    if not (_fractions(values.reshape(-1)[:1000]) or _fractions(values)):
        return bool(np.isfinite(values).any())
    return False


def _fractions(values: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(((values != np.rint(values)) & np.isfinite(values)).any())


def to_form(x: Tensor | np.ndarray, form: str) -> Any:
    """Cells as "torch" (numbers only), "list", a frame of numbered columns, or NumPy."""
    if isinstance(x, np.ndarray):
        if x.dtype == object:
            return x.tolist() if form == "list" else x
        x = torch.from_numpy(x)
    if form == "torch":
        return x
    if form == "list":
        return x.tolist()
    if form in ("pandas", "polars", "pyarrow") and x.ndim == 2:
        return frames.native({str(i): column for i, column in enumerate(x.numpy().T)}, form)
    return x.numpy()


_ODD = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 20


def _mix(h: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), elementwise."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def _bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f":
        return np.ascontiguousarray(values).astype(np.int64).view(np.uint64)
    cells = np.asarray(values, dtype=np.float64) + 0.0  # -0.0 becomes 0.0
    cells[np.isnan(cells)] = math.nan  # one NaN for all
    return np.ascontiguousarray(cells).view(np.uint64)


def row_hash(x: Any) -> np.ndarray:
    """A 64-bit hash of each row's content, shape (n,), uint64: equal rows have equal hashes, wherever they stand."""
    if isinstance(x, Parts):
        return x.hash()
    if isinstance(x, Mapping):
        parts = [row_hash(part) for part in x.values() if part is not None]
        return row_hash(np.stack(parts, axis=1).view(np.int64))
    if isinstance(x, Ragged):
        return _ragged_hash(x)
    cells = (x.detach().cpu().numpy() if isinstance(x, Tensor) else x).reshape(len(x), -1)
    place = _mix(np.arange(1, cells.shape[1] + 1, dtype=np.uint64) * _ODD)
    step = max(1, _CHUNK // max(cells.shape[1], 1))
    rows = [_mix(_bits(cells[i : i + step]) ^ place).sum(axis=1, dtype=np.uint64) for i in range(0, len(cells), step)]
    return _mix(np.concatenate(rows) + place[-1:] if rows else np.empty(0, np.uint64))


def _ragged_hash(x: Ragged) -> np.ndarray:
    lengths = x.lengths.numpy()
    return _mix(np.add.reduceat(_moved(x), x.starts.numpy()) ^ (lengths.astype(np.uint64) * _ODD))


def prefix_hash(x: Ragged) -> np.ndarray:
    """The hash that each sequence would have if it ended at each of its steps, shape (total,), uint64."""
    moved, within, starts = _moved(x), _within(x), x.starts.numpy()
    sums = np.cumsum(moved, dtype=np.uint64)
    before = np.repeat(sums[starts] - moved[starts], x.lengths.numpy())
    return _mix((sums - before) ^ ((within + np.uint64(1)) * _ODD))


def _moved(x: Ragged) -> np.ndarray:
    """A hash of each step and its place in its sequence, shape (total,)."""
    return _mix(row_hash(x.values) ^ _mix((_within(x) + np.uint64(1)) * _ODD))


def _within(x: Ragged) -> np.ndarray:
    """The place of each step in its sequence, from 0, shape (total,), uint64."""
    return x.places.numpy().astype(np.uint64)
