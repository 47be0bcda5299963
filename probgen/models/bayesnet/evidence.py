"""What a user has seen: rows with gaps for questions, and ``given`` for draws and conditional likelihoods."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import ParameterError, ShapeError, nearest
from probgen.events import Checked
from probgen.logprob import Kind, LogProb
from probgen.models.bayesnet.likelihood import log_prob
from probgen.models.bayesnet.scoring import impossible, measure

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Conditions", "checked", "conditional_log_prob", "conditions", "labelled", "rows"]


@dataclass(frozen=True, eq=False)
class Conditions:
    """Observed cells that a draw or a likelihood is conditioned on.

    Arguments:
        cells: Shape (m, columns), NaN where nothing is given.
        names: Columns that are given.
        keys: Of the m conditions.
    """

    cells: Tensor
    names: tuple[str, ...]
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.cells)


def checked(net: "BayesianNetwork", x: Any) -> Checked:
    """Rows in which columns may be lacking: nothing is known of them. A dict of single values is one row."""
    x = frames.read(x, net.event.texts) if isinstance(x, str | PathLike) else x
    x = _spread(x) if isinstance(x, Mapping) else x
    return net.event.check(x, partial=net.event.missing)


def rows(net: "BayesianNetwork", x: Any) -> tuple[Tensor, np.ndarray, Any]:
    """Cells (n, columns), row keys and form of data in which columns may be lacking: nothing is known of them."""
    if x is None:
        return torch.full((1, len(net.variables)), torch.nan, dtype=torch.float64), np.arange(1), net.form
    found = _with_gaps(net, x)
    return found.x, found.about.keys, found.form


def labelled(found: Any, x: Any) -> Any:
    """Rows that answer a pandas frame, under its index."""
    return found.set_axis(x.index) if frames.form(x) == frames.form(found) == "pandas" else found


def conditions(net: "BayesianNetwork", given: Any, n: int | None) -> Conditions:
    """Checked conditions: one for all n rows of data (for all draws), or one a row.

    Raises:
        ParameterError: not by column name, an unknown column, or nothing given.
        ShapeError: as many as neither one nor the rows of data.
    """
    if not _is_table(given):
        came = f"given={given!r:.80}".partition("\n")[0]
        do = "given=series.to_dict()" if type(given).__name__ == "Series" else "given={'smoke': 'yes'}, or a frame"
        raise ParameterError(came, "cells by column name, or the path of a table", do)
    found = _with_gaps(net, given)
    cells = found.x
    names = tuple(n for n, seen in zip(net.variables, (~cells.isnan()).any(0).tolist(), strict=True) if seen)
    if not names:
        raise ParameterError("given= without a single cell", "at least one observed cell", "Leave given= out")
    if n is not None and len(cells) not in (1, n):
        raise ShapeError(f"given= has {len(cells)} rows for {n} rows of data", f"one condition, or {n}")
    return Conditions(cells, names, found.about.keys)


def _is_table(data: Any) -> bool:
    if isinstance(data, str | PathLike):
        return Path(data).suffix.lower() in frames.SUFFIXES
    if isinstance(data, Mapping | list):
        return bool(data) and (isinstance(data, Mapping) or all(isinstance(row, Mapping) for row in data))
    return frames.is_frame(data)


def _with_gaps(net: "BayesianNetwork", data: Any) -> Checked:
    """Cells of data that may have gaps even where the event forbids them."""
    event = net.event if net.event.missing else replace(net.event, missing=True)
    data = frames.read(data, event.texts) if isinstance(data, str | PathLike) else data
    names = [*map(str, data)] if isinstance(data, Mapping) else _column_names(data) if frames.is_frame(data) else ()
    for name in names:
        if name not in net.index:
            raise ParameterError(f"There is no variable {name!r}", "", nearest(name, net.index))
    return event.check(_spread(data) if isinstance(data, Mapping) else data, partial=True)


def _spread(data: Mapping) -> dict[str, Any]:
    """A dict of columns in which single values stand for every row."""
    many = [len(value) for value in data.values() if not _is_single(value)]
    return {name: [_plain(v)] * (many or [1])[0] if _is_single(v) else v for name, v in data.items()}


def _is_single(value: Any) -> bool:
    return isinstance(value, str | bytes) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0


def _plain(value: Any) -> Any:
    """A single value; an array or tensor without dimensions as what it holds."""
    return value.item() if getattr(value, "ndim", 1) == 0 and hasattr(value, "item") else value


def _column_names(frame: Any) -> list[str]:
    if hasattr(frame, "collect_schema"):  # polars, lazy or not
        return frame.collect_schema().names()
    names = getattr(frame, "column_names", None)
    return [str(name) for name in (frame.columns if names is None else names)]


def conditional_log_prob(net: "BayesianNetwork", x: Tensor, given: Conditions, generator: torch.Generator) -> LogProb:
    """log p(x | given) = log p(x, given) - log p(given), row by row."""
    known = given.cells.expand(len(x), -1)
    twice = ~x.isnan() & ~known.isnan()
    if bool(twice.any()):
        row, column = twice.nonzero()[0].tolist()
        name = net.variables[column]
        raise ParameterError(
            f"Row {row}, column {name!r} is both scored and given", "each cell once", f"Blank {name!r} in the rows"
        )
    below = log_prob(net, given.cells, generator)
    impossible(torch.from_numpy(below.__dict__["nats"]), given.keys)
    below = below[np.zeros(len(x), dtype=int)] if len(given) == 1 else below
    above = log_prob(net, torch.where(known.isnan(), x, known), generator)
    return _difference(net, above, below, given)


def _difference(net: "BayesianNetwork", above: LogProb, below: LogProb, given: Conditions) -> LogProb:
    """Exact from exact; a lower bound less an exact number is one; of two bounds the side is unknown."""
    table = {
        (Kind.EXACT, Kind.EXACT): Kind.EXACT,
        (Kind.LOWER, Kind.EXACT): Kind.LOWER,
    }
    pairs = list(zip(above.kinds, below.kinds, strict=True))
    refused = above.refused | below.refused
    kinds = [Kind.UNAVAILABLE if off else table.get(p, Kind.ESTIMATE) for p, off in zip(pairs, refused, strict=True)]
    nats = np.where(refused, np.nan, above.__dict__["nats"] - below.__dict__["nats"])
    errors = [lp.stderr for lp in (above, below) if lp.stderr is not None]
    stderr = np.sqrt(np.sum(np.square(errors), axis=0)) if errors else None
    named = {
        name: np.where(above.refused, above.__dict__[name], below.__dict__[name]) for name in ("_reasons", "_insteads")
    }
    return LogProb(
        kinds,
        nats,
        by=" - ".join(dict.fromkeys((above.by, below.by))),
        stderr=stderr,
        of=f"x|{','.join(given.names)}",
        measure=measure(net, given.names),
        reason=named["_reasons"],
        instead=named["_insteads"],
    )
