"""Regressions: p(y | x) of one response, by generalised linear models, mixture-density heads and networks. Exact."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError, StructureError
from probgen.events import Event, Table
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel, generator_of
from probgen.models.regression import bayes, learning, predictive, program, summary
from probgen.models.regression.design import Design
from probgen.models.regression.heads import cell_of, head_for, suited
from probgen.models.regression.neural import Network
from probgen.models.regression.posterior import Prior
from probgen.posterior import GROWING, Kept
from probgen.training import Schedule

if TYPE_CHECKING:
    from probgen.posterior import Draws

__all__ = ["Regression"]


class Regression(GenerativeModel):
    """p(y | x), y one number or category and x covariates: exact, row by row.

    Linear where ``hidden`` is empty and ``components`` is 1: a generalised linear model, fitted by least squares or
    Newton's method, with standard errors, or by Bayes (``fit(method=)``). Else a network gives all of the head's
    parameters, or those of a mixture of heads (Bishop 1994), and trains in float32.

    Arguments:
        event: One response: Array(()), Array((1,)), or a Table of one column.
        context: Covariates: a Table, whose categories enter as levels against their first, or an Array; None: no
            covariates. None of them may be missing.
        head: "normal" or "student_t" (reals), "gamma" (positive), "poisson" or "negative_binomial" (counts),
            "bernoulli" (2 levels), "categorical" (more), "binomial" (levels 0..trials); None takes the event's first.
        link: Of probabilities, "logit", "probit" or "cloglog". Means of gammas and counts are exponentials.
        hidden: Widths of a network's hidden layers.
        components: Of a mixture of heads.
        df: Degrees of freedom of "student_t", or "free".
        offset: Numeric column of the context that enters the predictor with coefficient 1 (a log exposure).
        standardise: Whether numeric covariates, and real responses, are scaled to unit variance before the fit: the
            estimates do not depend on it, but the unit of ``ridge`` and of priors does.

    McCullagh and Nelder (1989). Likelihoods in nats; ``aic``, ``bic`` and ``deviance`` after a fit.
    """

    growing = GROWING
    centre: Tensor
    spread: Tensor
    response_centre: Tensor
    response_spread: Tensor
    covariance: Tensor
    sure: Tensor
    facts: Tensor

    def __init__(
        self,
        event: Event,
        context: Event | None = None,
        head: str | None = None,
        link: str | None = None,
        hidden: Sequence[int] = (),
        components: int = 1,
        df: float | Literal["free"] = "free",
        offset: str | None = None,
        standardise: bool = True,
    ) -> None:
        super().__init__(event)
        cell = cell_of(event)
        if isinstance(cell, str):
            raise StructureError(f"event={event!r}", "one response", cell)
        self.context, self.head, self.link, self.df = context, head, link, df
        self.hidden, self.components, self.offset, self.standardise = tuple(hidden), components, offset, standardise
        self.head_name = head or suited(cell)[0]
        self.likelihood = head_for(cell, head, link, df)
        self.design = Design(context, offset)
        self._check_sizes()
        self._build()
        self.n_rows, self.log_likelihood = 0, math.nan

    def _check_sizes(self) -> None:
        sizes = (*self.hidden, self.components)
        if any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
            raise ParameterError(f"hidden={self.hidden}, components={self.components}", "positive whole numbers")
        if self.linear:
            return
        if not len(self.design):
            raise StructureError("A network without covariates", "context=", "Mixture and Independent need none")
        if self.offset is not None:
            raise StructureError("An offset of a network", "a linear model", "Make it a covariate")
        if self.components > 1 and self.head_name in ("bernoulli", "categorical"):
            raise StructureError(
                f"components={self.components} of {self.head_name}", "1", "A mixture of them is another of them"
            )

    def _build(self) -> None:
        columns, head = len(self.design), self.likelihood
        self.kept = Kept()
        buffers: dict[str, Tensor] = {
            "centre": torch.zeros(columns, dtype=torch.float64),
            "spread": torch.ones(columns, dtype=torch.float64),
            "response_centre": torch.zeros((), dtype=torch.float64),
            "response_spread": torch.ones((), dtype=torch.float64),
        }
        if self.linear:
            size = head.places * (1 + columns) + len(head.names)
            self.weight = nn.Parameter(torch.zeros(head.places, 1 + columns, dtype=torch.float64))
            self.extras = nn.Parameter(torch.zeros(len(head.names), dtype=torch.float64))
            buffers["covariance"] = torch.zeros(size, size, dtype=torch.float64)
            buffers["sure"] = torch.ones(1 + columns, dtype=torch.bool)
            # method, chains, rank, deviance, log evidence, ridge, then the prior
            buffers["facts"] = torch.tensor([0, 1, 1, 0, 0, 0, *vars(Prior()).values()], dtype=torch.float64)
        else:
            self.network = Network(head, columns, self.hidden, self.components)
        for name, value in buffers.items():
            self.register_buffer(name, value)

    @property
    def linear(self) -> bool:
        """Whether this is a generalised linear model."""
        return not self.hidden and self.components == 1

    @property
    def method(self) -> str:
        """Of the last fit: "ml", "laplace", "nuts", "svi", "conjugate", or "network"."""
        return learning.METHODS[int(self.facts[0])] if self.linear else "network"

    @property
    def chains(self) -> int:
        """Of the kept posterior draws."""
        return int(self.facts[1])

    @property
    def prior(self) -> Prior:
        """Of the last Bayesian fit."""
        return Prior(*self.facts[6:].tolist())

    @classmethod
    def suits(cls, event: Event) -> str | None:
        cell = cell_of(event)
        if isinstance(cell, str):
            return cell
        if cell.resolution is not None:
            return "its densities give no masses of rounded reals: leave resolution out"
        return None if suited(cell) else f"no distribution here lives on the support {cell.support!r}"

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)

    def theta(self) -> Tensor:
        """Coefficients, place by place, intercept first, then the extras, in the units of the fit, (P,)."""
        return torch.cat([self.weight.reshape(-1), self.extras])

    def _check_given(self, given: Any, data: Any) -> Any:
        covariates = super()._check_given(given, data)
        if covariates is not None:
            self.design.refuse_missing(covariates)
        return covariates

    def _needs_linear(self, what: str) -> None:
        if not self.linear:
            raise StructureError(f"{what} of a network", "a linear model: no hidden layers, one component")
        self._check_fitted()

    # Hooks

    def model(self, x: Tensor | None = None, given: Tensor | None = None, n: int = 1) -> Tensor:
        y = program.model(self, None if x is None else x.reshape(len(x)), given, n)
        return y.reshape(*y.shape, *self.event.shape)  # type: ignore[attr-defined]

    def bayes_model(self, x: Any, given: Any = None) -> None:
        """A Pyro program with priors over the coefficients of a linear model, for NUTS and SVI.

        Its sites "weight" (place by place, intercept first) and "extras" are in the units of the last fit.

        Raises:
            StructureError: a network. NotFittedError: before ``fit``.
        """
        self._needs_linear("bayes_model")
        checked = self._check(x)
        program.bayes_model(self, checked.x.reshape(len(checked)), self._check_given(given, checked))

    def _fit(
        self,
        x: Tensor,
        given: Tensor | None,
        *,
        generator: torch.Generator,
        method: str = "ml",
        ridge: float = 0.0,
        prior_scale: float = 2.5,
        intercept_scale: float = 10.0,
        noise_prior: tuple[float, float] = (0.5, 0.05),
        max_iter: int = 100,
        draws: int = 500,
        chains: int = 4,
        warmup: int = 300,
        budget: float = 30.0,
        steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 5e-3,
        weight_decay: float = 0.0,
        validation: float = 0.1,
        patience: int = 12,
        checkpoint: str | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """Linear models read ``method`` to ``warmup``; networks ``budget`` (seconds; or ``steps``) to ``progress``.

        ``method``: "ml" maximises the likelihood less ridge / 2 times the squared slopes (of normals: over the
        variance, which is ridge regression). "laplace" takes a normal posterior about the mode, "nuts" draws from it,
        "svi" fits a normal to it, "conjugate" (normals only) has it in closed form; each keeps ``draws`` of each of
        ``chains`` chains, NUTS after ``warmup`` transitions. Slopes have priors N(0, prior_scale^2) and the intercept,
        at the covariates' means, N(0, intercept_scale^2), in the units of the fit (conjugate: of the noise, whose
        variance is inverse gamma, ``noise_prior``); log scales and shapes N(0, 3^2), log df N(2.3, 1).

        Raises:
            FitError: the predictor passes through the rows, so that a density has no bound.
        """
        y = x.reshape(len(x))
        if self.linear:
            prior = Prior(prior_scale, intercept_scale, *noise_prior)
            plan = learning.LinearPlan(method, ridge, prior, max_iter, draws, chains, warmup, progress)
            return learning.fit_linear(self, y, given, plan, generator)
        if method != "ml" or ridge:
            raise StructureError(f"method={method!r}, ridge={ridge} of a network", "a linear model", "Or weight_decay=")
        schedule = Schedule(
            steps=steps, budget=budget, batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay,
            validation=validation if len(y) >= 50 else 0.0, patience=patience, checkpoint=checkpoint, every=every,
            resume=resume,
        )  # fmt: skip
        return learning.fit_network(self, y, given, schedule, generator, progress)  # type: ignore[arg-type]

    def _log_prob(self, x: Tensor, given: Tensor | None, *, generator: torch.Generator) -> LogProb:
        return predictive.log_prob(self, x.reshape(len(x)), given, generator)

    def _sample(self, n: int, given: Tensor | None, *, generator: torch.Generator) -> Tensor:
        """n draws; for m rows of covariates (m, n, ...), of a Table n rows for each, one after the other."""
        rows = 1 if given is None else len(given)
        repeated = None if given is None else given.repeat_interleave(n, 0)
        return self._shaped(predictive.draw(self, repeated, rows * n, generator), rows, n)

    def _shaped(self, y: Tensor, rows: int, n: int) -> Tensor:
        y = y.to(torch.float64)
        split = (rows, n) if rows > 1 and not isinstance(self.event, Table) else (rows * n,)
        return y.reshape(*split, *self.event.shape)  # type: ignore[attr-defined]

    # The posterior of the parameters

    @property
    def draws(self) -> "Draws | None":
        """Of the coefficients in the data's units, after a Bayesian fit; else None."""
        return bayes.draws(self)

    def _log_lik_draws(self, x: Tensor, given: Tensor | None, generator: torch.Generator) -> Tensor:
        return bayes.log_lik(self, x.reshape(len(x)), given)

    def _log_prior_draws(self) -> Tensor:
        return bayes.log_prior(self)

    def _prior_numbers(self, n: int, generator: torch.Generator) -> Tensor:
        return bayes.draw_prior(self, n, generator)

    def _sample_at(self, z: Tensor, n: int, given: Tensor | None, generator: torch.Generator) -> Tensor:
        """n responses, one a row of covariates, that share one draw of the parameters, z (P,)."""
        y = self.likelihood.draw(predictive.predictors(self, given, n).paired(z.expand(n, -1)), generator)
        return y.to(torch.float64).reshape(n, *self.event.shape)  # type: ignore[attr-defined]

    def _sample_prior(self, n: int, given: Tensor | None, generator: torch.Generator) -> Tensor:
        """As ``_sample``, from the prior of the last Bayesian fit, in the units of the fit."""
        rows = 1 if given is None else len(given)
        return self._shaped(bayes.sample_prior(self, n, given, generator), rows, n)

    # Questions

    @torch.no_grad()
    def predict(self, given: Any = None, *, seed: int = 0) -> np.ndarray:
        """E[y | x] of each row of covariates, (n,), or the probabilities of the levels, (n, K).

        Under a posterior it is averaged over it, over draws of ``seed`` where there is no closed form.
        """
        self._check_fitted()
        covariates = self._check_given(given, None)
        n = 1 if covariates is None else len(covariates)
        return predictive.mean(self, covariates, n, generator_of(seed)).numpy()

    def summary(self) -> summary.Coefficients:
        """Coefficients in the data's units with standard errors and 95 % intervals, or the posterior's.

        Expected information, and Pearson's dispersion, for "normal", "gamma", "poisson" and probabilities; observed
        information for the others; with ``ridge`` that of the penalised likelihood.

        Raises:
            StructureError: a network. NotFittedError: before ``fit``.
        """
        self._needs_linear("summary")
        return summary.summarise(self)

    @property
    def n_params(self) -> int:
        """Free parameters: aliased coefficients are none; scales and shapes are some."""
        if not self.linear:
            return sum(p.numel() for p in self.parameters())
        return self.likelihood.places * int(self.facts[2]) + len(self.extras)

    @property
    def deviance(self) -> float:
        """Twice what the fit loses against a predictor for each row, in units of the dispersion."""
        self._needs_linear("deviance")
        return float(self.facts[3])

    def log_evidence(self) -> LogProb:
        """log p(all responses | covariates), parameters integrated out under the prior, as one row.

        Exact after ``conjugate``; Laplace's approximation after ``laplace``; refused after the others. Standardised
        responses make the prior depend on their mean and deviation: ``standardise=False`` has it in the data's units.
        """
        self._needs_linear("log_evidence")
        if self.method not in ("conjugate", "laplace"):
            return LogProb.refuse(1, f"method={self.method!r} has no evidence", "fit(method='laplace' or 'conjugate')")
        kind = Kind.EXACT if self.method == "conjugate" else Kind.ESTIMATE
        return LogProb(kind, np.array([float(self.facts[4])]), by=self.method, of="all y|x")

    def aic(self) -> float:
        """Akaike's criterion of the fit, in nats: 2 n_params - 2 log-likelihood; lower is better."""
        self._check_fitted()
        return 2 * self.n_params - 2 * self.log_likelihood

    def bic(self) -> float:
        """Schwarz's criterion of the fit, in nats: n_params log n - 2 log-likelihood; lower is better."""
        self._check_fitted()
        return self.n_params * math.log(self.n_rows) - 2 * self.log_likelihood
