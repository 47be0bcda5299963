"""Normal approximations of a posterior in unconstrained coordinates: at its mode, and by variational inference."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from probgen.errors import FitError
from probgen.posterior.density import Density

__all__ = ["FULL", "Normal", "laplace", "mode", "variational"]

FULL = 200  # numbers up to which a guide has all covariances
_STEP = 1e-4  # of the differences that curvature is taken from
_WIDEST = 1e-4  # least precision of a direction: priors here are never wider than a deviation of 100


@dataclass(frozen=True)
class Normal:
    """N(mean, root root'), root a lower triangle (P, P), or deviations (P,) of independent numbers."""

    mean: np.ndarray
    root: np.ndarray

    def at(self, noise: np.ndarray) -> np.ndarray:
        """Standard normal noise (S, P) carried to draws."""
        return self.mean + (noise @ self.root.T if self.root.ndim == 2 else noise * self.root)

    def log_prob(self, noise: np.ndarray) -> np.ndarray:
        """log density (S,) at the draws that noise was carried to."""
        diagonal = np.diagonal(self.root) if self.root.ndim == 2 else self.root
        constant = np.log(np.abs(diagonal)).sum() + 0.5 * len(self.mean) * math.log(2 * math.pi)
        return -0.5 * np.square(noise).sum(1) - constant

    def covariance(self) -> np.ndarray:
        """(P, P), or the variances (P,) of independent numbers."""
        return self.root @ self.root.T if self.root.ndim == 2 else np.square(self.root)


def mode(density: Density, start: np.ndarray, max_iter: int = 300) -> tuple[np.ndarray, list[float]]:
    """The highest point that quasi-Newton steps reach from a start, and the log-densities on the way.

    Raises:
        FitError: the density at the start is not finite.
    """
    z = torch.from_numpy(np.array(start, dtype=np.float64))
    best: list = [density(z.numpy())[0], z.numpy().copy()]
    history = [best[0]]
    if not math.isfinite(best[0]):
        raise FitError(
            f"The log posterior density is {best[0]} where the search begins",
            "a start with a finite density",
            "Check the scale of the data, and that they are possible under the model",
        )
    search = torch.optim.LBFGS(
        [z.requires_grad_()], max_iter=max_iter, history_size=20, tolerance_grad=1e-8, tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> float:
        at = z.detach().numpy().copy()
        nats, slope = density(at)
        z.grad = torch.from_numpy(-slope)
        if nats > best[0]:
            best[:] = [nats, at]
            history.append(nats)
        return -nats if math.isfinite(nats) else 1e300

    search.step(loss)  # type: ignore[arg-type]
    return best[1], history


def laplace(density: Density, at: np.ndarray, width: int = 1) -> tuple[Normal, bool]:
    """The normal whose precision is the curvature at a mode, and whether every direction curves downwards there.

    Columns of the Hessian are central differences of the gradient. MacKay (2003), chapter 27.

    Arguments:
        width: Points that the density is asked for at once.
    """
    moves = _STEP * np.eye(len(at))
    columns = (density.batch(at - moves, width)[1] - density.batch(at + moves, width)[1]) / (2 * _STEP)
    values, vectors = np.linalg.eigh((columns + columns.T) / 2)
    proper = bool((values > _WIDEST).all())
    spread = (vectors / np.maximum(values, _WIDEST)) @ vectors.T
    return Normal(at, np.linalg.cholesky((spread + spread.T) / 2)), proper


def variational(
    density: Density,
    first: Normal,
    rng: np.random.Generator,
    steps: int = 400,
    draws: int = 8,
    note: Callable[[], None] = lambda: None,
) -> tuple[Normal, list[float]]:
    """The normal nearest to the posterior by the ELBO, from a first guess; and the ELBO at steps, in nats.

    Adam on mean and root in the coordinates in which the first guess is standard, by gradients of paths alone
    (Roeder, Wu and Duvenaud 2017), averaged over the second half of the steps (Polyak and Juditsky 1992).
    """
    size, full = len(first.mean), first.root.ndim == 2
    shift, root = np.zeros(size), np.eye(size) if full else np.zeros(size)  # of independent numbers logs
    second_moment = [np.zeros_like(shift), np.zeros_like(root)]
    momentum = [np.zeros_like(shift), np.zeros_like(root)]
    total, history = [np.zeros_like(shift), np.zeros_like(root)], []
    for t in range(1, steps + 1):
        noise = rng.standard_normal((draws, size))
        white = shift + (noise @ root.T if full else noise * np.exp(root))
        found, slopes = density.batch(first.at(white), draws)
        carried = slopes @ first.root if full else slopes * first.root
        guide = np.linalg.solve(root.T, noise.T).T if full else noise * np.exp(-root)
        path = carried + guide
        outer = np.tril(path.T @ noise) / draws if full else (path * noise).mean(0) * np.exp(root)
        for k, gradient in enumerate((path.mean(0), outer)):
            momentum[k] = 0.9 * momentum[k] + 0.1 * gradient
            second_moment[k] = 0.99 * second_moment[k] + 0.01 * np.square(gradient)
        rate = 0.02 if t <= steps // 2 else 0.005
        moves = [
            rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
            for m, v in zip(momentum, second_moment, strict=True)
        ]
        shift, root = shift + moves[0], root + moves[1]
        if full:
            np.fill_diagonal(root, np.maximum(np.diagonal(root), 1e-3))
        if t > steps // 2:
            total = [total[0] + shift, total[1] + root]
        history.append(float(found.mean() + _entropy(first, root)))
        note()
    half = steps - steps // 2
    shift, root = total[0] / half, total[1] / half
    mean = first.at(shift[None])[0]
    return Normal(mean, first.root @ root if full else first.root * np.exp(root)), history


def _entropy(first: Normal, root: np.ndarray) -> float:
    """Of the normal that root makes of a first guess, in nats."""
    size = len(first.mean)
    inner = np.log(np.diagonal(root)).sum() if root.ndim == 2 else root.sum()
    outer = np.log(np.diagonal(first.root) if first.root.ndim == 2 else first.root).sum()
    return float(inner + outer + 0.5 * size * (1 + math.log(2 * math.pi)))
