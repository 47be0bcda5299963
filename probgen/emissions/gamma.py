"""Positive cells with a Gamma distribution."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics, by_blocks, column_moments
from probgen.emissions.special import solve_shape, stirling_error, surprise
from probgen.errors import ParameterError
from probgen.events import Array

__all__ = ["Gamma"]


class Gamma(Emission):
    """Independent positive cells x_d | state ~ Gamma(shape, rate = shape / mean).

    Arguments:
        width: Cells.
        floor: Smallest squared coefficient of variation, 1 / shape, relative to the whole data's. Equal values would
            else have a likelihood without bound.

    Mean and shape are orthogonal: the M step takes the weighted mean, and the shape that solves
    log a - digamma(a) = log(mean x) - mean(log x), or the nearest within the floor; both are exact.
    """

    filler = 1.0
    data_mean: Tensor
    data_variation: Tensor

    def __init__(self, width: int = 1, floor: float = 1e-6, states: int = 1) -> None:
        super().__init__()
        if width < 1 or states < 1 or not 0 < floor < 1:
            raise ParameterError(f"width={width}, states={states}, floor={floor}", "width and states >= 1, 0<floor<1")
        self.width, self.floor, self.states = width, floor, states
        self.log_mean = nn.Parameter(torch.zeros(states, width, dtype=torch.float64))
        self.log_shape = nn.Parameter(torch.zeros(states, width, dtype=torch.float64))
        self.register_buffer("data_mean", torch.ones(width, dtype=torch.float64))
        self.register_buffer("data_variation", torch.ones(width, dtype=torch.float64))

    @property
    def event(self) -> Array:
        return self._array(support="positive")

    def log_prob(self, x: Tensor) -> Tensor:
        return by_blocks(self._scores, x, self.states * self.width)

    def _scores(self, x: Tensor) -> Tensor:
        """By the saddle-point form -a [d - log(1 + d)], d = x / mean - 1, which keeps its digits at large shapes a."""
        seen = ~x.isnan()
        filled = torch.where(seen, x, self.filler)[:, None]
        shape = self.log_shape.exp()
        apart = (filled - self.log_mean.exp()) * (-self.log_mean).exp()
        # a tiny x rounds d to -1: its logarithm is then taken by itself
        edge = apart < -0.5
        log_ratio = filled.log() - self.log_mean
        bent = torch.where(edge, log_ratio.exp() - 1 - log_ratio, surprise(torch.where(edge, 0.0, apart)))
        constant = 0.5 * (self.log_shape - math.log(2 * math.pi)) - stirling_error(shape)
        nats = constant - shape * bent - filled.log()
        return torch.where(seen[:, None], nats, 0.0).sum(-1)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        shape = self.log_shape[state].exp()
        return dist.Gamma(shape, (self.log_shape - self.log_mean)[state].exp())

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        shape = self.log_shape.exp()[state].detach()
        draws = torch._standard_gamma(shape, generator=generator)
        x = draws / shape * self.log_mean.exp()[state]
        return x.clamp(min=torch.finfo(x.dtype).tiny)

    def prepare(self, x: Tensor) -> None:
        self.data_mean, variance = column_moments(x)
        self.data_variation = variance / self.data_mean.square()

    def priors(self) -> dict[str, dist.TorchDistribution]:
        one, size = torch.ones_like(self.data_mean), (self.states, self.width)
        return {
            "log_mean": dist.Normal(self.data_mean.log(), 1.5 * one).expand(size).to_event(2),
            "log_shape": dist.Normal(-self.data_variation.log(), 1.5 * one).expand(size).to_event(2),
        }

    def natural(self) -> dict[str, Tensor]:
        """``shape`` and ``rate`` (K, width)."""
        return {"shape": self.log_shape.exp(), "rate": (self.log_shape - self.log_mean).exp()}

    def cdf(self, x: Tensor) -> Tensor:
        shape = self.log_shape.exp()
        scaled = x.clamp(min=0)[:, None] * (self.log_shape - self.log_mean).exp()
        return torch.special.gammainc(shape.detach().expand(scaled.shape), scaled)

    def mean(self, given: Tensor | None = None) -> Tensor:
        return self.log_mean.exp()

    def variance(self, given: Tensor | None = None) -> Tensor:
        return (2 * self.log_mean - self.log_shape).exp()

    def features(self, x: Tensor) -> Tensor:
        return super().features(x.log())

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        """Sums of d = x / mean - 1 about the present means, of log(1 + d), and of d - log(1 + d)."""
        size = max(64, (1 << 15) // (self.states * self.width))
        parts = [self._sums(rows, shares) for rows, shares in zip(x.split(size), weights.split(size), strict=True)]
        return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}

    def _sums(self, x: Tensor, weights: Tensor) -> Statistics:
        seen = ~x.isnan()
        ratio = (x[:, None] - self.log_mean.exp()) * (-self.log_mean).exp()
        logs = torch.nan_to_num(x.log()[:, None] - self.log_mean)
        apart = torch.nan_to_num(ratio)
        bend = torch.where(apart < -0.5, apart - logs, surprise(apart.clamp(min=-0.5)))
        sums = {"apart": apart, "logs": logs, "bend": torch.where(seen[:, None], bend, 0.0)}
        return {
            "n": weights.T @ seen.to(x.dtype),
            **{name: torch.einsum("nk,nkd->kd", weights, value) for name, value in sums.items()},
        }

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        alive = statistics["n"] > 1e-8
        n = torch.where(alive, statistics["n"], 1.0)
        apart = torch.where(alive, statistics["apart"] / n, 0.0)
        log_mean = torch.log1p(apart)
        near = apart.abs() < 0.1
        # log(mean x) - mean(log x): from the bend once the means are nearly right, where the logarithms cancel
        gap = torch.where(near, statistics["bend"] / n - surprise(apart), log_mean - statistics["logs"] / n)
        shape = solve_shape(gap, 1e-8, 1 / (self.floor * self.data_variation))
        self.log_mean.add_(torch.where(alive, log_mean, 0.0))
        self.log_shape.copy_(torch.where(alive, shape.log(), self.log_shape))
        return (~alive).all(1).nonzero()[:, 0].tolist()

    @property
    def n_params(self) -> int:
        return 2 * self.states * self.width
