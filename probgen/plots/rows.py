"""Samples beside the data."""

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from probgen.plots import canvas

__all__ = ["draw_panel", "samples"]


def samples(
    panels: Mapping[str, np.ndarray], path: str | PathLike, rows: int = 64, names: Sequence[str] | None = None
) -> None:
    """Data and samples side by side, one panel each, on the first panel's scales, written whole as PNG.

    Arguments:
        panels: By title, arrays: (n, h, w) images, coloured ones (n, h, w, 3), (n, 2) points, (n,) or (n, d) numbers.
        rows: Images a panel; points show up to 2000.
        names: Of the columns.
    """
    columns = min(len(panels), 4)
    figure, axes = canvas.grid(columns, math.ceil(len(panels) / columns), 3.2)
    first = next(iter(panels.values()))
    for axis, (title, x) in zip(axes, panels.items(), strict=False):
        draw_panel(axis, title, x, first, names, rows)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    canvas.save(figure, path)


def draw_panel(
    axis: Any, title: str, x: np.ndarray, data: np.ndarray, names: Sequence[str] | None, rows: int = 64
) -> None:
    """One panel of ``samples`` on the scales of the data, whose own panel explains the lines."""
    axis.set_title(title, fontsize=10, color=canvas.INK)
    if data.ndim >= 3:
        _images(axis, x[:rows], data)
    elif data.ndim == 2 and data.shape[1] == 2:
        _points(axis, x, data, names)
    else:
        _lines(axis, x, data, names)
        if names and x is data:
            axis.legend(fontsize=7, frameon=False)


def _images(axis: Any, x: np.ndarray, data: np.ndarray) -> None:
    """Grey images (n, h, w), dark where large; coloured ones (n, h, w, 3) as they are."""
    low, high = np.nanmin(data), np.nanmax(data)
    if data.ndim == 4:
        axis.imshow(
            np.nan_to_num((_tile(x) - low) / max(high - low, 1e-12), nan=1.0).clip(0, 1), interpolation="nearest"
        )
    else:
        axis.imshow(_tile(x), cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    axis.set_axis_off()


def _points(axis: Any, x: np.ndarray, data: np.ndarray, names: Sequence[str] | None) -> None:
    """One dot a row; where rows repeat, a dot's area is their share. Samples far from the data fall outside."""
    low, high = canvas.span(data)
    pad = 0.1 * (high - low) + 1e-9
    places, times = np.unique(x[:2000], axis=0, return_counts=True)
    axis.scatter(
        *places.T,
        s=4.0 * times * min(len(data), 2000) / min(len(x), 2000),
        alpha=0.5,
        color=canvas.ACCENT,
        linewidths=0,
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
    low, high = canvas.span(data.reshape(len(data), -1))
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


def _tile(x: np.ndarray) -> np.ndarray:
    """Images in a square grid with a one-pixel gap."""
    side = math.ceil(math.sqrt(len(x)))
    h, w = x.shape[1:3]
    grid = np.full((side * (h + 1) - 1, side * (w + 1) - 1, *x.shape[3:]), np.nan)
    for i, image in enumerate(x):
        top, left = divmod(i, side)
        grid[top * (h + 1) : top * (h + 1) + h, left * (w + 1) : left * (w + 1) + w] = image
    return grid
