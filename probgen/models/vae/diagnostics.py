"""What a VAE's code says of the data, whether it is used, and what amortising its inference costs."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probgen.latent.networks import batches

if TYPE_CHECKING:
    from probgen.models.vae.family import VAE

__all__ = ["Diagnosis", "diagnose"]

_ACTIVE = 0.01  # Burda et al. (2016)
_CHUNK = 1024
_STEPS, _RATE, _DRAWS = 150, 0.05, 8  # of a row's own guide, and the draws that its slope is averaged over
_JUDGES = 64  # draws that judge both guides


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Of a fitted VAE on n rows; all in nats a row.

    Arguments:
        divergence: KL(q(z_j | x) || N(0, 1)) of each latent, averaged over rows, (latent_dim,).
        activity: Variance over rows of E[z_j | x], (latent_dim,); a latent is active above 0.01 (Burda, Grosse and
            Salakhutdinov 2016).
        rate: E KL(q(z | x) || p(z)): what the code says of a row, at most; and its standard error.
        mismatch: KL(q(z) || p(z)) of the aggregated guide q(z) = mean_i q(z | x_i) from the prior, estimated on these
            rows: what samples from the prior miss; and its standard error. Hoffman and Johnson (2016).
        information: Mutual information of row and code under the guide, rate - mismatch; at most log(n).
        gap: What the ELBO gains where each row has a guide of its own fitted, its mean and standard error; None where
            no rows were spent. The rest of log p(x) - ELBO is the price of normal guides (Cremer, Li and Duvenaud
            2018). An own guide may have been stopped early: the true gap is at least as large.
        rows: n, and how many of them the gap is of.
    """

    divergence: np.ndarray
    activity: np.ndarray
    rate: tuple[float, float]
    mismatch: tuple[float, float]
    information: float
    gap: tuple[float, float] | None
    rows: tuple[int, int]

    @property
    def active(self) -> np.ndarray:
        """Which latents say something, (latent_dim,)."""
        return self.activity > _ACTIVE

    @property
    def collapsed(self) -> bool:
        """Whether the guide ignores the rows: no latent is active."""
        return not self.active.any()

    def __str__(self) -> str:
        n, spent = self.rows
        said = [
            f"active latents       {self.active.sum()} of {len(self.active)}"
            + ("  (collapsed: the decoder ignores z)" if self.collapsed else ""),
            f"rate                 {_told(self.rate)} nats a row",
            f"mutual information   {self.information:.2f}, of {math.log(n):.2f} that {n} rows can show",
            f"prior mismatch       {_told(self.mismatch)}",
        ]
        if self.gap is not None:
            said.append(f"amortisation gap     {_told(self.gap)}  ({spent} rows)")
        return "\n".join(said)


def _told(figure: tuple[float, float]) -> str:
    return f"{figure[0]:.2f} ± {figure[1]:.2f}"


@torch.no_grad()
def diagnose(vae: "VAE", x: Tensor, given: Tensor | None, *, rows: int, generator: torch.Generator) -> Diagnosis:
    """See ``VAE.diagnose``."""
    parts = [vae._posterior(some, c) for some, c in batches(x, given)]
    loc, scale = (torch.cat(part) for part in zip(*parts, strict=True))
    z = loc + scale * torch.randn(loc.shape, generator=generator, dtype=loc.dtype)
    log_q = _normal(z, loc, scale)
    log_p, log_all = vae.latent.log_prob(z).to(torch.float64), _aggregated(z, loc, scale)
    rate, mismatch = log_q.to(torch.float64) - log_p, log_all - log_p
    each = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).mean(0)
    spent = min(max(rows, 0), len(x))
    gap = None
    if spent:
        chosen = torch.randperm(len(x), generator=generator)[:spent]
        gap = _figure(_gains(vae, x[chosen], None if given is None else given[chosen], generator))
    return Diagnosis(
        each.to(torch.float64).numpy(),
        loc.var(0).to(torch.float64).numpy() if len(loc) > 1 else np.zeros(loc.shape[1]),
        _figure(rate),
        _figure(mismatch),
        float((rate - mismatch).mean()),
        gap,
        (len(x), spent),
    )


def _figure(values: Tensor) -> tuple[float, float]:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


def _normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (-0.5 * (((z - loc) / scale).square() + math.log(2 * math.pi)) - scale.log()).sum(-1)


def _aggregated(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log mean_i N(z; loc_i, scale_i) of each z (m, D), float64."""
    z, loc, scale = (part.to(torch.float64) for part in (z, loc, scale))
    precision, weighted = scale.square().reciprocal(), loc / scale.square()
    constant = -0.5 * (loc * weighted).sum(1) - (scale.log() + 0.5 * math.log(2 * math.pi)).sum(1)
    found = [
        (constant - 0.5 * part.square() @ precision.T + part @ weighted.T).logsumexp(1) for part in z.split(_CHUNK)
    ]
    return torch.cat(found) - math.log(len(loc))


def _gains(vae: "VAE", x: Tensor, given: Tensor | None, generator: torch.Generator) -> Tensor:
    """ELBO with each row's own normal guide, less that of the encoder's, with the same draws, (n,)."""
    loc, scale = vae._posterior(x, given)
    own = _fit_own(vae, x, given, loc, scale, generator)
    noise = torch.randn(_JUDGES, *loc.shape, generator=generator, dtype=loc.dtype)
    bounds = [_elbo(vae, x, given, noise, *guide).to(torch.float64) for guide in (own, (loc, scale))]
    return bounds[0] - bounds[1]


@torch.enable_grad()
def _fit_own(
    vae: "VAE", x: Tensor, given: Tensor | None, loc: Tensor, scale: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    at, log_scale = loc.clone().requires_grad_(), scale.log().requires_grad_()
    adam = torch.optim.Adam([at, log_scale], lr=_RATE)
    for step in range(_STEPS):
        noise = torch.randn(_DRAWS, *loc.shape, generator=generator, dtype=loc.dtype)
        loss = -_elbo(vae, x, given, noise, at, log_scale.exp()).sum()
        at.grad, log_scale.grad = torch.autograd.grad(loss, [at, log_scale])
        adam.param_groups[0]["lr"] = _RATE * (1 - step / _STEPS)
        adam.step()
    return at.detach(), log_scale.detach().exp()


def _elbo(vae: "VAE", x: Tensor, given: Tensor | None, noise: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    z = loc + scale * noise
    return (vae._log_joint(x, z, given) - _normal(z, loc, scale)).mean(0)
