"""Variational autoencoders: a Pyro model and guide trained by stochastic variational inference. A lower bound."""

import math
from collections.abc import Sequence
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions import Discretised
from probgen.errors import ParameterError
from probgen.estimate import Ladder
from probgen.events import Array, Event
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.nn import MLP, reset
from probgen.training import Player, Schedule, train

__all__ = ["VAE"]

_LOG_2PI = math.log(2 * math.pi)


class VAE(GenerativeModel):
    """p(x) = int N(z; 0, I) p(x | z) dz with an amortised guide q(z | x); log_prob is a lower bound.

    p(x | z) follows the event: Bernoulli for 2 levels, discretised logistic for more levels and for rounded reals,
    Normal with a learned scale for reals. ``log_prob`` climbs the ladder (IWAE with more draws until a row is
    reliable); ``by=ELBO(...)`` and ``by=IWAE(...)`` choose. Training runs in float32 and is governed by a budget in
    seconds or a number of steps.

    Arguments:
        event: Array.
        latent_dim: Size of z.
        hidden: Widths of the decoder's hidden layers; the encoder has them reversed.

    Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014).
    """

    centre: Tensor
    spread: Tensor
    start: Tensor

    def __init__(self, event: Event, latent_dim: int = 16, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__(event)
        if latent_dim < 1 or not hidden or min(hidden) < 1:
            raise ParameterError(f"latent_dim={latent_dim}, hidden={hidden}", "positive sizes")
        self.latent_dim, self.hidden = latent_dim, tuple(hidden)
        cells = max(event.dims, 1)  # type: ignore[attr-defined]
        self.encoder = MLP((cells, *reversed(self.hidden), 2 * latent_dim), last=0.5)
        self.decoder = MLP((latent_dim, *self.hidden, 2 * cells), last=0.1)
        self.register_buffer("centre", torch.zeros(cells, dtype=torch.float32))
        self.register_buffer("spread", torch.ones(cells, dtype=torch.float32))
        self.register_buffer("start", torch.zeros(2 * cells, dtype=torch.float32))

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Array):
            return f"its networks take one box of numbers, not {type(event).__name__}"
        if event.levels is None and event.support != "real":
            return f"no observation model here lives on the support {event.support!r}"
        return "levels must be the same for every cell" if isinstance(event.levels, tuple) else None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        small = getattr(event, "dims", 1) <= 16
        defaults: dict[str, Any] = {"latent_dim": 2 if small else 16, "hidden": (128, 128) if small else (256, 256)}
        return cls(event, **{**defaults, **options})

    # The Pyro program

    def model(self, x: Tensor | None = None, given: None = None, n: int = 1) -> Tensor:
        n = n if x is None else len(x)
        cells = None if x is None else self._cells(x)
        with pyro.plate("rows", n):
            loc = self.centre.new_zeros(n, self.latent_dim)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            x = pyro.sample("x", self._observation(z).to_event(1), obs=cells)
        return x.reshape(*x.shape[:-1], *self.event.shape)  # type: ignore[attr-defined]

    def guide(self, x: Tensor | None = None, given: None = None, n: int = 1) -> None:
        if x is None:
            raise ParameterError("The guide q(z | x) without x", "the rows to condition on", "guide(x)")
        loc, scale = self._posterior(x)
        with pyro.plate("rows", len(loc)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def _cells(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1).to(self.centre.dtype)

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x), each (n, latent_dim)."""
        loc, raw = self.encoder((self._cells(x) - self.centre) / self.spread).chunk(2, dim=-1)
        return loc, nn.functional.softplus(raw + 0.5) + 1e-4

    def _observation(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z), cell by cell, in the data's units; batch shape (..., cells)."""
        loc, raw = (self.decoder(z) + self.start).chunk(2, dim=-1)
        levels, resolution = self.event.levels, self.event.resolution  # type: ignore[attr-defined]
        if levels == 2:
            return dist.Bernoulli(logits=loc, validate_args=False)
        scale = self.spread * (raw.clamp(-7, 7)).exp()
        if levels or resolution:
            return Discretised("logistic", self.centre + self.spread * loc, scale, resolution or 1.0, levels)
        return dist.Normal(self.centre + self.spread * loc, scale, validate_args=False)

    # The same by hand

    def _propose(self, x: Tensor, given: None, noise: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self._posterior(x)
        noise = noise.to(loc.dtype)
        log_q = -0.5 * (noise.square() + _LOG_2PI).sum(-1) - scale.log().sum(-1)
        return loc + scale * noise, log_q

    def _log_joint(self, x: Tensor, z: Tensor, given: None) -> Tensor:
        return self._log_prior(z) + self._log_likelihood(x, z)

    def _log_prior(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + _LOG_2PI).sum(-1)

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        return self._observation(z).log_prob(self._cells(x)).sum(-1)

    def _log_prob(self, x: Tensor, given: None, *, generator: torch.Generator) -> LogProb:
        return Ladder()(self, x, given, generator=generator)

    def _sample(self, n: int, given: None, *, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.latent_dim, generator=generator, dtype=self.centre.dtype)
        p = self._observation(z)
        if isinstance(p, Discretised):
            x = p.draw(torch.rand(p.loc.shape, generator=generator, dtype=torch.float64))
        elif isinstance(p, dist.Bernoulli):
            x = torch.bernoulli(p.probs, generator=generator)
        else:
            x = p.loc + p.scale * torch.randn(p.loc.shape, generator=generator, dtype=p.loc.dtype)
        return x.to(torch.float64).reshape(n, *self.event.shape)  # type: ignore[attr-defined]

    def _fit(
        self,
        x: Tensor,
        given: None,
        *,
        generator: torch.Generator,
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        validation: float = 0.1,
        weight_decay: float | None = None,
        patience: int = 12,
        ema: float = 0.0,
        checkpoint: str | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """SVI on the ELBO with reparameterised draws. ``budget`` in seconds, unless ``steps`` is given.

        ``weight_decay`` None: the more cells and the fewer rows, the stronger; it keeps few images from being learnt by
        heart, and leaves plane data alone.
        """
        plan = Schedule(
            steps=steps,
            budget=budget,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=self._weight_decay(len(x)) if weight_decay is None else weight_decay,
            validation=validation if len(x) >= 50 else 0.0,
            patience=patience,
            grace=self.warming,
            ema=ema,
            checkpoint=checkpoint,
            every=every,
            resume=resume,
        )
        if not resume:
            reset(self, generator)
            self._measure(x)
        players = [Player(_NegativeELBO(self), list(self.parameters()))]
        return train(self, players, x.to(torch.float32), plan, generator=generator, progress=progress)

    @property
    def warming(self) -> float:
        """Share of the steps in which the divergence is weighted up: long where few cells leave the code at risk."""
        return 0.3 if len(self.centre) <= 16 else 0.03

    def _weight_decay(self, rows: int) -> float:
        return min(1.0, 1500 / rows) * min(1.0, len(self.centre) / 64)

    def _measure(self, x: Tensor) -> None:
        """The data's scale, and a first decoder output that is each cell's own margin."""
        cells = x.reshape(len(x), -1)
        std, step = cells.std(0, correction=0), self.event.resolution or (1.0 if self.event.levels else 0.0)  # type: ignore[attr-defined]
        shared = std.square().mean().sqrt().clamp(min=step or 1e-12 * (1 + cells.abs().max()))
        self.centre.copy_(cells.mean(0))
        self.spread.copy_(torch.where(std > 1e-6 * shared, std, shared).clamp(min=float(step) * 0.5))
        if self.event.levels == 2:  # type: ignore[attr-defined]
            rate = (cells.sum(0) + 0.5) / (len(cells) + 1)
            self.start[: cells.shape[1]] = torch.logit(rate)
        elif step:  # a logistic has standard deviation 1.8 of its scale
            self.start[cells.shape[1] :] = ((std / 1.8).clamp(min=0.1 * step) / self.spread).log()


class _NegativeELBO(nn.Module):
    """Minus the ELBO a row, with one reparameterised draw; a Module, so that it can be distributed.

    The divergence of the guide from the prior counts for little at first, so that the code is not given up before the
    decoder has learnt to read it (Bowman et al. 2016).
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, generator: torch.Generator, share: float) -> Tensor:
        noise = torch.randn(1, len(x), self.vae.latent_dim, generator=generator, dtype=self.vae.centre.dtype)
        z, log_q = self.vae._propose(x, None, noise)
        prior, likelihood = self.vae._log_prior(z), self.vae._log_likelihood(x, z)
        return (min(1.0, share / self.vae.warming) * (log_q - prior) - likelihood).mean()
