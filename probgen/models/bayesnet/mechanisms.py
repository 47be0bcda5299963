"""How the same chance plays out under other parents: the ways to a counterfactual, each with what it needs."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from probgen.conditionals import Conditional, LinearGaussian, Point
from probgen.errors import StructureError
from probgen.events import Table
from probgen.logprob import Kind
from probgen.models.bayesnet import graph, queries

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["Found", "World"]

_DRAWN = 1 << 18  # draws held at once
_SURE = 1e-12  # a probability that is so near to 0 or 1 is that


@dataclass(eq=False)
class Found:
    """Counterfactuals of some rows: see ``causal.Counterfactual``."""

    by: str
    kinds: np.ndarray
    lower: dict[str, np.ndarray] = field(default_factory=dict)
    upper: dict[str, np.ndarray] = field(default_factory=dict)
    mean: dict[str, np.ndarray] = field(default_factory=dict)
    sd: dict[str, np.ndarray] = field(default_factory=dict)
    stderr: dict[str, np.ndarray] = field(default_factory=dict)


class World:
    """A network, what is set in it, and how its categories are declared to work.

    Arguments:
        values: Of the set nodes, codes of levels.
        declared: Categories with a Gumbel-max mechanism.
        draws: Of each row, where it is drawn.
    """

    def __init__(
        self,
        net: "BayesianNetwork",
        values: Mapping[str, float],
        declared: Mapping[str, str],
        draws: int,
        generator: torch.Generator,
    ) -> None:
        self.net, self.values, self.declared = net, values, declared
        self.draws, self.generator = draws, generator
        after = graph.descendants(net.parents, values)
        self.below = tuple(v for v in net.order if v in after and v not in values)
        self.family = {name for v in self.below for name in (v, *net.parents[v])}

    def answer(self, x: Tensor, keys: np.ndarray, seen: set[str]) -> Found:
        """Counterfactuals of rows (n, columns) with the same cells observed.

        Raises:
            StructureError: a node below has no mechanism, and bounds are not to be had.
        """
        informed = graph.ancestors(self.net.parents, seen)
        open_ones = [v for v in self.below if v in informed and not self._sure(v)]
        if not open_ones:
            return self._twin(x, keys)
        silent = [v for v in open_ones if not isinstance(self._part(v), LinearGaussian) and v not in self.declared]
        whole = self.family <= seen
        if silent:
            if open_ones == silent[:1] and silent[0] in self.net.discrete and whole and self._rest_sure(silent[0]):
                return self._bounds(x, silent[0])
            raise self._undeclared(silent, whole)
        if whole and all(isinstance(self._part(v), LinearGaussian) for v in open_ones):
            return self._drawn(x[:, None], informed, exact=True)
        if self._jointly_normal(seen):
            return self._normal(x, seen)
        return self._sampled(x, informed)

    def _part(self, name: str) -> Conditional:
        return self.net.conditional(name)

    def _sure(self, name: str) -> bool:
        """Whether a node's parents fix its value."""
        part = self._part(name)
        if isinstance(part, Point):
            return True
        if not part.tabular:
            return False
        table = part.log_table().exp()
        return bool(((table <= _SURE) | (table >= 1 - _SURE)).all())

    def _rest_sure(self, name: str) -> bool:
        return all(v == name or self._sure(v) for v in self.below)

    def _undeclared(self, silent: list[str], whole: bool) -> StructureError:
        names = ", ".join(map(repr, silent[:6]))
        odd = [v for v in silent if v not in self.net.discrete]
        if odd:
            return StructureError(
                f"The counterfactual of {names}: {odd[0]!r} is no category, and no linear Gaussian either",
                "mechanisms for all that is below the set nodes and informed by what was seen",
                "Leave what lies below out of the evidence, or model it by LinearGaussian",
            )
        gap = "" if whole or len(silent) > 1 else " (bounds need all cells of the families below)"
        return StructureError(
            f"The counterfactual of {names}{gap}: a table does not say how the same chance falls under other parents",
            "a declared mechanism; bounds need one such category, and tables of zeros and ones for all else below",
            'Declare mechanism="gumbel-max", or ask do(), which needs none',
        )

    # Where nothing needs a mechanism

    def _twin(self, x: Tensor, keys: np.ndarray) -> Found:
        """Marginals of the copies below in the network of both worlds (Balke and Pearl 1994)."""
        net, star = self.net, "*"
        while any(f"{v}{star}" in net.index for v in (*self.below, *self.values)):
            star += "*"
        twins = [*self.values, *self.below]
        columns = dict(net.event.columns) | {f"{v}{star}": net.event.columns[v] for v in twins}
        edges = [
            *net.edges,
            *((f"{p}{star}" if p in twins else p, f"{v}{star}") for v in self.below for p in net.parents[v]),
        ]
        parts: dict[str, Conditional] = {v: copy.deepcopy(self._part(v)) for v in net.variables}
        parts |= {f"{v}{star}": copy.deepcopy(self._part(v)) for v in self.below}
        parts |= {f"{v}{star}": Point(self._outside(v)) for v in self.values}
        both = type(net)(Table(columns), edges, parts).imported("twin network")
        both.limit, both.configurations = net.limit, net.configurations
        cells = torch.cat([x, x.new_full((len(x), len(twins)), torch.nan)], 1)
        found = queries.marginals(both, cells, keys)
        out = Found("twin network", np.full(len(x), Kind.EXACT.value, dtype=object))
        for v in self.below:
            if v in net.discrete:
                out.lower[v] = out.upper[v] = found.probs[f"{v}{star}"]
            else:
                out.mean[v], out.sd[v] = found.mean[f"{v}{star}"], found.sd[f"{v}{star}"]
        return out

    def _outside(self, name: str) -> object:
        levels = getattr(self.net.event.columns[name], "levels", None)
        return self.values[name] if levels is None else levels[int(self.values[name])]

    # Bounds

    def _bounds(self, x: Tensor, name: str) -> Found:
        """Sharp bounds where one table is open: Frechet's on the joint of both worlds, over what was seen."""
        net, part = self.net, self._part(name)
        card = part.cards[-1]
        other, levels = self._set(x), torch.arange(card, dtype=torch.float64)
        above = [v for v in self.below if v not in graph.descendants(net.parents, name)]
        for v in above:
            other[:, net.index[v]] = self._fixed(v, other)
        mine, yours = self._parents(name, x), self._parents(name, other)
        seen = x[:, net.index[name]]
        p = part.log_prob(seen, mine).exp()[:, None]
        q = _log_levels(part, yours).exp()
        same = (mine == yours).all(1)[:, None]
        sure = one_hot(seen.long(), card).to(q.dtype)
        worlds = other[:, None].repeat(1, card, 1)
        worlds[..., net.index[name]] = levels
        flat = worlds.reshape(-1, worlds.shape[-1])
        for v in self.below[self.below.index(name) + 1 :]:
            flat[:, net.index[v]] = self._fixed(v, flat)
        out = Found("Frechet bounds", np.full(len(x), "bounds", dtype=object))
        width = torch.zeros(len(x), dtype=torch.float64)
        for v in self.below:
            value = flat[:, net.index[v]].reshape(len(x), card).long()
            event = one_hot(value, self._part(v).cards[-1]).to(q.dtype)  # of each level of the open one
            mass = (q[..., None] * event).sum(1)
            fixed = (sure[..., None] * event).sum(1)
            own = same | (v in above)  # the same parents, the same value
            low = torch.where(own, fixed, ((p + mass - 1) / p).clamp(0, 1))
            high = torch.where(own, fixed, torch.maximum(low, (mass / p).clamp(0, 1)))
            high = torch.where(high - low <= _SURE, low, high)
            out.lower[v], out.upper[v] = low.numpy(), high.numpy()
            width = torch.maximum(width, (high - low).amax(1))
        out.kinds[(width <= 0).numpy()] = Kind.EXACT.value
        return out

    # One world after the other

    def _set(self, x: Tensor) -> Tensor:
        other = x.clone()
        for name, value in self.values.items():
            other[..., self.net.index[name]] = value
        return other

    def _parents(self, name: str, x: Tensor) -> Tensor:
        return x[..., [self.net.index[parent] for parent in self.net.parents[name]]]

    def _fixed(self, name: str, x: Tensor) -> Tensor:
        """The value of a node that its parents fix."""
        part, parents = self._part(name), self._parents(name, x)
        if isinstance(part, Point):
            return torch.full((len(x),), part.value, dtype=torch.float64)
        return _log_levels(part, parents).argmax(1).to(torch.float64)

    def _drawn(self, actual: Tensor, informed: set[str], exact: bool = False) -> Found:
        """From draws of what was, (n, S, columns), what would have been."""
        n, draws = actual.shape[:2]
        flat = actual.reshape(n * draws, -1)
        other = self._set(flat)
        for v in self.below:
            other[:, self.net.index[v]] = self._again(v, flat, other, v in informed)
        worlds = other.reshape(n, draws, -1)
        out = Found(*(("abduction", np.full(n, Kind.EXACT.value, dtype=object)) if exact else self._told(n)))
        for v in self.below:
            self._summarise(out, v, worlds[..., self.net.index[v]], exact)
        return out

    def _told(self, n: int) -> tuple[str, np.ndarray]:
        named = "gumbel-max, " if any(v in self.declared for v in self.below) else ""
        return f"{named}{self.draws} draws", np.full(n, Kind.ESTIMATE.value, dtype=object)

    def _summarise(self, out: Found, name: str, values: Tensor, exact: bool) -> None:
        """Shares of levels, or moments, of draws (n, S), with their standard errors."""
        draws = values.shape[1]
        if name in self.net.discrete:
            card = self._part(name).cards[-1]
            shares = torch.stack([(values == level).to(torch.float64).mean(1) for level in range(card)], 1)
            out.lower[name] = out.upper[name] = shares.numpy()
            near = (draws * shares + 1) / (draws + 2)  # an error of 0 where no draw fell would be a lie
            out.stderr[name] = np.zeros(shares.shape) if exact else (near * (1 - near) / draws).sqrt().numpy()
            return
        spread = values.std(1, correction=0)
        out.mean[name], out.sd[name] = values.mean(1).numpy(), spread.numpy()
        out.stderr[name] = np.zeros(len(values)) if exact else (spread / draws**0.5).numpy()

    def _again(self, name: str, actual: Tensor, other: Tensor, informed: bool) -> Tensor:
        """A node's value in the other world, given both worlds above it."""
        part, mine, yours = self._part(name), self._parents(name, actual), self._parents(name, other)
        if self._sure(name):
            return self._fixed(name, other)
        if not informed:
            return part.sample(yours, self.generator)
        seen = actual[:, self.net.index[name]]
        if isinstance(part, LinearGaussian):
            ratio = (part.variance(yours) / part.variance(mine)).sqrt()
            return part.mean(yours) + ratio * (seen - part.mean(mine))
        here, there = _log_levels(part, mine), _log_levels(part, yours)
        noise = gumbels(here, seen.long(), self.generator)
        moved = (there + noise).argmax(1).to(torch.float64)
        return torch.where((mine == yours).all(1), seen, moved)

    def _sampled(self, x: Tensor, informed: set[str]) -> Found:
        """Abduction by exact draws of what is missing, in portions."""
        columns = [self.net.index[v] for v in self.family]
        size = max(1, _DRAWN // self.draws)
        parts = []
        for some in x.split(size):
            if bool(some[:, columns].isnan().any()):
                actual = queries.conditional_sample(self.net, some, self.draws, self.generator)
            else:
                actual = some.repeat_interleave(self.draws, 0)
            parts.append(self._drawn(actual.reshape(len(some), self.draws, -1), informed))
        if len(parts) == 1:
            return parts[0]
        out = Found(parts[0].by, np.concatenate([part.kinds for part in parts]))
        for what in ("lower", "upper", "mean", "sd", "stderr"):
            getattr(out, what).update(
                {v: np.concatenate([getattr(part, what)[v] for part in parts]) for v in getattr(parts[0], what)}
            )
        return out

    # All of it normal

    def _relevant(self, seen: set[str]) -> list[str]:
        """Nodes that bear on the answer, parents first: what was seen, what is below, and all above."""
        found = graph.ancestors(self.net.parents, {*seen, *self.below})
        return [v for v in self.net.order if v in found]

    def _jointly_normal(self, seen: set[str]) -> bool:
        """Whether the missing cells are normal given the rest, and what is below is linear in them."""
        discrete, relevant = set(self.net.discrete), self._relevant(seen)
        return (
            all(isinstance(self._part(v), LinearGaussian) for v in {*relevant, *self.below} - discrete)
            and not discrete & set(self.below)
            and all(v in seen and discrete.issuperset(self.net.parents[v]) for v in relevant if v in discrete)
        )

    def _normal(self, x: Tensor, seen: set[str]) -> Found:
        """The conditional normal of all reals given those seen, turned by the linear map into the other world."""
        net = self.net
        real = [v for v in self._relevant(seen) if v not in net.discrete]
        place = {v: i for i, v in enumerate(real)}
        mean, covariance = self._given(x, real)
        n, r, other = len(x), len(real), self._set(x)
        turn, shift = torch.eye(r, dtype=torch.float64).repeat(n, 1, 1), torch.zeros(n, r, dtype=torch.float64)
        for v in self.values:
            if v in place:
                turn[:, place[v]], shift[:, place[v]] = 0.0, self.values[v]
        for v in self.below:
            i = place[v]
            (slope, base, scale), (mine, start, spread) = self._line(v, other, place), self._line(v, x, place)
            ratio = scale / spread
            row = (slope[:, None] @ turn)[:, 0] - ratio[:, None] * mine
            row[:, i] += ratio
            shift[:, i] = base + (slope * shift).sum(1) - ratio * start
            turn[:, i] = row
        centre = (turn @ mean[..., None])[..., 0] + shift
        spread = (turn @ covariance @ turn.mT).diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        out = Found("abduction, Gaussian integrals", np.full(n, Kind.EXACT.value, dtype=object))
        for v in self.below:
            out.mean[v], out.sd[v] = centre[:, place[v]].numpy(), spread[:, place[v]].numpy()
        return out

    def _line(self, name: str, x: Tensor, place: Mapping[str, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes on all reals (n, r), intercept (n,) and standard deviation (n,) of a node, by its configuration."""
        part, parents = self._part(name), self._parents(name, x)
        which = part.configuration(parents)
        told = part.natural()
        slope = torch.zeros(len(x), len(place), dtype=torch.float64)
        columns = [place[self.net.parents[name][i]] for i in part.continuous_parents]
        slope[:, columns] = told["coefficients"].reshape(part.configurations, len(columns))[which]
        return slope, told["intercept"].reshape(-1)[which], told["scale"].reshape(-1)[which]

    def _given(self, x: Tensor, real: list[str]) -> tuple[Tensor, Tensor]:
        """Mean (n, r) and covariance (n, r, r) of the reals given those of them that are there."""
        place = {v: i for i, v in enumerate(real)}
        lines = [self._line(v, x, place) for v in real]
        slopes = torch.stack([slope for slope, _, _ in lines], 1)
        root = torch.linalg.inv(torch.eye(len(real), dtype=torch.float64) - slopes)
        mean = (root @ torch.stack([base for _, base, _ in lines], 1)[..., None])[..., 0]
        noise = torch.stack([scale for _, _, scale in lines], 1).square()
        covariance = root @ (noise[..., None] * root.mT)
        cells = x[:, [self.net.index[v] for v in real]]
        there = ~cells[0].isnan()
        gain = torch.linalg.solve(covariance[:, there][..., there], covariance[:, there]).mT
        mean = mean + (gain @ (cells[:, there] - mean[:, there])[..., None])[..., 0]
        return mean, covariance - gain @ covariance[:, there]


def _log_levels(part: Conditional, parents: Tensor) -> Tensor:
    """log p of each level of a category given parents (n, P), shape (n, levels)."""
    levels = range(part.cards[-1])
    return torch.stack([part.log_prob(parents.new_full((len(parents),), float(i)), parents) for i in levels], 1)


def gumbels(logits: Tensor, winners: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise (n, K) given that logits + noise is greatest at the winners, drawn from the top down.

    Arguments:
        logits: Log-probabilities, shape (n, K).
        winners: Levels, shape (n,).

    Maddison, Tarlow and Minka (2014): the maximum is Gumbel whoever wins, the others are Gumbels cut off there.
    """
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    waiting = -uniform.log()
    top = -waiting.gather(1, winners[:, None]).log()
    noise = -torch.log(torch.exp(logits - top) + waiting)
    return noise.scatter(1, winners[:, None], top - logits.gather(1, winners[:, None]))
