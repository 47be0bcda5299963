"""What a fitted program knows of rows: draws of the latents that they share, and where each one's own are sought."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from probgen.errors import StructureError
from probgen.events import row_hash
from probgen.foreign.pyro import coordinates
from probgen.foreign.pyro.proposal import laplace
from probgen.model import pyro_lock
from probgen.posterior import APPROXIMATE, POSTERIOR, Draws
from probgen.svi import Graph, Program, Structure, record, sites_of

__all__ = ["Rows"]

_MOST_GRAPHS = 8  # recorded at a time
_MOST_CELLS = 64  # local unconstrained numbers a row that a normal at the mode is sought for

Theta = Mapping[str, Tensor]
Pair = tuple[Tensor, Tensor | None]


class Rows:
    """Densities of a program's rows given draws of what they share.

    Arguments:
        program: With its parameters.
        structure: Of its sites.
        stand: So many rows, and their covariates, to call the guide with where its shared latents need none.
        trained_on: How many rows the guide was trained on; it is called with as many where it has parameters for each.
        draws: Of the posterior, by NUTS or at its mode; None takes the guide's.
    """

    def __init__(
        self,
        program: Program,
        structure: Structure,
        stand: Callable[[int], Pair],
        trained_on: int,
        draws: Draws | None = None,
    ) -> None:
        self.program, self.structure, self.draws = program, structure, draws
        self.stand = stand(2 if structure.amortised else trained_on)
        self.seen: Pair = self.stand  # the rows of the fit
        self.point: dict[str, Tensor] = {}
        self._modes: tuple[Any, ...] = ()
        self._smooth: bool | None = None
        self._graphs: dict[tuple, Graph | None] = {}

    @property
    def shares(self) -> bool:
        """Whether rows share latents that have a posterior, not one value."""
        return bool(self.structure.globals) and not self.point

    @property
    def cells(self) -> int:
        """Unconstrained numbers that every row has its own of."""
        return sum(coordinates.split_sizes(self.structure))

    @property
    def independent(self) -> float:
        """How many independent draws those of NUTS are worth; infinite for a guide's."""
        if self.draws is None or self.draws.approximate:
            return math.inf
        least = self.draws.worst()[1]
        return max(least, 1.0) if math.isfinite(least) else 1.0

    @property
    def target(self) -> str:
        return APPROXIMATE if self.draws is None or self.draws.approximate else POSTERIOR

    # Shared latents

    def settle(self, x: Tensor, given: Tensor | None) -> None:
        """Sees whether the guide's shared latents depend on the data, and whether they are draws at all."""
        self.seen = (x, given)
        if not self.structure.globals or self.draws is not None:
            return
        one, two = (self.shared(1, torch.Generator().manual_seed(seed))[0] for seed in (0, 1))
        elsewhere, self.stand = self.stand, (x, given)
        if _equal(one, self.shared(1, torch.Generator().manual_seed(0))[0]):
            self.stand = elsewhere
        if _equal(one, two):
            self.point = dict(one)

    def shared(self, n: int, generator: torch.Generator) -> list[Theta]:
        """Draws of the shared latents: n of the guide's, or as many of those of NUTS as there are, each once."""
        names = self.structure.globals
        if not self.shares:
            return [self.point]
        if self.draws is not None:
            some = torch.randperm(len(self.draws), generator=generator)[:n]
            flat = self.draws.flat()
            return [{name: flat[name][i] for name in names} for i in some]

        def draw(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            with self.program.running():
                sites = sites_of(self.program.trace_guide(x, *(rest or (None,))))
            return tuple(sites[name]["value"].detach() for name in names)

        x, given = self.stand
        parts = (x,) if given is None else (x, given)
        return [dict(zip(names, self._run("draw", draw, *parts, generator=generator), strict=True)) for _ in range(n)]

    def _run(self, what: str, function: Callable, *inputs: Tensor, generator: torch.Generator) -> Any:
        """Calls a function of tensors, played back from a graph from its second call at the same shapes on."""
        key = (what, *((tuple(part.shape), part.dtype) for part in inputs))
        if key not in self._graphs:
            self._graphs = {**self._graphs, key: None} if len(self._graphs) < _MOST_GRAPHS else {key: None}
            with pyro_lock(generator):
                answer = function(*inputs)
            scratch = torch.Generator().manual_seed(0)
            with suppress(StructureError), pyro_lock(scratch), torch.no_grad(), pyro.validation_enabled(False):
                self._graphs[key] = record(function, *inputs, generator=scratch)
            return answer
        graph = self._graphs[key]
        if graph is not None:
            return graph(*inputs, generator=generator)
        with pyro_lock(generator):
            return function(*inputs)

    # A row's own

    def joint(self, x: Tensor, z: Tensor, given: Tensor | None, theta: Theta) -> Tensor:
        """log p(x, z | theta) in unconstrained coordinates, finite latents summed out: z (S, n, k) -> (S, n)."""
        return coordinates.joint(self.program, self.structure, x, given, z, theta)

    def log_joint(self, x: Tensor, z: Tensor, given: Tensor | None) -> Tensor:
        """As ``joint`` at the one value of what rows share; its gradient in z is played back, for chains ask for many.

        The gradient can't be differentiated again.
        """
        if not len(x):
            return torch.zeros(z.shape[:2], dtype=torch.float64)
        if not (torch.is_grad_enabled() and z.requires_grad):
            return self.joint(x, z, given, self.point)

        def slope(x: Tensor, z: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                rows = self.joint(x, z, rest[0] if rest else None, self.point)
                return rows.detach(), torch.autograd.grad(rows.sum(), z)[0]

        parts = (x, z.detach()) if given is None else (x, z.detach(), given)
        return _Known.apply(z, *self._run("slope", slope, *parts, generator=torch.Generator()))

    def log_weights(self, x: Tensor, given: Tensor | None, noise: Tensor, theta: Theta) -> Tensor:
        """log p(x, z | theta) - log q(z | x, theta) at draws of z from normal noise (S, n, k): (S, n), float64."""
        z, log_q = self.propose(x, given, noise.to(x.dtype), theta)
        names, rest = tuple(theta), () if given is None else (given,)

        def joint(x: Tensor, z: Tensor, *more: Tensor) -> tuple[Tensor]:
            covariates = more[len(names)] if rest else None
            return (self.joint(x, z, covariates, dict(zip(names, more[: len(names)], strict=True))),)

        played = self._run("joint", joint, x, z, *theta.values(), *rest, generator=torch.Generator())
        return played[0] - log_q.to(torch.float64)

    def propose(self, x: Tensor, given: Tensor | None, noise: Tensor, theta: Theta) -> tuple[Tensor, Tensor]:
        """Draws of each row's latents given the shared ones, (S, n, k), and their log-density (S, n)."""
        if not self.structure.locals or not noise.shape[1]:  # no latents, or no rows
            return noise, torch.zeros(noise.shape[:2], dtype=torch.float64)
        if self._pushes(x, given, theta):
            return coordinates.guide_draws(self.program, self.structure, x, given, noise, theta)
        mode, factor = self._mode(x, given)
        z = mode + (factor @ noise[..., None])[..., 0]
        normal = -0.5 * (noise.to(torch.float64).square() + math.log(2 * math.pi)).sum(-1)
        return z, normal - torch.linalg.slogdet(factor.to(torch.float64)).logabsdet

    def _pushes(self, x: Tensor, given: Tensor | None, theta: Theta) -> bool:
        """Whether the guide's distributions can be drawn from by pushing noise; found once."""
        if self._smooth is None:
            serves = self.structure.amortised and self.structure.plain and self.program.pair[1] is not None
            self._smooth = serves and coordinates.pushable(self.program, self.structure, x, given, theta)
        return self._smooth

    def _mode(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """A normal at the mode of each row's latents, at a typical draw of the shared ones; the last rows' are kept."""
        if self.cells > _MOST_CELLS:
            raise StructureError(
                f"{self.cells} numbers of its own a row, and a guide that does not serve new rows",
                f"at most {_MOST_CELLS}",
                "Give an amortised guide, one that computes q(z | x) from x",
            )
        key = row_hash(x) if given is None else np.concatenate([row_hash(x), row_hash(given)])
        if not self._modes or not np.array_equal(self._modes[0], key):
            theta = self._typical()
            found = laplace(lambda u: self.joint(x, u[None], given, theta)[0], len(x), self.cells, x.dtype)
            self._modes = (key, *found)
        return self._modes[1], self._modes[2]

    def _typical(self) -> Theta:
        """The draw of the shared latents that is nearest to the middle of a hundred."""
        drawn = self.shared(101, torch.Generator().manual_seed(1))
        if len(drawn) == 1:
            return drawn[0]
        flat = torch.stack([torch.cat([value.reshape(-1) for value in theta.values()]) for theta in drawn])
        spread = (flat - flat.median(0).values).abs()
        return drawn[int((spread / spread.median(0).values.clamp(min=1e-12)).sum(1).argmin())]


class _Known(torch.autograd.Function):
    """Numbers (S, n) whose gradient in z (S, n, k) came with them; every number depends on its own z alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grad[0][..., None]).to(slope.dtype), None, None


def _equal(a: Theta, b: Theta) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)
