"""EM of a full-covariance mixture beside scikit-learn's: python tests/benchmarks/bench_mixture.py [rows] [pairs]

Agreement first: the same start and the same number of iterations give the same log-likelihood. Then interleaved runs,
and the median of their ratios.
"""

import statistics
import sys
import time
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from probgen import emissions
from probgen.events import Array
from probgen.models.mixture import Mixture

K, D, ITERATIONS = 8, 16, 20


def data(rows):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(rows // K, D)) @ rng.normal(size=(D, D)) * 0.4 + 3 * rng.normal(size=D) for _ in range(K)]
    return rng.permutation(np.concatenate(parts))


def theirs(x, start):
    model = GaussianMixture(
        K, reg_covar=0, tol=0, max_iter=ITERATIONS,
        weights_init=start.weights_, means_init=start.means_, precisions_init=start.precisions_,
    )  # fmt: skip
    began = time.perf_counter()
    model.fit(x)
    return time.perf_counter() - began, model.score_samples(x).sum()


@torch.no_grad()
def ours(x, start):
    """The same iterations through the family's own steps."""
    model = Mixture(Array((D,)), K, emissions.Normal(D, "full", floor=0.0))
    model.emission.loc.copy_(torch.from_numpy(start.means_))
    model.emission._set_factor(torch.linalg.cholesky(torch.from_numpy(start.covariances_)))
    model.logits.copy_(torch.from_numpy(start.weights_).log())
    cells = torch.from_numpy(x)
    began = time.perf_counter()
    for _ in range(ITERATIONS):
        model._maximise(model._expect(cells)[1])
    return time.perf_counter() - began, model._log_prob(cells, None, generator=torch.Generator()).sum().value


def main(rows=100_000, pairs=5):
    warnings.simplefilter("ignore", ConvergenceWarning)
    x = data(rows)
    start = GaussianMixture(K, reg_covar=0, max_iter=1, tol=0, random_state=0).fit(x)
    ratios = []
    for _ in range(pairs):
        (a, their_sum), (b, our_sum) = theirs(x, start), ours(x, start)
        assert abs(their_sum - our_sum) <= 1e-8 * abs(their_sum), (their_sum, our_sum)
        ratios.append(a / b)
        print(f"scikit-learn {a:.2f} s, probgen {b:.2f} s, ratio {a / b:.2f}; {their_sum:.6f} and {our_sum:.6f} nats")
    middle = statistics.median(ratios)
    print(f"{rows} x {D}, K={K}, {ITERATIONS} iterations: {middle:.2f} times as fast (median of {pairs})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
