"""Pictures of rows inside the page: samples beside the data, and single images, in base64."""

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from probgen.evaluate.drawing import column_names, level_names, panels
from probgen.evaluate.report.markup import visible
from probgen.events import Array, Event, Panel, Series
from probgen.model import GenerativeModel
from probgen.plots.report import panel
from probgen.plots.time import series

__all__ = ["is_image", "png", "sampled"]


def is_image(event: Event) -> bool:
    """Whether rows are pictures: (h, w), or (h, w, 3) in colours."""
    return isinstance(event, Array) and (len(event.shape) == 2 or (len(event.shape) == 3 and event.shape[-1] == 3))


def png(cells: np.ndarray, low: float, high: float) -> str:
    """One image as PNG in base64; grey ones are dark where large, as ``plots.samples`` draws them.

    Arguments:
        cells: (h, w) or (h, w, 3).
        low, high: What is white and black; of colours black and full.
    """
    shades = np.nan_to_num((cells - low) / max(high - low, 1e-12)).clip(0, 1) * 255
    pixels = (shades if cells.ndim == 3 else 255 - shades).round().astype(np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    h, w = cells.shape[:2]
    header = struct.pack(">IIBBBBB", w, h, 8, 2 if cells.ndim == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    whole = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    return base64.b64encode(whole).decode()


def sampled(
    models: Mapping[str, GenerativeModel], data: Any, event: Event, seed: int
) -> Iterator[tuple[str, str, int]]:
    """The data and as many samples of each model that can draw, a picture each.

    Yields:
        Title, PNG in base64, width in pixels of the page.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    drawn = panels(models, data, event, seed)
    names = [visible(name) for name in column_names(event) or ()] or None
    first = next(iter(drawn))
    for title, x in drawn.items():
        if isinstance(event, Series | Panel):
            pair = {visible(name): drawn[name] for name in dict.fromkeys((first, title))}
            with TemporaryDirectory() as folder:
                path = Path(folder) / "series.png"
                series(pair, path, names=names, levels=level_names(event))
                raw, width = path.read_bytes(), 640
            if title == first and len(drawn) > 1:
                continue
        else:
            raw, width = panel("", x, drawn[first], names), 320
        yield title, base64.b64encode(raw).decode(), width
