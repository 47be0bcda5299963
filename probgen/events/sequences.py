"""Observations of varying length: series of numbers, and text."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ParameterError, ShapeError
from probgen.events.array import Array, Support
from probgen.events.cells import Ragged, float_cells, row_hash, whole
from probgen.events.event import Checked, Event, refuse_empty
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
        steps = np.array([f"{i}, step {t}" for i, n in enumerate(lengths) for t in range(n)], dtype=object)
        cells = values.reshape(len(values), -1)
        self.step.check_cells(cells, steps)
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


def _sequences(data: Any, rank: int) -> tuple[list[np.ndarray], str]:
    """Sequences as float arrays, each (T, *shape)."""
    if isinstance(data, list | tuple) and not data:
        return [], "list"
    if isinstance(data, Ragged):
        return [part.to(torch.float64).numpy() for part in data.split()], "list"
    if isinstance(data, tuple) and len(data) == 2:
        values, lengths = float_cells(data[0])[0], np.asarray(data[1])
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any() or lengths.sum() != len(values):
            raise ShapeError(
                f"lengths {lengths.tolist()[:8]} for {len(values)} rows",
                "positive whole numbers that add up to the number of rows",
                "Give a list of arrays instead, one a sequence",
            )
        return np.split(values, np.cumsum(lengths)[:-1]), "list"
    if isinstance(data, list | tuple) and data and np.ndim(data[0]) == rank + 1:
        return [float_cells(part)[0] for part in data], "torch" if isinstance(data[0], Tensor) else "list"
    values = float_cells(data)[0]
    if values.ndim == rank + 2:
        return list(values), "array"
    return [values], "list"


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
        texts = [data] if isinstance(data, str) else list(data)
        refuse_empty(len(texts))
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text:
                raise DataError(f"Row {i} is {text!r}", "a string that is not empty", "Drop or fill the row")
        coded = [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in texts]
        lengths = np.array([len(code) for code in coded])
        ragged = Ragged(torch.from_numpy(np.concatenate(coded)), torch.from_numpy(lengths))
        keys = np.arange(len(texts))
        return Checked(
            ragged, Fingerprint(keys, row_hash(ragged), lengths, repr(self), self.measure, True, lengths), "list"
        )

    def restore(self, x: Ragged, form: str = "list") -> list[str]:
        return [bytes(part.tolist()).decode(errors="replace") for part in x.split()]
