"""The door to pgmpy: its networks as ours and ours as its, and the files that its readers read."""

import importlib
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probgen.conditionals import LinearGaussian
from probgen.errors import MissingExtra, NotFittedError, ParameterError, ProbgenError, StoreError, StructureError
from probgen.events import Category, Column, Real, Table
from probgen.models.bayesnet import BayesianNetwork

__all__ = ["export", "read", "wrap"]


def wrap(foreign: Any) -> BayesianNetwork:
    """A pgmpy network with its CPDs as ours. State names are kept, and the order of parents is that of each CPD.

    Raises:
        StructureError: of a kind that has no counterpart here; CPDs that do not fit the graph or each other; rows off
            1 by more than 1e-6, of which pgmpy bears 0.01.
        NotFittedError: a node without a CPD.
    """
    for kind in type(foreign).__mro__:
        if kind.__name__ in _KINDS:
            return _KINDS[kind.__name__](foreign)
    name = type(foreign).__name__
    raise StructureError(f"pgmpy's {name}", f"one of {', '.join(_KINDS)}", _INSTEAD.get(name, "It has no counterpart"))


_INSTEAD = {
    "DynamicBayesianNetwork": "Unroll its two slices by probgen.models.bayesnet.dynamic",
    "FunctionalBayesianNetwork": "Give its functions to probgen.conditionals.Program",
}


def _discrete(foreign: Any) -> BayesianNetwork:
    names = _names(foreign)
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
    columns = {names[node]: _category(node, levels[node]) for node in names}
    net = BayesianNetwork(Table(columns), _edges((node, cpd.variables[1:]) for node, cpd in cpds.items()))
    off = 0.0
    for node, cpd in cpds.items():
        table = np.moveaxis(np.asarray(cpd.values, dtype=np.float64), 0, -1)  # theirs has the child first
        off = max(off, _set(net, str(node), table))
    return net.imported(*_notes(names, off))


def _linear(foreign: Any) -> BayesianNetwork:
    names = _names(foreign)
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
    return net.imported(*_notes(names, 0.0))


_KINDS: dict[str, Callable[[Any], Any]] = {
    "DiscreteBayesianNetwork": _discrete,
    "LinearGaussianBayesianNetwork": _linear,
}


def _names(foreign: Any) -> dict[Any, str]:
    """Column names of the nodes: theirs as text."""
    names = {node: str(node) for node in foreign.nodes()}
    if not names or len(set(names.values())) < len(names):
        raise StructureError(f"nodes {list(names)[:12]}", "at least one, each of its own name")
    return names


def _category(node: Any, states: list) -> Category:
    try:
        return Category(tuple(states))
    except ParameterError as problem:
        raise StructureError(f"The states of {node!r}: {problem.came}", problem.wanted, problem.do) from problem


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


def _notes(names: dict[Any, str], off: float) -> list[str]:
    found = [f"renormalised rows, off by up to {off:.3g}"] if off > 1e-12 else []
    odd = [node for node in names if not isinstance(node, str)]
    return [*found, f"nodes that were no text: {odd[:12]}"] if odd else found


def export(model: Any) -> Any:
    """A network of tables as a DiscreteBayesianNetwork, one of linear Gaussians as a LinearGaussianBayesianNetwork."""
    if not isinstance(model, BayesianNetwork):
        raise StructureError(f"A {type(model).__name__}", "a BayesianNetwork", "pgmpy has no other counterpart")
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
    made = _door("pgmpy.models").DiscreteBayesianNetwork()
    table_of = _door("pgmpy.factors.discrete").TabularCPD
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
    made = _door("pgmpy.models").LinearGaussianBayesianNetwork()
    regression_of = _door("pgmpy.factors.continuous").LinearGaussianCPD
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


def _door(module: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it imports
            return importlib.import_module(module)
    except ImportError as missing:
        raise MissingExtra("pgmpy", "pgmpy") from missing


# Files


def read(path: str | Path) -> BayesianNetwork:
    """A network file through pgmpy's reader: .xmlbif, .xml, .net, .xdsl.

    Its readers pass over what they do not know. The file's nodes, states and tables are therefore counted here, and a
    file that says more than was read is refused.

    Raises:
        StoreError: no such file, or one that its reader can't read, or reads in part.
    """
    path = Path(path)
    name, prepared, count = _READERS[path.suffix.lower()]
    try:
        text = prepared(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as problem:
        raise StoreError(f"{path} can't be read: {problem}", f"a {path.suffix} file in UTF-8") from problem
    reader_of = getattr(_door("pgmpy.readwrite"), name)
    try:
        foreign = reader_of(string=text).get_model()
        wanted = count(text)
    except Exception as problem:
        raise StoreError(
            f"pgmpy's {name} can't read {path}: {type(problem).__name__}: {problem}", f"a whole {path.suffix} file",
            "Restore it, or convert it to .bif",
        ) from problem  # fmt: skip
    _refuse_partial(path, foreign, wanted)
    return wrap(foreign)


Families = list[tuple[str, list[str], list[str]]]  # name, states, parents


def _refuse_partial(path: Path, foreign: Any, wanted: Families) -> None:
    """Holds what pgmpy read against names, states and parents as the file has them."""
    cpds = {cpd.variable: cpd for cpd in foreign.get_cpds()}
    names = [name for name, _, _ in wanted]
    for name, states, parents in wanted:
        cpd = cpds.get(name)
        found = None if cpd is None else (list(cpd.state_names[name]), list(cpd.variables[1:]))
        if found != (states, parents) or names.count(name) > 1:
            raise StoreError(
                f"{path}: pgmpy reads {name!r} as {found}, the file has {(states, parents)}",
                "each node once, in plain words without blanks", "Rename it, or convert the file to .bif",
            )  # fmt: skip
    if set(map(str, foreign.nodes())) != set(names):
        raise StoreError(f"{path}: pgmpy reads the nodes {list(foreign.nodes())[:12]}", f"{names[:12]}")


def _no_declaration(text: str) -> str:
    """XML as text must not name its encoding."""
    return re.sub(r"^\s*<\?xml[^>]*\?>", "", text)


def _xmlbif(text: str) -> Families:
    network = _xml(text).find("NETWORK")
    given = {}
    for definition in network.findall("DEFINITION"):
        name = definition.find("FOR").text
        if name in given or len(definition.findall("TABLE")) != 1:
            raise ValueError(f"{name!r} needs one definition with one table")
        given[name] = [parent.text for parent in definition.findall("GIVEN")]
    found = [(v.find("NAME").text, [s.text for s in v.findall("OUTCOME")]) for v in network.findall("VARIABLE")]
    return [(name, states, given[name]) for name, states in found]


def _xdsl(text: str) -> Families:
    nodes = list(_xml(text).find("nodes"))
    odd = [f"{node.tag} {node.get('id')!r}" for node in nodes if node.tag != "cpt"]
    if odd:
        raise ValueError(f"nodes that are no cpt: {odd[:12]}")
    return [
        (node.get("id"), [s.get("id") for s in node.findall("state")], (node.findtext("parents") or "").split())
        for node in nodes
    ]


def _xml(text: str) -> Any:
    from xml.etree import ElementTree

    return ElementTree.fromstring(text)


def _no_comments(text: str) -> str:
    """Hugin's comments run from % to the end of the line; pgmpy takes them for data."""
    return re.sub(r'("[^"\n]*")|%[^\n]*', lambda match: match[1] or "", text)


def _net(text: str) -> Families:
    nodes = re.findall(r"^[^\S\n]*(?:\w+[^\S\n]+)?node[^\S\n]+([^\s{]+)\s*\{([^}]*)\}", text, re.MULTILINE)
    tables = re.findall(r"\bpotential\s*\(([^)|]*)(?:\|([^)]*))?\)\s*\{[^}]*?\bdata\s*=", text)
    given = {child.strip(): parents.split() for child, parents in tables}
    if len(given) != len(nodes) or len(re.findall(r"\bpotential\b", text)) != len(nodes):
        raise ValueError(f"{len(nodes)} nodes and {len(tables)} potentials with data")
    states = {name: re.search(r"\bstates\s*=\s*\(([^)]*)\)", body) for name, body in nodes}
    words = {name: re.findall(r'"([^"]*)"|([^\s,"]+)', match[1]) for name, match in states.items() if match}
    return [(name, [quoted or bare for quoted, bare in words[name]], given[name]) for name, _ in nodes]


_READERS: dict[str, tuple[str, Callable[[str], str], Callable[[str], Families]]] = {
    ".xmlbif": ("XMLBIFReader", _no_declaration, _xmlbif),
    ".bifxml": ("XMLBIFReader", _no_declaration, _xmlbif),
    ".xml": ("XMLBIFReader", _no_declaration, _xmlbif),
    ".net": ("NETReader", _no_comments, _net),
    ".xdsl": ("XDSLReader", _no_declaration, _xdsl),
}
