"""The way to the compiled kernel: float64 tables on the CPU, homogeneous chains."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from probgen import kernels
from probgen.chains.chain import Chain

__all__ = ["Swept", "best", "forward", "kernel_for", "posterior"]

_MIXING = 1e-150  # moves all more probable than this make any lost share harmless
_WORTH = 1 << 16  # table entries below which a second thread costs more than it saves


def kernel_for(chain: Chain) -> ModuleType | None:
    """The kernel, where it is there and can run this chain."""
    parts = (chain.initial, chain.transition, chain.potentials)
    fits = chain.homogeneous and all(part.dtype == torch.float64 and part.device.type == "cpu" for part in parts)
    return kernels.native if fits else None


def _numbers(table: Tensor) -> Any:
    return table.detach().contiguous().numpy()


class Swept:
    """What a sweep of the kernel is called with and writes.

    Arguments:
        nats: log p of each sequence, shape (n,).
        impossible: First impossible row of the tables plus 1, or 0, shape (n,).
        flags: 1 where a share underflowed that could matter, shape (n,).
    """

    def __init__(self, chain: Chain) -> None:
        n = len(chain.lengths)
        moves = chain.transition.detach().exp()
        self.given = (
            _numbers(chain.initial.detach().exp().reshape(-1, chain.size)),
            _numbers(moves),
            _numbers(chain.potentials),
            _numbers(chain.lengths),
            not bool(moves.amin() > _MIXING),
            threads(chain),
        )
        self.nats = torch.zeros(n, dtype=torch.float64)
        self.impossible, self.flags = torch.zeros(2, n, dtype=torch.int64)

    @property
    def written(self) -> tuple[Any, ...]:
        return self.nats.numpy(), self.impossible.numpy(), self.flags.numpy()


def threads(chain: Chain) -> int:
    return torch.get_num_threads() if chain.potentials.numel() * chain.size > _WORTH else 1


def forward(native: ModuleType, chain: Chain, steps: bool) -> tuple[Swept, Tensor | None, Tensor | None]:
    """A forward sweep; with ``steps`` also log p(x_t | x_<t), (total,), and filtered probabilities, (total, S)."""
    swept = Swept(chain)
    if not steps:
        native.forward(*swept.given, *swept.written, None, None, None)
        return swept, None, None
    sums, tops = torch.empty(2, len(chain.potentials), dtype=torch.float64)
    states = torch.empty_like(chain.potentials, memory_format=torch.contiguous_format)
    native.forward(*swept.given, *swept.written, sums.numpy(), tops.numpy(), states.numpy())
    return swept, torch.where(sums > 0, sums.log() + tops, -torch.inf), states


def posterior(native: ModuleType, chain: Chain) -> tuple[Swept, Tensor, Tensor, Tensor]:
    """Both sweeps: marginals, filtered probabilities, and the factor that makes moves of them, each (total, S)."""
    swept = Swept(chain)
    tables = torch.empty(3, *chain.potentials.shape, dtype=torch.float64)
    marginals, states, factor = tables
    native.posterior(*swept.given, *swept.written, marginals.numpy(), states.numpy(), factor.numpy())
    return swept, marginals, states, factor


def best(native: ModuleType, chain: Chain) -> tuple[Tensor, Tensor]:
    path = torch.empty(len(chain.potentials), dtype=torch.int64)
    nats = torch.empty(len(chain.lengths), dtype=torch.float64)
    native.best(
        _numbers(chain.initial.reshape(-1, chain.size)),
        _numbers(chain.transition),
        _numbers(chain.potentials),
        _numbers(chain.lengths),
        threads(chain),
        path.numpy(),
        nats.numpy(),
    )
    return path, nats
