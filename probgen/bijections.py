"""The door to zuko: invertible maps whose log-determinant is known, from cells of any support to normal numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.transforms import _InverseTransform

from probgen.emissions.emission import column_moments
from probgen.errors import MissingExtra, ParameterError
from probgen.nn import Linear

__all__ = ["Cell", "CellFlow", "SplineFlow", "Standardise", "Structure"]

Structure = Literal["autoregressive", "coupling"]
_BOUND = 5.0  # splines bend [-5, 5]; beyond it they are the identity
_FAR = 1e150  # standardised cells end here: their squares are finite
_BINS = 256  # of a table of levels or counts
_NORMAL = 0.5 * math.log(2 * math.pi)
_REACH = 10.0  # what a network sees of a cell, so that an outlier does not carry it off


def _enter() -> Any:
    """``zuko.transforms``; what importing zuko switches off in torch is put back at once.

    zuko 1.6 sets ``Distribution._validate_args = False`` and ``Distribution.arg_constraints = {}`` for every
    distribution of the process, and renames torch's inverse transforms. An earlier import by somebody else stays.

    Raises:
        MissingExtra: zuko is not installed.
    """
    before = {name: Distribution.__dict__[name] for name in ("_validate_args", "arg_constraints")}
    called = _InverseTransform.__name__
    try:
        import zuko.transforms as transforms
    except ImportError as missing:
        raise MissingExtra("zuko", "flow") from missing
    finally:
        for name, value in before.items():
            setattr(Distribution, name, value)
        _InverseTransform.__name__ = called
    return transforms


_zuko = _enter()


class _Masked(Linear):
    """A linear layer some of whose weights are held at zero: ``mask`` (outputs, inputs) is False there."""

    mask: Tensor

    def __init__(self, mask: Tensor, gain: float = 1.0) -> None:
        super().__init__(mask.shape[1], mask.shape[0], gain)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """As of Linear, with the inputs that an output really has."""
        super().reset(generator)
        inputs = self.mask.sum(1, keepdim=True).clamp(min=1)
        self.weight.mul_((self.mask.shape[1] / inputs).sqrt())


class _Layer(nn.Module):
    """One spline layer: a network gives the splines of the cells from the cells that they may see, and the context.

    Arguments:
        order: Of the cells, shape (features,): an autoregressive cell sees those of a lower number; in a coupling the
            cells numbered 1 see those numbered 0, which stay as they are.
        autoregressive: Which of the two.
        context: Numbers that every cell sees.
        bins: Of each spline.
        hidden: Widths of the network.
    """

    def __init__(self, order: Tensor, autoregressive: bool, context: int, bins: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.autoregressive, self.bins = autoregressive, bins
        self.register_buffer("order", order, persistent=False)
        seen = torch.arange(len(order)) if autoregressive else (order == 0).nonzero()[:, 0]
        bent = torch.arange(len(order)) if autoregressive else (order == 1).nonzero()[:, 0]
        # context has number -1, which everything sees
        before = torch.cat([order[seen], order.new_full((context,), -1)])
        first = -1 if context or len(order) == 1 else 0
        inner = max(int(order.max()), first + 1) - first
        layers: list[nn.Module] = []
        for width in hidden:
            after = first + torch.arange(width) % inner
            layers += [_Masked(after[:, None] >= before, 1.6), nn.SiLU()]
            before = after
        last = order[bent].repeat_interleave(3 * bins - 1)
        layers.append(_Masked(last[:, None] > before, 0.0))  # zeros: the layer starts as the identity
        self.network = nn.Sequential(*layers)

    def forward(self, context: Tensor | None) -> Transform:
        """The map of cells (..., features), given context (..., context)."""

        def splines(x: Tensor) -> Transform:
            sees = x.clamp(-_REACH, _REACH)
            if context is not None:
                sees = torch.cat([sees, context.expand(*sees.shape[:-1], -1)], -1)
            raw = self.network(sees).unflatten(-1, (-1, 3 * self.bins - 1))
            parts = raw.split((self.bins, self.bins, self.bins - 1), -1)
            return _zuko.DependentTransform(_zuko.MonotonicRQSTransform(*parts, bound=_BOUND), 1)

        order: Any = self.order
        if self.autoregressive:
            return _zuko.AutoregressiveTransform(splines, passes=len(order))
        return _zuko.CouplingTransform(splines, order == 0)


class SplineFlow(nn.Module):
    """Monotone rational-quadratic splines of cells, whose shapes depend on other cells and on a context.

    Built without drawing numbers, as the identity; ``probgen.nn.reset`` gives the networks their first values.

    Arguments:
        features: Cells.
        context: Numbers that the map is conditioned on.
        structure: "autoregressive": cell after cell, in rising and falling order by turns; its density takes one pass
            and a sample as many as there are cells. "coupling": half of the cells given the other half; one pass each.
        layers: How many maps, one after the other.
        bins: Of each spline.
        hidden: Widths of each layer's network.

    Durkan et al. (2019); the masks are those of Germain et al. (2015), the couplings those of Dinh et al. (2017).
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        structure: Structure = "autoregressive",
        layers: int = 3,
        bins: int = 8,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if structure not in ("autoregressive", "coupling"):
            raise ParameterError(f"structure={structure!r}", "autoregressive or coupling")
        if min(features, layers, *hidden, context + 1) < 1 or bins < 2 or not hidden:
            raise ParameterError(
                f"features={features}, layers={layers}, bins={bins}, hidden={tuple(hidden)}",
                "positive sizes, at least one hidden layer and 2 bins",
            )
        autoregressive = structure == "autoregressive" or features == 1
        orders = [_order(i, features, autoregressive) for i in range(layers)]
        self.of = nn.ModuleList(_Layer(order, autoregressive, context, bins, hidden) for order in orders)

    def forward(self, context: Tensor | None = None) -> Transform:
        """The map from cells (..., features) to normal numbers; ``.call_and_ladj`` gives both, ``.inv`` is back."""
        return _zuko.ComposedTransform(*(layer(context) for layer in self.of))


def _order(i: int, features: int, autoregressive: bool) -> Tensor:
    """Of layer i: a rising or falling order of the cells, or a half of them by one bit of their number."""
    place = torch.arange(features)
    if autoregressive:
        return place.flip(0) if i % 2 else place
    bit = (i // 2) % max(1, (features - 1).bit_length())
    return ((place >> bit) + i) % 2


class CellFlow(Transform):
    """Standard normal numbers to cells: the inverse of a spline flow, then of a standardisation.

    Arguments:
        outer: Module: ``outer(cells)`` gives standardised cells and their log-determinant, ``outer.inverse`` goes back.
        inner: From standardised cells to normal numbers, of ``dtype``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, outer: Any, inner: Transform, dtype: torch.dtype) -> None:
        super().__init__()
        self.outer, self.inner, self.dtype = outer, inner, dtype
        self._last: tuple[Any, Any] = (None, None)

    def _call(self, z: Tensor) -> Tensor:
        return self.outer.inverse(self.inner.inv(z).to(torch.float64))

    def _inverse(self, x: Tensor) -> Tensor:
        z, log_det = self._both(x)
        self._last = (x, log_det)
        return z

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, outer = self.outer(x)
        z, inner = self.inner.call_and_ladj(y.to(self.dtype))  # type: ignore[attr-defined]
        return z, outer + inner

    def log_abs_det_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        return -(self._last[1] if self._last[0] is x else self._both(x)[1])


@dataclass(frozen=True)
class Cell:
    """What one cell holds.

    Arguments:
        support: "real", "positive", "unit" or "count".
        levels: It is a whole number 0..levels-1.
        step: It is rounded to multiples of this.
    """

    support: str = "real"
    levels: int | None = None
    step: float | None = None

    @property
    def tabled(self) -> bool:
        """Whether its distribution starts as a table of masses."""
        return self.levels is not None or self.support == "count"

    @property
    def discrete(self) -> bool:
        """Whether it is rounded: the value stands for an interval."""
        return self.tabled or self.step is not None


class Standardise(nn.Module):
    """Cells of any support to roughly standard normal numbers, one by one, by what ``measure`` learns from data.

    Reals less their mean over their standard deviation; so the logarithms of positive cells, and the normal quantiles
    of those in [0, 1]. Levels and counts by the normal quantile of a piecewise linear distribution function whose
    masses are the smoothed frequencies (counts with an exponential tail): a flow that changes nothing more gives
    exactly the independent tables. Tables with more than 256 levels have 256 bins.

    A discrete cell stands for an interval of unrounded values: level x for [x, x + 1), a value rounded to multiples of
    r for [x - r/2, x + r/2), cut at the ends of the support (the first positive value takes all from 0).
    """

    centre: Tensor
    spread: Tensor
    edges: Tensor
    mass: Tensor
    tail: Tensor
    reach: Tensor
    discrete: Tensor
    positive: Tensor
    unit: Tensor
    step: Tensor

    def __init__(self, cells: Sequence[Cell]) -> None:
        super().__init__()
        self.cells = tuple(cells)
        n, tabled = len(self.cells), [c for c in self.cells if c.tabled]
        self.smooth = [i for i, c in enumerate(self.cells) if not c.tabled]
        self.tabled = [i for i, c in enumerate(self.cells) if c.tabled]
        bins = max((min(c.levels or _BINS, _BINS) for c in tabled), default=1)
        shapes = {"centre": (n,), "spread": (n,), "edges": (len(tabled), bins + 1), "mass": (len(tabled), bins)}
        for name, shape in {**shapes, "tail": (len(tabled),), "reach": (len(tabled),)}.items():
            self.register_buffer(name, torch.ones(shape, dtype=torch.float64))
        masks = {
            "discrete": [c.discrete for c in self.cells],
            "positive": [self.cells[i].support == "positive" for i in self.smooth],
            "unit": [self.cells[i].support == "unit" for i in self.smooth],
        }
        for name, mask in masks.items():
            self.register_buffer(name, torch.tensor(mask, dtype=torch.bool), persistent=False)
        steps = [1.0 if c.tabled else c.step or 0.0 for c in self.cells]
        self.register_buffer("step", torch.tensor(steps, dtype=torch.float64), persistent=False)

    # Intervals

    def intervals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Between what and what the unrounded values of cells (n, d) lie; twice the value where a cell is exact."""
        low, high = x.clone(), x.clone()
        for i, cell in enumerate(self.cells):
            if cell.tabled:
                high[:, i] += 1
            elif cell.step is not None:
                low[:, i] -= cell.step / 2
                high[:, i] += cell.step / 2
                if cell.support == "positive":
                    low[:, i] = torch.where(x[:, i] < 1.5 * cell.step, 0.0, low[:, i])
                if cell.support == "unit":
                    low[:, i].clamp_(min=0.0)
                    high[:, i] = torch.where(x[:, i] >= self._last(cell) - cell.step / 2, 1.0, high[:, i])
        return low, high

    @staticmethod
    def _last(cell: Cell) -> float:
        """The largest multiple of the step in [0, 1]."""
        step = cell.step or 1.0
        return math.floor(1 / step + 1e-6) * step

    def round(self, v: Tensor) -> Tensor:
        """The cells that unrounded values (..., d) are seen as."""
        x = v.clone()
        for i, cell in enumerate(self.cells):
            if cell.tabled:
                x[..., i] = v[..., i].floor().clamp(0, None if cell.levels is None else cell.levels - 1)
            elif cell.step is not None:
                steps = (v[..., i] / cell.step).round()
                if cell.support == "positive":
                    steps = steps.clamp(min=1)
                if cell.support == "unit":
                    steps = steps.clamp(0, round(self._last(cell) / cell.step))
                x[..., i] = steps * cell.step + 0.0  # no -0.0
        return x

    # Learning

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Learns scales and tables from cells (n, d)."""
        low, high = self.intervals(x)
        if self.smooth:
            mean, variance = column_moments(self._link(((low + high) / 2)[:, self.smooth])[0])
            step = self.step[self.smooth] * ~(self.positive | self.unit)
            self.centre[self.smooth] = mean
            self.spread[self.smooth] = (variance + step.square() / 12).sqrt()
        for row, i in enumerate(self.tabled):
            self._tabulate(row, x[:, i], self.cells[i].levels)

    def _tabulate(self, row: int, x: Tensor, levels: int | None) -> None:
        """Smoothed frequencies: one pseudo-observation spread over the levels; for counts another one in the tail."""
        size, top = self.mass.shape[1], levels or int(x.max()) + 1
        if top <= size:
            edges = torch.arange(top + 1, dtype=torch.float64)
        else:
            shares = torch.linspace(0, 1, size + 1, dtype=torch.float64)
            quantiles = (torch.quantile(x, shares) if levels is None else shares * top).floor()
            quantiles[0], quantiles[-1] = 0, top
            edges = quantiles.unique()
        counts = torch.bincount(torch.searchsorted(edges, x.contiguous(), right=True) - 1, minlength=len(edges) - 1)
        masses = counts + edges.diff() / top
        self.edges[row] = torch.cat([edges, edges.new_full((size + 1 - len(edges),), top)])
        self.tail[row] = 0.0 if levels is not None else 1 / (masses.sum() + 1)
        self.mass[row] = 0.0
        self.mass[row, : len(masses)] = (1 - self.tail[row]) * masses / masses.sum()
        self.reach[row] = max(float(x.std(correction=0)), 1.0)

    # The map

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised cells (..., d) and the log-determinant (...), of unrounded cells."""
        y = torch.empty_like(v)
        log_det = torch.zeros(v.shape[:-1], dtype=v.dtype)
        if self.smooth:
            link, slope = self._link(v[..., self.smooth])
            spread = self.spread[self.smooth]
            y[..., self.smooth] = ((link - self.centre[self.smooth]) / spread).clamp(-_FAR, _FAR)
            log_det = log_det + (slope - spread.log()).sum(-1)
        if self.tabled:
            y[..., self.tabled], slope = self._quantiles(v[..., self.tabled])
            log_det = log_det + slope.sum(-1)
        return y, log_det

    def inverse(self, y: Tensor) -> Tensor:
        """Unrounded cells of standardised ones; none outside the support."""
        v = torch.empty_like(y)
        if self.smooth:
            link = y[..., self.smooth] * self.spread[self.smooth] + self.centre[self.smooth]
            least = torch.finfo(y.dtype).tiny
            grown = torch.where(self.positive, link, 0.0).exp().clamp(least, 1 / least)
            inside = torch.where(self.unit, torch.special.ndtr(link), link)
            v[..., self.smooth] = torch.where(self.positive, grown, inside)
        if self.tabled:
            v[..., self.tabled] = self._values(y[..., self.tabled])
        return v

    def _link(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth cells on the real line, and the logarithm of the slope."""
        log = torch.where(self.positive, v, 1.0).clamp(min=torch.finfo(v.dtype).tiny).log()
        quantile = torch.special.ndtri(torch.where(self.unit, v, 0.5).clamp(1e-15, 1 - 1e-15))
        link = torch.where(self.positive, log, torch.where(self.unit, quantile, v))
        return link, torch.where(self.unit, quantile.square() / 2 + _NORMAL, -log)

    def _quantiles(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Normal quantiles of tabled cells, and the logarithm of the slope: of the density, less the normal one's."""
        flat = v.reshape(-1, v.shape[-1]).T.contiguous()
        bin_ = (torch.searchsorted(self.edges, flat.detach(), right=True) - 1).clamp(min=0)
        bin_ = torch.minimum(bin_, (self.mass > 0).sum(1, keepdim=True) - 1)
        mass, low, high = (t.gather(1, bin_) for t in (self.mass, self.edges[:, :-1], self.edges[:, 1:]))
        below, above = self._cumulative()
        share = ((flat - low) / (high - low)).clamp(0, 1)
        down, up = below.gather(1, bin_) + mass * share, above.gather(1, bin_) + mass * (1 - share)
        density = mass.log() - (high - low).log()
        beyond = (flat >= self.edges[:, -1:]) & (self.tail[:, None] > 0)
        excess = (flat - self.edges[:, -1:]).clamp(min=0) / self.reach[:, None]
        log_tail = self.tail[:, None].clamp(min=1e-300).log() - excess
        lower = down < up
        y = _quantile(torch.where(lower, down, up).clamp(1e-300, 0.5).log())
        y = torch.where(lower, y, -y)
        y = torch.where(beyond, -_quantile(torch.where(beyond, log_tail, -1.0)), y)
        density = torch.where(beyond, log_tail - self.reach.log()[:, None], density)
        slope = density + y.square() / 2 + _NORMAL
        return y.T.reshape(v.shape), slope.T.reshape(v.shape)

    def _cumulative(self) -> tuple[Tensor, Tensor]:
        """Masses below and above each bin, (cells, bins)."""
        total = self.mass.cumsum(1)
        above = (self.mass.flip(1).cumsum(1).flip(1) - self.mass) + self.tail[:, None]
        return total - self.mass, above

    def _values(self, y: Tensor) -> Tensor:
        """The inverse of ``_quantiles``."""
        flat = y.reshape(-1, y.shape[-1]).T.contiguous()
        down, up = torch.special.ndtr(flat), torch.special.ndtr(-flat)
        below, above = self._cumulative()
        bin_ = torch.searchsorted((below + self.mass).contiguous(), down)
        bin_ = torch.minimum(bin_, (self.mass > 0).sum(1, keepdim=True) - 1)
        mass, low, high = (t.gather(1, bin_) for t in (self.mass, self.edges[:, :-1], self.edges[:, 1:]))
        share = torch.where(flat < 0, (down - below.gather(1, bin_)) / mass, 1 - (up - above.gather(1, bin_)) / mass)
        v = torch.minimum(low + share.clamp(0, 1) * (high - low), torch.nextafter(high, low))
        beyond = up < self.tail[:, None]
        log_tail = self.tail[:, None].clamp(min=1e-300).log()
        far = self.edges[:, -1:] + self.reach[:, None] * (log_tail - torch.special.log_ndtr(-flat)).clamp(min=0)
        return torch.where(beyond, far, v).T.reshape(y.shape)


def _quantile(log_p: Tensor) -> Tensor:
    """y <= 0 with log Phi(y) = log_p <= log 0.5, also where p underflows (then by Newton's method)."""
    near = torch.special.ndtri(log_p.clamp(min=-600.0).exp())
    target = log_p.clamp(max=-600.0)
    far = -(-2 * target).sqrt()
    for _ in range(4):
        far = far + (torch.special.log_ndtr(far) - target) / (far + 1 / far)
    return torch.where(log_p < -600, far, near)
