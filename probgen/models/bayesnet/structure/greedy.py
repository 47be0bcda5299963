"""Hill climbing and tabu search over directed acyclic graphs, with kicks from the best graph."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from probgen import kernels
from probgen.errors import ParameterError
from probgen.models.bayesnet.structure.constraints import Constraints
from probgen.models.bayesnet.structure.scores import KINDS, Scorer

__all__ = ["Greedy", "Step", "greedy"]

_TIE = 1e-9  # nats; gains that differ by less are the same, and the first in order is taken
_ACTIONS = ("add", "remove", "reverse")
_MASK = 2**64 - 1


class Step(NamedTuple):
    """One change of the graph, and the total score after it, in nats."""

    action: str
    parent: str
    child: str
    total: float


@dataclass(frozen=True)
class Greedy:
    """How a greedy search goes.

    Arguments:
        tabu: Steps for which a changed pair stays as it is, unless that gives the best graph of the climb.
        patience: Steps without a new best before a climb ends; 0: at the first optimum (hill climbing).
        restarts: Climbs from the best graph after a kick; None: as many as there are columns, but 40 at least.
        kicks: Random changes in one kick.
        moves: Steps in all.
        seed: Of the kicks.
    """

    tabu: int = 10
    patience: int = 15
    restarts: int | None = None
    kicks: int = 16
    moves: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name == "restarts":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
                raise ParameterError(f"{name}={value!r}", "a whole number from 0")

    def climbs(self, columns: int) -> int:
        """Restarts for that many columns."""
        return max(40, columns) if self.restarts is None else self.restarts

    @classmethod
    def hill(cls, **options: Any) -> "Greedy":
        """Hill climbing: no sideways steps. Restarts and kicks stay."""
        return cls(**{"tabu": 0, "patience": 0, **options})


def greedy(
    scorer: Scorer, constraints: Constraints, options: Greedy, start: np.ndarray
) -> tuple[np.ndarray, list[Step]]:
    """The best graph found, (V, V) uint8 [parent, child], and the steps made.

    Each step makes the best of all single changes (an edge added, removed or turned) that leave no cycle; after
    ``patience`` steps without a new best the search goes back to the best graph, makes random changes and climbs again
    (tabu search, Glover 1989, within an iterated local search; Bouckaert 1995 for networks). The kernel and this
    code take the same steps.

    Arguments:
        start: (V, V) uint8, a graph that meets the constraints.
    """
    if scorer.compiled:
        return _compiled(scorer, constraints, options, start)
    run = _Search(scorer, constraints, options, start)
    return run.best, run.steps


def _compiled(
    scorer: Scorer, constraints: Constraints, options: Greedy, start: np.ndarray
) -> tuple[np.ndarray, list[Step]]:
    data, criterion = scorer.data, scorer.criterion
    graph, history = start.astype(np.uint8).copy(), np.empty((min(options.moves, 100_000), 4))
    restarts = options.climbs(data.width)
    how = (options.tabu, options.patience, restarts, options.kicks, options.moves, options.seed)
    _, evaluated, made = kernels.counting.search(  # type: ignore[union-attr]
        data.codes, data.cards, KINDS[criterion.name], criterion.ess, data.share,
        constraints.allowed, constraints.required, constraints.most, how, graph, history,
    )  # fmt: skip
    scorer.evaluated += evaluated
    taken = history[: min(made, len(history))].tolist()
    return graph, [Step(_ACTIONS[int(k)], data.names[int(z)], data.names[int(y)], t) for k, z, y, t in taken]


class _Search:
    """The search in NumPy: the definition, and the way of scores that the kernel does not have.

    Matrices are [child, parent] here. ``banned`` holds the step from which a pair may change again.
    """

    def __init__(self, scorer: Scorer, constraints: Constraints, options: Greedy, start: np.ndarray) -> None:
        self.scorer, self.options = scorer, options
        self.allowed, self.required = constraints.allowed.T.astype(bool), constraints.required.T.astype(bool)
        self.most, self.steps, self.drawn = constraints.most, list[Step](), 0
        self.graph = start.T.astype(bool)
        self.rows = np.empty(self.graph.shape)
        self.banned = np.zeros(self.graph.shape, dtype=np.int64)
        self._look(range(len(self.graph)))
        self._keep()
        self._climb()
        for _ in range(options.climbs(len(self.graph))):
            if len(self.steps) >= options.moves:
                break
            self._restore()
            self._kick()
            self._climb()

    @property
    def total(self) -> float:
        return float(self.rows.diagonal().sum())

    def _look(self, children: "range | tuple[int, ...]") -> None:
        for child in children:
            self.rows[child] = self.scorer.row(child, np.flatnonzero(self.graph[child]).tolist())

    def _keep(self) -> None:
        self.best, self.best_total = self.graph.T.astype(np.uint8), self.total

    def _restore(self) -> None:
        self.graph = self.best.T.astype(bool)
        self._look(range(len(self.graph)))
        self.banned[:] = 0

    def _legal(self) -> tuple[np.ndarray, np.ndarray]:
        """Which edges may be toggled, and which may be turned."""
        above = _ancestors(self.graph)
        full = (self.graph.sum(1) >= self.most)[:, None]
        add = self.allowed & ~full & ~above.T & ~self.graph
        np.fill_diagonal(add, False)
        free = self.graph & ~self.required
        other_way = (self.graph.astype(np.int64) @ above.astype(np.int64)) > 0
        return add | free, free & self.allowed.T & ~full.T & ~other_way

    def _possible(self) -> tuple[np.ndarray, np.ndarray]:
        """The legal changes whose new families have a finite score."""
        toggle, turn = self._legal()
        finite = np.isfinite(self.rows)
        return toggle & finite, turn & finite & finite.T

    def _gains(self) -> np.ndarray:
        """Of every change, -inf where it is none: (child, parent, toggle or turn) in the order of the kernel.

        A change into a family of score -inf is none; one out of such a family gains inf.
        """
        toggle, turn = self._possible()
        with np.errstate(invalid="ignore"):
            gains = self.rows - self.rows.diagonal()[:, None]
            turned = gains + self.rows.T - self.rows.diagonal()
        return np.stack([np.where(toggle, gains, -math.inf), np.where(turn, turned, -math.inf)], axis=-1)

    def _make(self, child: int, parent: int, turn: int) -> None:
        action = 2 if turn else int(self.graph[child, parent])
        self.graph[child, parent] ^= True
        self.graph[parent, child] ^= bool(turn)
        self._look((child, parent) if turn else (child,))
        names = self.scorer.data.names
        self.steps.append(Step(_ACTIONS[action], names[parent], names[child], self.total))
        self.banned[child, parent] = self.banned[parent, child] = len(self.steps) + self.options.tabu

    def _climb(self) -> None:
        now = top = self.total
        idle = 0
        while idle <= self.options.patience and len(self.steps) < self.options.moves:
            gains = self._gains()
            with np.errstate(invalid="ignore"):  # -inf + inf, where a start is impossible
                open_pairs = (self.banned <= len(self.steps))[..., None] | (now + gains > top + _TIE)
            at, gain = _first_best(np.where(open_pairs, gains, -math.inf).reshape(-1))
            if at < 0 or (not self.options.patience and gain <= _TIE):
                return
            self._make(*(int(i) for i in np.unravel_index(at, gains.shape)))
            now, idle = self.total, idle + 1
            if now > top + _TIE:
                top, idle = now, 0
            if now > self.best_total + _TIE:
                self._keep()

    def _kick(self) -> None:
        for _ in range(self.options.kicks):
            toggle, turn = self._possible()
            changes = np.argwhere(np.stack([toggle, turn], axis=-1))
            adds = np.array([not (t or self.graph[y, z]) for y, z, t in changes], dtype=bool)
            third = self._draw() % 3 == 0
            chosen = changes[adds] if (third and adds.any()) or adds.all() else changes[~adds]
            if not len(chosen):
                return
            self._make(*(int(i) for i in chosen[self._draw() % len(chosen)]))

    def _draw(self) -> int:
        """Splitmix64 (Steele, Lea and Flood 2014), which the kernel draws from as well."""
        self.drawn += 1
        x = (self.options.seed + self.drawn * 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        return x ^ (x >> 31)


def _ancestors(graph: np.ndarray) -> np.ndarray:
    """[node, ancestor] of a graph [child, parent]."""
    above, open_parents = np.zeros_like(graph), graph.sum(1)
    ready = np.flatnonzero(open_parents == 0).tolist()
    for node in ready:  # grows while it is read
        for child in np.flatnonzero(graph[:, node]):
            above[child] |= above[node]
            above[child, node] = True
            open_parents[child] -= 1
            if not open_parents[child]:
                ready.append(int(child))
    return above


def _first_best(gains: np.ndarray) -> tuple[int, float]:
    """The change a scan would choose that moves on only to what is better by more than a tie; -1 if there is none."""
    tops = np.maximum.accumulate(np.concatenate([[-math.inf], gains]))
    at, best = -1, -math.inf
    for i in np.flatnonzero(tops[1:] > tops[:-1]):
        if gains[i] > best + _TIE:
            at, best = int(i), float(gains[i])
    return at, best
