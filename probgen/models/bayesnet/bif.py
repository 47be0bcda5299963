"""BIF files: networks of tables, read strictly, written whole or not at all."""

import gzip
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probgen import frames
from probgen.conditionals import Tabular
from probgen.errors import StoreError, StructureError
from probgen.events import Category, Table
from probgen.models.bayesnet.bifreader import EPS, FOREIGN, PLAIN, Bif, foreign, read_bif

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["SUFFIXES", "Bif", "load", "read_bif", "save", "write_bif"]

SUFFIXES = (".bif", ".bif.gz")


def load(path: str | os.PathLike) -> "BayesianNetwork":
    """The network of tables in a .bif or .bif.gz file; it counts as fitted, and its report notes what was corrected.

    Raises:
        StoreError: another format (the message names what reads it), or a fault of the file, by its line.
        StructureError: the file's edges make a cycle.
    """
    from probgen.models.bayesnet.network import BayesianNetwork

    path = Path(path)
    if path.suffix.lower() in FOREIGN:
        raise StoreError(f"{path} is no BIF file", f"one that ends in {' or '.join(SUFFIXES)}", foreign(path))
    found = read_bif(path)
    try:
        net = BayesianNetwork(Table({name: Category(found.levels[name]) for name in found.names}), found.edges)
    except StructureError as problem:
        raise StructureError(f"{path}: {problem.came}", problem.wanted, problem.do) from problem
    with torch.no_grad(), np.errstate(divide="ignore"):
        for name in found.names:  # the reader has checked what set_table would
            net.conditional(name).logits.copy_(torch.from_numpy(np.log(found.tables[name])))  # type: ignore[operator]
    return net.imported(*_notes(found))


def _notes(found: Bif) -> list[str]:
    if not found.corrections:
        return []
    child, worst = max(found.corrections.items(), key=lambda item: item[1])
    return [
        f"the rows of {len(found.corrections)} of {len(found.names)} tables did not sum to 1 and were renormalised; "
        f"the largest correction is {worst:.2g} ({child})"
    ]


def save(net: "BayesianNetwork", path: str | os.PathLike) -> None:
    """Writes a network of tables to a .bif or .bif.gz file, whole or not at all.

    Read back, a table that came from a file has the same bits. Levels are written as texts: a network that is read back
    takes whole numbers for theirs (see ``events.Category``), but wants other numbers and truth values as text.

    Raises:
        StructureError: a variable that BIF can't hold: continuous, or with continuous parents; it is named.
        StoreError: a path of another format or that can't be written; names that BIF can't hold.
    """
    if odd := [name for name in net.variables if not net.conditional(name).tabular]:
        came = f"{odd[:5]} {'is' if len(odd) == 1 else 'are'} not discrete given discrete parents"
        raise StructureError(came, "tables alone: BIF holds nothing else", "Use probgen.save(model, folder)")
    levels = {name: tuple(map(str, net.event.columns[name].levels)) for name in net.variables}  # type: ignore[attr-defined]
    parents = {name: tuple(net.parents[name]) for name in net.variables}
    tables = {name: _probabilities(net.conditional(name)) for name in net.variables}
    write_bif(Bif(net.variables, levels, parents, tables), path)


def _probabilities(part: Any) -> np.ndarray:
    """exp of a log-table, each number the one among its neighbours whose logarithm has the very bits."""
    log = part.log_table().detach()
    if isinstance(part, Tabular):
        raw = part.logits.detach()
        log = raw if bool((raw.logsumexp(-1).abs() <= raw.shape[-1] * EPS).all()) else log
    wanted = log.numpy()
    with np.errstate(divide="ignore"):
        found = np.exp(wanted)
        for side in (0.0, 1.0):
            near = np.nextafter(found, side)
            found = np.where((np.log(found) != wanted) & (np.log(near) == wanted), near, found)
    return found


def write_bif(found: Bif, path: str | os.PathLike) -> None:
    """Writes tables to a .bif or .bif.gz file, whole or not at all; numbers in full, so that they come back.

    Raises:
        StoreError: a path of another format or that can't be written; names that BIF can't hold.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise StoreError(f"{path} ends in {path.suffix!r}", f"a name that ends in {' or '.join(SUFFIXES)}", "Rename it")
    raw = "".join(_lines(found)).encode()
    frames.write_whole(path, [gzip.compress(raw, mtime=0) if path.suffix.lower() == ".gz" else raw])


def _lines(found: Bif) -> Iterator[str]:
    word = {name: _written(name) for name in {*found.names, *itertools.chain(*found.levels.values())}}
    yield "network unknown {\n}\n"
    for name in found.names:
        levels = found.levels[name]
        if len(set(levels)) < len(levels):
            raise StoreError(f"Levels {list(levels)} of {name!r} as text", "texts that differ", "Rename them")
        listed = ", ".join(word[level] for level in levels)
        yield f"variable {word[name]} {{\n  type discrete [ {len(levels)} ] {{ {listed} }};\n}}\n"
    for name in found.names:
        parents = found.parents[name]
        given = f" | {', '.join(word[parent] for parent in parents)}" if parents else ""
        yield f"probability ( {word[name]}{given} ) {{\n"
        rows = found.tables[name].reshape(-1, len(found.levels[name])).tolist()
        names = itertools.product(*([word[level] for level in found.levels[parent]] for parent in parents))
        for label, row in zip(names, rows, strict=True):
            head = f"({', '.join(label)})" if parents else "table"
            yield f"  {head} {', '.join(map(repr, row))};\n"
        yield "}\n"


def _written(name: str) -> str:
    """A name as BIF holds it, in quotes where it is no plain word."""
    plain = PLAIN.fullmatch(name) is not None and not name.startswith(("//", "/*", "\0"))
    if not name or '"' in name or "\0" in name:
        raise StoreError(f"The name {name!r}", "names without quotation marks that are not empty", "Rename it")
    return name if plain else f'"{name}"'
