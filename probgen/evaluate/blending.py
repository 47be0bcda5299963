"""The mixture of a language model with an n-gram over its tokens: a model of its own among those compared on text."""

from typing import Any

import numpy as np

from probgen.events import Event
from probgen.model import GenerativeModel
from probgen.models.blend import Blend
from probgen.models.ngram import NGram

__all__ = ["LEAST", "aside", "blended"]

LEAST = 40  # texts below which none are put aside
_SHARE = 0.02


def aside(x: Any, event: Event, seed: int) -> tuple[Any, Any]:
    """Texts to fit models to, and a fiftieth of them, drawn at random, that only weighs the models of a mixture."""
    checked = event.check(x)
    few = np.sort(np.random.default_rng(seed).permutation(len(checked))[: max(1, round(_SHARE * len(checked)))])
    rest = np.setdiff1d(np.arange(len(checked)), few)
    return tuple(event.restore(checked[rows].x, checked.form) for rows in (rest, few))  # type: ignore[return-value]


def blended(language: GenerativeModel, x: Any, weighing: Any, seed: int) -> Blend:
    """A fitted language model and an n-gram over the same tokens, fitted to x; weights from texts that neither saw."""
    ngram = NGram.for_event(language.event).fit(x, seed=seed)
    return Blend([language, ngram]).fit(weighing, seed=seed)
