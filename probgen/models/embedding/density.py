"""The log-bilinear law of a context word given a word, normalised over the vocabulary."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from probgen.models.embedding.corpus import encoded

__all__ = ["log_pmf", "of_pairs", "of_texts"]

_CELLS = 1 << 23  # of a table of log-probabilities


def log_pmf(rows: Tensor, outs: Tensor, log_q: Tensor) -> Tensor:
    """log p(c | w) of words with vectors ``rows`` (m, dim), float64 (m, V): log_softmax of u_c v_w + log q(c)."""
    return torch.log_softmax(rows @ outs.T + log_q, -1)


def of_pairs(
    words: Sequence[int] | np.ndarray, contexts: Sequence[int] | np.ndarray, rows: Tensor, outs: Tensor, log_q: Tensor
) -> np.ndarray:
    """log p(c | w) of each pair, (n,); each word's normaliser is summed once."""
    own, inverse = np.unique(np.asarray(words), return_inverse=True)
    seen = np.asarray(contexts)
    nats = np.empty(len(seen))
    step = max(1, _CELLS // len(outs))
    order = np.argsort(inverse, kind="stable")
    edges = np.searchsorted(inverse[order], np.arange(0, len(own) + step, step))
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        some = order[low:high]
        table = log_pmf(rows[own[i * step : (i + 1) * step]], outs, log_q).numpy()
        nats[some] = table[inverse[some] - i * step, seen[some]]
    return nats


def of_texts(
    texts: Sequence[Sequence[str]], places: dict[str, int], rows: Tensor, outs: Tensor, log_q: Tensor, window: int
) -> np.ndarray:
    """Sum over ordered pairs of known words up to ``window`` apart, of each text (n,); unknown words are left out."""
    ids, lengths = encoded(texts, places)
    text = np.repeat(np.arange(len(lengths)), lengths)
    words, contexts, owners = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for gap in range(1, window + 1):
        near = text[:-gap] == text[gap:]
        for here, there in ((slice(None, -gap), slice(gap, None)), (slice(gap, None), slice(None, -gap))):
            words.append(ids[here][near])
            contexts.append(ids[there][near])
            owners.append(text[here][near])
    if not (pairs := np.concatenate(words)).size:
        return np.zeros(len(lengths))
    nats = of_pairs(pairs, np.concatenate(contexts), rows, outs, log_q)
    return np.bincount(np.concatenate(owners), nats, len(lengths))
