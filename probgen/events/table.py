"""Rows of named columns of mixed types."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ParameterError, ShapeError, SupportError, nearest
from probgen.events.array import Array, Support
from probgen.events.cells import float_cells, is_missing, name_cells, row_hash, to_form, whole
from probgen.events.event import Checked, Event, refuse_empty
from probgen.logprob import Fingerprint


@dataclass(frozen=True, repr=False)
class Column:
    """One column of a Table."""

    def __repr__(self) -> str:
        return Event.__repr__(self)  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False)
class Real(Column):
    """A real column; ``resolution`` for one rounded to multiples of a step (0.1 cm)."""

    unit: str = ""
    resolution: float | None = None
    positive: bool = False


@dataclass(frozen=True, repr=False)
class Count(Column):
    """Whole numbers from 0."""


@dataclass(frozen=True, repr=False)
class Category(Column):
    """One of some levels (strings, numbers, booleans). Declared levels that never occur are kept."""

    levels: tuple = ()

    def __post_init__(self) -> None:
        levels = tuple(level.item() if isinstance(level, np.generic) else level for level in self.levels)
        object.__setattr__(self, "levels", levels)
        if len(set(levels)) < len(levels) or not levels:
            raise ParameterError(f"levels={levels}", "at least one level, each once")

    def codes(self, name: str, values: np.ndarray, missing: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Positions in ``levels``, NaN where missing; an unseen level is named by row, column and value."""
        place = {level: float(i) for i, level in enumerate(self.levels)}
        distinct, inverse = _distinct(np.where(missing, None, values) if missing.any() else values)
        table = np.array([math.nan if is_missing(v) else place.get(v, -1.0) for v in distinct])
        codes = table[inverse]
        name_cells(
            codes == -1, values, keys, [name], "is no known level", f"one of {list(self.levels)[:12]}",
            "Fit on data that hold it, or declare it in events.Category(levels)", SupportError,
        )  # fmt: skip
        return codes


def _distinct(values: np.ndarray) -> tuple[list, np.ndarray]:
    if values.dtype != object:
        distinct, inverse = np.unique(values, return_inverse=True)
        return distinct.tolist(), inverse.reshape(-1)
    place: dict[Any, int] = {}
    inverse = np.array([place.setdefault(v, len(place)) for v in values.tolist()], dtype=np.int64)
    return list(place), inverse


@dataclass(frozen=True, repr=False)
class Table(Event):
    """Rows of named columns of mixed types: float64 (n, columns), category codes, NaN = missing.

    Arguments:
        columns: By name, Real, Count or Category.
        missing: Whether cells may be missing.
    """

    columns: Mapping[str, Column] = field(default_factory=dict)
    missing: bool = True

    def __post_init__(self) -> None:
        if not self.columns or not all(isinstance(c, Column) for c in self.columns.values()):
            raise ParameterError(f"columns={self.columns!r}", "a dict of name: Real(), Count() or Category(levels)")
        object.__setattr__(self, "columns", dict(self.columns))

    @property
    def shape(self) -> tuple[int]:
        return (len(self.columns),)

    @property
    def measure(self) -> str:
        return " x ".join(self._measure_of(name, column) for name, column in sorted(self.columns.items()))

    @staticmethod
    def _measure_of(name: str, column: Column) -> str:
        if isinstance(column, Real):
            step = f" {column.resolution:g}" if column.resolution else ""
            unit = f" {column.unit}" if column.unit else ""
            return f"{'counting' if step else 'lebesgue'}({name}{step}{unit})"
        return f"counting({name})"

    def check(self, data: Any) -> Checked:
        raw, keys, form = _columns(data, list(self.columns))
        lacking, extra = [c for c in self.columns if c not in raw], [c for c in raw if c not in self.columns]
        if lacking or extra:
            raise ShapeError(
                f"A table with columns {list(raw)}: lacks {lacking}, has {extra} besides",
                f"exactly the columns {list(self.columns)}",
                "Choose them: frame[list(model.event.columns)]" if not lacking else nearest(lacking[0], raw),
            )
        refuse_empty(len(keys))
        cells = np.stack([self._column(name, *raw[name], keys) for name in self.columns], axis=1)
        if not self.missing:
            name_cells(
                np.isnan(cells), cells, keys, list(self.columns), "is missing", "a value in every cell",
                "Declare missing=True in the event, impute, or drop the rows", DataError,
            )  # fmt: skip
        about = Fingerprint(
            keys, row_hash(cells), (~np.isnan(cells)).sum(axis=1), repr(self), self.measure, whole(cells)
        )
        return Checked(torch.from_numpy(cells), about, form)

    def _column(self, name: str, values: np.ndarray, missing: np.ndarray, keys: np.ndarray) -> np.ndarray:
        column = self.columns[name]
        if isinstance(column, Category):
            return column.codes(name, values, missing, keys)
        numbers = float_cells(np.where(missing, None, values) if values.dtype == object else values, [name], keys)[0]
        event = self.cell_event(column)
        event.check_cells(np.where(missing, math.nan, numbers)[:, None], keys, [name])
        return np.where(missing, math.nan, numbers)

    @staticmethod
    def cell_event(column: Column) -> Array:
        """One numeric column as an Array event of single numbers."""
        if isinstance(column, Real):
            support: Support = "positive" if column.positive else "real"
            return Array((), support, resolution=column.resolution, unit=column.unit, missing=True)
        return Array((), "count", missing=True)

    def ties(self, x: Tensor) -> str | None:
        """A warning when a real column looks rounded and no resolution is declared."""
        for i, (name, column) in enumerate(self.columns.items()):
            seen = x[~x[:, i].isnan(), i]
            if isinstance(column, Real) and (warning := self.cell_event(column).ties(seen)):
                return warning.replace("column 0", f"column {name!r}")
        return None

    def restore(self, x: Tensor, form: str = "pandas") -> Any:
        cells = x.detach().cpu().numpy()
        named = {name: _outside_column(column, cells[:, i]) for i, (name, column) in enumerate(self.columns.items())}
        if form not in ("numpy", "torch", "list"):
            return named if form == "dict" else frames.native(named, form)
        columns = [np.ma.filled(v.astype(object), None) if v.dtype.kind not in "iuf" else _with_nan(v) for v in named.values()]
        return to_form(np.stack(columns, axis=1), form)


def _with_nan(values: np.ndarray) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(values, dtype=np.float64), math.nan)


def _outside_column(column: Column, cells: np.ndarray) -> Any:
    missing = np.isnan(cells)
    if isinstance(column, Category):
        levels = np.array(column.levels)
        return (
            np.ma.MaskedArray(levels[np.where(missing, 0, cells).astype(int)], missing)
            if missing.any()
            else levels[cells.astype(int)]
        )
    if isinstance(column, Count) and not missing.any():
        return cells.astype(np.int64)
    return np.ma.MaskedArray(cells, missing) if missing.any() else cells


def _columns(
    data: Any, names: Sequence[str] | None
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray, str]:
    """Any table as named (values, missing) columns, row keys and form."""
    if isinstance(data, str | os.PathLike):
        data, form = frames.read(data), "pyarrow"
    elif isinstance(data, Mapping):
        data, form = frames.table(data), "dict"
    elif frames.is_frame(data):
        form = frames.form(data)
    else:
        return _unnamed_columns(data, names)
    values, keys, _ = frames.columns(data)
    return values, keys, form


def _unnamed_columns(data: Any, names: Sequence[str] | None) -> tuple[dict, np.ndarray, str]:
    form = "torch" if isinstance(data, Tensor) else "numpy"
    try:
        array = np.asarray(data.detach().cpu() if isinstance(data, Tensor) else data)
    except ValueError as problem:
        raise ShapeError("Rows of unequal length for a table", f"rows of the columns {names}") from problem
    if array.ndim != 2 or names is None or array.shape[1] != len(names):
        raise ShapeError(
            f"{type(data).__name__} of shape {array.shape} for a table of columns {names}",
            "a data frame, a dict of columns, a csv or Parquet path, or an array (n, columns)",
            "Name the columns: pandas.DataFrame(x, columns=[...])",
        )
    masked = np.ma.getmaskarray(data) if isinstance(data, np.ma.MaskedArray) else np.zeros(array.shape, dtype=bool)
    columns = {name: (array[:, i], masked[:, i]) for i, name in enumerate(names)}
    return columns, np.arange(len(array)), form
