"""Paired differences: two models on the same rows, and an error that knows when rows follow each other in time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from probgen.errors import Incomparable
from probgen.logprob import Kind, LogProb

__all__ = ["LEAST_NATS", "LEAST_ROWS", "Difference", "against_best", "error_of_total", "paired"]

LEAST_NATS, LEAST_ROWS = 4.0, 100  # below which an error of a difference is itself a guess


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
        least = max(LEAST_NATS, 2 * self.error)
        return math.isinf(self.total) or (abs(self.total) >= least and self.n >= LEAST_ROWS)


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
        if other == name:
            continue
        try:
            return paired(answer, best, other, lengths)
        except Incomparable:
            continue
    return None


def _leads(name: str, answer: LogProb, ranked: Sequence[tuple[str, LogProb]]) -> bool:
    """Whether no model of the same measure ranks higher."""
    return next(other for other, best in ranked if best.measure == answer.measure) == name


def paired(answer: LogProb, best: LogProb, against: str, lengths: Sequence[int] | None = None) -> Difference:
    """The total difference of two models on the same rows, and its error.

    Draws that rows share (of one posterior, say) move all rows together, which the spread between rows can't show: what
    they add to the Monte Carlo error of the total beyond independent rows is added to it.

    Raises:
        Incomparable: it bounds nothing, or is undefined in a row: impossible under both, or a refusal.
    """
    ratio = answer.replace(target="p") - best.replace(target="p")  # each model's own distribution: rows are what agree
    if ratio.refused.any():
        count = int(ratio.refused.sum())
        raise Incomparable(
            f"{count} of {len(ratio)} rows have no difference: {ratio.reason}", "a number for every row under one model"
        )
    nats = ratio.nats
    if np.isposinf(nats).any() and np.isneginf(nats).any():
        ways = (int(np.isneginf(nats).sum()), int(np.isposinf(nats).sum()))
        raise Incomparable(
            f"each calls rows impossible that the other does not ({ways[0]} and {ways[1]} of {len(nats)})",
            "rows that are possible under one of the two",
        )
    error = math.hypot(error_of_total(nats, lengths), _shared_error(ratio))
    return Difference(against, float(nats.sum()), error, ratio.kind, len(nats))


def _shared_error(ratio: LogProb) -> float:
    """Monte Carlo error of the total beyond that of rows with draws of their own; 0 where an error can't be told."""
    together = ratio.sum().monte_carlo
    if together is None or ratio.stderr is None or math.isnan(together):
        return 0.0
    return math.sqrt(max(together**2 - float(ratio.stderr @ ratio.stderr), 0.0))


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
