"""Samples as tables and lines."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from probgen import frames
from probgen.events import Event, Ragged, Table

__all__ = ["csv_lines", "sample_table"]


def sample_table(draws: Any, event: Event) -> Any:
    """Draws as a pyarrow.Table: the event's own columns, one column a cell (``x3_5``), or row, step and cells."""
    if isinstance(event, Table):
        return frames.table(event.restore(draws, "dict"))
    if isinstance(draws, Ragged):
        steps = event.restore(draws, "list")
        lengths = draws.lengths.numpy()
        place = {
            "row": np.repeat(np.arange(len(lengths)), lengths),
            "step": np.concatenate([np.arange(length) for length in lengths]),
        }
        return frames.table(place | _cells(np.concatenate(steps)))
    return frames.table(_cells(event.restore(draws, "numpy")))


def _cells(values: np.ndarray) -> dict[str, np.ndarray]:
    names = ["x" + "_".join(map(str, index)) for index in np.ndindex(values.shape[1:])]
    return dict(zip(names, values.reshape(len(values), -1).T, strict=True))


def csv_lines(draws: Any, event: Event) -> Iterator[str]:
    """Draws as lines of csv, header first."""
    columns = sample_table(draws, event).to_pydict()
    yield ",".join(columns)
    for row in zip(*columns.values(), strict=True):
        yield ",".join("" if value is None else str(value) for value in row)
