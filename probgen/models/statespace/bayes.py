"""Posteriors over the matrices of a state-space model, its states integrated out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.events import Ragged
from probgen.model import FitReport
from probgen.models.statespace.em import lower_factor
from probgen.models.statespace.matrices import Matrices
from probgen.models.statespace.score import scorer

if TYPE_CHECKING:
    from probgen.models.statespace.family import StateSpace
    from probgen.posterior import Parametric, Plan

__all__ = ["fit_bayes", "parametric", "priors"]

_LEAST = 1e-3  # deviation, in units of the data's, from which the search for the mode begins


def _free_cells(parts: Matrices) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each factor that is learnt: places of its diagonal and of what is below it, in the flattened matrix."""
    wide = torch.ones(parts.width, parts.width, dtype=torch.bool)
    masks = {"state": parts.shape.blocks, "noise": wide}
    if not bool(parts.spread_known):
        masks["start"] = torch.ones_like(parts.shape.blocks)
    return {
        name: (torch.diag(mask.diagonal()).reshape(-1).nonzero()[:, 0], mask.tril(-1).reshape(-1).nonzero()[:, 0])
        for name, mask in masks.items()
    }


def priors(parts: Matrices) -> dict[str, Any]:
    """Weakly informative, in units in which every column of the data has mean 0 and variance 1.

    Diagonals of the noises' factors are half-normal with scale 1 ("state.scale", "noise.scale", "start.scale"), what is
    below them N(0, 0.5^2); first states N(0, 3^2); free moves, loadings, offsets and effects of inputs N(0, 1).
    """
    found: dict[str, Any] = {}
    for name, (diagonal, below) in _free_cells(parts).items():
        if len(diagonal):
            found[f"{name}.scale"] = dist.HalfNormal(_ones(len(diagonal))).to_event(1)
        if len(below):
            found[f"{name}.below"] = _normal(0.5 * _ones(len(below)))
    found["start_mean"] = _normal(3 * torch.ones_like(parts.start_mean.detach()))
    for name in ("rows", "emission", "offset", "feedthrough", "control"):
        if (own := getattr(parts, name)) is not None:
            found[name] = _normal(torch.ones_like(own.detach()))
    return found


def _ones(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.float64)


def _normal(scale: Tensor) -> Any:
    return dist.Normal(torch.zeros_like(scale), scale).to_event(scale.ndim)


def parametric(model: "StateSpace", length: int = 20) -> "Parametric":
    """What a state-space model tells of itself; its sites are those of ``priors``."""
    from probgen.posterior import Coordinates, Parametric

    parts = model.parts
    cells = _free_cells(parts)

    def parameters(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = {f"parts.{name}": value for name, value in values.items() if "." not in name}
        for name, (diagonal, below) in cells.items():
            shape = getattr(parts, f"{name}_factor").shape
            flat = torch.zeros(shape.numel(), dtype=torch.float64)
            if len(diagonal):
                flat = flat.index_copy(0, diagonal, values[f"{name}.scale"])
            if len(below):
                flat = flat.index_copy(0, below, values[f"{name}.below"])
            out[f"parts.{name}_factor"] = flat.reshape(shape)
        return out

    def steps(x: Ragged, given: Ragged | None) -> Tensor:
        return model._scores(model._made(x, given))

    def rows(x: Ragged, given: Ragged | None) -> Tensor:
        owner = torch.repeat_interleave(torch.arange(len(x)), x.lengths)
        return torch.zeros(len(x), dtype=torch.float64).index_add(0, owner, steps(x, given))

    def draw(n: int, given: Ragged | None, generator: torch.Generator) -> Ragged:
        return model._simulated(n, given, generator, length)

    def halves(x: Ragged, given: Ragged | None) -> tuple[Any, Any]:
        return lambda: tuple(parts.system()), scorer(model._made(x, given), parts.scale)

    turning = parts.emission is not None  # another basis of the states is another set of matrices
    return Parametric(
        model, model.kept, Coordinates(priors(parts)), parameters, rows, lambda: natural(parts), draw, steps,
        identified=("noise", "offset", "feedthrough") if turning else (), recorded=model.cells is None,
        halves=halves if model.cells is None else None,
    )  # fmt: skip


def natural(parts: Matrices) -> dict[str, Tensor]:
    """The matrices that are learnt, in the units of the data, by their names in ``StateSpace.matrices()``."""
    system = parts.in_data_units()
    free = {
        "transition": parts.rows, "control": parts.control, "state_noise": parts.state_factor,
        "emission": parts.emission, "feedthrough": parts.feedthrough, "offset": parts.offset,
        "noise": parts.noise_factor, "start_mean": parts.start_mean,
        "start_cov": None if bool(parts.spread_known) else parts.start_factor,
    }  # fmt: skip
    return {name: getattr(system, name) for name, part in free.items() if part is not None}


def _start(parts: Matrices) -> dict[str, Tensor]:
    """Values of the sites at the matrices in place; deviations of 0 a little above it."""
    m, found = parts.found(), {}
    eye = torch.eye(parts.width, dtype=torch.float64)
    covs = {"state": m.state_noise, "noise": m.noise - parts.floor * eye, "start": m.start_cov}
    for name, (diagonal, below) in _free_cells(parts).items():
        flat = lower_factor(covs[name]).reshape(-1)
        found[f"{name}.scale"], found[f"{name}.below"] = flat[diagonal].clamp(min=_LEAST), flat[below]
    names = ("start_mean", "rows", "emission", "offset", "feedthrough", "control")
    return found | {name: getattr(parts, name).detach() for name in names if getattr(parts, name) is not None}


def fit_bayes(
    model: "StateSpace", x: Ragged, given: Ragged | None, generator: torch.Generator, plan: "Plan",
    options: Mapping[str, Any],
) -> FitReport:  # fmt: skip
    """Draws of the matrices, from starts about the mode that is nearest to the maximum of the likelihood."""
    from probgen.posterior import fit

    good = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("kept.")}
    try:
        model._fit(x, given, generator=generator, **options)
        family = parametric(model)
        start = {name: value for name, value in _start(model.parts).items() if name in priors(model.parts)}
        report, _ = fit(family, x, given, start, plan, generator)
    except BaseException:
        model.kept.clear()
        model.load_state_dict(good, strict=False)
        raise
    with torch.no_grad():
        model.log_likelihood = float(family.rows(x, given).sum())
    return report
