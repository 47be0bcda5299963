"""What a diffusion model may be asked: checks of its arguments."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probgen.errors import ParameterError, nearest
from probgen.models.diffusion.fitted import MOST_CALLS
from probgen.models.diffusion.trig import SOLVERS

if TYPE_CHECKING:
    from probgen.models.diffusion.family import Diffusion

__all__ = ["check_fitting", "check_power", "check_sampling", "check_sizes", "sampler_of"]

_SAMPLERS = (*SOLVERS, "fitted", "ancestral")


def sampler_of(sampler: str | None, observed: Any) -> str:
    """The sampler meant where none is named."""
    return sampler if sampler is not None else "ab4" if observed is None else "ancestral"


def check_sampling(
    model: "Diffusion", sampler: str, steps: int | None, guidance: float | None, observed: Any, repeats: int
) -> None:
    """Options of ``sample``."""
    if sampler not in _SAMPLERS:
        raise ParameterError(f"sampler={sampler!r}", "", nearest(str(sampler), _SAMPLERS))
    for name, value in {"steps": steps, "repeats": repeats}.items():
        least = 2 if name == "steps" else 1
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ParameterError(f"{name}={value!r}", f"a whole number, at least {least}")
    if observed is not None and sampler != "ancestral":
        raise ParameterError(f"observed= with sampler={sampler!r}", "sampler='ancestral'", "Leave sampler out")
    if guidance is not None:
        _check_guidance(model, guidance)
    if sampler == "fitted":
        _check_fitted_sampler(model, steps, guidance)


def _check_guidance(model: "Diffusion", guidance: float) -> None:
    if model.context is None or not model.forget:
        why = "was built without a context" if model.context is None else "was trained with forget=0"
        raise ParameterError(
            f"guidance={guidance!r} of a Diffusion that {why}", "covariates that were sometimes hidden in training",
            "Leave it out, or build with context= and forget=0.1",
        )  # fmt: skip
    if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not 0 <= guidance < math.inf:
        raise ParameterError(f"guidance={guidance!r}", "a number from 0; 1 is plain")


def _check_fitted_sampler(model: "Diffusion", steps: int | None, guidance: float | None) -> None:
    calls = int(model.fitted.calls)
    if not calls:
        raise ParameterError(
            "sampler='fitted' of a model whose sampler is not fitted",
            "coefficients",
            "Call model.fit_sampler(18) first",
        )
    if steps not in (None, calls):
        raise ParameterError(
            f"steps={steps} with sampler='fitted'", f"the {calls} it was fitted to", f"Call model.fit_sampler({steps})"
        )
    if guidance not in (None, 1):
        raise ParameterError(
            f"guidance={guidance!r} with sampler='fitted'",
            "the plain flow, to which it was fitted",
            "Take another sampler",
        )


def check_fitting(evaluations: int, rows: int, iterations: int) -> None:
    """Options of ``fit_sampler``."""
    limits = {
        "evaluations": (evaluations, 4, MOST_CALLS),
        "rows": (rows, 8, 10**6),
        "iterations": (iterations, 1, 10**5),
    }
    for name, (value, least, most) in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ParameterError(f"{name}={value!r}", f"a whole number from {least} to {most}")


def check_power(power: float) -> None:
    if isinstance(power, bool) or not isinstance(power, int | float) or not 1 <= power <= 4:
        raise ParameterError(f"power={power!r}", "a number from 1 to 4")


def check_sizes(hidden: int, blocks: int, channels: Sequence[int], chain: int, forget: float) -> None:
    sizes = (hidden, blocks, *channels, chain)
    if not all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in sizes) or chain < 2:
        raise ParameterError(
            f"hidden={hidden!r}, blocks={blocks!r}, channels={channels!r}, chain={chain!r}",
            "whole numbers from 1, chain from 2",
        )
    if isinstance(forget, bool) or not isinstance(forget, int | float) or not 0 <= forget < 1:
        raise ParameterError(f"forget={forget!r}", "a share: 0 <= share < 1")
