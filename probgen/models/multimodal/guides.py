"""q(z | what is seen): one network for every subset of parts, or experts multiplied."""

import abc
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from probgen.nn import MLP

__all__ = ["AGGREGATIONS", "Experts", "Guide", "Joint", "Normal"]

AGGREGATIONS = ("joint", "moe", "mopoe", "poe")
Normal = tuple[Tensor, Tensor]  # means and standard deviations, (..., latent_dim) each


class Guide(nn.Module, abc.ABC):
    """Features of the parts and which are seen, to a normal over z.

    Arguments:
        widths: Of the features of each part, by name.
        latent: Numbers of z.
        hidden: Widths of further layers.
    """

    def __init__(self, widths: Mapping[str, int], latent: int) -> None:
        super().__init__()
        self.widths, self.latent = dict(widths), latent

    @abc.abstractmethod
    def forward(self, features: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Normal:
        """q(z | seen parts), from features (n, width) and masks (n,)."""

    def blind(self, inputs: Tensor) -> Normal:
        """Of pseudo-inputs (K, all widths): features of all parts, side by side."""
        features = dict(zip(self.widths, inputs.split(list(self.widths.values()), -1), strict=True))
        there = torch.ones(len(inputs), dtype=torch.bool)
        return self(features, dict.fromkeys(features, there))


class Joint(Guide):
    """One network over all features and marks of what is seen: where all is seen its own last layers, for any subset
    others."""

    def __init__(self, widths: Mapping[str, int], latent: int, hidden: Sequence[int]) -> None:
        super().__init__(widths, latent)
        inputs = sum(self.widths.values())
        self.whole = MLP((inputs, *hidden, 2 * latent), 0.5)
        self.subset = MLP((inputs + len(self.widths), *hidden, *hidden, 2 * latent), 0.5)

    def forward(self, features: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Normal:
        marks = torch.stack([seen[name] for name in self.widths], -1)
        rows = torch.cat([features[name] * seen[name][:, None] for name in self.widths], -1)
        whole = marks.all(-1)
        if bool(whole.all()):
            return _normal(self.whole(rows))
        some = self.subset(torch.cat([rows, marks.to(rows.dtype)], -1))
        return _normal(torch.where(whole[:, None], self.whole(rows), some) if bool(whole.any()) else some)


class Experts(Guide):
    """A normal expert a part, times the prior's N(0, I): precisions add (Hinton 2002; Wu and Goodman 2018)."""

    def __init__(self, widths: Mapping[str, int], latent: int, hidden: Sequence[int]) -> None:
        super().__init__(widths, latent)
        self.experts = nn.ModuleList(MLP((width, *hidden, 2 * latent), 0.5) for width in self.widths.values())

    def forward(self, features: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Normal:
        first = next(iter(features.values()))
        precision = first.new_ones(len(first), self.latent)
        total = torch.zeros_like(precision)
        for name, expert in zip(self.widths, self.experts, strict=True):
            loc, scale = _normal(expert(features[name]))
            own = seen[name][:, None] / scale.square()
            precision, total = precision + own, total + own * loc
        return total / precision, precision.rsqrt()


def _normal(raw: Tensor) -> Normal:
    loc, scale = raw.chunk(2, dim=-1)
    return loc, nn.functional.softplus(scale + 0.5) + 1e-4
