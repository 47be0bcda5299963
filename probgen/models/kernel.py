"""Kernel density estimates with a cross-validated bandwidth, on reals, levels, rounded reals and categories. Exact."""

import math
import time
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions import Discretised
from probgen.errors import ParameterError
from probgen.events import Array, Category, Count, Event, Real, Table
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel

__all__ = ["KernelDensity"]

_WIDEST = 8192


class KernelDensity(GenerativeModel):
    """p(x) = mean over training rows of a kernel around each. Exact.

    Reals have a normal kernel shaped like the data's covariance, rounded reals and levels the mass of a normal on each
    cell, categories a table that keeps its level; levels and categories mix a little of the margin in. Bandwidth and
    mixing maximise the leave-one-out likelihood.

    Arguments:
        event: Array or Table without counts, every cell observed.
        centres: Largest number of training rows kept as centres; a random subset where there are more.

    Silverman (1986); Aitchison and Aitken (1976) for categories.
    """

    growing = ("points",)
    points: Tensor
    scale: Tensor
    spread: Tensor
    margins: Tensor

    def __init__(self, event: Event, centres: int = 10_000) -> None:
        super().__init__(event)
        if isinstance(centres, bool) or not isinstance(centres, int) or centres < 2:
            raise ParameterError(f"centres={centres!r}", "a whole number, at least 2")
        self.centres = centres
        self.log_bandwidth = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.logit_mixing = nn.Parameter(torch.full((), -3.0, dtype=torch.float64))
        metric, steps, levels = _roles(event)
        self._metric, self._steps, self._levels = metric, steps, levels
        d = metric + len(steps) + len(levels)
        self.register_buffer("points", torch.zeros(2, d, dtype=torch.float64))
        self.register_buffer("scale", torch.eye(metric, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(d - metric, dtype=torch.float64))
        self.register_buffer(
            "margins", torch.zeros(len(levels), max([n for n, _ in levels], default=1), dtype=torch.float64)
        )

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if isinstance(event, Table):
            bad = [n for n, c in event.columns.items() if isinstance(c, Count) or (isinstance(c, Real) and c.positive)]
            return f"column {bad[0]!r} is a count or positive: no kernel here respects that support" if bad else None
        if not isinstance(event, Array):
            return f"it compares rows of cells, not {type(event).__name__}"
        if event.levels is None and event.support != "real":
            return f"no kernel here respects the support {event.support!r}"
        if event.levels is not None and int(event.cell_levels.sum()) > _WIDEST:
            return (
                f"{int(event.cell_levels.sum())} levels over all cells are too many to compare rows (limit {_WIDEST})"
            )
        return None if event.dims <= _WIDEST else f"{event.dims} cells are too many (limit {_WIDEST})"

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)

    def _split(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells in the order metric, rounded, levelled."""
        ordered = cells[:, _order(self.event)]
        return ordered.split([self._metric, len(self._steps), len(self._levels)], dim=1)

    def _tables(self) -> list[Tensor]:
        """Log kernel of each levelled column: row = the centre's level, column = the scored level."""
        mixing = self.logit_mixing.sigmoid()
        tables = []
        for j, (levels, ordered) in enumerate(self._levels):
            grid = torch.arange(levels, dtype=torch.float64)
            if ordered:
                width = self.log_bandwidth.exp() * self.spread[len(self._steps) + j]
                kernel = (
                    Discretised("normal", grid[:, None], width.expand(levels, 1), levels=levels).log_prob(grid).exp()
                )
            else:
                kernel = torch.eye(levels, dtype=torch.float64)
            tables.append(((1 - mixing) * kernel + mixing * self.margins[j, :levels]).log())
        return tables

    def _kernels(self, cells: Tensor) -> Tensor:
        """log kernel of each row around each centre, shape (n, centres)."""
        x, c = self._split(cells), self.points.split([self._metric, len(self._steps), len(self._levels)], dim=1)
        total = torch.zeros(len(cells), len(self.points), dtype=torch.float64)
        if self._metric:
            a, b = (torch.linalg.solve_triangular(self.scale, t.T, upper=False).T for t in (x[0], c[0]))
            h = self.log_bandwidth
            squares = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
            log_det = self.scale.diagonal().log().sum() + self._metric * (h + 0.5 * math.log(2 * math.pi))
            total = total - 0.5 * squares * (-2 * h).exp() - log_det
        for j, step in enumerate(self._steps):
            kernel = Discretised("normal", c[1][:, j], self.log_bandwidth.exp() * self.spread[j], step)
            total = total + kernel.log_prob(x[1][:, j, None])
        if self._levels:
            total = total + self._levelled(x[2], c[2])
        return total

    def _levelled(self, x: Tensor, c: Tensor) -> Tensor:
        """Sum over columns of tables[centre, x], as one matrix product with one-hot centres."""
        rows, hot = [], []
        for j, table in enumerate(self._tables()):
            rows.append(table.T[x[:, j].long()].clamp(min=-1e6))
            hot.append(nn.functional.one_hot(c[:, j].long(), len(table)).to(torch.float64))
        return torch.cat(rows, 1) @ torch.cat(hot, 1).T

    def model(self, x: Tensor | None = None, given: None = None, n: int = 1) -> Tensor:
        n = n if x is None else len(x)
        cells = (None, None, None) if x is None else self._split(x.reshape(n, -1))
        metric, rounded, levelled = cells
        near = self.points.split([self._metric, len(self._steps), len(self._levels)], dim=1)
        h, parts = self.log_bandwidth.exp(), []
        with pyro.plate("rows", n):
            flat = torch.zeros(len(self.points), dtype=torch.float64)
            k = pyro.sample("centre", dist.Categorical(logits=flat), infer={"enumerate": "parallel"})
            if self._metric:
                kernel = dist.MultivariateNormal(near[0][k], scale_tril=h * self.scale)
                parts.append(pyro.sample("x.metric", kernel, obs=metric))
            if self._steps:
                steps = [
                    Discretised("normal", near[1][k][..., j], h * self.spread[j], step)
                    for j, step in enumerate(self._steps)
                ]
                sites = [
                    pyro.sample(f"x.rounded.{j}", s, obs=None if rounded is None else rounded[:, j])
                    for j, s in enumerate(steps)
                ]
                parts.append(torch.stack(sites, -1))
            if self._levels:
                tables = [table[near[2][k][..., j].long()] for j, table in enumerate(self._tables())]
                draws = [
                    pyro.sample(
                        f"x.level.{j}", dist.Categorical(logits=t), obs=None if levelled is None else levelled[:, j]
                    )
                    for j, t in enumerate(tables)
                ]
                parts.append(torch.stack(draws, -1).to(torch.float64))
        return torch.cat(parts, -1)[..., _order(self.event).argsort()]

    @torch.no_grad()
    def _fit(self, x: Tensor, given: None, *, generator: torch.Generator) -> FitReport:
        began, cells = time.perf_counter(), x.reshape(len(x), -1)
        if len(cells) < 2:
            raise ParameterError("1 row", "at least 2 rows: one to leave out, one to stand around it")
        kept = cells[torch.randperm(len(cells), generator=generator)[: self.centres]]
        self.points = torch.cat(self._split(kept), 1)
        self._measure(kept)
        some = torch.randperm(len(kept), generator=generator)[:1500]
        history = [self._leave_one_out(kept, some)]
        log_h, mixing = self._search(kept, some, history)
        self.log_bandwidth.fill_(log_h)
        self.logit_mixing.fill_(mixing)
        notes = (f"{len(kept)} of {len(x)} rows kept as centres",) if len(kept) < len(x) else ()
        objective = (min(history[0], max(history)), max(history))
        return FitReport(objective, len(history), "converged", time.perf_counter() - began, notes=notes)

    def _measure(self, kept: Tensor) -> None:
        """The shape of the kernels: covariance of metric columns, spread of the others, margins of the levels."""
        metric, rounded, levelled = self._split(kept)
        if self._metric:
            covariance = torch.atleast_2d(torch.cov(metric.T))
            ridge = 1e-6 * covariance.diagonal().clamp(min=1e-12 * (1 + metric.square().mean(0)))
            self.scale = torch.linalg.cholesky(covariance + torch.diag(ridge))
        least = torch.tensor([*self._steps, *[1.0] * len(self._levels)], dtype=torch.float64)
        others = torch.cat([rounded, levelled], 1)
        self.spread = torch.maximum((others - others.mean(0)).square().mean(0).sqrt(), 0.3 * least)
        for j, (levels, _) in enumerate(self._levels):
            counts = torch.bincount(levelled[:, j].long(), minlength=levels).to(torch.float64) + 1 / levels
            self.margins[j] = 0
            self.margins[j, :levels] = counts / counts.sum()

    def _search(self, kept: Tensor, some: Tensor, history: list[float]) -> tuple[float, float]:
        """Bandwidth, then mixing, on a grid refined around its best point."""
        best = (0.0, -3.0)
        score = -math.inf
        wide = [math.log(0.05) + i * math.log(60) / 9 for i in range(10)]
        mixings = (-7.0, -5.0, -3.0, -1.5) if self._levels else (-3.0,)
        plans = [[(h, m) for h in wide for m in mixings[1:-1] or mixings]]
        for step in (0.45, 0.2, 0.1):
            for h, m in plans.pop():
                self.log_bandwidth.fill_(h)
                self.logit_mixing.fill_(m)
                history.append(self._leave_one_out(kept, some))
                if history[-1] > score:
                    best, score = (h, m), history[-1]
            around = [
                (best[0] + s * step, best[1] + t * 3 * step)
                for s in (-1, 0, 1)
                for t in ((-1, 0, 1) if self._levels else (0,))
            ]
            plans.append(around)
        return best

    def _leave_one_out(self, kept: Tensor, some: Tensor) -> float:
        """Mean log density of some rows under the kernels of all others."""
        total = 0.0
        for rows in some.split(256):
            kernels = self._kernels(kept[rows])
            kernels[torch.arange(len(rows)), rows] = -math.inf
            total += float(kernels.logsumexp(1).clamp(min=-1e6).sum())
        return total / len(some) - math.log(len(kept) - 1)

    def _log_prob(self, x: Tensor, given: None, *, generator: torch.Generator) -> LogProb:
        cells = x.reshape(len(x), -1)
        size = max(1, (1 << 22) // len(self.points))
        nats = torch.cat([self._kernels(part).logsumexp(1) for part in cells.split(size)]) - math.log(len(self.points))
        return LogProb(Kind.EXACT, nats, by=f"{len(self.points)} kernels summed")

    def _sample(self, n: int, given: None, *, generator: torch.Generator) -> Tensor:
        near = self.points[torch.randint(len(self.points), (n,), generator=generator)]
        metric, rounded, levelled = near.split([self._metric, len(self._steps), len(self._levels)], dim=1)
        h = self.log_bandwidth.exp()
        noise = torch.randn(n, self._metric, generator=generator, dtype=torch.float64)
        parts = [metric + h * noise @ self.scale.T]
        for j, step in enumerate(self._steps):
            u = torch.rand(n, generator=generator, dtype=torch.float64)
            parts.append(Discretised("normal", rounded[:, j], h * self.spread[j], step).draw(u)[:, None])
        for j, table in enumerate(self._tables()):
            parts.append(
                torch.multinomial(table.exp()[levelled[:, j].long()], 1, generator=generator).to(torch.float64)
            )
        return torch.cat(parts, 1)[:, _order(self.event).argsort()].reshape(n, *self.event.shape)  # type: ignore[attr-defined]


def _roles(event: Event) -> tuple[int, list[float], list[tuple[int, bool]]]:
    """Number of metric columns, steps of the rounded ones, (levels, ordered) of the levelled ones."""
    if isinstance(event, Table):
        columns = list(event.columns.values())
        steps = [c.resolution for c in columns if isinstance(c, Real) and c.resolution is not None]
        levels = [(len(c.levels), False) for c in columns if isinstance(c, Category)]
        return len(columns) - len(steps) - len(levels), steps, levels
    width = max(event.dims, 1)  # type: ignore[attr-defined]
    if event.levels is not None:  # type: ignore[attr-defined]
        return 0, [], [(int(n), True) for n in event.cell_levels]  # type: ignore[attr-defined]
    if event.resolution is not None:  # type: ignore[attr-defined]
        return 0, [event.resolution] * width, []  # type: ignore[attr-defined]
    return width, [], []


def _order(event: Event) -> Tensor:
    """Columns of a row in the order metric, rounded, levelled."""
    if not isinstance(event, Table):
        return torch.arange(max(event.dims, 1))  # type: ignore[attr-defined]
    role = [2 if isinstance(c, Category) else int(c.resolution is not None) for c in event.columns.values()]  # type: ignore[attr-defined]
    return torch.tensor(role).argsort(stable=True)
