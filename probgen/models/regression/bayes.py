"""Draws of the parameters of a linear regression, and what is asked of them."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen.errors import NotFittedError
from probgen.models.regression.head import Head
from probgen.models.regression.linear import Found, Rows
from probgen.models.regression.posterior import Prior, objective_of
from probgen.models.regression.predictive import predictors
from probgen.models.regression.summary import names_of, to_data

if TYPE_CHECKING:
    from probgen.models.regression.family import Regression
    from probgen.posterior import Draws, Plan
    from probgen.posterior import Found as Drawn

__all__ = ["draw_prior", "drawn", "drawn_conjugate", "draws", "log_lik", "log_prior", "sample_prior"]

_CELLS = 1 << 22  # numbers of predictors held at once


def drawn(
    head: Head, rows: Rows, prior: Prior, found: Found, plan: "Plan", shift: float, generator: torch.Generator
) -> "tuple[Drawn, tuple[str, ...]]":
    """Draws of theta in the units of the fit, and notes.

    Arguments:
        found: The mode, where the search begins.
        shift: Log of the unit of all responses together, so that "lp" is of the data in their own.
    """
    from probgen.posterior import Density, judged, sampled

    objective, constant = objective_of(head, rows, prior)

    def joint(theta: Tensor) -> Tensor:
        return objective.value(theta) + constant - shift

    density = Density(joint, len(found.theta), recorded=plan.method != "laplace")
    made = sampled(density, found.theta.detach().numpy().copy(), plan, generator)
    return made, judged(plan, made, {"theta": made.z})


def drawn_conjugate(
    rows: Rows, prior: Prior, found: Found, plan: "Plan", shift: float, generator: torch.Generator
) -> "tuple[Drawn, tuple[str, ...]]":
    """Independent draws of coefficients and log deviation from the normal-inverse-gamma posterior, exact."""
    from probgen.posterior import Found as Drawn

    size, shape = plan.chains * plan.draws, prior.shape + len(rows) / 2
    rate = shape * math.exp(2 * float(found.theta[-1]))
    gamma = torch._standard_gamma(torch.full((size,), shape, dtype=torch.float64), generator=generator)
    variance = rate / gamma
    factor = torch.linalg.cholesky(found.covariance[:-1, :-1] * shape / rate)
    noise = torch.randn(size, len(factor), generator=generator, dtype=torch.float64)
    beta = found.theta[:-1] + variance.sqrt()[:, None] * (noise @ factor.T)
    z = torch.cat([beta, 0.5 * variance.log()[:, None]], 1)
    rest = rows.y - rows.offset - beta @ rows.design.T
    nats = -0.5 * (rest.square().sum(1) / variance + len(rows) * (2 * math.pi * variance).log())
    lp = (nats + conjugate_log_prior(prior, z) - shift).reshape(plan.chains, plan.draws)
    said = f"{size} independent draws from the normal-inverse-gamma posterior, exact"
    return Drawn(z.reshape(plan.chains, plan.draws, -1), {"lp": lp}, found.theta), (said,)


def conjugate_log_prior(prior: Prior, theta: Tensor) -> Tensor:
    """log p(coefficients, log deviation), (S,), from theta (S, P)."""
    beta, variance = theta[:, :-1], (2 * theta[:, -1]).exp()
    wide = prior.deviations(beta.shape[1]).square() * variance[:, None]
    normal = -0.5 * (beta.square() / wide + (2 * math.pi * wide).log()).sum(1)
    inverse = prior.shape * math.log(prior.rate) - math.lgamma(prior.shape)
    density = inverse - (prior.shape + 1) * variance.log() - prior.rate / variance
    return normal + density + (2 * variance).log()  # |d variance / d log deviation|


def _thetas(reg: "Regression") -> Tensor:
    if not reg.linear:
        raise NotFittedError(
            "A network has no posterior draws", "a linear model", "Leave hidden empty, and fit(method='nuts')"
        )
    return reg.kept.z()


def draws(reg: "Regression") -> "Draws | None":
    """Coefficients in the data's units, by name, and logarithms of scales and shapes."""
    if not reg.kept:
        return None

    def natural(z: Tensor) -> dict[str, Tensor]:
        shift, carry = to_data(reg)
        return dict(zip(names_of(reg), (shift + z @ carry.T).T, strict=True))

    return reg.kept.draws(natural)


@torch.no_grad()
def log_lik(reg: "Regression", y: Tensor, given: Tensor | None) -> Tensor:
    """log p(y_i | x_i, theta_s), (S, n), in chain-major order."""
    thetas, at = _thetas(reg), predictors(reg, given, len(y))
    size = max(1, _CELLS // (len(thetas) * reg.likelihood.width))
    parts = [slice(i, i + size) for i in range(0, len(y), size)]
    return torch.cat([reg.likelihood.log_prob(y[part], at(thetas, part)) for part in parts], 1)


def log_prior(reg: "Regression") -> Tensor:
    """log p(theta_s), (S,), of theta in the units of the fit."""
    thetas = _thetas(reg)
    if reg.method == "conjugate":
        return conjugate_log_prior(reg.prior, thetas)
    middle, wide = reg.prior.of(reg.likelihood, reg.weight.shape[1])
    return torch.distributions.Normal(middle, wide).log_prob(thetas).sum(1)


@torch.no_grad()
def sample_prior(reg: "Regression", n: int, given: Tensor | None, generator: torch.Generator) -> Tensor:
    """n responses for each row of covariates, (rows * n,), each from parameters of its own, drawn from the prior."""
    rows = 1 if given is None else len(given)
    repeated = None if given is None else given.repeat_interleave(n, 0)
    theta = draw_prior(reg, rows * n, generator)
    return reg.likelihood.draw(predictors(reg, repeated, rows * n).paired(theta), generator)


def draw_prior(reg: "Regression", n: int, generator: torch.Generator) -> Tensor:
    """Parameters (n, P) in the units of the fit, from the prior of the last Bayesian fit."""
    noise = torch.randn(n, _thetas(reg).shape[1], generator=generator, dtype=torch.float64)
    if reg.method == "conjugate":
        shape = torch.full((n,), float(reg.prior.shape), dtype=torch.float64)
        variance = reg.prior.rate / torch._standard_gamma(shape, generator=generator)
        beta = noise[:, :-1] * reg.prior.deviations(noise.shape[1] - 1) * variance.sqrt()[:, None]
        return torch.cat([beta, 0.5 * variance.log()[:, None]], 1)
    middle, wide = reg.prior.of(reg.likelihood, reg.weight.shape[1])
    return middle + wide * noise
