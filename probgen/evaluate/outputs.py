"""Samples as tables and lines."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np

from probgen import frames
from probgen.events import Event, Panel, Ragged, Real, Table

__all__ = ["csv_lines", "sample_table"]


def sample_table(draws: Any, event: Event) -> Any:
    """Draws as a pyarrow.Table: the event's own columns, one column a cell (``x3_5``), or row, step and cells.

    Steps of a panel stand under its own names, the sequence's among them, so that the table can be scored.
    """
    if isinstance(event, Table):
        return frames.table(_named(event, draws))
    if isinstance(event, Panel):
        labels = _places(draws) if event.sequence is None and len(draws) > 1 else {}
        labels |= {event.sequence: _places(draws)["row"]} if event.sequence else {}
        return frames.table(labels | _named(event.step, draws.values))
    if isinstance(draws, Ragged):
        return frames.table(_places(draws) | _cells(np.concatenate(event.restore(draws, "list"))))
    return frames.table(_cells(event.restore(draws, "numpy")))


def _named(event: Table, cells: Any) -> dict[str, np.ndarray]:
    """Cells (n, columns) by column name, rounded ones with the decimals of their step."""
    steps = {name: c.resolution for name, c in event.columns.items() if isinstance(c, Real) and c.resolution}
    return {n: _rounded(x, steps[n]) if n in steps else x for n, x in event.outside(cells).items()}


def _places(draws: Ragged) -> dict[str, np.ndarray]:
    """Which sequence a step is of, and which of its steps it is."""
    lengths = draws.lengths.numpy()
    return {"row": np.repeat(np.arange(len(lengths)), lengths), "step": draws.places.numpy()}


def _rounded(values: np.ndarray, step: float) -> np.ndarray:
    """Multiples of a step, written with as many decimals as the step: 6.6, not 6.6000000000000005."""
    decimals = max(0, -int(Decimal(repr(float(step))).as_tuple().exponent))
    return np.ma.round(values, decimals) if isinstance(values, np.ma.MaskedArray) else np.round(values, decimals)


def _cells(values: np.ndarray) -> dict[str, np.ndarray]:
    names = ["x" + "_".join(map(str, index)) for index in np.ndindex(values.shape[1:])]
    return dict(zip(names, values.reshape(len(values), -1).T, strict=True))


def csv_lines(draws: Any, event: Event) -> Iterator[str]:
    """Draws as lines of csv, header first."""
    columns = sample_table(draws, event).to_pydict()
    yield ",".join(map(_quoted, columns))
    for row in zip(*columns.values(), strict=True):
        yield ",".join("" if value is None else _quoted(value) for value in row)


def _quoted(value: Any) -> str:
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') or not text else text
