"""A transformer that reads blocks both ways, and before each block what stands before it."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from probgen.models.textdiffusion.blocks import Windows
from probgen.nn.transformer import Block, Transformer, normed, turns

__all__ = ["Denoiser"]

_HIDDEN = -1e4
Past = list[tuple[Tensor, Tensor]]  # (m, heads, T, size) each


class Denoiser(nn.Module):
    """Features of masked symbols: two streams through the same weights.

    One reads blocks as they are: each symbol sees its own block and those before it. The other reads blocks with
    masks: each symbol sees its own masked block, and the first stream's keys and values of the blocks before it. So
    one pass masks all blocks of a window at once, each behind clean ones (Arriola et al. 2025), and the clean stream
    is read once for several maskings.

    Arguments:
        symbols: How many there are, with an end, a mask and a start, which come last.
        block: Symbols of a block; a table tells the second stream their places.
        layers, width, heads, hidden, pairs: Of the Transformer.
    """

    def __init__(self, symbols: int, block: int, layers: int, width: int, heads: int, hidden: int, pairs: int) -> None:
        super().__init__()
        self.trunk = Transformer(symbols, layers, width, heads, hidden, pairs)
        self.place = nn.Parameter(torch.zeros(block, width, dtype=torch.float32))

    def reset(self, generator: torch.Generator) -> None:
        self.trunk.reset(generator)
        nn.init.zeros_(self.place)

    @property
    def matrices(self) -> list[nn.Parameter]:
        return self.trunk.matrices

    @property
    def tables(self) -> list[nn.Parameter]:
        return [*self.trunk.tables, self.place]

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    def head(self, features: Tensor) -> Tensor:
        """Logits (..., symbols) of features (..., width)."""
        return self.trunk.head(features)

    def forward(self, windows: Windows, masked: Tensor, past: Past | None = None) -> Tensor:
        """Features of the symbols of each window's last K blocks, (m, S, K, b, width).

        Arguments:
            masked: Their ids under S maskings, (m, S, K, b).
            past: What ``read`` gave for these windows, where they are looked at several times.
        """
        span, b = windows.ids.shape[1:]
        past = self.read(windows) if past is None else past
        bias = _bias(windows, windows.first, False, self.dtype) if span > 1 else None
        first = h = self._masked(windows, masked)
        turn = turns(windows.first * b, (span - windows.first) * b, self.trunk.width // self.trunk.heads, h.dtype)
        for i, layer in enumerate(cast("list[Block]", self.trunk.blocks)):
            h = h + self.trunk.again[i] * first if i else h
            h = _finished(layer, h, _seen(layer, h, turn, past[i] if span > 1 else None, bias))
        return normed(h)

    def _masked(self, windows: Windows, masked: Tensor) -> Tensor:
        """First features of the masked blocks: of each symbol after the one before it, and of its place."""
        begins = windows.place[:, windows.first :] == 0
        before = torch.cat([windows.last[:, None], windows.ids[:, :-1, -1]], 1)[:, windows.first :]
        before = before.masked_fill(begins, self.trunk.symbols - 1)[:, None].expand(masked.shape[:3])
        features = functional.embedding(masked, self.trunk.embedding) + self.place
        if self.trunk.pair is not None:
            rows = self.trunk.places(masked.flatten(0, 2), before.flatten()).view_as(masked)
            features = features + functional.embedding(rows, self.trunk.pair)
        return normed(features)

    def _clean(self, windows: Windows) -> Tensor:
        """First features (m, T, width) of all blocks but the last."""
        ids, trunk = windows.ids[:, :-1], self.trunk
        features = functional.embedding(ids, trunk.embedding)
        if trunk.pair is not None:
            before = torch.cat([windows.last[:, None], ids.flatten(1)[:, :-1]], 1).view_as(ids).clone()
            before[..., 0].masked_fill_(windows.place[:, :-1] == 0, trunk.symbols - 1)
            features = features + functional.embedding(trunk.place(before, ids), trunk.pair)
        return normed(features).flatten(1, 2)

    def read(self, windows: Windows) -> Past:
        """Keys and values of the clean stream, a pair a layer; its last block is not read."""
        trunk = self.trunk
        found: Past = []
        if windows.ids.shape[1] == 1:
            return found
        first = h = self._clean(windows)
        bias = _bias(windows, 0, True, self.dtype)[:, :, : h.shape[1]]
        turn = turns(0, h.shape[1], trunk.width // trunk.heads, h.dtype)
        for i, layer in enumerate(cast("list[Block]", trunk.blocks)):
            h = h + trunk.again[i] * first if i else h
            q, k, v = (part.transpose(1, 2) for part in _mixed(layer, h, turn))
            found.append((k, v))
            if i + 1 < trunk.layers:
                shares = torch.softmax((q * layer.scale) @ k.transpose(-1, -2) + bias.to(q.dtype), -1, dtype=q.dtype)
                h = _finished(layer, h, (shares @ v).transpose(1, 2).flatten(2))
        return found


def _seen(layer: Block, h: Tensor, turn: Tensor, past: tuple[Tensor, Tensor] | None, bias: Tensor | None) -> Tensor:
    """What masked blocks h (m, S, K, b, width) see of themselves and of the clean blocks before them."""
    m, copies, tail, b, _ = h.shape
    mixed = _mixed(layer, h.flatten(2, 3).flatten(0, 1), turn)
    q, k, v = (part.view(m, copies, tail, b, layer.heads, -1).movedim(4, 1) for part in mixed)
    q = q * layer.scale
    inside = q @ k.transpose(-1, -2)
    if past is None or bias is None:
        seen = torch.softmax(inside, -1, dtype=inside.dtype) @ v
    else:
        keys, values = past
        steps = keys.shape[2]
        outside = (q.flatten(2, 4) @ keys.transpose(-1, -2)).view(*inside.shape[:-1], steps)
        outside = outside + bias.to(outside.dtype).view(m, 1, 1, tail, b, steps)
        shares = torch.softmax(torch.cat([outside, inside], -1), -1, dtype=inside.dtype)
        seen = (shares[..., :steps].flatten(2, 4) @ values).view_as(q) + shares[..., steps:] @ v
    return seen.movedim(1, 4).flatten(4)


def _bias(windows: Windows, first: int, own: bool, dtype: torch.dtype) -> Tensor:
    """What is added to attention logits so that blocks from ``first`` on see those before them, (m, 1, T, T').

    Only blocks of the same sequence are seen; ``own``: whether a block sees itself. The last block is seen by none.
    """
    span, b = windows.ids.shape[1:]
    block, sequence = torch.arange(span), (windows.place == 0).cumsum(1)
    seen = block[first:, None] + own > block[None, :-1]
    allowed = seen & (sequence[:, first:, None] == sequence[:, None, :-1])
    bias = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, _HIDDEN)
    return bias.repeat_interleave(b, 1).repeat_interleave(b, 2)[:, None]


def _mixed(layer: Block, h: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (n, T, heads, size) of h (n, T, width), the first two normed and turned."""
    mixed = functional.linear(normed(h), layer.mix).view(*h.shape[:2], 3, layer.heads, -1)
    a, b = normed(mixed[:, :, :2]).chunk(2, -1)
    cos, sin = turn
    turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(mixed.dtype)
    return turned[:, :, 0], turned[:, :, 1], mixed[:, :, 2]


def _finished(layer: Block, h: Tensor, seen: Tensor) -> Tensor:
    """The rest of a block of the network: what was seen is added, then the perceptron."""
    h = h + functional.linear(seen, layer.out)
    return h + functional.linear(functional.relu(functional.linear(normed(h), layer.up)).square(), layer.down)
