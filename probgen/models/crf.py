"""Linear-chain conditional random fields: p(labels | inputs), exact by the recursions of the hidden Markov models."""

import math
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from probgen import chains
from probgen.errors import FitError, ParameterError, ShapeError, StructureError
from probgen.events import Event, Ragged, Series
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel

__all__ = ["LinearChainCRF"]

_INNER = 5  # iterations of quasi-Newton between two looks at the objective


class LinearChainCRF(GenerativeModel):
    """p(y | u) = 1/Z(u) exp(initial[y_1] + sum_t (u_t W + bias)[y_t] + sum_{t>1} transition[y_{t-1}, y_t]).

    Exact. Labels that are missing (at random) are summed out: in ``log_prob``, and in ``fit``, which so learns from
    partly labelled sequences. Parameters are log-potentials, not log-probabilities; Z(u) is each sequence's own.

    Arguments:
        event: Series of labels, ``Series(levels=K)``.
        context: Series of the inputs of each step, ``Series((p,), missing=False)``; None: labels alone.

    Likelihoods in nats. Lafferty, McCallum and Pereira (2001).
    """

    missing_cells = True
    event: Series
    context: Series | None

    def __init__(self, event: Series, context: Series | None = None) -> None:
        super().__init__(event)
        if context is not None and (not isinstance(context, Series) or context.missing):
            raise StructureError(f"context={context!r}", "Series((p,), missing=False): inputs of each step", "Or None")
        self.context = context
        width = 0 if context is None else max(math.prod(context.shape), 1)
        size = _levels(event)
        self.weight = nn.Parameter(torch.zeros(width, size, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.initial = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.transition = nn.Parameter(torch.zeros(size, size, dtype=torch.float64))
        self.n_rows, self.log_likelihood = 0, math.nan

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Series):
            return f"its observations are sequences of labels, not {type(event).__name__}"
        if event.shape != () or not isinstance(event.levels, int):
            return "its steps are single labels: Series(levels=K)"
        return None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)  # type: ignore[arg-type]

    # Chains

    def _chain(self, x: Ragged, given: Ragged | None, labelled: bool) -> chains.Chain:
        """Of all labels, or only of those that agree with the known ones."""
        self._refuse_nan()
        table = self.bias.expand(len(x.values), -1)
        if given is not None:
            table = table + given.values.reshape(len(x.values), -1) @ self.weight
        if labelled:
            codes = x.values.reshape(-1, 1)
            known = codes.isnan() | (codes == torch.arange(len(self.bias), dtype=codes.dtype))
            table = torch.where(known, table, -torch.inf)
        # a constant in all moves cancels against Z; without it no power of e is too large
        moves = self.transition - self.transition.max().detach()
        return chains.Chain(self.initial - self.initial.max().detach(), moves, table, x.lengths)

    def _nats(self, x: Ragged, given: Ragged | None) -> Tensor:
        """log p(known labels | inputs), (n,)."""
        above = chains.log_likelihood(self._chain(x, given, labelled=True))
        return above - chains.log_likelihood(self._chain(x, given, labelled=False))

    def _refuse_nan(self) -> None:
        for name, value in self.named_parameters():
            if not bool(value.isfinite().all()):
                raise ParameterError(f"{name} holds NaN or infinity", "finite numbers", "Fit the model again")

    # Hooks

    def model(self, x: Ragged | None = None, given: Ragged | None = None, n: int = 1) -> Ragged:
        """The program: one factor site, "labels", of log p(y | u) a sequence, inside the plate "rows".

        Without x the labels are drawn (n sequences for one of inputs) and the site scores them.
        """
        if x is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
            x = self._sample(n, given, generator=generator)
            given = None if given is None else given[[0] * n]
        with pyro.plate("rows", len(x), dim=-1):
            pyro.factor("labels", self._nats(x, given))
        return x

    def _fit(
        self,
        x: Ragged,
        given: Ragged | None,
        *,
        generator: torch.Generator,
        l2: float = 0.0,
        max_iter: int = 500,
        tol: float = 1e-8,
    ) -> FitReport:
        """Maximises the mean log-likelihood a step less l2/2 times the sum of squared parameters, by quasi-Newton.

        ``tol``: gain in nats a step below which five iterations count as converged. Concave where all labels are known.
        """
        for name, value in (("l2", l2), ("tol", tol)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ParameterError(f"{name}={value!r}", "a number from 0")
        if isinstance(max_iter, bool) or not isinstance(max_iter, int) or max_iter < 1:
            raise ParameterError(f"max_iter={max_iter!r}", "a whole number, at least 1")
        began, seen = time.perf_counter(), int((~x.values.isnan()).sum())
        if not seen:
            raise StructureError("No label is known", "some labelled steps", "Check the data")
        self._break_ties(x, generator)
        parameters = list(self.parameters())
        optimiser = torch.optim.LBFGS(
            parameters, max_iter=_INNER, tolerance_grad=1e-10, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            penalty = sum((p.square().sum() for p in parameters), torch.zeros((), dtype=torch.float64))
            loss = 0.5 * l2 * penalty - self._nats(x, given).sum() / len(x.values)
            optimiser.zero_grad()
            loss.backward()
            return float(loss.detach())

        values, steps, stopped = self._ascend(optimiser, closure, max_iter, tol)
        optimiser.zero_grad()
        with torch.no_grad():
            self.n_rows, self.log_likelihood = len(x), float(self._nats(x, given).sum())
        return FitReport(tuple(values), steps, stopped, time.perf_counter() - began)

    def _break_ties(self, x: Ragged, generator: torch.Generator) -> None:
        """With labels that are never seen the start must not be symmetric."""
        if bool(x.values.isnan().any()) and not any(bool(p.detach().any()) for p in self.parameters()):
            for p in self.parameters():
                p.data = 0.01 * torch.randn(p.shape, generator=generator, dtype=p.dtype)

    def _ascend(
        self, optimiser: torch.optim.Optimizer, closure: Callable[[], float], max_iter: int, tol: float
    ) -> tuple[list[float], int, str]:
        values, steps = [-closure()], 0
        while steps < max_iter:
            before = [p.detach().clone() for p in self.parameters()]
            optimiser.step(closure)
            steps += _INNER
            values.append(-closure())
            if values[-1] >= values[-2]:
                if values[-1] - values[-2] < tol:
                    return values, steps, "converged"
                continue
            for p, old in zip(self.parameters(), before, strict=True):
                p.data = old
            if not math.isfinite(values[-1]):
                came = f"The objective became {values[-1]} after {steps} iterations"
                raise FitError(came, "finite numbers", "The model keeps its last good state; try l2=0.01", step=steps)
            return values[:-1], steps, "converged"
        return values, steps, "steps"

    def _log_prob(self, x: Ragged, given: Ragged | None, *, generator: torch.Generator) -> LogProb:
        return LogProb(Kind.EXACT, self._nats(x, given), by="chain")

    def _log_prob_steps(self, x: Ragged, given: Ragged | None, *, generator: torch.Generator) -> LogProb:
        """log p(y_t | y_1..y_{t-1}, all inputs): given its inputs the field is a Markov chain forwards in time."""
        free = self._chain(x, given, labelled=False)
        ahead = free.table + chains.logspace.backward(free)
        initial = (free.initial + ahead[free.starts]).log_softmax(1)
        moves = (free.transition + ahead[:, None]).log_softmax(2)
        seen = torch.where(torch.isneginf(self._chain(x, given, labelled=True).table), -torch.inf, 0.0)
        nats = chains.filter(chains.Chain(initial, moves, seen.to(torch.float64), x.lengths)).nats
        return LogProb(Kind.EXACT, nats, by="chain")

    def _sample(self, n: int, given: Ragged | None, *, generator: torch.Generator, length: int = 20) -> Ragged:
        """``length``: steps of each sequence where there are no inputs; else n sequences for the one of inputs."""
        if given is not None and len(given) != 1:
            raise ShapeError(f"given= holds {len(given)} sequences of inputs", "one, for which n sequences are drawn")
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ParameterError(f"length={length!r}", "a whole number of steps, at least 1")
        steps = length if given is None else int(given.lengths[0])
        unknown = Ragged(torch.full((steps,), torch.nan, dtype=torch.float64), torch.tensor([steps]))
        with torch.no_grad():
            paths = chains.sample(self._chain(unknown, given, labelled=False), n, generator)
        return Ragged(paths.reshape(-1).to(torch.float64), torch.full((n,), steps))

    # Questions

    @torch.no_grad()
    def decode(self, x: Any = None, *, given: Any = None) -> list[np.ndarray]:
        """The most probable labels, an int array (T,) a sequence; those known in x stay (Viterbi 1967)."""
        cells, inputs = self._asked(x, given)
        path, _ = chains.viterbi(self._chain(cells, inputs, labelled=True))
        return [part.numpy() for part in path.split(cells.lengths.tolist())]

    @torch.no_grad()
    def marginals(self, x: Any = None, *, given: Any = None) -> list[np.ndarray]:
        """p(y_t | inputs, labels known in x), an array (T, K) a sequence."""
        cells, inputs = self._asked(x, given)
        found = chains.posterior(self._chain(cells, inputs, labelled=True)).marginals
        return [part.numpy() for part in found.split(cells.lengths.tolist())]

    def _asked(self, x: Any, given: Any) -> tuple[Ragged, Ragged | None]:
        """Checked labels and inputs; without x no label is known."""
        self._check_fitted()
        if x is not None:
            checked = self._check(x)
            return checked.x, self._check_given(given, checked)
        inputs = self._check_given(given, None)
        if inputs is None:
            raise ParameterError("Neither x nor given=", "inputs, labels with gaps, or both")
        return Ragged(torch.full((len(inputs.values),), torch.nan, dtype=torch.float64), inputs.lengths), inputs

    @property
    def n_params(self) -> int:
        """Free parameters: constants that cancel against Z are none."""
        size = len(self.bias)
        return len(self.weight) * (size - 1) + size * size + size - 2


def _levels(event: Series) -> int:
    if not isinstance(event.levels, int):
        raise StructureError(f"event={event!r}", "Series(levels=K)")
    return event.levels
