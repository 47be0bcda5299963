"""Texts whose tokens are learnt before the model of them."""

import inspect
from typing import Any

from probgen.errors import ParameterError, nearest
from probgen.events import BPE, Text
from probgen.model import GenerativeModel

__all__ = ["with_tokens"]


def with_tokens(
    family: type[GenerativeModel], texts: Any, tokens: int, seed: int | None, options: dict[str, Any]
) -> Any:
    """A model of texts, its tokenizer learnt first, then fitted: what ``learn`` of families over text does.

    Arguments:
        family: Whose constructor takes an event.
        texts: As Text takes them.
        tokens: Of the BPE; 256 models bytes.
        seed: As of fit.
        options: The constructor's and fit's.

    Raises:
        MissingExtra: without the package tokenizers. ParameterError: an option that neither has.
    """
    name = family.__name__
    if "event" in options:
        raise ParameterError("event= for learn()", "no event: learn makes it", f"{name}(event).fit(texts)")
    own = set(inspect.signature(family).parameters)
    fits = set(inspect.signature(family._fit).parameters) - {"self", "x", "given", "generator"}
    for option in set(options) - own - fits:
        raise ParameterError(f"{name}.learn has no option {option!r}", "", nearest(option, own | fits))
    plain = Text()
    words = plain.restore(plain.check(texts).x)
    event = plain if tokens == 256 else Text(BPE.learn(words, tokens))
    made = family(event, **{name: value for name, value in options.items() if name in own})
    return made.fit(texts, seed=seed, **{name: value for name, value in options.items() if name in fits})
