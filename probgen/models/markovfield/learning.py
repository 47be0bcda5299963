"""Log-potentials from data: exact gradients, persistent chains, pseudo-likelihood."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.errors import DataError, FitError, ParameterError, StructureError
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport
from probgen.models.markovfield import partition
from probgen.models.markovfield.factors import whole
from probgen.models.markovfield.local import Local
from probgen.models.markovfield.queries import base_draw, unnormalised

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = ["Options", "PseudoLikelihood", "fit", "free_parameters"]

_NOISE = 0.1  # standard deviation of the start of potentials over hidden variables
_INNER = 5  # iterations of quasi-Newton between two looks at the objective


@dataclass(frozen=True)
class Options:
    """Of ``MarkovField.fit``."""

    method: str
    l2: float
    max_iter: int
    tol: float
    steps: int
    chains: int
    batch_size: int
    sweeps: int
    learning_rate: float

    def __post_init__(self) -> None:
        if self.method not in ("gradient", "persistent", "pseudo"):
            raise ParameterError(f"method={self.method!r}", '"gradient", "persistent" or "pseudo"')
        for name in ("max_iter", "steps", "chains", "batch_size", "sweeps"):
            whole(name, getattr(self, name))
        for name in ("l2", "tol", "learning_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ParameterError(f"{name}={value!r}", "a number from 0")


@dataclass(frozen=True)
class PseudoLikelihood:
    """Sum over variables of log p(x_v | all others): no likelihood, so of kind score. log Z is not needed.

    Besag (1975). Rows with gaps and fields with hidden variables have none.
    """

    @torch.no_grad()
    def __call__(self, model: Any, x: Tensor, given: Any = None, *, generator: torch.Generator) -> LogProb:
        whole_rows = ~x.isnan().any(1)
        if len(model.unseen) or not bool(whole_rows.any()):
            reason = "the field has hidden variables" if len(model.unseen) else "the row has gaps"
            return LogProb.refuse(len(x), reason, "log_prob(x)", by=repr(self))
        local = model.local(grad=False)
        nats = torch.full((len(x),), torch.nan, dtype=torch.float64)
        nats[whole_rows] = local.pseudo(x[whole_rows], local.classes)
        kinds = [Kind.SCORE if one else Kind.UNAVAILABLE for one in whole_rows.tolist()]
        gap = {} if bool(whole_rows.all()) else {"reason": "the row has gaps", "instead": "log_prob(x)"}
        return LogProb(kinds, nats, by=repr(self), **gap)  # type: ignore[arg-type]


def free_parameters(model: "MarkovField") -> int:
    """Dimension of the log-linear model: each set of variables within a factor adds the product of levels - 1."""
    sets = {
        frozenset(part)
        for scope in model.plan.scopes
        for k in range(1, len(scope) + 1)
        for part in combinations(scope, k)
    }
    return sum(math.prod(model.cards[v] - 1 for v in own) for own in sets)


def fit(model: "MarkovField", x: Tensor, generator: torch.Generator, options: Options) -> FitReport:
    """Sets the potentials in place; the model keeps its best state.

    Raises:
        StructureError: a method that needs what is not affordable, complete rows, or no hidden variables.
        DataError: rows that the structural zeros make impossible.
        FitError: the objective became non-finite.
    """
    began = time.perf_counter()
    model.n_rows, model.log_likelihood = len(x), math.nan
    _start(model, x, generator)
    if options.method == "persistent":
        report = _persistent(model, x, generator, options)
    elif options.method == "pseudo":
        report = _pseudo(model, x, options)
    else:
        report = _gradient(model, x, options)
    return FitReport(report.objective, report.steps, report.stopped, time.perf_counter() - began, notes=report.notes)


def _start(model: "MarkovField", x: Tensor, generator: torch.Generator) -> None:
    """Where all potentials are zero: frequencies in the factors of single visible variables, and noise in those over
    hidden ones, which would stay alike."""
    if any(bool((block != 0).any()) for block in model.detached()):
        return
    for group, block in zip(model.groups, model.detached(), strict=True):
        hidden = (group.scopes >= x.shape[1]).any(1)
        if bool(hidden.any()):
            noise = _NOISE * torch.randn(block.shape, generator=generator, dtype=torch.float64)
            block[hidden] = noise[hidden]
        if block.ndim == 2:
            levels = torch.arange(block.shape[1], dtype=x.dtype)
            seen = x[:, group.scopes[~hidden, 0]]
            counts = (seen[..., None] == levels).sum(0).to(torch.float64) + 0.5
            block[~hidden] = (counts / counts.sum(1, keepdim=True)).log()


def _penalty(blocks: Sequence[Tensor], l2: float) -> float:
    """l2/2 times the sum of squares; structural zeros (-inf) are no parameters."""
    return 0.5 * l2 * sum(float(b[b.isfinite()].square().sum()) for b in blocks) if l2 else 0.0


def _shrunk(slope: Tensor, block: Tensor, l2: float) -> Tensor:
    return torch.where(block.isfinite(), slope - l2 * block, 0.0) if l2 else torch.where(block.isfinite(), slope, 0.0)


# Exact gradients, and pseudo-likelihood


def _gradient(model: "MarkovField", x: Tensor, options: Options) -> FitReport:
    if partition.affordable(model) is None:
        came, _ = partition.refusal(model)
        raise StructureError(came, "an affordable clique plan", 'fit(method="persistent") or method="pseudo"')
    score = _data_phase(model, x)
    parts = [math.nan, math.nan]

    def objective(blocks: list[Tensor]) -> tuple[float, list[Tensor]]:
        nats, rise = score(blocks)
        log_z, fall = partition.expected(model)
        parts[:] = nats, log_z
        return nats - log_z, [a - b for a, b in zip(rise, fall, strict=True)]

    report = _ascend(model, objective, options)
    objective(model.detached())
    model.log_likelihood = len(x) * (parts[0] - parts[1])
    return report


_Phase = Callable[[list[Tensor]], tuple[float, list[Tensor]]]


def _data_phase(model: "MarkovField", x: Tensor) -> _Phase:
    """Mean over rows of log f(x), hidden and missing cells summed out, and its gradient in the blocks."""
    patterns, count = x.nan_to_num(nan=-1.0).unique(dim=0, return_counts=True)
    cells, weights = torch.where(patterns < 0, torch.nan, patterns), count.to(torch.float64) / len(x)
    _refuse_hard_rows(model, cells, x)
    if not len(model.unseen) and not bool(cells.isnan().any()):
        return _moments(model, cells, weights)

    def phase(blocks: list[Tensor]) -> tuple[float, list[Tensor]]:
        with torch.enable_grad():
            leaves = [block.detach().requires_grad_() for block in blocks]
            nats = (unnormalised(model, cells, leaves)[0] * weights).sum()
            found = torch.autograd.grad(nats, leaves, allow_unused=True)
        return float(nats.detach()), [
            torch.zeros_like(b) if g is None else g for g, b in zip(found, blocks, strict=True)
        ]

    return phase


def _refuse_hard_rows(model: "MarkovField", cells: Tensor, x: Tensor) -> None:
    with torch.no_grad():
        nats, over = unnormalised(model, cells)
    if bool(over.any()):
        raise StructureError(
            f"Summing out the gaps of {int(over.sum())} distinct rows takes more than limit={model.limit} entries",
            "rows with fewer missing cells", "Drop them, or raise .limit if memory allows",
        )  # fmt: skip
    bad = torch.isneginf(nats)
    if bool(bad.any()):
        pattern = cells[int(bad.nonzero()[0])].nan_to_num(nan=-1.0)
        row = int((x.nan_to_num(nan=-1.0) == pattern).all(1).nonzero()[0])
        raise DataError(
            f"Row {row} is impossible under the field's structural zeros ({int(bad.sum())} distinct rows)",
            "data of positive probability", "Drop the row, or make the log-potential finite",
        )  # fmt: skip


def _moments(model: "MarkovField", cells: Tensor, weights: Tensor) -> _Phase:
    """Complete rows tell all they have to by the shares of each factor's configurations."""
    shares = []
    for group, block in zip(model.groups, model.detached(), strict=True):
        m, levels = len(block), block.shape[1:]
        flat = torch.zeros(len(cells), m, dtype=torch.int64)
        for a, card in enumerate(levels):
            flat = flat * card + cells[:, group.scopes[:, a]].long()
        flat = flat + torch.arange(m) * math.prod(levels)
        found = torch.zeros(block.numel(), dtype=torch.float64)
        found.index_add_(0, flat.flatten(), weights[:, None].expand(-1, m).flatten())
        shares.append(found.reshape(block.shape))

    def phase(blocks: list[Tensor]) -> tuple[float, list[Tensor]]:
        nats = sum(float(torch.where(s > 0, s * b, 0.0).sum()) for s, b in zip(shares, blocks, strict=True))
        return nats, shares

    return phase


def _pseudo(model: "MarkovField", x: Tensor, options: Options) -> FitReport:
    if len(model.unseen) or bool(x.isnan().any()):
        what = "a field with hidden variables" if len(model.unseen) else "rows with missing cells"
        raise StructureError(
            f"Pseudo-likelihood of {what}", "complete rows of visible variables", 'method="persistent"'
        )
    patterns, count = x.unique(dim=0, return_counts=True)
    weights, classes = count.to(torch.float64) / len(x), model.local().classes
    _refuse_hard_rows(model, patterns, x)

    def objective(blocks: list[Tensor]) -> tuple[float, list[Tensor]]:
        with torch.enable_grad():
            leaves = [block.detach().requires_grad_() for block in blocks]
            nats = (Local(model.cards, model.groups, leaves).pseudo(patterns, classes) * weights).sum()
            found = torch.autograd.grad(nats, leaves)
        return float(nats.detach()), list(found)

    report = _ascend(model, objective, options)
    return FitReport(report.objective, report.steps, report.stopped, notes=("the objective is the pseudo-likelihood",))


def _ascend(model: "MarkovField", objective: _Phase, options: Options) -> FitReport:
    """Quasi-Newton on the penalised objective, a few iterations at a time, until they gain less than ``tol``."""
    blocks = list(model.blocks)
    optimiser = torch.optim.LBFGS(
        blocks,
        max_iter=_INNER,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        own = model.detached()
        value, slopes = objective(own)
        for block, slope in zip(blocks, slopes, strict=True):
            block.grad = -_shrunk(slope, block.detach(), options.l2)
        return _penalty(own, options.l2) - value

    values, steps, stopped = [-closure()], 0, "steps"
    while steps < options.max_iter:
        before = [block.detach().clone() for block in blocks]
        optimiser.step(closure)
        steps += _INNER
        values.append(-closure())
        if not values[-1] >= values[-2]:  # NaN, too
            for block, old in zip(blocks, before, strict=True):
                block.data = old
            if not math.isfinite(values[-1]):
                raise FitError(
                    f"The objective became {values[-1]} after {steps} iterations", "finite numbers",
                    "The model keeps its last good state; try l2=0.01", step=steps,
                )  # fmt: skip
            values.pop()
            stopped = "converged"
            break
        if values[-1] - values[-2] < options.tol:
            stopped = "converged"
            break
    for block in blocks:
        block.grad = None
    return FitReport(tuple(values), steps, stopped)


# Persistent contrastive divergence


def _persistent(model: "MarkovField", x: Tensor, generator: torch.Generator, options: Options) -> FitReport:
    """Adam on the data phase less the model phase, the latter from chains that go on from step to step.

    Tieleman (2008). The learning rate falls linearly to zero, so that the chains can follow.
    """
    blocks = list(model.blocks)
    optimiser = torch.optim.Adam(blocks, lr=options.learning_rate)
    local = model.local()
    classes, summed = local.classes, partition.sides(model)[1]
    _refuse_hard_rows(model, x, x)
    chains = base_draw(local, torch.arange(len(model.cards)), options.chains, generator)
    order, place, last = torch.empty(0, dtype=torch.int64), 0, [block.detach().clone() for block in blocks]
    size = min(options.batch_size, len(x))
    for step in range(options.steps):
        if place + size > len(order):
            order, place = torch.randperm(len(x), generator=generator), 0
        batch, place = x[order[place : place + size]], place + size
        local = model.local()
        for _ in range(options.sweeps):
            local.sweep(chains, classes, generator)
        loss = _contrast(model, batch, chains, summed)
        if not math.isfinite(float(loss.detach())):
            for block, old in zip(blocks, last, strict=True):
                block.data = old
            raise FitError(
                f"The contrast became {float(loss.detach())} at step {step}", "finite numbers",
                "The model keeps its last good state; try a smaller learning_rate", step=step,
            )  # fmt: skip
        last = [block.detach().clone() for block in blocks]
        slopes = torch.autograd.grad(loss, blocks, allow_unused=True)
        for block, slope in zip(blocks, slopes, strict=True):
            rise = torch.zeros_like(block) if slope is None else -slope
            block.grad = -_shrunk(rise, block.detach(), options.l2)
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * (1 - step / options.steps)
        optimiser.step()
    for block in blocks:
        block.grad = None
    note = "persistent contrastive divergence: its objective, the likelihood, was never computed"
    return FitReport((), options.steps, "steps", notes=(note,))


def _contrast(model: "MarkovField", batch: Tensor, chains: Tensor, summed: Tensor) -> Tensor:
    """Mean log f of chains less that of rows: its gradient is minus an estimate of the likelihood's."""
    codes = chains.clone()
    codes[:, summed] = torch.nan
    data = unnormalised(model, batch, list(model.blocks))[0].mean()
    return model.local(grad=True).collapsed(codes, summed).mean() - data
