"""Where the nodes of a graph go: in layers where edges have directions, by distances where none has, or by Graphviz.

The same graph gives the same places. Nothing is drawn here.
"""

from collections.abc import Mapping, Sequence

from probgen.layout.dot import dot_source, run_dot
from probgen.layout.layers import layered
from probgen.layout.places import Edge, Layout, Point, pack, parts_of, shown, text_width, within
from probgen.layout.stress import distances

__all__ = ["Edge", "Layout", "Point", "arrange", "dot_source", "run_dot", "shown", "text_width"]


def arrange(
    nodes: Sequence[str], directed: Sequence[Edge], undirected: Sequence[Edge], sizes: Mapping[str, Point]
) -> Layout:
    """Places for all nodes; unconnected parts stand side by side, the largest first.

    Arguments:
        directed, undirected: Pairs of nodes; cycles are allowed.
        sizes: Width and height of each node's box, in inches.
    """
    parts = [
        layered(part, directed, undirected, sizes) if within(part, directed) else distances(part, undirected, sizes)
        for part in parts_of(nodes, [*directed, *undirected])
    ]
    return pack(parts)
