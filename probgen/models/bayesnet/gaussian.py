"""Missing real cells integrated out: joint normals of linear regressions, one a configuration of discrete parents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen.conditionals import Conditional, LinearGaussian
from probgen.errors import StructureError
from probgen.events import Category

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Component", "Posterior", "components", "is_gaussian"]

_LOG_2PI = 1.8378770664093453
_ENTRIES = 1 << 21  # numbers of (rows, configurations, nodes) that are held at once


def is_gaussian(part: Conditional) -> bool:
    """Whether a real node is linear in its real parents, with a normal residual."""
    return isinstance(part, LinearGaussian)


def regression(part: Conditional) -> tuple[Tensor, Tensor, Tensor]:
    """Intercepts (K,), weights (K, C) and residual scales (K,) of K configurations; C real parents."""
    found, wide = part.natural(), part.configurations
    weights = found["coefficients"].reshape(wide, len(part.continuous_parents))
    return found["intercept"].reshape(wide), weights, found["scale"].reshape(wide)


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

    def size(self, net: "BayesianNetwork", seen: Mapping[int, int]) -> int:
        """Configurations of the discrete parents that are not seen."""
        return math.prod(card for v, card in zip(self.scope, self.cards, strict=True) if v not in seen)

    def given(self, seen: Mapping[int, int]) -> "Component":
        """The same where some discrete parents are at one level for all rows."""
        left = [(v, card) for v, card in zip(self.scope, self.cards, strict=True) if v not in seen]
        fixed = tuple((v, seen[v]) for v in self.scope if v in seen)
        return replace(self, scope=tuple(v for v, _ in left), cards=tuple(card for _, card in left), fixed=fixed)

    @cached_property
    def configurations(self) -> dict[int, Tensor]:
        """The level of each discrete parent in each of the C configurations, (C,) a variable."""
        grids = torch.meshgrid(*(torch.arange(card) for card in self.cards), indexing="ij") if self.cards else []
        count = math.prod(self.cards)
        found = {v: grid.reshape(-1) for v, grid in zip(self.scope, grids, strict=True)}
        return found | {v: torch.full((count,), level) for v, level in self.fixed}

    def _which(self, net: "BayesianNetwork", name: str) -> Tensor:
        """The configuration of a node's own discrete parents in each of the component's, (C,)."""
        flat = torch.zeros(math.prod(self.cards), dtype=torch.int64)
        for parent in net.parents[name]:
            column = net.event.columns[parent]
            if isinstance(column, Category):
                flat = flat * len(column.levels) + self.configurations[net.discrete.index(parent)]
        return flat

    def _system(self, net: "BayesianNetwork") -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """I - B (C, k, k), a (C, k), its weights (C, k, E) of outside columns, scale of e (C, k), those E columns."""
        nodes = self.nodes
        place = {name: i for i, name in enumerate(nodes)}
        outside = list(dict.fromkeys(p for n in nodes for p in _real(net, net.parents[n]) if p not in place))
        count, k = math.prod(self.cards), len(nodes)
        inside = torch.zeros(count, k, k, dtype=torch.float64)
        away = torch.zeros(count, k, len(outside), dtype=torch.float64)
        constants, residual = [], []
        for i, name in enumerate(nodes):
            own, weights, scale = regression(net.conditional(name))
            which = self._which(net, name)
            constants.append(own[which])
            residual.append(scale[which])
            for j, parent in enumerate(_real(net, net.parents[name])):
                target, column = (inside, place[parent]) if parent in place else (away, outside.index(parent))
                target[:, i, column] = weights[which, j]
        columns = [net.index[name] for name in outside]
        return (
            torch.eye(k, dtype=torch.float64) - inside,
            torch.stack(constants, 1),
            away,
            torch.stack(residual, 1),
            columns,
        )

    def log_table(self, net: "BayesianNetwork", x: Tensor, peak: bool = False) -> Tensor:
        """log density of the observed cells with the latents integrated out, (n, *cards), in nats.

        Arguments:
            peak: With the latents at their joint mode given the observed ones instead of integrated out.
        """
        split = _Split(self, net)
        out = torch.cat([split.density(part) for part in x.split(split.rows)])
        if peak:
            out = out - 0.5 * (split.log_det_left + len(self.latents) * _LOG_2PI)
        return out.reshape(len(x), *self.cards)

    def posterior(self, net: "BayesianNetwork", x: Tensor) -> Posterior:
        """The latents given the observed cells and each configuration."""
        split = _Split(self, net)
        means = [split.means(part) for part in x.split(split.rows)]
        return Posterior(torch.cat(means), split.left)

    def second_moments(self, net: "BayesianNetwork", x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """What the M step of each node's regression needs.

        Arguments:
            x: Rows (n, columns).
            weights: Posterior weight of each row and configuration, (n, *cards).

        Returns:
            By node, (K, q, q) over the K configurations of its own discrete parents: sums of weight * E[u u'], where
            u = (1, real parents, child), less ``LinearGaussian.centre``.
        """
        flat, totals = weights.reshape(len(x), -1), dict[str, Tensor]()
        split = _Split(self, net)
        for part, w in zip(x.split(split.rows), flat.split(split.rows), strict=True):
            means = split.means(part)
            for name in self.nodes:
                found = self._moments_of(net, name, part, w, means, split.left)
                totals[name] = totals[name] + found if name in totals else found
        return totals

    def _moments_of(
        self, net: "BayesianNetwork", name: str, x: Tensor, weights: Tensor, means: Tensor, left: Tensor
    ) -> Tensor:
        part = net.conditional(name)
        family = [*_real(net, net.parents[name]), name]
        centre = part.centre if isinstance(part, LinearGaussian) else x.new_zeros(len(family))
        place = {latent: i for i, latent in enumerate(self.latents)}
        columns = [
            means[..., place[n]] if n in place else x[:, net.index[n], None].expand(len(x), means.shape[1])
            for n in family
        ]
        u = torch.stack([torch.ones_like(columns[0]), *(c - m for c, m in zip(columns, centre, strict=True))], -1)
        own = torch.einsum("nc,nci,ncj->cij", weights, u, u)
        hidden = [i + 1 for i, n in enumerate(family) if n in place]
        rows = torch.tensor(hidden, dtype=torch.int64)
        among = torch.tensor([place[family[i - 1]] for i in hidden], dtype=torch.int64)
        spread = weights.sum(0)[:, None, None] * left[:, among[:, None], among]
        own[:, rows[:, None], rows] += spread
        out = torch.zeros(part.configurations, *own.shape[1:], dtype=own.dtype)
        return out.index_add(0, self._which(net, name), own)


class _Split:
    """The joint normal of a component, its latents separated by an orthogonal turn.

    About the mean m each node is one equation of unit noise, W (x - m) = e with W = diag(1 / scale) (I - B). With
    W = [H S] over latents and observed cells and H = Q R, the latents enter only Q' W: what is orthogonal to Q scores
    the observed cells, and no covariance is ever formed (Golub and Van Loan 2013, 5.3). Equations are sorted by size,
    which keeps Q accurate where scales differ by many orders.
    """

    def __init__(self, component: Component, net: "BayesianNetwork") -> None:
        self.system, self.constants, self.away, scale, self.outside = component._system(net)
        if not bool((scale > 0).all()):
            raise StructureError(
                f"A residual of {component.nodes} has scale 0", "positive scales", "Give the regressions a scale"
            )
        self.hidden = len(component.latents)
        self.seen = [net.index[name] for name in component.observed]
        equations = self.system / scale[..., None]
        order = equations.abs().amax(-1).argsort(-1, descending=True)
        equations = equations.gather(1, order[..., None].expand_as(equations))
        turn, self.triangle = torch.linalg.qr(equations[..., : self.hidden])
        seen = equations[..., self.hidden :]
        self.along = turn.mT @ seen  # (C, latents, observed)
        across = seen - turn @ self.along
        self.across = across - turn @ (turn.mT @ across)  # (C, k, observed); twice is enough
        unit = torch.eye(self.hidden, dtype=torch.float64).expand_as(self.triangle)
        inverse = torch.linalg.solve_triangular(self.triangle, unit, upper=True)
        self.left = inverse @ inverse.mT
        self.log_scale = scale.log().sum(-1) - 0.5 * self.log_det_left
        self.rows = max(1, _ENTRIES // (len(self.system) * self.system.shape[1]))

    @property
    def log_det_left(self) -> Tensor:
        """Of the latents' covariance given the observed cells, (C,)."""
        return -2 * self.triangle.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    def _centres(self, x: Tensor) -> Tensor:
        """Means of all nodes, (n, C, k)."""
        shift = self.constants + torch.einsum("cke,ne->nck", self.away, x[:, self.outside])
        return torch.linalg.solve(self.system, shift.permute(1, 2, 0)).permute(2, 0, 1)

    def _away(self, x: Tensor, centres: Tensor) -> Tensor:
        """The observed cells about their means, (C, observed, n)."""
        return (x[:, None, self.seen] - centres[..., self.hidden :]).permute(1, 2, 0)

    def density(self, x: Tensor) -> Tensor:
        """log N(observed), (n, C)."""
        left_over = self.across @ self._away(x, self._centres(x))
        return -0.5 * left_over.square().sum(1).T - self.log_scale - 0.5 * len(self.seen) * _LOG_2PI

    def means(self, x: Tensor) -> Tensor:
        """Of the latents given the observed cells, (n, C, latents)."""
        centres = self._centres(x)
        pull = torch.linalg.solve_triangular(self.triangle, self.along @ self._away(x, centres), upper=True)
        return centres[..., : self.hidden] - pull.permute(2, 0, 1)


def _real(net: "BayesianNetwork", names: Sequence[str]) -> list[str]:
    return [name for name in names if not isinstance(net.event.columns[name], Category)]


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
        found.append(_component(net, [n for n in own if n in group], [n for n in own if n not in group]))
    return found


def _component(net: "BayesianNetwork", latents: Sequence[str], observed: Sequence[str]) -> Component:
    parents = {p for name in (*latents, *observed) for p in net.parents[name]}
    scope = [v for v, name in enumerate(net.discrete) if name in parents]
    cards = [len(net.event.columns[net.discrete[v]].levels) for v in scope]  # type: ignore[attr-defined]
    return Component(tuple(latents), tuple(observed), tuple(scope), tuple(cards))
