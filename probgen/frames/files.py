"""Tables in files: csv and Parquet, and whole or not at all."""

import os
import secrets
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from probgen.errors import DataError, StoreError, nearest

__all__ = ["SUFFIXES", "read", "sync_folder", "write", "write_whole"]

_READERS: dict[str, Callable[[Path, Iterable[str]], Any]] = {}


def _reader(*suffixes: str) -> Callable:
    def register(read_file: Callable[[Path, Iterable[str]], Any]) -> Callable[[Path, Iterable[str]], Any]:
        _READERS.update(dict.fromkeys(suffixes, read_file))
        return read_file

    return register


@_reader(".csv", ".tsv")
def _read_csv(path: Path, texts: Iterable[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as compute
    import pyarrow.csv as pc

    parse = pc.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    convert = pc.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
    arrow = pc.read_csv(path, parse_options=parse, convert_options=convert)
    empty = pa.scalar(None, pa.string())
    for i, name in enumerate(arrow.column_names):
        if arrow.schema.types[i] == pa.string():
            cells = arrow.column(i)
            arrow = arrow.set_column(i, name, compute.if_else(compute.equal(cells, ""), empty, cells))
            if name not in texts:
                _warn_of_gaps(path, name, cells, [word for word in convert.null_values if word])
    return arrow


def _warn_of_gaps(path: Path, name: str, cells: Any, words: list[str]) -> None:
    """Where a text column holds what would be a gap in a column of numbers: R and pandas write gaps so."""
    import pyarrow as pa
    import pyarrow.compute as compute

    marked = cells.filter(compute.is_in(cells, pa.array(words)))
    if len(marked):
        told = ", ".join(f"{each['values'].as_py()!r} in {each['counts']} rows" for each in marked.value_counts()[:3])
        warnings.warn(
            f"{path}, column {name!r}: {told} is read as text, in a column of numbers it would be a missing cell. "
            "If it stands for one, leave such cells empty, or pass the frame of pandas.read_csv",
            stacklevel=4,
        )


@_reader(".parquet", ".pq")
def _read_parquet(path: Path, texts: Iterable[str]) -> Any:
    import pyarrow.parquet as pq

    if path.is_dir():
        return pq.read_table(path)
    with pq.ParquetFile(path) as file:  # read_table loads pyarrow.dataset and with it pandas: half a second
        return file.read()


SUFFIXES = tuple(_READERS)


def read(path: str | os.PathLike, texts: Iterable[str] = ()) -> Any:
    """A csv, tsv or Parquet file (or a folder of Parquet files) as a pyarrow.Table.

    Empty cells of a csv are missing; so are NA, NaN, null and the like among numbers, while among texts they stay
    texts, with a warning where the column is none of ``texts``.

    Arguments:
        texts: Columns of a csv that stay text where they look like truth values or numbers.

    Raises:
        DataError: for a path that is missing, of another type, damaged or empty; the message names it.
    """
    import pyarrow as pa

    path = Path(path)
    if not os.path.exists(path):
        raise DataError(f"There is no file {path}", "a path that exists", _siblings(path))
    suffix = ".parquet" if path.is_dir() else path.suffix.lower()
    if suffix not in _READERS:
        wanted = f"a table: one of {', '.join(sorted(_READERS))}"
        raise DataError(f"{path} ends in {path.suffix!r}", wanted, "Convert the file, or rename it")
    try:
        arrow = _READERS[suffix](path, texts)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path} can't be read: {problem}", f"a whole {suffix} file", "Write it again") from problem
    if not arrow.num_rows:
        raise DataError(f"{path} has no rows", "at least one row below the header", "Check how it was written")
    return arrow


def _siblings(path: Path) -> str:
    folder = path.parent if os.path.isdir(path.parent) else Path()
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
    try:
        writers[suffix](arrow, sink)
    except pa.ArrowException as problem:
        raise StoreError(
            f"{path} can't hold this table: {problem}", "columns of numbers and text", "Use .parquet"
        ) from problem
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
