"""Multinomial logistic regressions."""

from collections.abc import Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.conditionals.ascent import Derivatives, newton
from probgen.conditionals.conditional import Conditional, as_numbers, draw_levels
from probgen.emissions.emission import column_moments
from probgen.errors import ParameterError
from probgen.events import Category, Column

__all__ = ["Softmax"]

_BLOCK = 1 << 22  # numbers of rows by columns of the design in memory at once


class Softmax(Conditional):
    """A category with P(child = k | parents) proportional to exp(intercept_k + effects_k + slope_k . (u - centre)).

    One effect for each level of each discrete parent (main effects, no interactions), and one slope for each
    continuous parent u (counts enter as numbers), in units of its standard deviation in the data. Parameters:
    ``intercept`` (L,), ``effects`` (L, sum of the discrete parents' levels), ``slope`` (L, C).

    Arguments:
        ridge: Precision of a normal prior on every parameter, so that separable data, and levels never seen, have an
            optimum, and a unique one: EM maximises a penalised likelihood. As a prior it has the standard deviation
            1 / sqrt(ridge) in log-odds.
    """

    input_mean: Tensor
    input_scale: Tensor

    def __init__(self, ridge: float = 1e-3) -> None:
        super().__init__()
        if not 0 < ridge < float("inf"):
            raise ParameterError(f"ridge={ridge}", "a number above 0")
        self.ridge = ridge

    def suits(self, child: Column, parents: Sequence[Column]) -> str | None:
        return None if isinstance(child, Category) else "its child is a category"

    def _build(self) -> None:
        inputs, levels = len(self.continuous_parents), self.cards[-1]
        self.effects = nn.Parameter(torch.zeros(levels, sum(self.parent_cards), dtype=torch.float64))
        self.slope = nn.Parameter(torch.zeros(levels, inputs, dtype=torch.float64))
        self.intercept = nn.Parameter(torch.zeros(levels, dtype=torch.float64))
        self.register_buffer("input_mean", torch.zeros(inputs, dtype=torch.float64))
        self.register_buffer("input_scale", torch.ones(inputs, dtype=torch.float64))

    # Probabilities

    def _scaled(self, parents: Tensor) -> Tensor:
        return (self.inputs(parents) - self.input_mean) / self.input_scale

    def cells(self, parents: Tensor) -> dist.TorchDistribution:
        logits = self.intercept + self._scaled(parents) @ self.slope.T
        first = 0
        for place, card in zip(self.discrete_parents, self.parent_cards, strict=True):
            logits = logits + self.effects.T[first + parents[..., place].long()]
            first += card
        return dist.Categorical(logits=logits)

    def log_factor(self, child: Tensor, parents: Tensor) -> Tensor:
        axes, levels = len(self.parent_cards), self.cards[-1]
        logits = (self.intercept + self._scaled(parents) @ self.slope.T).reshape(-1, *[1] * axes, levels)
        for axis, effect in enumerate(self.effects.T.split(list(self.parent_cards))):
            logits = logits + effect.reshape(-1, *[1] * (axes - axis - 1), levels)
        return logits.log_softmax(-1).expand(len(parents), *self.cards)

    def sample(self, parents: Tensor, generator: torch.Generator) -> Tensor:
        return draw_levels(self.cells(parents).probs, generator)

    # Learning

    @torch.no_grad()
    def prepare(self, child: Tensor, parents: Tensor) -> None:
        centre, spread = column_moments(self.inputs(parents))
        slope = self.slope / self.input_scale
        self.intercept.add_(slope @ (centre - self.input_mean))
        self.slope.copy_(slope * spread.sqrt())
        self.input_mean, self.input_scale = centre, spread.sqrt()

    def _design(self, parents: Tensor) -> Tensor:
        """Columns of the regression: ones, a column a level of each discrete parent, scaled inputs; (m, F)."""
        hot = [
            nn.functional.one_hot(parents[:, place].long(), card).to(torch.float64)
            for place, card in zip(self.discrete_parents, self.parent_cards, strict=True)
        ]
        return torch.cat([torch.ones(len(parents), 1, dtype=torch.float64), *hot, self._scaled(parents)], 1)

    def maximise(self, counts: Tensor) -> list[int]:
        counts = self._checked_counts(counts)
        if not self.tabular:
            raise self._lacks("M step from counts")
        parents = self.grid(torch.zeros(1, len(self.parents), dtype=torch.float64)).flatten(0, -2)
        return self._maximise(parents, counts.reshape(-1, self.cards[-1]), torch.arange(self.configurations))

    def maximise_rows(self, child: Tensor, parents: Tensor, weights: Tensor) -> list[int]:
        if self.tabular:
            return self.maximise(weights.sum(0))
        weights = self._checked_counts(weights, "weights").reshape(len(parents), -1, self.cards[-1])
        row, which = (weights.sum(-1) > 0).nonzero(as_tuple=True)
        spread = parents[row].clone()
        rest = which
        for place, card in zip(reversed(self.discrete_parents), reversed(self.parent_cards), strict=True):
            spread[:, place], rest = (rest % card).to(torch.float64), rest // card
        return self._maximise(spread, weights[row, which], which)

    @torch.no_grad()
    def _maximise(self, parents: Tensor, weights: Tensor, which: Tensor) -> list[int]:
        """Newton's ascent over rows of parents with weights (m, L), of the configurations ``which``."""
        present = torch.cat([self.intercept[:, None], self.effects, self.slope], 1)
        if weights.sum() > 0:
            design = self._design(parents)
            free = torch.full((present.numel(),), -torch.inf, dtype=torch.float64)
            best = newton(lambda at: self._derivatives(at, design, weights), present.reshape(1, -1), free)
            best = best.reshape(present.shape)
            self.intercept.copy_(best[:, 0])
            self.effects.copy_(best[:, 1 : 1 + self.effects.shape[1]])
            self.slope.copy_(best[:, 1 + self.effects.shape[1] :])
        seen = torch.zeros(self.configurations, dtype=torch.float64).index_add(0, which, weights.sum(-1))
        return (seen <= 0).nonzero()[:, 0].tolist()

    def _derivatives(self, at: Tensor, design: Tensor, weights: Tensor) -> Derivatives:
        """The penalised log-likelihood of coefficients (1, L * F), its gradient and Hessian."""
        levels, width = weights.shape[1], design.shape[1]
        value = -0.5 * self.ridge * at.square().sum()
        slope = -self.ridge * at.reshape(levels, width)
        bend = torch.zeros(levels, levels, width, width, dtype=torch.float64)
        size = max(64, _BLOCK // (levels * width))
        for x, w in zip(design.split(size), weights.split(size), strict=True):
            log_p = (x @ at.reshape(levels, width).T).log_softmax(-1)
            p, n = log_p.exp(), w.sum(-1, keepdim=True)
            value = value + torch.where(w > 0, w * log_p, 0.0).sum()
            slope = slope + (w - n * p).T @ x
            for k in range(levels):
                across = n * p[:, k : k + 1] * p
                across[:, k] -= n[:, 0] * p[:, k]
                for other in range(k + 1):
                    bend[k, other] += x.T @ (across[:, other : other + 1] * x)
        for k in range(levels):
            bend[:k, k] = bend[k, :k].mT
        full = bend.movedim(1, 2).reshape(levels * width, -1)
        return value[None], slope.reshape(1, -1), (full - self.ridge * torch.eye(len(full), dtype=torch.float64))[None]

    def penalty(self) -> Tensor:
        square = self.intercept.square().sum() + self.effects.square().sum() + self.slope.square().sum()
        return -0.5 * self.ridge * square

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Log-odds within some units either way for each level and for each standard deviation of an input."""
        return {
            name: dist.Normal(torch.zeros_like(p), torch.full_like(p, 1.5)).to_event(p.ndim)
            for name, p in self.named_parameters()
        }

    @property
    def n_params(self) -> int:
        inputs = len(self.continuous_parents)
        return (self.cards[-1] - 1) * (1 + sum(self.parent_cards) - len(self.parent_cards) + inputs)

    def natural(self) -> dict[str, Tensor]:
        """``intercept`` (L,) at u = 0, ``effects`` (L, levels of the discrete parents), ``coefficients`` (L, C)."""
        coefficients = self.slope / self.input_scale
        intercept = self.intercept - coefficients @ self.input_mean
        return {"intercept": intercept, "effects": self.effects, "coefficients": coefficients}

    @torch.no_grad()
    def set_natural(self, *, intercept: Any, effects: Any = None, coefficients: Any = None) -> Self:
        start = as_numbers(intercept, self.intercept.shape, "intercept")
        effects = self._numbers(effects, self.effects, "effects")
        slope = self._numbers(coefficients, self.slope, "coefficients")
        if not all(value.isfinite().all() for value in (start, effects, slope)):
            raise ParameterError("An infinite coefficient of a Softmax", "finite log-odds")
        self.intercept.copy_(start + slope @ self.input_mean)
        self.effects.copy_(effects)
        self.slope.copy_(slope * self.input_scale)
        return self

    @staticmethod
    def _numbers(value: Any, like: Tensor, name: str) -> Tensor:
        return torch.zeros_like(like) if value is None else as_numbers(value, like.shape, name)
