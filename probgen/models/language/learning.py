"""How a language model learns: streams of sequences cut into windows, the loss, and an optimiser for matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from probgen.events import Ragged
from probgen.events.symbols import Alphabet
from probgen.nn.transformer import Transformer
from probgen.training import Player, Schedule

__all__ = ["Muon", "NextSymbol", "Ramp", "player", "windows"]

_PIECE = 512  # positions whose logits stay in the cache
_HIDDEN = -1e4
_TABLES = 0.5  # learning rate of tables, as a multiple of that of matrices


def windows(ids: Ragged, start: int, context: int) -> Tensor:
    """Sequences one after the other, each after a start symbol, in overlapping windows: (n, T + 1), int64.

    Windows begin every T / 2 symbols and wrap round at the end, T = context or what there is.
    """
    parts = [torch.cat([torch.tensor([start]), part]) for part in ids.split()]
    stream = torch.cat(parts)
    steps = min(context, len(stream))
    begins = torch.arange(0, len(stream), max(1, steps // 2))
    return stream[(begins[:, None] + torch.arange(steps + 1)) % len(stream)]


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


class NextSymbol(nn.Module):
    """Minus log p of each next symbol, in nats a symbol, of windows (n, T + 1).

    No symbol sees another sequence's: windows hold several sequences, a sequence is scored alone.

    Arguments:
        network: The transformer.
        ends: Whether the end of a sequence is predicted.
        half: Whether matrices are multiplied in bfloat16.
    """

    def __init__(self, network: Transformer, ends: bool, half: bool) -> None:
        super().__init__()
        self.network, self.ends, self.coarse = network, ends, half

    def forward(self, rows: Tensor, generator: torch.Generator, share: float) -> Tensor:
        if torch.is_grad_enabled() or len(rows) <= 16:
            return self._mean(rows)
        parts = rows.split(16)
        return torch.stack([self._mean(part) * len(part) for part in parts]).sum() / len(rows)

    def _mean(self, rows: Tensor) -> Tensor:
        ids, targets = rows[:, :-1], rows[:, 1:].flatten()
        start = self.network.symbols - 1
        weights = torch.ones(len(targets)) if self.ends else (targets != start).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.coarse):
            features = self.network(ids, apart(ids, start, torch.bfloat16 if self.coarse else torch.float32))
        some = self.network.embedding if self.ends else self.network.embedding[:-1]
        return cast(Tensor, _CrossEntropy.apply(features.flatten(0, 1), some, targets, weights, self.coarse))


def apart(ids: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    """The attention bias (n, 1, T, T) by which each symbol sees its own sequence, up to itself."""
    number = (ids == start).cumsum(1)
    hidden = (number[:, :, None] != number[:, None, :]).logical_or_(
        torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    )
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, _HIDDEN)[:, None]


class _CrossEntropy(torch.autograd.Function):
    """Weighted mean of log sum exp(E f) - (E f)_target; gradients are taken at once, piece by piece in the cache."""

    @staticmethod
    def forward(context: Any, features: Tensor, table: Tensor, targets: Tensor, weights: Tensor, half: bool) -> Tensor:
        dtype = torch.bfloat16 if half else table.dtype
        small, by_table = table.to(dtype), torch.zeros_like(table)
        by_features = torch.empty(features.shape, dtype=table.dtype)
        total, shares = table.new_zeros(()), weights.to(table.dtype) / weights.sum().clamp_min(1)
        for i in range(0, len(targets), _PIECE):
            piece = slice(i, i + _PIECE)
            inputs, share = features[piece].to(dtype), shares[piece, None]
            target = targets[piece, None].clamp_max(len(table) - 1)
            logits = (inputs @ small.T).to(table.dtype)
            logits.sub_(logits.amax(1, keepdim=True))
            at = logits.gather(1, target)
            norm = logits.exp_().sum(1, keepdim=True)
            total += ((norm.log() - at) * share).sum()
            errors = logits.mul_(share / norm).scatter_add_(1, target, -share).to(dtype)
            by_features[piece] = errors @ small
            by_table += errors.T @ inputs
        context.save_for_backward(by_features.to(features.dtype), by_table)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        by_features, by_table = context.saved_tensors
        return by_features * gradients[0], by_table * gradients[0], None, None, None


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


def player(network: Transformer, alphabet: Alphabet, half: bool) -> Player:
    """The loss and its optimiser for the training loop."""
    made = Player(NextSymbol(network, alphabet.ends, half), network.matrices + network.tables)
    made.optimiser = Muon(network.matrices, network.tables, half)
    return made


def halves_well(network: nn.Module) -> bool:
    """Whether this processor multiplies bfloat16 faster than float32, for networks of float32."""
    single = next(network.parameters()).dtype == torch.float32
    return single and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
