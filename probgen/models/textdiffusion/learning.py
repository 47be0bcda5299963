"""How the bound is ascended: windows whose blocks are masked twice, each symbol in one of the two."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from probgen.models.textdiffusion.blocks import Layout, Windows
from probgen.models.textdiffusion.network import Denoiser
from probgen.training import Player
from probgen.training.muon import Muon

if TYPE_CHECKING:
    from probgen.models.textdiffusion.family import TextDiffusion

__all__ = ["Denoising", "player", "twice_hidden"]

_ROWS = 16  # windows at a time where nothing is learnt


def twice_hidden(windows: Windows, first: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Two maskings of each block that hide each symbol once, and the weights of their blocks.

    Of f symbols the first hides k = 0, ..., f, each equally probable, and the second the others: each half is a draw
    of the bound with weight (f + 1) / k (see ``hidden_at``), so the mean of both is, too.

    Arguments:
        first: In [0, 1), (m, K): k is floor((f + 1) first).
        order: Random numbers, (m, K, b); the smallest are hidden first.

    Returns:
        (m, 2, K, b), bool; and the weights (f + 1) / 2k, (m, 2, K), float64.
    """
    inside = windows.inside
    rank = order.masked_fill(~inside, torch.inf).argsort(-1).argsort(-1)
    count = torch.minimum((first * (windows.free + 1)).long(), windows.free)
    one = (rank < count[..., None]) & inside
    counts = torch.stack([count, windows.free - count], 1)
    return torch.stack([one, inside & ~one], 1), (windows.free + 1)[:, None] / (2.0 * counts.clamp_min(1))


class Denoising(nn.Module):
    """Minus the bound in nats a symbol, of packed windows; the numbers of masked symbols are spread over a batch.

    Low-discrepancy numbers: Kingma et al. (2021), appendix I.1.

    Arguments:
        half: Whether matrices are multiplied in bfloat16.
    """

    def __init__(self, network: Denoiser, layout: Layout, half: bool) -> None:
        super().__init__()
        self.network, self.layout, self.coarse = network, layout, half

    def forward(self, rows: Tensor, generator: torch.Generator, share: float) -> Tensor:
        parts = rows.split(_ROWS) if not torch.is_grad_enabled() else (rows,)
        both = [self._total(self.layout.unpacked(part), generator) for part in parts]
        total, symbols = (sum(part) for part in zip(*both, strict=True))
        return cast(Tensor, total / max(symbols, 1))

    def _total(self, windows: Windows, generator: torch.Generator) -> tuple[Tensor, int]:
        """Minus the bound of all windows, and how many symbols they have."""
        m, tail, b = windows.inner.shape
        begin = torch.rand((), generator=generator, dtype=torch.float64)
        spread = torch.randperm(m * tail, generator=generator).view(m, tail)
        hidden, weight = twice_hidden(
            windows, (begin + spread / (m * tail)) % 1, torch.rand(m, tail, b, generator=generator)
        )
        target = windows.inner[:, None].expand_as(hidden)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.coarse):
            features = self.network(windows, target.masked_fill(hidden, self.layout.mask))[hidden]
            logits = self.network.head(features)[:, : self.layout.outcomes]
        logits = self.layout.masked(logits.to(self.network.dtype), windows, hidden)
        errors = functional.cross_entropy(logits, target[hidden], reduction="none")
        weights = weight[..., None].expand_as(hidden)[hidden].to(errors.dtype)
        return (errors * weights).sum(), int(windows.free.sum())


def player(model: "TextDiffusion", half: bool) -> Player:
    """The loss and its optimiser for the training loop."""
    network = model.network
    made = Player(Denoising(network, model.layout, half), network.matrices + network.tables)
    made.optimiser = Muon(network.matrices, network.tables, half)
    return made
