"""p(z): a standard normal, the average guide of learned pseudo-inputs, or a flow."""

import abc
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError, nearest

__all__ = ["NAMES", "FlowPrior", "Prior", "StandardNormal", "Vamp", "prior_for"]

NAMES = ("flow", "normal", "vamp")
_LOG_2PI = math.log(2 * math.pi)


class Prior(nn.Module, abc.ABC):
    """The distribution of z."""

    dim: int

    @abc.abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """(..., dim) -> (...), in nats."""

    @abc.abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, dim)."""

    @abc.abstractmethod
    def distribution(self) -> dist.TorchDistribution:
        """The same for one z, event shape (dim,)."""

    def start(self, inputs: Tensor, generator: torch.Generator) -> None:
        """First values, from what the encoder sees of training rows."""


class StandardNormal(Prior):
    """N(0, I)."""

    zero: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("zero", torch.zeros(dim, dtype=torch.float32), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + _LOG_2PI).sum(-1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.dim, generator=generator, dtype=self.zero.dtype)

    def distribution(self) -> dist.TorchDistribution:
        return dist.Normal(self.zero, torch.ones_like(self.zero), validate_args=False).to_event(1)


class Vamp(Prior):
    """The mean of the guide over learned pseudo-inputs, weighted: sum_k w_k q(z | u_k). Tomczak and Welling (2018).

    Arguments:
        encode: Inputs of the encoder (K, width) to means and standard deviations, (K, dim) each.
        width: Of an input.
        components: K.
    """

    def __init__(
        self, dim: int, encode: Callable[[Tensor], tuple[Tensor, Tensor]], width: int, components: int
    ) -> None:
        super().__init__()
        self.dim, self.components = dim, components
        self.inputs = nn.Parameter(torch.zeros(components, width, dtype=torch.float32))
        self.logits = nn.Parameter(torch.zeros(components, dtype=torch.float32))
        self.kept: dict[str, Any] = {"encode": encode}  # a bound method: no part of this module

    def start(self, inputs: Tensor, generator: torch.Generator) -> None:
        rows = torch.randint(len(inputs), (self.components,), generator=generator)
        with torch.no_grad():
            self.inputs.copy_(inputs[rows])

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights (K,), means and standard deviations (K, dim)."""
        loc, scale = self.kept["encode"](self.inputs)
        return self.logits.log_softmax(0), loc, scale

    def log_prob(self, z: Tensor) -> Tensor:
        weights, loc, scale = self.parts()
        precision = scale.square().reciprocal()  # |z - m|^2 / s^2 by matrix products, not by an array (..., K, dim)
        squares = z.square() @ precision.T - 2 * z @ (loc * precision).T + (loc.square() * precision).sum(1)
        nats = -0.5 * (squares + self.dim * _LOG_2PI) - scale.log().sum(1)
        return (weights + nats).logsumexp(-1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        weights, loc, scale = self.parts()
        k = torch.multinomial(weights.exp(), n, replacement=True, generator=generator)
        return loc[k] + scale[k] * torch.randn(n, self.dim, generator=generator, dtype=loc.dtype)

    def distribution(self) -> dist.TorchDistribution:
        weights, loc, scale = self.parts()
        return dist.MixtureSameFamily(
            dist.Categorical(logits=weights), dist.Normal(loc, scale, validate_args=False).to_event(1)
        )


class FlowPrior(Prior):
    """A spline flow of N(0, I), coupled, so that both ways are one pass. Durkan et al. (2019)."""

    zero: Tensor

    def __init__(self, dim: int, layers: int, hidden: tuple[int, ...]) -> None:
        from probgen.bijections import SplineFlow  # zuko is an extra

        super().__init__()
        self.dim = dim
        self.splines = SplineFlow(dim, 0, "coupling", layers, 8, hidden)
        self.register_buffer("zero", torch.zeros(dim, dtype=torch.float32), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        e, log_det = self.splines().call_and_ladj(z)
        return log_det - 0.5 * (e.square() + _LOG_2PI).sum(-1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return self.splines().inv(torch.randn(n, self.dim, generator=generator, dtype=self.zero.dtype))

    def distribution(self) -> dist.TorchDistribution:
        base = dist.Normal(self.zero, torch.ones_like(self.zero), validate_args=False).to_event(1)
        return dist.TransformedDistribution(base, [self.splines().inv])


def prior_for(
    name: str, dim: int, encode: Callable[[Tensor], tuple[Tensor, Tensor]], width: int, components: int
) -> Prior:
    """The prior of a name.

    Raises:
        ParameterError: an unknown name, or no components.
        MissingExtra: a flow without zuko.
    """
    if name not in NAMES:
        raise ParameterError(f"prior={name!r}", "a prior", nearest(str(name), NAMES))
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise ParameterError(f"pseudo_inputs={components!r}", "a whole number, at least 1")
    if name == "vamp":
        return Vamp(dim, encode, width, components)
    return StandardNormal(dim) if name == "normal" else FlowPrior(dim, 4, (128, 128) if dim > 4 else (32, 32))
