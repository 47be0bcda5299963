"""Counts."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.categorical import cumulated, on_grid, table_log_prob
from probgen.emissions.emission import Emission, Statistics
from probgen.events import Array

__all__ = ["Poisson"]


def poisson_log_prob(k: Tensor, log_rate: Tensor) -> Tensor:
    """log Poisson(k; rate) without cancellation at large counts: Loader (2000), a saddle-point expansion."""
    rate, big = log_rate.exp(), k.clamp(min=1000.0)
    v = (big - rate) / (big + rate)
    terms = torch.stack([v ** (2 * j + 1) / (2 * j + 1) for j in range(1, 9)]).sum(0)
    near = (big - rate) * v + 2 * big * terms
    deviance = torch.where(v.abs() < 0.1, near, big * (big.log() - log_rate) + rate - big)
    stirling = 1 / (12 * big) - 1 / (360 * big**3)
    large = -0.5 * torch.log(2 * math.pi * big) - stirling - deviance
    return torch.where(k < 1000, k * log_rate - rate - torch.lgamma(k + 1), large)


class Poisson(Emission):
    """Independent counts x_d | state ~ Poisson(rate).

    Arguments:
        width: Cells.
    """

    smallest: Tensor
    data_mean: Tensor

    def __init__(self, width: int = 1, states: int = 1) -> None:
        super().__init__()
        self.width, self.states = width, states
        self.log_rate = nn.Parameter(torch.zeros(states, width, dtype=torch.float64))
        self.register_buffer("data_mean", torch.ones(width, dtype=torch.float64))
        self.register_buffer("smallest", torch.full((width,), 1e-6, dtype=torch.float64))

    def log_prob(self, x: Tensor) -> Tensor:
        """By a table of the distinct counts, where there are fewer than rows."""
        seen, k = ~x.isnan(), torch.nan_to_num(x)
        if len(x) >= 256:
            grid, codes = on_grid(x)
            return table_log_prob(poisson_log_prob(grid, self.log_rate[..., None]), codes)
        nats = poisson_log_prob(k[:, None], self.log_rate)
        return torch.where(seen[:, None], nats, 0.0).sum(-1)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Poisson(self.log_rate[state].exp())

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        return torch.poisson(self.log_rate[state].exp(), generator=generator)

    def prepare(self, x: Tensor) -> None:
        """The smallest rate: what a single event among all rows would give, so that no count is impossible."""
        seen = (~x.isnan()).sum(0).clamp(min=1)
        self.smallest = torch.ones(self.width, dtype=x.dtype) / (seen + 1)
        self.data_mean = torch.maximum(torch.nan_to_num(x).sum(0) / seen, self.smallest)

    @property
    def event(self) -> Array:
        return self._array(support="count")

    def priors(self) -> dict[str, dist.TorchDistribution]:
        prior = dist.Normal(self.data_mean.log(), torch.ones((), dtype=self.data_mean.dtype))
        return {"log_rate": prior.expand((self.states, self.width)).to_event(2)}

    def natural(self) -> dict[str, Tensor]:
        """``rate`` (K, width)."""
        return {"rate": self.log_rate.exp()}

    def cdf(self, x: Tensor) -> Tensor:
        """Sums of the mass; at rates beyond 1e5 Q(floor(x) + 1, rate), a regularised incomplete gamma function."""
        k, rate = x.floor()[:, None], self.log_rate.exp()
        if rate.detach().max() < 1e5:
            return cumulated(lambda grid: poisson_log_prob(grid, self.log_rate[..., None]), k, rate, rate)
        below = torch.special.gammaincc(k.clamp(min=0) + 1, self.log_rate.exp())
        return torch.where(k < 0, 0.0, below)

    def mean(self, given: Tensor | None = None) -> Tensor:
        return self.log_rate.exp()

    def variance(self, given: Tensor | None = None) -> Tensor:
        return self.log_rate.exp()

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        return {"n": weights.T @ (~x.isnan()).to(x.dtype), "total": weights.T @ torch.nan_to_num(x)}

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        n, alive = statistics["n"], statistics["n"] > 1e-8
        rate = torch.maximum(statistics["total"] / torch.where(alive, n, 1.0), self.smallest)
        self.log_rate.copy_(torch.where(alive, rate.log(), self.log_rate))
        return (~alive).all(1).nonzero()[:, 0].tolist()

    @property
    def n_params(self) -> int:
        return self.states * self.width
