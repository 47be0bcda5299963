"""Markov fields beside pgmpy: python tests/benchmarks/bench_fields.py [side] [pairs]

Agreement first, on small fields: log Z and marginals by the clique plan, beliefs of a tree by loopy belief propagation.
Then a binary grid of side x side: interleaved runs of belief propagation, and the median of their ratios. pgmpy 1.1.2
has no loopy sum-product (BeliefPropagation is an exact junction tree, BeliefPropagationWithMessagePassing is for graphs
without loops, Mplp maximises), so what is timed is the algorithm written with its own DiscreteFactor.
"""

import statistics
import sys
import time
import warnings

import numpy as np
import torch

from probgen.models.markovfield import LoopyBP, MarkovField, PartitionAIS, TreeReweighted

SWEEPS = 20  # rounds of messages, both sides


def theirs(m):
    """The same field as pgmpy's factors."""
    from pgmpy.factors.discrete import DiscreteFactor
    from pgmpy.models import DiscreteMarkovNetwork

    net = DiscreteMarkovNetwork()
    net.add_nodes_from(m.variables)
    net.add_edges_from(scope for scope in m.factors if len(scope) == 2)
    factors = [
        DiscreteFactor(list(scope), [len(m.levels_of[n]) for n in scope], np.exp(m.potential(*scope)).ravel())
        for scope in m.factors
    ]
    net.add_factors(*factors)
    return net


def flooding(m, rounds):
    """Loopy belief propagation on pgmpy's own DiscreteFactor objects: product, marginalize, normalise, a message at a
    time, all from the messages of the round before."""
    from pgmpy.factors.discrete import DiscreteFactor

    net = theirs(m)
    pairs = [f for f in net.factors if len(f.scope()) == 2]
    single = {f.scope()[0]: f for f in net.factors if len(f.scope()) == 1}
    card = {n: len(m.levels_of[n]) for n in m.variables}
    beside = {n: [i for i, f in enumerate(pairs) if n in f.scope()] for n in m.variables}
    sent = {(i, n): DiscreteFactor([n], [card[n]], np.ones(card[n])) for i, f in enumerate(pairs) for n in f.scope()}
    for _ in range(rounds):
        new = {}
        for i, f in enumerate(pairs):
            for n in f.scope():
                (other,) = [u for u in f.scope() if u != n]
                coming = f * single[other]
                for j in beside[other]:
                    if j != i:
                        coming = coming * sent[j, other]
                message = coming.marginalize([other], inplace=False)
                message.normalize()
                new[i, n] = message
        sent = new
    beliefs = {}
    for n in m.variables:
        total = single[n]
        for j in beside[n]:
            total = total * sent[j, n]
        total.normalize()
        beliefs[n] = total.values
    return beliefs


def random_grid(rows, cols, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"unary": (rows, cols, 2), "across": (rows, cols - 1, 2, 2), "down": (rows - 1, cols, 2, 2)}
    return MarkovField.grid(rows, cols, **{name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()})


def agree():
    from pgmpy.inference import VariableElimination

    m = random_grid(3, 4)
    net = theirs(m)
    ours = m.marginals()
    found = VariableElimination(net).query(["x1_1"], show_progress=False).values
    apart = np.abs(found / found.sum() - ours["x1_1"][0]).max()  # theirs are not normalised
    assert apart < 1e-10, apart
    assert abs(np.log(net.get_partition_function()) - float(m.log_partition())) < 1e-8
    rounds, beliefs = flooding(m, SWEEPS), m.marginals(by=LoopyBP(SWEEPS, 0.0, 0.0))
    apart = max(np.abs(rounds[n] - beliefs[n][0]).max() for n in m.variables)
    assert apart < 1e-10, apart
    print(f"agreement: exact marginals, log Z and {SWEEPS} rounds of messages equal (largest difference {apart:.1e})")


def timed(run):
    began = time.perf_counter()
    answer = run()
    return time.perf_counter() - began, answer


def main(side=20, pairs=3):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    agree()
    m = random_grid(side, side, 1)
    by, ratios = LoopyBP(SWEEPS, 0.0, 0.0), []
    m.marginals(by=by)
    for _ in range(pairs):
        a, rounds = timed(lambda: flooding(m, SWEEPS))
        b, beliefs = timed(lambda: m.marginals(by=by))
        assert max(np.abs(rounds[n] - beliefs[n][0]).max() for n in m.variables) < 1e-9
        ratios.append(a / b)
        print(f"pgmpy factors {a:.2f} s, probgen {b:.4f} s, ratio {a / b:.0f}")
    print(f"{side} x {side}, {SWEEPS} rounds: {statistics.median(ratios):.0f} times as fast (median of {pairs})")
    print(f"plan of that grid: {m.plan.cost()}")
    for estimator in (LoopyBP(), TreeReweighted(), PartitionAIS(temperatures=50)):
        seconds, found = timed(lambda e=estimator: m.log_partition(e, seed=0))
        print(f"log Z by {found.by}: {found.nats:.4f} ({found.kind}) in {seconds:.2f} s, {found.diagnostics}")
    for size in (10, 14, 16):
        smaller = random_grid(size, size, 1)
        seconds, found = timed(smaller.log_partition)
        print(f"{size} x {size} exactly: {found.nats:.6f} in {seconds:.3f} s; plan {smaller.plan.cost()}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
