"""Scores that arrive from many workers, put into files in the order of the rows."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from probgen.errors import DataError, ProbgenError
from probgen.evaluate.table.engines import Event, Task
from probgen.evaluate.table.job import SCORES, Job, Stats
from probgen.evaluate.table.tally import Tally
from probgen.events import Panel
from probgen.frames import sinks
from probgen.frames.streams import Part

__all__ = ["Merge", "advised"]


def advised(problem: ProbgenError, parts: int) -> str:
    """What to do about a part that can't be scored: one of several can be left out."""
    way = "skip_corrupt=True, --skip-corrupt, scores the other files"
    return f"{problem.do}; {way}".lstrip("; ") if parts > 1 and isinstance(problem, DataError) else problem.do


class Merge:
    """Deals out the tasks of some parts, and writes what comes back: part after part, row after row.

    Arguments:
        place: The file of a part's scores and its label; None where the scores are only kept, or only counted.
        folder: Whether scores name the part that they are of.
        keep: Whether the tables of scores stay in memory.
        skip: Whether a part that can't be scored is left out, not an error.
    """

    def __init__(
        self,
        job: Job,
        parts: list[Part],
        place: Callable[[Part], tuple[Path, Mapping[str, Any]] | None],
        *,
        folder: bool,
        keep: bool,
        skip: bool,
    ) -> None:
        self.job, self.parts, self.place = job, parts, place
        self.folder, self.keep, self.skip = folder, keep, skip
        self.tally, self.tables, self.skipped = Tally(), [], {}  # type: tuple[Tally, list[Any], dict[str, str]]
        self.scored = 0  # rows that arrived
        self.whose: list[int] = []  # the part of each task
        self.ends: dict[int, int] = {}  # of a part all of whose tasks are known: the number of the next one's first
        self.buffer: dict[int, list[tuple[Any, Stats]]] = {}
        self.over: dict[int, ProbgenError | None] = {}  # tasks that ended
        self.broken: dict[int, ProbgenError] = {}
        self.part = self.task = 0  # the first that is not written yet
        self.sink: sinks.Sink | None = None
        self.pending: list[Any] = []
        self.stats: list[Stats] = []
        self.labels: set[Any] = set()

    # The tasks

    def tasks(self) -> Iterator[Task]:
        """The tasks of all parts, in order."""
        for place, part in enumerate(self.parts):
            try:
                for about, rows in self._pieces(part):
                    if place in self.broken:
                        break
                    self.whose.append(place)
                    yield Task(len(self.whose) - 1, about, rows)
            except DataError as problem:
                self.broken[place] = problem
            self.ends[place] = len(self.whose)

    def _pieces(self, part: Part) -> Iterator[tuple[dict[str, Any], Any]]:
        whole = isinstance(self.job.model.event, Panel)
        if part.kind == "parquet" and not whole:
            yield from ((about, None) for about in part.tasks(self.job.most))
            return
        first, waiting = 0, []
        for rows in part.tables(self.job.columns, self.job.types, self.job.batch):
            if whole:
                waiting.append(rows)
                continue
            yield {"name": part.name, "first": first}, rows
            first += rows.num_rows
        if waiting:
            yield {"name": part.name, "first": 0}, sinks.joined(waiting)

    # What comes back

    def take(self, event: Event) -> None:
        """An event of an engine.

        Raises:
            ProbgenError: a part can't be scored, and is not to be skipped; it is named.
        """
        if event.scores is None:
            self.over[event.number] = event.error
        elif self.whose[event.number] not in self.broken:
            self.scored += event.scores[1].n
            self.buffer.setdefault(event.number, []).append(event.scores)
        self.advance()

    def advance(self) -> None:
        """Writes all that is next in order."""
        while self.part < len(self.parts):
            if self.part in self.broken:
                self._drop()
            if self.ends.get(self.part) == self.task:
                self._finish()
            elif self.part in self.broken and not self.skip:
                self._refuse()
            elif not self._next():
                return

    def _next(self) -> bool:
        """Writes what has come of the task at hand; whether it has ended."""
        if self.task >= len(self.whose):
            return False
        for table, stats in self.buffer.pop(self.task, ()):
            self._write(table, stats)
        if self.task not in self.over:
            return False
        if problem := self.over.pop(self.task):
            self.broken.setdefault(self.part, problem)
        self.task += 1
        return True

    def end(self) -> None:
        """Sees that nothing is left when the engine has no more events."""
        self.advance()
        if self.part < len(self.parts):
            raise RuntimeError(f"{self.parts[self.part].name} was left half scored: a defect of probgen")

    def _write(self, table: Any, stats: Stats) -> None:
        part = self.parts[self.part]
        if self.part in self.broken:
            return
        if isinstance(self.job.model.event, Panel):
            self._refuse_twice(part, table)
        if self.folder and self.job.key is None:
            table = table.add_column(0, "file", sinks.constant(part.name, table.num_rows))
        self.stats.append(stats)
        if self.keep:
            self.pending.append(table)
        if (sink := self._sink(part)) is not None:
            sink.write(table)

    def _refuse_twice(self, part: Part, table: Any) -> None:
        """A sequence that goes on in another part would be scored as two."""
        found = set(table.column(0).to_pylist()) if self.folder else set()
        if twice := found & self.labels:
            self.broken[self.part] = DataError(
                f"{part.name} holds steps of sequence {next(iter(twice))!r}, and so does a part before it",
                "each sequence whole in one part", "Write the data again, partitioned by sequence",
            )  # fmt: skip
        self.labels |= found

    def _sink(self, part: Part) -> sinks.Sink | None:
        if self.sink is None and (place := self.place(part)) is not None:
            self.sink = sinks.Sink(*place).__enter__()
        return self.sink

    def _finish(self) -> None:
        """The part at hand is through: its file appears, or it is named among those left out."""
        part = self.parts[self.part]
        if self.part in self.broken:
            self._refuse()
        else:
            if not self.stats and (empty := self._sink(part)) is not None:
                empty.write(sinks.no_rows(self._columns()))
            if self.sink is not None:
                self.sink.__exit__(None, None, None)
                self.sink = None
            self.tally.add_all(self.stats)
            self.tables += self.pending
        self.stats, self.pending = [], []
        self.part += 1

    def _columns(self) -> dict[str, str]:
        numbers = ("log_prob", "stderr")
        keys = {self.job.key: "text"} if self.job.key else {**({"file": "text"} if self.folder else {}), "row": "whole"}
        return {**keys, **{name: "number" if name in numbers else "text" for name in SCORES}}

    def _refuse(self) -> None:
        """The part can't be scored: an error of its name, or a note where it may be skipped."""
        part, problem = self.parts[self.part], self.broken[self.part]
        named = problem.came if part.name in problem.came or part.kind == "frame" else f"{part.name}: {problem.came}"
        if not self.skip or not isinstance(problem, DataError):
            raise type(problem)(named, problem.wanted, advised(problem, len(self.parts))) from problem
        self.skipped[part.name] = str(problem)

    def _drop(self) -> None:
        """Half a file goes."""
        self.stats, self.pending = [], []
        if self.sink is not None:
            self.sink.__exit__(DataError, None, None)
            self.sink = None

    def close(self) -> None:
        """Leaves no half-written file."""
        self._drop()
