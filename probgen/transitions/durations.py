"""Explicit durations: hidden semi-Markov models as Markov chains on more states."""

from typing import Literal

import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.transitions.transitions import Transitions, log_rows, row_counts, whole

__all__ = ["Durations"]


class Durations(Transitions):
    """A state lasts a random number of steps d >= 1, then moves to another state (Yu 2010).

    Arguments:
        kind: "negative_binomial": d is the sum of ``phases`` geometric times, so d - phases is negative binomial;
            "categorical": a table over 1..longest.
        phases: Of the negative binomial, a shape that is not fitted; 1 is the geometric time of a Markov chain.
        longest: Of the categorical table.
        smoothing: Pseudo-visits of each state, spread evenly over its table of durations; of the negative binomial,
            pseudo-observations of both staying in a phase and leaving it.

    A state begins at the first step of a sequence; the last one may go on beyond its end. The chain runs on
    S = K * phases or K * longest states, (state, phase) or (state, age), the second fastest; a visit enters at the
    first. At age a it ends with the hazard h_a = p(d = a) / p(d >= a), surely at ``longest``, so a path of states is
    one path of ages; it is many paths of phases (see ``visits``).
    """

    def __init__(
        self,
        kind: Literal["negative_binomial", "categorical"] = "negative_binomial",
        phases: int = 2,
        longest: int = 10,
        smoothing: float = 0.0,
        states: int = 1,
    ) -> None:
        super().__init__()
        if kind not in ("negative_binomial", "categorical"):
            raise ParameterError(f"kind={kind!r}", "negative_binomial or categorical")
        if not whole(phases) or not whole(longest) or min(phases, longest) < 1 or not 0 <= smoothing < torch.inf:
            raise ParameterError(
                f"phases={phases}, longest={longest}, smoothing={smoothing}",
                "phases and longest whole numbers >= 1, smoothing >= 0",
            )
        self.kind, self.phases, self.longest, self.smoothing, self.states = kind, phases, longest, smoothing, states
        self.depth = longest if kind == "categorical" else phases
        self.initial_logits = nn.Parameter(torch.zeros(states, dtype=torch.float64))
        self.logits = nn.Parameter(torch.zeros(states, states, dtype=torch.float64))
        # log odds of leaving: at each age before the longest, or of a phase
        self.duration = nn.Parameter(
            self._even() if kind == "categorical" else torch.zeros(states, dtype=torch.float64)
        )

    def _even(self) -> Tensor:
        """Log odds of hazards whose table gives all durations alike, shape (K, longest - 1)."""
        ahead = torch.arange(self.longest - 1, 0, -1, dtype=torch.float64)
        return -ahead.log().expand(self.states, -1).clone()

    @property
    def size(self) -> int:
        return self.states * self.depth

    def emitting(self) -> Tensor:
        return torch.arange(self.states).repeat_interleave(self.depth)

    def log_moves(self) -> Tensor:
        """log p(next state | state left), shape (K, K), -inf on the diagonal."""
        if self.states == 1:
            return torch.zeros(1, 1, dtype=torch.float64)
        return log_rows(self.logits, ~torch.eye(self.states, dtype=torch.bool))

    def log_initial(self) -> Tensor:
        return self._entering(self.initial_logits.log_softmax(0)).reshape(-1)

    def _entering(self, nats: Tensor) -> Tensor:
        """Log-probabilities of states as those of their first phase or age, shape (..., K, depth)."""
        return nn.functional.pad(nats[..., None], (0, self.depth - 1), value=-torch.inf)

    def log_matrix(self, given: Tensor | None = None) -> Tensor:
        k, d = self.states, self.depth
        if k * d == 1:
            return torch.zeros(1, 1, dtype=torch.float64)
        stay, leave = nn.functional.logsigmoid(-self.duration), nn.functional.logsigmoid(self.duration)
        if self.kind == "categorical":
            within = torch.diag_embed(stay, offset=1)
            onward = torch.diag(torch.ones(d - 1), 1).bool()
            within = torch.where(onward, within, -torch.inf)
            out = nn.functional.pad(leave, (0, 1))  # surely at the longest
        else:
            onward = torch.diag(torch.ones(d - 1), 1).bool()
            within = torch.where(torch.eye(d, dtype=torch.bool), stay[:, None, None], -torch.inf)
            within = torch.where(onward, leave[:, None, None], within)
            out = nn.functional.pad(leave[:, None], (d - 1, 0), value=-torch.inf)  # from the last phase alone
        same = torch.eye(k, dtype=torch.bool)[:, None, :, None]
        blocks = torch.where(same, within[:, :, None, :], -torch.inf)  # (K, d, K, d)
        gone = self._entering(out[:, :, None] + self.log_moves()[:, None])
        return torch.maximum(blocks, gone).reshape(k * d, k * d)  # no move is in both

    @torch.no_grad()
    def maximise(self, initial: Tensor, counts: Tensor, given: Tensor | None = None) -> list[int]:
        k, d = self.states, self.depth
        starts, moves = initial.reshape(k, d), counts.reshape(k, d, k, d)
        gone = moves[..., 0]  # (K, d, K): visits left from each age or phase
        empty = torch.zeros(1, dtype=torch.bool)
        if k > 1:
            same = torch.eye(k, dtype=torch.bool)
            gone = torch.where(same[:, None], 0.0, gone)
            logits, empty = row_counts(gone.sum(1), torch.zeros(k, k, dtype=torch.float64), self.log_moves())
            self.logits.copy_(torch.where(same, 0.0, logits))
        if k * d > 1:  # else staying and moving to itself are one
            self._maximise_lengths(moves[torch.arange(k), :, torch.arange(k), :], gone.sum(2))
        own = starts.sum(1)
        self.initial_logits.copy_(own.log() - own.sum().log())
        return empty.nonzero()[:, 0].tolist()

    def _maximise_lengths(self, inside: Tensor, gone: Tensor) -> None:
        """Odds of leaving from expected moves inside visits, (K, d, d), and out of them, (K, d)."""
        onward = inside.diagonal(offset=1, dim1=1, dim2=2)
        if self.kind == "categorical":
            stayed, left = onward, gone[:, :-1]
        else:
            stayed, left = inside.diagonal(dim1=1, dim2=2).sum(1), onward.sum(1) + gone[:, -1]
        more_stayed, more_left = self._prior()
        odds = (left + more_left).log() - (stayed + more_stayed).log()
        if self.kind == "negative_binomial":
            odds = odds.clamp(-700, 700)
        self.duration.copy_(torch.where(stayed + left + more_stayed + more_left > 1e-8, odds, self.duration))

    def _prior(self) -> tuple[Tensor, Tensor]:
        """Pseudo-observations of staying and of leaving, for each entry of ``duration``.

        An evenly spread visit reaches age a + 1 and lasts on in (longest - a) of ``longest`` cases, and ends in one.
        """
        if self.kind == "negative_binomial":
            return (torch.full_like(self.duration, self.smoothing),) * 2
        each = self.smoothing / self.longest
        ahead = torch.arange(self.longest - 1, 0, -1, dtype=torch.float64)
        return each * ahead.expand_as(self.duration), torch.full_like(self.duration, each)

    def penalty(self) -> Tensor:
        if not self.smoothing:
            return torch.zeros((), dtype=torch.float64)
        stayed, left = self._prior()
        logs = left * nn.functional.logsigmoid(self.duration) + stayed * nn.functional.logsigmoid(-self.duration)
        return logs.sum()

    def start(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            draws = torch.empty_like(self.logits).exponential_(generator=generator)
            self.logits.copy_(draws.log())
            self.initial_logits.zero_()
            if self.kind == "negative_binomial":
                self.duration.fill_(-1.0)
            else:
                self.duration.copy_(self._even())

    def log_table(self) -> Tensor:
        """log p(d), d = 1..longest, of the categorical kind, shape (K, longest)."""
        lasted = nn.functional.pad(nn.functional.logsigmoid(-self.duration).cumsum(1), (1, 0))
        return lasted + nn.functional.pad(nn.functional.logsigmoid(self.duration), (0, 1))

    def natural(self) -> dict[str, Tensor]:
        categorical = self.kind == "categorical"
        name, length = ("duration", self.log_table().exp()) if categorical else ("leaving", self.duration.sigmoid())
        return {"initial": self.initial_logits.softmax(0), "transition": self.log_moves().exp(), name: length}

    def mean_duration(self) -> Tensor:
        """Expected steps of a visit to each state, shape (K,)."""
        if self.kind == "categorical":
            return self.log_table().exp() @ torch.arange(1, self.depth + 1, dtype=torch.float64)
        return self.depth / self.duration.sigmoid()

    def visits(self, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Of sums of geometric times; with ages, with one phase or state, a path of states is one path of the chain."""
        if self.kind == "categorical" or self.phases == 1 or self.states == 1:
            return None
        age = torch.arange(1, most + 1, dtype=torch.float64)
        leave, stay = (nn.functional.logsigmoid(side * self.duration)[:, None] for side in (1.0, -1.0))
        law = _log_choose(age - 1, self.phases - 1) + self.phases * leave + (age - self.phases) * stay
        # d >= a where fewer than ``phases`` of the a - 1 steps before left a phase
        done = torch.arange(self.phases, dtype=torch.float64)[:, None, None]
        fewer = _log_choose(age - 1, done) + done * leave + (age - 1 - done) * stay
        return self.initial_logits.log_softmax(0), self.log_moves(), law, fewer.logsumexp(0)

    @property
    def n_params(self) -> int:
        k = self.states
        lengths = k * (self.longest - 1) if self.kind == "categorical" else k
        return k - 1 + max(k * (k - 2), 0) + lengths


def _log_choose(n: Tensor, chosen: Tensor | int) -> Tensor:
    """Logarithm of the binomial coefficient, -inf where fewer are there than chosen."""
    few = torch.as_tensor(chosen, dtype=n.dtype)
    rest = (n - few).clamp(min=0)
    return torch.where(n >= few, torch.lgamma(n + 1) - torch.lgamma(few + 1) - torch.lgamma(rest + 1), -torch.inf)
