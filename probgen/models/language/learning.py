"""How a language model learns: streams of sequences cut into windows, and the loss."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from probgen.events import Ragged
from probgen.events.symbols import Alphabet
from probgen.nn.transformer import Transformer
from probgen.training import Player
from probgen.training.muon import Muon

__all__ = ["NextSymbol", "player", "windows"]

_PIECE = 512  # positions whose logits stay in the cache
_HIDDEN = -1e4


def windows(ids: Ragged, start: int, context: int) -> Tensor:
    """Sequences one after the other, each after a start symbol, in overlapping windows: (n, T + 1), int64.

    Windows begin every T / 2 symbols and wrap round at the end, T = context or what there is.
    """
    parts = [torch.cat([torch.tensor([start]), part]) for part in ids.split()]
    stream = torch.cat(parts)
    steps = min(context, len(stream))
    begins = torch.arange(0, len(stream), max(1, steps // 2))
    return stream[(begins[:, None] + torch.arange(steps + 1)) % len(stream)]


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


def player(network: Transformer, alphabet: Alphabet, half: bool) -> Player:
    """The loss and its optimiser for the training loop."""
    made = Player(NextSymbol(network, alphabet.ends, half), network.matrices + network.tables)
    made.optimiser = Muon(network.matrices, network.tables, half)
    return made
