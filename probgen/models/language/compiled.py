"""The way to the kernel ``decoder``: a transformer's step for rows side by side, and the draw of their next symbols.

The arithmetic is that of nn.Transformer and of Choice, which stay the definitions; the kernel agrees to rounding.
"""

from types import ModuleType
from typing import cast

import numpy as np
import torch
from torch import Tensor

from probgen import kernels
from probgen.nn.transformer import Block, Cache, Transformer, turns

__all__ = ["Compiled", "pick", "takes"]

_PANEL = 128  # bytes of outputs that stand together in a packed matrix
_PLACES = 16  # keys that stand together
_FIRST = 4  # blocks of places that memory is asked for at first
_ROWS = 8  # for which another thread is worth its start


def _kernel() -> ModuleType:
    return cast(ModuleType, kernels.decoder)


class Compiled:
    """What a transformer read, and its steps by the kernel. What comes first is read by torch, at once.

    Arguments:
        network: Its weights are copied, packed for their order in memory, at the first step.
        room: Symbols that fit.

    ``filled`` counts the symbols read. Before they differ, rows are one row.
    """

    def __init__(self, network: Transformer, room: int) -> None:
        self.network, self.room = network, room
        self.filled = 0
        self.read: Cache | None = None  # by torch, and not yet taken over
        self.slots = self.last = np.empty(0, dtype=np.int64)
        self.weights: tuple | None = None
        self.keys, self.values = self._memory(0, 0)

    @staticmethod
    def suits(network: Transformer) -> bool:
        """Whether the kernel is built and knows this network; a class of its own may compute otherwise."""
        return type(network) is Transformer and takes(network.embedding)

    def restart(self) -> None:
        self.filled, self.read = 0, None

    def take(self, ids: Tensor) -> Tensor:
        """Reads symbols (rows, T), of one row where all are alike: the next ones' logits, (rows, symbols).

        After the first time, one symbol of each row.
        """
        if not self.filled:
            self.read = Cache(self.network, *ids.shape)
            with torch.no_grad():
                logits = self.network.head(self.network(ids, cache=self.read)[:, -1])
            self.filled, self.last = ids.shape[1], ids[:, -1].numpy().copy()
            return logits
        return torch.from_numpy(self._step(ids.numpy()[:, 0].copy()))

    def _step(self, symbols: np.ndarray) -> np.ndarray:
        if self.read is not None:
            self._take_over(self.read, len(symbols))
        if self.weights is None:
            self.weights = _packed(self.network, self.room)
        self._reserve(self.keys.shape[1], self.filled // _PLACES + 1)
        logits = np.empty((len(symbols), self.network.symbols), dtype=self.keys.dtype)
        threads = max(1, min(torch.get_num_threads(), len(symbols) // _ROWS))
        _kernel().step(
            *self.weights, self.keys, self.values, self.slots, symbols, self.last, self.filled, threads, logits
        )
        self.filled, self.last = self.filled + 1, symbols
        return logits

    def keep(self, rows: Tensor) -> None:
        """Some rows, by number, perhaps several times, in place of all."""
        if self.read is not None:
            if len(self.last) > 1:
                self.read.keep(rows)
                self.last = self.last[rows.numpy()]
            return
        self.last, slots = self.last[rows.numpy()], self.slots[rows.numpy()]
        again = np.setdiff1d(np.arange(len(slots)), np.unique(slots, return_index=True)[1])
        if len(again):
            self._reserve(len(slots), 0)
            free = np.setdiff1d(np.arange(self.keys.shape[1]), slots)[: len(again)]
            used = -(-self.filled // _PLACES)
            self.keys[:, free, :, :used] = self.keys[:, slots[again], :, :used]
            self.values[:, free, :, : self.filled] = self.values[:, slots[again], :, : self.filled]
            slots[again] = free
        self.slots = slots

    def _take_over(self, read: Cache, n: int) -> None:
        """Keys and values that torch computed, of n rows or of one for all, in the kernel's order."""
        used = -(-self.filled // _PLACES)
        self._reserve(n, used)
        self.slots, self.last = np.arange(n), np.resize(self.last, n)
        layers, rows, heads, _, size = read.keys.shape
        keys = np.zeros((layers, rows, heads, used * _PLACES, size), dtype=self.keys.dtype)
        keys[:, :, :, : self.filled] = read.keys.numpy()
        keys = keys.reshape(layers, rows, heads, used, _PLACES, size)
        self.keys[:, :n, :, :used] = keys.swapaxes(-1, -2)
        self.values[:, :n, :, : self.filled] = read.values.numpy()
        self.read = None

    def _reserve(self, slots: int, blocks: int) -> None:
        """Sees that there is memory for so many rows and blocks of places; what is in use moves along."""
        _, had, _, before, _, _ = self.keys.shape
        if slots <= had and blocks <= before:
            return
        most = -(-self.room // _PLACES)
        more = before if blocks <= before else max(blocks, min(most, max(_FIRST, 2 * before)))
        keys, values = self.keys, self.values
        self.keys, self.values = self._memory(max(slots, had), more)
        if self.read is None:
            self.keys[:, :had, :, :before], self.values[:, :had, :, : before * _PLACES] = keys, values

    def _memory(self, slots: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
        """For keys and values. NumPy asks for large pages, torch does not."""
        network, dtype = self.network, self.network.embedding.detach().numpy().dtype
        shape, size = (network.layers, slots, network.heads), network.width // network.heads
        keys = np.empty((*shape, blocks, size, _PLACES), dtype=dtype)
        return keys, np.empty((*shape, blocks * _PLACES, size), dtype=dtype)


@torch.no_grad()
def _packed(network: Transformer, room: int) -> tuple:
    """What the kernel is told of a network: tables, matrices, rotations, sizes."""
    blocks = cast("list[Block]", network.blocks)
    matrices = [weight for block in blocks for weight in (block.mix, block.out, block.up, block.down)]
    matrices.append(network.embedding)
    lanes = _PANEL // network.embedding.element_size()
    sizes = [-(-len(matrix) // lanes) * lanes * matrix.shape[1] for matrix in matrices]
    weights = np.empty(sum(sizes), dtype=network.embedding.detach().numpy().dtype)
    for part, matrix in zip(torch.from_numpy(weights).split(sizes), matrices, strict=True):
        _pack(part, matrix, lanes)
    turn = turns(0, room, network.width // network.heads, network.embedding.dtype)[:, :, 0, 0].transpose(0, 1)
    pair = None if network.pair is None else network.pair.detach().contiguous().numpy()
    table, again = network.embedding.detach().contiguous().numpy(), network.again.detach().numpy()
    return table, pair, weights, again, turn.contiguous().numpy(), network.hidden, blocks[0].scale


def _pack(out: Tensor, matrix: Tensor, lanes: int) -> None:
    """A matrix (N, K) as panels (K, lanes) of outputs, the last filled up with zeros."""
    whole, width = len(matrix) // lanes, matrix.shape[1]
    at = whole * lanes
    out[: at * width].view(whole, width, lanes).copy_(matrix[:at].view(whole, lanes, width).transpose(1, 2))
    if at < len(matrix):
        rest = out[at * width :].view(width, lanes).zero_()
        rest[:, : len(matrix) - at] = matrix[at:].T


def takes(numbers: Tensor) -> bool:
    """Whether the kernel is built and takes numbers of this kind."""
    known = numbers.dtype in (torch.float32, torch.float64) and numbers.device.type == "cpu"
    return known and kernels.decoder is not None


def pick(logits: Tensor, u: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The symbols (m,) that uniform numbers u (m,) choose from logits (m, symbols), changed as Choice says."""
    out = np.empty(logits.shape[0], dtype=np.int64)
    _kernel().pick(logits.contiguous().numpy(), u.numpy(), temperature, top_k, top_p, min_p, out)
    return torch.from_numpy(out)
