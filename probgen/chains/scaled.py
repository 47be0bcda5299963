"""The recursions in scaled probabilities: fast, without gradients.

Each row of potentials is shifted by its maximum before exp, so that an outlier can't underflow. A state whose share of
the mass underflows is lost: harmless where all moves mix, elsewhere for the caller to bound. Sequences are flagged
where their first step or their messages lose what matters. One long sequence is cut into windows that run side by
side, each begun early from an even guess; the guess counts as forgotten where neighbours agree in every state to 1e-13
of its share, else it is run whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.chains.chain import Batch, Chain, batch_of

__all__ = ["Scaled", "backward", "forward", "shifted"]

_LONG = 2048  # steps beyond which one sequence is cut into windows
_WARM_UP = 64  # steps that a window begins early
_APART = 1e-13
_ENTRIES = 1 << 23  # of a table that one batch may fill


@dataclass(frozen=True, eq=False)
class Scaled:
    """One direction of the recursion.

    Arguments:
        states: Filtered probabilities, or backward messages up to a factor a step, shape (total, S).
        sums: Forward only: what scales each step, shape (total,); 0 at the first impossible step.
        flagged: Sequences to be done in logarithms, shape (n,), bool.
    """

    states: Tensor
    sums: Tensor
    flagged: Tensor


def shifted(potentials: Tensor) -> tuple[Tensor, Tensor]:
    """exp of each row less its maximum, and the maximum (-inf rows: zeros and -inf)."""
    top = potentials.amax(1)
    return (potentials - torch.where(top > -torch.inf, top, 0.0)[:, None]).exp_(), top


def batches(lengths: Tensor, starts: Tensor, size: int) -> list[tuple[Tensor, Batch]]:
    """Sequences of like lengths together, so that padding stays small: which, longest first, and the batch."""
    order = torch.argsort(lengths, descending=True, stable=True)
    sizes = lengths[order].tolist()
    found, first = [], 0
    while first < len(sizes):
        rows = order[first : first + max(1, _ENTRIES // (sizes[first] * size))]
        found.append((rows, batch_of(lengths[rows], starts[rows])))
        first += len(rows)
    return found


class _Run:
    """A chain's tables, read by both directions."""

    def __init__(self, chain: Chain, weights: Tensor, windows: bool = True, reached: Tensor | None = None) -> None:
        self.chain, self.weights = chain, weights
        self.moves = chain.transition.exp()
        smallest = torch.finfo(weights.dtype).tiny
        self.mixing = smallest**0.325  # moves all more probable than this make any lost share harmless
        self.careful = not (windows and bool(self.moves.amin() > self.mixing))
        self.reached = reached if self.careful else None
        self.states = torch.zeros_like(weights)
        self.sums = weights.new_zeros(len(weights))
        self.flagged = torch.zeros(len(chain.lengths), dtype=torch.bool, device=weights.device)

    def ahead(self, state: Tensor, rows: Tensor) -> Tensor:
        """Predicted probabilities at rows."""
        if self.chain.homogeneous:
            return state @ self.moves
        return torch.einsum("ni,nij->nj", state, self.moves[rows])

    def back(self, coming: Tensor, rows: Tensor) -> Tensor:
        """Messages one step before rows."""
        if self.chain.homogeneous:
            return coming @ self.moves.T
        return torch.einsum("nj,nij->ni", coming, self.moves[rows])

    def each(self, step: object) -> None:
        """Long sequences in windows where that is exact, the others in batches."""
        whole = torch.ones(len(self.chain.lengths), dtype=torch.bool, device=self.weights.device)
        forward = step is _Run.forth
        if self.chain.homogeneous and not self.careful:
            for row in (self.chain.lengths > _LONG).nonzero()[:, 0].tolist():
                whole[row] = not self.in_windows(row, forward)
        rest = whole.nonzero()[:, 0]
        if len(rest):
            for rows, batch in batches(self.chain.lengths[rest], self.chain.starts[rest], self.chain.size):
                step(self, rest[rows], batch)  # type: ignore[operator]

    def forth(self, mine: Tensor, batch: Batch) -> None:
        state = self.chain.first()[mine].exp()
        for t, n in enumerate(batch.active):
            rows = batch.steps[t, :n]
            if t:
                state = self.ahead(state[:n], rows)
            weighted = state * self.weights[rows]
            total = weighted.sum(1)
            if t == 0:  # no move has spread the shares of a first step
                self.flagged[mine] |= total < self.mixing
            state = weighted / torch.where(total > 0, total, 1.0)[:, None]
            self.states[rows], self.sums[rows] = state, total

    def aft(self, mine: Tensor, batch: Batch) -> None:
        message = self.weights.new_ones(0, self.chain.size)
        for t in range(len(batch.active) - 1, -1, -1):
            n = batch.active[t]
            rows = batch.steps[t, :n]
            ending = message.new_ones(n - len(message), self.chain.size)
            message = torch.cat([message, ending])  # shorter sequences stand behind and end here
            self.states[rows] = message
            if t:
                coming = message * self.weights[rows]
                message = self.back(coming, rows)
                if self.reached is not None:  # else what can't have been would dwarf what was
                    message = torch.where(self.reached[rows - 1] > 0, message, 0.0)
                total = message.sum(1, keepdim=True)
                message = message / torch.where(total > 0, total, 1.0)

    def in_windows(self, row: int, forward: bool) -> bool:
        start, length = int(self.chain.starts[row]), int(self.chain.lengths[row])
        warm = _WARM_UP
        while warm * 16 <= length:
            own = max(2 * warm, int(length**0.5))
            if (self._windows_forth if forward else self._windows_aft)(row, start, length, own, warm):
                return True
            warm *= 4
        return False

    def _windows_forth(self, row: int, start: int, length: int, own: int, warm: int) -> bool:
        begins = torch.arange(0, length, own, device=self.weights.device)
        steps = begins + torch.arange(-warm, own, device=self.weights.device)[:, None]
        weights = self.weights[start + steps.clamp(0, length - 1)]  # (warm + own, windows, S)
        state = torch.full_like(weights[0], 1 / self.chain.size)
        sums = weights.new_empty(weights.shape[:2])
        for t in range(len(weights)):
            state = state @ self.moves
            if t == warm:
                state[0] = self.chain.first()[row].exp()
                entering = state
            state = state * weights[t]
            total = state.sum(1)
            if t == warm and not bool(total[0] >= self.mixing):
                return False
            state = state / torch.where(total > 0, total, 1.0)[:, None]
            weights[t], sums[t] = state, total
        true = weights[-1, :-1] @ self.moves
        if bool(((entering[1:] - true).abs() > _APART * true).any()):
            return False
        self.states[start : start + length] = weights[warm:].transpose(0, 1).reshape(-1, self.chain.size)[:length]
        self.sums[start : start + length] = sums[warm:].T.reshape(-1)[:length]
        return True

    def _windows_aft(self, row: int, start: int, length: int, own: int, warm: int) -> bool:
        begins = torch.arange(0, length, own, device=self.weights.device)
        steps = begins + torch.arange(own + warm, device=self.weights.device)[:, None]
        weights = self.weights[start + steps.clamp(max=length - 1)]  # (own + warm, windows, S)
        message = torch.ones_like(weights[0])
        beyond = steps >= length - 1
        for t in range(len(weights) - 1, -1, -1):
            message = torch.where(beyond[t][:, None], 1.0, message)  # at the end nothing more is to come
            coming = message * weights[t]
            weights[t] = message
            message = coming @ self.moves.T
            total = message.sum(1, keepdim=True)
            message = message / torch.where(total > 0, total, 1.0)
        ours, theirs = (part / part.sum(1, keepdim=True) for part in (weights[own, :-1], weights[0, 1:]))
        if bool(((ours - theirs).abs() > _APART * theirs).any()):
            return False
        self.states[start : start + length] = weights[:own].transpose(0, 1).reshape(-1, self.chain.size)[:length]
        return True


def forward(chain: Chain, weights: Tensor, windows: bool = True) -> Scaled:
    run = _Run(chain, weights, windows)
    run.each(_Run.forth)
    return Scaled(run.states, run.sums, run.flagged)


def backward(chain: Chain, weights: Tensor, reached: Tensor) -> Scaled:
    """Messages; where moves may be impossible only of states whose filtered probability (total, S) is not 0."""
    run = _Run(chain, weights, reached=reached)
    run.each(_Run.aft)
    if run.careful:
        lost = (reached * run.states).sum(1) < torch.finfo(weights.dtype).tiny ** 0.65
        run.flagged[chain.rows[lost & reached.any(1)]] = True
    return Scaled(run.states, run.sums, run.flagged)
