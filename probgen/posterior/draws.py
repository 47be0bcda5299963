"""Draws of a posterior, with what their sampler said of them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.posterior import diagnostics

__all__ = ["Draws"]

APPROXIMATE = ("svi", "laplace")


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of the parameters from their posterior, or from a normal approximation of it.

    Arguments:
        values: By parameter name, each (chains, draws, *shape), in the space that a user reads.
        stats: By ArviZ's names, each (chains, draws): "lp" (log p(x, theta) in unconstrained coordinates, in nats),
            "energy", "acceptance_rate", "step_size", "tree_depth", "n_steps", "diverging".
        method: "nuts", "conjugate" (exact and independent), "svi" or "laplace" (approximate).
        log_p, log_q: Of "svi" and "laplace", (chains, draws): log joint and log guide of each draw, both in
            unconstrained coordinates, for Pareto-smoothed checks; None for exact samplers.
    """

    values: Mapping[str, Tensor]
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    method: str = "nuts"
    log_p: Tensor | None = None
    log_q: Tensor | None = None

    @property
    def chains(self) -> int:
        return next(iter(self.values.values())).shape[0]

    @property
    def draws(self) -> int:
        """Of each chain."""
        return next(iter(self.values.values())).shape[1]

    @property
    def approximate(self) -> bool:
        """Whether the draws are those of an approximation, whatever their number."""
        return self.method in APPROXIMATE

    def __len__(self) -> int:
        return self.chains * self.draws

    def rhat(self) -> dict[str, Tensor]:
        """Rank-normalised split R-hat of each number (Vehtari et al. 2021); says nothing of an approximation's bias."""
        return {name: diagnostics.rhat(value) for name, value in self.values.items()}

    def ess(self) -> dict[str, Tensor]:
        """Bulk effective sample size of each number."""
        return {name: diagnostics.ess(value) for name, value in self.values.items()}

    def flat(self) -> dict[str, Tensor]:
        """Values with chains joined, chain after chain: each (chains * draws, *shape)."""
        return {name: value.reshape(-1, *value.shape[2:]) for name, value in self.values.items()}

    def summary(self) -> Any:
        """A pyarrow.Table, one row a number: name, mean, sd, q5, q95, mcse, ess, rhat."""
        names = [label for name, value in self.values.items() for label in _labels(name, value.shape[2:])]
        parts = [diagnostics.summarised(value) for value in self.values.values()]
        return frames.table({"name": np.array(names), **{c: np.concatenate([p[c] for p in parts]) for c in parts[0]}})

    def worst(self) -> tuple[float, float]:
        """Largest R-hat and smallest effective sample size of any number; NaN where none is known."""
        return worst_of(self.values)

    @property
    def divergences(self) -> int:
        return int(self.stats["diverging"].sum()) if "diverging" in self.stats else 0

    def __repr__(self) -> str:
        high, low = self.worst()
        how = f"{self.method}, an approximation" if self.approximate else self.method
        shapes = ", ".join(f"{name} {tuple(value.shape[2:])}" for name, value in self.values.items())
        trouble = f", {self.divergences} divergent" if self.divergences else ""
        size = f"{self.chains} chains of {self.draws}"
        return f"Draws({how}: {size}, R-hat <= {high:.3f}, ESS >= {low:.0f}{trouble}; {shapes})"


def worst_of(values: Mapping[str, Tensor]) -> tuple[float, float]:
    """Largest R-hat and smallest effective sample size of any number; NaN where none is known."""
    finite = [
        (found[found.isfinite()], size[size.isfinite()])
        for found, size in ((diagnostics.rhat(v), diagnostics.ess(v)) for v in values.values())
    ]
    highs, lows = [float(a.max()) for a, _ in finite if a.numel()], [float(b.min()) for _, b in finite if b.numel()]
    return max(highs, default=math.nan), min(lows, default=math.nan)


def _labels(name: str, shape: torch.Size) -> Iterator[str]:
    """As in "loc[0,1]"."""
    if not len(shape):
        yield name
        return
    for place in np.ndindex(*shape):
        yield f"{name}[{','.join(map(str, place))}]"
