"""What the steps of a scikit-learn Pipeline do to the log-likelihoods of the density at its end."""

import sys
import warnings
from typing import Any

import numpy as np

from probgen.errors import ParameterError, StructureError
from probgen.foreign.sklearn import affine, transformed

__all__ = ["ScaledDataWarning", "announce_scaler", "pipeline_shift", "unscaled_score"]


class ScaledDataWarning(UserWarning):
    """A density is fitted behind a scaler: its log-likelihoods are those of the scaled rows."""


def announce_scaler(scorer: Any) -> float:
    """Warns where an estimator is fitted as last step of a Pipeline whose other steps change the units of its rows.

    Returns:
        Nats a row by which its scores exceed those in the data's units; 0 without such steps, NaN where it differs.
    """
    pipeline = _enclosing(scorer)
    if pipeline is None:
        return 0.0
    try:
        shift: float | None = float(pipeline_shift(pipeline))
    except StructureError:
        shift = None
    if shift is not None and abs(shift) < 1e-9:
        return 0.0
    amount = "an amount that differs from row to row" if shift is None else f"{shift:+.3f} nats a row"
    warnings.warn(
        f"The steps before the density change the units of its rows: its scores are off by {amount} from those of the "
        "data's own units, and a search over scalers would rank units, not models. Use pg.Scorer('Standardize') in "
        "place of scaler and density, scoring=unscaled_score in a search, or subtract pg.pipeline_shift(pipeline)",
        ScaledDataWarning, stacklevel=4,
    )  # fmt: skip
    return np.nan if shift is None else shift


def _enclosing(scorer: Any) -> Any:
    """The Pipeline that is calling this estimator's ``fit`` as its last step, found on the stack: nothing else tells
    an estimator what stands before it."""
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        steps = getattr(found, "steps", None) if type(found).__name__ == "Pipeline" else None
        if steps and steps[-1][1] is scorer:
            return found
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _steps(pipeline: Any) -> list[Any]:
    if not hasattr(pipeline, "steps"):
        raise ParameterError(f"A {type(pipeline).__name__}", "a fitted Pipeline", "Its last step is the density")
    return [step for _, step in pipeline.steps[:-1] if step not in (None, "passthrough")]


def pipeline_shift(pipeline: Any, X: Any = None) -> Any:
    """How many nats a row a Pipeline's density exceeds the density in the data's own units: -log |det J| of the steps
    before it. Subtract it from ``score_samples`` to compare with other preprocessings.

    Arguments:
        pipeline: Fitted; its last step is the density.
        X: Rows, for steps that are not affine (PowerTransformer, QuantileTransformer): then one number a row, by
            central differences.

    Returns:
        A float for affine steps; an array (n,) where X is given.

    Raises:
        StructureError: the steps are not affine and X is not given, or they change the number of columns, so that no
            density in the data's units exists.
    """
    steps = _steps(pipeline)
    dim = int(steps[0].n_features_in_) if steps else 0
    found = affine(steps, dim) if steps else (np.eye(1), np.zeros(1))
    if found is None and X is None:
        raise StructureError("Steps that are not affine", "rows: pipeline_shift(pipeline, X)", "It differs by row")
    if found is not None:
        shift = _minus_log_det(found[0])
        return shift if X is None else np.full(len(X), shift)
    rows = np.asarray(X, dtype=np.float64)
    return np.array([_minus_log_det(_jacobian(steps, row)) for row in rows])


def _minus_log_det(matrix: np.ndarray) -> float:
    if matrix.shape[0] != matrix.shape[1] or np.linalg.slogdet(matrix)[0] == 0:
        raise StructureError(
            f"Steps that map {matrix.shape[1]} columns to {np.linalg.matrix_rank(matrix)}", "as many as came in",
            "Projected rows have no density in the data's units",
        )  # fmt: skip
    return -float(np.linalg.slogdet(matrix)[1])


def _jacobian(steps: list[Any], row: np.ndarray) -> np.ndarray:
    """Central differences of the steps at one row, (outputs, inputs)."""
    width = 1e-5 * np.maximum(np.abs(row), 1.0)
    around = np.concatenate([row + np.diag(width), row - np.diag(width)])
    found = transformed(steps, around)
    return ((found[: len(row)] - found[len(row) :]) / (2 * width[:, None])).T


def unscaled_score(pipeline: Any, X: Any, y: Any = None) -> float:
    """Mean log-likelihood of rows in the data's own units, for ``scoring=`` of GridSearchCV over preprocessings."""
    scores = np.asarray(pipeline.score_samples(X), dtype=np.float64)
    try:
        return float((scores - pipeline_shift(pipeline)).mean())
    except StructureError:
        return float((scores - pipeline_shift(pipeline, X)).mean())
