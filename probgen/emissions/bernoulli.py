"""Cells that are 0 or 1."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.categorical import IMPOSSIBLE
from probgen.emissions.emission import Emission, Statistics
from probgen.errors import ParameterError
from probgen.events import Array

__all__ = ["Bernoulli"]


class Bernoulli(Emission):
    """Independent cells x_d | state in {0, 1} with P(x_d = 1) = sigmoid(logits).

    Arguments:
        width: Cells.
        smoothing: Pseudo-observations a cell and state, spread as the whole data are: EM then maximises a penalised
            likelihood. 0 gives maximum likelihood, where what was never seen is impossible.
    """

    margin: Tensor

    def __init__(self, width: int = 1, smoothing: float = 1.0, states: int = 1) -> None:
        super().__init__()
        if width < 1 or states < 1 or smoothing < 0:
            raise ParameterError(
                f"width={width}, states={states}, smoothing={smoothing}", "width and states >= 1, smoothing >= 0"
            )
        self.width, self.smoothing, self.states = width, smoothing, states
        self.logits = nn.Parameter(torch.zeros(states, width, dtype=torch.float64))
        self.register_buffer("margin", torch.full((width,), 0.5, dtype=torch.float64))

    @property
    def event(self) -> Array:
        return self._array(levels=2)

    def log_prob(self, x: Tensor) -> Tensor:
        one, zero = nn.functional.logsigmoid(self.logits), nn.functional.logsigmoid(-self.logits)
        ones, zeros = torch.nan_to_num(x), torch.nan_to_num(1 - x)
        if self.logits.isfinite().all():
            return ones @ one.T + zeros @ zero.T
        sums = ones @ one.clamp(min=IMPOSSIBLE).T + zeros @ zero.clamp(min=IMPOSSIBLE).T
        return torch.where(sums < IMPOSSIBLE / 10, -torch.inf, sums)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.logits[state])

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        return torch.bernoulli(self.logits.sigmoid()[state], generator=generator)

    def prepare(self, x: Tensor) -> None:
        self.margin = (torch.nan_to_num(x).sum(0) + 0.5) / ((~x.isnan()).sum(0) + 1)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        prior = dist.Normal(self.margin.logit(), torch.full_like(self.margin, 1.5))
        return {"logits": prior.expand((self.states, self.width)).to_event(2)}

    def natural(self) -> dict[str, Tensor]:
        """``probs`` (K, width) of a 1."""
        return {"probs": self.logits.sigmoid()}

    def cdf(self, x: Tensor) -> Tensor:
        x = x[:, None]
        below = torch.where(x < 0, 0.0, torch.where(x < 1, (-self.logits).sigmoid(), torch.ones_like(self.logits)))
        return torch.where(x.isnan(), torch.nan, below)

    def mean(self, given: Tensor | None = None) -> Tensor:
        return self.logits.sigmoid()

    def variance(self, given: Tensor | None = None) -> Tensor:
        return self.logits.sigmoid() * (-self.logits).sigmoid()

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        return {"ones": weights.T @ torch.nan_to_num(x), "zeros": weights.T @ torch.nan_to_num(1 - x)}

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        alive = statistics["ones"] + statistics["zeros"] > 1e-8
        ones = statistics["ones"] + self.smoothing * self.margin
        zeros = statistics["zeros"] + self.smoothing * (1 - self.margin)
        self.logits.copy_(torch.where(alive, ones.log() - zeros.log(), self.logits))
        return (~alive).all(1).nonzero()[:, 0].tolist()

    def penalty(self) -> Tensor:
        if self.smoothing == 0:
            return super().penalty()
        one, zero = nn.functional.logsigmoid(self.logits), nn.functional.logsigmoid(-self.logits)
        return self.smoothing * (self.margin * one + (1 - self.margin) * zero).sum()

    @property
    def n_params(self) -> int:
        return self.states * self.width
