"""Conditional linear Gaussian likelihoods of families with a continuous child."""

import math

import numpy as np

from probgen.models.bayesnet.structure.columns import Data

__all__ = ["Regressions"]

_FLOOR = 1e-6  # residual variance at least, relative to the child's: as conditionals.LinearGaussian has it
_FLAT = 1e-10
_KEPT = 64  # sets of discrete parents whose moments are kept


class Regressions:
    """Maximised log-likelihoods of child | parents ~ N(a_d + b_d . u, s_d^2): a regression for each configuration d
    of the discrete parents (Lauritzen and Wermuth 1989), u the continuous parents.

    All come from the second moments of the continuous columns within configurations, which are kept by the set of
    discrete parents: a family costs one small solve a configuration, and no pass over the rows.
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        self.place = {int(v): i + 1 for i, v in enumerate(np.flatnonzero(data.continuous))}
        ones = np.ones((1, len(data)))
        self.columns = np.concatenate([ones, data.numbers[data.continuous]])
        self._moments: dict[tuple[int, ...], np.ndarray] = {}

    def log_likelihood(
        self, child: int, inputs: tuple[int, ...], discrete: tuple[int, ...], labels: np.ndarray, groups: int,
        configurations: float,
    ) -> tuple[float, float]:  # fmt: skip
        """In nats, and the number of parameters; -inf where a configuration has rows, but too few for its regression.

        Arguments:
            child, inputs, discrete: The child, its continuous and its discrete parents.
            labels, groups: Each row's configuration, and how many are numbered.
            configurations: Configurations in all.
        """
        params = configurations * (len(inputs) + 2)
        if self.data.constant[child]:
            return 0.0, params
        second = self.moments(discrete, labels, groups)
        rows = second[:, 0, 0] * self.data.share
        if ((rows > 0) & (rows < len(inputs) + 2)).any():
            return -math.inf, params
        second, rows = second[rows > 0], rows[rows > 0]
        variance = _residual(second, [0, *(self.place[v] for v in inputs)], self.place[child])
        floored = np.maximum(variance, _FLOOR)
        nats = -0.5 * rows * (math.log(2 * math.pi) + np.log(floored) + variance / floored)
        return float(nats.sum()) - float(rows.sum()) * math.log(self.data.scales[child]), params

    def moments(self, discrete: tuple[int, ...], labels: np.ndarray, groups: int) -> np.ndarray:
        """Sums of u u' with u = (1, continuous columns), by configuration: (groups, m, m)."""
        if discrete not in self._moments:
            if len(self._moments) >= _KEPT:
                self._moments.pop(next(iter(self._moments)))
            self._moments[discrete] = self._summed(labels, groups)
        return self._moments[discrete]

    def _summed(self, labels: np.ndarray, groups: int) -> np.ndarray:
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels, minlength=groups))
        found = np.zeros((groups, len(self.columns), len(self.columns)))
        sorted_columns = self.columns[:, order]
        for group, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            own = sorted_columns[:, start:end]
            found[group] = own @ own.T
        return found


def _residual(second: np.ndarray, inputs: list[int], child: int) -> np.ndarray:
    """Mean squared residual of the child in each configuration; collinear inputs keep the directions that vary."""
    gram, cross = second[:, inputs][:, :, inputs], second[:, inputs, child]
    weights = np.linalg.pinv(gram, rcond=_FLAT, hermitian=True) @ cross[..., None]
    left = second[:, child, child] - (cross * weights[..., 0]).sum(-1)
    return np.maximum(left, 0.0) / second[:, 0, 0]
