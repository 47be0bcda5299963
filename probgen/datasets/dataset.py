"""Data with their event, and how their rows are split."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from probgen.errors import ParameterError
from probgen.events import Checked, Event, Panel, Ragged, Series

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data with their event.

    Arguments:
        name: Of the data set.
        x: Rows, in a form that the event takes.
        event: What one row is.
        about: Source, in a line.
        log_density: True log density of rows in nats, where it is known: (n, ...) -> (n,).
        held: Numbers of the rows that everyone who publishes figures holds out, where there is such a custom.
    """

    name: str
    x: Any
    event: Event
    about: str
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    held: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.event.check(self.x))

    def split(self, test: float = 0.2, seed: int = 0) -> tuple[Any, Any]:
        """Training and held-out rows, in the form of the data; one single series is split in time.

        Where custom holds certain rows out, these are held out, whatever the share and the seed.

        Raises:
            ParameterError: a share outside (0, 1), or one that leaves a side without rows; a negative seed.
        """
        if not 0 < test < 1:
            raise ParameterError(f"test={test}", "a share between 0 and 1")
        if seed < 0:
            raise ParameterError(f"seed={seed}", "a whole number from 0")
        checked = self.event.check(self.x)
        if self.in_time:
            steps = checked.x.values
            held = _held_out(test, len(steps), "step")
            parts = [Ragged(part, torch.tensor([len(part)])) for part in (steps[:-held], steps[-held:])]
            return tuple(self.restore(replace(checked, x=part)) for part in parts)  # type: ignore[return-value]
        if self.held is not None:
            rest = np.setdiff1d(np.arange(len(checked)), self.held)
            return self.restore(checked[rest]), self.restore(checked[self.held])
        held = _held_out(test, len(checked), "row")
        order = np.random.default_rng(seed).permutation(len(checked))
        first, second = (self.restore(checked[np.sort(rows)]) for rows in (order[held:], order[:held]))
        return first, second

    @property
    def in_time(self) -> bool:
        """Whether the data are one single series: its steps are split in time, never at random."""
        return isinstance(self.event, Series | Panel) and len(self) == 1

    def take(self, rows: np.ndarray) -> Any:
        """Some rows, by number, in the form of the data."""
        return self.restore(self.event.check(self.x)[rows])

    def restore(self, checked: Checked) -> Any:
        """Checked rows in the form of the data; the sequences of a panel keep their labels."""
        if isinstance(self.event, Panel):
            return self.event.restore(checked.x, checked.form, checked.about.keys)
        return self.event.restore(checked.x, checked.form)


def _held_out(test: float, n: int, what: str) -> int:
    """How many of n rows or steps are held out; at least one, and at least one is left."""
    held = max(1, round(test * n))
    if held >= n:
        raise ParameterError(f"test={test} of {n} {what}{'s' * (n != 1)}", f"at least one {what} on each side")
    return held
