"""Estimators of log p(x): one frozen dataclass each, ``estimator(model, x, given, generator=...) -> LogProb``."""

from probgen.estimate.auto import Ladder
from probgen.estimate.bound import ELBO, IWAE
from probgen.estimate.enumerate import Enumerate

__all__ = ["ELBO", "IWAE", "Enumerate", "Ladder"]
