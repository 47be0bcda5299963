"""Cells that are one of some levels, each with its own table."""

from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics, _std
from probgen.errors import ParameterError

__all__ = ["Categorical", "table_log_prob"]

_IMPOSSIBLE = -1e300  # stands for -inf inside a matrix product, where 0 * inf is NaN


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
        flat = possible.to(torch.float64).log() - counts[:, None].to(torch.float64).log()
        self.logits = nn.Parameter(flat.repeat(states, 1, 1))
        self.register_buffer("margin", flat.exp())

    def table(self) -> Tensor:
        """Log-probabilities (K, width, levels)."""
        return self.logits.log_softmax(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        return table_log_prob(self.table(), x)

    def cells(self, state: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=self.table()[state])

    def sample(self, state: Tensor, generator: torch.Generator) -> Tensor:
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
        known = (total > 0) & ~empty[:, None, None]
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


def table_log_prob(table: Tensor, x: Tensor) -> Tensor:
    """Sums of log-probabilities looked up by cell: table (K, width, levels), codes (n, width) -> (n, K)."""
    states, width, levels = table.shape
    seen = ~x.isnan()
    codes = torch.nan_to_num(x).long()
    if width * levels <= 4096 and not table.requires_grad:
        hot = torch.zeros(len(x), width * levels, dtype=table.dtype)
        hot.scatter_(1, codes + torch.arange(width) * levels, seen.to(table.dtype))
        sums = hot @ table.clamp(min=_IMPOSSIBLE).reshape(states, -1).T
        return torch.where(sums < _IMPOSSIBLE / 10, -torch.inf, sums)
    looked_up = table[:, torch.arange(width), codes]  # (K, n, width)
    return torch.where(seen, looked_up, 0.0).sum(-1).T


def table_counts(x: Tensor, weights: Tensor, levels: int) -> Tensor:
    """Weighted counts of the levels of each cell: codes (n, width), weights (n, K) -> (K, width, levels)."""
    width = x.shape[1]
    place = torch.nan_to_num(x).long() + torch.arange(width) * levels
    seen = (~x.isnan()).to(weights.dtype)
    if width * levels <= 4096:
        hot = torch.zeros(len(x), width * levels, dtype=weights.dtype).scatter_(1, place, seen)
        return (weights.T @ hot).reshape(-1, width, levels)
    counts = torch.zeros(width * levels, weights.shape[1], dtype=weights.dtype)
    counts.index_add_(0, place.reshape(-1), (seen[..., None] * weights[:, None]).reshape(-1, weights.shape[1]))
    return counts.T.reshape(-1, width, levels)
