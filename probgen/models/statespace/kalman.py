"""The Kalman filter and smoother over batches of padded sequences, with a shortcut where covariances settle."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Batch", "Filtered", "Smoothed", "System", "batches", "filtered", "observed", "scan", "smoothed", "unpad"]

_SETTLED = 4e-15  # relative change of a covariance that may be its last
_EXACT = 1e-13  # what the settled covariance may still be away from its limit
_BLOCK = 32  # steps taken between looks, where no derivative is asked for
_FORGOTTEN = 1e-9  # what a derivative may keep of a start when the covariance has settled: it lags behind
_SHORT, _EVERY = 16, 4  # steps below which the shortcut does not pay, and between looks for it


class System(NamedTuple):
    """Matrices of z_1 ~ N(m0, P0); z_t = A z_{t-1} + B u_t + N(0, Q); x_t = C z_t + D u_t + d + N(0, R).

    Arguments:
        transition: A, shape (S, S).
        control: B, shape (S, U); u_1 does not act on z_1.
        state_noise: Q, shape (S, S), may be singular.
        emission: C, shape (D, S).
        feedthrough: D, shape (D, U).
        offset: d, shape (D,).
        noise: R, shape (D, D).
        start_mean, start_cov: m0, shape (S,), and P0, shape (S, S), may be singular.
    """

    transition: Tensor
    control: Tensor
    state_noise: Tensor
    emission: Tensor
    feedthrough: Tensor
    offset: Tensor
    noise: Tensor
    start_mean: Tensor
    start_cov: Tensor

    def mean(self, states: Tensor, inputs: Tensor) -> Tensor:
        """C z + D u + d for states (..., S) and inputs (..., U), shape (..., D)."""
        return states @ self.emission.T + inputs @ self.feedthrough.T + self.offset


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of similar length, padded, time first.

    Arguments:
        x: Shape (T, n, D), zero where missing and beyond the end.
        inputs: Shape (T, n, U).
        seen: Recorded cells, shape (T, n, D); None where no sequence has a gap (padding then counts as recorded).
        inside: Steps before each sequence's end, shape (T, n).
        rows: Place of each step among the steps of all sequences, shape (T, n).
    """

    x: Tensor
    inputs: Tensor
    seen: Tensor | None
    inside: Tensor
    rows: Tensor

    @property
    def pattern(self) -> Tensor | None:
        """Recorded cells, shape (T, b, D), with b = 1 where all sequences share their gaps."""
        if self.seen is None:
            return None
        alike = bool((self.seen == self.seen[:, :1]).all())
        return self.seen[:, :1] if alike else self.seen

    @property
    def classes(self) -> tuple[Tensor, Tensor]:
        """A mask of steps (T, lengths), one column a distinct length, and the column of each sequence (n,)."""
        lengths, which = self.inside.sum(0).unique(return_inverse=True)
        return torch.arange(len(self.inside))[:, None] < lengths, which


class Filtered(NamedTuple):
    """Moments of p(z_t | x_<t) and p(z_t | x_<=t); covariances have b = 1 where all sequences share them.

    Arguments:
        before: Means of z_t given x_<t, shape (T, n, S).
        before_cov: Shape (T, b, S, S).
        means, covs: Given x_<=t too.
        gains: Kalman gains, shape (T, b, S, D), zero at missing cells.
        steady: Stretches [first, last) in which covariances stand still.
    """

    before: Tensor
    before_cov: Tensor
    means: Tensor
    covs: Tensor
    gains: Tensor
    steady: tuple[tuple[int, int], ...]


class Smoothed(NamedTuple):
    """Moments given the whole sequence: means (T, n, S), covariances and Cov(z_{t+1}, z_t) (T, b, S, S).

    Covariances are shared by all sequences, by those of one length (as ``Batch.classes``), or by none.
    """

    means: Tensor
    covs: Tensor
    ahead: Tensor


def batches(x: Tensor, lengths: Tensor, inputs: Tensor, cells: int = 1 << 22) -> list[Batch]:
    """Batches of steps (total, D) and inputs (total, U): with and without gaps apart, lengths within a factor of 2.

    ``cells`` bounds the padded steps of a batch with gaps, whose covariances are kept for each sequence.
    """
    n, starts = len(lengths), lengths.cumsum(0) - lengths
    gappy = torch.zeros(n, dtype=torch.bool)
    gappy[torch.repeat_interleave(torch.arange(n), lengths)[x.isnan().any(1)]] = True
    made = []
    for flag in (False, True):
        members = (gappy == flag).nonzero()[:, 0]
        members = members[lengths[members].argsort(descending=True, stable=True)]
        while len(members):
            longest = int(lengths[members[0]])
            size = int((2 * lengths[members] > longest).sum())
            size = min(size, max(1, cells // longest)) if flag else size
            made.append(_batch(x, lengths, inputs, starts, members[:size], flag))
            members = members[size:]
    return made


def _batch(x: Tensor, lengths: Tensor, inputs: Tensor, starts: Tensor, members: Tensor, gaps: bool) -> Batch:
    steps = torch.arange(int(lengths[members[0]]))[:, None]
    inside = steps < lengths[members]
    rows = torch.where(inside, starts[members] + steps, 0)
    values = torch.where(inside[..., None], x[rows], torch.nan)
    seen = ~values.isnan()
    return Batch(torch.where(seen, values, 0.0), inputs[rows], seen if gaps else None, inside, rows)


def unpad(made: Sequence[Batch], results: Sequence[Tensor]) -> Tensor:
    """Results of each batch as one row a step, in the order of the data: (total, ...).

    A result is (T, b, ...): for each sequence, shared by all (b = 1), or shared by those of one length.
    """
    order, values = [], []
    for batch, result in zip(made, results, strict=True):
        step, column = batch.inside.nonzero(as_tuple=True)
        order.append(batch.rows[step, column])
        alike = result.shape[1] != batch.inside.shape[1]
        values.append(result[step, batch.classes[1][column] if alike and result.shape[1] > 1 else column * (not alike)])
    return torch.cat(values)[torch.cat(order).argsort()]


def _apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrices (..., b, i, j) on vectors (..., n, j): (..., n, i)."""
    if matrices.shape[-3] == 1:
        return vectors @ matrices[..., 0, :, :].mT
    return (matrices @ vectors[..., None])[..., 0]


def _cholesky(matrices: Tensor) -> Tensor:
    """Lower factors; NaN where a matrix is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(matrices)
    return torch.where((failed > 0)[..., None, None], torch.nan, factor) if bool(failed.any()) else factor


def _solve(matrices: Tensor, right: Tensor) -> Tensor:
    """S^-1 right for positive definite S (..., D, D)."""
    if matrices.shape[-1] == 1:
        return right / matrices
    return torch.cholesky_solve(right, _cholesky(matrices))


def innovation_cov(system: System, cov: Tensor, pattern: Tensor | None) -> Tensor:
    """S = C P C' + R, shape (..., b, D, D); missing cells are cut off, with a unit on the diagonal."""
    full = system.emission @ cov @ system.emission.mT + system.noise
    return full if pattern is None else _cut(full, pattern)


def _cut(cov: Tensor, pattern: Tensor) -> Tensor:
    both = pattern[..., :, None] & pattern[..., None, :]
    return torch.where(both, cov, torch.diag_embed((~pattern).to(cov.dtype)))


def _update(system: System, cov: Tensor, pattern: Tensor | None, eye: Tensor) -> tuple[Tensor, Tensor]:
    """Gain (b, S, D) and covariance (b, S, S) after a step, in Joseph's form, which keeps it positive."""
    c = system.emission
    cross = c @ cov
    spread = cross @ c.mT + system.noise
    if pattern is not None:
        cross, spread = cross * pattern[..., None], _cut(spread, pattern)
    gain = _solve(spread, cross).mT
    keep = eye - gain @ c
    after = keep @ cov @ keep.mT + gain @ system.noise @ gain.mT
    return gain, 0.5 * (after + after.mT)


def _forward(system: System, cov: Tensor) -> Tensor:
    ahead = system.transition @ cov @ system.transition.mT + system.state_noise
    return 0.5 * (ahead + ahead.mT)


def _has_settled(new: Tensor, old: Tensor, closed: Tensor) -> bool:
    """Whether a covariance stands still, each entry by the scale of its own pair of states.

    What it may still travel is its last change over 1 - rho^2, rho being the spectral radius of the closed loop.
    """
    with torch.no_grad():
        scale = new.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        change = (new - old).abs()
        allowed = _SETTLED * scale[..., :, None] * scale[..., None, :]
        if not bool((change <= allowed).all()):
            return False
        radius = float(torch.linalg.eigvals(closed).abs().max())
        if not bool(change.any()):
            return radius <= 1 + 1e-9
        return radius < 1 and bool((change <= _EXACT / _SETTLED * allowed * (1 - radius**2)).all())


def scan(matrix: Tensor, pushes: Tensor, start: Tensor) -> Tensor:
    """h_t = F h_{t-1} + g_t for all t at once, in log2(T) passes of doubling (Hillis and Steele 1986).

    Arguments:
        matrix: F, shape (S, S).
        pushes: g, shape (T, n, S).
        start: h_0, shape (n, S).
    """
    if not len(pushes):
        return pushes
    h = torch.cat([pushes[:1] + start @ matrix.T, pushes[1:]])
    power, shift = matrix, 1
    while shift < len(h) and float(power.detach().abs().max()) > 1e-30:
        h = torch.cat([h[:shift], h[shift:] + h[:-shift] @ power.T])
        power, shift = power @ power, 2 * shift
    return h


def filtered(system: System, batch: Batch, start: tuple[Tensor, Tensor] | None = None) -> Filtered:
    """The Kalman filter (Kalman 1960). Steps without gaps are taken all at once when covariances have settled.

    Arguments:
        start: Mean (n, S) and covariance (b, S, S) of z_1; None takes the system's.
    """
    total, n, _ = batch.x.shape
    mean, cov = (system.start_mean.expand(n, -1), system.start_cov[None]) if start is None else start
    centred = batch.x - batch.inputs @ system.feedthrough.T - system.offset
    centred = centred if batch.seen is None else torch.where(batch.seen, centred, 0.0)
    drift = nn.functional.pad(batch.inputs @ system.control.T, (0, 0, 0, 0, 0, 1))
    pattern = batch.pattern
    if pattern is not None and cov.shape[0] < pattern.shape[1]:
        cov = cov.expand(n, -1, -1)
    whole = [True] * total if pattern is None else pattern.flatten(1).all(1).tolist()
    records: list[tuple[Tensor, ...]] = []
    steady: list[tuple[int, int]] = []
    t, quick = 0, cov.shape[0] == 1 and not (torch.is_grad_enabled() and any(part.requires_grad for part in system))
    memory = eye = torch.eye(mean.shape[1], dtype=mean.dtype)
    while t < total:
        if quick:
            stop = min(total, t + _BLOCK)
            mask = None if pattern is None else pattern[t:stop, 0]
            record, mean, old, cov = _block(system, mean, cov, centred[t:stop], drift[t + 1 : stop + 1], mask)
            records.append(record)
            t = stop
            closed = system.transition - system.transition @ record[4][-1, 0] @ system.emission
            if all(whole[t - 1 : t + _SHORT]) and t + _SHORT <= total and _has_settled(cov, old, closed):
                t, mean = _rest(system, cov, mean, centred, drift, whole, t, records, steady)
            continue
        now = None if whole[t] or pattern is None else pattern[t]
        gain, after = _update(system, cov, now, eye)
        # missing cells have no gain, so what stands in their place does not matter
        posterior = mean + _apply(gain, centred[t] - mean @ system.emission.T)
        records.append(tuple(part[None] for part in (mean, cov, posterior, after, gain)))
        ahead, old = _forward(system, after), cov
        mean, cov, t = posterior @ system.transition.T + drift[t + 1], ahead, t + 1
        if ahead.shape[0] > 1:
            continue
        if ahead.requires_grad:
            kept = (system.transition - system.transition @ gain[0] @ system.emission).detach()
            memory = kept @ memory if whole[t - 1] else eye
        if t % _EVERY or t + _SHORT > total or not all(whole[t - 1 : t + _SHORT]):
            continue
        closed = system.transition - system.transition @ gain[0] @ system.emission
        if (not ahead.requires_grad or float(memory.abs().max()) < _FORGOTTEN) and _has_settled(ahead, old, closed):
            t, mean = _rest(system, cov, mean, centred, drift, whole, t, records, steady)
    return Filtered(*(torch.cat(parts) for parts in zip(*records, strict=True)), tuple(steady))  # type: ignore[arg-type, call-arg]


def _rest(
    system: System,
    cov: Tensor,
    mean: Tensor,
    centred: Tensor,
    drift: Tensor,
    whole: list[bool],
    t: int,
    records: list[tuple[Tensor, ...]],
    steady: list[tuple[int, int]],
) -> tuple[int, Tensor]:
    """Takes all steps up to the next gap at once; the step it gets to, and the mean there."""
    last = next((s for s in range(t, len(whole)) if not whole[s]), len(whole))
    stretch, mean = _stretch(system, cov, mean, centred[t:last], drift[t + 1 : last + 1])
    records.append(stretch)
    steady.append((t, last))
    return last, mean


def _block(
    system: System, mean: Tensor, cov: Tensor, x: Tensor, drift: Tensor, pattern: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """Steps with one covariance for all sequences, in NumPy: small matrices cost a fraction of what they do in torch.

    Returns:
        The records of the steps; the mean, the covariance before last and the last one after them.
    """
    a, q, c, r = (
        part.detach().numpy() for part in (system.transition, system.state_noise, system.emission, system.noise)
    )
    mask = None if pattern is None else pattern.numpy()
    m, p, steps, pushes, eye = mean.detach().numpy(), cov[0].detach().numpy(), x.numpy(), drift.numpy(), np.eye(len(a))
    kept, old = [], p
    with np.errstate(all="ignore"):
        for t in range(len(steps)):
            cross = c @ p
            s = cross @ c.T + r
            if mask is not None and not mask[t].all():
                cross = cross * mask[t][:, None]
                s = np.where(mask[t][:, None] & mask[t], s, np.diag(~mask[t]))
            gain = (cross / s).T if len(s) == 1 else _solved(s, cross).T
            keep = eye - gain @ c
            after = keep @ p @ keep.T + gain @ r @ gain.T
            after = 0.5 * (after + after.T)
            posterior = m + (steps[t] - m @ c.T) @ gain.T
            kept.append((m, p, posterior, after, gain))
            ahead = a @ after @ a.T + q
            m, old, p = posterior @ a.T + pushes[t], p, 0.5 * (ahead + ahead.T)
    parts = [torch.from_numpy(np.array(part)) for part in zip(*kept, strict=True)]
    records = (parts[0], parts[1][:, None], parts[2], parts[3][:, None], parts[4][:, None])
    return records, torch.from_numpy(m), torch.from_numpy(old)[None], torch.from_numpy(p)[None]


def _solved(s: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.solve(s, right)
    except np.linalg.LinAlgError:
        return np.full_like(right, np.nan)


def _stretch(system: System, cov: Tensor, mean: Tensor, x: Tensor, drift: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Steps at a standing covariance (1, S, S): the records of each, and the mean that follows."""
    gain, after = _update(system, cov, None, torch.eye(cov.shape[-1], dtype=cov.dtype))
    closed = system.transition - system.transition @ gain[0] @ system.emission
    means = scan(closed, x @ (system.transition @ gain[0]).T + drift, mean)
    before = torch.cat([mean[None], means[:-1]])
    posterior = before + (x - before @ system.emission.T) @ gain[0].T
    still = tuple(part.expand(len(x), *part.shape) for part in (cov, after, gain))
    return (before, still[0], posterior, still[1], still[2]), means[-1]


def observed(system: System, batch: Batch, f: Filtered) -> tuple[Tensor, Tensor]:
    """Mean (T, n, D) and covariance (T, b, D, D) of x_t given x_<t, over all cells, recorded or not."""
    return system.mean(f.before, batch.inputs), innovation_cov(system, f.before_cov, None)


def step_nats(system: System, batch: Batch, f: Filtered) -> Tensor:
    """log p(x_t | x_<t) of the recorded cells, shape (T, n); NaN where a predictive covariance is singular."""
    pattern = batch.pattern
    gap = batch.x - system.mean(f.before, batch.inputs)
    factor = _cholesky(innovation_cov(system, f.before_cov, pattern))
    if batch.seen is not None:
        gap = torch.where(batch.seen, gap, 0.0)
    cells = gap.shape[-1] if batch.seen is None else batch.seen.sum(-1).to(gap.dtype)
    if factor.shape[1] == 1:
        white = torch.linalg.solve_triangular(factor[:, 0], gap.mT, upper=False).mT
    else:
        white = torch.linalg.solve_triangular(factor, gap[..., None], upper=False)[..., 0]
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (white.square().sum(-1) + cells * math.log(2 * math.pi)) - log_det


def smoothed(system: System, batch: Batch, f: Filtered) -> Smoothed:
    """The fixed-interval smoother (Durbin and Koopman 2012, section 4.4), without inverses of state covariances.

    With r and N the weighted sums of later innovations, the mean is m + P A'r and the covariance P - P A'NA P, m and P
    being the filter's: nothing large cancels, and P, Q and P0 may be singular.
    """
    size = f.means.shape[-1]
    pattern, c = batch.pattern, system.emission
    gap = batch.x - system.mean(f.before, batch.inputs)
    gap = torch.where(batch.inside[..., None] if batch.seen is None else batch.seen, gap, 0.0)
    chosen = c if pattern is None else c * pattern[..., None]
    weights = _solve(innovation_cov(system, f.before_cov, pattern), chosen.expand(*f.before_cov.shape[:2], *c.shape))
    pushes = _apply(weights.mT, gap)
    news = weights.mT @ chosen
    ragged = not bool(batch.inside.all())
    if ragged:
        lengths = batch.classes[0]
        inside = lengths if news.shape[1] == 1 and lengths.shape[1] < batch.inside.shape[1] else batch.inside
        news = torch.where(inside[..., None, None], news, 0.0)
    closed = system.transition @ (torch.eye(size, dtype=c.dtype) - f.gains @ c)
    if f.steady and not ragged and news.shape[1] == 1:
        r, curve = _backward_with_rests(pushes, news, closed, f.steady)
    else:
        r, curve = _backward(pushes, news, closed)
    reach = f.covs @ system.transition.mT
    means = f.means + _apply(reach, r)
    covs = f.covs - reach @ curve @ reach.mT
    following = torch.cat([f.before_cov[1:], f.before_cov[-1:]])
    ahead = (torch.eye(size, dtype=c.dtype) - following @ curve) @ reach.mT
    return Smoothed(means, 0.5 * (covs + covs.mT), ahead)


def _backward(pushes: Tensor, news: Tensor, closed: Tensor) -> tuple[Tensor, Tensor]:
    """r (T, n, S) and N (T, b, S, S) as they stand after each step: r_{t-1} = e_t + L_t' r_t."""
    r, curve = torch.zeros_like(pushes[0]), torch.zeros_like(news[0])
    sums, curves = [r], [curve]
    for t in range(len(pushes) - 1, 0, -1):
        back = closed[t].mT
        r, curve = pushes[t] + _apply(back, r), news[t] + back @ curve @ closed[t]
        sums.append(r)
        curves.append(curve)
    return torch.stack(sums[::-1]), torch.stack(curves[::-1])


def _backward_with_rests(
    pushes: Tensor, news: Tensor, closed: Tensor, steady: tuple[tuple[int, int], ...]
) -> tuple[Tensor, Tensor]:
    """As ``_backward``, taking at once the steady steps over which N stands still."""
    r, curve = torch.zeros_like(pushes[0]), torch.zeros_like(news[0])
    sums, curves = [r[None]], [curve[None]]
    t = len(pushes) - 1
    while t > 0:
        back, old = closed[t].mT, curve
        r, curve = pushes[t] + _apply(back, r), news[t] + back @ curve @ closed[t]
        sums.append(r[None])
        curves.append(curve[None])
        t -= 1
        first = max((a for a, b in steady if a <= t < b), default=t)
        if t - first > _SHORT and _has_settled(curve, old, closed[t, 0]):
            h = scan(closed[t, 0].T, pushes[first + 1 : t + 1].flip(0), r)
            r, t = h[-1], first
            sums.append(h)
            curves.append(curve.expand(len(h), *curve.shape))
    return torch.cat(sums).flip(0), torch.cat(curves).flip(0)
