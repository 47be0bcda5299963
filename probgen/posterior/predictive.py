"""What a posterior says of further rows: log of the mean of p(x | theta) over its draws."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from probgen.events import row_hash
from probgen.logprob import Kind, LogProb
from probgen.posterior import diagnostics

__all__ = ["APPROXIMATE", "POSTERIOR", "blocks", "log_mean", "predictive", "predictive_steps", "target_of"]

POSTERIOR, APPROXIMATE = "p(x_i | D)", "E_q[p(x_i | theta)]"
_STEPS = {POSTERIOR: "p(x_t | x_<t, D)", APPROXIMATE: "E_q[p(x_t | x_<t, theta)]"}
_CELLS = 1 << 23  # numbers of draws times rows held at once
_ROWS = 256  # rows whose autocorrelations are taken at once


def target_of(method: str) -> str:
    """What a mean over draws of that method is the probability of."""
    return APPROXIMATE if method in ("svi", "laplace") else POSTERIOR


def log_mean(log_lik: Tensor, chains: int) -> tuple[Tensor, Tensor, Tensor]:
    """log mean_s p(x_i | theta_s) from log p (S, n): nats, standard errors and effective draws, (n,) each.

    Errors by the delta method: sd(p) / mean(p) / sqrt(effective draws). A row that is impossible under all draws is
    -inf, with an error of NaN.

    Arguments:
        chains: Of the draws, chain after chain; 0 where draws are independent.
    """
    draws, n = log_lik.shape
    top = log_lik.amax(0)
    finite = top.isfinite()
    w = (log_lik - torch.where(finite, top, 0.0)).exp()
    mean = w.mean(0)
    spread = w.std(0) if draws > 1 else torch.full_like(mean, math.nan)
    effective = torch.full((n,), float(draws), dtype=torch.float64)
    if chains:
        parts = w.reshape(chains, draws // chains, n).split(_ROWS, 2)
        found = torch.cat([diagnostics.ess_of_mean(part) for part in parts])
        effective = torch.where(found.isnan(), effective, found.clamp(max=float(draws)))
    error = torch.where(spread <= 1e-14 * mean, 0.0, spread / mean / effective.sqrt())
    nats = torch.where(finite, mean.log() + top, -torch.inf)
    return nats, torch.where(finite, error, math.nan), effective


def predictive(
    log_lik: Callable[[Tensor], Tensor], n: int, draws: int, *, method: str, chains: int, key: Tensor, of: str = "x"
) -> LogProb:
    """The pointwise log posterior predictive density of n rows, an estimate.

    Rows share the draws, so that their errors add linearly. Predictive densities of single rows do not multiply to
    that of all rows, which share parameters: there is no sum of them that is a joint.

    Arguments:
        log_lik: log p(x_i | theta_s) (S, some) of some rows, by number.
        key: What tells these draws from others: the draws themselves.
    """
    parts = [log_mean(log_lik(some), chains) for some in blocks(n, draws)]
    nats, error, effective = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    shared = np.full(n, row_hash(key.reshape(1, -1))[0], dtype=np.uint64)
    return LogProb(
        Kind.ESTIMATE, nats, by=f"{draws} {_NAMES[method]} draws", stderr=error, draws=shared, of=of,
        target=target_of(method), diagnostics={"ess": effective},
    )  # fmt: skip


_NAMES = {"nuts": "NUTS", "svi": "SVI", "laplace": "Laplace", "conjugate": "posterior"}


def predictive_steps(steps: Tensor, lengths: Tensor, *, method: str, chains: int, key: Tensor) -> LogProb:
    """log p(x_t | x_<t, D) from log p(x_t | x_<t, theta_s), (S, total): what came before tells of theta too.

    A difference of two log means over the same draws; its error is that of their difference by the delta method.
    """
    draws, total = steps.shape
    upto = torch.cat([part.cumsum(1) for part in steps.split(lengths.tolist(), 1)], 1)
    before = upto - steps
    wide, less = _shares(upto), _shares(before)
    apart = wide - less  # influence of each draw on the difference, times their number
    effective = torch.full((total,), float(draws), dtype=torch.float64)
    if chains:
        parts = apart.reshape(chains, draws // chains, total).split(_ROWS, 2)
        found = torch.cat([diagnostics.ess_of_mean(part) for part in parts])
        effective = torch.where(found.isnan(), effective, found.clamp(max=float(draws)))
    error = apart.std(0) / effective.sqrt() if draws > 1 else torch.full((total,), math.nan)
    nats = upto.logsumexp(0) - before.logsumexp(0)
    shared = np.full(total, row_hash(key.reshape(1, -1))[0], dtype=np.uint64)
    return LogProb(
        Kind.ESTIMATE, nats, by=f"{draws} {_NAMES[method]} draws", stderr=error.numpy(), draws=shared,
        target=_STEPS[target_of(method)], diagnostics={"ess": effective.numpy()},
    )  # fmt: skip


def _shares(logs: Tensor) -> Tensor:
    """Each draw's weight over the mean weight, (S, n)."""
    return (logs - logs.logsumexp(0)).exp() * len(logs)


def blocks(n: int, draws: int) -> Iterator[Tensor]:
    """Row numbers in parts whose table over draws fits in memory."""
    yield from torch.arange(n).split(max(1, _CELLS // max(draws, 1)))
