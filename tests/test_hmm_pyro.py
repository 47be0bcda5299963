"""Hidden Markov models in Pyro: as programs, as one site, under priors, and as DiscreteHMM and back."""

import copy
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated import (
    ALPHA,
    MODELS,
    D,
    Enumerated,
    cells,
    cooled,
    counts_model,
    fails,
    fitted,
    gaps,
    points_model,
    symbols_model,
)
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import special, stats

import probgen as pg
from probgen import emissions as em
from probgen import events as ev
from probgen import foreign
from probgen import transitions as tr
from probgen.errors import (
    ParameterError,
    ProbgenError,
    ShapeError,
    StructureError,
    SupportError,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def quakes():
    return pg.datasets.load("earthquakes").x


# Pyro


def enumerated_elbo(model, x, given=None):
    with pyro.validation_enabled(False):
        checked = model.event.check(x).x
        u = None if given is None else model.context.check(given).x
        return -TraceEnum_ELBO(max_plate_nesting=1).loss(model.model, lambda *a: None, checked, u)


@pytest.mark.parametrize("kind", ["counts", "symbols"])
@pytest.mark.parametrize(
    "transitions", [tr.Markov(allowed=tr.cyclic(3)), tr.Durations(phases=2), tr.Markov("stationary")], ids=repr
)
def test_the_pyro_program_enumerated_is_the_likelihood(kind, transitions):
    model = MODELS[kind][0](transitions)
    x = [gaps(model.sample(1, length=n, seed=n)[0].astype(float), 0.2, n) for n in (6, 1, 3)]
    assert enumerated_elbo(model, x) == pytest.approx(model.log_prob(x).nats.sum().item(), rel=1e-10)


def test_the_pyro_program_of_a_full_covariance_is_the_likelihood():
    model = points_model()
    x = [model.sample(1, length=n, seed=n)[0] for n in (5, 2)]
    assert enumerated_elbo(model, x) == pytest.approx(model.log_prob(x).nats.sum().item(), rel=1e-10)


def test_the_pyro_program_follows_inputs():
    model = pg.HMM(
        states=2, emission=em.Poisson(), transitions=tr.InputDriven(2), context=ev.Series((2,), missing=False)
    )
    fitted(model).emission.log_rate.data = cells(np.log([[2.0], [9.0]]))
    rng = np.random.default_rng(0)
    x, u = [rng.poisson(4.0, n) for n in (5, 3)], [rng.normal(size=(n, 2)) for n in (5, 3)]
    assert enumerated_elbo(model, x, u) == pytest.approx(model.log_prob(x, given=u).nats.sum().item(), rel=1e-10)


def test_as_one_site_it_scores_as_the_model_does():
    model = counts_model()
    x = cells(np.stack(model.sample(4, length=6, seed=0)))
    wanted = model.log_prob(x.numpy()).nats

    def program(shift):
        with pyro.plate("rows", 4):
            extra = pyro.sample("extra", dist.Normal(shift, 1.0))
            pyro.sample("x", model.distribution(6), obs=x)
        return extra

    trace = poutine.trace(poutine.condition(program, {"extra": torch.zeros(4, dtype=D)})).get_trace(cells(0.5))
    trace.compute_log_prob()
    np.testing.assert_allclose(trace.nodes["x"]["log_prob"].detach(), wanted, rtol=1e-12)
    site = model.distribution(6)
    assert site.event_shape == (6, 2)
    assert site.sample((3,)).shape == (3, 6, 2)
    assert site.expand((5,)).sample().shape == (5, 6, 2)
    assert site.expand((4,)).log_prob(x).shape == (4,)
    np.testing.assert_allclose(site.log_prob(x[:, None]).detach()[:, 0], wanted, rtol=1e-12)


def test_as_one_site_it_is_differentiable():
    model = counts_model()
    x = cells(model.sample(1, length=6, seed=0)[0])
    model.distribution(6).log_prob(x).backward()
    for p in (model.emission.log_rate, model.transitions.logits, model.transitions.initial_logits):
        place = (0,) * p.ndim
        raw = p.data[place].item()
        values = []
        for step in (1e-5, -1e-5):
            p.data[place] = raw + step
            values.append(model.log_prob([x.numpy()]).nats[0].item())
        p.data[place] = raw
        assert p.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


def test_as_one_site_it_draws_from_itself():
    model = symbols_model()
    grid = cells(list(itertools.product(range(3), repeat=3)))[..., None]
    site = model.distribution(3)
    share = site.log_prob(grid).exp().detach().numpy()
    pyro.set_rng_seed(0)
    drawn = site.sample((20000,))[..., 0].numpy().astype(int)
    observed = np.bincount(drawn @ [9, 3, 1], minlength=27)
    assert fails(observed, share) > ALPHA
    assert fails(observed, cooled(share)) < ALPHA


def test_as_one_site_it_takes_its_inputs_and_refuses_others():
    model = pg.HMM(
        states=2, emission=em.Poisson(), transitions=tr.InputDriven(1), context=ev.Series((1,), missing=False)
    )
    fitted(model).emission.log_rate.data = cells(np.log([[2.0], [9.0]]))
    u = np.random.default_rng(0).normal(size=(5, 1))
    x = np.array([1.0, 8.0, 9.0, 2.0, 1.0])
    nats = model.distribution(5, given=[u]).log_prob(cells(x)[:, None]).item()
    assert nats == pytest.approx(model.log_prob([x], given=[u]).nats[0].item(), rel=1e-12)
    for given in (None, [u[:3]], [u[:2], u[2:]]):
        with pytest.raises(ProbgenError):
            model.distribution(5, given=given).log_prob(cells(x)[:, None])


def test_as_one_site_it_knows_what_it_can_hold():
    """A pair of symbols with their own levels, and columns of several types."""
    model = fitted(pg.HMM(ev.Series((2,), levels=(2, 3)), 2))
    site = model.distribution(2)
    good = cells([[1, 2], [0, 0]])
    assert site.support.check(good)
    nats = site.log_prob(good).item()
    assert nats == pytest.approx(model.log_prob([good.numpy()]).nats[0].item(), rel=1e-12)
    for bad in ([[2, 2], [0, 0]], [[1, 0.5], [0, 0]], [[1, -1], [0, 0]]):
        assert not site.support.check(cells(bad))
        with pytest.raises(SupportError, match="Step 0"):
            site.log_prob(cells(bad))
    for shape in ((2,), (2, 3), (3, 2), (4, 2, 1)):
        with pytest.raises(ShapeError):
            site.log_prob(torch.zeros(shape, dtype=D))
    columns = {"a": ev.Real(), "b": ev.Count(), "c": ev.Category(("x", "y"))}
    mixed = fitted(pg.HMM(ev.Panel(columns), 2)).distribution(1)
    assert mixed.support.check(cells([[-0.5, 3, 1]]))
    assert mixed.log_prob(cells([[np.nan, 3, 1]])).isfinite()
    for bad in ([[0.0, 0.5, 1]], [[0.0, 3, 2]], [[np.inf, 3, 1]]):
        assert np.isinf(bad).any() or not mixed.support.check(cells(bad))
        with pytest.raises(SupportError):
            mixed.log_prob(cells(bad))
    whole = fitted(pg.HMM(ev.Series(missing=False), 2)).distribution(2)
    with pytest.raises(SupportError):
        whole.log_prob(cells([[0.0], [np.nan]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_without_a_probability_are_refused(bad):
    first, moves, _, x = raw_chain()
    law = dist.Normal(cells([0.0, 1.0, -1.0]), 0.7)
    empty, spoiled = first.clone(), moves.clone()
    empty[:], spoiled[1] = bad, bad
    for initial, transition in ((empty, moves), (first, spoiled)):
        with pytest.raises(ParameterError, match="-inf alone"):
            pg.HiddenMarkov(initial, transition, law, 5)
    model = counts_model()
    if math.isnan(bad):
        model.transitions.logits.data[0] = bad
        with pytest.raises(ParameterError):
            model.distribution(3)
    x = x.clone()
    x[2] = math.nan
    with pytest.raises(SupportError, match="Step 2"):
        pg.HiddenMarkov(first, moves, law, 5).log_prob(x)
    symbols = pg.HiddenMarkov(first, moves, dist.Categorical(logits=torch.zeros(3, 2, dtype=D)), 5)
    assert symbols.log_prob(cells([0, 1, 1, 0, 1])).isfinite()
    for value in (cells([0, 1, 2, 0, 1]), cells([0, 1, 0.5, 0, 1])):
        with pytest.raises(SupportError, match="Step 2"):
            symbols.log_prob(value)


@pytest.mark.parametrize("duration", [0, -1, 2.5, True, None])
def test_a_site_lasts_a_whole_number_of_steps(duration):
    with pytest.raises(ParameterError):
        counts_model().distribution(duration)


def raw_chain(states=3, steps=5, seed=0):
    rng = np.random.default_rng(seed)
    return (cells(rng.normal(size=states)), cells(rng.normal(size=(states, states))),
            cells(rng.normal(size=(steps, states, states))), cells(rng.normal(size=steps)))  # fmt: skip


@pytest.mark.parametrize("varying", [False, True])
def test_hidden_markov_is_all_paths_of_any_observation(varying):
    first, fixed, moving, x = raw_chain()
    moves = moving if varying else fixed
    loc = cells([0.0, 1.0, -1.0]) + (cells(np.arange(5.0))[:, None] if varying else 0.0)
    d = pg.HiddenMarkov(first, moves, dist.Normal(loc, 0.7), 5)
    table = stats.norm.logpdf(x[:, None], np.broadcast_to(loc, (5, 3)), 0.7)
    logs = np.broadcast_to(special.log_softmax(moves.numpy(), axis=-1), (5, 3, 3))
    every = Enumerated(special.log_softmax(first.numpy()), logs, table)
    assert d.log_prob(x).item() == pytest.approx(every.nats, rel=1e-12)
    assert d.event_shape == (5,)
    assert d.sample((2, 3)).shape == (2, 3, 5)
    assert d.log_prob(x.expand(2, 4, 5)).shape == (2, 4)


def test_hidden_markov_takes_vectors_and_refuses_shapes_that_do_not_fit():
    first, moves, moving, _ = raw_chain()
    vectors = dist.Normal(torch.zeros(3, 2, dtype=D), 1.0).to_event(1)
    assert pg.HiddenMarkov(first, moves, vectors, 4).event_shape == (4, 2)
    bad = [(first[:2], moves, vectors, 4), (first, moves[:2], vectors, 4), (first, moving, vectors, 4),
           (first, moves, dist.Normal(torch.zeros(2, dtype=D), 1.0), 4), (first, moves, vectors, 0)]  # fmt: skip
    for arguments in bad:
        with pytest.raises(ShapeError):
            pg.HiddenMarkov(*arguments)


@pytest.mark.parametrize("kind", ["counts", "points"])
def test_pyros_discrete_hmm_scores_as_we_do_and_comes_back(kind):
    model = MODELS[kind][0](tr.Markov(allowed=tr.cyclic(3)))
    x = cells(model.sample(1, length=5, seed=0)[0])
    theirs = foreign.export(model, "pyro", duration=5)
    assert isinstance(theirs, dist.DiscreteHMM)
    wanted = model.log_prob([x.numpy()]).nats[0].item()
    assert theirs.log_prob(x).item() == pytest.approx(wanted, rel=1e-10)
    assert foreign.wrap(theirs).log_prob(x).item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("varying", [False, True])
def test_wrapping_takes_in_pyros_move_before_the_first_step(varying):
    first, fixed, moving, x = raw_chain()
    moves = moving if varying else fixed
    theirs = dist.DiscreteHMM(first, moves, dist.Normal(cells([0.0, 1.0, -1.0]), 0.7), duration=5)
    logs = np.broadcast_to(special.log_softmax(moves.numpy(), axis=-1), (5, 3, 3))
    table = np.vstack([np.zeros(3), stats.norm.logpdf(x[:, None], [0.0, 1.0, -1.0], 0.7)])
    every = Enumerated(special.log_softmax(first.numpy()), np.concatenate([logs[:1], logs]), table)
    assert theirs.log_prob(x).item() == pytest.approx(every.nats, rel=1e-10)
    assert foreign.wrap(theirs).log_prob(x).item() == pytest.approx(every.nats, rel=1e-10)


def test_conversion_refuses_what_has_no_counterpart():
    model = counts_model()
    for duration in (None, 0, 2.5, True):
        with pytest.raises(ParameterError):
            foreign.export(model, "pyro", duration=duration)
    driven = pg.HMM(
        states=2, emission=em.Poisson(), transitions=tr.InputDriven(1), context=ev.Series((1,), missing=False)
    )
    with pytest.raises(StructureError):
        foreign.export(fitted(driven), "pyro", duration=3)
    first, moves, _, _ = raw_chain()
    with pytest.raises(StructureError):
        foreign.wrap(dist.DiscreteHMM(first, moves, dist.Normal(torch.zeros(3, dtype=D), 1.0)))


@pytest.fixture
def clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


def test_the_bayesian_program_is_prior_times_likelihood(quakes):
    m = pg.HMM(states=2, emission=em.Poisson()).fit(quakes, seed=0, restarts=1)
    trace = poutine.trace(m.bayes_model).get_trace(quakes)
    trace.compute_log_prob()
    sites = {name: node for name, node in trace.nodes.items() if node["type"] == "sample" and not node["is_observed"]}
    assert set(sites) == {name for name, p in m.named_parameters() if p.requires_grad}
    other = copy.deepcopy(m)
    for name, node in sites.items():
        other.get_parameter(name).data = node["value"].detach()
    wanted = other.log_prob(quakes).nats.sum().item()
    assert trace.nodes["log_likelihood"]["log_prob_sum"].item() == pytest.approx(wanted, rel=1e-10)
    draws = {name: node["value"].detach()[None] for name, node in sites.items()}
    for name, value in m.natural_of(draws).items():
        np.testing.assert_allclose(value[0], other.parameters_by_name()[name], rtol=1e-10)


def test_svi_raises_the_bound(quakes, clean_store):
    m = pg.HMM(states=2, emission=em.Poisson()).fit(quakes, seed=0, restarts=1)
    guide = AutoNormal(m.bayes_model)
    svi = SVI(m.bayes_model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(quakes) for _ in range(60)]
    assert np.mean(losses[-15:]) < np.mean(losses[:15]) - 10


def test_nuts_stays_near_the_optimum(quakes, clean_store):
    m = pg.HMM(states=2, emission=em.Poisson()).fit(quakes, seed=0, restarts=1)
    started = {name: p.detach().clone().clamp(-3, 3) for name, p in m.named_parameters()}
    chain = MCMC(
        NUTS(m.bayes_model, max_tree_depth=4), num_samples=30, warmup_steps=30, disable_progbar=True,
        initial_params=started,
    )  # fmt: skip
    chain.run(quakes)
    rate = np.sort(m.natural_of(chain.get_samples())["rate"].numpy()[..., 0], 1).mean(0)
    np.testing.assert_allclose(rate, np.sort(m.parameters_by_name()["rate"].ravel()), atol=3.0)
