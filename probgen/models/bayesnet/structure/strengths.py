"""How sure edges are: the graphs of bootstrap samples."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from probgen.errors import ParameterError
from probgen.models.bayesnet import graph
from probgen.models.bayesnet.structure.result import Strengths, edges_of

__all__ = ["bootstrap"]

Learner = Callable[[np.ndarray, int], np.ndarray]


def bootstrap(
    names: tuple[str, ...], n: int, replicates: int, learn: Learner, seed: int, workers: int = 1
) -> Strengths:
    """Learns graphs from samples of n rows with replacement and counts the edges of their equivalence classes.

    A sample depends on the seed and its own number alone, so the result does not depend on ``workers``.

    Arguments:
        learn: From row numbers (n,) and a seed to a graph (V, V) [parent, child].
        workers: Threads; the kernel lets them run at once.
    """
    for name, value in (("bootstrap", replicates), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name}={value!r}", "a whole number, at least 1")

    def one(replicate: int) -> np.ndarray:
        rng = np.random.default_rng([seed, replicate])
        found = learn(rng.integers(0, n, n), int(rng.integers(2**62)))
        return _shares(names, found)

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(one, range(replicates)))
    return Strengths(names, np.sum(found, axis=0) / replicates, replicates)


def _shares(names: tuple[str, ...], found: np.ndarray) -> np.ndarray:
    """1 at directed edges of the equivalence class, 1/2 both ways at those that are not."""
    place = {name: i for i, name in enumerate(names)}
    directed, undirected = graph.cpdag(graph.parents_of(names, edges_of(names, found)))
    shares = np.zeros((len(names), len(names)))
    for a, b in directed:
        shares[place[a], place[b]] = 1.0
    for a, b in undirected:
        shares[place[a], place[b]] = shares[place[b], place[a]] = 0.5
    return shares
