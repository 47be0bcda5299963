"""Observations that are text."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probgen import frames
from probgen.errors import DataError, ParameterError, ShapeError
from probgen.events.bpe import BPE
from probgen.events.cells import Ragged, row_hash
from probgen.events.event import Checked, Event, refuse_empty
from probgen.events.outside import blanked, rows
from probgen.events.words import Words
from probgen.logprob import Fingerprint


@dataclass(frozen=True, repr=False)
class Text(Event):
    """Strings: a Ragged of int64 token ids; the fingerprint keeps the bytes of the original text.

    However it is cut into tokens, a text is its bytes: events of two tokenizers have the same rows and measure.

    Arguments:
        tokenizer: "bytes" (UTF-8, 256 ids), a BPE, or Words.
    """

    tokenizer: str | BPE | Words = "bytes"

    def __post_init__(self) -> None:
        if self.tokenizer != "bytes" and not isinstance(self.tokenizer, BPE | Words):
            wanted = "'bytes', events.BPE or events.Words"
            raise ParameterError(f"tokenizer={self.tokenizer!r}", wanted, "events.BPE.learn(texts) makes one")

    @property
    def tokens(self) -> int:
        """How many token ids there are."""
        return 256 if isinstance(self.tokenizer, str) else self.tokenizer.size

    @property
    def measure(self) -> str:
        return "counting(bytes)"

    def check(self, data: Any) -> Checked:
        texts = _texts(data)
        refuse_empty(len(texts))
        coded = [_code(i, text) for i, text in enumerate(texts)]
        sizes = np.array([len(code) for code in coded])
        values = np.frombuffer(b"".join(coded), dtype=np.uint8).astype(np.int64)
        plain = Ragged(torch.from_numpy(values), torch.from_numpy(sizes))
        keys = frames.keys(data, len(texts))
        about = Fingerprint(keys, lambda: row_hash(plain), sizes, repr(Text()), self.measure, True, sizes)
        return Checked(plain if isinstance(self.tokenizer, str) else _cut(self.tokenizer, texts), about, "list")

    def restore(self, x: Ragged, form: str = "list") -> list[str]:
        decode = bytes if isinstance(self.tokenizer, str) else self.tokenizer.decode
        return [decode(part.tolist()).decode(errors="replace") for part in x.split()]


def _cut(tokenizer: BPE | Words, texts: list[str]) -> Ragged:
    parts = tokenizer.encode(texts)
    return Ragged(torch.from_numpy(np.concatenate(parts)), torch.tensor([len(part) for part in parts]))


_STRINGS = "strings: a list, an array or one column"


def _texts(data: Any) -> list:
    if isinstance(data, str):
        return [data]
    if frames.is_frame(data) or isinstance(data, Mapping):
        raise DataError(f"A {type(data).__name__} for text", _STRINGS, "Choose the column: frame['text']")
    values, missing = rows(list(data) if isinstance(data, Iterator) else data)
    if values.ndim != 1:
        raise ShapeError(f"A {type(data).__name__} of shape {values.shape} for text", _STRINGS, "Choose one column")
    return blanked(values, missing).tolist()


def _code(i: int, text: Any) -> bytes:
    with suppress(UnicodeEncodeError):
        if isinstance(text, str) and text:
            return text.encode()
    raise DataError(f"Row {i} is {text!r:.80}", "a string that is not empty, in Unicode", "Drop or fill the row")
