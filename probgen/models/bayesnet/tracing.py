"""A discrete Pyro program read into a network: its sites, who depends on whom, and every table."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from probgen.errors import StructureError
from probgen.events import Category, Table
from probgen.model import pyro_lock
from probgen.models.bayesnet.provenance import Followed, Reads
from probgen.models.bayesnet.runs import Row, Run, Site, comes_and_goes

__all__ = ["from_pyro"]

_CONFIGURATIONS = 10_000  # of the sites that one site may depend on
_CHECKS = 40  # runs that hold the finished network against the program


def from_pyro(cls: Any, model: Callable, *args: Any, **kwargs: Any) -> Any:
    """The network of a Pyro program whose sites are all discrete: the same joint distribution, site by site.

    The program is run with its sites set by hand. What a site's distribution was computed from is followed through
    torch (Wingate, Goodman, Stuhlmueller and Siskind 2011), so its parents are found without asking for all
    combinations; then it is asked for each configuration of these parents, and parents that change nothing
    are dropped. In the end random runs of the program are held against the network.

    Each site becomes a column of its name, its levels the values of its support (whole numbers, or what a Delta
    holds). Observed sites are columns like the others: what was observed stands in ``report.notes``. A plate that
    holds all sites is one of independent rows, and the network is that of one row; other plates give a column an
    element, "x[0]", "x[1]", ... Values of ``pyro.deterministic`` are no columns.

    Arguments:
        cls: BayesianNetwork.
        model, *args, **kwargs: The program and what it is called with.

    Raises:
        StructureError: a site without finite support (continuous, Poisson), with event dimensions, scaled, masked, or a
            ``pyro.factor``; sites that come and go with the values of others, or without end; rows of a plate that
            differ; a site that may depend on more than 10,000 configurations. The site is named.
    """
    if not callable(model):
        raise StructureError(
            f"model={model!r:.80}", "a function with pyro.sample statements", "from_pyro(program, *args)"
        )
    with pyro_lock(torch.Generator().manual_seed(0)), torch.no_grad():
        reader = _Reader(lambda: model(*args, **kwargs))
        for variable in reader.variables:
            reader.explore(variable)
        for variable in reader.variables:
            reader.prune(variable)
        tables = {variable: reader.table(variable) for variable in reader.variables}
        reader.verify(tables)
        return _network(cls, reader, tables)


@dataclass(eq=False)
class _Variable:
    """One element of one site.

    Arguments:
        name: The column.
        site: The site.
        index: By vectorised plate (rows apart): where in it.
        levels: Values that occurred in its support.
        parents: Variables that its distribution may read.
        runs: What it was in each run: the values of the variables before it, and its row.
    """

    name: str
    site: str
    index: dict[str, int]
    levels: set = field(default_factory=set)
    parents: list["_Variable"] = field(default_factory=list)
    runs: list[tuple[dict[str, Any], Row]] = field(default_factory=list)

    def rows(self) -> dict[tuple, Row]:
        """Rows by the values of the parents.

        Raises:
            StructureError: the same values gave different rows.
        """
        found: dict[tuple, Row] = {}
        for values, row in self.runs:
            key = tuple(values[parent.name] for parent in self.parents)
            if not _same(found.setdefault(key, row), row):
                raise _hidden(self)
        return found


def _same(a: Row, b: Row) -> bool:
    return all(
        math.isclose(math.exp(a.get(k, -math.inf)), math.exp(b.get(k, -math.inf)), rel_tol=1e-5, abs_tol=1e-12)
        for k in {*a, *b}
    )


def _hidden(variable: _Variable) -> StructureError:
    return StructureError(
        f"The site {variable.site!r} has other probabilities where all that it is seen to depend on is the same",
        "sites that depend on sites through torch operations, each element of a plate on its own element",
        "Index tables by sites (probs[z]); keep random numbers in sites; loop over elements that mix",
    )


class _Reader:
    """Runs of a program, and what they tell of each variable.

    Attributes:
        sites: By name, in order.
        variables: In order, parents before children.
    """

    def __init__(self, program: Callable) -> None:
        self.program = program
        self.sites: dict[str, Site] = {}
        first = Run(self, {}, None, first=True)
        with first:
            program()
        if not self.sites:
            raise StructureError("A program without sample sites", "at least one pyro.sample")
        shared = set.intersection(*(set(site.plates) for site in self.sites.values()))
        self.rows = sorted(shared)
        self.variables = [v for name, site in self.sites.items() for v in self._elements(name, site)]
        self.by_site: dict[str, list[_Variable]] = {name: [] for name in self.sites}
        for variable in self.variables:
            self.by_site[variable.site].append(variable)

    def _elements(self, name: str, site: Site) -> Iterator[_Variable]:
        """A variable for each element of the plates that are not of rows, outermost plate first."""
        own = {plate: size for plate, (_, size) in sorted(site.plates.items(), key=lambda item: item[1][0])
               if plate not in self.rows}  # fmt: skip
        for index in itertools.product(*map(range, own.values())):
            suffix = f"[{','.join(map(str, index))}]" if own else ""
            yield _Variable(name + suffix, name, dict(zip(own, index, strict=True)))

    def place(self, variable: _Variable) -> tuple[int, ...]:
        """The element of a variable in its site's batch; of rows the first."""
        site = self.sites[variable.site]
        place = [0] * len(site.shape)
        for plate, (dim, _) in site.plates.items():
            place[dim] = variable.index.get(plate, 0)
        return tuple(place)

    def run(self, values: dict[str, Any], follow: bool = True, even: bool = True) -> None:
        """One run with some variables set, the others drawn; each variable's row and sources are kept.

        Arguments:
            follow: Whether sources are followed.
            even: Whether levels are drawn evenly, which soon meets all configurations, or as the program would.
        """
        run = Run(self, values, Reads() if follow else None, even)
        with pyro.validation_enabled(False), Followed() if follow else nullcontext(), run:
            try:
                self.program()
            except StructureError:
                raise
            except Exception as problem:
                raise StructureError(
                    f"The program fails where {run.values}: {problem!r}", "a program that runs under all values",
                    "Give sites that can't happen together some distribution all the same",
                ) from problem  # fmt: skip
        lacking = [name for name in self.sites if name not in run.seen]
        if lacking:
            raise comes_and_goes(lacking[0], run.values)

    def explore(self, variable: _Variable) -> None:
        """Runs the program until each configuration of the variable's parents has been seen."""
        if not variable.runs:
            self.run({}, even=False)
        while True:
            before = len(variable.parents)
            seen = variable.rows()
            if math.prod(len(parent.levels) for parent in variable.parents) > _CONFIGURATIONS:
                raise _too_many(variable)
            for key in itertools.product(*(sorted(parent.levels) for parent in variable.parents)):
                if key not in seen:
                    self.run(dict(zip((p.name for p in variable.parents), key, strict=True)))
                    if len(variable.parents) > before:
                        break
                    seen[key] = variable.runs[-1][1]
            if len(variable.parents) == before:
                variable.rows()
                return

    def add_parents(self, variable: _Variable, read: frozenset[str]) -> None:
        """Takes up the elements of the sites that a variable was computed from: in a shared plate, its own element."""
        for name in self.sites:
            if name in read:
                for parent in self.by_site[name]:
                    mine = all(variable.index.get(plate, at) == at for plate, at in parent.index.items())
                    if mine and parent not in variable.parents:
                        variable.parents.append(parent)

    def prune(self, variable: _Variable) -> None:
        """Drops parents that change nothing."""
        for parent in list(variable.parents):
            rows, at = variable.rows(), variable.parents.index(parent)
            kept: dict[tuple, Row] = {}
            if all(kept.setdefault(key[:at] + key[at + 1 :], row) == row for key, row in rows.items()):
                variable.parents.remove(parent)

    def table(self, variable: _Variable) -> Tensor:
        """log p(variable | parents) in nats, axes (*parents, variable)."""
        rows, levels = variable.rows(), sorted(variable.levels)
        grid = itertools.product(*(sorted(parent.levels) for parent in variable.parents))
        flat = [[rows[key].get(level, -math.inf) for level in levels] for key in grid]
        shape = (*(len(parent.levels) for parent in variable.parents), len(levels))
        return torch.tensor(flat, dtype=torch.float64).reshape(shape)

    def verify(self, tables: dict[Any, Tensor]) -> None:
        """Holds the tables against runs without tracking, half of them under values drawn evenly."""
        for i in range(_CHECKS):
            self.run({}, follow=False, even=bool(i % 2))
            for variable in self.variables:
                values, row = variable.runs.pop()
                key = tuple(sorted(p.levels).index(values[p.name]) for p in variable.parents)
                wanted = dict(zip(sorted(variable.levels), tables[variable][key].tolist(), strict=True))
                if not _same(row, wanted):
                    raise _hidden(variable)


def _too_many(variable: _Variable) -> StructureError:
    n = math.prod(len(parent.levels) for parent in variable.parents)
    names = [parent.name for parent in variable.parents]
    return StructureError(
        f"The site {variable.site!r} may depend on {n} configurations of {names[:12]}",
        f"at most {_CONFIGURATIONS}",
        "A value taken out of torch (.item(), if, int()) may reach every later site: index tables by tensors instead",
    )


def _network(cls: Any, reader: _Reader, tables: dict[Any, Tensor]) -> Any:
    columns = {variable.name: Category(tuple(sorted(variable.levels))) for variable in reader.variables}
    edges = [(parent.name, variable.name) for variable in reader.variables for parent in variable.parents]
    net = cls(Table(columns), edges)
    for variable, table in tables.items():
        net.conditional(variable.name).set_table(table, log=True)
    observed = [name for name, site in reader.sites.items() if site.observed]
    notes = [f"observed in the program, columns here: {', '.join(observed)}"] if observed else []
    if reader.rows:
        notes.append(f"one row of the plate {', '.join(reader.rows)}")
    return net.imported(*notes)
