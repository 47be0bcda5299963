"""Where to look for a row's latents: normal noise pushed through a guide's distributions, or a normal at the mode."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as td
from pyro.distributions import MaskedDistribution
from torch import Tensor

__all__ = ["laplace", "push"]

_WIDER = 1.2  # a proposal that is too narrow is biased, one that is too wide is only noisy
_FLATTEST = 1e-3  # least curvature, in inverse squared unconstrained units


def push(fn: Any, noise: Tensor) -> Tensor:
    """A draw of a distribution as a smooth function of standard normal noise of the draw's shape.

    Raises:
        NotImplementedError: for distributions without such a map (Gamma, Beta, Dirichlet).
    """
    if isinstance(fn, td.Independent | MaskedDistribution) or type(fn).__name__ == "ExpandedDistribution":
        return push(fn.base_dist, noise)
    if isinstance(fn, td.Normal):
        return fn.loc + fn.scale * noise
    if isinstance(fn, td.MultivariateNormal | td.LowRankMultivariateNormal):
        return fn.loc + (fn.scale_tril @ noise[..., None])[..., 0]
    if isinstance(fn, td.TransformedDistribution):
        value = push(fn.base_dist, noise)
        for transform in fn.transforms:
            value = transform(value)
        return value
    edge = torch.finfo(noise.dtype).eps
    return fn.icdf(torch.special.ndtr(noise).clamp(edge, 1 - edge))


def laplace(log_joint: Callable[[Tensor], Tensor], n: int, cells: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mode and factor of a normal at the mode of each row's log-density, a little wider than the curvature says.

    Arguments:
        log_joint: (n, cells) -> (n,), rows independent of each other, in nats.

    Returns:
        Mode (n, cells), and factor (n, cells, cells) such that mode + factor @ noise is a draw.

    Newton steps with the curvature's signs made positive, halved until they gain; a row that has converged rests.
    """
    u = torch.zeros(n, cells, dtype=dtype)
    for _ in range(40):
        value, slope, directions, curvature = _look(log_joint, u)
        step = (directions @ ((directions.mT @ slope[..., None]) / curvature[..., None]))[..., 0]
        moved = _climb(log_joint, u, step, value)
        small = (moved - u).abs().amax(-1) <= 1e-5 * (1 + u.abs().amax(-1))
        u = torch.where(small[:, None], u, moved)
        if bool(small.all()):
            break
    _, _, directions, curvature = _look(log_joint, u)
    return u, _WIDER * directions * curvature.rsqrt()[:, None, :]


def _look(log_joint: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value (n,), slope (n, k), and the principal directions (n, k, k) of the curvature with its size (n, k)."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = log_joint(u)
        slope = torch.autograd.grad(value.sum(), u, create_graph=True)[0]
        rows = [
            torch.autograd.grad(slope[:, j].sum(), u, retain_graph=True, allow_unused=True)[0]
            if slope.requires_grad
            else None
            for j in range(u.shape[1])
        ]
    hessian = torch.stack([torch.zeros_like(u) if row is None else row for row in rows], 1).detach()
    odd = ~hessian.isfinite().all(-1).all(-1)
    hessian = torch.where(odd[:, None, None], -torch.eye(u.shape[1], dtype=u.dtype), 0.5 * (hessian + hessian.mT))
    size, directions = torch.linalg.eigh(-hessian)
    return value.detach(), torch.nan_to_num(slope.detach()), directions, size.abs().clamp(min=_FLATTEST)


@torch.no_grad()
def _climb(log_joint: Callable[[Tensor], Tensor], u: Tensor, step: Tensor, value: Tensor) -> Tensor:
    """Each row's longest halved step that does not lose; none where all do."""
    found, open_rows = u.clone(), torch.ones(len(u), dtype=torch.bool)
    for halvings in range(10):
        tried = u + step * 0.5**halvings
        better = open_rows & (log_joint(tried) >= value)
        found[better], open_rows = tried[better], open_rows & ~better
        if not bool(open_rows.any()):
            break
    return found
