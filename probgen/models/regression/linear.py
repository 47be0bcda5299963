"""Linear predictors: closed form for normals, Newton's method for the others, and what is left uncertain."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.errors import FitError
from probgen.models.regression.design import basis
from probgen.models.regression.head import Head
from probgen.models.regression.reals import Normal

__all__ = ["Found", "Objective", "Rows", "SeparationWarning", "ascend", "derivatives", "fit_point"]

_BLOCK = 1 << 16  # rows whose derivatives are held at once
_TOL = 1e-10  # nats that the last step of Newton's may still gain
_FLAT = 1e-6  # information of a direction of unit variance below which the likelihood is taken to have no maximum
_SHARPEST = {"log_scale": -14.0, "log_shape": 27.0}  # about where rows are hit exactly


class SeparationWarning(UserWarning):
    """The likelihood of a regression has no maximum: some coefficients want to be infinite."""


@dataclass(frozen=True)
class Rows:
    """What a linear fit sees: responses (n,), a design (n, 1 + d) that begins with ones, offsets (n,)."""

    y: Tensor
    design: Tensor
    offset: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Found:
    """A maximum: ``theta`` holds coefficients (places * (1 + d),) place by place, then the extras.

    Arguments:
        covariance: Of theta, (P, P); infinite variances where the rows say nothing.
        sure: Which columns' coefficients the rows determine, (1 + d,).
        history: The objective in nats at each step.
        rank: Free coefficients of one predictor.
    """

    theta: Tensor
    covariance: Tensor
    sure: Tensor
    history: list[float]
    stopped: str
    rank: int
    notes: tuple[str, ...] = ()


def derivatives(head: Head, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(y | u) (n,), its gradient (n, q) and its Hessian (n, q, q) in u, row by row."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        nats = head.log_prob(y, u)
        (slope,) = torch.autograd.grad(nats.sum(), u, create_graph=True)
        bends = [
            torch.autograd.grad(slope[:, j].sum(), u, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for j in range(u.shape[1])
        ]
    return nats.detach(), slope.detach(), torch.stack(bends, 1)


class Objective:
    """log p(y | theta) - (theta - middle)' precision (theta - middle) / 2, in nats."""

    def __init__(self, head: Head, rows: Rows, precision: Tensor, middle: Tensor | None = None) -> None:
        self.head, self.rows, self.precision = head, rows, precision
        self.middle = torch.zeros(len(precision), dtype=torch.float64) if middle is None else middle
        self.coefficients = head.places * rows.design.shape[1]

    def predictors(self, theta: Tensor, part: slice = slice(None)) -> Tensor:
        """u of rows, (n, q)."""
        x = self.rows.design[part]
        slopes = theta[: self.coefficients].reshape(self.head.places, -1)
        places = x @ slopes.T
        places = torch.cat([places[:, :1] + self.rows.offset[part, None], places[:, 1:]], 1)
        return torch.cat([places, theta[self.coefficients :].expand(len(x), -1)], 1)

    def _prior(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        pull = self.precision @ (theta - self.middle)
        return -0.5 * (theta - self.middle) @ pull, -pull

    def value(self, theta: Tensor) -> Tensor:
        """A differentiable scalar."""
        return self.head.log_prob(self.rows.y, self.predictors(theta)).sum() + self._prior(theta)[0]

    def __call__(self, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        """Value, gradient (P,) and Hessian (P, P)."""
        value, slope = self._prior(theta)
        bend = -self.precision.clone()
        for start in range(0, len(self.rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            nats, first, second = derivatives(self.head, self.rows.y[part], self.predictors(theta, part))
            value = value + nats.sum()
            slope = slope + self._spread(first, part)
            bend += self._crossed(second, part)
        return float(value), slope, bend

    def _spread(self, first: Tensor, part: slice) -> Tensor:
        """Gradients in u carried to theta."""
        places = self.head.places
        return torch.cat([(first[:, :places].T @ self.rows.design[part]).reshape(-1), first[:, places:].sum(0)])

    def _crossed(self, second: Tensor, part: slice) -> Tensor:
        """Hessians in u carried to theta."""
        x, places, width = self.rows.design[part], self.head.places, self.rows.design.shape[1]
        total = torch.zeros_like(self.precision)
        for i in range(places):
            for j in range(i + 1):
                block = x.T @ (second[:, i, j, None] * x)
                total[i * width : (i + 1) * width, j * width : (j + 1) * width] = block
                total[j * width : (j + 1) * width, i * width : (i + 1) * width] = block.T
            across = x.T @ second[:, i, places:]
            total[i * width : (i + 1) * width, self.coefficients :] = across
            total[self.coefficients :, i * width : (i + 1) * width] = across.T
        total[self.coefficients :, self.coefficients :] = second[:, places:, places:].sum(0)
        return total


def ascend(objective: Objective, start: Tensor, max_iter: int) -> tuple[Tensor, Tensor, list[float], str]:
    """Newton's method: theta, the Hessian there, the objective at each step, and how it stopped.

    Directions of positive curvature are followed uphill by its absolute value (Dauphin et al. 2014); steps are halved
    until they rise. It stops after a step that promised less than 1e-10 nats.

    Raises:
        FitError: no finite objective, or a likelihood without bound.
    """
    at, (value, slope, bend) = start, objective(start)
    _refuse_infinite(value, bend, 0)
    history, free = [value], len(start) - objective.coefficients
    for step in range(max_iter):
        move = _newton_move(slope, bend, free)
        promise = float(slope @ move)
        new, share = at + move, 1.0
        while not _rises(float(objective.value(new)), value, share * promise) and share > 1e-12:
            share /= 2
            new = at + share * move
        at, (value, slope, bend) = new, objective(new)
        _refuse_infinite(value, bend, step)
        history.append(max(value, history[-1]))
        _refuse_unbounded(objective.head, at[objective.coefficients :], step)
        if promise / 2 < _TOL or share <= 1e-12:
            return at, bend, history, "converged"
    return at, bend, history, "steps"


def _newton_move(slope: Tensor, bend: Tensor, free: int) -> Tensor:
    """A step; those of the last ``free`` numbers, which are logarithms, are at most 2."""
    unit = bend.diagonal().abs().sqrt().clamp(min=1e-6)
    values, vectors = torch.linalg.eigh(-bend / unit / unit[:, None])
    move = vectors @ ((vectors.T @ (slope / unit)) / values.abs().clamp(min=1e-9)) / unit
    longest = float(move[len(move) - free :].abs().max()) if free else 0.0
    return move * min(1.0, 2.0 / longest) if longest > 0 else move


def _rises(new: float, old: float, promise: float) -> bool:
    return math.isfinite(new) and new >= old + 1e-4 * promise - 1e-13 * (1 + abs(old))


def _refuse_infinite(value: float, bend: Tensor, step: int) -> None:
    if not math.isfinite(value) or not bool(bend.isfinite().all()):
        raise FitError(
            f"The objective is {value} at step {step}, or its curvature is not finite", "finite numbers",
            "Check the offset and the scale of the covariates, or add a ridge", step=step,
        )  # fmt: skip


def _refuse_unbounded(head: Head, extras: Tensor, step: int) -> None:
    for name, value in zip(head.names, extras.tolist(), strict=True):
        if name in _SHARPEST and abs(value) > abs(_SHARPEST[name]) and value * _SHARPEST[name] > 0:
            raise _passes_through(step)


def _passes_through(step: int) -> FitError:
    return FitError(
        "The predictor passes through the rows: the likelihood has no bound",
        "more rows than coefficients, and a response that they don't determine",
        "Drop covariates, or give the noise a prior: fit(..., method='conjugate')",
        step=step,
    )


def fit_point(head: Head, rows: Rows, ridge: float, max_iter: int) -> Found:
    """The maximum of the likelihood less ridge / 2 times the sum of squared slopes (of normals: over the variance).

    Slopes that the rows do not determine (constant or collinear columns, fewer rows than columns) take the values of
    least norm.
    """
    frame, sure = basis(rows.design)
    own = Rows(rows.y, rows.design @ frame, rows.offset)
    penalty = torch.zeros(len(frame), dtype=torch.float64)
    penalty[1:] = ridge
    precision = frame.T @ (penalty[:, None] * frame)
    start = torch.zeros(head.places, frame.shape[1], dtype=torch.float64)
    first = head.start(rows.y - rows.offset if head.location else rows.y)
    start[:, 0] = first[: head.places]
    theta = torch.cat([start.reshape(-1), first[head.places :]])
    if isinstance(head, Normal):
        theta, history = _least_squares(own, precision, theta)
        objective, bend, stopped = Objective(head, own, torch.zeros(len(theta), len(theta))), None, "converged"
    else:
        objective = Objective(head, own, _blocks(precision, head))
        theta, bend, history, stopped = ascend(objective, theta, max_iter)
    if not ridge and bend is not None and not head.location:
        _warn_if_flat(bend[: objective.coefficients, : objective.coefficients])
    carry = torch.block_diag(*[frame] * head.places, torch.eye(len(head.names), dtype=torch.float64))
    if ridge:  # the penalty determines what the rows do not
        covariance, sure = _penalised_covariance(head, rows, carry @ theta, penalty), torch.ones_like(sure)
    else:
        covariance = _carried(_covariance(objective, theta, bend), carry)
    notes = _notes(head, covariance, sure, stopped)
    return Found(carry @ theta, covariance, sure, history, stopped, frame.shape[1], notes)


def _carried(covariance: Tensor, carry: Tensor) -> Tensor:
    """A covariance in other coordinates; what an infinite variance enters is infinite."""
    lost = covariance.diagonal().isinf()
    out = carry @ torch.where(covariance.isinf(), 0.0, covariance) @ carry.T
    out.diagonal()[(carry[:, lost].abs() > 1e-12).any(1)] = torch.inf
    return out


def _penalised_covariance(head: Head, rows: Rows, theta: Tensor, penalty: Tensor) -> Tensor:
    """The inverse of the penalised observed information, at the fitted dispersion."""
    split = head.places * len(penalty)
    if isinstance(head, Normal):
        penalty = penalty * (-2 * theta[-1]).exp()
    _, _, bend = Objective(head, rows, _blocks(torch.diag(penalty), head))(theta)
    if head.classic:
        bend[:split, split:], bend[split:, :split] = 0.0, 0.0
    return _inverse(-bend)


def _notes(head: Head, covariance: Tensor, sure: Tensor, stopped: str) -> tuple[str, ...]:
    notes = []
    if not bool(sure.all()):
        notes.append(f"{int((~sure).sum())} coefficients of constant or collinear columns have no error")
    edge = covariance.diagonal()[len(covariance) - len(head.names) :].isinf().tolist()
    notes += [f"{name} went to its limit" for name, lost in zip(head.names, edge, strict=True) if lost]
    if stopped == "steps":
        notes.append("Newton's method did not converge: more max_iter")
    return tuple(notes)


def _blocks(precision: Tensor, head: Head) -> Tensor:
    extras = torch.zeros(len(head.names), len(head.names), dtype=torch.float64)
    return torch.block_diag(*[precision] * head.places, extras)


def _least_squares(rows: Rows, precision: Tensor, start: Tensor) -> tuple[Tensor, list[float]]:
    """Penalised least squares in an orthogonal design: theta, and the objective before and after."""
    y, x, n = rows.y - rows.offset, rows.design, len(rows)
    information = n * torch.eye(x.shape[1], dtype=torch.float64) + precision
    found = torch.linalg.solve(information, x.T @ y)
    found = found + torch.linalg.solve(information, x.T @ (y - x @ found) - precision @ found)  # one refinement
    square = float((y - x @ found).square().sum() + found @ precision @ found)
    if square <= 1e-24 * n:
        raise _passes_through(1)
    before = -0.5 * n * (math.log(2 * math.pi) + 1 + 2 * float(start[-1]))
    after = -0.5 * n * (math.log(2 * math.pi * square / n) + 1)
    log_scale = torch.tensor([0.5 * math.log(square / n)], dtype=torch.float64)
    return torch.cat([found, log_scale]), [min(before, after), after]


def _covariance(objective: Objective, theta: Tensor, bend: Tensor | None) -> Tensor:
    """The inverse of the observed information; of a generalised linear model's coefficients, of the expected one with
    the dispersion that Pearson's statistic estimates."""
    rows, head, n = objective.rows, objective.head, len(objective.rows)
    if bend is None:
        bend = -torch.eye(len(theta), dtype=torch.float64) * 2 * n  # of the log scale: that of the slopes is below
    out = _inverse(-bend)
    if head.classic:
        u, rank = objective.predictors(theta), rows.design.shape[1]
        squares = head.pearson(rows.y, u)
        spare = n - rank
        dispersion = 1.0 if squares is None else float(squares.sum()) / spare if spare > 0 else math.inf
        weighted = _inverse(rows.design.T @ (head.weight(u)[:, None] * rows.design))
        out[:rank, rank:], out[rank:, :rank] = 0.0, 0.0
        out[:rank, :rank] = weighted * dispersion if math.isfinite(dispersion) else torch.inf
    return out


def _inverse(information: Tensor) -> Tensor:
    """Of a symmetric matrix; numbers without information have infinite variances."""
    known = information.diagonal() > 1e-9
    out = torch.zeros_like(information)
    out.diagonal()[~known] = torch.inf
    if known.any():
        inner = information[known][:, known]
        unit = inner.diagonal().sqrt()
        values, vectors = torch.linalg.eigh(inner / unit / unit[:, None])
        inverse = (vectors / values.clamp(min=1e-14)) @ vectors.T / unit / unit[:, None]
        places = known.nonzero()[:, 0]
        out[places[:, None], places] = inverse
    return out


def _warn_if_flat(bend: Tensor) -> None:
    least = float(torch.linalg.eigvalsh(-bend)[0])
    if least < _FLAT:
        warnings.warn(
            "The covariates separate the responses: the likelihood has no maximum, and some coefficients stopped on "
            "their way to infinity. fit(..., ridge=1) or method='laplace' keeps them finite.",
            SeparationWarning,
            stacklevel=2,
        )
