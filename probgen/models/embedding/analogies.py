"""Neighbours, analogies, and how many of a file's analogies come out right."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np

from probgen.errors import DataError, ParameterError

__all__ = ["Accuracy", "Section", "judged", "questions", "ranked", "scored"]

Question = tuple[str, str, str, str]
_EPSILON = 1e-3


@dataclass(frozen=True)
class Section:
    """How one section went: questions asked, skipped for an unknown word, right at rank 1 and within the first 5."""

    asked: int
    skipped: int
    first: int
    five: int


@dataclass(frozen=True)
class Accuracy:
    """Analogies that came out right, by section.

    Arguments:
        sections: By name, in the order of the file.
        by: "add" (3CosAdd) or "mul" (3CosMul).
    """

    sections: dict[str, Section]
    by: str

    @property
    def total(self) -> Section:
        """All sections together."""
        parts = [vars(section).values() for section in self.sections.values()]
        return Section(*map(sum, zip(*parts, strict=True)))

    @property
    def first(self) -> float:
        """Share of the asked questions whose answer came first; NaN where none was asked."""
        return self.total.first / self.total.asked if self.total.asked else float("nan")

    def __str__(self) -> str:
        rows = {**self.sections, "all": self.total}
        wide = max(map(len, rows))
        lines = [
            f"{name:{wide}}  {s.first:5d} / {s.asked:<5d} first  {s.five:5d} in five  {s.skipped:5d} skipped"
            for name, s in rows.items()
        ]
        return "\n".join([f"analogies by {self.by}", *lines])


def scored(unit: np.ndarray, plus: Sequence[int], minus: Sequence[int], by: Literal["add", "mul"]) -> np.ndarray:
    """How well each word answers, (V,): the cosine with the sum (3CosAdd), or the ratio of products (3CosMul).

    Mikolov, Yih and Zweig (2013); Levy and Goldberg (2014), equation 4, with cosines moved to [0, 1].

    Arguments:
        unit: Vectors of length one, (V, dim).
        plus, minus: Rows that are added and taken off.
    """
    if by == "add":
        goal = unit[list(plus)].sum(0) - unit[list(minus)].sum(0)
        return unit @ (goal / max(float(np.linalg.norm(goal)), 1e-12))
    if by != "mul":
        raise ParameterError(f"by={by!r}", "'add' (3CosAdd) or 'mul' (3CosMul)")
    near = [(1 + unit @ unit[i]) / 2 for i in (*plus, *minus)]
    below = np.prod([part + _EPSILON for part in near[len(plus) :]], axis=0)
    return np.prod(near[: len(plus)], axis=0) / below


def ranked(scores: np.ndarray, without: Iterable[int], k: int) -> list[int]:
    """The k best rows, best first, some left out."""
    scores = scores.copy()
    scores[list(without)] = -np.inf
    best = np.argpartition(-scores, min(k, len(scores) - 1))[:k]
    best = best[np.argsort(-scores[best], kind="stable")]
    return [int(i) for i in best if np.isfinite(scores[i])]


def questions(source: str | PathLike | Iterable[Sequence[str]]) -> dict[str, list[Question]]:
    """Questions by section: of a file in the form of word2vec's questions-words.txt, or rows of four words.

    A line is "athens greece baghdad iraq": athens is to greece as baghdad is to iraq. ": name" begins a section.

    Raises:
        DataError: a file that is missing or not UTF-8, a line of another number of words, no question.
    """
    if isinstance(source, str | PathLike):
        lines = _lines(Path(source))
    else:
        lines = [(f"Row {i}", list(row)) for i, row in enumerate(source)]
    sections: dict[str, list[Question]] = {}
    name = "questions"
    for place, words in lines:
        if words[:1] == [":"]:
            name = " ".join(words[1:])
        elif len(words) != 4:
            raise DataError(f"{place} has {len(words)} words: {' '.join(map(str, words))!r:.60}", "four words")
        else:
            sections.setdefault(name, []).append((words[0], words[1], words[2], words[3]))
    if not sections:
        raise DataError("No analogies", "lines such as: athens greece baghdad iraq", "Check the file")
    return sections


def _lines(path: Path) -> list[tuple[str, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path} can't be read: {problem}", "a text file of analogies in UTF-8") from problem
    found = [(f"{path}, line {i},", line.replace(":", ": ", 1).split()) for i, line in enumerate(text.splitlines(), 1)]
    return [(place, words) for place, words in found if words]


def judged(
    sections: dict[str, list[Question]], place: Callable[[str], int | None], unit: np.ndarray, by: Literal["add", "mul"]
) -> Accuracy:
    """Every question asked; those with an unknown word are skipped and counted."""
    return Accuracy({name: _section(asked, place, unit, by) for name, asked in sections.items()}, by)


def _section(
    asked: list[Question], place: Callable[[str], int | None], unit: np.ndarray, by: Literal["add", "mul"]
) -> Section:
    rows = [tuple(map(place, question)) for question in asked]
    known = [row for row in rows if None not in row]
    first = five = 0
    for a, b, c, d in known:
        best = ranked(scored(unit, (b, c), (a,), by), (a, b, c), 5)  # type: ignore[arg-type, list-item]
        first += best[:1] == [d]
        five += d in best
    return Section(len(known), len(rows) - len(known), first, five)
