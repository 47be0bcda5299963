"""Comparisons: one table that says what each number is, keeps what works when a family fails, and draws honestly."""

import math
import time

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen import frames, plots, store
from probgen.datasets import Dataset
from probgen.errors import DataError, FitError, Incomparable, MissingExtra, ParameterError
from probgen.evaluate import compare as comparing
from probgen.evaluate import run
from probgen.evaluate.blending import aside
from probgen.evaluate.compare import Comparison, Entry, column_names, compare, fit_suitable, format_cell, panels
from probgen.evaluate.complete import complete_rows
from probgen.evaluate.judged import why_not
from probgen.evaluate.outputs import csv_lines, sample_table
from probgen.evaluate.stacking import weights_of
from probgen.events import Array, Category, Count, Ragged, Real, Record, Series, Table, Text
from probgen.logprob import Kind, LogProb
from probgen.models.diffusion import Diffusion
from probgen.models.flow import Flow
from probgen.models.gan import GAN
from probgen.models.mixture import Mixture
from probgen.models.ngram import NGram
from probgen.models.vae import VAE
from probgen.plots import canvas

RNG = np.random.default_rng(11)
POINTS = RNG.normal(size=(80, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
TRAIN, HELD = POINTS[:60], POINTS[60:]
EVENT = Array((2,))
FEW = {"vae": pg.IWAE(samples=60)}


@pytest.fixture(scope="module")
def models():
    return {
        "gan": pg.GAN(EVENT, 2, (4,), penalty=0.25).fit(TRAIN, seed=1, steps=4),
        "vae": pg.VAE(EVENT, 2, (4,)).fit(TRAIN, seed=1, steps=4),
        "independent": pg.Independent(EVENT).fit(TRAIN, seed=1),
        "mixture": pg.Mixture(EVENT, 1).fit(TRAIN, seed=1),
    }


@pytest.fixture(scope="module")
def table(models):
    return compare(models, HELD, by=FEW, seed=3, skipped={"Other": "it does not suit."})


def failing(error):
    """A fit hook that takes a budget and fails."""

    def _fit(self, x, given, *, generator, budget=1.0, progress=None):
        raise error

    return _fit


# The table


def test_the_best_comes_first_and_refusals_last(table):
    names = [entry.name for entry in table.entries]
    means = [entry.log_prob.mean().value for entry in table.entries[:-1]]
    assert names[0] == "mixture"  # the data are one correlated normal
    assert names[-1] == "gan"
    assert means == sorted(means, reverse=True)


def test_every_number_says_its_kind(table):
    kinds = {row["family"]: row["kind"] for row in table.frame().to_pylist()}
    assert kinds == {"mixture": "exact", "independent": "exact", "vae": "lower", "gan": "unavailable"}


def test_a_refusal_has_no_number_and_its_reason_is_a_note(table):
    gan = next(row for row in table.frame().to_pylist() if row["family"] == "gan")
    assert [gan[name] for name in ("nats/row", "Monte Carlo ±", "between rows ±", "bits/dim")] == [None] * 4
    assert any(note.startswith("gan: ") and "Instead: " in note for note in table.notes())


def test_what_was_left_out_is_named_with_its_reason(table):
    assert table.notes()[-1] == "Other was left out: it does not suit."


def test_the_table_prints_a_line_a_family_and_its_notes(table):
    lines = str(table).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["family", *(entry.name for entry in table.entries)]
    assert any("lower: the true log-likelihood is at least this" in line for line in lines)


def test_numbers_in_the_table_are_those_of_the_models(models, table):
    shown = {row["family"]: row for row in table.frame().to_pylist()}
    mean = models["mixture"].log_prob(HELD).mean()
    assert shown["mixture"]["nats/row"] == mean.value
    assert shown["mixture"]["between rows ±"] == mean.between_rows
    assert shown["mixture"]["bits/dim"] == pytest.approx(-mean.value / math.log(2) / 2)


def test_scores_hold_a_row_a_family_and_held_out_row(models, table):
    scores = table.scores().to_pylist()
    assert len(scores) == len(models) * len(HELD)
    mine = [row["log_prob"] for row in scores if row["family"] == "independent"]
    assert mine == models["independent"].log_prob(HELD).nats.tolist()


def test_one_seed_gives_one_table(models, table):
    assert compare(models, HELD, by=FEW, seed=3).scores().equals(table.scores())
    assert not compare(models, HELD, by=FEW, seed=4).scores().equals(table.scores())


def entry(name, nats, measure="counting", kind=Kind.EXACT):
    return Entry(name, LogProb(kind, torch.tensor(nats, dtype=torch.float64), by="test", measure=measure))


def test_two_measures_are_said_not_to_compare():
    notes = Comparison((entry("a", [-1.0, -2.0]), entry("b", [-1.0, -2.0], "lebesgue"))).notes()
    assert "Measures counting and lebesgue do not compare: rank only within one." in notes
    assert not any("do not compare" in note for note in Comparison((entry("a", [-1.0]),)).notes())


def test_densities_above_one_and_single_rows_are_explained():
    def notes(*entries):
        return "\n".join(Comparison(entries).notes())

    assert "densities above 1" in notes(entry("a", [3.0, 1.0], "lebesgue(cm)"))
    assert "densities above 1" not in notes(entry("a", [-3.0, 1.0], "lebesgue(cm)"))
    assert "one row shows no spread" in notes(entry("a", [-3.0]))
    assert "2 rows have probability zero" in notes(entry("a", [-math.inf, -1.0, -math.inf]))


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (None, "nats/row", "-"),
        (math.nan, "Monte Carlo ±", "?"),
        (0.0123, "nats/row", "0.012"),
        (0.0123, "fit s", "0.0"),
        ("exact", "kind", "exact"),
    ],
)
def test_cells_are_short(value, column, text):
    assert format_cell(value, column) == text


def test_no_models_are_refused():
    with pytest.raises(ParameterError, match="at least one"):
        compare({}, HELD)


def test_models_that_read_the_rows_differently_are_refused(models):
    one_series = pg.Independent(Series((2,))).fit([TRAIN], seed=1)
    with pytest.raises(Incomparable):
        compare({"rows": models["mixture"], "series": one_series}, HELD)


def test_masses_and_densities_of_the_same_rows_stand_in_blocks(models):
    rounded = pg.Mixture(Array((2,), resolution=1.0), 1).fit(np.round(TRAIN), seed=1)
    result = compare({"mass": rounded, "density": models["mixture"]}, np.round(HELD))
    assert any("do not compare" in note for note in result.notes())


# One family's failure


def test_a_model_that_cannot_score_is_left_out_and_the_others_compared(models):
    other = pg.Independent(Array((3,))).fit(RNG.normal(size=(30, 3)), seed=1)
    result = compare({"wide": other, "mixture": models["mixture"]}, HELD)
    assert [e.name for e in result.entries] == ["mixture"]
    assert result.skipped["wide"].startswith("it could not score: Data of shape (20, 2)")


def test_where_no_model_can_score_the_reason_is_raised(models):
    with pytest.raises(DataError, match="shape"):
        compare({"mixture": models["mixture"]}, RNG.normal(size=(5, 7)))


@pytest.mark.parametrize(
    "error",
    [
        FitError("The objective became nan", "finite numbers", "Lower the rate"),
        DataError("Row 3, column a is missing"),
        torch.linalg.LinAlgError("not positive-definite"),
        MemoryError("too many cells"),
        ZeroDivisionError("no rows left"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_family_whose_fit_fails_is_listed_and_the_others_are_fitted(monkeypatch, error):
    monkeypatch.setattr(Mixture, "_fit", failing(error))
    fitted, skipped = fit_suitable(TRAIN, EVENT, families=["Mixture", "Independent"], seed=1)
    assert list(fitted) == ["Independent"]
    assert skipped["Mixture"].startswith("it could not be fitted: ")
    assert str(error) in skipped["Mixture"]


def test_a_gap_that_a_family_cannot_integrate_out_is_its_reason():
    gaps = {"a": np.where(RNG.random(60) < 0.3, math.nan, RNG.normal(size=60)), "b": RNG.normal(size=60)}
    fitted, skipped = fit_suitable(gaps, Table({"a": Real(), "b": Real()}), seed=1, budget=1.0)
    assert {"Independent", "Mixture", "VAE"} <= set(fitted)
    assert "column a is missing" in skipped["KernelDensity"]
    assert "column a is missing" in skipped["GaussianCopula"]
    assert "column a is missing" in skipped["Flow"]
    whole, left = fit_suitable(
        gaps, Table({"a": Real(), "b": Real()}), families=["KernelDensity"], seed=1, complete_rows=True
    )
    assert whole["KernelDensity"].points.shape[0] == np.isfinite(gaps["a"]).sum()
    assert left == {}


def test_a_defect_is_not_hidden_as_a_reason(monkeypatch):
    monkeypatch.setattr(Mixture, "_fit", failing(TypeError("a slip of ours")))
    with pytest.raises(TypeError, match="slip"):
        fit_suitable(TRAIN, EVENT, families=["Mixture"], seed=1)


def test_ctrl_c_in_a_training_loop_ends_the_comparison_not_only_that_family(monkeypatch):
    began = []
    monkeypatch.setattr("probgen.training._Run.take_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit_suitable(TRAIN, EVENT, families=["VAE", "GAN"], on_start=lambda name, _: began.append(name))
    assert began == ["VAE"]


# Fitting


def test_families_that_do_not_suit_say_why():
    fitted, skipped = fit_suitable(
        {"k": RNG.integers(3, size=40)}, Table({"k": Category((0, 1, 2))}), families=["Independent", "HMM"], seed=1
    )
    assert list(fitted) == ["Independent"]
    assert "Table" in skipped["HMM"]


def test_the_budget_is_shared_equally_and_what_is_left_goes_on(monkeypatch):
    for family in (Diffusion, Flow, Mixture, VAE, GAN):
        monkeypatch.setattr(family, "_fit", failing(FitError("at once")))
    shares = {}
    fit_suitable(TRAIN, EVENT, budget=9e6, on_start=shares.__setitem__)
    assert [name for name, share in shares.items() if share is None] == list(shares)[:3]  # closed forms first
    trained = ("Diffusion", "Flow", "GAN", "Mixture", "VAE")
    assert [shares[name] for name in trained] == pytest.approx([1.8e6, 2.25e6, 3e6, 4.5e6, 9e6], rel=1e-3)


def test_a_family_named_twice_is_fitted_once():
    began = []
    fit_suitable(TRAIN, EVENT, families=["Independent"] * 2, on_start=lambda name, _: began.append(name))
    assert began == ["Independent"]


@pytest.mark.parametrize("budget", [0, -1.0, math.inf, math.nan])
def test_a_budget_that_is_no_time_is_refused(budget):
    with pytest.raises(ParameterError, match="budget"):
        fit_suitable(TRAIN, EVENT, budget=budget)


# Samples as tables


def test_rounded_columns_are_written_with_the_decimals_of_their_step():
    event = Table({"length": Real("cm", 0.1), "free": Real()})
    cells = torch.tensor([[66 * 0.1, 0.1 + 0.2]], dtype=torch.float64)  # 6.6000000000000005
    assert list(csv_lines(cells, event)) == ["length,free", "6.6,0.30000000000000004"]


def test_csv_lines_quote_what_a_reader_would_split(tmp_path):
    event = Table({"a,b": Category(('say "no"', "x,y", "plain")), "n": Count()})
    lines = list(csv_lines(torch.tensor([[0.0, 4], [1, 5], [2, 6]]), event))
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    assert pg.datasets.read(tmp_path / "x.csv").to_pydict() == {"a,b": ['say "no"', "x,y", "plain"], "n": [4, 5, 6]}


def test_series_become_a_table_of_row_step_and_cells():
    ragged = Ragged(torch.tensor([1.0, 2, 3]), torch.tensor([2, 1]))
    assert sample_table(ragged, Series()).to_pydict() == {"row": [0, 0, 1], "step": [0, 1, 0], "x": [1.0, 2.0, 3.0]}


def test_the_cells_of_an_array_are_named_by_their_place():
    drawn = sample_table(torch.arange(4.0).reshape(1, 2, 2), Array((2, 2), levels=5))
    assert drawn.to_pydict() == {"x0_0": [0], "x0_1": [1], "x1_0": [2], "x1_1": [3]}


# Pictures


@pytest.fixture
def drawn(monkeypatch):
    """What plots.samples draws: the axes of its last figure."""
    kept, make = [], canvas.grid

    def keeping(*args):
        figure, axes = make(*args)
        kept[:] = axes
        return figure, axes

    monkeypatch.setattr(canvas, "grid", keeping)
    return kept


def test_a_picture_shows_as_many_samples_as_data(models):
    shown = panels({"mixture": models["mixture"]}, HELD, EVENT, seed=1)
    assert {title: x.shape for title, x in shown.items()} == {"held-out data": (20, 2), "mixture": (20, 2)}


def test_a_model_that_cannot_sample_leaves_no_panel(models, monkeypatch):
    monkeypatch.setattr(GAN, "_sample", lambda self, n, *_, **__: torch.full((n, 2), math.nan))
    assert list(panels(models, HELD, EVENT, seed=1)) == ["held-out data", "vae", "independent", "mixture"]


SHAPES = {
    "images": RNG.integers(0, 4, size=(7, 3, 5)).astype(float),
    "points": RNG.normal(size=(50, 2)),
    "numbers": RNG.normal(size=50),
    "columns": RNG.normal(size=(50, 4)),
    "one row": np.ones((1, 3)),
    "a constant column": np.ones((9, 3)),
    "gaps": np.where(RNG.random((50, 3)) < 0.4, math.nan, 1.0),
    "a column of gaps": np.full((9, 3), math.nan),
    "equal points": np.ones((9, 2)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_are_drawn(tmp_path, shape):
    x = SHAPES[shape]
    plots.samples({"data": x, "model": x + 1}, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", ["points", "columns", "numbers"])
def test_panels_share_the_scales_of_the_data(tmp_path, drawn, shape):
    plots.samples({"data": SHAPES[shape], "far": SHAPES[shape] * 100}, tmp_path / "x.png")
    assert drawn[0].get_ylim() == drawn[1].get_ylim()


def test_missing_cells_do_not_shorten_a_curve(tmp_path, drawn):
    column = np.array([[3.0], [math.nan], [1.0], [math.nan], [2.0]])
    plots.samples({"data": column}, tmp_path / "x.png")
    (line,) = drawn[0].get_lines()
    assert line.get_ydata().tolist() == [1, 2, 3]
    assert line.get_xdata().tolist() == pytest.approx([1 / 6, 3 / 6, 5 / 6])


def test_repeated_points_are_larger(tmp_path, drawn):
    plots.samples({"data": np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])}, tmp_path / "x.png")
    sizes = drawn[0].collections[0].get_sizes()
    assert sizes[1] == 2 * sizes[0]


def test_columns_are_named_in_the_picture(tmp_path, drawn):
    event = Table({"height": Real(), "width": Real(), "n": Count()})
    plots.samples({"data": SHAPES["columns"][:, :3]}, tmp_path / "x.png", names=column_names(event))
    assert [text.get_text() for text in drawn[0].get_legend().get_texts()] == ["height", "width", "n"]
    assert column_names(EVENT) is None


def test_a_family_whose_library_is_not_installed_is_left_out_with_the_way_to_it(monkeypatch):
    real = store.family

    def family(name):
        if name == "Flow":
            raise MissingExtra("zuko", "flow")
        return real(name)

    monkeypatch.setattr(store, "family", family)
    fitted, skipped = fit_suitable(TRAIN, EVENT, families=["Flow", "Independent"], seed=1)
    assert list(fitted) == ["Independent"]
    assert "pip install 'probgen[flow]'" in skipped["Flow"]


class Slow:
    """A model that takes a hundredth of a second a row."""

    def log_prob(self, x, seed):
        time.sleep(0.01 * len(x))


def test_fewer_rows_are_scored_where_a_model_is_slow_and_it_is_said():
    held, said = Dataset("points", np.arange(600.0).reshape(300, 2), EVENT, "here"), []
    some = run._affordable({"quick": Slow(), "slow": Slow()}, held, 1.5, 0, said.append)
    assert 100 <= len(some) < 160
    assert set(some[:, 0]) <= set(held.x[:, 0])
    assert said[0].startswith(f"  scoring {len(some)} of them, drawn at random: ")
    assert len(run._affordable({"quick": Slow()}, held, 60.0, 0, said.append)) == 300
    assert len(run._affordable({"quick": Slow()}, held, 0.01, 0, said.append)) == 100


@pytest.fixture(scope="module")
def judged():
    """A good model, one of far too wide samples, and one without a likelihood, on 200 rows."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
    good, wide = Mixture(EVENT, 1).fit(x[:200], seed=0), Mixture(EVENT, 1).fit(3 * x[:200], seed=0)
    gan = GAN(EVENT, 2, (8,)).fit(x[:200], steps=2, seed=0)
    return compare({"wide": wide, "gan": gan, "good": good}, x[200:], seed=0)


def test_every_family_is_judged_by_its_samples_explicit_or_not(judged):
    assert judged.judged[0].name == "good"
    assert {one.name for one in judged.judged} == {"wide", "gan", "good"}
    table = judged.samples().to_pydict()
    assert table["less the best"][0] is None
    assert all(gap > 3 * error for gap, error in zip(table["less the best"][1:], table["± (paired)"][1:], strict=True))
    good, wide = (next(one for one in judged.judged if one.name == name) for name in ("good", "wide"))
    assert wide.accuracy > 0.65 > good.accuracy
    assert wide.pvalue < 0.01 < good.pvalue
    assert "By their samples" in str(judged)
    assert "G(z)" in str(judged)


def test_few_rows_and_sequences_are_not_judged_by_samples(models):
    assert compare(models, HELD, seed=0).judged == ()
    chains = [RNG.integers(3, size=5) for _ in range(60)]
    series = pg.Independent(Series(levels=3)).fit(chains)
    assert compare({"one": series}, chains, seed=0).judged == ()
    assert "By their samples" not in str(compare({"one": series}, chains, seed=0))


def test_real_rows_against_real_rows_are_one_number_whatever_the_models(judged):
    assert len({one.floor for one in judged.judged}) == 1
    assert 0.3 < judged.judged[0].floor < 0.7


# Claims


def answer(nats, kind=Kind.EXACT, **about):
    return LogProb(kind, np.asarray(nats, dtype=float), **{"by": "test", "measure": "counting"} | about)


def claim(a, b, **more):
    """The one claim about two answers; the comparison sorts them."""
    entries = sorted([Entry("A", a), Entry("B", b)], key=lambda one: one.rank)
    return Comparison(tuple(entries), **more).claims()[0]


NOISE = np.random.default_rng(5).normal(size=400)


@pytest.mark.parametrize(
    ("kinds", "verdict", "text"),
    [
        (("exact", "exact"), "better", "A is 0.5 nats a row better than B (200 ± 1.9 nats in all on 400 rows)"),
        (("estimate", "exact"), "better", "A is about 0.5 nats a row better than B"),
        (("lower", "exact"), "better", "A is at least 0.5 nats a row better than B"),
        (("exact", "upper"), "better", "A is at least 0.5 nats a row better than B"),
        (("lower", "upper"), "better", "A is at least 0.5 nats a row better than B"),
        (("exact", "lower"), "undecided", "A is at most 0.5 nats a row better, as B has only a lower bound"),
        (("upper", "exact"), "undecided", "A is at most 0.5 nats a row better, as A has only an upper bound"),
        (("lower", "lower"), "incomparable", "as both are lower bounds and their difference bounds nothing"),
        (("score", "score"), "better", "0.5 points a row (a score, no likelihood) better than B"),
    ],
)
def test_a_claim_says_no_more_than_the_kinds_of_its_numbers_allow(kinds, verdict, text):
    noise = 0.1 * NOISE + (0.5 - 0.1 * NOISE.mean())
    found = claim(answer(noise, kinds[0]), answer(np.zeros(400), kinds[1]))
    assert found.verdict == verdict
    assert text in str(found)


@pytest.mark.parametrize(
    ("n", "gap", "spread", "text"),
    [
        (400, 3.9, 0.0, "less than 4 nats"),
        (400, 30.0, 1.0, "less than twice its error"),
        (99, 50.0, 0.0, "99 rows, fewer than 100"),
        (400, 4.1, 0.0, None),
    ],
)
def test_few_nats_few_rows_and_large_errors_are_not_distinguishable(n, gap, spread, text):
    noise = spread * (NOISE[:n] - NOISE[:n].mean())
    found = claim(answer(noise + gap / n), answer(np.zeros(n)))
    assert found.verdict == ("better" if text is None else "not distinguishable")
    assert text is None or text in found.text


def test_impossible_rows_are_counted_in_claims_and_never_dropped():
    a, b = np.zeros(200), np.zeros(200)
    b[:3] = -math.inf
    assert "A is better than B, which calls 3 of 200 rows impossible" in claim(answer(a), answer(b)).text
    a[5:7] = -math.inf
    both = claim(answer(a), answer(b))
    assert both.verdict == "incomparable"
    assert "impossible that the other does not (2 and 3 of 200)" in both.text.replace("(3 and 2", "(2 and 3")
    shared = claim(answer(b), answer(b))
    assert shared.verdict == "incomparable"
    assert "3 of 200 rows have no difference" in shared.text


def test_measures_are_not_claimed_about_across_blocks():
    entries = (Entry("a", answer(NOISE)), Entry("b", answer(NOISE - 3, measure="lebesgue")))
    assert Comparison(entries).claims() == []


def test_draws_that_all_rows_share_count_in_full_in_the_error_of_a_difference():
    """One posterior for all rows: errors of 0.1 a row add up to 40 nats of 400 rows, which their spread can't show."""
    apart = {"stderr": np.full(400, 0.1), "draws": np.arange(400, dtype=np.uint64)}
    shared = apart | {"draws": np.zeros(400, dtype=np.uint64)}
    errors = [
        claim(answer(np.full(400, 0.5), **noise), answer(np.zeros(400))).difference.error for noise in (apart, shared)
    ]
    assert errors[0] == pytest.approx(0.0, abs=1e-6)  # rows that vary on their own show it in their spread
    assert errors[1] == pytest.approx(math.sqrt(40**2 - 400 * 0.01))


def told_apart(pull, lengths, trials=500, n=400):
    """How often two models of equal worth are told apart, where rows are steps whose differences hang together."""
    rng = np.random.default_rng(8)
    noise = rng.normal(size=(trials, n))
    for t in range(1, n):
        noise[:, t] += pull * noise[:, t - 1]
    zero = answer(np.zeros(n))
    return np.mean([claim(answer(row), zero, lengths=lengths).verdict == "better" for row in noise])


def test_equal_models_are_told_apart_about_one_time_in_twenty():
    """Two errors of a normal total: 4.55 %; over 500 pairs 0.0455 ± 5 x 0.0093."""
    assert abs(told_apart(0.0, None) - 0.0455) < 0.0465
    assert told_apart(0.5, None) > 0.092  # the planted twin: steps taken for independent rows


# Stacking


def test_stacking_weights_are_the_best_ones():
    """At the best weights no model promises a gain: the mean of p_k / mixture is at most 1."""

    def promised(nats, w):
        return (np.exp(nats) / (np.exp(nats) @ w)[:, None]).mean(axis=0).max() - 1

    for n, k, spread in ((60, 3, 0.1), (500, 8, 1.0), (300, 12, 4.0)):
        nats = spread * RNG.normal(size=(n, k))
        assert promised(nats, weights_of(nats)) < 1e-8
        assert promised(nats, np.full(k, 1 / k)) > 1e-4  # the twin: equal weights are not the best
    assert weights_of(np.array([[0, -math.inf], [-math.inf, 0], [0.0, -math.inf]])) == pytest.approx([2 / 3, 1 / 3])


def test_stacking_finds_the_shares_of_a_mixture_of_its_models():
    """Rows of 0.7 N(-2, 1) + 0.3 N(2, 1); the share's standard error on 2000 rows is below 0.012."""
    rng = np.random.default_rng(9)
    x = rng.normal(size=2000) + np.where(rng.random(2000) < 0.7, -2, 2)
    models = {name: answer(-0.5 * (x - at) ** 2, measure="lebesgue") for name, at in (("low", -2), ("high", 2))}
    found = compare({**models, "far": answer(-0.5 * (x - 9) ** 2, measure="lebesgue")}).stacking()
    assert abs(found.weights["low"] - 0.7) < 0.06
    assert found.weights["far"] < 0.01
    assert found.nats > found.best + 0.5
    means = np.array([a.nats.mean() for a in models.values()])
    assert abs(np.exp(means)[0] / np.exp(means).sum() - 0.7) > 0.06  # the twin: weights by mean log-likelihood


def test_the_worth_of_a_stack_is_that_on_rows_its_weights_were_not_chosen_on():
    noise = np.random.default_rng(10).normal(size=(40, 6))
    chosen = np.log(np.exp(noise) @ weights_of(noise)).mean()
    entries = tuple(Entry(str(j), answer(noise[:, j])) for j in range(6))
    assert Comparison(entries).stacking().nats < chosen - 0.01


def test_what_cannot_be_stacked_is_left_out_with_its_reason():
    entries = (
        Entry("good", answer(NOISE)), Entry("about", answer(NOISE, Kind.ESTIMATE)),
        Entry("bound", answer(NOISE, Kind.LOWER)),
        Entry("score", answer(NOISE, Kind.SCORE)), Entry("density", answer(NOISE, measure="lebesgue")),
        Entry("gan", LogProb.refuse(400, "a GAN has none", "sample it")),
    )  # fmt: skip
    found = Comparison(entries).stacking()
    assert set(found.weights) == {"good", "about"}
    assert found.kind is Kind.ESTIMATE
    reasons = {"bound": "tightness", "score": "no likelihood", "density": "measure", "gan": "no likelihood"}
    assert set(found.left_out) == set(reasons)
    assert all(word in found.left_out[name] for name, word in reasons.items())
    assert found.frame().num_rows == 6
    with pytest.raises(Incomparable, match="No model can be stacked"):
        Comparison(entries[2:4]).stacking()


def test_rows_that_no_model_allows_are_counted_by_the_stack():
    nats = np.zeros((100, 2))
    nats[:4] = -math.inf
    nats[4:10, 0] = -math.inf
    found = Comparison((Entry("b", answer(nats[:, 1])), Entry("a", answer(nats[:, 0])))).stacking()
    assert found.impossible == 4
    assert found.weights["b"] == pytest.approx(1.0)
    assert "4 of 100 rows are impossible under every model" in str(found)


# Ready answers


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """Scores of a model as somebody else wrote them."""
    path = tmp_path_factory.mktemp("scores") / "kde.parquet"
    frames.write(models["independent"].log_prob(HELD).frame(), path)
    return path


def test_ready_answers_stand_beside_models_and_say_how_rows_were_matched(models, written):
    frame = models["independent"].log_prob(HELD).frame().to_pandas().iloc[::-1]  # another order: the keys tell
    own = models["independent"].log_prob(HELD)
    ready = {"file": str(written), "path": written, "frame": frame, "numbers": answer(own.nats, measure=own.measure)}
    result = compare({"mixture": models["mixture"], **ready, "answer": own}, HELD)
    for entry in result.entries:
        if entry.name != "mixture":
            np.testing.assert_array_equal(entry.log_prob.nats, own.nats)
            assert entry.log_prob.measure == own.measure
    notes = "\n".join(result.notes())
    assert "file, path, frame: scored elsewhere; its rows were matched by their keys" in notes
    assert "numbers: scored elsewhere; its rows were matched by their order alone" in notes
    alone = compare({"file": written, "answer": own})
    assert {entry.name for entry in alone.entries} == {"file", "answer"}
    assert alone.judged == ()


def test_scores_of_several_families_in_one_table_are_found_by_name(models, table):
    both = table.scores()
    result = compare({"mixture": both, "independent": both})
    assert result.entries[0].log_prob.nats.tolist() == models["mixture"].log_prob(HELD).nats.tolist()
    refused = compare({"mixture": both, "gan": both}).entries[-1]
    assert refused.name == "gan"
    assert refused.log_prob.refused.all()
    with pytest.raises(DataError, match=r"no family 'mixtur'.*'mixture'"):
        compare({"mixtur": both})


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda f: f.assign(row=f.row + 1), Incomparable, "other rows"),
        (lambda f: f.assign(row=0), Incomparable, "other rows"),
        (lambda f: f[:9], Incomparable, "9 rows, the others 20"),
        (lambda f: f.drop(columns="kind"), DataError, "no column 'kind'"),
        (lambda f: f.assign(log_prob=math.nan), DataError, "no log_prob, but the kind exact"),
        (lambda f: f.assign(kind="exakt"), ParameterError, "exakt"),
        (lambda f: f.assign(of=["x", "y"] * 10), DataError, "differ in of"),
        (lambda f: f.assign(of="x+u"), Incomparable, "different variables"),
        (lambda f: f.assign(target="p(x_i | D_-i)", by="PSIS-LOO"), Incomparable, "by leave-one-out.*not one ranking"),
        (
            lambda f: f.assign(target="p(x_i | x outside its fold)", by="5-fold refits"),
            Incomparable,
            "by k-fold refits",
        ),
    ],
)
def test_answers_that_are_not_about_the_same_rows_are_refused(models, written, change, error, text):
    frame = frames.read(written).to_pandas()
    compare({"mixture": models["mixture"], "theirs": frame}, HELD)
    with pytest.raises(error, match=text):
        compare({"mixture": models["mixture"], "theirs": change(frame)}, HELD)


def test_held_out_predictive_densities_of_bayesian_fits_are_ranked_with_point_fits(models):
    own = models["independent"].log_prob(HELD)
    bayes = own.replace(kinds=Kind.ESTIMATE, target="p(x_i | D)")
    variational = own.replace(kinds=Kind.ESTIMATE, target="E_q[p(x_i | theta)]")
    result = compare({"mixture": models["mixture"], "bayes": bayes, "svi": variational}, HELD)
    assert len(result.claims()) == 3
    assert all(one.verdict != "incomparable" for one in result.claims())
    assert "bayes: scored under p(x_i | D)." in result.notes()


def test_leave_one_out_answers_are_ranked_among_their_own(models):
    own = models["independent"].log_prob(HELD).replace(kinds=Kind.ESTIMATE, target="p(x_i | D_-i)", by="PSIS-LOO")
    assert len(compare({"a": own, "b": own.replace(nats=own.nats - 1)}).claims()) == 1
    assert len(compare({"a": Entry("held as log_prob, as pg.loo does", own), "b": own}).entries) == 2
    with pytest.raises(Incomparable, match="not one ranking"):
        compare({"a": own, "b": models["independent"].log_prob(HELD)})


@pytest.mark.parametrize(
    ("models_given", "text"),
    [({"a": 3}, "'a' is a int"), ({"a": object()}, "pg.wrap"), ({}, "at least one"), ([3], "of type list")],
)
def test_what_is_neither_model_nor_answer_is_refused(models_given, text):
    with pytest.raises(ParameterError, match=text):
        compare(models_given, HELD)


def test_an_answer_of_unknown_measure_stands_after_the_others_and_is_told_so(models):
    result = compare({"unknown": answer(np.zeros(20), measure=""), "mixture": models["mixture"]}, HELD)
    assert [entry.name for entry in result.entries] == ["mixture", "unknown"]
    assert any(note.startswith("unknown: of unknown measure") for note in result.notes())
    assert set(result.stacking().weights) == {"mixture"}


def test_a_folder_of_a_saved_model_is_a_model(models, tmp_path):
    pg.save(models["mixture"], tmp_path / "kept")
    found = compare({"kept": str(tmp_path / "kept")}, HELD).entries[0]
    assert found.log_prob.nats.tolist() == models["mixture"].log_prob(HELD).nats.tolist()


def test_a_model_without_rows_is_refused(models):
    with pytest.raises(ParameterError, match="without rows"):
        compare({"mixture": models["mixture"]})


# Shown elsewhere


def test_differences_are_drawn_with_arrows_for_bounds(table, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(canvas, "page", lambda *size, make=canvas.page: kept.append(make(*size)) or kept[-1])
    table.plot(tmp_path / "differences.png")
    assert (tmp_path / "differences.png").read_bytes().startswith(b"\x89PNG")
    (axis,) = kept[0].axes
    rows = table.intervals()
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"{a}\nagainst {b}" for a, b, *_ in rows]
    arrows = [text for text in axis.texts if text.arrow_patch is not None]
    assert len(arrows) == sum(side != 0 for *_, side in rows) == 1
    with pytest.raises(Incomparable, match="No two models"):
        Comparison(table.entries[-1:]).plot(tmp_path / "none.png")


def test_a_notebook_shows_tables_and_notes_with_every_name_escaped(table):
    shown = table._repr_html_()
    assert "between rows ±" in shown
    assert "unavailable" in shown
    evil = Comparison((Entry("<script>x</script>", answer(NOISE)),), {"<b>": "<i>"})
    assert "<script>" not in evil._repr_html_()
    assert "&lt;script&gt;" in evil._repr_html_()


def test_why_nothing_was_judged_by_samples_is_said_once():
    gaps = {"a": np.where(np.arange(60) % 5, RNG.normal(size=60), math.nan), "b": RNG.normal(size=60)}
    event = Table({"a": Real(), "b": Real()})
    both = {name: pg.Independent(event).fit(gaps, seed=0) for name in ("one", "two")}
    said = str(compare(both, gaps, seed=0))
    assert said.count("No model was judged by samples: the rows have missing cells") == 1
    assert "By their samples" not in said


def gappy(n=150):
    table = pd.DataFrame(RNG.normal(size=(n, 2)) @ [[1.0, 0.8], [0.0, 0.6]], columns=["a", "b"])
    table.index = [f"r{i}" for i in range(n)]
    return table.assign(a=table["a"].where(np.arange(n) % 10 > 0))


@pytest.fixture(scope="module")
def on_gaps():
    """A table with gaps, and models of it, one of which needs every cell."""
    table, event = gappy(), Table({"a": Real(), "b": Real()})
    whole = table.dropna()
    return table, {
        "own": pg.Independent(event).fit(table, seed=0),
        "kernel": pg.KernelDensity(event).fit(whole, seed=0),
    }


def test_gaps_that_leave_a_model_out_are_told_with_the_way_to_all_of_them(on_gaps):
    table, models = on_gaps
    found = compare(models, table, seed=0)
    assert [entry.name for entry in found.entries] == ["own"]
    offer = "15 of 150 rows have missing cells: complete_rows=True (--complete-rows)"
    assert str(found).count(offer) == 1
    assert offer not in str(compare({"own": models["own"]}, table, seed=0, samples=False))  # nobody was left out
    with pytest.raises(DataError, match=r"Row r0, column a.*or compare with complete_rows=True"):
        compare({"kernel": models["kernel"]}, table)


def test_complete_rows_are_compared_and_judged_and_the_others_counted(on_gaps):
    table, models = on_gaps
    whole = table.dropna()
    ready = {"ready": models["own"].log_prob(table)}  # of all rows
    found = compare({**models, **ready}, table, seed=0, complete_rows=True)
    assert {one.name for one in found.judged} == set(models)
    for entry in found.entries:
        mine = models["kernel" if entry.name == "kernel" else "own"]
        np.testing.assert_array_equal(entry.log_prob.nats, mine.log_prob(whole).nats)
        assert entry.log_prob.event.keys.tolist() == whole.index.tolist()
    assert "15 of 150 rows have missing cells and were left out (complete rows)" in str(found)
    assert "left out" not in str(compare(models, whole, seed=0, complete_rows=True))
    with pytest.raises(DataError, match="All 5 rows have missing cells"):
        compare(models, table.assign(a=math.nan)[:5], complete_rows=True)
    with pytest.raises(ParameterError, match="complete_rows=True beside history"):
        compare(models, table, history=table, complete_rows=True)


@pytest.mark.parametrize("form", ["dict", "array", "series"])
def test_rows_are_complete_in_every_form_of_data(form):
    x = np.array([[1.0, math.nan], [2.0, 3.0], [math.nan, 1.0], [4.0, 5.0]])
    if form == "series":
        event, x = Series((2,)), [x[:1], x[1:2], x[2:], x[3:]]
        found, kept = complete_rows(event, x)
        assert [part.tolist() for part in found] == [[[2.0, 3.0]], [[4.0, 5.0]]]
    elif form == "dict":
        found, kept = complete_rows(Table({"a": Real(), "b": Real()}), {"a": x[:, 0], "b": x[:, 1]})
        assert {name: list(v) for name, v in found.items()} == {"a": [2.0, 4.0], "b": [3.0, 5.0]}
    else:
        found, kept = complete_rows(Array((2,), missing=True), x)
        assert found.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert kept.tolist() == [False, True, False, True]


# Text and records


def test_a_language_model_and_an_n_gram_are_weighed_on_texts_that_neither_saw():
    rng = np.random.default_rng(0)
    words = ["one", "two", "three", "four"]
    texts = [" ".join(rng.choice(words, size=4)) + f" {i}" for i in range(60)]
    fitted, _ = fit_suitable(texts, Text(), families=["NGram", "LanguageModel"], budget=0.2, seed=0)
    assert list(fitted) == ["NGram", "LanguageModel", "Blend"]
    _, few = aside(texts, Text(), 0)
    assert set(few) < set(texts)
    counted = fitted["NGram"].log_prob(few + texts[:20], seed=0).nats
    alone = NGram(Text()).fit([text for text in texts if text not in few], seed=0)
    np.testing.assert_allclose(counted, alone.log_prob(few + texts[:20]).nats)  # it has not seen the few
    alone, _ = fit_suitable(texts, Text(), families=["NGram"], budget=0.2, seed=0)
    assert list(alone) == ["NGram"]
    few, _ = fit_suitable(texts[:20], Text(), families=["NGram", "LanguageModel"], budget=0.2, seed=0)
    assert "Blend" not in few


def test_records_with_labels_are_judged_by_their_coherence(models, monkeypatch):
    asked = []

    def judged(fitted, x, labels, **options):
        asked.append((list(fitted), labels, options))
        return {}, {"gan": "it was not asked"}

    monkeypatch.setattr(comparing, "coherence_of", judged)
    found = compare(models, HELD, by=FEW, seed=3, labels=[1] * len(HELD), train=(TRAIN, [1]))
    assert asked == [(list(models), [1] * len(HELD), {"train": (TRAIN, [1]), "seed": 3})]
    assert "it was not asked" in str(found)
    compare(models, HELD, by=FEW, seed=3)
    assert len(asked) == 1
    assert "coherence" in why_not(Record(a=Array((2,)), b=Text()), 100)
