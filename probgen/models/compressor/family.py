"""xz and gzip as models of text: what a text adds to the packed training text is a code length."""

import math
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import pyro
import torch
from torch import Tensor

from probgen.errors import FitError, ParameterError, StructureError, nearest
from probgen.events import Event, Ragged, Text
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.compressor import primed

__all__ = ["PROGRAMS", "Compressor"]

PROGRAMS = ("xz", "gzip")


class Compressor(GenerativeModel):
    """A packing program as a model of text: log_prob(x) = -8 ln 2 times the bytes that x adds to the training text.

    Arguments:
        event: Text.
        program: "xz" (LZMA without the container, whose padding hides bytes) or "gzip" (deflate, which looks back 32
            KiB), at the best level.

    A code that can be read has lengths whose 2^-bits sum to at most 1 over all texts (Kraft): a normalised p lies
    above, hence kind lower, of target "code". Each text is packed on its own after all of the training text. gzip
    closes its block there and writes the text to the end of its stream: its length is that of a code. LZMA can't stop,
    so that for xz it is |C(training text)| - |C(training)|, with a byte that ends the text and one for the rounding of
    both; it is a code but for what the training text's last match gains from the text, a few bits that the byte
    covers. Plain differences of whole lengths, as they are often published, sum to more than 1 for gzip, and for bz2,
    which sorts training text and text in one block: there is no such code, and no bz2 here.

    The program reads the training text once a call; under xz each text is then packed in a fork of its process (without
    forks, as on Windows, all is packed again for each text).
    """

    growing: ClassVar[tuple[str, ...]] = ("corpus",)
    corpus: Tensor
    event: Text

    def __init__(self, event: Event, program: str = "xz") -> None:
        super().__init__(event)
        if program not in PROGRAMS:
            raise ParameterError(f"program={program!r}", "a packing program", nearest(str(program), PROGRAMS))
        self.program = program
        self.register_buffer("corpus", torch.zeros(0, dtype=torch.uint8))

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return None if isinstance(event, Text) else f"it packs text, not {type(event).__name__}"

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)

    @classmethod
    def variants(cls, event: Event) -> dict[str, dict[str, Any]]:
        """One model a program, for ``compare``."""
        return {program: {"program": program} for program in PROGRAMS}

    def _texts(self, x: Ragged) -> list[bytes]:
        decode = bytes if self.event.tokenizer == "bytes" else self.event.tokenizer.decode  # type: ignore[union-attr]
        return [decode(part.tolist()) for part in x.split()]

    def lengths(self, texts: list[bytes]) -> np.ndarray:
        """Bytes of each text's code, shape (n,).

        Raises:
            FitError: the program's process died.
        """
        blocks = [self.corpus.numpy().tobytes(), *texts]
        given = b"".join(struct.pack("<q", len(block)) + block for block in blocks)
        command = [sys.executable, "-I", str(Path(primed.__file__)), self.program]
        done = subprocess.run(command, input=given, capture_output=True, check=False)
        found = np.array(done.stdout.split(), dtype=np.int64)
        if done.returncode or len(found) != len(texts):
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise FitError(f"The process of {self.program} ended early: {said}", "room for it", "Give shorter texts")
        return found

    def _fit(self, x: Ragged, given: None, *, generator: torch.Generator) -> FitReport:
        began = time.perf_counter()
        text = b"".join(each + primed.END for each in self._texts(x))
        self.corpus = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
        packer, packed = primed.primed(self.program, text, len(text))
        packed += primed.finished(packer, b"")
        objective = -8 * math.log(2), -8 * math.log(2) * packed / len(text)
        note = f"{len(text)} bytes packed into {packed}"
        seconds = time.perf_counter() - began
        return FitReport((min(objective), objective[1]), 1, "closed form", seconds, notes=(note,))

    def _log_prob(self, x: Ragged, given: None, *, generator: torch.Generator) -> LogProb:
        bits = 8.0 * self.lengths(self._texts(x))
        return LogProb(Kind.LOWER, -math.log(2) * bits, by=self.program, target="code")

    def model(self, x: Ragged | None = None, given: None = None, n: int = 1) -> None:
        """A factor of the code lengths: there is no program that draws."""
        if x is None:
            self._refuse_draws()
        nats = self._log_prob(x, None, generator=torch.Generator()).nats
        with pyro.plate("rows", len(x)):
            pyro.factor("x", torch.from_numpy(nats))

    def _sample(self, n: int, given: None, *, generator: torch.Generator) -> NoReturn:
        self._refuse_draws()

    def _refuse_draws(self) -> NoReturn:
        raise StructureError(
            f"Draws from {self.program}", "a model that draws", "It only measures lengths; NGram and LanguageModel draw"
        )
