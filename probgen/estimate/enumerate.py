"""Exact sums over the discrete latents of a Pyro program."""

import string
from dataclasses import dataclass
from typing import Any

import opt_einsum
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
        limit: Largest table, in entries, that elimination may make; beyond it the answer is a refusal.
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
            if not site["is_observed"] and site["infer"].get("_enumerate_dim") is None:
                reason = f"the latent site {name!r} has no finite support to sum over"
                return LogProb.refuse(len(x), reason, "by=IWAE(samples=500), or log_prob(x) without by=", by=repr(self))
            factors.append(site["unscaled_log_prob"])
        return self._eliminate(factors, len(x))

    def _eliminate(self, factors: list[Tensor], n: int) -> LogProb:
        """Log-sum-exp over all enumerated dims (those left of the plate) of a sum of factors."""
        operands: list[Any] = []
        for factor in factors:
            dims = [d for d in range(-factor.ndim, 0) if factor.shape[d] > 1]
            operands += [
                factor.reshape([factor.shape[d] for d in dims]),
                "".join(string.ascii_letters[-d - 1] for d in dims),
            ]
        inputs, tensors = operands[1::2], operands[::2]
        output = "a" if any("a" in term for term in inputs) else ""
        equation = ",".join(inputs) + "->" + output
        _, plan = opt_einsum.contract_path(equation, *tensors)
        if plan.largest_intermediate > self.limit:
            size = (
                f"elimination needs a table of {int(plan.largest_intermediate):.3g} entries, the limit is {self.limit}"
            )
            return LogProb.refuse(
                n, size, "Enumerate(limit=...) if memory allows, or score fewer rows at a time", by=repr(self)
            )
        nats = opt_einsum.contract(equation, *tensors, backend="pyro.ops.einsum.torch_log").expand(n)
        return LogProb(Kind.EXACT, nats, by=repr(self))  # type: ignore[arg-type]
