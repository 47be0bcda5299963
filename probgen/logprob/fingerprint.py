"""What numbers are about, so that only like is compared with like."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.errors import Incomparable


class _Deferred:
    """A field that may be given as a function; it is called when the field is first read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        if owner is None:
            raise AttributeError(self.name)  # a dataclass then sees no default
        value = owner.__dict__[self.name]
        if callable(value):
            value = owner.__dict__[self.name] = value()
        return value

    def __set__(self, owner: Any, value: Any) -> None:
        owner.__dict__[self.name] = value


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What a LogProb's numbers are about, so that only like is compared with like.

    Arguments:
        keys: Row keys as the user gave them (a pandas index), else 0..n-1, shape (n,).
        content: A 64-bit hash of each row's checked content, missing cells included, shape (n,), or a function that
            gives it: hashing many rows costs more than scoring some of them, and only comparisons read it.
        dims: Observed cells a row, shape (n,).
        event: The event's repr: units, levels, resolution.
        measure: The event's canonical measure.
        integers: Whether every observed cell is a whole number.
        bytes: Bytes of the original text a row, shape (n,), for text only.
        conditions: Of a conditional log p(x | y): the rows of y.
    """

    keys: np.ndarray
    if TYPE_CHECKING:
        content: Any
    else:
        content: Any = _Deferred()
    dims: np.ndarray
    event: str
    measure: str
    integers: bool = False
    bytes: np.ndarray | None = None
    conditions: "Fingerprint | None" = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Any) -> "Fingerprint":
        taken = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name in ("keys", "content", "dims")}
        conditions = None if self.conditions is None else self.conditions[rows]
        return replace(self, **taken, bytes=None if self.bytes is None else self.bytes[rows], conditions=conditions)

    @classmethod
    def concat(cls, parts: "Sequence[Fingerprint]") -> "Fingerprint":
        """The rows of several, one after the other; raises Incomparable for different events."""
        agree("event", *(part.event for part in parts))
        mixed = len({part.keys.dtype.kind for part in parts}) > 1
        keys = [part.keys.astype(object) if mixed else part.keys for part in parts]
        sizes = [part.bytes for part in parts if part.bytes is not None]
        given = [part.conditions for part in parts if part.conditions is not None]
        return replace(
            parts[0],
            keys=np.concatenate(keys),
            content=np.concatenate([part.content for part in parts]),
            dims=np.concatenate([part.dims for part in parts]),
            integers=all(part.integers for part in parts),
            bytes=np.concatenate(sizes) if len(sizes) == len(parts) else None,
            conditions=cls.concat(given) if len(given) == len(parts) else None,
        )

    def same_rows(self, other: "Fingerprint") -> bool:
        return len(self) == len(other) and np.array_equal(self.content, other.content)

    def chained(self, other: "Fingerprint") -> "Fingerprint | None":
        """The rows of x and y together, where these are of x given y and the others of y; None where they are not.

        The content of a record is the sum of its parts' contents, so that the rows are known for those of the record.
        """
        if self.conditions is None or not self.conditions.same_rows(other):
            return None
        return replace(
            self,
            content=self.content + other.content,
            dims=self.dims + other.dims,
            measure=joint_measure(self.measure, other.measure),
            integers=self.integers and other.integers,
            bytes=None,
            conditions=None,
        )


def joint_measure(a: str, b: str) -> str:
    """Of two variables together, from the measure of each."""
    return " x ".join(sorted({*a.split(" x "), *b.split(" x ")} - {""}))


def joint_rows(a: Fingerprint | None, b: Fingerprint | None) -> Fingerprint | None:
    """Of x and y, from those of x given y and of y, in either order; None where that is not known of them."""
    return None if a is None or b is None else a.chained(b) or b.chained(a)


def agree(name: str, *values: str) -> None:
    """Raises Incomparable where LogProbs differ in something that they must share."""
    if len(set(values)) > 1:
        name = "variable (of)" if name == "of" else name
        raise Incomparable(
            f"LogProbs that differ in {name}: {', '.join(sorted(set(map(repr, values))))}",
            f"one {name}",
            "Fit both models to one event and score the same variable",
        )


def joint_target(a: str, b: str, sign: str) -> str:
    """The distribution that a sum or difference is about; two that differ must have p on one side."""
    if a == b:
        return a
    if "p" not in (a, b):
        raise Incomparable(
            f"Numbers about two different distributions, {a} and {b}",
            "one of them about p itself",
            "Score both for one target",
        )
    return f"{a}{sign}{b}"


def chain(a: str, b: str) -> str:
    """The variable of log p(a) + log p(b): "x|y" + "y" is "x,y". Anything else is no density."""
    for one, two in ((a, b), (b, a)):
        x, _, given = one.partition("|")
        y, _, rest = two.partition("|")
        conditions = set(filter(None, given.split(",")))
        if conditions == set(y.split(",")) | set(filter(None, rest.split(","))) and not set(x.split(",")) & conditions:
            return f"{x},{y}" + (f"|{rest}" if rest else "")
    raise Incomparable(
        f"log p({a}) + log p({b}) is no log-probability",
        "the chain rule: log p(x|y) + log p(y)",
        "To total the rows of one variable use .sum() or LogProb.concat",
    )
