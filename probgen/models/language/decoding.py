"""What comes next, symbol after symbol: a cache of what was read, and a step in plain NumPy."""

import math
from functools import cache
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from probgen.models.language.scoring import first_symbol, masked
from probgen.nn.transformer import Block, Cache, Transformer, turns

if TYPE_CHECKING:
    from probgen.models.language.family import LanguageModel

__all__ = ["Stepper"]

_FEW = 256  # sequences for which NumPy is the faster way


class Stepper:
    """The pmf of the next symbol of each of several sequences that grow side by side.

    The windows are those of scoring: when one is full, it moves on by the model's stride and is read again.

    Arguments:
        model: Whose pmf.
        batch: How many sequences. A few are stepped in NumPy, which spares torch's calls.
        cached: Whether to keep keys and values; without them every step reads its whole window: slow, for tests.
        room: Symbols to keep memory for, where they are fewer than the window's.
    """

    def __init__(self, model: "LanguageModel", batch: int = 1, cached: bool = True, room: int = 0) -> None:
        self.model, self.batch, self.cached = model, batch, cached
        self.network = cast(Transformer, model.network)
        self.cache = Cache(self.network, batch, room or model.window)
        self._swift: _Swift | None = None
        self.reset()

    def reset(self) -> None:
        """Before the first symbol of each."""
        self.begin, self.steps = 0, -1
        self._columns: list[Tensor] = []
        self.cache.clear()
        self._take(torch.full((self.batch, 1), self.network.symbols - 1))

    @property
    def history(self) -> Tensor:
        """A start symbol and what was pushed, (batch, 1 + steps)."""
        self._columns = [torch.cat(self._columns, 1)]
        return self._columns[0]

    def _take(self, ids: Tensor) -> None:
        """Reads further columns (batch, T); their last window is what counts."""
        self._columns.append(ids)
        self.steps += ids.shape[1]
        begin = first_symbol(self.steps, self.model.window, self.model.stride)
        if begin != self.begin or not self.cached:
            self.begin = begin
            self.cache.clear()
            ids = self.history[:, begin:]
        if ids.shape[1] == 1 and self.cache.filled and self.batch <= _FEW:
            self._swift = self._swift or _Swift(self.network, self.cache)
            self.features = torch.from_numpy(self._swift.step(ids[:, 0].numpy()))
        else:
            with torch.no_grad():
                self.features = self.network(ids, cache=self.cache)[:, -1]
            self._rebind()

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Of the next symbol, (batch, symbols + 1), the end last; -inf where a symbol can not come."""
        legal = self.model.alphabet.legal
        place = None if legal is None else legal[min(self.steps, len(legal) - 1)]
        return masked(self.network.head(self.features), self.model.alphabet.ends, place)

    def log_pmf(self) -> Tensor:
        """log p(next symbol | all before it), (batch, symbols + 1), float64; the last is the end.

        Where an end is not modelled it has probability zero, and one once an array is complete.
        """
        length = self.model.alphabet.length
        if length is not None and self.steps >= length:
            over = torch.full((self.batch, self.network.symbols), -torch.inf, dtype=torch.float64)
            over[:, -1] = 0.0
            return over
        return self.logits().double().log_softmax(-1)

    def push(self, ids: Tensor | np.ndarray) -> None:
        """Appends a symbol to each sequence, (batch,)."""
        self._take(torch.as_tensor(ids, dtype=torch.int64).reshape(self.batch, 1))

    def read(self, ids: Tensor) -> None:
        """Appends several symbols to each sequence, (batch, T), or the same to all, (T,)."""
        ids = ids.expand(self.batch, -1)
        if not ids.shape[1]:
            return
        if 1 + self.steps + ids.shape[1] > self.model.window:
            self.begin = -1  # no part of what is kept will do
        self._take(ids)

    def keep(self, rows: Tensor) -> None:
        """Some sequences, by number, perhaps several times, in place of all."""
        self._columns = [self.history[rows]]
        self.batch, self.features = len(rows), self.features[rows]
        self.cache.keep(rows)
        self._rebind()

    def _rebind(self) -> None:
        if self._swift is not None:
            self._swift.rebind()


class _Swift:
    """One step of a few sequences in NumPy, on the memory of torch's cache: the arithmetic of Transformer.

    Small arrays spend their time in calls, and NumPy's are cheaper than torch's.

    Arguments:
        network: Its matrices are copied, for their order in memory.
        cache: Of the sequences.
    """

    def __init__(self, network: Transformer, cache: Cache) -> None:
        self.network, self.cache = network, cache
        self.rebind()
        self.table = network.embedding.detach().numpy()
        self.pair = None if network.pair is None else network.pair.detach().numpy()
        self.again = network.again.tolist()
        self.weights = [
            tuple(
                np.ascontiguousarray(weight.detach().numpy().T)
                for weight in (block.mix, block.out, block.up, block.down)
            )
            for block in cast("list[Block]", network.blocks)
        ]
        self.size = network.width // network.heads
        turn = turns(0, cache.room, self.size, network.embedding.dtype).numpy()
        cos, sin = turn[:, :, 0, 0]
        self.cos, self.sin = np.tile(cos, 2), np.concatenate([-sin, sin], -1)
        self.scale = cast(Block, network.blocks[0]).scale

    def rebind(self) -> None:
        """After the cache was filled otherwise, or its rows were chosen anew."""
        self.keys, self.values = self.cache.keys.numpy(), self.cache.values.numpy()
        self.last = cast(Tensor, self.cache.last).numpy()

    def step(self, symbols: np.ndarray) -> np.ndarray:
        """Reads a symbol of each sequence, (n,); the features behind the next ones' logits, (n, width)."""
        cache, heads, place, n = self.cache, self.network.heads, self.cache.filled, len(symbols)
        h = first = self._read(symbols)
        cos, sin = self.cos[place], self.sin[place]
        for layer, (mix, out, up, down) in enumerate(self.weights):
            if layer and self.again[layer]:
                h = h + self.again[layer] * first
            mixed = (_normed(h) @ mix).reshape(n, 3, heads, self.size)
            turned = _turned(_normed(mixed[:, :2]), cos, sin)
            self.keys[layer, :, :, place], self.values[layer, :, :, place] = turned[:, 1], mixed[:, 2]
            h = h + self._attend(turned[:, 0], layer, place + 1).reshape(n, -1) @ out
            inside = _normed(h) @ up
            np.maximum(inside, 0, out=inside)
            inside *= inside
            h = h + inside @ down
        cache.filled, self.last = place + 1, symbols
        cache.last = torch.from_numpy(symbols)
        return _normed(h)

    def _attend(self, q: np.ndarray, layer: int, end: int) -> np.ndarray:
        """Mixed values (n, heads, 1, size) of queries (n, heads, size)."""
        seen = (self.keys[layer, :, :, :end] @ (q * self.scale)[..., None])[..., 0]
        np.exp(seen - np.maximum.reduce(seen, axis=-1, keepdims=True), out=seen)
        seen /= np.add.reduce(seen, axis=-1, keepdims=True)
        return seen[:, :, None] @ self.values[layer, :, :, :end]

    def _read(self, symbols: np.ndarray) -> np.ndarray:
        features = self.table[symbols]
        if self.pair is not None:
            features = features + self.pair[self.network.place(self.last, symbols)]
        return _normed(features)


@cache
def _even(size: int, dtype: np.dtype) -> np.ndarray:
    return np.full(size, 1 / size, dtype=dtype)


def _normed(x: np.ndarray) -> np.ndarray:
    size = x.shape[-1]
    if x.size == size:  # one row: dot products take a third of the time of reductions
        row = x.reshape(size)
        row = row - row.dot(_even(size, x.dtype))
        row *= x.dtype.type(1 / math.sqrt(row.dot(row) / size + 1e-5))
        return row.reshape(x.shape)
    x = x - np.add.reduce(x, axis=-1, keepdims=True) / size
    squares = np.add.reduce(x * x, axis=-1, keepdims=True)
    squares /= size
    squares += 1e-5
    x /= np.sqrt(squares)
    return x


def _turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """a cos - b sin and b cos + a sin of the halves a, b."""
    half = x.shape[-1] // 2
    found = x * cos
    found[..., :half] += x[..., half:] * sin[:half]
    found[..., half:] += x[..., :half] * sin[half:]
    return found
