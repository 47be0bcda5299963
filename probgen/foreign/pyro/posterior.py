"""What is asked of the posterior of the latents that a program's rows share."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from probgen.foreign.pyro.drawing import draw
from probgen.foreign.pyro.predictive import PosteriorPredictive
from probgen.foreign.pyro.rows import Rows
from probgen.posterior import Draws
from probgen.svi import model_terms, sites_of

__all__ = ["log_lik", "log_prior", "of_guide", "replicates", "sample_prior", "thetas_of"]

_DRAWS = 1000  # of a guide


def of_guide(rows: Rows) -> Draws:
    """Draws of the guide's shared latents, always the same; with log joint and log guide where rows have none of their
    own, both in the latents' own space."""
    generator, names = torch.Generator().manual_seed(0), rows.structure.globals
    if rows.structure.locals:
        thetas = rows.shared(_DRAWS, generator)
        return Draws({name: torch.stack([theta[name] for theta in thetas])[None] for name in names}, {}, "svi")
    found = [_drawn(rows, generator) for _ in range(_DRAWS)]
    values = {name: torch.stack([theta[name] for theta, _, _ in found])[None] for name in names}
    log_p, log_q = torch.stack([p for _, p, _ in found])[None], torch.stack([q for _, _, q in found])[None]
    return Draws(values, {"lp": log_p}, "svi", log_p, log_q)


def _drawn(rows: Rows, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A draw of the guide, log p(x, theta) of the rows that it was fitted to, and log q(theta).

    Sites that a guide draws for itself count too: an autoguide's latents are points that they carry the density of.
    """
    x, given = rows.seen
    with torch.no_grad(), rows.program.running(generator):
        trace = rows.program.trace_guide(x, given)
        trace.compute_log_prob()
        sites = sites_of(trace)
        theta = {name: sites[name]["value"].detach() for name in rows.structure.globals}
        each, shared = model_terms(rows.program, rows.structure, x, given, theta)
    log_q = torch.stack([site["log_prob"].sum() for site in sites.values()]).sum()
    return theta, (each.sum() + shared).to(torch.float64), log_q.to(torch.float64)


def _thetas(rows: Rows, draws: Draws) -> list[dict[str, Tensor]]:
    flat = draws.flat()
    return [{name: flat[name][i] for name in rows.structure.globals} for i in range(len(draws))]


def log_lik(rows: Rows, x: Tensor, given: Tensor | None, draws: Draws, generator: torch.Generator) -> Tensor:
    """log p(x_i | theta_s), (S, n), in chain-major order; a row's own latents are integrated out."""
    with torch.no_grad():
        found = PosteriorPredictive().log_lik(rows, x, given, _thetas(rows, draws), generator.initial_seed())
    return found.to(torch.float64)


def log_prior(rows: Rows, draws: Draws) -> Tensor:
    """log p(theta_s), (S,), of the shared latents, in their own space."""
    x, given = rows.stand
    found = []
    for theta in _thetas(rows, draws):
        with torch.no_grad(), rows.program.running(torch.Generator().manual_seed(0)):
            found.append(model_terms(rows.program, rows.structure, x, given, theta)[1])
    return torch.stack(found).to(torch.float64)


def replicates(
    rows: Rows, thetas: Sequence[Mapping[str, Tensor]], stand: Sequence[Tensor], given: Tensor | None,
    generator: torch.Generator,
) -> Iterator[Tensor]:  # fmt: skip
    """Data sets like those that stand for them, each with one value of what rows share and latents of its own rows.

    Arguments:
        thetas: Shared latents of each data set; an empty one is drawn from the prior.
    """
    for theta in thetas:
        with torch.no_grad():
            made = draw(rows.program, rows.structure, stand, given, theta, generator)
        yield made.to(torch.float64)


def thetas_of(rows: Rows, draws: Draws, places: Tensor) -> list[dict[str, Tensor]]:
    """Shared latents of some draws, by their numbers in chain-major order."""
    found = _thetas(rows, draws)
    return [found[place] for place in places.tolist()]


def sample_prior(
    rows: Rows, n: int, stand: Sequence[Tensor], given: Tensor | None, generator: torch.Generator
) -> Tensor:
    """n rows, each with latents of its own from the prior; with covariates n for each, (m, n, ...) for several."""
    conditions = [None] if given is None else given.split(1)
    drawn = [
        torch.cat([draw(rows.program, rows.structure, stand, one, {}, generator) for _ in range(n)])
        for one in conditions
    ]
    return (drawn[0] if len(drawn) == 1 else torch.stack(drawn)).to(torch.float64)
