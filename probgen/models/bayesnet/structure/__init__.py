"""Where a network's graph comes from: scores of families, searches over graphs, and what is known beforehand."""

from probgen.models.bayesnet.structure.columns import Data, read
from probgen.models.bayesnet.structure.constraints import Constraints
from probgen.models.bayesnet.structure.exact import exact
from probgen.models.bayesnet.structure.greedy import Greedy, Step, greedy
from probgen.models.bayesnet.structure.learning import METHODS, Plan, learn, search
from probgen.models.bayesnet.structure.result import Strengths, Structure
from probgen.models.bayesnet.structure.scores import KINDS, Criterion, Scorer
from probgen.models.bayesnet.structure.trees import chow_liu, tan

__all__ = [
    "KINDS", "METHODS", "Constraints", "Criterion", "Data", "Greedy", "Plan", "Scorer", "Step", "Strengths",
    "Structure", "chow_liu", "exact", "greedy", "learn", "read", "search", "tan",
]  # fmt: skip
