"""Pages, colours and scales that all pictures share."""

from io import BytesIO
from os import PathLike
from typing import Any

import numpy as np

from probgen.errors import MissingExtra
from probgen.frames import write_whole

__all__ = ["ACCENT", "INK", "PAPER", "STATES", "grid", "lanes", "page", "save", "span"]

INK, PAPER, ACCENT = "#222222", "#ffffff", "#30638e"
# Wong (2011), told apart by colour-blind readers too; the first eight states
STATES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#555555")


def page(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise MissingExtra("matplotlib", "plots") from missing
    figure = Figure(figsize=(width, height), dpi=120, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)  # no global state: pyplot is never imported
    return figure


def grid(columns: int, rows: int, size: float) -> tuple[Any, Any]:
    figure = page(columns * size, rows * size)
    return figure, figure.subplots(rows, columns, squeeze=False).reshape(-1)


def save(figure: Any, path: str | PathLike) -> None:
    sink = BytesIO()
    figure.savefig(sink, format="png")
    write_whole(path, [sink.getvalue()])


def span(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value of each column; 0 and 0 for a column without values."""
    empty = np.isnan(cells).all(axis=0)
    filled = np.where(empty, 0.0, cells)
    return np.nanmin(filled, axis=0), np.nanmax(filled, axis=0)


def lanes(x: np.ndarray) -> np.ndarray:
    """At most six cells of each step, shape (T, d)."""
    return np.asarray(x, dtype=np.float64).reshape(len(x), -1)[:, :6]
