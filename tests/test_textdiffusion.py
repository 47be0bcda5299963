"""Text diffusion: a bound below the truth, tight where it must be, and draws from what is bounded."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

from probgen import store
from probgen.errors import DataError, FitError, NotFittedError, ParameterError, ShapeError, StructureError
from probgen.events import BPE, Array, Real, Series, Table, Text
from probgen.logprob import Kind
from probgen.model import FitReport
from probgen.models.textdiffusion import MaskingBound, TextDiffusion, bound, learning
from probgen.models.textdiffusion.drawing import _window
from probgen.models.textdiffusion.learning import Denoising

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
    sequences = model.layout.sequences(model.event.check(x).x)
    assert all(model.layout.count(len(one)) == 1 for one in sequences)
    found = []
    for order in itertools.permutations(range(model.block)):
        found.append(model._along(sequences, torch.tensor(order, dtype=torch.float64).expand(len(sequences), -1)))
    paths = torch.stack(found)
    return (paths.logsumexp(0) - math.log(len(paths))).numpy(), paths.mean(0).numpy()


@torch.no_grad()
def by_masks(model, x, weigh=lambda f, k: f / k):
    """The bound by all sets of masked symbols: k uniform, then a set of k."""
    (windows,) = model.layout.windows(model.layout.sequences(model.event.check(x).x))
    total, f = 0.0, model.block
    for k in range(1, f + 1):
        for chosen in itertools.combinations(range(f), k):
            hidden = torch.zeros(len(windows), 1, 1, f, dtype=torch.bool)
            hidden[..., list(chosen)] = True
            own = model.log_own(windows, hidden).view(len(windows), k).sum(1)
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

    def unweighted(windows, share, order):
        hidden, weight = right(windows, share, order)
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


def windows_of(model, texts):
    return model.layout.windows(model.layout.sequences(model.event.check(texts).x))


def test_a_text_is_its_blocks_each_after_what_stands_before():
    model = few_letters(random_model(block=2, before=3, scale=0.4), "ab")
    long, short = sorted(windows_of(model, ["abaab", "ab"]), key=len)[::-1][:2]
    end, start = model.layout.end, model.layout.start
    a, b = b"ab"
    found = {tuple(map(tuple, ids)): (place, last) for w in (long, short) for ids, place, last in rows_of(w)}
    assert found == {
        ((a, b), (a, a), (b, end)): ([0, 2, 4], start),
        ((a, b), (end, end)): ([0, 2], start),
    }
    texts = ["".join(word) for n in range(1, 6) for word in itertools.product("ab", repeat=n)]
    lp = model.log_prob(texts, by=MaskingBound(samples=64), seed=0)
    assert np.exp(lp.nats).sum() < 1
    assert lp.event.bytes.sum() == sum(map(len, texts))


def rows_of(windows):
    return zip(windows.ids.tolist(), windows.place.tolist(), windows.last.tolist(), strict=True)


@pytest.mark.parametrize(("block", "before"), [(4, 8), (3, 7), (4, 0), (1, 5)])
def test_each_block_is_scored_once_and_sees_at_least_what_is_promised(block, before):
    model = random_model(block=block, before=before)
    texts = ["in the beginning god created the heaven and the earth", "a", "let there be light"]
    counts = [model.layout.count(len(text)) for text in texts]
    seen = []
    for windows in windows_of(model, texts):
        assert windows.ids.shape[1] <= max(1, 2 * math.ceil(before / block))
        for number, place in zip(windows.number.tolist(), windows.place.tolist(), strict=True):
            seen += number
            for at in place[windows.first :]:
                assert at - place[0] >= min(at, before)
    assert sorted(seen) == list(range(sum(counts)))


def test_windows_for_learning_score_all_blocks_but_those_cut_from_what_is_before():
    model = random_model(block=2, before=4)
    sequences = [torch.arange(7), torch.arange(3)]
    made = model.layout.unpacked(model.layout.packed(sequences))
    assert made.ids.shape == (3, 4, 2)
    assert made.ids[0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 256]]
    assert made.ids[1].tolist() == [[4, 5], [6, 256], [0, 1], [2, 256]]
    assert made.place[1].tolist() == [4, 6, 0, 2]
    assert made.last.tolist() == [model.layout.start, 3, model.layout.start]
    assert made.free.tolist() == [[2, 2, 2, 2], [0, 2, 2, 2], [2, 2, 2, 2]]


def test_what_is_hidden_or_comes_later_is_not_read_and_another_sequence_neither():
    model = random_model(block=3, before=6)
    (windows,) = windows_of(model, ["abcdefgh"])
    hidden = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    hidden[0, 0, 1, 1] = True
    nats = model.log_pmf(windows, hidden)
    for block, place, matters in [(1, 1, False), (2, 0, False), (1, 0, True), (1, 2, True), (0, 1, True)]:
        ids = windows.ids.clone()
        ids[0, block, place] = 99
        other = model.log_pmf(replace(windows, ids=ids), hidden)
        assert torch.equal(other, nats) != matters
    packed = model.layout.packed([torch.tensor([1, 2, 3, 4, 5, 6, 7]), torch.tensor([8, 9, 1])])
    both = model.layout.unpacked(packed[:1])
    assert both.place.tolist() == [[0, 3, 6, 0]]
    hidden = torch.zeros(1, 1, 4, 3, dtype=torch.bool)
    hidden[0, 0, 3, 1] = True
    (alone,) = model.layout.windows([torch.tensor([8, 9, 1])])
    first = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    first[0, 0, 0, 1] = True
    whole, part = model.log_pmf(both, hidden).detach(), model.log_pmf(alone, first).detach()
    np.testing.assert_allclose(whole, part, rtol=1e-12)


def test_blocks_are_drawn_from_what_scores_them():
    model = random_model(block=3, before=6)
    text = torch.from_numpy(np.frombuffer(b"in the beginning god created", dtype=np.uint8).astype(np.int64))
    found = model.layout.filled(text)[None]
    hidden = torch.zeros(1, 1, 1, 3, dtype=torch.bool)
    hidden[..., 1:] = True
    drawn = [model.log_own(_window(model, found, i, 3), hidden).sum() for i in range(found.shape[1])]
    scored = torch.zeros(found.shape[1], dtype=torch.float64)
    for windows in model.layout.windows([text]):
        each = hidden.expand(len(windows), 1, windows.number.shape[1], 3)
        scored[windows.number.flatten()] = model.log_own(windows, each).view(-1, 2).sum(1).detach()
    np.testing.assert_allclose(torch.stack(drawn).detach(), scored, rtol=1e-11)
    assert abs(model.log_own(_window(model, found[:, 1:], 5, 3), hidden).sum() - scored[6]) > 1e-6  # the twin


def test_what_is_learnt_is_the_bound(monkeypatch):
    model = random_model(Array((4,), levels=3))
    truth = -by_masks(model, EVERY).mean() / 4
    loss, rows = (
        Denoising(model.network, model.layout, False),
        model.layout.packed(model.layout.sequences(torch.tensor(EVERY))),
    )
    generator = torch.Generator().manual_seed(0)

    def z():
        with torch.no_grad():
            drawn = np.array([float(loss(rows, generator, 0.0)) for _ in range(60)])
        return (drawn.mean() - truth) / (drawn.std(ddof=1) / math.sqrt(60))

    assert abs(z()) < 6
    right = learning.twice_hidden

    def plainly(windows, first, order):
        hidden, weight = right(windows, first, order)
        return hidden, weight * windows.free[:, None] / (windows.free[:, None] + 1)

    monkeypatch.setattr(learning, "twice_hidden", plainly)
    assert abs(z()) > 12


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
    (windows,) = model.layout.windows(model.layout.sequences(torch.tensor([[2, 0, 1]])))
    with torch.no_grad():
        p = model.log_pmf(windows, torch.tensor([False, True, False]).view(1, 1, 1, 3))[0].exp().numpy()
    counts = np.bincount(drawn[:, 1], minlength=3)
    assert stats.chisquare(counts, 3000 * p).pvalue > 1e-6
    assert stats.chisquare(counts, 3000 * p[[1, 2, 0]]).pvalue < 1e-6
    with pytest.raises(ShapeError, match="known="):
        model.infill(x, known=known[:5])
    texts = random_model(block=4, before=4).infill(["ab__ef", "_b"], seed=0)
    assert texts[0].startswith("ab")
    tail = random_model(block=4, before=4)
    head = tail.network.head
    tail.network.head = lambda features: head(features).index_fill(1, torch.tensor([256]), 20.0)
    assert [len(text.encode()) for text in tail.infill(["a_c", "____"] * 9, seed=0)] >= [3, 4] * 9  # ends are not drawn
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


def test_learning_finds_what_symbols_follow_each_other(tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.integers(4, size=(400, 1)) + np.arange(8)) % 4  # one of four rows
    model = TextDiffusion(Array((8,), levels=4), **SMALL, block=8).fit(
        x, steps=120, batch_size=32, seed=0, progress=False
    )
    assert model.report.objective[-1] > model.report.objective[0]
    lp = model.log_prob(x[:20], by=MaskingBound(samples=32), seed=0)
    assert lp.nats.mean() > -3.0  # log(1/4) = -1.39 at best, 8 log(1/4) = -11.1 without learning
    drawn = model.sample(50, seed=0).astype(int)
    assert ((drawn[:, 1:] - drawn[:, :-1]) % 4 == 1).mean() > 0.8
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


def test_a_text_learns_its_tokens_too_and_long_ones_are_read_a_few_windows_at_a_time():
    texts = ["in the beginning god created", "and the earth was without form"] * 20
    model = TextDiffusion.learn(texts, tokens=280, seed=0, **SMALL, before=8, steps=3, progress=False)
    assert model.event.tokens == 280
    assert TextDiffusion.learn(texts, tokens=256, seed=0, **SMALL, steps=2, progress=False).event == Text()
    with pytest.raises(ParameterError, match="block"):
        TextDiffusion.learn(texts, bloc=3)
    with pytest.raises(ParameterError, match="event="):
        TextDiffusion.learn(texts, event=Text())
    windows = max(model.layout.windows([torch.arange(20_000) % 280]), key=len)
    parts = list(bound.chunks(windows, 8))
    assert len(windows) == sum(map(len, parts)) > 1000
    assert max(len(part) for part in parts) * (16 + 8 * 8) <= 8192


def test_a_model_that_begins_with_an_end_too_often_says_so_instead_of_drawing_for_ever():
    model = random_model(block=2, before=2)
    head = model.network.head
    model.network.head = lambda features: head(features).index_fill(1, torch.tensor([256]), 1e3)
    with pytest.raises(FitError, match="nothing but empty texts"):
        model.sample(2, seed=0)


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
    with torch.no_grad():
        model.network.place[0, 0] = torch.nan
    for ask in (lambda: model.log_prob(["ab"]), lambda: model.sample(1), lambda: model.infill(["a_"])):
        with pytest.raises(ParameterError, match=r"network\.place"):
            ask()
    with pytest.raises(DataError, match="step 1 is missing"):
        random_model(Series(levels=3), block=4, before=4).log_prob([np.array([0.0, np.nan])])
