"""What a network looks like."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probgen import plots
from probgen.conditionals import Point
from probgen.errors import ParameterError
from probgen.events import Category, Count
from probgen.frames import write_whole
from probgen.models.bayesnet.queries import Marginals

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Picture", "plot"]

_FORMS = {".png": "png", ".svg": "svg", ".pdf": "pdf", ".dot": "dot", ".gv": "dot"}


@dataclass(frozen=True, repr=False)
class Picture:
    """A PNG that a notebook shows.

    Arguments:
        png: Its bytes.
    """

    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"Picture({len(self.png)} bytes of PNG)"


def plot(
    net: "BayesianNetwork",
    path: str | PathLike | None = None,
    *,
    marginals: Any = None,
    weights: Any = None,
    equivalence: bool = False,
    engine: str | None = None,
) -> "Path | Picture":
    """The graph, its nodes coloured by what they are: by Graphviz where its program is on the path, else by matplotlib.

    Arguments:
        path: A file ending in .png, .svg, .pdf or .dot, written whole; None gives a picture to look at.
        marginals: What the nodes show besides their names: a row of ``net.marginals(...)``, or True for
            the distributions with nothing observed.
        weights: Of edges, from 0 to 1, such as bootstrap strengths, by (parent, child).
        equivalence: Whether edges that point either way within the Markov equivalence class are drawn as lines.
        engine: "dot", "own", or None.

    Raises:
        ParameterError: another ending, weights of no edge, marginals of no or several rows.
    """
    form = "png" if path is None else _FORMS.get(Path(path).suffix.lower())
    if form is None:
        raise ParameterError(f"path={str(path)!r}", f"a name that ends in {', '.join(_FORMS)}")
    directed, undirected = net.cpdag() if equivalence else (list(net.edges), [])
    found = _checked(net, net.marginals() if marginals is True else marginals)
    drawn = plots.network(
        net.variables,
        directed,
        undirected,
        weights=None if weights is None else _weights(net, weights),
        kinds={name: _kind(net, name) for name in net.variables},
        words=("category", "real", "count", "set"),
        bars=None if found is None else {name: _lines(net, name, found) for name in net.variables},
        engine=engine,
        form=form,
    )
    if path is None:
        return Picture(drawn)
    write_whole(path, [drawn])
    return Path(path)


def _kind(net: "BayesianNetwork", name: str) -> str:
    if isinstance(net.conditional(name), Point):
        return "set"
    column = net.event.columns[name]
    return "category" if isinstance(column, Category) else "count" if isinstance(column, Count) else "real"


def _checked(net: "BayesianNetwork", marginals: Any) -> Marginals | None:
    if marginals is None:
        return None
    if not isinstance(marginals, Marginals) or len(marginals) != 1:
        raise ParameterError(f"marginals={marginals!r:.80}", "net.marginals(...) of one row, or True")
    lacking = [name for name in net.variables if name not in marginals.probs and name not in marginals.mean]
    if lacking:
        raise ParameterError(f"marginals without {lacking[0]!r}", "those of this network")
    return marginals


def _lines(net: "BayesianNetwork", name: str, found: Marginals) -> list[tuple[str, float | None]]:
    """Levels with their probabilities, the likeliest eight in their order, or mean and standard deviation."""
    if name in found.mean:
        return [(f"{found.mean[name][0]:.4g} ± {found.sd[name][0]:.2g}", None)]
    shares = found.probs[name][0]
    kept = sorted(sorted(range(len(shares)), key=lambda i: -shares[i])[:8])
    return [(str(found.levels[name][i]), float(shares[i])) for i in kept]


def _weights(net: "BayesianNetwork", weights: Any) -> dict[tuple[str, str], float]:
    named = {tuple(edge): float(w) for edge, w in dict(weights).items()}
    edges = set(net.edges) | {(b, a) for a, b in net.edges}
    for edge, weight in named.items():
        if edge not in edges or not 0 <= weight <= 1:
            raise ParameterError(f"weights[{edge!r}]={weight!r}", "edges of this network, and numbers from 0 to 1")
    return {edge: named.get(edge, named.get(edge[::-1], 0.0)) for edge in edges}
