"""Causes that each may suffice."""

from collections.abc import Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.conditionals.ascent import Derivatives, newton
from probgen.conditionals.conditional import Conditional, as_numbers, draw_levels
from probgen.errors import FitError, ParameterError
from probgen.events import Category, Column

__all__ = ["NoisyOr"]


class NoisyOr(Conditional):
    """P(child is on | parents) = 1 - (1 - leak) prod_i (1 - probs_i)^[parent i is on] (Pearl 1988, section 4.3.2).

    A child of two levels; parents of any number of levels, of which one is "on". Parameters: ``logits`` (parents,) of
    the probabilities that a parent alone switches the child on, ``leak_logit`` () of its being on without cause.
    Infinite logits are probabilities 0 and 1.

    Arguments:
        active: The child's level that is on; None: the last.
        parent_active: One level a parent; None: the last of each.
        leak: Whether the child may be on without cause.

    The M step maximises over -log(1 - probs_i) >= 0, in which the log-likelihood is concave.
    """

    def __init__(self, active: Any = None, parent_active: Sequence[Any] | None = None, leak: bool = True) -> None:
        super().__init__()
        if isinstance(parent_active, str | bytes):
            raise ParameterError(f"parent_active={parent_active!r}", "one level for each parent, in a tuple")
        self.active, self.leak = active, leak
        self.parent_active = None if parent_active is None else tuple(parent_active)

    def suits(self, child: Column, parents: Sequence[Column]) -> str | None:
        if not isinstance(child, Category) or len(child.levels) != 2:
            return "its child is a category of two levels"
        if not all(isinstance(parent, Category) for parent in parents):
            return "its parents are categories"
        if self.active is not None and self.active not in child.levels:
            return f"active={self.active!r} is no level of the child {list(child.levels)}"
        if self.parent_active is not None and len(self.parent_active) != len(parents):
            return f"parent_active has {len(self.parent_active)} levels for {len(parents)} parents"
        pairs = zip(self.parent_active or (), parents, strict=False)
        odd = [level for level, parent in pairs if level not in parent.levels]  # type: ignore[attr-defined]
        if odd:
            return f"parent_active holds {odd[0]!r}, which is no level of its parent"
        return None if parents or self.leak else "without parents it needs a leak"

    def _build(self) -> None:
        self.logits = nn.Parameter(torch.zeros(len(self.parents), dtype=torch.float64))
        if self.leak:
            self.leak_logit = nn.Parameter(torch.full((), -2.0, dtype=torch.float64))

    # Probabilities

    @property
    def _on(self) -> int:
        return 1 if self.active is None else self.child.levels.index(self.active)  # type: ignore[attr-defined]

    def _active(self, parents: Tensor) -> Tensor:
        """Which causes are present, the leak last: parents (..., P) -> bool (..., P + leak)."""
        levels = [column.levels for column in self.parents]  # type: ignore[attr-defined]
        chosen = self.parent_active or [known[-1] for known in levels]
        places = [known.index(level) for known, level in zip(levels, chosen, strict=True)]
        found = parents == torch.tensor(places, dtype=torch.float64)
        always = torch.ones_like(found[..., :1]) if parents.shape[-1] else parents.new_ones(*parents.shape[:-1], 1) > 0
        return torch.cat([found, always], -1) if self.leak else found

    def _links(self) -> Tensor:
        """-log(1 - probability) of each cause, the leak last."""
        raw = torch.cat([self.logits, self.leak_logit[None]]) if self.leak else self.logits
        return nn.functional.softplus(raw, threshold=40.0)

    def _both(self, present: Tensor) -> Tensor:
        """log p of off and on, in the order of the child's levels: (..., causes) -> (..., 2)."""
        off = torch.where(present, self._links(), 0.0).sum(-1)
        pair = [log1mexp(off), -off] if self._on == 0 else [-off, log1mexp(off)]
        return torch.stack(pair, -1)

    def cells(self, parents: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=self._both(self._active(parents)))

    def _present(self) -> Tensor:
        """Which causes are present in each configuration, (configurations, causes)."""
        grid = self.grid(torch.zeros(1, len(self.parents), dtype=torch.float64))
        return self._active(grid.flatten(0, -2))

    def log_table(self) -> Tensor:
        return self._both(self._present()).reshape(self.cards)

    def log_factor(self, child: Tensor, parents: Tensor) -> Tensor:
        return self.log_table().expand(len(parents), *self.cards)

    def log_prob(self, child: Tensor, parents: Tensor) -> Tensor:
        return self._both(self._active(parents)).gather(-1, child.long()[:, None])[:, 0]

    def sample(self, parents: Tensor, generator: torch.Generator) -> Tensor:
        return draw_levels(self._both(self._active(parents)).exp(), generator)

    # Learning

    @torch.no_grad()
    def maximise(self, counts: Tensor) -> list[int]:
        counts = self._checked_counts(counts).reshape(-1, 2)
        on, off, present = counts[:, self._on], counts[:, 1 - self._on], self._present()
        if (on[~present.any(-1)] > 0).any():
            raise FitError(
                f"The child of {self!r} is on where none of its parents is", "data that it can have produced",
                "NoisyOr(leak=True) lets it be on without cause",
            )  # fmt: skip
        seen = present & ((on + off) > 0)[:, None]
        refuted = torch.where(present, off[:, None], 0.0).sum(0) > 0
        links = torch.where(seen.any(0) & ~refuted, torch.inf, self._links())
        explained = (present & links.isinf()).any(-1)
        kept = (present & ~explained[:, None] & seen).any(0) & ~links.isinf()
        if kept.any():
            rows = ~explained & (on + off > 0)
            links[kept] = self._ascend(present[rows], on[rows], off[rows], links, kept)
        self._set(links)
        return (counts.sum(-1) <= 0).nonzero()[:, 0].tolist()

    def _ascend(self, present: Tensor, on: Tensor, off: Tensor, links: Tensor, kept: Tensor) -> Tensor:
        """The maximising links of the causes that are kept; the others are not present in these rows."""
        design = present[:, kept].to(torch.float64)
        start = links[kept][None]
        if not (self._derivatives(start, design, on, off)[0] > -torch.inf).all():
            start = torch.full_like(start, 0.5)
        lowest = torch.zeros(design.shape[1], dtype=torch.float64)
        return newton(lambda at: self._derivatives(at, design, on, off), start, lowest)[0]

    @staticmethod
    def _derivatives(at: Tensor, design: Tensor, on: Tensor, off: Tensor) -> Derivatives:
        """The log-likelihood of links (1, causes), its gradient and Hessian."""
        total = design @ at[0]
        safe = total.clamp(min=1e-300)
        value = torch.where(on > 0, on * log1mexp(total), 0.0).sum() - (off * total).sum()
        slope = design.T @ (torch.where(on > 0, on / torch.expm1(safe), 0.0) - off)
        bend = torch.where(on > 0, on / (4 * torch.sinh(safe / 2).square().clamp(min=1e-300)), 0.0)
        return value[None], slope[None], -(design.T @ (bend[:, None] * design))[None]

    def _set(self, links: Tensor) -> None:
        raw = links + torch.log(-torch.expm1(-links))  # softplus backwards; -inf at 0
        self.logits.copy_(raw[: len(self.parents)])
        if self.leak:
            self.leak_logit.copy_(raw[-1])

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Causes of any strength, and a leak that is mostly small."""
        zero = torch.zeros_like(self.logits.detach())
        found: dict[str, dist.TorchDistribution] = {"logits": dist.Normal(zero, 1.5).to_event(1)}
        if self.leak:
            found["leak_logit"] = dist.Normal(torch.tensor(-2.0, dtype=torch.float64), 1.5)
        return found

    @property
    def n_params(self) -> int:
        return len(self.parents) + self.leak

    def natural(self) -> dict[str, Tensor]:
        """``probs`` (parents,), and ``leak`` () if there is one."""
        return {"probs": self.logits.sigmoid(), **({"leak": self.leak_logit.sigmoid()} if self.leak else {})}

    @torch.no_grad()
    def set_natural(self, *, probs: Any, leak: Any = None) -> Self:
        numbers = as_numbers(probs, self.logits.shape, "probs")
        if self.leak != (leak is not None):
            raise ParameterError(f"leak={leak} for {self!r}", "a probability" if self.leak else "none")
        every = torch.cat([numbers, as_numbers(leak, (), "leak")[None]]) if self.leak else numbers
        if not ((every >= 0) & (every <= 1)).all():
            raise ParameterError(f"probs={probs}, leak={leak}", "probabilities")
        self._set(-torch.log1p(-every))
        return self


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) of x >= 0, -inf at 0, with gradients that stay finite (Maechler 2012)."""
    low, high = x.clamp(min=1e-300, max=0.7), x.clamp(min=0.7)
    near = torch.where(x > 0, torch.log(-torch.expm1(-low)), -torch.inf)
    return torch.where(x < 0.7, near, torch.log1p(-torch.exp(-high)))
