"""The page: sections in the order in which a reader asks, and its one style sheet."""

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from probgen import frames
from probgen.errors import Incomparable, ParameterError, StoreError, nearest
from probgen.evaluate.comparison import Comparison
from probgen.evaluate.report.markup import Html, join, listed, tag
from probgen.evaluate.report.sections import Told, sections
from probgen.evaluate.report.style import STYLE
from probgen.model import GenerativeModel

__all__ = ["report"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def report(
    comparison: Comparison,
    path: str | PathLike,
    *,
    models: Mapping[str, GenerativeModel] | None = None,
    data: Any = None,
    train: Any = None,
    title: str = "Comparison of generative models",
    facts: Mapping[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Writes a comparison as one self-contained HTML page, which asks nothing of any host, and returns its path.

    Arguments:
        comparison: Of ``pg.compare``.
        path: Of the new file, ending in .html.
        models: The fitted models by their names in the comparison: for samples, calibration and fit curves.
        data: The held-out rows of the comparison: for samples beside them, calibration, and the values of rows.
        train: The rows that the models were fitted to, whose fingerprint is then kept.
        title: Of the page.
        facts: What else to keep of where the numbers come from, by name: the command, the budget.
        seed: Of the samples that are drawn for the page.
        overwrite: Whether a file that exists is replaced.

    Without models and data the page holds what the comparison itself knows.

    Raises:
        StoreError: a file that exists, or can't be written; another ending.
        ParameterError: models that are not in the comparison, or data without models.
        Incomparable: other rows than the comparison's.
    """
    place = _place(path, overwrite)
    models = dict(models or {})
    _check(comparison, models, data)
    told = Told(comparison, models, data, train, dict(facts or {}), seed)
    frames.write_whole(place, [page(title, told).encode("utf-8", "backslashreplace")])
    return place


def _place(path: str | PathLike, overwrite: bool) -> Path:
    place = Path(path)
    if place.suffix.lower() not in (".html", ".htm"):
        raise StoreError(f"A report named {place.name!r}", "a name that ends in .html", "Rename it")
    if place.is_dir() or (os.path.lexists(place) and not overwrite):
        do = "Choose another" if place.is_dir() else "Choose another, or add overwrite=True"
        raise StoreError(f"{place} exists already", "the name of a new file", do)
    return place


def _check(comparison: Comparison, models: Mapping[str, GenerativeModel], data: Any) -> None:
    if not isinstance(comparison, Comparison):
        raise ParameterError(f"A {type(comparison).__name__}", "a Comparison", "pg.compare(models, x) makes one")
    known = {entry.name: entry for entry in comparison.entries}
    for name in models:
        if name not in known:
            raise ParameterError(f"The model {name!r} is not in the comparison", "its models", nearest(name, known))
    if data is None:
        return
    if not models:
        raise ParameterError("data= without models=", "the models, which know what a row is", "Give both")
    name, model = next(iter(models.items()))
    checked, answer = model.event.check(data), known[name].log_prob
    rows = answer.event if comparison.lengths is None else None  # of steps the keys and content know the past, too
    if rows is not None and not rows.same_rows(checked.about):
        raise Incomparable(
            f"data= of {len(checked)} rows that are not those of the comparison ({len(answer)})",
            "the held-out rows that were compared, in their order",
            "Give the same x as to pg.compare",
        )


def page(title: str, told: Told) -> str:
    """The whole document."""
    found = sections(told)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="probgen"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    links = listed(tag("a", name, href=f"#{anchor}") for anchor, name, _ in found)
    body = tag(
        "body",
        tag("a", "Skip to the table", href="#main", class_="skip"),
        tag("header", tag("h1", title), tag("p", told.lead(), class_="lead")),
        tag("nav", links, aria_label="Parts of this page"),
        tag("main", *(part for *_, part in found), id="main", tabindex="-1"),
        tag("footer", tag("p", "Written by probgen. This page asks nothing of any host.")),
    )
    return "<!doctype html>\n" + tag("html", join([head, body]), lang="en") + "\n"
