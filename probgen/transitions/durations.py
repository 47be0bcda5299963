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
        smoothing: Pseudo-observations spread over each state's table of durations.

    A state begins at the first step of a sequence; the last one may go on beyond its end. The chain runs on
    S = K * phases or K * longest states: (state, phase), or (state, steps left), the second fastest.
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
        # log tables over 1..longest, or the log odds of leaving a phase
        shape = (states, longest) if kind == "categorical" else (states,)
        self.duration = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

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

    def _entry(self) -> Tensor:
        """log p(phase or steps left on entering), shape (K, depth)."""
        if self.kind == "categorical":
            return self.duration.log_softmax(-1)
        first = torch.full((self.states, self.depth), -torch.inf, dtype=torch.float64)
        first[:, 0] = 0.0
        return first

    def log_initial(self) -> Tensor:
        return (self.initial_logits.log_softmax(0)[:, None] + self._entry()).reshape(-1)

    def log_matrix(self, given: Tensor | None = None) -> Tensor:
        k, d = self.states, self.depth
        if k * d == 1:
            return torch.zeros(1, 1, dtype=torch.float64)
        jump = self.log_moves()[:, :, None] + self._entry()[None]  # (K, K, depth)
        within = torch.full((d, d), -torch.inf, dtype=torch.float64)
        if self.kind == "categorical":
            within = within.masked_fill(torch.diag(torch.ones(d - 1), -1).bool(), 0.0).expand(k, d, d)
            leave, last = torch.zeros(k, dtype=torch.float64), 0
        else:
            stay, leave = nn.functional.logsigmoid(-self.duration), nn.functional.logsigmoid(self.duration)
            onward = torch.diag(torch.ones(d - 1), 1).bool()
            within = torch.where(torch.eye(d, dtype=torch.bool), stay[:, None, None], within)
            within = torch.where(onward, leave[:, None, None], within)
            last = d - 1
        out = (leave[:, None, None] + jump).reshape(k, -1)  # from the last phase of each state
        same = torch.eye(k, dtype=torch.bool)[:, None, :, None]
        blocks = torch.where(same, within[:, :, None, :], -torch.inf)  # (K, d, K, d)
        gone = torch.full((k, d, k * d), -torch.inf, dtype=torch.float64)
        gone = gone.index_copy(1, torch.tensor([last]), out[:, None])
        return torch.maximum(blocks.reshape(k * d, k * d), gone.reshape(k * d, k * d))  # no move is in both

    @torch.no_grad()
    def maximise(self, initial: Tensor, counts: Tensor, given: Tensor | None = None) -> list[int]:
        k, d = self.states, self.depth
        starts, moves = initial.reshape(k, d), counts.reshape(k, d, k, d)
        jumps = moves[:, 0 if self.kind == "categorical" else d - 1]  # (K, K, d): from the last phase
        same = torch.eye(k, dtype=torch.bool)
        if k > 1:
            between = torch.where(same[..., None], 0.0, jumps)
            logits, empty = row_counts(between.sum(-1), torch.zeros(k, k, dtype=torch.float64), self.log_moves())
            self.logits.copy_(torch.where(same, 0.0, logits))
        else:
            between, empty = jumps, torch.zeros(1, dtype=torch.bool)
        if self.kind == "categorical":
            entries = starts + between.sum(0)
            prior = torch.full_like(entries, self.smoothing / d)
            self.duration.copy_(row_counts(entries, prior, self.duration.log_softmax(-1))[0])
        else:
            self._maximise_phases(moves, between)
        own = starts.sum(1)
        self.initial_logits.copy_(own.log() - own.sum().log())
        return empty.nonzero()[:, 0].tolist()

    def _maximise_phases(self, moves: Tensor, between: Tensor) -> None:
        k, d = self.states, self.depth
        inside = moves[torch.arange(k), :, torch.arange(k), :]  # (K, d, d)
        stayed = inside.diagonal(dim1=1, dim2=2).sum(1)
        left = inside.diagonal(offset=1, dim1=1, dim2=2).sum(1) + between.sum((1, 2))
        if k == 1 and d == 1:
            return  # staying and moving to itself are one
        seen = stayed + left > 1e-8
        odds = (left + self.smoothing).log() - (stayed + self.smoothing).log()
        self.duration.copy_(torch.where(seen, odds.clamp(-700, 700), self.duration))

    def penalty(self) -> Tensor:
        if not self.smoothing:
            return torch.zeros((), dtype=torch.float64)
        if self.kind == "categorical":
            return self.smoothing / self.depth * self.duration.log_softmax(-1).sum()
        logs = nn.functional.logsigmoid(self.duration) + nn.functional.logsigmoid(-self.duration)
        return self.smoothing * logs.sum()

    def start(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            draws = torch.empty_like(self.logits).exponential_(generator=generator)
            self.logits.copy_(draws.log())
            self.duration.zero_()
            if self.kind == "negative_binomial":
                self.duration.fill_(-1.0)
            self.initial_logits.zero_()

    def natural(self) -> dict[str, Tensor]:
        length = self.duration.softmax(-1) if self.kind == "categorical" else self.duration.sigmoid()
        name = "duration" if self.kind == "categorical" else "leaving"
        return {"initial": self.initial_logits.softmax(0), "transition": self.log_moves().exp(), name: length}

    def mean_duration(self) -> Tensor:
        """Expected steps of a visit to each state, shape (K,)."""
        if self.kind == "categorical":
            return self.duration.softmax(-1) @ torch.arange(1, self.depth + 1, dtype=torch.float64)
        return self.depth / self.duration.sigmoid()

    @property
    def n_params(self) -> int:
        k = self.states
        lengths = k * (self.longest - 1) if self.kind == "categorical" else k
        return k - 1 + max(k * (k - 2), 0) + lengths
