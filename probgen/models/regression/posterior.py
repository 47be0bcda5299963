"""What data leave open about linear coefficients: normal approximations, the conjugate case, and the
probability of further rows averaged over them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.models.regression.head import Head
from probgen.models.regression.linear import Found, Objective, Rows, _inverse, ascend, derivatives
from probgen.posterior import log_mean

__all__ = ["Prior", "by_quadrature", "conjugate", "laplace", "log_mean_over", "objective_of"]

_CELLS = 1 << 20  # numbers of predictors held at once


@dataclass(frozen=True)
class Prior:
    """Of coefficients in the units of the fit, independent normals with mean 0; of a conjugate model's noise.

    Arguments:
        slope, intercept: Standard deviations (under ``conjugate``: in units of the noise).
        shape, rate: Of an inverse gamma distribution of the noise's variance, for ``conjugate`` alone.
    """

    slope: float = 2.5
    intercept: float = 10.0
    shape: float = 0.5
    rate: float = 0.05

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ParameterError(f"A prior of {name} {value!r}", "a positive number")

    def deviations(self, columns: int) -> Tensor:
        """Standard deviations of one predictor's coefficients, (1 + d,)."""
        out = torch.full((columns,), float(self.slope), dtype=torch.float64)
        out[0] = self.intercept
        return out

    def of(self, head: Head, columns: int) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of theta, (P,) each."""
        extras = torch.tensor(head.priors(), dtype=torch.float64).reshape(-1, 2)
        wide = self.deviations(columns).repeat(head.places)
        return torch.cat([torch.zeros_like(wide), extras[:, 0]]), torch.cat([wide, extras[:, 1]])


def objective_of(head: Head, rows: Rows, prior: Prior) -> tuple[Objective, float]:
    """The log joint density but for a constant, and that constant."""
    middle, wide = prior.of(head, rows.design.shape[1])
    constant = -float(wide.log().sum()) - 0.5 * len(wide) * math.log(2 * math.pi)
    return Objective(head, rows, torch.diag(wide**-2), middle), constant


def laplace(head: Head, rows: Rows, prior: Prior, max_iter: int) -> tuple[Found, float]:
    """The posterior's mode and curvature, and Laplace's approximation of log p(y | covariates) in nats.

    MacKay (2003), equation 27.3.
    """
    objective, constant = objective_of(head, rows, prior)
    first = head.start(rows.y - rows.offset if head.location else rows.y)
    start = torch.zeros(head.places, rows.design.shape[1], dtype=torch.float64)
    start[:, 0] = first[: head.places]
    theta, bend, history, stopped = ascend(objective, torch.cat([start.reshape(-1), first[head.places :]]), max_iter)
    covariance, width = _inverse(-bend), rows.design.shape[1]
    evidence = history[-1] + constant + 0.5 * len(theta) * math.log(2 * math.pi)
    evidence -= 0.5 * float(torch.linalg.slogdet(-bend)[1])
    notes = ("Newton's method did not converge: more max_iter",) * (stopped == "steps")
    return Found(theta, covariance, torch.ones(width, dtype=torch.bool), history, stopped, width, notes), evidence


def conjugate(rows: Rows, prior: Prior) -> tuple[Found, float]:
    """The normal-inverse-gamma posterior of a normal linear model, and log p(y | covariates), exactly.

    ``theta`` holds the mean and log(b / a) / 2, ``covariance`` the scale matrix of the coefficients' t distribution of
    2 a degrees of freedom, a = shape + n / 2. Bishop (2006), exercises 3.12 and 3.23.
    """
    y, x, n = rows.y - rows.offset, rows.design, len(rows)
    before = prior.deviations(x.shape[1]).square()
    information = torch.diag(1 / before) + x.T @ x
    factor = torch.linalg.cholesky(information)
    mean = torch.cholesky_solve((x.T @ y)[:, None], factor)[:, 0]
    square = float((y - x @ mean).square().sum() + (mean.square() / before).sum())
    shape, rate = prior.shape + n / 2, prior.rate + square / 2
    evidence = -0.5 * n * math.log(2 * math.pi) - float(factor.diagonal().log().sum()) - 0.5 * float(before.log().sum())
    evidence += prior.shape * math.log(prior.rate) - shape * math.log(rate)
    evidence += math.lgamma(shape) - math.lgamma(prior.shape)
    covariance = torch.zeros(len(mean) + 1, len(mean) + 1, dtype=torch.float64)
    covariance[:-1, :-1] = torch.cholesky_inverse(factor) * rate / shape
    covariance[-1, -1] = 0.25 * float(torch.polygamma(1, torch.tensor(shape, dtype=torch.float64)))
    theta = torch.cat([mean, torch.tensor([0.5 * math.log(rate / shape)], dtype=torch.float64)])
    history = [-0.5 * shape / rate * float(y.square().sum()), -0.5 * shape / rate * square]
    level = -0.5 * n * math.log(2 * math.pi * rate / shape)
    sure = torch.ones(x.shape[1], dtype=torch.bool)
    return Found(theta, covariance, sure, [level + h for h in history], "converged", x.shape[1]), evidence


def by_quadrature(head: Head, y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """log of the integral of p(y | u) N(u; mean, variance) du, (n,), for one log-concave predictor u.

    64 nodes of Gauss and Hermite about each integrand's own mode and curvature (Liu and Pierce 1994); beside it the
    difference to 32 nodes.
    """
    variance = variance.clamp(min=1e-14)  # less is a point
    at, bend = mean.clone(), torch.zeros_like(mean)
    for _ in range(200):
        _, slope, second = derivatives(head, y, at[:, None])
        bend = second[:, 0, 0].clamp(max=0.0) - 1 / variance
        step = -(slope[:, 0] - (at - mean) / variance) / bend
        at = at + step.clamp(-3.0, 3.0)
        if bool((step.abs() * (-bend).sqrt() < 1e-6).all()):
            break
    wide = (-2 / bend).sqrt()
    return _integral(head, y, mean, variance, at, wide, 64), (
        _integral(head, y, mean, variance, at, wide, 64) - _integral(head, y, mean, variance, at, wide, 32)
    ).abs()


def _integral(head: Head, y: Tensor, mean: Tensor, variance: Tensor, at: Tensor, wide: Tensor, nodes: int) -> Tensor:
    places, weights = (torch.from_numpy(part) for part in np.polynomial.hermite.hermgauss(nodes))
    u = at + wide * places[:, None]
    prior = -0.5 * ((u - mean).square() / variance + (2 * math.pi * variance).log())
    logs = head.log_prob(y, u[..., None]) + prior + (weights.log() + places.square())[:, None]
    return logs.logsumexp(0) + wide.log()


def log_mean_over(
    head: Head, y: Tensor, theta: Tensor, predictors: "Predictors", chains: int
) -> tuple[Tensor, Tensor, Tensor]:
    """log of the mean of p(y | u) over draws of theta (S, P): nats, standard errors and effective draws, (n,) each.

    Errors are of the delta method, with the autocorrelation of the draws of several ``chains``; 0: independent draws.
    """
    found = []
    size = max(1, _CELLS // (len(theta) * head.width))
    for start in range(0, len(y), size):
        part = slice(start, start + size)
        logs = head.log_prob(y[part], predictors(theta, part))  # (S, rows)
        found.append(torch.stack(log_mean(logs, chains)))
    nats, error, ess = torch.cat(found, 1)
    return nats, error, ess


class Predictors:
    """u of some rows under draws of theta: (S, rows, q), in the response's own unit."""

    def __init__(self, head: Head, design: Tensor, offset: Tensor, centre: Tensor, spread: Tensor) -> None:
        self.head, self.design, self.offset, self.centre, self.spread = head, design, offset, centre, spread

    def paired(self, theta: Tensor) -> Tensor:
        """u (rows, q) of rows each of which has a theta of its own, (rows, P)."""
        places, split = self.head.places, self.head.places * self.design.shape[1]
        u = torch.einsum("nd,npd->np", self.design, theta[:, :split].reshape(len(theta), places, -1))
        u = torch.cat([u[:, :1] + self.offset[:, None], u[:, 1:], theta[:, split:]], 1)
        return self.head.natural(u, self.centre, self.spread)

    def __call__(self, theta: Tensor, part: slice = slice(None)) -> Tensor:
        x, places = self.design[part], self.head.places
        split = places * x.shape[1]
        slopes = theta[:, :split].reshape(len(theta), places, -1)
        u = torch.einsum("nd,spd->snp", x, slopes)
        u = torch.cat([u[..., :1] + self.offset[part, None], u[..., 1:]], -1)
        extras = theta[:, None, split:].expand(-1, len(x), -1)
        return self.head.natural(torch.cat([u, extras], -1), self.centre, self.spread)
