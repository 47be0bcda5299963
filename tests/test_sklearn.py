"""Models as scikit-learn estimators, and columns standardised with their Jacobian."""

import math
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from probgen import emissions, store
from probgen.errors import Incomparable, LikelihoodUnavailable, ParameterError, StructureError
from probgen.estimate import IWAE
from probgen.evaluate.sklearn import ScaledDataWarning, Scorer, pipeline_shift, unscaled_score
from probgen.events import Array, Category, Count, Real, Series, Table, Text
from probgen.logprob import Kind
from probgen.models.baseline import GaussianCopula
from probgen.models.hmm import HMM
from probgen.models.kernel import KernelDensity
from probgen.models.mixture import Mixture
from probgen.models.standardize import Standardize
from probgen.models.vae import VAE

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3)) * [1.0, 10.0, 50.0] + [5.0, 0.0, 2.0]
IRIS, KINDS = load_iris(return_X_y=True)
IRIS = IRIS + RNG.normal(size=IRIS.shape) * 0.02  # rounded otherwise


def normal(dim=3):
    return Mixture(Array((dim,)), 1, emissions.Normal(dim, "full"))


# Scorer


def test_the_default_passes_every_check_of_scikit_learn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a check fits four rows, another rounded ones
        found = check_estimator(Scorer(), on_fail=None)
    assert [check["check_name"] for check in found if check["status"] == "failed"] == []
    assert sum(check["status"] == "passed" for check in found) >= 35


def test_score_samples_is_a_row_each_and_score_their_mean():
    scorer = Scorer().fit(X)
    mean, cov = X.mean(0), np.cov(X.T, ddof=0)
    np.testing.assert_allclose(scorer.score_samples(X), stats.multivariate_normal(mean, cov).logpdf(X), rtol=1e-6)
    assert scorer.score(X) == pytest.approx(scorer.score_samples(X).mean())
    assert scorer.log_prob(X).kind == scorer.kind_ == Kind.EXACT
    assert scorer.sample(5, random_state=1).shape == (5, 3)


def test_models_come_by_name_unfitted_or_fitted():
    named = Scorer("Mixture", options={"components": 2}, fit_options={"restarts": 1}).fit(X)
    given = Scorer(Mixture(Array((3,)), 2), fit_options={"restarts": 1}).fit(X)
    assert named.score(X) == pytest.approx(given.score(X), abs=1e-9)
    fitted = normal().fit(X, seed=0)
    before = fitted.log_prob(X).nats
    scorer = Scorer(fitted)
    np.testing.assert_array_equal(scorer.score_samples(X), before)  # without a fit
    scorer.fit(X[:50])
    np.testing.assert_array_equal(fitted.log_prob(X).nats, before)  # a copy was fitted
    assert scorer.score(X) != pytest.approx(before.mean(), abs=1e-6)
    again = pickle.loads(pickle.dumps(clone(scorer).fit(X[:50])))
    np.testing.assert_array_equal(again.score_samples(X), scorer.score_samples(X))


def test_frames_keep_their_categories_and_gaps():
    frame = pd.DataFrame({"a": X[:, 0], "c": np.where(X[:, 0] > 5, "u", "v")})
    frame.loc[3, "a"] = np.nan
    scorer = Scorer().fit(frame)
    assert isinstance(scorer.model_.event, Table)
    assert np.isfinite(scorer.score_samples(frame)).all()
    assert list(scorer.feature_names_in_) == ["a", "c"]
    assert list(scorer.sample(2).columns) == ["a", "c"]


def test_classes_by_bayes_rule():
    scorer = Scorer(priors=(0.2, 0.3, 0.5)).fit(IRIS, KINDS)
    joint = np.stack(
        [math.log(p) + normal(4).fit(IRIS[k == KINDS], seed=0, restarts=1).log_prob(IRIS).nats
         for k, p in enumerate((0.2, 0.3, 0.5))], 1,
    )  # fmt: skip
    expected = np.exp(joint - joint.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(scorer.predict_proba(IRIS), expected, atol=1e-9)
    np.testing.assert_allclose(scorer.score_samples(IRIS), np.log(np.exp(joint).sum(1)), rtol=1e-9)
    np.testing.assert_array_equal(scorer.predict(IRIS), expected.argmax(1))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    assert cross_val_score(Scorer(), IRIS, KINDS, scoring="accuracy", cv=folds).mean() > 0.95
    names = np.array(["setosa", "versicolor", "virginica"])[KINDS]
    assert set(Scorer().fit(IRIS, names).predict(IRIS)) == set(names)
    assert Scorer().fit(IRIS, KINDS).sample(30, random_state=0).shape == (30, 4)


def test_classes_from_bounds_are_refused_or_warned_of():
    options = {"options": {"latent_dim": 1, "hidden": (8,)}, "fit_options": {"steps": 10}}
    scorer = Scorer("VAE", **options).fit(X[:60], X[:60, 0] > 5)
    assert scorer.kind_ == Kind.LOWER
    with pytest.raises(Incomparable, match="claim nothing"):
        scorer.predict(X[:3])
    scorer.set_params(bounds="warn")
    with pytest.warns(UserWarning, match="claim nothing"):
        assert scorer.predict_proba(X[:3]).shape == (3, 2)


def test_a_family_without_a_likelihood_says_what_to_call_instead():
    scorer = Scorer("GAN", options={"latent_dim": 2, "hidden": (8,)}, fit_options={"steps": 5}).fit(X[:60])
    assert scorer.kind_ == Kind.UNAVAILABLE
    assert scorer.sample(3).shape == (3, 3)
    with pytest.raises(LikelihoodUnavailable, match="sample"):
        scorer.score(X[:3])


def test_predict_exists_only_with_classes_or_a_threshold():
    scorer = Scorer().fit(X)
    for name in ("predict", "predict_proba", "decision_function", "p_values"):
        assert not hasattr(scorer, name)
    assert hasattr(Scorer(contamination=0.1).fit(X), "predict")
    both = Scorer().fit(IRIS, KINDS)
    assert hasattr(both, "predict_proba")
    assert not hasattr(both.fit(IRIS), "predict_proba")


def false_alarms(calibrate_on_the_fit):
    """Flagged good rows over repeated splits, and their number."""
    alarms = total = 0
    rng = np.random.default_rng(5)
    for repeat in range(30):
        rows = rng.normal(size=(300, 2))
        scorer = Scorer("KernelDensity", contamination=0.05, calibration=0.5, random_state=repeat).fit(rows)
        if calibrate_on_the_fit:
            scorer.offset_ = np.quantile(scorer.score_samples(np.unique(scorer.model_.points.numpy(), axis=0)), 0.05)
        alarms += int((scorer.predict(rng.normal(size=(200, 2))) == -1).sum())
        total += 200
    return alarms, total


def test_the_threshold_keeps_its_rate_and_one_from_the_training_rows_does_not():
    # the rate given one calibration set of 150 is Beta distributed: a standard deviation of 0.018 a repeat
    alarms, total = false_alarms(calibrate_on_the_fit=False)
    assert alarms / total < 0.05 + 4.9 * 0.018 / math.sqrt(30) + 4.9 * math.sqrt(0.05 * 0.95 / total)
    alarms, total = false_alarms(calibrate_on_the_fit=True)
    assert alarms / total > 0.05 + 4.9 * 0.018 / math.sqrt(30) + 4.9 * math.sqrt(0.05 * 0.95 / total)


def test_scores_decisions_and_p_values_agree():
    scorer = Scorer(contamination=0.1).fit(X)
    odd = np.concatenate([X[:50], [[50.0, 0.0, 2.0]]])
    decided = scorer.decision_function(odd)
    np.testing.assert_allclose(decided, scorer.score_samples(odd) - scorer.offset_)
    np.testing.assert_array_equal(scorer.predict(odd) == -1, decided < 0)
    p = scorer.p_values(odd)
    assert p[-1] == 1 / 101
    assert (p[scorer.predict(odd) == -1] <= 0.1).all()


def test_a_fitted_model_may_be_calibrated_only():
    fitted = normal().fit(X[:200], seed=0)
    scorer = Scorer(fitted, contamination=0.1, refit=False).fit(X[200:])
    assert scorer.model_ is fitted
    assert len(scorer.calibration_scores_) == 200


@pytest.mark.parametrize(
    ("scorer", "y", "said"),
    [
        (Scorer("Mixtur"), None, "Mixture"), (Scorer(3), None, "wrap"), (Scorer(contamination=2), None, "share"),
        (Scorer(contamination=0.001), None, "999"), (Scorer(bounds="maybe"), None, "refuse"),
        (Scorer(), X[:, 0], "Unknown label type"), (Scorer(priors=(0.5, 0.6)), X[:, 0] > 5, "adding up"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(scorer, y, said):
    with pytest.raises(Exception, match=said) as refusal:
        scorer.fit(X, y)
    assert "probgen" in type(refusal.value).__module__


# Scalers in a pipeline


def test_a_scaler_in_front_warns_with_the_amount():
    scaler = StandardScaler().fit(X)
    expected = np.log(scaler.scale_).sum()
    with pytest.warns(ScaledDataWarning, match=rf"\+{expected:.3f} nats"):
        pipeline = make_pipeline(StandardScaler(), Scorer()).fit(X)
    assert pipeline[-1].shift_ == pytest.approx(expected, abs=1e-9)
    assert pipeline_shift(pipeline) == pytest.approx(expected, abs=1e-9)
    assert pipeline.score(X) - expected == pytest.approx(Scorer().fit(X).score(X), abs=1e-6)
    Scorer().fit(X)  # alone it does not warn
    make_pipeline("passthrough", Scorer()).fit(X)


def test_a_curved_scaler_shifts_each_row_by_its_own_amount():
    curved = QuantileTransformer(output_distribution="normal", n_quantiles=20)
    with pytest.warns(ScaledDataWarning, match="row to row"):
        pipeline = make_pipeline(curved, Scorer()).fit(X)
    with pytest.raises(StructureError, match="pipeline_shift"):
        pipeline_shift(pipeline)
    one = np.full(3, 1e-6)
    rows = X[:4] + 1e-3
    slopes = (pipeline[0].transform(rows + one) - pipeline[0].transform(rows - one)) / 2e-6
    np.testing.assert_allclose(pipeline_shift(pipeline, rows), -np.log(slopes).sum(1), atol=1e-3)


@pytest.mark.filterwarnings("ignore:The steps before")
def test_a_search_over_scalers_ranks_units_unless_scores_are_unscaled():
    grid = {"scale": [StandardScaler(), "passthrough", MinMaxScaler()]}
    steps = Pipeline([("scale", StandardScaler()), ("density", Scorer())])
    bare = GridSearchCV(steps, grid).fit(X).cv_results_["mean_test_score"]
    assert np.ptp(bare) > 3  # the same density model under three units
    fair = GridSearchCV(steps, grid, scoring=unscaled_score).fit(X).cv_results_["mean_test_score"]
    assert np.ptp(fair) < 1e-3


# Standardize


def test_standardising_changes_no_normal_and_without_the_jacobian_it_would():
    plain, moved = normal().fit(X, seed=0), Standardize(normal()).fit(X, seed=0)
    np.testing.assert_allclose(moved.log_prob(X).nats, plain.log_prob(X).nats, atol=1e-6)
    assert moved.log_prob(X).measure == plain.log_prob(X).measure
    scaled = moved.of.log_prob((X - X.mean(0)) / X.std(0)).nats
    np.testing.assert_allclose(scaled - moved.log_prob(X).nats, np.log(X.std(0)).sum(), atol=1e-9)
    assert np.log(X.std(0)).sum() > 5
    assert moved.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-3)
    np.testing.assert_allclose(moved.sample(4000, seed=0).std(0), X.std(0), rtol=0.08)


def test_it_helps_a_family_whose_defaults_know_one_scale():
    stretched = np.concatenate([X[:200, :2] * [1.0, 1e4], X[200:, :2] * [1.0, 1e4] + [9.0, 0.0]])
    family = {"components": 2, "emission": emissions.Normal(2, "spherical")}
    plain = Mixture(Array((2,)), **family).fit(stretched, seed=0)
    moved = Standardize(Array((2,)), "Mixture", **family).fit(stretched, seed=0)
    assert moved.log_prob(stretched).mean().value > plain.log_prob(stretched).mean().value + 1


def test_tables_leave_levels_counts_and_rounded_columns_alone():
    rows = {
        "length": np.where(np.arange(40) % 4 == 1, np.nan, 100 + 50 * RNG.random(40)),
        "mass": np.exp(RNG.normal(size=40)) * 1e3,
        "size": np.round(RNG.normal(size=40) * 4) / 2, "colour": np.array(["r", "g"] * 20), "n": np.arange(40),
    }  # fmt: skip
    columns = {
        "length": Real("cm"), "mass": Real("kg", positive=True), "size": Real(resolution=0.5),
        "colour": Category(("r", "g")), "n": Count(),
    }  # fmt: skip
    model = Standardize(Table(columns), components=1).fit(rows, seed=0)
    seen = rows["length"][~np.isnan(rows["length"])]
    assert model.loc.tolist() == pytest.approx([seen.mean(), 0, 0, 0, 0])
    assert model.scale.tolist() == pytest.approx([seen.std(), np.exp(np.log(rows["mass"]).mean()), 1, 1, 1])
    one = {name: values[1:2] for name, values in rows.items()}  # its length is missing: it adds no log scale
    plain = model.of.log_prob({**one, "mass": one["mass"] / float(model.scale[1])}).nats
    np.testing.assert_allclose(model.log_prob(one).nats, plain - math.log(float(model.scale[1])), atol=1e-9)


def test_sequences_are_scored_step_by_step_in_their_own_units():
    rows = [X[i : i + 20, 2] for i in range(0, 200, 20)]
    model = Standardize.for_event(Series(()), states=2).fit(rows, seed=0, restarts=1)
    assert isinstance(model.of, HMM)
    scale = np.concatenate(rows).std()
    of_sequence = model.of.log_prob([(row - np.concatenate(rows).mean()) / scale for row in rows]).nats
    np.testing.assert_allclose(model.log_prob(rows).nats, of_sequence - 20 * math.log(scale), atol=1e-9)
    steps = model.log_prob_steps(rows).nats
    np.testing.assert_allclose(steps.reshape(10, 20).sum(1), model.log_prob(rows).nats, atol=1e-9)


def test_it_is_saved_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(store.FAMILIES, "Standardize", "probgen.models.standardize")
    for model in (Standardize(normal()), Standardize(Array((3,)), "KernelDensity", centres=100)):
        model.fit(X, seed=0)
        again = store.load(store.save(model, tmp_path / type(model.of).__name__))
        assert repr(again) == repr(model)
        np.testing.assert_array_equal(again.log_prob(X[:9]).nats, model.log_prob(X[:9]).nats)
    assert isinstance(model.of, KernelDensity)


def test_bounds_and_estimators_keep_their_kind_and_the_jacobian():
    model = Standardize(VAE(Array((3,)), latent_dim=1, hidden=(8,))).fit(X[:100], seed=0, steps=20)
    scaled = (X[:5] - X[:100].mean(0)) / X[:100].std(0)
    for by in (None, IWAE(samples=20)):
        assert model.log_prob(X[:5], by=by, seed=0).kind == Kind.LOWER
    shift = model.log_prob(X[:5], by=IWAE(samples=4000), seed=0).nats
    inner = model.of.log_prob(scaled, by=IWAE(samples=4000), seed=0).nats
    np.testing.assert_allclose(inner - shift, np.log(X[:100].std(0)).sum(), atol=0.2)


def test_what_can_not_be_standardised_is_refused():
    for event in (Array((2,), levels=3), Text(), Array((2,), support="unit")):
        with pytest.raises(StructureError, match="Standardize does not suit"):
            Standardize(event)
    with pytest.raises(StructureError, match="Once"):
        Standardize(Standardize(normal()))
    with pytest.raises(ParameterError, match="restarts"):
        Standardize(normal()).fit(X, restart=1)
    with pytest.raises(StructureError, match="ties together"):
        Standardize(Array(()), "GaussianCopula")
    assert GaussianCopula.suits(Array(())) is not None


def test_a_search_over_the_options_of_an_unfitted_model_is_told_where_they_are():
    scorer = Scorer(Mixture(Array((2,)), 2))
    with pytest.raises(ParameterError, match=r"'options': .*'components'"):
        scorer.set_params(model__components=3)
    with pytest.raises(ValueError, match="Invalid parameter"):
        scorer.set_params(nothing=3)
    assert scorer.set_params(contamination=0.1).contamination == 0.1
