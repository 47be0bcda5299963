"""The door to matplotlib: samples beside the data, as PNG files."""

import math
from collections.abc import Mapping, Sequence
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


def samples(
    panels: Mapping[str, np.ndarray], path: str | PathLike, rows: int = 64, names: Sequence[str] | None = None
) -> None:
    """Data and samples side by side, one panel each, on the first panel's scales, written whole as PNG.

    Arguments:
        panels: By title, arrays: (n, h, w) images, (n, 2) points, (n,) or (n, d) numbers, (T,) or (T, d) series.
        rows: Images a panel; points show up to 2000.
        names: Of the columns.
    """
    columns = min(len(panels), 4)
    figure, axes = _figure(columns, math.ceil(len(panels) / columns), 3.2)
    first = next(iter(panels.values()))
    draw = _images if first.ndim == 3 else _points if first.ndim == 2 and first.shape[1] == 2 else _lines
    for axis, (title, x) in zip(axes, panels.items(), strict=False):
        axis.set_title(title, fontsize=10, color=_INK)
        draw(axis, x[:rows] if first.ndim == 3 else x, first, names)
    if draw is _lines and names:
        axes[0].legend(fontsize=7, frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    sink = BytesIO()
    figure.savefig(sink, format="png")
    write_whole(path, [sink.getvalue()])


def _images(axis: Any, x: np.ndarray, data: np.ndarray, names: Sequence[str] | None) -> None:
    axis.imshow(_tile(x), cmap="gray_r", vmin=np.nanmin(data), vmax=np.nanmax(data), interpolation="nearest")
    axis.set_axis_off()


def _points(axis: Any, x: np.ndarray, data: np.ndarray, names: Sequence[str] | None) -> None:
    """One dot a row; where rows repeat, a dot's area is their share. Samples far from the data fall outside."""
    low, high = _range(data)
    pad = 0.1 * (high - low) + 1e-9
    places, times = np.unique(x[:2000], axis=0, return_counts=True)
    axis.scatter(
        *places.T, s=4.0 * times * min(len(data), 2000) / min(len(x), 2000), alpha=0.5, color=_ACCENT, linewidths=0
    )
    axis.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]))
    axis.set_box_aspect(1)
    axis.tick_params(labelsize=7)
    if names:
        axis.set_xlabel(names[0], fontsize=8)
        axis.set_ylabel(names[1], fontsize=8)


def _lines(axis: Any, x: np.ndarray, data: np.ndarray, names: Sequence[str] | None) -> None:
    """Sorted values of each column against their rank: two samples of one distribution draw the same curves."""
    cells = x.reshape(len(x), -1)
    low, high = _range(data.reshape(len(data), -1))
    single = cells.shape[1] == 1
    for j, column in enumerate(cells.T[:6]):
        seen = np.sort(column[~np.isnan(column)])
        scaled = seen if single else (seen - low[j]) / max(high[j] - low[j], 1e-12)
        axis.plot(_ranks(len(seen)), scaled, lw=1, drawstyle="steps-mid", label=names[j] if names else None)
    bottom, top = (low[0], high[0]) if single else (0.0, 1.0)
    pad = 0.4 * (top - bottom) + 1e-9
    axis.set_ylim(bottom - pad, top + pad)
    axis.set_xlabel("share of rows", fontsize=8)
    axis.set_ylabel("value" if single else "0 = least, 1 = greatest of the data", fontsize=8)
    axis.tick_params(labelsize=7)


def _ranks(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


def _range(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value of each column; 0 and 0 for a column without values."""
    empty = np.isnan(cells).all(axis=0)
    filled = np.where(empty, 0.0, cells)
    return np.nanmin(filled, axis=0), np.nanmax(filled, axis=0)


def _tile(x: np.ndarray) -> np.ndarray:
    """Images in a square grid with a one-pixel gap."""
    side = math.ceil(math.sqrt(len(x)))
    h, w = x.shape[1:3]
    grid = np.full((side * (h + 1) - 1, side * (w + 1) - 1), np.nan)
    for i, image in enumerate(x):
        top, left = divmod(i, side)
        grid[top * (h + 1) : top * (h + 1) + h, left * (w + 1) : left * (w + 1) + w] = image
    return grid
