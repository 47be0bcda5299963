"""Sample tests against the clock and against each other: python tests/benchmarks/bench_twosample.py PART [...]

speed              CPU seconds of each test at n = 1000 + 1000, 2 numbers a row, and of a permutation MMD of one width
                   beside the usual loop over permuted kernel matrices
large [n]          MMD, KID and neighbourhoods of n rows a side in blocks, with the memory's peak
power [repeats]    share of rejections at 0.05 on the temperature twins of eight Gaussians: spreads 0.2 and 0.15
digits             8 x 8 digits against halves of themselves, an independent model and a mixture
scores             CPU seconds of each proper score, 1000 rows against 1000 draws
"""

import math
import resource
import sys
import time

import numpy as np
import torch

import probgen as pg
from probgen.evaluate import scores as proper
from probgen.evaluate.twosample import TESTS, kernels, two_sample


def clock(run):
    began = time.process_time()
    answer = run()
    return time.process_time() - began, answer


def eight(n, spread, seed):
    r = np.random.default_rng(seed)
    angle = r.integers(8, size=n) * math.pi / 4
    return 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + spread * r.normal(size=(n, 2))


def speed():
    x, y = eight(1000, 0.2, 0), eight(1000, 0.2, 1)
    for name in TESTS[:-1]:
        two_sample(x, y, tests=[name], floor=False, seed=0)
        alone = min(clock(lambda name=name: two_sample(x, y, tests=[name], floor=False, seed=0))[0] for _ in range(3))
        print(f"{name:10} {alone:.3f} CPU-s")
    print(f"all, with floors {clock(lambda: two_sample(x, y, seed=0))[0]:.2f} CPU-s")
    pooled, gen = torch.from_numpy(np.concatenate([x, y])), torch.Generator().manual_seed(0)
    inside, kernel = kernels.labellings(1000, 2000, 1000, gen), kernels.gaussian(1.0)
    ours, found = clock(lambda: kernels.permuted(pooled, inside, [1.0])[0])
    loop, usual = clock(lambda: by_loop(kernel(pooled, pooled), inside[:, :51].bool()))
    gap = float((found[:51] - usual).abs().max() / usual.std())
    print(f"one width, 1000 permutations: {ours:.3f} CPU-s; indexed loop {loop / 51 * 1001:.1f} (gap {gap:.1e} sd)")
    assert gap < 1e-3


def by_loop(matrix, inside):
    """Blocks of the kernel matrix picked out anew for each labelling."""
    found = []
    for column in inside.T:
        x, y = column.nonzero()[:, 0], (~column).nonzero()[:, 0]
        n, m = len(x), len(y)
        xx, yy, xy = matrix[x][:, x], matrix[y][:, y], matrix[x][:, y]
        a, b = (xx.sum() - xx.trace()) / (n * (n - 1)), (yy.sum() - yy.trace()) / (m * (m - 1))
        found.append(a + b - 2 * xy.mean())
    return torch.stack(found)


def large(n=10_000):
    x, y = eight(n, 0.2, 0), eight(n, 0.19, 1)
    for name, options in (("mmd", {}), ("mmd", {"rows": n, "permutations": 100}), ("kid", {}), ("density", {})):
        seconds, found = clock(lambda name=name, o=options: two_sample(x, y, tests=[name], floor=False, seed=0, **o))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{name} {options}: {seconds:.1f} CPU-s, peak {peak:.2f} GB so far, p {found[name].pvalue}")


def power(repeats=20, n=500):
    hits = dict.fromkeys(("mmd", "c2st mlp", "c2st linear", "one width"), 0)
    for seed in range(repeats):
        x, y = eight(n, 0.2, 2 * seed), eight(n, 0.15, 2 * seed + 1)
        both = two_sample(x, y, tests=["mmd", "c2st"], permutations=200, floor=False, seed=seed)
        linear = two_sample(x, y, tests=["c2st"], classifier="linear", permutations=200, floor=False, seed=seed)
        pooled, gen = torch.from_numpy(np.concatenate([x, y])), torch.Generator().manual_seed(seed)
        median = float(torch.nn.functional.pdist(pooled[::2]).median())
        one = kernels.permuted(pooled, kernels.labellings(n, 2 * n, 200, gen), [median])
        ps = both["mmd"].pvalue, both["c2st"].pvalue, linear["c2st"].pvalue, kernels.combined(one)
        for name, p in zip(hits, ps, strict=True):
            hits[name] += p <= 0.05
    for name, count in hits.items():
        print(f"{name:12} rejects {count} of {repeats}")


def digits():
    data = pg.datasets.load("digits")
    train, held = data.split(seed=0)
    mixture = pg.Mixture.for_event(data.event).fit(train, seed=0)
    samples = {
        "held-out rows": held,
        "independent": pg.Independent(data.event).fit(train).sample(1000, seed=0),
        "mixture": mixture.sample(1000, seed=0),
    }
    for name, y in samples.items():
        seconds, found = clock(lambda y=y: two_sample(train, y, event=data.event, seed=0))
        print(f"--- {name} ({seconds:.1f} CPU-s)\n{found}\n")


def scores():
    x, draws = eight(1000, 0.2, 0), eight(1000, 0.2, 1)
    event = pg.events.Array((2,))
    for score in (proper.energy, proper.variogram, proper.crps, proper.pit, proper.interval_coverage):
        score(draws, x, event=event)
        print(f"{score.__name__}: {1e3 * clock(lambda s=score: s(draws, x, event=event))[0]:.1f} CPU-ms")


if __name__ == "__main__":
    torch.set_num_threads(1)
    part, *numbers = sys.argv[1:] or ["speed"]
    {"speed": speed, "large": large, "power": power, "digits": digits, "scores": scores}[part](*map(int, numbers))
