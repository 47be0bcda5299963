"""What a user knows of a graph before it is learned."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.errors import ParameterError, StructureError, nearest
from probgen.models.bayesnet import graph
from probgen.models.bayesnet.structure.columns import Data

__all__ = ["Constraints", "Edges"]

Edges = Iterable[tuple[str, str]]

_LARGEST = 2**26  # cells of a required table


@dataclass(frozen=True, eq=False)
class Constraints:
    """Which graphs may be learned.

    Arguments:
        allowed: (V, V) uint8, [parent, child]: edges that may be there.
        required: (V, V) uint8: edges that must.
        most: (V,) int64: parents at most.
        known: (V, V) bool: directions that the user knows, of edges that may be there.
        given: Whether the user asked for any of it.
        notes: What follows from it.
    """

    allowed: np.ndarray
    required: np.ndarray
    most: np.ndarray
    known: np.ndarray
    given: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, data: Data, *, forbidden: Edges = (), required: Edges = (), tiers: Sequence[Iterable[str]] | None = None,
        max_parents: int | None = None,
    ) -> "Constraints":  # fmt: skip
        """From names.

        Arguments:
            forbidden, required: Edges (parent, child).
            tiers: Groups of names, causes first: no edge leads from a later group to an earlier one. Names in no
                group are free.
            max_parents: Of any variable.

        Raises:
            ParameterError: an unknown name, an edge that is no pair, a name in two tiers, ``max_parents`` out of range.
            StructureError: required edges that make a cycle, or that something else forbids.
        """
        forbids, requires = _matrix(data.names, forbidden, "forbidden"), _matrix(data.names, required, "required")
        backwards = np.zeros_like(forbids) if tiers is None else _backwards(data.names, tiers)
        free = _possible(data, requires) & ~forbids & ~backwards
        most = _most(data, max_parents)
        _refuse_contradictions(data, forbids, requires, free, most)
        given = bool(forbids.any() or requires.any() or tiers is not None or max_parents is not None)
        notes = _crowded(data, requires)
        known = requires | (forbids | backwards).T
        return cls(free.astype(np.uint8), requires.astype(np.uint8), most, known, given, notes)


def _matrix(names: Sequence[str], edges: Any, what: str) -> np.ndarray:
    """Named edges as (V, V) booleans, [parent, child]."""
    if isinstance(edges, str | bytes | Mapping) or not isinstance(edges, Iterable):
        raise ParameterError(f"{what}={edges!r}", "pairs (parent, child)", f"{what}=[({names[0]!r}, {names[-1]!r})]")
    found, place = np.zeros((len(names), len(names)), dtype=bool), {name: i for i, name in enumerate(names)}
    for edge in edges:
        if not isinstance(edge, list | tuple) or len(edge) != 2:
            raise ParameterError(f"{what} edge {edge!r}", "a pair of names (parent, child)")
        for name in edge:
            if name not in place:
                raise ParameterError(f"{what} edge {edge!r}: there is no column {name!r}", "", nearest(name, names))
        if edge[0] == edge[1]:
            raise StructureError(f"{what} edge {edge!r}", "two different columns")
        found[place[edge[0]], place[edge[1]]] = True
    return found


def _possible(data: Data, requires: np.ndarray) -> np.ndarray:
    """No loops, no edges at constant columns but required ones, no continuous parents of categories."""
    still = data.constant[:, None] | data.constant
    free = (~still | requires) & ~np.eye(data.width, dtype=bool)
    return free & ~(data.continuous[:, None] & ~data.continuous)


def _backwards(names: Sequence[str], tiers: Any) -> np.ndarray:
    """Edges from a later tier to an earlier one."""
    if isinstance(tiers, str | bytes) or not isinstance(tiers, Iterable):
        raise ParameterError(f"tiers={tiers!r}", "groups of names, causes first", "tiers=[['age', 'sex'], ['smokes']]")
    rank: dict[str, int] = {}
    for level, tier in enumerate(tiers):
        for name in [tier] if isinstance(tier, str) else tier:
            if name not in names:
                raise ParameterError(f"tiers: there is no column {name!r}", "", nearest(str(name), names))
            if name in rank:
                raise ParameterError(f"tiers: {name!r} comes twice", "each name in one tier")
            rank[name] = level
    ranks = np.array([rank.get(name, -1) for name in names])
    return (ranks[:, None] > ranks) & (ranks >= 0)


def _most(data: Data, max_parents: int | None) -> np.ndarray:
    if max_parents is None:
        return np.full(data.width, data.width, dtype=np.int64)
    if isinstance(max_parents, bool) or not isinstance(max_parents, int) or max_parents < 0:
        raise ParameterError(f"max_parents={max_parents!r}", "a whole number from 0, or None")
    return np.full(data.width, max_parents, dtype=np.int64)


def _refuse_contradictions(
    data: Data, forbids: np.ndarray, requires: np.ndarray, free: np.ndarray, most: np.ndarray
) -> None:
    names = data.names
    for a, b in zip(*np.nonzero(requires & ~free), strict=True):
        if forbids[a, b]:
            raise StructureError(f"The edge {names[a]} -> {names[b]} is required and forbidden", "one of the two")
        if data.continuous[a] and not data.continuous[b]:
            raise StructureError(
                f"The required edge {names[a]} -> {names[b]} leads from a continuous column to a category",
                "categories as parents of continuous columns",
                "Turn the edge, or declare the column as events.Category",
            )
        raise StructureError(f"The required edge {names[a]} -> {names[b]} leads back to an earlier tier", "later tiers")
    parents = {name: [names[a] for a in np.flatnonzero(requires[:, b])] for b, name in enumerate(names)}
    if cycle := graph.find_cycle(parents):
        raise StructureError(f"The required edges make a cycle: {' -> '.join(cycle)}", "edges without a cycle")
    for child in np.flatnonzero(requires.sum(0) > most):
        raise StructureError(
            f"{names[child]!r} has {requires[:, child].sum()} required parents, max_parents is {most[child]}",
            "at least as many as are required",
        )


def _crowded(data: Data, requires: np.ndarray) -> tuple[str, ...]:
    """Required families with more configurations than rows; those that can't be tabulated are refused."""
    notes = []
    for child in np.flatnonzero(requires.any(0)):
        parents = np.flatnonzero(requires[:, child])
        configurations = float(np.prod(data.cards[parents].astype(np.float64)))
        if configurations * data.cards[child] > _LARGEST:
            raise StructureError(
                f"The required parents of {data.names[child]!r} have {configurations:.3g} configurations",
                f"a table of at most {_LARGEST} cells",
                "Require fewer parents",
            )
        if configurations > data.rows:
            notes.append(
                f"{data.names[child]}: {configurations:.0f} configurations of its required parents for "
                f"{data.rows:.0f} rows: most are never seen"
            )
    return tuple(notes)
