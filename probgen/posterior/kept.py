"""Draws as buffers of a model, so that it saves and loads with them."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.errors import NotFittedError

if TYPE_CHECKING:
    from probgen.posterior.draws import Draws
    from probgen.posterior.fitting import Found

__all__ = ["GROWING", "METHODS", "STATS", "Kept", "prior_numbers"]

GROWING = ("kept.numbers", "kept.stats")  # what a family adds to its own list
METHODS = ("nuts", "svi", "laplace")
STATS = ("lp", "energy", "acceptance_rate", "step_size", "tree_depth", "n_steps", "diverging")
_CODES = ("", *METHODS, "conjugate")
_STATS = {"nuts": STATS, "svi": ("lp", "log_q"), "laplace": ("lp", "log_q"), "conjugate": ("lp",)}
_TYPES = {"tree_depth": torch.int64, "n_steps": torch.int64, "diverging": torch.bool}


class Kept(nn.Module):
    """Unconstrained draws of the last Bayesian fit, and what their sampler said; empty after a point fit.

    Buffers: ``numbers`` (chains * draws * P,), ``stats`` (K * chains * draws,), ``facts`` (3,): method, chains, draws.
    """

    numbers: Tensor
    stats: Tensor
    facts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("stats", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("facts", torch.zeros(3, dtype=torch.int64))
        self._read: tuple[object, Draws] | None = None

    def __bool__(self) -> bool:
        return bool(self.facts[0])

    @property
    def method(self) -> str:
        """ "" after a point fit."""
        return _CODES[int(self.facts[0])]

    @property
    def shape(self) -> tuple[int, int]:
        """Chains, and draws of each."""
        return int(self.facts[1]), int(self.facts[2])

    @property
    def dependent(self) -> int:
        """Chains whose draws depend on each other; 0 where all draws are independent."""
        return self.shape[0] if self.method == "nuts" else 0

    def z(self) -> Tensor:
        """All draws in chain-major order, (S, P).

        Raises:
            NotFittedError: after a point fit.
        """
        if not self:
            raise NotFittedError(
                "This model has no posterior draws", "a Bayesian fit", "fit(x, method='nuts'), 'svi' or 'laplace'"
            )
        chains, draws = self.shape
        return self.numbers.reshape(chains * draws, -1)

    def clear(self) -> None:
        """After a point fit."""
        self.numbers, self.stats = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        self.facts, self._read = torch.zeros(3, dtype=torch.int64), None

    def put(self, method: str, found: "Found") -> None:
        stats = dict(found.stats) | ({} if found.log_q is None else {"log_q": found.log_q})
        chains, draws = found.z.shape[:2]
        self.numbers = found.z.reshape(-1).clone()
        self.stats = torch.cat([stats[name].to(torch.float64).reshape(-1) for name in _STATS[method]])
        self.facts = torch.tensor([_CODES.index(method), chains, draws])
        self._read = None

    def draws(self, natural: Callable[[Tensor], Mapping[str, Tensor]]) -> "Draws | None":
        """The draws for users, None after a point fit; ``natural`` turns z (S, P) into parameters (S, *shape)."""
        if not self:
            return None
        state = (id(self.numbers), self.numbers._version)
        if self._read is None or self._read[0] != state:
            self._read = (state, self._draws(natural))
        return self._read[1]

    def _draws(self, natural: Callable[[Tensor], Mapping[str, Tensor]]) -> "Draws":
        from probgen.posterior.draws import Draws

        split, names = self.shape, _STATS[self.method]
        values = {name: value.reshape(*split, *value.shape[1:]) for name, value in natural(self.z()).items()}
        parts = dict(zip(names, self.stats.reshape(len(names), *split), strict=True))
        log_q = parts.pop("log_q", None)
        stats = {name: part.to(_TYPES.get(name, torch.float64)) for name, part in parts.items()}
        return Draws(values, stats, self.method, None if log_q is None else parts["lp"], log_q)


def prior_numbers(model: Any, n: int, generator: torch.Generator) -> Tensor:
    """Unconstrained parameters (n, P) of a family from their prior; the method ``_prior_numbers`` of such families."""
    return model._parametric().coordinates.draw(n, generator)
