"""What the recursions take and give, and sequences of unequal length as one batch."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from probgen.emissions.diagonal import diagonal_log_prob

__all__ = ["Batch", "Chain", "Expected", "Filtered", "Normals", "Posterior", "batch_of"]


@dataclass(frozen=True, eq=False)
class Normals:
    """Log-potentials of normals with independent cells, not yet computed: the kernel makes them on the fly.

    Arguments:
        x: Cells, shape (total, D), NaN where missing.
        loc, scale: Means and standard deviations of the states, shape (S, D).
    """

    x: Tensor
    loc: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(total, S), as of the table."""
        return len(self.x), len(self.loc)

    def __getitem__(self, rows: Any) -> "Normals":
        return Normals(self.x[rows], self.loc, self.scale)

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Chain:
    """Markov chains over S states with log-potentials at each step, sequences one after the other.

    Arguments:
        initial: log p(z_1), shape (S,) or (n, S). The first potential meets it: no move comes before.
        transition: log p(z_t = j | z_{t-1} = i), shape (S, S), or (total, S, S) with entry t for the move into step t;
            the entry of a sequence's first step is ignored.
        potentials: log p(x_t | z_t), shape (total, S), -inf where impossible; or Normals, which give it.
        lengths: Of the sequences, shape (n,), int64, adding up to total.
    """

    initial: Tensor
    transition: Tensor
    potentials: Tensor | Normals
    lengths: Tensor

    @property
    def table(self) -> Tensor:
        """The potentials as a table."""
        if isinstance(self.potentials, Tensor):
            return self.potentials
        return diagonal_log_prob(self.potentials.x, self.potentials.loc, self.potentials.scale)

    def tabled(self) -> "Chain":
        return self if isinstance(self.potentials, Tensor) else replace(self, potentials=self.table)

    @property
    def size(self) -> int:
        """States, S."""
        return self.potentials.shape[1]

    @property
    def homogeneous(self) -> bool:
        return self.transition.ndim == 2

    @property
    def starts(self) -> Tensor:
        """Where each sequence begins, shape (n,)."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def rows(self) -> Tensor:
        """The sequence of each step, shape (total,)."""
        return torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.lengths)

    def first(self) -> Tensor:
        """The initial distribution of each sequence, shape (n, S)."""
        return self.initial.expand(len(self.lengths), -1)

    def part(self, rows: Tensor) -> tuple["Chain", Tensor]:
        """Some sequences as a chain of their own, and where their steps stand."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        within = torch.arange(int(lengths.sum()), device=lengths.device)
        within = within - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        steps = within + starts.repeat_interleave(lengths)
        initial = self.initial if self.initial.ndim == 1 else self.initial[rows]
        moves = self.transition if self.homogeneous else self.transition[steps]
        return Chain(initial, moves, self.potentials[steps], lengths), steps


@dataclass(frozen=True, eq=False)
class Filtered:
    """What each step says given the steps before it.

    Arguments:
        probabilities: p(z_t | x_1..x_t), shape (total, S); 0 from the first impossible step on.
        nats: log p(x_t | x_1..x_{t-1}), shape (total,); -inf from the first impossible step on.
    """

    probabilities: Tensor
    nats: Tensor


@dataclass(frozen=True, eq=False)
class Posterior:
    """What whole sequences say of the states; an impossible sequence has zeros.

    Arguments:
        nats: log p(x), shape (n,).
        marginals: p(z_t | x), shape (total, S).
        initial: p(z_1 | x), shape (n, S).
        transitions: Expected moves, (S, S), summed over all steps; or p(z_{t-1}, z_t | x), (total, S, S), zeros at
            first steps.
    """

    nats: Tensor
    marginals: Tensor
    initial: Tensor
    transitions: Tensor


@dataclass(frozen=True, eq=False)
class Expected:
    """What an M step reads of the states.

    Arguments:
        nats: log p(x), shape (n,).
        initial: p(z_1 | x), shape (n, S).
        transitions: Expected moves, (S, S); (total, S, S) for inhomogeneous chains.
        marginals: p(z_t | x), (total, S); None where moments stand for it.
        moments: Of Normals: sums of marginals, and of their products with x - loc and its square, over the cells seen,
            shape (3, S, D); None otherwise.
    """

    nats: Tensor
    initial: Tensor
    transitions: Tensor
    marginals: Tensor | None
    moments: Tensor | None


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences side by side, the longest first, so that step t concerns the first ``active[t]`` of them.

    Arguments:
        steps: Where step t of each sequence stands, shape (longest, n); places beyond an end point anywhere.
        order: The sequences, longest first, shape (n,).
        active: How many sequences have a step t, for each t.
    """

    steps: Tensor
    order: Tensor
    active: list[int]


def batch_of(lengths: Tensor, starts: Tensor) -> Batch:
    order = torch.argsort(lengths, descending=True, stable=True)
    longest = int(lengths.max())
    time = torch.arange(longest, device=lengths.device)
    steps = torch.minimum(time[:, None], lengths[order] - 1) + starts[order]
    ends = torch.sort(lengths).values
    active = (len(lengths) - torch.searchsorted(ends, time, right=True)).tolist()
    return Batch(steps, order, active)
