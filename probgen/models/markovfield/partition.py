"""The partition function: the sum over all configurations, exactly where it can be had."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen import cliques
from probgen.errors import StructureError
from probgen.logprob import Kind
from probgen.models.markovfield.local import Local, possible

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = [
    "Partition",
    "affordable",
    "differentiable",
    "draw_sides",
    "exact",
    "expected",
    "refusal",
    "side_codes",
    "sides",
]

_SIDE = 1 << 20  # configurations of one side that are gone through
_CELLS = 1 << 18  # cells of work at a time


@dataclass(frozen=True)
class Partition:
    """log Z, and what kind of number it is.

    Arguments:
        nats: log of the sum over all configurations of the product of the potentials.
        kind: exact; upper (tree-reweighted); lower, in expectation (annealing: log p is then an upper bound); estimate.
        by: How it was found.
        stderr: Monte Carlo standard error; NaN where none can be trusted, None where nothing is random.
        key: Of the random stream, which all rows scored by this number share.
        diagnostics: Effective sample size, iterations, residual: by name.
        reason: Why there is no number (kind unavailable).
    """

    nats: float
    kind: Kind
    by: str
    stderr: float | None = None
    key: int = 0
    diagnostics: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def __float__(self) -> float:
        return self.nats

    @property
    def of_log_prob(self) -> Kind:
        """The kind of f(x) - log Z: the side turns."""
        return {Kind.UPPER: Kind.LOWER, Kind.LOWER: Kind.UPPER}.get(self.kind, self.kind)


def sides(model: "MarkovField") -> tuple[Tensor, Tensor]:
    """Variables (A, B): no two of B share a factor, so that they can be summed out in closed form given A.

    B is the class of a first-fit colouring with the most configurations: one side of a restricted Boltzmann machine,
    every other cell of a grid.
    """
    classes = model.local(grad=False).classes
    logs = torch.tensor(model.cards, dtype=torch.float64).log()
    best = max(range(len(classes)), key=lambda i: float(logs[classes[i]].sum()))
    rest = [own for i, own in enumerate(classes) if i != best]
    return torch.cat(rest) if rest else torch.empty(0, dtype=torch.int64), classes[best]


def affordable(model: "MarkovField") -> str | None:
    """How log Z can be had exactly: "cliques", "sides" (one side gone through, the other in closed form), or None."""
    if model.plan.cost().entries <= model.limit:
        return "cliques"
    kept, _ = sides(model)
    return "sides" if math.prod(model.cards[v] for v in kept.tolist()) <= _SIDE else None


def refusal(model: "MarkovField") -> tuple[str, str]:
    """Why log Z is not had exactly, and what to call instead."""
    return (
        f"log Z takes {model.plan.cost()}: above limit={model.limit} entries",
        "by=TreeReweighted() (lower bound), PartitionAIS() (upper bound) or LoopyBP() (estimate) from "
        "probgen.models.markovfield, or raise .limit if memory allows",
    )


@torch.no_grad()
def exact(model: "MarkovField") -> Partition:
    """log Z by the clique plan, or by going through one side of a bipartite field.

    Raises:
        StructureError: neither is affordable; the message names the estimators.
    """
    how = affordable(model)
    if how is None:
        came, do = refusal(model)
        raise StructureError(came, "an affordable clique plan", do)
    if how == "cliques":
        nats = cliques.log_prob(model.plan, model.tables(), model.nothing, limit=model.limit)
        return Partition(float(nats), Kind.EXACT, "clique plan")
    return Partition(float(_by_sides(model)), Kind.EXACT, "one side summed")


def side_codes(model: "MarkovField", kept: Tensor) -> Iterator[Tensor]:
    """All configurations of some variables, the others NaN, a chunk (n, V) at a time."""
    cards = [model.cards[v] for v in kept.tolist()]
    total = math.prod(cards)
    size = max(1, _CELLS // (len(model.cards) * max(model.cards)))
    for start in range(0, total, size):
        numbers = torch.arange(start, min(start + size, total))
        codes = torch.full((len(numbers), len(model.cards)), torch.nan, dtype=torch.float64)
        for v, card in zip(reversed(kept.tolist()), reversed(cards), strict=True):
            codes[:, v] = (numbers % card).to(torch.float64)
            numbers = numbers // card
        yield codes


def _by_sides(model: "MarkovField") -> Tensor:
    kept, summed = sides(model)
    local = model.local(grad=False)
    parts = [possible(local.collapsed(codes, summed)).logsumexp(0) for codes in side_codes(model, kept)]
    return torch.stack(parts).logsumexp(0)


def expected(model: "MarkovField") -> tuple[float, list[Tensor]]:
    """log Z, and its gradient in the blocks: P(configuration) of each factor, shaped as they are.

    Raises:
        StructureError: as of ``exact``.
    """
    if affordable(model) == "cliques":
        nats, counts = cliques.expected(model.plan, model.tables(), model.nothing, limit=model.limit)
        return float(nats), [torch.stack([counts[place] for place in group.places]) for group in model.groups]
    log_z = exact(model).nats
    kept, summed = sides(model)
    totals = [torch.zeros_like(block) for block in model.blocks]
    for codes in side_codes(model, kept):
        with torch.enable_grad():
            leaves = [block.detach().requires_grad_() for block in model.blocks]
            logs = Local(model.cards, model.groups, leaves).collapsed(codes, summed)
            share = (logs.detach() - log_z).exp()
            found = torch.autograd.grad((share * logs).sum(), leaves, allow_unused=True)
        for total, part in zip(totals, found, strict=True):
            total += torch.zeros_like(total) if part is None else part
    return log_z, totals


def differentiable(model: "MarkovField") -> Tensor:
    """log Z, 0-d, with its gradient in the blocks; where one side is gone through, without a second one."""
    if affordable(model) == "cliques":
        tables = model.tables(list(model.blocks))
        return cliques.log_prob(model.plan, tables, model.nothing, limit=model.limit)[0]
    log_z, counts = expected(model)
    moved = [torch.where(c > 0, c * (b - b.detach()), 0.0).sum() for c, b in zip(counts, model.blocks, strict=True)]
    return log_z + torch.stack(moved).sum()


def draw_sides(model: "MarkovField", n: int, generator: torch.Generator) -> Tensor:
    """n exact draws (n, V): one side from its table of probabilities, the other given it."""
    kept, summed = sides(model)
    local = model.local(grad=False)
    logs = torch.cat([possible(local.collapsed(codes, summed)) for codes in side_codes(model, kept)])
    below = (logs - logs.max()).exp().cumsum(0)
    level = torch.rand(n, generator=generator, dtype=torch.float64) * below[-1]
    number = torch.searchsorted(below, level, right=True).clamp(max=len(below) - 1)
    codes = torch.full((n, len(model.cards)), torch.nan, dtype=torch.float64)
    for v in reversed(kept.tolist()):
        codes[:, v] = (number % model.cards[v]).to(torch.float64)
        number = number // model.cards[v]
    return local.sweep(codes, [summed], generator)
