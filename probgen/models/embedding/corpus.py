"""Texts as sequences of words, and the law of the noise words."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from probgen.errors import DataError, nearest
from probgen.events import Text

__all__ = ["Corpus", "alias", "encoded", "refuse_unknown", "words_of"]

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_GUESSED = 20_000  # spellings that are compared with an unknown one


def words_of(texts: Any, lower: bool) -> list[Sequence[str]]:
    """The words of each text: runs of letters, digits, "_" and inner apostrophes; lists of words stay as they are.

    Raises:
        DataError: no text, an empty one, or something that is neither a string nor a list of words; the row is named.
    """
    lists = isinstance(texts, list | tuple) and any(isinstance(text, list | tuple) for text in texts)
    if not lists:
        event = Text()
        plain = event.restore(event.check(texts).x)
        return [_WORD.findall(text.lower() if lower else text) for text in plain]
    for i, text in enumerate(texts):
        if not isinstance(text, list | tuple) or not text or not all(isinstance(word, str) and word for word in text):
            raise DataError(f"Row {i} is {text!r:.80}", "a list of words, as the other rows are", "Split all or none")
    return [[word.lower() for word in text] if lower else text for text in texts]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Known words of texts as numbers, and how often each occurs.

    Arguments:
        words: The vocabulary, the most frequent first; ties by spelling.
        counts: int64 (V,).
        ids: int64 (N,): texts one after the other, rare words left out.
        lengths: int64 (n,): known words of each text.
    """

    words: tuple[str, ...]
    counts: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]], min_count: int) -> "Corpus":
        """Raises DataError where fewer than two words occur ``min_count`` times."""
        found = Counter(word for text in texts for word in text)
        kept = sorted((word for word, count in found.items() if count >= min_count), key=lambda w: (-found[w], w))
        if len(kept) < 2:
            raise DataError(
                f"{len(kept)} of {len(found)} words occur {min_count} times or more",
                "two words at least",
                "Give more text, or a smaller min_count",
            )
        ids, lengths = encoded(texts, {word: i for i, word in enumerate(kept)})
        return cls(tuple(kept), np.array([found[word] for word in kept], dtype=np.int64), ids, lengths)


def encoded(texts: Sequence[Sequence[str]], places: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the known words, one text after the other, and how many each text has; int64."""
    rows = [[places[word] for word in text if word in places] for text in texts]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return np.fromiter((i for row in rows for i in row), dtype=np.int64, count=int(lengths.sum())), lengths


def alias(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's table (1977) of a pmf (V,): slot i keeps i with probability share[i], else gives other[i]."""
    share, other = p * len(p), np.arange(len(p), dtype=np.int64)
    small, large = [list(np.flatnonzero(side)) for side in (share < 1, share >= 1)]
    while small and large:
        low, high = small.pop(), large[-1]
        other[low] = high
        share[high] -= 1 - share[low]
        if share[high] < 1:
            small.append(large.pop())
    share[small + large] = 1.0
    return share, other


def refuse_unknown(word: Any, words: Sequence[str]) -> None:
    """Raises DataError with the nearest spellings that are known."""
    if not isinstance(word, str):
        raise DataError(f"A word {word!r:.60}", "a string", "")
    like = [known for known in words if abs(len(known) - len(word)) <= 2]
    like = [known for known in like if known[:1] == word[:1]] if len(like) > _GUESSED else like
    close = get_close_matches(word, like[:_GUESSED], n=3, cutoff=0.6)
    do = f"Near: {', '.join(map(repr, close))}" if close else nearest(word, words[:30])
    raise DataError(f"The word {word!r} is unknown", f"one of the {len(words)} words", do)
