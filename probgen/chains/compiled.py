"""The way to the compiled kernel: float64 tables on the CPU, homogeneous chains."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import kernels
from probgen.chains.chain import Chain, Expected, Normals

__all__ = ["Swept", "best", "expected", "forward", "kernel_for"]

_MIXING = 1e-100  # moves all more probable than this make any lost share harmless
_WORTH = 1 << 16  # table entries below which a second thread costs more than it saves


def kernel_for(chain: Chain) -> ModuleType | None:
    """The kernel, where it is there and can run this chain."""
    source = chain.potentials
    tables = (source.x, source.loc, source.scale) if isinstance(source, Normals) else (source,)
    parts = (chain.initial, chain.transition, *tables)
    fits = chain.homogeneous and all(part.dtype == torch.float64 and part.device.type == "cpu" for part in parts)
    return kernels.native if fits else None


def _numbers(table: Tensor) -> Any:
    return table.detach().contiguous().numpy()


def _big(*shape: int) -> Tensor:
    """A new table; NumPy asks for large pages, which torch does not."""
    return torch.from_numpy(np.empty(shape))


def _source(chain: Chain) -> Any:
    source = chain.potentials
    if isinstance(source, Normals):
        return tuple(map(_numbers, (source.x, source.loc, source.scale)))
    return _numbers(source)


def _threads(chain: Chain) -> int:
    return torch.get_num_threads() if len(chain.potentials) * chain.size**2 > _WORTH else 1


@dataclass(frozen=True, eq=False)
class Swept:
    """What a sweep writes.

    Arguments:
        nats: log p of each sequence, shape (n,).
        impossible: First impossible row of the tables plus 1, or 0, shape (n,).
        flags: 1 where a share underflowed that could matter, shape (n,).
    """

    nats: Tensor
    impossible: Tensor
    flags: Tensor

    @classmethod
    def of(cls, chain: Chain) -> "Swept":
        n = len(chain.lengths)
        return cls(torch.zeros(n, dtype=torch.float64), *torch.zeros(2, n, dtype=torch.int64))

    @property
    def arrays(self) -> tuple[Any, ...]:
        return self.nats.numpy(), self.impossible.numpy(), self.flags.numpy()


def _chances(chain: Chain) -> tuple[Any, Any, bool]:
    """Initial and transition probabilities, and whether a share lost to underflow could matter."""
    moves = chain.transition.detach().exp()
    first = chain.initial.detach().exp().reshape(-1, chain.size)
    return _numbers(first), _numbers(moves), not bool(moves.amin() > _MIXING)


def forward(
    native: ModuleType, chain: Chain, steps: bool, windows: bool = True
) -> tuple[Swept, Tensor | None, Tensor | None]:
    """A forward sweep; with ``steps`` also log p(x_t | x_<t), (total,), and filtered probabilities, (total, S)."""
    swept = Swept.of(chain)
    first, moves, careful = _chances(chain)
    careful = careful or not windows
    given = (first, moves, _source(chain), _numbers(chain.lengths), careful, _threads(chain), *swept.arrays)
    if not steps:
        native.forward(*given, None, None, None)
        return swept, None, None
    sums, tops = torch.empty(2, len(chain.potentials), dtype=torch.float64)
    states = _big(*chain.potentials.shape)
    native.forward(*given, sums.numpy(), tops.numpy(), states.numpy())
    return swept, torch.where(sums > 0, sums.log() + tops, -torch.inf), states


def expected(native: ModuleType, chain: Chain, weights: Tensor | None, marginals: bool) -> tuple[Swept, Expected]:
    """Both sweeps; with ``marginals`` those, else moments where the potentials are Normals."""
    swept = Swept.of(chain)
    first, moves, careful = _chances(chain)
    source, size = chain.potentials, chain.size
    initial = torch.empty(len(chain.lengths), size, dtype=torch.float64)
    counts = torch.empty(size, size, dtype=torch.float64)
    normals = isinstance(source, Normals) and not marginals
    table = None if normals else _big(*source.shape)
    moments = torch.empty(3, *source.loc.shape, dtype=torch.float64) if normals else None  # type: ignore[union-attr]
    native.smooth(
        first,
        moves,
        _source(chain),
        _numbers(chain.lengths),
        None if weights is None else _numbers(weights),
        careful,
        _threads(chain),
        *swept.arrays,
        initial.numpy(),
        counts.numpy(),
        None if table is None else table.numpy(),
        None if moments is None else moments.numpy(),
    )
    return swept, Expected(swept.nats, initial, counts, table, moments)


def best(native: ModuleType, chain: Chain) -> tuple[Tensor, Tensor]:
    """Viterbi's path, (total,) int64, and its log-probability, (n,)."""
    path = torch.empty(len(chain.potentials), dtype=torch.int64)
    nats = torch.empty(len(chain.lengths), dtype=torch.float64)
    native.best(
        _numbers(chain.initial.reshape(-1, chain.size)),
        _numbers(chain.transition),
        _source(chain),
        _numbers(chain.lengths),
        _threads(chain),
        path.numpy(),
        nats.numpy(),
    )
    return path, nats
