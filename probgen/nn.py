"""Plain torch networks. They know nothing of probability, and draw no random numbers until ``reset``."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "Convolution", "Linear", "reset"]


class Linear(nn.Module):
    """y = x W^T + b, built without drawing numbers; weights are zero until ``reset``."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Weights of variance gain^2 / inputs (LeCun et al. 1998), biases zero."""
        scale = self.gain / math.sqrt(self.weight.shape[1])
        self.weight.copy_(torch.randn(self.weight.shape, generator=generator, dtype=self.weight.dtype) * scale)
        self.bias.zero_()


class MLP(nn.Module):
    """Linear layers with SiLU between them.

    Arguments:
        sizes: Inputs, hidden widths, outputs; at least two numbers.
        last: Gain of the last layer; a small one starts near zero output.
    """

    def __init__(self, sizes: Sequence[int], last: float = 1.0) -> None:
        super().__init__()
        self.sizes, self.last = tuple(sizes), last
        gains = [1.6] * (len(sizes) - 2) + [last]
        self.layers = nn.ModuleList(map(Linear, sizes[:-1], sizes[1:], gains))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = nn.functional.silu(layer(x))
        return self.layers[-1](x)


class Convolution(nn.Module):
    """A 2-D convolution of odd kernels that keeps the size, or halves it (stride 2, rounded up), or doubles it.

    Built without drawing numbers; weights are zero until ``reset``.

    Arguments:
        inputs, outputs: Channels.
        kernel: Side of it.
        stride: 1, or 2 to halve; -2 doubles the size by a transposed convolution of kernel 4.
        gain: Of the first weights.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.stride, self.gain = stride, gain
        shape = (inputs, outputs, 4, 4) if stride == -2 else (outputs, inputs, kernel, kernel)
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == -2:
            return nn.functional.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.weight.shape[-1] // 2)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Weights of variance gain^2 / (numbers that an output sees), biases zero."""
        seen = self.weight.shape[0] * 4 if self.stride == -2 else self.weight[0].numel()
        scale = self.gain / math.sqrt(seen)
        self.weight.copy_(torch.randn(self.weight.shape, generator=generator, dtype=self.weight.dtype) * scale)
        self.bias.zero_()


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
            Convolution(a, b, 5 if i == 0 else 3, 2, 1.6)
            for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
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
            for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
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


def reset(module: nn.Module, generator: torch.Generator) -> None:
    """First values for every layer of a network, from one generator."""
    for part in module.modules():
        if isinstance(part, Linear | Convolution):
            part.reset(generator)
