"""Gamma functions and their relatives where the plain formulas cancel."""

import math

import torch
from torch import Tensor

__all__ = ["deviance", "incomplete_beta", "log_minus_digamma", "solve_shape", "stirling_error", "surprise"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def stirling_error(z: Tensor) -> Tensor:
    """log Gamma(z + 1) - [(z + 1/2) log z - z + log(2 pi) / 2] for z > 0, by its series from z = 10 on."""
    big = z.clamp(min=10.0)
    inverse = big.square().reciprocal()
    series = 1 / 1188 + inverse * (-691 / 360360)
    for term in (-1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = term + inverse * series
    small = z.clamp(max=10.0)
    plain = torch.lgamma(small + 1) - (small + 0.5) * small.log() + small - _HALF_LOG_2PI
    return torch.where(z < 10, plain, series / big)


def surprise(d: Tensor) -> Tensor:
    """d - log(1 + d) for d > -1, without cancellation near 0 (the series of Loader 2000)."""
    near = d.abs() < 0.2
    small = torch.where(near, d, 0.0)
    v = small / (2 + small)
    square = v.square()
    tail = torch.zeros_like(v)
    for j in range(8, 0, -1):
        tail = (tail + 1 / (2 * j + 1)) * square
    far = torch.where(near, 1.0, d)
    return torch.where(near, small * v - 2 * v * tail, far - torch.log1p(far))


def deviance(a: Tensor, difference: Tensor) -> Tensor:
    """a log(a / b) + b - a with b = a - difference, for a >= 0 and b > 0: half a Poisson deviance (Loader 2000)."""
    b = a - difference
    positive = torch.where(a > 0, a, 1.0)
    near = (difference.abs() < 0.2 * b) & (a > 0)
    relative = torch.where(near, -difference / positive, 0.0)  # b / a - 1
    far = a * (positive.log() - b.log()) - difference
    return torch.where(near, a * surprise(relative), torch.where(a > 0, far, b))


def log_minus_digamma(a: Tensor) -> tuple[Tensor, Tensor]:
    """log a - digamma(a) > 0 for a > 0, and its derivative; asymptotic series from a = 20 on."""
    big = a.clamp(min=20.0)
    u = big.reciprocal()
    s = u.square()
    value = u / 2 + s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))
    slope = -s * (1 / 2 + u * (1 / 6 - s * (1 / 30 - s * (1 / 42 - s * (1 / 30 - s * 5 / 66)))))
    small = a.clamp(max=20.0)
    plain = small.log() - torch.digamma(small)
    steep = small.reciprocal() - torch.polygamma(1, small)
    return torch.where(a < 20, plain, value), torch.where(a < 20, steep, slope)


def solve_shape(gap: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """The a in [low, high] with log a - digamma(a) = gap >= 0: Newton on the logarithms of both sides.

    log(log a - digamma(a)) is nearly a straight line in log a, from slope -1 to slope -1 (Minka 2002 starts it).
    """
    gap = gap.clamp(min=1e-300)
    a = ((3 - gap + ((gap - 3).square() + 24 * gap).sqrt()) / (12 * gap)).clamp(min=1e-150, max=1e150)
    for _ in range(8):
        value, slope = log_minus_digamma(a)
        step = (value.log() - gap.log()) * value / (slope * a)
        a = (a.log() - step.clamp(-3, 3)).exp()
    return torch.minimum(torch.maximum(a, torch.as_tensor(low, dtype=a.dtype)), torch.as_tensor(high, dtype=a.dtype))


def incomplete_beta(a: Tensor, b: Tensor, y: Tensor, rest: Tensor) -> Tensor:
    """The regularised I_y(a, b) with rest = 1 - y: the side whose continued fraction converges; no gradient."""
    swap = y > (a + 1) / (a + b + 2)
    p, q = torch.where(swap, b, a), torch.where(swap, a, b)
    at, other = torch.where(swap, rest, y), torch.where(swap, y, rest)
    beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    front = (p * at.clamp(min=1e-300).log() + q * other.clamp(min=1e-300).log() - beta).exp() / p
    tail = torch.where(at > 0, front * _fraction(p, q, at), 0.0)
    return torch.where(y.isnan(), torch.nan, torch.where(swap, 1 - tail, tail))


def _fraction(p: Tensor, q: Tensor, at: Tensor) -> Tensor:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22) by Lentz's method."""
    tiny = 1e-300
    c, d = torch.ones_like(at), 1 / (1 - (p + q) * at / (p + 1)).clamp(min=tiny)
    value = d.clone()
    for m in range(1, 20000):
        even = m * (q - m) * at / ((p + 2 * m - 1) * (p + 2 * m))
        d, c = 1 / (1 + even * d), 1 + even / c
        value = value * d * c
        odd = -(p + m) * (p + q + m) * at / ((p + 2 * m) * (p + 2 * m + 1))
        d, c = 1 / (1 + odd * d), 1 + odd / c
        value = value * d * c
        if (d * c - 1).abs().nan_to_num().max() < 1e-15:
            break
    return value
