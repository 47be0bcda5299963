"""The one door between a model's parameters and the unconstrained numbers that samplers move in."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

__all__ = ["Coordinates", "Site"]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Site:
    """A parameter with a prior.

    Arguments:
        prior: Its event dimensions, with batch dimensions if any, are the parameter's whole shape.
        bijection: From reals of ``shape`` onto the prior's support; None for reals themselves.
        place: Of the reals among all.
    """

    name: str
    prior: Any
    bijection: Any
    shape: torch.Size
    place: slice

    def values(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Parameters (S, *shape) and log |d parameter / d reals| (S,) from reals (S, size)."""
        u = z.reshape(len(z), *self.shape)
        if self.bijection is None:
            return u, None
        value = self.bijection(u)
        return value, self.bijection.log_abs_det_jacobian(u, value).reshape(len(z), -1).sum(1)


class Coordinates:
    """Parameters with priors as one vector of P unconstrained numbers.

    Each site's reals are carried onto its support by ``biject_to``; densities of the reals are those of the parameters
    times |d parameter / d reals|.

    Arguments:
        priors: By name, in the order of the vector.
    """

    def __init__(self, priors: Mapping[str, Any]) -> None:
        self.sites: dict[str, Site] = {}
        at = 0
        for name, checking in priors.items():
            prior = _unchecked(checking)
            shape = torch.Size([*prior.batch_shape, *prior.event_shape])
            bijection = biject_to(prior.support)
            inner = bijection.inverse_shape(shape)
            plain = _is_real(prior.support)
            size = torch.Size(inner).numel()
            self.sites[name] = Site(name, prior, None if plain else bijection, torch.Size(inner), slice(at, at + size))
            at += size
        self.size = at
        self._normals = [site for site in self.sites.values() if site.bijection is None and _moments(site.prior)]
        self._others = [site for site in self.sites.values() if site not in self._normals]
        moments = [[part.expand(site.shape).reshape(-1) for part in _moments(site.prior)] for site in self._normals]
        places = [torch.arange(site.place.start, site.place.stop) for site in self._normals]
        if self._normals:
            self._loc, self._scale = (torch.cat(parts).to(torch.float64) for parts in zip(*moments, strict=True))
            self._at = torch.cat(places)

    def unpack(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters by name, each (S, *shape), and log |d parameters / d z|, (S,), from z (S, P)."""
        log_det = torch.zeros(len(z), dtype=z.dtype)
        values = {}
        for name, site in self.sites.items():
            values[name], volume = site.values(z[:, site.place])
            log_det = log_det if volume is None else log_det + volume
        return values, log_det

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """z (S, P) from parameters (S, *shape)."""
        parts = []
        for name, site in self.sites.items():
            value = values[name]
            u = value if site.bijection is None else site.bijection.inv(value)
            parts.append(u.reshape(len(value), -1))
        return torch.cat(parts, 1).to(torch.float64)

    def log_prior(self, z: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """log p(theta) in the parameters' own space, (S,), in nats; z and values belong together."""
        total = torch.zeros(len(z), dtype=z.dtype)
        if self._normals:
            standard = (z[:, self._at] - self._loc) / self._scale
            constant = self._scale.log().sum() + 0.5 * len(self._at) * _LOG_2PI
            total = total - 0.5 * standard.square().sum(1) - constant
        for site in self._others:
            total = total + site.prior.log_prob(values[site.name]).reshape(len(z), -1).sum(1)
        return total

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """z (n, P) from the priors."""
        from probgen.model import pyro_lock

        with pyro_lock(generator), torch.no_grad():
            drawn = {name: site.prior.sample((n,)) for name, site in self.sites.items()}
        return self.pack(drawn) if drawn else torch.zeros(n, 0, dtype=torch.float64)

    def bounded(self, z: Tensor) -> Tensor:
        """z (P,) with numbers beyond 3 deviations of their normal priors taken back there, others beyond 10."""
        out = z.nan_to_num(0.0, 1e9, -1e9).clamp(-10.0, 10.0)
        if self._normals:
            near = z[self._at].nan_to_num(0.0, 1e300, -1e300)
            out[self._at] = near.clamp(self._loc - 3 * self._scale, self._loc + 3 * self._scale)
        return out


def _unchecked(prior: Any) -> Any:
    """A copy that does not look at its values: they are inside the support by construction, to rounding."""
    quiet = copy.copy(prior)
    for name, part in vars(prior).items():
        if isinstance(part, torch.distributions.Distribution):
            setattr(quiet, name, _unchecked(part))
    quiet._validate_args = False
    return quiet


def _is_real(support: Any) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return str(support) in ("Real()", "IndependentConstraint(Real(), 1)")


def _moments(prior: Any) -> tuple[Tensor, ...]:
    """Means and standard deviations of independent normals; empty for other priors."""
    while type(prior).__name__ == "Independent":
        prior = prior.base_dist
    return (prior.loc, prior.scale) if type(prior).__name__ == "Normal" else ()
