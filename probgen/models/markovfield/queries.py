"""What a field can be asked: unnormalised log-probabilities of rows with gaps, marginals, the most probable completion,
draws."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen import cliques, frames
from probgen.errors import ParameterError, StructureError, nearest
from probgen.logprob import Kind, LogProb
from probgen.models.markovfield.evidence import Conditions, refuse_impossible
from probgen.models.markovfield.local import Local, drawn, possible
from probgen.models.markovfield.partition import Partition, affordable, draw_sides, refusal

if TYPE_CHECKING:
    from probgen.models.markovfield.field import MarkovField

__all__ = ["Marginals", "conditional_log_prob", "draw", "marginals", "mpe", "normalised", "refused", "unnormalised"]

_CELLS = 1 << 19  # cells of work at a time


@dataclass(frozen=True, eq=False)
class Marginals:
    """p(x_v | observed cells of the row) of each variable, hidden ones included; observed ones have all their mass on
    what was seen.

    Arguments:
        levels: Of each variable, by name.
        probs: Of each variable, shape (n, levels).
        keys: Row keys, shape (n,).
        kind: exact, or estimate (loopy belief propagation).
        by: How they were found.
        diagnostics: "iterations", "residual" of an iterative method.
    """

    levels: dict[str, tuple]
    probs: dict[str, np.ndarray]
    keys: np.ndarray
    kind: Kind = Kind.EXACT
    by: str = "clique plan"
    diagnostics: dict[str, float] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.probs:
            raise ParameterError(f"There is no variable {name!r}", "", nearest(str(name), self.probs))
        return self.probs[name]

    def frame(self) -> Any:
        """A pyarrow.Table: row, and a column "name=level" a level of each variable."""
        found: dict[str, Any] = {"row": self.keys}
        for name, levels in self.levels.items():
            found |= {f"{name}={level}": self.probs[name][:, i] for i, level in enumerate(levels)}
        return frames.table(found)

    def __repr__(self) -> str:
        return f"Marginals({self.kind}, {len(self)} rows of {len(self.probs)} variables; by {self.by})"


def split(model: "MarkovField", probs: Tensor, keys: np.ndarray, **about: Any) -> Marginals:
    """Marginals from levels side by side, (n, sum of levels)."""
    parts = probs.split(list(model.cards), dim=1)
    found = {name: part.numpy() for name, part in zip(model.variables, parts, strict=True)}
    return Marginals(dict(model.levels_of), found, keys, **about)


# Likelihoods


def unnormalised(model: "MarkovField", cells: Tensor, blocks: Any = None) -> tuple[Tensor, Tensor]:
    """log of the sum over missing and hidden variables of the product of the potentials, (n,), and which rows are too
    large for that, (n,); those have NaN.

    Arguments:
        blocks: Potentials to differentiate in; None takes the model's, without gradients.
    """
    codes = model.codes(cells)
    nats = torch.full((len(codes),), torch.nan, dtype=torch.float64)
    over = torch.zeros(len(codes), dtype=torch.bool)
    simple = model.simple & ~cells.isnan().any(1)
    if bool(simple.any()):
        local = Local(model.cards, model.groups, model.detached() if blocks is None else blocks)
        size = max(1, _CELLS // (len(model.cards) * max(model.cards)))
        rows = simple.nonzero()[:, 0]
        parts = [local.collapsed(codes[part], model.unseen) for part in rows.split(size)]
        nats = nats.index_put((rows,), possible(torch.cat(parts)))
    rest = (~simple).nonzero()[:, 0]
    if len(rest):
        small = cliques.row_cost(model.plan, codes[rest], blocks is not None) <= model.limit
        over[rest] = ~small
        rest = rest[small]
    if len(rest):
        tables = model.tables(blocks)
        nats = nats.index_put((rest,), cliques.log_prob(model.plan, tables, codes[rest], limit=model.limit))
    return nats, over


def normalised(model: "MarkovField", cells: Tensor, log_z: Partition) -> LogProb:
    """log p of each row from one log Z for all: where that is a bound, the side turns."""
    n = len(cells)
    if log_z.kind is Kind.UNAVAILABLE:
        return LogProb.refuse(n, log_z.reason, refusal(model)[1], by=log_z.by)
    nats, over = unnormalised(model, cells)
    kinds = np.array([Kind.UNAVAILABLE if off else log_z.of_log_prob for off in over.tolist()], dtype=object)
    noise = None if log_z.stderr is None else np.full(n, log_z.stderr)
    return LogProb(
        kinds,
        (nats - log_z.nats).numpy(),
        by=log_z.by,
        stderr=noise,
        draws=None if noise is None else np.full(n, log_z.key, dtype=np.uint64),
        diagnostics={name: np.full(n, value) for name, value in log_z.diagnostics.items()},
        reason=_too_large(model) if bool(over.any()) else "",
        instead="rows with fewer missing cells, or a higher .limit if memory allows" if bool(over.any()) else "",
    )


def _too_large(model: "MarkovField") -> str:
    return f"summing out the row's missing cells takes more than limit={model.limit} table entries"


def refused(model: "MarkovField", n: int) -> LogProb:
    reason, instead = refusal(model)
    return LogProb.refuse(n, reason, instead, by="clique plan")


def conditional_log_prob(model: "MarkovField", x: Tensor, given: Conditions) -> LogProb:
    """log p(x | given) = log f(x, given) - log f(given): log Z cancels."""
    known = given.cells.expand(len(x), -1)
    twice = ~x.isnan() & ~known.isnan()
    if bool(twice.any()):
        row, column = twice.nonzero()[0].tolist()
        name = list(model.event.columns)[column]
        raise ParameterError(
            f"Row {row}, column {name!r} is both scored and given", "each cell once", f"Blank {name!r} in the rows"
        )
    below, large = unnormalised(model, given.cells)
    if bool(large.all()):
        return LogProb.refuse(len(x), _too_large(model), "a condition on more cells", by="clique plan")
    refuse_impossible(below[~large], given.keys[(~large).numpy()])
    above, over = unnormalised(model, torch.where(known.isnan(), x, known))
    off = (over | large.expand(len(x))).numpy()
    kinds = np.where(off, Kind.UNAVAILABLE, Kind.EXACT).astype(object)
    rest = {name: column for name, column in model.event.columns.items() if name not in given.names}
    measure = type(model.event)(rest or model.event.columns).measure
    nats = np.where(off, np.nan, (above - below).numpy())
    return LogProb(
        kinds, nats, by="clique plan", of=f"x|{','.join(given.names)}", measure=measure,
        reason=_too_large(model) if off.any() else "", instead="a condition on more cells" if off.any() else "",
    )  # fmt: skip


# Marginals and the most probable completion


def _refuse_large(model: "MarkovField", codes: Tensor, keys: np.ndarray, verb: str, do: str) -> None:
    costs = cliques.row_cost(model.plan, codes, True)
    over = (costs > model.limit).nonzero()[:, 0]
    if len(over):
        raise StructureError(
            f"{verb} of {len(over)} rows (first: row {keys[int(over[0])]}, {float(costs[over[0]]):.3g} table entries)",
            f"rows of at most limit={model.limit} entries", do,
        )  # fmt: skip


@torch.no_grad()
def marginals(model: "MarkovField", cells: Tensor, keys: np.ndarray) -> Marginals:
    codes = model.codes(cells)
    _refuse_large(model, codes, keys, "marginals", "marginals(x, by=LoopyBP()) is an estimate; or observe more cells")
    nats, probs = cliques.marginals(model.plan, model.tables(), codes, limit=model.limit)
    refuse_impossible(nats, keys)
    return split(model, probs, keys)


@torch.no_grad()
def mpe(model: "MarkovField", cells: Tensor, keys: np.ndarray) -> Tensor:
    """Rows with every gap filled by the joint mode of everything missing, hidden variables included, (n, visible)."""
    codes = model.codes(cells)
    _refuse_large(model, codes, keys, "mpe", "Observe more cells, or raise .limit if memory allows")
    best, nats = cliques.mpe(model.plan, model.tables(), codes, limit=model.limit)
    refuse_impossible(nats, keys)
    return best[:, : cells.shape[1]].contiguous()


# Draws


def exactly(model: "MarkovField", cells: Tensor | None) -> bool:
    """Whether draws given these cells (None: nothing) are exact."""
    if cells is None:
        return affordable(model) is not None
    return bool((cliques.row_cost(model.plan, model.codes(cells), True) <= model.limit).all())


@torch.no_grad()
def draw(
    model: "MarkovField", n: int, cells: Tensor | None, generator: torch.Generator, sweeps: int, method: str
) -> Tensor:
    """n draws of each condition, (m * n, V): exact where that is affordable, else by Gibbs sampling."""
    given = model.nothing[:, : len(model.event.columns)] if cells is None else cells
    exact = exactly(model, cells)
    if method == "exact" and not exact:
        raise StructureError(refusal(model)[0], "an affordable clique plan", 'method="gibbs" draws approximately')
    if method == "gibbs" or not exact:
        return gibbs(model, model.codes(given).repeat_interleave(n, 0), sweeps, generator)
    if cells is None and affordable(model) == "sides":
        return draw_sides(model, n, generator)
    drawn = cliques.sample(model.plan, model.tables(), model.codes(given), n, generator, limit=model.limit)
    if bool(drawn.isnan().any()):
        refuse_impossible(torch.where(drawn.isnan().any(2).any(1), -torch.inf, 0.0), np.arange(len(given)))
    return drawn.reshape(-1, drawn.shape[2])


def gibbs(model: "MarkovField", codes: Tensor, sweeps: int, generator: torch.Generator) -> Tensor:
    """Chains (n, V) after some sweeps over their missing cells, a class of unconnected variables at a time.

    All rows must lack the same cells or several passes are made. They start from independent draws of each variable's
    own factor.
    """
    local = model.local(grad=False)
    out = codes.clone()
    patterns, which = codes.isnan().unique(dim=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        rows = (which == i).nonzero()[:, 0]
        free = pattern.nonzero()[:, 0]
        classes = [own for own in (c[pattern[c]] for c in local.classes) if len(own)]
        part = codes[rows]
        part[:, free] = base_draw(local, free, len(rows), generator)
        for _ in range(sweeps):
            local.sweep(part, classes, generator)
        out[rows] = part
    return out


def base_draw(local: Local, variables: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Independent draws of variables from their own factors, (n, len(variables))."""
    return drawn(local.unary[variables].expand(n, -1, -1), generator)
