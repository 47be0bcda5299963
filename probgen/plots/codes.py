"""What a latent code says: reconstructions, samples, the code itself, how training went."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from probgen.plots import canvas
from probgen.plots.rows import draw_panel

__all__ = ["codes"]


def codes(
    panels: Mapping[str, np.ndarray],
    loc: np.ndarray,
    divergence: np.ndarray,
    active: np.ndarray,
    objective: Sequence[float],
    path: str | PathLike,
    names: Sequence[str] | None = None,
) -> None:
    """Data beside reconstructions and samples; below them the codes, each latent's divergence, and training.

    Arguments:
        panels: By title, arrays as of ``samples``, the data first.
        loc: Mean codes, (n, latent_dim); the two latents that say most are drawn.
        divergence: Of each latent from the prior in nats, (latent_dim,).
        active: Which of them say something.
        objective: At each evaluation, in nats a row.
        names: Of the columns of a row.
    """
    figure = canvas.page(3.2 * max(len(panels), 3), 6.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.4, 2.8))
    first = next(iter(panels.values()))
    for axis, (title, x) in zip(top.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        draw_panel(axis, title, x, first, names)
    axes = bottom.subplots(1, 3)
    order = np.argsort(-divergence, kind="stable")
    _draw_codes(axes[0], loc[:, order[:2]], order)
    _draw_latents(axes[1], divergence[order], active[order])
    _draw_training(axes[2], objective)
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    canvas.save(figure, path)


def _draw_codes(axis: Any, loc: np.ndarray, order: np.ndarray) -> None:
    axis.set_title("codes (means of the guide)", fontsize=9, color=canvas.INK)
    axis.set_xlabel(f"latent {order[0]}", fontsize=8)
    if loc.shape[1] == 1:
        axis.hist(loc[:, 0], bins=40, color=canvas.ACCENT)
        axis.set_ylabel("rows", fontsize=8)
        return
    axis.scatter(*loc[:2000].T, s=4, alpha=0.5, color=canvas.ACCENT, linewidths=0)
    axis.set_ylabel(f"latent {order[1]}", fontsize=8)


def _draw_latents(axis: Any, divergence: np.ndarray, active: np.ndarray) -> None:
    colours = [canvas.ACCENT if one else "#b8c4cc" for one in active]
    axis.bar(np.arange(len(divergence)), divergence, color=colours)
    axis.set_title(f"{active.sum()} of {len(active)} latents active", fontsize=9, color=canvas.INK)
    axis.set_xlabel("latent, by what it says", fontsize=8)
    axis.set_ylabel("nats a row", fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_training(axis: Any, objective: Sequence[float]) -> None:
    """The first evaluation, before training, would hide the rest."""
    axis.plot(range(1, len(objective)), objective[1:], color=canvas.ACCENT, lw=1.2, marker=".", ms=3)
    axis.set_title("training", fontsize=9, color=canvas.INK)
    axis.set_xlabel("evaluation", fontsize=8)
    axis.set_ylabel("objective, nats a row", fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
