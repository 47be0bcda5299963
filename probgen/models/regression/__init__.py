"""Regressions: one response given covariates, linear or neural, with what the data leave open about them."""

from probgen.models.regression.family import Regression
from probgen.models.regression.linear import SeparationWarning
from probgen.models.regression.summary import Coefficients

__all__ = ["Coefficients", "Regression", "SeparationWarning"]
