"""How a network learns its parameters: counting, EM and gradients."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.conditionals import LinearGaussian, Point, Tabular
from probgen.errors import DataError, FitError, ParameterError, nearest
from probgen.model import FitReport
from probgen.models.bayesnet.em import expect, log_likelihood, maximise
from probgen.models.bayesnet.objective import BatchLoss, Loss, lift
from probgen.models.bayesnet.posterior import (
    log_marginal,
    pseudo_counts,
    sample_networks,
    table_posterior,
)
from probgen.models.bayesnet.problem import Problem
from probgen.models.bayesnet.starting import barren, hidden, owners, prepare, start
from probgen.training import Player, Progress, Schedule, train

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Options", "fit", "log_marginal", "sample_networks", "table_posterior"]

_PATIENCE = 5  # quasi-Newton iterations that may together gain next to nothing: a single one often does


@dataclass(frozen=True)
class Options:
    """The options of a fit.

    Arguments:
        prior: Pseudo-counts of each table: "none"; "dirichlet", ``strength`` a cell; "k2", 1 a cell; "bdeu",
            ``strength`` rows in all, spread evenly over the cells of a table.
        strength: See ``prior``.
        method: "em", monotone or it raises, or "gradient": quasi-Newton on all rows, or Adam where ``steps`` is given.
        max_iter: Iterations of EM or of quasi-Newton.
        tol: Gain in nats a row below which an iteration of EM, or five of quasi-Newton, count as converged.
        restarts: None takes 1, or 5 where some variable is hidden that data tell about.
        start: "cases", from the rows that have each node's family, or "current" to go on from the parameters as they
            are (one run): 10 + 10 iterations are the same bits as 20.
        steps, batch_size, learning_rate: Of Adam.
        progress: None shows it on a terminal only.
    """

    prior: str = "none"
    strength: float = 1.0
    method: str = "em"
    max_iter: int = 200
    tol: float = 1e-8
    restarts: int | None = None
    start: str = "cases"
    steps: int | None = None
    batch_size: int = 256
    learning_rate: float = 0.02
    progress: bool | None = None

    def __post_init__(self) -> None:
        choices = {
            "prior": ("none", "dirichlet", "bdeu", "k2"), "method": ("em", "gradient"), "start": ("cases", "current")
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                known += ("conjugate",) if name == "method" else ()
                came = f"{name}={getattr(self, name)!r}"
                raise ParameterError(came, f"one of {', '.join(known)}", nearest(str(getattr(self, name)), known))
        for name in ("max_iter", "restarts"):
            value = getattr(self, name)
            if not (value is None and name == "restarts") and not (_is_number(value, int) and value >= 1):
                raise ParameterError(f"{name}={value!r}", "a whole number, at least 1")
        if not _is_number(self.tol) or not 0 <= self.tol < math.inf:
            raise ParameterError(f"tol={self.tol!r}", "a number from 0, in nats a row")
        if not _is_number(self.strength) or not 0 < self.strength < math.inf:
            raise ParameterError(f"strength={self.strength!r}", "a number of pseudo-counts above 0")
        if self.steps is not None and self.method != "gradient":
            raise ParameterError(f"steps={self.steps!r} with method={self.method!r}", "steps are of method='gradient'")


def _is_number(value: Any, kind: Any = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class Run:
    """One climb: objectives in nats a row, how it ended, configurations without data by conditional, the state."""

    history: list[float]
    stopped: str
    unseen: dict[int, list[int]]
    state: dict[str, Tensor]


def fit(net: "BayesianNetwork", x: Tensor, *, generator: torch.Generator, **options: Any) -> FitReport:
    """Maximises the likelihood of the observed cells, times the prior of the tables; no row is dropped.

    Cells are missing at random: that they are missing says nothing about their values beyond what the other cells say.
    Without gaps, tables and linear Gaussians have a closed form; else EM (Dempster, Laird and Rubin 1977; Lauritzen
    1995) with exact expected counts. With a prior the tables are posterior means (counts + pseudo-counts) / sum, so
    that for complete data ``log_prob`` of one further row is its posterior predictive log-probability.

    Arguments:
        x: Checked rows (n, columns), NaN = missing.
        **options: Of ``Options``.

    Returns:
        FitReport; its objective is log-likelihood plus log prior, in nats a row. Notes name configurations of parents
        that no row has, and hidden variables.

    Raises:
        ParameterError: an option out of range. DataError: no observed cell.
        StructureError: gaps that can't be summed or integrated out exactly.
        FitError: the objective fell or became non-finite; ``step`` names the iteration. The network is as it was.
    """
    plan, began = Options(**options), time.perf_counter()
    before = _state(net)
    try:
        _set_prior(net, plan)
        prepare(net, x)
        problem = Problem(net, x)
        if not problem.complete and bool(x.isnan().all()):
            raise DataError(f"{len(x)} rows without any observed cell", "some data to learn from")
        runs = _runs(problem, generator, plan)
        best = max(runs, key=lambda run: run.history[-1])
        net.load_state_dict(best.state)
        _keep_counts(problem)
    except BaseException:
        net.load_state_dict(before)
        raise
    return FitReport(
        tuple(best.history),
        max(1, len(best.history) - 1) if plan.steps is None else plan.steps,
        best.stopped,
        time.perf_counter() - began,
        optima=tuple(sorted((run.history[-1] for run in runs), reverse=True)),
        notes=tuple(_notes(problem, plan, best)),
    )


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@torch.no_grad()
def _set_prior(net: "BayesianNetwork", plan: Options) -> None:
    for conditional, _ in owners(net):
        if isinstance(conditional, Tabular):
            conditional.pseudo.fill_(pseudo_counts(conditional.cards, plan.prior, plan.strength))


@torch.no_grad()
def _keep_counts(problem: Problem) -> None:
    """What the network remembers of the data: their size, their likelihood, and (expected) counts for posteriors."""
    net = problem.net
    nats, found = expect(problem)
    gaps = torch.zeros(1, len(net.variables), dtype=torch.bool) if problem.complete else problem.x.isnan()
    net.n_rows, net.log_likelihood = len(problem) - int(gaps.all(1).sum()), nats
    gappy = gaps.any(0)
    for key, (conditional, nodes) in enumerate(owners(net)):
        family = [net.index[n] for name in nodes for n in (name, *net.parents[name])]
        if isinstance(conditional, Tabular) and key in found.counts:
            conditional.counts.copy_(found.counts[key])
            conditional.whole.fill_(not bool(gappy[family].any()))


def _runs(problem: Problem, generator: torch.Generator, plan: Options) -> list[Run]:
    if _is_closed(problem, plan):
        return [_count(problem, plan)]
    told = set(hidden(problem.net, problem.x)) - set(barren(problem.net, problem.x))
    restarts = plan.restarts or (5 if told else 1)
    restarts = restarts if plan.start == "cases" else 1
    climb = _train if plan.steps is not None else _climb if plan.method == "em" else _descend
    runs = []
    with Progress(f"BayesianNetwork {plan.method}", restarts * plan.max_iter, plan.progress) as bar:
        for restart in range(restarts):
            if plan.start == "cases":
                start(problem.net, problem.x, generator, restart)
            runs.append(climb(problem, plan, generator, bar))
            bar.to((restart + 1) * plan.max_iter)
    return runs


def _is_closed(problem: Problem, plan: Options) -> bool:
    """Whether one M step is all there is to do."""
    if not any(p.requires_grad for p in problem.net.parameters()):
        return True
    closed = all(isinstance(c, Tabular | LinearGaussian | Point) for c in problem.conditionals)
    return problem.complete and plan.method == "em" and closed


@torch.no_grad()
def _count(problem: Problem, plan: Options) -> Run:
    """The closed form of complete rows."""
    fill = plan.start == "cases"
    for conditional in problem.conditionals if fill else []:
        if isinstance(conditional, LinearGaussian):
            conditional.reset()
    before = _objective(problem)
    unseen = maximise(problem, expect(problem)[1], fill)
    nats = _objective(problem)
    _refuse_infinite(problem, nats, 0)
    return Run([before, nats] if math.isfinite(before) else [nats], "closed form", unseen, _state(problem.net))


def _objective(problem: Problem, nats: float | None = None) -> float:
    """Penalised log-likelihood in nats a row."""
    with torch.no_grad():
        nats = float(log_likelihood(problem)) if nats is None else nats
        return (nats + float(problem.penalty())) / len(problem)


@torch.no_grad()
def _climb(problem: Problem, plan: Options, generator: torch.Generator, bar: Progress) -> Run:
    """EM from where the parameters stand.

    Raises:
        FitError: the penalised objective fell, or became non-finite.
    """
    history: list[float] = []
    unseen: dict[int, list[int]] = {}
    for step in range(plan.max_iter + 1):
        nats, found = expect(problem)
        objective = _objective(problem, nats)
        _refuse_infinite(problem, objective, step)
        if history and objective < history[-1] - 1e-9 * max(1.0, abs(history[-1])):
            raise FitError(
                f"EM went down at iteration {step}: {history[-1]} to {objective} nats a row", "an objective that rises",
                "Other units for the real columns, or method='gradient'", step=step,
            )  # fmt: skip
        history.append(objective)
        bar.advance(1, f"{objective:.4f} nats/row")
        if len(history) > 1 and objective - history[-2] < plan.tol:
            return Run(history, "converged", unseen, _state(problem.net))
        if step < plan.max_iter:
            unseen = maximise(problem, found, plan.start == "cases")
    return Run(history, "steps", unseen, _state(problem.net))


def _refuse_infinite(problem: Problem, objective: float, step: int) -> None:
    if math.isfinite(objective):
        return
    raise FitError(
        f"The objective became {objective} at iteration {step}: some rows are impossible, or infinitely dense",
        "rows that the network can produce",
        "Check zeros in tables and fixed nodes against the data, or start='cases'",
        step=step,
    )


def _descend(problem: Problem, plan: Options, generator: torch.Generator, bar: Progress) -> Run:
    """Quasi-Newton on the exact penalised log-likelihood, with expected counts as the gradient."""
    lift(problem)
    before, begun = _state(problem.net), _objective(problem)
    loss = Loss(problem)
    search = torch.optim.LBFGS(
        loss.free, max_iter=1, max_eval=26, history_size=20, tolerance_grad=1e-12, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    history, stopped = [-float(loss())], "steps"
    _refuse_infinite(problem, history[0], 0)
    for _ in range(plan.max_iter):
        last = [p.detach().clone() for p in loss.free]
        search.step(loss)  # type: ignore[arg-type]
        objective = -float(loss())
        if not math.isfinite(objective) or objective < history[-1]:
            loss.to(last)
            stopped = "converged"
            break
        history.append(objective)
        bar.advance(1, f"{objective:.4f} nats/row")
        if len(history) > _PATIENCE and objective - history[-1 - _PATIENCE] < plan.tol:
            stopped = "converged"
            break
    loss.clear()
    if history[-1] < begun:
        problem.net.load_state_dict(before)
        history.append(begun)
    return Run(history, stopped, _unseen(problem), _state(problem.net))


def _train(problem: Problem, plan: Options, generator: torch.Generator, bar: Progress) -> Run:
    """Adam on batches of rows, for conditionals that are neural networks."""
    schedule = Schedule(plan.steps, None, plan.batch_size, plan.learning_rate, validation=0.0)
    moving = [p for p in problem.net.parameters() if p.requires_grad]
    first = _objective(problem)
    report = train(
        problem.net, [Player(BatchLoss(problem), moving)], problem.x, schedule, generator=generator,
        progress=plan.progress,
    )  # fmt: skip
    lift(problem)
    last = _objective(problem)
    _refuse_infinite(problem, last, plan.steps or 0)
    return Run([first, *report.objective, last], report.stopped, _unseen(problem), _state(problem.net))


def _unseen(problem: Problem) -> dict[int, list[int]]:
    """Configurations of tables that no row has, as maximise reports them."""
    counts = expect(problem)[1].counts
    return {key: (table.sum(-1).reshape(-1) <= 0).nonzero()[:, 0].tolist() for key, table in counts.items()}


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:8])) + ", ..." * (len(names) > 8)


def _notes(problem: Problem, plan: Options, best: Run) -> list[str]:
    net, notes = problem.net, []
    if gaps := 0 if problem.complete else int(problem.x.isnan().any(1).sum()):
        notes.append(f"{gaps} of {len(problem)} rows have missing cells, taken as missing at random")
    unknown = [] if problem.complete else hidden(net, problem.x)
    idle = barren(net, problem.x) if unknown else []
    if told := [name for name in unknown if name not in idle]:
        notes.append(f"never observed, so hidden: {_few(told)}; what their levels or signs mean could change places")
    if idle:
        notes.append(
            f"never observed, nor anything below: {_few(idle)}; the data do not determine them, their tables are "
            f"{'as they were' if plan.start == 'current' else 'uniform' if plan.prior == 'none' else 'the prior'}"
        )
    kept = "their rows" if plan.start == "current" else "uniform rows" if plan.prior == "none" else "the prior's rows"
    for key, (conditional, nodes) in enumerate(owners(net)):
        if places := best.unseen.get(key):
            own = kept if isinstance(conditional, Tabular) else "their parameters"
            notes.append(
                f"{nodes[0]!r}: {len(places)} of {conditional.configurations} configurations of its parents unseen; "
                f"they keep {own}"
            )
    if plan.prior != "none":
        notes.append(
            f"tables are posterior means under {plan.prior} ({plan.strength:g}): log_prob of one row is its posterior "
            "predictive" + (", approximately: cells are missing" if gaps else "")
        )
    return notes
