"""Network files that pgmpy's readers read: .xmlbif, .xml, .net, .xdsl."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probgen.errors import StoreError
from probgen.foreign.pgmpy.networks import discrete
from probgen.foreign.pgmpy.parts import door
from probgen.models.bayesnet import BayesianNetwork

__all__ = ["read"]


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
    reader_of = getattr(door("pgmpy.readwrite"), name)
    try:
        foreign = reader_of(string=text).get_model()
        wanted = count(text)
    except Exception as problem:
        raise StoreError(
            f"pgmpy's {name} can't read {path}: {type(problem).__name__}: {problem}", f"a whole {path.suffix} file",
            "Restore it, or convert it to .bif",
        ) from problem  # fmt: skip
    _refuse_partial(path, foreign, wanted)
    return discrete(foreign)


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
