"""The bound of absorbing-state diffusion on log p: symbols are masked, the network says what they were."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.estimate.weights import Weights, at_least
from probgen.logprob import Kind, LogProb
from probgen.models.textdiffusion.blocks import Windows
from probgen.nn import refuse_broken

if TYPE_CHECKING:
    from probgen.models.textdiffusion.family import TextDiffusion

__all__ = ["MaskingBound", "chunks", "hidden_at", "terms"]

_SYMBOLS = 8192  # symbols that the network reads at a time, all maskings together


def hidden_at(windows: Windows, share: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Which symbols of each block are masked, and by what each block's log-probabilities are multiplied.

    In continuous time symbols are masked independently with probability t and weigh 1 / t. Given how many are masked
    all choices are alike, and the integral over t leaves each number k = 1, ..., f the weight 1 / k: so k is drawn
    uniformly and the weight is f / k, which has the same mean and less noise.

    Arguments:
        share: In [0, 1), (m, S, K): of the f modelled symbols, 1 + floor(f share) are masked.
        order: Random numbers, (m, S, K, b); the smallest are masked.

    Returns:
        (m, S, K, b), bool; and f / k, (m, S, K), float64.
    """
    inside, free = windows.inside[:, None], windows.free[:, None]
    rank = order.masked_fill(~inside, torch.inf).argsort(-1).argsort(-1)
    count = 1 + torch.minimum((share * free).long(), (free - 1).clamp_min(0))
    return (rank < count[..., None]) & inside, free / count.double()


def terms(model: "TextDiffusion", windows: Windows, share: Tensor, order: Tensor) -> Tensor:
    """An unbiased draw of the bound of each block under each masking, (m, S, K), float64."""
    hidden, weight = hidden_at(windows, share, order)
    own = torch.zeros(hidden.shape, dtype=torch.float64)
    own[hidden] = model.log_own(windows, hidden).double()
    return own.sum(-1) * weight


def chunks(windows: Windows, copies: int) -> Iterator[Windows]:
    """A few windows at a time: as many as leave little in memory."""
    size = windows.ids[0].numel() + copies * windows.inner[0].numel()
    for rows in torch.arange(len(windows)).split(max(1, _SYMBOLS // size)):
        yield windows[rows]


@dataclass(frozen=True)
class MaskingBound:
    """The variational bound of masking, a sum over a row's blocks. LOWER, unbiased for the bound, nats.

    log p >= E[f / k * sum over the k masked symbols of log p(symbol | all that are not masked)], f symbols in a block,
    k uniform on 1, ..., f: the continuous-time bound of absorbing states, and the mean over all orders of generation.

    The numbers k of a block are stratified; the standard error comes from neighbouring strata of each block, which
    overstates it a little.

    Arguments:
        samples: Draws a block, an even number.

    Austin et al. (2021); Sahoo et al. (2024), eq. 10; Shi et al. (2024); Uria, Murray and Larochelle (2014) for orders.
    """

    samples: int = 4

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 2)
        if self.samples % 2:
            raise ParameterError(f"samples={self.samples}", "an even number: errors come from pairs of draws")

    def __call__(self, model: Any, x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if not hasattr(model, "log_own"):
            return LogProb.refuse(
                len(x), f"{type(model).__name__} masks nothing", "log_prob(x) without by=", by=repr(self)
            )
        refuse_broken(model.network)
        weights = Weights(model, x, given, generator)
        sequences = model.layout.sequences(x)
        counts = [model.layout.count(len(one)) for one in sequences]
        noise = self._noise(counts, weights.keys("masks"), model.layout.block)
        nats = torch.zeros(self.samples, sum(counts), dtype=torch.float64)
        for group in model.layout.windows(sequences):
            for some in chunks(group, self.samples):
                drawn = noise[:, some.number].transpose(0, 1)  # (m, S, K, 1 + b)
                nats[:, some.number] = terms(model, some, drawn[..., 0], drawn[..., 1:]).transpose(0, 1)
        owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        squares = (nats[0::2] - nats[1::2]).square().sum(0)
        total, square = (
            torch.zeros(len(x), dtype=torch.float64).index_add(0, owner, each) for each in (nats.mean(0), squares)
        )
        stderr = square.sqrt().numpy() / self.samples
        return LogProb(Kind.LOWER, total, by=repr(self), stderr=stderr, draws=weights.streams)

    def _noise(self, counts: list[int], keys: Any, block: int) -> Tensor:
        """(samples, blocks, 1 + block) from each row's own stream; the first of each is stratified over samples."""
        own = torch.Generator()
        parts = [
            torch.rand(self.samples, count, 1 + block, generator=own.manual_seed(int(key)), dtype=torch.float64)
            for key, count in zip(keys, counts, strict=True)
        ]
        noise = torch.cat(parts, 1)
        noise[..., 0] = (noise[..., 0] + torch.arange(self.samples)[:, None]) / self.samples
        return noise
