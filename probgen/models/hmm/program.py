"""The Pyro programs of a hidden Markov model, and a hidden Markov model as one Pyro distribution."""

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor
from torch.func import functional_call

from probgen import chains
from probgen.errors import DataError, ParameterError, ShapeError, SupportError
from probgen.events import Array, Category, Column, Event, Panel, Ragged, Table
from probgen.models.hmm.queries import simulate

if TYPE_CHECKING:
    from probgen.models.hmm.hmm import HMM


def model(hmm: "HMM", x: Ragged | None, given: Ragged | None, n: int, length: int = 20) -> Ragged:
    """The textbook program: a plate of sequences, a Markov loop over steps, states enumerated in parallel."""
    lengths = torch.full((n,), length) if x is None else x.lengths
    if given is not None:
        lengths = given.lengths
    n, most = len(lengths), int(lengths.max())
    alive = torch.arange(most) < lengths[:, None]
    cells = None if x is None else _padded(hmm._rows(x, given), lengths, alive, hmm.emission.filler)
    inputs = None
    if given is not None:
        inputs = _padded(given.values.reshape(int(lengths.sum()), -1), lengths, alive, 0.0)
    initial = hmm.transitions.log_initial()
    state: Any = None
    steps: list[Tensor] = []
    with pyro.plate("sequences", n):
        for t in pyro.markov(range(most)):
            with poutine.mask(mask=alive[:, t]):  # type: ignore[call-overload]
                logits = initial if state is None else _moves(hmm, state, inputs, t)
                state = pyro.sample(f"z_{t}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                seen = None if cells is None else cells[:, t]
                read = _read(hmm, steps, inputs, t, n) if seen is None else None
                steps.append(hmm.emission.observe(f"x_{t}", hmm._uses[state], seen, read))
    values = torch.stack([step[..., : hmm.emission.width] for step in steps], -2)[alive]
    return Ragged(values.reshape(-1, *hmm.event.shape), lengths)  # type: ignore[attr-defined]


def _read(hmm: "HMM", steps: list[Tensor], inputs: Tensor | None, t: int, n: int) -> Tensor | None:
    """What a drawn step depends on beside the state: inputs, or earlier draws, NaN before the start."""
    if hmm.emission.lags:
        before = torch.full((n, hmm.emission.width), torch.nan, dtype=torch.float64)
        return torch.cat([steps[t - lag] if t >= lag else before for lag in range(1, hmm.emission.lags + 1)], -1)
    return None if inputs is None or not hmm.emission.covariates else inputs[:, t]


def _moves(hmm: "HMM", state: Tensor, inputs: Tensor | None, t: int) -> Tensor:
    """Log-probabilities of the next state, shape state.shape + (S,)."""
    if inputs is None or not hmm.transitions.covariates:
        return hmm.transitions.log_matrix()[state]
    own = hmm.transitions.log_matrix(inputs[:, t])  # (n, S, S)
    return own[torch.arange(len(own)), state]


def _padded(values: Tensor, lengths: Tensor, alive: Tensor, filler: float) -> Tensor:
    """Rows of sequences as (n, longest, ...), with a filler beyond their ends."""
    out = torch.full((*alive.shape, values.shape[1]), filler, dtype=values.dtype)
    out[alive] = values
    return out


def bayes_model(hmm: "HMM", x: Ragged, given: Ragged | None) -> None:
    parts: dict[str, Any] = {"emission": hmm.emission, "transitions": hmm.transitions}
    drawn = {
        part: {name: pyro.sample(f"{part}.{name}", prior) for name, prior in module.priors().items()}
        for part, module in parts.items()
    }
    table = functional_call(hmm.emission, drawn["emission"], (hmm._rows(x, given),))
    initial, matrix = functional_call(hmm.transitions, drawn["transitions"], (hmm._inputs(given),))
    chain = chains.Chain(initial, matrix, table[:, hmm._uses], x.lengths)
    pyro.factor("log_likelihood", chains.log_likelihood(chain).sum())


class _Natural(torch.nn.Module):
    """A part whose call gives its interpretable parameters."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def forward(self) -> dict[str, Tensor]:
        return self.part.natural()


def natural_of(hmm: "HMM", draws: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    count = len(next(iter(draws.values())))
    with torch.no_grad():
        for part in (hmm.transitions, hmm.emission):
            prefix = "emission." if part is hmm.emission else "transitions."
            mine = {n.removeprefix(prefix): v for n, v in draws.items() if n.startswith(prefix)}
            for i in range(count):
                raw = {f"part.{name}": value[i] for name, value in mine.items()}
                for name, value in functional_call(_Natural(part), raw, ()).items():
                    found.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in found.items()}


class _Sequence(dist.TorchDistribution):
    """Sequences of ``duration`` steps with a hidden chain; what emits is left to the two kinds below."""

    arg_constraints: ClassVar = {}
    initial: Tensor
    transition: Tensor
    duration: int

    def _potentials(self, value: Tensor) -> Tensor:
        """log p(x_t | z_t) of n sequences, shape (n * T, S)."""
        raise NotImplementedError

    def _simulate(self, n: int) -> Tensor:
        """n sequences, shape (n, *event_shape)."""
        raise NotImplementedError

    def _possible(self, value: Tensor) -> Tensor:
        """Which steps some state can emit, shape (..., T)."""
        raise NotImplementedError

    def _refuse(self, value: Tensor) -> None:
        rank = len(self.event_shape)
        if value.ndim < rank or value.shape[value.ndim - rank :] != self.event_shape:
            raise ShapeError(
                f"A value of shape {tuple(value.shape)}", f"(..., {', '.join(map(str, self.event_shape))})"
            )
        bad = ~self._possible(value.detach())
        if bool(bad.any()):
            place = tuple(bad.nonzero()[0].tolist())
            raise SupportError(f"Step {place[-1]} holds {value[place].tolist()}", f"values of {self.support}")

    def log_prob(self, value: Tensor) -> Tensor:
        self._refuse(value)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        flat = value.reshape(-1, *self.event_shape)
        n = len(flat)
        moves = self.transition if self.transition.ndim == 2 else self.transition.repeat(n, 1, 1)
        chain = chains.Chain(self.initial, moves, self._potentials(flat), torch.full((n,), self.duration))
        nats = chains.log_likelihood(chain).reshape(batch)
        return nats.expand(torch.broadcast_shapes(batch, self.batch_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return self._simulate(shape[: len(shape) - len(self.event_shape)].numel()).reshape(shape)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "_Sequence":
        wide = copy.copy(self)
        dist.TorchDistribution.__init__(wide, torch.Size(batch_shape), self.event_shape, validate_args=False)
        return wide


class HiddenMarkov(_Sequence):
    """A hidden Markov model over sequences of one length as a distribution, its states summed out exactly.

    Arguments:
        initial: Logits of p(z_1), shape (S,); the first observation is emitted by it (unlike Pyro's DiscreteHMM).
        transition: Logits of p(z_t | z_{t-1}), shape (S, S) or (duration, S, S), entry t for the move into step t.
        observation: A Pyro distribution of batch shape (S,), or (duration, S), and any event shape.
        duration: Steps, T.

    Event shape (T, *observation.event_shape). ``log_prob`` is differentiable in all three, by the expected counts.

    Raises:
        ShapeError: shapes that do not fit together, at the start or of a value.
        ParameterError: logits that are NaN or infinite, or a row of -inf alone.
        SupportError: in ``log_prob``, a value that no state can emit, NaN among them.
    """

    def __init__(self, initial: Tensor, transition: Tensor, observation: dist.TorchDistribution, duration: int) -> None:
        size = initial.shape[-1] if initial.ndim else 0
        steps = transition.shape[:-2]
        whole = isinstance(duration, int) and not isinstance(duration, bool) and duration >= 1
        fits = whole and initial.ndim == 1 and transition.shape[-2:] == (size, size) and steps in ((), (duration,))
        if not fits or observation.batch_shape not in ((size,), (duration, size)):
            raise ShapeError(
                f"initial {tuple(initial.shape)}, transition {tuple(transition.shape)}, observation with batch "
                f"{tuple(observation.batch_shape)}, duration={duration}",
                "(S,), (S, S) or (T, S, S), batch (S,) or (T, S), and at least one step",
            )
        _refuse_rows(initial, "initial")
        _refuse_rows(transition, "transition")
        self.initial, self.transition = (initial.log_softmax(-1), transition.log_softmax(-1))
        self.observation: Any = observation
        self.duration = duration
        super().__init__(torch.Size(), torch.Size([duration, *observation.event_shape]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.observation.support, 1)

    def _possible(self, value: Tensor) -> Tensor:
        before = value.unsqueeze(-1 - len(self.observation.event_shape))
        inside = self.observation.support.check(before)
        return inside.expand(*value.shape[: value.ndim - len(self.observation.event_shape)], -1).any(-1)

    def _potentials(self, value: Tensor) -> Tensor:
        before = value.unsqueeze(-1 - len(self.observation.event_shape))  # a place for the states
        return self.observation.log_prob(before).reshape(len(value) * self.duration, -1)

    def _simulate(self, n: int) -> Tensor:
        state = dist.Categorical(logits=self.initial).sample((n,))
        steps = []
        for t in range(self.duration):
            if t:
                moves = self.transition if self.transition.ndim == 2 else self.transition[t]
                state = dist.Categorical(logits=moves[state]).sample()
            drawn = self.observation.sample((n,))  # (n, S, ...) or (n, T, S, ...)
            drawn = drawn[:, t] if len(self.observation.batch_shape) == 2 else drawn
            steps.append(drawn[torch.arange(n), state])
        return torch.stack(steps, 1)


def _refuse_rows(logits: Tensor, name: str) -> None:
    bad = logits.isnan().any() | torch.isposinf(logits).any() | torch.isneginf(logits).all(-1).any()
    if bool(bad):
        raise ParameterError(
            f"{name} with NaN, inf, or a row of -inf alone",
            "logits with a finite one in each row",
            "-inf forbids a move",
        )


def _support_of(event: Event) -> constraints.Constraint:
    """What one step may be, cell by cell: event shape (width,)."""
    step = event.step  # type: ignore[attr-defined]
    if isinstance(event, Panel):
        cells = [_column_support(step, column) for column in step.columns.values()]
    else:
        cells = [_cell_support(step, i) for i in range(max(step.dims, 1))]
    same = all(cell is cells[0] for cell in cells)
    return constraints.independent(cells[0] if same else constraints.cat(cells, -1), 1)


def _column_support(step: Table, column: Column) -> constraints.Constraint:
    if isinstance(column, Category):
        return constraints.integer_interval(0, len(column.levels) - 1)
    return _cell_support(step.cell_event(column), 0)


def _cell_support(step: Array, i: int) -> constraints.Constraint:
    if step.levels is not None:
        return constraints.integer_interval(0, int(step.cell_levels[i]) - 1)
    named = {
        "real": constraints.real, "positive": constraints.positive, "unit": constraints.unit_interval,
        "count": constraints.nonnegative_integer,
    }  # fmt: skip
    return named[step.support]


class OfModel(_Sequence):
    """A model's own distribution over one sequence, reading its parameters in place; event shape (T, width)."""

    def __init__(self, hmm: "HMM", duration: int, inputs: Tensor | None) -> None:
        self.hmm, self.duration, self.inputs = hmm, duration, inputs
        given = None if inputs is None else Ragged(inputs, torch.tensor([len(inputs)]))
        self.initial, self.transition = hmm.transitions(hmm._inputs(given))
        self._step = _support_of(hmm.event)
        super().__init__(torch.Size(), torch.Size([duration, hmm.emission.width]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self._step, 1)

    def _possible(self, value: Tensor) -> Tensor:
        seen = ~value.isnan()
        filled = torch.where(seen, value, self.hmm.emission.filler)
        whole = ~value.isinf().any(-1) & (seen.all(-1) | self.hmm.event.missing)  # type: ignore[attr-defined]
        return self._step.check(filled) & whole

    def _potentials(self, value: Tensor) -> Tensor:
        n = len(value)
        if self.hmm.emission.lags and bool(value.isnan().any()):
            raise DataError("A gap in an autoregressive sequence", "complete steps, read again", "Fill the gap")
        lengths = torch.full((n,), self.duration)
        given = None if self.inputs is None else Ragged(self.inputs.repeat(n, 1), lengths)
        return self.hmm._potentials(self.hmm._rows(Ragged(value.reshape(n * self.duration, -1), lengths), given))

    def _simulate(self, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))  # Pyro draws from torch's global one
        given = None if self.inputs is None else Ragged(self.inputs, torch.tensor([self.duration]))
        return simulate(self.hmm, n, given, self.duration, generator).values
