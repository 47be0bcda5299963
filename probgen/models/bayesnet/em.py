"""The E and M steps of a network: what rows, with their gaps, are expected to say about each conditional."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen import cliques
from probgen.conditionals import Conditional, LinearGaussian, Tabular
from probgen.errors import StructureError
from probgen.models.bayesnet.gaussian import Component
from probgen.models.bayesnet.scoring import cells_of, expanded, groups, table_of

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Complete", "Expected", "Open", "Problem", "codes_of", "count", "expect", "log_likelihood", "maximise"]

Tables = Mapping[int, Tensor]  # the log-table of each distinct conditional over categories, by its key

_NUMBERS = 1 << 22  # of a row-wise table that are held at once
_DENSE = 1 << 26  # of a regression's weights, one a row and configuration


@dataclass(frozen=True, eq=False)
class Complete:
    """Rows without gaps: counts say all about the tables, and nothing is summed out.

    Arguments:
        x: Cells (n, columns).
        counts: Of each node whose family is all categories, by name, shaped as its table.
        others: The other nodes.
    """

    x: Tensor
    counts: dict[str, Tensor]
    others: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Open:
    """Rows with gaps that the same factors explain.

    Arguments:
        x: Cells (n, columns).
        weights: How often each row stands in the data, shape (n,).
        plan: Of the sum over open categories; None where there are none to sum.
        codes: Categories (n, V).
        nodes: What each factor of the plan stands for (see ``scoring.Scored``).
        apart: The same of what has no categories: a number a row.
        fillers: The tables of those factors that stand for nothing.
    """

    x: Tensor
    weights: Tensor
    plan: cliques.Plan | None
    codes: Tensor
    nodes: tuple[str | Component | None, ...]
    apart: tuple[str | Component, ...]
    fillers: Mapping[int, Tensor]


Block = Complete | Open


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


class Problem:
    """A network and the rows that it learns from, sorted into blocks once.

    Arguments:
        net: Whose parameters are read at each call.
        x: Checked rows (n, columns), NaN = missing at random.

    Attributes:
        conditionals: Each distinct one once, in column order; tied nodes share one.
        keys: Of each node, which of them it uses.

    Raises:
        StructureError: missing cells without an exact sum, or too large a one.
    """

    def __init__(self, net: "BayesianNetwork", x: Tensor) -> None:
        self.net, self.x = net, x
        distinct = {id(c): c for c in map(net.conditional, net.variables)}
        self.conditionals: list[Conditional] = list(distinct.values())
        self.keys = {name: list(distinct).index(id(net.conditional(name))) for name in net.variables}
        self.cards = net.cards
        self.tabular = [name for name in net.variables if net.conditional(name).tabular]
        self.scopes = {name: net.scopes[name] for name in net.variables}
        self.blocks = self._blocks()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def complete(self) -> bool:
        return all(isinstance(block, Complete) for block in self.blocks)

    def penalty(self) -> Tensor:
        """Log prior of all parameters, in nats, up to a constant; a shared conditional counts once."""
        return torch.stack([c.penalty() for c in self.conditionals]).sum()

    def tables(self) -> dict[int, Tensor]:
        return {key: c.log_table() for key, c in enumerate(self.conditionals) if c.tabular}

    def _blocks(self) -> list[Block]:
        if not has_gaps(self.x):
            return [self._complete(self.x)]
        gaps = self.x.isnan().any(1)
        whole: list[Block] = [] if bool(gaps.all()) else [self._complete(self.x[~gaps])]
        rest = self.x[gaps]
        if len(self.cards) == self.x.shape[1]:
            return whole + self._open(*distinct_rows(rest))
        widest = max(math.prod(self.cards[v] for v in scope) for scope in self.scopes.values())
        parts = rest.split(max(256, _NUMBERS // widest))
        return whole + [b for part in parts for b in self._open(part, torch.ones(len(part), dtype=torch.float64))]

    def _complete(self, x: Tensor) -> Complete:
        codes = codes_of(self.net, x)
        counts = {name: count(codes, self.scopes[name], self.cards) for name in self.tabular}
        return Complete(x, counts, tuple(name for name in self.net.variables if name not in counts))

    def _open(self, x: Tensor, weights: Tensor) -> list[Block]:
        made: list[Block] = []
        for group in groups(self.net, x):
            found = group.scored
            if found is None:
                raise StructureError(
                    f"{len(group.rows)} rows can not be learned from exactly: {group.obstacle}",
                    "gaps that can be summed or integrated out: categories, and reals with LinearGaussian children",
                    "Impute these cells, leave the column out, or give the node another conditional",
                )
            fillers = {i: found.tables[i] for i, node in enumerate(found.nodes) if node is None}
            plan = found.plan if found.nodes else None
            own = weights[group.rows]
            made.append(Open(group.x, own, plan, found.codes.contiguous(), found.nodes, found.apart, fillers))
        return made

    def factor(self, node: str | Component, scope: tuple[int, ...], x: Tensor, tables: Tables) -> Tensor:
        """The present log-table of a node, or one a row over a scope."""
        if isinstance(node, Component):
            return node.log_table(self.net, x)
        key = self.keys[node]
        return tables[key] if key in tables else table_of(self.net, x, node, scope)


def distinct_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of codes, each once in order of its first coming, and how often each came."""
    _, which, counts = (
        torch.nan_to_num(x, nan=-1.0).to(torch.int32).unique(dim=0, return_inverse=True, return_counts=True)
    )
    first = torch.full((len(counts),), len(x)).scatter_reduce(0, which, torch.arange(len(x)), "amin")
    order = first.argsort()
    return x[first[order]].contiguous(), counts[order].to(torch.float64)


def has_gaps(x: Tensor) -> bool:
    """Whether any cell is NaN: its sum then is, which is the faster look."""
    return bool(x.sum().isnan()) and bool(x.isnan().any())


def codes_of(net: "BayesianNetwork", x: Tensor) -> Tensor:
    """Levels of the categories, whole numbers (V, n) of few bytes, -1 where missing."""
    columns = [net.index[name] for name in net.discrete]
    x = x if len(columns) == x.shape[1] else x[:, columns]
    x = x.nan_to_num(nan=-1.0) if has_gaps(x) else x
    return x.to(torch.int16 if max(net.cards, default=0) < 2**15 else torch.int32).T.contiguous()


def _places(codes: Tensor, scope: Sequence[int], cards: Sequence[int]) -> Tensor:
    """Flat number of each row's configuration, (n,), 0 for an empty scope."""
    wide = torch.int32 if math.prod(cards[v] for v in scope) < 2**31 else torch.int64
    place = codes[scope[0]].to(wide, copy=True) if scope else torch.zeros(codes.shape[1], dtype=wide)
    for v in scope[1:]:
        place = place.mul_(cards[v]).add_(codes[v])
    return place


def count(codes: Tensor, scope: Sequence[int], cards: Sequence[int]) -> Tensor:
    """How often each configuration of some categories occurs.

    Arguments:
        codes: Levels (V, n), whole numbers from 0.

    Returns:
        float64, one axis a variable of the scope.
    """
    shape = [cards[v] for v in scope]
    counts = torch.bincount(_places(codes, scope, cards), minlength=math.prod(shape))
    return counts.to(torch.float64).reshape(shape)


# The E step


def log_likelihood(problem: Problem) -> Tensor:
    """log p(observed cells) of all rows, 0-d, in nats; differentiable in all parameters."""
    tables = problem.tables()
    nats = [
        _complete_nats(problem, block, tables) if isinstance(block, Complete) else _open_nats(problem, block, tables)
        for block in problem.blocks
    ]
    return torch.stack(nats).sum()


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
    for block in problem.blocks:
        how = _expect_complete if isinstance(block, Complete) else _expect_open
        nats += how(problem, block, tables, found)  # type: ignore[arg-type]
    return nats, found


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
    cells = torch.cat([conditional.inputs(parents), child[:, None]], 1) - conditional.centre
    u = torch.cat([torch.ones(len(child), 1, dtype=child.dtype), cells], 1)
    out = torch.zeros(conditional.configurations, u.shape[1] ** 2, dtype=u.dtype)
    out.index_add_(
        0, conditional.configuration(parents), (weights[:, None, None] * u[:, :, None] * u[:, None]).flatten(1)
    )
    return out.reshape(-1, u.shape[1], u.shape[1])
