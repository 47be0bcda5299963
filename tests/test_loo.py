"""Leave-one-out densities: closed forms, ArviZ's own numbers, refits, and rows that weights can't do."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from conjugate import Linear, Vectorised

import probgen as pg
from probgen.errors import DataError, FitError, NotFittedError, ParameterError, StructureError
from probgen.evaluate.loo import leaving, loo, match_moments, matching, psis, refits, result
from probgen.evaluate.paired import error_of_total
from probgen.events import Array, Series, Table
from probgen.events.table import Category, Real
from probgen.logprob import Kind

ALARM = 1e-6  # false-alarm rate of each statistical test
FAR = scipy.stats.norm.isf(ALARM / 2)
KNOWN = json.loads((Path(__file__).parent / "known" / "loo.json").read_text())
VECTOR = Array((3,))


def made(n=40, seed=0, jump=0.0, **options):
    """A conjugate model fitted to rows, the rows, and their covariates; the fourth row jumps."""
    random = np.random.default_rng(seed)
    given = random.normal(size=(n, 3))
    y = given @ [1.0, -1.0, 0.5] + random.normal(size=n)
    y[3] += jump
    return Linear(Array(()), VECTOR).fit(y, given=given, seed=seed, **options), y, given


def exact(model, y, given, units=None):
    units = [[i] for i in range(len(y))] if units is None else units
    return np.array(model.exact_loo(torch.from_numpy(y), torch.from_numpy(given), units))


def eight_schools(name):
    arviz = pytest.importorskip("arviz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return arviz.load_arviz_data(name).log_likelihood["obs"].values.reshape(2000, 8)


# --- the weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["centered_eight", "non_centered_eight"])
def test_eight_schools_are_those_of_arviz_row_by_row_and_in_total(name):
    log_lik, known = eight_schools(name), KNOWN[name]
    found = leaving.left_out(log_lik, 4, r_eff=known["r_eff"])
    np.testing.assert_allclose(found.nats, known["elpd_i"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.k, known["k"], rtol=0, atol=1e-10)
    assert found.nats.sum() == pytest.approx(known["elpd"], abs=4e-6)
    assert (found.seen - found.nats).sum() == pytest.approx(known["p_loo"], abs=1e-8)
    raw = -psis.log_mean(-log_lik)  # the twin: weights that nobody smoothed
    assert np.abs(raw - known["elpd_i"]).max() > 1e-4


def test_the_standard_error_divides_by_n_minus_1():
    """elpd -30.7808 and se 1.3473 (by n) are what ArviZ 0.23.4 says of the centred eight schools."""
    known = KNOWN["centered_eight"]
    assert known["elpd"] == pytest.approx(-30.7808, abs=5e-5)
    assert known["se_ddof0"] == pytest.approx(1.3473, abs=5e-5)
    found = result.standard_error(np.array(known["elpd_i"]))
    assert found == pytest.approx(known["se_ddof0"] * math.sqrt(8 / 7), rel=1e-12)
    assert math.isnan(result.standard_error(np.ones(1)))


@pytest.mark.parametrize("k", [-0.2, 0.3, 0.8])
def test_the_tail_fit_finds_the_shape_that_was_planted(k):
    random = np.random.default_rng(5)
    sets = [np.sort(scipy.stats.genpareto.rvs(k, scale=2.0, size=2000, random_state=random)) for _ in range(40)]
    found = np.array([psis.fit_pareto(x) for x in sets])
    error = found.std(axis=0) / math.sqrt(40)
    assert abs(found[:, 0].mean() - k) < FAR * error[0] + 0.004  # the prior draws k to 0.5, by ten rows of 2000
    assert abs(found[:, 1].mean() - 2.0) < FAR * error[1] + 0.01
    twin = np.array([psis.fit_pareto(x[200:])[0] for x in sets])  # excesses of another cutoff than theirs
    assert abs(twin.mean() - k) > FAR * error[0] + 0.004


def test_reliability_needs_more_draws_for_heavier_tails():
    assert psis.threshold(100) == pytest.approx(0.5)
    assert psis.threshold(1000) == pytest.approx(2 / 3)
    assert psis.threshold(10**6) == 0.7
    assert psis.threshold(1) == -math.inf


def test_equal_weights_need_no_smoothing_and_ties_make_no_tail():
    weights, k = psis.smooth(np.zeros((100, 1)))
    assert k[0] == -math.inf
    assert np.allclose(weights, -math.log(100))
    few = np.zeros((100, 1))
    few[:3] = 5.0
    assert psis.smooth(few)[1][0] == math.inf
    weights, k = psis.smooth(np.array([[0.0], [math.inf], [math.inf], [1.0]]))
    np.testing.assert_allclose(np.exp(weights[:, 0]), [0, 0.5, 0.5, 0])
    assert k[0] == math.inf


def test_smoothed_weights_sum_to_one_and_keep_their_order():
    ratios = np.random.default_rng(0).normal(size=(1000, 3)) * [0.5, 1, 3]
    weights, k = psis.smooth(ratios)
    np.testing.assert_allclose(np.exp(weights).sum(axis=0), 1)
    assert (np.diff(np.take_along_axis(weights, np.argsort(ratios, axis=0), 0), axis=0) >= -1e-12).all()
    assert k[0] < k[1] < k[2]


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_psis_is_the_exact_leave_one_out_density_of_conjugate_models():
    """Totals of 30 data sets, standardised by the printed Monte Carlo errors, have mean 0 and variance 1."""
    found, wrong, seen = [], [], []
    for seed in range(30):
        model, y, given = made(30, seed, draws=1500)
        truth, r = exact(model, y, given).sum(), loo(model, y, given, refit=False)
        found.append((r.elpd - truth) / r.monte_carlo)
        log_lik = model._log_lik_draws(torch.from_numpy(y), torch.from_numpy(given), None).numpy()
        weights, _ = psis.smooth(log_lik)  # the twin: the wrong sign
        wrong.append((psis.log_mean(weights + log_lik).sum() + 30 * math.log(3000) - truth) / r.monte_carlo)
        seen.append((r.elpd + r.p_loo - truth) / r.monte_carlo)  # the twin: rows not left out

    def looks_standard(z):
        z = np.array(z)
        low, high = scipy.stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], 29)
        return abs(z.mean()) < FAR / math.sqrt(30) and low < z.var(ddof=1) * 29 < high

    assert looks_standard(found)
    assert not looks_standard(wrong)
    assert not looks_standard(seen)


def test_row_errors_say_how_far_rows_are_off():
    model, y, given = made(200, 3, draws=2000)
    r = loo(model, y, given)
    z = (r.elpd_i - exact(model, y, given)) / r.log_prob.stderr
    assert (r.method == "psis").all()
    assert not r.bad.any()
    assert 0.5 < math.sqrt((z**2).mean()) < 1.5  # rows share draws: no chi-square
    assert r.se == pytest.approx(np.std(r.elpd_i, ddof=1) * math.sqrt(200))
    assert r.p_loo == pytest.approx(3, abs=1)
    assert r.kind == "psis-loo"
    assert r.target == "p(x_i | x_-i)"
    assert r.log_prob.kind is Kind.ESTIMATE


def test_a_group_is_left_out_with_all_its_rows():
    model, y, given = made(60, 1, draws=3000)
    labels = np.array([f"g{i % 12}" for i in range(60)])
    r = loo(model, y, given, groups=labels, refit=False)
    units = [np.flatnonzero(labels == label).tolist() for label in r.keys]
    truth = exact(model, y, given, units)
    assert r.keys.tolist() == [f"g{i}" for i in range(12)]
    good = ~r.bad
    assert good.sum() >= 9
    assert (np.abs(r.elpd_i - truth)[good] < FAR * r.log_prob.stderr[good]).all()
    rows = loo(model, y, given).elpd_i  # the twin: rows one at a time
    alone = np.array([rows[unit].sum() for unit in units])
    assert (np.abs(alone - truth)[good] > FAR * r.log_prob.stderr[good]).any()
    assert r.unit == "groups"
    assert r.target == "p(x_g | x_-g)"


def test_an_approximate_posterior_is_corrected():
    model, y, given = made(40, 2, method="laplace", stretch=1.5, draws=3000)
    r, truth = loo(model, y, given, refit=False), exact(model, y, given)
    assert set(r.method) == {"psis (approximate posterior)"}
    assert abs(r.elpd - truth.sum()) < FAR * r.monte_carlo
    log_lik = model._log_lik_draws(torch.from_numpy(y), torch.from_numpy(given), None).numpy()
    plain = leaving.left_out(log_lik, 2, r_eff=1.0)  # the twin: draws taken for the posterior's
    assert abs(plain.nats.sum() - truth.sum()) > FAR * r.monte_carlo
    seen = torch.distributions.Normal(*predictive(model, y, given)).log_prob(torch.from_numpy(y)).sum()
    assert r.p_loo == pytest.approx(float(seen) - truth.sum(), abs=0.2)


def predictive(model, y, given):
    """Means and standard deviations of the rows under the posterior given all of them."""
    design, p = torch.from_numpy(given), model.posterior(torch.from_numpy(y), torch.from_numpy(given))
    return design @ p.mean, (1 + ((design @ p.covariance_matrix) * design).sum(1)).sqrt()


def test_an_approximate_posterior_is_corrected_as_arviz_1_does():
    import arviz_core

    *_, log_lik, log_p, log_q, _ = arviz_core.arrays()
    found = leaving.left_out(log_lik.reshape(900, 7), 2, (log_p - log_q).reshape(-1))
    np.testing.assert_allclose(found.nats, KNOWN["arviz_core_1.3.0"]["approximate"], atol=1e-10)
    plain = leaving.left_out(log_lik.reshape(900, 7), 2, r_eff=1.0)
    np.testing.assert_allclose(plain.nats, KNOWN["arviz_core_1.3.0"]["elpd_i"], atol=1e-10)
    np.testing.assert_allclose(plain.k, KNOWN["arviz_core_1.3.0"]["k"], atol=1e-10)
    assert np.abs(found.nats - plain.nats).min() > 1e-3


def test_an_approximation_too_narrow_to_be_corrected_is_said_to_be_one():
    model, y, given = made(40, 2, method="laplace", stretch=0.3)
    r = loo(model, y, given)
    assert r.bad.any()
    assert "far from the posterior" in str(r)
    refitted = r.method == "refit"
    assert (refitted & r.bad).any()  # a refit's approximation is no better, and does not hide it


# --- rows that weights can't do ---------------------------------------------------------------------------------------


def test_moment_matching_mends_an_outlier():
    model, y, given = made(40, 0, jump=15.0)
    r, truth = loo(model, y, given), exact(model, y, given)
    assert r.method[3] == "moment matching"
    assert (r.method == "psis").sum() == 39
    assert r.k_before[3] > r.good_k > r.k[3]
    assert not r.bad.any()
    assert abs(r.elpd_i[3] - truth[3]) < FAR * r.log_prob.stderr[3]
    assert "1 by moment matching" in str(r)


def test_moment_matching_needs_the_right_densities(monkeypatch):
    """A shift and a scale apart: right to a few errors; wrong without the volume of the map, or with another row."""
    u = np.random.default_rng(1).normal(size=(4000, 2))
    joint = scipy.stats.norm.logpdf
    s, y = 1.5, 3.2

    def log_joint(u):
        return joint(u).sum(1)

    def log_lik(u):
        return joint(u[:, 0], y, s)

    precision = 1 - 1 / s**2
    mean, var = -y / s**2 / precision, 1 / precision
    truth = scipy.stats.norm.logpdf(y, mean, math.sqrt(var + s**2))
    found = match_moments(u, log_joint, log_lik)
    assert found.moves
    assert found.k < 0.7
    assert abs(found.nats - truth) < FAR * found.stderr
    wrong = match_moments(u, lambda u: joint(u, 0.3).sum(1), log_lik)  # the twin: another joint than the draws'
    assert not abs(wrong.nats - truth) < FAR * wrong.stderr
    monkeypatch.setattr(matching.np.linalg, "slogdet", lambda a: (1.0, 3.0))  # the twin: another volume
    wrong = match_moments(u, log_joint, log_lik)
    assert not abs(wrong.nats - truth) < FAR * wrong.stderr


class Opaque:
    """Takes ``_parametric`` away, so that only refits are left."""

    def __init__(self, monkeypatch):
        whole = Linear._parametric
        monkeypatch.delattr(Linear, "_parametric")
        for name in ("draws", "_log_lik_draws", "_log_prior_draws", "_sample", "_log_prob"):
            self.patch(monkeypatch, name, whole)

    def patch(self, monkeypatch, name, whole):
        old = getattr(Linear, name)
        function = old.fget if isinstance(old, property) else old

        def call(model, *args, **kwargs):
            Linear._parametric = whole
            try:
                return function(model, *args, **kwargs)
            finally:
                del Linear._parametric

        monkeypatch.setattr(Linear, name, property(call) if isinstance(old, property) else call)


def test_without_densities_at_other_parameters_a_refit_mends_it(monkeypatch):
    model, y, given = made(40, 0, jump=15.0)
    truth = exact(model, y, given)
    Opaque(monkeypatch)
    r = loo(model, y, given, refit={"draws": 2000})
    assert r.method[3] == "refit"
    assert math.isnan(r.k[3])
    assert r.k_before[3] > r.good_k
    assert abs(r.elpd_i[3] - truth[3]) < FAR * r.log_prob.stderr[3] < FAR
    assert "1 fit without the unreliable ones" in str(r)
    assert "'draws': 2000" in str(r)
    kept = loo(model, y, given, refit=False)
    assert kept.bad.tolist() == [i == 3 for i in range(40)]
    assert "not reliable (3)" in str(kept)
    assert "refit=False" in str(kept)
    assert math.isnan(kept.log_prob.stderr[3])


def test_a_refit_repeats_the_options_of_the_fit_where_they_are_known():
    model, y, given = made(20, 0, draws=50, chains=3)
    data = leaving.Data.of(model, y, given)
    model.fit_options = {"method": "conjugate", "draws": 70}
    assert refits.Refits(data, None, 0).options == {"method": "conjugate", "draws": 70}
    model.fit_options = None
    taken = refits.Refits(data, None, 0)
    assert taken.options == {"method": "conjugate", "draws": 50, "chains": 3}
    assert "defaults" in taken.note
    assert refits.Refits(data, {"draws": 10}, 0).options == {"draws": 10}
    with pytest.raises(ParameterError, match="draws"):
        refits.Refits(data, {"drows": 10}, 0)


def test_a_fresh_model_keeps_nothing_of_a_fit():
    x = np.random.default_rng(0).normal(size=(50, 2))
    fitted = pg.Mixture.for_event(Array((2,))).fit(x, seed=0)
    twin = refits.fresh(fitted)
    assert repr(twin) == repr(fitted)
    assert twin.report is None
    before = {name: value.clone() for name, value in fitted.state_dict().items()}
    twin.fit(x + 5, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in fitted.state_dict().items())


# --- point fits -------------------------------------------------------------------------------------------------------


def test_a_point_fit_is_left_out_fold_by_fold():
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    model = pg.Independent.for_event(Array((2,))).fit(x, seed=0)
    r = loo(model, x, folds=4, seed=7)
    assert r.kind == "k-fold"
    assert set(r.method) == {"k-fold"}
    assert r.draws == 0
    assert "a point fit" in str(r)
    order = np.random.default_rng(7).permutation(60)
    for part in np.array_split(order, 4):
        rest = np.setdiff1d(np.arange(60), part)
        twin = pg.Independent.for_event(Array((2,))).fit(x[np.sort(rest)], seed=7)
        np.testing.assert_allclose(r.elpd_i[np.sort(part)], twin.log_prob(x[np.sort(part)]).nats, rtol=1e-10)
    assert np.abs(r.elpd_i - model.log_prob(x).nats).min() > 0  # no row is scored by a fit that saw it
    assert r.p_loo > 0
    assert np.isnan(r.k).all()


def test_held_out_rows_are_scored_by_the_fit_as_it_is():
    random = np.random.default_rng(0)
    model = pg.Independent.for_event(Array((2,))).fit(random.normal(size=(60, 2)), seed=0)
    x = random.normal(size=(20, 2))
    r = loo(model, x, refit=False)
    assert r.kind == "held-out"
    assert r.target == "p"
    np.testing.assert_array_equal(r.elpd_i, model.log_prob(x).nats)
    assert "taken as new" in str(r)


def test_point_fits_leave_groups_out():
    model, y, given = made(40, 1, method="ml")
    r = loo(model, y, given, groups=np.arange(40) // 10)
    twin = Linear(Array(()), VECTOR).fit(y[10:], given=given[10:], method="ml")
    assert r.elpd_i[0] == pytest.approx(twin.log_prob(y[:10], given=given[:10]).nats.sum())
    assert r.kind == "leave-group-out"
    assert r.keys.tolist() == [0, 1, 2, 3]


def test_impossible_rows_are_counted_and_keep_their_keys(monkeypatch):
    frame = pd.DataFrame({"y": np.random.default_rng(0).normal(size=31)}, index=[f"r{i}" for i in range(31)])
    frame.loc["r30", "y"] = 9.0
    whole = Linear._rows
    monkeypatch.setattr(
        Linear, "_rows", lambda self, x, given: torch.where(x.reshape(-1) > 5, -math.inf, whole(self, x, given))
    )
    r = loo(Linear(Table({"y": Real()})).fit(frame, method="ml"), frame)
    assert r.elpd_i[30] == r.elpd == -math.inf
    assert math.isnan(r.se)
    assert np.isfinite(r.elpd_i[:30]).all()
    assert "impossible rows: 1, counted, not dropped" in str(r)
    with pytest.raises(StructureError, match="r30"):
        r.to_elpd()
    found = r.frame().to_pydict()
    assert found["row"] == list(frame.index)
    assert set(found["method"]) == {"k-fold"}


# --- the future -------------------------------------------------------------------------------------------------------


def test_the_future_is_scored_by_fits_to_the_past():
    random = np.random.default_rng(0)
    series = [random.normal(size=(40, 1)).cumsum(axis=0) for _ in range(2)]
    model = pg.Independent.for_event(Series((1,))).fit(series, seed=0)
    r = loo(model, series, horizon=4, seed=0)
    assert r.kind == "leave-future-out"
    assert r.unit == "blocks"
    assert r.keys.tolist() == [20, 24, 28, 32, 36]
    for block, start in enumerate(r.keys):
        past = [s[:start] for s in series]
        twin = pg.Independent.for_event(Series((1,))).fit(past, seed=0)
        ahead = twin.log_prob([s[: start + 4] for s in series]).nats - twin.log_prob(past).nats
        assert r.elpd_i[block] == pytest.approx(ahead.sum(), rel=1e-9)
    assert r.se == pytest.approx(error_of_total(r.elpd_i, [5]))
    assert "follow each other" in str(r)
    assert "5 fits" in str(r)
    with pytest.raises(DataError, match="at least two blocks"):
        loo(model, series, horizon=15)


def test_the_number_of_future_blocks_is_bounded_by_folds():
    series = [np.random.default_rng(0).normal(size=(100, 1))]
    model = pg.Independent.for_event(Series((1,))).fit(series, seed=0)
    assert loo(model, series, horizon=2, folds=2).keys.tolist() == [84, 86, 88, 90, 92, 94, 96, 98]


# --- guards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [1, 5, 10])
def test_too_few_draws_are_refused(draws):
    model, y, given = made(20, 0, draws=draws, chains=1)
    with pytest.raises(ParameterError, match=f"{draws} posterior draws.*at least 21"):
        loo(model, y, given)


def test_nan_log_likelihoods_are_named_and_impossible_rows_do_not_hide(monkeypatch):
    model, y, given = made(20, 0)
    whole = Vectorised.log_lik

    def plant(value):
        def log_lik(self, x, given, z=None):
            found = whole(self, x, given, z).clone()
            found[7, x == y[5]] = value
            return found

        monkeypatch.setattr(Vectorised, "log_lik", log_lik)

    plant(math.nan)
    with pytest.raises(DataError, match="1 rows, first 5"):
        loo(model, y, given)
    plant(-math.inf)
    r = loo(model, y, given, refit=False)
    assert r.elpd_i[5] == -math.inf
    assert r.k[5] == math.inf
    assert r.bad.sum() == 1
    assert "impossible rows: 1, counted, not dropped" in str(r)
    assert math.isnan(r.se)


def test_bad_options_are_refused():
    model, y, given = made(20, 0)
    with pytest.raises(ParameterError, match="one of them"):
        loo(model, y, given, groups=np.arange(20), horizon=2)
    with pytest.raises(StructureError, match="sequences"):
        loo(model, y, given, horizon=2)
    with pytest.raises(ParameterError, match="folds=1"):
        loo(model, y, given, folds=1)
    with pytest.raises(ParameterError, match="refit='yes'"):
        loo(model, y, given, refit="yes")
    with pytest.raises(ParameterError, match="refit=False"):
        loo(pg.Independent.for_event(Series(())).fit([y]), [y], horizon=2, refit=False)
    with pytest.raises(DataError, match="One group alone"):
        loo(model, y, given, groups=["a"] * 20)
    with pytest.raises(DataError, match="shape"):
        loo(model, y, given, groups=["a", "b"])
    with pytest.raises(DataError, match="missing labels"):
        loo(model, y, given, groups=[None, *["a"] * 19])
    with pytest.raises(NotFittedError):
        loo(Linear(Array(())), y)
    with pytest.raises(ParameterError, match="wrap"):
        loo("model", y)
    with pytest.raises(DataError, match="3 rows for 5 folds"):
        loo(Linear(Array(())).fit(y, method="ml"), y[:3])


def test_a_refit_that_fails_says_how_many_rows_it_had_and_why(monkeypatch):
    model, y, given = made(20, 0, method="ml")

    def broken(self, x, given, *, generator, method="ml"):
        raise ArithmeticError("singular")

    monkeypatch.setattr(Linear, "_fit", broken)
    with pytest.raises(FitError, match="16 of 20 rows: singular"):
        loo(model, y, given)


def test_results_go_to_arviz_and_compare_there():
    arviz = pytest.importorskip("arviz")
    model, y, given = made(40, 0)
    point = made(40, 0, method="ml")[0]
    a, b = loo(model, y, given), loo(point, y, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = arviz.compare({"bayes": a.to_elpd(), "k-fold": b.to_elpd()})
    apart = abs(a.elpd - b.elpd)
    assert np.abs(table["elpd_diff"]).max() == pytest.approx(apart, rel=1e-6)
    assert "Pareto" in str(a.to_elpd())
    assert "Pareto" not in str(b.to_elpd())


def test_same_seed_same_answer_and_the_model_is_left_as_it_was():
    model, y, given = made(40, 0, jump=15.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = loo(model, y, given), loo(model, y, given)
    np.testing.assert_array_equal(first.elpd_i, second.elpd_i)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_columns_of_a_table_come_back_to_the_refits():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=40), "b": random.choice(["u", "v"], 40)})
    model = pg.Independent.for_event(Table({"a": Real(), "b": Category(("u", "v"))})).fit(frame, seed=0)
    r = loo(model, frame, folds=2, seed=0)
    assert np.isfinite(r.elpd_i).all()
    assert r.log_prob.measure == model.log_prob(frame).measure
    assert len(r.log_prob - model.log_prob(frame).replace(target="p")) == 40
