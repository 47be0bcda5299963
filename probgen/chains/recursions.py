"""The questions that chains answer, each by the kernel where it can, else by the torch path."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from probgen.chains import compiled, logspace, paths, scaled
from probgen.chains.chain import Chain, Expected, Filtered, Normals, Posterior
from probgen.emissions.diagonal import diagonal_moments
from probgen.errors import ShapeError

__all__ = ["advance", "expected", "filter", "first_impossible", "log_likelihood", "posterior", "sample", "viterbi"]

_MIXING = 0.325  # of the exponents: moves all above 1e-100 make any lost share harmless
_LIKELIER = 0.31
_EQUAL = 1e-12
_ENTRIES = 1 << 22  # of a table of pairs that is only summed


def _check(chain: Chain) -> None:
    shape = tuple(chain.potentials.shape)
    if len(shape) != 2:
        raise ShapeError(f"potentials {shape}", "one row a step, one column a state: (total, S)")
    total, size = shape
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
    if torch.is_grad_enabled():
        source = chain.potentials
        parts = (source.loc, source.scale, source.x) if isinstance(source, Normals) else (source,)
        if any(part.requires_grad for part in (chain.initial, chain.transition, *parts)):
            return _differentiable(chain)
    native = compiled.kernel_for(chain)
    if native is None:
        return _sums(chain, filter(chain).nats)
    swept, _, _ = compiled.forward(native, chain, steps=False)
    redo = ((swept.flags > 0) | _doubtful(chain, swept.nats)).nonzero()[:, 0]
    if len(redo):
        swept.nats[redo] = logspace.log_likelihood(chain.part(redo)[0])
    return swept.nats


def _sums(chain: Chain, nats: Tensor) -> Tensor:
    return nats.new_zeros(len(chain.lengths)).index_add_(0, chain.rows, nats)


def _differentiable(chain: Chain) -> Tensor:
    source = chain.potentials
    if isinstance(source, Normals) and not source.x.requires_grad and compiled.kernel_for(chain) is not None:
        return _CountedNormals.apply(chain.initial, chain.transition, source.loc, source.scale, source.x, chain.lengths)
    return _Counted.apply(chain.initial, chain.transition, chain.table, chain.lengths)


def _second(nats: Tensor, parts: tuple[Tensor, ...], slope: Tensor) -> tuple[Tensor | None, ...]:
    """Derivatives that can be derived again; None where none is wanted."""
    wanted = [part for part in parts if part.requires_grad]
    found = iter(torch.autograd.grad(nats, wanted, slope, create_graph=True, allow_unused=True))
    return tuple(next(found) if part.requires_grad else None for part in parts)


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
        *parts, lengths = context.saved_tensors
        initial, transition, potentials = parts
        chain = Chain(initial, transition, potentials, lengths)
        if torch.is_grad_enabled():
            return *_second(logspace.log_likelihood(chain), tuple(parts), slope), None
        found = expected(chain, slope, marginals=True)
        return _like(found.initial, chain.initial), found.transitions, found.marginals, None


class _CountedNormals(torch.autograd.Function):
    """As _Counted, for Normals: the gradient in their parameters is made of the moments that an M step takes."""

    @staticmethod
    def forward(context: Any, *parts: Tensor) -> Tensor:
        initial, transition, loc, scale, x, lengths = (part.detach() for part in parts)
        chain = Chain(initial, transition, Normals(x, loc, scale), lengths)
        found = expected(chain, None, marginals=False)
        context.save_for_backward(*parts)
        context.found = found
        return found.nats.clone()

    @staticmethod
    def backward(context: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        initial, transition, loc, scale, x, lengths = context.saved_tensors
        chain = Chain(initial, transition, Normals(x, loc, scale), lengths)
        if torch.is_grad_enabled():
            nats = logspace.log_likelihood(chain.tabled())
            return *_second(nats, (initial, transition, loc, scale), slope), None, None
        same = bool((slope == slope[0]).all())
        found = context.found if same else expected(chain, slope, marginals=False)
        times = slope[0] if same else 1.0
        n, first, second = found.moments  # type: ignore[misc]
        return (
            _like(found.initial, initial) * times,
            found.transitions * times,
            first / scale.square() * times,
            (second / scale**3 - n / scale) * times,
            None,
            None,
        )


def _like(initial: Tensor, wanted: Tensor) -> Tensor:
    return initial if wanted.ndim == 2 else initial.sum(0)


@torch.no_grad()
def filter(chain: Chain) -> Filtered:
    """p(z_t | x_1..x_t) and log p(x_t | x_1..x_{t-1}) of each step."""
    _check(chain)
    states, nats, flagged = _filter(chain)
    redo = flagged.nonzero()[:, 0]
    if len(redo):
        part, steps = chain.part(redo)
        logs, nats[steps] = logspace.forward(part.tabled())
        states[steps] = logs.exp()
    return _ended(chain, states, nats)


def _filter(chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Filtered probabilities, nats of steps, and which sequences must be done in logarithms."""
    states, nats, flagged = _swept(chain)
    return states, nats, flagged | _doubtful(chain, nats)


def _swept(chain: Chain, windows: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    native = compiled.kernel_for(chain)
    if native is not None:
        swept, nats, states = compiled.forward(native, chain, steps=True, windows=windows)
        return states, nats, swept.flags > 0  # type: ignore[return-value]
    chain = chain.tabled()
    weights, top = scaled.shifted(chain.table)
    found = scaled.forward(chain, weights, windows)
    return found.states, torch.where(found.sums > 0, found.sums.log() + top, -torch.inf), found.flagged


def _doubtful(chain: Chain, nats: Tensor) -> Tensor:
    """For which sequences a share that underflowed may matter, shape (n,): none where all moves mix.

    What underflows makes sums too small. Where rare and impossible moves are given 1e-95 nothing that matters can be
    lost and sums are too large: the truth lies between. ``nats`` are those of sequences, or of steps.
    """
    rarest = math.log(torch.finfo(chain.transition.dtype).tiny)
    if bool(chain.transition.amin() > _MIXING * rarest):
        return torch.zeros_like(chain.lengths, dtype=torch.bool)
    more = replace(chain, transition=chain.transition.detach().clamp(min=_LIKELIER * rarest))
    steps = len(nats) != len(chain.lengths) or len(nats) == len(chain.potentials)
    high = _swept(more, windows=False)[1] if steps else _total(more)
    apart = torch.where(high == nats, 0.0, (high - nats).abs())
    return ~((_sums(chain, apart) if steps else apart) <= _EQUAL)


def _total(chain: Chain) -> Tensor:
    native = compiled.kernel_for(chain)
    if native is None:
        return _sums(chain, _swept(chain, windows=False)[1])
    return compiled.forward(native, chain, steps=False, windows=False)[0].nats


def _ended(chain: Chain, states: Tensor, nats: Tensor) -> Filtered:
    """After an impossible step all steps of a sequence are."""
    if bool((nats > -torch.inf).all()):
        return Filtered(states, nats)
    first = _first(chain, nats)
    row = chain.rows
    within = torch.arange(len(nats), device=nats.device) - chain.starts[row]
    gone = (first[row] >= 0) & (within >= first[row])
    return Filtered(torch.where(gone[:, None], 0.0, states), torch.where(gone, -torch.inf, nats))


def _first(chain: Chain, nats: Tensor) -> Tensor:
    row = chain.rows
    within = torch.arange(len(nats), device=nats.device) - chain.starts[row]
    bad = torch.isneginf(nats)
    never = torch.iinfo(torch.int64).max
    first = torch.full_like(chain.lengths, never).scatter_reduce(0, row[bad], within[bad], "amin")
    return torch.where(first == never, -1, first)


@torch.no_grad()
def first_impossible(chain: Chain) -> Tensor:
    """The step at which each sequence became impossible, shape (n,), int64; -1 where it never did."""
    _check(chain)
    native = compiled.kernel_for(chain)
    if native is not None:
        swept, _, _ = compiled.forward(native, chain, steps=False)
        doubtful = _doubtful(chain, swept.nats)
        if not bool(doubtful.any() | swept.flags.any() | swept.impossible.any()):
            return torch.full_like(chain.lengths, -1)
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
        state = logspace.forward(chain.tabled())[0][last]
    return _sums(chain, found.nats), state


@torch.no_grad()
def posterior(chain: Chain, pairs: bool = False) -> Posterior:
    """p(z_t | x) and expected moves; with ``pairs``, and for inhomogeneous chains, moves step by step."""
    _check(chain)
    if pairs and chain.homogeneous:
        chain = replace(chain, transition=chain.transition.expand(len(chain.potentials), -1, -1))
    found = expected(chain, None, marginals=True)
    return Posterior(found.nats, found.marginals, found.initial, found.transitions)  # type: ignore[arg-type]


@torch.no_grad()
def expected(chain: Chain, weights: Tensor | None = None, marginals: bool = False) -> Expected:
    """What an M step reads: of Normals, unless ``marginals`` are asked for, moments.

    Arguments:
        weights: Of each sequence, shape (n,), multiplying its share of everything but ``nats``.
    """
    _check(chain)
    native = compiled.kernel_for(chain)
    if native is None:
        return _by_torch(chain, weights, marginals)
    swept, found = compiled.expected(native, chain, weights, marginals)
    bad = (swept.flags > 0) | (swept.impossible > 0) | _doubtful(chain, swept.nats)
    if not bool(bad.any()):
        return found
    rows = bad.nonzero()[:, 0], (~bad).nonzero()[:, 0]
    if not len(rows[1]):
        return _by_torch(chain, weights, marginals)
    parts = [_part(chain, weights, each) for each in rows]
    easy = compiled.expected(native, *parts[1], marginals)[1]
    return _joined(chain, rows, (_by_torch(*parts[0], marginals), easy))


def _part(chain: Chain, weights: Tensor | None, rows: Tensor) -> tuple[Chain, Tensor | None]:
    return chain.part(rows)[0], None if weights is None else weights[rows]


def _joined(chain: Chain, rows: tuple[Tensor, ...], parts: tuple[Expected, ...]) -> Expected:
    """Expected numbers of parts of the sequences as those of all."""
    first = parts[0]
    nats = first.nats.new_empty(len(chain.lengths))
    initial = first.initial.new_empty(len(chain.lengths), chain.size)
    table = None if first.marginals is None else first.marginals.new_empty(chain.potentials.shape)
    for mine, part in zip(rows, parts, strict=True):
        nats[mine], initial[mine] = part.nats, part.initial
        if table is not None and part.marginals is not None:
            table[chain.part(mine)[1]] = part.marginals
    moved = [part.moments for part in parts if part.moments is not None]
    moves = torch.stack([part.transitions for part in parts]).sum(0)
    return Expected(nats, initial, moves, table, torch.stack(moved).sum(0) if moved else None)


def _by_torch(chain: Chain, weights: Tensor | None, marginals: bool) -> Expected:
    source, chain = chain.potentials, chain.tabled()
    each, top = scaled.shifted(chain.table)
    forth = scaled.forward(chain, each)
    aft = scaled.backward(chain, each, forth.states)
    nats = _sums(chain, torch.where(forth.sums > 0, forth.sums.log() + top, -torch.inf))
    flagged = forth.flagged | aft.flagged | _doubtful(chain, nats)
    factor = torch.ones_like(nats) if weights is None else weights.to(nats.dtype)
    factor = torch.where(flagged | torch.isneginf(nats), 0.0, factor).repeat_interleave(chain.lengths)
    share = forth.states * aft.states
    table = torch.where(factor[:, None] != 0, share * (factor / _positive(share.sum(1)))[:, None], 0.0)
    factor[chain.starts] = 0.0  # no move leads from one sequence's end to the next one's start
    moves = _moves(chain, forth.states, aft.states * each, factor)
    redo = flagged.nonzero()[:, 0]
    if len(redo):
        part, steps = chain.part(redo)
        own = torch.ones(len(redo), dtype=table.dtype) if weights is None else weights[redo]
        nats[redo], table[steps], more = _in_logs(part, own)
        if chain.homogeneous:
            moves += more
        else:
            moves[steps] = more
    if isinstance(source, Normals) and not marginals:
        return Expected(nats, table[chain.starts], moves, None, diagonal_moments(source.x, table, source.loc))
    return Expected(nats, table[chain.starts], moves, table, None)


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)


def _moves(chain: Chain, state: Tensor, coming: Tensor, factor: Tensor) -> Tensor:
    """Expected moves; one matrix product where only their sum is asked."""
    matrix = chain.transition.exp()
    before = torch.roll(state, 1, 0)
    ahead = before @ matrix if chain.homogeneous else torch.einsum("ti,tij->tj", before, matrix)
    factor = factor / _positive((ahead * coming).sum(1))
    coming = torch.where(factor[:, None] != 0, coming * factor[:, None], 0.0)
    return (before.T @ coming) * matrix if chain.homogeneous else before[:, :, None] * matrix * coming[:, None]


def _in_logs(part: Chain, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihoods, marginals and moves of sequences whose scaled probabilities would underflow."""
    (forth, steps), aft = logspace.forward(part), logspace.backward(part)
    nats = _sums(part, steps)
    factor = torch.where(nats > -torch.inf, factor, 0.0)[part.rows]
    marginals = _shares(forth + aft, factor)
    factor = factor.clone()
    factor[part.starts] = 0.0
    before, coming = torch.roll(forth, 1, 0), part.table + aft
    if not part.homogeneous:
        return nats, marginals, _pairs(before, coming, part.transition, factor)
    moves = torch.zeros_like(part.transition)
    for rows in torch.arange(len(before), device=before.device).split(max(1, _ENTRIES // part.size**2)):
        moves += _pairs(before[rows], coming[rows], part.transition, factor[rows]).sum(0)
    return nats, marginals, moves


def _pairs(before: Tensor, coming: Tensor, transition: Tensor, factor: Tensor) -> Tensor:
    joint = before[:, :, None] + transition + coming[:, None]
    return _shares(joint.flatten(1), factor).reshape(joint.shape)


def _shares(logs: Tensor, factor: Tensor) -> Tensor:
    """Each row as shares of its factor; zeros where that is 0."""
    logs = torch.where(factor[:, None] != 0, logs, 0.0)
    return logs.softmax(1) * factor[:, None]


@torch.no_grad()
def viterbi(chain: Chain) -> tuple[Tensor, Tensor]:
    """The most probable path, (total,) int64, and its joint log-probability, (n,); ties go to the lower state."""
    _check(chain)
    native = compiled.kernel_for(chain)
    return paths.best(chain.tabled()) if native is None else compiled.best(native, chain)


@torch.no_grad()
def sample(chain: Chain, n: int, generator: torch.Generator) -> Tensor:
    """n paths from p(z | x) of each sequence, shape (n, total): forward filtering, backward sampling."""
    _check(chain)
    states, _, flagged = _filter(chain)
    logs = states.log()
    redo = flagged.nonzero()[:, 0]
    if len(redo):
        part, steps = chain.part(redo)
        logs[steps] = logspace.forward(part.tabled())[0]
    return paths.draw(chain.tabled(), logs, n, generator)
