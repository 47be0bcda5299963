"""The door to pgmpy: its networks and fields as ours and ours as its, the files that its readers read, and graphs that
its PC and GES learn."""

from collections.abc import Callable
from typing import Any

from probgen.errors import StructureError
from probgen.foreign.pgmpy import fields, networks
from probgen.foreign.pgmpy.files import read
from probgen.foreign.pgmpy.graphs import ges, pc
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.markovfield import MarkovField

__all__ = ["export", "ges", "pc", "read", "wrap"]

_KINDS: dict[str, Callable[[Any], Any]] = {
    "DiscreteBayesianNetwork": networks.discrete,
    "LinearGaussianBayesianNetwork": networks.linear,
    "DiscreteMarkovNetwork": fields.field,
    "FactorGraph": fields.field,
}
_INSTEAD = {
    "DynamicBayesianNetwork": "Unroll its two slices by probgen.models.bayesnet.dynamic",
    "FunctionalBayesianNetwork": "Give its functions to probgen.conditionals.Program",
    "JunctionTree": "Wrap the network or field that it comes from",
}


def wrap(foreign: Any) -> BayesianNetwork | MarkovField:
    """A pgmpy network with its CPDs as a BayesianNetwork, a Markov network or factor graph as a MarkovField.

    State names are kept, and the order of parents is that of each CPD. Factors over one set of variables are joined.

    Raises:
        StructureError: of a kind that has no counterpart here; CPDs that do not fit the graph or each other; rows off
            1 by more than 1e-6, of which pgmpy bears 0.01; potentials that are negative, NaN, infinite or all zero.
        NotFittedError: a node without a CPD, a field without factors.
    """
    for kind in type(foreign).__mro__:
        if kind.__name__ in _KINDS:
            return _KINDS[kind.__name__](foreign)
    name = type(foreign).__name__
    raise StructureError(f"pgmpy's {name}", f"one of {', '.join(_KINDS)}", _INSTEAD.get(name, "It has no counterpart"))


def export(model: Any) -> Any:
    """A network of tables as a DiscreteBayesianNetwork, one of linear Gaussians as a LinearGaussianBayesianNetwork, a
    MarkovField as a DiscreteMarkovNetwork."""
    if isinstance(model, MarkovField):
        return fields.export(model)
    if isinstance(model, BayesianNetwork):
        return networks.export(model)
    raise StructureError(
        f"A {type(model).__name__}", "a BayesianNetwork or a MarkovField", "pgmpy has no other counterpart"
    )
