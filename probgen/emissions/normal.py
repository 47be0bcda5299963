"""Normal and log-normal cells with full, tied, diagonal or spherical covariance."""

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.diagonal import diagonal_log_prob, diagonal_moments
from probgen.emissions.emission import Emission, Statistics, by_blocks, column_moments
from probgen.errors import FitError, ParameterError
from probgen.events import Array

__all__ = ["LogNormal", "Normal", "factor_of", "floored_factor", "patterns", "raw_of", "scale_prior"]

_LOG_2PI = math.log(2 * math.pi)
_COVARIANCES = ("full", "tied", "diag", "spherical")


class Normal(Emission):
    """x | state ~ N(loc, covariance).

    Arguments:
        dim: Cells.
        covariance: "full" and "tied" (one for all states) are matrices, "diag" and "spherical" variances.
        floor: Smallest variance in any direction, relative to the data's variance. The M step maximises under this
            constraint exactly (eigenvalues are clipped in the data's scale), so EM stays monotone.
    """

    data_mean: Tensor
    data_variance: Tensor

    def __init__(
        self,
        dim: int = 1,
        covariance: Literal["full", "tied", "diag", "spherical"] = "diag",
        floor: float = 1e-6,
        states: int = 1,
    ) -> None:
        super().__init__()
        if covariance not in _COVARIANCES:
            raise ParameterError(f"covariance={covariance!r}", f"one of {', '.join(_COVARIANCES)}")
        if dim < 1 or states < 1 or not 0 <= floor < 1:
            raise ParameterError(f"dim={dim}, states={states}, floor={floor}", "dim and states >= 1, 0 <= floor < 1")
        self.dim, self.covariance, self.floor, self.states = dim, covariance, floor, states
        self.width = dim
        shapes = {"full": (states, dim, dim), "tied": (dim, dim), "diag": (states, dim), "spherical": (states, 1)}
        self.loc = nn.Parameter(torch.zeros(states, dim, dtype=torch.float64))
        # the Cholesky factor with its diagonal in logs, or log standard deviations
        self.log_scale = nn.Parameter(torch.zeros(shapes[covariance], dtype=torch.float64))
        self.register_buffer("data_mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("data_variance", torch.ones(dim, dtype=torch.float64))

    @property
    def matrix(self) -> bool:
        """Whether cells are correlated."""
        return self.covariance in ("full", "tied")

    def scale(self) -> Tensor:
        """Standard deviations (K, dim), or Cholesky factors (K, dim, dim)."""
        if not self.matrix:
            return self.log_scale.exp().expand(self.states, self.dim)
        return factor_of(self.log_scale).expand(self.states, self.dim, self.dim)

    def log_prob(self, x: Tensor) -> Tensor:
        if self.matrix and x.isnan().any():
            return self._by_pattern(x)
        if self.matrix:
            loc, scale = self.loc, self.scale()
            return by_blocks(lambda rows: _whitened(rows, loc, scale), x, self.states * self.dim)
        return diagonal_log_prob(x, self.loc, self.scale())

    def _by_pattern(self, x: Tensor) -> Tensor:
        """Each pattern of observed cells has its own marginal normal."""
        factors = self.scale()
        out = torch.zeros(len(x), self.states, dtype=x.dtype)
        for seen, rows in patterns(x):
            if seen.any():
                part = factors[:, seen]
                marginal = torch.linalg.cholesky(part @ part.mT)
                out = out.index_add(0, rows, _whitened(x[rows][:, seen], self.loc[:, seen], marginal))
        return out

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        if self.matrix:
            return dist.MultivariateNormal(self.loc[state], scale_tril=self.scale()[state])
        return dist.Normal(self.loc[state], self.scale()[state])

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        noise = torch.randn(len(state), self.dim, generator=generator, dtype=torch.float64)
        scale = self.scale()[state]
        return self.loc[state] + ((scale @ noise[..., None])[..., 0] if self.matrix else scale * noise)

    def prepare(self, x: Tensor) -> None:
        self.data_mean, self.data_variance = column_moments(x)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Means within some standard deviations of the data's, scales within some factors of e."""
        loc = dist.Normal(self.data_mean, 2 * self.data_variance.sqrt()).expand((self.states, self.dim))
        centre, spread = self._scale_prior()
        shape = self.log_scale.shape
        return {"loc": loc.to_event(2), "log_scale": dist.Normal(centre, spread).expand(shape).to_event(len(shape))}

    def _scale_prior(self) -> tuple[Tensor, Tensor]:
        if self.covariance == "spherical":
            return 0.5 * self.data_variance.mean().log()[None], torch.ones(1, dtype=torch.float64)
        return scale_prior(self.data_variance.sqrt(), self.matrix)

    def natural(self) -> dict[str, Tensor]:
        """``loc`` (K, dim) and ``scale`` (K, dim) or ``covariance`` (K, dim, dim); LogNormal's are of the logarithm."""
        scale = self.scale()
        return {"loc": self.loc, **({"covariance": scale @ scale.mT} if self.matrix else {"scale": scale})}

    def _marginal_scale(self) -> Tensor:
        """Standard deviations of the cells, (K, dim)."""
        return self.scale().square().sum(-1).sqrt() if self.matrix else self.scale()

    def cdf(self, x: Tensor) -> Tensor:
        return torch.special.ndtr((x[:, None] - self.loc) / self._marginal_scale())

    def mean(self, given: Tensor | None = None) -> Tensor:
        return self.loc

    def variance(self, given: Tensor | None = None) -> Tensor:
        return self._marginal_scale().square()

    def statistics(self, x: Tensor, weights: Tensor, about: Tensor | None = None) -> Statistics:
        """Moments about the present means (or about others, (K, dim)), so that nothing cancels."""
        loc = self.loc if about is None else about
        if self.matrix:
            if x.isnan().any():
                return self._completed(x, weights, loc)
            y = x[None] - loc[:, None]
            weighted = weights.T[..., None] * y
            return {"n": weights.sum(0), "first": weighted.sum(1), "second": weighted.mT @ y}
        with torch.no_grad():
            return dict(zip(("n", "first", "second"), diagonal_moments(x, weights, loc), strict=True))

    def _completed(self, x: Tensor, weights: Tensor, loc: Tensor) -> Statistics:
        """Missing cells by their conditional mean and covariance (Ghahramani and Jordan 1994)."""
        factors = self.scale()
        covariance = factors @ factors.mT
        totals: Statistics = {}
        for seen, rows in patterns(x):
            w, gap = weights[rows], ~seen
            y = (torch.nan_to_num(x[rows])[None] - loc[:, None]) * seen
            if gap.any():
                regression = torch.linalg.solve(covariance[:, seen][:, :, seen], covariance[:, seen][:, :, gap])
                y[:, :, gap] = y[:, :, seen] @ regression
            weighted = w.T[..., None] * y
            second = weighted.mT @ y
            if gap.any():
                left = covariance[:, gap][:, :, gap] - covariance[:, gap][:, :, seen] @ regression
                places = gap.nonzero()[:, 0]
                second[:, places[:, None], places] += w.sum(0)[:, None, None] * left
            part = {"n": w.sum(0), "first": weighted.sum(1), "second": second}
            totals = {name: totals[name] + value for name, value in part.items()} if totals else part
        return totals

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        n, first, second = (statistics[name] for name in ("n", "first", "second"))
        if not self.matrix:
            return self._maximise_variances(n, first, second)
        alive = n > 1e-8
        weight = torch.where(alive, n, 1.0)[:, None]
        delta = torch.where(alive[:, None], first / weight, 0.0)
        self.loc.add_(delta)
        scatter = second - weight[..., None] * delta[..., None] * delta[:, None]
        if self.covariance == "tied":
            self._set_factor(self._floored(scatter[alive].sum(0) / n[alive].sum()))
        else:
            factors = self.scale().clone()
            factors[alive] = self._floored(scatter[alive] / weight[alive][..., None])
            self._set_factor(factors)
        return (~alive).nonzero()[:, 0].tolist()

    def _maximise_variances(self, n: Tensor, first: Tensor, second: Tensor) -> list[int]:
        alive = n > 1e-8
        weight = torch.where(alive, n, 1.0)
        delta = torch.where(alive, first / weight, 0.0)
        self.loc.add_(delta)
        scatter = second - n * delta.square()
        variance = torch.maximum(scatter / weight, self.floor * self.data_variance)
        if self.covariance == "spherical":
            pooled = scatter.sum(1, keepdim=True) / n.sum(1, keepdim=True).clamp(min=1e-8)
            variance = pooled.clamp(min=self.floor * self.data_variance.mean())
            alive = alive.any(1, keepdim=True)
        kept = torch.where(alive, 0.5 * variance.clamp(min=1e-300).log(), self.log_scale)
        self.log_scale.copy_(kept)
        return (~alive).all(1).nonzero()[:, 0].tolist()

    def _floored(self, covariance: Tensor) -> Tensor:
        return floored_factor(covariance, self.data_variance, self.floor)

    def _set_factor(self, factor: Tensor) -> None:
        self.log_scale.data = raw_of(factor)

    @property
    def n_params(self) -> int:
        k, d = self.states, self.dim
        return (
            k * d
            + {"full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2, "diag": k * d, "spherical": k}[self.covariance]
        )


def _whitened(x: Tensor, loc: Tensor, factors: Tensor) -> Tensor:
    """log N(x; loc, L L') for all states in one matrix product: |L^-1 (x - loc)|^2."""
    states, dim = loc.shape
    inverse = torch.linalg.solve_triangular(factors, torch.eye(dim, dtype=x.dtype).expand_as(factors), upper=False)
    centre = loc.mean(0)
    shift = (inverse @ (loc - centre)[..., None]).reshape(-1)
    z = torch.addmm(-shift, x - centre, inverse.reshape(-1, dim).T)
    squares = (z.square() if z.requires_grad else z.square_()).reshape(len(x), states, dim).sum(-1)
    log_det = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (squares + dim * _LOG_2PI) - log_det


def floored_factor(covariance: Tensor, data_variance: Tensor, floor: float) -> Tensor:
    """Cholesky factors of covariances whose eigenvalues, in the data's scale, are at least the floor.

    Raises:
        FitError: without a floor, a covariance is singular.
    """
    scale = data_variance.sqrt()
    values, vectors = torch.linalg.eigh(covariance / scale / scale[:, None])
    if (values < floor).any():
        covariance = (vectors * values.clamp(min=floor)[..., None, :]) @ vectors.mT * scale * scale[:, None]
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed.any():
        raise FitError(
            "A covariance collapsed: a component sits on too few distinct rows",
            "a floor above 0, or fewer components",
            f"floor=1e-6 instead of floor={floor}",
        )
    return factor


def raw_of(factor: Tensor) -> Tensor:
    """Cholesky factors with their diagonals in logs."""
    return factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).log())


def factor_of(raw: Tensor) -> Tensor:
    """Cholesky factors from lower triangles whose diagonals are in logs; what stands above is ignored."""
    return raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())


def scale_prior(std: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the prior of log-scales (dim,), or of raw Cholesky factors (dim, dim)."""
    if not matrix:
        return std.log(), torch.ones_like(std)
    below = torch.ones_like(torch.diag(std)).tril(-1).bool()
    return torch.diag(std.log()), torch.where(below, std[:, None], 1.0)


def patterns(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Distinct patterns of observed cells, each with its rows."""
    patterns, inverse = (~x.isnan()).unique(dim=0, return_inverse=True)
    return [(pattern, (inverse == i).nonzero()[:, 0]) for i, pattern in enumerate(patterns)]


class LogNormal(Normal):
    """Positive cells whose logarithms are normal; arguments as of Normal."""

    filler = 1.0

    @property
    def event(self) -> Array:
        return self._array(support="positive")

    def cdf(self, x: Tensor) -> Tensor:
        return super().cdf(x.log())

    def mean(self, given: Tensor | None = None) -> Tensor:
        return (self.loc + super().variance() / 2).exp()

    def variance(self, given: Tensor | None = None) -> Tensor:
        return self.mean().square() * torch.expm1(super().variance())

    def features(self, x: Tensor) -> Tensor:
        return super().features(x.log())

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x.log()) - torch.nan_to_num(x.log()).sum(-1, keepdim=True)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        return dist.TransformedDistribution(super().cells(state, given), dist.transforms.ExpTransform())

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        return super().sample(state, generator, given).exp()

    def prepare(self, x: Tensor) -> None:
        super().prepare(x.log())

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        return super().statistics(x.log(), weights)
