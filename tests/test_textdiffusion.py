"""Text diffusion: a bound below the truth, tight where it must be, and draws from what is bounded."""

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

from probgen import store
from probgen.errors import DataError, NotFittedError, ParameterError, ShapeError, StructureError
from probgen.events import BPE, Array, Real, Series, Table, Text
from probgen.logprob import Kind
from probgen.model import FitReport
from probgen.models.textdiffusion import MaskingBound, TextDiffusion, bound

SMALL = {"layers": 2, "width": 16, "heads": 2, "pairs": 50}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(event=None, seed=0, scale=0.5, **options):
    """A model that counts as fitted, with random weights in every place."""
    model = TextDiffusion(event, **{**SMALL, "precision": "double", **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    model.report = FitReport((), 0, "imported")
    return model.eval()


@torch.no_grad()
def by_orders(model, x):
    """log p and the bound of every row by all orders of its one block, each (n,)."""
    blocks = model.layout.blocks(model.layout.sequences(model.event.check(x).x))
    assert torch.equal(blocks.owner, torch.arange(len(blocks)))
    found = []
    for order in itertools.permutations(range(model.block)):
        found.append(model._along(blocks, torch.tensor(order, dtype=torch.float64).expand(len(blocks), -1)))
    paths = torch.stack(found)
    return (paths.logsumexp(0) - math.log(len(paths))).numpy(), paths.mean(0).numpy()


@torch.no_grad()
def by_masks(model, x, weigh=lambda f, k: f / k):
    """The bound by all sets of masked symbols: k uniform, then a set of k."""
    blocks = model.layout.blocks(model.layout.sequences(model.event.check(x).x))
    total, f = 0.0, model.block
    for k in range(1, f + 1):
        for chosen in itertools.combinations(range(f), k):
            hidden = torch.zeros(len(blocks), f, dtype=torch.bool)
            hidden[:, list(chosen)] = True
            target = blocks.ids[:, model.layout.context :][hidden]
            own = model.log_pmf(blocks, hidden).gather(1, target[:, None]).view(len(blocks), k).sum(1)
            total = total + own * weigh(f, k) / (f * math.comb(f, k))
    return total.numpy()


EVERY = np.array(list(itertools.product(range(3), repeat=4)))


def test_the_bound_is_the_mean_over_orders_and_lies_below_the_truth():
    model = random_model(Array((4,), levels=3))
    exact, mean = by_orders(model, EVERY)
    assert np.exp(exact).sum() == pytest.approx(1, abs=1e-12)
    assert (mean <= exact + 1e-12).all()
    assert (exact - mean).max() > 0.05
    assert np.exp(mean).sum() < 1
    np.testing.assert_allclose(by_masks(model, EVERY), mean, rtol=1e-10)
    for wrong in (lambda f, k: 1.0, lambda f, k: (f / k) ** 2, lambda f, k: f / (k + 1)):  # twins: weights but 1 / t
        assert abs(by_masks(model, EVERY, wrong) - mean).max() > 0.1


def test_draws_of_the_bound_are_unbiased_and_their_errors_cover(monkeypatch):
    model = random_model(Array((4,), levels=3))
    mean = by_masks(model, EVERY)
    lp = model.log_prob(EVERY, by=MaskingBound(samples=200), seed=0)
    assert lp.kind is Kind.LOWER
    z = (lp.nats - mean) / lp.stderr
    assert abs(z).max() < 6
    assert 0.2 < z.std() < 1.3
    right = bound.hidden_at

    def unweighted(blocks, share, order):
        hidden, weight = right(blocks, share, order)
        return hidden, torch.ones_like(weight)

    monkeypatch.setattr(bound, "hidden_at", unweighted)
    wrong = model.log_prob(EVERY, by=MaskingBound(samples=200), seed=0)
    assert abs((wrong.nats - mean) / wrong.stderr).max() > 20


def test_independent_symbols_are_bounded_tightly():
    model = random_model(Array((6,), levels=3))
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    model.network.head = lambda features: torch.cat([logits, logits]).expand(len(features), -1)
    x = np.random.default_rng(0).integers(3, size=(30, 6))
    truth = logits.log_softmax(0).numpy()[x].sum(1)
    lp = model.log_prob(x, by=MaskingBound(samples=400), seed=1)
    assert (abs(lp.nats - truth) <= 6 * lp.stderr + 1e-12).all()
    assert lp.stderr.max() < 0.2
    alike = np.repeat([[0], [1], [2]], 6, axis=1)  # of equal symbols each draw is the truth
    alike_lp = model.log_prob(alike, by=MaskingBound(samples=2), seed=1)
    np.testing.assert_allclose(alike_lp.nats, 6 * logits.log_softmax(0).numpy(), rtol=1e-12)


def few_letters(model, letters):
    """A model of bytes under which only these letters, and ends, can come."""
    head = model.network.head
    allowed = torch.zeros(259, dtype=torch.bool)
    allowed[[*letters.encode(), 256]] = True
    model.network.head = lambda features: head(features).masked_fill(~allowed, -torch.inf)
    return model


def test_a_text_is_its_blocks_each_after_what_stands_before():
    model = few_letters(random_model(block=2, before=3, scale=0.4), "ab")
    blocks = model.layout.blocks(model.layout.sequences(Text().check(["abaab", "ab"]).x))
    start, end = model.layout.start, model.layout.end
    a, b = b"ab"
    assert blocks.ids.tolist() == [
        [start, start, start, a, b],
        [start, a, b, a, a],
        [b, a, a, b, end],
        [start, start, start, a, b],
        [start, a, b, end, end],
    ]
    assert blocks.owner.tolist() == [0, 0, 0, 1, 1]
    texts = ["".join(word) for n in range(1, 6) for word in itertools.product("ab", repeat=n)]
    lp = model.log_prob(texts, by=MaskingBound(samples=64), seed=0)
    assert np.exp(lp.nats).sum() < 1
    assert lp.event.bytes.sum() == sum(map(len, texts))


def test_what_is_drawn_is_what_all_orders_say():
    model = random_model(Array((4,), levels=3))
    exact, mean = by_orders(model, EVERY)
    drawn = model.sample(8_000, seed=0).astype(int)
    counts = np.bincount(np.ravel_multi_index(drawn.T, (3,) * 4), minlength=81)
    p = np.exp(exact)
    assert stats.chisquare(counts, 8_000 * p).pvalue > 1e-6
    tilted = np.exp(1.3 * mean)
    assert stats.chisquare(counts, 8_000 * tilted / tilted.sum()).pvalue < 1e-6
    at_once = model.sample(8_000, seed=0, steps=1).astype(int)  # the twin: all symbols from one look
    counts = np.bincount(np.ravel_multi_index(at_once.T, (3,) * 4), minlength=81)
    assert stats.chisquare(counts, 8_000 * p).pvalue < 1e-6
    assert model.sample_target() == "p"
    assert "1 steps of 4" in model.sample_target(steps=1)


def test_missing_symbols_are_drawn_given_all_that_is_known():
    model = random_model(Array((3,), levels=3))
    x, known = np.array([[2, 0, 1]] * 3000), np.array([[True, False, True]] * 3000)
    drawn = model.infill(x, known=known, seed=0).astype(int)
    assert (drawn[:, [0, 2]] == [2, 1]).all()
    blocks = model.layout.blocks(model.layout.sequences(torch.tensor([[2, 0, 1]])))
    with torch.no_grad():
        p = model.log_pmf(blocks, torch.tensor([[False, True, False]]))[0].exp().numpy()
    counts = np.bincount(drawn[:, 1], minlength=3)
    assert stats.chisquare(counts, 3000 * p).pvalue > 1e-6
    assert stats.chisquare(counts, 3000 * p[[1, 2, 0]]).pvalue < 1e-6
    with pytest.raises(ShapeError, match="known="):
        model.infill(x, known=known[:5])
    texts = random_model(block=4, before=4).infill(["ab__ef", "_b"], seed=0)
    assert texts[0].startswith("ab")
    with pytest.raises(StructureError, match="one byte"):
        random_model().infill(["a"], blank="é")


def test_series_have_a_given_length_and_levels_of_each_place_are_kept():
    model = random_model(Series(levels=3), scale=0.2, block=4, before=4)
    rows = [np.array(s) for s in itertools.product(range(3), repeat=2)]
    lp = model.log_prob(rows, by=MaskingBound(samples=400), seed=0)
    assert np.exp(lp.nats).sum() < 1 + 1e-9
    assert np.exp(lp.nats + 4 * lp.stderr).sum() > 0.8  # all mass of length 2 is on these
    assert [len(s) for s in model.sample(3, length=7, seed=0)] == [7, 7, 7]
    uneven = random_model(Array((3,), levels=(2, 3, 4)))
    every = np.array(list(itertools.product(range(2), range(3), range(4))))
    exact, _ = by_orders(uneven, every)
    assert np.exp(exact).sum() == pytest.approx(1, abs=1e-12)
    assert (uneven.sample(200, seed=0).max(0) < [2, 3, 4]).all()
    whole = random_model(Array((5,), levels=2), block=3)
    assert whole.sample(4, seed=0).shape == (4, 5)


def test_a_number_belongs_to_its_row_alone():
    model = random_model(block=4, before=8)
    texts = ["in the beginning", "a", "god created"]
    lp = model.log_prob(texts, seed=3)
    np.testing.assert_allclose(model.log_prob(texts[::-1], seed=3).nats[::-1], lp.nats, rtol=1e-12)
    np.testing.assert_allclose(model.log_prob(texts[1:2], seed=3).nats, lp.nats[1:2], rtol=1e-12)
    assert (model.log_prob(texts, seed=4).nats != lp.nats).all()


def test_the_program_has_the_bound_for_its_elbo():
    model = random_model(Array((3,), levels=3), pairs=0)
    x = torch.tensor([[0, 1, 2], [2, 2, 0]], dtype=torch.float64)
    pyro.set_rng_seed(0)
    loss = pyro.infer.Trace_ELBO(num_particles=100).loss(model.model, model.guide, x)
    truth = by_masks(model, x.numpy()).sum()
    assert abs(-loss - truth) < 0.3
    assert abs(-loss - 1.2 * truth) > 0.3
    assert model.model(n=4).shape == (4, 3)


def test_learning_finds_what_symbols_follow_each_other(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = (rng.integers(4, size=(400, 1)) + np.arange(8)) % 4  # one of four rows
    model = TextDiffusion(Array((8,), levels=4), **SMALL).fit(x, steps=250, batch_size=32, seed=0, progress=False)
    assert model.report.objective[-1] > model.report.objective[0]
    lp = model.log_prob(x[:20], by=MaskingBound(samples=32), seed=0)
    assert lp.nats.mean() > -3.0  # log(1/4) = -1.39 at best, 8 log(1/4) = -11.1 without learning
    drawn = model.sample(50, seed=0).astype(int)
    assert ((drawn[:, 1:] - drawn[:, :-1]) % 4 == 1).mean() > 0.8
    monkeypatch.setitem(store.FAMILIES, "TextDiffusion", "probgen.models.textdiffusion")
    store.save(model, tmp_path / "m")
    np.testing.assert_array_equal(
        store.load(tmp_path / "m").log_prob(x[:5], seed=1).nats, model.log_prob(x[:5], seed=1).nats
    )


def test_texts_are_learnt_under_bytes_and_tokens():
    texts = ["in the beginning god created"] * 30 + ["the heaven and the earth"] * 30
    for event in (Text(), Text(BPE.learn(texts, 270))):
        model = TextDiffusion(event, **SMALL, block=8, before=8).fit(texts, steps=30, seed=0, progress=False)
        bits = model.log_prob(texts[:2], seed=0).bits_per_byte()
        assert 0 < bits.value < 8
        assert bits.kind is Kind.UPPER
        assert model.sample(2, given="in the", length=20, seed=0)[0].startswith("in the")
        assert all(model.sample(3, length=9, seed=0))


def test_what_does_not_suit_is_refused():
    assert "levels=" in TextDiffusion.suits(Array((2,)))
    assert "not Table" in TextDiffusion.suits(Table({"a": Real()}))
    with pytest.raises(ParameterError, match="block=-1"):
        TextDiffusion(block=-1)
    with pytest.raises(StructureError, match="heads"):
        TextDiffusion(width=10, heads=4)
    with pytest.raises(ParameterError, match="precision"):
        TextDiffusion(precision="half")
    with pytest.raises(ParameterError, match="even"):
        MaskingBound(samples=3)
    with pytest.raises(NotFittedError):
        TextDiffusion().log_prob(["a"])
    model = random_model(block=4, before=4)
    with pytest.raises(ParameterError, match="whole sequences"):
        model.log_prob(["ab"], given="a")
    with pytest.raises(ParameterError, match="one prefix"):
        model.sample(1, given=["a", "b"])
    for option in ({"steps": 0}, {"length": 0}):
        with pytest.raises(ParameterError, match="=0"):
            model.sample(1, **option)
    with pytest.raises(DataError, match="Row 0"):
        model.log_prob([""])
    with pytest.raises(DataError, match="step 1 is missing"):
        random_model(Series(levels=3), block=4, before=4).log_prob([np.array([0.0, np.nan])])
