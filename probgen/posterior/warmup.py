"""Chains of the no-U-turn sampler: step sizes and metrics are found while they warm up, then held."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from probgen.posterior.nuts import Function, Metric, start_point, step_size_near, transition

__all__ = ["Chain", "StepSize", "run_chain", "windows"]

STATS = ("lp", "energy", "acceptance_rate", "step_size", "tree_depth", "n_steps", "diverging")
DENSE = 60  # numbers up to which covariances are learnt, not variances alone


@dataclass(frozen=True)
class Chain:
    """Positions (draws, P), and by name what the sampler said of each, (draws,)."""

    z: np.ndarray
    stats: dict[str, np.ndarray]


@dataclass
class StepSize:
    """Dual averaging of the logarithm of the step size towards an acceptance rate (Nesterov 2009; Hoffman and Gelman
    2014, section 3.2)."""

    step: float
    target: float = 0.8
    _centre: float = field(init=False)
    _count: int = field(init=False, default=0)
    _error: float = field(init=False, default=0.0)
    _mean: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.restart(self.step)

    def restart(self, step: float) -> None:
        self.step, self._centre = step, math.log(10 * step)
        self._count, self._error, self._mean = 0, 0.0, 0.0

    def see(self, rate: float) -> None:
        self._count += 1
        share = 1 / (self._count + 10)
        self._error = (1 - share) * self._error + share * (self.target - rate)
        log_step = self._centre - self._error * math.sqrt(self._count) / 0.05
        weight = self._count**-0.75
        self._mean = weight * log_step + (1 - weight) * self._mean
        self.step = math.exp(log_step)

    @property
    def final(self) -> float:
        return math.exp(self._mean) if self._count else self.step


def windows(warmup: int) -> list[int]:
    """The steps of a warm-up after which the metric is learnt anew, from the draws since the last time.

    A start without learning, windows that double in length, and an end for the step size alone, as Stan has them
    (Stan Development Team, Reference Manual, chapter "MCMC sampling").
    """
    if warmup < 20:
        return []
    first, last, width = (75, 50, 25) if warmup >= 150 else (int(0.15 * warmup), int(0.1 * warmup), 0)
    end = warmup - last
    if not width:
        return [end]
    ends, at = [], first
    while at < end:
        at = at + width
        width *= 2
        if at + width > end:
            at = end
        ends.append(at)
    return ends


def learnt(z: np.ndarray, dense: bool) -> Metric:
    """The covariance of draws (n, P), drawn towards a small multiple of the identity where they are few."""
    n = len(z)
    share = n / (n + 5.0)
    small = 1e-3 * 5.0 / (n + 5.0)
    if not dense:
        return Metric(share * z.var(0, ddof=1) + small)
    spread = np.atleast_2d(np.cov(z, rowvar=False, ddof=1))
    return Metric(share * spread + small * np.eye(z.shape[1]))


def run_chain(
    density: Function,
    start: np.ndarray,
    draws: int,
    warmup: int,
    rng: np.random.Generator,
    *,
    metric: Metric | None = None,
    target: float = 0.8,
    note: Callable[[], None] = lambda: None,
) -> Chain:
    """A chain from one start.

    Arguments:
        metric: To begin with; it is learnt anew while the chain warms up.
        target: Acceptance rate that the step size is tuned to.
        note: Called after each transition.
    """
    dense, ends = len(start) <= DENSE, set(windows(warmup))
    metric = Metric.unit(len(start)) if metric is None else metric
    at = start_point(density, start)
    size = StepSize(step_size_near(density, metric, at, 0.5 * len(start) ** -0.25, rng), target)
    since: list[np.ndarray] = []
    ignored = 75 if warmup >= 150 else int(0.15 * warmup)
    kept, stats = np.empty((draws, len(start))), {name: np.empty(draws) for name in STATS}
    for i in range(warmup + draws):
        step = size.step if i < warmup else size.final
        at, seen = transition(density, metric, step, at, rng)
        note()
        if i >= warmup:
            kept[i - warmup] = at.z
            for name, value in {**seen, "lp": at.nats, "step_size": step}.items():
                stats[name][i - warmup] = value
            continue
        size.see(seen["acceptance_rate"])
        if i >= ignored:
            since.append(at.z)
        if i + 1 in ends and len(since) > 1:
            metric, since = learnt(np.array(since), dense and len(since) > 2 * len(start)), []
            size.restart(step_size_near(density, metric, at, size.step, rng))
    return Chain(kept, stats)
