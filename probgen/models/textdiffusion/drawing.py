"""Sequences block by block: what is missing in a block is drawn in a random order."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probgen.errors import FitError
from probgen.models.textdiffusion.blocks import Windows
from probgen.models.textdiffusion.bound import chunks

if TYPE_CHECKING:
    from probgen.models.textdiffusion.family import TextDiffusion

__all__ = ["fill", "grown", "infilled"]

_TRIES = 1000  # of a first block that begins with an end


def fill(
    model: "TextDiffusion", windows: Windows, known: Tensor, steps: int, generator: torch.Generator, ends: bool = True
) -> Tensor:
    """The last block of each window (K = 1), what is not known drawn in a random order, (m, b).

    Arguments:
        known: (m, b), bool.
        steps: Looks of the network; the symbols of one look are drawn independently.
        ends: Whether an end may be drawn.
    """
    order = torch.rand(known.shape, generator=generator)
    parts = torch.arange(len(windows)).split(len(next(chunks(windows, 1))))
    return torch.cat(
        [_filled(model, windows[rows], known[rows], order[rows], steps, generator, ends) for rows in parts]
    )


def _filled(
    model: "TextDiffusion",
    windows: Windows,
    known: Tensor,
    order: Tensor,
    steps: int,
    generator: torch.Generator,
    ends: bool,
) -> Tensor:
    hidden = ~known & windows.inside[:, 0]
    rank, count = order.masked_fill(~hidden, torch.inf).argsort(1).argsort(1), hidden.sum(1, keepdim=True)
    windows = replace(windows, ids=windows.ids.clone())
    own, past = windows.ids[:, -1], model.network.read(windows)
    for step in range(steps):
        now = hidden & (rank < (count * (step + 1) / steps).ceil())
        if now.any():
            pmf = model.log_pmf(windows, hidden[:, None, None], now[:, None, None], past).double().exp()
            pmf = pmf if ends else pmf[:, : model.layout.size]
            own[now] = torch.multinomial(pmf, 1, generator=generator)[:, 0]
            hidden = hidden & ~now
    return own


def _window(model: "TextDiffusion", found: Tensor, block: int, free: int) -> Windows:
    """The window of one block of each row of found symbols (n, blocks, b); that block is its last."""
    n, _, b = found.shape
    begin = model.layout.begin(block)
    last = found[:, begin - 1, -1] if begin else torch.full((n,), model.layout.start)
    place = (torch.arange(begin, block + 1) * b).expand(n, -1)
    number = torch.zeros(n, 1, dtype=torch.int64)
    return Windows(found[:, begin : block + 1], place, last, block - begin, number, torch.full((n, 1), free))


def grown(
    model: "TextDiffusion", n: int, prefix: Tensor, most: int, steps: int, generator: torch.Generator
) -> list[Tensor]:
    """n sequences that begin with a prefix: block after block, until all have ended or have ``most`` symbols.

    Raises:
        FitError: a model that draws nothing but empty texts.
    """
    layout, b = model.layout, model.layout.block
    found = torch.full((n, -(-most // b), b), layout.end)
    found.view(n, -1)[:, : len(prefix)] = prefix
    open_rows = torch.arange(n)
    for block in range(len(prefix) // b, found.shape[1]):
        free = b if layout.ends else min(b, most - block * b)
        windows = _window(model, found[open_rows], block, free)
        known = (torch.arange(b) + block * b < len(prefix)).expand(len(windows), -1)
        own = fill(model, windows, known, steps, generator)
        for _ in range(_TRIES if layout.ends and not block and not len(prefix) else 0):
            empty = (own[:, 0] == layout.end).nonzero()[:, 0]
            if not len(empty):
                break
            own[empty] = fill(model, windows[empty], known[empty], steps, generator)
        else:
            if layout.ends and not block and not len(prefix):
                raise FitError("The model draws nothing but empty texts", "a model that has learnt", "Fit it longer")
        found[open_rows, block] = own
        open_rows = open_rows[~(own == layout.end).any(1)] if layout.ends else open_rows
        if not len(open_rows):
            break
    rows = found.view(n, -1)[:, :most]
    ended = (rows == layout.end).long()
    lengths = torch.where(ended.any(1), ended.argmax(1), most) if layout.ends else torch.full((n,), most)
    return [row[:size] for row, size in zip(rows, lengths.tolist(), strict=True)]


def infilled(
    model: "TextDiffusion", rows: Sequence[Tensor], masks: Sequence[Tensor], steps: int, generator: torch.Generator
) -> list[Tensor]:
    """Sequences whose missing symbols are drawn, block by block: each given its known ones and what stands before.

    No ends are drawn: the lengths are given.

    Arguments:
        masks: Which symbols are known, bool, of each row's length.
    """
    layout, b = model.layout, model.layout.block
    found = [layout.filled(row).clone() for row in rows]
    for block in range(max(map(len, found))):
        piece = slice(block * b, (block + 1) * b)
        some = [i for i, mask in enumerate(masks) if not mask[piece].all()]
        if not some:
            continue
        windows = _window(model, torch.stack([found[i][: block + 1] for i in some]), block, b)
        known = torch.ones(len(some), b, dtype=torch.bool)
        for row, i in enumerate(some):
            known[row, : len(masks[i][piece])] = masks[i][piece]
        for i, own in zip(some, fill(model, windows, known, steps, generator, False), strict=True):
            found[i][block] = own
    return [whole.flatten()[: len(row)] for whole, row in zip(found, rows, strict=True)]
