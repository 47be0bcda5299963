"""log p(x | data) where rows share latents: their posterior is averaged over."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.events import row_hash
from probgen.logprob import Kind, LogProb

__all__ = ["PosteriorPredictive"]

_CELLS = 1 << 22  # numbers of noise at a time


@dataclass(frozen=True)
class PosteriorPredictive:
    """log of the mean of p(x | theta) over draws of the latents that all rows share; a row's own are averaged inside.

    Kind estimate: the draws are the guide's (target "E_q[p(x|theta)]") or those of NUTS ("p(x|data)"), and the
    logarithm of a mean lies low. Rows share the draws, so their errors add linearly. With NUTS the standard error
    counts effective draws.

    Arguments:
        draws: Of the shared latents.
        inner: Of a row's own for each of them; none are needed where it has none.
    """

    draws: int = 1000
    inner: int = 16

    def __post_init__(self) -> None:
        for name in ("draws", "inner"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 2:
                raise ParameterError(f"{name}={value!r}", "a whole number of draws, at least 2")

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if not hasattr(model, "shared_draws"):
            reason = f"{type(model).__name__} has no latents that all rows share"
            return LogProb.refuse(len(x), reason, "log_prob(x) without by=", by=repr(self))
        seed, thetas = generator.initial_seed(), model.shared_draws(self.draws, generator)
        cells = model.local_cells
        step = max(1, _CELLS // (len(thetas) * self.inner * cells)) if cells else len(x)
        parts = []
        for rows in torch.arange(len(x)).split(step):
            some = None if given is None else given[rows]
            noise = self._noise(x[rows], seed, len(thetas), cells)
            parts.append(torch.stack([self._row(model, x[rows], some, noise[i], t) for i, t in enumerate(thetas)]))
        return self._answer(torch.cat(parts, 1), model, seed)

    def _row(self, model: Any, x: Any, given: Any, noise: Tensor, theta: Mapping[str, Tensor]) -> Tensor:
        """log p(x | theta), shape (n,)."""
        log_w = model.log_weights(x, given, noise, theta)
        return log_w.logsumexp(0) - math.log(len(log_w))

    def _noise(self, x: Tensor, seed: int, draws: int, cells: int) -> Tensor:
        """Normal noise (draws, inner, n, cells), each row's from the seed and its own content."""
        if not cells:
            return torch.empty(draws, 1, len(x), 0)
        parts = []
        for row in row_hash(x):
            digest = hashlib.blake2b(f"{seed} {int(row)} predictive".encode(), digest_size=7).digest()
            own = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
            parts.append(torch.randn(draws, self.inner, cells, generator=own))
        return torch.stack(parts, 2)

    def _answer(self, log_p: Tensor, model: Any, seed: int) -> LogProb:
        total = log_p.logsumexp(0)
        shares = torch.where(total.isfinite(), (log_p - total).exp(), 0.0)
        squares = (shares - 1 / len(log_p)).square().sum(0)
        stderr = (squares * len(log_p) / min(len(log_p), model.independent_draws)).sqrt()
        return LogProb(
            Kind.ESTIMATE,
            total - math.log(len(log_p)),
            by=repr(self),
            stderr=torch.where(total.isfinite(), stderr, math.nan).numpy(),
            draws=np.full(len(total), seed % 2**64, dtype=np.uint64),
            target=model.posterior_target,
            diagnostics={"ess": torch.where(total.isfinite(), 1 / shares.square().sum(0), 0.0).numpy()},
        )
