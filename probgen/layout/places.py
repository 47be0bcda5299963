"""What a layout is, and how parts of a graph stand side by side."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Edge = tuple[str, str]
GAP = 0.22  # inches between neighbours


@dataclass(frozen=True)
class Layout:
    """Places in inches, y upwards, all above and right of the origin.

    Arguments:
        places: The centre of each node's box.
        routes: Of each edge in layers, the points that its line passes: its tail, where it enters and leaves each layer
            between, its head. Other edges are straight lines between centres and have none.
        width, height: Of the whole.
    """

    places: dict[str, Point]
    routes: dict[Edge, list[Point]]
    width: float
    height: float


def within(part: Sequence[str], edges: Sequence[Edge]) -> list[Edge]:
    inside = set(part)
    return [edge for edge in edges if edge[0] in inside]


def parts_of(nodes: Sequence[str], edges: Sequence[Edge]) -> list[list[str]]:
    """Connected parts, the largest first, nodes in their order."""
    beside = defaultdict(set)
    for a, b in edges:
        beside[a].add(b)
        beside[b].add(a)
    number: dict[str, int] = {}
    for i, name in enumerate(nodes):
        stack = [name]
        while stack:
            if (one := stack.pop()) not in number:
                number[one] = i
                stack.extend(beside[one])
    found = defaultdict(list)
    for name in nodes:
        found[number[name]].append(name)
    return sorted(found.values(), key=len, reverse=True)


def pack(parts: Sequence[Layout], gap: float = 0.3) -> Layout:
    """Parts on shelves, as wide as the widest or as four thirds of the height that they then have."""
    area = sum((part.width + gap) * (part.height + gap) for part in parts)
    limit = max(max(part.width for part in parts), (1.6 * area) ** 0.5)
    shelves: list[list[Layout]] = [[]]
    for part in parts:
        if shelves[-1] and sum(p.width + gap for p in shelves[-1]) + part.width > limit:
            shelves.append([])
        shelves[-1].append(part)
    places: dict[str, Point] = {}
    routes: dict[Edge, list[Point]] = {}
    top = total = sum(max(p.height for p in shelf) + gap for shelf in shelves) - gap
    for shelf in shelves:
        left = 0.0
        for part in shelf:
            bottom = top - part.height
            places |= {name: (x + left, y + bottom) for name, (x, y) in part.places.items()}
            routes |= {e: [(x + left, y + bottom) for x, y in points] for e, points in part.routes.items()}
            left += part.width + gap
        top -= max(p.height for p in shelf) + gap
    width = max(sum(p.width + gap for p in shelf) - gap for shelf in shelves)
    return Layout(places, routes, width, total)


_NARROW, _WIDE = frozenset("iljfIt.,:;|!'()[]{}/ "), frozenset("mwMW@%—")


def shown(text: str) -> str:
    """A label cut to 28 characters."""
    return text if len(text) <= 28 else text[:27] + "…"


def text_width(text: str, points: float) -> float:
    """About as wide as a label is in a sans-serif letter of that size, in inches; rather more than less."""
    ems = (0.42 if c in _NARROW else 1.0 if c in _WIDE or ord(c) > 0x2E80 else 0.7 if c < "a" else 0.63 for c in text)
    return sum(ems) * points / 72
