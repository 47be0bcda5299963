"""The E and M steps of a network: what rows, with their gaps, are expected to say about each conditional."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probgen import cliques
from probgen.conditionals import Conditional, LinearGaussian, Tabular
from probgen.errors import StructureError
from probgen.models.bayesnet.gaussian import Component
from probgen.models.bayesnet.scoring import cells_of, groups

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Complete", "Expected", "Open", "Problem", "codes_of", "count", "expect", "log_likelihood", "maximise"]

Tables = Mapping[int, Tensor]  # the log-table of each distinct conditional over categories, by its key

_NUMBERS = 1 << 22  # of a row-wise table that are held at once


@dataclass(frozen=True, eq=False)
class Complete:
    """Rows without gaps: counts say all about the tables, and nothing is summed out.

    Arguments:
        x: Cells (n, columns).
        counts: Of each node whose family is all categories, by name, shaped as its table.
        weights: Of each other node, which configuration of its categories each row has, as 0 and 1, (n, *cards).
    """

    x: Tensor
    counts: dict[str, Tensor]
    weights: dict[str, Tensor]


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
        others = [name for name in self.net.variables if name not in counts]
        return Complete(x, counts, {name: one_hot(codes, self.scopes[name], self.cards) for name in others})

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

    def factor(self, node: str | Component, x: Tensor, tables: Tables) -> Tensor:
        """The present log-table of a node, or one a row."""
        if isinstance(node, Component):
            return node.log_table(self.net, x)
        key = self.keys[node]
        return tables[key] if key in tables else self.net.conditional(node).log_factor(*cells_of(self.net, x, node))


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


def one_hot(codes: Tensor, scope: Sequence[int], cards: Sequence[int]) -> Tensor:
    """Which configuration of some categories each row has, as 0 and 1, shape (n, *cards)."""
    shape = [cards[v] for v in scope]
    hot = nn.functional.one_hot(_places(codes, scope, cards).long(), math.prod(shape))
    return hot.to(torch.float64).reshape(-1, *shape)


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
    nats += [net.conditional(name).log_prob(*cells_of(net, block.x, name)).sum() for name in block.weights]
    return torch.stack(nats).sum()


def _product(problem: Problem, block: Open, tables: Tables) -> tuple[list[Tensor], Tensor]:
    """The factors of the plan, and the sum (n,) of those apart from it."""
    made = [
        block.fillers[i] if node is None else problem.factor(node, block.x, tables)
        for i, node in enumerate(block.nodes)
    ]
    offset = torch.zeros_like(block.weights)
    for node in block.apart:
        offset = offset + problem.factor(node, block.x, tables)
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
    for name, weights in block.weights.items():
        found.rows.setdefault(problem.keys[name], []).append((*cells_of(problem.net, block.x, name), weights))
    return float(_complete_nats(problem, block, tables))


def _expect_open(problem: Problem, block: Open, tables: Tables, found: Expected) -> float:
    made, nats = _product(problem, block, tables)
    shares: list[Tensor] = []
    if block.plan is not None:
        inside, shares = cliques.expected(block.plan, made, block.codes, block.weights, limit=problem.net.limit)
        nats = nats + inside
    for node, share in zip((*block.nodes, *block.apart), (*shares, *[block.weights] * len(block.apart)), strict=True):
        if node is not None:
            _collect(problem, block.x, node, share, found)
    return float((nats * block.weights).sum())


def _collect(problem: Problem, x: Tensor, node: str | Component, share: Tensor, found: Expected) -> None:
    if isinstance(node, Component):
        for name, moments in node.second_moments(problem.net, x, share).items():
            found.add(found.moments, problem.keys[name], moments)
    elif node in problem.tabular:
        found.add(found.counts, problem.keys[node], share)
    else:
        found.rows.setdefault(problem.keys[node], []).append((*cells_of(problem.net, x, node), share))


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
            parts = [_moments(conditional, *part) for part in found.rows.get(key, [])]
            unseen[key] = conditional.maximise_moments(sum(parts, found.moments[key]), conditional.centre)
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
    """Sums of weight * u u' of rows without gaps, u = (1, real parents, child) about the centre."""
    cells = torch.cat([conditional.inputs(parents), child[:, None]], 1) - conditional.centre
    u = torch.cat([torch.ones(len(child), 1, dtype=child.dtype), cells], 1)
    return torch.stack([(w[:, None] * u).T @ u for w in weights.reshape(len(child), -1).T])
