"""What samples are good for: learning on them, tested on real rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from probgen.errors import DataError, ParameterError, StructureError, nearest
from probgen.evaluate.twosample.learners import LEARNERS, class_learner, number_learner
from probgen.evaluate.twosample.rows import at_least, described, positive, refuse_half
from probgen.events import Array, Category, Event, Table, infer
from probgen.model import GenerativeModel, generator_of

__all__ = ["Usefulness", "augmentation_gain", "train_on_synthetic"]


@dataclass(frozen=True)
class Usefulness:
    """Losses on the same real test rows of a learner taught in two ways, and their paired difference.

    Arguments:
        what: The loss: "nats" (log loss) of categories, "squared error" of numbers, in units of the target's variance.
        ways: The two ways of teaching, in words.
        losses: Mean loss of both on the test rows.
        difference, stderr: Of the first less the second: mean and paired standard error over test rows. Below 0 the
            first way is better.
        plain: Mean loss of a learner that sees no inputs: the training rows' frequencies, or their mean.
        accuracies: Shares of right answers of both, for categories; NaN for numbers.
        sizes: Training rows of both ways, and test rows.
        learner: Its name.
    """

    what: str
    ways: tuple[str, str]
    losses: tuple[float, float]
    difference: float
    stderr: float
    plain: float
    accuracies: tuple[float, float]
    sizes: tuple[int, int, int]
    learner: str

    def __str__(self) -> str:
        lines = [f"{self.what} on {self.sizes[2]} real test rows, learner {self.learner}:"]
        for i in range(2):
            right = "" if math.isnan(self.accuracies[i]) else f", {self.accuracies[i]:.1%} right"
            lines.append(f"  {self.ways[i]} ({self.sizes[i]} rows): {self.losses[i]:.4f}{right}")
        lines.append(f"  without inputs: {self.plain:.4f}")
        lines.append(f"  difference {self.difference:+.4f} ± {self.stderr:.4f} (paired; below 0 the first is better)")
        return "\n".join(lines)

    __repr__ = __str__


def train_on_synthetic(
    model_or_samples: Any,
    train: Any,
    test: Any,
    *,
    target: Any,
    event: Event | None = None,
    learner: str = "mlp",
    seed: int | None = None,
) -> Usefulness:
    """Train on synthetic, test on real, beside train on real, test on real (Esteban et al. 2017).

    Arguments:
        model_or_samples: A fitted model, which gives as many rows as ``train`` has, or rows.
        train, test: Real rows.
        target: The column to be learnt from the others: a name of a table, or a place in a vector. Categories (and
            vectors' ``levels``) are classified, numbers regressed.
        learner: "mlp" or "linear".

    The error covers the test rows, not the training rows nor the samples.

    Raises:
        DataError: fewer than 20 training or 10 test rows. ParameterError: no such column or learner.
        StructureError: neither a table nor a vector.
    """
    task = _Task.of(model_or_samples, train, event, target, learner)
    generator = generator_of(seed)
    real, held = task.check(train, "train", 20), task.check(test, "test", 10)
    made = task.check(_rows(model_or_samples, len(real), generator), "samples", 20)
    return task.compare("synthetic", made, "real", real, held, generator)


def augmentation_gain(
    model_or_samples: Any,
    train: Any,
    test: Any,
    *,
    target: Any,
    n: int | None = None,
    event: Event | None = None,
    learner: str = "mlp",
    seed: int | None = None,
) -> Usefulness:
    """Real training rows with samples added, beside the real ones alone; as ``train_on_synthetic``.

    Arguments:
        n: Samples that are added; None adds as many as there are training rows (all, where rows are given).
    """
    task = _Task.of(model_or_samples, train, event, target, learner)
    generator = generator_of(seed)
    real, held = task.check(train, "train", 20), task.check(test, "test", 10)
    many = len(real) if n is None else positive("n", n)
    made = task.check(_rows(model_or_samples, many, generator), "samples", 1)
    made = made if n is None else made[: positive("n", n)]
    return task.compare("real and synthetic", torch.cat([real, made]), "real", real, held, generator)


def _rows(model_or_samples: Any, n: int, generator: torch.Generator) -> Any:
    if not isinstance(model_or_samples, GenerativeModel):
        return model_or_samples
    return model_or_samples.sample(n, seed=generator.initial_seed())


@dataclass(frozen=True, eq=False)
class _Task:
    """A column to be learnt from the others: its place, its levels (0 for a number), the event of the others."""

    event: Event
    place: int
    levels: int
    inputs: Event
    learner: str

    @classmethod
    def of(cls, source: Any, train: Any, event: Event | None, target: Any, learner: str) -> "_Task":
        if learner not in LEARNERS:
            raise ParameterError(f"learner={learner!r}", "a learner", nearest(learner, LEARNERS))
        if event is None:
            event = source.event if isinstance(source, GenerativeModel) else infer(train)
        if isinstance(event, Table):
            return cls._of_table(event, target, learner)
        if not isinstance(event, Array) or len(event.shape) != 1 or event.shape[0] < 2:
            raise StructureError(f"{event!r} with a target", "a table, or vectors of at least two cells")
        if isinstance(target, bool) or not isinstance(target, int) or not -event.dims <= target < event.dims:
            raise ParameterError(f"target={target!r}", f"the place of a cell, 0 to {event.dims - 1}")
        levels = int(event.cell_levels[target]) if event.levels is not None else 0
        return cls(event, target % event.dims, levels, Array((event.dims - 1,), missing=event.missing), learner)

    @classmethod
    def _of_table(cls, event: Table, target: Any, learner: str) -> "_Task":
        if target not in event.columns or len(event.columns) < 2:
            raise ParameterError(f"target={target!r}", "a column beside others", nearest(str(target), event.columns))
        column = event.columns[target]
        rest = {name: c for name, c in event.columns.items() if name != target}
        levels = len(column.levels) if isinstance(column, Category) else 0
        return cls(event, [*event.columns].index(target), levels, replace(event, columns=rest), learner)

    def check(self, data: Any, name: str, least: int) -> Tensor:
        """Checked rows whose target is seen, (n, columns)."""
        refuse_half(data, name)
        cells = self.event.check(data).x
        if bool((gaps := cells[:, self.place].isnan()).all()):
            raise DataError(f"The target is missing in every row of {name}", "rows that show it")
        cells = cells[~gaps]
        at_least(len(cells), least, name)
        return cells

    def compare(
        self, way: str, taught: Tensor, other: str, real: Tensor, held: Tensor, generator: torch.Generator
    ) -> Usefulness:
        answer = held[:, self.place]
        seed = int(torch.randint(2**62, (), generator=generator))  # the same first weights and rows for both
        found = [self._losses(rows, held, answer, real, seed) for rows in (taught, real)]
        each = found[0][0] - found[1][0]
        plain = self._plain(real, answer)
        return Usefulness(
            "nats" if self.levels else "squared error", (way, other),
            (float(found[0][0].mean()), float(found[1][0].mean())), float(each.mean()),
            float(each.std() / math.sqrt(len(each))), plain, (found[0][1], found[1][1]),
            (len(taught), len(real), len(held)), self.learner,
        )  # fmt: skip

    def _losses(self, rows: Tensor, held: Tensor, answer: Tensor, real: Tensor, seed: int) -> tuple[Tensor, float]:
        """Loss of each test row, (n,), and the share of right answers, of the learner taught by some rows."""
        generator = torch.Generator().manual_seed(seed)
        seen, new = described(self.inputs, self._others(real), self._others(rows), self._others(held))
        if not self.levels:
            predict = number_learner(seen, rows[:, self.place], self.learner, generator)
            scale = real[:, self.place].var(correction=0).clamp(min=1e-300)
            return (predict(new) - answer).square() / scale, math.nan
        log_p: Callable = class_learner(seen, rows[:, self.place].long(), self.levels, self.learner, generator)
        nats = log_p(new).clamp(
            min=math.log(1e-6)
        )  # a level that the samples lack costs 13.8 nats, not infinitely many
        right = float((nats.argmax(1) == answer.long()).double().mean())
        return -nats.gather(1, answer.long()[:, None])[:, 0], right

    def _others(self, cells: Tensor) -> Tensor:
        return torch.cat([cells[:, : self.place], cells[:, self.place + 1 :]], 1)

    def _plain(self, real: Tensor, answer: Tensor) -> float:
        """Mean loss of the training rows' frequencies (one row added to each level), or of their mean."""
        seen = real[:, self.place]
        if not self.levels:
            return float((answer - seen.mean()).square().mean() / seen.var(correction=0).clamp(min=1e-300))
        shares = torch.bincount(seen.long(), minlength=self.levels) + 1.0
        return float(-(shares / shares.sum()).log()[answer.long()].mean())
