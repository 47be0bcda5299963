"""What can go wrong, one class a cause. Each message holds three facts: what came, what was wanted, what to do."""

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError",
    "FitError",
    "Incomparable",
    "LikelihoodUnavailable",
    "MissingExtra",
    "NotFittedError",
    "ParameterError",
    "ProbgenError",
    "ShapeError",
    "StoreError",
    "StructureError",
    "SupportError",
    "ZeroEvidenceError",
    "nearest",
]


class ProbgenError(Exception):
    """Everything that probgen raises on purpose.

    Arguments:
        came: What was given, or what happened.
        wanted: What would have been right.
        do: The next step.

    ``.code`` is a stable word for programs; the texts may change.
    """

    code = "probgen"

    def __init__(self, came: str, wanted: str = "", do: str = "") -> None:
        super().__init__(came, wanted, do)
        self.came, self.wanted, self.do = came, wanted, do

    def __str__(self) -> str:
        facts = [self.came, f"Wanted: {self.wanted}" if self.wanted else "", self.do]
        return " ".join(fact.rstrip(".") + "." for fact in facts if fact)


class DataError(ProbgenError, ValueError):
    """Data that can't be used: empty, missing or infinite cells, unreadable files, lacking columns."""

    code = "data"


class ShapeError(DataError):
    """Data of another width or rank than the event."""

    code = "shape"


class SupportError(DataError):
    """A value outside the event's support: an unseen category, a fraction among whole numbers."""

    code = "support"


class ParameterError(ProbgenError, ValueError):
    """An argument out of range, or an option that does not exist."""

    code = "parameter"


class StructureError(ProbgenError, ValueError):
    """A model whose parts do not fit together or do not fit the event."""

    code = "structure"


class ZeroEvidenceError(ProbgenError, ValueError):
    """Conditioning on something that has probability zero."""

    code = "zero-evidence"


class NotFittedError(ProbgenError, ValueError):
    """A question to a model that has no parameters yet."""

    code = "not-fitted"


class LikelihoodUnavailable(ProbgenError, TypeError):
    """A likelihood was read from a refusal: ``reason`` says why there is none, ``instead`` what to call."""

    code = "unavailable"

    def __init__(self, reason: str, instead: str = "") -> None:
        super().__init__(reason, "", instead)
        self.args = (reason, instead)
        self.reason, self.instead = reason, instead


class Incomparable(ProbgenError, TypeError):
    """Two numbers that may not be added, subtracted or ranked."""

    code = "incomparable"


class FitError(ProbgenError, RuntimeError):
    """A fit that failed. The model keeps its last good state; ``step`` says where it stopped."""

    code = "fit"

    def __init__(self, came: str, wanted: str = "", do: str = "", step: int | None = None) -> None:
        super().__init__(came, wanted, do)
        self.args = (came, wanted, do, step)
        self.step = step


class StoreError(ProbgenError):
    """A file that is damaged, foreign, too new, or can't be written."""

    code = "store"


class MissingExtra(ProbgenError, ImportError):
    """An optional library is not installed."""

    code = "missing-extra"

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed", "", f"It comes with the extra: pip install 'probgen[{extra}]'")
        self.args = (library, extra)


# What ends one model's work but not the others': refusals, and numbers that break down (singular matrices, memory)
BREAKDOWNS = (ProbgenError, RuntimeError, ArithmeticError, MemoryError)


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint that ends a message about an unknown name: the nearest known one, and the first thirty."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return f"{guess}Known: {', '.join(names[:30]) if names else 'none'}{more}"
