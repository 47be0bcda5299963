"""One table of many models on the same rows, that says of every number what kind it is."""

import math
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any

from probgen import frames
from probgen.errors import Incomparable
from probgen.evaluate.claims import Claim, claims_of
from probgen.evaluate.coherence import Coherence, coherence_lines
from probgen.evaluate.judged import COLUMNS as JUDGED
from probgen.evaluate.judged import Judgement, rows_of
from probgen.evaluate.notes import JUDGED_NOTES, notes_of, unjudged
from probgen.evaluate.paired import Difference, against_best, error_of_total
from probgen.evaluate.stacking import Stacking, stack
from probgen.logprob import Kind, LogProb
from probgen.plots.report import differences as draw_differences

__all__ = ["COLUMNS", "Comparison", "Entry", "format_cell"]

COLUMNS = (
    "family", "kind", "nats/row", "between rows ±", "vs best", "paired ±", "Monte Carlo ±", "bits/dim", "fit s", "by",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One model's answer.

    Arguments:
        name: In the table.
        log_prob: Of the held-out rows, or a refusal.
        fit_seconds, score_seconds: Wall time.
    """

    name: str
    log_prob: LogProb
    fit_seconds: float = math.nan
    score_seconds: float = math.nan

    @property
    def rank(self) -> tuple[bool, bool, str, float]:
        """Refusals last, before them unknown measures; within a measure, higher log-likelihood first."""
        lp = self.log_prob
        refused = bool(lp.refused.any())
        return refused, not lp.measure, lp.measure, 0.0 if refused else -lp.mean().value

    @property
    def rate(self) -> str:
        """Of text bits a byte, of everything else bits a cell."""
        return "bits/dim" if self.log_prob.event is None or self.log_prob.event.bytes is None else "bits/byte"

    def cells(self) -> dict[str, Any]:
        """The entry as a row of the table; None where there is no number."""
        lp = self.log_prob
        row: dict[str, Any] = dict.fromkeys(self.rate if name == "bits/dim" else name for name in COLUMNS)
        row |= {"family": self.name, "kind": str(lp.kind), "by": lp.by or None, "fit s": self.fit_seconds}
        if lp.refused.any():
            return row
        mean = lp.mean()
        row |= {"nats/row": mean.value, "Monte Carlo ±": mean.monte_carlo, "between rows ±": mean.between_rows}
        with suppress(Incomparable):
            row[self.rate] = lp.bits_per_dim().value  # the cells of a text are its bytes
        return row


@dataclass(frozen=True)
class Comparison:
    """Models on the same rows. Printing it shows the table; blocks of other measures are never ranked together.

    Arguments:
        entries: Best first; refusals last.
        skipped: Families that do not suit the data or could not be fitted or scored, and why.
        lengths: Of the held-out parts of sequences, where a row is a step; None where rows are independent.
        sequences: Whether a row is a whole sequence.
        judged: What samples of the models show on the same rows, best first; a second table.
        unjudged: Models that samples can't judge, and why.
        matched: How the rows of ready answers were found to be the same, in sentences.
        seed: Of all draws.
        gaps: What missing cells of the rows did to the comparison, in a sentence.
        coherence: By model, whether the parts of what it draws belong together; only of records with labels.

    The column "vs best" is the log-likelihood of all rows together minus that of the best comparable entry, in nats;
    "paired ±" is the standard error of that difference, from the spread of its rows.
    """

    entries: tuple[Entry, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    lengths: tuple[int, ...] | None = None
    sequences: bool = False
    judged: tuple[Judgement, ...] = ()
    unjudged: Mapping[str, str] = field(default_factory=dict)
    matched: tuple[str, ...] = ()
    seed: int | None = None
    gaps: str = ""
    coherence: Mapping[str, Coherence] = field(default_factory=dict)

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """By name, the paired difference to the best comparable entry; the best itself and refusals have none."""
        ranked = [(name, answer) for name, answer in self._answers() if not answer.refused.any()]
        found = {name: against_best(name, answer, ranked, self.lengths) for name, answer in ranked}
        return {name: difference for name, difference in found.items() if difference is not None}

    def cells(self, entry: Entry) -> dict[str, Any]:
        """A row of the table; None where there is no number."""
        row = entry.cells()
        if self.lengths is not None and row["nats/row"] is not None:
            row["between rows ±"] = error_of_total(entry.log_prob.nats, self.lengths) / len(entry.log_prob)
        if difference := self.differences.get(entry.name):
            row |= {"vs best": difference.total, "paired ±": difference.error}
        return row

    def frame(self) -> Any:
        """The table, a row a family (pyarrow.Table)."""
        rows = [
            self.cells(entry)
            | {"measure": entry.log_prob.measure, "against": getattr(self.differences.get(entry.name), "against", None)}
            for entry in self.entries
        ]
        return frames.table({name: [row[name] for row in rows] for name in rows[0]})

    def samples(self) -> Any:
        """The table of what samples show, a row a family (pyarrow.Table); None where none were judged."""
        rows = rows_of(list(self.judged))
        return frames.table({name: [row[name] for row in rows] for name in JUDGED}) if rows else None

    def scores(self) -> Any:
        """One row per held-out row and family (pyarrow.Table): family and the columns of LogProb.frame."""
        parts = []
        for entry in self.entries:
            part = entry.log_prob.frame()
            parts.append(part.add_column(0, "family", [[entry.name] * part.num_rows]))
        return frames.stack(parts)

    def notes(self) -> list[str]:
        """What a reader of the table should know, in sentences."""
        return notes_of(self)

    def claims(self) -> list[Claim]:
        """What the rows say of each pair of models of one measure, as sentences: shown, undecided, or not to be told.

        Bounds give one-sided claims ("at least 4.1 nats a row better"). A difference of less than 4 nats in all, or
        than twice its paired error, or on fewer than 100 rows, is "not distinguishable".
        """
        return claims_of(self._answers(), self.lengths)

    def stacking(self) -> Stacking:
        """Weights of the mixture of these models that predicts the rows best (Yao et al. 2018), of exact and estimated
        numbers of one measure; bounds, scores and refusals are left out with the reason.

        Raises:
            Incomparable: no model has such numbers.
        """
        return stack(self._answers())

    def _answers(self) -> list[tuple[str, LogProb]]:
        return [(entry.name, entry.log_prob) for entry in self.entries]

    def plot(self, path: str | PathLike) -> None:
        """Each model's difference to the best one it compares with, with intervals of two standard errors, as PNG.

        A bound is an arrow that points where the true difference may be.

        Raises:
            Incomparable: no two models compare.
        """
        draw_differences(self.intervals(), path)

    def intervals(self) -> list[tuple[str, str, float, float, int]]:
        """Of each model that compares with a better one: names of both, nats in all, their error, and the side of a
        bound: 1 where the true difference is at least that, -1 where at most, else 0.

        Raises:
            Incomparable: no two models compare.
        """
        sides = {Kind.LOWER: 1, Kind.UPPER: -1}
        found = [(n, d.against, d.total, d.error, sides.get(d.kind, 0)) for n, d in self.differences.items()]
        if not found:
            raise Incomparable("No two models here compare", "two with numbers of one measure", "Read .notes()")
        return found

    def texts(self) -> list[dict[str, str]]:
        """The table as text, a dict a family."""
        return [{name: format_cell(value, name) for name, value in self.cells(entry).items()} for entry in self.entries]

    def __str__(self) -> str:
        table = _lines(tuple(self.texts()[0]), self.texts())
        return "\n".join([*table, "", *self.notes(), *self.by_samples(), *coherence_lines(self.coherence)])

    def by_samples(self) -> list[str]:
        """The second table with its notes, in lines; where nothing was judged the reasons, each once."""
        left = unjudged(self)
        if not self.judged:
            return left
        rows = [{name: format_cell(v, name) for name, v in row.items()} for row in rows_of(list(self.judged))]
        return ["", "By their samples, on the same rows:", *_lines(JUDGED, rows), "", *JUDGED_NOTES, *left]

    def _repr_html_(self) -> str:
        from probgen.evaluate.report.tables import notebook

        return notebook(self)

    __repr__ = __str__


def _lines(columns: tuple[str, ...], texts: list[dict[str, str]]) -> list[str]:
    """A table with heads on two lines, for 120 columns."""
    heads = [["", *textwrap.wrap(name, 8, break_long_words=False)][-2:] for name in columns]
    rows = [*zip(*heads, strict=True), *(tuple(row.values()) for row in texts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_cell(value: Any, column: str) -> str:
    """A cell for a terminal: "-" for none, "?" for an error that can't be trusted."""
    if value is None:
        return "-"
    if isinstance(value, float):
        places = 1 if column in ("fit s", "vs best", "paired ±") else 3
        return "?" if math.isnan(value) else f"{value:.{places}f}"
    return str(value)
