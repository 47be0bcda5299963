"""Scores on their way out: as Arrow bytes between processes, and into files that appear whole or not at all."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from probgen.errors import StoreError
from probgen.frames.files import sync_folder
from probgen.frames.outgoing import stack, table

__all__ = ["Sink", "constant", "joined", "label", "no_rows", "packed", "remains", "together", "unpacked", "words"]

_MARK, _GROUP = b"probgen", 1 << 19


def constant(text: str, n: int) -> Any:
    """An Arrow column of one text n times, held once."""
    return words([text], np.zeros(n, dtype=np.int32))


def words(levels: Sequence[str], codes: np.ndarray) -> Any:
    """An Arrow column of texts as positions (n,) in ``levels``; null where negative."""
    import pyarrow as pa

    codes = codes.astype(np.int32)
    none = codes < 0
    return pa.DictionaryArray.from_arrays(
        pa.array(codes, mask=none if none.any() else None), pa.array(list(levels), pa.string())
    )


def packed(arrow: Any) -> bytes:
    """A pyarrow.Table as bytes of Arrow's streaming format."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, arrow.schema) as writer:
        writer.write_table(arrow)
    return sink.getvalue().to_pybytes()


def unpacked(data: bytes) -> Any:
    """The pyarrow.Table of ``packed`` bytes."""
    import pyarrow as pa

    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def together(tables: Sequence[Any]) -> Any:
    """Tables of scores one below the other, texts as texts."""
    import pyarrow as pa

    return stack([arrow.cast(pa.schema([_plain(field) for field in arrow.schema])) for arrow in tables])


def _plain(field: Any) -> Any:
    import pyarrow as pa

    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


class Sink:
    """A file of scores that is written batch by batch, and appears under its name when it is whole.

    Arguments:
        path: Ends in .parquet or .csv; folders are made.
        about: Kept in a Parquet file, for ``label``.

    As a context: an error inside leaves no file, and an older one as it was.

    Raises:
        StoreError: the place can't be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.path, self.about = path, about
        self.temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
        self.waiting: list[Any] = []
        self.rows = self.waits = 0
        self.file: Any = None
        self.writer: Any = None

    def __enter__(self) -> Self:
        with _write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.temporary, "xb")
        return self

    def write(self, arrow: Any) -> None:
        """Adds rows; they wait until they make a row group."""
        self.waiting.append(arrow)
        self.rows += arrow.num_rows
        self.waits += arrow.num_rows
        if self.waits >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self.waiting:
            return
        with _write_errors(self.path):
            rows = pa.concat_tables(self.waiting)
            if self.path.suffix.lower() == ".csv":
                rows = together([rows])
            self.writer = self.writer or self._writer(rows.schema)
            self.writer.write_table(rows)
        self.waiting, self.waits = [], 0

    def _writer(self, schema: Any) -> Any:
        import pyarrow as pa
        import pyarrow.csv as pc
        import pyarrow.parquet as pq

        if self.path.suffix.lower() == ".csv":
            return pc.CSVWriter(self.file, schema)
        coded = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        writer = pq.ParquetWriter(self.file, schema, use_dictionary=coded, store_schema=False, **_encodings(schema))
        writer.add_key_value_metadata({_MARK: json.dumps(dict(self.about), sort_keys=True).encode()})
        return writer

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._drop()

    def _finish(self) -> None:
        with _write_errors(self.path):
            self._flush()
            if self.writer is not None:
                self.writer.close()
                self.writer = None
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)

    def _drop(self) -> None:
        with suppress(Exception):  # a writer without rows, a disk that is full: the file goes in any case
            if self.writer is not None:
                self.writer.close()
        self.file.close()
        with suppress(OSError):
            os.unlink(self.temporary)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Whatever the system or Arrow raises while a file is written becomes a StoreError that names it."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as problem:
        came = f"{path} can't be written: {getattr(problem, 'strerror', None) or problem}"
        raise StoreError(came, "a folder with room and the right to write", "Choose another place") from problem


def _encodings(schema: Any) -> dict[str, Any]:
    """Row numbers as differences: they take next to no room."""
    whole = [field.name for field in schema if field.name == "row" and str(field.type) == "int64"]
    return {"column_encoding": dict.fromkeys(whole, "DELTA_BINARY_PACKED")} if whole else {}


def label(path: Path) -> tuple[dict[str, Any], int]:
    """What a file of scores says about itself, and its number of rows; an empty dict where it is no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            kept = file.metadata.metadata or {}
            return json.loads(kept.get(_MARK, b"{}")), file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError):
        return {}, 0


def remains(folder: Path) -> list[Path]:
    """Temporary files that a killed run left in a folder."""
    return [p for p in folder.rglob(".*.tmp") if p.is_file()]


def no_rows(columns: Mapping[str, str]) -> Any:
    """A table of scores without rows: columns by name, "text", "number" or "whole"."""
    kinds = {"text": np.array([], dtype=str), "number": np.array([]), "whole": np.array([], dtype=np.int64)}
    return table({name: kinds[kind] for name, kind in columns.items()})


def joined(tables: Sequence[Any]) -> Any:
    """Tables of one schema, one below the other."""
    import pyarrow as pa

    return pa.concat_tables(tables)
