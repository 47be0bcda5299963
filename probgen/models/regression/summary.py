"""Coefficients in the units of the data, with their errors."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.emissions.special import incomplete_beta

if TYPE_CHECKING:
    from probgen.models.regression.family import Regression

__all__ = ["Coefficients", "names_of", "summarise", "to_data"]


@dataclass(frozen=True, eq=False)
class Coefficients:
    """Coefficients by name, and logarithms of scales and shapes.

    Arguments:
        estimate: Maximum-likelihood or posterior mean (of ``laplace`` the mode).
        stderr: Standard errors, or posterior standard deviations; infinite where the data say nothing.
        low, high: 95 % interval.
        p_value: Of "this coefficient is 0", two-sided; NaN for posteriors.
        headline: What was fitted, and how well.
    """

    names: tuple[str, ...]
    estimate: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    headline: str = ""

    def __getitem__(self, name: str) -> float:
        return float(self.estimate[self.names.index(name)])

    def __len__(self) -> int:
        return len(self.names)

    def frame(self) -> Any:
        """A pyarrow.Table: name, estimate, stderr, low, high, p_value."""
        columns = ("estimate", "stderr", "low", "high", "p_value")
        return frames.table({"name": np.array(self.names), **{c: getattr(self, c) for c in columns}})

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        wide = max(len(name) for name in (*self.names, "name"))
        yield self.headline
        yield f"{'name':<{wide}} {'estimate':>12} {'stderr':>11} {'2.5 %':>12} {'97.5 %':>12} {'p':>9}"
        for i, name in enumerate(self.names):
            p = "" if math.isnan(self.p_value[i]) else f"{self.p_value[i]:9.3g}"
            yield (
                f"{name:<{wide}} {self.estimate[i]:12.5g} {self.stderr[i]:11.4g} {self.low[i]:12.5g} "
                f"{self.high[i]:12.5g} {p:>9}"
            )


def summarise(reg: "Regression") -> Coefficients:
    """Of a fitted linear model."""
    names = names_of(reg)
    headline = _headline(reg)
    shift, carry = to_data(reg)
    if reg.method in ("nuts", "svi"):
        return _from_draws(names, shift + reg.kept.z() @ carry.T, headline)
    theta = reg.theta().detach()
    known = torch.where(reg.covariance.isinf(), 0.0, reg.covariance)
    unit = carry.abs().amax(1, keepdim=True)  # squares of huge or tiny units leave the range of floats
    error = (((carry / unit) @ known) * (carry / unit)).sum(1).clamp(min=0.0).sqrt() * unit[:, 0]
    places, extras = reg.likelihood.places, len(reg.extras)
    lost = (~reg.sure).repeat(places)
    error[: len(lost)][lost] = torch.inf
    error[reg.covariance.diagonal().isinf()] = torch.inf
    tested = reg.method == "ml" and not reg.facts[5]
    df = {"normal": float(reg.n_rows - int(reg.facts[2]))}.get(reg.head_name, math.inf) if tested else math.inf
    if reg.method == "conjugate":
        df = 2 * reg.prior.shape + reg.n_rows
    found = _from_normal(names, shift + carry @ theta, error, df, tested, headline)
    if extras:
        found.p_value[-extras:] = math.nan
    return found


def names_of(reg: "Regression") -> tuple[str, ...]:
    """Of theta: "intercept", "age"; of several predictors "level 2: age"."""
    columns, places = ("intercept", *reg.design.names), reg.likelihood.places
    heads = [""] if places == 1 else [f"level {i + 1}: " for i in range(places)]
    return tuple(head + column for head in heads for column in columns) + reg.likelihood.names


def _headline(reg: "Regression") -> str:
    fit = f"log-likelihood {reg.log_likelihood:.4f} nats, deviance {reg.deviance:.5g}, n = {int(reg.n_rows)}"
    return f"{reg.head_name}, {reg.method}: {fit}"


def to_data(reg: "Regression") -> tuple[Tensor, Tensor]:
    """The affine map from theta in the units of the fit to the data's: what is added (P,) and a matrix (P, P)."""
    width, head = reg.weight.shape[1], reg.likelihood
    one = torch.eye(width, dtype=torch.float64)
    one[range(1, width), range(1, width)] = 1 / reg.spread
    one[0, 1:] = -reg.centre / reg.spread
    carry = torch.block_diag(
        *[one * reg.response_spread] * head.places, torch.eye(len(reg.extras), dtype=torch.float64)
    )
    shift = torch.zeros(len(carry), dtype=torch.float64)
    shift[: head.places * width : width] = reg.response_centre
    if head.location:
        shift[head.places * width] = reg.response_spread.log()
    return shift, carry


def _from_normal(
    names: tuple[str, ...], estimate: Tensor, error: Tensor, df: float, tested: bool, headline: str
) -> Coefficients:
    """Intervals of a t distribution of df degrees of freedom (inf: normal) about estimates."""
    half = _quantile(df) * error
    ratio = torch.where(error > 0, estimate / error, torch.inf)
    p = _tail(ratio, df) if tested else torch.full_like(ratio, torch.nan)
    parts = (estimate, error, estimate - half, estimate + half, p)
    return _made(names, parts, headline)


def _from_draws(names: tuple[str, ...], draws: Tensor, headline: str) -> Coefficients:
    """Means, deviations and quantiles of draws (S, P)."""
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=draws.dtype), dim=0)
    nan = torch.full_like(low, torch.nan)
    parts = (draws.mean(0), draws.std(0), low, high, nan)
    return _made(names, parts, headline)


def _made(names: tuple[str, ...], parts: Sequence[Tensor], headline: str) -> Coefficients:
    estimate, error, low, high, p = [part.numpy() for part in parts]
    return Coefficients(names, estimate, error, low, high, p, headline)


def _tail(ratio: Tensor, df: float) -> Tensor:
    """P(|T| > |ratio|)."""
    if math.isinf(df):
        return torch.special.erfc(ratio.abs() / math.sqrt(2))
    freedom, square = torch.full_like(ratio, df), ratio.square()
    half = torch.full_like(ratio, 0.5)
    infinite = square.isinf()
    square = torch.where(infinite, 0.0, square)
    tail = incomplete_beta(freedom / 2, half, freedom / (freedom + square), square / (freedom + square))
    return torch.where(infinite, 0.0, tail)


def _quantile(df: float) -> float:
    """What a t exceeds on either side with 5 %: by bisection."""
    if math.isinf(df):
        return 1.959963984540054
    if df <= 0:
        return math.inf
    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        over = float(_tail(torch.tensor([middle], dtype=torch.float64), df)[0]) > 0.05
        low, high = (middle, high) if over else (low, middle)
    return high
