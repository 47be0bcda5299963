"""The ladder: what ``log_prob`` does for a latent-variable model when no estimator is named."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.estimate.anneal import anneal
from probgen.estimate.hmc import Plan
from probgen.estimate.pilot import SEARCH, Verdict, judge, misses_a_mode
from probgen.estimate.refine import REFINING, refine
from probgen.estimate.weights import WIDENINGS, Weights, at_least, call, log_mean, refuse_without_guide
from probgen.logprob import Kind, LogProb

__all__ = ["Ladder"]

_NAMES = ("nats", "stderr", "ess", "pareto_k", "samples", "temperatures")
_WIDENING = 1000  # draws that decide by how much, at most
_GRADIENT = 3  # density evaluations that one with its gradient costs


@dataclass(frozen=True, repr=False)
class Ladder:
    """IWAE, then more draws, then AIS, row by row, until a pilot finds the row reliable or its budget is spent.

    Every rung draws a pilot that only decides, and fresh draws that are reported. From the second rung on the guide is
    a normal at the posterior's mode where that is better (``refine``), and widened on active latents (``IWAE.widen``);
    rows whose effective sample size then can't reach 400 on any rung of draws go straight to annealing, from a standard
    normal where the guide misses a mode, else from the guide. Rows are lower bounds; a row that never became reliable
    has no standard error, and the last rung's number.

    Arguments:
        rungs: Draws a row, rising.
        temperatures: Of annealing, rising; () for none.
        chains: Of annealing.
        budget: Density evaluations a row, one with its gradient counted as three; a rung that could exceed it is not
            climbed. Never shared between rows.
        refine: Whether the guide may be replaced.

    Diagnostics, a row: ``ess``, ``pareto_k``, ``samples`` (draws or chains), ``temperatures`` (1 for draws) and
    ``refined`` (1 where another guide was tried, 0 where the first rung was enough).
    """

    rungs: tuple[int, ...] = (500, 2000, 8000)
    temperatures: tuple[int, ...] = (50, 200)
    chains: int = 16
    budget: int = 150_000
    refine: bool = True
    draws: tuple[int, ...] = field(init=False, compare=False)
    plans: tuple[int, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        at_least("chains", self.chains, 2)
        at_least("budget", self.budget, 1)
        if not isinstance(self.refine, bool):
            raise ParameterError(f"refine={self.refine!r}", "True or False")
        for name, least in (("rungs", 1), ("temperatures", 0)):
            object.__setattr__(self, name, _rising(name, getattr(self, name), least))
        left, kept = self.budget, []
        for kind, size in [*(("draws", r) for r in self.rungs), *(("plans", t) for t in self.temperatures)]:
            left -= self.cost(kind, size)
            kept += [(kind, size)] if left >= 0 else []
        for name in ("draws", "plans"):
            object.__setattr__(self, name, tuple(size for kind, size in kept if kind == name))
        if not self.draws:
            least = self.cost("draws", self.rungs[0])
            raise ParameterError(f"budget={self.budget}", f"at least {least} evaluations for {self.rungs[0]} draws")

    def __repr__(self) -> str:
        return call(self, "rungs")

    def cost(self, kind: str, size: int) -> int:
        """Evaluations that a rung of "draws" or of "plans" (annealing) takes at most."""
        if kind == "draws":  # pilot and main, then the change of guide, and from the second rung on widening
            more = WIDENINGS * min(size, _WIDENING) if size != self.rungs[0] else REFINING * self.refine
            return 2 * size + more + _GRADIENT * SEARCH
        crossings = 3 if size == self.temperatures[0] else 2  # pilot, main, and the pilot from the prior
        return _GRADIENT * (crossings * self._plan(size).evaluations + SEARCH) + WIDENINGS * 500

    def _plan(self, temperatures: int, start: str = "guide") -> Plan:
        return Plan(self.chains, temperatures, 2, start)

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if refusal := refuse_without_guide(model, len(x), self):
            return refusal
        weights = Weights(model, x, given, generator)
        found = {name: torch.full((len(weights),), math.nan, dtype=torch.float64) for name in _NAMES}
        found["refined"] = torch.zeros(len(weights), dtype=torch.float64)
        weights, left, nats = self._draw(weights, found)
        if len(left):
            blind = self._blind(weights[left], nats)
            for start, rows in (("guide", left[~blind]), ("prior", left[blind])):
                self._anneal(weights, rows, start, found)
        by, columns = self._by(found), {name: values.numpy() for name, values in found.items()}
        values, stderr = columns.pop("nats"), columns.pop("stderr")
        return LogProb(Kind.LOWER, values, by=by, stderr=stderr, draws=weights.streams, diagnostics=columns)

    def _draw(self, weights: Weights, found: dict[str, Tensor]) -> tuple[Weights, Tensor, Tensor]:
        """Climbs the rungs of draws; returns the weights under the last guide, the rows left over and what their last
        pilots say of log p(x)."""
        rows, scale = torch.arange(len(weights)), None
        left, nats = [torch.arange(0)], [torch.zeros(0, dtype=torch.float64)]
        for samples in self.draws:
            if samples != self.draws[0]:
                scale = weights[rows].widening(min(samples, _WIDENING))
            pilot, last = judge(weights[rows], samples, scale), samples == self.draws[-1]
            done = pilot.trusted | (torch.tensor(last) & (not self.plans))
            self._report(weights, rows[done], samples, pilot.of(done), None if scale is None else scale[done], found)
            if self.refine and samples == self.draws[0]:
                found["refined"][rows[~done]] = 1.0
                weights = refine(weights, rows[~done])
            lost = ~done & (last | self._hopeless(pilot, samples))
            left.append(rows[lost])
            nats.append(pilot.nats[lost])
            rows = rows[~done & ~lost]
            if not len(rows):
                break
        return weights, torch.cat(left), torch.cat(nats)

    def _blind(self, weights: Weights, nats: Tensor) -> Tensor:
        """Rows whose guide misses a mode, and that chains from a standard normal come about as near to."""
        plan = self._plan(self.plans[0], "prior")
        blind = misses_a_mode(weights, None, nats, plan.evaluations)
        rows = blind.nonzero()[:, 0]
        for some, bridge in plan.bridges(weights[rows]):
            near = log_mean(bridge.forward("start").log_w)[0] > nats[rows[some]] - 1
            blind[rows[some]] = near
        return blind

    def _hopeless(self, pilot: Verdict, samples: int) -> Tensor:
        """Rows that no more draws can help, where there is annealing to go to; none before another guide is tried."""
        if self.refine and samples == self.draws[0]:
            return torch.zeros_like(pilot.missed)
        out_of_reach = pilot.ess / samples * self.draws[-1] < 400
        return (out_of_reach | pilot.missed) & bool(self.plans)

    def _report(
        self,
        weights: Weights,
        rows: Tensor,
        samples: int,
        pilot: Verdict,
        scale: Tensor | None,
        found: dict[str, Tensor],
    ) -> None:
        if not len(rows):
            return
        nats, stderr = log_mean(weights[rows].draw(samples, f"main{samples}", scale))
        stderr = torch.where(pilot.trusted, torch.maximum(stderr, pilot.stderr), math.nan)
        sizes = [torch.full_like(nats, size) for size in (samples, 1)]
        for name, values in zip(_NAMES, (nats, stderr, pilot.ess, pilot.pareto_k, *sizes), strict=True):
            found[name][rows] = values

    def _anneal(self, weights: Weights, rows: Tensor, start: str, found: dict[str, Tensor]) -> None:
        for temperatures in self.plans:
            if not len(rows):
                return
            last = temperatures == self.plans[-1]
            columns = anneal(weights[rows], self._plan(temperatures, start), final=last)
            for name in _NAMES:
                found[name][rows] = columns[name]
            rows = rows[columns["nats"].isnan()]

    def _by(self, found: dict[str, Tensor]) -> str:
        annealed, parts = found["temperatures"] > 1, []
        for refined, option in ((0.0, ""), (1.0, ", refine=True")):
            rows = ~annealed & (found["refined"] == refined)
            if rows.any() or not (len(rows) or refined):
                parts.append(f"IWAE(samples={_span(found['samples'][rows])}{option})")
        if annealed.any():
            parts.append(f"AIS(chains={self.chains}, temperatures={_span(found['temperatures'][annealed])})")
        return " | ".join(parts)


def _rising(name: str, sizes: Any, least: int) -> tuple[int, ...]:
    whole = isinstance(sizes, tuple | list) and all(type(s) is int or isinstance(s, np.integer) for s in sizes)
    if not whole or len(sizes) < least or min(sizes, default=2) < 2 or list(sizes) != sorted(set(sizes)):
        raise ParameterError(f"{name}={sizes!r}", "rising whole numbers from 2, such as (500, 2000, 8000)")
    return tuple(map(int, sizes))


def _span(sizes: Tensor) -> str:
    return "..".join(str(int(s)) for s in sorted({sizes.min().item(), sizes.max().item()})) if len(sizes) else ""
