"""A log joint density with its gradient, as samplers call it: arrays in, arrays out."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from probgen.errors import FitError, StructureError
from probgen.model import pyro_lock
from probgen.svi import gradients, record

__all__ = ["Density"]


class Density:
    """log p(x, theta(z)) + log |d theta / d z| in nats and its gradient in z (P,).

    Arguments:
        function: A differentiable scalar of z (P,), float64.
        size: P.
        recorded: Whether to play function and gradient back from a graph; where it can't be recorded, it is called.

    Points where the function is NaN, infinite, or breaks down numerically have -inf and a gradient of zero.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], size: int, recorded: bool = False) -> None:
        self.function, self.size = function, size
        self.calls = 0
        self._play = self._record() if recorded else None

    def _record(self) -> Callable[[Tensor], tuple[Tensor | None, ...]] | None:
        def both(z: Tensor) -> tuple[Tensor | None, ...]:
            leaf = z.detach().requires_grad_()
            return gradients(self.function(leaf), [leaf])

        scratch = torch.Generator().manual_seed(0)
        here = torch.zeros(self.size, dtype=torch.float64)
        try:
            with pyro_lock(scratch), torch.enable_grad():
                graph = record(both, here, generator=scratch)
        except StructureError:
            return None

        def play(z: Tensor) -> tuple[Tensor | None, ...]:
            return graph(z, generator=scratch)

        return play if self._alike(play) else None

    def _alike(self, play: Callable[[Tensor], tuple[Tensor | None, ...]]) -> bool:
        """Whether a graph gives what the function does, elsewhere than where it was recorded."""
        rng = np.random.default_rng(0)
        for _ in range(3):
            z = torch.from_numpy(0.5 * rng.standard_normal(self.size))
            try:
                pairs = zip(play(z), self._called(z), strict=True)
                if not all(a is not None and torch.allclose(a, b, 1e-8, 1e-8, equal_nan=True) for a, b in pairs):
                    return False
            except (torch.linalg.LinAlgError, FitError):
                return False
        return True

    @property
    def recorded(self) -> bool:
        return self._play is not None

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        self.calls += 1
        at = torch.from_numpy(z)
        try:
            value, slope = self._play(at) if self._play else self._called(at)
        except (torch.linalg.LinAlgError, FitError):
            return -np.inf, np.zeros(self.size)
        nats, array = float(value), slope.numpy()  # type: ignore[arg-type,union-attr]
        if not np.isfinite(nats) or not np.isfinite(array).all():
            return -np.inf, np.zeros(self.size)
        return nats, array

    def _called(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = self.function(leaf)
            return value.detach(), torch.autograd.grad(value, leaf)[0]

    @torch.no_grad()
    def values(self, z: np.ndarray) -> np.ndarray:
        """log densities (S,) of points (S, P), without gradients."""
        return np.array([self._value(row) for row in torch.from_numpy(np.ascontiguousarray(z))])

    def _value(self, z: Tensor) -> float:
        self.calls += 1
        try:
            nats = float(self.function(z))
        except (torch.linalg.LinAlgError, FitError):
            return -np.inf
        return nats if np.isfinite(nats) else -np.inf
