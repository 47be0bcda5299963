"""Draws of a program's posterior by NUTS or at its mode, on a density that is recorded once."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from probgen.errors import FitError
from probgen.posterior import Density, Draws, Found, Plan, chained, judged, sampled
from probgen.svi import Program, Structure

__all__ = ["draws_of", "posterior_draws"]


def posterior_draws(
    program: Program, structure: Structure, x: Tensor, given: Tensor | None, plan: Plan, generator: torch.Generator
) -> tuple[Draws, tuple[float, float], tuple[str, ...]]:
    """Draws of all continuous latents, finite ones summed out; log p(x, z, theta) a row, first and on average; notes.

    NUTS (Hoffman and Gelman 2014) starts each chain where Pyro's own start strategy puts it, not at the mode, which of
    a hierarchy may lie where no draws are. The program's parameters stay as they are.

    Raises:
        FitError: no start with a finite density was found.
    """
    density, starts, back = _started(program, structure, x, given, plan, generator)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    if plan.method == "nuts":
        found = chained(density, starts, plan, rng)
    else:
        found = sampled(density, starts[0], plan, generator)
    slow = () if density.recorded else ("the density runs step by step: it can't be recorded",)
    draws = draws_of(found, back, plan.method)
    notes = judged(plan, replace(found, notes=(*slow, *found.notes)), draws.values)
    lp = found.stats["lp"]
    return draws, (float(lp[:, 0].mean()) / len(x), float(lp.mean()) / len(x)), notes


def draws_of(found: Found, back: Callable[[Tensor], Mapping[str, Tensor]], method: str) -> Draws:
    """Draws for users from those in unconstrained coordinates."""
    split = found.z.shape[:2]
    values = back(found.z.reshape(-1, found.z.shape[2]))
    shaped = {name: value.reshape(*split, *value.shape[1:]) for name, value in values.items()}
    return Draws(shaped, found.stats, method, found.log_p, found.log_q)


def _started(
    program: Program, structure: Structure, x: Tensor, given: Tensor | None, plan: Plan, generator: torch.Generator
) -> tuple[Density, list[np.ndarray], Callable[[Tensor], dict[str, Tensor]]]:
    """The density, a start for each chain, and the way from reals (S, P) to latents (S, ...) by name."""
    begun = []
    for _ in range(plan.chains):
        with program.running(generator):
            try:
                begun.append(initialize_model(program.pair[0], (x, given), max_plate_nesting=structure.nesting))
            except ValueError as problem:
                raise FitError(
                    f"NUTS found no start: {problem}", "a finite log-density somewhere", "Check the priors' scales"
                ) from problem
    first, potential, transforms, _ = begun[0]
    names, dtype = list(first), next(iter(first.values())).dtype
    sizes = [first[name].numel() for name in names]

    def split(z: Tensor) -> dict[str, Tensor]:
        parts = zip(names, z.to(dtype).split(sizes, -1), strict=True)
        return {name: part.reshape((*z.shape[:-1], *first[name].shape)) for name, part in parts}

    def joint(z: Tensor) -> Tensor:
        return -potential(split(z)).to(torch.float64)

    def back(z: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {name: transforms[name].inv(value) for name, value in split(z).items()}

    starts = [
        torch.cat([start[name].detach().reshape(-1) for name in names]).to(torch.float64).numpy() for start, *_ in begun
    ]
    with program.running():
        density = Density(_in(program, joint), sum(sizes), recorded=True)
    return density, starts, back


def _in(program: Program, function: Callable[[Tensor], Tensor]) -> Any:
    """A function that runs the program in its own parameter store."""

    def run(z: Tensor) -> Tensor:
        with program.running():
            return function(z)

    return run
