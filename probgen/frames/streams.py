"""Tables too large for memory, batch by batch: Parquet files, folders of them, csv files, frames of other libraries."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from probgen.errors import DataError
from probgen.frames.files import _siblings
from probgen.frames.incoming import distinct_names, form, is_frame, reading

__all__ = ["Part", "cells", "known", "numbered", "parts_of", "print_of", "read", "size_of", "unmixed"]

_CSV, _PARQUET = {".csv": ",", ".tsv": "\t"}, (".parquet", ".pq")
_BLOCK, _BUFFER = 1 << 23, 1 << 20
_WHOLE, _SAMPLES, _SAMPLE = 1 << 26, 64, 1 << 16
_ROW = "__row__"


@dataclass(frozen=True, eq=False)
class Part:
    """A partition: a Parquet or csv file, or a frame in memory.

    Arguments:
        name: In messages, and in the column ``file`` of a folder's scores: its path below the folder.
        path: None for a frame.
        table: The frame as a pyarrow.Table.
    """

    name: str
    path: Path | None = None
    table: Any = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """parquet, csv or frame."""
        if self.path is None:
            return "frame"
        return "csv" if self.path.suffix.lower() in _CSV else "parquet"

    def about(self) -> tuple[dict[str, str], list[str], int]:
        """Columns with the class of their type (number, text, truth, time, other, empty), the columns that hold a saved
        pandas index, and the number of rows (of a csv an estimate, from its first megabyte).

        Raises:
            DataError: the file can't be read; it is named.
        """
        with _read_errors(self):
            schema, rows = self._schema()
        distinct_names(schema.names)
        if schema.names == []:
            raise DataError(f"{self.name} has no columns", "a table of named columns", "Check how it was written")
        return {f.name: _class(f.type) for f in schema}, _saved(schema), rows

    def _schema(self) -> tuple[Any, int]:
        if self.path is None:
            return self.table.schema, self.table.num_rows
        if self.kind == "csv":
            return _csv_reader(self.path, None, {}).schema, _csv_rows(self.path)
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            return file.schema_arrow, file.metadata.num_rows

    def tasks(self, most: int) -> Iterator[dict[str, Any]]:
        """Of a Parquet file: pieces of at most so many rows, or one row group, as ``read`` takes them."""
        import pyarrow.parquet as pq

        with _read_errors(self), pq.ParquetFile(self.path) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        first, count, groups = 0, 0, []  # type: int, int, list[int]
        for i, size in enumerate(sizes):
            if groups and count + size > most:
                yield self._task(first, groups, 0, count)
                first, groups, count = first + count, [], 0
            if size > most:
                yield from (self._task(first + s, [i], s, min(most, size - s)) for s in range(0, size, most))
                first += size
            elif size:
                groups, count = [*groups, i], count + size
        if groups:
            yield self._task(first, groups, 0, count)

    def _task(self, first: int, groups: list[int], skip: int, count: int) -> dict[str, Any]:
        place = {"path": os.path.abspath(str(self.path)), "name": self.name}
        return {**place, "first": first, "groups": groups, "skip": skip, "count": count}

    def tables(self, columns: Sequence[str], types: Mapping[str, str], most: int) -> Iterator[Any]:
        """The rows in pieces of at most so many, as pyarrow.Tables.

        Arguments:
            types: Of columns of a csv: "number", "text" or "truth"; the others by their first cells.
        """
        import pyarrow as pa

        if self.path is None:
            chosen = self.table.select(list(columns))
            yield from (chosen.slice(i, most) for i in range(0, chosen.num_rows, most))
            return
        if self.kind == "parquet":
            yield from (rows for task in self.tasks(most) for _, rows in read(task, columns, most))
            return
        with _read_errors(self):
            for batch in _csv_reader(self.path, columns, types):
                table = _gaps(pa.Table.from_batches([batch]))
                yield from (table.slice(i, most) for i in range(0, table.num_rows, most))


@contextmanager
def _read_errors(part: Part) -> Iterator[None]:
    """Whatever Arrow raises while a part is read becomes a DataError that names the part."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        told = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        came = f"{part.name} can't be read: {told}"
        raise DataError(came, f"a whole {part.kind} file", "Write it again") from problem


def parts_of(data: Any) -> tuple[list[Part], bool]:
    """The partitions of a path or frame, and whether they are a folder's, sorted by name.

    Files and folders whose names begin with a dot or an underscore are no partitions.

    Raises:
        DataError: no such path, another kind of file, an empty folder.
    """
    if not isinstance(data, str | os.PathLike):
        return [Part("The frame", None, _arrow_table(data))], False
    path = Path(data)
    if not path.exists():
        raise DataError(f"There is no file {path}", "a path that exists", _siblings(path))
    if path.is_dir():
        return _inside(path), True
    if path.suffix.lower() not in (*_CSV, *_PARQUET):
        wanted = f"one of {', '.join([*_CSV, *_PARQUET])}, or a folder of Parquet files"
        raise DataError(f"{path} ends in {path.suffix!r}", wanted, "Convert the file, or rename it")
    return [Part(str(path), path)], False


def _inside(folder: Path) -> list[Part]:
    files = [p for p in folder.rglob("*") if p.suffix.lower() in _PARQUET and p.is_file()]
    names = {p: p.relative_to(folder) for p in files}
    found = [p for p in files if not any(word[0] in "._" for word in names[p].parts)]
    if not found:
        others = sorted(p.name for p in folder.iterdir())[:5]
        came = f"The folder {folder} holds no Parquet file" + (f", but {others}" if others else ": it is empty")
        raise DataError(came, "one or more .parquet files", "Check the path; other files are scored one by one")
    return [Part(names[p].as_posix(), p) for p in sorted(found, key=lambda p: names[p].as_posix())]


def _arrow_table(data: Any) -> Any:
    """A frame of pandas, polars or Arrow as a pyarrow.Table; the index of pandas is kept as its row keys."""
    import pyarrow as pa

    if not is_frame(data):
        wanted = "a path, or a frame of pandas, polars or Arrow"
        raise DataError(f"A {type(data).__name__} to score as a table", wanted, "model.log_prob(x) takes arrays")
    with reading(data):
        if form(data) == "pandas":
            return pa.Table.from_pandas(data)
        if form(data) == "pyarrow":
            return pa.Table.from_batches([data]) if isinstance(data, pa.RecordBatch) else data
        data = data.collect() if hasattr(data, "collect") else data
        return data.to_arrow()


def _class(kind: Any) -> str:
    """What a column's type means for a model: whole numbers and floats are one class, all texts another."""
    import pyarrow as pa

    types = pa.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_string(kind) or types.is_large_string(kind) or "string_view" in str(kind):
        return "text"
    if types.is_null(kind):
        return "empty"
    return "truth" if types.is_boolean(kind) else "time" if types.is_temporal(kind) else "other"


def unmixed(first: tuple[str, Mapping[str, str]], name: str, classes: Mapping[str, str], used: Iterable[str]) -> None:
    """Sees that a partition has the columns and the types of the first one.

    Raises:
        DataError: naming both partitions, the column and the two types.
    """
    whose, known = first
    do = "Write the partitions with one schema, or leave this one out: skip_corrupt=True, --skip-corrupt"
    if lacking := [c for c in used if c not in classes]:
        raise DataError(f"{name} lacks the columns {lacking[:8]}", f"those of {whose}", do)
    for column in used:
        a, b = known.get(column, "empty"), classes[column]
        if a != b and "empty" not in (a, b):
            raise DataError(f"{name}: column {column!r} holds {b}, in {whose} it holds {a}", "one type a column", do)


def known(table: Any, columns: Iterable[str]) -> tuple[Any, list[str]]:
    """A pyarrow.Table without the columns that are none of those, and their names; a saved pandas index stays.

    Where one of them is lacking the table stays as it is: whoever reads it says what is wrong.
    """
    wanted = set(columns)
    saved = _saved(table.schema)
    extra = [name for name in table.column_names if name not in wanted and name not in saved]
    if not wanted <= set(table.column_names):
        return table, []
    return (table.drop_columns(extra) if extra else table), extra


def cells(table: Any) -> Any:
    """A pyarrow.Table of numbers as NumPy columns by name, null as NaN; a table of anything else as it is.

    Their bytes are read in place: Arrow's own way to NumPy loads pandas where it is installed, half a second.
    """
    import pyarrow as pa

    if _saved(table.schema) or not all(map(pa.types.is_floating, table.schema.types)):
        return table
    columns = {name: _floats(table.column(name)) for name in table.column_names}
    return table if any(values is None for values in columns.values()) else columns


def _floats(column: Any) -> np.ndarray | None:
    """The cells of a floating column (n,), None of half precision."""
    kind = {"double": np.float64, "float": np.float32}.get(str(column.type))
    if kind is None:
        return None
    parts = []
    for chunk in column.chunks:
        seen, values = chunk.buffers()
        n, first = len(chunk), chunk.offset
        found = np.frombuffer(values, kind, n, first * np.dtype(kind).itemsize) if n else np.empty(0, kind)
        if chunk.null_count:
            bits = np.unpackbits(np.frombuffer(seen, np.uint8), bitorder="little", count=first + n)[first:]
            found = np.where(bits == 1, found, np.array(np.nan, kind))
        parts.append(found)
    return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, kind)])


def _saved(schema: Any) -> list[str]:
    """Columns that pandas saved its index in."""
    about = (schema.pandas_metadata or {}).get("index_columns", ())
    return [name for name in about if isinstance(name, str) and name in schema.names]


def read(task: Mapping[str, Any], columns: Sequence[str], batch: int) -> Iterator[tuple[int, Any]]:
    """The rows of a piece of a Parquet file: (row number of the first, pyarrow.Table of at most ``batch`` rows).

    Raises:
        DataError: the file can't be read, or became another one; it is named.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    part, skip, left, first = Part(task["name"], Path(task["path"])), task["skip"], task["count"], task["first"]
    with _read_errors(part), pq.ParquetFile(part.path, buffer_size=_BUFFER, pre_buffer=False) as file:
        for found in file.iter_batches(batch, row_groups=task["groups"], columns=list(columns)):
            taken = found.slice(skip, left)
            skip = max(0, skip - found.num_rows)
            if taken.num_rows:
                yield first, pa.Table.from_batches([taken]).select(list(columns))
                first, left = first + taken.num_rows, left - taken.num_rows
            if not left:
                return
    raise DataError(f"{part.name} lost {left} rows while it was scored", "a file that nobody changes", "Score it again")


def numbered(table: Any, first: int) -> Any:
    """A table whose row keys are its row numbers in the file, so that messages name those."""
    import pyarrow as pa

    rows = pa.array(range(first, first + table.num_rows))
    schema = b'{"index_columns": ["%s"], "columns": [], "column_indexes": []}' % _ROW.encode()
    return table.append_column(_ROW, rows).replace_schema_metadata({b"pandas": schema})


def _csv_reader(path: Path, columns: Sequence[str] | None, types: Mapping[str, str]) -> Any:
    import pyarrow as pa
    import pyarrow.csv as pc

    kinds = {"number": pa.float64(), "text": pa.string(), "truth": pa.bool_()}
    return pc.open_csv(
        path,
        read_options=pc.ReadOptions(block_size=_BLOCK),
        parse_options=pc.ParseOptions(delimiter=_CSV[path.suffix.lower()]),
        convert_options=pc.ConvertOptions(
            column_types={name: kinds[kind] for name, kind in types.items()}, include_columns=columns
        ),
    )


def _gaps(table: Any) -> Any:
    """Empty cells of text columns as missing, as in ``frames.read``."""
    import pyarrow as pa
    import pyarrow.compute as compute

    empty = pa.scalar(None, pa.string())
    for i, kind in enumerate(table.schema.types):
        if kind == pa.string():
            cells = table.column(i)
            table = table.set_column(i, table.field(i), compute.if_else(compute.equal(cells, ""), empty, cells))
    return table


def _csv_rows(path: Path) -> int:
    with open(path, "rb") as file:
        head = file.read(1 << 20)
    return round(head.count(b"\n") * os.path.getsize(path) / max(len(head), 1))


def size_of(data: Any) -> int:
    """Bytes of a file, or of all files in a folder; 0 of anything else."""
    if not isinstance(data, str | os.PathLike) or not Path(data).exists():
        return 0
    path = Path(data)
    return sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size


def print_of(path: Path) -> str:
    """A fingerprint of a file's bytes: all of them up to 64 MiB; of a larger file its size, both ends (a Parquet file
    keeps its statistics in the last) and 64 evenly spaced blocks of 64 KiB."""
    size = os.path.getsize(path)
    found = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= _WHOLE:
            found.update(file.read())
            return found.hexdigest()
        for i in range(_SAMPLES):
            file.seek(i * (size - _SAMPLE) // (_SAMPLES - 1))
            found.update(file.read(_SAMPLE))
    return found.hexdigest()
