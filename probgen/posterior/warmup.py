"""Chains of the no-U-turn sampler: step sizes and metrics are found while they warm up, then held."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from probgen.posterior.kept import STATS
from probgen.posterior.nuts import MOST_DOUBLINGS, Asking, Metric, start_point, step_size_near, transition

__all__ = ["Chain", "StepSize", "abreast", "chain_from", "windows"]

DENSE = 60  # numbers up to which covariances are learnt, not variances alone
_EARLY = 6  # doublings while the metric is a guess: the curvature at a mode may be far narrower than the posterior


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


def abreast(
    chains: Sequence[Asking[Chain]], answers: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> list[Chain]:
    """Chains that go on together: what they ask at the same time, points (W, P), is answered at once."""
    done: dict[int, Chain] = {}
    asked = {i: next(chain) for i, chain in enumerate(chains)}
    while asked:
        nats, slopes = answers(np.stack(list(asked.values())))
        for i, answer in zip(list(asked), zip(nats.tolist(), slopes, strict=True), strict=True):
            try:
                asked[i] = chains[i].send(answer)
            except StopIteration as stop:
                done[i] = stop.value
                del asked[i]
    return [done[i] for i in range(len(chains))]


def chain_from(
    start: np.ndarray,
    draws: int,
    warmup: int,
    rng: np.random.Generator,
    *,
    metric: Metric | None = None,
    target: float = 0.8,
    note: Callable[[int], None] = lambda draws: None,
) -> Asking[Chain]:
    """A chain from one start.

    Arguments:
        metric: To begin with; it is learnt anew while the chain warms up.
        target: Acceptance rate that the step size is tuned to.
        note: Told after each transition how many draws there are.
    """
    dense, ends = len(start) <= DENSE, set(windows(warmup))
    metric = Metric.unit(len(start)) if metric is None else metric
    at = yield from start_point(start)
    first = yield from step_size_near(metric, at, 0.5 * len(start) ** -0.25, rng)
    size, most = StepSize(first, target), min(MOST_DOUBLINGS, _EARLY) if ends else MOST_DOUBLINGS
    since: list[np.ndarray] = []
    ignored = 75 if warmup >= 150 else int(0.15 * warmup)
    kept, stats = np.empty((draws, len(start))), {name: np.empty(draws) for name in STATS}
    for i in range(warmup + draws):
        step = size.step if i < warmup else size.final
        at, seen = yield from transition(metric, step, at, rng, most if i < warmup else MOST_DOUBLINGS)
        note(max(0, i + 1 - warmup))
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
            most = MOST_DOUBLINGS
            size.restart((yield from step_size_near(metric, at, size.step, rng)))
    return Chain(kept, stats)
