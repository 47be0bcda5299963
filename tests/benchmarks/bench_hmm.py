"""Hidden Markov models beside hmmlearn's: python tests/benchmarks/bench_hmm.py [pairs] [states,states,...] [threads]

Diagonal normal emissions in two dimensions, float64. One sequence of 100,000 steps, and 2000 ragged ones of 20 to 200.
Agreement to 1e-10 is asserted first; then interleaved runs in CPU time, and the median of their ratios. hmmlearn's
"scaling" is its faster implementation, "log" its default. ``PROBGEN_ISA=avx2`` (or generic) takes the other builds.
Each line: what, K, theirs and ours in CPU milliseconds, how many times as fast; "torch" is our path without the kernel.
"""

import os
import statistics
import sys
import time
import warnings

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import torch
from hmmlearn.hmm import GaussianHMM

from probgen import chains, kernels
from probgen.foreign import wrap
from probgen.models.hmm.learning import Data, _expect, _maximise

D = 2


def model(states, implementation):
    """A well separated chain whose parameters are known."""
    rng = np.random.default_rng(states)
    theirs = GaussianHMM(states, "diag", implementation=implementation, params="stmc", init_params="")
    theirs.startprob_ = rng.dirichlet(np.ones(states))
    theirs.transmat_ = 0.8 * np.eye(states) + 0.2 * rng.dirichlet(np.ones(states), states)
    theirs.means_ = 3 * rng.normal(size=(states, D))
    theirs.covars_ = rng.uniform(0.3, 1.5, (states, D))
    return theirs


def workloads(theirs):
    x = theirs.sample(100_000, random_state=1)[0]
    lengths = np.random.default_rng(2).integers(20, 201, 2000)
    ragged = theirs.sample(int(lengths.sum()), random_state=3)[0]
    return {"long": (x, np.array([len(x)])), "ragged": (ragged, lengths)}


def timed(run, times):
    """CPU milliseconds of a call, the mean of several in a row."""
    began = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - began) * 1e3 / times


def joined(answer):
    return np.concatenate(answer) if isinstance(answer, list) else np.asarray(answer)


def em_step(theirs, x, lengths):
    """One iteration of each: theirs through fit, ours through the family's own steps."""
    theirs.n_iter, theirs.tol = 1, 0.0
    start = {n: getattr(theirs, n).copy() for n in ("startprob_", "transmat_", "means_", "_covars_")}

    def one():
        theirs.fit(x, lengths)
        found = theirs.means_.copy()
        for n, value in start.items():
            setattr(theirs, n, value.copy())
        return found

    return one


def tasks(theirs, ours, x, lengths):
    """Pairs of calls that give the same numbers."""
    checked = ours.event.check((x, lengths)).x
    cells = checked.values.reshape(len(x), -1)
    state = {n: v.clone() for n, v in ours.state_dict().items()}

    def our_step():
        data = Data(cells, checked.lengths, None, None)
        with torch.no_grad():
            _maximise(ours, data, _expect(ours, data)[1])
        found = ours.emission.loc.detach().clone()
        ours.load_state_dict(state)
        return found

    return {
        "log-likelihood": (
            lambda: theirs.score(x, lengths),
            lambda: ours._log_prob(checked, None, generator=None).nats.sum(),
        ),
        "log_prob with its checks": (
            lambda: theirs.score(x, lengths),
            lambda: ours.log_prob((x, lengths)).nats.sum(),
        ),
        "posteriors": (
            lambda: theirs.predict_proba(x, lengths),
            lambda: ours.posterior((x, lengths)).marginals,
        ),
        "Viterbi": (
            lambda: theirs.decode(x, lengths)[1],
            lambda: ours.decode((x, lengths)),
        ),
        "EM iteration": (em_step(theirs, x, lengths), our_step),
    }


def gradient(ours, x, lengths):
    """Of the log-likelihood in all parameters: through the kernel, and by autograd through the torch recursion."""

    def run():
        ours.zero_grad()
        checked = ours.event.check((x, lengths)).x
        chains.log_likelihood(ours._chain(checked, None)).sum().backward()
        return ours.emission.loc.grad.clone()

    return run


def ratio(name, states, theirs, ours, pairs, tolerance=1e-10):
    a, b = joined(theirs()), joined(ours())  # warm up, and agree
    apart = float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1.0)
    assert apart <= tolerance, (name, apart)
    repeats = [max(1, int(20 / max(timed(run, 1), 0.1))) for run in (theirs, ours)]  # about 20 ms a measurement
    times = [(timed(theirs, repeats[0]), timed(ours, repeats[1])) for _ in range(pairs)]
    middle = statistics.median(t / o for t, o in times)
    t, o = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{name:46} K={states:<3} {t:9.2f} {o:9.2f} {middle:8.1f} x   (apart {apart:.1e})", flush=True)


def without_kernel(run):
    def torch_path():
        native, kernels.native = kernels.native, None
        try:
            return run()
        finally:
            kernels.native = native

    return torch_path


def main(pairs=5, states="4,16,64", threads=1):
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    print(f"kernel: {kernels.native.isa() if kernels.native else 'none'}; threads {threads}; CPU ms, median of {pairs}")
    for k in map(int, str(states).split(",")):
        scaling, default = model(k, "scaling"), model(k, "log")
        for kind, (x, lengths) in workloads(scaling).items():
            ours = wrap(scaling)
            pair = tasks(scaling, ours, x, lengths)
            slow = tasks(default, ours, x, lengths)
            for name, (theirs, mine) in pair.items():
                ratio(f"{kind}, {name}", k, theirs, mine, pairs)
            ratio(f"{kind}, log-likelihood, hmmlearn's default", k, *slow["log-likelihood"], pairs)
            ratio(
                f"{kind}, log-likelihood, torch",
                k,
                pair["log-likelihood"][0],
                without_kernel(pair["log-likelihood"][1]),
                pairs,
            )
            ratio(
                f"{kind}, EM iteration, torch",
                k,
                pair["EM iteration"][0],
                without_kernel(pair["EM iteration"][1]),
                pairs,
            )
            if kind == "ragged":
                run = gradient(ours, x, lengths)
                ratio(f"{kind}, gradient, autograd of the recursion", k, without_kernel(run), run, pairs, 1e-9)


if __name__ == "__main__":
    main(*([int(sys.argv[1])] if sys.argv[1:] else []), *sys.argv[2:])
