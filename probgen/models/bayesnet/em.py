"""The E and M steps of a network: what rows, with their gaps, are expected to say about each conditional."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probgen import cliques
from probgen.conditionals import Conditional, LinearGaussian, Tabular
from probgen.errors import StructureError
from probgen.models.bayesnet.bundles import Layout
from probgen.models.bayesnet.gaussian import Component
from probgen.models.bayesnet.normals import Solved
from probgen.models.bayesnet.problem import Complete, Open, Problem, Tables
from probgen.models.bayesnet.scoring import cells_of, expanded

__all__ = ["Expected", "Problem", "expect", "log_likelihood", "maximise"]

_DENSE = 1 << 26  # of a regression's weights, one a row and configuration


@dataclass(eq=False)
class Expected:
    """What the M step reads, by the key of the conditional.

    Arguments:
        counts: Expected configurations, shaped as the tables.
        rows: Child (n,), parents (n, P) and weights (n, *cards) of what enters row by row.
        moments: Sums of E[u u'] about the centre, (configurations, q, q), where real cells were missing.
    """

    counts: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)
    moments: dict[int, Tensor] = field(default_factory=dict)

    def add(self, into: dict[int, Tensor], key: int, value: Tensor) -> None:
        into[key] = into[key] + value if key in into else value


# The E step


def log_likelihood(problem: Problem) -> Tensor:
    """log p(observed cells) of all rows, 0-d, in nats; differentiable in all parameters."""
    tables, solved = problem.tables(), problem.normals.solve()
    nats = list[Tensor]()
    for block in problem.blocks:
        if isinstance(block, Layout):
            nats += _layout_nats(problem, block, tables, solved)
        elif isinstance(block, Complete):
            nats.append(_complete_nats(problem, block, tables))
        else:
            nats.append(_open_nats(problem, block, tables))
    return torch.stack(nats).sum()


def _layout_nats(problem: Problem, block: Layout, tables: Tables, solved: Solved) -> list[Tensor]:
    found = []
    for _, sheet, factors, nats in block.products(solved, problem.named(tables)):
        if sheet.plan is not None:
            nats = nats + cliques.log_prob(sheet.plan, factors, sheet.codes, limit=problem.net.limit)
        found.append(nats.sum())
    return found


def _complete_nats(problem: Problem, block: Complete, tables: Tables) -> Tensor:
    """Counts times log-tables, where 0 times -inf is 0, and the rows' densities."""
    nats = [
        (counts * tables[problem.keys[name]].masked_fill(counts == 0, 0.0)).sum()
        for name, counts in block.counts.items()
    ]
    net = problem.net
    nats += [net.conditional(name).log_prob(*cells_of(net, block.x, name)).sum() for name in block.others]
    return torch.stack(nats).sum()


def _product(problem: Problem, block: Open, tables: Tables) -> tuple[list[Tensor], Tensor]:
    """The factors of the plan, and the sum (n,) of those apart from it."""
    scopes = block.plan.scopes if block.plan is not None else ()
    made = [
        block.fillers[i] if node is None else problem.factor(node, scope, block.x, tables)
        for i, (node, scope) in enumerate(zip(block.nodes, scopes, strict=True))
    ]
    offset = torch.zeros_like(block.weights)
    for node in block.apart:
        offset = offset + problem.factor(node, (), block.x, tables)
    return made, offset


def _open_nats(problem: Problem, block: Open, tables: Tables) -> Tensor:
    made, nats = _product(problem, block, tables)
    if block.plan is not None:
        nats = nats + cliques.log_prob(block.plan, made, block.codes, limit=problem.net.limit)
    return (nats * block.weights).sum()


@torch.no_grad()
def expect(problem: Problem) -> tuple[float, Expected]:
    """log p(observed cells) of all rows in nats, and what the M step reads.

    Dempster, Laird and Rubin (1977); Lauritzen (1995) for networks.
    """
    found, tables, nats = Expected(), problem.tables(), 0.0
    solved = problem.normals.solve()
    for block in problem.blocks:
        if isinstance(block, Layout):
            nats += _expect_layout(problem, block, tables, solved, found)
        elif isinstance(block, Complete):
            nats += _expect_complete(problem, block, tables, found)
        else:
            nats += _expect_open(problem, block, tables, found)
    for name, moments in solved.totals().items():
        found.add(found.moments, problem.keys[name], moments)
    return nats, found


def _expect_layout(problem: Problem, block: Layout, tables: Tables, solved: Solved, found: Expected) -> float:
    total = 0.0
    weights: dict[int, list[Tensor]] = {id(shelf): [] for shelf in block.shelves}
    for i, sheet, factors, nats in block.products(solved, problem.named(tables)):
        ones, shares = torch.ones(len(nats), dtype=torch.float64), list[Tensor]()
        if sheet.plan is not None:
            inside, shares = cliques.expected(sheet.plan, factors, sheet.codes, ones, limit=problem.net.limit)
            nats = nats + inside
        total += float(nats.sum())
        own = {id(node): share for node, share in zip(sheet.nodes, shares, strict=True)}
        for node, share in zip(sheet.nodes, shares, strict=True):
            if isinstance(node, str):
                found.add(found.counts, problem.keys[node], share)
        for shelf in block.shelves:
            if len(target := shelf.targets[i]):
                weights[id(shelf)].append(own.get(id(shelf), ones).reshape(len(ones), -1)[target])
    for shelf in block.shelves:
        for member, cells, share in shelf.returned(weights[id(shelf)]):
            if isinstance(member, int):
                solved.add(member, cells, share)
            else:
                cards = problem.net.conditional(member).cards
                _collect_rows(problem, member, *cells, share.reshape(len(share), *cards), found)
    return total


def _collect_rows(problem: Problem, node: str, child: Tensor, parents: Tensor, share: Tensor, found: Expected) -> None:
    """What rows with an observed real family say; ``share`` (n, *cards) is over all categories of the family."""
    key, conditional = problem.keys[node], problem.net.conditional(node)
    if isinstance(conditional, LinearGaussian):
        u = _about_centre(conditional, child, parents)
        weighted = share.reshape(len(u), -1).T[..., None] * u  # (K, n, q)
        found.add(found.moments, key, weighted.mT @ u)
    else:
        found.rows.setdefault(key, []).append((child, parents, share))


def _expect_complete(problem: Problem, block: Complete, tables: Tables, found: Expected) -> float:
    for name, counts in block.counts.items():
        found.add(found.counts, problem.keys[name], counts)
    for name in block.others:
        _collect(problem, block.x, name, (), torch.ones(len(block.x), dtype=torch.float64), found)
    return float(_complete_nats(problem, block, tables))


def _expect_open(problem: Problem, block: Open, tables: Tables, found: Expected) -> float:
    made, nats = _product(problem, block, tables)
    shares: list[Tensor] = []
    if block.plan is not None:
        inside, shares = cliques.expected(block.plan, made, block.codes, block.weights, limit=problem.net.limit)
        nats = nats + inside
    scopes = block.plan.scopes if block.plan is not None else ()
    apart = [(node, (), block.weights) for node in block.apart]
    for node, scope, share in (*zip(block.nodes, scopes, shares, strict=True), *apart):
        if node is not None:
            _collect(problem, block.x, node, scope, share, found)
    return float((nats * block.weights).sum())


def _collect(
    problem: Problem, x: Tensor, node: str | Component, scope: tuple[int, ...], share: Tensor, found: Expected
) -> None:
    """What some rows say about a node; ``share`` is the weight of each row under each configuration of the scope."""
    if isinstance(node, Component):
        for name, moments in node.second_moments(problem.net, x, share).items():
            found.add(found.moments, problem.keys[name], moments)
        return
    key, conditional = problem.keys[node], problem.net.conditional(node)
    if node in problem.tabular:
        found.add(found.counts, key, share)
    elif isinstance(conditional, LinearGaussian):
        found.add(found.moments, key, _moments(conditional, *expanded(problem.net, x, node, scope), share.reshape(-1)))
    else:
        weights = _spread(problem, x, node, scope, share)
        found.rows.setdefault(key, []).append((*cells_of(problem.net, x, node), weights))


def _spread(problem: Problem, x: Tensor, node: str, scope: tuple[int, ...], share: Tensor) -> Tensor:
    """Weights over a scope as weights over all categories of the family, (n, *cards)."""
    net, full = problem.net, problem.scopes[node]
    if scope == full:
        return share
    size = math.prod(net.cards[v] for v in full)
    if len(x) * size > _DENSE:
        raise StructureError(
            f"{node!r} has {size} configurations of categories in its family, for {len(x)} rows",
            f"at most {_DENSE} numbers: its regression reads one weight a row and configuration",
            "Give it fewer discrete parents, or LinearGaussian, which reads sums",
        )
    out = share.new_zeros(len(x), *(net.cards[v] for v in full))
    codes = x[:, [net.index[net.discrete[v]] for v in full]].nan_to_num().long()
    lead = [len(x), *[1] * len(scope)]
    where = [
        torch.arange(net.cards[v]).reshape([1, *(-1 if u == v else 1 for u in scope)]) if v in scope
        else codes[:, i].reshape(lead)
        for i, v in enumerate(full)
    ]  # fmt: skip
    out[(torch.arange(len(x)).reshape(lead), *where)] = share
    return out


# The M step


@torch.no_grad()
def maximise(problem: Problem, found: Expected, fill: bool = True) -> dict[int, list[int]]:
    """Sets all parameters; returns configurations of parents without data, by key of the conditional.

    Arguments:
        fill: Whether rows of a table without data become uniform; else they keep what they hold.
    """
    unseen = {}
    for key, conditional in enumerate(problem.conditionals):
        if key in found.counts:
            unseen[key] = maximise_counts(conditional, found.counts[key], fill)
        elif key in found.moments and isinstance(conditional, LinearGaussian):
            unseen[key] = conditional.maximise_moments(found.moments[key], conditional.centre)
        elif key in found.rows:
            child, parents, weights = (torch.cat(parts) for parts in zip(*found.rows[key], strict=True))
            unseen[key] = conditional.maximise_rows(child, parents, weights)
    return unseen


def maximise_counts(conditional: Conditional, counts: Tensor, fill: bool) -> list[int]:
    """M step of one table."""
    rows = counts.reshape(-1, counts.shape[-1])
    without = (rows.sum(1) <= 0).nonzero()[:, 0].tolist()
    if fill and without and isinstance(conditional, Tabular):
        lacking = (counts + conditional.pseudo).sum(-1, keepdim=True) <= 0
        counts = counts + lacking
    conditional.maximise(counts)
    return without


def _moments(conditional: LinearGaussian, child: Tensor, parents: Tensor, weights: Tensor) -> Tensor:
    """Sums of weight * u u' of rows without gaps by configuration, u = (1, real parents, child) about the centre."""
    u = _about_centre(conditional, child, parents)
    out = torch.zeros(conditional.configurations, u.shape[1] ** 2, dtype=u.dtype)
    out.index_add_(
        0, conditional.configuration(parents), (weights[:, None, None] * u[:, :, None] * u[:, None]).flatten(1)
    )
    return out.reshape(-1, u.shape[1], u.shape[1])


def _about_centre(conditional: LinearGaussian, child: Tensor, parents: Tensor) -> Tensor:
    """u = (1, real parents, child) less the centre, (n, q)."""
    cells = torch.cat([conditional.inputs(parents), child[:, None]], 1) - conditional.centre
    return torch.cat([torch.ones(len(child), 1, dtype=child.dtype), cells], 1)
