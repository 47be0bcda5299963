"""Lower bounds by importance sampling from the guide: ELBO and IWAE, and the pilot that says when to trust an error."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.events import row_hash, take
from probgen.logprob import Kind, LogProb
from probgen.model import Latent

__all__ = ["ELBO", "IWAE", "Weights", "pareto_k", "reliable"]

_CACHE = 1 << 20  # cells of work at a time: about 4 MB of float32


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
        _at_least(self.samples, 2)

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if refusal := refuse_without_guide(model, len(x), self):
            return refusal
        weights = Weights(model, x, given, generator)
        log_w = weights.draw(self.samples, "main")
        stderr = log_w.std(0) / math.sqrt(self.samples)
        return LogProb(Kind.LOWER, log_w.mean(0), by=repr(self), stderr=stderr.numpy(), draws=weights.streams)


@dataclass(frozen=True)
class IWAE:
    """log of the mean importance weight p(x, z) / q(z | x) over draws of the guide. Kind lower, whatever n.

    A pilot of as many draws, which never enters the estimate, decides row by row whether a standard error is printed:
    effective sample size >= 400, and Pareto k with one of its own standard errors on top <= min(0.4, 1 - 1 / log10
    samples). Other rows have NaN there. What is printed is the larger of the main draws' and the pilot's delta-method
    errors: weights with a heavy tail show too small an error just when they fall short.

    Arguments:
        samples: Draws a row.

    Burda, Grosse and Salakhutdinov (2016), eq. 8; Vehtari et al. (2024) for Pareto k.
    """

    samples: int = 500

    def __post_init__(self) -> None:
        _at_least(self.samples, 2)

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if refusal := refuse_without_guide(model, len(x), self):
            return refusal
        weights = Weights(model, x, given, generator)
        pilot = weights.draw(self.samples, "pilot")
        ess, k = quality(pilot)
        nats, stderr = log_mean(weights.draw(self.samples, "main"))
        stderr = torch.maximum(stderr, log_mean(pilot)[1])
        trusted = reliable(ess, k, self.samples)
        return LogProb(
            Kind.LOWER,
            nats,
            by=repr(self),
            stderr=torch.where(trusted, stderr, math.nan).numpy(),
            draws=weights.streams,
            diagnostics={"ess": ess.numpy(), "pareto_k": k.numpy(), "samples": np.full(len(ess), self.samples)},
        )


def _at_least(samples: int, least: int) -> None:
    if isinstance(samples, bool) or not isinstance(samples, int | np.integer) or samples < least:
        raise ParameterError(f"samples={samples!r}", f"a whole number of draws, at least {least}")


def refuse_without_guide(model: Any, n: int, estimator: Any) -> LogProb | None:
    """A refusal for models that have no log p(x, z) and guide to weigh."""
    if isinstance(model, Latent):
        return None
    name = type(model).__name__
    return LogProb.refuse(
        n, f"{name} has no guide over continuous latents to draw from", "log_prob(x) without by=", by=repr(estimator)
    )


class Weights:
    """Log importance weights of rows whose streams depend on the seed and the row's content alone."""

    def __init__(self, model: Any, x: Any, given: Any, generator: torch.Generator) -> None:
        self.model, self.x, self.given = model, x, given
        seed = np.uint64(generator.initial_seed() % 2**64)
        self.streams = row_hash(
            (row_hash(x) ^ row_hash(np.array([seed]).view(np.int64)[:, None]))[:, None].view(np.int64)
        )

    def __getitem__(self, rows: Tensor) -> "Weights":
        part = object.__new__(Weights)
        part.model, part.x, part.streams = self.model, take(self.x, rows), self.streams[rows.numpy()]
        part.given = None if self.given is None else take(self.given, rows)
        return part

    def draw(self, samples: int, salt: str) -> Tensor:
        """Log weights (samples, n), float64. Another salt gives independent draws."""
        n, dim = len(self.streams), self.model.latent_dim
        cells = max(int(np.prod(getattr(self.model.event, "shape", ()) or (1,))), dim)
        rows = max(1, _CACHE // (cells * min(samples, 64)))
        parts = []
        for start in range(0, n, rows):
            some = torch.arange(start, min(start + rows, n))
            x, given = take(self.x, some), None if self.given is None else take(self.given, some)
            noise = self._noise(self.streams[some.numpy()], samples, dim, salt)
            step = max(1, _CACHE // (cells * len(some)))
            parts.append(torch.cat([self._weigh(x, given, piece) for piece in noise.split(step)]))
        return torch.cat(parts, dim=1)

    def _weigh(self, x: Any, given: Any, noise: Tensor) -> Tensor:
        z, log_q = self.model._propose(x, given, noise)
        return self.model._log_joint(x, z, given).to(torch.float64) - log_q.to(torch.float64)

    @staticmethod
    def _noise(streams: np.ndarray, samples: int, dim: int, salt: str) -> Tensor:
        private = torch.Generator()
        shift = int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest(), "little")
        keys = row_hash((streams ^ np.uint64(shift)).view(np.int64)[:, None])
        draws = [torch.randn(samples, dim, generator=private.manual_seed(int(key))) for key in keys]
        return torch.stack(draws, dim=1)


def log_mean(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight and its delta-method standard error, from (S, n)."""
    samples = len(log_w)
    total = log_w.logsumexp(0)
    shares = torch.where(total.isfinite(), (log_w - total).exp(), 0.0)
    error = (samples / (samples - 1) * (shares - 1 / samples).square().sum(0)).sqrt()
    return total - math.log(samples), torch.where(total.isfinite(), error, math.nan)


def quality(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Effective sample size and Pareto k of each row, from (S, n)."""
    total = log_w.logsumexp(0)
    missed = ~total.isfinite()  # no draw hit the posterior: nothing is known
    shares = torch.where(missed, 1.0, (log_w - total).exp())
    ess = torch.where(missed, 0.0, 1 / shares.square().sum(0))
    return ess, torch.where(missed, math.inf, pareto_k(log_w))


def reliable(ess: Tensor, k: Tensor, samples: int) -> Tensor:
    """Whether a pilot lets a standard error be printed: its Pareto k may be a standard error too low."""
    noise = (1 + k.clamp(min=0)) / math.sqrt(_tail(samples))
    return (ess >= 400) & (k + noise <= min(0.4, 1 - 1 / math.log10(samples)))


def _tail(samples: int) -> int:
    """How many of the largest weights are looked at."""
    return max(1, int(min(0.2 * samples, 3 * math.sqrt(samples))))


def pareto_k(log_w: Tensor) -> Tensor:
    """Shape of a generalised Pareto fitted to each row's largest weights, shape (n,); NaN below 25 draws.

    Zhang and Stephens (2009) with the weak prior of Vehtari et al. (2024), appendix C; 0 where the weights are equal.
    """
    samples = len(log_w)
    tail = _tail(samples)
    if tail < 5:
        return torch.full((log_w.shape[1],), math.nan, dtype=log_w.dtype)
    log_w = torch.nan_to_num(log_w, neginf=-1e300)
    top = log_w.topk(tail + 1, dim=0).values.flip(0)  # ascending; the first is the threshold
    y = ((top[1:] - top[-1]).exp() - (top[0] - top[-1]).exp()).T  # (n, tail), ascending
    flat = y[:, -1] <= 1e-4  # the largest weights are as good as equal: there is no tail
    y = torch.where(flat[:, None], 1.0, y).clamp(min=1e-300)
    grid = 30 + int(math.sqrt(tail))
    quarter = y[:, int(tail / 4 + 0.5) - 1, None].clamp(min=1e-300)
    places = 1 - torch.sqrt(grid / (torch.arange(1, grid + 1, dtype=y.dtype) - 0.5))
    b = places / (3 * quarter) + 1 / y[:, -1:]
    k = _mean_log(b, y)
    fit = tail * ((-b / k).log() - k - 1)
    fit = torch.nan_to_num(fit, nan=-math.inf)
    mean_b = (b * fit.softmax(1)).sum(1, keepdim=True)
    shape = _mean_log(mean_b, y)[:, 0]
    return torch.where(flat, 0.0, (shape * tail + 5) / (tail + 10))


def _mean_log(b: Tensor, y: Tensor) -> Tensor:
    """mean_i log(1 - b y_i) for each b of a row: (n, g), (n, t) -> (n, g)."""
    return torch.stack([torch.log1p(-(b[:, j, None] * y).clamp(max=1 - 1e-12)).mean(1) for j in range(b.shape[1])], 1)
