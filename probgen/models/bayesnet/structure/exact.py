"""The best of all graphs, by dynamic programming over sets of variables (Silander and Myllymaki 2006)."""

import math

import numpy as np

from probgen.errors import StructureError
from probgen.models.bayesnet.structure.constraints import Constraints
from probgen.models.bayesnet.structure.scores import Scorer

__all__ = ["MOST", "exact"]

MOST = 20  # variables
_BATCH = 4096  # families scored at a time


def exact(scorer: Scorer, constraints: Constraints) -> np.ndarray:
    """The graph of the highest score that meets the constraints, (V, V) uint8 [parent, child].

    Time and memory grow as V 2^V: 2^V numbers for the best last variable of each set, and as many for each variable's
    best parents within each set. Sets are bit masks.

    Raises:
        StructureError: more than 20 variables, or families without a finite score.
    """
    V = scorer.data.width
    if V > MOST:
        raise StructureError(f"{V} columns for an exact search", f"at most {MOST}", "method='tabu' has no such limit")
    values, choices = np.empty((V, 2 ** max(V - 1, 0))), np.empty((V, 2 ** max(V - 1, 0)), dtype=np.int32)
    for child in range(V):
        values[child] = _families(scorer, constraints, child)
        choices[child] = _best_within(values[child])
    lasts = _lasts(values)
    graph, left = np.zeros((V, V), dtype=np.uint8), 2**V - 1
    while left:
        child = int(lasts[left])
        left &= ~(1 << child)
        chosen = int(choices[child][_without(np.array([left]), child)[0]])
        graph[[p for p in range(V) if _with(chosen, child) >> p & 1], child] = 1
    return graph


def _without(sets: np.ndarray, child: int) -> np.ndarray:
    """Masks over all variables, which lack the child, as masks over the others."""
    low = (1 << child) - 1
    return (sets & low) | ((sets >> 1) & ~low)


def _with(mask: int, child: int) -> int:
    low = (1 << child) - 1
    return (mask & low) | ((mask & ~low) << 1)


def _families(scorer: Scorer, constraints: Constraints, child: int) -> np.ndarray:
    """Scores of a child with every set of parents, by mask over the others; -inf where that can't be the best.

    One row of scores covers a set and all that differ from it in one variable, so only the words of a Hamming code
    (Hamming 1950) are asked for: they cover every set.
    """
    others = [v for v in range(scorer.data.width) if v != child]
    scores = np.full(2 ** len(others), -math.inf)
    wanted = _wanted(scorer, constraints, child, others)
    words = _code_words(len(others))
    near = wanted[words]
    for bit in range(len(others)):
        near |= wanted[words ^ (1 << bit)]
    words = words[near]
    for start in range(0, len(words), _BATCH):
        own = words[start : start + _BATCH]
        rows = scorer.rows([(child, [v for i, v in enumerate(others) if word >> i & 1]) for word in own.tolist()])
        scores[own] = rows[:, child]
        for bit, other in enumerate(others):
            scores[own ^ (1 << bit)] = rows[:, other]
    scores[~wanted] = -math.inf
    return scores


def _code_words(length: int) -> np.ndarray:
    """Masks of which one is at most one bit away from every mask of that length."""
    coded = 2 ** ((length + 1).bit_length() - 1) - 1  # the longest perfect code that fits; further bits are free
    masks = np.arange(2**length, dtype=np.int64)
    syndrome = np.zeros_like(masks)
    for bit in range(coded):
        syndrome ^= np.where(masks >> bit & 1, bit + 1, 0)
    return masks[syndrome == 0]


def _wanted(scorer: Scorer, constraints: Constraints, child: int, others: list[int]) -> np.ndarray:
    """Parent sets that meet the constraints and could beat having no parents."""
    masks = np.arange(2 ** len(others), dtype=np.int64)
    sizes, log_configurations = np.zeros(len(masks), dtype=np.int64), np.zeros(len(masks))
    free = np.ones(len(masks), dtype=bool)
    for bit, other in enumerate(others):
        there = (masks >> bit & 1).astype(bool)
        sizes += there
        log_configurations += there * math.log(scorer.data.cards[other])
        free &= (
            ~there if not constraints.allowed[other, child] else there if constraints.required[other, child] else True
        )
    free &= sizes <= constraints.most[child]
    if constraints.required[:, child].any() or scorer.data.mixed:
        return free
    return free & _affordable(scorer, child, np.exp(log_configurations))


def _affordable(scorer: Scorer, child: int, configurations: np.ndarray) -> np.ndarray:
    """A table's log-likelihood is at most 0, so a set whose penalty alone is more than having no parents costs is out
    (de Campos and Ji 2011)."""
    criterion, rows, levels = scorer.criterion, scorer.data.rows, int(scorer.data.cards[child])
    if criterion.name not in ("bic", "aic"):
        return np.ones(len(configurations), dtype=bool)
    return criterion.penalty(1.0, rows) * configurations * (levels - 1) <= -scorer.local(child, ()) + 1e-6


def _best_within(scores: np.ndarray) -> np.ndarray:
    """For each set, the best of its subsets; ``scores`` becomes its score. Ties go to the smaller set."""
    choice = np.arange(len(scores), dtype=np.int32)
    for bit in range((len(scores) - 1).bit_length()):
        table, chosen = scores.reshape(-1, 2, 1 << bit), choice.reshape(-1, 2, 1 << bit)
        better = table[:, 0] >= table[:, 1]
        table[:, 1] = np.where(better, table[:, 0], table[:, 1])
        chosen[:, 1] = np.where(better, chosen[:, 0], chosen[:, 1])
    return choice


def _lasts(values: np.ndarray) -> np.ndarray:
    """For each set of variables, which comes last in its best graph.

    Raises:
        StructureError: no graph has a finite score.
    """
    V = len(values)
    best, last = np.full(2**V, -math.inf), np.zeros(2**V, dtype=np.int8)
    best[0] = 0.0
    masks = np.arange(2**V, dtype=np.int64)
    sizes = sum((masks >> v & 1 for v in range(V)), np.zeros_like(masks))
    for size in range(1, V + 1):
        layer = masks[sizes == size]
        for child in range(V):
            own = layer[(layer >> child & 1).astype(bool)]
            rest = own & ~(1 << child)
            found = best[rest] + values[child][_without(rest, child)]
            better = found > best[own]
            best[own[better]], last[own[better]] = found[better], child
    if best[-1] == -math.inf:
        raise StructureError("No graph meets the constraints with a finite score", "constraints that data can bear")
    return last
