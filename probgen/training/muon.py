"""An optimiser for the matrices of transformers, and the learning rates that suit it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from probgen.training.schedule import Schedule

__all__ = ["Muon", "Ramp", "halves_well", "orthogonal"]

_TABLES = 0.5  # learning rate of tables, as a multiple of that of matrices


@dataclass(frozen=True)
class Ramp(Schedule):
    """A warm-up, a plateau and a linear descent to zero (Hägele et al. 2024).

    Arguments:
        descent: Share of the steps in which the rate descends.
    """

    descent: float = 0.6

    def rate(self, step: int, steps: int) -> float:
        up = min(1.0, (step + 1) / max(1, min(self.warmup, steps // 10)))
        return self.learning_rate * up * min(1.0, (1 - step / steps) / self.descent)


class Muon(torch.optim.AdamW):
    """Orthogonalised momentum for matrices, AdamW for tables and scalars.

    A matrix moves by its momentum with all singular values set near 1 (Jordan et al. 2024), each row then divided by
    the running root mean square of its moves (NorMuon, Li et al. 2025); a table by AdamW at half the rate.
    States are named as AdamW's, so that checkpoints hold them.

    Arguments:
        matrices, tables: Which weights.
        half: Whether to multiply in bfloat16.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], tables: Sequence[nn.Parameter], half: bool) -> None:
        groups = [{"params": list(matrices), "scale": 1.0}, {"params": list(tables), "scale": _TABLES}]
        super().__init__(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.half, self.matrices = half, list(matrices)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for weight in self.matrices:
            if weight.grad is not None:
                self._turn(weight, self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"])
                weight.grad = None
        for group in self.param_groups:
            group["lr"] *= group["scale"]  # the loop sets the plain rate before each step
        super().step()

    def _turn(self, weight: nn.Parameter, rate: float, decay: float) -> None:
        gradient = cast(Tensor, weight.grad)
        state = self.state[weight]
        if not state:
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(weight))
            state["exp_avg_sq"] = weight.new_zeros(len(weight), 1)
        state["step"] += 1
        count = float(state["step"])
        momentum = min(0.95, 0.85 + 0.1 * count / 200)
        state["exp_avg"].lerp_(gradient, 1 - momentum)
        move = orthogonal(gradient.lerp(state["exp_avg"], momentum), self.half)
        size = move.norm()
        state["exp_avg_sq"].lerp_(move.square().mean(1, keepdim=True), 0.05)
        move /= (state["exp_avg_sq"] / (1 - 0.95**count)).sqrt().clamp_min(1e-8)
        move *= size / move.norm().clamp_min(1e-8)
        weight.mul_(1 - rate * decay)
        weight.add_(move, alpha=-rate * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)


def orthogonal(matrix: Tensor, half: bool = False) -> Tensor:
    """A matrix of the same singular vectors with singular values between 0.7 and 1.2, by five Newton-Schulz steps."""
    x = matrix.bfloat16() if half else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)


def halves_well(network: nn.Module) -> bool:
    """Whether this processor multiplies bfloat16 faster than float32, for networks of float32."""
    single = next(network.parameters()).dtype == torch.float32
    return single and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
