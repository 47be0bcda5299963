"""Readers of the files that data come in."""

import gzip
import math
import os
import struct
from collections.abc import Callable
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from probgen import frames
from probgen.datasets.folders import TABLES, read_captioned
from probgen.errors import DataError

__all__ = ["read", "read_idx"]


def read(path: str | PathLike) -> Any:
    """A file as data: csv, tsv, parquet (Arrow table), npy, npz, idx (array, .gz too), txt (a string a line).

    A folder of pictures with ``captions.csv`` or ``captions.jsonl`` (columns file and caption) gives a dict of both; an
    npz with an array ``caption`` gives a dict of its arrays.

    Raises:
        DataError: missing, empty, damaged or of another type; the message names the path.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise DataError(f"There is no file {path}", "a path that exists", "Check the spelling")
    if path.is_dir() and any((path / name).is_file() for name in TABLES):
        return read_captioned(path)
    if path.is_dir() and not any(path.rglob("*.parquet")):
        wanted = f"a file, a folder of Parquet files, or one of pictures with {' or '.join(TABLES)}"
        raise DataError(f"{path} is a folder without Parquet files", wanted, "Name one")
    kind = path.with_suffix("").suffix + path.suffix if path.suffix == ".gz" else path.suffix
    if path.is_dir() or kind.lower() in frames.SUFFIXES:
        return frames.read(path)
    readers: dict[str, Callable[[Path], Any]] = {".npy": _read_npy, ".npz": _read_npz, ".txt": _read_text}
    reader = read_idx if "idx" in path.name and kind not in readers else readers.get(kind.lower())
    if reader is None:
        known = ", ".join([*frames.SUFFIXES, *readers, "idx"])
        raise DataError(f"{path} ends in {path.suffix!r}", f"one of {known}", "Convert the file")
    try:
        data = reader(path)
    except DataError:
        raise
    except Exception as problem:  # zip, zlib, tokenize, struct: wrong bytes raise anything
        raise DataError(
            f"{path} can't be read: {problem}", f"a whole {kind or 'idx'} file", "Write or fetch it again"
        ) from problem
    if len(data) == 0:
        raise DataError(f"{path} is empty", "at least one row", "Check how it was written")
    return data


def _load_numpy(path: Path, magic: bytes) -> Any:
    """np.load of a file that begins as it should; NumPy would take any other for a pickle, and advise to trust it."""
    raw = path.read_bytes()
    if not raw.startswith(magic):
        raise DataError(
            f"{path} does not begin like a {path.suffix} file", "one written by NumPy", "Write or fetch it again"
        )
    return np.load(BytesIO(raw), allow_pickle=False)


def _read_npy(path: Path) -> np.ndarray:
    return np.atleast_1d(_load_numpy(path, b"\x93NUMPY"))


def _read_npz(path: Path) -> Any:
    with _load_numpy(path, b"PK") as arrays:
        if "caption" in arrays.files:
            return {name: arrays[name].tolist() if name == "caption" else arrays[name] for name in arrays.files}
        if len(arrays.files) != 1 and "x" not in arrays.files:
            raise DataError(
                f"{path} holds the arrays {arrays.files}", "one array, or one named x", "np.savez(path, x=rows)"
            )
        array = arrays["x" if "x" in arrays.files else arrays.files[0]]
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path} holds {arrays.files}, no array", "an array", "np.savez(path, x=rows)")
        return np.atleast_1d(array)


def _read_text(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def read_idx(path: Path) -> np.ndarray:
    """LeCun's idx format: two zero bytes, a type, the number of dimensions, big-endian sizes, then the cells."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    types = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in types or not raw[3]:
        wanted = "two zero bytes, a type and a number of dimensions"
        raise DataError(f"{path} does not begin like an idx file", wanted, "Fetch it again")
    dims, cell = raw[3], np.dtype(types[raw[2]])
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    if len(raw) - 4 - 4 * dims != math.prod(shape) * cell.itemsize:
        raise DataError(f"{path} has {len(raw)} bytes for shape {shape}", "a whole file", "Fetch it again")
    return np.frombuffer(raw, cell, offset=4 + 4 * dims).reshape(shape).astype(cell.newbyteorder("="))
