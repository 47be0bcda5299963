"""BIF files as arrays: a strict reader in float64.

The format is Cozman's Interchange Format for Bayesian Networks (BIF 0.15, 1998), as bnlearn, pgmpy and pyAgrum write
it. In a ``table`` of a variable with parents its own levels change slowest and the last parent's fastest.
"""

import gzip
import itertools
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from probgen.errors import StoreError, nearest

__all__ = ["EPS", "FOREIGN", "PLAIN", "Bif", "foreign", "read_bif"]

FOREIGN = (".bifxml", ".net", ".uai", ".xdsl", ".xml", ".xmlbif")  # what pgmpy reads
TOLERANCE = 1e-6  # how far a row may be off 1
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Bif:
    """What a BIF file says.

    Arguments:
        names: Of the variables, in the order of the file.
        levels: Of each variable, as strings.
        parents: Of each variable, in the order of its probability block.
        tables: Of each variable, P(child | parents), float64, axes (*parents, child).
        corrections: Of each variable with a row that was renormalised, how far its worst row was off 1.
    """

    names: tuple[str, ...]
    levels: dict[str, tuple[str, ...]]
    parents: dict[str, tuple[str, ...]]
    tables: dict[str, np.ndarray]
    corrections: dict[str, float] = field(default_factory=dict)

    @property
    def edges(self) -> list[tuple[str, str]]:
        """(parent, child), child after child, parents in their order."""
        return [(parent, child) for child in self.names for parent in self.parents[child]]


_WORD = r'[^\s{}()\[\];,|"]+'
_NETWORK = ((r"network\b", "network"), (rf"\s*(?:{_WORD})?\s*\{{", "a name and {"), (r"\s*\}", "} after properties"))
_VARIABLE = (
    (r"variable\b", "variable"), (rf"\s*({_WORD})", "the name of the variable"), (r"\s*\{", "{"),
    (r"\s*type\s+discrete\b", "type discrete"), (r"\s*\[\s*([0-9]{1,6})\s*\]", "[ the number of levels ]"),
    (r"\s*\{([^{}]*)\}", "{ the levels }"), (r"\s*;", ";"), (r"\s*\}", "}"),
)  # fmt: skip
_PROBABILITY = (
    (r"probability\b", "probability"), (r"\s*\(([^(){}]*)\)", "( child | parents )"), (r"\s*\{", "{"),
    (r"([^{}]*)\}", "entries and }"),
)  # fmt: skip
_GRAMMARS = (_VARIABLE, _PROBABILITY, _NETWORK)
_BLOCK = re.compile(r"\s*(?:{})\s*".format("|".join("".join(part for part, _ in grammar) for grammar in _GRAMMARS)))
_ENTRY = re.compile(r"([^();]*)(?:\(([^()]*)\)([^();]*))?;")
_START = r'(?<![^\s{}()\[\];,|"])'  # where a word may begin: Asy/Patch and a//b hold no comment
_HIDDEN = re.compile(rf'"([^"]*)"|{_START}//[^\n]*|{_START}/\*.*?\*/', re.DOTALL)
_PROPERTIES = re.compile(r"([{;]\s*)((?:property\b[^;]*;\s*)+)")
PLAIN, _NUMERIC = re.compile(_WORD), b"0123456789.+-eE, \t\r\n"


def read_bif(path: str | os.PathLike) -> Bif:
    """A .bif or .bif.gz file. Rows off 1 by at most 1e-6 are renormalised; the file's other faults are refused.

    Raises:
        StoreError: no such file, another format, or a fault: the line, what came and what was wanted.
    """
    path = Path(path)
    return _Reader(path, _text(path)).read()


def _text(path: Path) -> str:
    whole = "a whole BIF file in UTF-8, plain or compressed by gzip"
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise StoreError(f"There is no file {path}", "a .bif or .bif.gz file", "Check the spelling") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as problem:
        raise StoreError(f"{path} can't be read: {problem}", whole, "Restore it, or convert it") from problem


class _Reader:
    """One pass over the blocks, then all rows of all tables at once."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.quoted = path, list[str]()
        self.text = self._bare(text)
        self.levels: dict[str, tuple[str, ...]] = {}
        self.blocks: dict[str, tuple[tuple[str, ...], int, int]] = {}  # child -> parents, body's start and end
        self.places: dict[tuple, dict[str, int]] = {}

    def refuse(self, at: int, came: str, wanted: str, do: str = "Repair the file") -> NoReturn:
        line = self.text.count("\n", 0, at) + 1
        raise StoreError(f"{self.path}, line {line}: {came}", wanted, do)

    def _bare(self, text: str) -> str:
        """Without comments and properties, quoted names as single words; lines keep their numbers."""
        if not text.strip():
            raise StoreError(f"{self.path}, line 1: the file is empty", "a BIF file", "Restore it from a copy")
        self.text = text
        if "\0" in text:  # it stands for quoted names below
            self.refuse(text.index("\0"), "a byte of value 0", "text", "Restore the file from a copy")
        if '"' in text or "//" in text or "/*" in text:
            text = _HIDDEN.sub(self._hidden, text)
        if "property" in text:
            text = _PROPERTIES.sub(lambda m: m[1] + "\n" * m[2].count("\n"), text)
        self.text = text
        if '"' in text:
            self.refuse(text.index('"'), "a quotation mark without its partner", "pairs of them")
        return text

    def _hidden(self, match: re.Match) -> str:
        name, blank = match[1], "\n" * match[0].count("\n")
        if name is None:
            return blank or " "
        if PLAIN.fullmatch(name):
            return f" {name} "
        self.quoted.append(name)
        return f" \0{len(self.quoted) - 1} {blank}"

    def words(self, text: str) -> tuple[str, ...]:
        found = text.replace(",", " ").split()
        if "\0" not in text:
            return tuple(found)
        return tuple(self.quoted[int(word[1:])] if word[0] == "\0" else word for word in found)

    def read(self) -> Bif:
        self._scan()
        if missing := [name for name in self.levels if name not in self.blocks]:
            self.refuse(len(self.text), f"no probabilities of {missing[:5]}", "a probability block a variable")
        plain, odd = _Rows(), dict[str, np.ndarray]()
        for child, (parents, start, end) in self.blocks.items():
            self._body(child, parents, start, end, plain, odd)
        tables, worst = self._tables(plain, odd)
        names = tuple(self.levels)
        parents_of = {name: self.blocks[name][0] for name in names}
        return Bif(names, self.levels, parents_of, {name: tables[name] for name in names}, worst)

    def _scan(self) -> None:
        """Levels of every variable, and where each table stands."""
        text, at, end = self.text, 0, len(self.text)
        heads: list[tuple[int, str, int, int]] = []
        networks = 0
        while at < end:
            match = _BLOCK.match(text, at)
            if match is None:
                self._diagnose(at)
            if match.lastindex == 3:
                self._variable(match)
            elif match.lastindex == 5:
                heads.append((match.start(4), match[4], match.start(5), match.end(5)))
            else:
                networks += 1
            if networks != 1:
                self.refuse(at, "no network block first, or two of them", "network NAME { }", foreign(self.path))
            at = match.end()
        for head in heads:
            self._head(*head)
        if not self.levels:
            self.refuse(end, "the network has no variables", "at least one variable block")

    def _variable(self, match: re.Match) -> None:
        (name,), count, levels = self.words(match[1]), int(match[2]), self.words(match[3])
        if name in self.levels:
            self.refuse(match.start(1), f"a second variable {name!r}", "each name once")
        if len(levels) != count or not levels:
            came = f"{len(levels)} levels {list(levels)[:12]} of {name!r} under [ {count} ]"
            self.refuse(match.start(3), came, "as many levels as announced")
        if "" in (name, *levels):
            self.refuse(match.start(3), f"an empty name, of {name!r} or of a level", "names that are not empty")
        if len(set(levels)) < count:
            self.refuse(match.start(3), f"levels {list(levels)} of {name!r}", "each level once")
        self.levels[name] = levels

    def _head(self, at: int, head: str, start: int, end: int) -> None:
        first, bar, rest = head.partition("|")
        names = (*self.words(first), *self.words(rest))
        if not names or "|" in rest or (bar and len(self.words(first)) != 1):
            self.refuse(at, f"probability ({head})", "( child | parent, parent )")
        for name in names:
            if name not in self.levels:
                self.refuse(at, f"no variable {name!r}", "variables that are declared", nearest(name, self.levels))
        if names[0] in self.blocks:
            self.refuse(at, f"a second probability block of {names[0]!r}", "one a variable")
        if len(set(names)) < len(names):
            self.refuse(at, f"probability ({head})", "each variable once")
        self.blocks[names[0]] = names[1:], start, end

    def _diagnose(self, at: int) -> NoReturn:
        """Names the first thing in a block that is not as it should be."""
        at += len(self.text[at:]) - len(self.text[at:].lstrip())
        for grammar in _GRAMMARS:
            if re.compile(grammar[0][0]).match(self.text, at):
                for part, wanted in grammar:
                    match = re.compile(part).match(self.text, at)
                    if match is None:
                        self._stray(at, wanted)
                    at = match.end()
        self._stray(at, "a network, variable or probability block")

    def _stray(self, at: int, wanted: str) -> NoReturn:
        rest = self.text[at:].lstrip()
        at = len(self.text) - len(rest)
        shown = repr(rest[:40]) if rest else "the file ends"
        self.refuse(at, f"{shown} in place of {wanted}", wanted, foreign(self.path))

    # Tables

    def _body(self, child: str, parents: tuple[str, ...], start: int, end: int, plain: "_Rows", odd: dict) -> None:
        """The rows of one block: where a row a configuration is given, to the plain ones."""
        body, card = self.text[start:end], len(self.levels[child])
        entries = _ENTRY.findall(body)
        if not entries or body.count(";") != len(entries) or body[body.rindex(";") + 1 :].strip():
            self.refuse(start, f"entries of {child!r} that do not end in ;", "(levels) numbers;")
        heads, labels, numbers = zip(*entries, strict=True)
        if body.count("(") != (n := sum(map(bool, labels))) or body.count(")") != n:
            self.refuse(start, f"parentheses in the entries of {child!r}", "(levels) numbers;")
        word, *rest = heads[0].split(None, 1) or [""]
        if not parents and len(entries) == 1 and word == "table":
            plain.add(child, card, [0], rest or [""])
        elif parents and not "".join(heads).strip() and (rows := self._whole(parents, labels)) is not None:
            plain.add(child, card, rows, numbers)
        else:
            odd[child] = self._mixed(child, parents, start)

    def _whole(self, parents: tuple[str, ...], labels: Sequence[str]) -> list[int] | None:
        """The configuration of each label where each occurs once, else None."""
        if self.quoted:
            return None
        place = self._places(parents)
        try:
            rows = [place[label] for label in labels]
        except KeyError:
            rows = [place.get(", ".join(label.replace(",", " ").split()), -1) for label in labels]
        return rows if len(rows) == len(place) == len(set(rows)) and -1 not in rows else None

    def _places(self, parents: tuple[str, ...]) -> dict[str, int]:
        """The number of each configuration (the last parent changes fastest), by its label as files write it."""
        levels = tuple(self.levels[parent] for parent in parents)
        if levels not in self.places:
            self.places[levels] = {", ".join(names): i for i, names in enumerate(itertools.product(*levels))}
        return self.places[levels]

    def _mixed(self, child: str, parents: tuple[str, ...], start: int) -> np.ndarray:
        """A block with table or default entries, or quoted levels, entry by entry; NaN where nothing is said."""
        shape = tuple(len(self.levels[name]) for name in (*parents, child))
        rows, default = np.full(shape, np.nan), None
        for match in _ENTRY.finditer(self.text, start, self.blocks[child][2]):
            word, *rest = (match[1].split(None, 1) or [""]) if match[2] is None else [""]
            if match[2] is not None and not match[1].strip():
                where = self._configuration(parents, match)
                self._unsaid(rows[where], child, match)
                rows[where] = self._floats(match[3], shape[-1], match.start(3))
            elif word == "table":
                self._unsaid(rows, child, match)
                flat = self._floats("".join(rest), rows.size, _after_blank(match))
                rows[...] = np.moveaxis(flat.reshape(shape[-1], *shape[:-1]), 0, -1)
            elif word == "default" and default is None:
                default = self._floats("".join(rest), shape[-1], _after_blank(match))
            else:
                self.refuse(_after_blank(match), f"{match[0].strip()[:60]!r}", "(levels), table or one default")
        unsaid = np.isnan(rows[..., 0])
        if default is not None:
            rows[unsaid] = default
        elif unsaid.any():
            first = [self.levels[p][i] for p, i in zip(parents, np.argwhere(unsaid)[0], strict=True)]
            self.refuse(start, f"no row of {child!r} given {first} ({unsaid.sum()} lack)", "a row a configuration")
        return rows

    def _configuration(self, parents: tuple[str, ...], match: re.Match) -> tuple[int, ...]:
        said = self.words(match[2])
        if len(said) != len(parents):
            self.refuse(_after_blank(match), f"({match[2]}) for the parents {list(parents)}", "a level a parent")
        for name, level in zip(parents, said, strict=True):
            if level not in self.levels[name]:
                do = nearest(level, self.levels[name])
                self.refuse(_after_blank(match), f"no level {level!r} of {name!r}", "a declared level", do)
        return tuple(self.levels[name].index(level) for name, level in zip(parents, said, strict=True))

    def _unsaid(self, rows: np.ndarray, child: str, match: re.Match) -> None:
        if not np.isnan(rows).all():
            self.refuse(_after_blank(match), f"{match[0].strip()[:60]!r} of {child!r} again", "each row once")

    def _floats(self, text: str, wanted: int, at: int) -> np.ndarray:
        try:
            numbers = _floats(text)
        except ValueError as problem:
            self.refuse(at + len(text) - len(text.lstrip()), f"{text.strip()[:60]!r}: {problem}", "plain numbers")
        if len(numbers) != wanted:
            came = f"{len(numbers)} numbers {text.strip()[:60]!r}"
            self.refuse(at + len(text) - len(text.lstrip()), came, f"{wanted} numbers")
        return numbers

    def _tables(self, plain: "_Rows", odd: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Checked and renormalised tables, and how far the worst row of each was off."""
        flat = self._plain(plain)
        flat = np.concatenate([flat, *(table.reshape(-1) for table in odd.values())]) if odd else flat
        owners = [*plain.owners, *((child, table.shape[-1], table.size) for child, table in odd.items())]
        counts = np.repeat([card for _, card, _ in owners], [size // card for _, card, size in owners])
        sums = np.add.reduceat(flat, np.cumsum(counts) - counts)
        off = np.abs(sums - 1)
        if flat.min() < 0 or not (off <= TOLERANCE + counts * EPS).all():
            self._refuse_rows(flat, owners)
        if len(wrong := np.flatnonzero(off > counts * EPS)):  # a row that was divided once is left as it is
            flat = flat / np.repeat(np.where(off > counts * EPS, sums, 1.0), counts)
        ends = np.cumsum([size for _, _, size in owners])
        tables, worst = {}, dict[str, float]()
        for (child, _, size), end in zip(owners, ends.tolist(), strict=True):
            shape = [len(self.levels[name]) for name in (*self.blocks[child][0], child)]
            tables[child] = flat[end - size : end].reshape(shape)
        for row, at in zip(wrong.tolist(), (np.cumsum(counts) - counts)[wrong], strict=True):
            child = owners[int(np.searchsorted(ends, at, side="right"))][0]
            worst[child] = max(worst.get(child, 0.0), float(off[row]))
        return tables, worst

    def _plain(self, plain: "_Rows") -> np.ndarray:
        """Numbers of all plain rows, in the order of the configurations; one conversion for the whole file."""
        counts = np.array(plain.counts, dtype=np.int64)
        try:
            marked = _floats(" nan ".join([*plain.texts, ""]), b"nan")
        except ValueError:
            marked = np.empty(0)
        ends = np.flatnonzero(np.isnan(marked))
        if len(ends) != len(counts) or (np.diff(ends, prepend=-1) - 1 != counts).any():
            self._refuse_numbers(plain)
        numbers, starts = marked[~np.isnan(marked)], np.cumsum(counts) - counts
        places = np.arange(len(numbers)) + np.repeat(starts[plain.rows] - starts, counts)
        flat = np.empty(len(numbers))
        flat[places] = numbers
        return flat

    def _refuse_numbers(self, plain: "_Rows") -> NoReturn:
        """Names the first entry that does not hold its numbers."""
        for child, (parents, start, _) in self.blocks.items():
            self._mixed(child, parents, start)
        raise StoreError(f"{self.path}: numbers that can't be read", "plain numbers", "Repair the file")

    def _refuse_rows(self, flat: np.ndarray, owners: list[tuple[str, int, int]]) -> NoReturn:
        """Names the first row that is no distribution."""
        end = 0
        for child, card, size in owners:
            rows, end = flat[end : end + size].reshape(-1, card), end + size
            off = np.abs(rows.sum(axis=1) - 1)
            if len(bad := np.flatnonzero((rows < 0).any(axis=1) | ~(off <= TOLERANCE + card * EPS))):
                parents, start, _ = self.blocks[child]
                row = rows[bad[0]].tolist()
                given = list(itertools.product(*(self.levels[p] for p in parents)))[bad[0]]
                came = (
                    f"the row {row[:8]} of {child!r} given {list(given)}"
                    if given
                    else f"the row {row[:8]} of {child!r}"
                )
                wanted = f"probabilities from 0 that sum to 1 within {TOLERANCE:g}; they sum to {sum(row):.9g}"
                self.refuse(self._line_of(child, given, start), came, wanted)
        raise StoreError(f"{self.path}: rows that sum to no 1", "probabilities", "Repair the file")

    def _line_of(self, child: str, given: tuple[str, ...], start: int) -> int:
        """Where the row of a configuration stands; a table's beginning."""
        entries = list(_ENTRY.finditer(self.text, start, self.blocks[child][2]))
        said = [entry for entry in entries if entry[2] is not None and self.words(entry[2]) == given]
        return _after_blank([*said, *entries][0])


class _Rows:
    """Rows of numbers still in text, in the order of the file."""

    def __init__(self) -> None:
        self.owners: list[tuple[str, int, int]] = []  # child, its levels, the size of its table
        self.texts: list[str] = []
        self.rows: list[int] = []
        self.counts: list[int] = []

    def add(self, child: str, card: int, rows: Sequence[int], texts: Sequence[str]) -> None:
        first = len(self.texts)
        self.rows += [first + row for row in rows] if first else rows
        self.texts += texts
        self.counts += [card] * len(texts)
        self.owners.append((child, card, card * len(texts)))


def _floats(text: str, but: bytes = b"") -> np.ndarray:
    """Numbers between blanks and commas, correctly rounded; nothing that only Python calls a number (1_0, inf)."""
    odd = text.encode().translate(None, _NUMERIC)
    if odd.replace(but, b"") if but else odd:
        raise ValueError("no number")
    words = text.replace(",", " ").split()
    return np.fromiter(map(float, words), dtype=np.float64, count=len(words))


def _after_blank(match: re.Match) -> int:
    return match.start() + len(match[0]) - len(match[0].lstrip())


def foreign(path: Path) -> str:
    """What to do about a file in another format."""
    if path.suffix.lower() in FOREIGN:
        return f"probgen.wrap({str(path)!r}) reads {path.suffix} files through pgmpy"
    return "Restore it from a copy; probgen.wrap(path) reads other formats through pgmpy"
