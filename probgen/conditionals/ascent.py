"""Newton's way up concave objectives."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Derivatives", "newton"]

_ROUNDING = 1e-15  # of an objective, relative to its size

Derivatives = tuple[Tensor, Tensor, Tensor]


def newton(derivatives: Callable[[Tensor], Derivatives], start: Tensor, lowest: Tensor, steps: int = 100) -> Tensor:
    """The maximisers of K concave functions of D numbers that are at least ``lowest``, (K, D).

    Newton steps on the numbers that no bound holds back, projected onto the bounds; a step that does not lead up is
    damped (Levenberg 1944) and turns to the gradient, whose projection does. An objective is never lowered, but for
    rounding in a last step that makes the gradient smaller.

    Arguments:
        derivatives: Of points (K, D): values (K,), gradients (K, D) and Hessians (K, D, D); a value may be -inf.
        start: Points (K, D) with finite values.
        lowest: Bounds (D,), -inf where there is none.
    """
    at, found = start, derivatives(start)
    for _ in range(steps):
        new, newer = _step(derivatives, at, found, lowest)
        if torch.equal(new, at):
            break
        at, found = new, newer
    return at


def _step(
    derivatives: Callable[[Tensor], Derivatives], at: Tensor, found: Derivatives, lowest: Tensor
) -> tuple[Tensor, Derivatives]:
    """Points further up and what is found there; points that can't rise stay."""
    value, slope, bend = found
    free = ~((at <= lowest) & (slope <= 0))
    slope = torch.where(free, slope, 0.0)
    curve = -bend * (free[:, :, None] & free[:, None])
    size, steep = curve.diagonal(dim1=-2, dim2=-1).amax(-1), slope.abs().amax(-1)
    damping = 1e-13 * size + 1e-6 * steep  # the gradient takes it to nothing
    good, best = steep <= 0, at
    for _ in range(40):
        step = _solve(curve, slope, torch.where(free, damping[:, None], 1.0))
        new = torch.where(good[:, None], best, torch.maximum(at + step, lowest))
        newer = derivatives(new)
        near = (slope * step).sum(-1) <= 1e3 * _ROUNDING * value.abs()  # the objective can't tell any more
        level = near & (newer[0] >= value - 10 * _ROUNDING * value.abs()) & (_steepness(new, newer[1], lowest) < steep)
        rise = (slope * (new - at)).sum(-1)
        risen = (newer[0] > value) & (newer[0] - value >= 1e-4 * rise)
        better = ~good & (risen | level)
        best = torch.where(better[:, None], new, best)
        good = good | better | near
        if good.all():
            break
        damping = torch.where(good, damping, torch.maximum(10 * damping, 1e-4 * size))
    return best, newer if torch.equal(best, new) else derivatives(best)


def _solve(curve: Tensor, slope: Tensor, damping: Tensor) -> Tensor:
    """Steps (K, D) of damped Hessians; the damping grows where rounding left them without a Cholesky factor."""
    factor, failed = torch.linalg.cholesky_ex(curve + torch.diag_embed(damping))
    for _ in range(40):
        if not failed.any():
            break
        least = 1e-13 * curve.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).clamp(min=1e-290)
        damping = torch.where(failed[:, None] > 0, torch.maximum(10 * damping, least), damping)
        factor, failed = torch.linalg.cholesky_ex(curve + torch.diag_embed(damping))
    return torch.cholesky_solve(slope[..., None], factor)[..., 0]


def _steepness(at: Tensor, slope: Tensor, lowest: Tensor) -> Tensor:
    """The largest slope that no bound holds back, (K,)."""
    return torch.where((at <= lowest) & (slope <= 0), 0.0, slope).abs().amax(-1)
