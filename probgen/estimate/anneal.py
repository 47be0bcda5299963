"""Annealed importance sampling, forwards for a lower bound on log p(x) and backwards for an upper one."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probgen.errors import ParameterError, ShapeError
from probgen.estimate.hmc import Bridge, Plan
from probgen.estimate.pilot import even, judge_crossing, stretched
from probgen.estimate.weights import Weights, call, quality, refuse_without_guide, reliable
from probgen.logprob import Kind, LogProb

__all__ = ["AIS", "anneal", "backward", "reverse_ais"]


@dataclass(frozen=True, repr=False)
class AIS:
    """Annealed importance sampling: chains go from the guide to the posterior by Hamiltonian Monte Carlo. Kind lower.

    Step sizes are tuned for each temperature and row in a pilot of as many chains, which never enters the estimate,
    and then frozen. The pilot also decides whether a standard error is printed: as of ``IWAE``, or, for few chains,
    where at least 16 have nearly equal weights (relative variance <= 0.25); the printed one is then as wide as
    Student's t asks. The cost is chains * (1 + (temperatures - 1) * leapfrogs) gradients a row, twice.

    Arguments:
        chains: Independent chains a row.
        temperatures: Steps from the start to the posterior; 1 is importance sampling.
        leapfrogs: Gradients a transition.
        start: "guide", or "prior", a standard normal, which misses no mode but is far away.
        schedule: "sigmoid", with short steps at both ends, or "linear".

    Diagnostics, a row: ``ess`` and ``pareto_k`` of the pilot, ``samples`` (chains), ``temperatures``, ``acceptance``.
    Neal (2001); Wu, Burda, Salakhutdinov and Grosse (2017).
    """

    chains: int = 16
    temperatures: int = 100
    leapfrogs: int = 2
    start: str = "guide"
    schedule: str = "sigmoid"
    plan: Plan = field(init=False, compare=False)

    def __post_init__(self) -> None:
        plan = Plan(self.chains, self.temperatures, self.leapfrogs, self.start, self.schedule)
        object.__setattr__(self, "plan", plan)

    def __repr__(self) -> str:
        return call(self, "chains", "temperatures")

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if refusal := refuse_without_guide(model, len(x), self):
            return refusal
        weights = Weights(model, x, given, generator)
        columns = {name: values.numpy() for name, values in anneal(weights, self.plan).items()}
        return LogProb(
            Kind.LOWER,
            columns.pop("nats"),
            by=repr(self),
            stderr=columns.pop("stderr"),
            draws=weights.streams,
            diagnostics=columns,
        )


def anneal(weights: Weights, plan: Plan, final: bool = True) -> dict[str, Tensor]:
    """``nats``, ``stderr`` (NaN where a pilot forbids to trust it) and the diagnostics of ``AIS``, (n,) each.

    Arguments:
        final: Whether rows that the pilot does not trust are annealed as well; else they have NaN.
    """
    names = ("nats", "stderr", "ess", "pareto_k", "samples", "temperatures", "acceptance")
    found = {name: torch.full((len(weights),), math.nan, dtype=torch.float64) for name in names}
    for rows, bridge in plan.bridges(weights):
        pilot = bridge.forward(f"pilot {plan}")
        verdict = judge_crossing(bridge, pilot)
        found["ess"][rows], found["pareto_k"][rows] = verdict.ess, verdict.pareto_k
        done = torch.arange(len(rows)) if final else verdict.trusted.nonzero()[:, 0]
        if not len(done):
            continue
        main = bridge[done].forward(f"main {plan}", pilot.steps[:, done])
        nats, stderr = stretched(main.log_w)
        stderr = torch.maximum(stderr, verdict.stderr[done])
        found["nats"][rows[done]] = nats
        found["stderr"][rows[done]] = torch.where(verdict.trusted[done], stderr, math.nan)
        found["acceptance"][rows[done]] = main.accepted.mean(0).nan_to_num(1.0)
    found["samples"][:], found["temperatures"][:] = plan.chains, plan.temperatures
    return found


def reverse_ais(
    model: Any, x: Any, z: Tensor, given: Any = None, *, by: AIS | None = None, generator: torch.Generator
) -> LogProb:
    """An upper bound on log p(x), in expectation over exact draws z of p(z | x), by annealing from them to the guide.

    Arguments:
        model: Latent.
        x, given: Checked rows.
        z: Exact posterior draws (chains, n, latent_dim); or one a row, (n, latent_dim), as of a simulated row its own
            latent, from which all chains start: then no standard error is printed, for they are not independent.
        by: How the forward chains would go; None: AIS().

    Raises:
        ShapeError: z of another shape.
        ParameterError: the guide's map can't be turned round at z: start from the prior.

    Grosse, Ghahramani and Adams (2015), "bidirectional Monte Carlo".
    """
    by = by or AIS()
    weights = Weights(model, x, given, generator)
    single = z.ndim == 2
    chains = z.expand(by.chains, *z.shape) if single else z
    if tuple(chains.shape) != (by.chains, len(weights), model.latent_dim):
        wanted = f"({by.chains}, {len(weights)}, {model.latent_dim}), or the last two of these"
        raise ShapeError(f"z of shape {tuple(z.shape)}", wanted, "One draw a chain and row")
    parts = [torch.zeros(by.chains, 0, dtype=torch.float64)]
    for rows, bridge in by.plan.bridges(weights):
        steps = bridge.forward(f"pilot {by.plan}").steps
        parts.append(backward(bridge, chains[:, rows], steps))
    log_w = -torch.cat(parts, dim=1)
    (ess, k), (nats, stderr) = quality(log_w), stretched(log_w)
    trusted = reliable(ess, k, by.chains) | even(ess, by.chains)
    return LogProb(
        Kind.UPPER,
        -nats,
        by=f"reverse {by!r}",
        stderr=torch.where(trusted & (not single), stderr, math.nan).numpy(),
        draws=weights.streams,
        diagnostics={"ess": ess.numpy(), "pareto_k": k.numpy()},
    )


def backward(bridge: Bridge, z: Tensor, steps: Tensor) -> Tensor:
    """Log weights (S, n) of chains from exact posterior draws z (S, n, D)."""
    u, found = bridge.place(z)
    if not bool(found.all()):
        raise ParameterError(
            f"{int((~found).sum())} latents that the guide's map does not reach",
            "a guide whose noise can be found by Newton's steps, such as a normal one",
            "AIS(start='prior') needs no such map",
        )
    return bridge.backward(u, f"reverse {bridge.plan}", steps).log_w
