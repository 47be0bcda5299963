"""Normalising flows: spline maps to standard normal numbers. Exact for reals, a lower bound for rounded cells."""

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from probgen.bijections import Cell, CellFlow, SplineFlow, Standardise, Structure
from probgen.errors import ParameterError, StructureError
from probgen.estimate import IWAE
from probgen.estimate.weights import standard_normal
from probgen.events import Array, Category, Event, Real, Table, row_hash
from probgen.features import Features
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.nn import reset
from probgen.training import Player, Schedule, of_kept_state, train

__all__ = ["Flow"]

_MOST = 1024  # cells of a row
_WORK = 1 << 19  # numbers in the works at a time: 4 MB


class Flow(GenerativeModel):
    """p(x) = N(f(x); 0, I) |det df/dx|, f a standardisation learned from the data and then monotone splines.

    Exact for reals, positive cells (through the logarithm) and cells in [0, 1] (through normal quantiles). Levels,
    counts, categories and rounded reals are dequantised: P(x) is the flow's mass of the box of unrounded rows v that
    are seen as x, a lower bound by importance weighting with v uniform in the box: P(x) = volume E[p(v)]. There the
    flow is a latent-variable model; its latent z is the place of v in the box, as normal quantiles, one a rounded cell,
    and its guide N(0, I). ``by=IWAE(samples=K)`` averages K draws and is the tighter the larger K (Hoogeboom, Cohen and
    Tomczak 2020), ``by=ELBO(...)`` is the classical bound (Theis et al. 2016). Without ``by`` rows of up to 16 cells
    take 500 draws, longer ones 64. Categories keep the order of their levels, which the splines feel: another order is
    another model.

    Missing cells are refused: the marginal of some cells of a flow has no closed form. Networks train in float32;
    scores and samples are in float64.

    Arguments:
        event: Array or Table.
        context: Array or Table of covariates: p(x | given), with ``given=`` in all three verbs.
        structure: "autoregressive" (sharper; a sample takes as many passes as a row has cells) or "coupling".
        layers: How many spline maps.
        bins: Of each spline.
        hidden: Widths of each map's network.

    Durkan et al. (2019), neural spline flows; Papamakarios et al. (2021) for the family.
    """

    def __init__(
        self,
        event: Event,
        context: Event | None = None,
        structure: Structure = "autoregressive",
        layers: int = 3,
        bins: int = 8,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(event)
        self.context, self.structure, self.layers, self.bins = context, structure, layers, bins
        self.hidden = tuple(hidden)
        cells = _cells(event)
        self.standardise = Standardise(cells)
        self.covariates = None if context is None else _covariates(context)
        width = 0 if self.covariates is None else self.covariates.width
        self.splines = SplineFlow(len(cells), width, structure, layers, bins, self.hidden).double()
        self.rounded = [i for i, cell in enumerate(cells) if cell.discrete]
        if self.rounded:
            self.latent_dim = len(self.rounded)  # with it the flow is a Latent model

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Array | Table):
            return f"its splines take one row of cells, not {type(event).__name__}"
        cells = max(math.prod(event.shape), 1)
        return f"its networks take up to {_MOST} cells, not {cells}" if cells > _MOST else None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        cells = max(math.prod(getattr(event, "shape", ())), 1)
        small = cells <= 16
        defaults: dict[str, Any] = {"bins": 16 if small else 8, "hidden": (64, 64) if small else (256, 256)}
        if cells > 128:
            defaults["structure"] = "coupling"
        return cls(event, **{**defaults, **options})

    @property
    def exact(self) -> bool:
        """Whether no cell is rounded, so that the density itself is the answer."""
        return not self.rounded

    # The Pyro program

    def density(self, given: Tensor | None = None) -> dist.TransformedDistribution:
        """Of unrounded rows of cells, shape (cells,); with covariates, given as (n, columns), a batch of n."""
        dtype = next(self.splines.parameters()).dtype
        seen = None if given is None or self.covariates is None else self.covariates(given).to(dtype)
        loc = torch.zeros(len(self.standardise.cells), dtype=dtype)
        loc = loc if seen is None else loc.expand(len(seen), -1)
        base = dist.Normal(loc, torch.ones_like(loc), validate_args=False).to_event(1)
        return dist.TransformedDistribution(base, [CellFlow(self.standardise, self.splines(seen), dtype)])

    def model(self, x: Tensor | None = None, given: Tensor | None = None, n: int = 1) -> Tensor:
        """Rounded cells: p(x, z) is N(z) times a weight, so that data score under z; without data v is drawn."""
        n = n if x is None else len(x)
        cells = None if x is None else x.reshape(n, -1)
        with pyro.plate("rows", n):
            if self.exact:
                row = pyro.sample("x", self.density(given), obs=cells)
            elif cells is None:
                row = pyro.deterministic("x", self.standardise.round(pyro.sample("v", self.density(given))))
            else:
                z = pyro.sample("z", self._reference(n))
                row = pyro.sample("x", Boxed(self, z, given), obs=cells)
        return row.reshape(*row.shape[:-1], *self.event.shape)  # type: ignore[attr-defined]

    def guide(self, x: Tensor | None = None, given: Tensor | None = None, n: int = 1) -> None:
        if self.exact:
            return
        if x is None:
            raise ParameterError("The guide q(z | x) without x", "the rows to condition on", "guide(x)")
        with pyro.plate("rows", len(x)):
            pyro.sample("z", self._reference(len(x)))

    def _reference(self, n: int) -> dist.TorchDistribution:
        loc = torch.zeros(n, self.latent_dim, dtype=torch.float64)
        return dist.Normal(loc, torch.ones_like(loc), validate_args=False).to_event(1)

    # The same by hand

    def _propose(self, x: Tensor, given: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
        z = noise.to(torch.float64)
        return z, standard_normal(z)

    def _log_joint(self, x: Tensor, z: Tensor, given: Tensor | None) -> Tensor:
        return standard_normal(z) + self._log_weight(x.reshape(len(x), -1), z.to(torch.float64), given)

    def _log_weight(self, cells: Tensor, z: Tensor, given: Tensor | None) -> Tensor:
        """log of volume p(v) at the place z in the boxes of cells: (n, cells), (..., n, latent_dim) -> (..., n)."""
        v, log_volume = self._unrounded(cells, torch.special.ndtr(z))
        return self._nats(v, given) + log_volume

    def _unrounded(self, cells: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (..., n, cells) at shares u (..., n, latent_dim) of the way through their boxes; log-volumes (n,)."""
        low, high = (end[..., self.rounded] for end in self.standardise.intervals(cells))
        v = cells.expand(*u.shape[:-1], -1).clone()
        v[..., self.rounded] = torch.minimum(low + u * (high - low), torch.nextafter(high, low))
        return v, (high - low).log().sum(-1)

    def _sample_joint(self, n: int, given: Tensor | None, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows and the places in their boxes that they were rounded from."""
        v = self._draw(n, given, generator)
        x = self.standardise.round(v)
        low, high = (end[:, self.rounded] for end in self.standardise.intervals(x))
        z = torch.special.ndtri(((v[:, self.rounded] - low) / (high - low)).clamp(1e-15, 1 - 1e-15))
        return x.reshape(n, *self.event.shape), z  # type: ignore[attr-defined]

    def _nats(self, v: Tensor, given: Tensor | None) -> Tensor:
        """log p(v) of unrounded rows (..., n, cells), shape (..., n); in pieces where no gradient is asked for."""
        if torch.is_grad_enabled():
            return self.density(given).log_prob(v)
        rows = v.reshape(-1, v.shape[-1])
        wide = None if given is None else given.expand(*v.shape[:-2], *given.shape).reshape(len(rows), *given.shape[1:])
        parts = []
        for start in range(0, len(rows), self._piece):
            some = slice(start, start + self._piece)
            parts.append(self.density(None if wide is None else wide[some]).log_prob(rows[some]))
        return torch.cat(parts).reshape(v.shape[:-1])

    @property
    def _piece(self) -> int:
        """Rows whose work fits in the cache."""
        return max(16, _WORK // max(6 * self.bins * len(self.standardise.cells), *self.hidden))

    def _log_prob(self, x: Tensor, given: Tensor | None, *, generator: torch.Generator) -> LogProb:
        of = "x" if self.context is None else "x|given"
        if self.exact:
            return LogProb(Kind.EXACT, self._nats(x.reshape(len(x), -1), given), by="change of variables", of=of)
        by = IWAE(500 if len(self.standardise.cells) <= 16 else 64)
        rows, places = _distinct(x, given)
        seen = None if given is None else given[rows]
        return by(self, x[rows], seen, generator=generator)[places].replace(of=of)

    def _sample(self, n: int, given: Tensor | None, *, generator: torch.Generator) -> Tensor:
        """n draws, (n, ...); n for each of m > 1 conditions, (m, n, ...)."""
        if given is None:
            return self.standardise.round(self._draw(n, None, generator)).reshape(n, *self.event.shape)  # type: ignore[attr-defined]
        if len(given) > 1 and isinstance(self.event, Table):
            raise ParameterError(
                f"given= has {len(given)} rows for a Table", "one condition", "Sample condition by condition"
            )
        rows = self.standardise.round(self._draw(len(given) * n, given.repeat_interleave(n, 0), generator))
        lead = (len(given), n) if len(given) > 1 else (n,)
        return rows.reshape(*lead, *self.event.shape)  # type: ignore[attr-defined]

    def _draw(self, rows: int, given: Tensor | None, generator: torch.Generator) -> Tensor:
        cells = len(self.standardise.cells)
        noise = torch.randn(rows, cells, generator=generator, dtype=torch.float64)
        parts = []
        for start in range(0, rows, self._piece):
            some = slice(start, start + self._piece)
            parts.append(self.density(None if given is None else given[some]).transforms[0](noise[some]))
        return torch.cat(parts)

    # Fitting

    def _fit(
        self,
        x: Tensor,
        given: Tensor | None,
        *,
        generator: torch.Generator,
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int = 256,
        learning_rate: float = 5e-3,
        validation: float = 0.1,
        weight_decay: float | None = None,
        patience: int = 12,
        ema: float = 0.0,
        checkpoint: str | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """Maximum likelihood by Adam; rounded cells get fresh uniform noise at each step.

        ``budget`` in seconds, unless ``steps`` is given. ``patience``: evaluations of the held-out rows, of 40, without
        a gain before training stops; the best state is kept, and its objective ends the report's. ``weight_decay``
        None: the fewer rows, the stronger it draws the map towards the standardisation.
        """
        plan = Schedule(
            steps=steps,
            budget=budget,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=min(3.0, 500 / len(x)) if weight_decay is None else weight_decay,
            clip=10.0,
            validation=validation if len(x) >= 50 else 0.0,
            patience=patience,
            grace=0.3,
            ema=ema,
            checkpoint=checkpoint,
            every=every,
            resume=resume,
        )
        cells = x.reshape(len(x), -1)
        light = copy.deepcopy(self)
        light.splines.float()
        if not resume:
            reset(light.splines, generator)
            light.standardise.measure(cells)
            if light.covariates is not None:
                light.covariates.measure(cast(Tensor, given))
        data = cells if given is None else torch.cat([cells, given.reshape(len(given), -1)], 1)
        try:
            players = [Player(_Loss(light), list(light.parameters()))]
            report = train(light, players, data, plan, generator=generator, progress=progress)
        finally:
            self.load_state_dict(light.state_dict())
        return of_kept_state(report, "the splines gained nothing on held-out rows: the model is its standardisation")


class _Loss(nn.Module):
    """Minus the log-density a row of unrounded rows; a Module, so that it can be distributed."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, rows: Tensor, generator: torch.Generator, share: float) -> Tensor:
        flow, width = self.flow, len(self.flow.standardise.cells)
        cells, given = rows[:, :width], rows[:, width:] if rows.shape[1] > width else None
        if flow.exact:
            return -flow.density(given).log_prob(cells).mean()
        u = torch.rand(len(rows), flow.latent_dim, generator=generator, dtype=cells.dtype)
        v, log_volume = flow._unrounded(cells, u)
        return -(flow.density(given).log_prob(v) + log_volume).mean()


def _distinct(x: Tensor, given: Tensor | None) -> tuple[Tensor, np.ndarray]:
    """The first of each set of equal rows, and which of them each row equals: equal rows share draws."""
    parts = [x.reshape(len(x), -1), *([] if given is None else [given.reshape(len(given), -1)])]
    _, rows, places = np.unique(row_hash(torch.cat(parts, 1)), return_index=True, return_inverse=True)
    return torch.from_numpy(rows), places


class Boxed(dist.TorchDistribution):
    """Rounded rows at places z in their boxes: weights whose mean over z ~ N(0, I) is P(x). It scores and never draws.

    Arguments:
        flow: The model.
        z: Places, (..., n, latent_dim).
        given: Covariates, (n, columns).
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, flow: Flow, z: Tensor, given: Tensor | None) -> None:
        self.flow, self.z, self.given = flow, z, given
        super().__init__(z.shape[:-1], torch.Size([len(flow.standardise.cells)]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.flow._log_weight(value, self.z, self.given)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "Boxed":
        return Boxed(self.flow, self.z.expand(*batch_shape, -1), self.given)


def _covariates(context: Event) -> Features:
    """What the maps see of covariates.

    Raises:
        StructureError: the context is no Array or Table, or allows missing cells.
    """
    if isinstance(context, Array | Table) and context.missing:
        raise StructureError(f"context={context!r}", "missing=False: a flow's maps need every covariate")
    return Features(context)


def _cells(event: Event) -> list[Cell]:
    """What each cell of a row holds."""
    if isinstance(event, Table):
        return [_column(column) for column in event.columns.values()]
    array = cast(Array, event)
    if array.levels is not None:
        return [Cell(levels=int(levels)) for levels in array.cell_levels]
    step = None if array.support == "count" else array.resolution
    return [Cell(array.support, None, step)] * max(array.dims, 1)


def _column(column: object) -> Cell:
    if isinstance(column, Category):
        return Cell(levels=len(column.levels))
    if isinstance(column, Real):
        return Cell("positive" if column.positive else "real", None, column.resolution)
    return Cell("count")
