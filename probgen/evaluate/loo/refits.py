"""Models fitted anew to some of the rows, and what they say of the others."""

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from probgen.errors import FitError
from probgen.evaluate.loo.leaving import correction_of, efficiency, weighed
from probgen.evaluate.loo.psis import smooth
from probgen.evaluate.loo.rows import Data, draws_of, log_lik_of
from probgen.events import arguments
from probgen.logprob import LogProb
from probgen.model import GenerativeModel

__all__ = ["Refits", "fresh", "log_ahead", "score", "score_unit"]


def fresh(value: Any) -> Any:
    """A model, or a part of one, as its constructor makes it: nothing of a fit is left in it."""
    if isinstance(value, nn.Module):
        try:
            given = {name: fresh(argument) for name, argument in arguments(value).items()}
        except AttributeError:  # a module that keeps not every argument
            return copy.deepcopy(value)
        return type(value)(**given)
    if isinstance(value, Mapping):
        return {name: fresh(part) for name, part in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map(fresh, value))
    return value


class Refits:
    """Fits of the same model to other rows.

    Arguments:
        data: All rows.
        options: Of ``fit``; None takes those of the model's own fit.
        seed: Of all fits.

    Attributes:
        count: Fits done.
        note: Where the options come from.
    """

    def __init__(self, data: Data, options: Mapping[str, Any] | None, seed: int | None) -> None:
        self.data, self.seed, self.count = data, seed, 0
        self.options, self.note = _options(data.model, options)
        data.model._check_options(data.model._fit, self.options, "fit")

    def fit(self, part: Data) -> GenerativeModel:
        """The model fitted to those rows alone.

        Raises:
            FitError: they can't be fitted.
        """
        self.count += 1
        try:
            twin: GenerativeModel = fresh(self.data.model)
            return twin.fit(part.x, given=part.given, seed=self.seed, **self.options)
        except (ArithmeticError, RuntimeError, ValueError) as problem:
            what = f"{type(self.data.model).__name__} could not be fitted to {len(part)} of {len(self.data)} rows"
            raise FitError(f"{what}: {problem}", "rows enough in each part", "Give refit=False") from problem

    def without(self, rows: np.ndarray) -> GenerativeModel:
        kept = np.ones(len(self.data), dtype=bool)
        kept[rows] = False
        return self.fit(self.data[np.flatnonzero(kept)])


def _options(model: GenerativeModel, options: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Options of ``fit`` and what is said about them."""
    if options is not None:
        return dict(options), f"refits with {dict(options)!r}"
    if (kept := getattr(model, "fit_options", None)) is not None:
        return dict(kept), ""
    known, draws = inspect.signature(model._fit).parameters, draws_of(model)
    taken = {} if draws is None else {"method": draws.method, "draws": draws.draws, "chains": draws.chains}
    taken = {name: value for name, value in taken.items() if name in known}
    return taken, f"refits with {taken!r} and the family's defaults: if the fit had other options, say refit={{...}}"


def score(model: GenerativeModel, part: Data, seed: int | None) -> LogProb:
    """log p of those rows under a model that has not seen them."""
    return model.log_prob(part.x, given=part.given, seed=seed)


def score_unit(model: GenerativeModel, part: Data, seed: int | None) -> tuple[float, float, float]:
    """log p of some rows together under a model that has not seen them, its Monte Carlo error, and k (NaN if none).

    Under posterior draws the rows are independent given theta, not otherwise.
    """
    draws = draws_of(model)
    if draws is None:
        return float(score(model, part, seed).nats.sum()), math.nan, math.nan
    return _averaged(log_lik_of(model, part, seed).sum(axis=1), draws)


def log_ahead(model: GenerativeModel, past: Data, data: Data, seed: int | None) -> tuple[float, float, float]:
    """log p(later steps | earlier steps) of all sequences together, its Monte Carlo error, and k (NaN if none).

    Arguments:
        past: The steps that are given.
        data: The same sequences with the steps to score.
    """
    draws = draws_of(model)
    if draws is None:
        return float(score(model, data, seed).nats.sum() - score(model, past, seed).nats.sum()), math.nan, math.nan
    ahead = log_lik_of(model, data, seed).sum(axis=1) - log_lik_of(model, past, seed).sum(axis=1)
    return _averaged(ahead, draws)


def _averaged(log_lik: np.ndarray, draws: Any) -> tuple[float, float, float]:
    """log of the mean over draws (S,), its standard error by the delta method, and k of the weights, if there are any.

    Draws of an approximation are weighed by p / q, smoothed.
    """
    correction, k = correction_of(draws), math.nan
    if correction is None:
        weights, share = np.full((len(log_lik), 1), -math.log(len(log_lik))), efficiency(log_lik[:, None], draws.chains)
    else:
        weights, tails = smooth(correction[:, None])
        share, k = np.ones(1), float(tails[0])
    nats, around = weighed(weights, log_lik[:, None])
    error = math.sqrt(float(np.square(around).sum()) / float(share[0])) if math.isfinite(nats[0]) else math.nan
    return float(nats[0]), error, k
