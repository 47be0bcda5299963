"""Networks and fields in the UAI format. pgmpy's reader takes the first axis for the fastest and knows no exponents, so
this one reads by itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from probgen.errors import ParameterError, StoreError
from probgen.events import Category, Table
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.markovfield import MarkovField

__all__ = ["read"]


def read(path: str | Path) -> BayesianNetwork | MarkovField:
    """A BAYES file as a network of the variables "var_0", "var_1", ... of levels 0, 1, ...; a MARKOV file as a field,
    by ``MarkovField.load_file``, which calls them "x0", "x1", ...

    The last variable of a scope is the child, and the last one turns fastest in its table, as the format's definition
    (UAI 2008) has it. pyAgrum 3.3.1 writes the first one fastest: its files come out wrong or are refused.

    Raises:
        StoreError: no such file, another network type, or a fault.
    """
    path = Path(path)
    try:
        words = iter(re.sub(r"#[^\n]*", "", path.read_text("utf-8-sig")).split())
    except (OSError, UnicodeDecodeError) as problem:
        raise StoreError(f"{path} can't be read: {problem}", "a .uai file in UTF-8") from problem
    try:
        kind = next(words)
        return MarkovField.load_file(path) if kind == "MARKOV" else _bayes(kind, words)
    except (ValueError, StopIteration) as problem:
        why = "it ends too early" if isinstance(problem, StopIteration) else str(problem)
        raise StoreError(f"{path}: {why}", "a whole UAI file of type BAYES or MARKOV", "Restore it") from problem


def _bayes(kind: str, words: Iterator[str]) -> BayesianNetwork:
    if kind != "BAYES":
        raise ValueError(f"its type is {kind!r:.40}")
    cards = [_whole(words, 1) for _ in range(_whole(words, 1))]
    scopes = [[_whole(words, 0, len(cards)) for _ in range(_whole(words, 1))] for _ in range(_whole(words, 1))]
    children = [scope[-1] for scope in scopes]
    if sorted(children) != list(range(len(cards))):
        raise ValueError(f"tables of the variables {sorted(children)[:12]}, not one for each of {len(cards)}")
    tables = [_table(words, [cards[v] for v in scope]) for scope in scopes]
    if (more := next(words, None)) is not None:
        raise ValueError(f"{more!r:.40} after the last table")
    return _network(cards, scopes, tables)


def _whole(words: Iterator[str], least: int, below: float = np.inf) -> int:
    word = next(words)
    if not word.isascii() or not word.isdigit() or not least <= int(word) < below:
        raise ValueError(f"{word!r:.40} where a whole number from {least} should stand")
    return int(word)


def _table(words: Iterator[str], shape: list[int]) -> np.ndarray:
    size = int(np.prod(shape))
    if (told := _whole(words, 1)) != size:
        raise ValueError(f"a table of {told} entries for a scope of {shape} levels")
    return np.array([float(next(words)) for _ in range(size)]).reshape(shape)


def _network(cards: list[int], scopes: list[list[int]], tables: list[np.ndarray]) -> BayesianNetwork:
    columns: dict[str, Any] = {f"var_{i}": Category(tuple(range(card))) for i, card in enumerate(cards)}
    edges = [(f"var_{parent}", f"var_{scope[-1]}") for scope in scopes for parent in scope[:-1]]
    net = BayesianNetwork(Table(columns), edges)
    off = 0.0
    for scope, table in zip(scopes, tables, strict=True):
        name = f"var_{scope[-1]}"
        try:
            off = max(off, net.conditional(name).set_table(table))  # type: ignore[operator]
        except ParameterError as problem:
            raise ValueError(f"the table of {name}: {problem}") from problem
    return net.imported(*([f"renormalised rows, off by up to {off:.3g}"] if off > 1e-12 else []))
