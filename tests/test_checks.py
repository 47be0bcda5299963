"""Predictive checks: p-values that are uniform where the model holds, and small where it does not."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from conjugate import Linear

import probgen as pg
from probgen.errors import DataError, NotFittedError, ParameterError, StructureError
from probgen.evaluate import checks
from probgen.evaluate.checks import check
from probgen.evaluate.loo.rows import Data
from probgen.evaluate.replicates import replicates
from probgen.events import Array, Category, Count, Panel, Real, Series, Table

ALARM = 1e-6  # false-alarm rate of each statistical test
FAR = scipy.stats.norm.isf(ALARM / 2)


def rng(seed=0):
    return np.random.default_rng(seed)


def is_uniform(p, bins=10):
    counts = np.histogram(p, bins=bins, range=(0, 1))[0]
    return scipy.stats.chisquare(counts).pvalue > ALARM


# --- p-values ---------------------------------------------------------------------------------------------------------


def three(y):
    return [y.mean(), y.std(), (y > 2).sum()]


def test_prior_p_values_are_uniform_under_the_model():
    """Data of the prior's own: a parameter from it, then 15 rows."""
    random, found, strict = rng(1), [], []
    model = Linear(Array(()), prior=2.0).fit(np.zeros(15), draws=5)
    for seed in range(120):
        y = random.normal(0, 2) + random.normal(size=15)
        r = check(model, y, three, n=20, prior=True, seed=seed)
        found.append(r.p)
        strict.append((r.replicated > r.observed).mean(axis=0))  # the twin: ties are not broken
    assert all(is_uniform(p) for p in np.transpose(found))
    assert not is_uniform(np.transpose(strict)[2])


def test_rows_of_one_data_set_share_their_parameters():
    """The twin draws each row from parameters of its own: means of data sets then vary too little."""
    model = Linear(Array(()), prior=2.0).fit(np.zeros(15), draws=5)
    data = Data.of(model, np.zeros(15), None)
    together = np.array([float(part.mean()) for part in replicates(data, 500, True, 0)])
    apart = model._parametric().sample_prior(500 * 15, None, torch.Generator().manual_seed(0)).reshape(500, 15).mean(1)
    truth = math.sqrt(4 + 1 / 15)
    low, high = np.sqrt(scipy.stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], 499) / 499) * truth
    assert low < together.std(ddof=1) < high
    assert not low < float(apart.std()) < high


def test_replicates_follow_the_posterior_predictive_of_data_sets():
    y = rng(2).normal(1, 1, size=8)
    model = Linear(Array(()), prior=2.0).fit(y, draws=500, seed=0)
    means = np.array([float(part.mean()) for part in replicates(Data.of(model, y, None), 1000, False, 0)])
    p = model.posterior(torch.from_numpy(y), None)
    spread = math.sqrt(float(p.covariance_matrix) + 1 / 8)
    assert abs(means.mean() - float(p.mean)) < FAR * spread / math.sqrt(1000)
    low, high = np.sqrt(scipy.stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], 999) / 999) * spread
    assert low < means.std(ddof=1) < high
    assert not low < 1 / math.sqrt(8) < high  # the twin: one set of parameters for all


def test_a_plug_in_check_of_known_parameters_is_uniform_and_sees_a_wrong_model():
    model = Linear(Array(())).fit(np.zeros(10), method="ml")
    random = rng(3)
    right = [check(model, random.normal(size=30), "sd", n=49, seed=s).p[0] for s in range(100)]
    wrong = [check(model, 1.5 * random.normal(size=30), "sd", n=49, seed=s).p[0] for s in range(40)]
    assert is_uniform(right)
    assert not is_uniform(wrong)
    assert np.mean(wrong) < 0.1  # the data have more of it


def test_ties_are_broken_and_errors_are_those_of_a_share():
    replicated = np.array([[0.0], [1.0], [1.0], [2.0]])
    p = np.array([checks.tail_probability(np.array([1.0]), replicated, seed)[0][0] for seed in range(2000)])
    assert p.min() >= 1 / 5
    assert p.max() <= 4 / 5
    assert abs(p.mean() - 0.5) < FAR * math.sqrt(0.6**2 / 12 / 2000)
    many = np.random.default_rng(0).normal(size=(10_000, 1))
    value, error = checks.tail_probability(np.array([1.0]), many, 0)
    assert abs(value[0] - scipy.stats.norm.sf(1.0)) < FAR * error[0] < 0.05


# --- what is checked --------------------------------------------------------------------------------------------------


def table(n=100):
    random = rng(4)
    frame = pd.DataFrame({"a": random.normal(size=n), "k": random.poisson(2, n), "s": random.choice(["u", "v"], n)})
    frame["b"] = 0.9 * frame["a"] + 0.3 * random.normal(size=n)
    return frame, Table({"a": Real(), "k": Count(), "s": Category(("u", "v")), "b": Real()})


def test_columns_are_named_and_a_dependence_that_the_model_lacks_is_seen():
    frame, event = table()
    model = pg.Independent.for_event(event).fit(frame, seed=0)
    r = check(model, frame, "correlation", n=60)
    assert r.names == ("a ~ k", "a ~ b", "k ~ b")
    assert r.extreme.tolist()[1]
    assert r.p[1] < 0.02
    assert r.source == "plug-in"
    assert not r.extreme[0] or not r.extreme[2]
    assert r.observed[1] == pytest.approx(frame[["a", "b"]].corr().iloc[0, 1])
    means = check(model, frame, "mean", n=20)
    assert means.names == ("a", "k", "b")
    assert (means.p > 0.01).all()
    assert "a ~ b" in str(r)
    assert "!" in str(r)
    assert "plug-in" in str(r)
    assert "varies" not in str(r)
    levels = check(model, frame, "levels", n=20)
    assert levels.names == ("s = u", "s = v")
    assert levels.observed.sum() == pytest.approx(1)
    zeros = check(model, frame, "zeros", n=20)
    assert zeros.observed[1] == (frame["k"] == 0).mean()
    assert check(model, frame, lambda f: f["k"].max(), n=20).names == ("",)
    found = r.frame().to_pydict()
    assert found["name"] == list(r.names)
    assert found["p"] == r.p.tolist()


def test_gaps_of_the_data_are_cut_into_the_data_sets():
    frame, event = table(60)
    frame.loc[:29, "a"] = np.nan
    model = pg.Independent.for_event(event).fit(frame, seed=0)
    seen = []
    check(model, frame, lambda f: seen.append(f["a"].isna().sum()) or 0.0, n=20)
    assert seen == [30] * 21


def test_sequences_keep_their_lengths_and_order_is_seen():
    random = rng(5)
    series = [random.normal(size=(n, 1)).cumsum(axis=0) for n in (30, 80, 30)]
    model = pg.Independent.for_event(Series((1,))).fit(series, seed=0)
    r = check(model, series, "autocorrelation", n=50)
    assert r.p[0] < 0.02
    assert r.observed[0] > 0.7
    lengths = []
    check(model, series, lambda s: lengths.append([len(part) for part in s]) or 0.0, n=20)
    assert lengths == [[30, 80, 30]] * 21


def test_panels_are_checked_by_column():
    random = rng(6)
    frame = pd.DataFrame({"id": np.repeat([1, 2], 40), "v": random.normal(size=80)})
    model = pg.Independent.for_event(Panel({"v": Real()}, sequence="id")).fit(frame, seed=0)
    r = check(model, frame, "autocorrelation", n=50)
    assert r.names == ("v",)
    assert 0.001 < r.p[0] < 0.999


def test_covariates_belong_to_their_rows():
    random = rng(7)
    given = np.linspace(0, 10, 40)[:, None]
    y = 3 * given[:, 0] + random.normal(size=40)
    model = Linear(Array(()), Array((1,))).fit(y, given=given, draws=100)

    def slope(y):
        return np.polyfit(given[:, 0], y, 1)[0]

    r = check(model, y, slope, given=given, n=200)
    assert abs(r.replicated.mean() - 3) < 0.2
    assert not r.extreme.any()
    assert r.source == "posterior predictive"
    point = Linear(Array(()), Array((1,))).fit(y, given=given, method="ml")
    assert abs(check(point, y, slope, given=given, n=200).replicated.mean() - 3) < 0.2
    approximate = Linear(Array(()), Array((1,))).fit(y, given=given, method="laplace", draws=100)
    assert check(approximate, y, slope, given=given, n=20).source == "approximate posterior predictive"


def test_the_picture_is_written(tmp_path):
    frame, event = table(30)
    model = pg.Independent.for_event(event).fit(frame, seed=0)
    for stat in ("mean", "zeros", "levels", lambda f: 1.0):
        path = tmp_path / "check.png"
        check(model, frame, stat, n=20).plot(path)
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size > 3000
        path.unlink()


# --- guards -----------------------------------------------------------------------------------------------------------


def test_bad_questions_are_refused():
    frame, event = table(30)
    model = pg.Independent.for_event(event).fit(frame, seed=0)
    with pytest.raises(ParameterError, match="median"):
        check(model, frame, "medina")
    with pytest.raises(ParameterError, match="n=5"):
        check(model, frame, n=5)
    with pytest.raises(StructureError, match="point fit: it has no prior"):
        check(model, frame, prior=True)
    with pytest.raises(StructureError, match="sequences"):
        check(model, frame, "autocorrelation")
    with pytest.raises(DataError, match="finite"):
        check(model, frame, lambda f: math.nan, n=20)
    with pytest.raises(DataError, match="a number"):
        check(model, frame, lambda f: "much", n=20)
    with pytest.raises(DataError, match="shape"):
        check(model, frame, lambda f: np.zeros((2, 2)), n=20)
    with pytest.raises(NotFittedError):
        check(pg.Independent.for_event(event), frame)
    alone = pg.Independent.for_event(Array((1,))).fit(rng().normal(size=(50, 1)), seed=0)
    with pytest.raises(StructureError, match="one column"):
        check(alone, rng().normal(size=(50, 1)), "correlation")
    with pytest.raises(StructureError, match="categories"):
        check(alone, rng().normal(size=(50, 1)), "levels")


def test_data_sets_of_another_number_of_statistics_are_refused():
    y = rng().normal(size=20)
    model = Linear(Array(())).fit(y, draws=30)
    answers = iter([np.zeros(2), *[np.zeros(3)] * 30])
    with pytest.raises(DataError, match="2 numbers"):
        check(model, y, lambda _: next(answers), n=20)


def test_same_seed_same_answer_and_the_model_is_left_as_it_was():
    y = rng().normal(size=20)
    model = Linear(Array(())).fit(y, draws=30)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for prior in (False, True):
        one, two = (check(model, y, "sd", n=50, prior=prior, seed=3) for _ in range(2))
        np.testing.assert_array_equal(one.replicated, two.replicated)
        assert one.p[0] == two.p[0] != check(model, y, "sd", n=50, prior=prior, seed=4).p[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
