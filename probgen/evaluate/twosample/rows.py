"""Two samples of anything as numbers about each row, on one scale."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.emissions.emission import column_moments
from probgen.errors import DataError, ParameterError, ShapeError, StructureError
from probgen.events import (
    Array,
    Category,
    Checked,
    Column,
    Count,
    Event,
    Panel,
    Ragged,
    Real,
    Record,
    Series,
    Table,
    Text,
    infer,
)
from probgen.events.outside import named
from probgen.features import Features

__all__ = [
    "Rows", "SampleWarning", "at_least", "brought_in", "described", "positive", "refuse_half", "shared_event", "warn",
]  # fmt: skip

_UNIGRAMS, _BIGRAMS = 32, 64  # of codes in sequences: the most frequent of the reference rows


class SampleWarning(UserWarning):
    """A number about samples that is easily read for more than it says."""


def warn(text: str) -> str:
    """Issues a SampleWarning at the user's call, and gives its text for the notes."""
    warnings.warn(text, SampleWarning, stacklevel=3)
    return text


@dataclass(frozen=True, eq=False)
class Rows:
    """Two samples as numbers.

    Arguments:
        x, y: Shape (n, d) and (m, d), float64, finite.
        what: What the numbers are, in words.
        notes: What a reader should know.
    """

    x: Tensor
    y: Tensor
    what: str
    notes: tuple[str, ...] = ()


def brought_in(x: Any, y: Any, event: Event | None, features: Callable[[Any], Any] | None) -> Rows:
    """Two samples as numbers on one scale, taken from both together, so that labels may be permuted.

    Arguments:
        features: Of outside rows; what it gives, (n, d), is taken as it is. Else ``described`` gives them.

    Columns that are the same number in every row of both are left out with a note.

    Raises:
        DataError: cells that can't be used, float16, or nothing that varies.
        ShapeError: unequal widths. ParameterError: a model instead of its samples.
    """
    for name, data in (("x", x), ("y", y)):
        if isinstance(data, torch.nn.Module):
            raise ParameterError(f"{name} is a {type(data).__name__}", "rows", "Draw some: model.sample(n, seed=0)")
        refuse_half(data, name)
    if features is not None:
        a, b = _computed(features, x, "x"), _computed(features, y, "y")
        if a.shape[1] != b.shape[1]:
            came = f"Features of {a.shape[1]} numbers of x and {b.shape[1]} of y"
            raise ShapeError(came, "one width", "One function must serve both")
        return _varying(a, b, f"{a.shape[1]} features of {getattr(features, '__name__', type(features).__name__)}")
    event = shared_event(x, y) if event is None else event
    checked = [_checked(event, data, name) for name, data in (("x", x), ("y", y))]
    pooled = _joined([part.x for part in checked])
    a, b = described(event, pooled, *(part.x for part in checked))
    return _varying(a, b, f"{a.shape[1]} numbers a row of {type(event).__name__}")


def _checked(event: Event, data: Any, name: str) -> Checked:
    with named(name):
        return event.check(data)


def refuse_half(data: Any, name: str) -> None:
    """Refuses numbers of 11 bits: their rounding alone tells samples apart, and their distances are ties.

    Raises:
        DataError: float16 or bfloat16.
    """
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else [data]
    for part in parts:
        if str(getattr(part, "dtype", "")).removeprefix("torch.") in ("float16", "bfloat16"):
            raise DataError(
                f"{name} holds {part.dtype}",
                "float32 or float64: half precision rounds to 3 digits, which alone tells samples apart",
                "Keep the samples in float32; or round both alike, and convert both to float32",
            )


def _computed(features: Callable[[Any], Any], data: Any, name: str) -> Tensor:
    """The features of outside rows, (n, d)."""
    with torch.no_grad():
        found = features(data)
    refuse_half(found, f"features({name})")
    try:
        cells = torch.as_tensor(found).detach().cpu().to(torch.float64)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise DataError(f"features({name}) is a {type(found).__name__}", "an array (n, d)") from problem
    cells = cells[:, None] if cells.ndim == 1 else cells
    if cells.ndim != 2 or not cells.numel():
        raise ShapeError(f"features({name}) of shape {tuple(cells.shape)}", "shape (n, d)", "Flatten or pool them")
    if not cells.isfinite().all():
        row = int((~cells.isfinite()).any(1).nonzero()[0])
        raise DataError(f"features({name}) are not finite in row {row}", "finite numbers", "Mend the function")
    return cells


def _varying(a: Tensor, b: Tensor, what: str) -> Rows:
    both = torch.cat([a, b])
    varies = (both != both[:1]).any(0)
    if not varies.any():
        came = f"Every row of x and y is the same ({what})"
        raise DataError(came, "numbers that vary in at least one sample", "Check how the samples were made")
    dropped = int((~varies).sum())
    few = f"{dropped} of {len(varies)} numbers a row never vary in either sample and are left out"
    return Rows(a[:, varies], b[:, varies], what, (few,) if dropped else ())


# One event for both


def shared_event(x: Any, y: Any) -> Event:
    """The event that both samples are of, where none is given: the wider of what each alone looks like.

    Raises:
        ShapeError, DataError: they do not look like one kind of data.
    """
    with named("x"):
        one = infer(x)
    with named("y"):
        other = infer(y)
    if type(one) is not type(other):
        raise ShapeError(f"x looks like {one!r}, y like {other!r}", "two samples of one kind", "Name it: event=...")
    return _wider(one, other)


def _wider(one: Event, other: Event) -> Event:
    if isinstance(one, Array | Series):
        return _wider_cells(one, other)
    if isinstance(one, Table | Panel):
        columns, others = one.columns, other.columns  # type: ignore[attr-defined]
        if set(columns) != set(others):
            came = f"x has the columns {list(columns)[:8]}, y {list(others)[:8]}"
            raise ShapeError(came, "the same columns", "Choose them, or name the event: event=...")
        return replace(one, columns={name: _wider_column(name, c, others[name]) for name, c in columns.items()})
    if isinstance(one, Record):
        parts = other.parts  # type: ignore[attr-defined]
        if set(one.parts) != set(parts):
            raise ShapeError(f"x has the parts {list(one.parts)}, y {list(parts)}", "the same parts")
        return Record(**{name: _wider(part, parts[name]) for name, part in one.parts.items()})
    return one


def _wider_cells(one: Any, other: Any) -> Event:
    if one.shape != other.shape:
        raise ShapeError(
            f"Rows of shape {one.shape} in x and {other.shape} in y", "equal widths", "Reshape or choose columns"
        )
    missing = one.missing or other.missing
    if isinstance(one.levels, int) and isinstance(other.levels, int):
        return replace(one, levels=max(one.levels, other.levels), missing=missing)
    return type(one)(one.shape, missing=missing)


def _wider_column(name: str, one: Column, other: Column) -> Column:
    if isinstance(one, Category) and isinstance(other, Category):
        return Category(tuple(dict.fromkeys((*one.levels, *other.levels))))
    for column in (one, other):
        if isinstance(column, Category) and not all(isinstance(v, int) for v in column.levels):
            came = f"Column {name!r} is {one!r} in x and {other!r} in y"
            raise ShapeError(came, "one type of column", "Convert it, or name the event: event=...")
    least = min((v for c in (one, other) if isinstance(c, Category) for v in c.levels), default=0)
    counted = not any(isinstance(column, Real) for column in (one, other))
    return Count() if counted and least >= 0 else Real()


# Numbers about rows


def described(event: Event, reference: Any, *parts: Any) -> list[Tensor]:
    """Checked data as numbers, a tensor (n, d) each, scaled by the means and spreads of the reference rows.

    Vectors: each cell on its own scale; images one scale for all. Tables: ``Features``. Sequences: log-length, means,
    spreads and lag-one products of the steps' features; of codes the frequencies of the reference's most frequent 32
    and of their 64 most frequent successions. Missing cells are 0 beside an indicator.
    """
    if isinstance(event, Record):
        own = [described(part, reference[name], *(_part(p, name) for p in parts)) for name, part in event.parts.items()]
        return [torch.cat(columns, 1) for columns in zip(*own, strict=True)]
    if isinstance(event, Table):
        net = Features(event).to(torch.float64)
        net.measure(reference)
        return [net(part) for part in parts]
    if isinstance(event, Array):
        return _scaled(_flat(reference), [_flat(p) for p in parts], shared=len(event.shape) > 1)
    if isinstance(event, Series | Panel | Text):
        tell = _summaries(event, reference)
        return _scaled(tell(reference), [tell(p) for p in parts])
    raise StructureError(f"Samples of {event!r}", "arrays, tables, sequences, text or records", "Give features=")


def _part(x: Mapping[str, Any], name: str) -> Any:
    if x[name] is None:
        raise ShapeError(f"Part {name!r} is missing in one sample", "the same parts in both", "Leave it out of both")
    return x[name]


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).to(torch.float64)


def _scaled(reference: Tensor, parts: list[Tensor], shared: bool = False) -> list[Tensor]:
    mean, variance = column_moments(reference.reshape(-1, 1) if shared else reference)
    gaps = any(bool(part.isnan().any()) for part in (reference, *parts))
    scaled = [(part - mean) / variance.sqrt() for part in parts]
    return [torch.cat([p.nan_to_num(0.0), (~p.isnan()).double()], 1) for p in scaled] if gaps else scaled


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {name: _joined([_part(p, name) for p in parts]) for name in parts[0] if parts[0][name] is not None}
    if isinstance(parts[0], Ragged):
        return Ragged(torch.cat([p.values for p in parts]), torch.cat([p.lengths for p in parts]))
    return torch.cat(parts)


# Sequences


def _summaries(event: Series | Panel | Text, reference: Ragged) -> Callable[[Ragged], Tensor]:
    """What is told of each sequence, as a function of sequences: shape (n, d)."""
    plain, coded = _columns_of(event)
    grams = [(j, *_frequent(reference, j)) for j in coded]

    def tell(x: Ragged) -> Tensor:
        parts = [x.lengths.to(torch.float64).log()[:, None]]
        parts += [_moments(x, j) for j in plain]
        for j, ones, twos in grams:
            parts += [_shares(_codes(x, j), x, ones), _shares(_pairs(x, j), x, twos)]
        return torch.cat(parts, 1)

    return tell


def _columns_of(event: Series | Panel | Text) -> tuple[list[int], list[int]]:
    """Which cells of a step are numbers, and which are codes."""
    if isinstance(event, Text):
        return [], [0]
    if isinstance(event, Panel):
        codes = [isinstance(column, Category) for column in event.columns.values()]
    else:
        codes = [isinstance(event.levels, int) and event.levels <= _UNIGRAMS] * max(event.step.dims, 1)
    return [j for j, c in enumerate(codes) if not c], [j for j, c in enumerate(codes) if c]


def _column(x: Ragged, j: int) -> Tensor:
    return x.values.reshape(len(x.values), -1)[:, j].to(torch.float64)


def _totals(x: Ragged, steps: Tensor) -> Tensor:
    """Sums of numbers of each step, (total,), over each row."""
    row = torch.arange(len(x)).repeat_interleave(x.lengths)
    return torch.zeros(len(x), dtype=torch.float64).index_add_(0, row, steps)


def _moments(x: Ragged, j: int) -> Tensor:
    """Mean, log-spread and correlation of neighbours within each sequence, and its share of gaps; (n, 4)."""
    cells = _column(x, j)
    seen = ~cells.isnan()
    count = _totals(x, seen.double()).clamp(min=1)
    mean = _totals(x, cells.nan_to_num(0.0)) / count
    centred = torch.where(seen, cells.nan_to_num(0.0) - mean.repeat_interleave(x.lengths), 0.0)
    variance = _totals(x, centred.square()) / count
    before = torch.cat([centred.new_zeros(1), centred[:-1]]) * (x.places > 0)
    lagged = _totals(x, centred * before) / (variance * count).clamp(min=1e-300)
    return torch.stack([mean, variance.sqrt().log1p(), lagged, 1 - count / x.lengths], 1)


def _codes(x: Ragged, j: int) -> Tensor:
    """Codes of the steps, -1 where missing, (total,)."""
    return _column(x, j).nan_to_num(-1.0).long()


def _pairs(x: Ragged, j: int) -> Tensor:
    """A code of each step and the one before it, -2 for the first of a sequence."""
    code = _codes(x, j)
    before = torch.cat([code[:1], code[:-1]])
    return torch.where(x.places > 0, (before + 1) * (1 << 32) + code + 1, -2)


def _frequent(x: Ragged, j: int) -> tuple[Tensor, Tensor]:
    kept = []
    for codes, most in ((_codes(x, j), _UNIGRAMS), (_pairs(x, j), _BIGRAMS)):
        values, counts = codes[codes != -2].unique(return_counts=True)
        kept.append(values[counts.argsort(descending=True, stable=True)[:most]])
    return kept[0], kept[1]


def _shares(codes: Tensor, x: Ragged, kept: Tensor) -> Tensor:
    """Frequency of each kept code among a sequence's steps, (n, kept)."""
    columns = [_totals(x, (codes == code).double()) / x.lengths for code in kept]
    return torch.stack(columns, 1) if columns else torch.zeros(len(x), 0, dtype=torch.float64)


def at_least(n: int, least: int, what: str, do: str = "") -> None:
    """Refuses samples too small for a test.

    Raises:
        DataError: naming the number of rows.
    """
    if n < least:
        raise DataError(f"{n} rows for {what}", f"at least {least} in each sample", do or "Draw more")


def positive(name: str, value: Any, least: int = 1) -> int:
    """A whole number from ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name}={value!r}", f"a whole number, at least {least}")
    return int(value)
