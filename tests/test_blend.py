"""Models mixed symbol by symbol: a pmf again, at least as good as the best on what its weights are learnt from."""

import copy
import itertools

import numpy as np
import pytest
import torch

from probgen.errors import NotFittedError, ParameterError, StoreError, StructureError
from probgen.evaluate.codec import codec
from probgen.events import Array, Ragged, Series, Text
from probgen.models.blend import Blend
from probgen.models.hmm import HMM
from probgen.models.ngram import NGram

LINES = ["in the beginning", "and the earth was", "the evening and the morning", "let there be light", "and there was"]
HELD = ["the light was", "and the morning", "there be evening", "in the earth"]


def mixed(seed=0):
    models = [NGram(Text(), order).fit(LINES * 3, seed=0) for order in (2, 5)]
    return Blend(models).fit(HELD, seed=seed)


def series():
    rng = np.random.default_rng(0)
    x = [rng.choice(3, p=(0.6, 0.3, 0.1), size=8) for _ in range(30)]
    models = [NGram(Series(levels=3), 3).fit(x, seed=0), HMM.for_event(Series(levels=3), states=2).fit(x, seed=0)]
    return Blend(models).fit([x[i] for i in range(10)], seed=0)


def test_all_series_of_a_length_have_mass_one_and_a_sum_of_weights_above_one_would_be_seen():
    model = series()
    every = list(np.array(list(itertools.product(range(3), repeat=4))))
    assert np.exp(model.log_prob(every).nats).sum() == pytest.approx(1, abs=1e-12)
    single = [np.exp(part.log_prob(every).nats).sum() for part in model.models]
    assert sum(single) == pytest.approx(2, abs=1e-9)


def test_it_is_at_least_as_good_as_each_model_on_what_the_weights_come_from():
    model = mixed()
    total = model.log_prob(HELD).nats.sum()
    assert total > max(part.log_prob(HELD).nats.sum() for part in model.models)
    first, last = model.report.objective
    assert last > first
    np.testing.assert_allclose(model.weights.sum(1).detach(), 1)


def test_each_symbol_is_the_weighted_mean_by_its_place():
    model = mixed()
    parts = [part.log_prob_steps(HELD[:1]).nats for part in model.models]
    buckets = [0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]
    weights = model.weights.detach().numpy()[buckets]
    wanted = np.log((np.exp(np.stack(parts, 1)) * weights).sum(1))
    steps = model.log_prob_steps(HELD[:1])
    assert steps.by == "NGram + NGram, mixed symbol by symbol"
    np.testing.assert_allclose(steps.nats, wanted, rtol=1e-12)
    end = [p.log_prob(HELD[:1]).nats[0] - part.sum() for p, part in zip(model.models, parts, strict=True)]
    whole = wanted.sum() + np.log((np.exp(end) * model.weights.detach().numpy()[4]).sum())
    assert model.log_prob(HELD[:1]).nats[0] == pytest.approx(whole, rel=1e-12)


def test_its_codec_gives_the_text_back_in_the_claimed_bits():
    model = mixed()
    there = codec(model)
    blob = there.compress(HELD * 9)
    assert there.decompress(blob) == HELD * 9
    bits = -model.log_prob(HELD * 9).nats.sum() / np.log(2)
    assert abs(8 * there.sizes(blob)[1] - bits) <= 0.001 * bits + 64
    other = copy.deepcopy(model)
    other.models[1].fit(LINES[:4], seed=0)
    with pytest.raises(StoreError, match="another model"):
        codec(other).decompress(blob)


def test_its_program_learns_the_weights():
    import pyro

    model = mixed()
    x = model.event.check(HELD).x
    total = pyro.poutine.trace(model.model).get_trace(x).log_prob_sum()
    assert float(total.detach()) == pytest.approx(model.log_prob(HELD).nats.sum(), rel=1e-10)
    with torch.no_grad():
        model.logits[:, 0] += 1.0
    pyro.poutine.trace(model.model).get_trace(x).log_prob_sum().backward()
    assert float(model.logits.grad.abs().sum()) > 0


def test_what_does_not_fit_together_is_refused():
    one = NGram(Text(), 2).fit(LINES, seed=0)
    other = NGram(Series(levels=2), 2).fit([np.array([0, 1])], seed=0)
    with pytest.raises(ParameterError, match="models="):
        Blend([one])
    with pytest.raises(NotFittedError):
        Blend([one, NGram(Text(), 3)])
    with pytest.raises(StructureError, match="Models of Text"):
        Blend([one, other])
    with pytest.raises(StructureError, match="Draws from a Blend"):
        mixed().sample(2)
    with pytest.raises(StructureError, match="without models"):
        Blend.for_event(Text())
    with pytest.raises(StructureError, match="HMM"):
        codec(series()).compress([np.array([0, 1])])
    assert Blend.suits(Array((2,)))
    with pytest.raises(ParameterError, match="max_iter"):
        Blend([one, one]).fit(HELD, max_iter=0)


def test_order_and_neighbours_do_not_matter():
    model = mixed()
    nats = model.log_prob(HELD).nats
    np.testing.assert_allclose(model.log_prob(HELD[::-1]).nats, nats[::-1], rtol=1e-14)
    assert isinstance(model.event.check(HELD).x, Ragged)
