"""UAI files of Markov fields, read strictly, written whole or not at all. Potentials there are no logarithms.

The format of the UAI inference competitions (2008 to 2022): MARKOV, the number of variables, their levels, the number
of factors, their scopes, then each factor's table, the last variable fastest; numbers apart by white space.
"""

import math
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import StoreError

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = ["load", "read_evidence", "save"]

_LARGEST = 1 << 28  # cells of one table
_WORD = re.compile(r"\S+")


class _Words:
    """The words of a file, each with its line."""

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path)
        try:
            self.text = self.path.read_text("utf-8")
        except FileNotFoundError:
            raise StoreError(f"There is no file {path}", "a .uai file", "Check the spelling") from None
        except (OSError, UnicodeDecodeError) as problem:
            raise StoreError(f"{path} can't be read: {problem}", "a text file", "Restore it") from problem
        self.words: Iterator[re.Match] = _WORD.finditer(self.text)
        self.at = 0

    def refuse(self, came: str, wanted: str, do: str = "Repair the file") -> NoReturn:
        line = self.text.count("\n", 0, self.at) + 1
        raise StoreError(f"{self.path}, line {line}: {came}", wanted, do)

    def next(self, wanted: str) -> str:
        match = next(self.words, None)
        if match is None:
            self.at = len(self.text.rstrip())
            self.refuse("the file ends", wanted)
        self.at = match.start()
        return match[0]

    def whole(self, wanted: str, least: int = 0, most: float = math.inf) -> int:
        word = self.next(wanted)
        if not word.isascii() or not word.isdigit() or not least <= int(word) <= most:
            self.refuse(f"{word!r:.40}", wanted)
        return int(word)

    def end(self) -> None:
        match = next(self.words, None)
        if match is not None:
            self.at = match.start()
            self.refuse(f"{match[0]!r:.40} after the end", "nothing more")


def load(family: type["MarkovField"], path: str | PathLike) -> "MarkovField":
    """The field in a file: variables "x0", "x1", ... of levels 0, 1, ...; factors over one set of variables are joined.

    Raises:
        StoreError: another kind of file, a truncated one, a potential that is negative, NaN or infinite, a table of
            zeros, a variable without factors: the line, what came and what was wanted.
    """
    words = _Words(path)
    kind = words.next("MARKOV")
    if kind != "MARKOV":
        do = "A BAYES file is a network: probgen.wrap(path)" if kind == "BAYES" else "Check the file"
        words.refuse(f"{kind!r:.40}", "MARKOV, the kind of field", do)
    count = words.whole("the number of variables", 1)
    cards = [words.whole(f"the number of levels of variable {v}", 1) for v in range(count)]
    scopes = [_scope(words, f, count) for f in range(words.whole("the number of factors", 1))]
    for v in sorted(set(range(count)) - {v for scope in scopes for v in scope}):
        words.refuse(f"variable {v} is in no factor", "a factor for each variable", "Add one of ones if it is uniform")
    found: dict[tuple[int, ...], np.ndarray] = {}
    for f, scope in enumerate(scopes):
        table = _table(words, f, [cards[v] for v in scope])
        order = tuple(sorted(scope))
        table = table.transpose([scope.index(v) for v in order])
        found[order] = found[order] + table if order in found else table
        if np.isneginf(found[order]).all():
            words.refuse(f"the factors over {order} together are all zero", "some configuration that can be")
    words.end()
    joined = len(scopes) - len(found)
    tables = {tuple(f"x{v}" for v in scope): table for scope, table in found.items()}
    field = family(tables, levels={f"x{v}": card for v, card in enumerate(cards)})
    notes = (f"{joined} factors over variables that another one has were joined to it",) if joined else ()
    return field.imported(f"from {Path(path).name}", *notes)


def _scope(words: _Words, f: int, count: int) -> tuple[int, ...]:
    size = words.whole(f"the number of variables of factor {f}, at least 1", 1, count)
    scope = tuple(words.whole(f"variable {i} of factor {f}, below {count}", 0, count - 1) for i in range(size))
    if len(set(scope)) < size:
        words.refuse(f"factor {f} names a variable twice: {scope}", "distinct variables")
    return scope


def _table(words: _Words, f: int, cards: list[int]) -> np.ndarray:
    size = math.prod(cards)
    if size > _LARGEST:
        words.refuse(f"factor {f} has {size} cells", f"at most {_LARGEST}")
    if words.whole(f"the number of cells of factor {f}") != size:
        words.refuse(f"another number of cells for factor {f}", f"{size}, the product of its levels {cards}")
    values = np.empty(size)
    for i in range(size):
        values[i] = _potential(words, f"potential {i} of factor {f}")
    if not values.any():
        words.refuse(f"the potentials of factor {f} are all zero", "some configuration that can be")
    with np.errstate(divide="ignore"):
        return np.log(values).reshape(cards)


def _potential(words: _Words, what: str) -> float:
    word = words.next(what)
    try:
        value = float(word.replace("_", "?"))
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        words.refuse(f"{word!r:.40}", f"{what}: a finite number, not negative")
    return value


def save(field: "MarkovField", path: str | PathLike) -> Path:
    """Writes MARKOV; hidden variables stand after the visible ones, names and levels are lost.

    Raises:
        StoreError: a potential that is no number between the smallest and largest float once it is no logarithm.
    """
    lines = ["MARKOV", str(len(field.cards)), " ".join(map(str, field.cards)), str(len(field.factors))]
    lines += [" ".join(map(str, (len(scope), *scope))) for scope in field.plan.scopes]
    for names, table in zip(field.factors, field.tables(), strict=True):
        values = table.exp().flatten()
        lost = ((values == 0) & (table.flatten() > -torch.inf)) | values.isinf()
        if bool(lost.any()):
            raise StoreError(
                f"The log-potential {float(table.flatten()[lost][0]):.4g} of {names} is no float as a potential",
                "log-potentials between -745 and 709", "Shift the factor's table, or save the model by probgen.save",
            )  # fmt: skip
        lines += ["", str(len(values)), " ".join(map(repr, values.tolist()))]
    frames.write_whole(path, ["\n".join([*lines, ""]).encode()])
    return Path(path)


def read_evidence(field: "MarkovField", path: str | PathLike) -> Tensor:
    """Rows of an evidence file, (n, visible) codes with NaN where nothing is said; a field's order of variables.

    One line "k v1 x1 ... vk xk", or first the number of such lines that follow (both are in use).

    Raises:
        StoreError: unknown variables or levels, a variable twice, a truncated file; the line is named.
    """
    words = _Words(path)
    filled = [line for line in words.text.splitlines() if line.strip()]
    several = len(filled) > 1 and len(filled[0].split()) == 1
    n = words.whole("the number of rows", 1) if several else 1
    count = len(field.event.columns)
    rows = torch.full((n, count), torch.nan, dtype=torch.float64)
    for i in range(n):
        for _ in range(words.whole("the number of observed variables", 0, count)):
            v = words.whole(f"a visible variable below {count}", 0, count - 1)
            if not bool(rows[i, v].isnan()):
                words.refuse(f"variable {v} is observed twice", "once")
            rows[i, v] = words.whole(f"a level of variable {v}, below {field.cards[v]}", 0, field.cards[v] - 1)
    words.end()
    return rows
