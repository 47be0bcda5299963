"""The event that fits some data."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ShapeError
from probgen.events.array import Array
from probgen.events.cells import Ragged, float_cells, whole
from probgen.events.event import Event, refuse_empty
from probgen.events.record import Record
from probgen.events.sequences import Series, Text
from probgen.events.table import Category, Column, Count, Real, Table


def infer(data: Any) -> Event:
    """The event that fits some data; its repr says how every column is read, and can be edited.

    Arrays: whole-number types are levels 0..max (256 for bytes above 127; counts above 1023; steps of 1 where
    negative); floats are real. Frames and dicts of columns: strings, booleans and categoricals are categories; whole
    numbers are categories up to 20 distinct values, else counts (steps of 1 where negative); the rest is real. Lists
    of strings are text, lists of unequal arrays are series, other dicts are records.
    """
    if isinstance(data, Mapping) and not all(_is_column(values) for values in data.values()):
        return Record(**{str(name): infer(part) for name, part in data.items()})
    if frames.is_frame(data) or isinstance(data, Mapping | os.PathLike) or _is_table_path(data):
        return _infer_table(data)
    if isinstance(data, str) or (isinstance(data, Sequence) and data and all(isinstance(v, str) for v in data)):
        return Text()
    if isinstance(data, Ragged) or (isinstance(data, list) and data and len({np.shape(v) for v in data}) > 1):
        values = (
            data.values.numpy() if isinstance(data, Ragged) else np.concatenate([np.asarray(part) for part in data])
        )
        return Series(values.shape[1:], **_infer_cells(values))
    if isinstance(data, np.ma.MaskedArray):
        return replace(infer(data.compressed()), shape=data.shape[1:], missing=bool(np.ma.getmaskarray(data).any()))
    array = np.asarray(data.detach().cpu() if isinstance(data, Tensor) else data)
    if array.ndim == 0:
        raise ShapeError(f"A single {type(data).__name__}", "rows of observations: an array (n, ...), a frame, a list")
    refuse_empty(array.size)
    cells = array if array.dtype.kind in "iubf" else float_cells(data)[0]
    return Array(array.shape[1:], **_infer_cells(cells))


def _is_column(values: Any) -> bool:
    return not isinstance(values, str) and np.ndim(values) == 1


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


def _infer_table(data: Any) -> Table:
    if isinstance(data, str | os.PathLike):
        data = frames.read(data)
    raw, _, levels = frames.columns(frames.table(data) if isinstance(data, Mapping) else data)
    if not raw:
        raise DataError("A table without columns", "at least one column")
    return Table({name: _infer_column(name, *cells, levels.get(name)) for name, cells in raw.items()})


def _infer_column(name: str, values: np.ndarray, missing: np.ndarray, levels: list | None) -> Column:
    seen = values[~missing]
    if levels is not None:
        return Category(tuple(levels))
    if not len(seen):
        raise DataError(
            f"Column {name!r} has no values", "at least one", "Drop the column, or declare it in events.Table"
        )
    if values.dtype == object:
        kinds = {type(v) for v in seen.tolist()}
        if not kinds <= {str, bool}:
            raise DataError(
                f"Column {name!r} holds {', '.join(sorted(k.__name__ for k in kinds))}", "numbers, strings or booleans",
                "Convert it first (dates to numbers, say), or drop it",
            )  # fmt: skip
        return Category(tuple(sorted(set(seen.tolist()), key=str)))
    if values.dtype.kind == "f" and not (missing.any() and whole(seen)):
        return Real()
    distinct = np.unique(seen)
    if len(distinct) <= 20:
        return Category(tuple(int(v) for v in distinct))
    return Count() if distinct[0] >= 0 else Real(resolution=1.0)
