"""Images to vectors and back."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from probgen.nn.layers import MLP, Convolution

__all__ = ["ConvDecoder", "ConvEncoder"]


class ConvEncoder(nn.Module):
    """Images (n, channels, height, width) to vectors: convolutions that halve the size, then linear layers.

    Arguments:
        shape: Of an image: channels, height, width.
        channels: After each convolution.
        hidden: Widths of the linear layers between.
        outputs: Numbers a row.
        extra: Further numbers a row, which join after the convolutions.
        last: Gain of the last layer.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        extra: int = 0,
        last: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = (shape[0], *channels)
        self.convolutions = nn.ModuleList(
            Convolution(a, b, 5 if i == 0 else 3, 2, 1.6) for i, (a, b) in enumerate(pairwise(sizes))
        )
        height, width = halved(shape[1:], len(channels))[-1]
        self.linear = MLP((channels[-1] * height * width + extra, *hidden, outputs), last)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        for convolution in self.convolutions:
            x = nn.functional.silu(convolution(x))
        flat = x.flatten(1)
        return self.linear(flat if extra is None else torch.cat([flat, extra], 1))


class ConvDecoder(nn.Module):
    """Vectors (n, inputs) to images (n, channels, height, width): the encoder's way back.

    Arguments:
        inputs: Numbers a row.
        hidden: Widths of the first linear layers.
        channels: Before each transposed convolution, from the smallest image on.
        shape: Of an image: channels, height, width.
        last: Gain of the last layer.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        channels: Sequence[int],
        shape: tuple[int, int, int],
        last: float = 1.0,
    ) -> None:
        super().__init__()
        self.sizes = halved(shape[1:], len(channels))[::-1]
        self.small = (channels[0], *self.sizes[0])
        self.linear = MLP((inputs, *hidden, math.prod(self.small)), 1.6)
        sizes = (*channels, shape[0])
        self.convolutions = nn.ModuleList(
            Convolution(a, b, stride=-2, gain=last if i == len(channels) - 1 else 1.6)
            for i, (a, b) in enumerate(pairwise(sizes))
        )

    def forward(self, z: Tensor) -> Tensor:
        x = nn.functional.silu(self.linear(z)).reshape(len(z), *self.small)
        for i, (convolution, (height, width)) in enumerate(zip(self.convolutions, self.sizes[1:], strict=True)):
            x = convolution(x if i == 0 else nn.functional.silu(x))[:, :, :height, :width]
        return x


def halved(size: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Heights and widths after each halving, rounded up, the first as it came."""
    sizes = [(size[0], size[1])]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes
