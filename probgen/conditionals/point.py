"""A value that is set."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.conditionals.conditional import Conditional
from probgen.errors import ParameterError
from probgen.events import Category, Column, Count, Real

__all__ = ["Point"]


class Point(Conditional):
    """The child has one value, whatever its parents: what ``do()`` puts in a conditional's place.

    The log-probability is 0 there and -inf elsewhere, of a continuous child too: a mass, not a density.

    Arguments:
        level: A level of a category, or a number.
    """

    def __init__(self, level: Any) -> None:
        super().__init__()
        self.level = level

    def suits(self, child: Column, parents: Sequence[Column]) -> str | None:
        if isinstance(child, Category):
            return None if _among(self.level, child.levels) else f"it is no level of {list(child.levels)[:12]}"
        if isinstance(self.level, bool) or not isinstance(self.level, int | float) or not abs(self.level) < torch.inf:
            return "it is no finite number"
        if isinstance(child, Count) and (self.level < 0 or self.level != int(self.level)):
            return "it is no count"
        return "it is not positive" if isinstance(child, Real) and child.positive and self.level <= 0 else None

    @property
    def value(self) -> float:
        """The number or the level's code."""
        child = self.child
        return float(child.levels.index(self.level) if isinstance(child, Category) else self.level)

    def cells(self, parents: Tensor) -> dist.TorchDistribution:
        if self.discrete:
            return dist.Categorical(logits=self._row().expand(*parents.shape[:-1], -1))
        return dist.Delta(torch.full(parents.shape[:-1], self.value, dtype=torch.float64))

    def _row(self) -> Tensor:
        return torch.where(torch.arange(self.cards[-1]) == self.value, 0.0, -torch.inf).to(torch.float64)

    def log_factor(self, child: Tensor, parents: Tensor) -> Tensor:
        if self.discrete:
            return self._row().expand(len(parents), *self.cards)
        there = self.log_prob(child, parents)
        return there.reshape(-1, *[1] * len(self.cards)).expand(-1, *self.cards)

    def log_prob(self, child: Tensor, parents: Tensor) -> Tensor:
        return torch.where(child == self.value, 0.0, -torch.inf).to(torch.float64)

    def sample(self, parents: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full((len(parents),), self.value, dtype=torch.float64)

    def mean(self, parents: Tensor) -> Tensor:
        if self.discrete:
            raise self._lacks("mean")
        return torch.full(parents.shape[:-1], self.value, dtype=torch.float64)

    def variance(self, parents: Tensor) -> Tensor:
        return torch.zeros_like(self.mean(parents))

    def maximise(self, counts: Tensor) -> list[int]:
        """Nothing is learned."""
        return []

    def maximise_rows(self, child: Tensor, parents: Tensor, weights: Tensor) -> list[int]:
        """Nothing is learned."""
        return []

    def maximise_moments(self, second: Tensor, centre: Tensor | None = None) -> list[int]:
        """Nothing is learned."""
        return []

    def priors(self) -> dict[str, dist.TorchDistribution]:
        return {}

    @property
    def n_params(self) -> int:
        return 0

    def natural(self) -> dict[str, Tensor]:
        """``value`` ()."""
        return {"value": torch.tensor(self.value, dtype=torch.float64)}


def _among(level: Any, levels: tuple) -> bool:
    try:
        return level in levels
    except (TypeError, ValueError, RuntimeError) as problem:
        raise ParameterError(f"level={level!r}", f"one of {list(levels)[:12]}") from problem
