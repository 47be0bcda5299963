"""How the columns of a table are read when a graph is learned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from probgen.errors import DataError, StructureError
from probgen.events import Category, Count, Table

__all__ = ["Data", "read"]

_MOST_LEVELS = 65_535
_SHOWN = 12


@dataclass(frozen=True)
class Data:
    """Complete rows, column by column.

    Arguments:
        names: Of the V columns.
        codes: Levels of the categories, (V, n), uint8 or uint16; zeros where a column is continuous.
        cards: Levels declared, (V,); 1 where a column is continuous.
        numbers: Continuous columns about their mean in units of their standard deviation, (V, n), zeros elsewhere;
            (V, 0) where all columns are categories.
        scales: The standard deviations, (V,); 1 where a column is a category or constant.
        continuous: Which columns are, (V,).
        constant: Which columns hold one value only, (V,).
        share: What a row counts: 1, or 1 / draws where each row was completed several times.
        notes: How each column is read.
    """

    names: tuple[str, ...]
    codes: np.ndarray
    cards: np.ndarray
    numbers: np.ndarray
    scales: np.ndarray
    continuous: np.ndarray
    constant: np.ndarray
    share: float = 1.0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.codes.shape[1]

    @property
    def width(self) -> int:
        return len(self.names)

    @property
    def mixed(self) -> bool:
        return bool(self.continuous.any())

    @property
    def rows(self) -> float:
        """Rows of data: completions of one row count once."""
        return len(self) * self.share

    def take(self, rows: np.ndarray) -> "Data":
        """Some rows, by number; a number may come twice. The columns keep their scales."""
        return replace(
            self, codes=np.ascontiguousarray(self.codes[:, rows]), numbers=self.numbers[:, rows if self.mixed else []]
        )


def read(event: Table, x: np.ndarray, share: float = 1.0) -> Data:
    """Checked rows (n, V) without missing cells as Data.

    Raises:
        StructureError: a column of more than 65535 levels.
        DataError: a single row of real numbers, which has no variance.
    """
    columns = list(event.columns.values())
    continuous = np.array([not isinstance(column, Category) for column in columns])
    cards = np.array([len(c.levels) if isinstance(c, Category) else 1 for c in columns], dtype=np.int64)
    _refuse_levels(event, cards)
    if continuous.any() and len(x) < 2:
        raise DataError("One row of real numbers", "at least two rows: one has no variance")
    cells = np.ascontiguousarray(np.asarray(x, dtype=np.float64).T)
    codes = np.where(continuous[:, None], 0.0, cells).astype(np.uint8 if cards.max() <= 256 else np.uint16)
    numbers, scales = _standardised(cells, continuous)
    constant = (cells == cells[:, :1]).all(1)
    notes = _notes(event, codes, constant)
    return Data(tuple(event.columns), codes, cards, numbers, scales, continuous, constant, share, notes)


def _refuse_levels(event: Table, cards: np.ndarray) -> None:
    if cards.max() > _MOST_LEVELS:
        name = list(event.columns)[int(cards.argmax())]
        raise StructureError(
            f"Column {name!r} has {cards.max()} levels", f"at most {_MOST_LEVELS}", "Leave out columns that number rows"
        )


def _standardised(cells: np.ndarray, continuous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not continuous.any():
        return np.zeros((len(cells), 0)), np.ones(len(cells))
    away = np.where(continuous[:, None], cells - cells.mean(1, keepdims=True), 0.0)
    scales = np.sqrt((away**2).mean(1))
    scales = np.where((scales > 0) & continuous, scales, 1.0)
    return away / scales[:, None], scales


def _notes(event: Table, codes: np.ndarray, constant: np.ndarray) -> tuple[str, ...]:
    """What was read as what, and what is odd."""
    categories = {n: c for n, c in event.columns.items() if isinstance(c, Category)}
    whole = [n for n, c in categories.items() if all(isinstance(level, int | float) for level in c.levels)]
    words = [n for n in categories if n not in whole]
    counts = [n for n, c in event.columns.items() if isinstance(c, Count)]
    reals = [n for n, c in event.columns.items() if not isinstance(c, Category | Count)]
    constants = [name for name, one in zip(event.columns, constant, strict=True) if one]
    listed = [
        _listed("read as categories", [f"{n} ({len(categories[n].levels)} levels)" for n in words]),
        _listed("numbers read as categories", [f"{n} ({len(categories[n].levels)} levels)" for n in whole]),
        _listed("read as real numbers, normal given their parents", reals),
        _listed("read as counts, which the score takes as normal given their parents", counts),
        _listed("a category has no continuous parents", [""] if categories and (counts or reals) else []),
        _listed("constant, so left without edges", constants),
        _listed("levels that never occur, but count as parameters", _unseen(event, codes)),
    ]
    return tuple(note for note in listed if note)


def _listed(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"{what}: {shown}" if shown else what if names else ""


def _unseen(event: Table, codes: np.ndarray) -> list[str]:
    found = []
    for own, (name, column) in zip(codes, event.columns.items(), strict=True):
        if isinstance(column, Category):
            seen = np.bincount(own, minlength=len(column.levels))
            found += [f"{name}={column.levels[i]!r}" for i in np.flatnonzero(seen == 0)[:5]]
    return found
