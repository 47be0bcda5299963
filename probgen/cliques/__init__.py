"""Exact sums and maxima over discrete variables of a product of factors, with any of them observed, row by row.

Two paths, one law: variable elimination in logarithms is the definition (any device, any dtype, differentiable twice),
the compiled kernel is fast (CPU, float64). ``probgen.kernels.cliques`` is looked up at each call; None takes the torch
path. Tables are logarithms, axes in the order of each factor's scope; a table with one more axis, the first, holds one
table a row. Codes are float64 (n, V), NaN where a variable is open.
"""

from probgen.cliques.plan import LIMIT, Cost, Plan
from probgen.cliques.queries import expected, log_prob, marginals, mpe, row_cost, sample

__all__ = ["LIMIT", "Cost", "Plan", "expected", "log_prob", "marginals", "mpe", "row_cost", "sample"]
