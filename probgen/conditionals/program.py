"""Any Pyro distribution whose parameters are a function of the parents."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.conditionals.conditional import Conditional
from probgen.emissions.program import _drawing
from probgen.errors import FitError, ParameterError, StructureError
from probgen.events import Column, Real

__all__ = ["Program"]

_OFF = 1e-6


class Program(Conditional):
    """child | parents ~ whatever ``module`` returns.

    Arguments:
        module: Maps parents (..., P), float64, codes of categories, to a Pyro (or torch) distribution of batch shape
            (...) and event shape (). A category's child takes its codes as values: Bernoulli, Categorical. The
            parameters of an nn.Module are trained; ``bind`` makes a float64 copy of it. A function has none.
        steps: Iterations of L-BFGS in an M step; the outcome is kept only if the expected log-likelihood rose.

    Values outside the distribution's support have probability 0. A Program can't be saved: the store loads no code.
    """

    def __init__(self, module: Callable[[Tensor], Any], steps: int = 20) -> None:
        super().__init__()
        if not callable(module) or isinstance(module, type) or steps < 1:
            raise ParameterError(f"module={module!r}, steps={steps}", "a callable of the parents, steps >= 1")
        self.module, self.steps = module, steps

    def suits(self, child: Column, parents: Sequence[Column]) -> str | None:
        if isinstance(child, Real) and child.resolution is not None:
            return "rounded cells have interval masses: declare Real() for a density"
        return None

    def _build(self) -> None:
        if isinstance(self.module, nn.Module):
            self.module = copy.deepcopy(self.module).double()
        self._first = {name: value.detach().clone() for name, value in self.named_parameters()}
        with torch.no_grad():
            self._examine()

    def _examine(self) -> None:
        """Refuses a distribution that is no conditional of this child, on parents that are 1 where continuous."""
        ones = torch.ones(1, len(self.parents), dtype=torch.float64)
        made = self.cells(self.grid(ones))
        if not self.discrete:
            whole = bool(getattr(made.support, "is_discrete", False))
            if whole == isinstance(self.child, Real) and not isinstance(made, dist.Delta):
                raise StructureError(f"{made!r} for {self.child!r}", "a density for a real column, masses for a count")
            return
        total = self.log_factor(torch.zeros(1, dtype=torch.float64), ones).exp().sum(-1).flatten()
        off = (total - 1).abs().nan_to_num(nan=math.inf)
        if not (off <= _OFF).all():
            raise StructureError(
                f"{type(made).__name__} gives the child's {self.cards[-1]} levels a probability of "
                f"{total[off.argmax()].item():.6g} together", "1",
                "Values are the codes 0, 1, ... of the levels: Bernoulli and Categorical have such",
            )  # fmt: skip

    def cells(self, parents: Tensor) -> Any:
        made = self.module(parents)
        shape = tuple(parents.shape[:-1])
        if not isinstance(made, torch.distributions.Distribution) or made.event_shape:
            raise StructureError(
                f"module returned {made!r}", "a distribution of single numbers, with event shape ()",
                "The dimensions of the parents but the last are the batch shape",
            )  # fmt: skip
        if tuple(made.batch_shape) != shape:
            try:
                return made.expand(torch.Size(shape))
            except RuntimeError as problem:
                raise StructureError(
                    f"module returned batch shape {tuple(made.batch_shape)}", f"{shape}, as the parents have",
                    "Index the parents as parents[..., i]",
                ) from problem  # fmt: skip
        return made

    def log_prob(self, child: Tensor, parents: Tensor) -> Tensor:
        return _within(self.cells(parents), child)

    def log_factor(self, child: Tensor, parents: Tensor) -> Tensor:
        made, shape = self.cells(self.grid(parents)), (len(parents), *self.parent_cards)
        if not self.discrete:
            return _within(made, child.reshape(-1, *[1] * len(self.parent_cards)).expand(shape))
        levels = torch.arange(self.cards[-1], dtype=torch.float64)
        return torch.stack([_within(made, level.expand(shape)) for level in levels], -1)

    def sample(self, parents: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad(), _drawing(generator):
            return self.cells(parents).sample().to(torch.float64)

    def mean(self, parents: Tensor) -> Tensor:
        if self.discrete:
            raise self._lacks("mean")
        return self.cells(parents).mean

    def variance(self, parents: Tensor) -> Tensor:
        if self.discrete:
            raise self._lacks("variance")
        return self.cells(parents).variance

    # Learning

    def maximise(self, counts: Tensor) -> list[int]:
        counts = self._checked_counts(counts)
        self._climb(lambda: self.log_table(), counts)
        return _empty(counts.sum(-1))

    def maximise_rows(self, child: Tensor, parents: Tensor, weights: Tensor) -> list[int]:
        weights = self._checked_counts(weights, "weights")
        self._climb(lambda: self.log_factor(child, parents), weights)
        seen = weights.sum(0)
        return _empty(seen.sum(-1) if self.discrete else seen)

    def _climb(self, nats: Callable[[], Tensor], weights: Tensor) -> None:
        """L-BFGS from where the parameters stand; what is no better is undone."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained or not weights.sum() > 0:
            return
        before = [p.detach().clone() for p in trained]
        start = _loss(nats, weights).item()
        if not start < math.inf:
            raise FitError(
                f"The expected log-likelihood of {self!r} is {-start}", "a finite number", "Start it nearer the data"
            )
        end = _ascended(nats, weights, trained, self.steps)
        if not end <= start:
            with torch.no_grad():
                for parameter, value in zip(trained, before, strict=True):
                    parameter.copy_(value)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Around the values that the module came with, as wide as they are large, at least 1."""
        return {name: dist.Normal(v, 1 + v.abs()).to_event(v.ndim) for name, v in self._first.items()}

    @property
    def n_params(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def natural(self) -> dict[str, Tensor]:
        """The module's parameters, under its own names."""
        return {name.removeprefix("module."): parameter for name, parameter in self.named_parameters()}

    def __repr__(self) -> str:
        return f"Program({getattr(self.module, '__qualname__', type(self.module).__qualname__)})"


def _empty(seen: Tensor) -> list[int]:
    return (seen.reshape(-1) <= 0).nonzero()[:, 0].tolist()


def _loss(nats: Callable[[], Tensor], weights: Tensor) -> Tensor:
    """Minus the expected log-likelihood in nats a case; impossible cells without weight do not count."""
    return -torch.where(weights > 0, weights * nats(), 0.0).sum() / weights.sum()


def _ascended(nats: Callable[[], Tensor], weights: Tensor, trained: list[nn.Parameter], steps: int) -> float:
    """The loss where L-BFGS ends, infinity where it went astray."""
    climber = torch.optim.LBFGS(trained, max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure() -> Tensor:
        climber.zero_grad()
        loss = _loss(nats, weights)
        loss.backward()
        return loss

    try:
        with torch.enable_grad():
            climber.step(closure)  # type: ignore[no-untyped-call]
        return _loss(nats, weights).item()
    except ValueError:  # a distribution refuses its parameters
        return math.inf
    finally:
        climber.zero_grad()


def _within(made: Any, value: Tensor) -> Tensor:
    """log p in nats of values that may lie outside the support, where it is -inf."""
    try:
        inside = made.support.check(value)
    except NotImplementedError:
        return made.log_prob(value)
    if inside.all():
        return made.log_prob(value)
    filled = value
    for stand in _stands(made, value):
        filled = torch.where(made.support.check(filled), filled, stand)
    return torch.where(inside, made.log_prob(filled), -torch.inf)


def _stands(made: Any, value: Tensor) -> list[Tensor]:
    """Values one of which lies in the support of most distributions."""
    try:
        centre = [made.mean.detach().to(value.dtype).expand(value.shape)]
    except (NotImplementedError, AttributeError):
        centre = []
    return centre + [torch.full_like(value, number) for number in (0.0, 1.0, -1.0)]
