"""Rows and the draws that stand for a model, scores of each row, and paired differences."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import DataError, Incomparable, ParameterError, StructureError
from probgen.evaluate.twosample.rows import at_least, described, positive, refuse_half
from probgen.events import Array, Event, Ragged, Table, infer
from probgen.events.outside import named
from probgen.logprob import Fingerprint
from probgen.model import GenerativeModel

__all__ = [
    "CELLS", "Drawn", "PairedDifference", "Scores", "column", "columns_of", "drawn", "numbers", "scored",
]  # fmt: skip

CELLS = 1 << 22  # of a matrix held at once


@dataclass(frozen=True)
class PairedDifference:
    """The mean of one model's scores less another's on the same rows; below 0 the first is better.

    Arguments:
        name: Of the score.
        mean: Over rows.
        stderr: Paired, between rows and by the finite number of draws together.
        between_rows, monte_carlo: Its two sources.
        n: Rows.
    """

    name: str
    mean: float
    between_rows: float
    monte_carlo: float
    n: int

    @property
    def stderr(self) -> float:
        return math.hypot(self.between_rows, self.monte_carlo)

    @property
    def distinguishable(self) -> bool:
        """Whether the difference is at least twice its error, on at least 30 rows: with fewer the error is a guess."""
        return self.n >= 30 and abs(self.mean) >= 2 * self.stderr > 0

    def __str__(self) -> str:
        better = "the first is better" if self.mean < 0 else "the second is better"
        side = better if self.distinguishable else "not distinguishable"
        return f"{self.name} {self.mean:+.5g} ± {self.stderr:.2g} (paired, {self.n} rows; {side})"


@dataclass(frozen=True, eq=False)
class Scores:
    """A score of each row, lower is better.

    Arguments:
        name: Of the score, with its choices.
        values: Shape (n,).
        about: The rows.
        draws: Samples that stand for the model.
        monte_carlo: Standard error of the mean over rows that the finite number of draws causes.
        columns: Of scores that are means over columns, each column's, (n,); NaN where its cell is missing.
    """

    name: str
    values: np.ndarray
    about: Fingerprint
    draws: int
    monte_carlo: float
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[float]:
        return iter(self.values.tolist())

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def stderr(self) -> float:
        """Of the mean: between rows and Monte Carlo. For two models on the same rows subtract, which is far sharper."""
        return math.hypot(_error(self.values), self.monte_carlo)

    def __sub__(self, other: "Scores") -> PairedDifference:
        """The paired difference.

        Raises:
            Incomparable: another score or other rows.
        """
        if not isinstance(other, Scores):
            return NotImplemented
        if self.name != other.name:
            raise Incomparable(f"{self.name} less {other.name}", "one score with the same choices", "Score both alike")
        if self._read_as != other._read_as or not self.about.same_rows(other.about):
            raise Incomparable(
                f"Scores of {len(self)} and {len(other)} rows that are not the same, read as {self.about.event} and "
                f"{other.about.event}",
                "the same rows in the same order, of one event",
                "Score both models on one x",
            )
        each = self.values - other.values
        noise = math.hypot(self.monte_carlo, other.monte_carlo)
        return PairedDifference(self.name, float(each.mean()), _error(each), noise, len(each))

    @property
    def _read_as(self) -> str:
        """What the rows must be read as for a difference; raw numbers are the same under any event of arrays."""
        event = self.about.event
        return "Array" if event.startswith("Array(") and "standardised" not in self.name else event

    def __str__(self) -> str:
        return f"{self.name} {self.mean:.5g} ± {self.stderr:.2g} ({len(self)} rows, {self.draws} draws)"

    __repr__ = __str__


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


# Rows and draws


@dataclass(frozen=True, eq=False)
class Drawn:
    """Checked rows, and draws that stand for the model: as many for all rows together, or for each row its own.

    Arguments:
        event: Of both.
        x: Rows, checked.
        draws: Checked; m of them, or n m, those of one row side by side, where ``own``.
        about: The rows' fingerprint.
        many: m.
        own: Whether each row has its own draws, as covariates make it.
    """

    event: Event
    x: Any
    draws: Any
    about: Fingerprint
    many: int
    own: bool


def drawn(source: Any, x: Any, draws: int, given: Any, seed: int | None, event: Event | None = None) -> Drawn:
    """Rows to score, and draws from a model or given as samples.

    Arguments:
        source: A fitted model, or samples of it in any form that the event takes; they must not depend on x.
        draws: How many to draw of a model (for each row, where there are covariates); samples are all used.
        given: Covariates, one row a row of x.

    Raises:
        DataError: unusable cells, fewer than 10 draws. ShapeError: unequal widths.
    """
    refuse_half(x, "x")
    if isinstance(source, GenerativeModel):
        checked = source.event.check(x)
        sampled = source.sample(positive("draws", draws, 10), given=given, seed=seed)
        own = source.context is not None
        cells = _own(source, sampled, draws, len(checked)) if own else source.event.check(sampled).x
        return Drawn(source.event, checked.x, cells, checked.about, draws, own)
    if given is not None:
        raise ParameterError("given= beside samples", "a model, which draws for each row", "Leave given out")
    refuse_half(source, "samples")
    event = event or infer(x)
    checked = event.check(x)
    with named("samples"):
        cells = event.check(source).x
    at_least(len(cells), 10, "a score from samples")
    return Drawn(event, checked.x, cells, checked.about, len(cells), False)


def _own(model: GenerativeModel, sampled: Any, draws: int, rows: int) -> Tensor:
    """Draws for each of some covariates, (rows * draws, ...)."""
    if isinstance(model.event, Array):
        sampled = np.asarray(sampled).reshape(rows * draws, *model.event.shape)
    cells = model.event.check(sampled).x
    if isinstance(cells, Ragged) or len(cells) != rows * draws:
        came = f"{len(cells)} draws for {rows} rows of covariates"
        raise StructureError(came, f"{draws} for each row, of an array or a table", "Score each condition alone")
    return cells


def numbers(d: Drawn, standardise: bool) -> tuple[Tensor, Tensor]:
    """Rows (n, w) and draws (m, w) or (n, m, w) as numbers, on a scale that depends on the rows alone.

    Raises:
        DataError: missing cells, of arrays and tables: what stands for a gap would be scored.
    """
    for what, cells in (("The rows", d.x), ("The draws", d.draws)):
        if isinstance(cells, Tensor) and bool(cells.isnan().any()):
            raise DataError(f"{what} have missing cells", "complete rows", "Leave them out, or use crps or brier")
    if standardise or not isinstance(d.event, Array):
        x, draws = described(d.event, d.x, d.x, d.draws)
    else:
        x, draws = (cells.reshape(len(cells), -1).to(torch.float64) for cells in (d.x, d.draws))
    return x, draws.reshape(len(x), d.many, -1) if d.own else draws


def scored(name: str, d: Drawn, values: Tensor, slopes: Tensor, columns: Mapping[str, Tensor] | None = None) -> Scores:
    """Scores from each row's value and from what each draw adds to the mean over rows: (m,), or (n, m) of own draws."""
    if d.own:
        noise = math.sqrt(float(slopes.var(1).sum() / slopes.shape[1])) / len(slopes)
    else:
        noise = math.sqrt(float(slopes.var() / len(slopes)))
    shown = {key: value.numpy() for key, value in (columns or {}).items()}
    return Scores(name, values.numpy(), d.about, d.many, noise, shown)


def columns_of(d: Drawn, wanted: Callable[[Any, int], bool], what: str) -> dict[str, int]:
    """Places of the columns that a score is for, by name."""
    if isinstance(d.event, Table):
        found = {name: j for j, (name, c) in enumerate(d.event.columns.items()) if wanted(c, 0)}
    elif isinstance(d.event, Array):
        levels = d.event.cell_levels if d.event.levels is not None else np.zeros(max(d.event.dims, 1), dtype=int)
        found = {str(j): j for j in range(max(d.event.dims, 1)) if wanted(None, int(levels[j]))}
    else:
        raise StructureError(f"Columns of {d.event!r}", "an array or a table", "energy scores sequences whole")
    if not found:
        raise StructureError(f"{d.event!r} has no column for {what}", what, "energy scores every row")
    return found


def column(d: Drawn, j: int) -> tuple[Tensor, Tensor]:
    """One column of the rows (n,) and of the draws, (m,) or (n, m); float64."""
    x, cells = (part.reshape(len(part), -1)[:, j].to(torch.float64) for part in (d.x, d.draws))
    if bool(cells.isnan().any()):
        raise DataError(f"Draws with missing cells in column {j}", "draws of every cell", "Sample complete rows")
    return x, cells.reshape(len(x), d.many) if d.own else cells
