"""The door to pyarrow and narwhals: data frames in, Arrow tables out, files written whole or not at all."""

from probgen.frames.files import SUFFIXES, read, sync_folder, write, write_whole
from probgen.frames.incoming import (
    EXACT,
    categorical,
    coded,
    column,
    columns,
    distinct_names,
    form,
    is_frame,
    is_missing,
    keys,
    objects,
    reading,
)
from probgen.frames.outgoing import CATEGORICAL, Coded, native, stack, table

__all__ = [
    "CATEGORICAL", "EXACT", "SUFFIXES", "Coded", "categorical", "coded", "column", "columns", "distinct_names", "form",
    "is_frame", "is_missing", "keys", "native", "objects", "read", "reading", "stack", "sync_folder", "table", "write",
    "write_whole",
]  # fmt: skip
