"""Rows of a data frame as the steps of sequences."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from probgen import frames
from probgen.errors import DataError, ParameterError, ShapeError, nearest
from probgen.events.cells import Ragged, row_hash, whole
from probgen.events.event import Checked, Event, refuse_empty
from probgen.events.outside import Columns, columns, name_cells, named
from probgen.events.table import Column, Table
from probgen.logprob import Fingerprint


@dataclass(frozen=True, repr=False)
class Panel(Event):
    """Sequences in a data frame, one step a row: a Ragged (total, columns), category codes, NaN = missing.

    Arguments:
        columns: Of one step, by name: Real, Count or Category.
        sequence: The column that says which sequence a row belongs to. Rows of one sequence need not be adjacent:
            they keep the order they stand in. None: the whole frame is one sequence.
        missing: Whether cells may be missing. A row without a sequence is refused in any case.

    Takes what a Table takes, and a list of frames: with ``sequence`` they are read as one frame, without it each is a
    sequence. Sequences stand in the order in which they first occur; their labels are the row keys.
    """

    columns: Mapping[str, Column] = field(default_factory=dict)
    sequence: str | None = None
    missing: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", self.step.columns)
        if self.sequence is not None and not isinstance(self.sequence, str):
            raise ParameterError(f"sequence={self.sequence!r}", "the name of a column, or None for one sequence")
        if self.sequence in self.columns:
            raise ParameterError(
                f"sequence={self.sequence!r} among the columns {list(self.columns)}",
                "the label of a sequence apart from what is observed",
                "Leave it out of columns",
            )

    @property
    def step(self) -> Table:
        """The event of one step."""
        return Table(self.columns, self.missing)

    @property
    def shape(self) -> tuple[int]:
        return (len(self.columns),)

    @property
    def measure(self) -> str:
        return self.step.measure

    def check(self, data: Any) -> Checked:
        raw, keys, labels, form = self._read(data)
        cells = self.step.cells(raw, keys)
        first, lengths, order = grouped(labels)
        cells = cells if order is None else cells[order]
        ragged = Ragged(torch.from_numpy(cells), torch.from_numpy(lengths))
        about = Fingerprint(
            labels[first], lambda: row_hash(ragged), ragged.sums(~np.isnan(cells)), repr(self), self.measure,
            whole(cells),
        )  # fmt: skip
        return Checked(ragged, about, form)

    def _read(self, data: Any) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray, str]:
        """Outside columns without the sequence's, row keys, the label of each row's sequence, form."""
        found, parts = tables(data, list(self.columns) if self.sequence is None else None)
        refuse_empty(len(found.keys))
        if self.sequence is None:
            return found.cells, found.keys, parts, found.form
        labels, missing = sequence_column(found, self.sequence)
        missing = missing | np.isnan(labels) if labels.dtype.kind == "f" else missing
        name_cells(
            missing[:, None], labels[:, None], found.keys, [self.sequence], "is missing: the row is in no sequence",
            "a label in every row", "Fill the column, or drop the row", DataError,
        )  # fmt: skip
        rest = {name: cells for name, cells in found.cells.items() if name != self.sequence}
        return rest, found.keys, labels, found.form

    def ties(self, x: Ragged) -> str | None:
        """As of Table, over all steps."""
        return self.step.ties(x.values)

    def restore(self, x: Ragged, form: str = "pandas", keys: Any = None) -> Any:
        """A frame with the sequence's column: ``keys`` (n,), or 0..n-1. Without that column, one frame a sequence."""
        if self.sequence is None or form in ("numpy", "torch", "list"):
            parts = [self.step.restore(part, form) for part in x.split()]
            return parts[0] if len(parts) == 1 else parts
        labels = np.arange(len(x)) if keys is None else np.asarray(keys)
        found = {self.sequence: np.repeat(labels, x.lengths.numpy()), **self.step.outside(x.values)}
        return found if form == "dict" else frames.native(found, form)


def sequence_column(found: Columns, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The column that says which sequence a row belongs to, as (labels, missing mask).

    Raises:
        ShapeError: there is none of that name; the message names the nearest.
    """
    if name not in found.cells:
        raise ShapeError(
            f"A table without the sequence column {name!r}", "one of its columns", nearest(name, found.cells)
        )
    return found.cells[name]


def grouped(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows by label: the first row of each label in order of occurrence, the labels' counts (n,), and the stable order
    that puts rows of one label side by side; None where they stand so already."""
    if labels.dtype == object:
        codes: dict[Any, int] = {}
        place = np.fromiter(
            (codes.setdefault(_label(v), len(codes)) for v in labels), dtype=np.int64, count=len(labels)
        )
        first = np.unique(place, return_index=True)[1]
    else:
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))
        place, first = rank[inverse.reshape(-1)], np.sort(first)
    sorted_already = bool((np.diff(place) >= 0).all())
    return first, np.bincount(place), None if sorted_already else np.argsort(place, kind="stable")


def _label(value: Any) -> Any:
    """A label that can be told from others."""
    try:
        hash(value)
    except TypeError as problem:
        raise DataError(f"A {type(value).__name__} as the label of a sequence", "numbers or strings") from problem
    return value


def is_frames(data: Any) -> bool:
    """Whether this is a list of data frames or of dicts of columns."""
    return isinstance(data, list | tuple) and bool(data) and all(map(_is_table, data))


def _is_table(part: Any) -> bool:
    return isinstance(part, Mapping) or frames.is_frame(part)


def tables(data: Any, names: list[str] | None = None) -> tuple[Columns, np.ndarray]:
    """A table, or a list of them one below the other, and the number of the table that each row comes from."""
    if not is_frames(data):
        found = columns(data, names)
        return found, np.zeros(len(found.keys), dtype=np.int64)
    parts = []
    for i, part in enumerate(data):
        with named(f"Frame {i}"):
            parts.append(columns(part))
            refuse_empty(len(parts[-1].keys))
    return _stacked(parts), np.repeat(np.arange(len(parts)), [len(part.keys) for part in parts])


def _stacked(parts: list[Columns]) -> Columns:
    """Tables of the same columns, one below the other."""
    for i, part in enumerate(parts):
        if set(part.cells) != set(parts[0].cells):
            raise ShapeError(
                f"Frame {i} has the columns {list(part.cells)}", f"those of the first: {list(parts[0].cells)}",
                "Choose them",
            )  # fmt: skip
    cells = {
        name: (_concat(part.cells[name][0] for part in parts), np.concatenate([p.cells[name][1] for p in parts]))
        for name in parts[0].cells
    }
    levels = {
        name: list(dict.fromkeys(level for part in parts for level in part.levels.get(name, ())))
        for name in parts[0].levels
    }
    return Columns(cells, _concat(part.keys for part in parts), levels, parts[0].form)


def _concat(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Arrays end to end; numbers beside other things stay what they are."""
    arrays = list(arrays)
    numbers = all(array.dtype.kind in "iuf" for array in arrays)
    same = len({array.dtype.kind for array in arrays}) == 1
    return np.concatenate(arrays if numbers or same else [array.astype(object) for array in arrays])
