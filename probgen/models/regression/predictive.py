"""What a fitted regression says of further rows: log-probabilities, draws, means."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from pyro.distributions import StudentT
from torch import Tensor

from probgen.events import row_hash
from probgen.logprob import Kind, LogProb
from probgen.models.regression.neural import mixture_log_prob
from probgen.models.regression.posterior import Predictors, by_quadrature, log_mean_over
from probgen.posterior import APPROXIMATE, POSTERIOR

if TYPE_CHECKING:
    from probgen.models.regression.family import Regression

__all__ = [
    "draw",
    "linear_inputs",
    "log_prob",
    "mean",
    "mixture",
    "nats_of_fit",
    "predictors",
    "row_normals",
    "student",
]

_AVERAGED = 2000  # draws of a normal posterior where no quadrature reaches
_BLOCK = 8192  # rows through a network at once


def linear_inputs(reg: "Regression", given: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
    """The design (n, 1 + d), ones first, and the offset (n,), in the units of the fit."""
    columns = (reg.design(given, n) - reg.centre) / reg.spread
    ones = torch.ones(n, 1, dtype=torch.float64)
    return torch.cat([ones, columns], 1), reg.design.offset(given, n) / reg.response_spread


def predictors(reg: "Regression", given: Tensor | None, n: int) -> Predictors:
    return Predictors(reg.likelihood, *linear_inputs(reg, given, n), reg.response_centre, reg.response_spread)


def mixture(reg: "Regression", given: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """A network's u (n, K, q) in the response's unit and log weights (n, K)."""
    columns = (reg.design(given, n) - reg.centre) / reg.spread
    u, weights = reg.network(columns.to(torch.float32))
    return reg.likelihood.natural(u, reg.response_centre, reg.response_spread), weights


def row_normals(reg: "Regression", given: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
    """Mean (n, q) and covariance (n, q, q) of each row's u under a normal posterior, in the units of the fit."""
    x, offset = linear_inputs(reg, given, n)
    places, extras = reg.likelihood.places, len(reg.extras)
    eye = torch.eye(places, dtype=torch.float64)
    top = torch.einsum("pr,nd->nprd", eye, x).reshape(n, places, -1)
    top = torch.cat([top, torch.zeros(n, places, extras, dtype=torch.float64)], 2)
    rest = torch.eye(top.shape[2], dtype=torch.float64)[top.shape[2] - extras :]
    carry = torch.cat([top, rest.expand(n, -1, -1)], 1)
    centre = carry @ reg.theta()
    centre = torch.cat([centre[:, :1] + offset[:, None], centre[:, 1:]], 1)
    return centre, carry @ reg.covariance @ carry.mT


def student(reg: "Regression", given: Tensor | None, n: int) -> StudentT:
    """The posterior predictive distribution of a conjugate fit."""
    x, offset = linear_inputs(reg, given, n)
    columns = x.shape[1]
    inner = ((x @ reg.covariance[:columns, :columns]) * x).sum(1)
    scale = ((2 * reg.extras[0]).exp() + inner).sqrt() * reg.response_spread
    loc = reg.response_centre + reg.response_spread * (x @ reg.weight[0] + offset)
    return StudentT(torch.full_like(loc, 2 * reg.prior.shape + reg.n_rows), loc, scale)


def nats_of_fit(reg: "Regression", y: Tensor, given: Tensor | None) -> Tensor:
    """log p(y | x) at the fitted parameters, (n,)."""
    if reg.linear:
        return reg.likelihood.log_prob(y, predictors(reg, given, len(y))(reg.theta()[None])[0])
    blocks = zip(y.split(_BLOCK), given.split(_BLOCK), strict=True)  # type: ignore[union-attr]
    return torch.cat([mixture_log_prob(reg.likelihood, part, *mixture(reg, some, len(part))) for part, some in blocks])


def log_prob(reg: "Regression", y: Tensor, given: Tensor | None, generator: torch.Generator) -> LogProb:
    """Exact at fitted parameters and under a conjugate posterior; an estimate under the others."""
    of = "x" if reg.context is None else "y|x"
    if reg.method in ("ml", "network"):
        how = f"{reg.components} components summed" if reg.components > 1 else reg.head_name
        return LogProb(Kind.EXACT, nats_of_fit(reg, y, given), by=how, of=of)
    if reg.method == "conjugate":
        nats = student(reg, given, len(y)).log_prob(y)
        return LogProb(Kind.EXACT, nats, by="conjugate posterior", of=of, target=POSTERIOR)
    if reg.method == "laplace" and reg.likelihood.width == 1:
        centre, variance = row_normals(reg, given, len(y))
        nats, error = by_quadrature(reg.likelihood, y, centre[:, 0], variance[:, 0, 0])
        about = {"quadrature_error": error.numpy()}
        return LogProb(
            Kind.ESTIMATE, nats, by="Laplace posterior, 64 nodes", of=of, target=APPROXIMATE, diagnostics=about
        )
    thetas, key = posterior_draws(reg, generator, _AVERAGED)
    chains = reg.kept.dependent if reg.method == "nuts" else 0
    parts = log_mean_over(reg.likelihood, y, thetas, predictors(reg, given, len(y)), chains)
    averaged, errors, ess = (part.numpy() for part in parts)
    by = f"{len(thetas)} { {'nuts': 'NUTS', 'svi': 'SVI'}.get(reg.method, 'Laplace') } draws"
    shared, target = np.full(len(y), key, dtype=np.uint64), POSTERIOR if reg.method == "nuts" else APPROXIMATE
    return LogProb(
        Kind.ESTIMATE, averaged, by=by, stderr=errors, draws=shared, of=of, target=target, diagnostics={"ess": ess}
    )


def posterior_draws(reg: "Regression", generator: torch.Generator, n: int) -> tuple[Tensor, np.uint64]:
    """Draws of theta (S, P), the same for all rows, and the key of their stream; NUTS and SVI have what they kept."""
    if reg.method in ("nuts", "svi"):
        return reg.kept.z(), row_hash(reg.kept.numbers.reshape(1, -1))[0]
    seed = np.array([[generator.initial_seed() % 2**63]], dtype=np.int64)
    return _normal_draws(reg, generator, n), row_hash(seed)[0]


def _normal_draws(reg: "Regression", generator: torch.Generator, n: int) -> Tensor:
    values, vectors = torch.linalg.eigh(reg.covariance)
    noise = torch.randn(n, len(values), generator=generator, dtype=torch.float64)
    return reg.theta() + noise * values.clamp(min=0.0).sqrt() @ vectors.T


def draw(reg: "Regression", given: Tensor | None, n: int, generator: torch.Generator) -> Tensor:
    """One response for each row, (n,); under a posterior each from parameters of its own."""
    if not reg.linear:
        u, weights = mixture(reg, given, n)  # type: ignore[arg-type]
        k = torch.multinomial(weights.exp(), 1, generator=generator)[:, 0]
        return reg.likelihood.draw(u[torch.arange(n), k], generator)
    if reg.method == "conjugate":
        p = student(reg, given, n)
        precision = torch._standard_gamma(p.df / 2, generator=generator) / (p.df / 2)
        return p.loc + p.scale * torch.randn(n, generator=generator, dtype=torch.float64) / precision.sqrt()
    if reg.method == "laplace":
        thetas = _normal_draws(reg, generator, n)
    elif reg.method in ("nuts", "svi"):
        z = reg.kept.z()
        thetas = z[torch.randint(len(z), (n,), generator=generator)]
    else:
        thetas = reg.theta().expand(n, -1)
    return reg.likelihood.draw(predictors(reg, given, n).paired(thetas), generator)


def mean(reg: "Regression", given: Tensor | None, n: int, generator: torch.Generator) -> Tensor:
    """E[y | x], (n,), or the probabilities of categories (n, K); averaged over a posterior."""
    if not reg.linear:
        u, weights = mixture(reg, given, n)  # type: ignore[arg-type]
        means = reg.likelihood.mean(u)
        return (weights.exp().reshape(*weights.shape, *[1] * (means.ndim - 2)) * means).sum(1)
    if reg.method == "conjugate":
        return student(reg, given, n).loc
    thetas = reg.theta()[None] if reg.method == "ml" else posterior_draws(reg, generator, _AVERAGED)[0]
    at = predictors(reg, given, n)
    size = max(1, (1 << 20) // (len(thetas) * reg.likelihood.width))
    parts = [reg.likelihood.mean(at(thetas, slice(i, i + size))).mean(0) for i in range(0, n, size)]
    return torch.cat(parts)
