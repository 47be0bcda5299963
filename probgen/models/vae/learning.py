"""What a VAE descends: minus the ELBO, or the importance-weighted bound, with a weighted divergence."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.errors import FitError, ParameterError, ShapeError, StructureError
from probgen.events import Array, Event
from probgen.latent.priors import StandardNormal

if TYPE_CHECKING:
    from probgen.models.vae.family import VAE

__all__ = ["NegativeELBO", "grace", "probabilities"]


class NegativeELBO(nn.Module):
    """Minus the bound a row, in nats; a Module, so that it can be distributed.

    -log p(x | z) + beta max(KL_j, free_bits) summed over latents j, the divergence in closed form where the prior is
    N(0, I); with other priors one draw estimates it, and the floor is latent_dim * free_bits for all together. With
    several samples minus the log of the mean of (p(z) / q(z | x))^beta p(x | z).

    Arguments:
        vae: The model.
        beta, warming, free_bits, samples: As of its ``fit``.
        redraw: Whether batches hold probabilities, from which the rows are drawn.

    Raises:
        ParameterError: a number out of range.
    """

    def __init__(
        self, vae: "VAE", beta: float, warming: float, free_bits: float, samples: int, redraw: bool = False
    ) -> None:
        super().__init__()
        _check(beta, warming, free_bits, samples)
        self.vae, self.beta, self.warming, self.free_bits = vae, float(beta), float(warming), float(free_bits)
        self.samples, self.redraw = samples, redraw
        self.cells = vae.cells.cells

    def forward(self, batch: Tensor, generator: torch.Generator, share: float) -> Tensor:
        vae, x = self.vae, batch[:, : self.cells]
        given = batch[:, self.cells :] if batch.shape[1] > self.cells else None
        if self.redraw:
            x = torch.bernoulli(x, generator=generator)
        loc, scale = vae._posterior(x, given)
        noise = torch.randn(self.samples, *loc.shape, generator=generator, dtype=loc.dtype)
        z = loc + scale * noise
        nats = vae.cells.log_prob(vae._decoded(z, given), vae.cells.ready(x))
        weight = self.beta * (min(1.0, share / self.warming) if self.warming else 1.0)
        loss = self._bound(nats, self._divergence(z, noise, loc, scale), weight)
        if not math.isfinite(float(loss.detach())):
            raise FitError(*_blame(loc, scale, nats))
        return loss

    def _bound(self, nats: Tensor, divergence: Tensor, weight: float) -> Tensor:
        if self.samples == 1:
            return weight * divergence - nats.mean()
        return math.log(self.samples) - (nats - weight * divergence).logsumexp(0).mean()

    def _divergence(self, z: Tensor, noise: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """KL(q || p) a row, a scalar; of several samples log q(z | x) - log p(z), (samples, n)."""
        prior = self.vae.latent
        if self.samples == 1 and isinstance(prior, StandardNormal):
            each = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).mean(0)
            return each.clamp(min=self.free_bits).sum() if self.free_bits else each.sum()
        log_q = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1) - scale.log().sum(-1)
        if self.samples > 1:
            return log_q - prior.log_prob(z)
        return (log_q - prior.log_prob(z)).mean().clamp(min=self.free_bits * z.shape[-1] or -math.inf)


def _check(beta: float, warming: float, free_bits: float, samples: int) -> None:
    for name, value in {"beta": beta, "free_bits": free_bits}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ParameterError(f"{name}={value!r}", "a number from 0")
    if isinstance(warming, bool) or not isinstance(warming, int | float) or not 0 <= warming <= 1:
        raise ParameterError(f"warming={warming!r}", "a share of the steps, 0 to 1, or None")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ParameterError(f"samples={samples!r}", "a whole number of draws a row, at least 1")
    if samples > 1 and free_bits:
        raise ParameterError(f"samples={samples}, free_bits={free_bits}", "one or the other: IWAE has no divergence")


def grace(warming: float) -> float:
    """Share of the steps in which patience does not run out."""
    return min(float(warming), 0.999) if isinstance(warming, int | float) and warming >= 0 else 0.0


def probabilities(redraw: Any, event: Event, rows: int) -> Tensor:
    """Checked probabilities of a 1, (rows, ...).

    Raises:
        StructureError: the model's data are not binary.
        ShapeError: of other rows than the data's.
    """
    if not isinstance(event, Array) or event.levels != 2:
        raise StructureError(f"redraw for {event!r}", "binary data, levels=2", "Leave it out")
    checked = Array(event.shape, support="unit").check(redraw).x
    if len(checked) != rows:
        raise ShapeError(f"redraw has {len(checked)} rows for {rows} rows of data", "one row a row")
    return checked


def _blame(loc: Tensor, scale: Tensor, nats: Tensor) -> tuple[str, str, str]:
    """What became non-finite first, by its site in the program."""
    do = "The model keeps its best state so far; try a smaller learning_rate, or check the data's scale"
    for name, values in {"z (its mean)": loc, "z (its standard deviation)": scale, "x (its log-density)": nats}.items():
        if not bool(values.isfinite().all()):
            odd = values[~values.isfinite()].reshape(-1)[0].item()
            return f"The site {name} became {odd}", "finite numbers", do
    return "The divergence of the guide from the prior became non-finite", "finite numbers", do
