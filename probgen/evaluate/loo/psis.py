"""Pareto-smoothed importance sampling: the largest weights are replaced by what a fitted Pareto tail expects.

Arrays in, arrays out; NumPy alone.
"""

import math

import numpy as np

__all__ = ["TAIL", "fit_pareto", "log_mean", "smooth", "threshold"]

TAIL = 5  # fewest weights that a tail is fitted to
_LEAST = math.log(np.finfo(float).tiny)


def threshold(draws: float) -> float:
    """The largest k at which an estimate from so many draws can be trusted: min(1 - 1 / log10 S, 0.7).

    Vehtari et al. (2024), equation 13.
    """
    return min(1 - 1 / math.log10(draws), 0.7) if draws > 1 else -math.inf


def log_mean(log_values: np.ndarray, axis: int = 0) -> np.ndarray:
    """log of the mean of exp(log_values), without overflow; -inf where all are."""
    return _log_sum(log_values, axis) - math.log(log_values.shape[axis])


def _log_sum(log_values: np.ndarray, axis: int) -> np.ndarray:
    top = log_values.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(log_values - top).sum(axis=axis)) + top.squeeze(axis)


def smooth(log_ratios: np.ndarray, r_eff: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Log weights that sum to one over draws, and the shape k of each row's tail.

    Arguments:
        log_ratios: Log importance ratios, (S, n), but for a constant a row; +inf only where the weight takes all.
        r_eff: Effective draws as a share of S, a row or for all.

    Returns:
        Weights (S, n). k (n,): inf where a tail has too few distinct weights to be fitted, -inf where all weights are
        equal, so that nothing is left to smooth.

    The tail holds the M = ceil(min(S / 5, 3 sqrt(S / r_eff))) largest weights; none grows beyond the largest raw one
    (Vehtari et al. 2024, section 3).
    """
    many, rows = log_ratios.shape
    shares = np.broadcast_to(np.asarray(r_eff, dtype=float), (rows,))
    weights, k = np.empty((rows, many)), np.empty(rows)
    for i, column in enumerate(log_ratios.T):
        weights[i], k[i] = _smooth_one(column, math.ceil(min(many / 5, 3 * math.sqrt(many / shares[i]))))
    return weights.T, k


def _smooth_one(log_ratios: np.ndarray, tail: int) -> tuple[np.ndarray, float]:
    top = log_ratios.max()
    if not math.isfinite(top):  # draws of infinite weight share it; without any weight all are alike
        alone = np.where(log_ratios == top, 0.0, -math.inf)
        return alone - math.log((alone == 0).sum()), math.inf
    x = log_ratios - top
    order = np.argsort(x)
    cutoff = max(float(x[order[max(len(x) - tail - 1, 0)]]), _LEAST)
    places = order[np.searchsorted(x[order], cutoff, side="right") :]
    if x[order[0]] == 0.0:
        return x - math.log(len(x)), -math.inf
    if len(places) < TAIL:
        return x - _log_sum(x, 0), math.inf
    level = math.exp(cutoff)
    k, sigma = fit_pareto(np.exp(x[places]) - level)
    if math.isfinite(k):
        shares = (np.arange(len(places)) + 0.5) / len(places)
        x[places] = np.minimum(np.log(_quantiles(shares, k, sigma) + level), 0.0)
    return x - _log_sum(x, 0), k


def fit_pareto(excesses: np.ndarray) -> tuple[float, float]:
    """Shape k and scale of a generalised Pareto distribution, from sorted positive excesses (M,).

    The empirical Bayes estimate of Zhang and Stephens (2009): the posterior mean of b = -k / sigma on a grid, profiled
    over k. k is then drawn to 0.5 as by ten more excesses (Vehtari et al. 2024, appendix C).
    """
    m = len(excesses)
    points = 30 + int(math.sqrt(m))
    quartile = excesses[int(m / 4 + 0.5) - 1]
    grid = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    b = grid / (3 * quartile) + 1 / excesses[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        k = np.log1p(-b[:, None] * excesses).mean(axis=1)
        log_profile = m * (np.log(-b / k) - k - 1)
    weights = np.exp(log_profile - _log_sum(log_profile, 0))
    kept = weights >= 10 * np.finfo(float).eps
    mean = float((b[kept] * weights[kept]).sum() / weights[kept].sum())
    shape = float(np.log1p(-mean * excesses).mean())
    return (m * shape + 5) / (m + 10), -shape / mean


def _quantiles(p: np.ndarray, k: float, sigma: float) -> np.ndarray:
    return -sigma * np.log1p(-p) if abs(k) < 1e-12 else sigma * np.expm1(-k * np.log1p(-p)) / k
