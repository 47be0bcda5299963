"""Whether a model gives back its training rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.errors import ShapeError
from probgen.evaluate.twosample.classifier import ranked_above
from probgen.evaluate.twosample.kernels import squares
from probgen.evaluate.twosample.rows import at_least, described, positive, refuse_half, shared_event
from probgen.events import Event
from probgen.model import generator_of

__all__ = ["Memorisation", "memorisation"]


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training row, of samples and of real rows that the model never saw.

    Arguments:
        nearer: P(a sample is nearer to the training rows than a test row is), ties half; 1/2 without memorisation.
        low, high: Its 95 % interval.
        pvalue: One-sided, by permuting which rows are samples; never 0.
        copies, expected: Shares of samples and of test rows that equal a training row.
        median, real_median: Of the distances, in standardised units.
        sizes: Samples, training rows, test rows.
    """

    nearer: float
    low: float
    high: float
    pvalue: float
    copies: float
    expected: float
    median: float
    real_median: float
    sizes: tuple[int, int, int]

    def __str__(self) -> str:
        n, train, test = self.sizes
        return (
            f"A sample is nearer to the training rows than a test row with probability {self.nearer:.3f} "
            f"[{self.low:.3f}, {self.high:.3f}], p {self.pvalue:.4g} ({n} samples, {train} training, {test} test "
            f"rows); median distances {self.median:.4g} and {self.real_median:.4g}; {self.copies:.1%} of samples and "
            f"{self.expected:.1%} of test rows equal a training row."
        )

    __repr__ = __str__


def memorisation(
    samples: Any,
    train: Any,
    test: Any,
    *,
    event: Event | None = None,
    permutations: int = 10_000,
    seed: int | None = None,
) -> Memorisation:
    """Whether samples lie nearer to the training rows than unseen real rows do.

    Arguments:
        samples, train, test: Rows of one event; train and test from one source, test unseen by the model.

    Where samples are as good as new rows, their distances and the test rows' are exchangeable: the p-value is exact. A
    model that keeps to the bulk of the data, such as one sampled at a low temperature, lies nearer, too, without
    having copied a row: look at ``copies`` and at the medians.

    Raises:
        DataError: fewer than 10 rows, or unusable cells. ShapeError: unequal widths.

    The global statistic of Meehan, Chaudhuri and Dasgupta (2020).
    """
    parts = {"samples": samples, "train": train, "test": test}
    for name, data in parts.items():
        refuse_half(data, name)
    event = shared_event(train, samples) if event is None else event
    checked = [event.check(data).x for data in parts.values()]
    rows = described(event, checked[1], *checked)
    if len({part.shape[1] for part in rows}) > 1:  # gaps in one of them only
        raise ShapeError("Samples, train and test of unequal widths", "one width")
    for name, part in zip(parts, rows, strict=True):
        at_least(len(part), 10, f"{name} of a memorisation check")
    away, real = nearest_distances(rows[0], rows[1]), nearest_distances(rows[2], rows[1])
    nearer, low, high, p = ranked_above(-real, -away, positive("permutations", permutations, 19), generator_of(seed))
    copies, expected = (float((d == 0).double().mean()) for d in (away, real))
    sizes = (len(rows[0]), len(rows[1]), len(rows[2]))
    return Memorisation(
        nearer, low, high, p or 1.0, copies, expected, float(away.median()), float(real.median()), sizes
    )


def nearest_distances(x: Tensor, y: Tensor) -> Tensor:
    """Distance of each row of x to the nearest of y, (n,); 0 for an equal row."""
    found = []
    for part in x.split(max(1, (1 << 22) // len(y))):
        closest = squares(part, y).argmin(1)
        found.append((part - y[closest]).square().sum(1).sqrt())
    return torch.cat(found)
