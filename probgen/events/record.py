"""Several parts observed together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, ParameterError, ProbgenError, ShapeError
from probgen.events.array import Array
from probgen.events.cells import Parts, Ragged, row_hash
from probgen.events.event import Checked, Event
from probgen.events.outside import blanked, named, plain
from probgen.events.text import Text


@dataclass(frozen=True, repr=False, init=False)
class Record(Event):
    """Several parts observed together, each its own event: checked data are Parts.

    A part may be missing: left out or None where no row has it; in single rows None among texts, and a row that is NaN
    (or None) throughout among numbers. A row needs one part at least.
    """

    parts: Mapping[str, Event]

    def __init__(self, /, **parts: Event) -> None:
        if not parts or not all(isinstance(part, Event) for part in parts.values()):
            raise ParameterError(f"parts={parts!r}", "events by name: Record(image=Array(...), caption=Text())")
        object.__setattr__(self, "parts", parts)

    @property
    def measure(self) -> str:
        return self.measure_of(self.parts)

    def measure_of(self, names: Any) -> str:
        """The measure of some parts alone."""
        return " x ".join(f"{name}:{self.parts[name].measure}" for name in sorted(names))

    def check(self, data: Any) -> Checked:
        given = dict(zip(frames.distinct_names(data), data.values(), strict=True)) if isinstance(data, Mapping) else {}
        if not isinstance(data, Mapping) or not set(given) <= set(self.parts):
            came = list(data) if isinstance(data, Mapping) else type(data).__name__
            raise ShapeError(
                f"A record of {came}", f"a dict with the parts {sorted(self.parts)}", "None = part missing"
            )
        checked, seen, sizes = {}, {}, {}
        for name, part in self.parts.items():
            if given.get(name) is not None:
                with named(f"Part {name!r}"):
                    found, seen[name] = _with_gaps(part, given[name])
                sizes[name] = len(seen[name])
                if found is not None:
                    checked[name] = found
        if len(set(sizes.values())) > 1:
            raise ShapeError(f"Parts of {sizes} rows", "the same number of rows in each part", "None = part missing")
        if not checked:
            wanted = f"at least one of {sorted(self.parts)}"
            raise ShapeError("A record in which all parts are missing", wanted, "None = part missing")
        return self._joined(checked, {name: seen[name] for name in checked})

    def _joined(self, checked: dict[str, Checked], seen: dict[str, Tensor]) -> Checked:
        first, rows = next(iter(checked.values())).about, len(next(iter(checked.values())))
        empty = ~torch.stack(list(seen.values())).any(0)
        if bool(empty.any()):
            i = int(empty.nonzero()[0])
            came = f"Row {first.keys[i]} has no part at all, {int(empty.sum())} such rows"
            raise DataError(came, "one part a row at least", "Drop the rows")
        prints = {name: part.about for name, part in checked.items()}
        there = {name: seen.get(name, torch.zeros(rows, dtype=torch.bool)) for name in self.parts}
        about = replace(
            first,
            content=lambda: _joint_hash({name: p.content for name, p in prints.items()}, there),
            dims=np.sum([np.where(seen[name].numpy(), p.dims, 0) for name, p in prints.items()], axis=0),
            event=repr(self),
            measure=self.measure_of(checked),
            integers=all(p.integers for p in prints.values()),
            bytes=None,
        )
        forms = {name: part.form for name, part in checked.items()}
        values = {name: checked[name].x if name in checked else None for name in self.parts}
        return Checked(Parts(values, there), about, forms)

    def restore(self, x: Mapping[str, Any], form: Any = "dict") -> dict[str, Any]:
        """Each part in its own form, where ``form`` names them by part, else in the form natural to it.

        A part that a row lacks comes back as None among texts, as NaN among numbers. Parts in groups come as (groups,
        rows, ...), texts as lists of lists.
        """
        forms = form if isinstance(form, Mapping) else {}
        restored: dict[str, Any] = {}
        for name, part in self.parts.items():
            given = (forms[name],) if name in forms else ()
            value = x.get(name)
            if isinstance(value, Ragged) and isinstance(part, Text) and isinstance(x, Parts):
                restored[name] = _grouped(_texts(part, value, x.seen[name], given), x.groups)
            elif isinstance(value, Tensor) and isinstance(part, Array) and getattr(x, "groups", 1) > 1:
                restored[name] = part.restore(value.reshape(x.groups, -1, *part.shape), *given)  # type: ignore
            else:
                restored[name] = None if value is None else part.restore(value, *given)
        return restored


def _with_gaps(part: Event, data: Any) -> tuple[Checked | None, Tensor]:
    """Checked data of one part, None where no row has it; and which rows do. Rows that lack it hold a filling.

    They are checked with another row in their place, so that messages count rows as the user does.
    """
    blank = _blank(part, data)
    if blank is not None and len(blank) and blank.all():
        return None, torch.zeros(len(blank), dtype=torch.bool)
    if blank is None or not blank.any():
        checked = part.check(data)
        seen = torch.ones(len(checked), dtype=torch.bool)
        if isinstance(checked.x, Tensor) and bool((gaps := checked.x.isnan()).any()):
            seen = ~gaps.reshape(len(seen), -1).all(1)
        return checked, seen
    checked = part.check(_filled(data, blank))
    seen = torch.from_numpy(~blank)
    content = checked.about
    about = replace(content, content=lambda: content.content, dims=np.where(blank, 0, content.dims))
    return Checked(_emptied(checked.x, seen), about, checked.form), seen


def _blank(part: Event, data: Any) -> np.ndarray | None:
    """Which rows lack the part, (n,), bool; None where its own check may say."""
    if not isinstance(part, Text | Array) or isinstance(data, str) or getattr(part, "missing", False):
        return None
    if isinstance(data, list | tuple):
        none = np.array([row is None for row in data], dtype=bool)
        if none.any():
            return none
    if frames.is_frame(data):
        return None
    try:
        values, missing = plain(data)
    except ProbgenError:
        return None  # its own check says what is wrong
    if not values.ndim or not len(values):
        return None
    if values.dtype.kind == "f" and bool(np.isnan(values[..., :1]).any()):
        missing = missing | np.isnan(values)
    return np.asarray(missing.reshape(len(values), -1).all(1)) if values.size else None


def _filled(data: Any, blank: np.ndarray) -> Any:
    other = int(np.flatnonzero(~blank)[0])
    if isinstance(data, list | tuple):
        return [data[other] if gap else row for row, gap in zip(data, blank, strict=True)]
    if isinstance(data, Tensor):
        return torch.where(torch.from_numpy(blank).reshape(-1, *[1] * (data.ndim - 1)), data[other], data)
    values, missing = plain(data)
    cells = blanked(values, missing) if missing.any() else values.copy()
    cells[blank] = cells[other]
    return cells


def _emptied(x: Any, seen: Tensor) -> Any:
    """Checked data with a filling in the rows that lack it."""
    if isinstance(x, Ragged):
        none = torch.full((1,), -1, dtype=x.values.dtype)
        rows = [row if there else none for row, there in zip(x.split(), seen.tolist(), strict=True)]
        return Ragged(torch.cat(rows), torch.where(seen, x.lengths, 1))
    x[~seen] = torch.nan
    return x


def _texts(part: Text, x: Ragged, seen: Tensor, form: tuple) -> list:
    if bool(seen.all()):
        return part.restore(x, *form)
    there = part.restore(x[seen], *form) if bool(seen.any()) else []
    found = iter(there)
    return [next(found) if one else None for one in seen.tolist()]


def _grouped(rows: list, groups: int) -> list:
    size = len(rows) // groups
    return rows if groups == 1 else [rows[i * size : (i + 1) * size] for i in range(groups)]


def _joint_hash(parts: Mapping[str, np.ndarray], seen: Mapping[str, Tensor]) -> np.ndarray:
    """One hash a row: the sum of those of the parts that it has, with their names."""
    total = np.zeros(len(next(iter(seen.values()))), np.uint64)
    for name, own in parts.items():
        salt = row_hash(np.frombuffer(name.encode(), dtype=np.uint8)[None])
        total += np.where(seen[name].numpy(), row_hash((own ^ salt)[:, None].view(np.int64)), np.uint64(0))
    return total
