"""Real bits: a model as a file format whose sizes prove its likelihoods."""

import hashlib
import struct
import zlib
from typing import Any

import numpy as np
import torch

from probgen.errors import DataError, StoreError, StructureError
from probgen.evaluate.conditionals import Chain, chain_of, refuse_gaps
from probgen.evaluate.rangecoder import Decoder, Encoder, cumulated
from probgen.events import Text
from probgen.model import GenerativeModel
from probgen.models.blend import Blend

__all__ = ["Codec", "codec"]

_MAGIC, _VERSION = b"pgc", 1
_HEAD = struct.Struct("<3sB8sII")  # magic, version, digest of the model, checksums of what follows and of the symbols
_FORMS = ("numpy", "torch", "list", "array", "dict", "pandas", "polars", "pyarrow", "lines", "whole")


def codec(model: GenerativeModel) -> "Codec":
    """The codec of a fitted model.

    Arguments:
        model: One with an exact pmf of each symbol or cell given those before it: NGram and LanguageModel over text,
            series and arrays; BayesianNetwork of tables; Mixture and Independent over levels and categories.

    Raises:
        StructureError: a model without such a pmf, and why.
        NotFittedError: before ``fit``.
    """
    return Codec(chain_of(model))


class Codec:
    """Data as bytes, by arithmetic coding under a model (Rissanen 1976; Martin 1979).

    The payload has -log2 p(data) bits up to 0.1 % and 64 bits: below, where a symbol has less than 2^-32, which is
    what the least probable symbol costs. Before it stands a header of some 22 bytes and, for a Series, its lengths,
    which p does not cover. Row keys are not kept.

    Arguments:
        chain: The model as a chain of pmfs.

    A blob is deterministic, and decoding needs the same pmfs to the last bit. An NGram's come of float64 sums, products
    and quotients in NumPy, the same on every machine; those of tables and mixtures also go through exp, and those of
    networks through matrix products: decode these on the same kind of machine with the same versions and number of
    threads. A difference is found by a checksum, not passed on.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain, self.model = chain, chain.model
        self.digest = _digest(self.model)

    def __repr__(self) -> str:
        return f"codec({self.model!r})"

    def compress(self, data: Any) -> bytes:
        """Rows of the model's event as a blob.

        Raises:
            DataError: rows with gaps, outside the event, or impossible under the model.
        """
        return self._compressed(data, None)

    def decompress(self, blob: bytes) -> Any:
        """The rows, in the form in which they were given.

        Raises:
            StoreError: a blob of another model, another format, or damaged; pmfs that differ from the encoder's.
        """
        x, form = self._decompressed(blob)
        return self.model.event.restore(x, form if form in _FORMS[:-2] else "list")

    def pack(self, raw: bytes) -> bytes:
        """A text file as a blob: its lines, or where lines are empty or unfinished all of it as one text.

        Raises:
            StructureError: a model of something else than text.
            DataError: no UTF-8, or empty.
        """
        if not isinstance(self.model.event, Text):
            raise StructureError(f"A file of bytes under {self.model.event!r}", "a model of text", "compress(rows)")
        try:
            text = raw.decode()
        except UnicodeDecodeError as problem:
            raise DataError(f"Byte {problem.start} is no UTF-8", "a text file in UTF-8", "Convert it") from problem
        lines = text.split("\n")
        if len(lines) > 1 and not lines[-1] and all(lines[:-1]):
            return self._compressed(lines[:-1], "lines")
        return self._compressed([text], "whole")

    def unpack(self, blob: bytes) -> bytes:
        """The text file again, byte by byte.

        Raises:
            StoreError: as ``decompress``, and for a blob that is no file.
        """
        x, form = self._decompressed(blob)
        if form not in ("lines", "whole"):
            raise StoreError("The blob holds rows, no text file", "a blob written by pack", "decompress(blob)")
        texts = self.model.event.restore(x, "list")
        return "".join(text + "\n" * (form == "lines") for text in texts).encode()

    def sizes(self, blob: bytes) -> tuple[int, int]:
        """Bytes of the header and of the payload.

        Raises:
            StoreError: a blob of another model, another format, or damaged.
        """
        *_, payload = self._opened(blob)
        return len(blob) - len(payload), len(payload)

    def _compressed(self, data: Any, form: str | None) -> bytes:
        checked = self.model._check(data)
        refuse_gaps(checked.x, checked.about.keys)
        parts = self.chain.symbols(checked.x)
        form = checked.form if form is None else form
        about = [_FORMS.index(form) if form in _FORMS else 0, len(parts)]
        if self.chain.end is None and self.chain.length is None:
            about += [len(part) for part in parts]
        body = b"".join(map(_varint, about)) + self._encoded(parts, checked.about.keys)
        return _HEAD.pack(_MAGIC, _VERSION, self.digest, zlib.crc32(body), _seal(parts)) + body

    def _encoded(self, parts: list[np.ndarray], keys: np.ndarray) -> bytes:
        encoder = Encoder()
        for low in range(0, len(parts), self.chain.lanes):
            lanes = parts[low : low + self.chain.lanes]
            walk = Walk(self.chain, len(lanes), [len(part) for part in lanes])
            while walk.going:
                symbols = [int(lanes[lane][walk.place]) for lane in walk.going]
                self._put(encoder, walk.shares(), symbols, [keys[low + lane] for lane in walk.going])
                walk.push(symbols)
        return encoder.finish()

    def _put(self, encoder: Encoder, shares: np.ndarray, symbols: list[int], keys: list[Any]) -> None:
        """One symbol of each sequence that goes on."""
        rows = np.arange(len(symbols))
        starts, ends = shares[rows, symbols], shares[rows, np.array(symbols) + 1]
        if (starts == ends).any():
            row = keys[int((starts == ends).argmax())]
            raise DataError(f"Row {row} is impossible under the model", "rows of probability above 0", "Drop it")
        for start, size, total in zip(starts.tolist(), (ends - starts).tolist(), shares[:, -1].tolist(), strict=True):
            encoder.put(start, size, total)

    def _opened(self, blob: bytes) -> tuple[str, list[int] | None, int, int, bytes]:
        """Form, lengths where they are written, rows, checksum of the symbols, payload."""
        blob = bytes(blob) if isinstance(blob, bytes | bytearray | memoryview) else b""
        if len(blob) < _HEAD.size or not blob.startswith(_MAGIC):
            raise StoreError("These bytes are no blob of a codec", "what compress gave", "Check the file")
        _, version, digest, check, seal = _HEAD.unpack_from(blob)
        if version != _VERSION:
            raise StoreError(f"A blob of format {version}", f"format {_VERSION}", "Use the probgen that wrote it")
        if zlib.crc32(blob[_HEAD.size :]) != check:
            raise StoreError("The blob's checksum does not match: it is damaged", "the bytes written", "Fetch it again")
        if digest != self.digest:
            raise StoreError(
                f"A blob of another model ({digest.hex()})", f"one of this model ({self.digest.hex()})", "Load that one"
            )
        place = _HEAD.size
        form, place = _unvarint(blob, place)
        n, place = _unvarint(blob, place)
        lengths: list[int] | None = None
        if self.chain.end is None and self.chain.length is None:
            lengths = []
            for _ in range(n):
                length, place = _unvarint(blob, place)
                lengths.append(length)
        return _FORMS[form], lengths, n, seal, blob[place:]

    def _decompressed(self, blob: bytes) -> tuple[Any, str]:
        form, lengths, n, seal, payload = self._opened(blob)
        decoder, parts = Decoder(payload), []
        for low in range(0, n, self.chain.lanes):
            high = min(low + self.chain.lanes, n)
            walk = Walk(self.chain, high - low, lengths and lengths[low:high])
            found: list[list[int]] = [[] for _ in range(low, high)]
            while walk.going:
                shares, going = walk.shares(), walk.going
                symbols = [decoder.take(row) for row in shares]
                for lane, symbol in zip(going, symbols, strict=True):
                    found[lane].append(symbol)
                walk.push(symbols)
            parts += [np.array(part) for part in found]
        if _seal(parts) != seal:
            raise StoreError(
                "The blob decodes to other symbols than were encoded: the model's numbers differ here",
                "the same machine, versions and number of threads",
                "Decode it where it was written; blobs of NGram do not depend on that",
            )
        return self.chain.observations(parts), form


class Walk:
    """Sequences side by side, symbol after symbol; those that are over stay in the batch until half of it is.

    Arguments:
        chain: What is walked along.
        batch: Sequences.
        lengths: Of each, where they are known; else an end or the chain's length tells.

    ``going`` has the numbers of the sequences that go on, ``place`` the steps that were taken.
    """

    def __init__(self, chain: Chain, batch: int, lengths: list[int] | None) -> None:
        self.chain, self.steps, self.place = chain, chain.steps(batch), 0
        self.lengths = lengths if chain.end is None else None
        self.lanes = self.going = list(range(batch))

    def shares(self) -> np.ndarray:
        """Cumulative shares of the next symbol of those that go on, (going, symbols + 1).

        Raises:
            StructureError: the model's numbers are no pmf.
        """
        offered = getattr(self.steps, "pmf", None)  # straight from the model, where it offers that
        pmf = self.steps.log_pmf().double().exp().numpy() if offered is None else offered()
        if not np.isfinite(pmf).all():
            raise StructureError("The model's pmf holds NaN or infinity", "numbers from 0 to 1", "Fit the model again")
        if len(self.going) < len(self.lanes):
            pmf = pmf[np.searchsorted(self.lanes, self.going)]
        return cumulated(pmf)

    def push(self, symbols: list[int]) -> None:
        """Appends a symbol to each that goes on; the others are told the end again, or the first symbol."""
        column = np.full(len(self.lanes), self.chain.end or 0)
        column[np.searchsorted(self.lanes, self.going)] = symbols
        self.place += 1
        self.going = [lane for lane, symbol in zip(self.going, symbols, strict=True) if not self._over(lane, symbol)]
        if not self.going:
            return
        self.steps.push(column)
        if 2 * len(self.going) <= len(self.lanes) and hasattr(self.steps, "keep"):
            self.steps.keep(torch.from_numpy(np.searchsorted(self.lanes, self.going)))
            self.lanes = self.going

    def _over(self, lane: int, symbol: int) -> bool:
        if self.chain.end is not None:
            return symbol == self.chain.end
        return self.place == (self.chain.length if self.lengths is None else self.lengths[lane])


def _digest(model: GenerativeModel) -> bytes:
    """Eight bytes that tell the model's family, arguments, parameters and buffers."""
    hashed = hashlib.sha256(repr(model).encode())
    for name, value in sorted(model.state_dict().items()):
        hashed.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        hashed.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    for part in model.models if isinstance(model, Blend) else ():
        hashed.update(_digest(part))
    return hashed.digest()[:8]


def _seal(parts: list[np.ndarray]) -> int:
    return zlib.crc32(np.concatenate(parts).astype("<i8").tobytes())


def _varint(number: int) -> bytes:
    """A whole number in groups of seven bits, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _unvarint(blob: bytes, place: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    number = shift = 0
    while True:
        if place >= len(blob):
            raise StoreError("The blob ends in its header", "the bytes written", "Fetch it again")
        number |= (blob[place] & 127) << shift
        shift += 7
        place += 1
        if blob[place - 1] < 128:
            return number, place
