"""How the parameters of regressions are found."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen.errors import ParameterError, StructureError, nearest
from probgen.model import FitReport
from probgen.models.regression import bayes, posterior
from probgen.models.regression.design import unit_columns
from probgen.models.regression.linear import Found, Rows, fit_point
from probgen.models.regression.neural import train_network
from probgen.models.regression.predictive import linear_inputs, nats_of_fit, predictors
from probgen.training import Schedule

if TYPE_CHECKING:
    from probgen.models.regression.family import Regression
    from probgen.posterior import Found as Drawn
    from probgen.posterior import Plan

__all__ = ["METHODS", "LinearPlan", "fit_linear", "fit_network"]

METHODS = ("ml", "laplace", "nuts", "conjugate", "svi")
_UNITS = ("centre", "spread", "response_centre", "response_spread")


@dataclass(frozen=True)
class LinearPlan:
    """How to fit a linear model; see ``Regression._fit``."""

    method: str
    ridge: float
    prior: posterior.Prior
    max_iter: int
    draws: int
    chains: int
    warmup: int
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ParameterError(f"method={self.method!r}", ", ".join(METHODS), nearest(str(self.method), METHODS))
        ridge = self.ridge
        if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < math.inf:
            raise ParameterError(f"ridge={ridge!r}", "a number from 0")
        if ridge and self.method != "ml":
            raise ParameterError(f"ridge={ridge} with method={self.method!r}", "prior_scale=", "Leave ridge out")
        for name, least in {"max_iter": 1, "draws": 1, "chains": 1, "warmup": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ParameterError(f"{name}={value!r}", f"a whole number, at least {least}")

    @property
    def drawing(self) -> "Plan":
        """How draws are made, of a conjugate posterior only how many."""
        from probgen.posterior import Plan

        method = "nuts" if self.method == "conjugate" else self.method
        return Plan(method, self.draws, self.chains, self.warmup, progress=self.progress)


def measure(reg: "Regression", y: Tensor, given: Tensor | None) -> None:
    """The units of the fit: means and deviations of covariates, and of real responses."""
    if not reg.standardise:
        return
    reg.centre, reg.spread = unit_columns(reg.design(given, len(y)), reg.design.numeric)
    if reg.likelihood.location:
        centre, spread = unit_columns(y[:, None], torch.ones(1, dtype=torch.bool))
        reg.response_centre, reg.response_spread = centre[0], spread[0]


def fit_linear(
    reg: "Regression", y: Tensor, given: Tensor | None, plan: LinearPlan, generator: torch.Generator
) -> FitReport:
    if plan.method == "conjugate" and reg.head_name != "normal":
        raise StructureError(f"method='conjugate' of {reg.head_name}", "normal", "method='laplace' or 'nuts'")
    began, units = time.perf_counter(), {name: getattr(reg, name) for name in _UNITS}
    try:
        measure(reg, y, given)
        design, offset = linear_inputs(reg, given, len(y))
        rows = Rows((y - reg.response_centre) / reg.response_spread, design, offset)
        shift = float(reg.response_spread.log()) * len(y)
        found, evidence, drawn, notes = _solve(reg, rows, plan, shift, generator)
    except BaseException:
        for name, value in units.items():
            setattr(reg, name, value)
        raise
    _keep(reg, plan.method, found, drawn)
    u = predictors(reg, given, len(y))(reg.theta().detach()[None])[0]
    chains = 1 if drawn is None else plan.chains
    deviance = float(reg.likelihood.deviance(y, u).sum())
    state = [
        METHODS.index(plan.method),
        chains,
        found.rank,
        deviance,
        evidence - shift,
        plan.ridge,
        *vars(plan.prior).values(),
    ]
    reg.facts = torch.tensor(state, dtype=torch.float64)
    reg.n_rows, reg.log_likelihood = len(y), float(reg.likelihood.log_prob(y, u).sum())
    history = tuple((value - shift) / len(y) for value in found.history)
    seconds = time.perf_counter() - began
    return FitReport(history, len(history) - 1, found.stopped, seconds, notes=found.notes + notes)


def _solve(
    reg: "Regression", rows: Rows, plan: LinearPlan, shift: float, generator: torch.Generator
) -> "tuple[Found, float, Drawn | None, tuple[str, ...]]":
    """What was found, the log evidence (0 where there is none), draws and notes."""
    if plan.method == "ml":
        return fit_point(reg.likelihood, rows, float(plan.ridge), plan.max_iter), 0.0, None, ()
    if plan.method == "conjugate":
        found, evidence = posterior.conjugate(rows, plan.prior)
        return found, evidence, *bayes.drawn_conjugate(rows, plan.prior, found, plan.drawing, shift, generator)
    found, evidence = posterior.laplace(reg.likelihood, rows, plan.prior, plan.max_iter)
    made = bayes.drawn(reg.likelihood, rows, plan.prior, found, plan.drawing, shift, generator)
    return found, evidence if plan.method == "laplace" else 0.0, *made


@torch.no_grad()
def _keep(reg: "Regression", method: str, found: Found, drawn: "Drawn | None") -> None:
    theta = found.theta
    if drawn is None:
        reg.kept.clear()
    else:
        reg.kept.put(method, drawn)
        theta = reg.kept.z().mean(0) if method in ("nuts", "svi") else theta
    reg.weight.copy_(theta[: reg.weight.numel()].reshape(reg.weight.shape))
    reg.extras.copy_(theta[reg.weight.numel() :])
    reg.covariance, reg.sure = found.covariance, found.sure


def fit_network(
    reg: "Regression", y: Tensor, given: Tensor, plan: Schedule, generator: torch.Generator, progress: bool | None
) -> FitReport:
    measure(reg, y, given)
    rows = (y - reg.response_centre) / reg.response_spread, linear_inputs(reg, given, len(y))[0][:, 1:]
    report = train_network(reg, reg.network, rows, plan, generator, progress)
    with torch.no_grad():
        reg.n_rows, reg.log_likelihood = len(y), float(nats_of_fit(reg, y, given).sum())
    return report
