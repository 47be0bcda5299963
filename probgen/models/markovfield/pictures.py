"""What a field looks like."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probgen import frames, plots
from probgen.errors import ParameterError

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = ["plot"]

_FORMS = {"." + form: form for form in ("png", "svg", "pdf", "dot")}


def plot(field: "MarkovField", path: str | PathLike, engine: str | None = None) -> Path:
    """Variables that share a factor are joined; lines are as wide as their mean strength, hidden variables coloured.

    The strength of a factor is half the spread between its largest and smallest finite log-potential, interactions of
    lower order taken out; the widest line is the strongest.

    Arguments:
        path: png, svg, pdf or dot, by its suffix.
        engine: "dot" (Graphviz), "own", or None for Graphviz where it is there.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMS:
        raise ParameterError(f"A picture named {path.name!r}", f"a name that ends in {', '.join(_FORMS)}")
    weights: dict[tuple[str, str], float] = {}
    for scope, table in zip(field.factors, field.tables(), strict=True):
        strength = _strength(table)
        for i, a in enumerate(scope):
            for b in scope[i + 1 :]:
                pair = (a, b) if (b, a) not in weights else (b, a)
                weights[pair] = max(weights.get(pair, 0.0), strength)
    top = max(weights.values(), default=1.0) or 1.0
    options: dict[str, Any] = {"engine": engine, "form": _FORMS[path.suffix.lower()]}
    if field.hidden:
        options["kinds"] = {name: "hidden" if name in field.hidden else "visible" for name in field.variables}
    scaled = {pair: value / top for pair, value in weights.items()}
    picture = plots.network(field.variables, (), list(weights), weights=scaled, **options)
    frames.write_whole(path, [picture])
    return path


def _strength(table: Any) -> float:
    """Half the spread of a log-table after the means over each of its axes are taken out."""
    rest = table.clamp(min=-50.0)
    for axis in range(table.ndim):
        rest = rest - rest.mean(axis, keepdim=True)
    return float(rest.max() - rest.min()) / 2
