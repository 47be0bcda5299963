"""Networks that a user has in the head: tables by the names of their levels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import ParameterError, ProbgenError, ShapeError, StructureError, nearest
from probgen.events import Category

__all__ = ["read_tables", "set_tables"]


class _Entry(NamedTuple):
    levels: tuple
    parents: tuple[str, ...]
    table: Any  # an array, or a mapping of configurations to rows


def read_tables(tables: Any) -> tuple[dict[str, tuple], list[tuple[str, str]], dict[str, Any]]:
    """Levels, edges and probabilities, axes (*parents, levels), of ``BayesianNetwork.from_tables``'s tables."""
    if not isinstance(tables, Mapping) or not tables or not all(isinstance(name, str) for name in tables):
        raise StructureError(
            f"tables={tables!r:.80}", "a dict of variable name: table", "{'rain': {'no': 0.8, 'yes': 0.2}}"
        )
    entries = {name: _entry(name, given) for name, given in tables.items()}
    for name, entry in entries.items():
        for parent in entry.parents:
            if parent not in entries:
                raise StructureError(
                    f"{name!r} has the parent {parent!r}, which has no table", "", nearest(parent, entries)
                )
    levels = {name: entry.levels for name, entry in entries.items()}
    for name, own in levels.items():
        with _naming(name):
            Category(own)
    edges = [(parent, name) for name, entry in entries.items() for parent in entry.parents]
    return levels, edges, {name: _array(name, entry, levels) for name, entry in entries.items()}


def _entry(name: str, given: Any) -> _Entry:
    if isinstance(given, Mapping):
        if any(isinstance(row, Mapping) for row in given.values()):
            came = f"The table of {name!r} has a row for each of {list(given)[:6]}, but names no parent"
            do = f"{name!r}: ('the parent', {{{next(iter(given))!r}: {{...}}}})"
            raise StructureError(came, "a pair (parents, rows)", do)
        return _Entry(tuple(given), (), {(): given})
    parts = given if isinstance(given, tuple) else ()
    if len(parts) == 2 and isinstance(parts[1], Mapping):
        parents, found = _names(name, parts[0]), {_key(key): row for key, row in parts[1].items()}
        if not found or not all(isinstance(row, Mapping) for row in found.values()):
            raise StructureError(
                f"{name!r}: {parts[1]!r:.80}", "a row {level: probability} a configuration of its parents"
            )
        return _Entry(tuple(next(iter(found.values()))), parents, found)
    if len(parts) == 2:
        return _Entry(_levels(name, parts[0]), (), parts[1])
    if len(parts) == 3:
        return _Entry(_levels(name, parts[0]), _names(name, parts[1]), parts[2])
    raise StructureError(
        f"{name!r}: {given!r:.80}",
        "{level: probability}, (parents, {configuration: {level: probability}}) or (levels, [parents,] array)",
    )


def set_tables(net: Any, arrays: Mapping[str, Any]) -> None:
    """Puts probabilities into a network; what is wrong with them is told with the name of the variable."""
    for name, probabilities in arrays.items():
        with _naming(name):
            net.conditional(name).set_table(probabilities)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except ProbgenError as problem:
        raise type(problem)(f"Variable {name!r}: {problem.came}", problem.wanted, problem.do) from problem


def _key(key: Any) -> tuple:
    return key if isinstance(key, tuple) else (key,)


def _names(name: str, given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if not names or not all(isinstance(parent, str) for parent in names):
        raise StructureError(
            f"{name!r} has parents {given!r}", "a name, or a tuple of names", "Without parents leave them out"
        )
    return names


def _levels(name: str, given: Any) -> tuple:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise StructureError(f"{name!r} has levels {given!r:.80}", "a tuple of levels", "('no', 'yes')")
    return tuple(given)


def _array(name: str, entry: _Entry, levels: Mapping[str, tuple]) -> Any:
    """Probabilities (*parents, levels)."""
    if not isinstance(entry.table, Mapping):
        shape = tuple(len(levels[n]) for n in (*entry.parents, name))
        if (came := np.shape(entry.table)) != shape:
            raise ShapeError(f"The table of {name!r} has shape {came}", f"{shape}: {[*entry.parents, name]}")
        return entry.table
    configurations = list(product(*(levels[parent] for parent in entry.parents)))
    if unknown := [key for key in entry.table if key not in set(configurations)]:
        wanted = f"one level of each of {list(entry.parents)}: {configurations[:6]}"
        raise StructureError(f"The table of {name!r} has a row for {unknown[0]}", wanted)
    for key in configurations:
        if key not in entry.table:
            raise StructureError(
                f"The table of {name!r} has no row for {key}", f"a row for each of {len(configurations)}"
            )
        if set(entry.table[key]) != set(entry.levels):
            raise StructureError(
                f"The table of {name!r} has levels {list(entry.table[key])} in the row {key}",
                f"{list(entry.levels)} in every row",
                "Write impossible ones with probability 0",
            )
    rows = [[entry.table[key][level] for level in entry.levels] for key in configurations]
    try:
        found = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise ParameterError(f"The table of {name!r} holds what is no number: {problem}", "probabilities") from problem
    return found.reshape(*(len(levels[parent]) for parent in entry.parents), len(entry.levels))
