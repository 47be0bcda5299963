"""What is drawn of a comparison: the data and as many samples of each model, with the names of their columns."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from probgen.errors import BREAKDOWNS
from probgen.events import Array, Category, Event, Panel, Ragged, Record, Table, Text
from probgen.model import GenerativeModel

__all__ = ["captioned_panels", "column_names", "level_names", "panels", "texts"]

_SYMBOLS, _LETTERS = 200, 400  # of a text that is shown


def panels(models: Mapping[str, GenerativeModel], x: Any, event: Event, seed: int) -> dict[str, Any]:
    """The data and as many samples of each model (2 to 2000) to draw, but for models that can't sample.

    Returns:
        By title an array (n, ...); of sequences a list of up to six, each (T, ...), the samples as long as the data
        are on average.
    """
    cells = event.check(x).x
    n = min(max(len(cells), 2), 2000)
    length = None
    if isinstance(cells, Ragged):
        n, length = min(len(cells), 6), round(len(cells.values) / len(cells))
    drawn = {"data" if length else "held-out data": cells}
    for name, model in models.items():
        options = {"length": length} if length and "length" in inspect.signature(model._sample).parameters else {}
        with suppress(*BREAKDOWNS):
            drawn[name] = event.check(model.sample(n, seed=seed, **options)).x
    return {title: _to_draw(cells) for title, cells in drawn.items()}


def _to_draw(cells: Any) -> np.ndarray | Sequence[np.ndarray]:
    return [part.numpy() for part in cells.split()[:6]] if isinstance(cells, Ragged) else cells.numpy()


def captioned_panels(
    models: Mapping[str, GenerativeModel], x: Mapping[str, Any], event: Record, seed: int
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Pictures of the data and of each model that draws, eight each, and what is said of them; {} without pictures."""
    images = [n for n, part in event.parts.items() if isinstance(part, Array) and len(part.shape) in (2, 3)]
    words = [n for n, part in event.parts.items() if isinstance(part, Text)]
    if not images:
        return {}
    drawn = {"held-out data": x}
    for name, model in models.items():
        with suppress(*BREAKDOWNS):
            drawn[name] = model.sample(8, seed=seed)
    return {
        title: (np.asarray(some[images[0]][:8]), [str(text) for text in some[words[0]][:8]] if words else [""] * 8)
        for title, some in drawn.items()
    }


def texts(models: Mapping[str, GenerativeModel], x: list[str], seed: int) -> str:
    """The beginnings of three texts of the data and of each model that draws, under their names."""
    drawn = {"held-out data": x[:3]}
    for name, model in models.items():
        options = {"length": _SYMBOLS} if "length" in inspect.signature(model._sample).parameters else {}
        with suppress(*BREAKDOWNS):
            drawn[name] = model.sample(3, seed=seed, **options)
    return "".join(f"# {name}\n\n" + "".join(f"{text[:_LETTERS]}\n\n" for text in some) for name, some in drawn.items())


def column_names(event: Event) -> list[str] | None:
    """Names of the columns of a row or step, where they have any."""
    return list(event.columns) if isinstance(event, Table | Panel) else None


def level_names(event: Event) -> list[tuple[Any, ...] | None] | None:
    """What the codes of each column of a step stand for; None for numbers."""
    if not isinstance(event, Panel):
        return None
    return [c.levels if isinstance(c, Category) else None for c in event.columns.values()]
