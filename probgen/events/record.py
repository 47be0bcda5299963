"""Several parts observed together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import ParameterError, ShapeError
from probgen.events.cells import row_hash
from probgen.events.event import Checked, Event
from probgen.events.outside import named


@dataclass(frozen=True, repr=False, init=False)
class Record(Event):
    """Several parts observed together, each its own event: a dict of tensors, None where a part is missing."""

    parts: Mapping[str, Event]

    def __init__(self, /, **parts: Event) -> None:
        if not parts or not all(isinstance(part, Event) for part in parts.values()):
            raise ParameterError(f"parts={parts!r}", "events by name: Record(image=Array(...), caption=Text())")
        object.__setattr__(self, "parts", parts)

    @property
    def measure(self) -> str:
        return " x ".join(f"{name}:{part.measure}" for name, part in sorted(self.parts.items()))

    def check(self, data: Any) -> Checked:
        given = dict(zip(frames.distinct_names(data), data.values(), strict=True)) if isinstance(data, Mapping) else {}
        if not isinstance(data, Mapping) or not set(given) <= set(self.parts):
            came = list(data) if isinstance(data, Mapping) else type(data).__name__
            raise ShapeError(
                f"A record of {came}", f"a dict with the parts {sorted(self.parts)}", "None = part missing"
            )
        checked = {}
        for name, part in self.parts.items():
            if given.get(name) is not None:
                with named(f"Part {name!r}"):
                    checked[name] = part.check(given[name])
        sizes = {name: len(part) for name, part in checked.items()}
        if len(set(sizes.values())) != 1:
            raise ShapeError(
                f"Parts of {sizes} rows",
                "the same number of rows in each part, at least one part",
                "None = part missing",
            )
        prints = [part.about for part in checked.values()]
        about = replace(
            prints[0],
            content=_joint_hash({name: part.about.content for name, part in checked.items()}),
            dims=np.sum([p.dims for p in prints], axis=0),
            event=repr(self),
            measure=self.measure,
            integers=all(p.integers for p in prints),
            bytes=None,
        )
        forms = {name: part.form for name, part in checked.items()}
        return Checked({name: checked[name].x if name in checked else None for name in self.parts}, about, forms)

    def restore(self, x: Mapping[str, Any], form: Any = "dict") -> dict[str, Any]:
        """Each part in its own form, where ``form`` names them by part, else in the form natural to it."""
        forms = form if isinstance(form, Mapping) else {}
        restored = {}
        for name, part in self.parts.items():
            given = (forms[name],) if name in forms else ()
            restored[name] = None if x[name] is None else part.restore(x[name], *given)
        return restored


def _joint_hash(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """One hash a row from the parts' hashes and names."""
    names = [np.frombuffer(name.encode(), dtype=np.uint8)[None] for name in parts]
    salted = [content ^ row_hash(name) for content, name in zip(parts.values(), names, strict=True)]
    return row_hash(np.stack(salted, axis=1).view(np.int64))
