"""Cells of few levels: the posterior of each cell, the loss that is the bound, and the chain's times by its cost."""

import itertools
import math

import numpy as np
import pytest
import torch

import probgen as pg
from probgen.events import Array
from probgen.models.diffusion import Diffusion, VariationalBound
from probgen.models.diffusion.family import _MOST_HELD
from probgen.models.diffusion.learning import BoundError
from probgen.models.diffusion.networks import LevelVelocity, Velocity
from probgen.models.diffusion.schedule import cheapest_times
from probgen.models.diffusion.trig import END, LATEST, chain_times

D = torch.float64
RNG = np.random.default_rng(0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blank(levels=3, cells=2, n=4000):
    """A model of independent cells: its scales are measured, its network is zero."""
    weights = np.arange(1, levels + 1) / sum(range(1, levels + 1))
    x = RNG.choice(levels, (n, cells), p=weights)
    made = Diffusion(Array((cells,), levels=levels), hidden=8, blocks=1, chain=5).double()
    made.rows.measure(torch.tensor(x, dtype=D))
    made.first.fill_(made.rows.first_time())
    return made, torch.tensor(x, dtype=D)


def test_without_a_correction_the_view_of_the_data_is_the_posterior_mean_of_independent_cells():
    model, x = blank()
    block, y = model.levels, torch.randn(50, 2, generator=seeded(1), dtype=D)
    for t in (0.1, 0.7, END):
        at = torch.full((50,), t, dtype=D)
        expected = torch.zeros(50, 2, dtype=D)
        for i in range(2):
            levels, counts = x[:, i].unique(return_counts=True)
            places = (levels - block.centre[i]) / block.spread[i]
            log_p = (counts.to(D) + 1 / 3).log() - 0.5 * ((y[:, i, None] - math.cos(t) * places) / math.sin(t)) ** 2
            expected[:, i] = log_p.softmax(1) @ places
        found = model._data(y, t, None)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        v = model._velocity(y, at, None)
        torch.testing.assert_close(math.cos(t) * y - math.sin(t) * v, expected, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(model._data(y, 0.7, None), model._data(y.flip(1), 0.7, None)), "the twin, of other cells"


def test_levels_that_a_cell_cannot_have_get_no_probability():
    event = Array((2,), levels=np.array([2, 5]))
    model = Diffusion(event, hidden=8, blocks=1, chain=5).double()
    model.rows.measure(torch.tensor(np.stack([RNG.integers(0, 2, 50), RNG.integers(0, 5, 50)], 1), dtype=D))
    y, t = torch.randn(9, 2, generator=seeded(), dtype=D), torch.full((9,), 0.5, dtype=D)
    p = model.velocity.log_levels(y, t, model.levels, None, None).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(9, 2, dtype=D))
    assert (p[:, 0, 2:] == 0).all()
    assert (p[:, 1] > 0).all()


def test_few_levels_alone_are_given_probabilities_by_the_network():
    assert isinstance(Diffusion(Array((4,), levels=32), hidden=8, blocks=1).velocity, LevelVelocity)
    for event, options in (
        (Array((4,), levels=33), {}),
        (Array((4,)), {}),
        (Array((4,), levels=4), {"dequantise": True}),
    ):
        assert isinstance(Diffusion(event, hidden=8, blocks=1, **options).velocity, Velocity)


def mean_loss(model, x, times=400):
    loss, gen = BoundError(model, 0.0), seeded(2)
    with torch.no_grad():
        return np.array([float(loss(x, gen, 1.0)) for _ in range(times)])


def test_the_loss_of_levels_is_the_code_length_of_an_endless_chain():
    model, x = blank()
    found = mean_loss(model, x[:500])
    p = torch.stack([(x[:500] == k).to(D).mean(0) for k in range(3)])
    q = model.levels.log_margin.exp().T
    entropy = -float((p * q.log()).sum())
    late = float(model.rows.encode(x[:500]).square().sum(1).mean()) / math.tan(LATEST) ** 2 / 2
    error = found.std() / math.sqrt(len(found)) * 5.5
    assert abs(found.mean() - (entropy - late)) < error + 0.01  # the chain's two ends: see the docstring
    assert abs(2 * found.mean() - (entropy - late)) > error + 0.01, "the twin, twice as long"


def test_the_bound_of_independent_cells_nears_their_entropy_as_the_chain_grows():
    gaps = []
    for chain in (10, 60):
        model, x = blank(n=600)
        longer = Diffusion(model.event, hidden=8, blocks=1, chain=chain).fit(
            x.numpy(), steps=1, learning_rate=0, seed=0
        )
        longer.velocity.requires_grad_(False)
        for p in longer.velocity.parameters():
            p.zero_()
        answer = longer.log_prob(x.numpy(), by=VariationalBound(8), seed=0)
        log_p = longer.levels.log_margin[torch.arange(2), x.long()].sum(1).numpy()
        gaps.append(float((log_p - answer.nats).mean()))
    assert gaps[0] > gaps[1] + 0.01
    assert -0.02 < gaps[1] < 0.06


def test_large_training_sets_hold_few_rows_out(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "probgen.models.diffusion.family.train", lambda m, players, data, plan, **_: seen.append((plan, len(data)))
    )
    monkeypatch.setattr("probgen.models.diffusion.family.of_kept_state", lambda report, why: report)
    for n in (400, 40_000):
        model = Diffusion(Array((2,)), hidden=4, blocks=1, chain=2)
        model._fit(torch.randn(n, 2, dtype=D), None, generator=seeded())
    assert [int(n * plan.validation) for plan, n in seen] == [40, _MOST_HELD]


# The chain's times


def cost(path, snr, residual, at_end):
    steps = [torch.log1p((snr[a] - snr[b]) * residual[b]).sum() for a, b in itertools.pairwise(path)]
    return float(sum(steps, torch.log1p(snr[path[-1]] * at_end).sum())) / 2


def test_the_chains_times_are_the_cheapest_of_all_that_make_no_leaps():
    chain = 5
    at = torch.linspace(-3, 2, 4 * (chain - 2) + 1, dtype=D)
    snr = (-2 * at).exp()
    residual = torch.stack([1 / (1 + snr) ** 1.3, 0.05 / (0.02 + snr)], 1)
    at_end = torch.ones(2, dtype=D)
    found = cheapest_times(at, residual, at_end, chain).tolist()
    every = [
        (0, *rest) for rest in itertools.combinations(range(1, len(at)), chain - 2)
        if max(b - a for a, b in itertools.pairwise((0, *rest, len(at)))) <= 10
    ]  # fmt: skip
    costs = [cost(path, snr, residual, at_end) for path in every]
    assert cost(found, snr, residual, at_end) == pytest.approx(min(costs))
    assert cost(range(0, len(at), 4), snr, residual, at_end) > min(costs) + 1e-3, "the twin, of equal steps"


def test_a_trained_chain_has_ascending_times_between_its_own_ends():
    x = RNG.integers(0, 4, (200, 3))
    model = Diffusion(Array((3,), levels=4), hidden=8, blocks=1, chain=20).fit(x, steps=5, seed=0)
    assert (model.times().diff() > 0).all()
    ends = chain_times(20, float(model.first))[[0, -1]]
    torch.testing.assert_close(model.times()[[0, -1]], ends)


def test_a_saved_model_of_levels_gives_the_same_answers(tmp_path):
    x = RNG.integers(0, 4, (60, 3))
    model = Diffusion(Array((3,), levels=4), hidden=8, blocks=1, chain=6).fit(x, steps=4, seed=0)
    pg.save(model, str(tmp_path / "m"))
    again = pg.load(str(tmp_path / "m"))
    assert np.array_equal(again.log_prob(x[:5], seed=1).nats, model.log_prob(x[:5], seed=1).nats)
    assert np.array_equal(again.sample(5, seed=1), model.sample(5, seed=1))
    assert not any(name.startswith("levels") for name in model.state_dict()), "the cells are the rows' own"


# Images


def test_pictures_are_sampled_a_few_at_a_time(monkeypatch):
    x = RNG.integers(0, 3, (60, 8, 8))
    model = Diffusion.for_event(Array((8, 8), levels=3), channels=(8,), chain=4).fit(x, steps=2, seed=0)
    assert isinstance(model.velocity, LevelVelocity)
    asked = []
    monkeypatch.setattr("probgen.models.diffusion.family._NUMBERS", 8 * 8 * 3 * 5)
    plain = model.velocity.forward
    monkeypatch.setattr(model.velocity, "forward", lambda y, *rest: asked.append(len(y)) or plain(y, *rest))
    assert model.sample(12, seed=0, steps=2).shape == (12, 8, 8)
    assert max(asked) == 5


@pytest.mark.parametrize("shape", [(9, 8), (3, 8, 9), (8, 9, 3)])
def test_small_images_of_levels_are_fitted_and_scored_below_the_histograms_code_length(shape):
    x = RNG.integers(0, 3, (80, *shape))
    model = Diffusion.for_event(Array(shape, levels=3), channels=(8,), chain=20).fit(x, steps=3, batch_size=16, seed=0)
    answer = model.log_prob(x[:2], seed=0)
    assert -math.prod(shape) * 1.3 * math.log(3) < answer.nats.mean() < -0.8 * math.prod(shape) * math.log(3)
    assert model.sample(2, seed=0, steps=3).max() <= 2
