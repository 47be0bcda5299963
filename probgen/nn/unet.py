"""A small U-shaped network over images, or over their patches of 2 x 2 pixels."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from probgen.nn.convolutional import halved
from probgen.nn.layers import Convolution, Linear

__all__ = ["UNet"]

_LAST = torch.channels_last  # convolutions are up to twice as fast where the channels of a pixel lie together


def _normed(h: Tensor) -> Tensor:
    return nn.functional.group_norm(h, max(1, h.shape[1] // 8))


class _Block(nn.Module):
    """Two convolutions around which the signal passes; a condition scales and shifts between them."""

    def __init__(self, channels: int, extra: int) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, gain=1.6)
        self.heard = Linear(extra, 2 * channels, 0.3)
        self.second = Convolution(channels, channels, gain=0.3)

    def forward(self, h: Tensor, extra: Tensor) -> Tensor:
        inside = self.first(nn.functional.silu(_normed(h)))
        scale, shift = self.heard(extra)[:, :, None, None].chunk(2, dim=1)
        return h + self.second(nn.functional.silu(_normed(inside) * (1 + scale) + shift))


class _Attention(nn.Module):
    """Every place of an image hears every other one; the signal passes around it (Vaswani et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 16)
        while channels % self.heads:
            self.heads -= 1
        self.asked = Linear(channels, 3 * channels, 1.0)
        self.told = Linear(channels, channels, 0.3)

    def forward(self, h: Tensor) -> Tensor:
        n, channels, height, width = h.shape
        places = _normed(h).flatten(2).transpose(1, 2)
        asked = self.asked(places).reshape(n, height * width, 3, self.heads, channels // self.heads)
        heard = nn.functional.scaled_dot_product_attention(*asked.permute(2, 0, 3, 1, 4))
        told = self.told(heard.transpose(1, 2).reshape(n, height * width, channels))
        return h + told.transpose(1, 2).reshape(h.shape).contiguous(memory_format=_LAST)


class UNet(nn.Module):
    """Images (n, planes, height, width) under a condition (n, extra) to images (n, outputs, height, width).

    Levels of half the size, each with blocks on the way down and, with the way down's signal added, on the way up
    (Ronneberger, Fischer and Brox 2015), and attention in the smallest. With ``patch`` 2 the first level works on
    patches of 2 x 2 pixels as one place of four times the planes, at a quarter of the cost (Shi et al. 2016). Places
    are told where they are (Liu et al. 2018), and the last convolution sees the image again.

    Arguments:
        shape: Planes, height, width.
        extra: Numbers of the condition.
        channels: Of each level.
        blocks: On each way through a level.
        last: Gain of the last layer.
        outputs: Planes that come out; None for as many as go in.
        patch: 2, or 1 for small images.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        extra: int,
        channels: Sequence[int],
        blocks: int = 1,
        last: float = 0.1,
        outputs: int | None = None,
        patch: int = 2,
    ) -> None:
        super().__init__()
        self.patch, self.size = patch, shape[1:]
        self.padding = [(-side) % patch for side in shape[1:]]
        size = [(side + more) // patch for side, more in zip(shape[1:], self.padding, strict=True)]
        self.sizes = halved(size, len(channels) - 1)
        inside, outside = (patch**2 * planes for planes in (shape[0], outputs or shape[0]))
        rows, columns = (torch.linspace(-1, 1, side, dtype=torch.float32) for side in size)
        self.register_buffer("where", torch.stack(torch.meshgrid(rows, columns, indexing="ij")), persistent=False)
        width = 4 * channels[0]
        self.condition = Linear(extra, width, 1.0)
        self.first = Convolution(inside + 2, channels[0])
        self.down = nn.ModuleList(Convolution(a, b, stride=2) for a, b in pairwise(channels))
        self.up = nn.ModuleList(Convolution(b, a, stride=-2) for a, b in pairwise(channels))
        self.before = nn.ModuleList(nn.ModuleList(_Block(own, width) for _ in range(blocks)) for own in channels)
        self.after = nn.ModuleList(nn.ModuleList(_Block(own, width) for _ in range(blocks)) for own in channels[:-1])
        self.attention = _Attention(channels[-1])
        self.last = Convolution(channels[0] + inside, outside, gain=last)

    where: Tensor

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        pixels = nn.functional.pixel_unshuffle(
            nn.functional.pad(x, (0, self.padding[1], 0, self.padding[0])), self.patch
        )
        where = self.where.to(x.dtype).expand(len(x), -1, -1, -1)
        h = self.first(torch.cat([pixels, where], 1).contiguous(memory_format=_LAST))
        h = self._through(h, nn.functional.silu(self.condition(extra)))
        found = self.last(torch.cat([nn.functional.silu(h), pixels], 1))
        return nn.functional.pixel_shuffle(found.contiguous(), self.patch)[:, :, : self.size[0], : self.size[1]]

    def _through(self, h: Tensor, condition: Tensor) -> Tensor:
        """Down through the levels, and up again."""
        kept: list[Tensor] = []
        for i, blocks in enumerate(self.before):
            h = self.down[i - 1](h) if i else h
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, condition)
            kept.append(h)
        h = self.attention(h)
        for i in reversed(range(len(self.after))):
            height, width = self.sizes[i]
            h = self.up[i](nn.functional.silu(h))[:, :, :height, :width] + kept[i]
            for block in self.after[i]:  # type: ignore[attr-defined]
                h = block(h, condition)
        return h
