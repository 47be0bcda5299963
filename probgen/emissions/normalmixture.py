"""A mixture of normals in each state."""

from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics
from probgen.emissions.normal import Normal
from probgen.errors import ParameterError

__all__ = ["NormalMixture"]


class NormalMixture(Emission):
    """x | state ~ sum_c w_c N(loc_c, covariance_c).

    Arguments:
        dim: Cells.
        components: Normals of a state, C.
        covariance: As of Normal; "tied" is one matrix for all components of all states.
        floor: Smallest variance in any direction, relative to the data's variance.

    EM sums over the components as over states (Dempster, Laird and Rubin 1977). A fresh state first takes the mean and
    covariance of its data, and its components then spread over that normal at the points of a Latin hypercube.
    """

    _spots: Tensor

    def __init__(
        self,
        dim: int = 1,
        components: int = 2,
        covariance: Literal["full", "tied", "diag", "spherical"] = "diag",
        floor: float = 1e-6,
        states: int = 1,
    ) -> None:
        super().__init__()
        if components < 1 or states < 1:
            raise ParameterError(f"components={components}, states={states}", "both at least 1")
        self.dim, self.components, self.covariance, self.floor, self.states = dim, components, covariance, floor, states
        self.width = dim
        self.of = Normal(dim, covariance, floor, states * components)
        self.logits = nn.Parameter(torch.zeros(states, components, dtype=torch.float64))
        self._spots = _hypercube(components, dim)
        self.of.loc.data = self._spots.repeat(states, 1)

    def _by_component(self, values: Tensor) -> Tensor:
        """(K * C, ...) as (K, C, ...)."""
        return values.reshape(self.states, self.components, *values.shape[1:])

    def weights(self) -> Tensor:
        """Of the components of each state, shape (K, C)."""
        return self.logits.softmax(-1)

    def _joint(self, x: Tensor) -> Tensor:
        """log p(x, c | state), shape (n, K, C)."""
        nats = self.of.log_prob(x).reshape(len(x), self.states, self.components)
        return nats + self.logits.log_softmax(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where(x.isnan().all(1, keepdim=True), 0.0, self._joint(x).logsumexp(-1))

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        loc = self._by_component(self.of.loc)[state]
        scale = self._by_component(self.of.scale())[state]
        each = dist.MultivariateNormal(loc, scale_tril=scale) if self.of.matrix else dist.Normal(loc, scale).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits[state]), each)

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        component = torch.multinomial(self.weights().detach()[state], 1, generator=generator)[:, 0]
        return self.of.sample(state * self.components + component, generator)

    def prepare(self, x: Tensor) -> None:
        self.of.prepare(x)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        weights = dist.Normal(torch.zeros_like(self.logits), torch.ones_like(self.logits)).to_event(2)
        return {"logits": weights, **{f"of.{name}": prior for name, prior in self.of.priors().items()}}

    def natural(self) -> dict[str, Tensor]:
        """``weights`` (K, C), ``loc`` (K, C, dim), and ``scale`` (K, C, dim) or ``covariance`` (K, C, dim, dim)."""
        inner = {name: self._by_component(value) for name, value in self.of.natural().items()}
        return {"weights": self.weights(), **inner}

    def cdf(self, x: Tensor) -> Tensor:
        each = self.of.cdf(x).reshape(len(x), self.states, self.components, self.dim)
        return (self.weights()[..., None] * each).sum(-2)

    def mean(self, given: Tensor | None = None) -> Tensor:
        return (self.weights()[..., None] * self._by_component(self.of.loc)).sum(1)

    def variance(self, given: Tensor | None = None) -> Tensor:
        between = (self._by_component(self.of.loc) - self.mean()[:, None]).square()
        return (self.weights()[..., None] * (self._by_component(self.of.variance()) + between)).sum(1)

    def _fresh(self) -> Tensor:
        """States whose components still stand where the constructor put them, (K,)."""
        return (self._by_component(self.of.loc) == self._spots).all(-1).all(-1) & (self.components > 1)

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        joint = self._joint(x)
        shares = (joint - joint.amax(-1, keepdim=True).clamp(min=-1e308)).exp()
        shares = torch.where(self._fresh()[:, None], 1.0, shares)
        shares = weights[..., None] * shares / shares.sum(-1, keepdim=True)
        return {"counts": shares.sum(0), **self.of.statistics(x, shares.reshape(len(x), -1), self._centres())}

    def _centres(self) -> Tensor:
        """What moments are taken about: the present means, the whole data's mean in fresh states, (K * C, dim)."""
        fresh = self._fresh().repeat_interleave(self.components)[:, None]
        return torch.where(fresh, self.of.data_mean, self.of.loc)

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        counts, fresh = statistics["counts"], self._fresh()
        total = counts.sum(-1)
        alive = total > 1e-8
        begun = torch.where((fresh & alive).repeat_interleave(self.components)[:, None], self._centres(), self.of.loc)
        self.of.loc.copy_(begun)
        self.of.maximise({name: value for name, value in statistics.items() if name != "counts"})
        shares = (counts / torch.where(alive, total, 1.0)[:, None]).log().clamp(min=-700)
        self.logits.copy_(torch.where(alive[:, None], shares, self.logits))
        if (fresh & alive).any():
            self._spread(fresh & alive)
        return (~alive).nonzero()[:, 0].tolist()

    def _spread(self, fresh: Tensor) -> None:
        """Components over the normal that they share."""
        scale, loc = self._by_component(self.of.scale()), self._by_component(self.of.loc)
        offsets = (scale @ self._spots[..., None])[..., 0] if self.of.matrix else scale * self._spots
        self.of.loc.copy_(torch.where(fresh[:, None, None], loc + offsets, loc).reshape(-1, self.dim))

    @property
    def n_params(self) -> int:
        return self.states * (self.components - 1) + self.of.n_params


def _hypercube(points: int, dim: int) -> Tensor:
    """Normal quantiles in another order along each axis, shape (points, dim); the same ones every time."""
    order = torch.Generator().manual_seed(points)
    quantiles = torch.special.ndtri((torch.arange(points, dtype=torch.float64) + 0.5) / points)
    return torch.stack([quantiles[torch.randperm(points, generator=order)] for _ in range(dim)], 1)
