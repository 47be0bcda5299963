"""Paired differences: two models on the same rows, and an error that knows when rows follow each other in time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from probgen.errors import Incomparable
from probgen.logprob import Kind, LogProb

__all__ = ["Difference", "against_best", "error_of_total"]

_NATS, _ROWS = 4.0, 100


@dataclass(frozen=True)
class Difference:
    """How far one model's total log-likelihood lies from another's, on the same n rows.

    Arguments:
        against: The other model's name.
        total: Of the row-wise differences, in nats; below zero where the other is better.
        error: Standard error of the total, from the spread of the paired rows; NaN where there is none.
        kind: Exact, or what a bound on one side leaves: lower (the true difference is at least this) or upper.
        n: Rows.
    """

    against: str
    total: float
    error: float
    kind: Kind
    n: int

    @property
    def distinguishable(self) -> bool:
        """Whether rows and nats are enough to tell the two apart: at least 100 rows, 4 nats and twice the error, or a
        row that one model calls impossible. With fewer rows or nats the error itself can't be trusted (Sivula,
        Magnusson and Vehtari 2020)."""
        least = max(_NATS, 2 * self.error)
        return math.isinf(self.total) or (abs(self.total) >= least and self.n >= _ROWS)


def against_best(
    name: str, answer: LogProb, ranked: Sequence[tuple[str, LogProb]], lengths: Sequence[int] | None
) -> Difference | None:
    """The difference to the best model that this one compares with; None for that one itself, or where there is none.

    Arguments:
        ranked: Names and answers, best first.
        lengths: Of runs of consecutive steps, where rows are steps; None for independent rows.
    """
    if answer.refused.any():
        return None
    for other, best in ranked:
        if other == name and _leads(name, answer, ranked):
            return None
        difference = None if other == name else _difference(answer, best)
        if difference is not None:
            nats = difference.nats
            return Difference(other, float(nats.sum()), error_of_total(nats, lengths), difference.kind, len(nats))
    return None


def _leads(name: str, answer: LogProb, ranked: Sequence[tuple[str, LogProb]]) -> bool:
    """Whether no model of the same measure ranks higher."""
    return next(other for other, best in ranked if best.measure == answer.measure) == name


def _difference(one: LogProb, other: LogProb) -> LogProb | None:
    """The row-wise difference; None where it bounds nothing, or is undefined in a row."""
    try:
        difference = one - other
    except Incomparable:
        return None
    return None if difference.refused.any() else difference


def error_of_total(values: np.ndarray, lengths: Sequence[int] | None = None) -> float:
    """Standard error of a sum.

    Arguments:
        values: Shape (n,).
        lengths: Of runs of consecutive steps, one after the other; None where the values are independent.

    Steps of one run are correlated: the long-run variance of Newey and West (1987) with Bartlett weights up to lag
    4 (n / 100)^(2/9) (their rule of 1994), no product across two runs. NaN for one value, or an infinite one.
    """
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return math.nan
    centred = values - values.mean()
    variance = float(centred @ centred)
    if lengths is not None:
        most = int(4 * (n / 100) ** (2 / 9))
        for run in _runs(centred, lengths):
            for lag in range(1, min(most, len(run) - 1) + 1):
                variance += 2 * (1 - lag / (most + 1)) * float(run[lag:] @ run[:-lag])
    return math.sqrt(max(variance, 0.0) * n / (n - 1))


def _runs(values: np.ndarray, lengths: Sequence[int]) -> Iterator[np.ndarray]:
    yield from np.split(values, np.cumsum(lengths)[:-1])
