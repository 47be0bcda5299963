"""Layers that are built without drawing numbers, and the perceptron."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.errors import ParameterError

__all__ = ["MLP", "Convolution", "Linear", "Table", "refuse_broken", "reset"]


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


class Table(nn.Module):
    """A learned vector for each of some symbols, built without drawing numbers."""

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(symbols, width, dtype=torch.float32))

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        self.weight.copy_(torch.randn(self.weight.shape, generator=generator, dtype=self.weight.dtype) * 0.3)


def reset(module: nn.Module, generator: torch.Generator) -> None:
    """First values for every layer of a network, from one generator; tables of symbols come last."""
    layers = [part for part in module.modules() if isinstance(part, Linear | Convolution)]
    tables = [part for part in module.modules() if isinstance(part, Table)]
    for part in (*layers, *tables):
        part.reset(generator)


def refuse_broken(network: nn.Module) -> None:
    """Raises ParameterError where weights are NaN or infinite, by their name."""
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight.sum()):
            raise ParameterError(
                f"The weights of network.{name} are not finite", "finite numbers",
                "Load the model again, or fit it with a smaller learning_rate",
            )  # fmt: skip
