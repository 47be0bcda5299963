"""A family on standardised columns, with the Jacobian: likelihoods stay in the data's own units."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import pyro
import torch
from torch import Tensor

from probgen import store
from probgen.errors import StructureError
from probgen.events import Array, Event, Panel, Ragged, Real, Series, Table, arguments
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel, Latent

__all__ = ["Standardize"]

_EXTRAS = ("n_rows", "log_likelihood")  # what a family keeps of its data, which the store saves with it


class Standardize(GenerativeModel):
    """log p(x) = log q((x - loc) / scale) - sum of log scale, over the observed cells: q is a family fitted to columns
    of mean 0 and standard deviation 1, the number is in nats about the data's own units.

    A scaler before a density in a Pipeline forgets the last term, and cross-validation then picks the preprocessing by
    a change of units. Reals are standardised; positive reals divided by their geometric mean; levels, counts, rounded
    cells and cells in [0, 1] left alone. Missing cells count for nothing. The kinds of numbers are those of q.

    Arguments:
        event: Array, Table, Series or Panel with at least one real column that is not rounded; or an unfitted model,
            whose event, family and options are taken.
        family: The name of q's family, such as "Flow".
        **options: Of its constructor.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, event: Event | GenerativeModel, family: str = "Mixture", **options: Any) -> None:
        known: Event
        if isinstance(event, GenerativeModel):
            kept = arguments(event)
            known, family, options = kept.pop("event"), type(event).__name__, {**kept, **options}
        else:
            known = event
        super().__init__(known)
        if str(family).lower() == "standardize":
            raise StructureError(
                "Standardize of Standardize", "a family that is not standardised yet", "Once is enough"
            )
        kind = store.family(family)
        self.family, self.options = kind.__name__, options
        self.of = kind(known, **options)
        self.context, self.missing_cells = self.of.context, self.of.missing_cells  # type: ignore[misc]
        self.growing = tuple(f"of.{name}" for name in self.of.growing)  # type: ignore[misc]
        if isinstance(self.of, Latent):
            self.latent_dim = self.of.latent_dim
        for name in _EXTRAS:
            if hasattr(self.of, name):
                setattr(self, name, getattr(self.of, name))
        moved, _ = _roles(known)
        self.register_buffer("loc", torch.zeros(moved.shape, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(moved.shape, dtype=torch.float64))

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Array | Table | Series | Panel):
            return f"it standardises columns of numbers, not {type(event).__name__}"
        if not torch.cat([part.reshape(-1) for part in _roles(event)]).any():
            return "it has no real cells to standardise"
        return None

    @classmethod
    def for_event(cls, event: Event, family: str | None = None, **options: Any) -> Self:
        """Of a Mixture, of sequences an HMM, with that family's own choices for the event."""
        chosen = family or ("HMM" if isinstance(event, Series | Panel) else "Mixture")
        return cls(store.family(chosen).for_event(event, **options))

    # The map

    def _in(self, x: Any) -> Any:
        """Rows of standardised cells."""
        if isinstance(x, Ragged):
            return Ragged((x.values - self.loc) / self.scale, x.lengths)
        return (x - self.loc) / self.scale

    def _out(self, x: Any) -> Any:
        if isinstance(x, Ragged):
            return Ragged(x.values * self.scale + self.loc, x.lengths)
        return x * self.scale + self.loc

    def _steps(self, x: Any) -> Tensor:
        """Log scale summed over the observed cells of each row, or of each step, (n,)."""
        cells = x.values if isinstance(x, Ragged) else x
        logs = torch.where(cells.isnan(), 0.0, self.scale.log())
        return logs.reshape(len(cells), -1).sum(1)

    def _shift(self, x: Any) -> Tensor:
        """The same of each row or sequence, (n,): what standardising adds to its log-likelihood."""
        steps = self._steps(x)
        if not isinstance(x, Ragged):
            return steps
        row = torch.repeat_interleave(torch.arange(len(x)), x.lengths)
        return torch.zeros(len(x), dtype=steps.dtype).index_add_(0, row, steps)

    @torch.no_grad()
    def _measure(self, cells: Tensor) -> None:
        """Means and standard deviations of the observed reals; geometric means of positive ones."""
        moved, scaled = _roles(self.event)
        mean = cells.nanmean(0)
        spread = (cells - mean).square().nanmean(0).sqrt()
        usable = spread > 1e-12 * mean.abs()
        self.loc.copy_(torch.where(moved, mean, 0.0).nan_to_num(0.0))
        found = torch.where(moved & usable, spread, torch.ones_like(spread))
        geometric = torch.where(scaled, cells, 1.0).log().nanmean(0).exp()
        self.scale.copy_(torch.where(scaled, geometric, found).nan_to_num(1.0))

    # Hooks

    def model(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        if x is None:
            return self._out(self.of.model(None, given, n))
        rows = self.of.model(self._in(x), given)
        with pyro.plate("jacobian rows", len(x), dim=-1):
            pyro.factor("jacobian", -self._shift(x))
        return rows

    def guide(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        return self.of.guide(None if x is None else self._in(x), given, n)

    def _fit(self, x: Any, given: Any, *, generator: torch.Generator, **options: Any) -> FitReport:
        """Takes the options of the family's own fit."""
        self._measure(x.values if isinstance(x, Ragged) else x)
        report = self.of._fit(self._in(x), given, generator=generator, **options)
        self.of.report = report
        shift = float(self._steps(x).mean())
        told: dict[str, Any] = {
            n: tuple(v - shift for v in getattr(report, n)) for n in ("objective", "validation", "optima")
        }
        if hasattr(self, "log_likelihood"):
            self.n_rows = self.of.n_rows
            self.log_likelihood = self.of.log_likelihood - float(self._shift(x).sum())  # type: ignore[operator]
        return replace(report, **told)

    def _log_prob(self, x: Any, given: Any, *, generator: torch.Generator) -> LogProb:
        return _moved(self.of._log_prob(self._in(x), given, generator=generator), self._shift(x))

    def _log_prob_steps(self, x: Any, given: Any, *, generator: torch.Generator) -> LogProb:
        return _moved(self.of._log_prob_steps(self._in(x), given, generator=generator), self._steps(x))

    def _propose(self, x: Any, given: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.of._propose(self._in(x), given, noise)  # type: ignore[operator]

    def _log_joint(self, x: Any, z: Tensor, given: Any) -> Tensor:
        return self.of._log_joint(self._in(x), z, given) - self._shift(x)  # type: ignore[operator]

    def _sample(self, n: int, given: Any, *, generator: torch.Generator, **options: Any) -> Any:
        return self._out(self.of._sample(n, given, generator=generator, **options))

    def sample_target(self, **options: Any) -> str:
        return self.of.sample_target(**options)

    def _check_options(self, hook: Callable, options: dict[str, Any], verb: str) -> None:
        self.of._check_options(getattr(self.of, hook.__name__), options, verb)


def _moved(found: LogProb, shift: Tensor) -> LogProb:
    """The same answer in the data's units; refusals stay."""
    nats = found.__dict__["nats"] - shift.numpy()
    return found.replace(nats=nats, by=f"{found.by}, standardised" if found.by else "standardised")


def _roles(event: Event) -> tuple[Tensor, Tensor]:
    """Which cells of a row or step are standardised, and which are scaled only: two masks of the event's shape."""
    step = event.step if isinstance(event, Panel | Series) else event
    if isinstance(step, Table):
        smooth = [isinstance(c, Real) and c.resolution is None for c in step.columns.values()]
        positive = [getattr(c, "positive", False) for c in step.columns.values()]
        every, grown = torch.tensor(smooth), torch.tensor(positive)
        return every & ~grown, every & grown
    free = step.levels is None and step.resolution is None  # type: ignore[attr-defined]
    shape = step.shape  # type: ignore[attr-defined]
    support = step.support  # type: ignore[attr-defined]
    return torch.full(shape, free and support == "real"), torch.full(shape, free and support == "positive")
