"""Packing programs as models of text: lengths that are what the program writes, and that no text escapes paying."""

import bz2
import itertools
import math
import zlib

import numpy as np
import pytest
import torch

from probgen import store
from probgen.errors import FitError, Incomparable, ParameterError, StructureError
from probgen.events import BPE, Array, Series, Text
from probgen.logprob import Kind
from probgen.models.compressor import Compressor, family, primed
from probgen.models.ngram import NGram

TEXTS = [f"and the {noun} of the {place} was {how}" for noun, place, how in itertools.product(
    ("king", "house", "light"), ("earth", "sea", "city"), ("good", "great", "without form"))]  # fmt: skip
PROGRAMS = family.PROGRAMS


def packed(text, size):
    """Bytes of LZMA packed at once."""
    packer = primed.compressor("xz", size)
    return len(packer.compress(text)) + len(packer.flush())


def test_xz_costs_what_the_text_and_its_end_add_to_the_packed_training_text_and_a_byte():
    model = Compressor(Text(), "xz").fit(TEXTS, seed=0)
    training = b"".join(text.encode() + b"\xff" for text in TEXTS)
    rows = ["and the king of the sea was good", "quite another thing: \u00fc", "x" * 3000]
    size = len(training) + 3001
    added = [packed(training + row.encode() + b"\xff", size) - packed(training, size) for row in rows]
    answer = model.log_prob(rows)
    np.testing.assert_allclose(answer.nats, -math.log(2) * 8 * (np.array(added) + 1))
    assert (answer.kind, answer.by, answer.target) == (Kind.LOWER, "xz", "code")
    assert answer.nats[0] > answer.nats[1]


def test_gzip_costs_what_one_must_write_for_a_reader_of_the_training_text():
    model = Compressor(Text(), "gzip").fit(TEXTS, seed=0)
    training = b"".join(text.encode() + b"\xff" for text in TEXTS)
    for row in (b"and the king of the sea was good", "\u00fc".encode()):
        writer, reader = zlib.compressobj(9, zlib.DEFLATED, -15), zlib.decompressobj(-15)
        reader.decompress(writer.compress(training) + writer.flush(zlib.Z_SYNC_FLUSH))
        code = writer.compress(row) + writer.flush()
        assert reader.decompress(code) == row
        assert reader.eof
        assert model.lengths([row]).tolist() == [len(code)]


SHORT = ["".join(t) for n in range(1, 8) for t in itertools.product("ab", repeat=n)]


DRAWN = [SHORT[i] for i in np.random.default_rng(0).integers(len(SHORT), size=300)]


def kraft(lengths):
    """Sum of 2^-bits over all texts of up to 7 letters a, b after a training text of such texts, by bytes of codes."""
    return float((0.5 ** (8.0 * np.asarray(lengths))).sum())


def codes(program):
    return Compressor(Text(), program).fit(DRAWN, seed=0).lengths([text.encode() for text in SHORT])


@pytest.mark.parametrize("program", PROGRAMS)
def test_two_to_the_minus_length_sums_to_at_most_one(program):
    assert kraft(codes(program)) <= 1


def test_plain_differences_of_packed_lengths_would_sum_to_more_than_one():
    training = b"".join(text.encode() + b"\xff" for text in DRAWN)
    for pack in (lambda text: bz2.compress(text, 9), lambda text: zlib.compress(text, 9)):
        assert kraft([len(pack(training + x.encode())) - len(pack(training)) for x in SHORT]) > 1
    assert kraft(codes("xz") - 1) > 1


def test_more_of_the_same_costs_less_than_noise_and_learning_helps():
    model = Compressor(Text()).fit(TEXTS, seed=0)
    noise = "".join(map(chr, np.random.default_rng(0).integers(33, 126, size=60)))
    same, other = model.log_prob([TEXTS[0], noise]).nats
    assert same > other
    assert model.report.objective[1] > model.report.objective[0] == pytest.approx(-8 * math.log(2))


def test_order_and_neighbours_do_not_matter():
    model = Compressor(Text(), "gzip").fit(TEXTS, seed=0)
    rows = ["the sea", "the city was", "unheard of"]
    nats = model.log_prob(rows).nats
    np.testing.assert_array_equal(model.log_prob(rows[::-1]).nats, nats[::-1])
    np.testing.assert_array_equal(model.log_prob(rows[1:2]).nats, nats[1:2])


def test_lengths_compare_with_an_exact_model_on_the_same_rows_and_not_as_p():
    gzip, counts = Compressor(Text(), "gzip").fit(TEXTS, seed=0), NGram(Text(), 4).fit(TEXTS, seed=0)
    tokens = Compressor(Text(BPE.learn(TEXTS, 270)), "gzip").fit(TEXTS, seed=0)
    a, b = counts.log_prob(TEXTS[:3]), gzip.log_prob(TEXTS[:3])
    assert (a - b).kind is Kind.UPPER
    np.testing.assert_array_equal(tokens.log_prob(TEXTS[:3]).nats, b.nats)
    with pytest.raises(Incomparable):
        b - tokens.log_prob(TEXTS[:3])


def test_it_can_not_draw_and_says_what_can():
    model = Compressor(Text(), "gzip").fit(TEXTS, seed=0)
    for draws in (lambda: model.sample(2), lambda: model.model(n=2)):
        with pytest.raises(StructureError, match="NGram and LanguageModel draw"):
            draws()


def test_saved_and_loaded_it_gives_the_same_lengths(tmp_path, monkeypatch):
    monkeypatch.setitem(store.FAMILIES, "Compressor", "probgen.models.compressor")
    model = Compressor(Text(), "xz").fit(TEXTS, seed=0)
    again = store.load(store.save(model, tmp_path / "m"))
    np.testing.assert_array_equal(again.log_prob(TEXTS[:3]).nats, model.log_prob(TEXTS[:3]).nats)


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ParameterError, match=r"program='zip'.*Did you mean 'gzip'"):
        Compressor(Text(), "zip")
    for event in (Array((2,), levels=2), Series(levels=3)):
        with pytest.raises(StructureError, match="it packs text"):
            Compressor(event)
    assert set(Compressor.variants(Text())) == set(PROGRAMS)


def test_a_process_that_dies_is_reported(monkeypatch, tmp_path):
    model = Compressor(Text(), "gzip").fit(TEXTS, seed=0)
    broken = tmp_path / "broken.py"
    broken.write_text("raise MemoryError('no room')\n")
    monkeypatch.setattr(primed, "__file__", str(broken))
    with pytest.raises(FitError, match=r"ended early.*no room"):
        model.log_prob(["a"])


def test_the_program_is_a_factor_of_the_lengths():
    import pyro

    model = Compressor(Text(), "gzip").fit(TEXTS, seed=0)
    trace = pyro.poutine.trace(model.model).get_trace(model.event.check(TEXTS[:2]).x)
    total = float(torch.as_tensor(trace.log_prob_sum()))
    assert total == pytest.approx(model.log_prob(TEXTS[:2]).sum().value)
