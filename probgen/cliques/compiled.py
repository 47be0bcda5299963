"""The way to the compiled kernel: float64 tables on the CPU."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import kernels
from probgen.cliques.plan import Plan

__all__ = ["expected", "kernel_for", "log_prob", "marginals", "mpe", "row_cost", "sample"]

_UNLIMITED = 1e12  # queries refuse large rows before they come here
_WORTH = 256  # rows below which a second thread costs more than it saves


def kernel_for(tables: Sequence[Tensor], codes: Tensor) -> ModuleType | None:
    """The kernel, where it is there and can take these tables."""
    fits = all(part.dtype == torch.float64 and part.device.type == "cpu" for part in (codes, *tables))
    return kernels.cliques if fits else None


def _numbers(table: Tensor) -> np.ndarray:
    return table.detach().contiguous().numpy()


def _flat(tables: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([table.detach().reshape(-1) for table in tables]).numpy() if tables else np.empty(0)


class _Call:
    """The arguments that every function of the kernel takes, and what it writes for each row."""

    def __init__(self, plan: Plan, tables: Sequence[Tensor], codes: Tensor) -> None:
        n, self.plan = len(codes), plan
        self.own = [table.ndim > len(scope) for table, scope in zip(tables, plan.scopes, strict=True)]
        shared = [table for table, own in zip(tables, self.own, strict=True) if not own]
        rows = [table.detach().reshape(n, -1) for table, own in zip(tables, self.own, strict=True) if own]
        mine = torch.cat(rows, 1).contiguous().numpy() if rows else None
        self.net = (*plan.arrays, _flat(shared), np.array(self.own, dtype=np.int64), mine)
        self.codes = _numbers(codes)
        self.threads = torch.get_num_threads() if n > _WORTH else 1
        self.nats, self.status = np.empty(n), np.empty(n, dtype=np.int64)

    def run(self, function: Any, *arrays: np.ndarray | None, before: tuple[np.ndarray, ...] = ()) -> Tensor:
        function(self.net, self.codes, *before, _UNLIMITED, self.threads, self.nats, self.status, *arrays)
        return torch.from_numpy(self.nats)


def row_cost(native: ModuleType, plan: Plan, codes: Tensor, full: bool) -> Tensor:
    blank = [torch.zeros([plan.cards[v] for v in scope], dtype=torch.float64) for scope in plan.scopes]
    call, out = _Call(plan, blank, codes.detach().to(torch.float64).cpu()), np.empty(len(codes))
    native.cost(call.net, call.codes, full, call.threads, out)
    return torch.from_numpy(out)


def log_prob(native: ModuleType, plan: Plan, tables: Sequence[Tensor], codes: Tensor) -> Tensor:
    return _Call(plan, tables, codes).run(native.log_prob)


def marginals(native: ModuleType, plan: Plan, tables: Sequence[Tensor], codes: Tensor) -> tuple[Tensor, Tensor]:
    probabilities = np.empty((len(codes), sum(plan.cards)))
    return _Call(plan, tables, codes).run(native.marginals, probabilities), torch.from_numpy(probabilities)


def expected(
    native: ModuleType, plan: Plan, tables: Sequence[Tensor], codes: Tensor, weights: Tensor
) -> tuple[Tensor, list[Tensor]]:
    call = _Call(plan, tables, codes)
    logs, _, rows = call.net[-3:]
    shared, own = np.empty_like(logs), None if rows is None else np.empty_like(rows)
    nats = call.run(native.expected, shared, own, before=(_numbers(weights.to(torch.float64)),))
    return nats, _shaped(tables, call.own, torch.from_numpy(shared), None if own is None else torch.from_numpy(own))


def _shaped(tables: Sequence[Tensor], mine: list[bool], shared: Tensor, own: Tensor | None) -> list[Tensor]:
    """Flat counts as one tensor a factor, shaped as its table."""
    sizes = [table[0].numel() if each else table.numel() for table, each in zip(tables, mine, strict=True)]
    parts = iter(shared.split([size for size, each in zip(sizes, mine, strict=True) if not each]))
    rows = iter(() if own is None else own.split([s for s, each in zip(sizes, mine, strict=True) if each], 1))
    return [next(rows if each else parts).reshape(t.shape) for t, each in zip(tables, mine, strict=True)]


def mpe(native: ModuleType, plan: Plan, tables: Sequence[Tensor], codes: Tensor) -> tuple[Tensor, Tensor]:
    out = np.empty(tuple(codes.shape))
    nats = _Call(plan, tables, codes).run(native.best, out)
    return torch.from_numpy(out), nats


def sample(
    native: ModuleType,
    plan: Plan,
    tables: Sequence[Tensor],
    codes: Tensor,
    draws: int,
    uniforms: Callable[[tuple[int, ...]], Tensor],
) -> Tensor:
    """Draws (n, draws, V); many of one row are made in parts that stay in the cache."""
    out = np.empty((len(codes), draws, codes.shape[1]))
    part = draws if len(codes) > 1 else max(4096, plan.cost().entries // max(codes.shape[1], 1))
    call = _Call(plan, tables, codes)
    for begin in range(0, draws, part):
        some = out[:, begin : begin + part]
        call.run(native.sample, some, before=(uniforms(some.shape).numpy(),))
    return torch.from_numpy(out)
