"""A GAN seen through noise, which gives it a likelihood: of another model, whose name says so."""

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.emissions.discretised import normal_mass
from probgen.errors import ParameterError, StructureError
from probgen.estimate import AIS, Gap, bdmc
from probgen.estimate.weights import at_least, log_mean, quality, reliable, standard_normal
from probgen.events import Array
from probgen.logprob import Kind, LogProb
from probgen.model import Estimator, generator_of

if TYPE_CHECKING:
    from probgen.models.gan.family import GAN

__all__ = ["ObservedWithNoise", "ParzenWarning", "parzen"]

_LOG_2PI = math.log(2 * math.pi)
_WORK = 1 << 20  # numbers at a time
_BEYOND = 1e6  # in standard deviations: the tail there is 0


class ParzenWarning(UserWarning):
    """A kernel estimate was asked for, which must not rank models."""


class ObservedWithNoise:
    """p(x) = int N(z; 0, I) N(x; G(z), s^2 I) dz, in the data's units: log_prob gives lower bounds of it, in nats.

    This is the likelihood of G(z) + N(0, s^2 I), not of the GAN, and its ``target`` says so. Levels, counts and rounded
    numbers have the mass that the noise puts on their interval, the tails beyond the outermost level going to it:
    "round(G(z)+N(0,s^2))". Missing cells are left out. The generator is copied in float64 when the view is made.

    The scale decides everything: fix it beforehand, say on validation rows, and never compare two models at different
    ones. A small one makes annealing fall far short, which ``gap`` shows.

    Arguments:
        gan: A fitted GAN of an Array.
        scale: s, in the data's units.

    Raises:
        ParameterError: a scale that is missing or not positive.
        StructureError: a GAN of a Table.

    Wu, Burda, Salakhutdinov and Grosse (2017), eqs. 2 and 9.
    """

    def __init__(self, gan: "GAN", scale: float) -> None:
        gan._check_fitted()
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise ParameterError(
                f"observation_scale={scale!r}",
                "a positive number, in the data's units",
                "It defines the model that is scored: choose it on validation rows, such as with_noise(0.1)",
            )
        if not isinstance(gan.event, Array):
            raise StructureError(
                f"Noise on the columns of {type(gan.event).__name__}",
                "an Array: normal noise has no meaning on categories, nor one scale on columns of several units",
                "Score the table with a family that has a likelihood, or compare samples",
            )
        self.gan, self.scale = gan, float(scale)
        self.event, self.context, self.latent_dim = gan.event, gan.context, gan.latent_dim
        self._generator, self._cells = copy.deepcopy(gan.generator).double(), gan.cells

    def __repr__(self) -> str:
        return f"{self.gan!r}.with_noise({self.scale:g})"

    @property
    def target(self) -> str:
        """What the numbers are about."""
        noisy = f"G(z)+N(0,{self.scale:g}^2)"
        return f"round({noisy})" if self.event.discrete else noisy

    # What estimators ask for

    def _propose(self, x: Tensor, given: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The prior as guide: no encoder knows better."""
        z = noise.to(torch.float64)
        return z, standard_normal(z)

    def _log_joint(self, x: Tensor, z: Tensor, given: Tensor | None) -> Tensor:
        return standard_normal(z) + self._log_likelihood(x, z, given)

    def _generated(self, z: Tensor, given: Tensor | None) -> Tensor:
        """G(z) in the data's units before rounding, (..., n, cells) of (..., n, latent_dim)."""
        extra = self.gan._known(given, None)
        if extra is not None:
            extra = extra.expand(*z.shape[:-1], -1).reshape(-1, extra.shape[-1]).double()
        raw = self._generator(z.reshape(-1, z.shape[-1]), extra)
        return self._cells.values(self._cells.choose(raw, None)).reshape(*z.shape[:-1], -1)

    def _log_likelihood(self, x: Tensor, z: Tensor, given: Tensor | None) -> Tensor:
        """log p(x | z), (..., n): of x (n, ...) and z (..., n, latent_dim)."""
        return self._log_of(x, self._generated(z, given))

    def _log_of(self, x: Tensor, g: Tensor) -> Tensor:
        """log of the noise's density or mass at x (n, ...) about g (..., n or 1, cells), shape (..., n)."""
        rows = x.reshape(len(x), -1).to(torch.float64)
        if self.event.discrete:
            nats = self._mass(rows, g)
        else:
            nats = -0.5 * (((rows - g) / self.scale).square() + _LOG_2PI) - math.log(self.scale)
        return torch.where(rows.isnan(), 0.0, nats).sum(-1)

    def _mass(self, rows: Tensor, g: Tensor) -> Tensor:
        """Of each cell's interval."""
        step, bottom, top = (self._cells._columns[name] for name in ("step", "low", "high"))
        known = rows.nan_to_num(0.0)
        low = torch.where(known <= bottom, -_BEYOND, (known - g - step / 2) / self.scale)
        high = torch.where(known >= top, _BEYOND, (known - g + step / 2) / self.scale)
        return normal_mass(low, high, high - low)

    def _sample_joint(self, n: int, given: Tensor | None, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of the noisy model and the latents that made them."""
        z = torch.randn(n, self.latent_dim, generator=generator, dtype=torch.float64)
        g = self._generated(z, given)
        cells = g + self.scale * torch.randn(g.shape, generator=generator, dtype=torch.float64)
        cells = self._cells.on_support(cells) if self.event.discrete else cells
        return cells.reshape(n, *self.event.shape), z

    # What users ask for

    @torch.no_grad()
    def log_prob(self, x: Any, *, given: Any = None, by: Estimator | None = None, seed: int | None = None) -> LogProb:
        """A lower bound on the noisy model's log p(x), row by row, in nats.

        Arguments:
            x: Data of the GAN's event.
            by: AIS(...); None takes its defaults. ``IWAE`` is allowed too, with the prior as its proposal: the kernel
                estimate that ``parzen`` warns of.
            seed: Of the chains.
        """
        checked = self.gan._check(x)
        covariates = self.gan._check_given(given, checked)
        by = AIS() if by is None else by
        if not isinstance(by, Estimator):
            raise ParameterError(f"by={by!r}", "an estimator, such as probgen.AIS(chains=16)")
        answer = by(self, checked.x, covariates, generator=generator_of(seed))
        return answer.replace(event=checked.about, measure=answer.measure or checked.about.measure, target=self.target)

    def gap(
        self, x: Any = None, *, given: Any = None, rows: int = 100, by: AIS | None = None, seed: int | None = None
    ) -> Gap:
        """How far the bound falls short on rows that the noisy model drew itself: see ``probgen.estimate.bdmc``.

        Arguments:
            x: Real rows, whose pilots are compared with those of the simulated ones; None for none.
            rows: Simulated rows.
        """
        checked = None if x is None else self.gan._check(x)
        covariates = self.gan._check_given(given, checked)
        return bdmc(self, None if checked is None else checked.x, given=covariates, rows=rows, by=by, seed=seed)


@torch.no_grad()
def parzen(gan: "GAN", x: Any, given: Any, bandwidth: float, draws: int, seed: int | None) -> LogProb:
    """log of the mean kernel at ``draws`` samples: the same target as with noise, by the worst proposal."""
    at_least("draws", draws, 2)
    view, generator = ObservedWithNoise(gan, bandwidth), generator_of(seed)
    checked = gan._check(x)
    covariates = gan._check_given(given, checked)
    warnings.warn(
        "A kernel (Parzen) estimate must not rank models: it is far too low at narrow bandwidths, and at wide ones it "
        "prefers blurred samples to true ones (Theis, van den Oord and Bethge 2016). with_noise(scale).log_prob bounds "
        "the same number much more tightly, and two-sample tests compare models",
        ParzenWarning,
        stacklevel=3,
    )
    z = torch.randn(draws, gan.latent_dim, generator=generator, dtype=torch.float64)
    cells = max(gan.event.dims, gan.latent_dim, *gan.hidden)  # type: ignore[attr-defined]
    log_w = torch.cat(
        [_kernels(view, rows, own, z, max(1, _WORK // cells)) for rows, own in _pieces(checked.x, covariates)], 1
    )
    (nats, stderr), (ess, k) = log_mean(log_w), quality(log_w)
    trusted = reliable(ess, k, draws)
    return LogProb(
        Kind.LOWER,
        nats.numpy(),
        by=f"Parzen(bandwidth={bandwidth:g}, draws={draws})",
        stderr=torch.where(trusted, stderr, math.nan).numpy(),
        draws=np.full(len(nats), generator.initial_seed() % 2**64, np.uint64),
        diagnostics={"ess": ess.numpy(), "pareto_k": k.numpy()},
        event=checked.about,
        measure=checked.about.measure,
        target=view.target,
    )


def _pieces(x: Tensor, given: Tensor | None, size: int = 256) -> list[tuple[Tensor, Tensor | None]]:
    parts = x.split(size)
    return list(zip(parts, [None] * len(parts) if given is None else given.split(size), strict=True))


def _kernels(view: ObservedWithNoise, x: Tensor, given: Tensor | None, z: Tensor, work: int) -> Tensor:
    """log p(x | z) of every draw and row, (draws, n)."""
    if given is None:  # the draws are the same for all rows
        g = torch.cat([view._generated(part, None) for part in z.split(work)])
        step = max(1, work // len(x))
        return torch.cat([view._log_of(x, part[:, None]) for part in g.split(step)])
    step = max(1, work // len(x))
    return torch.cat([view._log_likelihood(x, part[:, None].expand(-1, len(x), -1), given) for part in z.split(step)])
