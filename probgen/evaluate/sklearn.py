"""The door to scikit-learn: any model as one of its estimators, and what a scaler in front of one does to its score."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch

from probgen import emissions, events, frames, store
from probgen.errors import Incomparable, MissingExtra, ParameterError
from probgen.evaluate.pipelines import ScaledDataWarning, announce_scaler, pipeline_shift, unscaled_score
from probgen.evaluate.uses.anomalies import conformal_pvalues
from probgen.logprob import Kind, LogProb
from probgen.model import GenerativeModel
from probgen.models.mixture import Mixture

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.utils import _safe_indexing, check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as missing:
    raise MissingExtra("scikit-learn 1.6 or newer", "sklearn") from missing

__all__ = ["ScaledDataWarning", "Scorer", "pipeline_shift", "unscaled_score"]

_CLASSES = ("binary", "multiclass")


def _has_classes(scorer: "Scorer") -> bool:
    return hasattr(scorer, "classes_")


def _is_calibrated(scorer: "Scorer") -> bool:
    return scorer.contamination is not None


def _can_predict(scorer: "Scorer") -> bool:
    return _has_classes(scorer) or _is_calibrated(scorer)


class Scorer(DensityMixin, BaseEstimator):
    """A generative model as a scikit-learn estimator: log-likelihoods a row, classes, anomaly flags.

    Arguments:
        model: A family's name ("Mixture", "Flow", ...), built for the event of the rows at ``fit``; an unfitted model,
            of which a copy is fitted; a fitted model, which scores without ``fit``; None for one normal with a full
            covariance (of tables that are not all reals, ``Mixture.for_event``).
        options: Of the family's ``for_event``, where a name is given.
        fit_options: Of the model's ``fit``.
        contamination: Share of good rows that ``predict`` may call anomalies (-1): the threshold is a quantile of rows
            kept out of the fit. None calibrates nothing.
        calibration: Share of the rows that is kept out of the fit for that.
        priors: Of the classes in their order, where ``y`` is given; None takes their frequencies.
        bounds: What ``predict_proba`` does where the densities are bounds or scores, whose differences claim nothing:
            "refuse" or "warn".
        refit: Whether ``fit`` fits a model that is fitted already; False only calibrates it.
        random_state: Seed of the fit, of the split and of the estimators' draws.

    Attributes:
        model_: The fitted model; ``models_`` by class where ``y`` was given, with ``classes_`` and ``priors_``.
        kind_: What kind of number a training row's score is.
        offset_: The threshold; ``calibration_scores_``: the scores that it is a quantile of.
        shift_: As last step of a Pipeline: how many nats a row its scores exceed those in the data's units; else 0.

    ``score_samples`` is a row each and ``score`` their mean, always, in nats. Arrays must be two-dimensional, as in all
    of scikit-learn; frames keep their types (categories, gaps); a model over sequences takes what it always takes.
    A refusal (GAN) raises LikelihoodUnavailable, which says what to call instead. It is a density first: for accuracies
    by cross-validation name the folds, ``cv=StratifiedKFold()``.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        options: dict[str, Any] | None = None,
        fit_options: dict[str, Any] | None = None,
        contamination: float | None = None,
        calibration: float = 0.25,
        priors: Any = None,
        bounds: str = "refuse",
        refit: bool = True,
        random_state: int | None = 0,
    ) -> None:
        self.model = model
        self.options = options
        self.fit_options = fit_options
        self.contamination = contamination
        self.calibration = calibration
        self.priors = priors
        self.bounds = bounds
        self.refit = refit
        self.random_state = random_state

    def set_params(self, **params: Any) -> Self:
        """scikit-learn's, where the options of a model are no parameters of their own.

        Raises:
            ParameterError: ``model__components`` and its like. ValueError: another unknown name, as of scikit-learn.
        """
        if inner := [name for name in params if name.startswith("model__")]:
            raise ParameterError(
                f"The parameter {inner[0]!r}", "options= beside a family's name",
                f"Search {{'options': [{{{inner[0].removeprefix('model__')!r}: ...}}, ...]}} of Scorer('mixture')",
            )  # fmt: skip
        return super().set_params(**params)

    # Fitting

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fits the model to rows, or one model a class where ``y`` holds classes.

        Raises:
            ParameterError: an option out of range, or a continuous ``y``.
            ProbgenError: what the model's own ``fit`` raises.
        """
        self._check()
        rows = self._rows(X, reset=True)
        self.shift_ = announce_scaler(self)
        fitted, kept = self._split(len(rows) if not hasattr(rows, "shape") else rows.shape[0])
        for name in ("classes_", "models_", "priors_", "model_", "offset_"):
            self.__dict__.pop(name, None)
        if y is None:
            self.model_ = self._fitted(rows, fitted)
        else:
            self._fit_classes(rows, np.asarray(y).reshape(-1), fitted)
        some = (kept if len(kept) else fitted)[:1]  # an answer may cost more than the fit
        self.kind_ = self._answer(_safe_indexing(rows, some)).kind if self._typed_later() else Kind.EXACT
        if self.contamination is not None:
            self._calibrate(_safe_indexing(rows, kept))
        return self

    def _typed_later(self) -> bool:
        """Whether kinds must be read from an answer: of the default model they are known."""
        return self.model is not None

    def _check(self) -> None:
        share = self.contamination
        if share is not None and not 0 < share < 1:
            raise ParameterError(f"contamination={share!r}", "a share between 0 and 1, or None", "Such as 0.01")
        if not 0 < self.calibration < 1 or self.bounds not in ("refuse", "warn"):
            raise ParameterError(
                f"calibration={self.calibration!r}, bounds={self.bounds!r}", "a share between 0 and 1; refuse or warn"
            )
        if not (self.model is None or isinstance(self.model, str | GenerativeModel)):
            raise ParameterError(
                f"model={self.model!r:.60}", "a family's name, a model of ours, or None", "pg.wrap(it) makes one"
            )

    def _split(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers to fit on and to calibrate on."""
        if self.contamination is None:
            return np.arange(n), np.arange(0)
        order = check_random_state(self.random_state).permutation(n)
        kept = n if self._is_ready() and not self.refit else round(n * self.calibration)
        if int(np.floor(self.contamination * (kept + 1))) < 1:
            raise ParameterError(
                f"n_samples = {n}: {kept} calibration rows for contamination={self.contamination}",
                f"at least {int(np.ceil(1 / self.contamination)) - 1}", "More rows, or a larger calibration share",
            )  # fmt: skip
        return np.sort(order[kept:]), np.sort(order[:kept])

    def _is_ready(self) -> bool:
        return isinstance(self.model, GenerativeModel) and self.model.report is not None

    def _fitted(self, rows: Any, some: np.ndarray) -> GenerativeModel:
        """A fresh model fitted to some rows."""
        if self._is_ready() and not self.refit:
            return self.model
        chosen = _safe_indexing(rows, some)
        if isinstance(self.model, GenerativeModel):
            made = copy.deepcopy(self.model)
        elif self.model is None:
            made = _normal(rows)
        else:
            made = store.family(self.model).for_event(events.infer(rows), **(self.options or {}))
        if isinstance(made, Mixture) and self.model is None:
            return made.fit(chosen, seed=self.random_state, restarts=1, **(self.fit_options or {}))
        return made.fit(chosen, seed=self.random_state, **(self.fit_options or {}))

    def _fit_classes(self, rows: Any, y: np.ndarray, fitted: np.ndarray) -> None:
        if type_of_target(y) not in _CLASSES:
            raise ParameterError(
                f"Unknown label type: y is {type_of_target(y)}",
                "classes, or None",
                "Numbers belong into X: fit them jointly",
            )
        self.classes_, codes = np.unique(y, return_inverse=True)
        counts = np.bincount(codes[fitted], minlength=len(self.classes_))
        given = counts / counts.sum() if self.priors is None else np.asarray(self.priors, dtype=np.float64)
        if given.shape != counts.shape or not np.isclose(given.sum(), 1) or (given < 0).any() or not counts.all():
            raise ParameterError(
                f"priors={self.priors!r} for classes of {counts.tolist()} rows", "one share a class, adding up to 1; "
                "each class with rows to fit",
            )  # fmt: skip
        self.priors_ = given
        self.models_ = {label: self._fitted(rows, fitted[codes[fitted] == c]) for c, label in enumerate(self.classes_)}

    def _calibrate(self, rows: Any) -> None:
        """The threshold: the floor(contamination (m + 1))-th smallest of m calibration scores."""
        scores = np.sort(self._answer(rows).nats)
        place = int(np.floor((self.contamination or 0.0) * (len(scores) + 1)))
        self.calibration_scores_, self.offset_ = scores, float(scores[place - 1])

    # Rows

    def _rows(self, X: Any, reset: bool) -> Any:
        """Rows as the model takes them: frames as they are, arrays as float64 (n, columns)."""
        event = getattr(self.model, "event", None)
        if isinstance(X, Mapping) or isinstance(event, events.Series | events.Panel | events.Text | events.Record):
            return X
        if frames.is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        shape = getattr(event, "shape", None)
        image = isinstance(event, events.Array) and len(event.shape) != 1
        rows = validate_data(
            self, X, reset=reset, dtype="numeric", ensure_all_finite="allow-nan", allow_nd=image, ensure_2d=not image
        )
        return rows.reshape(len(rows), *shape) if image and shape is not None else rows

    # Scores

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_") or hasattr(self, "models_") or self._is_ready()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        family = store.family(self.model) if isinstance(self.model, str) else self.model
        tags.input_tags.allow_nan = family is None or bool(getattr(family, "missing_cells", False))
        tags.target_tags.required = False
        return tags

    def log_prob(self, X: Any) -> LogProb:
        """The typed answer: what kind of number each row has."""
        check_is_fitted(self)
        return self._answer(self._rows(X, reset=not hasattr(self, "n_features_in_")))

    def _answer(self, rows: Any) -> LogProb:
        seed = self.random_state
        if not _has_classes(self):
            return getattr(self, "model_", self.model).log_prob(rows, seed=seed)
        parts = [self.models_[label].log_prob(rows, seed=seed) for label in self.classes_]
        joint = np.stack([lp.nats for lp in parts], 1) + np.log(self.priors_)
        return parts[0].replace(nats=_logsumexp(joint), by=f"{len(parts)} class densities summed", stderr=None)

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-likelihood of each row in nats, (n,); under classes that of their mixture."""
        return self.log_prob(X).nats

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of ``score_samples``, in nats a row. (scikit-learn's KernelDensity and hmmlearn give sums.)"""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> Any:
        """Draws from the model, in the form that it was fitted on; of classes in proportion to their priors."""
        check_is_fitted(self)
        seed = self.random_state if random_state is None else random_state
        if not _has_classes(self):
            return getattr(self, "model_", self.model).sample(n_samples, seed=seed)
        counts = np.random.default_rng(seed).multinomial(n_samples, self.priors_)
        drawn = [(self.models_[c], int(m)) for c, m in zip(self.classes_, counts, strict=True) if m]
        cells = torch.cat([model.event.check(model.sample(m, seed=seed)).x for model, m in drawn])
        return drawn[0][0].event.restore(cells, drawn[0][0].form)

    # Classes

    @available_if(_has_classes)
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """log p(class | x), (n, classes), from the class densities and the priors.

        Raises:
            Incomparable: the densities are bounds or scores, unless ``bounds="warn"``.
        """
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        parts = [self.models_[label].log_prob(rows, seed=self.random_state) for label in self.classes_]
        self._allow(parts)
        joint = np.stack([lp.nats for lp in parts], 1) + np.log(self.priors_)
        total = _logsumexp(joint)[:, None]
        return np.where(np.isfinite(total), joint - np.where(np.isfinite(total), total, 0.0), np.log(self.priors_))

    def _allow(self, parts: list[LogProb]) -> None:
        kinds = {part.kind for part in parts} - {Kind.EXACT, Kind.ESTIMATE}
        if not kinds:
            return
        came = f"Class densities of kind {', '.join(sorted(kinds))}: their differences claim nothing"
        if self.bounds == "refuse":
            raise Incomparable(came, "exact or estimated densities", 'Another family, or bounds="warn"')
        warnings.warn(came, UserWarning, stacklevel=4)

    @available_if(_has_classes)
    def predict_proba(self, X: Any) -> np.ndarray:
        """p(class | x), (n, classes)."""
        return np.exp(self.predict_log_proba(X))

    @available_if(_can_predict)
    def predict(self, X: Any) -> np.ndarray:
        """The most probable class; without classes 1, or -1 for anomalies, as scikit-learn's detectors do."""
        check_is_fitted(self)
        if _has_classes(self):
            return self.classes_[self.predict_log_proba(X).argmax(1)]
        return np.where(self.decision_function(X) < 0, -1, 1)

    # Anomalies

    @available_if(_is_calibrated)
    def decision_function(self, X: Any) -> np.ndarray:
        """Score above the threshold in nats, (n,); below 0 is an anomaly."""
        return self.score_samples(X) - self.offset_

    @available_if(_is_calibrated)
    def p_values(self, X: Any) -> np.ndarray:
        """Split-conformal p-values, (n,): a row exchangeable with the calibration rows has p <= a with probability at
        most a, whatever the model (Vovk, Gammerman and Shafer 2005; Bates et al. 2023)."""
        return conformal_pvalues(self.calibration_scores_, self.score_samples(X))


def _logsumexp(joint: np.ndarray) -> np.ndarray:
    top = joint.max(1, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return (np.log(np.exp(joint - safe).sum(1)) + safe[:, 0]).astype(np.float64)


def _normal(rows: Any) -> Mixture:
    """The default model: one normal for reals, a mixture for tables of other columns."""
    if not frames.is_frame(rows) and not isinstance(rows, Mapping):
        event: Any = events.Array(rows.shape[1:], missing=bool(np.isnan(rows.astype(np.float64)).any()))
    else:
        event = events.infer(rows)
        if not all(isinstance(c, events.Real) and not c.positive and not c.resolution for c in event.columns.values()):
            return Mixture.for_event(event)
    return Mixture(event, 1, emissions.Normal(event.shape[0], "full"))
