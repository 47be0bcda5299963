"""The door to pyarrow and narwhals: data frames in, Arrow tables out, files written whole or not at all."""

import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from probgen.errors import DataError, StoreError, nearest

__all__ = ["SUFFIXES", "columns", "is_frame", "native", "read", "table", "write", "write_whole"]


def is_frame(data: Any) -> bool:
    """Whether this is a data frame that narwhals knows: pandas, polars, pyarrow, modin, cudf."""
    if type(data).__module__.partition(".")[0] in {"numpy", "torch", "builtins", "pathlib"}:
        return False
    import narwhals as nw

    return isinstance(nw.from_native(data, pass_through=True), nw.DataFrame | nw.LazyFrame)


def form(data: Any) -> str:
    """The library a frame comes from: "pandas", "polars", "pyarrow"."""
    return type(data).__module__.partition(".")[0]


def columns(frame: Any) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray, dict[str, list]]:
    """A frame as NumPy columns.

    Returns:
        By name, (values, missing mask) of shape (n,); numbers stay numbers, everything else comes as objects.
        The row keys: a pandas index that is not a plain range, else 0..n-1.
        By name, the declared categories of categorical columns, unused ones included.
    """
    import narwhals as nw

    eager = nw.from_native(frame)
    eager = eager.collect() if isinstance(eager, nw.LazyFrame) else eager
    if len(set(eager.columns)) < len(eager.columns):
        raise DataError(f"Duplicate column names in {eager.columns}", "one name a column", "Rename them")
    values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    levels: dict[str, list] = {}
    for series in eager.iter_columns():
        name = str(series.name)
        if isinstance(series.dtype, nw.Categorical | nw.Enum):
            levels[name] = _declared_categories(series)
            series = series if levels[name] and not isinstance(levels[name][0], str) else series.cast(nw.String)
        missing = series.is_null().to_numpy().astype(bool)
        if series.dtype.is_numeric() and not series.dtype.is_decimal():
            whole = series.dtype.is_integer() and not missing.any()
            filled = series if whole else series.cast(nw.Float64).fill_null(float("nan"))
            values[name] = filled.to_numpy(), missing
        else:
            values[name] = np.array([*series.to_list(), None], dtype=object)[:-1], missing
    return values, _keys(frame, len(eager)), levels


def _declared_categories(series: Any) -> list:
    """All declared categories; narwhals itself gives those that occur."""
    pandas = getattr(getattr(series.to_native(), "cat", None), "categories", None)
    return series.cat.get_categories().to_list() if pandas is None else list(pandas)


def _keys(frame: Any, n: int) -> np.ndarray:
    index = getattr(frame, "index", None)
    if form(frame) != "pandas" or index is None or type(index).__name__ == "RangeIndex":
        return np.arange(n)
    return np.asarray(index) if index.nlevels == 1 else np.array([str(key) for key in index])


def table(data: Mapping[str, Any]) -> Any:
    """A pyarrow.Table of named columns; masked cells become null, NumPy keys of any type are kept."""
    import pyarrow as pa

    def column(values: Any) -> Any:
        if isinstance(values, np.ma.MaskedArray):
            return pa.array(np.ma.getdata(values), mask=np.ma.getmaskarray(values))
        if isinstance(values, np.ndarray) and values.dtype == object and len({type(v) for v in values}) > 1:
            return pa.array([None if v is None else str(v) for v in values])
        return pa.array(values)

    return pa.table({name: column(values) for name, values in data.items()})


def stack(tables: Sequence[Any]) -> Any:
    """Arrow tables one below the other; columns that differ in type become strings."""
    import pyarrow as pa

    return pa.concat_tables(tables, promote_options="permissive")


def native(data: Mapping[str, Any], library: str) -> Any:
    """Named columns as a frame of that library: "pandas", "polars", else an Arrow table."""
    arrow = table(data)
    if library == "pandas":
        return arrow.to_pandas()
    if library == "polars":
        import polars

        return polars.from_arrow(arrow)
    return arrow


_READERS: dict[str, Callable[[Path], Any]] = {}


def _reader(*suffixes: str) -> Callable:
    def register(read_file: Callable[[Path], Any]) -> Callable[[Path], Any]:
        _READERS.update(dict.fromkeys(suffixes, read_file))
        return read_file

    return register


@_reader(".csv", ".tsv")
def _read_csv(path: Path) -> Any:
    import pyarrow.csv as pc

    parse = pc.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
    return pc.read_csv(path, parse_options=parse)


@_reader(".parquet", ".pq")
def _read_parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path)


SUFFIXES = tuple(_READERS)


def read(path: str | os.PathLike) -> Any:
    """A csv, tsv or Parquet file (or a folder of Parquet files) as a pyarrow.Table.

    Raises:
        DataError: for a path that is missing, of another type, damaged or empty; the message names it.
    """
    import pyarrow as pa

    path = Path(path)
    if not path.exists():
        raise DataError(f"There is no file {path}", "a path that exists", _siblings(path))
    suffix = ".parquet" if path.is_dir() else path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(f"{path} ends in {path.suffix!r}", f"a table: one of {', '.join(sorted(_READERS))}")
    try:
        arrow = _READERS[suffix](path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path} can't be read: {problem}", f"a whole {suffix} file", "Write it again") from problem
    if not arrow.num_rows:
        raise DataError(f"{path} has no rows", "at least one row below the header")
    return arrow


def _siblings(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    return "Check the spelling. " + nearest(path.name, [p.name for p in folder.iterdir() if p.is_file()][:20])


def write(arrow: Any, path: str | os.PathLike) -> None:
    """Writes an Arrow table to .parquet or .csv, whole or not at all."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    writers = {".parquet": pq.write_table, ".csv": pc.write_csv}
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise StoreError(f"{path} ends in {suffix!r}", "an output that ends in .parquet or .csv", "Rename the output")
    sink = pa.BufferOutputStream()
    writers[suffix](arrow, sink)
    write_whole(path, [sink.getvalue()])


def write_whole(path: str | os.PathLike, chunks: Iterable[Any]) -> None:
    """Writes bytes to a temporary name, fsyncs, renames: the file is wholly the old one or wholly the new one.

    Raises:
        StoreError: when the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as problem:
        raise StoreError(
            f"{path} can't be written: {problem.strerror or problem}",
            "an existing folder with room and the right to write",
            "Nothing was changed; choose another place or make the folder",
        ) from problem
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def sync_folder(folder: Path) -> None:
    """Makes renames inside a folder durable, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
