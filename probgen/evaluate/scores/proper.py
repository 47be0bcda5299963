"""Energy, variogram, continuous ranked probability and Brier scores from draws, unbiased in their number."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probgen.errors import DataError, ParameterError, StructureError
from probgen.evaluate.scores.draws import CELLS, Drawn, Scores, column, columns_of, drawn, numbers, scored
from probgen.events import Array, Category, Event, Table

__all__ = ["brier", "crps", "energy", "variogram"]


# Scores of whole rows


def energy(
    model: Any,
    x: Any,
    *,
    draws: int = 1000,
    given: Any = None,
    standardise: bool | None = None,
    event: Event | None = None,
    seed: int | None = None,
) -> Scores:
    """Energy score of each row: E|X - x| - E|X - X'| / 2, unbiased in the number of draws (Gneiting and Raftery 2007).

    Arguments:
        model: A fitted model, or samples of it (then ``draws`` and ``given`` are idle).
        x: Held-out rows.
        draws: Of the model; those of a model without covariates serve all rows, and their error is part of the answer.
        given: Covariates of the rows.
        standardise: Whether columns are divided by their spread in x, so that units do not matter; None does so for
            all but arrays. Tables and sequences are seen as ``two_sample`` sees them.
        event: What a row is, for samples; None infers it.

    Raises:
        DataError: unusable cells, fewer than 10 draws.
    """
    d = drawn(model, x, draws, given, seed, event)
    scaled = not isinstance(d.event, Array) if standardise is None else standardise
    rows, cells = numbers(d, scaled)
    name = f"energy({'standardised' if scaled else 'raw units'})"
    if d.own:
        to_x = torch.linalg.vector_norm(cells - rows[:, None], dim=2)
        among = torch.stack([_mean_away(own) for own in cells])
        return scored(name, d, to_x.mean(1) - 0.5 * among.mean(1), to_x - among)
    values, toward = [], torch.zeros(len(cells), dtype=torch.float64)
    for part in rows.split(max(1, CELLS // len(cells))):
        away = torch.cdist(part, cells)
        values.append(away.mean(1))
        toward += away.sum(0)
    among = _mean_away(cells)
    return scored(name, d, torch.cat(values) - 0.5 * among.mean(), toward / len(rows) - among)


def _mean_away(cells: Tensor) -> Tensor:
    """Mean distance of each draw to the others, (m,)."""
    parts = [torch.cdist(part, cells).sum(1) for part in cells.split(max(1, CELLS // len(cells)))]
    return torch.cat(parts) / (len(cells) - 1)


def variogram(
    model: Any,
    x: Any,
    *,
    order: float = 0.5,
    draws: int = 1000,
    given: Any = None,
    standardise: bool | None = None,
    event: Event | None = None,
    seed: int | None = None,
) -> Scores:
    """Variogram score of each row: the mean over pairs of columns of (|x_i - x_j|^p - E|X_i - X_j|^p)^2.

    It sees wrong dependence between columns, which the energy score hardly does, and no common shift (Scheuerer and
    Hamill 2015). The square of the estimated mean is freed of its Monte Carlo bias.

    Arguments:
        order: p. Else as of ``energy``.

    Raises:
        StructureError: rows of one number.
    """
    if not 0 < order < math.inf:
        raise ParameterError(f"order={order!r}", "a positive number", "0.5 is usual")
    d = drawn(model, x, draws, given, seed, event)
    scaled = not isinstance(d.event, Array) if standardise is None else standardise
    rows, cells = numbers(d, scaled)
    if (width := rows.shape[1]) < 2:
        raise StructureError("A variogram of rows of one number", "at least two columns", "crps scores one")
    first, second = torch.triu_indices(width, width, 1)
    values = torch.zeros(len(rows), dtype=torch.float64)
    slopes = torch.zeros(cells.shape[:-1], dtype=torch.float64)
    for i in range(0, len(first), step := max(1, CELLS // (cells[..., 0].numel() + len(rows)))):
        own, other = first[i : i + step], second[i : i + step]
        seen = (rows[:, own] - rows[:, other]).abs() ** order
        said = (cells[..., own] - cells[..., other]).abs() ** order
        mean, bias = said.mean(-2), said.var(-2) / d.many
        values += ((seen - mean).square() - bias).sum(1)
        miss = (mean - seen)[:, None] if d.own else (mean - seen).mean(0)
        slopes += 2 * (miss * said).sum(-1)
    name = f"variogram({order:g}, {'standardised' if scaled else 'raw units'})"
    return scored(name, d, values / len(first), slopes / len(first))


# Scores of single columns


def crps(
    model: Any,
    x: Any,
    *,
    draws: int = 1000,
    given: Any = None,
    event: Event | None = None,
    seed: int | None = None,
) -> Scores:
    """Continuous ranked probability score: E|X - x| - E|X - X'| / 2 of each numeric column, their mean a row.

    In the column's units, unbiased in the number of draws (the fair version of Ferro 2014). ``.columns`` has each
    column's; missing cells are left out. Arguments as of ``energy``.

    Raises:
        StructureError: no numeric column.
    """
    d = drawn(model, x, draws, given, seed, event)
    places = columns_of(d, lambda c, levels: not isinstance(c, Category), "numbers")
    found = {name: _ranked(*column(d, j)) for name, j in places.items()}
    return _mean_of_columns("crps", d, found)


def _ranked(x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """CRPS of each row, NaN where missing, and each draw's slope for the mean over rows, by sorting."""
    seen = ~x.isnan()
    if not seen.any():
        raise DataError("A column that is missing in every row", "at least one value to score", "Leave the column out")
    if cells.ndim == 2:
        to_x = (cells - x[:, None]).abs()
        among = torch.stack([_mean_gaps(own) for own in cells])
        return to_x.mean(1) - 0.5 * among.mean(1), to_x.nan_to_num(0.0) - among
    among = _mean_gaps(cells)
    toward = _mean_distance(cells, x[seen])
    return _mean_distance(x, cells) - 0.5 * among.mean(), toward - among


def _mean_gaps(cells: Tensor) -> Tensor:
    """Mean distance of each number to the others, (m,)."""
    return _mean_distance(cells, cells) * len(cells) / (len(cells) - 1)


def _mean_distance(x: Tensor, cells: Tensor) -> Tensor:
    """Mean distance of each of some numbers to all cells, by their sorted sums; NaN stays."""
    order = cells.sort().values
    sums = torch.cat([order.new_zeros(1), order.cumsum(0)])
    below = torch.searchsorted(order, x.nan_to_num(0.0), right=True)
    m = len(order)
    return ((2 * below - m) * x + sums[-1] - 2 * sums[below]) / m


def brier(
    model: Any,
    x: Any,
    *,
    draws: int = 1000,
    given: Any = None,
    event: Event | None = None,
    seed: int | None = None,
) -> Scores:
    """Brier score of each column of categories: the sum over levels of (p_k - [x = k])^2, their mean a row, 0 to 2.

    Shares of the draws stand for p, freed of their sampling bias. For tables' categories and arrays' ``levels``;
    arguments as of ``energy``.

    Raises:
        StructureError: no column of categories.
    """
    d = drawn(model, x, draws, given, seed, event)
    places = columns_of(d, lambda c, levels: isinstance(c, Category) or levels > 0, "categories or levels")
    found = {}
    for name, j in places.items():
        levels = len(d.event.columns[name].levels) if isinstance(d.event, Table) else int(d.event.cell_levels[j])  # type: ignore
        found[name] = _squared(*column(d, j), levels)
    return _mean_of_columns("brier", d, found)


def _squared(x: Tensor, cells: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    m, seen = cells.shape[-1], ~x.isnan()
    said = torch.nn.functional.one_hot(cells.long(), levels).double()
    came = torch.nn.functional.one_hot(x.nan_to_num(0.0).long(), levels).double()
    shares = said.mean(-2)
    value = (shares - came).square().sum(1) - (shares * (1 - shares)).sum(-1) / (m - 1)
    miss = (shares - came) * seen[:, None]
    slopes = 2 * (said * miss[:, None]).sum(-1) if cells.ndim == 2 else 2 * said @ (miss.sum(0) / seen.sum())
    return torch.where(seen, value, math.nan), slopes


def _mean_of_columns(name: str, d: Drawn, found: Mapping[str, tuple[Tensor, Tensor]]) -> Scores:
    values = torch.stack([value for value, _ in found.values()])
    if bool((empty := values.isnan().all(0)).any()):
        key = d.about.keys[int(empty.nonzero()[0])]
        raise DataError(f"Row {key} has no cell for {name}", "at least one value in each row", "Leave such rows out")
    slopes = torch.stack([slope for _, slope in found.values()]).mean(0)
    return scored(name, d, values.nanmean(0), slopes, {key: value for key, (value, _) in found.items()})
