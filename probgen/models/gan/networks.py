"""The two networks: perceptrons, or convolutions where the rows are images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.events import Event
from probgen.features import channels_last, required_image
from probgen.nn import MLP, ConvDecoder, ConvEncoder

__all__ = ["Discriminator", "Generator"]


class Generator(nn.Module):
    """Latents (n, latent) and what is known (n, extra) to raw cells (n, width)."""

    def __init__(
        self, event: Event, latent: int, extra: int, hidden: Sequence[int], channels: Sequence[int], width: int
    ) -> None:
        super().__init__()
        self.last, self.width = channels_last(event), width
        self.image = required_image(event) if channels else None
        inputs = latent + extra
        self.net: nn.Module = (
            MLP((inputs, *hidden, width)) if self.image is None else ConvDecoder(inputs, hidden, channels, self.image)
        )

    def forward(self, z: Tensor, extra: Tensor | None = None) -> Tensor:
        found = self.net(z if extra is None else torch.cat([z, extra.to(z.dtype)], 1))
        if self.last and self.image is not None:
            found = found.movedim(1, 3)
        return found.reshape(len(z), self.width)


class Discriminator(nn.Module):
    """Encoded rows, which cells are seen, and what is known, to one number, shape (n,).

    Arguments:
        width: Of an encoded row.
        gaps: Numbers that tell which cells are seen: 0, or one a cell.
        extra: Of what is known of a row, put beside it.
    """

    def __init__(
        self, event: Event, width: int, gaps: int, extra: int, hidden: Sequence[int], channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.last, self.planes = channels_last(event), 2 if gaps else 1
        self.image = required_image(event) if channels else None
        if self.image is None:
            self.net: nn.Module = MLP((width + gaps + extra, *hidden, 1))
        else:
            shape = (self.planes * self.image[0], *self.image[1:])
            self.net = ConvEncoder(shape, channels, hidden, 1, extra)

    def forward(self, rows: Tensor, extra: Tensor | None = None) -> Tensor:
        if self.image is None:
            return self.net(rows if extra is None else torch.cat([rows, extra.to(rows.dtype)], 1))[:, 0]
        channels, height, width = self.image
        if self.last:
            x = rows.reshape(-1, self.planes, height, width, channels).movedim(4, 2)
        else:
            x = rows.reshape(-1, self.planes, channels, height, width)
        return self.net(x.reshape(len(x), math.prod(x.shape[1:3]), height, width), extra)[:, 0]
