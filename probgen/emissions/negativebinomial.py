"""Counts that vary more than a Poisson's."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.categorical import cumulated, on_grid, table_counts, table_log_prob
from probgen.emissions.emission import Emission, Statistics
from probgen.emissions.special import deviance, incomplete_beta, stirling_error
from probgen.errors import ParameterError
from probgen.events import Array

__all__ = ["NegativeBinomial"]

_LIMIT = 1e5  # size / mean at most: the variance is then a Poisson's but for one part in 1e5


def negative_binomial_log_prob(k: Tensor, log_mean: Tensor, log_size: Tensor) -> Tensor:
    """log NB(k; mean, size), variance mean + mean^2 / size, by deviances (Loader 2000): no cancellation anywhere."""
    mean, size = log_mean.exp(), log_size.exp()
    total, positive = k + size, torch.where(k > 0, k, 1.0)
    shift = size * (k - mean) / (size + mean)  # k minus its share of the total
    spread = torch.where(k > 0, deviance(k, shift), 0.0) + deviance(size.expand(shift.shape), -shift)
    constants = stirling_error(total) - stirling_error(size) - stirling_error(positive)
    normal = 0.5 * (log_size - total.log() - positive.log()) - 0.9189385332046727
    none = -size * torch.log1p(mean / size)
    return torch.where(k > 0, constants + normal - spread, none)


class NegativeBinomial(Emission):
    """Independent counts x_d | state with mean m and variance m + m^2 / size: a Poisson whose rate is Gamma.

    Arguments:
        width: Cells.

    The M step takes the weighted mean, whatever the size, and the size by Newton's method within a bracket, kept only
    if it does not lower the expected log-likelihood. Data that vary less than a Poisson's drive the size to its
    limit, 1e5 means, where the distribution is a Poisson's. Statistics are counts of the distinct values, so they
    need all rows at once.
    """

    additive = False
    smallest: Tensor
    data_mean: Tensor

    def __init__(self, width: int = 1, states: int = 1) -> None:
        super().__init__()
        if width < 1 or states < 1:
            raise ParameterError(f"width={width}, states={states}", "both at least 1")
        self.width, self.states = width, states
        self.log_mean = nn.Parameter(torch.zeros(states, width, dtype=torch.float64))
        self.log_size = nn.Parameter(torch.zeros(states, width, dtype=torch.float64))
        self.register_buffer("data_mean", torch.ones(width, dtype=torch.float64))
        self.register_buffer("smallest", torch.full((width,), 1e-6, dtype=torch.float64))

    @property
    def event(self) -> Array:
        return self._array(support="count")

    def log_prob(self, x: Tensor) -> Tensor:
        grid, codes = on_grid(x)
        table = negative_binomial_log_prob(grid, self.log_mean[..., None], self.log_size[..., None])
        return table_log_prob(table, codes)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        log_mean, log_size = self.log_mean[state], self.log_size[state]
        return dist.NegativeBinomial(log_size.exp(), logits=log_mean - log_size)

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        size = self.log_size.exp()[state].detach()
        share = torch._standard_gamma(size, generator=generator) / size
        return torch.poisson(share * self.log_mean.exp()[state].detach(), generator=generator)

    def prepare(self, x: Tensor) -> None:
        """The smallest mean: what a single event among all rows would give, so that no count is impossible."""
        seen = (~x.isnan()).sum(0).clamp(min=1)
        self.smallest = torch.ones(self.width, dtype=x.dtype) / (seen + 1)
        self.data_mean = torch.maximum(torch.nan_to_num(x).sum(0) / seen, self.smallest)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        one, shape = torch.ones_like(self.data_mean), (self.states, self.width)
        return {
            "log_mean": dist.Normal(self.data_mean.log(), one).expand(shape).to_event(2),
            "log_size": dist.Normal(self.data_mean.log(), 2 * one).expand(shape).to_event(2),
        }

    def natural(self) -> dict[str, Tensor]:
        """``mean`` and ``dispersion`` = 1 / size (K, width)."""
        return {"mean": self.log_mean.exp(), "dispersion": (-self.log_size).exp()}

    def cdf(self, x: Tensor) -> Tensor:
        """Sums of the mass; for means beyond 1e6 the incomplete beta function, without gradient."""
        if (self.mean() + 100 * self.variance().sqrt()).detach().max() > 5e6:
            with torch.no_grad():
                return self._far_cdf(x.floor()[:, None])

        def mass(grid: Tensor) -> Tensor:
            return negative_binomial_log_prob(grid, self.log_mean[..., None], self.log_size[..., None])

        return cumulated(mass, x.floor()[:, None], self.mean(), self.variance())

    def _far_cdf(self, k: Tensor) -> Tensor:
        mean, size = self.mean(), self.log_size.exp()
        total = (size + mean).expand(k.shape[0], -1, -1)
        below = incomplete_beta(
            size.expand_as(total), (k.clamp(min=0) + 1).expand_as(total), size / total, mean / total
        )
        return torch.where(k < 0, 0.0, below)

    def mean(self, given: Tensor | None = None) -> Tensor:
        return self.log_mean.exp()

    def variance(self, given: Tensor | None = None) -> Tensor:
        return self.log_mean.exp() + (2 * self.log_mean - self.log_size).exp()

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        grid, codes = on_grid(x)
        return {"grid": grid, "counts": table_counts(codes, weights, grid.shape[-1])}

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        grid, counts = statistics["grid"], statistics["counts"]
        n = counts.sum(-1)
        alive = n > 1e-8
        mean = torch.maximum((counts * grid).sum(-1) / torch.where(alive, n, 1.0), self.smallest)
        log_mean = torch.where(alive, mean.log(), self.log_mean)
        log_size = _solve_size(grid, counts, log_mean, self.log_size)
        self.log_mean.copy_(log_mean)
        self.log_size.copy_(torch.where(alive, log_size, self.log_size))
        return (~alive).all(1).nonzero()[:, 0].tolist()

    @property
    def n_params(self) -> int:
        return 2 * self.states * self.width


def _solve_size(grid: Tensor, counts: Tensor, log_mean: Tensor, start: Tensor) -> Tensor:
    """The log of the size that maximises sum counts * log NB(grid; mean, size): Newton in a shrinking bracket."""

    def score(log_size: Tensor) -> Tensor:
        return (counts * negative_binomial_log_prob(grid, log_mean[..., None], log_size[..., None])).sum(-1)

    high = torch.log(_LIMIT * log_mean.exp().clamp(min=1.0))
    low = torch.full_like(high, -23.0)
    at = torch.minimum(torch.maximum(start, low), high)
    ceiling = high
    for _ in range(40):
        size, mean = at.exp(), log_mean.exp()
        total = grid + size[..., None]
        excess = (grid - mean[..., None]) / (size + mean)[..., None]
        slope = torch.digamma(total) - torch.digamma(size)[..., None] - torch.log1p(mean / size)[..., None] - excess
        first = (counts * slope).sum(-1)
        curve = torch.polygamma(1, total) - (torch.polygamma(1, size) - mean / (size * (size + mean)))[..., None]
        curve = curve + excess / (size + mean)[..., None]
        second = (counts * curve).sum(-1) * size.square() + first * size  # d^2 / d log(size)^2
        low, high = torch.where(first > 0, at, low), torch.where(first > 0, high, at)
        newton = at - first * size / second
        inside = (second < 0) & (newton > low) & (newton < high)
        step = torch.where(inside, newton, (low + high) / 2)
        done = (step - at).abs().max() < 1e-10
        at = step
        if done:
            break
    best = torch.where(score(at) >= score(start), at, start)
    return torch.where(score(ceiling) > score(best), ceiling, best)
