"""Draws of a program's rows: it runs on rows that stand for any, and its observations are let loose."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from probgen.errors import StructureError
from probgen.events import Array, Event, Table
from probgen.svi import Program, Structure

__all__ = ["Released", "draw", "template"]


class Released(Messenger):
    """Lets observed sites be drawn: those of a list of names, or all but what is held fixed."""

    def __init__(self, names: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        chosen = not msg["infer"].get("fixed") if self.names is None else msg["name"] in self.names
        if msg["is_observed"] and chosen:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def draw(
    program: Program,
    structure: Structure,
    stand: Sequence[Tensor],
    given: Tensor | None,
    shared: Mapping[str, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Rows of the program at given shared latents, in its own dtype.

    Arguments:
        stand: Two sets of rows to call the program with; the draws must be the same for both.

    Raises:
        StructureError: the program has several observed sites, or its draws change with the data that it is called
            with, so that they are not draws of its rows.
    """
    state, found = generator.get_state(), []
    for x in stand:
        generator.set_state(state)
        with program.running(generator), Released(structure.observed):
            released = poutine.trace(poutine.condition(program.pair[0], data=dict(shared)))
            nodes: Any = released.get_trace(x, given).nodes
        found.append(_one([nodes[name]["value"] for name in structure.observed], structure).reshape(x.shape))
    if not torch.equal(*found):
        raise StructureError(
            "The program's draws depend on the data that it was called with",
            "data that are only observed (obs=x)",
            "Draw from the program itself, without data",
        )
    return found[0]


def _one(values: list[Tensor], structure: Structure) -> Tensor:
    if len(values) == 1:
        return values[0]
    raise StructureError(
        f"Draws of {len(values)} observed sites, {', '.join(structure.observed)}", "one observed site", "Join them"
    )


def template(event: Event, n: int, dtype: torch.dtype, other: bool = False) -> Tensor:
    """Rows that an event allows, all alike, for programs that want to see some before they draw."""
    if isinstance(event, Table):
        return torch.full((n, len(event.columns)), float(other), dtype=dtype)
    if not isinstance(event, Array):
        raise StructureError(f"{event!r}", "an Array or a Table")
    value = float(other)
    if event.levels is None and event.support in ("positive", "unit"):
        value = {"positive": (event.resolution or 1.0) * (1 + other), "unit": 0.5 - 0.25 * other}[event.support]
    return torch.full((n, *event.shape), value, dtype=dtype)
