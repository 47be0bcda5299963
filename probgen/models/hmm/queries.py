"""What a fitted hidden Markov model can be asked about its states."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probgen import chains, kernels
from probgen.errors import ParameterError, ShapeError, ZeroEvidenceError
from probgen.events import Ragged
from probgen.transitions.visits import best_visits

if TYPE_CHECKING:
    from probgen.models.hmm.hmm import HMM


@dataclass(frozen=True)
class StatePosterior:
    """What whole sequences say of the states.

    Arguments:
        marginals: p(z_t = k | x), an array (T, K) a sequence.
        pairs: p(z_{t-1} = i, z_t = j | x), an array (T - 1, K, K) a sequence; None unless asked for.
        log_prob: log p(x) in nats, shape (n,).
    """

    marginals: list[np.ndarray]
    pairs: list[np.ndarray] | None
    log_prob: np.ndarray


def _split(values: Tensor, lengths: Tensor) -> list[np.ndarray]:
    array, ends = values.numpy(), lengths.cumsum(0).tolist()
    return [array[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _regimes(hmm: "HMM", table: Tensor) -> Tensor:
    """Sums chain states (the last dimension, S) to the states that a user counts, K."""
    if hmm.transitions.size == hmm.states:
        return table
    out = torch.zeros(*table.shape[:-1], hmm.states, dtype=table.dtype)
    return out.index_add_(table.ndim - 1, hmm.transitions.emitting(), table)


@torch.no_grad()
def log_likelihood(hmm: "HMM", x: Ragged, given: Ragged | None, block: int) -> Tensor:
    """log p of each sequence, shape (n,), with at most ``block`` entries of a table (steps, states) in memory."""
    steps = max(block // hmm.transitions.size, 1)
    if len(x.values) <= steps or hmm.transitions.covariates:
        return chains.log_likelihood(hmm._chain(x, given))
    rows = hmm._rows(x, given)
    if isinstance(hmm._source(rows[:1]), chains.Normals) and kernels.native is not None:
        return chains.log_likelihood(hmm._chain(x, given))  # no table at all
    initial, matrix = hmm.transitions()
    out = torch.empty(len(x), dtype=torch.float64)
    for first, last in _groups(x.lengths, steps):
        begin, end = int(x.starts[first]), int(x.starts[last - 1] + x.lengths[last - 1])
        if end - begin <= steps:
            chain = chains.Chain(initial, matrix, hmm._potentials(rows[begin:end]), x.lengths[first:last])
            out[first:last] = chains.log_likelihood(chain)
        else:
            out[first] = _in_blocks(hmm, rows[begin:end], steps)
    return out


def _groups(lengths: Tensor, steps: int) -> Iterator[tuple[int, int]]:
    """Neighbouring sequences of at most so many steps together; a longer one stands alone."""
    first, total = 0, 0
    sizes = lengths.tolist()
    for i, size in enumerate(sizes):
        if i > first and total + size > steps:
            yield first, i
            first, total = i, 0
        total += size
    yield first, len(sizes)


def _in_blocks(hmm: "HMM", rows: Tensor, steps: int) -> Tensor:
    """One long sequence, a block of steps after the other: what one ends with, the next begins with."""
    total = torch.zeros((), dtype=torch.float64)
    initial, matrix = hmm.transitions()
    for part in rows.split(steps):
        chain = chains.Chain(initial, matrix, hmm._potentials(part), torch.tensor([len(part)]))
        nats, final = chains.advance(chain)
        total = total + nats[0]
        if torch.isneginf(total):
            return total
        initial = ahead(final, matrix)[0]
    return total


def ahead(log_state: Tensor, matrix: Tensor) -> Tensor:
    """Log-probabilities of the next state, (n, S) from (n, S)."""
    return (log_state[:, :, None] + matrix).logsumexp(1)


def _possible(hmm: "HMM", chain: chains.Chain) -> None:
    first = chains.first_impossible(chain)
    if (first >= 0).any():
        row = int((first >= 0).nonzero()[0])
        raise ZeroEvidenceError(
            f"Sequence {row} has probability zero: step {int(first[row])} is impossible after the steps before it",
            "a sequence that the model can produce",
            "Check that step, or fit with smoothing or with fewer structural zeros",
        )


@torch.no_grad()
def filtered(hmm: "HMM", x: Ragged, given: Ragged | None) -> list[np.ndarray]:
    chain = hmm._chain(x, given)
    found = chains.filter(chain)
    if bool(torch.isneginf(found.nats).any()):
        _possible(hmm, chain)
    return _split(_regimes(hmm, found.probabilities), x.lengths)


@torch.no_grad()
def predicted(hmm: "HMM", x: Ragged, given: Ragged | None) -> list[np.ndarray]:
    chain = hmm._chain(x, given)
    _possible(hmm, chain)
    state = chains.filter(chain).probabilities
    moves = chain.transition.exp()
    before = torch.roll(state, 1, 0)
    following = before @ moves if moves.ndim == 2 else torch.einsum("ti,tij->tj", before, moves)
    following[x.starts] = chain.initial.exp()
    return _split(_regimes(hmm, following), x.lengths)


@torch.no_grad()
def posterior(hmm: "HMM", x: Ragged, given: Ragged | None, pairs: bool) -> StatePosterior:
    chain = hmm._chain(x, given)
    found = chains.posterior(chain, pairs=pairs)
    if bool(torch.isneginf(found.nats).any()):
        _possible(hmm, chain)
    marginals = _split(_regimes(hmm, found.marginals), x.lengths)
    both = None
    if pairs:
        summed = _regimes(hmm, _regimes(hmm, found.transitions).mT).mT
        both = [part[1:] for part in _split(summed, x.lengths)]
    return StatePosterior(marginals, both, found.nats.numpy())


@torch.no_grad()
def decode(hmm: "HMM", x: Ragged, given: Ragged | None, method: str) -> list[np.ndarray]:
    chain = hmm._chain(x, given)
    if method == "viterbi":
        path, nats = _viterbi(hmm, chain)
    else:
        found = chains.posterior(chain)
        path, nats = _regimes(hmm, found.marginals).argmax(1), found.nats
    if bool(torch.isneginf(nats).any()):
        _possible(hmm, chain)
    return _split(path, x.lengths)


def _viterbi(hmm: "HMM", chain: chains.Chain) -> tuple[Tensor, Tensor]:
    """The most probable path of the states that a user counts, (total,), and its log-probability, (n,)."""
    moves = hmm.transitions
    visits = moves.visits(int(chain.lengths.max()))
    if visits is None:
        path, nats = chains.viterbi(chain)
        return moves.emitting()[path], nats
    entries = torch.arange(hmm.states) * (moves.size // hmm.states)
    parts = (*visits, chain.table[:, entries], chain.lengths)
    path, nats = (torch.as_tensor(part) for part in best_visits(*(part.numpy() for part in parts)))
    return path, nats


def seeded(seed: int | None) -> torch.Generator:
    """A private generator; the seed is taken from the system where none is given."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    if seed is not None and not (whole and 0 <= seed < 2**63):
        raise ParameterError(f"seed={seed!r}", "a whole number from 0, or None")
    return torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)


@torch.no_grad()
def sample_paths(hmm: "HMM", x: Ragged, given: Ragged | None, n: int, seed: int | None) -> list[np.ndarray]:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ParameterError(f"n={n!r}", "a whole number of paths, at least 1")
    chain = hmm._chain(x, given)
    _possible(hmm, chain)
    generator = seeded(seed)
    paths = hmm.transitions.emitting()[chains.sample(chain, n, generator)]
    return [part.numpy() for part in paths.split(x.lengths.tolist(), dim=1)]


@torch.no_grad()
def simulate(hmm: "HMM", n: int, given: Ragged | None, length: int, generator: torch.Generator) -> Ragged:
    """n sequences from the model, of the inputs' length where there are any."""
    inputs = None
    if given is not None:
        if len(given) != 1:
            raise ShapeError(f"given= holds {len(given)} sequences of inputs", "one, from which n sequences are drawn")
        inputs, length = (given.values.reshape(len(given.values), -1), int(given.lengths[0]))
    initial, matrix = hmm.transitions(inputs if hmm.transitions.covariates else None)
    state = torch.multinomial(initial.exp().expand(n, -1), 1, generator=generator)[:, 0]
    values = run(hmm, state, matrix, inputs, length, generator, start_of=None)
    return Ragged(values.reshape(n * length, *hmm.event.shape), torch.full((n,), length))  # type: ignore[attr-defined]


def run(
    hmm: "HMM",
    state: Tensor,
    matrix: Tensor,
    inputs: Tensor | None,
    length: int,
    generator: torch.Generator,
    start_of: Tensor | None,
) -> Tensor:
    """Observations from first states on.

    Arguments:
        state: Chain states of the first step, shape (n,).
        matrix: Log moves (S, S), or (length, S, S).
        inputs: Shape (length, p).
        start_of: The latest ``lags`` rows before the first step, latest first, shape (n, lags * width).

    Returns:
        Shape (n, length, width).
    """
    n, emission = len(state), hmm.emission
    paths = torch.empty(n, length, dtype=torch.int64)
    for t in range(length):
        if t:
            moves = matrix if matrix.ndim == 2 else matrix[t]
            state = torch.multinomial(moves.exp()[state], 1, generator=generator)[:, 0]
        paths[:, t] = state
    uses = hmm._uses[paths]
    if emission.lags:
        return _recursive(hmm, uses, generator, start_of)
    covariates = None
    if emission.covariates and inputs is not None:
        covariates = inputs.expand(n, length, -1).reshape(n * length, -1)
    return emission.sample(uses.reshape(-1), generator, covariates).reshape(n, length, -1)


def _recursive(hmm: "HMM", uses: Tensor, generator: torch.Generator, start_of: Tensor | None) -> Tensor:
    """Steps one after the other, each reading the steps before it."""
    n, length = uses.shape
    width = hmm.emission.width
    window = torch.full((n, hmm.emission.lags * width), torch.nan, dtype=torch.float64)
    if start_of is not None:
        window = start_of
    drawn = []
    for t in range(length):
        drawn.append(hmm.emission.sample(uses[:, t], generator, window))
        window = torch.cat([drawn[-1], window[:, :-width]], 1)
    return torch.stack(drawn, 1)
