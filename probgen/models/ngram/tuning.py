"""Discounts by the likelihood of held-out sequences, or by formula."""

from collections.abc import Callable

import torch
from torch import Tensor

from probgen.events import Ragged
from probgen.models.ngram.counting import Stream, count
from probgen.models.ngram.tree import Evidence, Tree, discounts_of, formula_discounts, interpolated

__all__ = ["LEAST", "SHARE", "formula_slopes", "tuned"]

SHARE = 20  # one in so many sequences is held out
LEAST = 2 * SHARE
_POSITIONS = 1 << 16  # held-out symbols that are looked at
_SMALL = 1e-3  # ridge, in nats all together: keeps discounts that no held-out symbol asks for


def formula_slopes(tree: Tree, order: int) -> Tensor:
    """Chen and Goodman's discounts as the free numbers behind ``discounts_of``, shape (order, 3)."""
    signed = 2 * torch.from_numpy(formula_discounts(tree)) / torch.arange(1, 4, dtype=torch.float64) - 1
    slopes = signed / (1 - signed.abs())
    return torch.cat([slopes, torch.zeros(order - len(slopes), 3, dtype=torch.float64)])


def tuned(
    x: Ragged, stream_of: Callable[[Ragged], Stream], order: int, base: int, generator: torch.Generator
) -> tuple[Tensor, tuple[float, ...]]:
    """Slopes of the discounts (order, 3) and the held-out mean log-probability of a symbol, before and after, in nats.

    The search begins at the formula's discounts of the other sequences.
    """
    order_of = torch.randperm(len(x), generator=generator)
    held, rest = order_of[: len(x) // SHARE], order_of[len(x) // SHARE :]
    kept = stream_of(x[rest.sort().values])
    tree = Tree(count(kept, order), kept.size, base)
    seen = _some(tree.evidence(stream_of(x[held.sort().values])), generator)
    start = formula_slopes(tree, tree.order)
    slopes, history = _ascent(seen, start, base)
    return torch.cat([slopes, torch.zeros(order - tree.order, 3, dtype=torch.float64)]), history


def _some(evidence: Evidence, generator: torch.Generator) -> Evidence:
    n = len(evidence.counts)
    if n <= _POSITIONS:
        return evidence
    at = torch.randperm(n, generator=generator)[:_POSITIONS]
    return Evidence(evidence.counts[at], evidence.totals[at], evidence.of_count[at])


def _ascent(seen: Evidence, start: Tensor, base: int) -> tuple[Tensor, tuple[float, ...]]:
    """L-BFGS on the mean log-probability of a symbol."""
    slopes = start.clone().requires_grad_()
    ridge = _SMALL / len(seen.counts)

    def mean(at: Tensor) -> Tensor:
        return interpolated(seen, discounts_of(at), base).log().mean()

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = ridge * (slopes - start).square().sum() - mean(slopes)
        value.backward()
        return value

    optimiser = torch.optim.LBFGS([slopes], max_iter=30, line_search_fn="strong_wolfe")
    with torch.enable_grad():
        optimiser.step(loss)
    found = slopes.detach()
    before, after = float(mean(start)), float(mean(found))
    return (found, (before, after)) if after >= before else (start, (before, before))
