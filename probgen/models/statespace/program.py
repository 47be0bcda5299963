"""The Pyro program of a state-space model: the covariance form of the textbooks, one predictive site a step."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.events import Ragged, Series
from probgen.models.statespace.kalman import System
from probgen.models.statespace.rounded import Cells, RoundedNormal

__all__ = ["run_program"]


def run_program(
    m: System, event: Series, cells: Cells | None, x: Ragged | None, given: Ragged | None, n: int, length: int
) -> Ragged:
    """p(x) as sites x_t | x_<t for the sequences that reach step t; a site for each pattern of recorded cells.

    Arguments:
        m: Matrices in the units of the data.
        x: Observed sequences; None draws n of ``length`` steps, or one for each sequence of inputs.
    """
    known = x if x is not None else given
    lengths = torch.full((n,), length) if known is None else known.lengths
    starts = lengths.cumsum(0) - lengths
    total = int(lengths.sum())
    cells_seen = torch.full((total, len(m.offset)), torch.nan) if x is None else x.values.reshape(total, -1)
    inputs = torch.zeros(total, 0, dtype=torch.float64) if given is None else given.values
    mean, cov = m.start_mean.expand(len(lengths), -1), m.start_cov.expand(len(lengths), -1, -1)
    steps: list[tuple[Tensor, Tensor]] = []
    for t in range(int(lengths.max())):
        live = (lengths > t).nonzero()[:, 0]
        rows = starts[live] + t
        u = inputs[rows]
        if t:
            mean = mean.index_put((live,), mean[live] @ m.transition.T + u @ m.control.T)
            cov = cov.index_put((live,), m.transition @ cov[live] @ m.transition.T + m.state_noise)
        values = None if x is None else cells_seen[rows]
        patterns, which = _patterns(values, len(live), len(m.offset))
        recorded = torch.zeros(len(live), len(m.offset), dtype=torch.float64).fill_(torch.nan)
        for i, o in enumerate(patterns):
            group = (which == i).nonzero()[:, 0]
            if not bool(o.any()):
                continue
            c, r = m.emission[o], m.noise[o][:, o]
            before, spread = mean[live[group]], cov[live[group]]
            loc = before @ c.T + (u[group] @ m.feedthrough.T + m.offset)[:, o]
            s = c @ spread @ c.T + r
            site = f"x_{t}" if bool(o.all()) else f"x_{t}_" + "".join(str(int(cell)) for cell in o)
            with pyro.plate(f"rows_{site}", len(group)):
                law = _law(loc, s, cells)
                obs = None if values is None else values[group][:, o]
                y = pyro.sample(site, law, obs=obs)
            gain = torch.linalg.solve(s, c @ spread).mT
            mean = mean.index_put((live[group],), before + (gain @ (y - loc)[..., None])[..., 0])
            cov = cov.index_put((live[group],), spread - gain @ c @ spread)
            filled = recorded[group].masked_scatter(o.expand(len(group), -1), y.detach())
            recorded = recorded.index_put((group,), filled)
        steps.append((rows, recorded))
    order = torch.cat([rows for rows, _ in steps]).argsort()
    return Ragged(torch.cat([values for _, values in steps])[order].reshape(total, *event.shape), lengths)


def _patterns(values: Tensor | None, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Distinct patterns of recorded cells, and each row's."""
    if values is None:
        return torch.ones(1, width, dtype=torch.bool), torch.zeros(rows, dtype=torch.int64)
    return (~values.isnan()).unique(dim=0, return_inverse=True)


def _law(loc: Tensor, cov: Tensor, cells: Cells | None) -> dist.TorchDistribution:
    if cells is None:
        return dist.MultivariateNormal(loc, 0.5 * (cov + cov.mT))
    return RoundedNormal(loc, cov[..., 0].sqrt(), cells).to_event(1)
