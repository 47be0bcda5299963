"""How a hidden Markov model learns: EM and quasi-Newton, from several starts."""

import math
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen import chains, emissions
from probgen.errors import FitError, ParameterError, StructureError, nearest
from probgen.model import FitReport
from probgen.posterior import METHODS
from probgen.training import ALONE, Progress, Ranks, joined

if TYPE_CHECKING:
    from probgen.models.hmm.hmm import HMM

Statistics = dict[str, Tensor]

_EMPTY = 1e-8  # expected steps below which a state has no data
_PATIENCE = 5  # quasi-Newton iterations that may together gain next to nothing: a single one often does


class WorseThanIndependent(UserWarning):
    """A sequence model explains the data worse than one that takes the steps as independent."""


@dataclass(frozen=True)
class Data:
    """What a fit reads.

    Arguments:
        rows: Cells and the emission's covariates, shape (total, width + covariates).
        lengths: Of the sequences, shape (n,).
        inputs: Of the transitions, shape (total, p), or None.
        allowed: Log of which chain states labels allow, shape (total, S), or None.
    """

    rows: Tensor
    lengths: Tensor
    inputs: Tensor | None
    allowed: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)

    def cuts(self, size: int) -> list[int]:
        """Where to cut the list of sequences so that each of some ranks has about as many steps."""
        marks = torch.tensor([len(self) * rank // size for rank in range(1, size)])
        return [0, *torch.searchsorted(self.lengths.cumsum(0), marks, right=True).tolist(), len(self.lengths)]

    def part(self, first: int, last: int) -> "Data":
        """Some sequences, which have no inputs."""
        begin, end = int(self.lengths[:first].sum()), int(self.lengths[:last].sum())
        allowed = None if self.allowed is None else self.allowed[begin:end]
        return Data(self.rows[begin:end], self.lengths[first:last], None, allowed)


@dataclass(frozen=True)
class Plan:
    """The options of a fit (see ``HMM._fit``)."""

    method: str
    restarts: int
    max_iter: int
    tol: float
    start: str
    budget: float | None
    progress: bool | None

    def __post_init__(self) -> None:
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (self.restarts, self.max_iter))
        if not whole or min(self.restarts, self.max_iter) < 1 or not _number(self.tol) or not self.tol >= 0:
            raise ParameterError(
                f"restarts={self.restarts}, max_iter={self.max_iter}, tol={self.tol!r}",
                "whole numbers >= 1, and tol >= 0",
            )
        if self.budget is not None and not (_number(self.budget) and 0 < self.budget < math.inf):
            raise ParameterError(f"budget={self.budget!r}", "a number of seconds above 0, or None")
        if self.method not in ("em", "gradient"):
            known = ("em", "gradient", *METHODS)
            raise ParameterError(f"method={self.method!r}", ", ".join(known), nearest(str(self.method), known))
        if self.start not in ("random", "current"):
            raise ParameterError(f"start={self.start!r}", "random or current")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Run:
    """One climb: objectives in nats a step, how it ended, states without data, and where it came out."""

    history: list[float]
    stopped: str
    empty: list[int]
    state: dict[str, Tensor]


def fit(hmm: "HMM", data: Data, generator: torch.Generator, plan: Plan) -> FitReport:
    began, ranks = time.perf_counter(), joined()
    ranks.meet(hmm, generator, data.rows, data.lengths, data.inputs, data.allowed)
    good = _state(hmm)
    notes: list[str] = []
    try:
        if plan.start == "random":
            with torch.no_grad():
                hmm.emission.prepare(data.rows)
        restarts, max_iter = plan.restarts if plan.start == "random" else 1, plan.max_iter
        if plan.budget is not None:
            restarts, max_iter = _afford(hmm, data, generator, plan, restarts, ranks)
            notes.append(f"budget {plan.budget:g} s = {restarts} restarts of at most {max_iter} iterations")
        shared = _adds_up(hmm, data, plan, ranks)
        notes += ranks.notes("sequences", len(data.lengths), shared)
        ranks = ranks if shared else ALONE
        runs = _runs(hmm, data, generator, plan, restarts, max_iter, ranks)
    except (FitError, KeyboardInterrupt):
        hmm.load_state_dict(good)
        raise
    best = max(runs, key=lambda run: run.history[-1])
    hmm.load_state_dict(best.state)
    ranks.check_alike(hmm, len(best.history) - 1)
    hmm.n_rows = int((~data.rows[:, : hmm.emission.width].isnan()).any(1).sum())
    with torch.no_grad():
        hmm.log_likelihood = _nats(hmm, data, best)
        _warn_if_worse(hmm, data)
    notes += [f"states without data: {best.empty}"] * bool(best.empty)
    notes += ["objective: of the data with their labels; log_likelihood: of the data"] * (data.allowed is not None)
    optima = tuple(sorted((run.history[-1] for run in runs), reverse=True))
    return FitReport(
        tuple(best.history),
        len(best.history) - 1,
        best.stopped,
        time.perf_counter() - began,
        optima=optima,
        notes=tuple(notes),
    )


def _nats(hmm: "HMM", data: Data, best: Run) -> float:
    """log p(x) of the fit, which scores no labels."""
    if data.allowed is None:
        return best.history[-1] * len(data) - float(_penalty(hmm))
    return float(chains.log_likelihood(_chain(hmm, replace(data, allowed=None))).sum())


def _adds_up(hmm: "HMM", data: Data, plan: Plan, ranks: Ranks) -> bool:
    """Whether statistics of sequences add up to all that an M step reads, and each rank has a sequence."""
    cuts = data.cuts(ranks.size)
    return plan.method == "em" and data.inputs is None and hmm.emission.additive and len({*cuts}) == len(cuts)


def _runs(
    hmm: "HMM", data: Data, generator: torch.Generator, plan: Plan, restarts: int, max_iter: int, ranks: Ranks
) -> list[Run]:
    runs: list[Run] = []
    failures: list[FitError] = []
    mine = data if ranks.size == 1 else data.part(*data.cuts(ranks.size)[ranks.rank :][:2])
    climb = partial(_climb, ranks=ranks) if plan.method == "em" else _descend
    with Progress(f"HMM {plan.method}", restarts * max_iter, plan.progress) as bar:
        for restart in range(restarts):
            if plan.start == "random":
                _start(hmm, data, generator, restart)
            try:
                runs.append(climb(hmm, mine, max_iter, plan.tol, bar))
            except FitError as failure:
                if restarts == 1 or failure.step:  # a fall, not a start that went nowhere
                    raise
                failures.append(failure)
            bar.to((restart + 1) * max_iter)
    if not runs:
        raise failures[0]
    return runs


def _state(hmm: "HMM") -> dict[str, Tensor]:
    return {name: value.clone() for name, value in hmm.state_dict().items()}


def _penalty(hmm: "HMM") -> Tensor:
    return hmm.emission.penalty() + hmm.transitions.penalty()


def _afford(
    hmm: "HMM", data: Data, generator: torch.Generator, plan: Plan, restarts: int, ranks: Ranks
) -> tuple[int, int]:
    """Restarts and iterations that fit into a budget: one of each is timed, on copies of generator and parameters."""
    pilot, present = torch.Generator(), _state(hmm)
    pilot.set_state(generator.get_state())
    began = time.perf_counter()
    if plan.start == "random":
        _start(hmm, data, pilot, 0)
    middle = time.perf_counter()
    with torch.no_grad():
        _maximise(hmm, data, _expect(hmm, data)[1])
    each, start = ranks.agreed(time.perf_counter() - middle, middle - began)
    hmm.load_state_dict(present)
    affordable = max(1, int((float(plan.budget or 0.0) - start) / each))
    restarts = max(1, min(restarts, affordable // min(plan.max_iter, 100)))
    return restarts, max(1, min(plan.max_iter, affordable // restarts))


@torch.no_grad()
def _start(hmm: "HMM", data: Data, generator: torch.Generator, restart: int) -> None:
    """Emissions from clusters of the cells (every third start: of random steps), moves at random."""
    emission = hmm.emission
    fresh = emission.with_states(emission.states)
    emission.load_state_dict({**fresh.state_dict(), **dict(emission.named_buffers(remove_duplicate=False))})
    hmm.transitions.start(generator)
    if data.allowed is not None:
        shares = _labelled(hmm, data)
    elif restart % 3 == 2:
        draws = torch.empty(len(data), emission.states, dtype=torch.float64).exponential_(generator=generator)
        shares = draws / draws.sum(1, keepdim=True)
    else:
        shares = emissions.start_responsibilities(emission.features(data.rows), emission.states, generator)
    shares = 0.95 * shares + 0.05 / emission.states
    for _ in range(2):  # moments are taken about the present means
        emission.maximise(_statistics(hmm, data, shares))


def _labelled(hmm: "HMM", data: Data) -> Tensor:
    """Shares that known labels allow, equal where nothing is known."""
    allowed = torch.as_tensor(data.allowed).exp()
    shares = torch.zeros(len(data), hmm.emission.states, dtype=torch.float64).index_add_(1, hmm._uses, allowed)
    return shares / shares.sum(1, keepdim=True)


def _statistics(hmm: "HMM", data: Data, shares: Tensor) -> Statistics:
    emission = hmm.emission
    if not emission.additive:
        return emission.statistics(data.rows, shares)
    totals: Statistics = {}
    size = max(1024, (1 << 19) // (emission.states * data.rows.shape[1]))
    for rows, part in zip(data.rows.split(size), shares.split(size), strict=True):
        for name, value in emission.statistics(rows, part).items():
            totals[name] = totals[name] + value if name in totals else value
    return totals


def _chain(hmm: "HMM", data: Data) -> chains.Chain:
    source = hmm._source(data.rows) if data.allowed is None else hmm._potentials(data.rows) + data.allowed
    return chains.Chain(*hmm.transitions(data.inputs), source, data.lengths)


def _expect(hmm: "HMM", data: Data, ranks: Ranks = ALONE) -> tuple[float, chains.Expected]:
    """The penalised objective a step at the present parameters, and what the M step reads of the states."""
    with ranks.together():
        found = chains.expected(_chain(hmm, data))
    steps = len(data)
    if ranks.size > 1:
        found, steps = _of_all(found, steps, ranks)
    return float(found.nats.sum() + _penalty(hmm)) / steps, found


def _of_all(found: chains.Expected, steps: int, ranks: Ranks) -> tuple[chains.Expected, int]:
    """Sums over the sequences of all ranks; the table of marginals stays each rank's own."""
    own = [torch.tensor(steps), found.nats.sum()[None], found.initial.sum(0, keepdim=True), found.transitions]
    moments = [] if found.moments is None else [found.moments]
    total, nats, initial, moves, *moments = ranks.sums([*own, *moments])
    return chains.Expected(nats, initial, moves, found.marginals, moments[0] if moments else None), int(total)


def _maximise(hmm: "HMM", data: Data, found: chains.Expected, ranks: Ranks = ALONE) -> list[int]:
    """The M step; returns the states without data."""
    if found.moments is not None:
        shares = _by_emission(hmm, found.moments, 1)
        without = hmm.emission.maximise(dict(zip(("n", "first", "second"), shares, strict=True)))
    else:
        with ranks.together():
            own = _statistics(hmm, data, _by_emission(hmm, torch.as_tensor(found.marginals), 1))
        without = hmm.emission.maximise(ranks.summed(own))
    hmm.transitions.maximise(found.initial.sum(0), found.transitions, data.inputs)
    visits = _visits(hmm, found)
    return [k for k in range(hmm.states) if visits[k] <= _EMPTY or (k if hmm.tie is None else hmm.tie[k]) in without]


def _visits(hmm: "HMM", found: chains.Expected) -> Tensor:
    """Expected steps in each state that a user counts, shape (K,)."""
    size = hmm.transitions.size
    steps = found.initial.sum(0) + found.transitions.reshape(-1, size).sum(0)
    return torch.zeros(hmm.states, dtype=steps.dtype).index_add_(0, hmm.transitions.emitting(), steps)


def _by_emission(hmm: "HMM", table: Tensor, dim: int) -> Tensor:
    """Sums a dimension of chain states to the emissions that they use."""
    if len(hmm._uses) == hmm.emission.states and hmm.tie is None:
        return table
    shape = list(table.shape)
    shape[dim] = hmm.emission.states
    return torch.zeros(shape, dtype=table.dtype).index_add_(dim, hmm._uses, table)


@torch.no_grad()
def _climb(hmm: "HMM", data: Data, max_iter: int, tol: float, bar: Progress, ranks: Ranks = ALONE) -> Run:
    """EM from where the parameters stand.

    Raises:
        FitError: the penalised objective fell, or became non-finite.
    """
    history: list[float] = []
    empty: list[int] = []
    for step in range(max_iter + 1):
        objective, found = _expect(hmm, data, ranks)
        _finite(objective, step)
        if history and objective < history[-1] - 1e-9 * max(1.0, abs(history[-1])):
            raise FitError(f"EM went down at iteration {step}: {history[-1]} to {objective} nats a step", step=step)
        history.append(objective)
        bar.advance(1, f"{objective:.4f} nats/step")
        if len(history) > 1 and objective - history[-2] < tol:
            return Run(history, "converged", empty, _state(hmm))
        if step < max_iter:
            empty = _maximise(hmm, data, found, ranks)
    return Run(history, "steps", empty, _state(hmm))


def _finite(objective: float, step: int) -> None:
    if not math.isfinite(objective):
        raise FitError(
            f"The objective became {objective} at iteration {step}",
            "data that the model can produce",
            "Check structural zeros and labels against the data, or smooth the emission",
            step=step,
        )


def _descend(hmm: "HMM", data: Data, max_iter: int, tol: float, bar: Progress) -> Run:
    """Quasi-Newton on the exact penalised log-likelihood, with the recursion's own gradient."""
    loss = _Loss(hmm, data)
    search = torch.optim.LBFGS(
        loss.moving, max_iter=1, max_eval=26, history_size=20, tolerance_grad=1e-12, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    history = [-float(loss())]
    _finite(history[0], 0)
    stopped = "steps"
    for _ in range(max_iter):
        before = _state(hmm)
        search.step(loss)  # type: ignore[arg-type]
        objective = -float(loss())
        if not math.isfinite(objective) or objective < history[-1]:
            hmm.load_state_dict(before)
            stopped = "converged"
            break
        history.append(objective)
        bar.advance(1, f"{objective:.4f} nats/step")
        if len(history) > _PATIENCE and objective - history[-1 - _PATIENCE] < tol:
            stopped = "converged"
            break
    for p in loss.moving:
        p.grad = None
    return Run(history, stopped, [], _state(hmm))


class _Loss:
    """Minus the penalised log-likelihood in nats a step, with its gradient; the last point is not computed again."""

    def __init__(self, hmm: "HMM", data: Data) -> None:
        self.hmm, self.data = hmm, data
        self.moving = [p for p in hmm.parameters() if p.requires_grad]
        self.point: list[Tensor] = []
        self.value = torch.empty(0)

    def __call__(self) -> Tensor:
        if self.point and all(map(torch.equal, self.point, self.moving)):
            return self.value
        for p in self.moving:
            p.grad = None
        with torch.enable_grad():
            nats = chains.log_likelihood(_chain(self.hmm, self.data)).sum() + _penalty(self.hmm)
            value = -nats / len(self.data)
            value.backward()
        self.point, self.value = [p.detach().clone() for p in self.moving], value.detach()
        return self.value


def _warn_if_worse(hmm: "HMM", data: Data) -> None:
    """Holds the fit against one emission for all steps, whose maximum is soon found."""
    if not math.isfinite(hmm.log_likelihood) or hmm.states == 1 or data.allowed is not None:
        return
    ones = torch.ones(len(data), 1, dtype=torch.float64)
    try:
        alone: Any = hmm.emission.with_states(1)
        alone.load_state_dict({**alone.state_dict(), **dict(hmm.emission.named_buffers(remove_duplicate=False))})
        for _ in range(3):
            alone.maximise(alone.statistics(data.rows, ones))
        baseline = float(alone.log_prob(data.rows).sum())
    except (FitError, StructureError):  # a program of a fixed number of states, say
        return
    if hmm.log_likelihood < baseline - 1e-6 * abs(baseline):
        warnings.warn(
            f"The fit reached {hmm.log_likelihood:.4f} nats, one emission for all steps {baseline:.4f}: "
            "more restarts, other structural zeros, or fewer states",
            WorseThanIndependent,
            stacklevel=5,
        )
