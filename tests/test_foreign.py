"""Other libraries' hidden Markov models as ours and ours as theirs: the same numbers, or a refusal."""

import warnings

import numpy as np
import pytest
import torch
from enumerated import cells, counts_model, fitted, points_model, symbols_model

import probgen as pg
from probgen import emissions as em
from probgen import events as ev
from probgen import transitions as tr
from probgen.errors import NotFittedError, ParameterError, StructureError

theirs = pytest.importorskip("hmmlearn.hmm")

RAGGED = (30, 1, 9)
GAUSSIAN = ["spherical", "diag", "full", "tied"]
MIXED = ["diag", "full", "spherical"]
KINDS = ["categorical", "poisson", *(f"gaussian {c}" for c in GAUSSIAN), *(f"mixture {c}" for c in MIXED)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def covariances(rng, shape, d, covariance):
    """Variances, or matrices, of so many normals."""
    if covariance == "spherical":
        return rng.gamma(2.0, 1.0, shape)
    if covariance == "diag":
        return rng.gamma(2.0, 1.0, (*shape, d))
    root = rng.normal(size=(*(() if covariance == "tied" else shape), d, d))
    return root @ np.swapaxes(root, -1, -2) + 0.5 * np.eye(d)


def foreign_model(kind, seed=0, states=3, d=2):
    """A hmmlearn model with parameters set by hand, a structural zero among its moves."""
    rng = np.random.default_rng(seed)
    name, _, covariance = kind.partition(" ")
    if name == "categorical":
        made = theirs.CategoricalHMM(states)
        made.emissionprob_, made.n_features = rng.dirichlet(np.ones(4), states), 4
    elif name == "poisson":
        made = theirs.PoissonHMM(states)
        made.lambdas_, made.n_features = rng.gamma(2.0, 3.0, (states, d)), d
    elif name == "gaussian":
        made = theirs.GaussianHMM(states, covariance)
        made.means_, made.n_features = rng.normal(0, 2, (states, d)), d
        made.covars_ = covariances(rng, (states,), d, covariance)
    else:
        made = theirs.GMMHMM(states, 2, covariance_type=covariance)
        made.weights_, made.means_ = rng.dirichlet(np.ones(2), states), rng.normal(0, 2, (states, 2, d))
        made.covars_, made.n_features = covariances(rng, (states, 2), d, covariance), d
    made.startprob_ = rng.dirichlet(np.ones(states))
    made.transmat_ = rng.dirichlet(np.ones(states), states)
    made.transmat_[0] = [0.3, 0.7, 0.0]
    return made


def sequences(model, kind):
    """Ragged draws: stacked for them, a list for us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy's, inside hmmlearn
        parts = [model.sample(n, random_state=i)[0] for i, n in enumerate(RAGGED)]
    return np.concatenate(parts), [part.astype(float) for part in parts]


def agree(model, ours, stacked, parts):
    """Scores, posteriors and decoded paths to 1e-10."""
    wanted, posterior = model.score_samples(stacked, list(RAGGED))
    assert ours.log_prob(parts).nats.sum() == pytest.approx(wanted, rel=1e-10)
    for part, nats in zip(parts, ours.log_prob(parts).nats, strict=True):
        assert nats == pytest.approx(model.score(part.astype(stacked.dtype)), rel=1e-10)
    np.testing.assert_allclose(np.concatenate(ours.posterior(parts).marginals), posterior, atol=1e-10)
    np.testing.assert_allclose(posterior, model.predict_proba(stacked, list(RAGGED)), atol=1e-12)
    for part, path in zip(parts, ours.decode(parts), strict=True):
        np.testing.assert_array_equal(path, model.decode(part.astype(stacked.dtype))[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_hmmlearn_model_says_the_same_as_ours(kind):
    model = foreign_model(kind)
    stacked, parts = sequences(model, kind)
    ours = pg.wrap(model)
    agree(model, ours, stacked, parts)
    other = foreign_model(kind, seed=1)  # the same kind with other numbers, so that agreement means something
    assert abs(other.score(stacked, list(RAGGED)) - ours.log_prob(parts).nats.sum()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_same_model(kind):
    model = foreign_model(kind)
    stacked, parts = sequences(model, kind)
    ours = pg.wrap(model)
    back = pg.export(ours, "hmmlearn")
    assert type(back) is type(model)
    agree(back, ours, stacked, parts)
    np.testing.assert_allclose(back.transmat_, model.transmat_, rtol=1e-12)
    assert back.transmat_[0, 2] == 0
    again = pg.wrap(back)
    np.testing.assert_allclose(again.log_prob(parts).nats, ours.log_prob(parts).nats, rtol=1e-12)
    assert again.n_params == ours.n_params


@pytest.mark.parametrize("emission", [em.Normal(2, covariance) for covariance in GAUSSIAN], ids=repr)
def test_a_fit_of_ours_goes_out(emission):
    x = np.random.default_rng(0).normal(np.repeat([[0, 0], [3, -2]], 40, 0), 1.0)
    ours = pg.HMM(states=2, emission=emission).fit([x], seed=0, restarts=1, max_iter=20)
    model = pg.export(ours, "hmmlearn")
    assert model.score(x) == pytest.approx(ours.log_prob([x]).nats[0], rel=1e-10)
    drawn = model.sample(5, random_state=0)[0]
    assert ours.log_prob([drawn]).nats[0] == pytest.approx(model.score(drawn), rel=1e-10)


def test_a_fit_of_theirs_comes_in_and_can_go_on():
    x = np.random.default_rng(0).normal(np.repeat([0.0, 4.0, 0.0], 40), 1.0)[:, None]
    model = theirs.GaussianHMM(2, n_iter=3, random_state=0).fit(x)
    ours = pg.wrap(model)
    before = ours.log_prob([x]).nats[0].item()
    assert before == pytest.approx(model.score(x), rel=1e-10)
    ours.fit([x], start="current", max_iter=20)
    assert ours.log_prob([x]).nats[0] > before


def test_exported_parameters_are_copies():
    ours = points_model()
    x = ours.sample(1, length=6, seed=0)
    nats = ours.log_prob(x).nats[0]
    model = pg.export(ours, "hmmlearn")
    model.means_ += 1
    model.transmat_[:] = 1 / 3
    assert ours.log_prob(x).nats[0] == nats


def test_a_saved_import_comes_back(tmp_path):
    model = foreign_model("mixture full")
    stacked, parts = sequences(model, "mixture full")
    again = pg.load(pg.save(pg.wrap(model), tmp_path / "m"))
    agree(model, again, stacked, parts)


# Refusals


@pytest.mark.parametrize("kind", ["CategoricalHMM", "GaussianHMM", "GMMHMM", "PoissonHMM"])
def test_a_model_that_was_never_fitted_is_refused(kind):
    with pytest.raises(NotFittedError, match="startprob_"):
        pg.wrap(getattr(theirs, kind)(2))
    half = foreign_model("categorical") if kind == "CategoricalHMM" else foreign_model("poisson")
    del half.startprob_
    with pytest.raises(NotFittedError, match="startprob_"):
        pg.wrap(half)


def test_kinds_without_a_counterpart_are_refused():
    for kind in ("MultinomialHMM", "VariationalGaussianHMM", "VariationalCategoricalHMM"):
        made = getattr(theirs, kind, None) or getattr(pytest.importorskip("hmmlearn.vhmm"), kind)
        with pytest.raises(StructureError, match=kind):
            pg.wrap(made(2))
    tied = theirs.GMMHMM(2, 2, covariance_type="tied")
    tied.startprob_, tied.transmat_ = np.full(2, 0.5), np.full((2, 2), 0.5)
    tied.weights_, tied.means_, tied.covars_ = np.full((2, 2), 0.5), np.zeros((2, 2, 1)), np.ones((2, 1, 1))
    with pytest.raises(StructureError, match="share a covariance"):
        pg.wrap(tied)
    for other in (3, "model", torch.nn.Linear(1, 1), np.zeros(3)):
        with pytest.raises(StructureError):
            pg.wrap(other)


@pytest.mark.parametrize("name", ["startprob_", "transmat_", "emissionprob_"])
@pytest.mark.parametrize("spoil", [lambda p: 2 * p, lambda p: p * np.nan, lambda p: p - 0.9])
def test_rows_that_are_no_probabilities_are_refused(name, spoil):
    model = foreign_model("categorical")
    setattr(model, name, spoil(getattr(model, name)))
    with pytest.raises(StructureError, match=name):
        pg.wrap(model)


@pytest.mark.parametrize(
    "build",
    [
        lambda: counts_model(tr.Durations()),
        lambda: counts_model(tr.Durations("categorical", longest=3)),
        lambda: fitted(pg.HMM(states=4, emission=em.Poisson(), transitions=tr.Factorial((2, 2)))),
        lambda: fitted(pg.HMM(states=2, emission=em.Poisson(), tie=(0, 0))),
        lambda: fitted(pg.HMM(states=2, emission=em.StudentT())),
        lambda: fitted(pg.HMM(states=2, emission=em.NormalMixture(1, 2, "tied"))),
        lambda: fitted(pg.HMM(ev.Series((2,), levels=3), 2)),
        lambda: fitted(pg.HMM(states=2, emission=em.Autoregressive())),
        lambda: fitted(
            pg.HMM(
                states=2, emission=em.Poisson(), transitions=tr.InputDriven(1), context=ev.Series((1,), missing=False)
            )
        ),
    ],
)
def test_what_hmmlearn_lacks_is_refused_and_named(build):
    with pytest.raises(StructureError):
        pg.export(build(), "hmmlearn")


def test_export_names_the_libraries_it_knows():
    with pytest.raises(ParameterError, match="hmmlearn"):
        pg.export(counts_model(), "hmmlern")
    with pytest.raises(NotFittedError):
        pg.export(pg.HMM(states=2, emission=em.Normal()), "hmmlearn")


# Zeros


def test_impossible_symbols_stay_impossible():
    ours = symbols_model(tr.Markov((1.0, 0.0, 0.0), allowed=tr.left_right(3)))
    model = pg.export(ours, "hmmlearn")
    good, bad = np.array([[0], [1], [2]]), np.array([[2], [0], [0]])
    assert model.score(good) == pytest.approx(ours.log_prob([good[:, 0]]).nats[0], rel=1e-10)
    assert ours.log_prob([bad[:, 0]]).nats[0] == -np.inf
    again = pg.wrap(model)
    assert again.log_prob([bad.astype(float)]).nats[0] == -np.inf
    assert again.log_prob([good.astype(float)]).nats[0] == pytest.approx(model.score(good), rel=1e-10)


def test_a_stationary_start_goes_out_as_the_numbers_that_it_is():
    ours = counts_model(tr.Markov("stationary"))
    model = pg.export(ours, "hmmlearn")
    np.testing.assert_allclose(model.startprob_ @ model.transmat_, model.startprob_, rtol=1e-10)
    x = ours.sample(1, length=8, seed=0)[0].astype(int)
    assert model.score(x) == pytest.approx(ours.log_prob([x]).nats[0], rel=1e-10)


# Pyro


@pytest.mark.parametrize("kind", ["poisson", "gaussian full", "gaussian diag"])
def test_a_hmmlearn_model_goes_on_to_pyro_and_its_first_move_is_undone(kind):
    model = foreign_model(kind)
    x = sequences(model, kind)[1][2]
    in_pyro = pg.export(pg.wrap(model), "pyro", duration=len(x))
    wanted = model.score(x.astype(int) if kind == "poisson" else x)
    assert in_pyro.log_prob(cells(x)).item() == pytest.approx(wanted, rel=1e-10)
    ours = pg.wrap(in_pyro)
    assert ours.log_prob(cells(x)).item() == pytest.approx(wanted, rel=1e-10)
    first = cells(model.startprob_).log()
    naive = type(in_pyro)(first, cells(model.transmat_).log(), in_pyro.observation_dist, duration=len(x))
    assert abs(naive.log_prob(cells(x)).item() - wanted) > 1e-4  # Pyro's own reading of the same numbers
