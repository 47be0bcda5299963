"""How often the right partner is found among many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import ParameterError

__all__ = ["Retrieval", "recalls"]


@dataclass(frozen=True)
class Retrieval:
    """Recall at k: the share of queries with a right answer among the k nearest.

    Arguments:
        recall: By direction, "caption given image", and by k.
        chance: The same for a random order.
        pool: By direction, among how many the answer is sought; equal ones count once.
        queries: By direction, how many were asked.
    """

    recall: Mapping[str, Mapping[int, float]]
    chance: Mapping[str, Mapping[int, float]]
    pool: Mapping[str, int]
    queries: Mapping[str, int]

    def frame(self) -> Any:
        """A row a direction and k (pyarrow.Table)."""
        rows = [(way, k, share) for way, shares in self.recall.items() for k, share in shares.items()]
        return frames.table(
            {
                "direction": [way for way, _, _ in rows],
                "k": [k for _, k, _ in rows],
                "recall": [share for _, _, share in rows],
                "chance": [self.chance[way][k] for way, k, _ in rows],
                "queries": [self.queries[way] for way, _, _ in rows],
                "pool": [self.pool[way] for way, _, _ in rows],
            }
        )

    def __str__(self) -> str:
        wide = max(map(len, self.recall))
        lines = [f"{'retrieval':{wide}}  {'k':>4}  recall  chance  queries  pool"]
        for way, shares in self.recall.items():
            for k, share in shares.items():
                counts = f"{self.queries[way]:7}  {self.pool[way]:4}"
                lines.append(f"{way:{wide}}  {k:4}  {share:6.1%}  {self.chance[way][k]:6.1%}  {counts}")
        return "\n".join(lines)


def recalls(scores: np.ndarray, right: np.ndarray, ks: Sequence[int]) -> tuple[dict[int, float], dict[int, float]]:
    """Recall at each k, and that of a random order.

    Of equal scores the wrong one is taken first, so that a model that says nothing finds nothing.

    Arguments:
        scores: Of each query (n) for each candidate, (n, m).
        right: Whether a candidate answers a query, bool (n, m); at least one does.

    Raises:
        ParameterError: a k that is no whole number from 1.
    """
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ParameterError(f"k={k!r}", "whole numbers from 1: k=(1, 5, 10)")
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    before = ((scores >= best) & ~right).sum(1)
    hits, m = right.sum(1), right.shape[1]
    found = {int(k): float((before < k).mean()) for k in ks}
    return found, {int(k): float(1 - _none(hits, m, int(k)).mean()) for k in ks}


def _none(hits: np.ndarray, m: int, k: int) -> np.ndarray:
    """Probability that none of k candidates drawn without replacement from m is one of ``hits``, (n,)."""
    missed = np.ones(len(hits))
    for i in range(min(k, m)):
        missed *= np.clip(m - hits - i, 0, None) / (m - i)
    return missed
