"""Frames and columns of other libraries as NumPy: values, what is missing, codes of levels."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import numpy as np

from probgen.errors import DataError, ProbgenError

__all__ = [
    "EXACT", "categorical", "coded", "column", "columns", "distinct_names", "form", "is_frame", "is_missing", "keys",
    "objects", "reading",
]  # fmt: skip

_PLAIN = {"numpy", "torch", "builtins", "pathlib"}
EXACT = 2**53  # whole numbers up to here are floats without loss


def is_frame(data: Any) -> bool:
    """Whether this is a data frame that narwhals knows: pandas, polars, pyarrow, modin, cudf."""
    if form(data) in _PLAIN:
        return False
    from narwhals import dependencies as known

    return known.is_into_dataframe(data) or known.is_into_lazyframe(data) or _is_batch(data)


def _is_batch(data: Any) -> bool:
    return form(data) == "pyarrow" and type(data).__name__ == "RecordBatch"


def form(data: Any) -> str:
    """The library a frame comes from: "pandas", "polars", "pyarrow"."""
    return type(data).__module__.partition(".")[0]


def categorical(frame: Any, names: Iterable[str]) -> bool:
    """Whether these columns of a frame are there, and are all pandas categoricals."""
    if form(frame) != "pandas":
        return False
    kinds = {str(name): type(kind).__name__ for name, kind in zip(frame.columns, frame.dtypes, strict=True)}
    asked = [kinds.get(name) for name in names]
    return bool(asked) and set(asked) == {"CategoricalDtype"}


def is_missing(value: Any) -> bool:
    """None, NaN, NaT, pandas' NA and NumPy's masked; a datetime64 never is."""
    if value is None or value is np.ma.masked:
        return True
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    return value.is_nan() if isinstance(value, Decimal) else type(value).__name__ in ("NAType", "NaTType")


def objects(values: Iterable[Any], n: int) -> np.ndarray:
    """n values as they are, shape (n,), even where they are sequences themselves."""
    return np.fromiter(values, dtype=object, count=n)


@contextmanager
def reading(data: Any) -> Iterator[None]:
    """Foreign objects may raise anything while they are read: it becomes a DataError."""
    try:
        yield
    except (ProbgenError, MemoryError):
        raise
    except Exception as problem:
        raise DataError(
            f"A {type(data).__name__} that can't be read ({type(problem).__name__}: {problem})",
            "an array, tensor, list, dict of columns or data frame of numbers and strings",
            "Convert it first, say with numpy.asarray",
        ) from problem


def columns(frame: Any) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray, dict[str, list]]:
    """A frame as NumPy columns.

    Returns:
        By name, (values, missing mask) of shape (n,); numbers stay numbers, everything else comes as objects.
        The row keys: a pandas index that is not 0..n-1 (saved in a Parquet file, too), else 0..n-1.
        By name, the declared categories of categorical columns, unused ones included.
    """
    return coded(frame, {})[:3]


def coded(
    frame: Any, levels: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray, dict[str, list], dict[str, np.ndarray]]:
    """As ``columns``, but columns of categories, text and booleans come as codes, without a look at each cell.

    Arguments:
        levels: By the name of a column, what its cells may be.

    Returns:
        What ``columns`` returns of the other columns, and of those that hold something besides their levels.
        By name, positions in the levels, float64 (n,), NaN where missing.
    """
    with reading(frame):
        named, row_keys = _parts(frame)
        tried = {name: _positions(named[name].to_native(), levels[name]) for name in named if name in levels}
        codes = {name: found for name, found in tried.items() if found is not None}
        read = {name: _cells(series) for name, series in named.items() if name not in codes}
    declared = {name: its for name, (_, _, its) in read.items() if its is not None}
    return {name: (values, missing) for name, (values, missing, _) in read.items()}, row_keys, declared, codes


def _parts(frame: Any) -> tuple[dict[str, Any], np.ndarray]:
    """The columns of a frame as narwhals series by name, and the row keys."""
    import narwhals as nw
    import pyarrow as pa

    frame = pa.Table.from_batches([frame]) if _is_batch(frame) else frame
    if isinstance(frame, pa.Table):
        distinct_names(frame.column_names)
    elif nw.dependencies.is_pandas_like_dataframe(frame):
        distinct_names(frame.columns)
    eager = nw.from_native(frame)
    eager = eager.collect() if isinstance(eager, nw.LazyFrame) else eager
    named = {str(series.name): series for series in eager.iter_columns()}
    saved = _saved_index(frame) if isinstance(frame, pa.Table) else []
    if saved and set(saved) < set(named):
        labels = [named.pop(name).to_list() for name in saved]
        return named, _labels(labels[0] if len(labels) == 1 else list(zip(*labels, strict=True)))
    return named, keys(frame, len(eager))


def distinct_names(names: Iterable[Any]) -> list[str]:
    """Names as strings.

    Raises:
        DataError: where two are the same, 0 and "0" included.
    """
    names = [str(name) for name in names]
    if len(set(names)) < len(names) and (twice := sorted({name for name in names if names.count(name) > 1})):
        raise DataError(f"Duplicate column names {twice} in {names}", "one name a column", "Rename them")
    return names


def _saved_index(arrow: Any) -> list[str]:
    """The columns of an Arrow table that pandas saved its index in."""
    about = arrow.schema.pandas_metadata or {}
    return [name for name in about.get("index_columns", ()) if isinstance(name, str)]


def _labels(labels: Sequence[Any]) -> np.ndarray:
    plain = [str(label) if isinstance(label, tuple) else label for label in labels]
    same = {type(label) for label in plain} in ({int}, {float})
    return np.array(plain) if same else objects(plain, len(plain))


def keys(data: Any, n: int) -> np.ndarray:
    """The row keys of a frame or column: a pandas index that is not 0..n-1, else 0..n-1."""
    index: Any = getattr(data, "index", None) if form(data) == "pandas" else None
    if not hasattr(index, "nlevels") or (type(index).__name__ == "RangeIndex" and index.equals(type(index)(n))):
        return np.arange(n)
    return np.asarray(index) if index.nlevels == 1 else np.array([str(key) for key in index])


def column(data: Any) -> tuple[np.ndarray, np.ndarray, list | None] | None:
    """A column of another library as (values, missing mask, declared categories); None where it is no column.

    Takes pandas series, indexes and extension arrays, polars series and Arrow arrays.
    """
    library = form(data)
    if library in _PLAIN:
        return None
    import narwhals as nw

    with reading(data):
        if library == "pandas":
            import pandas as pd

            data = pd.Series(data) if isinstance(data, pd.Index | pd.api.extensions.ExtensionArray) else data
        elif library == "pyarrow":
            import pyarrow as pa

            data = pa.chunked_array([data]) if isinstance(data, pa.Array) else data
        series = nw.from_native(data, series_only=True, pass_through=True)
        return _cells(series) if isinstance(series, nw.Series) else None


def _cells(series: Any) -> tuple[np.ndarray, np.ndarray, list | None]:
    import narwhals as nw

    if isinstance(series.dtype, nw.Categorical | nw.Enum):
        return _categorical(series)
    missing = series.is_null().to_numpy().astype(bool)
    if series.dtype.is_numeric() and not series.dtype.is_decimal():
        return _numbers(series, missing), missing, None
    if isinstance(series.dtype, nw.Unknown) and (values := series.to_numpy()).dtype.kind in "iuf":
        return values, missing, None
    return objects(series.to_list(), len(series)), missing, None


def _numbers(series: Any, missing: np.ndarray) -> np.ndarray:
    """Floats with NaN for null; whole numbers where none is null, and where a float would change them."""
    if not series.dtype.is_integer():
        return series.fill_null(math.nan).to_numpy() if missing.any() else series.to_numpy()
    whole = series.fill_null(0).to_numpy() if missing.any() else series.to_numpy()
    if not missing.any():
        return whole
    cells = whole.astype(np.float64 if abs(whole.astype(np.float64)).max() <= EXACT else object)
    cells[missing] = math.nan
    return cells


def _categorical(series: Any) -> tuple[np.ndarray, np.ndarray, list]:
    """Cells and all declared categories; an undeclared polars Categorical has those that occur, sorted."""
    library, column = form(series.to_native()), series.to_native()
    if library == "pyarrow":
        empty = not column.num_chunks or str(column.type.value_type) == "null"
        declared = [] if empty else column.unify_dictionaries().chunk(0).dictionary.to_pylist()
        values = column.cast(column.type.value_type).to_pylist()
    elif library == "polars":
        values = column.to_list()
        declared = getattr(column.dtype, "categories", None) if "Enum" in str(column.dtype) else None
        declared = sorted(set(values) - {None}) if declared is None else list(declared)
    else:
        declared = column.cat.categories.tolist()
        values = objects([*declared, None], len(declared) + 1)[column.cat.codes.to_numpy()].tolist()
    cells = objects(values, len(values))
    return cells, series.is_null().to_numpy().astype(bool), declared


def _positions(column: Any, levels: Sequence[Any]) -> np.ndarray | None:
    """Positions in ``levels``, float64 (n,), of a pandas, polars or Arrow column; None where it needs a closer look."""
    import pyarrow as pa

    library, place = form(column), {level: float(i) for i, level in enumerate(levels)}
    dtype = getattr(column, "dtype", None)
    if library not in ("pandas", "polars", "pyarrow") or getattr(dtype, "kind", "O") in "iufcmM":
        return None
    try:
        if type(dtype).__name__ == "CategoricalDtype":
            return _taken(column.cat.codes.to_numpy(), column.cat.categories.tolist(), place)
        cells = column.to_arrow() if library == "polars" else column
        cells = pa.array(cells, from_pandas=True) if library == "pandas" else cells
        return _arrow_positions(cells, levels, place)
    except Exception:  # whatever foreign cells may raise, they will again, and be named
        return None


def _arrow_positions(cells: Any, levels: Sequence[Any], place: Mapping[Any, float]) -> np.ndarray | None:
    import pyarrow as pa
    import pyarrow.compute as compute

    kind = cells.type
    if pa.types.is_dictionary(kind):
        cells = pa.concat_arrays(cells.unify_dictionaries().chunks) if isinstance(cells, pa.ChunkedArray) else cells
        codes = cells.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        return _taken(codes, cells.dictionary.to_pylist(), place)
    if pa.types.is_boolean(kind):
        return _taken(cells.cast(pa.int8()).fill_null(-1).to_numpy(), [False, True], place)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    texts = [level for level in levels if isinstance(level, str)]
    codes = compute.index_in(cells, pa.array(texts, kind))
    if codes.null_count != cells.null_count:
        return None
    if len(texts) < len(levels):
        return _taken(codes.fill_null(-1).to_numpy(), texts, place)
    return codes.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)  # NaN where null


def _taken(codes: np.ndarray, values: Sequence[Any], place: Mapping[Any, float]) -> np.ndarray | None:
    """The places of some values at codes (n,), NaN where -1; None where one of them has none."""
    places = [math.nan if is_missing(value) else place.get(value, -1.0) for value in values]
    found = np.array([*places, math.nan]).take(codes)
    return None if -1.0 in places and (found == -1.0).any() else found
