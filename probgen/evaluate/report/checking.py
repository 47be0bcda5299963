"""How the models' draws compare with the held-out data: calibration by column, and predictive checks."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.errors import BREAKDOWNS
from probgen.evaluate import scores
from probgen.evaluate.checks import Check, check
from probgen.evaluate.fitting import reason_of
from probgen.events import Array, Category, Event, Panel, Series, Table
from probgen.model import GenerativeModel

__all__ = ["Calibration", "calibrated", "checked_by"]

_COLUMNS, _LEAST = 12, 10  # columns of which each is shown at most, rows that show anything at the least
_SETS, _SECONDS, _CELLS = 200, 10.0, 20_000_000  # replicated data sets, and what they may cost together


@dataclass(frozen=True)
class Calibration:
    """How one model's draws lie around the held-out cells.

    Arguments:
        name: Of the model.
        pit: Ranks among draws, by column.
        coverage: Of central intervals.
    """

    name: str
    pit: scores.Pit
    coverage: scores.Coverage


def calibrated(
    models: Mapping[str, GenerativeModel], data: Any, event: Event, seed: int
) -> tuple[list[Calibration], dict[str, str]]:
    """Calibration of each model by column, and why others have none."""
    if not isinstance(event, Array | Table):
        return [], {"any model": "its rows are no array or table"}
    if width(event) > _COLUMNS:
        return [], {"any model": f"rows have {width(event)} cells, and up to {_COLUMNS} are shown"}
    if (few := _few(event, data)) is not None:
        return [], few
    found, left = [], {}
    for name, model in models.items():
        if model.context is not None:
            left[name] = "its samples need covariates"
            continue
        try:
            ranks = scores.pit(model, data, seed=seed)
            found.append(Calibration(name, ranks, scores.interval_coverage(model, data, seed=seed)))
        except BREAKDOWNS as problem:
            left[name] = reason_of(problem)
    return found, left


def _few(event: Event, data: Any) -> dict[str, str] | None:
    """The reason where rows are too few to show anything; None where they are not."""
    rows = len(event.check(data))
    return {"any model": f"{rows} rows are fewer than {_LEAST}"} if rows < _LEAST else None


def width(event: Event) -> int:
    """Cells of a row, or of a step."""
    if isinstance(event, Table | Panel):
        return len(event.columns)
    return max(int(np.prod(getattr(event, "shape", ()))), 1)


def checked_by(
    models: Mapping[str, GenerativeModel], data: Any, seed: int
) -> tuple[dict[str, list[Check]], dict[str, str]]:
    """Predictive checks of each model, and why others have none: they can't draw, or are slow at it."""
    found: dict[str, list[Check]] = {}
    left: dict[str, str] = {}
    if models and (few := _few(next(iter(models.values())).event, data)) is not None:
        return {}, few
    for name, model in models.items():
        try:
            if model.context is not None:
                left[name] = "its samples need covariates"
            elif (sets := _affordable(model, data, seed)) < 20:
                left[name] = f"its samples are slow: {_SECONDS:.0f} seconds make {sets} data sets, and 20 are the least"
            else:
                found[name] = _checks(model, data, sets, seed)
        except BREAKDOWNS as problem:
            left[name] = reason_of(problem)
    return found, left


def _affordable(model: GenerativeModel, data: Any, seed: int) -> int:
    """How many data sets as large as this one the model makes in time, judged by a few rows."""
    rows = len(model.event.check(data))
    few = min(rows, 100)
    began = time.perf_counter()
    model.sample(few, seed=seed)
    seconds = (time.perf_counter() - began) / few * rows
    return int(min(_SETS, _SECONDS / max(seconds, 1e-9), _CELLS / (rows * width(model.event))))


def _checks(model: GenerativeModel, data: Any, sets: int, seed: int) -> list[Check]:
    """The statistics that the data suit, those that can't be computed left out; at least one, or its reason."""
    event = model.event
    if isinstance(event, Array) and width(event) > _COLUMNS:
        return [check(model, data, stat, n=sets, seed=seed) for stat in (mean_of_all_cells, sd_between_rows)]
    wanted = ["mean", "sd"] + ["autocorrelation"] * isinstance(event, Series | Panel)
    wanted += ["correlation"] * (2 <= _numbers(event) <= 5) + ["levels"]
    found, problem = [], None
    for stat in wanted:
        try:
            with np.errstate(divide="ignore", invalid="ignore"):  # columns that do not vary
                found.append(check(model, data, stat, n=sets, seed=seed))
        except BREAKDOWNS as new:
            problem = problem or new
    if not found and problem is not None:
        raise problem
    return found


def _numbers(event: Event) -> int:
    """Columns of numbers in a row of an array or table."""
    if isinstance(event, Table):
        return sum(not isinstance(column, Category) for column in event.columns.values())
    return width(event) if isinstance(event, Array) and event.levels is None else 0


def mean_of_all_cells(rows: Any) -> float:
    """The mean over rows and cells."""
    return float(np.nanmean(np.asarray(rows, dtype=float)))


def sd_between_rows(rows: Any) -> float:
    """The standard deviation of the rows' own means."""
    cells = np.asarray(rows, dtype=float)
    return float(np.nanmean(cells.reshape(len(cells), -1), axis=1).std())
