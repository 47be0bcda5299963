"""Learning a graph and its tables from data."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import events
from probgen.errors import DataError, ParameterError, StructureError, nearest
from probgen.events import Table
from probgen.model import FitReport
from probgen.models.bayesnet.network import BayesianNetwork
from probgen.models.bayesnet.structure.columns import Data, read
from probgen.models.bayesnet.structure.constraints import Constraints, Edges
from probgen.models.bayesnet.structure.exact import exact
from probgen.models.bayesnet.structure.greedy import Greedy, Step, greedy
from probgen.models.bayesnet.structure.missing import StructuralEM
from probgen.models.bayesnet.structure.result import Structure, edges_of, parents_of
from probgen.models.bayesnet.structure.scores import Criterion, Scorer
from probgen.models.bayesnet.structure.strengths import Learner
from probgen.models.bayesnet.structure.strengths import bootstrap as bootstrapped
from probgen.models.bayesnet.structure.trees import chow_liu, tan

__all__ = ["METHODS", "Plan", "learn", "search"]

METHODS = ("tabu", "hill", "exact", "chow-liu", "tan")


@dataclass(frozen=True, eq=False)
class Plan:
    """How graphs are learned; see ``learn``."""

    criterion: Criterion
    method: str
    constraints: dict[str, Any]
    target: str | None
    root: str | None
    options: dict[str, int]

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ParameterError(f"method={self.method!r}", f"one of {', '.join(METHODS)}")
        for name, method in (("target", "tan"), ("root", "chow-liu")):
            if getattr(self, name) is not None and self.method != method:
                raise ParameterError(
                    f"{name}={getattr(self, name)!r} with method={self.method!r}", f"method={method!r}"
                )
        known = [f.name for f in fields(Greedy) if f.name != "seed"] if self.greedy else []
        for name in self.options:
            if name not in known:
                raise ParameterError(
                    f"learn has no option {name!r} with method={self.method!r}", "", nearest(name, known)
                )

    @property
    def greedy(self) -> bool:
        return self.method in ("tabu", "hill")

    @property
    def tree(self) -> bool:
        return self.method in ("chow-liu", "tan")

    def bounds(self, data: Data) -> Constraints:
        bounds = Constraints.of(data, **self.constraints)
        if self.tree and bounds.given:
            raise ParameterError(
                f"Constraints with method={self.method!r}", "none", "method='tabu' or 'exact' takes them"
            )
        return bounds

    def run(self, scorer: Scorer, bounds: Constraints, seed: int, start: np.ndarray | None = None) -> "Found":
        """A graph for complete rows."""
        if self.tree:
            data = scorer.data
            graph = tan(data, self.target) if self.method == "tan" else chow_liu(data, self.root)
            return Found(graph, data, bounds)
        if scorer.data.mixed and scorer.total(parents_of(bounds.required)) == -np.inf:
            raise DataError(
                "The required edges leave configurations with fewer rows than their regression has coefficients",
                "more rows, or fewer required parents of continuous columns",
            )
        if self.method == "exact":
            return Found(exact(scorer, bounds), scorer.data, bounds, evaluated=scorer.evaluated)
        options = {"seed": seed, **self.options}
        how = Greedy(**options) if self.method == "tabu" else Greedy.hill(**options)
        graph, steps = greedy(scorer, bounds, how, bounds.required if start is None else start)
        return Found(graph, scorer.data, bounds, tuple(steps), scorer.evaluated)


@dataclass(frozen=True, eq=False)
class Found:
    """A graph (V, V) [parent, child], the complete rows it is for, and how it was found; ``score`` of the observed
    cells where some are missing."""

    graph: np.ndarray
    data: Data
    bounds: Constraints
    steps: tuple[Step, ...] = ()
    evaluated: int = 0
    score: float | None = None
    notes: tuple[str, ...] = ()


def learn(
    data: Any,
    *,
    event: Table | None = None,
    score: str = "bic",
    ess: float = 1.0,
    method: str = "tabu",
    target: str | None = None,
    root: str | None = None,
    max_parents: int | None = None,
    forbidden: Edges = (),
    required: Edges = (),
    tiers: Sequence[Iterable[str]] | None = None,
    bootstrap: int = 0,
    workers: int = 1,
    prior: str | None = None,
    seed: int | None = None,
    **options: int,
) -> BayesianNetwork:
    """A network whose graph and parameters come from data; its ``.structure`` says how the graph was found.

    Arguments:
        data: Rows, as ``events.Table`` takes them. Missing cells go through structural EM.
        event: How the columns are read; None: ``events.infer(data)``.
        score: "bic", "aic", "bdeu" or "k2"; see ``structure.Criterion``. Real columns and counts: "bic" or "aic".
        ess: Equivalent sample size of "bdeu".
        method: "tabu"; "hill" (climbing); "exact" (the best of all graphs, at most 20 columns); "chow-liu" (the tree
            of the highest likelihood); "tan" (tree-augmented naive Bayes).
        target: The class column of "tan".
        root: Where the tree of "chow-liu" starts.
        max_parents, forbidden, required, tiers: What is known of the graph; see ``Constraints.of``.
        bootstrap: How many samples of the rows tell the strengths of edges; 0: none.
        workers: Threads of the bootstrap.
        prior: Of the parameters, as in ``fit``; None: that of "bdeu" and "k2", else "none".
        seed: Of the search and the samples; None takes one from the system.
        **options: Of a greedy search: ``tabu``, ``patience``, ``restarts``, ``kicks``, ``moves``; see ``Greedy``.

    Raises:
        DataError, SupportError: rows that can't be used, by row and column.
        ParameterError: an unknown name or option, a value out of range.
        StructureError: constraints that contradict each other, a method that does not suit the columns.
    """
    constraints = {"forbidden": forbidden, "required": required, "tiers": tiers, "max_parents": max_parents}
    plan = Plan(Criterion(score, ess), method, constraints, target, root, options)
    event = _table(data if event is None else event, event is None)
    seed = _seed(seed)
    found = search(event, event.check(data).x, plan, seed, bootstrap, workers)
    net = BayesianNetwork(event, found.edges, learned=True)
    prior = (score if plan.criterion.bayesian else "none") if prior is None else prior
    net.fit(data, seed=seed, prior=prior, strength=float(ess))
    net.report = replace(_report(net), notes=(*_report(net).notes, *found.notes))
    net.structure = found
    return net


def _report(net: BayesianNetwork) -> FitReport:
    return net.report or FitReport((), 0, "")


def _table(source: Any, infer: bool) -> Table:
    event = events.infer(source) if infer else source
    if not isinstance(event, Table):
        raise StructureError(
            f"{event!r} for a network", "events.Table: named columns", "Give a data frame or a dict of columns"
        )
    if why := BayesianNetwork.suits(event):
        raise StructureError(f"A network does not suit {event!r}: {why}", "columns that it suits")
    return event


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbits(62)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ParameterError(f"seed={seed!r}", "a whole number from 0, or None")
    return seed


def search(event: Table, x: Tensor, plan: Plan, seed: int, replicates: int = 0, workers: int = 1) -> Structure:
    """The graph alone, of checked rows (n, V), NaN = missing."""
    found = _once(event, x, plan, seed)
    names, parents = found.data.names, parents_of(found.graph)
    scorer = Scorer(found.data, Criterion("loglik") if plan.tree else plan.criterion)
    parts = dict(zip(names, scorer.locals(parents), strict=True))
    known = edges_of(names, found.graph.astype(bool) & found.bounds.known)
    strengths = bootstrapped(names, len(x), replicates, _learner(event, x, plan), seed, workers) if replicates else None
    one = ("one row: it can show no edge",) if len(x) == 1 else ()
    return Structure(
        names, edges_of(names, found.graph), sum(parts.values()) if found.score is None else found.score,
        _named(scorer.criterion if found.score is None else plan.criterion), plan.method, len(x), parts, found.steps,
        found.evaluated, strengths, known, (*found.data.notes, *found.bounds.notes, *one, *found.notes),
    )  # fmt: skip


def _named(criterion: Criterion) -> str:
    return f"bdeu({criterion.ess:g})" if criterion.name == "bdeu" else criterion.name


def _once(event: Table, x: Tensor, plan: Plan, seed: int) -> Found:
    """One graph; rows with missing cells go through structural EM."""
    if not x.isnan().any():
        data = read(event, x.numpy())
        return plan.run(Scorer(data, plan.criterion), plan.bounds(data), seed)
    rounds: list[Found] = []

    def complete(data: Data, start: np.ndarray) -> np.ndarray:
        rounds.append(plan.run(Scorer(data, plan.criterion), plan.bounds(data), seed, start))
        return rounds[-1].graph

    first = plan.bounds(read(event, torch.nan_to_num(x).numpy())).required
    em = StructuralEM(event, plan.criterion, complete, torch.Generator().manual_seed(seed))
    graph, score, data = em.run(x, first)
    evaluated = sum(each.evaluated for each in rounds)
    return replace(rounds[-1], graph=graph, data=data, evaluated=evaluated, score=score, notes=tuple(em.notes))


def _learner(event: Table, x: Tensor, plan: Plan) -> Learner:
    """Of resampled rows; complete ones are read once."""
    if x.isnan().any():
        return lambda rows, seed: _once(event, x[torch.from_numpy(rows)], plan, seed).graph
    data = read(event, x.numpy())
    bounds = plan.bounds(data)
    return lambda rows, seed: plan.run(Scorer(data.take(rows), plan.criterion), bounds, seed).graph
