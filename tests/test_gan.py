"""Generative adversarial networks: losses by hand, tables, conditions, and what stands in for a density."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

import probgen as pg
from probgen import store, training
from probgen.datasets import eight_gaussians
from probgen.errors import LikelihoodUnavailable, ParameterError, StructureError, SupportError, ZeroEvidenceError
from probgen.events import Array, Category, Count, Real, Table
from probgen.logprob import Kind
from probgen.model import Latent
from probgen.models.gan import ParzenWarning
from probgen.models.gan.cells import Cells
from probgen.models.gan.conditions import Conditions, Rows
from probgen.models.gan.learning import _Discriminate, _Generate
from probgen.models.gan.losses import discriminator_loss, generator_loss, interpolated_penalty, slope_penalty
from probgen.models.gan.modes import bumps
from probgen.models.gan.networks import Discriminator, Generator
from probgen.models.gan.spectral import Spectral, largest_singular_value
from probgen.nn import MLP, ConvEncoder, reset

ALPHA = 1e-6  # false-alarm rate of one statistical test
D = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Losses and penalties


REAL, FAKE = torch.tensor([2.0, -0.5], dtype=D), torch.tensor([0.5, 0.0], dtype=D)


def soft(t):
    return math.log1p(math.exp(t))


BY_HAND = {  # discriminator, generator
    "relativistic": ((soft(-1.5) + soft(0.5)) / 2, (soft(1.5) + soft(-0.5)) / 2),
    "non_saturating": ((soft(-2.0) + soft(0.5) + soft(0.5) + soft(0.0)) / 2, (soft(-0.5) + soft(0.0)) / 2),
    "wasserstein": (0.25 - 0.75, -0.25),
    "hinge": ((0.0 + 1.5) / 2 + (1.5 + 1.0) / 2, -0.25),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_losses_are_those_computed_by_hand_and_not_with_the_players_swapped(name):
    first, second = BY_HAND[name]
    assert float(discriminator_loss(name, REAL, FAKE)) == pytest.approx(first, rel=1e-12)
    assert float(generator_loss(name, REAL, FAKE)) == pytest.approx(second, rel=1e-12)
    assert float(discriminator_loss(name, FAKE, REAL)) != pytest.approx(first, rel=1e-3)


def judge():
    net = MLP((3, 5, 1)).double()
    reset(net, seeded(1))
    return net, torch.randn(4, 3, generator=seeded(2), dtype=D)


def by_differences(f, x, step=1e-6):
    """df/dx of a scalar function of a tensor."""
    slope = torch.zeros_like(x)
    for place in itertools.product(*map(range, x.shape)):
        nudge = torch.zeros_like(x)
        nudge[place] = step
        slope[place] = (float(f(x + nudge)) - float(f(x - nudge))) / (2 * step)
    return slope


def test_the_slope_penalty_and_its_gradient_are_those_of_finite_differences():
    net, x = judge()
    rows = x.clone().requires_grad_()
    slopes = by_differences(lambda at: net(at).sum().detach(), x)
    value = slope_penalty(net(rows)[:, 0], rows)
    assert float(value.detach()) == pytest.approx(float(slopes.square().sum(1).mean()), rel=1e-6)
    weight = net.layers[0].weight
    (gradient,) = torch.autograd.grad(value, weight)

    def penalty(w):
        other = copy.deepcopy(net)
        other.layers[0].weight.data = w
        again = x.clone().requires_grad_()
        return slope_penalty(other(again)[:, 0], again).detach()

    found = by_differences(penalty, weight.detach(), 1e-5)
    torch.testing.assert_close(gradient, found, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(gradient, 0.5 * found, rtol=1e-2)  # the twin: half the penalty


def test_two_sets_of_rows_pay_the_sum_of_their_penalties():
    net, x = judge()
    a, b = x[:2].clone().requires_grad_(), (x[2:] + 1).clone().requires_grad_()
    both = slope_penalty(net(torch.cat([a, b]))[:, 0], a, b)
    alone = [float(slope_penalty(net(rows)[:, 0], rows).detach()) for rows in (a, b)]
    assert float(both.detach()) == pytest.approx(sum(alone), rel=1e-12)


def test_the_interpolated_penalty_is_that_of_slopes_between_the_rows():
    net, x = judge()
    real, fake, share = x, x.flip(0) * 2, torch.tensor([[0.0], [1.0], [0.25], [0.5]], dtype=D)
    value = interpolated_penalty(lambda rows: net(rows)[:, 0], real, fake, share)
    slopes = by_differences(lambda at: net(at).sum().detach(), fake + share * (real - fake))
    assert float(value.detach()) == pytest.approx(float((slopes.norm(dim=1) - 1).square().mean()), rel=1e-6)
    flat = interpolated_penalty(lambda rows: 0 * rows.sum(1), real, fake, share)
    assert float(flat.detach()) == pytest.approx(1.0, rel=1e-4)
    (gradient,) = torch.autograd.grad(value, net.layers[0].weight)
    assert gradient.isfinite().all()


# Spectral norm


def spectral(net):
    reset(net, seeded(3))
    with torch.no_grad():
        for part in net.parameters():
            part.mul_(3)
    found = Spectral(net)
    found.start()
    return found


def true_sigmas(net):
    return [torch.linalg.svdvals(w.flatten(1).double())[0] for n, w in net.named_parameters() if n.endswith("weight")]


@pytest.mark.parametrize("net", [MLP((4, 16, 16, 1)), ConvEncoder((1, 8, 8), (4, 6), (10,), 1)], ids=["mlp", "conv"])
def test_the_power_iteration_finds_the_largest_singular_values(net):
    found = spectral(net)
    with torch.no_grad():
        early = found.sigmas()
        found.advance(300)
        for sigma, first, truth in zip(found.sigmas(), early, true_sigmas(net), strict=True):
            assert float(sigma) == pytest.approx(float(truth), rel=1e-4)
            assert 0.9 * truth < float(first) <= truth * (1 + 1e-4)  # from below


def test_a_spectral_network_is_the_one_with_divided_weights_and_does_not_stretch():
    plain = MLP((4, 16, 16, 1))
    found = spectral(plain)
    found.advance(300)
    divided = copy.deepcopy(plain)
    for layer, sigma in zip(divided.layers, true_sigmas(plain), strict=True):
        layer.weight.data *= 2 / sigma.float()
    x, y = torch.randn(2, 50, 4, generator=seeded(4))
    torch.testing.assert_close(found(x), divided(x), rtol=1e-3, atol=1e-5)
    stretch = (found(x) - found(y)).abs()[:, 0] / (x - y).norm(dim=1)
    assert float(stretch.detach().max()) < 2**3 * 1.1**2  # and SiLU's steepest slope, twice
    assert not torch.allclose(found(x), plain(x), rtol=0.1)  # the twin: without division


def test_the_gradient_of_a_singular_value_is_that_of_its_vectors():
    w = torch.randn(5, 3, generator=seeded(5), dtype=D).requires_grad_()
    u, _, vh = torch.linalg.svd(w.detach())
    value, _ = largest_singular_value(w, u[:, 0])
    (gradient,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(gradient, torch.outer(u[:, 0], vh[0]))


def test_looking_does_not_move_the_vectors_and_advancing_does():
    found = spectral(MLP((4, 6, 1)))
    with torch.no_grad():
        found.net.layers[0].weight.add_(torch.randn(6, 4, generator=seeded(6)))
    before = found.u0.clone()
    found(torch.zeros(2, 4))
    assert torch.equal(found.u0, before)
    found.advance()
    assert not torch.equal(found.u0, before)


# Cells


MIXED = Table({"length": Real("cm"), "colour": Category(("red", "green", "blue")), "visits": Count(),
               "width": Real("cm", positive=True), "age": Real("a", resolution=0.5)})  # fmt: skip


def mixed(n=300, seed=0, gaps=0.1):
    rng = np.random.default_rng(seed)
    level = rng.choice(3, n, p=(0.8, 0.15, 0.05))
    length = 4.0 * (level - 1) + 0.3 * rng.normal(size=n)
    hide = lambda x: np.ma.MaskedArray(x, rng.random(n) < gaps)  # noqa: E731
    return {
        "length": hide(length),
        "colour": np.array(["red", "green", "blue"])[level],
        "visits": hide(rng.poisson(1.0 + 8 * level)),
        "width": hide(np.exp(length / 4)),
        "age": hide(np.round(2 * rng.gamma(3, 5, size=n)) / 2),
    }


EVENTS = {
    "real": Array((2,)), "positive": Array((2,), support="positive"), "unit": Array((2,), support="unit"),
    "unit grid": Array((2,), support="unit", resolution=0.25), "count": Array((2,), support="count"),
    "levels": Array((2,), levels=(3, 5)), "rounded": Array((2,), resolution=0.5),
    "positive grid": Array((2,), support="positive", resolution=0.1), "gaps": Array((2,), missing=True),
}  # fmt: skip


def rows_of(name):
    rng = np.random.default_rng(1)
    z = 3 * rng.normal(size=(200, 2))
    return {
        "real": z, "positive": np.exp(z), "unit": stats.norm.cdf(z), "unit grid": np.round(4 * stats.norm.cdf(z)) / 4,
        "count": rng.poisson(np.exp(z)), "levels": rng.integers(0, (3, 5), (200, 2)), "rounded": np.round(2 * z) / 2,
        "positive grid": np.maximum(np.round(10 * np.exp(z / 3)), 1) / 10, "gaps": np.where(z > 3, np.nan, z),
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", EVENTS)
def test_rows_come_back_from_what_the_networks_see(name):
    event = EVENTS[name]
    x, cells = event.check(rows_of(name)).x, Cells(event, 8)
    cells.measure(x, seeded())
    back = cells.on_support(cells.values(cells.encode(x, seeded(1))))
    seen = ~x.isnan()
    torch.testing.assert_close(back[seen], x[seen], rtol=1e-9, atol=1e-9)


def test_a_table_comes_back_from_what_the_networks_see_and_another_codes_scale_does_not():
    x, cells = MIXED.check(mixed()).x, Cells(MIXED, 8)
    cells.measure(x, seeded())
    code = cells.encode(x, seeded(1))
    assert code.shape == (300, cells.width)
    assert not code.isnan().any()
    back, seen = cells.on_support(cells.values(code)), ~x.isnan()
    torch.testing.assert_close(back[seen], x[seen], rtol=1e-9, atol=1e-9)
    cells.spread.mul_(1.1)
    assert not torch.allclose(cells.on_support(cells.values(code))[seen], x[seen], rtol=1e-3)


@pytest.mark.parametrize("name", EVENTS)
def test_whatever_the_generator_says_the_rows_pass_the_events_check(name):
    event = EVENTS[name]
    cells = Cells(event, 8)
    cells.measure(event.check(rows_of(name)).x, seeded())
    raw = 30 * torch.randn(500, cells.width, generator=seeded(2))
    x = cells.on_support(cells.values(cells.choose(raw, None)))
    assert len(event.check(event.restore(x))) == 500


def test_wild_rows_of_a_table_pass_its_check():
    cells = Cells(MIXED, 8)
    cells.measure(MIXED.check(mixed()).x, seeded())
    raw = 30 * torch.randn(500, cells.width, generator=seeded(2))
    x = cells.on_support(cells.values(cells.choose(raw, torch.rand(500, cells.choices, generator=seeded(3)))))
    assert len(MIXED.check(MIXED.restore(x))) == 500


def test_a_column_of_two_bumps_has_two_and_a_normal_one():
    rng = np.random.default_rng(0)
    weights, loc, scale = bumps(torch.tensor(np.r_[rng.normal(-5, 0.5, 600), rng.normal(3, 1, 1400)]), 8, seeded())
    assert (weights > 0).sum() == 2
    order = loc[:2].argsort()
    np.testing.assert_allclose(weights[order], [0.3, 0.7], atol=0.05)
    np.testing.assert_allclose(loc[order], [-5, 3], atol=0.2)
    np.testing.assert_allclose(scale[order], [0.5, 1], atol=0.15)
    assert (bumps(torch.tensor(rng.normal(size=2000)), 8, seeded())[0] > 0).sum() == 1


@pytest.mark.parametrize("column", [[math.nan, math.nan], [2.0, 2.0, 2.0], [0.0], [1.0, math.nan]])
def test_odd_columns_have_one_bump(column):
    weights, loc, scale = bumps(torch.tensor(column, dtype=D), 4, seeded())
    assert (weights > 0).sum() == 1
    assert loc.isfinite().all()
    assert (scale > 0).all()


def test_choices_follow_the_softmax_and_a_wrong_temperature_is_caught():
    event = Table({"a": Category(("x", "y", "z"))})
    cells, raw = Cells(event, 4), torch.tensor([[0.5, -1.0, 1.2]])
    drawn = cells.choose(raw.expand(50_000, -1), torch.rand(50_000, 3, generator=seeded(1)))
    counts = drawn.round().sum(0).numpy()
    p = raw[0].double().softmax(0).numpy()
    assert stats.chisquare(counts, 50_000 * p).pvalue > ALPHA
    assert stats.chisquare(counts, 50_000 * (p**0.9 / (p**0.9).sum())).pvalue < ALPHA
    some = torch.tensor([[0.5, -1.0, 1.2]], requires_grad=True)
    cells.choose(some, None)[0, 0].backward()
    assert (some.grad != 0).all()  # through the draw


# Networks


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3), (2, 6, 8)])
def test_images_of_any_layout_go_through_convolutions_pixel_by_pixel(shape):
    event, cells = Array(shape), math.prod(shape)
    make, see = Generator(event, 3, 2, (8,), (4, 4), cells), Discriminator(event, cells, cells, 2, (8,), (4, 4))
    for net in (make, see):
        reset(net, seeded())
    x = make(torch.randn(5, 3, generator=seeded(1)), torch.ones(5, 2)).reshape(5, *shape)
    assert x.shape == (5, *shape)
    planes = see.planes * see.image[0]
    rows = torch.cat([x.flatten(1), torch.ones(5, cells)], 1)
    assert see(rows, torch.ones(5, 2)).shape == (5,)
    caught = []
    hook = see.net.convolutions[0].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    see(rows, torch.ones(5, 2))
    hook.remove()
    assert caught[0].shape == (5, planes, 6, 8)
    first = x if len(shape) == 2 else x[..., 0] if shape[2] <= 4 else x[:, 0]
    torch.testing.assert_close(caught[0][:, 0], first)
    torch.testing.assert_close(
        make.net(torch.cat([torch.randn(5, 3, generator=seeded(1)), torch.ones(5, 2)], 1))[:, 0], first
    )
    assert (caught[0][:, planes // 2 :] == 1).all()  # the second half says which cells are seen


def test_channels_are_for_images_only():
    with pytest.raises(ParameterError, match="channels"):
        pg.GAN(Array((5,)), channels=(4,))


# Conditions


def conditions():
    x = torch.tensor([[0.0, 1.0]] * 90 + [[1.0, 1.0]] * 9 + [[2.0, 0.0]] + [[math.nan, 0.0]] * 5, dtype=D)
    made = Conditions([0, 1], [4, 2])
    made.measure(x)
    return made, x


def test_rare_levels_are_drawn_by_the_logarithm_of_their_count_in_training_and_by_count_in_sampling():
    made, _ = conditions()
    assert made.counts.tolist() == [90, 9, 1, 0, 6, 99]
    logs = np.log1p([90, 9, 1, 0])
    for log, shares in ((True, logs / logs.sum()), (False, np.array([90, 9, 1, 0]) / 100)):
        drawn = made.draw(40_000, seeded(1), log)
        codes = drawn.code[drawn.place == 0]
        counts = np.bincount(codes, minlength=4)
        assert counts[3] == 0
        assert stats.binomtest(len(codes), 40_000).pvalue > ALPHA
        assert stats.chisquare(counts[:3], len(codes) * shares[:3]).pvalue > ALPHA
        other = np.array([1, 1, 1]) / 3
        assert stats.chisquare(counts[:3], len(codes) * other).pvalue < ALPHA
    np.testing.assert_allclose(made.shares()[:4], np.array([90, 9, 1, 0]) / 200)


def test_real_rows_fulfil_their_conditions_and_each_of_them_comes():
    made, x = conditions()
    numbered = torch.cat([x, torch.arange(len(x), dtype=D)[:, None]], 1)
    drawn = made.draw(5000, seeded(2), True)
    rows = Rows(numbered, made).draw(drawn, seeded(3))
    assert torch.equal(rows.gather(1, drawn.place[:, None])[:, 0], drawn.code.to(D))
    second = rows[(drawn.place == 1) & (drawn.code == 0), 2].long()
    assert set(second.tolist()) == {99, 100, 101, 102, 103, 104}
    assert made.vector(drawn).sum(1).eq(1).all()
    assert made.vector(drawn)[:, :4].sum(1).eq(drawn.place == 0).all()


def test_a_conditions_share_is_that_of_its_own_category_and_level():
    event = Table({"a": Category(("x", "y")), "n": Real(), "b": Category(("u", "v", "w"))})
    cells, raw = Cells(event, 2), torch.randn(4, 8, generator=seeded(), dtype=D)
    cells.measure(torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 0.0]], dtype=D), seeded())
    place, code = torch.tensor([0, 1, 1, 0]), torch.tensor([1, 2, 0, 0])
    a, b = raw[:, 3:5].log_softmax(1), raw[:, 5:].log_softmax(1)  # after one number and its two bumps
    wanted = torch.stack([a[0, 1], b[1, 2], b[2, 0], a[3, 0]])
    torch.testing.assert_close(cells.log_share(raw, place, code), wanted)


def test_generated_rows_lose_the_cells_that_their_real_rows_lack(tabled):
    x = MIXED.check(mixed(60, 3, 0.5)).x
    pair = _Generate(tabled, Rows(x, tabled.conditions))
    batch = pair.batch(x, seeded())
    width, owners = tabled.cells.width, tabled.cells.owners
    hidden = batch.seen[:, owners] == 0
    for rows in (batch.real, pair.fake(pair.raw(batch, seeded(1)), batch, seeded(2))):
        assert rows.shape == (60, width + 5)
        assert (rows[:, :width][hidden] == 0).all()
        assert (rows[:, : len(tabled.cells.plain)][~hidden[:, : len(tabled.cells.plain)]] != 0).all()
        assert torch.equal(rows[:, width:], batch.seen)


def test_each_step_of_a_spectral_discriminator_moves_its_vectors():
    gan = pg.GAN(Array((2,)), 2, (6,), spectral=True)
    x = torch.randn(20, 2, generator=seeded(), dtype=D)
    gan._measure(x, None, seeded(1))
    with torch.no_grad():
        gan.discriminator.net.net.layers[0].weight.add_(torch.randn(6, 2, generator=seeded(2)))
    before = gan.discriminator.u0.clone()
    _Discriminate(gan)(x, seeded(3), 0.0)
    assert not torch.equal(gan.discriminator.u0, before)


def lazy_losses(lazy, weight=1.0):
    """The discriminator's losses on one batch over many streams, and the loss with the whole penalty."""
    gan = pg.GAN(Array((2,)), 2, (6,), penalty=3.0)
    x = torch.randn(20, 2, generator=seeded(), dtype=D)
    gan._measure(x, None, seeded(1))
    found = []
    for seed in range(400):
        player = _Discriminate(gan, None, lazy)
        whole = player._loss(x, seeded(seed), gan.penalty)
        gan.penalty, kept = gan.penalty * weight, gan.penalty
        loss = player(x, seeded(seed), 0.0)
        gan.penalty = kept
        found.append([float(part.detach()) for part in (whole, loss)])
    return np.array(found)


def test_a_lazy_penalty_is_seldom_paid_and_the_same_in_the_mean():
    whole, loss = lazy_losses(4).T
    assert 60 < (loss > whole.max()).sum() < 140
    z = (loss.mean() - whole.mean()) / (loss.std() / 20)
    assert abs(z) < 3.5
    forgotten = lazy_losses(4, weight=0.25)[:, 1]
    assert (forgotten.mean() - whole.mean()) / (forgotten.std() / 20) < -3.5
    with torch.no_grad():
        gan = pg.GAN(Array((2,)), 2, (6,), penalty=3.0)
        x = torch.randn(20, 2, generator=seeded(), dtype=D)
        gan._measure(x, None, seeded(1))
        evaluated = {float(_Discriminate(gan, None, lazy)(x, seeded(5), 0.0)) for lazy in (1, 4, 100)}
    assert len(evaluated) == 1


@pytest.fixture(scope="module")
def tabled():
    return pg.GAN(MIXED, 4, (48, 48)).fit(mixed(1000), steps=200, batch_size=100, learning_rate=4e-3, seed=0)


def test_samples_of_a_table_are_whole_and_have_the_datas_shape(tabled):
    x, drawn = MIXED.check(mixed(4000, 5, 0.0)).x, MIXED.check(tabled.sample(4000, seed=1)).x
    assert not drawn.isnan().any()
    untrained = pg.GAN(MIXED, 4, (48, 48)).fit(mixed(1000), steps=1, seed=0)
    before = MIXED.check(untrained.sample(4000, seed=1)).x

    def distance(y):
        shares = (y[:, 1, None] == torch.arange(3)).double().mean(0) - (x[:, 1, None] == torch.arange(3)).double().mean(
            0
        )
        off = [(y[:, 0][y[:, 1] == k].mean() - 4.0 * (k - 1)).abs() for k in range(3)]
        return float(shares.abs().max()), float(torch.stack(off).max())

    shares, off = distance(drawn)
    assert shares < 0.1
    assert off < 1.0  # the length that belongs to each colour: -4, 0, 4
    assert max(distance(before)) > 1.0


def test_observed_columns_are_honoured_the_rest_goes_with_them_and_rare_levels_come(tabled):
    for k, colour in enumerate(MIXED.columns["colour"].levels):
        drawn = MIXED.check(tabled.sample(300, given={"colour": colour}, seed=2)).x
        assert drawn.shape == (300, 5)
        assert (drawn[:, 1] == k).all()
        assert float((drawn[:, 0].mean() - 4.0 * (k - 1)).abs()) < 1.0
    both = MIXED.check(tabled.sample(20, given={"colour": "red", "visits": 1}, seed=2)).x
    assert (both[:, 1] == 0).all()
    assert (both[:, 2] == 1).all()
    again = tabled.sample(20, given={"colour": ["red"], "visits": [1]}, seed=2)
    assert torch.equal(MIXED.check(again).x, both)


def test_what_can_not_be_observed_is_refused(tabled):
    for given, named in (
        ({"length": 1.0}, "length"),
        ({"colour": ["red", "blue"]}, "2 rows"),
        ({"colour": None}, "no"),
    ):
        with pytest.raises(ParameterError, match=named) as caught:
            tabled.sample(3, given=given)
        assert caught.value.do
    with pytest.raises(SupportError, match="pink"):
        tabled.sample(3, given={"colour": "pink"})
    with pytest.raises(ParameterError, match="given"):
        tabled.log_prob(mixed(5), given={"colour": "red"})


def test_a_level_that_no_row_has_is_zero_evidence(monkeypatch):
    monkeypatch.setattr("probgen.models.gan.observed._TRIES", 8000)
    event = Table({"a": Category(("x", "y", "never")), "b": Count()})
    gan = pg.GAN(event, 2, (8,)).fit({"a": ["x", "y"] * 30, "b": [1, 2] * 30}, steps=60, seed=0)
    with pytest.raises(ZeroEvidenceError, match="a='never', b=77"):
        gan.sample(3, given={"a": "never", "b": 77}, seed=0)


def test_covariates_steer_the_draws_and_swapped_ones_are_caught():
    rng = np.random.default_rng(0)
    side = rng.integers(2, size=2000)
    x = np.where(side == 1, 3.0, -3.0)[:, None] + 0.5 * rng.normal(size=(2000, 1))
    context = Table({"side": Category(("left", "right"))}, missing=False)
    names = np.array(["left", "right"])[side]
    gan = pg.GAN(Array((1,)), 2, (32, 32), context=context).fit(x, given={"side": names}, steps=200, seed=0)
    left, right = (gan.sample(2000, given={"side": [name]}, seed=1)[:, 0] for name in ("left", "right"))
    assert abs(left.mean() + 3) < 1
    assert abs(right.mean() - 3) < 1
    both = pg.GAN(Array((1,)), 2, (8,), context=context).fit(x, given={"side": names}, steps=2, seed=0)
    assert both.sample(4, given={"side": ["left", "right"]}, seed=1).shape == (2, 4, 1)
    with pytest.raises(ParameterError, match="without given="):
        gan.sample(3)
    assert gan.log_prob(x[:2], given={"side": names[:2]}).refused.all()


# Training


@pytest.mark.parametrize(("loss", "spectral_norm"), [*((loss, False) for loss in BY_HAND), ("hinge", True)])
def test_every_loss_moves_the_draws_to_the_data(loss, spectral_norm):
    x = 5 + np.random.default_rng(0).normal(size=(1000, 1)) * [[1.0]]
    x[500:] += 6
    gan = pg.GAN(Array((1,)), 2, (24, 24), loss=loss, spectral=spectral_norm)
    gan.fit(x, steps=200, batch_size=64, learning_rate=4e-3, ema=0.98, seed=0)
    trained = stats.wasserstein_distance(gan.sample(3000, seed=1)[:, 0], x[:, 0])
    first = copy.deepcopy(gan).fit(x, steps=1, seed=0)
    assert trained < 1.0
    assert stats.wasserstein_distance(first.sample(3000, seed=1)[:, 0], x[:, 0]) > 1.5


def test_the_average_is_of_the_generators_weights_after_each_step(monkeypatch):
    seen, real = [], training._Run._move_average

    def watch(run):
        seen.append({k: v.clone() for k, v in run.model.state_dict().items()})
        seen[0].setdefault("start", {k: v.clone() for k, v in run.average.items()})
        real(run)

    monkeypatch.setattr(training._Run, "_move_average", watch)
    gan = pg.GAN(Array((2,)), 2, (4,)).fit(np.random.default_rng(0).normal(size=(50, 2)), steps=40, ema=0.7, seed=0)
    average = seen[0].pop("start")
    for step, state in enumerate(seen, 1):
        decay = min(0.7, step / (step + 10))
        average = {k: decay * average[k] + (1 - decay) * state[k] for k in state}
    for name, value in gan.generator.state_dict().items():
        torch.testing.assert_close(value, average[f"generator.{name}"], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(value, seen[-1][f"generator.{name}"], rtol=1e-4)  # not the last weights


UNUSUAL = {
    "spectral wasserstein": lambda: pg.GAN(Array((2,)), 2, (4,), loss="wasserstein", spectral=True),
    "table": lambda: pg.GAN(MIXED, 2, (4,), modes=3),
    "images": lambda: pg.GAN(Array((4, 4), levels=3), 2, (4,), channels=(2,)),
}


def data_for(name):
    if name == "table":
        return mixed(60)
    rng = np.random.default_rng(0)
    return rng.integers(3, size=(60, 4, 4)) if name == "images" else rng.normal(size=(60, 2))


@pytest.mark.parametrize("name", UNUSUAL)
def test_saved_and_resumed_models_have_the_same_bits(name, tmp_path, monkeypatch):
    x, options = data_for(name), {"steps": 12, "batch_size": 16, "seed": 1}
    whole = UNUSUAL[name]().fit(x, **options)
    again = store.load(store.save(whole, tmp_path / "m"))
    assert repr(again) == repr(whole)
    assert str(again.sample(4, seed=0)) == str(whole.sample(4, seed=0))
    calls, real = [], training._Run.take_step

    def broken(run, data):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(run, data)

    with monkeypatch.context() as patched:
        patched.setattr(training._Run, "take_step", broken)
        UNUSUAL[name]().fit(x, checkpoint=tmp_path / "c", every=3, **options)
    resumed = UNUSUAL[name]().fit(x, checkpoint=tmp_path / "c", every=3, resume=True, **options)
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_the_program_draws_what_the_generator_makes_of_its_latents(tabled):
    trace = poutine.trace(tabled.model).get_trace(n=50)
    nodes = {name: trace.nodes[name]["value"] for name in ("z", "condition", "u")}
    cells = tabled.cells.on_support(tabled._generate(nodes["z"], nodes["condition"], nodes["u"]))
    assert torch.equal(trace.nodes["x"]["value"], cells)
    with pytest.raises(LikelihoodUnavailable):
        tabled.model(torch.zeros(2, 5))


# Instead of a likelihood


W = np.random.default_rng(3).normal(size=(4, 2))
B = np.array([1.0, -1.0, 0.5, 2.0])


def linear(event=None, w=W, b=B):
    gan = pg.GAN(event or Array((len(b),)), w.shape[1], (4,))
    gan.report = pg.GAN(Array((1,)), 1, (2,)).fit(np.zeros((4, 1)) + np.arange(4)[:, None], steps=1, seed=0).report
    gan.generator.net = MLP(w.T.shape)
    with torch.no_grad():
        gan.generator.net.layers[0].weight.copy_(torch.tensor(w))
        gan.generator.net.layers[0].bias.copy_(torch.tensor(b))
    return gan


def noisy_rows(n, s, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ W.T + B + s * rng.normal(size=(n, 4))


def truth(x, s):
    w = torch.tensor(W).float().double().numpy()
    return stats.multivariate_normal(B, w @ w.T + s**2 * np.eye(4)).logpdf(x)


def test_annealing_through_noise_is_a_lower_bound_near_the_closed_form_and_says_whose():
    x, s = noisy_rows(60, 0.5), 0.5
    answer = linear().with_noise(s).log_prob(x, by=pg.AIS(chains=16, temperatures=150), seed=0)
    assert answer.kind is Kind.LOWER
    assert answer.target == "G(z)+N(0,0.5^2)"
    assert answer.measure == "lebesgue"
    short = truth(x, s) - answer.nats
    error = short.std(ddof=1) / math.sqrt(len(x))
    assert stats.norm.cdf(short.mean() / error) > ALPHA
    assert abs(short.mean()) < 0.1
    assert abs((truth(x, 2 * s) - answer.nats).mean()) > 0.1  # the twin
    again = linear().with_noise(s).log_prob(x[5:6], by=pg.AIS(chains=16, temperatures=150), seed=0)
    np.testing.assert_allclose(again.nats, answer.nats[5:6], rtol=1e-10)


def test_printed_errors_of_the_noisy_likelihood_cover_the_closed_form():
    x = noisy_rows(40, 1.0, seed=4)
    answer = linear().with_noise(1.0).log_prob(x, by=pg.AIS(chains=32, temperatures=250), seed=1)
    printed = ~np.isnan(answer.stderr)
    assert printed.mean() > 0.5
    z = (answer.nats - truth(x, 1.0))[printed] / answer.stderr[printed]
    assert stats.binomtest(int((abs(z) < 1.96).sum()), len(z), 0.935, "less").pvalue > ALPHA
    assert stats.binomtest(int((abs(z + 4) < 1.96).sum()), len(z), 0.935, "less").pvalue < ALPHA


def test_the_gap_on_simulated_rows_covers_the_shortfall_and_grows_as_noise_shrinks():
    by = pg.AIS(chains=8, temperatures=60)
    near, far = (linear().with_noise(s).gap(rows=30, by=by, seed=0) for s in (1.0, 0.05))
    assert near.mean < 0.3
    assert far.mean > 1
    x = noisy_rows(30, 0.05, seed=7)
    short = truth(x, 0.05) - linear().with_noise(0.05).log_prob(x, by=by, seed=1).nats
    assert short.mean() < far.mean + 5 * math.hypot(far.stderr, short.std() / math.sqrt(30))
    assert len(linear().with_noise(1.0).gap(x, rows=4, by=by, seed=0).outside) == 30


@pytest.mark.parametrize(
    "event", [Array((2,), levels=4), Array((2,), levels=(3, 2)), Array((1,), support="unit", resolution=0.25)], ids=str
)
def test_noisy_masses_of_all_values_sum_to_one_and_the_target_says_that_they_are_rounded(event):
    dims = event.dims
    gan = linear(event, np.ones((dims, 1)), np.full(dims, 0.4))
    view = gan.with_noise(0.8)
    sides = [np.arange(k) for k in event.cell_levels] if event.levels else [np.arange(5) * 0.25]
    x = torch.tensor(np.array(list(itertools.product(*sides))), dtype=D)
    z = torch.randn(5, 1, 1, generator=seeded(), dtype=D).expand(-1, len(x), -1)
    total = view._log_likelihood(x, z, None).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(5, dtype=D), rtol=1e-9, atol=0)
    assert view.target == "round(G(z)+N(0,0.8^2))"
    assert view.log_prob(x.numpy(), by=pg.AIS(4, 5), seed=0).kind is Kind.LOWER


def test_a_kernel_estimate_warns_bounds_from_below_and_prefers_width():
    x = noisy_rows(100, 0.3, seed=2)
    with pytest.warns(ParzenWarning, match="must not rank"):
        wide = linear().parzen(x, 0.3, draws=20_000, seed=0)
    with pytest.warns(ParzenWarning):
        narrow = linear().parzen(x, 0.01, draws=2000, seed=0)
    assert wide.kind is Kind.LOWER
    assert wide.target == "G(z)+N(0,0.3^2)"
    short = truth(x, 0.3) - wide.nats
    assert -0.1 < short.mean() < 0.5
    assert (truth(x, 0.01) - narrow.nats).mean() > 50  # the twin: a width that no draw comes near
    assert np.isnan(narrow.stderr).all()
    with pytest.warns(ParzenWarning):
        part = linear().parzen(x[3:5], 0.3, draws=20_000, seed=0)
    np.testing.assert_allclose(part.nats, wide.nats[3:5], rtol=1e-10)


def test_a_gan_refuses_whatever_the_estimator_and_says_what_to_do():
    gan, x = linear(), noisy_rows(3, 1.0)
    assert not isinstance(gan, Latent)
    assert isinstance(gan.with_noise(1.0), Latent)
    assert "volume zero" in gan.log_prob(x).reason
    assert "with_noise" in gan.log_prob(x).instead
    assert gan.log_prob(x, by=pg.AIS()).refused.all()
    assert "folds" in linear(Array((2,)), W[:2], B[:2]).log_prob(x[:, :2]).reason
    assert "integral" in linear(Array((4,), levels=9)).log_prob(np.zeros((3, 4))).reason
    with pytest.raises(LikelihoodUnavailable):
        gan.log_prob(x).sum()


@pytest.mark.parametrize("scale", [None, 0, -1.0, math.inf, math.nan, "1", True])
def test_a_scale_that_is_missing_or_not_positive_is_refused(scale):
    with pytest.raises(ParameterError, match="observation_scale") as caught:
        linear().with_noise(scale)
    assert caught.value.do


def test_tables_have_no_noise_and_wrong_arguments_are_named(tabled):
    with pytest.raises(StructureError, match="Table"):
        tabled.with_noise(0.1)
    assert "pre-images" in tabled.log_prob(mixed(3)).reason
    assert "with_noise" not in tabled.log_prob(mixed(3)).instead
    with pytest.raises(ParameterError, match="hinge"):
        pg.GAN(Array((2,)), loss="hing")
    for wrong in ({"latent_dim": 0}, {"hidden": ()}, {"penalty": -1.0}, {"modes": 0}, {"channels": (0,)}):
        with pytest.raises(ParameterError, match=next(iter(wrong))):
            pg.GAN(Array((2, 2)), **wrong)
    with pytest.raises(ParameterError, match="critics"):
        pg.GAN(Array((1,)), 1, (2,)).fit(np.arange(5.0)[:, None], critics=0, steps=1)


# Quality


def found_modes(x):
    centres = 2 * np.stack([np.cos(a := np.arange(8) * np.pi / 4), np.sin(a)], axis=1)
    distance = np.linalg.norm(x[:, None] - centres, axis=2)
    near = distance.min(1) < 0.6
    return int((np.bincount(distance.argmin(1)[near], minlength=8) > 0.05 * len(x)).sum()), near.mean()


def test_a_few_seconds_find_all_eight_gaussians_and_one_step_none():
    x = eight_gaussians(5000).x
    modes, share = found_modes(pg.GAN.for_event(Array((2,))).fit(x, steps=400, seed=0).sample(4000, seed=1))
    assert modes == 8
    assert share > 0.5
    modes, share = found_modes(pg.GAN.for_event(Array((2,))).fit(x, steps=1, seed=0).sample(4000, seed=1))
    assert modes < 8
    assert share < 0.5


@pytest.mark.long
def test_forty_seconds_put_nine_tenths_of_the_draws_within_three_deviations():
    x = eight_gaussians(20_000).x
    gan = pg.GAN.for_event(Array((2,))).fit(x, steps=3000, batch_size=256, seed=0)
    modes, share = found_modes(gan.sample(4000, seed=1))
    assert modes == 8
    assert share > 0.9
