"""Differences between models, and the single panels of a report."""

import math
from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from typing import Any

import numpy as np

from probgen.plots import canvas
from probgen.plots.rows import draw_panel

__all__ = ["differences", "panel"]


def differences(rows: Sequence[tuple[str, str, float, float, int]], path: str | PathLike) -> None:
    """Each model's log-likelihood of all rows less that of a better one, a line each, written whole as PNG.

    Arguments:
        rows: Of each: its name, the other's, the difference in nats, its standard error (NaN where there is none), and
            the side on which the truth may lie further from it: 1 above, -1 below, 0 where the number is no bound.

    Intervals are two standard errors to each side; a bound has an arrow to the side where the true difference may be.
    What is infinite stands at the edge, with the sign ∞.
    """
    figure = canvas.page(7.0, 0.9 + 0.42 * len(rows))
    axis = figure.subplots()
    finite = [(value, 0.0 if math.isnan(error) else error) for _, _, value, error, _ in rows if math.isfinite(value)]
    ends = [value + side * 2 * error for value, error in finite for side in (-1, 1)] + [0.0]
    low, high = min(ends), max(ends)
    room = 0.12 * ((high - low) or 1.0)
    for i, (_, _, value, error, side) in enumerate(rows):
        _difference(axis, i, value, error, side, room, (low, high))
    axis.axvline(0.0, color=canvas.INK, lw=0.8)
    axis.set_yticks(range(len(rows)), [f"{name}\nagainst {against}" for name, against, *_ in rows], fontsize=7)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(low - 1.8 * room, high + 1.8 * room)
    axis.set_xlabel("nats of all rows less those of the better model, ± 2 paired standard errors; → bound", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    canvas.save(figure, path)


def _difference(
    axis: Any, place: int, value: float, error: float, side: int, room: float, ends: tuple[float, float]
) -> None:
    if math.isinf(value):
        edge = ends[0] - room if value < 0 else ends[1] + room
        axis.text(edge, place, "−∞" if value < 0 else "∞", color=canvas.ACCENT, va="center", ha="center", fontsize=10)
        return
    if math.isfinite(error):
        axis.plot([value - 2 * error, value + 2 * error], [place, place], color=canvas.ACCENT, lw=1.4)
    axis.plot([value], [place], "o", ms=4, color=canvas.ACCENT)
    if side:
        begin = value + side * (2 * error if math.isfinite(error) else 0.0)
        arrow = {"arrowstyle": "->", "color": canvas.ACCENT, "lw": 1.4}
        axis.annotate("", xy=(begin + side * room, place), xytext=(begin, place), arrowprops=arrow)


def panel(title: str, x: np.ndarray, data: np.ndarray, names: Sequence[str] | None = None) -> bytes:
    """One panel of ``samples`` as a PNG of its own, on the scales of the data.

    Arguments:
        title: Above it.
        x: What is drawn: the data themselves, or samples beside them.
        data: What sets the scales.
        names: Of the columns.
    """
    figure, axes = canvas.grid(1, 1, 3.4)
    draw_panel(axes[0], title, x, data, names)
    sink = BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()
