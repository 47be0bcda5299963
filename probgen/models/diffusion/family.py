"""Diffusion models: one network, two distributions. The reverse chain is bounded, the probability flow integrated."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError, ShapeError, StructureError
from probgen.estimate.ode import ProbabilityFlow
from probgen.events import Array, Event, Table
from probgen.features import Features, image_shape
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel, generator_of
from probgen.models.diffusion.arguments import check_fitting, check_power, check_sampling, check_sizes, sampler_of
from probgen.models.diffusion.bound import VariationalBound
from probgen.models.diffusion.coordinates import Levels, Seen
from probgen.models.diffusion.fitted import FittedSampler, SamplerReport, fit_solver
from probgen.models.diffusion.learning import BoundError, VelocityError
from probgen.models.diffusion.networks import LevelVelocity, Velocity
from probgen.models.diffusion.rows import Decoded, rows_for
from probgen.models.diffusion.schedule import calibrate
from probgen.models.diffusion.trig import bridge, chain_times, descend, flow_times, solve
from probgen.nn import reset
from probgen.training import Player, Schedule, of_kept_state, train

__all__ = ["Diffusion"]

_STEPS = 40  # of a probability flow that is sampled
_BATCH = 4096
_NUMBERS = 200_000  # that a network is given at once, so that its layers fit into the caches
_FEW = 32  # levels whose probabilities the network gives one by one
_MOST_HELD = 1024  # rows held out of training, which are scored forty times


class Diffusion(GenerativeModel):
    """y = cos t x + sin t z from the data (t = 0) to noise (t = pi/2), and a network that goes back.

    The network gives the velocity v(y, t) of the probability flow, and with it two distributions, whose numbers do
    not compare. p^SDE is the reverse chain of ``chain`` normal steps and a decoder, a Pyro program whose guide is the
    forward noising; the ELBO of that pair is a lower bound (``VariationalBound``). p^ODE is what the flow makes of
    N(0, I); its density is integrated along the flow (``ProbabilityFlow``).

    Without ``by=`` reals of up to 64 coordinates take ProbabilityFlow, everything else the variational bound: of
    levels, counts, rounded reals and categories it is a bound on a mass. Numbers are standardised (positive ones
    through the logarithm, those in [0, 1] through the logit, counts through log(1 + x)), categories are indicators;
    p(x | y_1) of discrete cells is a discrete decoder. Of arrays of up to 32 levels the network gives each cell's
    posterior (``LevelVelocity``) and descends the bound itself. Missing cells are refused.

    Arguments:
        event: Array, or Table.
        context: Event of covariates: p(x | given), with ``given=`` in all three verbs.
        hidden: Width of the perceptron's hidden layers.
        blocks: Its residual blocks; of a U-net, on each way through a level.
        channels: Of a U-net, at a half, a quarter, ... of an image's size; () for a perceptron.
        chain: Steps of the reverse chain, at least 2. ``fit`` chooses their times for the tightest bound.
        forget: Share of training rows whose covariates are hidden, for ``guidance``; 0 trains without.
        dequantise: Whether discrete cells are trained spread over their rounding intervals, so that the probability
            flow has a density there; without it, it ends at the chain's first time with the discrete decoder.

    Raises:
        StructureError: dequantise where no cell is rounded, or with categories, which have no intervals.

    Ho, Jain and Abbeel (2020); Song et al. (2021); Salimans and Ho (2022) for v; Lu and Song (2025) for the
    trigonometric time; Ho and Salimans (2022) for guidance.
    """

    missing_cells: ClassVar[bool] = False
    first: Tensor
    moments: Tensor
    residual: Tensor

    def __init__(
        self,
        event: Event,
        context: Event | None = None,
        hidden: int = 128,
        blocks: int = 3,
        channels: Sequence[int] = (),
        chain: int = 50,
        forget: float = 0.1,
        dequantise: bool = False,
    ) -> None:
        super().__init__(event)
        check_sizes(hidden, blocks, channels, chain, forget)
        self.context, self.hidden, self.blocks, self.channels = context, hidden, blocks, tuple(channels)
        self.chain, self.forget, self.dequantise = chain, forget, dequantise
        self.rows = rows_for(event, image_shape(event) is not None)
        if dequantise and not (self.rows.discrete and self.rows.ordinal):
            raise StructureError(
                f"dequantise=True for {event!r}", "rounded numbers: levels, counts or a resolution", "Leave it out"
            )
        self.covariates = None if context is None else Features(context)
        extra = 0 if self.covariates is None else self.covariates.width
        sizes = (extra, (hidden,) * (2 * blocks), self.channels, blocks)
        self.velocity: nn.Module = (
            Velocity(event, self.rows.width, *sizes)
            if self.levels is None
            else LevelVelocity(event, self.levels, *sizes)
        )
        self.flow_dim, self.flow_random = self.rows.width, self.rows.discrete
        self.fitted = FittedSampler()
        self.register_buffer("first", torch.tensor(0.02, dtype=torch.float64))
        self.register_buffer("moments", chain_times(chain, 0.02))
        self.register_buffer("residual", torch.ones(chain, self.rows.width, dtype=torch.float64))

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Array | Table):
            return f"its network takes one row of cells, not {type(event).__name__}"
        return None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        image = image_shape(event)
        defaults: dict[str, Any] = {}
        if image is not None and min(image[1:]) >= 8:
            large = min(image[1:]) >= 16
            defaults = {"channels": (32, 64, 96) if large else (32, 64), "blocks": 1}
            if event.levels is not None and max(event.cell_levels) <= _FEW:  # type: ignore[attr-defined]
                defaults["chain"] = 100  # whose steps are far from normal: in 50 digits cost 0.02 bits/dim more
        elif math.prod(getattr(event, "shape", ())) > 16:
            defaults = {"hidden": 256}
        return cls(event, **{**defaults, **options})

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        return next(self.velocity.parameters()).dtype

    @property
    def levels(self) -> Levels | None:
        """The cells, if they are whole numbers of few levels alone, whose probabilities the network gives."""
        blocks = self.rows.blocks
        few = len(blocks) == 1 and isinstance(blocks[0], Levels) and blocks[0].most <= _FEW
        return blocks[0] if few and not self.dequantise else None  # type: ignore[return-value]

    def times(self) -> Tensor:
        """Of the chain, ascending, (chain,), float64: those of the tightest bound on held-out rows."""
        return self.moments

    # The network

    def _covariates(self, given: Tensor | None) -> Tensor | None:
        return None if given is None or self.covariates is None else self.covariates(given)

    def _velocity(self, y: Tensor, t: Tensor, covariates: Tensor | None, keep: Tensor | None = None) -> Tensor:
        if covariates is not None and keep is None:
            keep = torch.ones_like(t)
        of = self.rows.deviation if self.levels is None else self.levels
        return self.velocity(y, t, of, covariates, keep)

    def _data(self, y: Tensor, t: float, given: Tensor | None) -> Tensor:
        """E[x | y] in coordinates, (n, width)."""
        at = torch.full((len(y),), t, dtype=y.dtype)
        return math.cos(t) * y - math.sin(t) * self._velocity(y, at, self._covariates(given))

    # The Pyro program

    def model(self, x: Tensor | None = None, given: Tensor | None = None, n: int = 1) -> Tensor:
        """The reverse chain: y{chain} ~ N(0, I), each earlier y given the one after it, and x given y1."""
        n, at = n if x is None else len(x), self.times().tolist()
        with pyro.plate("rows", n):
            zero = torch.zeros(n, self.rows.width, dtype=self.dtype)
            y = pyro.sample(f"y{self.chain}", dist.Normal(zero, 1.0).to_event(1))
            for i in range(self.chain - 1, 0, -1):
                loc, scale = self._reverse(y, at[i - 1], at[i], self.residual[i], given)
                y = pyro.sample(f"y{i}", dist.Normal(loc, scale).to_event(1))
            cells = None if x is None else x.reshape(n, -1)
            rows = pyro.sample("x", self._decoder(y, given), obs=cells)
        return rows.reshape(*rows.shape[:-1], *self.event.shape)  # type: ignore[attr-defined]

    def guide(self, x: Tensor | None = None, given: Tensor | None = None, n: int = 1) -> None:
        """The forward noising: y1 given x, each later y given the one before it."""
        if x is None:
            raise ParameterError("The guide q(y | x) without x", "the rows to condition on", "guide(x)")
        at = self.times().tolist()
        with pyro.plate("rows", len(x)):
            loc = math.cos(at[0]) * self.rows.encode(x.reshape(len(x), -1)).to(self.dtype)
            y = pyro.sample("y1", dist.Normal(loc, math.sin(at[0])).to_event(1))
            for i in range(1, self.chain):
                b = bridge(at[i - 1], at[i])
                y = pyro.sample(f"y{i + 1}", dist.Normal(b.decay * y, math.sqrt(b.noise)).to_event(1))

    def _reverse(self, y: Tensor, s: float, t: float, residual: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean (n, width) and standard deviation (width,) of p(y_s | y_t)."""
        b = bridge(s, t)
        scale = (b.variance + b.pull**2 * residual).sqrt().to(y.dtype)
        return b.keep * y + b.pull * self._data(y, t, given), scale

    def _decoder(self, y: Tensor, given: Tensor | None, seen: Tensor | None = None) -> Decoded:
        """p(x | y_1)."""
        t = float(self.first)
        mean = y
        if self.rows.reals:
            mean = self._data(y, t, given) if seen is None else seen
        return Decoded(self.rows, Seen(y.to(torch.float64), mean.to(torch.float64), self.residual[0], t), self.dtype)

    # The probability flow

    def _flow_start(self, x: Tensor, given: Tensor | None, noise: Tensor) -> tuple[Tensor, float, Tensor]:
        cells = x.reshape(len(x), -1)
        if not self.rows.discrete:
            return self.rows.encode(cells), 0.0, self.rows.log_offset(cells)
        if self.dequantise:
            v = self.rows.spread_out(cells, torch.special.ndtr(noise))
            return self.rows.encode(v), 0.0, self.rows.log_offset(v)
        t = float(self.first)
        y = math.cos(t) * self.rows.encode(cells) + math.sin(t) * noise
        nats = self.rows.nats(cells, self._decoder(y.to(self.dtype), given).seen)
        log_q = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1) - noise.shape[1] * math.log(math.sin(t))
        return y, t, nats - log_q

    def _flow_velocity(self, y: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        return self._velocity(y, t, self._covariates(given))

    # Verbs

    def _log_prob(self, x: Tensor, given: Tensor | None, *, generator: torch.Generator) -> LogProb:
        flows = not self.rows.discrete and self.rows.width <= 64
        by: Any = ProbabilityFlow() if flows else VariationalBound()
        return by(self, x, given, generator=generator)

    def sample_target(
        self,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        observed: Any = None,
        repeats: int = 1,
    ) -> str:
        """p^SDE for the chain's own steps; a solver, fewer steps, guidance and inpainting stand in the name."""
        sampler = sampler_of(sampler, observed)
        own = sampler == "ancestral" and steps in (None, self.chain)
        name = "p^SDE" if sampler == "ancestral" else "p^ODE"
        count = int(self.fitted.calls) if sampler == "fitted" else steps or _STEPS
        marks = [] if own else [f"{sampler} in {count} steps"]
        marks += [] if guidance is None else [f"guidance {guidance:g}"]
        marks += [] if observed is None else [f"observed cells by replacement, {repeats} repeats"]
        return f"{name} ({', '.join(marks)})" if marks else name

    def _sample(
        self,
        n: int,
        given: Tensor | None,
        *,
        generator: torch.Generator,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        observed: Any = None,
        repeats: int = 1,
    ) -> Tensor:
        """n draws, (n, ...); n for each of m > 1 conditions, (m, n, ...).

        Arguments:
            sampler: "ab4" (the default) and "ab2", its simpler sibling (one call of the network a step), "heun" (two),
                "rk4" (four) follow the probability flow, "fitted" too, by the coefficients of ``fit_sampler``;
                "ancestral" draws from the reverse chain.
            steps: Of it; None: 40 of a flow, the chain's own of "ancestral". "fitted" has its own.
            guidance: w of v_nothing + w (v_given - v_nothing): 1 is plain, more obeys the covariates more than p does.
            observed: One row with cells missing (NaN, None, or a column left out): they are drawn given the others,
                roughly, by putting the others' noised values in their place at each step ("ancestral" only).
            repeats: So often each step is redone with ``observed``; more makes the rest agree better.
        """
        sampler = sampler_of(sampler, observed)
        check_sampling(self, sampler, steps, guidance, observed, repeats)
        m = 1 if given is None else len(given)
        if m > 1 and isinstance(self.event, Table):
            raise ParameterError(f"given= has {m} rows for a Table", "one condition", "Sample condition by condition")
        wide = None if given is None else given.repeat_interleave(n, 0)
        known = None if observed is None else self._observed(observed)
        parts = []
        each = self.rows.width * (1 if self.levels is None else self.levels.most)
        for some in torch.arange(m * n).split(max(1, min(_BATCH, _NUMBERS // each))):
            own = None if wide is None else wide[some]
            parts.append(self._draw(len(some), own, generator, sampler, steps, guidance, known, repeats))
        rows = torch.cat(parts).reshape(m * n, *self.event.shape)  # type: ignore[attr-defined]
        return rows if m == 1 else rows.reshape(m, n, *rows.shape[1:])

    def _draw(
        self,
        n: int,
        given: Tensor | None,
        generator: torch.Generator,
        sampler: str,
        steps: int | None,
        guidance: float | None,
        known: Tensor | None,
        repeats: int,
    ) -> Tensor:
        field, first = self._guided(given, guidance), float(self.first)
        y = torch.randn(n, self.rows.width, generator=generator, dtype=self.dtype)

        def seen(y: Tensor, t: float) -> Tensor:
            return math.cos(t) * y - math.sin(t) * field(y, t)

        if sampler == "ancestral":
            times = self.times() if steps is None else chain_times(steps, first)
            hold = None if known is None else self._hold(known, generator)
            y = descend(seen, self._residual_at, y, times, generator, hold, repeats)
        else:
            smooth = not self._last()
            if sampler == "fitted":
                y = self.fitted(self._moving(given), y)
            else:
                y = solve(field, y, flow_times(steps or _STEPS, self._last()), sampler)
            if smooth:
                return self.rows.decode(y)
        cells = self._decoder(y, given, seen(y, first) if self.rows.reals else None).draw(generator)
        return cells if known is None else torch.where(known.isnan(), cells, known)

    def _last(self) -> float:
        """The time at which samples leave the probability flow."""
        return 0.0 if not self.rows.discrete or self.dequantise else float(self.first)

    def _moving(self, given: Tensor | None) -> Any:
        covariates = self._covariates(given)
        return lambda y, t: self._velocity(y, t, covariates)

    def fit_sampler(
        self,
        evaluations: int = 18,
        *,
        given: Any = None,
        rows: int | None = None,
        iterations: int = 100,
        seed: int | None = None,
    ) -> SamplerReport:
        """Fits ``sampler="fitted"``: a solver of this network's flow with the best coefficients for so many calls.

        Its times, and what each step makes of all former calls, are chosen so that samples end where the converged
        flow does. On eighteen calls it ends several times nearer than "ab4" (see the report). Takes the time of about
        4 x ``iterations`` x ``rows`` samples: seconds for vectors, minutes for images. A new ``fit`` forgets it.

        Arguments:
            evaluations: Calls of the network a sample, 4 to 32.
            given: Rows of covariates to draw under, for a model with a context.
            rows: Of noise whose ends teach, drawn from eight times as many (of images: twice). None for 512, or 64
                with convolutions, through whose layers all calls of a row are remembered.
            iterations: Of L-BFGS.

        Returns:
            SamplerReport: the distance from the converged flow before and after.

        Raises:
            NotFittedError: before ``fit``. ParameterError: an argument out of its range.
        """
        self._check_fitted()
        given = self._check_given(given, None)
        rows = (64 if self.channels else 512) if rows is None else rows
        check_fitting(evaluations, rows, iterations)
        generator, pool = generator_of(seed), (8 if self.rows.width <= 64 else 2) * rows
        noise = torch.randn(pool, self.rows.width, generator=generator, dtype=self.dtype)
        if given is not None:
            given = given[torch.randint(len(given), (pool,), generator=generator)]

        def field_of(some: Tensor) -> Any:
            return self._moving(None if given is None else given[some])

        last = self._last()
        return fit_solver(self.fitted, field_of, noise, last, evaluations, rows, iterations, generator)

    def _guided(self, given: Tensor | None, guidance: float | None) -> Any:
        covariates = self._covariates(given)

        def field(y: Tensor, t: float) -> Tensor:
            at = torch.full((len(y),), t, dtype=y.dtype)
            v = self._velocity(y, at, covariates)
            if guidance is None or guidance == 1:
                return v
            blind = self._velocity(y, at, covariates, torch.zeros_like(at))
            return blind + guidance * (v - blind)

        return field

    def _residual_at(self, t: float) -> Tensor:
        """Variance of x about E[x | y_t], between the chain's times in proportion, (width,)."""
        times = self.times()
        i = int(torch.searchsorted(times, t).clamp(1, self.chain - 1))
        share = ((t - times[i - 1]) / (times[i] - times[i - 1])).clamp(0, 1)
        return torch.lerp(self.residual[i - 1], self.residual[i], share)

    def _observed(self, observed: Any) -> Tensor:
        """One row of cells (1, cells), NaN where it is to be drawn."""
        event = replace(self.event, missing=True)  # type: ignore[type-var]
        checked = event.check(observed, partial=True) if isinstance(event, Table) else event.check(observed)  # type: ignore[attr-defined]
        if len(checked) != 1:
            raise ShapeError(f"observed= has {len(checked)} rows", "one row, with gaps", "Sample row by row")
        return checked.x.reshape(1, -1)

    def _hold(self, known: Tensor, generator: torch.Generator) -> Any:
        """Puts observed coordinates, noised to a time, in their place."""
        held = self.rows.known(~known.isnan())
        plain = torch.where(known.isnan(), 0.0, known)
        if isinstance(self.event, Array) and self.event.support == "positive":
            plain = torch.where(known.isnan(), 1.0, known)
        c = self.rows.encode(plain).to(self.dtype)

        def hold(y: Tensor, t: float) -> Tensor:
            noise = torch.randn(y.shape, generator=generator, dtype=y.dtype)
            return torch.where(held, math.cos(t) * c + math.sin(t) * noise, y)

        return hold

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
        power: float = 1.5,
        validation: float = 0.1,
        weight_decay: float = 0.0,
        patience: int = 0,
        clip: float = 10.0,
        ema: float | None = None,
        checkpoint: str | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """Denoising score matching. ``budget`` in seconds, unless ``steps`` is given.

        The report's objective is minus the squared error of the velocity a row, not a likelihood; of few levels it is
        the bound of an endless chain. Last, the variance of the data about the network's view of them is measured over
        time, on held-out rows if there are thirty, and the chain's times are chosen by it.

        Arguments:
            batch_size: None for 256, or 64 with convolutions.
            validation: Share of rows held out, at most 1024 rows.
            power: Times of training are (pi/2) u^power, u even in [0, 1]: more than 1 trains early times more. Few
                levels have times of their own.
            ema: Decay of the exponential moving average of the parameters, which the model ends with; None for 0.995,
                or 0.999 with convolutions.
        """
        plan = Schedule(
            steps=steps,
            budget=budget,
            batch_size=(64 if self.channels else 256) if batch_size is None else batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            validation=min(validation, _MOST_HELD / len(x)) if len(x) >= 50 else 0.0,
            patience=patience,
            clip=clip,
            ema=(0.999 if self.channels else 0.995) if ema is None else ema,
            checkpoint=checkpoint,
            every=every,
            resume=resume,
        )
        check_power(power)
        cells = x.reshape(len(x), -1)
        reset(self, generator)  # also where the training is resumed: the same rows are then held out
        self.rows.measure(cells)
        self.first.fill_(self.rows.first_time())
        self.fitted.forget()
        if self.covariates is not None and given is not None:
            self.covariates.measure(given)
        held = _held_out(len(x), plan.validation, generator)
        data = cells if given is None else torch.cat([cells, given.reshape(len(given), -1)], 1)
        loss = VelocityError(self, power, self.forget) if self.levels is None else BoundError(self, self.forget)
        players = [Player(loss, list(self.velocity.parameters()))]
        try:
            report = train(self, players, data, plan, generator=generator, progress=progress)
        finally:
            calibrate(self, cells[held], None if given is None else given[held])
        return of_kept_state(report, "the network gained nothing on held-out rows") if plan.validation else report


def _held_out(n: int, validation: float, generator: torch.Generator) -> Tensor:
    """The rows that ``train`` is about to hold out, if they are thirty or more, else all."""
    private = torch.Generator()
    private.set_state(generator.get_state())
    held = int(n * validation)
    return torch.randperm(n, generator=private)[: held if held >= 30 else n]
