"""Rows and covariates as one matrix for the training loop; and whether the program's sites take them."""

from collections.abc import Callable

import torch
from torch import Tensor

from probgen.errors import StructureError, SupportError
from probgen.events import Array, Event, take
from probgen.svi import Program, Structure, sites_of

__all__ = ["check_sites", "side_by_side"]


def side_by_side(
    x: Tensor, given: Tensor | None, in_order: bool
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor | None]]]:
    """Rows, covariates and row numbers in one matrix (n, ...), and the way back to (x, given) from some of its rows.

    Arguments:
        in_order: Rows come back in their first order, for guides that know them by their place.
    """
    n, dtype = len(x), x.dtype
    wide = torch.float32 if dtype == torch.float32 else torch.float64
    parts = [x.reshape(n, -1), *([] if given is None else [given.reshape(n, -1)]), torch.arange(n)[:, None]]
    width, shape, more = parts[0].shape[1], x.shape[1:], () if given is None else given.shape[1:]

    def split(batch: Tensor) -> tuple[Tensor, Tensor | None]:
        if in_order:
            batch = batch[batch[:, -1].argsort()]
        cells = batch[:, :width].reshape(len(batch), *shape).to(dtype)
        return cells, None if given is None else batch[:, width:-1].reshape(len(batch), *more).to(dtype)

    return torch.cat([part.to(wide) for part in parts], 1), split


def check_sites(program: Program, structure: Structure, event: Event, x: Tensor, given: Tensor | None) -> None:
    """Holds the distributions of the observed sites against the event and the data.

    Raises:
        StructureError: a site for whole numbers and an event of reals, or the other way round.
        SupportError: data outside a site's support.
    """
    few = torch.arange(min(len(x), 64))
    with program.running(torch.Generator().manual_seed(0), fresh=True):
        sites = sites_of(program.trace_model(take(x, few), None if given is None else take(given, few), {}))
    for name in structure.observed:
        fn, value = sites[name]["fn"], sites[name]["value"]
        if isinstance(event, Array) and fn.support.is_discrete != event.discrete:
            kind = "whole numbers" if fn.support.is_discrete else "reals"
            raise StructureError(
                f"The site {name!r} scores {kind}, the event is {event!r}",
                "a distribution and an event of one kind",
                "Binarise and declare levels=, or change the distribution: ContinuousBernoulli for grey values",
            )
        if not bool(fn.support.check(value).all()):
            raise SupportError(
                f"The site {name!r} observes values outside its support {fn.support}",
                "values inside it",
                "Change the distribution, or the data",
            )
