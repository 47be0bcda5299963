"""What may be said of each pair of models, as sentences that claim no more than their numbers do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from probgen.errors import Incomparable
from probgen.evaluate.paired import LEAST_NATS, LEAST_ROWS, Difference, paired
from probgen.logprob import Kind, LogProb

__all__ = ["Claim", "claims_of"]

_SIDES = {Kind.LOWER: "lower", Kind.UPPER: "upper"}


@dataclass(frozen=True)
class Claim:
    """What the rows say of two models.

    Arguments:
        better, worse: Their names; in the order of the table where neither is shown to be better.
        verdict: "better", shown; "not distinguishable"; "undecided", where a bound lies on the wrong side;
            "incomparable", where the difference bounds nothing or is undefined.
        difference: Of the better less the worse; None where incomparable.
        text: The sentence.

    Printing it shows the sentence.
    """

    better: str
    worse: str
    verdict: Literal["better", "not distinguishable", "undecided", "incomparable"]
    difference: Difference | None
    text: str

    def __str__(self) -> str:
        return self.text


def claims_of(entries: Sequence[tuple[str, LogProb]], lengths: Sequence[int] | None = None) -> list[Claim]:
    """A claim for each pair of models with a number of one measure, best first.

    Arguments:
        entries: Names and answers, best first.
        lengths: Of runs of consecutive steps, where rows are steps.

    Each pair is judged by itself, at twice its paired error: of twenty pairs of equal models about one is told apart.
    """
    ranked = [(name, answer) for name, answer in entries if not answer.refused.any()]
    return [_claim(a, b, lengths) for a, b in combinations(ranked, 2) if a[1].measure == b[1].measure]


def _claim(a: tuple[str, LogProb], b: tuple[str, LogProb], lengths: Sequence[int] | None) -> Claim:
    (one, first), (two, second) = a, b
    try:
        difference = paired(first, second, two, lengths)
    except Incomparable as problem:
        return Claim(one, two, "incomparable", None, f"{one} and {two}: no claim, {_why(first, second, problem)}.")
    if difference.total < 0:  # a tie in the table, or measures of equal rank
        (one, first), (two, second) = b, a
        difference = paired(first, second, two, lengths)
    if difference.kind is Kind.UPPER:  # the true difference is at most this
        return Claim(one, two, "undecided", difference, _undecided(one, two, first, second, difference))
    if not difference.distinguishable:
        return Claim(one, two, "not distinguishable", difference, f"{one} and {two} are not {_close(difference)}.")
    return Claim(one, two, "better", difference, _better(one, two, second, difference))


def _why(first: LogProb, second: LogProb, problem: Incomparable) -> str:
    kinds = {first.kind, second.kind}
    if len(kinds) == 1 and kinds <= set(_SIDES):
        side = _SIDES[first.kind]
        return f"as both are {side} bounds and their difference bounds nothing"
    return problem.came[:1].lower() + problem.came[1:].rstrip(".")


def _better(one: str, two: str, worse: LogProb, difference: Difference) -> str:
    """The sentence of a difference that is shown."""
    if math.isinf(difference.total):
        count = int(np.isneginf(worse.nats).sum())
        return f"{one} is better than {two}, which calls {count} of {difference.n} rows impossible."
    how = {Kind.LOWER: "at least ", Kind.ESTIMATE: "about "}.get(difference.kind, "")
    unit = "points a row (a score, no likelihood)" if difference.kind is Kind.SCORE else "nats a row"
    each = _short(difference.total / difference.n)
    return f"{one} is {how}{each} {unit} better than {two} ({_total(difference)})."


def _close(difference: Difference) -> str:
    """Why two models are not told apart."""
    if difference.n < LEAST_ROWS:
        few = f"{difference.n} row{'s' * (difference.n != 1)}, fewer than {LEAST_ROWS}"
        return f"distinguishable: {few}, can't show a difference of {_total(difference, rows=False)}"
    limit = f"{LEAST_NATS:g} nats" if abs(difference.total) < LEAST_NATS else "twice its error"
    side = ", and no more is claimed as one is a bound" if difference.kind in _SIDES else ""
    return f"distinguishable: {_total(difference)}, less than {limit}{side}"


def _undecided(one: str, two: str, first: LogProb, second: LogProb, difference: Difference) -> str:
    bound = two if second.kind is Kind.LOWER else one
    kind = "an upper" if bound == one and first.kind is Kind.UPPER else "a lower"
    most = "any amount" if math.isinf(difference.total) else f"{_short(difference.total / difference.n)} nats a row"
    return f"{one} or {two}: undecided. {one} is at most {most} better, as {bound} has only {kind} bound."


def _total(difference: Difference, rows: bool = True) -> str:
    error = "" if math.isnan(difference.error) else f" ± {_short(difference.error, 2)}"
    among = f" on {difference.n} rows" if rows else ""
    return f"{_short(difference.total)}{error} nats in all{among}"


def _short(value: float, digits: int = 3) -> str:
    """Without powers of ten where none are needed; what is rounding alone is 0."""
    if abs(value) < 1e-9:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
