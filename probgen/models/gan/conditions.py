"""Which level of which category a row is to have: rare ones are drawn more often in training."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Conditions", "Drawn", "Rows"]


class Drawn(NamedTuple):
    """Conditions of n rows, each on one category: its number among the categories, and the level's code, (n,) each."""

    place: Tensor
    code: Tensor


class Conditions(nn.Module):
    """One condition a row, "category j has level k", as a one-hot vector over all levels of all categories.

    In training the category is uniform and its level is drawn in proportion to log(1 + count), so that a rare level
    is seen often enough to be learnt (Xu et al. 2019, 4.3); in sampling in proportion to its count, so that the draws
    have the data's shares.

    Arguments:
        columns: Where the categories stand in a row.
        levels: Of each.
    """

    counts: Tensor

    def __init__(self, columns: Sequence[int], levels: Sequence[int]) -> None:
        super().__init__()
        self.columns, self.levels = list(columns), list(levels)
        self.register_buffer("counts", torch.zeros(sum(levels), dtype=torch.float64))

    @property
    def width(self) -> int:
        """Of the one-hot vector."""
        return sum(self.levels)

    def measure(self, x: Tensor) -> None:
        """Learns how often each level occurs in rows (n, columns); missing cells count for none."""
        found = [_counted(x[:, i], k) for i, k in zip(self.columns, self.levels, strict=True)]
        self.counts.copy_(torch.cat(found))

    def tables(self) -> list[Tensor]:
        """Counts of each category's levels."""
        return list(self.counts.split(self.levels))

    def draw(self, n: int, generator: torch.Generator, log: bool) -> Drawn:
        """Conditions of n rows; ``log`` for those of training. Categories that are never seen are never drawn."""
        tables = [table.log1p() if log else table for table in self.tables()]
        alive = torch.stack([table.sum() > 0 for table in tables]).to(torch.float64)
        place = torch.multinomial(alive if bool(alive.any()) else alive + 1, n, True, generator=generator)
        codes = [
            torch.multinomial(table if bool(table.sum() > 0) else table + 1, n, True, generator=generator)
            for table in tables
        ]
        return Drawn(place, torch.stack(codes, 1).gather(1, place[:, None])[:, 0])

    def vector(self, drawn: Drawn) -> Tensor:
        """The one-hot vectors, (n, width), float32."""
        offsets = torch.tensor([0, *self.levels[:-1]]).cumsum(0)
        places = offsets[drawn.place] + drawn.code
        return nn.functional.one_hot(places, self.width).to(torch.float32)

    def shares(self) -> Tensor:
        """Probability of each entry of the one-hot vector in sampling, (width,)."""
        tables = [table / table.sum().clamp(min=1.0) for table in self.tables()]
        joined = torch.cat(tables)
        return joined / joined.sum() if bool(joined.sum() > 0) else torch.full_like(joined, 1 / len(joined))


class Rows:
    """Real rows by condition: those with each level of each category.

    Arguments:
        x: All training rows, (n, columns or more).
        conditions: Whose columns these are.
    """

    def __init__(self, x: Tensor, conditions: Conditions) -> None:
        self.x, self.counts, self.starts, self.order = x, [], [], []
        for i, levels in zip(conditions.columns, conditions.levels, strict=True):
            counts = _counted(x[:, i], levels).long()
            self.counts.append(counts)
            self.starts.append(counts.cumsum(0) - counts)
            self.order.append(x[:, i].nan_to_num(float(levels)).argsort(stable=True))

    def draw(self, drawn: Drawn, generator: torch.Generator) -> Tensor:
        """A row for each condition, uniform among those that fulfil it, with replacement: (n, columns)."""
        u = torch.rand(len(drawn.place), generator=generator, dtype=torch.float64)
        rows = torch.zeros(len(u), dtype=torch.int64)
        for j, (counts, starts, order) in enumerate(zip(self.counts, self.starts, self.order, strict=True)):
            mine = drawn.place == j
            count = counts[drawn.code[mine]]
            place = torch.minimum((u[mine] * count).long(), (count - 1).clamp(min=0))
            rows[mine] = order[(starts[drawn.code[mine]] + place).clamp(max=len(order) - 1)]
        return self.x[rows]


def _counted(column: Tensor, levels: int) -> Tensor:
    return torch.bincount(column[~column.isnan()].long(), minlength=levels).to(torch.float64)
