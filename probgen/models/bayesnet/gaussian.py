"""Missing real cells integrated out: joint normals of linear regressions, one a configuration of discrete parents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from probgen.events import Category
from probgen.models.bayesnet.normals import Normals, Solved

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Component", "Memory", "Posterior", "component", "components", "recall"]

_LOG_2PI = 1.8378770664093453
_NUMBERS = 1 << 22  # of a kind of matrices of components that are solved at once


@dataclass(frozen=True, eq=False)
class Posterior:
    """The missing cells of a component given its observed ones, for each configuration of its discrete parents.

    Arguments:
        mean: Shape (n, C, latents).
        covariance: Shape (C, latents, latents): the same for all rows.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Component:
    """Missing real nodes that hang together, and the observed real nodes that they bear on.

    Given the discrete parents and the real parents outside of it, its cells are jointly normal: x = B x + a + e.

    Arguments:
        latents: Names of missing nodes, parents first.
        observed: Names of observed nodes with a latent among their parents, parents first.
        scope: The discrete parents of all of them, as variables of the plan; the axes of its table.
        cards: Their levels.
        fixed: Variables of the scope at one level for all rows, taken out of it.
    """

    latents: tuple[str, ...]
    observed: tuple[str, ...]
    scope: tuple[int, ...]
    cards: tuple[int, ...]
    fixed: tuple[tuple[int, int], ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Latents, then observed ones."""
        return (*self.latents, *self.observed)

    @property
    def entries(self) -> int:
        """Numbers of the matrices of its configurations."""
        return math.prod(self.cards) * len(self.nodes) ** 2

    def size(self, net: "BayesianNetwork", seen: Mapping[int, int]) -> int:
        """Configurations of the discrete parents that are not seen."""
        return math.prod(card for v, card in zip(self.scope, self.cards, strict=True) if v not in seen)

    def given(self, seen: Mapping[int, int]) -> "Component":
        """The same where some discrete parents are at one level for all rows."""
        left = [(v, card) for v, card in zip(self.scope, self.cards, strict=True) if v not in seen]
        fixed = tuple((v, seen[v]) for v in self.scope if v in seen)
        return replace(self, scope=tuple(v for v, _ in left), cards=tuple(card for _, card in left), fixed=fixed)

    @cached_property
    def configurations(self) -> dict[int, np.ndarray]:
        """The level of each discrete parent in each of the C configurations, (C,) a variable."""
        grids = np.indices(self.cards).reshape(len(self.cards), -1) if self.cards else ()
        count = math.prod(self.cards)
        found = dict(zip(self.scope, grids, strict=True))
        return found | {v: np.full(count, level) for v, level in self.fixed}

    def configuration(self, net: "BayesianNetwork", name: str) -> np.ndarray:
        """The configuration of a node's own discrete parents in each of the component's, (C,)."""
        flat = np.zeros(math.prod(self.cards), dtype=np.int64)
        for parent in net.parents[name]:
            column = net.event.columns[parent]
            if isinstance(column, Category):
                flat = flat * len(column.levels) + self.configurations[net.discrete.index(parent)]
        return flat

    def solved(self, net: "BayesianNetwork", memory: "Memory | None" = None) -> tuple[Solved, int]:
        """Joint normals at the present parameters, and its number among them; from ``memory`` if that has them."""
        if memory is not None and self in memory:
            return memory[self]
        found = Normals(net, [self]).solve(), 0
        if memory is not None and not self.fixed:  # those with fixed levels are many, each of a few rows
            memory[self] = found
        return found

    def log_table(
        self, net: "BayesianNetwork", x: Tensor, peak: bool = False, memory: "Memory | None" = None
    ) -> Tensor:
        """log density of the observed cells with the latents integrated out, (n, *cards), in nats.

        Arguments:
            peak: With the latents at their joint mode given the observed ones instead of integrated out.
            memory: Of one sweep over rows with the same parameters.
        """
        solved, i = self.solved(net, memory)
        out = solved.density(i, solved.normals.cells(i, x))
        if peak:
            out = out - 0.5 * (solved.log_det_left(i) + len(self.latents) * _LOG_2PI)
        return out.reshape(len(x), *self.cards)

    def posterior(self, net: "BayesianNetwork", x: Tensor, memory: "Memory | None" = None) -> Posterior:
        """The latents given the observed cells and each configuration."""
        solved, i = self.solved(net, memory)
        means = solved.means(i, solved.normals.cells(i, x)).permute(2, 0, 1)
        return Posterior(means + solved.normals.shift[[net.index[n] for n in self.latents]], solved.left(i))

    def second_moments(self, net: "BayesianNetwork", x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """What the M step of each node's regression needs.

        Arguments:
            x: Rows (n, columns).
            weights: Posterior weight of each row and configuration, (n, *cards).

        Returns:
            By node, (K, q, q) over the K configurations of its own discrete parents: sums of weight * E[u u'], where
            u = (1, real parents, child), less ``LinearGaussian.centre``.
        """
        solved, i = self.solved(net)
        solved.add(i, solved.normals.cells(i, x), weights.reshape(len(x), -1))
        return solved.totals()


Memory = dict[Component, tuple[Solved, int]]  # of components at the parameters of one call: where, and which


def recall(net: "BayesianNetwork", parts: Sequence[Component], memory: Memory) -> None:
    """Solves components that are not in memory yet, all at once; if they take too much memory, none."""
    fresh = [part for part in dict.fromkeys(parts) if part not in memory]
    if fresh and sum(part.entries for part in fresh) <= _NUMBERS:
        solved = Normals(net, fresh).solve()
        memory.update({part: (solved, i) for i, part in enumerate(fresh)})


def components(net: "BayesianNetwork", latents: Sequence[str], families: Sequence[str]) -> list[Component]:
    """Latents that share a family, put together; ``families`` are the nodes with a latent in theirs, parents first."""
    group = {name: {name} for name in latents}
    for name in families:
        members = [n for n in (*net.parents[name], name) if n in group]
        merged = set().union(*(group[n] for n in members))
        group.update(dict.fromkeys(merged, merged))
    found = []
    for name in latents:
        if name != min(group[name], key=latents.index):
            continue
        own = [n for n in families if group[name] & {*net.parents[n], n}]
        found.append(component(net, [n for n in own if n in group], [n for n in own if n not in group]))
    return found


def component(net: "BayesianNetwork", latents: Sequence[str], observed: Sequence[str]) -> Component:
    """The component of some latents and the observed nodes below them, each parents first."""
    parents = {p for name in (*latents, *observed) for p in net.parents[name]}
    scope = [v for v, name in enumerate(net.discrete) if name in parents]
    cards = [len(net.event.columns[net.discrete[v]].levels) for v in scope]  # type: ignore[attr-defined]
    return Component(tuple(latents), tuple(observed), tuple(scope), tuple(cards))
