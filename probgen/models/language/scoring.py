"""Log-probabilities of every symbol of many sequences: windows, and batches of windows of like length."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probgen.events import Ragged
from probgen.events.symbols import Alphabet
from probgen.nn.transformer import Transformer

if TYPE_CHECKING:
    from probgen.models.language.choosing import Choice

__all__ = ["Reading", "Windows", "first_symbol", "score"]

_BATCH = 4096  # symbols, padding included
_ROWS = 64
_PIECE = 512  # positions whose logits stay in the cache


@dataclass(frozen=True, eq=False)
class Reading:
    """Sequences as inputs and targets: each input is followed by its target.

    Arguments:
        inputs: A start symbol, then the symbols, of one sequence after the other; (total,).
        targets: The symbols, then the end where it is predicted; (total,).
        lengths: Targets of each sequence, (n,).
    """

    inputs: Tensor
    targets: Tensor
    lengths: np.ndarray

    @classmethod
    def of(cls, ids: Ragged, start: int, ends: bool) -> "Reading":
        begin, inputs, targets = torch.tensor([start]), [], []
        for part in ids.split():
            inputs += [begin, part if ends else part[:-1]]
            targets += [part, begin] if ends else [part]
        return cls(torch.cat(inputs), torch.cat(targets), ids.lengths.numpy() + ends)

    @cached_property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def places(self) -> Tensor:
        """Of each target in its sequence, (total,)."""
        return torch.from_numpy(np.arange(len(self.targets)) - np.repeat(self.starts, self.lengths))

    @cached_property
    def rows(self) -> Tensor:
        """The sequence of each target, (total,)."""
        return torch.from_numpy(np.repeat(np.arange(len(self.lengths)), self.lengths))

    def firsts(self, symbols: int) -> Tensor:
        """Where each symbol first comes in each sequence, past its end where it never does: (n, symbols)."""
        found = torch.full((len(self.lengths), symbols), len(self.targets))
        return found.view(-1).scatter_reduce(0, self.rows * symbols + self.targets, self.places, "amin").view_as(found)


@dataclass(frozen=True, eq=False)
class Windows:
    """What each symbol is predicted from: each target belongs to one window, which begins before it.

    The first window of a sequence holds ``context`` symbols; each further one begins ``stride`` symbols later and
    predicts the next ``stride`` targets. So target i sees at least context - stride symbols, or all before it.

    Arguments:
        begin, end: Of each window, as places in the reading, (windows,).
        first: The first target that each window predicts, (windows,); the last is end - 1.
    """

    begin: np.ndarray
    end: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, reading: Reading, context: int, stride: int) -> "Windows":
        lengths = reading.lengths
        each = 1 + np.maximum(0, -(-(lengths - context) // stride))
        row = np.repeat(np.arange(len(lengths)), each)
        number = np.arange(len(row)) - np.repeat(np.cumsum(each) - each, each)
        begin = number * stride
        end = np.minimum(begin + context, lengths[row])
        first = np.where(number > 0, begin + context - stride, 0)
        return cls(*(reading.starts[row] + part for part in (begin, end, first)))

    def __len__(self) -> int:
        return len(self.begin)

    def __getitem__(self, rows: np.ndarray) -> "Windows":
        return Windows(self.begin[rows], self.end[rows], self.first[rows])

    def after(self, first: np.ndarray) -> "Windows":
        """Without the targets before place ``first`` (windows,) of the reading."""
        kept = np.maximum(self.first, first)
        return self[kept < self.end] if not (kept < self.end).all() else Windows(self.begin, self.end, kept)

    def batches(self) -> Iterator["Windows"]:
        """Groups of like length; which windows stand together has no effect on any number."""
        order = np.argsort(self.begin - self.end, kind="stable")  # the longest first
        while len(order):
            rows = max(1, min(_ROWS, _BATCH // int(self.end[order[0]] - self.begin[order[0]])))
            yield self[order[:rows]]
            order = order[rows:]


def first_symbol(begin: int, context: int, stride: int) -> int:
    """Where the window of target ``begin`` of a sequence begins: the rule of Windows for one target."""
    return 0 if begin < context else -(-(begin + 1 - context) // stride) * stride


def score(
    network: Transformer, reading: Reading, windows: Windows, alphabet: Alphabet, choice: "Choice | None" = None
) -> Tensor:
    """log p(target | the symbols of its window before it), (total,), float64; zero for targets of no window.

    Arguments:
        choice: A change of every pmf, where the model is not scored as it is.
    """
    nats = torch.zeros(len(reading.targets), dtype=torch.float64)
    firsts = reading.firsts(network.symbols) if choice is not None and choice.repetition_penalty != 1 else None
    for batch in windows.batches():
        places, features = read(network, reading, batch)
        for rows, part in zip(places.split(_PIECE), features.split(_PIECE), strict=True):
            legal = None if alphabet.legal is None else alphabet.legal[reading.places[rows]]
            logits = masked(network.head(part), alphabet.ends, legal).double()
            if choice is not None:
                seen = None if firsts is None else firsts[reading.rows[rows]] < reading.places[rows, None]
                logits = choice(logits, seen)
            target = reading.targets[rows, None]
            nats[rows] = logits.gather(1, target)[:, 0] - logits.logsumexp(1)
    return nats


def read(network: Transformer, reading: Reading, batch: Windows) -> tuple[Tensor, Tensor]:
    """The targets that a batch of windows predicts and the features behind them: (m,), (m, width)."""
    longest = int((batch.end - batch.begin).max())
    steps = np.arange(longest)
    places = batch.begin[:, None] + steps
    wanted = (places >= batch.first[:, None]) & (places < batch.end[:, None])
    inputs = reading.inputs[torch.from_numpy(np.minimum(places, batch.end[:, None] - 1))]
    features = network(inputs)
    return torch.from_numpy(places[wanted]), features[torch.from_numpy(wanted)]


def masked(logits: Tensor, ends: bool, legal: Tensor | None = None) -> Tensor:
    """Logits (m, symbols) without what can not come: the end where it is not modelled, levels that a place lacks."""
    if ends:
        return logits
    logits = logits.clone()
    logits[:, -1] = -torch.inf
    if legal is not None:
        logits[:, :-1].masked_fill_(~legal, -torch.inf)
    return logits
