"""Finite mixtures of any emission, fitted by EM with restarts. Exact."""

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen import emissions
from probgen.errors import FitError, ParameterError, StructureError, nearest
from probgen.events import Array, Event
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.mixture import bayes
from probgen.posterior import GROWING, METHODS, Kept, prior_numbers
from probgen.training import ALONE, Progress, Ranks, joined

if TYPE_CHECKING:
    from probgen.posterior import Draws

__all__ = ["Mixture"]

Statistics = dict[str, Tensor]


_TIMED = 2000  # rows that tell what an iteration costs


class Mixture(GenerativeModel):
    """p(x) = sum_k w_k p_k(x): exact, with missing cells integrated out.

    Arguments:
        event: Array or Table.
        components: How many, K.
        emission: p_k, from ``probgen.emissions``; None takes the one that suits the event (full-covariance normals for
            reals, tables for few levels, discretised normals for many levels and rounded reals, a product for tables).
            ``FactorNormal(dim, rank)`` makes a mixture of factor analysers, with ``noise="spherical"`` of
            probabilistic PCA; one component is plain factor analysis or PPCA.

    Dempster, Laird and Rubin (1977). Each restart begins at k-means++ centres; the best optimum is kept and the spread
    of optima reported. Likelihoods in nats; ``aic``, ``bic`` after a fit.
    """

    missing_cells = True
    growing = GROWING

    def __init__(self, event: Event, components: int = 8, emission: emissions.Emission | None = None) -> None:
        super().__init__(event)
        if isinstance(components, bool) or not isinstance(components, int) or components < 1:
            raise ParameterError(f"components={components!r}", "a whole number, at least 1")
        self.components = components
        chosen = emissions.for_event(event) if emission is None else emission
        width = max(math.prod(event.shape), 1)  # type: ignore[attr-defined]
        if not isinstance(chosen, emissions.Emission) or chosen.width != width or chosen.covariates:
            raise StructureError(
                f"emission={chosen!r}", f"an emission over {width} cells, no covariates", "probgen.emissions.for_event"
            )
        self.emission = chosen.with_states(components)
        self.logits = nn.Parameter(torch.zeros(components, dtype=torch.float64))
        self.kept = Kept()
        self.n_rows = 0
        self.log_likelihood = math.nan

    @classmethod
    def suits(cls, event: Event) -> str | None:
        chosen = emissions.for_event(event)
        return chosen if isinstance(chosen, str) else None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        image = isinstance(event, Array) and event.dims > 16
        defaults: dict[str, Any] = {"components": 32 if image else 8}
        if image and not event.discrete:
            defaults["emission"] = emissions.Normal(event.dims, "diag")  # type: ignore[attr-defined]
        return cls(event, **{**defaults, **options})

    def weights(self) -> Tensor:
        """Mixture weights, shape (K,)."""
        return self.logits.softmax(0)

    def model(self, x: Tensor | None = None, given: None = None, n: int = 1) -> Tensor:
        n = n if x is None else len(x)
        with pyro.plate("rows", n):
            weights = dist.Categorical(logits=self.logits.log_softmax(0))
            k = pyro.sample("component", weights, infer={"enumerate": "parallel"})
            cells = None if x is None else x.reshape(n, -1)
            return self.emission.observe("x", k, cells).reshape(n, *self.event.shape)  # type: ignore[attr-defined]

    def bayes_model(self, x: Any) -> None:
        """A Pyro program with priors over the parameters and the components summed out, for NUTS and SVI.

        Sites: "weights", and one for each raw parameter of the emission, "emission.loc" and the like.
        """
        bayes.bayes_model(self, self._check(x).x)

    def _joint(self, cells: Tensor) -> Tensor:
        """log p(x, k), shape (n, K)."""
        return self.emission.log_prob(cells) + self.logits.log_softmax(0)

    def _chunks(self, cells: Tensor) -> Iterator[Tensor]:
        """Rows in pieces whose work fits in the cache; whole where the emission's statistics don't add up."""
        if not self.emission.additive:
            return iter([cells])
        return iter(cells.split(max(256, (1 << 19) // (self.components * cells.shape[1]))))

    def _log_prob(self, x: Tensor, given: None, *, generator: torch.Generator) -> LogProb:
        if self.kept:
            return bayes.parametric(self).log_prob(x, given)
        cells = x.reshape(len(x), -1)
        nats = torch.cat([self._joint(chunk).logsumexp(1) for chunk in self._chunks(cells)])
        return LogProb(Kind.EXACT, nats, by=f"{self.components} components summed")

    def responsibilities(self, x: Any) -> Tensor:
        """p(k | x), shape (n, K); NaN never: a row impossible under all components has equal shares."""
        self._check_fitted()
        cells = self._check(x).x.reshape(-1, self.emission.width)
        with torch.no_grad():
            return torch.cat([_shares(self._joint(chunk))[0] for chunk in self._chunks(cells)])

    def _sample(self, n: int, given: None, *, generator: torch.Generator) -> Tensor:
        return bayes.parametric(self).sample(n, given, generator) if self.kept else self.drawn(n, generator)

    def drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """n rows from the parameters in place."""
        k = torch.multinomial(self.weights(), n, replacement=True, generator=generator)
        return self.emission.sample(k, generator).reshape(n, *self.event.shape)  # type: ignore[attr-defined]

    # The posterior of the parameters

    @property
    def draws(self) -> "Draws | None":
        """Of the parameters, after a Bayesian fit; else None."""
        return bayes.parametric(self).draws() if self.kept else None

    def _log_lik_draws(self, x: Tensor, given: None, generator: torch.Generator) -> Tensor:
        return bayes.parametric(self).log_lik(x, given)

    def _log_prior_draws(self) -> Tensor:
        return bayes.parametric(self).log_prior()

    _parametric = bayes.parametric
    _prior_numbers = prior_numbers

    def _sample_prior(self, n: int, given: None, generator: torch.Generator) -> Tensor:
        return bayes.parametric(self).sample_prior(n, given, generator)

    @property
    def n_params(self) -> int:
        """Free parameters."""
        return self.components - 1 + self.emission.n_params

    def aic(self) -> float:
        """Akaike's criterion of the fit, in nats: 2 n_params - 2 log-likelihood; lower is better."""
        self._check_fitted()
        return 2 * self.n_params - 2 * self.log_likelihood

    def bic(self) -> float:
        """Schwarz's criterion of the fit, in nats: n_params log n - 2 log-likelihood; lower is better."""
        self._check_fitted()
        return self.n_params * math.log(self.n_rows) - 2 * self.log_likelihood

    def _fit(
        self,
        x: Tensor,
        given: None,
        *,
        generator: torch.Generator,
        method: str = "em",
        restarts: int = 4,
        max_iter: int = 300,
        tol: float = 1e-5,
        budget: float | None = None,
        progress: bool | None = None,
        draws: int = 500,
        chains: int = 4,
        warmup: int = 500,
    ) -> FitReport:
        """EM. ``tol``: gain in nats a cell below which an iteration counts as converged.

        ``method``: "em"; or "nuts", "svi" or "laplace", which go on from there to draws of the posterior under
        ``bayes_model``'s priors, ``draws`` of each of ``chains`` chains, NUTS after ``warmup`` transitions. ``.draws``
        has them, ``log_prob`` and ``sample`` average over them, and the parameters in place are the posterior mode.
        Components may change places within and between chains.

        ``budget``: seconds, turned once into a number of restarts and iterations, and where they are few of rows, which
        the report records.
        """
        if not (isinstance(restarts, int) and isinstance(max_iter, int)) or min(restarts, max_iter) < 1 or not tol >= 0:
            raise ParameterError(
                f"restarts={restarts}, max_iter={max_iter}, tol={tol}", "whole numbers >= 1, and tol >= 0"
            )
        if method not in ("em", *METHODS):
            known = ("em", *METHODS)
            raise ParameterError(f"method={method!r}", ", ".join(known), nearest(str(method), known))
        from probgen.posterior import Plan

        plan = Plan(method, draws, chains, warmup, progress=progress) if method in METHODS else None
        good = {name: value.clone() for name, value in self.state_dict().items()}
        if plan is not None:
            self.emission.priors()  # refuses before the search
        report = self._by_em(x, generator, restarts, max_iter, tol, budget, progress)
        if plan is None:
            self.kept.clear()
            return report
        try:
            report = bayes.fit_bayes(self, x, plan, generator)
        except BaseException:
            self.kept.clear()
            self.load_state_dict({n: v for n, v in good.items() if not n.startswith("kept.")}, strict=False)
            raise
        with torch.no_grad():
            nats = [self._joint(chunk).logsumexp(1).sum() for chunk in self._chunks(x.reshape(len(x), -1))]
        self.log_likelihood = float(sum(nats))
        return report

    @torch.no_grad()
    def _by_em(
        self,
        x: Tensor,
        generator: torch.Generator,
        restarts: int,
        max_iter: int,
        tol: float,
        budget: float | None,
        progress: bool | None,
    ) -> FitReport:
        cells = x.reshape(len(x), -1)
        if len(cells) < self.components:
            raise ParameterError(
                f"{len(cells)} rows for {self.components} components",
                "at least one row a component",
                "Fewer components",
            )
        began, ranks = time.perf_counter(), joined()
        ranks.meet(self, generator, cells)
        self.emission.prepare(cells)
        notes = []
        if budget is not None:
            n = len(cells)
            cells, restarts, max_iter = self._afford(cells, generator, budget, restarts, max_iter, ranks)
            few = "" if len(cells) == n else f" on {len(cells)} of {n} rows, drawn at random"
            notes.append(f"budget {budget:g} s = {restarts} restarts of at most {max_iter} iterations{few}")
        notes += ranks.notes("rows", len(cells), self.emission.additive)
        ranks = ranks if self.emission.additive else ALONE
        mine, runs = cells[ranks.part(len(cells))], []
        good = {name: value.clone() for name, value in self.state_dict().items()}
        with Progress("Mixture EM", restarts * max_iter, progress) as bar:
            for restart in range(restarts):
                self._start(cells, generator)
                try:
                    history, stopped, empty = self._climb(mine, max_iter, tol, bar, ranks)
                except FitError:
                    self.load_state_dict(good)
                    raise
                runs.append((history, stopped, empty, {k: v.clone() for k, v in self.state_dict().items()}))
                bar.to((restart + 1) * max_iter)
        history, stopped, empty, state = max(runs, key=lambda run: run[0][-1])
        self.load_state_dict(state)
        ranks.check_alike(self, len(history) - 1)
        self.n_rows = len(cells)
        self.log_likelihood = history[-1] * len(cells) - float(self.emission.penalty())
        optima = tuple(sorted((run[0][-1] for run in runs), reverse=True))
        notes += [f"components without data: {empty}"] * bool(empty)
        return FitReport(
            tuple(history), len(history) - 1, stopped, time.perf_counter() - began, optima=optima, notes=tuple(notes)
        )

    def _afford(
        self, cells: Tensor, generator: torch.Generator, budget: float, restarts: int, max_iter: int, ranks: Ranks
    ) -> tuple[Tensor, int, int]:
        """Rows, restarts and iterations that fit into a budget: one of each is timed on up to 2000 rows.

        Where not even ten iterations on all rows would fit, fewer rows are drawn.
        """
        pilot = torch.Generator()
        pilot.set_state(generator.get_state())
        n, few = len(cells), cells if len(cells) <= _TIMED else cells[_some(len(cells), _TIMED, pilot)]
        began = time.perf_counter()
        self._start(few, pilot)
        middle = time.perf_counter()
        self._maximise(self._expect(few)[1])
        each, start = ((a - b) * n / len(few) for a, b in ((time.perf_counter(), middle), (middle, began)))
        each, start = ranks.agreed(each / ranks.size, start)
        rows = n if n == len(few) else min(n, max(_TIMED, int(n * budget / (start + 10 * each))))
        if rows < n:
            cells, each, start = cells[_some(n, rows, generator)], each * rows / n, start * rows / n
        affordable = max(1, int((budget - start) / each))
        restarts = max(1, min(restarts, affordable // min(max_iter, 50)))
        return cells, restarts, max(1, min(max_iter, affordable // restarts))

    def _start(self, cells: Tensor, generator: torch.Generator) -> None:
        shares = emissions.start_responsibilities(self.emission.features(cells), self.components, generator)
        shares = 0.99 * shares + 0.01 / self.components
        fresh = self.emission.with_states(self.components).state_dict()
        self.emission.load_state_dict({**fresh, **dict(self.emission.named_buffers(remove_duplicate=False))})
        self._maximise(self._gather(cells, shares))
        self._maximise(self._gather(cells, shares))  # moments about the new means

    def _gather(self, cells: Tensor, shares: Tensor) -> Statistics:
        totals: Statistics = {}
        size = next(self._chunks(cells)).shape[0]
        for chunk, r in zip(cells.split(size), shares.split(size), strict=True):
            _add(totals, {"weight": r.sum(0), **self.emission.statistics(chunk, r)})
        return totals

    def _climb(
        self, cells: Tensor, max_iter: int, tol: float, bar: Progress, ranks: Ranks
    ) -> tuple[list[float], str, list[int]]:
        """EM from where the parameters stand, on each rank's rows; raises FitError if the penalised objective falls."""
        history: list[float] = []
        empty: list[int] = []
        for step in range(max_iter + 1):
            objective, statistics = self._expect(cells, ranks)
            if not math.isfinite(objective):
                raise FitError(f"The objective became {objective} at EM iteration {step}", "finite numbers", step=step)
            if history and objective < history[-1] - 1e-9 * max(1.0, abs(history[-1])):
                raise FitError(f"EM went down at iteration {step}: {history[-1]} to {objective} nats a row", step=step)
            history.append(objective)
            bar.advance(1, f"{objective:.4f} nats/row")
            if len(history) > 1 and objective - history[-2] < tol * cells.shape[1]:
                return history, "converged", empty
            if step < max_iter:
                empty = self._maximise(statistics)
        return history, "steps", empty

    def _expect(self, cells: Tensor, ranks: Ranks = ALONE) -> tuple[float, Statistics]:
        """The penalised objective a row at the present parameters, and the expected statistics, of all ranks' rows."""
        totals: Statistics = {}
        nats, rows = torch.zeros((), dtype=torch.float64), torch.tensor(len(cells))
        with ranks.together():
            for chunk in self._chunks(cells):
                r, evidence = _shares(self._joint(chunk))
                nats += evidence.sum()
                _add(totals, {"weight": r.sum(0), **self.emission.statistics(chunk, r)})
        nats, rows, *sums = ranks.sums([nats, rows, *totals.values()])
        return float(nats + self.emission.penalty()) / int(rows), dict(zip(totals, sums, strict=True))

    def _maximise(self, statistics: Statistics) -> list[int]:
        self.logits.copy_(statistics.pop("weight").log().clamp(min=-700))
        return self.emission.maximise(statistics)


def _shares(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Responsibilities (n, K) and evidence (n,) from log p(x, k)."""
    top = joint.max(1, keepdim=True).values.clamp(min=-1e308)
    r = (joint - top).exp_()
    total = r.sum(1, keepdim=True)
    evidence = (total.log() + top)[:, 0]
    return torch.where(total > 0, r / total, 1 / joint.shape[1]), evidence


def _add(totals: Statistics, part: Statistics) -> None:
    for name, value in part.items():
        totals[name] = totals[name] + value if name in totals else value


def _some(n: int, rows: int, generator: torch.Generator) -> Tensor:
    """So many of n row numbers, drawn at random, in order."""
    return torch.randperm(n, generator=generator)[:rows].sort().values
