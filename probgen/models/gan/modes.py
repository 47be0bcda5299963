"""Mixtures of normals for single columns: which bump a number belongs to, and where in it."""

import math

import torch
from torch import Tensor

from probgen.emissions import NormalMixture
from probgen.emissions.emission import column_moments

__all__ = ["bumps", "is_constant", "sliver"]

_ROWS = 2000  # that a column's mixture is fitted to
_ITERATIONS = 60
_NARROWEST = 1e-4  # variance of a bump, as a share of the column's


def bumps(x: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and standard deviations (most,) of the mixture of up to ``most`` normals with the best BIC.

    Weights of those not taken are 0, their means 0 and deviations 1.

    Arguments:
        x: Numbers of one column, (n,), float64, NaN where missing.
        generator: Chooses the rows where there are more than 2000.

    Schwarz (1978) for BIC; the idea of the columns' bumps is mode-specific normalisation, Xu et al. (2019), 4.2.
    """
    seen = x[~x.isnan()]
    seen = seen[torch.randperm(len(seen), generator=generator)[:_ROWS], None]
    weights, loc, scale = (torch.full((most,), value, dtype=torch.float64) for value in (0.0, 0.0, 1.0))
    if not len(seen) or bool(is_constant(seen)):
        weights[0] = 1.0
        if len(seen):
            loc[0], scale[0] = seen[0, 0], sliver(seen[0, 0])
        return weights, loc, scale
    mean, variance = column_moments(seen)
    found = min((_fitted(seen, mean, variance, k) for k in _sizes(most, len(seen))), key=lambda each: each[0])
    for into, values in zip((weights, loc, scale), found[1:], strict=True):
        into[: len(values)] = values
    return weights, loc, scale


def is_constant(x: Tensor) -> Tensor:
    """Which columns of numbers (n, columns) have one value, missing ones aside."""
    return x.nan_to_num(math.inf).amin(0) >= x.nan_to_num(-math.inf).amax(0)


def sliver(value: Tensor) -> Tensor:
    """The scale of a number that never varies: a millionth of it."""
    return (1e-6 * value.abs()).clamp(min=1e-12)


def _sizes(most: int, rows: int) -> list[int]:
    """Numbers of bumps to try: each wants some ten rows."""
    return [k for k in (1, 2, 3, 4, 6, 8, 12, 16, most) if k <= min(most, max(1, rows // 10))]


@torch.no_grad()
def _fitted(x: Tensor, mean: Tensor, variance: Tensor, k: int) -> tuple[float, Tensor, Tensor, Tensor]:
    """BIC in nats, weights, means and deviations of k normals by EM."""
    scaled = (x - mean) / variance.sqrt()
    mixture = NormalMixture(1, k, floor=_NARROWEST)
    mixture.prepare(scaled)
    one, before = scaled.new_ones(len(scaled), 1), -math.inf
    for _ in range(_ITERATIONS if k > 1 else 2):
        mixture.maximise(mixture.statistics(scaled, one))
        now = float(mixture.log_prob(scaled).sum())
        if now - before < 1e-4 * len(scaled):
            break
        before = now
    parts = mixture.natural()
    loc, scale = parts["loc"].reshape(k), parts["scale"].reshape(k)
    score = 0.5 * (3 * k - 1) * math.log(len(x)) - float(mixture.log_prob(scaled).sum())
    return score, parts["weights"].reshape(k), mean + variance.sqrt() * loc, variance.sqrt() * scale
