"""What a user has seen: rows with gaps for questions, and ``given`` for draws and conditional likelihoods."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import ParameterError, ShapeError, ZeroEvidenceError, nearest
from probgen.events.outside import columns

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = ["Conditions", "conditions", "refuse_impossible", "rows"]


@dataclass(frozen=True, eq=False)
class Conditions:
    """Observed cells that a draw or a likelihood is conditioned on.

    Arguments:
        cells: Shape (m, visible variables), NaN where nothing is given.
        names: Columns that are given.
        keys: Of the m conditions.
    """

    cells: Tensor
    names: tuple[str, ...]
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.cells)


def rows(model: "MarkovField", x: Any) -> tuple[Tensor, np.ndarray, Any]:
    """Cells (n, visible), row keys and form; columns may be lacking, and None is one row of which nothing is known."""
    if x is None:
        return torch.full((1, len(model.event.columns)), torch.nan, dtype=torch.float64), np.arange(1), model.form
    if isinstance(x, Mapping) or frames.is_frame(x):
        return _partial(model, x)
    checked = replace(model.event, missing=True).check(x)
    return checked.x, checked.about.keys, checked.form


def conditions(model: "MarkovField", given: Any, n: int | None) -> Conditions:
    """Checked conditions: one for all n rows of data (for all draws), or one a row.

    Raises:
        ParameterError: not by column name, an unknown column, or nothing given.
        ShapeError: as many as neither one nor the rows of data.
    """
    if not isinstance(given, Mapping) and not frames.is_frame(given):
        raise ParameterError(f"given={given!r:.80}", "cells by column name", "given={'a': 1}, or a frame of conditions")
    if isinstance(given, Mapping) and not given:
        raise ParameterError("given={}", "at least one observed cell", "Leave given= out")
    cells, keys, _ = _partial(model, given)
    seen = (~cells.isnan()).any(0).tolist()
    names = tuple(name for name, some in zip(model.event.columns, seen, strict=True) if some)
    if not names:
        raise ParameterError("given= without a single cell", "at least one observed cell", "Leave given= out")
    if n is not None and len(cells) not in (1, n):
        raise ShapeError(f"given= has {len(cells)} rows for {n} rows of data", f"one condition, or {n}")
    return Conditions(cells, names, keys)


def _is_single(value: Any) -> bool:
    return isinstance(value, str | bytes) or not hasattr(value, "__len__")


def _partial(model: "MarkovField", data: Any) -> tuple[Tensor, np.ndarray, Any]:
    """Cells of some columns; a dict may hold single values, which stand for every row."""
    if isinstance(data, Mapping):
        many = [len(value) for value in data.values() if not _is_single(value)]
        data = {name: [v] * (many or [1])[0] if _is_single(v) else v for name, v in data.items()}
    found = columns(data)
    for name in found.cells:
        if name not in model.event.columns:
            raise ParameterError(f"There is no column {name!r}", "", nearest(str(name), model.event.columns))
    nothing = (np.full(len(found.keys), np.nan), np.ones(len(found.keys), dtype=bool))
    whole = {name: found.cells.get(name, nothing) for name in model.event.columns}
    cells = replace(model.event, missing=True).cells(whole, found.keys)
    return torch.from_numpy(cells), found.keys, found.form


def refuse_impossible(nats: Tensor, keys: np.ndarray) -> None:
    """Raises ZeroEvidenceError where a row has probability zero; the first one is named."""
    bad = torch.isneginf(nats)
    if bool(bad.any()):
        row, more = keys[int(bad.nonzero()[0])], int(bad.sum()) - 1
        raise ZeroEvidenceError(
            f"Row {row} is impossible under the field" + (f", and {more} more" if more else ""),
            "observed cells of positive probability",
            "log_prob says which rows are -inf; look for log-potentials of -inf",
        )
