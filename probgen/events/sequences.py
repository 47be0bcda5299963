"""Observations of varying length: series of numbers, and text."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ParameterError, ShapeError
from probgen.events.array import Array, Support
from probgen.events.cells import Ragged, row_hash, whole
from probgen.events.event import Checked, Event, refuse_empty
from probgen.events.outside import blanked, float_cells, is_array, named, rows, unboxed
from probgen.logprob import Fingerprint


@dataclass(frozen=True, repr=False)
class Series(Event):
    """Sequences of equal or unequal length: a Ragged, NaN = missing.

    Arguments:
        shape: Of one step; () for one number a step.
        support, levels, resolution, unit, missing: As of Array, for one step.

    Takes a list of arrays, a pair (values, lengths), an array (n, T, *shape) of n equally long sequences, or one
    sequence (T, *shape).
    """

    shape: tuple[int, ...] = ()
    support: Support = "real"
    levels: int | tuple[int, ...] | None = None
    resolution: float | None = None
    unit: str = ""
    missing: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.step.shape)
        object.__setattr__(self, "levels", self.step.levels)

    @property
    def step(self) -> Array:
        """The event of one step."""
        return Array(self.shape, self.support, self.levels, self.resolution, self.unit, self.missing)

    @property
    def measure(self) -> str:
        return self.step.measure

    def check(self, data: Any) -> Checked:
        if frames.is_frame(data) or isinstance(data, str | os.PathLike):
            raise DataError(
                f"A table ({type(data).__name__}) for sequences: where one ends and the next begins is not known",
                "a list of arrays, or a pair (values, lengths)",
                "Split it: [group[columns].to_numpy() for _, group in frame.groupby(key)]; or give (values, lengths)",
            )
        parts, form = _sequences(data, len(self.shape))
        refuse_empty(len(parts))
        for i, part in enumerate(parts):
            if part.shape[1:] != self.shape or not len(part):
                raise ShapeError(
                    f"Sequence {i} has shape {part.shape}",
                    f"(T >= 1{''.join(f', {s}' for s in self.shape)})",
                    f"Event: {self!r}",
                )
        values = np.concatenate(parts)
        lengths = np.array([len(part) for part in parts])
        cells = values.reshape(len(values), -1)
        self.step.check_cells(cells, _Steps(lengths))
        ragged = Ragged(torch.from_numpy(values), torch.from_numpy(lengths))
        seen = np.add.reduceat((~np.isnan(cells)).sum(axis=1), ragged.starts.numpy())
        about = Fingerprint(np.arange(len(parts)), row_hash(ragged), seen, repr(self), self.measure, whole(values))
        return Checked(ragged, about, form)

    def ties(self, x: Ragged) -> str | None:
        """As of Array, over all steps."""
        return self.step.ties(x.values)

    def restore(self, x: Ragged, form: str = "list") -> Any:
        parts = [self.step.restore(part, "torch" if form == "torch" else "numpy") for part in x.split()]
        return np.stack(parts) if form == "array" and len(set(map(len, parts))) == 1 else parts


class _Steps:
    """Row keys of single steps: "3, step 7"."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.ends = np.cumsum(lengths)

    def __getitem__(self, place: int) -> str:
        row = int(np.searchsorted(self.ends, place, side="right"))
        return f"{row}, step {place - (self.ends[row - 1] if row else 0)}"


def _sequences(data: Any, rank: int) -> tuple[list[np.ndarray], str]:
    """Sequences as float arrays, each (T, *shape)."""
    data = unboxed(data)
    if isinstance(data, Ragged):
        data = data.values, data.lengths
    if isinstance(data, tuple) and len(data) == 2:
        return _split(*data), "list"
    if isinstance(data, list | tuple) and any(map(is_array, set(map(type, data)))):
        parts = [_sequence(i, part) for i, part in enumerate(data)]
        if parts[0].ndim > rank:
            return parts, "torch" if isinstance(data[0], Tensor) else "list"
    values, _, form = float_cells(data)
    if values.ndim == rank + 2:
        return list(values), "array"
    return [values] if values.size or form != "list" else [], "list"


def _sequence(i: int, part: Any) -> np.ndarray:
    if not is_array(type(part)):
        raise DataError(f"Sequence {i} is {part!r:.80}", "an array or list of steps", "Drop the row, or give its steps")
    with named(f"Sequence {i}"):
        return float_cells(part)[0]


def _split(data: Any, lengths: Any) -> list[np.ndarray]:
    values, counts = float_cells(data)[0], np.empty(0)
    with suppress(DataError):
        counts = rows(lengths)[0]
    whole_numbers = counts.ndim == 1 and counts.dtype.kind in "iu"
    if not whole_numbers or (counts < 1).any() or sum(counts.tolist()) != len(values):
        shown = lengths.tolist() if isinstance(lengths, np.ndarray | Tensor) else lengths
        raise ShapeError(
            f"lengths {shown!r:.80} for {len(values)} rows",
            "positive whole numbers that add up to the number of rows",
            "Give a list of arrays instead, one a sequence",
        )
    return np.split(values, np.cumsum(counts.astype(np.int64))[:-1]) if len(counts) else []


@dataclass(frozen=True, repr=False)
class Text(Event):
    """Strings: a Ragged of int64 token ids; the fingerprint keeps the bytes of the original text.

    Arguments:
        tokenizer: "bytes" (UTF-8, 256 ids).
    """

    tokenizer: str = "bytes"

    def __post_init__(self) -> None:
        if self.tokenizer != "bytes":
            raise ParameterError(
                f"tokenizer={self.tokenizer!r}", "'bytes'", "Trained tokenizers come with the language family"
            )

    @property
    def measure(self) -> str:
        return f"counting({self.tokenizer})"

    def check(self, data: Any) -> Checked:
        texts = _texts(data)
        refuse_empty(len(texts))
        coded = [_code(i, text) for i, text in enumerate(texts)]
        lengths = np.array([len(code) for code in coded])
        values = np.frombuffer(b"".join(coded), dtype=np.uint8).astype(np.int64)
        ragged = Ragged(torch.from_numpy(values), torch.from_numpy(lengths))
        keys = frames.keys(data, len(texts))
        about = Fingerprint(keys, row_hash(ragged), lengths, repr(self), self.measure, True, lengths)
        return Checked(ragged, about, "list")

    def restore(self, x: Ragged, form: str = "list") -> list[str]:
        return [bytes(part.tolist()).decode(errors="replace") for part in x.split()]


_STRINGS = "strings: a list, an array or one column"


def _texts(data: Any) -> list:
    if isinstance(data, str):
        return [data]
    if frames.is_frame(data) or isinstance(data, Mapping):
        raise DataError(f"A {type(data).__name__} for text", _STRINGS, "Choose the column: frame['text']")
    values, missing = rows(list(data) if isinstance(data, Iterator) else data)
    if values.ndim != 1:
        raise ShapeError(f"A {type(data).__name__} of shape {values.shape} for text", _STRINGS, "Choose one column")
    return blanked(values, missing).tolist()


def _code(i: int, text: Any) -> bytes:
    with suppress(UnicodeEncodeError):
        if isinstance(text, str) and text:
            return text.encode()
    raise DataError(f"Row {i} is {text!r:.80}", "a string that is not empty, in Unicode", "Drop or fill the row")
