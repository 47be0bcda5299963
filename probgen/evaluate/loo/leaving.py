"""Leaving one unit out by weighing posterior draws anew, without another fit."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probgen.errors import DataError, ParameterError
from probgen.evaluate.loo.matching import Matched, match_moments
from probgen.evaluate.loo.psis import TAIL, log_mean, smooth, threshold
from probgen.evaluate.loo.rows import Data, log_lik_blocks
from probgen.posterior.diagnostics import ess_of_mean

__all__ = ["Left", "Weighing", "correction_of", "efficiency", "left_out", "weighed"]


@dataclass(frozen=True, eq=False)
class Left:
    """What the draws say of each unit when it is left out.

    Arguments:
        nats: log p(x_i | x_-i), (n,).
        stderr: Monte Carlo standard error, (n,); NaN where k is not good.
        k: Shape of the tail of weights, (n,).
        seen: log p(x_i | x) of the unit when it is not, (n,).
        influence: What each draw adds to the total of the units of good k, (S,), to first order: units share draws.
    """

    nats: np.ndarray
    stderr: np.ndarray
    k: np.ndarray
    seen: np.ndarray
    influence: np.ndarray


def left_out(
    log_lik: np.ndarray, chains: int, correction: np.ndarray | None = None, r_eff: np.ndarray | float | None = None
) -> Left:
    """PSIS-LOO of each column.

    Arguments:
        log_lik: log p(x_i | theta_s), (S, n), draws in chain-major order.
        correction: log p(x, theta_s) - log q(theta_s) of draws from an approximation q, (S,), but for a constant; None
            where the draws are the posterior's.
        r_eff: Effective draws of the mean of exp(log_lik) as a share of S; None measures it a column.

    Ratios are 1 / p(x_i | theta_s) (Vehtari, Gelman and Gabry 2017, equation 8), times p / q for an approximation
    (Magnusson et al. 2019, equation 6), whose draws are independent.
    """
    many = len(log_lik)
    if r_eff is None:
        r_eff = efficiency(log_lik, chains) if correction is None else 1.0
    ratios = -log_lik if correction is None else correction[:, None] - log_lik
    weights, k = smooth(ratios, r_eff)
    if correction is None:
        seen = log_mean(log_lik)
    else:
        seen = weighed(np.broadcast_to(smooth(correction[:, None])[0], log_lik.shape), log_lik)[0]
    nats, around = weighed(weights, log_lik)
    good = k <= threshold(many)
    error = np.where(good, np.sqrt(np.square(around).sum(axis=0) / r_eff), math.nan)
    return Left(nats, error, k, seen, around[:, good].sum(axis=1))


def efficiency(values: np.ndarray, chains: int, logs: bool = True) -> np.ndarray:
    """Effective draws of the mean of each column, (S, n), or of its exponential, as a share of S, (n,), at most 1; 1
    where it is not known."""
    if logs:
        top = values.max(axis=0)
        values = np.exp(values - np.where(np.isfinite(top), top, 0.0))
    found = torch.from_numpy(values).reshape(chains, -1, values.shape[1])
    share = ess_of_mean(found).numpy() / len(values)
    return np.where(np.isfinite(share), np.clip(share, 1 / len(values), 1.0), 1.0)


def weighed(log_weights: np.ndarray, log_lik: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the weighted mean of exp(log_lik), (n,), and what each draw adds to it, to first order, (S, n)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = log_weights + log_lik
        nats = log_mean(np.where(np.isnan(terms), -math.inf, terms)) + math.log(len(terms))
        return nats, np.exp(log_weights) * np.expm1(log_lik - nats)


class Weighing:
    """Draws of a posterior, weighed anew for each unit of some rows.

    Arguments:
        data: Rows.
        draws: Of the model.
        codes: The unit of each row, (n,), from 0; rows of one unit are independent given theta.
        seed: Of what estimates log p(x_i | theta).

    Raises:
        ParameterError: too few draws to fit a tail to. DataError: NaN among the numbers.
    """

    def __init__(self, data: Data, draws: Any, codes: np.ndarray, seed: int | None) -> None:
        self.data, self.draws, self.codes, self.seed = data, draws, codes, seed
        self.chains, self.many = draws.chains, draws.chains * draws.draws
        self.correction = correction_of(draws)
        least = 4 * TAIL + 1  # a fifth of them is the tail
        if self.many < least:
            raise ParameterError(
                f"{self.many} posterior draws", f"at least {least}, better 1000", "Fit with more: fit(..., draws=1000)"
            )

    @property
    def how(self) -> str:
        return "psis" if self.correction is None else "psis (approximate posterior)"

    @property
    def approximation(self) -> float:
        """k of p / q of an approximate posterior alone; NaN of draws that are the posterior's."""
        return math.nan if self.correction is None else float(smooth(self.correction[:, None])[1][0])

    def all(self) -> Left:
        """Every unit."""
        if len(np.unique(self.codes)) == len(self.codes):
            parts = [self._left(log_lik) for _, log_lik in log_lik_blocks(self.data, self.many, self.seed)]
            order = np.argsort(self.codes)
            nats, stderr, k, seen = (
                np.concatenate([getattr(p, name) for p in parts])[order] for name in ("nats", "stderr", "k", "seen")
            )
            return Left(nats, stderr, k, seen, np.sum([p.influence for p in parts], axis=0))
        total = np.zeros((self.codes.max() + 1, self.many))
        for part, log_lik in log_lik_blocks(self.data, self.many, self.seed):
            np.add.at(total, self.codes[part], log_lik.T)
        return self._left(total.T)

    def _left(self, log_lik: np.ndarray) -> Left:
        return left_out(log_lik, self.chains, self.correction)

    def error_of_total(self, left: Left) -> float:
        """Monte Carlo standard error of the total of the units of good k."""
        share = (
            float(efficiency(left.influence[:, None], self.chains, logs=False)[0]) if self.correction is None else 1.0
        )
        return math.sqrt(float(np.square(left.influence).sum()) / share)

    @property
    def matchable(self) -> bool:
        """Whether the family says what its densities are at other parameters."""
        return self.correction is None and hasattr(self.data.model, "_parametric")

    @torch.no_grad()
    def matched(self, unit: int) -> Matched:
        """One unit, by draws moved to where its left-out posterior lies."""
        family = self.data.model._parametric()  # type: ignore[operator]
        rows = self.data[np.flatnonzero(self.codes == unit)]

        def log_lik(z: np.ndarray, data: Data = rows) -> np.ndarray:
            given = None if data.covariates is None else data.covariates.x
            return family.log_lik(data.checked.x, given, torch.from_numpy(z)).sum(1).numpy()

        def log_joint(z: np.ndarray) -> np.ndarray:
            values, volume = family.coordinates.unpack(torch.from_numpy(z))
            prior = family.coordinates.log_prior(torch.from_numpy(z), values) + volume
            return prior.numpy() + log_lik(z, self.data)

        z = family.kept.z().numpy()
        return match_moments(z, log_joint, log_lik, float(efficiency(log_lik(z)[:, None], self.chains)[0]))


def correction_of(draws: Any) -> np.ndarray | None:
    """log p(x, theta) - log q(theta) of each draw of an approximation, (S,)."""
    if draws.log_p is None or draws.log_q is None:
        return None
    found = (draws.log_p - draws.log_q).detach().reshape(-1).to(torch.float64).numpy()
    if not np.isfinite(found).all():
        raise DataError(
            f"{(~np.isfinite(found)).sum()} of {len(found)} draws have no finite log p - log q",
            "finite numbers",
            "Fit again: fit(method='nuts') needs no such weights",
        )
    return found
