"""The EM step of a linear-Gaussian state-space model (Shumway and Stoffer 1982), with single cells missing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.models.statespace.kalman import Batch, Filtered, System, batches, smoothed, unpad
from probgen.models.statespace.structure import Structure

__all__ = ["Moments", "Sequences", "completed", "expect", "lower_factor", "maximise"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Smoothed moments of all steps, in the order of the data.

    Arguments:
        means, covs: Of z_t, shapes (total, S) and (total, S, S).
        lagged: Cov(z_t, z_{t-1}), shape (total, S, S); zero at the first step of a sequence.
        first: Whether a step is the first of its sequence, shape (total,).
    """

    means: Tensor
    covs: Tensor
    lagged: Tensor
    first: Tensor


@dataclass(frozen=True, eq=False)
class Sequences:
    """What a fit sees.

    Arguments:
        x: Standardised steps, shape (total, D), NaN where missing.
        inputs: Shape (total, U).
        lengths: Shape (n,).
        made: The batches of them.
        constant: Added to the log-likelihood for the units of the data, in nats.
    """

    x: Tensor
    inputs: Tensor
    lengths: Tensor
    made: list[Batch]
    constant: float

    @classmethod
    def of(cls, x: Tensor, inputs: Tensor, lengths: Tensor, constant: float) -> "Sequences":
        return cls(x, inputs, lengths, batches(x, lengths, inputs), constant)

    @property
    def starts(self) -> Tensor:
        """The first step of each sequence, shape (n,)."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def cells(self) -> float:
        """Recorded cells a sequence."""
        return max(float((~self.x.isnan()).sum()), 1.0) / len(self.lengths)

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Steps and the ones that follow them in the same sequence, each (total - n,)."""
        later = torch.ones(len(self.x), dtype=torch.bool)
        later[self.starts] = False
        after = later.nonzero()[:, 0]
        return after - 1, after


def expect(system: System, made: list[Batch], runs: list[Filtered], starts: Tensor) -> Moments:
    """The E step: fixed-interval smoothing. ``starts``: the first step of each sequence among all steps."""
    parts = [smoothed(system, batch, run) for batch, run in zip(made, runs, strict=True)]
    means, covs, ahead = (unpad(made, [part[i] for part in parts]) for i in range(3))
    first = torch.zeros(len(means), dtype=torch.bool)
    first[starts] = True
    lagged = torch.where(first[:, None, None], 0.0, ahead.roll(1, 0))
    return Moments(means, covs, lagged, first)


def lower_factor(cov: Tensor) -> Tensor:
    """A lower triangular L with L L' = cov, for covariances that may be singular; entries by their own scale."""
    scale = cov.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    safe = torch.where(scale > 0, scale, 1.0)
    values, vectors = torch.linalg.eigh(cov / safe[..., :, None] / safe[..., None, :])
    root = (vectors * values.clamp(min=0).sqrt()[..., None, :]) * scale[..., :, None]
    upper = torch.linalg.qr(root.mT).R
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return (sign[..., :, None] * upper).mT


def _regress(cross: Tensor, square: Tensor) -> Tensor:
    """F with F square = cross: normal equations in units of the regressors' own size, without rank being needed."""
    size = square.diagonal().clamp(min=0).sqrt()
    size = torch.where(size > 0, size, 1.0)
    inverse = torch.linalg.pinv(square / size[:, None] / size, hermitian=True, rtol=1e-14)
    return (cross / size) @ inverse / size


def maximise(
    system: System, moments: Moments, x: Tensor, inputs: Tensor, shape: Structure, floor: float, spread_known: bool
) -> System:
    """The M step: the expected complete log-likelihood is at its maximum in each block of parameters.

    Arguments:
        x: Shape (total, D), NaN where missing.
        floor: Least eigenvalue of R.
        spread_known: Whether P0 stays as it is.
    """
    system = _maximise_states(system, moments, inputs, shape)
    system = _maximise_emission(system, moments, x, inputs, shape, floor)
    start = moments.means[moments.first]
    mean = start.mean(0)
    if spread_known:
        return system._replace(start_mean=mean)
    spread = ((start - mean).T @ (start - mean) + moments.covs[moments.first].sum(0)) / len(start)
    return system._replace(start_mean=mean, start_cov=spread)


def _maximise_states(system: System, moments: Moments, inputs: Tensor, shape: Structure) -> System:
    later = ~moments.first
    count = int(later.sum())
    if not count:
        return system
    now, past, u = moments.means[later], moments.means[moments.first.logical_not().roll(-1)], inputs[later]
    cov = moments.covs[later].sum(0)
    past_cov = moments.covs[moments.first.logical_not().roll(-1)].sum(0)
    lagged = moments.lagged[later].sum(0)
    a, b = system.transition, system.control
    if shape.free_rows:
        k, inner = shape.free_rows, shape.emission is None and inputs.shape[1] > 0
        regressors = torch.cat([past, u], 1) if inner else past
        square = regressors.T @ regressors
        square[: len(a), : len(a)] += past_cov
        cross = now[:, :k].T @ regressors
        cross[:, : len(a)] += lagged[:k]
        rows = _regress(cross, square)
        a = torch.cat([rows[:, : len(a)], a[k:]])
        b = rows[:, len(a) :] if inner else b
    rest = now - past @ a.T - u @ b.T
    noise = rest.T @ rest + cov - a @ lagged.T - lagged @ a.T + a @ past_cov @ a.T
    noise = torch.where(shape.blocks, 0.5 * (noise + noise.T) / count, 0.0)
    return system._replace(transition=a, control=b, state_noise=noise)


def _maximise_emission(
    system: System, moments: Moments, x: Tensor, inputs: Tensor, shape: Structure, floor: float
) -> System:
    seen = ~x.isnan()
    rows = seen.any(1)
    if not bool(rows.any()):
        return system
    x, seen, u = x[rows], seen[rows], inputs[rows]
    z, cov = moments.means[rows], moments.covs[rows]
    x, xz, xx = completed(system, x, seen, u, z, cov)
    s, p = z.shape[1], u.shape[1]
    coefficients = torch.cat([system.emission, system.feedthrough, system.offset[:, None]], 1)
    regressors = torch.cat([z, u, torch.ones(len(z), 1, dtype=z.dtype)], 1)
    free = torch.tensor([shape.emission is None] * s + [True] * p + [shape.offset])
    total = cov.sum(0)
    if bool(free.any()):
        square = regressors.T @ regressors
        square[:s, :s] += total
        cross = x.T @ regressors
        cross[:, :s] += xz
        left = cross[:, free] - coefficients[:, ~free] @ square[~free][:, free]
        coefficients = coefficients.clone()
        coefficients[:, free] = _regress(left, square[free][:, free])
    c = coefficients[:, :s]
    rest = x - regressors @ coefficients.T
    noise = (rest.T @ rest + xx - xz @ c.T - c @ xz.T + c @ total @ c.T) / len(x)
    values, vectors = torch.linalg.eigh(0.5 * (noise + noise.T))
    noise = (vectors * values.clamp(min=floor)) @ vectors.T
    return system._replace(
        emission=c, feedthrough=coefficients[:, s : s + p], offset=coefficients[:, -1], noise=0.5 * (noise + noise.T)
    )


def completed(
    system: System, x: Tensor, seen: Tensor, inputs: Tensor, z: Tensor, cov: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Expected cells (rows, D) given all that was recorded, with the sums of Cov(x, z) and Cov(x): zero if complete."""
    d, s = system.emission.shape
    if bool(seen.all()):
        return x, x.new_zeros(d, s), x.new_zeros(d, d)
    keep = _shrinkage(system.noise, seen)
    expected = system.mean(z, inputs)
    filled = expected + (keep @ torch.where(seen, x - expected, 0.0)[..., None])[..., 0]
    rest = torch.eye(d, dtype=x.dtype) - keep
    cross = rest @ system.emission @ cov
    own = cross @ system.emission.T @ rest.mT + rest @ system.noise
    return filled, cross.sum(0), own.sum(0)


def _shrinkage(noise: Tensor, seen: Tensor) -> Tensor:
    """W (rows, D, D) with E[v | v_recorded] = W v: R_mo R_oo^-1 in the rows of missing cells, the unit elsewhere."""
    patterns, which = seen.unique(dim=0, return_inverse=True)
    made = torch.zeros(len(patterns), *noise.shape, dtype=noise.dtype)
    for w, o in zip(made, patterns, strict=True):
        w[:, o] = torch.linalg.solve(noise[o][:, o], noise[o]).T
    return made[which]
