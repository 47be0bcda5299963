"""Encoders and decoders of rows: perceptrons, or convolutions where the rows are images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.events import Event
from probgen.features import channels_last, image_shape, required_image
from probgen.nn import MLP, ConvDecoder, ConvEncoder

__all__ = ["Decoder", "Encoder", "batches"]


class Encoder(nn.Module):
    """Features of a row, and of its covariates, to 2 latent_dim numbers."""

    def __init__(
        self, event: Event, width: int, extra: int, channels: Sequence[int], hidden: Sequence[int], outputs: int
    ) -> None:
        super().__init__()
        self.extra, self.last = extra, channels_last(event)
        self.image = image_shape(event) if channels else None
        if channels:
            image = required_image(event)
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
        self.last, self.image, self.width = channels_last(event), image_shape(event) if channels else None, width
        if channels:
            image = required_image(event)
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


def batches(rows: Tensor, covariates: Tensor | None, size: int = 1024) -> list[tuple[Tensor, Tensor | None]]:
    """Rows with their covariates, in pieces."""
    parts = rows.split(size)
    return list(zip(parts, [None] * len(parts) if covariates is None else covariates.split(size), strict=True))
