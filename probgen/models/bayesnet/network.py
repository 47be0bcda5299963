"""Bayesian networks over the columns of a table: exact, with gaps in the data."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from probgen import cliques, conditionals
from probgen.conditionals import Conditional
from probgen.errors import NotFittedError, ParameterError, StructureError, nearest
from probgen.events import Category, Checked, Column, Event, Table
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel, generator_of
from probgen.models.bayesnet import bayes, evidence, graph, learning, likelihood, posterior, queries, scoring
from probgen.models.bayesnet.byhand import read_tables, set_tables
from probgen.posterior import GROWING, POSTERIOR, Kept, prior_numbers

if TYPE_CHECKING:
    from probgen.models.bayesnet.structure import Structure
    from probgen.posterior import Draws

__all__ = ["BayesianNetwork"]


class BayesianNetwork(GenerativeModel):
    """p(x) = prod_v p(x_v | x_parents(v)) over the columns of a table. Exact, cells that are missing summed out.

    A missing cell is taken as missing at random: that it is missing says nothing about its value beyond what the
    other cells say. ``log_prob`` is then the log-probability of the cells that are there; a column that the rows lack
    is missing in all of them, and a dict of single values is one row. ``fit`` wants every column: one of None alone is
    a hidden variable. Rows of probability zero have -inf. Where no exact sum exists (a discrete child of a real parent
    that is missing) the row gets a lower bound, ``PosteriorWeighting``; where it is too large (``limit``,
    ``configurations``), a refusal that names the way out.

    ``given`` is observed cells by column name, one condition or a frame of m: ``sample(n, given=...)`` draws exactly
    from p(x | given), m * n rows, the n of each condition one after the other (impossible conditions raise
    ZeroEvidenceError); ``log_prob(x, given=...)`` is log p(x | given), for one condition or one a row.

    Arguments:
        event: Table; its columns are the variables.
        edges: Pairs (parent, child). The order in which a node's parents come is that of its table's axes.
        conditionals: Of some nodes by name, from ``probgen.conditionals``; the others get the one that suits: tables,
            linear Gaussians, logistic or Poisson regressions.
        tie: Node to another node whose parameters it shares, as the slices of a dynamic network do.
        learned: Whether the edges come from data: ``do`` then refuses effects that the data can not tell.

    Attributes:
        variables: Names in the order of the columns.
        parents, offspring: By name.
        order: Names, parents before children.
        index: Column of each name.
        discrete: Names of the categories: the variables of the clique tree, in its order; ``cards`` are their levels.
        scopes: By name, the categories of a node's family as variables of the clique tree, its parents first.
        limit: Largest clique-tree of a row, in table entries.
        configurations: Most configurations of missing discrete parents for which real cells are integrated out.
        n_rows: Rows of the fit with at least one observed cell: the n of ``bic``.

    Pearl (1988); Lauritzen and Spiegelhalter (1988); Lauritzen (1992) for linear Gaussian nodes with discrete parents.
    """

    missing_cells = True
    growing = GROWING
    event: Table
    form = "pyarrow"
    limit: int = cliques.LIMIT
    configurations: int = 10_000
    structure: "Structure | None" = None  # how ``learn`` found the graph

    def __init__(
        self,
        event: Table,
        edges: Sequence[tuple[str, str]] = (),
        conditionals: Mapping[str, Conditional] | None = None,
        tie: Mapping[str, str] | None = None,
        learned: bool = False,
    ) -> None:
        super().__init__(event)
        self.edges = _pairs(edges)
        self.parents = graph.parents_of(list(event.columns), self.edges)
        self.offspring = graph.children_of(self.parents)
        self.order = tuple(graph.topological_order(self.parents))
        self.index = {name: i for i, name in enumerate(event.columns)}
        self.conditionals = None if conditionals is None else _known(conditionals, self.parents, "conditionals")
        self.tie = None if tie is None else _known(tie, self.parents, "tie")
        if not isinstance(learned, bool):
            raise ParameterError(f"learned={learned!r}", "True or False")
        self.learned = learned
        self.discrete = tuple(name for name, column in event.columns.items() if isinstance(column, Category))
        self.cards = tuple(len(event.columns[name].levels) for name in self.discrete)  # type: ignore[attr-defined]
        place = {name: v for v, name in enumerate(self.discrete)}
        self.scopes = {name: tuple(place[n] for n in (*own, name) if n in place) for name, own in self.parents.items()}
        self.parts = nn.ModuleList(self._bind())
        self.kept = Kept()
        self.n_rows = 0
        self.log_likelihood = math.nan

    def _bind(self) -> list[Conditional]:
        """The bound conditional of each node; tied nodes share one."""
        bound: dict[str, Conditional] = {}
        for name in self.variables:
            if self._owner(name) == name:
                bound[name] = self._bound(name)
        return [bound[self._owner(name)] for name in self.variables]

    def _bound(self, name: str) -> Conditional:
        child, parents = self.columns_of(name)
        part = (self.conditionals or {}).get(name)
        if part is None:
            return conditionals.default_for(child, parents).bind(child, parents)
        if not isinstance(part, Conditional):
            raise StructureError(f"conditionals[{name!r}]={part!r}", "a part of probgen.conditionals", "Tabular(), say")
        if why := part.suits(child, parents):
            raise StructureError(
                f"{part!r} for {name!r} with parents {list(self.parents[name])}: {why}",
                "a conditional that suits",
                f"probgen.conditionals.default_for gives {type(conditionals.default_for(child, parents)).__name__}",
            )
        return part.bind(child, parents)

    def _owner(self, name: str) -> str:
        """The node whose parameters a node uses."""
        seen = [name]
        while (other := (self.tie or {}).get(seen[-1])) is not None:
            if other in seen:
                raise StructureError(f"tie goes round in a circle: {' -> '.join([*seen, other])}", "one node that owns")
            seen.append(other)
        if seen[-1] != name:
            self._refuse_tie(name, seen[-1])
        return seen[-1]

    def _refuse_tie(self, name: str, owner: str) -> None:
        if (self.conditionals or {}).get(name) is not None:
            raise StructureError(f"{name!r} has a conditional and is tied to {owner!r}", "one of the two")
        (a, of_a), (b, of_b) = self.columns_of(name), self.columns_of(owner)
        if [_kind(c) for c in (a, *of_a)] != [_kind(c) for c in (b, *of_b)]:
            raise StructureError(
                f"{name!r} is tied to {owner!r}, but their columns or parents differ",
                "nodes of the same levels with parents of the same levels in the same order",
            )

    # What it is made of

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(self.index)

    def columns_of(self, name: str) -> tuple[Column, tuple[Column, ...]]:
        """The column of a node, and those of its parents."""
        return self.event.columns[name], tuple(self.event.columns[parent] for parent in self.parents[name])

    def conditional(self, name: str) -> Conditional:
        """p(name | parents), with its parameters."""
        if name not in self.index:
            raise ParameterError(f"There is no variable {name!r}", "", nearest(str(name), self.index))
        return self.parts[self.index[name]]  # type: ignore[return-value]

    @property
    def plan(self) -> cliques.Plan:
        """How missing categories are summed out; ``plan.cost()`` says what that takes before anything runs."""
        return scoring.whole_plan(self)

    @property
    def n_params(self) -> int:
        """Free parameters; tied ones count once."""
        return sum(part.n_params for part in {id(part): part for part in self.parts}.values())  # type: ignore[misc]

    def aic(self) -> float:
        """Akaike's criterion of the fit, in nats: 2 n_params - 2 log-likelihood; lower is better."""
        self._check_learned()
        return 2 * self.n_params - 2 * self.log_likelihood

    def bic(self) -> float:
        """Schwarz's criterion of the fit, in nats: n_params log n - 2 log-likelihood; lower is better."""
        self._check_learned()
        return self.n_params * math.log(self.n_rows) - 2 * self.log_likelihood

    def _check_learned(self) -> None:
        if not self.n_rows:
            raise NotFittedError(
                "This network has not been fitted to data", "a fit, whose log-likelihood is known", "Call .fit(x) first"
            )

    # How it is made

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Table):
            return f"its variables are the columns of a table, not {type(event).__name__}"
        for name, column in event.columns.items():
            if why := conditionals.default_for(column, ()).suits(column, ()):
                return f"column {name!r}: {why}"
        return None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)  # type: ignore[arg-type]

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> Self:
        """A network of categories from its tables; it counts as fitted.

        Arguments:
            tables: Of each variable, in any order, one of

                - ``{"no": 0.8, "yes": 0.2}``: the levels of a variable without parents and their probabilities;
                - ``("rain", {"no": {"dry": 1.0, "wet": 0.0}, "yes": {"dry": 0.1, "wet": 0.9}})``: its parent, or a
                  tuple of several, and a row for each level (each tuple of levels) of it;
                - ``(levels, probabilities)`` or ``(levels, parents, probabilities)``: an array, its axes the parents,
                  then the levels.

        Raises:
            StructureError: a cycle, an unknown parent, a missing or unknown configuration.
            ParameterError: a row that does not sum to 1 (within 1e-6), negative or NaN probabilities, a wrong shape.
        """
        levels, edges, arrays = read_tables(tables)
        net = cls(Table({name: Category(own) for name, own in levels.items()}), edges)
        set_tables(net, arrays)
        return net.imported()

    def imported(self, *notes: str) -> Self:
        """This network, its parameters declared to be set: it counts as fitted."""
        self.report = FitReport((), 0, "imported", notes=notes)
        return self.eval()

    @classmethod
    def load_file(cls, path: str | PathLike) -> "BayesianNetwork":
        """A network from a BIF file (.bif, .bif.gz)."""
        from probgen.models.bayesnet import bif

        return bif.load(path)

    def save_file(self, path: str | PathLike) -> Path:
        """Writes a network of tables to a BIF file."""
        from probgen.models.bayesnet import bif

        self._check_fitted()
        bif.save(self, path)
        return Path(path)

    @classmethod
    def from_pyro(cls, model: Any, *args: Any, **kwargs: Any) -> "BayesianNetwork":
        """The network of a Pyro program of discrete sites."""
        from probgen.models.bayesnet import program

        return program.from_pyro(cls, model, *args, **kwargs)

    def sample_networks(self, n: int, *, seed: int | None = None, approximate: bool = False) -> "list[BayesianNetwork]":
        """n networks whose tables are drawn from their posterior; see ``table_posterior``."""
        self._check_fitted()
        return posterior.sample_networks(self, n, generator_of(seed), approximate)

    @classmethod
    def learn(cls, data: Any, **options: Any) -> "BayesianNetwork":
        """The graph and its tables from data; options are those of ``structure.learn``."""
        from probgen.models.bayesnet import structure

        return structure.learn(data, **options)

    @classmethod
    def dynamic(
        cls,
        event: Table,
        within: Sequence[tuple[str, str]] = (),
        between: Sequence[tuple[str, str]] = (),
        length: int = 2,
        **options: Any,
    ) -> "BayesianNetwork":
        """A two-slice template unrolled to columns "x[0]", "x[1]", ...; see ``dynamic.dynamic``."""
        from probgen.models.bayesnet import dynamic

        return dynamic.dynamic(event, within, between, length, **options)

    def of_length(self, length: int) -> "BayesianNetwork":
        """An unrolled network of another number of slices, with the parameters of this one."""
        from probgen.models.bayesnet import dynamic

        return dynamic.of_length(self, length)

    def rows(self, sequences: Any, **options: Any) -> Any:
        """Sequences as rows of an unrolled network, cells beyond their ends missing; see ``dynamic.rows``."""
        from probgen.models.bayesnet import dynamic

        return dynamic.rows(self, sequences, **options)

    # Hooks

    def model(self, x: Tensor | None = None, given: None = None, n: int = 1) -> Tensor | None:
        from probgen.models.bayesnet import program

        return program.model(self, x, n)

    def _fit(
        self,
        x: Tensor,
        given: None,
        *,
        generator: torch.Generator,
        prior: str = "none",
        strength: float = 1.0,
        method: str = "em",
        max_iter: int = 200,
        tol: float = 1e-8,
        restarts: int | None = None,
        start: str = "cases",
        steps: int | None = None,
        batch_size: int = 256,
        learning_rate: float = 0.02,
        progress: bool | None = None,
        draws: int = 500,
        chains: int = 4,
        warmup: int = 0,
    ) -> FitReport:
        """Maximum likelihood, or the maximum of likelihood and prior: counting where no cell is missing, else EM.

        ``prior``: "none", "dirichlet" (``strength`` pseudo-counts a cell), "bdeu" (``strength`` rows in all) or "k2".
        ``method``: "em", monotone or it raises, or "gradient": quasi-Newton, or Adam of so many ``steps`` of
        ``batch_size`` rows at ``learning_rate``.
        "conjugate" (so too "nuts", "svi", "laplace"): counts, and ``draws`` of each of ``chains`` chains of the tables'
        exact posterior, in ``.draws``; complete rows, tables alone, and a ``prior``. No warm-up is needed.
        ``tol``: gain in nats a row below which an iteration counts as converged.
        ``restarts``: None takes 1, or 5 where some variable was never observed.
        ``start``: "cases", from the rows that have each node's family, or "current" to go on from the parameters.
        """
        if given is not None:
            raise ParameterError("given= in fit", "data alone: a network is fitted to all its columns", "Leave it out")
        if start == "current":
            self._check_fitted()
        if method in bayes.BAYESIAN:
            return bayes.fit_conjugate(self, x, generator, method, draws, chains, prior=prior, strength=strength)
        report = learning.fit(
            self, x, generator=generator, prior=prior, strength=strength, method=method, max_iter=max_iter, tol=tol,
            restarts=restarts, start=start, steps=steps, batch_size=batch_size, learning_rate=learning_rate,
            progress=progress,
        )  # fmt: skip
        self.kept.clear()
        return report

    def _sample(self, n: int, given: "evidence.Conditions | None", *, generator: torch.Generator) -> Tensor:
        self._refuse_nan()
        if self.kept and self.tie:
            return bayes.parametric(self).sample(n, given, generator)
        if given is None:
            return queries.ancestral(self, n, generator)
        return queries.conditional_sample(self, given.cells, n, generator)

    def _log_prob(self, x: Tensor, given: "evidence.Conditions | None", *, generator: torch.Generator) -> LogProb:
        self._refuse_nan()
        if self.kept and self.tie:
            return bayes.parametric(self).log_prob(x, given)
        if given is None:
            found = likelihood.log_prob(self, x, generator)
        else:
            found = evidence.conditional_log_prob(self, x, given, generator)
        return found.replace(target=POSTERIOR) if self.kept else found

    @property
    def draws(self) -> "Draws | None":
        """Of the tables, after a conjugate fit; else None."""
        return bayes.parametric(self).draws() if self.kept else None

    def _log_lik_draws(self, x: Tensor, given: None, generator: torch.Generator) -> Tensor:
        return bayes.parametric(self).log_lik(x, given)

    _log_prior_draws, _sample_prior = bayes.log_prior, bayes.sample_prior
    _parametric, _prior_numbers = bayes.parametric, prior_numbers

    def _answer(self, how: Callable, x: Any, given: Any, seed: int | None, about: Callable) -> LogProb:
        """In rows to score columns may be lacking; in rows to learn from they may not."""
        self._check_fitted()
        return super()._answer(how, evidence.checked(self, x), given, seed, about)

    def _check(self, x: Any) -> Checked:
        return x if isinstance(x, Checked) else super()._check(x)

    def _check_given(self, given: Any, data: Any) -> "evidence.Conditions | None":
        """``given`` is observed parts of the event: some of its columns."""
        return None if given is None else evidence.conditions(self, given, None if data is None else len(data))

    def scored(self, x: Tensor) -> "scoring.Scored":
        """Checked rows as factors, for ``probgen.cliques``.

        Raises:
            StructureError: rows that differ in which real cells are missing: ``groups`` takes them apart.
        """
        return scoring.scored(self, x)

    def groups(self, x: Tensor, complete: bool = False) -> "list[scoring.Group]":
        """Checked rows in groups that share their factors; ``complete`` keeps what a likelihood can leave out."""
        return list(scoring.groups(self, x, complete))

    def _refuse_nan(self) -> None:
        for name, value in self.named_parameters():
            if bool(value.isnan().any()):
                raise ParameterError(
                    f"{name} holds NaN", "numbers", "Fit the model again, or load it where it was whole"
                )

    # Questions

    def marginals(self, x: Any = None) -> "queries.Marginals":
        """p(x_v | the cells that are there) of each variable, row by row.

        Arguments:
            x: Rows with gaps; columns may be left out, and a dict of single values is one row. None: nothing observed.

        Raises:
            ZeroEvidenceError: a row of probability zero; the first one is named.
            StructureError: rows beyond the limits, or without an exact answer; the variable is named.
        """
        cells, keys, _ = self._asked(x)
        return queries.marginals(self, cells, keys)

    def mpe(self, x: Any = None) -> Any:
        """The most probable completion of each row, in the form that came in, a pandas index kept; what was seen stays.

        Reals get the joint mode together with the categories.

        Raises:
            ZeroEvidenceError, StructureError: as of ``marginals``.
        """
        cells, keys, form = self._asked(x)
        return evidence.labelled(self.event.restore(queries.mpe(self, cells, keys), form), x)

    def _asked(self, x: Any) -> tuple[Tensor, np.ndarray, Any]:
        self._check_fitted()
        self._refuse_nan()
        return evidence.rows(self, x)

    def do(self, assignments: Mapping[str, Any], assume_graph: bool = False) -> "BayesianNetwork":
        """The network after an intervention: the nodes are set, the edges into them cut."""
        self._check_fitted()
        from probgen.models.bayesnet import causal

        return causal.do(self, assignments, assume_graph)

    def counterfactual(self, x: Any, do: Mapping[str, Any], **options: Any) -> Any:
        """What each row would have been under ``do``; see ``causal.counterfactual``."""
        self._check_fitted()
        from probgen.models.bayesnet import causal

        return causal.counterfactual(self, x, do, **options)

    def table_posterior(self, name: str, approximate: bool = False) -> Tensor:
        """Dirichlet concentrations of a node's table after a fit, shaped as the table.

        ``approximate``: takes expected counts where cells of the family were missing.
        """
        self._check_fitted()
        return posterior.table_posterior(self, name, approximate)

    def d_separated(self, a: str | Iterable[str], b: str | Iterable[str], given: str | Iterable[str] = ()) -> bool:
        """Whether the graph alone makes a and b independent given a third set."""
        return graph.d_separated(self.parents, a, b, given)

    def markov_blanket(self, name: str) -> tuple[str, ...]:
        """Parents, children and the children's other parents: given them nothing else tells about a variable."""
        return graph.markov_blanket(self.parents, name)

    def cpdag(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Directed and undirected edges of the graph's equivalence class."""
        return graph.cpdag(self.parents)

    def plot(self, path: str | PathLike | None = None, **options: Any) -> Any:
        """The graph as a picture, written to a PNG file or shown in a notebook; see ``pictures.plot``."""
        from probgen.models.bayesnet import pictures

        return pictures.plot(self, path, **options)


def _pairs(edges: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(edges, str | bytes) or not isinstance(edges, Iterable):
        raise StructureError(f"edges={edges!r}", "pairs (parent, child)", "edges=[('rain', 'wet')]")
    found = []
    for edge in edges:
        if not isinstance(edge, list | tuple) or len(edge) != 2 or not all(isinstance(name, str) for name in edge):
            do = "edges=[('rain', 'wet')]; names are text, 0 is '0'"
            raise StructureError(f"edge {edge!r}", "a pair of names (parent, child)", do)
        found.append((edge[0], edge[1]))
    return tuple(found)


def _known(given: Any, names: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise StructureError(f"{what}={given!r}", "a dict by variable name")
    for name in (*given, *(given.values() if what == "tie" else ())):
        if name not in names:
            raise StructureError(f"{what} names {name!r}, which is no variable", "", nearest(str(name), names))
    return dict(given)


def _kind(column: Column) -> tuple[str, int]:
    return type(column).__name__, len(column.levels) if isinstance(column, Category) else 0
