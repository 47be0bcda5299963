"""Posteriors of parameters: unconstrained coordinates, NUTS, normal approximations, draws and what they predict."""

from probgen.posterior.coordinates import Coordinates
from probgen.posterior.density import Density
from probgen.posterior.diagnostics import ess, rhat
from probgen.posterior.draws import Draws
from probgen.posterior.fitting import METHODS, ConvergenceWarning, Found, Plan, chained, judged, sampled
from probgen.posterior.kept import GROWING, Kept
from probgen.posterior.parametric import Parametric, fit, prior_numbers
from probgen.posterior.predictive import APPROXIMATE, POSTERIOR, log_mean, predictive, predictive_steps

__all__ = [
    "APPROXIMATE", "GROWING", "METHODS", "POSTERIOR", "ConvergenceWarning", "Coordinates", "Density", "Draws", "Found",
    "Kept", "Parametric", "Plan", "chained", "ess", "fit", "judged", "log_mean", "predictive", "predictive_steps",
    "prior_numbers", "rhat", "sampled",
]  # fmt: skip
