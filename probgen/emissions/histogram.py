"""Histograms with heavy tails: a density that needs no assumption and is never zero on the support."""

import math
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics
from probgen.errors import ParameterError
from probgen.events import Array

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

    def hits(self, x: Tensor) -> Tensor:
        """What a unit of each bin's mass gives x: 1 / width inside it, or the covered share; shape (..., B)."""
        low, high = self.edges[..., :-1], self.edges[..., 1:]
        width = (high - low).clamp(min=1e-300)
        if self.step is not None:
            down, up = x[..., None] - self.step / 2, x[..., None] + self.step / 2
            return (torch.minimum(high, up) - torch.maximum(low, down)).clamp(min=0) / width
        # a value on the very last edge belongs to the last bin that has a width
        last = (high == self.edges[..., -1:]) & (x[..., None] == high)
        return ((x[..., None] >= low) & ((x[..., None] < high) | last) & (high > low)) / width

    def background(self, x: Tensor) -> Tensor:
        """Density of the background at x, or its mass on the interval around x."""
        centre, half = self._middle()
        if self.bounded:
            return ((x - centre).abs() <= half) / (2 * half)
        if self.step is None:
            return 1 / (math.pi * half * (1 + ((x - centre) / half).square()))
        a, b = (x - self.step / 2 - centre) / half, (x + self.step / 2 - centre) / half
        return torch.atan2(self.step / half, 1 + a * b) / math.pi  # the difference of two arcs, without cancellation

    def log_prob(self, value: Tensor) -> Tensor:
        height = (self.hits(value) * self.mass).sum(-1)
        return ((1 - self.tail) * height + self.tail * self.background(value)).log()

    def icdf(self, u: Tensor) -> Tensor:
        """Quantiles: the bin from a table of P(X <= edge), the place in it by Newton's method (for the background bends
        what is a line), and beyond the edges the background's own quantile."""
        shape = torch.broadcast_shapes(u.shape, self.batch_shape)
        rows = u.expand(shape).reshape(-1, *self.batch_shape).movedim(0, -1)  # (*batch, samples)
        table = self._table()
        place = (torch.searchsorted(table, rows.contiguous(), right=True) - 1).clamp(0, self.mass.shape[-1] - 1)
        x = self._inside(rows, place, table)
        beyond = self._beyond(rows)
        x = torch.where((rows < table[..., :1]) | (rows >= table[..., -1:]), beyond, x)
        return x.movedim(-1, 0).reshape(shape)

    def _table(self) -> Tensor:
        """P(X <= edge), (*batch, B + 1)."""
        steps = torch.cat([torch.zeros_like(self.mass[..., :1]), self.mass.cumsum(-1)], -1)
        background = self._background_cdf(self.edges.movedim(-1, 0)).movedim(0, -1)
        return (1 - self.tail[..., None]) * steps + self.tail[..., None] * background

    def _inside(self, u: Tensor, place: Tensor, table: Tensor) -> Tensor:
        """The x of a bin with P(X <= x) = u, (*batch, samples)."""
        edges = self.edges.expand(*self.batch_shape, -1)
        low, high, below, above, mass = (
            values.gather(-1, place)
            for values in (edges[..., :-1], edges[..., 1:], table[..., :-1], table[..., 1:], self.mass)
        )
        width, tail = (high - low).clamp(min=1e-300), self.tail[..., None]
        x = low + width * ((u - below) / (above - below).clamp(min=1e-300)).clamp(0, 1)
        if self.bounded:
            return x
        centre, half = (value[..., None] for value in self._middle())
        start = torch.atan((low - centre) / half)
        for _ in range(6):
            z = (x - centre) / half
            gap = (1 - tail) * mass * (x - low) / width + tail * (torch.atan(z) - start) / math.pi - (u - below)
            slope = (1 - tail) * mass / width + tail / (math.pi * half * (1 + z.square()))
            x = torch.minimum(torch.maximum(x - gap / slope.clamp(min=1e-300), low), high)
        return x

    def _beyond(self, u: Tensor) -> Tensor:
        """The x outside of all bins with P(X <= x) = u, (*batch, samples); no further than 1e9 half ranges."""
        centre, half = (value[..., None] for value in self._middle())
        tail = self.tail[..., None].clamp(min=1e-300)
        low = u < 0.5
        share = (torch.where(low, u, 1 - u) / tail).clamp(0, 0.5)  # of the background, on this side
        if self.bounded:
            return torch.where(low, centre - half, centre + half)
        away = half * (1 / torch.tan(math.pi * share)).clamp(max=1e9)
        return torch.where(low, centre - away, centre + away)

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

    filler = 0.5
    edges: Tensor
    tail: Tensor

    def __init__(
        self,
        width: int = 1,
        support: Literal["real", "positive", "unit"] = "real",
        step: float | None = None,
        states: int = 1,
    ) -> None:
        super().__init__()
        if support not in ("real", "positive", "unit") or (step is not None and support != "real"):
            raise ParameterError(f"support={support!r}, step={step}", "real, positive or unit; a step only with real")
        self.width, self.support, self.step, self.states = width, support, step, states
        bins = _BINS[-1]
        self.logits = nn.Parameter(torch.zeros(states, width, bins, dtype=torch.float64))
        self.register_buffer("edges", torch.linspace(0, 1, bins + 1, dtype=torch.float64).repeat(width, 1))
        self.register_buffer("tail", torch.full((width,), 0.5, dtype=torch.float64))

    @property
    def event(self) -> Array:
        return self._array(support=self.support, resolution=self.step)

    def natural(self) -> dict[str, Tensor]:
        """``probs`` (K, width, bins), of the bins."""
        return {"probs": self.logits.softmax(-1)}

    def cdf(self, x: Tensor) -> Tensor:
        upper = x if self.step is None else ((x / self.step + 1e-9).floor() + 0.5) * self.step
        return self.density().cdf(self._inner(upper)[:, None])

    def density(self) -> HistogramDensity:
        """Of the (log-transformed, if positive) cells, batch shape (K, width)."""
        return self._given(torch.arange(self.states))

    def _inner(self, x: Tensor) -> Tensor:
        return x.log() if self.support == "positive" else x

    def log_prob(self, x: Tensor) -> Tensor:
        seen = ~x.isnan()
        filled = torch.where(seen, x, self.filler)
        nats = self.density().log_prob(self._inner(filled)[:, None])
        if self.support == "positive":
            nats = nats - filled.log()[:, None]
        return torch.where(seen[:, None], nats, 0.0).sum(-1)

    def _given(self, state: Tensor) -> HistogramDensity:
        """Of the inner cells given each state, batch shape state.shape + (width,)."""
        shape = (*state.shape, self.width)
        edges, tail = self.edges.expand(*shape, -1), self.tail.expand(shape)
        return HistogramDensity(edges, self.logits[state], tail, self.support == "unit", self.step)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        inner = self._given(state)
        return (
            dist.TransformedDistribution(inner, dist.transforms.ExpTransform()) if self.support == "positive" else inner
        )

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        u = torch.rand(len(state), self.width, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        inner = (self._given(state) if self.states > 1 else self._given(torch.tensor(0))).draw(u)
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
        self.logits.copy_(self._used().to(torch.float64).log().expand_as(self.logits))

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
        """Expected rows in each bin, given that a row may also come from the background."""
        seen = ~x.isnan()
        inner, density = self._inner(torch.where(seen, x, self.filler))[:, None], self.density()
        shares = (1 - density.tail[..., None]) * density.mass * density.hits(inner)
        total = shares.sum(-1, keepdim=True) + (density.tail * density.background(inner))[..., None]
        return {"counts": torch.einsum("nk,nd,nkdb->kdb", weights, seen.to(x.dtype), shares / total)}

    def _used(self) -> Tensor:
        return self.edges[:, 1:] > self.edges[:, :-1]

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        used, counts = self._used(), statistics["counts"]
        smooth = counts + used / used.sum(-1, keepdim=True)
        empty = counts.sum((1, 2)) <= 1e-8
        fresh = torch.where(used, smooth.log(), -torch.inf)
        self.logits.copy_(torch.where(empty[:, None, None], self.logits, fresh))
        return empty.nonzero()[:, 0].tolist()

    def penalty(self) -> Tensor:
        """One pseudo-observation a cell and state, spread over the bins."""
        used = self._used()
        masses = self.logits.log_softmax(-1)
        return torch.where(used, masses / used.sum(-1, keepdim=True), 0.0).sum()

    @property
    def n_params(self) -> int:
        return self.states * int((self._used().sum(-1) - 1).sum())
