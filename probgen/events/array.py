"""Numbers in a box: vectors, images, single values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from probgen.errors import DataError, ParameterError, ShapeError, SupportError
from probgen.events.cells import float_cells, name_cells, row_hash, to_form, whole
from probgen.events.event import Checked, Event, refuse_empty
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
        shape = (self.shape,) if isinstance(self.shape, int) else tuple(int(s) for s in self.shape)
        object.__setattr__(self, "shape", shape)
        if any(s < 1 for s in shape):
            raise ParameterError(f"shape={shape}", "positive sizes")
        if self.support not in _SUPPORTS:
            raise ParameterError(f"support={self.support!r}", f"one of {', '.join(_SUPPORTS)}")
        if isinstance(self.levels, Sequence):
            object.__setattr__(self, "levels", tuple(int(v) for v in self.levels))
            if shape != (len(self.levels),):  # type: ignore[arg-type]
                raise ParameterError(f"levels={self.levels} with shape={shape}", "one number of levels an entry")
        if self.levels is not None and (min(np.atleast_1d(self.levels)) < 2 or self.resolution is not None):
            raise ParameterError(
                f"levels={self.levels}, resolution={self.resolution}", "levels >= 2, without resolution"
            )
        if self.resolution is not None and not (0 < self.resolution < math.inf):
            raise ParameterError(f"resolution={self.resolution}", "a positive step, such as 0.1")

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
        unit = f"({self.unit})" if self.unit else ""
        return (
            f"counting({self.resolution:g}{' ' + self.unit if self.unit else ''})"
            if self.resolution
            else f"lebesgue{unit}"
        )

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

    def check_cells(self, cells: np.ndarray, keys: np.ndarray, names: Sequence[str] | None = None) -> None:
        """Refuses cells (n, dims) outside the support, by row and column."""
        name_cells(
            np.isinf(cells), cells, keys, names, "is infinite", "finite numbers", "Remove or cap them", DataError
        )
        if not self.missing:
            name_cells(
                np.isnan(cells), cells, keys, names, "is missing (NaN)", "finite numbers",
                "Declare missing=True in the event, impute, or drop the rows", DataError,
            )  # fmt: skip
        with np.errstate(invalid="ignore"):
            bad, wanted = self._outside(cells)
        name_cells(
            bad & ~np.isnan(cells),
            cells,
            keys,
            names,
            "is outside the support",
            wanted,
            f"Event: {self!r}",
            SupportError,
        )

    def _outside(self, cells: np.ndarray) -> tuple[np.ndarray, str]:
        if self.levels is not None:
            top = self.cell_levels - 1
            wanted = f"whole numbers 0..{top[0] if len(set(top)) == 1 else list(top)}"
            return (cells < 0) | (cells > top) | (cells != np.round(cells)), wanted
        if self.support == "count":
            return (cells < 0) | (cells != np.round(cells)), "whole numbers from 0"
        if self.support == "unit":
            return (cells < 0) | (cells > 1), "numbers from 0 to 1"
        bad = cells <= 0 if self.support == "positive" else np.zeros(cells.shape, dtype=bool)
        if self.resolution is None:
            return bad, "numbers > 0"
        steps = cells / self.resolution
        return bad | (
            abs(steps - np.round(steps)) > 1e-6 * np.maximum(1, abs(steps))
        ), f"multiples of {self.resolution:g}"

    def ties(self, x: Tensor) -> str | None:
        """A warning when a density is fitted to rounded data: its likelihood can then be made as high as one likes."""
        if self.discrete or len(x) < 20:
            return None
        cells = x[:5000].reshape(min(len(x), 5000), -1).numpy()
        shares = np.array([1 - len(np.unique(column)) / len(column) for column in cells.T[:256]])
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
