"""Words of the command line as Python values: a family's own options, estimators, times."""

import gc
import importlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from probgen.errors import DataError, ParameterError, StoreError, nearest

__all__ = [
    "build", "choice_of", "draws_text", "estimator_of", "family_name", "family_of", "fitted", "given_of", "model_of",
    "options_of", "seconds_of", "sequence_of", "uncollected", "value_of",
]  # fmt: skip

_SHORT = {"bayesnet": "BayesianNetwork", "language": "LanguageModel", "multimodal": "MultimodalVAE"}
_TOKENS = {"LanguageModel": "2048", "TextDiffusion": "2048"}  # that a family learns from bytes before anything else
_OWN_ESTIMATORS = {  # of one family each
    "MaskingBound": "probgen.models.textdiffusion",
    "TokenPath": "probgen.models.language",
    "VariationalBound": "probgen.models.diffusion",
}
_LEARNERS = {"BayesianNetwork": "probgen.models.bayesnet.structure"}  # their learn() finds the structure, too


def options_of(extra: list[str]) -> dict[str, str]:
    """``--name value`` pairs that typer does not know: a family's own options."""
    options: dict[str, str] = {}
    words = iter(extra)
    for word in words:
        if not word.startswith("--"):
            raise ParameterError(f"The word {word!r}", "options as --name value", "Quote values that hold spaces")
        name, equals, value = word[2:].partition("=")
        value = value if equals else next(words, "")
        if not value:
            raise ParameterError(f"The option --{name} without a value", f"--{name} VALUE", "Give one")
        options[name.replace("-", "_")] = value
    return options


def value_of(text: str) -> Any:
    """A number, true, false, null, a list 64,64, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    return tuple(value_of(part) for part in text.split(",") if part) if "," in text else text


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Sequence: "numbers as 64,64"}


def typed(option: str, text: str, hint: Any) -> Any:
    """An option's value, of the type that the constructor or the fit declares for it."""
    if option == "--budget":
        return seconds_of(text)
    value = value_of(text)
    for candidate in (value, text, (value,)):
        if is_a(candidate, hint):
            return candidate
    wanted = " or ".join(_kind(kind) for kind in _either(hint) if kind is not NoneType)
    raise ParameterError(f"{option} {text}", wanted, "Leave it out for the default")


def _either(hint: Any) -> tuple[Any, ...]:
    """The types of a union; a type itself otherwise."""
    return get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)


def _kind(hint: Any) -> str:
    """A declared type in words; what has none can only be given in Python."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return _KINDS.get(get_origin(hint) or hint, f"{getattr(hint, '__name__', hint)}, in Python")


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value has a declared type: a number is finite, a whole number or a truth value nothing else."""
    origin = get_origin(hint)
    if origin in (UnionType, Union):
        return any(is_a(value, part) for part in get_args(hint))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if origin in (Sequence, tuple, list):
        return isinstance(value, list | tuple) and all(is_a(part, get_args(hint)[0]) for part in value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def family_of(name: str) -> Any:
    """A family by its name or short name, letter case aside."""
    from probgen import store

    name = name.strip()
    return store.family(_SHORT.get(name.lower(), name))


def fitted(family: str, event: Any, x: Any, options: dict[str, str], seed: int) -> Any:
    """A model of a family, fitted to data of an event; a family that learns its structure from data does so."""
    made_by = family_of(family)
    if why := made_by.suits(event):
        came = f"{made_by.__name__} does not suit {_shown(event)}: {why}"
        raise DataError(came, "a family that does", _advice(made_by, event))
    if made_by.__name__ in _LEARNERS:
        learn = importlib.import_module(_LEARNERS[made_by.__name__]).learn
        known = {n: p for n, p in inspect.signature(learn).parameters.items() if n not in ("data", "event", "seed")}
        return learn(x, event=event, seed=seed, **_typed(made_by, options, known))
    if "tokens" in options or made_by.__name__ in _TOKENS:
        tokens = typed("--tokens", options.pop("tokens", _TOKENS.get(made_by.__name__, "256")), int)
        event = tokenised(event, x, tokens)
    event = worded(event, x)
    model, fitting = build(made_by, event, options)
    return model.fit(x, seed=seed, **fitting)


def tokenised(event: Any, x: Any, tokens: int) -> Any:
    """Text in so many byte-pair tokens learnt from it; 256 leave it in bytes, and so do other events."""
    from probgen.events import BPE, Text

    if not isinstance(event, Text) or tokens == 256:
        return event
    return Text(BPE.learn(event.restore(event.check(x).x), tokens))


def worded(event: Any, x: Any) -> Any:
    """A record whose parts of text, in bytes so far, are read in words learnt from them; other events as they are."""
    from probgen.events import Record, Text, Words

    if not isinstance(event, Record):
        return event
    plain = {n for n, part in event.parts.items() if isinstance(part, Text) and isinstance(part.tokenizer, str)}
    words = {name: Text(Words.learn([text for text in x[name] if text is not None])) for name in plain}
    return Record(**{**event.parts, **words}) if words else event


def given_of(texts: list[str], event: Any) -> Any:
    """``--given`` as a model takes it: the beginning of a text, or parts of a record, PART=TEXT.

    Raises:
        ParameterError: a model of neither; several beginnings; no part of text by that name.
    """
    from probgen.events import Record, Text

    if isinstance(event, Text):
        if len(texts) > 1:
            raise ParameterError(f"{len(texts)} times --given", "the beginning of one text", "Name one")
        return texts[0]
    if not isinstance(event, Record):
        raise ParameterError(f"--given for a model of {_shown(event)}", "a model of text or of records", "Leave it out")
    known = [name for name, part in event.parts.items() if isinstance(part, Text)]
    given: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known or name in given:
            wanted = "PART=TEXT, once a part of text"
            raise ParameterError(f"--given {text}", wanted, nearest(name, known) if known else "No part is text")
        given[name] = [value]
    return given


def build(made_by: Any, event: Any, options: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """A model for an event from its constructor's options; the rest must be its fit's."""
    mine = {n: p for n, p in inspect.signature(made_by).parameters.items() if n != "event"}
    fits = inspect.signature(made_by._fit).parameters.items()
    theirs = {n: p for n, p in fits if p.kind is p.KEYWORD_ONLY and n not in ("generator", "progress")}
    values = _typed(made_by, options, mine | theirs)
    model = made_by.for_event(event, **{k: v for k, v in values.items() if k in mine})
    return model, {k: v for k, v in values.items() if k in theirs}


def _typed(made_by: Any, options: dict[str, str], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Options in the types that their parameters declare; ``**options`` declares one for all that have no name."""
    named = {n: p.annotation for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    rest = [p.annotation for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    known = {name: f"--{name.replace('_', '-')}" for name in named}
    for name, text in options.items():
        option = f"--{name.replace('_', '-')}"
        if name not in known and not (rest and is_a(value_of(text), rest[0])):
            raise ParameterError(f"{made_by.__name__} has no option {option}", "", nearest(option, known.values()))
    return {
        name: typed(f"--{name.replace('_', '-')}", text, named[name] if name in named else rest[0])
        for name, text in options.items()
    }


def model_of(path: Path) -> Any:
    """A saved model's folder, or a network's file: .bif, .bif.gz, or another that ``foreign.wrap`` reads."""
    from probgen import store

    if path.is_dir() or not (path.is_file() or path.suffix.lower() in (".bif", ".gz")):
        with uncollected():
            return store.load(path)
    from probgen import foreign

    return foreign.wrap(path)


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports without the collector of cycles, which would go through all that is loaded; what a process of its own
    loads first (``app.main`` has stopped the collector) is never looked at again."""
    first = not gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        gc.enable()


def draws_text(path: Path) -> bool:
    """Whether the model in a folder is one of text, by its card."""
    from probgen import store

    if not path.is_dir():
        return False
    event = store.read(path)[0].get("arguments", {}).get("event")
    return isinstance(event, dict) and event.get("part") == "Text"


def choice_of(model: Any, options: dict[str, str]) -> dict[str, Any]:
    """How a language model shall choose its symbols: --temperature 0.8 --top-k 50."""
    if not options:
        return {}
    if not hasattr(model, "sampler"):
        option = f"--{next(iter(options)).replace('_', '-')}"
        raise ParameterError(f"{option} for a {type(model).__name__}", "options of sample", "probgen sample --help")
    known = dict(inspect.signature(type(model.sampler())).parameters)
    return _typed(type(model), options, {name: p for name, p in known.items() if name != "language"})


def _shown(event: Any) -> str:
    """An event in a message; one of many columns by its beginning."""
    text = repr(event)
    return text if len(text) <= 120 else f"{text[:100]}...)"


def _advice(family: Any, event: Any) -> str:
    """What to do about rows for a family of sequences; else which families there are."""
    from probgen.events import Array, Panel, Series, Table

    sequences: Any = None
    if isinstance(event, Table):
        sequences = Panel(event.columns)
    elif isinstance(event, Array):
        sequences = Series(event.shape, event.support, event.levels, event.resolution)
    if sequences is not None and family.suits(sequences) is None:
        named = "--sequence COLUMN names the column of the sequences, " if isinstance(event, Table) else ""
        return f"Where rows are steps: {named}--sequence - makes them one sequence"
    return "Try: probgen compare DATA"


def sequence_of(text: str | None) -> str | bool | None:
    """``--sequence id`` is a column, ``--sequence -`` makes the whole data one sequence."""
    return True if text == "-" else text


def estimator_of(text: str | None) -> Any:
    """``iwae:samples=500`` as an estimator."""
    from probgen import estimate

    if text is None:
        return None
    name, _, rest = text.partition(":")
    known = {n.lower(): getattr(estimate, n) for n in estimate.__all__}
    known |= {n.lower(): getattr(importlib.import_module(room), n) for n, room in _OWN_ESTIMATORS.items()}
    if name.lower() not in known:
        raise ParameterError(f"--by {text}", "an estimator such as iwae:samples=500", nearest(name.lower(), known))
    made_by = known[name.lower()]
    options = dict(part.partition("=")[::2] for part in rest.split(",")) if rest else {}
    for option in options:
        if option not in inspect.signature(made_by).parameters:
            raise ParameterError(
                f"--by {text} has no option {option!r}", "", nearest(option, inspect.signature(made_by).parameters)
            )
    return made_by(**{k: value_of(v) for k, v in options.items()})


def family_name(name: str) -> str:
    try:
        return family_of(name).__name__
    except StoreError as problem:
        raise ParameterError(problem.came, problem.wanted, problem.do) from None


def seconds_of(text: str) -> float:
    """60, 60s, 10m, 1h as seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ParameterError(
            f"--budget {text}", "a positive time such as 60, 60s, 10m or 1h", "Leave it out for the default"
        )
    return seconds
