"""The summary of scores that never were in memory together."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probgen.evaluate.table.job import SCORES, Stats
from probgen.logprob import Kind
from probgen.logprob.kinds import Summary, weakest

__all__ = ["Tally", "stats_of"]


@dataclass
class Tally:
    """Adds up figures of batches, by the update of Chan, Golub and LeVeque (1983).

    Arguments:
        n, refused, impossible: Rows; those without a number; those of probability zero.
        mean_finite, squares: Mean of the finite log-likelihoods in nats, and the sum of squares about it.
        error: Sum of squared standard errors of rows whose draws are independent; None where nothing is random.
    """

    n: int = 0
    refused: int = 0
    impossible: int = 0
    mean_finite: float = 0.0
    squares: float = 0.0
    error: float | None = None
    kinds: set[str] = field(default_factory=set)
    by: dict[str, None] = field(default_factory=dict)
    reasons: dict[str, None] = field(default_factory=dict)
    about: tuple[str, str, str] = ("x", "p", "")

    @property
    def finite(self) -> int:
        return self.n - self.refused - self.impossible

    def add(self, stats: Stats) -> None:
        """Takes a batch in."""
        old, new = self.finite, stats.n - stats.refused - stats.impossible
        shift = stats.mean - self.mean_finite
        if new:
            self.squares += stats.squares + shift**2 * old * new / (old + new)
            self.mean_finite += shift * new / (old + new)
        self.n, self.refused = self.n + stats.n, self.refused + stats.refused
        self.impossible += stats.impossible
        if stats.error is not None:
            self.error = (self.error or 0.0) + stats.error
        self.kinds.update(stats.kinds)
        self.by.update(dict.fromkeys(stats.by))
        self.reasons.update(dict.fromkeys(stats.reasons))
        self.about = stats.about

    def add_all(self, many: "Iterable[Stats]") -> None:
        for stats in many:
            self.add(stats)

    def mean(self) -> Summary | None:
        """The mean a row in nats; None where no row has a number."""
        n = self.n - self.refused
        if not n:
            return None
        spread = math.sqrt(self.squares / (n - 1) / n) if n > 1 and not self.impossible else math.nan
        value = -math.inf if self.impossible else self.mean_finite
        error = None if self.error is None else math.sqrt(self.error) / n
        kind = weakest([Kind(name) for name in self.kinds])
        return Summary(value, "nats/row", kind, n, error, spread, self.impossible, " | ".join(self.by))

    def __str__(self) -> str:
        of, target, measure = self.about
        refused = f", {self.refused} refused: {'; '.join(self.reasons)}" if self.refused else ""
        if (mean := self.mean()) is None:
            return f"unavailable, {self.n} rows{refused}"
        density = ", density: may be > 0" if "lebesgue" in measure else ""
        about = f"of {of} under {target}, measure {measure or 'unknown'}{density}"
        return f"{mean}{refused}; by {mean.by or 'the model'}; {about}"


def stats_of(table: Any) -> Stats:
    """Figures of scores that an earlier run has written (a pyarrow.Table of their columns).

    A file does not tell "nothing is random" from "no error can be trusted": without any standard error exact numbers
    are taken for the one and others for the other.
    """
    kinds, by, of, target, measure, reasons = (
        tuple(v for v in table.column(name).unique().to_pylist() if v)
        for name in ("kind", "by", "of", "target", "measure", "reason")
    )
    nats, errors = (np.asarray(table.column(name).to_numpy(), dtype=float) for name in SCORES[:2])
    seen = ~np.isnan(nats)
    finite, errors = nats[seen & np.isfinite(nats)], errors[seen]
    mean = float(finite.mean()) if len(finite) else 0.0
    random = bool(set(kinds) - {Kind.EXACT, Kind.UNAVAILABLE}) or not np.isnan(errors).all()
    return Stats(
        len(nats), int((~seen).sum()), int(seen.sum()) - len(finite), mean, float((finite - mean) @ (finite - mean)),
        float(errors @ errors) if random else None, tuple(sorted(kinds)),
        tuple(dict.fromkeys(part for text in by for part in text.split(" | "))), reasons,
        (" | ".join(of), " | ".join(target), " | ".join(measure)),
    )  # fmt: skip
