"""The variational bound of the reverse chain under the forward noising: a lower bound on log p^SDE."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.estimate.weights import Weights, at_least
from probgen.events import take
from probgen.logprob import Kind, LogProb
from probgen.models.diffusion.coordinates import Seen
from probgen.models.diffusion.trig import bridge

if TYPE_CHECKING:
    from probgen.models.diffusion.family import Diffusion

__all__ = ["VariationalBound", "kl_of_step"]

_WORK = 1 << 21  # noise of so many numbers at a time


@dataclass(frozen=True)
class VariationalBound:
    """E_q[log p(x | y_1)] - sum_i KL(q(y_i-1 | y_i, x) || p(y_i-1 | y_i)): the ELBO of ``model`` and ``guide``, LOWER.

    The divergences are in closed form; of each y_i one draw is taken a sample. The last y is N(0, I) under both, and
    costs nothing. The standard error is about the bound, for which the mean is unbiased. The target is p^SDE, the
    reverse chain: another distribution than the probability flow's.

    Arguments:
        samples: Draws of every y_i, at least 2.

    Ho, Jain and Abbeel (2020), eq. 5; Kingma et al. (2021); Bao et al. (2022) for the reverse variances.
    """

    samples: int = 4

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 2)

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if not hasattr(model, "_reverse"):
            return LogProb.refuse(
                len(x), f"{type(model).__name__} is no chain of noised rows", "log_prob(x) without by=",
                by=repr(self), target="p^SDE",
            )  # fmt: skip
        weights = Weights(model, x, given, generator)
        shape = (self.samples, model.chain, model.rows.width)
        size = max(1, _WORK // math.prod(shape))
        keys, own, parts = weights.keys("chain"), torch.Generator(), [torch.zeros(self.samples, 0, dtype=torch.float64)]
        for some in torch.arange(len(weights)).split(size):
            noise = [
                torch.randn(shape, generator=own.manual_seed(int(key)), dtype=torch.float32)
                for key in keys[some.numpy()]
            ]
            covariates = None if given is None else take(given, some)
            parts.append(terms(model, x[some], covariates, torch.stack(noise, 2).to(model.dtype)))
        nats = torch.cat(parts, 1)
        stderr = (nats.std(0) / math.sqrt(self.samples)).numpy()
        return LogProb(Kind.LOWER, nats.mean(0), by=repr(self), stderr=stderr, draws=weights.streams, target="p^SDE")


def terms(model: "Diffusion", x: Tensor, given: Tensor | None, noise: Tensor) -> Tensor:
    """The bound by each sample, (S, n), float64, from noise (S, chain, n, width)."""
    samples, n = len(noise), len(x)
    cells = x.reshape(n, -1)
    c, times = model.rows.encode(cells).to(noise.dtype), model.times().tolist()
    covariates = None if given is None else given.repeat(samples, *(1,) * (given.ndim - 1))
    total = torch.zeros(samples, n, dtype=torch.float64)
    for i, t in enumerate(times):
        y = math.cos(t) * c + math.sin(t) * noise[:, i]
        looked = i > 0 or model.rows.reals  # a decoder of discrete cells asks no network
        mean = model._data(y.flatten(0, 1), t, covariates).reshape(y.shape) if looked else y
        if i == 0:
            seen = Seen(y.to(torch.float64), mean.to(torch.float64), model.residual[0], t)
            total = total + model.rows.nats(cells, seen)
        else:
            total = total - kl_of_step(times[i - 1], t, c - mean, model.residual[i])
    return total


def kl_of_step(s: float, t: float, off: Tensor, residual: Tensor) -> Tensor:
    """KL(q(y_s | y_t, x) || p(y_s | y_t)), summed over coordinates, in nats, float64.

    Arguments:
        off: x - E[x | y_t] by the network, (..., width).
        residual: Variance of x about it that p(y_s | y_t) allows for, (width,).
    """
    b = bridge(s, t)
    extra = b.pull**2 / b.variance
    ratio = 1 + extra * residual  # of the variances of p and q
    each = ratio.log() + (1 + extra * off.to(torch.float64).square()) / ratio - 1
    return each.sum(-1) / 2
