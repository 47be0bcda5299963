"""Missing cells of rows under any exact density: proposals near the model's own draws, weighted and drawn again."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import DataError
from probgen.events import Array, Category, Count, Event, Real, Table
from probgen.model import GenerativeModel

__all__ = ["weighted_draws"]

_POOL = 1000  # draws of the model that proposals are made of
_SHARE = 0.1  # of proposals that ignore the observed cells, so that none is ruled out
_NEAR = 0.3  # how close observed cells must be, in standard deviations
_STRAY = 0.05  # share of discrete cells drawn from their margin
_LOG_2PI = math.log(2 * math.pi)


@torch.no_grad()
def weighted_draws(
    model: GenerativeModel, x: Tensor, n: int, proposals: int, generator: torch.Generator
) -> tuple[Tensor, np.ndarray]:
    """n draws (n, rows, cells) of rows x (rows, cells) with gaps, and the effective number of proposals, (rows,).

    A proposal takes the missing cells of a draw of the model whose observed cells are near the row's, and moves them a
    little; its density is a sum over the draws, so the weights p(x) / q(missing) are exact, and the resampled cells
    follow p(missing | observed) as ``proposals`` grows (Rubin 1987; Smith and Gelfand 1992).

    Raises:
        DataError: a row all of whose proposals are impossible.
    """
    cells = _Cells(model, x.shape[1], generator)
    out, ess = torch.empty(n, *x.shape, dtype=x.dtype), np.empty(len(x))
    for i, row in enumerate(x):
        gap = row.isnan()
        near = cells.weights(row, gap)
        drawn, log_q = cells.propose(gap, near, proposals, generator)
        whole = row.repeat(proposals, 1)
        whole[:, gap] = drawn
        shaped = whole.reshape(proposals, *model.event.shape)  # type: ignore[attr-defined]
        found = model._log_prob(shaped, None, generator=generator)
        log_w = torch.as_tensor(found.nats) - log_q
        if not bool(log_w.isfinite().any()):
            raise DataError(f"Row {row.tolist()} has no possible completion", "rows of positive probability")
        share = (log_w - log_w.max()).exp()
        ess[i] = float(share.sum().square() / share.square().sum())
        out[:, i] = whole[torch.multinomial(share, n, replacement=True, generator=generator)]
    return out, ess


class _Cells:
    """The model's draws in coordinates without bounds, and kernels round them.

    Arguments:
        model: Draws the pool.
        width: Cells a row.
    """

    def __init__(self, model: GenerativeModel, width: int, generator: torch.Generator) -> None:
        raw = model._sample(_POOL, None, generator=generator).reshape(_POOL, width)
        self.links, self.discrete = _links(model.event, width)
        self.pool = self._in(raw, torch.arange(width))
        self.spread = self.pool.std(0).clamp(min=1e-12)

    def _in(self, x: Tensor, places: Tensor) -> Tensor:
        """Cells (..., some places) on the real line."""
        out = x.clone()
        for j, place in enumerate(places.tolist()):
            if self.links[place] == "log":
                out[..., j] = x[..., j].clamp(min=1e-300).log()
            elif self.links[place] == "logit":
                out[..., j] = torch.logit(x[..., j], eps=1e-12)
        return out

    def _out(self, y: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Cells of points on the real line, and the log slope of the way back, summed over the cells."""
        out, slope = y.clone(), torch.zeros(y.shape[:-1], dtype=y.dtype)
        for j, place in enumerate(places.tolist()):
            if self.links[place] == "log":
                out[..., j], slope = y[..., j].exp(), slope + y[..., j]
            elif self.links[place] == "logit":
                out[..., j] = y[..., j].sigmoid()
                slope = slope - torch.nn.functional.softplus(y[..., j]) - torch.nn.functional.softplus(-y[..., j])
        return out, slope

    def weights(self, row: Tensor, gap: Tensor) -> Tensor:
        """How likely each draw of the pool is to lend its cells to a row, (pool,): by its nearness where it is seen."""
        seen = (~gap).nonzero()[:, 0]
        flat = torch.full((_POOL,), 1 / _POOL, dtype=torch.float64)
        if not len(seen):
            return flat
        away = (self.pool[:, seen] - self._in(row[seen], seen)) / self.spread[seen]
        discrete = self.discrete[seen]
        squares = torch.where(discrete, 4.0 * (away != 0), (away / _NEAR).square()).sum(1)
        near = (-0.5 * (squares - squares.min()) / max(1.0, len(seen) ** 0.5)).softmax(0)
        return (1 - _SHARE) * near + _SHARE * flat

    def propose(self, gap: Tensor, near: Tensor, m: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """m proposals of the missing cells (m, gaps) and their log density, (m,)."""
        places = gap.nonzero()[:, 0]
        smooth = ~self.discrete[places]
        effective = float(1 / near.square().sum())
        width = max(0.15, effective ** (-1 / (4 + int(smooth.sum())))) * self.spread[places]
        lent = self.pool[torch.multinomial(near, m, replacement=True, generator=generator)][:, places]
        noise = torch.randn(lent.shape, generator=generator, dtype=lent.dtype)
        stray = torch.rand(lent.shape, generator=generator, dtype=lent.dtype) < _STRAY
        others = self.pool[torch.randint(_POOL, lent.shape, generator=generator), places]
        y = torch.where(smooth, lent + width * noise, torch.where(stray, others, lent))
        log_q = self._log_density(y, places, smooth, width, near)
        cells, slope = self._out(y, places)
        return cells, log_q - slope

    def _log_density(self, y: Tensor, places: Tensor, smooth: Tensor, width: Tensor, near: Tensor) -> Tensor:
        """log of the sum over the pool of near-weighted kernels, (m,)."""
        total = near.log().expand(len(y), -1)
        for j, place in enumerate(places.tolist()):
            centres = self.pool[:, place]
            if bool(smooth[j]):
                z = (y[:, j, None] - centres) / width[j]
                total = total - 0.5 * (z.square() + _LOG_2PI) - width[j].log()
            else:
                margin = (y[:, j, None] == centres).double().mean(1, keepdim=True)
                total = total + ((1 - _STRAY) * (y[:, j, None] == centres) + _STRAY * margin).log()
        return total.logsumexp(1)


def _links(event: Event, width: int) -> tuple[list[str], Tensor]:
    """By cell, the way to the real line ("", "log", "logit"), and whether it is discrete."""
    if isinstance(event, Table):
        discrete = [_is_discrete(c) for c in event.columns.values()]
        grown = [getattr(c, "positive", False) for c in event.columns.values()]
        links = ["log" if g and not d else "" for g, d in zip(grown, discrete, strict=True)]
        return links, torch.tensor(discrete)
    array: Any = event
    rounded = isinstance(event, Array) and (array.discrete or array.resolution is not None)
    link = {"positive": "log", "unit": "logit"}.get(array.support, "") if not rounded else ""
    return [link] * width, torch.full((width,), rounded)


def _is_discrete(column: Any) -> bool:
    return isinstance(column, Category | Count) or (isinstance(column, Real) and column.resolution is not None)
