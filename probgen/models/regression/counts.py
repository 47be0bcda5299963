"""Counts, successes and categories."""

import math
from dataclasses import dataclass
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.emissions.negativebinomial import negative_binomial_log_prob
from probgen.emissions.special import deviance, stirling_error
from probgen.models.regression.head import Head

__all__ = ["Binomial", "Categorical", "Link", "NegativeBinomial", "Poisson"]

_LOG_2PI = math.log(2 * math.pi)

Link = Literal["logit", "probit", "cloglog"]


@dataclass(frozen=True)
class Poisson(Head):
    """y ~ Poisson(exp(u))."""

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        some = y.clamp(min=1.0)
        d = u[..., 0] - some.log()
        more = -some * (torch.expm1(d) - d) - stirling_error(some) - 0.5 * (_LOG_2PI + some.log())
        return torch.where(y > 0, more, -u[..., 0].exp())

    def distribution(self, u: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(u[..., 0].exp())

    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(u[..., 0].to(torch.float64).exp(), generator=generator)

    def mean(self, u: Tensor) -> Tensor:
        return u[..., 0].exp()

    def start(self, y: Tensor) -> Tensor:
        return torch.maximum(y.mean(), 0.5 / torch.tensor(float(len(y)), dtype=y.dtype)).log()[None]

    def deviance(self, y: Tensor, u: Tensor) -> Tensor:
        return 2 * deviance(y, y - u[..., 0].exp())

    def weight(self, u: Tensor) -> Tensor:
        return u[..., 0].exp()


@dataclass(frozen=True)
class NegativeBinomial(Head):
    """y of mean m = exp(u_0) and variance m + m^2 / exp(u_1): the "NB2" of Cameron and Trivedi (1998)."""

    extras = ("log_size",)
    classic = False

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        log_size = u[..., 1].clamp(-23.0, 30.0)
        far = u[..., 0] > log_size + 25  # where deviances from the mean have no digits left
        near = torch.where(far, log_size, u[..., 0]).clamp(min=-700)
        return torch.where(far, self._far(y, u[..., 0], log_size), negative_binomial_log_prob(y, near, log_size))

    @staticmethod
    def _far(y: Tensor, log_mean: Tensor, log_size: Tensor) -> Tensor:
        size, both = log_size.exp(), torch.logaddexp(log_mean, log_size)
        ways = torch.lgamma(y + size) - torch.lgamma(size) - torch.lgamma(y + 1)
        return ways + size * (log_size - both) + y * (log_mean - both)

    def distribution(self, u: Tensor) -> dist.TorchDistribution:
        return dist.NegativeBinomial(u[..., 1].exp(), logits=u[..., 0] - u[..., 1])

    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        size = u[..., 1].to(torch.float64).exp()
        share = torch._standard_gamma(size, generator=generator) / size
        return torch.poisson(share * u[..., 0].to(torch.float64).exp(), generator=generator)

    def mean(self, u: Tensor) -> Tensor:
        return u[..., 0].exp()

    def start(self, y: Tensor) -> Tensor:
        mean = Poisson().start(y)
        excess = (y.var(correction=0) - y.mean()).clamp(min=1e-2 * mean.exp()[0])
        return torch.cat([mean, (2 * mean - excess.log()).clamp(-3.0, 8.0)])

    def deviance(self, y: Tensor, u: Tensor) -> Tensor:
        """Twice y log(y / m) - (y + s) log((y + s) / (m + s))."""
        mean, size = u[..., 0].exp(), u[..., 1].exp()
        shift = size * (y - mean) / (size + mean)
        return 2 * (deviance(y, shift) + deviance(size, -shift))


@dataclass(frozen=True)
class Binomial(Head):
    """y of ``trials`` with probability logistic(u), Phi(u) or 1 - exp(-exp(u)); one trial: Bernoulli."""

    trials: int = 1
    link: Link = "logit"

    def logs(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the probabilities of success and of failure."""
        u = u[..., 0]
        if self.link == "logit":
            return torch.nn.functional.logsigmoid(u), torch.nn.functional.logsigmoid(-u)
        if self.link == "probit":
            return _log_normal_cdf(u), _log_normal_cdf(-u)
        small = u < -30  # 1 - exp(-t) is then t
        rate = torch.where(small, 0.0, u).clamp(max=700.0).exp()
        return torch.where(small, u, torch.log(-torch.expm1(-rate).clamp(max=-1e-300))), -u.clamp(max=700.0).exp()

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        yes, no = self.logs(u)
        n = float(self.trials)
        ways = math.lgamma(n + 1) - torch.lgamma(y + 1) - torch.lgamma(n - y + 1)
        # 0 times an infinite logarithm is 0
        return ways + torch.where(y > 0, y * yes, 0.0) + torch.where(y < n, (n - y) * no, 0.0)

    def distribution(self, u: Tensor) -> dist.TorchDistribution:
        yes, no = self.logs(u)
        return dist.Bernoulli(logits=yes - no) if self.trials == 1 else dist.Binomial(self.trials, logits=yes - no)

    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        p = self.logs(u.to(torch.float64))[0].exp()
        return torch.binomial(torch.full_like(p, self.trials), p, generator=generator)

    def mean(self, u: Tensor) -> Tensor:
        return self.trials * self.logs(u)[0].exp()

    def start(self, y: Tensor) -> Tensor:
        p = (y.sum() + 0.5) / (self.trials * len(y) + 1)
        if self.link == "logit":
            return torch.logit(p)[None]
        return torch.special.ndtri(p)[None] if self.link == "probit" else (-torch.log1p(-p)).log()[None]

    def deviance(self, y: Tensor, u: Tensor) -> Tensor:
        share = y / self.trials
        best = torch.special.xlogy(y, share) + torch.special.xlogy(self.trials - y, 1 - share)
        yes, no = self.logs(u)
        return 2 * (best - torch.where(y > 0, y * yes, 0.0) - torch.where(y < self.trials, (self.trials - y) * no, 0.0))

    def weight(self, u: Tensor) -> Tensor:
        yes, no = self.logs(u)
        if self.link == "logit":
            slope = yes + no
        elif self.link == "probit":
            slope = -0.5 * (u[..., 0].square() + _LOG_2PI)
        else:
            slope = no + u[..., 0]
        return self.trials * (2 * slope - yes - no).exp()


@dataclass(frozen=True)
class Categorical(Head):
    """y in 0..levels-1 with probabilities softmax(0, u): the first level is the reference."""

    levels: int = 2
    classic = False

    @property
    def places(self) -> int:  # type: ignore[override]
        return self.levels - 1

    def logs(self, u: Tensor) -> Tensor:
        """Log-probabilities (..., levels)."""
        return torch.cat([torch.zeros_like(u[..., :1]), u], -1).log_softmax(-1)

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        logs = self.logs(u)
        codes = y.long()[..., None].expand(*torch.broadcast_shapes(y.shape, logs.shape[:-1]), 1)
        return logs.expand(*codes.shape[:-1], -1).gather(-1, codes)[..., 0]

    def distribution(self, u: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=self.logs(u))

    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        p = self.mean(u)
        drawn = torch.multinomial(p.reshape(-1, self.levels), 1, generator=generator)
        return drawn.reshape(p.shape[:-1]).to(torch.float64)

    def mean(self, u: Tensor) -> Tensor:
        return self.logs(u).exp()

    def start(self, y: Tensor) -> Tensor:
        seen = torch.bincount(y.long(), minlength=self.levels).to(torch.float64) + 0.5
        return (seen[1:] / seen[0]).log()

    def deviance(self, y: Tensor, u: Tensor) -> Tensor:
        return -2 * self.log_prob(y, u)


def _log_normal_cdf(u: Tensor) -> Tensor:
    """log Phi(u), twice differentiable in both tails."""
    low = u < -1.0
    scaled = torch.special.erfcx(-torch.where(low, u, -1.0) / math.sqrt(2))
    tail = (0.5 * scaled).log() - 0.5 * u.square()
    return torch.where(low, tail, torch.log1p(-0.5 * torch.erfc(torch.where(low, -1.0, u) / math.sqrt(2))))
