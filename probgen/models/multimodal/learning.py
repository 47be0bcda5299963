"""What a multimodal model descends: minus the weighted bound, and what teaches the guides of subsets."""

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probgen.errors import FitError, ParameterError
from probgen.latent.priors import StandardNormal
from probgen.models.multimodal.guides import Normal

if TYPE_CHECKING:
    from probgen.models.multimodal.family import MultimodalVAE

__all__ = ["NegativeBound", "divergence", "subsets"]

_LOG_2PI = math.log(2 * math.pi)


class NegativeBound(nn.Module):
    """Minus the objective a row, in nats, of packed rows; a Module, so that it can be distributed.

    With z ~ q(z | all that is seen), ELBO = sum of weight log p(part | z) - beta KL(q || p). On top of it

    - "joint": the guide of a random proper subset S is drawn towards that of everything, KL(q(z | all) || q(z | S)),
      the first held still: the bound is trained as if there were no subsets (Suzuki, Nakayama and Matsuo 2017;
      Senellart, Chadebec and Allassonniere 2023).
    - "poe": the ELBOs of each part alone, and of a random subset, each of what it sees (Wu and Goodman 2018).
    - "moe": z from each part's expert in turn, all parts decoded, against the experts' mixture (Shi et al. 2019).
    - "mopoe": z from the product over each subset, all parts decoded, KL to p(z) (Sutter, Daunhawer and Vogt 2021).

    Arguments:
        model: The model.
        weights: Of each part's log-likelihood.
        columns: Of each part's packed rows in a batch.
        beta, warming, matching: As of its ``fit``.
    """

    def __init__(
        self, model: "MultimodalVAE", weights: Mapping[str, float], columns: Mapping[str, int], beta: float,
        warming: float, matching: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check(beta, warming, matching)
        self.matching = matching
        self.model, self.weights, self.columns, self.beta, self.warming = model, weights, columns, beta, warming

    def forward(self, batch: Tensor, generator: torch.Generator, share: float) -> Tensor:
        rows = batch.split(list(self.columns.values()), 1)
        packed = dict(zip(self.columns, rows, strict=True))
        weight = self.beta * (min(1.0, share / self.warming) if self.warming else 1.0)
        loss = getattr(self, f"_{self.model.aggregation}")(packed, generator, weight)
        if not math.isfinite(float(loss.detach())):
            raise FitError(
                "The objective became non-finite",
                "finite numbers",
                "The model keeps its best state so far; try a smaller learning_rate, or check the data's scale",
            )
        return loss

    def _draw(self, q: Normal, generator: torch.Generator) -> Tensor:
        return q[0] + q[1] * torch.randn(q[0].shape, generator=generator, dtype=q[0].dtype)

    def _decoded(self, z: Tensor, packed: Mapping[str, Tensor], only: Mapping[str, Tensor] | None = None) -> Tensor:
        """The weighted log p of the parts, (n,); of ``only`` those rows where it says so."""
        total = z.new_zeros(z.shape[:-1])
        for name, part in self.model.named_parts():
            nats = self.weights[name] * part.nats(z, packed[name])
            total = total + (nats if only is None else torch.where(only[name], nats, 0.0))
        return total

    def _excess(self, q: Normal, z: Tensor) -> Tensor:
        """KL(q || p) a row, by one draw where the prior is no standard normal."""
        if isinstance(self.model.latent, StandardNormal):
            return (0.5 * (q[0].square() + q[1].square() - 1) - q[1].log()).sum(-1)
        return log_normal(z, q) - self.model.latent.log_prob(z)

    def _bound(
        self, q: Normal, packed: Mapping[str, Tensor], generator: torch.Generator, weight: float,
        only: Mapping[str, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        z = self._draw(q, generator)
        return (weight * self._excess(q, z) - self._decoded(z, packed, only)).mean()

    def _joint(self, packed: Mapping[str, Tensor], generator: torch.Generator, weight: float) -> Tensor:
        features, seen = self.model._features(packed), self.model._seen(packed)
        q = self.model.guiding(features, seen)
        loss = self._bound(q, packed, generator, weight)
        if len(features) == 1 or not self.matching:
            return loss
        some = _thinned(seen, generator)
        fewer = self.model.guiding(features, some)
        return loss + self.matching * divergence((q[0].detach(), q[1].detach()), fewer).mean()

    def _poe(self, packed: Mapping[str, Tensor], generator: torch.Generator, weight: float) -> Tensor:
        features, seen = self.model._features(packed), self.model._seen(packed)
        kept = [seen, *({n: s & (n == name) for n, s in seen.items()} for name in seen)]
        if len(seen) > 2:
            kept.append(_thinned(seen, generator))
        total = torch.zeros((), dtype=next(iter(features.values())).dtype)
        for only in kept if len(seen) > 1 else kept[:1]:
            total = total + self._bound(self.model.guiding(features, only), packed, generator, weight, only)
        return total

    def _mopoe(self, packed: Mapping[str, Tensor], generator: torch.Generator, weight: float) -> Tensor:
        features, seen = self.model._features(packed), self.model._seen(packed)
        chosen = [{n: s & (n in names) for n, s in seen.items()} for names in subsets(seen)]
        each = [self._bound(self.model.guiding(features, some), packed, generator, weight) for some in chosen]
        return torch.stack(each).mean()

    def _moe(self, packed: Mapping[str, Tensor], generator: torch.Generator, weight: float) -> Tensor:
        features, seen = self.model._features(packed), self.model._seen(packed)
        alone = {name: {n: s & (n == name) for n, s in seen.items()} for name in seen}
        experts = [self.model.guiding(features, only) for only in alone.values()]
        share = torch.stack(list(seen.values())).to(experts[0][0].dtype)
        share = share / share.sum(0)
        total = torch.zeros_like(share[0])
        for i, q in enumerate(experts):
            z = self._draw(q, generator)
            log_q = torch.stack([log_normal(z, other) for other in experts]) + share.log()
            kl = log_q.logsumexp(0) - self.model.latent.log_prob(z)
            total = total + share[i] * (weight * kl - self._decoded(z, packed))
        return total.mean()


def _check(beta: float, warming: float, matching: float) -> None:
    for name, value in {"beta": beta, "matching": matching}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ParameterError(f"{name}={value!r}", "a number from 0")
    if isinstance(warming, bool) or not isinstance(warming, int | float) or not 0 <= warming <= 1:
        raise ParameterError(f"warming={warming!r}", "a share of the steps, 0 to 1")


def log_normal(z: Tensor, q: Normal) -> Tensor:
    """log N(z; loc, scale^2) summed over latents."""
    return -0.5 * (((z - q[0]) / q[1]).square() + _LOG_2PI).sum(-1) - q[1].log().sum(-1)


def divergence(p: Normal, q: Normal) -> Tensor:
    """KL(p || q) of normals, (n,)."""
    return (0.5 * ((p[1] / q[1]).square() + ((p[0] - q[0]) / q[1]).square() - 1) + (q[1] / p[1]).log()).sum(-1)


def subsets(names: Mapping[str, object]) -> list[tuple[str, ...]]:
    """All non-empty subsets of names."""
    return [some for size in range(1, len(names) + 1) for some in itertools.combinations(names, size)]


def _thinned(seen: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """For each row a random subset of what it has: proper and not empty where it has two parts or more."""
    marks = torch.stack(list(seen.values()), -1)
    order = torch.rand(marks.shape, generator=generator).masked_fill(~marks, 2.0).argsort(-1).argsort(-1)
    have = marks.sum(-1)
    keep = 1 + (torch.rand(len(marks), generator=generator) * (have - 1).clamp(min=1)).long()
    kept = marks & (order < keep[:, None])
    return {name: kept[:, i] for i, name in enumerate(seen)}
