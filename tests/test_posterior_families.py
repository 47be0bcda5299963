"""Bayesian fits of the families: against closed forms, their Pyro programs, and after a round through the store."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

import probgen as pg
from probgen import emissions, store
from probgen.errors import DataError, NotFittedError, ParameterError, StructureError
from probgen.events import Array, Category, Series, Table
from probgen.logprob import Kind
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.hmm import HMM
from probgen.models.hmm import bayes as hmm_bayes
from probgen.models.mixture import Mixture
from probgen.models.mixture import bayes as mixture_bayes
from probgen.models.regression import Regression
from probgen.models.statespace import StateSpace
from probgen.models.statespace import bayes as statespace_bayes

pytestmark = pytest.mark.filterwarnings("ignore::probgen.posterior.fitting.ConvergenceWarning")

RNG = np.random.default_rng(0)
ROWS = np.concatenate([RNG.normal(-3, 0.5, 20), RNG.normal(2, 1, 30)])[:, None]
SERIES = [RNG.normal(size=9).cumsum() for _ in range(3)]
TINY = {"draws": 12, "chains": 2, "warmup": 12}
_made = {}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(method="laplace"):
    return Mixture(Array((1,)), 2, emissions.Normal(1)).fit(ROWS, method=method, seed=1, **TINY)


def hmm(method="laplace"):
    return HMM(Series(), 2, emissions.Normal(1)).fit(SERIES, method=method, seed=1, restarts=1, max_iter=20, **TINY)


def statespace(method="laplace"):
    return StateSpace(Series(), structure="level").fit(SERIES, method=method, seed=1, restarts=1, max_iter=30, **TINY)


FAMILIES = {"mixture": (mixture, ROWS), "hmm": (hmm, SERIES), "statespace": (statespace, SERIES)}


def fitted(name, method="laplace"):
    if (name, method) not in _made:
        _made[name, method] = FAMILIES[name][0](method)
    return _made[name, method]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bayesian_fit_scores_by_its_draws_and_says_so(name):
    m, x = fitted(name), FAMILIES[name][1]
    assert m.draws.method == "laplace"
    assert (m.draws.chains, m.draws.draws) == (2, 12)
    assert all(value.shape[:2] == (2, 12) for value in m.draws.values.values())
    lp = m.log_prob(x)
    assert lp.kind is Kind.ESTIMATE
    assert lp.target == "E_q[p(x_i | theta)]"
    table = m._log_lik_draws(m._check(x).x, None, generator())
    assert table.shape == (24, len(x))
    np.testing.assert_allclose(lp.nats, table.logsumexp(0) - math.log(24), rtol=1e-12)
    assert len(set(lp.draws.tolist())) == 1
    assert any("approximate" in note for note in m.report.notes)
    assert m._log_prior_draws().shape == (24,)


@pytest.mark.parametrize("name", FAMILIES)
def test_log_joint_prior_and_guide_of_each_draw_fit_together(name):
    m, x = fitted(name), FAMILIES[name][1]
    family = {"mixture": mixture_bayes, "hmm": hmm_bayes, "statespace": statespace_bayes}[name].parametric(m)
    z = m.kept.z()
    volume = family.coordinates.unpack(z)[1]
    total = m._log_lik_draws(m._check(x).x, None, generator()).sum(1) + m._log_prior_draws() + volume
    torch.testing.assert_close(m.draws.stats["lp"].flatten(), total)
    assert torch.equal(m.draws.log_p, m.draws.stats["lp"])
    assert m.draws.log_q.isfinite().all()


@pytest.mark.parametrize("name", ["mixture", "hmm"])
def test_the_density_of_a_draw_is_that_of_the_pyro_program(name):
    m, x = fitted(name), FAMILIES[name][1]
    family = {"mixture": mixture_bayes, "hmm": hmm_bayes}[name].parametric(m)
    one = next(family.thetas(m.kept.z()))
    trace = poutine.trace(poutine.condition(m.bayes_model, one)).get_trace(x)
    volume = family.coordinates.unpack(m.kept.z()[:1])[1]
    assert float(trace.log_prob_sum()) == pytest.approx(float(m.draws.stats["lp"][0, 0] - volume), rel=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_survive_the_store_and_a_point_fit_forgets_them(name, tmp_path):
    m, x = fitted(name), FAMILIES[name][1]
    again = store.load(store.save(m, tmp_path / "m"))
    np.testing.assert_array_equal(again.log_prob(x).nats, m.log_prob(x).nats)
    for key, value in m.draws.values.items():
        assert torch.equal(again.draws.values[key], value)
    assert torch.equal(again.draws.log_q, m.draws.log_q)
    plain = again.fit(x, seed=1, restarts=1, max_iter=5)
    assert plain.draws is None
    assert plain.log_prob(x).kind is Kind.EXACT
    with pytest.raises(NotFittedError, match="nuts"):
        plain._log_prior_draws()


@pytest.mark.parametrize("name", FAMILIES)
def test_prior_and_posterior_predictive_draws_have_the_form_of_the_data(name):
    m = fitted(name)
    a, b = m.sample(5, seed=1), m.sample(5, seed=1)
    assert len(a) == 5
    np.testing.assert_array_equal(np.asarray(a[0]), np.asarray(b[0]))
    prior = m._sample_prior(4, None, generator())
    assert len(prior) == 4
    values = prior.values if name != "mixture" else prior
    assert values.isfinite().all()


@pytest.mark.parametrize("name", ["hmm", "statespace"])
def test_scores_of_steps_add_up_to_those_of_sequences(name):
    m = fitted(name)
    steps = m.log_prob_steps(SERIES)
    totals = np.add.reduceat(steps.nats, [0, 9, 18])
    np.testing.assert_allclose(totals, m.log_prob(SERIES).nats, rtol=1e-9)
    assert steps.target == "E_q[p(x_t | x_<t, theta)]"


def test_parameters_in_place_are_the_mode():
    m = fitted("mixture")
    family = mixture_bayes.parametric(m)
    joint = family.log_joint(m._check(ROWS).x, None)
    weights = m.weights().detach()
    start = {"weights": weights, **{n: m.get_parameter(n).detach() for n in family.coordinates.sites if n != "weights"}}
    here = float(joint(family.coordinates.pack({n: v[None] for n, v in start.items()})[0]))
    assert here > float(m.draws.stats["lp"].max())


def test_nuts_of_a_mixture_keeps_what_its_sampler_said(tmp_path):
    m = fitted("mixture", "nuts")
    assert set(m.draws.stats) == {
        "lp", "energy", "acceptance_rate", "step_size", "tree_depth", "n_steps", "diverging"
    }  # fmt: skip
    assert m.draws.stats["diverging"].dtype == torch.bool
    assert m.draws.log_p is None
    assert m.log_prob(ROWS).target == "p(x_i | D)"
    assert "labels may change places" in m.report.notes[-1]
    again = store.load(store.save(m, tmp_path / "m"))
    assert torch.equal(again.draws.stats["tree_depth"], m.draws.stats["tree_depth"])
    twin = mixture("nuts")
    assert torch.equal(twin.kept.numbers, m.kept.numbers)


def test_what_is_watched_does_not_depend_on_labels():
    from probgen.posterior.parametric import watched

    m = fitted("hmm")
    family = hmm_bayes.parametric(m)
    swapped = {
        "initial": m.draws.values["initial"].flip(2), "transition": m.draws.values["transition"].flip(2, 3),
        "loc": m.draws.values["loc"].flip(2), "scale": m.draws.values["scale"].flip(2),
    }  # fmt: skip
    a, b = watched(family, m.draws.values)[0], watched(family, swapped)[0]
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(swapped["loc"], m.draws.values["loc"])


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_options_are_named_and_leave_the_model_as_it_was(name):
    m, x = fitted(name), FAMILIES[name][1]
    before = {key: value.clone() for key, value in m.state_dict().items()}
    for options, text in (
        ({"method": "nutz"}, "nuts"), ({"method": "nuts", "draws": 0}, "draws=0"),
        ({"method": "svi", "chains": 0}, "chains=0"), ({"method": "nuts", "warmup": 0}, "warmup=0"),
    ):  # fmt: skip
        with pytest.raises(ParameterError, match=text):
            m.fit(x, **options)
    assert all(torch.equal(before[key], value) for key, value in m.state_dict().items())


def test_an_emission_without_priors_is_refused():
    model = Mixture(Array((1,)), 2, emissions.Histogram(1))
    with pytest.raises(StructureError, match="priors"):
        model.fit(ROWS, method="nuts", seed=0, **TINY)


# Networks of tables


def coins(rng, n, shares):
    a = (rng.random(n) < shares["a"]).astype(int)
    return {"a": a, "b": (rng.random(n) < np.where(a == 1, shares["b1"], shares["b0"])).astype(int)}


def network():
    return BayesianNetwork(Table({"a": Category((0, 1)), "b": Category((0, 1))}), [("a", "b")])


DATA = coins(np.random.default_rng(5), 40, {"a": 0.3, "b0": 0.2, "b1": 0.9})


def test_conjugate_draws_have_the_dirichlet_s_moments_and_predict_exactly():
    net = network().fit(DATA, method="nuts", prior="dirichlet", strength=1.5, draws=500, chains=2, seed=3)
    assert net.draws.method == "conjugate"
    assert any("in place of nuts" in note for note in net.report.notes)
    for name in ("a", "b"):
        alpha = net.table_posterior(name)
        mean = alpha / alpha.sum(-1, keepdim=True)
        sd = (mean * (1 - mean) / (alpha.sum(-1, keepdim=True) + 1)).sqrt()
        draws = net.draws.values[name].flatten(0, 1)
        assert ((draws.mean(0) - mean).abs() < 5 * sd / math.sqrt(1000)).all()
        assert (draws.std(0) / sd).log().abs().max() < 0.13
        plain = net.conditional(name).counts / net.conditional(name).counts.sum(-1, keepdim=True)
        assert ((draws.mean(0) - plain).abs() > 5 * sd / math.sqrt(1000)).any()  # a prior that was left out
    lp = net.log_prob(DATA)
    assert (lp.kind, lp.target) == (Kind.EXACT, "p(x_i | D)")
    table = net._log_lik_draws(net._check(DATA).x, None, generator())
    w = table.exp()
    assert (abs(w.mean(0) - torch.from_numpy(np.exp(lp.nats))) < 5 * w.std(0) / math.sqrt(1000)).all()


def test_log_joint_of_conjugate_draws_is_likelihood_times_prior(tmp_path):
    net = network().fit(DATA, method="conjugate", prior="k2", draws=20, chains=1, seed=3)
    total = net._log_lik_draws(net._check(DATA).x, None, generator()).sum(1) + net._log_prior_draws()
    torch.testing.assert_close(net.draws.stats["lp"][0], total)
    again = store.load(store.save(net, tmp_path / "n"))
    assert torch.equal(again.draws.values["b"], net.draws.values["b"])
    assert net.fit(DATA, prior="k2").draws is None


def test_a_table_used_twice_a_row_is_averaged_over_the_draws():
    event = Table({name: Category((0, 1)) for name in ("a", "b")})
    few = {name: column[:6] for name, column in DATA.items()}
    net = BayesianNetwork(event, tie={"b": "a"}).fit(few, method="conjugate", prior="k2", draws=700, chains=2, seed=0)
    alpha = net.table_posterior("a")
    total = alpha.sum()
    exact = torch.log(alpha[1] * (alpha[1] + 1) / (total * (total + 1)))
    lp = net.log_prob({"a": [1], "b": [1]})
    assert lp.kind is Kind.ESTIMATE
    assert abs(lp.nats[0] - float(exact)) < 5 * lp.stderr[0]
    assert abs(lp.nats[0] - 2 * math.log(alpha[1] / total)) > 5 * lp.stderr[0]  # what the mean table would say


def test_networks_without_a_closed_posterior_are_refused():
    gaps = {"a": [0, 1, None], "b": [0, 1, 1]}
    with pytest.raises(DataError, match="missing"):
        network().fit(gaps, method="conjugate", prior="k2")
    with pytest.raises(ParameterError, match="prior"):
        network().fit(DATA, method="conjugate")
    mixed = BayesianNetwork(Table({"a": Category((0, 1)), "y": pg.events.Real()}), [("a", "y")])
    with pytest.raises(StructureError, match="'y'"):
        mixed.fit({"a": DATA["a"], "y": np.random.default_rng(0).normal(size=40)}, method="nuts", prior="k2")


@pytest.mark.parametrize("prior", ["k2", "none of the data's own"])
def test_ranks_of_true_tables_among_conjugate_draws_are_uniform(prior):
    """Simulation-based calibration; the twin simulates from another prior than the fit has."""
    rng, found = np.random.default_rng(8), []
    for _ in range(120):
        share = rng.beta(1, 1) if prior == "k2" else rng.beta(1, 6)
        data = coins(rng, 3, {"a": share, "b0": 0.5, "b1": 0.5})
        net = network().fit(data, method="conjugate", prior="k2", draws=15, chains=1, seed=int(rng.integers(2**31)))
        found.append(int((net.draws.values["a"][0, :, 1] < share).sum()))
    p = stats.chisquare(np.bincount(np.array(found) // 4, minlength=4)).pvalue
    assert (p > 1e-6) == (prior == "k2")


# Regressions

X = np.random.default_rng(2).normal(size=(25, 1))
Y = 1 + 2 * X[:, 0] + 0.5 * np.random.default_rng(3).normal(size=25)


def regression(method, **options):
    return Regression(Array(()), Array((1,))).fit(Y, given=X, seed=1, method=method, **options)


def test_conjugate_regression_s_draws_predict_what_its_t_distribution_does():
    m = regression("conjugate", draws=2000, chains=2)
    lp = m.log_prob(Y, given=X)
    assert (lp.kind, lp.target) == (Kind.EXACT, "p(x_i | D)")
    w = m._log_lik_draws(torch.from_numpy(Y), torch.from_numpy(X), generator()).exp()
    assert (abs(w.mean(0) - torch.from_numpy(np.exp(lp.nats))) < 5 * w.std(0) / math.sqrt(4000)).all()
    assert set(m.draws.values) == {"intercept", "x0", "log_scale"}
    total = w.log().sum(1) + m._log_prior_draws()
    torch.testing.assert_close(m.draws.stats["lp"].flatten(), total)
    wrong = m._log_lik_draws(torch.from_numpy(Y), torch.from_numpy(X * 1.2), generator()).exp()
    assert not (abs(wrong.mean(0) - torch.from_numpy(np.exp(lp.nats))) < 5 * wrong.std(0) / math.sqrt(4000)).all()


def test_a_regression_s_nuts_svi_and_laplace_agree_where_the_posterior_is_nearly_normal(tmp_path):
    found = {method: regression(method, draws=150, chains=2, warmup=100) for method in ("nuts", "svi", "laplace")}
    slopes = {method: m.draws.values["x0"] for method, m in found.items()}
    for method, m in found.items():
        assert abs(float(slopes[method].mean() - slopes["nuts"].mean())) < 0.5 * float(slopes["nuts"].std())
        table = m._log_lik_draws(torch.from_numpy(Y), torch.from_numpy(X), generator())
        torch.testing.assert_close(m.draws.stats["lp"].flatten(), table.sum(1) + m._log_prior_draws())
        assert (m.draws.log_q is None) == (method == "nuts")
        assert m._sample_prior(3, torch.from_numpy(X[:2]), generator()).shape == (2, 3)
        again = store.load(store.save(m, tmp_path / method))
        assert torch.equal(again.draws.values["x0"], slopes[method])
    assert found["nuts"].log_prob(Y, given=X).target == "p(x_i | D)"
    assert found["svi"].log_prob(Y, given=X).target == "E_q[p(x_i | theta)]"


# Programs

EFFECTS, ERRORS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def schools(y, sigma):
    """Rubin (1981); non-centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=y)


def marginal_schools():
    """Posterior means of mu and tau by quadrature, the schools integrated out."""
    mu, tau = np.meshgrid(np.linspace(-15, 25, 401), np.linspace(0.01, 60, 1200), indexing="ij")
    logs = stats.norm(0, 5).logpdf(mu) + stats.halfcauchy(0, 5).logpdf(tau)
    for y, s in zip(EFFECTS, ERRORS, strict=True):
        logs = logs + stats.norm(mu, np.sqrt(tau**2 + s**2)).logpdf(y)
    w = np.exp(logs - logs.max())
    return (w * mu).sum() / w.sum(), (w * tau).sum() / w.sum()


def test_eight_schools_by_nuts_have_the_means_that_quadrature_finds():
    m = pg.wrap(schools, event=Array(()), given="sigma", context=Array((), "positive"), dtype=torch.float64)
    m.fit(np.array(EFFECTS), given=np.array(ERRORS), method="nuts", draws=120, warmup=100, chains=2, seed=1)
    draws = m.draws
    assert set(draws.values) == {"mu", "tau", "eta"}
    assert draws.values["eta"].shape == (2, 120, 8)
    errors = {name: draws.values[name].std() / draws.ess()[name].sqrt() for name in ("mu", "tau")}
    truth = dict(zip(("mu", "tau"), marginal_schools(), strict=True))
    for name in ("mu", "tau"):
        assert abs(float(draws.values[name].mean()) - truth[name]) < 5 * float(errors[name])
    pooled = np.average(EFFECTS, weights=1 / np.square(ERRORS))  # no hierarchy, no prior
    assert abs(float(draws.values["mu"].mean()) - pooled) > 5 * float(errors["mu"])
    table = m._log_lik_draws(torch.tensor(EFFECTS).double(), torch.tensor(ERRORS).double(), generator(0))
    assert table.shape == (240, 8)
    some = slice(0, 240, 8)
    mu, tau = (draws.values[name].flatten()[some, None].numpy() for name in ("mu", "tau"))
    exact = stats.norm(mu, np.sqrt(tau**2 + np.square(ERRORS))).logpdf(EFFECTS)
    assert np.abs(table[some].numpy() - exact).mean() < 0.15  # sixteen draws of each school's own
    prior = stats.norm(0, 5).logpdf(mu) + stats.halfcauchy(0, 5).logpdf(tau)
    np.testing.assert_allclose(m._log_prior_draws()[some], prior[:, 0], rtol=1e-6)


def normals(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=x)


@pytest.mark.parametrize("method", ["nuts", "laplace", pytest.param("svi", marks=pytest.mark.long)])
def test_a_normal_mean_is_predicted_as_in_closed_form(method):
    x = np.array([0.5, 1.5, 2.0, -0.2])
    options = {"steps": 400} if method == "svi" else {"draws": 400, "warmup": 100, "chains": 2}
    m = pg.wrap(normals, event=Array(()), dtype=torch.float64).fit(x, method=method, seed=2, **options)
    variance = 1 / (1 / 4 + 4)
    mean = variance * x.sum()
    draws = m.draws.values["mu"]
    slack = 0.1 * math.sqrt(variance) if method == "svi" else 0.0
    assert abs(float(draws.mean()) - mean) < 5 * math.sqrt(variance / float(m.draws.ess()["mu"])) + slack
    assert abs(math.log(float(draws.std()) / math.sqrt(variance))) < 0.25
    lp = m.log_prob(x, seed=0)
    truth = stats.norm(mean, math.sqrt(1 + variance)).logpdf(x)
    assert (abs(lp.nats - truth) < 6 * lp.stderr + 0.03).all()
    assert not (abs(stats.norm(mean, 1).logpdf(x) - truth) < 6 * lp.stderr + 0.003).all()  # the plug-in density
    assert lp.target == ("p(x_i | D)" if method == "nuts" else "E_q[p(x_i | theta)]")
    assert m._sample_prior(5, None, generator()).shape == (5,)
    if method != "nuts":
        ratio = m.draws.log_p - m.draws.log_q
        assert float(ratio.std()) < (0.5 if method == "svi" else 0.05)
