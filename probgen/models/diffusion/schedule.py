"""The chain's times and its reverse variances, measured on held-out rows once the network is trained."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen.models.diffusion.trig import END, LATEST, chain_times

if TYPE_CHECKING:
    from probgen.models.diffusion.family import Diffusion

__all__ = ["calibrate", "cheapest_times"]

_LOOKS = 48  # times at which the network's errors are measured
_FINE = 4  # times to choose from for each step of the chain
_WIDEST = 10  # of them that a step spans at most, so that samples are drawn in no leaps


@torch.no_grad()
def calibrate(model: "Diffusion", cells: Tensor, given: Tensor | None) -> None:
    """Sets ``moments`` and ``residual``: the times with the tightest bound, the variances of x about E[x | y] there.

    Variances have eight rows' worth of what independent normal coordinates would leave. The same noise at every time
    makes the errors smooth in time.

    Arguments:
        model: The diffusion; its network and scales are trained.
        cells, given: Rows that it was not trained on, if there are enough.
    """
    private = torch.Generator().manual_seed(0)
    count = min(len(cells), max(128, min(2000, 200_000 // model.rows.width)))
    some = torch.randperm(len(cells), generator=private)[:count]
    c, own = model.rows.encode(cells[some]).to(model.dtype), None if given is None else given[some]
    noise, square = torch.randn(c.shape, generator=private, dtype=c.dtype), model.rows.deviation.square()

    def left(t: float) -> Tensor:
        cos, sin = math.cos(t), math.sin(t)
        found = (c - model._data(cos * c + sin * noise, t, own)).to(torch.float64).square().sum(0)
        return (found + 8 * square * sin**2 / (cos**2 * square + sin**2)) / (count + 8)

    low, high = math.log(math.tan(float(model.first))), math.log(math.tan(LATEST))
    looks = torch.linspace(low, high, _LOOKS, dtype=torch.float64)
    log_left = torch.stack([left(t) for t in looks.exp().atan().tolist()]).log()
    at_end = left(END)
    times = chain_times(model.chain, float(model.first))
    if model.chain > 4:
        fine = torch.linspace(low, high, _FINE * (model.chain - 2) + 1, dtype=torch.float64)
        chosen = cheapest_times(fine, _between(fine, looks, log_left).exp(), at_end, model.chain)
        times = torch.cat([fine[chosen].exp().atan(), times[-1:]])
    model.moments.copy_(times)
    model.residual[:-1] = _between(times[:-1].tan().log(), looks, log_left).exp()
    model.residual[-1] = at_end


def _between(at: Tensor, looks: Tensor, values: Tensor) -> Tensor:
    """Values (k, width) at equidistant ``looks`` (k,), drawn straight between them: (len(at), width)."""
    place = ((at - looks[0]) / (looks[1] - looks[0])).clamp(0, len(looks) - 1)
    i = place.long().clamp(max=len(looks) - 2)
    return torch.lerp(values[i], values[i + 1], (place - i)[:, None])


def cheapest_times(log_ratio: Tensor, residual: Tensor, at_end: Tensor, chain: int) -> Tensor:
    """Which of some times, with pi/2 after them, make the chain's divergences least in sum (Watson et al. 2021).

    A step from t to s costs sum_i log(1 + (cot^2 s - cot^2 t) residual_i(t)) / 2 nats in the mean over rows.

    Arguments:
        log_ratio: log tan t of the times to choose from, ascending, (m,), m = 4 (chain - 2) + 1.
        residual: Variances there, (m, width); ``at_end`` those at pi/2, (width,).
        chain: Times of the chain with pi/2, at least 3.

    Returns:
        chain - 1 indices, ascending, the first 0.
    """
    m, snr = len(log_ratio), (-2 * log_ratio).exp()
    costs = torch.full((_WIDEST, m), math.inf, dtype=torch.float64)  # of the step from a + 1 + j to a
    for j in range(min(_WIDEST, m - 1)):
        gain = (snr[: m - 1 - j] - snr[j + 1 :])[:, None]
        costs[j, : m - 1 - j] = torch.log1p(gain * residual[j + 1 :]).sum(1) / 2
    best = torch.full((m,), math.inf, dtype=torch.float64)
    best[-_WIDEST:] = torch.log1p(snr[-_WIDEST:, None] * at_end).sum(1) / 2
    source = (torch.arange(m) + torch.arange(1, _WIDEST + 1)[:, None]).clamp(max=m - 1)
    choices = []
    for _ in range(chain - 2):
        best, choice = (best[source] + costs).min(0)
        choices.append(choice)
    place, found = 0, [0]
    for choice in reversed(choices):
        place += 1 + int(choice[place])
        found.append(place)
    return torch.tensor(found)
