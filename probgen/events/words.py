"""Whole words as tokens of text, bytes for the rest."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from probgen.errors import DataError, ParameterError

__all__ = ["Words"]

_PIECE = re.compile(r" ?\w+|\W")


@dataclass(frozen=True, repr=False)
class Words:
    """Words as tokens: ids 0 to 255 are the bytes, id 256 + k is the k-th word, the space before it included.

    Any string is encoded and comes back byte by byte: text is cut into words (letters, digits and underscores, with one
    space before them where there is one) and single other characters; a piece that is no known word is spelled in
    bytes. For captions and other text of few words a token a word is far cheaper than bytes, and needs no package.

    Arguments:
        words: Distinct pieces, such as ``(" dark", "a")``.

    Raises:
        ParameterError: a word twice, or one that text is never cut into.
    """

    words: Sequence[str]

    def __post_init__(self) -> None:
        words = (self.words,) if isinstance(self.words, str) else tuple(self.words)
        for word in words:
            if not isinstance(word, str) or not _PIECE.fullmatch(word) or not _encodes(word):
                do = "Learn them: Words.learn(texts)"
                raise ParameterError(f"The word {word!r}", "letters or digits, with one space before at most", do)
        if twice := [word for word, times in Counter(words).items() if times > 1]:
            raise ParameterError(f"The words {twice[:5]} come twice", "distinct words", "Words.learn(texts)")
        object.__setattr__(self, "words", words)

    @classmethod
    def learn(cls, texts: Iterable[str], size: int = 512) -> "Words":
        """The most frequent words of texts that come at least twice: ``size`` tokens at most, the bytes included.

        Raises:
            DataError: no text.
            ParameterError: a size below 257.
        """
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 257:
            raise ParameterError(f"size={size!r}", "a whole number of tokens, at least 257: the bytes and a word")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise DataError(f"{odd[0]!r:.80} among the texts", "strings", "Leave out what is missing")
        if not any(texts):
            raise DataError("No text to learn words from", "strings that are not empty", "Check how they were read")
        found: Counter[str] = Counter()
        for text, times in Counter(texts).items():
            for piece in _PIECE.findall(text):
                found[piece] += times
        counts = {w: times for w, times in found.items() if times > 1 and _encodes(w) and len(w.encode()) > 1}
        return cls(sorted(counts, key=lambda word: (-counts[word], word))[: size - 256])

    @property
    def size(self) -> int:
        """Number of tokens."""
        return 256 + len(self.words)

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of each token."""
        return (*(bytes([i]) for i in range(256)), *(word.encode() for word in self.words))

    @cached_property
    def _ids(self) -> dict[str, tuple[int, ...]]:
        return {word: (256 + k,) for k, word in enumerate(self.words)}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int64."""
        known, found = {}, []
        for text in texts:
            if text not in known:
                cut = (self._ids.get(piece) or piece.encode() for piece in _PIECE.findall(text))
                known[text] = np.array([i for piece in cut for i in piece], dtype=np.int64)
            found.append(known[text])
        return found

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.pieces[i] for i in ids)

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr(self.words).encode()).hexdigest()[:8]
        return f"Words({len(self.words)} words, {digest})"

    def __getstate__(self) -> dict[str, Any]:
        return {"words": self.words}


def _encodes(word: str) -> bool:
    """Whether a word is Unicode: a lone surrogate is not."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in word)
