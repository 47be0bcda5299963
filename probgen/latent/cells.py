"""Kinds of cells that a decoder's numbers can describe; networks see them standardised, so that units do not matter."""

import abc
import math

import torch
from torch import Tensor, nn

from probgen.emissions.discretised import logistic_mass
from probgen.emissions.emission import column_moments

__all__ = [
    "Bernoulli", "Categorical", "Cells", "ContinuousBernoulli", "Grid", "LogNormal", "NegativeBinomial", "Normal",
    "Poisson",
]  # fmt: skip

_LOG_2PI = math.log(2 * math.pi)
_SCALES = 7.0  # e-folds that a scale may lie off the data's
_FAR = 1e4  # scales beyond the other edge, where a cell takes the tail: nothing is left there in float32


class Cells(nn.Module, abc.ABC):
    """p(cell | numbers) for cells of one kind.

    ``ready`` brings data to the units of the networks; ``log_prob`` is in the data's own measure all the same.
    Numbers have shape (..., n, numbers, cells), ready cells (n, cells), NaN where missing.

    Arguments:
        cells: How many.
    """

    numbers: int = 1
    centre: Tensor
    spread: Tensor

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.register_buffer("centre", torch.zeros(cells, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(cells, dtype=torch.float64))

    @abc.abstractmethod
    def measure(self, x: Tensor) -> Tensor:
        """Learns scales from data (n, cells); returns first numbers (numbers, cells) that give each cell its margin."""

    def ready(self, x: Tensor) -> Tensor:
        return x

    @abc.abstractmethod
    def nats(self, p: Tensor, y: Tensor) -> Tensor:
        """log p of complete ready cells, (..., n, cells)."""

    @abc.abstractmethod
    def draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        """Cells in the data's units, (..., n, cells)."""

    @abc.abstractmethod
    def mean(self, p: Tensor) -> Tensor:
        """Their expectation, or the likeliest level."""

    def log_prob(self, p: Tensor, y: Tensor) -> Tensor:
        """Summed over the cells that are there, (..., n)."""
        missing = y.isnan()
        if not bool(missing.any()):
            return self.nats(p, y).sum(-1)
        return torch.where(missing, 0.0, self.nats(p, torch.where(missing, self.centre.to(y.dtype), y))).sum(-1)


class Bernoulli(Cells):
    """0 or 1, by a logit."""

    def measure(self, x: Tensor) -> Tensor:
        seen = (~x.isnan()).sum(0)
        return torch.logit((x.nansum(0) + 0.5) / (seen + 1))[None]

    def nats(self, p: Tensor, y: Tensor) -> Tensor:
        logits = p[..., 0, :]
        return y * logits - nn.functional.softplus(logits)

    def log_prob(self, p: Tensor, y: Tensor) -> Tensor:
        """y . logits - sum softplus(logits), which needs no array of the size of y times draws."""
        if bool(y.isnan().any()):
            return super().log_prob(p, y)
        logits = p[..., 0, :]
        return torch.einsum("...d,...d->...", logits, y) - nn.functional.softplus(logits).sum(-1)

    def draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(p[..., 0, :].sigmoid(), generator=generator)

    def mean(self, p: Tensor) -> Tensor:
        return p[..., 0, :].sigmoid()


class ContinuousBernoulli(Cells):
    """A number in [0, 1] of density l / tanh(l / 2) e^(l x) / (1 + e^l) (Loaiza-Ganem and Cunningham 2019)."""

    def measure(self, x: Tensor) -> Tensor:
        mean = column_moments(x)[0].clamp(0.01, 0.99)
        return (12 * (mean - 0.5)).clamp(-6, 6)[None]

    def nats(self, p: Tensor, y: Tensor) -> Tensor:
        logits = p[..., 0, :]
        near = logits.abs() < 1e-2
        safe = torch.where(near, 1.0, logits)
        norm = torch.where(near, math.log(2) + logits.square() / 12, (safe / torch.tanh(safe / 2)).log())
        return y * logits - nn.functional.softplus(logits) + norm

    def draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        logits = p[..., 0, :].to(torch.float64)
        u = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
        size = logits.abs()  # by its mirror image where negative
        safe = torch.where(size < 1e-6, 1.0, size)
        x = torch.where(size < 1e-6, u, 1 + (u + (1 - u) * (-safe).exp()).log() / safe)
        return torch.where(logits < 0, 1 - x, x).clamp(0, 1)

    def mean(self, p: Tensor) -> Tensor:
        logits = p[..., 0, :].to(torch.float64)
        safe = torch.where(logits.abs() < 1e-3, 1.0, logits)
        return torch.where(logits.abs() < 1e-3, 0.5 + logits / 12, -1 / torch.expm1(-safe) - 1 / safe)


class Normal(Cells):
    """A real number, by its mean and the logarithm of its standard deviation."""

    numbers = 2

    def measure(self, x: Tensor) -> Tensor:
        mean, variance = column_moments(self._real(x))
        self.centre.copy_(mean)
        self.spread.copy_(variance.sqrt())
        return torch.zeros(2, self.cells, dtype=torch.float64)

    def _real(self, x: Tensor) -> Tensor:
        return x

    def ready(self, x: Tensor) -> Tensor:
        return (self._real(x.to(torch.float64)) - self.centre) / self.spread

    def _parts(self, p: Tensor) -> tuple[Tensor, Tensor]:
        return p[..., 0, :], p[..., 1, :].clamp(-_SCALES, _SCALES)

    def nats(self, p: Tensor, y: Tensor) -> Tensor:
        loc, log_scale = self._parts(p)
        return -0.5 * (((y - loc) * (-log_scale).exp()).square() + _LOG_2PI) - log_scale - self._slope(y)

    def _slope(self, y: Tensor) -> Tensor:
        """log d(data) / d(ready)."""
        return self.spread.log().to(y.dtype)

    def draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        loc, log_scale = (part.to(torch.float64) for part in self._parts(p))
        noise = torch.randn(loc.shape, generator=generator, dtype=torch.float64)
        return self.centre + self.spread * (loc + log_scale.exp() * noise)

    def mean(self, p: Tensor) -> Tensor:
        return self.centre + self.spread * self._parts(p)[0].to(torch.float64)


class LogNormal(Normal):
    """A positive number whose logarithm is normal."""

    def _real(self, x: Tensor) -> Tensor:
        return x.clamp(min=torch.finfo(torch.float64).tiny).log()

    def _slope(self, y: Tensor) -> Tensor:
        return (self.spread.log() + self.centre).to(y.dtype) + self.spread.to(y.dtype) * y

    def draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        return super().draw(p, generator).clamp(-700, 700).exp()

    def mean(self, p: Tensor) -> Tensor:
        spread = self.spread * self._parts(p)[1].to(torch.float64).exp()
        return (super().mean(p) + spread.square() / 2).clamp(-700, 700).exp()


class Grid(Cells):
    """A number on a grid: the mass that a logistic, or a mixture of some, puts on the interval around it.

    Arguments:
        step: Of the grid.
        first, last: End cells, which take the tails; None where the grid goes on for ever.
        components: Logistics a cell, of numbers (loc, log scale) each and, of several, a logit.

    Salimans et al. (2017).
    """

    def __init__(
        self, cells: int, step: float, first: float | None = None, last: float | None = None, components: int = 1
    ) -> None:
        super().__init__(cells)
        self.step, self.first, self.last, self.components = step, first, last, components
        self.numbers = 2 if components == 1 else 3 * components

    def measure(self, x: Tensor) -> Tensor:
        mean, variance = column_moments(x)
        std, shared = variance.sqrt(), variance.mean().sqrt().clamp(min=self.step)
        self.centre.copy_(mean)
        self.spread.copy_(torch.maximum(std.clamp(max=shared * 100), 0.1 * shared).clamp(min=self.step / 2))
        log_scale = ((std / 1.8).clamp(min=0.1 * self.step) / self.spread).log()  # a logistic deviates by 1.8 scales
        start = torch.zeros(self.numbers, self.cells, dtype=torch.float64)
        k = self.components
        start[k : 2 * k] = log_scale
        if k > 1:
            start[:k] = torch.linspace(-1, 1, k, dtype=torch.float64)[:, None] * std / self.spread
        return start

    def ready(self, x: Tensor) -> Tensor:
        return (x.to(torch.float64) - self.centre) / self.spread

    def _ends(self, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Where the end cells are."""
        half = (self.step / 2 / self.spread).to(y.dtype)
        first = None if self.first is None else y < self._at(self.first, y) + half
        last = None if self.last is None else y > self._at(self.last, y) - half
        return first, last

    def _at(self, x: float, y: Tensor) -> Tensor:
        return ((x - self.centre) / self.spread).to(y.dtype)

    def nats(self, p: Tensor, y: Tensor) -> Tensor:
        k = self.components
        if k == 1:
            return self._mass(p[..., 0, :], p[..., 1, :], y)
        parts = self._mass(p[..., :k, :], p[..., k : 2 * k, :], y[:, None])
        return (parts + p[..., 2 * k :, :].log_softmax(-2)).logsumexp(-2)

    def _mass(self, loc: Tensor, log_scale: Tensor, y: Tensor) -> Tensor:
        sharp = (-log_scale.clamp(-_SCALES, _SCALES)).exp()
        half = (self.step / 2 / self.spread).to(y.dtype)
        middle = y - loc
        a, b, width = (middle - half) * sharp, (middle + half) * sharp, 2 * half * sharp
        first, last = self._ends(y)
        if first is not None:  # far but finite ends keep gradients free of inf - inf
            a, width = torch.where(first, b.detach().clamp(max=0) - _FAR, a), torch.where(first, _FAR, width)
        if last is not None:
            b, width = torch.where(last, a.detach().clamp(min=0) + _FAR, b), torch.where(last, _FAR, width)
        return logistic_mass(a, b, width)

    def draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        k, p = self.components, p.to(torch.float64)
        if k > 1:
            which = _chosen(p[..., 2 * k :, :], generator)[..., None, :]
            p = torch.cat([p[..., :k, :].gather(-2, which), p[..., k : 2 * k, :].gather(-2, which)], -2)
        u = torch.rand(p[..., 0, :].shape, generator=generator, dtype=torch.float64).clamp(1e-15, 1 - 1e-15)
        y = p[..., 0, :] + p[..., 1, :].clamp(-_SCALES, _SCALES).exp() * torch.logit(u)
        return self._on_grid(self.centre + self.spread * y)

    def _on_grid(self, x: Tensor) -> Tensor:
        steps = (x / self.step).round()
        ends = [None if end is None else round(end / self.step) for end in (self.first, self.last)]
        steps = steps if ends == [None, None] else steps.clamp(*ends)
        return steps * self.step + 0.0  # no -0.0

    def mean(self, p: Tensor) -> Tensor:
        k, p = self.components, p.to(torch.float64)
        loc = p[..., 0, :] if k == 1 else (p[..., :k, :] * p[..., 2 * k :, :].softmax(-2)).sum(-2)
        x = self.centre + self.spread * loc
        return x if self.first is None and self.last is None else x.clamp(self.first, self.last)


class Categorical(Cells):
    """One of some levels, by a logit each."""

    def __init__(self, cells: int, levels: int) -> None:
        super().__init__(cells)
        self.levels = self.numbers = levels

    def measure(self, x: Tensor) -> Tensor:
        counts = torch.stack([(x == level).sum(0) for level in range(self.levels)]).to(torch.float64)
        return ((counts + 1 / self.levels) / (counts.sum(0) + 1)).log()

    def nats(self, p: Tensor, y: Tensor) -> Tensor:
        codes = y.long().expand(*p.shape[:-2], self.cells)
        return p.log_softmax(-2).gather(-2, codes[..., None, :])[..., 0, :]

    def draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        return _chosen(p.to(torch.float64), generator).to(torch.float64)

    def mean(self, p: Tensor) -> Tensor:
        return p.argmax(-2).to(torch.float64)


def _chosen(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A level drawn from logits (..., levels, cells): (..., cells)."""
    below = logits.softmax(-2).cumsum(-2)
    u = torch.rand(below[..., :1, :].shape, generator=generator, dtype=below.dtype)
    return (below < u * below[..., -1:, :]).sum(-2).clamp(max=below.shape[-2] - 1)


class Poisson(Cells):
    """A count, by the logarithm of its mean."""

    def measure(self, x: Tensor) -> Tensor:
        seen = (~x.isnan()).sum(0)
        return ((x.nansum(0) + 0.5) / (seen + 1)).log()[None]

    def nats(self, p: Tensor, y: Tensor) -> Tensor:
        log_mean = p[..., 0, :].clamp(max=60.0).to(torch.float64)
        x = y.to(torch.float64)
        return (x * log_mean - log_mean.exp() - torch.lgamma(x + 1)).to(y.dtype)

    def draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(p[..., 0, :].to(torch.float64).clamp(max=30).exp(), generator=generator)

    def mean(self, p: Tensor) -> Tensor:
        return p[..., 0, :].to(torch.float64).clamp(max=60).exp()


class NegativeBinomial(Poisson):
    """A count more spread than Poisson's, by the logarithms of its mean and of its size r: variance m + m^2 / r."""

    numbers = 2

    def measure(self, x: Tensor) -> Tensor:
        mean, variance = column_moments(x)
        size = mean.square() / (variance - mean).clamp(min=0.01 * mean + 1e-6)
        return torch.cat([super().measure(x), size.clamp(0.05, 1e3).log()[None]])

    def _parts(self, p: Tensor) -> tuple[Tensor, Tensor]:
        return p[..., 0, :].to(torch.float64).clamp(-60, 60), p[..., 1, :].to(torch.float64).clamp(-_SCALES, 12)

    def nats(self, p: Tensor, y: Tensor) -> Tensor:
        log_mean, log_size = self._parts(p)
        x, size, odds = y.to(torch.float64), log_size.exp(), log_mean - log_size
        ways = torch.lgamma(x + size) - torch.lgamma(size) - torch.lgamma(x + 1)
        plus = nn.functional.softplus
        return (ways - size * plus(odds) - x * plus(-odds)).to(y.dtype)

    def draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        log_mean, log_size = self._parts(p)
        rate = torch._standard_gamma(log_size.exp(), generator=generator) * (log_mean - log_size).exp()
        return torch.poisson(rate.clamp(max=1e13), generator=generator)
