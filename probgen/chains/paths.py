"""Single paths through a chain: the best one, and random ones."""

import torch
from torch import Tensor

from probgen.chains.chain import Batch, Chain
from probgen.chains.scaled import batches

__all__ = ["best", "draw"]


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
