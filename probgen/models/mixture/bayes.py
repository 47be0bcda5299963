"""Posteriors over the weights and components of a mixture."""

from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.func import functional_call

from probgen.model import FitReport

if TYPE_CHECKING:
    from probgen.models.mixture.family import Mixture
    from probgen.posterior import Parametric, Plan

__all__ = ["bayes_model", "fit_bayes", "parametric", "priors"]


def priors(mixture: "Mixture") -> dict[str, Any]:
    """A flat Dirichlet of the weights; of the components those of the emission's raw parameters.

    Raises:
        StructureError: an emission without priors.
    """
    weights = {"weights": dist.Dirichlet(torch.ones(mixture.components, dtype=torch.float64))}
    inner = {f"emission.{name}": prior for name, prior in mixture.emission.priors().items()}
    return {**(weights if mixture.components > 1 else {}), **inner}


def parametric(mixture: "Mixture") -> "Parametric":
    """What a mixture tells of itself; its sites are those of ``bayes_model``."""
    from probgen.posterior import Coordinates, Parametric

    def parameters(values: Any) -> dict[str, Tensor]:
        raw = {name: value for name, value in values.items() if name != "weights"}
        return {**raw, "logits": values["weights"].log()} if "weights" in values else raw

    def rows(x: Tensor, given: None) -> Tensor:
        return mixture._joint(x.reshape(len(x), -1)).logsumexp(1)

    def natural() -> dict[str, Tensor]:
        return {"weights": mixture.weights(), **_renamed(mixture.emission.natural())}

    def draw(n: int, given: None, generator: torch.Generator) -> Tensor:
        return mixture.drawn(n, generator)

    return Parametric(
        mixture, mixture.kept, Coordinates(priors(mixture)), parameters, rows, natural, draw,
        states=mixture.components, recorded=True,
    )  # fmt: skip


def _renamed(natural: dict[str, Tensor]) -> dict[str, Tensor]:
    """An emission that is a mixture itself has weights too."""
    return {"emission.weights" if name == "weights" else name: value for name, value in natural.items()}


def bayes_model(mixture: "Mixture", x: Tensor) -> None:
    """Sites "weights" and the emission's raw parameters, the components summed out."""
    drawn = {name: pyro.sample(name, prior) for name, prior in priors(mixture).items()}
    inner = {name.removeprefix("emission."): value for name, value in drawn.items() if name != "weights"}
    table = functional_call(mixture.emission, inner, (x.reshape(len(x), -1),))
    pyro.factor("log_likelihood", (table + drawn.get("weights", torch.ones(1)).log()).logsumexp(1).sum())


def fit_bayes(mixture: "Mixture", x: Tensor, plan: "Plan", generator: torch.Generator) -> FitReport:
    """Draws of the parameters, from starts about the mode that is nearest to what EM has left in place."""
    from probgen.posterior import fit

    family = parametric(mixture)
    weights = mixture.weights().detach()
    start = {name: mixture.get_parameter(name).detach() for name in priors(mixture) if name != "weights"}
    if mixture.components > 1:
        start = {"weights": 0.95 * weights + 0.05 / mixture.components, **start}
    return fit(family, x, None, start, plan, generator)[0]
