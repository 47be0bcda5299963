"""Differences of mean embeddings: permutation MMD and the kernel Inception distance, in blocks of memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Difference", "bandwidths", "combined", "cubic", "gaussian", "jackknife", "labellings", "permuted", "squares",
]  # fmt: skip

_BLOCK = 1 << 24  # cells of a kernel matrix that are held at once
Kernel = Callable[[Tensor, Tensor], Tensor]


def squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances (n, m), never below 0."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.T)).clamp_(min=0)


def gaussian(width: float) -> Kernel:
    """exp(-|x - y|^2 / (2 width^2))."""
    return lambda x, y: squares(x, y).mul_(-0.5 / width**2).exp_()


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / d + 1)^3, the kernel of Binkowski et al. (2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def bandwidths(pooled: Tensor, generator: torch.Generator, many: int = 5, rows: int = 500) -> list[float]:
    """Geometric steps from half the 5 % quantile of the positive distances to twice the 95 % quantile.

    From at most ``rows`` of both samples together, so that labels may be permuted (Schrab et al. 2023, sec. 5.2).
    """
    some = pooled[torch.randperm(len(pooled), generator=generator)[:rows]]
    away = torch.nn.functional.pdist(some)
    away = away[away > 1e-9 * away.max()]
    ends = away.quantile(torch.tensor([0.05, 0.95], dtype=away.dtype))
    low, high = math.log(float(ends[0]) / 2), math.log(float(ends[1]) * 2)
    return [math.exp(low + (high - low) * i / (many - 1)) for i in range(many)]


@dataclass(frozen=True)
class Difference:
    """An unbiased squared distance of mean embeddings, and its jackknife standard error."""

    value: float
    stderr: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.value - 1.96 * self.stderr, self.value + 1.96 * self.stderr


def jackknife(x: Tensor, y: Tensor, kernel: Kernel) -> Difference:
    """Unbiased MMD^2 (Gretton et al. 2012, eq. 3) and its delete-one-row standard error, by row sums alone.

    The jackknife of a U-statistic errs upwards (Efron and Stein 1981): where the samples agree the error is too large
    by a factor of up to sqrt(2), never collapsing to 0 as the first-order formula does.
    """
    n, m = len(x), len(y)
    xx, xy = _row_sums(x, x, kernel, True), _row_sums(x, y, kernel)
    yy, yx = _row_sums(y, y, kernel, True), _row_sums(y, x, kernel)
    a, b, c = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1)), xy.sum() / (n * m)
    value = float(a + b - 2 * c)
    if min(n, m) < 3:
        return Difference(value, math.nan)
    without_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) - 2 * (xy.sum() - xy) / ((n - 1) * m)
    without_y = (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (yx.sum() - yx) / (n * (m - 1))
    spread = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    return Difference(value, math.sqrt(float(spread)))


def _row_sums(x: Tensor, y: Tensor, kernel: Kernel, own: bool = False) -> Tensor:
    """Sums over y of k(x_i, y_j), (n,); ``own`` leaves out the diagonal."""
    sums = [kernel(x[rows], y).sum(1) for rows in _blocks(len(x), len(y))]
    found = torch.cat(sums)
    return found - _diagonal(x, kernel) if own else found


def _diagonal(x: Tensor, kernel: Kernel) -> Tensor:
    return torch.cat([kernel(part, part).diagonal() for part in x.split(256)])


def _blocks(n: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(width, 1))
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def permuted(pooled: Tensor, inside: Tensor, widths: list[float]) -> Tensor:
    """Unbiased MMD^2 of many ways to label the same rows, for several widths: shape (widths, labellings), float64.

    Arguments:
        pooled: Rows of both samples, (N, d).
        inside: Which rows are of the first sample, 0 or 1, (N, labellings), float32; the same number in each column.
        widths: Of normal kernels.

    One matrix product serves all labellings. The statistic stays the same where c_i + c_j is taken from the kernel off
    its diagonal (Szekely and Rizzo 2014): with c near the row means, what is left is small enough for float32 products.
    One pass over blocks of rows bounds the memory.
    """
    total, n = len(pooled), int(inside[:, 0].sum())
    m = total - n
    centres = [_row_means(pooled, width) for width in widths]
    forms = torch.zeros(len(widths), inside.shape[1], dtype=torch.float64)
    sums = torch.zeros(len(widths), total, dtype=torch.float64)
    for rows in _blocks(total, total):
        away = squares(pooled[rows], pooled).float()
        for i, (width, centre) in enumerate(zip(widths, centres, strict=True)):
            block = (away * (-0.5 / width**2)).exp_().sub_(centre).sub_(centre[rows, None])
            block.diagonal(rows.start).zero_()
            sums[i, rows] = block.sum(1).double()
            forms[i] += ((block @ inside) * inside[rows]).sum(0).double()
    whole, cross = sums.sum(1, keepdim=True), sums @ inside.double()
    first, second = forms / (n * (n - 1)), (whole - 2 * cross + forms) / (m * (m - 1))
    return first + second - 2 * (cross - forms) / (n * m)


def _row_means(pooled: Tensor, width: float, columns: int = 256) -> Tensor:
    """Mean of each row of the kernel over some columns, less half the mean of all, (N,), float32."""
    some = pooled[:: max(1, len(pooled) // columns)]
    parts = [gaussian(width)(pooled[rows], some).mean(1) for rows in _blocks(len(pooled), len(some))]
    means = torch.cat(parts)
    return (means - means.mean() / 2).float()


def labellings(n: int, total: int, many: int, generator: torch.Generator) -> Tensor:
    """Which rows are of the first sample: as they are, and in ``many`` random ways; (total, many + 1), float32."""
    inside = torch.zeros(many + 1, total)
    inside[0, :n] = 1.0
    order = torch.rand(many, total, generator=generator).argsort(1)
    inside[1:].scatter_(1, order[:, :n], 1.0)
    return inside.T.contiguous()


def combined(statistics: Tensor) -> float:
    """The p-value of the largest of several standardised statistics, (k, 1 + permutations), the observed one first.

    Each is standardised by the mean and spread of its own row, observed value included, so that all labellings are
    treated alike and the test is exact (the maxT of Westfall and Young 1993). Never 0.
    """
    spread = statistics.std(1, keepdim=True, correction=0).clamp(min=1e-300)
    largest = ((statistics - statistics.mean(1, keepdim=True)) / spread).amax(0)
    return float((largest >= largest[0] - 1e-4).double().mean())  # ties, blurred by float32, count against
