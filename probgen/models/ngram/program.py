"""The sequences of an n-gram model as one Pyro site."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from probgen.events import Ragged
from probgen.models.ngram.alphabet import codes_of

if TYPE_CHECKING:
    from probgen.models.ngram.family import NGram

__all__ = ["Sequences"]


class Sequences(dist.TorchDistribution):
    """Sequences of symbols as rows that are filled up with -1 to one length, shape (n, T), int64.

    Arguments:
        model: The n-grams; log_prob is differentiable in their discounts.
        n: Rows.
    """

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.integer, 1)

    def __init__(self, model: "NGram", n: int) -> None:
        self.model = model
        super().__init__(torch.Size([n]), torch.Size([1]), validate_args=False)

    @staticmethod
    def pad(codes: np.ndarray, lengths: Tensor) -> Tensor:
        """Sequences one after the other as rows."""
        table = np.full((len(lengths), int(lengths.max())), -1)
        table[np.arange(table.shape[1]) < lengths.numpy()[:, None]] = codes
        return torch.from_numpy(table)

    def log_prob(self, value: Tensor) -> Tensor:
        """Shape (n,), in nats."""
        return self.model._row_nats(self.model._unpadded(value))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws from torch's global generator, as Pyro's own do."""
        rows = torch.Size(sample_shape).numel() * self.batch_shape.numel()
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        drawn: Ragged = self.model._sample(rows, None, generator=generator)
        return self.pad(codes_of(self.model.event, drawn), drawn.lengths)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Sequences":
        return Sequences(self.model, torch.Size(batch_shape).numel())
