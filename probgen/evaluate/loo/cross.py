"""Cross-validated log densities: what a model says of rows that its fit did not see."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from probgen.errors import FitError, ParameterError
from probgen.evaluate.loo.leaving import Left, Weighing
from probgen.evaluate.loo.psis import threshold
from probgen.evaluate.loo.refits import Refits, score_unit
from probgen.evaluate.loo.result import Loo, standard_error
from probgen.evaluate.loo.rows import Data, draws_of
from probgen.evaluate.loo.splits import (
    group_codes,
    grouped_rows,
    held_out,
    k_fold,
    leave_future_out,
    leave_groups_out,
    refuse_options,
    whole_groups,
)
from probgen.events import row_hash
from probgen.logprob import Kind, LogProb
from probgen.model import GenerativeModel

__all__ = ["loo"]

_FITS = 50  # exact refits of one call: more bad rows than that are no matter of single rows


def loo(
    model: GenerativeModel,
    x: Any,
    given: Any = None,
    *,
    refit: bool | Mapping[str, Any] = True,
    groups: Any = None,
    horizon: int | None = None,
    folds: int = 5,
    seed: int | None = 0,
) -> Loo:
    """The expected log density of rows that the fit did not see: leave-one-out, or the nearest thing the model allows.

    With posterior draws of theta, rows are left out by Pareto-smoothed importance sampling (PSIS-LOO); latents of a
    single row are integrated out first. Rows whose tail of weights is too heavy are done again: by moment matching
    where the family gives its densities at any theta, else by a fit without them. ``method`` says which, row by row.
    A point fit has no draws: its rows are left out by k-fold refits.

    Arguments:
        model: Fitted on x.
        x: The rows that it was fitted on.
        given: Their covariates.
        refit: Whether the model may be fitted again, or with which options of ``fit``. False: unreliable rows stay so
            and are named; a point fit scores x as held-out rows.
        groups: A label a row: leaves one group out at a time, all its rows at once, log p(x_g | x_-g). Latents that a
            group's rows share and that are among theta are left to the weights, then to refits.
        horizon: Leaves the future of sequences out: blocks of so many steps, each under a fit to the steps before it.
        folds: Of a point fit; with ``horizon`` the largest number of blocks is four times that.
        seed: Of the refits, the folds, and of what estimates log p(x_i | theta).

    Returns:
        Loo: elpd and its standard error, each row's number, k and method; ``.to_elpd()`` for ``az.compare``.

    Raises:
        NotFittedError, DataError: as the model's verbs; NaN under some draws. ParameterError: fewer than 21 draws,
        options that exclude each other. StructureError: ``horizon`` of rows that are no sequences. FitError: a refit
        that failed.

    Vehtari, Gelman and Gabry (2017); Vehtari et al. (2024); Magnusson et al. (2019) for approximate posteriors;
    Paananen et al. (2021) for moment matching.
    """
    refuse_options(groups, horizon, folds)
    if not isinstance(refit, bool | Mapping):
        raise ParameterError(f"refit={refit!r}", "True, False, or a dict of options of fit", "refit={'draws': 2000}")
    data, draws = Data.of(model, x, given), draws_of(model)
    options = refit if isinstance(refit, Mapping) else None
    if horizon is not None:
        _needs_refits(refit, "the future is left out")
        return leave_future_out(data, Refits(data, options, seed), horizon, 4 * folds, seed)
    if draws is not None:
        return _weighed(data, draws, groups, None if refit is False else Refits(data, options, seed), seed)
    if groups is not None:
        _needs_refits(refit, "groups are left out of a point fit")
        return leave_groups_out(data, *group_codes(groups, len(data)), Refits(data, options, seed), seed)
    return held_out(data, seed) if refit is False else k_fold(data, Refits(data, options, seed), folds, seed)


def _needs_refits(refit: bool | Mapping[str, Any], what: str) -> None:
    if refit is False:
        raise ParameterError("refit=False", f"refits: {what} by them alone", "Leave refit out")


def _weighed(data: Data, draws: Any, groups: Any, refits: Refits | None, seed: int | None) -> Loo:
    """PSIS-LOO of rows or groups, then whatever mends the unreliable ones."""
    whole = groups is not None
    labels, codes = group_codes(groups, len(data)) if whole else (None, np.arange(len(data)))
    weighing = Weighing(data, draws, codes, seed)
    left, good = weighing.all(), threshold(weighing.many)
    method = np.full(len(left.nats), weighing.how, dtype=object)
    bad = np.flatnonzero(left.k > good)
    mended, notes = _mended(weighing, left, bad, good, refits, method)
    about = data.checked.about if labels is None else whole_groups(data, labels, codes)
    key = row_hash(next(iter(draws.values.values())).reshape(1, -1))[0]
    unit = "g" if whole else "i"
    answer = LogProb(
        Kind.ESTIMATE, mended.nats, by=f"PSIS-LOO(draws={weighing.many})", of="x" if data.covariates is None else "y|x",
        stderr=mended.stderr, draws=np.full(len(about), key, dtype=np.uint64), target=f"p(x_{unit} | x_-{unit})",
        event=about, measure=about.measure, diagnostics={"pareto_k": mended.k},
    )  # fmt: skip
    return Loo(
        answer, "leave-group-out" if whole else "psis-loo", method, mended.k, left.k, good,
        standard_error(mended.nats), float((left.seen - mended.nats).sum()), weighing.many,
        _noise(weighing, left, mended), "groups" if whole else "rows", notes,
    )  # fmt: skip


def _noise(weighing: Weighing, left: Left, mended: Left) -> float:
    """Monte Carlo error of the total: units that share draws together, those done again on their own."""
    again = left.k > threshold(weighing.many)
    return math.hypot(weighing.error_of_total(left), *mended.stderr[again])


def _mended(
    weighing: Weighing, left: Left, bad: np.ndarray, good: float, refits: Refits | None, method: np.ndarray
) -> tuple[Left, tuple[str, ...]]:
    """Numbers with the unreliable units done again, and notes; writes ``method``.

    After a refit k is NaN, or that of the refit's own approximation.
    """
    nats, stderr, k = left.nats.copy(), left.stderr.copy(), left.k.copy()
    notes, still = [], []
    for i in bad.tolist():
        if weighing.matchable:
            found = weighing.matched(i)
            if found.k <= good:
                nats[i], stderr[i], k[i], method[i] = found.nats, found.stderr, found.k, "moment matching"
                continue
        still.append(i)
    if refits is not None and 0 < len(still) <= _FITS:
        units = grouped_rows(weighing.codes)
        try:
            for i in still:
                twin = refits.without(units[i])
                nats[i], stderr[i], k[i] = score_unit(twin, weighing.data[units[i]], weighing.seed)
                method[i] = "refit"
        except FitError as problem:
            notes.append(f"Refits stopped: {problem.came}; the other unreliable rows stay as they were")
        notes.append(f"{refits.count} {'fit' if refits.count == 1 else 'fits'} without the unreliable ones")
        notes += [refits.note] if refits.note else []
    elif still:
        why = "refit=False" if refits is None else f"more than {_FITS}: the model does not fit them, or S is too small"
        notes.append(f"{len(still)} unreliable ones were not fitted again ({why})")
    if (tail := weighing.approximation) > good:
        notes.append(f"The approximate posterior is far from the posterior (k {tail:.2f}): fit(method='nuts')")
    return replace(left, nats=nats, stderr=stderr, k=k), tuple(notes)
