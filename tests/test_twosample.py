"""Judging by samples: closed forms, brute force, tests that keep their level, and their planted-bug twins."""

import math
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.linalg
import scipy.stats
import torch

import probgen as pg
from probgen.errors import DataError, LikelihoodUnavailable, ParameterError, ShapeError, StructureError
from probgen.evaluate.twosample import (
    TESTS,
    Finding,
    SampleWarning,
    augmentation_gain,
    kernels,
    memorisation,
    stein,
    train_on_synthetic,
    two_sample,
)
from probgen.evaluate.twosample.classifier import ranked_above, told_apart
from probgen.evaluate.twosample.discrepancy import discrepancy, score_of
from probgen.evaluate.twosample.findings import holm
from probgen.evaluate.twosample.geometry import frechet, neighbourhoods
from probgen.events import Category, Count, Panel, Ragged, Real, Table

REPEATS = 300
ALARM = 1e-6  # false-alarm rate of each statistical test
PERMUTATIONS = 99


def rng(seed=0):
    return np.random.default_rng(seed)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d=2, seed=0, shift=0.0):
    return torch.from_numpy(rng(seed).normal(size=(n, d)) + shift)


def uniformity(pvalues, permutations=PERMUTATIONS):
    """Of permutation p-values, which lie on a grid: spread over their steps."""
    spread = np.asarray(pvalues) - rng(9).uniform(size=len(pvalues)) / (permutations + 1)
    return scipy.stats.kstest(spread, "uniform").pvalue


# --- levels -----------------------------------------------------------------------------------------------------------


def permutation_statistics(seed):
    pooled = normal(40, seed=seed)
    gen = generator(seed)
    widths = kernels.bandwidths(pooled, gen)
    inside = kernels.labellings(18, 40, PERMUTATIONS, gen)
    return kernels.permuted(pooled, inside, widths)


def mmd_p_values(seed):
    """Of the largest of several kernels, and, the twin, the smallest of their own, uncorrected."""
    found = permutation_statistics(seed)
    return kernels.combined(found), float((found >= found[:, :1]).double().mean(1).min())


def overfitted(rows, labels):
    """A classifier that fits more features than it has rows."""
    wide = torch.randn(rows.shape[1], 200, generator=generator(3), dtype=torch.float64)
    seen = torch.cos(3 * rows @ wide)
    way = torch.linalg.lstsq(seen, 2.0 * labels.double()[:, None] - 1).solution
    return lambda new: (torch.cos(3 * new @ wide) @ way)[:, 0]


def classifier_p_values(seed):
    """On held-out rows, and, the twin, on those it was trained on."""
    x, y, gen = normal(30, seed=2 * seed), normal(36, seed=2 * seed + 1), generator(seed)
    honest = told_apart(x, y, overfitted, PERMUTATIONS, gen).pvalue
    tell = overfitted(torch.cat([x, y]), torch.arange(66) >= 30)
    return honest, ranked_above(tell(x), tell(y), PERMUTATIONS, gen)[3]


def stein_p_values(seed):
    """Under the density, and, the twin, under one that is wider."""
    x = normal(60, seed=seed)
    scores = (lambda x: -x, lambda x: -x / 2)
    return tuple(discrepancy(x, score, PERMUTATIONS, generator(seed)).pvalue for score in scores)


def memorisation_p_values(seed):
    """Of new rows, and, the twin, where the test rows were trained on."""
    samples, train, test = (normal(n, seed=3 * seed + i).numpy() for i, n in enumerate((30, 50, 40)))
    options = {"permutations": PERMUTATIONS, "seed": seed, "event": pg.events.Array((2,))}
    return tuple(memorisation(samples, train, other, **options).pvalue for other in (test, train[:40]))


P_VALUES = [mmd_p_values, classifier_p_values, stein_p_values, memorisation_p_values]


@pytest.mark.parametrize("pvalues", P_VALUES)
def test_p_values_are_uniform_under_the_null_and_those_of_a_planted_bug_are_not(pvalues):
    honest, planted = zip(*map(pvalues, range(REPEATS)), strict=True)
    assert uniformity(honest) > ALARM
    assert uniformity(planted) < ALARM


@pytest.mark.long
@pytest.mark.parametrize("pvalues", P_VALUES)
def test_p_values_are_super_uniform_in_two_thousand_repeats(pvalues):
    honest = np.array([pvalues(10_000 + seed)[0] for seed in range(2000)])
    for level in (0.01, 0.05, 0.1, 0.5):
        found = scipy.stats.binomtest(int((honest <= level).sum()), 2000, level, alternative="greater")
        assert found.pvalue > ALARM
    assert honest.min() > 0


def test_no_p_value_is_zero_and_holm_corrects_for_all_tests():
    found = two_sample(
        normal(60), normal(60, seed=1, shift=5.0), tests=["mmd", "c2st"], permutations=19, classifier="linear", seed=0
    )
    assert found["mmd"].pvalue == 1 / 20
    assert found["c2st"].pvalue == 1 / 20
    assert found["mmd"].holm == found["c2st"].holm == 2 / 20
    assert not found.different  # 19 permutations can't reach 0.05 twice
    given = {name: Finding(name, 0.0, "", pvalue=p) for name, p in {"a": 0.04, "b": 0.01, "c": 0.03}.items()}
    assert {name: f.holm for name, f in holm(given).items()} == {"a": 0.06, "b": 0.03, "c": 0.06}


# --- power ------------------------------------------------------------------------------------------------------------


def eight(n, spread, seed):
    """Eight normals on a circle of radius 2; the twins differ in their temperature."""
    r = rng(seed)
    angle = r.integers(8, size=n) * math.pi / 4
    return 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + spread * r.normal(size=(n, 2))


def test_a_lower_temperature_of_eight_gaussians_is_seen_by_kernels_and_by_the_classifier():
    found = two_sample(eight(600, 0.2, 0), eight(600, 0.1, 1), permutations=500, tests=["mmd", "c2st"], seed=0)
    assert found.different
    assert found["mmd"].holm < 0.01
    assert found["c2st"].holm < 0.01
    assert found["c2st"].effect.low > 0.55
    assert found["c2st"].matched > found["c2st"].floor + 0.05
    same = two_sample(
        eight(600, 0.2, 0), eight(600, 0.2, 1), permutations=500, tests=["mmd", "c2st"], floor=False, seed=0
    )
    assert not same.different
    assert same["c2st"].effect.low < 0.5


def test_lost_modes_cost_recall_and_coverage_and_no_precision():
    x, y = eight(600, 0.2, 0), eight(4000, 0.2, 1)
    y = y[y[:, 0] > 0.1][:600]
    found = two_sample(x, y, tests=["precision", "recall", "coverage"], seed=0)
    assert found["recall"].effect.high < -0.3
    assert found["coverage"].effect.high < -0.3
    assert found["precision"].effect.high > -0.02


def test_wrong_weights_of_separated_modes_are_nearly_unseen_by_stein_and_seen_by_mmd():
    r = rng(0)

    def modes(n, share):
        return (np.where(r.random(n) < share, -8.0, 8.0) + r.normal(size=n))[:, None]

    def score(x):
        return torch.where(x < 0, -8.0 - x, 8.0 - x)

    x, y = modes(300, 0.5), modes(300, 0.75)
    with pytest.warns(SampleWarning, match="weights"):
        found = two_sample(x, y, score=score, tests=["mmd", "stein"], seed=0)
    assert found["mmd"].pvalue < 0.01
    assert found["stein"].pvalue > 0.01
    assert any("weights" in note for note in found.notes)
    with pytest.warns(SampleWarning):
        assert stein(score, y + 0.5, seed=0).pvalue < 0.01


# --- closed forms and brute force -------------------------------------------------------------------------------------


def by_pairs(x, y, kernel):
    """Unbiased MMD^2 as Gretton et al. write it, pair by pair."""
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kid_is_the_unbiased_cubic_mmd_and_its_error_the_jackknife():
    x, y = normal(9, 3).numpy(), normal(7, 3, seed=1, shift=0.5).numpy()

    def cubic(a, b):
        return (a @ b / 3 + 1) ** 3

    found = kernels.jackknife(torch.from_numpy(x), torch.from_numpy(y), kernels.cubic)
    assert found.value == pytest.approx(by_pairs(x, y, cubic), abs=1e-12)
    without_x = [by_pairs(np.delete(x, i, 0), y, cubic) for i in range(9)]
    without_y = [by_pairs(x, np.delete(y, i, 0), cubic) for i in range(7)]
    assert found.stderr == pytest.approx(math.sqrt(8 * np.var(without_x) + 6 * np.var(without_y)), rel=1e-9)


def test_the_stated_error_of_kid_is_that_of_repeated_samples():
    many = [
        kernels.jackknife(normal(60, seed=i), normal(80, seed=900 + i, shift=0.7), kernels.cubic) for i in range(200)
    ]
    ratio = np.mean([f.stderr for f in many]) / np.std([f.value for f in many])
    assert 0.8 < ratio < 1.4


def test_permuted_statistics_are_those_of_the_relabelled_rows_in_one_block_and_in_many(monkeypatch):
    pooled = normal(23, seed=4)
    inside = kernels.labellings(9, 23, 6, generator())
    found = kernels.permuted(pooled, inside, [1.3])[0]
    assert inside[:9, 0].all()
    assert (inside.sum(0) == 9).all()
    for column, value in zip(inside.T.bool(), found, strict=True):
        x, y = pooled[column].numpy(), pooled[~column].numpy()
        brute = by_pairs(x, y, lambda a, b: math.exp(-((a - b) ** 2).sum() / (2 * 1.3**2)))
        assert float(value) == pytest.approx(brute, abs=2e-6)
    monkeypatch.setattr(kernels, "_BLOCK", 60)
    torch.testing.assert_close(kernels.permuted(pooled, inside, [1.3])[0], found, rtol=0, atol=2e-6)


def exactly(n, mean, covariance, seed):
    """A sample with just these moments."""
    z = rng(seed).normal(size=(n, len(mean)))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return torch.from_numpy(z @ np.linalg.cholesky(covariance).T + mean)


def test_frechet_distance_of_two_normals_is_the_closed_form():
    a = np.array([[2.0, 0.6, 0.1], [0.6, 1.0, -0.2], [0.1, -0.2, 0.5]])
    b = np.array([[0.7, -0.3, 0.0], [-0.3, 1.5, 0.4], [0.0, 0.4, 3.0]])
    shift = np.array([1.0, -2.0, 0.5])
    expected = shift @ shift + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet(exactly(50, np.zeros(3), a, 0), exactly(40, shift, b, 1)) == pytest.approx(expected, rel=1e-9)
    flat = normal(50, 3) * torch.tensor([1.0, 1.0, 0.0])  # a singular covariance does no harm
    assert frechet(flat, flat + 2) == pytest.approx(12.0, rel=1e-9)
    assert frechet(flat, flat) == pytest.approx(0.0, abs=1e-9)


def by_loops(x, y, k):
    """Precision, recall, density, coverage without ties, as their papers write them."""

    def away(a, b):
        return np.linalg.norm(a - b)

    radius_x = [sorted(away(a, b) for b in x)[k] for a in x]
    radius_y = [sorted(away(a, b) for b in y)[k] for a in y]
    precision = np.mean([any(away(a, b) <= r for a, r in zip(x, radius_x, strict=True)) for b in y])
    recall = np.mean([any(away(a, b) <= r for b, r in zip(y, radius_y, strict=True)) for a in x])
    density = np.mean([sum(away(a, b) < r for a, r in zip(x, radius_x, strict=True)) for b in y]) / k
    coverage = np.mean([min(away(a, b) for b in y) <= r for a, r in zip(x, radius_x, strict=True)])
    return {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def test_neighbourhoods_agree_with_their_papers_loops():
    x, y = normal(40, 3), normal(30, 3, seed=1, shift=0.8)
    found = neighbourhoods(x, y, 4)
    for name, expected in by_loops(x.numpy(), y.numpy(), 4).items():
        assert found.mean(name) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("copies", [1, 3, 20])
def test_equal_samples_score_one_in_all_four_whatever_their_ties(copies):
    x = normal(20, 3).repeat(copies, 1)
    found = neighbourhoods(x, x[torch.randperm(len(x), generator=generator())], 5)
    for name in ("precision", "recall", "density", "coverage"):
        assert found.mean(name) == pytest.approx(1.0, abs=1e-12)
    far = neighbourhoods(x, x + 100.0, 5)
    assert [far.mean(name) for name in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]


def test_the_score_of_a_fitted_model_is_its_gradient():
    x = normal(200, 2).numpy() @ np.array([[1.0, 0.5], [0.0, 0.7]])
    model = pg.Independent(pg.events.Array((2,))).fit(x, seed=0)
    at = torch.from_numpy(x[:20])
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    slopes = [(model.log_prob((at + e).numpy()).nats - model.log_prob((at - e).numpy()).nats) / 2e-5 for e in step]
    np.testing.assert_allclose(score_of(model)(at).numpy(), np.stack(slopes, 1), rtol=1e-3, atol=1e-3)
    gan = pg.GAN(pg.events.Array((2,))).fit(x, steps=2, seed=0)
    with pytest.raises(LikelihoodUnavailable), pytest.warns(SampleWarning):
        stein(gan, x)


def test_the_interval_of_the_auc_holds_the_truth_as_often_as_it_says():
    truth, inside = scipy.stats.norm.cdf(1 / math.sqrt(2)), 0
    for seed in range(REPEATS):
        x, y = normal(40, 1, seed=2 * seed)[:, 0], normal(50, 1, seed=2 * seed + 1, shift=1.0)[:, 0]
        auc, low, high, p = ranked_above(x, y, 0, generator())
        inside += low <= truth <= high
        assert p is None
        assert low <= auc <= high
    assert scipy.stats.binomtest(inside, REPEATS, 0.95).pvalue > ALARM
    assert ranked_above(torch.zeros(5), torch.zeros(5), 0, generator())[0] == 0.5


# --- what comes in ----------------------------------------------------------------------------------------------------


def frame(n, seed, p=(0.5, 0.3, 0.2)):
    r = rng(seed)
    return pd.DataFrame(
        {
            "height": r.normal(170, 8, n),
            "town": r.choice(["A", "B", "C"], size=n, p=p),
            "visits": r.poisson(30, n),
            "weight": np.where(r.random(n) < 0.2, np.nan, r.normal(70, 9, n)),
        }
    )


FAST = {"tests": ["mmd"], "permutations": 199, "seed": 0}


def test_mixed_tables_with_gaps_are_compared_in_any_form():
    x, y = frame(150, 0), frame(120, 1)
    event = Table({"height": Real(), "town": Category(("A", "B", "C")), "visits": Count(), "weight": Real()}, True)
    found = two_sample(x, y, event=event, **FAST)
    assert not found.different
    assert two_sample(pl.from_pandas(x), pl.from_pandas(y), event=event, **FAST)["mmd"].value == found["mmd"].value
    assert two_sample(x, y, **FAST)["mmd"].value == pytest.approx(found["mmd"].value, abs=0.01)
    assert two_sample(x, frame(120, 1, p=(0.1, 0.3, 0.6)), **FAST).different
    gaps = frame(120, 1)
    gaps.loc[:80, "weight"] = np.nan
    assert two_sample(x, gaps, **FAST).different


def test_a_level_that_one_sample_lacks_is_one_event_with_the_other():
    x, y = frame(60, 0), frame(60, 1)
    y["town"] = "D"
    assert two_sample(x, y, **FAST)["mmd"].pvalue == 1 / 200
    y["town"] = 1.5
    with pytest.raises(ShapeError, match="town"):
        two_sample(x, y, **FAST)


def walks(n, seed, pull, length=(10, 20)):
    r, found = rng(seed), []
    for _ in range(n):
        x = r.normal(size=r.integers(*length))
        for t in range(1, len(x)):
            x[t] = pull * x[t - 1] + math.sqrt(1 - pull**2) * x[t]
        found.append(x)
    return found


def test_sequences_are_told_apart_by_length_and_by_succession():
    x = walks(100, 0, 0.0)
    assert not two_sample(x, walks(100, 1, 0.0), **FAST).different
    assert two_sample(x, walks(100, 1, 0.8), **FAST).different
    assert two_sample(x, walks(100, 1, 0.0, (20, 30)), **FAST).different
    values = torch.from_numpy(np.concatenate(x))
    ragged = Ragged(values, torch.tensor([len(s) for s in x]))
    other = walks(100, 1, 0.8)
    assert two_sample(ragged, other, **FAST)["mmd"].value == two_sample(x, other, **FAST)["mmd"].value


def words(n, seed, step):
    """Texts of the letters a to d, whose frequencies are equal and whose successions differ with ``step``."""
    r = rng(seed)
    return ["".join("abcd"[(s + step * t) % 4] for t in range(24)) for s in r.integers(4, size=n)]


def test_texts_and_panels_are_told_apart_by_succession():
    assert two_sample(words(60, 0, 1), words(60, 1, 3), **FAST).different
    assert not two_sample(words(60, 0, 1), words(60, 1, 1), **FAST).different
    event = Panel({"x": Real(), "k": Category(("u", "v"))}, "id")

    def panel(seed, sticky):
        r = rng(seed)
        k = (r.random((40, 12)) < 0.5).astype(int)
        if sticky:
            k = np.repeat(k[:, ::3], 3, axis=1)
        columns = {"id": np.repeat(np.arange(40), 12), "x": r.normal(size=480), "k": np.array(["u", "v"])[k.ravel()]}
        return pd.DataFrame(columns)

    assert two_sample(panel(0, False), panel(1, True), event=event, **FAST).different
    assert not two_sample(panel(0, False), panel(1, False), event=event, **FAST).different


def test_records_and_images_are_compared():
    r = rng(0)
    x, y = ({"image": r.normal(size=(50, 4, 4)), "label": r.normal(size=50) + s} for s in (0.0, 2.0))
    found = two_sample(x, y, **FAST)
    assert found.different
    assert "17 numbers" in found.what


def test_features_of_a_callable_are_taken_as_they_are():
    x, y = eight(100, 0.2, 0), eight(120, 0.2, 1)
    found = two_sample(x, y, features=lambda a: 1000 * a[:, :1], tests=["frechet"], seed=0)
    expected = 1e6 * ((x[:, 0].mean() - y[:, 0].mean()) ** 2 + (x[:, 0].std(ddof=1) - y[:, 0].std(ddof=1)) ** 2)
    assert found["frechet"].value == pytest.approx(expected, rel=1e-9)
    torch_too = two_sample(torch.from_numpy(x), y, features=lambda a: 1000 * a[:, :1], tests=["frechet"], seed=0)
    assert torch_too["frechet"].value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "says"),
    [
        (normal(9), normal(30), {}, DataError, "9 rows"),
        (normal(30), normal(12), {"tests": ["c2st"]}, DataError, "12 rows"),
        (normal(30), normal(30, 3), {}, ShapeError, "equal widths"),
        (normal(30), torch.full((30, 2), math.nan), {"event": pg.events.Array((2,))}, DataError, "y: row 0"),
        (normal(30).half(), normal(30), {}, DataError, "float16"),
        (normal(30), normal(30), {"features": lambda x: x.half()}, DataError, "float16"),
        (normal(30), normal(30), {"features": lambda x: x / 0}, DataError, "not finite"),
        (normal(30), normal(30), {"features": lambda x: x[:, :, None]}, ShapeError, "shape"),
        (torch.ones(30, 2), torch.ones(30, 2), {}, DataError, "same"),
        (normal(30), normal(30), {"tests": ["mdm"]}, ParameterError, "mmd"),
        (normal(30), normal(30), {"tests": []}, ParameterError, "at least one"),
        (normal(30), normal(30), {"tests": ["stein"]}, ParameterError, "score="),
        (normal(30), normal(30), {"level": 1.0}, ParameterError, "level"),
        (normal(30), normal(30), {"permutations": 3}, ParameterError, "permutations"),
        (normal(30), normal(30), {"classifier": "forest"}, ParameterError, "forest"),
        (normal(30), normal(30), {"rows": 2}, ParameterError, "rows"),
        (pg.Independent(pg.events.Array((2,))), normal(30), {}, ParameterError, "sample"),
        (normal(30), [[1.0], [2.0, 3.0]], {}, ShapeError, "looks like"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_came_and_what_was_wanted(x, y, options, error, says):
    with pytest.raises(error, match=says):
        two_sample(x, y, **options)


def test_a_column_that_never_varies_is_left_out_and_said():
    x, y = torch.cat([normal(40), torch.ones(40, 1)], 1), torch.cat([normal(40, seed=1), torch.ones(40, 1)], 1)
    found = two_sample(x, y, **FAST)
    assert any("1 of 3" in note for note in found.notes)
    assert found["mmd"].value == pytest.approx(two_sample(x[:, :2], y[:, :2], **FAST)["mmd"].value)
    lost = two_sample(x, torch.cat([normal(40, seed=1), torch.full((40, 1), 2.0)], 1), **FAST)
    assert lost.different  # constant in each, but not the same


# --- the answer -------------------------------------------------------------------------------------------------------


def test_the_answer_is_a_mapping_with_floors_beside_and_prints_as_a_table():
    found = two_sample(normal(60), normal(50, seed=1), permutations=49, classifier="linear", seed=3)
    assert list(found) == [name for name in TESTS if name != "stein"]
    for finding in found.values():
        assert finding.size == 30
        assert math.isfinite(finding.matched)
        assert math.isfinite(finding.floor)
        assert finding.effect.low <= finding.effect.value <= finding.effect.high
    assert (found["mmd"].pvalue is None, found["kid"].pvalue is None) == (False, True)
    text = str(found)
    assert all(name in text for name in found)
    assert "linear, trained on 30 + 25 rows" in text
    assert "rank by effect" in text
    again = two_sample(normal(60), normal(50, seed=1), permutations=49, classifier="linear", seed=3)
    assert str(again) == text
    alone = two_sample(normal(60), normal(50, seed=1), permutations=49, tests=["mmd"], seed=3)
    assert alone["mmd"].pvalue == found["mmd"].pvalue  # each test has its own stream


def test_tests_that_the_data_are_too_few_for_are_left_out_with_the_reason():
    with pytest.warns(SampleWarning, match="mostly bias"):
        found = two_sample(normal(12), normal(12, seed=1), permutations=49, seed=0)
    assert "c2st" not in found
    assert "12 rows" in found.skipped["c2st"]
    assert "c2st was left out" in str(found)


def test_a_frechet_distance_of_few_rows_warns_and_thinning_is_said():
    with pytest.warns(SampleWarning, match="mostly bias"):
        found = two_sample(normal(30, 4), normal(60, 4, seed=1), tests=["frechet"], seed=0)
    assert found["frechet"].floor > 0.2  # what the warning is about
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        two_sample(normal(40, 4), normal(60, 4, seed=1), tests=["frechet"], seed=0)
    thinned = two_sample(normal(90), normal(60, seed=1), permutations=49, tests=["mmd", "coverage"], rows=50, seed=0)
    assert "on 50 rows of x and 50 of y" in thinned["mmd"].how
    assert "on 50 rows of x" in thinned["coverage"].how


# --- what samples are good for ----------------------------------------------------------------------------------------


def flowers(n, seed, noise=0.0):
    """Two columns and a kind that follows from them; a share of the kinds is noise."""
    r = rng(seed)
    x = r.normal(size=(n, 2))
    kind = np.where(r.random(n) < noise, r.random(n) < 0.5, x[:, 0] * x[:, 1] > 0)
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": np.where(kind, "yes", "no")})


def test_samples_equal_to_the_training_rows_teach_the_same_and_noise_teaches_worse():
    train, test = flowers(400, 0), flowers(300, 1)
    equal = train_on_synthetic(train, train, test, target="kind", seed=0)
    assert equal.difference == 0.0
    assert equal.losses[1] < 0.6 * equal.plain
    noise = train_on_synthetic(flowers(400, 2, 1.0), train, test, target="kind", seed=0)
    assert noise.difference > 4 * noise.stderr > 0
    assert noise.accuracies[0] < noise.accuracies[1]
    assert "paired" in str(noise)
    blind = train_on_synthetic(train, train, test, target="kind", learner="linear", seed=0)
    assert blind.accuracies[1] < 0.6  # a linear learner can't see a product


def test_numbers_of_vectors_are_regressed_and_a_model_is_sampled():
    x = normal(300, 3).numpy()
    x[:, 2] = 10 * x[:, 0] - 5 * x[:, 1] + 0.1 * x[:, 2]
    model = pg.Independent(pg.events.Array((3,))).fit(x[:200], seed=0)
    found = train_on_synthetic(model, x[:200], x[200:], target=2, learner="linear", seed=0)
    assert found.losses[1] < 0.01
    assert found.losses[0] > 0.5  # it knows of no dependence
    assert found.difference > 4 * found.stderr


def test_good_samples_added_to_few_rows_help_and_bad_ones_hurt():
    few, test = flowers(25, 0), flowers(400, 1)
    good = augmentation_gain(flowers(800, 2), few, test, target="kind", seed=0)
    bad = augmentation_gain(flowers(800, 2, 1.0), flowers(300, 0), test, target="kind", seed=0)
    assert good.difference < -4 * good.stderr
    assert bad.difference > 4 * bad.stderr
    assert good.sizes[0] == 825
    assert augmentation_gain(flowers(800, 2), few, test, target="kind", n=50, seed=0).sizes[0] == 75


def test_impossible_tasks_are_refused():
    data = flowers(60, 0)
    with pytest.raises(ParameterError, match="kind"):
        train_on_synthetic(data, data, data, target="kinds")
    with pytest.raises(ParameterError, match="learner"):
        train_on_synthetic(data, data, data, target="kind", learner="tree")
    with pytest.raises(DataError, match="8 rows for test"):
        train_on_synthetic(data, data, data[:8], target="kind")
    with pytest.raises(StructureError, match="target"):
        train_on_synthetic(walks(30, 0, 0.1), walks(30, 0, 0.1), walks(30, 0, 0.1), target=0)


def test_copies_of_training_rows_are_found():
    train, test = normal(200).numpy(), normal(100, seed=1).numpy()
    found = memorisation(train[:80], train, test, seed=0)
    assert (found.copies, found.expected) == (1.0, 0.0)
    assert found.pvalue == 1 / 10_001
    assert found.low > 0.9
    near = memorisation(train[:80] + 1e-3, train, test, seed=0)
    assert near.copies == 0.0
    assert near.pvalue == 1 / 10_001
    assert "training" in str(near)
    with pytest.raises(DataError, match="samples"):
        memorisation(train[:5], train, test)
