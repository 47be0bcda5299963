"""Several chains side by side, as one chain over their joint state."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.transitions.transitions import Transitions, row_counts, whole

__all__ = ["Factorial"]

_MOST = 512


class Factorial(Transitions):
    """Chains that move independently: p(z_t | z_{t-1}) is the product over chains (Ghahramani and Jordan 1997).

    Arguments:
        chains: States of each chain; the joint state numbers them with the last chain fastest.

    The data tie them: an emission of prod(chains) states. Sums are exact over the joint state, so for small chains
    only.

    Raises:
        ParameterError: more than 512 joint states.
    """

    def __init__(self, chains: Sequence[int] = (2, 2), states: int | None = None) -> None:
        super().__init__()
        self.chains = tuple(chains)
        sizes = self.chains if all(map(whole, self.chains)) else (0,)
        joint = math.prod(sizes)
        if not sizes or min(sizes) < 1 or joint > _MOST:
            raise ParameterError(f"chains={chains!r}", f"numbers of states whose product is at most {_MOST}")
        if states not in (None, 1, joint):
            raise ParameterError(f"states={states} for chains={self.chains}", f"{joint} joint states")
        self.states = joint
        self.initial_logits = nn.ParameterList(torch.zeros(k, dtype=torch.float64) for k in self.chains)
        self.logits = nn.ParameterList(torch.zeros(k, k, dtype=torch.float64) for k in self.chains)

    def log_initial(self) -> Tensor:
        total = torch.zeros(1, dtype=torch.float64)
        for logits in self.initial_logits:
            total = (total[:, None] + logits.log_softmax(0)).reshape(-1)
        return total

    def log_matrix(self, given: Tensor | None = None) -> Tensor:
        total = torch.zeros(1, 1, dtype=torch.float64)
        for logits in self.logits:
            rows = logits.log_softmax(1)
            size = len(total) * len(rows)
            total = (total[:, None, :, None] + rows[None, :, None, :]).reshape(size, size)
        return total

    @torch.no_grad()
    def maximise(self, initial: Tensor, counts: Tensor, given: Tensor | None = None) -> list[int]:
        starts, moves = initial.reshape(self.chains), counts.reshape(*self.chains, *self.chains)
        m = len(self.chains)
        for c in range(m):
            others = [d for d in range(m) if d != c]
            own = starts.sum(others) if others else starts
            self.initial_logits[c].copy_(own.log() - own.sum().log())
            gone = [d for d in range(2 * m) if d % m != c]
            pairs = moves.sum(gone) if gone else moves
            logits, _ = row_counts(pairs, torch.zeros_like(pairs), self.logits[c].log_softmax(1))
            self.logits[c].copy_(logits)
        return (counts.sum(1) <= 1e-8).nonzero()[:, 0].tolist()

    def start(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for initial, logits in zip(self.initial_logits, self.logits, strict=True):
                draws = torch.empty_like(logits).exponential_(generator=generator)
                rows = draws / draws.sum(1, keepdim=True) + torch.eye(len(logits), dtype=torch.float64)
                logits.copy_(rows.log())
                initial.zero_()

    def labels(self) -> list[str]:
        places = torch.cartesian_prod(*(torch.arange(k) for k in self.chains)).reshape(self.states, -1)
        return [",".join(map(str, row)) for row in places.tolist()]

    @property
    def n_params(self) -> int:
        return sum(k * k - 1 for k in self.chains)
