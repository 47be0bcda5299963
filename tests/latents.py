"""Models with continuous latents whose likelihood is known: probabilistic PCA, and one with two modes."""

import math

import numpy as np
import torch
from scipy import stats

from probgen.events import Array

ALPHA = 1e-6
CRITICAL = stats.norm.isf(ALPHA)
D = torch.float64
LOG_2PI = math.log(2 * math.pi)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def z_of(differences):
    """Mean over standard error."""
    return differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences)))


class PPCA:
    """x = W z + mu + sigma e. The guide is the exact posterior, ``width`` times as wide, ``shift`` deviations off."""

    def __init__(self, width=1.0, shift=0.0, dim=3, latent_dim=2):
        rng = np.random.default_rng(7)
        self.latent_dim, self.event, self.width, self.shift, self.noises = latent_dim, Array((dim,)), width, shift, []
        self.W, self.mu = torch.tensor(rng.normal(0, 1, (dim, latent_dim))), torch.tensor(rng.normal(0, 1, dim))
        self.variance = 0.5
        V = torch.linalg.inv(torch.eye(latent_dim, dtype=D) + self.W.T @ self.W / self.variance)
        self.gain, self.factor = V @ self.W.T / self.variance, torch.linalg.cholesky(V)

    def draw(self, n, seed=0):
        return self._sample_joint(n, None, generator=generator(seed))[0]

    def _sample_joint(self, n, given, *, generator):
        rng = np.random.default_rng(generator.initial_seed())
        z, e = torch.tensor(rng.normal(0, 1, (n, self.latent_dim))), torch.tensor(rng.normal(0, 1, (n, len(self.mu))))
        return z @ self.W.T + self.mu + (0 if given is None else given) + math.sqrt(self.variance) * e, z

    def exact(self, x):
        S = self.W @ self.W.T + self.variance * torch.eye(len(self.mu), dtype=D)
        return stats.multivariate_normal(self.mu.numpy(), S.numpy()).logpdf(x.numpy())

    def posterior(self, x, draws, seed=0):
        """Exact draws of p(z | x), (draws, n, latent_dim)."""
        e = torch.randn(draws, len(x), self.latent_dim, generator=generator(seed), dtype=D)
        return (x - self.mu) @ self.gain.T + e @ self.factor.T

    def widths(self, x):
        return torch.full((len(x), 1), float(self.width), dtype=D)

    def _propose(self, x, given, noise):
        self.noises.append(noise.detach())
        width = self.widths(x)
        offset = (noise.to(D) * width + self.shift) @ self.factor.T
        log_q = -0.5 * (noise.to(D).square() + LOG_2PI).sum(-1) - self.factor.diagonal().log().sum()
        return (x - self.mu) @ self.gain.T + offset, log_q - self.latent_dim * width.log()[:, 0]

    def _log_joint(self, x, z, given):
        loc = z @ self.W.T + self.mu + (0 if given is None else given)
        likelihood = -0.5 * ((x - loc).square() / self.variance + math.log(self.variance) + LOG_2PI).sum(-1)
        return likelihood - 0.5 * (z.square() + LOG_2PI).sum(-1)


class Uneven(PPCA):
    """The guide is the posterior for rows with a positive first cell, and far too narrow for the others."""

    def widths(self, x):
        return torch.where(x[:, :1] > 0, 1.0, 0.2)


class Folded:
    """x = z^2 + tilt z + noise: two modes, of which the guide knows the right one only."""

    latent_dim, event = 1, Array((1,))

    def __init__(self, noise=0.3, tilt=0.0):
        self.noise, self.tilt = noise, tilt

    def draw(self, n, seed=0):
        rng = np.random.default_rng(seed)
        z, e = torch.tensor(rng.normal(0, 1, (n, 1))), torch.tensor(rng.normal(0, 1, (n, 1)))
        return z.square() + self.tilt * z + self.noise * e

    def _propose(self, x, given, noise):
        loc = x.clamp(min=0.05).sqrt()
        scale = 0.65 * self.noise / loc.clamp(min=0.4)
        return loc + scale * noise.to(D), -0.5 * (noise.to(D).square() + LOG_2PI).sum(-1) - scale.log().sum(-1)

    def _log_joint(self, x, z, given):
        miss = (x - z.square() - self.tilt * z) / self.noise
        return (-0.5 * (miss.square() + LOG_2PI + z.square() + LOG_2PI) - math.log(self.noise)).sum(-1)

    def exact(self, x):
        """By the trapezoidal rule, whose steps are a fifth of the narrowest posterior's deviation."""
        points = torch.linspace(-8, 8, 2001, dtype=D)[:, None, None]
        parts = [self._log_joint(some, points.expand(-1, len(some), 1), None).logsumexp(0) for some in x.split(2000)]
        return (torch.cat(parts) + math.log(16 / 2000)).numpy()
