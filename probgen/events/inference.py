"""The event that fits some data."""

import os
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ParameterError, ShapeError
from probgen.events.array import Array
from probgen.events.cells import Ragged, whole
from probgen.events.event import Event, refuse_empty
from probgen.events.outside import Columns, columns, is_array, is_ragged, named, numbers, rows, unboxed
from probgen.events.panel import Panel, is_frames, sequence_column, tables
from probgen.events.record import Record
from probgen.events.sequences import Series
from probgen.events.table import Category, Column, Count, Real, Table
from probgen.events.text import Text


def infer(data: Any, *, sequence: str | bool | None = None) -> Event:
    """The event that fits some data; its repr says how every column is read, and can be edited.

    Arrays: whole-number types are levels 0..max (256 for bytes above 127; counts above 1023; steps of 1 where
    negative); floats are real. Frames and dicts of columns: strings, booleans and categoricals are categories; whole
    numbers are categories up to 20 distinct values, else counts (steps of 1 where negative); the rest is real. Lists
    of strings are text, lists of unequal arrays are series, lists of frames a panel, other dicts are records: rows that
    lack a part (None in a list, NaN throughout in an array) say nothing about it.

    Arguments:
        sequence: The column of a frame that says which sequence a row belongs to: a Panel. True reads a frame (as a
            Panel) or an array (T, ...) as one sequence.

    Raises:
        DataError: naming the cell or column that can't be read.
        ParameterError: ``sequence`` for data without columns.
    """
    if sequence or is_frames(data):
        return _infer_sequences(data, sequence or True)
    if isinstance(data, Mapping) and not all(_is_column(values) for values in data.values()):
        parts = zip(frames.distinct_names(data), data.values(), strict=True)
        return Record(**{name: _infer_part(name, part) for name, part in parts})
    if frames.is_frame(data) or isinstance(data, Mapping | os.PathLike) or _is_table_path(data):
        return Table(_infer_columns(columns(data)))
    if isinstance(data, str):
        return Text()
    data = unboxed(data)
    if isinstance(data, Ragged) or is_ragged(data):
        return _infer_series(data)
    values, missing = rows(data)
    refuse_empty(values.size)
    if values.ndim == 1 and set(map(type, values.tolist())) == {str}:
        return Text()
    cells = _typed(values, missing)
    return Array(values.shape[1:], **_infer_cells(cells[~missing]), missing=bool(missing.any()))


def _infer_part(name: str, data: Any) -> Event:
    """The event of a part of a record, from the rows that have it."""
    if data is None or (isinstance(data, list | tuple) and data and all(row is None for row in data)):
        raise DataError(
            f"Part {name!r} is missing in every row", "a row that has it", "Declare the event: events.Record(...)"
        )
    with named(f"Part {name!r}"):
        if isinstance(data, list | tuple):
            return infer([row for row in data if row is not None])
        if isinstance(data, np.ndarray | Tensor) and data.ndim:
            values, missing = rows(data)
            gaps = missing | np.isnan(values) if values.dtype.kind == "f" else missing
            blank = gaps.reshape(len(values), -1).all(1)
            if blank.any() and not blank.all():
                return infer(values[~blank].astype(np.int64) if whole(values[~blank]) else values[~blank])
        return infer(data)


def _infer_sequences(data: Any, sequence: str | bool) -> Event:
    """A Panel of a frame or a list of frames; a Series of one array."""
    tabular = frames.is_frame(data) or is_frames(data) or isinstance(data, Mapping | os.PathLike)
    if tabular or _is_table_path(data):
        found, _ = tables(data)
        if isinstance(sequence, str):
            sequence_column(found, sequence)
        labels = sequence if isinstance(sequence, str) else None
        rest = found._replace(cells={name: cells for name, cells in found.cells.items() if name != labels})
        return Panel(_infer_columns(rest), labels)
    if isinstance(sequence, str):
        raise ParameterError(
            f"sequence={sequence!r} for a {type(data).__name__}", "a data frame or a dict of columns",
            "sequence=True reads an array as one sequence; a list of arrays needs no name",
        )  # fmt: skip
    values, missing = rows(data)
    refuse_empty(values.size)
    return Series(values.shape[1:], **_infer_cells(_typed(values, missing)))


def _infer_series(data: Any) -> Series:
    parts = (
        [data.values] if isinstance(data, Ragged) else data[:1] if isinstance(data, tuple) and len(data) == 2 else data
    )
    steps = [_typed(*rows(part)) for part in parts]
    if len({step.shape[1:] for step in steps}) > 1:
        raise ShapeError(
            f"Sequences of shapes {', '.join(str(s.shape) for s in steps[:3])}",
            "one shape for every step",
            "Check them",
        )
    values = np.concatenate(steps)
    return Series(values.shape[1:], **_infer_cells(values))


def _typed(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Numbers in their own type where nothing is missing, else as floats."""
    exact = values.dtype.kind in "iub"
    return values if exact else numbers(values, missing, np.arange(len(values)))


def _is_column(values: Any) -> bool:
    if isinstance(values, list | tuple) and any(is_array(kind) for kind in set(map(type, values))):
        return False
    with suppress(DataError):
        return not isinstance(values, str) and rows(values)[0].ndim == 1
    return False


def _is_table_path(data: Any) -> bool:
    return isinstance(data, str) and Path(data).suffix.lower() in frames.SUFFIXES


def _infer_cells(values: np.ndarray) -> dict[str, Any]:
    if values.dtype.kind == "f" or not values.size:
        return {}
    if values.dtype.kind == "b":
        return {"levels": 2}
    low, high = int(values.min()), int(values.max())
    if low < 0:
        return {"resolution": 1.0}
    if high > 1023:
        return {"support": "count"}
    return {"levels": 256 if values.dtype.itemsize == 1 and high > 127 else max(high + 1, 2)}


def _infer_columns(found: Columns) -> dict[str, Column]:
    if not found.cells:
        raise DataError("A table without columns", "at least one column", "Check how it was read or filtered")
    return {name: _infer_column(name, *cells, found.levels.get(name)) for name, cells in found.cells.items()}


def _infer_column(name: str, values: np.ndarray, missing: np.ndarray, levels: list | None) -> Column:
    values = values.astype(object) if values.dtype == bool else values
    seen = values[~missing].tolist() if values.dtype == object else values[~missing]
    seen = seen if levels is None else levels
    kinds = set(map(type, seen)) if values.dtype == object else {values.dtype.type}
    if not len(seen):
        raise DataError(
            f"Column {name!r} has no values", "at least one", "Drop the column, or declare it in events.Table"
        )
    counted = all(issubclass(kind, int | float | Decimal | np.number) for kind in kinds)
    if not (kinds <= {str, bool} or counted or (levels is not None and kinds <= {str, bool, int, float})):
        raise DataError(
            f"Column {name!r} holds {', '.join(sorted(k.__name__ for k in kinds))}", "numbers, strings or booleans",
            "Convert it first (dates to numbers, say), or drop it",
        )  # fmt: skip
    if levels is not None:
        return Category(tuple(levels))
    if kinds <= {str, bool}:
        return Category(tuple(sorted(set(seen), key=str)))
    return _infer_numbers(numbers(values, missing, np.arange(len(values)), [name]), kinds)


def _infer_numbers(cells: np.ndarray, kinds: set[type]) -> Column:
    seen = cells[~np.isnan(cells)]
    counted = len(seen) < len(cells) or all(issubclass(kind, int | np.integer) for kind in kinds)
    if not (counted and whole(seen)):
        return Real()
    distinct = np.unique(seen)
    if len(distinct) <= 20:
        return Category(tuple(int(v) for v in distinct))
    return Count() if distinct[0] >= 0 else Real(resolution=1.0)
