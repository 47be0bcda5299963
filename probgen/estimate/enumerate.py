"""Exact sums over the discrete latents of a Pyro program."""

import math
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from probgen.logprob import Kind, LogProb
from probgen.model import pyro_lock

__all__ = ["Enumerate"]


@dataclass(frozen=True)
class Enumerate:
    """log p(x) with every discrete latent of ``model.model`` summed out. Kind exact.

    The program must hold its rows in one plate, the rightmost; latents are summed by variable elimination.

    Arguments:
        limit: Largest table, in entries over all rows, that elimination may make; beyond it the answer is a refusal.
    """

    limit: int = 1 << 26

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        with pyro_lock(generator), pyro.validation_enabled(False):
            program = poutine.enum(config_enumerate(model.model, default="parallel"), first_available_dim=-2)
            trace = poutine.trace(program).get_trace(x, given)
            trace.compute_log_prob()
        factors = []
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            problem = _obstacle(site)
            if problem:
                reason = f"the site {name!r} {problem}"
                return LogProb.refuse(len(x), reason, "by=IWAE(samples=500), or log_prob(x) without by=", by=repr(self))
            factors.append(site["log_prob"].to(torch.float64))
        return self._eliminate(factors, len(x))

    def _eliminate(self, factors: list[Tensor], n: int) -> LogProb:
        """Sums out the enumerated dims (those left of the plate) one by one, the cheapest first, in logarithms."""
        left = sorted({d for f in factors for d in range(-f.ndim, -1) if f.shape[d] > 1})
        while left:
            shapes = {d: torch.broadcast_shapes(*(f.shape for f in _holding(factors, d))) for d in left}
            dim = min(left, key=lambda d: math.prod(shapes[d]))
            size = math.prod(shapes[dim])
            if size > self.limit:
                reason = f"elimination needs a table of {size:.3g} entries, the limit is {self.limit}"
                instead = "Enumerate(limit=...) if memory allows, or fewer rows at a time"
                return LogProb.refuse(n, reason, instead, by=repr(self))
            joint = torch.stack(torch.broadcast_tensors(*_holding(factors, dim))).sum(0)
            factors = [f for f in factors if not _holds(f, dim)] + [joint.logsumexp(dim, keepdim=True)]
            left.remove(dim)
        total = torch.stack(torch.broadcast_tensors(*(f.reshape(-1) for f in factors))).sum(0)
        return LogProb(Kind.EXACT, total.expand(n), by=repr(self))


def _holds(factor: Tensor, dim: int) -> bool:
    return factor.ndim >= -dim and factor.shape[dim] > 1


def _holding(factors: list[Tensor], dim: int) -> list[Tensor]:
    return [factor for factor in factors if _holds(factor, dim)]


def _obstacle(site: dict[str, Any]) -> str:
    """Why a site can't be part of an exact sum over discrete latents; empty where it can."""
    if not site["is_observed"] and site["infer"].get("_enumerate_dim") is None:
        return "has no finite support to sum over"
    scale = site["scale"]
    if (isinstance(scale, Tensor) and bool((scale != 1).any())) or (not isinstance(scale, Tensor) and scale != 1):
        return "is scaled (subsampled or poutine.scale): the sum would not be a log-likelihood"
    return ""
