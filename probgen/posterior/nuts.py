"""The no-U-turn sampler: trajectories that stop when they turn back, states drawn by their weights.

Its parts are generators that ask for a density by yielding a place and are sent log p and its gradient there, so that
several chains can be answered at once; ``told`` answers one from a function.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

__all__ = ["Asking", "Metric", "Point", "Trajectory", "leapfrog", "start_point", "step_size_near", "told", "transition"]

Found = TypeVar("Found")
Answer = tuple[float, np.ndarray]
Function = Callable[[np.ndarray], Answer]
Asking = Generator[np.ndarray, Answer, Found]

MOST_DOUBLINGS = 10
_DIVERGENT = 1000.0  # nats of energy error after which a trajectory is given up


@dataclass(frozen=True)
class Metric:
    """The inverse mass matrix: the posterior's covariance (P, P), or its diagonal (P,)."""

    inverse: np.ndarray

    @classmethod
    def unit(cls, size: int) -> "Metric":
        return cls(np.ones(size))

    def __post_init__(self) -> None:
        dense = self.inverse.ndim == 2
        root = np.linalg.inv(np.linalg.cholesky(self.inverse)).T if dense else 1 / np.sqrt(self.inverse)
        object.__setattr__(self, "_root", root)

    def velocity(self, momentum: np.ndarray) -> np.ndarray:
        return self.inverse @ momentum if self.inverse.ndim == 2 else self.inverse * momentum

    def momentum(self, rng: np.random.Generator) -> np.ndarray:
        """A draw from N(0, inverse^-1)."""
        noise, root = rng.standard_normal(len(self.inverse)), self.__dict__["_root"]
        return root @ noise if root.ndim == 2 else root * noise


class Point(NamedTuple):
    """A place of phase space, with the log-density, its gradient, and the velocity."""

    z: np.ndarray
    momentum: np.ndarray
    nats: float
    slope: np.ndarray
    velocity: np.ndarray

    @property
    def log_joint(self) -> float:
        """Minus the Hamiltonian, in nats."""
        return self.nats - 0.5 * float(self.momentum @ self.velocity)


class Trajectory(NamedTuple):
    """A stretch of a trajectory: its ends in time, the state drawn from it, log of its weight, its momenta summed."""

    first: Point
    last: Point
    chosen: Point
    log_weight: float
    momenta: np.ndarray


def told(asking: Asking[Found], density: Function) -> Found:
    """What one of the generators here finds of a density."""
    try:
        z = next(asking)
        while True:
            z = asking.send(density(z))
    except StopIteration as stop:
        return stop.value


def start_point(z: np.ndarray) -> Asking[Point]:
    """A state at rest."""
    nats, slope = yield z
    return Point(z, np.zeros_like(z), nats, slope, np.zeros_like(z))


def leapfrog(metric: Metric, at: Point, step: float) -> Asking[Point]:
    momentum = at.momentum + 0.5 * step * at.slope
    z = at.z + step * metric.velocity(momentum)
    nats, slope = yield z
    momentum = momentum + 0.5 * step * slope
    return Point(z, momentum, nats, slope, metric.velocity(momentum))


class _Growth:
    """One transition: the trajectory doubles, in either direction, until it turns or diverges."""

    def __init__(self, metric: Metric, step: float, start: Point, rng: np.random.Generator) -> None:
        self.metric, self.step, self.rng = metric, step, rng
        self.level = start.log_joint
        self.steps, self.accepted, self.diverged = 0, 0.0, False

    def stretch(self, at: Point, doublings: int, direction: int) -> Asking[Trajectory | None]:
        """2^doublings steps on from a point; None where they turn back on themselves or diverge."""
        if not doublings:
            return (yield from self._leaf(at, direction))
        near = yield from self.stretch(at, doublings - 1, direction)
        if near is None:
            return None
        far = yield from self.stretch(near.last if direction > 0 else near.first, doublings - 1, direction)
        if far is None:
            return None
        log_weight = float(np.logaddexp(near.log_weight, far.log_weight))
        takes_far = self.rng.random() < math.exp(far.log_weight - log_weight)
        return _joined(near, far, direction, far.chosen if takes_far else near.chosen, log_weight)

    def _leaf(self, at: Point, direction: int) -> Asking[Trajectory | None]:
        new = yield from leapfrog(self.metric, at, direction * self.step)
        gain = new.log_joint - self.level
        self.steps += 1
        self.accepted += math.exp(min(0.0, gain)) if gain == gain else 0.0
        if not gain > -_DIVERGENT:
            self.diverged = True
            return None
        return Trajectory(new, new, new, gain, new.momentum)


def _joined(near: Trajectory, far: Trajectory, direction: int, chosen: Point, log_weight: float) -> Trajectory | None:
    """Two neighbouring stretches as one; None where it turns."""
    early, late = (near, far) if direction > 0 else (far, near)
    whole = Trajectory(early.first, late.last, chosen, log_weight, early.momenta + late.momenta)
    return None if _turns(early, late, whole) else whole


def _ahead(a: Point, b: Point, momenta: np.ndarray) -> bool:
    return float(a.velocity @ momenta) > 0 and float(b.velocity @ momenta) > 0


def _turns(early: Trajectory, late: Trajectory, whole: Trajectory) -> bool:
    """Betancourt's (2017) criterion, of the whole and across the seam of its halves."""
    return not (
        _ahead(early.first, late.last, whole.momenta)
        and _ahead(early.first, late.first, early.momenta + late.first.momentum)
        and _ahead(early.last, late.last, late.momenta + early.last.momentum)
    )


def transition(
    metric: Metric, step: float, at: Point, rng: np.random.Generator, most: int = MOST_DOUBLINGS
) -> Asking[tuple[Point, dict[str, float]]]:
    """One draw given the last; leaves the density invariant.

    Hoffman and Gelman (2014), with states drawn by their weights along the trajectory, later halves favoured
    (Betancourt 2017, appendix A.3).

    Returns:
        The new point, and "acceptance_rate" (mean Metropolis probability along the trajectory), "n_steps",
        "tree_depth", "diverging", "energy" (of the new point, in nats).
    """
    momentum = metric.momentum(rng)
    start = at._replace(momentum=momentum, velocity=metric.velocity(momentum))
    growth = _Growth(metric, step, start, rng)
    tree, doublings = Trajectory(start, start, start, 0.0, start.momentum), 0
    while doublings < most:
        direction = 1 if rng.random() < 0.5 else -1
        new = yield from growth.stretch(tree.last if direction > 0 else tree.first, doublings, direction)
        if new is None:
            break
        doublings += 1
        takes_new = rng.random() < math.exp(min(0.0, new.log_weight - tree.log_weight))
        chosen = new.chosen if takes_new else tree.chosen
        whole = _joined(tree, new, direction, chosen, float(np.logaddexp(tree.log_weight, new.log_weight)))
        tree = tree._replace(chosen=chosen)
        if whole is None:
            break
        tree = whole
    found = tree.chosen
    return found, {
        "acceptance_rate": growth.accepted / max(growth.steps, 1), "n_steps": growth.steps, "tree_depth": doublings,
        "diverging": float(growth.diverged), "energy": -found.log_joint,
    }  # fmt: skip


def step_size_near(metric: Metric, at: Point, step: float, rng: np.random.Generator) -> Asking[float]:
    """A step size at which one leapfrog step is accepted with a probability near 0.8 (Hoffman and Gelman 2014)."""
    momentum = metric.momentum(rng)
    start = at._replace(momentum=momentum, velocity=metric.velocity(momentum))

    def accepted(size: float) -> Asking[bool]:
        there = yield from leapfrog(metric, start, size)
        return bool(there.log_joint - start.log_joint > math.log(0.8))

    grows = yield from accepted(step)
    for _ in range(60):
        step = step * 2 if grows else step / 2
        if (yield from accepted(step)) != grows:
            break
    return step
