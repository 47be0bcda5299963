"""Scoring large tables: python tests/benchmarks/bench_pipeline.py [start|speed|memory|workers] [rows]

start: what ``probgen score`` adds to importing torch, interleaved pairs.
speed: the whole of ``score_table`` beside reading the file and the model's own time, for exact families, in pairs.
memory: peak memory of the process tree at 1M rows and at 10M, one after the other.
workers: CPU and wall seconds of one and of two workers. Their ratio of wall times means something on free cores only.

CPU seconds are of the process and its children; wall seconds depend on what else runs.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NAMES = list("abcdefgh")
GROUP = 1 << 18
SCORE = (
    "import sys; from probgen.evaluate.table import score_table; print(score_table(*sys.argv[1:4], workers={}).rows)"
)


def write(path, rows, seed=0):
    """Correlated normals, 8 float64 columns, a row group at a time."""
    mix = np.random.default_rng(seed).normal(size=(8, 8))
    with pq.ParquetWriter(path, pa.schema([(name, pa.float64()) for name in NAMES])) as writer:
        for i in range(0, rows, GROUP):
            x = np.random.default_rng([seed, i]).normal(size=(min(GROUP, rows - i), 8)) @ mix
            writer.write_table(pa.table(dict(zip(NAMES, x.T, strict=True))))


def models(path, where):
    """Exact families fitted to the first rows, by name."""
    import probgen as pg

    first = next(pq.ParquetFile(path).iter_batches(4000)).to_pandas()
    event = pg.events.Table({name: pg.events.Real() for name in NAMES})
    whole = pg.emissions.Normal(8, "full")
    made = {
        "Mixture, 8 products": (pg.Mixture.for_event(event, components=8), first),
        "Mixture, 8 full": (pg.Mixture(pg.events.Array((8,)), 8, whole), first.to_numpy()),
        "GaussianCopula": (pg.GaussianCopula.for_event(event), first),
    }
    for name, (model, x) in made.items():
        pg.save(model.fit(x, seed=0), where / name.replace(", ", "-").replace(" ", "-"))
    return {name: where / name.replace(", ", "-").replace(" ", "-") for name in made}


def spent():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def timed(work):
    """CPU seconds and wall seconds of a call."""
    cpu, wall = spent(), time.perf_counter()
    work()
    return spent() - cpu, time.perf_counter() - wall


def start(where, runs=7):
    path = where / "small.parquet"
    write(path, 1000)
    model = models(path, where)["Mixture, 8 products"]
    probgen = shutil.which("probgen") or str(Path(sys.executable).with_name("probgen"))
    commands = {"torch": [sys.executable, "-c", "import torch"], "score": [probgen, "score", str(model), str(path)]}
    pairs = [
        {n: timed(lambda c=c: subprocess.run(c, check=True, capture_output=True)) for n, c in commands.items()}
        for _ in range(runs)
    ]
    for i, what in enumerate(("CPU", "wall")):
        added = statistics.median(pair["score"][i] - pair["torch"][i] for pair in pairs)
        torch = statistics.median(pair["torch"][i] for pair in pairs)
        print(
            f"start: probgen score adds {added:.2f} s {what} to importing torch, {torch:.2f} s (median of {runs} pairs)"
        )


def speed(where, rows=2_000_000, pairs=3):
    import torch

    from probgen import store
    from probgen.evaluate.table import score_table

    path, output = where / "rows.parquet", where / "scores.parquet"
    write(path, rows)
    size = 1 << 16
    for name, place in models(path, where).items():
        model, shares = store.load(place), []
        for _ in range(pairs):
            reading = timed(lambda: sum(b.num_rows for b in pq.ParquetFile(path).iter_batches(size)))
            batches = [pa.Table.from_batches([b]) for b in pq.ParquetFile(path).iter_batches(size)]
            cells = [model.event.check(batch).x for batch in batches]
            generator = torch.Generator()

            def hook(model=model, cells=cells, generator=generator):
                with torch.no_grad():
                    for x in cells:
                        model._log_prob(x, None, generator=generator)

            inner = timed(hook)
            verb = timed(lambda model=model, batches=batches: [model.log_prob(b, seed=0) for b in batches])
            whole = timed(lambda model=model: score_table(model, path, output, workers=1, overwrite=True))
            shares.append([(reading[i] + own[i]) / whole[i] for own in (verb, inner) for i in (0, 1)])
            told = ", ".join(f"{what} {t[0]:.2f}" for what, t in zip(WHAT, (reading, verb, inner, whole), strict=True))
            print(f"  {name}: CPU s: {told}; wall of all {whole[1]:.2f} s, {rows / whole[1]:,.0f} rows/s")
        verb_cpu, verb_wall, hook_cpu, hook_wall = (statistics.median(column) for column in zip(*shares, strict=True))
        print(
            f"speed: {name}, {rows:,} rows x 8: (reading + log_prob) / total = {verb_cpu:.2f} CPU,"
            f" {verb_wall:.2f} wall; with the bare hook for log_prob {hook_cpu:.2f} CPU,"
            f" {hook_wall:.2f} wall (median of {pairs})"
        )


WHAT = ("reading", "log_prob", "hook", "all")


def resident(pid):
    """Bytes that a process and all below it hold; what they share counts once a process."""
    total, children = 0, {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(place.name))
            except OSError:
                continue
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
        waiting += children.get(one, [])
    return total


def watched(command):
    """Runs a command: (peak bytes of its process tree, CPU seconds, wall seconds)."""
    peak = 0

    def run():
        nonlocal peak
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"{command} failed")

    cpu, wall = timed(run)
    return peak, cpu, wall


def memory(where, rows=10_000_000):
    peaks = {}
    for workers in (1, 2):
        for n in (rows // 10, rows):
            path = where / f"{n}.parquet"
            if not path.exists():
                write(path, n)
            place = models(path, where)["Mixture, 8 products"]
            command = [
                sys.executable,
                "-c",
                SCORE.format(workers),
                str(place),
                str(path),
                str(where / f"{workers}-{n}.parquet"),
            ]
            peaks[workers, n], cpu, wall = watched(command)
            print(
                f"  {workers} worker(s), {n:,} rows: peak {peaks[workers, n] / 2**20:.0f} MiB,"
                f" {cpu:.1f} s CPU, {wall:.1f} s"
            )
        grown = peaks[workers, rows] / peaks[workers, rows // 10]
        print(f"memory: {workers} worker(s), ten times the rows: {grown:.2f} times the memory")


def workers(where, rows=1_000_000, pairs=3):
    path = where / "many.parquet"
    write(path, rows)
    place = models(path, where)["GaussianCopula"]
    ratios = []
    for pair in range(pairs):
        taken = {}
        for n in (1, 2):
            command = [
                sys.executable,
                "-c",
                SCORE.format(n),
                str(place),
                str(path),
                str(where / f"w{n}-{pair}.parquet"),
            ]
            taken[n] = watched(command)
            print(f"  {n} worker(s): {taken[n][1]:.1f} s CPU, {taken[n][2]:.1f} s wall")
        ratios.append((taken[1][2] / taken[2][2], taken[2][1] / taken[1][1]))
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    load = os.getloadavg()[0]
    print(
        f"workers: two are {wall:.2f} times as fast as one, at {cpu:.2f} times the CPU"
        f" (load {load:.1f}, median of {pairs})"
    )


def main(what="start,speed,memory,workers", *sizes):
    with tempfile.TemporaryDirectory() as folder:
        threads = threading.active_count()
        for name in what.split(","):
            {"start": start, "speed": speed, "memory": memory, "workers": workers}[name](Path(folder), *map(int, sizes))
        assert threading.active_count() <= threads + 1  # no worker's thread is left


if __name__ == "__main__":
    main(*sys.argv[1:])
