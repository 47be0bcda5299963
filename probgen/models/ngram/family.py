"""Interpolated modified Kneser-Ney n-grams over bytes, tokens or symbols. Exact."""

import time
from typing import Any, ClassVar, Self

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.events import Checked, Event, Ragged, Text
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.ngram import alphabet, tuning
from probgen.models.ngram.counting import Counts, Stream, count, streamed
from probgen.models.ngram.program import Sequences
from probgen.models.ngram.tree import Stepper, Tree, discounts_of, interpolated

__all__ = ["NGram"]

_CHUNK = 1 << 20  # symbols that are looked up together
_MOST = 4096  # tokens of a text that is drawn
_LANES = 4096  # sequences that are drawn together


class NGram(GenerativeModel):
    """p(x_t | the last order - 1 symbols), by interpolated modified Kneser-Ney smoothing. Exact.

    Arguments:
        event: Text (bytes or tokens of a BPE), or Series with levels; a step of several cells is one symbol.
        order: Of the longest n-grams: contexts have order - 1 symbols.

    A text's probability includes its first symbol and its end: all texts, the empty one among them, have mass one. A
    Series is scored given its length, as by every family over series. A symbol that was never seen has its share of a
    uniform law. Under a BPE the path of a text's own tokens is one of many that spell it, so log p of the text is a
    lower bound.

    Each order keeps three discounts, of counts 1, 2 and more: Kneser and Ney (1995); Chen and Goodman (1999).
    ``discounts`` has them, shape (order, 3). Saved with all counts: some 12 bytes an n-gram.
    """

    growing: ClassVar[tuple[str, ...]] = ("symbols", "branches", "counts")
    sizes: Tensor
    symbols: Tensor
    branches: Tensor
    counts: Tensor

    def __init__(self, event: Event, order: int = 9) -> None:
        super().__init__(event)
        if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 64:
            raise ParameterError(f"order={order!r}", "a whole number from 1 to 64", "9 for bytes, 5 for tokens")
        self.order = order
        self.slopes = nn.Parameter(torch.zeros(order, 3, dtype=torch.float64))
        self.register_buffer("sizes", torch.zeros(order, dtype=torch.int64))
        for name in self.growing:
            self.register_buffer(name, torch.zeros(0, dtype=torch.int32))
        self._known: tuple[Any, ...] | None = None

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return alphabet.why_not(event)

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        tokens = not isinstance(event, Text) or event.tokens > 256
        return cls(event, **{"order": 5 if tokens else 9, **options})

    @property
    def ends(self) -> bool:
        """Whether the end of a sequence is a symbol."""
        return isinstance(self.event, Text)

    @property
    def base(self) -> int:
        """Symbols that can come next, the end among them where it is one."""
        return alphabet.symbols_of(self.event) + self.ends

    @property
    def discounts(self) -> Tensor:
        """What is taken from counts of 1, 2, and 3 or more, in counts, shape (order, 3); below 1, 2 and 3."""
        return discounts_of(self.slopes)

    def _check(self, x: Any) -> Checked:
        return alphabet.refuse_gaps(type(self).__name__, super()._check(x))

    def _stream(self, x: Ragged) -> Stream:
        codes = alphabet.codes_of(self.event, x)
        return streamed(codes, x.lengths.numpy(), alphabet.symbols_of(self.event) + 1, self.ends)

    def _grown(self) -> tuple[Tree, list[tuple[np.ndarray, np.ndarray]]]:
        """The tree with its weights, made once for the counts and discounts that there are."""
        state = self.symbols, self.branches, self.counts, self.sizes
        slopes = self.slopes.detach()
        if self._known is None or any(a is not b for a, b in zip(self._known[0], state, strict=True)):
            counts = Counts(*(part.numpy() for part in state))
            self._known = (state, Tree(counts, alphabet.symbols_of(self.event) + 1, self.base), None, None)
        of, tree, at, weights = self._known
        if at is None or not torch.equal(at, slopes):
            weights = tree.weights(self.discounts.detach().numpy())
            self._known = (of, tree, slopes.clone(), weights)
        return tree, weights

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known": None}  # type: ignore[misc]

    @torch.no_grad()
    def _fit(self, x: Ragged, given: None, *, generator: torch.Generator, tune: bool = True) -> FitReport:
        """Counts, and discounts.

        ``tune``: whether some twentieth of the sequences is held out from a first count to choose the discounts by
        their likelihood; else, and for fewer than 40 sequences, Chen and Goodman's formula gives them.
        """
        if not isinstance(tune, bool):
            raise ParameterError(f"tune={tune!r}", "True or False")
        began = time.perf_counter()
        objective, note = None, "discounts by Chen and Goodman's formula"
        if tune and len(x) >= tuning.LEAST:
            slopes, objective = tuning.tuned(x, self._stream, self.order, self.base, generator)
            self.slopes.copy_(slopes)
            note = f"discounts tuned on {len(x) // tuning.SHARE} held-out sequences, then all were counted"
        self._keep(count(self._stream(x), self.order))
        if objective is None:
            tree, _ = self._grown()
            self.slopes.copy_(tuning.formula_slopes(tree, self.order))
            objective = -float(np.log(self.base)), self._mean_nats(x)
        seconds = time.perf_counter() - began
        return FitReport(objective, len(objective) - 1, "closed form", seconds, notes=(note, *self._notes()))

    def _keep(self, counts: Counts) -> None:
        self.symbols, self.branches, self.counts = map(
            torch.from_numpy, (counts.symbols, counts.children, counts.counts)
        )
        self.sizes = torch.from_numpy(counts.sizes)

    def _notes(self) -> tuple[str, ...]:
        return (f"{int(self.sizes.sum())} n-grams: {', '.join(map(str, self.sizes.tolist()))} of orders 1 on",)

    def _mean_nats(self, x: Ragged) -> float:
        """Mean log-probability of a symbol, of the first sequences."""
        some = max(1, int((x.lengths.cumsum(0) <= 50_000).sum()))
        stream = self._stream(x[:some])
        tree, weights = self._grown()
        return float(np.log(tree.probabilities(stream, weights))[stream.scored].mean())

    def _nats(self, x: Ragged) -> list[tuple[Stream, np.ndarray]]:
        """Pieces of the sequences with the log-probability of each position."""
        tree, weights = self._grown()
        edges = np.flatnonzero(np.diff(np.r_[-1, (x.lengths.cumsum(0).numpy() - 1) // _CHUNK]))
        found = []
        for low, high in zip(edges, [*edges[1:], len(x)], strict=True):
            stream = self._stream(x if len(edges) == 1 else x[np.arange(low, high)])
            found.append((stream, np.log(tree.probabilities(stream, weights))))
        return found

    def _log_prob(self, x: Ragged, given: None, *, generator: torch.Generator) -> LogProb:
        nats = [np.add.reduceat(steps, np.flatnonzero(stream.place == 0)) for stream, steps in self._nats(x)]
        exact = not self.ends or self.event.tokenizer == "bytes"  # type: ignore[attr-defined]
        by = f"order-{self.order} counts" if exact else f"order-{self.order} counts along the text's own tokens"
        return LogProb(Kind.EXACT if exact else Kind.LOWER, np.concatenate(nats), by=by)

    def _log_prob_steps(self, x: Ragged, given: None, *, generator: torch.Generator) -> LogProb:
        """Of each symbol; the end of a text is no step of it, so its steps lack log p(end | text)."""
        parts = [steps[self._inner(stream)] for stream, steps in self._nats(x)]
        return LogProb(Kind.EXACT, np.concatenate(parts), by=f"order-{self.order} counts")

    def _inner(self, stream: Stream) -> np.ndarray:
        """Positions that are neither start nor end."""
        inner = stream.place > 0
        if self.ends:
            inner[np.r_[np.flatnonzero(stream.place == 0)[1:] - 1, len(stream) - 1]] = False
        return inner

    def _stepper(self, batch: int) -> Stepper:
        """The pmf of the next symbol of ``batch`` sequences, step by step."""
        self._check_fitted()
        return Stepper(*self._grown(), batch)

    def _row_nats(self, x: Ragged) -> Tensor:
        """log p of each sequence, shape (n,), differentiable in the discounts."""
        stream = self._stream(x)
        tree, _ = self._grown()
        p = interpolated(tree.evidence(stream), self.discounts, self.base)
        rows = torch.from_numpy(np.cumsum(stream.place == 0)[stream.scored] - 1)
        return p.new_zeros(len(x)).index_add(0, rows, p.log())

    def model(self, x: Ragged | None = None, given: None = None, n: int = 1) -> Ragged:
        """One site: the sequences, side by side and filled up with -1."""
        padded = None if x is None else Sequences.pad(alphabet.codes_of(self.event, x), x.lengths)
        with pyro.plate("rows", n if x is None else len(x)):
            drawn = pyro.sample("x", Sequences(self, n if x is None else len(x)), obs=padded)
        return self._unpadded(drawn)

    def _unpadded(self, padded: Tensor) -> Ragged:
        return alphabet.sequences_of(self.event, [row[row >= 0] for row in padded.numpy()])

    def sample_target(self, **options: Any) -> str:
        """Texts are drawn given that they are not empty, and cut where they grow too long."""
        return f"p(x | x is not empty), cut at {options.get('length') or _MOST} tokens" if self.ends else "p"

    def _sample(self, n: int, given: None, *, generator: torch.Generator, length: int | None = None) -> Ragged:
        """``length``: steps of each series, 20 if not given; of a text the most tokens, 4096 if not given."""
        most = (_MOST if self.ends else 20) if length is None else length
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ParameterError(f"length={length!r}", "a whole number of steps, at least 1")
        parts: list[np.ndarray] = []
        for low in range(0, n, _LANES):
            parts += self._draw(min(_LANES, n - low), most, generator)
        return alphabet.sequences_of(self.event, parts)

    def _draw(self, n: int, most: int, generator: torch.Generator) -> list[np.ndarray]:
        """Symbols of n sequences, by inversion; those that have ended are stepped on until half have."""
        stepper, end = self._stepper(n), alphabet.symbols_of(self.event)
        drawn: list[list[int]] = [[] for _ in range(n)]
        lanes, going = np.arange(n), np.ones(n, dtype=bool)
        for step in range(most):
            pmf = stepper.pmf()
            if not step:
                pmf[:, end] = 0.0
            heap = pmf.cumsum(axis=1)
            u = torch.rand(len(lanes), generator=generator, dtype=torch.float64).numpy() * heap[:, -1]
            symbols = np.minimum((heap <= u[:, None]).sum(axis=1), self.base - 1)
            stepper.push(symbols)
            going &= symbols != end
            for lane, symbol in zip(lanes[going].tolist(), symbols[going].tolist(), strict=True):
                drawn[lane].append(symbol)
            if not going.any():
                break
            if 2 * going.sum() <= len(lanes):
                stepper.keep(np.flatnonzero(going))
                lanes, going = lanes[going], going[going]
        return [np.array(part, dtype=np.int64) for part in drawn]
