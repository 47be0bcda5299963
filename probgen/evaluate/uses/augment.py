"""Rows of the model's added to real ones, with what they are worth on a task, measured on rows nobody learnt from."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.errors import DataError, ParameterError, StructureError
from probgen.evaluate.twosample.usefulness import Usefulness, augmentation_gain
from probgen.events import Array, Table
from probgen.model import GenerativeModel, generator_of

__all__ = ["Augmented", "augment"]

_TASKS = ("auto", "classify", "regress")
_HELD = 0.3  # of the rows, to measure the gain on
_LEAST = 40  # rows that can be split so


@dataclass(frozen=True, eq=False)
class Augmented:
    """Real and drawn rows.

    Arguments:
        rows: The real rows and below them the drawn ones, in the form that the real ones came in.
        drawn: The drawn ones alone.
        gain: Losses on held-out real rows of a learner taught with and without drawn rows; None where no target was
            named. ``gain.difference`` below 0: they help.
    """

    rows: Any
    drawn: Any
    gain: Usefulness | None = None

    @property
    def helps(self) -> bool | None:
        """Whether the gain exceeds two of its standard errors; None where it was not measured."""
        return None if self.gain is None else self.gain.difference < -2 * self.gain.stderr

    def __str__(self) -> str:
        if self.gain is None:
            return (
                f"{len(self.rows)} rows, {len(self.drawn)} of them drawn; the gain was not measured: name a target y="
            )
        harm = self.gain.difference > 2 * self.gain.stderr
        said = "they help" if self.helps else "they harm" if harm else "no gain can be told from chance"
        return f"{len(self.rows)} rows, {len(self.drawn)} of them drawn: {said}\n{self.gain}"

    __repr__ = __str__


def augment(
    model: GenerativeModel,
    x: Any,
    y: str | int | None = None,
    *,
    n: int | None = None,
    task: str = "auto",
    test: Any = None,
    learner: str = "mlp",
    seed: int = 0,
) -> Augmented:
    """Real rows with n draws of the model below them, and the measured gain on the task of predicting a column.

    Arguments:
        model: Fitted on ``x`` (its event names the columns).
        x: Real rows.
        y: The column to be predicted from the others: a name, or a place in a vector. None measures nothing.
        n: Draws; None takes as many as there are rows.
        task: "classify" or "regress", to insist on what the column is; "auto" reads it from the event.
        test: Rows that the model was not fitted on. None splits ``x``: a copy of the model is fitted to 70 % of the
            rows, and the gain is measured on the others, so that nothing is measured on what was learnt from.
        learner: "mlp" or "linear".

    Raises:
        ParameterError: a task that the column is not, no such column, n below 1.
        DataError: fewer than 40 rows to split. StructureError: neither a table nor vectors.
    """
    if task not in _TASKS:
        raise ParameterError(f"task={task!r}", f"one of {', '.join(_TASKS)}")
    if not isinstance(model.event, Table | Array):
        raise StructureError(
            f"augment over {model.event!r:.60}", "a table, or vectors", "Sample, and join them yourself"
        )
    checked = model._check(x)
    many = len(checked) if n is None else n
    drawn = model.event.check(model.sample(many, seed=seed)).x
    gain = None if y is None else _named(_gain, model, checked.x, y, many, task, test, learner, seed)
    joined = torch.cat([checked.x, drawn.to(checked.x.dtype)])
    return Augmented(model.event.restore(joined, checked.form), model.event.restore(drawn, checked.form), gain)


def _named(measure: Callable[..., Usefulness], *arguments: Any) -> Usefulness:
    """A measured gain; what is wrong with the column is said of ``y``, as it is called here.

    Raises:
        ParameterError: no such column.
    """
    try:
        return measure(*arguments)
    except ParameterError as problem:
        if not problem.came.startswith("target="):
            raise
        raise ParameterError(problem.came.replace("target=", "y=", 1), problem.wanted, problem.do) from None


def _gain(
    model: GenerativeModel, x: Tensor, y: str | int, n: int, task: str, test: Any, learner: str, seed: int
) -> Usefulness:
    if test is not None:
        known = model.event.restore(x, model.form)
        found = augmentation_gain(model, known, test, target=y, n=n, learner=learner, seed=seed)
    else:
        found = _split_gain(model, x, y, n, learner, seed)
    told = "classify" if found.what == "nats" else "regress"
    if task not in ("auto", told):
        raise ParameterError(
            f"task={task!r} for the column {y!r}", f"task={told!r}, as its event says", "Or declare it"
        )
    return found


def _split_gain(model: GenerativeModel, x: Tensor, y: str | int, n: int, learner: str, seed: int) -> Usefulness:
    """Measured with a copy of the model that has not seen the rows it is measured on."""
    if len(x) < _LEAST:
        raise DataError(f"{len(x)} rows to split", f"at least {_LEAST}", "Or give test= rows")
    order = torch.randperm(len(x), generator=generator_of(seed))
    held = round(len(x) * _HELD)
    rest, kept = (model.event.restore(x[rows], model.form) for rows in (order[held:], order[:held]))
    fresh = copy.deepcopy(model).fit(rest, seed=seed)
    share = max(1, round(n * (1 - _HELD)))
    return augmentation_gain(fresh, rest, kept, target=y, n=share, learner=learner, seed=seed)
