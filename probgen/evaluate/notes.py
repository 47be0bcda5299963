"""What a reader of a comparison should know, in sentences."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from probgen.evaluate.paired import LEAST_ROWS
from probgen.logprob import Kind

if TYPE_CHECKING:
    from probgen.evaluate.comparison import Comparison

__all__ = ["JUDGED_NOTES", "KINDS", "grouped", "left_out", "notes_of", "short_measure", "unjudged"]

KINDS = {
    Kind.EXACT: "The log-likelihood itself, to rounding.",
    Kind.LOWER: "A lower bound: the true log-likelihood is at least this, in expectation over the estimator's draws.",
    Kind.UPPER: "An upper bound: the true log-likelihood is at most this, in expectation over the estimator's draws.",
    Kind.ESTIMATE: "An estimate that may lie on either side of the log-likelihood.",
    Kind.SCORE: "No likelihood: a score that ranks only among scores of its own sort.",
    Kind.UNAVAILABLE: "A refusal: there is no number, and the reason says why.",
}
JUDGED_NOTES = (
    "energy: a proper score, lower is better; the one ranking of all families, explicit and implicit.",
    "C2ST: share of rows that a classifier tells from samples. C2ST real: of real rows from other real rows, whatever "
    "the model; one number, the mean over five splits into halves, so of half as many rows (? below 40).",
    "MMD p: whether a difference is seen; it ranks nothing.",
)


def notes_of(result: "Comparison") -> list[str]:
    """Sentences under the table: what kinds claim, what does not compare, who was left out and why."""
    measures = sorted({entry.log_prob.measure for entry in result.entries if not entry.log_prob.refused.any()})
    said = []
    if len(measures) > 1:
        named = " and ".join(short_measure(measure) or "unknown" for measure in measures)
        said.append(f"Measures {named} do not compare: rank only within one.")
    if len(measures) > 1 and (
        unknown := [e.name for e in result.entries if not (e.log_prob.measure or e.log_prob.refused.any())]
    ):
        said.append(f"{', '.join(unknown)}: of unknown measure, so not ranked with others: LogProb(measure=...) tells.")
    kinds = {kind for entry in result.entries for kind in set(entry.log_prob.kinds)}
    if Kind.LOWER in kinds:
        said.append(f"lower: the true log-likelihood is at least this (so {result.entries[0].rate} is at most this).")
    if Kind.UPPER in kinds:
        said.append(f"upper: the true log-likelihood is at most this (so {result.entries[0].rate} is at least this).")
    if Kind.SCORE in kinds:
        said.append("score: no likelihood; it ranks only among its own.")
    if any(math.isnan(entry.cells()["Monte Carlo ±"] or 0.0) for entry in result.entries):
        said.append("Monte Carlo ± ?: some rows' weights are too uneven to trust an error; the bound itself holds.")
    said += _of_differences(result) + _of_targets(result)
    if any(len(entry.log_prob) == 1 for entry in result.entries):
        said.append("between rows ± ?: one row shows no spread between rows.")
    if any((entry.cells()["nats/row"] or 0.0) > 0 and "lebesgue" in entry.log_prob.measure for entry in result.entries):
        said.append("nats/row above 0 are densities above 1; they depend on the units of the data.")
    for entry in result.entries:
        if entry.log_prob.refused.any():
            said.append(f"{entry.name}: {entry.log_prob.reason}. Instead: {entry.log_prob.instead}.")
        elif impossible := int(entry.log_prob.impossible.sum()):
            said.append(f"{entry.name}: {impossible} rows have probability zero.")
    return [*said, *result.matched, *left_out(result), *([result.gaps] if result.gaps else [])]


def grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Names by their reason, each reason once; where several share one, "it" stands for their names in it."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(re.sub(rf"\b{re.escape(name)}\b", "\0", reason.rstrip(".")), []).append(name)
    return {reason.replace("\0", names[0] if len(names) == 1 else "it"): names for reason, names in found.items()}


def left_out(result: "Comparison") -> list[str]:
    """Who is not in the table, and why."""
    return [
        f"{names[0]} was left out: {reason}." if len(names) == 1 else f"{', '.join(names)} were left out: {reason}."
        for reason, names in grouped(result.skipped).items()
    ]


def unjudged(result: "Comparison") -> list[str]:
    """Whose samples were not judged, and why."""
    found = grouped(result.unjudged)
    if not result.judged:
        return [f"No model was judged by samples: {reason}." for reason in found]
    return [
        f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} not judged by samples: {reason}."
        for reason, names in found.items()
    ]


def short_measure(measure: str) -> str:
    """The measure of many columns by its first two."""
    parts = measure.split(" x ")
    return measure if len(parts) <= 6 else f"{parts[0]} x {parts[1]} x ... ({len(parts)} columns)"


def _of_targets(result: "Comparison") -> list[str]:
    """Whose number is about another distribution than the model's own p."""
    by_target: dict[str, list[str]] = {}
    for entry in result.entries:
        if entry.log_prob.target != "p" and not entry.log_prob.refused.any():
            by_target.setdefault(entry.log_prob.target, []).append(entry.name)
    return [f"{', '.join(names)}: scored under {target}." for target, names in by_target.items()]


def _of_differences(result: "Comparison") -> list[str]:
    """What a row is, and how far the differences may be trusted."""
    said = []
    if result.lengths is not None:
        said.append(
            "A row is one step, scored given all steps before it; its errors are Newey and West's, as steps that "
            "follow each other are not independent."
        )
    if result.sequences and result.entries[0].rate == "bits/dim":
        said.append("A row is one whole sequence; bits/dim, a cell, does not depend on their lengths.")
    first = {entry.log_prob.measure: entry.name for entry in reversed(result.entries)}
    others: dict[str, list[str]] = {}
    for entry in result.entries:
        difference = result.differences.get(entry.name)
        if difference and difference.against != first[entry.log_prob.measure]:
            others.setdefault(difference.against, []).append(entry.name)
    for against, names in others.items():
        said.append(f"{', '.join(names)}: vs best is against {against}, the best that can be compared.")
    for kind, side in ((Kind.LOWER, "least"), (Kind.UPPER, "most")):
        names = [name for name, difference in result.differences.items() if difference.kind is kind]
        if names:
            said.append(f"{', '.join(names)}: the true difference is at {side} this, as one of the two is a bound.")
    return said + _too_close(result)


def _too_close(result: "Comparison") -> list[str]:
    """Pairs that these rows can't tell apart, a sentence for each best entry."""
    close: dict[str, list[str]] = {}
    for name, difference in result.differences.items():
        if not difference.distinguishable:
            close.setdefault(difference.against, []).append(name)
    n = len(result.entries[0].log_prob)
    said = []
    for best, names in close.items():
        if n < LEAST_ROWS:
            few = f"{n} row{'s' * (n != 1)}, fewer than {LEAST_ROWS}: too few to trust paired ±"
            said.append(f"{', '.join(names)}: not surely worse than {best} ({few}).")
        else:
            near = "less than 4 nats, or than twice paired ±"
            said.append(f"{', '.join(names)}: not distinguishable from {best} ({near}).")
    return said
