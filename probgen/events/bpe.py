"""Byte-pair encoding of text: the door to tokenizers."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from probgen.errors import DataError, MissingExtra, ParameterError

__all__ = ["BPE"]


@dataclass(frozen=True, repr=False)
class BPE:
    """A byte-level byte-pair encoding: ids 0 to 255 are the bytes, id 256 + k is the k-th merge of two earlier ids.

    Any string is encoded and comes back byte by byte: nothing is normalised. Text is cut into words before (GPT-2's
    pattern: a space belongs to the word after it), and no token spans two words. Sennrich, Haddow and Birch (2016);
    Radford et al. (2019).

    Arguments:
        merges: Pairs of ids, in the order in which they apply.

    Raises:
        ParameterError: a merge of an id that does not exist yet.
    """

    merges: Sequence[tuple[int, int]]

    def __post_init__(self) -> None:
        merges = tuple((int(a), int(b)) for a, b in self.merges)
        for k, pair in enumerate(merges):
            if not all(0 <= part < 256 + k for part in pair):
                raise ParameterError(
                    f"Merge {k} is {pair}", f"two ids from 0 to {255 + k}", "Learn it: BPE.learn(texts)"
                )
        object.__setattr__(self, "merges", merges)

    @classmethod
    def learn(cls, texts: Iterable[str], size: int = 2048) -> "BPE":
        """The encoding of ``size`` tokens whose merges are the most frequent pairs in texts.

        Raises:
            DataError: no text.
            ParameterError: a size below 257.
            MissingExtra: without the package tokenizers.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 257:
            raise ParameterError(f"size={size!r}", "a whole number of tokens, at least 257: the bytes and a merge")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not any(texts):
            raise DataError("No text to learn tokens from", "strings that are not empty", "Check how they were read")
        tokenizers = _tokenizers()
        learner = _plain(tokenizers, {}, [])
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, show_progress=False, initial_alphabet=list(_letters()), min_frequency=2
        )
        learner.train_from_iterator(texts, trainer)
        ids = {letter: i for i, letter in enumerate(_letters())}
        merges = []
        for left, right in json.loads(learner.to_str())["model"]["merges"]:
            merges.append((ids[left], ids[right]))
            ids.setdefault(left + right, 255 + len(merges))
        return cls(merges)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return 256 + len(self.merges)

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of each token."""
        found = [bytes([i]) for i in range(256)]
        for left, right in self.merges:
            found.append(found[left] + found[right])
        return tuple(found)

    @cached_property
    def _engine(self) -> Any:
        letters = _letters()
        names = ["".join(letters[byte] for byte in piece) for piece in self.pieces]
        return _plain(
            _tokenizers(),
            {name: i for i, name in reversed(list(enumerate(names)))},
            [(names[left], names[right]) for left, right in self.merges],
        )

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int64."""
        found = self._engine.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int64) for one in found]

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.pieces[i] for i in ids)

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr(self.merges).encode()).hexdigest()[:8]
        return f"BPE({len(self.merges)} merges, {digest})"

    def __getstate__(self) -> dict[str, Any]:
        return {"merges": self.merges}


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as missing:
        raise MissingExtra("tokenizers", "language") from missing
    return tokenizers


def _plain(tokenizers: Any, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """An encoder without normaliser or special tokens."""
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return engine


@cache
def _letters() -> tuple[str, ...]:
    """The printable letter that stands for each byte in files of byte-level encodings."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(256, 512))
    return tuple(chr(byte) if byte in plain else chr(next(spare)) for byte in range(256))
