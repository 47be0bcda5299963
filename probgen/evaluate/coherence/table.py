"""Figures of coherence, each beside what the judge or a guess reaches on real rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from probgen import frames

__all__ = ["Coherence", "Figure"]


@dataclass(frozen=True)
class Figure:
    """A share of rows that came out right.

    Arguments:
        what: "joint", "drawn", "exact" or a question.
        part: The part that is judged; all of them in "joint".
        given: The parts that were given; none in "joint".
        share: Of the rows.
        n: Rows judged.
        real: What real rows reach: where judges agree on real records ("joint"), the judge's accuracy on real parts
            ("drawn"); of a question the share of its most frequent answer; NaN where there is nothing to put there.
    """

    what: str
    part: str
    given: tuple[str, ...]
    share: float
    n: int
    real: float = math.nan

    @property
    def error(self) -> float:
        """Standard error of the share, of independent rows."""
        return math.sqrt(self.share * (1 - self.share) / self.n) if self.n else math.nan

    @property
    def name(self) -> str:
        """As the table has it: "image given caption"."""
        if not self.given:
            return self.what
        drawn = f"{self.part} given {' and '.join(self.given)}"
        return drawn if self.what == "drawn" else f"{drawn}: {self.what}"


@dataclass(frozen=True)
class Coherence:
    """Whether the parts that a model draws belong together. Printing it shows the table.

    Arguments:
        figures: Joint draws, each part from each set of the others, texts word by word, questions.
        judges: By part, who judged and how well on real rows.
        tests: By part, what a classifier and a kernel test see between drawn and real rows: accuracy of the classifier,
            its accuracy between real halves, p-value of the kernel test.
        target: What joint and conditional draws are from.
        rows: Held-out rows.
        left: Rows without a label or without a part, which were left out.
        seed: Of all draws.
    """

    figures: tuple[Figure, ...]
    judges: Mapping[str, str]
    tests: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    target: tuple[str, ...] = ()
    rows: int = 0
    left: int = 0
    seed: int = 0

    def __getitem__(self, name: str) -> Figure:
        """A figure by its name, such as "joint" or "caption given image"."""
        found = {figure.name: figure for figure in self.figures}
        return found[name]

    def frame(self) -> Any:
        """A row a figure (pyarrow.Table)."""
        return frames.table(
            {
                "figure": [f.name for f in self.figures],
                "share": [f.share for f in self.figures],
                "error": [f.error for f in self.figures],
                "real": [f.real for f in self.figures],
                "rows": [f.n for f in self.figures],
            }
        )

    def notes(self) -> list[str]:
        """What a reader of the table should know, in sentences."""
        told = [f"{part}: {who}." for part, who in self.judges.items()]
        told.append(
            "'real' is what real rows reach: the judges' agreement (joint), the judge's accuracy (drawn parts), the "
            "most frequent answer (questions)."
        )
        if self.target:
            told.append(f"Drawn from {'; '.join(self.target)}.")
        if self.left:
            told.append(f"{self.left} rows without a label or without a part were left out.")
        return told

    def __str__(self) -> str:
        wide = max(len(f.name) for f in self.figures)
        lines = [f"{'':{wide}}   share      ±    real   rows"]
        lines += [f"{f.name:{wide}}  {f.share:6.1%} {f.error:6.1%}  {_share(f.real)}  {f.n:5}" for f in self.figures]
        for part, (accuracy, floor, pvalue) in self.tests.items():
            lines.append(
                f"{part}: classifier {accuracy:.1%} (real {_share(floor).strip()}), kernel test p = {pvalue:.3f}"
            )
        return "\n".join([*lines, "", *self.notes()])

    __repr__ = __str__


def _share(value: float) -> str:
    return f"{'-':>6}" if math.isnan(value) else f"{value:6.1%}"
