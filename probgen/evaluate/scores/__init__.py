"""Proper scores that need only samples: one fair ranking of models with and without a likelihood, on the same rows.

Every score is of each row, lower is better, and the difference of two models' scores on the same rows has a paired
standard error: ``energy(a, x) - energy(b, x)``. Calibration (``pit``, ``interval_coverage``) ranks nothing.
"""

from probgen.evaluate.scores.calibration import Coverage, Pit, interval_coverage, pit
from probgen.evaluate.scores.draws import PairedDifference, Scores
from probgen.evaluate.scores.proper import brier, crps, energy, variogram

__all__ = [
    "Coverage", "PairedDifference", "Pit", "Scores", "brier", "crps", "energy", "interval_coverage", "pit", "variogram",
]  # fmt: skip
