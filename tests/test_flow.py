"""Flows: densities that integrate to one, samples that follow them, bounds for rounded cells, and what is refused."""

import copy
import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from probgen import datasets, store
from probgen.errors import DataError, NotFittedError, ParameterError, ShapeError, StructureError
from probgen.estimate import ELBO, IWAE, Enumerate
from probgen.events import Array, Category, Count, Real, Series, Table, Text
from probgen.logprob import Kind
from probgen.model import Latent
from probgen.models.baseline import Independent
from probgen.models.flow import Flow

ALPHA = 1e-6
SMALL = {"layers": 2, "bins": 6, "hidden": (24, 24)}
STRUCTURES = ("autoregressive", "coupling")
structures = pytest.mark.parametrize("structure", STRUCTURES)
_made = {}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data(name, n=400):
    rng = np.random.default_rng(5)
    z = rng.normal(size=(n, 2))
    z[:, 1] = np.sin(2 * z[:, 0]) + 0.4 * z[:, 1]
    level = rng.integers(4, size=n)
    coarse = {"length": z[:, 0], "colour": np.where(z[:, 1] > 0, "red", "blue"), "visits": rng.poisson(3.0, n)}
    return {
        "single": (Array(()), z[:, 1]),
        "real": (Array((2,)), 3 + 2 * z),
        "positive": (Array((2,), "positive"), np.exp(z)),
        "unit": (Array((2,), "unit"), stats.norm.cdf(z)),
        "levels": (Array((2,), levels=4), np.stack([level, (level + rng.integers(2, size=n)) % 4], 1)),
        "one level": (Array((1,), levels=5), rng.binomial(4, 0.4, (n, 1))),
        "rounded": (Array((2,), resolution=0.5), np.round(2 * z) / 2),
        "count": (Array((1,), "count"), rng.poisson(3.0, (n, 1))),
        "table": (
            Table({"length": Real(), "colour": Category(("blue", "red")), "visits": Count()}, missing=False),
            coarse,
        ),
    }[name]


def fitted(name, structure="autoregressive", steps=100):
    """A quickly fitted flow, made once."""
    if (name, structure) not in _made:
        event, x = data(name)
        _made[name, structure] = Flow(event, structure=structure, **SMALL).fit(x, seed=1, steps=steps)
    return _made[name, structure]


def density(model, v, given=None):
    """exp(log p(v)) of unrounded rows."""
    with torch.no_grad():
        return model._nats(torch.as_tensor(v), given).exp().numpy()


def box(low, high, n):
    """Midpoints of n x n cells of a square, and the cells' area."""
    side = low + (high - low) * (np.arange(n) + 0.5) / n
    return np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2), ((high - low) / n) ** 2


def masses(model, outcomes, n=40, shift=0.0):
    """P(x) by the midpoint rule over the boxes of rows; ``shift`` moves the boxes, as a wrong offset would."""
    x = torch.as_tensor(np.asarray(outcomes, dtype=np.float64))
    low, high = model.standardise.intervals(x)
    steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    shares = torch.cartesian_prod(*[steps] * x.shape[1]).reshape(-1, 1, x.shape[1])
    v = low + shares * (high - low) + shift
    return density(model, v).mean(0) * (high - low).prod(1).numpy()


def all_levels(event):
    return np.array(list(itertools.product(*(range(int(n)) for n in event.cell_levels))))


def goodness(counts, probabilities):
    """Chi-square p-value of counts against cell probabilities; rare cells are pooled."""
    expected = counts.sum() * probabilities
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1)


def warm(p):
    """The same at temperature 0.9."""
    return p**0.9 / (p**0.9).sum()


# Densities


BOXES = {"real": (-9.0, 15.0, 120), "unit": (0.0, 1.0, 120)}


@structures
@pytest.mark.parametrize("name", BOXES)
def test_a_flow_over_the_plane_integrates_to_one(name, structure):
    model = fitted(name, structure)
    points, area = box(*BOXES[name])
    nats = model.log_prob(points).nats
    assert np.exp(nats).sum() * area == pytest.approx(1, abs=2e-3)
    forgotten = model.standardise(torch.as_tensor(points))[1].numpy()  # the twin: without a log-determinant
    assert np.exp(nats - forgotten).sum() * area != pytest.approx(1, abs=0.1)


@structures
def test_a_flow_over_positive_cells_integrates_to_one(structure):
    model = fitted("positive", structure)
    logs, area = box(-8.0, 8.0, 120)
    assert (density(model, np.exp(logs)) * np.exp(logs.sum(1))).sum() * area == pytest.approx(1, abs=2e-3)


def test_a_flow_of_single_numbers_integrates_to_one():
    x = np.linspace(-10, 10, 5001)
    assert np.trapezoid(np.exp(fitted("single").log_prob(x).nats), x) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["levels", "one level"])
def test_masses_of_all_levels_sum_to_one(name):
    model = fitted(name)
    assert masses(model, all_levels(model.event)).sum() == pytest.approx(1, abs=2e-3)


def test_masses_of_rounded_reals_sum_to_one():
    side = np.arange(-11, 12) * 0.5
    points = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    assert masses(fitted("rounded"), points, n=12).sum() == pytest.approx(1, abs=2e-3)


def test_masses_of_counts_sum_to_one():
    assert masses(fitted("count"), np.arange(60)[:, None], n=200).sum() == pytest.approx(1, abs=1e-4)


def test_a_mixed_table_integrates_over_reals_and_sums_over_the_rest_to_one():
    model, total = fitted("table"), 0.0
    a = np.linspace(-6, 6, 61)
    noise = torch.special.ndtri((torch.cartesian_prod(*[torch.arange(12, dtype=torch.float64)] * 2) + 0.5) / 12)
    for colour, visits in itertools.product(range(2), range(16)):
        rows = torch.tensor(np.column_stack([a, np.full_like(a, colour), np.full_like(a, visits)]))
        with torch.no_grad():
            weights = model._log_weight(rows, noise[:, None].expand(-1, len(a), -1), None)
        total += np.trapezoid(weights.exp().mean(0).numpy(), a)
    assert total == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("name", ["real", "positive", "unit", "single"])
def test_exact_answers_say_so(name):
    model = fitted(name)
    lp = model.log_prob(data(name)[1])
    assert (lp.kind, lp.of, lp.stderr, lp.measure) == (Kind.EXACT, "x", None, "lebesgue")
    assert not isinstance(model, Latent)
    assert model.log_prob(data(name)[1], by=IWAE(10)).refused.all()


@structures
@pytest.mark.parametrize("name", ["real", "positive", "unit", "levels", "table"])
def test_samples_come_back_to_the_noise_that_made_them(name, structure):
    model = fitted(name, structure)
    noise = torch.randn(200, len(model.standardise.cells), generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        map_ = model.density().transforms[0]
        torch.testing.assert_close(map_.inv(map_(noise)), noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize("c", [1e-9, 1e9])
def test_a_fit_on_rescaled_data_shifts_log_prob_by_d_log_c(c):
    event, x = data("real")
    plain, scaled = (Flow(event, **SMALL).fit(f * x, seed=2, steps=20) for f in (1.0, c))
    shift = scaled.log_prob(c * x).nats - plain.log_prob(x).nats
    np.testing.assert_allclose(shift, -2 * math.log(c), rtol=1e-4)


def test_a_small_spread_far_from_zero_keeps_its_digits():
    event, x = data("real")
    plain, moved = (Flow(event, **SMALL).fit(x + s, seed=2, steps=20) for s in (0.0, 1e6))
    np.testing.assert_allclose(moved.log_prob(x + 1e6).nats, plain.log_prob(x).nats, atol=1e-3)


@pytest.mark.parametrize("far", [1e3, 1e8, 1e150, 1e300])
def test_far_away_rows_have_a_number(far):
    nats = fitted("real").log_prob(np.array([[far, 0.0], [0.0, -far]])).nats
    assert (nats < -1000).all()
    assert not np.isnan(nats).any()


# Samples


@structures
def test_samples_follow_the_density_and_a_wrong_temperature_is_caught(structure):
    model = fitted("real", structure)
    draws = model.sample(40_000, seed=12)
    low, high, bins, fine = -6.0, 12.0, 9, 24
    points, area = box(low, high, bins * fine)
    p = np.exp(model.log_prob(points).nats).reshape(bins, fine, bins, fine).sum((1, 3)).reshape(-1) * area
    assert p.sum() == pytest.approx(1, abs=0.01)  # the box holds nearly all; the law is tested inside it
    edges = np.linspace(low, high, bins + 1)
    counts = np.histogram2d(*draws.T, bins=[edges, edges])[0].reshape(-1)
    assert goodness(counts, p / p.sum()) > ALPHA
    assert goodness(counts, warm(p / p.sum())) < ALPHA


@structures
@pytest.mark.parametrize("name", ["levels", "one level"])
def test_sampled_levels_follow_the_masses_and_wrong_temperatures_and_offsets_are_caught(name, structure):
    model = fitted(name, structure)
    outcomes = all_levels(model.event)
    draws = model.sample(40_000, seed=3)
    counts = np.bincount(np.ravel_multi_index(draws.T, model.event.cell_levels), minlength=len(outcomes))
    p, off = masses(model, outcomes), masses(model, outcomes, shift=0.2)
    assert goodness(counts, p / p.sum()) > ALPHA
    assert goodness(counts, warm(p / p.sum())) < ALPHA
    assert goodness(counts, off / off.sum()) < ALPHA


@pytest.mark.parametrize("name", ["real", "positive", "unit", "levels", "rounded", "count", "table", "single"])
def test_samples_pass_the_events_check(name):
    model = fitted(name)
    assert len(model.event.check(model.sample(300, seed=0))) == 300


# Rounded cells: bounds


def test_bounds_rise_with_the_draws_and_stand_below_the_truth():
    model = fitted("levels")
    x = all_levels(model.event)
    truth = np.log(masses(model, x))
    rows = np.repeat(np.arange(len(x)), 30)
    answers = []
    for by in (ELBO(2), IWAE(4), IWAE(64)):
        parts = [model.log_prob(x, by=by, seed=seed).nats for seed in range(30)]
        answers.append(np.stack(parts, 1).reshape(-1))
    ladder = [*answers, truth[rows]]
    for lower, upper in itertools.pairwise(ladder):
        assert one_sided_p(upper - lower) > ALPHA
    assert one_sided_p(ladder[2] - ladder[3] - 0.3) < ALPHA  # the twin: a bound 0.3 nats too high is caught
    assert answers[1].mean() > answers[0].mean() + 0.01


def one_sided_p(gain):
    """p-value of 'the mean gain is not below zero'."""
    return stats.norm.cdf(gain.mean() / (gain.std(ddof=1) / math.sqrt(len(gain)) + 1e-6))


@pytest.mark.parametrize("name", ["levels", "rounded", "count", "table"])
def test_answers_about_rounded_cells_are_lower_bounds_of_x(name):
    model, x = fitted(name), data(name, 20)[1]
    lp = model.log_prob(x, seed=0)
    assert (lp.kind, lp.of, lp.measure) == (Kind.LOWER, "x", model.event.measure)
    assert isinstance(model, Latent)
    assert np.isfinite(lp.nats).all()
    if name == "levels":
        assert lp.bits_per_dim().kind is Kind.UPPER


def test_many_draws_reach_the_mass_of_the_box():
    model = fitted("rounded")
    x = np.array([[0.0, 0.5], [1.0, 1.0], [-1.5, 0.0]])
    lp = model.log_prob(x, by=IWAE(8000), seed=0)
    np.testing.assert_allclose(lp.nats, np.log(masses(model, x, 100)), atol=0.03)
    assert (abs(lp.nats - np.log(masses(model, x, 100, shift=0.25))) > 0.03).any()  # the offset of levels


def test_without_a_step_a_flow_of_levels_is_the_independent_tables():
    event, x = data("levels")
    flow = Flow(event, **SMALL).fit(x, seed=0, steps=1, learning_rate=0.0, validation=0.0)
    lp = flow.log_prob(x, by=ELBO(2), seed=0)
    np.testing.assert_allclose(lp.nats, Independent(event).fit(x).log_prob(x).nats, rtol=1e-9)
    assert flow.report.stopped == "converged"
    assert "standardisation" in flow.report.notes[-1]
    assert fitted("levels").log_prob(x, by=ELBO(4), seed=0).nats.mean() > lp.nats.mean() + 0.2  # which say less


def test_rows_drawn_with_their_places_carry_the_unrounded_row():
    model = fitted("table")
    x, z = model._sample_joint(500, None, generator=torch.Generator().manual_seed(4))
    v = model._unrounded(x, torch.special.ndtr(z))[0]
    torch.testing.assert_close(v, model._draw(500, None, torch.Generator().manual_seed(4)), rtol=0, atol=1e-9)
    assert model._log_joint(x, z, None).isfinite().all()


# The Pyro program


@pytest.mark.parametrize("name", ["real", "positive", "unit"])
def test_the_program_scores_as_the_hook(name):
    model, x = fitted(name), data(name)[1]
    lp = model.log_prob(x)
    np.testing.assert_allclose(model.log_prob(x, by=Enumerate()).nats, lp.nats, rtol=1e-9)
    trace = poutine.trace(model.model).get_trace(model.event.check(x).x)
    assert float(trace.log_prob_sum().detach()) == pytest.approx(lp.nats.sum(), rel=1e-9)


@pytest.mark.parametrize("name", ["levels", "rounded", "table"])
def test_the_hooks_of_rounded_cells_are_the_traces(name):
    model = fitted(name)
    x = model.event.check(data(name)[1]).x[:20]
    noise = torch.randn(1, 20, model.latent_dim, generator=torch.Generator().manual_seed(0))
    z, log_q = model._propose(x, None, noise)
    joint = poutine.trace(poutine.condition(model.model, {"z": z[0]})).get_trace(x).log_prob_sum()
    guide = poutine.trace(poutine.condition(model.guide, {"z": z[0]})).get_trace(x).log_prob_sum()
    assert float(model._log_joint(x, z, None).sum().detach()) == pytest.approx(float(joint.detach()), rel=1e-9)
    assert float(log_q.sum()) == pytest.approx(float(guide), rel=1e-9)


@pytest.mark.parametrize("name", ["real", "levels", "table"])
def test_the_program_draws_rows_of_the_event(name):
    model = fitted(name)
    pyro.set_rng_seed(0)
    with torch.no_grad():
        x = model.model(n=50)
    model.event.check(model.event.restore(x, "dict" if name == "table" else "numpy"))


# Covariates


def conditional(structure="autoregressive", n=1500):
    if ("conditional", structure) not in _made:
        rng = np.random.default_rng(0)
        c = {"shift": rng.normal(size=n), "side": rng.choice(["left", "right"], n)}
        x = (c["shift"] + np.where(c["side"] == "left", -3, 3))[:, None] + 0.5 * rng.normal(size=(n, 2))
        context = Table({"shift": Real(), "side": Category(("left", "right"))}, missing=False)
        made = Flow(Array((2,)), context=context, structure=structure, **SMALL)
        _made["conditional", structure] = (made.fit(x, given=c, seed=0, steps=200), x, c)
    return _made["conditional", structure]


def row(shift=0.0, side="left"):
    return {"shift": np.array([shift]), "side": np.array([side])}


@structures
def test_a_conditional_flow_follows_its_covariates(structure):
    model, x, c = conditional(structure)
    truth = -((x - (c["shift"] + np.where(c["side"] == "left", -3, 3))[:, None]) ** 2).sum(1) / 0.5
    truth = truth - math.log(2 * math.pi * 0.25)
    lp = model.log_prob(x, given=c)
    assert abs(lp.nats.mean() - truth.mean()) < 0.15
    assert (lp.kind, lp.of) == (Kind.EXACT, "x|given")
    wrong = {"shift": c["shift"], "side": np.where(c["side"] == "left", "right", "left")}
    assert model.log_prob(x, given=wrong).nats.mean() < lp.nats.mean() - 5
    for side, centre in (("left", -3), ("right", 3)):
        np.testing.assert_allclose(model.sample(4000, given=row(0.5, side), seed=0).mean(0), centre + 0.5, atol=0.3)


@structures
def test_a_conditional_flow_integrates_to_one_at_each_condition(structure):
    model = conditional(structure)[0]
    points, area = box(-12.0, 12.0, 140)
    for shift, side in ((-1.0, "left"), (2.0, "right")):
        given = {"shift": np.full(len(points), shift), "side": np.full(len(points), side)}
        assert np.exp(model.log_prob(points, given=given).nats).sum() * area == pytest.approx(1, abs=5e-3)


def test_one_condition_gives_n_draws_and_m_conditions_m_times_n():
    model, _, c = conditional()
    assert model.sample(5, given=row(), seed=0).shape == (5, 2)
    some = {name: values[:3] for name, values in c.items()}
    assert model.sample(5, given=some, seed=0).shape == (3, 5, 2)


def test_conditional_levels_are_bounded_below():
    rng = np.random.default_rng(1)
    c = rng.normal(size=(800, 1))
    x = (c + 0.5 * rng.normal(size=(800, 1)) > 0).astype(int)
    model = Flow(Array((1,), levels=2), context=Array((1,)), **SMALL).fit(x, given=c, seed=0, steps=200)
    lp = model.log_prob(x[:60], given=c[:60], seed=0)
    truth = stats.norm.logcdf(2 * np.where(x == 1, c, -c))[:60, 0].mean()
    assert lp.kind is Kind.LOWER
    assert truth - 0.12 < lp.nats.mean() < truth + 0.05
    both = [
        model.log_prob(np.full((9, 1), k), given=np.linspace(-2, 2, 9)[:, None], by=IWAE(2000), seed=0) for k in (0, 1)
    ]
    np.testing.assert_allclose(np.exp(both[0].nats) + np.exp(both[1].nats), 1, atol=0.03)


def test_covariates_are_checked():
    model, x, c = conditional()
    with pytest.raises(ParameterError, match="given="):
        model.log_prob(x)
    with pytest.raises(ParameterError, match="given="):
        model.sample(3)
    with pytest.raises(ShapeError, match="rows"):
        model.log_prob(x[:5], given=c)
    with pytest.raises(ParameterError, match="no covariates"):
        fitted("real").log_prob(data("real")[1], given=c)
    with pytest.raises(StructureError, match="missing=False"):
        Flow(Array((2,)), context=Table({"a": Real()}))
    with pytest.raises(StructureError, match="Array or a Table"):
        Flow(Array((2,)), context=Series((1,)))


# Fitting


def test_a_flow_learns_a_curved_density_that_a_normal_does_not():
    toy, held = datasets.moons(2000), datasets.moons(1000, seed=9)
    model = Flow.for_event(toy.event, bins=8).fit(toy.x, seed=0, steps=250)
    truth, found = held.log_density(held.x).mean(), model.log_prob(held.x).nats.mean()
    normal = stats.multivariate_normal(toy.x.mean(0), np.cov(toy.x.T)).logpdf(held.x).mean()
    assert truth - 0.2 < found < truth + 0.02
    assert found > normal + 0.5


def test_the_report_ends_with_the_state_that_was_kept_and_its_objective_rose():
    report = fitted("real").report
    assert report.objective[-1] == max(report.objective)
    assert report.objective[-1] > report.objective[0] + 0.1


def test_training_leaves_double_precision_parameters_that_moved():
    event, x = data("real")
    model = Flow(event, **SMALL)
    before = copy.deepcopy(model.state_dict())
    model.fit(x, seed=0, steps=20)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_budget_becomes_a_recorded_number_of_steps():
    event, x = data("real")
    report = Flow(event, **SMALL).fit(x, seed=0, budget=1.0).report
    assert "budget 1 s =" in report.notes[0]


def test_early_stopping_ends_a_run_that_only_learns_noise_by_heart():
    x = np.random.default_rng(0).normal(size=(80, 2))
    report = Flow(Array((2,)), **SMALL).fit(x, seed=0, steps=600, patience=2).report
    assert report.steps < 600


def test_a_resumed_fit_gives_the_same_bits(tmp_path):
    event, x = data("levels")
    whole, part = Flow(event, **SMALL), Flow(event, **SMALL)
    options = {"seed": 0, "steps": 30, "every": 10, "checkpoint": str(tmp_path / "c")}
    whole.fit(x, **options)
    part.fit(x, **options, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, part.state_dict()[name])


def test_a_saved_flow_gives_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setitem(store.FAMILIES, "Flow", "probgen.models.flow")
    for name in ("real", "table"):
        model = fitted(name)
        again = store.load(store.save(model, tmp_path / name))
        x = data(name, 20)[1]
        np.testing.assert_array_equal(again.log_prob(x, seed=2).nats, model.log_prob(x, seed=2).nats)
        assert repr(again) == repr(model)
    model, x, c = conditional()
    again = store.load(store.save(model, tmp_path / "c"))
    np.testing.assert_array_equal(again.log_prob(x, given=c).nats, model.log_prob(x, given=c).nats)


def test_the_default_flow_grows_with_the_event():
    assert Flow.for_event(Array((2,))).hidden == (64, 64)
    assert Flow.for_event(Array((8, 8), levels=17)).hidden == (256, 256)
    assert Flow.for_event(Array((200,))).structure == "coupling"
    assert Flow.for_event(Array((2,)), layers=1).layers == 1


# Refusals


def test_a_missing_cell_is_named_and_refused():
    model = Flow(Table({"a": Real(), "b": Real()}), **SMALL)
    x = {"a": np.arange(60.0), "b": np.random.default_rng(0).normal(size=60)}
    x["a"] = x["a"] + 0.001 * x["b"]
    gap = {"a": x["a"], "b": np.where(np.arange(60) == 7, np.nan, x["b"])}
    with pytest.raises(DataError, match="Row 7, column b is missing: Flow needs every cell"):
        model.fit(gap, steps=5)
    model.fit(x, seed=0, steps=5)
    with pytest.raises(DataError, match="Row 7, column b"):
        model.log_prob(gap)


@pytest.mark.parametrize("event", [Series((1,)), Text(), Array((40, 40))])
def test_events_that_do_not_suit_are_refused_with_a_reason(event):
    assert len(Flow.suits(event)) > 10
    with pytest.raises(StructureError, match="does not suit"):
        Flow(event)


@pytest.mark.parametrize(
    "wrong", [{"layers": 0}, {"bins": 1}, {"hidden": ()}, {"hidden": (4, 0)}, {"structure": "residual"}]
)
def test_a_wrong_argument_is_a_parameter_error(wrong):
    with pytest.raises(ParameterError):
        Flow(Array((2,)), **wrong)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"budgets": 3}])
def test_a_wrong_option_of_fit_is_a_parameter_error(wrong):
    with pytest.raises(ParameterError):
        Flow(Array((2,)), **SMALL).fit(data("real")[1], **{"steps": 5, **wrong})


def test_questions_before_a_fit_are_refused():
    with pytest.raises(NotFittedError):
        Flow(Array((2,))).sample(3)
    with pytest.raises(ParameterError, match="guide"):
        fitted("levels").guide()


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_handful_of_rows_is_enough(rows):
    event, x = data("real")
    nats = Flow(event, **SMALL).fit(x[:rows], seed=0, steps=10).log_prob(x[:50]).nats
    assert not np.isnan(nats).any()


# Quality, by hand


@pytest.mark.long
@pytest.mark.parametrize(("name", "gap"), [("eight_gaussians", 0.08), ("moons", 0.06), ("checkerboard", 0.16)])
def test_toys_are_learnt_to_within_a_tenth_of_a_nat(name, gap):
    make = getattr(datasets, name)
    toy, held = make(4000), make(4000, seed=9)
    model = Flow.for_event(toy.event).fit(toy.x, seed=0, steps=3000)
    missed = held.log_density(held.x).mean() - model.log_prob(held.x).nats.mean()
    assert -0.01 < missed < gap
