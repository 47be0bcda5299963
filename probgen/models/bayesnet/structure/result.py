"""What learning a graph gives beside the network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import ParameterError
from probgen.models.bayesnet import graph
from probgen.models.bayesnet.structure.greedy import Step

__all__ = ["Strengths", "Structure", "edges_of", "parents_of"]

Edge = tuple[str, str]


def edges_of(names: tuple[str, ...], found: np.ndarray) -> tuple[Edge, ...]:
    """Edges (parent, child) of a (V, V) graph [parent, child], child by child, parents in the order of the columns."""
    return tuple((names[a], names[b]) for b, a in np.argwhere(found.T))


def parents_of(found: np.ndarray) -> list[list[int]]:
    """Each column's parents, by number."""
    return [np.flatnonzero(column).tolist() for column in found.T]


@dataclass(frozen=True, eq=False)
class Strengths:
    """How often edges are found in bootstrap samples of the rows (Friedman, Goldszmidt and Wyner 1999).

    Arguments:
        names: Of the V columns.
        shares: (V, V) [parent, child]: the share of samples whose equivalence class has the edge so directed, those
            that leave its direction open counting half each way.
        replicates: How many samples.
    """

    names: tuple[str, ...]
    shares: np.ndarray
    replicates: int

    def __getitem__(self, edge: Edge) -> float:
        """The share of samples in which two columns are joined, either way."""
        a, b = (self.names.index(name) for name in edge)
        return float(self.shares[a, b] + self.shares[b, a])

    def direction(self, edge: Edge) -> float:
        """The share of those samples for parent -> child; NaN where the two are never joined."""
        a, b = (self.names.index(name) for name in edge)
        joined = self.shares[a, b] + self.shares[b, a]
        return float(self.shares[a, b] / joined) if joined else float("nan")

    def weights(self, edges: Any) -> dict[Edge, float]:
        """By edge, for ``plot(weights=...)``."""
        return {tuple(edge): self[edge] for edge in edges}

    def edges(self, above: float = 0.5) -> list[tuple[str, str, float, float]]:
        """(parent, child, strength, direction) of what is joined in more than a share of the samples, strongest first,
        directed as most samples have it."""
        if not 0 <= above < 1:
            raise ParameterError(f"above={above!r}", "a share from 0 to below 1")
        joined = self.shares + self.shares.T
        pairs = [(a, b) for a, b in np.argwhere(np.triu(joined > above, 1)).tolist()]
        pairs = [(a, b) if self.shares[a, b] >= self.shares[b, a] else (b, a) for a, b in pairs]
        named = [(self.names[a], self.names[b]) for a, b in sorted(pairs, key=lambda p: (-joined[p], p))]
        return [(*edge, self[edge], self.direction(edge)) for edge in named]


@dataclass(frozen=True, eq=False)
class Structure:
    """A learned graph.

    Arguments:
        names: Of the columns.
        edges: (parent, child).
        score: Of the graph over all rows, in nats, higher is better.
        criterion: Which score: "bic", "aic", "bdeu(1.0)", "k2", or "loglik" of trees.
        method: How it was found.
        rows: How many rows it was learned from.
        families: The part of the score of each column given its parents; with missing cells, of their last completions.
        history: The steps of a greedy search.
        evaluated: Families scored; each came with the scores of all families one parent away.
        strengths: Bootstrap strengths, where asked for.
        known: Edges whose direction the user's constraints fix.
        notes: How each column was read, and what is odd.
    """

    names: tuple[str, ...]
    edges: tuple[Edge, ...]
    score: float
    criterion: str
    method: str
    rows: int
    families: Mapping[str, float] = field(default_factory=dict, repr=False)
    history: tuple[Step, ...] = field(default=(), repr=False)
    evaluated: int = 0
    strengths: Strengths | None = None
    known: tuple[Edge, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parents(self) -> dict[str, tuple[str, ...]]:
        return graph.parents_of(self.names, self.edges)

    @property
    def cpdag(self) -> tuple[list[Edge], list[Edge]]:
        """The equivalence class: edges that all its graphs direct alike, and those that point either way, which data
        alone can't tell. Directions that the user's constraints fix, and what follows from them, count as directed."""
        directed, undirected = graph.cpdag(self.parents)
        if not self.known:
            return directed, undirected
        fixed = {*directed, *self.known}
        return graph.meek(list(self.names), fixed, [e for e in undirected if e not in fixed and e[::-1] not in fixed])

    def distance(self, edges: Any) -> int:
        """Structural Hamming distance of the equivalence class from that of another graph: pairs of columns that are
        joined, or directed, otherwise (Tsamardinos, Brown and Aliferis 2006)."""
        other = graph.parents_of(self.names, edges)
        mine, theirs = _classes(graph.cpdag(self.parents)), _classes(graph.cpdag(other))
        return sum(mine.get(pair) != theirs.get(pair) for pair in {*mine, *theirs})

    def frame(self) -> Any:
        """An Arrow table of the edges: parent, child, whether its class fixes the direction, and strengths."""
        fixed = set(self.cpdag[0])
        found: dict[str, Any] = {
            "parent": np.array([a for a, _ in self.edges], dtype=object),
            "child": np.array([b for _, b in self.edges], dtype=object),
            "directed": np.array([edge in fixed for edge in self.edges], dtype=bool),
        }
        if self.strengths is not None:
            found["strength"] = np.array([self.strengths[edge] for edge in self.edges])
            found["direction"] = np.array([self.strengths.direction(edge) for edge in self.edges])
        return frames.table(found)


def _classes(cpdag: tuple[list[Edge], list[Edge]]) -> dict[frozenset[str], Edge | frozenset[str]]:
    """How each joined pair is joined: an arrow, or a line."""
    directed, undirected = cpdag
    return {frozenset(e): e for e in directed} | {frozenset(e): frozenset(e) for e in undirected}
