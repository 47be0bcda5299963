"""What a report finds out besides the comparison: its leading models, surprising rows, where all came from."""

import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from probgen.evaluate.comparison import Comparison, Entry
from probgen.evaluate.outputs import sample_table
from probgen.events import Event, Ragged, Text
from probgen.model import GenerativeModel

__all__ = ["Surprising", "digest", "leading", "provenance", "surprising", "values_of"]


def leading(result: Comparison, models: Mapping[str, GenerativeModel]) -> list[str]:
    """The two best models by likelihood and the best by samples, each once, of those that are given."""
    names = [entry.name for entry in result.entries if not entry.log_prob.refused.any()][:2]
    names += [one.name for one in result.judged][:1]
    return [name for name in dict.fromkeys(names) if name in models]


@dataclass(frozen=True)
class Surprising:
    """The rows that the best model finds least likely.

    Arguments:
        places: Their places among the held-out rows, lowest log-likelihood first.
        keys: Their keys.
        nats: By model, their log-likelihoods, of all models with a number.
    """

    places: np.ndarray
    keys: list[str]
    nats: dict[str, np.ndarray]


def surprising(entries: tuple[Entry, ...], most: int = 8) -> Surprising | None:
    """Rows of lowest log-likelihood under the first model that has numbers; None where none has."""
    ranked = [entry for entry in entries if not entry.log_prob.refused.any()]
    if not ranked:
        return None
    best = ranked[0].log_prob
    places = np.argsort(best.nats, kind="stable")[:most]
    keys = best.event.keys if best.event is not None else np.arange(len(best))
    nats = {entry.name: entry.log_prob.nats[places] for entry in ranked}
    return Surprising(places, [str(keys[i]) for i in places], nats)


def values_of(event: Event, data: Any, places: np.ndarray, steps: bool = False) -> dict[str, list[str]]:
    """The cells of some rows by column, as text; of whole sequences their length and first steps.

    Arguments:
        places: Of the rows.
        steps: Whether a row is one step of a sequence.
    """
    checked = event.check(data)
    if isinstance(checked.x, Ragged) and steps:
        cells = checked.x.values[places].reshape(len(places), -1)
        names = list(getattr(event, "columns", ())) or [f"x{j}" for j in range(cells.shape[1])]
        return {name: [_shown(v) for v in column] for name, column in zip(names, cells.T.tolist(), strict=False)}
    if isinstance(event, Text):
        texts = event.restore(checked[places].x)
        return {"bytes": [str(len(text.encode())) for text in texts], "begins": [_first(text) for text in texts]}
    if isinstance(checked.x, Ragged):
        return {"steps": [str(n) for n in checked.x.lengths[places].tolist()], "begins": _begun(checked.x, places)}
    if isinstance(checked.x, Mapping):
        return {}
    table = sample_table(checked[places].x, event)
    return {name: [_shown(v) for v in table.column(name).to_pylist()] for name in table.column_names[:_CELLS]}


_CELLS = 30  # columns of a row that are shown


def _begun(x: Ragged, places: np.ndarray) -> list[str]:
    parts = x.split()
    return [", ".join(_shown(v) for v in parts[i].reshape(-1)[:12].tolist()) + " …" for i in places.tolist()]


def _first(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[:most]} …"


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "missing"
    return f"{value:.5g}" if isinstance(value, float) else str(value)[:200]


def digest(event: Event, data: Any) -> str:
    """The first 16 digits of the SHA-256 of the rows' checked content, in their order."""
    content = np.ascontiguousarray(event.check(data).about.content)
    return hashlib.sha256(content.tobytes()).hexdigest()[:16]


def provenance(
    result: Comparison, models: Mapping[str, GenerativeModel], data: Any, train: Any, facts: Mapping[str, Any]
) -> dict[str, str]:
    """Where the numbers come from: facts of the caller, seeds, fingerprints of the data, versions, date."""
    said = {name: str(value) for name, value in facts.items()}
    if result.seed is not None:
        said["Seed of scoring and samples"] = str(result.seed)
    event = next(iter(models.values())).event if models else None
    for what, rows in (("Held-out rows", data), ("Training rows", train)):
        if event is not None and rows is not None:
            checked = event.check(rows)
            steps = f", {len(checked.x.values)} steps" if isinstance(checked.x, Ragged) else ""
            said[what] = f"{len(checked)}{steps}, SHA-256 of their content {digest(event, rows)}…"
    if event is not None:
        said["A row is"] = _cut(repr(event))
    for library in ("probgen", "torch", "pyro-ppl", "numpy"):
        with suppress(PackageNotFoundError):
            said[library] = version(library)
    said["Python"] = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    said["Written"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return said


def _cut(text: str, most: int = 600) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
