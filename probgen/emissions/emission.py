"""What every emission is, and where EM starts from."""

import abc
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.events import arguments

__all__ = ["Emission", "start_responsibilities"]

Statistics = dict[str, Tensor]


class Emission(nn.Module, abc.ABC):
    """p(x | state) for K states, over ``width`` cells.

    EM asks three things of it: ``log_prob`` of all states, additive ``statistics`` under responsibilities, and
    ``maximise``, which sets the parameters to the maximiser of the expected (penalised) log-likelihood.
    """

    width: int
    states: int
    filler = 0.0  # a value of the support, standing where a cell is missing and masked

    def with_states(self, states: int) -> Self:
        """The same emission for K states, with parameters still to be set."""
        return type(self)(**{**arguments(self), "states": states})

    @abc.abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x | state) in nats, shape (n, K); missing cells are integrated out, impossible rows are -inf."""

    @abc.abstractmethod
    def cells(self, state: Tensor) -> dist.TorchDistribution:
        """Pyro distribution of the cells, batch shape state.shape (+ (width,) where cells are independent)."""

    @abc.abstractmethod
    def sample(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """One draw for each state, shape (n, width)."""

    @abc.abstractmethod
    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        """Sufficient statistics under responsibilities (n, K); they add up over chunks of rows."""

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

    def prepare(self, x: Tensor) -> None:
        """Looks once at all data before EM: their scale, their margins."""

    def penalty(self) -> Tensor:
        """Log prior of the parameters, in nats, up to a constant."""
        return torch.zeros((), dtype=torch.float64)

    def features(self, x: Tensor) -> Tensor:
        """Cells as points whose Euclidean distance means something, shape (n, f)."""
        scale = _std(x)
        return torch.nan_to_num((x - x.nanmean(0)) / scale)

    def observe(self, name: str, state: Tensor, x: Tensor | None) -> Tensor:
        """The Pyro site(s) of x given the state, with missing cells masked out."""
        cells = self.cells(state)
        if x is not None and x.isnan().any():
            if len(cells.batch_shape) == state.ndim:
                raise ParameterError(
                    "Missing cells under a full covariance in a Pyro program",
                    "complete rows",
                    "log_prob integrates them out",
                )
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
