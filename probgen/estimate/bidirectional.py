"""Bidirectional Monte Carlo: how near an annealed lower bound is, on rows that the model drew itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from probgen.errors import ParameterError, StructureError
from probgen.estimate.anneal import AIS, backward
from probgen.estimate.hmc import Crossing
from probgen.estimate.weights import Weights, at_least, log_mean, quality
from probgen.events import take
from probgen.model import GenerativeModel, Latent, generator_of, pyro_lock

__all__ = ["Gap", "bdmc", "simulate"]


@dataclass(frozen=True, eq=False)
class Gap:
    """Lower and upper bounds on log p(x) of simulated rows, in nats, and how the real rows' pilots compare.

    On a simulated row the latent that made it is an exact posterior draw, so annealing back from it bounds log p(x)
    from above, and the mean of upper - lower bounds the estimator's shortfall, in expectation. That is about rows like
    those that the model draws: a real row whose pilot looks worse than every simulated row's has no certificate. (Of
    rows just like the simulated ones, about 2 in rows + 1 look so by chance.)

    Arguments:
        by: The estimator, as it prints.
        lower, upper: Of the simulated rows, (rows,).
        simulated, real: Pilot figures a row: ``spread``, the standard deviation of the log weights in nats;
            ``acceptance``; ``ess``, the effective sample size as a share of the chains.
        outside: Real rows with a larger spread or a lower acceptance than any simulated row, bool.
    """

    by: str
    lower: np.ndarray
    upper: np.ndarray
    simulated: Mapping[str, np.ndarray]
    real: Mapping[str, np.ndarray]
    outside: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """upper - lower of each simulated row, in nats; below zero by chance only."""
        return self.upper - self.lower

    @property
    def mean(self) -> float:
        """Mean gap in nats."""
        return float(self.gaps.mean())

    @property
    def stderr(self) -> float:
        """Standard error of the mean gap, between simulated rows."""
        return float(self.gaps.std(ddof=1) / math.sqrt(len(self.gaps)))

    def __repr__(self) -> str:
        real = f"; {int(self.outside.sum())} of {len(self.outside)} real rows lie outside: no certificate for them"
        gap = f"mean gap {self.mean:.4f} ± {self.stderr:.2g} nats on {len(self.gaps)} simulated rows"
        return f"Gap({gap}, largest {self.gaps.max():.3g}{real if len(self.outside) else ''}; by {self.by})"


@torch.no_grad()
def bdmc(
    model: Any, data: Any = None, *, given: Any = None, rows: int = 100, by: AIS | None = None, seed: int | None = None
) -> Gap:
    """Bidirectional Monte Carlo on rows that the model draws, with the pilot figures of real rows beside it.

    Arguments:
        model: A fitted model with a guide (Latent).
        data: Real rows, whose pilots are compared; None for none.
        given: Covariates of the real rows, which the simulated rows take in turn.
        rows: Simulated rows, at least 2.
        by: The estimator; None: AIS().

    Raises:
        StructureError: a model without a guide over continuous latents, or whose program has several latent sites.
        ParameterError: a guide whose map can't be turned round: AIS(start="prior") needs none.

    Grosse, Ancha and Roy (2016), "Measuring the reliability of MCMC inference with bidirectional Monte Carlo".
    """
    at_least("rows", rows, 2)
    by = AIS() if by is None else by
    if not isinstance(by, AIS):
        raise ParameterError(f"by={by!r}", "AIS(...), whose chains can go back")
    if not isinstance(model, Latent):
        raise StructureError(f"{type(model).__name__} has no guide over continuous latents", "a model such as VAE")
    x, given = _checked(model, data, given)
    generator = generator_of(seed)
    drawn, z = simulate(model, rows, given, generator)
    weights = Weights(model, drawn, _in_turn(given, rows), generator)
    lower, upper = torch.empty(2, rows, dtype=torch.float64)
    simulated = []
    for some, bridge in by.plan.bridges(weights):
        pilot = bridge.forward(f"pilot {by.plan}")
        simulated.append(_figures(pilot))
        lower[some] = log_mean(bridge.forward(f"main {by.plan}", pilot.steps).log_w)[0]
        own = z[some].expand(by.chains, -1, -1)
        upper[some] = -log_mean(-backward(bridge, own, pilot.steps))[0]
    real = [] if x is None else _pilots(Weights(model, x, given, generator), by)
    figures = _joined(simulated), _joined(real)
    return Gap(repr(by), lower.numpy(), upper.numpy(), *figures, _outside(*figures))


_NAMES = ("spread", "acceptance", "ess")


def _pilots(weights: Weights, by: AIS) -> list[dict[str, np.ndarray]]:
    return [_figures(bridge.forward(f"pilot {by.plan}")) for _, bridge in by.plan.bridges(weights)]


def _figures(pilot: Crossing) -> dict[str, np.ndarray]:
    spread = pilot.log_w.std(0).nan_to_num(nan=math.inf)
    share = quality(pilot.log_w)[0] / len(pilot.log_w)
    columns = (spread, pilot.accepted.mean(0).nan_to_num(1.0), share)
    return {name: column.numpy() for name, column in zip(_NAMES, columns, strict=True)}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]) for name in _NAMES}


def _outside(simulated: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]) -> np.ndarray:
    wild = ~np.isfinite(real["spread"]) | (real["spread"] > simulated["spread"].max())
    return wild | (real["acceptance"] < simulated["acceptance"].min())


def _checked(model: Any, data: Any, given: Any) -> tuple[Any, Any]:
    if not isinstance(model, GenerativeModel):
        return data, given
    model._check_fitted()
    checked = None if data is None else model._check(data)
    return None if checked is None else checked.x, model._check_given(given, checked)


def _in_turn(given: Any, rows: int) -> Any:
    return None if given is None else take(given, torch.arange(rows) % len(given))


def simulate(model: Any, n: int, given: Any, generator: torch.Generator) -> tuple[Any, Tensor]:
    """n rows x of p(x, z) and the latents z (n, latent_dim) that made them.

    From the model's ``_sample_joint(n, given, generator=...)`` where it has one; else from its Pyro program, whose
    guide must have one latent site.
    """
    given = _in_turn(given, n)
    if hasattr(model, "_sample_joint"):
        return model._sample_joint(n, given, generator=generator)
    with pyro_lock(generator):
        trace = poutine.trace(model.model).get_trace(None, given, n)
        x = trace.nodes["_RETURN"]["value"]
        sites = [site for site in _names(poutine.trace(model.guide).get_trace(x, given)) if site in trace.nodes]
    if len(sites) != 1 or tuple(trace.nodes[sites[0]]["value"].shape) != (n, model.latent_dim):
        raise StructureError(
            f"{type(model).__name__} has the latent sites {sites}",
            f"one site of shape (n, {model.latent_dim})",
            "A model with several gives them, put together, by a hook _sample_joint(n, given, generator=...)",
        )
    return x, trace.nodes[sites[0]]["value"].detach()


def _names(trace: Any) -> list[str]:
    """Sampled sites, plates left out."""
    plates = ("_Subsample",)
    nodes = trace.nodes.items()
    return [n for n, s in nodes if s["type"] == "sample" and type(s["fn"]).__name__ not in plates]
