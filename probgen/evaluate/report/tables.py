"""The tables of a comparison as HTML, for the report and for notebooks."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from probgen.evaluate.judged import COLUMNS as JUDGED
from probgen.evaluate.judged import rows_of
from probgen.evaluate.notes import JUDGED_NOTES, unjudged
from probgen.evaluate.report.markup import Html, join, listed, scrolling, tag

if TYPE_CHECKING:
    from probgen.evaluate.claims import Claim
    from probgen.evaluate.comparison import Comparison

__all__ = ["claims", "judged_table", "main_table", "notebook"]

_TEXT = {"family", "kind", "by", "drawn from"}
_LONG = 90  # characters of a cell before it is cut


def main_table(result: "Comparison", what: str = "Log-likelihoods of the held-out rows") -> Html:
    """The comparison's own table: a row a model, best first, each number beside its kind."""
    rows = result.texts()
    head = list(rows[0])
    return scrolling(what, head, ([_cell(name, row[name]) for name in head] for row in rows), _sides(head))


def judged_table(result: "Comparison") -> Html:
    """What samples show, a row a model; only where some were judged."""
    from probgen.evaluate.comparison import format_cell

    rows = ([_cell(name, format_cell(row[name], name)) for name in JUDGED] for row in rows_of(list(result.judged)))
    return scrolling("Samples judged on the held-out rows", JUDGED, rows, _sides(JUDGED))


def _sides(head: Iterable[str]) -> list[bool]:
    return [name not in _TEXT for name in head]


def _cell(column: str, text: str) -> Any:
    if column == "kind":
        return tag("span", text, class_=f"kind {text}")
    if len(text) > _LONG:
        return tag("span", f"{text[: _LONG - 1]}…", title=text)
    return text


def claims(found: list["Claim"]) -> Html:
    """Claims in three groups: shown, too close, and not to be decided; only those that are there."""
    groups = (
        ("Shown by these rows", ("better",)),
        ("Not distinguishable on these rows", ("not distinguishable",)),
        ("No claim is possible", ("undecided", "incomparable")),
    )
    parts = []
    for title, verdicts in groups:
        texts = [claim.text for claim in found if claim.verdict in verdicts]
        if texts:
            parts += [tag("h3", title), listed(texts)]
    return join(parts)


def notebook(result: "Comparison") -> Html:
    """The comparison in a notebook: its tables and notes, in the notebook's own colours."""
    parts = [main_table(result), listed(result.notes())]
    if result.judged:
        notes = [*JUDGED_NOTES, *unjudged(result)]
        parts += [tag("p", "By their samples, on the same rows:"), judged_table(result), listed(notes)]
    style = ".probgen .hidden{display:none}.probgen .scroll{overflow-x:auto}.probgen .number{text-align:right}"
    return tag("div", tag("style", Html(style)), *parts, class_="probgen")
