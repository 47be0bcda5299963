"""Trees: the one of the highest likelihood, and the classifier that is one below its class."""

import numpy as np

from probgen.errors import ParameterError, StructureError, nearest
from probgen.models.bayesnet.structure.columns import Data
from probgen.models.bayesnet.structure.scores import Criterion, Scorer

__all__ = ["chow_liu", "tan"]


def chow_liu(data: Data, root: str | None = None) -> np.ndarray:
    """The tree of the highest likelihood (Chow and Liu 1968), (V, V) uint8 [parent, child]: it joins what tells most of
    each other. Constant columns stay apart.

    Arguments:
        root: From which the edges lead away; None: the first column. All choices are Markov equivalent.
    """
    start = 0 if root is None else _place(data, root, "root")
    _refuse_continuous(data, "chow-liu")
    members = _varying(data)
    if start not in members:
        members = [start, *members]
    return _spanning(data.width, members, start, _information(data, ()))


def tan(data: Data, target: str | None) -> np.ndarray:
    """Tree-augmented naive Bayes (Friedman, Geiger and Goldszmidt 1997), (V, V) uint8 [parent, child]: the target is a
    parent of all, and the others make the tree of the highest likelihood given it."""
    if target is None:
        raise ParameterError(
            "method='tan' without target=", "the column of the class", f"One of {list(data.names)[:12]}"
        )
    own = _place(data, target, "target")
    _refuse_continuous(data, "tan")
    members = [v for v in _varying(data) if v != own]
    graph = np.zeros((data.width, data.width), dtype=np.uint8)
    if members:
        graph = _spanning(data.width, members, members[0], _information(data, (own,)))
        graph[own, members] = 1
    return graph


def _place(data: Data, name: str, what: str) -> int:
    if name not in data.names:
        raise ParameterError(f"{what}={name!r} is no column", "", nearest(str(name), data.names))
    return data.names.index(name)


def _refuse_continuous(data: Data, method: str) -> None:
    if data.mixed:
        first = data.names[int(np.flatnonzero(data.continuous)[0])]
        raise StructureError(
            f"Column {first!r} is continuous", f"categories, for method={method!r}", "Leave it out, or method='tabu'"
        )


def _varying(data: Data) -> list[int]:
    return np.flatnonzero(~data.constant).tolist()


def _information(data: Data, given: tuple[int, ...]) -> np.ndarray:
    """Mutual information of all pairs given some columns, times the rows, in nats, (V, V)."""
    children = [v for v in range(data.width) if v not in given]
    rows = Scorer(data, Criterion("loglik")).rows([(child, given) for child in children])
    found = np.zeros((data.width, data.width))
    found[children] = rows - rows[np.arange(len(children)), children][:, None]
    return (found + found.T) / 2


def _spanning(width: int, members: list[int], start: int, weights: np.ndarray) -> np.ndarray:
    """The heaviest spanning tree of some nodes, directed away from one (Prim 1957)."""
    graph = np.zeros((width, width), dtype=np.uint8)
    nearest_in = np.full(width, start)
    left = [v for v in members if v != start]
    while left:
        child = max(left, key=lambda v: (weights[nearest_in[v], v], -v))
        graph[nearest_in[child], child] = 1
        left.remove(child)
        for v in left:
            if weights[child, v] > weights[nearest_in[v], v]:
                nearest_in[v] = child
    return graph
