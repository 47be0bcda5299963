"""How the matrices of a state-space model are found: EM from several starts, then L-BFGS."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probgen.errors import FitError, ParameterError, nearest
from probgen.model import FitReport
from probgen.models.statespace.em import Sequences, expect, maximise
from probgen.models.statespace.kalman import Batch, Filtered, System, filtered, step_nats
from probgen.models.statespace.matrices import Matrices
from probgen.models.statespace.search import climb
from probgen.models.statespace.starts import start
from probgen.models.statespace.structure import Structure
from probgen.posterior import METHODS
from probgen.training import Progress

__all__ = ["Plan", "em", "fit_matrices", "score"]

_METHODS = ("em", "gradient")
Scores = Callable[[list[Batch]], Tensor]


@dataclass(frozen=True)
class Plan:
    """How to search.

    Arguments:
        method: "em" or "gradient".
        restarts: Starts.
        max_iter: Iterations of the best one.
        tol: Gain in nats a cell below which an iteration counts as converged.
        short: EM iterations of each start before the best goes on.
    """

    method: str
    restarts: int
    max_iter: int
    tol: float
    short: int = 20

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            known = (*_METHODS, *METHODS)
            raise ParameterError(f"method={self.method!r}", ", ".join(known), nearest(str(self.method), known))
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (self.restarts, self.max_iter))
        if not whole or min(self.restarts, self.max_iter) < 1 or not self.tol >= 0:
            raise ParameterError(
                f"restarts={self.restarts}, max_iter={self.max_iter}, tol={self.tol}",
                "whole numbers >= 1, and tol >= 0",
                "Change them",
            )


def score(system: System, data: Sequences) -> tuple[float, list[Filtered]]:
    """Mean log-likelihood of a sequence in nats, and the filter's runs."""
    runs = [filtered(system, batch) for batch in data.made]
    total = sum(
        float(torch.where(batch.inside, step_nats(system, batch, run), 0.0).sum())
        for batch, run in zip(data.made, runs, strict=True)
    )
    return (total + data.constant) / len(data.lengths), runs


def em(
    system: System,
    data: Sequences,
    shape: Structure,
    floor: float,
    spread_known: bool,
    max_iter: int,
    tol: float,
    note: Callable[[float], None],
) -> tuple[System, list[float], str]:
    """EM until an iteration gains less than ``tol`` nats a cell.

    Raises:
        FitError: the objective fell or became non-finite.
    """
    history: list[float] = []
    for step in range(max_iter + 1):
        value, runs = score(system, data)
        if not math.isfinite(value):
            raise FitError(f"The log-likelihood became {value} at EM iteration {step}", "finite numbers", step=step)
        if history and value < history[-1] - 1e-9 * max(1.0, abs(history[-1])):
            raise FitError(f"EM went down at iteration {step}: {history[-1]} to {value} nats a sequence", step=step)
        history.append(value if not history else max(value, history[-1]))
        note(value)
        if len(history) > 1 and value - history[-2] < tol * data.cells:
            return system, history, "converged"
        if step < max_iter:
            moments = expect(system, data.made, runs, data.starts)
            system = maximise(system, moments, data.x, data.inputs, shape, floor, spread_known)
    return system, history, "steps"


def fit_matrices(
    parts: Matrices,
    data: Sequences,
    scores: Scores | None,
    masses: bool,
    plan: Plan,
    generator: torch.Generator,
    budget: float | None,
    progress: bool | None,
) -> FitReport:
    """Puts the best matrices found into ``parts``.

    Arguments:
        scores: log p(x_t | x_<t) of all steps at the present parameters, differentiable, to be raised by L-BFGS after
            the first EM iterations; None goes on with EM.
        masses: Whether the scores are masses, which EM on the normal does not raise itself.
        budget: Seconds, turned into starts and iterations.

    Raises:
        FitError: a likelihood that is not finite, or that EM made fall.
    """
    notes = []
    if budget is not None:
        plan = _afford(parts, data, scores, plan, generator, budget)
        notes.append(
            f"budget {budget:g} s = {plan.restarts} starts of {plan.short} iterations, at most {plan.max_iter} after"
        )
    with Progress("StateSpace", plan.restarts * plan.short + plan.max_iter, progress) as bar:

        def note(value: float) -> None:
            bar.advance(1, f"{value:.4f} nats/sequence")

        first, system, history, stopped, optima = _by_em(parts, data, plan, generator, note)
        parts.write(system)
        if scores is not None:

            def objective() -> Tensor:
                return scores(data.made).sum() / len(data.lengths)

            history = _better_of(parts, first, system, objective) if masses else history
            moved, limit = list(parts.parameters()), plan.tol * data.cells
            rest, stopped = climb(moved, objective, plan.max_iter, limit, note)
            history = history + rest[1:]
            optima = (history[-1], *optima[1:])
    return FitReport(tuple(history), len(history) - 1, stopped, optima=optima, notes=(*notes, *_remarks(parts)))


@torch.no_grad()
def _by_em(
    parts: Matrices, data: Sequences, plan: Plan, generator: torch.Generator, note: Callable[[float], None]
) -> tuple[System, System, list[float], str, tuple[float, ...]]:
    """The best start, what EM made of it, its objective, why it stopped, and what the starts reached, best first."""

    def run(system: System, steps: int) -> tuple[System, list[float], str]:
        return em(system, data, parts.shape, parts.floor, bool(parts.spread_known), steps, plan.tol, note)

    begun = [start(parts.shape, data, k, generator) for k in range(plan.restarts)]
    runs = [run(system, min(plan.short, plan.max_iter)) for system in begun]
    best = max(range(plan.restarts), key=lambda k: runs[k][1][-1])
    system, history, stopped = runs[best]
    if plan.method == "em" and plan.max_iter > plan.short and stopped == "steps":
        system, rest, stopped = run(system, plan.max_iter - plan.short)
        history = history + rest[1:]
    others = sorted((r[1][-1] for k, r in enumerate(runs) if k != best), reverse=True)
    return begun[best], system, history, stopped, (history[-1], *others)


@torch.no_grad()
def _better_of(parts: Matrices, first: System, second: System, objective: Callable[[], Tensor]) -> list[float]:
    """Keeps the better of two systems by the masses; the objective before and, where it rose, after."""
    parts.write(first)
    before = float(objective())
    parts.write(second)
    after = float(objective())
    if after >= before:
        return [before, after]
    parts.write(first)
    return [before]


def _afford(
    parts: Matrices, data: Sequences, scores: Scores | None, plan: Plan, generator: torch.Generator, budget: float
) -> Plan:
    """Starts and iterations that fit into a budget: one iteration of each kind is timed, on a copy of the generator."""
    if not budget > 0:
        raise ParameterError(f"budget={budget!r}", "a number of seconds above 0", "Leave it out for none")
    pilot = torch.Generator()
    pilot.set_state(generator.get_state())
    with torch.no_grad():
        system = start(parts.shape, data, 0, pilot)
        known = bool(parts.spread_known)
        each = 0.7 * _seconds(lambda: em(system, data, parts.shape, parts.floor, known, 1, 0.0, lambda _: None))
    long = each
    if scores is not None:
        parts.write(system)
        long = 2 * _seconds(lambda: scores(data.made).sum().backward())
        parts.zero_grad()
    affordable = max(1, int(0.4 * budget / each))  # EM iterations for the starts
    restarts = max(1, min(plan.restarts, affordable // plan.short))
    short = min(plan.short, affordable)
    left = budget - (restarts - (plan.method == "em")) * short * each
    return replace(plan, restarts=restarts, short=short, max_iter=max(1, min(plan.max_iter, int(left / long))))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return max(time.perf_counter() - began, 1e-9)


@torch.no_grad()
def _remarks(parts: Matrices) -> list[str]:
    """What a user should know about the matrices found."""
    m, notes = parts.system(), []
    if bool(parts.spread_known):
        notes.append("one sequence: the spread of the first state is held at the data's variance")
    radius = float(torch.linalg.eigvals(m.transition).abs().max())
    if parts.shape.free_rows and radius > 1 + 1e-6:
        notes.append(f"the transition has an eigenvalue of modulus {radius:.4f}: forecasts grow without end")
    if float(torch.linalg.eigvalsh(m.noise)[0]) < 2 * parts.floor:
        notes.append("observation noise at its floor")
    return notes
