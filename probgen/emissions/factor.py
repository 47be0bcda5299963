"""Normal cells whose covariance is low-rank plus diagonal: factor analysis and probabilistic PCA."""

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics, by_blocks
from probgen.emissions.normal import Normal
from probgen.errors import ParameterError

__all__ = ["FactorNormal"]

_LOG_2PI = math.log(2 * math.pi)
_SWEEPS = 10  # of loadings and noise by turns in one M step


class FactorNormal(Normal):
    """x | state ~ N(loc, W W' + noise), W of shape (dim, rank): x = loc + W z + e with z ~ N(0, I).

    A mixture of these is a mixture of factor analysers (Ghahramani and Hinton 1996), or of probabilistic principal
    component analysers (Tipping and Bishop 1999). W is known up to a rotation of z.

    Arguments:
        dim: Cells.
        rank: Factors, fewer than cells.
        noise: "diag" (factor analysis: each cell has its own variance) or "spherical" (probabilistic PCA: one for all).
        floor: Smallest noise variance, relative to the data's variance (cell by cell, or the mean over cells).

    The M step is in closed form for spherical noise (Tipping and Bishop 1999, eqs. 7, 8). Else the loadings are the
    best for the noise (Joreskog 1967) and the noise takes an EM step for the loadings, by turns; neither lowers the
    likelihood. Missing cells are integrated out; moments are full matrices, dim^2 numbers a state.
    """

    def __init__(
        self,
        dim: int,
        rank: int = 1,
        noise: Literal["diag", "spherical"] = "diag",
        floor: float = 1e-6,
        states: int = 1,
    ) -> None:
        Emission.__init__(self)
        if noise not in ("diag", "spherical"):
            raise ParameterError(f"noise={noise!r}", "diag or spherical")
        if not 1 <= rank < dim or states < 1 or not 0 < floor < 1:
            raise ParameterError(
                f"dim={dim}, rank={rank}, states={states}, floor={floor}",
                "1 <= rank < dim, states >= 1, 0 < floor < 1",
            )
        self.dim, self.rank, self.noise, self.floor, self.states = dim, rank, noise, floor, states
        self.covariance, self.width = "full", dim
        self.loc = nn.Parameter(torch.zeros(states, dim, dtype=torch.float64))
        self.loadings = nn.Parameter(torch.zeros(states, dim, rank, dtype=torch.float64))
        noises = dim if noise == "diag" else 1
        self.log_noise = nn.Parameter(torch.zeros(states, noises, dtype=torch.float64))  # log standard deviations
        self.register_buffer("data_mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("data_variance", torch.ones(dim, dtype=torch.float64))

    def noise_variance(self) -> Tensor:
        """Of each cell, (K, dim)."""
        return (2 * self.log_noise).exp().expand(self.states, self.dim)

    def scale(self) -> Tensor:
        """Cholesky factors of the covariances, (K, dim, dim)."""
        return torch.linalg.cholesky(_covariance(self.loadings, self.noise_variance()))

    def log_prob(self, x: Tensor) -> Tensor:
        return by_blocks(self._scores, x, self.states * (self.dim + self.rank**2))

    def _scores(self, x: Tensor) -> Tensor:
        """By the identities of Woodbury and Sylvester: rank x rank matrices, whatever is missing."""
        seen = ~x.isnan()
        z, precision, squares = self._latents(x)
        factor = torch.linalg.cholesky(precision)
        gain = (factor.mT @ z[..., None])[..., 0].square().sum(-1)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        own = seen.to(x.dtype) @ (2 * self.log_noise.expand(-1, self.dim) + _LOG_2PI).T
        return -0.5 * (squares - gain + log_det + own)

    def _latents(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior mean of z (n, K, rank) and precision (n or 1, K, rank, rank); scaled squares of x - loc, (n, K)."""
        seen = ~x.isnan()
        std = self.log_noise.exp()
        scaled = self.loadings / std[..., None]
        y = torch.where(seen[:, None], torch.nan_to_num(x)[:, None] - self.loc, 0.0) / std
        eye = torch.eye(self.rank, dtype=x.dtype)
        if seen.all():
            precision = (eye + scaled.mT @ scaled)[None]
        else:
            precision = eye + torch.einsum("nd,kdr,kds->nkrs", seen.to(x.dtype), scaled, scaled)
        moment = torch.einsum("nkd,kdr->nkr", y, scaled)
        mean = torch.linalg.solve(precision, moment[..., None])[..., 0]
        return mean, precision, y.square().sum(-1)

    def factors(self, x: Tensor) -> Tensor:
        """E[z | x, state], shape (n, K, rank): what PCA calls scores."""
        return self._latents(x)[0]

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        return dist.LowRankMultivariateNormal(self.loc[state], self.loadings[state], self.noise_variance()[state])

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        z = torch.randn(len(state), self.rank, 1, generator=generator, dtype=torch.float64)
        e = torch.randn(len(state), self.dim, generator=generator, dtype=torch.float64)
        return self.loc[state] + (self.loadings[state] @ z)[..., 0] + self.log_noise.exp()[state] * e

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Means within some standard deviations of the data's; loadings and noise of the data's scale."""
        std = self.data_variance.sqrt()
        loc = dist.Normal(self.data_mean, 2 * std).expand((self.states, self.dim))
        loadings = dist.Normal(torch.zeros_like(std), std)
        centre = std.log() if self.noise == "diag" else 0.5 * self.data_variance.mean().log()[None]
        shape = self.log_noise.shape
        return {
            "loc": loc.to_event(2),
            "loadings": dist.Normal(loadings.loc[:, None], loadings.scale[:, None])
            .expand(self.loadings.shape)
            .to_event(3),
            "log_noise": dist.Normal(centre, torch.ones_like(centre)).expand(shape).to_event(2),
        }

    def natural(self) -> dict[str, Tensor]:
        """``loc`` (K, dim), ``loadings`` (K, dim, rank), ``noise`` (K, dim) variances, ``covariance`` (K, dim, dim)."""
        noise = self.noise_variance()
        covariance = _covariance(self.loadings, noise)
        return {"loc": self.loc, "loadings": self.loadings, "noise": noise, "covariance": covariance}

    def _marginal_scale(self) -> Tensor:
        return (self.loadings.square().sum(-1) + self.noise_variance()).sqrt()

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        n, first, second = (statistics[name] for name in ("n", "first", "second"))
        alive = n > 1e-8
        weight = torch.where(alive, n, 1.0)[:, None]
        delta = torch.where(alive[:, None], first / weight, 0.0)
        self.loc.add_(delta)
        S = second / weight[..., None] - delta[..., None] * delta[:, None]
        loadings, noise = self._principal(S) if self.noise == "spherical" else self._analyse(S)
        self.loadings.copy_(torch.where(alive[:, None, None], loadings, self.loadings))
        self.log_noise.copy_(torch.where(alive[:, None], 0.5 * noise.log(), self.log_noise))
        return (~alive).nonzero()[:, 0].tolist()

    def _principal(self, S: Tensor) -> tuple[Tensor, Tensor]:
        """Loadings and the variance (K, 1) that maximise the likelihood of covariances S."""
        values, vectors = torch.linalg.eigh(S)
        least = self.floor * self.data_variance.mean()
        noise = values[:, : -self.rank].mean(1, keepdim=True).clamp(min=least)
        top = (values[:, -self.rank :] - noise).clamp(min=0).sqrt()
        return vectors[..., -self.rank :] * top[:, None], noise

    def _analyse(self, S: Tensor) -> tuple[Tensor, Tensor]:
        """Loadings and variances (K, dim) for covariances S, from the present ones or, without any, a start."""
        least = self.floor * self.data_variance
        fresh = (self.loadings == 0).all(-1).all(-1)[:, None]
        half = torch.maximum(S.diagonal(dim1=-2, dim2=-1) / 2, least)
        noise = torch.where(fresh, half, self.noise_variance())
        for _ in range(_SWEEPS):
            loadings = _best_loadings(S, noise, self.rank)
            noise = torch.maximum(_noise_step(S, loadings, noise), least)
        return _best_loadings(S, noise, self.rank), noise

    @property
    def n_params(self) -> int:
        rotations = self.rank * (self.rank - 1) // 2
        return self.states * (self.dim + self.dim * self.rank - rotations + self.log_noise.shape[1])


def _covariance(loadings: Tensor, noise: Tensor) -> Tensor:
    return loadings @ loadings.mT + torch.diag_embed(noise)


def _best_loadings(S: Tensor, noise: Tensor, rank: int) -> Tensor:
    """The loadings of most likelihood for covariances S and noise variances: principal axes in units of the noise."""
    std = noise.sqrt()
    values, vectors = torch.linalg.eigh(S / std[:, None] / std[..., None])
    return std[..., None] * vectors[..., -rank:] * (values[:, None, -rank:] - 1).clamp(min=0).sqrt()


def _noise_step(S: Tensor, loadings: Tensor, noise: Tensor) -> Tensor:
    """EM's noise variances for fixed loadings (Rubin and Thayer 1982): the diagonal of E[(x - W z)(x - W z)']."""
    scaled = loadings / noise[..., None]
    precision = torch.eye(loadings.shape[-1], dtype=S.dtype) + loadings.mT @ scaled
    gain = torch.linalg.solve(precision, scaled.mT)  # E[z | x] = gain (x - loc)
    left = S - loadings @ (gain @ S)
    residual = left - (left @ gain.mT) @ loadings.mT
    uncertainty = loadings @ torch.linalg.solve(precision, loadings.mT)
    return (residual + uncertainty).diagonal(dim1=-2, dim2=-1)
