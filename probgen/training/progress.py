"""A line on the terminal while something long runs."""

import sys
import time
from typing import Any, Self

from probgen.ranks import is_first

__all__ = ["Progress"]


class Progress:
    """A line on the terminal: what, how far, the figure that matters, items/s, time left. Silent when not a terminal.

    Arguments:
        show: None shows it on a terminal only. Of several ranks only the first one shows it.
    """

    def __init__(self, what: str, total: int, show: bool | None = None, items: int = 1) -> None:
        self.what, self.total, self.items = what, total, items
        self.show = (sys.stderr.isatty() if show is None else show) and is_first()
        self.first, self.done, self.began = 0, 0, 0.0
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Self:
        self.began = time.perf_counter()
        if self.show:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            ]
            self.bar = Bar(*columns, console=Console(stderr=True), transient=sys.stderr.isatty())
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, done: int) -> None:
        """Where a resumed run starts from."""
        self.first = self.done = done

    def advance(self, steps: int, note: str) -> None:
        self.to(self.done + steps, note)

    def to(self, done: int, note: str = "") -> None:
        self.done = done
        if self.bar is not None:
            rate = (done - self.first) * self.items / max(time.perf_counter() - self.began, 1e-9)
            self.bar.update(self.task, completed=done, note=f"{note}  {rate:,.0f} items/s" if note else "")
