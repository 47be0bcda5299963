"""Proper scores from samples: closed forms, brute force, truth wins, and errors that cover."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import probgen as pg
from probgen.errors import DataError, Incomparable, ParameterError, ShapeError, StructureError
from probgen.evaluate import scores
from probgen.events import Array, Category, Count, Ragged, Real, Series, Table

ALARM = 1e-6  # false-alarm rate of each statistical test
VECTOR = Array((2,))


def rng(seed=0):
    return np.random.default_rng(seed)


def pairs(n, seed, rho=0.8, scale=1.0):
    x = rng(seed).normal(size=(n, 2))
    x[:, 1] = rho * x[:, 0] + math.sqrt(1 - rho**2) * x[:, 1]
    return scale * x


# --- closed forms and brute force -------------------------------------------------------------------------------------


def test_crps_of_a_normal_is_its_closed_form():
    x = np.linspace(-3, 3, 13)
    phi, cdf = scipy.stats.norm.pdf(x), scipy.stats.norm.cdf(x)
    expected = x * (2 * cdf - 1) + 2 * phi - 1 / math.sqrt(math.pi)
    points = scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)  # no noise
    found = scores.crps(points, x, event=Array(()))
    np.testing.assert_allclose(found.values, expected, atol=2e-4)
    assert list(found.columns) == ["0"]


def test_every_score_is_its_sum_over_pairs_of_draws():
    draws, x = pairs(17, 0), pairs(5, 1)
    m = len(draws)
    away = np.linalg.norm(draws[:, None] - draws, axis=2).sum() / (m * (m - 1))
    energy = [np.mean(np.linalg.norm(draws - row, axis=1)) - away / 2 for row in x]
    np.testing.assert_allclose(scores.energy(draws, x, event=VECTOR).values, energy, rtol=1e-12)
    gaps = [np.abs(draws[:, None, j] - draws[:, j]).sum() / (m * (m - 1)) for j in range(2)]
    crps = [[np.mean(np.abs(draws[:, j] - row[j])) - gaps[j] / 2 for row in x] for j in range(2)]
    found = scores.crps(draws, x, event=VECTOR)
    np.testing.assert_allclose(found.values, np.mean(crps, 0), rtol=1e-12)
    np.testing.assert_allclose(found.columns["1"], crps[1], rtol=1e-12)
    said = np.sqrt(np.abs(draws[:, 0] - draws[:, 1]))
    variogram = (np.sqrt(np.abs(x[:, 0] - x[:, 1])) - said.mean()) ** 2 - said.var(ddof=1) / m
    np.testing.assert_allclose(scores.variogram(draws, x, event=VECTOR).values, variogram, rtol=1e-10)


def test_brier_is_the_squared_distance_from_the_shares_less_their_sampling_bias():
    event = Table({"k": Category(("u", "v", "w"))})
    draws = {"k": ["u"] * 10 + ["v"] * 6 + ["w"] * 4}
    p = np.array([0.5, 0.3, 0.2])
    found = scores.brier(draws, {"k": ["u", "w"]}, event=event)
    expected = [((p - one) ** 2).sum() - (p * (1 - p)).sum() / 19 for one in np.eye(3)[[0, 2]]]
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)
    levels = scores.brier(np.array([[0], [1]] * 10), np.array([[1], [0]]), event=Array((1,), levels=2))
    np.testing.assert_allclose(levels.values, [0.5 - 0.5 / 19] * 2, rtol=1e-12)


@pytest.mark.parametrize("score", [scores.energy, scores.variogram, scores.crps])
def test_scores_have_no_bias_from_few_draws(score):
    """A few draws many times over score on average as very many do; the plain mean over all pairs does not."""
    x = pairs(20, 0)
    few = np.array([score(pairs(10, 100 + i), x, event=VECTOR).mean for i in range(800)])
    many = score(pairs(4000, 1), x, event=VECTOR)
    z = (few.mean() - many.mean) / math.hypot(few.std() / math.sqrt(800), many.monte_carlo)
    assert abs(z) < scipy.stats.norm.isf(ALARM / 2)
    if score is scores.energy:  # the twin: X and X' may be one draw
        gap = np.mean([np.linalg.norm(d[:, None] - d, axis=2).mean() / 18 for d in (pairs(10, i) for i in range(100))])
        biased = few.mean() + gap
        assert abs(biased - many.mean) / math.hypot(few.std() / math.sqrt(800), many.monte_carlo) > 5


@pytest.mark.parametrize("score", [scores.energy, scores.variogram, scores.crps])
def test_the_stated_monte_carlo_error_is_the_spread_of_repeated_draws(score):
    x = pairs(30, 0) + 0.5  # off the truth, where the first-order error does not vanish
    many = [score(pairs(200, 100 + i), x, event=VECTOR) for i in range(150)]
    ratio = np.mean([s.monte_carlo for s in many]) / np.std([s.mean for s in many])
    assert 0.75 < ratio < 1.35  # the spread of 150 has an error of 6 %


# --- propriety --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [pairs(4000, 1, scale=1.25), pairs(4000, 1, scale=0.8), pairs(4000, 1) + 0.3, pairs(4000, 1, rho=0.0)],
    ids=["wide", "narrow", "shifted", "independent"],
)
def test_the_truth_has_the_lowest_energy_score(wrong):
    x, truth = pairs(4000, 0), pairs(4000, 2)
    difference = scores.energy(truth, x, event=VECTOR) - scores.energy(wrong, x, event=VECTOR)
    assert difference.mean < -3 * difference.stderr
    assert difference.distinguishable
    reverse = scores.energy(wrong, x, event=VECTOR) - scores.energy(truth, x, event=VECTOR)
    assert reverse.mean == -difference.mean


def test_the_variogram_score_sees_lost_dependence_that_columns_hide():
    x, truth, wrong = pairs(2000, 0), pairs(2000, 2), pairs(2000, 1, rho=0.0)
    seen = scores.variogram(truth, x, event=VECTOR) - scores.variogram(wrong, x, event=VECTOR)
    assert seen.mean < -5 * seen.stderr
    hidden = scores.crps(truth, x, event=VECTOR) - scores.crps(wrong, x, event=VECTOR)
    assert abs(hidden.mean) < 5 * hidden.stderr


def test_the_paired_error_holds_the_true_difference_as_often_as_it_says():
    """Two models that are equally wrong, one to each side: the true difference is 0. The twin forgets the draws."""
    honest, forgetful = [], []
    for seed in range(300):
        x = rng(3 * seed).normal(size=(100, 1))
        a, b = (rng(3 * seed + i).normal(size=(60, 1)) + s for i, s in ((1, 0.5), (2, -0.5)))
        d = scores.energy(a, x, event=Array((1,))) - scores.energy(b, x, event=Array((1,)))
        honest.append(abs(d.mean) < 1.96 * d.stderr)
        forgetful.append(abs(d.mean) < 1.96 * d.between_rows)
    assert scipy.stats.binomtest(sum(honest), 300, 0.95).pvalue > ALARM
    assert scipy.stats.binomtest(sum(forgetful), 300, 0.95).pvalue < ALARM


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [lambda r, n: r.normal(size=(n, 1)), lambda r, n: r.poisson(1.5, size=(n, 1))])
def test_pit_is_uniform_for_the_truth_counts_included_and_its_p_values_hold(draw):
    found = [
        scores.pit(draw(rng(2 * s), 150), draw(rng(2 * s + 1), 100), event=Array((1,)), seed=s) for s in range(300)
    ]
    first = [p.values["0"][0] for p in found]
    assert scipy.stats.kstest(first, "uniform").pvalue > ALARM
    level = scipy.stats.binomtest(sum(p.pvalues["0"] < 0.05 for p in found), 300, 0.05, alternative="greater")
    assert level.pvalue > ALARM
    alone = [scipy.stats.kstest(p.values["0"], "uniform").pvalue for p in found]  # the twin: draws taken for the truth
    assert scipy.stats.binomtest(sum(np.array(alone) < 0.05), 300, 0.05, alternative="greater").pvalue < ALARM


def test_a_wide_model_humps_and_its_intervals_hold_too_much():
    x, wide, right = rng(0).normal(size=(500, 1)), 2 * rng(1).normal(size=(3000, 1)), rng(2).normal(size=(3000, 1))
    event = Array((1,))
    assert scores.pit(wide, x, event=event, seed=0).pvalues["0"] < 1e-4
    histogram = scores.pit(wide, x, event=event, seed=0).histogram(4)["0"]
    assert histogram[1:3].sum() > 0.6
    assert histogram.sum() == pytest.approx(1.0)
    found = scores.interval_coverage(right, x, event=event)
    assert np.all(np.abs(found.shares[:, 0] - found.levels) < 5 * found.stderrs[:, 0])
    too_wide = scores.interval_coverage(wide, x, event=event)
    assert np.all(too_wide.shares[:2, 0] - too_wide.levels[:2] > 5 * too_wide.stderrs[:2, 0])
    np.testing.assert_allclose(found.widths[:, 0], 2 * scipy.stats.norm.ppf((1 + np.array(found.levels)) / 2), rtol=0.1)
    assert "95.0%" in str(found)


def test_intervals_of_few_draws_hold_their_level_on_average():
    """Ends at rank p (m + 1); the twin, NumPy's default quantiles, covers less."""
    shares, naive = [], []
    for seed in range(400):
        x, draws = rng(2 * seed).normal(size=(50, 1)), rng(2 * seed + 1).normal(size=(19, 1))
        shares.append(scores.interval_coverage(draws, x, levels=(0.8,), event=Array((1,))).shares[0, 0])
        low, high = np.quantile(draws, [0.1, 0.9])
        naive.append(((x >= low) & (x <= high)).mean())
    error = np.std(shares) / 20
    assert abs(np.mean(shares) - 0.8) < 5 * error
    assert abs(np.mean(naive) - 0.8) > 5 * error


# --- models and data --------------------------------------------------------------------------------------------------


def test_explicit_and_implicit_models_rank_on_the_same_rows():
    x = pairs(600, 0)
    models = {
        "mixture": pg.Mixture(VECTOR, 1),
        "independent": pg.Independent(VECTOR),
        "gan": pg.GAN(VECTOR, latent_dim=2, hidden=(32,)),
    }
    options = {"gan": {"steps": 5}}
    fitted = {name: m.fit(x[:300], seed=0, **options.get(name, {})) for name, m in models.items()}
    found = {name: scores.energy(m, x[300:], draws=1500, seed=1) for name, m in fitted.items()}
    for worse in ("independent", "gan"):
        difference = found["mixture"] - found[worse]
        assert difference.mean < 0
        assert difference.distinguishable
    assert "energy(raw units)" in str(found["gan"])
    assert "the first is better" in str(found["mixture"] - found["gan"])
    again = scores.energy(fitted["gan"], x[300:], draws=1500, seed=1)
    np.testing.assert_array_equal(again.values, found["gan"].values)


def test_each_row_of_covariates_has_its_own_draws():
    r = rng(0)
    u = r.normal(size=(200, 1))
    y = 3 * u + r.normal(size=(200, 1))
    model = pg.Regression(Array((1,)), context=Array((1,))).fit(y, given=u, seed=0)
    blind = pg.Independent(Array((1,))).fit(y, seed=0)
    for score in (scores.energy, scores.crps):
        better = score(model, y, given=u, draws=200, seed=0)
        difference = better - score(blind, y, draws=1000, seed=0)
        assert difference.mean < -5 * difference.stderr
        assert better.mean == pytest.approx(1 / math.sqrt(math.pi), abs=0.1)  # of a standard normal on its own
    found = scores.interval_coverage(model, y, given=u, draws=200, seed=0)
    assert np.all(np.abs(found.shares[:, 0] - found.levels) < 5 * found.stderrs[:, 0])
    assert scores.pit(model, y, given=u, draws=200, seed=0).pvalues["0"] > ALARM


def table(n, seed, shift=0.0):
    r = rng(seed)
    town = r.choice(["A", "B"], size=n)
    height = np.where(town == "A", 170, 180) + shift + r.normal(size=n)
    return pd.DataFrame({"height": height, "town": town, "visits": r.poisson(40, n)})


def test_tables_are_scored_whole_and_by_column():
    event = Table({"height": Real(), "town": Category(("A", "B")), "visits": Count()}, missing=True)
    x = table(200, 0)
    x.loc[:9, "visits"] = np.nan
    right, wrong = table(1000, 1), table(1000, 2, shift=3.0)
    with pytest.raises(DataError, match="The rows have missing cells"):
        scores.energy(right, x, event=event)
    found = scores.crps(right, x, event=event) - scores.crps(wrong, x, event=event)
    assert found.mean < -5 * found.stderr
    columns = scores.crps(right, x, event=event).columns
    assert set(columns) == {"height", "visits"}
    assert np.isnan(columns["visits"][:10]).all()
    brier = scores.brier(right, x, event=event)
    assert brier.mean == pytest.approx(0.5, abs=0.02)
    complete, wrong = table(200, 0), table(1000, 2, shift=6.0)
    better = scores.energy(right, complete, event=event) - scores.energy(wrong, complete, event=event)
    assert better.name == "energy(standardised)"
    assert better.mean < -5 * better.stderr


def test_sequences_are_scored_by_their_summaries():
    def walks(n, seed, scale):
        return [scale * rng(seed + i).normal(size=12).cumsum() for i in range(n)]

    x = walks(60, 0, 1.0)
    difference = scores.energy(walks(300, 100, 1.0), x, event=Series()) - scores.energy(
        walks(300, 500, 3.0), x, event=Series()
    )
    assert difference.mean < -3 * difference.stderr
    ragged = Ragged(torch.from_numpy(np.concatenate(x)), torch.full((60,), 12))
    assert scores.energy(walks(300, 100, 1.0), ragged, event=Series()).mean == pytest.approx(
        scores.energy(walks(300, 100, 1.0), x, event=Series()).mean
    )


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_scores_of_other_rows_or_other_choices_are_not_subtracted():
    x, draws = pairs(40, 0), pairs(50, 1)
    found = scores.energy(draws, x, event=VECTOR)
    with pytest.raises(Incomparable, match="not the same"):
        found - scores.energy(draws, x[::-1], event=VECTOR)
    with pytest.raises(Incomparable, match="not the same"):
        found - scores.energy(draws, x[:30], event=VECTOR)
    with pytest.raises(Incomparable, match="crps"):
        found - scores.crps(draws, x, event=VECTOR)
    with pytest.raises(Incomparable, match="standardised"):
        found - scores.energy(draws, x, event=VECTOR, standardise=True)
    with pytest.raises(TypeError):
        found - 1.0
    whole = np.round(x)
    other = scores.energy(draws, whole, event=VECTOR) - scores.energy(
        np.round(draws), whole, event=Array((2,), resolution=1.0)
    )
    assert other.n == 40  # raw numbers compare, whatever measure a likelihood would need


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: scores.energy(x[:5], x, event=VECTOR), DataError, "5 rows"),
        (lambda x: scores.energy(x[:, :1], x, event=VECTOR), ShapeError, "samples"),
        (lambda x: scores.energy(x, np.where(x > 2, np.nan, x), event=VECTOR), DataError, "missing"),
        (lambda x: scores.energy(x, np.where(x > 1, np.nan, x), event=Array((2,), missing=True)), DataError, "issing"),
        (lambda x: scores.energy(x.astype(np.float16), x, event=VECTOR), DataError, "float16"),
        (lambda x: scores.energy(x, x, event=VECTOR, given=x), ParameterError, "given"),
        (lambda x: scores.energy(pg.Independent(VECTOR).fit(x, seed=0), x, draws=3), ParameterError, "draws"),
        (lambda x: scores.variogram(x[:, :1], x[:, :1], event=Array((1,))), StructureError, "one number"),
        (lambda x: scores.variogram(x, x, event=VECTOR, order=0), ParameterError, "order"),
        (lambda x: scores.brier(x, x, event=VECTOR), StructureError, "categories"),
        (lambda x: scores.crps([x[:, 0]] * 10, [x[:, 0]] * 10, event=Series()), StructureError, "array or a table"),
        (lambda x: scores.interval_coverage(x, x, event=VECTOR, levels=(1.0,)), ParameterError, "levels"),
        (lambda x: scores.interval_coverage(x, x, event=VECTOR, levels=(0.999,)), ParameterError, "2000"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_came_and_what_was_wanted(call, error, says):
    with pytest.raises(error, match=says):
        call(pairs(200, 0))
