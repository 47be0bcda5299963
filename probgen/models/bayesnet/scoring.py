"""Rows as factors: what is observed, summed out, integrated out or left out."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probgen import cliques
from probgen.conditionals import Point
from probgen.errors import StructureError, ZeroEvidenceError
from probgen.events import Category, Count, Table
from probgen.models.bayesnet.gaussian import Component, Memory, components, recall
from probgen.models.bayesnet.patterns import Roles, roles, watched

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = [
    "FEW", "Group", "Scored", "affordable", "cells_of", "groups", "impossible", "is_category", "measure", "scored",
    "settled", "some_rows", "summed", "whole_plan",
]  # fmt: skip

FEW = 256  # configurations of discrete parents that are tabled whether or not they are observed
_NUMBERS = 1 << 22  # of the tables of a portion of rows


@dataclass(frozen=True, eq=False)
class Scored:
    """Rows as a product of factors over the categories: what ``probgen.cliques`` takes.

    Arguments:
        plan: Its variables are ``net.discrete``, in that order.
        tables: Log-tables, one a factor; those of real nodes have one table a row.
        codes: Levels of the categories, NaN where missing, shape (n, V).
        offset: Terms that belong to no factor, shape (n,), in nats.
        nodes: What each factor stands for: the name of a node, a ``gaussian.Component`` whose real cells are integrated
            out, or None, a filler over a variable that was left out.
        apart: What the offset is made of: names of nodes, and components without discrete parents.
        loose: Names of the nodes that were left out: missing, nothing observed below them.
    """

    plan: cliques.Plan
    tables: list[Tensor]
    codes: Tensor
    offset: Tensor
    nodes: tuple["str | Component | None", ...]
    apart: tuple["str | Component", ...] = ()
    loose: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Group:
    """Rows that share their factors.

    Arguments:
        rows: Their numbers, shape (g,).
        x: Their cells, shape (g, columns).
        scored: None where there is no exact sum, or too large a one.
        obstacle: Why there is none.
        large: Whether it is the size that forbids it.
        late: Nodes without an exact sum, parents first: odd families of a missing real, and what hangs on their gaps.
        rest: The other nodes as factors, where there are late ones.
    """

    rows: Tensor
    x: Tensor
    scored: Scored | None
    obstacle: str = ""
    large: bool = False
    late: tuple[str, ...] = ()
    rest: Scored | None = None


def whole_plan(net: "BayesianNetwork") -> cliques.Plan:
    """The plan of rows whose real cells are all observed."""
    heads = [scope[-1] if is_category(net, name) else -1 for name, scope in net.scopes.items() if scope]
    return cliques.Plan.compile(net.cards, [scope for scope in net.scopes.values() if scope], heads)


def is_category(net: "BayesianNetwork", name: str) -> bool:
    return isinstance(net.event.columns[name], Category)


def measure(net: "BayesianNetwork", without: Iterable[str] = ()) -> str:
    """What the log-probability of the columns is relative to; a real that an intervention has set has a mass."""
    rest = {name: column for name, column in net.event.columns.items() if name not in set(without)} or net.event.columns
    points = {name: Count() for name in rest if isinstance(net.conditional(name), Point)}
    return Table({**rest, **points}).measure


def scored(net: "BayesianNetwork", x: Tensor) -> Scored:
    found = list(groups(net, x))
    if len(found) != 1 or found[0].scored is None:
        why = found[0].obstacle or f"{len(found)} patterns of missing real cells"
        raise StructureError(f"Rows that are no one product of factors: {why}", "rows alike", "net.groups(x)")
    return found[0].scored


def groups(net: "BayesianNetwork", x: Tensor, complete: bool = False, memory: Memory | None = None) -> Iterator[Group]:
    """Rows taken apart by what their gaps make of the nodes.

    Arguments:
        complete: Whether missing real nodes with nothing observed below them are integrated out, too, not left out.
        memory: Keeps the components' joint normals, while the parameters stay.
    """
    memory = {} if memory is None else memory
    every = torch.arange(len(x))
    if len(net.discrete) == len(net.variables):
        shared = [part.log_table() for part in net.parts]  # type: ignore[operator]
        yield Group(every, x, Scored(net.plan, shared, x, x.new_zeros(len(x)), net.variables))
        return
    x = settled(net, x)
    columns = watched(net)
    patterns, which = x[:, columns].isnan().unique(dim=0, return_inverse=True)
    gaps = np.zeros((len(patterns), len(net.variables)), dtype=bool)
    gaps[:, columns] = patterns.numpy()
    found = roles(net, gaps, complete)
    tables = {name: net.conditional(name).log_table() for name in net.variables if net.conditional(name).tabular}
    roles_of = [_Pattern.of(net, found, i) for i in range(len(patterns))]
    parts = [components(net, own.latents, own.families) for own in roles_of]
    recall(net, [part for own in parts for part in own if part.size(net, {}) <= FEW], memory)
    for i, own in enumerate(roles_of):
        yield from _of_pattern(net, x, (which == i).nonzero()[:, 0], own, parts[i], tables, memory)


@dataclass(frozen=True)
class _Pattern:
    """The roles of one pattern, see ``patterns.Roles``; latents, families and late ones parents first."""

    factors: tuple[str, ...]
    latents: tuple[str, ...]
    families: tuple[str, ...]
    loose: tuple[str, ...]
    late: tuple[str, ...]

    @classmethod
    def of(cls, net: "BayesianNetwork", found: Roles, i: int) -> "_Pattern":
        rank = {name: place for place, name in enumerate(net.order)}
        names = {role: found.names(net, i, role) for role in ("latents", "families", "loose", "late")}
        ordered = {role: tuple(sorted(own, key=rank.__getitem__)) for role, own in names.items()}
        return cls(factors=found.names(net, i, "factors"), **ordered)


def settled(net: "BayesianNetwork", x: Tensor) -> Tensor:
    """Rows in which real nodes that an intervention has set are no longer missing."""
    values = {
        net.index[n]: p.value for n in net.variables if isinstance(p := net.conditional(n), Point) and not p.discrete
    }
    x = x.clone() if values else x
    for column, value in values.items():
        x[:, column] = torch.where(x[:, column].isnan(), value, x[:, column])
    return x


def _of_pattern(
    net: "BayesianNetwork",
    x: Tensor,
    rows: Tensor,
    found: _Pattern,
    parts: Sequence[Component],
    tables: Mapping[str, Tensor],
    memory: Memory,
) -> Iterator[Group]:
    apart = list(_by_parents(net, x, rows, parts))
    recall(net, [part.given(seen) for _, seen in apart for part in parts], memory)
    for some, seen in apart:
        cells = x[some]
        size = max((part.size(net, seen) for part in parts), default=1)
        if size > net.configurations:
            why = f"{size} configurations of missing discrete parents, the limit is {net.configurations}"
            yield Group(some, cells, None, why, large=True)
            continue
        given = [part.given(seen) for part in parts]
        each = sum(math.prod(part.cards) for part in given)
        for portion, scopes in _by_gaps(net, x, some, [n for n in found.factors if n not in tables], each):
            yield _group(net, x, portion, found, given, tables, scopes, memory)


def _group(
    net: "BayesianNetwork", x: Tensor, rows: Tensor, found: _Pattern, parts: Sequence[Component],
    tables: Mapping[str, Tensor], scopes: Mapping[str, tuple[int, ...]], memory: Memory,
) -> Group:  # fmt: skip
    cells = x[rows]
    size = max((_size(net, scope) for scope in scopes.values()), default=1)
    if size > max(net.configurations, FEW):
        why = f"{size} configurations of missing discrete parents, the limit is {net.configurations}"
        return Group(rows, cells, None, why, large=True)
    product = _factors(net, cells, found, parts, tables, scopes, memory)
    if not found.late:
        return Group(rows, cells, product)
    names = ", ".join(map(repr, found.late[:4]))
    why = f"a real cell is missing in the family of {names}, which has no exact integral"
    return Group(rows, cells, None, why, late=found.late, rest=product)


def _size(net: "BayesianNetwork", scope: Sequence[int]) -> int:
    return math.prod(net.cards[v] for v in scope)


def _by_gaps(
    net: "BayesianNetwork", x: Tensor, rows: Tensor, nodes: Sequence[str], each: int
) -> Iterator[tuple[Tensor, dict[str, tuple[int, ...]]]]:
    """Rows in portions of bounded size, and over which categories each of some nodes has its table there.

    Where a node has many configurations, only its missing categories are tabled: rows are taken apart by these gaps.
    ``each`` is how many numbers a row has besides.
    """
    wide = [name for name in nodes if _size(net, net.scopes[name]) > FEW]
    watched = sorted({v for name in wide for v in net.scopes[name]})
    gaps = x[rows][:, [net.index[net.discrete[v]] for v in watched]].isnan()
    same = (gaps[:1], torch.zeros(len(rows), dtype=torch.int64))
    patterns, which = gaps.unique(dim=0, return_inverse=True) if watched else same
    for i, pattern in enumerate(patterns.tolist()):
        seen = {v for v, gap in zip(watched, pattern, strict=True) if not gap}
        scopes = {n: tuple(v for v in net.scopes[n] if n not in wide or v not in seen) for n in nodes}
        own = each + sum(_size(net, scope) for scope in scopes.values())
        for portion in rows[which == i].split(max(1, _NUMBERS // max(own, 1))):
            yield portion, scopes


def _by_parents(
    net: "BayesianNetwork", x: Tensor, rows: Tensor, parts: Sequence[Component]
) -> Iterator[tuple[Tensor, dict[int, int]]]:
    """Rows, and the levels of discrete parents that they share; apart only where tabling all of them costs too much."""
    wide = [part for part in parts if part.size(net, {}) > min(FEW, net.configurations)]
    if not wide:
        yield rows, {}
        return
    scope = sorted({v for part in wide for v in part.scope})
    columns = [net.index[net.discrete[v]] for v in scope]
    values, which = x[rows][:, columns].nan_to_num(nan=-1.0).unique(dim=0, return_inverse=True)
    for i, value in enumerate(values.tolist()):
        yield rows[which == i], {v: int(code) for v, code in zip(scope, value, strict=True) if code >= 0}


def _factors(
    net: "BayesianNetwork", x: Tensor, found: _Pattern, parts: Sequence[Component],
    tables: Mapping[str, Tensor], scopes: Mapping[str, tuple[int, ...]], memory: Memory,
) -> Scored:  # fmt: skip
    made = _Product(net, x)
    for name in found.factors:
        scope = scopes.get(name, net.scopes[name])
        table = tables[name] if name in tables else table_of(net, x, name, scope)
        child = net.scopes[name][-1] if is_category(net, name) else -1
        made.put(name, scope, table, child if child in scope else -1)
    for part in parts:
        made.put(part, part.scope, part.log_table(net, x, memory=memory), -1)
    for name in (*found.loose, *found.late):
        if is_category(net, name) and bool(x[0, net.index[name]].isnan()):
            made.fill(net.discrete.index(name))
    return made.done(found.loose)


@dataclass(eq=False)
class _Product:
    """Factors as they are gathered."""

    net: "BayesianNetwork"
    x: Tensor
    tables: list[Tensor] = field(default_factory=list)
    scopes: list[tuple[int, ...]] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    nodes: list["str | Component | None"] = field(default_factory=list)
    apart: list["str | Component"] = field(default_factory=list)
    offset: Tensor | float = 0.0

    def put(self, node: "str | Component", scope: tuple[int, ...], table: Tensor, head: int) -> None:
        if not scope:
            self.offset = self.offset + table
            self.apart.append(node)
            return
        self.tables.append(table)
        self.scopes.append(scope)
        self.heads.append(head)
        self.nodes.append(node)

    def fill(self, variable: int) -> None:
        """A variable that was left out sums to one."""
        card = self.net.cards[variable]
        self.tables.append(self.x.new_full((card,), -float(np.log(card))))
        self.scopes.append((variable,))
        self.heads.append(variable)
        self.nodes.append(None)

    def done(self, loose: tuple[str, ...]) -> Scored:
        codes = self.x[:, [self.net.index[name] for name in self.net.discrete]]
        plan = cliques.Plan.compile(self.net.cards, self.scopes, self.heads)
        offset = self.x.new_zeros(len(self.x)) + self.offset
        return Scored(plan, self.tables, codes, offset, tuple(self.nodes), tuple(self.apart), loose)


def table_of(net: "BayesianNetwork", x: Tensor, name: str, scope: tuple[int, ...]) -> Tensor:
    """log p(node | parents) over the categories of a scope, all others as the rows have them, (n, *cards), in nats."""
    part = net.conditional(name)
    if scope == net.scopes[name]:
        return part.log_factor(*cells_of(net, x, name))
    return part.log_prob(*expanded(net, x, name, scope)).reshape(len(x), *(net.cards[v] for v in scope))


def expanded(net: "BayesianNetwork", x: Tensor, name: str, scope: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A node's cells and its parents' with every configuration of a scope filled in, row after row."""
    grids = torch.meshgrid(*(torch.arange(net.cards[v], dtype=x.dtype) for v in scope), indexing="ij") if scope else ()
    count = _size(net, scope)
    wide = x.repeat_interleave(count, 0)
    for v, grid in zip(scope, grids, strict=True):
        wide[:, net.index[net.discrete[v]]] = grid.reshape(-1).repeat(len(x))
    return cells_of(net, wide, name)


def cells_of(net: "BayesianNetwork", x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """A node's cells (n,) and its parents' (n, P)."""
    return x[:, net.index[name]], x[:, [net.index[parent] for parent in net.parents[name]]]


def summed(net: "BayesianNetwork", found: Scored) -> Tensor:
    """log of the sum over missing categories, offset included, shape (n,)."""
    if not found.nodes:
        return found.offset
    return cliques.log_prob(found.plan, found.tables, found.codes, limit=net.limit) + found.offset


def affordable(net: "BayesianNetwork", found: Scored, full: bool = False) -> Tensor:
    """Which rows stay below the limit of table entries, shape (n,), bool."""
    if found.plan.cost().entries <= net.limit:
        return torch.ones(len(found.codes), dtype=torch.bool)
    return cliques.row_cost(found.plan, found.codes, full) <= net.limit


def some_rows(found: Scored, rows: Tensor) -> Scored:
    """The factors of some rows, by number or mask."""
    tables = [
        table[rows] if table.ndim > len(scope) else table
        for table, scope in zip(found.tables, found.plan.scopes, strict=True)
    ]
    return replace(found, tables=tables, codes=found.codes[rows], offset=found.offset[rows])


def impossible(nats: Tensor, keys: np.ndarray) -> None:
    """Raises ZeroEvidenceError where a row has probability zero."""
    bad = torch.isneginf(nats)
    if bool(bad.any()):
        row, more = keys[int(bad.nonzero()[0])], int(bad.sum()) - 1
        raise ZeroEvidenceError(
            f"Row {row} is impossible under the network" + (f", and {more} more" if more else ""),
            "observed cells of positive probability",
            "log_prob says which rows are -inf; look for levels that a table gives no mass to",
        )
