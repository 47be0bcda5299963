"""The door to Graphviz: graphs in the dot language, and its program, where it is on the path."""

import html
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from probgen.errors import ParameterError
from probgen.layout.places import Edge, shown

__all__ = ["dot_source", "run_dot"]

_PATIENCE = 60.0  # seconds


def dot_source(
    nodes: Sequence[str],
    directed: Sequence[Edge],
    undirected: Sequence[Edge],
    *,
    weights: Mapping[Edge, float] | None = None,
    colours: Mapping[str, str] | None = None,
    bars: Mapping[str, Sequence[tuple[str, float | None]]] | None = None,
    legend: Mapping[str, str] | None = None,
) -> str:
    """A graph in the dot language.

    Arguments:
        weights: Of edges, from 0 to 1.
        colours: Of nodes, as "#rrggbb".
        bars: What stands below a node's name: labels, with a share from 0 to 1 or None.
        legend: Words and their colours.
    """
    tuned = "" if directed else " layout=neato; overlap=false;"
    out = [f"digraph {{{tuned} {_legend(legend)}"]
    out.append(
        'node [shape=box style="rounded,filled" fillcolor="#f3f6f9" penwidth=1.4 fontname="Helvetica" fontsize=10];'
    )
    out.append('edge [color="#5b6670" arrowsize=0.7 fontname="Helvetica" fontsize=8];')
    for name in nodes:
        told = [shown(word) if p is None else f"{shown(word)}  {p:.2f}" for word, p in (bars or {}).get(name, ())]
        label = "\n".join([shown(name), *told])
        out.append(f"{quoted(name)} [label={quoted(label)} color={quoted((colours or {}).get(name, '#30638e'))}];")
    for edges, plain in ((directed, ""), (undirected, " dir=none")):
        for edge in edges:
            weight = None if weights is None else weights.get(edge, 0.0)
            style = "" if weight is None else f' penwidth={0.4 + 2.2 * weight:.2f} label="{weight:.2f}"'
            out.append(f"{quoted(edge[0])} -> {quoted(edge[1])} [{(plain + style).strip()}];")
    return "\n".join([*out, "}\n"])


def quoted(text: str) -> str:
    """A string of the dot language; a line break ends a line of the label."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _legend(legend: Mapping[str, str] | None) -> str:
    if not legend or len(legend) < 2:
        return ""
    words = (f'<FONT COLOR="{colour}">&#9632; {html.escape(word)}</FONT>' for word, colour in legend.items())
    return f'label=<{"   ".join(words)}>; labelloc=t; labeljust=l; fontname="Helvetica"; fontsize=10;'


def run_dot(source: str, form: str = "png", must: bool = False) -> bytes | None:
    """The picture that Graphviz makes of a source; None where its program is not on the path, or fails.

    Arguments:
        form: "png", "svg", "pdf", or "dot" for the source itself.

    Raises:
        ParameterError: no picture, but it must be made.
    """
    if form == "dot":
        return source.encode()
    command = [shutil.which("dot") or "dot", f"-T{form}", *(["-Gdpi=120"] if form == "png" else [])]
    try:
        made = subprocess.run(command, input=source.encode(), capture_output=True, timeout=_PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError) as problem:
        if must:
            raise ParameterError(f"Graphviz: {problem}", "its program dot on the path", 'engine="own"') from problem
        return None
    return made or None
