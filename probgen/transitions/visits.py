"""The most probable visits of a semi-Markov chain, when a path of states is many paths of the chain that it runs on."""

from collections.abc import Iterator

import numpy as np

__all__ = ["best_visits"]

_ENTRIES = 1 << 21  # numbers held for the way back, sequences side by side
_MANY = 48  # entries kept before those that can't win are looked for

Array = np.ndarray


def best_visits(
    first: Array, moves: Array, law: Array, beyond: Array, table: Array, lengths: Array
) -> tuple[Array, Array]:
    """Viterbi's recursion over visits (Rabiner 1989, section IV.D), the last of them unfinished.

    Arguments:
        first: log p(first state), shape (K,).
        moves: log p(next state | state left), shape (K, K), -inf on the diagonal.
        law: log p(d = a) of a visit of a = 1, 2, ... steps, shape (K, longest sequence), log-concave in a.
        beyond: log p(d >= a), of that shape.
        table: log p(x_t | state), shape (total, K), sequences one after the other.
        lengths: Of the sequences, shape (n,).

    Returns:
        States, shape (total,), int64, and the log-probability of each path with its data in nats, shape (n,).
    """
    path, nats = np.zeros(len(table), dtype=np.int64), np.empty(len(lengths))
    starts = np.cumsum(lengths) - lengths
    for rows in _side_by_side(lengths, table.shape[1]):
        size = lengths[rows]
        steps = np.minimum(np.arange(size[0]), size[:, None] - 1) + starts[rows][:, None]
        way = _Way(first, moves, law, beyond, table[steps], size)
        way.forward()
        nats[rows] = way.nats
        for i, (begin, own) in enumerate(zip(starts[rows], size, strict=True)):
            path[begin : begin + own] = way.back(i)
    return path, nats


def _side_by_side(lengths: Array, states: int) -> Iterator[Array]:
    """Sequences, the longest first, as many together as fit."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        many = max(1, int(_ENTRIES // (lengths[order[0]] * states)))
        yield order[:many]
        order = order[many:]


class _Way:
    """Sequences side by side, the longest first.

    Arguments:
        table: log p(x_t | state), shape (n, T, K).
        lengths: Shape (n,).

    Attributes:
        entered: Steps at which the visits still in the race began, oldest first, shape (C,).
        values: Best log-probability of all up to now, without the length of the visit under way, shape (n, K, C).
        began: When the best visit that is left after a step began, shape (T, n, K).
        before: The state before the best visit that begins at a step, shape (T, n, K).
        ends: Where each sequence's last visit began, and its state, shape (n, 2).
        nats: Of each sequence's best path, shape (n,).
    """

    def __init__(self, first: Array, moves: Array, law: Array, beyond: Array, table: Array, lengths: Array) -> None:
        self.first, self.moves, self.law, self.beyond, self.table, self.lengths = (
            first,
            moves,
            law,
            beyond,
            table,
            lengths,
        )
        n, most, states = table.shape
        self.began = np.zeros((most, n, states), dtype=np.int32)
        self.before = np.zeros((most, n, states), dtype=np.int16)
        self.ends, self.nats = np.zeros((n, 2), dtype=np.int64), np.empty(n)
        self.entered = np.zeros(0, dtype=np.int64)
        self.values = np.empty((n, states, 0))

    def forward(self) -> None:
        n, most, states = self.table.shape
        coming = np.broadcast_to(self.first, (n, states))
        room = np.empty((n, states, 2 * _MANY))
        entered = np.empty(2 * _MANY, dtype=np.int64)
        count = 0
        for t in range(most):
            if count == len(entered):
                room, entered = np.concatenate([room, np.empty_like(room)], 2), np.concatenate([entered, entered])
            room[:, :, count], entered[count] = coming, t
            count += 1
            self.values, self.entered = room[:, :, :count], entered[:count]
            self.values += self.table[:, t, :, None]
            ages = t - self.entered
            self._end(t, ages)
            left = self.values + self.law[:, ages]
            best = left.argmax(2)
            self.began[t] = self.entered[best]
            gone = np.take_along_axis(left, best[:, :, None], 2) + self.moves
            if t + 1 < most:
                self.before[t + 1] = gone.argmax(1)
            coming = gone.max(1)
            if count >= _MANY and t % 16 == 0:
                kept = ~self._beaten(left)
                count = int(kept.sum())
                room[:, :, :count], entered[:count] = self.values[:, :, kept], self.entered[kept]

    def _end(self, t: int, ages: Array) -> None:
        over = np.flatnonzero(self.lengths == t + 1)
        if not len(over):
            return
        last = (self.values[over] + self.beyond[:, ages]).reshape(len(over), -1)
        place = last.argmax(1)
        self.nats[over] = last.max(1)
        self.ends[over, 0] = self.entered[place % len(ages)]
        self.ends[over, 1] = place // len(ages)

    def _beaten(self, left: Array) -> Array:
        """Which entries no future can make the best, in any state of any sequence, shape (C,).

        With a log-concave law an older visit loses ground to a younger one at every step: once it is no better if both
        are left now, it never will be, left later or lasting. A younger one that can't be left yet beats nobody.
        """
        younger = _best_after(left)
        beaten = (left <= younger) & (younger > -np.inf)
        return np.logical_and.reduce(beaten | np.isneginf(self.values), axis=(0, 1))

    def back(self, i: int) -> Array:
        """The path of one sequence."""
        end = int(self.lengths[i])
        path = np.empty(end, dtype=np.int64)
        begin, state = (int(part) for part in self.ends[i])
        while True:
            path[begin:end] = state
            if not begin:
                return path
            state, end = int(self.before[begin, i, state]), begin
            begin = int(self.began[end - 1, i, state])


def _best_after(values: Array) -> Array:
    """The largest of the later ones along the last axis, -inf after the last."""
    best = np.maximum.accumulate(values[..., ::-1], -1)[..., ::-1]
    return np.concatenate([best[..., 1:], np.full_like(best[..., :1], -np.inf)], -1)
