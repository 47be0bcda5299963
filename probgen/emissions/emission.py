"""What every emission is, and where EM starts from."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from probgen.errors import StructureError
from probgen.events import Array, arguments

__all__ = ["Emission", "by_blocks", "column_moments", "start_responsibilities"]

Statistics = dict[str, Tensor]


class Emission(nn.Module, abc.ABC):
    """p(x | state) for K states, over ``width`` cells.

    EM asks three things of it: ``log_prob`` of all states, additive ``statistics`` under responsibilities, and
    ``maximise``, which sets the parameters to the maximiser of the expected (penalised) log-likelihood, or at least
    never lowers it.

    Rows given to ``log_prob``, ``cdf``, ``statistics``, ``prepare``, ``features`` and ``observe`` have
    ``width + covariates`` columns: the emitted cells, then what they depend on.

    Attributes:
        covariates: Columns of inputs of a row; never NaN, except lags before the start of a sequence.
        lags: Earlier steps that an autoregressive emission looks back; its covariates are then lags * width columns,
            step t-1 first, NaN before the start of a sequence.
        additive: Whether statistics add up over chunks of rows; if not, they need all rows at once.
    """

    width: int
    states: int
    covariates: int = 0
    lags: int = 0
    additive: bool = True
    filler = 0.0  # a value of the support, standing where a cell is missing and masked

    def with_states(self, states: int) -> Self:
        """The same emission for K states, with parameters still to be set."""
        return type(self)(**{**arguments(self), "states": states})

    @abc.abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x | state) in nats, shape (n, K); missing cells are integrated out, impossible rows are -inf."""

    def forward(self, x: Tensor) -> Tensor:
        """``log_prob``, so that ``torch.func.functional_call`` can swap the parameters."""
        return self.log_prob(x)

    @abc.abstractmethod
    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        """Pyro distribution of the cells, batch shape state.shape (+ (width,) where cells are independent).

        ``given`` has the covariates, shape (n, covariates), and broadcasts against the states.
        """

    @abc.abstractmethod
    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        """One draw for each state, shape (n, width); ``given`` has the covariates, shape (n, covariates)."""

    @abc.abstractmethod
    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        """Sufficient statistics under responsibilities (n, K); they add up over chunks of rows where ``additive``."""

    @abc.abstractmethod
    def maximise(self, statistics: Statistics) -> list[int]:
        """Sets the parameters; returns the states without data, which keep theirs.

        Raises:
            FitError: a state's data leave a parameter undefined.
        """

    @property
    @abc.abstractmethod
    def n_params(self) -> int:
        """Free parameters of all states."""

    @property
    def event(self) -> Array | None:
        """One step's cells: shape (width,), or () for one cell; None where no Array says it."""
        return self._array()

    def _array(self, **options: Any) -> Array:
        return Array((self.width,) if self.width > 1 else (), **options)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Weakly informative priors of the raw parameters by name, in the scale that ``prepare`` saw.

        Event dimensions cover each parameter's whole shape. Entries that the likelihood ignores have one as well.
        """
        raise self._lacks("priors of its parameters")

    def natural(self) -> dict[str, Tensor]:
        """What the parameters mean, as differentiable functions of the raw ones; states come first."""
        raise self._lacks("interpretable parameters")

    def cdf(self, x: Tensor) -> Tensor:
        """P(X_d <= x_d | state), each cell by itself, shape (n, K, width); NaN where a cell is missing."""
        raise self._lacks("cdf")

    def mean(self, given: Tensor | None = None) -> Tensor:
        """Of each cell, shape (K, width); with covariates, given as (n, covariates): (n, K, width)."""
        raise self._lacks("mean")

    def variance(self, given: Tensor | None = None) -> Tensor:
        """Of each cell by itself, shaped as the mean."""
        raise self._lacks("variance")

    def _lacks(self, what: str) -> StructureError:
        return StructureError(f"{type(self).__name__} has no {what}", "an emission that has", "Choose another emission")

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows as emitted cells (n, width) and covariates (n, covariates), None where there are none."""
        return (x[:, : self.width], x[:, self.width :]) if self.covariates else (x, None)

    def _needs(self, given: Tensor | None) -> Tensor:
        """The covariates, which this emission can't do without.

        Raises:
            StructureError: there are none.
        """
        if given is None:
            raise StructureError(
                f"{type(self).__name__} without its covariates", f"{self.covariates} columns", "Pass given="
            )
        return given

    def prepare(self, x: Tensor) -> None:
        """Looks once at all data before EM: their scale, their margins."""

    def penalty(self) -> Tensor:
        """Log prior of the parameters, in nats, up to a constant."""
        return torch.zeros((), dtype=torch.float64)

    def features(self, x: Tensor) -> Tensor:
        """Cells as points whose Euclidean distance means something, shape (n, f)."""
        x, _ = self.split(x)
        scale = _std(x)
        return torch.nan_to_num((x - x.nanmean(0)) / scale)

    def observe(self, name: str, state: Tensor, x: Tensor | None, given: Tensor | None = None) -> Tensor:
        """The Pyro site(s) of x given the state, with missing cells masked out; ``given`` is for draws (x None)."""
        if x is not None:
            x, given = self.split(x)
        cells = self.cells(state, given)
        if x is not None and x.isnan().any():
            if len(cells.batch_shape) == state.ndim:
                rows = x if given is None else torch.cat([x, given], 1)
                return pyro.sample(name, _Seen(self, state, rows), obs=torch.where(x.isnan(), self.filler, x))
            seen = ~x.isnan()
            return pyro.sample(name, cells.mask(seen).to_event(1), obs=torch.where(seen, x, self.filler))
        event_dims = len(cells.batch_shape) - state.ndim
        return pyro.sample(name, cells.to_event(event_dims), obs=x)

    def __repr__(self) -> str:
        shown = {n: v for n, v in arguments(self).items() if n != "states"}
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in shown.items())})"

    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    __hash__ = nn.Module.__hash__


def by_blocks(score: Callable[[Tensor], Tensor], x: Tensor, work: int) -> Tensor:
    """score(x) of rows, in blocks that fit in the cache where no gradient is asked for; ``work``: numbers a row."""
    if torch.is_grad_enabled():
        return score(x)
    size = max(64, (1 << 15) // work)
    return score(x) if len(x) <= size else torch.cat([score(part) for part in x.split(size)])


class _Seen(dist.TorchDistribution):
    """The seen cells of rows under given states, where their joint distribution can't be masked cell by cell.

    Its value is the rows themselves, so it scores an observation and draws none.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, emission: Emission, state: Tensor, rows: Tensor) -> None:
        self.emission, self.state, self.rows = emission, state, rows
        batch = torch.broadcast_shapes(state.shape, (len(rows),))
        super().__init__(batch, torch.Size([emission.width]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.emission.log_prob(self.rows)[torch.arange(len(self.rows)), self.state]

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "_Seen":
        return _Seen(self.emission, self.state.expand(batch_shape), self.rows)


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of the observed cells, column by column, as the scale of the data: variances are never 0.

    A constant column has the square of its value; a column of zeros the other columns' mean variance, or 1.
    """
    seen = (~x.isnan()).sum(0)
    mean = torch.nan_to_num(torch.nan_to_num(x).sum(0) / seen)
    variance = torch.nan_to_num(x - mean).square().sum(0) / seen.clamp(min=1)
    varies = variance > (1e-14 * mean).square()  # less is the rounding of the mean
    others = variance[varies].mean() if varies.any() else torch.ones((), dtype=x.dtype)
    constant = torch.where(mean != 0, mean.square(), others)
    return mean, torch.where(varies, variance, constant)


def _std(x: Tensor) -> Tensor:
    """Column standard deviations of the observed cells; 1 for constant columns."""
    seen = (~x.isnan()).sum(0).clamp(min=1)
    centred = torch.nan_to_num(x - x.nanmean(0))
    std = (centred.square().sum(0) / seen).sqrt()
    return torch.where(std > 0, std, 1.0)


def start_responsibilities(points: Tensor, states: int, generator: torch.Generator, sweeps: int = 5) -> Tensor:
    """Hard responsibilities (n, K) from k-means++ (Arthur and Vassilvitskii 2007) and a few Lloyd sweeps."""
    chosen = torch.randperm(len(points), generator=generator)[: 500 * states]
    some = points[chosen]
    centres = some[torch.randint(len(some), (1,), generator=generator)]
    nearest = (some - centres).square().sum(1)
    for _ in range(states - 1):
        spread = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
        centres = torch.cat([centres, some[torch.multinomial(spread, 1, generator=generator)]])
        nearest = torch.minimum(nearest, (some - centres[-1]).square().sum(1))
    for _ in range(sweeps):
        hard = nn.functional.one_hot(torch.cdist(some, centres).argmin(1), states).to(points.dtype)
        size = hard.sum(0)
        centres = torch.where(size[:, None] > 0, hard.T @ some / size.clamp(min=1)[:, None], centres)
    return nn.functional.one_hot(torch.cdist(points, centres).argmin(1), states).to(points.dtype)
