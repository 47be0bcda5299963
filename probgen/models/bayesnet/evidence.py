"""What a user has seen: rows with gaps for questions, and ``given`` for draws and conditional likelihoods."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import ParameterError, ShapeError, nearest
from probgen.events import Checked, Table
from probgen.logprob import Kind, LogProb
from probgen.models.bayesnet.likelihood import log_prob
from probgen.models.bayesnet.scoring import impossible

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Conditions", "conditional_log_prob", "conditions", "rows"]


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


def rows(net: "BayesianNetwork", x: Any) -> tuple[Tensor, np.ndarray, Any]:
    """Cells (n, columns), row keys and form of data in which columns may be lacking: nothing is known of them."""
    if x is None:
        return torch.full((1, len(net.variables)), torch.nan, dtype=torch.float64), np.arange(1), net.form
    if not _has_names(x) and not isinstance(x, str | PathLike):
        checked = replace(net.event, missing=True).check(x)
        return checked.x, checked.about.keys, checked.form
    found = _partial(net, x)
    return found.x, found.about.keys, found.form


def conditions(net: "BayesianNetwork", given: Any, n: int | None) -> Conditions:
    """Checked conditions: one for all n rows of data (for all draws), or one a row.

    Raises:
        ParameterError: not by column name, an unknown column, or nothing given.
        ShapeError: as many as neither one nor the rows of data.
    """
    if not (_has_names(given) and len(given)) and not isinstance(given, str | PathLike):
        raise ParameterError(
            f"given={given!r:.80}", "cells by column name", "given={'smoke': 'yes'}, or a frame of conditions"
        )
    found = _partial(net, given)
    cells = found.x
    names = tuple(n for n, seen in zip(net.variables, (~cells.isnan()).any(0).tolist(), strict=True) if seen)
    if not names:
        raise ParameterError("given= without a single cell", "at least one observed cell", "Leave given= out")
    if n is not None and len(cells) not in (1, n):
        raise ShapeError(f"given= has {len(cells)} rows for {n} rows of data", f"one condition, or {n}")
    return Conditions(cells, names, found.about.keys)


def _has_names(data: Any) -> bool:
    return isinstance(data, Mapping) or frames.is_frame(data)


def _partial(net: "BayesianNetwork", data: Any) -> Checked:
    """Cells of all columns where data have some; a dict may hold single values, which stand for every row."""
    data = frames.read(data) if isinstance(data, str | PathLike) else data
    if isinstance(data, Mapping):
        many = [len(value) for value in data.values() if not _is_single(value)]
        data = {str(name): [v] * (many or [1])[0] if _is_single(v) else v for name, v in data.items()}
    names = [str(n) for n in data] if isinstance(data, Mapping) else _column_names(data)
    for name in names:
        if name not in net.index:
            raise ParameterError(f"There is no variable {name!r}", "", nearest(str(name), net.index))
    some = {name: column for name, column in net.event.columns.items() if name in names}
    if not some:
        raise ParameterError("Rows without a single known column", f"some of {list(net.variables)[:12]}", "")
    found = Table(some).check(data)
    cells = torch.full((len(found), len(net.variables)), torch.nan, dtype=torch.float64)
    cells[:, [net.index[name] for name in some]] = found.x
    return replace(found, x=cells)


def _is_single(value: Any) -> bool:
    return isinstance(value, str | bytes) or not hasattr(value, "__len__")


def _column_names(frame: Any) -> list[str]:
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
    rest = Table(
        {name: column for name, column in net.event.columns.items() if name not in given.names} or net.event.columns
    )
    named = {
        name: np.where(above.refused, above.__dict__[name], below.__dict__[name]) for name in ("_reasons", "_insteads")
    }
    return LogProb(
        kinds,
        nats,
        by=" - ".join(dict.fromkeys((above.by, below.by))),
        stderr=stderr,
        of=f"x|{','.join(given.names)}",
        measure=rest.measure,
        reason=named["_reasons"],
        instead=named["_insteads"],
    )
