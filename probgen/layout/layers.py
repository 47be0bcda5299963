"""Graphs with directions in layers, after Sugiyama, Tagawa and Toda (1981)."""

from bisect import bisect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from probgen.layout.places import GAP, Edge, Layout, Point, within

_LANE = 0.12  # inches, the width of an edge that passes a layer
_TINY, _SMALL = 150, 1500  # nodes and passing edges up to which several starts, and exchanged neighbours, are tried


def layered(
    nodes: Sequence[str], directed: Sequence[Edge], undirected: Sequence[Edge], sizes: Mapping[str, Point]
) -> Layout:
    index = {name: i for i, name in enumerate(nodes)}
    pairs = [(index[a], index[b]) for a, b in [*within(nodes, directed), *within(nodes, undirected)]]
    order = _order(len(nodes), pairs[: len(within(nodes, directed))])
    rank = {v: i for i, v in enumerate(order)}
    down = sorted({(a, b) if rank[a] < rank[b] else (b, a) for a, b in pairs})
    level = _levels(order, down)
    rows, chains = _rows(level, down)
    _uncross(rows, chains)
    wide = {v: sizes[nodes[v]][0] + GAP if v < len(nodes) else _LANE for row in rows for v in row}
    x = _columns(rows, chains, wide, len(nodes))
    tall = max(sizes[name][1] for name in nodes)
    y = _heights(rows, chains, x, tall)
    left = min(x[v] - wide[v] / 2 for row in rows for v in row)
    right = max(x[v] + wide[v] / 2 for row in rows for v in row)
    places = {name: (x[i] - left, y[level[i]]) for name, i in index.items()}
    routes = {}
    for a, b in [*within(nodes, directed), *within(nodes, undirected)]:
        i, j = (index[a], index[b]) if rank[index[a]] < rank[index[b]] else (index[b], index[a])
        lanes = _lanes([(x[v] - left, y[level[i] + k]) for k, v in enumerate(chains[i, j])], tall)
        points = _ends(nodes[i], nodes[j], places, sizes, lanes)
        routes[a, b] = points if index[a] == i else points[::-1]
    return Layout(places, routes, right - left, y[0] + tall / 2)


def _order(n: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """Tails before heads; in a cycle the node that the fewest arrows enter and the most leave goes first."""
    into, out = [set() for _ in range(n)], [set() for _ in range(n)]  # type: tuple[list[set[int]], list[set[int]]]
    for a, b in arrows:
        into[b].add(a)
        out[a].add(b)
    left, order = dict.fromkeys(range(n)), []
    while left:
        free = [v for v in left if not into[v]] or [min(left, key=lambda v: len(into[v]) - len(out[v]))]
        for v in free:
            order.append(v)
            del left[v]
            for w in out[v]:
                into[w].discard(v)
    return order


def _levels(order: Sequence[int], down: Sequence[tuple[int, int]]) -> list[int]:
    """A layer for each node: by the longest way from above, at most so many in one, then as near to what is below."""
    n, above, below = len(order), defaultdict(list), defaultdict(list)
    for a, b in down:
        above[b].append(a)
        below[a].append(b)
    cap, size, level = max(6, int(np.ceil(1.8 * n**0.5))), defaultdict[int, int](int), [0] * n
    for v in order:
        level[v] = max((level[u] + 1 for u in above[v]), default=0)
        while size[level[v]] >= cap:
            level[v] += 1
        size[level[v]] += 1
    for v in reversed(order):
        lowest = min((level[w] for w in below[v]), default=0) - 1
        if len(below[v]) >= len(above[v]) and lowest > level[v]:
            room = [k for k in range(level[v] + 1, lowest + 1) if size[k] < cap]
            size[level[v]] -= 1
            level[v] = max(room, default=level[v])
            size[level[v]] += 1
    used = {k: i for i, k in enumerate(sorted(set(level)))}
    return [used[k] for k in level]


Chains = dict[tuple[int, int], list[int]]


def _rows(level: Sequence[int], down: Sequence[tuple[int, int]]) -> tuple[list[list[int]], Chains]:
    """The nodes of each layer, with a numbered place for each edge that passes it, and what each edge passes."""
    rows: list[list[int]] = [[] for _ in range(max(level) + 1)]
    for v, k in enumerate(level):
        rows[k].append(v)
    fresh, chains = len(level), {}
    for a, b in down:
        lanes = list(range(fresh, fresh + level[b] - level[a] - 1))
        for k, lane in enumerate(lanes, level[a] + 1):
            rows[k].append(lane)
        fresh += len(lanes)
        chains[a, b] = [a, *lanes, b]
    return [_mixed(row, len(level)) for row in rows], chains


def _mixed(row: Sequence[int], n: int) -> list[int]:
    """Nodes and passing edges spread evenly among each other."""
    groups = [[v for v in row if v < n], [v for v in row if v >= n]]
    shares = [((i + 0.5) / len(group), v) for group in groups for i, v in enumerate(group)]
    return [v for _, v in sorted(shares)]


def _beside(chains: Chains) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """What is joined to each place in the layer above, and in the layer below."""
    up, low = defaultdict(list), defaultdict(list)
    for chain in chains.values():
        for a, b in pairwise(chain):
            up[b].append(a)
            low[a].append(b)
    return up, low


def _uncross(rows: list[list[int]], chains: Chains) -> None:
    """Orders the layers so that few edges cross; the best of several starts where the graph is small."""
    near, size, random = _beside(chains), sum(map(len, rows)), np.random.default_rng(0)
    best, least = rows[:], _crossings(rows, near[1]) + 1
    for start in range(6 if size <= _TINY else 1):
        tried = [[row[i] for i in random.permutation(len(row))] if start else row[:] for row in rows]
        found, crossed = _swept(tried, *near, swaps=size <= _SMALL)
        if crossed < least:
            best, least = found, crossed
        if not least:
            break
    rows[:] = best


def _swept(
    rows: list[list[int]], up: Mapping[int, list[int]], low: Mapping[int, list[int]], swaps: bool, sweeps: int = 24
) -> tuple[list[list[int]], int]:
    """Each layer by the mean place of its neighbours, down and up in turn: the least crossed order, and how often."""
    best, least = [row[:] for row in rows], _crossings(rows, low)
    for sweep in range(sweeps):
        near, steps = (up, range(1, len(rows))) if sweep % 2 == 0 else (low, range(len(rows) - 2, -1, -1))
        for k in steps:
            other = {v: i for i, v in enumerate(rows[k - 1 if near is up else k + 1])}
            own = {v: i for i, v in enumerate(rows[k])}
            mean = {v: sum(other[w] for w in near[v]) / len(near[v]) if near[v] else own[v] for v in rows[k]}
            rows[k].sort(key=lambda v, mean=mean, own=own: (mean[v], own[v]))  # type: ignore[misc]
        if swaps:
            _swap(rows, up, low)
        if (now := _crossings(rows, low)) < least:
            best, least = [row[:] for row in rows], now
    return best, least


def _crossings(rows: Sequence[Sequence[int]], low: Mapping[int, list[int]]) -> int:
    """How many pairs of edges cross between all layers."""
    total = 0
    for row, under in pairwise(rows):
        at, seen = {v: i for i, v in enumerate(under)}, list[int]()
        for v in row:
            ends = sorted(at[w] for w in low[v])
            total += sum(len(seen) - bisect(seen, end) for end in ends)
            seen = sorted(seen + ends)
    return total


def _swap(rows: Sequence[list[int]], up: Mapping[int, list[int]], low: Mapping[int, list[int]]) -> None:
    """Exchanges neighbours where that takes crossings away."""
    at = {v: i for row in rows for i, v in enumerate(row)}
    for row in rows:
        for i in range(len(row) - 1):
            a, b = row[i], row[i + 1]
            crossed = sum((at[p] > at[q]) - (at[p] < at[q]) for near in (up, low) for p in near[a] for q in near[b])
            if crossed > 0:
                row[i], row[i + 1] = b, a
                at[a], at[b] = i + 1, i


def _columns(rows: Sequence[Sequence[int]], chains: Chains, wide: Mapping[int, float], n: int) -> dict[int, float]:
    """x of each place: near its neighbours, long edges straight, in the order of the layer and without overlap."""
    pull: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for chain in chains.values():
        for a, b in pairwise(chain):
            strength = 1.0 + 2.0 * (a >= n) + 2.0 * (b >= n) + 4.0 * (a >= n and b >= n)
            pull[a].append((b, strength))
            pull[b].append((a, strength))
    x: dict[int, float] = {}
    for row in rows:
        x |= dict(zip(row, _spread(np.zeros(len(row)), np.ones(len(row)), [wide[v] for v in row]), strict=True))
    for sweep in range(60):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            weight = np.array([sum(s for _, s in pull[v]) or 1e-3 for v in row])
            wish = np.array([sum(s * x[w] for w, s in pull[v]) if pull[v] else 1e-3 * x[v] for v in row]) / weight
            x |= dict(zip(row, _spread(wish, weight, [wide[v] for v in row]), strict=True))
    return x


def _spread(wish: np.ndarray, weight: np.ndarray, wide: Sequence[float]) -> list[float]:
    """The nearest places in weighted squares that keep order and distance: pool adjacent violators."""
    steps = [0.0, *((a + b) / 2 for a, b in pairwise(wide))]
    shift = np.cumsum(steps)
    blocks: list[list[float]] = []  # mean, weight, members
    for value, w in zip(wish - shift, weight, strict=True):
        blocks.append([float(value), float(w), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            m, v, k = blocks.pop()
            mean, total, members = blocks[-1]
            blocks[-1] = [(mean * total + m * v) / (total + v), total + v, members + k]
    level = [mean for mean, _, members in blocks for _ in range(int(members))]
    return (np.array(level) + shift).tolist()


def _heights(rows: Sequence[Sequence[int]], chains: Chains, x: Mapping[int, float], tall: float) -> list[float]:
    """y of each layer; layers between which edges go far sideways stand farther apart."""
    far = [0.0] * len(rows)
    layer = {v: k for k, row in enumerate(rows) for v in row}
    for chain in chains.values():
        for a, b in pairwise(chain):
            far[layer[a]] = max(far[layer[a]], abs(x[a] - x[b]))
    down = [0.0, *np.cumsum([tall + min(max(0.38, 0.13 * reach), 1.3) for reach in far[:-1]]).tolist()]
    return [down[-1] - y + tall / 2 for y in down]


def _lanes(corners: Sequence[Point], tall: float) -> list[Point]:
    """Where an edge enters and leaves each layer that it passes: aslant, but never into its neighbours."""
    points = []
    for (x0, y0), (x, y), (x1, y1) in zip(corners, corners[1:], corners[2:], strict=False):
        lean = float(np.clip((x1 - x0) / (y0 - y1) * tall / 2, -0.08, 0.08))
        points += [(x - lean, y + tall / 2), (x + lean, y - tall / 2)]
    return points


def _ends(a: str, b: str, places: Mapping[str, Point], sizes: Mapping[str, Point], lanes: list[Point]) -> list[Point]:
    """A route from the lower edge of box a to the upper edge of box b, leaning towards where it goes."""
    (xa, ya), (xb, yb) = places[a], places[b]
    first, last = (lanes[0][0], lanes[-1][0]) if lanes else (xb, xa)
    tail = xa + float(np.clip(0.25 * (first - xa), -0.35 * sizes[a][0], 0.35 * sizes[a][0]))
    head = xb + float(np.clip(0.25 * (last - xb), -0.35 * sizes[b][0], 0.35 * sizes[b][0]))
    return [(tail, ya - sizes[a][1] / 2), *lanes, (head, yb + sizes[b][1] / 2)]
