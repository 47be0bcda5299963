"""A program's local latents as one vector of reals a row: the coordinates that importance samplers work in."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from probgen.foreign.pyro.proposal import push
from probgen.svi import LatentSite, Program, Structure, guide_terms, model_terms, sites_of

__all__ = ["guide_draws", "joint", "pushable", "repeat", "split_sizes"]


def split_sizes(structure: Structure) -> list[int]:
    """Unconstrained numbers a row of each local latent, in order."""
    return [structure.latents[name].cells for name in structure.locals]


def repeat(part: Tensor | None, times: int) -> Tensor | None:
    """(n, ...) -> (times * n, ...): the program sees every draw as a row of its own, whatever networks it holds."""
    if part is None or times == 1:
        return part
    return part.expand(times, *part.shape).reshape(-1, *part.shape[1:])


def joint(
    program: Program, structure: Structure, x: Any, given: Any, z: Tensor, shared: Mapping[str, Tensor]
) -> Tensor:
    """log p(x, z | theta) in unconstrained coordinates, finite latents summed out: z (S, n, k) -> (S, n), float64."""
    draws, n = z.shape[:2]
    values, log_det = dict(shared), torch.zeros(draws * n, dtype=torch.float64)
    for name, part in zip(structure.locals, z.split(split_sizes(structure), dim=-1), strict=True):
        values[name], volume = _constrain(structure.latents[name], part.reshape(draws * n, -1))
        log_det = log_det + volume
    with program.running():
        rows, _ = model_terms(program, structure, repeat(x, draws), repeat(given, draws), values)
    return (rows.to(torch.float64) + log_det).reshape(draws, n)


def _constrain(latent: LatentSite, u: Tensor) -> tuple[Tensor, Tensor]:
    """A site's value (rows at their place) from reals (rows, cells), and log |d value / d reals| of each row."""
    bijection = biject_to(latent.support)
    u = u.reshape(len(u), *bijection.inverse_shape(torch.Size(latent.shape)))
    value = bijection(u)
    volume = bijection.log_abs_det_jacobian(u, value).to(torch.float64).reshape(len(u), -1).sum(1)
    return value.movedim(0, value.ndim + latent.dim), volume


def _unconstrain(latent: LatentSite, value: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The way back: reals (rows, cells), and the same volume."""
    value = value.movedim(value.ndim + latent.dim, 0)
    bijection = biject_to(latent.support)
    u = bijection.inv(value)
    volume = bijection.log_abs_det_jacobian(u, value).to(torch.float64).reshape(rows, -1).sum(1)
    return u.reshape(rows, -1), volume


class _Push(Messenger):
    """Draws local latents by pushing given noise through their distributions."""

    def __init__(self, structure: Structure, noise: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.structure, self.noise = structure, noise

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.noise and not msg["is_observed"]:
            latent = self.structure.latents[msg["name"]]
            noise = self.noise[msg["name"]]
            noise = noise.reshape(len(noise), *latent.shape).movedim(0, len(latent.shape) + 1 + latent.dim)
            msg["value"], msg["done"] = push(msg["fn"], noise), True


def guide_draws(
    program: Program, structure: Structure, x: Any, given: Any, noise: Tensor, shared: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Draws of the guide's local latents as unconstrained z, and log q(z | x): noise (S, n, k) -> (S, n, k), (S, n).

    Raises:
        NotImplementedError: a distribution that is no smooth map of normal noise.
    """
    draws, n = noise.shape[:2]
    if len(structure.locals) == 1:
        return _one_site(program, structure, x, given, noise, shared)
    parts = noise.reshape(draws * n, -1).split(split_sizes(structure), dim=-1)
    named = dict(zip(structure.locals, parts, strict=True))
    with program.running(), _Push(structure, named):
        trace = program.trace_guide(repeat(x, draws), repeat(given, draws), shared)
        log_q, _ = guide_terms(trace, structure, draws * n)
        sites = sites_of(trace)
    return _collect(structure, {name: sites[name]["value"] for name in named}, log_q, (draws, n))


def _one_site(
    program: Program, structure: Structure, x: Any, given: Any, noise: Tensor, shared: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The guide runs on the rows once, and its one distribution is drawn from S times."""
    (name,) = structure.locals
    draws, n = noise.shape[:2]
    latent = structure.latents[name]
    with program.running(), _Push(structure, {name: noise[0]}):
        fn = sites_of(program.trace_guide(x, given, shared))[name]["fn"]
    spread = noise.reshape(draws, n, *latent.shape)
    value = push(fn, spread.movedim(1, spread.ndim + latent.dim))
    log_q = fn.log_prob(value)
    place = latent.dim + len(fn.event_shape)
    log_q = log_q.movedim(log_q.ndim + place, 1).reshape(draws * n, -1).to(torch.float64).sum(1)
    value = value.movedim(value.ndim + latent.dim, 1).reshape(draws * n, *latent.shape)
    value = value.movedim(0, value.ndim + latent.dim)
    return _collect(structure, {name: value}, log_q, (draws, n))


def _collect(
    structure: Structure, values: Mapping[str, Tensor], log_q: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    rows, log_q, parts = size[0] * size[1], log_q.to(torch.float64), []
    for name in structure.locals:
        u, volume = _unconstrain(structure.latents[name], values[name], rows)
        parts.append(u)
        log_q = log_q + volume
    return torch.cat(parts, -1).reshape(*size, -1), log_q.reshape(size)


def pushable(program: Program, structure: Structure, x: Any, given: Any, shared: Mapping[str, Tensor]) -> bool:
    """Whether every local distribution of the guide is a smooth map of normal noise."""
    cells = sum(split_sizes(structure))
    try:
        z, log_q = guide_draws(
            program, structure, x[:1], None if given is None else given[:1], torch.zeros(1, 1, cells), shared
        )
    except (NotImplementedError, AttributeError, RuntimeError):
        return False
    return bool(z.isfinite().all()) and bool(log_q.isfinite().all())
