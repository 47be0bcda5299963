"""The ladder: what ``log_prob`` does for a latent-variable model when no estimator is named."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probgen.errors import ParameterError
from probgen.estimate.bound import Weights, log_mean, quality, refuse_without_guide, reliable
from probgen.logprob import Kind, LogProb

__all__ = ["Ladder"]


@dataclass(frozen=True)
class Ladder:
    """IWAE with more and more draws, row by row, until a pilot finds the row reliable or its budget is spent.

    Every rung draws a pilot that only decides, and fresh draws that are reported. Rows are lower bounds; a row that
    never became reliable has no standard error. A row's budget is a number of density evaluations: twice the sum of
    the rungs.

    Arguments:
        rungs: Draws a row, rising.
    """

    rungs: tuple[int, ...] = (500, 2000, 8000)

    def __post_init__(self) -> None:
        rungs = self.rungs
        whole = isinstance(rungs, tuple | list) and all(type(r) is int or isinstance(r, np.integer) for r in rungs)
        if not whole or not rungs or min(rungs) < 2 or list(rungs) != sorted(set(rungs)):
            raise ParameterError(f"rungs={rungs!r}", "rising numbers of draws, such as (500, 2000, 8000)")
        object.__setattr__(self, "rungs", tuple(map(int, rungs)))

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if refusal := refuse_without_guide(model, len(x), self):
            return refusal
        weights = Weights(model, x, given, generator)
        n = len(weights.streams)
        columns = {
            name: torch.full((n,), math.nan, dtype=torch.float64)
            for name in ("nats", "stderr", "ess", "pareto_k", "samples")
        }
        open_rows = torch.arange(n)
        for samples in self.rungs:
            part = weights[open_rows]
            pilot = part.draw(samples, f"pilot{samples}")
            ess, k = quality(pilot)
            good = reliable(ess, k, samples)
            done = good if samples != self.rungs[-1] else torch.ones_like(good)
            if done.any():
                nats, stderr = log_mean(part[done.nonzero()[:, 0]].draw(samples, f"main{samples}"))
                stderr = torch.maximum(stderr, log_mean(pilot[:, done])[1])
                found = (
                    nats,
                    torch.where(good[done], stderr, math.nan),
                    ess[done],
                    k[done],
                    torch.full_like(nats, samples),
                )
                for column, values in zip(columns.values(), found, strict=True):
                    column[open_rows[done]] = values
            open_rows = open_rows[~done]
            if not len(open_rows):
                break
        nats, stderr, *rest = columns.values()
        diagnostics = dict(zip(("ess", "pareto_k", "samples"), map(np.asarray, rest), strict=True))
        by = f"IWAE(samples={'..'.join(str(int(s)) for s in sorted({rest[2].min().item(), rest[2].max().item()}))})"
        return LogProb(Kind.LOWER, nats, by=by, stderr=stderr.numpy(), draws=weights.streams, diagnostics=diagnostics)
