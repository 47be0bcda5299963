"""Distributions of one response given a row's predictors: log p(y | u) for u of shape (..., q)."""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.emissions.negativebinomial import negative_binomial_log_prob
from probgen.emissions.special import deviance, solve_shape, stirling_error, surprise
from probgen.errors import ParameterError, StructureError, nearest
from probgen.events import Array, Category, Count, Event, Table

__all__ = ["HEADS", "Head", "cell_of", "head_for"]

_LOG_2PI = math.log(2 * math.pi)
_HUGE = 1e150  # beyond it squares leave the range of floats

Link = Literal["logit", "probit", "cloglog"]


class Head(abc.ABC):
    """p(y | u). The first ``places`` numbers of u are predictors, linear in covariates; the others, ``extras``, are
    logarithms of scales or shapes, constants in a linear model.

    Attributes:
        location: y is real, and its predictor a location in the response's own unit.
        classic: A generalised linear model with one dispersion: standard errors by expected information.
    """

    places: int = 1
    extras: ClassVar[tuple[str, ...]] = ()
    location: ClassVar[bool] = False
    classic: ClassVar[bool] = True

    @property
    def names(self) -> tuple[str, ...]:
        """Of the extras, as they are reported."""
        return self.extras

    @property
    def width(self) -> int:
        """q."""
        return self.places + len(self.names)

    @abc.abstractmethod
    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        """log p(y | u) in nats, twice differentiable in u."""

    @abc.abstractmethod
    def distribution(self, u: Tensor) -> dist.TorchDistribution:
        """The same as a Pyro distribution of batch shape (...)."""

    @abc.abstractmethod
    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """One y for each u."""

    @abc.abstractmethod
    def mean(self, u: Tensor) -> Tensor:
        """E[y | u], (...); of categories their probabilities (..., K)."""

    @abc.abstractmethod
    def start(self, y: Tensor) -> Tensor:
        """u of a fit without covariates, or near it, (q,)."""

    @abc.abstractmethod
    def deviance(self, y: Tensor, u: Tensor) -> Tensor:
        """Twice the log-likelihood lost against a row's own best predictor, in units of the dispersion."""

    def weight(self, u: Tensor) -> Tensor:
        """Expected information of a row about its predictor, times the dispersion: (d mean / d u)^2 / variance."""
        raise StructureError(f"{type(self).__name__} has no single dispersion", "its observed information")

    def pearson(self, y: Tensor, u: Tensor) -> Tensor | None:
        """Squared residuals in units of the variance function; None where the dispersion is 1."""
        return None

    def natural(self, u: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        """u of the response itself from u of (response - centre) / spread."""
        return u

    def priors(self) -> tuple[tuple[float, float], ...]:
        """Mean and standard deviation of a normal prior of each extra."""
        return tuple({"log_df": (2.3, 1.0)}.get(name, (0.0, 3.0)) for name in self.names)


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
        far = z.abs() > _HUGE
        near = torch.log1p(torch.where(far, 0.0, z).square() / df)
        log = torch.where(far, 2 * z.abs().clamp(min=1e-300).log() - df.log(), near)
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
        return negative_binomial_log_prob(y, u[..., 0].clamp(-700, 700), u[..., 1].clamp(-23.0, 30.0))

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


HEADS = ("normal", "student_t", "gamma", "poisson", "negative_binomial", "bernoulli", "binomial", "categorical")
_SUITED = {
    "real": ("normal", "student_t"),
    "positive": ("gamma", "normal", "student_t"),
    "count": ("poisson", "negative_binomial"),
}


def cell_of(event: Event) -> Array | str:
    """The single response cell of an event, or why there is none."""
    if isinstance(event, Table) and len(event.columns) == 1:
        column = next(iter(event.columns.values()))
        if isinstance(column, Category):
            return Array((), levels=len(column.levels)) if len(column.levels) > 1 else "a category of one level is sure"
        return Array((), "count") if isinstance(column, Count) else Table.cell_event(column)
    if not isinstance(event, Array) or event.dims != 1:
        return "its response is one number or category: Array(()) or a Table of one column"
    return Array((), event.support, _level(event), event.resolution)


def _level(event: Array) -> int | None:
    return None if event.levels is None else int(event.cell_levels[0])


def suited(cell: Array) -> tuple[str, ...]:
    """Heads for a response cell, the default first; none for cells that no head here lives on."""
    if cell.resolution is not None or cell.support not in _SUITED and cell.levels is None:
        return ()
    if cell.levels is not None:
        return ("bernoulli", "categorical") if cell.levels == 2 else ("categorical", "binomial")
    return _SUITED[cell.support]


def head_for(cell: Array, name: str | None, link: str | None, df: float | Literal["free"]) -> Head:
    """The head of a name for a response cell.

    Raises:
        StructureError: a head that lives on another support, or a link that it does not have.
        ParameterError: an unknown name, or degrees of freedom out of range.
    """
    known = suited(cell)
    name = known[0] if name is None else name
    if name not in HEADS:
        raise ParameterError(f"head={name!r}", "the name of a distribution", nearest(str(name), HEADS))
    if name not in known:
        raise StructureError(f"head={name!r} for a response {cell!r}", f"one of {', '.join(known)}", "Or another event")
    binary = name in ("bernoulli", "binomial")
    links = ("logit", "probit", "cloglog") if binary else (_link(name),)
    if link is not None and link not in links:
        raise StructureError(f"link={link!r} of {name}", f"one of {', '.join(links)}", "None takes the first")
    if df != "free" and (isinstance(df, str | bool) or not 0.3 <= df <= 1e10):
        raise ParameterError(f"df={df!r}", '"free", or a number from 0.3')
    levels = int(cell.levels or 2)  # type: ignore[arg-type]
    if binary:
        return Binomial(levels - 1, link or "logit")  # type: ignore[arg-type]
    made: dict[str, Head] = {
        "normal": Normal(), "student_t": StudentT(df), "gamma": Gamma(), "poisson": Poisson(),
        "negative_binomial": NegativeBinomial(), "categorical": Categorical(levels),
    }  # fmt: skip
    return made[name]


def _link(name: str) -> str:
    return {"normal": "identity", "student_t": "identity", "categorical": "softmax"}.get(name, "log")
