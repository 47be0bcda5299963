"""What patterns of missing cells make of the nodes of a network, many patterns at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probgen.conditionals import LinearGaussian
from probgen.events import Category
from probgen.models.bayesnet import graph

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Roles", "joined", "roles", "watched"]

Bools = np.ndarray  # (P, V): of each pattern and column


@dataclass(frozen=True, eq=False)
class Roles:
    """What each of P patterns makes of the nodes, bool (P, V), columns in the order of the network.

    Arguments:
        factors: Nodes whose conditional is a factor of its own.
        latents: Missing real nodes that are integrated out.
        families: Real nodes with a latent in their family, latents included.
        loose: Left out: missing, nothing observed below them.
        late: Those that make an exact sum impossible.
    """

    factors: Bools
    latents: Bools
    families: Bools
    loose: Bools
    late: Bools

    def names(self, net: "BayesianNetwork", pattern: int, role: str) -> tuple[str, ...]:
        """The nodes of a role in one pattern, in column order."""
        return tuple(net.variables[v] for v in np.flatnonzero(getattr(self, role)[pattern]))


def watched(net: "BayesianNetwork") -> list[int]:
    """Columns whose gaps decide what becomes of real nodes: these, and all that hangs below them."""
    real = [name for name in net.variables if not isinstance(net.event.columns[name], Category)]
    below = graph.descendants(net.parents, real)
    return [i for i, name in enumerate(net.variables) if name in below]


def roles(net: "BayesianNetwork", gaps: Bools, complete: bool) -> Roles:
    """The roles of nodes where some of the watched columns are missing; categories elsewhere may be missing or not.

    Arguments:
        gaps: (P, V), False in columns that are not watched.
        complete: Whether missing real nodes with nothing observed below them are integrated out, too, not left out.
    """
    order, parents = _order(net)
    real = [not isinstance(net.event.columns[name], Category) for name in net.variables]
    normal = [isinstance(net.conditional(name), LinearGaussian) for name in net.variables]
    needed, nothing = _needed(net, gaps), np.zeros(len(gaps), dtype=bool)
    loose, late, unknown, latents, families = (np.zeros_like(gaps) for _ in range(5))
    for v in order:
        own, missing = parents[v], gaps[:, v]
        lost = loose[:, own].any(1)
        if not real[v]:
            lost = lost | gaps[:, [p for p in own if real[p]]].any(1)
        dropped = real[v] and not (complete and normal[v])
        loose[:, v] = missing & ~needed[:, v] & (lost | dropped)
        behind = latents[:, own].any(1)
        odd = (missing | behind if real[v] else behind) if not (real[v] and normal[v]) else nothing
        late[:, v] = ~loose[:, v] & (unknown[:, own].any(1) | odd)
        unknown[:, v] = late[:, v] & missing
        if real[v]:
            latents[:, v] = missing & ~loose[:, v] & ~late[:, v]
            families[:, v] = ~loose[:, v] & ~late[:, v] & (latents[:, v] | behind)
    return Roles(~(loose | late | families), latents, families, loose, late)


def _order(net: "BayesianNetwork") -> tuple[list[int], list[list[int]]]:
    """Columns, parents first, and the parents of each column."""
    return [net.index[n] for n in net.order], [[net.index[p] for p in net.parents[n]] for n in net.variables]


def _needed(net: "BayesianNetwork", gaps: Bools) -> Bools:
    """Which nodes have an observed watched node among themselves and their descendants."""
    order, parents = _order(net)
    found = np.zeros_like(gaps)
    columns = watched(net)
    found[:, columns] = ~gaps[:, columns]
    for v in reversed(order):
        for p in parents[v]:
            found[:, p] |= found[:, v]
    return found


def joined(net: "BayesianNetwork", found: Roles) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Latents that share a family, put together.

    Yields:
        A pattern, the columns of its nodes with one of these latents in their family, parents first, and which of these
        columns are latents.
    """
    label, (order, _) = _labels(net, found), _order(net)
    rank = np.argsort(order)
    pattern, column = (label < len(order)).nonzero()
    group = label[pattern, column]
    sorting = np.lexsort((rank[column], group, pattern))
    pattern, column, group = pattern[sorting], column[sorting], group[sorting]
    latent = found.latents[pattern, column]
    starts = np.flatnonzero((np.diff(pattern, prepend=-1) != 0) | (np.diff(group, prepend=-1) != 0)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(column)], strict=False):
        yield int(pattern[start]), column[start:stop], latent[start:stop]


def _labels(net: "BayesianNetwork", found: Roles) -> np.ndarray:
    """Of each node with a latent in its family the first of the latents that it hangs together with; V elsewhere."""
    order, parents = _order(net)
    none = len(order)
    label = np.where(found.latents, np.argsort(order), none)
    families = [(v, np.array([v, *parents[v]]), np.flatnonzero(found.families[:, v])) for v in order]
    families = [family for family in families if len(family[2])]
    before = np.empty(0)
    while not np.array_equal(before, label):
        before = label.copy()
        for _, members, rows in [*families, *reversed(families)]:
            own = label[np.ix_(rows, members)]
            label[np.ix_(rows, members)] = np.where(own < none, own.min(1, keepdims=True), none)
    out = np.full_like(label, none)
    for v, members, rows in families:
        out[rows, v] = label[np.ix_(rows, members)].min(1)
    return out
