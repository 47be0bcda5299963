"""Diffusion models: the time, the chain against its Pyro program and closed forms, decoders, samplers, refusals."""

import copy
import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from probgen.errors import DataError, Incomparable, ParameterError, ShapeError, StructureError
from probgen.estimate.ode import ProbabilityFlow
from probgen.events import Array, Category, Count, Real, Table
from probgen.logprob import Kind
from probgen.models.diffusion import Diffusion, VariationalBound
from probgen.models.diffusion.bound import kl_of_step, terms
from probgen.models.diffusion.coordinates import Lattice, Levels, OneHot, Reals, Seen
from probgen.models.diffusion.trig import END, bridge, chain_times, flow_times, solve
from probgen.nn import UNet, reset

ALPHA = 1e-6  # false-alarm rate of each statistical test
Z = stats.norm.isf(ALPHA)  # deviations of a one-sided test
D = torch.float64
RNG = np.random.default_rng(11)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The time


def test_noising_in_two_steps_is_noising_in_one():
    for s, t in ((0.1, 0.4), (0.02, 1.2), (0.7, END)):
        b = bridge(s, t)
        assert b.decay * math.cos(s) == pytest.approx(math.cos(t), abs=1e-15)
        assert b.decay**2 * math.sin(s) ** 2 + b.noise == pytest.approx(math.sin(t) ** 2)
        assert b.keep * math.cos(t) + b.pull == pytest.approx(math.cos(s))  # the bridge's mean of y_s given x
        assert b.keep**2 * math.sin(t) ** 2 + b.variance == pytest.approx(math.sin(s) ** 2)


def test_the_divergence_of_a_step_is_pyros_and_is_that_of_the_signal_to_noise_ratio_without_a_residual():
    off, none = torch.tensor([0.3, -0.2], dtype=D), torch.zeros(2, dtype=D)
    ratios = 0.5 * (1 / math.tan(0.3) ** 2 - 1 / math.tan(0.5) ** 2) * off.square().sum()
    assert float(kl_of_step(0.3, 0.5, off, none)) == pytest.approx(float(ratios))
    b, residual = bridge(0.3, 0.5), torch.tensor([0.05, 0.2], dtype=D)
    q = torch.distributions.Normal(b.pull * off, math.sqrt(b.variance))
    p = torch.distributions.Normal(torch.zeros(2, dtype=D), (b.variance + b.pull**2 * residual).sqrt())
    wanted = torch.distributions.kl_divergence(q, p).sum()
    assert float(kl_of_step(0.3, 0.5, off, residual)) == pytest.approx(float(wanted))


@pytest.mark.parametrize(("solver", "order"), [("ab2", 2), ("heun", 2), ("rk4", 4)])
def test_samplers_reach_the_flow_at_their_order(solver, order):
    spread = torch.tensor([0.3, 1.5], dtype=D)

    def field(y, t):
        square = math.cos(t) ** 2 * spread**2 + math.sin(t) ** 2
        return math.cos(t) * math.sin(t) * (1 - spread**2) / square * y

    z = torch.randn(50, 2, generator=seeded(), dtype=D)
    errors = [float((solve(field, z, flow_times(n), solver) - spread * z).abs().max()) for n in (32, 64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.4)


# Decoders

BLOCKS = {
    "levels": (Levels([5]), RNG.integers(0, 5, (200, 1)), np.arange(5.0)[:, None]),
    "levels of two sizes": (Levels([2, 3]), RNG.integers(0, 2, (200, 2)), np.array([*np.ndindex(2, 3)])),
    "one hot": (OneHot(1, 4), RNG.integers(0, 3, (200, 1)), np.arange(4.0)[:, None]),
    "lattice": (Lattice(1, 0.5), np.round(2 * RNG.normal(size=(200, 1))) / 2, np.arange(-60, 60)[:, None] * 0.5),
    "lattice with ends": (Lattice(1, 0.25, 0.0, 1.0), RNG.integers(0, 5, (200, 1)) / 4, np.arange(5)[:, None] / 4),
    "counts": (Lattice(1, 1.0, 0.0, log=True), RNG.poisson(3.0, (200, 1)), np.arange(4000.0)[:, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_the_masses_of_all_values_given_noised_coordinates_sum_to_one_and_draws_follow_them(name):
    block, data, values = BLOCKS[name]
    block.measure(torch.tensor(data, dtype=D))
    c, t, values = block.encode(torch.tensor(data[:1], dtype=D)), 1.0, torch.tensor(values, dtype=D)
    y = math.cos(t) * c + math.sin(t) * torch.randn(c.shape, generator=seeded(2), dtype=D)
    seen = Seen(y, y, torch.ones(block.width, dtype=D), t)
    p = torch.cat([block.nats(value[None], seen) for value in values]).exp().numpy()
    assert p.sum() == pytest.approx(1, abs=1e-9)
    wide = Seen(y.expand(20_000, -1), y.expand(20_000, -1), seen.variance, t)
    drawn = block.draw(wide, seeded(3))
    counts = np.array([(drawn == value).all(1).sum() for value in values])
    assert counts.sum() == 20_000
    assert fits(counts, p) > ALPHA
    warm = p**0.7 / (p**0.7).sum()
    assert fits(counts, warm) < ALPHA
    assert torch.equal(block.decode(block.encode(values)), values)


def fits(counts, p):
    rare = counts.sum() * p < 10
    seen, wanted = np.append(counts[~rare], counts[rare].sum()), counts.sum() * np.append(p[~rare], p[rare].sum())
    return stats.chi2.sf(((seen - wanted) ** 2 / wanted.clip(1e-9)).sum(), max(len(seen) - 1, 1))


@pytest.mark.parametrize("support", ["real", "positive", "unit"])
def test_real_coordinates_go_back_and_their_slope_is_the_derivative(support):
    block = Reals(2, support)
    x = torch.tensor(RNG.uniform(0.1, 0.9, (50, 2)))
    block.measure(x)
    torch.testing.assert_close(block.decode(block.encode(x)), x)
    slope = (block.encode(x + 1e-6) - block.encode(x - 1e-6)) / 2e-6
    torch.testing.assert_close(block.log_slope(x), slope.log().sum(1), atol=1e-6, rtol=1e-6)


# Trained on little

TABLE = Table({"a": Real("cm"), "c": Category(("x", "y", "z")), "k": Count(), "r": Real(resolution=0.5)}, missing=False)


def table_rows(n, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    c = np.array(["x", "y", "z"])[np.digitize(z, (-0.5, 0.5))]
    return {"a": 2 * z + rng.normal(size=n), "c": c, "k": rng.poisson(np.exp(z)), "r": np.round(2 * z) / 2}


def normal_rows(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2)) @ np.array([[2.0, 1.0], [0.0, 0.5]]) + [3.0, -1.0]


TRUTH = stats.multivariate_normal([3, -1], np.array([[2.0, 1.0], [0.0, 0.5]]).T @ np.array([[2.0, 1.0], [0.0, 0.5]]))


def level_rows(n, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.choice(3, n, p=(0.6, 0.3, 0.1))
    return np.stack([a, np.where(rng.random(n) < 0.8, a, rng.integers(0, 3, n))], 1)


@pytest.fixture(scope="module")
def reals():
    return Diffusion(Array((2,)), hidden=32, blocks=1, chain=30).fit(normal_rows(2000), steps=500, seed=0)


@pytest.fixture(scope="module")
def levels():
    made = Diffusion(Array((2,), levels=3), hidden=32, blocks=1, chain=100)
    return made.fit(level_rows(1000), steps=600, learning_rate=8e-3, seed=0)


@pytest.fixture(scope="module")
def tabular():
    return Diffusion(TABLE, hidden=32, blocks=1, chain=20).fit(table_rows(600), steps=200, seed=0)


@pytest.fixture(scope="module")
def guided():
    k = RNG.integers(0, 2, 1000)
    x = np.where(k == 1, 2.0, -2.0) + 0.7 * RNG.normal(size=1000)
    event = Table({"k": Category((0, 1))}, missing=False)
    made = Diffusion(Array(()), context=event, hidden=32, blocks=1, chain=20)
    return made.fit(x, given={"k": k}, steps=500, seed=0)


def test_the_bound_is_the_elbo_of_the_pyro_program(levels, tabular, reals):
    for model, x in ((levels, level_rows(6, 5)), (tabular, table_rows(6, 5)), (reals, normal_rows(6, 5))):
        twin = copy.deepcopy(model).double()
        rows = twin.event.check(x).x.repeat(400, 1)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            guide = poutine.trace(twin.guide).get_trace(rows)
            played = poutine.trace(poutine.replay(twin.model, guide)).get_trace(rows)
            elbos = sum(site["fn"].log_prob(site["value"]) for site in sites(played))
            elbos = elbos - sum(site["fn"].log_prob(site["value"]) for site in sites(guide))
            noise = torch.randn(400, model.chain, 6, model.rows.width, generator=seeded(1), dtype=D)
            closed = terms(twin, rows[:6], None, noise)
        elbos = elbos.reshape(400, 6)
        error = ((elbos.var(0) + closed.var(0)) / 400).sqrt()
        z = ((elbos.mean(0) - closed.mean(0)) / error).abs().max()
        assert 12 * stats.norm.sf(float(z)) > ALPHA
        assert 12 * stats.norm.sf(float(((elbos.mean(0) - closed.mean(0)) / error + 8).abs().max())) < ALPHA


def sites(trace):
    return [s for s in trace.nodes.values() if s["type"] == "sample" and type(s["fn"]).__name__ != "_Subsample"]


def test_the_bound_stays_below_the_truth_on_gaussian_data_and_shrinks_in_the_chains_length(reals):
    x = normal_rows(1000, seed=3)
    gaps = []
    for chain in (5, 30):
        model = Diffusion(Array((2,)), hidden=32, blocks=1, chain=chain)
        model.load_state_dict({**reals.state_dict(), "residual": model.residual, "moments": model.moments})
        with torch.no_grad():  # no correction: the velocity of independent normals, whose residual is known
            for p in model.velocity.parameters():
                p.zero_()
            t = model.times()
            model.residual.copy_((t.sin() ** 2)[:, None].expand(-1, 2))
        model.report = reals.report
        m, s = (getattr(model.rows.blocks[0], name).numpy() for name in ("centre", "spread"))
        answer = model.log_prob(x, by=VariationalBound(8), seed=0)
        gap = stats.norm(m, s).logpdf(x).sum(1) - answer.nats
        z = gap.mean() / (gap.std() / math.sqrt(len(gap)))
        assert stats.norm.cdf(z) > ALPHA
        assert stats.norm.cdf(z - (gap.mean() + 0.5) / (gap.std() / math.sqrt(len(gap)))) < ALPHA, "half a nat too high"
        assert (answer.kind, answer.target) == (Kind.LOWER, "p^SDE")
        exact = model.log_prob(x[:20])
        np.testing.assert_allclose(exact.nats, stats.norm(m, s).logpdf(x[:20]).sum(1), atol=1e-9)
        gaps.append(gap.mean())
    assert max(map(abs, gaps)) < 0.02  # with the right variances the chain of a normal is exact at any length


def test_without_room_for_the_residual_few_steps_cost_more(reals):
    x, bounds = normal_rows(300, seed=3), []
    for scale in (0.0, 1.0):
        model = copy.deepcopy(reals)
        model.residual[1:] *= scale
        bounds.append(model.log_prob(x, by=VariationalBound(8), seed=0).mean().value)
    assert bounds[1] > bounds[0] + 0.05


def test_a_trained_density_is_near_the_truth_and_integrates_to_one(reals):
    x = normal_rows(100, seed=7)
    answer = reals.log_prob(x, by=ProbabilityFlow(tolerance=0.1))
    assert (answer.kind, answer.target, answer.stderr) == (Kind.EXACT, "p^ODE", None)
    assert abs((TRUTH.logpdf(x) - answer.nats).mean()) < 0.1
    side = (np.arange(26) + 0.5) / 26 * 20 - 10
    points = np.stack(np.meshgrid(side + 3, side * 0.5 - 1, indexing="ij"), -1).reshape(-1, 2)
    total = np.exp(reals.log_prob(points, by=ProbabilityFlow(most=16)).nats).sum() * 0.5 * (20 / 26) ** 2
    assert total == pytest.approx(1, abs=1e-3)


def test_a_change_of_units_shifts_the_log_density_by_its_logarithm(reals):
    scaled = copy.deepcopy(reals)
    scaled.rows.measure(torch.tensor(100 * normal_rows(2000)))
    x = normal_rows(6, seed=9)
    by = ProbabilityFlow(steps=8, most=8)
    shift = reals.log_prob(x, by=by).nats - scaled.log_prob(100 * x, by=by).nats
    np.testing.assert_allclose(shift, 2 * math.log(100), atol=1e-8)


def test_bounds_of_all_outcomes_sum_to_at_most_one_and_near_it(levels):
    every = np.array(list(itertools.product(range(3), repeat=2)))
    bound = levels.log_prob(every, by=VariationalBound(128), seed=0)
    assert bound.kind is Kind.LOWER
    assert 0.75 < np.exp(bound.nats).sum() < 1 + Z * total_error(bound)
    assert np.exp(bound.nats + 0.5).sum() > 1 + Z * total_error(bound), "the twin, half a nat too high"
    by = {"samples": 32, "tolerance": 0.1}
    flow = levels.log_prob(every, by=ProbabilityFlow(**by), seed=0)
    assert (flow.kind, flow.target, flow.measure) == (Kind.LOWER, "p^ODE", "counting")
    assert 0.6 < np.exp(flow.nats).sum() < 1 + Z * total_error(flow)
    assert np.exp(flow.nats + 0.7).sum() > 1 + Z * total_error(flow), "the twin, of half the bins' width"
    tight = levels.log_prob(every, by=ProbabilityFlow(importance=True, **by), seed=0)
    assert tight.kind is Kind.LOWER
    assert (tight.nats >= flow.nats - 1e-9).all()
    with pytest.raises(Incomparable, match="two different distributions"):
        _ = flow.replace(kinds=Kind.ESTIMATE) - bound.replace(kinds=Kind.EXACT)


def total_error(answer):
    """Of the sum of the probabilities of independently noised rows, to first order."""
    return math.sqrt((np.exp(2 * answer.nats) * answer.stderr**2).sum())


def test_dequantised_levels_are_scored_with_the_right_offset():
    x = level_rows(800)
    model = Diffusion(Array((2,), levels=3), hidden=32, blocks=1, chain=20, dequantise=True).fit(x, steps=250, seed=0)
    every = np.array(list(itertools.product(range(3), repeat=2)))
    answer = model.log_prob(every, by=ProbabilityFlow(samples=24, tolerance=0.1), seed=0)
    assert answer.measure == "counting"
    assert set(answer.kinds) <= {Kind.LOWER, Kind.ESTIMATE}
    assert 0.4 < np.exp(answer.nats).sum() < 1 + Z * total_error(answer)
    assert np.exp(answer.nats + 2 * math.log(2)).sum() > 1 + Z * total_error(answer), "the twin, of bins twice as wide"
    spread = model.rows.blocks[0].spread
    got = model.rows.log_offset(torch.zeros(1, 2, dtype=D))
    assert float(got) == pytest.approx(-float(spread.log().sum()))
    assert float(answer.bits_per_dim()) > 0


def test_whole_numbers_under_a_density_have_no_code_length(reals):
    with pytest.raises(Incomparable, match="Whole numbers"):
        reals.log_prob(np.array([[3.0, -1.0], [2.0, 0.0]]), by=ProbabilityFlow(tolerance=0.1)).bits_per_dim()


def test_ancestral_draws_of_levels_have_the_chains_frequencies(levels):
    # the bound is within a few hundredths of log p^SDE, too near for draws to tell: frequencies stand above it
    draws = levels.sample(20_000, seed=1, sampler="ancestral")
    every = np.array(list(itertools.product(range(3), repeat=2)))
    seen = np.array([(draws == row).all(1).mean() for row in every])
    answer = levels.log_prob(every, by=VariationalBound(128), seed=0)
    bound = np.exp(answer.nats)
    noise = np.sqrt(np.maximum(bound, seen) / 20_000 + (bound * answer.stderr) ** 2) * stats.norm.isf(ALPHA / 9)
    assert (bound <= seen + noise).all()
    assert not (bound[::-1] <= seen + noise).all(), "the twin, for other outcomes"
    data = np.array([(level_rows(100_000, 4) == row).all(1).mean() for row in every])
    assert abs(seen - data).max() < 0.06


@pytest.mark.parametrize("sampler", ["ab2", "heun", "rk4", "ancestral"])
def test_every_sampler_draws_the_data_and_names_its_target(reals, sampler):
    x = reals.sample(3000, seed=2, sampler=sampler)
    z = (x.mean(0) - [3, -1]) / (np.sqrt(np.diag(TRUTH.cov)) / math.sqrt(3000))
    assert abs(z).max() < 8  # a network trained for seconds is a few hundredths of a deviation off
    np.testing.assert_allclose(np.cov(x.T), TRUTH.cov, atol=0.35)
    blank = copy.deepcopy(reals)
    for p in blank.velocity.parameters():
        p.data.zero_()
    crude = blank.sample(3000, seed=2, sampler=sampler, steps=8)
    assert abs(np.cov(crude.T) - TRUTH.cov).max() > 0.35, "the twin, that learned nothing"
    assert reals.sample_target(sampler=sampler) == (
        "p^SDE" if sampler == "ancestral" else f"p^ODE ({sampler} in 40 steps)"
    )
    assert "7 steps" in reals.sample_target(sampler=sampler, steps=7)


def test_mixed_tables_are_drawn_with_values_that_they_may_have(tabular):
    for sampler in ("ab2", "ancestral"):
        drawn = tabular.sample(200, seed=0, sampler=sampler)
        assert len(TABLE.check(drawn)) == 200
        assert np.corrcoef(drawn["a"], drawn["r"])[0, 1] > 0.4
    answer = tabular.log_prob(table_rows(50, 3), seed=0)
    assert (answer.kind, answer.target, answer.measure) == (Kind.LOWER, "p^SDE", TABLE.measure)


def test_missing_cells_are_refused_by_name():
    open_table = Table({"a": Real(), "c": Category(("x", "y"))})
    with pytest.raises(DataError, match="Row 1, column a is missing"):
        Diffusion(open_table).fit({"a": [1.0, None, 2.0], "c": ["x", "y", "x"]}, steps=2)


def test_observed_cells_stay_and_the_others_follow_them(reals, tabular):
    x = reals.sample(1500, seed=3, observed=[[5.0, math.nan]], repeats=4)
    assert (x[:, 0] == 5).all()
    slope = TRUTH.cov[0, 1] / TRUTH.cov[0, 0]
    assert x[:, 1].mean() == pytest.approx(-1 + slope * 2, abs=0.25)
    assert abs(reals.sample(1500, seed=3)[:, 1].mean() - (-1 + slope * 2)) > 0.5, "the twin that does not listen"
    rows = tabular.sample(50, seed=0, observed={"c": ["y"], "r": [0.5]})
    assert set(rows["c"]) == {"y"}
    assert set(rows["r"]) == {0.5}
    assert "observed" in reals.sample_target(observed=[[5.0, math.nan]])
    with pytest.raises(ParameterError, match="ancestral"):
        reals.sample(2, observed=[[5.0, math.nan]], sampler="heun")
    with pytest.raises(ShapeError, match="one row"):
        reals.sample(2, observed=[[5.0, math.nan], [1.0, 2.0]])


def test_covariates_are_heard_and_guidance_exaggerates_them(guided):
    on = {"k": [1]}
    plain, strong = guided.sample(2000, given=on, seed=0), guided.sample(2000, given=on, seed=0, guidance=4.0)
    assert plain.mean() == pytest.approx(2, abs=0.2)
    assert strong.mean() > plain.mean() + 0.1
    blind = guided.sample(2000, given=on, seed=0, guidance=0.0)
    assert abs(blind.mean()) < 0.8
    assert "guidance 4" in guided.sample_target(guidance=4.0)
    by = ProbabilityFlow(tolerance=0.1)
    scores = [guided.log_prob([2.0], given={"k": [k]}, by=by).nats[0] for k in (0, 1)]
    assert scores[1] - scores[0] > 3
    assert guided.sample(3, given={"k": [0, 1]}, seed=0).shape == (2, 3)
    assert guided.log_prob([2.0], given=on, by=VariationalBound(8), seed=0).nats[0] == pytest.approx(scores[1], abs=1.5)


def test_guidance_needs_covariates_that_were_hidden_in_training(reals, guided):
    with pytest.raises(ParameterError, match="without a context"):
        reals.sample(2, guidance=2.0)
    deaf = Diffusion(Array(()), context=guided.context, hidden=8, blocks=1, chain=4, forget=0.0)
    deaf.fit(RNG.normal(size=60), given={"k": RNG.integers(0, 2, 60)}, steps=2, seed=0)
    with pytest.raises(ParameterError, match="forget=0"):
        deaf.sample(2, given={"k": [1]}, guidance=2.0)
    with pytest.raises(ParameterError, match="guidance"):
        guided.sample(2, given={"k": [1]}, guidance=-1.0)


# Images


def test_a_u_net_keeps_odd_shapes_and_its_velocity_leaves_other_rows_alone():
    net = UNet((2, 15, 11), 5, (8, 16))
    reset(net, seeded())
    x, extra = torch.randn(3, 2, 15, 11, generator=seeded(1)), torch.randn(3, 5, generator=seeded(2))
    out = net(x, extra)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:2], extra[1:2]), out[1:2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(net(x, extra + 1), out)


@pytest.mark.parametrize(("shape", "support"), [((16, 16), {"levels": 4}), ((16, 16, 3), {}), ((3, 16, 18), {})])
def test_images_are_fitted_sampled_and_scored(shape, support):
    event = Array(shape, **support)
    x = RNG.integers(0, 4, (60, *shape)) if support else RNG.normal(size=(60, *shape))
    model = Diffusion.for_event(event, channels=(8, 8), chain=4).fit(x, steps=3, batch_size=8, seed=0)
    assert model.sample(2, seed=0, steps=3).shape == (2, *shape)
    answer = model.log_prob(x[:2], seed=0)
    assert (answer.kind, answer.target) == (Kind.LOWER, "p^SDE")
    if not support:
        flow = model.log_prob(x[:2], by=ProbabilityFlow(probes=2, steps=2, most=2), seed=0)
        assert (flow.kind, flow.target) == (Kind.ESTIMATE, "p^ODE")


# Arguments

WRONG = [
    {"hidden": 0}, {"blocks": 0}, {"chain": 1}, {"chain": 2.5}, {"forget": 1.0}, {"forget": -0.1}, {"channels": (0,)},
    {"channels": (8,)},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG, ids=repr)
def test_wrong_constructor_arguments_are_refused(options):
    with pytest.raises(ParameterError):
        Diffusion(Array((3,)), **options)


def test_dequantisation_needs_rounded_numbers():
    for event in (Array((2,)), TABLE):
        with pytest.raises(StructureError, match="rounded numbers"):
            Diffusion(event, dequantise=True)


@pytest.mark.parametrize(
    "options", [{"sampler": "euler"}, {"steps": 0}, {"steps": 1}, {"steps": True}, {"repeats": 0}], ids=repr
)
def test_wrong_options_of_sample_are_refused(reals, options):
    with pytest.raises(ParameterError):
        reals.sample(2, **options)


def test_wrong_options_of_fit_and_of_the_bound_are_refused():
    with pytest.raises(ParameterError, match="power"):
        Diffusion(Array((2,))).fit(normal_rows(60), steps=1, power=0.2)
    for samples in (0, 1, 2.5, True):
        with pytest.raises(ParameterError):
            VariationalBound(samples)


def test_a_resumed_fit_gives_the_same_bits(tmp_path):
    def made():
        return Diffusion(Array((2,)), hidden=8, blocks=1, chain=4)

    x = normal_rows(80)
    whole = made().fit(x, steps=6, seed=1, checkpoint=str(tmp_path / "a"), every=2)
    again = made().fit(x, steps=6, seed=1, checkpoint=str(tmp_path / "a"), every=2, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_chain_times_ascend_to_pure_noise():
    times = chain_times(20, 0.01)
    assert (times.diff() > 0).all()
    assert float(times[0]) == pytest.approx(0.01)
    assert float(times[-1]) == END


def test_nothing_global_is_touched(reals):
    before = torch.get_rng_state()
    reals.sample(3, seed=0, sampler="ancestral")
    reals.log_prob(normal_rows(3), by=VariationalBound(2))
    assert torch.equal(before, torch.get_rng_state())
    assert len(pyro.get_param_store()) == 0
