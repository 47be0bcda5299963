"""What is done to each batch of rows, in this process or in another one, the same everywhere."""

import dataclasses
import hashlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch

from probgen import errors
from probgen.errors import DataError, ParameterError, ProbgenError, StructureError, nearest
from probgen.events import Array, Category, Panel, Real, Table
from probgen.frames import sinks, streams
from probgen.frames import table as arrow_table
from probgen.logprob import Kind, LogProb
from probgen.model import Estimator, GenerativeModel, Latent

__all__ = ["SCORES", "Job", "Scores", "Stats", "digest_of", "estimator_as_json", "told", "untold"]

SCORES = ("log_prob", "stderr", "kind", "by", "of", "target", "measure", "reason")
_FAST, _SLOW, _CELLS = 1 << 16, 1 << 12, 1 << 22
_BATCHES = 16  # batches of a task
_ALONE = "Score in this process: workers=1, --workers 1"


@dataclass(frozen=True)
class Stats:
    """Figures of some scored rows that a summary adds up.

    Arguments:
        n, refused, impossible: Rows; those without a number; those of probability zero.
        mean, squares: Mean of the finite log-likelihoods in nats, and the sum of squares about it.
        error: Sum of squared standard errors; None where nothing is random, NaN where one can't be trusted.
        kinds, by, reasons: What occurs.
        about: Variable, target and measure.
    """

    n: int
    refused: int
    impossible: int
    mean: float
    squares: float
    error: float | None
    kinds: tuple[str, ...]
    by: tuple[str, ...]
    reasons: tuple[str, ...]
    about: tuple[str, str, str]

    @classmethod
    def of(cls, answer: LogProb) -> "Stats":
        refused, kinds = _refused(answer), {str(kind) for kind in set(answer.kinds)}
        known, errors = answer.__dict__["nats"], answer.stderr
        if refused is not None:
            known, errors = known[~refused], None if errors is None else errors[~refused]
        finite = known[np.isfinite(known)]
        mean = float(finite.mean()) if len(finite) else 0.0
        centred = finite - mean
        return cls(
            len(answer), len(answer) - len(known), len(known) - len(finite), mean, float(centred @ centred),
            None if errors is None else float(errors @ errors), tuple(sorted(kinds)),
            tuple(filter(None, answer.by.split(" | "))), () if refused is None else (answer.reason,),
            (answer.of, answer.target, answer.measure),
        )  # fmt: skip

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> "Stats":
        kept: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in about.items()}
        return cls(**kept)


Scores = tuple[Any, Stats]  # a pyarrow.Table of scores, and figures about it


@dataclass(frozen=True, eq=False)
class Job:
    """A model and how rows are scored under it.

    Arguments:
        model: Fitted.
        columns: Columns of the data to read, in the order in which the model takes them.
        given: Columns among them that are covariates.
        index: Columns among them that hold a saved pandas index: they become the row keys.
        key: A column whose cells stand beside the scores.
        types: Of columns of a csv, see ``streams.Part.tables``.
        batch: Rows scored at once.
    """

    model: GenerativeModel
    by: Estimator | None
    seed: int
    columns: tuple[str, ...]
    given: tuple[str, ...]
    index: tuple[str, ...]
    key: str | None
    types: Mapping[str, str]
    batch: int

    @classmethod
    def of(
        cls,
        model: GenerativeModel,
        classes: Mapping[str, str],
        index: list[str],
        *,
        by: Any,
        seed: int,
        key: str | None,
    ) -> tuple["Job", list[str]]:
        """The job for data of these columns, and the columns that it leaves alone.

        Raises:
            DataError: no such key. StructureError: the model's observations are no rows of a table.
        """
        if key is not None:
            _check_key(key, classes)
        own = _own_columns(model, classes, [*index, *([key] if key else [])])
        given = tuple(getattr(model.context, "columns", ())) if isinstance(model.context, Table) else ()
        index = [] if key or isinstance(model.event, Panel) else [name for name in index if name not in own]
        read = dict.fromkeys([*own, *(name for name in given if name in classes), *index, *([key] if key else [])])
        width = max(len(read), 1)
        batch = min(_FAST if _is_fast(model) else _SLOW, max(_CELLS // width, 1 << 8))
        ignored = [name for name in classes if name not in read]
        types = _types(model, own)
        return cls(model, by, seed, tuple(read), given, tuple(index), key, types, batch), ignored

    @property
    def most(self) -> int:
        """Rows of a task."""
        return self.batch * _BATCHES

    def scored(self, table: Any, first: int) -> Scores:
        """Scores of some rows, the first of which has that number in its file."""
        try:
            answer = self._answer(table)
        except DataError:
            if not self.index and not isinstance(self.model.event, Panel):
                self._answer(streams.numbered(table, first))  # raises the same, with the row's number in the file
            raise
        return self._frame(answer, table, first), Stats.of(answer)

    def _answer(self, table: Any) -> LogProb:
        extra = [name for name in table.column_names if name not in self.columns]
        own = [n for n in self.columns if n not in self.given and (n != self.key or n in self._observed)]
        given = table.select([*self.given, *extra]) if self.given else None
        x = table.select([*own, *extra])
        x = streams.cells(x) if isinstance(self.model.event, Table) else x
        return self.model.log_prob(x, given=given, by=self.by, seed=self.seed)

    @property
    def _observed(self) -> Any:
        return getattr(self.model.event, "columns", ())

    def _frame(self, answer: LogProb, table: Any, first: int) -> Any:
        """The columns of ``LogProb.frame()``, texts held once."""
        n, columns = len(answer), {}  # type: tuple[int, dict[str, Any]]
        if self.key is not None:
            columns[self.key] = table.column(self.key).combine_chunks()
        else:
            labels = answer.event is not None and (self.index or isinstance(self.model.event, Panel))
            columns["row"] = answer.event.keys if labels else np.arange(first, first + n)  # type: ignore[union-attr]
        nats, errors = answer.__dict__["nats"], answer.stderr
        columns["log_prob"] = np.ma.MaskedArray(nats, np.isnan(nats))
        errors = np.full(n, np.nan) if errors is None else errors
        columns["stderr"] = np.ma.MaskedArray(errors, np.isnan(nats) | np.isnan(errors))
        columns["kind"] = _texts(answer.kinds)
        columns |= {name: sinks.constant(getattr(answer, name), n) for name in ("by", "of", "target", "measure")}
        columns["reason"] = _reasons(answer)
        return arrow_table(columns)

    def to_json(self) -> dict[str, Any]:
        """Everything but the model."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("model", "by")}
        return {**kept, "by": estimator_as_json(self.by)}

    @classmethod
    def from_json(cls, model: GenerativeModel, about: Mapping[str, Any]) -> "Job":
        kept = {name: tuple(value) if isinstance(value, list) else value for name, value in about.items()}
        return cls(model, **{**kept, "by": _estimator(about["by"])})

    def batches(self, task: Mapping[str, Any], payload: bytes = b"") -> Iterator[Scores]:
        """The scores of a task, batch by batch: of a piece of a file, or of rows that came with it."""
        if "path" in task:
            yield from (self.scored(table, first) for first, table in streams.read(task, self.columns, self.batch))
        else:
            yield from self.of_rows(sinks.unpacked(payload), task["first"])

    def of_rows(self, rows: Any, first: int) -> Iterator[Scores]:
        """The scores of rows in memory; sequences are scored together, since a cut would end them."""
        size = rows.num_rows if isinstance(self.model.event, Panel) else self.batch
        yield from (self.scored(rows.slice(i, size), first + i) for i in range(0, rows.num_rows, size))


def _check_key(key: str, classes: Mapping[str, str]) -> None:
    if key not in classes:
        raise DataError(f"There is no column {key!r} to be the key", "a column of the data", nearest(key, classes))
    if key in SCORES:
        raise ParameterError(f"key={key!r}", "a name that is no column of scores", f"Rename it; taken: {SCORES}")


def _own_columns(model: GenerativeModel, classes: Mapping[str, str], besides: list[str]) -> list[str]:
    """The observed columns. Where some are lacking all are taken, so that the event's own check says what is wrong."""
    event, given = model.event, getattr(model.context, "columns", ())
    if isinstance(event, Table | Panel):
        wanted = [*event.columns, *([event.sequence] if isinstance(event, Panel) and event.sequence else [])]
        if all(name in classes for name in wanted):
            return wanted
        return [name for name in classes if name not in besides and name not in given]
    if isinstance(event, Array) and len(event.shape) <= 1:
        return [name for name in classes if name not in besides and name not in given]
    came = f"A table for a {type(model).__name__} of {event!r}"
    raise StructureError(came, "a model of the rows of a table", "model.log_prob(x) takes other data")


def _types(model: GenerativeModel, own: list[str]) -> dict[str, str]:
    """What the columns of a csv are read as, whatever their first cells look like."""
    known = {**getattr(model.context, "columns", {}), **getattr(model.event, "columns", {})}
    if isinstance(model.event, Array):
        known |= dict.fromkeys(own, Real())
    found = {name: _type(column) for name, column in known.items() if name in own or name in known}
    return {name: kind for name, kind in found.items() if kind is not None}


def _type(column: Any) -> str | None:
    if not isinstance(column, Category):
        return "number"
    kinds = set(map(type, column.levels))
    return {str: "text", bool: "truth", int: "number", float: "number"}[kinds.pop()] if len(kinds) == 1 else None


def _is_fast(model: GenerativeModel) -> bool:
    """Whether a row costs microseconds: closed forms in float64."""
    dtypes = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    return not isinstance(model, Latent) and torch.float32 not in dtypes


def _refused(answer: LogProb) -> np.ndarray | None:
    """Which rows have no number, bool (n,); None where all have one: rows of objects are slow to compare."""
    return answer.refused if Kind.UNAVAILABLE in set(answer.kinds) else None


def _texts(values: np.ndarray) -> Any:
    """An Arrow column of texts (n,) of which few differ."""
    levels = list(dict.fromkeys(values))
    if len(levels) <= 1:
        return sinks.constant(str(*levels), len(values))
    place = {level: i for i, level in enumerate(levels)}
    return sinks.words([*map(str, levels)], np.fromiter(map(place.__getitem__, values), np.int32, len(values)))


def _reasons(answer: LogProb) -> Any:
    if _refused(answer) is None:
        return sinks.words([], np.full(len(answer), -1))
    texts = answer.__dict__["_reasons"]
    levels = [text for text in dict.fromkeys(texts) if text]
    place = {text: i for i, text in enumerate(levels)}
    return sinks.words(levels, np.array([place.get(text, -1) for text in texts]))


def estimator_as_json(by: Any) -> dict[str, Any] | None:
    """An estimator of probgen, by the place of its class and its arguments.

    Raises:
        ParameterError: somebody else's, or one with arguments that are no plain values: it scores in one process.
    """
    if by is None:
        return None
    kind = type(by)
    fields = {f.name: getattr(by, f.name) for f in dataclasses.fields(by) if f.init} if is_dataclass(by) else {}
    plain = all(isinstance(value, bool | int | float | str | None) for value in fields.values())
    if not is_dataclass(by) or not kind.__module__.startswith("probgen.") or not plain:
        raise ParameterError(f"by={by!r} in other processes", "an estimator of probgen with plain arguments", _ALONE)
    return {"module": kind.__module__, "name": kind.__name__, "fields": fields}


def _estimator(about: Mapping[str, Any] | None) -> Any:
    if about is None:
        return None
    if not about["module"].startswith("probgen."):
        raise ParameterError(f"An estimator of {about['module']}", "one of probgen", _ALONE)
    return getattr(importlib.import_module(about["module"]), about["name"])(**about["fields"])


def digest_of(model: GenerativeModel) -> str:
    """What a model is: its constructor call and every number in it, not when or where it was saved."""
    found = hashlib.sha256(f"{type(model).__name__}\n{model!r}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        found.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def told(problem: ProbgenError) -> dict[str, str]:
    """An error as JSON, for another process."""
    return {"kind": type(problem).__name__, "came": problem.came, "wanted": problem.wanted, "do": problem.do}


def untold(about: Mapping[str, str]) -> ProbgenError:
    """The error of ``told``."""
    kind = getattr(errors, about["kind"], ProbgenError)
    if kind in (errors.LikelihoodUnavailable, errors.MissingExtra):
        return ProbgenError(about["came"], about["wanted"], about["do"])
    return kind(about["came"], about["wanted"], about["do"])
