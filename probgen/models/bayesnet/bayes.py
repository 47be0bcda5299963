"""The exact posterior of a network of tables: Dirichlet distributions, and independent draws from them."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.conditionals import Tabular
from probgen.errors import DataError, ParameterError, StructureError
from probgen.model import FitReport
from probgen.models.bayesnet import learning, likelihood, queries
from probgen.models.bayesnet.posterior import log_dirichlet, table_posterior
from probgen.posterior import METHODS

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork
    from probgen.posterior import Parametric

__all__ = ["BAYESIAN", "fit_conjugate", "log_prior", "parametric", "sample_prior"]

BAYESIAN = ("conjugate", *METHODS)


class Tables:
    """Logarithms of all free tables as one vector; they are their own coordinates, on simplices.

    Densities are those of the probabilities under Dirichlet priors of the pseudo-counts of the last fit.
    """

    def __init__(self, net: "BayesianNetwork") -> None:
        self.names = list(dict.fromkeys(net._owner(name) for name in net.variables))
        self.parts: list[Any] = [net.conditional(name) for name in self.names]
        self.sizes = [math.prod(part.cards) for part in self.parts]
        self.size = sum(self.sizes)

    def unpack(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        split = z.split(self.sizes, 1)
        parts = zip(self.names, split, self.parts, strict=True)
        values = {name: own.reshape(len(z), *part.cards) for name, own, part in parts}
        return values, torch.zeros(len(z), dtype=z.dtype)

    def log_prior(self, z: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(len(z), dtype=z.dtype)
        for name, part in zip(self.names, self.parts, strict=True):
            alpha = part.pseudo
            constant = (torch.lgamma(alpha.sum(-1)) - torch.lgamma(alpha).sum(-1)).sum()
            total = total + ((alpha - 1) * values[name]).reshape(len(z), -1).sum(1) + constant
        return total

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return self.drawn([part.pseudo for part in self.parts], n, generator)

    @staticmethod
    def drawn(concentrations: list[Tensor], n: int, generator: torch.Generator) -> Tensor:
        """n independent draws (n, P) of tables with these concentrations."""
        parts = [log_dirichlet(alpha.expand(n, *alpha.shape), generator).reshape(n, -1) for alpha in concentrations]
        return torch.cat(parts, 1)


def parametric(net: "BayesianNetwork") -> "Parametric":
    """What a network of tables tells of itself."""
    from probgen.posterior import Parametric

    place = {name: f"parts.{net.index[name]}.logits" for name in net.variables}

    def rows(x: Tensor, given: None) -> Tensor:
        return torch.from_numpy(likelihood.log_prob(net, x, torch.Generator()).nats)

    def natural() -> dict[str, Tensor]:
        return {name: net.conditional(name).log_table().exp() for name in tables.names}  # type: ignore[operator]

    def draw(n: int, given: Any, generator: torch.Generator) -> Tensor:
        if given is None:
            return queries.ancestral(net, n, generator)
        return queries.conditional_sample(net, given.cells, n, generator)

    def parameters(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {place[name]: value for name, value in values.items()}

    tables = Tables(net)
    return Parametric(net, net.kept, tables, parameters, rows, natural, draw)


def log_prior(net: "BayesianNetwork") -> Tensor:
    """log p(tables) of each draw, (S,), in nats."""
    return parametric(net).log_prior()


def sample_prior(net: "BayesianNetwork", n: int, given: None, generator: torch.Generator) -> Tensor:
    """n rows, each from tables of its own."""
    return parametric(net).sample_prior(n, given, generator)


def fit_conjugate(
    net: "BayesianNetwork", x: Tensor, generator: torch.Generator, method: str, draws: int, chains: int, **options: Any
) -> FitReport:
    """Counts, and independent draws of the tables from their Dirichlet posterior.

    Heckerman, Geiger and Chickering (1995). Every method asked for gives these draws: there is nothing to approximate.

    Raises:
        StructureError: a node without a free table. DataError: missing cells. ParameterError: no proper prior.
    """
    from probgen.posterior import Found, Plan

    Plan("nuts", draws, chains)  # refuses sizes
    _refuse(net, x, options["prior"])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        report = learning.fit(net, x, generator=generator, method="em", **options)
    except BaseException:
        net.load_state_dict(before)
        raise
    tables = Tables(net)
    concentrations = [table_posterior(net, name) for name in tables.names]
    z = Tables.drawn(concentrations, chains * draws, generator)
    net.kept.clear()
    lp = _log_joint(tables, concentrations, z).reshape(chains, draws)
    net.kept.put("conjugate", Found(z.reshape(chains, draws, -1), {"lp": lp}, torch.empty(0)))
    said = f"{chains * draws} independent draws of the tables from their Dirichlet posterior, exact"
    return FitReport(
        report.objective, report.steps, report.stopped, report.seconds, optima=report.optima,
        notes=(*report.notes, said + ("" if method == "conjugate" else f" (in place of {method})")),
    )  # fmt: skip


def _log_joint(tables: Tables, concentrations: list[Tensor], z: Tensor) -> Tensor:
    """log p(x, tables) of each draw, in nats."""
    values, _ = tables.unpack(z)
    total = tables.log_prior(z, values)
    for name, part, alpha in zip(tables.names, tables.parts, concentrations, strict=True):
        counts = alpha - part.pseudo
        total = total + torch.where(counts > 0, counts * values[name], 0.0).reshape(len(z), -1).sum(1)
    return total


def _refuse(net: "BayesianNetwork", x: Tensor, prior: str) -> None:
    for name in net.variables:
        if not isinstance(net.conditional(name), Tabular):
            raise StructureError(
                f"{name!r} has a {type(net.conditional(name)).__name__}: its posterior has no closed form here",
                "tables alone, whose posterior is a product of Dirichlets",
                "Bin the column, or write the model in Pyro and probgen.wrap it",
            )
    if bool(x.isnan().any()):
        raise DataError(
            f"{int(x.isnan().any(1).sum())} of {len(x)} rows have missing cells: the posterior is a mixture of very "
            "many Dirichlets",
            "complete rows",
            "fit(x, prior='bdeu') takes the posterior mode by EM",
        )
    if prior == "none":
        raise ParameterError(
            "A posterior under prior='none'", "a proper prior", "fit(x, method='conjugate', prior='bdeu')"
        )
