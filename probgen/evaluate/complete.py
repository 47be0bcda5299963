"""Rows without missing cells: what families and tests that need every cell can be compared on."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from probgen.errors import DataError
from probgen.events import Checked, Event, Panel, Ragged

__all__ = ["barred", "complete_rows", "incomplete", "left_out", "offered"]


def incomplete(checked: Checked) -> np.ndarray:
    """Which rows (of sequences: which sequences) have a missing cell, (n,), bool."""
    x = checked.x
    if isinstance(x, Ragged):
        steps = x.values.isnan().reshape(len(x.values), -1).any(1).numpy()
        return x.sums(steps.astype(float)) > 0
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.isnan().reshape(len(x), -1).any(1).numpy()
    return np.zeros(len(checked), dtype=bool)


def complete_rows(event: Event, x: Any) -> tuple[Any, np.ndarray]:
    """The rows without missing cells, in the form of x, and which they are, (n,), bool.

    Raises:
        DataError: no row is complete.
    """
    checked = event.check(x)
    kept = ~incomplete(checked)
    if kept.all():
        return x, kept
    if not kept.any():
        raise DataError(f"All {len(kept)} rows have missing cells", "a complete row", "Leave complete_rows out")
    some = checked[np.flatnonzero(kept)]
    keys = {"keys": some.about.keys} if isinstance(event, Panel) else {}
    found = event.restore(some.x, checked.form, **keys)
    if str(checked.form).startswith("pandas") and not isinstance(event, Panel):
        found.index = some.about.keys
    return found, kept


def left_out(kept: np.ndarray) -> str:
    """What a reader should know of rows that were left out; empty where none were."""
    some = int((~kept).sum())
    what = f"{some} of {len(kept)} rows {'has' if some == 1 else 'have'} missing cells and {_were(some)} left out"
    return f"{what} (complete rows): the numbers are about complete rows alone." if some else ""


def barred(reasons: Iterable[str]) -> bool:
    """Whether a reason for leaving a model out is that it needs every cell."""
    return any("needs every cell" in why or "missing cells" in why for why in reasons)


def offered(gaps: np.ndarray) -> str:
    """What to do about gaps, of the rows to score or of those to fit alone, that keep families or tests out."""
    some = int(gaps.sum())
    if not some:
        way = "fit_suitable(..., complete_rows=True) (--complete-rows) fits all families to the others"
        return f"Rows to fit have missing cells: {way}."
    what = f"{some} of {len(gaps)} rows {'has' if some == 1 else 'have'} missing cells"
    return f"{what}: complete_rows=True (--complete-rows) compares all families, and their samples, on the others."


def _were(n: int) -> str:
    return "was" if n == 1 else "were"
