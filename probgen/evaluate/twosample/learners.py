"""Small learners of classes and numbers, for judging samples by what can be learnt from them."""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from probgen.emissions.emission import column_moments
from probgen.errors import ParameterError
from probgen.nn import MLP, Linear, reset

__all__ = ["LEARNERS", "class_learner", "number_learner"]

LEARNERS = ("mlp", "linear")
_HIDDEN, _STEPS, _BATCH = (64,), 800, 256  # one layer: two of 64 fitted 600 rows' noise before they saw anything
_LOOK, _PATIENCE = 20, 6
_WAVES, _SLOWEST, _FASTEST = 128, 0.5, 8.0  # radians a spread, over the square root of the width
_FAR = 10.0  # what a network sees of an outlier

Predict = Callable[[Tensor], Tensor]


def class_learner(
    x: Tensor, codes: Tensor, classes: int, kind: str, generator: torch.Generator, *, balanced: bool = False
) -> Predict:
    """Learns log p(class | x): a function from rows (n, d) to (n, classes), float64.

    Arguments:
        x, codes: Training rows (n, d) and their classes (n,), int64.
        kind: "linear" (multinomial logistic regression, ridge 1e-3) or "mlp": two networks, of 64 hidden, stopped
            early on a quarter of the rows; the better there is kept. One of them also sees 128 random cosines of the
            row (Rahimi and Recht 2007), which a few numbers need and many do not: on eight Gaussians at half their
            spread an AUC of 0.70 in place of 0.50.
        balanced: Whether each class weighs the same, however many rows it has.
    """
    counts = torch.bincount(codes, minlength=classes).clamp(min=1)
    weight = (len(codes) / (classes * counts)).float() if balanced else None

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, weight=weight)

    start = None if balanced else (counts / counts.sum()).log()
    predict = _learnt(x, codes, classes, loss, kind, generator, start)
    return lambda rows: predict(rows).log_softmax(1)


def number_learner(x: Tensor, y: Tensor, kind: str, generator: torch.Generator) -> Predict:
    """Learns E[y | x] by least squares: a function from rows (n, d) to (n,), float64, in the units of y."""
    mean, spread = y.mean(), y.std(correction=0).clamp(min=1e-300)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(output[:, 0], target)

    predict = _learnt(x, ((y - mean) / spread).float(), 1, loss, kind, generator, None)
    return lambda rows: mean + spread * predict(rows)[:, 0]


def _learnt(
    x: Tensor, target: Tensor, width: int, loss: Callable, kind: str, generator: torch.Generator, start: Tensor | None
) -> Predict:
    if kind not in LEARNERS:
        raise ParameterError(f"A learner {kind!r}", f"one of {', '.join(LEARNERS)}, or a callable")
    if kind == "linear":
        return _network(x, target, width, loss, None, generator, start)[1]
    found = [_network(x, target, width, loss, waves, generator, start) for waves in (0, _WAVES)]
    return min(found, key=lambda one: one[0])[1]


def _network(
    x: Tensor,
    target: Tensor,
    width: int,
    loss: Callable,
    waves: int | None,
    generator: torch.Generator,
    start: Tensor | None,
) -> tuple[float, Predict]:
    """A trained network of one kind, and its loss on the rows that it kept; ``waves`` None is linear."""
    mean, variance = column_moments(x)
    wave = _waves(x.shape[1], waves or 0, generator)

    def seen(rows: Tensor) -> Tensor:
        cells = ((rows - mean) / variance.sqrt()).clamp(-_FAR, _FAR).float()
        return torch.cat([cells, 2**0.5 * torch.cos(cells @ wave[0] + wave[1])], 1) if waves else cells

    net = MLP((x.shape[1] + (waves or 0), *(() if waves is None else _HIDDEN), width), last=0.1)
    reset(net, generator)
    if start is not None:
        cast(Linear, net.layers[-1]).bias.data.copy_(start)
    with torch.enable_grad():
        kept = _solve(net, seen(x), target, loss) if waves is None else _descend(net, seen(x), target, loss, generator)

    @torch.no_grad()
    def predict(rows: Tensor) -> Tensor:
        return torch.cat([net(seen(part)).double() for part in rows.split(8192)])

    return kept, predict


def _waves(width: int, many: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frequencies (width, many), of many lengths, and phases of random cosines."""
    lengths = torch.linspace(math.log(_SLOWEST), math.log(_FASTEST), many).exp() / math.sqrt(width)
    return torch.randn(width, many, generator=generator) * lengths, torch.rand(many, generator=generator) * math.tau


def _solve(net: MLP, x: Tensor, target: Tensor, loss: Callable) -> float:
    """The minimum of a convex loss with a small ridge."""
    parameters, last = list(net.parameters()), cast(Linear, net.layers[-1])
    steps = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        value = loss(net(x), target) + 1e-3 * last.weight.square().sum()
        for parameter, slope in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.grad = slope
        return value

    return float(steps.step(closure).detach())  # type: ignore[union-attr]


def _descend(net: MLP, x: Tensor, target: Tensor, loss: Callable, generator: torch.Generator) -> float:
    """Adam with decay; the best of the looks at a quarter of the rows is kept, and its loss given."""
    order = torch.randperm(len(x), generator=generator)
    kept, train = order[: len(x) // 4], order[len(x) // 4 :]
    parameters = list(net.parameters())
    adam = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-2, fused=True)
    best, state, since = math.inf, [p.detach().clone() for p in parameters], 0
    for step in range(1, _STEPS + 1):
        rows = train[torch.randint(len(train), (min(_BATCH, len(train)),), generator=generator)]
        slopes = torch.autograd.grad(loss(net(x[rows]), target[rows]), parameters)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope.contiguous()
        adam.step()
        if step % _LOOK == 0:
            with torch.no_grad():
                value = float(loss(net(x[kept]), target[kept]))
            since += 1
            if value < best:
                best, state, since = value, [p.detach().clone() for p in parameters], 0
        if since == _PATIENCE:
            break
    with torch.no_grad():
        for parameter, found in zip(parameters, state, strict=True):
            parameter.copy_(found)
    return best
