"""Variational autoencoders: their parts against closed forms, their training, codes and diagnosis."""

import copy
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

import probgen as pg
from probgen.errors import DataError, FitError, NotFittedError, ParameterError, ShapeError, StructureError, SupportError
from probgen.estimate import ELBO, IWAE
from probgen.events import Array, Category, Count, Real, Table
from probgen.latent.cells import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Grid,
    LogNormal,
    NegativeBinomial,
    Normal,
    Poisson,
)
from probgen.latent.observations import observation_for

ALPHA = 1e-6
D = torch.float64
RNG = np.random.default_rng(5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The linear VAE is probabilistic PCA


W = np.array([[1.2, 0.3], [0.4, -0.9], [-0.8, 0.0], [0.0, 0.4]])
W[:, 1] -= W[:, 0] * (W[:, 0] @ W[:, 1]) / (W[:, 0] @ W[:, 0])  # orthogonal: the posterior's covariance is diagonal
MU, SIGMA = np.array([1.0, -2.0, 0.5, 0.0]), 0.6


def linear(shift=0.0):
    """A VAE whose guide is the exact posterior, ``shift`` of its deviations off."""
    vae = pg.VAE(Array((4,)), 2, ()).double()
    precision = 1 + (W**2).sum(0) / SIGMA**2
    gain = torch.tensor(W.T / SIGMA**2 / precision[:, None])
    with torch.no_grad():
        out, back = vae.decoder.net.layers[0], vae.encoder.net.layers[0]
        out.weight[:4], out.bias[:4], out.bias[4:] = torch.tensor(W), torch.tensor(MU), math.log(SIGMA)
        back.weight[:2], back.bias[:2] = gain, -gain @ torch.tensor(MU) + torch.tensor(shift / np.sqrt(precision))
        back.bias[2:] = torch.tensor(np.log(np.expm1(1 / np.sqrt(precision) - 1e-4))) - 0.5
    vae.report = pg.VAE(Array((1,)), 1, (2,)).fit(RNG.normal(size=(60, 1)), steps=1, seed=0).report
    return vae


def ppca_rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ W.T + MU + SIGMA * rng.normal(size=(n, 4))


def ppca_nats(x):
    return stats.multivariate_normal(MU, W @ W.T + SIGMA**2 * np.eye(4)).logpdf(x)


def test_the_elbo_of_a_linear_vae_with_the_exact_posterior_is_the_log_likelihood_of_probabilistic_pca():
    x = ppca_rows(50)
    np.testing.assert_allclose(linear().log_prob(x, by=ELBO(2), seed=0).nats, ppca_nats(x), atol=1e-8)
    np.testing.assert_allclose(linear().log_prob(x, by=IWAE(2), seed=0).nats, ppca_nats(x), atol=1e-8)


def test_a_shifted_guide_lowers_the_elbo_by_half_its_square_a_latent():
    x = ppca_rows(50)
    lost = ppca_nats(x) - linear(0.5).log_prob(x, by=ELBO(20_000), seed=0).nats
    np.testing.assert_allclose(lost.mean(), 2 * 0.5**2 / 2, atol=0.005)


def test_the_ladder_reaches_the_truth_with_a_shifted_guide_and_its_errors_say_how_near():
    x = ppca_rows(200, seed=3)
    answer = linear(1.0).log_prob(x, seed=1)
    printed = ~np.isnan(answer.stderr)
    assert printed.mean() > 0.9
    z = (answer.nats - ppca_nats(x))[printed] / answer.stderr[printed]
    assert stats.norm.sf(abs(z.mean()) * math.sqrt(len(z))) > ALPHA
    assert abs(z + 4).mean() > 1  # the twin: four errors off is seen


# Cells


SHAPE = {  # kind, first numbers, all values that carry mass
    "bernoulli": (Bernoulli(1), [0.7], np.arange(2.0)),
    "logistic levels": (Grid(1, 1.0, 0.0, 16.0), [3.0, 1.2], np.arange(17.0)),
    "logistic levels, far": (Grid(1, 1.0, 0.0, 16.0), [40.0, 0.1], np.arange(17.0)),
    "logistic, sharp": (Grid(1, 1.0, 0.0, 16.0), [7.4, -5.0], np.arange(17.0)),
    "logistic mixture": (Grid(1, 1.0, 0.0, 16.0, 3), [-2.0, 4.0, 9.0, 0.0, -1.0, 1.0, 0.3, 0.0, -1.0], np.arange(17.0)),
    "logistic endless": (Grid(1, 0.5), [3.3, 0.4], np.arange(-400, 400) * 0.5),
    "logistic positive": (Grid(1, 0.5, 0.5), [1.0, 0.4], np.arange(1, 400) * 0.5),
    "logistic unit": (Grid(1, 0.25, 0.0, 1.0), [0.4, -1.0], np.arange(5) * 0.25),
    "categorical": (Categorical(1, 4), [0.1, -2.0, 1.0, 0.5], np.arange(4.0)),
    "poisson": (Poisson(1), [1.4], np.arange(60.0)),
    "negative binomial": (NegativeBinomial(1), [1.4, -0.3], np.arange(600.0)),
}
kinds = pytest.mark.parametrize("kind", SHAPE)


def masses(kind):
    cells, numbers, values = SHAPE[kind]
    p = torch.tensor(numbers, dtype=D)[:, None].expand(len(values), -1, 1)
    return cells.log_prob(p, cells.ready(torch.tensor(values)[:, None])).exp().numpy()


@kinds
def test_the_masses_of_all_values_sum_to_one(kind):
    assert masses(kind).sum() == pytest.approx(1, abs=1e-9)


def fits(counts, p):
    rare = counts.sum() * p < 10
    seen, expected = np.append(counts[~rare], counts[rare].sum()), counts.sum() * np.append(p[~rare], p[rare].sum())
    return stats.chi2.sf(((seen - expected) ** 2 / expected.clip(1e-9)).sum(), max(len(seen) - 1, 1))


@kinds
def test_draws_follow_the_masses_and_a_wrong_temperature_is_caught(kind):
    cells, numbers, values = SHAPE[kind]
    p = torch.tensor(numbers, dtype=D)[:, None].expand(100_000, -1, 1)
    drawn = cells.draw(p, seeded(3)).numpy()[:, 0]
    counts = np.array([(drawn == value).sum() for value in values])
    assert counts.sum() == 100_000
    found = masses(kind)
    assert fits(counts, found) > ALPHA
    warm = found**0.9 / (found**0.9).sum()
    assert fits(counts, warm) < ALPHA or found.max() > 0.999
    if not isinstance(cells, Categorical | Grid):
        assert cells.mean(p).numpy().mean() == pytest.approx((found * values).sum(), rel=1e-6)


DENSITIES = {
    "normal": (Normal(1), [0.3, -0.4], np.linspace(-12, 12, 40_001)),
    "lognormal": (LogNormal(1), [0.3, -0.4], np.exp(np.linspace(-14, 14, 40_001))),
    "continuous bernoulli": (ContinuousBernoulli(1), [2.3], np.linspace(0, 1, 20_001)),
    "continuous bernoulli, flat": (ContinuousBernoulli(1), [1e-3], np.linspace(0, 1, 20_001)),
    "continuous bernoulli, steep": (ContinuousBernoulli(1), [-60.0], np.linspace(0, 1, 400_001)),
}


@pytest.mark.parametrize("kind", DENSITIES)
def test_densities_integrate_to_one_and_draws_follow_them(kind):
    cells, numbers, grid = DENSITIES[kind]
    cells.spread.fill_(1.7 if isinstance(cells, Normal) else 1.0)
    p = torch.tensor(numbers, dtype=D)[:, None]
    density = cells.log_prob(p.expand(len(grid), -1, 1), cells.ready(torch.tensor(grid)[:, None])).exp().numpy()
    steps = np.diff(grid)
    cumulative = np.append(0, np.cumsum(steps * (density[1:] + density[:-1]) / 2))
    assert cumulative[-1] == pytest.approx(1, abs=2e-4)
    drawn = cells.draw(p.expand(20_000, -1, 1), seeded(2)).numpy()[:, 0]
    assert stats.kstest(drawn, lambda x: np.interp(x, grid, cumulative)).pvalue > ALPHA
    assert stats.kstest(drawn * 1.05, lambda x: np.interp(x, grid, cumulative)).pvalue < 1e-3 or "flat" in kind
    mean = float(cells.mean(p.expand(2, -1, 1))[0, 0])
    assert mean == pytest.approx(np.trapezoid(grid * density, grid), rel=2e-3)


def test_a_steep_continuous_bernoulli_is_the_limit_of_its_formula():
    cells, x = ContinuousBernoulli(1), torch.tensor([[0.2]], dtype=D)
    small = [float(cells.log_prob(torch.full((1, 1, 1), at, dtype=D), x)) for at in (0.0099, 0.0101)]
    assert small[0] == pytest.approx(small[1], abs=1e-4)
    assert float(cells.log_prob(torch.zeros(1, 1, 1, dtype=D), x)) == pytest.approx(0, abs=1e-12)


TABLE = Table(
    {"a": Real("cm"), "b": Real(resolution=0.5), "p": Real(positive=True), "c": Category(("x", "y", "z")), "k": Count()}
)


def table_rows(n, seed=0, gaps=0.1):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    c = np.array(["x", "y", "z"])[np.digitize(z, (-0.5, 0.5))]
    columns = {"a": 2 * z + rng.normal(size=n), "b": np.round(2 * z) / 2, "p": np.exp(z), "k": rng.poisson(np.exp(z))}
    holes = {name: np.ma.MaskedArray(values, rng.random(n) < gaps) for name, values in columns.items()}
    return {**holes, "c": np.where(rng.random(n) < gaps, None, c)}


@pytest.fixture(scope="module")
def tabular():
    return pg.VAE(TABLE, 1, (32,)).fit(table_rows(600), steps=300, seed=0)


def test_what_is_missing_is_summed_out_of_the_joint(tabular):
    cells = tabular.cells
    raw = tabular._decoded(torch.randn(1, 1, 1, generator=seeded(1)), None).detach()
    row = torch.tensor([[0.3, 1.0, 0.7, 2.0, 3.0]], dtype=D)
    every = torch.cat([torch.cat([row[:, :3], torch.tensor([[c, 3.0]], dtype=D)], 1) for c in (0.0, 1.0, 2.0)])
    gap = row.clone()
    gap[0, 3] = math.nan
    summed = cells.log_prob(raw.expand(1, 3, -1), cells.ready(every)).logsumexp(-1)
    assert float(summed) == pytest.approx(float(cells.log_prob(raw, cells.ready(gap))), abs=1e-5)


def test_gaps_are_integrated_out_as_quadrature_does(tabular):
    x = table_rows(40, seed=9, gaps=0.4)
    rows = tabular.event.check(x).x
    double, points = copy.deepcopy(tabular).double(), torch.linspace(-9, 9, 3001, dtype=D)
    with torch.no_grad():
        joint = double._log_joint(rows, points[:, None, None].expand(-1, len(rows), 1), None)
    truth = (joint.logsumexp(0) + math.log(18 / 3000)).numpy()
    answer = tabular.log_prob(x, by=IWAE(4000), seed=0)
    assert (abs(answer.nats - truth) < 0.1).mean() > 0.9
    assert answer.kind is pg.Kind.LOWER
    assert tabular.log_prob(x, seed=1).nats.mean() == pytest.approx(truth.mean(), abs=0.05)


def test_a_table_is_drawn_and_reconstructed_with_values_that_it_may_have(tabular):
    drawn = tabular.sample(300, seed=0)
    assert len(tabular.event.check(drawn)) == 300
    again = tabular.reconstruct(table_rows(30, seed=2))
    assert len(tabular.event.check(again)) == 30
    assert set(again["c"]) <= {"x", "y", "z"}
    assert np.corrcoef(tabular.encode(table_rows(300, 3, 0.0)).loc[:, 0], table_rows(300, 3, 0.0)["a"])[0, 1] ** 2 > 0.5


WRONG = {
    "grey pixels": (Array((4,), support="unit"), "bernoulli", StructureError, "continuous_bernoulli.*levels=256"),
    "levels": (Array((4,), levels=5), "bernoulli", StructureError, "binary"),
    "a table": (TABLE, "normal", StructureError, "each column"),
    "another support": (Array((4,)), "poisson", StructureError, "normal"),
    "unknown": (Array((4,)), "gaussian", ParameterError, "observation"),
}


@pytest.mark.parametrize("case", WRONG)
def test_observation_models_that_do_not_live_on_the_event_are_refused(case):
    event, name, error, said = WRONG[case]
    with pytest.raises(error, match=said):
        pg.VAE(event, observation=name)


def test_grey_data_of_a_binary_event_are_refused_with_what_to_do():
    vae = pg.VAE(Array((3,), levels=2), 1, (4,))
    with pytest.raises(SupportError, match=r"support='unit'.*levels=256.*binarise"):
        vae.fit(np.full((60, 3), 0.4), steps=2)


def test_counts_may_be_poisson_and_levels_categorical():
    x = RNG.poisson(3.0, (80, 2))
    assert isinstance(pg.VAE(Array((2,), support="count"), 1, (4,), observation="poisson").cells.parts[0], Poisson)
    vae = pg.VAE(Array((2,), levels=30), 1, (8,), observation="categorical").fit(x, steps=20, seed=0)
    assert np.isfinite(vae.log_prob(x, by=ELBO(2), seed=0).nats).all()
    observation = observation_for(Array((3,), levels=(2, 5, 2)), None, 1)
    assert (observation.width, observation.places) == (9, [[0, 2], [1]])


# Priors


@torch.no_grad()
def entropy_p(latent, z, entropy):
    """p-value of draws having the entropy of their distribution: two-sided, by their mean log-density."""
    nats = latent.log_prob(z).numpy()
    return 2 * stats.norm.sf(abs(nats.mean() + entropy) / (nats.std() / math.sqrt(len(nats))))


@pytest.mark.parametrize("prior", ["normal", "vamp", "flow"])
def test_a_prior_integrates_to_one_is_its_distribution_and_is_saved(prior, tmp_path):
    x = ppca_rows(300)
    vae = pg.VAE(Array((4,)), 2, (16,), prior=prior, pseudo_inputs=7).fit(x, steps=150, seed=0)
    latent = copy.deepcopy(vae).double().latent
    axis = torch.linspace(-7, 7, 161, dtype=D)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        nats = latent.log_prob(z)
        np.testing.assert_allclose(latent.distribution().log_prob(z).numpy(), nats.numpy(), atol=1e-8)
        drawn = latent.draw(20_000, seeded(0))
    assert float(nats.exp().sum()) * (14 / 160) ** 2 == pytest.approx(1, abs=1e-3)
    entropy = -float((nats.exp() * nats).sum()) * (14 / 160) ** 2
    assert entropy_p(latent, drawn, entropy) > ALPHA
    assert entropy_p(latent, 1.05 * drawn, entropy) < ALPHA  # the twin: draws too wide
    again = pg.load(pg.save(vae, tmp_path / "m"))
    np.testing.assert_array_equal(
        vae.log_prob(x[:9], by=IWAE(9), seed=1).nats, again.log_prob(x[:9], by=IWAE(9), seed=1).nats
    )


def test_learned_priors_fit_two_clusters_better_than_a_standard_normal():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(800, 2)) * 0.3 + 3.0 * rng.integers(2, size=(800, 1))
    scores = {
        prior: pg.VAE(Array((2,)), 2, (32,), prior=prior, pseudo_inputs=10)
        .fit(x, steps=150, seed=0, patience=0, learning_rate=0.02)
        .diagnose(x, rows=0, seed=0)
        .mismatch[0]
        for prior in ("normal", "vamp", "flow")
    }
    assert scores["vamp"] < scores["normal"]
    assert scores["flow"] < scores["normal"]


def test_an_unknown_prior_is_refused():
    with pytest.raises(ParameterError, match="prior='gaussian'"):
        pg.VAE(Array((4,)), prior="gaussian")
    with pytest.raises(ParameterError, match="pseudo_inputs=0"):
        pg.VAE(Array((4,)), prior="vamp", pseudo_inputs=0)


# Images


def stripes(n, shape, seed=0):
    """Images whose left part is dark."""
    rng = np.random.default_rng(seed)
    edge = rng.integers(2, shape[1] - 1, n)
    grey = 0.9 - 0.8 * (np.arange(shape[1])[None, None] >= edge[:, None, None])
    return (rng.random((n, *shape)) < np.broadcast_to(grey, (n, *shape))).astype(int)


def test_a_convolutional_vae_learns_stripes_and_beats_independent_pixels():
    x = stripes(900, (9, 10))
    vae = pg.VAE(Array((9, 10), levels=2), 2, (16,), (8, 8)).fit(x[:700], steps=150, learning_rate=4e-3, seed=0)
    independent = pg.Independent(Array((9, 10), levels=2)).fit(x[:700]).log_prob(x[700:])
    assert (vae.log_prob(x[700:], by=IWAE(50), seed=0).nats - independent.nats).mean() > 8
    assert vae.sample(3, seed=0).shape == (3, 9, 10)
    again = vae.reconstruct(x[700:])
    assert again.shape == (200, 9, 10)
    assert abs(again - x[700:]).mean() < 0.75 * abs(x[:700].mean(0) - x[700:]).mean()


def test_channels_first_and_last_are_the_same_model():
    rng = np.random.default_rng(0)
    last = rng.integers(16, size=(80, 6, 5, 3))
    first = np.moveaxis(last, 3, 1)
    vaes = [pg.VAE(Array(x.shape[1:], levels=16), 2, (8,), (4, 4)).fit(x, steps=6, seed=0) for x in (last, first)]
    z = torch.randn(1, 80, 2, generator=seeded(0))
    with torch.no_grad():
        joints = [v._log_joint(v.event.check(x).x, z, None) for v, x in zip(vaes, (last, first), strict=True)]
    np.testing.assert_allclose(*(joint.numpy() for joint in joints), rtol=1e-4)
    np.testing.assert_allclose(vaes[0].encode(last).loc, vaes[1].encode(first).loc, atol=1e-4)


def test_convolutions_of_what_is_no_image_are_refused():
    with pytest.raises(ParameterError, match="images"):
        pg.VAE(Array((6,)), channels=(4,))
    with pytest.raises(ParameterError, match="channels"):
        pg.VAE(Array((6, 6)), channels=(0,))


def test_large_images_get_convolutions_by_themselves():
    assert pg.VAE.for_event(Array((28, 28), levels=2)).channels
    assert not pg.VAE.for_event(Array((8, 8), levels=17)).channels


# Covariates


@pytest.fixture(scope="module")
def conditional():
    rng = np.random.default_rng(0)
    group = rng.integers(3, size=600)
    x = rng.normal(size=(600, 2)) + 4.0 * group[:, None]
    context = Table({"group": Category((0, 1, 2))}, missing=False)
    vae = pg.VAE(Array((2,)), 1, (32,), context=context).fit(x, given={"group": group}, steps=600, seed=0)
    return vae, x, {"group": group}


def test_a_conditional_vae_moves_with_its_covariates(conditional):
    vae, x, given = conditional
    for g in range(3):
        drawn = vae.sample(2000, given={"group": [g]}, seed=1)
        assert drawn.shape == (2000, 2)
        assert abs(drawn.mean(0) - 4 * g).max() < 0.3
    assert vae.sample(5, given={"group": [0, 2]}, seed=1).shape == (2, 5, 2)
    right = vae.log_prob(x, given=given, by=IWAE(20), seed=0)
    wrong = vae.log_prob(x, given={"group": (given["group"] + 1) % 3}, by=IWAE(20), seed=0)
    assert (right.nats - wrong.nats).mean() > 3
    assert right.nats.mean() > -3.2  # two normal numbers have -2.84


def test_the_hooks_of_a_conditional_vae_are_its_program(conditional):
    vae, x, given = conditional
    double = copy.deepcopy(vae).double()
    rows, covariates = double.event.check(x).x[:20], double.context.check({"group": given["group"][:20]}).x
    z = torch.randn(1, 20, 1, generator=seeded(0), dtype=D)
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(double.model, {"z": z[0].detach()})).get_trace(rows, covariates)
    ours = double._log_joint(rows, z, covariates).sum().detach()
    assert float(ours) == pytest.approx(float(trace.log_prob_sum().detach()), rel=1e-9)


def test_codes_of_a_conditional_vae_need_their_covariates(conditional):
    vae, x, given = conditional
    code = vae.encode(x, given=given)
    assert vae.decode(code.loc, given=given).shape == (600, 2)
    assert vae.decode(code.loc[:4], given={"group": [1]}).shape == (4, 2)
    with pytest.raises(ParameterError, match="given="):
        vae.encode(x)
    with pytest.raises(ShapeError, match="2 rows for 5 codes"):
        vae.decode(code.loc[:5], given={"group": [1, 1]})


# Codes


@pytest.fixture(scope="module")
def digits():
    data = pg.datasets.load("digits")
    train, test = data.split(seed=0)
    return pg.VAE(data.event, 8, (128,)).fit(train, steps=250, seed=0), test


def test_codes_decode_to_what_they_encode(digits):
    vae, test = digits
    code = vae.encode(test)
    assert code.loc.shape == code.scale.shape == (len(test), 8)
    assert (code.scale > 0).all()
    again = vae.reconstruct(test)
    assert again.shape == test.shape
    assert abs(again - test).mean() < 0.6 * abs(test.mean(0) - test).mean()
    path = vae.interpolate(test[:1], test[1:2], steps=5)
    np.testing.assert_allclose(path[[0, -1]], again[:2], atol=1e-4)


def test_wrong_codes_are_refused(digits):
    vae, test = digits
    with pytest.raises(ShapeError, match=r"\(3, 2\).*\(n, 8\)"):
        vae.decode(np.zeros((3, 2)))
    with pytest.raises(ParameterError, match="steps=1"):
        vae.interpolate(test[:1], test[1:2], steps=1)
    with pytest.raises(ShapeError, match="one row each"):
        vae.interpolate(test[:3], test[1:2])
    with pytest.raises(NotFittedError):
        pg.VAE(Array((2,))).encode(np.zeros((1, 2)))
    with pytest.raises(DataError):
        vae.encode(np.full((1, 8, 8), np.nan))


def test_a_vae_is_drawn(digits, tabular, tmp_path):
    vae, test = digits
    for model, x in ((vae, test), (tabular, table_rows(50))):
        path = model.plot(x, tmp_path / "vae.png")
        assert path.read_bytes().startswith(b"\x89PNG")


# Digits, scored by quadrature


def test_a_two_dimensional_code_of_digits_is_scored_as_quadrature_scores_it():
    x = (pg.datasets.load("digits").x > 7).astype(int)
    vae = pg.VAE(Array((8, 8), levels=2), 2, (64,)).fit(x[:1500], steps=500, seed=0)
    test = x[1500:1600]
    double, axis = copy.deepcopy(vae).double(), torch.linspace(-6, 6, 481, dtype=D)
    rows, parts = double.event.check(test).x, []
    with torch.no_grad():
        for z in torch.cartesian_prod(axis, axis).split(20_000):
            raw = double.decoder(z, None) + double.cells.start
            nats = rows.reshape(-1, 64) @ raw.T - torch.nn.functional.softplus(raw).sum(1)
            parts.append((nats + double.latent.log_prob(z)).logsumexp(1))
    truth = (torch.stack(parts).logsumexp(0) + 2 * math.log(12 / 480)).numpy()
    answer = vae.log_prob(test, seed=1)
    printed = ~np.isnan(answer.stderr)
    off = (answer.nats - truth)[printed] / answer.stderr[printed]
    assert printed.mean() > 0.5
    assert stats.binom.cdf((abs(off) < 1.96).sum(), len(off), 0.935) > 1e-4
    assert stats.binom.cdf((abs(off + 2) < 1.96).sum(), len(off), 0.935) < ALPHA  # the twin: two errors off
    assert answer.nats.mean() == pytest.approx(truth.mean(), abs=0.1)
    assert answer.nats.mean() > vae.log_prob(test, by=ELBO(64), seed=1).nats.mean()


# Training


def loss_of(vae, x, share=1.0, **options):
    from probgen.models.vae.learning import NegativeELBO

    options = {"beta": 1.0, "warming": 0.0, "free_bits": 0.0, "samples": 1, **options}
    return float(NegativeELBO(vae, **options)(x, seeded(4), share).detach())


def test_weights_floors_and_warming_of_the_divergence_do_what_they_say():
    vae, x = linear(), torch.tensor(ppca_rows(4000))
    loc, scale = vae._posterior(x, None)
    kl = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).mean(0).detach().numpy()
    full, none = loss_of(vae, x), loss_of(vae, x, beta=0.0)
    assert full - none == pytest.approx(kl.sum(), rel=1e-6)
    assert loss_of(vae, x, beta=2.0) - none == pytest.approx(2 * kl.sum(), rel=1e-6)
    assert loss_of(vae, x, 0.25, warming=0.5) - none == pytest.approx(0.5 * kl.sum(), rel=1e-6)
    assert loss_of(vae, x, free_bits=10.0) - none == pytest.approx(20.0, rel=1e-6)
    assert loss_of(vae, x, free_bits=float(kl.max())) - none == pytest.approx(2 * kl.max(), rel=1e-5)


def test_several_samples_train_a_tighter_bound_than_one_where_the_guide_is_off():
    vae, x = linear(1.0), torch.tensor(ppca_rows(4000))
    truth = -ppca_nats(x.numpy()).mean()
    one, many = loss_of(vae, x), loss_of(vae, x, samples=50)
    assert one == pytest.approx(truth + 1.0, abs=0.1)  # two latents, each half a nat
    assert truth - 0.05 < many < one - 0.5


RANGE = {
    "beta": (-1.0, "beta"), "warming": (1.5, "share"), "free_bits": (math.inf, "free_bits"), "samples": (0, "samples"),
    "learning_rate": (-1.0, "learning_rate"), "steps": (0, "steps"), "batch_size": (0, "batch_size"),
    "ema": (1.0, "ema"), "budget": (0.0, "budget"),
}  # fmt: skip


@pytest.mark.parametrize("name", RANGE)
def test_schedules_out_of_range_are_refused(name):
    value, said = RANGE[name]
    with pytest.raises(ParameterError, match=said):
        pg.VAE(Array((2,)), 1, (4,)).fit(RNG.normal(size=(60, 2)), **{"steps": 2, name: value})


def test_free_bits_and_several_samples_do_not_go_together():
    with pytest.raises(ParameterError, match="IWAE"):
        pg.VAE(Array((2,)), 1, (4,)).fit(RNG.normal(size=(60, 2)), steps=2, samples=5, free_bits=0.1)


def test_free_bits_keep_a_code_from_collapsing():
    x = RNG.normal(size=(500, 3))  # nothing to say: a code costs more than it gains
    plain = pg.VAE(Array((3,)), 2, (8,)).fit(x, steps=400, seed=0)
    kept = pg.VAE(Array((3,)), 2, (8,)).fit(x, steps=400, seed=0, free_bits=0.5)
    assert plain.diagnose(x, rows=0, seed=0).divergence.sum() < 0.2
    assert kept.diagnose(x, rows=0, seed=0).divergence.sum() > 0.5


def test_the_site_that_became_non_finite_is_named():
    x = RNG.normal(size=(200, 3))
    vae = pg.VAE(Array((3,)), 2, (8,))
    with pytest.raises(FitError, match=r"site [zx]"):
        vae.fit(x, steps=200, seed=0, learning_rate=1e20, patience=0)
    assert all(bool(p.isfinite().all()) for p in vae.parameters())


def test_batches_are_drawn_anew_from_probabilities():
    p = np.broadcast_to([0.1, 0.8, 0.5], (400, 3))
    once = np.ones((400, 3), dtype=int)  # what a fit without redrawing would learn
    vae = pg.VAE(Array((3,), levels=2), 1, (8,)).fit(once, redraw=p, steps=400, seed=0)
    assert abs(vae.sample(20_000, seed=0).mean(0) - p[0]).max() < 0.05
    with pytest.raises(ShapeError, match=r"400 rows|9 rows"):
        vae.fit(once, redraw=p[:9], steps=2)
    with pytest.raises(SupportError, match="0 to 1"):
        vae.fit(once, redraw=p * 2, steps=2)
    with pytest.raises(StructureError, match="binary"):
        pg.VAE(Array((3,))).fit(RNG.normal(size=(400, 3)), redraw=p, steps=2)


def test_the_scale_of_the_data_does_not_matter():
    x = ppca_rows(500)
    small = pg.VAE(Array((4,)), 2, (16,)).fit(x, steps=150, seed=0)
    large = pg.VAE(Array((4,)), 2, (16,)).fit(x * 1e6 + 1e9, steps=150, seed=0)
    gain = small.log_prob(x, by=IWAE(20), seed=0).nats - large.log_prob(x * 1e6 + 1e9, by=IWAE(20), seed=0).nats
    assert gain.mean() == pytest.approx(4 * math.log(1e6), abs=0.05)


# Diagnosis


def test_the_diagnosis_of_a_linear_vae_is_that_of_its_closed_form():
    x = ppca_rows(4000)
    found = linear().diagnose(x, rows=100, seed=0)
    information = 0.5 * np.log(1 + (W**2).sum(0) / SIGMA**2).sum()
    assert found.rate[0] == pytest.approx(information, abs=5 * found.rate[1])
    assert abs(found.mismatch[0]) < 0.05  # q(z) is the prior, but for 4000 rows
    assert found.information == pytest.approx(information, abs=0.1)
    assert found.active.all()
    assert not found.collapsed
    assert abs(found.gap[0]) < 0.02
    assert found.rows == (4000, 100)
    assert "2 of 2" in str(found)


def test_what_amortisation_costs_is_found_where_the_guide_is_off():
    found = linear(0.8).diagnose(ppca_rows(300), rows=200, seed=0)
    assert found.gap[0] == pytest.approx(2 * 0.8**2 / 2, abs=0.05)


def test_a_collapsed_code_is_seen():
    vae = linear()
    with torch.no_grad():
        vae.encoder.net.layers[0].weight.zero_()
    found = vae.diagnose(ppca_rows(50), rows=0, seed=0)
    assert found.collapsed
    assert "collapsed" in str(found)
    assert found.gap is None
