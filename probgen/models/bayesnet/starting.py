"""Where learning starts from: the rows that have what a node needs, and a broken symmetry where nobody saw it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probgen.conditionals import Conditional
from probgen.emissions.emission import column_moments, start_responsibilities
from probgen.models.bayesnet import graph
from probgen.models.bayesnet.problem import codes_of, count
from probgen.models.bayesnet.scoring import is_category

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["barren", "hidden", "prepare", "start"]

_BLUR = 0.05  # of each row's weight goes to all configurations alike, so that none starts without data
_SPREAD = 2.0  # concentration of random rows of tables


def hidden(net: "BayesianNetwork", x: Tensor) -> list[str]:
    """Variables that no row has."""
    return [name for name, seen in zip(net.variables, (~x.isnan()).any(0).tolist(), strict=True) if not seen]


def barren(net: "BayesianNetwork", x: Tensor) -> list[str]:
    """Variables that no row has, with nothing below them that some row has: no data tell anything about them."""
    unseen = set(hidden(net, x))
    return [n for n in net.variables if n in unseen and graph.descendants(net.parents, [n]) <= unseen]


@torch.no_grad()
def prepare(net: "BayesianNetwork", x: Tensor) -> None:
    """Shows each distinct conditional its data once, for their scale."""
    for conditional, nodes in owners(net):
        if type(conditional).prepare is not Conditional.prepare:
            conditional.prepare(*_cells(net, x, nodes))


def owners(net: "BayesianNetwork") -> list[tuple[Conditional, list[str]]]:
    """Each distinct conditional, in column order, with the nodes that use it."""
    found: dict[int, tuple[Conditional, list[str]]] = {}
    for name in net.variables:
        conditional = net.conditional(name)
        found.setdefault(id(conditional), (conditional, []))[1].append(name)
    return list(found.values())


def _cells(net: "BayesianNetwork", x: Tensor, nodes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Cells (rows,) and parents' cells (rows, P) of some nodes, one under the other."""
    child = torch.cat([x[:, net.index[name]] for name in nodes])
    return child, torch.cat([x[:, [net.index[p] for p in net.parents[name]]] for name in nodes])


@torch.no_grad()
def start(net: "BayesianNetwork", x: Tensor, generator: torch.Generator, restart: int = 0) -> None:
    """First parameters: of each node from the rows that have its whole family, smoothed.

    A node with a hidden variable in its family, which no row has, gets random tables; hidden categories with real
    children get clusters of these, hidden reals a random projection of theirs. Further restarts are half random
    wherever cells are missing. What no data determine (``barren``) is not random: its tables are uniform.
    """
    undetermined = set(barren(net, x))
    filled, shares = _projected(net, x, generator), _clusters(net, x, generator)
    codes, cards = codes_of(net, x), net.cards
    for conditional, nodes in owners(net):
        if undetermined.issuperset(nodes):
            conditional.reset()
        elif conditional.tabular:
            _start_table(net, conditional, nodes, codes, cards, shares, generator, restart)
        else:
            _start_rows(net, conditional, nodes, filled, shares)


def _start_table(
    net: "BayesianNetwork", conditional: Conditional, nodes: list[str], codes: Tensor, cards: Sequence[int],
    shares: dict[str, Tensor], generator: torch.Generator, restart: int,
) -> None:  # fmt: skip
    scopes = [net.scopes[name] for name in nodes]
    whole = [(codes[list(scope)] >= 0).all(0) for scope in scopes]
    counts = torch.stack([count(codes[:, rows], s, cards) for rows, s in zip(whole, scopes, strict=True)]).sum(0)
    lacking = not all(bool(rows.all()) for rows in whole)
    if lacking and not bool(counts.any()) and all(set(_family(net, name)) & set(shares) for name in nodes):
        counts = torch.stack([_weights(net, name, codes, shares).sum(0) for name in nodes]).sum(0)
    level = (1.0 if not bool(counts.any()) else 0.5 if restart else 0.0) if lacking else 0.0
    total = counts.sum(-1, keepdim=True)
    rows = (counts + 1 / counts.shape[-1]) / (total + 1)
    noise = torch._standard_gamma(torch.full_like(rows, _SPREAD), generator=generator)
    rows = (1 - level) * rows + level * noise / noise.sum(-1, keepdim=True)
    conditional.maximise(rows * (total + 1))


def _family(net: "BayesianNetwork", name: str) -> tuple[str, ...]:
    return (*net.parents[name], name)


def _start_rows(
    net: "BayesianNetwork", conditional: Conditional, nodes: list[str], x: Tensor, shares: dict[str, Tensor]
) -> None:
    conditional.reset()
    parts = [part for name in nodes if (part := _rows_of(net, name, x, shares)) is not None]
    if parts:
        child, parents, weights = (torch.cat(p) for p in zip(*parts, strict=True))
        conditional.maximise_rows(child, parents, weights)


def _rows_of(
    net: "BayesianNetwork", name: str, x: Tensor, shares: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The rows that have a node's family (its reals, if none has all), and their smoothed weights; None without any."""
    reals = [net.index[n] for n in _family(net, name) if not is_category(net, n)]
    known = [net.index[n] for n in _family(net, name) if n not in shares]
    usable = ~x[:, known].isnan().any(1)
    if not bool(usable.any()):
        usable = ~x[:, reals].isnan().any(1)
    if not bool(usable.any()):
        return None
    own = {n: share[usable] for n, share in shares.items()}
    weights = _weights(net, name, codes_of(net, x[usable]), own)
    weights = (1 - _BLUR) * weights + _BLUR / max(1, math.prod(weights.shape[1:]))
    child, parents = _cells(net, x[usable], [name])
    return child, parents, weights


def _weights(net: "BayesianNetwork", name: str, codes: Tensor, shares: dict[str, Tensor]) -> Tensor:
    """A first guess at which configuration of its family's categories each row has, (n, *cards)."""
    weights, cards = torch.ones(codes.shape[1], dtype=torch.float64), net.cards
    for v in net.scopes[name]:
        own = shares.get(net.discrete[v])
        if own is None:
            hot = nn.functional.one_hot(codes[v].clamp(min=0).long(), cards[v]).to(torch.float64)
            own = torch.where((codes[v] >= 0)[:, None], hot, 1 / cards[v])
        weights = weights[..., None] * own.reshape(len(own), *[1] * (weights.ndim - 1), -1)
    return weights


def _real_children(net: "BayesianNetwork", name: str, x: Tensor) -> list[int]:
    """Columns of a node's real children that some row has."""
    columns = [
        net.index[child] for child in net.variables if name in net.parents[child] and not is_category(net, child)
    ]
    return [c for c in columns if not bool(x[:, c].isnan().all())]


def _standard(x: Tensor) -> Tensor:
    mean, variance = column_moments(x)
    return ((x - mean) / variance.sqrt()).nan_to_num()


def _clusters(net: "BayesianNetwork", x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Shares (n, levels) of hidden categories with real children, from clusters of these."""
    found, cards = {}, net.cards
    for name in hidden(net, x):
        if is_category(net, name) and (columns := _real_children(net, name, x)):
            levels = cards[net.discrete.index(name)]
            hard = start_responsibilities(_standard(x[:, columns]), levels, generator)
            found[name] = (1 - _BLUR) * hard + _BLUR / levels
    return found


def _projected(net: "BayesianNetwork", x: Tensor, generator: torch.Generator) -> Tensor:
    """Rows whose hidden reals hold a random projection of their children, or noise; of mean 0 and variance 1."""
    filled = x.clone()
    for name in hidden(net, x):
        if is_category(net, name):
            continue
        columns = _real_children(net, name, x)
        slopes = torch.randn(len(columns), generator=generator, dtype=torch.float64)
        noise = torch.randn(len(x), generator=generator, dtype=torch.float64)
        value = _standard(x[:, columns]) @ slopes + 0.3 * noise
        filled[:, net.index[name]] = _standard(value[:, None])[:, 0]
    return filled
