"""A field as a Pyro program: one factor site a potential."""

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.errors import StructureError
from probgen.models.markovfield import partition

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = ["model"]

_DIMS = 60  # enumerated variables: a tensor has at most 64 dimensions


def model(field: "MarkovField", x: Tensor | None, n: int = 1) -> Tensor | None:
    """The program: a uniform reference site a variable and ``pyro.factor("potential_a_b", theta[a, b])`` a potential,
    inside the plate "rows".

    The site "reference" takes the uniform sites' log-probabilities back, "log_partition" takes log Z off where that is
    affordable: with an empty guide, TraceEnum_ELBO(max_plate_nesting=1) is then minus the sum of log_prob, whatever
    cells are missing. (Where log Z is out of reach the site is left out, and the ELBO is of log f.) Hidden variables
    and those with missing cells are enumerated. Without x the sites are draws of the reference, weighted by the
    factors: ``sample`` draws from the field.

    Arguments:
        x: Checked rows (n, visible), NaN = missing.

    Returns:
        The rows (n, visible), where nothing is enumerated.

    Raises:
        StructureError: more variables to enumerate than tensors have dimensions.
    """
    n = n if x is None else len(x)
    codes = torch.full((n, len(field.cards)), torch.nan, dtype=torch.float64) if x is None else field.codes(x)
    gaps = codes.isnan().any(0)
    if x is not None and int(gaps.sum()) > _DIMS:
        raise StructureError(
            f"{int(gaps.sum())} variables with missing cells in one enumeration", f"at most {_DIMS}", "log_prob(x)"
        )
    log_z = partition.differentiable(field) if partition.affordable(field) else None
    tables = field.tables(list(field.blocks))
    with pyro.plate("rows", n, dim=-1):
        values = [_site(field, v, codes[:, v], bool(gaps[v])) for v in range(len(field.cards))]
        for scope, names, table in zip(field.plan.scopes, field.factors, tables, strict=True):
            pyro.factor(f"potential_{'_'.join(names)}", table[tuple(values[v].long() for v in scope)])
        pyro.factor("reference", torch.tensor(field.cards, dtype=torch.float64).log().sum().expand(n))
        if log_z is not None:
            pyro.factor("log_partition", -log_z.expand(n))
    visible = values[: codes.shape[1] - len(field.unseen)]
    if any(value.shape != (n,) for value in visible):
        return None
    return torch.stack([value.to(torch.float64) for value in visible], -1)


def _site(field: "MarkovField", v: int, cells: Tensor, gaps: bool) -> Tensor:
    name, card = field.variables[v], field.cards[v]
    uniform = dist.Categorical(logits=torch.zeros(len(cells), card, dtype=torch.float64))
    if not gaps:
        return pyro.sample(name, uniform, obs=cells.long())
    value = pyro.sample(name, uniform, infer={"enumerate": "parallel"})
    if not bool(cells.isnan().all()):
        seen = cells.isnan() | (cells == value)
        pyro.factor(f"seen_{name}", torch.where(seen, 0.0, -torch.inf).to(torch.float64))
    return value
