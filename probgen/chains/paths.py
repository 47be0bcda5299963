"""Single paths through a chain: the best one, and random ones."""

import torch
from torch import Tensor

from probgen.chains.chain import Batch, Chain
from probgen.chains.scaled import batches

__all__ = ["best", "draw"]

_PARALLEL = 1 << 11  # paths times sequences times S^2 up to which steps are drawn all at once
_BLOCK = 1 << 17  # numbers at once, so that they stay in the cache


def best(chain: Chain) -> tuple[Tensor, Tensor]:
    """Viterbi (1967): values of all states forward, then back along the moves that reached them."""
    values = torch.empty_like(chain.table)
    path = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    nats = values.new_empty(len(chain.lengths))
    for order, batch in batches(chain.lengths, chain.starts, chain.size**2):
        value = chain.first()[order]
        for t, n in enumerate(batch.active):
            rows = batch.steps[t, :n]
            if t:
                value = (value[:n, :, None] + _moves(chain, rows)).amax(1)
            value = value + chain.table[rows]
            values[rows] = value
        last = chain.starts[order] + chain.lengths[order] - 1
        nats[order] = values[last].amax(1)
        _back(chain, values, path, batch, last)
    path[torch.isneginf(nats)[chain.rows]] = 0
    return path, nats


def _moves(chain: Chain, rows: Tensor) -> Tensor:
    return chain.transition if chain.homogeneous else chain.transition[rows]


def _into(chain: Chain, rows: Tensor, state: Tensor) -> Tensor:
    """log moves into given states, shape (..., S)."""
    return chain.transition.T[state] if chain.homogeneous else chain.transition.mT[rows, state]


def _back(chain: Chain, values: Tensor, path: Tensor, batch: Batch, last: Tensor) -> None:
    path[last] = values[last].argmax(1)
    for t in range(len(batch.active) - 1, 0, -1):
        rows = batch.steps[t, : batch.active[t]]
        path[rows - 1] = (values[rows - 1] + _into(chain, rows, path[rows])).argmax(1)


def draw(chain: Chain, logs: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Backward sampling from filtered log-probabilities, up to a constant a step (Scott 2002)."""
    # a step drawn for every state that may follow costs n S^2, one drawn after it is known costs n S but waits
    if n * chain.size**2 * len(chain.lengths) <= _PARALLEL:
        return _by_maps(chain, logs, n, generator)
    paths = torch.zeros(n, len(logs), dtype=torch.int64, device=logs.device)
    for order, batch in batches(chain.lengths, chain.starts, chain.size * n):
        last = chain.starts[order] + chain.lengths[order] - 1
        paths[:, last] = _pick(logs[last].expand(n, -1, -1), generator)
        for t in range(len(batch.active) - 1, 0, -1):
            rows = batch.steps[t, : batch.active[t]]
            into = _into(chain, rows, paths[:, rows])
            paths[:, rows - 1] = _pick(logs[rows - 1] + into, generator)
    return paths


def _pick(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each row of logits (Gumbel 1954); an impossible row gives 0."""
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(-1)


def _by_maps(chain: Chain, logs: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """All steps at once: what each would be for every state that may follow, then one look-up a step."""
    size, total = chain.size, len(logs)
    ends = torch.zeros(total, dtype=torch.bool, device=logs.device)
    ends[chain.starts + chain.lengths - 1] = True
    chances = torch.rand(n, total, dtype=logs.dtype, device=logs.device, generator=generator)
    paths = torch.empty(n, total, dtype=torch.int64, device=logs.device)
    states = [0] * n
    for rows in reversed(torch.arange(total, device=logs.device).split(max(1, _BLOCK // (n * size**2)))):
        maps = _maps(chain, logs, ends, rows, chances[:, rows]).reshape(n, -1).tolist()
        parts = [_followed(own, size, state) for own, state in zip(maps, states, strict=True)]
        states = [part[0] for part in parts]
        paths[:, rows] = torch.tensor(parts, device=logs.device)
    return paths


def _maps(chain: Chain, logs: Tensor, ends: Tensor, rows: Tensor, chances: Tensor) -> Tensor:
    """The state of each step by the one that follows it, shape (n, rows, S), by the inverse distribution function.

    At the end of a sequence nothing follows: the same state for all.
    """
    into = chain.transition.T if chain.homogeneous else chain.transition[(rows + 1) % len(logs)].mT
    shares = logs[rows][:, None] + torch.where(ends[rows][:, None, None], 0.0, into)  # (rows, next, state)
    below = (shares - shares.amax(2, keepdim=True)).exp().cumsum(2)
    return (below <= chances[..., None, None] * below[..., -1:]).sum(3)


def _followed(states: list[int], size: int, state: int) -> list[int]:
    """A path backwards through maps laid out one after the other, from the state that follows them."""
    path = []
    for base in range(len(states) - size, -1, -size):
        state = states[base + state]
        path.append(state)
    return path[::-1]
