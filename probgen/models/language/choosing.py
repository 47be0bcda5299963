"""How the next symbol is chosen from its logits, and sequences grown by choosing."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError, nearest
from probgen.models.language import compiled
from probgen.models.language.decoding import Stepper

__all__ = ["Choice", "draw", "grow", "growing", "known_choices"]


@dataclass(frozen=True)
class Choice:
    """A change of the pmf of each next symbol; the defaults change nothing. Applied in this order.

    Arguments:
        repetition_penalty: Logits of symbols that came before are divided by it if positive, else multiplied (Keskar
            et al. 2019).
        temperature: Divides the logits.
        top_k: Keeps the k most probable symbols, ties included; 0 keeps all (Fan, Lewis and Dauphin 2018).
        top_p: Keeps the most probable symbols until they reach this mass (Holtzman et al. 2020).
        min_p: Keeps symbols of at least this share of the largest probability (Nguyen et al. 2024).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0 < self.temperature < math.inf, "a number above 0"),
            "top_k": (type(self.top_k) is int and self.top_k >= 0, "a whole number from 0"),
            "top_p": (0 < self.top_p <= 1, "a share: 0 < share <= 1"),
            "min_p": (0 <= self.min_p < 1, "a share: 0 <= share < 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "a number above 0; 1 for none"),
        }
        for name, (right, wanted) in ranges.items():
            if not right:
                raise ParameterError(f"{name}={getattr(self, name)!r}", wanted)

    def __str__(self) -> str:
        changed = [f"{f.name}={value}" for f in fields(self) if (value := getattr(self, f.name)) != f.default]
        return ", ".join(changed)

    def __call__(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """Changed logits (m, symbols), -inf outside the support; ``seen``: which symbols came before, bool."""
        logits = self._penalised(logits, seen)
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[1]:
            logits = _without(logits, logits < logits.topk(self.top_k).values[:, -1:])
        if self.top_p < 1:
            falling, order = logits.sort(descending=True, stable=True)
            mass = falling.double().softmax(-1)
            beyond = mass.cumsum(-1) - mass >= self.top_p
            logits = _without(logits, torch.zeros_like(beyond).scatter_(1, order, beyond))
        if self.min_p > 0:
            logits = _without(logits, logits < logits.amax(1, keepdim=True) + math.log(self.min_p))
        return logits

    def _penalised(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        if self.repetition_penalty == 1 or seen is None:
            return logits
        weaker = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
        return torch.where(seen, weaker, logits)

    def pick(self, logits: Tensor, u: Tensor, seen: Tensor | None = None) -> Tensor:
        """The symbols that uniform numbers u (m,) choose from logits (m, symbols): ``draw`` of the changed logits.

        By the kernel where it is built; the two differ only where u meets a boundary to rounding.
        """
        if not compiled.takes(logits):
            return draw(self(logits, seen), u)
        changed = self._penalised(logits, seen)
        return compiled.pick(changed, u, self.temperature, self.top_k, self.top_p, self.min_p)


def known_choices(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a Choice.

    Raises:
        ParameterError: another name.
    """
    names = [f.name for f in fields(Choice)]
    for name in options:
        if name not in names:
            raise ParameterError(f"A sampler has no option {name!r}", "", nearest(name, names))
    return options


def _without(logits: Tensor, what: Tensor) -> Tensor:
    return logits.masked_fill(what, -torch.inf)


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """The symbol at which the cumulative pmf passes u, (m,), uniform in [0, 1)."""
    mass = (logits - logits.amax(1, keepdim=True)).exp_().cumsum(1, dtype=torch.float64)
    found = torch.searchsorted(mass, (u * mass[:, -1])[:, None], right=True)[:, 0]
    return found.clamp_max_(logits.shape[1] - 1)


def growing(
    stepper: Stepper,
    choice: Choice,
    generator: torch.Generator,
    most: int,
    *,
    may_be_empty: bool = True,
    closed: Collection[int] = (),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chooses symbol after symbol for all sequences of a stepper: (rows still open, their new symbols).

    A sequence is over when its end is chosen (which is not given out), when its number is put into ``closed``, or
    after ``most`` symbols. Row i always takes the i-th number of each step's n, so that no sequence depends on when
    the others end.
    """
    n, end = stepper.batch, stepper.network.symbols - 1
    open_rows = torch.arange(n)
    seen = torch.zeros(n, end + 1, dtype=torch.bool) if choice.repetition_penalty != 1 else None
    if seen is not None:
        seen.scatter_(1, stepper.history.expand(n, -1), True)[:, -1] = False
    for step in range(most):
        logits = stepper.logits()
        if step == 0 and not may_be_empty:
            logits = logits.clone()
            logits[:, end] = -torch.inf
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        symbols = choice.pick(logits, u if open_rows.shape[0] == n else u[open_rows], seen)
        if stepper.model.alphabet.ends and (over := symbols.numpy() == end).any():
            left = torch.from_numpy(np.flatnonzero(~over))
            if not len(left):
                return
            open_rows, symbols = open_rows[left], symbols[left]
            seen = None if seen is None else seen[left]
            stepper.keep(left)
        if seen is not None:
            seen.scatter_(1, symbols[:, None], True)
        yield open_rows, symbols
        if closed and (still := torch.tensor([int(row) not in closed for row in open_rows])).logical_not().any():
            left = still.nonzero()[:, 0]
            if not len(left):
                return
            open_rows, symbols, seen = open_rows[left], symbols[left], None if seen is None else seen[left]
            stepper.keep(left)
        if step + 1 < most:
            stepper.push(symbols)


def grow(
    stepper: Stepper,
    choice: Choice,
    generator: torch.Generator,
    most: int,
    *,
    may_be_empty: bool = True,
    stop: Callable[[list[int]], list[int] | None] | None = None,
) -> list[np.ndarray]:
    """The new symbols of each sequence, (steps,) each.

    Arguments:
        stop: Of the symbols so far, what they are cut to where they are over, or None.
    """
    parts: list[list[int]] = [[] for _ in range(stepper.batch)]
    closed: set[int] = set()
    for rows, symbols in growing(stepper, choice, generator, most, may_be_empty=may_be_empty, closed=closed):
        for row, symbol in zip(rows.tolist(), symbols.tolist(), strict=True):
            parts[row].append(symbol)
            if stop is not None and (cut := stop(parts[row])) is not None:
                parts[row] = cut
                closed.add(row)
    return [np.array(part, dtype=np.int64) for part in parts]
