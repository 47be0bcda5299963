"""Normal cells that depend linearly on the steps before."""

from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.emissions.emission import Emission, Statistics
from probgen.emissions.normal import Normal
from probgen.emissions.regression import LinearRegression
from probgen.errors import ParameterError

__all__ = ["Autoregressive"]


class Autoregressive(Emission):
    """x_t | state ~ N(loc + sum_l A_l x_{t-l}, covariance): a switching vector autoregression (Hamilton 1989).

    Arguments:
        dim: Cells of a step.
        lags: How many steps back; the covariates are then lags * dim columns, step t-1 first.
        covariance: Of the residuals, and of the start: "diag" or "full".
        floor: Smallest residual variance in any direction, relative to the data's variance.

    Convention: a step whose lags reach before the start of its sequence (any lag NaN) is scored under a normal of its
    own, the state's ``start``. One sequence has only ``lags`` such steps, so the start has a prior worth one
    observation with the whole data's mean and variance: EM maximises a penalised likelihood, and a state that starts
    no sequence has the data's normal there. Gaps inside lags are for the caller to refuse.
    """

    def __init__(
        self,
        dim: int = 1,
        lags: int = 1,
        covariance: Literal["diag", "full"] = "diag",
        floor: float = 1e-6,
        states: int = 1,
    ) -> None:
        super().__init__()
        if dim < 1 or lags < 1:
            raise ParameterError(f"dim={dim}, lags={lags}", "both at least 1")
        self.dim, self.lags, self.covariance, self.floor, self.states = dim, lags, covariance, floor, states
        self.width, self.covariates = dim, lags * dim
        self.of = LinearRegression(dim, lags * dim, True, covariance, floor, states)
        self.start = Normal(dim, covariance, floor, states)

    def _early(self, given: Tensor | None) -> Tensor:
        """Rows at the start of a sequence, (n,)."""
        return self._needs(given).isnan().any(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        y, given = self.split(x)
        early = self._early(given)
        if not early.any():
            return self.of.log_prob(x)
        first, later = early.nonzero()[:, 0], (~early).nonzero()[:, 0]
        out = torch.zeros(len(x), self.states, dtype=x.dtype).index_add(0, first, self.start.log_prob(y[first]))
        return out.index_add(0, later, self.of.log_prob(x[later])) if len(later) else out

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        early, filled = self._early(given)[:, None], torch.nan_to_num(self._needs(given))
        mean = torch.where(early, self.start.loc[state], self.of._at(state, filled))
        if self.start.matrix:
            factor = torch.where(early[..., None], self.start.scale()[state], self.of.scale()[state])
            return dist.MultivariateNormal(mean, scale_tril=factor)
        return dist.Normal(mean, torch.where(early, self.start.scale()[state], self.of.scale()[state]))

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        draws = self.of.sample(state, generator, torch.nan_to_num(self._needs(given)))
        first = self.start.sample(state, generator)
        return torch.where(self._early(given)[:, None], first, draws)

    def prepare(self, x: Tensor) -> None:
        y, given = self.split(x)
        self.start.prepare(y)
        later = x[~self._early(given)]
        if len(later):
            self.of.prepare(later)
        self.of.data_mean, self.of.data_variance = self.start.data_mean, self.start.data_variance

    def priors(self) -> dict[str, dist.TorchDistribution]:
        inner = {"of": self.of.priors(), "start": self.start.priors()}
        return {f"{part}.{name}": prior for part, priors in inner.items() for name, prior in priors.items()}

    def natural(self) -> dict[str, Tensor]:
        """``coefficients`` (K, dim, lags * dim), step t-1 first, and the rest as LinearRegression's; ``start_*``."""
        return {**self.of.natural(), **{f"start_{name}": value for name, value in self.start.natural().items()}}

    def cdf(self, x: Tensor) -> Tensor:
        y, given = self.split(x)
        later = self.of.cdf(torch.cat([y, torch.nan_to_num(self._needs(given))], 1))
        return torch.where(self._early(given)[:, None, None], self.start.cdf(y), later)

    def mean(self, given: Tensor | None = None) -> Tensor:
        later = self.of.mean(torch.nan_to_num(self._needs(given)))
        return torch.where(self._early(given)[:, None, None], self.start.loc, later)

    def variance(self, given: Tensor | None = None) -> Tensor:
        return torch.where(self._early(given)[:, None, None], self.start.variance(), self.of.variance(given))

    def features(self, x: Tensor) -> Tensor:
        """Cells, and their changes since the step before."""
        y, given = self.split(x)
        change = y - self._needs(given)[:, : self.dim]
        return torch.cat([super().features(x), self.start.features(change)], 1)

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        y, given = self.split(x)
        early = self._early(given)
        parts = {
            "of": self.of.statistics(x[~early], weights[~early]),
            "start": self.start.statistics(y[early], weights[early]),
        }
        return {f"{part}.{name}": value for part, found in parts.items() for name, value in found.items()}

    def maximise(self, statistics: Statistics) -> list[int]:
        parts: dict[str, Statistics] = {"of": {}, "start": {}}
        for name, value in statistics.items():
            part, _, own = name.partition(".")
            parts[part][own] = value
        self.start.maximise(self._with_prior(parts["start"]))
        return self.of.maximise(parts["of"])

    def _with_prior(self, found: Statistics) -> Statistics:
        """Moments of the start with one observation more, about the present mean."""
        away = (self.start.data_mean - self.start.loc).detach()
        variance = self.start.data_variance
        square = away.square() + variance
        if self.start.matrix:
            square = away[..., None] * away[:, None] + torch.diag(variance)
        return {"n": found["n"] + 1, "first": found["first"] + away, "second": found["second"] + square}

    def penalty(self) -> Tensor:
        """Expected log-density of the starts under the whole data's normal, in nats, up to a constant."""
        away, std, scale = self.start.data_mean - self.start.loc, self.start.data_variance.sqrt(), self.start.scale()
        if self.start.matrix:
            spread = torch.cat([torch.diag(std).expand_as(scale), away[..., None]], -1)
            white = torch.linalg.solve_triangular(scale, spread, upper=False)
            return -0.5 * white.square().sum() - scale.diagonal(dim1=-2, dim2=-1).log().sum()
        return -(scale.log() + 0.5 * (away.square() + std.square()) / scale.square()).sum()

    @property
    def n_params(self) -> int:
        return self.of.n_params + self.start.n_params
