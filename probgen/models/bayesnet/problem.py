"""What a network learns from: rows with their gaps, sorted once into blocks that are summed alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen import cliques
from probgen.conditionals import Conditional
from probgen.errors import StructureError
from probgen.models.bayesnet.bundles import Layout, portions
from probgen.models.bayesnet.gaussian import Component
from probgen.models.bayesnet.normals import Normals
from probgen.models.bayesnet.scoring import groups, table_of

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Complete", "Open", "Problem", "Tables", "codes_of", "count"]

Tables = Mapping[int, Tensor]  # the log-table of each distinct conditional over categories, by its key


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


Block = Complete | Open | Layout


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
        self.known: dict[Component, int] = {}
        self.blocks = self._blocks()
        self.normals = Normals(net, list(self.known))
        for block in self.blocks:
            if isinstance(block, Layout):
                block.bind(self.normals)

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

    def named(self, tables: Tables) -> dict[str, Tensor]:
        """Log-tables by node."""
        return {name: tables[self.keys[name]] for name in self.tabular}

    def _blocks(self) -> list[Block]:
        if not has_gaps(self.x):
            return [self._complete(self.x)]
        gaps = self.x.isnan().any(1)
        whole: list[Block] = [] if bool(gaps.all()) else [self._complete(self.x[~gaps])]
        rest = self.x[gaps]
        if len(self.cards) == self.x.shape[1]:
            return whole + self._open(*distinct_rows(rest))
        for part in portions(self.net, rest):
            layout = Layout(self.net, part, self.known)
            hard = part[layout.hard]
            whole.append(layout)
            if len(hard):
                whole += self._open(hard, torch.ones(len(hard), dtype=torch.float64))
        return whole

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
