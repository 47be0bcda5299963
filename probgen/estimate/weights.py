"""Importance weights under a guide: each row's own draws, what they say of log p(x), and when to trust the error."""

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.events import row_hash, take
from probgen.logprob import LogProb
from probgen.model import Latent

__all__ = [
    "Frame",
    "Weights",
    "at_least",
    "call",
    "log_mean",
    "pareto_k",
    "quality",
    "refuse_without_guide",
    "reliable",
    "standard_normal",
]

_CACHE = 1 << 20  # cells of work at a time: about 4 MB of float32
_LOG_2PI = math.log(2 * math.pi)
_FACTORS = (1.0, 1.1, 1.2, 1.35, 1.5)
WIDENINGS = 4  # one after the other, at most
WIDEST = _FACTORS[-1] ** WIDENINGS


def at_least(name: str, value: Any, least: int) -> None:
    """Raises ParameterError unless value is a whole number, at least that large."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name}={value!r}", f"a whole number, at least {least}")


def call(estimator: Any, *always: str) -> str:
    """The constructor call, without the arguments that have their defaults, some excepted."""
    shown = [f for f in fields(estimator) if f.init]
    shown = [f for f in shown if f.name in always or getattr(estimator, f.name) != f.default]
    return f"{type(estimator).__name__}({', '.join(f'{f.name}={getattr(estimator, f.name)!r}' for f in shown)})"


def refuse_without_guide(model: Any, n: int, estimator: Any) -> LogProb | None:
    """A refusal for models that have no log p(x, z) and guide to weigh."""
    if isinstance(model, Latent):
        return None
    name = type(model).__name__
    return LogProb.refuse(
        n, f"{name} has no guide over continuous latents to draw from", "log_prob(x) without by=", by=repr(estimator)
    )


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats, float64, without the last dimension."""
    return -0.5 * (z.to(torch.float64).square() + _LOG_2PI).sum(-1)


class Frame(NamedTuple):
    """Another normal in the guide's noise, a row: N(centre, factor factor^T), (n, D) and (n, D, D), float64."""

    centre: Tensor
    factor: Tensor

    def move(self, noise: Tensor) -> Tensor:
        """Its draws from standard normal noise (S, n, D)."""
        return self.centre + torch.einsum("nij,snj->sni", self.factor, noise.to(torch.float64))

    @property
    def log_volume(self) -> Tensor:
        """log |det factor|, (n,)."""
        return torch.linalg.slogdet(self.factor).logabsdet


class Weights:
    """Log importance weights of rows whose streams depend on the seed and the row's content alone.

    Everything happens in the guide's noise u, where the guide is N(0, I): log w(u) = log p(x, z(u)) - log q(z(u) | x).
    With a frame the guide is another normal, and the noise is that of the frame.

    Arguments:
        model: Latent.
        x, given: Checked rows.
        generator: Only its seed is used.
    """

    def __init__(self, model: Any, x: Any, given: Any, generator: torch.Generator) -> None:
        self.model, self.x, self.given = model, x, given
        self.frame: Frame | None = None
        self.streams = np.zeros(0, np.uint64) if not len(x) else _mixed(row_hash(x), generator.initial_seed())

    def __len__(self) -> int:
        return len(self.streams)

    def __getitem__(self, rows: Tensor) -> "Weights":
        part = object.__new__(Weights)
        part.model, part.x, part.streams = self.model, take(self.x, rows), self.streams[rows.numpy()]
        part.given = None if self.given is None else take(self.given, rows)
        part.frame = None if self.frame is None else Frame(self.frame.centre[rows], self.frame.factor[rows])
        return part

    def framed(self, frame: Frame) -> "Weights":
        """The same rows and streams with another guide."""
        other = copy.copy(self)
        other.frame = frame
        return other

    @property
    def cells(self) -> int:
        """Numbers that one draw of one row costs: the model's ``draw_cost``, or the cells of its event."""
        if known := getattr(self.model, "draw_cost", None):
            return known
        return max(int(np.prod(getattr(self.model.event, "shape", ()) or (1,))), self.model.latent_dim)

    def blocks(self, draws: int, most: int = 1 << 30) -> Iterator[Tensor]:
        """Row numbers in pieces whose work fits in the cache."""
        rows = min(max(1, _CACHE // (self.cells * draws)), most)
        return (some for some in torch.arange(len(self)).split(rows) if len(some))

    def draw(self, samples: int, salt: str, scale: Tensor | None = None) -> Tensor:
        """Log weights (samples, n), float64. Another salt gives independent draws.

        Arguments:
            scale: Widens the guide's noise, (n, latent_dim).
        """
        parts = [torch.zeros(samples, 0, dtype=torch.float64)]
        for rows in self.blocks(min(samples, 64)):
            part, own = self[rows], None if scale is None else scale[rows]
            step = max(1, _CACHE // (self.cells * len(rows)))
            pieces = part.noise(samples, salt).split(step)
            parts.append(torch.cat([part.at(piece, own) for piece in pieces]))
        return torch.cat(parts, dim=1)

    def at(self, noise: Tensor, scale: Tensor | None = None) -> Tensor:
        """Log weights of noise (S, n, latent_dim) under the guide, or under one wider by ``scale``."""
        u = noise if scale is None else noise * scale
        z, log_q = self._propose(u)
        log_w = self.model._log_joint(self.x, z, self.given).to(torch.float64) - log_q
        return log_w if scale is None else log_w + standard_normal(u) - standard_normal(noise) + scale.log().sum(-1)

    def log_q(self, noise: Tensor, scale: Tensor | None = None) -> Tensor:
        """log q(z(noise) | x) of the guide, or of one wider by ``scale``, (S, n), float64."""
        log_q = self._propose(noise)[1]
        if scale is None:
            return log_q
        return log_q - standard_normal(noise) + standard_normal(noise / scale) - scale.log().sum(-1)

    def noise(self, samples: int, salt: str) -> Tensor:
        """Standard normal noise of each row's own stream, (samples, n, latent_dim), float32."""
        dim, private = self.model.latent_dim, torch.Generator()
        draws = [
            torch.randn(samples, dim, generator=private.manual_seed(int(key)), dtype=torch.float32)
            for key in self.keys(salt)
        ]
        return torch.stack(draws, dim=1)

    def keys(self, salt: str) -> np.ndarray:
        """Seeds of the rows' streams of that name, (n,), uint64."""
        shift = int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest(), "little")
        return row_hash((self.streams ^ np.uint64(shift)).view(np.int64)[:, None])

    def noise_of(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The noise that the guide turns into z, (S, n, latent_dim), and whether it was found, (S, n).

        Newton's steps with the map's slope at zero noise: one is enough where the map is affine, as of every normal
        guide.
        """
        zero = torch.zeros(1, len(self), self.model.latent_dim, dtype=torch.float64)
        slope = self._slope(zero)
        noise, wanted = zero.expand(z.shape), z.to(torch.float64)
        spread = slope.norm(dim=-1)
        for _ in range(4):
            missing = wanted - self.place(noise)
            noise = noise + torch.linalg.solve(slope, missing[..., None])[..., 0]
        missing = (wanted - self.place(noise)).abs()
        found = missing <= 1e-3 * spread + 1e-5 * wanted.abs()
        return noise.nan_to_num(), found.all(-1)

    def place(self, noise: Tensor) -> Tensor:
        """z(noise), (S, n, latent_dim), float64."""
        return self._propose(noise)[0].to(torch.float64)

    def _propose(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z(noise) in the model's own type, and log q(z | x), (S, n), float64."""
        if self.frame is None:
            z, log_q = self.model._propose(self.x, self.given, noise)
            return z, log_q.to(torch.float64)
        u = self.frame.move(noise)
        z, log_q = self.model._propose(self.x, self.given, u)
        return z, log_q.to(torch.float64) - standard_normal(u) + standard_normal(noise) - self.frame.log_volume

    @torch.enable_grad()
    def _slope(self, noise: Tensor) -> Tensor:
        """dz/du of each row at one noise (1, n, D): (n, D, D)."""
        noise = noise.clone().requires_grad_()
        z = self.place(noise)
        rows = [torch.autograd.grad(z[0, :, d].sum(), noise, retain_graph=True)[0][0] for d in range(z.shape[-1])]
        return torch.stack(rows, dim=1)

    def widening(self, samples: int) -> Tensor:
        """A factor for each row's noise on its active latents, (n, latent_dim), that makes the weights vary least.

        It is one of 1, 1.1, 1.2, 1.35 and 1.5, by draws of the widest, which see the tails that a narrow guide hides;
        where that is 1.5, again from there, up to four times. A latent is active where the guide is narrower than
        nine tenths of a standard normal.
        """
        scale = torch.ones(len(self), self.model.latent_dim, dtype=torch.float64)
        rows = torch.arange(len(self))
        for i in range(WIDENINGS if len(self) else 0):
            factor = torch.cat([self[rows[r]]._widen(scale[rows[r]], samples, i) for r in self[rows].blocks(samples)])
            scale[rows] *= factor
            rows = rows[factor.amax(1) == _FACTORS[-1]]
            if not len(rows):
                break
        return scale

    def _widen(self, scale: Tensor, samples: int, salt: int) -> Tensor:
        u = self.noise(samples, f"widening{salt}")
        active = self.place(u).std(0) < 0.9
        scales = torch.stack([scale * torch.where(active, factor, 1.0) for factor in _FACTORS])
        log_f, wide = self.at(u, scales[-1]), u * scales[-1]
        log_q = [standard_normal(wide / own) - own.log().sum(-1) for own in scales]
        second = torch.stack([(2 * log_f + log_q[-1] - own).logsumexp(0) for own in log_q])  # moment of each one's w
        best = second.nan_to_num(nan=math.inf).argmin(0)
        return scales[best, torch.arange(len(self))] / scale


def _mixed(hashes: np.ndarray, seed: int) -> np.ndarray:
    own = row_hash(np.array([seed % 2**64], np.uint64).view(np.int64)[:, None])
    return row_hash((hashes ^ own)[:, None].view(np.int64))


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
