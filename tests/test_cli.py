"""The command line as a newcomer and an attacker use it: exit codes, no traceback, nothing half-written or lost."""

import errno
import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Optional

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import probgen as pg
from probgen import cli, emissions, frames, training
from probgen.cli import options, outputs
from probgen.errors import DataError, FitError, ParameterError
from probgen.events import Array, Category, Real, Record, Series, Table, Text, Words
from probgen.model import FitReport
from probgen.models.baseline import Independent
from probgen.models.mixture import Mixture

RNG = np.random.default_rng(5)
PROBGEN = [sys.executable, "-m", "probgen.cli"]
MIXED = pd.DataFrame({"size": RNG.normal(size=40).round(5), "colour": RNG.choice(["red", "bé, blue"], size=40)})
POINTS = RNG.normal(size=(40, 2))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test in its own folder, with a mixed table with gaps and an array."""
    monkeypatch.chdir(tmp_path)
    MIXED.where(RNG.random(MIXED.shape) > 0.3).to_csv("mixed.csv", index=False)
    np.save("points.npy", POINTS)
    return tmp_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved models by name."""
    folder = tmp_path_factory.mktemp("models")
    event = Table({"size": Real(), "colour": Category(("red", "bé, blue"))})
    pg.save(pg.Independent(event).fit(MIXED, seed=1), folder / "table")
    pg.save(pg.VAE(Array((2,)), 2, (4,)).fit(POINTS, seed=1, steps=4), folder / "vae")
    pg.save(pg.GAN(Array((2,)), 2, (4,), penalty=0.25).fit(POINTS, seed=1, steps=4), folder / "gan")
    pg.save(pg.Independent(Array((2,))).fit(POINTS, seed=1), folder / "points")
    quakes = pg.datasets.load("earthquakes")
    pg.save(pg.Independent(quakes.event).fit(quakes.x, seed=1), folder / "series")
    return folder


def run(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def refused(*words):
    """The message of a user's mistake: exit code 2, no traceback, nothing on standard output."""
    answer = run(*words)
    assert answer.exit_code == 2, answer.output
    assert "Traceback" not in answer.output
    assert not answer.stdout
    return " ".join(answer.stderr.replace("│", " ").split())


def done(*words):
    answer = run(*words)
    assert answer.exit_code == 0, answer.output
    return answer


@pytest.mark.parametrize(
    ("option", "text", "value"), [("--hidden", "6,5", (6, 5)), ("--hidden", "6", (6,)), ("--latent-dim", "3", 3)]
)
def test_options_reach_the_constructor_in_its_types(option, text, value):
    done("fit", "vae", "points.npy", "-o", "m", "--steps", 2, option, text)
    assert getattr(pg.load("m"), option[2:].replace("-", "_")) == value


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Words


@pytest.mark.parametrize("command", ["fit", "score", "sample", "compare", "card"])
def test_a_command_without_arguments_says_what_is_missing(command):
    assert "Missing argument" in refused(command)


def test_a_misspelt_command_gets_the_nearest():
    assert "Did you mean 'compare'" in refused("compar", "digits")


def test_a_misspelt_family_gets_the_nearest():
    assert "Did you mean 'Mixture'" in refused("fit", "mixtur", "points.npy", "-o", "m")
    assert "Did you mean 'Mixture'" in refused("compare", "points.npy", "--families", "independent,mixtrue")


def test_a_misspelt_data_set_gets_the_nearest():
    assert "Did you mean 'iris'" in refused("compare", "irsi")
    assert "Did you mean 'iris'" in refused("fit", "mixture", "irsi", "-o", "m")


def test_a_misspelt_estimator_or_option_of_it_gets_the_nearest(saved):
    assert "Did you mean 'iwae'" in refused("score", saved / "vae", "points.npy", "--by", "iwea")
    assert "Did you mean 'samples'" in refused("score", saved / "vae", "points.npy", "--by", "iwae:sample=3")
    assert "samples=-3" in refused("score", saved / "vae", "points.npy", "--by", "iwae:samples=-3")
    assert "Known: ais, elbo" in refused("score", saved / "vae", "points.npy", "--by", "")


def test_options_of_a_family_are_checked_under_the_name_that_was_typed():
    assert "Did you mean '--components'" in refused("fit", "mixture", "points.npy", "-o", "m", "--compnents", "3")
    message = refused("fit", "mixture", "points.npy", "-o", "m", "--latent-dim", "3")
    assert "Mixture has no option --latent-dim" in message
    assert "--max-iter" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--components"], "--components without a value"),
        (["--components", "0"], "components=0"),
        (["--components", "many"], "--components many. Wanted: a whole number"),
        (["--components", "true"], "--components true. Wanted: a whole number"),
        (["--budget", "-1"], "--budget -1. Wanted: a positive time"),
        (["--tol", "NaN"], "--tol NaN. Wanted: a number"),
        (["--tol", "true"], "--tol true. Wanted: a number"),
        (["--tol", "small"], "--tol small. Wanted: a number"),
        (["--emission", "normal"], "--emission normal. Wanted: Emission, in Python"),
        (["stray"], "The word 'stray'"),
        (["-x", "3"], "The word '-x'"),
        (["--components", "99"], "40 rows for 99 components"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_wrong_options_leave_no_model(here, words, message):
    before = everything(here)
    assert message in refused("fit", "mixture", "points.npy", "-o", "m", *words)
    assert everything(here) == before


@pytest.mark.parametrize("budget", ["nonsense", "0", "-1", "", "nan", "inf", "5 parsecs", "0s"])
def test_a_budget_that_is_no_time_is_refused(budget):
    assert "positive time" in refused("compare", "points.npy", "--budget", budget)


@pytest.mark.parametrize(("text", "seconds"), [("60", 60), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_budgets_are_read_in_seconds_minutes_and_hours(text, seconds):
    assert options.seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "0"], "--rows 0"),
        (["--test", "0"], "test=0"),
        (["--test", "nan"], "test=nan"),
        (["--seed", "-1"], "--seed"),
        (["--families", ","], "There is no family ''"),
        (["--families", "vae,vae", "--test", "2"], "test=2"),
    ],
)
def test_wrong_options_of_compare_leave_nothing(here, words, message):
    before = everything(here)
    assert message in refused("compare", "points.npy", *words)
    assert everything(here) == before


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("64,32", (64, 32)),
        ("64,", (64,)),
        ("diag", "diag"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_values_are_numbers_lists_or_text(text, value):
    assert options.value_of(text) == value


# Data


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "empty.csv"),
        ("header.csv", "a,b\n", "no rows"),
        ("inf.csv", "a,b\n1.5,2\ninf,4\n", "row 1, column a"),
        ("ragged.csv", "a,b\n1,2\n3\n", "ragged.csv"),
        ("twice.csv", "a,a\n1,2\n3,4\n", "Duplicate column names"),
        ("void.csv", "a,b\n1.5,\n2.5,\n", "'b' has no values"),
        ("empty.txt", "", "empty.txt"),
        ("what.json", "{}", ".json"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_every_command(here, saved, name, content, message):
    Path(name).write_text(content)
    before = everything(here)
    assert message in refused("fit", "independent", name, "-o", "m")
    assert message in refused("compare", name)
    refused("score", saved / "table", name, "-o", "scores.csv")
    assert everything(here) == before


@pytest.mark.parametrize("name", ["nowhere.csv", ".", "n" * 5000])
def test_paths_that_lead_nowhere_are_refused(name, saved):
    for words in (["compare", name], ["fit", "mixture", name, "-o", "m"], ["score", saved / "table", name]):
        refused(*words)


def test_garbage_cannot_speak_to_the_terminal():
    Path("evil.csv").write_bytes(b"a,b\n\x1b]0;owned\x07\x1b[2J\n1,2\n")
    message = refused("fit", "independent", "evil.csv", "-o", "m")
    assert "\x1b" not in message
    assert "\\x1b[2J" in message


def test_data_of_another_event_are_refused(saved):
    assert "lacks ['size', 'colour']" in refused("score", saved / "table", "iris")
    refused("score", saved / "table", "points.npy")
    refused("score", saved / "points", "mixed.csv")
    refused("score", saved / "points", "digits")


def test_an_unseen_category_is_named_by_row_and_column(saved):
    Path("new.csv").write_text("size,colour\n1.5,red\n2.5,octarine\n")
    message = refused("score", saved / "table", "new.csv")
    assert "row 1, column colour: 'octarine'" in message


def test_a_family_that_does_not_suit_says_why():
    message = refused("fit", "gaussiancopula", "mixed.csv", "-o", "m")
    assert "GaussianCopula does not suit" in message
    assert "probgen compare" in message


def test_text_that_no_family_suits_lists_every_reason():
    Path("tale.txt").write_text("a rose\nis a rose\nis a rose\n")
    message = refused("compare", "tale.txt", "--families", "mixture,vae")
    assert "No family can be fitted to Text()" in message
    assert "Mixture: " in message
    assert "{" not in message


# Text

TALE = "".join(f"the {a} {b} on the {c}\n" for a in ("cat", "dog") for b in ("sat", "lay", "ran") for c in ("mat", "é"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Models of text by name."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "tale.txt").write_text(TALE * 20)
    for name, more in {"ngram": ["--tokens", 280], "language": ["--tokens", 256, "--steps", 5, "--width", 16]}.items():
        assert run("fit", name, folder / "tale.txt", "-o", folder / name, *more).exit_code == 0
    return folder


@pytest.mark.parametrize(("name", "claim"), [("ngram", "at most "), ("language", "")])
def test_text_is_scored_in_bits_a_byte(written, name, claim):
    answer = run("score", written / name, written / "tale.txt")
    assert answer.exit_code == 0
    rate = re.search(r"\n(at most )?([0-9.]+) bits/byte over [0-9]{4} bytes", answer.stdout)
    assert (rate[1] or "") == claim
    assert 0 < float(rate[2]) < 9


def test_a_text_is_drawn_from_its_beginning_on_and_by_a_chosen_sampler(written):
    words = ("sample", written / "language", "--given", "the cat", "--length", 30)
    plain, chosen = run(*words), run(*words, "--top-k", 3, "--temperature", 0.5)
    assert plain.stdout.startswith("the cat")
    assert chosen.stdout.startswith("the cat")
    assert "top_k=3" in chosen.stderr
    assert run("sample", written / "language", "-n", 3, "--length", 9, "-o", "drawn.txt").exit_code == 0
    assert len(Path("drawn.txt").read_text().splitlines()) == 3
    assert "--tepmerature" in refused(*words, "--tepmerature", 1)
    assert "options of sample" in refused("sample", written / "ngram", "--top-k", 3)


@pytest.mark.parametrize("name", ["ngram", "language"])
def test_a_text_is_packed_and_comes_back_byte_by_byte(written, name):
    Path("new.txt").write_bytes("the dog sat on thé mat\r\n\nthe cat".encode())
    assert run("compress", written / name, "new.txt", "-o", "new.bin").exit_code == 0
    assert run("decompress", written / name, "new.bin", "-o", "back.txt").exit_code == 0
    assert Path("back.txt").read_bytes() == Path("new.txt").read_bytes()
    assert "exists" in refused("compress", written / name, "new.txt", "-o", "new.bin")


def test_models_of_text_stand_in_one_table_in_bits_a_byte(written):
    families = ("--families", "ngram,compressor", "--out", "all")
    answer = run("compare", written / "tale.txt", *families)
    assert answer.exit_code == 0
    assert "bits/" in answer.stdout
    assert {"samples.txt", "scores.parquet", "report.html"} <= {path.name for path in Path("all").iterdir()}
    assert frames.read(Path("all") / "summary.parquet")["bits/byte"][0].as_py() < 3


# Models


def test_a_folder_without_a_model_is_refused(here):
    for words in (["card", "."], ["sample", "nowhere"], ["score", "nowhere", "points.npy"]):
        assert "card.json" in refused(*words)


def test_the_card_is_json(saved):
    about = json.loads(done("card", saved / "vae").stdout)
    assert about["family"] == "VAE"
    assert about["shapes"]


@pytest.mark.parametrize("n", ["0", "-3", "three", "1.5"])
def test_a_number_of_draws_that_is_none_is_refused(saved, n):
    assert "-n" in refused("sample", saved / "points", "-n", n) or "n=" in refused("sample", saved / "points", "-n", n)


def test_samples_are_csv_that_reads_back(saved):
    answer = done("sample", saved / "table", "-n", 50)
    Path("drawn.csv").write_text(answer.stdout)
    back = pg.datasets.read("drawn.csv").to_pydict()
    assert set(back["colour"]) == {"red", "bé, blue"}
    assert len(back["size"]) == 50
    assert "50 draws from p" in answer.stderr
    assert "1 draw from p" in done("sample", saved / "table").stderr


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy", ".png", ".CSV"])
def test_samples_go_into_a_file_of_the_kind_that_its_name_says(saved, suffix):
    done("sample", saved / "points", "-n", 4, "-o", f"drawn{suffix}")
    if suffix == ".png":
        assert Path("drawn.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert len(pg.datasets.load(f"drawn{suffix}")) == 4


def test_series_are_not_squeezed_into_an_array(saved):
    assert "lengths" in refused("sample", saved / "series", "-n", 2, "-o", "x.npy")
    assert done("sample", saved / "series", "-n", 2).stdout.startswith("row,step,x\n0,0,")


def test_scores_are_a_row_a_data_row(saved):
    answer = done("score", saved / "points", "points.npy", "-o", "scores.csv")
    model = pg.load(saved / "points")
    assert pd.read_csv("scores.csv")["log_prob"].tolist() == pytest.approx(model.log_prob(POINTS).nats.tolist())
    assert "exact" in answer.stdout
    assert "40 rows written to scores.csv" in answer.stdout


@pytest.mark.parametrize("name", ["points", "vae"])
def test_some_rows_are_scored_as_among_all_and_keep_their_numbers(saved, name):
    model = pg.load(saved / name)
    by, words = (pg.IWAE(50), ("--by", "iwae:samples=50")) if name == "vae" else (None, ())
    done("score", saved / name, "points.npy", "--rows", 12, "-o", "some.csv", *words)
    some = pd.read_csv("some.csv")
    assert len(some) == len(set(some["row"])) == 12
    assert some["row"].tolist() != list(range(12))
    assert some["log_prob"].tolist() == pytest.approx(model.log_prob(POINTS, by=by, seed=0).nats[some["row"]].tolist())
    assert "--rows 3 beside --steps" in refused("score", saved / name, "points.npy", "--rows", 3, "--steps")
    assert "--rows 3 beside --key" in refused("score", saved / name, "points.npy", "--rows", 3, "--key", "id")


def test_what_takes_long_is_said_and_scored_piece_by_piece(saved, monkeypatch):
    module = sys.modules["probgen.cli.pieces"]
    monkeypatch.setattr(module, "_LONG", 0.0)
    monkeypatch.setattr(module, "_PIECE", 0.0)
    answer = done("score", saved / "vae", "points.npy", "--by", "iwae:samples=50", "-o", "all.csv")
    assert "about 1 min for 40 rows; --rows 500 scores some, drawn at random" in answer.stderr
    scores = pd.read_csv("all.csv")
    assert scores["row"].tolist() == list(range(40))
    whole = pg.load(saved / "vae").log_prob(POINTS, by=pg.IWAE(50), seed=0)
    assert scores["log_prob"].tolist() == pytest.approx(whole.nats.tolist())


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_the_folder_of_a_comparison_is_named_as_other_outputs_are(option):
    done("compare", "points.npy", "--families", "independent", "--no-report", option, "c")
    assert Path("c/scores.parquet").exists()


def test_a_refused_likelihood_is_an_answer_that_says_so(saved):
    assert "unavailable" in done("score", saved / "gan", "points.npy").stdout
    assert "no finite support" in done("score", saved / "vae", "points.npy", "--by", "enumerate").stdout


def test_an_estimator_can_be_chosen(saved):
    assert "ELBO(samples=7)" in done("score", saved / "vae", "points.npy", "--by", "elbo:samples=7").stdout


def test_the_collector_of_cycles_is_back_when_a_command_begins_its_work(saved, monkeypatch):
    seen = []
    module = sys.modules["probgen.cli.commands.score"]
    monkeypatch.setattr(module, "refuse_absent", lambda *_: seen.append(gc.isenabled()))
    try:
        gc.disable()  # as main does
        done("score", saved / "points", "points.npy")
        refused("score", saved / "nothing", "points.npy")
        assert seen == [True, True]
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()


# Records


def records(n=60):
    """Pictures of three sizes of a spot, and what is said of them."""
    sizes = np.arange(n) % 3
    distance = np.abs(np.indices((4, 4)) - 1.5).max(axis=0)
    images = (distance[None] <= sizes[:, None, None] + 0.5).astype(int)
    return {"image": images, "caption": [["a small spot", "a spot", "a large spot"][size] for size in sizes]}


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    """A saved model of records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pg.store.FAMILIES, "MultimodalVAE", "probgen.models.multimodal")
        event = Record(image=Array((4, 4), levels=2), caption=Text())
        model = options.fitted("multimodal", event, records(), {"steps": "30", "latent_dim": "2"}, 0)
        yield pg.save(model, tmp_path_factory.mktemp("models") / "spots")


def test_text_of_records_is_read_in_its_own_words(spots):
    model = pg.load(spots)
    assert model.event.parts["caption"].tokenizer == Words.learn(records()["caption"])
    assert options.worded(model.event, records()) == model.event  # words already


def test_records_are_drawn_given_a_caption_and_written_into_a_folder(spots):
    answer = done("sample", spots, "-n", 10, "--given", "caption=a large spot", "-o", "drawn")
    assert [json.loads(line) for line in answer.stdout.splitlines()] == [{"caption": "a large spot"}] * 10
    assert "10 draws from p(. | given)" in answer.stderr
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["draws.jsonl", "draws.npz", "draws.png"]
    with np.load("drawn/draws.npz") as arrays:
        assert arrays["image"].shape == (10, 4, 4)
        assert set(np.unique(arrays["image"])) <= {0, 1}
    assert len(done("sample", spots, "-n", 2).stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--given", "a boot"], "Wanted: PART=TEXT"), (["--given", "captoin=x"], "Did you mean 'caption'"),
        (["--given", "image=x"], "Known: caption"), (["--given", "caption=x", "--given", "caption=y"], "once a part"),
        (["-o", "mixed.csv"], "exists already"), (["-o", "x.csv"], "Wanted: a folder"), (["-o", "there"], "exists"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_record_to_draw_is_told(spots, words, text):
    Path("there").mkdir()
    Path("there/precious.txt").write_text("x")
    assert text in refused("sample", spots, *words)
    assert "precious.txt" in os.listdir("there")


# Outputs


def test_outputs_are_checked_before_the_work_and_nothing_is_overwritten(here, saved, monkeypatch):
    Path("mine.csv").write_text("precious")
    (here / "folder.csv").mkdir()
    monkeypatch.setattr("probgen.store.load", lambda _: pytest.fail("the work was begun"))
    for output in ("mine.csv", "mine.txt", "nowhere/x.csv", "folder.csv"):
        refused("score", saved / "points", "points.npy", "-o", output)
        refused("sample", saved / "points", "-o", output)
    assert Path("mine.csv").read_text() == "precious"


def test_an_output_is_replaced_when_that_is_asked(saved):
    Path("mine.csv").write_text("old")
    done("sample", saved / "points", "-n", 2, "-o", "mine.csv", "--overwrite")
    assert len(pg.datasets.read("mine.csv")) == 2


def test_a_model_is_replaced_only_when_that_is_asked():
    fit = ["fit", "independent", "points.npy", "-o", "m"]
    done(*fit)
    before = Path("m/card.json").read_bytes()
    assert "--overwrite" in refused(*fit)
    assert Path("m/card.json").read_bytes() == before
    done(*fit, "--overwrite", "--seed", 7)
    assert pg.load("m").report.seed == 7


def test_a_model_is_never_put_among_other_files_or_into_a_file(here):
    (here / "work").mkdir()
    (here / "work" / "notes.md").write_text("mine")
    for output in ("work", "points.npy", "points.npy/m"):
        refused("fit", "independent", "points.npy", "-o", output, "--overwrite")
    assert everything(here / "work") == ["notes.md"]


def test_outputs_one_may_not_write_are_refused_before_the_work(here, saved, monkeypatch):
    """Root may write everywhere, so the system's answers are put in its mouth."""
    before = everything(here)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert "no folder one may write to" in refused("fit", "independent", "points.npy", "-o", "m")
    assert "no folder one may write to" in refused("sample", saved / "points", "-o", "x.csv")
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(denied))
    assert "Permission denied" in refused("compare", "points.npy", "--out", "c")
    assert everything(here) == before


# Compare

FAST = ["--families", "independent,mixture", "--budget", "1s"]


def test_compare_on_a_table_with_gaps_writes_everything_it_says(here):
    answer = done("compare", "mixed.csv", *FAST, "--out", "c")
    assert everything(here / "c")[-3:] == ["samples.png", "scores.parquet", "summary.parquet"]
    assert {path.name for path in (here / "c" / "models").iterdir()} == {"Independent", "Mixture"}
    assert "32 rows to fit, 8 rows held out" in answer.stderr
    assert "mixed: 8 rows held out" in answer.stdout
    assert len(frames.read("c/scores.parquet")) == 16
    assert [path for path in here.iterdir() if path.name.startswith(".")] == []
    assert len(pg.load("c/models/Mixture").log_prob(pg.datasets.read("mixed.csv"))) == 40


def test_compare_without_a_folder_takes_the_first_free_name(here):
    for _ in range(2):
        done("compare", "points.npy", "--families", "independent")
    assert {path.name for path in here.iterdir() if path.is_dir()} == {"comparison-points", "comparison-points-2"}


def test_a_series_is_told_in_steps():
    answer = done("compare", "earthquakes", "--out", "c")
    assert "1 series of 86 steps to fit, 1 series of 21 steps held out" in answer.stderr
    assert "the last 21 steps held out, each scored given all before it" in answer.stdout
    assert "A row is one step" in answer.stdout


def table_of_sequences():
    """A csv of 12 short sequences, whose rows are mixed up."""
    rng = np.random.default_rng(8)
    of = rng.permutation(np.repeat([f"s{i}" for i in range(12)], 4))
    frame = pd.DataFrame({"id": of, "x": rng.normal(size=48), "k": rng.choice(["u", "v"], 48)})
    frame.to_csv("steps.csv", index=False)
    return frame


def test_rows_of_a_table_are_fitted_scored_and_sampled_as_sequences():
    frame = table_of_sequences()
    done("fit", "independent", "steps.csv", "--sequence", "id", "-o", "m")
    model = pg.load("m")
    assert repr(model.event) == "Panel(columns={'x': Real(), 'k': Category(levels=('u', 'v'))}, sequence='id')"
    done("score", "m", "steps.csv", "-o", "scores.csv")
    scores = pd.read_csv("scores.csv")
    assert scores["row"].tolist() == list(dict.fromkeys(frame["id"]))
    assert scores["log_prob"].tolist() == pytest.approx(model.log_prob(frame).nats.tolist())
    done("sample", "m", "-n", 2, "-o", "drawn.csv")
    assert "2 rows" in done("score", "m", "drawn.csv").stdout


def test_steps_are_scored_a_row_each():
    frame = table_of_sequences()
    done("fit", "independent", "steps.csv", "--sequence", "id", "-o", "m")
    lines = done("score", "m", "steps.csv", "--steps").stdout.splitlines()
    steps = pg.load("m").log_prob_steps(frame)
    assert lines[0] == "step,log_prob"
    assert [line.split(",")[0] for line in lines[1:]] == steps.event.keys.tolist()
    assert [float(line.split(",")[1]) for line in lines[1:]] == pytest.approx(steps.nats.tolist())
    done("score", "m", "steps.csv", "--steps", "--sequence", "id", "-o", "s.parquet")
    assert frames.read("s.parquet").to_pydict()["log_prob"] == steps.nats.tolist()


def test_a_model_of_rows_has_no_steps(saved):
    assert "Steps of Array" in refused("score", saved / "points", "points.npy", "--steps")
    assert "--by elbo beside --steps" in refused("score", saved / "vae", "points.npy", "--steps", "--by", "elbo")


def test_a_minus_makes_the_whole_data_one_sequence():
    table_of_sequences()
    frame = pd.read_csv("steps.csv").drop(columns="id")
    frame.to_csv("one.csv", index=False)
    answer = done("compare", "one.csv", "--sequence", "-", "--families", "independent", "--out", "c")
    assert "1 series of 38 steps to fit, 1 series of 10 steps held out" in answer.stderr
    assert frames.read("c/scores.parquet").to_pydict()["row"] == list(range(38, 48))
    done("fit", "independent", "points.npy", "--sequence", "-", "-o", "m")
    assert pg.load("m").event == Series((2,))


def test_sequences_are_compared_whole_and_their_labels_kept():
    frame = table_of_sequences()
    answer = done("compare", "steps.csv", "--sequence", "id", "--families", "independent", "--rows", 1, "--out", "c")
    assert "10 series of 40 steps together to fit, 2 series of 8 steps together held out, 1 of them" in answer.stderr
    (row,) = frames.read("c/scores.parquet").to_pydict()["row"]
    model = pg.load("c/models/Independent")
    assert (
        frames.read("c/scores.parquet").to_pydict()["log_prob"]
        == model.log_prob(frame[frame["id"] == row]).nats.tolist()
    )


def test_a_wrong_sequence_column_is_refused_by_every_command(here, saved):
    table_of_sequences()
    done("fit", "independent", "steps.csv", "--sequence", "id", "-o", "m")
    before = everything(here)
    assert "Did you mean 'id'" in refused("fit", "independent", "steps.csv", "--sequence", "idd", "-o", "z")
    assert "Did you mean 'id'" in refused("compare", "steps.csv", "--sequence", "idd")
    assert "Wanted: --sequence id" in refused("score", "m", "steps.csv", "--sequence", "k")
    assert "no --sequence" in refused("score", saved / "table", "mixed.csv", "--sequence", "colour")
    assert "without the sequence column 'id'" in refused("score", "m", "mixed.csv")
    assert "for earthquakes" in refused("fit", "independent", "earthquakes", "--sequence", "id", "-o", "z")
    assert "ndarray" in refused("fit", "independent", "points.npy", "--sequence", "id", "-o", "z")
    assert everything(here) == before


@pytest.mark.parametrize(
    ("family", "nats"), [("independent", -391.9189), ("hmm", -341.8787), ("statespace", -340.0048)]
)
def test_a_fit_of_sequences_is_told_in_nats_a_step_whatever_the_family_divides_by(family, nats):
    """Of 107 counts: Zucchini, MacDonald and Langrock (2016) for one and two states; our own cell masses."""
    options = ("--states", 2) if family == "hmm" else ()
    told = done("fit", family, "earthquakes", "-o", "m", *options).stdout
    last = float(re.search(r"-> (\S+) nats/step, \d+ iterations?, converged", told)[1])
    near = 0.03 if family == "independent" else 1e-4  # its mean is smoothed by one imaginary step
    assert last == pytest.approx(nats / 107, abs=near)
    assert "nats/row" not in told
    each = pg.load("m").log_prob(pg.datasets.load("earthquakes").x).nats[0] / 107
    assert f"1 sequence of 107 steps, {each:.4f} nats/step" in done("score", "m", "earthquakes").stdout


def test_an_objective_is_told_a_step_of_sequences_and_a_row_of_others():
    cells = Series().check([np.zeros(3), np.zeros(5)]).x
    fitted = SimpleNamespace(report=FitReport((-9.0, -8.0), 1, "steps", 0.1))
    told = outputs.told(fitted, cells)
    assert told.startswith("objective -9.0000 -> -8.0000 nats/step, 1 iteration, their limit reached")
    assert outputs.told(fitted, np.zeros((8, 2))).startswith("objective -9.0000 -> -8.0000 nats/row")


def test_several_sequences_are_scored_with_their_nats_a_step(saved):
    frame = table_of_sequences()
    done("fit", "independent", "steps.csv", "--sequence", "id", "-o", "m")
    total = pg.load("m").log_prob(frame).nats.sum()
    told = f"a row is a whole sequence: 12 sequences of 48 steps together, {total / 48:.4f} nats/step"
    assert told in done("score", "m", "steps.csv").stdout
    assert "whole sequence" not in done("score", "m", "steps.csv", "--steps", "-o", "s.csv").stdout
    assert "nats/step" not in done("score", saved / "points", "points.npy").stdout


def test_a_frame_is_compared_and_drawn_with_the_names_of_its_categories(monkeypatch):
    seen = {}
    monkeypatch.setattr("probgen.plots.series", lambda drawn, path, **given: seen.update(given))
    table_of_sequences()
    answer = done("compare", "steps.csv", "--sequence", "id", "--families", "independent,hmm", "--out", "c")
    assert seen["levels"] == [None, ("u", "v")]
    assert "fitting HMM(2), at most" in answer.stderr
    assert "A row is one whole sequence" in answer.stdout
    for name in ("HMM(2)", "HMM(3)", "HMM(4)", "Independent"):
        assert name in answer.stdout
    assert max(map(len, answer.stdout.split("\n\n")[0].splitlines())) <= 120


def test_an_array_of_a_data_set_can_be_one_sequence():
    done("fit", "independent", "moons", "--sequence", "-", "-o", "m")
    assert pg.load("m").event == Series((2,))
    words = refused("fit", "hmm", "moons", "-o", "z")
    assert "--sequence - makes them one sequence" in words
    assert "COLUMN" not in words


def test_a_family_that_does_not_suit_a_wide_table_says_so_briefly():
    pd.DataFrame({f"column{i}": np.arange(30.0) + 0.5 for i in range(40)}).to_csv("wide.csv", index=False)
    words = refused("fit", "hmm", "wide.csv", "-o", "z")
    assert "its observations are sequences" in words
    assert "--sequence COLUMN" in words
    assert len(words) < 450


def test_a_card_shows_mappings_as_mappings(saved):
    about = json.loads(done("card", saved / "table").stdout)
    assert about["fit"]["stopped"] == "converged"
    assert list(about["arguments"]["event"]["arguments"]["columns"]) == ["size", "colour"]
    assert outputs.readable({"dict": [[1, 2]]}) == {"dict": [[1, 2]]}  # keys that JSON can't name stay pairs


def test_samples_of_series_are_drawn_over_time(saved):
    done("sample", saved / "series", "-n", 2, "-o", "x.png")
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


def test_sequences_are_drawn_as_long_as_asked(saved):
    lines = done("sample", saved / "series", "-n", 2, "--length", 7).stdout.splitlines()
    assert [line.rpartition(",")[0] for line in lines[1:]] == [f"{i},{t}" for i in range(2) for t in range(7)]
    assert "a model of sequences" in refused("sample", saved / "points", "--length", 3)
    assert "--length" in refused("sample", saved / "series", "--length", 0)


def test_help_names_the_families_of_sequences():
    words = " ".join(done("fit", "--help").stdout.replace("│", " ").split())
    assert "hmm, statespace" in words
    assert "--sequence" in words


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("em", Literal["em", "gradient"], "em"),
        ("3", Literal[2, 3], 3),
        ("null", Optional[int], None),  # noqa: UP045
        ("0,0,1", Sequence[int] | None, (0, 0, 1)),
        ("0,1", tuple[int, ...], (0, 1)),
    ],
)
def test_declared_types_are_read(text, hint, value):
    assert options.typed("--it", text, hint) == value


@pytest.mark.parametrize(
    ("text", "hint", "wanted"),
    [
        ("nuts", Literal["em", "gradient"], "one of em, gradient"),
        ("normal", emissions.Normal | None, "Normal, in Python"),
        ("3", Any, "Any, in Python"),
        ("1", Series | int | None, None),
    ],
)
def test_a_value_of_another_type_is_told_the_declared_one(text, hint, wanted):
    if wanted is None:
        assert options.typed("--it", text, hint) == 1
        return
    with pytest.raises(ParameterError, match=wanted):
        options.typed("--it", text, hint)


def test_held_out_rows_are_cut_to_what_was_asked():
    answer = done("compare", "moons", "--families", "independent", "--rows", 30, "--out", "c")
    assert "1600 rows to fit, 400 rows held out, 30 of them scored" in answer.stderr
    assert len(frames.read("c/scores.parquet")) == 30


def test_complete_rows_let_every_family_take_part():
    assert "--complete-rows" in done("compare", "mixed.csv", "--families", "independent,kerneldensity").stdout
    answer = done("compare", "mixed.csv", "--families", "independent,kerneldensity", "--complete-rows", "--out", "c")
    gaps = pd.read_csv("mixed.csv").isna().any(axis=1).sum()
    said = f"{gaps} of 40 rows have missing cells and were left out (complete rows)"
    assert said in answer.stderr
    assert said in answer.stdout
    assert said in Path("c/report.html").read_text()
    assert set(frames.read("c/scores.parquet").to_pydict()["family"]) == {"Independent", "KernelDensity"}
    assert "Add --complete-rows" in refused("compare", "mixed.csv", "--families", "kerneldensity", "--out", "d")


def test_what_is_scored_is_looked_for_before_the_place_of_its_scores(saved):
    assert "There is no file nix.csv" in refused("score", saved / "table", "nix.csv", "-o", "/nowhere/x.txt")
    assert "There is no model in nix" in refused("score", "nix", "nix.csv", "-o", "/nowhere/x.txt")
    assert "ends in one of .parquet, .csv" in refused("score", saved / "table", "mixed.csv", "-o", "x.txt")
    assert "There is no file nix.csv" in refused("compress", saved / "table", "nix.csv", "-o", "/nowhere/x")


def test_columns_that_name_the_rows_are_pointed_out():
    MIXED.assign(id=range(40)).to_csv("ids.csv", index=False)
    noted = done("compare", "ids.csv", "--families", "independent", "--out", "c").stderr
    assert "column 'id' differs in every row" in noted
    assert "column 'size'" not in noted


def failing(error):
    def _fit(self, x, given, *, generator, budget=1.0, progress=None):
        raise error

    return _fit


@pytest.mark.parametrize("error", [FitError("The objective became nan"), DataError("Row 3 is missing")])
def test_one_family_that_fails_does_not_lose_the_others(monkeypatch, error):
    monkeypatch.setattr(Mixture, "_fit", failing(error))
    answer = done("compare", "points.npy", *FAST, "--out", "c")
    assert f"Mixture was left out: it could not be fitted: {error}" in answer.stdout
    assert set(frames.read("c/scores.parquet").to_pydict()["family"]) == {"Independent"}


def test_two_rows_are_compared_as_far_as_that_goes(recwarn):
    np.save("two.npy", RNG.normal(size=(2, 2)))
    answer = done("compare", "two.npy", "--families", "independent,kerneldensity,mixture", "--out", "c")
    assert "KernelDensity was left out: it could not be fitted: 1 row" in answer.stdout
    np.save("one.npy", RNG.normal(size=(1, 2)))
    assert "at least one row on each side" in refused("compare", "one.npy")


@pytest.mark.filterwarnings("default")
def test_warnings_are_notes_without_a_place_in_the_code():
    MIXED.assign(size=7.5).to_csv("constant.csv", index=False)
    noted = done("compare", "constant.csv", "--families", "independent", "--out", "c").stderr
    assert "probgen: note: " in noted
    assert "data look rounded" in noted
    assert ".py" not in noted


def test_a_folder_that_exists_is_replaced_only_if_it_holds_a_comparison_and_nothing_else(here):
    fast = ["compare", "points.npy", "--families", "independent", "--out"]
    (here / "empty").mkdir()
    done(*fast, "empty")
    before = everything(here)
    assert "--overwrite" in refused(*fast, "empty")
    assert everything(here) == before
    done(*fast, "empty", "--overwrite", "--rows", 3)
    assert len(frames.read("empty/scores.parquet")) == 3
    (here / "empty" / "notes.md").write_text("mine")  # now --overwrite would lose a file that probgen did not write
    refused(*fast, "empty", "--overwrite")
    refused(*fast, "points.npy", "--overwrite")
    refused(*fast, ".", "--overwrite")
    assert (here / "empty" / "notes.md").read_text() == "mine"
    assert everything(here) == sorted([*before, "empty/notes.md"])


def test_a_comparison_that_dies_half_way_leaves_nothing_and_keeps_the_old_one(here, monkeypatch):
    fast = ["compare", "points.npy", "--families", "independent", "--out", "c"]
    done(*fast)
    before = everything(here)
    monkeypatch.setattr("probgen.store.save", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert "No space left" in refused(*fast, "--overwrite")
    refused(*fast[:-1], "d")
    assert everything(here) == before


def test_an_old_comparison_comes_back_when_the_new_one_cannot_take_its_place(here, monkeypatch):
    fast = ["compare", "points.npy", "--families", "independent", "--out", "c"]
    done(*fast)
    before = everything(here)
    rename = Path.rename

    def failing_once(self, target):
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_once)
    assert "Input/output error" in refused(*fast, "--overwrite")
    assert everything(here) == before


def test_a_defect_of_ours_is_called_that_and_exits_with_1(monkeypatch):
    monkeypatch.setattr(Independent, "_fit", failing(TypeError("a slip")))
    answer = run("fit", "independent", "points.npy", "-o", "m")
    assert answer.exit_code == 1
    assert "Traceback" in answer.stderr
    assert "a defect of probgen" in answer.stderr


# Interruptions


def interrupted_at(monkeypatch, step):
    """Training that sees Ctrl-C at a step."""
    take_step = training._Run.take_step

    def stepping(self, data):
        if self.step == step:
            raise KeyboardInterrupt
        return take_step(self, data)

    monkeypatch.setattr(training._Run, "take_step", stepping)


def test_ctrl_c_while_training_saves_the_best_state_and_exits_with_130(monkeypatch):
    interrupted_at(monkeypatch, 5)
    answer = run("fit", "vae", "points.npy", "-o", "m", "--steps", 30, "--hidden", "4,")
    assert answer.exit_code == 130, answer.output
    assert "best state so far is saved in m" in answer.stderr
    assert pg.load("m").report.stopped == "interrupted"


def test_ctrl_c_before_the_first_evaluation_saves_nothing(here, monkeypatch):
    interrupted_at(monkeypatch, 0)
    answer = run("fit", "vae", "points.npy", "-o", "m", "--steps", 30)
    assert answer.exit_code == 130
    assert "nothing was written" in answer.stderr
    assert not (here / "m").exists()


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["interrupted", "terminated"]
)
def test_a_signal_during_compare_leaves_nothing_behind(here, sent, code):
    before = everything(here)
    words = [*PROBGEN, "compare", "points.npy", "--families", "vae", "--budget", "10m"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "fitting VAE" in line:
                break
        process.send_signal(sent)
        out, err = process.communicate(timeout=50)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out == ""
    assert everything(here) == before


# Terminals and pipes


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def comparison():
    from probgen.evaluate.compare import compare

    models = {
        "KernelDensity": pg.KernelDensity(Array((2,))).fit(POINTS, seed=1),
        "GAN": pg.GAN(Array((2,)), 2, (4,), penalty=0.25).fit(POINTS, seed=1, steps=2),
    }
    return compare(models, POINTS, seed=1)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_table_fits_its_terminal_and_no_word_in_it_is_broken(monkeypatch, comparison, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    outputs.show(comparison, "points")
    styled = sys.stdout.getvalue()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", styled)
    assert max(map(len, shown.splitlines())) <= width
    assert all(word in shown for word in ("KernelDensity", "unavailable", "exact", "nats/row"))
    assert ("Too narrow for" in shown) == (width < 100)
    assert ("40 kernels summed" in shown) == (width >= 100)  # room that is left goes to the last column
    assert not re.search(r"\x1b\[(3|9)[0-7]m", styled)  # NO_COLOR asks for no colours; bold and dim may stay


def test_a_closed_standard_output_is_no_reason_to_break(monkeypatch, comparison):
    monkeypatch.setattr(sys, "stdout", None)
    outputs.show(comparison, "points")


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "+- \\xe9"), ("latin-1", "± é"), ("utf-8", "± é")])
def test_what_an_encoding_cannot_hold_is_written_another_way(encoding, shown):
    assert outputs.encodable("± é", io.TextIOWrapper(io.BytesIO(), encoding=encoding)) == shown


def process(*words, **more):
    given = {"capture_output": True, "text": True, "timeout": 50} | more
    return subprocess.run([*PROBGEN, *map(str, words)], check=False, **given)


def test_a_comparison_is_kept_although_nobody_reads_its_table(here):
    """The reader of the pipe is gone, and the locale knows no ±."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    more = {"capture_output": False, "stdout": write, "stderr": subprocess.PIPE, "env": environment}
    answer = process("compare", "points.npy", "--families", "independent", "--out", "c", **more)
    os.close(write)
    assert answer.returncode == 0
    assert "Traceback" not in answer.stderr
    assert "Exception" not in answer.stderr
    assert (here / "c" / "scores.parquet").exists()


def test_a_mistake_exits_a_process_with_2_and_no_traceback():
    answer = process("sample", "nowhere")
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("probgen: There is no model in nowhere")


def test_help_and_the_face_load_nothing_heavy():
    heavy = {"torch", "pyro", "scipy", "pandas", "matplotlib", "sklearn", "pyarrow"}
    code = (
        "import sys, probgen; face = set(sys.modules)\n"
        "from probgen.cli import app; from typer.testing import CliRunner\n"
        "for words in (['--help'], ['compare', '--help'], ['fit'], ['nonsense']): CliRunner().invoke(app, words)\n"
        f"print(sorted({heavy} & face), 'numpy' in face, sorted({heavy} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert answer.stdout.strip() == "[] False []", answer.stderr


# Networks

TINY = """network tiny { }
variable rain { type discrete [ 2 ] { TRUE, FALSE }; }
variable "wet grass" { type discrete [ 3 ] { 0, 1, 2 }; }
probability ( rain ) { table 0.25, 0.7500001; }
probability ( "wet grass" | rain ) { (TRUE) 0, 0.25, 0.75; (FALSE) 0.5, 0.5, 0; }
"""
WEATHER = pd.DataFrame({"rain": ["TRUE", None, "FALSE", None, "TRUE"], "wet grass": ["1", "2", None, None, "0"]})


@pytest.fixture
def tiny(here):
    (here / "tiny.bif").write_text(TINY)
    WEATHER.to_parquet("rows.parquet")
    WEATHER.to_csv("rows.csv", index=False)


def test_a_network_file_scores_rows_with_gaps(tiny):
    """A csv whose levels look like truth values and numbers is read as the network's text."""
    for rows in ("rows.parquet", "rows.csv"):
        answer = done("score", "tiny.bif", rows, "-o", "scores.parquet", "--overwrite")
        assert "5 rows written" in answer.stdout
        assert "exact" in answer.stdout
        p = np.exp(np.array(frames.read("scores.parquet").to_pydict()["log_prob"]))
        wanted = [0.25 * 0.25, 0.25 * 0.75, 0.75, 1, 0]
        np.testing.assert_allclose(p, wanted, rtol=2e-7, atol=0)


def test_scoring_shipped_networks_works_on_rows_with_gaps(here):
    pgmpy = pytest.importorskip("pgmpy")
    path = Path(pgmpy.__file__).parent / "utils" / "example_models" / "alarm.bif.gz"
    done("sample", path, "-n", 50, "-o", "rows.parquet")
    rows = frames.read("rows.parquet").to_pandas()
    rows.mask(np.random.default_rng(0).random(rows.shape) < 0.3).to_parquet("gaps.parquet")
    answer = done("score", path, "gaps.parquet", "-o", "scores.parquet")
    found = frames.read("scores.parquet").to_pydict()
    assert set(found["kind"]) == {"exact"}
    assert -40 < np.mean(found["log_prob"]) < -1
    assert max(map(len, answer.stdout.splitlines())) < 1200  # the measure of 37 columns is cut


def test_a_network_file_is_sampled_and_described(tiny):
    lines = done("sample", "tiny.bif", "-n", 20).stdout.splitlines()
    assert lines[0] == "rain,wet grass"
    assert len(lines) == 21
    assert "TRUE,0" not in lines
    about = json.loads(done("card", "tiny.bif").stdout)
    assert about["family"] == "BayesianNetwork"
    assert "largest correction is 1e-07 (rain)" in about["fit"]["notes"][0]
    assert [2, 3] in about["shapes"].values()


def test_a_network_file_that_is_no_good_is_named(tiny):
    Path("bad.bif").write_text(TINY.replace("0.25, 0.75;", "0.25, 0.5;"))
    assert "bad.bif, line 5: the row [0.0, 0.25, 0.5]" in refused("score", "bad.bif", "rows.csv")
    assert "There is no file tinny.bif" in refused("score", "tinny.bif", "rows.csv")
    assert ".xmlbif" in refused("score", "rows.csv", "rows.csv")
    Path("net.xdsl").write_text("<smile>")
    assert "net.xdsl" in refused("sample", "net.xdsl")
    WEATHER.assign(rain="yes").to_csv("other.csv", index=False)
    assert "column rain: 'yes'" in refused("score", "tiny.bif", "other.csv")


def test_fitting_a_network_learns_and_draws_its_graph(here):
    rng = np.random.default_rng(3)
    a = rng.integers(0, 2, 400)
    b = np.where(rng.random(400) < 0.9, a, 1 - a)
    frame = pd.DataFrame({"a": a, "b": b, "c": rng.integers(0, 2, 400)}).replace({0: "no", 1: "yes"})
    frame.to_csv("votes.csv", index=False)
    answer = done("fit", "bayesnet", "votes.csv", "-o", "net", "--score", "bdeu", "--max-parents", 2, "--restarts", 1)
    assert "1 edge, drawn in net/graph.png" in answer.stdout
    assert Path("net/graph.png").read_bytes().startswith(b"\x89PNG")
    assert {frozenset(edge) for edge in pg.load("net").edges} == {frozenset("ab")}
    assert "exact" in done("score", "net", "votes.csv").stdout
    done("fit", "BayesianNetwork", "votes.csv", "-o", "net", "--overwrite", "--method", "chow-liu")
    assert len(pg.load("net").edges) == 2
    done("fit", "independent", "votes.csv", "-o", "net", "--overwrite")
    assert "graph.png" not in everything(Path("net"))


def test_what_learning_a_graph_refuses_is_said_in_the_options_that_were_typed(here):
    pd.DataFrame({"a": ["x", "y"] * 20, "b": ["u", "v", "u", "w"] * 10}).to_csv("votes.csv", index=False)
    fit = "fit", "bayesnet", "votes.csv", "-o", "net"
    assert "bdeu" in refused(*fit, "--score", "bde")
    assert "--max-parents many" in refused(*fit, "--max-parents", "many")
    assert "scroe" in refused(*fit, "--scroe", "bic")
    assert "in Python" in refused(*fit, "--required", "a>b")
    assert "columns of a table" in refused("fit", "bayesnet", "points.npy", "-o", "net")
    assert not Path("net").exists()


def test_a_card_has_short_lists_on_one_line_and_long_ones_filled(here):
    tables = {f"v{i}": {f"level {j}": 1 / 40 for j in range(40)} for i in range(20)}
    pg.save(pg.BayesianNetwork.from_tables(tables), here / "net")
    text = done("card", "net").stdout
    lines = text.splitlines()
    assert max(len(line) for line in lines if '"repr"' not in line) <= 125
    assert len(lines) < 400  # a level a line would be more than 800
    assert json.loads(text)["shapes"]["parts.0.logits"] == [40]
    event = json.loads(text)["arguments"]["event"]["arguments"]["columns"]
    assert event["v19"]["arguments"]["levels"] == [f"level {j}" for j in range(40)]


def test_values_are_compacted_without_loss():
    values = [0, "é", [], {}, [[1, 2], {"a": None}], {"k": ["x" * 60] * 9, "deep": {"z": list(range(300))}}, True, 0.5]
    for value in (*values, values):
        assert json.loads(outputs.compact(value)) == value
        assert outputs.compact(value, plain=True).isascii()


def test_a_network_scores_a_file_that_lacks_columns(here):
    pg.BayesianNetwork.from_tables({"a": {"0": 0.25, "1": 0.75}, "b": {"x": 0.5, "y": 0.5}}).save_file("net.bif")
    pd.DataFrame({"a": [0, 1, None]}).to_csv("rows.csv", index=False)
    assert "0.0" in Path("rows.csv").read_text()
    done("score", "net.bif", "rows.csv", "-o", "scores.csv")
    assert pd.read_csv("scores.csv")["log_prob"].to_numpy() == pytest.approx(np.log([0.25, 0.75, 1.0]))
    pd.DataFrame({"a": [0, 1]}).to_csv("rows.csv")
    assert "index" in refused("score", "net.bif", "rows.csv")
    Path("rows.csv").write_text("a;b\n0;x\n")
    assert "commas" in refused("score", "net.bif", "rows.csv")


def test_options_that_learning_a_graph_does_not_have_are_unknown(here):
    pd.DataFrame({"a": ["x", "y"] * 20, "b": ["u", "v"] * 20}).to_csv("rows.csv", index=False)
    assert "has no option --edges" in refused("fit", "bayesnet", "rows.csv", "-o", "n", "--edges", "a-b")
    assert "a whole number" in refused("fit", "bayesnet", "rows.csv", "-o", "n", "--max-parents", "a")
