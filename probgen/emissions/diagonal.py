"""Normals with independent cells: the torch path, and the way to the compiled kernel."""

import math
from typing import Any

import torch
from torch import Tensor

from probgen import kernels

__all__ = ["can_compile", "diagonal_log_prob", "diagonal_moments"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def can_compile(*tables: Tensor) -> bool:
    """Whether the kernel is there and takes these tables."""
    fits = all(table.dtype == torch.float64 and table.device.type == "cpu" for table in tables)
    return kernels.native is not None and fits


def _numbers(table: Tensor) -> Any:
    return table.detach().contiguous().numpy()


def diagonal_log_prob(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(x; loc_k, diag(scale_k^2)) of rows (n, D) under K states (K, D), NaN cells integrated out: shape (n, K)."""
    if can_compile(x, loc, scale) and not x.requires_grad:
        return _Compiled.apply(x, loc, scale)
    if torch.is_grad_enabled() and (loc.requires_grad or scale.requires_grad or x.requires_grad):
        return _differentiable(x, loc, scale)
    seen = ~x.isnan()
    constant = -(seen.to(x.dtype) @ (scale.log() + _HALF_LOG_2PI).T)
    return _less_squares(constant, torch.where(seen, x, torch.nan), loc, 1 / scale, not seen.all())


def _differentiable(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    z = torch.nan_to_num(x[:, None] - loc) / scale
    return -0.5 * z.square().sum(-1) - (~x.isnan()).to(x.dtype) @ (scale.log() + _HALF_LOG_2PI).T


def _less_squares(out: Tensor, x: Tensor, loc: Tensor, inverse: Tensor, gaps: bool) -> Tensor:
    """out (n, K) less the halved squares of (x - loc) * inverse, cell by cell and in blocks that fit in the cache."""
    size = max(64, (1 << 14) // len(loc))
    for part, rows in zip(out.split(size), x.split(size), strict=True):
        for column, means, scales in zip(rows.T, loc.T, inverse.T, strict=True):
            z = torch.sub(column[:, None], means).mul_(scales)
            z = z.nan_to_num_() if gaps else z
            part.addcmul_(z, z, value=-0.5)
    return out


def compiled_moments(x: Tensor, weights: Tensor, loc: Tensor) -> Tensor:
    """Weighted counts of the cells seen, and their moments about loc, shape (3, K, D)."""
    out = torch.empty(3, *loc.shape, dtype=torch.float64)
    tables = [_numbers(table) for table in (x, weights, loc)]
    kernels.native.normal_moments(*tables, *(part.numpy() for part in out), torch.get_num_threads())  # type: ignore[union-attr]
    return out


def diagonal_moments(x: Tensor, weights: Tensor, loc: Tensor) -> Tensor:
    """Weighted counts of the cells seen, and their moments about loc: (n, D), (n, K), (K, D) -> (3, K, D).

    The torch path takes them about the middle of the means where a shift from there costs no digits, else cell by cell.
    """
    if can_compile(x, weights, loc):
        return compiled_moments(x, weights, loc)
    centre = loc.mean(0)
    seen, y, shift = (~x.isnan()).to(x.dtype), torch.nan_to_num(x - centre), loc - centre
    if (shift.abs() < 10 * y.square().mean(0).sqrt()).all():
        n, first, second = (weights.T @ torch.cat([seen, y, y.square()], 1)).split(x.shape[1], 1)
        return torch.stack([n, first - n * shift, second - shift * (2 * first - n * shift)])
    sums = []
    for column, means in zip(x.T, loc.T, strict=True):
        away = torch.nan_to_num(column[:, None] - means)
        sums.append(torch.stack([(weights * away).sum(0), (weights * away * away).sum(0)]))
    return torch.cat([(weights.T @ seen)[None], torch.stack(sums, -1)])


class _Compiled(torch.autograd.Function):
    """The kernel's log-density; its gradient in the parameters is made of the same moments as the M step."""

    @staticmethod
    def forward(context: Any, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        context.save_for_backward(x, loc, scale)
        out = torch.empty(len(x), len(loc), dtype=torch.float64)
        tables = [_numbers(table) for table in (x, loc, scale)]
        kernels.native.normal_log_prob(*tables, out.numpy(), torch.get_num_threads())  # type: ignore[union-attr]
        return out

    @staticmethod
    def backward(context: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, loc, scale = context.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            wanted = [part for part in (loc, scale) if part.requires_grad]
            found = iter(torch.autograd.grad(_differentiable(x, loc, scale), wanted, slope, create_graph=True))
            return None, *(next(found) if part.requires_grad else None for part in (loc, scale))
        n, first, second = compiled_moments(x, slope, loc)
        return None, first / scale.square(), second / scale**3 - n / scale
