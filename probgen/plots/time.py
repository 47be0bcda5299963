"""Sequences over time, and their hidden states."""

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from probgen.errors import ParameterError
from probgen.plots import canvas

__all__ = ["graph", "heat", "sequence", "series", "states"]


def series(
    panels: Mapping[str, Sequence[np.ndarray]],
    path: str | PathLike,
    names: Sequence[str] | None = None,
    begin: int | None = None,
    levels: Sequence[Sequence[Any] | None] | None = None,
) -> None:
    """Sequences over time, one panel a title below the other, on the first panel's scales, written whole as PNG.

    Arguments:
        panels: By title, up to six sequences (T,) or (T, ...), each a line. Steps of several cells have a lane each,
            up to six, from the least to the greatest value of the first panel; what lies beyond is cut.
        names: Of the cells of a step.
        begin: The step at which the held-out part begins, marked in the first panel.
        levels: Of each cell, what its codes stand for; None for numbers.
    """
    low, high = canvas.span(np.concatenate([canvas.lanes(x) for x in next(iter(panels.values()))]))
    figure = canvas.page(8.0, 0.6 + max(1.5, 0.85 * len(low)) * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True).reshape(-1)
    for axis, (title, sequences) in zip(axes, panels.items(), strict=True):
        axis.set_title(title, fontsize=9, color=canvas.INK, loc="left")
        for i, x in enumerate(sequences[:6]):
            _over_time(axis, canvas.lanes(x), low, high, canvas.ACCENT if len(sequences) == 1 else canvas.STATES[i])
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    _lanes(axes[0], low, high, names, levels or [None] * len(low))
    axes[-1].set_xlabel("step", fontsize=8)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    if begin is not None:
        axes[0].axvline(begin - 0.5, color=canvas.INK, lw=1, ls=":")
        axes[0].text(
            begin, 1.0, "held out", fontsize=7, color=canvas.INK, va="bottom", transform=axes[0].get_xaxis_transform()
        )
    canvas.save(figure, path)


def _over_time(axis: Any, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    """A line a cell; dots too where steps are few, so that a value between two gaps is seen."""
    dots = {"marker": ".", "ms": 3} if len(x) <= 200 else {}
    for j, column in enumerate(x.T):
        lane = j + 0.8 * np.clip((column - low[j]) / ((high[j] - low[j]) or 1.0), -0.1, 1.1)
        scaled = column if x.shape[1] == 1 else lane
        axis.plot(np.arange(len(x)), scaled, lw=0.8, color=colour, alpha=0.8, **dots)


def _lanes(
    axis: Any,
    low: np.ndarray,
    high: np.ndarray,
    names: Sequence[str] | None,
    levels: Sequence[Sequence[Any] | None],
) -> None:
    """The scale of values: numbers for one cell, a named lane for each of several; categories by their names."""
    if len(low) == 1:
        if levels[0] is not None:
            axis.set_yticks(range(len(levels[0])), [f"{level}"[:12] for level in levels[0]])
        pad = 0.15 * (high[0] - low[0]) + 1e-9
        axis.set_ylim(low[0] - pad, high[0] + pad)
        return
    labels = [f"cell {j}" for j in range(len(low))] if names is None else list(names)
    shown = [f"{name}\n{_span(a, b, own)}" for name, a, b, own in zip(labels, low, high, levels, strict=False)]
    axis.set_yticks(np.arange(len(low)) + 0.4, shown)
    axis.set_ylim(-0.2, len(low))


def _span(low: float, high: float, levels: Sequence[Any] | None) -> str:
    """Least and greatest value of a lane, by name where its numbers are codes."""
    if levels is None:
        return f"{low:.4g} to {high:.4g}"
    return f"{levels[int(low)]} to {levels[int(high)]}"


def states(
    series: np.ndarray,
    decoded: np.ndarray,
    means: np.ndarray | None,
    path: str | PathLike,
    *,
    names: Sequence[str] | None = None,
    first: float = 0.0,
    time: str = "step",
) -> None:
    """A sequence over time, on a ground that shows its decoded state, with each state's mean; written whole as PNG.

    Arguments:
        series: Shape (T,) or (T, d); up to four cells of a step are drawn.
        decoded: The state of each step, shape (T,), from 0.
        means: Of each state, shape (K,) or (K, d); None draws none.
        names: Of the cells of a step; of one cell, what it measures.
        first, time: The time of the first step, and its unit.
    """
    sequence(path, states=(series, decoded, means), names=names, first=first, time=time)


def graph(matrix: np.ndarray, labels: Sequence[str] | None, path: str | PathLike) -> None:
    """Transitions between states as arrows whose width follows their probability, written whole as PNG.

    Arguments:
        matrix: Shape (K, K), [i, j] the probability of a move from i to j. Moves below 1 % are left out.
        labels: Of the states; None numbers them.
    """
    sequence(path, graph=(matrix, labels))


def heat(probabilities: np.ndarray, path: str | PathLike, *, first: float = 0.0, time: str = "step") -> None:
    """The probability of each state over time, shape (T, K), as a map, written whole as PNG."""
    sequence(path, heat=probabilities, first=first, time=time)


def sequence(
    path: str | PathLike,
    *,
    states: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None,
    heat: np.ndarray | None = None,
    graph: tuple[np.ndarray, Sequence[str] | None] | None = None,
    names: Sequence[str] | None = None,
    first: float = 0.0,
    time: str = "step",
) -> None:
    """Any of three views of a hidden Markov model on one page: ``states`` over ``heat`` on one axis of time, ``graph``
    beside them. Arguments as of the functions of those names.

    Raises:
        ParameterError: nothing to draw.
    """
    lanes = 0 if states is None else min(canvas.lanes(states[0]).shape[1], 4)
    rows = lanes + (heat is not None)
    if not rows and graph is None:
        raise ParameterError("No panel", "states=, heat= or graph=", "Give at least one")
    height = max(1.7 * lanes + 1.5 * (heat is not None), 3.6 if graph else 2.2) + 0.4
    figure = canvas.page(7.5 * bool(rows) + 4.0 * (graph is not None), height)
    sides = figure.subfigures(1, 2, width_ratios=(7.5, 4.0)) if rows and graph else [figure, figure]
    if rows:
        axes = sides[0].subplots(rows, 1, squeeze=False, sharex=True).reshape(-1)
        if states is not None:
            _draw_states(axes[:lanes], *states, names, first)
        if heat is not None:
            _draw_heat(sides[0], axes[-1], np.asarray(heat), first)
        axes[-1].set_xlabel(time, fontsize=8)
    if graph is not None:
        _draw_graph(sides[1].subplots(), np.asarray(graph[0], dtype=np.float64), graph[1])
    canvas.save(figure, path)


def _colours(k: int) -> list[Any]:
    """A colour for each state; beyond eight, from a scale."""
    from matplotlib import colormaps

    return list(canvas.STATES[:k]) if k <= len(canvas.STATES) else [colormaps["turbo"](i / (k - 1)) for i in range(k)]


def _draw_states(
    axes: Any,
    series: np.ndarray,
    decoded: np.ndarray,
    means: np.ndarray | None,
    names: Sequence[str] | None,
    first: float,
) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    x, decoded = canvas.lanes(series), np.asarray(decoded, dtype=np.int64)
    levels = None if means is None else np.asarray(means, dtype=np.float64).reshape(len(means), -1)
    k = max(int(decoded.max()) + 1, 0 if levels is None else len(levels))
    colours, ground = _colours(k), ListedColormap(_colours(k))
    times = first + np.arange(len(x))
    for j, axis in enumerate(axes):
        (low,), (high,) = canvas.span(x[:, [j]])
        pad = 0.12 * (high - low) + 1e-9
        box = (first - 0.5, first + len(x) - 0.5, low - pad, high + pad)
        axis.imshow(decoded[None], extent=box, aspect="auto", cmap=ground, vmin=0, vmax=max(k - 1, 1), alpha=0.22,
                    interpolation="nearest")  # fmt: skip
        axis.plot(times, x[:, j], color=canvas.INK, lw=0.7, marker="." if len(x) <= 200 else "", ms=3)
        if levels is not None:
            _draw_means(axis, decoded, levels[:, j], colours, first)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel(names[j] if names else "value" if len(axes) == 1 else f"cell {j}", fontsize=8)
    if k <= 12:
        one = levels is not None and levels.shape[1] == 1
        labels = [f"state {i}" + (f", mean {levels[i, 0]:.4g}" if one and levels is not None else "") for i in range(k)]
        handles = [Patch(color=colour, alpha=0.6, label=label) for colour, label in zip(colours, labels, strict=True)]
        axes[0].legend(handles=handles, fontsize=7, frameon=False, ncols=min(k, 4), loc="lower left", borderpad=0,
                       bbox_to_anchor=(0, 1.01))  # fmt: skip


def _draw_means(axis: Any, decoded: np.ndarray, means: np.ndarray, colours: list[Any], first: float) -> None:
    """The mean of the decoded state, a bar for each stay."""
    from matplotlib.collections import LineCollection

    starts = np.flatnonzero(np.r_[True, decoded[1:] != decoded[:-1]])
    ends = np.r_[starts[1:], len(decoded)]
    where = decoded[starts]
    bars = [
        [(first + a - 0.5, means[s]), (first + b - 0.5, means[s])] for a, b, s in zip(starts, ends, where, strict=True)
    ]
    axis.add_collection(LineCollection(bars, colors=[colours[s] for s in where], linewidths=2.2, capstyle="butt"))


def _draw_heat(figure: Any, axis: Any, probabilities: np.ndarray, first: float) -> None:
    steps, k = probabilities.shape
    box = (first - 0.5, first + steps - 0.5, k - 0.5, -0.5)
    image = axis.imshow(probabilities.T, extent=box, aspect="auto", cmap="Blues", vmin=0, vmax=1)
    axis.set_yticks(range(0, k, max(1, math.ceil(k / 10))))
    axis.tick_params(labelsize=7)
    axis.set_ylabel("state", fontsize=8)
    bar = figure.colorbar(image, ax=axis, pad=0.01, aspect=12, ticks=(0, 0.5, 1))
    bar.set_label("probability", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def _draw_graph(axis: Any, matrix: np.ndarray, labels: Sequence[str] | None) -> None:
    """States on a circle, moves as arrows in the colour of the state they leave; up to four states show numbers."""
    from matplotlib.patches import Circle

    k, names = len(matrix), labels or [str(i) for i in range(len(matrix))]
    angles = (math.pi if k == 2 else math.pi / 2) - 2 * math.pi * np.arange(k) / k
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (0.0 if k == 1 else 1.0)
    size, colours = min(0.2, 1.7 / k), _colours(k)
    for i, j in zip(*np.nonzero(matrix >= 0.01), strict=True):
        p = float(matrix[i, j])
        curve, at = _loop(places[i], angles[i], size) if i == j else _bend(places[i], places[j], size)
        _draw_move(axis, curve, p, colours[i])
        if k <= 4:
            ground = {"facecolor": canvas.PAPER, "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
            axis.text(*at, f"{p:.2f}", fontsize=7, color=canvas.INK, ha="center", va="center", zorder=4, bbox=ground)
    for place, name, colour in zip(places, names, colours, strict=True):
        axis.add_patch(Circle(place, size, color=colour, zorder=3))
        axis.text(*place, name, ha="center", va="center", fontsize=min(9.0, 190 * size / max(len(name), 4)),
                  color=canvas.PAPER, weight="bold", zorder=4)  # fmt: skip
    reach = (1.1 if k > 1 else 0.3) + 3 * size
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    few = ((matrix > 0) & (matrix < 0.01)).any()
    axis.set_title("moves a step" + (" (those below 1 % left out)" if few else ""), fontsize=9, color=canvas.INK)
    axis.set_axis_off()


def _bend(a: np.ndarray, b: np.ndarray, size: float) -> tuple[list[np.ndarray], np.ndarray]:
    """A curve from node a to node b and the place of its label; the way back bends to the other side."""
    along = (b - a) / np.linalg.norm(b - a)
    side = np.array([-along[1], along[0]])
    tail, head = a + along * size + 0.3 * size * side, b - along * (size + 0.02) + 0.3 * size * side
    bow = 0.3 * np.linalg.norm(head - tail) * side
    return [tail, (tail + head) / 2 + bow, head], (tail + head) / 2 + 0.5 * bow


def _loop(a: np.ndarray, angle: float, size: float) -> tuple[list[np.ndarray], np.ndarray]:
    """A curve from a node to itself on the outer side, and the place of its label."""
    turns, far = (0.6, 0.8, -0.8, -0.6), (1.0, 3.0, 3.0, 1.1)
    points = [
        a + size * f * np.array([math.cos(angle + t), math.sin(angle + t)]) for t, f in zip(turns, far, strict=True)
    ]
    return points, a + 2.9 * size * np.array([math.cos(angle), math.sin(angle)])


def _draw_move(axis: Any, curve: list[np.ndarray], p: float, colour: Any) -> None:
    """A Bezier curve of degree two or three with a head, as wide as its probability."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    shape = Path(np.array(curve), [1] + [len(curve)] * (len(curve) - 1))  # codes: MOVETO 1, CURVE3 3, CURVE4 4
    patch = FancyArrowPatch(path=shape, arrowstyle="-|>", mutation_scale=6 + 8 * p, color=colour, zorder=2)
    patch.set(linewidth=0.4 + 4 * p, alpha=0.35 + 0.5 * min(p, 1.0))
    axis.add_patch(patch)
