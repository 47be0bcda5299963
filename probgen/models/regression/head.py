"""What every distribution of a response given its predictors offers."""

import abc
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.errors import StructureError

__all__ = ["Head"]


class Head(abc.ABC):
    """p(y | u). The first ``places`` numbers of u are predictors, linear in covariates; the others, ``extras``, are
    logarithms of scales or shapes, constants in a linear model.

    Attributes:
        location: y is real, and its predictor a location in the response's own unit.
        classic: A generalised linear model with one dispersion: standard errors by expected information.
    """

    places: int = 1
    extras: ClassVar[tuple[str, ...]] = ()
    location: ClassVar[bool] = False
    classic: ClassVar[bool] = True

    @property
    def names(self) -> tuple[str, ...]:
        """Of the extras, as they are reported."""
        return self.extras

    @property
    def width(self) -> int:
        """q."""
        return self.places + len(self.names)

    @abc.abstractmethod
    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        """log p(y | u) in nats, twice differentiable in u."""

    @abc.abstractmethod
    def distribution(self, u: Tensor) -> dist.TorchDistribution:
        """The same as a Pyro distribution of batch shape (...)."""

    @abc.abstractmethod
    def draw(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """One y for each u."""

    @abc.abstractmethod
    def mean(self, u: Tensor) -> Tensor:
        """E[y | u], (...); of categories their probabilities (..., K)."""

    @abc.abstractmethod
    def start(self, y: Tensor) -> Tensor:
        """u of a fit without covariates, or near it, (q,)."""

    @abc.abstractmethod
    def deviance(self, y: Tensor, u: Tensor) -> Tensor:
        """Twice the log-likelihood lost against a row's own best predictor, in units of the dispersion."""

    def weight(self, u: Tensor) -> Tensor:
        """Expected information of a row about its predictor, times the dispersion: (d mean / d u)^2 / variance."""
        raise StructureError(f"{type(self).__name__} has no single dispersion", "its observed information")

    def pearson(self, y: Tensor, u: Tensor) -> Tensor | None:
        """Squared residuals in units of the variance function; None where the dispersion is 1."""
        return None

    def natural(self, u: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        """u of the response itself from u of (response - centre) / spread."""
        return u

    def priors(self) -> tuple[tuple[float, float], ...]:
        """Mean and standard deviation of a normal prior of each extra."""
        return tuple({"log_df": (2.3, 1.0)}.get(name, (0.0, 3.0)) for name in self.names)
