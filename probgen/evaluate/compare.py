"""Many models, the same held-out rows, one table that says of every number what kind it is."""

import inspect
import math
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from probgen import frames, store
from probgen.errors import (
    BREAKDOWNS,
    Incomparable,
    MissingExtra,
    ParameterError,
    ProbgenError,
    ShapeError,
    StructureError,
)
from probgen.evaluate.judged import COLUMNS as JUDGED
from probgen.evaluate.judged import Judgement, judge, rows_of, why_not
from probgen.evaluate.paired import Difference, against_best, error_of_total
from probgen.events import Category, Checked, Event, Panel, Ragged, Series, Table
from probgen.logprob import Fingerprint, Kind, LogProb
from probgen.model import Estimator, GenerativeModel

__all__ = ["Comparison", "Entry", "compare", "fit_suitable"]

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
        lengths: Of the held-out parts of sequences, where a row is a step; None where rows are independent.
        sequences: Whether a row is a whole sequence.
        judged: What samples of the models show on the same rows, best first; a second table.
        unjudged: Models that samples can't judge, and why.

    The column "vs best" is the log-likelihood of all rows together minus that of the best comparable entry, in nats;
    "paired ±" is the standard error of that difference, from the spread of its rows.
    """

    entries: tuple[Entry, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    lengths: tuple[int, ...] | None = None
    sequences: bool = False
    judged: tuple[Judgement, ...] = ()
    unjudged: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """By name, the paired difference to the best comparable entry; the best itself and refusals have none."""
        ranked = [(entry.name, entry.log_prob) for entry in self.entries if not entry.log_prob.refused.any()]
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
        measures = sorted({entry.log_prob.measure for entry in self.entries if not entry.log_prob.refused.any()})
        said = []
        if len(measures) > 1:
            said.append(f"Measures {' and '.join(measures)} do not compare: rank only within one.")
        kinds = {kind for entry in self.entries for kind in set(entry.log_prob.kinds)}
        if Kind.LOWER in kinds:
            said.append("lower: the true log-likelihood is at least this (so bits/dim is at most this).")
        if any(math.isnan(entry.cells()["Monte Carlo ±"] or 0.0) for entry in self.entries):
            said.append("Monte Carlo ± ?: some rows' weights are too uneven to trust an error; the bound itself holds.")
        said += self._notes_on_differences()
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

    def _notes_on_differences(self) -> list[str]:
        """What a row is, and how far the differences may be trusted."""
        said = []
        if self.lengths is not None:
            said.append(
                "A row is one step, scored given all steps before it; its errors are Newey and West's, as steps that "
                "follow each other are not independent."
            )
        if self.sequences:
            said.append("A row is one whole sequence; bits/dim, a cell, does not depend on their lengths.")
        first = {entry.log_prob.measure: entry.name for entry in reversed(self.entries)}
        for entry in self.entries:
            difference = self.differences.get(entry.name)
            if difference and difference.against != first[entry.log_prob.measure]:
                said.append(f"{entry.name}: vs best is against {difference.against}, the best it compares with.")
        for kind, side in ((Kind.LOWER, "least"), (Kind.UPPER, "most")):
            names = [name for name, difference in self.differences.items() if difference.kind is kind]
            if names:
                said.append(f"{', '.join(names)}: the true difference is at {side} this, as one of the two is a bound.")
        return said + self._too_close()

    def _too_close(self) -> list[str]:
        """Pairs that these rows can't tell apart, a sentence for each best entry."""
        close: dict[str, list[str]] = {}
        for name, difference in self.differences.items():
            if not difference.distinguishable:
                close.setdefault(difference.against, []).append(name)
        n = len(self.entries[0].log_prob)
        said = []
        for best, names in close.items():
            if n < 100:
                few = f"{n} row{'s' * (n != 1)}, fewer than 100: too few to trust paired ±"
                said.append(f"{', '.join(names)}: not surely worse than {best} ({few}).")
            else:
                near = "less than 4 nats, or than twice paired ±"
                said.append(f"{', '.join(names)}: not distinguishable from {best} ({near}).")
        return said

    def texts(self) -> list[dict[str, str]]:
        """The table as text, a dict a family."""
        return [{name: format_cell(value, name) for name, value in self.cells(entry).items()} for entry in self.entries]

    def __str__(self) -> str:
        return "\n".join([*_lines(COLUMNS, self.texts()), "", *self.notes(), *self.by_samples()])

    def by_samples(self) -> list[str]:
        """The second table with its notes, in lines; none where nothing was judged."""
        if not self.judged:
            return []
        rows = [{name: format_cell(v, name) for name, v in row.items()} for row in rows_of(list(self.judged))]
        left = [f"{name} was not judged by samples: {why.rstrip('.')}." for name, why in self.unjudged.items()]
        return ["", "By their samples, on the same rows:", *_lines(JUDGED, rows), "", *_JUDGED_NOTES, *left]

    __repr__ = __str__


_JUDGED_NOTES = (
    "energy: a proper score, lower is better; the one ranking of all families, explicit and implicit.",
    "C2ST: share of rows that a classifier tells from samples, beside that of real rows against real rows.",
    "MMD p: whether a difference is seen; it ranks nothing.",
)


def _lines(columns: tuple[str, ...], texts: list[dict[str, str]]) -> list[str]:
    """A table with heads on two lines, for 120 columns."""
    heads = [["", *textwrap.wrap(name, 8)][-2:] for name in columns]
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


def compare(
    models: Mapping[str, GenerativeModel],
    x: Any,
    *,
    history: Any = None,
    by: Mapping[str, Estimator] | None = None,
    seed: int = 0,
    skipped: Mapping[str, str] | None = None,
    samples: bool = True,
    on_start: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Scores fitted models on the same held-out rows.

    Arguments:
        models: Fitted models by name.
        x: Held-out rows.
        history: Of sequences, the part before ``x``, as many sequences in the same order (of a Panel: of the same
            labels). Each step of ``x`` is then a row of its own, scored given all steps before it.
        by: Estimators by model name, for those that should not take their own way.
        samples: Whether the models are judged by their samples, too, where there are 30 rows or more, without gaps:
            energy score, a classifier test and a kernel test.

    A model that can't score the rows is left out with its reason; the others are compared.

    Raises:
        Incomparable: the models see different rows or variables.
        ParameterError: ``by`` beside ``history``.
        ProbgenError: no model can score the rows; the first one's reason.
    """
    if not models:
        raise ParameterError("No models", "at least one fitted model by name", "Fit one first")
    if by and history is not None:
        raise ParameterError(f"by={by!r} beside history", "one of them: an estimator scores whole rows", "Leave by out")
    lengths: tuple[int, ...] | None = None
    entries: list[Entry] = []
    failed: dict[str, Exception] = {}
    for name, model in models.items():
        on_start(name)
        began = time.perf_counter()
        try:
            if history is None:
                lp = model.log_prob(x, by=(by or {}).get(name), seed=seed)
            else:
                lp, lengths = _continued(model, history, x, seed)
        except BREAKDOWNS as problem:
            failed[name] = problem
            continue
        fit_seconds = model.report.seconds if model.report else math.nan
        entries.append(Entry(name, lp, fit_seconds, time.perf_counter() - began))
    if not entries:
        raise next(iter(failed.values()))
    _same_rows([entry.log_prob for entry in entries])
    reasons = dict(skipped or {}) | {name: f"it could not score: {_reason(p)}" for name, p in failed.items()}
    sequences = history is None and isinstance(next(iter(models.values())).event, Series | Panel)
    event = next(iter(models.values())).event
    judged: list[Judgement] = []
    unjudged: dict[str, str] = {}
    if samples and history is None and why_not(event, len(entries[0].log_prob)) is None:
        kept = {entry.name: models[entry.name] for entry in entries}
        judged, unjudged = judge(kept, x, event, seed)
    ranked = tuple(sorted(entries, key=lambda entry: entry.rank))
    return Comparison(ranked, reasons, lengths, sequences, tuple(judged), unjudged)


def _continued(model: GenerativeModel, history: Any, x: Any, seed: int) -> tuple[LogProb, tuple[int, ...]]:
    """log p(x_t | all earlier steps) of the steps of x, and the lengths of x's sequences."""
    past, held = model.event.check(history), model.event.check(x)
    if not isinstance(held.x, Ragged):
        came = f"A history for {model.event!r}, whose rows are no sequences"
        raise StructureError(came, "events.Series or events.Panel", "Leave history out")
    past = _in_order_of(held, past)
    parts = [part for pair in zip(past.x.split(), held.x.split(), strict=True) for part in pair]
    joined = Ragged(torch.cat(parts), past.x.lengths + held.x.lengths)
    keys = {"keys": held.about.keys} if isinstance(model.event, Panel) else {}
    answer = model.log_prob_steps(model.event.restore(joined, held.form, **keys), seed=seed)
    new = joined.places >= past.x.lengths.repeat_interleave(joined.lengths)
    return answer[new.numpy()], tuple(held.x.lengths.tolist())


def _in_order_of(held: Checked, past: Checked) -> Checked:
    """The past of each held-out sequence, by its key."""
    place = {key: i for i, key in enumerate(past.about.keys.tolist())}
    keys = held.about.keys.tolist()
    if len(place) != len(keys) or not all(key in place for key in keys):
        raise ShapeError(
            f"history of {len(past)} sequences ({', '.join(map(str, list(place)[:3]))}, ...) for {len(held)} to score",
            "the earlier part of each of them",
            "Give one history a sequence, of the same labels",
        )
    return past[[place[key] for key in keys]]


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
        budget: Seconds for all models that train on one together; each gets an equal share of what is left.

    A family may offer several models of itself: ``variants(event)``, options of ``for_event`` by name
    (``{"HMM(2)": {"states": 2}, ...}``).

    Returns:
        Fitted models by name, and the reasons of those left out.

    Raises:
        KeyboardInterrupt: also where a training loop has caught it to keep its best state.
    """
    if not 0 < budget < math.inf:
        raise ParameterError(f"budget={budget}", "a positive number of seconds")
    wanted, skipped = _families(store.FAMILIES if families is None else families)
    skipped |= {family.__name__: why for family in wanted if (why := family.suits(event))}
    suiting = [family for family in wanted if family.__name__ not in skipped]
    fitting = [(family, *variant) for family in suiting for variant in _variants(family, event).items()]
    fitting.sort(key=lambda one: _takes_budget(one[0]))  # closed forms need no budget and come first
    models: dict[str, GenerativeModel] = {}
    sharing = sum(_takes_budget(family) for family, *_ in fitting)
    left = budget
    for family, name, variant in fitting:
        share = left / sharing if _takes_budget(family) else None
        on_start(name, share)
        began = time.perf_counter()
        options = {} if share is None else {"budget": share}
        try:
            if hasattr(family, "learn"):  # its structure comes from the data, too
                models[name] = model = family.learn(x, event=event, prior="bdeu", seed=seed)
            else:
                models[name] = model = family.for_event(event, **variant).fit(x, seed=seed, **options)
            if model.report.stopped == "interrupted":  # type: ignore[union-attr]
                raise KeyboardInterrupt
        except BREAKDOWNS as problem:
            models.pop(name, None)
            skipped[name] = f"it could not be fitted: {_reason(problem)}"
        if share is not None:
            sharing -= 1
            left = max(left - (time.perf_counter() - began), 0.05 * budget)
    return models, skipped


def _families(names: Iterable[str]) -> tuple[list[type[GenerativeModel]], dict[str, str]]:
    """Families by name, and those whose library is not installed with the way to it."""
    found, lacking = [], {}
    for name in dict.fromkeys(names):
        try:
            found.append(store.family(name))
        except MissingExtra as problem:
            lacking[name] = _reason(problem)
    return found, lacking


def _variants(family: type[GenerativeModel], event: Event) -> dict[str, dict[str, Any]]:
    """The models that a family offers for an event; itself, where it says nothing."""
    offered = getattr(family, "variants", None)
    return (offered(event) if offered else None) or {family.__name__: {}}


def _takes_budget(family: type[GenerativeModel]) -> bool:
    return "budget" in inspect.signature(family._fit).parameters


def panels(models: Mapping[str, GenerativeModel], x: Any, event: Event, seed: int) -> dict[str, Any]:
    """The data and as many samples of each model (2 to 2000) to draw, but for models that can't sample.

    Returns:
        By title an array (n, ...); of sequences a list of up to six, each (T, ...), the samples as long as the data
        are on average.
    """
    cells = event.check(x).x
    n = min(max(len(cells), 2), 2000)
    length = None
    if isinstance(cells, Ragged):
        n, length = min(len(cells), 6), round(len(cells.values) / len(cells))
    drawn = {"data" if length else "held-out data": cells}
    for name, model in models.items():
        options = {"length": length} if length and "length" in inspect.signature(model._sample).parameters else {}
        with suppress(*BREAKDOWNS):
            drawn[name] = event.check(model.sample(n, seed=seed, **options)).x
    return {title: _to_draw(cells) for title, cells in drawn.items()}


def _to_draw(cells: Any) -> np.ndarray | Sequence[np.ndarray]:
    return [part.numpy() for part in cells.split()[:6]] if isinstance(cells, Ragged) else cells.numpy()


def column_names(event: Event) -> list[str] | None:
    """Names of the columns of a row or step, where they have any."""
    return list(event.columns) if isinstance(event, Table | Panel) else None


def level_names(event: Event) -> list[tuple[Any, ...] | None] | None:
    """What the codes of each column of a step stand for; None for numbers."""
    if not isinstance(event, Panel):
        return None
    return [c.levels if isinstance(c, Category) else None for c in event.columns.values()]
