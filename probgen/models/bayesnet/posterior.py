"""What data leave open about the tables of a network: Dirichlet posteriors, and the evidence for a graph."""

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen.conditionals import Conditional, Tabular
from probgen.errors import DataError, NotFittedError, ParameterError, StructureError
from probgen.models.bayesnet.problem import codes_of, count

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["log_marginal", "pseudo_counts", "sample_networks", "table_posterior"]


def pseudo_counts(cards: Sequence[int], prior: str, strength: float) -> float:
    """Dirichlet pseudo-count of each cell of a table of shape ``cards``."""
    return {"none": 0.0, "dirichlet": strength, "k2": 1.0, "bdeu": strength / math.prod(cards)}[prior]


def table_posterior(net: "BayesianNetwork", name: str, approximate: bool = False) -> Tensor:
    """Dirichlet concentrations of each row of a node's table after a fit, shaped as the table.

    Exact where no cell of the family was missing in the data, whatever else was. Their normalised rows are the
    table; averaged over the posterior, the probability of one further complete row is the network's own.

    Arguments:
        approximate: Takes expected counts where cells of the family were missing; too narrow by what those leave open.

    Raises:
        NotFittedError: the network was not fitted to data.
        StructureError: the node has no free table, or missing cells make its posterior a mixture of many Dirichlets.
        ParameterError: the fit had no prior and some configuration was never seen, so that no posterior exists.
    """
    conditional = _table(net.conditional(name), name)
    if not net.n_rows:
        raise NotFittedError("This network was not fitted to data", "one that has counted some", "Call .fit(x)")
    if not conditional.whole and not approximate:
        raise StructureError(
            f"Cells of the family of {name!r} were missing: its posterior is no single Dirichlet",
            "data that are complete in that family",
            "approximate=True takes expected counts, which makes it too narrow",
        )
    concentrations = conditional.counts + conditional.pseudo
    if bool((concentrations <= 0).any()):
        raise ParameterError(
            f"{int((concentrations <= 0).sum())} cells of the table of {name!r} have no data and no pseudo-counts",
            "a proper prior",
            "Fit with prior='bdeu', 'dirichlet' or 'k2'",
        )
    return concentrations


def _table(conditional: Conditional, name: str) -> Tabular:
    if not isinstance(conditional, Tabular):
        raise StructureError(
            f"{name!r} has a {type(conditional).__name__}", "a Tabular, whose posterior is a Dirichlet",
            "Only tables have one in closed form",
        )  # fmt: skip
    return conditional


def sample_networks(
    net: "BayesianNetwork", n: int, generator: torch.Generator, approximate: bool = False
) -> list["BayesianNetwork"]:
    """n networks whose tables are drawn from the posterior of the last fit.

    The mean of their probabilities of a complete row tends to ``exp(net.log_prob(row))``; their spread is what the
    data leave open. Tied tables are drawn once.

    Raises:
        ParameterError: n below 1. Otherwise as ``table_posterior``.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ParameterError(f"n={n!r}", "a whole number of networks, at least 1")
    owners = {id(net.conditional(name)): name for name in reversed(net.variables)}
    posteriors = {name: table_posterior(net, name, approximate) for name in owners.values()}
    drawn = []
    for _ in range(n):
        other = copy.deepcopy(net)
        for name, concentrations in posteriors.items():
            table = _table(other.conditional(name), name)
            table.set_table(log_dirichlet(concentrations, generator), log=True)
        drawn.append(other)
    return drawn


def log_dirichlet(concentrations: Tensor, generator: torch.Generator) -> Tensor:
    """Logarithms of Dirichlet draws, one a row (last axis).

    Gamma(a) is Gamma(a + 1) U^(1/a) (Marsaglia and Tsang 2000), taken in logarithms: draws of small concentrations
    would underflow.
    """
    above = torch._standard_gamma(concentrations + 1, generator=generator).log()
    uniform = torch.rand(concentrations.shape, generator=generator, dtype=torch.float64)
    return (above + torch.log1p(-uniform) / concentrations).log_softmax(-1)


def log_marginal(net: "BayesianNetwork", x: Tensor, prior: str = "bdeu", strength: float = 1.0) -> float:
    """log p(complete data | graph) in nats, the tables integrated out under a Dirichlet prior.

    The BDeu score where ``prior="bdeu"`` (Heckerman, Geiger and Chickering 1995, equation 28), K2 where "k2" (Cooper
    and Herskovits 1992). It does not depend on the network's parameters, which stay as they are.

    Arguments:
        x: Checked rows (n, columns).
        prior, strength: As in ``fit``; "none" has no marginal likelihood.

    Raises:
        DataError: missing cells. StructureError: a node without a free table. ParameterError: no proper prior.
    """
    if prior not in ("dirichlet", "bdeu", "k2") or not 0 < strength < math.inf:
        raise ParameterError(
            f"prior={prior!r}, strength={strength!r}", "dirichlet, bdeu or k2, with a strength above 0"
        )
    if bool(x.isnan().any()):
        raise DataError(
            f"{int(x.isnan().any(1).sum())} rows have missing cells", "complete rows",
            "The marginal likelihood of incomplete data has no closed form: fit, and compare net.bic()",
        )  # fmt: skip
    codes, cards = codes_of(net, x), net.cards
    counts: dict[int, Tensor] = {}
    for name in net.variables:
        table = _table(net.conditional(name), name)
        own = count(codes, net.scopes[name], cards)
        counts[id(table)] = counts[id(table)] + own if id(table) in counts else own
    return sum(_log_polya(own, pseudo_counts(own.shape, prior, strength)) for own in counts.values())


def _log_polya(counts: Tensor, pseudo: float) -> float:
    """log of the Dirichlet-multinomial probability of a sequence of draws, summed over the rows of a table."""
    alpha = torch.full_like(counts, pseudo)
    cells = (torch.lgamma(counts + alpha) - torch.lgamma(alpha)).sum()
    rows = (torch.lgamma(alpha.sum(-1)) - torch.lgamma(counts.sum(-1) + alpha.sum(-1))).sum()
    return float(cells + rows)
