"""From each part of a record to a unit vector, and the loss that makes those of one row alike."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.events import Event, Ragged, Text
from probgen.features import Features, image_shape
from probgen.latent.networks import Encoder
from probgen.nn.text import TextEncoder

if TYPE_CHECKING:
    from probgen.models.contrastive.family import Contrastive

__all__ = ["CellCode", "InfoNCE", "TextCode", "code_for"]


class CellCode(nn.Module):
    """Cells of an Array or a Table to a unit vector; what it reads are features, float32 (n, columns).

    Arguments:
        dim: Numbers of the vector.
        hidden: Widths of the hidden layers.
        channels: Of convolutions, for images.
    """

    def __init__(self, event: Event, dim: int, hidden: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.features = Features(event, shared=image_shape(event) is not None)
        self.encoder = Encoder(event, self.features.width, 0, channels, hidden, dim)

    def measure(self, value: Tensor) -> None:
        """Learns scales from rows that have the part."""
        self.features.measure(value)

    def pack(self, value: Tensor) -> Tensor:
        return self.features(value).to(torch.float32)

    def forward(self, packed: Tensor) -> Tensor:
        return nn.functional.normalize(self.encoder(packed.to(self.dtype), None), dim=-1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        return next(self.encoder.parameters()).dtype


class TextCode(nn.Module):
    """A text to a unit vector; what it reads are its length and its tokens, float32 (n, 1 + longest).

    Arguments:
        width: Of tokens and states.
    """

    def __init__(self, event: Text, dim: int, width: int) -> None:
        super().__init__()
        self.encoder = TextEncoder(event.tokens, width, dim)

    def measure(self, value: Ragged) -> None:
        """Text has no scale."""

    def pack(self, value: Ragged) -> Tensor:
        ids = nn.utils.rnn.pad_sequence(value.split(), batch_first=True)
        return torch.cat([value.lengths[:, None], ids], 1).to(torch.float32)

    def forward(self, packed: Tensor) -> Tensor:
        lengths = packed[:, 0].long()
        ids = packed[:, 1 : 1 + int(lengths.max())].long()
        return nn.functional.normalize(self.encoder(ids, lengths), dim=-1)


def code_for(event: Event, dim: int, hidden: Sequence[int], channels: Sequence[int], width: int) -> Any:
    """The network of one part."""
    return TextCode(event, dim, width) if isinstance(event, Text) else CellCode(event, dim, hidden, channels)


class InfoNCE(nn.Module):
    """Minus the mean log-probability of finding the own partner among those of a batch, both ways; a Module.

    With s_ij = f(a_i) g(b_j) / temperature, the mean of - log softmax_j(s_i.)_i and of - log softmax_i(s_.j)_j (van den
    Oord, Li and Vinyals 2018, equation 4; Radford et al. 2021). Its least value has s_ij = log p(a, b) / (p(a) p(b))
    but for a constant; captions that come twice in a batch change nothing about that.

    Arguments:
        model: The family: its ``nets`` and its ``scale``.
        width: Columns of packed rows that are the first part.
    """

    def __init__(self, model: "Contrastive", width: int) -> None:
        super().__init__()
        self.model, self.width = model, width

    def forward(self, batch: Tensor, generator: torch.Generator, share: float) -> Tensor:
        f, g = self.model.nets.values()
        scores = f(batch[:, : self.width]) @ g(batch[:, self.width :]).T * self.model.scale()
        own = torch.arange(len(batch))
        both = nn.functional.cross_entropy(scores, own) + nn.functional.cross_entropy(scores.T, own)
        return both / 2
