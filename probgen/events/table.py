"""Rows of named columns of mixed types."""

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ParameterError, ShapeError, SupportError, nearest
from probgen.events.array import Array, Support, exact, positive_step
from probgen.events.cells import row_hash, to_form, whole
from probgen.events.event import Checked, Event, refuse_empty
from probgen.events.outside import columns, is_missing, name_cells, numbers
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", positive_step(self.resolution))


@dataclass(frozen=True, repr=False)
class Count(Column):
    """Whole numbers from 0."""


@dataclass(frozen=True, repr=False)
class Category(Column):
    """One of some levels (strings, numbers, booleans). Declared levels that never occur are kept."""

    levels: tuple = ()

    def __post_init__(self) -> None:
        if isinstance(self.levels, str | bytes) or not isinstance(self.levels, Iterable):
            raise ParameterError(f"levels={self.levels!r}", "a tuple of levels, such as ('no', 'yes')")
        levels = tuple(level.item() if isinstance(level, np.generic) else level for level in self.levels)
        object.__setattr__(self, "levels", levels)
        if not levels or any(map(is_missing, levels)) or not all(map(_is_hashable, levels)):
            raise ParameterError(
                f"levels={levels}", "at least one level: strings, numbers, booleans", "Leave None and NaN out"
            )
        if len(set(levels)) < len(levels):
            raise ParameterError(f"levels={levels}", "each level once (1, 1.0 and True are the same)")

    def codes(self, name: str, values: np.ndarray, missing: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Positions in ``levels``, NaN where missing; an unseen level is named by row, column and value."""
        codes = self._places(values)
        codes[missing] = math.nan
        unknown = np.flatnonzero(codes == _UNKNOWN)
        codes[[i for i in unknown if is_missing(values[i])]] = math.nan
        name_cells(
            codes == _STRANGE, values, keys, [name], "is no level", "strings, numbers or booleans",
            "Convert the column to one value a row", DataError,
        )  # fmt: skip
        name_cells(
            codes == _UNKNOWN, values, keys, [name], "is no known level", f"one of {list(self.levels)[:12]}",
            self._advice(values[unknown]), SupportError,
        )  # fmt: skip
        return codes

    def _advice(self, unknown: np.ndarray) -> str:
        """What to do about cells that are no level."""
        texts = {str(v).lower() for v in unknown[:3].tolist() if not isinstance(v, str)}
        if texts & {level.lower() for level in self.levels if isinstance(level, str)}:
            return "The levels are text: convert the column, say frame.astype(str)"
        return "Fit on data that hold it, or declare it in events.Category(levels)"

    def _places(self, values: np.ndarray) -> np.ndarray:
        """Positions of cells in ``levels``, or what is wrong with them."""
        place, n = {level: float(i) for i, level in enumerate(self.levels)}, len(values)
        if values.dtype.kind in "biuf" and all(isinstance(v, int | float) and abs(v) < frames.EXACT for v in place):
            order = sorted(place)
            near = np.searchsorted(order, cells := values.astype(np.float64)).clip(max=len(order) - 1)
            return np.where(
                np.array(order, dtype=np.float64)[near] == cells, np.array([*map(place.get, order)])[near], _UNKNOWN
            )
        with suppress(TypeError, ValueError):
            return np.fromiter(map(place.get, values.tolist(), repeat(_UNKNOWN)), dtype=np.float64, count=n)
        return np.fromiter((_place(place, value) for value in values.tolist()), dtype=np.float64, count=n)

    def cells(self, codes: np.ndarray) -> np.ndarray:
        """The levels at some codes, masked where NaN."""
        kinds = set(map(type, self.levels))
        typed = len(kinds) == 1 and (
            kinds <= {bool, float} or (kinds == {int} and max(map(abs, self.levels)) <= frames.EXACT)
        )
        levels = np.array(self.levels) if typed else frames.objects(self.levels, len(self.levels))
        missing = np.isnan(codes)
        cells = levels[np.where(missing, 0, codes).astype(int)]
        return np.ma.MaskedArray(cells, missing) if missing.any() else cells


def _is_hashable(value: Any) -> bool:
    with suppress(TypeError):
        return isinstance(hash(value), int)
    return False


_UNKNOWN, _STRANGE = -1.0, -2.0


def _place(places: dict[Any, float], value: Any) -> float:
    try:
        return places.get(value, _UNKNOWN)
    except (TypeError, ValueError):  # cells that can't be hashed or compared
        return _STRANGE


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
        named = isinstance(self.columns, Mapping) and all(isinstance(name, str) for name in self.columns)
        if not self.columns or not named or not all(isinstance(c, Column) for c in self.columns.values()):
            raise ParameterError(f"columns={self.columns!r}", "a dict of name: Real(), Count() or Category(levels)")
        object.__setattr__(self, "columns", dict(self.columns))

    @property
    def texts(self) -> list[str]:
        """Columns whose levels are all text: in a csv they stay so, however much TRUE or 1 look like something else."""
        return [
            name for name, column in self.columns.items()
            if isinstance(column, Category) and all(isinstance(level, str) for level in column.levels)
        ]  # fmt: skip

    @cached_property
    def _text(self) -> str:
        return repr(self)  # of many columns it costs more than a check of few rows

    @property
    def shape(self) -> tuple[int]:
        return (len(self.columns),)

    @property
    def measure(self) -> str:
        return " x ".join(self._measure_of(name, column) for name, column in sorted(self.columns.items()))

    @staticmethod
    def _measure_of(name: str, column: Column) -> str:
        if isinstance(column, Real):
            step = f" {exact(column.resolution)}" if column.resolution else ""
            unit = f" {column.unit}" if column.unit else ""
            return f"{'counting' if step else 'lebesgue'}({name}{step}{unit})"
        return f"counting({name})"

    def check(self, data: Any) -> Checked:
        levels = {name: column.levels for name, column in self.columns.items() if isinstance(column, Category)}
        data = frames.read(data, self.texts) if isinstance(data, str | os.PathLike) else data
        found = columns(data, list(self.columns), levels)
        cells = self.cells(found.cells, found.keys, found.codes)
        seen = (~np.isnan(cells)).sum(axis=1)
        about = Fingerprint(
            found.keys, lambda: row_hash(cells), seen, self._text, self.measure,
            bool(seen.any()) if len(levels) == len(self.columns) else whole(cells),  # codes are whole
        )  # fmt: skip
        return Checked(torch.from_numpy(cells), about, found.form)

    def cells(
        self,
        raw: Mapping[str, tuple[np.ndarray, np.ndarray]],
        keys: np.ndarray,
        codes: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> np.ndarray:
        """Checked cells (n, columns) of outside columns, given as (values, missing mask) by name, or as codes.

        Raises:
            ShapeError: lacking or superfluous columns, or no rows.
            DataError, SupportError: a cell that can't be used, by row, column and value.
        """
        came = [*raw, *codes]
        lacking, extra = [c for c in self.columns if c not in came], [c for c in raw if c not in self.columns]
        if lacking or extra:
            raise ShapeError(
                f"A table with columns {came}: lacks {lacking}, has {extra} besides",
                f"exactly the columns {list(self.columns)}",
                "Choose them: frame[list(model.event.columns)]" if not lacking else nearest(lacking[0], came),
            )
        refuse_empty(len(keys))
        cells = np.stack(
            [codes[name] if name in codes else self._column(name, *raw[name], keys) for name in self.columns], axis=1
        )
        if not self.missing:
            name_cells(
                np.isnan(cells), cells, keys, list(self.columns), "is missing", "a value in every cell",
                "Declare missing=True in the event, impute, or drop the rows", DataError,
            )  # fmt: skip
        return cells

    def _column(self, name: str, values: np.ndarray, missing: np.ndarray, keys: np.ndarray) -> np.ndarray:
        column = self.columns[name]
        if isinstance(column, Category):
            return column.codes(name, values, missing, keys)
        cells = numbers(values, missing, keys, [name])
        self.cell_event(column).check_cells(cells[:, None], keys, [name])
        return cells

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
            if isinstance(column, Real) and (warning := self.cell_event(column).ties(x[~x[:, i].isnan(), i])):
                return warning.replace("column 0", f"column {name!r}")
        return None

    def restore(self, x: Tensor, form: str = "pandas") -> Any:
        """Levels and numbers in the user's form; "torch" gives a NumPy array where levels are no numbers."""
        if form not in ("numpy", "torch", "list", "dict"):
            return frames.native(self._coded(x), form)
        found = self.outside(x)
        if form == "dict":
            return found
        if all(values.dtype.kind in "iuf" for values in found.values()):
            return to_form(np.stack([_with_nan(values) for values in found.values()], axis=1), form)
        return to_form(np.stack([frames.objects(v.tolist(), len(v)) for v in found.values()], axis=1), form)

    def _coded(self, x: Tensor) -> dict[str, Any]:
        """As ``outside``, categories as they stand in a frame."""
        cells = np.ascontiguousarray(x.detach().cpu().numpy().T)
        return {
            name: frames.Coded(own, column.levels) if isinstance(column, Category) else _outside_column(column, own)
            for own, (name, column) in zip(cells, self.columns.items(), strict=True)
        }

    def outside(self, x: Tensor) -> dict[str, np.ndarray]:
        """Levels and numbers of checked cells (n, columns), a masked array (n,) a column."""
        cells = np.ascontiguousarray(x.detach().cpu().numpy().T)
        return {
            name: _outside_column(column, own) for own, (name, column) in zip(cells, self.columns.items(), strict=True)
        }


def _with_nan(values: np.ndarray) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(values, dtype=np.float64), math.nan)


def _outside_column(column: Column, cells: np.ndarray) -> np.ndarray:
    if isinstance(column, Category):
        return column.cells(cells)
    missing = np.isnan(cells)
    if missing.any():
        return np.ma.MaskedArray(cells, missing)
    return cells.astype(np.int64) if isinstance(column, Count) else cells
