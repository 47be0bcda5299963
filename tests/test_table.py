"""Tables of any size: the same numbers whatever the partitions, columns, engine, deaths; refusals that name things."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import probgen as pg
from probgen import frames
from probgen.cli.commands import app
from probgen.errors import DataError, ParameterError, ShapeError, StoreError, StructureError, SupportError
from probgen.evaluate.table import engines, score_table, scores
from probgen.evaluate.table import job as jobs
from probgen.evaluate.table.job import Stats
from probgen.evaluate.table.merge import Merge
from probgen.evaluate.table.tally import stats_of
from probgen.events import Array, Category, Count, Panel, Real, Table
from probgen.logprob import Kind, LogProb

EVENT = Table({"a": Real(), "b": Real(), "c": Category(("x", "y"))})
N = 900


def rows(n=N, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    columns = {"a": a, "b": a + rng.normal(size=n), "c": rng.choice(["x", "y"], n)}
    return pa.table({**columns, "id": [f"r{i}" for i in range(n)]})


@pytest.fixture(scope="module")
def model():
    return pg.Mixture.for_event(EVENT).fit(rows().drop_columns(["id"]), seed=0)


@pytest.fixture(scope="module")
def exact(model):
    return model.log_prob(rows().drop_columns(["id"])).nats


@pytest.fixture(scope="module")
def noisy():
    """A Monte Carlo family."""
    event = Table({"a": Real(), "b": Real()})
    return pg.VAE.for_event(event).fit(rows(200).select(["a", "b"]), seed=0, steps=10)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """So that small data have many batches and tasks."""
    monkeypatch.setattr(jobs, "_FAST", 64)
    monkeypatch.setattr(jobs, "_SLOW", 32)
    monkeypatch.setattr(jobs, "_BATCHES", 3)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder(where, table, parts=4, group=100):
    """A table as a folder of partitions of unequal size, one in a folder of its own."""
    where.mkdir(parents=True)
    (where / "sub").mkdir()
    cuts = [
        0,
        *np.sort(np.random.default_rng(1).choice(np.arange(1, len(table)), parts - 1, replace=False)),
        len(table),
    ]
    for i in range(parts):
        name = f"{'sub/' if i == parts - 1 else ''}part-{i}.parquet"
        pq.write_table(table.slice(cuts[i], cuts[i + 1] - cuts[i]), where / name, row_group_size=group)
    return where


def nats(found):
    return found.column("log_prob").to_numpy()


# The same numbers


def test_scores_of_a_file_are_those_of_the_model_with_the_columns_of_a_frame(model, exact, here):
    pq.write_table(rows(), "rows.parquet", row_group_size=250)
    done = score_table(model, "rows.parquet", "scores.parquet", workers=1)
    found = pq.read_table("scores.parquet")
    whole = model.log_prob(rows().drop_columns(["id"]))
    assert found.column_names == whole.frame().column_names
    for name in set(found.column_names) - {"log_prob"}:
        assert found.column(name).to_pylist() == whole.frame().column(name).to_pylist(), name
    assert nats(found) == pytest.approx(exact, rel=1e-12)
    assert done.rows == N
    assert done.ignored == ("id",)
    summary, mean = done.summary.mean(), whole.mean()
    assert (summary.value, summary.between_rows) == pytest.approx((mean.value, mean.between_rows), rel=1e-12)
    assert (summary.kind, summary.n, summary.by) == (mean.kind, mean.n, mean.by)
    assert done.frame().equals(found)


def test_numbers_depend_on_neither_partitions_nor_order_nor_the_form_of_the_data(model, exact, here):
    table = rows()
    turned = table.select(["id", "c", "b", "a"])
    pq.write_table(turned, "one.parquet", row_group_size=7)
    pd.DataFrame(table.to_pandas()).to_csv("rows.csv", index=False)
    sources = [folder(here / "parts", turned), here / "one.parquet", "rows.csv", table, table.to_pandas()]
    sources.append(pl.from_arrow(table))
    for source in sources:
        found = score_table(model, source, workers=1, key="id").frame()
        by_id = dict(zip(found.column("id").to_pylist(), nats(found), strict=True))
        assert [by_id[f"r{i}"] for i in range(N)] == pytest.approx(exact, rel=1e-12), str(source)[:40]
    order = np.random.default_rng(3).permutation(N)
    found = score_table(model, table.take(order), workers=1).frame()
    assert nats(found) == pytest.approx(exact[order], rel=1e-12)


def test_draws_of_a_monte_carlo_family_are_keyed_by_the_row_alone(noisy, here):
    table = rows(200)
    by = pg.IWAE(samples=8)
    whole = noisy.log_prob(table.select(["a", "b"]), by=by, seed=5)
    order = np.random.default_rng(3).permutation(200)
    source = folder(here / "parts", table.take(order).select(["b", "id", "a"]), parts=3, group=40)
    found = score_table(noisy, source, by=by, seed=5, workers=1, key="id").frame()
    by_id = {row["id"]: row for row in found.to_pylist()}
    assert [by_id[f"r{i}"]["log_prob"] for i in range(200)] == pytest.approx(whole.nats, rel=1e-5)
    assert set(found.column("kind").to_pylist()) == {"lower"}
    other = score_table(noisy, source, by=by, seed=6, workers=1).frame()  # the twin: other draws are seen
    assert np.abs(nats(other) - nats(found)).max() > 1e-3


def killing(monkeypatch, kills, every):
    """Kills a worker at every so manieth batch that comes back; a list of those that were killed, and of all begun."""
    begun, killed, begin, take, seen = [], [], engines._begin, Merge.take, [0]

    def told():
        begun.append(begin())
        return begun[-1]

    def deadly(self, event):
        take(self, event)
        seen[0] += event.scores is not None
        alive = [process for process in begun if process.poll() is None]
        if event.scores is not None and len(killed) < kills and seen[0] % every == 1 and alive:
            os.kill(alive[len(killed) % len(alive)].pid, signal.SIGKILL)
            killed.append(alive)

    monkeypatch.setattr(engines, "_begin", told)
    monkeypatch.setattr(Merge, "take", deadly)
    return begun, killed


def survive(model, exact, here, monkeypatch, kills, every):
    source = folder(here / "parts", rows(), group=60)
    still = score_table(model, source, "still", workers=1)
    begun, killed = killing(monkeypatch, kills, every)
    done = score_table(model, source, "scores", workers=2)
    assert len(killed) == kills
    assert len(begun) >= 2 + kills - 1  # a last one may die when its work is done
    assert done.rows == still.rows == N
    assert nats(done.frame()) == pytest.approx(exact, rel=1e-12)
    assert done.frame().drop_columns(["log_prob"]).equals(still.frame().drop_columns(["log_prob"]))
    assert done.summary.mean().value == pytest.approx(still.summary.mean().value, rel=1e-12)
    assert all(process.poll() is not None for process in begun)
    assert not list(here.rglob("*.tmp"))


def test_two_killed_workers_change_no_number(model, exact, here, monkeypatch):
    survive(model, exact, here, monkeypatch, kills=2, every=4)


@pytest.mark.long
def test_twenty_killed_workers_change_no_number(model, exact, here, monkeypatch):
    monkeypatch.setattr(jobs, "_FAST", 16)
    monkeypatch.setattr(engines, "_LIVES", 25)
    survive(model, exact, here, monkeypatch, kills=20, every=2)


def test_batches_that_a_dead_worker_had_sent_are_not_written_twice(model, exact, here, monkeypatch):
    """The planted bug of the deaths' test: a worker that forgets what its parent has."""
    table = rows()
    job, _ = jobs.Job.of(model, {"a": "number", "b": "number", "c": "text"}, [], by=None, seed=0, key=None)
    merge = Merge(job, [], lambda part: None, folder=False, keep=True, skip=False)
    merge.parts, merge.whose, merge.ends = [scores.Part("f")], [0], {0: 1}
    batches = list(job.of_rows(table.drop_columns(["id"]).slice(0, 128), 0))
    for batch in (batches[0], *batches):
        merge.take(engines.Event(0, batch))
    merge.take(engines.Event(0))
    assert merge.tally.n == 64 + 128  # so it would be seen


def test_tasks_that_end_in_any_order_are_written_in_the_order_of_the_rows(model, exact, here, monkeypatch):
    source = folder(here / "parts", rows(), group=60)
    run = engines.Here.run

    def shuffled(self, tasks):
        events = list(run(self, tasks))
        order = np.random.default_rng(0).permutation(max(event.number for event in events) + 1)
        yield from (event for index in order for event in events if event.number == index)

    monkeypatch.setattr(engines.Here, "run", shuffled)
    done = score_table(model, source, "scores", workers=1)
    assert done.rows == N
    assert nats(done.frame()) == pytest.approx(exact, rel=1e-12)
    for part in sorted(source.rglob("*.parquet")):
        found = pq.read_table(here / "scores" / part.relative_to(source))
        assert found.column("row").to_pylist() == list(range(pq.read_metadata(part).num_rows))
        assert set(found.column("file").to_pylist()) == {part.relative_to(source).as_posix()}


def test_an_engine_that_loses_a_task_is_a_defect_not_a_shorter_table(model, here, monkeypatch):
    source = folder(here / "parts", rows(), group=60)
    run = engines.Here.run
    monkeypatch.setattr(engines.Here, "run", lambda self, tasks: (e for e in run(self, tasks) if e.number != 2))
    with pytest.raises(RuntimeError, match="left half scored"):
        score_table(model, source, "scores", workers=1)


def test_a_scheduler_that_runs_gives_the_same_numbers(model, exact, here):
    distributed = pytest.importorskip("distributed")
    source = folder(here / "parts", rows(), group=200)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://", silence_logs=50
    ) as cluster:
        done = score_table(model, source, "scores", engine="dask", scheduler=cluster.scheduler_address)
        bad = folder(here / "bad", rows().set_column(2, "c", pa.array(["x"] * (N - 1) + ["z"])))
        with pytest.raises(SupportError, match=r"sub/part-3\.parquet: row \d+, column c: 'z'"):
            score_table(model, bad, engine="dask", scheduler=cluster.scheduler_address)
    assert nats(done.frame()) == pytest.approx(exact, rel=1e-12)


@pytest.mark.long
def test_a_cluster_of_this_machine_loses_a_worker_and_gives_the_same_numbers_without_a_main_guard(model, exact, here):
    pytest.importorskip("distributed")
    folder(here / "parts", rows(), group=60)
    pg.save(model, "model")
    Path("script.py").write_text(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from probgen.evaluate.table import score_table\n"
        "from probgen.evaluate.table.merge import Merge\n"
        "take, killed = Merge.take, []\n"
        "def deadly(self, event):\n"
        "    take(self, event)\n"
        "    known = [p for p in Path('/proc').iterdir() if p.name.isdigit()]\n"
        "    mine = [int(p.name) for p in known if b'multiprocessing.spawn' in (p / 'cmdline').read_bytes()]\n"
        "    mine = [p for p in mine if above(p)]\n"
        "    if mine and not killed:\n"
        "        os.kill(mine[0], signal.SIGKILL)\n"
        "        killed.append(mine[0])\n"
        "def above(pid):\n"
        "    while pid > 1:\n"
        "        if pid == os.getpid():\n"
        "            return True\n"
        "        pid = int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1])\n"
        "    return False\n"
        "Merge.take = deadly\n"
        "done = score_table('model', 'parts', 'scores', engine='dask', workers=1)\n"
        "print('killed', len(killed), 'rows', done.rows)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=300)
    assert f"killed 1 rows {N}" in done.stdout, done.stderr
    assert nats(frames.read("scores")) == pytest.approx(exact, rel=1e-12)


# Forms of data


def test_the_index_of_a_pandas_frame_is_the_row_key_in_memory_and_in_a_file(model, here):
    frame = rows(10).to_pandas().set_index("id")
    frame.to_parquet("rows.parquet")
    for source in (frame, "rows.parquet"):
        done = score_table(model, source)
        assert done.frame().column("row").to_pylist() == [f"r{i}" for i in range(10)]
        assert done.ignored == ()


def test_a_csv_is_read_by_the_models_types_whatever_its_first_cells_look_like(here):
    event = Table({"n": Count(), "t": Category(("1", "2")), "f": Category((True, False)), "r": Real()})
    frame = pd.DataFrame({"n": [1, 2, 3], "t": ["1", "2", "1"], "f": [True, False, True], "r": [1, 2, 2.5]})
    model = pg.Independent.for_event(event).fit(frame, seed=0)
    text = "n,t,f,r\n" + "1,1,true,1\n" * 100 + "2,2,false,2.5\n3,,,\n"
    Path("rows.csv").write_text(text)
    found = nats(score_table(model, "rows.csv").frame())
    expected = model.log_prob(frames.read("rows.csv", event.texts)).nats
    assert found == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(found).all()


def test_unnamed_columns_are_taken_in_the_order_of_the_first_partition(here):
    x = np.random.default_rng(0).normal(size=(60, 2))
    model = pg.Mixture.for_event(Array((2,))).fit(x, seed=0)
    os.mkdir("parts")
    pq.write_table(pa.table({"u": x[:30, 0], "v": x[:30, 1]}), "parts/1.parquet")
    pq.write_table(pa.table({"v": x[30:, 1], "u": x[30:, 0]}), "parts/2.parquet")
    found = score_table(model, "parts", workers=1).frame()
    assert nats(found) == pytest.approx(model.log_prob(x).nats, rel=1e-12)


def test_columns_that_a_network_sums_out_may_be_lacking_everywhere(here):
    tables = {"a": {"x": 0.25, "y": 0.75}, "b": {"u": 0.5, "v": 0.5}}
    net = pg.BayesianNetwork.from_tables(tables)
    os.mkdir("parts")
    pq.write_table(pa.table({"a": ["x", "y"]}), "parts/1.parquet")
    pq.write_table(pa.table({"a": [None, "y"]}), "parts/2.parquet")
    assert nats(score_table(net, "parts").frame()) == pytest.approx(np.log([0.25, 0.75, 1.0, 0.75]))
    pq.write_table(pa.table({"a": ["x"], "b": ["u"]}), "parts/0.parquet")
    with pytest.raises(DataError, match=r"1\.parquet lacks the columns \['b'\]"):
        score_table(net, "parts")


def test_sequences_stand_whole_in_a_partition(here):
    event = Panel({"v": Real()}, "k")
    frame = pd.DataFrame({"k": np.repeat(["p", "q", "r"], 30), "v": np.random.default_rng(0).normal(size=90)})
    model = pg.HMM.for_event(event, states=2).fit(frame, seed=0)
    os.mkdir("parts")
    frame[:30].to_parquet("parts/1.parquet", index=False)
    frame[30:].to_parquet("parts/2.parquet", index=False)
    found = score_table(model, "parts", workers=1).frame()
    assert found.column("row").to_pylist() == ["p", "q", "r"]
    assert nats(found) == pytest.approx(model.log_prob(frame).nats, rel=1e-12)
    frame[:40].to_parquet("parts/1.parquet", index=False)
    with pytest.raises(DataError, match=r"2\.parquet holds steps of sequence 'q', and so does a part before it"):
        score_table(model, "parts", workers=1)


def test_null_and_nan_cells_are_missing_whatever_the_width_of_a_float(here):
    event = Table({"a": Real(), "b": Real()})
    model = pg.Independent.for_event(event).fit(rows(50).select(["a", "b"]), seed=0)
    a = pa.array([1.0, None, float("nan"), 2.0] * 9)
    for kind in (pa.float64(), pa.float32(), pa.float16()):
        table = pa.table({"a": a.cast(kind), "b": pa.array(range(36)).cast(pa.float64())}).slice(3)
        found = nats(score_table(model, table).frame())
        plain = {"a": table.column("a").to_pylist(), "b": table.column("b").to_pylist()}
        assert found == pytest.approx(model.log_prob(plain).nats, rel=1e-12)


def test_refused_rows_keep_their_reason_and_no_number(here):
    gan = pg.GAN.for_event(Table({"a": Real(), "b": Real()})).fit(rows(100).select(["a", "b"]), seed=0, steps=2)
    done = score_table(gan, rows(40))
    found, whole = done.frame(), gan.log_prob(rows(40).select(["a", "b"]))
    assert found.column("log_prob").null_count == 40
    assert found.column("reason").to_pylist() == whole.frame().column("reason").to_pylist()
    assert done.summary.mean() is None
    assert "40 refused" in repr(done)


# Bad input


def test_bad_input_is_named_and_nothing_is_written(model, here):
    source = folder(here / "parts", rows(), parts=3)
    bad = source / "part-9.parquet"

    def refused(kind, words, data=source, **options):
        with pytest.raises(kind, match=words):
            score_table(model, data, "scores", **options)
        assert not (here / "scores").exists()
        assert not list(here.rglob("*.tmp"))

    os.mkdir("empty")
    refused(DataError, "empty holds no Parquet file: it is empty", "empty")
    refused(DataError, "There is no file nowhere", "nowhere")
    (here / "x.npz").write_bytes(b"")
    refused(DataError, "ends in '.npz'", "x.npz")
    for content, words in ((b"PAR1 nonsense", "part-9.parquet can't be read"), (b"", "part-9.parquet can't be read")):
        bad.write_bytes(content)
        refused(DataError, words)
    pq.write_table(rows(5).drop_columns(["b"]), bad)
    refused(DataError, r"part-9\.parquet lacks the columns \['b'\].*those of part-0\.parquet")
    pq.write_table(rows(5).set_column(1, "b", pa.array(list("12345"))), bad)
    refused(DataError, "part-9.parquet: column 'b' holds text, in part-0.parquet it holds number")
    bad.unlink()
    refused(DataError, "no column 'idd'.*Did you mean 'id'", key="idd")
    refused(ParameterError, "dask", scheduler="tcp://127.0.0.1:1")
    refused(ParameterError, "Did you mean 'dask'", engine="desk")
    refused(ParameterError, "workers=0", workers=0)
    with pytest.raises(ShapeError, match=r"lacks \['c'\]"):
        score_table(model, rows(5).select(["a", "b"]))
    with pytest.raises(StructureError, match="a model of the rows of a table"):
        score_table(pg.Mixture.for_event(Array((2, 2))).fit(np.random.default_rng(0).normal(size=(50, 2, 2))), source)


def test_a_bad_cell_is_named_by_its_part_and_its_row_in_the_file(model, here):
    table = rows(300)
    letters = ["x"] * 250 + ["z"] + ["y"] * 49
    bad = table.set_column(2, "c", pa.array(letters))
    pq.write_table(bad, "bad.parquet")
    with pytest.raises(SupportError, match=r"bad\.parquet: row 250, column c: 'z'"):
        score_table(model, "bad.parquet", "scores.parquet", workers=1)
    assert not Path("scores.parquet").exists()
    bad.to_pandas().to_csv("bad.csv", index=False)
    with pytest.raises(SupportError, match=r"bad\.csv: row 250, column c: 'z'"):
        score_table(model, "bad.csv", workers=1)
    text = Path("bad.csv").read_text().splitlines()
    Path("bad.csv").write_text("\n".join([*text[:50], "oops," + text[50].partition(",")[2]]))
    with pytest.raises(DataError, match=r"bad\.csv can't be read.*oops"):
        score_table(model, "bad.csv", workers=1)


def test_corrupt_parts_are_named_and_the_rest_is_scored_when_asked(model, exact, here):
    source = folder(here / "parts", rows(), parts=3, group=60)
    whole = (source / "part-1.parquet").read_bytes()
    (source / "part-4.parquet").write_bytes(whole[: len(whole) // 2])  # no footer
    (source / "part-5.parquet").write_bytes(whole[:300] + bytes(600) + whole[900:])  # the footer is good, pages are not
    with pytest.raises(DataError, match=r"part-4\.parquet.*skip_corrupt=True, --skip-corrupt, scores the other files"):
        score_table(model, source, "scores", workers=1)
    done = score_table(model, source, "scores", workers=1, skip_corrupt=True)
    assert set(done.skipped) == {"part-4.parquet", "part-5.parquet"}
    assert nats(done.frame()) == pytest.approx(exact, rel=1e-12)
    assert not (here / "scores" / "part-5.parquet").exists()
    assert not list(here.rglob("*.tmp"))


def test_a_row_that_can_not_be_scored_names_the_way_to_score_the_other_files(model, here):
    source = folder(here / "parts", rows(), parts=3)
    pink = rows(5).to_pandas().assign(c="pink")
    pink.to_parquet(source / "part-1.parquet", index=False)
    with pytest.raises(
        SupportError, match=r"part-1\.parquet: row 0, column c: 'pink'.*--skip-corrupt, scores the other"
    ):
        score_table(model, source, workers=1)
    with pytest.raises(SupportError) as alone:
        score_table(model, source / "part-1.parquet", workers=1)
    assert "skip" not in str(alone.value)


def test_where_all_parts_are_left_out_each_ones_reason_is_told_once(model, here):
    source = folder(here / "parts", rows(10), parts=2)
    for path in source.rglob("*.parquet"):
        rows(5).to_pandas().assign(c="pink").to_parquet(path, index=False)
    (source / "part-2.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError) as none:
        score_table(model, source, workers=1, skip_corrupt=True)
    said = str(none.value)
    assert said.startswith(f"None of the 3 files of {source} can be scored.")
    assert [said.count(f"part-{i}.parquet") for i in range(3)] == [1, 1, 1]
    assert ".." not in said


def test_the_mean_after_an_interrupted_run_is_that_of_all_rows(model, exact, here):
    source = folder(here / "parts", rows(), parts=4)
    whole = score_table(model, source, "scores", workers=1)
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.parquet"))
    for gone in (names[1:2], [], names[1:]):
        for name in gone:
            Path("scores", name).unlink()
        again = score_table(model, source, "scores", workers=1, resume=True)
        assert again.rows == sum(len(pq.read_table(source / name)) for name in gone)
        old, new = whole.summary.mean(), again.summary.mean()
        assert (new.value, new.between_rows) == pytest.approx((exact.mean(), old.between_rows), rel=1e-12)
        assert replace(new, value=0.0, between_rows=0.0) == replace(old, value=0.0, between_rows=0.0)


@pytest.mark.parametrize("odd", ["refused", "impossible", "noisy", "bound"])
def test_figures_read_back_from_written_scores_are_those_that_were_written(odd):
    values = np.array([-1.0, -2.5, -0.25, -4.0])
    about = {"by": "a | b", "target": "p", "measure": "counting"}
    if odd == "refused":
        kinds, values[1::2] = np.array([Kind.EXACT, Kind.UNAVAILABLE] * 2), math.nan
        answer = LogProb(kinds, values, reason="why", instead="how", **about)
    elif odd == "impossible":
        answer = LogProb(Kind.EXACT, np.where(values < -3, -np.inf, values), **about)
    else:
        errors = np.array([0.1, 0.2, 0.3, 0.4]) if odd == "noisy" else None
        answer = LogProb(Kind.ESTIMATE if odd == "noisy" else Kind.LOWER, values, stderr=errors, **about)
    found, written = stats_of(answer.frame()), Stats.of(answer)
    assert replace(found, mean=0.0, squares=0.0, error=None) == replace(written, mean=0.0, squares=0.0, error=None)
    assert (found.mean, found.squares) == pytest.approx((written.mean, written.squares))
    if odd == "bound":
        assert math.isnan(found.error)  # a file does not tell whether there was none, or none to be trusted
    else:
        assert found.error == (written.error and pytest.approx(written.error))


def test_nobody_listening_and_no_address_are_said_within_seconds(model):
    pytest.importorskip("distributed")
    began = time.perf_counter()
    for address in ("tcp://127.0.0.1:9", "127.0.0.1:9"):
        with pytest.raises(ParameterError, match=r"No scheduler of Dask answers at .*127\.0\.0\.1:9"):
            score_table(model, rows(5), engine="dask", scheduler=address)
    with pytest.raises(ParameterError, match="an address such as"):
        score_table(model, rows(5), engine="dask", scheduler="nonsense")
    assert time.perf_counter() - began < 20


def test_a_scheduler_without_workers_is_refused_not_waited_for(model, monkeypatch):
    distributed = pytest.importorskip("distributed")
    from probgen.evaluate.table import cluster as door

    monkeypatch.setattr(door, "_PATIENCE", 2)
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, dashboard_address=None, protocol="tcp://", silence_logs=50
        ) as cluster,
        pytest.raises(ParameterError, match="has no workers"),
    ):
        score_table(model, rows(5), engine="dask", scheduler=cluster.scheduler_address)


# Going on


def test_an_interrupted_run_goes_on_where_it_was(model, exact, here, monkeypatch):
    source = folder(here / "parts", rows(), parts=5, group=60)
    take = Merge.take

    def interrupted(self, event):
        take(self, event)
        if self.part == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Merge, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_table(model, source, "scores", workers=1)
    monkeypatch.setattr(Merge, "take", take)
    written = sorted(p.name for p in Path("scores").rglob("*") if p.is_file())
    assert written == ["part-0.parquet", "part-1.parquet", "part-2.parquet"]
    times = {name: os.stat(f"scores/{name}").st_mtime_ns for name in written}
    Path("scores/.part-3.parquet.0123abcd.tmp").write_bytes(b"half")  # as a SIGKILL leaves it
    with pytest.raises(StoreError, match="holds scores already"):
        score_table(model, source, "scores", workers=1)
    done = score_table(model, source, "scores", workers=1, resume=True)
    assert done.parts == ("part-3.parquet", "sub/part-4.parquet")
    assert set(done.before) == set(written)
    assert done.rows + sum(done.before.values()) == N
    assert {name: os.stat(f"scores/{name}").st_mtime_ns for name in written} == times
    assert nats(done.frame()) == pytest.approx(exact, rel=1e-12)
    assert not list(here.rglob("*.tmp"))
    assert score_table(model, source, "scores", resume=True).parts == ()


def test_scores_of_another_model_other_data_or_other_options_are_not_gone_on_with(model, here):
    source = folder(here / "parts", rows(), parts=3)
    score_table(model, source, "scores", workers=1)
    before = {p: p.read_bytes() for p in Path("scores").rglob("*.parquet")}
    other = pg.Mixture.for_event(EVENT).fit(rows(seed=9).drop_columns(["id"]), seed=0)

    def refused(words, model=model, **options):
        with pytest.raises(StoreError, match=words):
            score_table(model, source, "scores", workers=1, resume=True, **options)
        assert {p: p.read_bytes() for p in Path("scores").rglob("*.parquet")} == before

    refused("scored from another model", other)
    refused(r"other options \(seed=0, now 1\)", seed=1)
    refused(r"other options \(key=None, now 'id'\)", key="id")
    kept = (source / "part-1.parquet").read_bytes()
    pq.write_table(rows(50, seed=4), source / "part-1.parquet")
    refused(r"part-1\.parquet was scored from other data")
    (source / "part-1.parquet").unlink()
    refused("a part that the data do not have")
    (source / "part-1.parquet").write_bytes(kept)
    score_table(other, source, "scores", workers=1, overwrite=True)
    assert all(p.read_bytes() != old for p, old in before.items())


def test_nothing_is_overwritten_unasked_and_nothing_of_others_at_all(model, here):
    source = folder(here / "parts", rows(), parts=3)
    os.mkdir("mine")
    Path("mine/letter.txt").write_text("dear")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(StoreError, match=r"other files: letter\.txt"):
            score_table(model, source, "mine", **options)
    for place in ("parts", "parts/scores", "."):
        with pytest.raises(StoreError, match="lie in each other"):
            score_table(model, source, place, overwrite=True)
    Path("scores.parquet").write_bytes(b"mine")
    with pytest.raises(StoreError, match="exists already"):
        score_table(model, rows(5), "scores.parquet")
    with pytest.raises(StoreError, match="a folder: each part"):
        score_table(model, source, "scores.parquet", overwrite=True)
    assert Path("scores.parquet").read_bytes() == b"mine"
    assert sorted(p.name for p in Path("mine").iterdir()) == ["letter.txt"]


def test_a_partition_without_rows_gets_a_file_without_rows(model, here):
    source = folder(here / "parts", rows(), parts=3)
    pq.write_table(rows(0), source / "part-0a.parquet")
    done = score_table(model, source, "scores", workers=1)
    assert done.rows == N
    assert pq.read_table("scores/part-0a.parquet").num_rows == 0
    assert len(done.frame()) == N
    pq.write_table(rows(0), "nothing.parquet")
    with pytest.raises(DataError, match="no rows"):
        score_table(model, "nothing.parquet")


# The command


def run(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_the_command_scores_a_folder_and_says_what_it_left_out(model, exact, here):
    source = folder(here / "parts", rows(), parts=3)
    pg.save(model, "model")
    done = run("score", "model", source, "-o", "scores")
    assert done.exit_code == 0, done.output
    assert "left alone: 'id'" in done.stderr
    assert f"{N} rows of 3 files written to scores" in done.stdout
    assert nats(frames.read("scores")) == pytest.approx(exact, rel=1e-12)
    (source / "part-7.parquet").write_bytes(b"PAR1")
    assert run("score", "model", source, "-o", "more").exit_code == 2
    skipped = run("score", "model", source, "-o", "more", "--skip-corrupt", "--key", "id")
    assert skipped.exit_code == 3
    assert "skipped part-7.parquet" in skipped.stderr
    assert pq.read_schema("more/part-0.parquet").names[:2] == ["id", "log_prob"]
    resumed = run("score", "model", source, "-o", "more", "--skip-corrupt", "--key", "id", "--resume")
    assert resumed.exit_code == 3
    assert f"{N} rows of 3 files were scored before; the mean is of all rows" in resumed.stdout
    assert f"n={N}" in resumed.stdout
    (source / "part-7.parquet").unlink()
    refused = run("score", "model", source, "--engine", "dask", "--scheduler", "127.0.0.1:9")
    assert refused.exit_code == 2
    assert "No scheduler of Dask answers" in refused.stderr
    assert run("score", "model", source, "--steps").exit_code == 2


def test_a_small_file_is_scored_without_the_columns_that_the_model_does_not_know(model, exact, here):
    pg.save(model, "model")
    pq.write_table(rows(), "rows.parquet")
    done = run("score", "model", "rows.parquet", "-o", "scores.csv")
    assert done.exit_code == 0, done.output
    assert "left alone: 'id'" in done.stderr
    assert pd.read_csv("scores.csv")["log_prob"].to_numpy() == pytest.approx(exact, rel=1e-12)
    whole = run("score", "model", "rows.parquet", "--workers", 1, "-o", "again.csv")
    assert whole.exit_code == 0, whole.output
    assert pd.read_csv("again.csv").equals(pd.read_csv("scores.csv"))
