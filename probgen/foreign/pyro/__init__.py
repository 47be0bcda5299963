"""Pyro's programs as models, and its DiscreteHMM as HiddenMarkov and back."""

from typing import Any

from torch.distributions import Distribution

from probgen.errors import StructureError
from probgen.foreign.pyro.discretehmm import export, from_discrete
from probgen.foreign.pyro.program import PyroProgram

__all__ = ["PyroProgram", "export", "wrap"]


def wrap(foreign: Any, **options: Any) -> Any:
    """A DiscreteHMM as HiddenMarkov; a program, or a pair of model and guide, as PyroProgram with these options."""
    if isinstance(foreign, Distribution):
        return from_discrete(foreign)
    if "event" not in options:
        name = getattr(foreign, "__name__", type(foreign).__name__)
        raise StructureError(
            f"The program {name} without event=", "what one row is", "wrap(program, event=probgen.events.infer(data))"
        )
    return PyroProgram(foreign, **options)
