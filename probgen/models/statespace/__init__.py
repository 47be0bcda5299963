"""Linear-Gaussian state-space models: the family, its matrices, and what it says about data."""

from probgen.models.statespace.family import States, StateSpace
from probgen.models.statespace.kalman import System
from probgen.models.statespace.paths import Forecast, Scale

__all__ = ["Forecast", "Scale", "StateSpace", "States", "System"]
