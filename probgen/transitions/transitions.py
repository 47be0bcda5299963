"""What every kind of transitions is, and the row-wise maximisation that they share."""

import abc
from collections.abc import Callable
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.events import arguments

__all__ = ["Transitions", "log_rows", "normalised", "row_counts", "whole"]

_EMPTY = 1e-8  # expected visits below which a row has no data


class Transitions(nn.Module, abc.ABC):
    """p(z_1) and p(z_t | z_{t-1}) of a chain.

    The chain may run on more states than emit apart: ``emitting`` says which emission each chain state uses.

    Arguments:
        states: Emission states, K.
        covariates: Columns of inputs that each step's move needs.
    """

    states: int
    covariates: int = 0
    __call__: Callable[..., tuple[Tensor, Tensor]]

    def with_states(self, states: int) -> Self:
        """The same kind of transitions between K states, with parameters still to be set."""
        return type(self)(**{**arguments(self), "states": states})

    @property
    def size(self) -> int:
        """States of the chain, S; K where each emits apart."""
        return self.states

    def emitting(self) -> Tensor:
        """The emission state of each chain state, shape (S,)."""
        return torch.arange(self.states)

    @abc.abstractmethod
    def log_initial(self) -> Tensor:
        """log p(z_1), shape (S,)."""

    @abc.abstractmethod
    def log_matrix(self, given: Tensor | None = None) -> Tensor:
        """log p(z_t = j | z_{t-1} = i), shape (S, S); with inputs (total, S, S), entry t for the move into step t."""

    @abc.abstractmethod
    def maximise(self, initial: Tensor, counts: Tensor, given: Tensor | None = None) -> list[int]:
        """Sets the parameters to the maximiser of the expected (penalised) log-likelihood, or to something better.

        Arguments:
            initial: Expected number of sequences that start in each state, shape (S,).
            counts: Expected moves, shape (S, S); with inputs (total, S, S).

        Returns:
            States that are never left in the data; their rows stay as they were.
        """

    @abc.abstractmethod
    def start(self, generator: torch.Generator) -> None:
        """Random first values."""

    @property
    @abc.abstractmethod
    def n_params(self) -> int:
        """Free parameters; structural zeros are none."""

    def penalty(self) -> Tensor:
        """Log prior of the parameters, in nats, up to a constant."""
        return torch.zeros((), dtype=torch.float64)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Weakly informative priors of the raw parameters, by name."""
        return {
            name: dist.Normal(torch.zeros_like(p), 2.0).to_event(p.ndim)
            for name, p in self.named_parameters()
            if p.requires_grad
        }

    def natural(self) -> dict[str, Tensor]:
        """Interpretable parameters as differentiable functions of the raw ones."""
        return {"initial": self.log_initial().exp(), "transition": self.log_matrix().exp()}

    def labels(self) -> list[str]:
        """Names of the emission states."""
        return [str(k) for k in range(self.states)]

    def visits(self, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """What the best path of the states that emit is found by, where it is many paths of the chain; else None.

        Returns:
            log p(first state), (K,); log p(next state | state left), (K, K); of a visit of a = 1..most steps
            log p(d = a) and log p(d >= a), log-concave in a, each (K, most).
        """
        return None

    def forward(self, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """log_initial and log_matrix."""
        return self.log_initial(), self.log_matrix(given)

    def __repr__(self) -> str:
        shown = {n: v for n, v in arguments(self).items() if n != "states"}
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in shown.items())})"

    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    __hash__ = nn.Module.__hash__


def whole(number: Any) -> bool:
    """Whether this is a whole number, not a truth value."""
    return isinstance(number, int) and not isinstance(number, bool)


def normalised(weights: Any, size: int, name: str) -> tuple[float, ...]:
    """Fixed probabilities as given by a user.

    Raises:
        ParameterError: negative, not finite, of another number, or not adding up to 1.
    """
    values = torch.as_tensor(weights, dtype=torch.float64)
    if values.shape != (size,) or not bool(((values >= 0) & values.isfinite()).all()):
        raise ParameterError(f"{name}={weights!r}", f"{size} probabilities, none negative or missing")
    if abs(float(values.sum()) - 1) > 1e-8:
        raise ParameterError(
            f"{name}={weights!r} adds up to {float(values.sum())}",
            "probabilities that add up to 1",
            "Divide by the sum",
        )
    return tuple((values / values.sum()).tolist())


def log_rows(logits: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Log-probabilities of rows of logits; what is not allowed is exactly -inf."""
    if allowed is not None:
        logits = torch.where(allowed, logits, -torch.inf)
    return logits.log_softmax(-1)


def row_counts(counts: Tensor, prior: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The logits that maximise sum (counts + prior) log p in each row, and which rows have no data (keep present)."""
    empty = counts.sum(-1) <= _EMPTY
    total = counts + prior
    logits = total.log() - total.sum(-1, keepdim=True).log()
    return torch.where(empty[..., None], present, logits), empty
