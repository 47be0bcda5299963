"""Markov networks and factor graphs: pgmpy's as MarkovField and back."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from probgen.errors import NotFittedError, StructureError
from probgen.events import Table
from probgen.foreign.pgmpy.parts import category, door, notes, texts
from probgen.models.markovfield import MarkovField

__all__ = ["export", "field"]


def field(foreign: Any) -> MarkovField:
    """A DiscreteMarkovNetwork or FactorGraph; its latents are hidden variables.

    Its factors are what counts: edges and factor nodes only have to fit them.
    """
    factors = list(foreign.get_factors())
    if not factors:
        raise NotFittedError(f"A {type(foreign).__name__} without factors", "one at least", "Call its add_factors")
    held = {node for factor in factors for node in factor.variables}
    _refuse_loose(foreign, factors, held)
    names = texts(node for node in foreign.nodes() if node in held)
    states = _states(factors)
    columns = {names[node]: category(node, states[node]) for node in names}
    latent = {str(node) for node in getattr(foreign, "latents", ())}
    event = Table({name: column for name, column in columns.items() if name not in latent})
    hidden = {name: column.levels for name, column in columns.items() if name in latent}
    joined, again = _joined(factors, names)
    found = MarkovField(joined, event, hidden=hidden or None)
    return found.imported(*notes(names), *again)


def _refuse_loose(foreign: Any, factors: Sequence, held: set) -> None:
    """Nodes of the graph that no factor knows. In a FactorGraph some nodes are factors, or texts in their place."""
    bipartite = any(kind.__name__ == "FactorGraph" for kind in type(foreign).__mro__)
    scopes = [set(factor.variables) for factor in factors]
    for node in foreign.nodes():
        if bipartite and hasattr(node, "variables"):
            if node not in factors:
                raise StructureError(f"The node {node!r} is not among the factors", "all of them", "Call add_factors")
        elif node not in held and not (bipartite and set(foreign.neighbors(node)) in scopes):
            raise StructureError(
                f"No factor holds the node {node!r}", "a factor for each variable", "Add one of ones if it is uniform"
            )


def _states(factors: Sequence) -> dict[Any, list]:
    """The states of each variable; as in their products names of text stand over bare numbers."""
    found: dict[Any, list] = {}
    for factor in factors:
        for node, card in zip(factor.variables, factor.cardinality, strict=True):
            own = list(factor.state_names[node])
            known = found.setdefault(node, own)
            if len(own) != card or len(known) != card:
                raise StructureError(f"{node!r} has {len(known)} states here and {card} there", "one number of states")
            if _bare(known):
                found[node] = own
            elif own != known and not _bare(own):
                raise StructureError(
                    f"{node!r} has the states {known} in one factor and {own} in another",
                    "the same names in the same order",
                )
    return found


def _bare(states: list) -> bool:
    """Whether states are mere positions, which is what pgmpy takes where none are named."""
    return all(isinstance(s, int) and not isinstance(s, bool) and s == i for i, s in enumerate(states))


def _joined(factors: Sequence, names: dict[Any, str]) -> tuple[dict[tuple[str, ...], np.ndarray], list[str]]:
    """Log-potentials by scope; a field has one factor a set of variables."""
    found: dict[frozenset, tuple[tuple[str, ...], np.ndarray]] = {}
    for factor in factors:
        scope = tuple(names[node] for node in factor.variables)
        first, table = found.setdefault(frozenset(scope), (scope, np.zeros(tuple(factor.cardinality))))
        own = _logarithms(scope, np.asarray(factor.values, dtype=np.float64))
        table = table + own.transpose([scope.index(name) for name in first])
        if np.isneginf(table).all():
            raise StructureError(f"The potentials over {first} together are all zero", "something that can be")
        found[frozenset(scope)] = (first, table)
    joined = len(factors) - len(found)
    note = [f"{joined} factors over variables that another one has were joined to it"] if joined else []
    return dict(found.values()), note


def _logarithms(scope: tuple[str, ...], values: np.ndarray) -> np.ndarray:
    if not (np.isfinite(values) & (values >= 0)).all() or not values.any():
        odd = values[~(np.isfinite(values) & (values >= 0))]
        raise StructureError(
            f"A potential over {scope} is {odd[0]}" if odd.size else f"The potentials over {scope} are all zero",
            "finite numbers, not negative, not all zero", "Potentials are no logarithms",
        )  # fmt: skip
    with np.errstate(divide="ignore"):
        return np.log(values)


def export(model: MarkovField) -> Any:
    """A field as a DiscreteMarkovNetwork of potentials exp(theta), hidden variables as its latents.

    A table whose potentials are no floats is divided by its largest one: probabilities stay, log Z does not.

    Raises:
        StructureError: log-potentials of one factor too far apart for floats.
    """
    made = door("pgmpy.models").DiscreteMarkovNetwork(latents=list(model.hidden or ()))
    factor_of = door("pgmpy.factors.discrete").DiscreteFactor
    made.add_nodes_from(model.variables)
    for scope, table in zip(model.factors, model.tables(), strict=True):
        made.add_edges_from(combinations(scope, 2))
        states = {name: list(model.levels_of[name]) for name in scope}
        made.add_factors(factor_of(list(scope), list(table.shape), _potentials(scope, table.numpy()), states))
    return made


def _potentials(scope: tuple[str, ...], table: np.ndarray) -> np.ndarray:
    for shift in (0.0, table.max()):
        with np.errstate(over="ignore", under="ignore"):
            values = np.exp(table - shift)
        if np.isfinite(values).all() and ((values >= np.finfo(float).tiny) | np.isneginf(table)).all():
            return values
    raise StructureError(
        f"The log-potentials over {scope} reach from {table[table > -np.inf].min():.4g} to {table.max():.4g}",
        "at most 708 apart: pgmpy holds no logarithms", "Save the field by probgen.save",
    )  # fmt: skip
