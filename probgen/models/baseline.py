"""The floor of every comparison: independent columns, and the Gaussian copula over the same margins. Exact."""

import math
import time
from typing import Any, ClassVar, Self, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from probgen import emissions
from probgen.errors import ParameterError
from probgen.events import Array, Category, Count, Event, Panel, Ragged, Real, Series, Table
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel

__all__ = ["GaussianCopula", "Independent"]


def _margin(event: Event) -> emissions.Emission | str:
    """One emission for the cells of one observation (or of one step), histograms for reals."""
    event = event.step if isinstance(event, Series | Panel) else event
    if isinstance(event, Table):
        if rounded := [n for n, c in event.columns.items() if isinstance(c, Real) and c.positive and c.resolution]:
            return f"no histogram here is both positive and rounded: column {rounded[0]!r}"
        return emissions.Product({name: _column(column) for name, column in event.columns.items()})
    if not isinstance(event, Array):
        return f"its columns are numbers or categories, not {type(event).__name__}"
    width = max(event.dims, 1)
    if event.levels is not None:
        return emissions.Categorical(event.levels, width, prior="even")
    if event.support == "count":
        return emissions.Poisson(width)
    if event.resolution is not None and event.support != "real":
        return f"a rounded {event.support} cell has no histogram here; declare support='real'"
    return emissions.Histogram(width, event.support, event.resolution)


def _column(column: object) -> emissions.Emission:
    if isinstance(column, Category):
        return emissions.Categorical(len(column.levels), prior="even")
    if isinstance(column, Count):
        return emissions.Poisson()
    if not isinstance(column, Real):
        raise TypeError(column)
    return emissions.Histogram(1, "positive" if column.positive else "real", column.resolution)


class Independent(GenerativeModel):
    """Every cell on its own: tables for levels and categories, Poisson counts, histograms for reals. Exact.

    Arguments:
        event: Array, Table, or Series or Panel (whose steps are then independent and alike).

    Tables have one pseudo-observation a cell, spread evenly, so that no level is impossible. Missing cells are
    integrated out.
    """

    missing_cells = True

    def __init__(self, event: Event) -> None:
        super().__init__(event)
        self.margin = cast(emissions.Emission, _margin(event))  # suits() has seen that it is one

    @classmethod
    def suits(cls, event: Event) -> str | None:
        margin = _margin(event)
        return margin if isinstance(margin, str) else None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)

    def _rows(self, x: Tensor | Ragged) -> Tensor:
        values = x.values if isinstance(x, Ragged) else x
        return values.reshape(len(values), -1)

    def model(self, x: Any = None, given: None = None, n: int = 1) -> Tensor:
        cells = None if x is None else self._rows(x)
        rows = n if cells is None else len(cells)
        with pyro.plate("rows", rows):
            return self.margin.observe("x", torch.zeros(rows, dtype=torch.int64), cells)

    @torch.no_grad()
    def _fit(self, x: Any, given: None, *, generator: torch.Generator) -> FitReport:
        began, cells = time.perf_counter(), self._rows(x)
        self.margin.prepare(cells)
        history = _climb(self.margin, cells)
        return FitReport(tuple(history), len(history) - 1, "converged", time.perf_counter() - began)

    def _log_prob(self, x: Any, given: None, *, generator: torch.Generator) -> LogProb:
        nats = self._step_nats(x)
        if isinstance(x, Ragged):
            row = torch.repeat_interleave(torch.arange(len(x)), x.lengths)
            nats = torch.zeros(len(x), dtype=nats.dtype).index_add_(0, row, nats)
        return LogProb(Kind.EXACT, nats, by="columns summed")

    def _log_prob_steps(self, x: Ragged, given: None, *, generator: torch.Generator) -> LogProb:
        """The past says nothing: log p(x_t | x_<t) = log p(x_t)."""
        return LogProb(Kind.EXACT, self._step_nats(x), by="columns summed")

    def _step_nats(self, x: Tensor | Ragged) -> Tensor:
        return torch.cat([self.margin.log_prob(part)[:, 0] for part in self._rows(x).split(4096)])

    def _sample(self, n: int, given: None, *, generator: torch.Generator, length: int = 20) -> Any:
        """``length``: steps of each series."""
        sequences = isinstance(self.event, Series | Panel)
        rows = n * length if sequences else n
        cells = self.margin.sample(torch.zeros(rows, dtype=torch.int64), generator)
        values = cells.reshape(rows, *self.event.shape)  # type: ignore[attr-defined]
        return Ragged(values, torch.full((n,), length)) if sequences else values


def _climb(margin: emissions.Emission, cells: Tensor, most: int = 50) -> list[float]:
    """EM of one state: tables and counts are done in a step, histograms share rows with their background."""
    history: list[float] = []
    for _ in range(most):
        total, counts = margin.penalty(), {}  # type: ignore[var-annotated]
        for part in cells.split(max(16, (1 << 16) // cells.shape[1])):
            total = total + margin.log_prob(part).sum()
            for name, value in margin.statistics(part, torch.ones(len(part), 1, dtype=torch.float64)).items():
                counts[name] = counts[name] + value if name in counts else value
        history.append(float(total) / len(cells))
        if len(history) > 2 and history[-1] - history[-2] < 1e-9:
            break
        margin.maximise(counts)
    return history


class CopulaDensity(dist.TorchDistribution):
    """Histogram margins tied by a Gaussian copula, as one Pyro distribution.

    Arguments:
        margin: The margins of all cells.
        positive: Cells scored through their logarithm, shape (d,), bool.
        factor: Cholesky factor of the correlation, shape (d, d).
    """

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.real, 1)

    def __init__(self, margin: emissions.HistogramDensity, positive: Tensor, factor: Tensor) -> None:
        self.margin, self.positive, self.factor = margin, positive, factor
        super().__init__(torch.Size(), torch.Size([len(factor)]), validate_args=False)

    def scores(self, x: Tensor) -> Tensor:
        """Normal scores of cells, shape (n, d)."""
        inner = torch.where(self.positive, x.clamp(min=1e-300).log(), x)
        return torch.special.ndtri(self.margin.cdf(inner).clamp(1e-15, 1 - 1e-15))

    def log_prob(self, value: Tensor) -> Tensor:
        inner = torch.where(self.positive, value.clamp(min=1e-300).log(), value)
        single = self.margin.log_prob(inner).sum(-1) - torch.where(self.positive, inner, 0.0).sum(-1)
        z = self.scores(value)
        white = torch.linalg.solve_triangular(self.factor, z[..., None], upper=False)[..., 0]
        log_det = self.factor.diagonal().log().sum()
        return single - 0.5 * (white.square() - z.square()).sum(-1) - log_det

    def draw(self, noise: Tensor) -> Tensor:
        """Cells from standard normal noise (n, d)."""
        inner = self.margin.draw(torch.special.ndtr(noise @ self.factor.T).clamp(1e-12, 1 - 1e-12))
        return torch.where(self.positive, inner.exp(), inner)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self.draw(torch.randn(self._extended_shape(sample_shape), dtype=self.factor.dtype))

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "CopulaDensity":
        wide = CopulaDensity(self.margin, self.positive, self.factor)
        dist.TorchDistribution.__init__(wide, batch_shape, self.event_shape, validate_args=False)
        return wide


class GaussianCopula(GenerativeModel):
    """Histogram margins whose normal scores are jointly normal. Exact density.

    Arguments:
        event: Array or Table of reals without levels or resolution: a copula density needs continuous margins.

    Sklar (1959); the correlation is that of the normal scores.
    """

    def __init__(self, event: Event) -> None:
        super().__init__(event)
        d = math.prod(event.shape)  # type: ignore[attr-defined]
        self.margin = emissions.Histogram(d, self._bounds(event))
        self.tril = nn.Parameter(torch.zeros(d, d, dtype=torch.float64))

    @staticmethod
    def _bounds(event: Event) -> Any:
        return event.support if isinstance(event, Array) and event.support == "unit" else "real"

    @property
    def positive(self) -> Tensor:
        """Which cells are modelled through their logarithm, shape (d,)."""
        if isinstance(self.event, Table):
            return torch.tensor([getattr(column, "positive", False) for column in self.event.columns.values()])
        return torch.full((self.margin.width,), self.event.support == "positive")  # type: ignore[attr-defined]

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if isinstance(event, Table):
            reals = all(isinstance(c, Real) and c.resolution is None for c in event.columns.values())
            if not reals:
                return "a copula density needs continuous columns without rounding"
        elif not isinstance(event, Array):
            return f"it ties columns together, not {type(event).__name__}"
        elif event.discrete:
            return "a copula density needs continuous cells; on levels it is a sum over 2^d corners"
        d = math.prod(event.shape)
        if d < 2 or d > 1000:
            return f"it ties together 2 to 1000 columns, not {d}"
        return None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)

    def density(self) -> CopulaDensity:
        """The joint density of one row of cells."""
        tril = self.tril.tril(-1)
        # rows of unit length make L L' a correlation matrix
        factor = (tril + torch.eye(len(tril), dtype=tril.dtype)) / (1 + tril.square().sum(1, keepdim=True)).sqrt()
        margin = emissions.HistogramDensity(
            self.margin.edges, self.margin.logits[0], self.margin.tail, self.margin.support == "unit"
        )
        return CopulaDensity(margin, self.positive, factor)

    def model(self, x: Tensor | None = None, given: None = None, n: int = 1) -> Tensor:
        cells = None if x is None else x.reshape(len(x), -1)
        with pyro.plate("rows", n if cells is None else len(cells)):
            return pyro.sample("x", self.density(), obs=cells)

    @torch.no_grad()
    def _fit(self, x: Tensor, given: None, *, generator: torch.Generator) -> FitReport:
        began, cells = time.perf_counter(), x.reshape(len(x), -1)
        if len(cells) < 2:
            raise ParameterError("1 row for a correlation", "at least 2 rows", "Use Independent")
        inner = torch.where(self.positive, cells.log(), cells)
        self.margin.prepare(inner)
        _climb(self.margin, inner)
        before = self.density().log_prob(cells).mean().item()
        scores = self.density().scores(cells)
        scores = (scores - scores.mean(0)) / scores.std(0).clamp(min=1e-12)
        correlation = scores.T @ scores / max(len(x) - 1, 1)
        ridge = 1e-6 + 1 / (len(x) + 1)
        correlation = (1 - ridge) * correlation + ridge * torch.eye(len(correlation), dtype=torch.float64)
        factor = torch.linalg.cholesky(correlation)
        self.tril.copy_((factor / factor.diagonal()[:, None]).tril(-1))
        after = self.density().log_prob(cells).mean().item()
        return FitReport((before, after), 1, "closed form", time.perf_counter() - began)

    def _log_prob(self, x: Tensor, given: None, *, generator: torch.Generator) -> LogProb:
        density = self.density()
        nats = torch.cat([density.log_prob(part) for part in x.reshape(len(x), -1).split(4096)])
        return LogProb(Kind.EXACT, nats, by="copula density")

    def _sample(self, n: int, given: None, *, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, len(self.tril), generator=generator, dtype=torch.float64)
        return self.density().draw(noise).reshape(n, *self.event.shape)  # type: ignore[attr-defined]
