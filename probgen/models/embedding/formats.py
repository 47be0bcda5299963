"""Tables of word vectors on disk: word2vec's text and binary files, GloVe's text, a tensor beside a tokenizer.json."""

import gzip
import json
import math
import struct
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from probgen.errors import DataError, ParameterError, nearest
from probgen.frames import write_whole

__all__ = ["Format", "read_table", "read_tensor", "read_words", "write_table"]

Format = Literal["word2vec", "word2vec-binary", "glove"]
_FORMATS = ("word2vec", "word2vec-binary", "glove")
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
_TABLES = ("word_embeddings.weight", "embed_tokens.weight", "wte.weight", "embedding.weight", "shared.weight")
_LIMIT = 1 << 27  # bytes of a header, and words of a table


def read_table(path: str | PathLike, form: Format | None = None) -> tuple[list[str], np.ndarray]:
    """Words and their vectors, float32 (V, dim); ``.gz`` is unpacked.

    Arguments:
        form: None looks: a first line of two whole numbers is word2vec's, binary where numbers do not follow as text.

    Raises:
        DataError: a file that is missing, truncated or something else; the line is named.
    """
    path = Path(path)
    if form not in (None, *_FORMATS):
        raise ParameterError(f"form={form!r}", " or ".join(map(repr, _FORMATS)), "None looks at the file")
    try:
        with _opened(path) as file:
            form = form or _looks_like(file)
            if form == "word2vec-binary":
                return _read_binary(path, file)
            shape = _shape(path, file.readline()) if form == "word2vec" else None
            return _read_lines(path, file, shape)
    except (OSError, EOFError) as problem:
        raise DataError(f"{path} can't be read: {problem}", "a table of word vectors", "Check the path") from problem


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _looks_like(file: BinaryIO) -> Format:
    head = file.readline(1 << 16).split()
    after = file.readline(1 << 16)
    file.seek(0)
    if len(head) != 2 or not all(part.isdigit() for part in head):
        return "glove"
    try:
        parts = after.decode().rstrip("\n ").split(" ")
        return "word2vec" if len(list(map(float, parts[1:]))) >= int(head[1]) else "word2vec-binary"
    except (UnicodeDecodeError, ValueError):
        return "word2vec-binary"


def _shape(path: Path, line: bytes) -> tuple[int, int]:
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise DataError(f"{path} begins with {line[:40]!r}", "a line of two numbers: words and dimensions", "Try glove")
    words, dim = int(parts[0]), int(parts[1])
    if not (0 < words < _LIMIT and 0 < dim < 1 << 20):
        raise DataError(f"{path} says {words} words of {dim} dimensions", "a table of some size", "Check the file")
    return words, dim


def _read_lines(path: Path, file: BinaryIO, shape: tuple[int, int] | None) -> tuple[list[str], np.ndarray]:
    words, rows = [], []
    dim = shape[1] if shape else None
    for i, line in enumerate(file, 2 if shape else 1):
        if not line.strip():
            continue
        try:
            parts = line.decode().rstrip(" \r\n").split(" ")
            dim = dim or len(parts) - 1
            row = np.array(parts[-dim:], dtype=np.float32)
            word = " ".join(parts[:-dim])
        except (UnicodeDecodeError, ValueError) as problem:
            raise DataError(f"{path}, line {i}: {problem!s:.80}", "a word and its numbers, in UTF-8") from problem
        if len(row) != dim or not word:
            raise DataError(f"{path}, line {i} has {len(parts)} parts", f"a word and {dim} numbers")
        words.append(word)
        rows.append(row)
    if not words or (shape and len(words) != shape[0]):
        raise DataError(f"{path} has {len(words)} rows", f"{shape[0] if shape else 'some'}", "The file is cut short")
    return words, np.stack(rows)


def _read_binary(path: Path, file: BinaryIO) -> tuple[list[str], np.ndarray]:
    n, dim = _shape(path, file.readline(1 << 16))
    words, rows = [], []
    for i in range(n):
        word = bytearray()
        while (letter := file.read(1)) not in (b" ", b"") and len(word) < 1 << 16:
            word += letter
        raw = file.read(4 * dim)
        if len(raw) != 4 * dim:
            raise DataError(f"{path} ends in row {i} of {n}", f"{n} rows of {dim} numbers", "The file is cut short")
        try:
            words.append(word.lstrip(b"\n").decode())
        except UnicodeDecodeError as problem:
            raise DataError(f"{path}, row {i} is the word {bytes(word)!r:.60}", "words in UTF-8") from problem
        rows.append(np.frombuffer(raw, dtype="<f4"))
    return words, np.stack(rows)


def write_table(words: Sequence[str], rows: np.ndarray, path: str | PathLike, form: Format) -> None:
    """Writes a table, whole or not at all; numbers in text have 9 digits, which give float32 back bit for bit.

    Raises:
        ParameterError: an unknown form. DataError: a word that the form can't hold. StoreError: an unwritable place.
    """
    if form not in _FORMATS:
        raise ParameterError(f"form={form!r}", " or ".join(map(repr, _FORMATS)))
    for word in words:
        if word != word.strip() or any(c in word for c in ("\n\r" if form == "glove" else "\n\r ")) or not word:
            raise DataError(f"The word {word!r} has blanks", f"words that {form} can hold", "Use save(folder)")
    write_whole(path, _lines_of(words, rows.astype("<f4"), form))


def _lines_of(words: Sequence[str], rows: np.ndarray, form: Format) -> Iterator[bytes]:
    if form != "glove":
        yield f"{len(words)} {rows.shape[1]}\n".encode()
    for word, row in zip(words, rows, strict=True):
        if form == "word2vec-binary":
            yield word.encode() + b" " + row.tobytes() + b"\n"
        else:
            yield f"{word} {' '.join(format(x, '.9g') for x in row.tolist())}\n".encode()


def read_words(tokenizer: str | PathLike) -> list[str]:
    """The pieces of a tokenizer.json, by id.

    Raises:
        DataError: a file without a vocabulary, or whose ids have gaps.
    """
    path = Path(tokenizer)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        model, added = about["model"], about.get("added_tokens", [])
        vocabulary = model["vocab"]
        if isinstance(vocabulary, list):
            vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
        places = {int(i): str(piece) for piece, i in vocabulary.items()}
        places |= {int(one["id"]): str(one["content"]) for one in added}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise DataError(f"{path} can't be read: {problem!r:.80}", "a tokenizer.json with a vocabulary") from problem
    if sorted(places) != list(range(len(places))):
        raise DataError(f"{path} has {len(places)} pieces with gaps in their ids", "ids from 0 on", "Check the file")
    return [places[i] for i in range(len(places))]


def read_tensor(path: str | PathLike, rows: int, name: str | None = None) -> np.ndarray:
    """One matrix of a safetensors file, float32 (rows, dim), read by its header; the rest of the file is not touched.

    Arguments:
        rows: How many it must have at least; rows beyond (padding of the vocabulary) are left off.
        name: Of the tensor; None takes the input embedding by its usual names, or the one matrix of so many rows.

    Raises:
        DataError: a damaged file, no such tensor, several that it could be.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            if size > _LIMIT:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(file.read(size))
        header.pop("__metadata__", None)
        chosen = name if name in header else _choice(path, header, rows, name)
        about = header[chosen]
        shape, (low, high) = tuple(map(int, about["shape"])), about["data_offsets"]
        dtype = np.dtype(_DTYPES[about["dtype"]])
        if len(shape) != 2 or shape[0] < rows or high - low != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{chosen} has shape {shape} for {rows} words")
        raw = np.fromfile(path, dtype=dtype, count=rows * shape[1], offset=8 + size + low)
        if len(raw) != rows * shape[1]:
            raise ValueError(f"it ends inside {chosen}")
    except (OSError, ValueError, LookupError, TypeError, struct.error) as problem:
        if isinstance(problem, DataError):
            raise
        came = f"{path} can't be read: {problem!s:.120}"
        raise DataError(came, "a safetensors file with a table of word vectors", "Check path and name=") from problem
    if about["dtype"] == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32).reshape(rows, shape[1])


def _choice(path: Path, header: dict[str, Any], rows: int, name: str | None) -> str:
    matrices = [key for key, about in header.items() if len(about["shape"]) == 2]
    if name is not None:
        raise DataError(f"There is no tensor {name!r} in {path}", "", nearest(name, matrices))
    usual = [key for key in matrices if key.endswith(_TABLES) and header[key]["shape"][0] >= rows]
    fitting = usual or [key for key in matrices if header[key]["shape"][0] == rows]
    if len(fitting) != 1:
        raise DataError(
            f"{path} has {len(fitting)} tables of {rows} rows",
            "one table, or its name=",
            nearest("", fitting or matrices),
        )
    return fitting[0]
