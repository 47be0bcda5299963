"""Learning graphs beside pyAgrum and pgmpy: python tests/benchmarks/bench_structure.py [pairs] [part,part,...]

Parts: alarm (5000 rows of five seeds: greedy search with BIC, CPU time of one thread, beside pyAgrum's greedy hill
climbing), pgmpy (its HillClimbSearch on one of them), exact (the best of all graphs of 8 to 20 columns, and whether
tabu search finds it), recovery (structural Hamming distance with n), wide (100 columns, 100,000 rows).
Agreement of the scores is asserted first, to 1e-9 relative; then interleaved runs, and the median of their ratios.
pyAgrum's time is that of learnDAG alone, without its data load; ours is from codes to graph, and then from a
categorical pandas frame to graph (pyAgrum's: from the frame, too).
"""

import os
import statistics
import sys
import time
import warnings
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
import pgmpy
import torch

from probgen import kernels
from probgen.events import Category, Table
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.bayesnet import structure as st

ROWS, SEEDS = 5000, range(5)


def shipped(name):
    """A network that comes with pgmpy."""
    (path,) = Path(pgmpy.__file__).parent.rglob(f"{name}.bif.gz")
    return BayesianNetwork.load_file(path)


def rows_of(net, n, seed):
    net.form = "pandas"
    frame = net.sample(n, seed=seed)
    for name, column in net.event.columns.items():
        frame[name] = pd.Categorical(frame[name], categories=column.levels)
    return frame


def cpu(run):
    began = time.process_time()
    found = run()
    return found, (time.process_time() - began) * 1e3


def numbered(net, edges):
    parents = [[] for _ in net.variables]
    for parent, child in edges:
        parents[net.index[child]].append(net.index[parent])
    return parents


def agrum_learner(frame):
    import pyagrum as gum

    gum.setNumberOfThreads(1)
    learner = gum.BNLearner(frame)
    learner.useGreedyHillClimbing()
    learner.useScoreBIC()
    learner.useNoPrior()
    return learner


def agrum_edges(learner, dag):
    return [(learner.nameFromId(a), learner.nameFromId(b)) for a, b in dag.arcs()]


def plan(**options):
    return st.Plan(st.Criterion("bic"), "tabu", {}, None, None, options)


def ours_from_frame(net, frame):
    return st.search(net.event, net.event.check(frame).x, plan(), 0)


def alarm(pairs):
    net = shipped("alarm")
    print(f"alarm, {ROWS} rows, BIC: ms of CPU time, medians of {pairs} pairs")
    print(
        "seed   true BIC  pyAgrum BIC   our BIC  SHD theirs ours   pyAgrum  ours  ratio   from frame: "
        "pyAgrum  ours  ratio"
    )
    for seed in SEEDS:
        frame = rows_of(net, ROWS, seed)
        x = net.event.check(frame).x
        scorer = st.Scorer(st.read(net.event, x.numpy()), st.Criterion("bic"))
        _agree(net, frame, scorer)
        times, found, theirs = [], None, None
        for _ in range(pairs):
            learner, load = cpu(lambda frame=frame: agrum_learner(frame))
            dag, learn = cpu(learner.learnDAG)
            data = st.read(net.event, x.numpy())
            found, own = cpu(lambda data=data: _greedy(data))
            _, whole = cpu(lambda frame=frame: ours_from_frame(net, frame))
            theirs = agrum_edges(learner, dag)
            times.append((learn, own, load + learn, whole))
        ours = ours_from_frame(net, frame)
        their_bic = scorer.total(numbered(net, theirs))
        their_distance = st.Structure(net.variables, tuple(theirs), 0.0, "bic", "", 0).distance(net.edges)
        mine = scorer.total([np.flatnonzero(column).tolist() for column in found.T])
        a, b, c, d = (statistics.median(column) for column in zip(*times, strict=True))
        r, s = (statistics.median(t[i] / t[i + 1] for t in times) for i in (0, 2))
        print(
            f"{seed:4} {scorer.total(numbered(net, net.edges)):10.1f} {their_bic:12.1f} {mine:9.1f}"
            f" {their_distance:10} {ours.distance(net.edges):4} {a:9.1f} {b:5.1f} {r:6.1f}x"
            f" {c:20.1f} {d:5.1f} {s:6.1f}x",
            flush=True,
        )


def _greedy(data):
    scorer, bounds = st.Scorer(data, st.Criterion("bic")), st.Constraints.of(data)
    return st.greedy(scorer, bounds, st.Greedy(), bounds.required)[0]


def _agree(net, frame, scorer):
    """The score of the true graph is that of pgmpy, family by family."""
    from pgmpy.structure_score import BIC

    theirs = BIC(frame, state_names={n: list(c.levels) for n, c in net.event.columns.items()})
    for name, own in list(net.parents.items())[:12]:
        a = theirs.local_score(name, own)
        b = scorer.local(net.index[name], [net.index[p] for p in own])
        assert abs(a - b) <= 1e-9 * abs(a), (name, a, b)


def beside_pgmpy(pairs):
    from pgmpy.estimators import HillClimbSearch

    net = shipped("alarm")
    frame = rows_of(net, ROWS, 0)
    scorer = st.Scorer(st.read(net.event, net.event.check(frame).x.numpy()), st.Criterion("bic"))
    theirs, slow = cpu(lambda: HillClimbSearch(frame).estimate(scoring_method="bic-d", show_progress=False))
    times = [cpu(lambda: ours_from_frame(net, frame))[1] for _ in range(pairs)]
    bic = scorer.total(numbered(net, theirs.edges()))
    ours = ours_from_frame(net, frame)
    quick = statistics.median(times)
    print(
        f"pgmpy HillClimbSearch: BIC {bic:.1f}, {slow:.0f} ms; "
        f"ours BIC {ours.score:.1f}, {quick:.1f} ms: {slow / quick:.0f}x"
    )


def exact(pairs):
    net = shipped("alarm")
    x = net.event.check(rows_of(net, ROWS, 0)).x.numpy()
    print("exact search, BIC: columns, seconds, families scored, best score, tabu's")
    for width in (8, 12, 16, 20):
        event = Table(dict(list(net.event.columns.items())[:width]))
        data = st.read(event, x[:, :width])
        scorer, bounds = st.Scorer(data, st.Criterion("bic")), st.Constraints.of(data)
        found, took = cpu(lambda scorer=scorer, bounds=bounds: st.exact(scorer, bounds))
        best, tabu = (scorer.total([np.flatnonzero(c).tolist() for c in g.T]) for g in (found, _greedy(data)))
        print(f"{width:6} {took / 1e3:8.2f} {scorer.evaluated:8} {best:12.2f} {tabu:12.2f}", flush=True)


def recovery(pairs):
    print("structural Hamming distance of the equivalence class from the true one, by rows")
    sizes = (500, 2000, 10_000, 50_000)
    print(f"{'network':12} {'edges':>6} " + " ".join(f"{n:>8}" for n in sizes))
    for name in ("asia", "sachs", "child", "insurance", "alarm", "hailfinder", "win95pts"):
        net = shipped(name)
        distances = []
        for n in sizes:
            frame = rows_of(net, n, 1)
            distances.append(ours_from_frame(net, frame).distance(net.edges))
        print(f"{name:12} {len(net.edges):6} " + " ".join(f"{d:8}" for d in distances), flush=True)


def wide(pairs, columns=100, n=100_000):
    rng = np.random.default_rng(0)
    cards = rng.integers(2, 5, columns)
    x, edges = np.zeros((n, columns)), []
    for v in range(columns):
        own = rng.permutation(v)[: rng.integers(0, 4)]
        edges += [(f"x{p}", f"x{v}") for p in own]
        labels = np.zeros(n, dtype=int)
        for p in own:
            labels = labels * cards[p] + x[:, p].astype(int)
        rows = rng.dirichlet(np.full(cards[v], 0.7), int(np.prod(cards[own])))
        x[:, v] = (rng.random(n)[:, None] > rows.cumsum(1)[labels][:, :-1]).sum(1)
    event = Table({f"x{i}": Category(tuple(range(int(c)))) for i, c in enumerate(cards)})
    found, took = cpu(lambda: st.search(event, torch.from_numpy(x), plan(), 0))
    scorer = st.Scorer(st.read(event, x), st.Criterion("bic"))
    true = scorer.total([[int(a[1:]) for a, b in edges if b == f"x{v}"] for v in range(columns)])
    print(f"{columns} columns, {n} rows: {took / 1e3:.1f} s of CPU time; BIC {found.score:.1f}, true {true:.1f};"
          f" SHD {found.distance(edges)} of {len(edges)} edges")  # fmt: skip


def main(pairs=5, parts="alarm,pgmpy,exact,recovery,wide"):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"kernel: {'built' if kernels.counting else 'none: NumPy'}")
    for part in str(parts).split(","):
        {"alarm": alarm, "pgmpy": beside_pgmpy, "exact": exact, "recovery": recovery, "wide": wide}[part](int(pairs))


if __name__ == "__main__":
    main(*sys.argv[1:])
