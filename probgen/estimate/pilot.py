"""What pilots say: whether the error of an estimate may be printed, row by row. A pilot never enters an estimate."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from probgen.estimate.hmc import Bridge, Crossing, Plan
from probgen.estimate.weights import WIDEST, Weights, log_mean, quality, reliable, standard_normal

__all__ = ["SEARCH", "Verdict", "even", "judge", "judge_crossing", "misses_a_mode", "stretched"]

_CLIMBERS, _INSIDE, _CLIMBS = 24, 8, 30  # from a standard normal and from the guide, and their steps
SEARCH = (_CLIMBERS + _INSIDE) * (_CLIMBS + 5)  # evaluations of a search for modes


class Verdict(NamedTuple):
    """What a pilot says of each row, (n,) each: log of its mean weight, its delta-method error, effective sample size,
    Pareto k, whether the guide misses a mode, and whether a standard error may be printed."""

    nats: Tensor
    stderr: Tensor
    ess: Tensor
    pareto_k: Tensor
    missed: Tensor
    trusted: Tensor

    def of(self, rows: Tensor) -> "Verdict":
        return Verdict(*(values[rows] for values in self))


def judge(weights: Weights, samples: int, scale: Tensor | None = None) -> Verdict:
    """The pilot of importance sampling with so many draws.

    A first look of a twentieth of the draws closes the gate where the effective sample size can't come near 400; its
    figures are then those of the look, the effective sample size counted up to ``samples``.
    """
    first = min(samples, max(25, samples // 20))
    look = weights.draw(first, f"look{samples}", scale)
    (ess, k), (nats, stderr) = quality(look), log_mean(look)
    ess = (ess * samples / first).clamp(max=samples)
    no = torch.zeros_like(ess, dtype=torch.bool)
    found = Verdict(nats, stderr, ess, k, no, no.clone())
    rows = (ess >= 300).nonzero()[:, 0] if samples >= 400 else torch.arange(0)
    if not len(rows):
        return found
    part, own = weights[rows], None if scale is None else scale[rows]
    pilot = torch.cat([look[:, rows], part.draw(samples - first, f"pilot{samples}", own)])
    (ess, k), (nats, stderr) = quality(pilot), log_mean(pilot)
    trusted = _wide_enough(reliable(ess, k, samples), own)
    checked = _look_around(part, own, Verdict(nats, stderr, ess, k, torch.zeros_like(trusted), trusted), samples)
    for whole, values in zip(found, checked, strict=True):
        whole[rows] = values
    return found


def judge_crossing(bridge: Bridge, pilot: Crossing) -> Verdict:
    """The pilot of annealing: many chains are judged as draws are, few by whether their weights are nearly equal."""
    chains, (ess, k), (nats, stderr) = bridge.plan.chains, quality(pilot.log_w), stretched(pilot.log_w)
    trusted = _wide_enough(even(ess, chains) | reliable(ess, k, chains), bridge.scale)
    verdict = Verdict(nats, stderr, ess, k, torch.zeros_like(trusted), trusted)
    if bridge.scale is None:
        return verdict
    return _look_around(bridge.rows, bridge.scale, verdict, bridge.plan.evaluations)


def _wide_enough(trusted: Tensor, scale: Tensor | None) -> Tensor:
    """A guide that was widened as far as it goes ought to be wider still, and has tails that no pilot sees."""
    return trusted if scale is None else trusted & (scale.amax(1) < 0.999 * WIDEST)


def even(ess: Tensor, chains: int) -> Tensor:
    """Whether the relative variance of few weights is below 1/4 with 99 % confidence, were their logarithms normal.

    A pilot of 16 chains may look better by luck than it is; Wilson and Hilferty's quantile of its variance says by how
    much.
    """
    if chains < 16:
        return torch.zeros_like(ess, dtype=torch.bool)
    spread = 2 / (9 * (chains - 1))
    return chains / ess - 1 <= 0.25 * (1 - spread - 2.33 * math.sqrt(spread)) ** 3


def stretched(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight; its delta-method error, stretched so that 1.96 of it are Student's 95 %."""
    nats, stderr = log_mean(log_w)
    freedom = len(log_w) - 1
    return nats, stderr * (1 + 1.21 / freedom + 1.44 / freedom**2)


def _look_around(weights: Weights, scale: Tensor | None, verdict: Verdict, looks: int) -> Verdict:
    """Closes the gate of trusted rows where the guide misses a mode."""
    rows = verdict.trusted.nonzero()[:, 0]
    if not len(rows):
        return verdict
    wider = None if scale is None else scale[rows]
    verdict.missed[rows] = misses_a_mode(weights[rows], wider, verdict.nats[rows], looks)
    return verdict._replace(trusted=verdict.trusted & ~verdict.missed)


def misses_a_mode(weights: Weights, scale: Tensor | None, nats: Tensor, looks: int) -> Tensor:
    """Whether log p(x, z) has a mode where the guide is not expected to go in so many looks, as far as climbers from a
    standard normal see, (n,). No objection where the guide's map can't be turned round.

    A mode counts from where few posterior draws fall, judged by the guide's own, and where a valley parts it from what
    climbers from the guide reach.
    """
    found = torch.zeros(len(weights), dtype=torch.bool)
    for rows, bridge in Plan(_CLIMBERS + _INSIDE, 1, 1, "prior").bridges(weights):
        part, own = bridge.rows, None if scale is None else scale[rows]
        noise = part.noise(_CLIMBERS + _INSIDE, "climbers")
        inside = part.place(noise[_CLIMBERS:])
        z, log_f = climb(bridge, torch.cat([noise[:_CLIMBERS], inside]))
        noise, placed = part.noise_of(z[:_CLIMBERS])
        unseen = log_f[:_CLIMBERS] - part.log_q(noise, own) - nats[rows] > math.log(looks)
        high = log_f[:_CLIMBERS] > _floor(part)
        found[rows] = (placed & unseen & high & _apart(bridge, z, log_f)).any(0)
    return found


def _apart(bridge: Bridge, z: Tensor, log_f: Tensor) -> Tensor:
    """Whether log p(x, z) dips by a nat between each outer climber and the nearest inner one, (outer, n)."""
    outer, inner = z[:_CLIMBERS], z[_CLIMBERS:]
    near = torch.cdist(outer.transpose(0, 1), inner.transpose(0, 1)).argmin(-1).T  # (outer, n)
    other = inner.gather(0, near[..., None].expand_as(outer))
    least = torch.minimum(log_f[:_CLIMBERS], log_f[_CLIMBERS:].gather(0, near))
    dips = [bridge.log_joint(outer + share * (other - outer)) < least - 1 for share in (0.25, 0.5, 0.75)]
    return torch.stack(dips).any(0)


def climb(bridge: Bridge, z: Tensor) -> tuple[Tensor, Tensor]:
    """Uphill in log p(x, z) from z (S, n, D): the highest places met, and log p(x, z) there, (S, n).

    Riedmiller and Braun (1993), "Rprop": the size of a step follows from the signs of the slope alone.
    """
    z, size = z.to(torch.float64), torch.full(z.shape, 0.3, dtype=torch.float64)
    best, height, before = z, torch.full(z.shape[:-1], -math.inf, dtype=torch.float64), torch.zeros_like(size)
    for _ in range(_CLIMBS):
        state = bridge.state(z)
        log_f, slope = state.log_w + standard_normal(z), state.slope - z
        higher = log_f > height
        best, height = torch.where(higher[..., None], z, best), torch.where(higher, log_f, height)
        turned = before * slope
        size = (size * torch.where(turned > 0, 1.2, torch.where(turned < 0, 0.5, 1.0))).clamp(1e-6, 1.0)
        z, before = z + slope.sign() * size, slope
    return best, height


def _floor(weights: Weights) -> Tensor:
    """log p(x, z) below which few posterior draws fall, (n,): of a normal posterior it varies by sqrt(D / 2)."""
    noise = weights.noise(50, "floor")
    log_q, log_w = weights.log_q(noise), weights.at(noise)
    typical = (log_w.softmax(0).nan_to_num() * (log_w + log_q).nan_to_num(neginf=-1e300)).sum(0)
    return typical - 2 - 4 * math.sqrt(noise.shape[-1] / 2)
