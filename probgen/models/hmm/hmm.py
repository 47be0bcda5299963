"""Hidden Markov models of any emission and any transitions. Exact."""

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from probgen import chains, emissions
from probgen.errors import DataError, ParameterError, ShapeError, StructureError
from probgen.events import Event, Panel, Ragged, Series
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.hmm import bayes, learning, pictures, program, queries, uncertainty
from probgen.models.hmm import forecast as forecasts
from probgen.posterior import GROWING, METHODS, Kept, prior_numbers
from probgen.transitions import Markov, Transitions

if TYPE_CHECKING:
    from probgen.posterior import Draws

__all__ = ["HMM"]

_BLOCK = 1 << 22  # entries of a table (steps, states) that log_prob holds at once


class HMM(GenerativeModel):
    """p(x) = sum over paths of p(z_1) prod_t p(z_t | z_{t-1}) p(x_t | z_t): exact, missing cells integrated out.

    Arguments:
        event: Series or Panel; None takes the series that the emission emits.
        states: K.
        emission: p(x_t | z_t), from ``probgen.emissions``; None takes the one that suits the event.
        transitions: p(z_t | z_{t-1}) and p(z_1), from ``probgen.transitions``: Markov (free, with structural zeros,
            sticky, stationary), InputDriven, Durations, Factorial; None takes Markov().
        tie: The emission that each state uses, K numbers from 0; equal numbers share one. None: each its own.
        context: Series of the inputs of each step, for transitions or emissions that take them.

    The first observation is emitted by the initial state: there is no transition before it (as in Rabiner 1989 and
    hmmlearn; Pyro's DiscreteHMM has one). Likelihoods in nats. Baum, Petrie, Soules and Weiss (1970).
    """

    missing_cells = True
    growing = GROWING
    event: Series | Panel
    context: Series | None
    emission: emissions.Emission
    transitions: Transitions
    _uses: Tensor

    def __init__(
        self,
        event: Event | None = None,
        states: int = 3,
        emission: emissions.Emission | None = None,
        transitions: Transitions | None = None,
        tie: Sequence[int] | None = None,
        context: Series | None = None,
    ) -> None:
        if isinstance(event, int) and not isinstance(event, bool):
            raise ParameterError(f"event={event}", "an event, or states=... by name", f"HMM(states={event}, ...)")
        if isinstance(states, bool) or not isinstance(states, int) or states < 1:
            raise ParameterError(f"states={states!r}", "a whole number, at least 1")
        super().__init__(_event_of(emission) if event is None else event)
        self.states, self.context = states, context
        self.tie = None if tie is None else _checked_tie(tie, states)
        chosen = emissions.for_event(self.event.step) if emission is None else emission
        width = max(math.prod(self.event.shape), 1)
        if not isinstance(chosen, emissions.Emission) or chosen.width != width:
            raise StructureError(
                f"emission={chosen!r}", f"an emission over {width} cells", "probgen.emissions.for_event"
            )
        _refuse_support(self.event, chosen)
        self.emission = chosen.with_states(states if self.tie is None else max(self.tie) + 1)
        moves = Markov() if transitions is None else transitions
        if not isinstance(moves, Transitions):
            raise StructureError(f"transitions={transitions!r}", "a part of probgen.transitions", "Markov(), say")
        self.transitions = moves.with_states(states)
        if self.transitions.states != states:
            raise StructureError(f"states={states} with {moves!r}", f"states={self.transitions.states}, those it has")
        self.register_buffer("_uses", self._uses_of(), persistent=False)
        self.kept = Kept()
        self._check_inputs()
        self.n_rows = 0
        self.log_likelihood = math.nan

    def _uses_of(self) -> Tensor:
        regimes = self.transitions.emitting()
        return regimes if self.tie is None else torch.tensor(self.tie)[regimes]

    def _check_inputs(self) -> None:
        """Inputs are declared where a part needs them, and only there."""
        wanted = {
            part: n
            for part, n in (("transitions", self.transitions.covariates), ("emission", self._emission_inputs))
            if n
        }
        given = 0 if self.context is None else max(math.prod(self.context.shape), 1)
        if any(n != given for n in wanted.values()) or (given and not wanted):
            needs = " and ".join(f"{part} take {n}" for part, n in wanted.items()) or "no part takes inputs"
            raise StructureError(
                f"context={self.context!r} where {needs}", "context=Series((p,), missing=False) of their number"
            )
        if self.context is not None and self.context.missing:
            raise StructureError(f"context={self.context!r}", "missing=False: inputs have no distribution to fill gaps")

    @property
    def _emission_inputs(self) -> int:
        return 0 if self.emission.lags else self.emission.covariates

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Series | Panel):
            return f"its observations are sequences, not {type(event).__name__}"
        chosen = emissions.for_event(event.step)
        return chosen if isinstance(chosen, str) else None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)

    @classmethod
    def variants(cls, event: Event) -> dict[str, dict[str, Any]]:
        """What ``compare`` tries: several numbers of states."""
        return {f"HMM({k})": {"states": k} for k in (2, 3, 4)}

    # Hooks

    def model(self, x: Ragged | None = None, given: Ragged | None = None, n: int = 1) -> Ragged:
        return program.model(self, x, given, n)

    def bayes_model(self, x: Any, given: Any = None) -> None:
        """A Pyro program with priors over the parameters and the states summed out, for NUTS and SVI.

        Sites: one for each raw parameter, "emission.loc" and the like; ``natural_of(draws)`` makes them readable.
        """
        checked = self._check(x)
        program.bayes_model(self, checked.x, self._check_given(given, checked))

    def natural_of(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws of ``bayes_model``'s sites, each (S, ...), as interpretable parameters, each (S, ...)."""
        return program.natural_of(self, draws)

    def distribution(self, duration: int, given: Any = None) -> program.OfModel:
        """This model as one site of a larger Pyro program: a distribution over one sequence of ``duration`` steps.

        Event shape (duration, width), categories as codes, NaN where missing; gradients reach the model's parameters.
        ``log_prob`` raises ShapeError for another shape and SupportError for a value that no step can have.
        """
        if isinstance(duration, bool) or not isinstance(duration, int) or duration < 1:
            raise ParameterError(f"duration={duration!r}", "a whole number of steps, at least 1")
        inputs = self._check_given(given, None)
        if inputs is not None and inputs.lengths.tolist() != [duration]:
            raise ShapeError(f"given= of lengths {inputs.lengths.tolist()[:8]}", f"one sequence of {duration} steps")
        self._refuse_nan()
        return program.OfModel(self, duration, None if inputs is None else inputs.values.reshape(duration, -1))

    def _fit(
        self,
        x: Ragged,
        given: Ragged | None,
        *,
        generator: torch.Generator,
        method: str = "em",
        restarts: int = 5,
        max_iter: int = 500,
        tol: float = 1e-7,
        start: str = "random",
        labels: Any = None,
        budget: float | None = None,
        progress: bool | None = None,
        draws: int = 500,
        chains: int = 4,
        warmup: int = 500,
    ) -> FitReport:
        """Maximises the penalised log-likelihood; the best of several starts is kept, the spread of optima reported.

        ``method``: "em", monotone or it raises, or "gradient", quasi-Newton on the exact likelihood. "nuts", "svi" and
        "laplace" draw from the posterior under ``bayes_model``'s priors, ``draws`` of each of ``chains`` chains, NUTS
        after ``warmup`` transitions: ``.draws`` has them, ``log_prob`` and ``sample`` average over them, and the
        parameters in place are the posterior mode. States may change places within and between chains.
        ``max_iter``: iterations of EM or of quasi-Newton, the ``steps`` of the report.
        ``tol``: gain in nats a step below which an iteration of EM, or five of quasi-Newton, count as converged.
        ``start``: "random", or "current" to go on from the parameters as they are (one run).
        ``labels``: states that are known, a list of one array a sequence, -1 where unknown (semi-supervised). The
        objective is then of data and labels; ``log_likelihood``, aic and bic stay those of the data.
        ``budget``: seconds, turned once into a number of restarts and iterations, which the report records.
        """
        if start == "current":
            self._check_fitted()
        data = learning.Data(self._rows(x, given), x.lengths, self._inputs(given), self._label_mask(labels, x))
        climb = method if method not in METHODS else "em"
        plan = learning.Plan(climb, restarts, max_iter, tol, start, budget, progress)
        if method in METHODS:
            from probgen.posterior import Plan

            drawing = Plan(method, draws, chains, warmup, progress=progress)
            return bayes.fit_bayes(self, data, x, given, generator, drawing, plan)
        report = learning.fit(self, data, generator, plan)
        self.kept.clear()
        return report

    def _label_mask(self, labels: Any, x: Ragged) -> Tensor | None:
        """Log of which chain states a label allows, shape (total, S)."""
        if labels is None:
            return None
        given = Series(levels=max(self.states, 2)).check(_labels(labels)).x
        if bool((given.values >= self.states).any()):
            raise DataError(f"a label {int(given.values.nan_to_num().max())}", f"states 0..{self.states - 1}")
        if not torch.equal(given.lengths, x.lengths):
            raise DataError(f"labels of lengths {given.lengths.tolist()[:8]}", "one label a step", "-1 where unknown")
        codes = given.values
        regimes = self.transitions.emitting().to(codes.dtype)
        known = codes.isnan()[:, None] | (codes[:, None] == regimes)
        return torch.zeros(known.shape, dtype=torch.float64).masked_fill(~known, -torch.inf)

    def _rows(self, x: Ragged, given: Ragged | None) -> Tensor:
        """What the emission reads: cells, then inputs or earlier cells, shape (total, width + covariates)."""
        cells = x.values.reshape(len(x.values), -1)
        if self.emission.lags:
            return torch.cat([cells, lagged(cells, x.lengths, self.emission.lags)], 1)
        if self.emission.covariates and given is not None:
            return torch.cat([cells, given.values.reshape(len(cells), -1)], 1)
        return cells

    def _inputs(self, given: Ragged | None) -> Tensor | None:
        """What the transitions read, shape (total, p)."""
        if given is None or not self.transitions.covariates:
            return None
        return given.values.reshape(len(given.values), -1)

    def _potentials(self, rows: Tensor) -> Tensor:
        """log p(x_t | chain state), shape (total, S)."""
        if torch.is_grad_enabled():
            table = self.emission.log_prob(rows)
        else:
            size = max(1024, (1 << 19) // (self.emission.states * rows.shape[1]))
            parts = [self.emission.log_prob(part) for part in rows.split(size)]
            table = parts[0] if len(parts) == 1 else torch.cat(parts)
        plain = self.transitions.size == self.emission.states and self.tie is None
        return table if plain and len(self._uses) == self.states else table[:, self._uses]

    def _source(self, rows: Tensor) -> Tensor | chains.Normals:
        """The potentials, left to the recursion where it makes them on the fly."""
        emission = self.emission
        if type(emission) is not emissions.Normal or emission.matrix:
            return self._potentials(rows)
        return chains.Normals(rows, emission.loc[self._uses], emission.scale()[self._uses])

    def _chain(self, x: Ragged, given: Ragged | None) -> chains.Chain:
        self._refuse_nan()
        source = self._source(self._rows(x, given))
        return chains.Chain(*self.transitions(self._inputs(given)), source, x.lengths)

    def _refuse_nan(self) -> None:
        for name, p in self.named_parameters():
            if bool(p.isnan().any()):
                raise ParameterError(
                    f"{name} holds NaN", "numbers", "Fit the model again, or load it where it was whole"
                )

    def _log_prob(self, x: Ragged, given: Ragged | None, *, generator: torch.Generator) -> LogProb:
        if self.kept:
            return bayes.parametric(self).log_prob(x, given)
        by = f"{self.transitions.size} states summed"
        return LogProb(Kind.EXACT, queries.log_likelihood(self, x, given, _BLOCK), by=by)

    def _log_prob_steps(self, x: Ragged, given: Ragged | None, *, generator: torch.Generator) -> LogProb:
        if self.kept:
            return bayes.parametric(self).log_prob_steps(x, given)
        nats = chains.filter(self._chain(x, given)).nats
        return LogProb(Kind.EXACT, nats, by=f"{self.transitions.size} states summed")

    def _sample(self, n: int, given: Ragged | None, *, generator: torch.Generator, length: int = 20) -> Ragged:
        """``length``: steps of each sequence; with inputs, theirs."""
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ParameterError(f"length={length!r}", "a whole number of steps, at least 1")
        self._refuse_nan()
        if self.kept:
            return bayes.parametric(self, length).sample(n, given, generator)
        return queries.simulate(self, n, given, length, generator)

    # The posterior of the parameters

    @property
    def draws(self) -> "Draws | None":
        """Of the parameters, after a Bayesian fit; else None."""
        return bayes.parametric(self).draws() if self.kept else None

    def _log_lik_draws(self, x: Ragged, given: Ragged | None, generator: torch.Generator) -> Tensor:
        return bayes.parametric(self).log_lik(x, given)

    def _log_prior_draws(self) -> Tensor:
        return bayes.parametric(self).log_prior()

    _parametric = bayes.parametric
    _prior_numbers = prior_numbers

    def _sample_prior(self, n: int, given: Ragged | None, generator: torch.Generator, length: int = 20) -> Ragged:
        return bayes.parametric(self, length).sample_prior(n, given, generator)

    # Questions

    def filter(self, x: Any, *, given: Any = None) -> list[np.ndarray]:
        """p(z_t | x_1, ..., x_t): an array (T, K) a sequence."""
        return queries.filtered(self, *self._asked(x, given))

    def predict(self, x: Any, *, given: Any = None) -> list[np.ndarray]:
        """p(z_t | x_1, ..., x_{t-1}), states one step ahead: an array (T, K) a sequence."""
        return queries.predicted(self, *self._asked(x, given))

    def posterior(self, x: Any, *, given: Any = None, pairs: bool = False) -> "queries.StatePosterior":
        """p(z_t | x) and, if asked for, p(z_{t-1}, z_t | x), given each whole sequence.

        Raises:
            ZeroEvidenceError: a sequence has probability zero; its first impossible step is named.
        """
        return queries.posterior(self, *self._asked(x, given), pairs)

    def decode(self, x: Any, method: str = "viterbi", *, given: Any = None) -> list[np.ndarray]:
        """States, an int array (T,) a sequence.

        Arguments:
            method: "viterbi", the most probable path of the states (Viterbi 1967; with durations too, the last visit
                unfinished), or "marginal", at each step the most probable state, which makes the fewest expected
                mistakes but may be an impossible path.

        Raises:
            ZeroEvidenceError: as of ``posterior``.
        """
        if method not in ("viterbi", "marginal"):
            raise ParameterError(f"method={method!r}", "viterbi or marginal")
        return queries.decode(self, *self._asked(x, given), method)

    def sample_paths(self, x: Any, n: int = 1, *, given: Any = None, seed: int | None = None) -> list[np.ndarray]:
        """n paths from p(z | x), an int array (n, T) a sequence: forward filtering, backward sampling (Scott 2002)."""
        return queries.sample_paths(self, *self._asked(x, given), n, seed)

    def forecast(self, x: Any, h: int = 1, *, given: Any = None, future: Any = None) -> "forecasts.Forecast":
        """p(x_{T+1}, ..., x_{T+h} | x) of each sequence.

        Arguments:
            given, future: Inputs of the steps seen and of the h steps to come, for models with inputs.
        """
        return forecasts.forecast(self, *self._asked(x, given), h, future)

    def standard_errors(self, x: Any, *, given: Any = None) -> dict[str, np.ndarray]:
        """Standard errors of the interpretable parameters at the fitted optimum, from the observed information.

        Raises:
            ParameterError: the fit is no interior optimum: a probability near 0 or 1, a variance at its floor, a slope.
        """
        return uncertainty.standard_errors(self, *self._asked(x, given))

    def plot(self, x: Any, path: str | PathLike, *, given: Any = None) -> Path:
        """The first sequence with its decoded states, the posterior over time and the transition graph, as PNG."""
        return pictures.plot(self, *self._asked(x, given), path)

    def _asked(self, x: Any, given: Any) -> tuple[Ragged, Ragged | None]:
        self._check_fitted()
        checked = self._check(x)
        return checked.x, self._check_given(given, checked)

    def _check(self, x: Any) -> Any:
        checked = super()._check(x)
        if self.emission.lags:
            _refuse_gaps(checked)
        return checked

    @property
    def n_params(self) -> int:
        """Free parameters; structural zeros are none."""
        return self.transitions.n_params + self.emission.n_params

    def aic(self) -> float:
        """Akaike's criterion of the fit, in nats: 2 n_params - 2 log-likelihood; lower is better."""
        self._check_fitted()
        return 2 * self.n_params - 2 * self.log_likelihood

    def bic(self) -> float:
        """Schwarz's criterion, in nats: n_params log(steps with a cell seen) - 2 log-likelihood; lower is better."""
        self._check_fitted()
        return self.n_params * math.log(self.n_rows) - 2 * self.log_likelihood

    def parameters_by_name(self) -> dict[str, np.ndarray]:
        """Interpretable parameters: "initial", "transition", and the emission's, each with states first."""
        with torch.no_grad():
            found = {**self.transitions.natural(), **self.emission.natural()}
        return {name: value.detach().clone().numpy() for name, value in found.items()}


def _event_of(emission: emissions.Emission | None) -> Series:
    step = getattr(emission, "event", None)
    if step is None:
        raise StructureError(
            "HMM without an event",
            "event=Series(...) or Panel(...), or an emission that names its own",
            "probgen.events.infer(data) makes one",
        )
    return Series(step.shape, step.support, step.levels, step.resolution, step.unit)


def _refuse_support(event: Event, emission: emissions.Emission) -> None:
    """A mass is no density, and a table of 3 levels has no fourth."""
    own = emission.event
    if own is None or not isinstance(event, Series):
        return
    step = event.step
    masses = (own.levels is not None or own.support == "count", step.levels is not None or step.support == "count")
    narrow = own.support in ("positive", "unit") and step.support != own.support
    levels = own.levels is not None and np.any(np.asarray(own.levels) != np.asarray(step.levels or math.inf))
    if masses[0] != masses[1] or narrow or levels:
        raise StructureError(f"emission={emission!r} for {event!r}", f"an emission over {step!r}", "Or another event")


def _labels(labels: Any) -> list[np.ndarray]:
    """Known states with NaN where unknown."""
    try:
        parts = [np.asarray(part, dtype=float) for part in labels]
    except (TypeError, ValueError) as problem:
        raise DataError(
            f"labels={labels!r:.80}", "a list of one array of states a sequence", "-1 where unknown"
        ) from problem
    return [np.where(part < 0, np.nan, part) for part in parts]


def _checked_tie(tie: Sequence[int], states: int) -> tuple[int, ...]:
    used = tuple(tie) if isinstance(tie, Sequence) else ()
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in used)
    if not whole or len(used) != states or set(used) != set(range(max(used, default=-1) + 1)):
        raise ParameterError(f"tie={tie!r}", f"{states} numbers that use 0, 1, ... without a gap")
    return used


def _refuse_gaps(checked: Any) -> None:
    bad = checked.x.values.reshape(len(checked.x.values), -1).isnan().any(1)
    if not bad.any():
        return
    step = int(bad.nonzero()[0])
    row = int(torch.searchsorted(checked.x.lengths.cumsum(0), step, right=True))
    raise DataError(
        f"Sequence {checked.about.keys[row]}, step {step - int(checked.x.starts[row])} is missing",
        "complete steps: an autoregressive emission reads them again",
        "Fill the gap, split the sequence there, or use an emission without lags",
    )


def lagged(cells: Tensor, lengths: Tensor, lags: int) -> Tensor:
    """The ``lags`` earlier rows of each row, latest first, NaN before a start: shape (total, lags * width)."""
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    within = torch.arange(len(cells)) - starts
    columns = []
    for lag in range(1, lags + 1):
        moved = torch.roll(cells, lag, 0)
        columns.append(torch.where((within >= lag)[:, None], moved, torch.nan))
    return torch.cat(columns, 1)
