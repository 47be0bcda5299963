"""Moment matching: draws moved to where a left-out posterior lies, so that their weights have lighter tails.

Paananen, Piironen, Buerkner and Vehtari (2021), "Implicitly adaptive importance sampling". NumPy alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from probgen.evaluate.loo.psis import log_mean, smooth, threshold

__all__ = ["Matched", "match_moments"]

Density = Callable[[np.ndarray], np.ndarray]
_MOVES = 30


@dataclass(frozen=True)
class Matched:
    """One unit left out.

    Arguments:
        nats: log p(x_i | x_-i).
        stderr: Monte Carlo standard error; NaN where k is not good.
        k: Shape of the tail of weights after the moves.
        moves: Accepted: "mean", "mean and variance", "mean and covariance".
    """

    nats: float
    stderr: float
    k: float
    moves: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Moved:
    """Draws u = A u_0 + b, their log weights and k."""

    u: np.ndarray
    a: np.ndarray
    b: np.ndarray
    weights: np.ndarray
    k: float


def match_moments(u: np.ndarray, log_joint: Density, log_lik: Density, r_eff: float = 1.0) -> Matched:
    """log p(x_i | x_-i) from posterior draws moved affinely.

    Arguments:
        u: Posterior draws in unconstrained coordinates, (S, P).
        log_joint: log p(x, theta) of all rows, with the Jacobian, (S, P) -> (S,), but for a constant.
        log_lik: log p(x_i | theta) of the unit, (S, P) -> (S,).
        r_eff: Effective draws as a share of S.

    Moves match the draws' mean, then also their variances, then their covariance to those of the weighted draws; one is
    kept while it lowers k (algorithm 1). At last one half of the draws is moved and the other is not, and each is
    weighed against the mixture of both (section 3.3): the numerator p(x_i | theta) pulls back to where the draws came
    from. Draws of density zero are left as they are, with k = inf.
    """
    start, first = log_joint(u), -log_lik(u)
    if not (np.isfinite(start).all() and np.isfinite(first).all()):  # no draws of a posterior
        return Matched(math.nan, math.nan, math.inf, ())
    moved = _Moved(u, np.eye(u.shape[1]), np.zeros(u.shape[1]), *_weigh(first, r_eff))
    done: list[str] = []
    for name in ("mean", "mean and variance", "mean and covariance"):
        while moved.k > threshold(len(u)) and len(done) < _MOVES:
            better = _move(name, moved, start, log_joint, log_lik, r_eff)
            if better is None or better.k >= moved.k:
                break
            moved = better
            done.append(name)
    return _split(u, moved, log_joint, log_lik, r_eff, tuple(done))


def _weigh(log_ratios: np.ndarray, r_eff: float) -> tuple[np.ndarray, float]:
    safe = np.where(np.isnan(log_ratios), -math.inf, log_ratios)
    weights, k = smooth(safe[:, None], r_eff)
    return weights[:, 0], float(k[0])


def _move(
    name: str, at: _Moved, start: np.ndarray, log_joint: Density, log_lik: Density, r_eff: float
) -> _Moved | None:
    """The draws after one more move; None where the weighted moments give no such map."""
    w = np.exp(at.weights)
    mean, target = at.u.mean(axis=0), w @ at.u
    turn = _turn(name, at.u - mean, at.u - target, w)
    if turn is None:
        return None
    u = (at.u - mean) @ turn.T + target
    with np.errstate(invalid="ignore"):
        ratios = log_joint(u) - log_lik(u) - start  # the map's volume is a constant
    return _Moved(u, turn @ at.a, turn @ (at.b - mean) + target, *_weigh(ratios, r_eff))


def _turn(name: str, centred: np.ndarray, around: np.ndarray, w: np.ndarray) -> np.ndarray | None:
    """The linear part that carries the draws' moments to the weighted ones'."""
    if name == "mean":
        return np.eye(centred.shape[1])
    if name == "mean and variance":
        return np.diag(np.sqrt((w @ around**2) / (centred**2).mean(axis=0)))
    if len(w) < 10 * centred.shape[1]:
        return None
    try:
        old = np.linalg.cholesky(centred.T @ centred / len(w))
        new = np.linalg.cholesky((around * w[:, None]).T @ around)
        return new @ np.linalg.inv(old)
    except np.linalg.LinAlgError:
        return None


def _split(
    u: np.ndarray, moved: _Moved, log_joint: Density, log_lik: Density, r_eff: float, done: tuple[str, ...]
) -> Matched:
    """Every second draw is moved; all are weighed against the mixture of moved and unmoved draws."""
    mixed = u.copy()
    mixed[::2] = moved.u[::2]
    joint, lik = log_joint(mixed), log_lik(mixed)
    if done:
        back = np.linalg.solve(moved.a, (mixed - moved.b).T).T
        volume = float(np.linalg.slogdet(moved.a)[1])
        mixture = np.logaddexp(joint, log_joint(back) - volume)
    else:
        mixture = joint
    with np.errstate(invalid="ignore"):
        weights, k = _weigh(joint - lik - mixture, r_eff)
        nats = float(log_mean((weights + lik)[:, None])[0]) + math.log(len(u))
        error = float(np.sqrt(np.square(np.exp(weights) * np.expm1(lik - nats)).sum() / r_eff))
    return Matched(nats, error if k <= threshold(len(u)) else math.nan, max(k, moved.k), done)
