"""The questions that chains answer, each by the kernel where it can, else by the torch path."""

from typing import Any

import torch
from torch import Tensor

from probgen.chains import compiled, logspace, paths, scaled
from probgen.chains.chain import Chain, Filtered, Posterior
from probgen.errors import ShapeError

__all__ = ["advance", "filter", "first_impossible", "log_likelihood", "posterior", "sample", "viterbi"]


def _check(chain: Chain) -> None:
    total, size = chain.potentials.shape
    moves = tuple(chain.transition.shape)
    starts = chain.initial.shape in ((size,), (len(chain.lengths), size))
    fits = len(chain.lengths) and bool((chain.lengths >= 1).all()) and int(chain.lengths.sum()) == total
    if not (fits and starts and moves in ((size, size), (total, size, size))):
        raise ShapeError(
            f"initial {tuple(chain.initial.shape)}, transition {moves}, potentials {(total, size)}, "
            f"lengths that add up to {int(chain.lengths.sum())}",
            "(S,) or (n, S), (S, S) or (total, S, S), (total, S), and positive lengths that add up to total",
        )


def log_likelihood(chain: Chain) -> Tensor:
    """log p(x) of each sequence in nats, shape (n,), -inf for impossible ones; differentiable, also twice."""
    _check(chain)
    parts = (chain.initial, chain.transition, chain.potentials)
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return _Counted.apply(*parts, chain.lengths)
    native = compiled.kernel_for(chain)
    if native is None:
        return _sums(chain, filter(chain).nats)
    swept, _, _ = compiled.forward(native, chain, steps=False)
    redo = swept.flags.nonzero()[:, 0]
    if len(redo):
        swept.nats[redo] = logspace.log_likelihood(chain.part(redo)[0])
    return swept.nats


def _sums(chain: Chain, nats: Tensor) -> Tensor:
    row = torch.repeat_interleave(torch.arange(len(chain.lengths)), chain.lengths)
    return torch.zeros(len(chain.lengths), dtype=nats.dtype).index_add_(0, row, nats)


class _Counted(torch.autograd.Function):
    """The log-likelihood, whose gradient is the expected counts: in the potentials the marginals, in the initial
    log-probabilities the marginals of the first step, in the log moves the expected moves. A second derivative goes
    through the recursion itself."""

    @staticmethod
    def forward(context: Any, initial: Tensor, transition: Tensor, potentials: Tensor, lengths: Tensor) -> Tensor:
        context.save_for_backward(initial, transition, potentials, lengths)
        return log_likelihood(Chain(initial.detach(), transition.detach(), potentials.detach(), lengths))

    @staticmethod
    def backward(context: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        initial, transition, potentials, lengths = context.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            nats = logspace.log_likelihood(Chain(initial, transition, potentials, lengths))
            wanted = [part for part in (initial, transition, potentials) if part.requires_grad]
            found = iter(torch.autograd.grad(nats, wanted, slope, create_graph=True, allow_unused=True))
            first, moves, marginals = (
                next(found) if part.requires_grad else None for part in (initial, transition, potentials)
            )
            return first, moves, marginals, None
        chain = Chain(initial, transition, potentials, lengths)
        found = posterior(chain, weights=slope)
        first = found.initial if initial.ndim == 2 else found.initial.sum(0)
        return first, found.transitions, found.marginals, None


@torch.no_grad()
def filter(chain: Chain) -> Filtered:
    """p(z_t | x_1..x_t) and log p(x_t | x_1..x_{t-1}) of each step."""
    _check(chain)
    states, nats, flagged = _filter(chain)
    redo = flagged.nonzero()[:, 0]
    if len(redo):
        part, steps = chain.part(redo)
        joint = logspace.forward(part)
        totals = logspace.add(joint, 1)
        states[steps] = (joint - torch.where(totals > -torch.inf, totals, 0.0)[:, None]).exp()
        before = torch.roll(totals, 1)
        before[part.starts] = 0.0
        nats[steps] = torch.where(totals > -torch.inf, totals - torch.where(before > -torch.inf, before, 0.0), -torch.inf)
    return _ended(chain, states, nats)


def _filter(chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Filtered probabilities, nats of steps, and which sequences must be done in logarithms."""
    native = compiled.kernel_for(chain)
    if native is not None:
        swept, nats, states = compiled.forward(native, chain, steps=True)
        return states, nats, swept.flags > 0  # type: ignore[return-value]
    weights, top = scaled.shifted(chain.potentials)
    found = scaled.forward(chain, weights)
    return found.states, torch.where(found.sums > 0, found.sums.log() + top, -torch.inf), found.flagged


def _ended(chain: Chain, states: Tensor, nats: Tensor) -> Filtered:
    """After an impossible step all steps of a sequence are."""
    if bool((nats > -torch.inf).all()):
        return Filtered(states, nats)
    first = _first(chain, nats)
    row = torch.repeat_interleave(torch.arange(len(first)), chain.lengths)
    within = torch.arange(len(nats)) - chain.starts[row]
    gone = (first[row] >= 0) & (within >= first[row])
    return Filtered(torch.where(gone[:, None], 0.0, states), torch.where(gone, -torch.inf, nats))


def _first(chain: Chain, nats: Tensor) -> Tensor:
    row = torch.repeat_interleave(torch.arange(len(chain.lengths)), chain.lengths)
    within = torch.arange(len(nats)) - chain.starts[row]
    bad = torch.isneginf(nats)
    never = torch.iinfo(torch.int64).max
    first = torch.full((len(chain.lengths),), never).scatter_reduce(0, row[bad], within[bad], "amin")
    return torch.where(first == never, -1, first)


def first_impossible(chain: Chain) -> Tensor:
    """The step at which each sequence became impossible, shape (n,), int64; -1 where it never did."""
    return _first(chain, filter(chain).nats)


@torch.no_grad()
def advance(chain: Chain) -> tuple[Tensor, Tensor]:
    """log p(x) of each sequence, (n,), and log p(z_T | x) at its last step, (n, S): for going on in blocks.

    A share that underflows is -inf in the second; where moves can be zero it is taken in logarithms.
    """
    found = filter(chain)
    last = chain.starts + chain.lengths - 1
    state = found.probabilities[last].log()
    if not bool(chain.transition.amin() > -300):
        joint = logspace.forward(chain)[last]
        total = logspace.add(joint, 1)
        state = joint - torch.where(total > -torch.inf, total, 0.0)[:, None]
    return _sums(chain, found.nats), state


@torch.no_grad()
def posterior(chain: Chain, pairs: bool = False, weights: Tensor | None = None) -> Posterior:
    """p(z_t | x) and expected moves.

    Arguments:
        pairs: Whether moves are wanted step by step, (total, S, S); for inhomogeneous chains they are.
        weights: Of each sequence, shape (n,), multiplying its marginals and moves.
    """
    _check(chain)
    likelihood, flagged, marginals, state, coming = _smooth(chain)
    plain = weights is None and not bool(flagged.any()) and bool((likelihood > -torch.inf).all())
    if not plain:
        factor = torch.ones_like(likelihood) if weights is None else weights.to(likelihood.dtype)
        factor = torch.where(flagged | torch.isneginf(likelihood), 0.0, factor)
        factor = factor.repeat_interleave(chain.lengths)[:, None]
        marginals, coming = (torch.where(factor != 0, table * factor, 0.0) for table in (marginals, coming))
    pairs = pairs or not chain.homogeneous
    moves = _moves(chain, state, coming, pairs)
    redo = flagged.nonzero()[:, 0]
    if len(redo):
        part, steps = chain.part(redo)
        own = torch.ones(len(redo), dtype=marginals.dtype) if weights is None else weights[redo]
        likelihood[redo], marginals[steps], more = _in_logs(part, own)
        if pairs:
            moves[steps] = more
        else:
            moves += more.sum(0)
    return Posterior(likelihood, marginals, marginals[chain.starts], moves)


def _smooth(chain: Chain) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-likelihoods, flags, marginals, filtered probabilities, and the factor that makes expected moves of them:
    those into step t are filtered[t - 1] (x) factor[t], times the moves."""
    native = compiled.kernel_for(chain)
    if native is not None:
        swept, marginals, states, factor = compiled.posterior(native, chain)
        return swept.nats, swept.flags > 0, marginals, states, factor
    each, top = scaled.shifted(chain.potentials)
    forth, aft = scaled.forward(chain, each), scaled.backward(chain, each)
    likelihood = _sums(chain, torch.where(forth.sums > 0, forth.sums.log() + top, -torch.inf))
    share = forth.states * aft.states
    coming = aft.states * each
    before = torch.roll(forth.states, 1, 0)
    matrix = chain.transition.exp()
    ahead = before @ matrix if chain.homogeneous else torch.einsum("ti,tij->tj", before, matrix)
    norm = (ahead * coming).sum(1)
    marginals, factor = share / _positive(share.sum(1))[:, None], coming / _positive(norm)[:, None]
    return likelihood, forth.flagged | aft.flagged, marginals, forth.states, factor


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)


def _moves(chain: Chain, state: Tensor, factor: Tensor, pairs: bool) -> Tensor:
    """Expected moves; one matrix product where only their sum is asked. Overwrites the factor of first steps."""
    matrix = chain.transition.exp()
    factor[chain.starts] = 0.0  # no move leads from one sequence's end to the next one's start
    if pairs:
        return torch.roll(state, 1, 0)[:, :, None] * matrix * factor[:, None]
    return (state[:-1].T @ factor[1:]) * matrix


def _in_logs(part: Chain, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihoods, marginals and moves of sequences whose scaled probabilities would underflow."""
    forth, aft = logspace.forward(part), logspace.backward(part)
    nats = logspace.add(forth[part.starts + part.lengths - 1], 1)
    row = torch.repeat_interleave(torch.arange(len(nats)), part.lengths)
    possible = torch.isfinite(nats)
    less = torch.where(possible, nats, 0.0)[row]
    factor = torch.where(possible, factor, 0.0)[row]
    marginals = (forth + aft - less[:, None]).exp() * factor[:, None]
    joint = torch.roll(forth, 1, 0)[:, :, None] + part.transition + (part.potentials + aft)[:, None] - less[:, None, None]
    factor = factor.clone()
    factor[part.starts] = 0.0
    return nats, marginals, torch.where(factor[:, None, None] != 0, joint.exp(), 0.0) * factor[:, None, None]


@torch.no_grad()
def viterbi(chain: Chain) -> tuple[Tensor, Tensor]:
    """The most probable path, (total,) int64, and its joint log-probability, (n,); ties go to the lower state."""
    _check(chain)
    native = compiled.kernel_for(chain)
    return paths.best(chain) if native is None else compiled.best(native, chain)


@torch.no_grad()
def sample(chain: Chain, n: int, generator: torch.Generator) -> Tensor:
    """n paths from p(z | x) of each sequence, shape (n, total): forward filtering, backward sampling."""
    return paths.draw(chain, filter(chain).probabilities, n, generator)
