"""Variable elimination in logarithms: the definition. Any device, any dtype, differentiable twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.chains.logspace import add
from probgen.cliques.plan import Plan

__all__ = ["expected", "log_prob", "marginals", "mpe", "sample"]

_ENTRIES = 1 << 24  # of a cluster's table that are held at once


@dataclass(frozen=True, eq=False)
class Term:
    """A table over open variables, for each row or (first axis 1) for all rows alike."""

    variables: tuple[int, ...]
    table: Tensor

    def over(self, scope: Sequence[int]) -> Tensor:
        """The same with the axes of a wider scope, of length 1 where it says nothing."""
        places = sorted(range(len(self.variables)), key=lambda i: scope.index(self.variables[i]))
        table = self.table.permute(0, *(i + 1 for i in places))
        mine = iter(table.shape[1:])
        return table.reshape(len(table), *(next(mine) if v in self.variables else 1 for v in scope))


def groups(plan: Plan, codes: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
    """Rows with the same open variables, a block at a time, and these in elimination order."""
    open_cells = codes.isnan()
    patterns, which = open_cells.unique(dim=0, return_inverse=True)
    size = max(1, _ENTRIES // plan.cost().largest)
    for i, pattern in enumerate(patterns):
        free = [v for v in plan.order if pattern[v]]
        for rows in (which == i).nonzero()[:, 0].split(size):
            yield rows, free


def _restricted(plan: Plan, factor: int, table: Tensor, codes: Tensor, rows: Tensor, free: set[int]) -> Term:
    """A factor with the observed variables of some rows set to what was seen."""
    scope = plan.scopes[factor]
    seen = [i for i, v in enumerate(scope) if v not in free]
    rest = [i for i, v in enumerate(scope) if v in free]
    own = table.ndim > len(scope)  # one table a row
    table = table[rows] if own else table[None]
    table = table.permute(0, *(i + 1 for i in seen), *(i + 1 for i in rest))
    if seen:
        index = [codes[rows, scope[i]].long() for i in seen]
        first = torch.arange(len(rows), device=codes.device) if own else torch.zeros_like(rows)
        table = table[(first, *index)]
    return Term(tuple(scope[i] for i in rest), table)


def _multiplied(terms: Sequence[Term], scope: Sequence[int]) -> Tensor:
    total = terms[0].over(scope)
    for term in terms[1:]:
        total = total + term.over(scope)
    return total


@dataclass(frozen=True, eq=False)
class Cluster:
    """What met when a variable was eliminated: its log table over (rows, *rest, variable)."""

    variable: int
    rest: tuple[int, ...]
    table: Tensor


def _eliminate(
    plan: Plan, tables: Sequence[Tensor], codes: Tensor, rows: Tensor, free: list[int], largest: bool = False
) -> tuple[Tensor, list[Cluster]]:
    """log of the sum (or the maximum) over the open variables, shape (g,), and the clusters on the way."""
    terms = [_restricted(plan, f, table, codes, rows, set(free)) for f, table in enumerate(tables)]
    met = []
    for v in free:
        mine = [term for term in terms if v in term.variables]
        rest = tuple(u for u in free if u != v and any(u in term.variables for term in mine))
        blank = Term((v,), codes.new_zeros(1, plan.cards[v]))
        cluster = Cluster(v, rest, _multiplied([*mine, blank], (*rest, v)))
        message = cluster.table.amax(-1) if largest else add(cluster.table, -1)
        terms = [term for term in terms if v not in term.variables] + [Term(rest, message)]
        met.append(cluster)
    total = _multiplied(terms, ()) if terms else codes.new_zeros(1)
    return total.expand(len(rows)), met


def log_prob(plan: Plan, tables: Sequence[Tensor], codes: Tensor) -> Tensor:
    """log of the sum over open variables of the product of the factors, shape (n,), in nats."""
    dtype = torch.result_type(tables[0], codes) if tables else codes.dtype
    out = torch.zeros(len(codes), dtype=dtype, device=codes.device)
    for rows, free in groups(plan, codes):
        out = out.index_put((rows,), _eliminate(plan, tables, codes, rows, free)[0].to(dtype))
    return out


def expected(plan: Plan, tables: Sequence[Tensor], codes: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    """log_prob, and its derivative in the log tables, row by row times its weight: expected counts."""
    with torch.enable_grad():
        leaves = [table.detach().requires_grad_() for table in tables]
        nats = log_prob(plan, leaves, codes)
        possible = torch.where(nats > -torch.inf, nats * weights, 0.0)
        if not leaves or not possible.requires_grad:
            return nats.detach(), [torch.zeros_like(table) for table in tables]
        counts = torch.autograd.grad(possible.sum(), leaves)
    return nats.detach(), [count.nan_to_num() for count in counts]


def marginals(plan: Plan, tables: Sequence[Tensor], codes: Tensor) -> tuple[Tensor, Tensor]:
    """log_prob, and each variable's distribution given the rest of the row, shape (n, sum(cards))."""
    single = tuple((v,) for v in range(len(plan.cards)))
    wider = Plan(plan.cards, plan.scopes + single, plan.heads + (-1,) * len(single))
    flat = [codes.new_zeros(len(codes), card) for card in plan.cards]
    nats, counts = expected(wider, [*tables, *flat], codes, codes.new_ones(len(codes)))
    probabilities = torch.cat(counts[len(tables) :], 1) if single else codes.new_zeros(len(codes), 0)
    return nats, torch.where((nats > -torch.inf)[:, None], probabilities, torch.nan)


@torch.no_grad()
def mpe(plan: Plan, tables: Sequence[Tensor], codes: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable completion of each row (the first of several), and the log of its joint probability."""
    out, nats = codes.clone(), codes.new_empty(len(codes))
    for rows, free in groups(plan, codes):
        best, met = _eliminate(plan, tables, codes, rows, free, largest=True)
        nats[rows] = best
        for cluster in reversed(met):
            out[rows, cluster.variable] = _at(cluster, out[rows]).argmax(-1).to(out.dtype)
    return out, nats


@torch.no_grad()
def sample(plan: Plan, tables: Sequence[Tensor], codes: Tensor, uniforms: Tensor) -> Tensor:
    """Draws of the open variables given the rest, shape (n, draws, V), by inversion of uniforms of that shape."""
    out = codes[:, None].repeat(1, uniforms.shape[1], 1)
    for rows, free in groups(plan, codes):
        _, met = _eliminate(plan, tables, codes, rows, free)
        for cluster in reversed(met):
            for d in range(uniforms.shape[1]):
                odds = _at(cluster, out[rows, d]).log_softmax(-1).exp().cumsum(-1)
                place = (uniforms[rows, d, cluster.variable, None] * odds[:, -1:] >= odds).sum(-1)
                out[rows, d, cluster.variable] = place.clamp(max=odds.shape[1] - 1).to(out.dtype)
    return out


def _at(cluster: Cluster, codes: Tensor) -> Tensor:
    """A cluster's log table at what is known of its other variables, shape (g, levels of the variable)."""
    table = cluster.table.expand(len(codes), *cluster.table.shape[1:])
    index = [codes[:, u].long() for u in cluster.rest]
    return table[(torch.arange(len(codes), device=codes.device), *index)]
