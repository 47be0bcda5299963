"""Where a fit starts, in standardised units."""

import math

import torch
from torch import Tensor

from probgen.models.statespace.em import Sequences
from probgen.models.statespace.kalman import System
from probgen.models.statespace.structure import Structure

__all__ = ["start"]

_SHARES = (0.5, 0.1, 0.9, 0.01)  # of the roughness of a series, what its states have in the first starts


def start(shape: Structure, data: Sequences, number: int, generator: torch.Generator) -> System:
    """The system that restart ``number`` begins at: the first from moments of the data, later ones drawn."""
    width = data.x.shape[1]
    share = _SHARES[number] if number < len(_SHARES) else float(torch.rand((), generator=generator))
    blank = torch.zeros(width, data.inputs.shape[1], dtype=torch.float64)
    control = torch.zeros(len(shape.names), data.inputs.shape[1], dtype=torch.float64)
    zero = torch.zeros(width, dtype=torch.float64)
    if shape.emission is None:
        a, q, c, r = _from_windows(shape, data) if number == 0 else _drawn(shape, width, generator)
        return System(a, control, q, c, blank, zero, r, torch.zeros(len(a), dtype=a.dtype), torch.eye(len(a)).double())
    rough = _roughness(data)
    a, weights = shape.transition, torch.zeros(len(shape.names), dtype=torch.float64)
    if shape.free_rows:
        a = a.clone()
        a[:width, :width] = (1 - share) * torch.eye(width, dtype=a.dtype)
        weights[:width] = share
        noise = torch.eye(width, dtype=a.dtype) * (1 - share)
    else:
        blocks = [share * rough * 0.1 ** min(i, 2) for i in range(int(shape.noisy.sum()) // width)]
        weights[shape.noisy] = torch.cat(blocks)
        noise = torch.diag((1 - share) / 2 * rough + 1e-3)
    mean, spread = torch.zeros_like(weights), torch.ones_like(weights)
    if bool(shape.level.any()):
        mean[shape.level] = data.x[data.starts].nanmean(0).nan_to_num()
        slope = torch.tensor([name.startswith("slope") for name in shape.names])
        spread[slope] = rough[: int(slope.sum())]
    return System(a, control, weights.diag(), shape.emission, blank, zero, noise, mean, spread.diag())


def _roughness(data: Sequences) -> Tensor:
    """Mean square of the first differences of each column, shape (D,); 1 where nothing follows anything."""
    before, after = data.pairs
    change = data.x[after] - data.x[before]
    mean = change.square().nanmean(0) if len(change) else torch.full_like(data.x[0], torch.nan)
    return torch.where(mean.isnan(), 1.0, mean.clamp(min=1e-6))


def _drawn(shape: Structure, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A random rotation that slowly forgets, seen through random weights; states and cells have about unit size."""
    size = len(shape.names)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    memory = 0.5 + 0.49 * float(torch.rand((), generator=generator))
    weights = torch.randn(width, size, generator=generator, dtype=torch.float64) / math.sqrt(2 * size)
    eye = torch.eye(size, dtype=torch.float64)
    return memory * turn, (1 - memory**2) * eye, weights, 0.5 * torch.eye(width, dtype=torch.float64)


def _from_windows(shape: Structure, data: Sequences) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States as principal components of windows of steps, regressed on each other (Ho and Kalman 1966, in spirit)."""
    size, (total, width) = len(shape.names), data.x.shape
    x = data.x.nan_to_num()
    place = torch.arange(total) - data.starts.repeat_interleave(data.lengths)
    left = data.lengths.repeat_interleave(data.lengths) - place
    lags = range(size // width + 2)
    window = torch.cat([torch.where((left > k)[:, None], x.roll(-k, 0), 0.0) for k in lags], 1)
    values, vectors = torch.linalg.eigh(window.T @ window / total)
    keep = vectors[:, -size:].flip(1) / values[-size:].flip(0).clamp(min=1e-4).sqrt()
    z = window @ keep
    before, after = data.pairs
    a = torch.linalg.lstsq(z[before], z[after], driver="gelsd").solution.T if len(after) > size else 0.5 * _eye(size)
    a = 0.98 * a / max(0.98, float(torch.linalg.eigvals(a).abs().max()))
    c = torch.linalg.lstsq(z, x, driver="gelsd").solution.T
    rest = z[after] - z[before] @ a.T
    q = rest.T @ rest / max(len(after), 1) + 0.05 * _eye(size)
    return a, q, c, (x - z @ c.T).T @ (x - z @ c.T) / total + 0.05 * _eye(width)


def _eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)
