"""Which distributions a response may have."""

from typing import Literal

from probgen.errors import ParameterError, StructureError, nearest
from probgen.events import Array, Category, Count, Event, Table
from probgen.models.regression.counts import Binomial, Categorical, NegativeBinomial, Poisson
from probgen.models.regression.head import Head
from probgen.models.regression.reals import Gamma, Normal, StudentT

__all__ = ["HEADS", "cell_of", "head_for", "suited"]

HEADS = ("normal", "student_t", "gamma", "poisson", "negative_binomial", "bernoulli", "binomial", "categorical")
_SUITED = {
    "real": ("normal", "student_t"),
    "positive": ("gamma", "normal", "student_t"),
    "count": ("poisson", "negative_binomial"),
}


def cell_of(event: Event) -> Array | str:
    """The single response cell of an event, or why there is none."""
    if isinstance(event, Table) and len(event.columns) == 1:
        column = next(iter(event.columns.values()))
        if isinstance(column, Category):
            return Array((), levels=len(column.levels)) if len(column.levels) > 1 else "a category of one level is sure"
        return Array((), "count") if isinstance(column, Count) else Table.cell_event(column)
    if not isinstance(event, Array) or event.dims != 1:
        return "its response is one number or category: Array(()) or a Table of one column"
    return Array((), event.support, _level(event), event.resolution)


def _level(event: Array) -> int | None:
    return None if event.levels is None else int(event.cell_levels[0])


def suited(cell: Array) -> tuple[str, ...]:
    """Heads for a response cell, the default first; none for cells that no head here lives on."""
    if cell.resolution is not None or (cell.support not in _SUITED and cell.levels is None):
        return ()
    if cell.levels is not None:
        return ("bernoulli", "categorical") if cell.levels == 2 else ("categorical", "binomial")
    return _SUITED[cell.support]


def head_for(cell: Array, name: str | None, link: str | None, df: float | Literal["free"]) -> Head:
    """The head of a name for a response cell.

    Raises:
        StructureError: a head that lives on another support, or a link that it does not have.
        ParameterError: an unknown name, or degrees of freedom out of range.
    """
    known = suited(cell)
    name = known[0] if name is None else name
    if name not in HEADS:
        raise ParameterError(f"head={name!r}", "the name of a distribution", nearest(str(name), HEADS))
    if name not in known:
        raise StructureError(f"head={name!r} for a response {cell!r}", f"one of {', '.join(known)}", "Or another event")
    binary = name in ("bernoulli", "binomial")
    links = ("logit", "probit", "cloglog") if binary else (_link(name),)
    if link is not None and link not in links:
        raise StructureError(f"link={link!r} of {name}", f"one of {', '.join(links)}", "None takes the first")
    if df != "free" and (isinstance(df, str | bool) or not 0.3 <= df <= 1e10):
        raise ParameterError(f"df={df!r}", '"free", or a number from 0.3')
    levels = int(cell.levels or 2)  # type: ignore[arg-type]
    if binary:
        return Binomial(levels - 1, link or "logit")  # type: ignore[arg-type]
    made: dict[str, Head] = {
        "normal": Normal(), "student_t": StudentT(df), "gamma": Gamma(), "poisson": Poisson(),
        "negative_binomial": NegativeBinomial(), "categorical": Categorical(levels),
    }  # fmt: skip
    return made[name]


def _link(name: str) -> str:
    return {"normal": "identity", "student_t": "identity", "categorical": "softmax"}.get(name, "log")
