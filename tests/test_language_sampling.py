"""Samplers that are models of their own, beams, infilling, streams, and code lengths of a model that adapts."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from probgen.errors import ParameterError, StructureError
from probgen.events import BPE, Array, Series, Text
from probgen.logprob import Kind
from probgen.model import FitReport
from probgen.models.language import Choice, LanguageModel
from probgen.models.language.choosing import draw
from probgen.models.language.coding import _block_error
from probgen.nn.transformer import Transformer

ALPHA = 1e-6
SMALL = {"layers": 2, "width": 16, "heads": 2, "pairs": 50}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(event=None, scale=0.5, **options):
    model = LanguageModel(event, **{**SMALL, "precision": "double", **options})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    model.report = FitReport((), 0, "imported")
    return model.eval()


class FewLetters(Transformer):
    """Only some symbols can come. A network of a class of its own is stepped by torch."""

    def head(self, features):
        return super().head(features).masked_fill(~self.allowed, -torch.inf)


def few_letters(model, letters):
    model.network.__class__ = FewLetters
    model.network.allowed = torch.zeros(257, dtype=torch.bool)
    model.network.allowed[[*letters.encode(), 256]] = True
    return model


LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, 2), ({"top_k": 9}, 5), ({"top_p": 0.5}, 1), ({"top_p": 0.8}, 2), ({"min_p": 0.3}, 2),
        ({"min_p": 0.2}, 3), ({"temperature": 3.0, "min_p": 0.3}, 4), ({}, 5),
    ],
)  # fmt: skip
def test_a_choice_keeps_the_symbols_that_its_definition_names(options, kept):
    changed = Choice(**options)(LOGITS)
    assert torch.isfinite(changed).sum() == kept
    p = LOGITS.softmax(1) if "temperature" not in options else (LOGITS / 3).softmax(1)
    torch.testing.assert_close(changed.softmax(1)[0, :kept], p[0, :kept] / p[0, :kept].sum())


def test_a_penalty_weakens_what_came_before_and_nothing_else():
    seen = torch.tensor([[True, False, False, True, False]])
    changed = Choice(repetition_penalty=2.0)(LOGITS, seen)
    torch.testing.assert_close(changed, torch.tensor([[1.0, 1.0, 0.5, -2.0, -3.0]], dtype=torch.float64))


def test_a_drawn_symbol_is_where_the_cumulative_mass_passes_u():
    logits = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).log()
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 1e-9], dtype=torch.float64)
    assert draw(logits.expand(6, -1), u).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7}, {"top_k": 2, "temperature": 1.5}, {"top_p": 0.9}, {"min_p": 0.1, "repetition_penalty": 3.0}],
)
def test_a_sampler_is_a_model_its_masses_sum_to_one_and_its_draws_follow_them(options):
    event = Series(levels=3, missing=False)
    model = random_model(event, window=3, stride=1)
    sampler = model.sampler(**options)
    rows = [np.array(row) for row in itertools.product(range(3), repeat=4)]
    lp = sampler.log_prob(rows)
    p = np.exp(lp.nats)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert str(next(iter(options.values()))) in lp.target
    assert sampler.sample_target() == lp.target
    draws = np.stack(sampler.sample(20_000, seed=1, length=4)).astype(int)
    counts = np.bincount(np.ravel_multi_index(draws.T, (3,) * 4), minlength=81)
    assert not counts[p == 0].any()
    assert chi_square(counts, p) > ALPHA
    assert chi_square(counts, np.exp(model.log_prob(rows).nats)) < ALPHA  # the twin: scored under the model itself


def chi_square(counts, p):
    expected = counts.sum() * p
    kept = expected >= 10
    observed, expected = np.append(counts[kept], counts[~kept].sum()), np.append(expected[kept], expected[~kept].sum())
    return stats.chi2.sf(((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum(), len(expected) - 1)


def test_what_a_sampler_can_not_draw_is_impossible_and_others_gain():
    model = few_letters(random_model(), "abcdefgh")
    sampler = model.sampler(top_k=3)
    texts = [text for text in sampler.sample(20, seed=0, length=40) if len(text) < 40]
    assert len(texts) > 3
    assert (sampler.log_prob(texts).nats > model.log_prob(texts).nats).all()
    others = ["".join(pair) for pair in itertools.product("abcdefgh", repeat=2)]
    assert np.isneginf(sampler.log_prob(others).nats).any()
    assert np.isfinite(model.log_prob(others).nats).all()
    assert model.sampler().log_prob(texts).nats == pytest.approx(model.log_prob(texts).nats)
    assert model.sampler().sample(2, seed=4, length=7) == model.sample(2, seed=4, length=7)


def test_a_beams_scores_are_the_log_prob_of_its_texts_and_a_wide_one_finds_the_best():
    model = few_letters(random_model(window=6), "ab")
    texts = ["".join(word) for n in range(1, 6) for word in itertools.product("ab", repeat=n)]
    nats = model.log_prob(texts).nats
    found = model.beam(width=40, length=5)
    np.testing.assert_allclose(found.scores.nats, model.log_prob(found.texts).nats, rtol=1e-12)
    assert found.texts[0] == texts[int(nats.argmax())]
    assert sorted(found.scores.nats, reverse=True) == list(found.scores.nats)
    after = model.beam("ab", width=4, length=5)
    np.testing.assert_allclose(after.scores.nats, model.log_prob(after.texts, given="ab").nats, rtol=1e-12)
    assert after.scores.of == "x|prefix"
    short = model.beam(width=2, length=1)
    assert all(len(piece) == 1 for piece in short.open)


def test_a_beam_under_bpe_is_scored_as_its_text_is():
    model = random_model(Text(BPE([(97, 98), (98, 97)])), scale=0.3)
    found = model.beam("ab", width=8, length=4)
    np.testing.assert_allclose(found.scores.nats, model.log_prob(found.texts, given="ab").nats, rtol=1e-12)
    assert found.scores.kind is Kind.LOWER


def test_exact_infilling_is_the_conditional_and_monte_carlo_agrees():
    event = Series(levels=4, missing=False)
    model = random_model(event, scale=0.35, window=5, stride=2)
    before, after = np.array([0, 1, 2]), np.array([3, 1])
    exact = model.infill([before], [after], 3)
    assert (exact.by, exact.ess) == ("enumeration", None)
    assert np.exp(exact.log_prob).sum() == pytest.approx(1, abs=1e-12)
    best = np.concatenate([before, exact.middles[0], after])
    joint = model.log_prob([best]).nats[0]
    assert exact.log_prob[0] == pytest.approx(joint - exact.log_evidence, abs=1e-10)
    runs = [model.infill([before], [after], 3, limit=1, particles=300, seed=seed) for seed in range(12)]
    assert all(1 < run.ess <= 300 for run in runs)
    ratios = np.exp([run.log_evidence - exact.log_evidence for run in runs])
    z = (ratios.mean() - 1) / (ratios.std(ddof=1) / math.sqrt(len(runs)))
    assert abs(z) < 9.6  # t of 11 degrees, about 1e-6
    assert abs((2 * ratios.mean() - 1) / (2 * ratios.std(ddof=1) / math.sqrt(len(runs)))) > 9.6  # a forgotten factor
    p = {tuple(m): np.exp(lp) for m, lp in zip(exact.middles, exact.log_prob, strict=True)}
    found = {}
    for run in runs:
        for middle, lp in zip(run.middles, run.log_prob, strict=True):
            found[tuple(middle)] = found.get(tuple(middle), 0) + np.exp(lp) / len(runs)
    assert sum(abs(found.get(m, 0) - share) for m, share in p.items()) / 2 < 0.12


def test_text_between_two_pieces_is_found_by_enumeration():
    model = random_model()
    found = model.infill("he", "ven", 1)
    assert len(found.middles) == 256
    assert np.exp(found.log_prob).sum() == pytest.approx(1, abs=1e-9)


def test_a_stream_is_the_sample_piece_by_piece_in_whole_characters():
    model = random_model(window=16)
    streamed = "".join(model.stream("Wört", seed=3, length=30, top_k=20))
    assert streamed == model.sampler(top_k=20).sample(1, given="Wört", seed=3, length=30)[0]
    assert streamed.startswith("Wört")
    assert "".join(model.stream(seed=1, length=5)) == model.sample(1, seed=1, length=5)[0]


@pytest.mark.parametrize("event", [Text(), Text(BPE([(97, 98), (256, 97), (257, 98)]))])
def test_a_text_is_cut_at_the_first_stop_string_even_inside_a_token(event):
    model = random_model(event)
    if event.tokens == 256:
        few_letters(model, "abc")
    texts = model.sample(20, seed=0, length=200, stop=("ba", "cc"))
    cut = 0
    for text in texts:
        ends = [at + 2 for stop in ("ba", "cc") if (at := text.find(stop)) >= 0]
        cut += bool(ends)
        assert not ends or len(text) == min(ends)
    assert cut >= (10 if event.tokens == 256 else 1)


def test_adapting_learns_from_what_it_read_and_leaves_the_model_alone():
    model = random_model(scale=0.1, window=16, precision="single")
    texts = ["abcabcabcabcabcabcabcabc" * 2] * 30
    before = [weight.clone() for weight in model.parameters()]
    frozen, adapting = model.bits_per_byte(texts), model.bits_per_byte(texts, adapting=True, learning_rate=0.01)
    assert adapting.value < frozen.value - 0.5
    assert "prequential" in adapting.by
    assert adapting.kind is Kind.EXACT
    first = model.bits_per_byte(texts[:1], adapting=True, block=99)
    assert first.value == pytest.approx(model.bits_per_byte(texts[:1]).value, rel=1e-6)  # nothing was read before
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_bits_per_byte_is_that_of_log_prob_and_a_smaller_stride_is_declared():
    model = random_model(window=16)
    texts = ["In the beginning God created the heaven and the earth.", "and"]
    assert model.bits_per_byte(texts).value == pytest.approx(model.log_prob(texts).bits_per_byte().value, rel=1e-12)
    assert "stride 3" in model.bits_per_byte(texts, stride=3).by
    per = model.perplexity(texts, per="byte")
    assert per.unit == "perplexity/byte"
    assert per.value == pytest.approx(2 ** model.bits_per_byte(texts).value, rel=1e-12)


def test_block_errors_cover_the_mean_of_dependent_numbers():
    rng = np.random.default_rng(0)
    inside = {True: 0, False: 0}
    for _ in range(300):
        noise = rng.normal(size=4000)
        bits = 2 + np.convolve(noise, np.ones(8), "same")
        for blocks in (True, False):
            error = _block_error(bits, np.ones(4000), 40 if blocks else 1) if blocks else bits.std() / math.sqrt(4000)
            inside[blocks] += abs(bits.mean() - 2) < 2.6 * error
    assert inside[True] >= 280
    assert inside[False] < 250  # the twin: errors that take neighbours for independent


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"min_p": 1.0}, {"repetition_penalty": 0.0}]
)
def test_a_choice_out_of_range_is_refused(options):
    with pytest.raises(ParameterError, match=next(iter(options))):
        random_model().sampler(**options)


def test_questions_that_have_no_answer_are_refused():
    text, tune = random_model(window=16), random_model(Series(levels=3, missing=False))
    for ask in (lambda: tune.beam(), lambda: next(tune.stream()), lambda: tune.sample(1, stop="a")):
        with pytest.raises(StructureError, match="model of text"):
            ask()
    for ask in (lambda: text.sampler(topk=3), lambda: next(text.stream("a", topk=3))):
        with pytest.raises(ParameterError, match=r"no option 'topk'.*'top_k'"):
            ask()
    with pytest.raises(ParameterError, match="stride=17"):
        text.bits_per_byte(["a"], stride=17)
    with pytest.raises(ParameterError, match="per="):
        text.perplexity(["a"], per="word")
    with pytest.raises(ParameterError, match="not empty"):
        text.sample(1, stop="")
    with pytest.raises(ParameterError, match="width=0"):
        text.beam("a", width=0)
    with pytest.raises(ParameterError, match="length=0"):
        text.infill("a", "b", 0)
    with pytest.raises(ParameterError, match="piece before"):
        text.infill(None, "b", 1)
    with pytest.raises(ParameterError):
        random_model(Array((3,), levels=2)).sample(1, given=np.zeros((1, 3)))
    with pytest.raises(StructureError, match=r"lm\.fit"):
        text.sampler(top_k=2).fit(["a"])
