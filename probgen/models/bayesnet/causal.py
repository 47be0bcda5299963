"""What would happen, and what would have happened: interventions and counterfactuals (Pearl 2009)."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probgen import frames
from probgen.conditionals import Conditional, Point
from probgen.errors import ParameterError, StructureError, SupportError, nearest
from probgen.events import Category
from probgen.logprob import Kind
from probgen.model import generator_of
from probgen.models.bayesnet import evidence, mechanisms
from probgen.models.bayesnet.queries import few

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Counterfactual", "counterfactual", "do"]


def do(net: "BayesianNetwork", assignments: Mapping[str, Any], assume_graph: bool = False) -> "BayesianNetwork":
    """The network after an intervention: edges into the set nodes are cut, and each has its one value.

    Its distribution is the truncated factorisation prod p(x_v | x_parents(v)) over the nodes that were not set (Pearl
    2009, equation 3.10). It is a network like any other; the set nodes are ``conditionals.Point``, and a row with
    another value there has probability zero.

    A graph that was learned from data is known up to its Markov equivalence class only. Where an edge between a set
    node and another one points either way within that class, the effects differ between graphs that fit alike
    (Perkovic, Textor, Kalisch and Maathuis 2018), and are refused.

    Arguments:
        assignments: A level or a number for each node that is set.
        assume_graph: Takes a learned graph as it is.

    Raises:
        ParameterError: nothing set, or an unknown name. SupportError: a value that the column can't have.
        StructureError: a learned graph does not tell the effects.
    """
    values = _settings(net, assignments)
    if net.learned and not assume_graph:
        _refuse_open_edges(net, values)
    made = _cut(net, values, net.learned and not assume_graph)
    return made.imported(f"do({', '.join(f'{name}={value!r}' for name, value in values.items())})")


def _settings(net: "BayesianNetwork", assignments: Any) -> dict[str, Any]:
    if not isinstance(assignments, Mapping) or not assignments:
        raise ParameterError(f"do={assignments!r}", "a dict of name: value, one at least", 'do({"smoke": "yes"})')
    found = {}
    for name, value in assignments.items():
        if name not in net.index:
            raise ParameterError(f"There is no variable {name!r} to set", "", nearest(str(name), net.index))
        column = net.event.columns[name]
        value = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
        if Point(value).suits(column, ()) is not None:
            wanted = f"one of {list(column.levels)[:12]}" if isinstance(column, Category) else f"a value of {column!r}"
            raise SupportError(f"do({name}={value!r})", wanted, "Set it to a value that its column can have")
        found[name] = value
    return found


def _refuse_open_edges(net: "BayesianNetwork", values: Mapping[str, Any]) -> None:
    if any(isinstance(part, Point) for part in net.parts):
        raise StructureError(
            "do() after do() on a learned graph: what is left does not show its equivalence class", "one do() of all",
            "Set the nodes together, or assume_graph=True takes the graph as it is",
        )  # fmt: skip
    known = net.cpdag() if net.structure is None else net.structure.cpdag  # the latter counts what the user has fixed
    loose = [f"{a} - {b}" for a, b in known[1] if (a in values) != (b in values)]
    if loose:
        raise StructureError(
            f"do({', '.join(values)}) on a learned graph: {', '.join(loose[:6])} points either way within its Markov "
            "equivalence class, and the effects differ",
            "edges whose direction the data tell",
            "Fix directions when learning, or assume_graph=True takes the graph as it is",
        )


def _cut(net: "BayesianNetwork", values: Mapping[str, Any], learned: bool) -> "BayesianNetwork":
    """A copy with edges into the set nodes cut; what was tied stays tied."""
    parts, tie, owner = dict[str, Conditional](), dict[str, str](), dict[int, str]()
    for name in net.variables:
        part = net.conditional(name)
        if name in values:
            parts[name] = Point(values[name])
        elif id(part) in owner:
            tie[name] = owner[id(part)]
        else:
            owner[id(part)] = name
            parts[name] = copy.deepcopy(part)
    edges = [(a, b) for a, b in net.edges if b not in values]
    made = type(net)(net.event, edges, parts, tie or None, learned)
    made.form = net.form
    made.limit, made.configurations = net.limit, net.configurations
    return made


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """p(x*_v | what was seen of the row): what each variable below the set ones would have been; no likelihood.

    Arguments:
        levels: Of each category, by name.
        lower, upper: Of each category, bounds on its probabilities, shape (n, levels); equal where they are known.
        mean, sd: Of each real or count, shape (n,).
        stderr: Monte Carlo standard error of each probability or mean, shaped as those; 0 where nothing is drawn.
        kinds: One a row: Kind.EXACT, Kind.ESTIMATE, or "bounds" where lower and upper differ.
        by: One a row, how it was found.
        keys: Row keys, shape (n,).

    ``found["lung"]`` is an array (n, levels), or for a real a pair (mean, sd).
    """

    levels: dict[str, tuple]
    lower: dict[str, np.ndarray]
    upper: dict[str, np.ndarray]
    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]
    kinds: tuple[str, ...]
    by: tuple[str, ...]
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, name: str) -> Any:
        if name in self.mean:
            return self.mean[name], self.sd[name]
        if name not in self.lower:
            raise ParameterError(
                f"There is no counterfactual {name!r}", "a variable below what is set",
                nearest(str(name), [*self.lower, *self.mean]),
            )  # fmt: skip
        if "bounds" in self.kinds and bool((self.lower[name] < self.upper[name]).any()):
            raise StructureError(
                f"{name!r} has bounds, no numbers", ".lower and .upper", 'Or declare mechanism="gumbel-max"'
            )
        return self.upper[name]

    def frame(self) -> Any:
        """A pyarrow.Table, one line for each row, variable and level."""
        lines: list[tuple] = []
        for i, key in enumerate(self.keys):
            for name, levels in self.levels.items():
                for j, level in enumerate(levels):
                    low, high = float(self.lower[name][i, j]), float(self.upper[name][i, j])
                    told = low if low == high else np.nan
                    lines.append((key, name, str(level), told, low, high, np.nan, np.nan, self.stderr[name][i, j], i))
            for name in self.mean:
                nan = np.nan
                of = (self.mean[name][i], self.sd[name][i], self.stderr[name][i])
                lines.append((key, name, None, nan, nan, nan, *of, i))
        titles = ("row", "variable", "level", "probability", "lower", "upper", "mean", "sd", "stderr")
        found: dict[str, Any] = dict(
            zip(titles, map(list, zip(*(line[:-1] for line in lines), strict=True)), strict=True)
        )
        for title in titles[3:]:
            found[title] = np.ma.masked_invalid(np.array(found[title], dtype=np.float64))
        found["kind"] = [str(self.kinds[line[-1]]) for line in lines]
        found["by"] = [self.by[line[-1]] for line in lines]
        return frames.table(found)

    def __repr__(self) -> str:
        return (
            f"Counterfactual({len(self)} rows of {few([*self.levels, *self.mean])}; "
            f"{', '.join(sorted(set(self.kinds)))})"
        )


@torch.no_grad()
def counterfactual(
    net: "BayesianNetwork",
    x: Any,
    do: Mapping[str, Any],
    *,
    mechanism: str | Mapping[str, str] | None = None,
    draws: int = 10_000,
    seed: int | None = None,
    assume_graph: bool = False,
) -> Counterfactual:
    """What each row would have been under ``do``: abduction, action, prediction (Pearl 2009, 7.1).

    A network alone does not say that: a table leaves open how the same chance would have played out under other
    parents. What needs a mechanism are the variables below the set ones of which something was seen. Of these

    - a linear Gaussian has one: x = mean(parents) + sd(parents) * e, and e stays as it was. Exact, with missing cells
      by the joint normal as long as all categories are observed;
    - a table of zeros and ones has one. Exact, with missing cells by the twin network (Balke and Pearl 1994);
    - another category has one if you name it: "gumbel-max" (Oberst and Sontag 2019), an assumption that no data can
      test. Drawn: an estimate with its standard error;
    - without, one such category gets sharp bounds, max(0, (p + q - 1) / p) to min(1, q / p) for p of what was
      seen and q of what is asked (Tian and Pearl 2000), if the cells of its family are there; more are refused.

    Where nothing was seen below, the answer is that of ``do``, and exact.

    Arguments:
        x: Rows with gaps: what was seen.
        do: A level or a number for each node that is set.
        mechanism: "gumbel-max" for all categories below, or by name; None declares none.
        draws: Of each row, where it is drawn.
        assume_graph: Takes a learned graph as it is.

    Raises:
        StructureError: no mechanism, or nothing below what is set; a learned graph that does not tell.
        ZeroEvidenceError: a row of probability zero.
    """
    values = _settings(net, do)
    if net.learned and not assume_graph:
        _refuse_open_edges(net, values)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ParameterError(f"draws={draws!r}", "a whole number, at least 1")
    generator = generator_of(seed)
    cells, keys, _ = evidence.rows(net, x)
    numbers = {name: Point(value).bind(net.event.columns[name]).value for name, value in values.items()}
    world = mechanisms.World(net, numbers, _declared(net, mechanism), draws, generator)
    if not world.below:
        raise StructureError(f"do({', '.join(values)})", "a variable with something below it", "Nothing would differ")
    nats = net._log_prob(cells, None, generator=generator).__dict__["nats"]
    evidence.impossible(torch.as_tensor(nats), keys)
    return _gathered(net, world, cells, keys)


def _declared(net: "BayesianNetwork", mechanism: Any) -> dict[str, str]:
    named = dict.fromkeys(net.discrete, mechanism) if isinstance(mechanism, str) else dict(mechanism or {})
    for name, word in named.items():
        if word != "gumbel-max":
            raise ParameterError(f"mechanism={word!r}", '"gumbel-max", or None', "Other mechanisms are not known")
        if name not in net.discrete:
            raise ParameterError(f"mechanism of {name!r}", "one for categories", nearest(str(name), net.discrete))
    return named


def _gathered(net: "BayesianNetwork", world: mechanisms.World, cells: torch.Tensor, keys: np.ndarray) -> Counterfactual:
    n = len(cells)
    levels = {v: net.event.columns[v].levels for v in world.below if v in net.discrete}  # type: ignore[attr-defined]
    real = [v for v in world.below if v not in levels]
    lower, upper = ({v: np.empty((n, len(own))) for v, own in levels.items()} for _ in range(2))
    mean, sd = ({v: np.empty(n) for v in real} for _ in range(2))
    stderr = {v: np.empty((n, len(levels[v])) if v in levels else n) for v in world.below}
    kinds, by = np.empty(n, dtype=object), np.empty(n, dtype=object)
    patterns, which = cells.isnan().unique(dim=0, return_inverse=True)
    for i, gaps in enumerate(patterns):
        rows = (which == i).nonzero()[:, 0]
        seen = {v for v, gap in zip(net.variables, gaps.tolist(), strict=True) if not gap}
        found = world.answer(cells[rows], keys[rows.numpy()], seen)
        places = rows.numpy()
        for v in levels:
            lower[v][places], upper[v][places] = found.lower[v], found.upper[v]
        for v in real:
            mean[v][places], sd[v][places] = found.mean[v], found.sd[v]
        for v in world.below:
            stderr[v][places] = found.stderr.get(v, 0.0)
        kinds[places], by[places] = found.kinds, found.by
    return Counterfactual(levels, lower, upper, mean, sd, stderr, tuple(map(_kind, kinds)), tuple(by), keys)


def _kind(word: str) -> str:
    return word if word == "bounds" else Kind(word)
