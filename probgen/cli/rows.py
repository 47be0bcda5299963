"""Rows to score or to compress, as the command line names them."""

from pathlib import Path
from typing import Any

from probgen.cli.options import model_of, sequence_of
from probgen.cli.outputs import say
from probgen.errors import ParameterError

__all__ = ["refuse_absent", "refuse_another_column", "rows_of", "say_ignored"]


def say_ignored(columns: Any) -> None:
    if columns:
        shown = ", ".join(map(repr, columns[:8])) + (f" and {len(columns) - 8} more" if len(columns) > 8 else "")
        say(f"probgen: note: columns that the model does not know are left alone: {shown}")


def rows_of(data: str, scorer: Any, sequence: str | None) -> Any:
    """Rows to score. A table is read for the model's columns: in a csv, levels that are text stay text (TRUE, 007)."""
    from probgen import datasets, frames
    from probgen.events import Table
    from probgen.frames import streams

    event = scorer.event
    if isinstance(event, Table) and sequence is None and Path(data).suffix.lower() in frames.SUFFIXES:
        found, extra = streams.known(frames.read(data, event.texts), event.columns)
        say_ignored(extra)
        return streams.cells(found) if Path(data).suffix.lower() in (".parquet", ".pq") else found
    return datasets.load(data, sequence_of(sequence)).x


def refuse_absent(model: Path, data: str) -> None:
    """Says that there is no such model or no such data before anything is said of an output.

    Raises:
        StoreError: no model. DataError: no data.
    """
    from probgen import datasets

    if not (model.is_file() or (model / "card.json").exists()):
        model_of(model)
    if data not in datasets.names() and not Path(data).exists():
        datasets.load(data)


def refuse_another_column(event: Any, sequence: str | None) -> None:
    """A model scores sequences that are named as those it was fitted to."""
    fitted = getattr(event, "sequence", None)
    if isinstance(chosen := sequence_of(sequence), str) and chosen != fitted:
        wanted = f"--sequence {fitted}" if fitted else f"no --sequence: the model was fitted to {event!r}"
        raise ParameterError(f"--sequence {sequence}", wanted, "The model knows its column: leave --sequence out")
