"""What a network can be asked: marginals, the most probable completion, and exact draws, conditioned or not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen import cliques, frames
from probgen.errors import ParameterError, StructureError, nearest
from probgen.models.bayesnet.gaussian import Component, Memory
from probgen.models.bayesnet.scoring import Group, Scored, affordable, cells_of, groups, impossible, is_category, summed

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Marginals", "ancestral", "conditional_sample", "draws", "few", "marginals", "mpe"]

_FORWARD = 1 << 22  # entries of a clique tree up to which one sweep serves all unconditional draws
_SHOWN = 8  # names in a repr


@dataclass(frozen=True, eq=False)
class Marginals:
    """p(x_v | observed cells of the row) of each variable, exact; an observed one has all its mass on what was seen.

    Arguments:
        levels: Of each category, by name.
        probs: Of each category, shape (n, levels).
        mean, sd: Of each real or count, shape (n,); sd is 0 where observed.
        keys: Row keys, shape (n,).

    ``found["smoke"]`` is an array (n, levels), or for a real a pair (mean, sd).
    """

    levels: dict[str, tuple]
    probs: dict[str, np.ndarray]
    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, name: str) -> Any:
        if name in self.probs:
            return self.probs[name]
        if name in self.mean:
            return self.mean[name], self.sd[name]
        raise ParameterError(f"There is no variable {name!r}", "", nearest(str(name), [*self.probs, *self.mean]))

    def frame(self) -> Any:
        """A pyarrow.Table: row, a column "name=level" a level of each category, "name mean" and "name sd" of reals."""
        found: dict[str, Any] = {"row": self.keys}
        for name, levels in self.levels.items():
            found |= {f"{name}={level}": self.probs[name][:, i] for i, level in enumerate(levels)}
        for name in self.mean:
            found |= {f"{name} mean": self.mean[name], f"{name} sd": self.sd[name]}
        return frames.table(found)

    def __repr__(self) -> str:
        if len(self) != 1:
            return f"Marginals({len(self)} rows of {few([*self.probs, *self.mean])})"
        shown = [
            f"{name}: " + few([f"{level} {p:.4g}" for level, p in zip(levels, self.probs[name][0], strict=True)])
            for name, levels in self.levels.items()
        ]
        shown += [f"{name}: {self.mean[name][0]:.4g} ± {self.sd[name][0]:.2g}" for name in self.mean]
        return f"Marginals({few(shown, '; ')})"


def few(names: Sequence[str], separator: str = ", ") -> str:
    """Names in a row, the ninth and those after it as their number."""
    return separator.join([*names[:_SHOWN], *[f"{len(names) - _SHOWN} more"] * (len(names) > _SHOWN)])


# Draws


@torch.no_grad()
def ancestral(net: "BayesianNetwork", n: int, generator: torch.Generator) -> Tensor:
    """n rows, each node drawn given its parents, shape (n, columns)."""
    if all(net.conditional(name).tabular for name in net.variables):
        nothing = torch.full((1, len(net.variables)), torch.nan, dtype=torch.float64)
        tables = [net.conditional(name).log_table() for name in net.variables]
        plan = cliques.Plan.compile(net.cards, [net.scopes[name] for name in net.variables], range(len(net.cards)))
        if plan.cost().entries <= _FORWARD:
            return cliques.sample(plan, tables, nothing, n, generator)[0]
    x = torch.empty(len(net.variables), n, dtype=torch.float64)
    for name in net.order:
        given = x[[net.index[parent] for parent in net.parents[name]]].T
        x[net.index[name]] = net.conditional(name).sample(given, generator)
    return x.T  # columns stay contiguous: they go out as columns


@torch.no_grad()
def conditional_sample(net: "BayesianNetwork", given: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n exact draws of the missing cells given the observed ones of each of m rows, shape (m * n, columns).

    Raises:
        ZeroEvidenceError: a condition of probability zero.
        StructureError: a condition without exact draws, or beyond the limits.
    """
    memory: Memory = {}
    asked = _exact_groups(net, given, np.arange(len(given)), "sample", memory)
    out = torch.empty(len(given), n, len(net.variables), dtype=torch.float64)
    for group, found in asked:
        cells = draws(net, group.x, found, n, generator, memory).reshape(len(group.x) * n, -1)
        for name in found.loose:
            cells[:, net.index[name]] = net.conditional(name).sample(cells_of(net, cells, name)[1], generator)
        out[group.rows] = cells.reshape(len(group.x), n, -1)
    return out.reshape(len(given) * n, -1)


@torch.no_grad()
def draws(
    net: "BayesianNetwork", x: Tensor, found: Scored, n: int, generator: torch.Generator, memory: Memory | None = None
) -> Tensor:
    """Rows (g, columns) with exact draws of what is summed and integrated out, (g, n, columns); the rest is left."""
    g = len(x)
    codes = found.codes[:, None].expand(-1, n, -1)
    if found.nodes:
        codes = cliques.sample(found.plan, found.tables, found.codes, n, generator, limit=net.limit)
    cells = x[:, None].repeat(1, n, 1)
    for v, name in enumerate(net.discrete):
        cells[..., net.index[name]] = codes[..., v]
    for part in _components(found):
        left = part.posterior(net, x, memory)
        which = _which(part, codes)
        values, vectors = torch.linalg.eigh(left.covariance)
        root = vectors * values.clamp(min=0).sqrt()[:, None]
        noise = torch.randn(g, n, len(part.latents), generator=generator, dtype=torch.float64)
        mean = left.mean[torch.arange(g)[:, None], which]
        cells[..., [net.index[name] for name in part.latents]] = mean + (root[which] @ noise[..., None])[..., 0]
    return cells


def _components(found: Scored) -> list[Component]:
    return [node for node in (*found.nodes, *found.apart) if isinstance(node, Component)]


def _which(part: Component, codes: Tensor) -> Tensor:
    """The component's configuration at some codes (..., V), int64 (...)."""
    flat = torch.zeros(codes.shape[:-1], dtype=torch.int64)
    for v, card in zip(part.scope, part.cards, strict=True):
        flat = flat * card + codes[..., v].long()
    return flat


def _exact_groups(
    net: "BayesianNetwork", x: Tensor, keys: np.ndarray, verb: str, memory: Memory
) -> list[tuple[Group, Scored]]:
    """Rows as factors over everything that is missing; raises where a row is impossible, too large or not exact."""
    asked = []
    for group in groups(net, x, complete=True, memory=memory):
        if group.scored is None:
            raise StructureError(
                f"{verb} of row {keys[int(group.rows[0])]}: {group.obstacle}",
                "rows with an exact answer",
                "Observe the cell, or ask log_prob, which gives a bound",
            )
        if not bool((small := affordable(net, group.scored, full=True)).all()):
            n, first = int((~small).sum()), keys[int(group.rows[~small][0])]
            raise StructureError(
                f"{verb} of {n} rows (first: row {first}) takes more than limit={net.limit} table entries a row",
                "rows with more cells observed",
                "Draw with sample(n) and reweight, or raise .limit if memory allows (16 bytes an entry)",
            )
        impossible(summed(net, group.scored), keys[group.rows.numpy()])
        asked.append((group, group.scored))
    return asked


# Marginals


@torch.no_grad()
def marginals(net: "BayesianNetwork", x: Tensor, keys: np.ndarray) -> Marginals:
    n = len(x)
    levels = {name: net.event.columns[name].levels for name in net.discrete}  # type: ignore[attr-defined]
    probs = {name: np.empty((n, len(own))) for name, own in levels.items()}
    real = [name for name in net.variables if name not in levels]
    mean, sd = ({name: np.empty(n) for name in real} for _ in range(2))
    memory: Memory = {}
    for group, found in _exact_groups(net, x, keys, "marginals", memory):
        rows = group.rows.numpy()
        found, extra = _with_leaves(net, group, found)
        for name, own in _of_categories(net, found).items():
            probs[name][rows] = own
        for name, (centre, spread) in _of_reals(net, group, found, extra, memory).items():
            mean[name][rows], sd[name][rows] = centre, spread
    return Marginals(levels, probs, mean, sd, keys)


def _with_leaves(net: "BayesianNetwork", group: Group, found: Scored) -> tuple[Scored, dict[str, int | None]]:
    """The factors with one more, of ones, over the categories above each real leaf that was left out: its posterior.

    Raises:
        StructureError: a node that was left out and has no exact moments.
    """
    extra: dict[str, int | None] = {}
    scopes, heads, tables = list(found.plan.scopes), list(found.plan.heads), list(found.tables)
    for name in found.loose:
        parents = net.parents[name]
        gaps = [
            p
            for p in parents
            if p in found.loose or (not is_category(net, p) and bool(group.x[0, net.index[p]].isnan()))
        ]
        if is_category(net, name) or gaps:
            raise StructureError(
                f"The marginal of {name!r}, whose real ancestors are missing", "a variable with exact moments",
                f"Draw it: sample(n, given=...), or observe {gaps[0] if gaps else parents[0]!r}",
            )  # fmt: skip
        scope = net.scopes[name]
        extra[name] = len(tables) if scope else None
        if scope:
            scopes.append(scope)
            heads.append(-1)
            tables.append(torch.zeros(len(group.x), *(found.plan.cards[v] for v in scope), dtype=torch.float64))
    plan = cliques.Plan.compile(found.plan.cards, scopes, heads)
    nodes = (*found.nodes, *(name for name, place in extra.items() if place is not None))
    return replace(found, plan=plan, tables=tables, nodes=nodes), extra


def _of_categories(net: "BayesianNetwork", found: Scored) -> dict[str, np.ndarray]:
    if not net.discrete:
        return {}
    _, flat = cliques.marginals(found.plan, found.tables, found.codes, limit=net.limit)
    parts = flat.split(list(found.plan.cards), dim=1)
    return {name: part.numpy() for name, part in zip(net.discrete, parts, strict=True)}


def _of_reals(
    net: "BayesianNetwork", group: Group, found: Scored, extra: dict[str, int | None], memory: Memory
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Means and standard deviations: of mixtures over the configurations of the categories above."""
    g, moments = len(group.x), {}
    for name in net.variables:
        if not is_category(net, name) and not bool(group.x[0, net.index[name]].isnan()):
            moments[name] = group.x[:, net.index[name]].numpy(), np.zeros(g)
    wanted = [*_components(found), *extra]
    counts = (
        cliques.expected(found.plan, found.tables, found.codes, limit=net.limit)[1] if wanted and found.nodes else []
    )
    for part in _components(found):
        weights = (
            counts[found.nodes.index(part)].reshape(g, -1) if part.scope else torch.ones(g, 1, dtype=torch.float64)
        )
        left = part.posterior(net, group.x, memory)
        for i, name in enumerate(part.latents):
            moments[name] = _mixed(weights, left.mean[..., i], left.covariance[:, i, i].expand(g, -1))
    for name, place in extra.items():
        own, grid = net.conditional(name), net.conditional(name).grid(cells_of(net, group.x, name)[1])
        weights = torch.ones(g, 1, dtype=torch.float64) if place is None else counts[place].reshape(g, -1)
        moments[name] = _mixed(weights, own.mean(grid).reshape(g, -1), own.variance(grid).reshape(g, -1))
    return moments


def _mixed(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each row's mixture, from (n, C)."""
    weights = weights / weights.sum(1, keepdim=True)
    centre = (weights * means).sum(1)
    spread = (weights * (variances + (means - centre[:, None]).square())).sum(1)
    return centre.numpy(), spread.clamp(min=0).sqrt().numpy()


# The most probable completion


@torch.no_grad()
def mpe(net: "BayesianNetwork", x: Tensor, keys: np.ndarray) -> Tensor:
    """Rows with every gap filled by the joint mode of what is missing, shape (n, columns)."""
    out = x.clone()
    memory: Memory = {}
    for group, found in _exact_groups(net, x, keys, "mpe", memory):
        if found.loose:
            raise StructureError(
                f"The most probable value of {found.loose[0]!r}", "categories and linear Gaussians",
                f"Give it a value; marginals(x)[{found.loose[0]!r}] tells what it may be",
            )  # fmt: skip
        out[group.rows] = _best(net, group, found, memory)
    return out


def _best(net: "BayesianNetwork", group: Group, found: Scored, memory: Memory) -> Tensor:
    tables = [
        node.log_table(net, group.x, peak=True, memory=memory) if isinstance(node, Component) else table
        for node, table in zip(found.nodes, found.tables, strict=True)
    ]
    cells, codes = group.x.clone(), found.codes
    if net.discrete:
        codes, _ = cliques.mpe(found.plan, tables, found.codes, limit=net.limit)
        cells[:, [net.index[name] for name in net.discrete]] = codes
    for part in _components(found):
        means = part.posterior(net, group.x, memory).mean[torch.arange(len(cells)), _which(part, codes)]
        cells[:, [net.index[name] for name in part.latents]] = means
    return cells
