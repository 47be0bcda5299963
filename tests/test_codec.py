"""Codecs: what comes out is what went in, in as many bits as the model claims, and nothing else is accepted."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probgen import emissions
from probgen.errors import DataError, NotFittedError, StoreError, StructureError
from probgen.evaluate import codec as rooms
from probgen.evaluate.codec import codec
from probgen.evaluate.rangecoder import Decoder, Encoder, cumulated
from probgen.events import BPE, Array, Category, Count, Series, Table, Text
from probgen.models.baseline import Independent
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.language import LanguageModel
from probgen.models.mixture import Mixture
from probgen.models.ngram import NGram
from probgen.models.vae import VAE

TEXTS = [
    "in the beginning",
    "and the earth was",
    "the evening and the morning",
    "let there be light",
    "and there was",
] * 9


def coded(pmfs, symbols, shift=0):
    """Symbols there and back through the range coder; ``shift`` is a planted off-by-one of the encoder's shares."""
    encoder, decoder = Encoder(), None
    for row, symbol in zip(cumulated(pmfs), symbols, strict=True):
        start, end = int(row[symbol]) + shift, int(row[symbol + 1]) + shift
        encoder.put(start, end - start, int(row[-1]))
    code = encoder.finish()
    decoder = Decoder(code)
    return code, [decoder.take(row) for row in cumulated(pmfs)]


masses = st.floats(0, 1) | st.sampled_from([0.0, 1e-300, 5e-324, 1e-17, 2.0**-32, 1.0])


@st.composite
def messages(draw):
    """Pmfs, some of them extreme, and a symbol of each that is possible."""
    size, n = draw(st.integers(1, 6)), draw(st.integers(1, 30))
    rows = np.array(draw(st.lists(st.lists(masses, min_size=size, max_size=size), min_size=n, max_size=n)))
    rows[rows.sum(axis=1) == 0, 0] = 1.0
    pmfs = rows / rows.sum(axis=1, keepdims=True)
    pmfs[(pmfs.sum(axis=1) == 0) | np.isnan(pmfs).any(axis=1)] = np.eye(size)[0]
    symbols = [draw(st.sampled_from(np.flatnonzero(row).tolist())) for row in pmfs]
    return pmfs, symbols


@settings(max_examples=300, deadline=None)
@given(messages())
def test_any_symbols_come_back_from_any_pmfs_in_the_bits_that_they_claim(message):
    pmfs, symbols = message
    code, found = coded(pmfs, symbols)
    assert found == symbols
    with np.errstate(divide="ignore"):
        bits = -np.log2(pmfs[np.arange(len(symbols)), symbols]).clip(max=32)
    assert 8 * len(code) <= 1.001 * bits.sum() + 64


def test_an_encoder_that_is_off_by_one_would_not_come_back():
    rng = np.random.default_rng(0)
    pmfs = rng.dirichlet(np.ones(5), size=2000)
    pmfs[::3] = [1e-300, 1e-12, 1 - 1e-12, 0, 0]
    symbols = [int(rng.choice(np.flatnonzero(row))) for row in pmfs]
    assert coded(pmfs, symbols)[1] == symbols
    assert coded(pmfs, symbols, shift=1)[1] != symbols


def test_carries_run_through_long_chains_of_full_bytes():
    pmf = np.array([2.0**-31, 1 - 2.0**-30, 2.0**-31])  # the last share sits at the top: low fills up with 255s
    rng = np.random.default_rng(1)
    for length in (1, 7, 60, 400):
        symbols = rng.choice([0, 1, 2], p=[0.3, 0.3, 0.4], size=length).tolist()
        assert coded(np.tile(pmf, (length, 1)), symbols)[1] == symbols
        assert coded(np.tile(pmf, (length, 1)), [2] * length)[1] == [2] * length


def test_what_is_possible_keeps_a_share_and_what_is_not_keeps_none():
    table = cumulated(np.array([[1e-300, 0.0, 1.0, 0.0]]))[0]
    assert np.diff(table).tolist() == [1, 0, 2**32 + 1, 0]


def network():
    rng = np.random.default_rng(2)
    a = rng.integers(3, size=600)
    frame = {"a": a, "b": np.where(rng.random(600) < 0.8, a, 0), "c": np.where(rng.random(600) < 0.1, "no", "yes")}
    event = Table({"a": Category((0, 1, 2)), "b": Category((0, 1, 2)), "c": Category(("no", "yes"))}, missing=False)
    model = BayesianNetwork(event, [("c", "b"), ("b", "a")]).fit(frame, seed=0)
    return model, {name: column[:300] for name, column in frame.items()}


def levels(rng, n):
    k = rng.integers(2, size=n)
    return np.where(rng.random((n, 6)) < 0.85, k[:, None] * 2, rng.integers(4, size=(n, 6)))


def cases():
    rng = np.random.default_rng(3)
    x = levels(rng, 500)
    steps = [rng.choice(5, p=(0.5, 0.2, 0.1, 0.1, 0.1), size=1 + i % 40) for i in range(90)]
    pairs = [rng.integers((3, 2), size=(4 + i % 5, 2)) for i in range(50)]
    table = {"u": x[:, 0], "w": np.where(x[:, 1] > 1, "yes", "no")}
    columns = Table({"u": Category((0, 1, 2, 3)), "w": Category(("no", "yes"))}, missing=False)
    images = (rng.random((200, 3, 4)) < 0.2).astype(int)
    return {
        "text": (NGram(Text(), 4), TEXTS),
        "tokens": (NGram(Text(BPE.learn(TEXTS, 290)), 3), TEXTS),
        "series": (NGram(Series(levels=5), 3), steps),
        "steps of two cells": (NGram(Series((2,), levels=(3, 2)), 2), pairs),
        "independent": (Independent(Array((6,), levels=4)), x),
        "mixture": (Mixture(Array((6,), levels=4), 3, emissions.Categorical(4, 6)), x),
        "unequal levels": (Mixture(Array((2,), levels=(4, 2)), 2), np.stack([x[:, 0], x[:, 1] // 2], 1)),
        "discretised": (Mixture(Array((6,), levels=4), 2, emissions.DiscretisedNormal(6, levels=4)), x),
        "table": (Mixture(columns, 2), table),
        "images": (Independent(Array((3, 4), levels=2)), images),
    }


CASES = cases()


def same(a, b):
    if isinstance(a, dict):
        return all(np.array_equal(a[name], b[name]) for name in a)
    return len(a) == len(b) and all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))


def bits_of(model, x):
    return -model.log_prob(x).nats.sum() / math.log(2)


@pytest.mark.parametrize("case", CASES)
def test_data_come_back_from_as_many_bits_as_the_model_claims(case):
    model, x = CASES[case]
    if model.report is None:
        model.fit(x, seed=0)
    there = codec(model)
    blob = there.compress(x)
    back = there.decompress(blob)
    assert same(x, back if not hasattr(back, "to_pydict") else back.to_pydict())
    header, payload = there.sizes(blob)
    assert header + payload == len(blob)
    assert abs(8 * payload - bits_of(model, x)) <= 0.001 * bits_of(model, x) + 64
    assert blob == there.compress(x)


def test_rows_of_a_network_come_back_in_the_bits_it_claims():
    model, x = network()
    there = codec(model)
    blob = there.compress(x)
    assert same(x, {name: np.array(column) for name, column in dict(there.decompress(blob)).items()})
    assert abs(8 * there.sizes(blob)[1] - bits_of(model, x)) <= 0.001 * bits_of(model, x) + 64


@pytest.mark.parametrize("event", [Text(), Series(levels=5), Array((3, 4), levels=2)], ids=["text", "series", "images"])
def test_a_transformer_codes_text_series_and_images(event):
    x = {Text: TEXTS[:7], Series: CASES["series"][1][:20], Array: CASES["images"][1][:30]}[type(event)]
    model = LanguageModel(event, layers=1, width=16, heads=2, window=32).fit(x, seed=0, steps=3)
    there = codec(model)
    blob = there.compress(x)
    assert same(x, there.decompress(blob))
    assert abs(8 * there.sizes(blob)[1] - bits_of(model, x)) <= 0.001 * bits_of(model, x) + 64


def test_one_symbol_costs_a_header_and_a_few_bytes():
    model = NGram(Text(), 3).fit(TEXTS, seed=0)
    blob = codec(model).compress(["a"])
    assert codec(model).decompress(blob) == ["a"]
    assert len(blob) <= 22 + 4
    sure = NGram(Series(levels=2), 2).fit([np.zeros(400)] * 50, seed=0, tune=False)
    zeros = [np.zeros(300)]
    assert codec(sure).sizes(codec(sure).compress(zeros))[1] <= 3
    assert same(codec(sure).decompress(codec(sure).compress(zeros)), zeros)


def test_batches_of_lanes_do_not_change_what_comes_back(monkeypatch):
    model = NGram(Text(), 3).fit(TEXTS, seed=0)
    there = codec(model)
    there.chain.lanes = 3
    assert there.decompress(there.compress(TEXTS)) == TEXTS


texts = st.lists(st.text(min_size=1, max_size=12).filter(lambda t: t.isprintable()), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(texts)
def test_any_text_comes_back_however_unlike_the_training_text(x):
    model = CASES["text"][0] if CASES["text"][0].report else CASES["text"][0].fit(TEXTS, seed=0)
    assert codec(model).decompress(codec(model).compress(x)) == x


FILES = [b"one line\n", b"two\nlines\n", b"no end", b"an empty line\n\nhere\n", b"\n", "caf\u00e9\r\n\u4e2d\n".encode()]


@pytest.mark.parametrize("raw", FILES)
def test_a_text_file_comes_back_byte_by_byte(raw):
    there = codec(NGram(Text(), 3).fit(TEXTS, seed=0))
    assert there.unpack(there.pack(raw)) == raw


def test_files_that_are_no_text_and_blobs_that_are_no_files_are_refused():
    there = codec(NGram(Text(), 3).fit(TEXTS, seed=0))
    with pytest.raises(DataError, match="Byte 1 is no UTF-8"):
        there.pack(b"a\xff")
    with pytest.raises(DataError, match="empty"):
        there.pack(b"")
    with pytest.raises(StoreError, match="no text file"):
        there.unpack(there.compress(["a"]))
    with pytest.raises(StructureError, match="A file of bytes"):
        codec(Independent(Array((2,), levels=2)).fit(np.zeros((9, 2)), seed=0)).pack(b"a")


def test_another_model_damage_and_foreign_bytes_are_refused():
    model = NGram(Text(), 3).fit(TEXTS, seed=0)
    other = NGram(Text(), 3).fit(TEXTS[:30], seed=0)
    blob = codec(model).compress(TEXTS)
    with pytest.raises(StoreError, match="another model"):
        codec(other).decompress(blob)
    for place in range(12, len(blob)):
        broken = bytearray(blob)
        broken[place] ^= 16
        with pytest.raises(StoreError, match=r"damaged|other symbols"):
            codec(model).decompress(bytes(broken))
    for cut in (0, 5, 21, 30):
        with pytest.raises(StoreError):
            codec(model).decompress(blob[:cut])
    with pytest.raises(StoreError, match="format 9"):
        codec(model).decompress(blob[:3] + b"\x09" + blob[4:])
    with pytest.raises(StoreError, match="no blob"):
        codec(model).decompress(b"PK" + blob)
    for odd in (None, "text", 3):
        with pytest.raises(StoreError, match="no blob"):
            codec(model).decompress(odd)


def test_numbers_that_differ_from_the_encoders_are_noticed(monkeypatch):
    model = NGram(Series(levels=3), 2).fit([np.array([0, 1, 2, 0, 1])] * 5, seed=0)
    there = codec(model)
    blob = there.compress([np.array([0, 1, 2] * 30)])
    monkeypatch.setattr(rooms, "cumulated", lambda pmf: cumulated(np.roll(pmf, 1, axis=1)))
    with pytest.raises(StoreError, match="numbers differ here"):
        there.decompress(blob)


def test_models_without_a_stepwise_pmf_say_why_there_is_no_codec():
    x = levels(np.random.default_rng(0), 80)
    vae = VAE(Array((6,), levels=4), latent_dim=1, hidden=(8,)).fit(x, seed=0, steps=3)
    with pytest.raises(StructureError, match="its likelihood is a bound"):
        codec(vae)
    real = Mixture(Array((2,)), 2).fit(np.random.default_rng(0).normal(size=(50, 2)), seed=0)
    with pytest.raises(StructureError, match="a density"):
        codec(real)
    counts = Independent(Table({"n": Count()})).fit({"n": np.arange(30)}, seed=0)
    with pytest.raises(StructureError, match="of Poisson"):
        codec(counts)
    with pytest.raises(NotFittedError):
        codec(NGram(Text()))
    with pytest.raises(StructureError, match="fitted model"):
        codec("ngram")
    event = Table({"a": Category((0, 1)), "n": Count()}, missing=False)
    mixed = BayesianNetwork(event, [("a", "n")]).fit({"a": [0, 1] * 20, "n": [3, 9] * 20}, seed=0)
    with pytest.raises(StructureError, match="node 'n' has no table"):
        codec(mixed)


def test_rows_with_gaps_and_impossible_rows_are_refused_by_name():
    gappy = Independent(Array((2,), levels=2, missing=True)).fit(np.array([[0, 1], [1, np.nan]] * 9), seed=0)
    with pytest.raises(DataError, match="Row 1, cell 1 is missing"):
        codec(gappy).compress(np.array([[0, 1], [1, np.nan]]))
    sure = BayesianNetwork.from_tables({"a": {0: 1.0, 1: 0.0}})
    with pytest.raises(DataError, match="Row 1 is impossible"):
        codec(sure).compress({"a": [0, 1]})


def test_weights_that_are_no_numbers_are_refused():
    model = NGram(Text(), 2).fit(TEXTS, seed=0)
    with torch.no_grad():
        model.slopes.fill_(math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(StructureError, match="NaN"):
            codec(model).compress(["a"])
