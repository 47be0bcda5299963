"""What the symbols of an event are: tokens of text, or codes of discrete steps."""

import math

import numpy as np
import torch

from probgen.errors import DataError
from probgen.events import Checked, Event, Ragged, Series, Text

__all__ = ["MOST", "codes_of", "refuse_gaps", "sequences_of", "symbols_of", "why_not"]

MOST = 1 << 24  # symbols that can be told apart


def why_not(event: Event) -> str | None:
    """None, or why sequences of symbols can't be made of an event."""
    if isinstance(event, Text):
        return None
    if not isinstance(event, Series):
        return f"it counts symbols in sequences: Text or Series(levels=...), not {type(event).__name__}"
    if event.levels is None:
        return "it counts symbols, and these steps have no levels"
    if math.prod(map(int, event.step.cell_levels)) > MOST:
        return f"a step has more than {MOST} different values"
    return None


def symbols_of(event: Event) -> int:
    """How many symbols there are, without an end."""
    return event.tokens if isinstance(event, Text) else math.prod(map(int, event.step.cell_levels))  # type: ignore


def codes_of(event: Event, x: Ragged) -> np.ndarray:
    """The symbol of each step, shape (total,), int64; a step of several cells counts as one symbol."""
    values = x.values.numpy().astype(np.int64)
    if isinstance(event, Text) or values.ndim == 1:
        return values
    cells = values.reshape(len(values), -1)
    levels = tuple(event.step.cell_levels)  # type: ignore[attr-defined]
    return np.asarray(np.ravel_multi_index(tuple(cells.T), levels), dtype=np.int64)


def sequences_of(event: Event, parts: list[np.ndarray]) -> Ragged:
    """Symbols of each sequence as checked data of the event."""
    lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    codes = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    if isinstance(event, Text):
        return Ragged(torch.from_numpy(codes), lengths)
    levels = tuple(event.step.cell_levels)  # type: ignore[attr-defined]
    cells = np.stack(np.unravel_index(codes, levels), axis=1).astype(np.float64)
    return Ragged(torch.from_numpy(cells.reshape(len(codes), *event.shape)), lengths)  # type: ignore[attr-defined]


def refuse_gaps(family: str, checked: Checked) -> Checked:
    """Checked sequences without missing cells.

    Raises:
        DataError: a gap, by sequence and step.
    """
    x = checked.x
    if x.values.is_floating_point() and x.values.isnan().any():
        at = int(x.values.reshape(len(x.values), -1).isnan().any(dim=1).nonzero()[0])
        row = int(torch.searchsorted(x.lengths.cumsum(0), at, right=True))
        raise DataError(
            f"Sequence {checked.about.keys[row]}, step {int(x.places[at])} is missing: {family} needs every step",
            "sequences without gaps, or a family that integrates them out",
            "Use HMM or Independent, or cut the sequence there",
        )
    return checked
