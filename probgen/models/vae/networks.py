"""The encoder and decoder of a VAE: perceptrons, or convolutions where the rows are images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.events import Array, Event
from probgen.nn import MLP, ConvDecoder, ConvEncoder

__all__ = ["Decoder", "Encoder", "image_shape"]


def image_shape(event: Event) -> tuple[int, int, int] | None:
    """Channels, height and width of an image event: (h, w), (h, w, c) or (c, h, w) with up to 4 channels."""
    shape = event.shape if isinstance(event, Array) else ()
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3 and min(shape[0], shape[2]) <= 4:
        return (shape[2], shape[0], shape[1]) if shape[2] <= 4 else (shape[0], shape[1], shape[2])
    return None


def _last(event: Event) -> bool:
    """Whether the channels of an image come last."""
    shape = event.shape if isinstance(event, Array) else ()
    return len(shape) == 3 and shape[2] <= 4


class Encoder(nn.Module):
    """Features of a row, and of its covariates, to 2 latent_dim numbers."""

    def __init__(
        self, event: Event, width: int, extra: int, channels: Sequence[int], hidden: Sequence[int], outputs: int
    ) -> None:
        super().__init__()
        self.extra, self.last = extra, _last(event)
        self.image = image_shape(event) if channels else None
        if channels:
            image = _image(event)
            planes = width // math.prod(image)  # two where cells may be missing
            self.net: nn.Module = ConvEncoder((planes * image[0], *image[1:]), channels, hidden, outputs, extra, 0.5)
        else:
            self.net = MLP((width + extra, *hidden, outputs), last=0.5)

    def forward(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        if self.image is None:
            return self.net(x if covariates is None else torch.cat([x, covariates], 1))
        channels, height, width = self.image
        if self.last:
            x = x.reshape(len(x), -1, height * width, channels).transpose(2, 3)
        return self.net(x.reshape(len(x), -1, height, width), covariates)


class Decoder(nn.Module):
    """z (..., latent_dim), and covariates, to the numbers of an observation model, (..., width)."""

    def __init__(
        self, event: Event, latent: int, extra: int, channels: Sequence[int], hidden: Sequence[int], width: int
    ) -> None:
        super().__init__()
        self.last, self.image, self.width = _last(event), image_shape(event) if channels else None, width
        if channels:
            image = _image(event)
            planes = width // math.prod(image)
            self.net: nn.Module = ConvDecoder(latent + extra, hidden, channels, (planes * image[0], *image[1:]), 0.1)
        else:
            self.net = MLP((latent + extra, *hidden, width), last=0.1)

    def forward(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        if covariates is not None:
            z = torch.cat([z, covariates.expand(*z.shape[:-1], -1)], -1)
        if self.image is None:
            return self.net(z)
        found = self.net(z.reshape(-1, z.shape[-1]))
        if self.last:
            channels, height, width = self.image
            found = found.reshape(len(found), -1, channels, height * width).transpose(2, 3)
        return found.reshape(*z.shape[:-1], self.width)


def _image(event: Event) -> tuple[int, int, int]:
    image = image_shape(event)
    if image is None:
        raise ParameterError(
            f"channels for {event!r}", "images: an Array of shape (h, w), (h, w, c) or (c, h, w)", "channels=()"
        )
    return image
