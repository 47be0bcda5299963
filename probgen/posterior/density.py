"""A log joint density with its gradient, as samplers call it: arrays in, arrays out, several points at once."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from probgen import kernels
from probgen.errors import FitError, StructureError
from probgen.model import pyro_lock
from probgen.svi import record

__all__ = ["Density", "Inner"]

Inner = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
Played = Callable[..., tuple[Tensor, ...]]
_BROKEN = (torch.linalg.LinAlgError, FitError)


class Density:
    """log p(x, theta(z)) + log |d theta / d z| in nats and its gradient in z (P,).

    Arguments:
        function: A differentiable scalar of z (P,), float64. With ``inner``, a scalar and tensors that inner reads.
        size: P.
        recorded: Whether to play function and gradient back from a graph; where it can't be recorded, it is called.
        inner: What is to be added to the scalars, (W,) nats, and its gradients, from those tensors of W points, each
            (W, ...): by any means but torch's own.

    Points where the function is NaN, infinite, or breaks down numerically have -inf and a gradient of zero.
    """

    def __init__(
        self, function: Callable[[Tensor], Any], size: int, recorded: bool = False, inner: Inner | None = None
    ) -> None:
        self.function, self.size, self.inner = function, size, inner
        self.calls = 0
        self._played: dict[int, tuple[Played, Played] | None] = {}  # by how many points at once
        self._still: dict[int, list[Tensor | None]] = {}  # of the parts for inner those that no point changes
        self.recorded = recorded and self._graphs(1) is not None

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        nats, slopes = self.batch(z[None])
        return float(nats[0]), slopes[0]

    def batch(self, z: np.ndarray, width: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Log-densities (W,) and gradients (W, P) of points (W, P).

        Arguments:
            width: Of the graph, if there is one: points that are taken at once.
        """
        self.calls += len(z)
        parts = [self._some(z[i : i + width], width) for i in range(0, len(z), width)]
        nats, slopes = (np.concatenate(column) for column in zip(*parts, strict=True))
        bad = ~(np.isfinite(nats) & np.isfinite(slopes).all(1))
        return np.where(bad, -np.inf, nats), np.where(bad[:, None], 0.0, slopes)

    def _some(self, z: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        graphs = self._graphs(width) if self.recorded else None
        if graphs is None and len(z) > 1:
            return _joined([self._some(row[None], 1) for row in z])
        filled = np.concatenate([z, np.repeat(z[:1], width - len(z), 0)]) if graphs and len(z) < width else z
        try:
            at = torch.from_numpy(filled)
            nats, slopes = self._called(at) if graphs is None else self._from(graphs, at)
        except _BROKEN:
            if len(z) > 1:
                return _joined([self._some(row[None], 1) for row in z])
            return np.full(1, -np.inf), np.zeros((1, self.size))
        return nats.numpy()[: len(z)], slopes.numpy()[: len(z)]

    def _parts(self, z: Tensor) -> tuple[Tensor, ...]:
        found = self.function(z)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    def _all(self, z: Tensor) -> tuple[Tensor, ...]:
        """Parts of W points, each (W, ...)."""
        if len(z) == 1:
            return tuple(part[None] for part in self._parts(z[0]))
        return torch.func.vmap(self._parts)(z)

    def _called(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            parts = self._all(leaf)
            more, slopes = self._more(parts[1:])
            return parts[0].detach() + more, _pull(parts, slopes, leaf)

    def _more(self, parts: Sequence[Tensor]) -> tuple[Tensor | float, tuple[Tensor, ...]]:
        return self.inner(*(part.detach() for part in parts)) if self.inner else (0.0, ())

    # Recorded: one graph forth and one back where inner stands between them, else one graph for both

    def _outer(self, z: Tensor) -> tuple[Tensor, ...]:
        """The parts that depend on z, alone."""
        with torch.enable_grad(), _OutsideGraph():
            parts = self._all(z.detach().requires_grad_())
            return tuple(part.detach() for part in parts if part.requires_grad)

    def _pulled(self, z: Tensor, *slopes: Tensor) -> tuple[Tensor, ...]:
        """The scalars, and their gradients with those of the other parts that depend on z, weighted by slopes."""
        with torch.enable_grad(), _OutsideGraph():
            leaf = z.detach().requires_grad_()
            parts = [part for part in self._all(leaf) if part.requires_grad]
            return parts[0].detach(), _pull(parts, slopes, leaf)

    def _from(self, graphs: tuple[Played, Played], z: Tensor) -> tuple[Tensor, Tensor]:
        forth, back = graphs
        with torch.no_grad():
            if self.inner is None:
                nats, slope = back(z)
                return nats, slope
            still = self._still[len(z)]
            rest, *moved = forth(z)
            source = iter(moved)
            more, slopes = self.inner(*(next(source) if part is None else part for part in still))
            wanted = (slope for slope, part in zip(slopes, still, strict=True) if part is None)
            return rest + more, back(z, *wanted)[1]

    def _graphs(self, width: int) -> tuple[Played, Played] | None:
        """Graphs of so many points at once; None where they can't be recorded or give something else."""
        if width not in self._played:
            self._played[width] = self._record(width)
        return self._played[width]

    def _record(self, width: int) -> tuple[Played, Played] | None:
        scratch = torch.Generator().manual_seed(0)
        here = torch.zeros(width, self.size, dtype=torch.float64)
        try:
            with pyro_lock(scratch), warnings.catch_warnings(), _by_torch(), torch.enable_grad():
                warnings.simplefilter("ignore")
                parts = self._all(here.clone().requires_grad_())
                self._still[width] = [None if part.requires_grad else part for part in parts[1:]]
                slopes = [torch.ones_like(part) for part in parts[1:] if part.requires_grad]
                back = _compiled(self._pulled, here, *slopes)
                forth = _compiled(self._outer, here) if self.inner is not None else back
        except (StructureError, RuntimeError, *_BROKEN):
            return None
        return (forth, back) if self._alike((forth, back), width) else None

    def _alike(self, graphs: tuple[Played, Played], width: int) -> bool:
        """Whether graphs give what the function does, elsewhere than where they were recorded."""
        rng = np.random.default_rng(0)
        for _ in range(3):
            z = torch.from_numpy(0.5 * rng.standard_normal((width, self.size)))
            try:
                found = self._from(graphs, z)
                right = [torch.cat(column) for column in zip(*(self._called(one[None]) for one in z), strict=True)]
            except _BROKEN:
                return False
            if not all(torch.allclose(a, b, 1e-8, 1e-8, equal_nan=True) for a, b in zip(found, right, strict=True)):
                return False
        return True

    @torch.no_grad()
    def values(self, z: np.ndarray) -> np.ndarray:
        """log densities (S,) of points (S, P), without gradients."""
        return np.array([self._value(row) for row in torch.from_numpy(np.ascontiguousarray(z))])

    def _value(self, z: Tensor) -> float:
        self.calls += 1
        try:
            rest, *parts = self._all(z[None])
            nats = float(rest + self._more(parts)[0])
        except _BROKEN:
            return -np.inf
        return nats if np.isfinite(nats) else -np.inf


def _pull(parts: Sequence[Tensor], slopes: Sequence[Tensor], leaf: Tensor) -> Tensor:
    """The gradient of the first part, and of the others weighted by slopes."""
    pairs = [(parts[0], torch.ones_like(parts[0])), *zip(parts[1:], slopes, strict=True)]
    moved, weights = zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True)
    return torch.autograd.grad(moved, [leaf], weights)[0]


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def _compiled(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Played:
    """A recorded function, played back by torch's own interpreter: half of what Python's takes."""
    scratch = torch.Generator().manual_seed(0)
    graph = record(lambda *some: function(*some), *inputs, generator=scratch)
    with torch.no_grad():
        return torch.jit.trace(lambda *some: graph.play(*some, scratch, *graph.held), inputs, check_trace=False)


@contextmanager
def _by_torch() -> Iterator[None]:
    """Without the compiled kernels, which a graph can't hold; their torch twins are as exact, and who else asks for
    them meanwhile gets those too."""
    native, kernels.native = kernels.native, None
    try:
        yield
    finally:
        kernels.native = native


class _OutsideGraph(TorchFunctionMode):
    """While a graph is recorded, runs what the data alone decide now, so that a program may look at them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode
        from torch.utils._pytree import tree_leaves

        kwargs, mode = kwargs or {}, get_proxy_mode()
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        if mode is None or not tensors or any(_depends(part, mode) for part in tensors):
            return func(*args, **kwargs)
        with disable_proxy_modes_tracing():
            return func(*args, **kwargs)


def _depends(part: Tensor, mode: Any) -> bool:
    """Whether a tensor is made of what the graph is given."""
    return torch._C._functorch.is_functorch_wrapped_tensor(part) or part in mode.tracer.tensor_tracker
