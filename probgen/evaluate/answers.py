"""Ready answers of other people's models, brought beside those of fitted ones on the same rows."""

import math
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import DataError, Incomparable, ParameterError, nearest
from probgen.logprob import Fingerprint, Kind, LogProb

__all__ = ["in_order", "ready", "same_rows", "way_of"]

_LEFT_OUT = re.compile(r"\bloo\b|leave-|refits without|_-\(?\w|\\+i\b", re.IGNORECASE)  # p(x_i | x_-i), PSIS-LOO(...)
_FOLDS = re.compile(r"-fold|its fold")


def ready(name: str, given: Any) -> LogProb | None:
    """An answer that is there already; None for anything else, such as a model.

    Arguments:
        name: Of the model; of a table with a column "family", its rows there.
        given: A LogProb, or what holds one as ``log_prob`` (a result of ``pg.loo``), or a table of its columns
            (``LogProb.frame``, ``probgen score -o``), a frame or a file's path: "log_prob" and "kind" are needed, "row"
            are the keys.

    Raises:
        DataError: a table without those columns, or with several answers of which none has that name.
    """
    held = getattr(given, "log_prob", given)
    if isinstance(held, LogProb):
        return held
    if isinstance(given, str | PathLike):
        given = frames.read(given)
    return _from_table(name, given) if frames.is_frame(given) else None


def _from_table(name: str, table: Any) -> LogProb:
    columns, keys, _ = frames.columns(table)
    if lacking := [column for column in ("log_prob", "kind") if column not in columns]:
        raise DataError(
            f"The table of {name!r} has no column {lacking[0]!r}, only {', '.join(columns)}",
            "the columns of LogProb.frame(), as probgen score -o writes them",
            "Name the log-likelihoods, in nats, log_prob, and what they are, exact or lower say, kind",
        )
    mine = _rows_of(name, columns)
    values, missing = columns["log_prob"]
    nats = np.where(missing, math.nan, values.astype(float))[mine]
    kinds = np.array([str(kind) for kind in columns["kind"][0][mine]], dtype=object)
    refused = kinds == Kind.UNAVAILABLE
    if (np.isnan(nats) & ~refused).any():
        row = int(np.flatnonzero(np.isnan(nats) & ~refused)[0])
        raise DataError(f"Row {row} of {name!r} has no log_prob, but the kind {kinds[row]}", "a number, or unavailable")
    rows = columns["row"][0][mine] if "row" in columns else keys[mine]
    of, target, by, measure = (_single(name, key, columns, mine) for key in ("of", "target", "by", "measure"))
    reason = _single(name, "reason", columns, mine & _full(columns, "reason")) or "no reason was given"
    return LogProb(
        kinds, np.where(refused, math.nan, nats), by=by or "given", of=of or "x", target=target or "p", measure=measure,
        stderr=_errors(columns, mine), event=_keyed(rows), reason=reason, instead="score the rows with another model",
    )  # fmt: skip


def _errors(columns: Mapping[str, tuple[np.ndarray, np.ndarray]], mine: np.ndarray) -> np.ndarray | None:
    """Standard errors, NaN where there is none; None where no row has one."""
    if "stderr" not in columns or columns["stderr"][1][mine].all():
        return None
    values, missing = columns["stderr"]
    return np.where(missing, math.nan, values.astype(float))[mine]


def _keyed(rows: np.ndarray) -> Fingerprint:
    """A fingerprint that knows the rows' keys alone: no content, which ``in_order`` takes from another answer."""
    n = len(rows)
    return Fingerprint(rows, np.zeros(n, dtype=np.uint64), np.ones(n), "", "")


def _rows_of(name: str, columns: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Which rows of the table are this model's, bool."""
    if "family" not in columns:
        return np.ones(len(columns["log_prob"][0]), dtype=bool)
    families = np.array([str(family) for family in columns["family"][0]], dtype=object)
    known = list(dict.fromkeys(families))
    if name in known:
        return families == name
    if len(known) == 1:
        return np.ones(len(families), dtype=bool)
    raise DataError(f"The table has no family {name!r}", "one of its families", nearest(name, known))


def _full(columns: Mapping[str, tuple[np.ndarray, np.ndarray]], key: str) -> np.ndarray:
    return ~columns[key][1] if key in columns else np.zeros(len(columns["log_prob"][0]), dtype=bool)


def _single(name: str, key: str, columns: Mapping[str, tuple[np.ndarray, np.ndarray]], mine: np.ndarray) -> str:
    """The one value of a column; reasons and estimators may be several, in a line."""
    found = list(dict.fromkeys(str(value) for value in columns[key][0][mine])) if mine.any() and key in columns else []
    if len(found) > 1 and key in ("of", "target", "measure"):
        came = f"The rows of {name!r} differ in {key}: {', '.join(map(repr, found[:3]))}"
        raise DataError(came, f"one {key}", "Give each its own name")
    return "; ".join(found)


def in_order(answers: Mapping[str, LogProb]) -> tuple[dict[str, LogProb], list[str]]:
    """Answers whose rows were not seen, in the order of the rows of those that were.

    Returns:
        The answers, and what a reader should know of how rows were matched.

    Raises:
        Incomparable: other keys, or another number of rows.
    """
    known = next((a.event for a in answers.values() if a.event is not None and a.event.measure), None)
    reference = known if known is not None else next((a.event for a in answers.values() if a.event is not None), None)
    found: dict[str, LogProb] = {}
    by_key, by_place = [], []
    for name, answer in answers.items():
        if answer.event is None:
            by_place.append(name)
        elif not answer.event.measure:
            by_key.append(name)
        found[name] = _matched(name, answer, reference)
    said = []
    if by_key:
        said.append(
            f"{', '.join(by_key)}: scored elsewhere; its rows were matched by their keys, their content unseen."
        )
    if by_place:
        said.append(f"{', '.join(by_place)}: scored elsewhere; its rows were matched by their order alone.")
    return found, said


def _matched(name: str, answer: LogProb, reference: Fingerprint | None) -> LogProb:
    if reference is None or (answer.event is not None and answer.event.measure):
        return answer
    n = len(reference)
    if len(answer) != n:
        raise Incomparable(
            f"{name} has {len(answer)} rows, the others {n}", "the same rows", "Score it on the rows of the others"
        )
    if answer.event is None:
        return answer.replace(event=reference)
    places = {str(key): i for i, key in enumerate(answer.event.keys.tolist())}
    wanted = [str(key) for key in reference.keys.tolist()]
    if len(places) != n or not all(key in places for key in wanted):
        odd = next((key for key in wanted if key not in places), "a key that occurs twice")
        raise Incomparable(
            f"{name} has other rows than the others: they have row {odd}", "the same keys in the column row, each once",
            "Score it on the same rows, with their keys",
        )  # fmt: skip
    return answer[[places[key] for key in wanted]].replace(event=reference)


def same_rows(answers: Mapping[str, LogProb]) -> None:
    """Refuses numbers that are not about one thing: other rows, another variable, rows left out beside held-out ones.

    Raises:
        Incomparable: naming the two and what differs.
    """
    (first, one), *others = answers.items()
    for name, answer in others:
        if len(answer) != len(one) or (one.event and answer.event and not one.event.same_rows(answer.event)):
            raise Incomparable(
                f"{first} and {name} saw other rows, or read the rows differently: {_read(one)} and {_read(answer)}",
                "the same rows, of one event",
                "Fit them all with for_event(event) of the same event",
            )
        if answer.of != one.of:
            raise Incomparable(
                f"{first} scores {one.of!r} and {name} {answer.of!r}: different variables",
                "numbers about one variable, dequantised (x+u) all or none",
                "Score both alike",
            )
        if way_of(answer) != way_of(one):
            raise Incomparable(
                f"{first} is scored {way_of(one)} and {name} {way_of(answer)}: not one ranking",
                "all models on held-out rows, or all by leave-one-out, or all by the same refits",
                "Score them one way: pg.compare(models, held_out), or pg.loo of each",
            )


def _read(answer: LogProb) -> str:
    return f"{len(answer)} rows" + (f" as {answer.event.event}" if answer.event and answer.event.event else "")


def way_of(answer: LogProb) -> str:
    """How a number came to be about rows that its model had not seen: as the target and the estimator tell."""
    about = f"{answer.target} {answer.by}"
    if _FOLDS.search(about):
        return "by k-fold refits"
    return "by leave-one-out" if _LEFT_OUT.search(about) else "on rows as they are"


def check_models(models: Mapping[str, Any], answers: Sequence[str], model_type: type, x: Any) -> None:
    """Refuses what is neither model nor answer, and models without rows."""
    for name, model in models.items():
        if name in answers:
            continue
        if not isinstance(model, model_type):
            raise ParameterError(
                f"{name!r} is a {type(model).__name__}",
                "a fitted model, a LogProb, or a table of its columns",
                "pg.wrap(object) makes a model of other libraries' ones",
            )
        if x is None:
            raise ParameterError(f"The model {name!r} without rows to score", "pg.compare(models, x)", "Give the rows")
