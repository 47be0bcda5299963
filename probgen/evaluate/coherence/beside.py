"""The coherence of several models side by side, by the same judges on the same rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from probgen.datasets import Question
from probgen.errors import BREAKDOWNS
from probgen.evaluate.coherence.measure import Rule, coherence, judges_for
from probgen.evaluate.coherence.table import Coherence
from probgen.model import GenerativeModel

__all__ = ["coherence_lines", "coherence_of"]


def coherence_of(
    models: Mapping[str, GenerativeModel],
    x: Mapping[str, Any],
    labels: Question | Sequence[Any],
    *,
    train: Any = None,
    judges: Mapping[str, Rule] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[dict[str, Coherence], dict[str, str]]:
    """Each model's coherence, by judges that are learnt once, and why the others have none.

    Arguments:
        models: By name, of records.
        **options: As of ``coherence``; a question that stands for the labels is asked, too, about 60 rows.
    """
    options = {"questions": (labels,) if isinstance(labels, Question) else (), "asked": 60, **options}
    found: dict[str, Coherence] = {}
    left: dict[str, str] = {}
    event = next(iter(models.values())).event if models else None
    known = judges if event is None else judges_for(event, labels, train, judges, seed)
    for name, model in models.items():
        try:
            found[name] = coherence(model, x, labels, judges=known, seed=seed, **options)
        except BREAKDOWNS as problem:
            left[name] = " ".join(str(problem).split())
    return found, left


def coherence_lines(found: Mapping[str, Coherence]) -> list[str]:
    """A table with a row a figure and a column a model, and its notes; nothing where no model was judged."""
    if not found:
        return []
    first = next(iter(found.values()))
    names = list(dict.fromkeys(figure.name for one in found.values() for figure in one.figures))
    wide, columns = max(map(len, names)), {name: max(len(name), 13) for name in found}
    head = [f"{name:>{room}}" for name, room in columns.items()]
    lines = ["", "By the coherence of what they draw:", "  ".join([" " * wide, *head, "  real"])]
    for name in names:
        shown = [{figure.name: figure for figure in one.figures}.get(name) for one in found.values()]
        cells = [f"{f.share:6.1%} ± {f.error:.1%}" if f is not None else "-" for f in shown]
        real = next(f.real for f in shown if f is not None)
        row = [f"{cell:>{room}}" for cell, room in zip(cells, columns.values(), strict=True)]
        lines.append("  ".join([f"{name:{wide}}", *row, "     -" if real != real else f"{real:6.1%}"]))
    return [*lines, "", *first.notes()]
