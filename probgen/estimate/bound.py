"""Lower bounds by importance sampling from the guide: ELBO and IWAE."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probgen.errors import ParameterError
from probgen.estimate.pilot import judge
from probgen.estimate.refine import refine
from probgen.estimate.weights import Weights, at_least, call, log_mean, refuse_without_guide
from probgen.logprob import Kind, LogProb

__all__ = ["ELBO", "IWAE"]


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound: the mean of log p(x, z) - log q(z | x) over draws of the guide. Kind lower.

    Its standard error is about the bound, and can always be trusted: the mean is unbiased for the ELBO.

    Arguments:
        samples: Draws a row.

    Kingma and Welling (2014), eq. 2.
    """

    samples: int = 64

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 2)

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if refusal := refuse_without_guide(model, len(x), self):
            return refusal
        weights = Weights(model, x, given, generator)
        log_w = weights.draw(self.samples, "main")
        stderr = log_w.std(0) / math.sqrt(self.samples)
        return LogProb(Kind.LOWER, log_w.mean(0), by=repr(self), stderr=stderr.numpy(), draws=weights.streams)


@dataclass(frozen=True, repr=False)
class IWAE:
    """log of the mean importance weight p(x, z) / q(z | x) over draws of the guide. Kind lower, whatever n.

    A pilot of as many draws, which never enters the estimate, decides row by row whether a standard error is printed:
    effective sample size >= 400; Pareto k with one of its own standard errors on top <= min(0.4, 1 - 1 / log10
    samples); and climbers from a standard normal meet no mode of log p(x, z) where the guide would not go. Other rows
    have NaN there. What is printed is the larger of the main draws' and the pilot's delta-method errors:
    weights with a heavy tail show too small an error just when they fall short.

    Arguments:
        samples: Draws a row.
        widen: Whether another pilot may widen the guide of a row, on its active latents (those whose
            guide is narrower than the prior): a guide that is too narrow hides the tails that it misses.
        refine: Whether a normal at the posterior's mode may take the guide's place, row by row.

    Diagnostics, a row: ``ess`` and ``pareto_k`` of the pilot, ``samples``. Burda, Grosse and Salakhutdinov (2016),
    eq. 8; Vehtari et al. (2024) for Pareto k.
    """

    samples: int = 500
    widen: bool = False
    refine: bool = False

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 2)
        for name in ("widen", "refine"):
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(f"{name}={getattr(self, name)!r}", "True or False")

    def __repr__(self) -> str:
        return call(self, "samples")

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if refusal := refuse_without_guide(model, len(x), self):
            return refusal
        weights = Weights(model, x, given, generator)
        if self.refine:
            weights = refine(weights, torch.arange(len(weights)))
        scale = weights.widening(self.samples) if self.widen else None
        pilot = judge(weights, self.samples, scale)
        nats, stderr = log_mean(weights.draw(self.samples, "main", scale))
        stderr = torch.where(pilot.trusted, torch.maximum(stderr, pilot.stderr), math.nan)
        rows = {"ess": pilot.ess, "pareto_k": pilot.pareto_k, "samples": torch.full_like(pilot.ess, self.samples)}
        return LogProb(
            Kind.LOWER,
            nats,
            by=repr(self),
            stderr=stderr.numpy(),
            draws=weights.streams,
            diagnostics={name: np.asarray(values) for name, values in rows.items()},
        )
