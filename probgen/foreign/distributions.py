"""Distributions of torch and Pyro as models: one row is one draw."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from probgen.errors import StructureError
from probgen.events import Array, Event
from probgen.foreign.pair import ForeignDensity
from probgen.model import FitReport

__all__ = ["event_of", "wrap"]

_WITHOUT_DENSITY = {
    "Delta": "it is an atom: it has no density",
    "MaskedDistribution": "its masked numbers are 0, no log-probability",
    "Unit": "it holds no number",
    "Dirichlet": "it lives on a simplex, where a density of all its cells does not exist",
    "RelaxedOneHotCategorical": "it lives on a simplex, where a density of all its cells does not exist",
    "LKJCholesky": "it lives on Cholesky factors, where a density of all cells does not exist",
}
_LARGEST = 4096  # levels of one cell


def wrap(foreign: Distribution, event: Event | None = None) -> ForeignDensity:
    """One distribution over rows: of numbers, vectors (``Independent``, ``MultivariateNormal``), mixtures
    (``MixtureSameFamily``), transformed ones. Discrete ones are masses under the counting measure.

    Arguments:
        foreign: With an empty batch shape.
        event: What one row is; None reads it from the shape and the support.

    Values outside the support have log-probability -inf, also where torch would raise.

    Raises:
        StructureError: a batch of distributions; a support that is no box of cells (simplex, sphere, matrices), or
            distributions without a density.
    """
    name = type(foreign).__name__
    if foreign.batch_shape:
        raise StructureError(
            f"{name} with batch_shape {tuple(foreign.batch_shape)}", "one distribution of a row",
            f"If the {foreign.batch_shape.numel()} are the cells of a row: .to_event({len(foreign.batch_shape)}) or "
            f"torch's Independent(d, {len(foreign.batch_shape)})",
        )  # fmt: skip
    if name in _WITHOUT_DENSITY:
        raise StructureError(f"A {name}: {_WITHOUT_DENSITY[name]}", "a distribution of cells", "Wrap another one")
    shape = tuple(foreign.event_shape)
    read = event_of(foreign) if event is None else event
    if tuple(read.shape) != shape:  # type: ignore[attr-defined]
        raise StructureError(f"event={read!r} for a {name} of shape {shape}", f"an event of shape {shape}", "Leave out")
    of = foreign if isinstance(foreign, torch.nn.Module) else None
    made = ForeignDensity(
        read, _drawn(foreign), _scored(foreign), by=f"{_library(foreign)}'s {name}", of=of,
        fits="its parameters set by hand, or learnt by torch or Pyro",
    )  # fmt: skip
    made.report = FitReport((), 0, "imported")
    return made


def _library(foreign: Distribution) -> str:
    return type(foreign).__module__.partition(".")[0]


def _drawn(foreign: Distribution) -> Callable:
    def draw(n: int, given: None, generator: torch.Generator) -> Tensor:
        return foreign.sample(torch.Size([n]))

    return draw


def _scored(foreign: Distribution) -> Callable:
    """log p of rows in the distribution's own dtype, -inf outside the support."""
    one = foreign.sample(torch.Size([1]))
    circular = type(foreign).__name__ == "VonMises"  # torch calls its support the reals, on which it would not end

    def score(x: Tensor, given: None) -> Tensor:
        value = x.to(one.dtype) if one.dtype.is_floating_point else x.to(torch.get_default_dtype())
        inside = _inside(foreign, value)
        if circular:
            inside = inside & (value.abs() <= math.pi)
        safe = torch.where(inside.reshape(-1, *[1] * (x.ndim - 1)), value, one.to(value.dtype))
        nats = foreign.log_prob(safe if one.dtype.is_floating_point else safe.to(one.dtype))
        return torch.where(inside, nats.to(torch.float64), -math.inf)

    return score


def _inside(foreign: Distribution, value: Tensor) -> Tensor:
    """Whether each row lies in the support, (n,)."""
    found = foreign.support.check(value)  # type: ignore[union-attr]
    found = torch.as_tensor(found).expand(torch.broadcast_shapes(found.shape, value.shape[:1]))
    return found.reshape(len(value), -1).all(1)


def event_of(foreign: Distribution) -> Array:
    """What one draw is, from the distribution's shape and support.

    Raises:
        StructureError: a support that is no box of cells.
    """
    shape = tuple(foreign.event_shape)
    try:
        support = _cell_support(foreign.support)
    except NotImplementedError:
        support = None
    found = None if support is None else _array(support, shape)
    if found is None:
        raise StructureError(
            f"{type(foreign).__name__} on {foreign.support!r}", "a support of cells: reals, positive, [0, 1], levels",
            "A simplex, a sphere or a matrix has no density of all its cells",
        )  # fmt: skip
    return found


def _cell_support(support: Any) -> Any:
    """The support of one cell, of a support of rows."""
    while True:
        inner = getattr(support, "base_constraint", None) or getattr(support, "base_support", None)
        if inner is None:
            return support
        support = inner


def _array(support: Any, shape: tuple[int, ...]) -> Array | None:
    """The event of cells on that support; None where there is none."""
    if isinstance(support, type(constraints.boolean)):
        return Array(shape, levels=2)
    if isinstance(support, type(constraints.integer_interval(0, 1))):
        return _levels(support, shape)
    if (
        type(support).__name__ in ("_IntegerGreaterThan", "_IntegerLessThan")
        or support is constraints.nonnegative_integer
    ):
        return Array(shape, support="count") if _bound(support, "lower_bound") in (0, 1) else None
    if isinstance(support, type(constraints.interval(0, 1))):
        unit = _bound(support, "lower_bound") == 0 and _bound(support, "upper_bound") == 1
        return Array(shape, support="unit" if unit else "real")
    if isinstance(support, type(constraints.greater_than(0))) and _bound(support, "lower_bound") == 0:
        return Array(shape, support="positive")
    known = ("_Real", "_GreaterThan", "_GreaterThanEq", "_LessThan", "_HalfOpenInterval", "_IndependentConstraint")
    return Array(shape) if type(support).__name__ in known else None


def _levels(support: Any, shape: tuple[int, ...]) -> Array | None:
    """Whole numbers from 0 to a bound, one for all cells or one for each cell of a vector."""
    low, high = (torch.as_tensor(getattr(support, name)) for name in ("lower_bound", "upper_bound"))
    if bool((low != 0).any()) or bool((high < 1).any()) or bool((high >= _LARGEST).any()):
        return Array(shape, support="count") if bool((low >= 0).all()) else None
    if high.unique().numel() == 1:
        return Array(shape, levels=int(high.unique()) + 1)
    return Array(shape, levels=tuple(int(v) + 1 for v in high.expand(shape))) if len(shape) == 1 else None


def _bound(support: Any, name: str) -> float | None:
    """A bound that is one number for all cells, else None."""
    values = torch.as_tensor(getattr(support, name, math.nan)).double().unique()
    return float(values) if values.numel() == 1 else None
