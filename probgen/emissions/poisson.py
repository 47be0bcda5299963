"""Counts."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics

__all__ = ["Poisson"]


class Poisson(Emission):
    """Independent counts x_d | state ~ Poisson(rate).

    Arguments:
        width: Cells.
    """

    def __init__(self, width: int = 1, states: int = 1) -> None:
        super().__init__()
        self.width, self.states = width, states
        self.log_rate = nn.Parameter(torch.zeros(states, width, dtype=torch.float64))
        self.register_buffer("smallest", torch.full((width,), 1e-6, dtype=torch.float64))

    def log_prob(self, x: Tensor) -> Tensor:
        seen, k = ~x.isnan(), torch.nan_to_num(x)
        rate = seen.to(x.dtype) @ self.log_rate.exp().T
        return k @ self.log_rate.T - rate - torch.where(seen, torch.lgamma(k + 1), 0.0).sum(-1, keepdim=True)

    def cells(self, state: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(self.log_rate[state].exp())

    def sample(self, state: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(self.log_rate[state].exp(), generator=generator)

    def prepare(self, x: Tensor) -> None:
        """The smallest rate: what a single event among all rows would give, so that no count is impossible."""
        seen = (~x.isnan()).sum(0).clamp(min=1)
        self.smallest = torch.ones(self.width, dtype=x.dtype) / (seen + 1)

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
