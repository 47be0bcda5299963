"""Many models, the same held-out rows, one table that says of every number what kind it is."""

import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probgen import frames, store
from probgen.errors import Incomparable, ParameterError, ProbgenError
from probgen.events import Event, Ragged, Table
from probgen.logprob import Fingerprint, Kind, LogProb
from probgen.model import Estimator, GenerativeModel

__all__ = ["Comparison", "Entry", "compare", "fit_suitable"]

# What ends one family's work but not the others': refusals, and numbers that break down (singular matrices, memory)
_BREAKDOWNS = (ProbgenError, RuntimeError, ArithmeticError, MemoryError)
COLUMNS = ("family", "kind", "nats/row", "Monte Carlo ±", "between rows ±", "bits/dim", "by", "fit s")


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
    def rank(self) -> tuple[bool, str, float]:
        """Refusals last; within a measure, higher log-likelihood first."""
        lp = self.log_prob
        refused = bool(lp.refused.any())
        return refused, lp.measure, 0.0 if refused else -lp.mean().value

    def cells(self) -> dict[str, Any]:
        """The entry as a row of the table; None where there is no number."""
        lp = self.log_prob
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"family": self.name, "kind": str(lp.kind), "by": lp.by or None, "fit s": self.fit_seconds}
        if lp.refused.any():
            return row
        mean = lp.mean()
        row |= {"nats/row": mean.value, "Monte Carlo ±": mean.monte_carlo, "between rows ±": mean.between_rows}
        try:
            row["bits/dim"] = lp.bits_per_dim().value
        except Incomparable:
            row["bits/dim"] = None
        return row


@dataclass(frozen=True)
class Comparison:
    """Models on the same rows. Printing it shows the table; blocks of other measures are never ranked together.

    Arguments:
        entries: Best first; refusals last.
        skipped: Families that do not suit the data or could not be fitted or scored, and why.
    """

    entries: tuple[Entry, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def frame(self) -> Any:
        """The table, a row a family (pyarrow.Table)."""
        rows = [entry.cells() | {"measure": entry.log_prob.measure} for entry in self.entries]
        return frames.table({name: [row[name] for row in rows] for name in rows[0]})

    def scores(self) -> Any:
        """One row per held-out row and family (pyarrow.Table): family and the columns of LogProb.frame."""
        parts = []
        for entry in self.entries:
            part = entry.log_prob.frame()
            parts.append(part.add_column(0, "family", [[entry.name] * part.num_rows]))
        return frames.stack(parts)

    def notes(self) -> list[str]:
        """What a reader of the table should know, in sentences."""
        measures = sorted({entry.log_prob.measure for entry in self.entries if not entry.log_prob.refused.any()})
        said = []
        if len(measures) > 1:
            said.append(f"Measures {' and '.join(measures)} do not compare: rank only within one.")
        kinds = {kind for entry in self.entries for kind in set(entry.log_prob.kinds)}
        if Kind.LOWER in kinds:
            said.append("lower: the true log-likelihood is at least this (so bits/dim is at most this).")
        if any(math.isnan(entry.cells()["Monte Carlo ±"] or 0.0) for entry in self.entries):
            said.append("Monte Carlo ± ?: some rows' weights are too uneven to trust an error; the bound itself holds.")
        if any(len(entry.log_prob) == 1 for entry in self.entries):
            said.append("between rows ± ?: one row shows no spread between rows.")
        if any(
            (entry.cells()["nats/row"] or 0.0) > 0 and "lebesgue" in entry.log_prob.measure for entry in self.entries
        ):
            said.append("nats/row above 0 are densities above 1; they depend on the units of the data.")
        for entry in self.entries:
            if entry.log_prob.refused.any():
                said.append(f"{entry.name}: {entry.log_prob.reason}. Instead: {entry.log_prob.instead}.")
            elif impossible := int(entry.log_prob.impossible.sum()):
                said.append(f"{entry.name}: {impossible} rows have probability zero.")
        return said + [f"{name} was left out: {reason.rstrip('.')}." for name, reason in self.skipped.items()]

    def texts(self) -> list[dict[str, str]]:
        """The table as text, a dict a family."""
        return [{name: format_cell(value, name) for name, value in entry.cells().items()} for entry in self.entries]

    def __str__(self) -> str:
        rows = [COLUMNS, *(tuple(row.values()) for row in self.texts())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", *self.notes()])

    __repr__ = __str__


def format_cell(value: Any, column: str) -> str:
    """A cell for a terminal: "-" for none, "?" for an error that can't be trusted."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return "?" if math.isnan(value) else f"{value:.1f}" if column == "fit s" else f"{value:.3f}"
    return str(value)


def compare(
    models: Mapping[str, GenerativeModel],
    x: Any,
    *,
    by: Mapping[str, Estimator] | None = None,
    seed: int = 0,
    skipped: Mapping[str, str] | None = None,
    on_start: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Scores fitted models on the same held-out rows.

    Arguments:
        models: Fitted models by name.
        x: Held-out rows.
        by: Estimators by model name, for those that should not take their own way.

    A model that can't score the rows is left out with its reason; the others are compared.

    Raises:
        Incomparable: the models see different rows or variables.
        ProbgenError: no model can score the rows; the first one's reason.
    """
    if not models:
        raise ParameterError("No models", "at least one fitted model by name", "Fit one first")
    entries: list[Entry] = []
    failed: dict[str, Exception] = {}
    for name, model in models.items():
        on_start(name)
        began = time.perf_counter()
        try:
            lp = model.log_prob(x, by=(by or {}).get(name), seed=seed)
        except _BREAKDOWNS as problem:
            failed[name] = problem
            continue
        fit_seconds = model.report.seconds if model.report else math.nan
        entries.append(Entry(name, lp, fit_seconds, time.perf_counter() - began))
    if not entries:
        raise next(iter(failed.values()))
    _same_rows([entry.log_prob for entry in entries])
    reasons = dict(skipped or {}) | {name: f"it could not score: {_reason(p)}" for name, p in failed.items()}
    return Comparison(tuple(sorted(entries, key=lambda entry: entry.rank)), reasons)


def _reason(problem: Exception) -> str:
    """Why a family was left out, in a line."""
    text = " ".join(str(problem).split())
    return text if isinstance(problem, ProbgenError) else f"{type(problem).__name__}: {text}"


def _same_rows(answers: list[LogProb]) -> None:
    prints: list[Fingerprint] = [lp.event for lp in answers if lp.event is not None]
    if any(not prints[0].same_rows(other) for other in prints[1:]) or len({lp.of for lp in answers}) > 1:
        raise Incomparable(
            "The models read the rows differently, or score different variables",
            "models fitted to one event",
            "Fit them all with for_event(event) of the same event",
        )


def fit_suitable(
    x: Any,
    event: Event,
    *,
    families: Iterable[str] | None = None,
    budget: float = 60.0,
    seed: int = 0,
    on_start: Callable[[str, float | None], None] = lambda name, seconds: None,
) -> tuple[dict[str, GenerativeModel], dict[str, str]]:
    """Fits every family that suits an event. One that fails is left out with its reason; the others go on.

    Arguments:
        families: Names; None tries all.
        budget: Seconds for all families that train on one together; each gets an equal share of what is left.

    Returns:
        Fitted models by family, and the reasons of those left out.

    Raises:
        KeyboardInterrupt: also where a training loop has caught it to keep its best state.
    """
    if not 0 < budget < math.inf:
        raise ParameterError(f"budget={budget}", "a positive number of seconds")
    wanted = [store.family(name) for name in dict.fromkeys(store.FAMILIES if families is None else families)]
    skipped = {family.__name__: why for family in wanted if (why := family.suits(event))}
    fitting = [family for family in wanted if family.__name__ not in skipped]
    fitting.sort(key=_takes_budget)  # closed forms need no budget and come first
    models: dict[str, GenerativeModel] = {}
    sharing = sum(map(_takes_budget, fitting))
    left = budget
    for family in fitting:
        share = left / sharing if _takes_budget(family) else None
        on_start(family.__name__, share)
        began = time.perf_counter()
        options = {} if share is None else {"budget": share}
        try:
            models[family.__name__] = model = family.for_event(event).fit(x, seed=seed, **options)
            if model.report.stopped == "interrupted":  # type: ignore[union-attr]
                raise KeyboardInterrupt
        except _BREAKDOWNS as problem:
            skipped[family.__name__] = f"it could not be fitted: {_reason(problem)}"
        if share is not None:
            sharing -= 1
            left = max(left - (time.perf_counter() - began), 0.05 * budget)
    return models, skipped


def _takes_budget(family: type[GenerativeModel]) -> bool:
    return "budget" in inspect.signature(family._fit).parameters


def panels(models: Mapping[str, GenerativeModel], x: Any, event: Event, seed: int) -> dict[str, np.ndarray]:
    """The data and as many samples of each model (2 to 2000), as arrays to draw, but for models that can't sample."""
    drawn = {"held-out data": event.check(x).x}
    n = min(max(len(drawn["held-out data"]), 2), 2000)
    for name, model in models.items():
        with suppress(*_BREAKDOWNS):
            drawn[name] = event.check(model.sample(n, seed=seed)).x
    return {title: (cells.values if isinstance(cells, Ragged) else cells).numpy() for title, cells in drawn.items()}


def column_names(event: Event) -> list[str] | None:
    """Names of the columns of a row, where they have any."""
    return list(event.columns) if isinstance(event, Table) else None
