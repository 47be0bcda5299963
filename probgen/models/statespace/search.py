"""L-BFGS that only ever climbs."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["climb"]

_TRIES = 30


def climb(
    parameters: Iterable[Tensor],
    objective: Callable[[], Tensor],
    max_iter: int,
    tol: float,
    note: Callable[[float], None],
    memory: int = 12,
) -> tuple[list[float], str]:
    """Raises an objective by L-BFGS with backtracking (Nocedal and Wright 2006, algorithm 7.4).

    Arguments:
        parameters: Moved in place; they end at the best point seen.
        objective: To be raised; where it is NaN or infinite a step is refused.
        tol: Two steps in a row that gain less than this end the search.
        note: Told the objective after each step.

    Returns:
        The objective at the start and after each step, and "converged" or "steps".
    """
    moved = list(parameters)
    value, slope = _evaluate(moved, objective)
    history, idle = [value], 0
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(max_iter):
        way = _direction(slope, pairs)
        if float(way @ slope) <= 0:
            way, pairs = slope, []
        step = _backtrack(moved, objective, value, slope, way, 1.0 if pairs else min(1.0, 1 / _norm(slope)))
        if step is None and pairs:
            pairs = []
            continue
        if step is None:
            return history, "converged"
        gain, (value, new, shift) = step[0] - value, step
        bend = slope - new
        if float(shift @ bend) > 1e-12 * _norm(shift) * _norm(bend):
            pairs = [*pairs[1 - memory :], (shift, bend)]
        slope = new
        history.append(value)
        note(value)
        idle = idle + 1 if gain < tol else 0
        if idle == 2:
            return history, "converged"
    return history, "steps"


def _norm(vector: Tensor) -> float:
    return max(float(vector.norm()), 1e-300)


def _evaluate(moved: Sequence[Tensor], objective: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """The objective and its gradient, flat; -inf where it is not a number."""
    value = objective()
    if not math.isfinite(float(value.detach())):
        return -math.inf, torch.zeros(0)
    grads = torch.autograd.grad(value, moved, allow_unused=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(moved, grads, strict=True)])
    return (float(value.detach()), flat) if bool(flat.isfinite().all()) else (-math.inf, flat)


def _direction(slope: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion: an estimate of the inverse curvature, on the gradient."""
    way, shares = slope.clone(), []
    for shift, bend in reversed(pairs):
        share = (shift @ way) / (shift @ bend)
        way = way - share * bend
        shares.append(share)
    if pairs:
        shift, bend = pairs[-1]
        way = way * (shift @ bend) / (bend @ bend)
    for (shift, bend), share in zip(pairs, reversed(shares), strict=True):
        way = way + (share - (bend @ way) / (shift @ bend)) * shift
    return way


def _backtrack(
    moved: Sequence[Tensor],
    objective: Callable[[], Tensor],
    value: float,
    slope: Tensor,
    way: Tensor,
    size: float,
) -> tuple[float, Tensor, Tensor] | None:
    """A step that rises enough (Armijo), or None with the parameters where they were."""
    origin = [p.detach().clone() for p in moved]
    rise = float(way @ slope)
    for _ in range(_TRIES):
        _put(moved, origin, size * way)
        new, gradient = _evaluate(moved, objective)
        if new >= value + 1e-4 * size * rise and new > value:
            return new, gradient, size * way
        size *= 0.4
    _put(moved, origin, 0 * way)
    return None


@torch.no_grad()
def _put(moved: Sequence[Tensor], origin: Sequence[Tensor], shift: Tensor) -> None:
    parts = shift.split([p.numel() for p in moved])
    for p, base, part in zip(moved, origin, parts, strict=True):
        p.copy_(base + part.view_as(p))
