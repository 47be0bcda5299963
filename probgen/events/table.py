"""Rows of named columns of mixed types."""

import difflib
import math
import os
import re
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
from probgen.errors import DataError, ParameterError, ShapeError, SupportError
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
    """One of some levels (strings, numbers, booleans). Declared levels that never occur are kept.

    A numeral is another level than its number. But where every level is the text of a whole number, as in network
    files, whole numbers stand for their texts, and so does "0.0", which is what a csv makes of those beside gaps.
    """

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
        if odd := [level for level in levels if type(level) not in (str, int, float, bool)]:
            came = f"levels={levels!r:.80}: {type(odd[0]).__name__} {odd[0]!r:.40}"
            raise ParameterError(came, "strings, numbers, booleans", "Write it as text: str(level)")
        if len(set(levels)) < len(levels):
            raise ParameterError(f"levels={levels}", "each level once (1, 1.0 and True are the same)")

    def codes(self, name: str, values: np.ndarray, missing: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Positions in ``levels``, NaN where missing; an unseen level is named by row, column and value."""
        codes = self._places(values)
        if self._numerals is not None and (codes == _UNKNOWN).any():
            codes = np.where(codes == _UNKNOWN, self._numerals._places(_whole_texts(values)), codes)
        codes[missing] = math.nan
        unknown = np.flatnonzero(codes == _UNKNOWN)
        codes[[i for i in unknown if is_missing(values[i])]] = math.nan
        name_cells(
            codes == _STRANGE, values, keys, [name], "is no level", "strings, numbers or booleans",
            "Convert the column to one value a row", DataError,
        )  # fmt: skip
        name_cells(
            codes == _UNKNOWN, values, keys, [name], "is no known level", f"one of {list(self.levels)[:12]}",
            self._advice(name, values[unknown]), SupportError,
        )  # fmt: skip
        return codes

    @cached_property
    def _numerals(self) -> "Category | None":
        """The whole numbers whose texts the levels are; None where one is something else."""
        texts = all(isinstance(level, str) and _WHOLE.fullmatch(level) for level in self.levels)
        return Category(tuple(map(int, self.levels))) if texts else None

    def _advice(self, name: str, unknown: np.ndarray) -> str:
        """What to do about cells that are no level."""
        came, texts = unknown[:3].tolist(), {level.lower(): level for level in self.levels if isinstance(level, str)}
        truths = {v: texts[str(v).lower()] for v in came if isinstance(v, bool) and str(v).lower() in texts}
        if truths:
            return f"The levels are text: convert the column, say frame[{name!r}].map({truths})"
        whole = {str(int(v)) for v in came if isinstance(v, float) and v.is_integer()}
        if whole & set(texts):
            return f'The levels are text: convert the column, say frame[{name!r}].astype("Int64").astype("string")'
        if {str(v).lower() for v in came if not isinstance(v, str)} & set(texts):
            return f'The levels are text: convert the column, say frame[{name!r}].astype("string"), which keeps gaps'
        others = {str(level) for level in self.levels if not isinstance(level, str)}
        if others & {v for v in came if isinstance(v, str)}:
            return f"Such levels are no text: convert the column {name!r}"
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
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
_POINT = re.compile(r"(0|-?[1-9][0-9]*)\.0+")


def _whole_texts(values: np.ndarray) -> np.ndarray:
    """Numbers, and texts such as "3.0", as the numbers they are; everything else, truth values included, as None."""
    if values.dtype.kind in "iuf":
        return values
    return frames.objects((_whole_text(value) for value in values.tolist()), len(values))


def _whole_text(value: Any) -> Any:
    if isinstance(value, str):
        found = _POINT.fullmatch(value)
        return int(found[1]) if found else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


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

    def check(self, data: Any, partial: bool = False) -> Checked:
        """As any event's; ``partial`` takes columns that are lacking as missing in every row."""
        levels = {name: column.levels for name, column in self.columns.items() if isinstance(column, Category)}
        data = frames.read(data, self.texts) if isinstance(data, str | os.PathLike) else data
        found = columns(data, list(self.columns), levels)
        cells = self.cells(found.cells, found.keys, found.codes, partial)
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
        partial: bool = False,
    ) -> np.ndarray:
        """Checked cells (n, columns) of outside columns, given as (values, missing mask) by name, or as codes.

        Arguments:
            partial: Whether some columns, not all, may be lacking: their cells are missing.

        Raises:
            ShapeError: lacking or superfluous columns, or no rows.
            DataError, SupportError: a cell that can't be used, by row, column and value.
        """
        came = {*raw, *codes}
        lacking, extra = [c for c in self.columns if c not in came], [c for c in raw if c not in self.columns]
        if extra or (lacking and not (partial and len(lacking) < len(self.columns))):
            raise self._other_columns(lacking, extra, partial)
        refuse_empty(len(keys))
        codes = {**codes, **{name: np.full(len(keys), math.nan) for name in lacking}}
        cells = np.stack(
            [codes[name] if name in codes else self._column(name, *raw[name], keys) for name in self.columns], axis=1
        )
        if not self.missing:
            name_cells(
                np.isnan(cells), cells, keys, list(self.columns), "is missing", "a value in every cell",
                "Declare missing=True in the event, impute, or drop the rows", DataError,
            )  # fmt: skip
        return cells

    def _other_columns(self, lacking: list[str], extra: list[str], partial: bool) -> ShapeError:
        folded = {c.casefold().strip(): c for c in extra}
        close = {c: difflib.get_close_matches(c.casefold(), folded, n=1) for c in lacking}
        near = {c: folded[found[0]] for c, found in close.items() if found}
        known = "[c for c in frame if c in model.event.columns]" if partial else "[*model.event.columns]"
        do = f"Choose them: frame[{known}]"
        if lacking and not partial:
            do = "Add them, empty (None) where nothing is known, if the family takes gaps"
        if partial and not extra:
            do = "Give at least one of them"
        if unnamed := [c for c in extra if c == "" or c.startswith("Unnamed: ")]:
            do = f"{unnamed[0]!r} looks like an index: leave it out, as pandas' to_csv(..., index=False) does"
        if not near and len(extra) == 1 and (";" in extra[0] or "\t" in extra[0]):
            do = "Separate the cells of a csv by commas"
        if near:
            do = f"Perhaps {next(iter(near.values()))!r} is the column {next(iter(near))!r}"
        return ShapeError(
            f"A table of other columns: lacks {_some(lacking)}, has {_some(extra)} besides",
            f"{'some of' if partial else 'exactly'} the columns {_some([*self.columns])}",
            do,
        )

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
        """Levels and numbers in the user's form; "torch" gives a NumPy array where levels are no numbers.

        Arrow has no type for levels of which some are text and others not: such a table comes as a pandas frame.
        """
        form = "pandas" if form == "pyarrow" and any(map(_is_mixed, self.columns.values())) else form
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


def _some(names: list[str]) -> str:
    """At most eight names, and how many there are."""
    return f"{names}" if len(names) <= 8 else f"{names[:8]} and {len(names) - 8} more"


def _is_mixed(column: Column) -> bool:
    kinds = set(map(type, column.levels)) if isinstance(column, Category) else {float}
    return len(kinds) > 1 and kinds != {int, float}


def _with_nan(values: np.ndarray) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(values, dtype=np.float64), math.nan)


def _outside_column(column: Column, cells: np.ndarray) -> np.ndarray:
    if isinstance(column, Category):
        return column.cells(cells)
    missing = np.isnan(cells)
    if missing.any():
        return np.ma.MaskedArray(cells, missing)
    return cells.astype(np.int64) if isinstance(column, Count) else cells
