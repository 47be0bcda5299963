"""The evidence of a Pyro program whose observations are not independent rows: one number for the whole data."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from probgen.errors import ParameterError, StructureError, SupportError
from probgen.estimate.auto import Ladder
from probgen.events import Array
from probgen.logprob import LogProb
from probgen.model import Estimator, generator_of, pyro_lock

__all__ = ["Program", "evidence"]

_DRAWS = 400  # of the guide, for its mean and covariance
_FULL = 64  # latents up to which the covariance is full
_LOG_2PI = math.log(2 * math.pi)


@torch.no_grad()
def evidence(
    model: Callable,
    guide: Callable | None = None,
    data: Any = (),
    *,
    by: Estimator | None = None,
    seed: int | None = None,
) -> LogProb:
    """log p(data) of a Pyro program with continuous latents, one number, kind lower.

    The latents are moved to the unconstrained space of their supports. There the chains and draws start from a normal
    with the mean and covariance of draws of the guide; so any guide will do, and a better one gives a better number.

    Arguments:
        model: A Pyro program with its data as observed sites; parameters come from the user's store.
        guide: A Pyro guide (autoguides too), trained; None starts from the prior.
        data: What both are called with: a tuple of arguments, a dict of named ones, or one argument.
        by: IWAE, AIS or ELBO; None climbs the ladder.

    Raises:
        StructureError: a latent that is discrete, a scaled (subsampled) site, sites that the guide lacks or adds.
        SupportError: a guide whose draws lie outside a latent's support.
    """
    if by is not None and not isinstance(by, Estimator):
        raise ParameterError(f"by={by!r}", "an estimator, such as probgen.AIS(chains=16)")
    generator = generator_of(seed)
    program = Program(model, guide, data, generator)
    lp = (by or Ladder())(program, torch.zeros(1, 1, dtype=torch.float64), None, generator=generator)
    return lp.replace(of="data")


class Program:
    """A conditioned Pyro program as one row of a ``Latent`` model; z is the unconstrained latents, one after the other.

    Arguments:
        model, guide, data: As of ``evidence``.
        generator: Of the draws of the guide.

    Attributes:
        traced: Whether the program became one tensor graph, which scores many draws at once; a program whose control
            flow depends on its latents is run once a draw.
    """

    def __init__(self, model: Callable, guide: Callable | None, data: Any, generator: torch.Generator) -> None:
        self.program = model
        self.args: tuple = data if isinstance(data, tuple) else () if isinstance(data, Mapping) else (data,)
        self.kwargs: dict = dict(data) if isinstance(data, Mapping) else {}
        with pyro_lock(generator):
            self.sites, size = self._latents()
            draws = torch.stack([self._flat(guide) for _ in range(_DRAWS)])
        self.latent_dim, self.event = draws.shape[1], Array((max(size, 1),))
        self.centre, self.factor = _moments(draws)
        self.graph = self._graph(draws[:4])
        self.traced = self.graph is not None

    def _run(self, program: Callable) -> Any:
        return poutine.trace(program).get_trace(*self.args, **self.kwargs)

    def _latents(self) -> tuple[dict[str, Any], int]:
        """Latent sites by name, and the number of observed cells."""
        latents, cells = {}, 0
        for name, site in self._run(self.program).nodes.items():
            if site["type"] != "sample":
                continue
            if type(site["fn"]).__name__ == "_Subsample":
                _refuse_subsample(name, site)
                continue
            _refuse_scale(name, site)
            if site["is_observed"]:
                cells += site["value"].numel()
            elif site["fn"].support.is_discrete or not site["value"].is_floating_point():
                raise StructureError(
                    f"The latent {name!r} is discrete", "continuous latents", "Sum it out in the program"
                )
            else:
                latents[name] = site
        if not latents:
            raise StructureError("A program without latents", "at least one", "Its trace's log_prob_sum is exact")
        return latents, cells

    def _flat(self, guide: Callable | None) -> Tensor:
        """One draw of the guide in unconstrained space, (D,)."""
        nodes = self._run(guide or self.program).nodes
        drawn = {n for n, s in nodes.items() if s["type"] == "sample" and not s["is_observed"]}
        drawn = {n for n in drawn if type(nodes[n]["fn"]).__name__ != "_Subsample"}
        auxiliary = {n for n in drawn if nodes[n]["infer"].get("is_auxiliary")}
        if drawn - auxiliary != set(self.sites):
            raise StructureError(
                f"The guide has the latents {sorted(drawn - auxiliary)}", f"those of the model, {sorted(self.sites)}"
            )
        return torch.cat([self._unconstrained(name, nodes[name]["value"]) for name in self.sites])

    def _unconstrained(self, name: str, value: Tensor) -> Tensor:
        support = self.sites[name]["fn"].support
        if not bool(support.check(value).all()) or value.shape != self.sites[name]["value"].shape:
            raise SupportError(
                f"The guide draws {name!r} of shape {tuple(value.shape)} outside the support of the model's",
                f"{support}, shape {tuple(self.sites[name]['value'].shape)}",
                "A transformed distribution, or an autoguide",
            )
        return biject_to(support).inv(value).detach().reshape(-1).to(torch.float64)

    def _score(self, z: Tensor) -> Tensor:
        """log p(data, z) with the volume of the move to unconstrained space, z (D,)."""
        values, total = {}, z.new_zeros(())
        start = 0
        for name, site in self.sites.items():
            move = biject_to(site["fn"].support)
            shape = move.inverse_shape(site["value"].shape)
            u = z[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
            value = move(u)
            total = total + move.log_abs_det_jacobian(u, value).sum()
            values[name] = value.to(site["value"].dtype)
        return total + self._run(poutine.condition(self.program, values)).log_prob_sum()

    def _graph(self, points: Tensor) -> Callable | None:
        """The program as a tensor graph over many draws, (S, D) -> (S,), where it is one: checked at some draws."""
        from torch.fx.experimental.proxy_tensor import make_fx

        with pyro_lock(), pyro.validation_enabled(False):
            truth = torch.stack([self._score(z) for z in points])
            try:
                graph = torch.vmap(make_fx(lambda z: self._score(z))(points[0]))
                found = graph(points)
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                return None  # control flow that looks at the latents, or an operation that does not batch
        same = torch.allclose(found, truth, rtol=1e-5, atol=1e-5, equal_nan=True)
        return graph if same else None

    # Latent

    def _propose(self, x: Tensor, given: None, noise: Tensor) -> tuple[Tensor, Tensor]:
        noise = noise.to(torch.float64)
        log_q = -0.5 * (noise.square() + _LOG_2PI).sum(-1) - self.factor.diagonal().log().sum()
        return self.centre + noise @ self.factor.T, log_q

    def _log_joint(self, x: Tensor, z: Tensor, given: None) -> Tensor:
        flat = z.reshape(-1, self.latent_dim)
        if self.graph is not None:
            return self.graph(flat).reshape(z.shape[:-1])
        with pyro_lock(), pyro.validation_enabled(False):
            return torch.stack([self._score(one) for one in flat]).reshape(z.shape[:-1])


def _refuse_subsample(name: str, site: Any) -> None:
    plate = site["fn"]
    if getattr(plate, "subsample_size", None) not in (None, plate.size):
        raise StructureError(
            f"The plate {name!r} takes {plate.subsample_size} of {plate.size} rows",
            "all rows: a subsample's scaled score is no likelihood",
            "Leave out subsample_size",
        )


def _refuse_scale(name: str, site: Any) -> None:
    if bool((torch.as_tensor(site["scale"]) != 1).any()):
        raise StructureError(
            f"The site {name!r} is scaled",
            "a scale of one: a weighted score is no likelihood",
            "Leave out poutine.scale",
        )


def _moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and a Cholesky factor of the covariance, full for few latents."""
    centre, dim = draws.mean(0), draws.shape[1]
    spread = draws.std(0).clamp(min=1e-6)
    if dim > _FULL:
        return centre, spread.diag()
    shrunk = 0.95 * torch.cov(draws.T).reshape(dim, dim) + 0.05 * spread.square().diag()
    return centre, torch.linalg.cholesky(shrunk)
