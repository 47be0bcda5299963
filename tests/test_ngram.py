"""n-grams: counts by hand and by dictionaries, masses that sum to one, samples that follow them."""

import copy
import itertools
import math
import shutil
import warnings
from collections import Counter, defaultdict

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probgen import datasets, store
from probgen.errors import DataError, NotFittedError, ParameterError, StructureError
from probgen.events import BPE, Array, Ragged, Real, Series, Table, Text
from probgen.logprob import Kind
from probgen.models.ngram import NGram, family, tuning
from probgen.models.ngram.counting import count, streamed

ALPHA = 1e-6
TEXTS = [
    "in the beginning",
    "and the earth was",
    "the evening and the morning",
    "let there be light",
    "and there was",
] * 9


def fixed(event, x, order, shares=(0.5, 0.5, 0.5), seed=0):
    """Counted, with discounts that are these shares of 1, 2 and 3."""
    model = NGram(event, order).fit(x, seed=seed, tune=False)
    signed = 2 * torch.tensor(shares, dtype=torch.float64) - 1
    with torch.no_grad():
        model.slopes.copy_((signed / (1 - signed.abs())).expand(order, 3))
    return model


def next_pmf(model, prefix):
    stepper = model._stepper(1)
    for symbol in prefix:
        stepper.push(np.array([symbol]))
    return stepper.pmf()[0]


def test_two_short_sequences_have_the_probabilities_counted_by_hand():
    model = fixed(Series(levels=2), [np.array([0, 1, 0]), np.array([0, 0])], 2)
    # 0 follows {start, 1, 0} and 1 follows {0}: p(0) = (3 - 1.5) / 4 + (0.5 + 1.5) / 4 / 2, p(1) = (1 - 0.5) / 4 + 0.25
    np.testing.assert_allclose(next_pmf(model, []), [0.5 + 0.5 * 0.625, 0.5 * 0.375, 0], rtol=1e-15)
    np.testing.assert_allclose(next_pmf(model, [0]), [0.25 + 0.5 * 0.625, 0.25 + 0.5 * 0.375, 0], rtol=1e-15)
    np.testing.assert_allclose(next_pmf(model, [0, 1]), [0.5 + 0.5 * 0.625, 0.5 * 0.375, 0], rtol=1e-15)
    expected = math.log(0.8125 * 0.4375 * 0.8125)
    assert model.log_prob([np.array([0, 1, 0])]).nats[0] == pytest.approx(expected, rel=1e-14)


class Dictionaries:
    """Interpolated modified Kneser-Ney as one writes it down, by dictionaries of strings."""

    def __init__(self, sequences, order, levels, ends, discounts, raw_everywhere=False):
        self.order, self.discounts, self.base = order, discounts, levels + ends
        padded = [["s", *map(int, x), *(["e"] if ends else [])] for x in sequences]
        grams = Counter(
            tuple(x[i - k : i]) for x in padded for k in range(1, order + 1) for i in range(max(k, 2), len(x) + 1)
        )
        before = defaultdict(set)
        for gram in grams:
            before[gram[1:]].add(gram[0])
        self.after = defaultdict(dict)
        for gram, seen in grams.items():
            whole = len(gram) == order or gram[0] == "s" or raw_everywhere
            self.after[gram[:-1]][gram[-1]] = seen if whole else len(before[gram])

    def p(self, symbol, context):
        """p(symbol | context), by the recursion on shorter contexts."""
        below = self.p(symbol, context[1:]) if context else 1 / self.base
        counts = self.after.get(tuple(context))
        if not counts:
            return below
        d = [0, *self.discounts[len(context)]]
        total = sum(counts.values())
        left = sum(d[min(c, 3)] for c in counts.values()) / total
        seen = counts.get(symbol, 0)
        return (seen - d[min(seen, 3)]) / total + left * below


def deviation(sequences, order, ends, raw_everywhere=False):
    """The largest difference of log p from the dictionaries', over sequences and strange ones."""
    event = Text() if ends else Series(levels=3)
    data = ["".join("abc"[i] for i in x) for x in sequences] if ends else [np.array(x) for x in sequences]
    model = fixed(event, data, order, shares=(0.3, 0.6, 0.5))
    codes = [[ord("abc"[i]) for i in x] if ends else x for x in sequences]
    levels = 256 if ends else 3
    naive = Dictionaries(codes, order, levels, ends, model.discounts.tolist(), raw_everywhere)
    worst = 0.0
    for x, row in zip(codes, data, strict=True):
        total, path = 0.0, ["s", *map(int, x), *(["e"] if ends else [])]
        for i in range(1, len(path)):
            total += math.log(naive.p(path[i], path[max(0, i - order + 1) : i]))
        worst = max(worst, abs(model.log_prob([row]).nats[0] - total))
    return worst


sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(sequences, st.integers(1, 5), st.booleans())
def test_interpolation_equals_a_dictionary_implementation(x, order, ends):
    assert deviation(x, order, ends) < 1e-12


def test_counts_instead_of_continuations_in_the_lower_orders_would_be_seen():
    assert deviation([[0, 1, 0, 1, 2], [0, 1, 1]], 3, True, raw_everywhere=True) > 1e-3


def test_all_series_of_a_length_have_mass_one():
    model = NGram(Series(levels=3), 3).fit([np.array([0, 1, 2, 1, 0]), np.array([2, 2]), np.array([0])], seed=0)
    for length in (1, 4):
        every = np.array(list(itertools.product(range(3), repeat=length)))
        assert np.exp(model.log_prob(list(every)).nats).sum() == pytest.approx(1, abs=1e-12)


def test_texts_of_up_to_two_bytes_and_what_goes_on_from_there_have_mass_one():
    model = NGram(Text(), 3).fit(TEXTS, seed=0)
    empty = model._stepper(1).pmf()[0, 256]
    ones = Ragged(torch.arange(256), torch.ones(256, dtype=torch.int64))
    pairs = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    twos = Ragged(pairs.reshape(-1), torch.full((len(pairs),), 2))
    (_, single), (stream, double) = model._nats(ones)[0], model._nats(twos)[0]
    closed = np.exp(single.reshape(256, 3)[:, 1:].sum(axis=1)).sum()
    opened = np.exp(double.reshape(-1, 4)[:, 1:3].sum(axis=1)).sum()
    assert len(stream) == 4 * len(pairs)
    assert empty + closed + opened == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_stepper_is_the_likelihood_step_by_step_and_sums_to_one_at_every_context(order):
    model = NGram(Text(), order).fit(TEXTS, seed=0)
    rows = ["the light", "xyz", "and the évening"]
    stepper = model._stepper(3)
    codes = [[*text.encode(), 256] for text in rows]
    nats = np.zeros(3)
    for t in range(max(map(len, codes))):
        log_pmf = stepper.log_pmf().numpy()
        np.testing.assert_allclose(np.exp(log_pmf).sum(axis=1), 1, rtol=0, atol=1e-12)
        symbols = [code[t] if t < len(code) else 256 for code in codes]
        nats += [log_pmf[i, s] if t < len(codes[i]) else 0.0 for i, s in enumerate(symbols)]
        stepper.push(torch.tensor(symbols))
    np.testing.assert_allclose(model.log_prob(rows).nats, nats, rtol=1e-13)
    stepper.reset()
    np.testing.assert_array_equal(stepper.pmf(), model._stepper(3).pmf())


def test_discounts_that_take_all_leave_the_uniform_law():
    text = "abcdefg"
    model = fixed(Text(), [text], 1, shares=(1 - 1e-15,) * 3)
    assert model.log_prob([text]).nats[0] == pytest.approx(-8 * math.log(257), rel=1e-12)
    assert model.log_prob(["zebra"]).bits_per_byte().value == pytest.approx(math.log2(257) * 6 / 5, rel=1e-12)


def test_a_symbol_never_seen_has_its_share_of_what_the_orders_leave():
    model = fixed(Series(levels=4), [np.array([0, 1, 0, 1])], 2)
    assert next_pmf(model, [])[3] == next_pmf(model, [])[2] > 0
    assert next_pmf(model, [3])[3] == pytest.approx(next_pmf(model, [2])[2], rel=1e-15)


def goodness(counts, p):
    expected = counts.sum() * p
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1)


def test_sampled_series_follow_the_masses_and_a_wrong_temperature_is_caught():
    rng = np.random.default_rng(0)
    model = NGram(Series(levels=3), 3).fit([rng.choice(3, p=(0.6, 0.3, 0.1), size=6) for _ in range(30)], seed=0)
    draws = np.stack(model.sample(20_000, seed=1, length=4))
    counts = np.bincount(np.ravel_multi_index(draws.T, (3,) * 4), minlength=81)
    p = np.exp(model.log_prob(list(np.array(list(itertools.product(range(3), repeat=4))))).nats)
    assert goodness(counts, p) > ALPHA
    assert goodness(counts, p**0.9 / (p**0.9).sum()) < ALPHA


def test_sampled_texts_follow_the_masses_of_texts_that_are_not_empty():
    model = fixed(Text(), ["a", "ab", "b", "ba", "a"] * 8, 3, shares=(0.9, 0.9, 0.5))
    draws = Counter(model.sample(20_000, seed=1))
    shown = ["a", "b", "ab", "ba", "aa", "bb", "aba", "bab"]
    p = np.exp(model.log_prob(shown).nats) / (1 - model._stepper(1).pmf()[0, 256])
    counts = np.array([draws[text] for text in shown])
    assert goodness(np.append(counts, 20_000 - counts.sum()), np.append(p, 1 - p.sum())) > ALPHA
    warm = np.append(p, 1 - p.sum()) ** 0.9
    assert goodness(np.append(counts, 20_000 - counts.sum()), warm / warm.sum()) < ALPHA
    assert "" not in draws
    assert model.sample_target() == "p(x | x is not empty), cut at 4096 tokens"


def test_steps_are_the_tokens_and_the_end_is_what_is_left():
    model = NGram(Text(), 4).fit(TEXTS, seed=0)
    steps, whole = model.log_prob_steps(["the light"]), model.log_prob(["the light"])
    end = model._stepper(1)
    for byte in b"the light":
        end.push(np.array([byte]))
    assert len(steps) == 9
    assert whole.nats[0] - steps.nats.sum() == pytest.approx(float(end.log_pmf()[0, 256]), rel=1e-12)


def test_bytes_are_exact_and_tokens_of_a_bpe_a_lower_bound_of_the_same_rows():
    plain = NGram(Text(), 5).fit(TEXTS, seed=0)
    tokens = NGram(Text(BPE.learn(TEXTS, 280)), 3).fit(TEXTS, seed=0)
    a, b = plain.log_prob(["the light"]), tokens.log_prob(["the light"])
    assert (a.kind, b.kind) == (Kind.EXACT, Kind.LOWER)
    assert (a - b).kind is Kind.UPPER
    assert tokens.sample(2, seed=0) == tokens.sample(2, seed=0)


def test_pieces_order_and_neighbours_do_not_matter(monkeypatch):
    model = NGram(Text(), 4).fit(TEXTS, seed=0)
    rows = [*TEXTS[:5], "unseen", "x" * 70]
    whole = model.log_prob(rows).nats
    monkeypatch.setattr(family, "_CHUNK", 20)
    np.testing.assert_array_equal(model.log_prob(rows).nats, whole)
    np.testing.assert_array_equal(model.log_prob(rows[::-1]).nats, whole[::-1])
    np.testing.assert_array_equal(model.log_prob([rows[5]]).nats, whole[5:6])


def test_an_order_beyond_the_longest_sequence_adds_nothing():
    x = [np.array([0, 1]), np.array([1, 1])]
    short, long = fixed(Series(levels=2), x, 3), fixed(Series(levels=2), x, 9)
    np.testing.assert_array_equal(long.log_prob(x).nats, short.log_prob(x).nats)
    assert len(long.sample(3, seed=0, length=12)[0]) == 12


def test_steps_of_several_cells_are_one_symbol_each():
    data = datasets.load("melodies")
    model = NGram.for_event(data.event).fit(data.x, seed=0, tune=False)
    assert model.log_prob(data.x).bits_per_dim().value < 2
    drawn = model.sample(3, seed=0, length=7)
    assert [part.shape for part in drawn] == [(7, 2)] * 3
    model.event.check(drawn)


def test_tuned_discounts_are_better_than_the_formulas_on_held_out_sequences_and_noise_is_not():
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.full(6, 0.4), size=36)

    def tune():
        x = [0, 1]
        for _ in range(30):
            x.append(rng.choice(6, p=chain[6 * x[-2] + x[-1]]))
        return np.array(x)

    x, held = [tune() for _ in range(120)], [tune() for _ in range(60)]
    tuned = NGram(Series(levels=6), 5).fit(x, seed=0)
    formula = NGram(Series(levels=6), 5).fit(x, seed=0, tune=False)
    assert tuned.report.objective[1] > tuned.report.objective[0]
    gain = tuned.log_prob(held).nats.sum() - formula.log_prob(held).nats.sum()
    assert gain > 0
    assert "tuned on 6" in tuned.report.notes[0]
    assert "formula" in formula.report.notes[0]
    with torch.no_grad():
        formula.slopes.copy_(torch.full((5, 3), 50.0))
    assert formula.log_prob(held).nats.sum() < tuned.log_prob(held).nats.sum() - 100


def test_the_formula_is_chen_and_goodmans_where_counts_of_counts_allow_it():
    rng = np.random.default_rng(1)
    stream = streamed(rng.zipf(1.6, 4000).clip(max=300) - 1, np.array([4000]), 301, False)
    tree = tuning.Tree(count(stream, 1), 301, 300)
    n = np.bincount(tree.layers[0].counts, minlength=5)
    y = n[1] / (n[1] + 2 * n[2])
    wanted = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
    found = tuning.formula_discounts(tree)[0]
    usable = [0.01 * c <= d <= 0.99 * c for c, d in zip((1, 2, 3), wanted, strict=True)]
    assert any(usable)
    np.testing.assert_allclose(found[usable], np.array(wanted)[usable], rtol=1e-12)


def test_the_program_scores_what_log_prob_says_and_its_discounts_learn():
    model = NGram(Text(), 3).fit(TEXTS, seed=0)
    x = model.event.check(["the light", "and", "never"]).x
    trace = pyro.poutine.trace(model.model).get_trace(x)
    trace.compute_log_prob()
    np.testing.assert_allclose(
        trace.nodes["x"]["log_prob"].detach(), model.log_prob(["the light", "and", "never"]).nats
    )
    trace.log_prob_sum().backward()
    assert float(model.slopes.grad.abs().sum()) > 0
    assert len(model.model(n=4)) == 4


def test_saved_and_loaded_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(store.FAMILIES, "NGram", "probgen.models.ngram")
    model = NGram(Text(), 4).fit(TEXTS, seed=0)
    again = store.load(store.save(model, tmp_path / "m"))
    np.testing.assert_array_equal(again.log_prob(TEXTS[:7]).nats, model.log_prob(TEXTS[:7]).nats)
    assert again.sample(2, seed=3) == model.sample(2, seed=3)
    twin = copy.deepcopy(model)
    twin.fit(["zzz"], seed=0)
    np.testing.assert_array_equal(again.log_prob(TEXTS[:7]).nats, model.log_prob(TEXTS[:7]).nats)


def test_bad_arguments_and_bad_data_are_refused_by_name():
    for order in (0, 65, 2.5, True):
        with pytest.raises(ParameterError, match="order="):
            NGram(Text(), order)
    for event in (Array((2,)), Series(), Table({"a": Real()})):
        with pytest.raises(StructureError, match="does not suit"):
            NGram(event)
    with pytest.raises(NotFittedError):
        NGram(Text()).log_prob(["a"])
    with pytest.raises(DataError, match="Sequence 1, step 2 is missing: NGram needs every step"):
        NGram(Series(levels=2), 2).fit([np.array([0.0, 1.0]), np.array([0.0, 1.0, np.nan])])
    model = NGram(Text(), 2).fit(["ab"], seed=0)
    with pytest.raises(DataError, match="not empty"):
        model.log_prob([""])
    with pytest.raises(ParameterError, match="tune="):
        model.fit(["ab"], tune=3)
    with pytest.raises(ParameterError, match="length="):
        model.sample(2, length=0)


def test_nothing_warns_from_one_symbol_on():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = NGram(Text(), 9).fit(["a"], seed=0)
        assert np.isfinite(model.log_prob(["a", "b", "a longer text"]).nats).all()
        assert len(model.sample(3, seed=0, length=5)) == 3


@pytest.mark.long
@pytest.mark.skipif(shutil.which("bible") is None, reason="Debian's bible-kjv is not installed")
def test_king_james_chapters_cost_what_the_notes_measured():
    train, held = datasets.load("kjv").split()
    for order, bits in ((5, 1.648), (7, 1.445), (9, 1.377)):
        model = NGram(Text(), order).fit(train, seed=0, tune=False)
        assert model.log_prob(held).bits_per_byte().value == pytest.approx(bits, abs=0.004)
    assert NGram(Text(), 9).fit(train, seed=0).log_prob(held).bits_per_byte().value < 1.37
