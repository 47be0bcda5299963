"""The family TextDiffusion: lower bounds on the likelihood of text, drawn in any order."""

from os import PathLike
from typing import Any, Literal, Self

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.errors import ParameterError, ShapeError, StructureError
from probgen.events import Array, Event, Ragged, Series, Text
from probgen.events.symbols import why_not
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel, generator_of
from probgen.models.textdiffusion.blocks import Blocks, Layout
from probgen.models.textdiffusion.bound import Denoising, MaskingBound
from probgen.nn.transformer import Transformer
from probgen.training import Player, Schedule, train

__all__ = ["TextDiffusion"]

_MOST = 4096  # symbols of a text that is drawn
_TOGETHER = 256  # sequences that are drawn side by side


class TextDiffusion(GenerativeModel):
    """Absorbing-state diffusion: symbols are masked at random, a transformer that looks both ways says what they were.

    A sequence is cut into blocks; each is diffused given the symbols before it, ``before`` of them at most. Inside a
    block the generative process is p: places in a uniformly random order, each symbol from the network given all that
    stand. ``log_prob`` is LOWER: the mean over orders of log p(x, order), unbiased, by ``MaskingBound``. In a text's
    last block ends fill the rest, so its length is modelled; that of a Series is given. The more symbols a block has
    the more freely it is drawn, and the weaker it is as a likelihood; ``block=1`` is an autoregressive model.

    ``given`` is a prefix for ``sample``; ``infill`` draws what is missing anywhere in a block.

    Arguments:
        event: Text() by default; Series or Array of levels.
        layers, width, heads, hidden, pairs: Of the transformer (see nn.Transformer); hidden=0 takes 4 * width.
        block: Symbols of a block; 0 takes 32, of an Array all cells, at most 256.
        before: Symbols before a block that it sees; -1 takes 32, and 0 for an Array of one block.
        precision: "single" (text) or "double" (the rest) by default.

    Austin et al. (2021); Sahoo et al. (2024); Shi et al. (2024); Arriola et al. (2025) for blocks.
    """

    def __init__(
        self,
        event: Event | None = None,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        block: int = 0,
        before: int = -1,
        hidden: int = 0,
        pairs: int = 16384,
        precision: Literal["single", "double"] | None = None,
    ) -> None:
        super().__init__(Text() if event is None else event)
        least = {"layers": 1, "width": 2, "heads": 1, "block": 0, "before": -1, "hidden": 0, "pairs": 0}
        told = {"layers": layers, "width": width, "heads": heads, "block": block, "before": before}
        for name, value in {**told, "hidden": hidden, "pairs": pairs}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]:
                raise ParameterError(f"{name}={value!r}", f"a whole number from {least[name]}")
        if width % (2 * heads):
            raise StructureError(f"width={width} with heads={heads}", "a width that 2 * heads divides")
        if precision not in (None, "single", "double"):
            raise ParameterError(f"precision={precision!r}", "'single' or 'double'")
        cells = self.event.dims if isinstance(self.event, Array) else 0
        self.layers, self.width, self.heads, self.pairs = layers, width, heads, pairs
        self.block = block or (min(cells, 256) if cells else 32)
        self.before = before if before >= 0 else 0 if 0 < cells <= self.block else 32
        self.hidden, self.precision = hidden or 4 * width, precision
        self.layout = Layout(self.event, self.before, self.block)
        symbols = self.layout.size + 3
        self.network = Transformer(symbols, layers, width, heads, self.hidden, min(pairs, symbols * symbols))
        single = precision == "single" or (precision is None and isinstance(self.event, Text))
        self.network.to(torch.float32 if single else torch.float64)

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return why_not(event, "masks")

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)

    def log_pmf(self, blocks: Blocks, hidden: Tensor) -> Tensor:
        """log p of every symbol at each masked place given all that are not masked, (masked, outcomes), with gradients.

        Arguments:
            hidden: Which symbols of the blocks are masked, (m, block), bool.
        """
        layout = self.layout
        ids = blocks.ids.clone()
        ids[:, layout.context :][hidden] = layout.mask
        steps = ids.shape[1]
        both_ways = self.network.embedding.new_zeros(steps, steps)
        features = self.network(ids, both_ways)[:, layout.context :][hidden]
        logits = self.network.head(features)[:, : layout.outcomes]
        legal = layout.legal_at(blocks.place)
        if legal is not None:
            logits = logits.masked_fill(~legal[hidden], -torch.inf)
        return logits.log_softmax(-1)

    # Hooks

    def model(self, x: Any = None, given: Ragged | None = None, n: int = 1) -> Any:
        """p(order) p(x | order): the site "order" ranks the places of each row's blocks, the factor "x" is log p.

        With the guide, whose "order" has the same distribution, its ELBO is the bound. Without x, n rows are drawn.
        """
        if x is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            return self._sample(n, given, generator=generator)
        blocks = self.layout.blocks(self.layout.sequences(x))
        with pyro.plate("rows", len(x)):
            order = self._order(blocks, len(x))
            own = self._along(blocks, order[blocks.owner, _numbers(blocks.owner)])
            pyro.factor("x", torch.zeros(len(x), dtype=own.dtype).index_add(0, blocks.owner, own))
        return x

    def guide(self, x: Any = None, given: Ragged | None = None, n: int = 1) -> Any:
        if x is not None:
            with pyro.plate("rows", len(x)):
                self._order(self.layout.blocks(self.layout.sequences(x)), len(x))

    def _order(self, blocks: Blocks, n: int) -> Tensor:
        most = int(torch.bincount(blocks.owner).max())
        low = torch.zeros(n, most, self.block, dtype=torch.float64)
        return pyro.sample("order", dist.Uniform(low, low + 1).to_event(2))

    def _along(self, blocks: Blocks, order: Tensor) -> Tensor:
        """log p of each block in one order of its places, (m,)."""
        inside = torch.arange(self.block) < blocks.free[:, None]
        rank = order.masked_fill(~inside, torch.inf).argsort(1).argsort(1)
        total = torch.zeros(len(blocks), dtype=self.network.embedding.dtype)
        for step in range(self.block):
            hidden = (rank >= step) & inside
            row = hidden.nonzero()[:, 0]
            now = rank[hidden] == step
            target = blocks.ids[:, self.layout.context :][hidden]
            own = self.log_pmf(blocks, hidden).gather(1, target[:, None])[:, 0]
            total = total.index_add(0, row[now], own[now])
        return total

    def _log_prob(self, x: Any, given: None, *, generator: torch.Generator) -> LogProb:
        if given is not None:
            raise ParameterError("given= for log_prob", "whole sequences: a prefix is for sample alone", "Leave it out")
        return MaskingBound()(self, x, generator=generator)

    def _check_given(self, given: Any, data: Any) -> Any:
        """A prefix to draw after: one text, or a list of one sequence."""
        if given is None or not isinstance(self.event, Text | Series):
            return super()._check_given(given, data)
        prefix = self.event.check(given).x
        if len(prefix) != 1:
            raise ParameterError(f"given= holds {len(prefix)} prefixes", "one prefix", "Ask prefix by prefix")
        return prefix

    def _sample(
        self,
        n: int,
        given: Ragged | None,
        *,
        generator: torch.Generator,
        length: int | None = None,
        steps: int | None = None,
    ) -> Any:
        """``length``: symbols of each sequence (20 of a Series), at most that many of a text (4096).

        ``steps``: network calls a block; fewer than its symbols draws several at once, another distribution.
        """
        most, steps = self._room(length), self._steps(steps)
        prefix = torch.empty(0, dtype=torch.int64) if given is None else self.layout.sequences(given)[0]
        most = max(most, len(prefix) + 1) if self.layout.ends else most
        parts: list[Tensor] = []
        while len(parts) < n:
            parts += self._grown(min(n - len(parts), _TOGETHER), prefix, most, steps, generator)
        return self.layout.observations(parts)

    def _grown(self, n: int, prefix: Tensor, most: int, steps: int, generator: torch.Generator) -> list[Tensor]:
        """Block after block, until all have ended or have ``most`` symbols."""
        layout = self.layout
        found = torch.full((n, layout.context + most + layout.block), layout.end)
        found[:, : layout.context] = layout.start
        found[:, layout.context : layout.context + len(prefix)] = prefix
        open_rows = torch.arange(n)
        for begin in range(len(prefix) // layout.block * layout.block, most, layout.block):
            free = layout.block if layout.ends else min(layout.block, most - begin)
            blocks = self._window(found[open_rows], begin, free)
            known = torch.arange(layout.block).expand(len(blocks), -1) + begin < len(prefix)
            self._fill(blocks, known, steps, generator, begin == 0 and not len(prefix))
            own = blocks.ids[:, layout.context :]
            found[open_rows, layout.context + begin : layout.context + begin + layout.block] = own
            open_rows = open_rows[~(own == layout.end).any(1)] if layout.ends else open_rows
            if not len(open_rows):
                break
        rows = found[:, layout.context : layout.context + most]
        ended = (rows == layout.end).long()
        lengths = torch.where(ended.any(1), ended.argmax(1), most)
        return [row[:size] for row, size in zip(rows, lengths.tolist(), strict=True)]

    def _window(self, found: Tensor, begin: int, free: int) -> Blocks:
        ids = found[:, begin : begin + self.layout.context + self.layout.block].clone()
        m = len(ids)
        return Blocks(ids, torch.full((m,), free), torch.full((m,), begin), torch.arange(m))

    def _fill(self, blocks: Blocks, known: Tensor, steps: int, generator: torch.Generator, begins: bool) -> None:
        """Draws all symbols that are not known in place, in a random order; the first of a text is no end."""
        layout = self.layout
        hidden = ~known & (torch.arange(layout.block) < blocks.free[:, None])
        order = torch.rand(hidden.shape, generator=generator).masked_fill(~hidden, torch.inf)
        rank, count = order.argsort(1).argsort(1), hidden.sum(1, keepdim=True)
        own = blocks.ids[:, layout.context :]
        for step in range(steps):
            now = hidden & (rank < (count * (step + 1) / steps).ceil())
            if not now.any():
                continue
            pmf = self.log_pmf(blocks, hidden).double().exp()
            if begins and layout.ends:
                pmf[hidden.nonzero()[:, 1] == 0, layout.end] = 0.0
            drawn = torch.multinomial(pmf, 1, generator=generator)[:, 0]
            own[now] = drawn[now[hidden]]
            hidden = hidden & ~now

    def _room(self, length: int | None) -> int:
        fixed = self.layout.length
        if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
            raise ParameterError(f"length={length!r}", "a whole number of symbols, at least 1")
        if fixed is not None and length not in (None, fixed):
            raise ParameterError(f"length={length}", f"no length: every array has {fixed} cells", "Leave it out")
        return fixed or length or (_MOST if self.layout.ends else 20)

    def _steps(self, steps: int | None) -> int:
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ParameterError(f"steps={steps!r}", f"network calls a block, 1 to {self.block}")
        return min(steps or self.block, self.block)

    def sample_target(self, length: int | None = None, steps: int | None = None) -> str:
        count = self._steps(steps)
        at = "" if count == self.block else f", {count} steps of {self.block} symbols"
        rest = f"(x | x is not empty), cut at its first end or {self._room(length)} tokens" if self.layout.ends else ""
        return f"p{rest}{at}"

    def _fit(
        self,
        x: Any,
        given: None,
        *,
        generator: torch.Generator,
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        validation: float = 0.02,
        weight_decay: float = 0.0,
        warmup: int = 50,
        clip: float = 1.0,
        ema: float = 0.0,
        patience: int = 0,
        checkpoint: str | PathLike | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """Ascends the bound by AdamW; ``budget`` in seconds, unless ``steps``; the objective is in nats a symbol."""
        if given is not None:
            raise ParameterError("given= for fit", "no prefix: whole sequences are learnt", "Leave it out")
        data = self.layout.blocks(self.layout.sequences(x)).packed()
        plan = Schedule(
            steps=steps, budget=budget, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup, clip=clip,
            weight_decay=weight_decay, ema=ema, validation=validation if len(data) >= 50 else 0.0, patience=patience,
            grace=0.3, evaluations=8, checkpoint=checkpoint, every=every, resume=resume,
        )  # fmt: skip
        if not resume:
            self.network.reset(generator)
        player = Player(Denoising(self), list(self.network.parameters()), betas=(0.9, 0.95))
        return train(self, [player], data, plan, generator=generator, progress=progress)

    # Questions of its own

    @torch.no_grad()
    def infill(
        self, x: Any, *, known: Any = None, blank: str = "_", steps: int | None = None, seed: int | None = None
    ) -> Any:
        """Draws what is missing in each row from p(missing | known, length), in the form that came in.

        A block is filled given all of its known symbols and those before it; later blocks are not looked at.

        Arguments:
            x: Data of the event; what stands at missing places is not read.
            known: Which symbols are known, bool, as many as x has: an array like x, or a list of arrays. Not for text.
            blank: In texts of bytes, the character that stands for one missing byte.
        """
        self._check_fitted()
        checked = self._check(x)
        rows = [row.clone() for row in self.layout.sequences(checked.x)]
        masks = self._known(rows, known, blank)
        generator, count = generator_of(seed), self._steps(steps)
        for number in range(max(-(-len(row) // self.block) for row in rows)):
            self._infill_block(rows, masks, number, count, generator)
        return self.event.restore(self.layout.observations(rows), checked.form)

    def _infill_block(
        self, rows: list[Tensor], masks: list[Tensor], number: int, steps: int, generator: torch.Generator
    ) -> None:
        """Draws what is missing in one block of each row, in place."""
        piece = slice(number * self.block, (number + 1) * self.block)
        some = [i for i, mask in enumerate(masks) if not mask[piece].all()]
        for part in (some[i : i + _TOGETHER] for i in range(0, len(some), _TOGETHER)):
            blocks = self.layout.blocks([rows[i] for i in part])
            blocks = blocks[blocks.place == piece.start]
            known = torch.ones(len(part), self.block, dtype=torch.bool)
            for row, i in enumerate(part):
                known[row, : len(masks[i][piece])] = masks[i][piece]
            self._fill(blocks, known, steps, generator, False)
            for row, i in enumerate(part):
                own = blocks.ids[row, self.layout.context :]
                rows[i][piece] = own[: len(rows[i][piece])]

    def _known(self, rows: list[Tensor], known: Any, blank: str) -> list[Tensor]:
        if isinstance(self.event, Text):
            if self.event.tokenizer != "bytes" or len(blank.encode()) != 1 or known is not None:
                raise StructureError(
                    f"infill of {self.event!r} with blank={blank!r}", "texts of bytes, with a blank of one byte",
                    "TextDiffusion(Text()).infill('a _ b')",
                )  # fmt: skip
            return [row != blank.encode()[0] for row in rows]
        masks = [] if known is None else [torch.from_numpy(np.asarray(one, dtype=bool).reshape(-1)) for one in known]
        if [len(mask) for mask in masks] != [len(row) for row in rows]:
            raise ShapeError("known= of another size than x", "one bool a symbol, row by row", "Give known=")
        return masks


def _numbers(owner: Tensor) -> Tensor:
    """Of each block in its sequence, (m,)."""
    counts = torch.bincount(owner)
    return torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
