"""Normal cells that depend linearly on inputs."""

from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.emissions.emission import Emission, Statistics, by_blocks, column_moments
from probgen.emissions.normal import factor_of, floored_factor, patterns, raw_of, scale_prior
from probgen.errors import ParameterError

__all__ = ["LinearRegression"]

_LOG_2PI = 1.8378770664093453
_FLAT = 1e-12  # directions of the inputs with less than this share of the largest eigenvalue are left as they are


class LinearRegression(Emission):
    """y | state, u ~ N(loc + weight (u - centre), covariance), u the inputs, centre their mean in the data.

    Arguments:
        width: Cells of the response y.
        inputs: Columns of u, which follow the cells in each row.
        intercept: Whether there is a loc; without it centre is 0.
        covariance: Of the residuals: "diag" or "full".
        floor: Smallest residual variance in any direction, relative to the response's variance.

    The M step is weighted least squares about the present fit (so nothing cancels), in inputs scaled to unit variance;
    directions in which a state's inputs do not vary keep their weights. Missing responses are left out cell by cell
    under "diag", and completed by their conditional moments under "full" (Ghahramani and Jordan 1994).
    """

    data_mean: Tensor
    data_variance: Tensor
    input_mean: Tensor
    input_scale: Tensor

    def __init__(
        self,
        width: int = 1,
        inputs: int = 1,
        intercept: bool = True,
        covariance: Literal["diag", "full"] = "diag",
        floor: float = 1e-6,
        states: int = 1,
    ) -> None:
        super().__init__()
        if covariance not in ("diag", "full"):
            raise ParameterError(f"covariance={covariance!r}", "diag or full")
        if min(width, inputs, states) < 1 or not 0 < floor < 1:
            raise ParameterError(
                f"width={width}, inputs={inputs}, states={states}, floor={floor}", "sizes >= 1, 0 < floor < 1"
            )
        self.width, self.inputs, self.intercept, self.states = width, inputs, intercept, states
        self.covariance, self.floor, self.covariates = covariance, floor, inputs
        if intercept:
            self.loc = nn.Parameter(torch.zeros(states, width, dtype=torch.float64))
        self.weight = nn.Parameter(torch.zeros(states, width, inputs, dtype=torch.float64))
        shape = (states, width, width) if self.matrix else (states, width)
        self.log_scale = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        for name, columns, value in (("data", width, "variance"), ("input", inputs, "scale")):
            self.register_buffer(f"{name}_mean", torch.zeros(columns, dtype=torch.float64))
            self.register_buffer(f"{name}_{value}", torch.ones(columns, dtype=torch.float64))

    @property
    def matrix(self) -> bool:
        """Whether residuals are correlated."""
        return self.covariance == "full"

    def scale(self) -> Tensor:
        """Standard deviations of the residuals (K, width), or Cholesky factors (K, width, width)."""
        return factor_of(self.log_scale) if self.matrix else self.log_scale.exp()

    def _marginal_scale(self) -> Tensor:
        return self.scale().square().sum(-1).sqrt() if self.matrix else self.scale()

    def _at(self, state: Tensor, given: Tensor) -> Tensor:
        """Means for states and inputs that broadcast, shape (..., width)."""
        away = (given - self.input_mean)[..., None, :]
        mean = (self.weight[state] * away).sum(-1)
        return mean + self.loc[state] if self.intercept else mean

    def mean(self, given: Tensor | None = None) -> Tensor:
        away = self._needs(given) - self.input_mean
        mean = (away @ self.weight.reshape(-1, self.inputs).T).reshape(-1, self.states, self.width)
        return mean + self.loc if self.intercept else mean

    def variance(self, given: Tensor | None = None) -> Tensor:
        return self._marginal_scale().square().expand(len(self._needs(given)), -1, -1)

    def log_prob(self, x: Tensor) -> Tensor:
        return by_blocks(self._scores, x, self.states * self.width)

    def _scores(self, x: Tensor) -> Tensor:
        y, given = self.split(x)
        away, seen = y[:, None] - self.mean(given), ~y.isnan()
        if not self.matrix:
            z = torch.nan_to_num(away) / self.scale()
            return -0.5 * z.square().sum(-1) - seen.to(x.dtype) @ (self.log_scale + 0.5 * _LOG_2PI).T
        factors = self.scale()
        out = torch.zeros(len(x), self.states, dtype=x.dtype)
        for pattern, rows in patterns(y):
            if pattern.any():
                part = factors[:, pattern]
                marginal = part if pattern.all() else torch.linalg.cholesky(part @ part.mT)
                out = out.index_add(0, rows, _correlated(away[rows][:, :, pattern], marginal))
        return out

    def cells(self, state: Tensor, given: Tensor | None = None) -> dist.TorchDistribution:
        mean, scale = self._at(state, self._needs(given)), self.scale()[state]
        return dist.MultivariateNormal(mean, scale_tril=scale) if self.matrix else dist.Normal(mean, scale)

    def sample(self, state: Tensor, generator: torch.Generator, given: Tensor | None = None) -> Tensor:
        noise = torch.randn(len(state), self.width, generator=generator, dtype=torch.float64)
        scale = self.scale()[state]
        noise = (scale @ noise[..., None])[..., 0] if self.matrix else scale * noise
        return self._at(state, self._needs(given)) + noise

    def prepare(self, x: Tensor) -> None:
        y, given = self.split(x)
        self.data_mean, self.data_variance = column_moments(y)
        mean, variance = column_moments(self._needs(given))
        if self.intercept:
            self.input_mean, self.input_scale = mean, variance.sqrt()
        else:
            self.input_scale = (variance + mean.square()).sqrt()

    def priors(self) -> dict[str, dist.TorchDistribution]:
        std = self.data_variance.sqrt()
        centre, spread = scale_prior(std, self.matrix)
        slope = 2 * std[:, None] / self.input_scale
        shape = self.log_scale.shape
        found: dict[str, dist.TorchDistribution] = {
            "weight": dist.Normal(torch.zeros_like(slope), slope).expand(self.weight.shape).to_event(3),
            "log_scale": dist.Normal(centre, spread).expand(shape).to_event(len(shape)),
        }
        if self.intercept:
            found["loc"] = dist.Normal(self.data_mean, 2 * std).expand(self.loc.shape).to_event(2)
        return found

    def natural(self) -> dict[str, Tensor]:
        """``coefficients`` (K, width, inputs), ``intercept`` (K, width) at u = 0, ``scale`` or ``covariance``."""
        scale = self.scale()
        found: dict[str, Tensor] = {"coefficients": self.weight}
        if self.intercept:
            found["intercept"] = self.loc - self.weight @ self.input_mean
        return {**found, **({"covariance": scale @ scale.mT} if self.matrix else {"scale": scale})}

    def cdf(self, x: Tensor) -> Tensor:
        y, given = self.split(x)
        return torch.special.ndtr((y[:, None] - self.mean(given)) / self._marginal_scale())

    def features(self, x: Tensor) -> Tensor:
        """Cells and inputs: near rows have like responses to like inputs."""
        return torch.nan_to_num((x - x.nanmean(0)) / column_moments(x)[1].sqrt())

    def _design(self, given: Tensor) -> Tensor:
        """Inputs in unit scale, after a column of ones if there is an intercept, (n, q)."""
        scaled = (given - self.input_mean) / self.input_scale
        return torch.cat([torch.ones_like(scaled[:, :1]), scaled], 1) if self.intercept else scaled

    def statistics(self, x: Tensor, weights: Tensor) -> Statistics:
        """Sums over rows, design z and residuals r about the present fit: z z', z r', and r r' or r^2."""
        y, given = self.split(x)
        if self.matrix and y.isnan().any():
            return self._completed(y, self._needs(given), weights)
        design, seen = self._design(self._needs(given)), (~y.isnan()).to(x.dtype)
        away = torch.nan_to_num(y[:, None] - self.mean(given))
        weighted = weights[..., None] * away
        sums = {"n": weights.T @ seen, "cross": torch.einsum("nkd,nq->kdq", weighted, design)}
        if self.matrix:
            gram = self._gram(design, weights)[:, None].expand(-1, self.width, -1, -1)
            return {**sums, "gram": gram, "square": torch.einsum("nkd,nke->kde", weighted, away)}
        if seen.all():
            gram = self._gram(design, weights)[:, None].expand(-1, self.width, -1, -1)
        else:
            gram = torch.stack([self._gram(design, weights * seen[:, d, None]) for d in range(self.width)], 1)
        return {**sums, "gram": gram, "square": (weighted * away).sum(0)}

    @staticmethod
    def _gram(design: Tensor, weights: Tensor) -> Tensor:
        q = design.shape[1]
        return (weights.T @ (design[:, :, None] * design[:, None]).flatten(1)).reshape(-1, q, q)

    def _completed(self, y: Tensor, given: Tensor, weights: Tensor) -> Statistics:
        """The same with missing residuals by their conditional mean and covariance; empty rows say nothing."""
        covariance = self.scale() @ self.scale().mT
        away, design = y[:, None] - self.mean(given), self._design(given)
        q, d, k = design.shape[1], self.width, self.states
        square, cross = torch.zeros(k, d, d, dtype=y.dtype), torch.zeros(k, d, q, dtype=y.dtype)
        gram = torch.zeros(k, q, q, dtype=y.dtype)
        n = torch.zeros(k, dtype=y.dtype)
        for seen, rows in patterns(y):
            if not seen.any():
                continue
            w, r, gap = weights[rows], torch.nan_to_num(away[rows]).movedim(0, 1), ~seen  # r: (K, m, width)
            if gap.any():
                regression = torch.linalg.solve(covariance[:, seen][:, :, seen], covariance[:, seen][:, :, gap])
                r[:, :, gap] = r[:, :, seen] @ regression
                left = covariance[:, gap][:, :, gap] - covariance[:, gap][:, :, seen] @ regression
                places = gap.nonzero()[:, 0]
                square[:, places[:, None], places] += w.sum(0)[:, None, None] * left
            weighted = w.T[..., None] * r
            n, square = n + w.sum(0), square + weighted.mT @ r
            cross, gram = cross + weighted.mT @ design[rows], gram + self._gram(design[rows], w)
        return {
            "n": n[:, None].expand(-1, d), "cross": cross, "gram": gram[:, None].expand(-1, d, -1, -1), "square": square
        }  # fmt: skip

    @torch.no_grad()
    def maximise(self, statistics: Statistics) -> list[int]:
        n, cross, gram, square = (statistics[name] for name in ("n", "cross", "gram", "square"))
        alive = n > 1e-8
        values, vectors = torch.linalg.eigh(gram)
        steep = values > _FLAT * values.amax(-1, keepdim=True)
        inverse = torch.where(steep & alive[..., None], 1 / torch.where(steep, values, 1.0), 0.0)
        delta = (vectors @ (inverse[..., None] * (vectors.mT @ cross[..., None])))[..., 0]
        self._shift(delta)
        weight = torch.where(alive, n, 1.0)
        if self.matrix:
            scatter = square - cross @ delta.mT
            whole = alive.all(-1)
            factors = self.scale().clone()
            mean = (scatter + scatter.mT)[whole] / 2 / weight[whole, :1, None]
            factors[whole] = floored_factor(mean, self.data_variance, self.floor)
            self.log_scale.copy_(raw_of(factors))
        else:
            scatter = square - (cross * delta).sum(-1)
            variance = torch.maximum(scatter / weight, self.floor * self.data_variance)
            self.log_scale.copy_(torch.where(alive, 0.5 * variance.log(), self.log_scale))
        return (~alive).all(1).nonzero()[:, 0].tolist()

    def _shift(self, delta: Tensor) -> None:
        if self.intercept:
            self.loc.add_(delta[..., 0])
            delta = delta[..., 1:]
        self.weight.add_(delta / self.input_scale)

    @property
    def n_params(self) -> int:
        d = self.width
        residual = d * (d + 1) // 2 if self.matrix else d
        return self.states * (d * (self.inputs + self.intercept) + residual)


def _correlated(away: Tensor, factors: Tensor) -> Tensor:
    """log N(away; 0, L L') of residuals (n, K, d), factors (K, d, d)."""
    z = torch.linalg.solve_triangular(factors, away.movedim(0, -1), upper=False)  # (K, d, n)
    log_det = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (z.square().sum(1).T + away.shape[-1] * _LOG_2PI) - log_det
