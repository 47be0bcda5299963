"""Multimodal models: against closed forms and quadrature, with parts missing, conditionals, drawing, bad input."""

import copy
import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

import probgen as pg
from probgen import store
from probgen.errors import DataError, Incomparable, ParameterError, ShapeError, StructureError, SupportError
from probgen.estimate import ELBO, IWAE
from probgen.estimate.bidirectional import bdmc
from probgen.events import Array, Category, Parts, Real, Record, Series, Table, Text, Words, row_hash, take
from probgen.logprob import Kind
from probgen.model import FitReport
from probgen.models.multimodal import MultimodalVAE, SelfNormalised, conditionals
from probgen.models.multimodal.learning import NegativeBound, divergence, subsets
from probgen.nn.text import TextDecoder

ALPHA = 1e-6
D = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _known_to_the_store(monkeypatch):
    monkeypatch.setitem(store.FAMILIES, "MultimodalVAE", "probgen.models.multimodal")
    monkeypatch.setitem(store._PARTS, "Words", "probgen.events")


# Two linear-Gaussian parts have closed forms, and their experts multiply to the exact posterior


LOADS = {"a": np.array([[1.0, 0.0], [0.0, 0.7], [0.8, 0.0]]), "b": np.array([[0.0, 1.3], [0.9, 0.0]])}
MEANS = {"a": np.array([1.0, -1.0, 0.3]), "b": np.array([0.5, 2.0])}
SIGMA = {"a": 0.6, "b": 0.8}
LINEAR = Record(a=Array((3,)), b=Array((2,)))


def linear(off=0.0):
    """Experts N((W^T W)^-1 W^T (x - mu), sigma^2 (W^T W)^-1), of which each is p(x_m | z) as a function of z."""
    model = MultimodalVAE(LINEAR, 2, (), (), aggregation="poe", prior="normal").double()
    with torch.no_grad():
        for (name, part), expert in zip(model.named_parts(), model.guiding.experts, strict=True):
            loads, sigma = LOADS[name], SIGMA[name]
            rows = len(loads)
            precision = (loads**2).sum(0)
            out = part.decoder.net.layers[0]
            out.weight[:rows], out.bias[:rows] = torch.tensor(loads), torch.tensor(MEANS[name])
            out.weight[rows:], out.bias[rows:] = 0.0, math.log(sigma)
            part.encoder.net.layers[0].weight.copy_(torch.eye(rows))
            gain = torch.tensor(loads.T / precision[:, None])
            own = expert.layers[0]
            own.weight[:2], own.bias[:2] = gain, -gain @ torch.tensor(MEANS[name]) + off
            own.bias[2:] = torch.tensor(np.log(np.expm1(sigma / np.sqrt(precision) - 1e-4))) - 0.5
    model.report = FitReport((), 0, "imported")
    return model


def rows_of_linear(n, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    return {m: z @ LOADS[m].T + MEANS[m] + SIGMA[m] * rng.normal(size=(n, len(MEANS[m]))) for m in LOADS}


def law(names):
    """Mean and covariance of some parts, side by side."""
    loads = np.concatenate([LOADS[m] for m in names])
    noise = np.concatenate([np.full(len(MEANS[m]), SIGMA[m] ** 2) for m in names])
    return np.concatenate([MEANS[m] for m in names]), loads @ loads.T + np.diag(noise)


def truth(x, names):
    return stats.multivariate_normal(*law(names)).logpdf(np.concatenate([x[m] for m in names], 1))


@pytest.mark.parametrize("names", [("a", "b"), ("a",), ("b",)])
def test_experts_multiply_to_the_exact_posterior_of_every_subset_of_linear_gaussian_parts(names):
    x = rows_of_linear(30)
    seen = {m: x[m] for m in names}
    np.testing.assert_allclose(linear().log_prob(seen, by=ELBO(2), seed=0).nats, truth(x, names), atol=1e-8)
    assert (linear(0.3).log_prob(seen, by=ELBO(2000), seed=0).nats < truth(x, names) - 0.01).mean() > 0.9


@pytest.mark.parametrize("asked", ["a", "b"])
def test_a_conditional_of_linear_gaussian_parts_is_the_difference_of_the_closed_forms(asked):
    x, given = rows_of_linear(20, 1), "b" if asked == "a" else "a"
    answer = linear().log_prob({asked: x[asked]}, given={given: x[given]}, seed=0)
    assert answer.kind is Kind.ESTIMATE
    assert answer.of == f"{asked}|{given}"
    wanted = truth(x, ("a", "b")) - truth(x, (given,))
    z = (answer.nats - wanted) / answer.stderr
    assert np.isfinite(z).all()
    assert stats.chi2.sf((z**2).sum(), len(z)) > ALPHA
    assert stats.chi2.sf((((answer.nats - truth(x, (asked,))) / answer.stderr) ** 2).sum(), len(z)) < ALPHA


def test_draws_given_a_part_have_the_conditional_mean_and_spread():
    x = rows_of_linear(1, 2)
    n = 4000
    drawn = linear().sample(n, given={"a": x["a"]}, seed=0, draws=8000)["b"]
    mean, cov = law(("a", "b"))
    gain = cov[3:, :3] @ np.linalg.inv(cov[:3, :3])
    wanted, spread = mean[3:] + gain @ (x["a"][0] - mean[:3]), cov[3:, 3:] - gain @ cov[:3, 3:]
    z = (drawn.mean(0) - wanted) / np.sqrt(np.diag(spread) / n * 2)  # resampling repeats some draws of z
    assert (abs(z) < stats.norm.isf(ALPHA)).all()
    assert abs((drawn.mean(0) - mean[3:]) / np.sqrt(np.diag(spread) / n * 2)).max() > stats.norm.isf(ALPHA)


# Two parts of five levels: what a grid over z says is the truth


FIVE = Record(x=Array((), levels=5), y=Array((), levels=5))
PAIRS = list(itertools.product(range(5), range(5)))


@pytest.fixture(scope="module")
def five():
    """Decoders set at random, so that the parts depend on one another; guides about as wide as the prior."""
    model = MultimodalVAE.for_event(FIVE, latent_dim=1, hidden=(16,), prior="normal")
    model.fit({"x": np.arange(60) % 5, "y": np.arange(60) % 5}, steps=1, seed=0, progress=False)
    with torch.no_grad():
        for _, part in model.named_parts():
            first, last = part.decoder.net.layers
            first.weight.copy_(torch.linspace(0.5, 2.0, 16)[:, None])
            first.bias.copy_(torch.linspace(-2.0, 2.0, 16))
            last.weight.copy_(torch.tensor([[0.15], [-0.05]]).expand(2, 16))
            last.bias.copy_(torch.tensor([-1.2, -0.2]))
    return model.double()


@pytest.fixture(scope="module")
def table(five):
    """log p(x, y), (5, 5), by a grid over z."""
    z = torch.linspace(-9, 9, 4001, dtype=D)[:, None, None]
    weight = five.latent.log_prob(z) + math.log(18 / 4000)
    nats = []
    for name, part in five.named_parts():
        nats.append(part.nats(z.expand(-1, 5, -1), torch.arange(5.0, dtype=D)[:, None]))
        assert name in FIVE.parts
    return (weight[..., None] + nats[0][:, :, None] + nats[1][:, None, :]).logsumexp(0).detach().numpy()


def all_pairs():
    return {"x": np.array([a for a, _ in PAIRS]), "y": np.array([b for _, b in PAIRS])}


def test_the_joint_of_all_pairs_is_what_a_grid_says_and_its_masses_sum_to_one(five, table):
    answer = five.log_prob(all_pairs(), by=IWAE(20_000), seed=0)
    np.testing.assert_allclose(answer.nats, table.reshape(-1), atol=0.05)
    np.testing.assert_allclose(np.exp(table).sum(), 1.0, atol=1e-6)


def test_joint_is_marginal_times_conditional_for_all_pairs(five, table):
    pairs = all_pairs()
    first = five.log_prob({"x": pairs["x"]}, seed=0)
    rest = five.log_prob({"y": pairs["y"]}, given={"x": pairs["x"]}, seed=0)
    both = rest + first
    z = (both.nats - table.reshape(-1)) / both.stderr
    assert np.isfinite(z).all()
    assert stats.chi2.sf((z**2).sum(), 25) > ALPHA
    swapped = five.log_prob({"y": pairs["x"]}, given={"x": pairs["y"]}, seed=0).nats
    assert stats.chi2.sf((((first.nats + swapped - table.reshape(-1)) / both.stderr) ** 2).sum(), 25) < ALPHA
    assert (first.of, rest.of, both.of, both.kind) == ("x", "y|x", "y,x", "estimate")
    whole = five.log_prob(pairs, by=IWAE(2), seed=0)
    assert (first + rest).event.same_rows(whole.event)
    assert (first + rest).event.dims.tolist() == whole.event.dims.tolist()
    assert (first + rest).measure == (first + rest).event.measure == whole.measure


def test_the_chain_rule_wants_the_same_rows(five):
    pairs = all_pairs()
    rest = five.log_prob({"y": pairs["y"]}, given={"x": pairs["x"]}, by=None, seed=0)
    other = five.log_prob({"x": pairs["x"][::-1]}, seed=0)
    with pytest.raises(Incomparable, match="different rows"):
        rest + other
    one = five.log_prob({"y": pairs["y"]}, given={"x": [3]}, seed=0) + five.log_prob({"x": [3] * 25}, seed=0)
    assert one.event.same_rows(five.event.check({"x": [3] * 25, "y": pairs["y"]}).about)
    assert rest[3:5].event.conditions.keys.tolist() == [3, 4]
    marginal = five.log_prob({"x": pairs["x"]}, by=IWAE(20), seed=0)
    drawn = five.log_prob({"y": pairs["y"]}, given={"x": pairs["x"]}, by=SelfNormalised(100), seed=0)
    assert (marginal.of, drawn.of, (drawn + marginal).of) == ("x", "y|x", "y,x")


def test_a_missing_part_is_the_marginal(five, table):
    marginal = np.log(np.exp(table).sum(1))
    for missing in (None, np.full(5, np.nan), [None] * 5):
        answer = five.log_prob({"x": np.arange(5), "y": missing}, seed=0)
        np.testing.assert_allclose(answer.nats, marginal, atol=6 * answer.stderr.max())
        assert answer.kind is Kind.LOWER
    mixed = five.log_prob({"x": [0, 1, None], "y": [None, 1, 2]}, seed=0).nats
    wanted = [marginal[0], table[1, 1], np.log(np.exp(table).sum(0))[2]]
    np.testing.assert_allclose(mixed, wanted, atol=0.15)
    assert abs(mixed - np.roll(wanted, 1)).max() > 0.5


def test_a_posterior_over_all_values_sums_to_one_and_is_the_conditional(five, table):
    found = five.posterior_over("y", list(range(5)), given={"x": np.arange(5)}, samples=4000, seed=0)
    np.testing.assert_allclose(found.p.sum(1), 1, atol=1e-12)
    conditional = np.exp(table - np.log(np.exp(table).sum(1, keepdims=True)))
    z = (found.p - conditional) / found.stderr
    assert abs(z).max() < 6
    assert abs((found.p.T - conditional) / found.stderr).max() > 6  # the twin: asked the other way
    parity = found.grouped(["even" if v % 2 == 0 else "odd" for v in range(5)])
    np.testing.assert_allclose(parity.p[:, 0], found.p[:, ::2].sum(1), atol=1e-12)
    assert parity.choices == ["even", "odd"]
    assert found.grouped([None, "low", "low", None, None]).p.tolist() == [[1.0]] * 5


def test_a_posterior_without_anything_given_is_the_marginal_of_the_part(five, table):
    found = five.posterior_over("y", [0, 1, 2, 3, 4], samples=20_000, seed=0)
    marginal = np.exp(table).sum(0)
    assert (abs(found.p[0] - marginal) < 6 * found.stderr[0]).all()


def test_the_joint_bound_grows_with_samples(five):
    x = take(five.event.check(all_pairs()).x, slice(None))
    few, many = (five.log_prob(dict(x), by=IWAE(s), seed=0).mean().value for s in (2, 200))
    one = five.log_prob(dict(x), by=ELBO(200), seed=0).mean().value
    assert one < few < many


def test_samples_follow_the_joint(five, table):
    drawn = five.sample(5000, seed=0)
    counts = np.zeros((5, 5))
    np.add.at(counts, (drawn["x"].astype(int), drawn["y"].astype(int)), 1)
    p = np.exp(table).reshape(-1)
    assert stats.chisquare(counts.reshape(-1), 5000 * p / p.sum()).pvalue > ALPHA
    cold = p**1.3
    assert stats.chisquare(counts.reshape(-1), 5000 * cold / cold.sum()).pvalue < ALPHA


def test_the_difference_of_two_bounds_is_refused(five):
    pairs = all_pairs()
    alone = five.log_prob({"x": pairs["x"]}, by=IWAE(20), seed=0)
    assert alone.measure == FIVE.measure_of(["x"]) != FIVE.measure
    with pytest.raises(Incomparable, match="measure"):
        five.log_prob(pairs, by=IWAE(20), seed=0) - alone


# Text


def test_probabilities_of_all_short_texts_and_their_continuations_sum_to_one():
    event = Record(t=Text(), v=Array())
    model = MultimodalVAE(event, 2, (8,), (), text=6, prior="normal").double()
    net = dict(model.named_parts())["t"]
    with torch.no_grad():
        for weight in net.decoder.parameters():
            weight.normal_(0, 0.5, generator=seeded())
    z, one = torch.tensor([[0.3, -1.0]], dtype=D), torch.arange(256)[:, None]
    single = net.nats(z.expand(256, -1), one)
    ids = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    double = net.nats(z.expand(len(ids), -1), ids)
    states = net.decoder.states(one)
    going_on = torch.log1p(-net._log_pmf(net.decoder.scores(states, z.expand(256, -1)))[:, 1, -1].exp())
    begun = single - net._log_pmf(net.decoder.scores(states, z.expand(256, -1)))[:, 1, -1]
    longer = (begun + going_on).logsumexp(0)
    assert float(torch.logaddexp(single.logsumexp(0), longer).detach()) == pytest.approx(0, abs=1e-9)
    assert float(double.logsumexp(0).detach()) < float(longer.detach())


def test_padding_behind_a_text_changes_nothing():
    model = MultimodalVAE(Record(t=Text(), v=Array()), 2, (8,), (), text=6, prior="normal").double()
    net = dict(model.named_parts())["t"]
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.5, generator=seeded())
    z, ids = torch.ones(2, 2, dtype=D), torch.tensor([[3, 5, -1], [7, 9, 11]])
    padded = torch.cat([ids, torch.full((2, 4), -1)], 1)
    torch.testing.assert_close(net.nats(z, ids), net.nats(z, padded), rtol=1e-12, atol=0)
    torch.testing.assert_close(net.features(ids), net.features(padded), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net.nats(z[:1], ids[:1, :2]), net.nats(z, ids)[:1], rtol=1e-12, atol=0)
    assert not torch.allclose(net.nats(z, ids.flip(1).clamp(min=0)), net.nats(z, ids))


def test_drawn_texts_follow_the_density_given_z():
    model = MultimodalVAE(Record(t=Text(), v=Array()), 1, (8,), (), text=6, prior="normal")
    net = dict(model.named_parts())["t"]
    with torch.no_grad():
        for weight in net.decoder.parameters():
            weight.normal_(0, 0.7, generator=seeded())
        net.decoder.head.layers[-1].bias[3:256] = -30.0  # three letters and the end
    n, z = 4000, torch.full((4000, 1), 0.5)
    drawn = [tuple(row.tolist()) for row in net.draw(z, seeded(1)).split()]
    texts = [t for size in (1, 2) for t in itertools.product(range(3), repeat=size)]
    packed = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in texts], batch_first=True, padding_value=-1)
    p = net.nats(z[: len(texts)], packed).double().exp().detach().numpy()
    counts = np.array([drawn.count(t) for t in texts] + [sum(len(t) > 2 for t in drawn)])
    wanted = np.append(p, 1 - p.sum())
    kept = wanted * n > 5
    assert stats.chisquare(counts[kept], wanted[kept] / wanted[kept].sum() * counts[kept].sum()).pvalue > ALPHA
    wrong = wanted[kept] ** 0.8
    assert stats.chisquare(counts[kept], wrong / wrong.sum() * counts[kept].sum()).pvalue < ALPHA


def test_a_text_decoder_reads_prefixes_step_by_step_as_it_does_at_once():
    net = TextDecoder(5, 2, 4)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.5, generator=seeded())
    ids = torch.tensor([[1, 4, 2]])
    state, steps = net.first(1), []
    for i in range(4):
        steps.append(state)
        if i < 3:
            state = net.next(state, ids[:, i])
    torch.testing.assert_close(torch.stack(steps, 1), net.states(ids))


# Pictures of three kinds with captions, small and quick


RNG = np.random.default_rng(3)
KINDS = np.stack([np.tri(8) * 0.9 + 0.05, np.eye(8) * 0.9 + 0.05, np.outer(np.ones(8), np.arange(8) > 3) * 0.9 + 0.05])
KIND = RNG.integers(3, size=300)
IMAGES = (RNG.random((300, 8, 8)) < KINDS[KIND]).astype(int)
CAPTIONS = [f"a {['triangle', 'stroke', 'half'][k]}" for k in KIND]
ALL = ["a half", "a stroke", "a triangle"]
PICTURES = Record(image=Array((8, 8), levels=2), caption=Text(Words.learn(CAPTIONS)))
SMALL = {"latent_dim": 3, "hidden": (32,), "text": 16, "pseudo_inputs": 20}


QUICK = {"batch_size": 64, "learning_rate": 8e-3, "seed": 0, "progress": False}


def fitted(steps=300, **options):
    model = MultimodalVAE.for_event(PICTURES, **{**SMALL, **options})
    return model.fit({"image": IMAGES, "caption": CAPTIONS}, steps=steps, **QUICK)


@pytest.fixture(scope="module")
def pictures():
    return fitted()


def some(rows=slice(0, 12)):
    return {"image": IMAGES[rows], "caption": CAPTIONS[rows]}


def test_captions_and_images_follow_one_another(pictures):
    said = pictures.caption(IMAGES[:60])
    assert np.mean([a == b for a, b in zip(said, CAPTIONS[:60], strict=True)]) > 0.9
    drawn = pictures.imagine(ALL, 20, seed=0)
    assert drawn.shape == (3, 20, 8, 8)
    nearest = abs(drawn[:, :, None] - KINDS[[2, 1, 0]]).sum((3, 4)).argmin(2)
    assert (nearest == np.arange(3)[:, None]).mean() > 0.9
    together = pictures.sample(60, seed=0)
    nearest = abs(together["image"][:, None] - KINDS[[2, 1, 0]]).sum((2, 3)).argmin(1)
    assert np.mean([ALL[k] == c for k, c in zip(nearest, together["caption"], strict=True)]) > 0.85


@pytest.mark.parametrize("aggregation", ["poe", "moe", "mopoe"])
def test_each_published_aggregation_raises_its_objective_and_gives_a_bound(aggregation):
    model = fitted(40, aggregation=aggregation, prior="normal")
    assert model.report.objective[-1] > model.report.objective[0]
    for x in (some(), {"image": IMAGES[:3]}, {"caption": CAPTIONS[:3]}):
        assert model.log_prob(x, by=IWAE(50), seed=0).kind is Kind.LOWER


def test_the_hook_is_the_log_density_of_the_program_and_the_guide_proposes_what_it_says(pictures):
    model = copy.deepcopy(pictures).double()
    rows = {"image": [None, *IMAGES[1:4]], "caption": [*CAPTIONS[:3], None]}
    for data in (some(slice(4)), rows, {"caption": CAPTIONS[:4]}, {"image": IMAGES[:4]}):
        x = model.event.check(data).x
        z = torch.randn(4, 3, dtype=D, generator=seeded())
        trace = poutine.trace(poutine.condition(model.model, {"z": z})).get_trace(x)
        trace.compute_log_prob()
        total = sum(
            site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample" and site["name"] != "rows"
        )
        torch.testing.assert_close(model._log_joint(x, z[None], None)[0], total, rtol=1e-9, atol=1e-9)
        noise = torch.randn(1, 4, 3, dtype=D, generator=seeded(1))
        proposed, log_q = model._propose(x, None, noise)
        guided = poutine.trace(poutine.condition(model.guide, {"z": proposed[0]})).get_trace(x)
        guided.compute_log_prob()
        torch.testing.assert_close(guided.nodes["z"]["log_prob"], log_q[0], rtol=1e-9, atol=1e-9)


def test_the_program_draws_records_that_pass_the_check(pictures):
    pyro.set_rng_seed(0)
    with torch.no_grad():
        drawn = pictures.model(n=5)
    again = pictures.event.restore(drawn)
    assert len(pictures.event.check(again)) == 5


def test_one_step_of_svi_moves_the_parameters_and_leaves_the_store_empty_otherwise():
    model = fitted(2)
    program, guide = pg.pyro_pair(model)
    x, before = model.event.check(some()).x, [p.detach().clone() for p in model.parameters()]
    pyro.clear_param_store()
    svi = pyro.infer.SVI(program, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    svi.step(x)
    pyro.clear_param_store()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_bdmc_brackets_simulated_records(pictures):
    gap = bdmc(pictures, rows=8, by=pg.AIS(chains=16, temperatures=30), seed=0)
    assert -0.5 < gap.mean < 3


def test_scores_do_not_depend_on_batch_order_or_company(pictures):
    whole = pictures.log_prob(some(), by=IWAE(100), seed=0).nats
    order = np.random.default_rng(0).permutation(12)
    turned = {"image": IMAGES[:12][order], "caption": [CAPTIONS[i] for i in order]}
    np.testing.assert_allclose(pictures.log_prob(turned, by=IWAE(100), seed=0).nats, whole[order], rtol=1e-5)
    few = pictures.log_prob(some(slice(3, 5)), by=IWAE(100), seed=0).nats
    np.testing.assert_allclose(few, whole[3:5], rtol=1e-5)
    assert not np.allclose(few, whole[2:4], rtol=1e-5)
    part = pictures.log_prob({"caption": CAPTIONS[:5]}, given={"image": IMAGES[:5]}, seed=0).nats
    alone = pictures.log_prob({"caption": CAPTIONS[2:3]}, given={"image": IMAGES[2:3]}, seed=0).nats
    np.testing.assert_allclose(alone, part[2:3], rtol=1e-3, atol=1e-5)


def test_a_row_that_lacks_a_part_scores_as_the_part_left_out(pictures):
    gaps = {"image": [None, *IMAGES[1:3]], "caption": [CAPTIONS[0], None, CAPTIONS[2]]}
    nats = pictures.log_prob(gaps, by=IWAE(100), seed=0).nats
    alone = [pictures.log_prob({"caption": CAPTIONS[:1]}, by=IWAE(100), seed=0).nats[0],
             pictures.log_prob({"image": IMAGES[1:2]}, by=IWAE(100), seed=0).nats[0],
             pictures.log_prob(some(slice(2, 3)), by=IWAE(100), seed=0).nats[0]]  # fmt: skip
    np.testing.assert_allclose(nats, alone, rtol=1e-5)


def test_it_trains_with_parts_missing_in_rows_and_learns_from_what_is_there():
    data = {"image": [None if i % 5 == 0 else row for i, row in enumerate(IMAGES)],
            "caption": [None if i % 5 == 1 else text for i, text in enumerate(CAPTIONS)]}  # fmt: skip
    model = MultimodalVAE.for_event(PICTURES, **SMALL).fit(data, steps=300, **QUICK)
    said = model.caption(IMAGES[:60])
    assert np.mean([a == b for a, b in zip(said, CAPTIONS[:60], strict=True)]) > 0.85


def test_a_conditional_over_all_captions_and_the_estimate_of_each_agree(pictures):
    given = {"image": IMAGES[:4]}
    over = pictures.posterior_over("caption", ALL, given=given, samples=2000, seed=0)
    each = np.stack([pictures.log_prob({"caption": [c] * 4}, given=given, seed=0).nats for c in ALL], 1)
    np.testing.assert_allclose(np.exp(each).sum(1), 1, atol=0.05)
    np.testing.assert_allclose(over.p, np.exp(each), atol=0.05)
    assert over.best() == CAPTIONS[:4]


def test_where_few_draws_carry_the_weight_the_estimate_climbs_to_chains_and_ladders(pictures, monkeypatch):
    plain = pictures.log_prob({"caption": CAPTIONS[:2]}, given={"image": IMAGES[:2]}, seed=0)
    chained = pictures.log_prob({"caption": CAPTIONS[:2]}, given={"image": IMAGES[:2]},
                                by=SelfNormalised(60, enough=59), seed=0)  # fmt: skip
    assert (chained.diagnostics["rung"] == 3).all()
    np.testing.assert_allclose(chained.nats, plain.nats, atol=0.1)
    assert "AIS" in chained.by
    monkeypatch.setattr(conditionals, "_CHAINS", 400)  # no chain is ever good enough
    backwards = {"x": {"image": IMAGES[:2]}, "given": {"caption": CAPTIONS[:2]}}
    plain = pictures.log_prob(**backwards, seed=0)
    climbed = pictures.log_prob(**backwards, by=SelfNormalised(60, enough=59), seed=0)
    assert (climbed.diagnostics["rung"] == 4).all()
    assert "Ladder" in climbed.by
    np.testing.assert_allclose(climbed.nats, plain.nats, atol=1.5)
    assert abs(climbed.nats - plain.nats[::-1]).max() > 2


def test_draws_keep_what_is_given_and_come_in_groups(pictures):
    found = pictures.sample(3, given={"caption": ALL[:2]}, seed=0)
    assert found["image"].shape == (2, 3, 8, 8)
    assert found["caption"] == [["a half"] * 3, ["a stroke"] * 3]
    one = pictures.sample(3, given={"image": IMAGES[:1]}, seed=0, posterior="guide")
    np.testing.assert_array_equal(one["image"], np.repeat(IMAGES[:1], 3, 0))
    assert len(one["caption"]) == 3
    assert pictures.sample_target() == "p"
    assert "guide" in pictures.sample_target(given=1, posterior="guide")
    assert "resampled" in pictures.sample_target(given=1)
    varied = pictures.vary(some(slice(2)), 3, seed=0)
    assert varied["image"].shape == (2, 3, 8, 8)
    assert [len(row) for row in varied["caption"]] == [3, 3]
    assert not np.array_equal(varied["image"][0, 0], varied["image"][0, 1])
    along = pictures.traverse(some(slice(1)), [0, 2], 5)
    assert along["image"].shape == (2, 5, 8, 8)
    assert [len(row) for row in along["caption"]] == [5, 5]


def test_equal_seeds_give_equal_draws_and_other_seeds_others(pictures):
    for verb in (lambda s: pictures.sample(4, seed=s)["image"], lambda s: pictures.imagine(ALL, 2, seed=s),
                 lambda s: pictures.vary(some(slice(2)), seed=s)["image"]):  # fmt: skip
        np.testing.assert_array_equal(verb(1), verb(1))
        assert not np.array_equal(verb(1), verb(2))


def test_a_saved_model_gives_the_same_bits(pictures, tmp_path):
    pg.save(pictures, tmp_path / "mm")
    again = pg.load(tmp_path / "mm")
    assert repr(again) == repr(pictures)
    np.testing.assert_array_equal(
        again.log_prob(some(slice(2)), seed=0).nats, pictures.log_prob(some(slice(2)), seed=0).nats
    )
    assert again.sample(3, seed=0)["caption"] == pictures.sample(3, seed=0)["caption"]
    assert again.caption(IMAGES[:3]) == copy.deepcopy(pictures).caption(IMAGES[:3])


def test_training_goes_on_from_a_checkpoint_as_if_unbroken(tmp_path):
    data = {"image": IMAGES, "caption": CAPTIONS}
    options = {"seed": 0, "progress": False, "every": 10, "checkpoint": str(tmp_path)}
    unbroken = MultimodalVAE.for_event(PICTURES, **SMALL).fit(data, steps=20, seed=0, progress=False)
    MultimodalVAE.for_event(PICTURES, **SMALL).fit(data, steps=20, **options)
    resumed = MultimodalVAE.for_event(PICTURES, **SMALL).fit(data, steps=20, resume=True, **options)
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_picture_of_records_is_written(pictures, tmp_path):
    assert pictures.plot(some(), tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_tables_and_vectors_join_as_parts():
    rng = np.random.default_rng(0)
    v = rng.normal(size=(80, 2))
    event = Record(v=Array((2,)), t=Table({"sex": Category(("f", "m")), "cm": Real("cm")}))
    data = {"v": v, "t": {"sex": np.where(v[:, 0] > 0, "f", "m"), "cm": 170 + 5 * v[:, 1]}}
    model = MultimodalVAE.for_event(event, **SMALL).fit(data, steps=30, seed=0, progress=False)
    drawn = model.sample(4, given={"v": v[:1]}, seed=0)
    assert len(event.check(drawn)) == 4
    assert np.isfinite(model.log_prob({"t": {"sex": ["f", None], "cm": [None, 171.0]}}, seed=0).nats).all()
    with pytest.raises(ParameterError, match="Table"):
        model.sample(2, given={"v": v[:2]})


# What trains the guides of subsets


def test_the_guides_of_subsets_are_drawn_to_the_whole_one_and_the_decoders_are_not_touched():
    model = fitted(2)
    x = {"image": IMAGES[:50], "caption": CAPTIONS[:50]}
    packed = model._packed(model.event.check(x).x)
    loss = NegativeBound(model, {"image": 1.0, "caption": 1.0}, {}, 1.0, 0.0)
    bare = NegativeBound(model, {"image": 1.0, "caption": 1.0}, {}, 1.0, 0.0, matching=0.0)
    extra = loss._joint(packed, seeded(), 1.0) - bare._joint(packed, seeded(), 1.0)
    decoders = [p for _, part in model.named_parts() for p in part.decoder.parameters()]
    gradients = torch.autograd.grad(extra, decoders, retain_graph=True, allow_unused=True)
    assert all(g is None or float(g.abs().max()) < 1e-6 for g in gradients)
    (own,) = torch.autograd.grad(extra, [model.guiding.subset.layers[0].weight], retain_graph=True)
    assert float(own.abs().max()) > 1e-6
    whole = torch.autograd.grad(extra, list(model.guiding.whole.parameters()), allow_unused=True)
    assert all(g is None or float(g.abs().max()) < 1e-6 for g in whole)


def test_the_divergence_of_two_normals_is_what_torch_says():
    p = (torch.randn(4, 3, dtype=D, generator=seeded()), torch.rand(4, 3, dtype=D, generator=seeded(1)) + 0.1)
    q = (torch.randn(4, 3, dtype=D, generator=seeded(2)), torch.rand(4, 3, dtype=D, generator=seeded(3)) + 0.1)
    wanted = torch.distributions.kl_divergence(torch.distributions.Normal(*p), torch.distributions.Normal(*q)).sum(1)
    torch.testing.assert_close(divergence(p, q), wanted)
    assert subsets({"a": 0, "b": 0}) == [("a",), ("b",), ("a", "b")]


@pytest.mark.parametrize("aggregation", ["poe", "moe", "mopoe"])
def test_the_published_objectives_of_linear_parts_have_their_closed_forms(aggregation):
    """With exact experts the ELBO of a subset of itself is its log-likelihood, whatever the draw."""
    model = linear()
    model.aggregation = aggregation
    x = rows_of_linear(20)
    packed = model._packed(model.event.check(x).x)
    loss = NegativeBound(model, {"a": 1.0, "b": 1.0}, {}, 1.0, 0.0)
    if aggregation == "poe":
        found = float(loss._poe(packed, seeded(), 1.0).detach())
        exact = sum(truth(x, names).mean() for names in (("a", "b"), ("a",), ("b",)))
        # the divergence is exact, the reconstruction has one draw a row: on average the sum is exact
        many = np.mean([float(loss._poe(packed, seeded(i), 1.0).detach()) for i in range(300)])
        assert many == pytest.approx(-exact, abs=0.15)
        assert found != pytest.approx(-exact + 1, abs=0.15)
        return
    many = np.mean([float(getattr(loss, f"_{aggregation}")(packed, seeded(i), 1.0).detach()) for i in range(300)])
    assert many > -truth(x, ("a", "b")).mean()  # minus a bound on the joint


# Bad input


def some_images():
    return {"image": IMAGES[:1]}


BAD = {
    "unknown part": (lambda m: m.log_prob({"picture": IMAGES[:2]}), ShapeError, "picture"),
    "unknown part given": (lambda m: m.sample(2, given={"captoin": ["a half"]}), ParameterError, "captoin"),
    "lengths": (lambda m: m.log_prob({"image": IMAGES[:2], "caption": ALL}), ShapeError, "rows"),
    "nothing": (lambda m: m.log_prob({"image": None}), ShapeError, "missing"),
    "nothing in a row": (lambda m: m.log_prob({"image": [None], "caption": [None]}), ShapeError, "missing"),
    "nothing in one row": (lambda m: m.log_prob({"caption": ["a", None], "image": None}), DataError, "Row 1"),
    "asked and given": (lambda m: m.log_prob(some(), given={"image": IMAGES[:12]}), ParameterError, "both given"),
    "caption given for a caption": (lambda m: m.caption({"caption": ALL}), ParameterError, "both given and asked"),
    "choices given": (lambda m: m.posterior_over("caption", ALL, given={"caption": ALL}), ParameterError, "both"),
    "rows of given": (lambda m: m.log_prob({"caption": ALL}, given={"image": IMAGES[:2]}), ShapeError, "given="),
    "given no dict": (lambda m: m.sample(2, given="a half"), ParameterError, "parts by name"),
    "given nothing": (lambda m: m.sample(2, given={}), ParameterError, "parts by name"),
    "given to fit": (lambda m: m.fit(some(), given={"image": IMAGES[:12]}), ParameterError, "both given and asked"),
    "empty text": (lambda m: m.log_prob({"caption": ["a half", ""]}), DataError, "Row 1"),
    "no unicode": (lambda m: m.log_prob({"caption": ["\udc80"]}), DataError, "Unicode"),
    "pixels": (lambda m: m.log_prob({"image": IMAGES[:2] * 3}), SupportError, "outside the support"),
    "one image": (lambda m: m.caption(IMAGES[0]), ShapeError, "add an axis"),
    "by a bound": (lambda m: m.log_prob({"caption": ALL[:1]}, given=some_images(), by=IWAE()), ParameterError, "by="),
    "posterior": (lambda m: m.sample(2, given={"caption": ALL}, posterior="best"), ParameterError, "importance"),
    "draws": (lambda m: m.sample(2, given={"caption": ALL}, draws=1), ParameterError, "draws=1"),
    "unknown choice part": (lambda m: m.posterior_over("captions", ALL), ParameterError, "caption"),
    "traverse many": (lambda m: m.traverse(some(), [0]), ParameterError, "one row"),
    "traverse where": (lambda m: m.traverse(some(slice(1)), [7]), ParameterError, "dims"),
    "vary nothing": (lambda m: m.vary(None), ParameterError, "Nothing given"),
    "vary none": (lambda m: m.vary(some(), 0), ParameterError, "n=0"),
    "option": (lambda m: m.vary(some(), temperature=1), ParameterError, "temperature"),
    "sequences": (lambda m: MultimodalVAE(Record(a=Series())), StructureError, "Series"),
    "no record": (lambda m: MultimodalVAE(Text()), StructureError, "Text"),
    "aggregation": (lambda m: MultimodalVAE(PICTURES, aggregation="sum"), ParameterError, "joint"),
    "prior": (lambda m: MultimodalVAE(PICTURES, prior="flat"), ParameterError, "vamp"),
    "weights": (lambda m: MultimodalVAE(PICTURES, weights={"image": 1.0}), ParameterError, "caption"),
    "sizes": (lambda m: MultimodalVAE(PICTURES, 0), ParameterError, "latent_dim=0"),
    "no text": (lambda m: m.imagine(3), ShapeError, "caption"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name, pictures):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call(pictures if name != "given to fit" else MultimodalVAE(PICTURES, **SMALL))


# Parts


def test_parts_are_rows_and_a_mapping():
    x = PICTURES.check({"image": [None, *IMAGES[1:3]], "caption": CAPTIONS[:3]}).x
    assert isinstance(x, Parts)
    assert len(x) == 3
    assert list(x) == ["image", "caption"]
    assert x.seen["image"].tolist() == [False, True, True]
    again = take(x, np.array([2, 0]))
    assert again.seen["image"].tolist() == [True, False]
    np.testing.assert_array_equal(row_hash(x)[[2, 0]], row_hash(again))
    assert len(x[:0]) == 0
    back = PICTURES.restore(x, {"caption": "list"})
    assert np.isnan(back["image"][0]).all()
    assert back["caption"] == CAPTIONS[:3]
