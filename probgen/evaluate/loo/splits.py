"""Leaving rows, groups or the future out by fitting the model again without them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from probgen.errors import BREAKDOWNS, DataError, ParameterError, StructureError
from probgen.evaluate.loo.psis import threshold
from probgen.evaluate.loo.refits import Refits, log_ahead, score, score_unit
from probgen.evaluate.loo.result import Loo, standard_error
from probgen.evaluate.loo.rows import Data, draws_of
from probgen.evaluate.paired import error_of_total
from probgen.events import Ragged
from probgen.logprob import Fingerprint, Kind, LogProb
from probgen.model import generator_of

__all__ = ["group_codes", "grouped_rows", "held_out", "k_fold", "leave_future_out", "leave_groups_out", "whole_groups"]


def held_out(data: Data, seed: int | None) -> Loo:
    """The rows under the fit as it is."""
    answer = score(data.model, data, seed)
    note = "The rows are taken as new; if the fit saw them, this says how well it fits them, not what it predicts"
    return _exact(answer, "held-out", np.full(len(data), "held-out"), (note,), None)


def k_fold(data: Data, refits: Refits, folds: int, seed: int | None) -> Loo:
    """Each row under a fit to the other folds; rows are dealt at random."""
    n = len(data)
    if n < folds:
        raise DataError(f"{n} rows for {folds} folds", "a row in each fold", "Give fewer: folds=2")
    parts = _dealt(n, folds, seed)
    pieces = [score(refits.without(part), data[part], seed) for part in parts]
    order = np.argsort(np.concatenate(parts))
    answer = LogProb.concat(pieces)[order].replace(
        target="p(x_i | x outside its fold)", by=f"{folds}-fold refits, {pieces[0].by}", event=data.checked.about
    )
    notes = (f"Each row is scored by a fit to {1 - 1 / folds:.0%} of the rows: a little lower than by leaving one out",)
    seen = _seen(data, answer, seed)
    return _exact(answer, "k-fold", np.full(n, "k-fold"), (*notes, *_said(refits)), seen)


def _dealt(n: int, folds: int, seed: int | None) -> list[np.ndarray]:
    shuffled = np.random.default_rng(generator_of(seed).initial_seed()).permutation(n)
    return [np.sort(part) for part in np.array_split(shuffled, folds)]


def _seen(data: Data, answer: LogProb, seed: int | None) -> float:
    """Total of the rows under the fit to all of them; NaN where that is another kind of number."""
    try:
        whole = score(data.model, data, seed)
    except BREAKDOWNS:
        return math.nan
    same = whole.kind is answer.kind and not whole.refused.any()
    return float(whole.nats.sum()) if same else math.nan


def _exact(answer: LogProb, kind: str, method: np.ndarray, notes: Sequence[str], seen: float | None) -> Loo:
    nats, nothing = answer.nats, np.full(len(answer), math.nan)
    draws = 0
    gain = math.nan if seen is None else seen - float(nats.sum())
    return Loo(answer, kind, method, nothing, nothing, 0.7, standard_error(nats), gain, draws, notes=tuple(notes))


def _said(refits: Refits) -> tuple[str, ...]:
    fits = f"{refits.count} fits" if refits.count != 1 else "one fit"
    return (f"{fits} to other rows" + (f"; {refits.note}" if refits.note else ""),)


# Groups


def group_codes(groups: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels in order of occurrence (G,), and each row's place among them (n,).

    Raises:
        DataError: not one label a row, missing labels, or fewer than two groups.
    """
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise DataError(f"groups of shape {labels.shape} for {n} rows", f"one label a row, ({n},)", "Give them all")
    if any(label is None or label != label for label in labels.tolist()):
        raise DataError("groups with missing labels", "a label for each row", "Fill them or leave the rows out")
    if len({type(label) for label in labels.tolist()}) > 1:
        labels = labels.astype(str)
    found, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    if len(found) < 2:
        raise DataError("One group alone", "at least two groups", "Leave groups out for leave-one-row-out")
    order = np.argsort(first)
    return found[order], np.argsort(order)[inverse.reshape(-1)]


def grouped_rows(codes: np.ndarray) -> list[np.ndarray]:
    """The rows of each group."""
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def whole_groups(data: Data, labels: np.ndarray, codes: np.ndarray) -> Fingerprint:
    """Groups as rows: contents are those of their rows, in any order."""
    about, units = data.checked.about, grouped_rows(codes)

    def content() -> np.ndarray:
        rows = about.content.astype(np.uint64)
        return np.array([np.add.reduce(rows[unit] * np.uint64(0x9E3779B97F4A7C15)) for unit in units], dtype=np.uint64)

    dims = np.array([about.dims[unit].sum() for unit in units])
    return Fingerprint(labels, content, dims, about.event, about.measure, about.integers)


def leave_groups_out(data: Data, labels: np.ndarray, codes: np.ndarray, refits: Refits, seed: int | None) -> Loo:
    """Each group of rows under a point fit to all other groups."""
    units = grouped_rows(codes)
    nats = np.array([score_unit(refits.without(unit), data[unit], seed)[0] for unit in units])
    kind = score(data.model, data[units[0]], seed).kind
    answer = LogProb(
        kind, nats, by="refits without the group", of=_of(data), target="p(x_g | x_-g)",
        event=whole_groups(data, labels, codes), measure=data.checked.about.measure,
    )  # fmt: skip
    notes = ("A group's number is that of all its rows together", *_said(refits))
    nothing = np.full(len(units), math.nan)
    return Loo(
        answer, "leave-group-out", np.full(len(units), "refit"), nothing, nothing, 0.7, standard_error(nats), math.nan,
        0, unit="groups", notes=notes,
    )  # fmt: skip


def _of(data: Data) -> str:
    return "x" if data.covariates is None else "y|x"


# The future


def leave_future_out(data: Data, refits: Refits, horizon: int, most: int, seed: int | None) -> Loo:
    """Blocks of ``horizon`` steps, each under a fit to the steps before it.

    The last blocks that fill the second half of the longest sequence, at most ``most``, one behind the other: log
    p(x_t, ..., x_{t + horizon - 1} | x_1, ..., x_{t-1}) of all sequences together, with a refit at each block's start
    (Buerkner, Gabry and Vehtari 2020, without their approximation between refits). Blocks follow each other in time:
    the error of their total is that of Newey and West.
    """
    if not isinstance(data.checked.x, Ragged):
        raise StructureError(
            f"horizon={horizon} for {data.checked.about.event}", "sequences: Series or Panel", "Leave horizon out"
        )
    length = int(data.checked.x.lengths.max())
    starts = [*_starts(length, horizon, most)]
    if len(starts) < 2:
        raise DataError(
            f"Sequences of at most {length} steps for blocks of {horizon}",
            f"at least two blocks in the second half: {4 * horizon} steps",
            "Give a shorter horizon",
        )
    found = [_block(data, refits, start, horizon, seed) for start in starts]
    nats, errors, k = (np.array(part) for part in zip(*found, strict=True))
    bayes = draws_of(data.model) is not None
    kind = Kind.ESTIMATE if bayes else score(data.model, data, seed).kind
    if kind in (Kind.LOWER, Kind.UPPER):
        kind = Kind.ESTIMATE  # of a difference of bounds
    answer = LogProb(
        kind, nats, by=f"refits before each block of {horizon}", of=_of(data), stderr=errors if bayes else None,
        target=f"p(x_t..x_t+{horizon - 1} | x_<t)", event=_blocks(data, starts, horizon),
        measure=data.checked.about.measure, diagnostics={"first_step": np.array(starts)},
    )  # fmt: skip
    notes = (f"Steps {starts[0]} to {starts[-1] + horizon - 1}; the error is that of blocks that follow each other",)
    draws = draws_of(data.model)
    many = 0 if draws is None else draws.chains * draws.draws
    return Loo(
        answer, "leave-future-out", np.full(len(nats), "refit"), k, k, threshold(many) if bayes else 0.7,
        error_of_total(nats, [len(nats)]), math.nan, many, float(np.sqrt(np.square(errors).sum())), "blocks",
        (*notes, *_said(refits)),
    )  # fmt: skip


def _starts(length: int, horizon: int, most: int) -> Iterator[int]:
    count = min((length - math.ceil(length / 2)) // horizon, most)
    yield from (length - horizon * (count - i) for i in range(count))


def _block(data: Data, refits: Refits, start: int, horizon: int, seed: int | None) -> tuple[float, float, float]:
    long = data[np.flatnonzero(data.checked.x.lengths.numpy() > start)]
    return log_ahead(refits.fit(data.upto(start)), long.upto(start), long.upto(start + horizon), seed)


def _blocks(data: Data, starts: Sequence[int], horizon: int) -> Fingerprint:
    """Blocks as rows, keyed by their first step."""
    about, x = data.checked.about, data.checked.x
    places = x.places.numpy()
    cells = (~x.values.reshape(len(places), -1).isnan()).sum(dim=1).numpy()
    dims = np.array([cells[(places >= s) & (places < s + horizon)].sum() for s in starts])

    def content() -> np.ndarray:
        whole = np.add.reduce(about.content.astype(np.uint64))
        return np.array([whole + np.uint64(1_000_003 * start + horizon) for start in starts], dtype=np.uint64)

    return Fingerprint(np.array(starts), content, dims, about.event, about.measure, about.integers)


def refuse_options(groups: Any, horizon: Any, folds: Any) -> None:
    """Raises ParameterError for options out of range or that exclude each other."""
    if groups is not None and horizon is not None:
        raise ParameterError("groups= and horizon=", "one of them", "Leave groups out, or the future")
    for name, value, least in (("horizon", horizon, 1), ("folds", folds, 2)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ParameterError(f"{name}={value!r}", f"a whole number, at least {least}")
