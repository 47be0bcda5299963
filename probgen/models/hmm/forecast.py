"""What comes next: the distribution of the steps after a sequence."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen import chains
from probgen.emissions import Product
from probgen.errors import ParameterError, ShapeError, StructureError
from probgen.events import Ragged
from probgen.logprob import Kind, LogProb
from probgen.models.hmm.queries import _possible, ahead, run, seeded

if TYPE_CHECKING:
    from probgen.models.hmm.hmm import HMM


@dataclass(frozen=True, eq=False)
class Forecast:
    """p(x_{T+1}, ..., x_{T+h} | x_1, ..., x_T) of n sequences: at each step a mixture over the states.

    Arguments:
        hmm: The model.
        log_state: log p(z_{T+s} | x), shape (n, h, S).
        matrix: Log moves, (S, S) or (h, S, S).
        inputs: Of the h steps, shape (h, p), or None.
        last: The latest rows, for emissions with lags, shape (n, lags * width), or None.
    """

    hmm: "HMM"
    log_state: Tensor
    matrix: Tensor
    inputs: Tensor | None
    last: Tensor | None

    @property
    def states(self) -> np.ndarray:
        """p(z_{T+s} = k | x), shape (n, h, K)."""
        from probgen.models.hmm.queries import _regimes

        return _regimes(self.hmm, self.log_state.exp()).numpy()

    @torch.no_grad()
    def log_prob(self, x: Any) -> LogProb:
        """Joint log-probability of what came, in nats.

        Arguments:
            x: n sequences of h steps, in any form that the event takes.
        """
        checked = self._check(x)
        answer = LogProb(Kind.EXACT, chains.log_likelihood(self._chain(checked.x)), by="forecast, states summed")
        return answer.replace(event=checked.about, measure=checked.about.measure, of="x_future|x_past")

    @torch.no_grad()
    def log_prob_steps(self, x: Any) -> np.ndarray:
        """log p(x_{T+s} | x_1, ..., x_T) of each step apart, none seen before the next, in nats, shape (n, h)."""
        self._plain("Steps apart")
        potentials = self._chain(self._check(x).x).table.reshape(self.log_state.shape)
        return (potentials + self.log_state).logsumexp(2).numpy()

    @torch.no_grad()
    def mean(self) -> np.ndarray:
        """Shape (n, h, width); categories have none that means something, but for their codes."""
        self._plain("A mean")
        return torch.einsum("nhs,hsw->nhw", self.log_state.exp(), self._of_states("mean")).numpy()

    @torch.no_grad()
    def variance(self) -> np.ndarray:
        """Shape (n, h, width)."""
        self._plain("A variance")
        mean, weights = self._of_states("mean"), self.log_state.exp()
        second = torch.einsum("nhs,hsw->nhw", weights, self._of_states("variance") + mean.square())
        return (second - torch.einsum("nhs,hsw->nhw", weights, mean).square()).numpy()

    @torch.no_grad()
    def quantile(self, q: float) -> np.ndarray:
        """The least value that at least a share q of the mass does not exceed, per cell, shape (n, h, width).

        Raises:
            ParameterError: q outside (0, 1).
            StructureError: an emission whose steps ahead are no mixture in closed form; sample() still works.
        """
        if isinstance(q, bool) or not isinstance(q, int | float) or not 0 < q < 1:
            raise ParameterError(f"q={q!r}", "a share between 0 and 1")
        self._plain("A quantile")
        discrete = _whole_cells(self.hmm.emission)
        mean = torch.as_tensor(self.mean()).nan_to_num(0.0, 0.0, 0.0)
        spread = torch.as_tensor(self.variance()).clamp(min=0).sqrt() + torch.finfo(torch.float64).tiny
        spread = torch.where(spread.isfinite(), spread, mean.abs() + 1.0)  # heavy tails have no moments, but quantiles
        low, high = self._bracket(mean, spread, q)
        for _ in range(200):
            middle = (low + high) / 2
            middle = torch.where(discrete, middle.floor(), middle)
            above = self._cdf(middle) >= q
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            if bool((high - low <= torch.where(discrete, 1.0, 1e-12 * spread)).all()):
                break
        step = _steps_of(self.hmm.emission)
        return torch.where(step > 0, (high / step.clamp(min=1e-300)).round() * step, high).numpy()

    def _bracket(self, mean: Tensor, spread: Tensor, q: float) -> tuple[Tensor, Tensor]:
        low, high = (mean - spread).floor() - 1, (mean + spread).ceil() + 1
        for _ in range(1100):
            short, long = self._cdf(high) < q, self._cdf(low) >= q
            if not bool(short.any() | long.any()):
                return low, high
            high = torch.where(short, mean + 2 * (high - mean), high)
            low = torch.where(long, mean - 2 * (mean - low), low)
        raise StructureError(f"No quantile {q}", "an emission whose cells have a distribution function")

    def _cdf(self, x: Tensor) -> Tensor:
        """Mass at or below each cell of x, (n, h, width)."""
        n, h, width = x.shape
        table = self.hmm.emission.cdf(self._with_inputs(x.reshape(n * h, width), n))[:, self.hmm._uses]
        return torch.einsum("nhs,nhsw->nhw", self.log_state.exp(), table.reshape(n, h, -1, width))

    def sample(self, n: int = 1000, seed: int | None = None) -> np.ndarray:
        """n joint draws of each sequence's future, shape (sequences, n, h, width)."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ParameterError(f"n={n!r}", "a whole number of draws, at least 1")
        generator = seeded(seed)
        drawn = []
        with torch.no_grad():
            for i, first in enumerate(self.log_state[:, 0].exp()):
                state = torch.multinomial(first.expand(n, -1), 1, generator=generator)[:, 0]
                last = None if self.last is None else self.last[i].expand(n, -1)
                h = self.log_state.shape[1]
                drawn.append(run(self.hmm, state, self.matrix, self.inputs, h, generator, last))
        return torch.stack(drawn).numpy()

    def _plain(self, what: str) -> None:
        if self.hmm.emission.lags:
            raise StructureError(
                f"{what} of an autoregressive forecast",
                "an emission without lags: here each step depends on drawn steps",
                "Use sample(), and take means or quantiles of the draws",
            )

    def _check(self, x: Any) -> Any:
        checked = self.hmm._check(x)
        n, h = self.log_state.shape[:2]
        if len(checked) != n or bool((checked.x.lengths != h).any()):
            raise ShapeError(
                f"{len(checked)} sequences of lengths {checked.x.lengths.tolist()[:8]}", f"{n} of {h} steps each"
            )
        return checked

    def _chain(self, x: Ragged) -> chains.Chain:
        n = len(x)
        rows = self.hmm._rows(x, None)
        if self.last is not None:
            rows = self._continued(x)
        elif self.inputs is not None:
            rows = self._with_inputs(rows, n)
        moves = self.matrix if self.matrix.ndim == 2 else self.matrix.repeat(n, 1, 1)
        return chains.Chain(self.log_state[:, 0], moves, self.hmm._potentials(rows), x.lengths)

    def _with_inputs(self, cells: Tensor, n: int) -> Tensor:
        if self.inputs is None or not self.hmm.emission.covariates:
            return cells
        return torch.cat([cells, self.inputs.repeat(n, 1)], 1)

    def _continued(self, x: Ragged) -> Tensor:
        """Rows whose lags reach back into the past."""
        n, h = self.log_state.shape[:2]
        width = self.hmm.emission.width
        past = torch.as_tensor(self.last).reshape(n, -1, width).flip(1)
        full = torch.cat([past, x.values.reshape(n, h, width)], 1)
        lags = past.shape[1]
        windows = [full[:, lags - lag : lags - lag + h] for lag in range(lags + 1)]
        return torch.cat(windows, 2).reshape(n * h, -1)

    def _of_states(self, what: str) -> Tensor:
        """A moment of each chain state, shape (h or 1, S, width)."""
        if self.inputs is not None and self.hmm.emission.covariates:
            found = getattr(self.hmm.emission, what)(self.inputs)
        else:
            found = getattr(self.hmm.emission, what)()[None]
        return found[:, self.hmm._uses].expand(self.log_state.shape[1], -1, -1)


def _steps_of(emission: Any) -> Tensor:
    """What cells are rounded to, shape (width,); 0 where they are not."""
    if isinstance(emission, Product):
        return torch.cat([_steps_of(part) for part in emission.parts.values()])
    step = None if emission.event is None else emission.event.resolution
    return torch.full((emission.width,), step or 0.0, dtype=torch.float64)


def _whole_cells(emission: Any) -> Tensor:
    """Which cells are whole numbers, shape (width,)."""
    if isinstance(emission, Product):
        return torch.cat([_whole_cells(part) for part in emission.parts.values()])
    step = emission.event
    whole = step is not None and (step.levels is not None or step.support == "count")
    return torch.full((emission.width,), whole)


@torch.no_grad()
def forecast(hmm: "HMM", x: Ragged, given: Ragged | None, h: int, future: Any) -> Forecast:
    if isinstance(h, bool) or not isinstance(h, int) or h < 1:
        raise ParameterError(f"h={h!r}", "a whole number of steps, at least 1")
    inputs = _future(hmm, h, future)
    chain = hmm._chain(x, given)
    _possible(hmm, chain)
    _, state = chains.advance(chain)
    matrix = hmm.transitions.log_matrix(inputs if hmm.transitions.covariates else None)
    coming = []
    for s in range(h):
        state = ahead(state, matrix if matrix.ndim == 2 else matrix[s])
        coming.append(state)
    return Forecast(hmm, torch.stack(coming, 1), matrix, inputs, _latest(hmm, x))


def _future(hmm: "HMM", h: int, future: Any) -> Tensor | None:
    if hmm.context is None:
        if future is not None:
            raise ParameterError("future= for a model without inputs", "no inputs", "Leave it out")
        return None
    if future is None:
        raise ParameterError("A forecast without future=", f"the inputs of {h} steps, {hmm.context!r}")
    inputs = hmm.context.check(future).x
    if len(inputs) != 1 or int(inputs.lengths[0]) != h:
        raise ShapeError(f"future= of lengths {inputs.lengths.tolist()}", f"one sequence of {h} steps, for all")
    return inputs.values.reshape(h, -1)


def _latest(hmm: "HMM", x: Ragged) -> Tensor | None:
    """The last ``lags`` rows of each sequence, latest first, NaN before its start."""
    lags = hmm.emission.lags
    if not lags:
        return None
    cells = x.values.reshape(len(x.values), -1)
    out = torch.full((len(x), lags, cells.shape[1]), torch.nan, dtype=cells.dtype)
    for i, part in enumerate(cells.split(x.lengths.tolist())):
        recent = part[-lags:].flip(0)
        out[i, : len(recent)] = recent
    return out.reshape(len(x), -1)
