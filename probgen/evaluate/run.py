"""A whole comparison, from a data set to a folder of scores, models and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from probgen import frames, plots, store
from probgen.datasets import Dataset
from probgen.errors import DataError, MissingExtra
from probgen.evaluate.compare import Comparison, column_names, compare, fit_suitable, panels
from probgen.events import Checked, Ragged, Real, Table

__all__ = ["compare_into"]


def compare_into(
    folder: Path,
    loaded: Dataset,
    *,
    families: list[str] | None,
    budget: float,
    rows: int,
    test: float,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Comparison, str]:
    """Fits the families that suit, scores held-out rows and writes scores, models and pictures into a folder.

    Arguments:
        families, budget: As of ``fit_suitable``.
        rows: Held-out rows to score at most.
        test: Share of rows held out.
        say: Takes what is going on, a line at a time.

    Returns:
        The comparison and its title.

    Raises:
        DataError: no family can be fitted.
    """
    train, held = _split(loaded, test, seed, rows, say)

    def starting(name: str, share: float | None) -> None:
        say(f"  fitting {name}" + ("" if share is None else f" for {share:.1f} s"))

    models, skipped = fit_suitable(train, loaded.event, families=families, budget=budget, seed=seed, on_start=starting)
    if not models:
        reasons = "; ".join(f"{name}: {why.rstrip('.')}" for name, why in skipped.items())
        came = f"No family can be fitted to {loaded.event!r}: {reasons}"
        raise DataError(came, "data that some family suits", "Choose other columns or more rows")
    result = compare(models, held, seed=seed, skipped=skipped, on_start=lambda name: say(f"  scoring {name}"))
    for name, model in models.items():
        store.save(model, folder / "models" / name)
    frames.write(result.scores(), folder / "scores.parquet")
    frames.write(result.frame(), folder / "summary.parquet")
    try:
        drawn = panels(models, held, loaded.event, seed)
        plots.samples(drawn, folder / "samples.png", names=column_names(loaded.event))
    except MissingExtra as missing:
        say(f"no samples.png: {missing}")
    return result, f"{loaded.name}: {_amount(loaded.event.check(held))} held out"


def _split(loaded: Dataset, test: float, seed: int, rows: int, say: Callable[[str], None]) -> tuple[Any, Any]:
    """Training rows and at most so many held-out rows; says how many, and which columns look like names of rows."""
    train, held = loaded.split(test, seed)
    checked = loaded.event.check(held)
    said = f"{loaded.name} ({loaded.about}): {_amount(loaded.event.check(train))} to fit, {_amount(checked)} held out"
    if len(checked) > rows:
        kept = np.sort(np.random.default_rng(seed).permutation(len(checked))[:rows])
        held = loaded.event.restore(checked[kept].x, checked.form)
        said += f", {rows} of them scored"
    say(said)
    for column in _identifiers(loaded):
        say(f"probgen: note: column {column!r} differs in every row; if it only names the rows, leave it out")
    return train, held


def _amount(checked: Checked) -> str:
    """How much data: 30 rows, 1 row, 8 series of 423 steps together."""
    n = len(checked)
    if isinstance(checked.x, Ragged):
        what, steps = ("series", "steps") if checked.about.bytes is None else ("text" + "s" * (n != 1), "bytes")
        return f"{n} {what} of {len(checked.x.values)} {steps}" + " together" * (n != 1)
    return f"{n} row" + "s" * (n != 1)


def _identifiers(loaded: Dataset) -> list[str]:
    """Columns of whole numbers or categories in which no value occurs twice."""
    if not isinstance(loaded.event, Table):
        return []
    cells = loaded.event.check(loaded.x).x
    columns = [
        (name, cells[:, i]) for i, (name, c) in enumerate(loaded.event.columns.items()) if not isinstance(c, Real)
    ]
    return [name for name, column in columns if len(column) > 20 and len(column.unique()) == len(column)]
