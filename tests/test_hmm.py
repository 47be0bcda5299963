"""Hidden Markov models: every query against enumerated paths and at the edge of arithmetic."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from enumerated import (
    ALPHA,
    MODELS,
    RAGGED,
    Enumerated,
    Segmented,
    cells,
    cooled,
    counts_model,
    counts_table,
    fails,
    fitted,
    log,
    oracle,
    points_model,
    points_table,
    probabilities,
    scene,
    scenes,
    segments,
    steps_of_two,
    switching_inputs,
    symbols_model,
)
from scipy import optimize, special, stats

import probgen as pg
from probgen import emissions as em
from probgen import events as ev
from probgen import transitions as tr
from probgen.chains import paths as path_room
from probgen.errors import (
    ParameterError,
    ShapeError,
    ZeroEvidenceError,
)
from probgen.models.hmm import hmm as room


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Queries


@scenes
@pytest.mark.parametrize("seed", [0, 1])
def test_likelihood_and_posteriors_are_those_of_all_paths(kind, structure, seed):
    model, x, wanted = scene(kind, structure, seed)
    found = model.posterior(x, pairs=True)
    for i, every in enumerate(wanted):
        assert model.log_prob(x).nats[i] == pytest.approx(every.nats, rel=1e-12, abs=1e-12)
        assert found.log_prob[i] == pytest.approx(every.nats, rel=1e-12, abs=1e-12)
        np.testing.assert_allclose(found.marginals[i], every.marginals(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.pairs[i], every.pairs(), rtol=0, atol=1e-12)
    assert model.log_prob(x).kind is pg.Kind.EXACT


@scenes
def test_decoding_finds_the_best_path_and_the_best_states(kind, structure):
    model, x, wanted = scene(kind, structure)
    for path, most, every in zip(model.decode(x), model.decode(x, "marginal"), wanted, strict=True):
        assert every.logs[(every.paths == path).all(1)][0] == pytest.approx(every.logs.max(), rel=1e-12)
        np.testing.assert_array_equal(most, every.marginals().argmax(1))


@scenes
def test_filter_predict_and_steps_are_those_of_prefixes(kind, structure):
    model, x, _ = scene(kind, structure)
    table = MODELS[kind][1]
    steps = np.split(model.log_prob_steps(x).nats, np.cumsum(RAGGED)[:-1])
    matrix = probabilities(model)[1]
    for filtered, ahead, scores, part in zip(model.filter(x), model.predict(x), steps, x, strict=True):
        nats = 0.0
        for t in range(min(len(part), 7)):
            prefix = oracle(model, table(model, part[: t + 1]))
            state = prefix.marginals()[-1]
            np.testing.assert_allclose(filtered[t], state, atol=1e-12)
            assert scores[t] == pytest.approx(prefix.nats - nats, rel=1e-11, abs=1e-11)
            nats = prefix.nats
            if t + 1 < len(part):
                np.testing.assert_allclose(ahead[t + 1], state @ matrix, atol=1e-12)
        np.testing.assert_allclose(ahead[0], probabilities(model)[0], atol=1e-14)
    sums = model.log_prob(x).nats
    np.testing.assert_allclose([part.sum() for part in steps], sums, rtol=1e-12)


@pytest.mark.parametrize("kind", ["counts", "symbols"])
def test_a_missing_step_is_summed_out(kind):
    """By the sum over all values that it could have, not by a rule for NaN."""
    model = MODELS[kind][0]()
    x = model.sample(1, length=4, seed=3)[0]
    if kind == "symbols":
        each = [np.where(np.arange(4) == 2, v, x) for v in range(3)]
    else:
        each = [np.where((np.arange(4) == 2)[:, None], pair, x) for pair in itertools.product(range(60), repeat=2)]
    gap = x.astype(float)
    gap[2] = np.nan
    total = special.logsumexp(model.log_prob(each).nats)
    assert model.log_prob([gap]).nats[0] == pytest.approx(total, rel=1e-10)


def test_forms_order_and_company_do_not_matter():
    model, x, _ = scene("counts")
    nats = model.log_prob(x).nats
    values, lengths = np.concatenate(x), list(RAGGED)
    for form in ((values, lengths), [cells(part) for part in x], [part.tolist() for part in x]):
        np.testing.assert_array_equal(model.log_prob(form).nats, nats)
    np.testing.assert_allclose(model.log_prob(x[::-1]).nats[::-1], nats, rtol=1e-12)
    for part, alone in zip(x, nats, strict=True):
        assert model.log_prob([part]).nats[0].item() == pytest.approx(alone.item(), rel=1e-12)


def test_masked_arrays_are_missing_cells():
    model, x, _ = scene("counts")
    hidden = np.ma.masked_invalid(x[0])
    hidden.data[hidden.mask] = 7  # what stands behind the mask has no say
    assert model.log_prob([hidden]).nats[0] == model.log_prob([x[0]]).nats[0]


@pytest.mark.parametrize("block", [1, 6, 13, 1 << 22])
def test_blocks_of_steps_make_no_difference(block, monkeypatch):
    model, x, wanted = scene("points", "cyclic")
    monkeypatch.setattr(room, "_BLOCK", 3 * block)
    np.testing.assert_allclose(model.log_prob(x).nats, [every.nats for every in wanted], rtol=1e-12)


# Structure


def test_moves_that_follow_inputs_are_those_of_all_paths():
    model = pg.HMM(
        states=3, emission=em.Poisson(2), transitions=tr.InputDriven(2), context=ev.Series((2,), missing=False)
    )
    fitted(model).emission.log_rate.data = counts_model().emission.log_rate.data
    rng = np.random.default_rng(0)
    x = [rng.poisson(4.0, (n, 2)).astype(float) for n in (7, 4)]
    u = [rng.normal(size=(n, 2)) for n in (7, 4)]
    first = special.log_softmax(model.transitions.initial_logits.detach().numpy())
    found = model.posterior(x, given=u, pairs=True)
    for i, (part, inputs) in enumerate(zip(x, u, strict=True)):
        every = Enumerated(first, switching_inputs(model.transitions, inputs), counts_table(model, part))
        assert model.log_prob(x, given=u).nats[i] == pytest.approx(every.nats, rel=1e-12)
        np.testing.assert_allclose(found.marginals[i], every.marginals(), atol=1e-12)
        np.testing.assert_allclose(found.pairs[i], every.pairs(), atol=1e-12)
        np.testing.assert_array_equal(model.decode(x, given=u)[i], every.best)
        ahead = model.predict(x, given=u)[i]
        state = model.filter(x, given=u)[i]
        np.testing.assert_allclose(ahead[3], state[2] @ np.exp(switching_inputs(model.transitions, inputs)[3]))
    shifted = [np.roll(inputs, 1, 0) for inputs in u]  # the input belongs to the move INTO a step
    assert abs(model.log_prob(x, given=shifted).nats - model.log_prob(x, given=u).nats).min() > 1e-3


def test_side_by_side_chains_are_those_of_all_pairs_of_paths():
    t = tr.Factorial((2, 2))
    model = fitted(pg.HMM(states=4, emission=em.Poisson(), transitions=t))
    model.emission.log_rate.data = cells(np.log([[1.0], [4.0], [9.0], [2.0]]))
    x = np.array([3.0, 0.0, 8.0, np.nan, 2.0, 5.0])
    firsts = [special.log_softmax(p.detach().numpy()) for p in model.transitions.initial_logits]
    moves = [special.log_softmax(p.detach().numpy(), axis=1) for p in model.transitions.logits]
    rates = np.array([[1.0, 4.0], [9.0, 2.0]])
    logs = {}
    for a, b in itertools.product(itertools.product(range(2), repeat=6), repeat=2):
        total = firsts[0][a[0]] + firsts[1][b[0]]
        total += sum(moves[0][a[t - 1], a[t]] + moves[1][b[t - 1], b[t]] for t in range(1, 6))
        logs[a, b] = total + sum(
            stats.poisson.logpmf(v, rates[i, j]) for v, i, j in zip(x, a, b, strict=True) if v == v
        )
    nats = special.logsumexp(list(logs.values()))
    assert model.log_prob([x]).nats[0] == pytest.approx(nats, rel=1e-12)
    a, b = max(logs, key=logs.get)
    np.testing.assert_array_equal(model.decode([x])[0], 2 * np.array(a) + b)
    share = sum(np.exp(v - nats) for (a, b), v in logs.items() if (a[2], b[2]) == (1, 0))
    assert model.posterior([x]).marginals[0][2, 2] == pytest.approx(share, abs=1e-12)


def test_tied_states_share_an_emission():
    tied = fitted(pg.HMM(states=4, emission=em.Poisson(), tie=(0, 1, 1, 0)))
    tied.emission.log_rate.data = cells(np.log([[2.0], [7.0]]))
    x = np.array([1.0, 9.0, 3.0, 0.0, 6.0])
    table = stats.poisson.logpmf(x[:, None], [2.0, 7.0, 7.0, 2.0])
    every = oracle(tied, table)
    assert tied.log_prob([x]).nats[0] == pytest.approx(every.nats, rel=1e-12)
    np.testing.assert_allclose(tied.posterior([x]).marginals[0], every.marginals(), atol=1e-12)
    assert tied.n_params == 3 + 12 + 2


# Drawing paths and sequences


@pytest.fixture(params=[0, 10**9], ids=["step by step", "all steps at once"])
def drawing(request, monkeypatch):
    monkeypatch.setattr(path_room, "_PARALLEL", request.param)


@pytest.mark.parametrize(("kind", "structure"), [("counts", "free"), ("symbols", "cyclic")])
def test_drawn_paths_follow_the_posterior(kind, structure, drawing):
    model, x, _ = scene(kind, structure, seed=1)
    part = x[0][:5]
    every = oracle(model, MODELS[kind][1](model, part))
    drawn = model.sample_paths([part], 20000, seed=0)[0]
    observed = np.bincount(drawn @ 3 ** np.arange(4, -1, -1), minlength=3**5)
    assert fails(observed, every.weights) > ALPHA
    assert fails(observed, cooled(every.weights)) < ALPHA


def test_drawn_paths_of_several_sequences_follow_their_inputs_and_end_apart(drawing, monkeypatch):
    """Joint frequencies of each sequence's path, the moves of each step its own; in blocks of a few steps."""
    monkeypatch.setattr(path_room, "_BLOCK", 2 * 9 * 20000)
    model = pg.HMM(
        states=3, emission=em.Poisson(2), transitions=tr.InputDriven(2), context=ev.Series((2,), missing=False)
    )
    fitted(model).emission.log_rate.data = cells(np.log([[3.0, 4.0], [4.0, 3.0], [5.0, 4.0]]))
    rng = np.random.default_rng(3)
    x = [rng.poisson(4.0, (n, 2)).astype(float) for n in (4, 1, 3)]
    u = [rng.normal(size=(n, 2)) for n in (4, 1, 3)]
    first = special.log_softmax(model.transitions.initial_logits.detach().numpy())
    drawn = model.sample_paths(x, 20000, given=u, seed=0)
    for part, inputs, paths in zip(x, u, drawn, strict=True):
        table = counts_table(model, part)
        place = 3 ** np.arange(len(part) - 1, -1, -1)
        observed = np.bincount(paths @ place, minlength=3 ** len(part))
        every = Enumerated(first, switching_inputs(model.transitions, inputs), table)
        assert fails(observed, every.weights) > ALPHA
        late = Enumerated(first, switching_inputs(model.transitions, np.roll(inputs, 1, 0)), table)
        assert len(part) == 1 or fails(observed, late.weights) < ALPHA


def test_drawn_sequences_follow_the_likelihood():
    model = symbols_model()
    grid = [np.array(x) for x in itertools.product(range(3), repeat=4)]
    share = np.exp(model.log_prob(grid).nats)
    assert share.sum() == pytest.approx(1, rel=1e-12)
    drawn = np.stack(model.sample(20000, length=4, seed=0)).astype(int)
    observed = np.bincount(drawn @ 3 ** np.arange(3, -1, -1), minlength=81)
    assert fails(observed, share) > ALPHA
    assert fails(observed, cooled(share)) < ALPHA


def test_drawn_sequences_follow_their_inputs_step_by_step():
    model = pg.HMM(
        states=2, emission=em.Categorical(2), transitions=tr.InputDriven(1), context=ev.Series((1,), missing=False)
    )
    fitted(model, spread=2.0).emission.logits.data = cells([[[2.0, 0.0]], [[0.0, 2.0]]])
    u = np.array([[0.5], [-2.0], [2.0], [-1.0]])
    grid = [np.array(x) for x in itertools.product(range(2), repeat=4)]
    drawn = np.stack(model.sample(20000, given=[u], seed=0)).astype(int)
    observed = np.bincount(drawn @ [8, 4, 2, 1], minlength=16)
    assert fails(observed, np.exp(model.log_prob(grid, given=[u] * 16).nats)) > ALPHA
    late = np.roll(u, 1, 0)  # each step moved by the input of the one before
    assert fails(observed, np.exp(model.log_prob(grid, given=[late] * 16).nats)) < ALPHA


def test_draws_follow_the_seed():
    model, x, _ = scene("points")
    one, same, other = (model.sample_paths(x, 50, seed=s) for s in (1, 1, 2))
    assert all(map(np.array_equal, one, same))
    assert not np.array_equal(one[0], other[0])
    assert [part.shape for part in one] == [(50, n) for n in RAGGED]


# The edge of arithmetic


def test_probabilities_of_1e_300_add_up_in_logs():
    m = fitted(pg.HMM(states=2, emission=em.Categorical(2, smoothing=0.0)))
    m.emission.logits.data = cells([[[math.log(1e-300), 0.0]]] * 2)
    assert m.log_prob([np.zeros(50)]).nats[0] == pytest.approx(50 * math.log(1e-300), rel=1e-12)
    assert np.isfinite(m.posterior([np.zeros(50)]).marginals[0]).all()


def test_moves_of_1e_300_are_not_zero():
    m = fitted(pg.HMM(states=2, emission=em.Categorical(2, smoothing=0.0)))
    m.transitions.initial_logits.data = cells([0.0, math.log(1e-300)])
    m.transitions.logits.data = cells([[0.0, math.log(1e-300)], [math.log(1e-300), 0.0]])
    m.emission.logits.data = cells(log(np.array([[[1.0, 0.0]], [[0.0, 1.0]]])))
    x = np.array([0, 1, 0, 1])
    assert m.log_prob([x]).nats[0] == pytest.approx(3 * math.log(1e-300), rel=1e-12)
    np.testing.assert_array_equal(m.decode([x])[0], x)


def test_impossible_sequences_are_minus_infinity_and_their_step_is_named():
    m = symbols_model(tr.Markov((1.0, 0.0, 0.0), allowed=tr.left_right(3)))
    good, bad = np.array([0, 1, 2, 2]), np.array([0, 2, 0, 1, 2])
    assert m.log_prob([good, bad]).nats.tolist()[1] == -math.inf
    assert math.isfinite(m.log_prob([good, bad]).nats[0])
    steps = m.log_prob_steps([good, bad]).nats
    assert np.isfinite(steps[:7]).all()
    assert np.isneginf(steps[7:]).all()
    asked = [m.posterior, m.decode, m.filter, m.predict, m.sample_paths, m.forecast, lambda x: m.decode(x, "marginal")]
    for ask in asked:
        with pytest.raises(ZeroEvidenceError, match=r"Sequence 1 .*step 3"):
            ask([good, bad])


def test_an_outlier_does_not_underflow():
    m = fitted(pg.HMM(states=3, emission=em.Normal()))
    m.emission.loc.data = cells([[0.0], [1.0], [-1.0]])
    x = np.array([0.1, 1000.0, -0.4, -1000.0, 0.3])
    every = oracle(m, stats.norm.logpdf(x[:, None], [0.0, 1.0, -1.0]))
    assert every.nats < -9e5
    assert m.log_prob([x]).nats[0] == pytest.approx(every.nats, rel=1e-12)
    np.testing.assert_allclose(m.posterior([x]).marginals[0], every.marginals(), atol=1e-10)
    np.testing.assert_array_equal(m.decode([x])[0], every.best)


def test_one_step_and_one_state_are_plain_distributions():
    _, x = steps_of_two()
    m = pg.HMM(states=1, emission=em.Normal()).fit(x, seed=0)
    assert m.log_prob(x).nats[0] == pytest.approx(stats.norm.logpdf(x, x.mean(), x.std()).sum(), rel=1e-12)
    assert m.n_params == 2
    np.testing.assert_allclose(m.forecast(x, 2).quantile(0.9).ravel(), stats.norm.ppf(0.9, x.mean(), x.std()))
    three, table = points_model(), np.array([[0.3, 0.2]])
    wanted = special.logsumexp(log(probabilities(three)[0]) + points_table(three, table))
    assert three.log_prob([table]).nats[0] == pytest.approx(wanted, rel=1e-12)
    assert three.posterior([table], pairs=True).pairs[0].shape == (0, 3, 3)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e12])
@pytest.mark.parametrize(
    "emission",
    [em.Normal(), em.Normal(2, "full"), em.Normal(2, "tied"), em.Normal(2, "spherical"), em.LogNormal()],
    ids=repr,
)
def test_units_do_not_matter(emission, scale):
    _, x = steps_of_two(120)
    if emission.width == 2:
        x = np.stack([x, np.random.default_rng(9).normal(x, 2.0)], 1)
    x = np.exp(x) if isinstance(emission, em.LogNormal) else x
    a, b = (
        pg.HMM(states=2, emission=emission).fit(part, seed=0, restarts=1, max_iter=10, tol=0.0)
        for part in ([x], [x * scale])
    )
    shifted = b.log_prob([x * scale]).nats[0] + x.size * math.log(scale)
    assert shifted.item() == pytest.approx(a.log_prob([x]).nats[0].item(), rel=1e-8)
    np.testing.assert_array_equal(a.decode([x])[0], b.decode([x * scale])[0])


# Forecasts


@pytest.mark.parametrize("kind", MODELS)
def test_a_forecast_is_what_remains_of_the_likelihood(kind):
    """log p(future | past) = log p(all) - log p(past), with gaps in both."""
    model, x, _ = scene(kind)
    long = [part for part in x if len(part) >= 4]
    past, future = [part[:-3] for part in long], [part[-3:] for part in long]
    f = model.forecast(past, 3)
    wanted = model.log_prob(long).nats - model.log_prob(past).nats
    np.testing.assert_allclose(f.log_prob(future).nats, wanted, rtol=1e-10, atol=1e-12)
    assert f.log_prob(future).of == "x_future|x_past"
    first = model.log_prob([part[:-2] for part in long]).nats - model.log_prob(past).nats
    np.testing.assert_allclose(f.log_prob_steps(future)[:, 0], first, rtol=1e-10, atol=1e-12)


def test_forecast_states_and_moments_are_those_of_all_paths():
    model, x, _ = scene("points")
    past = x[0][:4]
    f = model.forecast([past], 3)
    first, matrix = probabilities(model)
    table = np.vstack([points_table(model, past), np.zeros((3, 3))])
    every = Enumerated(log(first), np.broadcast_to(log(matrix), (7, 3, 3)), table)
    weights = every.marginals()[4:]
    np.testing.assert_allclose(f.states[0], weights, atol=1e-12)
    loc = model.emission.loc.detach().numpy()
    scale = model.emission.scale().detach().numpy()
    variance = np.einsum("kij,kij->ki", scale, scale)
    mean = weights @ loc
    np.testing.assert_allclose(f.mean()[0], mean, rtol=1e-12)
    np.testing.assert_allclose(f.variance()[0], weights @ (variance + loc**2) - mean**2, rtol=1e-10)
    for q in (0.001, 0.5, 0.975):
        for s, d in itertools.product(range(3), range(2)):

            def excess(v, s=s, d=d, q=q):
                return weights[s] @ stats.norm.cdf(v, loc[:, d], np.sqrt(variance[:, d])) - q

            assert f.quantile(q)[0, s, d] == pytest.approx(optimize.brentq(excess, -30, 30, xtol=1e-12), abs=1e-9)


@pytest.mark.parametrize("q", [1e-9, 0.05, 0.5, 0.95, 1 - 1e-9])
def test_quantiles_of_counts_are_the_least_that_reach_the_share(q):
    model = counts_model()
    f = model.forecast([np.array([[3.0, 2.0], [1.0, 8.0]])], 2)
    grid = np.arange(200)
    rates = model.emission.log_rate.exp().detach().numpy()
    for s, d in itertools.product(range(2), repeat=2):
        mass = f.states[0, s] @ stats.poisson.cdf(grid, rates[:, d, None])
        assert f.quantile(q)[0, s, d] == grid[np.argmax(mass >= q)]


def test_drawn_futures_follow_the_forecast():
    model, x, _ = scene("symbols")
    f = model.forecast([x[0]], 2)
    grid = [np.array(pair) for pair in itertools.product(range(3), repeat=2)]
    share = np.exp([f.log_prob([pair]).nats[0] for pair in grid])
    assert share.sum() == pytest.approx(1, rel=1e-12)
    drawn = f.sample(20000, seed=0)[0, :, :, 0].astype(int)
    observed = np.bincount(drawn @ [3, 1], minlength=9)
    assert fails(observed, share) > ALPHA
    assert fails(observed, cooled(share)) < ALPHA


def test_forecasts_with_inputs_move_by_the_future_ones():
    model = pg.HMM(
        states=3, emission=em.Poisson(2), transitions=tr.InputDriven(2), context=ev.Series((2,), missing=False)
    )
    fitted(model).emission.log_rate.data = counts_model().emission.log_rate.data
    rng = np.random.default_rng(0)
    x, u = rng.poisson(4.0, (7, 2)).astype(float), rng.normal(size=(7, 2))
    f = model.forecast([x[:4]], 3, given=[u[:4]], future=u[4:])
    wanted = model.log_prob([x], given=[u]).nats - model.log_prob([x[:4]], given=[u[:4]]).nats
    np.testing.assert_allclose(f.log_prob([x[4:]]).nats, wanted, rtol=1e-11)
    for future in (None, u[4:6], [u[4:], u[4:]], np.zeros((3, 3))):
        with pytest.raises((ParameterError, ShapeError)):
            model.forecast([x[:4]], 3, given=[u[:4]], future=future)


def test_forecasts_with_durations_remember_how_long_a_visit_has_lasted():
    model = counts_model(tr.Durations("categorical", longest=4), seed=2)
    x = np.random.default_rng(0).poisson(4.0, (8, 2)).astype(float)
    f = model.forecast([x[:5]], 3)
    wanted = model.log_prob([x]).nats - model.log_prob([x[:5]]).nats
    np.testing.assert_allclose(f.log_prob([x[5:]]).nats, wanted, rtol=1e-11)
    free = Segmented.__new__(Segmented)
    table = np.vstack([counts_table(model, x[:5]), np.zeros((2, 3))])
    free = segments(model, table)
    np.testing.assert_allclose(f.states[0][:2], free.marginals()[5:], atol=1e-12)


# Saving


@pytest.mark.parametrize(
    "transitions",
    [None, tr.Markov((0.2, 0.3, 0.5), allowed=tr.cyclic(3)), tr.Durations("categorical", longest=3), tr.Durations(),
     tr.Markov("stationary", concentration=2.0, sticky=1.0)],
    ids=repr,
)  # fmt: skip
def test_a_saved_model_comes_back_with_the_same_bits(transitions, tmp_path):
    model = counts_model(transitions)
    x = model.sample(3, length=5, seed=0)
    model.fit(x, seed=0, restarts=1, max_iter=3)
    again = pg.load(pg.save(model, tmp_path / "m"))
    assert repr(again) == repr(model)
    np.testing.assert_array_equal(again.log_prob(x).nats, model.log_prob(x).nats)
    assert (again.aic(), again.bic()) == (model.aic(), model.bic())
    deep = copy.deepcopy(model)
    np.testing.assert_array_equal(deep.log_prob(x).nats, model.log_prob(x).nats)
