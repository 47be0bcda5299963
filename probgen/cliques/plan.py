"""Which variables are summed out after which, and what that costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from probgen import kernels
from probgen.errors import StructureError

__all__ = ["LIMIT", "Cost", "Plan"]

LIMIT = 1 << 26  # table entries of a row; twice as many numbers of 8 bytes are 1 GiB


@dataclass(frozen=True)
class Cost:
    """What summing over all open variables takes.

    Arguments:
        entries: Of all cluster tables of a row with nothing observed; evidence makes it less.
        largest: Entries of the largest of them.
        width: Variables in the widest cluster, minus 1 (of this elimination order; the treewidth is at most that).
        bytes: Working memory for marginals, learning and draws; log_prob alone needs less.
        shared: Entries of the factors themselves.
    """

    entries: int
    largest: int
    width: int
    bytes: int
    shared: int

    def __str__(self) -> str:
        size = f"{self.bytes / 2**30:.3g} GiB" if self.bytes >= 2**30 else f"{self.bytes / 2**20:.3g} MiB"
        return f"{self.entries:.3g} table entries a row, {size}, width {self.width}"


@dataclass(frozen=True)
class Plan:
    """An elimination order for factors over discrete variables, and the tree of clusters that it makes.

    Arguments:
        cards: Levels of each variable.
        scopes: Of each factor, its variables in the order of its table's axes.
        heads: Of each factor the variable that its table sums to one over, or -1. A variable that nobody observed and
            that heads a factor without observed descendants is then left out of a likelihood: it sums to one.

    The better one of two greedy orders, min-fill and min-weight (Koller and Friedman 2009, 9.4.3). The same plan
    serves every pattern of observed variables: they are cut out of each table.
    """

    cards: tuple[int, ...]
    scopes: tuple[tuple[int, ...], ...]
    heads: tuple[int, ...]

    @classmethod
    def compile(
        cls, cards: Sequence[int], scopes: Sequence[Sequence[int]], heads: Sequence[int] | None = None
    ) -> "Plan":
        """A plan, kept for the next call.

        Raises:
            StructureError: a variable twice in a scope, an unknown one, or one without levels.
        """
        scopes = tuple(tuple(int(v) for v in scope) for scope in scopes)
        heads = tuple(int(v) for v in heads) if heads is not None else (-1,) * len(scopes)
        return _compile(tuple(int(c) for c in cards), scopes, heads)

    def __post_init__(self) -> None:
        if any(card < 1 for card in self.cards):
            raise StructureError(f"A variable with {min(self.cards)} levels", "at least one level each")
        for scope in self.scopes:
            if len(set(scope)) < len(scope) or not all(0 <= v < len(self.cards) for v in scope):
                raise StructureError(f"A factor over {scope}", f"distinct variables 0..{len(self.cards) - 1}")
        if len(self.heads) != len(self.scopes) or any(
            head >= 0 and head not in scope for head, scope in zip(self.heads, self.scopes, strict=True)
        ):
            raise StructureError(f"heads {self.heads[:8]}", "a variable of each factor's scope, or -1")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each factor's table."""
        return tuple(int(np.prod([self.cards[v] for v in scope], dtype=np.int64)) for scope in self.scopes)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The variables in the order in which they are summed out."""
        orders = {tuple(order) for order in _orders(self)}
        return min(orders, key=lambda order: _total(self, order)[0])

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """cards, starts and variables of the scopes one after another, heads, order: int64, for the kernel."""
        starts = np.cumsum([0, *map(len, self.scopes)])
        flat = [v for scope in self.scopes for v in scope]
        return tuple(np.array(part, dtype=np.int64) for part in (self.cards, starts, flat, self.heads, self.order))

    def cost(self) -> Cost:
        """Of a row with nothing observed; nothing is run."""
        return self._cost

    @cached_property
    def _cost(self) -> Cost:
        entries, largest, width = _total(self, self.order)
        shared = sum(self.sizes)
        return Cost(entries, largest, width, 16 * entries + 8 * shared, shared)


@lru_cache(maxsize=256)
def _compile(cards: tuple, scopes: tuple, heads: tuple) -> Plan:
    return Plan(cards, scopes, heads)


def neighbours(plan: Plan) -> list[set[int]]:
    """Who shares a factor with whom."""
    beside: list[set[int]] = [set() for _ in plan.cards]
    for scope in plan.scopes:
        for v in scope:
            beside[v].update(scope)
    for v, others in enumerate(beside):
        others.discard(v)
    return beside


def _orders(plan: Plan) -> list[Sequence[int]]:
    if kernels.cliques is not None:
        starts = np.cumsum([0, *map(len, plan.scopes)])
        flat = [v for scope in plan.scopes for v in scope]
        found = np.empty((2, len(plan.cards)), dtype=np.int64)
        kernels.cliques.order(*(np.array(part, dtype=np.int64) for part in (plan.cards, starts, flat)), found)
        return [tuple(order) for order in found.tolist()]
    return [_greedy(plan)]


def _greedy(plan: Plan) -> list[int]:
    """Min-weight: next the variable whose cluster is smallest."""
    beside = neighbours(plan)
    logs = np.log(plan.cards)
    weight = {v: float(logs[list(others)].sum() + logs[v]) for v, others in enumerate(beside)}
    order = []
    while weight:
        v = min(weight, key=weight.__getitem__)
        order.append(v)
        del weight[v]
        for u in beside[v]:
            beside[u] |= beside[v]
            beside[u] -= {u, v}
            weight[u] = float(logs[list(beside[u])].sum() + logs[u])
    return order


def clusters(plan: Plan, order: Sequence[int]) -> list[tuple[int, ...]]:
    """The scope of each variable's cluster as it is summed out, the variable first."""
    beside, found = neighbours(plan), []
    for v in order:
        found.append((v, *beside[v]))
        for u in beside[v]:
            beside[u] |= beside[v]
            beside[u] -= {u, v}
    return found


def _total(plan: Plan, order: Sequence[int]) -> tuple[int, int, int]:
    """Entries of all cluster tables, of the largest one, and the width."""
    sizes, width = [1], 0
    for scope in clusters(plan, order):
        size = 1
        for v in scope:
            size *= plan.cards[v]
        sizes.append(size)
        width = max(width, len(scope) - 1)
    return sum(sizes) - 1, max(sizes), width
