"""Questions about pictures whose answers are in their captions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probgen.datasets.captions import DIGITS, FASHION, TONES, WEIGHTS
from probgen.datasets.dataset import Dataset
from probgen.errors import DataError, ParameterError, ShapeError

__all__ = ["Question", "questions"]


@dataclass(frozen=True)
class Question:
    """A question with finitely many answers, each of which some captions give.

    Arguments:
        text: As one asks it: "is it dark?".
        choices: The possible answers.
        answers: Of each caption that answers it; those that it makes no sense for are left out.
    """

    text: str
    choices: tuple[str, ...]
    answers: Mapping[str, str]

    def __post_init__(self) -> None:
        if odd := sorted(set(self.answers.values()) - set(self.choices)) or not self.answers:
            raise ParameterError(f"Answers {odd} to {self.text!r}", f"some of {', '.join(self.choices)}", "")

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions that answer it, in a fixed order: what a model's posterior is asked over."""
        return tuple(self.answers)

    def answer(self, captions: Iterable[str]) -> list[str | None]:
        """What each caption says; None where it says nothing about it."""
        return [self.answers.get(caption) for caption in captions]

    def of(self, posterior: np.ndarray) -> np.ndarray:
        """Probabilities of the choices, (n, choices), from those of ``captions``, (n, captions), as they are summed.

        Raises:
            ShapeError: another number of columns than captions.
        """
        given = np.asarray(posterior, dtype=np.float64)
        if given.ndim != 2 or given.shape[1] != len(self.answers):
            raise ShapeError(
                f"A posterior of shape {given.shape}", f"a column a caption, (n, {len(self.answers)})",
                "Ask the model over question.captions",
            )  # fmt: skip
        places = [self.choices.index(answer) for answer in self.answers.values()]
        return given @ np.eye(len(self.choices))[places]


def questions(dataset: Dataset | str) -> tuple[Question, ...]:
    """What one may ask about the pictures of ``fashion_captions`` or ``digit_words``.

    Raises:
        DataError: a data set without questions.
    """
    name = dataset.name if isinstance(dataset, Dataset) else str(dataset)
    known = {"fashion_captions": _of_fashion, "digit_words": _of_digits}
    if name not in known:
        raise DataError(f"No questions about {name}", f"one of {', '.join(known)}", "Make your own: datasets.Question")
    return known[name]()


def _of_fashion() -> tuple[Question, ...]:
    kinds = {form.format(tone): name for tone in TONES for name, forms in FASHION.items() for form in forms}
    tones = {form.format(tone): tone for tone in TONES for forms in FASHION.values() for form in forms}
    shoes = [caption for caption, name in kinds.items() if name in ("sandal", "boot")]
    tops = [caption for caption, name in kinds.items() if name in ("t-shirt", "shirt")]
    measured = [caption for caption in kinds if {"wide", "narrow"} & set(caption.split())]
    bags = [caption for caption, name in kinds.items() if name == "bag"]
    return (
        Question("what is it?", tuple(FASHION), kinds),
        Question("how dark is it?", TONES, tones),
        _yes("is it dark?", list(tones), ["dark"]),
        _yes("is it wide?", measured, ["wide"]),
        _yes("has it a heel?", shoes, ["heel"]),
        _yes("has it short sleeves or none?", tops, ["short-sleeved", "sleeveless"], "t-shirt"),
        _yes("has it a handle?", bags, ["handle"]),
        _yes("is it a shoe?", list(kinds), ["sandal", "sneaker", "boot"]),
    )


def _of_digits() -> tuple[Question, ...]:
    names = {f"a {weight} {digit}": digit for weight in WEIGHTS for digit in DIGITS}
    weights = {caption: caption.split()[1] for caption in names}
    return (
        Question("what is it?", DIGITS, names),
        Question("how is it written?", WEIGHTS, weights),
        _yes("is it even?", list(names), list(DIGITS[::2])),
        _yes("is it more than four?", list(names), list(DIGITS[5:])),
    )


def _yes(text: str, captions: Sequence[str], words: Sequence[str], ending: str = "\0") -> Question:
    """Yes where a caption has one of some words, or ends so."""
    given = {c: bool(set(words) & set(c.split())) or c.endswith(ending) for c in captions}
    return Question(text, ("yes", "no"), {caption: "yes" if yes else "no" for caption, yes in given.items()})
