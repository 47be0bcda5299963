"""The two networks: perceptrons, or convolutions where the rows are images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.events import Array, Event
from probgen.nn import MLP, ConvDecoder, ConvEncoder

__all__ = ["Discriminator", "Generator", "image_shape"]


def image_shape(event: Event) -> tuple[int, int, int] | None:
    """Channels, height and width of an image event: (h, w), (h, w, c) or (c, h, w) with up to 4 channels."""
    shape = event.shape if isinstance(event, Array) else ()
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3 and min(shape[0], shape[2]) <= 4:
        return (shape[2], shape[0], shape[1]) if shape[2] <= 4 else (shape[0], shape[1], shape[2])
    return None


def _checked(event: Event) -> tuple[int, int, int]:
    image = image_shape(event)
    if image is None:
        raise ParameterError(
            f"channels for {event!r}", "images: an Array of shape (h, w), (h, w, c) or (c, h, w)", "channels=()"
        )
    return image


def _last(event: Event) -> bool:
    """Whether the channels of an image come last."""
    shape = event.shape if isinstance(event, Array) else ()
    return len(shape) == 3 and shape[2] <= 4


class Generator(nn.Module):
    """Latents (n, latent) and what is known (n, extra) to raw cells (n, width)."""

    def __init__(
        self, event: Event, latent: int, extra: int, hidden: Sequence[int], channels: Sequence[int], width: int
    ) -> None:
        super().__init__()
        self.last, self.width = _last(event), width
        self.image = _checked(event) if channels else None
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
        self.last, self.planes = _last(event), 2 if gaps else 1
        self.image = _checked(event) if channels else None
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
