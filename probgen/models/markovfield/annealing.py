"""Annealed importance sampling, forwards and backwards: bounds on log Z, and on what AIS draws."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probgen.estimate.weights import log_mean, quality, reliable
from probgen.events import row_hash
from probgen.logprob import Kind, LogProb
from probgen.models.markovfield.factors import whole
from probgen.models.markovfield.local import Source, colours, drawn, log_sum, possible
from probgen.models.markovfield.partition import Partition, sides
from probgen.models.markovfield.queries import draw, exactly, normalised

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = ["RAISE", "PartitionAIS", "PartitionReverseAIS"]

_CELLS = 1 << 19  # cells of work at a time


class _Pieces(NamedTuple):
    """What f_beta of some states is made of, for all beta: of the kept variables their energy under the field and under
    the start, of the summed ones the logits under both."""

    energy: Tensor
    start: Tensor
    logits: Tensor
    start_logits: Tensor


class Annealed:
    """log f_beta = (1 - beta) * (each variable's own factor) + beta * (all factors), some variables summed out.

    States are the kept variables A; those of B, no two of which share a factor, are summed out in closed form.

    Arguments:
        kept, summed: A and B.
    """

    def __init__(self, model: "MarkovField", kept: Tensor, summed: Tensor) -> None:
        self.model, self.kept, self.summed = model, kept, summed
        self.local = model.local(grad=False)
        self.classes = colours(model.cards, model.groups, sorted(kept.tolist()))
        self.log_start = float(self.local.unary.logsumexp(1).sum())

    def starts(self, n: int, source: Source) -> Tensor:
        """Exact draws of A at beta = 0, (n, V)."""
        codes = torch.full((n, len(self.model.cards)), torch.nan, dtype=torch.float64)
        codes[:, self.kept] = drawn(self.local.unary[self.kept].expand(n, -1, -1), source)
        return codes

    def pieces(self, codes: Tensor) -> _Pieces:
        local, own = self.local, self.local.unary[self.kept]
        start = (local.marks(codes)[:, self.kept] * own).sum((1, 2))
        logits = local.logits(codes, self.summed)
        return _Pieces(local.energy(codes), start, logits, local.unary[self.summed].expand_as(logits))

    def log_f(self, pieces: _Pieces, beta: float) -> Tensor:
        """log of the unnormalised density of A, (n,)."""
        kept = (1 - beta) * pieces.start + beta * pieces.energy
        return kept + log_sum((1 - beta) * pieces.start_logits + beta * pieces.logits).sum(1)

    def step(self, codes: Tensor, pieces: _Pieces, beta: float, source: Source, back: bool = False) -> Tensor:
        """One transition of A that leaves f_beta alone: B is drawn, then the classes of A in order; ``back`` takes the
        classes in reverse, which is the reversal of that transition."""
        codes = codes.clone()
        codes[:, self.summed] = drawn((1 - beta) * pieces.start_logits + beta * pieces.logits, source)
        for variables in self.classes[::-1] if back else self.classes:
            own = self.local.unary[variables]
            codes[:, variables] = drawn((1 - beta) * own + beta * self.local.logits(codes, variables), source)
        codes[:, self.summed] = torch.nan
        return codes

    def forward(self, n: int, betas: list[float], source: Source) -> Tensor:
        """Log weights (n,) whose exponentials have mean Z. Neal (2001), eq. 10."""
        codes, total = self.starts(n, source), torch.full((n,), self.log_start, dtype=torch.float64)
        for before, beta in pairwise(betas):
            pieces = self.pieces(codes)
            total += self.log_f(pieces, beta) - self.log_f(pieces, before)
            if beta < 1:
                codes = self.step(codes, pieces, beta, source)
        return possible(total)

    def backward(self, codes: Tensor, betas: list[float], source: Source) -> Tensor:
        """Log weights (n,) whose exponentials have mean 1/Z, from exact draws of the field."""
        total = torch.full((len(codes),), -self.log_start, dtype=torch.float64)
        pieces = self.pieces(codes)
        for i in range(len(betas) - 1, 0, -1):
            if betas[i] < 1:  # the last transition of the forward chain was left out
                codes = self.step(codes, pieces, betas[i], source, back=True)
                pieces = self.pieces(codes)
            total += self.log_f(pieces, betas[i - 1]) - self.log_f(pieces, betas[i])
        return total

    def unrolled(self, codes: Tensor, betas: list[float], source: Source) -> Tensor:
        """Log weights (n,) whose exponentials have as mean the probability that an annealing chain ends in a state.

        With all transitions, the one at beta = 1 included. Burda, Grosse and Salakhutdinov (2015), eq. 9.
        """
        total, pieces = torch.zeros(len(codes), dtype=torch.float64), self.pieces(codes)
        for beta in betas[:0:-1]:
            total += self.log_f(pieces, beta)
            codes = self.step(codes, pieces, beta, source, back=True)
            pieces = self.pieces(codes)
            total -= self.log_f(pieces, beta)
        return total + self.log_f(pieces, 0.0) - self.log_start


def _betas(temperatures: int) -> list[float]:
    return torch.linspace(0, 1, temperatures + 1, dtype=torch.float64).tolist()


def _check(chains: int, temperatures: int) -> None:
    whole("chains", chains, 2)
    whole("temperatures", temperatures)


def _chunks(model: "MarkovField", chains: int) -> list[int]:
    size = max(1, _CELLS // (len(model.cards) * max(model.cards)))
    return [min(size, chains - i) for i in range(0, chains, size)]


def _judged(log_w: Tensor, pilot: Tensor) -> tuple[float, float, dict[str, float]]:
    """log mean weight, its standard error where a pilot lets it be printed, effective sample size and Pareto k."""
    nats, error = log_mean(log_w[:, None])
    ess, k = quality(pilot[:, None])
    error = torch.maximum(error, log_mean(pilot[:, None])[1])
    trusted = bool(reliable(ess, k, len(pilot)))
    return float(nats), float(error) if trusted else math.nan, {"ess": float(ess), "pareto_k": float(k)}


@dataclass(frozen=True)
class PartitionAIS:
    """log Z by annealed importance sampling from independent variables. It underestimates log Z in expectation, so
    log p = log f - log Z is an upper bound, in expectation.

    One side of the field is summed out in closed form. A chain that starts in a configuration which log-potentials of
    -inf forbid has weight zero: fields with many of them need other methods. A pilot of as many chains, which never
    enters the estimate, decides whether a standard error is printed (as of ``IWAE``).

    Arguments:
        chains: Independent chains.
        temperatures: Steps from 0 to 1.

    Neal (2001); Salakhutdinov and Murray (2008) for restricted Boltzmann machines.
    """

    chains: int = 512
    temperatures: int = 200

    def __post_init__(self) -> None:
        _check(self.chains, self.temperatures)

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        return normalised(model, x, self.log_partition(model, generator))

    @torch.no_grad()
    def log_partition(self, model: "MarkovField", generator: torch.Generator) -> Partition:
        annealed, betas = Annealed(model, *sides(model)), _betas(self.temperatures)
        runs = [
            torch.cat([annealed.forward(n, betas, generator) for n in _chunks(model, self.chains)]) for _ in range(2)
        ]
        if bool(torch.isneginf(runs[1]).all()):
            reason = f"none of {self.chains} annealed chains met a possible configuration"
            return Partition(-math.inf, Kind.UNAVAILABLE, repr(self), reason=reason)
        nats, error, about = _judged(runs[1], runs[0])
        return Partition(nats, Kind.LOWER, repr(self), error, generator.initial_seed(), about)


@dataclass(frozen=True)
class PartitionReverseAIS:
    """log Z by annealing backwards from draws of the field. It overestimates log Z in expectation, so log p = log f -
    log Z is a lower bound, in expectation.

    That holds where the draws are exact (the clique plan, or one side of a bipartite field). From Gibbs chains of
    ``sweeps`` sweeps it is of kind estimate: nobody knows whether they have arrived.

    Arguments:
        chains, temperatures: As of ``PartitionAIS``.
        sweeps: Of Gibbs sampling, where draws are not exact.

    Grosse, Ghahramani and Adams (2015), "bidirectional Monte Carlo".
    """

    chains: int = 512
    temperatures: int = 200
    sweeps: int = 1000

    def __post_init__(self) -> None:
        _check(self.chains, self.temperatures)
        whole("sweeps", self.sweeps)

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        return normalised(model, x, self.log_partition(model, generator))

    @torch.no_grad()
    def log_partition(self, model: "MarkovField", generator: torch.Generator) -> Partition:
        annealed, betas = Annealed(model, *sides(model)), _betas(self.temperatures)
        runs = [self._weights(annealed, betas, generator) for _ in range(2)]
        nats, error, about = _judged(runs[1], runs[0])
        kind = Kind.UPPER if exactly(model, None) else Kind.ESTIMATE
        return Partition(-nats, kind, repr(self), error, generator.initial_seed(), about)

    def _weights(self, annealed: Annealed, betas: list[float], generator: torch.Generator) -> Tensor:
        model, parts = annealed.model, []
        for n in _chunks(model, self.chains):
            codes = draw(model, n, None, generator, self.sweeps, "auto")
            codes[:, annealed.summed] = torch.nan
            parts.append(annealed.backward(codes, betas, generator))
        return torch.cat(parts)


@dataclass(frozen=True)
class RAISE:
    """Lower bound, row by row, on the log-probability that annealing chains of this length end in the row.

    That is another distribution, p^AIS, which comes near p as temperatures are added; log p^AIS is below log p on
    average over the field's own rows, not for each row. So it is typed: kind lower of target "p^AIS(...)". Rows must
    be complete, and hidden variables may not share factors.

    Arguments:
        chains: Reverse chains a row.
        temperatures: Steps from 0 to 1, all with a transition.

    Burda, Grosse and Salakhutdinov (2015), "reverse AIS estimator".
    """

    chains: int = 20
    temperatures: int = 200

    def __post_init__(self) -> None:
        _check(self.chains, self.temperatures)

    @torch.no_grad()
    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        n, gaps = len(x), bool(x.isnan().any())
        if gaps or not model.simple:
            reason = "the rows have gaps" if gaps else "hidden variables share factors"
            instead = "by=PartitionAIS() and by=TreeReweighted() bound log p from both sides"
            return LogProb.refuse(n, f"annealing chains end in complete rows, but {reason}", instead, by=repr(self))
        annealed = Annealed(model, torch.arange(x.shape[1]), model.unseen)
        streams = _streams(x, generator)
        size = max(1, _CELLS // (self.chains * len(model.cards) * max(model.cards)))
        parts = [self._rows(annealed, x[rows], streams[rows.numpy()]) for rows in torch.arange(n).split(size)]
        nats, error = (torch.cat(own) for own in zip(*parts, strict=True))
        target = f"p^AIS({self.temperatures} temperatures)"
        return LogProb(Kind.LOWER, nats, by=repr(self), stderr=error.numpy(), draws=streams, target=target)

    def _rows(self, annealed: Annealed, x: Tensor, streams: np.ndarray) -> tuple[Tensor, Tensor]:
        codes = annealed.model.codes(x).repeat_interleave(self.chains, 0)
        sources = [torch.Generator().manual_seed(int(key) % 2**63) for key in streams]
        weights = possible(annealed.unrolled(codes, _betas(self.temperatures), sources))
        nats, error = log_mean(weights.reshape(len(x), self.chains).T)
        return nats, torch.where(nats.isfinite(), error, torch.nan)


def _streams(x: Tensor, generator: torch.Generator) -> np.ndarray:
    """Keys of each row's draws, which depend on the seed and on that row alone, shape (n,), uint64."""
    seed = row_hash(np.array([[generator.initial_seed() % 2**63]]))
    return row_hash((row_hash(x) ^ seed)[:, None].view(np.int64))
