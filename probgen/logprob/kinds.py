"""What a number claims, and what is left of the claim when numbers are put together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from probgen.errors import Incomparable, ParameterError

RATIO = "ratio"  # the measure of a difference: a pure number


class Kind(StrEnum):
    """What a likelihood claims, from the strongest claim to the weakest."""

    EXACT = "exact"
    LOWER = "lower"
    UPPER = "upper"
    ESTIMATE = "estimate"
    SCORE = "score"  # no likelihood: ranks only among its own
    UNAVAILABLE = "unavailable"


_STRENGTH = {kind: i for i, kind in enumerate(Kind)}
_BIAS = {
    Kind.EXACT: "none",
    Kind.LOWER: "at or below the truth, in expectation",
    Kind.UPPER: "at or above the truth, in expectation",
    Kind.ESTIMATE: "of unknown side",
    Kind.SCORE: "not a likelihood",
    Kind.UNAVAILABLE: "no number",
}
_E, _L, _U, _S = Kind.EXACT, Kind.LOWER, Kind.UPPER, Kind.ESTIMATE
_DIFFERENCE = {
    (_E, _E): _E, (_E, _L): _U, (_E, _U): _L, (_E, _S): _S,
    (_L, _E): _L, (_L, _U): _L,
    (_U, _E): _U, (_U, _L): _U,
    (_S, _E): _S, (_S, _S): _S,
    (Kind.SCORE, Kind.SCORE): Kind.SCORE,
}  # fmt: skip


def weakest(kinds: Sequence[Kind]) -> Kind:
    """The weakest claim; raises Incomparable where a lower meets an upper bound, or a score anything else."""
    claims = set(kinds) - {Kind.UNAVAILABLE}
    if {Kind.LOWER, Kind.UPPER} <= claims:
        raise Incomparable(
            "A lower bound was put together with an upper bound",
            "numbers whose errors lie on one side",
            "Bound both from the same side, or use exact numbers",
        )
    if Kind.SCORE in claims and len(claims) > 1:
        raise Incomparable("A score was put together with a likelihood", "scores among themselves", "Keep them apart")
    return max(kinds, key=_STRENGTH.__getitem__)


def difference_kind(a: Kind, b: Kind) -> Kind:
    if Kind.UNAVAILABLE in (a, b):
        return Kind.UNAVAILABLE
    if (a, b) not in _DIFFERENCE:
        raise Incomparable(
            f"A number of kind {a} minus one of kind {b} bounds nothing on either side",
            "exact - anything, anything - exact, lower - upper or upper - lower",
            "Score one of the two with an exact or opposite-sided estimator",
        )
    return _DIFFERENCE[a, b]


def kinds_of_rows(kinds: Any, n: int) -> np.ndarray:
    """One Kind a row from one for all, or from n."""
    rows = np.empty(n, dtype=object)
    if not isinstance(kinds, str) and len(kinds) != n:
        raise ParameterError(f"{len(kinds)} kinds for {n} rows", f"one Kind, or {n}", "Give one kind for all rows")
    try:
        known = {} if isinstance(kinds, str) else {kind: Kind(kind) for kind in set(kinds)}
        rows[:] = Kind(kinds) if isinstance(kinds, str) else [known[kind] for kind in kinds]
    except (TypeError, ValueError) as problem:
        raise ParameterError(str(problem), f"one of {', '.join(Kind)}", "Use probgen.Kind") from problem
    return rows


@dataclass(frozen=True)
class Summary:
    """A sum or mean of log-likelihoods with its errors kept apart.

    Arguments:
        value: The number, in ``unit``: nats, nats/row, bits/dim or bits/byte.
        kind: What the number is. In bits a lower bound on log p has become an upper bound on the code length.
        monte_carlo: Standard error from the estimator's own draws; None where nothing is random, NaN where none can
            be trusted.
        between_rows: Standard error from the choice of rows; NaN for a single row.
        impossible: Rows of probability zero.
    """

    value: float
    unit: str
    kind: Kind
    n: int
    monte_carlo: float | None
    between_rows: float
    impossible: int = 0
    by: str = ""

    def __float__(self) -> float:
        return self.value

    @property
    def bias(self) -> str:
        """Where the number lies, seen from the truth."""
        return _BIAS[self.kind]

    def __str__(self) -> str:
        parts = [str(self.kind)]
        if self.monte_carlo is not None:
            parts.append("Monte Carlo ± " + ("?" if math.isnan(self.monte_carlo) else f"{self.monte_carlo:.2g}"))
        if not math.isnan(self.between_rows):
            parts.append(f"between rows ± {self.between_rows:.2g}")
        if self.impossible:
            parts.append(f"{self.impossible} impossible rows")
        return f"{self.value:.4f} {self.unit} ({', '.join(parts)}; n={self.n})"
