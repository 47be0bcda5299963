"""Words as tokens: any text comes back byte by byte, and known words cost one token."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probgen.errors import DataError, ParameterError
from probgen.events import Text, Words
from probgen.logprob import Kind
from probgen.models.language import LanguageModel, TokenPath
from probgen.models.ngram import NGram

CAPTIONS = ["a dark wide boot", "a bright narrow dress", "a dark dress", "a long-sleeved shirt", "a bright bag"] * 3
WORDS = Words.learn(CAPTIONS)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_byte_by_byte(text):
    ids = WORDS.encode([text])[0]
    assert WORDS.decode(ids) == text.encode()
    assert ids.dtype == np.int64


def test_a_lost_byte_is_seen():
    ids = WORDS.encode(["a dark größe"])[0]
    assert WORDS.decode(ids[:-1]) != "a dark größe".encode()


def test_a_known_word_is_one_token_with_the_space_before_it():
    assert [len(ids) for ids in WORDS.encode(["a dark wide boot", "a dark dress"])] == [4, 3]
    assert b" dark" in WORDS.pieces
    assert WORDS.size == len(WORDS.pieces) == 256 + len(WORDS.words)


def test_unknown_words_and_letters_are_spelled_in_bytes():
    ids = WORDS.encode(["a dark größe"])[0]
    assert max(ids[-7:]) < 256
    assert WORDS.pieces[ids[1]] == b" dark"


def test_the_most_frequent_words_are_learnt_and_those_that_come_once_are_not():
    learnt = Words.learn([*CAPTIONS, "unheard"], 257)
    assert learnt.words == (" dark",) or len(learnt.words) == 1
    assert "unheard" not in Words.learn([*CAPTIONS, "unheard"]).words
    assert Words.learn(CAPTIONS).words == Words.learn(CAPTIONS[::-1]).words


@pytest.mark.parametrize("words", [("two words",), ("-",) * 2, ("a", "a"), ("\udc80",), (3,), ("",)])
def test_words_that_text_is_never_cut_into_are_refused(words):
    with pytest.raises(ParameterError):
        Words(words)


@pytest.mark.parametrize("size", [256, 0, True, 300.5, "many"])
def test_a_size_without_room_for_a_word_is_refused(size):
    with pytest.raises(ParameterError, match="257"):
        Words.learn(CAPTIONS, size)


@pytest.mark.parametrize("texts", [[], [""], ["a", None], [3]])
def test_nothing_to_learn_from_is_refused(texts):
    with pytest.raises(DataError):
        Words.learn(texts)


def test_texts_in_words_are_the_same_rows_as_in_bytes():
    event, plain = Text(WORDS), Text()
    one, other = event.check(CAPTIONS), plain.check(CAPTIONS)
    np.testing.assert_array_equal(one.about.content, other.about.content)
    assert one.about.measure == other.about.measure
    assert event.restore(one.x, one.form) == CAPTIONS
    assert event.tokens == WORDS.size
    assert copy.deepcopy(event) == event
    assert copy.copy(WORDS).encode(["a dress"])[0].tolist() == WORDS.encode(["a dress"])[0].tolist()


def test_a_string_under_words_is_bounded_from_below_and_measured_in_its_own_bytes():
    texts = ["a dark boot", "a bright bag", "a grey boot with a heel"] * 10
    event = Text(Words.learn(texts))
    options = {"layers": 1, "width": 16, "heads": 2, "pairs": 50, "window": 32}
    model = LanguageModel(event, **options).fit(texts, steps=30, seed=0)
    found = model.log_prob(texts[:3])
    assert found.kind == NGram(event).fit(texts).log_prob(texts[:3]).kind == Kind.LOWER
    assert model.log_prob(texts[:3], by=TokenPath()).kind == Kind.EXACT
    size = sum(len(text.encode()) for text in texts[:3])
    assert float(found.bits_per_byte()) == pytest.approx(-found.nats.sum() / math.log(2) / size)
    assert float(model.bits_per_byte(texts[:3])) == pytest.approx(float(found.bits_per_byte()), rel=1e-5)
