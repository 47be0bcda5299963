"""Frechet distance, and precision, recall, density and coverage of neighbourhoods."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.evaluate.twosample.kernels import squares

__all__ = ["Balls", "frechet", "frechet_error", "neighbourhoods"]


def frechet(x: Tensor, y: Tensor) -> float:
    """Squared Wasserstein-2 distance of the normals with the samples' means and covariances (Dowson and Landau 1982).

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), in squared units of the rows, by symmetric eigenvalues: singular
    covariances do no harm. Biased upwards, by about D^2 / n.
    """
    shift = (x.mean(0) - y.mean(0)).square().sum()
    a, b = _covariance(x), _covariance(y)
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return max(0.0, float(shift + a.trace() + b.trace() - 2 * cross))


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def frechet_error(samples: list[Tensor], statistic, groups: int = 10) -> float:  # type: ignore[no-untyped-def]
    """Delete-a-group jackknife standard error of a statistic of several samples, each left out by tenths in turn."""
    variance = 0.0
    for i, sample in enumerate(samples):
        place = torch.arange(len(sample)) % groups
        values = [
            statistic(*samples[:i], sample[place != g], *samples[i + 1 :]) for g in range(min(groups, len(sample)))
        ]
        mean = sum(values) / len(values)
        variance += (len(values) - 1) / len(values) * sum((v - mean) ** 2 for v in values)
    return math.sqrt(variance)


@dataclass(frozen=True, eq=False)
class Balls:
    """What each row adds to the four measures of neighbourhoods; their means are the measures.

    Arguments:
        precision: Of each row of y, whether it lies in some ball of x, (m,).
        recall: Of each row of x, whether it lies in some ball of y, (n,).
        density: Of each row of y, in how many balls of x it lies, by k, (m,).
        coverage: Of each row of x, whether its ball holds a row of y, (n,).
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor

    def mean(self, name: str) -> float:
        return float(getattr(self, name).mean())


def neighbourhoods(x: Tensor, y: Tensor, k: int = 5) -> Balls:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020); x is real.

    A row's ball reaches to its k-th neighbour in its own sample, border included, so that ties cost nothing: equal
    samples score 1 in all four. For the density, which counts, a ball's border weighs as much as makes the ball hold
    exactly k rows of its own sample, itself among them; without ties that is the usual open ball.
    """
    centre = torch.cat([x, y]).mean(0)
    x, y = x - centre, y - centre
    blur = 1e-11 * float(torch.cat([x, y]).square().sum(1).max())  # rounding of squared distances
    own_x, own_y, across = squares(x, x), squares(y, y), squares(x, y)
    radius_x, radius_y = _radius(own_x, k), _radius(own_y, k)
    inside_x = across <= radius_x[:, None] + blur
    border = _border(own_x, radius_x, k, blur)
    strictly = across < radius_x[:, None] - blur
    weight = strictly.double() + border[:, None] * (inside_x & ~strictly)
    return Balls(
        precision=inside_x.any(0).double(),
        recall=(across <= radius_y + blur).any(1).double(),
        density=weight.sum(0).double() / k,
        coverage=inside_x.any(1).double(),
    )


def _radius(own: Tensor, k: int) -> Tensor:
    """Squared distance to the k-th other row, (n,)."""
    others = own.clone()
    others.fill_diagonal_(math.inf)
    return others.kthvalue(k, dim=1).values


def _border(own: Tensor, radius: Tensor, k: int, blur: float) -> Tensor:
    """The weight of a ball's border with which it holds k rows of its own sample, (n,)."""
    own = own.clone()
    own.fill_diagonal_(0.0)
    inner = (own < radius[:, None] - blur).sum(1)
    rim = (own <= radius[:, None] + blur).sum(1) - inner
    return ((k - inner).double() / rim.clamp(min=1)).clamp(0.0, 1.0)
