"""A normal at the posterior's mode, row by row, in place of an amortised guide that is only roughly right."""

import math

import torch
from torch import Tensor

from probgen.estimate.weights import Frame, Weights, standard_normal

__all__ = ["REFINING", "refine"]

_MOST = 64  # latents, for each costs a gradient of the gradient
_STEPS, _SHARES = 8, (1.0, 0.3, 0.1, 0.03)
_LOOKS = 100  # draws of either guide, which choose
REFINING = _STEPS * (4 * (_MOST + 1) + len(_SHARES)) + 2 * _LOOKS  # evaluations of log p(x, z) at most


def refine(weights: Weights, rows: Tensor) -> Weights:
    """The weights with another guide for some rows: a normal, in the guide's noise, at the mode of the posterior.

    Newton's steps climb from the guide's middle; the curvature at the end is the precision. The normal is widened, by a
    fifth for few latents, for a posterior has heavier tails more often than lighter ones. A row keeps its guide where
    that promises weights of smaller variance, by draws of both; all do where the density can't be differentiated twice
    or has more than 64 latents. Nothing here looks at draws that are reported later.

    Tierney and Kadane (1986), "Accurate approximations for posterior moments and marginal densities".
    """
    dim = weights.model.latent_dim
    if dim > _MOST or not len(rows):
        return weights
    centre = torch.zeros(len(weights), dim, dtype=torch.float64)
    factor = torch.eye(dim, dtype=torch.float64).repeat(len(weights), 1, 1)
    for some in weights[rows].blocks(2 * dim, 512):
        found = _fit(weights[rows[some]])
        if found is None:
            return weights
        centre[rows[some]], factor[rows[some]] = found
    return weights.framed(Frame(centre, factor))


def _fit(part: Weights) -> Frame | None:
    u = torch.zeros(1, len(part), part.model.latent_dim, dtype=torch.float64)
    for _ in range(_STEPS):
        shape = _derivatives(part, u)
        if shape is None:
            return None
        values, vectors = torch.linalg.eigh(-shape[1])
        step = _times(vectors, _times(vectors.mT, shape[0]) / values.abs().clamp(min=1e-2))
        tries = torch.cat([u, *(u + share * step for share in _SHARES)])
        best = _height(part, tries).argmax(0)
        u = tries[best, torch.arange(len(part))][None]
    width = 1 + min(0.2, 0.8 / math.sqrt(u.shape[-1]))
    factor = width * (vectors * values.clamp(min=1e-2).rsqrt()[:, None, :]) @ vectors.mT  # the symmetric root
    return _better(part, Frame(u[0], factor))


@torch.enable_grad()
def _derivatives(part: Weights, u: Tensor) -> tuple[Tensor, Tensor] | None:
    """Slope (n, D) and curvature (n, D, D) of the height at u (1, n, D); None where there are none."""
    u = u.clone().requires_grad_()
    try:
        (slope,) = torch.autograd.grad(_height(part, u).sum(), u, create_graph=True)
        rows = [torch.autograd.grad(slope[..., d].sum(), u, retain_graph=True)[0][0] for d in range(u.shape[-1])]
    except (RuntimeError, NotImplementedError):
        return None
    curve = torch.stack(rows, dim=1).nan_to_num(posinf=0.0, neginf=0.0)
    return slope.detach()[0].nan_to_num(posinf=0.0, neginf=0.0), 0.5 * (curve + curve.mT)


def _height(part: Weights, u: Tensor) -> Tensor:
    """log p(x, z(u)) with the volume of the guide's map, (S, n)."""
    return (part.at(u) + standard_normal(u)).nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.einsum("nij,nj->ni", matrix, vector)


def _better(part: Weights, frame: Frame) -> Frame:
    """The frame, or none where the guide itself gives the smaller second moment of weights, by draws of both."""
    noise = part.noise(2 * _LOOKS, "refine").to(torch.float64)
    u = torch.cat([noise[:_LOOKS], frame.move(noise[_LOOKS:])])
    back = torch.linalg.solve(frame.factor, (u - frame.centre)[..., None])[..., 0]
    log_q = torch.stack([standard_normal(u), standard_normal(back) - frame.log_volume])
    second = (2 * _height(part, u) - log_q - log_q.logsumexp(0)).logsumexp(1).nan_to_num(nan=math.inf)
    keep = second[1] < second[0]
    centre = torch.where(keep[:, None], frame.centre, 0.0)
    return Frame(centre, torch.where(keep[:, None, None], frame.factor, torch.eye(centre.shape[1]).to(centre)))
