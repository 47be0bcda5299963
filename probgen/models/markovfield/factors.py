"""What a field is made of: variables with their levels, factors with their variables, and tables of log-potentials."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError, ShapeError, StructureError, nearest
from probgen.events import Category, Event, Table

__all__ = ["Group", "Parts", "blocks_of", "grid", "groups_of", "ising", "log_table", "rbm", "read", "unsuited", "whole"]

_DO = "MarkovField({('a', 'b'): log_potentials, ...})"


@dataclass(frozen=True, eq=False)
class Parts:
    """A field taken apart.

    Arguments:
        event: Of what is observed; its columns are the visible variables.
        hidden: Levels of the variables that are summed out, by name.
        scopes: Of each factor, the names of its variables, in the order of its table's axes.
        tables: Log-potentials of each factor; None where they are to be learned.
    """

    event: Table
    hidden: dict[str, tuple]
    scopes: tuple[tuple[str, ...], ...]
    tables: list[np.ndarray] | None


@dataclass(frozen=True, eq=False)
class Group:
    """The factors whose tables have one shape.

    Arguments:
        places: Their numbers among all factors, m of them.
        scopes: Their variables, shape (m, k), int64.
    """

    places: tuple[int, ...]
    scopes: Tensor


def read(factors: Any, event: Table | None, levels: Any, hidden: Any) -> Parts:
    """The constructor's arguments, checked.

    Raises:
        StructureError: scopes that repeat, unknown or unused variables, levels that are nowhere said.
        ParameterError: log-potentials that are NaN, +inf or all -inf.
        ShapeError: tables that do not fit their variables' levels.
    """
    if isinstance(factors, Event):
        why = unsuited(factors)
        came = f"MarkovField does not suit {factors!r:.200}: {why}" if why else "An event in the place of factors"
        raise StructureError(came, "factors, and event= by name", "MarkovField.for_event(event) chooses factors")
    if event is not None and levels is not None:
        raise StructureError("event= and levels= together", "one of them", "The event declares the levels")
    if event is not None and (not isinstance(event, Event) or unsuited(event)):
        raise StructureError(f"event={event!r:.200}", "a Table of Category columns", _DO)
    named = _scopes(factors)
    tables = None
    if isinstance(factors, Mapping):
        tables = [log_table(table, scope) for scope, table in zip(named, factors.values(), strict=True)]
    known = _declared(event, levels)
    unseen = _hidden(hidden)
    for name in unseen:
        if event is not None and name in known:
            raise StructureError(f"{name!r} is hidden and a column of the event", "one of the two")
    known |= {name: own for name, own in unseen.items() if own is not None}
    if tables is not None:
        _from_tables(known, named, tables, event)
    _check_variables(known, named, unseen)
    if tables is not None:
        _check_shapes(known, named, tables)
    columns = {name: Category(own) for name, own in known.items() if name not in unseen}
    if not columns:
        raise StructureError("A field whose variables are all hidden", "at least one that is observed")
    return Parts(event or Table(columns), {name: known[name] for name in unseen}, named, tables)


def unsuited(event: Event) -> str | None:
    """Why a field does not suit an event; None where it does."""
    if not isinstance(event, Table):
        return f"its variables are the columns of a table, not {type(event).__name__}"
    for name, column in event.columns.items():
        if not isinstance(column, Category):
            return f"column {name!r} is {type(column).__name__}: its variables are categories"
    return None


def _scopes(factors: Any) -> tuple[tuple[str, ...], ...]:
    if isinstance(factors, str | bytes) or not isinstance(factors, Iterable):
        raise StructureError(f"factors={factors!r:.80}", "a dict of log-potentials by their variables' names", _DO)
    found = tuple((scope,) if isinstance(scope, str) else _names(scope) for scope in factors)
    if not found:
        raise StructureError("A field without factors", "at least one", _DO)
    seen: set[frozenset] = set()
    for scope in found:
        if len(set(scope)) < len(scope):
            raise StructureError(f"The factor {scope} names a variable twice", "distinct variables")
        if frozenset(scope) in seen:
            raise StructureError(f"Two factors over {sorted(scope)}", "one factor a set of variables", "Add their logs")
        seen.add(frozenset(scope))
    return found


def _names(scope: Any) -> tuple[str, ...]:
    names = tuple(scope) if isinstance(scope, list | tuple) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise StructureError(f"A factor over {scope!r:.80}", "a name, or a tuple of names", _DO)
    return names


def log_table(table: Any, scope: Sequence[str]) -> np.ndarray:
    """Log-potentials as float64. -inf is a configuration that can't be; NaN, +inf, or nothing but -inf is refused."""
    try:
        found = np.array(table.detach().cpu() if isinstance(table, Tensor) else table, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise ParameterError(f"Log-potentials of {tuple(scope)}: {problem}", "an array of numbers") from problem
    if np.isnan(found).any() or np.isposinf(found).any():
        value = "NaN" if np.isnan(found).any() else "+inf"
        raise ParameterError(f"A log-potential of {tuple(scope)} is {value}", "finite numbers, or -inf for impossible")
    if found.size == 0 or np.isneginf(found).all():
        raise ParameterError(
            f"The log-potentials of {tuple(scope)} are all -inf", "at least one configuration that can be",
            "Zero potentials have logarithm -inf: were they meant as logarithms?",
        )  # fmt: skip
    return found


def _declared(event: Table | None, levels: Any) -> dict[str, tuple]:
    if event is not None:
        return {name: column.levels for name, column in event.columns.items() if isinstance(column, Category)}
    if levels is None:
        return {}
    if not isinstance(levels, Mapping):
        raise StructureError(f"levels={levels!r:.80}", "a dict of name: tuple of levels, or their number")
    return {str(name): _levels(name, own) for name, own in levels.items()}


def _levels(name: Any, own: Any) -> tuple:
    if isinstance(own, int) and not isinstance(own, bool):
        own = tuple(range(own))
    try:
        return Category(tuple(own)).levels
    except (TypeError, ParameterError) as problem:
        raise StructureError(
            f"Levels {own!r:.80} of {name!r}", "a tuple of distinct levels, or their number"
        ) from problem


def _hidden(hidden: Any) -> dict[str, tuple | None]:
    if isinstance(hidden, Mapping):
        return {str(name): _levels(name, own) for name, own in hidden.items()}
    if isinstance(hidden, str) or not isinstance(hidden or (), Iterable):
        raise StructureError(f"hidden={hidden!r}", "names, or a dict of name: levels")
    return {str(name): None for name in hidden or ()}


def _from_tables(
    known: dict[str, tuple], scopes: Sequence[tuple[str, ...]], tables: Sequence[np.ndarray], event: Table | None
) -> None:
    """Levels 0, 1, ... of variables that nobody declared, as many as the first table has."""
    for scope, table in zip(scopes, tables, strict=True):
        if table.ndim != len(scope):
            raise ShapeError(f"Log-potentials of shape {table.shape} for {scope}", f"{len(scope)} axes, one a variable")
        for name, size in zip(scope, table.shape, strict=True):
            if name not in known and event is not None:
                raise StructureError(
                    f"The factor {scope} names {name!r}, no column of the event", "", nearest(name, known)
                )
            known.setdefault(name, tuple(range(size)))


def _check_variables(known: dict[str, tuple], scopes: Sequence[tuple[str, ...]], hidden: Mapping[str, Any]) -> None:
    used = {name for scope in scopes for name in scope}
    for name in used:
        if name not in known:
            raise StructureError(f"The levels of {name!r} are nowhere said", "event= or levels=", nearest(name, known))
    for name in (*known, *hidden):
        if name not in used:
            raise StructureError(
                f"No factor holds the variable {name!r}", "a factor for each variable",
                f"Say that it is uniform: {{({name!r},): zeros}}, or leave it out",
            )  # fmt: skip


def _check_shapes(known: dict[str, tuple], scopes: Sequence[tuple[str, ...]], tables: Sequence[np.ndarray]) -> None:
    for scope, table in zip(scopes, tables, strict=True):
        wanted = tuple(len(known[name]) for name in scope)
        if table.shape != wanted:
            raise ShapeError(
                f"Log-potentials of shape {table.shape} for {scope}", f"{wanted}: the levels of its variables, in order"
            )


def groups_of(cards: Sequence[int], scopes: Sequence[Sequence[int]]) -> list[Group]:
    """Factors by the shape of their tables, in order of first occurrence."""
    found: dict[tuple[int, ...], list[int]] = {}
    for place, scope in enumerate(scopes):
        found.setdefault(tuple(cards[v] for v in scope), []).append(place)
    return [Group(tuple(own), torch.tensor([list(scopes[f]) for f in own])) for own in found.values()]


def blocks_of(cards: Sequence[int], groups: Sequence[Group], tables: Sequence[np.ndarray] | None) -> list[Tensor]:
    """The log-potentials of each group, shape (m, *levels), float64; zeros where there are none."""
    blocks = []
    for group in groups:
        shape = [cards[v] for v in group.scopes[0].tolist()]
        block = torch.zeros(len(group.places), *shape, dtype=torch.float64)
        if tables is not None:
            block = torch.from_numpy(np.stack([tables[place] for place in group.places]))
        blocks.append(block)
    return blocks


# Shapes that have names

_Scope = tuple[str, ...]


def grid(
    rows: int, cols: int, unary: Any, across: Any, down: Any, levels: int
) -> dict[_Scope, np.ndarray] | list[_Scope]:
    """Factors of a lattice: of each cell, of each cell and its right neighbour, of each cell and the one below."""
    for name, value in (("rows", rows), ("cols", cols), ("levels", levels)):
        whole(name, value)
    shapes = {"unary": (rows, cols, levels), "across": (rows, cols - 1, levels, levels),
              "down": (rows - 1, cols, levels, levels)}  # fmt: skip
    given = {"unary": unary, "across": across, "down": down}
    steps = {"unary": None, "across": (0, 1), "down": (1, 0)}
    scopes: dict[_Scope, np.ndarray] = {}
    for name, shape in shapes.items():
        table = np.zeros(shape) if given[name] is None else np.asarray(given[name], dtype=np.float64)
        if table.shape not in (shape, shape[2:]):
            raise ShapeError(f"{name} of shape {table.shape}", f"{shape}, or {shape[2:]} for all alike")
        table = np.broadcast_to(table, shape)
        for i, j in np.ndindex(*shape[:2]):
            step = steps[name]
            other = () if step is None else (f"x{i + step[0]}_{j + step[1]}",)
            scopes[(f"x{i}_{j}", *other)] = table[i, j]
    return list(scopes) if all(value is None for value in given.values()) else scopes


def ising(rows: int, cols: int, coupling: float, field: float, periodic: bool) -> dict[_Scope, np.ndarray]:
    """log p = coupling * sum over neighbours of s s' + field * sum of s, up to log Z; spins -1 and 1."""
    spins = np.array([-1.0, 1.0])
    pair = float(coupling) * np.outer(spins, spins)
    found = grid(rows, cols, float(field) * spins, pair, pair, 2)
    if not isinstance(found, dict):
        raise StructureError("An Ising model without potentials", "a coupling and a field")
    if periodic:
        if min(rows, cols) < 3:
            raise ParameterError(f"periodic=True on {rows} x {cols}", "at least 3 x 3: else neighbours meet twice")
        found |= {(f"x{i}_{cols - 1}", f"x{i}_0"): pair for i in range(rows)}
        found |= {(f"x{rows - 1}_{j}", f"x0_{j}"): pair for j in range(cols)}
    return found


def rbm(visible: int, hidden: int, weights: Any, visible_bias: Any, hidden_bias: Any) -> Any:
    """log p(v, h) = v W h + a v + b h up to log Z; units 0 and 1."""
    whole("visible", visible)
    whole("hidden", hidden)
    names = [f"v{i}" for i in range(visible)], [f"h{j}" for j in range(hidden)]
    shapes = {"visible_bias": (visible,), "hidden_bias": (hidden,), "weights": (visible, hidden)}
    given = {"visible_bias": visible_bias, "hidden_bias": hidden_bias, "weights": weights}
    found: dict[_Scope, np.ndarray] = {}
    for name, shape in shapes.items():
        value = np.zeros(shape) if given[name] is None else np.asarray(given[name], dtype=np.float64)
        if value.shape != shape:
            raise ShapeError(f"{name} of shape {value.shape}", f"{shape}")
        if name == "weights":
            found |= {
                (names[0][i], names[1][j]): np.array([[0.0, 0.0], [0.0, value[i, j]]]) for i, j in np.ndindex(*shape)
            }
        else:
            own = names[name == "hidden_bias"]
            found |= {(own[i],): np.array([0.0, value[i]]) for i in range(len(own))}
    return list(found) if all(value is None for value in given.values()) else found


def whole(name: str, value: Any, least: int = 1) -> None:
    """Raises ParameterError where a number is not whole, or too small."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name}={value!r}", f"a whole number, at least {least}")
