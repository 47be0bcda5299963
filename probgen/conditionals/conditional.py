"""What every conditional distribution of a network is."""

import abc
import inspect
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import FitError, ParameterError, ShapeError, StructureError
from probgen.events import Category, Column, arguments

__all__ = ["Conditional", "as_numbers", "draw_levels"]


class Conditional(nn.Module, abc.ABC):
    """p(child | parents) of one variable of a network.

    A constructor keeps every option under its own name and makes a description; ``bind`` makes one with parameters, of
    shapes that the columns decide. Rows of parents are float64 (n, P) in the parents' order, codes of categories; a
    child is (n,). A *configuration* is one combination of levels of the discrete parents; it has a flat number, the
    last discrete parent turning fastest.

    Attributes:
        cards: Levels of the discrete parents in the parents' order, then of the child if it is discrete.
        parent_cards: The same without the child.
        discrete_parents, continuous_parents: Their places among the parents.
    """

    _child: Column | None = None
    _parents: tuple[Column, ...] = ()
    cards: tuple[int, ...] = ()
    parent_cards: tuple[int, ...] = ()
    discrete_parents: tuple[int, ...] = ()
    continuous_parents: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()

    # Columns

    @abc.abstractmethod
    def suits(self, child: Column, parents: Sequence[Column]) -> str | None:
        """None, or why these columns can't have this distribution."""

    def _build(self) -> None:
        """Parameters and buffers for the bound columns."""

    def bind(self, child: Column, parents: Sequence[Column] = ()) -> Self:
        """A new one with parameters for these columns; one that is bound already hands its numbers on.

        Raises:
            StructureError: the columns do not suit, or a bound one's numbers have other shapes.
        """
        parents = tuple(parents)
        if why := self.suits(child, parents):
            raise StructureError(f"{self!r} for {child!r} given {list(parents)}: {why}", "columns that suit it")
        made = type(self)(**{name: getattr(self, name) for name in _options(type(self))})
        levels = [len(p.levels) if isinstance(p, Category) else 0 for p in parents]
        cards = tuple(n for n in levels if n)
        made.__dict__ |= {  # past nn.Module's slow way of setting attributes
            "_child": child,
            "_parents": parents,
            "discrete_parents": tuple(i for i, n in enumerate(levels) if n),
            "continuous_parents": tuple(i for i, n in enumerate(levels) if not n),
            "parent_cards": cards,
            "cards": (*cards, len(child.levels)) if isinstance(child, Category) else cards,
        }
        made._build()
        if self.bound:
            made._inherit(self)
        return made

    def _inherit(self, other: "Conditional") -> None:
        own, theirs = self.state_dict(), other.state_dict()
        odd = [name for name in own if own[name].shape != theirs[name].shape]
        if odd or other.cards != self.cards:
            raise StructureError(
                f"{other!r} with numbers of levels {other.cards} in a place of {self.cards}", f"{self.cards}",
                "The discrete parents come first, in the order of the edges, then the child",
            )  # fmt: skip
        self.load_state_dict(theirs)

    @property
    def bound(self) -> bool:
        """Whether it has columns and parameters."""
        return self._child is not None

    @property
    def child(self) -> Column:
        if self._child is None:
            raise StructureError(f"{self!r} is a description", "one with columns", "Call .bind(child, parents)")
        return self._child

    @property
    def parents(self) -> tuple[Column, ...]:
        return self._parents

    @property
    def discrete(self) -> bool:
        """Whether the child is a category."""
        return isinstance(self.child, Category)

    @property
    def tabular(self) -> bool:
        """Whether child and parents are all categories, so that a table says everything."""
        return self.discrete and not self.continuous_parents

    @property
    def configurations(self) -> int:
        """Of the discrete parents."""
        return math.prod(self.parent_cards)

    def configuration(self, parents: Tensor) -> Tensor:
        """Flat numbers of the configurations of parents (..., P), int64 (...)."""
        flat = torch.zeros(parents.shape[:-1], dtype=torch.int64)
        for place, card in zip(self.discrete_parents, self.parent_cards, strict=True):
            flat = flat * card + parents[..., place].long()
        return flat

    def inputs(self, parents: Tensor) -> Tensor:
        """The continuous parents of parents (..., P), (..., C)."""
        return parents[..., list(self.continuous_parents)]

    def grid(self, parents: Tensor) -> Tensor:
        """Parents (n, P) under every configuration, (n, *parent_cards, P); discrete entries of the rows are ignored."""
        shape = (len(parents), *self.parent_cards)
        columns = [column.reshape(-1, *[1] * len(self.parent_cards)).expand(shape) for column in parents.T]
        for axis, (place, card) in enumerate(zip(self.discrete_parents, self.parent_cards, strict=True)):
            codes = torch.arange(card, dtype=torch.float64)
            columns[place] = codes.reshape(-1, *[1] * (len(self.parent_cards) - axis - 1)).expand(shape)
        return torch.stack(columns, -1) if columns else parents.reshape(*shape, 0)

    # Probabilities

    @abc.abstractmethod
    def cells(self, parents: Tensor) -> Any:
        """Pyro distribution of the child given parents (..., P), batch shape parents.shape[:-1]."""

    def log_table(self) -> Tensor:
        """log p(child | parents) in nats, shape ``cards``; -inf where impossible.

        Raises:
            StructureError: not all columns are categories.
        """
        if not self.tabular:
            raise self._lacks("table: not all of its columns are categories")
        empty = torch.zeros(1, dtype=torch.float64)
        return self.log_factor(empty, empty.expand(1, len(self.parents)))[0]

    def log_prob(self, child: Tensor, parents: Tensor) -> Tensor:
        """log p(child | parents) of complete rows in nats, (n,)."""
        return self.cells(parents).log_prob(child)

    def log_factor(self, child: Tensor, parents: Tensor) -> Tensor:
        """log p in nats under every configuration of the discrete ones among parents and child, (n, *cards).

        Continuous ones are as the row has them; discrete entries of the rows are ignored and may be NaN.
        """
        made, shape = self.cells(self.grid(parents)), (len(parents), *self.parent_cards)
        if not self.discrete:
            return made.log_prob(child.reshape(-1, *[1] * len(self.parent_cards)).expand(shape))
        levels = torch.arange(self.cards[-1], dtype=torch.float64)
        return torch.stack([made.log_prob(level.expand(shape)) for level in levels], -1)

    def forward(self, child: Tensor, parents: Tensor) -> Tensor:
        """``log_prob``, so that ``torch.func.functional_call`` can swap the parameters."""
        return self.log_prob(child, parents)

    @abc.abstractmethod
    def sample(self, parents: Tensor, generator: torch.Generator) -> Tensor:
        """One child for each row of parents (n, P), float64 (n,)."""

    def mean(self, parents: Tensor) -> Tensor:
        """E[child | parents] of parents (..., P), shape (...)."""
        raise self._lacks("mean")

    def variance(self, parents: Tensor) -> Tensor:
        """var(child | parents) of parents (..., P), shape (...)."""
        raise self._lacks("variance")

    # Learning

    def prepare(self, child: Tensor, parents: Tensor) -> None:
        """Looks once at all data before learning, for their scale; child (n,), parents (n, P), NaN where missing."""

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None, spread: float = 0.5) -> None:
        """Parameters to the centre of their priors, where parents say nothing.

        Arguments:
            generator: Moves them from there at random, so that hidden variables are not stuck in a symmetry.
            spread: How far, in standard deviations of the priors.
        """
        priors = self.priors() if any(True for _ in self.parameters()) else {}
        for name, parameter in self.named_parameters():
            value = priors[name].mean
            if generator is not None:
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                value = value + spread * priors[name].stddev * noise
            parameter.copy_(value)

    def maximise(self, counts: Tensor) -> list[int]:
        """M step of a tabular one: raises sum(counts * log_table) + penalty as far as it can, and never lowers it.

        Arguments:
            counts: Expected numbers of cases, shape ``cards``.

        Returns:
            Flat numbers of the configurations without data.

        Raises:
            FitError: the counts are not finite, or the distribution can't have produced them.
            StructureError: it has no such step.
        """
        raise self._lacks("M step from counts")

    def maximise_rows(self, child: Tensor, parents: Tensor, weights: Tensor) -> list[int]:
        """M step where some columns are continuous and observed.

        Arguments:
            child: (n,); ignored if discrete.
            parents: (n, P); discrete entries are ignored.
            weights: Posterior weights of each row's configurations, (n, *cards).

        Returns:
            Flat numbers of the parents' configurations without data.
        """
        if not self.tabular:
            raise self._lacks("M step from rows")
        return self.maximise(weights.sum(0))

    def maximise_moments(self, second: Tensor, centre: Tensor | None = None) -> list[int]:
        """M step from moments, where continuous cells are missing: see LinearGaussian."""
        raise self._lacks("M step from moments")

    def penalty(self) -> Tensor:
        """Log prior of the parameters in nats, up to a constant."""
        return torch.zeros((), dtype=torch.float64)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Weakly informative priors of the raw parameters by name, in the scale that ``prepare`` saw."""
        raise self._lacks("priors of its parameters")

    @property
    @abc.abstractmethod
    def n_params(self) -> int:
        """Free parameters."""

    def natural(self) -> dict[str, Tensor]:
        """What the parameters mean, as differentiable functions of the raw ones."""
        raise self._lacks("interpretable parameters")

    def set_natural(self, **values: Any) -> Self:
        """Sets the parameters from the numbers that ``natural`` gives, by their names; returns itself.

        Raises:
            ParameterError: a value out of range; ShapeError: of another shape.
        """
        raise self._lacks("interpretable parameters")

    def _lacks(self, what: str) -> StructureError:
        return StructureError(f"{self!r} has no {what}", "a conditional that has", "Choose another conditional")

    def _checked_counts(self, counts: Tensor, what: str = "counts") -> Tensor:
        """Counts of the right shape; rounding below zero becomes zero."""
        if tuple(counts.shape[counts.ndim - len(self.cards) :]) != self.cards:
            raise ShapeError(f"{what} of shape {tuple(counts.shape)}", f"the last axes {self.cards}")
        low, high = (value.item() for value in torch.aminmax(counts.detach())) if counts.numel() else (0.0, 0.0)
        if not -1e-9 * (1 + high) <= low <= high < math.inf:
            raise FitError(f"{what} of {self!r} are negative or not finite", "finite weights from 0")
        return counts.detach().clamp(min=0)

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in arguments(self).items())
        return f"{type(self).__name__}({', '.join(shown)})"


@cache
def _options(kind: type[Conditional]) -> tuple[str, ...]:
    return tuple(inspect.signature(kind).parameters)


def draw_levels(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One level for each row of probabilities (n, L), float64 (n,), by inversion; never one of probability zero."""
    below = probabilities.detach().cumsum(-1)
    below = below / below[:, -1:]
    u = torch.rand(len(below), 1, generator=generator, dtype=torch.float64)
    return (u >= below[:, :-1]).sum(-1).to(torch.float64)


def as_numbers(value: Any, shape: Sequence[int], name: str) -> Tensor:
    """A user's numbers as a float64 tensor of some shape.

    Raises:
        ShapeError: another shape, or no rectangle of numbers.
        ParameterError: NaN among them.
    """
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise ShapeError(f"{name} is no array of numbers: {problem}", f"shape {tuple(shape)}") from problem
    if tuple(numbers.shape) != tuple(shape):
        raise ShapeError(
            f"{name} has shape {tuple(numbers.shape)}", f"{tuple(shape)}",
            "Axes: the discrete parents in the order of the edges, then the child or its inputs",
        )  # fmt: skip
    if numbers.isnan().any():
        where = f" at {numbers.isnan().nonzero()[0].tolist()}" if numbers.ndim else ""
        raise ParameterError(f"{name} has NaN{where}", "numbers")
    return numbers.detach().clone()
