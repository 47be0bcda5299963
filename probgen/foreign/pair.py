"""A sampler and a log-density that somebody else computes, behind the same verbs."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Self

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from probgen.errors import LikelihoodUnavailable, ParameterError, ProbgenError, ShapeError, StructureError
from probgen.events import Array, Event, Table
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel, pyro_lock

__all__ = ["ForeignDensity", "is_pair", "wrap"]

_SCORES = ("log_prob", "logpdf", "logpmf", "log_pdf", "log_density", "score_samples")
_COUNTS = ("n", "size", "n_samples", "num_samples")
_KINDS = (Kind.EXACT, Kind.LOWER, Kind.UPPER, Kind.ESTIMATE, Kind.SCORE)


class ForeignDensity(GenerativeModel):
    """A fitted density of another library, or two functions of the user's own. ``fit`` is refused: it is fitted there.

    Arguments:
        event: Array or Table: what one row is.
        draw: ``draw(n, given, generator)`` gives n rows of cells (n, ...); None where there is no sampler.
        score: ``score(x, given)`` of rows (n, *event.shape), float64, gives n numbers in nats, or None.
        by: Who computes the numbers, as it prints.
        kind: What the numbers are.
        target: What distribution they are about.
        context: Event of the covariates that ``given`` must be, where the density is conditional.
        of: A torch module whose parameters the density has.
        fits: How the model is fitted in its own library, for the refusal.

    The density is taken at its owner's word: numbers that are NaN become refusals, row by row; numbers of another count
    than the rows raise ShapeError.
    """

    def __init__(
        self,
        event: Event,
        draw: Callable | None,
        score: Callable | None,
        by: str = "user's function",
        kind: Kind | str = Kind.EXACT,
        target: str = "p",
        context: Event | None = None,
        of: nn.Module | None = None,
        fits: str = "",
    ) -> None:
        super().__init__(event)
        if kind not in _KINDS:
            raise ParameterError(f"kind={kind!r}", f"one of {', '.join(_KINDS)}", "Use probgen.Kind")
        if context is not None and not isinstance(context, Event):
            raise StructureError(f"context={context!r}", "an event, such as events.Array((2,))", "Or leave it out")
        self.draw, self.score, self.by, self.kind, self.target = draw, score, by, Kind(kind), target
        self.context, self.fits = context, fits
        self.of = of
        self.report = FitReport((), 0, "imported")
        self.eval()

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return None if isinstance(event, Array | Table) else f"it scores rows of cells, not {type(event).__name__}"

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        raise StructureError("A foreign density for an event", "a fitted one", "probgen.wrap(foreign)")

    def __repr__(self) -> str:
        return f"ForeignDensity({self.by}, event={self.event!r}, kind={self.kind})"

    def model(self, x: Tensor | None = None, given: Any = None, n: int = 1) -> Tensor:
        with pyro.plate("rows", n if x is None else len(x)):
            return pyro.sample("x", _Rows(self, given), obs=x)

    def _fit(self, x: Any, given: Any, *, generator: torch.Generator) -> FitReport:
        where = self.fits or "where the functions come from"
        raise StructureError(f"fit of a density that is computed by {self.by}", where, "Then wrap the fitted one again")

    def _log_prob(self, x: Tensor, given: Any, *, generator: torch.Generator) -> LogProb:
        if self.score is None:
            return LogProb.refuse(len(x), f"{self.by} has no density", "sample() and pg.two_sample")
        with pyro_lock(generator), _numpy_state(generator):
            try:
                with _called(self.by, f"its log_prob with rows of shape {tuple(x.shape)}"):
                    found = self.score(x, given)
            except NotImplementedError:
                return LogProb.refuse(len(x), f"{self.by} has no density", "sample() and pg.two_sample", by=self.by)
        return _typed(found, len(x), self)

    def _sample(self, n: int, given: Any, *, generator: torch.Generator) -> Tensor:
        if self.draw is None:
            raise StructureError(f"{self.by} has no sampler", "a density that can be drawn from", "log_prob works")
        conditions = len(given) if given is not None else 1
        if conditions > 1 and isinstance(self.event, Table):
            raise ParameterError(
                f"given= has {conditions} rows for a Table", "one condition", "Sample condition by condition"
            )
        wide = None if given is None else given.repeat_interleave(n, 0)
        with pyro_lock(generator), _numpy_state(generator), _called(self.by, f"its sample with n={n * conditions}"):
            drawn = self.draw(n * conditions, wide, generator)
        with _called(self.by, "what its sample gave, as numbers"):
            rows = torch.as_tensor(np.asarray(_plain(drawn), dtype=np.float64))
        shape: tuple[int, ...] = self.event.shape  # type: ignore[attr-defined]
        if rows.numel() != n * conditions * int(np.prod(shape)):
            raise ShapeError(f"{self.by} drew {tuple(rows.shape)}", f"{(n * conditions, *shape)}", "Check its sampler")
        return rows.reshape(*((conditions, n) if conditions > 1 else (n,)), *shape)


@contextmanager
def _called(by: str, what: str) -> Iterator[None]:
    """Says of somebody's code that fails what was called; the error itself is its cause.

    Raises:
        StructureError: whatever it raised, but for NotImplementedError, which means that there is no such number.
    """
    try:
        yield
    except (NotImplementedError, ProbgenError):
        raise
    except Exception as problem:
        told = " ".join(f"{type(problem).__name__}: {problem}".split())
        raise StructureError(
            f"{by} failed: {what} raised {told[:300]}", "functions that take what they are given here",
            "Call it yourself with a few such rows: the error above this one shows the line",
        ) from problem  # fmt: skip


class _Rows(dist.TorchDistribution):
    """A foreign density as one Pyro distribution of rows."""

    arg_constraints: ClassVar = {}
    support = constraints.real

    def __init__(self, of: ForeignDensity, given: Any, batch: torch.Size = torch.Size()) -> None:  # noqa: B008
        self.of, self.given = of, given
        super().__init__(batch, torch.Size(of.event.shape), validate_args=False)  # type: ignore[attr-defined]

    def log_prob(self, value: Tensor) -> Tensor:
        if self.of.score is None:
            raise LikelihoodUnavailable(f"{self.of.by} has no density", "sample()")
        return torch.as_tensor(self.of.score(value, self.given), dtype=torch.float64)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        n = self._extended_shape(sample_shape)[: len(sample_shape) + len(self.batch_shape)].numel()
        rows = self.of._sample(n, None, generator=generator)
        return rows.reshape(self._extended_shape(sample_shape))

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "_Rows":
        return _Rows(self.of, self.given, torch.Size(batch_shape))


@contextmanager
def _numpy_state(generator: torch.Generator) -> Any:
    """NumPy's global generator, which scipy and scikit-learn draw from unless told otherwise, under our seed."""
    outside = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(torch.randint(2**32 - 1, (), generator=generator)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(outside)  # noqa: NPY002


def _plain(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _typed(found: Any, n: int, of: ForeignDensity) -> LogProb:
    """Foreign numbers as a LogProb; NaN become refusals, row by row.

    Raises:
        ShapeError: other than one number a row. DataError: +inf, which no density is.
    """
    nats = np.asarray(_plain(found), dtype=np.float64)
    nats = nats.reshape(n) if nats.shape in ((), (n, 1)) and nats.size == n else nats  # scipy squeezes a single row
    if nats.shape != (n,):
        raise ShapeError(
            f"{of.by} gave numbers of shape {nats.shape} for {n} rows", f"one a row, ({n},)", "Sum over the cells"
        )
    kinds = np.where(np.isnan(nats), Kind.UNAVAILABLE, of.kind)
    return LogProb(
        kinds, nats, by=of.by, target=of.target, reason=f"{of.by} gave NaN", instead="check the function on that row"
    )


def is_pair(foreign: Any, options: dict[str, Any]) -> bool:
    """Whether a tuple is (sample, log_prob), not a Pyro program and its guide: it is said by ``kind=``, by the second
    function's name (log_prob, logpdf, logpmf, log_density, score_samples), or by two functions of which the first takes
    a number of draws (n, size, n_samples, num_samples) and the second something else: a guide takes what its program
    takes."""
    if not isinstance(foreign, tuple) or len(foreign) != 2:
        return False
    if "kind" in options or getattr(foreign[1], "__name__", "") in _SCORES:
        return True
    if not all(inspect.isfunction(part) for part in foreign):
        return False
    first, second = (next(iter(inspect.signature(part).parameters), "") for part in foreign)
    return first in _COUNTS and second not in ("", "args", first)


def wrap(
    foreign: tuple[Callable | None, Callable],
    event: Event | None = None,
    kind: Kind | str = Kind.EXACT,
    by: str = "user's function",
    target: str = "p",
) -> ForeignDensity:
    """Two functions: ``sample(n)``, which may take a ``generator``, ``seed`` or ``random_state``, or None; and
    ``log_prob(x)`` of rows (n, *event.shape) as NumPy, one number a row in nats.

    The kind is the user's word: nothing here can check it.

    Raises:
        StructureError: without ``event=``, or where one is no function.
    """
    draw, score = foreign
    if not callable(score) or not (draw is None or callable(draw)):
        raise StructureError(
            f"The pair ({type(draw).__name__}, {type(score).__name__})", "two functions, (sample, log_prob)",
            "sample may be None",
        )  # fmt: skip
    if event is None:
        raise StructureError(
            "A (sample, log_prob) pair without event=", "what one row is", "event=probgen.events.infer(data)"
        )

    def rows(x: Tensor, given: None) -> Any:
        return score(x.numpy())

    return ForeignDensity(event, None if draw is None else _seeded(draw), rows, by, kind, target)


def _seeded(draw: Callable) -> Callable:
    """The sampler with the randomness that its signature takes; one that takes none draws from the global states."""
    names: set[str] = set()
    with suppress(TypeError, ValueError):  # built-in functions show no signature
        names = set(inspect.signature(draw).parameters)

    def drawn(n: int, given: None, generator: torch.Generator) -> Any:
        if "generator" in names:
            return draw(n, generator=generator)
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        return draw(n, **{name: seed for name in ("seed", "random_state") if name in names})

    return drawn
