"""What a reader of a comparison should know, in sentences."""

import math
from typing import TYPE_CHECKING

from probgen.evaluate.paired import LEAST_ROWS
from probgen.logprob import Kind

if TYPE_CHECKING:
    from probgen.evaluate.comparison import Comparison

__all__ = ["JUDGED_NOTES", "KINDS", "notes_of", "short_measure"]

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
    left = [f"{name} was left out: {reason.rstrip('.')}." for name, reason in result.skipped.items()]
    return [*said, *result.matched, *left]


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
    for entry in result.entries:
        difference = result.differences.get(entry.name)
        if difference and difference.against != first[entry.log_prob.measure]:
            said.append(f"{entry.name}: vs best is against {difference.against}, the best it compares with.")
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
