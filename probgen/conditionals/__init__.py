"""Conditional distributions of one variable of a network given its parents.

A conditional is a description until ``bind(child, parents)`` gives it columns and parameters.
"""

from probgen.conditionals.conditional import Conditional
from probgen.conditionals.default import default_for
from probgen.conditionals.gaussian import LinearGaussian
from probgen.conditionals.noisyor import NoisyOr
from probgen.conditionals.point import Point
from probgen.conditionals.poisson import PoissonRegression
from probgen.conditionals.program import Program
from probgen.conditionals.softmax import Softmax
from probgen.conditionals.tabular import Tabular

__all__ = [
    "Conditional", "LinearGaussian", "NoisyOr", "Point", "PoissonRegression", "Program", "Softmax", "Tabular",
    "default_for",
]  # fmt: skip
