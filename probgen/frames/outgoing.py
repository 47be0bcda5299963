"""Named columns as Arrow tables and frames of other libraries."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import DataError
from probgen.frames.incoming import form, is_missing, objects

__all__ = ["CATEGORICAL", "Coded", "native", "stack", "table"]

CATEGORICAL = "pandas category"  # the form of a pandas frame whose levels came as categoricals


class Coded(NamedTuple):
    """A column of levels, for ``table`` and ``native``: positions (n,), NaN where missing, and what they stand for."""

    codes: np.ndarray
    levels: Sequence[Any]

    def factor(self) -> Any:
        """A pandas categorical with all levels, in their order; NaN where missing."""
        import pandas as pd

        kind = np.int8 if len(self.levels) < 127 else np.int32
        codes = np.where(np.isnan(self.codes), -1, self.codes).astype(kind)
        return pd.Categorical.from_codes(codes, list(self.levels), validate=False)

    def plain(self) -> Any:
        """The levels at the codes: an Arrow array of their type; objects, None where missing, where they share none."""
        import pyarrow as pa

        values, kinds = [*self.levels, None], set(map(type, self.levels))
        places = np.where(np.isnan(self.codes), len(self.levels), self.codes).astype(np.int32)
        if len(kinds) == 1 and kinds <= {str, bool, int, float}:
            with suppress(pa.ArrowException, OverflowError, UnicodeError):  # as in _arrow
                return pa.array(values).take(pa.array(places))
        return objects(values, len(values))[places]


def table(data: Mapping[str, Any]) -> Any:
    """A pyarrow.Table of named columns; masked cells become null, columns of mixed types strings.

    Raises:
        DataError: for columns of unequal length or of more than one dimension.
    """
    import pyarrow as pa

    try:
        return pa.table({name: _arrow(values) for name, values in data.items()})
    except (pa.ArrowException, ValueError) as problem:
        raise DataError(f"These columns make no table: {problem}", "columns of one length", "Check them") from problem


def _arrow(values: Any) -> Any:
    import pyarrow as pa

    values = values.plain() if isinstance(values, Coded) else values
    if isinstance(values, pa.Array):
        return values
    cells = _objects(values)
    if cells is None:
        masked = isinstance(values, np.ma.MaskedArray)
        return pa.array(np.ma.getdata(values), mask=np.ma.getmaskarray(values) if masked else None)
    with suppress(pa.ArrowException, OverflowError, UnicodeError):  # whole numbers beyond int64, lone surrogates
        if not _is_mixed(cells):
            numbers = {int, float} <= set(map(type, cells))
            return pa.array([None if v is None else float(v) for v in cells] if numbers else cells)
    return pa.array([None if is_missing(v) else str(v).encode(errors="backslashreplace").decode() for v in cells])


def _objects(values: Any) -> list | None:
    """Cells one by one, None where masked or without a value; None for an array of one type."""
    array = isinstance(values, np.ndarray)
    if (array and values.dtype != object) or form(values) == "pyarrow":
        return None
    cells = values.tolist() if array else list(values)  # a mask gives None
    odd = set(map(type, cells)) - {str, bool, int, float}
    return [None if is_missing(v) and not isinstance(v, float) else _python(v) for v in cells] if odd else cells


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.number | np.bool_) else value


def _is_mixed(cells: list) -> bool:
    """Whether no Arrow type holds these objects as they are."""
    kinds = set(map(type, cells)) - {type(None)}
    return kinds != {int, float} and not (len(kinds) <= 1 and kinds <= {str, bool, int, float})


def stack(tables: Sequence[Any]) -> Any:
    """Arrow tables one below the other; columns that differ in type become strings."""
    import pyarrow as pa

    kinds: dict[str, set] = {}
    for arrow in tables:
        for field in arrow.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    text = {name for name, types in kinds.items() if pa.string() in types and len(types) > 1}
    return pa.concat_tables([_as_text(arrow, text) for arrow in tables], promote_options="permissive")


def _as_text(arrow: Any, names: set[str]) -> Any:
    import pyarrow as pa

    fields = [field.with_type(pa.string()) if field.name in names else field for field in arrow.schema]
    return arrow.cast(pa.schema(fields))


def native(data: Mapping[str, Any], library: str) -> Any:
    """Named columns as a frame of that library: "pandas", "polars", else an Arrow table (mixed types as strings).

    As CATEGORICAL, a pandas frame whose columns of levels are categoricals.
    """
    if library == CATEGORICAL:
        import pandas as pd

        plain = {name: values for name, values in data.items() if not isinstance(values, Coded)}
        frame: Any = native(plain, "pandas") if plain else None
        factors = {n: values.factor() if isinstance(values, Coded) else frame[n] for n, values in data.items()}
        return pd.DataFrame(factors, copy=False)
    data = {name: values.plain() if isinstance(values, Coded) else values for name, values in data.items()}
    arrow = table(data)
    cells = {name: _objects(values) for name, values in data.items()}
    mixed = {name: values for name, values in cells.items() if values is not None and _is_mixed(values)}
    if library == "pandas":
        frame = arrow.to_pandas(integer_object_nulls=True)
        return frame.assign(**{n: objects(values, len(values)) for n, values in mixed.items()}) if mixed else frame
    if library == "polars":
        import polars as pl

        return pl.DataFrame(arrow).with_columns(pl.Series(n, values, dtype=pl.Object) for n, values in mixed.items())
    return arrow
