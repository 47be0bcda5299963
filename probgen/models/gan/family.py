"""Generative adversarial networks: samples without a density. ``log_prob`` refuses, and says what to do instead."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import LikelihoodUnavailable, ParameterError, nearest
from probgen.estimate.weights import at_least
from probgen.events import Array, Category, Checked, Event, Table
from probgen.features import Features, image_shape
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.gan.cells import Cells
from probgen.models.gan.conditions import Conditions, Drawn, Rows
from probgen.models.gan.learning import _Discriminate, _Generate
from probgen.models.gan.losses import LOSSES
from probgen.models.gan.networks import Discriminator, Generator
from probgen.models.gan.noisy import ObservedWithNoise, parzen
from probgen.models.gan.observed import Observed, accepted, observed
from probgen.models.gan.spectral import Spectral
from probgen.nn import reset
from probgen.training import Player, Schedule, train

__all__ = ["GAN"]


class GAN(GenerativeModel):
    """x = G(z), z ~ N(0, I), trained against a discriminator; there is no likelihood.

    Vectors, images and tables. Positive numbers and counts go through a logarithm; numbers of a table are standardised
    within a bump of their column, and categories are drawn (see ``Cells``). Tables with categories are trained under
    conditions on one of them, in which rare levels come often; ``sample(n, given={"colour": "red"})`` takes some
    columns as observed. Cells may be missing: a generated row is shown to the discriminator without those that a real
    row lacks, so that samples are whole rows, right where cells are missing completely at random.

    ``log_prob`` refuses. ``with_noise(scale)`` is another model that has one, and ``parzen`` a kernel estimate that
    must not rank models.

    Arguments:
        event: Array or Table.
        latent_dim: Size of z.
        hidden: Widths of the generator's hidden layers; the discriminator has them reversed.
        penalty: Weight of the loss's penalty on the discriminator's slopes; 0 for none.
        channels: Of the discriminator's convolutions, each of which halves the image; the generator has them reversed.
            () for none.
        context: Event of covariates: p(x | given), with ``given=`` in fit and sample; put beside both networks' inputs.
        loss: "relativistic", with penalties on real and generated rows (R1 and R2), for which training converges
            locally; "non_saturating" and "hinge", with R1; "wasserstein", with a penalty on slopes other than 1.
        spectral: Whether the largest singular value of each of the discriminator's layers is held at 2.
        modes: Most bumps of a table's number.
        by_category: Whether a table with categories and without context is trained under conditions on them.

    Goodfellow et al. (2014); Jolicoeur-Martineau (2019); Huang et al. (2024), eq. 4 (R3GAN); Mirza and Osindero (2014)
    with covariates; Xu et al. (2019) for tables.
    """

    missing_cells: ClassVar[bool] = True

    def __init__(
        self,
        event: Event,
        latent_dim: int = 32,
        hidden: Sequence[int] = (256, 256),
        penalty: float = 0.1,
        channels: Sequence[int] = (),
        context: Event | None = None,
        loss: str = "relativistic",
        spectral: bool = False,
        modes: int = 8,
        by_category: bool = True,
    ) -> None:
        super().__init__(event)
        _check(latent_dim, hidden, channels, modes, penalty, loss)
        self.latent_dim, self.hidden, self.channels = latent_dim, tuple(hidden), tuple(channels)
        self.penalty, self.loss, self.spectral = penalty, loss, bool(spectral)
        self.context, self.modes, self.by_category = context, modes, bool(by_category)
        self.cells = Cells(event, modes)
        self.covariates = None if context is None else Features(context)
        self.conditions = _conditions(event) if by_category and context is None else None
        known = [part.width for part in (self.covariates, self.conditions) if part is not None]
        sizes = (event, self.latent_dim, sum(known), self.hidden, self.channels[::-1], self.cells.width)
        self.generator = Generator(*sizes)
        gaps = self.cells.count if self.cells.gaps else 0
        judge = Discriminator(event, self.cells.width, gaps, sum(known), self.hidden[::-1], self.channels)
        self.discriminator: nn.Module = Spectral(judge) if spectral else judge

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Array | Table):
            return f"its networks give one row of cells, not {type(event).__name__}"
        return None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        cells, image = max(math.prod(getattr(event, "shape", ())), 1), image_shape(event)
        defaults: dict[str, Any] = {}
        if isinstance(event, Table):
            defaults = {"latent_dim": 16, "hidden": (128, 128)}
        elif cells <= 16:
            defaults = {"latent_dim": 8, "hidden": (64, 64, 64), "penalty": 0.02}
        elif image is not None and min(image[1:]) >= 16:
            defaults = {"latent_dim": 32, "hidden": (256,), "channels": (16, 32)}
        return cls(event, **{**defaults, **options})

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks."""
        return next(self.generator.parameters()).dtype

    # Sampling

    def model(self, x: Tensor | None = None, given: Tensor | None = None, n: int = 1) -> Tensor:
        if x is not None:
            raise LikelihoodUnavailable(*self._refusal())
        n = n if given is None else len(given)
        with pyro.plate("rows", n):
            loc = torch.zeros(n, self.latent_dim, dtype=self.dtype)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            known = self._known(given, None)
            if self.conditions is not None:
                shares = self.conditions.shares().expand(n, -1)
                known = pyro.sample("condition", dist.OneHotCategorical(shares, validate_args=False))
            u = None
            if self.cells.choices:
                low = torch.zeros(n, self.cells.choices, dtype=self.dtype)
                u = pyro.sample("u", dist.Uniform(low, torch.ones_like(low), validate_args=False).to_event(1))
            cells = self._generate(z, known, u)
            return pyro.deterministic("x", self.cells.on_support(cells).reshape(n, *self.event.shape))  # type: ignore[attr-defined]

    def _generate(self, z: Tensor, known: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Cells (n, cells) in the data's units, before rounding.

        Arguments:
            known: Covariates or a condition, (n, extra); None for none: zeros.
            u: Uniform numbers for the choices, (n, choices); None takes the likeliest.
        """
        if known is None and (width := self._extra):
            known = z.new_zeros(len(z), width)
        return self.cells.values(self.cells.choose(self.generator(z, known), u))

    @property
    def _extra(self) -> int:
        """Numbers that both networks are told beside a row."""
        return sum(part.width for part in (self.covariates, self.conditions) if part is not None)

    def _known(self, given: Tensor | None, drawn: Drawn | None) -> Tensor | None:
        """Covariates or conditions as both networks see them, (n, extra)."""
        if self.covariates is not None and given is not None:
            return self.covariates(given).to(self.dtype)
        return None if self.conditions is None or drawn is None else self.conditions.vector(drawn).to(self.dtype)

    def _draw(self, n: int, known: Tensor | None, generator: torch.Generator) -> Tensor:
        """Rows (n, cells) as the event allows them."""
        z = torch.randn(n, self.latent_dim, generator=generator, dtype=self.dtype)
        u = torch.rand(n, self.cells.choices, generator=generator, dtype=self.dtype) if self.cells.choices else None
        return self.cells.on_support(self._generate(z, known, u))

    def _sample(self, n: int, given: Any, *, generator: torch.Generator) -> Tensor:
        """n draws, (n, ...); n for each of m > 1 rows of covariates, (m, n, ...)."""
        shape = self.event.shape  # type: ignore[attr-defined]
        if isinstance(given, Observed):
            return accepted(self, n, given, generator)
        if given is None:
            drawn = None if self.conditions is None else self.conditions.draw(n, generator, log=False)
            return self._draw(n, self._known(None, drawn), generator).reshape(n, *shape)
        m = len(given)
        if m > 1 and isinstance(self.event, Table):
            raise ParameterError(f"given= has {m} rows for a Table", "one condition", "Sample condition by condition")
        rows = self._draw(m * n, self._known(given.repeat_interleave(n, 0), None), generator)
        return rows.reshape(*((m, n) if m > 1 else (n,)), *shape)

    def _check_given(self, given: Any, data: Checked | None) -> Any:
        """Covariates; or, of a table without, observed columns of the rows to draw."""
        if self.context is None and data is None and given is not None and isinstance(self.event, Table):
            return observed(self.event, given)
        return super()._check_given(given, data)

    def sample_target(self, **options: Any) -> str:
        return "G(z)"

    # What there is instead of a likelihood

    def _refusal(self) -> tuple[str, str]:
        cells = self.cells.count
        if self.event.discrete:
            why = "P(G(z) rounds to x) is an integral over z without a closed form, and no guide approximates it"
        elif self.cells.coded or isinstance(self.event, Table):
            why = f"G maps {self.latent_dim} numbers and choices to {cells} columns: p(x) sums over unknown pre-images"
        elif self.latent_dim < cells:
            why = f"G maps {self.latent_dim} numbers to {cells}: its range has volume zero, so p(x) has no density"
        elif self.latent_dim > cells:
            why = (
                f"G maps {self.latent_dim} numbers to {cells}: p(x) is an integral over a surface of unknown pre-images"
            )
        else:
            why = f"G folds {self.latent_dim} numbers onto {cells}: p(x) sums over unknown pre-images"
        noisy = "" if isinstance(self.event, Table) else ", bound another model's with model.with_noise(scale)"
        return f"a GAN has no likelihood here: {why}", (
            f"compare model.sample(n) with the data{noisy}, or fit a family with a likelihood (VAE, Mixture, "
            "KernelDensity)"
        )

    def _log_prob(self, x: Tensor, given: Tensor | None, *, generator: torch.Generator) -> LogProb:
        return LogProb.refuse(len(x), *self._refusal())

    def with_noise(self, scale: float) -> ObservedWithNoise:
        """The model G(z) + N(0, scale^2 I), which has a likelihood that annealing bounds from below.

        Arguments:
            scale: In the data's units, positive.
        """
        return ObservedWithNoise(self, scale)

    def parzen(
        self, x: Any, bandwidth: float, draws: int = 5000, *, given: Any = None, seed: int | None = None
    ) -> LogProb:
        """A kernel density estimate from samples: a lower bound, in expectation, on G(z) + N(0, bandwidth^2 I).

        Arguments:
            bandwidth: Of the normal kernel, in the data's units.
            draws: Samples that carry a kernel.

        Returns:
            LogProb, kind lower; a standard error only where the weights let one be trusted.

        Warns:
            ParzenWarning: always. It must not rank models.
        """
        return parzen(self, x, given, bandwidth, draws, seed)

    # Fitting

    def _fit(
        self,
        x: Tensor,
        given: Tensor | None,
        *,
        generator: torch.Generator,
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 2e-3,
        critics: int | None = None,
        lazy: int | None = None,
        ema: float = 0.999,
        checkpoint: str | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """Alternating steps of discriminator and generator; the average of the generator's weights is kept.

        Arguments:
            budget: In seconds, unless ``steps`` is given.
            critics: Steps of the discriminator for one of the generator; None: 3 for "wasserstein", else 1.
            batch_size: None: 32 with convolutions, else 128: in little time many steps count for more than exact ones.
            lazy: The penalty is paid in one step of so many and weighs that much more; None: 8 with convolutions, else
                1.
            ema: Decay of that average; 0 keeps the last weights.
        """
        plan = Schedule(
            steps=steps,
            budget=budget,
            batch_size=(32 if self.channels else 128) if batch_size is None else batch_size,
            learning_rate=learning_rate,
            validation=0.0,
            clip=10.0,
            ema=ema,
            checkpoint=checkpoint,
            every=every,
            resume=resume,
        )
        critics = (3 if self.loss == "wasserstein" else 1) if critics is None else critics
        lazy = (8 if self.channels else 1) if lazy is None else lazy
        at_least("critics", critics, 1)
        at_least("lazy", lazy, 1)
        data = x.reshape(len(x), -1)
        if not resume:
            self._measure(data, given, generator)
        if given is not None:
            data = torch.cat([data, given.reshape(len(given), -1)], 1)
        rows = None if self.conditions is None else Rows(data, self.conditions)
        first = Player(_Discriminate(self, rows, lazy), list(self.discriminator.parameters()), betas=(0.0, 0.99))
        second = Player(_Generate(self, rows), list(self.generator.parameters()), betas=(0.0, 0.99))
        return train(self, [first] * critics + [second], data, plan, generator=generator, progress=progress)

    def _measure(self, x: Tensor, given: Tensor | None, generator: torch.Generator) -> None:
        """First weights, and the data's scales and shares."""
        reset(self, generator)
        if isinstance(self.discriminator, Spectral):
            self.discriminator.start()
        self.cells.measure(x, generator)
        if self.covariates is not None and given is not None:
            self.covariates.measure(given)
        if self.conditions is not None:
            self.conditions.measure(x)


def _conditions(event: Event) -> Conditions | None:
    columns = list(event.columns.values()) if isinstance(event, Table) else []
    coded = {i: len(column.levels) for i, column in enumerate(columns) if isinstance(column, Category)}
    return Conditions(list(coded), list(coded.values())) if coded else None


def _check(
    latent_dim: int, hidden: Sequence[int], channels: Sequence[int], modes: int, penalty: float, loss: str
) -> None:
    sizes = (latent_dim, modes, *hidden, *channels)
    if not hidden or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in sizes):
        raise ParameterError(
            f"latent_dim={latent_dim!r}, hidden={hidden!r}, channels={channels!r}, modes={modes!r}",
            "whole numbers from 1",
        )
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 <= penalty < math.inf:
        raise ParameterError(f"penalty={penalty!r}", "a number from 0")
    if loss not in LOSSES:
        raise ParameterError(f"loss={loss!r}", "a loss", nearest(str(loss), LOSSES))
