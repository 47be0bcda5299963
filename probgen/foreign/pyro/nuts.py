"""Draws of the posterior by Pyro's NUTS, on a density that is recorded once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from probgen.errors import FitError, StructureError
from probgen.svi import Graph, Program, Structure, gradients, record

__all__ = ["Draws", "nuts"]


@dataclass(frozen=True)
class Draws:
    """Draws of the posterior.

    Arguments:
        values: Of each latent that all rows share, (chains * draws, ...), in its own space.
        objective: log p(x, z, theta) in unconstrained coordinates a row, at the first kept draw and on average.
        ess: Smallest effective number of draws of any shared number.
        rhat: Largest split R-hat; NaN below 4 draws.
        notes: What a user should know.
    """

    values: Mapping[str, Tensor]
    objective: tuple[float, float]
    ess: float
    rhat: float
    notes: tuple[str, ...]


def nuts(
    program: Program,
    structure: Structure,
    x: Tensor,
    given: Tensor | None,
    *,
    draws: int,
    warmup: int,
    chains: int,
    generator: torch.Generator,
) -> Draws:
    """Chains one after the other, each from a start of its own; finite latents are summed out.

    Hoffman and Gelman (2014). R-hat and effective sizes as in Gelman et al. (2013).

    Raises:
        FitError: no start with a finite density was found.
    """
    notes: list[str] = []
    kept, energies, divergent = [], [], 0
    for _ in range(chains):
        with program.running(generator):
            try:
                start, potential, transforms, _ = initialize_model(
                    program.pair[0], (x, given), max_plate_nesting=structure.nesting
                )
            except ValueError as problem:
                raise FitError(
                    f"NUTS found no start: {problem}", "a finite log-density somewhere", "Check the priors' scales"
                ) from problem
            fast = _recorded(potential, start, notes, torch.Generator().manual_seed(0))
            chain: Any = MCMC(
                NUTS(potential_fn=fast), draws, warmup, initial_params=start, disable_progbar=True, num_chains=1
            )
            chain.run()
            divergent += len(chain._diagnostics[0].get("divergences", ()))
            raw = {name: value.detach() for name, value in chain._samples.items()}
        kept.append({name: raw[name][0] for name in start})
        energies.append(torch.stack([-potential_at(fast, kept[-1], i) for i in (0, draws // 2, draws - 1)]))
    shared = {n: torch.stack([transforms[n].inv(chain[n]) for chain in kept]) for n in structure.globals}
    if divergent:
        notes.append(f"{divergent} of {chains * draws} transitions diverged")
    ess, rhat = _quality(shared, draws)
    gained = torch.stack(energies) / len(x)
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in shared.items()}
    return Draws(flat, (float(gained[:, 0].mean()), float(gained.mean())), ess, rhat, tuple(dict.fromkeys(notes)))


def potential_at(potential: Any, draws: Mapping[str, Tensor], i: int) -> Tensor:
    return potential({name: value[i] for name, value in draws.items()}).detach()


def _quality(shared: Mapping[str, Tensor], draws: int) -> tuple[float, float]:
    if draws < 4:
        return 1.0, float("nan")
    numbers = [value.reshape(*value.shape[:2], -1).to(torch.float64) for value in shared.values()]
    ess = min(float(effective_sample_size(n, sample_dim=1, chain_dim=0).min()) for n in numbers)
    return ess, max(float(split_gelman_rubin(n, sample_dim=1, chain_dim=0).max()) for n in numbers)


def _recorded(potential: Any, start: Mapping[str, Tensor], notes: list[str], scratch: torch.Generator) -> Any:
    """The potential with its gradient played back from a graph; itself where it can't be recorded."""
    names = sorted(start)

    def slopes(*values: Tensor) -> tuple[Tensor | None, ...]:
        leaves = [value.detach().requires_grad_() for value in values]
        return gradients(potential(dict(zip(names, leaves, strict=True))), leaves)

    try:
        graph = record(slopes, *(start[name].detach() for name in names), generator=scratch)
    except StructureError as problem:
        notes.append(f"the density runs step by step, not recorded: {problem.came}")
        return potential

    def play(values: Mapping[str, Tensor]) -> Tensor:
        return _Potential.apply(graph, scratch, *(values[name] for name in names))

    return play


class _Potential(torch.autograd.Function):
    """A potential whose gradient comes with it."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, scratch: torch.Generator, *values: Tensor) -> Tensor:
        energy, *slopes = graph(*(value.detach() for value in values), generator=scratch)
        ctx.save_for_backward(*(torch.zeros_like(v) if s is None else s for s, v in zip(slopes, values, strict=True)))
        return energy  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(slope * grad[0] for slope in ctx.saved_tensors))
