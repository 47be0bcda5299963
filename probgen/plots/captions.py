"""Images under their captions."""

import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np

from probgen.plots import canvas

__all__ = ["captioned"]

_WIDE = 15  # letters of a line


def captioned(panels: Mapping[str, tuple[np.ndarray, Sequence[str]]], path: str | PathLike) -> None:
    """Rows of images, each under what is said of it, written whole as PNG.

    Arguments:
        panels: By title, images (n, h, w), grey and dark where large, or coloured (n, h, w, 3), and n texts.
    """
    columns = max(len(texts) for _, texts in panels.values())
    figure = canvas.page(max(1.1 * columns, 4.0), 1.75 * len(panels))
    first = next(iter(panels.values()))[0]
    low, high = np.nanmin(first), np.nanmax(first)
    for part, (title, (images, texts)) in zip(
        np.atleast_1d(figure.subfigures(len(panels), 1)), panels.items(), strict=True
    ):
        part.suptitle(title, fontsize=9, color=canvas.INK, x=0.01, ha="left")
        axes = part.subplots(1, columns, squeeze=False)[0]
        for axis in axes:
            axis.set_axis_off()
        for axis, image, text in zip(axes, images, texts, strict=False):
            shown = ((image - low) / max(high - low, 1e-12)).clip(0, 1) if image.ndim == 3 else image
            axis.imshow(shown, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title("\n".join(textwrap.wrap(text, _WIDE)[:3]), fontsize=6, color=canvas.INK)
    canvas.save(figure, path)
