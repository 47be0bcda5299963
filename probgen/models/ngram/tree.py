"""Interpolated probabilities from counts: of single symbols, and of all symbols after a context."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from probgen.models.ngram.counting import Counts, Stream

__all__ = ["Evidence", "Layer", "Stepper", "Tree", "discounts_of", "formula_discounts", "interpolated"]


@dataclass(frozen=True, eq=False)
class Layer:
    """The n-grams of one order.

    Arguments:
        keys: context * size + symbol of each, increasing, shape (n,), int64.
        symbols, counts: Of each n-gram, shape (n,).
        first: Where the children of each context begin, with the end of the last, shape (contexts + 1,).
        totals: Sum of the counts of each context's children, shape (contexts,).
        of_count: How many of them have the count 1, 2, and 3 or more, shape (3, contexts).
    """

    keys: np.ndarray
    symbols: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    totals: np.ndarray
    of_count: np.ndarray

    def find(self, contexts: np.ndarray, symbols: np.ndarray, size: int) -> np.ndarray:
        """Numbers of the n-grams that go on from contexts, -1 where the context or the n-gram was not seen."""
        wanted = contexts * size + symbols
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((contexts >= 0) & (self.keys[place] == wanted), place, -1)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the counts say about some positions, an order after the other: numbers of shape (positions, K).

    Arguments:
        counts: Of the n-gram that ends there; 0 where it was not seen.
        totals: Of its context; 0 where that was not seen.
        of_count: Children of the context with the count 1, 2, and 3 or more, shape (positions, K, 3).
    """

    counts: Tensor
    totals: Tensor
    of_count: Tensor


class Tree:
    """Counts with the ways through them.

    Arguments:
        counts: Of all orders.
        size: Symbols with the start.
        base: Symbols that can come next; unseen ones have an equal share.
    """

    def __init__(self, counts: Counts, size: int, base: int) -> None:
        self.size, self.base = size, base
        self.layers: list[Layer] = []
        bounds = np.r_[0, np.cumsum(counts.sizes)]
        children = np.array([size])  # of the root
        for low, high in pairwise(bounds.tolist()):
            if low == high:
                break  # no sequence is that long
            symbols, seen = counts.symbols[low:high].astype(np.int64), counts.counts[low:high].astype(np.int64)
            self.layers.append(_layer(symbols, seen, children, size))
            children = counts.children[low:high].astype(np.int64)
        self.order = len(self.layers)

    def weights(self, discounts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each order, (p, g): p (n,) of each n-gram, discounted, and g (contexts,), what lower orders are left."""
        found = []
        for layer, (one, two, more) in zip(self.layers, discounts, strict=False):
            taken = np.array([0.0, one, two, more])[np.minimum(layer.counts, 3)]
            parents = np.repeat(np.arange(len(layer.totals)), np.diff(layer.first))
            known = layer.totals > 0
            totals = np.where(known, layer.totals, 1)
            left = one * layer.of_count[0] + two * layer.of_count[1] + more * layer.of_count[2]
            found.append(((layer.counts - taken) / totals[parents], np.where(known, left / totals, 1.0)))
        return found

    def probabilities(self, stream: Stream, weights: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """p(symbol | all before it) of every position of a stream; 1 at the starts. Shape (total,)."""
        share, left = weights[0]
        node = stream.symbols
        p = share[node] + left[0] / self.base
        for k, (layer, (share, left)) in enumerate(zip(self.layers[1:], weights[1:], strict=True), 1):
            context = np.where(stream.place >= k, np.roll(node, 1), -1)
            node = layer.find(context, stream.symbols, self.size)
            p = np.where(context >= 0, left[context] * p + np.where(node >= 0, share[node], 0.0), p)
        return np.where(stream.place > 0, p, 1.0)

    def evidence(self, stream: Stream) -> Evidence:
        """The counts behind the probabilities of the scored positions."""
        at, node = stream.scored, stream.symbols
        rows = []
        for k, layer in enumerate(self.layers):
            context = np.where(stream.place >= k, np.roll(node, 1), -1) if k else np.zeros(len(stream), dtype=np.int64)
            node = layer.find(context, stream.symbols, self.size)
            c, n = context[at], node[at]
            some = np.where(c >= 0, np.stack([layer.totals[c], *layer.of_count[:, c]]), 0)
            rows.append(np.stack([np.where(n >= 0, layer.counts[n], 0), *some]))
        table = torch.from_numpy(np.stack(rows)).movedim(-1, 0).double()
        return Evidence(table[..., 0], table[..., 1], table[..., 2:])


def _layer(symbols: np.ndarray, counts: np.ndarray, children: np.ndarray, size: int) -> Layer:
    first = np.r_[0, np.cumsum(children)]
    parents = np.repeat(np.arange(len(children)), children)
    sums = [np.bincount(parents, (counts == c) if c < 3 else (counts >= 3), len(children)) for c in (1, 2, 3)]
    totals = np.bincount(parents, counts, len(children))
    return Layer(parents * size + symbols, symbols, counts, first, totals, np.stack(sums))


def interpolated(evidence: Evidence, discounts: Tensor, base: int) -> Tensor:
    """p of each position, shape (positions,), differentiable in discounts (K, 3): Chen and Goodman (1999), eq. 24-25.

    p_k(w | h) = (c(hw) - D_k(c(hw))) / c(h) + (D_1 N_1(h) + D_2 N_2(h) + D_3+ N_3+(h)) / c(h) p_{k-1}(w | h').
    """
    p = torch.full_like(evidence.counts[:, 0], 1 / base)
    for k, row in enumerate(discounts):
        count, total = evidence.counts[:, k], evidence.totals[:, k]
        taken = torch.cat([row.new_zeros(1), row])[count.long().clamp(max=3)]
        below = total.clamp(min=1)
        left = torch.where(total > 0, evidence.of_count[:, k] @ row / below, 1.0)
        p = (count - taken) / below + left * p
    return p


def discounts_of(slopes: Tensor) -> Tensor:
    """Free numbers (K, 3) as discounts below 1, 2 and 3: softsign, whose bits are the same on every machine."""
    return (0.5 + 0.5 * slopes / (1 + slopes.abs())) * torch.arange(1, 4, dtype=slopes.dtype)


def formula_discounts(tree: Tree) -> np.ndarray:
    """Chen and Goodman's (1999, eq. 26) D_1, D_2, D_3+ of each order from the counts of counts, shape (K, 3).

    Where these are too few, D_c falls back to c / 2; each stays within [0.01 c, 0.99 c].
    """
    rows = []
    for layer in tree.layers:
        n = np.bincount(np.minimum(layer.counts, 5), minlength=6).astype(float)
        shares = np.full(3, 0.5)
        if n[1] and n[2]:
            y = n[1] / (n[1] + 2 * n[2])
            after = [n[c + 1] / n[c] if n[c] else np.nan for c in (1, 2, 3)]
            shares = np.array([1 - (c + 1) / c * y * r for c, r in zip((1, 2, 3), after, strict=True)])
        rows.append(np.where(np.isfinite(shares), shares, 0.5).clip(0.01, 0.99) * [1, 2, 3])
    return np.stack(rows)


class Stepper:
    """The pmf of the next symbol of several sequences that grow side by side.

    NumPy's sums, products and quotients of float64, and no other operation: the same bits wherever they are IEEE's.

    Arguments:
        tree: Of the counts.
        weights: ``tree.weights(discounts)``.
        batch: Sequences.
    """

    def __init__(self, tree: Tree, weights: list[tuple[np.ndarray, np.ndarray]], batch: int) -> None:
        self.tree, self.weights, self.batch = tree, weights, batch
        self.reset()

    def reset(self) -> None:
        """Back to before the first symbol of each."""
        self._nodes = np.full((self.tree.order, self.batch), -1)
        self._nodes[0] = self.tree.size - 1

    @cached_property
    def _lowest(self) -> np.ndarray:
        """The pmf without context, shape (size,)."""
        share, left = self.weights[0]
        pmf = share + left[0] / self.tree.base
        pmf[self.tree.base :] = 0.0
        return pmf

    def pmf(self) -> np.ndarray:
        """p(next symbol | all before it), shape (batch, size), float64; the last is the end, 0 where there is none."""
        pmf = np.tile(self._lowest, (self.batch, 1))
        for layer, (share, left), nodes in zip(self.tree.layers[1:], self.weights[1:], self._nodes, strict=False):
            rows = np.flatnonzero(nodes >= 0)
            if not len(rows):
                continue
            context = nodes[rows]
            pmf[rows] *= left[context, None]
            first = layer.first[context]
            many = layer.first[context + 1] - first
            child = np.repeat(first - np.cumsum(many) + many, many) + np.arange(int(many.sum()))
            pmf[np.repeat(rows, many), layer.symbols[child]] += share[child]
        return pmf

    def log_pmf(self) -> Tensor:
        """log p(next symbol | all before it) in nats, shape (batch, size), float64."""
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(self.pmf()))

    def push(self, ids: Tensor | np.ndarray) -> None:
        """Appends a symbol to each sequence, shape (batch,)."""
        symbols = np.asarray(ids, dtype=np.int64)
        nodes = [symbols]
        for layer, context in zip(self.tree.layers[1:], self._nodes[:-1], strict=False):
            nodes.append(layer.find(context, symbols, self.tree.size))
        self._nodes = np.stack(nodes)

    def keep(self, rows: Tensor | np.ndarray) -> None:
        """Some sequences, by number, perhaps several times, in place of all."""
        self._nodes = self._nodes[:, np.asarray(rows)]
        self.batch = self._nodes.shape[1]
