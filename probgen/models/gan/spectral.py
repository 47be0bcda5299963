"""Networks whose layers have a given largest singular value."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probgen.nn import Convolution, Linear

__all__ = ["Spectral", "largest_singular_value"]

_STEPS = 20  # of the power iteration at the start
_BOUND = 2.0


def largest_singular_value(weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """u^T W v of a matrix W (a, b) after one step of the power iteration from u (a,), and the next u.

    Its gradient is u v^T: the vectors are constants. Never above the true one, and at it in the limit.

    Miyato, Kataoka, Koyama and Yoshida (2018), algorithm 1.
    """
    with torch.no_grad():
        v = nn.functional.normalize(weight.T @ u, dim=0, eps=1e-12)
        u = nn.functional.normalize(weight @ v, dim=0, eps=1e-12)
    return u @ weight @ v, u


class Spectral(nn.Module):
    """A network with every weight W replaced by b W / sigma(W), so that each layer stretches by b at most.

    b is 2: at 1, units of wide layers of SiLU never leave the straight part of their curve, and the network is as good
    as linear.

    Of a convolution W is the matrix (outputs, inputs * kernel^2), whose largest singular value is that of the
    convolution itself up to a factor of at most the kernel's side. The vectors of the power iteration are buffers, so
    that a saved model and a resumed training go on with the same bits; ``advance`` moves them by one step, and
    ``forward`` leaves them alone.

    Arguments:
        net: The network, of Linear and Convolution layers.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.names = [name for name, part in net.named_modules() if isinstance(part, Linear | Convolution)]
        for i, weight in enumerate(self._matrices()):
            rows = len(weight)
            self.register_buffer(f"u{i}", torch.ones(rows, dtype=torch.float32) / rows**0.5)

    def _matrices(self) -> list[Tensor]:
        return [self.net.get_parameter(f"{name}.weight").flatten(1) for name in self.names]

    def sigmas(self) -> list[Tensor]:
        """The largest singular value of each layer's matrix, as the power iteration knows it."""
        return [largest_singular_value(w, getattr(self, f"u{i}"))[0] for i, w in enumerate(self._matrices())]

    @torch.no_grad()
    def advance(self, steps: int = 1) -> None:
        """Moves every u by some steps."""
        for i, weight in enumerate(self._matrices()):
            for _ in range(steps):
                getattr(self, f"u{i}").copy_(largest_singular_value(weight, getattr(self, f"u{i}"))[1])

    def start(self) -> None:
        """After the first weights: vectors that do not depend on earlier ones, near the singular vectors."""
        for i, weight in enumerate(self._matrices()):
            getattr(self, f"u{i}").fill_(len(weight) ** -0.5)
        self.advance(_STEPS)

    def forward(self, *inputs: Any) -> Tensor:
        weights = {
            f"{name}.weight": _BOUND * self.net.get_parameter(f"{name}.weight") / sigma.clamp(min=1e-12)
            for name, sigma in zip(self.names, self.sigmas(), strict=True)
        }
        return functional_call(self.net, weights, inputs)
