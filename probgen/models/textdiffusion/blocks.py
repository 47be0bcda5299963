"""Observations as blocks of symbols, in windows that show each block what stands before it; and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probgen.events import Array, Ragged
from probgen.events.symbols import Alphabet

__all__ = ["Layout", "Windows"]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of N blocks of b symbols, m of them; the last K blocks of each are scored or drawn.

    Arguments:
        ids: Symbols, (m, N, b), int64.
        place: Of each block's first symbol in its sequence, (m, N); where it is 0 a sequence begins, which sees
            nothing of what stands before it in the window.
        last: Symbol before the window, (m,); a start where a sequence begins.
        first: N - K, the number of blocks that are only seen.
        number: Of each of the K blocks among all blocks of all sequences, (m, K).
        free: How many symbols of each of the K blocks are modelled, the first ones, (m, K); 0 for a block that is not
            scored here.
    """

    ids: Tensor
    place: Tensor
    last: Tensor
    first: int
    number: Tensor
    free: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor) -> "Windows":
        ids, place, last = (part[rows] for part in (self.ids, self.place, self.last))
        return Windows(ids, place, last, self.first, self.number[rows], self.free[rows])

    @property
    def inner(self) -> Tensor:
        """The K blocks, (m, K, b)."""
        return self.ids[:, self.first :]

    @property
    def inside(self) -> Tensor:
        """Which of their symbols are modelled, (m, K, b), bool."""
        return torch.arange(self.ids.shape[2]) < self.free[..., None]


@dataclass(frozen=True)
class Layout(Alphabet):
    """How an event's observations are cut: symbols 0 .. size - 1, then an end, a mask and a start.

    A text is its tokens, then ends up to the end of its last block, all of them modelled. The steps of a Series are
    one symbol each and its length is given; the cells of an Array are read in raster order.

    Arguments:
        before: Symbols before a block that it sees at least, where there are as many; rounded up to whole blocks.
        block: Symbols of a block.
    """

    before: int
    block: int
    advice: ClassVar[str] = "Fill the gaps by infill(x, known=...)"

    @property
    def end(self) -> int:
        return self.size

    @property
    def mask(self) -> int:
        return self.size + 1

    @property
    def start(self) -> int:
        return self.size + 2

    @property
    def outcomes(self) -> int:
        """How many symbols can be predicted."""
        return self.size + self.ends

    @property
    def stride(self) -> int:
        """Blocks by which windows move on."""
        return max(1, -(-self.before // self.block))

    @property
    def span(self) -> int:
        """Blocks of a window."""
        return 2 * self.stride if self.before else 1

    def legal_at(self, place: Tensor) -> Tensor | None:
        """Which symbols the places of blocks can hold, (..., block, size), bool; None where that is all of them."""
        if not isinstance(self.event, Array) or len(set(self.radix)) == 1:
            return None
        levels = torch.tensor([*self.radix, *[self.size] * self.block])
        return torch.arange(self.size) < levels[place[..., None] + torch.arange(self.block)][..., None]

    def masked(self, logits: Tensor, windows: Windows, hidden: Tensor) -> Tensor:
        """Logits of hidden symbols (masked, outcomes) without the levels that their places lack."""
        legal = self.legal_at(windows.place[:, windows.first :])
        return (
            logits
            if legal is None
            else logits.masked_fill(~legal[:, None].expand(*hidden.shape, -1)[hidden], -torch.inf)
        )

    def sequences(self, x: Tensor | Ragged) -> list[Tensor]:
        """Symbol ids of checked data, one tensor a sequence; raises as ``ids``."""
        return self.ids(x).split()

    def count(self, length: int) -> int:
        """Blocks of a sequence."""
        return -(-(length + self.ends) // self.block)

    def filled(self, one: Tensor) -> Tensor:
        """A sequence as whole blocks, (blocks, block)."""
        blocks = self.count(len(one))
        return torch.cat([one, one.new_full((blocks * self.block - len(one),), self.end)]).view(blocks, self.block)

    def free(self, length: int, blocks: Tensor) -> Tensor:
        """How many symbols of some blocks, by number in their sequence, are modelled."""
        if self.ends:
            return torch.full_like(blocks, self.block)
        return (length - blocks * self.block).clamp(0, self.block)

    def begin(self, block: int) -> int:
        """The block with which the window of a block begins."""
        return 0 if block < self.span else (block - self.span) // self.stride * self.stride + self.stride

    def windows(self, sequences: Sequence[Tensor]) -> list[Windows]:
        """All blocks of all sequences, each scored in one window; windows of one shape stand together."""
        made: dict[tuple[int, int], list[tuple[Tensor, ...]]] = {}
        before = 0
        for one in sequences:
            blocks, total = self.filled(one), self.count(len(one))
            heads = [0, *range(self.span, total, self.stride)]  # the first block that a window scores
            for head, end in zip(heads, [*heads[1:], total], strict=True):
                begin = self.begin(head)
                number = torch.arange(head, end)
                last = one[begin * self.block - 1] if begin else torch.tensor(self.start)
                parts = blocks[begin:end], torch.arange(begin, end) * self.block, last
                made.setdefault((end - begin, head - begin), []).append(
                    (*parts, before + number, self.free(len(one), number))
                )
            before += total
        return [self._stacked(rows, first) for (_, first), rows in made.items()]

    def _stacked(self, rows: list[tuple[Tensor, ...]], first: int) -> Windows:
        ids, place, last, number, free = (torch.stack(part) for part in zip(*rows, strict=True))
        return Windows(ids, place, last, first, number, free)

    def packed(self, sequences: Sequence[Tensor]) -> Tensor:
        """Overlapping windows of one stream of all blocks, for the training loop: (n, N (block + 2) + 1), int64.

        Sequences stand one after the other; windows wrap round at the end of the stream.
        """
        blocks = torch.cat([self.filled(one) for one in sequences])
        number = torch.cat([torch.arange(self.count(len(one))) for one in sequences])
        free = torch.cat([self.free(len(one), torch.arange(self.count(len(one)))) for one in sequences])
        span = min(self.span, len(blocks))
        at = (torch.arange(0, len(blocks), max(1, span // 2))[:, None] + torch.arange(span)) % len(blocks)
        last = blocks[at[:, 0] - 1, -1].where(number[at[:, 0]] > 0, self.start)
        return torch.cat([blocks[at].flatten(1), number[at] * self.block, free[at], last[:, None]], 1)

    def unpacked(self, rows: Tensor) -> Windows:
        """Windows that ``packed`` made. A first block is not scored where what stands before it is cut off."""
        span = (rows.shape[1] - 1) // (self.block + 2)
        ids, place, free, last = rows.split([span * self.block, span, span, 1], 1)
        free = free.clone()
        if span > 1 or self.before:
            free[:, 0].masked_fill_(place[:, 0] > 0, 0)
        number = torch.arange(free.numel()).view_as(free)
        return Windows(ids.reshape(len(ids), span, self.block), place, last[:, 0], 0, number, free)
