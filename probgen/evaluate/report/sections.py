"""The sections of a report, each from what is known; one that has nothing to say is left out, or says why."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from probgen.errors import BREAKDOWNS, Incomparable, MissingExtra, ProbgenError
from probgen.evaluate.checks import Check
from probgen.evaluate.coherence import coherence_lines
from probgen.evaluate.comparison import Comparison
from probgen.evaluate.fitting import reason_of
from probgen.evaluate.notes import JUDGED_NOTES, KINDS, grouped, left_out, notes_of
from probgen.evaluate.report import charts, pictures, tables
from probgen.evaluate.report.checking import Calibration, calibrated, checked_by
from probgen.evaluate.report.findings import leading, provenance, surprising, values_of
from probgen.evaluate.report.markup import Html, image, join, listed, scrolling, section, tag
from probgen.events import Array, Event, Record, Table, Text
from probgen.logprob import LogProb
from probgen.model import GenerativeModel

__all__ = ["Told", "sections"]

Part = tuple[str, str, Html]
_PAIRS = """Each pair is judged by itself, at twice its paired standard error, at least 4 nats and 100 rows: of twenty
pairs of equally good models about one would be told apart by chance."""
_MIXTURE = """Stacking weights: the mixture of these models that predicts the held-out rows best (Yao, Vehtari, Simpson
and Gelman 2018). They say who adds something to whom, not who is right."""
_DRAWN = """All on the scales of the data. Curves are the sorted values of each column: two samples of one distribution
draw the same curves."""
_RANKS = """Where does each held-out value lie among draws of the model? Ranks are even where the model is right: a hump
says that it is too wide, a trough too narrow, a slope that it is biased. The band is two standard errors of chance."""
_STATISTICS = """Statistics of the held-out data beside those of as many rows that the model makes, again and again:
their mean and the range of nine tenths of them. p is the share of those data sets with as much of it or more, ± its
Monte Carlo error; near 0 or 1, marked !, the model misses it."""


@dataclass(frozen=True)
class Told:
    """What a report is made of: the arguments of ``report``."""

    result: Comparison
    models: Mapping[str, GenerativeModel]
    data: Any
    train: Any
    facts: Mapping[str, Any]
    seed: int

    @property
    def event(self) -> Event | None:
        return next(iter(self.models.values())).event if self.models else None

    @property
    def leading(self) -> dict[str, GenerativeModel]:
        """The models that are looked at closely."""
        return {name: self.models[name] for name in leading(self.result, self.models)}

    def lead(self) -> str:
        """What was done, in a sentence or two."""
        entries = self.result.entries
        n, many = len(entries[0].log_prob), len(entries)
        what = "held-out steps, each given all before it" if self.result.lengths is not None else "held-out rows"
        refused = sum(bool(entry.log_prob.refused.any()) for entry in entries)
        said = f"{many} model{'s' * (many != 1)}, scored on the same {n} {what}."
        if refused:
            said += f" {refused} of them {'has' if refused == 1 else 'have'} no likelihood, and the reason is given."
        return f"{said} Every number says what kind of number it is."


def sections(told: Told) -> list[Part]:
    """Anchor, title and markup of each part of the page, in order."""
    makers = (
        ("table", "The table", _table), ("claims", "Model against model", _claims), ("mixture", "A mixture", _stacking),
        ("kinds", "What each kind means", _kinds), ("left-out", "Refused and left out", _refusals),
        ("samples", "Samples beside the data", _samples), ("coherence", "What belongs together", _coherence),
        ("scatter", "Row by row", _scatter),
        ("calibration", "Calibration", _calibration), ("checks", "Predictive checks", _checks),
        ("rows", "Most surprising rows", _surprising), ("fits", "How the fits went", _fits),
        ("provenance", "Where this comes from", _provenance),
    )  # fmt: skip
    found = []
    for anchor, title, make in makers:
        parts = list(make(told))
        if parts:
            found.append((anchor, title, section(anchor, title, *parts)))
    return found


def _table(told: Told) -> Iterator[Html]:
    yield tables.main_table(told.result)
    quiet = tuple(f"{entry.name}: " for entry in told.result.entries if entry.log_prob.refused.any())
    below = left_out(told.result)  # in a section of its own
    yield listed(note for note in notes_of(told.result) if note not in below and not note.startswith(quiet))


def _claims(told: Told) -> Iterator[Html]:
    try:
        rows = told.result.intervals()
    except Incomparable as problem:
        yield tag("p", str(problem))
        return
    text = "Differences to the better model in nats of all rows: " + "; ".join(
        f"{name} {value:.1f} ± {error:.1f} against {against}" for name, against, value, error, _ in rows
    )
    note = "Lines reach two paired standard errors to each side. An arrow marks a bound: the true difference may lie "
    yield tag("figure", charts.differences(rows, text), tag("figcaption", f"{note}anywhere on that side."))
    yield tables.claims(told.result.claims())
    yield tag("p", _PAIRS, class_="small")


def _stacking(told: Told) -> Iterator[Html]:
    try:
        found = told.result.stacking()
    except ProbgenError:
        return
    if len(found.weights) < 2:
        return
    yield tag("p", _MIXTURE)
    rows = [[name, f"{weight:.3f}"] for name, weight in found.weights.items()]
    yield scrolling("Stacking weights", ("family", "weight"), rows, (False, True))
    yield listed(found.notes())


def _kinds(told: Told) -> Iterator[Html]:
    met = {kind for entry in told.result.entries for kind in entry.log_prob.kinds}
    parts = []
    for kind, text in KINDS.items():
        if kind in met:
            parts += [tag("dt", tag("span", str(kind), class_=f"kind {kind}")), tag("dd", text)]
    yield tag("dl", *parts)


def _refusals(told: Told) -> Iterator[Html]:
    parts = []
    for entry in told.result.entries:
        if entry.log_prob.refused.any():
            parts += [tag("dt", entry.name), tag("dd", _refusal(entry.log_prob))]
    for what, reasons in (("left out", told.result.skipped), ("not judged by samples", told.result.unjudged)):
        for reason, names in grouped(reasons).items():
            parts += [tag("dt", f"{', '.join(names)}: {what}"), tag("dd", f"{_capital(reason)}.")]
    if parts:
        yield tag("dl", *parts)


def _refusal(answer: LogProb) -> str:
    some = "" if answer.refused.all() else f"{int(answer.refused.sum())} of {len(answer)} rows: "
    return f"{_capital(some + answer.reason)}. Instead: {answer.instead}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _samples(told: Told) -> Iterator[Html]:
    if told.result.judged:
        yield tables.judged_table(told.result)
        yield listed(JUDGED_NOTES)
    if told.data is None or told.event is None or isinstance(told.event, Text | Record):
        return
    looks = "pixels-wide" if pictures.is_image(told.event) else "chartlike"
    try:
        drawn = list(pictures.sampled(told.models, told.data, told.event, told.seed))
    except (MissingExtra, *BREAKDOWNS) as problem:
        yield tag("p", f"No pictures: {reason_of(problem)}")
        return
    shown = [
        tag("figure", tag("h3", title), image(raw, _described(title), width, looks)) for title, raw, width in drawn
    ]
    yield tag("div", *shown, class_="grid wide" if drawn and drawn[0][2] > 400 else "grid")
    if isinstance(told.event, Array | Table) and not pictures.is_image(told.event):
        yield tag("p", _DRAWN, class_="small")


def _coherence(told: Told) -> Iterator[Html]:
    lines = coherence_lines(told.result.coherence)
    if lines:
        text = tag("pre", "\n".join(lines).strip("\n"))
        yield tag("div", text, class_="scroll", tabindex="0", role="region", aria_label="Coherence of what is drawn")


def _described(title: str) -> str:
    return "The held-out data" if title in ("held-out data", "data") else f"Samples of {title}, on the data's scales"


def _scatter(told: Told) -> Iterator[Html]:
    ranked = [entry for entry in told.result.entries if not entry.log_prob.refused.any()]
    pairs = [(a, b) for a, b in pairwise(ranked) if a.log_prob.measure == b.log_prob.measure]
    if not pairs or len(ranked[0].log_prob) < 2:
        return
    first, second = pairs[0]
    x, y = first.log_prob.nats, second.log_prob.nats
    drawn = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not len(drawn):
        return
    kept = drawn if len(drawn) <= 1500 else np.sort(np.random.default_rng(told.seed).permutation(drawn)[:1500])
    above = float((y[drawn] > x[drawn]).mean())
    text = f"Log-likelihood of each row under {first.name} and {second.name}; {above:.0%} are higher under the second"
    notes = [f"{above:.0%} of the rows are likelier under {second.name}: they lie above the diagonal."]
    if len(kept) < len(drawn):
        notes.append(f"{len(kept)} of {len(drawn)} rows are drawn, chosen at random.")
    if lost := len(x) - len(drawn):
        notes.append(f"{lost} rows that one of the two calls impossible lie at −∞ and can't be drawn.")
    axes = [f"{entry.name[:30]} ({entry.log_prob.kind}), nats" for entry in (first, second)]
    chart = charts.scatter(x[kept], y[kept], axes[0], axes[1], text)
    yield tag("figure", chart, tag("figcaption", " ".join(notes)))


def _calibration(told: Told) -> Iterator[Html]:
    if told.data is None or not told.models:
        return
    found, left = calibrated(told.leading, told.data, told.event, told.seed)  # type: ignore[arg-type]
    if found:
        yield tag("p", _RANKS)
    for i, one in enumerate(found):
        parts = [tag("summary", f"{one.name}"), _ranks(one), _coverage(one)]
        yield tag("details", *parts, open=i == 0)
    for name, reason in left.items():
        yield tag("p", f"Not shown for {name}: {reason.rstrip('.')}.", class_="small")


def _ranks(one: Calibration) -> Html:
    shown = []
    for column, shares in one.pit.histogram().items():
        rows = int(np.isfinite(one.pit.values[column]).sum())
        if not rows:
            continue
        p = one.pit.pvalues[column]
        text = f"Ranks of {column} among draws of {one.name}: {shares.min():.0%} to {shares.max():.0%} of rows a tenth"
        chart = charts.histogram(shares, 2 * float(np.sqrt(0.1 * 0.9 / rows)), "rank among draws", text)
        shown.append(
            tag("figure", tag("h3", column), chart, tag("figcaption", f"test of evenness: p = {p:.3g} (Holm)"))
        )
    return tag("div", *shown, class_="grid")


def _coverage(one: Calibration) -> Html:
    rows = []
    for level, *cells in zip(one.coverage.levels, one.coverage.shares, one.coverage.stderrs, strict=True):
        rows.append([f"{level:.0%}", *(f"{share:.1%} ± {error:.1%}" for share, error in zip(*cells, strict=True))])
    head = ("interval", *one.coverage.columns)
    what = f"Share of held-out values inside central intervals of {one.name}"
    return join([tag("p", f"{what}:"), scrolling(what, head, rows, [False] + [True] * len(one.coverage.columns))])


def _checks(told: Told) -> Iterator[Html]:
    if told.data is None or not told.models or told.result.lengths is not None:
        return
    found, left = checked_by(told.leading, told.data, told.seed)
    if found:
        yield tag("p", _STATISTICS)
    for i, (name, checks) in enumerate(found.items()):
        titled = [part for one in checks for part in (tag("h3", one.stat.replace("_", " ")), _check(name, one))]
        said = dict.fromkeys(note for one in checks for note in one.notes)
        yield tag("details", tag("summary", name), *titled, listed(said), open=i == 0)
    for name, reason in left.items():
        yield tag("p", f"Not shown for {name}: {reason.rstrip('.')}.", class_="small")


def _check(name: str, one: Check) -> Html:
    what = f"{one.stat} under {name}: {one.source}, {one.draws} data sets"
    rows = [[row[""], row["observed"], row["p"], row["replicated [5 %, 95 %]"]] for row in one.texts()]
    return scrolling(what, ["of", "observed", "p", "replicated [5 %, 95 %]"], rows, [False, True, True, True])


def _surprising(told: Told) -> Iterator[Html]:
    found = surprising(told.result.entries)
    if found is None:
        return
    best = next(iter(found.nats))
    yield tag("p", f"The rows of lowest log-likelihood under {best}, and what the other models say of them, in nats.")
    steps = told.result.lengths is not None
    values = None if told.data is None or told.event is None else values_of(told.event, told.data, found.places, steps)
    if told.data is not None and told.event is not None and pictures.is_image(told.event):
        yield _images(told, found)
        return
    names = list(found.nats)
    head = ["row", *names, *(values or {})]
    rows = [
        [key, *(f"{found.nats[name][i]:.2f}" for name in names), *(column[i] for column in (values or {}).values())]
        for i, key in enumerate(found.keys)
    ]
    yield scrolling("The most surprising rows", head, rows, [False] + [True] * len(names) + [False] * len(values or {}))


def _images(told: Told, found: Any) -> Html:
    """Surprising rows that are pictures."""
    cells = told.event.check(told.data).x.numpy()  # type: ignore[union-attr]
    low, high = float(np.nanmin(cells)), float(np.nanmax(cells))
    best = next(iter(found.nats))
    shown = []
    for i, (place, key) in enumerate(zip(found.places, found.keys, strict=True)):
        text = f"row {key}: {found.nats[best][i]:.1f} nats"
        picture = image(pictures.png(cells[place], low, high), f"Held-out picture, {text}", class_="pixels")
        shown.append(tag("figure", picture, tag("figcaption", text)))
    return tag("div", *shown, class_="grid tight")


def _fits(told: Told) -> Iterator[Html]:
    shown, plain = [], []
    for name, model in told.models.items():
        report = model.report
        if report is None:
            continue
        ended = f"{report.steps} iterations or steps, {report.stopped}, {report.seconds:.1f} s, seed {report.seed}"
        lines = {"objective": report.objective, "held out": report.validation}
        lines = {key: values for key, values in lines.items() if np.isfinite(values).sum() > 1}
        notes = [tag("figcaption", ended), *(tag("figcaption", note) for note in report.notes)]
        if lines:
            text = f"Objective of {name} over its fit, in nats a row"
            chart = charts.curves(lines, "evaluation", "nats a row", text)
            shown.append(tag("figure", tag("h3", name), chart, *notes))
        else:
            plain += [tag("dt", name), *(tag("dd", note) for note in [ended, *report.notes])]
    if shown:
        yield tag("div", *shown, class_="grid")
    if plain:
        yield tag("dl", *plain)


def _provenance(told: Told) -> Iterator[Html]:
    facts = provenance(told.result, told.models, told.data, told.train, told.facts)
    facts |= {f"Model {name}": repr(model)[:600] for name, model in told.models.items()}
    what = "Where the numbers come from"
    rows = [(name, join(re.split(r"(?<=[(=])", text), "<wbr>")) for name, text in facts.items()]
    yield tag("div", scrolling(what, ("what", "value"), rows, (False, False)), class_="wrap")
