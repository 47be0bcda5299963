"""The penalised log-likelihood as a loss for gradients, with the floor under the scales of linear Gaussians."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.conditionals import LinearGaussian
from probgen.models.bayesnet.em import log_likelihood
from probgen.models.bayesnet.problem import Problem

__all__ = ["BatchLoss", "Loss", "lift"]


class Loss:
    """Minus the penalised log-likelihood in nats a row, with its gradient; the last point is not computed again.

    The search moves ``free``: the parameters, but of linear Gaussians, whose likelihood is unbounded without their
    floor, v in scale^2 = floor + exp(2 v). EM maximises under the same constraint.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.moving = [p for p in problem.net.parameters() if p.requires_grad]
        floors = {id(part.log_scale): part.least_variance for part in _bounded(problem)}
        self.floors = [floors.get(id(p)) for p in self.moving]
        self.free = [
            nn.Parameter(p.detach().clone() if floor is None else _above(p.detach(), floor))
            for p, floor in zip(self.moving, self.floors, strict=True)
        ]
        self.point: list[Tensor] = []
        self.value = torch.empty(0)

    @torch.no_grad()
    def to(self, point: Sequence[Tensor]) -> None:
        """Moves the network's parameters."""
        for p, v, floor in zip(self.moving, point, self.floors, strict=True):
            p.copy_(v if floor is None else 0.5 * (floor + (2 * v).exp()).log())

    def clear(self) -> None:
        for parameter in self.moving:
            parameter.grad = None

    def __call__(self) -> Tensor:
        if self.point and all(map(torch.equal, self.point, self.free)):
            return self.value
        self.to([v.detach() for v in self.free])
        self.clear()
        with torch.enable_grad():
            value = -(log_likelihood(self.problem) + self.problem.penalty()) / len(self.problem)
            value.backward()
        for p, v, floor in zip(self.moving, self.free, self.floors, strict=True):
            slope = torch.zeros_like(p) if p.grad is None else p.grad
            v.grad = slope.clone() if floor is None else slope / (1 + floor * (-2 * v.detach()).exp())
        self.point, self.value = [v.detach().clone() for v in self.free], value.detach()
        return self.value


def _bounded(problem: Problem) -> list[LinearGaussian]:
    return [part for part in problem.conditionals if isinstance(part, LinearGaussian) and part.log_scale.requires_grad]


def _above(log_scale: Tensor, floor: Tensor) -> Tensor:
    """v of a scale; one at its floor starts a little above, since v has no slope there."""
    excess = (2 * log_scale).exp() - floor
    return 0.5 * torch.maximum(excess, 1e-3 * floor).log()


class BatchLoss(nn.Module):
    """The same of a batch, for Adam."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, batch: Tensor, generator: torch.Generator, share: float) -> Tensor:
        lift(self.problem)
        part = Problem(self.problem.net, batch)
        return -log_likelihood(part) / len(batch) - self.problem.penalty() / len(self.problem)


@torch.no_grad()
def lift(problem: Problem) -> None:
    """Scales of linear Gaussians up to their floor: Adam with projection."""
    for part in _bounded(problem):
        part.log_scale.clamp_(min=0.5 * float(part.least_variance.log()))
