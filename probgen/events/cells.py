"""Cells on their way in: any number-like thing as float64, bad cells by name, hashes of rows, ragged rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError

__all__ = ["Ragged", "float_cells", "is_missing", "name_cells", "row_hash", "take", "to_form", "whole"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of unequal length, one after the other.

    Arguments:
        values: Shape (total, ...).
        lengths: Shape (n,), int64, positive, adding up to total.
    """

    values: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> Tensor:
        """Where each row begins, shape (n,)."""
        return self.lengths.cumsum(0) - self.lengths

    def split(self) -> list[Tensor]:
        return list(self.values.split(self.lengths.tolist()))

    def __getitem__(self, rows: Any) -> "Ragged":
        chosen = torch.arange(len(self))[rows].reshape(-1)
        parts = self.split()
        return Ragged(torch.cat([parts[i] for i in chosen.tolist()]), self.lengths[chosen])


def take(x: Any, rows: Any) -> Any:
    """Some rows of checked data: a tensor, a Ragged or a dict of them."""
    if isinstance(x, Mapping):
        return {name: None if part is None else take(part, rows) for name, part in x.items()}
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(rows)
    return x[rows]


def is_missing(value: Any) -> bool:
    """None, NaN, NaT and pandas' NA."""
    return value is None or value != value or type(value).__name__ == "NAType"


def float_cells(
    data: Any, names: Sequence[str] | None = None, keys: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Any array-like as (float64 array, row keys, form); masked and null cells become NaN.

    Raises:
        DataError: naming the first cell that is no number.
    """
    if isinstance(data, Tensor):
        return data.detach().cpu().to(torch.float64).numpy().copy(), np.arange(len(data) if data.ndim else 0), "torch"
    if frames.is_frame(data):
        columns, keys, _ = frames.columns(data)
        numbers = [
            float_cells(np.where(m, None, v) if v.dtype == object else v, [name], keys)[0]
            for name, (v, m) in columns.items()
        ]
        return np.stack(numbers, axis=1) if numbers else np.empty((0, 0)), keys, frames.form(data)
    form = "list" if isinstance(data, list | tuple) else "numpy"
    try:
        array = data if isinstance(data, np.ndarray) else np.asarray(data)
    except ValueError as problem:
        raise DataError(
            "Rows of unequal length", "one shape for every row", "For sequences use events.Series"
        ) from problem
    if array.ndim == 0:
        raise DataError(f"A single {type(data).__name__}", "rows of observations: an array (n, ...), a frame, a list")
    keys = np.arange(len(array)) if keys is None else keys
    if array.dtype.kind not in "iubf":
        return _parse(array, names, keys), keys, form
    masked = isinstance(array, np.ma.MaskedArray)
    cells = np.array(np.ma.getdata(array), dtype=np.float64, order="C")
    if masked:
        cells[np.ma.getmaskarray(array)] = math.nan
    return cells, keys, form


def _parse(array: np.ndarray, names: Sequence[str] | None, keys: np.ndarray) -> np.ndarray:
    """Objects as floats; text is refused by name even where it spells a number."""
    flat = np.ma.getdata(array).reshape(len(array), -1)
    cells, bad = np.full(flat.shape, math.nan), np.zeros(flat.shape, dtype=bool)
    for place, value in np.ndenumerate(flat):
        if is_missing(value):
            continue
        if isinstance(value, str | bytes | complex | np.complexfloating):
            bad[place] = True
            continue
        try:
            cells[place] = float(value)
        except (TypeError, ValueError):
            bad[place] = True
    name_cells(
        bad, flat, keys, names, "is no real number", "numbers",
        "Convert the column, or give a data frame: its strings become categories", DataError,
    )  # fmt: skip
    if isinstance(array, np.ma.MaskedArray):
        cells[np.ma.getmaskarray(array).reshape(cells.shape)] = math.nan
    return cells.reshape(array.shape)


def name_cells(
    bad: np.ndarray,
    values: np.ndarray,
    keys: np.ndarray,
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
    return repr(value.item() if isinstance(value, np.generic) else value)


def whole(values: np.ndarray) -> bool:
    """Whether every observed cell is a whole number."""
    finite = values[np.isfinite(values)]
    return bool(finite.size) and bool((finite == np.round(finite)).all())


def to_form(x: Tensor | np.ndarray, form: str) -> Any:
    """Cells as "torch" (numbers only), "list", a frame of numbered columns, or NumPy."""
    if isinstance(x, np.ndarray):
        if x.dtype == object:
            return x.tolist() if form == "list" else x
        x = torch.from_numpy(x)
    if form == "torch":
        return x
    if form == "list":
        return x.tolist()
    if form in ("pandas", "polars", "pyarrow") and x.ndim == 2:
        return frames.native({str(i): column for i, column in enumerate(x.numpy().T)}, form)
    return x.numpy()


_ODD = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 1 << 20


def _mix(h: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), elementwise."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def _bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f":
        return np.ascontiguousarray(values).astype(np.int64).view(np.uint64)
    cells = np.asarray(values, dtype=np.float64) + 0.0  # -0.0 becomes 0.0
    cells[np.isnan(cells)] = math.nan  # one NaN for all
    return np.ascontiguousarray(cells).view(np.uint64)


def row_hash(x: Any) -> np.ndarray:
    """A 64-bit hash of each row's content, shape (n,), uint64: equal rows have equal hashes, wherever they stand."""
    if isinstance(x, Mapping):
        parts = [row_hash(part) for part in x.values() if part is not None]
        return row_hash(np.stack(parts, axis=1).view(np.int64))
    if isinstance(x, Ragged):
        return _ragged_hash(x)
    cells = (x.detach().cpu().numpy() if isinstance(x, Tensor) else x).reshape(len(x), -1)
    place = _mix(np.arange(1, cells.shape[1] + 1, dtype=np.uint64) * _ODD)
    step = max(1, _CHUNK // max(cells.shape[1], 1))
    rows = [_mix(_bits(cells[i : i + step]) ^ place).sum(axis=1, dtype=np.uint64) for i in range(0, len(cells), step)]
    return _mix(np.concatenate(rows) + place[-1:] if rows else np.empty(0, np.uint64))


def _ragged_hash(x: Ragged) -> np.ndarray:
    steps = row_hash(x.values)
    lengths = x.lengths.numpy()
    within = np.arange(len(steps)) - np.repeat(x.starts.numpy(), lengths)
    moved = _mix(steps ^ _mix((within.astype(np.uint64) + np.uint64(1)) * _ODD))
    return _mix(np.add.reduceat(moved, x.starts.numpy()) ^ (lengths.astype(np.uint64) * _ODD))
