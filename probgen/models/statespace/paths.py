"""Draws: new sequences, states given data, and the distribution of what comes next."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probgen.errors import ParameterError, ShapeError
from probgen.events import Series
from probgen.logprob import Kind, LogProb
from probgen.models.statespace.em import lower_factor
from probgen.models.statespace.kalman import Batch, System, filtered, innovation_cov, observed, smoothed, step_nats
from probgen.models.statespace.rounded import Cells

__all__ = ["Forecast", "Scale", "draw_recorded", "draw_states", "simulate"]

Start = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Scale:
    """Units of the data: x = shift + scale * (standardised x), each of shape (D,)."""

    shift: Tensor
    scale: Tensor

    def inside(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale

    def outside(self, x: Tensor) -> Tensor:
        return self.shift + self.scale * x


def log_scores(system: System, batch: Batch, start: Start | None, scale: Scale, cells: Cells | None) -> Tensor:
    """log p(x_t | x_<t) of a batch in the units of the data, shape (T, n), in nats."""
    run = filtered(system, batch, start)
    seen = torch.ones_like(batch.x, dtype=torch.bool) if batch.seen is None else batch.seen
    if cells is None:
        return step_nats(system, batch, run) - (seen * scale.scale.log()).sum(-1)
    mean, cov = observed(system, batch, run)
    x = cells.recorded(scale.outside(batch.x))  # undoes what standardising rounded off
    mass = cells.log_mass(x, scale.outside(mean), scale.scale * cov[..., 0].sqrt())
    return torch.where(seen, mass, 0.0)[..., 0]


def _noise(cov: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draws from N(0, cov), shape (n, size); cov (size, size) or (n, size, size), may be singular."""
    noise = torch.randn(n, cov.shape[-1], generator=generator, dtype=cov.dtype)
    return (lower_factor(cov) @ noise[..., None])[..., 0]


def simulate(
    system: System, inputs: Tensor, generator: torch.Generator, start: Start | None = None
) -> tuple[Tensor, Tensor]:
    """States (T, n, S) and observations (T, n, D) drawn for inputs (T, n, U)."""
    total, n, _ = inputs.shape
    mean, cov = (system.start_mean, system.start_cov) if start is None else start
    z = mean + _noise(cov, n, generator)
    states = [z]
    steps = _noise(system.state_noise, n * total, generator).view(total, n, -1) + inputs @ system.control.T
    for t in range(1, total):
        z = z @ system.transition.T + steps[t]
        states.append(z)
    path = torch.stack(states)
    return path, system.mean(path, inputs) + _noise(system.noise, n * total, generator).view(total, n, -1)


def draw_recorded(
    system: System,
    inputs: Tensor,
    scale: Scale,
    cells: Cells,
    generator: torch.Generator,
    start: Start | None = None,
) -> Tensor:
    """Sequences (T, n, 1) step by step: a draw of the predictive is recorded on its cell, and filtered."""
    total, n, _ = inputs.shape
    mean, cov = (system.start_mean.expand(n, -1), system.start_cov[None]) if start is None else start
    inside, steps = torch.ones(1, n, dtype=torch.bool), []
    for t in range(total):
        spread = innovation_cov(system, cov, None)[..., 0].sqrt()
        y = system.mean(mean, inputs[t]) + spread * torch.randn(n, 1, generator=generator, dtype=mean.dtype)
        x = cells.recorded(scale.outside(y))
        seen = Batch(scale.inside(x)[None], inputs[t : t + 1], None, inside, inside.long())
        run = filtered(system, seen, (mean, cov))
        steps.append(x)
        mean = run.means[0] @ system.transition.T + (inputs[t + 1] @ system.control.T if t + 1 < total else 0.0)
        cov = system.transition @ run.covs[0] @ system.transition.T + system.state_noise
    return torch.stack(steps)


def draw_states(system: System, batch: Batch, n: int, generator: torch.Generator) -> Tensor:
    """States given the data, shape (T, sequences, n, S): the simulation smoother of Durbin and Koopman (2002).

    A simulated pair of states and data differs from its own smoothed states as the true states do from theirs.
    """
    total, many, _ = batch.x.shape

    def wide(part: Tensor) -> Tensor:
        return part.repeat_interleave(n, dim=1)

    seen = None if batch.seen is None else wide(batch.seen)
    z, x = simulate(system, wide(batch.inputs), generator)
    real = Batch(wide(batch.x), wide(batch.inputs), seen, wide(batch.inside), wide(batch.rows))
    fake = replace(real, x=x if seen is None else torch.where(seen, x, 0.0))
    means = [smoothed(system, b, filtered(system, b)).means for b in (real, fake)]
    return (means[0] + z - means[1]).view(total, many, n, -1)


class Forecast:
    """The distribution of the next h steps of each sequence, given all that was recorded.

    Arguments:
        system: In standardised units.
        start: Mean (n, S) and covariance (n, S, S) of the first new step's state.
        inputs: Of the new steps, shape (h, n, U).
        scale: Units of the data.
        event: Of the sequences.
        cells: The grid of recorded values; None for a density.

    ``mean``, ``variance`` and ``covariance`` are those of the normal before recording. On a grid the joint law of
    several steps is that of the recorded values fed back; ``quantiles`` then are those of the normal, recorded: exact
    one step ahead.
    """

    def __init__(
        self, system: System, start: Start, inputs: Tensor, scale: Scale, event: Series, cells: Cells | None
    ) -> None:
        self.system, self.start, self.inputs = system, start, inputs
        self.scale, self.event, self.cells = scale, event, cells
        width = len(system.emission)
        blank = torch.zeros(*inputs.shape[:2], width, dtype=torch.float64)
        batch = self._batch(blank, torch.zeros_like(blank, dtype=torch.bool))
        mean, cov = observed(system, batch, filtered(system, batch, start))
        self._mean, self._cov = mean.transpose(0, 1), cov.expand(-1, inputs.shape[1], -1, -1).transpose(0, 1)

    def _batch(self, x: Tensor, seen: Tensor | None) -> Batch:
        inside = torch.ones(x.shape[:2], dtype=torch.bool)
        return Batch(x, self.inputs, seen, inside, torch.arange(inside.numel()).view(inside.shape))

    def _shaped(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:-1], *self.event.shape)

    @property
    def mean(self) -> Tensor:
        """Shape (n, h, *shape)."""
        return self._shaped(self.scale.outside(self._mean))

    @property
    def covariance(self) -> Tensor:
        """Of the columns of each step, shape (n, h, D, D)."""
        return self._cov * self.scale.scale[:, None] * self.scale.scale

    @property
    def variance(self) -> Tensor:
        """Shape (n, h, *shape)."""
        return self._shaped(self.covariance.diagonal(dim1=-2, dim2=-1))

    def quantiles(self, levels: float | list[float]) -> Tensor:
        """Marginal quantiles, shape (len(levels), n, h, *shape); without the first axis for a single level.

        Raises:
            ParameterError: a level outside (0, 1).
        """
        asked = torch.as_tensor(levels, dtype=torch.float64)
        if not bool(((asked > 0) & (asked < 1)).all()):
            raise ParameterError(f"levels={levels!r}", "numbers between 0 and 1, both excluded", "Such as [0.05, 0.95]")
        z = torch.special.ndtri(asked).reshape(asked.shape + (1,) * self.mean.dim())
        values = self.mean + z * self.variance.sqrt()
        return values if self.cells is None else self.cells.recorded(values)

    def log_prob(self, y: object) -> LogProb:
        """Joint log-probability of each sequence's h next steps, in nats: exact, missing cells as in the model.

        Raises:
            ShapeError: y has other than n sequences of h steps.
        """
        checked = self.event.check(y)
        h, n, _ = self.inputs.shape
        if len(checked) != n or set(checked.x.lengths.tolist()) != {h}:
            came = f"{len(checked)} sequences of {sorted(set(checked.x.lengths.tolist()))} steps"
            raise ShapeError(came, f"{n} sequences of {h} steps", "Forecast as many steps as there are to score")
        values = self.scale.inside(checked.x.values.reshape(n, h, -1)).transpose(0, 1)
        seen = ~values.isnan()
        batch = self._batch(torch.where(seen, values, 0.0), None if bool(seen.all()) else seen)
        nats = log_scores(self.system, batch, self.start, self.scale, self.cells).sum(0)
        by = "Kalman filter" if self.cells is None else "Kalman filter, cell masses"
        return LogProb(Kind.EXACT, nats, by=by, of="y|x", measure=checked.about.measure, event=checked.about)

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """Joint draws of the h steps, shape (n, sequences, h, *shape)."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ParameterError(f"n={n!r}", "a whole number of draws, at least 1")
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        h, many, _ = self.inputs.shape
        start = tuple(part.repeat(n, *[1] * (part.dim() - 1)) for part in self.start)
        inputs = self.inputs.repeat(1, n, 1)
        if self.cells is None:
            x = self.scale.outside(simulate(self.system, inputs, generator, start)[1])  # type: ignore[arg-type]
        else:
            x = draw_recorded(self.system, inputs, self.scale, self.cells, generator, start)  # type: ignore[arg-type]
        return self._shaped(x.transpose(0, 1).reshape(n, many, h, -1))

    def __repr__(self) -> str:
        h, n, _ = self.inputs.shape
        return f"Forecast(sequences={n}, steps={h}, event={self.event!r})"
