"""The log-likelihood of several state-space models at once, with its gradient in their matrices."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probgen.models.statespace.kalman import Batch

__all__ = ["scorer"]

_SETTLED = 4e-15  # relative change of a covariance that is its last

Arrays = tuple[np.ndarray, ...]


def scorer(made: Sequence[Batch], scale: Tensor) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
    """log p(x), (W,), in nats, and its gradient in each part of W ``System``s, (W, ...), as a function of the parts.

    Arguments:
        scale: Units of the columns, (D,).
    """
    sweeps = [_Sweep.of(batch, scale.numpy()) for batch in made]

    def scored(*parts: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        matrices = [part.numpy() for part in parts]
        with np.errstate(all="ignore"):
            found = [sweep(*matrices) for sweep in sweeps]
        nats = torch.from_numpy(sum(one[0] for one in found))
        return nats, tuple(torch.from_numpy(sum(some)) for some in zip(*(one[1] for one in found), strict=True))

    return scored


@dataclass(frozen=True, eq=False)
class _Sweep:
    """A batch of padded sequences, time first: x (T, n, D), u (T, n, U).

    Arguments:
        seen: Cells that count, (T, n, D).
        pattern: Recorded cells as covariances see them, (T, b, D); None where all are.
        inside: Steps that count, (T, c): of all sequences (c = 1), of those of each length, or of each (c = n).
        counts: Sequences that share each of those columns, (c,).
        constant: Of the log-likelihood, in nats.
    """

    x: np.ndarray
    u: np.ndarray
    seen: np.ndarray
    pattern: np.ndarray | None
    inside: np.ndarray
    counts: np.ndarray
    constant: float

    @classmethod
    def of(cls, batch: Batch, scale: np.ndarray) -> "_Sweep":
        pattern = None if batch.pattern is None else batch.pattern.numpy()
        inside = batch.inside
        recorded = inside[..., None].expand(batch.x.shape) if batch.seen is None else batch.seen
        seen: np.ndarray = recorded.numpy()
        if pattern is not None and pattern.shape[1] > 1:
            steps, counts = inside, torch.ones(inside.shape[1])
        else:
            steps, which = batch.classes
            counts = which.bincount()
        constant = -(seen * (np.log(scale) + 0.5 * math.log(2 * math.pi))).sum()
        return cls(batch.x.numpy(), batch.inputs.numpy(), seen, pattern, steps.numpy(), counts.numpy(), constant)

    def __call__(
        self, a: np.ndarray, b: np.ndarray, q: np.ndarray, c: np.ndarray, d: np.ndarray, offset: np.ndarray,
        r: np.ndarray, start_mean: np.ndarray, start_cov: np.ndarray,
    ) -> tuple[np.ndarray, list[np.ndarray]]:  # fmt: skip
        """Koopman and Shephard (1992): scores from the smoothed disturbances, so that Q and P0 may be singular."""
        total, n = self.x.shape[:2]
        before, after, gains, weights, log_dets = self._covariances(a, q, c, r, start_cov)
        emission = c[:, None] if self.pattern is None else c[:, None] * self.pattern[:, None, :, :, None]
        ahead = a[:, None] @ gains
        closed = a[:, None] - ahead @ emission
        centred = self.x[:, None] - self.u[:, None] @ d.mT - offset[:, None]
        push = _apply(ahead, np.where(self.seen[:, None], centred, 0.0))
        push[:-1] += self.u[1:, None] @ b.mT
        means = _scan(closed, push, np.repeat(start_mean[:, None], n, 1))
        gap = np.where(self.seen[:, None], centred - means @ c.mT, 0.0)
        news = _apply(weights, gap)
        nats = -0.5 * ((gap * news).sum((0, 2, 3)) + self._weighed(log_dets[..., None, None])[:, 0, 0]) + self.constant
        weights = weights * self.inside[:, None, :, None, None]
        late, curve, first, first_curve = _backward(_apply(emission.mT, news), emission.mT @ weights @ emission, closed)
        smoothed = means + _apply(gains, gap) + _apply(after @ a[:, None].mT, late)
        errors = news - _apply(ahead.mT, late)
        pulled = ahead.mT @ curve
        return nats, [
            _cross(late, smoothed) - self._summed(curve @ a[:, None] @ after),
            _cross(late[:-1], np.broadcast_to(self.u[1:, None], (total - 1, len(a), *self.u.shape[1:]))),
            0.5 * (_cross(late, late) - self._summed(curve)),
            _cross(errors, smoothed) - self._summed((weights @ emission - pulled @ closed) @ before),
            _cross(errors, np.broadcast_to(self.u[:, None], (total, len(a), *self.u.shape[1:]))),
            errors.sum((0, 2)),
            0.5 * (_cross(errors, errors) - self._summed(weights + pulled @ ahead)),
            first.sum(1),
            0.5 * (first.mT @ first - self._summed(first_curve[None])),
        ]

    def _summed(self, each: np.ndarray) -> np.ndarray:
        """Sums over steps and sequences of what sequences share, (T, W, c, i, j)."""
        return (each.sum(0) * self.counts[:, None, None]).sum(1)

    def _weighed(self, each: np.ndarray) -> np.ndarray:
        """As ``_summed``, of the steps that count alone; (T, W, 1 or c, i, j)."""
        return self._summed(each * self.inside[:, None, :, None, None])

    def _covariances(self, a: np.ndarray, q: np.ndarray, c: np.ndarray, r: np.ndarray, cov: np.ndarray) -> Arrays:
        """P before and after each step, gains, S^-1 with zeros at missing cells, and log |S|: (T, W, b, ...).

        Where nothing is missing, what stands still is not computed again.
        """
        a, q, c, r, p = (part[:, None] for part in (a, q, c, r, cov))
        if self.pattern is not None:
            p = np.repeat(p, self.pattern.shape[1], 1)
        eye, records, t = np.eye(a.shape[-1]), [], 0
        for t in range(len(self.x)):
            mask = None if self.pattern is None else self.pattern[t]
            seen, noise = (c, r) if mask is None else (c * mask[..., None], r * (mask[:, :, None] & mask[:, None]))
            cross = seen @ p
            spread = cross @ seen.mT + noise
            unit = 0.0 if mask is None else np.eye(mask.shape[1]) * ~mask[..., None]
            inverse = _inverse(spread + unit)
            gain = (inverse @ cross).mT
            keep = eye - gain @ seen
            after = keep @ p @ keep.mT + gain @ noise @ gain.mT
            records.append((p, after, gain, inverse - unit, spread + unit))
            old, p = p, a @ after @ a.mT + q
            p = 0.5 * (p + p.mT)
            if self.pattern is None and _settled(p, old):
                break
        stacked = [np.stack(column) for column in zip(*records, strict=True)]
        rest = len(self.x) - len(records)
        full = [np.concatenate([part, np.repeat(part[-1:], rest, 0)]) if rest else part for part in stacked]
        sign, log_det = np.linalg.slogdet(full[4])
        return (*full[:4], np.where(sign > 0, log_det, np.nan))


def _inverse(matrices: np.ndarray) -> np.ndarray:
    if matrices.shape[-1] == 1:
        return 1 / matrices
    try:
        return np.linalg.inv(matrices)
    except np.linalg.LinAlgError:
        return np.full_like(matrices, np.nan)


def _settled(new: np.ndarray, old: np.ndarray) -> bool:
    size = np.sqrt(np.maximum(np.einsum("...ii->...i", new), 0.0))
    return bool((np.abs(new - old) <= _SETTLED * size[..., :, None] * size[..., None, :]).all())


def _apply(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Matrices (..., b, i, j) on vectors (..., n, j), b being 1 or n: (..., n, i)."""
    if matrices.shape[-3] == 1:
        return vectors @ matrices[..., 0, :, :].mT
    return (matrices @ vectors[..., None])[..., 0]


def _scan(closed: np.ndarray, push: np.ndarray, start: np.ndarray) -> np.ndarray:
    """m_1 = start, m_{t+1} = L_t m_t + push_t, shape (T, W, n, S)."""
    means = np.empty_like(push)
    means[0] = start
    for t in range(len(push) - 1):
        means[t + 1] = _apply(closed[t], means[t]) + push[t]
    return means


def _backward(push: np.ndarray, news: np.ndarray, closed: np.ndarray) -> Arrays:
    """r and N as they stand after each step, and before the first: r_{t-1} = push_t + L_t' r_t, N alike."""
    late, curve = np.zeros_like(push), np.zeros_like(news)
    r, n = np.zeros_like(push[0]), np.zeros_like(news[0])
    for t in range(len(push) - 1, -1, -1):
        late[t], curve[t] = r, n
        back = closed[t].mT
        r, n = push[t] + _apply(back, r), news[t] + back @ n @ closed[t]
    return late, curve, r, n


def _cross(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sums over steps and sequences of left right', (T, W, n, i) and (T, W, n, j) to (W, i, j)."""
    (total, width, n, i), j = left.shape, right.shape[3]
    return left.transpose(1, 3, 0, 2).reshape(width, i, total * n) @ right.transpose(1, 0, 2, 3).reshape(
        width, total * n, j
    )
