"""The log-probability of rows with gaps, each row by the strongest means that it allows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen import cliques
from probgen.conditionals import Point
from probgen.errors import ParameterError
from probgen.logprob import Kind, LogProb
from probgen.models.bayesnet.bundles import Layout, Shelf, portions
from probgen.models.bayesnet.gaussian import Component
from probgen.models.bayesnet.normals import Normals
from probgen.models.bayesnet.queries import draws
from probgen.models.bayesnet.scoring import Group, Scored, affordable, cells_of, groups, measure, some_rows, summed
from probgen.models.bayesnet.weighting import check_samples, judged, stream, streams

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["PosteriorWeighting", "log_prob"]

_TREE = "clique tree"


@dataclass(frozen=True)
class PosteriorWeighting:
    """A lower bound for rows without an exact sum: what ``log_prob`` does with them by itself.

    The row's nodes fall into those that sum and integrate exactly and the late ones (say, a logistic child of a real
    that is missing). Missing cells are drawn from their exact posterior given the former; the bound is log p(the exact
    ones) plus the log of the mean, over draws, of the probability of the late observed cells. Kind lower, with a pilot
    that decides whether a standard error is printed, as with ``IWAE`` (which asks for an effective sample size of
    400, and a Pareto k that is surely below 0.4: both are in ``diagnostics``); rows with an exact sum stay exact.

    Arguments:
        samples: Draws a row.
    """

    samples: int = 1000

    def __post_init__(self) -> None:
        check_samples(self.samples)

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if not hasattr(model, "conditional"):
            why = f"{type(model).__name__} is no Bayesian network"
            return LogProb.refuse(len(x), why, "log_prob(x) without by=", by=repr(self))
        if given is not None:
            raise ParameterError("given= with by=", "the cells themselves", "Put them into the rows, or leave by= out")
        return log_prob(model, x, generator, self)

    def bound(self, net: "BayesianNetwork", group: Group, rest: Scored, generator: torch.Generator) -> LogProb:
        """Of rows with late nodes."""
        exact, keys = summed(net, rest), streams(group.x, generator)
        found = [self._row(net, group, rest, i, int(key), float(exact[i])) for i, key in enumerate(keys)]
        nats, stderr, ess, k = (np.array(column) for column in zip(*found, strict=True))
        kinds = np.where(np.isneginf(exact.numpy()), str(Kind.EXACT), str(Kind.LOWER))
        about = {"ess": ess, "pareto_k": k, "samples": np.full(len(ess), self.samples)}
        return LogProb(list(kinds), nats, by=repr(self), stderr=stderr, draws=keys, diagnostics=about)

    def _row(
        self, net: "BayesianNetwork", group: Group, rest: Scored, i: int, key: int, exact: float
    ) -> tuple[float, float, float, float]:
        if exact == -math.inf:
            return exact, 0.0, math.nan, math.nan
        row = torch.tensor([i])
        part, alone = some_rows(rest, row), Group(row, group.x[row], None, late=group.late)
        pilot, main = (self._weights(net, alone, part, stream(key, salt)) for salt in ("pilot", "main"))
        nats, stderr, ess, k = judged(pilot, main)
        return exact + nats, stderr, ess, k

    def _weights(self, net: "BayesianNetwork", group: Group, rest: Scored, generator: torch.Generator) -> Tensor:
        """log of the product of the late observed cells' conditionals, (samples,), in nats."""
        cells = draws(net, group.x, rest, self.samples, generator)[0]
        total = cells.new_zeros(self.samples)
        for name in group.late:
            child, parents = cells_of(net, cells, name)
            if bool(group.x[0, net.index[name]].isnan()):
                cells[:, net.index[name]] = net.conditional(name).sample(parents, generator)
            else:
                total = total + net.conditional(name).log_prob(child, parents)
        return total


def log_prob(
    net: "BayesianNetwork",
    x: Tensor,
    generator: torch.Generator,
    weighting: PosteriorWeighting = PosteriorWeighting(),
) -> LogProb:
    """Of checked rows: exact, or a lower bound, or a refusal, row by row."""
    parts, places = list[LogProb](), list[Tensor]()
    left = torch.arange(len(x))
    if len(net.discrete) < len(net.variables):
        solved = list(_bundled(net, x))
        parts += [part for _, part in solved]
        places += [rows for rows, _ in solved]
        left = left[~torch.isin(left, torch.cat(places))] if places else left
    for group in groups(net, x[left]) if len(left) or not parts else ():
        for rows, part in _answers(net, group, generator, weighting):
            parts.append(part)
            places.append(left[rows])
    if any(part.diagnostics for part in parts):
        parts = [part if part.diagnostics else part.replace(diagnostics=_nothing_drawn(len(part))) for part in parts]
    found = parts[0] if len(parts) == 1 else LogProb.concat(parts)[torch.cat(places).argsort().numpy()]
    return found.replace(measure=measure(net)) if any(isinstance(part, Point) for part in net.parts) else found


def _bundled(net: "BayesianNetwork", x: Tensor) -> Iterator[tuple[Tensor, LogProb]]:
    """The rows with an exact sum of bounded size, many patterns of gaps at once."""
    first, tables = (
        0,
        {name: net.conditional(name).log_table() for name in net.variables if net.conditional(name).tabular},
    )
    for portion in portions(net, x):
        known: dict[Component, int] = {}
        layout = Layout(net, portion, known)
        normals = Normals(net, list(known))
        layout.bind(normals)
        for _, sheet, factors, nats in layout.products(normals.solve(), tables):
            rows = torch.arange(len(sheet.rows))
            if sheet.plan is not None:
                codes = sheet.codes
                if sheet.plan.cost().entries > net.limit:
                    rows = (cliques.row_cost(sheet.plan, codes) <= net.limit).nonzero()[:, 0]
                    factors = [
                        f[rows] if isinstance(n, Shelf) else f for n, f in zip(sheet.nodes, factors, strict=True)
                    ]
                    codes, nats = codes[rows], nats[rows]
                nats = nats + cliques.log_prob(sheet.plan, factors, codes, limit=net.limit)
            if len(rows):
                by = _TREE + ", Gaussian integrals" * sheet.integrals
                yield sheet.rows[rows] + first, LogProb(Kind.EXACT, nats, by=by)
        first += len(portion)


def _nothing_drawn(n: int) -> dict[str, np.ndarray]:
    """Diagnostics of exact rows beside bounded ones."""
    return {"ess": np.full(n, math.nan), "pareto_k": np.full(n, math.nan), "samples": np.zeros(n, dtype=int)}


def _answers(
    net: "BayesianNetwork", group: Group, generator: torch.Generator, weighting: PosteriorWeighting
) -> Iterator[tuple[Tensor, LogProb]]:
    found = group.scored or group.rest
    if found is None:
        yield group.rows, _refused(net, len(group.rows), group.obstacle)
        return
    small = affordable(net, found, full=bool(group.late))
    if not bool(small.all()):
        yield group.rows[~small], _refused(net, int((~small).sum()), _too_large(net, found, bool(group.late)))
        if not bool(small.any()):
            return
        found, group = some_rows(found, small), Group(group.rows[small], group.x[small], None, late=group.late)
    if group.late:
        yield group.rows, weighting.bound(net, group, found, generator)
    else:
        integrals = any(isinstance(node, Component) for node in (*found.nodes, *found.apart))
        yield group.rows, LogProb(Kind.EXACT, summed(net, found), by=_TREE + ", Gaussian integrals" * integrals)


def _too_large(net: "BayesianNetwork", found: Scored, full: bool) -> str:
    costs = cliques.row_cost(found.plan, found.codes, full)
    n, most = int((costs > net.limit).sum()), float(costs.max())
    return f"{n} rows leave so much open that it takes up to {most:.3g} table entries a row, the limit is {net.limit}"


def _refused(net: "BayesianNetwork", n: int, why: str) -> LogProb:
    instead = "log_prob(x, by=probgen.models.bayesnet.LikelihoodWeighting(samples=10_000)), a lower bound"
    return LogProb.refuse(n, why, f"{instead}, or a larger {type(net).__name__}.limit", by=_TREE)
