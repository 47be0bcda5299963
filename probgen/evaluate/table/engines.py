"""Who does the work: this process, or a pool of others that are replaced when they die."""

import os
import queue
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from probgen import store
from probgen.errors import ParameterError, ProbgenError
from probgen.evaluate.table.job import Job, Scores, Stats, untold
from probgen.evaluate.worker import receive, send
from probgen.frames import sinks

__all__ = ["Event", "Here", "Pool", "Task", "Window", "cores", "payload_of"]

_LIVES = 5  # workers that one task may cost


class Task(NamedTuple):
    """A piece of work.

    Arguments:
        number: Tasks are numbered from 0; their scores are written in that order.
        about: A piece of a file, as ``streams.read`` takes it, or the name of a part and the number of its first row.
        rows: A pyarrow.Table, where they come with the task.
    """

    number: int
    about: Mapping[str, Any]
    rows: Any = None


class Event(NamedTuple):
    """A batch of scores of a task; without one the task has ended, with an error or well."""

    number: int
    scores: Scores | None = None
    error: ProbgenError | None = None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def payload_of(task: Task) -> bytes:
    return b"" if task.rows is None else sinks.packed(task.rows)


class Here:
    """This process."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """The events of all tasks, in order."""
        for index, about, rows in tasks:
            try:
                found = self.job.batches(about) if rows is None else self.job.of_rows(rows, about["first"])
                for scores in found:
                    yield Event(index, scores)
            except ProbgenError as problem:
                yield Event(index, error=problem)
            else:
                yield Event(index)


class Window:
    """Which tasks may begin: none ``size`` beyond the first that has not ended, so that memory stays bounded."""

    def __init__(self, tasks: Iterable[Task], size: int) -> None:
        self.tasks, self.size = iter(tasks), size
        self.open: set[int] = set()
        self.held: Task | None = None

    def ready(self) -> Iterator[Task]:
        """Tasks that may begin now."""
        while (task := self.held or next(self.tasks, None)) is not None:
            self.held = task
            if task.number - min(self.open, default=task.number) >= self.size:
                return
            self.held = None
            self.open.add(task.number)
            yield task


class Pool:
    """Processes ``python -m probgen.evaluate.worker``, each served by a thread of this one.

    A worker that dies is replaced, and its task is done again from the start; batches that had arrived are kept, since
    the same rows give the same numbers.

    Raises:
        StoreError: the model can't travel (somebody's program). ParameterError: one task killed five workers.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self.job, self.workers = job, workers
        self.todo: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self.processes: dict[int, subprocess.Popen] = {}
        self.threads: list[threading.Thread] = []
        self.notes: set[str] = set()
        self.closing = False

    def __enter__(self) -> Self:
        about = self.job.to_json()
        self.folder = tempfile.TemporaryDirectory(prefix="probgen-")
        try:
            store.save(self.job.model, Path(self.folder.name) / "model")
        except ProbgenError:
            self.folder.cleanup()
            raise
        threads = max(1, cores() // self.workers)
        self.start = {"model": str(Path(self.folder.name) / "model"), "job": about, "threads": threads}
        for place in range(self.workers):
            thread = threading.Thread(target=self._serve, args=(place,), daemon=True)
            self.threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing = True
        for _thread in self.threads:
            self.todo.put(None)
        while any(thread.is_alive() for thread in self.threads):
            for process in [*self.processes.values()]:  # again and again: a thread may just be beginning one
                with suppress(OSError):
                    process.kill()
            for thread in self.threads:
                thread.join(0.05)
        self.folder.cleanup()

    def run(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """The events of all tasks; those of one task are in order, tasks may overlap."""
        window = Window(tasks, self.workers + 2)
        while True:
            for task in window.ready():
                self.todo.put(task)
            if not window.open:
                return
            event = self.events.get()
            if isinstance(event, BaseException):
                raise event
            if event.scores is None:
                window.open.remove(event.number)
            yield event

    def _serve(self, place: int) -> None:
        """Takes tasks until there are no more; what goes wrong is raised where the events are read."""
        try:
            while (task := self.todo.get()) is not None and not self.closing:
                self._do(place, task)
        except BaseException as problem:
            if not self.closing:
                self.events.put(problem)
        finally:
            self._stop(place)

    def _do(self, place: int, task: Task) -> None:
        have, payload = 0, payload_of(task)
        for _ in range(_LIVES):
            process = self._ready(place)
            with suppress(BrokenPipeError):
                send(process.stdin, {**task.about, "have": have}, payload)  # type: ignore[arg-type]
                while (message := receive(process.stdout)) is not None:  # type: ignore[arg-type]
                    if message[0]["is"] != "batch":
                        self._end(task, message[0])
                        return
                    have += 1
                    scores = sinks.unpacked(message[1]), Stats.from_json(message[0]["stats"])
                    self.events.put(Event(task.number, scores))
            self._stop(place)
            if self.closing:
                return
        raise ParameterError(
            f"{task.about['name']}: {_LIVES} workers died, one after the other, over the same rows",
            f"memory for {self.workers} workers and {self.job.batch} rows at once",
            "Give fewer workers: workers=1, --workers 1",
        )

    def _end(self, task: Task, about: Mapping[str, Any]) -> None:
        for note in about["notes"]:
            if note not in self.notes:
                self.notes.add(note)
                warnings.warn(note, stacklevel=2)
        if about["is"] == "defect":
            raise RuntimeError(f"A worker failed at {task.about['name']}:\n{about['text']}")
        self.events.put(Event(task.number, error=untold(about["error"]) if about["is"] == "error" else None))

    def _ready(self, place: int) -> subprocess.Popen:
        """The worker of that place, a new one where there is none."""
        for _ in range(_LIVES):
            process = self.processes.get(place)
            if process is not None and process.poll() is None:
                return process
            process = self.processes[place] = _begin()
            with suppress(BrokenPipeError):
                send(process.stdin, self.start)  # type: ignore[arg-type]
                if receive(process.stdout) is not None:  # type: ignore[arg-type]
                    return process
            self._stop(place)
            if self.closing:
                break
        raise ParameterError(
            f"{_LIVES} workers died before they could begin", "room for their start", "See what they said above"
        )

    def _stop(self, place: int) -> None:
        if (process := self.processes.pop(place, None)) is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    stream.close()  # type: ignore[union-attr]


def _begin() -> subprocess.Popen:
    """A worker that finds this probgen, and no module of the folder that it happens to start in."""
    place = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "probgen.evaluate.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
