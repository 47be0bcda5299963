"""A small U-shaped network whose every convolution works at half of the image's size or less."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from probgen.nn.convolutional import halved
from probgen.nn.layers import Convolution, Linear

__all__ = ["UNet"]


class _Block(nn.Module):
    """Two convolutions around which the signal passes; a condition scales and shifts between them."""

    def __init__(self, channels: int, extra: int) -> None:
        super().__init__()
        self.groups = max(1, channels // 8)
        self.first = Convolution(channels, channels, gain=1.6)
        self.heard = Linear(extra, 2 * channels, 0.3)
        self.second = Convolution(channels, channels, gain=0.3)

    def forward(self, h: Tensor, extra: Tensor) -> Tensor:
        inside = self.first(nn.functional.silu(nn.functional.group_norm(h.contiguous(), self.groups)))
        scale, shift = self.heard(extra)[:, :, None, None].chunk(2, dim=1)
        inside = nn.functional.group_norm(inside.contiguous(), self.groups) * (1 + scale) + shift
        return h + self.second(nn.functional.silu(inside))


class UNet(nn.Module):
    """Images (n, planes, height, width) under a condition (n, extra) to images of the same shape.

    The first convolution halves the image, and a transposed 4 x 4 convolution, which is four times cheaper than one
    at full resolution, goes straight to the output. Between them levels of half the size, each with blocks on the way
    down and, with the way down's signal added, on the way up (Ronneberger, Fischer and Brox 2015).

    Arguments:
        shape: Planes, height, width.
        extra: Numbers of the condition.
        channels: Of each level; the first is at half of the image's size.
        blocks: On each way through a level.
        last: Gain of the last layer.
    """

    def __init__(
        self, shape: tuple[int, int, int], extra: int, channels: Sequence[int], blocks: int = 1, last: float = 0.1
    ) -> None:
        super().__init__()
        self.sizes = halved(shape[1:], len(channels))
        self.condition = Linear(extra, 4 * channels[0], 1.0)
        width = 4 * channels[0]
        downs = [(shape[0], channels[0]), *pairwise(channels)]
        self.down = nn.ModuleList(Convolution(a, b, 5 if i == 0 else 3, 2) for i, (a, b) in enumerate(downs))
        self.up = nn.ModuleList(Convolution(b, a, stride=-2) for a, b in pairwise(channels))
        self.before = nn.ModuleList(nn.ModuleList(_Block(size, width) for _ in range(blocks)) for size in channels)
        self.after = nn.ModuleList(nn.ModuleList(_Block(size, width) for _ in range(blocks)) for size in channels[:-1])
        self.last = Convolution(channels[0], shape[0], stride=-2, gain=last)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        condition, kept = nn.functional.silu(self.condition(extra)), []
        for down, blocks in zip(self.down, self.before, strict=True):
            x = down(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
            kept.append(x)
        ups = list(zip(self.up, self.after, self.sizes[1:-1], kept[:-1], strict=True))
        for up, blocks, size, skipped in reversed(ups):
            x = up(nn.functional.silu(x))[:, :, : size[0], : size[1]] + skipped
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
        return self.last(nn.functional.silu(x))[:, :, : self.sizes[0][0], : self.sizes[0][1]]
