"""Markov fields over the columns of a table of categories."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from probgen import cliques
from probgen.errors import NotFittedError, ParameterError, nearest
from probgen.events import Category, Event, Table
from probgen.logprob import LogProb
from probgen.model import Estimator, FitReport, GenerativeModel, generator_of
from probgen.models.markovfield import evidence, learning, partition, queries
from probgen.models.markovfield import factors as making
from probgen.models.markovfield.local import Local, colours

__all__ = ["MarkovField"]

_Factors = Mapping[tuple[str, ...], Any] | Sequence[Sequence[str]]


class MarkovField(GenerativeModel):
    """p(x) = 1/Z exp(sum over factors of theta_f(x_f)) over variables with finitely many levels.

    log Z is exact where the clique plan (or one side of a bipartite field, such as a restricted Boltzmann machine of
    20 hidden units) is affordable; else ``log_prob`` refuses and names the estimators: ``by=TreeReweighted()`` bounds
    log p from below, ``by=PartitionAIS()`` from above in expectation, ``by=LoopyBP()`` estimates it. Cells that are
    missing (at random) and hidden variables are summed out.

    Arguments:
        factors: Log-potentials (natural logarithms; -inf where impossible) by the names of their variables, axes in
            that order; the field then counts as fitted. Or the names alone, for ``fit`` to learn.
        event: Table of Category columns, the visible variables. None: from ``levels``, or 0, 1, ... by the tables.
        levels: Of some variables, by name: a tuple of levels or their number.
        hidden: Names of variables that are never observed, or a dict of their levels. ``log_prob`` and ``sample`` are
            of the visible ones.

    Every variable needs a factor; a uniform one says so by zeros. Likelihoods in nats.

    Koller and Friedman (2009), chapters 4, 9, 20.
    """

    missing_cells = True
    event: Table
    form = "pyarrow"
    limit: int = cliques.LIMIT

    def __init__(
        self,
        factors: _Factors,
        event: Table | None = None,
        levels: Mapping[str, Any] | None = None,
        hidden: Mapping[str, Any] | Sequence[str] | None = None,
    ) -> None:
        parts = making.read(factors, event, levels, hidden)
        super().__init__(parts.event)
        self.factors, self.levels, self.hidden = parts.scopes, None, parts.hidden or None
        self.variables = (*parts.event.columns, *parts.hidden)
        self.index = {name: i for i, name in enumerate(self.variables)}
        self.levels_of = {n: c.levels for n, c in parts.event.columns.items() if isinstance(c, Category)} | parts.hidden
        self.cards = tuple(len(self.levels_of[name]) for name in self.variables)
        scopes = [tuple(self.index[name] for name in scope) for scope in parts.scopes]
        self.plan = cliques.Plan.compile(self.cards, scopes)
        self.groups = making.groups_of(self.cards, scopes)
        self.blocks = nn.ParameterList(map(nn.Parameter, making.blocks_of(self.cards, self.groups, parts.tables)))
        self.unseen = torch.arange(len(parts.event.columns), len(self.variables))
        self.simple = len(colours(self.cards, self.groups, self.unseen.tolist())) <= 1
        self.n_rows, self.log_likelihood = 0, math.nan
        if parts.tables is not None:
            self.imported()

    # How it is made

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return making.unsuited(event)

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        """Factors of single variables and of all pairs where these can be summed, else of neighbouring columns."""
        if "factors" in options or not isinstance(event, Table) or making.unsuited(event):
            return cls(options.pop("factors", ()), event, **options)  # type: ignore[arg-type]
        names, cards = list(event.columns), [len(c.levels) for c in event.columns.values() if isinstance(c, Category)]
        single = [(name,) for name in names]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        if math.prod(cards) > 1 << 16:
            pairs = list(pairwise(names))
        return cls([*single, *pairs], event, **options)

    @classmethod
    def grid(
        cls, rows: int, cols: int, *, unary: Any = None, across: Any = None, down: Any = None, levels: int = 2
    ) -> "MarkovField":
        """A lattice; cell (i, j) is the variable "xi_j" of levels 0, 1, ...

        Arguments:
            unary: Log-potentials of cells, (rows, cols, levels), or (levels,) for all alike.
            across, down: Of neighbours, (rows, cols - 1, levels, levels) and (rows - 1, cols, levels, levels), or
                (levels, levels) for all alike. Nothing given: a field to be fitted.
        """
        found = making.grid(rows, cols, unary, across, down, levels)
        names = [f"x{i}_{j}" for i in range(rows) for j in range(cols)]
        return cls(found, levels=dict.fromkeys(names, levels))

    @classmethod
    def ising(
        cls, rows: int, cols: int, coupling: float = 0.4, field: float = 0.0, periodic: bool = False
    ) -> "MarkovField":
        """log p(s) = coupling * sum over neighbours of s s' + field * sum of s - log Z; spins -1 and 1 (Ising 1925)."""
        found = making.ising(rows, cols, coupling, field, periodic)
        return cls(found, levels={name: (-1, 1) for scope in found for name in scope})

    @classmethod
    def rbm(
        cls, visible: int, hidden: int, *, weights: Any = None, visible_bias: Any = None, hidden_bias: Any = None,
        columns: Sequence[str] | None = None,
    ) -> "MarkovField":  # fmt: skip
        """A restricted Boltzmann machine: log p(v, h) = v W h + a v + b h - log Z, h summed out (Smolensky 1986).

        Arguments:
            weights, visible_bias, hidden_bias: (visible, hidden), (visible,), (hidden,). None given: to be fitted.
            columns: Names of the visible units, "v0", ... where None.
        """
        found = making.rbm(visible, hidden, weights, visible_bias, hidden_bias)
        names = {f"v{i}": f"v{i}" for i in range(visible)}
        if columns is not None:
            if len(set(columns)) != visible:
                raise ParameterError(
                    f"{len(set(columns))} names for {visible} visible units", "one each, all different"
                )
            names = dict(zip(names, columns, strict=True))
        units = [f"h{j}" for j in range(hidden)]
        named = [tuple(names.get(name, name) for name in scope) for scope in found]
        if isinstance(found, dict):
            return cls(
                dict(zip(named, found.values(), strict=True)), levels=dict.fromkeys(names.values(), 2), hidden=units
            )
        return cls(named, levels=dict.fromkeys(names.values(), 2), hidden=dict.fromkeys(units, 2))

    @classmethod
    def load_file(cls, path: str | PathLike) -> "MarkovField":
        """A field from a UAI file (MARKOV)."""
        from probgen.models.markovfield import uai

        return uai.load(cls, path)

    def save_file(self, path: str | PathLike) -> Path:
        """Writes the potentials to a UAI file; hidden variables come last there, names and levels are numbers."""
        from probgen.models.markovfield import uai

        self._check_fitted()
        return uai.save(self, path)

    def load_evidence(self, path: str | PathLike) -> Any:
        """Rows of a UAI evidence file, for the questions and for ``given``; variables go by their order."""
        from probgen.models.markovfield import uai

        return self.event.restore(uai.read_evidence(self, path), "pyarrow")

    def imported(self, *notes: str) -> Self:
        """This field, its potentials declared to be set: it counts as fitted."""
        self.report = FitReport((), 0, "imported", notes=notes)
        return self.eval()

    # What it is made of

    def potential(self, *names: str) -> np.ndarray:
        """Log-potentials of the factor over some variables, axes in the order of the names."""
        for place, scope in enumerate(self.factors):
            if set(scope) == set(names):
                table = self.tables()[place].detach().numpy()
                return table.transpose([scope.index(name) for name in names]).copy()
        raise ParameterError(
            f"There is no factor over {names}", "", nearest(", ".join(names), map(", ".join, self.factors))
        )

    def tables(self, blocks: Any = None) -> list[Tensor]:
        """The log-table of each factor, in the order of ``factors``, for ``probgen.cliques``; None: no gradients."""
        blocks = self.detached() if blocks is None else blocks
        found = [Tensor()] * len(self.factors)
        for group, block in zip(self.groups, blocks, strict=True):
            for place, table in zip(group.places, block.unbind(0), strict=True):
                found[place] = table
        return found

    def detached(self) -> list[Tensor]:
        return [block.detach() for block in self.blocks]

    def local(self, grad: bool = False) -> Local:
        """The potentials laid out for all variables at once."""
        return Local(self.cards, self.groups, list(self.blocks) if grad else self.detached())

    def codes(self, cells: Tensor) -> Tensor:
        """Checked cells (n, visible) as codes of all variables (n, V): hidden ones are open."""
        return nn.functional.pad(cells, (0, len(self.unseen)), value=torch.nan)

    @property
    def nothing(self) -> Tensor:
        """One row in which nothing is observed, (1, V)."""
        return torch.full((1, len(self.variables)), torch.nan, dtype=torch.float64)

    @property
    def n_params(self) -> int:
        """Free parameters: of all interactions among the variables of some factor, counted once each."""
        return learning.free_parameters(self)

    def aic(self) -> float:
        """Akaike's criterion of the fit, in nats: 2 n_params - 2 log-likelihood; lower is better."""
        self._check_likelihood()
        return 2 * self.n_params - 2 * self.log_likelihood

    def bic(self) -> float:
        """Schwarz's criterion of the fit, in nats: n_params log n - 2 log-likelihood; lower is better."""
        self._check_likelihood()
        return self.n_params * math.log(self.n_rows) - 2 * self.log_likelihood

    def _check_likelihood(self) -> None:
        if math.isnan(self.log_likelihood):
            raise NotFittedError("This field's likelihood was never computed", 'a fit by method="gradient"')

    def _refuse_bad(self) -> None:
        for block in self.detached():
            if bool(block.isnan().any() | block.isposinf().any() | block.isneginf().flatten(1).all(1).any()):
                raise ParameterError(
                    "A log-potential is NaN, +inf, or all of a factor's are -inf", "numbers",
                    "Fit the model again, or load it where it was whole",
                )  # fmt: skip

    # Hooks

    def model(self, x: Tensor | None = None, given: None = None, n: int = 1) -> Any:
        from probgen.models.markovfield import program

        return program.model(self, x, n)

    def _fit(
        self,
        x: Tensor,
        given: None,
        *,
        generator: torch.Generator,
        method: str = "gradient",
        l2: float = 0.0,
        max_iter: int = 500,
        tol: float = 1e-8,
        steps: int = 2000,
        chains: int = 100,
        batch_size: int = 100,
        sweeps: int = 1,
        learning_rate: float = 0.01,
    ) -> FitReport:
        """Maximum likelihood, penalised by l2/2 times the sum of squared log-potentials (in nats a row).

        ``method``: "gradient" (exact, quasi-Newton; where log Z is affordable), "persistent" (persistent contrastive
        divergence: ``steps`` of Adam with ``chains`` Gibbs chains of ``sweeps`` sweeps a step; its objective is never
        computed) or "pseudo" (pseudo-likelihood; complete rows, no hidden variables).
        ``max_iter``, ``tol``: of quasi-Newton; gain in nats a row below which it counts as converged.
        """
        if given is not None:
            raise ParameterError("given= in fit", "data alone", "Leave it out")
        options = learning.Options(method, l2, max_iter, tol, steps, chains, batch_size, sweeps, learning_rate)
        return learning.fit(self, x, generator, options)

    def _sample(
        self,
        n: int,
        given: "evidence.Conditions | None",
        *,
        generator: torch.Generator,
        method: str = "auto",
        sweeps: int = 1000,
    ) -> Tensor:
        """``method``: "exact", "gibbs" (``sweeps`` from independent starts, one chain a draw), "auto": exact where
        that is affordable."""
        self._check_method(method, sweeps)
        self._refuse_bad()
        cells = None if given is None else given.cells
        return queries.draw(self, n, cells, generator, sweeps, method)[:, : len(self.event.columns)]

    def _check_method(self, method: str, sweeps: int) -> None:
        if method not in ("auto", "exact", "gibbs"):
            raise ParameterError(f"method={method!r}", '"auto", "exact" or "gibbs"')
        making.whole("sweeps", sweeps)

    def sample_target(self, given: Any = None, method: str = "auto", sweeps: int = 1000) -> str:
        """ "p" where draws are exact, else what the Gibbs chains have reached."""
        cells = None if given is None else evidence.conditions(self, given, None).cells
        exact = method != "gibbs" and queries.exactly(self, cells)
        return "p" if exact else f"p^Gibbs({sweeps} sweeps)"

    def _log_prob(self, x: Tensor, given: "evidence.Conditions | None", *, generator: torch.Generator) -> LogProb:
        self._refuse_bad()
        if given is not None:
            return queries.conditional_log_prob(self, x, given)
        if partition.affordable(self) is None:
            return queries.refused(self, len(x))
        return queries.normalised(self, x, partition.exact(self))

    def _check_given(self, given: Any, data: Any) -> "evidence.Conditions | None":
        """``given`` is observed parts of the event: some of its columns."""
        return None if given is None else evidence.conditions(self, given, None if data is None else len(data))

    # Questions

    def log_partition(self, by: Any = None, seed: int | None = None) -> partition.Partition:
        """log Z and its kind; ``float()`` of it is the number.

        Arguments:
            by: LoopyBP(), TreeReweighted(), PartitionAIS() or PartitionReverseAIS(); None: exact.

        Raises:
            StructureError: no exact sum is affordable (``plan.cost()`` says what it would take).
        """
        self._check_fitted()
        self._refuse_bad()
        generator = generator_of(seed)
        if by is None:
            return partition.exact(self)
        if not hasattr(by, "log_partition"):
            raise ParameterError(f"by={by!r}", "LoopyBP(), TreeReweighted(), PartitionAIS() or PartitionReverseAIS()")
        with torch.no_grad():
            return by.log_partition(self, generator)

    def pseudo_log_prob(self, x: Any) -> LogProb:
        """Sum over variables of log p(x_v | all others) of each row: a score, no likelihood (Besag 1975)."""
        return self.log_prob(x, by=learning.PseudoLikelihood())

    def marginals(self, x: Any = None, by: Estimator | None = None) -> queries.Marginals:
        """p(x_v | the cells that are there) of each variable, row by row.

        Arguments:
            x: Rows with gaps; columns may be left out, and a dict of single values is one row. None: nothing observed.
            by: LoopyBP() estimates them; None: exact.

        Raises:
            ZeroEvidenceError: a row of probability zero; the first one is named.
            StructureError: rows beyond the limit.
        """
        cells, keys, _ = self._asked(x)
        if by is None:
            return queries.marginals(self, cells, keys)
        if not hasattr(by, "marginals"):
            raise ParameterError(f"by={by!r}", "LoopyBP(), or None for exact marginals")
        return by.marginals(self, cells, keys)

    def mpe(self, x: Any = None) -> Any:
        """The most probable completion of each row jointly with the hidden variables, in the form that came in.

        Raises:
            ZeroEvidenceError, StructureError: as of ``marginals``.
        """
        cells, keys, form = self._asked(x)
        return self.event.restore(queries.mpe(self, cells, keys), form)

    def _asked(self, x: Any) -> tuple[Tensor, np.ndarray, Any]:
        self._check_fitted()
        self._refuse_bad()
        return evidence.rows(self, x)

    def plot(self, path: str | PathLike, **options: Any) -> Path:
        """Which variables share a factor, as a picture."""
        from probgen.models.markovfield import pictures

        return pictures.plot(self, path, **options)
