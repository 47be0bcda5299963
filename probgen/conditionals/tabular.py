"""A free table."""

from collections.abc import Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.conditionals.conditional import Conditional, as_numbers, draw_levels
from probgen.errors import ParameterError, ShapeError
from probgen.events import Category, Column

__all__ = ["Tabular"]

_OFF = 1e-6 * (1 + 1e-6)  # how far a row's sum may be from one


class Tabular(Conditional):
    """A category given categories: one probability for each configuration and level.

    The parameter ``logits`` (*cards) is the log-table up to a constant a row; -inf is impossible. The buffer ``pseudo``
    (*cards) holds pseudo-counts, zero unless learning sets them: the estimate is (counts + pseudo) / sum, the mode
    under a Dirichlet(1 + pseudo) prior and the posterior mean under a Dirichlet(pseudo) one. The buffer ``counts``
    (*cards) keeps what learning counted, expected numbers unless ``whole`` says that no cell was missing.
    """

    logits: nn.Parameter
    pseudo: Tensor
    counts: Tensor
    whole: Tensor

    def suits(self, child: Column, parents: Sequence[Column]) -> str | None:
        if not isinstance(child, Category):
            return "a table needs a category as the child"
        if not all(isinstance(parent, Category) for parent in parents):
            return "a table needs categories as parents; Softmax takes continuous ones"
        return None

    def _build(self) -> None:
        self.logits = nn.Parameter(torch.zeros(self.cards, dtype=torch.float64))
        self.register_buffer("pseudo", torch.zeros(self.cards, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(self.cards, dtype=torch.float64))
        self.register_buffer("whole", torch.ones((), dtype=torch.bool))

    @classmethod
    def of(cls, probabilities: Any, child: Category | None = None, parents: Sequence[Category] | None = None) -> Self:
        """A bound table of some probabilities: axes are the parents in their order, then the child.

        Without columns the levels are 0, 1, ...; ``bind`` hands the numbers on to columns of the same sizes.

        Raises:
            ShapeError, ParameterError: see ``set_table``.
        """
        try:
            shape = torch.as_tensor(probabilities, dtype=torch.float64).shape
        except (TypeError, ValueError, RuntimeError) as problem:
            raise ShapeError(f"The table is no array of numbers: {problem}", "one axis a variable") from problem
        if not len(shape) or 0 in shape:
            raise ShapeError(f"A table of shape {tuple(shape)}", "one axis a parent, then the child's levels")
        plain = [Category(tuple(range(n))) for n in shape]
        made = cls().bind(child or plain[-1], plain[:-1] if parents is None else parents)
        made.set_table(probabilities)
        return made

    @torch.no_grad()
    def set_table(self, values: Any, log: bool = False) -> float:
        """Sets the table; rows whose sum is off 1 by at most 1e-6 are renormalised.

        Arguments:
            values: Probabilities of shape ``cards``, or their natural logarithms where ``log``.

        Returns:
            The largest distance of a row's sum from 1.

        Raises:
            ShapeError: another shape.
            ParameterError: a negative number, NaN, or a row whose sum is further off, by its configuration.
        """
        table = as_numbers(values, self.cards, "The table")
        total = (table.exp() if log else table).sum(-1, keepdim=True)
        off = (total - 1).abs().max().item()
        if not off <= _OFF or (not log and table.min().item() < 0):
            self._refuse(table, total, log)
        self.logits.copy_(table - total.log() if log else (table / total).log())
        return off

    def _refuse(self, table: Tensor, total: Tensor, log: bool) -> None:
        """Names the first unusable number, by its configuration and level."""
        if not log and (table < 0).any():
            bad, values, what, wanted = table < 0, table, "is negative", "a probability"
        else:
            bad, values, what, wanted = ~((total - 1).abs() <= _OFF), total, "is the sum of a row", "1, up to 1e-6"
        place = tuple(bad.nonzero()[0].tolist())
        named = [column.levels[i] for column, i in zip(self.parents, place, strict=False)]  # type: ignore[attr-defined]
        where = f" where the parents are {named}" if self.parents else ""
        if values is table:
            where = f" at the level {self.child.levels[place[-1]]!r}{where}"  # type: ignore[attr-defined]
        raise ParameterError(f"{values[place].item():.9g} {what}{where}", wanted, "Check the table, and its axes")

    def log_table(self) -> Tensor:
        return self.logits.log_softmax(-1)

    def log_factor(self, child: Tensor, parents: Tensor) -> Tensor:
        return self.log_table().expand(len(parents), *self.cards)

    def log_prob(self, child: Tensor, parents: Tensor) -> Tensor:
        return self.log_table().reshape(-1)[self.configuration(parents) * self.cards[-1] + child.long()]

    def cells(self, parents: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=self.log_table().reshape(-1, self.cards[-1])[self.configuration(parents)])

    def sample(self, parents: Tensor, generator: torch.Generator) -> Tensor:
        rows = self.log_table().detach().exp().reshape(-1, self.cards[-1])
        return draw_levels(rows[self.configuration(parents)], generator)

    @torch.no_grad()
    def maximise(self, counts: Tensor) -> list[int]:
        counts = self._checked_counts(counts)
        smoothed = counts + self.pseudo
        total = smoothed.sum(-1, keepdim=True)
        self.logits.copy_(torch.where(total > 0, smoothed.log() - total.log(), self.logits))
        return (counts.sum(-1).reshape(-1) <= 0).nonzero()[:, 0].tolist()

    def penalty(self) -> Tensor:
        return torch.where(self.pseudo > 0, self.pseudo * self.log_table(), 0.0).sum()

    def priors(self) -> dict[str, dist.TorchDistribution]:
        zero = torch.zeros(self.cards, dtype=torch.float64)
        return {"logits": dist.Normal(zero, 1.5).to_event(len(self.cards))}

    @property
    def n_params(self) -> int:
        return self.configurations * (self.cards[-1] - 1)

    def natural(self) -> dict[str, Tensor]:
        """``probs`` (*cards)."""
        return {"probs": self.log_table().exp()}

    def set_natural(self, *, probs: Any) -> Self:
        self.set_table(probs)
        return self
