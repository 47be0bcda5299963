"""The recursions in logarithms: the definition, differentiable twice, right where scaled probabilities underflow."""

import torch
from torch import Tensor

from probgen.chains.chain import Chain, batch_of

__all__ = ["add", "backward", "forward", "log_likelihood"]


def add(x: Tensor, dim: int) -> Tensor:
    """log sum exp whose gradient is 0, not NaN, where all terms are -inf."""
    some = (x > -torch.inf).any(dim, keepdim=True)
    return torch.where(some, torch.where(some, x, 0.0).logsumexp(dim, keepdim=True), -torch.inf).squeeze(dim)


def _moves(chain: Chain, steps: Tensor) -> Tensor:
    """log moves into steps, (S, S) or (n, S, S)."""
    return chain.transition if chain.homogeneous else chain.transition[steps]


def log_likelihood(chain: Chain) -> Tensor:
    batch = batch_of(chain.lengths, chain.starts)
    state = chain.first()[batch.order] + chain.table[batch.steps[0]]
    ended: list[Tensor] = []
    for t, n in enumerate(batch.active[1:], 1):
        if n < len(state):
            ended.append(add(state[n:], 1))
            state = state[:n]
        rows = batch.steps[t, :n]
        state = add(state[:, :, None] + _moves(chain, rows), 1) + chain.table[rows]
    ended.append(add(state, 1))
    return torch.cat(ended[::-1])[torch.argsort(batch.order)]


@torch.no_grad()
def forward(chain: Chain) -> tuple[Tensor, Tensor]:
    """log p(z_t | x_1..x_t), shape (total, S), and log p(x_t | x_1..x_{t-1}), shape (total,).

    Normalised at each step, else digits would go as the sum grows. From the first impossible step on all is -inf.
    """
    batch = batch_of(chain.lengths, chain.starts)
    out = torch.empty_like(chain.table)
    nats = out.new_empty(len(out))
    state = chain.first()[batch.order]
    for t, n in enumerate(batch.active):
        rows = batch.steps[t, :n]
        if t:
            state = add(state[:n, :, None] + _moves(chain, rows), 1)
        state = state + chain.table[rows]
        total = add(state, 1)
        state = state - _finite(total)[:, None]
        out[rows], nats[rows] = state, total
    return out, nats


def _finite(nats: Tensor) -> Tensor:
    return torch.where(nats > -torch.inf, nats, 0.0)


@torch.no_grad()
def backward(chain: Chain) -> Tensor:
    """log p(x_{t+1}..x_T | z_t) up to a constant a step, shape (total, S)."""
    batch = batch_of(chain.lengths, chain.starts)
    out = torch.zeros_like(chain.table)
    for t in range(len(batch.active) - 1, 0, -1):
        rows = batch.steps[t, : batch.active[t]]
        coming = out[rows] + chain.table[rows]
        message = add(coming[:, None] + _moves(chain, rows), 2)
        out[rows - 1] = message - _finite(message.amax(1))[:, None]
    return out
