"""The bound of absorbing-state diffusion on log p: symbols are masked, the network says what they were."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.estimate.weights import Weights, at_least
from probgen.logprob import Kind, LogProb
from probgen.models.textdiffusion.blocks import Blocks

if TYPE_CHECKING:
    from probgen.models.textdiffusion.family import TextDiffusion

__all__ = ["Denoising", "MaskingBound", "hidden_at", "terms"]

_ROWS = 128  # blocks that the network reads at a time


def hidden_at(blocks: Blocks, share: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Which symbols of each block are masked, and by what each block's log-probabilities are multiplied.

    In continuous time symbols are masked independently with probability t and weigh 1 / t. Given how many are masked
    all choices are alike, and the integral over t leaves each number k = 1, ..., f the weight 1 / k: so k is drawn
    uniformly and the weight is f / k, which has the same mean and less noise.

    Arguments:
        share: In [0, 1), (m,): of the f free symbols, 1 + floor(f share) are masked.
        order: Random numbers, (m, block); the smallest are masked.

    Returns:
        (m, block), bool; and f / k, (m,), float64.
    """
    inside = torch.arange(order.shape[1]) < blocks.free[:, None]
    rank = order.masked_fill(~inside, torch.inf).argsort(1).argsort(1)
    count = 1 + (share * blocks.free).long().clamp_max(blocks.free - 1)
    return (rank < count[:, None]) & inside, blocks.free / count.double()


def terms(model: "TextDiffusion", blocks: Blocks, share: Tensor, order: Tensor) -> Tensor:
    """An unbiased draw of the bound of each block, (m,), with gradients."""
    hidden, weight = hidden_at(blocks, share, order)
    row = hidden.nonzero()[:, 0]
    nats = model.log_pmf(blocks, hidden)
    target = blocks.ids[:, model.layout.context :][hidden]
    own = nats.gather(1, target[:, None])[:, 0] * weight[row]
    return torch.zeros(len(blocks), dtype=own.dtype).index_add(0, row, own)


@dataclass(frozen=True)
class MaskingBound:
    """The variational bound of masking, a sum over a row's blocks. LOWER, unbiased for the bound, nats.

    log p >= E[f / k * sum over the k masked symbols of log p(symbol | all that are not masked)], f symbols in a block,
    k uniform on 1, ..., f: the continuous-time bound of absorbing states, and the mean over all orders of generation.

    The numbers k of a row are stratified; the standard error comes from neighbouring strata, which overstates it a
    little.

    Arguments:
        samples: Draws a block, an even number.

    Austin et al. (2021); Sahoo et al. (2024), eq. 10; Shi et al. (2024); Uria, Murray and Larochelle (2014) for orders.
    """

    samples: int = 8

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 2)
        if self.samples % 2:
            raise ParameterError(f"samples={self.samples}", "an even number: errors come from pairs of draws")

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if not hasattr(model, "log_pmf"):
            return LogProb.refuse(
                len(x), f"{type(model).__name__} masks nothing", "log_prob(x) without by=", by=repr(self)
            )
        weights = Weights(model, x, given, generator)
        blocks = model.layout.blocks(model.layout.sequences(x))
        noise = self._noise(blocks, weights.keys("masks"), model.layout.block)
        nats = torch.stack([self._draw(model, blocks, one[..., 0], one[..., 1:]) for one in noise])
        total = torch.zeros(self.samples, len(x), dtype=torch.float64).index_add(1, blocks.owner, nats)
        stderr = (total[0::2] - total[1::2]).square().sum(0).sqrt() / self.samples
        return LogProb(Kind.LOWER, total.mean(0), by=repr(self), stderr=stderr.numpy(), draws=weights.streams)

    def _noise(self, blocks: Blocks, keys: Any, block: int) -> Tensor:
        """(samples, m, 1 + block) from each row's own stream; the first of each is stratified over samples."""
        own = torch.Generator()
        counts = torch.bincount(blocks.owner).tolist()
        parts = [
            torch.rand(self.samples, count, 1 + block, generator=own.manual_seed(int(key)), dtype=torch.float64)
            for key, count in zip(keys, counts, strict=True)
        ]
        noise = torch.cat(parts, 1)
        noise[..., 0] = (noise[..., 0] + torch.arange(self.samples)[:, None]) / self.samples
        return noise

    def _draw(self, model: "TextDiffusion", blocks: Blocks, share: Tensor, order: Tensor) -> Tensor:
        parts = torch.arange(len(blocks)).split(_ROWS)
        return torch.cat([terms(model, blocks[some], share[some], order[some]).double() for some in parts])


class Denoising(nn.Module):
    """Minus the bound in nats a symbol, of packed blocks; their shares are spread evenly over a batch.

    Low-discrepancy shares: Kingma et al. (2021), appendix I.1.
    """

    def __init__(self, model: "TextDiffusion") -> None:
        super().__init__()
        self.network = model.network
        object.__setattr__(self, "_model", model)  # no submodule: the family holds the parameters

    def forward(self, rows: Tensor, generator: torch.Generator, share: float) -> Tensor:
        parts = rows.split(_ROWS) if not torch.is_grad_enabled() else (rows,)
        total = torch.stack([self._total(part, generator) for part in parts]).sum()
        return -total / Blocks.of_packed(rows).free.sum()

    def _total(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        blocks, model = Blocks.of_packed(rows), cast("TextDiffusion", self._model)
        first = torch.rand((), generator=generator, dtype=torch.float64)
        shares = (first + torch.arange(len(rows)) / len(rows)) % 1
        order = torch.rand(len(rows), model.layout.block, generator=generator, dtype=torch.float64)
        return terms(model, blocks, shares, order).sum()
