"""The door to matplotlib: samples beside the data, as PNG files."""

import math
from collections.abc import Mapping
from io import BytesIO
from os import PathLike
from typing import Any

import numpy as np

from probgen.errors import MissingExtra
from probgen.frames import write_whole

__all__ = ["samples"]

_INK, _PAPER, _ACCENT = "#222222", "#ffffff", "#30638e"


def _figure(columns: int, rows: int, size: float) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise MissingExtra("matplotlib", "plots") from missing
    figure = Figure(figsize=(columns * size, rows * size), dpi=120, facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)  # no global state: pyplot is never imported
    return figure, figure.subplots(rows, columns, squeeze=False).reshape(-1)


def samples(panels: Mapping[str, np.ndarray], path: str | PathLike, rows: int = 64) -> None:
    """Data and samples side by side, one panel each, written whole as PNG.

    Arguments:
        panels: By title, arrays: (n, h, w) images, (n, 2) points, (n,) or (n, d) numbers, (T,) or (T, d) series.
        rows: Images a panel; points show up to 2000.
    """
    columns = min(len(panels), 4)
    figure, axes = _figure(columns, math.ceil(len(panels) / columns), 3.2)
    images = next(iter(panels.values())).ndim == 3
    reach = None if images else _reach(next(iter(panels.values())))
    top = max(float(np.nanmax(x)) for x in panels.values()) if images else None
    for axis, (title, x) in zip(axes, panels.items(), strict=False):
        axis.set_title(title, fontsize=10, color=_INK)
        if images:
            axis.imshow(_tile(x[:rows]), cmap="gray_r", vmin=0, vmax=top, interpolation="nearest")
            axis.set_axis_off()
        elif x.ndim == 2 and x.shape[1] == 2:
            axis.scatter(*x[:2000].T, s=2, alpha=0.5, color=_ACCENT, linewidths=0)
            axis.set(xlim=reach[0], ylim=reach[1], aspect="equal")  # type: ignore[index]
        else:
            _lines(axis, x)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    sink = BytesIO()
    figure.savefig(sink, format="png")
    write_whole(path, [sink.getvalue()])


def _reach(x: np.ndarray) -> list[tuple[float, float]]:
    """Limits around the data; samples far away fall outside the panel."""
    cells = x.reshape(len(x), -1)
    low, high = np.nanmin(cells, axis=0), np.nanmax(cells, axis=0)
    pad = 0.1 * (high - low) + 1e-9
    return list(zip((low - pad).tolist(), (high + pad).tolist(), strict=True))


def _tile(x: np.ndarray) -> np.ndarray:
    """Images in a square grid with a one-pixel gap."""
    side = math.ceil(math.sqrt(len(x)))
    h, w = x.shape[1:3]
    grid = np.full((side * (h + 1) - 1, side * (w + 1) - 1), np.nan)
    for i, image in enumerate(x):
        top, left = divmod(i, side)
        grid[top * (h + 1) : top * (h + 1) + h, left * (w + 1) : left * (w + 1) + w] = image
    return grid


def _lines(axis: Any, x: np.ndarray) -> None:
    """Sorted values of each column against their rank: two samples of one distribution draw the same curves."""
    cells = x.reshape(len(x), -1)
    for column in cells.T[:6]:
        axis.plot(np.linspace(0, 1, len(cells)), np.sort(column), lw=1)
    axis.set_xlabel("share of rows", fontsize=8)
    axis.tick_params(labelsize=7)
