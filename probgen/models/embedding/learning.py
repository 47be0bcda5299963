"""Skip-gram with negative sampling: the objective, and two ways to climb it."""

import itertools
import math
import time
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from probgen.errors import FitError
from probgen.model import FitReport
from probgen.models.embedding.corpus import Corpus, alias

__all__ = ["compiled", "keeping", "learn", "log_likelihood", "noise_of"]

_LANES = 16  # the kernel's rows are filled up to a multiple
_PIECE = 1 << 20  # words between looks at the keyboard
_BATCH = 1024  # pairs of a step on the torch path
_FASTER = 4.0  # Adagrad's rate over that of plain steps


def compiled() -> ModuleType | None:
    """The kernel, or None where it was not built."""
    from probgen import kernels

    return kernels.skipgram


def noise_of(counts: np.ndarray, power: float) -> np.ndarray:
    """The law of the negatives: counts to a power, normalised (V,)."""
    weights = counts.astype(np.float64) ** power
    return weights / weights.sum()


def keeping(counts: np.ndarray, sample: float) -> np.ndarray:
    """Probability that an occurrence of a word stays, word2vec's rule: sqrt(t / f) + t / f, at most 1; t = sample."""
    if not sample:
        return np.ones(len(counts))
    share = sample / (counts / counts.sum())
    return np.minimum(1.0, np.sqrt(share) + share)


def log_likelihood(rows: Tensor, outs: Tensor, centres: Tensor, targets: Tensor) -> Tensor:
    """log sigma(u_c v_w) + sum of log sigma(-u_n v_w) over negatives n, of each pair (n,): the definition.

    Mikolov et al. (2013), equation 4.

    Arguments:
        rows, outs: Vectors v of words and u of contexts, (V, dim).
        centres: Words w, (n,).
        targets: The context c, then the negatives, (n, 1 + negatives).
    """
    scores = torch.einsum("nd,ntd->nt", rows[centres], outs[targets])
    return logsigmoid(scores[:, 0]) + logsigmoid(-scores[:, 1:]).sum(1)


def learn(
    corpus: Corpus, dim: int, options: dict[str, Any], epochs: int, rate: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, FitReport]:
    """Vectors of words and of contexts, float32 (V, dim), after some passes with a rate that falls to nothing.

    Arguments:
        options: window, negatives, noise, sample, and ``path``: "kernel" or "torch".
    """
    began, path = time.perf_counter(), options["path"]
    width = -(-dim // _LANES) * _LANES
    rows = torch.zeros(len(corpus.words), width, dtype=torch.float32)
    rows[:, :dim] = (torch.rand(len(rows), dim, generator=generator) - 0.5) / dim
    outs = torch.zeros_like(rows)
    way: type[_Kernel] | type[_Torch] = _Kernel if path == "kernel" else _Torch
    run = way(corpus, rows, outs, options, generator)
    objective: list[float] = []
    pairs, stopped = 0, "steps"
    try:
        for epoch in range(epochs):
            total, count = run.epoch(rate * (1 - epoch / epochs), rate * (1 - (epoch + 1) / epochs))
            if not count:
                raise FitError(
                    "No text has two known words beside each other",
                    "texts of several words that occur min_count times, and are left by sample=",
                    "Lower min_count, or give sample=0",
                )
            if not math.isfinite(total) or not torch.isfinite(rows.sum() + outs.sum()):
                raise FitError(f"Epoch {epoch} left finite numbers", "a smaller step", f"Lower learning_rate={rate}")
            objective.append(total / count)
            pairs += count
    except KeyboardInterrupt:
        stopped = "interrupted"
    notes = (f"{pairs} pairs of {len(corpus.words)} words by the {path} path", *_thinned(corpus, options["sample"]))
    seconds = time.perf_counter() - began
    report = FitReport(tuple(objective), len(objective), stopped, seconds, notes=notes)
    return rows[:, :dim].clone(), outs[:, :dim].clone(), report


def _thinned(corpus: Corpus, sample: float) -> tuple[str, ...]:
    """A word to those whose texts are mostly thinned away, as small vocabularies are."""
    left = float(keeping(corpus.counts, sample) @ corpus.counts / corpus.counts.sum())
    return (f"sample={sample:g} leaves {left:.0%} of the words: sample=0 leaves all",) if left < 0.25 else ()


class _Kernel:
    """Plain steps, pair by pair."""

    def __init__(
        self, corpus: Corpus, rows: Tensor, outs: Tensor, options: dict[str, Any], generator: torch.Generator
    ) -> None:
        share, other = alias(noise_of(corpus.counts, options["noise"]))
        self.tables = keeping(corpus.counts, options["sample"]), share, other, rows.numpy(), outs.numpy()
        self.shape = options["window"], options["negatives"]
        self.corpus, self.generator = corpus, generator
        self.kernel: Any = compiled()

    def epoch(self, first: float, last: float) -> tuple[float, int]:
        """One pass; the sum of the log-likelihoods and the number of pairs."""
        total, pairs = 0.0, 0
        for low, high in _pieces(self.corpus.lengths):
            ends = np.cumsum(self.corpus.lengths)
            begin, end = (int(ends[i - 1]) if i else 0 for i in (low, high))
            rates = [first + (last - first) * place / max(1, ends[-1]) for place in (begin, end)]
            seed = int(torch.randint(2**62, (1,), generator=self.generator))
            parts = self.corpus.ids[begin:end], self.corpus.lengths[low:high]
            gained, count = self.kernel.train(*parts, *self.tables, *self.shape, *rates, seed)
            total, pairs = total + gained, pairs + count
        return total, pairs


def _pieces(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Runs of texts of about _PIECE words."""
    group = np.cumsum(lengths) // _PIECE
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(lengths)]
    return list(itertools.pairwise(edges))


class _Torch:
    """Batches of pairs, each row with its own step size (Duchi et al. 2011): sums over a batch can't overshoot."""

    def __init__(
        self, corpus: Corpus, rows: Tensor, outs: Tensor, options: dict[str, Any], generator: torch.Generator
    ) -> None:
        self.corpus, self.tables, self.options, self.generator = corpus, (rows, outs), options, generator
        self.keep = torch.from_numpy(keeping(corpus.counts, options["sample"]))
        self.noise = torch.from_numpy(noise_of(corpus.counts, options["noise"]))
        self.seen = [torch.full((len(rows),), 1e-8) for _ in self.tables]

    def epoch(self, first: float, last: float) -> tuple[float, int]:
        centres, contexts = self._pairs()
        order = torch.randperm(len(centres), generator=self.generator)
        total = 0.0
        for low in range(0, len(order), _BATCH):
            some = order[low : low + _BATCH]
            rate = _FASTER * (first + (last - first) * low / len(order))
            drawn = torch.multinomial(
                self.noise, len(some) * self.options["negatives"], replacement=True, generator=self.generator
            )
            targets = torch.cat([contexts[some][:, None], drawn.reshape(len(some), -1)], 1)
            total += self._step(centres[some], targets, rate)
        return total, len(order)

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Words and their contexts within windows drawn from 1 to ``window``, frequent words thinned."""
        ids = torch.from_numpy(self.corpus.ids)
        text = torch.from_numpy(np.repeat(np.arange(len(self.corpus.lengths)), self.corpus.lengths))
        stays = torch.rand(len(ids), generator=self.generator, dtype=torch.float64) < self.keep[ids]
        ids, text = ids[stays], text[stays]
        reach = torch.randint(1, self.options["window"] + 1, (len(ids),), generator=self.generator)
        centres, contexts = [], []
        for gap in range(1, self.options["window"] + 1):
            near = text[:-gap] == text[gap:]
            for here, there in ((slice(None, -gap), slice(gap, None)), (slice(gap, None), slice(None, -gap))):
                taken = near & (reach[here] >= gap)
                centres.append(ids[here][taken])
                contexts.append(ids[there][taken])
        return torch.cat(centres), torch.cat(contexts)

    def _step(self, centres: Tensor, targets: Tensor, rate: float) -> float:
        rows, outs = self.tables
        x, y = rows[centres], outs[targets]
        scores = torch.einsum("nd,ntd->nt", x, y)
        sign = torch.ones(scores.shape[1])
        sign[1:] = -1
        force = sign * torch.sigmoid(-sign * scores)
        self._move(0, centres, torch.einsum("nt,ntd->nd", force, y), rate)
        self._move(1, targets.flatten(), (force[:, :, None] * x[:, None]).flatten(0, 1), rate)
        return float(logsigmoid(sign * scores).double().sum())

    def _move(self, table: int, places: Tensor, gradient: Tensor, rate: float) -> None:
        used, inverse = places.unique(return_inverse=True)
        summed = torch.zeros(len(used), gradient.shape[1]).index_add_(0, inverse, gradient)
        self.seen[table][used] += (summed**2).mean(1)
        self.tables[table][used] += rate * summed / self.seen[table][used, None].sqrt()
