"""Statistics of replicated data sets beside those of the data."""

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from probgen.plots import canvas

__all__ = ["predictive"]

_MOST = 12


def predictive(
    titles: Sequence[str],
    observed: np.ndarray,
    replicated: np.ndarray,
    p: np.ndarray,
    path: str | PathLike,
    source: str = "posterior predictive",
) -> None:
    """A histogram for each of up to twelve statistics: replicated ones, and the observed one as a line.

    Arguments:
        titles: Of the statistics, (d,).
        observed: Shape (d,).
        replicated: Shape (R, d).
        p: Tail probabilities, (d,).
        source: What the replicated data sets were drawn from.
    """
    d = min(len(titles), _MOST)
    columns = min(d, 4)
    rows = math.ceil(d / columns)
    figure = canvas.page(max(columns * 2.8, 3.6), rows * 2.3 + 0.35)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for j, axis in enumerate(axes):
        if j < d:
            _draw(axis, titles[j], float(observed[j]), replicated[:, j], float(p[j]))
        else:
            axis.set_axis_off()
    more = f", {d} of {len(titles)}" if len(titles) > d else ""
    figure.suptitle(f"{source}, {len(replicated)} data sets{more}; line: the data", fontsize=8, color=canvas.INK)
    canvas.save(figure, path)


def _draw(axis: Any, title: str, observed: float, replicated: np.ndarray, p: float) -> None:
    seen = replicated[np.isfinite(replicated)]
    values = np.unique(seen)
    if 1 <= len(values) <= 12:  # a discrete statistic: a bar each
        counts = np.array([(seen == value).sum() for value in values])
        width = 0.8 * (np.diff(values).min() if len(values) > 1 else max(abs(values[0]), 1.0) * 0.1)
        axis.bar(values, counts, width=width, color=canvas.ACCENT, alpha=0.6)
    elif len(values):
        low, high = np.quantile(seen, [0.001, 0.999])
        axis.hist(np.clip(seen, low, high), bins=30, color=canvas.ACCENT, alpha=0.6)
    extreme = p < 0.025 or p > 0.975
    axis.axvline(observed, color=canvas.STATES[1] if extreme else canvas.INK, lw=1.6)
    axis.set_title(f"{title}   p = {p:.3f}", fontsize=8, color=canvas.INK, parse_math=False)
    axis.set_yticks([])
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.locator_params(axis="x", nbins=5)
