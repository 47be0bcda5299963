"""The conditional that columns have when none is chosen."""

from collections.abc import Sequence

from probgen.conditionals.conditional import Conditional
from probgen.conditionals.gaussian import LinearGaussian
from probgen.conditionals.poisson import PoissonRegression
from probgen.conditionals.softmax import Softmax
from probgen.conditionals.tabular import Tabular
from probgen.events import Category, Column, Count

__all__ = ["default_for"]

_TABULAR, _SOFTMAX, _POISSON, _LINEAR = Tabular(), Softmax(), PoissonRegression(), LinearGaussian()


def default_for(child: Column, parents: Sequence[Column]) -> Conditional:
    """An unbound conditional: Tabular, Softmax (a category with a continuous parent), PoissonRegression of a count,
    LinearGaussian of a real column. ``bind`` refuses the real columns that are positive or rounded, and says why."""
    if isinstance(child, Category):
        return _TABULAR if all(isinstance(parent, Category) for parent in parents) else _SOFTMAX
    return _POISSON if isinstance(child, Count) else _LINEAR
