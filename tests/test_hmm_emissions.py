"""Hidden Markov models of every emission: mixed columns, regressions, autoregressions, and the rest."""

import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated import D, Enumerated, cells, fitted, log, oracle, switching_inputs
from pyro.infer import TraceEnum_ELBO
from scipy import integrate, special, stats

import probgen as pg
from probgen import emissions as em
from probgen import events as ev
from probgen import transitions as tr
from probgen.errors import DataError, ParameterError, ProbgenError, ShapeError, StructureError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Columns of several types


def panel_scene():
    """Two sequences of a number, a count and a category, with gaps, their rows mixed."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "id": ["b"] * 5 + ["a"] * 4,
        "height": rng.normal(0, 2, 9),
        "visits": rng.poisson(3, 9).astype(float),
        "mood": rng.choice(["calm", "wild"], 9),
    })  # fmt: skip
    frame.loc[2, "height"] = np.nan
    frame.loc[6, "visits"] = np.nan
    frame.loc[3, "mood"] = None
    event = ev.Panel({"height": ev.Real(), "visits": ev.Count(), "mood": ev.Category(("calm", "wild"))}, "id")
    model = fitted(pg.HMM(event, 2))
    return frame, event, model


def panel_table(model, part):
    height, visits, mood = (model.emission.parts[name] for name in ("height", "visits", "mood"))
    scale, loc, rate = (v.detach().numpy().reshape(2) for v in (height.scale(), height.loc, visits.log_rate.exp()))
    table = mood.logits.softmax(-1).detach().numpy()[:, 0]
    out = np.zeros((len(part), 2))
    for t, row in enumerate(part.itertuples()):
        if row.height == row.height:
            out[t] += stats.norm.logpdf(row.height, loc, scale)
        if row.visits == row.visits:
            out[t] += stats.poisson.logpmf(row.visits, rate)
        if isinstance(row.mood, str):
            out[t] += np.log(table[:, ["calm", "wild"].index(row.mood)])
    return out


def test_a_frame_of_mixed_columns_is_all_paths_of_each_sequence():
    frame, _, model = panel_scene()
    draw = torch.Generator().manual_seed(1)
    for p in model.emission.parameters():
        p.data = p.data + 0.5 * torch.randn(p.shape, generator=draw, dtype=D)
    shuffled = pd.concat([frame.iloc[[0, 5, 1, 6]], frame.iloc[[2, 7, 3, 8, 4]]])
    for data in (frame, shuffled):
        nats = model.log_prob(data)
        assert nats.event.keys.tolist() == ["b", "a"]
        for i, key in enumerate(("b", "a")):
            every = oracle(model, panel_table(model, frame[frame.id == key]))
            assert nats.nats[i].item() == pytest.approx(every.nats, rel=1e-12)
            np.testing.assert_allclose(model.posterior(data).marginals[i], every.marginals(), atol=1e-12)
            np.testing.assert_array_equal(model.decode(data)[i], every.best)


def test_a_frame_is_learned_and_given_back_as_a_frame():
    rng = np.random.default_rng(0)
    z = np.repeat([0, 1, 0, 1], 20)
    mood = np.where(rng.uniform(size=80) < 0.1 + 0.8 * z, "wild", "calm")
    frame = pd.DataFrame({"id": np.repeat([7, 3], 40), "height": rng.normal(5.0 * z, 1), "mood": mood})
    frame["visits"] = rng.poisson(1 + 6 * z)
    event = ev.infer(frame, sequence="id")
    m = pg.HMM(event, 2).fit(frame, seed=0, restarts=2)
    path = np.concatenate(m.decode(frame))
    assert max((path == z).mean(), (path != z).mean()) > 0.95
    drawn = m.sample(3, length=6, seed=0)
    assert isinstance(drawn, pd.DataFrame)
    assert len(drawn) == 18
    assert np.isfinite(m.log_prob(drawn).nats).all()


def test_quantiles_of_mixed_columns_are_whole_where_the_column_is():
    frame, _, model = panel_scene()
    found = model.forecast(frame, 2).quantile(0.7)
    assert (found[..., 1] == np.round(found[..., 1])).all()
    rate = model.emission.parts["visits"].log_rate.exp().detach().numpy().ravel()
    states = model.forecast(frame, 2).states
    grid = np.arange(60)
    for i, s in itertools.product(range(2), repeat=2):
        mass = states[i, s] @ stats.poisson.cdf(grid, rate[:, None])
        assert found[i, s, 1] == grid[np.argmax(mass >= 0.7)]


# Every emission, weighed by SciPy


def natural_of(model):
    return {name: value.detach().numpy() for name, value in model.emission.natural().items()}


def by_negative_binomial(p, x):
    size = 1 / p["dispersion"][:, 0]
    return stats.nbinom.logpmf(x[:, None], size, size / (size + p["mean"][:, 0]))


def by_rounded(p, x):
    up, down = (stats.norm.cdf(x[:, None] + side, p["loc"][:, 0], p["scale"][:, 0]) for side in (0.25, -0.25))
    return log(up - down)


def by_mixture(p, x):
    parts = stats.norm.logpdf(x[:, None, None], p["loc"][..., 0], p["scale"][..., 0]) + np.log(p["weights"])
    return special.logsumexp(parts, axis=-1)


def by_student(p, x):
    return stats.t.logpdf(x[:, None], p["df"][:, 0], p["loc"][:, 0], p["scale"][:, 0])


def by_log_normal(p, x):
    return stats.lognorm.logpdf(x[:, None], p["scale"][:, 0], 0, np.exp(p["loc"][:, 0]))


LAWS = {
    "NegativeBinomial": (em.NegativeBinomial(), by_negative_binomial),
    "Bernoulli": (em.Bernoulli(), lambda p, x: stats.bernoulli.logpmf(x[:, None].astype(int), p["probs"][:, 0])),
    "Gamma": (em.Gamma(), lambda p, x: stats.gamma.logpdf(x[:, None], p["shape"][:, 0], scale=1 / p["rate"][:, 0])),
    "StudentT": (em.StudentT(), by_student),
    "NormalMixture": (em.NormalMixture(1, 2), by_mixture),
    "DiscretisedNormal": (em.DiscretisedNormal(1, 0.5), by_rounded),
    "LogNormal": (em.LogNormal(), by_log_normal),
}


def two_regimes(name, n=120, seed=0):
    rng = np.random.default_rng(seed)
    z = np.repeat([0, 1, 0, 1], n // 4)
    return z, {
        "NegativeBinomial": lambda: rng.negative_binomial(3, 0.4, n) + 9.0 * z,
        "Bernoulli": lambda: (rng.uniform(size=n) < 0.1 + 0.8 * z).astype(float),
        "Gamma": lambda: rng.gamma(2 + 6 * z, 1.0),
        "StudentT": lambda: rng.standard_t(3, n) + 6.0 * z,
        "NormalMixture": lambda: rng.normal(6.0 * z, 1.0) + rng.choice([-1.5, 1.5], n),
        "DiscretisedNormal": lambda: np.round(2 * rng.normal(4.0 * z, 1.0)) / 2,
        "LogNormal": lambda: np.exp(rng.normal(2.0 * z, 0.5)),
    }[name]()


@pytest.fixture(scope="module", params=LAWS)
def learned(request):
    emission, law = LAWS[request.param]
    z, x = two_regimes(request.param)
    x = [np.where(np.arange(70) == 11, np.nan, x[:70]), x[70:]]
    model = pg.HMM(states=2, emission=emission).fit(x, seed=0, restarts=1, max_iter=25, tol=1e-6)
    return (
        request.param,
        model,
        x,
        z,
        lambda part: np.where(np.isnan(part)[:, None], 0.0, law(natural_of(model), np.nan_to_num(part, nan=1.0))),
    )


def test_every_emission_is_all_paths(learned):
    _, model, x, _, table = learned
    short = [x[0][6:15], x[1][:3]]
    found = model.posterior(short, pairs=True)
    for i, part in enumerate(short):
        every = oracle(model, table(part))
        assert model.log_prob(short).nats[i] == pytest.approx(every.nats, rel=1e-9)
        np.testing.assert_allclose(found.marginals[i], every.marginals(), atol=1e-9)
        np.testing.assert_allclose(found.pairs[i], every.pairs(), atol=1e-9)


def test_every_emission_learns_its_regimes(learned):
    name, model, x, z, _ = learned
    climbed = np.array(model.report.objective)
    assert (np.diff(climbed) >= -1e-9 * abs(climbed[1:])).all()
    path = np.concatenate(model.decode(x))
    assert max((path == z).mean(), (path != z).mean()) > (0.8 if name == "Bernoulli" else 0.9)


def test_every_emission_enumerates_in_pyro_and_is_one_site(learned):
    name, model, x, _, _ = learned
    short = [x[0][12:21] if name == "NormalMixture" else x[0][6:15], x[1][:3]]  # a mixture can't mask one cell
    checked = model.event.check(short).x
    with pyro.validation_enabled(False):
        elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(model.model, lambda *a: None, checked)
    assert elbo == pytest.approx(model.log_prob(short).nats.sum(), rel=1e-9)
    site = model.distribution(9).log_prob(cells(short[0])[:, None])
    assert site.item() == pytest.approx(model.log_prob(short).nats[0], rel=1e-10)


def test_every_emission_forecasts_what_remains(learned):
    name, model, x, _, table = learned
    past, future = [x[0][:5]], [x[0][5:8]]
    f = model.forecast(past, 3)
    wanted = model.log_prob([x[0][:8]]).nats - model.log_prob(past).nats
    np.testing.assert_allclose(f.log_prob(future).nats, wanted, rtol=1e-9)
    step = {"DiscretisedNormal": 0.5, "NegativeBinomial": 1.0, "Bernoulli": 1.0}.get(name)
    for q in (0.05, 0.5, 0.95):
        value = f.quantile(q)[0, 1, 0]
        if step:
            grid = step * np.arange(-40, 200)
            kept = grid[grid >= 0] if step == 1.0 else grid
            kept = kept[:2] if name == "Bernoulli" else kept
            mass = np.cumsum(np.exp(table(kept)) @ f.states[0, 1])
            assert value == kept[np.argmax(mass >= q)]
        else:
            low = -60 if name in ("StudentT", "NormalMixture") else 0
            law = [lambda v, k=k: np.exp(table(np.array([v]))[0, k]) for k in range(2)]
            mass = f.states[0, 1] @ [integrate.quad(density, low, value)[0] for density in law]
            assert mass == pytest.approx(q, abs=2e-4 if name == "StudentT" else 1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
@pytest.mark.parametrize(
    "emission",
    [em.Gamma(), em.StudentT(), em.NormalMixture(1, 2), em.Autoregressive(), em.Autoregressive(1, 2, "full")],
    ids=repr,
)
def test_units_do_not_matter_to_any_density(emission, scale):
    x = two_regimes("Gamma")[1]
    a, b = (
        pg.HMM(states=2, emission=emission).fit(part, seed=0, restarts=1, max_iter=8, tol=0.0)
        for part in (x, x * scale)
    )
    shifted = b.log_prob(x * scale).nats[0] + len(x) * math.log(scale)
    assert shifted == pytest.approx(a.log_prob(x).nats[0], rel=1e-7)


def test_heavy_tails_have_quantiles_where_they_have_no_moments():
    _, x = two_regimes("StudentT")
    m = pg.HMM(states=2, emission=em.StudentT(1, df=1.0)).fit(x, seed=0, restarts=1, max_iter=10)
    f, p = m.forecast(x, 1), natural_of(m)
    mass = f.states[0, 0] @ stats.cauchy.cdf(f.quantile(0.9)[0, 0, 0], p["loc"][:, 0], p["scale"][:, 0])
    assert mass == pytest.approx(0.9, abs=1e-9)


# Regressions


CONTEXT = ev.Series((2,), missing=False)


def regression_scene(transitions=None):
    rng = np.random.default_rng(0)
    z = np.repeat([0, 1, 0, 1], 20)
    u = rng.normal(size=(80, 2))
    y = np.where(z, u @ [2.0, 0.0] + 3, u @ [0.0, -2.0]) + rng.normal(0, 0.4, 80)
    y[7] = np.nan
    model = pg.HMM(states=2, emission=em.LinearRegression(1, 2), transitions=transitions, context=CONTEXT)
    return model.fit([y], given=[u], seed=0, restarts=2), u, y, z


def regression_table(model, u, y):
    p = natural_of(model)
    mean = u @ p["coefficients"][:, 0].T + p["intercept"][:, 0]
    return np.where(np.isnan(y)[:, None], 0.0, stats.norm.logpdf(np.nan_to_num(y)[:, None], mean, p["scale"][:, 0]))


def test_regressions_on_inputs_are_all_paths():
    model, u, y, z = regression_scene()
    part = slice(3, 13)
    every = oracle(model, regression_table(model, u[part], y[part]))
    assert model.log_prob([y[part]], given=[u[part]]).nats[0] == pytest.approx(every.nats, rel=1e-11)
    np.testing.assert_allclose(model.posterior([y[part]], given=[u[part]]).marginals[0], every.marginals(), atol=1e-11)
    path = model.decode([y], given=[u])[0]
    assert max((path == z).mean(), (path != z).mean()) > 0.95
    order = np.argsort(natural_of(model)["intercept"].ravel())
    np.testing.assert_allclose(natural_of(model)["coefficients"][order, 0], [[0, -2], [2, 0]], atol=0.3)


def test_regressions_forecast_by_the_inputs_to_come():
    model, u, y, _ = regression_scene()
    f = model.forecast([y[:70]], 4, given=[u[:70]], future=u[70:74])
    wanted = model.log_prob([y[:74]], given=[u[:74]]).nats - model.log_prob([y[:70]], given=[u[:70]]).nats
    np.testing.assert_allclose(f.log_prob([y[70:74]]).nats, wanted, rtol=1e-10)
    p = natural_of(model)
    mean = u[70:74] @ p["coefficients"][:, 0].T + p["intercept"][:, 0]
    np.testing.assert_allclose(f.mean()[0, :, 0], (f.states[0] * mean).sum(1), rtol=1e-11)
    mass = (f.states[0] * stats.norm.cdf(f.quantile(0.8)[0], mean, p["scale"][:, 0])).sum(1)
    np.testing.assert_allclose(mass, 0.8, atol=1e-10)
    drawn = f.sample(4000, seed=0)[0, :, :, 0]
    spread = np.sqrt(f.variance()[0, :, 0] / 4000)
    assert (abs(drawn.mean(0) - f.mean()[0, :, 0]) < 5 * spread).all()
    assert (abs(drawn.mean(0) - f.mean()[0, ::-1, 0]) > 5 * spread).any()


def test_regressions_and_moves_share_the_inputs():
    model, u, y, _ = regression_scene(tr.InputDriven(2))
    part = slice(3, 12)
    first = model.transitions.log_initial().detach().numpy()
    every = Enumerated(first, switching_inputs(model.transitions, u[part]), regression_table(model, u[part], y[part]))
    assert model.log_prob([y[part]], given=[u[part]]).nats[0] == pytest.approx(every.nats, rel=1e-11)


def test_regressions_need_their_inputs():
    model, u, y, _ = regression_scene()
    with pytest.raises(ParameterError, match="without given"):
        model.log_prob([y])
    with pytest.raises(ShapeError):
        model.log_prob([y], given=[u[:-1]])
    with pytest.raises(DataError):
        model.log_prob([y], given=[np.where(np.arange(80)[:, None] == 3, np.nan, u)])
    with pytest.raises(ProbgenError):
        model.distribution(80).log_prob(cells(np.nan_to_num(y))[:, None])
    with pytest.raises(StructureError):
        pg.HMM(states=2, emission=em.LinearRegression(1, 2))
    with pytest.raises(StructureError):
        pg.HMM(states=2, emission=em.LinearRegression(1, 2), context=ev.Series((3,), missing=False))


# Autoregressions


def autoregression_scene():
    rng = np.random.default_rng(0)
    z = np.repeat([0, 1, 0, 1], 40)
    x = np.zeros(160)
    for t in range(2, 160):
        x[t] = rng.normal(1 + 0.8 * x[t - 1] if z[t] else -0.7 * x[t - 1] + 0.1 * x[t - 2], 0.5)
    parts = [x[:100], x[100:]]
    return pg.HMM(states=2, emission=em.Autoregressive(1, 2)).fit(parts, seed=0, restarts=2), parts, z


def autoregression_table(model, x):
    p = natural_of(model)
    out = stats.norm.logpdf(x[:, None], p["start_loc"][:, 0], p["start_scale"][:, 0])
    for t in range(2, len(x)):
        mean = p["intercept"][:, 0] + p["coefficients"][:, 0] @ [x[t - 1], x[t - 2]]
        out[t] = stats.norm.logpdf(x[t], mean, p["scale"][:, 0])
    return out


def test_autoregressions_are_all_paths():
    model, x, z = autoregression_scene()
    short = [x[0][35:45], x[1][:1], x[1][:4]]
    for i, part in enumerate(short):
        every = oracle(model, autoregression_table(model, part))
        assert model.log_prob(short).nats[i] == pytest.approx(every.nats, rel=1e-11)
        np.testing.assert_allclose(model.posterior(short).marginals[i], every.marginals(), atol=1e-11)
    path = np.concatenate(model.decode(x))
    assert max((path == z).mean(), (path != z).mean()) > 0.85


@pytest.mark.parametrize("seen", [1, 2, 9])
def test_autoregressions_forecast_from_the_last_steps(seen):
    model, x, _ = autoregression_scene()
    f = model.forecast([x[0][:seen]], 4)
    wanted = model.log_prob([x[0][: seen + 4]]).nats - model.log_prob([x[0][:seen]]).nats
    np.testing.assert_allclose(f.log_prob([x[0][seen : seen + 4]]).nats, wanted, rtol=1e-10)
    for ask in (f.mean, f.variance, lambda: f.quantile(0.5), lambda: f.log_prob_steps([x[0][seen : seen + 4]])):
        with pytest.raises(StructureError, match="autoregressive"):
            ask()
    drawn = f.sample(4000, seed=0)[0, :, 0, 0]
    p = natural_of(model)
    if seen > 1:
        mean = p["intercept"][:, 0] + p["coefficients"][:, 0] @ x[0][seen - 2 : seen][::-1]
        assert drawn.mean() == pytest.approx(f.states[0, 0] @ mean, abs=5 * drawn.std() / 60)


def test_autoregressions_refuse_gaps_wherever_they_come_in():
    """A gap would be read as the start of a sequence."""
    model, x, _ = autoregression_scene()
    gap = x[0][:8].copy()
    gap[5] = np.nan
    asked = [
        model.log_prob,
        model.decode,
        model.forecast,
        model.bayes_model,
        lambda v: model.forecast([x[0]], 8).log_prob(v),
    ]
    for ask in asked:
        with pytest.raises(DataError, match="step 5"):
            ask([gap])
    with pytest.raises(ProbgenError):
        model.distribution(8).log_prob(cells(gap)[:, None])


def test_autoregressions_keep_to_the_scale_of_their_data():
    """The start has a prior, and the residuals a floor, in the data's units."""
    x = 1e6 * autoregression_scene()[1][0]
    m = pg.HMM(states=2, emission=em.Autoregressive(1, 2)).fit(x, seed=0, restarts=1, max_iter=5)
    for part in (m.emission.of, m.emission.start):
        assert part.data_variance.item() == pytest.approx(x.var(), rel=1e-9)


# Programs


def test_any_distribution_of_pyro_emits():
    class Laplace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(cells([-1.0, 1.0]))
            self.log_scale = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, given=None):
            return dist.Laplace(self.loc, self.log_scale.exp())

    z, x = two_regimes("StudentT")
    model = pg.HMM(ev.Series(), 2, em.Program(Laplace())).fit(x, seed=0, restarts=1, max_iter=15)
    climbed = np.array(model.report.objective)
    assert climbed[-1] > climbed[0] + 0.03
    inner = dict(model.emission.named_parameters())
    loc, scale = (next(v for n, v in inner.items() if n.endswith(end)).detach().numpy() for end in ("loc", "log_scale"))
    every = oracle(model, stats.laplace.logpdf(x[:9, None], loc, np.exp(scale)))
    assert model.log_prob([x[:9]]).nats[0] == pytest.approx(every.nats, rel=1e-10)
    path = model.decode(x)[0]
    assert max((path == z).mean(), (path != z).mean()) > 0.9
