"""The questions that factors answer, each by the kernel where it can, else by the torch path."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.cliques import compiled, logspace
from probgen.cliques.plan import LIMIT, Plan, clusters
from probgen.errors import ShapeError, StructureError

__all__ = ["expected", "log_prob", "marginals", "mpe", "row_cost", "sample"]


def _check(plan: Plan, tables: Sequence[Tensor], codes: Tensor) -> None:
    if codes.ndim != 2 or codes.shape[1] != len(plan.cards):
        raise ShapeError(f"codes of shape {tuple(codes.shape)}", f"one column a variable: (n, {len(plan.cards)})")
    if len(tables) != len(plan.scopes):
        raise ShapeError(f"{len(tables)} tables", f"one a factor, {len(plan.scopes)}")
    for scope, table in zip(plan.scopes, tables, strict=True):
        shape = tuple(plan.cards[v] for v in scope)
        if tuple(table.shape) not in (shape, (len(codes), *shape)):
            raise ShapeError(f"A table of shape {tuple(table.shape)} over {scope}", f"{shape}, or one a row before it")


def _refuse_large(plan: Plan, codes: Tensor, limit: int, full: bool) -> None:
    if plan.cost().entries <= limit:
        return
    costs = row_cost(plan, codes, full)
    if over := int((costs > limit).sum()):
        row = int((costs > limit).nonzero()[0, 0])
        raise StructureError(
            f"{over} of {len(codes)} rows need more than limit={limit} table entries (row {row}: {costs[row]:.3g})",
            "rows with more cells observed",
            "Score them by sampling, or raise limit= if memory allows (16 bytes an entry)",
        )


def row_cost(plan: Plan, codes: Tensor, full: bool = False) -> Tensor:
    """Table entries that each row takes, shape (n,), float64: of its clusters after the evidence is cut out.

    Arguments:
        full: For marginals, counts, draws, maxima: variables that a likelihood can leave out count, too.
    """
    native = compiled.kernel_for((), codes)
    if native is not None:
        return compiled.row_cost(native, plan, codes, full)
    return torch.tensor([_cost_of(plan, row) for row in codes.isnan().tolist()], dtype=torch.float64)


def _cost_of(plan: Plan, gaps: list[bool]) -> float:
    open_ones = [v for v in plan.order if gaps[v]]
    scopes = tuple(tuple(v for v in scope if gaps[v]) for scope in plan.scopes)
    reduced = Plan(plan.cards, scopes, (-1,) * len(scopes))
    return float(sum(math.prod(plan.cards[v] for v in scope) for scope in clusters(reduced, open_ones)))


def log_prob(plan: Plan, tables: Sequence[Tensor], codes: Tensor, *, limit: int = LIMIT) -> Tensor:
    """log of the sum over open variables of the product of the factors, shape (n,), in nats; -inf where impossible.

    Differentiable in the tables, also twice: the gradient is the expected counts.

    Raises:
        ShapeError: codes or tables that do not fit the plan.
        StructureError: rows above the limit of table entries.
    """
    _check(plan, tables, codes)
    wanted = torch.is_grad_enabled() and any(table.requires_grad for table in tables)
    _refuse_large(plan, codes, limit, wanted)
    native = compiled.kernel_for(tables, codes)
    if native is None:
        return logspace.log_prob(plan, tables, codes)
    if wanted:
        return _Counted.apply(plan, codes, limit, *tables)
    return compiled.log_prob(native, plan, tables, codes)


class _Counted(torch.autograd.Function):
    """log_prob, whose gradient in the log tables is the expected counts. A second derivative goes through the
    elimination itself."""

    @staticmethod
    def forward(context: Any, plan: Plan, codes: Tensor, limit: int, *tables: Tensor) -> Tensor:
        context.plan = plan = Plan.compile(plan.cards, plan.scopes)  # tables that only nearly sum to one count in full
        context.limit = limit
        context.save_for_backward(codes, *tables)
        return log_prob(plan, [table.detach() for table in tables], codes, limit=limit)

    @staticmethod
    def backward(context: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        codes, *tables = context.saved_tensors
        wanted = [table for table in tables if table.requires_grad]
        if torch.is_grad_enabled():
            nats = logspace.log_prob(context.plan, tables, codes)
            found = iter(torch.autograd.grad(nats, wanted, slope, create_graph=True, allow_unused=True))
        else:
            _, counts = expected(context.plan, tables, codes, slope, limit=context.limit)
            found = iter(count for count, table in zip(counts, tables, strict=True) if table.requires_grad)
        return None, None, None, *(next(found) if table.requires_grad else None for table in tables)


@torch.no_grad()
def expected(
    plan: Plan, tables: Sequence[Tensor], codes: Tensor, weights: Tensor | None = None, *, limit: int = LIMIT
) -> tuple[Tensor, list[Tensor]]:
    """log_prob, shape (n,), and per factor the sum over rows of weight times P(configuration | row).

    The counts are shaped as the tables: one table a row gets one answer a row. Impossible rows add nothing.

    Arguments:
        weights: Of the rows, shape (n,); None: 1 each.
    """
    _check(plan, tables, codes)
    _refuse_large(plan, codes, limit, True)
    weights = codes.new_ones(len(codes)) if weights is None else weights
    native = compiled.kernel_for(tables, codes)
    if native is None:
        return logspace.expected(plan, tables, codes, weights)
    return compiled.expected(native, plan, tables, codes, weights)


@torch.no_grad()
def marginals(plan: Plan, tables: Sequence[Tensor], codes: Tensor, *, limit: int = LIMIT) -> tuple[Tensor, Tensor]:
    """log_prob, shape (n,), and each variable's distribution given the row, side by side, shape (n, sum(cards)).

    An observed variable has all its mass on what was seen; an impossible row is NaN.
    """
    _check(plan, tables, codes)
    _refuse_large(plan, codes, limit, True)
    native = compiled.kernel_for(tables, codes)
    if native is None:
        return logspace.marginals(plan, tables, codes)
    return compiled.marginals(native, plan, tables, codes)


@torch.no_grad()
def mpe(plan: Plan, tables: Sequence[Tensor], codes: Tensor, *, limit: int = LIMIT) -> tuple[Tensor, Tensor]:
    """The most probable completion of each row, shape (n, V), and the log of its joint probability, shape (n,)."""
    _check(plan, tables, codes)
    _refuse_large(plan, codes, limit, True)
    native = compiled.kernel_for(tables, codes)
    if native is None:
        return logspace.mpe(plan, tables, codes)
    return compiled.mpe(native, plan, tables, codes)


@torch.no_grad()
def sample(
    plan: Plan,
    tables: Sequence[Tensor],
    codes: Tensor,
    draws: int,
    generator: torch.Generator,
    *,
    limit: int = LIMIT,
) -> Tensor:
    """Exact draws of the open variables given the rest of each row, shape (n, draws, V); NaN for an impossible row."""
    _check(plan, tables, codes)
    _refuse_large(plan, codes, limit, True)
    native = compiled.kernel_for(tables, codes)
    if native is None:
        drawn = logspace.sample(plan, tables, codes, _uniforms(generator)((len(codes), draws, codes.shape[1])))
        possible = logspace.log_prob(plan, tables, codes) > -torch.inf
        return torch.where(possible[:, None, None], drawn, torch.nan)
    return compiled.sample(native, plan, tables, codes, draws, _uniforms(generator))


def _uniforms(generator: torch.Generator) -> Callable[[tuple[int, ...]], Tensor]:
    """Numbers in [0, 1), float64, of any shape; NumPy makes them in a third of torch's time."""
    stream = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, (), generator=generator))))
    return lambda shape: torch.from_numpy(stream.random(shape))
