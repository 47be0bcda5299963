"""Graphs from rows with missing cells: structural EM (Friedman 1997)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from probgen.errors import DataError, ParameterError
from probgen.events import Table
from probgen.models.bayesnet.network import BayesianNetwork
from probgen.models.bayesnet.queries import conditional_sample
from probgen.models.bayesnet.structure.columns import Data, read
from probgen.models.bayesnet.structure.result import edges_of
from probgen.models.bayesnet.structure.scores import Criterion

__all__ = ["StructuralEM"]

DRAWS = 8  # completions of a row
_ROUNDS = 20
_PATIENCE = 2  # rounds in a row that may bring nothing: completions are drawn


@dataclass(eq=False)
class StructuralEM:
    """Alternates between a network fitted by EM to the rows as they are, exact draws of their missing cells from it,
    and the best graph for the completed rows, each of which counts 1 / draws.

    Draws replace Friedman's expected counts, which would have to be inferred for every family that a search looks at.
    A graph is kept only if the score of the *observed* cells (exact log-likelihood less the penalty) is better, so
    that the result never is worse than where it began.

    Arguments:
        event: Of the columns.
        criterion: "bic" or "aic".
        search: From completed rows and a start graph to a graph, (V, V) [parent, child].
        generator: Of the draws.
        notes: What happened.
    """

    event: Table
    criterion: Criterion
    search: Callable[[Data, np.ndarray], np.ndarray]
    generator: torch.Generator
    draws: int = DRAWS
    notes: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.criterion.bayesian:
            raise ParameterError(
                f"score={self.criterion.name!r} with missing cells", "'bic' or 'aic'",
                "The marginal likelihood of incomplete rows has no closed form",
            )  # fmt: skip

    def run(self, x: Tensor, start: np.ndarray) -> tuple[np.ndarray, float, Data]:
        """The graph, its score on the observed cells in nats, and the last completed rows.

        Arguments:
            x: Checked rows (n, V), NaN = missing.
            start: (V, V) uint8, the first graph.
        """
        self._refuse_empty(x)
        best, net = start, self._fitted(x, start)
        top, idle = self._observed(net, x), 0
        data = self._completed(net, x)
        self.scores.append(top)
        for _ in range(_ROUNDS):
            graph = self.search(data, best)
            candidate = net if np.array_equal(graph, best) else self._fitted(x, graph)
            score = self._observed(candidate, x)
            self.scores.append(score)
            if score > top + 1e-6:
                best, net, top, idle = graph, candidate, score, 0
            elif (idle := idle + 1) > _PATIENCE:
                break
            data = self._completed(net, x)
        gaps = int(x.isnan().sum())
        self.notes.append(
            f"{gaps} missing cells, taken as missing at random: structural EM over {len(self.scores) - 1} rounds of "
            f"{self.draws} completions a row; the score is of the observed cells"
        )
        return best, top, data

    def _refuse_empty(self, x: Tensor) -> None:
        empty = x.isnan().all(0)
        if empty.any():
            name = list(self.event.columns)[int(empty.nonzero()[0])]
            raise DataError(f"Column {name!r} has no values", "at least one", "Leave it out, or give the graph and fit")

    def _fitted(self, x: Tensor, graph: np.ndarray) -> BayesianNetwork:
        net = BayesianNetwork(self.event, edges_of(tuple(self.event.columns), graph), learned=True)
        with torch.enable_grad():
            net.report = net._fit(x, None, generator=self.generator)
        return net.eval()

    def _observed(self, net: BayesianNetwork, x: Tensor) -> float:
        with torch.no_grad():
            nats = float(net._log_prob(x, None, generator=self.generator).nats.sum())
        return nats - self.criterion.penalty(net.n_params, len(x)) if math.isfinite(nats) else -math.inf

    def _completed(self, net: BayesianNetwork, x: Tensor) -> Data:
        with torch.no_grad():
            cells = conditional_sample(net, x, self.draws, self.generator)
        return read(self.event, cells.numpy(), 1.0 / self.draws)
