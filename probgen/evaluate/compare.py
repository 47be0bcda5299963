"""Many models, the same held-out rows, one table that says of every number what kind it is."""

import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probgen import frames, store
from probgen.errors import Incomparable, ParameterError
from probgen.events import Event, Ragged
from probgen.logprob import Fingerprint, Kind, LogProb
from probgen.model import Estimator, GenerativeModel

__all__ = ["Comparison", "Entry", "compare", "fit_suitable"]

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
        skipped: Families that do not suit the data, and why.
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
        for entry in self.entries:
            if entry.log_prob.refused.any():
                said.append(f"{entry.name}: {entry.log_prob.reason}. Instead: {entry.log_prob.instead}.")
            elif impossible := int(entry.log_prob.impossible.sum()):
                said.append(f"{entry.name}: {impossible} rows have probability zero.")
        return said + [f"{name} was left out: {reason}." for name, reason in self.skipped.items()]

    def __str__(self) -> str:
        rows = [COLUMNS, *(tuple(format_cell(value) for value in entry.cells().values()) for entry in self.entries)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", *self.notes()])

    __repr__ = __str__


def format_cell(value: Any) -> str:
    """A cell for a terminal: "-" for none, "?" for an error that can't be trusted."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return "?" if math.isnan(value) else f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}"
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

    Raises:
        Incomparable: the models see different rows or variables.
    """
    if not models:
        raise ParameterError("No models", "at least one fitted model by name")
    entries = []
    for name, model in models.items():
        on_start(name)
        began = time.perf_counter()
        lp = model.log_prob(x, by=(by or {}).get(name), seed=seed)
        fit_seconds = model.report.seconds if model.report else math.nan
        entries.append(Entry(name, lp, fit_seconds, time.perf_counter() - began))
    _same_rows([entry.log_prob for entry in entries])
    return Comparison(tuple(sorted(entries, key=lambda entry: entry.rank)), dict(skipped or {}))


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
    """Fits every family that suits an event.

    Arguments:
        families: Names; None tries all.
        budget: Seconds for all families that train on one together; each gets an equal share of what is left.

    Returns:
        Fitted models by family, and the reasons of those left out.
    """
    if not 0 < budget < math.inf:
        raise ParameterError(f"budget={budget}", "a positive number of seconds")
    wanted = [store.family(name) for name in (store.FAMILIES if families is None else families)]
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
        models[family.__name__] = family.for_event(event).fit(x, seed=seed, **options)
        if share is not None:
            sharing -= 1
            left = max(left - (time.perf_counter() - began), 0.05 * budget)
    return models, skipped


def _takes_budget(family: type[GenerativeModel]) -> bool:
    return "budget" in inspect.signature(family._fit).parameters


def panels(
    models: Mapping[str, GenerativeModel], x: Any, event: Event, seed: int, n: int = 64
) -> dict[str, np.ndarray]:
    """The data and as many samples of each model, as arrays to draw."""
    drawn = {"held-out data": event.check(x).x}
    drawn |= {name: event.check(model.sample(n, seed=seed)).x for name, model in models.items()}
    return {title: (cells.values if isinstance(cells, Ragged) else cells).numpy() for title, cells in drawn.items()}
