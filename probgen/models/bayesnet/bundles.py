"""Rows of many patterns of gaps at once: those whose factors have the same scopes share one product of factors."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probgen import cliques
from probgen.models.bayesnet.gaussian import Component, component
from probgen.models.bayesnet.normals import Cells, Normals, Solved
from probgen.models.bayesnet.patterns import Roles, joined, roles, watched
from probgen.models.bayesnet.scoring import FEW, is_category, settled

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Layout", "Sheet", "Shelf", "portions"]

_NUMBERS = 1 << 24  # of row-wise tables, or of a kind of matrices of components, that are held at once


@dataclass(eq=False)
class Shelf:
    """The tables of all real nodes and components over one scope, or of one category with real parents.

    Arguments:
        scope: Variables of the plan.
        head: The variable that sums to one, or -1.
        members: Nodes, or numbers of components, and their rows.
        cells: What each member reads of its rows.
        order: Puts the members' rows, one after the other, into the order of the sheets.
        targets: Of each sheet, the places in it of the rows that come.
    """

    scope: tuple[int, ...]
    head: int = -1
    members: list[tuple[str | int, Tensor]] = field(default_factory=list)
    cells: list[Cells] = field(default_factory=list)
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    targets: tuple[Tensor, ...] = ()

    def tables(self, net: "BayesianNetwork", solved: Solved) -> tuple[Tensor, ...]:
        """log-tables in the order of the sheets' targets, a flat one a row."""
        found = [
            solved.density(node, cells) if isinstance(node, int)
            else net.conditional(node).log_factor(*cells).reshape(len(rows), -1)
            for (node, rows), cells in zip(self.members, self.cells, strict=True)
        ]  # fmt: skip
        return torch.cat(found)[self.order].split([len(target) for target in self.targets])

    def returned(self, weights: list[Tensor]) -> Iterator[tuple[str | int, Cells, Tensor]]:
        """Weights in the order of the targets, handed back to the members: node, cells and weights of its rows."""
        ordered = torch.cat(weights)
        flat = torch.empty_like(ordered)
        flat[self.order] = ordered
        sizes = [len(rows) for _, rows in self.members]
        for (node, _), cells, own in zip(self.members, self.cells, flat.split(sizes), strict=True):
            yield node, cells, own


@dataclass(frozen=True, eq=False)
class Sheet:
    """Rows with factors over the same scopes.

    Arguments:
        rows: Their numbers, (g,).
        plan: None where there is nothing to sum.
        codes: Categories (g, V).
        nodes: What each factor of the plan is: the name of a tabular node, a shelf, or None, a filler.
        integrals: Whether real cells are integrated out.
    """

    rows: Tensor
    plan: cliques.Plan | None
    codes: Tensor
    nodes: tuple["str | Shelf | None", ...]
    integrals: bool


Key = str | int | tuple[int, ...] | tuple[str] | None  # a tabular node, a filler, a shelf, or any integral


class _Draft:
    """Shelves as they fill, and which patterns have which keys."""

    def __init__(self, patterns: int) -> None:
        self.patterns = patterns
        self.shelves: dict[Key, Shelf] = {}
        self.signs: dict[Key, np.ndarray] = {None: np.zeros(patterns, dtype=bool)}

    def put(self, key: Key, empty: Shelf, member: str | int, rows: np.ndarray) -> None:
        self.shelves.setdefault(key, empty).members.append((member, torch.from_numpy(rows)))

    def mark(self, key: Key, patterns: np.ndarray) -> None:
        self.signs[key] = self.signs.get(key, np.zeros(self.patterns, dtype=bool)) | patterns


def portions(net: "BayesianNetwork", x: Tensor) -> tuple[Tensor, ...]:
    """Rows in parts whose tables fit into memory together."""
    real = [scope for name, scope in net.scopes.items() if not net.conditional(name).tabular]
    each = sum(min(FEW, math.prod(net.cards[v] for v in scope)) for scope in real)
    return x.split(max(1024, _NUMBERS // max(1, each)))


class Layout:
    """Rows sorted into sheets once, whatever the parameters.

    Arguments:
        x: Rows (n, columns), NaN = missing.
        known: Components by their number; new ones are added, so that several layouts share them.

    Attributes:
        sheets: See ``Sheet``.
        hard: Numbers of the rows that are in none: without an exact sum, or with large tables.
    """

    def __init__(self, net: "BayesianNetwork", x: Tensor, known: dict[Component, int]) -> None:
        self.net, self.x, self.known = net, settled(net, x), known
        columns = watched(net)
        patterns, which = _distinct(self.x[:, columns].isnan().numpy())
        gaps = np.zeros((len(patterns), len(net.variables)), dtype=bool)
        gaps[:, columns] = patterns
        found = roles(net, gaps, complete=False)
        parts = self._components(found)
        easy = np.logical_not(found.late.any(axis=1))
        entries = sum(part.entries for part in known)
        for part, own in parts:
            entries += 0 if part in known else part.entries
            if part.size(net, {}) > min(FEW, net.configurations) or entries > _NUMBERS:
                easy[own] = False
        for v, name in enumerate(net.variables):
            if not net.conditional(name).tabular and math.prod(net.cards[u] for u in net.scopes[name]) > FEW:
                easy &= ~found.factors[:, v]
        self.hard = torch.from_numpy(np.flatnonzero(~easy[which]))
        self._fill(found, parts, easy, which)

    def _components(self, found: Roles) -> list[tuple[Component, np.ndarray]]:
        """Distinct components, and the patterns that have them."""
        patterns: dict[tuple[bytes, bytes], list[int]] = {}
        columns: dict[tuple[bytes, bytes], tuple[np.ndarray, np.ndarray]] = {}
        for pattern, nodes, latent in joined(self.net, found):
            key = nodes.tobytes(), latent.tobytes()
            patterns.setdefault(key, []).append(pattern)
            columns.setdefault(key, (nodes, latent))
        names = np.array(self.net.variables, dtype=object)
        return [
            (component(self.net, names[nodes[latent]], names[nodes[~latent]]), np.array(patterns[key]))
            for key, (nodes, latent) in columns.items()
        ]

    def _fill(
        self, found: Roles, parts: list[tuple[Component, np.ndarray]], easy: np.ndarray, which: np.ndarray
    ) -> None:
        draft = _Draft(len(easy))
        self._put_nodes(draft, found, easy, which)
        self._put_components(draft, parts, easy, which)
        signatures, sheet = _distinct(np.stack(list(draft.signs.values()), 1)[easy])
        numbers = np.full(len(easy), -1)
        numbers[easy] = sheet
        self._sort(draft.shelves, numbers[which], len(signatures))
        self.sheets = [
            self._sheet(np.flatnonzero(numbers[which] == i), dict(zip(draft.signs, signature, strict=True)), draft)
            for i, signature in enumerate(signatures.tolist())
        ]

    def _put_nodes(self, draft: "_Draft", found: Roles, easy: np.ndarray, which: np.ndarray) -> None:
        net = self.net
        for v, name in enumerate(net.variables):
            own = found.factors[:, v] & easy
            if net.conditional(name).tabular:
                draft.mark(name, own)
            elif own.any():
                head = net.scopes[name][-1] if is_category(net, name) else -1
                key: Key = (name,) if head >= 0 else net.scopes[name]
                draft.put(key, Shelf(net.scopes[name], head), name, np.flatnonzero(own[which]))
                draft.mark(key, own)
            if is_category(net, name):
                draft.mark(net.discrete.index(name), found.loose[:, v] & easy)

    def _put_components(
        self, draft: "_Draft", parts: list[tuple[Component, np.ndarray]], easy: np.ndarray, which: np.ndarray
    ) -> None:
        rows = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which, minlength=len(easy)))[:-1])
        for part, patterns in parts:
            patterns = patterns[easy[patterns]]
            if len(patterns):
                own = np.bincount(patterns, minlength=len(easy)) > 0
                number = self.known.setdefault(part, len(self.known))
                draft.put(part.scope, Shelf(part.scope), number, np.concatenate([rows[p] for p in patterns]))
                draft.mark(part.scope, own)
                draft.mark(None, own)

    def _sort(self, shelves: Mapping["Key", Shelf], sheet: np.ndarray, count: int) -> None:
        """The order of the shelves' rows, sheet after sheet."""
        by_sheet, place = np.argsort(sheet, kind="stable"), np.empty(len(sheet), dtype=np.int64)
        sizes = np.bincount(sheet[sheet >= 0], minlength=count)
        starts = np.cumsum(sizes) - sizes
        by_sheet = by_sheet[len(sheet) - int(sizes.sum()) :]
        place[by_sheet] = np.arange(len(by_sheet)) - np.repeat(starts, sizes)
        for shelf in shelves.values():
            owner = torch.cat([rows for _, rows in shelf.members]).numpy()
            order = np.argsort(sheet[owner], kind="stable")
            shelf.order = torch.from_numpy(order)
            sizes = np.bincount(sheet[owner], minlength=count)
            shelf.targets = torch.from_numpy(place[owner[order]]).split(sizes.tolist())
        self.shelves = list(shelves.values())

    def _sheet(self, rows: np.ndarray, sign: Mapping["Key", bool], draft: "_Draft") -> Sheet:
        net, found = self.net, list[tuple[str | Shelf | None, tuple[int, ...], int]]()
        for key in (key for key, there in sign.items() if there):
            if isinstance(key, str):
                found.append((key, net.scopes[key], net.scopes[key][-1]))
            elif isinstance(key, int):
                found.append((None, (key,), key))
            elif key:
                found.append((draft.shelves[key], draft.shelves[key].scope, draft.shelves[key].head))
        nodes, scopes, heads = zip(*found, strict=True) if found else ((), (), ())
        codes = self.x[torch.from_numpy(rows)][:, [net.index[name] for name in net.discrete]].contiguous()
        plan = cliques.Plan.compile(net.cards, scopes, heads) if scopes else None
        return Sheet(torch.from_numpy(rows), plan, codes, nodes, sign[None])

    def bind(self, normals: Normals) -> None:
        """Takes the cells of each member out of the rows, once the components have their numbers."""
        for shelf in self.shelves:
            for node, rows in shelf.members:
                own = self.x[rows]
                names = () if isinstance(node, int) else self.net.parents[node]
                shelf.cells.append(
                    normals.cells(node, own) if isinstance(node, int)
                    else (own[:, self.net.index[node]], own[:, [self.net.index[p] for p in names]])
                )  # fmt: skip

    def products(
        self, solved: Solved, tables: Mapping[str, Tensor]
    ) -> Iterator[tuple[int, Sheet, list[Tensor], Tensor]]:
        """Each sheet by its number, with its factors and the terms (g,) that belong to none, in nats.

        Arguments:
            tables: The log-tables of tabular nodes, by name.
        """
        cards = self.net.cards
        made = {id(shelf): shelf.tables(self.net, solved) for shelf in self.shelves}
        apart = [shelf for shelf in self.shelves if not shelf.scope]
        for i, sheet in enumerate(self.sheets):
            g, found = len(sheet.rows), list[Tensor]()
            for node, scope in zip(sheet.nodes, sheet.plan.scopes if sheet.plan is not None else (), strict=True):
                shape = [cards[v] for v in scope]
                if isinstance(node, Shelf):
                    empty = torch.zeros(g, math.prod(shape), dtype=torch.float64)
                    found.append(empty.index_add(0, node.targets[i], made[id(node)][i]).reshape(g, *shape))
                else:
                    found.append(
                        tables[node]
                        if node is not None
                        else torch.full(shape, -math.log(shape[0]), dtype=torch.float64)
                    )
            offset = torch.zeros(g, dtype=torch.float64)
            for shelf in apart:
                offset = offset.index_add(0, shelf.targets[i], made[id(shelf)][i][:, 0])
            yield i, sheet, found, offset


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of a bool matrix in order of their bits, and which of them each row is."""
    if not rows.shape[1]:
        return rows[:1], np.zeros(len(rows), dtype=np.int64)
    packed = np.ascontiguousarray(np.packbits(rows, axis=1))
    _, first, which = np.unique(packed.view(f"V{packed.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    return rows[first], which.reshape(-1)
