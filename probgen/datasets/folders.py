"""Folders of pictures with a table of their captions."""

import csv
import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import DataError, MissingExtra

__all__ = ["TABLES", "picture", "read_captioned"]

TABLES = ("captions.csv", "captions.jsonl")
_FILES = ("file", "image", "file_name", "filename")


def read_captioned(folder: str | PathLike) -> dict[str, Any]:
    """Pictures and captions of a folder: {"image": uint8 (n, h, w) or (n, h, w, 3), "caption": strings}.

    ``captions.csv`` or ``captions.jsonl`` has a column ``file`` (or ``image``), paths seen from the folder, and a
    column ``caption``; a picture may come with several captions, a row each, and a row without a caption gives None.
    Pictures are grey where all of them are.

    Raises:
        DataError: no table, no such column, an empty table, a picture that is missing or can't be read, or pictures of
            several sizes; the file and row are named.
        MissingExtra: without Pillow.
    """
    place = Path(folder)
    table = next((place / name for name in TABLES if (place / name).is_file()), None)
    if table is None:
        raise DataError(f"{place} holds no table of captions", f"{' or '.join(TABLES)} in it", "Write one")
    files, captions = _rows(table)
    paths = {name: _path(place, name, table, i) for i, name in reversed([*enumerate(files)])}
    found = {name: picture(path) for name, path in paths.items()}
    images = [found[name] for name in files]
    _refuse_sizes(files, images)
    if len({image.ndim for image in images}) > 1:
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
    return {"image": np.stack(images), "caption": captions}


def picture(path: str | PathLike) -> np.ndarray:
    """The pixels of a picture, uint8: (h, w) where it is grey, else (h, w, 3); transparency is laid on white.

    Raises:
        DataError: a file that is no picture, or damaged.
        MissingExtra: without Pillow, which comes with matplotlib.
    """
    try:
        from PIL import Image
    except ImportError as missing:
        raise MissingExtra("Pillow", "plots") from missing
    try:
        with Image.open(path) as opened:
            image: Image.Image = opened.convert("RGBA") if _clear(opened) else opened
            if image.mode == "RGBA":
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except Exception as problem:  # of bytes that are no picture: OSError, SyntaxError, struct, zlib, bombs
        raise DataError(
            f"{path} can't be read: {problem}", "a whole picture, PNG or JPEG", "Write it again"
        ) from problem
    grey = pixels.ndim == 2 or (pixels[..., :1] == pixels).all()
    return pixels if pixels.ndim == 2 else pixels[..., 0] if grey else pixels


def _clear(image: Any) -> bool:
    """Whether some of a picture may be transparent."""
    return "A" in image.getbands() or "transparency" in image.info


def _rows(table: Path) -> tuple[list[str], list[str | None]]:
    """File names and captions, a row each."""
    rows = list(_json_rows(table) if table.suffix == ".jsonl" else _table_rows(table))
    if not rows:
        raise DataError(f"{table} is empty", "a row a picture", "Check how it was written")
    file = next((name for name in _FILES if name in rows[0]), None)
    if file is None or "caption" not in rows[0]:
        raise DataError(
            f"{table} has the columns {', '.join(rows[0])}", "file (or image) and caption", "Rename the columns"
        )
    files = [_name(table, i, row.get(file)) for i, row in enumerate(rows)]
    return files, [_said(table, i, row) for i, row in enumerate(rows)]


def _name(table: Path, i: int, name: Any) -> str:
    if isinstance(name, str) and name:
        return name
    raise DataError(f"{table}, row {i}, names {name!r}", "a file", "Fill the row or drop it")


def _said(table: Path, i: int, row: dict[str, Any]) -> str | None:
    caption = row.get("caption")
    if caption is not None and not isinstance(caption, str):
        raise DataError(f"{table}, row {i}, has the caption {caption!r:.60}", "a string, or null", "Quote it")
    return caption or None


def _table_rows(table: Path) -> Iterator[dict[str, Any]]:
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        head = next(csv.reader(file), [])
    columns, _, _ = frames.columns(frames.read(table, texts=[name for name in (*_FILES, "caption") if name in head]))
    for i in range(len(next(iter(columns.values()))[0])):
        yield {name: None if part[1][i] else part[0][i] for name, part in columns.items()}


def _json_rows(table: Path) -> Iterator[dict[str, Any]]:
    for i, line in enumerate(table.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise DataError(f"{table}, line {i}: {problem}", "an object of JSON a line", "Mend the line") from problem
        if not isinstance(row, dict):
            raise DataError(f"{table}, line {i}, is {row!r:.60}", '{"file": ..., "caption": ...}', "Mend the line")
        yield row


def _path(place: Path, name: str, table: Path, i: int) -> Path:
    path = place / name
    if not path.is_file():
        raise DataError(f"There is no picture {path} ({table.name}, row {i})", "a file in the folder", "Check the name")
    return path


def _refuse_sizes(files: list[str], images: list[np.ndarray]) -> None:
    for name, image in zip(files, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            sizes = [f"{h} x {w}" for h, w in (images[0].shape[:2], image.shape[:2])]
            raise DataError(
                f"{files[0]} is {sizes[0]} pixels, {name} {sizes[1]}", "pictures of one size", "Resize them first"
            )
