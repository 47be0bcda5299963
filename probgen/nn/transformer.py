"""A decoder-only transformer: from symbols to what is known before each next one. It knows nothing of probability."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Cache", "Transformer"]

_SPREAD = 1_000_003  # a prime, which spreads pairs of symbols over their table
_SLOWEST = 1000.0  # the ratio of the fastest to the slowest rotary position
_REACH = 16.0  # the largest attention logit, of parallel query and key


class Cache:
    """Keys and values of the symbols read so far, in memory taken once.

    Arguments:
        network: Whose they are.
        batch: Sequences side by side.
        room: Symbols that fit.

    ``keys`` and ``values`` have shape (layers, batch, heads, room, width / heads); ``filled`` counts the places in
    use, ``last`` (batch,) is the symbol read last, or None at the start.
    """

    def __init__(self, network: "Transformer", batch: int, room: int) -> None:
        shape = (network.layers, batch, network.heads, room, network.width // network.heads)
        self.keys, self.values = network.embedding.new_empty(shape), network.embedding.new_empty(shape)
        self.room, self.filled = room, 0
        self.last: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    def keep(self, rows: Tensor) -> None:
        """Some sequences, by number (k,), perhaps several times, in place of all."""
        self.keys, self.values = self._chosen(self.keys, rows), self._chosen(self.values, rows)
        self.last = None if self.last is None else self.last[rows]

    def _chosen(self, kept: Tensor, rows: Tensor) -> Tensor:
        found = kept.new_empty((kept.shape[0], len(rows), *kept.shape[2:]))
        found[..., : self.filled, :] = kept[..., : self.filled, :][:, rows]
        return found


class Block(nn.Module):
    """h + attention(norm h), then h + perceptron(norm h) with squared rectifiers (So et al. 2021)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = _REACH * heads / width
        self.mix = nn.Parameter(torch.zeros(3 * width, width, dtype=torch.float32))
        self.out = nn.Parameter(torch.zeros(width, width, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(hidden, width, dtype=torch.float32))
        self.down = nn.Parameter(torch.zeros(width, hidden, dtype=torch.float32))

    def forward(self, h: Tensor, turn: Tensor, bias: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        batch, steps, width = h.shape
        mixed = functional.linear(normed(h), self.mix).view(batch, steps, 3, self.heads, -1)
        turned = _turned(normed(mixed[:, :, :2]), turn).to(mixed.dtype)
        q, k, v = (part.transpose(1, 2) for part in (*turned.unbind(2), mixed[:, :, 2]))
        if cache is not None:
            end = cache.filled + steps
            cache.keys[layer, :, :, cache.filled : end], cache.values[layer, :, :, cache.filled : end] = k, v
            k, v = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
        seen = self._attend(q, k, v, bias).transpose(1, 2).reshape(batch, steps, width)
        h = h + functional.linear(seen, self.out)
        return h + functional.linear(functional.relu(functional.linear(normed(h), self.up)).square(), self.down)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """In bfloat16, where torch's fused kernel is the slower one, step by step."""
        if bias is not None and q.dtype == torch.bfloat16:
            return torch.softmax((q * self.scale) @ k.transpose(-1, -2) + bias, -1, dtype=q.dtype) @ v
        causal = bias is None and q.shape[2] > 1
        bias = bias if bias is None else bias.to(q.dtype)
        return functional.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, scale=self.scale)


class Transformer(nn.Module):
    """Symbols (n, T) to features (n, T, width), each of the symbols up to its own place; ``head`` gives logits.

    Pre-norm blocks without gains or biases, rotary positions (Su et al. 2021), normed queries and keys (Henry et al.
    2020), one table for reading and for the logits (Press and Wolf 2017), and the first features offered again to
    every block. Norms are centred: torch has a kernel for those, at a quarter of the time of RMSNorm's. A hashed table
    adds to each symbol what it means after the one before it (Roy et al. 2022): numbers that cost no arithmetic.

    Built without drawing numbers; weights are zero until ``reset``.

    Arguments:
        symbols: How many there are; id ``symbols - 1`` begins a sequence: what came before it is not looked at.
        layers, width, heads: Of the blocks; each head has width / heads numbers, an even number.
        hidden: Width inside the perceptrons.
        pairs: Rows of the hashed table; 0 for none.
    """

    def __init__(self, symbols: int, layers: int, width: int, heads: int, hidden: int, pairs: int = 0) -> None:
        super().__init__()
        self.symbols, self.layers, self.width, self.heads = symbols, layers, width, heads
        self.hidden, self.pairs = hidden, pairs
        self.embedding = nn.Parameter(torch.zeros(symbols, width, dtype=torch.float32))
        self.pair = nn.Parameter(torch.zeros(pairs, width, dtype=torch.float32)) if pairs else None
        self.again = nn.Parameter(torch.zeros(layers, dtype=torch.float32))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """First values: each block begins as the identity, all symbols about equally probable."""

        def draw(weight: Tensor, scale: float) -> None:
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * scale)

        for weight in self.parameters():
            weight.zero_()
        draw(self.embedding, 0.02)
        for block in cast("list[Block]", self.blocks):
            draw(block.mix, 0.6 / math.sqrt(self.width))
            draw(block.up, 0.6 / math.sqrt(self.width))

    @property
    def matrices(self) -> list[nn.Parameter]:
        """The weights that multiply features."""
        return [weight for block in self.blocks for weight in block.parameters()]

    @property
    def tables(self) -> list[nn.Parameter]:
        """All other weights."""
        return [self.embedding, self.again] + ([] if self.pair is None else [self.pair])

    def read(self, ids: Tensor, last: Tensor | None = None) -> Tensor:
        """Features of each symbol and of the pair that it ends, (n, T, width). ``last`` (n,) came before the first."""
        features = functional.embedding(ids, self.embedding)
        if self.pair is not None:
            features = features + functional.embedding(self.places(ids, last), self.pair)
        return normed(features)

    def places(self, ids: Tensor, last: Tensor | None = None) -> Tensor:
        """The row of the hashed table of each pair, (n, T)."""
        start = self.symbols - 1
        first = ids.new_full((len(ids), 1), start) if last is None else last[:, None]
        before = torch.cat([first, ids[:, :-1]], 1).masked_fill(ids == start, start)
        return self.place(before, ids)

    def place(self, before: Any, symbol: Any) -> Any:
        """The row of the hashed table of one pair, or of many."""
        return ((before + 1) * _SPREAD ^ (symbol + 1) * 40_503) % self.pairs

    def forward(self, ids: Tensor, bias: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Features (n, T, width) behind the logits of each next symbol.

        Arguments:
            bias: Added to the attention logits, (n or 1, 1, T, T or more): -inf, or a large negative number, hides a
                symbol. None lets each see all up to itself.
            cache: What was read before; it takes these symbols up, and there must be room for them.
        """
        begin, steps = 0 if cache is None else cache.filled, ids.shape[1]
        first = h = self.read(ids, None if cache is None else cache.last)
        turn = turns(begin, steps, self.width // self.heads, h.dtype)
        if begin and steps > 1 and bias is None:
            bias = h.new_zeros(steps, begin + steps).masked_fill_(
                torch.ones(steps, begin + steps, dtype=torch.bool).triu(begin + 1), -torch.inf
            )
        for i, block in enumerate(self.blocks):
            h = block(h + self.again[i] * first if i else h, turn, bias, cache, i)
        if cache is not None:
            cache.filled, cache.last = begin + steps, ids[:, -1]
        return normed(h)

    def head(self, features: Tensor) -> Tensor:
        """Logits (..., symbols) of features (..., width)."""
        return functional.linear(features, self.embedding)


def turns(begin: int, steps: int, size: int, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of the rotary positions begin, begin + 1, ...: (2, steps, 1, 1, size / 2)."""
    rates = _SLOWEST ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(begin, begin + steps, dtype=torch.float64)[:, None, None, None] * rates
    return torch.stack([angles.cos(), angles.sin()]).to(dtype)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Queries and keys (n, T, 2, heads, size) turned by their positions."""
    a, b = x.chunk(2, -1)
    cos, sin = turn
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def normed(x: Tensor) -> Tensor:
    """Centred, of mean square 1, over the last dimension."""
    return functional.layer_norm(x, x.shape[-1:])
