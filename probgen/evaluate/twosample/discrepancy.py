"""The kernel Stein discrepancy: samples against a density known up to its constant."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import DataError, LikelihoodUnavailable, ParameterError, ShapeError, StructureError
from probgen.evaluate.twosample.findings import Effect, Finding
from probgen.evaluate.twosample.rows import at_least, positive, refuse_half, warn
from probgen.events import Array
from probgen.logprob import Kind
from probgen.model import GenerativeModel, generator_of

__all__ = ["BLIND", "discrepancy", "score_of", "stein"]

BLIND = (
    "Stein: the score of separated modes hardly depends on their weights, so that wrong weights and whole lost modes "
    "stay nearly unseen"
)


def stein(
    model_or_score: Any, x: Any, *, permutations: int = 1000, rows: int = 2000, seed: int | None = None
) -> Finding:
    """Whether samples come from a density whose score is known: squared kernel Stein discrepancy and its p-value.

    Arguments:
        model_or_score: A function from rows (n, d), float64 tensor, to gradients of log p of the same shape; or a
            fitted model over real arrays with an exact ``log_prob``, whose gradients are taken by central differences.
        x: Samples, (n, d).
        permutations: Draws of the wild bootstrap.
        rows: Most rows that enter; more are thinned at random.

    Warns (SampleWarning) that it is nearly blind to the weights of separated modes.

    Raises:
        DataError: unusable cells, fewer than 20 rows. LikelihoodUnavailable: the model has no exact density.

    Liu, Lee and Jordan (2016); inverse multiquadric kernel of Gorham and Mackey (2017); wild bootstrap of Chwialkowski,
    Strathmann and Gretton (2016).
    """
    refuse_half(x, "x")
    event = model_or_score.event if isinstance(model_or_score, GenerativeModel) else None
    cells = (event or _vector(x)).check(x).x
    at_least(len(cells), 20, "the Stein discrepancy")
    warn(BLIND)
    generator = generator_of(seed)
    cells = cells.reshape(len(cells), -1)
    kept = cells[torch.randperm(len(cells), generator=generator)[: positive("rows", rows, 20)]]
    return discrepancy(kept, score_of(model_or_score), positive("permutations", permutations, 19), generator)


def _vector(x: Any) -> Array:
    shape = np.shape(x)
    if len(shape) != 2:
        raise ShapeError(f"Samples of shape {shape}", "shape (n, d)", "Reshape them")
    return Array(shape[1:])


def score_of(model_or_score: Any) -> Callable[[Tensor], Tensor]:
    """The gradient of log p as a function from rows (n, d) to (n, d), float64."""
    if isinstance(model_or_score, GenerativeModel):
        return _differences(model_or_score)
    if not callable(model_or_score):
        came = f"A {type(model_or_score).__name__} as a score"
        raise ParameterError(came, "a function of rows (n, d), or a fitted model with an exact log_prob")

    def score(x: Tensor) -> Tensor:
        found = torch.as_tensor(model_or_score(x)).detach().to(torch.float64)
        if found.shape != x.shape:
            raise ShapeError(f"Scores of shape {tuple(found.shape)}", f"{tuple(x.shape)}: one gradient a row")
        if not found.isfinite().all():
            raise DataError("A score that is not finite", "finite gradients of log p", "Are samples off the support?")
        return found

    return score


def _differences(model: GenerativeModel, step: float = 1e-3) -> Callable[[Tensor], Tensor]:
    """Central differences of an exact log-density, a thousandth of each column's spread to both sides."""
    if not isinstance(model.event, Array) or model.event.discrete or model.event.support != "real" or model.context:
        raise StructureError(
            f"A score of {model.event!r}", "real arrays under a density, without covariates", "Give a function"
        )

    def nats(x: Tensor) -> Tensor:
        answer = model.log_prob(x.reshape(len(x), *model.event.shape).numpy(), seed=0)  # type: ignore[attr-defined]
        if answer.kind is not Kind.EXACT:
            why = f"its log_prob is {answer.kind}: the gradient of a bound or an estimate is no score"
            raise LikelihoodUnavailable(answer.reason or why, "two_sample(model.sample(n), x)")
        return torch.as_tensor(np.array(answer.nats))

    def score(x: Tensor) -> Tensor:
        widths = step * x.std(0).clamp(min=1e-12)
        slopes = []
        for j, width in enumerate(widths.tolist()):
            there = torch.zeros(x.shape[1], dtype=x.dtype)
            there[j] = width
            slopes.append((nats(x + there) - nats(x - there)) / (2 * width))
        return torch.stack(slopes, 1)

    return score


def discrepancy(x: Tensor, score: Callable[[Tensor], Tensor], draws: int, generator: torch.Generator) -> Finding:
    """The finding of rows (n, d): each column in units of its spread, c^2 = the median squared distance."""
    n, spread = len(x), x.std(0).clamp(min=1e-300)
    matrix = _stein_matrix(x / spread, score(x) * spread)
    value = float((matrix.sum() - matrix.trace()) / (n * (n - 1)))
    signs = 2.0 * torch.randint(2, (n, draws), generator=generator, dtype=torch.float64) - 1
    wild = (signs * (matrix @ signs)).sum(0)
    p = (1 + int((wild >= matrix.sum() - 1e-9 * matrix.abs().sum()).sum())) / (1 + draws)
    rest = (matrix.sum() - 2 * matrix.sum(1) - matrix.trace() + 2 * matrix.diagonal()) / ((n - 1) * (n - 2))
    error = math.sqrt(float((n - 1) * rest.var(correction=0)))
    how = f"squared kernel Stein discrepancy, inverse multiquadric, {draws} wild bootstraps of {n} rows"
    effect = Effect("KSD^2", value, value - 1.96 * error, value + 1.96 * error)
    return Finding("stein", value, how, error, p, effect=effect)


def _stein_matrix(x: Tensor, score: Tensor) -> Tensor:
    """The Stein kernel of k(x, y) = (c^2 + |x - y|^2)^(-1/2), (n, n)."""
    d = x.shape[1]
    r2 = (x.square().sum(1)[:, None] + x.square().sum(1) - 2 * x @ x.T).clamp(min=0)
    c2 = float(r2[r2 > 0].median()) if bool((r2 > 0).any()) else 1.0
    base = c2 + r2
    own = (score * x).sum(1)
    slope = own[:, None] - score @ x.T - x @ score.T + own  # (s_i - s_j) . (x_i - x_j)
    return (score @ score.T) * base**-0.5 + slope * base**-1.5 + d * base**-1.5 - 3 * r2 * base**-2.5
