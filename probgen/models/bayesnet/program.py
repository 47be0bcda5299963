"""A network as a Pyro program: one site a node."""

from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from probgen.errors import StructureError
from probgen.events import Category, Count
from probgen.models.bayesnet import graph
from probgen.models.bayesnet.tracing import from_pyro

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["from_pyro", "model"]

_DIMS = 63  # a tensor has at most 64, one of them for a node's levels


def model(net: "BayesianNetwork", x: Tensor | None, n: int = 1) -> Tensor | None:
    """The program: ``pyro.sample(name, p(node | parents))`` in topological order inside the plate "rows".

    A node whose cells are all seen is observed. A category with missing cells is a latent site marked for enumeration,
    and the levels that a row's seen cell excludes have probability zero there: with an empty guide,
    TraceEnum_ELBO(max_plate_nesting=1) gives minus the sum of the rows' log-probabilities, exactly, whatever the
    pattern of gaps. (``pyro.sample(..., obs_mask=...)`` would drop the mark and draw the missing cells.)

    A missing real or count that no seen cell depends on is masked: it integrates to one. Other reals are latents,
    "name_unobserved", to be inferred by NUTS or a guide of yours: an ELBO with an empty guide is no likelihood then.

    Arguments:
        x: Checked rows (n, columns), NaN = missing; None draws.
        n: Rows to draw.

    Returns:
        x as it came; without it the drawn rows (n, columns), or None inside an enumeration.

    Raises:
        StructureError: a missing count with a seen cell below it; more enumerated nodes than a tensor has dimensions.
    """
    n = n if x is None else len(x)
    values: dict[str, Tensor] = {}
    with pyro.plate("rows", n, dim=-1):
        for name in net.order:
            parents = _side_by_side([values[parent] for parent in net.parents[name]])
            values[name] = _site(net, name, x, parents)
            _refuse_more_dims(name, values[name])
    if x is not None or any(value.shape != (n,) for value in values.values()):
        return x
    return torch.stack([values[name].to(torch.float64) for name in net.variables], -1)


def _side_by_side(values: list[Tensor]) -> Tensor:
    """Parents (..., P) of values that broadcast; enumerated ones have dimensions of their own."""
    if not values:
        return torch.zeros(1, 0, dtype=torch.float64)
    return torch.stack(torch.broadcast_tensors(*(value.to(torch.float64) for value in values)), -1)


def _site(net: "BayesianNetwork", name: str, x: Tensor | None, parents: Tensor) -> Tensor:
    """The site of one node."""
    conditional = net.conditional(name)
    made, discrete = conditional.cells(parents), isinstance(conditional.child, Category)
    if x is None:
        return pyro.sample(name, made, infer={"enumerate": "parallel"} if discrete else {})
    cells = x[:, net.index[name]]
    seen = ~cells.isnan()
    if seen.all():
        return pyro.sample(name, made, obs=cells)
    if discrete:
        if seen.any() or not made.has_enumerate_support:
            made = _Seen(made, conditional.cards[-1], cells)
        return pyro.sample(name, made, infer={"enumerate": "parallel"})
    return _with_gaps(net, name, x, made)


def _with_gaps(net: "BayesianNetwork", name: str, x: Tensor, made: Any) -> Tensor:
    """The site of a real or a count with missing cells: masked there, or a latent where a seen cell depends on it."""
    cells = x[:, net.index[name]]
    seen = ~cells.isnan()
    filler = cells[seen][0] if seen.any() else made.sample().detach().reshape(-1)[0]  # some value of the support
    filled = torch.where(seen, cells, filler)
    below = [net.index[v] for v in graph.descendants(net.parents, [name]) if v != name]
    read = ~seen & ~x[:, below].isnan().all(1)
    if not read.any():
        with poutine.mask(mask=seen):  # type: ignore[call-overload]
            return pyro.sample(name, made, obs=filled)
    if isinstance(net.event.columns[name], Count):
        raise StructureError(
            f"The count {name!r} is missing in row {int(read.nonzero()[0])} and a seen cell depends on it",
            "a column of finitely many values, or no such gaps", "log_prob(x) bounds such rows",
        )  # fmt: skip
    with poutine.mask(mask=seen):  # type: ignore[call-overload]
        pyro.sample(f"{name}_observed", made, obs=filled)
    with poutine.mask(mask=~seen):  # type: ignore[call-overload]
        latent = pyro.sample(f"{name}_unobserved", made)
    return torch.where(seen, cells, latent)


def _refuse_more_dims(name: str, value: Tensor) -> None:
    """Before torch does, in words that say less."""
    if value.ndim > _DIMS:
        raise StructureError(
            f"{value.ndim - 1} nodes with missing cells in one enumeration; the last is {name!r}",
            f"at most {_DIMS - 1}: each takes a dimension of a tensor, which has 64",
            "log_prob(x) has no such limit",
        )


class _Seen(dist.TorchDistribution):
    """p(node | parents) of rows of which some are seen: there all other levels have probability zero.

    Arguments:
        of: The distribution of the node.
        levels: Their number.
        cells: (n,), NaN where missing.
    """

    arg_constraints: ClassVar = {}
    has_enumerate_support = True

    def __init__(self, of: Any, levels: int, cells: Tensor) -> None:
        self.of, self.levels, self.cells = of, levels, cells
        batch = torch.broadcast_shapes(of.batch_shape, cells.shape)
        super().__init__(batch, torch.Size(), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.integer_interval(0, self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        nats = self.of.log_prob(value)
        return torch.where(self.cells.isnan() | (self.cells == value), nats, -torch.inf)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        codes = torch.arange(self.levels, dtype=torch.float64).reshape(-1, *[1] * len(self.batch_shape))
        return codes.expand(-1, *self.batch_shape) if expand else codes

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        drawn = self.of.expand(self.batch_shape).sample(sample_shape).to(torch.float64)
        return torch.where(self.cells.isnan(), drawn, self.cells).expand(shape)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "_Seen":
        return _Seen(self.of.expand(batch_shape), self.levels, self.cells)
