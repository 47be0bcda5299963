"""Histograms with heavy tails: a density that needs no assumption and is never zero on the support."""

import math
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics

__all__ = ["Histogram", "HistogramDensity"]

_BINS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class HistogramDensity(dist.TorchDistribution):
    """(1 - tail) * piecewise constant + tail * background, cell by cell.

    Arguments:
        edges: Bin edges of each cell, shape (..., B + 1); unused bins at the end have width zero.
        logits: Log masses of the bins, shape (..., B).
        tail: Weight of the background: a Cauchy at the middle, or the uniform distribution where ``bounded``.
        step: Rounding step: log_prob is then the mass of the interval around the value.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real

    def __init__(self, edges: Tensor, logits: Tensor, tail: Tensor, bounded: bool, step: float | None = None) -> None:
        self.edges, self.mass, self.tail, self.bounded, self.step = edges, logits.softmax(-1), tail, bounded, step
        super().__init__(logits.shape[:-1], validate_args=False)

    def _middle(self) -> tuple[Tensor, Tensor]:
        low, high = self.edges[..., 0], self.edges[..., -1]
        return (low + high) / 2, (high - low) / 2

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x)."""
        low, high = self.edges[..., :-1], self.edges[..., 1:]
        inside = ((x[..., None] - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        return (1 - self.tail) * (self.mass * inside).sum(-1) + self.tail * self._background_cdf(x)

    def _background_cdf(self, x: Tensor) -> Tensor:
        centre, half = self._middle()
        if self.bounded:
            return ((x - centre + half) / (2 * half)).clamp(0, 1)
        return 0.5 + torch.atan((x - centre) / half) / math.pi

    def _background(self, x: Tensor) -> Tensor:
        centre, half = self._middle()
        if self.bounded:
            return ((x - centre).abs() <= half) / (2 * half)
        return 1 / (math.pi * half * (1 + ((x - centre) / half).square()))

    def log_prob(self, value: Tensor) -> Tensor:
        if self.step is not None:
            low, high = value - self.step / 2, value + self.step / 2
            return (self.cdf(high) - self.cdf(low)).clamp(min=1e-300).log()
        low, high = self.edges[..., :-1], self.edges[..., 1:]
        last = high == self.edges[..., -1:]
        hit = (
            (value[..., None] >= low) & ((value[..., None] < high) | (last & (value[..., None] == high))) & (high > low)
        )
        # a value on the very last edge belongs to the last bin that has a width
        height = (hit * self.mass / (high - low).clamp(min=1e-300)).sum(-1)
        return ((1 - self.tail) * height + self.tail * self._background(value)).log()

    def icdf(self, u: Tensor) -> Tensor:
        """Quantiles by bisection."""
        centre, half = self._middle()
        reach = half * (1.0 if self.bounded else 1e9)
        low, high = (centre - reach).expand(u.shape).clone(), (centre + reach).expand(u.shape).clone()
        for _ in range(100):
            middle = (low + high) / 2
            below = self.cdf(middle) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def draw(self, u: Tensor) -> Tensor:
        """Values from uniform numbers."""
        x = self.icdf(u)
        return x if self.step is None else torch.round(x / self.step) * self.step

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self.draw(torch.rand(self._extended_shape(sample_shape), dtype=self.mass.dtype))

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "HistogramDensity":
        edges, logits = (t.expand(*batch_shape, t.shape[-1]) for t in (self.edges, self.mass.log()))
        return HistogramDensity(edges, logits, self.tail.expand(batch_shape), self.bounded, self.step)


class Histogram(Emission):
    """Independent real cells with a histogram each; the number of bins maximises the leave-one-out likelihood.

    Arguments:
        width: Cells.
        support: "real", "positive" (bins over log x) or "unit" (bins over [0, 1]).
        step: Rounding step of the data: masses instead of densities.

    A share 1 / (n + 1) of the mass lies under a Cauchy (uniform on [0, 1]), so that no value of the support is
    impossible.
    """

    def __init__(
        self,
        width: int = 1,
        support: Literal["real", "positive", "unit"] = "real",
        step: float | None = None,
        states: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.support, self.step, self.states = width, support, step, states
        bins = _BINS[-1]
        self.logits = nn.Parameter(torch.zeros(states, width, bins, dtype=torch.float64))
        self.register_buffer("edges", torch.linspace(0, 1, bins + 1, dtype=torch.float64).repeat(width, 1))
        self.register_buffer("tail", torch.full((width,), 0.5, dtype=torch.float64))

    def density(self) -> HistogramDensity:
        """Of the (log-transformed, if positive) cells, batch shape (K, width)."""
        shape = (self.states, self.width)
        tail = self.tail.expand(shape)
        return HistogramDensity(self.edges.expand(*shape, -1), self.logits, tail, self.support == "unit", self.step)

    def _inner(self, x: Tensor) -> Tensor:
        return x.log() if self.support == "positive" else x

    def log_prob(self, x: Tensor) -> Tensor:
        seen = ~x.isnan()
        filled = torch.where(seen, x, 0.5)
        nats = self.density().log_prob(self._inner(filled)[:, None])
        if self.support == "positive":
            nats = nats - filled.log()[:, None]
        return torch.where(seen[:, None], nats, 0.0).sum(-1)

    def cells(self, state: Tensor) -> dist.TorchDistribution:
        shape = (*state.shape, self.width)
        inner = HistogramDensity(
            self.edges.expand(*shape, -1),
            self.logits[state],
            self.tail.expand(shape),
            self.support == "unit",
            self.step,
        )
        return (
            dist.TransformedDistribution(inner, dist.transforms.ExpTransform()) if self.support == "positive" else inner
        )

    def sample(self, state: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(len(state), self.width, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        shape = (len(state), self.width)
        inner = HistogramDensity(
            self.edges.expand(*shape, -1),
            self.logits[state],
            self.tail.expand(shape),
            self.support == "unit",
            self.step,
        ).draw(u)
        return inner.exp().clamp(min=torch.finfo(inner.dtype).tiny) if self.support == "positive" else inner

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        inner = self._inner(x)
        edges, tails = [], []
        for cells in inner.T:
            seen = cells[~cells.isnan()]
            edges.append(self._choose_edges(seen))
            tails.append(1 / (len(seen) + 1))
        self.edges, self.tail = torch.stack(edges), torch.tensor(tails, dtype=torch.float64)

    def _choose_edges(self, x: Tensor) -> Tensor:
        """Equal bins over the data's range, as many as leave-one-out likes best; the rest have width zero."""
        if self.support == "unit":
            low, high = 0.0, 1.0
        else:
            low, high = (x.min().item(), x.max().item()) if len(x) else (0.0, 1.0)
            pad = max((high - low) / (2 * max(len(x), 1)), (self.step or 0) / 2, 1e-9 * max(abs(low), abs(high)), 1e-12)
            low, high = low - pad, high + pad
        scores = [self._leave_one_out(x, low, high, bins) for bins in _BINS]
        bins = _BINS[max(range(len(_BINS)), key=scores.__getitem__)]
        used = torch.linspace(low, high, bins + 1, dtype=torch.float64)
        return torch.cat([used, used.new_full((_BINS[-1] - bins,), high)])

    @staticmethod
    def _leave_one_out(x: Tensor, low: float, high: float, bins: int) -> float:
        if len(x) < 2:
            return -bins
        counts = torch.histc(x, bins, low, high)
        # one pseudo-observation spread over the bins keeps a bin of a single row possible
        density = ((counts - 1 + 1 / bins).clamp(min=1e-12) / len(x)).log() - math.log((high - low) / bins)
        return float((counts * density).sum())

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        inner = torch.nan_to_num(self._inner(x))
        place = torch.searchsorted(self.edges[:, 1:].contiguous(), inner.T.contiguous(), right=True).T
        used = (self.edges[:, 1:] > self.edges[:, :-1]).sum(-1)
        place = torch.minimum(place, used - 1)
        seen = (~x.isnan()).to(weights.dtype)
        counts = torch.zeros(self.width * _BINS[-1], weights.shape[1], dtype=weights.dtype)
        flat = (place + torch.arange(self.width) * _BINS[-1]).reshape(-1)
        counts.index_add_(0, flat, (seen[..., None] * weights[:, None]).reshape(-1, weights.shape[1]))
        return {"counts": counts.T.reshape(-1, self.width, _BINS[-1])}

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        used = self.edges[:, 1:] > self.edges[:, :-1]
        counts = statistics["counts"] + used / used.sum(-1, keepdim=True)
        self.logits.copy_(torch.where(used, counts.log(), -torch.inf))
        return (statistics["counts"].sum((1, 2)) <= 1e-8).nonzero()[:, 0].tolist()

    @property
    def n_params(self) -> int:
        return self.states * int(((self.edges[:, 1:] > self.edges[:, :-1]).sum(-1) - 1).sum())
