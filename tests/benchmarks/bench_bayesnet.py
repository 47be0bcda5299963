"""Bayesian networks beside pgmpy, pyAgrum, NumPy and Pyro: python tests/benchmarks/bench_bayesnet.py [pairs] [networks]

Needs ``pip install pgmpy pyagrum``; the networks are those that ship with pgmpy. One thread each, CPU time. Values are
compared first (to 1e-12 against NumPy and Pyro; pyAgrum reads its tables in single precision, so 1e-6 there), then
interleaved runs are timed and the median of their ratios printed: how many times as fast as the peer.

pyAgrum's route is the one it documents: one inference engine, setEvidence and evidenceProbability (or posterior) a row.
pgmpy has no likelihood of rows; its chain of queries is timed on a few rows and scaled.
"""

import gzip
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
warnings.filterwarnings("ignore")

import numpy as np
import pandas as pd
import pgmpy
import pyagrum as gum
import torch
from pgmpy.inference import VariableElimination

from probgen import BayesianNetwork, cliques

NETWORKS = "asia,alarm,insurance,hailfinder,win95pts,water,pigs"
SHIPPED = Path(pgmpy.__file__).parent / "utils/example_models"
PGMPY = {"asia", "alarm"}  # elsewhere a few rows take minutes


def timed(run, least=0.02):
    """CPU seconds of a call, the mean of several in a row where it is short."""
    began, times = time.process_time(), 0
    while times == 0 or time.process_time() - began < least:
        run()
        times += 1
    return (time.process_time() - began) / times


def paired(what, name, theirs, ours, pairs, scale=1.0, peer="pyAgrum"):
    ours()
    ratios, spent = [], []
    for _ in range(pairs):
        a, b = timed(theirs, 0.0) * scale, timed(ours)
        ratios.append(a / b)
        spent.append((a, b))
    a, b = (statistics.median(each) for each in zip(*spent, strict=True))
    print(
        f"{name:11s} {what:34s} {peer:8s} {a * 1e3:11.2f} {b * 1e3:9.3f} {statistics.median(ratios):9.1f} x", flush=True
    )


class Case:
    """One network in every library, and data drawn from it."""

    def __init__(self, name, folder):
        self.name, self.path = name, Path(folder) / f"{name}.bif"
        self.path.write_bytes(gzip.decompress((SHIPPED / f"{name}.bif.gz").read_bytes()))
        self.ours = BayesianNetwork.load_file(self.path)
        self.theirs = None
        if name != "child":  # pyAgrum can't read its state names
            self.theirs = gum.loadBN(str(self.path))
        self.ours.form = "pandas category"  # as it would be after a fit to such a frame
        self.frame = self.ours.sample(10_000, seed=0)
        self.levels = {v: self.ours.event.columns[v].levels for v in self.ours.variables}
        self.tables = [self.ours.conditional(v).log_table().detach().numpy() for v in self.ours.variables]

    def gaps(self, rows, share, seed=1):
        rng = np.random.default_rng(seed)
        return self.frame[:rows].astype(str).astype(object).mask(rng.random((rows, len(self.levels))) < share)

    def codes(self, frame):
        return self.ours.event.check(frame).x

    def evidence(self, frame):
        return [{k: v for k, v in row.items() if isinstance(v, str)} for row in frame.to_dict("records")]


def look_up(case, codes):
    """log p of complete rows by one fancy index a variable."""
    total = np.zeros(len(codes))
    for v, table in zip(case.ours.variables, case.tables, strict=True):
        scope = [case.ours.index[p] for p in case.ours.parents[v]] + [case.ours.index[v]]
        total += table[tuple(codes[:, u] for u in scope)]
    return total


def agrum_scores(case, rows):
    engine = gum.LazyPropagation(case.theirs)
    out = []
    for row in rows:
        engine.setEvidence(row)
        out.append(engine.evidenceProbability())
    return np.log(out)


def agrum_marginals(case, rows):
    engine = gum.LazyPropagation(case.theirs)
    out = []
    for row in rows:
        engine.setEvidence(row)
        engine.makeInference()
        out.append([engine.posterior(v).toarray() for v in case.ours.variables])
    return out


def pgmpy_scores(model, rows):
    """The chain rule of queries: pgmpy has no probability of evidence."""
    engine, out = VariableElimination(model), []
    for row in rows:
        seen, total = {}, 0.0
        for variable, state in row.items():
            answer = engine.query([variable], evidence=seen, show_progress=False)
            total += float(np.log(answer.get_value(**{variable: state})))
            seen[variable] = state
        out.append(total)
    return np.array(out)


def pyro_score(case, codes):
    import pyro
    from pyro.infer import TraceEnum_ELBO

    def model(x):
        case.ours.model(x)

    with pyro.poutine.block():
        return -TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda x: None, codes)


def agree(what, a, b, tolerance):
    apart = float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
    if not apart <= tolerance:
        raise SystemExit(f"{what}: {apart} apart, more than {tolerance}")
    return apart


def likelihoods(case, pairs):
    ours, complete = case.ours, case.frame
    whole = case.codes(complete)
    integers = whole.numpy().astype(int)
    tables = [ours.conditional(v).log_table().detach() for v in ours.discrete]
    agree("complete rows", cliques.log_prob(ours.plan, tables, whole), look_up(case, integers), 1e-10)
    paired("10k complete rows", case.name, lambda: look_up(case, integers),
           lambda: cliques.log_prob(ours.plan, tables, whole), pairs, peer="NumPy")  # fmt: skip
    frame = case.gaps(2000, 0.3)
    codes, rows = case.codes(frame), case.evidence(frame)
    agree("rows with gaps", cliques.log_prob(ours.plan, tables, codes), agrum_scores(case, rows), 1e-3)

    def ours_of_codes():
        return cliques.log_prob(ours.plan, tables, codes)

    paired("2k rows, 30% missing", case.name, lambda: agrum_scores(case, rows), ours_of_codes, pairs)
    paired(
        "  from a frame to LogProb", case.name, lambda: agrum_scores(case, rows), lambda: ours.log_prob(frame), pairs
    )
    if case.name in PGMPY:
        from pgmpy.readwrite import BIFReader

        model, few = BIFReader(str(case.path)).get_model(), rows[:4]
        agree("pgmpy", ours_of_codes()[:4], pgmpy_scores(model, few), 1e-4)
        paired(
            "  (4 rows, scaled)", case.name, lambda: pgmpy_scores(model, few), ours_of_codes, 2, len(rows) / 4, "pgmpy"
        )


def posteriors(case, pairs):
    ours = case.ours
    frame = case.gaps(200, 0.7)
    codes, rows = case.codes(frame), case.evidence(frame)
    tables = [ours.conditional(v).log_table().detach() for v in ours.discrete]
    found = cliques.marginals(ours.plan, tables, codes)[1].numpy()
    theirs = np.array([np.concatenate(row) for row in agrum_marginals(case, rows)])
    agree("marginals", found, theirs, 1e-4)
    paired("marginals, 200 rows, 70% missing", case.name, lambda: agrum_marginals(case, rows),
           lambda: cliques.marginals(ours.plan, tables, codes), pairs)  # fmt: skip


def enumeration(case, pairs):
    """One pattern of gaps for 100 rows: each missing variable is one enumerated site."""
    codes = case.codes(case.frame[:100]).clone()
    open_ones = np.random.default_rng(4).choice(codes.shape[1], min(12, codes.shape[1] // 3), replace=False)
    codes[:, open_ones] = np.nan
    tables = [case.ours.conditional(v).log_table().detach() for v in case.ours.discrete]
    agree("Pyro", pyro_score(case, codes), cliques.log_prob(case.ours.plan, tables, codes).sum(), 1e-8)
    paired("100 rows, one pattern", case.name, lambda: pyro_score(case, codes),
           lambda: cliques.log_prob(case.ours.plan, tables, codes), pairs, peer="Pyro")  # fmt: skip


def drawing(case, pairs):
    case.ours.sample(1000, seed=0)
    paired("100k draws to a frame", case.name,
           lambda: gum.generateSample(case.theirs, 100_000, with_labels=True, show_progress=False),
           lambda: case.ours.sample(100_000, seed=1), pairs)  # fmt: skip


def counting(case, pairs):
    from pgmpy.models import DiscreteBayesianNetwork

    frame = case.ours.sample(100_000, seed=2)
    edges = list(case.ours.edges)
    event = case.ours.event

    def theirs():
        model = DiscreteBayesianNetwork(edges)
        model.fit(frame)
        return model

    def ours():
        return BayesianNetwork(event, edges).fit(frame, seed=0)

    a, b = theirs(), ours()
    cpd = a.get_cpds(edges[0][1])
    parents = cpd.variables[1:]
    table = b.conditional(edges[0][1]).log_table().detach().exp().numpy()
    places = [b.parents[edges[0][1]].index(p) for p in parents]
    known = cpd.state_names
    got = table.transpose(*places, -1)
    for axis, v in enumerate([*parents, edges[0][1]]):
        got = np.take(got, [event.columns[v].levels.index(state) for state in known[v]], axis)
    agree("CPTs", np.moveaxis(got, -1, 0), cpd.values, 1e-12)
    paired("tables of 100k rows, from a frame", case.name, theirs, ours, pairs, peer="pgmpy")


def learning(case, pairs):
    """EM with gaps: CPU time of an iteration."""
    frame = case.gaps(2000, 0.3, seed=5)
    event, edges = case.ours.event, case.ours.edges
    path = case.path.with_suffix(".csv")
    frame.fillna("?").to_csv(path, index=False)

    def theirs():
        learner = gum.BNLearner(str(path), case.theirs, ["?"])
        learner.useEM(1e-4)
        learner.useSmoothingPrior(1.0)
        began = time.process_time()
        learner.learnParameters(case.theirs.dag())
        return (time.process_time() - began) / max(learner.EMnbrIterations(), 1)

    def ours():
        model = BayesianNetwork(event, edges)
        began = time.process_time()
        model.fit(frame, prior="dirichlet", strength=1.0, seed=0)
        return (time.process_time() - began) / max(model.report.steps, 1)

    found = [(theirs(), ours()) for _ in range(pairs)]
    a, b = (statistics.median(each) for each in zip(*found, strict=True))
    ratio = statistics.median(x / y for x, y in found)
    what = "an EM iteration, 2k rows, 30% gaps"
    print(f"{case.name:11s} {what:34s} {'pyAgrum':8s} {a * 1e3:11.2f} {b * 1e3:9.3f} {ratio:9.1f} x")


def reading(case, pairs):
    paired("reading the BIF file", case.name, lambda: gum.loadBN(str(case.path)),
           lambda: BayesianNetwork.load_file(case.path), max(pairs, 9))  # fmt: skip


def main(pairs=5, names=NETWORKS):
    torch.set_num_threads(1)
    gum.setNumberOfThreads(1)
    versions = f"pgmpy {pgmpy.__version__}, pyAgrum {gum.__version__}, pandas {pd.__version__}"
    print(f"{versions}; CPU ms, theirs and ours, medians")
    with tempfile.TemporaryDirectory() as folder:
        for name in names.split(","):
            case = Case(name, folder)
            reading(case, pairs)
            likelihoods(case, pairs if name != "pigs" else 2)
            posteriors(case, pairs if name != "pigs" else 2)
            if name in ("asia", "alarm"):
                enumeration(case, pairs)
                learning(case, min(pairs, 3))
            if name in ("asia", "alarm", "hailfinder"):
                drawing(case, min(pairs, 3))
                counting(case, min(pairs, 3))


if __name__ == "__main__":
    main(*(int(word) if word.isdigit() else word for word in sys.argv[1:]))
