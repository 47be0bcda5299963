"""Loopy belief propagation: all messages at once, in logarithms."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.logprob import Kind, LogProb
from probgen.models.markovfield.evidence import refuse_impossible
from probgen.models.markovfield.factors import whole
from probgen.models.markovfield.partition import Partition
from probgen.models.markovfield.queries import Marginals, normalised, split

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = ["LoopyBP"]

_ENTRIES = 1 << 22  # of all factors' tables, over the rows done at once


@dataclass(frozen=True)
class LoopyBP:
    """Sum-product messages until they stand still: marginals, and Bethe's approximation of log Z. Kind estimate.

    Exact on fields without loops (then, too, it is called an estimate). ``diagnostics`` hold the iterations and the
    last largest change of a message; where that is above ``tol`` it did not converge.

    Arguments:
        max_iter: Rounds in which every message is renewed once.
        damping: Share of the old message in the new one, in logarithms.
        tol: Largest change of a normalised message, in nats, at which it stops.

    Pearl (1988); Yedidia, Freeman and Weiss (2005), eq. 37 for log Z.
    """

    max_iter: int = 1000
    damping: float = 0.3
    tol: float = 1e-8

    def __post_init__(self) -> None:
        whole("max_iter", self.max_iter)
        for name, top in (("damping", 1.0), ("tol", math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < top:
                raise ParameterError(f"{name}={value!r}", f"a number from 0, below {top}")

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        """Rows whose missing cells can't be summed out exactly get a Bethe approximation of that sum, too."""
        answer = normalised(model, x, self.log_partition(model, generator))
        over = torch.from_numpy(answer.refused)
        if not bool(over.any()):
            return answer
        nats = torch.from_numpy(answer.__dict__["nats"].copy())
        nats[over] = self._run(model, model.codes(x[over])).log_sum() - self.log_partition(model, generator).nats
        return LogProb(Kind.ESTIMATE, nats, by=repr(self))

    @torch.no_grad()
    def log_partition(self, model: "MarkovField", generator: torch.Generator) -> Partition:
        """Bethe's log Z."""
        found = self._run(model, model.nothing)
        about = {"iterations": float(found.iterations), "residual": found.residual}
        return Partition(float(found.log_sum()), Kind.ESTIMATE, repr(self), diagnostics=about)

    @torch.no_grad()
    def marginals(self, model: "MarkovField", cells: Tensor, keys: np.ndarray) -> Marginals:
        """Beliefs of each variable, row by row.

        Raises:
            ZeroEvidenceError: a row in which all levels of a variable are ruled out.
        """
        size = max(1, _ENTRIES // max(1, sum(block.numel() for block in model.blocks)))
        done = [self._run(model, part) for part in model.codes(cells).split(size)]
        beliefs = torch.cat([found.belief() for found in done])
        gone = torch.isneginf(beliefs).all(2).any(1) | beliefs.isnan().flatten(1).any(1)
        refuse_impossible(torch.where(gone, -torch.inf, 0.0), keys)
        shares = beliefs.softmax(2)
        flat = torch.cat([shares[:, v, :card] for v, card in enumerate(model.cards)], 1)
        about = {
            "iterations": float(max(found.iterations for found in done)),
            "residual": max(found.residual for found in done),
        }
        return split(model, flat, keys, kind=Kind.ESTIMATE, by=repr(self), diagnostics=about)

    def _run(self, model: "MarkovField", codes: Tensor) -> "_Messages":
        messages = _Messages(model, codes)
        for _ in range(self.max_iter):
            messages.renew(self.damping)
            if messages.residual <= self.tol:
                break
        return messages


class _Messages:
    """Messages from factors to variables: of each group of factors and axis a, shape (n, m, c_a), largest entry 0."""

    def __init__(self, model: "MarkovField", codes: Tensor) -> None:
        n, self.size, self.width = len(codes), len(model.cards), max(model.cards)
        kept = torch.arange(self.width) < torch.tensor(model.cards)[:, None]
        seen = codes[..., None] == torch.arange(self.width, dtype=codes.dtype)
        node = torch.where(kept & (seen | codes.isnan()[..., None]), 0.0, -torch.inf).to(torch.float64)
        self.tables, self.scopes = [], []
        self.hard = False
        for group, block in zip(model.groups, model.detached(), strict=True):
            if block.ndim == 2:
                wide = torch.nn.functional.pad(block, (0, self.width - block.shape[1]))
                node = node.index_add(1, group.scopes[:, 0], wide.expand(n, -1, -1))
            else:
                self.tables.append(block)
                self.scopes.append(group.scopes)
                self.hard |= bool(block.isneginf().any())
        self.node = node
        self.sent = [[node.new_zeros(n, len(t), c) for c in t.shape[1:]] for t in self.tables]
        self.iterations, self.residual = 0, math.inf if self.tables else 0.0
        self.degree = torch.zeros(self.size, dtype=torch.float64)
        for scopes in self.scopes:
            self.degree += torch.bincount(scopes.flatten(), minlength=self.size)

    def _gathered(self, parts: list[list[Tensor]]) -> Tensor:
        total = torch.zeros_like(self.node)
        for scopes, own in zip(self.scopes, parts, strict=True):
            for a, message in enumerate(own):
                total[..., : message.shape[2]].index_add_(1, scopes[:, a], message)
        return total

    def belief(self) -> Tensor:
        """log p(x_v) up to a constant, (n, V, C)."""
        return self.node + self._gathered(self.sent)

    def received(self) -> list[list[Tensor]]:
        """Messages from variables to factors: what all other factors and the variable itself say."""
        if not self.hard:
            belief = self.belief()
            return [
                [belief[:, scopes[:, a], : m.shape[2]] - m for a, m in enumerate(own)]
                for scopes, own in zip(self.scopes, self.sent, strict=True)
            ]
        # -inf can't be taken back by subtraction: finite parts are summed, the others counted
        finite = self.node + self._gathered([[m.nan_to_num(neginf=0.0) for m in own] for own in self.sent])
        never = self._gathered([[torch.isneginf(m).to(m.dtype) for m in own] for own in self.sent])
        return [
            [
                torch.where(
                    never[:, scopes[:, a], : m.shape[2]] - torch.isneginf(m).to(m.dtype) > 0,
                    -torch.inf,
                    finite[:, scopes[:, a], : m.shape[2]] - m.nan_to_num(neginf=0.0),
                )
                for a, m in enumerate(own)
            ]
            for scopes, own in zip(self.scopes, self.sent, strict=True)
        ]

    def renew(self, damping: float) -> None:
        """One round of all messages."""
        received, change = self.received(), 0.0
        for table, own, coming in zip(self.tables, self.sent, received, strict=True):
            for a in range(len(own)):
                new = _centred(_summed(table, [m for b, m in enumerate(coming) if b != a], a))
                if damping:
                    new = _centred((1 - damping) * new + damping * own[a])
                moved = torch.where(new == own[a], 0.0, (new - own[a]).abs())
                change = max(change, float(moved.max()))
                own[a] = new
        self.residual, self.iterations = change, self.iterations + 1

    def log_sum(self) -> Tensor:
        """Bethe's approximation of log Z given the row's evidence, (n,): any scale of the messages cancels."""
        belief = self.belief()
        total = ((1 - self.degree) * belief.logsumexp(2)).sum(1)
        for table, coming in zip(self.tables, self.received(), strict=True):
            joint = table[None]
            for a, message in enumerate(coming):
                joint = joint + _axis(message, a, table.ndim - 1)
            total = total + joint.flatten(2).logsumexp(2).sum(1)
        return total


def _axis(message: Tensor, axis: int, rank: int) -> Tensor:
    """A message (n, m, c) on one axis of tables (n, m, *levels)."""
    shape = [1] * rank
    shape[axis] = message.shape[2]
    return message.reshape(*message.shape[:2], *shape)


def _summed(table: Tensor, others: list[Tensor], axis: int) -> Tensor:
    """log of the sum over all axes but one of a factor and the messages on the others, (n, m, c)."""
    moved = table.movedim(axis + 1, 1)[None]  # (1, m, c, *others)
    rank = len(others)
    for place, message in enumerate(others):
        moved = moved + _axis(message, place, rank).unsqueeze(2)
    return moved.flatten(3).logsumexp(3)


def _centred(message: Tensor) -> Tensor:
    top = message.amax(2, keepdim=True)
    return message - torch.where(torch.isneginf(top), 0.0, top)
