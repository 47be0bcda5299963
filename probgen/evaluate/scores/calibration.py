"""Whether a model's probabilities come true: probability integral transforms and the coverage of intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.evaluate.scores.draws import Drawn, column, columns_of, drawn
from probgen.events import Category, Event
from probgen.model import generator_of

__all__ = ["Coverage", "Pit", "interval_coverage", "pit"]


@dataclass(frozen=True, eq=False)
class Pit:
    """Probability integral transforms by column: uniform on (0, 1) where the model is right.

    Arguments:
        values: Of each row, (n,), by column; NaN where the cell is missing.
        statistics: Kolmogorov and Smirnov's distance from uniform, by column.
        pvalues: Of it, corrected for the number of columns (Holm 1979).
        draws: Samples that stand for the model.
    """

    values: Mapping[str, np.ndarray]
    statistics: Mapping[str, float]
    pvalues: Mapping[str, float]
    draws: int

    def histogram(self, bins: int = 10) -> dict[str, np.ndarray]:
        """Shares of the rows in equal bins, by column: a hump says too wide, a trough too narrow, a slope biased."""
        counts = {name: np.histogram(v[~np.isnan(v)], bins, (0, 1))[0] for name, v in self.values.items()}
        return {name: count / count.sum() for name, count in counts.items()}

    def __str__(self) -> str:
        lines = [f"{n}: distance from uniform {d:.4f}, p {self.pvalues[n]:.4g}" for n, d in self.statistics.items()]
        return "\n".join(["PIT by column (p corrected by Holm)", *lines])

    __repr__ = __str__


def pit(
    model: Any,
    x: Any,
    *,
    draws: int = 1000,
    given: Any = None,
    event: Event | None = None,
    seed: int | None = None,
) -> Pit:
    """The rank of each numeric cell among the draws, randomised among equal ones and within a step of 1 / (m + 1).

    So it is uniform for counts and rounded numbers, too, and for any number of draws m (Czado, Gneiting and Held 2009).
    Arguments as of ``scores.energy``.

    The p-value allows for the draws, which all rows share.

    Raises:
        StructureError: no numeric column.
    """
    d = drawn(model, x, draws, given, seed, event)
    places = columns_of(d, lambda c, levels: not isinstance(c, Category), "numbers")
    generator = generator_of(None if seed is None else (seed + 1) % 2**63)  # not that of the draws
    values = {name: _ranks(*column(d, j), generator) for name, j in places.items()}
    found = {name: _uniformity(value, None if d.own else d.many) for name, value in values.items()}
    shown = {name: value.numpy() for name, value in values.items()}
    raw = {name: p for name, (_, p) in found.items()}
    return Pit(shown, {name: s for name, (s, _) in found.items()}, _corrected(raw), d.many)


def _ranks(x: Tensor, cells: Tensor, generator: torch.Generator) -> Tensor:
    """(draws below + V (draws equal + 1)) / (m + 1), V uniform: uniform where cell and draws are exchangeable."""
    m, v = cells.shape[-1], torch.rand(len(x), generator=generator, dtype=torch.float64)
    if cells.ndim == 2:
        below, equal = (cells < x[:, None]).sum(1), (cells == x[:, None]).sum(1)
    else:
        order = cells.sort().values
        below = torch.searchsorted(order, x.nan_to_num(0.0))
        equal = torch.searchsorted(order, x.nan_to_num(0.0), right=True) - below
    return torch.where(x.isnan(), math.nan, (below + v * (equal + 1)) / (m + 1))


def _uniformity(values: Tensor, shared: int | None) -> tuple[float, float]:
    """Kolmogorov and Smirnov's statistic and p-value (Stephens 1970); shared draws count as a second sample."""
    order = values[~values.isnan()].sort().values
    n = len(order)
    if not n:
        return math.nan, 1.0
    place = torch.arange(1, n + 1, dtype=torch.float64) / n
    statistic = float(torch.maximum(place - order, order - place + 1 / n).max())
    root = math.sqrt(n if shared is None else n * shared / (n + shared))
    t = (root + 0.12 + 0.11 / root) * statistic
    if t < 0.3:
        return statistic, 1.0
    return statistic, min(1.0, max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * t) ** 2) for k in range(1, 101))))


def _corrected(raw: Mapping[str, float]) -> dict[str, float]:
    """p-values after Holm, in the columns' order."""
    found, most = {}, 0.0
    for i, (p, name) in enumerate(sorted((p, name) for name, p in raw.items())):
        most = max(most, min(1.0, p * (len(raw) - i)))
        found[name] = most
    return {name: found[name] for name in raw}


@dataclass(frozen=True, eq=False)
class Coverage:
    """How often central intervals hold the cell, by level and column.

    Arguments:
        shares: (levels, columns); in the mean the level where the model is right, more for whole numbers.
        stderrs: Their binomial errors, and of the draws that rows share.
        widths: Mean widths, in the column's units.
        levels, columns: What rows and columns are.
    """

    shares: np.ndarray
    stderrs: np.ndarray
    widths: np.ndarray
    levels: tuple[float, ...]
    columns: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{'interval':10}" + "".join(f"{name:>24}" for name in self.columns)]
        for level, *row in zip(self.levels, self.shares, self.stderrs, self.widths, strict=True):
            cells = [f"{s:.1%} ± {e:.1%}, width {w:.3g}" for s, e, w in zip(*row, strict=True)]
            lines.append(f"{level:<10.1%}" + "".join(f"{cell:>24}" for cell in cells))
        return "\n".join(lines)

    __repr__ = __str__


def interval_coverage(
    model: Any,
    x: Any,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    draws: int = 1000,
    given: Any = None,
    event: Event | None = None,
    seed: int | None = None,
) -> Coverage:
    """How often the central intervals of the draws hold each numeric cell. Arguments as of ``scores.energy``.

    Ends are interpolated order statistics at rank p (m + 1), for which the expected coverage is the level for any
    number of draws m.

    Raises:
        ParameterError: a level outside (0, 1), or too near 1 for the draws.
        StructureError: no numeric column.
    """
    wanted = tuple(float(level) for level in levels)
    if not wanted or not all(0 < level < 1 for level in wanted):
        raise ParameterError(f"levels={levels!r}", "numbers between 0 and 1", "(0.5, 0.95), say")
    d = drawn(model, x, draws, given, seed, event)
    if (1 - max(wanted)) / 2 * (d.many + 1) < 1:
        least = math.ceil(2 / (1 - max(wanted)))
        raise ParameterError(f"{d.many} draws for a level of {max(wanted)}", f"at least {least}", "Draw more")
    places = columns_of(d, lambda c, levels: not isinstance(c, Category), "numbers")
    found = np.array([[_covered(d, j, level) for j in places.values()] for level in wanted])
    return Coverage(found[..., 0], found[..., 1], found[..., 2], wanted, tuple(places))


def _covered(d: Drawn, j: int, level: float) -> tuple[float, float, float]:
    """Share, standard error and mean width of one column's interval."""
    x, cells = column(d, j)
    order = cells.sort(-1).values
    low, high = (_at(order, p) for p in ((1 - level) / 2, (1 + level) / 2))
    seen = ~x.isnan()
    inside = ((x >= low) & (x <= high))[seen].double()
    n, share = len(inside), float(inside.mean())
    spread = max(share * (1 - share), level * (1 - level)) / n
    drawing = 0.0 if d.own else level * (1 - level) / (d.many + 2)  # the interval's own mass is Beta
    return share, math.sqrt(spread + drawing), float((high - low).mean())


def _at(order: Tensor, p: float) -> Tensor:
    """The order statistic of rank p (m + 1), interpolated."""
    rank = p * (order.shape[-1] + 1) - 1
    lower = min(max(math.floor(rank), 0), order.shape[-1] - 2)
    share = min(max(rank - lower, 0.0), 1.0)
    return (1 - share) * order[..., lower] + share * order[..., lower + 1]
