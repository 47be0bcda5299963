"""Stacking: the mixture of models that predicts held-out rows best, where their numbers may be mixed at all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import FitError, Incomparable
from probgen.logprob import Kind, LogProb

__all__ = ["Stacking", "stack", "weights_of"]

_FOLDS, _GAP, _ROUNDS = 10, 1e-9, 500


@dataclass(frozen=True)
class Stacking:
    """Weights of a mixture of models (Yao, Vehtari, Simpson and Gelman 2018), on held-out log densities.

    Arguments:
        weights: By name, they add up to 1; models that are alike share a weight in no unique way.
        nats: Mean log density a row of the mixture, on rows that its weights were not chosen on (ten folds), in nats;
            NaN for fewer than 20 rows.
        best: The same of the best single model.
        n: Rows.
        impossible: Rows that every model calls impossible; no weights change them.
        kind: Exact, or estimate where one of the numbers is.
        left_out: Models that can't be mixed, and why.
    """

    weights: Mapping[str, float]
    nats: float
    best: float
    n: int
    impossible: int
    kind: Kind
    left_out: Mapping[str, str] = field(default_factory=dict)

    def frame(self) -> Any:
        """A row a model: family, weight (null where it can't be mixed), reason (pyarrow.Table)."""
        names = [*self.weights, *self.left_out]
        return frames.table(
            {
                "family": names,
                "weight": np.ma.masked_invalid([self.weights.get(name, math.nan) for name in names]),
                "reason": [self.left_out.get(name) for name in names],
            }
        )

    def notes(self) -> list[str]:
        """What a reader should know, in sentences."""
        gain = self.nats - self.best
        said = []
        if not math.isnan(gain):
            side = f"{abs(gain):.3g} {'more' if gain > 0 else 'less'} than" if abs(gain) >= 5e-4 else "as many as"
            said.append(
                f"On rows that the weights were not chosen on, the mixture has {self.nats:.4g} nats a row, "
                f"{side} the best single model."
            )
        if self.impossible:
            said.append(f"{self.impossible} of {self.n} rows are impossible under every model; no weights change them.")
        return said + [f"{name} is left out: {reason}." for name, reason in self.left_out.items()]

    def __str__(self) -> str:
        width = max(map(len, self.weights))
        lines = [f"{name.ljust(width)}  {weight:.3f}" for name, weight in self.weights.items()]
        return "\n".join(["Stacking weights", *lines, *self.notes()])

    __repr__ = __str__


def stack(entries: Sequence[tuple[str, LogProb]]) -> Stacking:
    """Stacking weights of the models whose numbers are densities of one measure, the best one's.

    Arguments:
        entries: Names and answers on the same rows, best first.

    Raises:
        Incomparable: no model has such numbers.
    """
    legal, left = _sorted_out(entries)
    if not legal:
        reasons = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise Incomparable(f"No model can be stacked ({reasons})", "exact or estimated log densities of held-out rows")
    nats = np.stack([answer.nats for answer in legal.values()], axis=1)
    possible = np.isfinite(nats).any(axis=1)
    found = weights_of(nats[possible])
    kinds = {answer.kind for answer in legal.values()}
    kind = Kind.ESTIMATE if Kind.ESTIMATE in kinds else Kind.EXACT
    ordered = dict(sorted(zip(legal, found.tolist(), strict=True), key=lambda pair: -pair[1]))
    unseen, best = _cross_validated(nats), float(nats.mean(axis=0).max())
    return Stacking(ordered, unseen, best, len(nats), int((~possible).sum()), kind, left)


def _sorted_out(entries: Sequence[tuple[str, LogProb]]) -> tuple[dict[str, LogProb], dict[str, str]]:
    """Answers that may be mixed, and why the others may not."""
    legal: dict[str, LogProb] = {}
    left: dict[str, str] = {}
    for name, answer in entries:
        first = next(iter(legal.values()), None)
        if answer.refused.any():
            left[name] = "it has no likelihood for every row"
        elif answer.kind in (Kind.LOWER, Kind.UPPER):
            left[name] = f"a weight of {answer.kind} bounds would measure their tightness, not the model"
        elif answer.kind is Kind.SCORE:
            left[name] = "its score is no likelihood"
        elif first is not None and first.measure != answer.measure:
            left[name] = f"its measure is {answer.measure or 'unknown'}, that of the others {first.measure}"
        else:
            legal[name] = answer
    return legal, left


def weights_of(nats: np.ndarray) -> np.ndarray:
    """The weights w >= 0 of sum 1 with the largest mean log(sum_k w_k exp(nats_ik)), shape (k,).

    Arguments:
        nats: Log densities, shape (n, k), no row of -inf alone.

    Newton's method on w >= 0 alone, as the mean of log(P w) - sum(w) has its maximum at a sum of 1 (Kim, Carbonetto,
    Stephens and Anitescu 2020). It ends when the largest gain that any weight still promises, which bounds what is
    missing, is below 1e-9 nats a row.

    Raises:
        FitError: it does not end.
    """
    n, k = nats.shape
    if not n:
        return np.full(k, 1 / k)
    p = np.exp(nats - nats.max(axis=1, keepdims=True))
    w = np.full(k, 1 / k)
    for _ in range(_ROUNDS):
        shares = p / (p @ w)[:, None]
        gain = shares.mean(axis=0)
        if gain.max() - 1 <= _GAP:
            return w / w.sum()
        w = _searched(p, w, _newton(shares.T @ shares / n, gain - 1, w))
    raise FitError(f"Stacking weights still promise {gain.max() - 1:.1g} nats a row", "a gap of 1e-9", "Report it")


def _newton(curvature: np.ndarray, slope: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The y >= 0 with the largest slope (y - w) - (y - w) curvature (y - w) / 2, a coordinate at a time."""
    y, rest = w.copy(), slope.copy()
    diagonal = curvature.diagonal() + 1e-12
    for _ in range(200):
        moved = 0.0
        for j in range(len(w)):
            step = max(rest[j] / diagonal[j], -y[j])
            y[j] += step
            rest -= step * curvature[j]
            moved = max(moved, abs(step))
        if moved < 1e-13:
            break
    return y


def _searched(p: np.ndarray, w: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The farthest of w + t (y - w), t = 1, 1/2, ..., that is better than w; else a step of EM, which always is."""

    def value(v: np.ndarray) -> float:
        mixed = p @ v
        return float(np.log(mixed).mean() - v.sum()) if (mixed > 0).all() else -math.inf

    begin, t = value(w), 1.0
    while t > 1e-4:
        if value(new := w + t * (y - w)) > begin:
            return new
        t /= 2
    return w * (p / (p @ w)[:, None]).mean(axis=0)


def _cross_validated(nats: np.ndarray) -> float:
    """Mean log density of rows under weights chosen on the other nine tenths, every tenth row a fold."""
    n = len(nats)
    if n < 2 * _FOLDS:
        return math.nan
    fold, total = np.arange(n) % _FOLDS, 0.0
    for i in range(_FOLDS):
        rest = nats[fold != i]
        weights = weights_of(rest[np.isfinite(rest).any(axis=1)])
        with np.errstate(divide="ignore"):
            total += float(np.logaddexp.reduce(nats[fold == i] + np.log(weights), axis=1).sum())
    return total / n
