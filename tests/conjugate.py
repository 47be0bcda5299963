"""A Bayesian linear model whose posterior, leave-one-out densities and predictive draws have closed forms.

y_i ~ N(x_i b, noise^2) with known noise, b ~ N(0, prior^2 I); without covariates x_i = 1. Draws of its posterior are
exact and independent ("conjugate"), or those of a normal that is ``stretch`` times too wide ("laplace").
"""

import math

import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.posterior import Coordinates, Parametric
from probgen.posterior.fitting import Found
from probgen.posterior.kept import GROWING, Kept


class Vectorised(Parametric):
    """All draws at once, where the general way takes one after the other."""

    def log_lik(self, x, given, z=None):
        z = self.kept.z() if z is None else z
        return Normal(z @ self.model.design(given, len(x)).T, self.model.noise).log_prob(x.reshape(-1))

    def readable(self, z):
        return {"beta": z}


class Linear(GenerativeModel):
    growing = GROWING

    def __init__(self, event, context=None, noise=1.0, prior=10.0):
        super().__init__(event)
        self.context, self.noise, self.prior = context, noise, prior
        width = 1 if context is None else math.prod(context.shape)
        self.beta = torch.nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.kept = Kept()

    def model(self, x=None, given=None, n=1):
        raise NotImplementedError

    @classmethod
    def suits(cls, event):
        return None

    @classmethod
    def for_event(cls, event, **options):
        return cls(event, **options)

    def design(self, given, n):
        ones = torch.ones(n, 1, dtype=torch.float64)
        return ones if given is None else given.reshape(len(given), -1).to(torch.float64)

    def posterior(self, x, given):
        design = self.design(given, len(x))
        precision = design.T @ design / self.noise**2 + torch.eye(design.shape[1], dtype=torch.float64) / self.prior**2
        covariance = torch.linalg.inv(precision)
        return MultivariateNormal(covariance @ design.T @ x.reshape(-1) / self.noise**2, covariance)

    def _fit(self, x, given, *, generator, method="conjugate", draws=1000, chains=2, stretch=1.0):
        p = self.posterior(x, given)
        with torch.no_grad():
            self.beta.copy_(p.mean)
        self.kept.clear()
        if method != "ml":
            noise = torch.randn(chains * draws, len(self.beta), generator=generator, dtype=torch.float64)
            z = p.mean + stretch * noise @ p.scale_tril.T
            lp = p.log_prob(z).reshape(chains, draws)
            q = MultivariateNormal(p.mean, stretch**2 * p.covariance_matrix).log_prob(z).reshape(chains, draws)
            log_q = q if method == "laplace" else None
            self.kept.put(method, Found(z.reshape(chains, draws, -1), {"lp": lp}, p.mean, lp, log_q))
        return FitReport((0.0,), 1, "closed form")

    def _rows(self, x, given):
        return Normal(self.design(given, len(x)) @ self.beta, self.noise).log_prob(x.reshape(-1))

    def _draw(self, n, given, generator):
        at = self.design(given, 1) @ self.beta
        drawn = at[:, None] + self.noise * torch.randn(len(at), n, generator=generator, dtype=torch.float64)
        return drawn.reshape(-1, *self.event.shape)

    def _parametric(self):
        width = torch.zeros(len(self.beta), dtype=torch.float64)
        sites = Coordinates({"beta": Independent(Normal(width, self.prior), 1)})
        return Vectorised(self, self.kept, sites, dict, self._rows, lambda: {"beta": self.beta}, self._draw)

    @property
    def draws(self):
        return self._parametric().draws()

    def _log_lik_draws(self, x, given, generator):
        return self._parametric().log_lik(x, given)

    def _log_prior_draws(self):
        return self._parametric().log_prior()

    def _sample(self, n, given, *, generator):
        return self._parametric().sample(n, given, generator) if self.kept else self._draw(n, given, generator)

    def _log_prob(self, x, given, *, generator):
        if self.kept:
            return self._parametric().log_prob(x, given)
        with torch.no_grad():
            return LogProb(Kind.EXACT, self._rows(x, given).numpy(), by="closed form")

    # The truth

    def exact_loo(self, x, given, units):
        """log p(x_u | x_-u) of each set of rows."""
        found = []
        for unit in units:
            kept = torch.ones(len(x), dtype=torch.bool)
            kept[unit] = False
            p = self.posterior(x[kept], None if given is None else given[kept])
            design = self.design(given, len(x))[unit]
            covariance = design @ p.covariance_matrix @ design.T
            covariance = covariance + self.noise**2 * torch.eye(len(unit), dtype=torch.float64)
            found.append(float(MultivariateNormal(design @ p.mean, covariance).log_prob(x.reshape(-1)[unit])))
        return found
