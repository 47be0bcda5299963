"""A language model under another choice of symbols: a distribution of its own, with its own likelihood."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import torch

from probgen.errors import StructureError
from probgen.events import Event, Ragged
from probgen.events.symbols import why_not
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.language.choosing import Choice, growing
from probgen.models.language.decoding import Stepper
from probgen.models.language.texts import pieces, refuse_no_text
from probgen.nn import refuse_broken

if TYPE_CHECKING:
    from probgen.models.language.family import LanguageModel

__all__ = ["Sampler", "streamed"]


class Sampler(GenerativeModel):
    """A language model whose every next symbol is chosen by temperature, top-k, top-p, min-p, repetition penalty.

    What such a sampler draws is not distributed as the model says: ``log_prob`` here is that of the sampler itself,
    -inf for what it never draws. It is made by ``LanguageModel.sampler``.

    Arguments:
        language: A LanguageModel; it is used, not copied.
        temperature, top_k, top_p, min_p, repetition_penalty: See Choice.
    """

    language: "LanguageModel"

    def __init__(
        self,
        language: "LanguageModel",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> None:
        self_choice = Choice(temperature, top_k, top_p, min_p, repetition_penalty)
        super().__init__(language.event)
        self.language, self.choice = language, self_choice
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.repetition_penalty = repetition_penalty
        self.report, self.form = language.report, language.form

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return why_not(event)

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        raise StructureError("Sampler.for_event", "a language model to sample from", "lm.sampler(top_k=50)")

    def model(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        raise StructureError("A program of a sampler", "the language model's own", "lm.model(x)")

    def _check_given(self, given: Any, data: Any) -> Any:
        return self.language._check_given(given, data)

    def _fit(self, x: Any, given: Any, *, generator: torch.Generator, **options: Any) -> FitReport:
        raise StructureError("fit of a sampler", "the language model", "lm.fit(texts).sampler(...)")

    def _log_prob(self, x: Any, given: Ragged | None, *, generator: torch.Generator) -> LogProb:
        nats, by = self.language._totals(x, given, choice=self.choice)
        of = "x" if given is None else "x|prefix"
        return LogProb(self.language._kind, nats, by=by, of=of, target=self._target)

    def _sample(
        self,
        n: int,
        given: Ragged | None,
        *,
        generator: torch.Generator,
        length: int | None = None,
        stop: str | tuple[str, ...] = (),
    ) -> Any:
        """``length`` and ``stop`` as of LanguageModel."""
        return self.language._drawn(n, given, generator, self.choice, length, stop)

    @property
    def _target(self) -> str:
        return f"p[{self.choice}]" if str(self.choice) else "p"

    def sample_target(self, **options: Any) -> str:
        return self.language.sample_target(**options).replace("p", self._target, 1)


def streamed(
    model: "LanguageModel", given: str | None, most: int, generator: torch.Generator, choice: Choice
) -> Iterator[str]:
    """Pieces of one text as they are drawn, the prefix first.

    Raises:
        StructureError: a model of something else than text.
    """
    refuse_no_text(model, "A stream")
    prefix, stepper = model._check_given(given, None), Stepper(model)
    refuse_broken(model.network)

    def symbols() -> Iterator[int]:
        if prefix is not None:
            stepper.read(prefix.values)
            yield from prefix.values.tolist()
        for _, drawn in growing(stepper, choice, generator, most, may_be_empty=prefix is not None):
            yield int(drawn)

    return pieces(model, symbols())
