"""Data sets by name, or by path."""

import os
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path

from probgen.datasets.captions import digit_words, fashion_captions
from probgen.datasets.dataset import Dataset
from probgen.datasets.files import read
from probgen.datasets.real import digits, earthquakes, fashion_mnist, iris, melodies
from probgen.datasets.texts import capitals, kjv
from probgen.datasets.toys import checkerboard, eight_gaussians, moons
from probgen.errors import DataError, ParameterError, nearest
from probgen.events import Array, Event, Panel, Series, Table, infer

__all__ = ["load", "names"]

_BUILT_IN: dict[str, Callable[[], Dataset]] = {
    f.__name__: f
    for f in (
        capitals, checkerboard, digit_words, digits, earthquakes, eight_gaussians, fashion_captions, fashion_mnist,
        iris, kjv, melodies, moons,
    )
}  # fmt: skip


def names() -> list[str]:
    """Names of the embedded data sets."""
    return sorted(_BUILT_IN)


def load(name: str | PathLike, sequence: str | bool | None = None) -> Dataset:
    """An embedded data set by name, or a file by path.

    Arguments:
        sequence: The column of a table that says which sequence a row belongs to; True makes the whole one sequence.

    Raises:
        DataError: neither a name nor a file; the message names the nearest. No such column.
        ParameterError: ``sequence`` for data that are no table.
    """
    if name in _BUILT_IN:
        found = _BUILT_IN[str(name)]()
        return found if sequence is None else replace(found, event=_as_sequences(found, sequence), log_density=None)
    if os.path.exists(name):
        x = read(name)
        return Dataset(Path(name).stem, x, infer(x, sequence=sequence), f"the file {name}")
    if Path(name).suffix or "/" in str(name):
        raise DataError(
            f"There is no file {name}", "a path that exists, or an embedded data set", nearest(str(name), names())
        )
    raise DataError(
        f"There is no data set {str(name)!r}", "an embedded data set or the path of a file", nearest(str(name), names())
    )


def _as_sequences(found: Dataset, sequence: str | bool) -> Event:
    """The declared columns of a data set as the steps of sequences; rows without names as those of one."""
    if isinstance(found.event, Array) and sequence is True:
        return Series(found.event.shape, found.event.support, found.event.levels, found.event.resolution)
    if not isinstance(found.event, Table):
        raise ParameterError(
            f"sequence={sequence!r} for {found.name}, {found.event!r}", "a table", "Leave it out, or name a csv file"
        )
    if isinstance(sequence, str) and sequence not in found.event.columns:
        raise DataError(
            f"{found.name} has no column {sequence!r}", "one of its own", nearest(sequence, found.event.columns)
        )
    label = sequence if isinstance(sequence, str) else None
    rest = {name: column for name, column in found.event.columns.items() if name != label}
    return Panel(rest, label, found.event.missing)
