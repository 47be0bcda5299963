"""Rows of an event as a network reads them: numbers about one, and which of them are images."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from probgen.emissions.emission import column_moments
from probgen.errors import ParameterError, StructureError
from probgen.events import Array, Category, Count, Event, Real, Table

__all__ = ["Features", "channels_last", "has_pixels", "image_shape", "required_image"]

_FAR = 10.0  # what a network sees of an outlier, so that it is not carried off
_FEW = 32  # levels of an array's cell that become indicators


@dataclass(frozen=True)
class _Cell:
    """One cell of a row: how many indicators it becomes, 0 for a number; of a number, whether through a logarithm."""

    indicators: int = 0
    log: str = ""  # "log" of positive numbers, "log1p" of counts


class Features(nn.Module):
    """Cells (n, ...) to features (n, width): categories and few levels as indicators, numbers standardised.

    Positive numbers and counts go through the logarithm (of 1 + a count). Where cells may be missing each has one
    more feature, 1 where it is seen; what is missing is 0.

    Arguments:
        event: Array or Table.
        shared: One mean and scale for all numbers, as pixels have.

    Raises:
        StructureError: another event.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, event: Event, shared: bool = False) -> None:
        super().__init__()
        if not isinstance(event, Array | Table):
            raise StructureError(f"{event!r}", "an Array or a Table of cells")
        self.shared, self.gaps = shared, event.missing
        self.cells = _cells(event, shared)
        self.plain = [i for i, cell in enumerate(self.cells) if not cell.indicators]
        self.coded = [i for i, cell in enumerate(self.cells) if cell.indicators]
        for name, start in (("centre", 0.0), ("spread", 1.0)):
            self.register_buffer(name, torch.full((len(self.plain),), start, dtype=torch.float64))
        logs = {log: torch.tensor([self.cells[i].log == log for i in self.plain]) for log in ("log", "log1p")}
        for log, mask in logs.items():
            self.register_buffer(f"of_{log}", mask, persistent=False)

    @property
    def width(self) -> int:
        """How many numbers a row becomes."""
        indicators = sum(self.cells[i].indicators for i in self.coded)
        return len(self.plain) + indicators + self.gaps * len(self.cells)

    def _numbers(self, rows: Tensor) -> Tensor:
        """The cells that are no indicators, (n, p), before they are standardised."""
        x = rows if not self.coded else rows[:, self.plain]
        for log, function in (("of_log", torch.log), ("of_log1p", torch.log1p)):
            mask = getattr(self, log)
            if bool(mask.any()):
                x = torch.where(mask, function(torch.where(mask, x, 1.0).clamp(min=1e-300)), x)
        return x

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Learns means and scales; a cell that hardly varies gets a quarter of the scale of all."""
        if not self.plain:
            return
        numbers = self._numbers(x.reshape(len(x), -1).to(torch.float64))
        if self.shared:
            numbers = numbers.reshape(-1, 1)
        mean, variance = column_moments(numbers)
        self.centre.copy_(mean.expand(len(self.plain)))
        self.spread.copy_(variance.sqrt().expand(len(self.plain)))

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, width), float32, or float64 after ``double()`` of the networks."""
        rows = x.reshape(len(x), -1)
        parts = []
        if self.plain:
            numbers = ((self._numbers(rows) - self.centre) / self.spread).clamp(-_FAR, _FAR)
            parts.append(numbers.nan_to_num(0.0) if self.gaps else numbers)
        for i in self.coded:
            code = rows[:, i].nan_to_num(0.0).long()
            own = nn.functional.one_hot(code, self.cells[i].indicators).to(rows.dtype)
            parts.append(own * ~rows[:, i : i + 1].isnan() if self.gaps else own)
        if self.gaps:
            parts.append((~rows.isnan()).to(rows.dtype))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _cells(event: Array | Table, shared: bool) -> list[_Cell]:
    if isinstance(event, Table):
        return [_column(column) for column in event.columns.values()]
    if event.levels is not None:
        return [_Cell(int(k) if 2 < k <= _FEW and not shared else 0) for k in event.cell_levels]
    return [_Cell(log=_LOGS.get(event.support, ""))] * max(event.dims, 1)


_LOGS = {"positive": "log", "count": "log1p"}


def _column(column: object) -> _Cell:
    if isinstance(column, Category):
        return _Cell(len(column.levels))
    if isinstance(column, Count):
        return _Cell(log="log1p")
    return _Cell(log="log" if cast(Real, column).positive else "")


def image_shape(event: Event) -> tuple[int, int, int] | None:
    """Channels, height and width of an image event: (h, w), (h, w, c) or (c, h, w) with up to 4 channels."""
    shape = event.shape if isinstance(event, Array) else ()
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3 and min(shape[0], shape[2]) <= 4:
        return (shape[2], shape[0], shape[1]) if channels_last(event) else (shape[0], shape[1], shape[2])
    return None


def has_pixels(event: Event) -> bool:
    """Whether cells are pixels of one scale: an image of so many grey levels, which say more as numbers than as
    categories."""
    return image_shape(event) is not None and isinstance(cast(Array, event).levels, int)


def required_image(event: Event) -> tuple[int, int, int]:
    """The same where a network has convolutions.

    Raises:
        ParameterError: no image.
    """
    image = image_shape(event)
    if image is None:
        raise ParameterError(
            f"channels for {event!r}", "images: an Array of shape (h, w), (h, w, c) or (c, h, w)", "channels=()"
        )
    return image


def channels_last(event: Event) -> bool:
    """Whether the channels of an image come last."""
    shape = event.shape if isinstance(event, Array) else ()
    return len(shape) == 3 and shape[2] <= 4
