"""Directed acyclic graphs: orders, separation, blankets and equivalence classes; no distribution is looked at.

A graph is a mapping of each node to its parents, in the order of the columns. Answers follow that order. Every function
but ``find_cycle`` and ``topological_order`` takes it for acyclic.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import combinations

from probgen.errors import ParameterError, StructureError, nearest

__all__ = [
    "ancestors",
    "children_of",
    "cpdag",
    "d_separated",
    "descendants",
    "equivalent",
    "find_cycle",
    "markov_blanket",
    "meek",
    "moral",
    "parents_of",
    "skeleton",
    "topological_order",
    "v_structures",
]

Parents = Mapping[str, Sequence[str]]
Edge = tuple[str, str]


def parents_of(names: Sequence[str], edges: Iterable[Edge]) -> dict[str, tuple[str, ...]]:
    """The parents of each node, in the order in which its edges come.

    Raises:
        StructureError: an edge that is no pair of known names, a loop, or one that comes twice.
    """
    found: dict[str, dict[str, None]] = {name: {} for name in names}
    for edge in edges:
        if isinstance(edge, str) or len(edge) != 2:
            raise StructureError(f"edge {edge!r}", "a pair (parent, child)")
        parent, child = edge
        for name in edge:
            if name not in found:
                raise StructureError(f"edge {parent!r} -> {child!r}: no variable {name!r}", "", nearest(name, found))
        if parent == child:
            raise StructureError(f"edge {parent!r} -> {child!r}", "two different variables", "Leave the loop out")
        if parent in found[child]:
            raise StructureError(f"edge {parent!r} -> {child!r} comes twice", "each edge once")
        found[child][parent] = None
    return {name: tuple(own) for name, own in found.items()}


def children_of(parents: Parents) -> dict[str, tuple[str, ...]]:
    """The children of each node, in the order of the nodes."""
    found: dict[str, list[str]] = {name: [] for name in parents}
    for child, own in parents.items():
        for parent in own:
            found[parent].append(child)
    return {name: tuple(own) for name, own in found.items()}


def topological_order(parents: Parents) -> list[str]:
    """Parents before children; among the free ones the first in the order of the nodes (Kahn 1962).

    Raises:
        StructureError: a cycle, by its nodes.
    """
    names, children = list(parents), children_of(parents)
    place = {name: i for i, name in enumerate(names)}
    open_parents = {name: len(own) for name, own in parents.items()}
    free = [place[name] for name in names if not open_parents[name]]
    heapify(free)
    order = []
    while free:
        order.append(names[heappop(free)])
        for child in children[order[-1]]:
            open_parents[child] -= 1
            if not open_parents[child]:
                heappush(free, place[child])
    if len(order) < len(names):
        cycle = " -> ".join(find_cycle(parents) or ())
        raise StructureError(f"The edges make a cycle: {cycle}", "an acyclic graph", "Take one of these edges out")
    return order


def find_cycle(parents: Parents) -> tuple[str, ...] | None:
    """A directed cycle, its first node repeated at the end, or None."""
    open_parents = {name: set(own) for name, own in parents.items()}
    children = children_of(parents)
    free = [name for name, own in open_parents.items() if not own]
    while free:
        name = free.pop()
        for child in children[name]:
            open_parents[child].discard(name)
            if not open_parents[child]:
                free.append(child)
        del open_parents[name]
    return _walk_back(open_parents) if open_parents else None


def _walk_back(parents: Mapping[str, set[str]]) -> tuple[str, ...]:
    """A cycle of a graph in which every node has a parent."""
    name, path = next(iter(parents)), dict[str, int]()
    while name not in path:
        path[name] = len(path)
        name = min(parents[name])
    cycle = list(path)[path[name] :][::-1]
    return (*cycle, cycle[0])


def ancestors(parents: Parents, nodes: str | Iterable[str]) -> set[str]:
    """Some nodes and all their ancestors."""
    return _closure(parents, _named(parents, nodes, "nodes"))


def descendants(parents: Parents, nodes: str | Iterable[str]) -> set[str]:
    """Some nodes and all their descendants."""
    return _closure(children_of(parents), _named(parents, nodes, "nodes"))


def _closure(steps: Mapping[str, Sequence[str]], nodes: Iterable[str]) -> set[str]:
    found = set(nodes)
    stack = list(found)
    while stack:
        new = [name for name in steps[stack.pop()] if name not in found]
        found.update(new)
        stack.extend(new)
    return found


def skeleton(parents: Parents) -> list[Edge]:
    """The edges without their directions, each pair in the order of the nodes."""
    place = {name: i for i, name in enumerate(parents)}
    pairs = {(min(place[a], place[b]), max(place[a], place[b])) for b, own in parents.items() for a in own}
    names = list(parents)
    return [(names[i], names[j]) for i, j in sorted(pairs)]


def moral(parents: Parents) -> dict[str, set[str]]:
    """Neighbours of each node in the moral graph: directions dropped, parents of a common child married."""
    found: dict[str, set[str]] = {name: set() for name in parents}
    for child, own in parents.items():
        for a, b in combinations((child, *own), 2):
            found[a].add(b)
            found[b].add(a)
    return found


def markov_blanket(parents: Parents, node: str) -> tuple[str, ...]:
    """The parents, children and children's other parents: given them, no other variable tells more about the node."""
    _named(parents, node, "node")
    found = set(parents[node])
    for own in ((child, *of) for child, of in parents.items() if node in of):
        found.update(own)
    return tuple(name for name in parents if name in found and name != node)


def d_separated(
    parents: Parents, a: str | Iterable[str], b: str | Iterable[str], given: str | Iterable[str] = ()
) -> bool:
    """Whether every path between two sets of nodes is blocked by a third (Koller and Friedman 2009, algorithm 3.1).

    Then a and b are independent given the third in every distribution that factorises over the graph.

    Raises:
        ParameterError: an unknown name, or a name in two of the sets.
    """
    first, second, known = (_named(parents, s, w) for s, w in ((a, "a"), (b, "b"), (given, "given")))
    for one, other in combinations((first, second, known), 2):
        if shared := sorted(one & other):
            raise ParameterError(f"{shared[0]!r} is in two of a, b and given", "three sets that share no name")
    return not _reachable(parents, first, known) & second


def _reachable(parents: Parents, sources: set[str], given: set[str]) -> set[str]:
    """Nodes at the end of an active path from the sources, themselves included."""
    children, above = children_of(parents), _closure(parents, given)
    seen: set[tuple[str, bool]] = set()
    stack = [(name, True) for name in sources]  # True: the path comes up, from a child
    found = set()
    while stack:
        step = stack.pop()
        if step in seen:
            continue
        seen.add(step)
        name, up = step
        if name not in given:
            found.add(name)
            stack.extend((child, False) for child in children[name])
        if (up and name not in given) or (not up and name in above):
            stack.extend((parent, True) for parent in parents[name])
    return found


def _named(parents: Parents, nodes: str | Iterable[str], what: str) -> set[str]:
    names = [nodes] if isinstance(nodes, str) else list(nodes)
    for name in names:
        if name not in parents:
            raise ParameterError(f"{what}={name!r} is no variable", "", nearest(str(name), parents))
    return set(names)


def v_structures(parents: Parents) -> list[tuple[str, str, str]]:
    """Triples (a, child, b) of parents that are not joined themselves, a before b in the order of the nodes."""
    place = {name: i for i, name in enumerate(parents)}
    joined = {frozenset((a, b)) for b, own in parents.items() for a in own}
    return [
        (a, child, b)
        for child, own in parents.items()
        for a, b in combinations(sorted(own, key=place.__getitem__), 2)
        if frozenset((a, b)) not in joined
    ]


def equivalent(parents: Parents, others: Parents) -> bool:
    """Whether two graphs claim the same independences: same skeleton, same v-structures (Verma and Pearl 1990)."""
    return (
        set(parents) == set(others)
        and set(map(frozenset, skeleton(parents))) == set(map(frozenset, skeleton(others)))
        and _colliders(parents) == _colliders(others)
    )


def _colliders(parents: Parents) -> set[tuple[frozenset[str], str]]:
    return {(frozenset((a, b)), child) for a, child, b in v_structures(parents)}


def cpdag(parents: Parents) -> tuple[list[Edge], list[Edge]]:
    """The Markov equivalence class: edges directed alike in all its graphs, and those that are not (Meek 1995).

    Returns:
        Directed edges (parent, child), and undirected pairs in the order of the nodes.
    """
    pairs = skeleton(parents)
    compelled = {(p, child) for a, child, b in v_structures(parents) for p in (a, b)}
    return meek(list(parents), compelled, [p for p in pairs if p not in compelled and p[::-1] not in compelled])


def meek(names: Sequence[str], directed: Iterable[Edge], undirected: Sequence[Edge]) -> tuple[list[Edge], list[Edge]]:
    """Directs what follows from the directed edges without a new v-structure or a cycle (Meek 1995, rules 1 to 4).

    With directed edges that are v-structures, required ones or tiers, the result is the maximally directed graph.
    """
    graph = _Partial(names, directed, undirected)
    queue = deque(pair for a, b in undirected for pair in ((a, b), (b, a)))
    while queue:
        a, b = queue.popleft()
        if b in graph.lines[a] and graph.compels(a, b):
            graph.direct(a, b)
            queue.extend(pair for end in (a, b) for c in graph.near(end) for pair in graph.lines_at(c))
    place = {name: i for i, name in enumerate(names)}
    arrows = [(a, b) for b in names for a in sorted(graph.into[b], key=place.__getitem__)]
    lines = [(a, b) for a in names for b in sorted(graph.lines[a], key=place.__getitem__) if place[a] < place[b]]
    return arrows, lines


class _Partial:
    """A graph of arrows and lines: ``into`` and ``out`` of each node, and ``lines`` at it."""

    def __init__(self, names: Sequence[str], directed: Iterable[Edge], undirected: Sequence[Edge]) -> None:
        self.into: dict[str, set[str]] = {name: set() for name in names}
        self.out: dict[str, set[str]] = {name: set() for name in names}
        self.lines: dict[str, set[str]] = {name: set() for name in names}
        for a, b in directed:
            self.into[b].add(a)
            self.out[a].add(b)
        for a, b in undirected:
            self.lines[a].add(b)
            self.lines[b].add(a)

    def near(self, a: str) -> set[str]:
        return self.into[a] | self.out[a] | self.lines[a]

    def lines_at(self, a: str) -> list[Edge]:
        return [pair for b in self.lines[a] for pair in ((a, b), (b, a))]

    def direct(self, a: str, b: str) -> None:
        self.lines[a].discard(b)
        self.lines[b].discard(a)
        self.into[b].add(a)
        self.out[a].add(b)

    def compels(self, a: str, b: str) -> bool:
        """Whether a - b must be a -> b."""
        near_b = self.near(b)
        if self.into[a] - near_b or self.out[a] & self.into[b]:  # rules 1 and 2
            return True
        sides = self.lines[a] & self.into[b]
        if any(d not in self.near(c) for c, d in combinations(sides, 2)):  # rule 3
            return True
        corners = self.near(a) & self.into[b]  # rule 4: a - c -> d -> b, a joined to d, c not to b
        return any(self.into[d] & self.lines[a] - near_b for d in corners)
