"""Who says what a drawn part shows: a small classifier learnt on training rows, or a rule that reads captions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from probgen.datasets import Question
from probgen.errors import DataError, ParameterError, ShapeError
from probgen.events import Array, Event, Ragged, Table, Text
from probgen.features import Features, image_shape
from probgen.latent.networks import Encoder
from probgen.model import generator_of
from probgen.nn import reset
from probgen.nn.text import TextEncoder
from probgen.training import Player, Schedule, train

__all__ = ["Judge", "read_by"]

_EPOCHS, _STEPS = 30, 3000


def read_by(question: Question) -> Callable[[Sequence[Any]], list[str | None]]:
    """A rule that reads captions: the answer that the question knows, else the one choice whose word is in it.

    A caption that says nothing, or two of the choices, gives None, which agrees with nothing.
    """

    def read(captions: Sequence[Any]) -> list[str | None]:
        known = question.answer(captions)
        return [
            _only(question, said) if answer is None else answer for answer, said in zip(known, captions, strict=True)
        ]

    return read


def _only(question: Question, caption: Any) -> str | None:
    words = set(caption.split()) if isinstance(caption, str) else set()
    found = [choice for choice in question.choices if choice in words]
    return found[0] if len(found) == 1 else None


class Judge(nn.Module):
    """A classifier of one part of a record: convolutions for images of 16 pixels and more, else a perceptron or a
    recurrent net. ``judge(data)`` gives a label a row.

    Its accuracy on real rows that it has not seen belongs beside whatever it says of drawn ones: a model can seem more
    coherent than the data, where its pictures are clearer than real ones, and never much more than its judge is right.

    Arguments:
        event: Of the part.
        labels: The distinct labels.
    """

    def __init__(self, event: Event, labels: Sequence[Any]) -> None:
        super().__init__()
        self.event, self.labels = event, tuple(labels)
        if isinstance(event, Text):
            self.net: nn.Module = TextEncoder(event.tokens, 64, len(self.labels))
        elif isinstance(event, Array | Table):
            image = image_shape(event)
            channels = (24, 48) if image is not None and min(image[1:]) >= 16 else ()
            self.features = Features(event, shared=image_shape(event) is not None)
            self.net = Encoder(event, self.features.width, 0, channels, (128,), len(self.labels))
        else:
            raise ParameterError(f"A judge of {event!r}", "an Array, a Table or Text", "Give a rule: judges={name: f}")

    @classmethod
    def learn(
        cls, event: Event, x: Any, labels: Sequence[Any], *, steps: int | None = None, seed: int | None = None
    ) -> Self:
        """A judge from training rows; the best of its states by a tenth of them that it is not taught.

        Arguments:
            x: Data of the part, n rows.
            labels: One a row; rows labelled None are left out.
            steps: None: thirty passes, at most 3000 steps of 128 rows.

        Raises:
            ShapeError: another number of labels. DataError: fewer than two distinct labels.
        """
        checked = event.check(x)
        if len(checked) != len(labels):
            raise ShapeError(
                f"{len(labels)} labels for {len(checked)} rows", "one label a row, None where there is none"
            )
        told = np.array([label is not None for label in labels])
        distinct = sorted({label for label in labels if label is not None}, key=str)
        if len(distinct) < 2:
            raise DataError(f"The labels {distinct}", "two different ones at least", "A judge tells classes apart")
        judge, rows = cls(event, distinct), checked[np.flatnonzero(told)].x
        places = torch.tensor([distinct.index(label) for label in labels if label is not None])
        generator = generator_of(seed)
        judge._first_values(rows, generator)
        data = torch.cat([places[:, None].to(torch.float32), judge._packed(rows)], 1)
        many = min(_STEPS, math.ceil(_EPOCHS * len(data) / 128)) if steps is None else steps
        held = 0.1 if len(data) >= 100 else 0.0
        plan = Schedule(steps=many, learning_rate=2e-3, weight_decay=0.05, validation=held, evaluations=10)
        train(
            judge,
            [Player(_CrossEntropy(judge), list(judge.parameters()))],
            data,
            plan,
            generator=generator,
            progress=False,
        )
        return judge.eval()

    def _first_values(self, rows: Any, generator: torch.Generator) -> None:
        reset(self, generator)
        if not isinstance(self.event, Text):
            self.features.measure(rows)

    def _packed(self, x: Any) -> Tensor:
        """What the network reads, float32 (n, columns): features, or a text's length and tokens."""
        if isinstance(x, Ragged):
            ids = nn.utils.rnn.pad_sequence(x.split(), batch_first=True)
            return torch.cat([x.lengths[:, None], ids], 1).to(torch.float32)
        return self.features(x).to(torch.float32)

    def scores(self, packed: Tensor) -> Tensor:
        """Log-odds of the labels, (n, labels)."""
        if not isinstance(self.event, Text):
            return self.net(packed, None)
        lengths = packed[:, 0].long()
        return self.net(packed[:, 1 : 1 + int(lengths.max())].long(), lengths)

    @torch.no_grad()
    def forward(self, x: Any) -> list[Any]:
        """The likeliest label of each row."""
        packed = self._packed(self.event.check(x).x)
        places = torch.cat([self.scores(part).argmax(1) for part in packed.split(1024)])
        return [self.labels[i] for i in places.tolist()]


class _CrossEntropy(nn.Module):
    """Minus the mean log-probability of the own label, which comes first in a row."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, batch: Tensor, generator: torch.Generator, share: float) -> Tensor:
        return nn.functional.cross_entropy(self.judge.scores(batch[:, 1:]), batch[:, 0].long())
