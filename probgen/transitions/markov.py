"""One table of moves, with structural zeros, priors, and a free, fixed or stationary start."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import FitError, ParameterError
from probgen.transitions.transitions import Transitions, log_rows, normalised, row_counts

__all__ = ["Markov", "banded", "cyclic", "left_right"]

Mask = tuple[tuple[bool, ...], ...]


def left_right(states: int, jump: int = 1) -> Mask:
    """Moves to the same state or up to ``jump`` states onward; the last state is never left."""
    return _mask(states, lambda i, j: 0 <= j - i <= jump)


def cyclic(states: int, jump: int = 1) -> Mask:
    """Moves to the same state or up to ``jump`` states onward, the first following the last."""
    return _mask(states, lambda i, j: (j - i) % states <= jump)


def banded(states: int, width: int = 1) -> Mask:
    """Moves to states at most ``width`` away."""
    return _mask(states, lambda i, j: abs(i - j) <= width)


def _mask(states: int, rule: object) -> Mask:
    return tuple(tuple(bool(rule(i, j)) for j in range(states)) for i in range(states))  # type: ignore[operator]


class Markov(Transitions):
    """Homogeneous moves.

    Arguments:
        initial: "free" (its own parameters), "stationary" (the chain's own long-run distribution; no parameters), or K
            fixed probabilities.
        allowed: K x K truth values, False for a structural zero (``left_right``, ``cyclic``, ``banded`` make them);
            None allows all. Structural zeros are no parameters.
        concentration: Of the symmetric Dirichlet prior of each row and of a free start, at least 1; 1 is maximum
            likelihood. EM then maximises the posterior density (Gauvain and Lee 1994).
        sticky: Pseudo-observations of staying, added for each state (Fox et al. 2011).
    """

    mask: Tensor

    def __init__(
        self,
        initial: str | Sequence[float] = "free",
        allowed: Sequence[Sequence[bool]] | None = None,
        concentration: float = 1.0,
        sticky: float = 0.0,
        states: int = 1,
    ) -> None:
        super().__init__()
        if not concentration >= 1 or not sticky >= 0 or concentration == float("inf") or sticky == float("inf"):
            raise ParameterError(
                f"concentration={concentration}, sticky={sticky}",
                "a Dirichlet concentration of at least 1 and sticky >= 0",
                "Below 1 the posterior has no maximum inside the simplex",
            )
        self.states, self.concentration, self.sticky = states, concentration, sticky
        self.initial: str | tuple[float, ...] = _checked_start(initial)
        self.allowed = None if allowed is None else tuple(tuple(map(bool, row)) for row in allowed)
        self.register_buffer("mask", self._checked_mask(), persistent=False)
        self.initial_logits = nn.Parameter(self._first_logits(), requires_grad=self.initial == "free")
        self.logits = nn.Parameter(torch.zeros(states, states, dtype=torch.float64))

    def with_states(self, states: int) -> Self:
        """As of Transitions.

        Raises:
            ParameterError: ``initial`` or ``allowed`` of another number of states.
        """
        made = super().with_states(states)
        if states == 1:  # the constructor takes 1 for "not yet known"
            if not isinstance(self.initial, str):
                normalised(self.initial, 1, "initial")
            if self.allowed not in (None, ((True,),)):
                raise ParameterError(f"allowed={self.allowed} for 1 state", "((True,),), or None")
        return made

    def _checked_mask(self) -> Tensor:
        k = self.states
        if self.allowed is None or k == 1:
            return torch.ones(k, k, dtype=torch.bool)
        if len(self.allowed) != k or any(len(row) != k for row in self.allowed):
            shape = (len(self.allowed), len(self.allowed[0]) if self.allowed else 0)
            raise ParameterError(f"allowed of shape {shape} for {k} states", f"({k}, {k}) truth values")
        mask = torch.tensor(self.allowed)
        if not mask.any(1).all():
            row = int((~mask.any(1)).nonzero()[0])
            raise ParameterError(f"allowed lets no move out of state {row}", "at least one move a state, itself say")
        return mask

    def _first_logits(self) -> Tensor:
        if isinstance(self.initial, str) or self.states == 1:
            return torch.zeros(self.states, dtype=torch.float64)
        self.initial = normalised(self.initial, self.states, "initial")
        return torch.tensor(self.initial, dtype=torch.float64).log()

    def log_initial(self) -> Tensor:
        if self.initial == "stationary":
            return log_stationary(self.log_matrix())
        return self.initial_logits.log_softmax(0)

    def log_matrix(self, given: Tensor | None = None) -> Tensor:
        return log_rows(self.logits, self.mask)

    def _prior(self) -> Tensor:
        """Pseudo-observations of each move."""
        sticky = self.sticky * torch.eye(self.states, dtype=torch.float64)
        return torch.where(self.mask, self.concentration - 1 + sticky, 0.0)

    def penalty(self) -> Tensor:
        prior = self._prior()
        total = torch.where(prior > 0, prior * self.log_matrix(), 0.0).sum()
        if self.initial == "free" and self.concentration > 1:
            total = total + (self.concentration - 1) * self.log_initial().sum()
        return total

    @torch.no_grad()
    def maximise(self, initial: Tensor, counts: Tensor, given: Tensor | None = None) -> list[int]:
        logits, empty = row_counts(counts, self._prior(), self.log_matrix())
        if self.initial == "stationary":
            self._climb(initial, counts + self._prior(), logits)
        else:
            self.logits.copy_(logits)
        if self.initial == "free":
            total = initial + self.concentration - 1
            self.initial_logits.copy_(total.log() - total.sum().log())
        return empty.nonzero()[:, 0].tolist()

    def _climb(self, initial: Tensor, counts: Tensor, ahead: Tensor) -> None:
        """A stationary start ties the start to the moves: no closed form, so a search from the better of two."""
        present = self.log_matrix()

        def gain(logits: Tensor) -> Tensor:
            rows = log_rows(logits, self.mask)
            start = log_stationary(rows)
            moves = torch.where(counts > 0, counts * rows, 0.0).sum()
            return moves + torch.where(initial > 0, initial * start, 0.0).sum()

        def worth(logits: Tensor) -> float:
            try:
                return float(torch.nan_to_num(gain(logits), nan=-torch.inf))
            except FitError:  # counts that cut the chain in two
                return -math.inf

        best = max((present, ahead), key=worth)
        free = self.mask & best.isfinite()
        raw = best[free].clone().requires_grad_()
        blank = torch.full_like(best, -torch.inf)
        search = torch.optim.LBFGS([raw], max_iter=50, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            with torch.enable_grad():
                value = -gain(blank.masked_scatter(free, raw))
                value.backward()
            return value.detach()

        with suppress(FitError):  # a trial step may do so too; the better of two stands
            search.step(loss)
        found = log_rows(blank.masked_scatter(free, raw.detach()), self.mask)
        self.logits.copy_(found if worth(found) >= worth(best) else best)

    def start(self, generator: torch.Generator) -> None:
        """Rows from a flat Dirichlet with half of each row's mass on staying."""
        draws = torch.empty(self.states, self.states, dtype=torch.float64).exponential_(generator=generator)
        draws = torch.where(self.mask, draws, 0.0)
        rows = draws / draws.sum(1, keepdim=True)
        stay = torch.diag_embed(self.mask.diagonal().to(torch.float64))
        rows = torch.where(stay.sum(1, keepdim=True) > 0, (rows + stay) / 2, rows)
        with torch.no_grad():
            self.logits.copy_(rows.log())
            if self.initial == "free":
                self.initial_logits.zero_()

    def priors(self) -> dict[str, dist.TorchDistribution]:
        return {
            name: dist.Normal(torch.zeros_like(p), 2.0).to_event(p.ndim)
            for name, p in self.named_parameters()
            if p.requires_grad and self.states > 1
        }

    @property
    def n_params(self) -> int:
        moves = int(self.mask.sum()) - self.states
        return moves + (self.states - 1 if self.initial == "free" else 0)


def _checked_start(initial: str | Sequence[float]) -> str | tuple[float, ...]:
    if isinstance(initial, str) and initial in ("free", "stationary"):
        return initial
    numbers = None if isinstance(initial, str) else np.asarray(initial)
    if numbers is None or numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise ParameterError(f"initial={initial!r}", "free, stationary or one probability a state")
    return tuple(numbers.tolist())


def log_stationary(log_matrix: Tensor) -> Tensor:
    """The logarithm of a chain's long-run distribution, shape (S,), differentiable.

    States that the chain leaves for good have exactly -inf.

    Raises:
        FitError: it is not unique: the chain falls into parts that don't meet.
    """
    matrix = log_matrix.exp()
    kept = _closed_class(matrix.detach() > 0)
    part = matrix[kept][:, kept]
    size = len(part)
    system = (torch.eye(size, dtype=part.dtype) - part + torch.ones_like(part)).T
    found, failed = torch.linalg.solve_ex(system, torch.ones(size, dtype=part.dtype))
    if bool(failed) or not bool((found > 0).all()):
        raise _not_unique()
    return torch.full_like(log_matrix[0], -torch.inf).masked_scatter(kept, found.log())


def _closed_class(moves: Tensor) -> Tensor:
    """Which states the chain ends up in, shape (S,): those that are reached again from all that they reach."""
    reached = moves.to(torch.float32)
    reached.fill_diagonal_(1.0)
    while not bool((wider := ((reached @ reached) > 0).to(torch.float32)).equal(reached)):
        reached = wider
    kept = (reached <= reached.T).all(1)
    if not bool(reached[kept][:, kept].all()):
        raise _not_unique()
    return kept


def _not_unique() -> FitError:
    return FitError(
        "The chain has no unique stationary distribution: some states are never reached from others",
        "moves that connect all states",
        "Use initial='free', or allow more moves",
    )
