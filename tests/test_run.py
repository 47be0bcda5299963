"""Whole comparisons: a budget that families share fairly, a folder whose report is neither lost nor overwritten."""

import time

import numpy as np
import pytest
from typer.testing import CliRunner

import probgen as pg
from probgen.cli.commands import app
from probgen.datasets import Dataset
from probgen.errors import FitError, StoreError
from probgen.evaluate import run
from probgen.evaluate.fitting import Shares, fit_suitable
from probgen.events import Array
from probgen.models.diffusion import Diffusion
from probgen.models.flow import Flow
from probgen.models.gan import GAN
from probgen.models.mixture import Mixture
from probgen.models.vae import VAE

POINTS = np.random.default_rng(3).normal(size=(60, 2))
TRAINED = (Diffusion, Flow, GAN, Mixture, VAE)  # in the order of their names


def given(budget, spent):
    """The shares of families that take so long."""
    shares, found = Shares(budget, len(spent)), []
    for seconds in spent:
        found.append(shares.next())
        shares.spent(found[-1], seconds)
    return found


def test_shares_are_equal_where_each_takes_its_own():
    assert given(10.0, [2.0] * 5) == pytest.approx([2.0] * 5)


def test_an_overshoot_is_nobody_elses_loss():
    assert given(10.0, [50.0, 2.0, 2.0, 2.0, 2.0]) == pytest.approx([2.0] * 5)
    left = 10.0 - 50.0  # the twin: shares of what is left would have been below nothing
    assert left / 4 < 2.0


def test_what_one_leaves_goes_to_all_that_follow_and_the_whole_is_the_budget():
    found = given(10.0, [0.0, 2.5, 2.5, 2.5, 2.5])
    assert found == pytest.approx([2.0, 2.5, 2.5, 2.5, 2.5])
    rng = np.random.default_rng(1)
    for _ in range(100):
        spent = rng.exponential(2.0, size=5)
        shares = given(10.0, spent)
        assert min(shares) >= 2.0 - 1e-12
        assert sum(min(a, b) for a, b in zip(shares, spent, strict=True)) <= 10.0 + 1e-9


def test_a_slow_family_leaves_the_others_their_shares_and_is_named(monkeypatch):
    def slow(self, x, given, *, generator, budget=1.0, progress=None):
        time.sleep(1.3 if type(self) is Diffusion else 0.0)
        raise FitError("at once")

    for family in TRAINED:
        monkeypatch.setattr(family, "_fit", slow)
    shares, taken = {}, {}
    fit_suitable(
        POINTS, Array((2,)), budget=0.5, families=["Diffusion", "GAN"], on_start=shares.__setitem__,
        on_end=lambda name, share, seconds: taken.__setitem__(name, (share, seconds)),
    )  # fmt: skip
    assert shares == {"Diffusion": 0.25, "GAN": 0.25}
    assert taken["Diffusion"][1] > 1.3
    said = []
    loaded = Dataset("points", POINTS, Array((2,)), "here")
    with pytest.raises(pg.errors.DataError):
        compared("nowhere", loaded, said, families=["Diffusion", "GAN"], budget=0.5)
    assert any(line.startswith("  Diffusion took 1.") and "more than its share" in line for line in said)
    assert not any(line.startswith("  GAN took") for line in said)


def compared(folder, loaded, said, families=("Independent",), budget=1.0, **more):
    return run.compare_into(
        folder, loaded, families=list(families), budget=budget, rows=50, test=0.5, seed=0, say=said.append, **more
    )


def test_a_comparison_writes_its_report_beside_its_scores(tmp_path):
    loaded = Dataset("<i>points</i>", POINTS, Array((2,)), "made here")
    (tmp_path / "out").mkdir()
    compared(tmp_path / "out", loaded, [], command="probgen compare <points>")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>&lt;i&gt;points&lt;/i&gt;: 30 rows held out</h1>" in text
    for word in ("probgen compare &lt;points&gt;", "made here", "1 s of training", "50%, at most 50 rows", "30 rows"):
        assert word in text, word
    (tmp_path / "bare").mkdir()
    compared(tmp_path / "bare", loaded, [], report=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [*(p.name for p in (tmp_path / "bare").iterdir()), "report.html"]
    )


def test_a_report_that_fails_does_not_lose_the_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "write_report", lambda *_, **__: (_ for _ in ()).throw(StoreError("the disk is full")))
    said = []
    compared(tmp_path, Dataset("points", POINTS, Array((2,)), "here"), said)
    assert said[-1] == "no report.html: the disk is full."
    assert (tmp_path / "scores.parquet").exists()


def test_a_folder_of_a_comparison_is_taken_only_when_asked(tmp_path):
    place = tmp_path / "c"
    assert run.free_folder("x.csv", place, False) == place
    place.mkdir()
    assert run.free_folder("x.csv", place, False) == place
    for name in ("scores.parquet", "report.html"):
        (place / name).write_text("old")
    with pytest.raises(StoreError, match="add --overwrite"):
        run.free_folder("x.csv", place, False)
    assert run.free_folder("x.csv", place, True) == place
    (place / "notes.md").write_text("mine")
    with pytest.raises(StoreError, match="Choose another folder"):
        run.free_folder("x.csv", place, True)


def test_the_command_writes_the_page_unless_told_not_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", POINTS)
    words = ["compare", "points.npy", "--families", "independent", "--out", "c"]
    runner = CliRunner()
    bare = runner.invoke(app, [*words, "--no-report"])
    assert bare.exit_code == 0
    assert not (tmp_path / "c" / "report.html").exists()
    assert "report.html" not in bare.stdout
    assert runner.invoke(app, words).exit_code == 2
    assert not (tmp_path / "c" / "report.html").exists()
    full = runner.invoke(app, [*words, "--overwrite"])
    assert full.exit_code == 0, full.output
    assert "report.html, samples.png" in full.stdout
    assert "points: 12 rows held out" in (tmp_path / "c" / "report.html").read_text()
    assert runner.invoke(app, [*words, "--overwrite"]).exit_code == 0  # a report is no stranger's file
