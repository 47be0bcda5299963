"""Dynamic networks: a template of two slices, unrolled over time into a network whose later slices share parameters."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.conditionals import Conditional
from probgen.errors import DataError, ParameterError, ShapeError, StructureError, nearest
from probgen.events import Panel, Table
from probgen.frames import is_frame

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["dynamic", "of_length", "rows", "slices"]

Edge = tuple[str, str]
_SLICE = re.compile(r"(.*)\[(0|[1-9][0-9]*)\]", re.DOTALL)


def dynamic(
    event: Table,
    within: Sequence[Edge] = (),
    between: Sequence[Edge] = (),
    length: int = 2,
    conditionals: Mapping[str, Conditional] | None = None,
    first: Mapping[str, Conditional] | None = None,
) -> "BayesianNetwork":
    """A network over ``length`` slices of the event's columns, "x[0]", "x[1]", ... (Dean and Kanazawa 1989).

    A node's parents are those in the slice before, in the order of ``between``, then those in its own, in the order
    of ``within``. All slices but the first share parameters; the first has its own where a node has parents in the
    slice before, or where ``first`` says so. It is exact like any network, by the clique tree: the cost grows linearly
    with the length, and exponentially with the number of variables that carry one slice to the next.

    Arguments:
        event: Of one slice; cells may be missing.
        within: Edges (parent, child) inside each slice.
        between: Edges (parent, child) from each slice to the next; a node may be its own parent there.
        length: Slices.
        conditionals: Of some nodes by name, from ``probgen.conditionals``.
        first: The same in slice 0, for its own parameters there.

    Raises:
        StructureError: an unknown name, an edge that comes twice, a cycle within a slice.
    """
    from probgen.models.bayesnet.network import BayesianNetwork

    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ParameterError(f"length={length!r}", "a whole number of slices, at least 1")
    names = list(event.columns)
    for given, what in ((conditionals, "conditionals"), (first, "first")):
        for name in given or {}:
            if name not in names:
                raise StructureError(f"{what} names {name!r}, which is no variable", "", nearest(str(name), names))
    _check_edges(names, within, between)
    columns = {f"{name}[{t}]": column for t in range(length) for name, column in event.columns.items()}
    edges = [(f"{a}[{t - 1}]", f"{b}[{t}]") for t in range(1, length) for a, b in between]
    edges += [(f"{a}[{t}]", f"{b}[{t}]") for t in range(length) for a, b in within]
    own_start = {b for _, b in between} | set(first or {})
    parts, tie = _shared(names, length, own_start, conditionals or {}, first or {})
    return BayesianNetwork(Table(columns), edges, conditionals=parts or None, tie=tie or None)


def _check_edges(names: Sequence[str], within: Sequence[Edge], between: Sequence[Edge]) -> None:
    for what, edges in (("within", within), ("between", between)):
        seen = set()
        for edge in edges:
            if isinstance(edge, str) or len(edge) != 2:
                raise StructureError(f"{what}: edge {edge!r}", "a pair (parent, child)")
            for name in edge:
                if name not in names:
                    raise StructureError(f"{what}: {edge!r} names {name!r}", "", nearest(str(name), names))
            if tuple(edge) in seen:
                raise StructureError(f"{what}: {edge!r} comes twice", "each edge once")
            seen.add(tuple(edge))


def _shared(
    names: Sequence[str],
    length: int,
    own_start: set[str],
    conditionals: Mapping[str, Conditional],
    first: Mapping[str, Conditional],
) -> tuple[dict[str, Conditional], dict[str, str]]:
    """Conditionals of the slices that own parameters, and which slices share them."""
    parts: dict[str, Conditional] = {}
    tie: dict[str, str] = {}
    for name in names:
        if name in first:
            parts[f"{name}[0]"] = first[name]
        owner = 1 if name in own_start else 0
        if name in conditionals and owner < length:
            parts[f"{name}[{owner}]"] = conditionals[name]
        tie |= {f"{name}[{t}]": f"{name}[{owner}]" for t in range(owner + 1, length)}
    return parts, tie


def slices(net: "BayesianNetwork") -> tuple[Table, int]:
    """The event of one slice of an unrolled network, and how many slices there are.

    Raises:
        StructureError: the columns are not "x[0]", "x[1]", ... of the same variables.
    """
    found: dict[str, dict[int, Any]] = {}
    for column, kind in net.event.columns.items():
        match = _SLICE.fullmatch(column)
        if match is None:
            raise StructureError(
                f"column {column!r}",
                'columns such as "x[0]" and "x[1]"',
                "BayesianNetwork.dynamic makes such a network",
            )
        found.setdefault(match[1], {})[int(match[2])] = kind
    times = [sorted(own) for own in found.values()]
    if any(own != list(range(len(times[0]))) for own in times):
        raise StructureError(
            f"slices {times[:4]}", "every variable in each slice from 0", "BayesianNetwork.dynamic makes them"
        )
    return Table({name: own[0] for name, own in found.items()}), len(times[0])


def of_length(net: "BayesianNetwork", length: int) -> "BayesianNetwork":
    """A network of another number of slices with the parameters of this one, which has at least two.

    Raises:
        StructureError: fewer than two slices, so that how one follows another is not known.
    """
    event, had = slices(net)
    if had < 2:
        raise StructureError("A network of one slice", "at least two, which say how one follows another")
    within = [(_base(a), _base(b)) for a, b in net.edges if a.endswith("[0]") and b.endswith("[0]")]
    between = [(_base(a), _base(b)) for a, b in net.edges if a.endswith("[0]") and b.endswith("[1]")]
    later = {name: net.conditional(f"{name}[1]") for name in event.columns}
    start = {name: net.conditional(f"{name}[0]") for name in event.columns}
    conditionals = {name: copy.deepcopy(part) for name, part in later.items()}
    first = {name: copy.deepcopy(part) for name, part in start.items() if part is not later[name]}
    made = dynamic(event, within, between, length, conditionals, first)
    made.report, made.form = net.report, net.form
    return made.eval()


def _base(column: str) -> str:
    return column[: column.rindex("[")]


def rows(
    net: "BayesianNetwork", sequences: Any, columns: Sequence[str] | None = None, sequence: str | None = None
) -> Any:
    """Sequences as rows of an unrolled network, a frame in the form that came in: what is not there is missing.

    Cells after a sequence's end are missing, and so are variables that the data lack (hidden ones). Both are
    summed out, which leaves the likelihood of the steps that are there: nothing observed hangs on what comes later.

    Arguments:
        net: From ``dynamic``.
        sequences: A list of frames (or dicts of columns), one each; a list of arrays (T, k) or (T,); or one frame.
        columns: Which variables the data hold; None takes a frame's columns, and all of them for arrays.
        sequence: In one frame, the column that says which sequence a row belongs to.

    Raises:
        DataError, SupportError: a sequence longer than the network, cells that can't be used.
    """
    event, length = slices(net)
    held = _held(event, sequences, columns, sequence)
    if isinstance(sequences, Sequence) and not isinstance(sequences, str) and not _is_table(sequences[0:1]):
        sequences = [_as_columns(part, held, i) for i, part in enumerate(sequences)]
    checked = Panel({name: event.columns[name] for name in held}, sequence).check(sequences)
    values, lengths = checked.x.values, checked.x.lengths
    if int(lengths.max()) > length:
        row = int(lengths.argmax())
        raise DataError(
            f"Sequence {checked.about.keys[row]} has {int(lengths[row])} steps", f"at most {length}, the network's",
            f"of_length(net, {int(lengths.max())})",
        )  # fmt: skip
    return net.event.restore(
        _placed(net, held, values, lengths), checked.form if checked.form != "numpy" else "pyarrow"
    )


def _placed(net: "BayesianNetwork", held: Sequence[str], values: Tensor, lengths: Tensor) -> Tensor:
    """Steps (total, k) as cells (n, columns of the network)."""
    cells = torch.full((len(lengths), len(net.variables)), torch.nan, dtype=torch.float64)
    row = torch.arange(len(lengths)).repeat_interleave(lengths)
    step = torch.arange(len(values)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    for j, name in enumerate(held):
        places = torch.tensor([net.index[f"{name}[{t}]"] for t in range(int(lengths.max()))])
        cells[row, places[step]] = values[:, j]
    return cells


def _held(event: Table, data: Any, columns: Sequence[str] | None, sequence: str | None) -> list[str]:
    """The variables that data hold, in their order."""
    found = list(columns) if columns is not None else _names(data)
    known = [name for name in found or event.columns if name != sequence]
    for name in known:
        if name not in event.columns:
            raise ParameterError(f"column {name!r} is no variable", "", nearest(str(name), event.columns))
    return known


def _is_table(parts: Any) -> bool:
    return bool(len(parts)) and (is_frame(parts[0]) or isinstance(parts[0], Mapping))


def _names(data: Any) -> list[str]:
    table = data[0] if isinstance(data, list | tuple) and _is_table(data) else data
    if isinstance(table, Mapping):
        return [str(name) for name in table]
    return [str(n) for n in getattr(table, "column_names", getattr(table, "columns", ()))] if is_frame(table) else []


def _as_columns(part: Any, held: Sequence[str], i: int) -> dict[str, np.ndarray]:
    array = np.asarray(part)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != len(held):
        do = "Where it holds some of the variables only, name them: columns=['x']"
        raise ShapeError(f"Sequence {i} of shape {array.shape}", f"(T, {len(held)}), its columns {list(held)}", do)
    return dict(zip(held, array.T, strict=True))
