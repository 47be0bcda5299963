"""Text and its tokens: every string comes back, however it is cut, and rows are the same under every tokenizer."""

import copy
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probgen import datasets, store
from probgen.errors import DataError, ParameterError
from probgen.events import BPE, Text

SONG = ["the cat sat on the mat", "the dog sat on the cat", "a cat, a dog, a mat\n"] * 20
CUT = BPE.learn(SONG, 280)
HAS_BIBLE = shutil.which("bible") is not None


def test_learnt_tokens_are_the_frequent_pieces():
    assert 257 <= CUT.size <= 280
    assert {b"at", b" the", b" cat"} <= set(CUT.pieces)
    assert CUT.pieces[65] == b"A"


@given(st.text(min_size=1))
@settings(max_examples=200, deadline=None)
def test_any_string_comes_back(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    event = Text(CUT)
    checked = event.check([text])
    assert event.restore(checked.x) == [text]
    assert checked.about.bytes.tolist() == [len(text.encode())]
    assert b"".join(CUT.pieces[i] for i in checked.x.values.tolist()) == text.encode()


def test_merges_apply_in_their_order():
    assert BPE([(97, 98), (256, 99)]).encode(["abc"])[0].tolist() == [257]
    assert BPE([(98, 99), (97, 98)]).encode(["abc"])[0].tolist() == [97, 256]


def test_tokens_do_not_change_what_the_rows_are():
    plain, cut = Text().check(SONG[:3]), Text(CUT).check(SONG[:3])
    assert plain.about.same_rows(cut.about)
    assert plain.about.measure == cut.about.measure
    assert plain.about.event == cut.about.event
    assert len(cut.x.values) < len(plain.x.values)


def test_a_tokenizer_is_saved_copied_and_told_from_others():
    assert store._decode(store._encode(Text(CUT))) == Text(CUT)
    assert copy.deepcopy(CUT) == CUT
    assert repr(CUT) != repr(BPE(CUT.merges[:-1]))
    assert Text(CUT).tokens == CUT.size
    assert Text().tokens == 256


@pytest.mark.parametrize(
    ("wrong", "problem", "said"),
    [
        (lambda: BPE([(0, 300)]), ParameterError, "two ids from 0 to 255"),
        (lambda: BPE.learn(SONG, 256), ParameterError, "at least 257"),
        (lambda: BPE.learn([]), DataError, "No text"),
        (lambda: Text("words"), ParameterError, "BPE.learn"),
    ],
)
def test_a_bad_tokenizer_is_refused(wrong, problem, said):
    with pytest.raises(problem, match=said):
        wrong()


@pytest.mark.debian
@pytest.mark.skipif(not HAS_BIBLE, reason="Debian's bible-kjv is not installed")
def test_the_bible_holds_every_twentieth_chapter_out(tmp_path):
    bible = datasets.load("kjv")
    train, held = bible.split(0.5, seed=3)
    assert (len(train), len(held), sum(len(text.encode()) for text in held)) == (1129, 60, 193_740)
    assert train[0].startswith("In the beginning God created the heaven and the earth.\n")
    paths = datasets.write_kjv(tmp_path)
    chapters, verses = (datasets.load(path) for path in paths)
    assert (len(chapters), len(verses)) == (1129, 1413)
    assert sum(len(text) + 1 for text in verses.x) == 193_740
    assert np.char.find(chapters.x, "\n").max() == -1


def test_without_the_program_the_package_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="apt-get install bible-kjv"):
        datasets.load("kjv")
