"""A perceptron with residual blocks that hear a condition, and the features of an angle."""

import torch
from torch import Tensor, nn

from probgen.nn.layers import Linear

__all__ = ["AngleFeatures", "ResidualMLP"]


class AngleFeatures(nn.Module):
    """An angle t (n,) as its sines and cosines at doubling frequencies, (n, width).

    Arguments:
        octaves: How many frequencies: 1, 2, 4, ...
    """

    frequencies: Tensor

    def __init__(self, octaves: int = 6) -> None:
        super().__init__()
        self.width = 2 * octaves
        self.register_buffer("frequencies", 2.0 ** torch.arange(octaves, dtype=torch.float32), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([angles.sin(), angles.cos()], 1)


class _Block(nn.Module):
    def __init__(self, width: int, extra: int) -> None:
        super().__init__()
        self.first, self.heard = Linear(width, width, 1.6), Linear(extra, width)
        self.second = Linear(width, width, 0.5)

    def forward(self, h: Tensor, extra: Tensor) -> Tensor:
        inside = self.first(nn.functional.silu(h)) + self.heard(extra)
        return h + self.second(nn.functional.silu(inside))


class ResidualMLP(nn.Module):
    """Vectors (n, inputs) under a condition (n, extra) to (n, outputs).

    Arguments:
        width: Of every hidden layer.
        blocks: Of two layers each, around which the signal passes unchanged.
        last: Gain of the last layer.
    """

    def __init__(self, inputs: int, extra: int, outputs: int, width: int, blocks: int, last: float = 0.1) -> None:
        super().__init__()
        self.first = Linear(inputs + extra, width, 1.0)
        self.blocks = nn.ModuleList(_Block(width, extra) for _ in range(blocks))
        self.last = Linear(width, outputs, last)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        h = self.first(torch.cat([x, extra], 1))
        for block in self.blocks:
            h = block(h, extra)
        return self.last(nn.functional.silu(h))
