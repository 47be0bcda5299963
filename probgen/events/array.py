"""Numbers in a box: vectors, images, single values."""

import math
import operator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ParameterError, ShapeError, SupportError
from probgen.events.cells import row_hash, to_form, whole
from probgen.events.event import Checked, Event, refuse_empty
from probgen.events.outside import float_cells, name_cells
from probgen.logprob import Fingerprint

Support = Literal["real", "positive", "unit", "count"]
_SUPPORTS = ("real", "positive", "unit", "count")


@dataclass(frozen=True, repr=False)
class Array(Event):
    """Numbers in a box: vectors, images, single values.

    Arguments:
        shape: Of one observation; () for single numbers. Data then have shape (n, *shape).
        support: "real", "positive" (> 0), "unit" ([0, 1]) or "count" (0, 1, 2, ...).
        levels: The data are whole numbers 0..levels-1: families are counting measures. A tuple gives one number of
            levels for each entry of a vector.
        resolution: The data are reals rounded to multiples of this: families give interval masses.
        unit: Of measurement; names the measure.
        missing: Whether NaN cells are allowed.
    """

    shape: tuple[int, ...] = ()
    support: Support = "real"
    levels: int | tuple[int, ...] | None = None
    resolution: float | None = None
    unit: str = ""
    missing: bool = False

    def __post_init__(self) -> None:
        shape = _whole("shape", self.shape)
        object.__setattr__(self, "shape", (shape,) if isinstance(shape, int) else shape)
        if any(s < 1 for s in self.shape):
            raise ParameterError(f"shape={self.shape}", "positive sizes")
        if self.support not in _SUPPORTS:
            raise ParameterError(f"support={self.support!r}", f"one of {', '.join(_SUPPORTS)}")
        if self.levels is not None:
            object.__setattr__(self, "levels", _whole("levels", self.levels))
            self._check_levels()
        object.__setattr__(self, "resolution", positive_step(self.resolution))

    def _check_levels(self) -> None:
        if isinstance(self.levels, tuple) and self.shape != (len(self.levels),):
            raise ParameterError(f"levels={self.levels} with shape={self.shape}", "one number of levels an entry")
        each = self.levels if isinstance(self.levels, tuple) else (self.levels,)
        if not all(2 <= levels <= frames.EXACT for levels in each) or self.resolution is not None:  # type: ignore
            raise ParameterError(
                f"levels={self.levels}, resolution={self.resolution}", "levels >= 2, without resolution"
            )

    @property
    def dims(self) -> int:
        """Cells of one observation."""
        return math.prod(self.shape)

    @property
    def cell_levels(self) -> np.ndarray:
        """Levels of each cell, shape (dims,); only where ``levels`` is declared."""
        return np.broadcast_to(np.asarray(self.levels, dtype=np.int64), self.shape or (1,)).reshape(-1)

    @property
    def measure(self) -> str:
        if self.levels is not None or self.support == "count":
            return "counting"
        if self.resolution is None:
            return f"lebesgue({self.unit})" if self.unit else "lebesgue"
        return f"counting({exact(self.resolution)}{' ' + self.unit if self.unit else ''})"

    def check(self, data: Any) -> Checked:
        values, keys, form = float_cells(data)
        if values.shape[1:] != self.shape:
            raise ShapeError(
                f"Data of shape {values.shape}",
                f"(n{''.join(f', {s}' for s in self.shape)}) for {self!r}",
                "For one observation add an axis: x[None]"
                if values.shape == self.shape
                else "Reshape or choose columns",
            )
        refuse_empty(len(values))
        return Checked(torch.from_numpy(values), self._fingerprint(values, keys), form)

    def _fingerprint(self, values: np.ndarray, keys: np.ndarray) -> Fingerprint:
        self.check_cells(values.reshape(len(values), -1), keys)
        seen = ~np.isnan(values.reshape(len(values), -1))
        return Fingerprint(keys, row_hash(values), seen.sum(axis=1), repr(self), self.measure, whole(values))

    def check_cells(self, cells: np.ndarray, keys: Any, names: Sequence[str] | None = None) -> bool:
        """Refuses cells (n, dims) outside the support, by row and column; tells whether any cell is missing."""
        with np.errstate(over="ignore", invalid="ignore"):
            complete = bool(np.isfinite(cells.sum()))  # one pass instead of two, where nothing is odd
        missing = False if complete else self._check_odd(cells, keys, names)
        if self.support == "real" and self.levels is None and self.resolution is None:
            return missing
        with np.errstate(invalid="ignore"):
            bad, wanted = self._outside(cells)
        name_cells(
            bad & ~np.isnan(cells), cells, keys, names, "is outside the support", wanted, self._advice(cells),
            SupportError,
        )  # fmt: skip
        return missing

    def _advice(self, cells: np.ndarray) -> str:
        """What to do about cells outside the support."""
        if self.levels == 2 and (np.isnan(cells) | ((cells >= 0) & (cells <= 1))).all():
            return (
                "Grey values are no binary data: take support='unit', a density, or whole numbers with levels=256, "
                "a mass; or binarise them"
            )
        return f"Event: {self!r}"

    def _check_odd(self, cells: np.ndarray, keys: Any, names: Sequence[str] | None) -> bool:
        name_cells(
            np.isinf(cells), cells, keys, names, "is infinite", "finite numbers", "Remove or cap them", DataError
        )
        missing = np.isnan(cells)
        if not self.missing:
            name_cells(
                missing, cells, keys, names, "is missing (NaN)", "finite numbers",
                "Declare missing=True in the event, impute, or drop the rows", DataError,
            )  # fmt: skip
        return bool(missing.any())

    def _outside(self, cells: np.ndarray) -> tuple[np.ndarray, str]:
        if self.levels is not None:
            top = self.cell_levels - 1
            wanted = f"whole numbers 0..{top[0] if len(set(top)) == 1 else top.tolist()}"
            return (cells < 0) | (cells > top) | (cells != np.round(cells)), wanted
        if self.support == "count":
            return (cells < 0) | (cells > frames.EXACT) | (cells != np.round(cells)), "whole numbers from 0 to 2**53"
        if self.support == "unit":
            return (cells < 0) | (cells > 1), "numbers from 0 to 1"
        bad = cells <= 0 if self.support == "positive" else np.zeros(cells.shape, dtype=bool)
        if self.resolution is None:
            return bad, "numbers > 0"
        return bad | ~_is_multiple(cells, self.resolution), f"multiples of {exact(self.resolution)}"

    def ties(self, x: Tensor) -> str | None:
        """A warning when a density is fitted to rounded data: its likelihood can then be made as high as one likes."""
        if self.discrete or len(x) < 20:
            return None
        cells = x[:5000].reshape(min(len(x), 5000), -1).numpy()
        shares = np.array([_repeats(column[~np.isnan(column)]) for column in cells.T[:256]])
        worst = int(shares.argmax())
        if shares[worst] <= 0.05:
            return None
        return (
            f"{shares[worst]:.0%} of the values in column {worst} repeat: the data look rounded, and a density's "
            "likelihood is unbounded on them. Declare resolution= (the rounding step) or levels= in the event."
        )

    def restore(self, x: Tensor, form: str = "numpy") -> Any:
        cells = x.detach().cpu().to(torch.float64)
        whole_numbers = self.levels is not None or self.support == "count"
        return to_form(cells.to(torch.int64) if whole_numbers and not cells.isnan().any() else cells, form)


def positive_step(step: Any) -> float | None:
    """A resolution as a plain number; None stays None."""
    if step is None:
        return None
    step = step.item() if isinstance(step, np.generic) else step
    if not isinstance(step, int | float) or isinstance(step, bool) or not 0 < step < math.inf:
        raise ParameterError(f"resolution={step!r}", "a positive step, such as 0.1")
    return step


def exact(step: float) -> str:
    """The shortest text that reads back as this number: "0.1", "1"."""
    return repr(float(step)).removesuffix(".0")


def _whole(name: str, value: Any) -> int | tuple[int, ...]:
    """A plain int or a tuple of them, from Python's, NumPy's or torch's."""
    with suppress(TypeError):
        return operator.index(value)
    with suppress(TypeError):
        return tuple(operator.index(v) for v in value)
    raise ParameterError(f"{name}={value!r}", "a whole number, or a tuple of them")


def _is_multiple(cells: np.ndarray, step: float) -> np.ndarray:
    """Whether cells are multiples of a step but for rounding: of the division, of decimals, or of float32 data."""
    with np.errstate(all="ignore"):
        quotient = cells / step
        nearest = np.round(quotient)
        bad = ~(abs(quotient - nearest) <= 1e-6)
        q, n = quotient[bad], nearest[bad]
        bad[bad] = (abs(q - n) > 1e-6 + 2 * np.spacing(abs(q))) & (cells[bad] != (n * step).astype(np.float32))
    return ~bad & (abs(quotient) <= 2.0**52)


def _repeats(values: np.ndarray) -> float:
    return 1 - len(np.unique(values)) / len(values) if len(values) >= 20 else 0.0
