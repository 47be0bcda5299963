"""Any Pyro distribution as an emission."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics
from probgen.errors import FitError, ParameterError, StructureError
from probgen.events import Array

__all__ = ["Program"]

_LOCK = RLock()  # torch's distributions draw from the global generator


class Program(Emission):
    """x | state ~ whatever ``build`` returns: a distribution with the states as its last batch dimension.

    Arguments:
        build: Called with None, returns batch shape (K,) or (1, K); with covariates (n, p), batch shape (n, K). Event
            shape (width,), or () for one cell. The parameters of an nn.Module are registered here and trained; a
            plain function has none, so EM leaves it as it is.
        width: Cells.
        covariates: Columns of inputs, p.
        event: What one step is; None reads it from the support of the distribution.
        states: K; None asks ``build``, which alone decides it.
        steps: Iterations of L-BFGS in an M step; the outcome is kept only if the expected log-likelihood rose.

    ``with_states`` copies a module, with the parameters that it had when the Program was made. Missing cells are
    integrated out where the distribution is an Independent of single cells, else only in rows that miss all. A Program
    can't be saved: the store loads no code.
    """

    additive = False

    def __init__(
        self,
        build: Callable[[Tensor | None], Any],
        width: int = 1,
        covariates: int = 0,
        event: Array | None = None,
        states: int | None = None,
        steps: int = 20,
    ) -> None:
        super().__init__()
        if not callable(build) or width < 1 or covariates < 0 or steps < 1:
            raise ParameterError(
                f"build={build!r}, width={width}, covariates={covariates}, steps={steps}",
                "a callable, width and steps >= 1, covariates >= 0",
            )
        self.build, self.width, self.covariates, self.steps = build, width, covariates, steps
        self._declared = event
        example = self._call(torch.zeros(1, covariates, dtype=torch.float64) if covariates else None, None)
        self.states = example.batch_shape[-1]
        if states is not None and states != self.states:
            raise StructureError(
                f"A program of {self.states} states in a model of {states}", f"{self.states} states",
                "Make the batch dimension that build returns as long as the model's states",
            )  # fmt: skip
        self._support = example.support
        self._first = copy.deepcopy(build.state_dict()) if isinstance(build, nn.Module) else None

    def _call(self, given: Tensor | None, states: int | None) -> Any:
        made = self.build(given)
        shape = getattr(made, "event_shape", None)
        wanted = [(self.width,)] + [()] * (self.width == 1)
        if shape is None or tuple(shape) not in wanted or len(made.batch_shape) not in (1, 2):
            raise StructureError(
                f"build returned {made!r}",
                f"a distribution with batch shape (states,) or (rows, states) and event shape {wanted[-1]}",
                "Independent(..., 1) makes the last batch dimension part of the event",
            )
        if states is not None and made.batch_shape[-1] != states:
            raise StructureError(f"build returned {made.batch_shape[-1]} states", f"{states}, as when it was declared")
        return made

    def distribution(self, given: Tensor | None = None) -> Any:
        """What ``build`` returns, checked."""
        return self._call(self._needs(given) if self.covariates else None, self.states)

    def with_states(self, states: int) -> Self:
        build = self.build
        if isinstance(build, nn.Module) and self._first is not None:
            build = copy.deepcopy(build)
            build.load_state_dict(self._first)
        return type(self)(build, self.width, self.covariates, self._declared, states, self.steps)

    @property
    def event(self) -> Array | None:
        return self._declared if self._declared is not None else self._read_event()

    def _read_event(self) -> Array | None:
        """The event that the support says."""
        support = self._support
        while isinstance(support, torch.distributions.constraints.independent):
            support = support.base_constraint
        name = str(support)
        if name == "Boolean()":
            return self._array(levels=2)
        low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
        if getattr(support, "is_discrete", False):
            if low == 0 and isinstance(high, int):
                return self._array(levels=high + 1)
            return self._array(support="count") if low == 0 and high is None else None
        if low is not None:
            return self._array(support="unit" if high == 1 else "positive") if low == 0 else None
        return self._array()

    def _cellwise(self, made: Any) -> Any:
        """The distribution of the single cells, batch shape (..., K, width); None where the cells are joint."""
        while isinstance(made, torch.distributions.Independent):
            made = made.base_dist
        if made.event_shape:
            return None
        return made

    def log_prob(self, x: Tensor) -> Tensor:
        cells, given = self.split(x)
        seen = ~cells.isnan()
        made = self.distribution(given)
        flat = not made.event_shape
        if seen.all():
            return made.log_prob(cells if flat else cells[:, None]).expand(len(x), self.states)
        single, whole = (made if flat else self._cellwise(made)), seen.all(1)
        if single is None and (seen.any(1) & ~whole).any():
            raise ParameterError(
                f"Missing cells of a joint distribution, {type(made).__name__}",
                "complete rows, or rows that miss all cells",
                "Independent(..., 1) of single cells integrates them out",
            )
        filled = _filled(cells, seen)
        if flat:
            return torch.where(seen, made.log_prob(filled), 0.0).expand(len(x), self.states)
        if single is None:
            return torch.where(whole[:, None], made.log_prob(filled[:, None]), 0.0).expand(len(x), self.states)
        nats = single.log_prob(filled[:, None])
        return torch.where(seen[:, None], nats, 0.0).sum(-1).expand(len(x), self.states)

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        return _Chosen(self, state, given)

    def observe(self, name: str, state: Tensor, x: Tensor | None, given: Tensor | None = None) -> Tensor:
        if x is not None:
            x, given = self.split(x)
        return pyro.sample(name, self.cells(state, given), obs=x)

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        with torch.no_grad(), _drawing(generator):
            made = self.distribution(given)
            rows = made.sample(() if len(made.batch_shape) == 2 and self.covariates else (len(state),))
        rows = rows.reshape(len(state), self.states, self.width).to(torch.float64)
        return rows[torch.arange(len(state)), state]

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Around the values that the program was made with, as wide as they are large, at least 1."""
        found = {}
        for name, parameter in self.named_parameters():
            start = self._first[name.removeprefix("build.")] if self._first is not None else parameter.detach()
            found[name] = dist.Normal(start, 1 + start.abs()).to_event(start.ndim)
        return found

    def natural(self) -> dict[str, Tensor]:
        """The parameters of the program, under its own names."""
        return {name.removeprefix("build."): parameter for name, parameter in self.named_parameters()}

    def cdf(self, x: Tensor) -> Tensor:
        cells, given = self.split(x)
        made = self.distribution(given)
        single = self._cellwise(made)
        if single is None:
            raise self._lacks("cdf of single cells")
        seen = ~cells.isnan()
        value = _filled(cells, seen)
        try:
            below = single.cdf(value if not made.event_shape else value[:, None])
        except NotImplementedError:
            if self.event is None or not self.event.discrete:
                raise self._lacks("cdf") from None
            below = _summed(single, value if not made.event_shape else value[:, None])
        below = below.reshape(len(x), self.states, self.width)
        return torch.where(seen[:, None], below, torch.nan)

    def mean(self, given: Tensor | None = None) -> Tensor:
        return self._shaped(self.distribution(given).mean)

    def variance(self, given: Tensor | None = None) -> Tensor:
        return self._shaped(self.distribution(given).variance)

    def _shaped(self, moment: Tensor) -> Tensor:
        lead = () if not self.covariates else (-1,)
        return moment.reshape(*lead, self.states, self.width)

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        """The rows and weights themselves."""
        return {"x": x, "weights": weights}

    def maximise(self, statistics: Statistics) -> list[int]:
        x, weights = statistics["x"], statistics["weights"].detach()
        empty = (weights.sum(0) <= 1e-8).nonzero()[:, 0].tolist()
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            return empty
        before = [p.detach().clone() for p in trained]
        with torch.enable_grad():
            start = self._loss(x, weights).item()
            end = self._climb(x, weights, trained, start)
        if not end <= start:
            with torch.no_grad():
                for parameter, value in zip(trained, before, strict=True):
                    parameter.copy_(value)
        return empty

    def _loss(self, x: Tensor, weights: Tensor) -> Tensor:
        """Minus the expected log-likelihood in nats a row; impossible rows without weight do not count."""
        nats = self.log_prob(x)
        return -torch.where(weights > 0, weights * nats, 0.0).sum() / weights.sum().clamp(min=1e-8)

    def _climb(self, x: Tensor, weights: Tensor, trained: list[nn.Parameter], start: float) -> float:
        """L-BFGS from where the parameters stand; returns the loss where it ends, infinity where it went astray."""
        if not start < math.inf:
            raise FitError(
                f"The program's expected log-likelihood is {-start}", "a finite number", "Start it nearer the data"
            )
        climber = torch.optim.LBFGS(trained, max_iter=self.steps, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure() -> Tensor:
            climber.zero_grad()
            loss = self._loss(x, weights)
            loss.backward()
            return loss

        try:
            climber.step(closure)  # type: ignore[no-untyped-call]
            return self._loss(x, weights).item()
        except ValueError:  # a distribution refuses its parameters
            return math.inf
        finally:
            climber.zero_grad()

    @property
    def n_params(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def __repr__(self) -> str:
        name = getattr(self.build, "__qualname__", type(self.build).__qualname__)
        inputs = f", covariates={self.covariates}" if self.covariates else ""
        return f"Program({name}, width={self.width}{inputs})"

    def __eq__(self, other: Any) -> bool:
        same = type(self) is type(other) and repr(self) == repr(other)
        return same and type(self.build) is type(other.build) and self._declared == other._declared

    __hash__ = nn.Module.__hash__


class _Chosen(dist.TorchDistribution):
    """A program's cells given states that broadcast against its rows; missing cells are integrated out."""

    arg_constraints = {}  # noqa: RUF012
    support = dist.constraints.independent(dist.constraints.real, 1)

    def __init__(self, program: Program, state: Tensor, given: Tensor | None) -> None:
        self.program, self.given = program, given
        batch = state.shape if given is None else torch.broadcast_shapes(state.shape, given.shape[:-1])
        self.state = state.expand(batch)
        super().__init__(batch, torch.Size([program.width]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(self.state.shape, value.shape[:-1])
        lead = (
            value.shape[:-1] if self.given is None else torch.broadcast_shapes(value.shape[:-1], self.given.shape[:-1])
        )
        rows = value.expand(*lead, -1)
        if self.given is not None:
            rows = torch.cat([rows, self.given.expand(*lead, -1)], -1)
        table = self.program.log_prob(rows.reshape(-1, rows.shape[-1])).reshape(*lead, -1).expand(*shape, -1)
        return table.gather(-1, self.state.expand(shape)[..., None])[..., 0]

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        shape = self._extended_shape(sample_shape)
        state = self.state.expand(shape[:-1])
        given = None if self.given is None else self.given.expand(*state.shape, -1).reshape(state.numel(), -1)
        return self.program.sample(state.reshape(-1), generator, given).reshape(shape)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "_Chosen":
        return _Chosen(self.program, self.state.expand(batch_shape), self.given)


def _filled(cells: Tensor, seen: Tensor) -> Tensor:
    """Missing cells as some value that their column has, so that it lies in the support; 1 in an empty column."""
    some = cells.gather(0, seen.to(torch.uint8).argmax(0, keepdim=True)).nan_to_num(nan=1.0)
    return torch.where(seen, cells, some)


def _summed(single: Any, value: Tensor) -> Tensor:
    """P(X <= value) of whole numbers from 0 on, mass by mass."""
    below = torch.zeros(torch.broadcast_shapes(value.shape, single.batch_shape), dtype=value.dtype)
    for k in range(int(value.max()) + 1):
        mass = single.log_prob(torch.full(single.batch_shape, float(k), dtype=value.dtype)).exp()
        below = below + torch.where(value >= k, mass, 0.0)
    return below


@contextmanager
def _drawing(generator: torch.Generator) -> Iterator[None]:
    """The global generator stands in for a private one, and is then put back."""
    with _LOCK:
        outside = torch.get_rng_state()
        torch.set_rng_state(generator.get_state())
        try:
            yield
            generator.set_state(torch.get_rng_state())
        finally:
            torch.set_rng_state(outside)
