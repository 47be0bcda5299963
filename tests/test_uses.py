"""Filling gaps, adding rows, finding the odd ones; and the whole comparison in twelve lines."""

import ast
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from probgen import emissions
from probgen.errors import DataError, LikelihoodUnavailable, NotFittedError, ParameterError, ShapeError, StructureError
from probgen.evaluate.uses.anomalies import CalibrationWarning, anomalies, conformal_pvalues, discoveries
from probgen.evaluate.uses.augment import augment
from probgen.evaluate.uses.impute import WholeColumnWarning, impute, pool
from probgen.evaluate.uses.weighted import weighted_draws
from probgen.events import Array, Category, Count, Real, Series, Table, infer
from probgen.models.baseline import GaussianCopula, Independent
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.gan import GAN
from probgen.models.hmm import HMM
from probgen.models.kernel import KernelDensity
from probgen.models.mixture import Mixture
from probgen.models.standardize import Standardize
from probgen.models.vae import VAE

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(600, 3))
X = np.stack([Z[:, 0], 0.9 * Z[:, 0] + 0.4 * Z[:, 1], Z[:, 2]], 1) * [1.0, 10.0, 2.0] + [3.0, 0.0, 5.0]
FAR = 4.9  # standard errors: a false alarm in a million


def frame(n=600):
    table = pd.DataFrame(X[:n], columns=list("abc"), index=[f"r{i}" for i in range(n)])
    return table.assign(d=np.where(X[:n, 0] + 0.3 * Z[:n, 2] > 3, "hi", "lo"))


def normal(covariance="full"):
    return Mixture(Array((3,)), 1, emissions.Normal(3, covariance)).fit(X, seed=0)


# Imputation


def conditional_moments(gap):
    """Mean and standard deviation of the missing cell of a row under the normal of the data."""
    mean, cov = X.mean(0), np.cov(X.T, ddof=0)
    j = int(np.flatnonzero(np.isnan(gap))[0])
    seen = [k for k in range(3) if k != j]
    weight = np.linalg.solve(cov[np.ix_(seen, seen)], cov[seen, j])
    return mean[j] + weight @ (gap[seen] - mean[seen]), math.sqrt(cov[j, j] - weight @ cov[seen, j])


def follows(draws, mean, sd):
    """Whether draws have that mean and standard deviation, each at a false-alarm rate of a millionth."""
    n = len(draws)
    return abs(draws.mean() - mean) < FAR * sd / math.sqrt(n) and abs(draws.std() / sd - 1) < FAR / math.sqrt(2 * n)


def test_a_normal_draws_from_its_conditional_and_the_margin_would_be_caught():
    gap = np.array([[4.5, np.nan, 5.0]])
    mean, sd = conditional_moments(gap[0])
    found = impute(normal(), gap, n=4000, seed=1)
    assert found.by == "exact conditional draws"
    assert follows(found.cells[:, 0, 1].numpy(), mean, sd)
    planted = impute(normal("diag"), gap, n=4000, seed=1)  # it knows the margins only
    assert not follows(planted.cells[:, 0, 1].numpy(), mean, sd)


@pytest.mark.parametrize("covariance", ["tied", "full", "diag", "spherical"])
def test_components_are_chosen_by_what_is_seen(covariance):
    far = np.concatenate([X[:300], X[300:] + np.array([30.0, 50.0, 0.0])])
    model = Mixture(Array((3,)), 2, emissions.Normal(3, covariance)).fit(far, seed=0)
    drawn = impute(model, [[33.0, np.nan, np.nan], [3.0, np.nan, np.nan]], n=300, seed=0).cells[..., 1].numpy()
    assert (drawn[:, 0] > 15).mean() > 0.95
    assert (drawn[:, 1] < 35).mean() > 0.95


def test_the_copula_and_what_is_standardised_draw_conditionally():
    gap = np.array([[4.5, np.nan, 5.0]])
    copula = GaussianCopula(Array((3,))).fit(X[:200], seed=0)
    moved = Standardize(GaussianCopula(Array((3,)))).fit(X[:200], seed=0)
    mean, sd = conditional_moments(gap[0])
    one, two = (impute(model, gap, n=600, seed=0).cells[:, 0, 1].numpy() for model in (copula, moved))
    assert abs(one.mean() - mean) < 2  # its histogram margins are not normal
    assert abs(one.std() / sd - 1) < 0.25
    np.testing.assert_allclose(one, two, atol=1e-6)
    margin = impute(Independent(Array((3,))).fit(X[:200], seed=0), gap, n=600, seed=0).cells[:, 0, 1].numpy()
    assert margin.std() > 1.5 * sd


def test_a_network_draws_from_its_tables():
    rows = {"u": np.repeat(["a", "b"], 300), "w": np.where(RNG.random(600) < np.repeat([0.9, 0.2], 300), "y", "n")}
    net = BayesianNetwork(infer(rows), edges=[("u", "w")]).fit(rows)
    found = impute(net, {"u": np.array(["a", None], dtype=object), "w": np.array([None, "y"], dtype=object)}, n=3000)
    w, u = found.cells[:, 0, 1].numpy(), found.cells[:, 1, 0].numpy()
    p = net.marginals({"u": ["a"], "w": [None]})["w"][0]
    q = net.marginals({"u": [None], "w": ["y"]})["u"][0]
    for drawn, share in ((w, p[1]), (u, q[1])):
        assert abs(drawn.mean() - share) < FAR * math.sqrt(share * (1 - share) / 3000)
    assert abs(w.mean() - 0.5) > FAR * math.sqrt(0.25 / 3000)  # the margin of w would be caught


def test_weighted_draws_follow_the_exact_ones_and_unweighted_ones_do_not(monkeypatch):
    model, gap = normal(), np.array([[4.5, np.nan, 5.0]])
    mean, sd = conditional_moments(gap[0])
    # 4000 draws again from 4000 proposals: about twice the variance of independent ones
    drawn, ess = weighted_draws(model, torch.tensor(gap), 4000, 4000, torch.Generator().manual_seed(0))
    wide = FAR * sd * math.sqrt(1 / 4000 + 1 / ess[0])
    assert abs(drawn[:, 0, 1].mean() - mean) < wide
    assert abs(drawn[:, 0, 1].std() / sd - 1) < FAR * math.sqrt(0.5 / 4000 + 1 / ess[0])
    flat = model._log_prob

    def constant(x, given, *, generator):
        return flat(x, given, generator=generator).replace(nats=np.zeros(len(x)))

    monkeypatch.setattr(
        type(model), "_log_prob", lambda self, x, given, generator: constant(x, given, generator=generator)
    )
    drawn, _ = weighted_draws(model, torch.tensor(gap), 4000, 4000, torch.Generator().manual_seed(0))
    assert abs(drawn[:, 0, 1].mean() - mean) > wide or abs(drawn[:, 0, 1].std() / sd - 1) > 0.2


def test_other_exact_families_draw_weighted_and_tell_their_effective_number():
    event = Table({"a": Real(), "n": Real(resolution=1.0), "c": Category(("x", "y"))})
    rows = {"a": X[:200, 0], "n": np.round(X[:200, 0]), "c": np.where(X[:200, 0] > 3, "x", "y")}
    model = KernelDensity(event).fit(rows, seed=0)
    gaps = {"a": np.array([5.0, np.nan]), "n": np.array([np.nan, 1.0]), "c": np.array([None, "y"], dtype=object)}
    found = impute(model, gaps, n=200, seed=0, proposals=400)
    assert "weighted" in found.by
    assert (found.ess > 20).all()
    assert abs(found.cells[:, 0, 1].mean() - 5.0) < 0.6
    assert (found.cells[:, 0, 2] == 0).double().mean() > 0.9
    assert abs(found.cells[:, 1, 0].mean() - 1.2) < 0.6


def test_positive_and_unit_cells_stay_in_their_support():
    for support, rows in (("positive", np.exp(Z[:, :2])), ("unit", stats.norm.cdf(Z[:, :2]))):
        model = GaussianCopula(Array((2,), support=support)).fit(rows, seed=0)
        gap = torch.tensor([[rows[0, 0], math.nan]])
        exact = impute(model, gap, n=500, seed=0).cells[..., 1]
        near, ess = weighted_draws(model, gap, 500, 500, torch.Generator().manual_seed(1))
        for drawn in (exact, near[..., 1]):
            assert (drawn > 0).all()
            assert support == "positive" or (drawn < 1).all()
        assert stats.ks_2samp(exact[:, 0], near[:, 0, 1]).pvalue > 1e-6
        assert ess[0] > 50


def test_observed_cells_keys_types_and_form_stay():
    gaps = frame(6)
    gaps.loc["r1", "b"] = np.nan
    gaps.loc["r2", ["a", "d"]] = [np.nan, None]
    gaps.loc["r3"] = [np.nan, np.nan, np.nan, None]
    model = Mixture(infer(frame()), 3).fit(frame(), seed=0)
    found = impute(model, gaps, n=3, seed=0)
    assert found.missing.sum() == 7
    for done in found:
        assert list(done.index) == list(gaps.index)
        assert list(done.columns) == list(gaps.columns)
        assert not done.isna().any().any()
        pd.testing.assert_frame_equal(done.where(gaps.notna()), gaps, check_dtype=False)
    assert found[0].loc["r1", "b"] != found[1].loc["r1", "b"]
    assert impute(model, gaps, seed=5)[0].equals(impute(model, gaps, seed=5)[0])
    long = found.frame()
    assert long.column_names == ["row", "draw", "a", "b", "c", "d"]
    assert long.num_rows == 18
    whole = impute(model, frame(6), n=2)
    assert whole.missing.sum() == 0
    pd.testing.assert_frame_equal(whole[1], frame(6), check_dtype=False)


def test_a_table_may_lack_columns():
    model = Mixture(infer(frame()), 3).fit(frame(), seed=0)
    found = impute(model, frame(4)[["b", "d"]], seed=0)
    assert list(found[0].columns) == ["a", "b", "c", "d"]
    assert "8 cells of 4 rows drawn, all of 'a', 'c'" in repr(found)
    with pytest.raises(ShapeError, match="bb"):
        impute(model, frame(4).rename(columns={"b": "bb"}))


def test_a_column_that_none_of_many_rows_shows_is_drawn_with_a_warning_that_names_it():
    model, gaps = Mixture(infer(frame()), 3).fit(frame(), seed=0), frame(40)
    gaps["b"] = np.nan
    with pytest.warns(WholeColumnWarning, match=r"All 40 rows lack column 'b'") as caught:
        impute(model, gaps, seed=0)
    assert caught[0].filename == __file__
    gaps.iloc[7, 1] = 2.0
    assert "all of" not in repr(impute(model, gaps, seed=0))  # and no warning


def test_families_that_can_not_impute_are_refused_by_name():
    vae = VAE(Array((3,)), latent_dim=1, hidden=(8,)).fit(X[:60], seed=0, steps=5)
    with pytest.raises(StructureError, match=r"VAE .*lower"):
        impute(vae, X[:2])
    gan = GAN(Array((3,)), latent_dim=2, hidden=(8,)).fit(X[:60], seed=0, steps=5)
    with pytest.raises(StructureError, match="GAN"):
        impute(gan, X[:2])
    with pytest.raises(NotFittedError):
        impute(Mixture(Array((3,))), X[:2])
    with pytest.raises(StructureError, match="sample_paths"):
        impute(HMM(Series(()), 2).fit([X[:20, 0]], seed=0, restarts=1), [X[:20, 0]])
    with pytest.raises(ParameterError, match="n=0"):
        impute(normal(), X[:2], n=0)


def test_rubins_rules():
    q, error, freedom = pool([1.0, 1.2, 0.8], [0.04, 0.04, 0.04])
    between = np.var([1.0, 1.2, 0.8], ddof=1) * 4 / 3
    assert (q, error) == (pytest.approx(1.0), pytest.approx(math.sqrt(0.04 + between)))
    assert freedom == pytest.approx(2 * (1 + 0.04 / between) ** 2)
    with pytest.raises(ParameterError):
        pool([1.0], [0.1])


def test_pooled_intervals_cover_and_a_single_completion_does_not():
    rng, hits, alone = np.random.default_rng(3), 0, 0
    for repeat in range(80):
        rows = rng.multivariate_normal([0, 0], [[1, 0.3], [0.3, 1]], size=100)
        gaps = rows.copy()
        gaps[rng.random(100) < 0.6, 1] = np.nan
        event = Array((2,), missing=True)
        model = Mixture(event, 1, emissions.Normal(2, "full")).fit(gaps, seed=0, restarts=1)
        done = impute(model, gaps, n=8, seed=repeat).cells[..., 1].numpy()
        q, error, _ = pool(done.mean(1), done.var(1, ddof=1) / 100)
        hits += abs(q) < 2.2 * error
        alone += abs(done[0].mean()) < 1.96 * done[0].std(ddof=1) / 10
    assert hits / 80 > 0.95 - FAR * math.sqrt(0.05 * 0.95 / 80)
    assert alone < hits - 10


# Anomalies


def test_discoveries_are_those_of_benjamini_and_hochberg():
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = np.round(rng.random(12) ** 3, 2)
        k = max((i for i in range(1, 13) if np.sort(p)[i - 1] <= 0.2 * i / 12), default=0)
        expected = p <= (np.sort(p)[k - 1] if k else -1)
        assert discoveries(p, 0.2).sum() == k
        assert (discoveries(p, 0.2) <= expected).all()


def rejected(calibration):
    """Share of good rows with p <= 0.1, over repeated calibration sets of 99 under a model that is wrong."""
    rng, shares = np.random.default_rng(2), []
    for _ in range(200):
        good, new = rng.standard_t(3, size=(2, 99))
        scores, fresh = (stats.norm.logpdf(v) for v in (good, new))
        shares.append((calibration(scores, fresh) <= 0.1).mean())
    return np.mean(shares), np.std(shares) / math.sqrt(200)


def test_conformal_p_values_hold_whatever_the_model_and_the_models_own_do_not():
    share, error = rejected(conformal_pvalues)
    assert share < 0.1 + FAR * error
    tails = np.sort(stats.norm.logpdf(np.random.default_rng(9).normal(size=5000)))  # draws of the wrong model
    share, error = rejected(lambda _, fresh: conformal_pvalues(tails, fresh))
    assert share > 0.1 + FAR * error


def planted_table():
    odd = frame(100)
    odd.loc["r5", "b"] = 25.0 if odd.loc["r5", "a"] < 3 else -25.0
    odd.loc["r11", "c"] = 40.0
    return odd


@pytest.mark.parametrize("family", ["mixture", "network", "kernel"])
def test_planted_rows_come_first_with_the_right_column_to_blame(family):
    good, known = frame().iloc[100:300], frame().iloc[300:]
    event = infer(frame())
    if family == "mixture":
        model = Mixture(event, 4).fit(good, seed=0)
    elif family == "network":
        model = BayesianNetwork(event, edges=[("a", "b"), ("d", "a")]).fit(good)
    else:
        model = KernelDensity(event).fit(good, seed=0)
    found = anomalies(model, planted_table(), calibration=known, alpha=0.2, explain=8)
    assert {"r5", "r11"} <= set(found.keys[found.order[:6]])
    assert found.culprits(11)[0][0] == "c"
    assert {name for name, _ in found.culprits(5, 2)} <= {"a", "b"}
    assert found.against == "300 held-out rows"
    table = found.frame()
    assert table.column_names == ["row", "log_prob", "kind", "p_value", "anomaly", "blame"]
    assert table["p_value"].to_pylist() == sorted(table["p_value"].to_pylist())
    assert "r11" in str(found)


def test_calibration_rows_of_the_fit_are_known_again_and_others_are_not():
    model = Mixture(Array((3,)), 1, emissions.Normal(3, "full")).fit(X[:300], seed=0)
    for known, share in ((X[:300], "100%"), (X[100:500], r"[5-8]\d%")):
        with pytest.warns(
            CalibrationWarning, match=f"about {share} of the rows that the model was fitted to"
        ) as caught:
            anomalies(model, X[500:], calibration=known, explain=0)
        assert caught[0].filename == __file__
    anomalies(model, X[500:], calibration=X[300:500], explain=0)
    levels = Table({"u": Category(("a", "b")), "v": Count()})
    rows = pd.DataFrame({"u": np.where(X[:, 0] > 3, "a", "b"), "v": np.abs(X[:, 2]).astype(int)})
    few = Independent(levels).fit(rows[:300], seed=0)
    anomalies(few, rows[500:], calibration=rows[300:500], explain=0)  # equal rows, of which there are many by chance


@pytest.mark.filterwarnings("ignore:The calibration rows")
def test_blame_does_not_depend_on_units():
    known, odd = X[300:], np.concatenate([X[:20], [[3.0, 40.0, 5.0]]])
    one = anomalies(normal(), odd, calibration=known, explain=3)
    scale = np.array([1000.0, 0.01, 1.0])
    other = Mixture(Array((3,)), 1, emissions.Normal(3, "full")).fit(X * scale, seed=0)
    two = anomalies(other, odd * scale, calibration=known * scale, explain=3)
    np.testing.assert_allclose(one.blame[20], two.blame[20], atol=1e-3)
    assert one.culprits(20)[0][0] == "1"


def test_too_probable_rows_are_found_by_both_tails_only():
    wide = RNG.normal(size=(400, 100))
    model = Mixture(Array((100,)), 1, emissions.Normal(100, "diag")).fit(wide, seed=0)
    centre = np.concatenate([RNG.normal(size=(20, 100)), np.zeros((1, 100))])
    known = RNG.normal(size=(400, 100))
    assert anomalies(model, centre, calibration=known, explain=0).pvalues[20] > 0.9
    assert anomalies(model, centre, calibration=known, explain=0, tail="both").pvalues[20] < 0.01


def test_without_held_out_rows_the_models_draws_stand_in():
    found = anomalies(normal(), np.concatenate([X[:20], [[3.0, 90.0, 5.0]]]), explain=0)
    assert found.against == "1000 draws of the model"
    assert found.flagged[20]
    assert "not asked" in str(found)


def test_bounds_rank_but_do_not_blame_and_refusals_refuse():
    vae = VAE(Array((3,)), latent_dim=1, hidden=(8,)).fit(X[:60], seed=0, steps=5)
    found = anomalies(vae, X[:5], calibration=X[300:315])
    assert found.culprits(0) == []
    assert "lower" in found.blamed_by
    gan = GAN(Array((3,)), latent_dim=2, hidden=(8,)).fit(X[:60], seed=0, steps=5)
    with pytest.raises(LikelihoodUnavailable, match="sample"):
        anomalies(gan, X[:5])
    with pytest.raises(DataError, match="at least 19"):
        anomalies(normal(), X[:5], calibration=X[:5], alpha=0.05)
    with pytest.raises(ParameterError, match="alpha"):
        anomalies(normal(), X[:5], alpha=1.5)
    with pytest.raises(ParameterError, match="tail"):
        anomalies(normal(), X[:5], tail="high")


# Augmentation


def test_what_is_wrong_with_the_column_is_said_of_y():
    table = frame(60)
    model = Independent(infer(table)).fit(table, seed=0)
    with pytest.raises(ParameterError, match=r"^y='dd'.*Did you mean 'd'"):
        augment(model, table, "dd", n=20)


def two_kinds(n, seed):
    """Twelve numbers a row, a little larger in one of two classes."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=n)
    cells = rng.normal(size=(n, 12)) + 0.6 * kind[:, None]
    table = pd.DataFrame(cells, columns=[f"x{i}" for i in range(12)])
    return table.assign(kind=np.where(kind == 1, "large", "small"))


def test_the_gain_is_measured_on_rows_that_nobody_learnt_from():
    few, test = two_kinds(40, 1), two_kinds(1000, 2)
    event = infer(few)
    model = BayesianNetwork(event, edges=[("kind", f"x{i}") for i in range(12)]).fit(few)
    found = augment(model, few, "kind", n=1000, test=test, learner="linear")
    assert len(found.rows) == 1040
    assert len(found.drawn) == 1000
    assert found.gain.sizes == (1040, 40, 1000)
    assert found.helps is True
    assert found.gain.difference < -FAR * found.gain.stderr
    pd.testing.assert_frame_equal(found.rows.iloc[:40].reset_index(drop=True), few, check_dtype=False)
    plenty = two_kinds(400, 3)
    noise = Independent(event).fit(plenty, seed=0)  # a planted model that knows nothing of the kind
    worse = augment(noise, plenty, "kind", n=4000, test=test, learner="linear")
    assert worse.gain.difference > FAR * worse.gain.stderr
    assert worse.helps is False
    assert "harm" in str(worse)


def test_without_test_rows_a_copy_is_fitted_to_a_part():
    few = two_kinds(200, 3)
    model = Mixture(infer(few), 2).fit(few, seed=0, restarts=1)
    before = model.log_prob(few).nats
    found = augment(model, few, "kind", learner="linear")
    assert found.gain.sizes == (280, 140, 60)
    np.testing.assert_array_equal(model.log_prob(few).nats, before)
    plain = augment(model, few)
    assert (plain.gain, plain.helps, len(plain.rows)) == (None, None, 400)
    assert "name a target" in str(plain)


def test_augmentation_refuses_what_does_not_fit():
    few = two_kinds(60, 3)
    model = Mixture(infer(few), 2).fit(few, seed=0, restarts=1)
    with pytest.raises(ParameterError, match="classify"):
        augment(model, few, "kind", task="regress", learner="linear")
    with pytest.raises(ParameterError, match="task"):
        augment(model, few, "kind", task="rank")
    with pytest.raises(ParameterError, match="kinds"):
        augment(model, few, "kinds")
    with pytest.raises(DataError, match="40"):
        augment(model, few.iloc[:30], "kind")
    with pytest.raises(ParameterError, match="n=0"):
        augment(model, few, n=0)
    with pytest.raises(StructureError, match="table"):
        augment(HMM(Series(()), 2).fit([X[:20, 0]], seed=0, restarts=1), [X[:20, 0]])


# The whole comparison


def statements(script):
    """Simple statements of the cell that is marked as the comparison; of a compound one its body as well."""
    cell = script[script.index("# %% the comparison") :]
    cell = cell[: cell.index("\n# %%", 4)]
    return [node for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.stmt)]


def test_the_whole_comparison_takes_twelve_statements():
    script = (Path(__file__).parents[1] / "tutorials/10_from_parquet_to_report.py").read_text()
    found = statements(script)
    assert 8 <= len(found) <= 12
    text = "\n".join(map(ast.unparse, found))
    for part in ("read_parquet", "BayesianNetwork", "VAE", "HMM", "pg.compare", "pg.score_table", "pg.report"):
        assert part in text
    assert max(len(ast.unparse(node)) for node in found) <= 120
    assert (
        len(statements(script.replace("# %% the comparison", "# %% the comparison\nx = 1; y = 2; z = 3; w = 4"))) > 12
    )


def test_counts_and_unmodelled_columns_have_weighted_draws():
    rows = {"n": RNG.poisson(3.0, 200), "c": np.array(["x", "y"] * 100)}
    model = Mixture(Table({"n": Count(), "c": Category(("x", "y"))}), 2).fit(rows, seed=0)
    drawn, ess = weighted_draws(
        model, torch.tensor([[math.nan, 0.0]], dtype=torch.float64), 300, 500, torch.Generator().manual_seed(0)
    )
    exact = impute(model, {"n": np.array([np.nan]), "c": ["x"]}, n=300, seed=0).cells[:, 0, 0]
    assert stats.ks_2samp(drawn[:, 0, 0], exact).pvalue > 1e-6
    assert ess[0] > 100
