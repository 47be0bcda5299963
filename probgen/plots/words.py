"""Words where their vectors lie, on a plane."""

from collections.abc import Sequence
from os import PathLike

import numpy as np

from probgen.plots import canvas

__all__ = ["words_on_a_plane"]


def words_on_a_plane(
    words: Sequence[str],
    points: np.ndarray,
    path: str | PathLike,
    shares: Sequence[float] = (),
    links: Sequence[tuple[int, int]] = (),
) -> None:
    """A map of words as a PNG, on one scale; axes are directions without a name, so they have no numbers.

    Arguments:
        points: Of each word, (n, 2).
        shares: Of the variance that each direction holds.
        links: Pairs of words that a line joins.
    """
    figure = canvas.page(*((7.5, 6.0) if len(words) < 40 else (11.0, 8.5)))
    axis = figure.subplots()
    for a, b in links:
        axis.plot(*points[[a, b]].T, color="#b8c4cc", lw=0.8, zorder=1)
    axis.scatter(*points.T, s=14, c=canvas.ACCENT, linewidths=0, zorder=2)
    for word, point in zip(words, points, strict=True):
        axis.annotate(word, point, xytext=(4, 3), textcoords="offset points", fontsize=7.5, color=canvas.INK)
    for name, share, label in zip("xy", shares, ("first", "second"), strict=False):
        getattr(axis, f"set_{name}label")(f"{label} principal direction, {share:.0%} of the variance", fontsize=8)
    axis.set(xticks=[], yticks=[])
    axis.margins(0.09)
    axis.set_aspect("equal", adjustable="datalim")
    axis.spines[["top", "right"]].set_visible(False)
    canvas.save(figure, path)
