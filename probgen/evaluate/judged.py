"""Models judged by their samples on the rows of a comparison: the one ranking that needs no likelihood."""

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen.errors import BREAKDOWNS, ProbgenError
from probgen.evaluate import scores
from probgen.evaluate.complete import incomplete
from probgen.evaluate.twosample import SampleWarning, two_sample
from probgen.events import Array, Event, Record, Table
from probgen.model import GenerativeModel

__all__ = ["COLUMNS", "Judgement", "judge", "rows_of", "why_not"]

_LEAST = 30  # rows below which the tests see nothing
_HALF, _SPLITS = 20, 5  # rows of a half at the least, and splits into halves
_DRAWS, _PERMUTATIONS = 1000, 200
COLUMNS = ("family", "energy", "less the best", "± (paired)", "C2ST", "C2ST real", "MMD p", "drawn from")


@dataclass(frozen=True)
class Judgement:
    """What a model's samples show on held-out rows.

    Arguments:
        name: Of the model.
        energy: The energy score, a proper score, lower is better.
        accuracy: Of a classifier that tells samples from held-out rows, on rows that it has not seen.
        floor: Of one that tells one half of the held-out rows from the other half, the mean over five splits: what real
            rows show, so the same for all models. NaN below 40 rows.
        pvalue: Of the kernel test (MMD); it says whether a difference is seen, and ranks nothing.
        target: What the samples are drawn from.
    """

    name: str
    energy: scores.Scores
    accuracy: float
    floor: float
    pvalue: float
    target: str


def why_not(event: Event, rows: int) -> str | None:
    """None, or why models are not judged by samples on such rows."""
    if isinstance(event, Record):
        return "records are judged by their coherence: compare(..., labels=question, train=records)"
    if not isinstance(event, Array | Table):
        return "samples of sequences are judged by two_sample alone"
    return f"{rows} rows are too few to judge samples by" if rows < _LEAST else None


def judge(
    models: Mapping[str, GenerativeModel], x: Any, event: Event, seed: int
) -> tuple[list[Judgement], dict[str, str]]:
    """Judgements, best first, and the models left out with their reasons.

    Arguments:
        x: Held-out rows; with missing cells none is judged.
    """
    found: list[Judgement] = []
    left: dict[str, str] = {}
    if incomplete(event.check(x)).any():
        return found, dict.fromkeys(models, "the rows have missing cells")
    floor = _floor(x, event, seed)
    for name, model in models.items():
        if model.context is not None:
            left[name] = "its samples need covariates"
            continue
        try:
            found.append(_one(name, model, x, event, seed, floor))
        except BREAKDOWNS as problem:
            left[name] = " ".join(str(problem).split())
    return sorted(found, key=lambda one: one.energy.mean), left


def _one(name: str, model: GenerativeModel, x: Any, event: Event, seed: int, floor: float) -> Judgement:
    checked = event.check(x)
    drawn = event.check(model.sample(max(_DRAWS, len(checked)), seed=seed)).x
    outside = event.restore(drawn, checked.form)
    energy = scores.energy(outside, x, event=event)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SampleWarning)
        tests = two_sample(
            x, event.restore(drawn[: len(checked)], checked.form), event=event, tests=["mmd", "c2st"],
            permutations=_PERMUTATIONS, floor=False, seed=seed,
        )  # fmt: skip
    mmd, c2st = tests["mmd"], tests["c2st"]
    return Judgement(name, energy, c2st.value, floor, float(mmd.pvalue or 0.0), model.sample_target())


def _floor(x: Any, event: Event, seed: int) -> float:
    """A classifier's accuracy on real rows against real rows. ``two_sample`` has a floor of its own for each model, on
    a scale that the model's samples help to set; models that are ranked together need one."""
    checked = event.check(x)
    half = len(checked) // 2
    if half < _HALF:
        return math.nan
    found = []
    for split in range(_SPLITS):
        order = np.random.default_rng((seed, split)).permutation(len(checked))
        one, other = (event.restore(checked[rows].x, checked.form) for rows in (order[:half], order[half : 2 * half]))
        with suppress(*BREAKDOWNS):
            tests = two_sample(one, other, event=event, tests=["c2st"], permutations=19, floor=False, seed=seed)
            found.append(tests["c2st"].value)
    return float(np.mean(found)) if found else math.nan


def rows_of(judged: list[Judgement]) -> list[dict[str, Any]]:
    """The table, a dict a model; the best one has no difference."""
    rows = []
    for one in judged:
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"family": one.name, "energy": one.energy.mean, "C2ST": one.accuracy, "C2ST real": one.floor}
        row |= {"MMD p": one.pvalue, "drawn from": one.target}
        if one is not judged[0]:
            with suppress(ProbgenError):
                difference = one.energy - judged[0].energy
                row |= {"less the best": difference.mean, "± (paired)": difference.stderr}
        rows.append(row)
    return rows
