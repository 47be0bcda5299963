"""A solver of the probability flow that is fitted to one network: its times, and what each step makes of past calls."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from probgen.models.diffusion.trig import END, extrapolation, flow_times, solve

__all__ = ["MOST_CALLS", "FittedSampler", "SamplerReport", "fit_solver"]

MOST_CALLS = 32
_CONVERGED = 60  # steps of rk4

Moving = Callable[[Tensor, Tensor], Tensor]  # v(y, t) with t a tensor, through which slopes pass


class SamplerReport(NamedTuple):
    """How far samples end from the converged flow, on noise that no coefficient has seen.

    Arguments:
        evaluations: Calls of the network a sample.
        before: Root mean square distance a row of "ab4" with as many calls, in coordinates of unit variance.
        after: That of the solver that is kept; ``before`` if the fitted one was no nearer.
    """

    evaluations: int
    before: float
    after: float


class FittedSampler(nn.Module):
    """y_{i+1} = keep_i y_i + sum_{j <= i} weights_ij v(y_j, t_j): every solver that is linear in past calls.

    ``calls`` is 0 until it is fitted.
    """

    calls: Tensor
    times: Tensor
    keep: Tensor
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("times", torch.zeros(MOST_CALLS, dtype=torch.float64))
        self.register_buffer("keep", torch.ones(MOST_CALLS, dtype=torch.float64))
        self.register_buffer("weights", torch.zeros(MOST_CALLS, MOST_CALLS, dtype=torch.float64))

    def store(self, times: Tensor, keep: Tensor, weights: Tensor) -> None:
        """Takes over coefficients of some calls, (k,), (k,) and (k, k)."""
        k = len(keep)
        self.forget()
        self.calls.fill_(k)
        self.times[:k], self.keep[:k], self.weights[:k, :k] = times, keep, weights

    def forget(self) -> None:
        self.calls.zero_()
        for part in (self.times, self.keep, self.weights):
            part.zero_()

    def forward(self, field: Moving, y: Tensor) -> Tensor:
        k = int(self.calls)
        return _solved(field, y, self.times[:k], self.keep[:k], self.weights[:k, :k])


def _solved(field: Moving, y: Tensor, times: Tensor, keep: Tensor, weights: Tensor) -> Tensor:
    past: list[Tensor] = []
    for i, t in enumerate(times):
        past.append(field(y, t.expand(len(y)).to(y.dtype)))
        step = torch.tensordot(weights[i, : i + 1].to(y.dtype), torch.stack(past), 1)
        y = keep[i].to(y.dtype) * y + step
    return y


def fit_solver(
    sampler: FittedSampler,
    field_of: Callable[[Tensor], Moving],
    noise: Tensor,
    last: float,
    evaluations: int,
    rows: int,
    iterations: int,
    generator: torch.Generator,
) -> SamplerReport:
    """Fits it to end where the converged flow does, from "ab4" on, by L-BFGS through the network (Shaul et al. 2024).

    A few rows between two modes make most of the mean square, so that rows are drawn by how far "ab4" errs on them,
    and weighted back. A quarter of the noise judges: the coefficients are kept if they are nearer there than "ab4".

    Arguments:
        field_of: The flow of some rows of ``noise``, by their indices.
        noise: (n, width).
        last: The time at which the flow ends.
        rows: So many are drawn of the other three quarters of the noise.
        iterations: Of L-BFGS; each calls the network about 3 x 1.2 x ``evaluations`` times a row.
    """
    start = flow_times(evaluations, last)
    first, plain = _adams_bashforth(start), torch.ones(evaluations, dtype=torch.float64)
    every, cut = torch.arange(len(noise)), 3 * len(noise) // 4
    with torch.no_grad():
        ends = torch.cat([_end(field_of(some), noise[some], last) for some in every.split(1024)])

    def far(some: Tensor, *coefficients: Tensor) -> Tensor:
        """Squared distances, (rows,)."""
        return (_solved(field_of(some), noise[some], *coefficients) - ends[some]).to(torch.float64).square().sum(1)

    def together(*coefficients: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([far(some, *coefficients) for some in every.split(1024)])

    before = together(start[:-1], plain, first)
    p = before[:cut] + before[:cut].mean() + 1e-12
    some = torch.multinomial(p, rows, replacement=True, generator=generator)
    weights = p.mean() / p[some]
    free = _Free(start, first)
    descent = torch.optim.LBFGS(
        list(free.parameters()), max_iter=iterations, max_eval=5 * iterations // 4, history_size=60,
        tolerance_grad=0.0, tolerance_change=1e-12, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def slope() -> Tensor:
        loss = ((far(some, *free()) * weights).mean() + 1e-12).log()
        for parameter, gradient in zip(
            free.parameters(), torch.autograd.grad(loss, list(free.parameters())), strict=True
        ):
            parameter.grad = gradient
        return loss

    with torch.enable_grad():
        descent.step(slope)  # type: ignore[arg-type]
    own = [part.detach() for part in free()]
    rms = [math.sqrt(float(squares[cut:].mean())) for squares in (before, together(*own))]
    better = rms[1] < rms[0]  # and so no NaN
    sampler.store(*(own if better else (start[:-1], plain, first)))
    return SamplerReport(evaluations, rms[0], min(rms) if better else rms[0])


def _end(field: Moving, y: Tensor, last: float) -> Tensor:
    def still(y: Tensor, t: float) -> Tensor:
        return field(y, torch.full((len(y),), t, dtype=y.dtype))

    return solve(still, y, flow_times(_CONVERGED, last), "rk4")


def _adams_bashforth(times: Tensor) -> Tensor:
    """The weights of "ab4", (k, k)."""
    at = times.tolist()
    weights = torch.zeros(len(at) - 1, len(at) - 1, dtype=torch.float64)
    for i in range(len(at) - 1):
        past, h = at[max(0, i - 3) : i + 1], at[i + 1] - at[i]
        weights[i, max(0, i - 3) : i + 1] = h * extrapolation(past, h)
    return weights


class _Free(nn.Module):
    """Coefficients as numbers that may move freely, 0 or of unit size at the start: logarithms of the steps' lengths,
    and departures in proportion to them."""

    def __init__(self, start: Tensor, first: Tensor) -> None:
        super().__init__()
        self.start, self.first, self.lengths = start, first, start[:-1] - start[1:]
        self.log_lengths = nn.Parameter(self.lengths.log())
        self.kept = nn.Parameter(torch.zeros_like(self.lengths))
        self.weights = nn.Parameter(torch.zeros_like(first))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Times, keep, weights."""
        lengths = self.log_lengths.softmax(0) * (self.start[0] - self.start[-1])
        times = END - torch.cat([lengths.new_zeros(1), lengths[:-1].cumsum(0)])
        weights = (self.first + self.lengths[:, None] * self.weights.tril()) * (lengths / self.lengths)[:, None]
        return times, 1 + self.kept * self.lengths, weights
