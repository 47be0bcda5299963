"""Real cells with heavy tails."""

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics, by_blocks, column_moments
from probgen.emissions.special import incomplete_beta, stirling_error
from probgen.errors import ParameterError

__all__ = ["StudentT"]

_FEWEST, _MOST = 0.3, 1e4  # degrees of freedom: beyond the last, a normal for any data that fit in memory
_WIDE = 100.0  # log-scale of a fresh state: so wide that the first M step takes plain moments


class StudentT(Emission):
    """Independent real cells x_d | state ~ t(df, loc, scale).

    Arguments:
        dim: Cells.
        df: Degrees of freedom of every cell, or "free": one number for each state and cell, in [0.3, 1e4].
        floor: Smallest scale^2 relative to the data's variance.

    ECME (Liu and Rubin 1995): latent precisions u give loc and scale, with the expanded parameter of Liu, Rubin and Wu
    (1998), or by the plain EM step where the floor binds; df then maximises the likelihood itself. Each half-step
    raises the weighted log-likelihood. Statistics are the rows, so they need all rows at once.
    """

    additive = False
    data_mean: Tensor
    data_variance: Tensor

    def __init__(
        self, dim: int = 1, df: float | Literal["free"] = "free", floor: float = 1e-6, states: int = 1
    ) -> None:
        super().__init__()
        if df != "free" and (isinstance(df, str) or not _FEWEST <= df <= _MOST):
            raise ParameterError(f"df={df!r}", f'"free", or a number from {_FEWEST} to {_MOST:g}')
        if dim < 1 or states < 1 or not 0 < floor < 1:
            raise ParameterError(f"dim={dim}, states={states}, floor={floor}", "dim and states >= 1, 0 < floor < 1")
        self.dim, self.df, self.floor, self.states = dim, df, floor, states
        self.width = dim
        self.loc = nn.Parameter(torch.zeros(states, dim, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.full((states, dim), _WIDE, dtype=torch.float64))
        if df == "free":
            self.log_df = nn.Parameter(torch.full((states, dim), 5.0, dtype=torch.float64).log())
        self.register_buffer("data_mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("data_variance", torch.ones(dim, dtype=torch.float64))

    def degrees(self) -> Tensor:
        """Degrees of freedom, (K, dim)."""
        return self.log_df.exp() if self.df == "free" else torch.full_like(self.loc, float(self.df))

    def log_prob(self, x: Tensor) -> Tensor:
        return by_blocks(self._scores, x, self.states * self.width)

    def _scores(self, x: Tensor) -> Tensor:
        seen = ~x.isnan()
        z = torch.nan_to_num(x[:, None] - self.loc) * (-self.log_scale).exp()
        df, root = self.degrees(), self.degrees().sqrt()
        far = z.abs() > 1e8 * root  # where the square may overflow
        ratio = torch.where(far, 0.0, z / root)
        stretched = torch.where(far, 2 * (z.abs().clamp(min=1e-300) / root).log(), torch.log1p(ratio.square()))
        nats = _normaliser(df) - self.log_scale - (df + 1) / 2 * stretched
        return torch.where(seen[:, None], nats, 0.0).sum(-1)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        return dist.StudentT(self.degrees()[state], self.loc[state], self.log_scale[state].exp())

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        half = self.degrees()[state].detach() / 2
        noise = torch.randn(half.shape, generator=generator, dtype=half.dtype)
        precision = (torch._standard_gamma(half, generator=generator) / half).clamp(min=1e-300)
        return self.loc[state] + self.log_scale[state].exp() * noise / precision.sqrt()

    def prepare(self, x: Tensor) -> None:
        self.data_mean, self.data_variance = column_moments(x)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Degrees of freedom around 10, within a factor of 7 either way; loc and scale as a Normal's."""
        std = self.data_variance.sqrt()
        prior = {"loc": dist.Normal(self.data_mean, 2 * std), "log_scale": dist.Normal(std.log(), torch.ones_like(std))}
        if self.df == "free":
            prior["log_df"] = dist.Normal(torch.full_like(std, 2.3), torch.ones_like(std))
        return {name: p.expand((self.states, self.dim)).to_event(2) for name, p in prior.items()}

    def natural(self) -> dict[str, Tensor]:
        """``loc``, ``scale`` and ``df`` (K, dim)."""
        return {"loc": self.loc, "scale": self.log_scale.exp(), "df": self.degrees()}

    def cdf(self, x: Tensor) -> Tensor:
        """By the incomplete beta function's continued fraction; no gradient."""
        with torch.no_grad():
            z = (x[:, None] - self.loc) * (-self.log_scale).exp()
            return _t_cdf(z, self.degrees().expand(z.shape))

    def mean(self, given: Tensor | None = None) -> Tensor:
        """NaN up to one degree of freedom."""
        return torch.where(self.degrees() > 1, self.loc, torch.nan)

    def variance(self, given: Tensor | None = None) -> Tensor:
        """Infinite up to two degrees of freedom, NaN up to one."""
        df = self.degrees()
        finite = (2 * self.log_scale).exp() * df / (df - 2).clamp(min=1e-300)
        return torch.where(df > 2, finite, torch.where(df > 1, torch.inf, torch.nan))

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        """The rows and weights themselves: the likelihood in df has no sufficient statistics."""
        return {"x": x, "weights": weights}

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        x, weights = statistics["x"], statistics["weights"]
        alive = weights.T @ (~x.isnan()).to(x.dtype) > 1e-8
        found = [self._fit(x[:, d], weights, d) for d in range(self.dim)]
        loc, log_scale, log_df = (torch.stack(values, 1) for values in zip(*found, strict=True))
        self.loc.copy_(torch.where(alive, loc, self.loc))
        self.log_scale.copy_(torch.where(alive, log_scale, self.log_scale))
        if self.df == "free":
            self.log_df.copy_(torch.where(alive, log_df, self.log_df))
        return (~alive).all(1).nonzero()[:, 0].tolist()

    def _fit(self, x: Tensor, weights: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
        """loc, log-scale and log-df of one cell in all states, (K,) each, after a round of ECME."""
        seen = ~x.isnan()
        x, weights = x[seen, None], weights[seen]
        n, least = weights.sum(0).clamp(min=1e-300), self.floor * self.data_variance[d]
        df, away = self.degrees()[:, d], x - self.loc[:, d]
        u = weights * (df + 1) / (df + (away * (-self.log_scale[:, d]).exp()).square())
        total = u.sum(0).clamp(min=1e-300)
        delta = (u * away).sum(0) / total
        away = away - delta
        scatter = (u * away.square()).sum(0)
        # the expanded step, or the plain one where the floor binds
        squared = torch.where(scatter / total < least, torch.maximum(scatter / n, least), scatter / total)
        log_df = _solve_df(away.square() / squared, weights, df.log()) if self.df == "free" else df.log()
        return self.loc[:, d] + delta, 0.5 * squared.log(), log_df

    @property
    def n_params(self) -> int:
        return (3 if self.df == "free" else 2) * self.states * self.dim


def _normaliser(df: Tensor) -> Tensor:
    """log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(pi df) / 2 by Stirling's formula with its error."""
    half = df / 2
    # lgamma(half + 1/2) - lgamma(half), each as lgamma(z + 1) - log z
    upper = half + 0.5
    gamma = half * torch.log1p(0.5 / half) - 0.5 + 0.5 * half.log() + stirling_error(upper) - stirling_error(half)
    return gamma - 0.5 * (torch.pi * df).log()


def _solve_df(square: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """The log of the df that maximises the weighted likelihood of squared residuals (n, K): Newton in a bracket."""
    n, size = weights.sum(0), max(64, (1 << 14) // weights.shape[1])
    blocks = list(zip(square.split(size), weights.split(size), strict=True))  # each fits in the cache

    def score(at: Tensor) -> Tensor:
        df = at.exp()
        return n * _normaliser(df) - (df + 1) / 2 * sum((w * (s / df).log1p_()).sum(0) for s, w in blocks)

    def slopes(df: Tensor) -> Tensor:
        """Sums of log(1 + s / df), of t = s / (df + s) and of t / (df + s)."""
        found = torch.zeros(3, len(df), dtype=df.dtype)
        for s, w in blocks:
            wide = df + s
            tail = w * s / wide
            found += torch.stack([(w * (s / df).log1p_()).sum(0), tail.sum(0), (tail / wide).sum(0)])
        return found

    low, high = torch.full_like(start, math.log(_FEWEST)), torch.full_like(start, math.log(_MOST))
    at, ends = start.clamp(low, high), (low, high)
    for _ in range(50):
        df = at.exp()
        logs, tails, narrow = slopes(df)
        constant = torch.digamma((df + 1) / 2) - torch.digamma(df / 2) - 1 / df
        first = n * constant + (1 + 1 / df) * tails - logs
        curve = (torch.polygamma(1, (df + 1) / 2) - torch.polygamma(1, df / 2)) / 2 + df**-2
        bend = tails * (1 / df - df**-2) - (1 + 1 / df) * narrow
        second = df * (df * (n * curve + bend) + first)  # of the logarithm
        low, high = torch.where(first > 0, at, low), torch.where(first > 0, high, at)
        newton = at - df * first / second
        inside = (second < 0) & (newton > low) & (newton < high)
        step = torch.where(inside, newton, (low + high) / 2)
        done = (step - at).abs().max() < 1e-5  # the next step of Newton's would be a square of that
        at = step
        if done:
            break
    best, top = start, score(start)
    near_ends = [end for end in ends if ((at - end).abs() < 1e-3).any()]
    for other in (at, *near_ends):
        value = score(other)
        best, top = torch.where(value > top, other, best), torch.maximum(value, top)
    return best


def _t_cdf(z: Tensor, df: Tensor) -> Tensor:
    """I_y(df / 2, 1 / 2) / 2 below 0, y = df / (df + z^2), and by symmetry above."""
    square = z.square()
    half = incomplete_beta(df / 2, torch.full_like(df, 0.5), df / (df + square), square / (df + square)) / 2
    return torch.where(z > 0, 1 - half, half)
