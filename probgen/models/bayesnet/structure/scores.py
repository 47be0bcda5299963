"""Decomposable scores: what a family (a variable and its parents) is worth, in nats, higher is better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from probgen import kernels
from probgen.errors import ParameterError
from probgen.models.bayesnet.structure.columns import Data
from probgen.models.bayesnet.structure.regressions import Regressions

__all__ = ["KINDS", "Criterion", "Scorer"]

KINDS = {"loglik": 0, "bic": 1, "aic": 2, "bdeu": 3, "k2": 4}


@dataclass(frozen=True)
class Criterion:
    """A score by name.

    Arguments:
        name: "bic" (Schwarz 1978: log-likelihood - params/2 log n), "aic" (log-likelihood - params), "bdeu"
            (log marginal likelihood under ``ess`` prior rows spread evenly; Heckerman, Geiger and Chickering 1995),
            "k2" (the same with one prior row a cell; Cooper and Herskovits 1992) or "loglik".
        ess: Equivalent sample size of "bdeu".
    """

    name: str = "bic"
    ess: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise ParameterError(f"score={self.name!r}", f"one of {', '.join(KINDS)}")
        number = isinstance(self.ess, int | float) and not isinstance(self.ess, bool)
        if not number or not 0 < self.ess < math.inf:
            raise ParameterError(f"ess={self.ess!r}", "prior rows, a number above 0")

    @property
    def bayesian(self) -> bool:
        return self.name in ("bdeu", "k2")

    def penalty(self, params: float, rows: float) -> float:
        """What parameters cost, in nats."""
        return 0.5 * math.log(rows) * params if self.name == "bic" else params if self.name == "aic" else 0.0

    def table(self, counts: np.ndarray, configurations: float, rows: float) -> float:
        """Of a category's counts (configurations, levels), in nats; ``configurations`` counts empty ones as well."""
        levels, per = counts.shape[1], counts.sum(1)
        if self.bayesian:
            each = self.ess / (configurations * levels) if self.name == "bdeu" else 1.0
            whole = each * levels
            return float(_log_gamma(counts, each).sum() - _log_gamma(per, whole).sum())
        nats = _x_log_x(counts).sum() - _x_log_x(per).sum()
        return float(nats) - self.penalty(configurations * (levels - 1), rows)


def _log_gamma(counts: np.ndarray, alpha: float) -> np.ndarray:
    """lgamma(counts + alpha) - lgamma(alpha)."""
    seen = torch.from_numpy(counts.astype(np.float64))
    return np.where(counts > 0, (torch.lgamma(seen + alpha) - math.lgamma(alpha)).numpy(), 0.0)


def _x_log_x(counts: np.ndarray) -> np.ndarray:
    return counts * np.log(np.where(counts > 0, counts, 1))


@dataclass(eq=False)
class Scorer:
    """Scores of families over some data. A *row* of scores is of a child and its parents, (V,): in the child's own
    place the score of the family, in place z of the family with z taken out of the parents if it is one, else added.

    Continuous children have conditional linear Gaussian scores (see ``Regressions``); a category has none (-inf) with
    a continuous parent. Rows are kept, so that a search pays for each family once.
    """

    data: Data
    criterion: Criterion
    evaluated: int = 0
    _rows: dict[tuple[int, tuple[int, ...]], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.mixed and self.criterion.bayesian:
            raise ParameterError(
                f"score={self.criterion.name!r} for real columns or counts", "'bic' or 'aic'",
                "Or declare the columns as events.Category",
            )  # fmt: skip
        self._regressions = Regressions(self.data) if self.data.mixed else None
        self._grouping = lru_cache(16)(self._groups)

    @property
    def compiled(self) -> bool:
        """Whether the kernel can do the whole of it."""
        return kernels.counting is not None and not self.data.mixed

    def local(self, child: int, parents: Sequence[int]) -> float:
        """The score of one family."""
        return float(self.row(child, parents)[child])

    def total(self, parents: Sequence[Sequence[int]]) -> float:
        """The score of a graph, given each variable's parents."""
        return sum(self.locals(parents))

    def locals(self, parents: Sequence[Sequence[int]]) -> list[float]:
        """The score of each family of a graph; those not yet known are counted at once."""
        keys = [(child, tuple(sorted(own))) for child, own in enumerate(parents)]
        new = [key for key in keys if key not in self._rows]
        self._rows |= dict(zip(new, self.rows(new), strict=True)) if new else {}
        return [float(self._rows[key][key[0]]) for key in keys]

    def row(self, child: int, parents: Sequence[int]) -> np.ndarray:
        key = (child, tuple(sorted(parents)))
        if key not in self._rows:
            self._rows[key] = self.rows([key])[0]
        return self._rows[key]

    def rows(self, families: Sequence[tuple[int, Sequence[int]]]) -> np.ndarray:
        """Rows of many families (child, parents), (m, V). These are not kept."""
        self.evaluated += len(families)
        if not self.compiled:
            return np.stack([self._row(child, tuple(sorted(parents))) for child, parents in families])
        members = np.array([v for child, parents in families for v in (child, *parents)], dtype=np.int64)
        starts = np.cumsum([0] + [1 + len(parents) for _, parents in families], dtype=np.int64)
        out = np.empty((len(families), self.data.width))
        options = (KINDS[self.criterion.name], self.criterion.ess, self.data.share, out)
        kernels.counting.toggled(self.data.codes, self.data.cards, members, starts, *options)  # type: ignore[union-attr]
        return out

    # The same without the kernel, and with continuous columns

    def _row(self, child: int, parents: tuple[int, ...]) -> np.ndarray:
        return np.array([self._score(child, _toggled(child, parents, z)) for z in range(self.data.width)])

    def _score(self, child: int, parents: tuple[int, ...]) -> float:
        discrete = tuple(p for p in parents if not self.data.continuous[p])
        if self._regressions is None or not self.data.continuous[child]:
            return self._table(child, parents) if len(discrete) == len(parents) else -math.inf
        inputs = tuple(p for p in parents if self.data.continuous[p])
        nats, params = self._regressions.log_likelihood(child, inputs, discrete, *self._grouping(discrete))
        return nats - self.criterion.penalty(params, self.data.rows)

    def _table(self, child: int, parents: tuple[int, ...]) -> float:
        labels, groups, configurations = self._grouping(parents)
        levels = int(self.data.cards[child])
        joint = labels * levels + self.data.codes[child]
        counts = np.bincount(joint, minlength=groups * levels).reshape(groups, levels) * self.data.share
        return self.criterion.table(counts, configurations, self.data.rows)

    def _groups(self, parents: tuple[int, ...]) -> tuple[np.ndarray, int, float]:
        """Each row's configuration of discrete parents (n,), how many are numbered, and how many there are in all."""
        labels, groups, configurations = np.zeros(len(self.data), dtype=np.int64), 1, 1.0
        for parent in parents:
            labels = labels * self.data.cards[parent] + self.data.codes[parent]
            groups, configurations = groups * int(self.data.cards[parent]), configurations * self.data.cards[parent]
            if groups > 4 * len(self.data):
                found, labels = np.unique(labels, return_inverse=True)
                groups = len(found)
        return labels, groups, float(configurations)


def _toggled(child: int, parents: tuple[int, ...], z: int) -> tuple[int, ...]:
    if z == child:
        return parents
    return tuple(p for p in parents if p != z) if z in parents else tuple(sorted((*parents, z)))
