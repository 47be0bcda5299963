"""Linear-Gaussian state-space models: exact by the Kalman filter."""

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from probgen.errors import FitError, ParameterError, ShapeError, StructureError
from probgen.events import Event, Ragged, Series
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.statespace import bayes
from probgen.models.statespace.em import Sequences, completed, expect
from probgen.models.statespace.fitting import Plan, fit_matrices
from probgen.models.statespace.kalman import Batch, System, batches, filtered, unpad
from probgen.models.statespace.matrices import Matrices
from probgen.models.statespace.paths import Forecast, draw_recorded, draw_states, log_scores, simulate
from probgen.models.statespace.program import run_program
from probgen.models.statespace.rounded import Cells, cells_of
from probgen.models.statespace.structure import structure as _structure
from probgen.posterior import GROWING, METHODS, Kept, prior_numbers

if TYPE_CHECKING:
    from probgen.posterior import Draws

__all__ = ["StateSpace", "States"]

_LONG = 2000  # steps of a sequence with gaps from which EM is the default


@dataclass(frozen=True, eq=False)
class States:
    """Moments of the states of each step, sequence after sequence, in the units of ``StateSpace.matrices()``.

    Arguments:
        means: Ragged of (total, S).
        covariances: Ragged of (total, S, S).
        lagged: Cov(z_t, z_{t-1}), Ragged of (total, S, S), zero at first steps; None for a filter.
    """

    means: Ragged
    covariances: Ragged
    lagged: Ragged | None = None


class StateSpace(GenerativeModel):
    """z_1 ~ N(m0, P0); z_t = A z_{t-1} + B u_t + N(0, Q); x_t = C z_t + D u_t + d + N(0, R). Exact.

    Arguments:
        event: Series of reals; or, one number a step, of counts, levels or rounded reals.
        latent_dim: States S; None takes 2 (1 for one column) where they are free, and what the structure needs else.
            An autoregression of order p over D columns has p * D.
        structure: "free" (all matrices), "level" (a random walk a column plus noise), "trend" (a level with a slope
            that is a random walk), "ar" (an autoregression plus noise). Columns of a structure have correlated noises.
        seasonal: Period of a seasonal pattern added to "level" or "trend"; 0 for none.
        inputs: Columns of the covariates ``given``, u_t; they act on x_t, and in "free" on z_t from t = 2.
        floor: Least variance in R, as a share of the data's.

    Missing cells, single ones too, are integrated out. Where there is one sequence only, P0 can't be learnt (it would
    go to zero) and stays at the variance of the data, of a slope at that of first differences. The states of a given
    structure have the units of the data.

    Counts, levels and rounded reals: log_prob is a mass. The normal predictive of step t given the earlier recorded
    values is turned into the mass of the cell around the recorded value (end cells take the tails), and the filter goes
    on with that value; ``sample`` follows the same law. The product of masses sums to 1 over all sequences of a length.
    A gap is passed over by the filter, which is not quite the sum over what might have been recorded there: rows
    with something recorded after a gap are estimates.

    Kalman (1960); Shumway and Stoffer (1982); Harvey (1989); Durbin and Koopman (2012). Likelihoods in nats.
    """

    missing_cells = True
    growing = GROWING

    def __init__(
        self,
        event: Event | None = None,
        latent_dim: int | None = None,
        structure: str = "free",
        seasonal: int = 0,
        inputs: int = 0,
        floor: float = 1e-8,
    ) -> None:
        super().__init__(Series() if event is None else event)
        if isinstance(inputs, bool) or not isinstance(inputs, int) or inputs < 0:
            raise ParameterError(f"inputs={inputs!r}", "a number of covariates, from 0", "Leave it out for none")
        if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor < 1:
            raise ParameterError(f"floor={floor!r}", "a share of the variance: 0 <= floor < 1", "Such as 1e-8")
        self.latent_dim, self.structure, self.seasonal, self.inputs, self.floor = (
            latent_dim, structure, seasonal, inputs, floor,
        )  # fmt: skip
        self.context = Series((inputs,), missing=False) if inputs else None
        self.width = max(math.prod(self.event.shape), 1)  # type: ignore[attr-defined]
        self.shape = _structure(structure, self.width, latent_dim, seasonal)
        self.cells: Cells | None = cells_of(self.event.step)  # type: ignore[attr-defined]
        self.parts = Matrices(self.shape, self.width, inputs, float(floor))
        self.kept = Kept()
        self.n_rows = 0
        self.log_likelihood = math.nan

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Series):
            return f"its steps are vectors in time: a Series, not {type(event).__name__}"
        if event.support in ("positive", "unit") and event.levels is None:
            return f"a normal leaves the support '{event.support}': take logarithms or logits, and support='real'"
        if event.step.discrete and max(event.step.dims, 1) > 1:
            return "the mass of a box under a normal has no closed form: counts and rounded steps have one column"
        return None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        single = isinstance(event, Series) and event.step.dims <= 1
        return cls(event, **{**({"structure": "level"} if single and "latent_dim" not in options else {}), **options})

    @classmethod
    def from_matrices(cls, system: System, event: Event | None = None) -> Self:
        """A model with known matrices, ready to score, smooth and forecast.

        Raises:
            ShapeError: matrices that do not fit together.
            StructureError: a covariance that is not symmetric and positive semi-definite.
        """
        system = System(*(torch.as_tensor(part, dtype=torch.float64) for part in system))
        (d, s), u = system.emission.shape, system.control.shape[-1]
        wanted = System((s, s), (s, u), (s, s), (d, s), (d, u), (d,), (d, d), (s,), (s, s))  # type: ignore[arg-type]
        for name, part, size in zip(System._fields, system, wanted, strict=True):
            if tuple(part.shape) != size:
                raise ShapeError(f"{name} has shape {tuple(part.shape)}", f"{size}", "S states, D columns, U inputs")
            if name in ("state_noise", "noise", "start_cov") and not _is_covariance(part):
                raise StructureError(f"{name} is no covariance", "a symmetric matrix without negative eigenvalues")
        made = cls(Series((d,)) if event is None else event, s, inputs=u, floor=0.0)
        if made.width != d:
            raise ShapeError(f"{d} columns for {event!r}", f"{made.width} columns", "Change the event or the matrices")
        made.parts.write(system)
        made.report = FitReport((math.nan,), 0, "given")
        return made

    # Matrices

    def matrices(self) -> System:
        """The matrices in the units of the data; the states of a given structure are in those units too."""
        return System(*(part.detach() for part in self.parts.in_data_units()))

    @property
    def state_names(self) -> tuple[str, ...]:
        """Of the states, in order: "level", "slope", "seasonal", ..."""
        return self.shape.names

    @property
    def n_params(self) -> int:
        """Free parameters; a change of the states' basis that alters nothing is not counted, nor a known P0."""
        return self.parts.n_params

    def aic(self) -> float:
        """Akaike's criterion of the fit, in nats: 2 n_params - 2 log-likelihood; lower is better."""
        self._check_fitted()
        return 2 * self.n_params - 2 * self.log_likelihood

    def bic(self) -> float:
        """Schwarz's criterion, in nats: n_params log(recorded steps) - 2 log-likelihood; lower is better."""
        self._check_fitted()
        return self.n_params * math.log(self.n_rows) - 2 * self.log_likelihood

    # Likelihood

    def _standard(self, x: Ragged, given: Ragged | None) -> tuple[Tensor, Tensor]:
        """Standardised steps (total, D) and inputs (total, U)."""
        values = x.values.reshape(len(x.values), -1).double()
        u = torch.zeros(len(values), 0, dtype=torch.float64) if given is None else given.values / self.parts.input_units
        return self.parts.units.inside(values), u

    def _made(self, x: Ragged, given: Ragged | None) -> list[Batch]:
        values, inputs = self._standard(x, given)
        return batches(values, x.lengths, inputs)

    def _scores(self, made: list[Batch]) -> Tensor:
        """log p(x_t | x_<t) of all steps in the order of the data, shape (total,), in nats; differentiable."""
        system = self.parts.system()
        return unpad(made, [log_scores(system, batch, None, self.parts.units, self.cells) for batch in made])

    def _log_prob_steps(self, x: Ragged, given: Ragged | None, *, generator: torch.Generator) -> LogProb:
        if self.kept:
            return bayes.parametric(self).log_prob_steps(x, given)
        nats = self._scores(self._made(x, given))
        if bool(nats.isnan().any()):
            raise StructureError(
                "A predictive covariance is singular: the model has no density there",
                "noise in every column, from R or through the states",
                "Fit with floor > 0, or give R a positive diagonal",
            )
        if self.cells is None:
            return LogProb(Kind.EXACT, nats, by="Kalman filter")
        kinds = [Kind.ESTIMATE if late else Kind.EXACT for late in _after_gaps(x).tolist()]
        return LogProb(kinds, nats, by="Kalman filter, cell masses")

    def _log_prob(self, x: Ragged, given: Ragged | None, *, generator: torch.Generator) -> LogProb:
        if self.kept:
            return bayes.parametric(self).log_prob(x, given)
        steps = self._log_prob_steps(x, given, generator=generator)
        lengths = x.lengths.tolist()
        late = torch.as_tensor(steps.kinds == Kind.ESTIMATE).split(lengths)
        kinds = [Kind.ESTIMATE if bool(part.any()) else Kind.EXACT for part in late]
        nats = [float(part.sum()) for part in torch.as_tensor(steps.nats).split(lengths)]
        return LogProb(kinds, nats, by=steps.by)

    def model(self, x: Ragged | None = None, given: Ragged | None = None, n: int = 1, length: int = 20) -> Ragged:
        return run_program(self.parts.in_data_units(), self.event, self.cells, x, given, n, length)  # type: ignore[arg-type]

    def _sample(self, n: int, given: Ragged | None, *, generator: torch.Generator, length: int | None = None) -> Ragged:
        """n sequences of ``length`` steps (20 where not said); with inputs, n for each sequence of inputs."""
        if given is None:
            length = 20 if length is None else length
            if isinstance(length, bool) or not isinstance(length, int) or length < 1:
                raise ParameterError(f"length={length!r}", "a number of steps, at least 1", "Change it")
        elif length is not None:
            raise ParameterError(f"length={length!r} with given=", "no length: the inputs have their own", "Drop it")
        if self.kept:
            return bayes.parametric(self, length or 20).sample(n, given, generator)
        return self._simulated(n, given, generator, length or 20)

    def _simulated(self, n: int, given: Ragged | None, generator: torch.Generator, length: int) -> Ragged:
        """Sequences from the matrices in place."""
        if given is None:
            return self._drawn(torch.zeros(length, n, 0, dtype=torch.float64), generator)
        parts = [(part / self.parts.input_units)[:, None].expand(-1, n, -1) for part in given.split()]
        drawn = [self._drawn(part, generator) for part in parts]
        return Ragged(torch.cat([d.values for d in drawn]), torch.cat([d.lengths for d in drawn]))

    def _drawn(self, inputs: Tensor, generator: torch.Generator) -> Ragged:
        total, n, _ = inputs.shape
        system = self.parts.found()
        if self.cells is None:
            x = self.parts.units.outside(simulate(system, inputs, generator)[1])
        else:
            x = draw_recorded(system, inputs, self.parts.units, self.cells, generator)
        values = x.transpose(0, 1).reshape(total * n, *self.event.shape)  # type: ignore[attr-defined]
        return Ragged(values, torch.full((n,), total))

    # The posterior of the matrices

    @property
    def draws(self) -> "Draws | None":
        """Of the matrices in the units of the data, after a Bayesian fit; else None."""
        return bayes.parametric(self).draws() if self.kept else None

    def _log_lik_draws(self, x: Ragged, given: Ragged | None, generator: torch.Generator) -> Tensor:
        return bayes.parametric(self).log_lik(x, given)

    def _log_prior_draws(self) -> Tensor:
        return bayes.parametric(self).log_prior()

    _parametric = bayes.parametric
    _prior_numbers = prior_numbers

    def _sample_prior(self, n: int, given: Ragged | None, generator: torch.Generator, length: int = 20) -> Ragged:
        return bayes.parametric(self, length).sample_prior(n, given, generator)

    # Questions about data

    def _asked(self, x: Any, given: Any) -> tuple[Ragged, Ragged | None]:
        self._check_fitted()
        checked = self._check(x)
        return checked.x, self._check_given(given, checked)

    @torch.no_grad()
    def filter(self, x: Any, *, given: Any = None) -> States:
        """Moments of p(z_t | x_1, ..., x_t)."""
        x, given = self._asked(x, given)
        made, system = self._made(x, given), self.parts.found()
        runs = [filtered(system, batch) for batch in made]
        return self._states(x, unpad(made, [r.means for r in runs]), unpad(made, [r.covs for r in runs]), None)

    @torch.no_grad()
    def smooth(self, x: Any, *, given: Any = None) -> States:
        """Moments of p(z_t | x_1, ..., x_T), with the covariances of neighbouring steps."""
        x, given = self._asked(x, given)
        made, system = self._made(x, given), self.parts.found()
        moments = expect(system, made, [filtered(system, batch) for batch in made], x.starts)
        return self._states(x, moments.means, moments.covs, moments.lagged)

    def _states(self, x: Ragged, means: Tensor, covs: Tensor, lagged: Tensor | None) -> States:
        unit, move = self.parts.state_units()
        both = unit[:, None] * unit
        last = None if lagged is None else Ragged(lagged * both, x.lengths)
        return States(Ragged(means * unit + move, x.lengths), Ragged(covs * both, x.lengths), last)

    @torch.no_grad()
    def sample_paths(self, x: Any, n: int = 1, *, given: Any = None, seed: int | None = None) -> Ragged:
        """n draws of all states given the data, jointly over time: Ragged of (total, n, S).

        Raises:
            ParameterError: n below 1.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ParameterError(f"n={n!r}", "a whole number of draws, at least 1")
        x, given = self._asked(x, given)
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        made, system = self._made(x, given), self.parts.found()
        unit, move = self.parts.state_units()
        paths = unpad(made, [draw_states(system, batch, n, generator) for batch in made])
        return Ragged(paths * unit + move, x.lengths)

    @torch.no_grad()
    def forecast(self, x: Any, h: int = 1, *, given: Any = None, future: Any = None) -> Forecast:
        """The distribution of the next h steps of each sequence.

        Arguments:
            future: Inputs of the new steps, for models with inputs: one sequence of h steps for each of x.

        Raises:
            ParameterError: h below 1, or inputs where the model has none.
            ShapeError: other than h steps of inputs.
        """
        if isinstance(h, bool) or not isinstance(h, int) or h < 1:
            raise ParameterError(f"h={h!r}", "a number of steps ahead, at least 1")
        x, given = self._asked(x, given)
        inputs = self._future(future, len(x), h)
        made, m = self._made(x, given), self.parts.found()
        runs = [filtered(m, batch) for batch in made]
        last = x.starts + x.lengths - 1
        mean, cov = unpad(made, [r.means for r in runs])[last], unpad(made, [r.covs for r in runs])[last]
        start = mean @ m.transition.T + inputs[0] @ m.control.T, m.transition @ cov @ m.transition.T + m.state_noise
        return Forecast(m, start, inputs, self.parts.units, self.event, self.cells)  # type: ignore[arg-type]

    def _future(self, future: Any, n: int, h: int) -> Tensor:
        """Inputs of the steps to come, shape (h, n, U)."""
        if self.context is None or future is None:
            if (self.context is None) != (future is None):
                wanted = "none: the model has no inputs" if self.context is None else f"future= of {h} steps a sequence"
                raise ParameterError(f"future={future!r:.40}", wanted, "The inputs of the steps to come")
            return torch.zeros(h, n, 0, dtype=torch.float64)
        u = self.context.check(future).x
        if len(u) != n or set(u.lengths.tolist()) != {h}:
            raise ShapeError(f"future= of lengths {u.lengths.tolist()[:5]}", f"{n} sequences of {h} steps", "One a row")
        return (u.values / self.parts.input_units).reshape(n, h, -1).transpose(0, 1)

    @torch.no_grad()
    def impute(self, x: Any, *, given: Any = None) -> Any:
        """The data with gaps filled by their means given all that was recorded, in the form that came in."""
        self._check_fitted()
        checked = self._check(x)
        given = self._check_given(given, checked)
        values, inputs = self._standard(checked.x, given)
        made, system = batches(values, checked.x.lengths, inputs), self.parts.found()
        moments = expect(system, made, [filtered(system, batch) for batch in made], checked.x.starts)
        seen = ~values.isnan()
        filled = completed(system, values, seen, inputs, moments.means, moments.covs)[0]
        filled = (
            self.parts.units.outside(filled)
            if self.cells is None
            else self.cells.recorded(self.parts.units.outside(filled))
        )
        original = checked.x.values.reshape(filled.shape)
        filled = torch.where(seen, original, filled).reshape(checked.x.values.shape)
        return self.event.restore(Ragged(filled, checked.x.lengths), checked.form)

    # Fit

    def _fit(
        self,
        x: Ragged,
        given: Ragged | None,
        *,
        generator: torch.Generator,
        method: str | None = None,
        restarts: int = 4,
        max_iter: int = 500,
        tol: float = 1e-6,
        budget: float | None = None,
        progress: bool | None = None,
        draws: int = 500,
        chains: int = 4,
        warmup: int = 500,
    ) -> FitReport:
        """Short runs of EM from several starts; the best goes on.

        ``method``: "gradient" (L-BFGS on the exact likelihood) or "em". None takes the gradient, but EM where sequences
        are long and have gaps: differentiating through their steps costs more than it gains. ``tol``: gain in nats a
        cell below which an iteration counts as converged. ``budget``: seconds, turned once into starts and iterations,
        which the report records. Masses on a grid are raised by L-BFGS, after EM on the normal.

        "nuts", "svi" and "laplace" go on from there to draws of the posterior under the priors of ``bayes.priors``,
        ``draws`` of each of ``chains`` chains, NUTS after ``warmup`` transitions: ``.draws`` has them, ``log_prob`` and
        ``sample`` average over them, and the matrices in place are the posterior mode.
        """
        if method in METHODS:
            from probgen.posterior import Plan as Drawing

            drawing = Drawing(method, draws, chains, warmup, progress=progress)
            options = {"restarts": restarts, "max_iter": max_iter, "tol": tol, "budget": budget, "progress": progress}
            return bayes.fit_bayes(self, x, given, generator, drawing, options)
        slow = bool(x.values.isnan().any()) and int(x.lengths.max()) > _LONG
        plan = Plan(method or ("em" if slow else "gradient"), restarts, max_iter, tol)
        began = time.perf_counter()
        good = {name: value.clone() for name, value in self.state_dict().items()}
        values = x.values.reshape(len(x.values), -1).double()
        seen = ~values.isnan()
        try:
            least = 0.25 * self.cells.step if self.cells else 1e-290
            self.parts.measure(values, None if given is None else given.values, least, len(x))
            constant = 0.0 if self.cells else -float((seen * self.parts.scale.log()).sum())
            standard, inputs = self._standard(x, given)
            data = Sequences.of(standard, inputs, x.lengths, constant)
            climbs = self._scores if plan.method == "gradient" or self.cells else None
            found = fit_matrices(self.parts, data, climbs, bool(self.cells), plan, generator, budget, progress)
        except FitError:
            self.load_state_dict(good)
            raise
        self.n_rows = max(int(seen.any(1).sum()), 1)
        self.log_likelihood = found.objective[-1] * len(x)
        self.kept.clear()
        share = len(x) / len(values)  # the search counts in sequences, a report in steps
        objective, optima = (tuple(share * value for value in each) for each in (found.objective, found.optima))
        return replace(found, objective=objective, optima=optima, seconds=time.perf_counter() - began)


def _is_covariance(matrix: Tensor) -> bool:
    size = float(matrix.abs().max()) if matrix.numel() else 0.0
    alike = bool(((matrix - matrix.T).abs() <= 1e-10 * size).all())
    return alike and bool(matrix.isfinite().all()) and float(torch.linalg.eigvalsh(matrix)[0]) >= -1e-10 * size


def _after_gaps(x: Ragged) -> Tensor:
    """Recorded steps after a missing one of the same sequence, shape (total,), bool; for one column."""
    missing = x.values.reshape(len(x.values), -1).isnan()[:, 0]
    counts = missing.long().cumsum(0)
    base = (counts - missing.long())[x.starts].repeat_interleave(x.lengths)
    return (counts > base) & ~missing
