"""Covariates as columns of numbers, and the directions in which they vary."""

import math

import torch
from torch import Tensor

from probgen.errors import DataError, StructureError, nearest
from probgen.events import Array, Category, Event, Table

__all__ = ["Design", "basis", "unit_columns"]

_ALIASED = 1e-10  # of the largest singular value of standardised columns: less is the rounding of a linear dependence


class Design:
    """The columns that a context's covariates give: numbers as they are, a category's levels but the first as 0 and 1.

    Arguments:
        context: Array of one axis or none, Table, or None for no covariates.
        offset: Name of a numeric column of a Table that enters the first predictor with coefficient 1.

    Attributes:
        names: Of the columns: "age", "sex[f]"; of an Array "x0", "x1", or "x".
        numeric: Which columns are no levels, shape (d,), bool: those are scaled.

    Raises:
        StructureError: a context or an offset of another kind.
    """

    def __init__(self, context: Event | None, offset: str | None) -> None:
        self.context, self.offset_name = context, offset
        if context is not None and not isinstance(context, Table | Array):
            raise StructureError(f"context={context!r}", "a Table or Array of covariates", "Or None")
        if isinstance(context, Array) and len(context.shape) > 1:
            raise StructureError(f"context={context!r}", "covariates in one row: Array((p,))", "Flatten them")
        self._place = self._offset_place()
        parts = self._parts()
        self.names = tuple(name for name, *_ in parts)
        self.numeric = torch.tensor([level is None for *_, level in parts], dtype=torch.bool)
        self._sources = [(place, level) for _, place, level in parts]

    def _offset_place(self) -> int | None:
        if self.offset_name is None:
            return None
        columns = self.context.columns if isinstance(self.context, Table) else {}
        if self.offset_name not in columns or isinstance(columns[self.offset_name], Category):
            raise StructureError(
                f"offset={self.offset_name!r}", "a numeric column of the context", nearest(self.offset_name, columns)
            )
        return list(columns).index(self.offset_name)

    def _parts(self) -> list[tuple[str, int, int | None]]:
        """Name, column of the covariates and level (None for numbers) of each column."""
        if self.context is None:
            return []
        if isinstance(self.context, Array):
            shape = self.context.shape
            return [(f"x{i}" if shape else "x", i, None) for i in range(math.prod(shape))]
        parts: list[tuple[str, int, int | None]] = []
        for place, (name, column) in enumerate(self.context.columns.items()):  # type: ignore[attr-defined]
            if isinstance(column, Category):
                parts += [(f"{name}[{level}]", place, i) for i, level in enumerate(column.levels) if i]
            elif place != self._place:
                parts.append((name, place, None))
        return parts

    def __len__(self) -> int:
        return len(self.names)

    def __call__(self, given: Tensor | None, n: int) -> Tensor:
        """Columns (n, d), float64, of checked covariates; (n, 0) without any."""
        if given is None or not self._sources:
            return torch.zeros(n, 0, dtype=torch.float64)
        cells = given.reshape(len(given), -1)
        columns = [
            cells[:, place] if level is None else (cells[:, place] == level).to(torch.float64)
            for place, level in self._sources
        ]
        return torch.stack(columns, 1)

    def offset(self, given: Tensor | None, n: int) -> Tensor:
        """What enters the first predictor as it is, (n,)."""
        if self._place is None or given is None:
            return torch.zeros(n, dtype=torch.float64)
        return given[:, self._place]

    def refuse_missing(self, given: Tensor) -> None:
        """Raises DataError that names the first missing covariate."""
        gaps = given.reshape(len(given), -1).isnan()
        if not gaps.any():
            return
        row, place = gaps.nonzero()[0].tolist()
        name = list(self.context.columns)[place] if isinstance(self.context, Table) else place
        raise DataError(
            f"Row {row}, covariate {name} is missing",
            "complete covariates: they have no distribution to fill gaps from",
            "Impute, or drop the rows",
        )


def unit_columns(columns: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (d,) of columns (n, d); deviation 1 where not ``scaled`` or constant.

    Columns are first divided by their largest entry: squares of huge or tiny numbers leave the range of floats.
    """
    if not columns.numel():
        return torch.zeros(columns.shape[1], dtype=torch.float64), torch.ones(columns.shape[1], dtype=torch.float64)
    top = columns.abs().amax(0)
    top = torch.where(top > 0, top, 1.0)
    shrunk = columns / top
    mean = shrunk.mean(0)
    deviation = (shrunk - mean).square().mean(0).sqrt()
    varies = deviation > 1e-14 * mean.abs()  # less is the rounding of the mean
    middle = torch.where(varies, mean, shrunk[0])
    return middle * top, torch.where(varies & scaled, deviation * top, 1.0)


def basis(design: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in which a design (n, 1 + d), ones first, has orthogonal columns of mean square 1.

    Returns:
        A (1 + d, 1 + r) matrix B, r the rank of the centred slopes: design @ B is orthogonal. Coefficients B @ g have
        the least norm of slopes among those that predict the same. And which coefficients the rows determine, (1 + d,).
    """
    n, width = design.shape
    ones, sure = torch.ones(1, dtype=torch.float64), torch.ones(width, dtype=torch.bool)
    mean = design[:, 1:].mean(0)
    centred = design[:, 1:] - mean
    if width == 1:
        return ones[:, None], sure
    _, s, vt = torch.linalg.svd(torch.linalg.qr(centred).R, full_matrices=True)
    kept = s > _ALIASED * max(float(s[0]), 1e-300)
    rank = int(kept.sum())
    slopes = vt[:rank].T / s[:rank] * math.sqrt(n)
    sure[1:] = vt[rank:].square().sum(0) < 1e-12
    top = torch.cat([ones, -(mean @ slopes)])
    return torch.cat([top[None], torch.cat([torch.zeros(width - 1, 1, dtype=torch.float64), slopes], 1)]), sure
