"""Graphs that pgmpy's PC and GES learn, as fitted networks of ours."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np

from probgen import events
from probgen.errors import DataError, FitError, ParameterError, StructureError
from probgen.events import Category, Real, Table
from probgen.foreign.pgmpy.parts import door
from probgen.models.bayesnet import BayesianNetwork, graph, structure

__all__ = ["extension", "ges", "pc"]

Edge = tuple[str, str]
Pattern = tuple[list[Edge], list[Edge]]  # directed edges, undirected pairs
_TESTS = {
    True: ("chi_square", "g_sq", "log_likelihood", "modified_log_likelihood", "power_divergence"),
    False: ("pearsonr", "fisher_z"),
}
_INSTEAD = "BayesianNetwork.learn(data) takes"


def pc(
    data: Any,
    *,
    event: Table | None = None,
    significance: float = 0.01,
    ci_test: str | None = None,
    max_cond_vars: int = 5,
    prior: str = "none",
) -> BayesianNetwork:
    """A network whose graph comes from tests of conditional independence (Spirtes, Glymour and Scheines 2000), by
    pgmpy's PC in its stable order (Colombo and Maathuis 2014); tables or regressions are ours.

    The pattern that PC finds is directed as one of its graphs (``extension``); ``.structure.cpdag`` tells which
    directions the data leave open. Finite data can give a pattern that no graph has: ``.structure.notes`` say so.

    Arguments:
        data: Complete rows, as ``events.Table`` takes them.
        event: How the columns are read; None: ``events.infer(data)``. All categories, or all real.
        significance: p-value from which two columns count as independent.
        ci_test: "chi_square" (None, for categories), "g_sq", "log_likelihood", "modified_log_likelihood",
            "power_divergence"; of real columns "pearsonr" (None) or "fisher_z".
        max_cond_vars: The most columns that a test conditions on.
        prior: Of the parameters, as in ``fit``.

    Raises:
        DataError: missing cells, fewer than two rows.
        StructureError: columns of both kinds, or counts.
        ParameterError: options out of range.
        MissingExtra: without pgmpy.
    """
    if isinstance(significance, bool) or not isinstance(significance, int | float) or not 0 < significance < 1:
        raise ParameterError(f"significance={significance!r}", "a number between 0 and 1")
    if isinstance(max_cond_vars, bool) or not isinstance(max_cond_vars, int) or max_cond_vars < 0:
        raise ParameterError(f"max_cond_vars={max_cond_vars!r}", "a whole number, at least 0")
    rows = _Rows(data, event)
    tests = _TESTS[not rows.data.mixed]
    test = tests[0] if ci_test is None else ci_test
    if test not in tests:
        kind = "real columns" if rows.data.mixed else "categories"
        raise ParameterError(f"ci_test={ci_test!r} for {kind}", f"one of {', '.join(tests)}")
    options = {"ci_test": test, "significance_level": significance, "max_cond_vars": max_cond_vars}
    pattern = rows.pattern("PC", variant="stable", show_progress=False, **options)  # its parallel order races
    said = f"{test}, significance {significance:g}, at most {max_cond_vars} conditions"
    return rows.network("pc", pattern, structure.Scorer(rows.data, structure.Criterion()), prior, said)


def ges(
    data: Any,
    *,
    event: Table | None = None,
    score: str = "bic",
    ess: float = 1.0,
    min_improvement: float = 1e-6,
    prior: str | None = None,
) -> BayesianNetwork:
    """A network whose graph comes from greedy search over equivalence classes (Chickering 2002), by pgmpy's GES.

    The scores are those of ``structure.Criterion``: pgmpy's to rounding, but levels that the rows lack count. It takes
    seconds for 10 columns and minutes for 40.

    Arguments:
        data, event: As in ``pc``.
        score: "bic", "aic", "bdeu" or "k2"; of real columns "bic" or "aic".
        ess: Equivalent sample size of "bdeu".
        min_improvement: Nats that a step must gain.
        prior: Of the parameters, as in ``fit``; None: that of "bdeu" and "k2", else "none".

    Raises:
        DataError, StructureError, ParameterError, MissingExtra: as of ``pc``.
    """
    criterion = structure.Criterion(score, ess)
    if not isinstance(min_improvement, int | float) or not 0 <= min_improvement < np.inf:
        raise ParameterError(f"min_improvement={min_improvement!r}", "nats, a number from 0")
    rows = _Rows(data, event)
    scorer = structure.Scorer(rows.data, criterion)
    pattern = rows.pattern("GES", scoring_method=_score(scorer), min_improvement=min_improvement)
    prior = (score if criterion.bayesian else "none") if prior is None else prior
    return rows.network("ges", pattern, scorer, prior, f"steps of at least {min_improvement:g} nats")


class _Rows:
    """Complete rows as a search reads them."""

    def __init__(self, data: Any, event: Table | None) -> None:
        self.event = _suited(events.infer(data) if event is None else event)
        self.given = data
        x = self.event.check(data).x
        missing = x.isnan().any(1)
        if bool(missing.any()):
            raise DataError(
                f"{int(missing.sum())} of {len(x)} rows have missing cells, row {int(missing.nonzero()[0])} first",
                "complete rows", f"Drop them; {_INSTEAD} rows with gaps",
            )  # fmt: skip
        if len(x) < 2:
            raise DataError(f"{len(x)} row", "at least two", "One row shows no edge")
        self.data = structure.read(self.event, x.numpy())

    def pattern(self, search: str, **options: Any) -> Pattern:
        """What one of pgmpy's searches finds among the columns that vary."""
        frame, maker = self._frame(), getattr(door("pgmpy.causal_discovery"), search)
        if frame.shape[1] < 2:
            return [], []
        try:
            with _quiet():
                found = maker(**options).fit(frame).causal_graph_
        except Exception as problem:
            raise FitError(
                f"pgmpy's {search} ends with {type(problem).__name__}: {problem}",
                "a graph",
                f"{_INSTEAD} the same data",
            ) from problem
        return self._named(found.directed_edges), self._named(tuple(sorted(e)) for e in found.undirected_edges)

    def _frame(self) -> Any:
        """The columns that vary under numbers from 1: sets of numbers have one order, those of texts another one each
        time, and pgmpy's answers hang on it. Categories go in as such, or it would take codes for real numbers."""
        live = np.flatnonzero(~self.data.constant).tolist()
        return door("pandas").DataFrame({v + 1: self._column(v) for v in live})

    def _column(self, v: int) -> Any:
        if self.data.continuous[v]:
            return self.data.numbers[v]
        return door("pandas").Categorical.from_codes(self.data.codes[v], range(self.data.cards[v]))

    def _named(self, pairs: Iterable[tuple[int, int]]) -> list[Edge]:
        return [(self.data.names[a - 1], self.data.names[b - 1]) for a, b in sorted(pairs)]

    def network(
        self, method: str, pattern: Pattern, scorer: structure.Scorer, prior: str, said: str
    ) -> BayesianNetwork:
        names, criterion = self.data.names, scorer.criterion
        edges, bent = extension(names, *pattern)
        net = BayesianNetwork(self.event, edges, learned=True)
        net.fit(self.given, prior=prior, strength=criterion.ess)
        nats = scorer.locals([[net.index[parent] for parent in net.parents[name]] for name in names])
        named = f"bdeu({criterion.ess:g})" if criterion.name == "bdeu" else criterion.name
        net.structure = structure.Structure(
            names, net.edges, sum(nats), named, method, len(self.data), dict(zip(names, nats, strict=True)),
            evaluated=scorer.evaluated,
            notes=(f"pgmpy {version('pgmpy')}: {said}", *self.data.notes, *_notes(names, edges, pattern, bent)),
        )  # fmt: skip
        return net


def _suited(event: Any) -> Table:
    if not isinstance(event, Table):
        do = "Give a data frame or a dict of columns"
        raise StructureError(f"{event!r:.200} for a network", "events.Table: named columns", do)
    kinds = {type(column): name for name, column in event.columns.items()}
    if len(kinds) > 1 or not issubclass(next(iter(kinds)), Category | Real):
        came = ", ".join(f"{name!r} is {kind.__name__}" for kind, name in kinds.items())
        raise StructureError(
            f"Columns of which {came}", "all Category, or all Real", f"{_INSTEAD} columns of several kinds"
        )
    return event


def _score(scorer: structure.Scorer) -> Any:
    """Our scores as pgmpy's kind of object; its columns are numbered from 1."""
    base = door("pgmpy.structure_score").BaseStructureScore

    def local_score(self: Any, child: int, parents: Sequence[int]) -> float:
        return scorer.local(child - 1, [parent - 1 for parent in parents])

    return type("Score", (base,), {"__init__": lambda self: None, "local_score": local_score})()


@contextmanager
def _quiet() -> Iterator[None]:
    """pgmpy warns of its own ways, and logs what types it sees."""
    logger = logging.getLogger("pgmpy")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def extension(names: Sequence[str], directed: Sequence[Edge], undirected: Sequence[Edge]) -> tuple[list[Edge], int]:
    """A graph that keeps the directed edges and directs the others without a new v-structure (Dor and Tarsi 1992).

    Columns are taken out as sinks one by one, of those that can be one the last. Where none can, there is no such
    graph: then the one that needs the fewest edges turned, and of these the fewest new v-structures, becomes a sink.

    Returns:
        Edges (parent, child), and at how many columns that was so.
    """
    out, lines, near = ({name: set[str]() for name in names} for _ in range(3))
    for pairs, joins in ((directed, out), (undirected, lines)):
        for a, b in pairs:
            joins[a].add(b)
            near[a].add(b)
            near[b].add(a)
    for a, b in undirected:
        lines[b].add(a)

    def harm(v: str) -> tuple[int, int]:
        return len(out[v]), sum(len(near[v] - near[w] - {w}) for w in lines[v])

    left, edges, bent = list(names), [], 0
    while left:
        sink = min(reversed(left), key=harm)
        bent += harm(sink) > (0, 0)
        left.remove(sink)
        edges += [(v, sink) for v in left if v in near[sink]]
        for v in near[sink]:
            for sets in (out, near, lines):
                sets[v].discard(sink)
    place = {name: i for i, name in enumerate(names)}
    return sorted(edges, key=lambda e: (place[e[1]], place[e[0]])), bent


def _notes(names: Sequence[str], edges: Sequence[Edge], pattern: Pattern, bent: int) -> list[str]:
    """What the graph says otherwise than the pattern that it comes from."""
    if bent:
        return [f"no graph has the pattern that was found: at {bent} columns edges are directed against it"]
    fixed = set(graph.cpdag(graph.parents_of(names, edges))[0])
    loose, tied = len(set(pattern[0]) - fixed), sum(e in fixed or e[::-1] in fixed for e in pattern[1])
    if not loose and not tied:
        return []
    return [f"of the edges that the pattern directs its class leaves {loose} open, of its open ones it directs {tied}"]
