"""zuko's flows as models, conditional ones with ``given=``. The object comes in; the library is never imported here."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probgen.errors import StructureError
from probgen.events import Array, Event
from probgen.foreign.pair import ForeignDensity
from probgen.logprob import Kind

__all__ = ["wrap"]


def wrap(foreign: Any, event: Event | None = None, context: Event | None = None) -> ForeignDensity:
    """A trained zuko flow or other lazy distribution of vectors, behind the verbs.

    Arguments:
        foreign: Such as ``zuko.flows.NSF(features, context)``. It scores in its own dtype: float32 unless it was
            ``.double()``.
        event: What one row is; None takes vectors of reals as wide as the flow.
        context: For a flow with context, the event of it: ``events.Array((3,))``.

    The likelihood is exact but for a continuous flow (CNF), whose integral has a solver's error: an estimate.

    Raises:
        StructureError: no lazy distribution; a conditional flow without ``context=``; an event of another shape.
    """
    name = type(foreign).__name__
    if not isinstance(foreign, nn.Module) or not any(c.__name__ == "LazyDistribution" for c in type(foreign).__mro__):
        raise StructureError(
            f"zuko's {name}", "a flow, such as zuko.flows.NSF, or a distribution that it gives",
            "A transform alone has no density",
        )  # fmt: skip
    shape = _shape(foreign, context)
    read = Array(shape) if event is None else event
    if tuple(read.shape) != shape:  # type: ignore[attr-defined]
        raise StructureError(f"event={read!r} for a flow of shape {shape}", f"an event of shape {shape}", "Leave out")
    kind = Kind.ESTIMATE if any(type(part).__name__ == "FFJTransform" for part in foreign.modules()) else Kind.EXACT
    return ForeignDensity(
        read, _drawn(foreign), _scored(foreign), by=f"zuko's {name}", kind=kind, context=context, of=foreign,
        fits="a loop over -flow(c).log_prob(x).mean() in zuko",
    )  # fmt: skip


def _at(foreign: Any, given: Tensor | None) -> Any:
    """The distribution at some conditions, in the flow's own dtype."""
    with warnings.catch_warnings():
        # its distributions lack what torch's argument check reads, which zuko switches off and our door keeps on
        warnings.filterwarnings("ignore", message=".*does not define `(arg_constraints|support)`")
        return foreign(None if given is None else given.to(_dtype(foreign)))


def _dtype(foreign: nn.Module) -> torch.dtype:
    tensors = [t.dtype for t in (*foreign.parameters(), *foreign.buffers()) if t.dtype.is_floating_point]
    return tensors[0] if tensors else torch.get_default_dtype()


def _shape(foreign: Any, context: Event | None) -> tuple[int, ...]:
    given = None
    if context is not None:
        if not isinstance(context, Array):
            raise StructureError(f"context={context!r}", "events.Array((numbers,)): what the flow is conditioned on")
        given = torch.zeros(1, *context.shape)
    try:
        with torch.no_grad():
            found = _at(foreign, given)
            found.log_prob(torch.zeros(1, *found.event_shape, dtype=_dtype(foreign)))  # networks run only now
            return tuple(found.event_shape)
    except (RuntimeError, TypeError, ValueError, AttributeError) as problem:
        raise StructureError(
            f"zuko's {type(foreign).__name__} can't be called with {'no context' if given is None else context}",
            "context= as it was built: events.Array((numbers,))", f"It said: {str(problem)[:120]}",
        ) from problem  # fmt: skip


def _scored(foreign: Any) -> Callable:
    def score(x: Tensor, given: Tensor | None) -> Tensor:
        return _at(foreign, given).log_prob(x.to(_dtype(foreign))).to(torch.float64)

    return score


def _drawn(foreign: Any) -> Callable:
    def draw(n: int, given: Tensor | None, generator: torch.Generator) -> Tensor:
        if given is None:
            return _at(foreign, None).sample((n,))
        return _at(foreign, given).sample(())

    return draw
