"""scikit-learn's fitted densities as models; a Pipeline of affine steps before one scores in the data's own units."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import emissions
from probgen.errors import NotFittedError, ParameterError, StructureError
from probgen.events import Array, Event, Real, Table
from probgen.foreign.pair import ForeignDensity
from probgen.model import FitReport, GenerativeModel
from probgen.models.mixture import Mixture

__all__ = ["affine", "kernel_density", "wrap"]

_MIXTURES = {"GaussianMixture", "BayesianGaussianMixture"}
_NORMALS = {
    "EmpiricalCovariance": "covariance_", "ShrunkCovariance": "covariance_", "LedoitWolf": "covariance_",
    "OAS": "covariance_", "MinCovDet": "covariance_", "EllipticEnvelope": "covariance_",
    "GraphicalLasso": "covariance_", "GraphicalLassoCV": "covariance_", "PCA": "components_",
    "FactorAnalysis": "components_",
}  # fmt: skip
_KERNELS = ("gaussian", "tophat", "epanechnikov", "exponential", "linear", "cosine")
_SCRATCH = 1 << 22  # distances held at once


def wrap(foreign: Any, event: Event | None = None) -> GenerativeModel:
    """A fitted density of scikit-learn with the same likelihood.

    Arguments:
        foreign: GaussianMixture (a Mixture of ours, which also takes gaps); BayesianGaussianMixture (the mixture at its
            posterior means: a plug-in density, which its own ``score_samples`` is not); KernelDensity, its kernel sums
            without tolerances; the covariance estimators, PCA and FactorAnalysis (a Mixture of one normal); a Pipeline
            of affine steps (StandardScaler, PCA of full rank, ...) before any of these.
        event: What a row is; None takes reals, with the names that a frame gave at its fit.

    Raises:
        StructureError: another estimator, a metric that is not Euclidean, or a step that is not affine.
        NotFittedError: before its fit.
    """
    name = type(foreign).__name__
    if name == "Pipeline":
        return _pipeline(foreign, event)
    if name in _MIXTURES:
        return _mixture(foreign, event)
    if name in _NORMALS:
        return _normal(foreign, event)
    if name == "KernelDensity":
        return _kernels(foreign, event)
    raise StructureError(
        f"scikit-learn's {name}", f"one of {', '.join(sorted([*_MIXTURES, *_NORMALS, 'KernelDensity', 'Pipeline']))}",
        "It has no density here",
    )  # fmt: skip


def _fitted(foreign: Any, *names: str) -> None:
    if lacking := [name for name in names if not hasattr(foreign, name)]:
        kind = type(foreign).__name__
        raise NotFittedError(f"This {kind} has no {', '.join(lacking)}", "a fitted one", "Call its fit first")


def _event(foreign: Any, dim: int, event: Event | None) -> Event:
    names = getattr(foreign, "feature_names_in_", None)
    found = Array((dim,)) if names is None else Table({str(name): Real() for name in names})
    if event is None:
        return found
    if tuple(event.shape) != (dim,):  # type: ignore[attr-defined]
        raise StructureError(f"event={event!r} for {dim} columns", f"an event of shape ({dim},)", "Leave it out")
    return event


# Mixtures and normals, which are ours


def _mixture(foreign: Any, event: Event | None) -> Mixture:
    _fitted(foreign, "weights_", "means_", "covariances_")
    means = _of(foreign.means_)
    components, dim = means.shape
    kind = foreign.covariance_type
    own = Mixture(_event(foreign, dim, event), components, emissions.Normal(dim, kind, floor=0.0))
    covariance, emission = _of(foreign.covariances_), own.emission
    with torch.no_grad():
        own.logits.copy_(_of(foreign.weights_).log())
        emission.get_parameter("loc").copy_(means)
        if kind in ("full", "tied"):
            emission._set_factor(torch.linalg.cholesky(covariance))  # type: ignore[operator]
        else:
            scale = emission.get_parameter("log_scale")
            scale.copy_(0.5 * covariance.reshape(scale.shape).log())
    plug_in = ("plug-in density at the posterior means",) if type(foreign).__name__.startswith("Bayesian") else ()
    own.report = FitReport((), 0, "imported", notes=plug_in)
    return own.eval()


def _normal(foreign: Any, event: Event | None) -> Mixture:
    name = type(foreign).__name__
    latent = name in ("PCA", "FactorAnalysis")
    _fitted(foreign, "mean_" if latent else "location_", _NORMALS[name])
    mean = _of(foreign.mean_ if latent else foreign.location_).reshape(-1)
    covariance = _of(foreign.get_covariance() if latent else foreign.covariance_)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise StructureError(
            f"A {name} whose covariance is singular: it has no density", "a covariance of full rank",
            "More rows than columns, LedoitWolf, or fewer components",
        )  # fmt: skip
    own = Mixture(_event(foreign, len(mean), event), 1, emissions.Normal(len(mean), "full", floor=0.0))
    with torch.no_grad():
        own.emission.get_parameter("loc").copy_(mean[None])
        own.emission._set_factor(factor[None])  # type: ignore[operator]
    own.report = FitReport((), 0, "imported")
    return own.eval()


def _of(values: Any) -> Tensor:
    return torch.as_tensor(np.array(values, dtype=np.float64))


# Kernels


def _kernels(foreign: Any, event: Event | None) -> ForeignDensity:
    _fitted(foreign, "tree_")
    if foreign.metric not in ("euclidean", "l2") and not (foreign.metric == "minkowski" and not foreign.metric_params):
        raise StructureError(
            f"A KernelDensity with metric={foreign.metric!r}", "metric='euclidean'",
            "scikit-learn's constants are those of Euclidean balls: another metric has another integral",
        )  # fmt: skip
    points = _of(foreign.tree_.data)
    weights = foreign.tree_.sample_weight
    mass = torch.ones(len(points), dtype=torch.float64) if weights is None else _of(weights)
    return kernel_density(
        points, mass / mass.sum(), foreign.kernel, float(foreign.bandwidth_), _event(foreign, points.shape[1], event)
    )


def kernel_density(points: Tensor, weights: Tensor, kernel: str, bandwidth: float, event: Event) -> ForeignDensity:
    """The exact sum of radial kernels round points (m, d) of those weights (m,): log density in nats, and draws.

    Silverman (1986), section 4.2: kernels in several dimensions.
    """
    if kernel not in _KERNELS:
        raise ParameterError(f"kernel={kernel!r}", f"one of {', '.join(_KERNELS)}")
    dim = points.shape[1]
    constant = _log_mass(kernel, dim) + dim * math.log(bandwidth)

    def score(x: Tensor, given: None) -> Tensor:
        size = max(1, _SCRATCH // len(points))
        parts = []
        for rows in x.reshape(len(x), -1).split(size):
            far = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist") / bandwidth
            parts.append((_log_kernel(kernel, far) + weights.log()).logsumexp(1) - constant)
        return torch.cat(parts)

    def draw(n: int, given: None, generator: torch.Generator) -> Tensor:
        near = points[torch.multinomial(weights, n, replacement=True, generator=generator)]
        way = torch.randn(n, dim, generator=generator, dtype=torch.float64)
        if kernel == "gaussian":
            return near + bandwidth * way
        return near + bandwidth * _radius(kernel, n, dim, generator)[:, None] * way / way.norm(dim=1, keepdim=True)

    return ForeignDensity(
        event, draw, score, by=f"{len(points)} {kernel} kernels summed", fits="KernelDensity.fit of scikit-learn"
    )


def _log_kernel(kernel: str, far: Tensor) -> Tensor:
    """Log kernel, not normalised, at distances in bandwidths."""
    if kernel == "gaussian":
        return -0.5 * far.square()
    if kernel == "exponential":
        return -far
    inside = far < 1
    near = torch.where(inside, far, 0.0)
    shape = {
        "tophat": torch.zeros_like(near),
        "epanechnikov": torch.log1p(-near.square()),
        "linear": torch.log1p(-near),
        "cosine": torch.cos(near * math.pi / 2).log(),
    }[kernel]
    return torch.where(inside, shape, -math.inf)


def _log_mass(kernel: str, dim: int) -> float:
    """Log integral of the kernel over d dimensions, at bandwidth 1."""
    if kernel == "gaussian":
        return 0.5 * dim * math.log(2 * math.pi)
    ball = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1)
    sphere = ball + math.log(dim)
    if kernel == "cosine":
        nodes, weights = np.polynomial.legendre.leggauss(200)
        r = 0.5 * (nodes + 1)
        return sphere + math.log(0.5 * float(weights @ (r ** (dim - 1) * np.cos(np.pi * r / 2))))
    return {
        "tophat": ball,
        "epanechnikov": ball + math.log(2 / (dim + 2)),
        "exponential": sphere + math.lgamma(dim),
        "linear": ball - math.log(dim + 1),
    }[kernel]


def _radius(kernel: str, n: int, dim: int, generator: torch.Generator) -> Tensor:
    """Distances of draws, (n,): their density is r^(d-1) times the kernel."""
    if kernel == "exponential":
        return torch._standard_gamma(torch.full((n,), float(dim), dtype=torch.float64), generator=generator)
    if kernel == "tophat":
        return torch.rand(n, generator=generator, dtype=torch.float64) ** (1 / dim)
    if kernel == "epanechnikov":
        return _beta(dim / 2, 2.0, n, generator).sqrt()
    r = _beta(float(dim), 2.0, n, generator)
    if kernel == "linear":
        return r
    keep = torch.cos(r * math.pi / 2) / ((1 - r) * math.pi / 2)  # the cosine lies under pi/2 times the linear kernel
    refused = torch.rand(n, generator=generator, dtype=torch.float64) > keep
    if refused.any():
        r[refused] = _radius(kernel, int(refused.sum()), dim, generator)
    return r


def _beta(a: float, b: float, n: int, generator: torch.Generator) -> Tensor:
    one, two = (torch._standard_gamma(torch.full((n,), v, dtype=torch.float64), generator=generator) for v in (a, b))
    return one / (one + two)


# Pipelines


def affine(steps: list[Any], dim: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(A, b) with step(x) = A x + b of fitted transformers one after the other; None where they are not affine.

    Found by asking: the images of the origin, of the unit vectors, and of two rows that an affine map must hit.
    """
    probe = np.concatenate([np.zeros((1, dim)), np.eye(dim), np.linspace(-7.0, 11.0, 2 * dim).reshape(2, dim)])
    found = transformed(steps, probe)
    offset, matrix = found[0], (found[1 : dim + 1] - found[0]).T
    expected = probe[dim + 1 :] @ matrix.T + offset
    return (matrix, offset) if np.allclose(found[dim + 1 :], expected, rtol=1e-9, atol=1e-9) else None


def transformed(steps: list[Any], rows: np.ndarray) -> np.ndarray:
    """Rows after some fitted transformers, float64; a frame of their columns where they were fitted on one."""
    out: Any = rows
    names = getattr(steps[0], "feature_names_in_", None) if steps else None
    if names is not None:
        import pandas as pd

        out = pd.DataFrame(rows, columns=names)
    for step in steps:
        out = step.transform(out)
    return np.asarray(out.toarray() if hasattr(out, "toarray") else out, dtype=np.float64)


def _pipeline(foreign: Any, event: Event | None) -> GenerativeModel:
    steps = [step for _, step in foreign.steps[:-1] if step not in (None, "passthrough")]
    inner = wrap(foreign.steps[-1][1])
    if not steps:
        return wrap(foreign.steps[-1][1], event)
    _fitted(steps[0], "n_features_in_")
    dim = int(steps[0].n_features_in_)
    found = affine(steps, dim)
    named = " | ".join(type(step).__name__ for step in steps)
    if found is None or found[0].shape != (dim, dim) or abs(np.linalg.det(found[0] / np.abs(found[0]).max())) == 0:
        raise StructureError(
            f"A Pipeline of {named}", "affine steps that keep the number of columns, such as StandardScaler",
            "Only they are undone here; fit a density on the data's own columns, or pg.Standardize",
        )  # fmt: skip
    matrix, offset = (torch.as_tensor(part) for part in found)
    log_det = float(torch.linalg.slogdet(matrix).logabsdet)
    draw, score = _undone(inner, matrix, offset, log_det)
    by = f"{type(foreign.steps[-1][1]).__name__} after {named}, in the data's units"
    return ForeignDensity(_event(steps[0], dim, event), draw, score, by=by, fits="Pipeline.fit of scikit-learn")


def _undone(inner: GenerativeModel, matrix: Tensor, offset: Tensor, log_det: float) -> tuple[Callable, Callable]:
    """Draws and scores in the data's units of a model on affinely mapped rows."""

    def score(x: Tensor, given: None) -> np.ndarray:
        rows = x @ matrix.T + offset
        return inner._log_prob(rows, None, generator=torch.Generator()).nats + log_det

    def draw(n: int, given: None, generator: torch.Generator) -> Tensor:
        rows = inner._sample(n, None, generator=generator)
        return torch.linalg.solve(matrix, (rows - offset).T).T

    return draw, score
