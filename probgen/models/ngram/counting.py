"""Counts of all n-grams up to an order, in one pass an order over the positions of a stream."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Counts", "Stream", "count", "streamed"]


@dataclass(frozen=True, eq=False)
class Stream:
    """Sequences one after the other, each after a start symbol and, where ends are modelled, before an end symbol.

    Arguments:
        symbols: Start and end are ``size - 1``; shape (total,), int64.
        place: Of each in its sequence, 0 for the start; shape (total,), int64.
        size: Symbols with the start.
    """

    symbols: np.ndarray
    place: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def scored(self) -> np.ndarray:
        """Positions that a model predicts: all but the starts."""
        return np.flatnonzero(self.place)


def streamed(codes: np.ndarray, lengths: np.ndarray, size: int, ends: bool) -> Stream:
    """Codes 0..size-2 of sequences of these lengths as a stream."""
    sizes = lengths + 1 + ends
    place = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    symbols = np.full(len(place), size - 1, dtype=np.int64)
    symbols[(place > 0) & (place <= np.repeat(lengths, sizes))] = codes
    return Stream(symbols, place, size)


@dataclass(frozen=True, eq=False)
class Counts:
    """n-grams of orders 1 to K as the nodes of a tree: the children of a context are the n-grams that go on from it.

    Nodes of an order are sorted by context and then by symbol; order 1 has every symbol. All arrays are int32.

    Arguments:
        symbols: The last symbol of each node; order after order.
        children: How many n-grams of the next order go on from each.
        counts: How often it was seen (at the highest order, and where it begins with the start symbol), else the number
            of distinct symbols seen before it (Kneser and Ney 1995).
        sizes: Nodes of each order, shape (K,), int64.
    """

    symbols: np.ndarray
    children: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray


def count(stream: Stream, order: int) -> Counts:
    """Counts of a stream's n-grams.

    Positions stay sorted by their last k symbols, the last one first, which a stable sort by one symbol turns into the
    order by the last k + 1; so an order costs one radix pass.
    """
    s, place, size = stream.symbols, stream.place, stream.size
    narrow = s.astype(np.uint16 if size <= 1 << 16 else np.uint32)
    sorted_by = np.argsort(narrow, kind="stable")  # positions by their last symbol
    node = s.astype(np.int32)  # of the n-gram that ends at each position
    layers = [np.arange(size)]
    children: list[np.ndarray] = []
    counts = [np.bincount(s[place > 0], minlength=size)]
    from_start = np.zeros(size, dtype=bool)
    for k in range(2, order + 1):
        sorted_by = _longer(sorted_by, narrow, place, k)
        before = node[sorted_by - 1]
        new = np.ones(len(sorted_by), dtype=bool)
        new[1:] = (before[1:] != before[:-1]) | (narrow[sorted_by[1:]] != narrow[sorted_by[:-1]])
        firsts = np.flatnonzero(new)
        seen, shown, context = np.diff(np.r_[firsts, len(sorted_by)]), sorted_by[firsts], before[firsts]
        continued = np.bincount(node[shown], minlength=len(layers[-1]))
        counts[-1] = np.where(from_start, counts[-1], continued)
        children.append(np.bincount(context, minlength=len(layers[-1])))
        by_context = np.argsort(context.astype(np.int64) * size + s[shown])
        rank = np.empty(len(firsts), dtype=np.int32)
        rank[by_context] = np.arange(len(firsts), dtype=np.int32)
        node[sorted_by] = np.repeat(rank, seen)
        layers.append(s[shown][by_context])
        counts.append(seen[by_context])
        from_start = (place[shown] == k - 1)[by_context]
    children.append(np.zeros(len(layers[-1]), dtype=np.int64))
    sizes = np.array([len(layer) for layer in layers])
    joined = [np.concatenate(parts).astype(np.int32) for parts in (layers, children, counts)]
    return Counts(joined[0], joined[1], joined[2], sizes)


def _longer(sorted_by: np.ndarray, symbols: np.ndarray, place: np.ndarray, k: int) -> np.ndarray:
    """Positions that end a k-gram by its symbols, from those that end a (k-1)-gram by theirs."""
    following = sorted_by + 1
    following = following[following < len(symbols)]
    following = following[place[following] >= k - 1]
    return following[np.argsort(symbols[following], kind="stable")]
