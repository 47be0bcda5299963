"""Cells of a row as the coordinates that are noised, and the way back: decoders of slightly noised coordinates."""

import abc
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.emissions.discretised import normal_mass
from probgen.emissions.emission import column_moments

__all__ = ["Block", "Lattice", "Levels", "OneHot", "Reals", "Seen"]

_LOG_2PI = math.log(2 * math.pi)
_EDGE = 1e-6  # of [0, 1], kept from infinity
_TAIL = 1e3  # scales away, where an end cell's tail ends: nothing is left beyond


class Seen:
    """What a decoder is told: y = cos t c(x) + sin t z at the chain's first time t, and the network's view of c(x).

    Arguments:
        y: Coordinates (..., n, width), float64.
        mean, variance: Of c(x) given y: (..., n, width) and (width,).
        t: The time.
    """

    def __init__(self, y: Tensor, mean: Tensor, variance: Tensor, t: float) -> None:
        self.y, self.mean, self.variance, self.t = y, mean, variance, t

    def __getitem__(self, part: slice) -> "Seen":
        return Seen(self.y[..., part], self.mean[..., part], self.variance[part], self.t)


class Block(nn.Module, abc.ABC):
    """Cells of one kind: coordinates c(x) of about unit variance, and p(x | y) at the chain's first time.

    Arguments:
        cells: How many.
        width: Coordinates.
    """

    discrete = True
    centre: Tensor
    spread: Tensor
    deviation: Tensor

    def __init__(self, cells: int, width: int | None = None) -> None:
        super().__init__()
        self.cells, self.width = cells, cells if width is None else width
        for name, start in (("centre", 0.0), ("spread", 1.0), ("deviation", 1.0)):
            self.register_buffer(name, torch.full((self.width,), start, dtype=torch.float64))

    @abc.abstractmethod
    def measure(self, x: Tensor) -> None:
        """Learns centre, spread and the deviation of each coordinate from data (n, cells)."""

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Cells (n, cells) to coordinates (n, width), float64."""

    @abc.abstractmethod
    def nats(self, x: Tensor, seen: Seen) -> Tensor:
        """log p(x | y) in the data's measure, summed over the cells: (..., n)."""

    @abc.abstractmethod
    def draw(self, seen: Seen, generator: torch.Generator) -> Tensor:
        """Cells (n, cells) from p(x | y)."""

    @abc.abstractmethod
    def decode(self, y: Tensor) -> Tensor:
        """Cells at coordinates without noise, (n, cells)."""

    @property
    def gap(self) -> float:
        """The least distance between neighbouring values, in coordinates; infinite for reals."""
        return math.inf

    def _standardise(self, numbers: Tensor, shared: bool) -> None:
        """``shared``: one spread for all cells; those that vary less keep so, down to a hundredth."""
        mean, variance = column_moments(numbers)
        std = numbers.std(0, correction=0)
        spread = std.square().mean().sqrt().expand(len(mean)) if shared else variance.sqrt()
        spread = torch.where(spread > 0, spread, variance.sqrt())
        self.centre.copy_(mean)
        self.spread.copy_(spread)
        self.deviation.copy_((std / spread).clamp(min=0.03) if shared else torch.ones_like(std))


class Reals(Block):
    """Real numbers; positive ones through the logarithm, those in [0, 1] through the logit of 1e-6 + (1 - 2e-6) x."""

    discrete = False

    def __init__(self, cells: int, support: str = "real", shared: bool = False) -> None:
        super().__init__(cells)
        self.support, self.shared = support, shared

    def _smooth(self, x: Tensor) -> Tensor:
        if self.support == "positive":
            return x.clamp(min=torch.finfo(torch.float64).tiny).log()
        return torch.logit(_EDGE + (1 - 2 * _EDGE) * x) if self.support == "unit" else x

    def measure(self, x: Tensor) -> None:
        self._standardise(self._smooth(x), self.shared)

    def encode(self, x: Tensor) -> Tensor:
        return (self._smooth(x.to(torch.float64)) - self.centre) / self.spread

    def log_slope(self, x: Tensor) -> Tensor:
        """log |dc/dx| summed over the cells, (n,)."""
        each = -self.spread.log().expand(x.shape)
        if self.support == "positive":
            each = each - x.clamp(min=torch.finfo(torch.float64).tiny).log()
        if self.support == "unit":
            s = _EDGE + (1 - 2 * _EDGE) * x
            each = each + math.log1p(-2 * _EDGE) - s.log() - torch.log1p(-s)
        return each.sum(-1)

    def nats(self, x: Tensor, seen: Seen) -> Tensor:
        z = (self.encode(x) - seen.mean).square() / seen.variance
        return -0.5 * (z + _LOG_2PI + seen.variance.log()).sum(-1) + self.log_slope(x)

    def draw(self, seen: Seen, generator: torch.Generator) -> Tensor:
        noise = torch.randn(seen.y.shape, generator=generator, dtype=torch.float64)
        return self.decode(seen.mean + seen.variance.sqrt() * noise)

    def decode(self, y: Tensor) -> Tensor:
        numbers = self.centre + self.spread * y.to(torch.float64)
        if self.support == "positive":
            return numbers.clamp(-700, 700).exp()
        if self.support == "unit":
            return ((numbers.sigmoid() - _EDGE) / (1 - 2 * _EDGE)).clamp(0, 1)
        return numbers


class Lattice(Block):
    """Numbers on a grid, without or with ends: the mass that N(y / cos t, tan^2 t) puts on the interval around each.

    Counts go through log(1 + x).

    Arguments:
        step: Of the grid.
        first, last: End cells, which take the tails; None where the grid goes on for ever.
        log: Whether through the logarithm.
    """

    typical: Tensor

    def __init__(
        self, cells: int, step: float, first: float | None = None, last: float | None = None, log: bool = False
    ) -> None:
        super().__init__(cells)
        self.step, self.first, self.last, self.log = step, first, last, log
        self.register_buffer("typical", torch.ones((), dtype=torch.float64))

    def _smooth(self, x: Tensor) -> Tensor:
        return torch.log1p(x.clamp(min=-0.75)) if self.log else x

    def measure(self, x: Tensor) -> None:
        self._standardise(self._smooth(x), False)
        self.typical.copy_(1 + x.mean() if self.log else torch.ones(()))

    @property
    def gap(self) -> float:
        return float((self.step / self.typical / self.spread).min())

    def encode(self, x: Tensor) -> Tensor:
        return (self._smooth(x.to(torch.float64)) - self.centre) / self.spread

    def log_slope(self, v: Tensor) -> Tensor:
        """log |dc/dv| of unrounded cells, summed, (n,)."""
        each = -self.spread.log().expand(v.shape)
        return (each - torch.log1p(v.clamp(min=-0.75)) if self.log else each).sum(-1)

    def nats(self, x: Tensor, seen: Seen) -> Tensor:
        mean, scale = seen.y / math.cos(seen.t), math.tan(seen.t)
        a = (self.encode(x - self.step / 2) - mean) / scale
        b = (self.encode(x + self.step / 2) - mean) / scale
        if self.first is not None:
            a = torch.where(x <= self.first + self.step / 4, b.clamp(max=0) - _TAIL, a)
        if self.last is not None:
            b = torch.where(x >= self.last - self.step / 4, a.clamp(min=0) + _TAIL, b)
        return normal_mass(a, b, b - a).sum(-1)

    def draw(self, seen: Seen, generator: torch.Generator) -> Tensor:
        noise = torch.randn(seen.y.shape, generator=generator, dtype=torch.float64)
        return self.decode(seen.y / math.cos(seen.t) + math.tan(seen.t) * noise)

    def decode(self, y: Tensor) -> Tensor:
        numbers = self.centre + self.spread * y.to(torch.float64)
        numbers = numbers.clamp(max=700).expm1() if self.log else numbers
        ends = [None if end is None else round(end / self.step) for end in (self.first, self.last)]
        steps = (numbers / self.step).round()
        steps = steps if ends == [None, None] else steps.clamp(*ends)
        return steps * self.step + 0.0  # no -0.0


class Levels(Block):
    """Whole numbers 0..levels-1 as one coordinate each: P(k | y) prop. to margin_k N(y; cos t c_k, sin^2 t).

    The margin is the cell's own smoothed histogram: a cell that never varies costs nothing.

    Arguments:
        levels: Of each cell.
        shared: Whether one spread for all cells, as pixels have.
    """

    log_margin: Tensor

    def __init__(self, levels: Sequence[int], shared: bool = False) -> None:
        super().__init__(len(levels))
        self.most, self.shared = max(levels), shared
        counts = torch.tensor([int(k) for k in levels])
        self.register_buffer("allowed", torch.arange(self.most) < counts[:, None], persistent=False)
        self.register_buffer("log_margin", torch.zeros(self.cells, self.most, dtype=torch.float64))

    allowed: Tensor

    def measure(self, x: Tensor) -> None:
        self._standardise(x, self.shared)
        counts = torch.stack([torch.bincount(own.long(), minlength=self.most) for own in x.T]).to(torch.float64)
        margin = torch.where(self.allowed, counts + 1 / self.allowed.sum(1, keepdim=True), 0.0)
        self.log_margin.copy_((margin / margin.sum(1, keepdim=True)).log())

    @property
    def gap(self) -> float:
        return float(1 / self.spread.max())

    def encode(self, x: Tensor) -> Tensor:
        return (x.to(torch.float64) - self.centre) / self.spread

    @property
    def places(self) -> Tensor:
        """c_k of every level, (cells, levels)."""
        return (torch.arange(self.most, dtype=torch.float64) - self.centre[:, None]) / self.spread[:, None]

    def _logits(self, seen: Seen) -> Tensor:
        away = (seen.y[..., None] - math.cos(seen.t) * self.places) / math.sin(seen.t)
        return self.log_margin - 0.5 * away.square()

    def nats(self, x: Tensor, seen: Seen) -> Tensor:
        log_p = self._logits(seen).log_softmax(-1)
        codes = x.long().expand(log_p.shape[:-1])
        return log_p.gather(-1, codes[..., None])[..., 0].sum(-1)

    def draw(self, seen: Seen, generator: torch.Generator) -> Tensor:
        return _chosen(self._logits(seen), generator)

    def log_slope(self, v: Tensor) -> Tensor:
        """log |dc/dv| of unrounded cells, summed, (n,)."""
        return -self.spread.log().expand(v.shape).sum(-1)

    def decode(self, y: Tensor) -> Tensor:
        x = (self.centre + self.spread * y.to(torch.float64)).round().clamp(min=0)
        return torch.minimum(x, self.allowed.sum(1) - 1.0)


class OneHot(Block):
    """Categories as indicators: P(k | y) prop. to margin_k N(y; cos t c_k, sin^2 t), c_k the k-th indicator.

    Arguments:
        cells: How many, all of the same number of levels.
        levels: Of each.
    """

    log_margin: Tensor

    def __init__(self, cells: int, levels: int) -> None:
        super().__init__(cells, cells * levels)
        self.levels = levels
        self.register_buffer("log_margin", torch.zeros(cells, levels, dtype=torch.float64))

    def _indicators(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x.long(), self.levels).to(torch.float64)

    def measure(self, x: Tensor) -> None:
        counts = self._indicators(x).sum(0) + 1 / self.levels
        margin = counts / counts.sum(1, keepdim=True)
        self.log_margin.copy_(margin.log())
        deviation = (margin * (1 - margin)).sqrt()
        spread = deviation.square().mean(1, keepdim=True).sqrt().clamp(min=0.1).expand(-1, self.levels)
        self.centre.copy_(margin.reshape(-1))
        self.spread.copy_(spread.reshape(-1))
        self.deviation.copy_((deviation / spread).reshape(-1).clamp(min=0.03))

    @property
    def gap(self) -> float:
        return math.sqrt(2) / float(self.spread.max())

    def encode(self, x: Tensor) -> Tensor:
        return (self._indicators(x).flatten(1) - self.centre) / self.spread

    def _logits(self, seen: Seen) -> Tensor:
        y, spread = seen.y.unflatten(-1, (self.cells, self.levels)), self.spread.reshape(self.cells, self.levels)
        cos, variance = math.cos(seen.t), math.sin(seen.t) ** 2
        centre = self.centre.reshape(self.cells, self.levels)
        return self.log_margin + (cos * y / spread + cos**2 * centre / spread**2 - 0.5 * cos**2 / spread**2) / variance

    def nats(self, x: Tensor, seen: Seen) -> Tensor:
        log_p = self._logits(seen).log_softmax(-1)
        codes = x.long().expand(log_p.shape[:-1])
        return log_p.gather(-1, codes[..., None])[..., 0].sum(-1)

    def draw(self, seen: Seen, generator: torch.Generator) -> Tensor:
        return _chosen(self._logits(seen), generator)

    def decode(self, y: Tensor) -> Tensor:
        numbers = self.centre + self.spread * y.to(torch.float64)
        return numbers.unflatten(-1, (self.cells, self.levels)).argmax(-1).to(torch.float64)


def _chosen(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A level drawn from logits (..., levels)."""
    below = logits.softmax(-1).cumsum(-1)
    u = torch.rand(below[..., :1].shape, generator=generator, dtype=below.dtype)
    return (below < u * below[..., -1:]).sum(-1).clamp(max=below.shape[-1] - 1).to(torch.float64)
