"""Scores of tables of any size: files and folders in, files and folders out, in constant memory."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probgen import store
from probgen.errors import DataError, ParameterError, ProbgenError, nearest
from probgen.evaluate.table.engines import Here, Pool, cores
from probgen.evaluate.table.job import SCORES, Job, Stats, digest_of
from probgen.evaluate.table.merge import Merge, advised
from probgen.evaluate.table.places import Places
from probgen.evaluate.table.tally import Tally, stats_of
from probgen.frames import sinks, streams
from probgen.frames.streams import Part
from probgen.model import GenerativeModel
from probgen.training import Progress

__all__ = ["Scored", "score_table"]

_WORTH = 15.0  # seconds of work that more processes are begun for
_BATCH = 1 << 18  # rows of scores that are read back at once


@dataclass(frozen=True, eq=False)
class Scored:
    """What a run scored.

    Arguments:
        summary: Of all rows, those that an earlier run had scored among them: how many, the mean in nats with its
            errors and its kind, refusals.
        rows: Scored in this run.
        parts: Partitions that were scored in this run, by name.
        before: Rows of those that an earlier run had finished, by name.
        skipped: Why others were left out, by name.
        ignored: Columns of the data that the model does not read.
        output: Where the scores are; None where they are in ``table``.
        table: A pyarrow.Table, where no output was named.
        seed: Of the estimator's draws.
        seconds: Wall time.
    """

    summary: Tally
    rows: int
    parts: tuple[str, ...]
    before: Mapping[str, int]
    skipped: Mapping[str, str]
    ignored: tuple[str, ...]
    output: Path | None
    table: Any = field(repr=False)
    seed: int
    seconds: float

    def frame(self) -> Any:
        """All scores as a pyarrow.Table, in the order of the data; those of a large output take memory."""
        from probgen import frames

        return self.table if self.output is None else frames.read(self.output)

    def __repr__(self) -> str:
        counted = f"{self.rows} rows in {len(self.parts)} part{'s' * (len(self.parts) != 1)}"
        before = f", {sum(self.before.values())} rows of {len(self.before)} parts before" if self.before else ""
        left = f", {len(self.skipped)} parts skipped: {', '.join(list(self.skipped)[:5])}" if self.skipped else ""
        where = "" if self.output is None else f", in {self.output}"
        summary = f"; {self.summary}" if self.summary.n else ""
        return f"Scored({counted}{before}{left}{where}{summary})"


def score_table(
    model: GenerativeModel | str | os.PathLike,
    data: Any,
    output: str | os.PathLike | None = None,
    *,
    by: Any = None,
    seed: int | None = 0,
    key: str | None = None,
    engine: str = "processes",
    workers: int | None = None,
    scheduler: str | None = None,
    skip_corrupt: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    keep: bool = True,
    show: bool | None = None,
) -> Scored:
    """Scores every row of a table of any size: log p(row) in nats, and what kind of number it is.

    The numbers depend on neither the partitions nor the order of columns, the engine nor its workers: a row's random
    draws are keyed by the seed and its content. Memory is bounded by batches, not by the data.

    Arguments:
        model: Fitted, or where one is saved.
        data: A csv or Parquet file, a folder of Parquet files (each a partition), or a frame of pandas, polars, Arrow.
            Columns that the model does not know are left alone. A model of unnamed columns (events.Array) takes all
            columns but the key, in the order of the first partition. Sequences (events.Panel) stand whole in a part.
        output: A .parquet or .csv file; for a folder a folder, with one Parquet file a partition. Each file appears
            when it is whole. Columns: ``key``, or ``file`` (of a folder) and ``row``; then those of LogProb.frame().
        by: An estimator of probgen; None takes the family's own way.
        seed: Of the estimator's draws; None takes one from the system.
        key: A column whose cells stand beside the scores in place of row numbers.
        engine: "processes" or "dask".
        workers: Processes; 1 stays in this one; None takes as many as there are cores where the work is worth it.
        scheduler: Of Dask: the address of a cluster; None begins one on this machine.
        skip_corrupt: Leaves out partitions that can't be read or scored, and names them in ``skipped``.
        resume: Keeps the partitions that an earlier run finished, if model, data and options are still the same.
        overwrite: Replaces scores that are there.
        keep: Whether the scores are kept in memory where no output is named.
        show: Progress on standard error; None on a terminal only.

    Raises:
        DataError: data that can't be read or scored; the partition is named. StoreError: the output can't be written,
        exists, or was made from something else. ParameterError: options that don't go together, no scheduler there.
    """
    began = time.perf_counter()
    _check_options(engine, workers, scheduler)
    model, seed = _model(model), secrets.randbits(63) if seed is None else seed
    parts, folder = streams.parts_of(data)
    skipped: dict[str, str] = {}
    left = skipped if skip_corrupt else None
    parts, job, ignored, rows = _planned(model, data, parts, left, by=by, seed=seed, key=key)
    options = {"by": repr(by), "seed": seed, "key": key}
    about = {"model": digest_of(model), "options": options}
    place = None if output is None else Path(output)
    places = Places(place, data, folder, about, resume=resume, overwrite=overwrite)
    before = places.prepare(parts)
    todo = [part for part in parts if part.name not in before]
    total = sum(rows[part.name] for part in todo)

    def place_of(part: Part) -> tuple[Path, Mapping[str, Any]] | None:
        target = places.of(part)
        return None if target is None else (target, places.label(part))

    merge = Merge(job, todo, place_of, folder=folder, keep=keep and output is None, skip=skip_corrupt)
    if todo:
        _run(merge, _engine(job, todo, total, engine, workers, scheduler), total, show)
    skipped |= merge.skipped
    done = tuple(part.name for part in todo if part.name not in skipped)
    if not done and not before:
        raise _none_scored(data, skipped)
    summary, scored = merge.tally, merge.tally.n
    for part in (part for part in parts if part.name in before):
        summary.add_all(_scored_before(places.of(part)))
    if not summary.n:
        raise DataError(f"{data if output or folder else 'The data'} has no rows", "at least one row", "Check it")
    table = sinks.together(merge.tables) if merge.tables else None
    seconds = time.perf_counter() - began
    return Scored(summary, scored, done, before, skipped, tuple(ignored), place, table, seed, seconds)


def _scored_before(path: Path | None) -> Iterator[Stats]:
    """Figures of the scores in a file, batch by batch."""
    for part in streams.parts_of(path)[0]:
        yield from map(stats_of, part.tables(SCORES, {}, _BATCH))


def _none_scored(data: Any, skipped: Mapping[str, str]) -> DataError:
    """All parts were left out: the reasons of the first few."""
    told = [why if name in why else f"{name}: {why}" for name, why in [*skipped.items()][:3]]
    more = f" And {len(skipped) - 3} more." if len(skipped) > 3 else ""
    none = "The one file" if len(skipped) == 1 else f"None of the {len(skipped)} files"
    return DataError(f"{none} of {data} can{'not' * (len(skipped) == 1)} be scored. {' '.join(told)}{more}")


def _check_options(engine: str, workers: int | None, scheduler: str | None) -> None:
    if engine not in ("processes", "dask"):
        raise ParameterError(f"engine={engine!r}", "", nearest(str(engine), ("processes", "dask")))
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ParameterError(f"workers={workers!r}", "a whole number, at least 1, or None")
    if scheduler is not None and engine != "dask":
        raise ParameterError(f"scheduler={scheduler!r} for the engine {engine!r}", "engine='dask', --engine dask")
    if scheduler is not None and workers is not None:
        raise ParameterError("workers beside a scheduler", "one of them: the cluster has its own workers")


def _model(model: Any) -> GenerativeModel:
    if isinstance(model, str | os.PathLike):
        model = store.load(model) if Path(model).is_dir() else _wrapped(Path(model))
    if not isinstance(model, GenerativeModel):
        raise ParameterError(f"A {type(model).__name__} as the model", "a fitted model, or the path of one")
    model._check_fitted()
    return model


def _wrapped(path: Path) -> Any:
    from probgen import foreign  # it costs a start that most runs don't need

    return foreign.wrap(path)


def _planned(
    model: GenerativeModel,
    data: Any,
    parts: list[Part],
    skipped: dict[str, str] | None,
    *,
    by: Any,
    seed: int,
    key: str | None,
) -> tuple[list[Part], Job, list[str], dict[str, int]]:
    """Looks into every part before any is scored: the parts that can be, the job, columns left alone, rows by part."""
    kept: list[Part] = []
    rows: dict[str, int] = {}
    ignored: dict[str, None] = {}
    first: tuple[str, dict[str, str]] | None = None
    job: Job | None = None
    for part in parts:
        try:
            classes, index, rows[part.name] = part.about()
            if job is None or first is None:
                job, extra = Job.of(model, classes, index, by=by, seed=seed, key=key)
                first = part.name, classes
            else:
                streams.unmixed(first, part.name, classes, job.columns)
                extra = [name for name in classes if name not in job.columns]
        except DataError as found:
            if skipped is None:
                raise type(found)(found.came, found.wanted, advised(found, len(parts))) from found
            skipped[part.name] = str(found)
            continue
        kept.append(part)
        ignored.update(dict.fromkeys(extra))
    if job is None:
        raise _none_scored(data, skipped or {})
    return kept, job, list(ignored), rows


def _engine(job: Job, parts: list[Part], total: int, engine: str, workers: int | None, scheduler: str | None) -> Any:
    if engine == "dask":
        from probgen.evaluate.table.cluster import Cluster

        return Cluster(job, workers, scheduler)
    if workers is None:
        workers = _worthwhile(job, parts, total)
    return Here(job) if workers == 1 else Pool(job, workers)


def _worthwhile(job: Job, parts: list[Part], total: int) -> int:
    """One for work that is done before others have begun, and for models that can't travel; else one a core."""
    most = min(cores(), len(parts) if total <= job.most else cores())
    if most == 1 or total <= 64:
        return 1
    try:
        job.to_json()
        if type(job.model).__name__ not in store.FAMILIES:
            return 1
        return most if _seconds_a_row(job, parts[0]) * total > _WORTH else 1
    except (ProbgenError, StopIteration):
        return 1  # what is wrong will be said when its turn comes


def _seconds_a_row(job: Job, part: Part) -> float:
    """The time that a row costs, from so many first ones that it can be told."""
    table = next(part.tables(job.columns, job.types, job.batch))
    n, seconds = 8, 0.0
    while seconds < 0.05 and n < table.num_rows:
        n *= 8
        began = time.perf_counter()
        job.scored(table.slice(0, n), 0)
        seconds = time.perf_counter() - began
    return seconds / min(n, table.num_rows)


def _run(merge: Merge, engine: Any, total: int, show: bool | None) -> None:
    try:
        with engine, Progress("scoring", total, show) as progress:
            for event in engine.run(merge.tasks()):
                merge.take(event)
                progress.to(min(merge.scored, total), f"{merge.scored:,} of {total:,} rows")
            merge.end()
    finally:
        merge.close()
