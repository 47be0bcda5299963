"""Sample tests against the clock and against each other: python tests/benchmarks/bench_twosample.py PART [...]

speed              CPU seconds of each test at n = 1000 + 1000, 2 numbers a row, and of a permutation MMD of one width
                   beside the usual loop over permuted kernel matrices
large [n]          MMD, KID and neighbourhoods of n rows a side in blocks, with the memory's peak
power [repeats]    share of rejections at 0.05 on the temperature twins of eight Gaussians: spreads 0.2 and 0.15
digits             8 x 8 digits against halves of themselves, an independent model and a mixture
scores             CPU seconds of each proper score, 1000 rows against 1000 draws
freeze             writes tests/known/prdc.json by the package prdc, and kid.json by loops in NumPy
"""

import contextlib
import importlib.metadata
import io
import json
import math
import resource
import sys
import time
from pathlib import Path

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


def freeze():
    """Rows of ``frozen_rows`` in each case, so that the file holds numbers and seeds only."""
    folder = Path(__file__).parents[1] / "known"
    from prdc import compute_prdc

    cases = []
    for n, m, d, shift, k in ((60, 50, 2, 0.0, 5), (80, 120, 5, 0.7, 3), (150, 100, 16, 0.3, 5), (40, 45, 3, 4.0, 2)):
        case = {"n": n, "m": m, "d": d, "shift": shift, "k": k, "seed": n + d}
        x, y = frozen_rows(**case)
        with contextlib.redirect_stdout(io.StringIO()):
            cases.append(case | {"expected": {name: float(v) for name, v in compute_prdc(x, y, k).items()}})
    about = {"by": f"prdc {importlib.metadata.version('prdc')}", "numpy": np.__version__}
    (folder / "prdc.json").write_text(json.dumps(about | {"cases": cases}, indent=1) + "\n")
    cases = []
    for n, m, d, shift in ((30, 25, 2, 0.0), (20, 40, 8, 0.5), (35, 35, 64, 0.1)):
        case = {"n": n, "m": m, "d": d, "shift": shift, "seed": n + d}
        cases.append(case | {"expected": kid_by_loops(*frozen_rows(**case))})
    about = {"by": "Binkowski et al. (2018): unbiased MMD^2 of (x.y / d + 1)^3, pair by pair", "numpy": np.__version__}
    (folder / "kid.json").write_text(json.dumps(about | {"cases": cases}, indent=1) + "\n")


def frozen_rows(n, m, d, shift, seed, **_):
    """Seeded normal rows without ties, with correlated coordinates on the second side."""
    r = np.random.default_rng(seed)
    x, y = r.normal(size=(n, d)), r.normal(size=(m, d))
    y[:, -1] = 0.6 * y[:, 0] + 0.8 * y[:, -1]
    return x, y + shift


def kid_by_loops(x, y):
    def k(a, b):
        return (sum(float(u) * float(v) for u, v in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within = math.fsum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (n * (n - 1))
    others = math.fsum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (m * (m - 1))
    return within + others - 2 * math.fsum(k(a, b) for a in x for b in y) / (n * m)


if __name__ == "__main__":
    torch.set_num_threads(1)
    part, *numbers = sys.argv[1:] or ["speed"]
    parts = {f.__name__: f for f in (speed, large, power, digits, scores, freeze)}
    parts[part](*map(int, numbers))
