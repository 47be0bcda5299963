"""A posterior from a density: by NUTS, or by a normal approximation of it."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from probgen.errors import FitError, ParameterError, nearest
from probgen.posterior.density import Density
from probgen.posterior.draws import worst_of
from probgen.posterior.kept import METHODS, STATS
from probgen.posterior.normal import FULL, Normal, laplace, mode, variational
from probgen.posterior.nuts import Metric
from probgen.posterior.warmup import DENSE, abreast, chain_from
from probgen.training import Progress

__all__ = ["METHODS", "ConvergenceWarning", "Found", "Plan", "chained", "judged", "sampled"]

_AGREE = 1.01  # R-hat above which chains are said to disagree (Vehtari et al. 2021)
_FLAG = {"tree_depth": torch.int64, "n_steps": torch.int64, "diverging": torch.bool}


class ConvergenceWarning(UserWarning):
    """The chains of a posterior disagree, or diverged."""


@dataclass(frozen=True)
class Plan:
    """How to draw from a posterior.

    Arguments:
        method: "nuts", "svi" (a normal guide, of full rank up to 200 numbers) or "laplace" (mode and curvature).
        draws: Kept draws of each chain.
        chains: Of NUTS, abreast, each from its own place about the mode, twice as wide as the curvature there; of the
            other methods, whose draws are independent, only how they are laid out.
        warmup: Transitions of each chain in which step size and metric are found.
        target: Acceptance rate of NUTS.
        progress: None shows it on a terminal only.
    """

    method: str = "nuts"
    draws: int = 500
    chains: int = 4
    warmup: int = 500
    target: float = 0.8
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ParameterError(f"method={self.method!r}", "nuts, svi or laplace", nearest(str(self.method), METHODS))
        for name in ("draws", "chains", "warmup"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ParameterError(f"{name}={value!r}", "a whole number, at least 1", f"Such as {name}=500")
        if isinstance(self.target, bool) or not isinstance(self.target, int | float) or not 0 < self.target < 1:
            raise ParameterError(f"target={self.target!r}", "an acceptance rate between 0 and 1", "Such as 0.8")


@dataclass(frozen=True, eq=False)
class Found:
    """Draws in unconstrained coordinates.

    Arguments:
        z: Shape (chains, draws, P).
        stats: By name, (chains, draws).
        mode: The highest point that the search found, (P,).
        log_p, log_q: Of normal approximations, (chains, draws).
        history: Log-densities of the search, or the ELBO, in nats.
    """

    z: Tensor
    stats: dict[str, Tensor]
    mode: Tensor
    log_p: Tensor | None = None
    log_q: Tensor | None = None
    history: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0)


def sampled(density: Density, start: np.ndarray, plan: Plan, generator: torch.Generator) -> Found:
    """Draws of a density.

    Arguments:
        start: Where the search for the mode begins, (P,).

    Raises:
        FitError: no finite density at the start or about the mode.
    """
    began = time.perf_counter()
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    at, history = mode(density, start)
    centre, proper = laplace(density, at, plan.chains if plan.method == "nuts" else 8)
    notes = () if proper else ("at the mode some directions do not curve: the approximation is wide there",)
    draw = _by_nuts if plan.method == "nuts" else _by_normal
    found = draw(density, centre, plan, rng)
    seconds = time.perf_counter() - began
    history = list(found.history) or history
    return Found(
        found.z, found.stats, torch.from_numpy(at), found.log_p, found.log_q, tuple(history),
        (*notes, *found.notes), seconds,
    )  # fmt: skip


def _by_nuts(density: Density, centre: Normal, plan: Plan, rng: np.random.Generator) -> Found:
    spread = centre.covariance()
    metric = Metric(spread if len(spread) <= DENSE else np.diagonal(spread).copy())
    return chained(
        density, [_dispersed(density, centre, source) for source in rng.spawn(plan.chains)], plan, rng, metric
    )


def chained(
    density: Density, starts: Sequence[np.ndarray], plan: Plan, rng: np.random.Generator, metric: Metric | None = None
) -> Found:
    """Chains of NUTS, one from each start.

    Arguments:
        metric: To begin the warm-up with; None takes the identity.
    """
    with Progress("NUTS", len(starts) * (plan.warmup + plan.draws), plan.progress) as bar:

        def note(draws: int) -> None:
            bar.advance(1, f"{draws} of {plan.draws} draws" if draws else "warm-up")

        runs = [
            chain_from(first, plan.draws, plan.warmup, source, metric=metric, target=plan.target, note=note)
            for first, source in zip(starts, rng.spawn(len(starts)), strict=True)
        ]
        chains = abreast(runs, lambda z: density.batch(z, len(starts)))
    stats = {
        name: torch.from_numpy(np.stack([chain.stats[name] for chain in chains])).to(_FLAG.get(name, torch.float64))
        for name in STATS
    }
    return Found(torch.from_numpy(np.stack([chain.z for chain in chains])), stats, torch.empty(0))


def _dispersed(density: Density, centre: Normal, rng: np.random.Generator) -> np.ndarray:
    """A place about the mode, further out than draws are; nearer where the density is not finite there."""
    wide = 2.0
    for _ in range(20):
        place = centre.at(wide * rng.standard_normal((1, len(centre.mean))))[0]
        if math.isfinite(density(place)[0]):
            return place
        wide /= 1.5
    raise FitError("No start with a finite density was found about the mode", "a density that is finite there")


def _by_normal(density: Density, centre: Normal, plan: Plan, rng: np.random.Generator) -> Found:
    size, guide = len(centre.mean), centre
    history: list[float] = []
    kind = "at the mode"
    if plan.method == "svi":
        full = size <= FULL
        kind = "of full rank" if full else f"of independent numbers (more than {FULL})"
        first = centre if full else Normal(centre.mean, np.sqrt(np.diagonal(centre.covariance())))
        with Progress("SVI", 400, plan.progress) as bar:
            guide, history = variational(density, first, rng, note=lambda: bar.advance(1, ""))
    noise = rng.standard_normal((plan.chains * plan.draws, size))
    z = guide.at(noise)
    shape = (plan.chains, plan.draws)
    log_p, log_q = (torch.from_numpy(part).reshape(shape) for part in (density.values(z), guide.log_prob(noise)))
    notes = (f"approximate: draws of a normal {kind} in unconstrained coordinates",)
    return Found(
        torch.from_numpy(z).reshape(*shape, size), {"lp": log_p}, torch.empty(0), log_p, log_q, tuple(history), notes
    )


def judged(plan: Plan, found: Found, watched: Mapping[str, Tensor], why: str = "") -> tuple[str, ...]:
    """Notes on how well chains agree, by quantities (chains, draws, ...) that are watched; warns where they do not.

    Arguments:
        why: What is watched, and why not the parameters themselves.

    Raises:
        ConvergenceWarning (a warning): R-hat above 1.01, or divergent transitions.
    """
    if plan.method != "nuts":
        return found.notes
    high, low = worst_of({"lp": found.stats["lp"], **watched})
    divergent, total = int(found.stats["diverging"].sum()), plan.chains * plan.draws
    said = f"{plan.chains} chains of {plan.draws}: R-hat {high:.3f} at most, ESS {low:.0f} at least, "
    said += f"{divergent} divergent" + (f" ({why})" if why else "")
    if high > _AGREE or divergent:
        parts = [f"R-hat is {high:.3f}, above {_AGREE}"] * (high > _AGREE)
        parts += [f"{divergent} of {total} transitions diverged"] * bool(divergent)
        do = "more warmup and draws, or a target above 0.8 where transitions diverge"
        warnings.warn(f"{'; '.join(parts)}: {do}", ConvergenceWarning, stacklevel=_depth())
    return (*found.notes, said)


def _depth() -> int:
    """How many calls up the user's own is: the first outside this package."""
    import sys

    depth, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("probgen"):
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    return depth
