"""What a test of two samples found, and the table of all of them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

__all__ = ["Effect", "Finding", "TwoSample", "holm"]


@dataclass(frozen=True)
class Effect:
    """An effect size and its 95 % interval; NaN ends where none can be trusted."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        ends = "" if math.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.name} {self.value:.4g}{ends}"


@dataclass(frozen=True)
class Finding:
    """One measure of how far two samples lie apart.

    Arguments:
        name: "mmd", "c2st", "kid", "frechet", "precision", "recall", "density", "coverage" or "stein".
        value: On all rows (or the stated subsample).
        how: The measure in words, its choices and sizes included.
        stderr: Standard error of the value; NaN where there is none.
        pvalue: Of the hypothesis that both come from one distribution, never 0; None where there is no test.
        holm: That p corrected for all tests of the call (Holm 1979); None where there is none.
        effect: Effect size with a 95 % interval.
        matched: The measure of a half of x against as many rows of y.
        floor: The same of a half of x against the other half: what two real samples of that size show.
        size: Rows in each of the two halves; 0 where there is no floor.
    """

    name: str
    value: float
    how: str
    stderr: float = math.nan
    pvalue: float | None = None
    holm: float | None = None
    effect: Effect | None = None
    matched: float = math.nan
    floor: float = math.nan
    size: int = 0


@dataclass(frozen=True)
class TwoSample(Mapping[str, Finding]):
    """What all tests found, by name. A p-value says whether a difference is seen, not how large it is: no ranking.

    Arguments:
        findings: By name.
        sizes: Rows of x and of y.
        what: What the rows were seen as.
        level: Of the tests together.
        notes: What a reader should know, in sentences.
        seed: Of the splits, permutations and networks.
    """

    findings: Mapping[str, Finding]
    sizes: tuple[int, int]
    what: str
    level: float = 0.05
    notes: tuple[str, ...] = ()
    seed: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Finding:
        return self.findings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def different(self) -> bool:
        """Whether any test rejects at the level after Holm's correction. False proves nothing."""
        return any(f.holm is not None and f.holm <= self.level for f in self.findings.values())

    def rows(self) -> list[dict[str, object]]:
        """A dict a finding: what the table shows, as numbers."""
        return [
            {
                "measure": f.name, "value": f.value, "stderr": f.stderr, "p": f.pvalue, "Holm p": f.holm,
                "effect": None if f.effect is None else str(f.effect), "rows": f.size or None,
                "x against y": f.matched, "x against x": f.floor, "how": f.how,
            }
            for f in self.findings.values()
        ]  # fmt: skip

    def __str__(self) -> str:
        heads = ["measure", "value", "±", "p", "Holm p", "effect [95 %]", "n half", "x:y", "x:x floor"]
        lines = [heads] + [_cells(f) for f in self.findings.values()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        n, m = self.sizes
        said = [f"{n} rows of x against {m} of y, {self.what}; seed {self.seed}."]
        said += [f"{f.name}: {f.how}." for f in self.findings.values()]
        said += ["x:y and x:x floor compare half of x with as many rows of y, and with the other half of x."]
        said += ["p-values say whether a difference is seen, not how large it is: rank by effect, beside the floor."]
        said += [f"{note}." for note in self.notes]
        said += [f"{name} was left out: {why.rstrip('.')}." for name, why in self.skipped.items()]
        return "\n".join([*table, "", *said])

    __repr__ = __str__


def _cells(f: Finding) -> list[str]:
    numbers = [f.value, f.stderr, f.pvalue, f.holm]
    effect = "-" if f.effect is None else str(f.effect)
    return [f.name, *map(_number, numbers), effect, str(f.size or "-"), _number(f.matched), _number(f.floor)]


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def holm(findings: Mapping[str, Finding]) -> dict[str, Finding]:
    """Findings with their p-values corrected: the i-th smallest of k by the factor k - i + 1, monotone (Holm 1979)."""
    tested = sorted((f.pvalue, name) for name, f in findings.items() if f.pvalue is not None)
    corrected, most = dict(findings), 0.0
    for i, (p, name) in enumerate(tested):
        most = max(most, min(1.0, p * (len(tested) - i)))
        corrected[name] = replace(findings[name], holm=most)
    return corrected
