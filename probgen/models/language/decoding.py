"""What comes next, symbol after symbol: a memory of what was read, kept by the kernel or by torch."""

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from probgen.models.language.compiled import Compiled
from probgen.models.language.scoring import first_symbol, masked
from probgen.nn.transformer import Cache, Transformer

if TYPE_CHECKING:
    from probgen.models.language.family import LanguageModel

__all__ = ["Stepper"]


class Stepper:
    """The pmf of the next symbol of each of several sequences that grow side by side.

    The windows are those of scoring: when one is full, it moves on by the model's stride and is read again. Steps are
    the kernel's where it knows the network, else torch's; the two agree to rounding.

    Arguments:
        model: Whose pmf.
        batch: How many sequences.
        cached: Whether to keep keys and values; without them every step reads its whole window: slow, for tests.
        room: Symbols to keep memory for, where they are fewer than the window's.
    """

    def __init__(self, model: "LanguageModel", batch: int = 1, cached: bool = True, room: int = 0) -> None:
        self.model, self.batch, self.cached = model, batch, cached
        self.network, room = cast(Transformer, model.network), room or model.window
        known = cached and Compiled.suits(self.network)
        self.memory: Compiled | _Plain = Compiled(self.network, room) if known else _Plain(self.network, room)
        self.reset()

    def reset(self) -> None:
        """Before the first symbol of each."""
        self.begin, self.steps = 0, -1
        self._columns: list[Tensor] = []
        self.memory.restart()
        self._take(torch.full((1, 1), self.network.symbols - 1))

    @property
    def history(self) -> Tensor:
        """A start symbol and what was pushed, (batch, 1 + steps), or (1, 1 + steps) where all are alike."""
        rows = max(len(part) for part in self._columns)
        self._columns = [torch.cat([part.expand(rows, -1) for part in self._columns], 1)]
        return self._columns[0]

    def _take(self, ids: Tensor) -> None:
        """Reads further columns (batch, T), or (1, T) where all are alike; their last window is what counts."""
        self._columns.append(ids)
        self.steps += ids.shape[1]
        begin = first_symbol(self.steps, self.model.window, self.model.stride)
        if begin != self.begin or not self.cached:
            self.begin = begin
            self.memory.restart()
            ids = self.history[:, begin:]
        self._logits = self.memory.take(ids)

    def logits(self) -> Tensor:
        """Of the next symbol, (batch, symbols + 1), the end last; -inf where a symbol can not come."""
        legal = self.model.alphabet.legal
        place = None if legal is None else legal[min(self.steps, len(legal) - 1)]
        logits = self._logits
        if logits.shape[0] < self.batch:
            logits = logits.expand(self.batch, -1).contiguous()
        return masked(logits, self.model.alphabet.ends, place)

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
        alike = all(len(part) == 1 for part in self._columns)
        ids = ids[None] if ids.dim() == 1 and alike else ids.expand(self.batch, -1)
        if not ids.shape[1]:
            return
        if 1 + self.steps + ids.shape[1] > self.model.window or isinstance(self.memory, Compiled):
            self.begin = -1  # nothing of what is kept will do; the kernel reads one by one
        self._take(ids)

    def keep(self, rows: Tensor) -> None:
        """Some sequences, by number, perhaps several times, in place of all."""
        history = self.history
        self.batch = len(rows)
        if len(history) > 1:
            self._columns = [history[rows]]
        if len(self._logits) > 1:
            self._logits = self._logits[rows]
        self.memory.keep(rows)


class _Plain:
    """What a transformer read, and its steps by torch.

    Arguments:
        network: Of any precision.
        room: Symbols that fit.
    """

    def __init__(self, network: Transformer, room: int) -> None:
        self.network, self.room = network, room

    def restart(self) -> None:
        self.cache: Cache | None = None

    @torch.no_grad()
    def take(self, ids: Tensor) -> Tensor:
        """Reads symbols (rows, T), of one row where all are alike: the next ones' logits, (rows, symbols)."""
        if self.cache is None:
            self.cache = Cache(self.network, len(ids), self.room)
        elif self.cache.batch < len(ids):
            self.cache.keep(torch.zeros(len(ids), dtype=torch.int64))
        return self.network.head(self.network(ids, cache=self.cache)[:, -1])

    def keep(self, rows: Tensor) -> None:
        if self.cache is not None and self.cache.batch > 1:
            self.cache.keep(rows)
