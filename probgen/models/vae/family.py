"""Variational autoencoders: a Pyro model and guide trained by stochastic variational inference. A lower bound."""

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError, ShapeError
from probgen.estimate import Ladder
from probgen.events import Array, Event, Real, Table
from probgen.features import Features, has_pixels, image_shape
from probgen.latent.networks import Decoder, Encoder, batches
from probgen.latent.observations import Observed, observation_for
from probgen.latent.priors import prior_for
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel, generator_of
from probgen.models.vae import diagnostics, learning, pictures
from probgen.nn import reset
from probgen.training import Player, Schedule, of_kept_state, train

__all__ = ["VAE", "Code"]

_LOG_2PI = math.log(2 * math.pi)
_UNCHANGED = "the networks gained nothing on held-out rows: each cell has its own margin"


class Code(NamedTuple):
    """q(z | x) of n rows: mean and standard deviation, arrays (n, latent_dim)."""

    loc: np.ndarray
    scale: np.ndarray


class VAE(GenerativeModel):
    """p(x) = int p(z) p(x | z) dz with an amortised guide q(z | x) = N(loc, scale^2); log_prob is a lower bound.

    Cells are independent given z. What one is follows the event: Bernoulli for 2 levels, discretised logistic for more
    levels and for rounded reals, Normal with a learned scale for reals, LogNormal for positive reals, continuous
    Bernoulli on [0, 1], negative binomial for counts; each column of a table by its own type, categories as such.
    Missing cells are integrated out: the encoder is told which they are, and the rest is scored (Nazabal et al. 2020).

    ``log_prob`` climbs the ladder (IWAE with more draws, then annealing, until a row is reliable); ``by=ELBO(...)``,
    ``by=IWAE(...)`` and ``by=AIS(...)`` choose. Networks are float32. Training is governed by a budget in seconds or a
    number of steps.

    Arguments:
        event: Array, or Table.
        latent_dim: Size of z.
        hidden: Widths of the decoder's hidden layers; the encoder has them reversed. () is a linear VAE: with normal
            cells of one scale probabilistic PCA.
        channels: Of the encoder's convolutions, each of which halves the image; the decoder has them reversed, and
            ``hidden`` are the layers between. () for none.
        context: Event of covariates: p(x | given), with ``given=`` in all three verbs; z does not depend on them.
        observation: Of an Array, another than the event's own: "poisson" for counts, "categorical" for levels.
        mixture: Logistics a cell, of "logistic".
        prior: "normal"; "vamp": the weighted mean of q(z | u_k) over learned pseudo-inputs u_k (Tomczak and Welling
            2018); "flow": a spline flow (needs the extra ``flow``).
        pseudo_inputs: How many, of "vamp".

    Raises:
        StructureError: an observation model that does not live on the event, such as Bernoulli on grey pixels.

    Kingma and Welling (2014); Rezende, Mohamed and Wierstra (2014); Sohn, Lee and Yan (2015) with covariates.
    """

    missing_cells: ClassVar[bool] = True

    def __init__(
        self,
        event: Event,
        latent_dim: int = 16,
        hidden: Sequence[int] = (256, 256),
        channels: Sequence[int] = (),
        context: Event | None = None,
        observation: str | None = None,
        mixture: int = 1,
        prior: str = "normal",
        pseudo_inputs: int = 100,
    ) -> None:
        super().__init__(event)
        _check_sizes(latent_dim, hidden, channels)
        self.latent_dim, self.hidden, self.channels = latent_dim, tuple(hidden), tuple(channels)
        self.context, self.mixture, self.observation = context, mixture, observation
        self.prior, self.pseudo_inputs = prior, pseudo_inputs
        self.cells = observation_for(event, observation, mixture)
        self.features = Features(event, shared=bool(channels) or has_pixels(event))
        self.covariates = None if context is None else Features(context)
        extra = 0 if self.covariates is None else self.covariates.width
        self.encoder = Encoder(event, self.features.width, extra, channels, self.hidden[::-1], 2 * latent_dim)
        self.decoder = Decoder(event, latent_dim, extra, self.channels[::-1], self.hidden, self.cells.width)
        self.latent = prior_for(prior, latent_dim, self._blind_posterior, self.features.width, pseudo_inputs)

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Array | Table):
            return f"its networks take one row of cells, not {type(event).__name__}"
        return None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        cells, image = max(math.prod(getattr(event, "shape", ())), 1), image_shape(event)
        defaults: dict[str, Any] = {"latent_dim": 16, "hidden": (256, 256)}
        if cells <= 16:
            defaults = {"latent_dim": 2, "hidden": (128, 128)}
        elif image is not None and min(image[1:]) >= 16:
            defaults = {"latent_dim": 32, "hidden": (256,), "channels": (32, 64)}
        return cls(event, **{**defaults, **options})

    # The Pyro program

    def model(self, x: Tensor | None = None, given: Tensor | None = None, n: int = 1) -> Tensor:
        n = n if x is None else len(x)
        with pyro.plate("rows", n):
            z = pyro.sample("z", self.latent.distribution().expand((n,)))
            seen = None if x is None else x.reshape(n, -1)
            rows = pyro.sample("x", Observed(self.cells, self._decoded(z, given)), obs=seen)
        return rows.reshape(*rows.shape[:-1], *self.event.shape)  # type: ignore[attr-defined]

    def guide(self, x: Tensor | None = None, given: Tensor | None = None, n: int = 1) -> None:
        if x is None:
            raise ParameterError("The guide q(z | x) without x", "the rows to condition on", "guide(x)")
        loc, scale = self._posterior(x, given)
        with pyro.plate("rows", len(loc)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks."""
        return self.cells.start.dtype

    def _covariates(self, given: Tensor | None) -> Tensor | None:
        return None if given is None or self.covariates is None else self.covariates(given).to(self.dtype)

    def _posterior(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x), each (n, latent_dim)."""
        return self._posterior_of(self.features(x).to(self.dtype), self._covariates(given))

    def _posterior_of(self, inputs: Tensor, covariates: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, raw = self.encoder(inputs, covariates).chunk(2, dim=-1)
        return loc, nn.functional.softplus(raw + 0.5) + 1e-4

    def _blind_posterior(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Of pseudo-inputs, which have average covariates."""
        width = 0 if self.covariates is None else self.covariates.width
        return self._posterior_of(inputs, inputs.new_zeros(len(inputs), width) if width else None)

    def _decoded(self, z: Tensor, given: Tensor | None) -> Tensor:
        return self.decoder(z, self._covariates(given))

    # The same by hand

    def _propose(self, x: Tensor, given: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self._posterior(x, given)
        noise = noise.to(loc.dtype)
        log_q = -0.5 * (noise.square() + _LOG_2PI).sum(-1) - scale.log().sum(-1)
        return loc + scale * noise, log_q

    def _log_joint(self, x: Tensor, z: Tensor, given: Tensor | None) -> Tensor:
        ready = self.cells.ready(x.reshape(len(x), -1))
        return self.latent.log_prob(z) + self.cells.log_prob(self._decoded(z, given), ready)

    def _log_prob(self, x: Tensor, given: Tensor | None, *, generator: torch.Generator) -> LogProb:
        return Ladder()(self, x, given, generator=generator)

    def _sample(self, n: int, given: Tensor | None, *, generator: torch.Generator) -> Tensor:
        """n draws, (n, ...); n for each of m > 1 conditions, (m, n, ...)."""
        if given is None:
            return self._rows(self.cells.draw(self._decoded(self.latent.draw(n, generator), None), generator))
        m = len(given)
        if m > 1 and isinstance(self.event, Table):
            raise ParameterError(f"given= has {m} rows for a Table", "one condition", "Sample condition by condition")
        z = self.latent.draw(m * n, generator)
        rows = self._rows(self.cells.draw(self._decoded(z, given.repeat_interleave(n, 0)), generator))
        return rows if m == 1 else rows.reshape(m, n, *rows.shape[1:])

    def _rows(self, cells: Tensor) -> Tensor:
        return cells.to(torch.float64).reshape(len(cells), *self.event.shape)  # type: ignore[attr-defined]

    def _fit(
        self,
        x: Tensor,
        given: Tensor | None,
        *,
        generator: torch.Generator,
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        beta: float = 1.0,
        warming: float | None = None,
        free_bits: float = 0.0,
        samples: int = 1,
        redraw: Any = None,
        validation: float = 0.1,
        weight_decay: float | None = None,
        patience: int = 12,
        ema: float = 0.0,
        checkpoint: str | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """Stochastic variational inference, reparameterised. ``budget`` in seconds, unless ``steps`` is given.

        Arguments:
            beta: Weight of the divergence of the guide from the prior; 1 trains the bound itself (Higgins et al. 2017).
            warming: Share of the steps in which that weight rises from 0, so that the code is not given up before the
                decoder has learnt to read it (Bowman et al. 2016); None: 0.3 for up to 16 cells, else 0.03.
            free_bits: Nats of divergence a latent that cost nothing (Kingma et al. 2016).
            samples: Draws a row; several train the IWAE bound (Burda, Grosse and Salakhutdinov 2016).
            redraw: Of binary data: probabilities of a 1, of the data's shape, from which each batch draws its rows
                anew ("dynamic binarisation").
            weight_decay: None: the more cells and the fewer rows, the stronger; it keeps few images from being learnt
                by heart, and leaves plane data alone.
        """
        warming = (0.3 if self.cells.cells <= 16 else 0.03) if warming is None else warming
        plan = Schedule(
            steps=steps,
            budget=budget,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=self._weight_decay(len(x)) if weight_decay is None else weight_decay,
            validation=validation if len(x) >= 50 else 0.0,
            patience=patience,
            grace=learning.grace(warming),
            ema=ema,
            checkpoint=checkpoint,
            every=every,
            resume=resume,
        )
        loss = learning.NegativeELBO(self, beta, warming, free_bits, samples, redraw is not None)
        drawn = x if redraw is None else learning.probabilities(redraw, self.event, len(x))
        rows = drawn.reshape(len(x), -1)
        if not resume:
            reset(self, generator)
            self._measure(rows, given, generator)
        data = rows if given is None else torch.cat([rows, given.reshape(len(given), -1)], 1)
        players = [Player(loss, list(self.parameters()))]
        report = train(self, players, data, plan, generator=generator, progress=progress)
        return of_kept_state(report, _UNCHANGED) if plan.validation else report

    def _weight_decay(self, rows: int) -> float:
        return min(1.0, 1500 / rows) * min(1.0, self.cells.cells / 64)

    def _measure(self, cells: Tensor, given: Tensor | None, generator: torch.Generator) -> None:
        """The data's scale, and a first decoder output that is each cell's own margin."""
        self.cells.measure(cells)
        self.features.measure(cells)
        if self.covariates is not None and given is not None:
            self.covariates.measure(given)
        some = torch.randperm(len(cells), generator=generator)[:1000]
        self.latent.start(self.features(cells[some]).to(self.dtype), generator)

    # Codes

    @torch.no_grad()
    def encode(self, x: Any, *, given: Any = None) -> Code:
        """q(z | x) of each row, as arrays.

        Arguments:
            x: Data of the event, n rows.
            given: Their covariates, of a conditional model.
        """
        rows, covariates = self._checked(x, given)
        parts = [self._posterior(x, c) for x, c in batches(rows, covariates)]
        loc, scale = (torch.cat(part).to(torch.float64).numpy() for part in zip(*parts, strict=True))
        return Code(loc, scale)

    @torch.no_grad()
    def decode(self, z: Any, *, given: Any = None) -> Any:
        """E[x | z], in the form that the model was fitted on; of categories the likeliest level.

        Arrays come as floats, not rounded to levels; the columns of a table as values that they may have.

        Arguments:
            z: Codes (n, latent_dim).
            given: One row of covariates a code, or a single one for all.

        Raises:
            ShapeError: codes of another size.
        """
        self._check_fitted()
        codes = torch.as_tensor(np.asarray(z), dtype=self.dtype)
        if codes.ndim != 2 or codes.shape[1] != self.latent_dim or not len(codes):
            raise ShapeError(f"Codes of shape {tuple(codes.shape)}", f"(n, {self.latent_dim})", "See encode(x)")
        covariates = self._check_given(given, None)
        if covariates is not None and len(covariates) == 1:
            covariates = covariates.expand(len(codes), *covariates.shape[1:])
        if covariates is not None and len(covariates) != len(codes):
            raise ShapeError(f"given= has {len(covariates)} rows for {len(codes)} codes", "one row a code, or one")
        means = [self.cells.mean(self._decoded(part, c)) for part, c in batches(codes, covariates)]
        return self._outside(torch.cat(means))

    def reconstruct(self, x: Any, *, given: Any = None) -> Any:
        """E[x | z] at the mean code of each row: ``decode(encode(x).loc)``."""
        return self.decode(self.encode(x, given=given).loc, given=given)

    def interpolate(self, a: Any, b: Any, steps: int = 8, *, given: Any = None) -> Any:
        """Means along the line between the codes of two rows, ``steps`` of them with both ends.

        Arguments:
            a, b: One row each, as data of one row: x[:1].
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ParameterError(f"steps={steps!r}", "a whole number, at least 2")
        ends = [self.encode(end, given=given).loc for end in (a, b)]
        if len(ends[0]) != 1 or len(ends[1]) != 1:
            raise ShapeError(f"{len(ends[0])} and {len(ends[1])} rows", "one row each", "x[:1]")
        share = np.linspace(0, 1, steps)[:, None]
        return self.decode((1 - share) * ends[0] + share * ends[1], given=given)

    def _outside(self, means: Tensor) -> Any:
        if not isinstance(self.event, Table):
            values = self._rows(means)
            return values if self.form == "torch" else values.numpy()
        columns = self.event.columns.values()
        steps = torch.tensor([getattr(c, "resolution", None) or 1.0 for c in columns], dtype=torch.float64)
        whole = torch.tensor([not isinstance(c, Real) or c.resolution is not None for c in columns])
        return self.event.restore(torch.where(whole, (means / steps).round() * steps + 0.0, means), self.form)

    def _checked(self, x: Any, given: Any) -> tuple[Tensor, Tensor | None]:
        self._check_fitted()
        checked = self._check(x)
        return checked.x, self._check_given(given, checked)

    # What it has learnt

    def diagnose(
        self, x: Any, *, given: Any = None, rows: int = 200, seed: int | None = None
    ) -> "diagnostics.Diagnosis":
        """Active units, posterior collapse, the amortisation gap and how far the codes are from the prior.

        Arguments:
            x: Data of the event, best held out.
            rows: At most so many of them have a guide of their own fitted, for the amortisation gap; 0 for none.
        """
        return diagnostics.diagnose(self, *self._checked(x, given), rows=rows, generator=generator_of(seed))

    def plot(self, x: Any, path: str | PathLike, *, given: Any = None, seed: int | None = 0) -> Path:
        """Data, reconstructions and samples; what each code says; how training went; as one PNG."""
        return pictures.plot(self, *self._checked(x, given), path, generator_of(seed))


def _check_sizes(latent_dim: int, hidden: Sequence[int], channels: Sequence[int]) -> None:
    sizes = (latent_dim, *hidden, *channels)
    if not all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in sizes):
        raise ParameterError(
            f"latent_dim={latent_dim!r}, hidden={hidden!r}, channels={channels!r}",
            "whole numbers from 1",
        )
