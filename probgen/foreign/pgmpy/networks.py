"""Bayesian networks: pgmpy's as ours and ours as its."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from probgen.conditionals import LinearGaussian
from probgen.errors import NotFittedError, ParameterError, ProbgenError, StructureError
from probgen.events import Column, Real, Table
from probgen.foreign.pgmpy.parts import category, door, notes, texts
from probgen.models.bayesnet import BayesianNetwork

__all__ = ["discrete", "export", "linear"]


def discrete(foreign: Any) -> BayesianNetwork:
    """Of TabularCPDs."""
    names = texts(foreign.nodes())
    cpds = {node: _cpd(foreign, node, "TabularCPD") for node in names}
    levels = {node: list(cpd.state_names[node]) for node, cpd in cpds.items()}
    for node, cpd in cpds.items():
        _refuse_misfit(foreign, node, cpd.variables[1:])
        for parent in cpd.variables[1:]:
            if list(cpd.state_names.get(parent, ())) != levels[parent]:
                raise StructureError(
                    f"The CPD of {node!r} has states {cpd.state_names.get(parent)} of {parent!r}, whose own CPD "
                    f"has {levels[parent]}", "the same names in the same order",
                )  # fmt: skip
    columns = {names[node]: category(node, levels[node]) for node in names}
    net = BayesianNetwork(Table(columns), _edges((node, cpd.variables[1:]) for node, cpd in cpds.items()))
    off = 0.0
    for node, cpd in cpds.items():
        table = np.moveaxis(np.asarray(cpd.values, dtype=np.float64), 0, -1)  # theirs has the child first
        off = max(off, _set(net, str(node), table))
    return net.imported(*notes(names, off))


def linear(foreign: Any) -> BayesianNetwork:
    """Of LinearGaussianCPDs."""
    names = texts(foreign.nodes())
    cpds = {node: _cpd(foreign, node, "LinearGaussianCPD") for node in names}
    for node, cpd in cpds.items():
        _refuse_misfit(foreign, node, cpd.evidence)
    columns: dict[str, Column] = {name: Real() for name in names.values()}
    net = BayesianNetwork(Table(columns), _edges((node, cpd.evidence) for node, cpd in cpds.items()))
    for node, cpd in cpds.items():
        beta = np.asarray(cpd.beta, dtype=np.float64)
        try:
            net.conditional(str(node)).set_natural(intercept=beta[0], coefficients=beta[1:], scale=float(cpd.std))
        except ProbgenError as problem:
            raise StructureError(f"The CPD of {node!r}: {problem}") from problem
    return net.imported(*notes(names, 0.0))


def _cpd(foreign: Any, node: Any, kind: str) -> Any:
    cpd = foreign.get_cpds(node)
    if cpd is None:
        raise NotFittedError(f"The node {node!r} has no CPD", "one for every node", "Call its fit, or add_cpds")
    if type(cpd).__name__ != kind:
        raise StructureError(f"The CPD of {node!r} is a {type(cpd).__name__}", kind)
    return cpd


def _refuse_misfit(foreign: Any, node: Any, evidence: Sequence) -> None:
    parents = list(foreign.predecessors(node))
    if sorted(map(str, parents)) != sorted(map(str, evidence)):
        raise StructureError(f"The CPD of {node!r} is given {list(evidence)}", f"its parents in the graph, {parents}")


def _edges(families: Iterable[tuple[Any, Sequence]]) -> list[tuple[str, str]]:
    return [(str(parent), str(node)) for node, parents in families for parent in parents]


def _set(net: BayesianNetwork, name: str, table: np.ndarray) -> float:
    try:
        return net.conditional(name).set_table(table)  # type: ignore[operator]
    except ParameterError as problem:
        raise StructureError(f"The CPD of {name!r}: {problem}") from problem


def export(model: BayesianNetwork) -> Any:
    """A network of tables as a DiscreteBayesianNetwork, one of linear Gaussians as a LinearGaussianBayesianNetwork."""
    parts = {name: model.conditional(name) for name in model.variables}
    if all(part.tabular for part in parts.values()):
        return _to_discrete(model, parts)
    for name, part in parts.items():
        if not isinstance(part, LinearGaussian) or part.discrete_parents:
            parents = list(model.parents[name])
            raise StructureError(
                f"The node {name!r}, {part!r} given {parents}", "all tables, or all linear Gaussians of real parents",
                "pgmpy has no mixed networks",
            )  # fmt: skip
    return _to_linear(model, parts)


def _to_discrete(model: BayesianNetwork, parts: dict[str, Any]) -> Any:
    made = door("pgmpy.models").DiscreteBayesianNetwork()
    table_of = door("pgmpy.factors.discrete").TabularCPD
    _graph(made, model)
    levels = {name: list(part.child.levels) for name, part in parts.items()}
    for name, part in parts.items():
        parents = list(model.parents[name])
        with torch.no_grad():
            values = part.log_table().exp().numpy().reshape(-1, len(levels[name])).T
        states = {each: levels[each] for each in (name, *parents)}
        made.add_cpds(table_of(name, len(values), values, parents, [len(levels[p]) for p in parents], states))
    return made


def _to_linear(model: BayesianNetwork, parts: dict[str, Any]) -> Any:
    made = door("pgmpy.models").LinearGaussianBayesianNetwork()
    regression_of = door("pgmpy.factors.continuous").LinearGaussianCPD
    _graph(made, model)
    for name, part in parts.items():
        with torch.no_grad():
            found = {key: value.numpy() for key, value in part.natural().items()}
        beta = [float(found["intercept"]), *found["coefficients"].tolist()]
        made.add_cpds(regression_of(name, beta, float(found["scale"]), list(model.parents[name])))
    return made


def _graph(made: Any, model: BayesianNetwork) -> None:
    made.add_nodes_from(model.variables)
    made.add_edges_from(model.edges)
