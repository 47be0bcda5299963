"""Log-potentials laid out for many variables at once: what neighbours say of them, and draws by Gibbs sampling."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from probgen.models.markovfield.factors import Group

__all__ = ["NEVER", "Local", "Source", "colours", "drawn", "log_sum", "possible"]

NEVER = -1e30  # stands for -inf where 0 times it must be 0
_SMALL = 1 << 14  # cells of a matrix that is dense in any case
_SHARE = 16  # of a larger one, one in so many must be used


def possible(nats: Tensor) -> Tensor:
    """Sums that hold a NEVER are -inf."""
    return torch.where(nats > 1e-6 * NEVER, nats, -torch.inf)


def colours(cards: Sequence[int], groups: Sequence[Group], variables: Sequence[int] | None = None) -> list[Tensor]:
    """Sets of variables no two of which share a factor: they can be drawn at once. First fit in the given order."""
    beside: list[set[int]] = [set() for _ in cards]
    for group in groups:
        for scope in group.scopes.tolist():
            for v in scope:
                beside[v].update(scope)
    colour = [-1] * len(cards)
    wanted = range(len(cards)) if variables is None else variables
    for v in wanted:
        taken = {colour[u] for u in beside[v]}
        colour[v] = next(c for c in range(len(cards)) if c not in taken)
    found: dict[int, list[int]] = {}
    for v in wanted:
        found.setdefault(colour[v], []).append(v)
    return [torch.tensor(own) for _, own in sorted(found.items())]


Source = torch.Generator | Sequence[torch.Generator]


def drawn(logits: Tensor, source: Source) -> Tensor:
    """One level from each row of logits (n, m, C), by inversion; float64 codes (n, m).

    Arguments:
        source: A generator, or several that serve an equal share of the n each: draws then depend on nothing else.
    """
    if logits.shape[-1] == 2:
        above = torch.sigmoid(logits[..., 0] - logits[..., 1]) <= _uniforms(logits.shape[:-1], source)
        return above.to(torch.float64)
    shares = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    level = _uniforms(shares.shape[:-1], source)[..., None] * shares[..., -1:]
    return (shares[..., :-1] <= level).sum(-1).to(torch.float64)


def _uniforms(shape: torch.Size, source: Source) -> Tensor:
    if isinstance(source, torch.Generator):
        return torch.rand(shape, generator=source, dtype=torch.float64)
    part = (shape[0] // len(source), *shape[1:])
    return torch.cat([torch.rand(part, generator=own, dtype=torch.float64) for own in source])


def log_sum(logits: Tensor) -> Tensor:
    """log of the sum of exponentials over the last axis."""
    return torch.logaddexp(logits[..., 0], logits[..., 1]) if logits.shape[-1] == 2 else logits.logsumexp(-1)


class Local:
    """A field's potentials. States are codes (n, V), float64; an entry that is NaN takes its factors out of the sums.

    Differentiable in the blocks. Levels that a variable lacks, and configurations that can't be, have NEVER.

    Arguments:
        cards: Levels of each variable.
        groups, blocks: Factors by shape, and their tables (m, *levels).
    """

    def __init__(self, cards: Sequence[int], groups: Sequence[Group], blocks: Sequence[Tensor]) -> None:
        self.cards, self.groups = tuple(cards), list(groups)
        self.size, self.width = len(cards), max(cards)
        blocks = [block.clamp(min=NEVER) for block in blocks]
        kept = torch.arange(self.width) < torch.tensor(self.cards)[:, None]
        self.unary = torch.where(kept, 0.0, NEVER).to(torch.float64)  # (V, C)
        self.wider: list[tuple[Tensor, Tensor]] = []
        pairs = []
        for group, block in zip(groups, blocks, strict=True):
            if block.ndim == 2:
                places = (group.scopes[:, :1], torch.arange(block.shape[1]))
                self.unary = self.unary.index_put(places, block, accumulate=True)
            elif block.ndim == 3:
                pairs += self._triplets(group.scopes, block)
            else:
                self.wider.append((group.scopes, block))
        self.pairs = tuple(torch.cat(part) for part in zip(*pairs, strict=True)) if pairs else None
        self._plans: dict = {}

    def _triplets(self, scopes: Tensor, block: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Rows, columns and values of the symmetric matrix over (V * C) levels that pairs are."""
        rows = (scopes[:, 0, None] * self.width + torch.arange(block.shape[1]))[:, :, None].expand_as(block).flatten()
        cols = (scopes[:, 1, None] * self.width + torch.arange(block.shape[2]))[:, None, :].expand_as(block).flatten()
        return [(rows, cols, block.flatten()), (cols, rows, block.flatten())]

    def marks(self, codes: Tensor) -> Tensor:
        """One-hot codes (n, V, C); a missing one has none."""
        return (codes[..., None] == torch.arange(self.width, dtype=codes.dtype)).to(torch.float64)

    def logits(self, codes: Tensor, variables: Tensor) -> Tensor:
        """log p(level | the other variables) of some variables up to a constant, shape (n, len(variables), C).

        No two of the variables may share a factor.
        """
        found = self.unary[variables].expand(len(codes), -1, -1)
        if self.pairs is not None:
            found = found + self._of_pairs(self.marks(codes), variables)
        for (scopes, block), plan in zip(self.wider, self._wider_plan(variables), strict=True):
            for axis, chosen, target in plan:
                found = found.index_add(1, target, self._told(codes, scopes[chosen], block[chosen], axis))
        return found

    def _of_pairs(self, marks: Tensor, variables: Tensor) -> Tensor:
        """What pairs say of some variables given one-hot codes (n, V, C): (n, len(variables), C)."""
        matrix, beside = self._towards(variables)
        flat = marks[:, beside].flatten(1)
        told = torch.sparse.mm(matrix, flat.T).T if matrix.is_sparse else flat @ matrix.T
        return told.reshape(len(marks), len(variables), self.width)

    def _towards(self, variables: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix of pairs from neighbours to some variables, (len(variables) * C, len(neighbours) * C), dense where
        that is faster, and the neighbours."""
        key = ("pairs", tuple(variables.tolist()))
        if key not in self._plans and self.pairs is not None:
            rows, cols, values = self.pairs
            mine = self._places(variables)[rows // self.width] >= 0
            rows, cols, values = rows[mine], cols[mine], values[mine]
            beside = (cols // self.width).unique()
            rows = self._places(variables)[rows // self.width] * self.width + rows % self.width
            cols = self._places(beside)[cols // self.width] * self.width + cols % self.width
            shape = (len(variables) * self.width, len(beside) * self.width)
            if len(rows) * _SHARE >= shape[0] * shape[1] or shape[0] * shape[1] <= _SMALL:
                matrix = torch.zeros(shape, dtype=torch.float64).index_put((rows, cols), values)
            else:
                where = torch.stack([rows, cols])  # each once: no two factors share their variables
                matrix = torch.sparse_coo_tensor(where, values, shape, check_invariants=False)
            self._plans[key] = matrix, beside
        return self._plans[key]

    def _places(self, variables: Tensor) -> Tensor:
        """Where each variable stands among some, -1 where it does not, (V,)."""
        return torch.full((self.size,), -1).index_put((variables,), torch.arange(len(variables)))

    def _wider_plan(self, variables: Tensor) -> list[list[tuple[int, Tensor, Tensor]]]:
        """Of each wider group: by axis, the factors that hold one of the variables there, and which one."""
        key = ("wider", tuple(variables.tolist()))
        if key not in self._plans:
            place = self._places(variables)
            self._plans[key] = [
                [
                    (axis, chosen, place[scopes[chosen, axis]])
                    for axis in range(scopes.shape[1])
                    if len(chosen := (place[scopes[:, axis]] >= 0).nonzero()[:, 0])
                ]
                for scopes, _ in self.wider
            ]
        return self._plans[key]

    def _told(self, codes: Tensor, scopes: Tensor, block: Tensor, axis: int) -> Tensor:
        """What factors say of the variable on one axis, given the others: (n, m, C); NEVER beyond its levels."""
        others = [a for a in range(scopes.shape[1]) if a != axis]
        table = block.movedim(axis + 1, -1).flatten(1, -2)  # (m, configurations of the others, c)
        flat = torch.arange(len(scopes))[None] * table.shape[1]
        inner = torch.zeros_like(flat)
        for a in others:
            inner = inner * block.shape[a + 1] + codes[:, scopes[:, a]].long()
        told = table.reshape(-1, table.shape[-1])[(flat + inner).reshape(-1)].reshape(len(codes), len(scopes), -1)
        return _padded(told, self.width)

    def energy(self, codes: Tensor) -> Tensor:
        """Sum of the log-potentials of factors without a missing variable, (n,); NaN must mark the same ones in all
        rows."""
        marks = self.marks(codes)
        total = (marks * self.unary).sum((1, 2))
        seen = ~codes[0].isnan()
        if self.pairs is not None and self._meet(seen):
            own = seen.nonzero()[:, 0]
            total = total + 0.5 * (self._of_pairs(marks, own) * marks[:, own]).sum((1, 2))
        for scopes, block in self.wider:
            whole = seen[scopes].all(1)
            index = [codes[:, scopes[whole, a]].long() for a in range(scopes.shape[1])]
            total = total + block[whole][(torch.arange(int(whole.sum())), *index)].sum(1)
        return total

    def _meet(self, seen: Tensor) -> bool:
        """Whether any pair is among the seen variables."""
        key = ("meet", tuple(seen.tolist()))
        if key not in self._plans and self.pairs is not None:
            rows, cols, _ = self.pairs
            self._plans[key] = bool((seen[rows // self.width] & seen[cols // self.width]).any())
        return self._plans[key]

    def collapsed(self, codes: Tensor, variables: Tensor) -> Tensor:
        """log of the sum over some variables, NaN in the codes, of the product of all factors, (n,)."""
        if not len(variables):
            return self.energy(codes)
        return self.energy(codes) + log_sum(self.logits(codes, variables)).sum(1)

    def pseudo(self, codes: Tensor, classes: Sequence[Tensor]) -> Tensor:
        """Sum over variables of log p(x_v | the others), (n,). Besag (1975)."""
        total = codes.new_zeros(len(codes))
        for variables in classes:
            logs = self.logits(codes, variables).log_softmax(-1)
            total = total + logs.gather(2, codes[:, variables].long()[..., None])[..., 0].sum(1)
        return total

    def sweep(self, codes: Tensor, classes: Sequence[Tensor], source: Source) -> Tensor:
        """One pass of Gibbs sampling, in place, a class of variables at a time."""
        for variables in classes:
            codes[:, variables] = drawn(self.logits(codes, variables), source)
        return codes

    @cached_property
    def classes(self) -> list[Tensor]:
        return colours(self.cards, self.groups)


def _padded(told: Tensor, width: int) -> Tensor:
    return told if told.shape[-1] == width else torch.nn.functional.pad(told, (0, width - told.shape[-1]))
