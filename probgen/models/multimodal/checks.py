"""What a multimodal model checks of its arguments."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from probgen.errors import ParameterError, ShapeError, nearest
from probgen.events import Event, Parts, Record, Text

__all__ = ["conditions", "joined", "key", "refuse_twice", "sizes", "weights", "whole"]


def conditions(event: Event, given: Any, data: Any) -> Parts:
    """Checked parts that are given: one row for all rows of data, or one a row; without data any number.

    Raises:
        ParameterError: no dict of parts, an unknown part, or one that the data have too.
        ShapeError: another number of rows.
    """
    parts = cast(Record, event).parts
    if not isinstance(given, Mapping) or not given:
        came = f"given={given!r:.60}".partition("\n")[0]
        raise ParameterError(came, "parts by name", f"given={{{next(iter(parts))!r}: ...}}")
    for name in given:
        if name not in parts:
            raise ParameterError(f"There is no part {name!r}", "", nearest(str(name), parts))
    found = cast(Parts, event.check(given).x)
    if data is None:
        return found
    refuse_twice(found, [name for name in data.x if data.x[name] is not None])
    if len(found) == 1:
        found = found.take(torch.zeros(len(data), dtype=torch.int64))
    if len(found) != len(data):
        raise ShapeError(f"given= has {len(found)} rows for {len(data)} rows of data", "one row a row, or one")
    return found


def refuse_twice(given: Mapping[str, Any], asked: Sequence[str]) -> None:
    """Raises ParameterError where a part stands on both sides."""
    if twice := [name for name in asked if given.get(name) is not None]:
        came = f"The part {twice[0]!r} is both given and asked"
        raise ParameterError(came, "each part on one side", "Leave it out of one")


def sizes(latent_dim: int, hidden: Sequence[int], channels: Sequence[int], text: int) -> None:
    """Raises ParameterError unless these are widths of networks."""
    found = (latent_dim, *hidden, *channels, text)
    if not all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in found):
        came = f"latent_dim={latent_dim!r}, hidden={hidden!r}, channels={channels!r}, text={text!r}"
        raise ParameterError(came, "whole numbers from 1")
    if channels and not hidden:
        raise ParameterError(f"channels={channels!r} with hidden=()", "hidden layers between", "hidden=(256,)")


def weights(given: Mapping[str, float] | None, parts: Mapping[str, Event]) -> dict[str, float] | None:
    """Weights of all parts in their order; None stays.

    Raises:
        ParameterError: a part without one, or one that is not positive.
    """
    if given is None:
        return None
    right = isinstance(given, Mapping) and set(given) == set(parts)
    if not right or not all(isinstance(w, int | float) and 0 < w < math.inf for w in given.values()):
        raise ParameterError(f"weights={given!r}", f"a positive number for each of {sorted(parts)}")
    return {name: float(given[name]) for name in parts}


def key(name: str) -> str:
    """A part's name as a ModuleDict takes it."""
    return f"of_{name.encode().hex()}" if not name.isidentifier() or hasattr(nn.ModuleDict, name) else name


def joined(names: Sequence[str]) -> str:
    """The variable that some parts are together."""
    return ",".join(sorted(names))


def whole(event: Event) -> bool:
    """Whether float32 holds its cells exactly."""
    levels = getattr(event, "levels", None)
    most = max(levels) if isinstance(levels, tuple) else levels or 1 << 24
    return isinstance(event, Text) or most < 1 << 24
