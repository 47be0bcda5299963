"""Rows of which some columns are observed: draws under the rarest observed category, those kept that fit the rest."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probgen.errors import ParameterError, ZeroEvidenceError
from probgen.events import Category, Real, Table
from probgen.models.gan.conditions import Drawn

if TYPE_CHECKING:
    from probgen.models.gan.family import GAN

__all__ = ["Observed", "accepted", "observed"]

_TRIES = 200_000  # draws for the first rows; then as many for each that is still wanted as the share so far asks
_PIECE = 4096


class Observed(NamedTuple):
    """Checked cells of some columns: where they stand and what they are."""

    columns: list[int]
    values: Tensor
    text: str


def observed(event: Table, given: Any) -> Observed:
    """What ``given`` says of some columns.

    Raises:
        ParameterError: more than one row, or a real column without resolution, on which a draw never falls.
        DataError: cells outside their support, by column.
    """
    if isinstance(given, dict):
        given = {name: value if _is_column(value) else [value] for name, value in given.items()}
    cells = Table(event.columns).check(given, partial=True).x
    if len(cells) != 1:
        raise ParameterError(f"given= has {len(cells)} rows", "one condition", "Sample condition by condition")
    columns = (~cells[0].isnan()).nonzero()[:, 0].tolist()
    if not columns:
        raise ParameterError("given= observes no column", "at least one value, by column name", "Leave it out")
    names, kinds = list(event.columns), list(event.columns.values())
    for i in columns:
        if isinstance(kinds[i], Real) and kinds[i].resolution is None:  # type: ignore[attr-defined]
            raise ParameterError(
                f"given= observes the real column {names[i]!r}",
                "categories, counts or rounded numbers: a draw hits a real number with probability zero, and a GAN has "
                "no density to weigh draws with",
                "Declare its resolution, make it a context, or fit a family with a likelihood (BayesianNetwork)",
            )
    text = ", ".join(f"{names[i]}={_shown(kinds[i], float(cells[0, i]))}" for i in columns)
    return Observed(columns, cells[0, columns], text)


def _is_column(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes)


def _shown(column: Any, cell: float) -> str:
    return repr(column.levels[int(cell)]) if isinstance(column, Category) else f"{cell:g}"


def accepted(gan: "GAN", n: int, given: Observed, generator: torch.Generator) -> Tensor:
    """n rows (n, columns) drawn under the rarest observed category, those kept whose observed columns are as given.

    Raises:
        ZeroEvidenceError: too few fit.
    """
    kept, found, tried = [], 0, 0
    while found < n:
        if tried >= _TRIES * (1 + found):
            raise ZeroEvidenceError(
                f"{found} of {tried} draws have {given.text}",
                "columns as some rows of the data have them",
                "Observe fewer columns, or a level that occurs in the data",
            )
        rows = gan._draw(_PIECE, _condition(gan, given, generator), generator)
        fit = (rows[:, given.columns] - given.values).abs() <= 1e-9 * given.values.abs()
        kept.append(rows[fit.all(1)])
        found, tried = found + len(kept[-1]), tried + _PIECE
    return torch.cat(kept)[:n]


def _condition(gan: "GAN", given: Observed, generator: torch.Generator) -> Tensor | None:
    conditions = gan.conditions
    if conditions is None:
        return None
    codes = dict(zip(given.columns, given.values.long().tolist(), strict=True))
    places = [j for j, column in enumerate(conditions.columns) if column in codes]
    if not places:
        return gan._known(None, conditions.draw(_PIECE, generator, log=False))
    tables = conditions.tables()
    rarest = min(places, key=lambda j: float(tables[j][codes[conditions.columns[j]]] / tables[j].sum().clamp(min=1)))
    code = torch.full((_PIECE,), codes[conditions.columns[rarest]])
    return gan._known(None, Drawn(torch.full((_PIECE,), rarest), code))
