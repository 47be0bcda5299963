"""An upper bound on log Z from a convex combination of forests, hence a lower bound on log p."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen import cliques
from probgen.logprob import Kind, LogProb
from probgen.models.markovfield.factors import whole
from probgen.models.markovfield.partition import Partition
from probgen.models.markovfield.queries import normalised

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = ["TreeReweighted"]


@dataclass(frozen=True)
class TreeReweighted:
    """log Z(theta) <= 1/T sum_t log Z(theta_t) with theta = 1/T sum_t theta_t, each theta_t on a forest. log p: lower.

    A factor that is in a share rho of the forests enters them divided by rho; what is left to choose, how the forests
    split the variables' own potentials, is chosen by quasi-Newton to make the bound small. Every value on the way is a
    bound (convexity of log Z), converged or not: nothing is random.

    Arguments:
        max_iter: Iterations of L-BFGS.
        forests: Least number of forests; as many more are made as it takes to cover all factors.
        configurations: Of the hub variables of a forest: what is a forest once they are set will do, too (the treewidth
            grows by their number). 1: forests proper. More cost more and bound better.

    Wainwright, Jaakkola and Willsky (2005), eq. 15 and section IV (the dual, for fixed appearance probabilities) and
    VI (hypertrees).
    """

    max_iter: int = 200
    forests: int = 4
    configurations: int = 64

    def __post_init__(self) -> None:
        whole("max_iter", self.max_iter)
        whole("forests", self.forests)
        whole("configurations", self.configurations)

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        return normalised(model, x, self.log_partition(model, generator))

    def log_partition(self, model: "MarkovField", generator: torch.Generator) -> Partition:
        """The smallest bound met."""
        bound = _Bound(model, subgraphs(model, self.forests, self.configurations))
        shift = torch.zeros(bound.shape, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [shift], max_iter=self.max_iter, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe",
        )  # fmt: skip
        best, rounds = math.inf, 0

        def closure() -> float:
            nonlocal best, rounds
            value, slope = bound(shift.detach())
            shift.grad, best, rounds = slope, min(best, value), rounds + 1
            return value

        if len(bound.members) > 1:
            optimiser.step(closure)
        else:
            closure()
        about = {"forests": float(len(bound.members)), "evaluations": float(rounds)}
        return Partition(best, Kind.UPPER, repr(self), diagnostics=about)


def subgraphs(model: "MarkovField", least: int, configurations: int) -> list[list[int]]:
    """Sets of factors that are forests once some hub variables are set, such that each factor over several variables
    is in some set. Deterministic. Hubs and factors that were used least come first."""
    scopes = model.plan.scopes
    wide = [place for place, scope in enumerate(scopes) if len(scope) > 1]
    order = torch.Generator().manual_seed(0)
    used = dict.fromkeys(wide, 0)
    found: list[list[int]] = []
    while wide and (len(found) < least or min(used.values()) == 0):
        shuffled = sorted((wide[i] for i in torch.randperm(len(wide), generator=order).tolist()), key=used.__getitem__)
        hubs = _hubs(model, shuffled, used, configurations)
        chosen = _forest(len(model.cards), {place: [v for v in scopes[place] if v not in hubs] for place in shuffled})
        for place in chosen:
            used[place] += 1
        found.append(chosen)
        if len(chosen) == len(wide):  # the whole field: the bound is log Z itself
            return [chosen]
    return found or [[]]


def _hubs(model: "MarkovField", places: list[int], used: dict[int, int], configurations: int) -> set[int]:
    """Variables with the most factors that were used least, as many as the number of their configurations allows."""
    gain = [0.0] * len(model.cards)
    for place in places:
        for v in model.plan.scopes[place]:
            gain[v] += 16.0 ** -used[place]
    hubs, size = set(), 1
    for v in sorted(range(len(gain)), key=lambda v: -gain[v]):
        size *= model.cards[v]
        if size > configurations:
            break
        hubs.add(v)
    return hubs


def _forest(count: int, scopes: dict[int, list[int]]) -> list[int]:
    """Factors that join, in order, where all their variables are in different trees so far."""
    above = list(range(count))

    def root(v: int) -> int:
        while above[v] != v:
            above[v] = above[above[v]]
            v = above[v]
        return v

    chosen = []
    for place, scope in scopes.items():
        roots = {root(v) for v in scope}
        if len(roots) == len(scope):
            chosen.append(place)
            for other in roots:
                above[other] = min(roots)
    return chosen


class _Bound:
    """The bound and its gradient as a function of how the forests shift the variables' potentials, (T, V, C).

    All forests are one plan over T copies of the variables.
    """

    def __init__(self, model: "MarkovField", members: list[list[int]]) -> None:
        self.members, self.cards = members, model.cards
        count, size = len(members), len(model.cards)
        self.shape = (count, size, max(model.cards))
        tables = model.tables()
        shares = torch.bincount(
            torch.tensor([p for own in members for p in own], dtype=torch.int64), minlength=len(tables)
        )
        scopes: list[tuple[int, ...]] = [(copy * size + v,) for copy in range(count) for v in range(size)]
        self.wide: list[Tensor] = []
        for copy, own in enumerate(members):
            for place in own:
                scopes.append(tuple(copy * size + v for v in model.plan.scopes[place]))
                self.wide.append(tables[place] * (count / int(shares[place])))
        self.unary = torch.zeros(self.shape[1:], dtype=torch.float64)
        for scope, table in zip(model.plan.scopes, tables, strict=True):
            if len(scope) == 1:
                self.unary[scope[0], : len(table)] += table
        self.plan = cliques.Plan.compile(model.cards * count, scopes)
        self.nothing = torch.full((1, count * size), torch.nan, dtype=torch.float64)
        self.limit = max(cliques.LIMIT, self.plan.cost().entries)

    def __call__(self, shift: Tensor) -> tuple[float, Tensor]:
        count = self.shape[0]
        own = self.unary + shift - shift.mean(0)  # the shifts of the copies cancel
        cards = self.cards * count
        single = [row[:card] for row, card in zip(own.reshape(-1, self.shape[2]), cards, strict=True)]
        nats, counts = cliques.expected(self.plan, [*single, *self.wide], self.nothing, limit=self.limit)
        rows = [torch.nn.functional.pad(c, (0, self.shape[2] - len(c))) for c in counts[: len(cards)]]
        slope = torch.stack(rows).reshape(self.shape) / count
        return float(nats) / count, slope - slope.mean(0)
