"""A whole comparison, from a data set to a folder of scores, models and pictures."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from probgen import frames, plots, store
from probgen.datasets import Dataset, questions
from probgen.errors import BREAKDOWNS, DataError, MissingExtra, StoreError
from probgen.evaluate.compare import compare
from probgen.evaluate.comparison import Comparison
from probgen.evaluate.complete import barred, complete_rows, left_out
from probgen.evaluate.drawing import captioned_panels, column_names, level_names, panels, texts
from probgen.evaluate.fitting import fit_suitable
from probgen.evaluate.report import report as write_report
from probgen.events import Checked, Panel, Ragged, Real, Record, Series, Table, Text
from probgen.model import GenerativeModel
from probgen.plots.captions import captioned

__all__ = ["compare_into", "free_folder"]

_FILES = {"judged.parquet", "models", "report.html", "samples.png", "samples.txt", "scores.parquet", "summary.parquet"}
_LEAST, _PROBED = 100, 8  # rows scored at the least, and rows that tell how long one takes


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
    report: bool = True,
    complete: bool = False,
    command: str = "",
) -> tuple[Comparison, str]:
    """Fits the families that suit, scores held-out rows and writes scores, models and pictures into a folder.

    Arguments:
        families, budget: As of ``fit_suitable``. One model's scoring may take about as long again, a minute at least:
            where that is not enough fewer rows are scored, the same for all, at least a hundred.
        rows: Held-out rows to score at most; of one series all held-out steps are scored, each given all before it.
        test: Share of rows held out.
        complete: Whether rows with missing cells are left out before everything else, so that all families can be
            fitted and judged.

    Returns:
        The comparison and its title.

    Raises:
        DataError: no family can be fitted; no row is complete.
    """
    gaps = ""
    if complete:
        rest, kept = complete_rows(loaded.event, loaded.x)
        loaded, gaps = replace(loaded, x=rest), left_out(kept)
    if gaps:
        say(gaps)
    train, held = _split(loaded, test, seed, rows, say)

    def starting(name: str, share: float | None) -> None:
        say(f"  fitting {name}" + ("" if share is None else f", at most {share:.1f} s"))

    def ended(name: str, share: float | None, seconds: float) -> None:
        if share is not None and seconds > max(1.2 * share, share + 1):
            say(f"  {name} took {seconds:.1f} s, {seconds - share:.1f} s more than its share; no other has less for it")

    models, skipped = fit_suitable(
        train, loaded.event, families=families, budget=budget, seed=seed, on_start=starting, on_end=ended
    )
    if not models:
        reasons = "; ".join(f"{name}: {why.rstrip('.')}" for name, why in skipped.items())
        came = f"No family can be fitted to {loaded.event!r}: {reasons}"
        do = "Add --complete-rows, choose" if barred([reasons]) else "Choose"
        raise DataError(came, "data that some family suits", f"{do} other columns or more rows")
    if not loaded.in_time:
        held = _affordable(models, replace(loaded, x=held), max(budget, 60.0), seed, say)
    history: dict[str, Any] = {"history": train} if loaded.in_time else {}
    with suppress(DataError):
        history |= {"labels": questions(loaded)[0], "train": train} if isinstance(loaded.event, Record) else {}
    result = compare(
        models, held, seed=seed, skipped=skipped, on_start=lambda name: say(f"  scoring {name}"), **history
    )
    result = replace(result, gaps=gaps or result.gaps)
    for name, model in models.items():
        if type(model).__name__ in store.FAMILIES:  # a Blend is not saved as one: its language model is
            store.save(model, folder / "models" / name)
    frames.write(result.scores(), folder / "scores.parquet")
    frames.write(result.frame(), folder / "summary.parquet")
    if result.judged:
        frames.write(result.samples(), folder / "judged.parquet")
    try:
        if isinstance(loaded.event, Record):
            if shown := captioned_panels(models, held, loaded.event, seed):
                captioned(shown, folder / "samples.png")
        elif isinstance(loaded.event, Text):
            frames.write_whole(folder / "samples.txt", [texts(models, held, seed).encode()])
        else:
            _draw(models, loaded, held, folder / "samples.png", seed)
    except MissingExtra as missing:
        say(f"no samples.png: {missing}")
    title = _title(loaded, held)
    if report:
        say("  writing report.html")
        facts = _facts(loaded, train, command, {"budget": budget, "rows": rows, "test": test, "seed": seed})
        page = {"models": _of(result, models), "data": held, "train": train, "title": title, "facts": facts}
        try:
            write_report(result, folder / "report.html", **page, seed=seed)
        except BREAKDOWNS as problem:  # the fits took longer than the page
            say(f"no report.html: {problem}")
    return result, title


def _of(result: Comparison, models: Mapping[str, GenerativeModel]) -> dict[str, GenerativeModel]:
    """The models that are in the comparison, best first."""
    return {entry.name: models[entry.name] for entry in result.entries}


def _title(loaded: Dataset, held: Any) -> str:
    checked = loaded.event.check(held)
    if loaded.in_time:
        last = f"last {n} steps" if (n := len(checked.x.values)) > 1 else "last step"
        return f"{loaded.name}: the {last} held out, each scored given all before it"
    return f"{loaded.name}: {_amount(checked)} held out"


def _facts(loaded: Dataset, train: Any, command: str, options: Mapping[str, Any]) -> dict[str, str]:
    """What the report keeps of where its numbers come from."""
    said = {"Command": command} if command else {}
    fitted = _amount(loaded.event.check(train))
    return said | {
        "Data": f"{loaded.name}: {loaded.about}",
        "Fitted to": fitted,
        "Budget": f"{options['budget']:g} s of training for all families together, in equal shares",
        "Held out": f"{options['test']:.0%}, at most {options['rows']} rows scored, split with seed {options['seed']}",
    }


def _affordable(
    models: Mapping[str, GenerativeModel], held: Dataset, seconds: float, seed: int, say: Callable[[str], None]
) -> Any:
    """As many of the held-out rows as the slowest model scores in time, judged by its first few."""
    n, costs = len(held), {}
    if n <= _LEAST:
        return held.x
    few = held.take(np.arange(_PROBED))
    for name, model in models.items():
        began = time.perf_counter()
        with suppress(*BREAKDOWNS):
            model.log_prob(few, seed=seed)
        costs[name] = (time.perf_counter() - began) / _PROBED
    slowest = max(costs, key=costs.__getitem__)
    wanted = max(int(seconds / costs[slowest]), _LEAST)
    if wanted >= n:
        return held.x
    say(f"  scoring {wanted} of them, drawn at random: {slowest} takes about {costs[slowest]:.1f} s a row")
    return held.take(np.sort(np.random.default_rng(seed + 1).permutation(n)[:wanted]))


def _draw(models: Mapping[str, GenerativeModel], loaded: Dataset, held: Any, path: Path, seed: int) -> None:
    """Samples beside the data; one series is drawn whole, with the place where the held-out steps begin."""
    names = column_names(loaded.event)
    drawn = panels(models, loaded.x if loaded.in_time else held, loaded.event, seed)
    if not isinstance(loaded.event, Series | Panel):
        plots.samples(drawn, path, names=names)
        return
    cells = [loaded.event.check(x).x for x in (loaded.x, held)]
    begin = len(cells[0].values) - len(cells[1].values) if loaded.in_time else None
    plots.series(drawn, path, names=names, begin=begin, levels=level_names(loaded.event))


def _split(loaded: Dataset, test: float, seed: int, rows: int, say: Callable[[str], None]) -> tuple[Any, Any]:
    """Training rows and at most so many held-out rows; says how many, and which columns look like names of rows."""
    train, held = loaded.split(test, seed)
    checked = loaded.event.check(held)
    said = f"{loaded.name} ({loaded.about}): {_amount(loaded.event.check(train))} to fit, {_amount(checked)} held out"
    if len(checked) > rows:
        kept = np.sort(np.random.default_rng(seed).permutation(len(checked))[:rows])
        held = replace(loaded, x=held).take(kept)
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
        total = len(checked.x.values)
        return f"{n} {what} of {total} {steps[:-1] if total == 1 else steps}" + " together" * (n != 1)
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


def free_folder(data: str, out: Path | None, overwrite: bool) -> Path:
    """The output folder: as asked, or the first free name.

    Raises:
        StoreError: it holds something that is no comparison; or a comparison, which only ``overwrite`` replaces.
    """
    if out is None:
        stem = f"comparison-{Path(data).stem}"
        names = (Path(stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000))
        return next(path for path in names if not os.path.exists(path))
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    ours = out.is_dir() and (out / "scores.parquet").exists() and {p.name for p in out.iterdir()} <= _FILES
    if not (ours and overwrite):
        do = "Choose another folder, or add --overwrite" if ours else "Choose another folder"
        raise StoreError(f"--out {out} exists already", "a new folder", do)
    return out
