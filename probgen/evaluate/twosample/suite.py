"""Every test of two samples in one call, each beside what real rows show against real rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from probgen.errors import DataError, ParameterError, nearest
from probgen.evaluate.twosample import kernels
from probgen.evaluate.twosample.classifier import Classifier, Told, told_apart
from probgen.evaluate.twosample.discrepancy import BLIND, discrepancy, score_of
from probgen.evaluate.twosample.findings import Effect, Finding, TwoSample, holm
from probgen.evaluate.twosample.geometry import Balls, frechet, frechet_error, neighbourhoods
from probgen.evaluate.twosample.learners import LEARNERS
from probgen.evaluate.twosample.rows import Rows, at_least, brought_in, positive, warn
from probgen.events import Array, Event
from probgen.model import generator_of

__all__ = ["TESTS", "two_sample"]

_BALLS = ("precision", "recall", "density", "coverage")
TESTS = ("mmd", "c2st", "kid", "frechet", *_BALLS, "stein")
_LEAST = {"mmd": 10, "c2st": 20, "kid": 10, "frechet": 10, "stein": 20}
_WIDE = 128  # numbers a row up to which the Frechet distance is computed dozens of times for its error


def two_sample(
    x: Any,
    y: Any,
    *,
    event: Event | None = None,
    features: Callable[[Any], Any] | None = None,
    tests: Sequence[str] | None = None,
    score: Any = None,
    level: float = 0.05,
    permutations: int = 1000,
    classifier: Classifier = "mlp",
    neighbours: int = 5,
    rows: int = 2500,
    floor: bool = True,
    seed: int | None = None,
) -> TwoSample:
    """How far two samples lie apart, and whether that can be seen at all.

    Arguments:
        x: Real rows, the reference, in any form that an event takes.
        y: Other rows, of a model, say, in such a form.
        event: What a row is; None finds the event that both look like.
        features: A function of outside rows that gives numbers (n, d), taken as they are, such as a network's
            activations. None takes the cells of arrays, standardised (images on one scale), ``Features`` of tables, and
            summaries of sequences: lengths, moments, frequencies of codes and of their successions.
        tests: Among "mmd", "c2st", "kid", "frechet", "precision", "recall", "density", "coverage", "stein"; None takes
            all that the data suit.
        score: The score of the density that y should be of, for "stein": see ``stein``.
        level: At which the tests together, after Holm, should rarely err.
        permutations: Of labels, for each test.
        classifier: Of the classifier test: "mlp", "linear", or a callable of (rows, labels) that gives a function from
            rows to scores, positive where y is likelier.
        neighbours: k of precision, recall, density and coverage.
        rows: Most rows of each sample for mmd and the neighbourhoods (four times as many for kid), whose cost grows
            with the square; more are thinned at random and that is said.
        floor: Whether each measure is also computed on a half of x against the other half, and against as much of y.
        seed: Of splits, permutations and networks; each test has its own stream.

    Warns (SampleWarning) where fewer than 10 rows a dimension make the Frechet distance mostly bias, and that the Stein
    discrepancy is nearly blind to the weights of modes.

    Raises:
        DataError: unusable cells, too few rows, float16, nothing that varies. ShapeError: unequal widths.
        ParameterError: no such test, "stein" without a score, a level outside (0, 1).

    mmd: Gretton et al. (2012), five bandwidths in one permutation. c2st: Lopez-Paz and Oquab (2017). kid: Binkowski et
    al. (2018). frechet: Heusel et al. (2017). Neighbourhoods: Kynkaanniemi et al. (2019), Naeem et al. (2020).
    """
    wanted, strict = _wanted(tests, score), tests is not None
    if not 0 < level < 1:
        raise ParameterError(f"level={level!r}", "a number between 0 and 1", "0.05 is usual")
    if isinstance(classifier, str) and classifier not in LEARNERS:
        raise ParameterError(f"classifier={classifier!r}", f"one of {', '.join(LEARNERS)}, or a callable")
    pair = brought_in(x, y, event, features)
    for name, sample in (("x", pair.x), ("y", pair.y)):
        at_least(len(sample), 10, f"{name} of a two-sample test", "Draw more; cut one long sequence into windows")
    generator = generator_of(seed)
    call = _Call(
        pair, positive("permutations", permutations, 19), classifier, positive("neighbours", neighbours),
        positive("rows", rows, 10), floor, generator.initial_seed(), score, {"x": x, "y": y}, event,
    )  # fmt: skip
    findings, skipped = _found(call, wanted, strict)
    notes = [*pair.notes, *_notes(call, findings)]
    sizes = (len(pair.x), len(pair.y))
    return TwoSample(holm(findings), sizes, pair.what, level, tuple(notes), call.seed, skipped)


def _wanted(tests: Sequence[str] | None, score: Any) -> list[str]:
    if tests is None:
        return [name for name in TESTS if name != "stein" or score is not None]
    wanted = [tests] if isinstance(tests, str) else list(tests)
    for name in wanted:
        if name not in TESTS:
            raise ParameterError(f"tests has {name!r}", "names of tests", nearest(name, TESTS))
    if not wanted:
        raise ParameterError("tests is empty", "at least one name", f"Known: {', '.join(TESTS)}")
    if "stein" in wanted and score is None:
        raise ParameterError("The test 'stein' without score=", "the gradient of log p, or a model with a density")
    return wanted


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of ``two_sample``: its rows and choices, and a stream of random numbers for each test."""

    pair: Rows
    permutations: int
    classifier: Classifier
    neighbours: int
    rows: int
    floor: bool
    seed: int
    score: Any
    outside: dict[str, Any]
    event: Event | None

    def stream(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed + 7919 * (1 + ("split", "thin", *TESTS).index(name))) % 2**63)

    def halves(self, least: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Half of x, the other half, and as many rows of y; None where that leaves fewer than ``least``."""
        x, y = self.pair.x, self.pair.y
        size = min(len(x) // 2, len(y))
        if not self.floor or size < least:
            return None
        generator = self.stream("split")
        order, other = (torch.randperm(len(s), generator=generator) for s in (x, y))
        return x[order[:size]], x[order[size : 2 * size]], y[other[:size]]

    def thinned(self, most: int) -> tuple[Tensor, Tensor]:
        generator = self.stream("thin")
        x, y = (s[torch.randperm(len(s), generator=generator)[:most]] for s in (self.pair.x, self.pair.y))
        return x, y


def _found(call: _Call, wanted: list[str], strict: bool) -> tuple[dict[str, Finding], dict[str, str]]:
    """Findings by name. Tests that were not asked for by name and do not suit are left out with the reason."""
    findings: dict[str, Finding] = {}
    skipped: dict[str, str] = {}
    smallest = min(len(call.pair.x), len(call.pair.y))
    for name in wanted:
        try:
            at_least(smallest, _LEAST.get(name, call.neighbours + 2), f"the test {name!r}")
            if name in _BALLS:
                findings[name] = _ball(call, name, _balls(call, findings))
            else:
                findings[name] = _TESTS[name](call)
        except DataError as problem:
            if strict:
                raise
            skipped[name] = str(problem)
    return findings, skipped


def _with_floor(finding: Finding, call: _Call, least: int, measure: Callable[[Tensor, Tensor], float]) -> Finding:
    parts = call.halves(least)
    if parts is None:
        return finding
    half, other, y = parts
    return replace(finding, matched=measure(half, y), floor=measure(half, other), size=len(half))


def _mmd(call: _Call) -> Finding:
    x, y = call.thinned(call.rows)
    generator, pooled = call.stream("mmd"), torch.cat([x, y])
    widths = kernels.bandwidths(pooled, generator)
    inside = kernels.labellings(len(x), len(pooled), call.permutations, generator)
    p = kernels.combined(kernels.permuted(pooled, inside, widths))
    middle = kernels.gaussian(widths[len(widths) // 2])
    found = kernels.jackknife(x, y, middle)
    how = (
        f"unbiased MMD^2, normal kernel of width {widths[len(widths) // 2]:.3g}; p by {call.permutations} "
        f"permutations, the largest over {len(widths)} widths {widths[0]:.3g} to {widths[-1]:.3g}{_some(call, x, y)}"
    )
    effect = Effect("MMD^2", found.value, *found.interval)
    finding = Finding("mmd", found.value, how, found.stderr, p, effect=effect)
    return _with_floor(finding, call, 5, lambda a, b: kernels.jackknife(a[: call.rows], b[: call.rows], middle).value)


def _some(call: _Call, x: Tensor, y: Tensor) -> str:
    """Says of a measure that it saw some rows only."""
    if len(x) == len(call.pair.x) and len(y) == len(call.pair.y):
        return ""
    return f"; on {len(x)} rows of x and {len(y)} of y taken at random"


def _c2st(call: _Call) -> Finding:
    def told(a: Tensor, b: Tensor, permutations: int = 0) -> Told:
        return told_apart(a, b, call.classifier, permutations, call.stream("c2st"))

    found = told(call.pair.x, call.pair.y, call.permutations)
    name = call.classifier if isinstance(call.classifier, str) else getattr(call.classifier, "__name__", "a callable")
    trained = [len(s) - held for s, held in zip((call.pair.x, call.pair.y), found.held, strict=True)]
    how = (
        f"balanced accuracy of {name}, trained on {trained[0]} + {trained[1]} rows, on {found.held[0]} + "
        f"{found.held[1]} held out; p of its AUC by {call.permutations} permutations of their labels"
    )
    effect = Effect("AUC", found.auc, found.low, found.high)
    finding = Finding("c2st", found.accuracy, how, found.stderr, found.pvalue, effect=effect)
    return _with_floor(finding, call, 20, lambda a, b: told(a, b).accuracy)


def _kid(call: _Call) -> Finding:
    x, y = call.thinned(4 * call.rows)
    found = kernels.jackknife(x, y, kernels.cubic)
    how = f"unbiased squared MMD of the kernel (x.y/d + 1)^3, jackknife error{_some(call, x, y)}"
    effect = Effect("KID", found.value, *found.interval)
    finding = Finding("kid", found.value, how, found.stderr, effect=effect)
    most = 4 * call.rows
    return _with_floor(finding, call, 5, lambda a, b: kernels.jackknife(a[:most], b[:most], kernels.cubic).value)


def _frechet(call: _Call) -> Finding:
    x, y = call.pair.x, call.pair.y
    wide = x.shape[1] > _WIDE
    error = math.nan if wide else frechet_error([x, y], frechet)
    how = f"squared Frechet distance of {x.shape[1]} numbers a row" + ("" if wide else ", jackknife error")
    finding = _with_floor(Finding("frechet", frechet(x, y), how, error), call, 5, frechet)
    parts = call.halves(5)
    if parts is None:
        return finding
    over, half = finding.matched - finding.floor, math.nan
    if not wide:
        half = 1.96 * frechet_error([*parts], lambda a, b, c: frechet(a, c) - frechet(a, b))
    return replace(finding, effect=Effect("above floor", over, over - half, over + half))


def _balls(call: _Call, findings: dict[str, Finding]) -> tuple[Balls, tuple[Balls, Balls] | None]:
    """The rows' shares, of all rows, and of half of x against y and against the other half."""
    x, y = call.thinned(call.rows)
    parts = call.halves(call.neighbours + 2)
    whole = neighbourhoods(x, y, call.neighbours)
    if parts is None:
        return whole, None
    half, other, same = (part[: call.rows] for part in parts)
    return whole, (neighbourhoods(half, same, call.neighbours), neighbourhoods(half, other, call.neighbours))


def _ball(call: _Call, name: str, balls: tuple[Balls, tuple[Balls, Balls] | None]) -> Finding:
    whole, halves = balls
    each = getattr(whole, name)
    error = float(each.std(correction=0)) / math.sqrt(len(each))
    side = "x" if name in ("recall", "coverage") else "y"
    n, m = len(whole.recall), len(whole.precision)
    some = "" if (n, m) == (len(call.pair.x), len(call.pair.y)) else f"; on {n} rows of x and {m} of y taken at random"
    finding = Finding(name, float(each.mean()), f"{call.neighbours} neighbours, error over rows of {side}{some}", error)
    if halves is None:
        return finding
    one, other = (getattr(half, name) for half in halves)
    over = float(one.mean() - other.mean())
    apart = one.var() / len(one) + other.var() / len(other)
    spread = (one - other).var() / len(one) if side == "x" else apart  # the same rows of x stand in both
    half = max(1.96 * math.sqrt(float(spread)), 3 / len(one))  # rows that all agree: the rule of three
    effect = Effect("above floor", over, over - half, over + half)
    return replace(
        finding, effect=effect, matched=float(one.mean()), floor=float(other.mean()), size=len(halves[0].recall)
    )


def _stein(call: _Call) -> Finding:
    score = score_of(call.score)
    event = call.event or getattr(call.score, "event", None)
    x, y = (_cells(event, call.outside[name]) for name in ("x", "y"))
    generator = call.stream("stein")
    y = y[torch.randperm(len(y), generator=generator)[: call.rows]]
    finding = discrepancy(y, score, call.permutations, generator)
    warn(BLIND)
    if not call.floor:
        return finding
    real = x[torch.randperm(len(x), generator=generator)[: len(y)]]
    of_real = discrepancy(real, score, 1, generator).value
    return replace(finding, how=f"{finding.how}; the floor is x under the same score", matched=finding.value,
                   floor=of_real, size=len(real))  # fmt: skip


def _cells(event: Event | None, data: Any) -> Tensor:
    """Rows as the score takes them, (n, d), in their own units."""
    shape = tuple(getattr(data, "shape", ()))
    found = event if event is not None else Array(shape[1:])
    if not isinstance(found, Array):
        raise ParameterError(f"The test 'stein' of {found!r}", "arrays (n, d)", "Leave score= out")
    cells = found.check(data).x
    return cells.reshape(len(cells), -1)


_TESTS = {"mmd": _mmd, "c2st": _c2st, "kid": _kid, "frechet": _frechet, "stein": _stein}


def _notes(call: _Call, findings: dict[str, Finding]) -> list[str]:
    notes = []
    n, d = min(len(call.pair.x), len(call.pair.y)), call.pair.x.shape[1]
    if "frechet" in findings and n < 10 * d:
        notes.append(
            warn(
                f"Frechet distance of {n} rows of {d} numbers, fewer than 10 a number: mostly bias. Compare it only "
                "with its floor, or draw more"
            )
        )
    if "stein" in findings:
        notes.append(BLIND)
    if findings.keys() & {"precision", "recall", "coverage"}:
        notes.append("precision, recall and coverage of real rows are below 1 by chance: read them beside the floor")
    return notes
