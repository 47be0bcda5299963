"""The door to Dask: tasks on a scheduler that runs already, or on processes of this machine."""

import dataclasses
import logging
import socket
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from urllib.parse import urlsplit

from probgen import store
from probgen.errors import MissingExtra, ParameterError, ProbgenError
from probgen.evaluate.table.engines import Event, Task, Window, cores, payload_of
from probgen.evaluate.table.job import Job, Stats, digest_of, told, untold
from probgen.frames import sinks

__all__ = ["Cluster"]

_PATIENCE, _START = 5, 120  # seconds for a scheduler to answer, and for processes to begin
_LOADED: dict[str, Job] = {}  # of a worker: the job at hand


class Cluster:
    """Workers of Dask. The model travels as the bytes that ``store.save`` writes; the scores come back as Arrow's.

    A worker that dies is replaced by Dask, which gives its task to another.

    Arguments:
        workers: Of a cluster on this machine; None takes one a core.
        scheduler: Address of a cluster that runs already, such as tcp://10.0.0.1:8786. Its workers need probgen, and
            the data under the same paths.

    Raises:
        MissingExtra: dask.distributed is not installed.
        ParameterError: no scheduler answers there, or it has no workers.
    """

    def __init__(self, job: Job, workers: int | None, scheduler: str | None) -> None:
        self.job, self.workers, self.scheduler = job, workers or cores(), scheduler
        self.held = ExitStack()
        self.client: Any = None

    def __enter__(self) -> Self:
        try:
            import distributed
        except ImportError as missing:
            raise MissingExtra("distributed", "dask") from missing
        load: dict[str, Any] = {
            "digest": digest_of(self.job.model),
            "job": self.job.to_json(),
            "files": _files(self.job.model),
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                self.client = self._client(distributed)
            self.size = self._await_workers()
            load["threads"] = max(1, cores() // self.size) if self.scheduler is None else 0
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of its size: no scattering, which a dead worker undoes
                self.load = self.client.submit(_kept, load, pure=False)
        except BaseException:
            self.held.close()
            raise
        return self

    def _client(self, distributed: Any) -> Any:
        address: Any = self.scheduler
        if address is None:
            from distributed.deploy.subprocess import SubprocessCluster

            # processes that import nothing of the caller's script: no main guard is needed
            address = self.held.enter_context(
                SubprocessCluster(
                    n_workers=self.workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR
                )
            )
        else:
            _reachable(address)
        try:
            return self.held.enter_context(distributed.Client(address, timeout=_PATIENCE, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as problem:
            raise _nobody(str(address), problem) from problem

    def _await_workers(self) -> int:
        """The number of workers, once all of ours or one of somebody's cluster are there."""
        own = self.scheduler is None
        try:
            self.client.wait_for_workers(self.workers if own else 1, timeout=_START if own else _PATIENCE)
        except TimeoutError as problem:
            came = "No worker of a new cluster began" if own else f"The scheduler {self.scheduler} has no workers"
            raise ParameterError(came, "at least one", "Start some: dask worker ADDRESS") from problem
        return len(self.client.scheduler_info(n_workers=-1)["workers"])

    def __exit__(self, *_: object) -> None:
        self.held.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[Event]:
        """The events of all tasks, in the order in which tasks end."""
        import distributed

        window, done = Window(tasks, 2 * self.size + 2), distributed.as_completed(loop=self.client.loop)
        whose: dict[str, Task] = {}
        while True:
            for task in window.ready():
                future = self.client.submit(_perform, self.load, dict(task.about), payload_of(task), pure=False)
                whose[future.key] = task
                done.add(future)
            if not window.open:
                return
            future = next(done)
            task = whose.pop(future.key)
            yield from self._events(task, future)
            future.release()
            window.open.remove(task.number)

    def _events(self, task: Task, future: Any) -> Iterator[Event]:
        import distributed

        try:
            batches, ended = future.result()
        except distributed.KilledWorker as problem:
            raise ParameterError(
                f"{task.about['name']}: several workers of the cluster died over the same rows",
                "memory for the model and its batches on each worker", "Give fewer or larger workers",
            ) from problem  # fmt: skip
        for stats, table in batches:
            yield Event(task.number, (sinks.unpacked(table), Stats.from_json(stats)))
        yield Event(task.number, error=untold(ended) if ended else None)


def _kept(load: dict[str, Any]) -> dict[str, Any]:
    """The job and the model's bytes, as something that Dask makes again where a worker has lost it."""
    return load


def _perform(load: Mapping[str, Any], task: Mapping[str, Any], payload: bytes) -> tuple[list, dict | None]:
    """On a worker: the batches of a task as (figures, Arrow bytes), and the error that ended it."""
    job, found = _job(load), []
    try:
        for table, stats in job.batches(task, payload):
            found.append((dataclasses.asdict(stats), sinks.packed(table)))
    except ProbgenError as problem:
        return found, told(problem)
    return found, None


def _job(load: Mapping[str, Any]) -> Job:
    """The job on this worker, loaded once."""
    import torch

    name = f"{load['digest']} {load['job']}"
    if name not in _LOADED:
        if load["threads"]:
            torch.set_num_threads(load["threads"])
        with TemporaryDirectory(prefix="probgen-") as folder:
            for path, content in load["files"].items():
                (Path(folder) / path).write_bytes(content)
            model = store.load(folder)
        _LOADED.clear()
        _LOADED[name] = Job.from_json(model, load["job"])
    return _LOADED[name]


def _files(model: Any) -> dict[str, bytes]:
    with TemporaryDirectory(prefix="probgen-") as folder:
        place = store.save(model, Path(folder) / "model")
        return {path.name: path.read_bytes() for path in place.iterdir()}


def _reachable(address: str) -> None:
    """Sees that somebody listens, before Dask tries again and again."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ParameterError(f"scheduler={address!r}", "an address such as tcp://127.0.0.1:8786", "Check it")
    if parts.scheme not in ("tcp", "tls"):
        return
    try:
        with suppress(socket.timeout), socket.create_connection((host, port), timeout=_PATIENCE):
            return
    except OSError as problem:
        raise _nobody(address, problem) from problem
    raise _nobody(address, TimeoutError(f"no answer in {_PATIENCE} s"))


def _nobody(address: str, problem: BaseException) -> ParameterError:
    return ParameterError(
        f"No scheduler of Dask answers at {address} ({problem or type(problem).__name__})",
        "a cluster that runs",
        "Start one with: dask scheduler; dask worker ADDRESS. Or leave it out: processes of this machine are taken",
    )
