"""Somebody else's model behind the same verbs, and ours in their form. Found by the module of its type, never imported
before it is there."""

import importlib
from typing import Any

from probgen.errors import ParameterError, StructureError, nearest
from probgen.model import GenerativeModel

__all__ = ["export", "wrap"]

_FROM = {"hmmlearn": "probgen.foreign.hmmlearn", "pyro": "probgen.foreign.pyro"}


def wrap(foreign: Any) -> Any:
    """A foreign fitted model as one of ours, with the same likelihood.

    Arguments:
        foreign: A fitted hmmlearn model (CategoricalHMM, GaussianHMM, GMMHMM, PoissonHMM), or Pyro's DiscreteHMM.

    Returns:
        A fitted HMM; for a DiscreteHMM the distribution HiddenMarkov, in our convention of the first step.

    Raises:
        StructureError: of a kind that has no counterpart here.
        NotFittedError: without parameters.
    """
    library = type(foreign).__module__.partition(".")[0]
    if library not in _FROM:
        raise StructureError(
            f"A {type(foreign).__module__}.{type(foreign).__qualname__}", f"a model of {' or '.join(sorted(_FROM))}"
        )
    return importlib.import_module(_FROM[library]).wrap(foreign)


def export(model: GenerativeModel, to: str, **options: Any) -> Any:
    """A fitted model of ours in a foreign library's form, with the same likelihood.

    Arguments:
        to: "hmmlearn"; "pyro" (DiscreteHMM; needs ``duration=``).

    Raises:
        StructureError: the model has a part that the library lacks; it is named.
    """
    if to not in _FROM:
        raise ParameterError(f"export to {to!r}", "", nearest(to, _FROM))
    model._check_fitted()
    return importlib.import_module(_FROM[to]).export(model, **options)
