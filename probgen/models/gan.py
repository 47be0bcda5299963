"""Generative adversarial networks: samples without a density. ``log_prob`` refuses, and says what to do instead."""

import math
from collections.abc import Sequence
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import LikelihoodUnavailable, ParameterError
from probgen.events import Array, Event
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.nn import MLP, reset
from probgen.training import Player, Schedule, train

__all__ = ["GAN"]


class GAN(GenerativeModel):
    """x = G(z), z ~ N(0, I), trained against a discriminator; there is no likelihood.

    The loss is the relativistic pairing loss with zero-centred gradient penalties on real and generated rows (R1 and
    R2), for which training converges locally.

    Arguments:
        event: Array.
        latent_dim: Size of z.
        hidden: Widths of both networks' hidden layers.
        penalty: Weight of R1 and R2.

    Goodfellow et al. (2014); Jolicoeur-Martineau (2019); Huang et al. (2024), eq. 4 (R3GAN).
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self, event: Event, latent_dim: int = 32, hidden: Sequence[int] = (256, 256), penalty: float = 0.1
    ) -> None:
        super().__init__(event)
        if latent_dim < 1 or not hidden or min(hidden) < 1 or not 0 <= penalty < math.inf:
            raise ParameterError(
                f"latent_dim={latent_dim}, hidden={hidden}, penalty={penalty}", "positive sizes, penalty >= 0"
            )
        self.latent_dim, self.hidden, self.penalty = latent_dim, tuple(hidden), penalty
        cells = max(event.dims, 1)  # type: ignore[attr-defined]
        self.generator = MLP((latent_dim, *self.hidden, cells))
        self.discriminator = MLP((cells, *self.hidden, 1))
        self.register_buffer("centre", torch.zeros(cells, dtype=torch.float32))
        self.register_buffer("spread", torch.ones(cells, dtype=torch.float32))

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Array):
            return f"its networks give one box of numbers, not {type(event).__name__}"
        if event.levels is None and event.support != "real":
            return f"its generator does not respect the support {event.support!r}"
        return None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        small = getattr(event, "dims", 1) <= 16
        defaults: dict[str, Any] = {"latent_dim": 2, "hidden": (128, 128, 128)} if small else {}
        return cls(event, **{**defaults, **options})

    def model(self, x: Tensor | None = None, given: None = None, n: int = 1) -> Tensor:
        if x is not None:
            raise LikelihoodUnavailable(*self._refusal())
        with pyro.plate("rows", n):
            loc = self.centre.new_zeros(n, self.latent_dim)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            return pyro.deterministic("x", self._on_support(self._generate(z)).reshape(n, *self.event.shape))  # type: ignore[attr-defined]

    def _generate(self, z: Tensor) -> Tensor:
        """Cells in the data's units, before rounding."""
        return self.centre + self.spread * self.generator(z)

    def _on_support(self, cells: Tensor) -> Tensor:
        """Levels and rounded reals: the nearest point of the grid."""
        if self.event.levels is not None:  # type: ignore[attr-defined]
            return torch.minimum(cells.round().clamp(min=0), torch.as_tensor(self.event.cell_levels - 1))  # type: ignore[attr-defined]
        step = self.event.resolution  # type: ignore[attr-defined]
        return cells if step is None else (cells / step).round() * step

    def _refusal(self) -> tuple[str, str]:
        cells = max(self.event.dims, 1)  # type: ignore[attr-defined]
        if self.event.discrete:
            why = "P(G(z) rounds to x) is an integral over z without a closed form, and no guide approximates it"
        elif self.latent_dim < cells:
            why = f"G maps {self.latent_dim} numbers to {cells}: its range has volume zero, so p(x) has no density"
        else:
            why = f"G folds {self.latent_dim} numbers onto {cells}: p(x) sums over unknown pre-images"
        return f"a GAN has no likelihood here: {why}", (
            "compare model.sample(n) with the data, or fit a family with a likelihood (VAE, Mixture, KernelDensity)"
        )

    def _log_prob(self, x: Tensor, given: None, *, generator: torch.Generator) -> LogProb:
        return LogProb.refuse(len(x), *self._refusal())

    def _sample(self, n: int, given: None, *, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.latent_dim, generator=generator, dtype=self.centre.dtype)
        cells = self._on_support(self._generate(z).to(torch.float64))
        return cells.reshape(n, *self.event.shape)  # type: ignore[attr-defined]

    def sample_target(self, **options: Any) -> str:
        return "G(z)"

    def _fit(
        self,
        x: Tensor,
        given: None,
        *,
        generator: torch.Generator,
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        ema: float = 0.995,
        checkpoint: str | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """Alternating steps of discriminator and generator; the averaged generator is kept."""
        plan = Schedule(
            steps=steps,
            budget=budget,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation=0.0,
            clip=10.0,
            ema=ema,
            checkpoint=checkpoint,
            every=every,
            resume=resume,
        )
        if not resume:
            reset(self, generator)
            self._measure(x)
        players = [
            Player(_Discriminate(self), list(self.discriminator.parameters()), betas=(0.0, 0.99)),
            Player(_Generate(self), list(self.generator.parameters()), betas=(0.0, 0.99)),
        ]
        return train(self, players, x.to(torch.float32), plan, generator=generator, progress=progress)

    def _measure(self, x: Tensor) -> None:
        """The data's scale. Cells that hardly vary get a share of the common scale, so that noise is not blown up."""
        cells = x.reshape(len(x), -1)
        std = cells.std(0, correction=0)
        shared = std.square().mean().sqrt().clamp(min=1e-12 * (1 + cells.abs().max()))
        self.centre.copy_(cells.mean(0))
        self.spread.copy_(
            torch.maximum(std, 0.3 * shared) if self.event.discrete else torch.where(std > 0, std, shared)
        )


class _Pair(nn.Module):
    """Real rows (with rounding undone by uniform noise) and as many generated ones, standardised."""

    def __init__(self, gan: GAN) -> None:
        super().__init__()
        self.gan = gan

    def pair(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        gan, cells = self.gan, x.reshape(len(x), -1)
        step = gan.event.resolution or (1.0 if gan.event.levels else 0.0)  # type: ignore[attr-defined]
        if step:
            cells = cells + step * (torch.rand(cells.shape, generator=generator, dtype=cells.dtype) - 0.5)
        z = torch.randn(len(x), gan.latent_dim, generator=generator, dtype=cells.dtype)
        return (cells - gan.centre) / gan.spread, gan.generator(z)


class _Discriminate(_Pair):
    @torch.enable_grad()  # its penalty is made of slopes, also where it is only evaluated
    def forward(self, x: Tensor, generator: torch.Generator, share: float) -> Tensor:
        real, fake = (t.detach().requires_grad_() for t in self.pair(x, generator))
        on_real, on_fake = self.gan.discriminator(real), self.gan.discriminator(fake)
        loss = nn.functional.softplus(on_fake - on_real).mean()
        slopes = torch.autograd.grad(on_real.sum() + on_fake.sum(), [real, fake], create_graph=True)
        return loss + self.gan.penalty * sum(slope.square().sum(1).mean() for slope in slopes)


class _Generate(_Pair):
    def forward(self, x: Tensor, generator: torch.Generator, share: float) -> Tensor:
        real, fake = self.pair(x, generator)
        return nn.functional.softplus(self.gan.discriminator(real) - self.gan.discriminator(fake)).mean()
