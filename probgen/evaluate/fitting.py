"""Every family that suits the data, fitted within one budget that they share fairly."""

import inspect
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from probgen import store
from probgen.errors import BREAKDOWNS, MissingExtra, ParameterError, ProbgenError
from probgen.evaluate.blending import LEAST, aside, blended
from probgen.evaluate.complete import complete_rows as leave_incomplete
from probgen.events import Event, Text
from probgen.model import GenerativeModel

__all__ = ["Shares", "fit_suitable", "reason_of"]


class Shares:
    """A budget in equal shares. Time that one leaves goes to those after it; time that one takes too much is its own.

    Arguments:
        budget: Seconds for all.
        count: Of those who share it.
    """

    def __init__(self, budget: float, count: int) -> None:
        self.each, self.waiting, self.spare = budget / max(count, 1), count, 0.0

    def next(self) -> float:
        """Seconds of the next one: an equal share, and its part of what those before it left."""
        given = self.spare / self.waiting
        self.spare -= given
        self.waiting -= 1
        return self.each + given

    def spent(self, share: float, seconds: float) -> None:
        """Says how long it took; what is left goes on, an overshoot is nobody else's loss."""
        self.spare += max(share - seconds, 0.0)


def fit_suitable(
    x: Any,
    event: Event,
    *,
    families: Iterable[str] | None = None,
    budget: float = 60.0,
    seed: int = 0,
    complete_rows: bool = False,
    on_start: Callable[[str, float | None], None] = lambda name, seconds: None,
    on_end: Callable[[str, float | None, float], None] = lambda name, share, seconds: None,
) -> tuple[dict[str, GenerativeModel], dict[str, str]]:
    """Fits every family that suits an event. One that fails is left out with its reason; the others go on.

    Arguments:
        families: Names; None tries all but Standardize, which is another family on standardised columns.
        budget: Seconds for all models that train on one together, in equal shares. What one leaves goes to those after
            it; one that takes longer (pilots, validation, a step that can't be broken off) takes nothing from others.
        complete_rows: Whether all families are fitted to the rows without missing cells alone, which some need.
        on_start: Takes a model's name and its share; None for closed forms.
        on_end: Takes the seconds that it took, too.

    Of text, where a language model and an n-gram are among the families, a fiftieth of the texts is fitted by none of
    them: it weighs the two in a ``Blend``, one model more, whose n-gram counts the language model's tokens.

    A family may offer several models of itself: ``variants(event)``, options of ``for_event`` by name
    (``{"HMM(2)": {"states": 2}, ...}``).

    Returns:
        Fitted models by name, and the reasons of those left out.

    Raises:
        KeyboardInterrupt: also where a training loop has caught it to keep its best state.
    """
    if not 0 < budget < math.inf:
        raise ParameterError(f"budget={budget}", "a positive number of seconds")
    if complete_rows:
        x, _ = leave_incomplete(event, x)
    wanted, skipped = _families([f for f in store.FAMILIES if f != "Standardize"] if families is None else families)
    skipped |= {family.__name__: why for family in wanted if (why := family.suits(event))}
    suiting = [family for family in wanted if family.__name__ not in skipped]
    fitting = [(family, *variant) for family in suiting for variant in _variants(family, event).items()]
    fitting.sort(key=lambda one: _takes_budget(one[0]))  # closed forms need no budget and come first
    models: dict[str, GenerativeModel] = {}
    blends = isinstance(event, Text) and {"LanguageModel", "NGram"} <= {family.__name__ for family in suiting}
    weighing = None
    if blends and len(event.check(x)) >= LEAST:
        x, weighing = aside(x, event, seed)
    shares = Shares(budget, sum(_takes_budget(family) for family, *_ in fitting))
    for family, name, variant in fitting:
        share = shares.next() if _takes_budget(family) else None
        on_start(name, share)
        began = time.perf_counter()
        try:
            models[name] = _fitted(family, x, event, variant, seed, share)
        except BREAKDOWNS as problem:
            skipped[name] = f"it could not be fitted: {reason_of(problem)}"
        seconds = time.perf_counter() - began
        if share is not None:
            shares.spent(share, seconds)
        on_end(name, share, seconds)
    if weighing is not None and "LanguageModel" in models:
        on_start("Blend", None)
        began = time.perf_counter()
        try:
            models["Blend"] = blended(models["LanguageModel"], x, weighing, seed)
        except BREAKDOWNS as problem:
            skipped["Blend"] = f"it could not be fitted: {reason_of(problem)}"
        on_end("Blend", None, time.perf_counter() - began)
    return models, skipped


def _fitted(
    family: type[GenerativeModel], x: Any, event: Event, variant: dict[str, Any], seed: int, share: float | None
) -> GenerativeModel:
    options: dict[str, Any] = {} if share is None else {"budget": share}
    if family.__name__ == "BayesianNetwork":  # its structure comes from the data, too
        model = family.learn(x, event=event, prior="bdeu", seed=seed)  # type: ignore[attr-defined]
    elif isinstance(event, Text) and family.__name__ in ("LanguageModel", "TextDiffusion"):  # and its tokens
        model = family.learn(x, seed=seed, **options)  # type: ignore[attr-defined]
    else:
        model = family.for_event(event, **variant).fit(x, seed=seed, **options)
    if model.report.stopped == "interrupted":  # type: ignore[union-attr]
        raise KeyboardInterrupt
    return model


def _families(names: Iterable[str]) -> tuple[list[type[GenerativeModel]], dict[str, str]]:
    """Families by name, and those whose library is not installed with the way to it."""
    found, lacking = [], {}
    for name in dict.fromkeys(names):
        try:
            found.append(store.family(name))
        except MissingExtra as problem:
            lacking[name] = reason_of(problem)
    return found, lacking


def _variants(family: type[GenerativeModel], event: Event) -> dict[str, dict[str, Any]]:
    """The models that a family offers for an event; itself, where it says nothing."""
    offered = getattr(family, "variants", None)
    return (offered(event) if offered else None) or {family.__name__: {}}


def _takes_budget(family: type[GenerativeModel]) -> bool:
    return "budget" in inspect.signature(family._fit).parameters


def reason_of(problem: Exception) -> str:
    """Why a family was left out, in a line."""
    text = " ".join(str(problem).split())
    return text if isinstance(problem, ProbgenError) else f"{type(problem).__name__}: {text}"
