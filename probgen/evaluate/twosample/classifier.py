"""The classifier two-sample test: can anybody tell them apart?"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.errors import DataError, ShapeError
from probgen.evaluate.twosample.learners import class_learner

__all__ = ["Told", "ranked_above", "told_apart"]

Classifier = str | Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Told:
    """How well a classifier tells held-out rows of two samples apart.

    Arguments:
        accuracy, stderr: Mean of the two samples' shares of right answers, and its binomial error.
        auc, low, high: P(a row of y scores above one of x), ties half, and its 95 % interval (DeLong et al. 1988).
        pvalue: Of the AUC, one-sided, by permuting the held-out rows' labels; None without permutations.
        held: Held-out rows of x and of y.
    """

    accuracy: float
    stderr: float
    auc: float
    low: float
    high: float
    pvalue: float | None
    held: tuple[int, int]


def told_apart(
    x: Tensor, y: Tensor, classifier: Classifier, permutations: int, generator: torch.Generator, share: float = 0.5
) -> Told:
    """Trains on one part of both samples, scores the other (Lopez-Paz and Oquab 2017).

    Arguments:
        classifier: "mlp", "linear", or a callable of training rows (n, d) and labels (n,), 1 for y, that gives a
            function from rows to scores, positive where y is likelier.
        permutations: Of the held-out labels; the network is trained once, which the test is conditional on.
        share: Of rows that train.
    """
    a, b = (s[torch.randperm(len(s), generator=generator)] for s in (x, y))
    cut_a, cut_b = round(share * len(a)), round(share * len(b))
    train = torch.cat([a[:cut_a], b[:cut_b]])
    labels = (torch.arange(len(train)) >= cut_a).long()
    tell = _taught(train, labels, classifier, generator)
    on_x, on_y = _scores(tell, a[cut_a:]), _scores(tell, b[cut_b:])
    auc, low, high, pvalue = ranked_above(on_x, on_y, permutations, generator)
    shares = [float((s > 0).double().mean() + 0.5 * (s == 0).double().mean()) for s in (-on_x, on_y)]
    error = 0.5 * math.sqrt(sum(p * (1 - p) / len(s) for p, s in zip(shares, (on_x, on_y), strict=True)))
    return Told(sum(shares) / 2, error, auc, low, high, pvalue, (len(on_x), len(on_y)))


def _taught(train: Tensor, labels: Tensor, classifier: Classifier, generator: torch.Generator) -> Callable:
    if not isinstance(classifier, str):
        return classifier(train, labels)
    predict = class_learner(train, labels, 2, classifier, generator, balanced=True)
    return lambda rows: predict(rows) @ torch.tensor([-1.0, 1.0], dtype=torch.float64)


def _scores(tell: Callable, rows: Tensor) -> Tensor:
    """Scores of held-out rows, (n,), float64, finite."""
    found = torch.as_tensor(tell(rows)).detach().to(torch.float64).reshape(-1)
    if len(found) != len(rows):
        raise ShapeError(f"{len(found)} scores of the classifier for {len(rows)} rows", "one number a row")
    if not found.isfinite().all():
        raise DataError("The classifier gave a score that is not finite", "finite numbers", "Mend the classifier")
    return found


def ranked_above(
    low_rows: Tensor, high_rows: Tensor, permutations: int, generator: torch.Generator
) -> tuple[float, float, float, float | None]:
    """P(second > first) + P(equal) / 2, its 95 % interval, and the one-sided p-value of a label permutation.

    The interval is DeLong's, on the logit scale, so that it stays inside (0, 1). The p-value is exact where labels are
    exchangeable; None without permutations.
    """
    n, m = len(low_rows), len(high_rows)
    pooled = torch.cat([low_rows, high_rows])
    _, place, counts = pooled.unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - counts / 2 + 0.5).double()[place]
    auc = float((rank[n:].sum() - m * (m + 1) / 2) / (n * m))
    interval = _delong(auc, rank, n, m)
    if not permutations:
        return auc, *interval, None
    order = torch.rand(permutations, n + m, generator=generator).argsort(1)[:, :m]
    sums = rank[order].sum(1)
    reached = int((sums >= rank[n:].sum() - 1e-9).sum())
    return auc, *interval, (1 + reached) / (1 + permutations)


def _delong(auc: float, rank: Tensor, n: int, m: int) -> tuple[float, float]:
    """Ends of the interval, from the ranks in both samples together and in each alone."""
    own_x, own_y = _ranks(rank[:n]), _ranks(rank[n:])
    above = (rank[n:] - own_y) / n  # share of x below each y
    below = 1 - (rank[:n] - own_x) / m
    variance = float(above.var() / m + below.var() / n)
    inside = min(max(auc, 0.5 / (n * m)), 1 - 0.5 / (n * m))
    slope = 1 / (inside * (1 - inside))
    centre, half = math.log(inside / (1 - inside)), 1.96 * slope * math.sqrt(variance + 0.25 / (n * m) ** 2)
    low, high = (1 / (1 + math.exp(-max(-500.0, min(500.0, centre + side * half)))) for side in (-1, 1))
    return low, high


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, ties at their mean."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - counts / 2 + 0.5).double()[place]
