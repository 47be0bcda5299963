"""Many joint normals at once: components of one shape share their linear algebra."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from probgen.conditionals import LinearGaussian
from probgen.errors import StructureError
from probgen.events import Category

if TYPE_CHECKING:
    from probgen.models.bayesnet.gaussian import Component
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Cells", "Normals", "Solved"]

_LOG_2PI = 1.8378770664093453
_ENTRIES = 1 << 21  # numbers of (rows, configurations, nodes) that are held at once

Cells = tuple[Tensor, Tensor]  # of rows of a component: (1, outside columns) and observed nodes, both about the shift


class Normals:
    """The joint normals of some components, laid out once; parameters are read by ``solve``.

    All cells are taken about a ``shift`` near the middle of the data, and no regression is ever carried to its
    intercept at zero, so that reals far from zero lose no digits.

    Arguments:
        components: Distinct ones; they go by their number.

    Attributes:
        shift: A number for each column, (columns,).
    """

    def __init__(self, net: "BayesianNetwork", components: Sequence["Component"]) -> None:
        self.net, self.components = net, list(components)
        self.nodes = list(dict.fromkeys(name for part in self.components for name in part.nodes))
        self.real = {
            name: [p for p in net.parents[name] if not isinstance(net.event.columns[p], Category)]
            for name in self.nodes
        }
        self.shift = self._shift()
        self.starts, self.blocks, free, filled = {}, {}, 1, 0
        for name in self.nodes:
            wide, q = net.conditional(name).configurations, len(self.real[name]) + 2
            self.starts[name], self.blocks[name] = free, (filled, wide, q)
            free, filled = free + wide * q, filled + wide * q * q
        self.filled = filled
        alike = defaultdict(list)
        for i, part in enumerate(self.components):
            alike[math.prod(part.cards), len(part.latents), len(part.observed)].append(i)
        self.stacks = [_Stack(self, members) for members in alike.values()]
        self.place = {i: (s, b) for s, stack in enumerate(self.stacks) for b, i in enumerate(stack.members)}

    def _shift(self) -> Tensor:
        shift = torch.zeros(len(self.net.variables), dtype=torch.float64)
        for name in reversed(self.nodes):
            part = self._part(name)
            shift[[self.net.index[p] for p in self.real[name]]] = part.input_mean
        for name in self.nodes:
            shift[self.net.index[name]] = self._part(name).data_mean
        return shift

    def _part(self, name: str) -> LinearGaussian:
        return cast(LinearGaussian, self.net.conditional(name))

    def numbers(self) -> Tensor:
        """All parameters in one row, 0 first: of each node locations about the shift, scales and weights."""
        found = [torch.zeros(1, dtype=torch.float64)]
        for name in self.nodes:
            part = self._part(name)
            weight = part.weight.reshape(part.configurations, -1)
            away = self.shift[[self.net.index[p] for p in self.real[name]]] - part.input_mean
            loc = part.loc.reshape(-1) - self.shift[self.net.index[name]]
            found += [loc + weight @ away, part.log_scale.exp().reshape(-1), weight.reshape(-1)]
        return torch.cat(found)

    def cells(self, i: int, x: Tensor) -> Cells:
        """What component i needs of some rows (n, columns)."""
        s, b = self.place[i]
        outside, seen = self.stacks[s].outside[b], self.stacks[s].seen[b]
        given = (x[:, outside] - self.shift[outside]).nan_to_num()
        return torch.cat([torch.ones(len(x), 1, dtype=x.dtype), given], 1), x[:, seen] - self.shift[seen]

    def solve(self) -> "Solved":
        """All components at the present parameters.

        Raises:
            StructureError: a residual of scale 0.
        """
        numbers = self.numbers()
        return Solved(self, [_Split(stack, numbers) for stack in self.stacks])


class _Stack:
    """B components of one shape: where their numbers stand, by index; C configurations, k nodes, E outside columns."""

    def __init__(self, normals: Normals, members: Sequence[int]) -> None:
        self.members, net = list(members), normals.net
        parts = [normals.components[i] for i in members]
        first = parts[0]
        self.hidden, self.nodes = len(first.latents), [part.nodes for part in parts]
        beyond = [
            list(dict.fromkeys(p for n in part.nodes for p in normals.real[n] if p not in part.nodes)) for part in parts
        ]
        B, C, k, E = len(parts), math.prod(first.cards), len(first.nodes), max(map(len, beyond))
        loc, scale = np.zeros((B, C, k), dtype=np.int64), np.zeros((B, C, k), dtype=np.int64)
        linear, outside = np.zeros((B, C, k, k + E), dtype=np.int64), np.zeros((B, E), dtype=np.int64)
        self.size = 1 + E + k
        seen = np.array([[net.index[n] for n in part.observed] for part in parts], dtype=np.int64).reshape(B, -1)
        sources, targets = [], []
        for b, (part, others) in enumerate(zip(parts, beyond, strict=True)):
            outside[b, : len(others)] = [net.index[n] for n in others]
            at = {name: i for i, name in enumerate((*part.nodes, *others))}
            for i, name in enumerate(part.nodes):
                which, start = part.configuration(net, name), normals.starts[name]
                offset, wide, q = normals.blocks[name]
                places = [at[p] for p in normals.real[name]]
                loc[b, :, i], scale[b, :, i] = start + which, start + wide + which
                linear[b, :, i, places] = (start + 2 * wide + which[:, None] * (q - 2) + np.arange(q - 2)).T
                family = np.array([0, *(p + 1 + E if p < k else p - k + 1 for p in (*places, i))])
                inner = (family[:, None] * self.size + family).reshape(-1)
                sources.append(((b * C + np.arange(C))[:, None] * self.size**2 + inner).reshape(-1))
                targets.append((offset + which[:, None] * q * q + np.arange(q * q)).reshape(-1))
        self.loc, self.scale, self.linear = map(torch.from_numpy, (loc, scale, linear))
        self.outside, self.seen = torch.from_numpy(outside), torch.from_numpy(seen)
        self.source, self.target = (torch.from_numpy(np.concatenate(own)) for own in (sources, targets))


class _Split:
    """The joint normals of a stack, their latents separated by an orthogonal turn.

    About the mean m each node is one equation of unit noise, W (x - m) = e with W = diag(1 / scale) (I - B). With
    W = [H S] over latents and observed cells and H = Q R, the latents enter only Q' W: what is orthogonal to Q scores
    the observed cells, and no covariance is ever formed (Golub and Van Loan 2013, 5.3). Equations are sorted by size,
    which keeps Q accurate where scales differ by many orders. By component: ``means`` (C, k, 1 + E) of all nodes,
    linear in (1, outside columns); ``pull`` (C, latents, observed); ``across`` (C, k, observed); ``left``, the latents'
    covariance given the observed cells.
    """

    def __init__(self, stack: _Stack, numbers: Tensor) -> None:
        k, hidden = stack.loc.shape[-1], stack.hidden
        scale, linear = numbers[stack.scale], numbers[stack.linear]
        if not bool((scale > 0).all()):
            b = int((~(scale > 0)).flatten(1).any(1).nonzero()[0])
            raise StructureError(
                f"A residual of {stack.nodes[b]} has scale 0", "positive scales", "Give the regressions a scale"
            )
        system = torch.eye(k, dtype=torch.float64) - linear[..., :k]
        drift = torch.cat([numbers[stack.loc][..., None], linear[..., k:]], -1)
        self.means = torch.linalg.solve(system, drift).unbind()
        equations = system / scale[..., None]
        order = equations.abs().amax(-1).argsort(-1, descending=True)
        equations = equations.gather(2, order[..., None].expand_as(equations))
        turn, triangle = torch.linalg.qr(equations[..., :hidden])
        seen = equations[..., hidden:]
        along = turn.mT @ seen  # (B, C, latents, observed)
        across = seen - turn @ along
        self.across = (across - turn @ (turn.mT @ across)).unbind()  # twice is enough
        unit = torch.eye(hidden, dtype=torch.float64).expand_as(triangle)
        inverse = torch.linalg.solve_triangular(triangle, unit, upper=True)
        self.pull = torch.linalg.solve_triangular(triangle, along, upper=True).unbind()
        self.left = (inverse @ inverse.mT).unbind()
        log_det = -2 * triangle.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        self.log_det_left = log_det.unbind()
        self.log_scale = (scale.log().sum(-1) - 0.5 * log_det + 0.5 * seen.shape[-1] * _LOG_2PI).unbind()


class Solved:
    """Components at some parameters: densities, posteriors, and the moments that are gathered from them."""

    def __init__(self, normals: Normals, splits: list[_Split]) -> None:
        self.normals, self.splits = normals, splits
        self.moments: dict[int, Tensor] = {}

    def _at(self, i: int) -> tuple[_Split, int, int]:
        s, b = self.normals.place[i]
        return self.splits[s], b, self.normals.stacks[s].hidden

    def log_det_left(self, i: int) -> Tensor:
        """Of the latents' covariance given the observed cells, (C,)."""
        split, b, _ = self._at(i)
        return split.log_det_left[b]

    def left(self, i: int) -> Tensor:
        """The latents' covariance given the observed cells, (C, latents, latents): the same for all rows."""
        split, b, _ = self._at(i)
        return split.left[b]

    def _portions(self, i: int, cells: Cells) -> list[Cells]:
        means = self._at(i)[0].means[self._at(i)[1]]
        rows = max(1, _ENTRIES // (len(means) * means.shape[1]))
        return [cells] if len(cells[0]) <= rows else list(zip(*(part.split(rows) for part in cells), strict=True))

    def _away(self, i: int, cells: Cells) -> Tensor:
        """The observed cells about their means, (C, observed, n)."""
        split, b, hidden = self._at(i)
        return cells[1].T - split.means[b][:, hidden:] @ cells[0].T

    def density(self, i: int, cells: Cells) -> Tensor:
        """log N(observed) of component i, (n, C)."""
        split, b, _ = self._at(i)
        found = []
        for portion in self._portions(i, cells):
            left_over = split.across[b] @ self._away(i, portion)
            found.append(-0.5 * left_over.square().sum(1) - split.log_scale[b][:, None])
        return torch.cat(found, 1).T

    def means(self, i: int, cells: Cells) -> Tensor:
        """Of the latents given the observed cells, about the shift, (C, latents, n)."""
        split, b, hidden = self._at(i)
        return split.means[b][:, :hidden] @ cells[0].T - split.pull[b] @ self._away(i, cells)

    def add(self, i: int, cells: Cells, weights: Tensor) -> None:
        """Gathers second moments of z = (1, outside, latents, observed) of rows, weights (n, C), for ``totals``."""
        split, b, hidden = self._at(i)
        first = cells[0].shape[1]
        rows = max(1, _ENTRIES // (weights.shape[1] * (first + hidden + cells[1].shape[1])))
        for given, own, w in zip(*(part.split(rows) for part in (*cells, weights)), strict=True):
            latents = self.means(i, (given, own))
            wide = len(latents), -1, -1
            z = torch.cat([given.T.expand(*wide), latents, own.T.expand(*wide)], 1)
            found = (z * w.T[:, None]) @ z.mT
            found[:, first : first + hidden, first : first + hidden] += w.sum(0)[:, None, None] * split.left[b]
            self.moments[i] = self.moments[i] + found if i in self.moments else found

    def totals(self) -> dict[str, Tensor]:
        """By node (K, q, q): sums of weight * E[u u'], u = (1, real parents, child) less ``LinearGaussian.centre``."""
        normals, moments = self.normals, self.moments
        flat = torch.zeros(normals.filled, dtype=torch.float64)
        for stack, split in zip(normals.stacks, self.splits, strict=True):
            nothing = torch.zeros(len(split.left[0]), stack.size, stack.size, dtype=torch.float64)
            own = torch.stack([moments.get(i, nothing) for i in stack.members])
            flat.index_add_(0, stack.target, own.reshape(-1)[stack.source])
        met = dict.fromkeys(name for i in moments for name in normals.components[i].nodes)
        return {name: self._about_centre(name, flat) for name in met}

    def _about_centre(self, name: str, flat: Tensor) -> Tensor:
        normals = self.normals
        start, wide, q = normals.blocks[name]
        own = flat[start : start + wide * q * q].reshape(wide, q, q)
        family = [normals.net.index[n] for n in (*normals.real[name], name)]
        away = normals.shift[family] - normals._part(name).centre
        if not bool(away.any()):
            return own
        turn = torch.eye(q, dtype=torch.float64)
        turn[1:, 0] = away
        return turn @ own @ turn.T
