"""The adapter to ArviZ: the same arrays in containers of both versions, a model's groups by name, and guards."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import arviz_core
import numpy as np
import pandas as pd
import pytest
from conjugate import Linear

import probgen as pg
from probgen.errors import DataError, MissingExtra, ParameterError, ShapeError, StructureError
from probgen.evaluate import arviz as adapter
from probgen.evaluate.arviz import to_arviz
from probgen.evaluate.loo import loo
from probgen.events import Array, Real, Table

arviz = pytest.importorskip("arviz")

TESTS = Path(__file__).parent
KNOWN = json.loads((TESTS / "known" / "loo.json").read_text())["arviz_core_1.3.0"]


# --- the core, on both versions ---------------------------------------------------------------------------------------


def interpreters():
    """Pythons other than this one that may have ArviZ 1.x: PROBGEN_ARVIZ1, then python3.12 and later on the path."""
    yield from filter(None, (os.environ.get("PROBGEN_ARVIZ1"), *map(shutil.which, ("python3.13", "python3.12"))))


def newer():
    """The first interpreter with ArviZ 1.x, or None."""
    code = "import sys, arviz; sys.exit(int(arviz.__version__.split('.')[0]) < 1)"
    for path in interpreters():
        if Path(path).exists() and not subprocess.run([path, "-c", code], capture_output=True).returncode:
            return path
    return None


def check_facts(found):
    assert found["groups"] == [
        "log_likelihood", "log_prior", "observed_data", "posterior", "posterior_predictive", "prior",
        "prior_predictive", "sample_stats",
    ]  # fmt: skip
    assert found["dims"] == ["chain", "draw", "column"]
    assert found["rows"] == arviz_core.ROWS
    assert found["attrs"] == "a test"
    np.testing.assert_allclose(found["elpd_i"], KNOWN["elpd_i"], atol=4e-6)
    np.testing.assert_allclose(found["k"], KNOWN["k"], atol=4e-6)
    assert found["ranked"] == ["one", "other"]
    assert found["differences"] == pytest.approx([0, 21], abs=1.01)
    assert found["weights"][0] > 0.99  # 1.x rounds its table to the digits that its errors leave


def test_the_core_makes_containers_of_the_installed_arviz():
    found = arviz_core.facts()
    check_facts(found)
    assert found["type"] == ("InferenceData" if found["version"] < "1" else "DataTree")


def test_the_core_makes_containers_of_arviz_1_on_a_newer_python():
    python = newer()
    if python is None:
        pytest.skip("no other Python with ArviZ 1.x was found: set PROBGEN_ARVIZ1 to one")
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run([python, TESTS / "arviz_core.py"], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["version"] >= "1"
    assert found["type"] == "DataTree"
    check_facts(found)
    np.testing.assert_allclose(found["approximate"], KNOWN["approximate"], atol=1e-8)


def test_the_core_needs_numpy_alone():
    code = "import sys, probgen.evaluate.arviz; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.replace("'", "").strip("[]\n").split(", "))
    assert not loaded & {"torch", "arviz", "xarray", "pandas", "pyarrow"}
    assert "numpy" in loaded


# --- a model's groups -------------------------------------------------------------------------------------------------


def frame_and_model(**options):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"y": random.normal(1, 1, 12)}, index=[f"r{i}" for i in range(12)])
    return frame, Linear(Table({"y": Real()}), prior=3.0).fit(frame, seed=0, **{"draws": 200, **options})


def test_a_fit_becomes_named_groups():
    frame, model = frame_and_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = to_arviz(model, frame)
    assert set(found.groups()) == {
        "posterior", "sample_stats", "log_likelihood", "log_prior", "posterior_predictive", "prior", "prior_predictive",
        "observed_data",
    }  # fmt: skip
    np.testing.assert_array_equal(found["posterior"]["beta"].values, model.draws.values["beta"].numpy())
    np.testing.assert_array_equal(found["sample_stats"]["lp"].values, model.draws.stats["lp"].numpy())
    assert found["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    assert found["log_likelihood"]["row"].values.tolist() == list(frame.index)
    np.testing.assert_array_equal(found["observed_data"]["y"].values, frame["y"])
    assert found["posterior_predictive"]["y"].shape == (2, 200, 12)
    assert found["prior"]["beta"].shape == (1, 1000, 1)
    beta, y = found["posterior"]["beta"].values[1, 7, 0], frame["y"].to_numpy()
    expected = -0.5 * (y - beta) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found["log_likelihood"]["y"].values[1, 7], expected, atol=1e-12)
    prior = -0.5 * (beta / 3) ** 2 - np.log(3) - 0.5 * np.log(2 * np.pi)
    assert found["log_prior"]["log_prior"].values[1, 7] == pytest.approx(prior)
    assert found.attrs["method"] == "conjugate"
    assert "Linear(" in found.attrs["model"]
    drawn = found["posterior_predictive"]["y"].values.mean(-1)  # a data set has the parameters of its own draw
    assert np.corrcoef(drawn.reshape(-1), found["posterior"]["beta"].values.reshape(-1))[0, 1] > 0.5
    spread = found["prior_predictive"]["y"].values.mean(-1).std()
    assert 2.4 < spread < 3.8


def test_its_loo_is_that_of_arviz():
    frame, model = frame_and_model(draws=450, chains=1)
    found = to_arviz(model, frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = arviz.loo(found, pointwise=True, reff=1.0)
    log_lik = found["log_likelihood"]["y"].values.reshape(450, 12)
    from probgen.evaluate.loo.leaving import left_out

    ours = left_out(log_lik, 1, r_eff=1.0)
    their_rows = theirs.elpd_i if hasattr(theirs, "elpd_i") else theirs.loo_i
    np.testing.assert_allclose(ours.nats, their_rows.values, atol=4e-6)
    np.testing.assert_allclose(ours.k, theirs.pareto_k.values, atol=4e-6)
    assert loo(model, frame).elpd == pytest.approx(float(their_rows.sum()), abs=0.01)  # r_eff measured, not 1


def test_without_data_there_are_no_groups_about_data():
    _, model = frame_and_model()
    found = to_arviz(model)
    assert set(found.groups()) == {"posterior", "sample_stats", "log_prior", "prior"}


def test_approximate_posteriors_bring_log_p_and_log_q():
    frame, model = frame_and_model(method="laplace")
    found = to_arviz(model, frame)
    np.testing.assert_array_equal(found["sample_stats"]["log_q"].values, model.draws.log_q.numpy())
    assert {"log_p", "log_q", "lp"} <= set(found["sample_stats"].data_vars)


def test_arrays_of_several_cells_keep_their_shape_apart_from_the_likelihoods():
    given = np.random.default_rng(0).normal(size=(10, 2))
    y = given.sum(1, keepdims=True)
    model = Linear(Array((1,)), Array((2,))).fit(y, given=given, draws=50)
    found = to_arviz(model, y, given)
    assert found["observed_data"]["x"].dims == ("row", "x_dim_0")
    assert found["log_likelihood"]["log_lik"].dims == ("chain", "draw", "row")


# --- guards -----------------------------------------------------------------------------------------------------------


def test_what_arviz_answers_nonsense_to_is_refused_before():
    frame, model = frame_and_model()
    for draws in (1, 2, 10):
        with pytest.raises(DataError, match=f"{draws} posterior draws"):
            to_arviz(frame_and_model(draws=draws, chains=1)[1], frame)
    point = frame_and_model(method="ml")[1]
    with pytest.raises(StructureError, match=r"point fit.*to_elpd"):
        to_arviz(point, frame)
    with pytest.raises(ParameterError, match="by='rows'"):
        to_arviz(model, frame, by="rows")
    with pytest.raises(StructureError, match="sequences"):
        to_arviz(model, frame, by="step")
    with pytest.raises(ParameterError, match="without x"):
        to_arviz(model, given=frame)
    with pytest.raises(ShapeError):
        to_arviz(model, frame.rename(columns={"y": "z"}))


def test_the_core_refuses_broken_groups():
    groups = arviz_core.groups()
    for name, change, match in (
        ("posterior", None, "without a posterior"),
        (
            "log_likelihood",
            {"a": groups["log_likelihood"]["y"], "b": groups["log_likelihood"]["y"]},
            "Likelihoods of a, b",
        ),
        ("log_likelihood", {"y": np.where(np.arange(7) == 3, -np.inf, groups["log_likelihood"]["y"])}, r"first \(3,\)"),
        (
            "log_likelihood",
            {"y": np.where(np.arange(7) == 3, np.nan, groups["log_likelihood"]["y"])},
            "NaN or infinite",
        ),
        ("log_likelihood", {"y": np.zeros((1, 450, 7))}, r"\(1, 450\)"),
        ("posterior", {"mu": np.zeros(30)}, "chains, draws"),
        ("posteriour", {"mu": np.zeros((2, 30))}, "posteriour"),
    ):
        broken = {**groups, name: change} if change else {n: g for n, g in groups.items() if n != name}
        with pytest.raises((StructureError, DataError), match=match):
            adapter.container(broken)


def test_a_missing_arviz_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(MissingExtra, match=r"probgen\[arviz\]"):
        adapter.container(arviz_core.groups())


def test_sequences_have_likelihoods_by_sequence_and_by_step():
    series = [np.random.default_rng(i).normal(size=8) for i in range(3)]
    model = pg.HMM(states=2, emission=pg.emissions.Normal(dim=1)).fit(
        series, method="laplace", draws=15, chains=2, seed=0
    )
    whole = to_arviz(model, series, by="sequence")
    steps = to_arviz(model, series, by="step")
    assert whole["log_likelihood"]["log_lik"].dims == ("chain", "draw", "sequence")
    assert steps["log_likelihood"]["x"].shape == (2, 15, 24)
    assert steps["log_likelihood"]["step"].values.tolist()[7:9] == ["0:7", "1:0"]
    sums = steps["log_likelihood"]["x"].values.reshape(2, 15, 3, 8).sum(-1)
    np.testing.assert_allclose(sums, whole["log_likelihood"]["log_lik"].values, rtol=1e-9)
    assert whole["observed_data"]["x"].shape == (24,)
    assert whole["posterior_predictive"]["x"].shape == (2, 15, 24)


@pytest.mark.parametrize("thing", [3, None, "model"])
def test_what_is_no_model_is_refused_by_its_type(thing):
    with pytest.raises(ParameterError, match=f"A {type(thing).__name__} for a model"):
        to_arviz(thing)
