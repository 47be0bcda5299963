"""Between symbols and strings: prefixes joined to what follows, strings at which a text stops, text in pieces."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from probgen.errors import ParameterError, StructureError
from probgen.events import Ragged, Text

if TYPE_CHECKING:
    from probgen.models.language.family import LanguageModel

__all__ = ["bytes_of", "cut_at", "joined", "pieces", "refuse_no_text", "string"]


def joined(prefix: Ragged | None, ids: Ragged) -> tuple[Ragged, np.ndarray]:
    """Each sequence after its prefix (one for all, or one each), and how many symbols are the prefix's, (n,)."""
    if prefix is None:
        return ids, np.zeros(len(ids), dtype=np.int64)
    heads = prefix.split() * (len(ids) if len(prefix) == 1 else 1)
    parts = [torch.cat(pair) for pair in zip(heads, ids.split(), strict=True)]
    known = torch.tensor([len(head) for head in heads])
    return Ragged(torch.cat(parts), known + ids.lengths), known.numpy()


def refuse_no_text(model: "LanguageModel", what: str) -> None:
    if not isinstance(model.event, Text):
        raise StructureError(f"{what} of a model of {model.event!r}", "a model of text", "LanguageModel().fit(texts)")


def bytes_of(model: "LanguageModel", ids: Iterable[int]) -> bytes:
    """Of tokens of a text."""
    tokenizer = model.event.tokenizer  # type: ignore[attr-defined]
    return bytes(ids) if isinstance(tokenizer, str) else tokenizer.decode(ids)


def string(model: "LanguageModel", ids: Iterable[int]) -> str | None:
    """The text that tokens spell; None where their bytes are no Unicode."""
    try:
        return bytes_of(model, ids).decode()
    except UnicodeDecodeError:
        return None


def cut_at(model: "LanguageModel", stop: str | Iterable[str]) -> Callable[[list[int]], list[int] | None] | None:
    """A function that cuts tokens after the first of the strings ``stop``; None without any.

    Raises:
        ParameterError: an empty string. StructureError: a model of something else than text.
    """
    words = [word.encode() for word in ([stop] if isinstance(stop, str) else stop)]
    if not words:
        return None
    refuse_no_text(model, "stop=")
    if not all(words):
        raise ParameterError(f"stop={stop!r}", "strings that are not empty", "Leave it out to stop nowhere")
    longest = max(map(len, words))

    def cut(ids: list[int]) -> list[int] | None:
        tail, size = [ids[-1]], len(bytes_of(model, ids[-1:]))
        while size < longest + len(bytes_of(model, ids[-1:])) and len(tail) < len(ids):
            tail.insert(0, ids[-len(tail) - 1])
            size = len(bytes_of(model, tail))
        found = bytes_of(model, tail)
        ends = [at + len(word) for word in words if (at := found.find(word)) >= 0]
        return None if not ends else ids[: len(ids) - len(tail)] + list(found[: min(ends)])

    return cut


def pieces(model: "LanguageModel", ids: Iterable[int]) -> Iterator[str]:
    """Text as its tokens arrive; bytes wait until they are whole characters."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for symbol in ids:
        if piece := decoder.decode(bytes_of(model, [symbol])):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece
