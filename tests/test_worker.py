"""Processes that score: what they say, what they survive, what they leave behind."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import probgen as pg
from probgen import store
from probgen.errors import DataError, ParameterError, ProbgenError, SupportError
from probgen.evaluate.table import engines
from probgen.evaluate.table import job as jobs
from probgen.evaluate.table.engines import Pool, Task
from probgen.evaluate.table.job import Job
from probgen.evaluate.worker import receive, send
from probgen.events import Category, Real, Table


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table({"a": rng.normal(size=n), "b": rng.normal(size=n) ** 2, "c": rng.choice(["x", "y"], n)})


@pytest.fixture(scope="module")
def model():
    event = Table({"a": Real(), "b": Real(), "c": Category(("x", "y"))})
    return pg.Mixture.for_event(event).fit(rows(300), seed=0)


def job_of(model, **changes):
    classes = {"a": "number", "b": "number", "c": "text"}
    made, _ = Job.of(model, classes, [], **{"by": None, "seed": 0, "key": None, **changes})
    return made


def test_messages_come_through_whole_and_a_broken_one_ends_the_talk():
    stream = io.BytesIO()
    send(stream, {"is": "batch", "text": "\N{SNOWMAN}\n"}, b"\x00\xff" * 1000)
    send(stream, {"nan": float("-inf")})
    whole = stream.getvalue()
    stream.seek(0)
    assert receive(stream) == ({"is": "batch", "text": "\N{SNOWMAN}\n"}, b"\x00\xff" * 1000)
    assert receive(stream) == ({"nan": float("-inf")}, b"")
    assert receive(stream) is None
    for cut in (3, 17, len(whole) // 2):
        assert receive(io.BytesIO(whole[:cut])) is None


def test_a_job_survives_its_way_to_another_process(model):
    job = job_of(model, by=pg.IWAE(samples=7), key="c")
    again = Job.from_json(model, json.loads(json.dumps(job.to_json())))
    for name in ("by", "seed", "columns", "given", "index", "key", "types", "batch"):
        assert getattr(again, name) == getattr(job, name), name


def test_an_estimator_of_somebody_else_does_not_travel():
    with pytest.raises(ParameterError, match="workers=1"):
        jobs.estimator_as_json(lambda model, x, given=None, *, generator: None)
    with pytest.raises(ParameterError, match="one of probgen"):
        jobs._estimator({"module": "os", "name": "system", "fields": {}})


def test_errors_keep_their_class_and_their_three_facts_on_the_way():
    for problem in (SupportError("a", "b", "c"), DataError("a"), ParameterError("a", "", "c")):
        again = jobs.untold(json.loads(json.dumps(jobs.told(problem))))
        assert type(again) is type(problem)
        assert str(again) == str(problem)
    assert type(jobs.untold({"kind": "system", "came": "a", "wanted": "", "do": ""})) is ProbgenError


def test_a_models_digest_is_of_what_it_is_not_of_when_it_was_saved(model, tmp_path):
    store.save(model, tmp_path / "one")
    again = store.load(tmp_path / "one")
    assert jobs.digest_of(again) == jobs.digest_of(model)
    again.logits.data[0] += 1e-9
    assert jobs.digest_of(again) != jobs.digest_of(model)


def test_a_worker_scores_refuses_and_ends_with_its_parent(model, tmp_path):
    """One worker, its whole life: an error leaves it alive, end of file ends it."""
    store.save(model, tmp_path / "model")
    job = job_of(model)
    worker = engines._begin()
    send(worker.stdin, {"model": str(tmp_path / "model"), "job": job.to_json(), "threads": 1})
    assert receive(worker.stdout)[0] == {"is": "ready"}
    table = rows(50, seed=1)
    send(worker.stdin, {"name": "f", "first": 7, "have": 0}, engines.payload_of(Task(0, {}, table)))
    about, payload = receive(worker.stdout)
    found = engines.sinks.unpacked(payload)
    assert about["stats"]["n"] == 50
    assert found.column("row").to_pylist() == list(range(7, 57))
    assert found.column("log_prob").to_numpy() == pytest.approx(model.log_prob(table).nats, rel=1e-12)
    assert receive(worker.stdout)[0] == {"is": "done", "notes": []}
    bad = table.set_column(2, "c", pa.array(["x"] * 20 + ["z"] + ["x"] * 29))
    send(worker.stdin, {"name": "f", "first": 100, "have": 0}, engines.payload_of(Task(0, {}, bad)))
    ended = receive(worker.stdout)[0]
    assert ended["is"] == "error"
    assert "row 120, column c: 'z'" in ended["error"]["came"]
    worker.stdin.close()
    assert worker.wait(timeout=30) == 0
    worker.stdout.close()


class _Dying:
    """Stands for a process that ends at once."""

    def __init__(self):
        self.stdin, self.stdout = io.BytesIO(), io.BytesIO()

    def poll(self):
        return None

    def kill(self):
        pass

    def wait(self):
        return -9


def test_rows_that_kill_every_worker_end_the_run_with_an_error_that_says_so(model, monkeypatch):
    began = []
    monkeypatch.setattr(engines, "_begin", lambda: began.append(1) or _Dying())
    monkeypatch.setattr(engines.Pool, "_ready", lambda self, place: engines._begin())
    pool = Pool(job_of(model), 1)
    with pytest.raises(ParameterError, match=r"f\.parquet: 5 workers died"), pool:
        list(pool.run([Task(0, {"name": "f.parquet", "first": 0}, rows(10))]))
    assert len(began) == 5


def test_workers_that_never_begin_end_the_run_with_an_error_that_says_so(model, monkeypatch):
    monkeypatch.setattr(engines, "_begin", _Dying)
    pool = Pool(job_of(model), 2)
    with pytest.raises(ParameterError, match="died before they could begin"), pool:
        list(pool.run([Task(0, {"name": "f", "first": 0}, rows(10))]))


def test_no_task_begins_far_beyond_the_first_that_is_open():
    window = engines.Window((Task(i, {}) for i in range(10)), 3)
    assert [task.number for task in window.ready()] == [0, 1, 2]
    window.open.remove(1)
    assert [task.number for task in window.ready()] == []  # 0 still holds everything up
    window.open.remove(0)
    assert [task.number for task in window.ready()] == [3, 4]
    window.open -= {2, 3, 4}
    assert [task.number for task in window.ready()] == [5, 6, 7]
    window.open.clear()
    assert [task.number for task in window.ready()] == [8, 9]


@pytest.mark.long
def test_no_worker_outlives_a_parent_that_is_killed(model, tmp_path):
    """Of a script without a main guard, besides."""
    store.save(model, tmp_path / "model")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from probgen.evaluate.table import engines, scores\n"
        "begin = engines._begin\n"
        "def told():\n"
        "    process = begin()\n"
        "    print(process.pid, flush=True)\n"
        "    return process\n"
        "engines._begin = told\n"
        "from probgen.evaluate.table.merge import Merge\n"
        "Merge.take = lambda self, event: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"scores.score_table({str(tmp_path / 'model')!r}, {str(tmp_path / 'rows.parquet')!r}, workers=2)\n"
    )
    pa.parquet.write_table(rows(2000), tmp_path / "rows.parquet", row_group_size=500)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    workers = [int(word) for word in done.stdout.split()]
    assert workers  # as many as there were tasks to take
    for _ in range(200):
        left = [pid for pid in workers if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def _is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_workers_do_not_import_modules_of_the_folder_they_begin_in(monkeypatch, tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    worker = engines._begin()
    worker.stdin.close()
    assert worker.wait(timeout=60) == 0
    worker.stdout.close()
    assert os.listdir(tmp_path) == ["random.py"]
