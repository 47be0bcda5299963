"""How the parameters of regressions are found."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen.errors import ParameterError, StructureError
from probgen.model import FitReport
from probgen.models.regression import posterior
from probgen.models.regression.design import unit_columns
from probgen.models.regression.linear import Found, Rows, fit_point
from probgen.models.regression.neural import train_network
from probgen.models.regression.predictive import linear_inputs, nats_of_fit, predictors
from probgen.training import Schedule

if TYPE_CHECKING:
    from probgen.models.regression.family import Regression

__all__ = ["METHODS", "LinearPlan", "fit_linear", "fit_network"]

METHODS = ("ml", "laplace", "nuts", "conjugate")
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

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ParameterError(f"method={self.method!r}", f"one of {', '.join(METHODS)}")
        ridge = self.ridge
        if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < math.inf:
            raise ParameterError(f"ridge={ridge!r}", "a number from 0")
        if ridge and self.method != "ml":
            raise ParameterError(f"ridge={ridge} with method={self.method!r}", "prior_scale=", "Leave ridge out")
        for name, least in {"max_iter": 1, "draws": 20, "chains": 1, "warmup": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ParameterError(f"{name}={value!r}", f"a whole number, at least {least}")
        if self.draws < 10 * self.chains:
            raise ParameterError(f"draws={self.draws} of {self.chains} chains", "at least 10 a chain")


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
        found, evidence, drawn, notes = _solve(reg, rows, plan, generator)
    except BaseException:
        for name, value in units.items():
            setattr(reg, name, value)
        raise
    shift = float(reg.response_spread.log()) * len(y)
    _keep(reg, found, drawn)
    u = predictors(reg, given, len(y))(reg.theta().detach()[None])[0]
    chains = plan.chains if plan.method == "nuts" else 1
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
    reg: "Regression", rows: Rows, plan: LinearPlan, generator: torch.Generator
) -> tuple[Found, float, Tensor, tuple[str, ...]]:
    """What was found, the log evidence (0 where there is none), draws and notes."""
    none = torch.zeros(0, len(reg.covariance), dtype=torch.float64)
    if plan.method == "ml":
        return fit_point(reg.likelihood, rows, float(plan.ridge), plan.max_iter), 0.0, none, ()
    if plan.method == "conjugate":
        return *posterior.conjugate(rows, plan.prior), none, ()
    found, evidence = posterior.laplace(reg.likelihood, rows, plan.prior, plan.max_iter)
    if plan.method == "laplace":
        return found, evidence, none, ()
    sizes = (plan.draws, plan.chains, plan.warmup)
    return found, 0.0, *posterior.nuts(reg.likelihood, rows, plan.prior, found, *sizes, generator)


@torch.no_grad()
def _keep(reg: "Regression", found: Found, drawn: Tensor) -> None:
    theta = drawn.mean(0) if len(drawn) else found.theta
    reg.weight.copy_(theta[: reg.weight.numel()].reshape(reg.weight.shape))
    reg.extras.copy_(theta[reg.weight.numel() :])
    reg.covariance, reg.sure, reg.draws = found.covariance, found.sure, drawn


def fit_network(
    reg: "Regression", y: Tensor, given: Tensor, plan: Schedule, generator: torch.Generator, progress: bool | None
) -> FitReport:
    measure(reg, y, given)
    rows = (y - reg.response_centre) / reg.response_spread, linear_inputs(reg, given, len(y))[0][:, 1:]
    report = train_network(reg, reg.network, rows, plan, generator, progress)
    with torch.no_grad():
        reg.n_rows, reg.log_likelihood = len(y), float(nats_of_fit(reg, y, given).sum())
    return report
