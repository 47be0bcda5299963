"""log p(x | data) where rows share latents: their posterior is averaged over."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.events import row_hash
from probgen.foreign.pyro.rows import Rows
from probgen.logprob import Kind, LogProb

__all__ = ["PosteriorPredictive"]

_CELLS = 1 << 22  # numbers of noise at a time


@dataclass(frozen=True)
class PosteriorPredictive:
    """log of the mean of p(x | theta) over draws of the latents that all rows share; a row's own are averaged inside.

    Kind estimate: the draws are the guide's (target "E_q[p(x_i | theta)]") or those of NUTS ("p(x_i | D)"), and the
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
        rows = getattr(model, "rows", None)
        if not isinstance(rows, Rows) or not rows.shares:
            reason = f"{type(model).__name__} has no latents that all rows share"
            return LogProb.refuse(len(x), reason, "log_prob(x) without by=", by=repr(self))
        seed = generator.initial_seed()
        thetas = rows.shared(self.draws, generator)
        return self._answer(self.log_lik(rows, model._cast(x), model._cast(given), thetas, seed), rows, seed)

    def log_lik(self, rows: Rows, x: Tensor, given: Tensor | None, thetas: Sequence[Any], seed: int) -> Tensor:
        """log p(x_i | theta_s), (S, n), a row's own latents integrated out by importance sampling."""
        step = max(1, _CELLS // (len(thetas) * self.inner * rows.cells)) if rows.cells else len(x)
        parts = []
        for some in torch.arange(len(x)).split(step):
            covariates = None if given is None else given[some]
            noise = self._noise(x[some], seed, len(thetas), rows.cells)
            each = [self._row(rows, x[some], covariates, noise[i], theta) for i, theta in enumerate(thetas)]
            parts.append(torch.stack(each))
        return torch.cat(parts, 1)

    def _row(self, rows: Rows, x: Tensor, given: Any, noise: Tensor, theta: Mapping[str, Tensor]) -> Tensor:
        """log p(x | theta), shape (n,)."""
        log_w = rows.log_weights(x, given, noise, theta)
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

    def _answer(self, log_p: Tensor, rows: Rows, seed: int) -> LogProb:
        total = log_p.logsumexp(0)
        shares = torch.where(total.isfinite(), (log_p - total).exp(), 0.0)
        squares = (shares - 1 / len(log_p)).square().sum(0)
        stderr = (squares * len(log_p) / min(len(log_p), rows.independent)).sqrt()
        return LogProb(
            Kind.ESTIMATE,
            total - math.log(len(log_p)),
            by=repr(self),
            stderr=torch.where(total.isfinite(), stderr, math.nan).numpy(),
            draws=np.full(len(total), seed % 2**64, dtype=np.uint64),
            target=rows.target,
            diagnostics={"ess": torch.where(total.isfinite(), 1 / shares.square().sum(0), 0.0).numpy()},
        )
