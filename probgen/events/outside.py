"""Outside data as NumPy: whatever comes in, plain values and a mask of what is missing."""

import math
import numbers as numeric
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ProbgenError, ShapeError
from probgen.events.cells import Ragged
from probgen.frames import is_missing

__all__ = [
    "Columns", "blanked", "columns", "float_cells", "from_tensor", "is_array", "is_missing", "is_ragged", "name_cells",
    "named", "numbers", "plain", "rows", "unboxed",
]  # fmt: skip

_LISTS = (list, tuple, range)
_DEEPEST = 30  # NumPy ends at 64 dimensions
_WANTED = "rows of observations: an array (n, ...), a frame, a list"


@contextmanager
def named(what: str) -> Iterator[None]:
    """Says in which part of the data an error lies."""
    try:
        yield
    except ProbgenError as problem:
        raise type(problem)(f"{what}: {problem.came}", problem.wanted, problem.do) from problem


def plain(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """(values, missing mask) of one shape: booleans and real numbers as they are, everything else as objects.

    Takes arrays, tensors, columns of data frames, and nested lists of these; any other thing is one object, shape ().
    The values may share memory with the data.
    """
    if isinstance(data, Ragged):
        raise ShapeError("Rows of varying length (a Ragged)", "one shape for every row", "events.Series takes them")
    with frames.reading(data):
        if isinstance(data, Tensor):
            return _from_numpy(from_tensor(data))
        if isinstance(data, _LISTS):
            return _from_list(data)
        column = frames.column(data)
        return _from_numpy(np.asanyarray(data)) if column is None else column[:2]


def rows(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """As ``plain``, of at least one dimension."""
    values, missing = plain(data)
    if not values.ndim:
        raise ShapeError(f"A single {type(data).__name__}", _WANTED, "For one observation add an axis: [x]")
    return values, missing


def from_tensor(data: Tensor) -> np.ndarray:
    """A tensor of any layout and device as an array; it may share memory."""
    data = data.detach()
    dense = (data if data.layout == torch.strided else data.to_dense()).cpu().resolve_conj().resolve_neg()
    known = (torch.float16, torch.float32, torch.float64)
    return (dense.to(torch.float64) if dense.is_floating_point() and dense.dtype not in known else dense).numpy()


def _from_numpy(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, missing = np.ma.getdata(array), np.zeros(array.shape, dtype=bool)
    if isinstance(array, np.ma.MaskedArray) and not array.dtype.names:
        missing = np.ma.getmaskarray(array)
    if values.dtype == np.longdouble:
        with np.errstate(over="ignore"):
            values = values.astype(np.float64)
    if values.dtype.kind in "biuf":
        return values, missing
    if values.dtype.kind in "mM":  # astype would give bare integers
        values = frames.objects(values.reshape(-1), values.size).reshape(values.shape)
    values = values.astype(object)
    return values, missing | _missing(values.reshape(-1).tolist()).reshape(values.shape)


def _missing(cells: list) -> np.ndarray:
    if set(map(type, cells)) <= {str, bool, int}:
        return np.zeros(len(cells), dtype=bool)
    return np.fromiter(map(is_missing, cells), dtype=bool, count=len(cells))


def _from_list(data: Sequence) -> tuple[np.ndarray, np.ndarray]:
    shape, cells = [len(data)], list(data)
    while (kinds := set(map(type, cells))) and all(issubclass(kind, _LISTS) for kind in kinds):
        lengths = set(map(len, cells))
        if len(lengths) > 1 or len(shape) > _DEEPEST:
            raise _unequal(f"Rows of unequal length ({min(lengths)} to {max(lengths)})")
        shape.append(lengths.pop())
        cells = list(chain.from_iterable(cells))
    if kinds and all(map(is_array, kinds)):
        values, missing = _stack(cells)
    else:
        values, missing = _from_cells(cells, kinds)
    return values.reshape(*shape, *values.shape[1:]), missing.reshape(*shape, *values.shape[1:])


def _stack(cells: list) -> tuple[np.ndarray, np.ndarray]:
    parts = [plain(cell) for cell in cells]
    if len(shapes := {values.shape for values, _ in parts}) > 1:
        raise _unequal(f"Rows of unequal length or shape ({', '.join(map(str, sorted(shapes)[:3]))})")
    return np.stack([values for values, _ in parts]), np.stack([missing for _, missing in parts])


def _unequal(came: str) -> DataError:
    return DataError(came, "one shape for every row", "For sequences use events.Series; else pad or cut the rows")


def _from_cells(cells: list, kinds: set[type]) -> tuple[np.ndarray, np.ndarray]:
    """A flat list; numbers beside other things stay numbers."""
    if all(issubclass(kind, int | float | np.bool_ | np.number) and kind is not np.timedelta64 for kind in kinds):
        return _from_numpy(np.asarray(cells))
    cells = [cell.item() if isinstance(cell, Tensor) and not cell.ndim else cell for cell in cells]
    return frames.objects(cells, len(cells)), _missing(cells)


def is_array(kind: type) -> bool:
    """Whether things of this type have rows: arrays, tensors, lists, columns of data frames."""
    if issubclass(kind, np.ma.core.MaskedConstant):
        return False
    foreign = kind.__module__.partition(".")[0] in ("pandas", "polars", "pyarrow") and hasattr(kind, "__len__")
    return issubclass(kind, (*_LISTS, np.ndarray, Tensor)) or foreign


def unboxed(data: Any) -> Any:
    """An object array of arrays as the list it stands for; anything else as it is."""
    boxed = isinstance(data, np.ndarray) and data.dtype == object and data.ndim == 1 and len(data)
    return list(data) if boxed and all(map(is_array, set(map(type, data.tolist())))) else data


def is_ragged(data: Any) -> bool:
    """Whether this is a list of arrays or lists of several lengths."""
    if not isinstance(data, list | tuple) or not data or not all(map(is_array, set(map(type, data)))):
        return False
    return len({tuple(getattr(part, "shape", ())) or _length(part) for part in data}) > 1


def _length(part: Any) -> tuple[int, ...]:
    return (len(part),) if getattr(part, "ndim", 1) else ()


def float_cells(data: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """Any array-like or frame as (float64 array of its own, row keys, form); missing cells are NaN.

    Raises:
        DataError: naming the first cell that is no number.
    """
    if frames.is_frame(data):
        found, keys, _ = frames.columns(data)
        cells = [numbers(values, missing, keys, [name]) for name, (values, missing) in found.items()]
        return np.stack(cells, axis=1) if cells else np.empty((len(keys), 0)), keys, frames.form(data)
    values, missing = rows(data)
    keys = frames.keys(data, len(values))
    return numbers(values, missing, keys), keys, _form(data)


def _form(data: Any) -> str:
    return "torch" if isinstance(data, Tensor) else "list" if isinstance(data, list | tuple) else "numpy"


def numbers(values: np.ndarray, missing: np.ndarray, keys: Any, names: Sequence[str] | None = None) -> np.ndarray:
    """Plain values as float64, NaN where missing; text is refused by name even where it spells a number."""
    if values.dtype == object and values.size:
        return _parse(blanked(values, missing).reshape(len(values), -1), keys, names).reshape(values.shape)
    cells = np.array(values, dtype=np.float64, order="C")
    cells[missing] = math.nan
    return cells


def blanked(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Values as objects, None where missing."""
    cells = values.astype(object)
    cells[missing] = None
    return cells


def _parse(values: np.ndarray, keys: Any, names: Sequence[str] | None) -> np.ndarray:
    if set(map(type, values.reshape(-1).tolist())) <= {bool, int, float, type(None)}:
        with suppress(OverflowError):
            return values.astype(np.float64)
    cells, bad = np.full(values.shape, math.nan), np.zeros(values.shape, dtype=bool)
    for place, value in np.ndenumerate(values):
        if value is not None:
            number = _real(value)
            cells[place], bad[place] = (math.nan, True) if number is None else (number, False)
    name_cells(
        bad, values, keys, names, "is no real number", "numbers",
        "Convert the column (dates to days, say), or declare it in events.Table: strings become categories", DataError,
    )  # fmt: skip
    return cells


def _real(value: Any) -> float | None:
    if isinstance(value, np.timedelta64) or not isinstance(value, numeric.Real | Decimal | np.bool_):
        return None
    try:
        with np.errstate(over="ignore"):
            return float(value)
    except OverflowError:
        return None


def name_cells(
    bad: np.ndarray,
    values: np.ndarray,
    keys: Any,
    names: Sequence[str] | None,
    problem: str,
    wanted: str,
    do: str,
    error: type[DataError],
) -> None:
    """Raises an error that names the first bad cells (row, column, value) and counts them all."""
    if not bad.any():
        return
    bad, values = bad.reshape(len(bad), -1), values.reshape(len(bad), -1)
    places = np.argwhere(bad)
    shown = [
        f"row {keys[i]}, column {names[j] if names else j}: {_value(values[i, j])}" if values.shape[1] > 1 or names
        else f"row {keys[i]}: {_value(values[i, j])}"
        for i, j in places[:3]
    ]  # fmt: skip
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    raise error(f"{'; '.join(shown)}{more} {problem}", wanted, do)


def _value(value: Any) -> str:
    """A cell in a message: short, whatever it is."""
    try:
        scalar = isinstance(value, np.generic) and value.dtype.kind in "biufU"
        text = repr(value.item() if scalar else value)
    except Exception:  # the repr of a foreign object
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


class Columns(NamedTuple):
    """A table as NumPy columns: (values, missing) and declared categories by name, row keys, form.

    ``codes`` are the columns that stand as positions in their levels already, float64 (n,); they have no ``cells``.
    """

    cells: dict[str, tuple[np.ndarray, np.ndarray]]
    keys: np.ndarray
    levels: dict[str, list]
    form: str
    codes: Mapping[str, np.ndarray] = MappingProxyType({})


def columns(
    data: Any, names: Sequence[str] | None = None, levels: Mapping[str, Sequence[Any]] | None = None
) -> Columns:
    """Any table, a list of dicts (one a row) included.

    Arguments:
        names: Of the columns of an array.
        levels: Of columns that may come as codes.
    """
    if isinstance(data, str | os.PathLike):
        data = frames.read(data)
    if isinstance(data, list | tuple) and data and all(isinstance(row, Mapping) for row in data):
        data = {name: [row.get(name) for row in data] for name in dict.fromkeys(chain.from_iterable(data))}
    if isinstance(data, Mapping):
        return _from_mapping(data)
    if frames.is_frame(data):
        cells, keys, declared, codes = frames.coded(data, levels or {})
        form = frames.CATEGORICAL if frames.categorical(data, levels or ()) else frames.form(data)
        return Columns(cells, keys, declared, form, codes)
    values, missing = rows(data)
    if values.ndim != 2 or names is None or values.shape[1] != len(names):
        raise ShapeError(
            f"{type(data).__name__} of shape {values.shape} for a table" + (f" of columns {names}" if names else ""),
            "a data frame, a dict of columns, a list of dicts, a csv or Parquet path, or an array (n, columns)",
            "A row of a frame: series.to_frame().T"
            if type(data).__name__ == "Series"
            else "Name the columns: pandas.DataFrame(x, columns=[...])",
        )
    cells = {name: (values[:, i], missing[:, i]) for i, name in enumerate(names)}
    return Columns(cells, np.arange(len(values)), {}, _form(data))


def _from_mapping(data: Mapping) -> Columns:
    cells: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    levels: dict[str, list] = {}
    for name, column in zip(frames.distinct_names(data), data.values(), strict=True):
        with named(f"Column {name!r}"):
            values, missing, declared = frames.column(column) or (*plain(column), None)
            if values.ndim != 1:
                came = f"a {type(column).__name__} of shape {values.shape}"
                raise ShapeError(came, "one value a row, shape (n,)", "Give one list or array a column")
        cells[name] = values, missing
        levels |= {} if declared is None else {name: declared}
    sizes = {name: len(values) for name, (values, _) in cells.items()}
    if len(set(sizes.values())) > 1:
        raise ShapeError(f"Columns of {sizes} rows", "the same number of rows in each", "Check how they were read")
    return Columns(cells, np.arange(max(sizes.values(), default=0)), levels, "dict")
