"""One run of a Pyro program whose sites are set by hand, and what it tells of their distributions."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from probgen.errors import StructureError
from probgen.models.bayesnet.provenance import Reads, plain, sources, tracked

__all__ = ["Row", "Run", "Site", "comes_and_goes"]

_SITES = 10_000  # of a program, so that a loop without end is found

Row = dict[Any, float]  # level: log-probability in nats


@dataclass(frozen=True)
class Site:
    """Where a site stands: its batch shape and its vectorised plates by name, (dimension, size)."""

    shape: tuple[int, ...]
    plates: dict[str, tuple[int, int]]
    observed: bool


class Run(Messenger):
    """One run: sets the sites, and reads their distributions.

    Arguments:
        reader: What is known of the program.
        values: Variables that are set, by name; those that are drawn join them.
        reads: Where values that leave torch are noted; None: sources are not followed.
        even: Whether levels are drawn evenly.
        first: Whether this run finds the sites.
    """

    def __init__(
        self, reader: Any, values: dict[str, Any], reads: Reads | None, even: bool = False, first: bool = False
    ) -> None:
        super().__init__()
        self.reader, self.values, self.reads, self.even, self.first = reader, dict(values), reads, even, first
        self.seen: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        name, fn = msg["name"], msg["fn"]
        _refuse(msg)
        if self.first:
            self._meet(name, msg)
            return
        site = self.reader.sites.get(name)
        if site is None or name in self.seen:
            raise comes_and_goes(name, self.values)
        self.seen.add(name)
        if tuple(fn.batch_shape) != site.shape:
            raise StructureError(
                f"The site {name!r} has batch shape {tuple(fn.batch_shape)}, before {site.shape}", "one shape"
            )
        msg["value"], msg["done"] = self._set(name, fn), True

    def _meet(self, name: str, msg: Any) -> None:
        """Takes up a site in the first run, which goes its own way."""
        plates = {f.name: (f.dim, f.size) for f in msg["cond_indep_stack"] if f.vectorized}
        site = Site(tuple(msg["fn"].batch_shape), plates, bool(msg["is_observed"]))
        if name in self.reader.sites:
            raise StructureError(f"The site {name!r} comes twice", "a name for each site")
        if len(self.reader.sites) >= _SITES:
            raise StructureError(f"More than {_SITES} sites; the last is {name!r}", "a loop that ends")
        held = dict(plates.values())
        if any(size != held.get(dim - len(site.shape), 1) for dim, size in enumerate(site.shape)):
            raise StructureError(
                f"The site {name!r} has batch shape {site.shape} outside plates", "pyro.plate around its dimensions"
            )
        self.reader.sites[name] = site

    def _set(self, name: str, fn: Any) -> Tensor:
        """Keeps the row and the sources of each element, and gives the site its value."""
        reader = self.reader
        with Reads.paused(self.reads):
            support = fn.v[None] if isinstance(fn, dist.Delta) else fn.enumerate_support(expand=True)
            nats = fn.log_prob(support)
        read = sources((support, nats)) | (self.reads.escaped if self.reads else frozenset())
        support, nats = plain(support), plain(nats)
        rows = [reader.sites[name].plates[plate][0] for plate in reader.rows]
        value = self._start(name, support, nats, rows)
        for variable in reader.by_site[name]:
            place = reader.place(variable)
            row = _row(name, support[:, *place], nats[:, *place])
            variable.levels |= set(row)
            if self.reads is not None:
                reader.add_parents(variable, read)
            variable.runs.append((self.values, row))
            level = self.values.setdefault(variable.name, _drawn(row, self.even))
            across: list[Any] = list(place)
            for dim in rows if self.reads is not None else ():
                across[dim] = slice(None)
            value[tuple(across)] = level
        return value if self.reads is None else tracked(value, frozenset({name}), self.reads)

    def _start(self, name: str, support: Tensor, nats: Tensor, rows: list[int]) -> Tensor:
        """A value to be filled; in a check the rows but the first are drawn, for they must not matter to it."""
        if self.reads is not None:
            _refuse_unequal(name, (support, nats), rows)
            return torch.empty(support.shape[1:], dtype=support.dtype)
        which = torch.randint(len(support), (1, *support.shape[1:]))
        return support.gather(0, which)[0]


def _row(name: str, support: Tensor, nats: Tensor) -> Row:
    """One distribution, normalised; single precision is off by what lgamma is off."""
    total = nats.double().logsumexp(0)
    if not abs(math.expm1(float(total))) <= 1e-4:
        raise StructureError(
            f"Probabilities of the site {name!r} sum to {math.exp(float(total)):.9g}", "a normalised distribution"
        )
    levels = (int(v) if float(v).is_integer() else v for v in support.tolist())  # whole numbers as int
    return dict(zip(levels, (nats.double() - total).tolist(), strict=True))


def _drawn(row: Row, even: bool) -> Any:
    weights = torch.tensor(list(row.values()), dtype=torch.float64).exp()
    return list(row)[int(torch.multinomial(torch.ones_like(weights) if even else weights, 1))]


# Refusals


def _refuse(msg: Any) -> None:
    """Sites that no table can hold."""
    name, fn, kind = msg["name"], msg["fn"], type(msg["fn"]).__name__
    scale, mask = plain(msg["scale"]), plain(msg["mask"])
    if kind == "Unit":
        raise StructureError(
            f"The factor {name!r}", "sample sites alone", "A product of factors is a MarkovField, not a network"
        )
    if len(fn.event_shape):
        raise StructureError(
            f"The site {name!r} has event shape {tuple(fn.event_shape)} ({kind})", "single values",
            "Sample its elements in a plate",
        )  # fmt: skip
    if not fn.has_enumerate_support and not isinstance(fn, dist.Delta):
        raise StructureError(
            f"The site {name!r} is {kind}, which has no finite support", "Categorical, Bernoulli, Binomial, Delta",
            "Build the network by hand, with probgen.conditionals.Program for this node",
        )  # fmt: skip
    if bool(torch.as_tensor(scale != 1).any()) or (mask is not None and not bool(torch.as_tensor(mask).all())):
        raise StructureError(
            f"The site {name!r} is scaled, subsampled or masked", "whole plates, without poutine.scale and mask"
        )


def _refuse_unequal(name: str, tensors: tuple[Tensor, ...], dims: Any) -> None:
    for dim, tensor in itertools.product(dims, tensors):
        if not torch.equal(tensor, tensor.narrow(dim, 0, 1).expand_as(tensor)):
            raise StructureError(
                f"Rows of the plate differ at the site {name!r}", "rows of one distribution",
                "Trace the program for one row, or loop over them: for i in pyro.plate(...)",
            )  # fmt: skip


def comes_and_goes(name: str, values: dict[str, Any]) -> StructureError:
    return StructureError(
        f"The site {name!r} comes and goes with the values of other sites (here {values})",
        "the same sites in every run",
        "Sample all sites always, and choose among their parameters by torch.where or an index",
    )
