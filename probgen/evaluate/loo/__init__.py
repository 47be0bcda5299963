"""Leave-one-out, leave-group-out and leave-future-out log densities, by weights where possible, else by refits."""

from probgen.evaluate.loo.cross import loo
from probgen.evaluate.loo.matching import Matched, match_moments
from probgen.evaluate.loo.psis import smooth, threshold
from probgen.evaluate.loo.result import Loo

__all__ = ["Loo", "Matched", "loo", "match_moments", "smooth", "threshold"]
