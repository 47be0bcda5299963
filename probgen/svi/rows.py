"""Log-densities of a traced program row by row: finite latents summed out, inner plates multiplied in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from probgen.errors import StructureError
from probgen.svi.program import Program, Site, sites_of
from probgen.svi.structure import Structure

__all__ = ["guide_terms", "model_terms", "split_terms"]


@dataclass(frozen=True, eq=False)
class _Factor:
    """A log-density with the dims of the plates that it stands in."""

    value: Tensor
    plates: frozenset[int]

    def holds(self, dim: int) -> bool:
        return self.value.ndim >= -dim and self.value.shape[dim] > 1


def model_terms(
    program: Program, structure: Structure, x: Any, given: Any, values: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """log p(x_i, z_i | theta) of each row, shape (n,), and log p(theta), a scalar, at the latents given.

    Finite latents that have no value are summed out exactly, row by row. The caller holds ``program.running``.
    """
    first = -1 - structure.nesting if set(structure.finite) - set(values) else None
    return split_terms(program.trace_model(x, given, values, first), structure, len(x))


def guide_terms(trace: Trace, structure: Structure, n: int) -> tuple[Tensor, Tensor]:
    """log q(z_i | x_i, theta) of each row, shape (n,), and log q(theta), a scalar, from a trace of the guide."""
    trace.compute_log_prob()
    return split_terms(trace, structure, n)


def split_terms(trace: Trace, structure: Structure, n: int) -> tuple[Tensor, Tensor]:
    """The log-densities of a trace, with ``log_prob`` computed, by row and of what all rows share."""
    factors, shared, summed = [], [], {}
    for site in sites_of(trace).values():
        dims = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
        if structure.plate not in dims:
            shared.append(site["log_prob"].sum())
            continue
        factors.append(_Factor(site["log_prob"], frozenset(dims.values())))
        row = dims[structure.plate]
        if (dim := _enumerated(site)) is not None:
            summed[dim] = frozenset(dims.values())
    zero = torch.zeros(())
    if not factors:
        return zero.expand(n), sum(shared, zero)
    for dim in sorted(summed, key=lambda d: (-len(summed[d]), d)):
        factors = _sum_out(factors, dim, summed)
    first, *rest = (_by_row(factor.value, row, n) for factor in factors)
    return sum(rest, first), sum(shared, zero)


def _enumerated(site: Site) -> int | None:
    """The dim that a site's values are laid out along; None where it has one value."""
    return None if site["is_observed"] else site["infer"].get("_enumerate_dim")


def _sum_out(factors: list[_Factor], dim: int, summed: Mapping[int, frozenset[int]]) -> list[_Factor]:
    """log sum over the values of one latent, after the plates inside it are multiplied in.

    Raises:
        StructureError: a factor ties latents of plates that are not nested; no elimination order keeps plates whole.
    """
    holding = [factor for factor in factors if factor.holds(dim)]
    joint: Tensor | None = None
    for factor in holding:
        value = factor.value
        for plate in factor.plates - summed[dim]:
            if any(factor.holds(d) and plate in summed[d] for d in summed if d != dim):
                raise StructureError(
                    "A site ties finite latents of two plates that are not nested",
                    "nested plates around finite latents",
                    "Sum one of them by hand",
                )
            value = value.sum(plate, keepdim=True) if value.ndim >= -plate else value
        joint = value if joint is None else joint + value
    rest = [factor for factor in factors if not factor.holds(dim)]
    return rest if joint is None else [*rest, _Factor(joint.logsumexp(dim, keepdim=True), summed[dim])]


def _by_row(value: Tensor, row: int, n: int) -> Tensor:
    """Sums over every dim but the rows', shape (n,)."""
    if value.ndim < -row:
        return value.sum().expand(n)
    if value.ndim == 1:
        return value
    kept = value.movedim(row, 0)
    return kept.reshape(len(kept), -1).sum(1).expand(n)
