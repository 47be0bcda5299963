"""Pyro's programs as models, and its DiscreteHMM as HiddenMarkov and back."""

from typing import Any

from torch.distributions import Distribution

from probgen.foreign.pyro.discretehmm import export, from_discrete
from probgen.foreign.pyro.program import PyroProgram

__all__ = ["PyroProgram", "export", "wrap"]


def wrap(foreign: Any, **options: Any) -> Any:
    """A DiscreteHMM as HiddenMarkov; a program, or a pair of model and guide, as PyroProgram with these options."""
    if isinstance(foreign, Distribution):
        return from_discrete(foreign)
    return PyroProgram(foreign, **options)
