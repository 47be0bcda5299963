"""Whether chains agree, and how many independent draws they are worth."""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["ess", "ess_of_mean", "rhat", "summarised"]


def rhat(values: Tensor) -> Tensor:
    """Rank-normalised split R-hat of each number, (chains, draws, *shape) -> (*shape).

    The larger of that of the draws and that of their distances from the median. Vehtari, Gelman, Simpson, Carpenter and
    Buerkner (2021), equations 4 and 14. NaN below 4 draws, for constants, and where a number is not finite.
    """
    x = _flat(values)
    if x.shape[1] < 4:
        return torch.full(values.shape[2:], math.nan, dtype=torch.float64)
    halves = _split(np.where(_usable(x), x, 0.0))
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    worst = np.maximum(_ratio(_ranked(halves)), _ratio(_ranked(folded)))
    return _shaped(np.where(_usable(x), worst, math.nan), values)


def ess(values: Tensor) -> Tensor:
    """Bulk effective sample size of each number: that of the rank-normalised split chains. NaN below 4 draws.

    Vehtari et al. (2021), section 3.1; a constant is worth all its draws.
    """
    x = _flat(values)
    if x.shape[1] < 4:
        return torch.full(values.shape[2:], math.nan, dtype=torch.float64)
    return _shaped(_effective(x, _ranked(_split(x))), values)


def ess_of_mean(values: Tensor) -> Tensor:
    """Effective sample size for the mean of each number, without ranks; what a standard error of a mean needs."""
    x = _flat(values)
    if x.shape[1] < 4:
        return torch.full(values.shape[2:], math.nan, dtype=torch.float64)
    return _shaped(_effective(x, _split(x)), values)


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().to(torch.float64).reshape(*values.shape[:2], -1).numpy()


def _shaped(found: np.ndarray, values: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(found)).reshape(values.shape[2:])


def _usable(x: np.ndarray) -> np.ndarray:
    """Finite and not constant."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(x).all((0, 1)) & (np.ptp(x, axis=(0, 1)) > 0)


def _split(x: np.ndarray) -> np.ndarray:
    """Each chain as two; the middle draw of an odd number is left out."""
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


def _ranked(x: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks among all draws, ties sharing theirs (equation 14; offset of Blom 1958)."""
    flat = x.reshape(-1, x.shape[-1])
    ranks = np.stack([_ranks(column) for column in flat.T], 1)
    scores = torch.special.ndtri(torch.from_numpy((ranks - 0.375) / (len(flat) + 0.25)))
    return scores.numpy().reshape(x.shape)


def _ranks(column: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(column, return_inverse=True, return_counts=True)
    last = count.cumsum()
    return (last - (count - 1) / 2)[place]


def _ratio(x: np.ndarray) -> np.ndarray:
    """Root of the total over the within-chain variance."""
    n = x.shape[1]
    between, within = x.mean(1).var(0, ddof=1), x.var(1, ddof=1).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(between / within + (n - 1) / n)


def _autocovariance(x: np.ndarray) -> np.ndarray:
    """Of each chain at every lag, by the fast Fourier transform; divided by the number of draws."""
    n = x.shape[1]
    size = 1 << (2 * n - 1).bit_length()
    waves = np.fft.rfft(x - x.mean(1, keepdims=True), size, axis=1)
    return np.fft.irfft(np.abs(waves) ** 2, size, axis=1)[:, :n] / n


def _effective(original: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Draws over the integrated autocorrelation time, sums of neighbouring lags cut where they turn negative and made
    monotone (Geyer 1992; Vehtari et al. 2021, equations 10 to 13)."""
    chains, n, _ = x.shape
    x = np.where(_usable(x), x, 0.0)
    covariance = _autocovariance(x)
    within = covariance[:, 0].mean(0) * n / (n - 1)
    total = within * (n - 1) / n + (x.mean(1).var(0, ddof=1) if chains > 1 else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within - covariance.mean(0)) / total
    rho[0] = 1.0
    found = np.array([_from_correlations(rho[:, j], chains * n) for j in range(x.shape[2])])
    constant = np.isfinite(original).all((0, 1)) & (np.ptp(original, axis=(0, 1)) == 0)
    return np.where(constant, float(chains * n), np.where(_usable(original), found, math.nan))


def _from_correlations(rho: np.ndarray, draws: int) -> float:
    pairs = (len(rho) - 1) // 2
    even = rho[: 2 * pairs : 2]
    sums = even + rho[1 : 2 * pairs : 2]
    negative = np.flatnonzero(sums <= 0)
    last = int(negative[0]) if len(negative) else pairs - 1  # of this pair only the first lag counts
    tail = even[last] if even[last] > 0 or sums[last] >= 0 else 0.0
    time = -1 + 2 * np.minimum.accumulate(sums[:last]).sum() + tail
    return draws / max(time, 1 / math.log10(draws))


def summarised(values: Tensor) -> dict[str, np.ndarray]:
    """Mean, standard deviation, 5 % and 95 % quantiles, standard error of the mean, ESS and R-hat of each number."""
    x = _flat(values)
    pooled = x.reshape(-1, x.shape[2])
    low, high = np.quantile(pooled, [0.05, 0.95], axis=0)
    sd = pooled.std(0, ddof=1) if len(pooled) > 1 else np.full(x.shape[2], math.nan)
    flat = torch.from_numpy(x)
    error = sd / np.sqrt(ess_of_mean(flat).numpy())
    return {
        "mean": pooled.mean(0), "sd": sd, "q5": low, "q95": high, "mcse": error,
        "ess": ess(flat).numpy(), "rhat": rhat(flat).numpy(),
    }  # fmt: skip
