"""What all doors to pgmpy need: the library itself, names of nodes, levels."""

import importlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from probgen.errors import MissingExtra, ParameterError, StructureError
from probgen.events import Category

__all__ = ["category", "door", "notes", "texts"]


def door(module: str) -> Any:
    """A module of pgmpy, or one that comes with it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it imports
            return importlib.import_module(module)
    except ImportError as missing:
        raise MissingExtra("pgmpy", "pgmpy") from missing


def texts(nodes: Iterable) -> dict[Any, str]:
    """Column names of the nodes: theirs as text."""
    names = {node: str(node) for node in nodes}
    if not names or len(set(names.values())) < len(names):
        raise StructureError(f"nodes {list(names)[:12]}", "at least one, each of its own name")
    return names


def category(node: Any, states: Iterable) -> Category:
    """The column of a node with these states."""
    try:
        return Category(tuple(states))
    except ParameterError as problem:
        raise StructureError(f"The states of {node!r}: {problem.came}", problem.wanted, problem.do) from problem


def notes(names: Mapping[Any, str], off: float = 0.0) -> list[str]:
    """What came in changed; ``off``: by how much rows missed 1."""
    found = [f"renormalised rows, off by up to {off:.3g}"] if off > 1e-12 else []
    odd = [node for node in names if not isinstance(node, str)]
    return [*found, f"nodes that were no text: {odd[:12]}"] if odd else found
