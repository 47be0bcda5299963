"""How many bytes a packing program adds for each of some texts after the same training text; run as a script.

A compressor of LZMA that has read the training text can't be copied, but its process can: each text is packed in a fork
of it. Only the standard library is imported, so that forks are small and have one thread.

Standard input: the training text and the texts, each after its length (8 bytes, little-endian). Standard output: the
bytes that each text adds, a line each.
"""

import lzma
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

END = b"\xff"  # in no UTF-8 text: with it no text is the beginning of another
_PIECE = 4096


def compressor(program: str, size: int) -> Any:
    """A fresh compressor at its best level; xz is LZMA without the container, with room for ``size`` bytes."""
    if program == "gzip":
        return zlib.compressobj(9, zlib.DEFLATED, -15)
    room = max(4096, 1 << (size - 1).bit_length())
    lzma1 = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": min(room, 1 << 28)}
    return lzma.LZMACompressor(lzma.FORMAT_ALONE, filters=[lzma1])


def primed(program: str, training: bytes, size: int) -> tuple[Any, int]:
    """A compressor that has read the training text, and the bytes that came out.

    LZMA works no further than its output buffer when much comes in at once: in pieces it leaves little to the forks.
    Deflate closes its block, so that nothing of a text mixes with the training text but what is looked up there.
    """
    packer = compressor(program, size)
    pieces = (training[i : i + _PIECE] for i in range(0, len(training), _PIECE))
    out = sum(len(packer.compress(piece)) for piece in pieces)
    return packer, out + (len(packer.flush(zlib.Z_SYNC_FLUSH)) if program == "gzip" else 0)


def finished(packer: Any, text: bytes) -> int:
    """Bytes that come out with a text and the end."""
    return len(packer.compress(text)) + len(packer.flush())


def forked(packer: Any, text: bytes) -> int:
    """As ``finished``, in a copy of this process."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.write(sink, struct.pack("<q", finished(packer, text)))
        os._exit(0)
    os.close(sink)
    try:
        (length,) = struct.unpack("<q", os.read(source, 8))
    finally:
        os.close(source)
        os.waitpid(child, 0)
    return int(length)


def added(program: str, training: bytes, texts: list[bytes]) -> Iterator[int]:
    """Bytes of a code for each text that one can read who knows the training text.

    gzip: what comes out after the training text, to the end of the stream. xz: the difference of two whole lengths,
    with a byte that ends the text, and one for the rounding of both lengths to bytes.
    """
    size = len(training) + max(map(len, texts)) + 1
    packer, out = primed(program, training, size)
    if program == "gzip":
        yield from (finished(packer.copy(), text) for text in texts)
        return

    def total(text: bytes) -> int:
        if hasattr(os, "fork"):
            return out + forked(packer, text)
        return finished(compressor(program, size), training + text)

    without = total(b"")
    yield from (total(text + END) - without + 1 for text in texts)


def blocks(stream: BinaryIO) -> Iterator[bytes]:
    while head := stream.read(8):
        yield stream.read(struct.unpack("<q", head)[0])


if __name__ == "__main__":
    given = blocks(sys.stdin.buffer)
    first = next(given)
    sys.stdout.write("".join(f"{length}\n" for length in added(sys.argv[1], first, list(given))))
