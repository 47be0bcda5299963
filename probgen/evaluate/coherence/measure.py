"""Coherence of a model of records: drawn jointly, each part from the others, and asked questions."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any, cast

import numpy as np
import torch

from probgen.datasets import Question
from probgen.errors import BREAKDOWNS, DataError, ParameterError, ShapeError, StructureError, nearest
from probgen.evaluate.coherence.judges import Judge, read_by
from probgen.evaluate.coherence.table import Coherence, Figure
from probgen.evaluate.twosample import SampleWarning, two_sample
from probgen.events import Array, Checked, Record, Table, Text
from probgen.model import GenerativeModel

__all__ = ["Rule", "coherence", "judges_for"]

Rule = Callable[[Any], Sequence[Any]]
_CHUNK = 250  # conditions drawn at once


def coherence(
    model: GenerativeModel,
    x: Mapping[str, Any],
    labels: Question | Sequence[Any],
    *,
    train: Any = None,
    judges: Mapping[str, Rule] | None = None,
    questions: Sequence[Question] = (),
    draws: int = 1000,
    rows: int = 1000,
    asked: int = 200,
    tests: bool = True,
    seed: int = 0,
) -> Coherence:
    """Whether the parts that a model draws belong together, by their labels.

    - joint: the share of joint draws in which the judges of all parts say the same.
    - b given a, for each part from each set of the others: the share of drawn b that the judge labels as the row is.
    - b given a, exact: the share of drawn texts that are the row's own, word by word.
    - b given a, best: the same of the one text that ``model.caption`` settles on.
    - b given a, a question: the share of questions that the model's posterior over the captions answers right.
    - a classifier and a kernel test between drawn and real parts that are arrays.

    Arguments:
        model: Fitted on records; it draws (``sample``), given parts, too.
        x: Held-out records, n rows; those that lack a part are left out.
        labels: Of the held-out rows, None where a row has none; or a question, whose answers in the captions they are.
        train: Training records, from which judges are learnt for the parts that have none; beside plain labels a pair
            (records, labels).
        judges: By part, a function from data of the part to a label a row: a rule, or a ``Judge``.
        questions: About texts, for models with ``posterior_over``.
        draws: Joint draws.
        rows: Held-out rows at most; more are thinned at random.
        asked: How many of them questions are asked about: a posterior over many captions takes longer than a draw.
        tests: Whether drawn arrays are tested against real ones.
        seed: Of draws, judges and the choice of rows.

    Raises:
        StructureError: a model of something else than records of two parts or more.
        ParameterError: a part without a judge, where there is nothing to learn one from; an unknown part.
        ShapeError: another number of labels than rows.
        DataError: no row with a label and all parts.
    """
    known = judges_for(model.event, labels, train, judges, seed)
    event = cast(Record, model.event)
    checked = event.check(x)
    told = _labels(event, checked, labels)
    if len(told) != len(checked):
        raise ShapeError(f"{len(told)} labels for {len(checked)} rows", "one label a row, None where there is none")
    whole = torch.stack(list(checked.x.seen.values())).all(0).tolist()
    labelled = [i for i, label in enumerate(told) if label is not None and whole[i]]
    if not labelled:
        raise DataError(f"None of {len(told)} rows has a label and all parts", "some that do", "Label them")
    some = np.sort(np.random.default_rng(seed).permutation(labelled)[:rows])
    held = _Held(event, checked[some], [told[i] for i in some])
    accuracy = {name: _same(judge(held.part(name)), held.labels) for name, judge in known.items()}
    drawn = model.sample(draws, seed=seed)
    figures = [_joint(known, drawn, held), *_cross(model, known, held, accuracy, seed)]
    figures += _spoken(model, known, held, accuracy)
    figures += _asked(model, questions, _Held(event, held.checked[:asked], held.labels[:asked]), seed)
    found = _tests(event, drawn, held, seed) if tests else {}
    told_by = {name: _who(judge, accuracy[name], len(some)) for name, judge in known.items()}
    target = tuple(dict.fromkeys([model.sample_target(), *_conditional(model)]))
    return Coherence(tuple(figures), told_by, found, target, len(some), len(told) - len(labelled), seed)


class _Held:
    """Held-out rows, part by part in the user's form, with their labels."""

    def __init__(self, event: Record, checked: Checked, labels: list[Any]) -> None:
        self.event, self.checked, self.labels = event, checked, labels
        self.data = event.restore(checked.x, checked.form)

    def part(self, name: str) -> Any:
        return self.data[name]

    def chunks(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some parts of the rows, a few rows at a time; where a part is a table, one: it has no groups of draws."""
        size = 1 if any(isinstance(part, Table) for part in self.event.parts.values()) else _CHUNK
        for rows in np.array_split(np.arange(len(self.labels)), range(size, len(self.labels), size)):
            data = self.event.restore(self.checked[rows].x, self.checked.form)
            yield {name: data[name] for name in names}


def _labels(event: Record, checked: Checked, labels: Question | Sequence[Any]) -> list[Any]:
    if not isinstance(labels, Question):
        return list(labels)
    texts = event.restore(checked.x, checked.form)[_text(event)]
    return read_by(labels)([None] * len(checked) if texts is None else texts)


def _text(event: Record) -> str:
    """The one part that is text."""
    texts = [name for name, part in event.parts.items() if isinstance(part, Text)]
    if len(texts) != 1:
        raise ParameterError(
            f"A question for a record with {len(texts)} texts", "one part that is text", "Give labels, one a row"
        )
    return texts[0]


def judges_for(
    event: Any, labels: Question | Sequence[Any], train: Any, judges: Mapping[str, Rule] | None, seed: int
) -> dict[str, Rule]:
    """A judge for each part of a record: the user's, the question's rule, or one that is learnt from training rows.

    Raises:
        StructureError: another event than a record of two parts or more.
        ParameterError: an unknown part; one without a judge, where there is nothing to learn one from.
    """
    if not isinstance(event, Record) or len(event.parts) < 2:
        raise StructureError(f"Coherence of {event!r}", "a model of records of two parts or more")
    judges = judges or {}
    for name in judges:
        if name not in event.parts:
            raise ParameterError(f"A judge of the part {name!r}", "a part of the record", nearest(name, event.parts))
    found = dict(judges)
    if isinstance(labels, Question):
        found.setdefault(_text(event), read_by(labels))
    lacking = [name for name in event.parts if name not in found]
    if not lacking:
        return found
    if train is None:
        raise ParameterError(
            f"No judge of {', '.join(lacking)}",
            "judges={part: rule}, or train= to learn one from",
            "Give training rows",
        )
    if isinstance(labels, Question):
        taught, told = train, _labels(event, event.check(train), labels)
    else:
        taught, told = train
    return found | {name: Judge.learn(event.parts[name], taught[name], told, seed=seed) for name in lacking}


def _same(said: Sequence[Any], labels: Sequence[Any]) -> float:
    return float(np.mean([a is not None and a == b for a, b in zip(said, labels, strict=True)]))


def _who(judge: Rule, accuracy: float, rows: int) -> str:
    who = "a classifier learnt on training rows" if isinstance(judge, Judge) else "a rule"
    return f"judged by {who}, right on {accuracy:.1%} of {rows} real held-out rows"


def _joint(judges: Mapping[str, Rule], drawn: Mapping[str, Any], held: _Held) -> Figure:
    said = [judge(drawn[name]) for name, judge in judges.items()]
    real = [judge(held.part(name)) for name, judge in judges.items()]
    return Figure("joint", " and ".join(judges), (), _agreement(said), len(said[0]), _agreement(real))


def _agreement(said: Sequence[Sequence[Any]]) -> float:
    return float(np.mean([row[0] is not None and all(a == row[0] for a in row) for row in zip(*said, strict=True)]))


def _cross(
    model: GenerativeModel, judges: Mapping[str, Rule], held: _Held, accuracy: Mapping[str, float], seed: int
) -> Iterator[Figure]:
    """Each part from each set of the others."""
    names = list(held.event.parts)
    for size in range(1, len(names)):
        for given in combinations(names, size):
            drawn = _drawn(model, held, given, seed)
            for name in (n for n in names if n not in given):
                n, share = len(held.labels), _same(judges[name](drawn[name]), held.labels)
                yield Figure("drawn", name, given, share, n, accuracy[name])
                if isinstance(held.event.parts[name], Text):
                    own = _same(drawn[name], held.part(name))
                    yield Figure("exact", name, given, own, n)


def _drawn(model: GenerativeModel, held: _Held, given: Sequence[str], seed: int) -> dict[str, Any]:
    """One draw a row of the parts that are not given."""
    parts = [model.sample(1, given=rows, seed=seed + i) for i, rows in enumerate(held.chunks(given))]
    return {
        name: _joined([part[name] for part in parts], event)
        for name, event in held.event.parts.items()
        if name not in given
    }


def _joined(parts: Sequence[Any], event: Any) -> Any:
    """Draws of several conditions one after the other: texts as one list, arrays (n, ...), tables by column."""
    if isinstance(event, Text):
        return [one for part in parts for row in part for one in ([row] if isinstance(row, str) else row)]
    if isinstance(event, Array):
        return np.concatenate([np.asarray(part).reshape(-1, *event.shape) for part in parts])
    return event.restore(torch.cat([event.check(part).x for part in parts]), "dict")


def _spoken(
    model: GenerativeModel, judges: Mapping[str, Rule], held: _Held, accuracy: Mapping[str, float]
) -> list[Figure]:
    """The one caption that the model settles on for each row, of models that have ``caption``."""
    speak = getattr(model, "caption", None)
    texts = [name for name, part in held.event.parts.items() if isinstance(part, Text)]
    if speak is None or len(texts) != 1:
        return []
    (name,), given = texts, tuple(other for other in held.event.parts if other not in texts)
    said = [text for some in held.chunks(given) for text in speak(some)]
    share, own = _same(judges[name](said), held.labels), _same(said, held.part(name))
    n = len(held.labels)
    return [Figure("best", name, given, share, n, accuracy[name]), Figure("best, exact", name, given, own, n)]


def _asked(model: GenerativeModel, questions: Sequence[Question], held: _Held, seed: int) -> Iterator[Figure]:
    """Questions about each row that they make sense for, given the parts that are no text.

    The posterior over all captions is asked for once; over the captions of one question it is that one, divided by
    what they have together.
    """
    ask = getattr(model, "posterior_over", None)
    if ask is None or not questions:
        return
    name, every = _text(held.event), list(dict.fromkeys(c for one in questions for c in one.captions))
    given = tuple(other for other in held.event.parts if other != name)
    parts = [ask(name, every, given=some, seed=seed + i) for i, some in enumerate(held.chunks(given))]
    posterior = np.concatenate([np.asarray(getattr(part, "p", part)) for part in parts])
    for one in questions:
        right = one.answer(held.part(name))
        rows = [i for i, answer in enumerate(right) if answer is not None]
        if not rows:
            continue
        told = one.of(posterior[np.ix_(rows, [every.index(caption) for caption in one.captions])])
        said, wanted = [one.choices[i] for i in told.argmax(1)], [right[i] for i in rows]
        often = max(wanted.count(choice) for choice in one.choices) / len(rows)
        yield Figure(one.text, name, given, _same(said, wanted), len(rows), often)


def _tests(event: Record, drawn: Mapping[str, Any], held: _Held, seed: int) -> dict[str, tuple[float, float, float]]:
    """A classifier and a kernel test of each array, joint draws against held-out rows."""
    found = {}
    for name, part in event.parts.items():
        if not isinstance(part, Array):
            continue
        with warnings.catch_warnings(), suppress(*BREAKDOWNS):
            warnings.simplefilter("ignore", SampleWarning)
            told = two_sample(
                held.part(name), drawn[name], event=part, tests=["mmd", "c2st"], permutations=200, seed=seed
            )
            mmd, c2st = told["mmd"], told["c2st"]
            found[name] = (c2st.value, c2st.floor, float(mmd.pvalue or 0.0))
    return found


def _conditional(model: GenerativeModel) -> list[str]:
    """What conditional draws are from, where the model says so."""
    with suppress(*BREAKDOWNS, TypeError):
        return [model.sample_target(given=True)]
    return []
