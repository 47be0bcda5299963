"""Exact sums and maxima over the hidden states of Markov chains, given log-potentials.

Two paths, one law: the torch path is the definition (any device, any dtype, differentiable twice), the compiled kernel
is fast (CPU, float64, homogeneous chains). ``probgen.kernels.native`` is looked up at each call; None takes the torch
path.
"""

from probgen.chains.chain import Chain, Expected, Filtered, Normals, Posterior
from probgen.chains.recursions import (
    advance,
    expected,
    filter,
    first_impossible,
    log_likelihood,
    posterior,
    sample,
    viterbi,
)

__all__ = [
    "Chain", "Expected", "Filtered", "Normals", "Posterior",
    "advance", "expected", "filter", "first_impossible", "log_likelihood", "posterior", "sample", "viterbi",
]  # fmt: skip
