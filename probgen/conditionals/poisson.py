"""Counts whose logarithmic mean is linear in their parents."""

from collections.abc import Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.conditionals.ascent import Derivatives, newton
from probgen.conditionals.conditional import Conditional, as_numbers
from probgen.emissions.emission import column_moments
from probgen.emissions.poisson import poisson_log_prob
from probgen.errors import ParameterError
from probgen.events import Column, Count

__all__ = ["PoissonRegression"]

_EMPTY = 1e-8  # a configuration of less weight is reported as one without data
_WHOLE = 2.0**53  # up to here float64 holds every whole number


class PoissonRegression(Conditional):
    """child | parents ~ Poisson(exp(loc + slope . (u - centre))), a regression for each configuration.

    u are the continuous parents, in units of their standard deviation in the data, centre their mean. Parameters, P
    the numbers of levels of the discrete parents: ``loc`` (*P), ``slope`` (*P, C).

    Arguments:
        ridge: Precision of a normal prior on slopes and on the distance of ``loc`` from the logarithm of the child's
            mean in the data, so that counts that are all 0 have an optimum: EM maximises a penalised likelihood. A
            configuration without data has the data's mean.
    """

    data_mean: Tensor
    input_mean: Tensor
    input_scale: Tensor

    def __init__(self, ridge: float = 1e-3) -> None:
        super().__init__()
        if not 0 < ridge < float("inf"):
            raise ParameterError(f"ridge={ridge}", "a number above 0")
        self.ridge = ridge

    def suits(self, child: Column, parents: Sequence[Column]) -> str | None:
        return None if isinstance(child, Count) else "its child is a count"

    def _build(self) -> None:
        inputs = len(self.continuous_parents)
        self.loc = nn.Parameter(torch.zeros(self.parent_cards, dtype=torch.float64))
        self.slope = nn.Parameter(torch.zeros(*self.parent_cards, inputs, dtype=torch.float64))
        self.register_buffer("data_mean", torch.ones((), dtype=torch.float64))
        self.register_buffer("input_mean", torch.zeros(inputs, dtype=torch.float64))
        self.register_buffer("input_scale", torch.ones(inputs, dtype=torch.float64))

    # Probabilities

    def _rows(self) -> Tensor:
        """Slopes by flat configuration, (configurations, C)."""
        return self.slope.reshape(self.configurations, len(self.continuous_parents))

    def _scaled(self, parents: Tensor) -> Tensor:
        return (self.inputs(parents) - self.input_mean) / self.input_scale

    def log_mean(self, parents: Tensor) -> Tensor:
        """Logarithm of the mean given parents (..., P), shape (...)."""
        which = self.configuration(parents)
        return self.loc.reshape(-1)[which] + (self._rows()[which] * self._scaled(parents)).sum(-1)

    def mean(self, parents: Tensor) -> Tensor:
        return self.log_mean(parents).exp()

    def variance(self, parents: Tensor) -> Tensor:
        return self.mean(parents)

    def cells(self, parents: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(self.mean(parents))

    def log_prob(self, child: Tensor, parents: Tensor) -> Tensor:
        return poisson_log_prob(child, self.log_mean(parents))

    def log_factor(self, child: Tensor, parents: Tensor) -> Tensor:
        log_mean = self.loc.reshape(-1) + self._scaled(parents) @ self._rows().T
        return poisson_log_prob(child[:, None], log_mean).reshape(-1, *self.cards)

    def sample(self, parents: Tensor, generator: torch.Generator) -> Tensor:
        mean = self.mean(parents).detach()
        odd = ~(mean <= _WHOLE)
        if bool(odd.any()):
            raise ParameterError(
                f"{self!r} has mean {mean[odd][0].item():g} at parents {parents[odd][0].tolist()}",
                "means up to 2^53, where whole numbers are still apart",
                "Look at its natural(): intercept and coefficients are of the logarithm of the mean",
            )
        return torch.poisson(mean, generator=generator)

    # Learning

    @torch.no_grad()
    def prepare(self, child: Tensor, parents: Tensor) -> None:
        seen = (~child.isnan()).sum()
        self.data_mean = torch.maximum(torch.nan_to_num(child).sum() / seen.clamp(min=1), 1 / (seen + 1))
        centre, spread = column_moments(self.inputs(parents))
        slope = self.slope / self.input_scale
        self.loc.add_(slope @ (centre - self.input_mean))
        self.slope.copy_(slope * spread.sqrt())
        self.input_mean, self.input_scale = centre, spread.sqrt()

    @torch.no_grad()
    def maximise_rows(self, child: Tensor, parents: Tensor, weights: Tensor) -> list[int]:
        weights = self._checked_counts(weights, "weights").reshape(len(child), -1)
        design = torch.cat([torch.ones(len(child), 1, dtype=torch.float64), self._scaled(parents)], 1)
        present = torch.cat([self.loc.reshape(-1, 1), self._rows()], 1)
        start = self._finite(present, child, design, weights)
        free = torch.full(present.shape[1:], -torch.inf, dtype=torch.float64)
        best = newton(lambda at: self._derivatives(at, child, design, weights), start, free)
        self.loc.copy_(best[:, 0].reshape(self.loc.shape))
        self.slope.copy_(best[:, 1:].reshape(self.slope.shape))
        return (weights.sum(0) <= _EMPTY).nonzero()[:, 0].tolist()

    def _finite(self, present: Tensor, child: Tensor, design: Tensor, weights: Tensor) -> Tensor:
        """The present coefficients, or the data's mean where the objective is not finite or lower there."""
        plain = torch.zeros_like(present)
        plain[:, 0] = self.data_mean.log()
        here, there = (self._derivatives(at, child, design, weights)[0] for at in (present, plain))
        return torch.where((here >= there)[:, None], present, plain)

    def _derivatives(self, at: Tensor, child: Tensor, design: Tensor, weights: Tensor) -> Derivatives:
        """The penalised log-likelihood, up to a constant, of coefficients (K, 1 + C), its gradient and Hessian."""
        away = at.clone()
        away[:, 0] -= self.data_mean.log()
        eta = design @ at.T  # (n, K)
        rate, q = eta.exp(), design.shape[1]
        value = torch.where(weights > 0, weights * (child[:, None] * eta - rate), 0.0).sum(0)
        slope = (weights * (child[:, None] - rate)).T @ design
        bend = (weights * rate).T @ (design[:, :, None] * design[:, None]).flatten(1)
        ridge = self.ridge * torch.eye(q, dtype=torch.float64)
        value = value - 0.5 * self.ridge * away.square().sum(-1)
        return value, slope - self.ridge * away, -bend.reshape(-1, q, q) - ridge

    def penalty(self) -> Tensor:
        away = self.loc - self.data_mean.log()
        return -0.5 * self.ridge * (away.square().sum() + self.slope.square().sum())

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Rates within some factors of e of the data's mean, for each standard deviation of an input too."""
        loc, zero = self.data_mean.log().expand(self.loc.shape), torch.zeros_like(self.slope)
        return {
            "loc": dist.Normal(loc, torch.ones_like(loc)).to_event(loc.ndim),
            "slope": dist.Normal(zero, torch.ones_like(zero)).to_event(zero.ndim),
        }

    @property
    def n_params(self) -> int:
        return self.configurations * (1 + len(self.continuous_parents))

    def natural(self) -> dict[str, Tensor]:
        """``intercept`` (*P) of the log-mean at u = 0, ``coefficients`` (*P, C)."""
        coefficients = self.slope / self.input_scale
        return {"intercept": self.loc - coefficients @ self.input_mean, "coefficients": coefficients}

    @torch.no_grad()
    def set_natural(self, *, intercept: Any, coefficients: Any = None) -> Self:
        loc, slope = as_numbers(intercept, self.loc.shape, "intercept"), torch.zeros_like(self.slope)
        if coefficients is not None:
            slope = as_numbers(coefficients, self.slope.shape, "coefficients")
        if not (loc.isfinite().all() and slope.isfinite().all()):
            raise ParameterError(f"intercept={intercept}, coefficients={coefficients}", "finite numbers")
        self.loc.copy_(loc + slope @ self.input_mean)
        self.slope.copy_(slope * self.input_scale)
        return self
