"""The contract: what a generative model is, and what its verbs promise."""

import abc
import inspect
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any, ClassVar, Protocol, Self, final, runtime_checkable

import torch
from torch import Tensor, nn

from probgen.errors import (
    DataError,
    NotFittedError,
    ParameterError,
    ShapeError,
    StructureError,
    nearest,
)
from probgen.events import Checked, Event, Ragged, arguments, row_hash, steps_of
from probgen.logprob import Fingerprint, LogProb
from probgen.ranks import joined

__all__ = [
    "Estimator", "FitReport", "GenerativeModel", "Latent", "TiesWarning", "generator_of", "pyro_lock", "pyro_pair",
]  # fmt: skip

_VERBS = ("fit", "sample", "log_prob", "log_prob_steps")
_HOOKS = ("model", "guide", "_fit", "_sample", "_log_prob", "_log_prob_steps", "suits", "for_event")
_LOCK = RLock()
_SKETCHED = 4096  # rows


class TiesWarning(UserWarning):
    """A density is fitted to rounded data, on which its likelihood is unbounded."""


@dataclass(frozen=True)
class FitReport:
    """How a fit went.

    Arguments:
        objective: The (penalised) objective at each evaluation, in nats a row (a step, of sequences), higher is better,
            on held-out rows where some were kept; first and last tell what the fit gained.
        steps: Iterations or gradient steps taken.
        stopped: "closed form", "converged", "steps", "early stopping", "interrupted" or "imported".
        seconds: Wall time.
        seed: Of the generator.
        validation: Held-out objective at each evaluation, where one was kept.
        optima: Final objective of each restart, best first.
        notes: What a user should know: empty components, floors reached, steps taken from a budget.
        seen: The 16 smallest hashes of the first 4096 rows that it was fitted to: by them rows that are offered as new
            ones can be known again.
    """

    objective: tuple[float, ...]
    steps: int
    stopped: str
    seconds: float = 0.0
    seed: int = 0
    validation: tuple[float, ...] = ()
    optima: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    seen: tuple[int, ...] = field(default=(), repr=False)


@runtime_checkable
class Estimator(Protocol):
    """A way to a likelihood: a frozen dataclass whose repr is its name in results."""

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb: ...


@runtime_checkable
class Latent(Protocol):
    """A model p(x, z) with continuous z and a reparameterised guide q(z | x), for n rows and S draws a row.

    ``_propose`` maps standard normal noise (S, n, latent_dim) to z of the same shape and log q(z | x), shape (S, n).
    ``_log_joint`` is log p(x, z), shape (S, n).
    """

    latent_dim: int

    def _propose(self, x: Any, given: Any, noise: Tensor) -> tuple[Tensor, Tensor]: ...

    def _log_joint(self, x: Any, z: Tensor, given: Any) -> Tensor: ...


class GenerativeModel(nn.Module, abc.ABC):
    """A distribution over observations: fit it, sample it, ask it for a likelihood.

    Verbs check, hooks compute; a hook may trust its input. A family is final: change it by the parts it is built from.
    A constructor keeps every argument under its own name, so that the repr is the constructor call and a saved model
    can be built again; a network is built there without drawing numbers and gets its first values inside ``_fit``.

    Arguments:
        event: What one observation is.
    """

    event: Event
    context: Event | None = None
    report: FitReport | None = None
    fit_options: dict[str, Any] | None = None  # of the last fit, for those who repeat it
    form: str = "numpy"
    missing_cells: ClassVar[bool] = False  # whether NaN cells are integrated out
    growing: ClassVar[tuple[str, ...]] = ()  # buffers with one entry a training row

    def __init__(self, event: Event) -> None:
        super().__init__()
        if not isinstance(event, Event):
            raise StructureError(f"event={event!r}", "an event", "probgen.events.infer(data) makes one")
        if why := self.suits(event):
            raise StructureError(f"{type(self).__name__} does not suit {event!r}: {why}", "an event that it suits")
        self.event = event

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[1:]:
            if base is not GenerativeModel and issubclass(base, GenerativeModel):
                raise TypeError(f"{base.__name__} is final: change it by the parts it is built from")
        taken = [verb for verb in _VERBS if verb in cls.__dict__]
        if taken:
            raise TypeError(
                f"{cls.__name__} overrides {taken}: the verbs are final, write the hooks _fit, _sample, _log_prob"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in (*_VERBS, *_HOOKS):
            raise StructureError(f"An attribute named {name!r}", "a name that is no verb or hook")
        super().__setattr__(name, value)

    # Hooks

    @abc.abstractmethod
    def model(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        """The Pyro program p(x, z): observed where x is given, else n rows are drawn."""

    def guide(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        """The Pyro guide q(z | x); families without continuous latents have an empty one."""

    @abc.abstractmethod
    def _fit(self, x: Any, given: Any, *, generator: torch.Generator, **options: Any) -> FitReport: ...

    @abc.abstractmethod
    def _sample(self, n: int, given: Any, *, generator: torch.Generator, **options: Any) -> Any: ...

    @abc.abstractmethod
    def _log_prob(self, x: Any, given: Any, *, generator: torch.Generator) -> LogProb: ...

    def _log_prob_steps(self, x: Any, given: Any, *, generator: torch.Generator) -> LogProb:
        raise StructureError(
            f"{type(self).__name__} has no steps to score", "a family over sequences: HMM, StateSpace, Independent"
        )

    @classmethod
    @abc.abstractmethod
    def suits(cls, event: Event) -> str | None:
        """None, or why this family does not suit an event."""

    @classmethod
    @abc.abstractmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        """A sensible model for data of that event."""

    def sample_target(self, **options: Any) -> str:
        """What ``sample(**options)`` draws from."""
        return "p"

    # Verbs

    @final
    def fit(self, x: Any, *, given: Any = None, seed: int | None = None, **options: Any) -> Self:
        """Fits the model to data and returns it; ``.report`` says how it went.

        Arguments:
            x: Data of the event, n rows.
            given: Covariates, for families that declare a ``context``.
            seed: Of the private generator; None takes one from the system and records it.
            **options: The family's own (see its ``_fit``).

        Raises:
            DataError: unusable cells, by row and column.
            ParameterError: an option that the family does not have.
            FitError: the objective became non-finite; the model keeps its last good state.
        """
        checked = self._check(x)
        given = self._check_given(given, checked)
        self._check_options(self._fit, options, "fit")
        if warning := getattr(self.event, "ties", lambda _: None)(checked.x):
            warnings.warn(warning, TiesWarning, stacklevel=2)
        generator, ranks = generator_of(seed), joined()
        ranks.agree(generator)
        with torch.enable_grad():
            report = self._fit(checked.x, given, generator=generator, **options)
        told, seen = ranks.added(report.notes), _sketch(checked)
        self.report = replace(report, seed=generator.initial_seed(), notes=told, seen=seen)
        self.fit_options = options
        self.form = checked.form
        self.eval()
        return self

    @final
    def sample(self, n: int, *, given: Any = None, seed: int | None = None, **options: Any) -> Any:
        """Draws n observations, in the form the model was fitted on.

        Raises:
            ParameterError: n below 1, or an option that the family does not have.
            NotFittedError: before ``fit``.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ParameterError(f"n={n!r}", "a whole number of draws, at least 1")
        self._check_fitted()
        given = self._check_given(given, None)
        self._check_options(self._sample, options, "sample")
        with torch.no_grad():
            x = self._sample(n, given, generator=generator_of(seed), **options)
        return self.event.restore(x, self.form)

    @final
    def log_prob(self, x: Any, *, given: Any = None, by: Estimator | None = None, seed: int | None = None) -> LogProb:
        """Log-likelihood of each row, in nats, and what kind of number it is.

        Arguments:
            x: Data of the event, n rows.
            by: An estimator, such as ``IWAE(samples=500)``; None takes the family's own way.
            seed: Of the estimator's draws. Each row's stream depends on the seed and on that row alone.

        Returns:
            LogProb of n rows. A family without a likelihood gives a refusal: reading its numbers raises.
        """
        if by is not None and not isinstance(by, Estimator):
            raise ParameterError(f"by={by!r}", "an estimator, such as probgen.IWAE(samples=500)")
        how: Callable = (
            self._log_prob if by is None else lambda x, given, generator: by(self, x, given, generator=generator)
        )
        return self._answer(how, x, given, seed, lambda checked: checked.about)

    @final
    def log_prob_steps(self, x: Any, *, given: Any = None, seed: int | None = None) -> LogProb:
        """log p(x_t | x_1, ..., x_{t-1}) of each step of each sequence, in nats: one-step-ahead scores.

        Returns:
            LogProb of as many rows as there are steps, sequence after sequence; keys are "sequence:step".

        Raises:
            StructureError: the family does not score steps.
        """
        return self._answer(self._log_prob_steps, x, given, seed, steps_of).replace(of="x_t|x_<t")

    def _answer(self, how: Callable, x: Any, given: Any, seed: int | None, about: Callable) -> LogProb:
        self._check_fitted()
        checked = self._check(x)
        conditions = self._check_given(given, checked)
        with torch.no_grad():
            answer = how(checked.x, conditions, generator=generator_of(seed))
        rows = about(checked)
        if len(answer) != len(rows):
            raise ShapeError(f"{len(answer)} numbers for {len(rows)} rows", "one log-probability a row")
        if (known := self._rows_given(given, len(rows))) is not None:
            rows = replace(rows, conditions=known)
        of = self._variable(checked.x, conditions) or answer.of
        return answer.replace(event=rows, measure=answer.measure or rows.measure, of=of)

    def _variable(self, x: Any, given: Any) -> str | None:
        """The name of what x holds, given what is known, where that is less than everything."""
        return None

    def _rows_given(self, given: Any, n: int) -> Fingerprint | None:
        """The n rows of what is given, so that log p(x | y) + log p(y) is known to be of one y; None where untold."""
        return None

    # Checks

    def _check(self, x: Any) -> Checked:
        checked = self.event.check(x)
        if not self.missing_cells and isinstance(checked.x, Tensor) and checked.x.isnan().any():
            row, place = checked.x.reshape(len(checked), -1).isnan().nonzero()[0].tolist()
            column = list(getattr(self.event, "columns", ()))[place : place + 1] or [place]
            raise DataError(
                f"Row {checked.about.keys[row]}, column {column[0]} is missing: {type(self).__name__} needs every cell",
                "complete rows, or a family that handles gaps",
                "Use Mixture or Independent, impute, or drop the rows",
            )
        return checked

    def _check_given(self, given: Any, data: Checked | None) -> Any:
        """Covariates of data (None: of draws), checked against the context that the model was built with."""
        name = type(self).__name__
        if self.context is None:
            if given is not None:
                raise ParameterError(
                    f"given={type(given).__name__} for {name}", "no covariates: the model was built without any"
                )
            return None
        if given is None:
            raise ParameterError(
                f"{name} without given=", f"covariates, {self.context!r}", "The model was built with a context"
            )
        covariates = self.context.check(given).x
        if data is not None:
            self._check_rows(covariates, data)
        return covariates

    def _check_rows(self, covariates: Any, data: Checked) -> None:
        if len(covariates) != len(data):
            raise ShapeError(f"given= has {len(covariates)} rows for {len(data)} rows of data", "one row a row")
        if isinstance(covariates, Ragged) and not torch.equal(covariates.lengths, data.x.lengths):
            i = int((covariates.lengths != data.x.lengths).nonzero()[0])
            came, wanted = int(covariates.lengths[i]), int(data.x.lengths[i])
            raise ShapeError(
                f"given= has {came} steps in sequence {i}, the data {wanted}", "one row of covariates a step"
            )

    def _check_fitted(self) -> None:
        if self.report is None:
            raise NotFittedError(
                f"This {type(self).__name__} has not been fitted", "a fitted model", "Call .fit(x) first"
            )

    def _check_options(self, hook: Callable, options: dict[str, Any], verb: str) -> None:
        known = [
            n for n, p in inspect.signature(hook).parameters.items() if p.kind is p.KEYWORD_ONLY and n != "generator"
        ]
        for name in options:
            if name not in known:
                raise ParameterError(f"{type(self).__name__}.{verb} has no option {name!r}", "", nearest(name, known))

    def __repr__(self) -> str:
        defaults = {n: p.default for n, p in inspect.signature(type(self)).parameters.items()}
        shown = [f"{n}={v!r}" for n, v in arguments(self).items() if n not in defaults or not _same(defaults[n], v)]
        return f"{type(self).__name__}({', '.join(shown)})"


def _sketch(checked: Checked) -> tuple[int, ...]:
    """The smallest hashes of a few rows' content; all rows take too long, and none is needed twice."""
    return tuple(sorted(set(row_hash(checked.x[:_SKETCHED]).tolist()))[:16])


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def generator_of(seed: int | None) -> torch.Generator:
    """A private generator; the seed is taken from the system where none is given."""
    generator = torch.Generator()
    if seed is None:
        return generator.manual_seed(secrets.randbits(63))
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ParameterError(f"seed={seed!r}", "a whole number from 0, or None")
    return generator.manual_seed(seed)


@contextmanager
def pyro_lock(generator: torch.Generator | None = None) -> Iterator[None]:
    """One program at a time in Pyro's process-global handler stack.

    With a generator, Pyro's draws (which come from torch's global one) come from it: the states are swapped in and out.
    """
    with _LOCK:
        if generator is None:
            yield
            return
        outside = torch.get_rng_state()
        torch.set_rng_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(torch.get_rng_state())
            torch.set_rng_state(outside)


def pyro_pair(model: GenerativeModel, name: str | None = None) -> tuple[Callable, Callable]:
    """The model's Pyro program and guide as callables that register its parameters in the user's parameter store.

    A bound method hides an nn.Module's parameters from ``pyro.infer.SVI``, which then trains nothing, silently; these
    do not. ``name`` keeps two models in one store apart.
    """
    import pyro

    name = name or f"{type(model).__name__}-{id(model):x}"

    def registered(program: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            pyro.module(name, model)
            return program(*args, **kwargs)

        return run

    return registered(model.model), registered(model.guide)
