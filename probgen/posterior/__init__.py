"""Posteriors of parameters: unconstrained coordinates, NUTS, normal approximations, draws and what they predict.

Names come with their modules when they are asked for, so that a family that keeps draws starts without the samplers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probgen.posterior.coordinates import Coordinates as Coordinates
    from probgen.posterior.density import Density as Density
    from probgen.posterior.diagnostics import ess as ess
    from probgen.posterior.diagnostics import rhat as rhat
    from probgen.posterior.draws import Draws as Draws
    from probgen.posterior.fitting import ConvergenceWarning as ConvergenceWarning
    from probgen.posterior.fitting import Found as Found
    from probgen.posterior.fitting import Plan as Plan
    from probgen.posterior.fitting import chained as chained
    from probgen.posterior.fitting import judged as judged
    from probgen.posterior.fitting import sampled as sampled
    from probgen.posterior.kept import GROWING as GROWING
    from probgen.posterior.kept import METHODS as METHODS
    from probgen.posterior.kept import Kept as Kept
    from probgen.posterior.kept import prior_numbers as prior_numbers
    from probgen.posterior.parametric import Parametric as Parametric
    from probgen.posterior.parametric import fit as fit
    from probgen.posterior.predictive import APPROXIMATE as APPROXIMATE
    from probgen.posterior.predictive import POSTERIOR as POSTERIOR
    from probgen.posterior.predictive import log_mean as log_mean
    from probgen.posterior.predictive import predictive_steps as predictive_steps

_NAMES = {
    "coordinates": ("Coordinates",),
    "density": ("Density",),
    "diagnostics": ("ess", "rhat"),
    "draws": ("Draws",),
    "fitting": ("ConvergenceWarning", "Found", "Plan", "chained", "judged", "sampled"),
    "kept": ("GROWING", "METHODS", "Kept", "prior_numbers"),
    "parametric": ("Parametric", "fit"),
    "predictive": ("APPROXIMATE", "POSTERIOR", "log_mean", "predictive_steps"),
}
_ROOMS = {name: room for room, names in _NAMES.items() for name in names}

__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"probgen.posterior has no {name!r}; it has: {', '.join(__all__)}")
    value = getattr(import_module(f"probgen.posterior.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
