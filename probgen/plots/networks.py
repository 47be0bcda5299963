"""Graphs as pictures."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from probgen.errors import ParameterError
from probgen.layout import Edge, Layout, Point, arrange, dot_source, run_dot, shown, text_width
from probgen.plots import canvas

__all__ = ["network"]

Line = tuple[str, float | None]


def network(
    nodes: Sequence[str],
    directed: Sequence[Edge] = (),
    undirected: Sequence[Edge] = (),
    *,
    weights: Mapping[Edge, float] | None = None,
    kinds: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
    bars: Mapping[str, Sequence[Line]] | None = None,
    engine: str | None = None,
    form: str = "png",
) -> bytes:
    """A graph as a picture: named boxes, arrows and lines; in layers where there are arrows, else by distances.

    Arguments:
        directed: (tail, head) pairs. undirected: pairs.
        weights: Of edges, from 0 to 1, such as bootstrap strengths: their width; written beside them where few.
        kinds: A word for each node, its colour, by its place in ``words``; a legend where there are several.
        bars: Lines below a node's name: a label with the length of its bar, from 0 to 1, or None for plain text.
        engine: "dot", "own", or None: Graphviz where its program is on the path; "dot" raises where it is not.
        form: "png", "svg", "pdf", or "dot" for the text in Graphviz' language.
    """
    used = set((kinds or {}).values())
    found = {w: canvas.STATES[i % 8] for i, w in enumerate(dict.fromkeys([*words, *sorted(used)])) if w in used}
    colours = {name: found[kinds[name]] if kinds and name in kinds else canvas.ACCENT for name in nodes}
    lines = {name: (bars or {}).get(name, ())[:8] for name in nodes}
    if engine not in (None, "dot", "own") or form not in ("png", "svg", "pdf", "dot"):
        raise ParameterError(
            f"engine={engine!r}, form={form!r}", '"dot", "own" or None, and "png", "svg", "pdf", "dot"'
        )
    if engine != "own" or form == "dot":
        source = dot_source(nodes, directed, undirected, weights=weights, colours=colours, bars=lines, legend=found)
        if (made := run_dot(source, form, must=engine == "dot")) is not None:
            return made
    layout = arrange(nodes, directed, undirected, {name: _box(name, lines[name]) for name in nodes})
    legend = 0.3 * (len(found) > 1)
    width, height = max(layout.width, 1.0 * len(found) * (len(found) > 1)) + 0.3, layout.height + 0.3 + legend
    figure = canvas.page(width, height)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1), xlim=(-0.15, width - 0.15), ylim=(-0.15, height - 0.15))
    axis.set_axis_off()
    for edges, style in ((directed, "-|>"), (undirected, "-")):
        for edge in edges:
            _draw_edge(axis, edge, layout, style, None if weights is None else weights.get(edge, 0.0), len(nodes) <= 40)
    for name in nodes:
        _draw_box(axis, layout.places[name], name, lines[name], colours[name])
    if legend:
        handles = [axis.plot([], [], color=colour, lw=3, label=word)[0] for word, colour in found.items()]
        axis.legend(handles=handles, fontsize=7, frameon=False, loc="upper left", ncols=len(handles), handlelength=1.2)
    sink = BytesIO()
    figure.savefig(sink, format=form, dpi=min(150, 2e4 / max(width, height), 6e3 / (width * height) ** 0.5))
    return sink.getvalue()


def _box(name: str, lines: Sequence[Line]) -> Point:
    """Width and height of a node's box, in inches."""
    bars = 0.85 if any(share is not None for _, share in lines) else 0.0
    inner = max((text_width(shown(label), 6.5) for label, _ in lines), default=0.0) + bars
    return max(text_width(shown(name), 8), inner, 0.22) + 0.2, 0.27 + 0.13 * len(lines)


def _draw_box(axis: Any, at: Point, name: str, lines: Sequence[Line], colour: Any) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    (x, y), (w, h) = at, _box(name, lines)
    shape = FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle="round,pad=0,rounding_size=0.07", zorder=3)
    shape.set(facecolor="#f3f6f9", edgecolor=colour, linewidth=1.4)
    axis.add_patch(shape)
    style = {"va": "center", "color": canvas.INK, "zorder": 4, "parse_math": False}
    axis.text(x, y + h / 2 - 0.135, shown(name), fontsize=8, ha="center", **style)
    for i, (label, share) in enumerate(lines):
        middle = y + h / 2 - 0.3 - 0.13 * i
        axis.text(x - w / 2 + 0.08, middle, shown(label), fontsize=6.5, ha="left", **style)
        if share is not None:
            axis.add_patch(Rectangle((x + w / 2 - 0.83, middle - 0.045), 0.5 * share, 0.09, facecolor=colour, zorder=4))
            axis.text(x + w / 2 - 0.07, middle, f"{share:.2f}", fontsize=6, ha="right", **style)


def _draw_edge(axis: Any, edge: Edge, layout: Layout, style: str, weight: float | None, told: bool) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    points = np.array(layout.routes.get(edge) or [layout.places[edge[0]], layout.places[edge[1]]])
    steps = np.diff(points, axis=0)
    corners, codes = [points[0]], [Path.MOVETO]
    for k in range(0, len(steps), 2):  # from layer to layer; the steps between pass a layer
        first, last = (steps[i] if 0 <= i < len(steps) else steps[k] for i in (k - 1, k + 1))
        bends = [0.45 * steps[k, 1] / (step[1] or 1.0) * step for step in (first, last)]
        corners += [points[k] + bends[0], points[k + 1] - bends[1], points[k + 1], *points[k + 2 : k + 3]]
        codes += [Path.CURVE4] * 3 + [Path.LINETO] * (k + 2 < len(points))
    patch = FancyArrowPatch(path=Path(corners, codes), arrowstyle=style, mutation_scale=9, color="#5b6670", zorder=2)
    patch.set_linewidth(1.0 if weight is None else 0.4 + 2.2 * weight)
    axis.add_patch(patch)
    if weight is not None and told:
        x, y = (points[(len(points) - 1) // 2] + points[len(points) // 2]) / 2
        ground = {"facecolor": canvas.PAPER, "edgecolor": "none", "pad": 0.6}
        axis.text(
            x, y, f"{weight:.2f}", fontsize=6, color=canvas.INK, ha="center", va="center", zorder=2.5, bbox=ground
        )
