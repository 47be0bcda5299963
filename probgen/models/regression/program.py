"""The Pyro programs of regressions."""

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.models.regression.predictive import mixture, predictors, row_normals, student

if TYPE_CHECKING:
    from probgen.models.regression.family import Regression

__all__ = ["bayes_model", "model"]


def model(reg: "Regression", y: Tensor | None, given: Tensor | None, n: int) -> Tensor:
    """p(y | covariates), one response a row of the plate "rows", (n,).

    A mixture has a site "component"; after ``laplace`` a row's "predictor" is normal, after ``nuts`` its "draw" is one
    of the posterior draws, after ``conjugate`` y has a t distribution. Rows share no uncertainty: each is by itself.
    """
    n = len(y) if y is not None else len(given) if given is not None and len(given) > 1 else n
    if given is not None and len(given) == 1:
        given = given.expand(n, *given.shape[1:])
    with pyro.plate("rows", n):
        return pyro.sample("y", _response(reg, given, n), obs=y)


def _response(reg: "Regression", given: Tensor | None, n: int) -> dist.TorchDistribution:
    """Of each row, inside the plate."""
    if not reg.linear:
        u, weights = mixture(reg, given, n)  # type: ignore[arg-type]
        if reg.components == 1:
            return reg.likelihood.distribution(u[:, 0])
        k = pyro.sample("component", dist.Categorical(logits=weights), infer={"enumerate": "parallel"})
        return reg.likelihood.distribution(u[torch.arange(n), k])
    if reg.method == "conjugate":
        return student(reg, given, n)
    if reg.method == "laplace":
        mean, covariance = row_normals(reg, given, n)
        u = pyro.sample("predictor", dist.MultivariateNormal(mean, covariance))
        return reg.likelihood.distribution(reg.likelihood.natural(u, reg.response_centre, reg.response_spread))
    if reg.method == "nuts":
        weights = torch.ones(n, len(reg.kept.z()), dtype=torch.float64)
        k = pyro.sample("draw", dist.Categorical(weights), infer={"enumerate": "parallel"})
        return reg.likelihood.distribution(predictors(reg, given, n)(reg.kept.z())[k, torch.arange(n)])
    return reg.likelihood.distribution(predictors(reg, given, n)(reg.theta()[None])[0])


def bayes_model(reg: "Regression", y: Tensor, given: Tensor | None) -> None:
    """Priors over coefficients (in the units of the fit) and extras, and the rows given them: for NUTS and SVI."""
    middle, wide = reg.prior.of(reg.likelihood, reg.weight.shape[1])
    split = reg.weight.numel()
    slopes = dist.Normal(middle[:split], wide[:split]).to_event(1)
    parts = [pyro.sample("weight", slopes)]
    if len(reg.extras):
        parts.append(pyro.sample("extras", dist.Normal(middle[split:], wide[split:]).to_event(1)))
    u = predictors(reg, given, len(y))(torch.cat(parts)[None])[0]
    with pyro.plate("rows", len(y)):
        pyro.sample("y", reg.likelihood.distribution(u), obs=y)
