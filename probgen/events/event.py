"""What one observation is: the checked data, the Event and what every kind of event shares."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any

import numpy as np

from probgen.errors import DataError, StructureError
from probgen.events.cells import Ragged, prefix_hash, take
from probgen.logprob import Fingerprint


@dataclass(frozen=True, eq=False)
class Checked:
    """Data that passed the check.

    Arguments:
        x: Tensor (n, ...), Ragged, or a dict of parts.
        about: Fingerprint of the rows.
        form: What came in and results go back as: "numpy", "torch", "pandas", "polars", "pyarrow", "list", "dict";
            for a record a dict of the forms of its parts.
    """

    x: Any
    about: Fingerprint
    form: Any

    def __len__(self) -> int:
        return len(self.about.keys)

    def __getitem__(self, rows: Any) -> "Checked":
        return Checked(take(self.x, rows), self.about[rows], self.form)


def steps_of(checked: Checked) -> Fingerprint:
    """The steps of checked sequences as rows of their own, sequence after sequence.

    Keys are step numbers, or "sequence:step" for several. A step's content is that of its sequence up to and
    including it, so that two answers about the same step are about the same past.

    Raises:
        StructureError: the data are no sequences.
    """
    x, about = checked.x, checked.about
    if not isinstance(x, Ragged):
        raise StructureError(
            f"Steps of {about.event}", "sequences: events.Series or Panel", "log_prob scores whole rows"
        )
    keys = x.places.numpy()
    if len(x) > 1:
        labels, numbers = np.array([f"{key}:" for key in about.keys]), np.arange(keys.max() + 1).astype(str)
        keys = np.char.add(np.repeat(labels, x.lengths.numpy()), numbers[keys])
    seen = (~x.values.reshape(len(keys), -1).isnan()).sum(dim=1).numpy()
    return Fingerprint(keys, lambda: prefix_hash(x), seen, about.event, about.measure, about.integers)


class Event(ABC):
    """What one observation is. ``check`` brings data in, ``restore`` gives results back, ``measure`` says what a
    log-probability of it is measured against."""

    @property
    @abstractmethod
    def measure(self) -> str:
        """Canonical: "counting", "lebesgue(cm)", "lebesgue(age) x counting(sex)"."""

    @abstractmethod
    def check(self, data: Any) -> Checked:
        """Checked tensors of outside data.

        Raises:
            DataError, ShapeError, SupportError: naming what came (row, column, value), what was wanted, what to do.
        """

    @abstractmethod
    def restore(self, x: Any, form: Any = "numpy") -> Any:
        """Checked tensors in the user's form."""

    @property
    def discrete(self) -> bool:
        """Whether probabilities are masses, not densities."""
        return "lebesgue" not in self.measure

    def __repr__(self) -> str:
        given = arguments(self)
        defaults = {f.name: f for f in fields(self)}  # type: ignore[arg-type]
        shown = (f"{name}={value!r}" for name, value in given.items() if not _is_default(defaults.get(name), value))
        return f"{type(self).__name__}({', '.join(shown)})"


def arguments(part: Any) -> dict[str, Any]:
    """The constructor call of an object whose constructor keeps every argument under its own name."""
    given: dict[str, Any] = {}
    for name, parameter in _parameters(type(part)).items():  # type: ignore[arg-type]
        value = getattr(part, name)
        given.update(value if parameter.kind is parameter.VAR_KEYWORD else {name: value})
    return given


@cache
def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind).parameters


def _is_default(declared: Any, value: Any) -> bool:
    return declared is not None and declared.default is not MISSING and declared.default == value


def refuse_empty(n: int) -> None:
    if n == 0:
        raise DataError("The data are empty: 0 rows", "at least one row", "Check how they were read or filtered")
