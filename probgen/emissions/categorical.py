"""Cells that are one of some levels, each with its own table."""

from collections.abc import Callable
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics, _std
from probgen.errors import ParameterError
from probgen.events import Array

__all__ = ["IMPOSSIBLE", "Categorical", "cumulated", "distinct", "on_grid", "table_counts", "table_log_prob"]

IMPOSSIBLE = -1e300  # stands for -inf inside a matrix product, where 0 * inf is NaN


class Categorical(Emission):
    """Independent cells x_d | state with probabilities over 0..levels-1.

    Arguments:
        levels: Number of levels, or one number a cell.
        width: Cells.
        smoothing: Pseudo-observations a cell and state: a Dirichlet prior, so EM maximises a penalised likelihood and
            unseen levels stay possible. 0 gives maximum likelihood; a level never seen then has probability zero.
        prior: How they are spread over the levels: as the whole data's "margin", or "even".
    """

    margin: Tensor

    def __init__(
        self,
        levels: int | tuple[int, ...],
        width: int = 1,
        smoothing: float = 1.0,
        prior: Literal["margin", "even"] = "margin",
        states: int = 1,
    ) -> None:
        super().__init__()
        if prior not in ("margin", "even"):
            raise ParameterError(f"prior={prior!r}", "margin or even")
        if smoothing < 0:
            raise ParameterError(f"smoothing={smoothing}", "pseudo-observations >= 0")
        self.levels = levels if isinstance(levels, int) else tuple(levels)
        self.width, self.smoothing, self.prior, self.states = width, smoothing, prior, states
        counts = torch.as_tensor(self.levels).expand(width)
        possible = torch.arange(int(counts.max())) < counts[:, None]
        self.logits = nn.Parameter(torch.zeros(states, *possible.shape, dtype=torch.float64))
        self.register_buffer("margin", possible.to(torch.float64) / counts[:, None])

    def table(self) -> Tensor:
        """Log-probabilities (K, width, levels); -inf beyond a cell's own levels."""
        return torch.where(self.margin > 0, self.logits, -torch.inf).log_softmax(-1)

    @property
    def event(self) -> Array:
        levels = self.levels if isinstance(self.levels, int) or self.width > 1 else self.levels[0]
        return self._array(levels=max(levels, 2) if isinstance(levels, int) else tuple(max(v, 2) for v in levels))

    def priors(self) -> dict[str, dist.TorchDistribution]:
        centre = torch.where(self.margin > 0, self.margin.log(), 0.0)
        shape = self.logits.shape
        return {"logits": dist.Normal(centre, torch.ones_like(centre)).expand(shape).to_event(3)}

    def natural(self) -> dict[str, Tensor]:
        """``probs`` (K, width, levels), 0 beyond a cell's own levels."""
        return {"probs": self.table().exp()}

    def cdf(self, x: Tensor) -> Tensor:
        levels = self.margin.shape[-1]
        below = nn.functional.pad(self.table().exp().cumsum(-1), (1, 0))  # (K, width, levels + 1), from nothing to all
        place = (torch.nan_to_num(x).floor() + 1).clamp(0, levels).long()
        looked_up = below[:, torch.arange(self.width), place].movedim(0, 1)
        return torch.where(x.isnan()[:, None], torch.nan, looked_up)

    def mean(self, given: Tensor | None = None) -> Tensor:
        return self.table().exp() @ torch.arange(self.margin.shape[-1], dtype=self.logits.dtype)

    def variance(self, given: Tensor | None = None) -> Tensor:
        away = torch.arange(self.margin.shape[-1], dtype=self.logits.dtype) - self.mean()[..., None]
        return (self.table().exp() * away.square()).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        return table_log_prob(self.table(), x)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Categorical(logits=self.table()[state])

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        probabilities = self.table().exp()[state].reshape(len(state) * self.width, -1)
        return torch.multinomial(probabilities, 1, generator=generator).reshape(len(state), -1).to(torch.float64)

    def prepare(self, x: Tensor) -> None:
        if self.prior == "even":
            return
        seen = table_counts(x, torch.ones(len(x), 1, dtype=torch.float64), self.margin.shape[-1])[0]
        possible = self.margin > 0
        counts = seen + possible.to(seen.dtype) / possible.sum(-1, keepdim=True)
        self.margin = torch.where(possible, counts, 0.0) / counts.sum(-1, keepdim=True)

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        return {"counts": table_counts(x, weights, self.margin.shape[-1])}

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        counts = statistics["counts"] + self.smoothing * self.margin
        total = counts.sum(-1, keepdim=True)
        empty = statistics["counts"].sum((1, 2)) <= 1e-8
        known = (total > 0) & ~empty[:, None, None] & (self.margin > 0)
        self.logits.copy_(torch.where(known, counts.log() - total.log(), self.logits))
        return empty.nonzero()[:, 0].tolist()

    def penalty(self) -> Tensor:
        prior = self.smoothing * self.margin
        return torch.where(prior > 0, prior * self.table(), 0.0).sum()

    def features(self, x: Tensor) -> Tensor:
        if self.width > 1:  # levels of many like cells (pixels) are ordered; a single category is not
            return super().features(x)
        hot = nn.functional.one_hot(torch.nan_to_num(x[:, 0]).long(), self.margin.shape[-1]).to(torch.float64)
        return hot / _std(hot) * (~x.isnan())

    @property
    def n_params(self) -> int:
        return self.states * int((torch.as_tensor(self.levels).expand(self.width) - 1).sum())


def on_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers x (n, width) as a grid of the values of each cell, (width, g), and codes on it, NaN kept.

    Small numbers are their own codes; else the grid has the distinct values.
    """
    top = int(torch.nan_to_num(x).max()) if len(x) else 0
    if top < max(256, len(x) // 4):
        return torch.arange(top + 1, dtype=x.dtype).expand(x.shape[1], -1), x
    return distinct(x)


def distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of each cell, (width, g), and codes of x (n, width) among them, NaN kept."""
    columns = [column.unique(return_inverse=True) for column in torch.nan_to_num(x).T]
    longest = max(len(values) for values, _ in columns)
    grid = torch.stack([nn.functional.pad(v, (0, longest - len(v)), value=v[0].item()) for v, _ in columns])
    codes = torch.stack([inverse for _, inverse in columns], 1).to(x.dtype)
    return grid, torch.where(x.isnan(), torch.nan, codes)


def cumulated(log_mass: Callable[[Tensor], Tensor], top: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """P(X <= top) for counts, (n, K, width), from the log mass (K, width, g) on a grid (g,) of whole numbers from 0.

    ``top`` (n, 1, width) may be NaN. Beyond the mean plus 100 deviations all of the mass lies below.
    """
    reach = float((mean + 100 * variance.sqrt()).max().detach()) + 100
    last = max(0, int(min(float(torch.nan_to_num(top).max()), reach)))
    below = log_mass(torch.arange(last + 1, dtype=mean.dtype)).exp().cumsum(-1).clamp(max=1.0)
    below = nn.functional.pad(below, (1, 0))
    place = (torch.nan_to_num(top[:, 0]) + 1).clamp(0, last + 1).long()
    looked_up = below[:, torch.arange(below.shape[1]), place].movedim(0, 1)
    return torch.where(top.isnan(), torch.nan, torch.where(top > reach, torch.ones_like(looked_up), looked_up))


def table_log_prob(table: Tensor, x: Tensor) -> Tensor:
    """Sums of log-probabilities looked up by cell: table (K, width, levels), codes (n, width) -> (n, K)."""
    states, width, levels = table.shape
    seen = ~x.isnan()
    codes = torch.nan_to_num(x).long()
    if width <= 8 or (width * levels > 4096 and states * len(x) * width < 1 << 16):
        rows = torch.cat([table.movedim(0, -1), table.new_zeros(width, 1, states)], 1)  # the last is for missing cells
        place = torch.where(seen, codes, levels)
        columns = [row.index_select(0, column) for row, column in zip(rows, place.T, strict=True)]
        return sum(columns[1:], columns[0])
    if width * levels <= 4096 and not table.requires_grad:
        hot = torch.zeros(len(x), width * levels, dtype=table.dtype)
        hot.scatter_(1, codes + torch.arange(width) * levels, seen.to(table.dtype))
        sums = hot @ table.clamp(min=IMPOSSIBLE).reshape(states, -1).T
        return torch.where(sums < IMPOSSIBLE / 10, -torch.inf, sums)
    looked_up = table[:, torch.arange(width), codes]  # (K, n, width)
    return torch.where(seen, looked_up, 0.0).sum(-1).T


def table_counts(x: Tensor, weights: Tensor, levels: int) -> Tensor:
    """Weighted counts of the levels of each cell: codes (n, width), weights (n, K) -> (K, width, levels)."""
    width, states = x.shape[1], weights.shape[1]
    if width <= 8 and levels > 2 * states:
        codes = torch.where(x.isnan(), levels, torch.nan_to_num(x)).long()  # the last row is for missing cells
        rows = [weights.new_zeros(levels + 1, states).index_add_(0, column, weights)[:levels].T for column in codes.T]
        return torch.stack(rows, 1)
    place = torch.nan_to_num(x).long() + torch.arange(width) * levels
    seen = (~x.isnan()).to(weights.dtype)
    if width * levels <= 4096:
        hot = torch.zeros(len(x), width * levels, dtype=weights.dtype).scatter_(1, place, seen)
        return (weights.T @ hot).reshape(-1, width, levels)
    counts = torch.zeros(width * levels, weights.shape[1], dtype=weights.dtype)
    counts.index_add_(0, place.reshape(-1), (seen[..., None] * weights[:, None]).reshape(-1, weights.shape[1]))
    return counts.T.reshape(-1, width, levels)
