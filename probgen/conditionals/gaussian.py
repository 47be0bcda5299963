"""Linear regressions with normal residuals."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.conditionals.conditional import Conditional, as_numbers
from probgen.emissions.emission import column_moments
from probgen.errors import FitError, ParameterError, ShapeError
from probgen.events import Column, Real

__all__ = ["LinearGaussian", "real_child"]

_LOG_2PI = 1.8378770664093453
_FLAT = 1e-12  # directions of the inputs with less than this share of the largest eigenvalue are left as they are
_FAR = 1e-4  # of the squares left by a step: it lost digits
_EMPTY = 1e-8  # a configuration of less weight has no data

Sums = tuple[Tensor, Tensor, Tensor]  # of design with itself (K, D, D), with residuals (K, D), and their squares (K,)


def real_child(child: Column) -> str | None:
    """None, or why a column can't be normal given its parents."""
    if not isinstance(child, Real):
        return "its child is a real column"
    if child.positive:
        return "a normal has mass below 0: take the column's logarithm, or declare it Real()"
    if child.resolution is not None:
        return "rounded cells have interval masses, which are not linear-Gaussian: declare Real() for a density"
    return None


class LinearGaussian(Conditional):
    """child | parents ~ N(loc + weight . (u - centre), scale^2), a regression for each configuration.

    u are the continuous parents (counts enter as numbers) and centre their mean in the data. With discrete parents
    this is a conditional linear Gaussian distribution (Lauritzen and Wermuth 1989). Parameters, P the numbers of
    levels of the discrete parents: ``loc`` (*P), ``weight`` (*P, C), ``log_scale`` (*P).

    Arguments:
        floor: Smallest residual variance relative to the child's variance. The M step maximises under this
            constraint exactly, so EM stays monotone.

    The M step is weighted least squares about the present fit (so nothing cancels), in inputs of unit variance;
    directions in which a configuration's inputs do not vary (collinear parents) keep their weights.
    """

    data_mean: Tensor
    data_variance: Tensor
    input_mean: Tensor
    input_scale: Tensor

    def __init__(self, floor: float = 1e-6) -> None:
        super().__init__()
        if not 0 < floor < 1:
            raise ParameterError(f"floor={floor}", "a share of the child's variance between 0 and 1")
        self.floor = floor

    def suits(self, child: Column, parents: Sequence[Column]) -> str | None:
        return real_child(child)

    def _build(self) -> None:
        inputs = len(self.continuous_parents)
        self.loc = nn.Parameter(torch.zeros(self.parent_cards, dtype=torch.float64))
        self.weight = nn.Parameter(torch.zeros(*self.parent_cards, inputs, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros(self.parent_cards, dtype=torch.float64))
        for name, shape, value in (("data", (), "variance"), ("input", (inputs,), "scale")):
            self.register_buffer(f"{name}_mean", torch.zeros(shape, dtype=torch.float64))
            self.register_buffer(f"{name}_{value}", torch.ones(shape, dtype=torch.float64))

    # Probabilities

    def _rows(self) -> Tensor:
        """Weights by flat configuration, (configurations, C)."""
        return self.weight.reshape(self.configurations, len(self.continuous_parents))

    def mean(self, parents: Tensor) -> Tensor:
        return self.loc.reshape(-1)[self.configuration(parents)] + self._slope(parents)

    def _slope(self, parents: Tensor) -> Tensor:
        """The mean less ``loc``, (...)."""
        return (self._rows()[self.configuration(parents)] * (self.inputs(parents) - self.input_mean)).sum(-1)

    def variance(self, parents: Tensor) -> Tensor:
        return (2 * self.log_scale).exp().reshape(-1)[self.configuration(parents)]

    def cells(self, parents: Tensor) -> dist.TorchDistribution:
        scale = self.log_scale.exp().reshape(-1)[self.configuration(parents)]
        return dist.Normal(self.mean(parents), scale)

    def log_prob(self, child: Tensor, parents: Tensor) -> Tensor:
        which = self.configuration(parents)
        away = child - self.loc.reshape(-1)[which] - self._slope(parents)  # far from zero the mean itself is rounded
        return _normal(away, self.log_scale.reshape(-1)[which])

    def log_factor(self, child: Tensor, parents: Tensor) -> Tensor:
        return _normal(self._residuals(child, parents), self.log_scale.reshape(-1)).reshape(-1, *self.cards)

    def _residuals(self, child: Tensor, parents: Tensor) -> Tensor:
        """Of each row under every configuration, (n, configurations)."""
        away = self.inputs(parents) - self.input_mean
        return child[:, None] - self.loc.reshape(-1) - away @ self._rows().T

    def sample(self, parents: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(parents), generator=generator, dtype=torch.float64)
        return (self.mean(parents) + self.variance(parents).sqrt() * noise).detach()

    # Learning

    @torch.no_grad()
    def prepare(self, child: Tensor, parents: Tensor) -> None:
        mean, variance = column_moments(child[:, None])
        self.data_mean, self.data_variance = mean[0], variance[0]
        centre, spread = column_moments(self.inputs(parents))
        self.loc.add_(self.weight @ (centre - self.input_mean))
        self.input_mean, self.input_scale = centre, spread.sqrt()

    @property
    def least_variance(self) -> Tensor:
        """The smallest residual variance that learning allows, 0-d."""
        return self.floor * self.data_variance

    @property
    def centre(self) -> Tensor:
        """The data's means of the continuous parents, then of the child, (C + 1,): moments about it lose least."""
        return torch.cat([self.input_mean, self.data_mean[None]])

    def maximise_rows(self, child: Tensor, parents: Tensor, weights: Tensor) -> list[int]:
        weights = self._checked_counts(weights, "weights").reshape(len(child), -1)
        design = self._design(self.inputs(parents))
        gram = torch.einsum("nk,ni,nj->kij", weights, design, design)

        def sums() -> Sums:
            away = self._residuals(child, parents).detach()
            weighted = weights * away
            return gram, weighted.T @ design, (weighted * away).sum(0)

        return self._maximise(sums)

    def maximise_moments(self, second: Tensor, centre: Tensor | None = None) -> list[int]:
        """M step from expected second moments, where cells are missing.

        Arguments:
            second: (configurations, q, q), q = C + 2: sums of weight * E[u u'] with u = (1, continuous parents, child),
                the latter less ``centre``.
            centre: (C + 1,), what was taken off; None: nothing. With data far from zero take ``.centre``: moments
                about zero lose digits.

        Returns:
            Flat numbers of the configurations without data, which keep their regression.
        """
        q = len(self.continuous_parents) + 2
        if second.shape != (self.configurations, q, q):
            raise ShapeError(f"Moments of shape {tuple(second.shape)}", f"({self.configurations}, {q}, {q})")
        if not second.isfinite().all():
            raise FitError(f"Moments of {self!r} are not finite", "finite sums")
        middle = torch.zeros(q - 1, dtype=torch.float64) if centre is None else centre

        def sums() -> Sums:
            turn = self._turn(middle)
            found = turn @ second.detach() @ turn.mT  # of design and residual
            return found[:, :-1, :-1], found[:, -1, :-1], found[:, -1, -1]

        return self._maximise(sums)

    def _turn(self, centre: Tensor) -> Tensor:
        """The matrices that make (design, residual about the present fit) of (1, u - centre, y - centre)."""
        inputs = len(self.continuous_parents)
        scaling = torch.diag(torch.cat([torch.ones(1, dtype=torch.float64), 1 / self.input_scale]))
        scaling[1:, 0] = (centre[:-1] - self.input_mean) / self.input_scale
        turn = torch.zeros(self.configurations, inputs + 2, inputs + 2, dtype=torch.float64)
        turn[:, :-1, :-1] = scaling
        weight = self._rows().detach()
        turn[:, -1, 0] = centre[-1] - self.loc.detach().reshape(-1) - weight @ (centre[:-1] - self.input_mean)
        turn[:, -1, 1:-1], turn[:, -1, -1] = -weight, 1.0
        return turn

    def _design(self, inputs: Tensor) -> Tensor:
        scaled = (inputs - self.input_mean) / self.input_scale
        return torch.cat([torch.ones(len(scaled), 1, dtype=torch.float64), scaled], 1)

    def _maximise(self, sums: Callable[[], Sums]) -> list[int]:
        """Least squares of residuals, once more from near the optimum if the first had to come from afar."""
        for _ in range(2):
            gram, cross, square = sums()
            if (self._solve(gram, cross, square) >= _FAR * square).all():
                break
        return (gram[:, 0, 0] <= _EMPTY).nonzero()[:, 0].tolist()

    @torch.no_grad()
    def _solve(self, gram: Tensor, cross: Tensor, square: Tensor) -> Tensor:
        """Moves to the least squares of residuals on the design; returns what is left of the squares, (K,)."""
        n = gram[:, 0, 0]
        alive = n > _EMPTY
        values, vectors = torch.linalg.eigh(gram)
        steep = (values > _FLAT * values.amax(-1, keepdim=True)) & alive[:, None]
        inverse = torch.where(steep, 1 / torch.where(steep, values, 1.0), 0.0)
        delta = (vectors @ (inverse[..., None] * (vectors.mT @ cross[..., None])))[..., 0]
        scatter = square - (cross * delta).sum(-1)
        variance = torch.maximum(scatter / torch.where(alive, n, 1.0), self.least_variance)
        self.loc.add_(delta[:, 0].reshape(self.loc.shape))
        self.weight.add_((delta[:, 1:] / self.input_scale).reshape(self.weight.shape))
        log_scale = torch.where(alive, 0.5 * variance.log(), self.log_scale.reshape(-1))
        self.log_scale.copy_(log_scale.reshape(self.log_scale.shape))
        return scatter

    def priors(self) -> dict[str, dist.TorchDistribution]:
        """Means and slopes within some standard deviations of the data, scales within some factors of e."""
        std, shape = self.data_variance.sqrt(), self.parent_cards
        slope = (2 * std / self.input_scale).expand(self.weight.shape)
        return {
            "loc": dist.Normal(self.data_mean, 2 * std).expand(shape).to_event(len(shape)),
            "weight": dist.Normal(torch.zeros_like(slope), slope).to_event(slope.ndim),
            "log_scale": dist.Normal(std.log(), torch.ones_like(std)).expand(shape).to_event(len(shape)),
        }

    @property
    def n_params(self) -> int:
        return self.configurations * (len(self.continuous_parents) + 2)

    def natural(self) -> dict[str, Tensor]:
        """``intercept`` (*P) at u = 0, ``coefficients`` (*P, C), ``scale`` (*P), the standard deviation."""
        intercept = self.loc - self.weight @ self.input_mean
        return {"intercept": intercept, "coefficients": self.weight, "scale": self.log_scale.exp()}

    @torch.no_grad()
    def set_natural(self, *, intercept: Any, coefficients: Any = (), scale: Any) -> Self:
        loc = as_numbers(intercept, self.loc.shape, "intercept")
        weight = as_numbers(coefficients, self.weight.shape, "coefficients") if self.weight.numel() else self.weight
        spread = as_numbers(scale, self.log_scale.shape, "scale")
        if not (loc.isfinite().all() and weight.isfinite().all() and spread.isfinite().all() and (spread > 0).all()):
            raise ParameterError(f"intercept={intercept}, scale={scale}", "finite numbers, and scales above 0")
        self.weight.copy_(weight)
        self.loc.copy_(loc + weight @ self.input_mean)
        self.log_scale.copy_(spread.log())
        return self


def _normal(away: Tensor, log_scale: Tensor) -> Tensor:
    """log N(away; 0, scale^2) in nats."""
    return -0.5 * (away * (-log_scale).exp()).square() - log_scale - 0.5 * _LOG_2PI
