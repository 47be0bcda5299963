"""Many models, or answers that are there already, on the same held-out rows."""

import math
import time
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from probgen import store
from probgen.errors import BREAKDOWNS, DataError, ParameterError, ShapeError, StructureError
from probgen.evaluate.answers import check_models, in_order, ready, same_rows
from probgen.evaluate.coherence import Coherence, coherence_of
from probgen.evaluate.comparison import Comparison, Entry, format_cell
from probgen.evaluate.complete import barred, incomplete, left_out, offered
from probgen.evaluate.complete import complete_rows as leave_incomplete
from probgen.evaluate.drawing import column_names, level_names, panels
from probgen.evaluate.fitting import fit_suitable, reason_of
from probgen.evaluate.judged import Judgement, judge, why_not
from probgen.events import Checked, Event, Panel, Ragged, Series
from probgen.logprob import LogProb
from probgen.model import Estimator, GenerativeModel

__all__ = [
    "Comparison", "Entry", "column_names", "compare", "fit_suitable", "format_cell", "level_names", "panels",
]  # fmt: skip


def compare(
    models: Mapping[str, GenerativeModel | LogProb | str | PathLike | Any],
    x: Any = None,
    *,
    history: Any = None,
    by: Mapping[str, Estimator] | None = None,
    seed: int = 0,
    skipped: Mapping[str, str] | None = None,
    samples: bool = True,
    complete_rows: bool = False,
    labels: Any = None,
    train: Any = None,
    on_start: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Scores fitted models on the same held-out rows.

    Arguments:
        models: By name, fitted models, or folders of saved ones; or ready answers to stand beside them: a LogProb, a
            result of ``pg.loo``, or a table of a LogProb's columns (a frame, or a file that ``probgen score -o``
            wrote), whose rows are matched by their keys.
        x: Held-out rows; None where all answers are ready.
        history: Of sequences, the part before ``x``, as many sequences in the same order (of a Panel: of the same
            labels). Each step of ``x`` is then a row of its own, scored given all steps before it.
        by: Estimators by model name, for those that should not take their own way.
        samples: Whether the models are judged by their samples, too, where there are 30 rows or more, without gaps:
            energy score, a classifier test and a kernel test.
        complete_rows: Whether rows with missing cells are left out, which is said in the notes: some families, and all
            judgements by samples, need every cell. Ready answers of all rows are then read at the others.
        labels: Of held-out records: labels, or a ``datasets.Question`` that their texts answer. What the models draw is
            then judged by its coherence, too, in a table of its own.
        train: Records from which the judges of their parts are learnt; beside plain labels a pair (records, labels).

    A model that can't score the rows is left out with its reason; the others are compared.

    Raises:
        Incomparable: the models see different rows or variables, or some answers are leave-one-out and others not.
        ParameterError: ``by`` beside ``history``; neither a model nor an answer; a model without rows.
        DataError: a table without the columns of a LogProb.
        ProbgenError: no model can score the rows; the first one's reason.
    """
    if not isinstance(models, Mapping) or not models:
        came = f"models of type {type(models).__name__}" if models else "No models"
        raise ParameterError(came, "at least one fitted model by name: {'mine': model}", "Fit one first, and name it")
    models = {name: _opened(model) for name, model in models.items()}
    if by and history is not None:
        raise ParameterError(f"by={by!r} beside history", "one of them: an estimator scores whole rows", "Leave by out")
    given = {name: answer for name, model in models.items() if (answer := ready(name, model)) is not None}
    check_models(models, list(given), GenerativeModel, x)
    fitted = {name: model for name, model in models.items() if isinstance(model, GenerativeModel)}
    event: Event | None = next(iter(fitted.values())).event if fitted else None
    said = ""
    if complete_rows and event is not None:
        x, history, given, said = _completed(event, x, history, given)
    scored, failed, lengths = _scored(fitted, x, history, by or {}, seed, on_start)
    all_of_them = given | {name: answer for name, (answer, _) in scored.items()}
    answers, matched = in_order({name: all_of_them[name] for name in models if name in all_of_them})
    same_rows(answers)
    seconds = {name: taken for name, (_, taken) in scored.items()}
    entries = [_entry(name, lp, fitted.get(name), seconds.get(name, math.nan)) for name, lp in answers.items()]
    reasons = dict(skipped or {}) | {name: f"it could not score: {reason_of(p)}" for name, p in failed.items()}
    judged: list[Judgement] = []
    unjudged: dict[str, str] = {}
    if samples and event is not None and history is None and why_not(event, len(entries[0].log_prob)) is None:
        judged, unjudged = judge({name: fitted[name] for name in scored}, x, event, seed)
    coherence: dict[str, Coherence] = {}
    if labels is not None:
        drawn_from = {name: fitted[name] for name in scored}
        coherence, incoherent = coherence_of(drawn_from, x, labels, train=train, seed=seed)
        unjudged |= incoherent
    if event is not None and barred([*reasons.values(), *unjudged.values()]):
        said = said or offered(incomplete(event.check(x)))
    return Comparison(
        tuple(sorted(entries, key=lambda entry: entry.rank)), reasons, lengths,
        history is None and isinstance(event, Series | Panel), tuple(judged), unjudged, tuple(matched), seed, said,
        coherence,
    )  # fmt: skip


def _completed(event: Event, x: Any, history: Any, given: Mapping[str, LogProb]) -> tuple[Any, Any, dict, str]:
    """Complete rows, ready answers at them, and what to say of the others."""
    if history is not None:
        came = "complete_rows=True beside history"
        raise ParameterError(came, "one of them: the steps of a sequence hang together", "Leave complete_rows out")
    rows, kept = leave_incomplete(event, x)
    answers = {name: answer[kept] if len(answer) == len(kept) else answer for name, answer in given.items()}
    return rows, history, answers, left_out(kept)


def _opened(model: Any) -> Any:
    """The model in a folder of ``pg.save``; anything else as it is."""
    if isinstance(model, str | PathLike) and (Path(model) / "card.json").is_file():
        return store.load(model)
    return model


def _entry(name: str, answer: LogProb, model: GenerativeModel | None, seconds: float) -> Entry:
    return Entry(name, answer, model.report.seconds if model is not None and model.report else math.nan, seconds)


def _scored(
    models: Mapping[str, GenerativeModel],
    x: Any,
    history: Any,
    by: Mapping[str, Estimator],
    seed: int,
    on_start: Callable[[str], None],
) -> tuple[dict[str, tuple[LogProb, float]], dict[str, Exception], tuple[int, ...] | None]:
    """Answers with their seconds, the problems of models that can't score, and lengths where rows are steps.

    Raises:
        ProbgenError: no model can score the rows; the first one's reason.
    """
    lengths: tuple[int, ...] | None = None
    answers: dict[str, tuple[LogProb, float]] = {}
    failed: dict[str, Exception] = {}
    for name, model in models.items():
        on_start(name)
        began = time.perf_counter()
        try:
            if history is None:
                answer = model.log_prob(x, by=by.get(name), seed=seed)
            else:
                answer, lengths = _continued(model, history, x, seed)
        except BREAKDOWNS as problem:
            failed[name] = problem
            continue
        answers[name] = answer, time.perf_counter() - began
    if failed and not answers:
        first = next(iter(failed.values()))
        if isinstance(first, DataError) and barred([first.came]):
            raise DataError(first.came, first.wanted, f"{first.do}; or compare with complete_rows=True") from None
        raise first
    return answers, failed, lengths


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
