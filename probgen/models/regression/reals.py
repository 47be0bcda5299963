"""Real and positive responses."""

import math
from dataclasses import dataclass
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.emissions.special import solve_shape, stirling_error, surprise
from probgen.models.regression.head import Head

__all__ = ["Gamma", "Normal", "StudentT"]

_LOG_2PI = math.log(2 * math.pi)
_HUGE = 1e150  # beyond it squares leave the range of floats


class _Location(Head):
    """Real responses: u = (location, log scale, ...)."""

    location = True

    def natural(self, u: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        return torch.cat([centre + spread * u[..., :1], u[..., 1:2] + spread.log(), u[..., 2:]], -1)


@dataclass(frozen=True)
class Normal(_Location):
    """y ~ N(u_0, exp(u_1)^2)."""

    extras = ("log_scale",)

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        z = (y - u[..., 0]) * (-u[..., 1]).exp()
        return -0.5 * (z.clamp(-_HUGE, _HUGE).square() + _LOG_2PI) - u[..., 1]

    def distribution(self, u: Tensor) -> dist.TorchDistribution:
        return dist.Normal(u[..., 0], u[..., 1].exp())

    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        return u[..., 0] + u[..., 1].exp() * torch.randn(u.shape[:-1], generator=generator, dtype=u.dtype)

    def mean(self, u: Tensor) -> Tensor:
        return u[..., 0]

    def start(self, y: Tensor) -> Tensor:
        return torch.stack([y.mean(), y.std(correction=0).clamp(min=1e-3).log()])

    def deviance(self, y: Tensor, u: Tensor) -> Tensor:
        return (y - u[..., 0]).square()

    def weight(self, u: Tensor) -> Tensor:
        return torch.ones_like(u[..., 0])

    def pearson(self, y: Tensor, u: Tensor) -> Tensor | None:
        return self.deviance(y, u)


@dataclass(frozen=True)
class StudentT(_Location):
    """y ~ t(df, u_0, exp(u_1)), df = exp(u_2) where it is free. Lange, Little and Taylor (1989)."""

    df: float | Literal["free"] = "free"
    classic = False

    @property
    def names(self) -> tuple[str, ...]:
        return ("log_scale", "log_df") if self.df == "free" else ("log_scale",)

    def degrees(self, u: Tensor) -> Tensor:
        """Of freedom, within [0.3, 1e10]: beyond, a t is a normal to the last digit."""
        return u[..., 2].clamp(-1.2, 23.0).exp() if self.df == "free" else torch.full_like(u[..., 0], float(self.df))

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        df = self.degrees(u)
        z = (y - u[..., 0]) * (-u[..., 1]).exp()
        size = torch.where(z < 0, -z, z)  # the second derivative of abs would load a compiler
        far = size > _HUGE
        near = torch.log1p(torch.where(far, 0.0, z).square() / df)
        log = torch.where(far, 2 * size.clamp(min=1e-300).log() - df.log(), near)
        half = df / 2
        gammas = half * torch.log1p(0.5 / half) - 0.5 + stirling_error(half + 0.5) - stirling_error(half)
        return gammas + 0.5 * half.log() - 0.5 * (math.pi * df).log() - u[..., 1] - (df + 1) / 2 * log

    def distribution(self, u: Tensor) -> dist.TorchDistribution:
        return dist.StudentT(self.degrees(u), u[..., 0], u[..., 1].exp())

    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        half = self.degrees(u) / 2
        precision = (torch._standard_gamma(half, generator=generator) / half).clamp(min=1e-300)
        noise = torch.randn(half.shape, generator=generator, dtype=u.dtype)
        return u[..., 0] + u[..., 1].exp() * noise / precision.sqrt()

    def mean(self, u: Tensor) -> Tensor:
        return torch.where(self.degrees(u) > 1, u[..., 0], torch.nan)

    def start(self, y: Tensor) -> Tensor:
        away = (y - y.median()).abs().median()
        scale = away if away > 0 else y.std(correction=0)
        u = [y.median(), scale.clamp(min=1e-3).log(), torch.tensor(math.log(5.0), dtype=y.dtype)]
        return torch.stack(u[: self.width])

    def deviance(self, y: Tensor, u: Tensor) -> Tensor:
        best = torch.cat([y[..., None], u[..., 1:]], -1)
        return 2 * (self.log_prob(y, best) - self.log_prob(y, u))


@dataclass(frozen=True)
class Gamma(Head):
    """y > 0 of mean exp(u_0) and variance mean^2 / exp(u_1)."""

    extras = ("log_shape",)

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        d, shape = y.log() - u[..., 0], u[..., 1].exp()
        constant = 0.5 * (u[..., 1] - _LOG_2PI) - stirling_error(shape)
        return constant - shape * (torch.expm1(d) - d) - y.log()

    def distribution(self, u: Tensor) -> dist.TorchDistribution:
        return dist.Gamma(u[..., 1].exp(), (u[..., 1] - u[..., 0]).exp())

    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        shape, mean = u[..., 1].to(torch.float64).exp(), u[..., 0].to(torch.float64).exp()
        return (torch._standard_gamma(shape, generator=generator) / shape * mean).clamp(min=1e-300)

    def mean(self, u: Tensor) -> Tensor:
        return u[..., 0].exp()

    def start(self, y: Tensor) -> Tensor:
        top = y.max()
        mean = (y / top).mean().log() + top.log()
        return torch.stack([mean, solve_shape(mean - y.log().mean(), 1e-3, 1e6).log()])

    def deviance(self, y: Tensor, u: Tensor) -> Tensor:
        return 2 * surprise((y.log() - u[..., 0]).clamp(-700, 700).expm1().clamp(min=-1 + 1e-16))

    def weight(self, u: Tensor) -> Tensor:
        return torch.ones_like(u[..., 0])

    def pearson(self, y: Tensor, u: Tensor) -> Tensor | None:
        return torch.expm1(y.log() - u[..., 0]).square()
