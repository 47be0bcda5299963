"""Charts as inline SVG: they take the page's colours, its text stays text, and each says in words what it shows."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from probgen.evaluate.report.markup import Html, tag

__all__ = ["curves", "differences", "histogram", "scatter", "ticks"]

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 360.0, 62.0, 12.0, 10.0, 38.0
Scale = Callable[[float], float]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in a range, at most so many, in steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10, 20) if (high - low) / (power * m) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.0e}" if value and not 1e-3 <= abs(value) < 1e6 else f"{value:.6g}"


def _svg(text: str, height: float, *parts: Html, class_: str = "chart") -> Html:
    title = tag("title", text)
    return tag("svg", title, *parts, viewBox=f"0 0 {_WIDTH:g} {height:g}", role="img", aria_label=text, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_)


def _text(x: float, y: float, text: str, anchor: str = "start", class_: str | None = None, **more: str) -> Html:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_, **more)


def _scale(low: float, high: float, begin: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: begin + (value - low) / span * (end - begin)


def _axes(
    xs: tuple[float, float], ys: tuple[float, float], height: float, across: str, up: str, whole: bool = False
) -> tuple[Scale, Scale, list[Html]]:
    """Scales of both directions, and the drawn axes with their ticks and names; ``whole`` leaves fractions out."""
    right, bottom = _WIDTH - _RIGHT, height - _BOTTOM
    to_x, to_y = _scale(*xs, _LEFT, right), _scale(*ys, bottom, _TOP)
    parts = [_line(_LEFT, bottom, right, bottom, "axis"), _line(_LEFT, _TOP, _LEFT, bottom, "axis")]
    for value in (v for v in ticks(*xs) if not whole or v == round(v)):
        parts += [_line(to_x(value), bottom, to_x(value), bottom + 4, "axis")]
        parts += [_text(to_x(value), bottom + 16, _number(value), "middle")]
    for value in ticks(*ys):
        parts += [_line(_LEFT - 4, to_y(value), _LEFT, to_y(value), "axis")]
        parts += [_text(_LEFT - 7, to_y(value) + 4, _number(value), "end")]
    middle = (_TOP + bottom) / 2
    parts.append(_text((_LEFT + right) / 2, height - 6, across, "middle"))
    parts.append(_text(11, middle, up, "middle", transform=f"rotate(-90 11 {middle:.1f})"))
    return to_x, to_y, parts


def _padded(values: np.ndarray, share: float = 0.05) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = share * (high - low) or max(abs(low), 1.0) * share
    return low - pad, high + pad


def scatter(x: np.ndarray, y: np.ndarray, across: str, up: str, text: str) -> Html:
    """A dot a row, with the diagonal on which both are equal.

    Arguments:
        x, y: Shape (n,), finite.
        across, up: Names of the axes.
        text: What the chart shows.
    """
    height = _WIDTH - 10.0
    ends = _padded(np.concatenate([x, y]))
    to_x, to_y, parts = _axes(ends, ends, height, across, up)
    parts.append(_line(to_x(ends[0]), to_y(ends[0]), to_x(ends[1]), to_y(ends[1]), "zero"))
    parts += [tag("circle", cx=f"{to_x(a):.1f}", cy=f"{to_y(b):.1f}", r="2.4", class_="dot") for a, b in zip(x, y)]  # noqa: B905
    return _svg(text, height, *parts)


def curves(lines: Mapping[str, Sequence[float]], across: str, up: str, text: str) -> Html:
    """Up to two curves over 1, 2, ...; values that are not finite break a line.

    Arguments:
        lines: By name; the second is dashed. More than 300 points are thinned.
    """
    height = 210.0
    finite = np.concatenate([np.asarray(v, dtype=float)[np.isfinite(v)] for v in lines.values()])
    longest = max(len(values) for values in lines.values())
    to_x, to_y, parts = _axes((1.0, float(longest)), _padded(finite), height, across, up, whole=True)
    for i, (name, values) in enumerate(lines.items()):
        kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), 300)).round().astype(int))
        points = " ".join(f"{to_x(j + 1):.1f},{to_y(values[j]):.1f}" for j in kept if math.isfinite(values[j]))
        parts.append(tag("polyline", points=points, class_=f"line{i + 1}"))
        if len(lines) > 1:
            y = height - _BOTTOM - 10 - 15 * (len(lines) - 1 - i)
            parts += [_line(_WIDTH - 120, y - 4, _WIDTH - 100, y - 4, f"line{i + 1}"), _text(_WIDTH - 94, y, name)]
    return _svg(text, height, *parts)


def histogram(shares: np.ndarray, band: float, across: str, text: str) -> Html:
    """Shares of the rows in equal bins of (0, 1), with the line that each should reach.

    Arguments:
        shares: Shape (bins,).
        band: How far a share may lie from its expectation by chance, two standard errors.
    """
    height, even = 170.0, 1 / len(shares)
    to_x, to_y, axes = _axes((0.0, 1.0), (0.0, max(float(shares.max()), even + band) * 1.1), height, across, "share")
    width = to_x(1 / len(shares)) - to_x(0.0)
    top, bottom = to_y(even + band), to_y(max(even - band, 0.0))
    size = {"x": f"{to_x(0.0):.1f}", "width": f"{to_x(1.0) - to_x(0.0):.1f}"}
    parts = [tag("rect", **size, y=f"{top:.1f}", height=f"{bottom - top:.1f}", class_="band")]
    for i, share in enumerate(shares.tolist()):
        place = {"x": f"{to_x(i / len(shares)) + 1:.1f}", "width": f"{width - 2:.1f}"}
        parts.append(
            tag("rect", **place, y=f"{to_y(share):.1f}", height=f"{to_y(0.0) - to_y(share):.1f}", class_="bar")
        )
    parts.append(_line(to_x(0.0), to_y(even), to_x(1.0), to_y(even), "zero"))
    return _svg(text, height, *parts, *axes)


def differences(rows: Sequence[tuple[str, str, float, float, int]], text: str) -> Html:
    """As ``plots.report.differences``: names stand above their lines, so that narrow screens have room for both."""
    step, height = 34.0, 34.0 * len(rows) + _BOTTOM + _TOP
    finite = [
        (value, 0.0 if math.isnan(error) else 2 * error) for _, _, value, error, _ in rows if math.isfinite(value)
    ]
    low, high = _padded(np.array([0.0, *(v + side * e for v, e in finite for side in (-1, 1))]), 0.08)
    to_x = _scale(low, high, 14.0, _WIDTH - 14.0)
    bottom = height - _BOTTOM
    parts = [_line(to_x(0.0), _TOP, to_x(0.0), bottom, "zero"), _line(14, bottom, _WIDTH - 14, bottom, "axis")]
    for value in ticks(low, high):
        parts += [_line(to_x(value), bottom, to_x(value), bottom + 4, "axis")]
        parts += [_text(to_x(value), bottom + 16, _number(value), "middle")]
    parts.append(_text(_WIDTH / 2, height - 6, "nats of all rows, less those of the better model", "middle"))
    for i, row in enumerate(rows):
        parts += _difference(row, _TOP + step * i, to_x)
    return _svg(text, height, *parts)


def _difference(row: tuple[str, str, float, float, int], top: float, to_x: Scale) -> list[Html]:
    name, against, value, error, side = row
    y, label = top + 24, _text(14, top + 12, _cut(f"{name} against {against}"), class_="label")
    if math.isinf(value):
        edge = 14.0 if value < 0 else _WIDTH - 14.0
        return [label, _text(edge, y + 4, "−∞" if value < 0 else "∞", "start" if value < 0 else "end")]
    half = 0.0 if math.isnan(error) else 2 * error
    begin, end = to_x(value - half), to_x(value + half)
    parts = [
        label,
        _line(begin, y, end, y, "line1"),
        tag("circle", cx=f"{to_x(value):.1f}", cy=y, r="3.5", class_="dot solid"),
    ]
    if side:
        tip = (end if side > 0 else begin) + side * 11
        near = tip - side * 8
        points = f"{tip:.1f},{y} {near:.1f},{y - 4} {near:.1f},{y + 4}"
        parts += [
            _line(end if side > 0 else begin, y, near, y, "line1"),
            tag("polygon", points=points, class_="dot solid"),
        ]
    return parts


def _cut(text: str, most: int = 52) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
