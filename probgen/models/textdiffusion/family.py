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
from probgen.models.textdiffusion import drawing
from probgen.models.textdiffusion.blocks import Layout, Windows
from probgen.models.textdiffusion.bound import MaskingBound, chunks
from probgen.models.textdiffusion.learning import player
from probgen.models.textdiffusion.network import Denoiser, Past
from probgen.nn import refuse_broken
from probgen.training import train
from probgen.training.muon import Ramp, halves_well
from probgen.training.tokens import with_tokens

__all__ = ["TextDiffusion"]

_MOST = 4096  # symbols of a text that is drawn
_TOGETHER = 1024  # sequences that are drawn side by side
_HELD = 64  # windows that choose the best state, at most
_LOGITS = 1 << 22  # log-probabilities in memory at a time


class TextDiffusion(GenerativeModel):
    """Absorbing-state diffusion: symbols are masked at random, a transformer that looks both ways says what they were.

    A sequence is cut into blocks; each is diffused given the symbols that stand before it in its window. Inside a
    block the generative process is p: places in a uniformly random order, each symbol from the network given all that
    stand. ``log_prob`` is LOWER: the mean over orders of log p(x, order), unbiased, by ``MaskingBound``. In a text's
    last block ends fill the rest, so its length is modelled; that of a Series is given. The more symbols a block has
    the more freely it is drawn, and the weaker it is as a likelihood; ``block=1`` is an autoregressive model.
    ``TextDiffusion.learn(texts)`` learns a BPE too: over tokens it is a far better model of text than over bytes.

    ``given`` is a prefix for ``sample``; ``infill`` draws what is missing anywhere in a block.

    Arguments:
        event: Text() by default; Series or Array of levels.
        layers, width, heads, hidden, pairs: Of the transformer (see nn.Transformer); hidden=0 takes 4 * width.
        block: Symbols of a block; 0 takes 4. An Array may be one block of all its cells.
        before: Symbols before a block that it sees at least, where there are as many; -1 takes 128 or a block, 0 where
            an Array is one block. Windows hold twice as many and move on by as many: they are part of the model.
        precision: "single" or "double". Scores in single agree to 1e-5.

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
        precision: Literal["single", "double"] = "single",
    ) -> None:
        super().__init__(Text() if event is None else event)
        least = {"layers": 1, "width": 2, "heads": 1, "block": 0, "before": -1, "hidden": 0, "pairs": 0}
        told = {"layers": layers, "width": width, "heads": heads, "block": block, "before": before}
        for name, value in {**told, "hidden": hidden, "pairs": pairs}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]:
                raise ParameterError(f"{name}={value!r}", f"a whole number from {least[name]}")
        if width % (2 * heads):
            raise StructureError(f"width={width} with heads={heads}", "a width that 2 * heads divides")
        if precision not in ("single", "double"):
            raise ParameterError(f"precision={precision!r}", "'single' or 'double'")
        cells = self.event.dims if isinstance(self.event, Array) else 0
        self.layers, self.width, self.heads, self.pairs = layers, width, heads, pairs
        self.block = block or min(cells or 4, 4)
        self.before = before if before >= 0 else 0 if 0 < cells <= self.block else max(128, self.block)
        self.hidden, self.precision = hidden or 4 * width, precision
        self.layout = Layout(self.event, self.before, self.block)
        symbols = self.layout.size + 3
        pairs = min(pairs, symbols * symbols)
        self.network = Denoiser(symbols, self.block, layers, width, heads, self.hidden, pairs)
        self.network.to(torch.float32 if precision == "single" else torch.float64)

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return why_not(event, "masks")

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        return cls(event, **options)

    @classmethod
    def learn(cls, texts: Any, *, tokens: int = 2048, seed: int | None = None, **options: Any) -> Self:
        """A model of texts, its tokenizer learnt first, then fitted.

        Arguments:
            texts: As Text takes them.
            tokens: Of the BPE; 256 models bytes.
            seed: As of fit.
            **options: The constructor's (block=, layers=, ...) and fit's (budget=, steps=, ...).

        Raises:
            MissingExtra: without the package tokenizers. ParameterError: an option that neither has.
        """
        return with_tokens(cls, texts, tokens, seed, options)

    def log_pmf(
        self, windows: Windows, hidden: Tensor, wanted: Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        """log p of every symbol at each masked place given all that are not masked, (masked, outcomes), with gradients.

        Arguments:
            hidden: Which symbols of the windows' last blocks are masked, S times: (m, S, K, b), bool.
            wanted: At which of them; all by default.
            past: Of the network, where it has read the windows before.
        """
        return self._logits(self._features(windows, hidden, past), windows, hidden, wanted).log_softmax(-1)

    def log_own(self, windows: Windows, hidden: Tensor) -> Tensor:
        """log p of each masked symbol itself given all that are not masked, (masked,), with gradients."""
        features, found = self._features(windows, hidden), []
        target = windows.inner[:, None].expand_as(hidden)
        for rows in torch.arange(len(hidden)).split(max(1, _LOGITS // (hidden[0].numel() * self.layout.outcomes))):
            part = hidden[rows]
            logits = self._logits(features[rows], windows[rows], part)
            found.append(logits.gather(1, target[rows][part][:, None])[:, 0] - logits.logsumexp(1))
        return torch.cat(found)

    def _features(self, windows: Windows, hidden: Tensor, past: Past | None = None) -> Tensor:
        masked = windows.inner[:, None].expand_as(hidden).masked_fill(hidden, self.layout.mask)
        return self.network(windows, masked, past)

    def _logits(self, features: Tensor, windows: Windows, hidden: Tensor, wanted: Tensor | None = None) -> Tensor:
        at = hidden if wanted is None else wanted
        return self.layout.masked(self.network.head(features[at])[:, : self.layout.outcomes], windows, at)

    # Hooks

    def model(self, x: Any = None, given: Ragged | None = None, n: int = 1) -> Any:
        """p(order) p(x | order): the site "order" ranks the places of each row's blocks, the factor "x" is log p.

        With the guide, whose "order" has the same distribution, its ELBO is the bound. Without x, n rows are drawn.
        """
        if x is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            return self._sample(n, given, generator=generator)
        sequences = self.layout.sequences(x)
        counts = self._counts(sequences)
        with pyro.plate("rows", len(x)):
            order = self._order(counts)
            inside = torch.arange(order.shape[1]) < counts[:, None]
            own = self._along(sequences, order[inside])
            owner = torch.arange(len(x)).repeat_interleave(counts)
            pyro.factor("x", torch.zeros(len(x), dtype=own.dtype).index_add(0, owner, own))
        return x

    def guide(self, x: Any = None, given: Ragged | None = None, n: int = 1) -> Any:
        if x is not None:
            with pyro.plate("rows", len(x)):
                self._order(self._counts(self.layout.sequences(x)))

    def _counts(self, sequences: list[Tensor]) -> Tensor:
        return torch.tensor([self.layout.count(len(one)) for one in sequences])

    def _order(self, counts: Tensor) -> Tensor:
        low = torch.zeros(len(counts), int(counts.max()), self.block, dtype=torch.float64)
        return pyro.sample("order", dist.Uniform(low, low + 1).to_event(2))

    def _along(self, sequences: list[Tensor], order: Tensor) -> Tensor:
        """log p of each block of all sequences in one order of its places (blocks, b), (blocks,)."""
        total = torch.zeros(len(order), dtype=self.network.dtype)
        for windows in (part for group in self.layout.windows(sequences) for part in chunks(group, 1)):
            inside = windows.inside
            rank = order[windows.number].masked_fill(~inside, torch.inf).argsort(-1).argsort(-1)
            for step in range(self.block):
                hidden, now = ((rank >= step) & inside)[:, None], (rank == step) & inside
                target = windows.inner[now][:, None]
                own = self.log_pmf(windows, hidden, now[:, None]).gather(1, target)[:, 0]
                total = total.index_add(0, windows.number[now.any(-1)], own)
        return total

    def _log_prob(self, x: Any, given: None, *, generator: torch.Generator) -> LogProb:
        return MaskingBound()(self, x, generator=generator)

    def _check_given(self, given: Any, data: Any) -> Any:
        """A prefix to draw after: one text, or a list of one sequence."""
        if given is None or not isinstance(self.event, Text | Series):
            return super()._check_given(given, data)
        if data is not None:
            raise ParameterError("given= beside data", "whole sequences: a prefix is for sample alone", "Leave it out")
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
        refuse_broken(self.network)
        most, steps = self._room(length), self._steps(steps)
        prefix = torch.empty(0, dtype=torch.int64) if given is None else self.layout.sequences(given)[0]
        most = max(most, len(prefix) + 1) if self.layout.ends else most
        parts: list[Tensor] = []
        while len(parts) < n:
            parts += drawing.grown(self, min(n - len(parts), _TOGETHER), prefix, most, steps, generator)
        return self.layout.observations(parts)

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
        batch_size: int = 8,
        learning_rate: float = 0.03,
        validation: float = 0.02,
        weight_decay: float = 0.0,
        warmup: int = 20,
        descent: float = 0.6,
        ema: float = 0.0,
        patience: int = 0,
        checkpoint: str | PathLike | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
        bfloat16: bool | None = None,
    ) -> FitReport:
        """Ascends the bound by Muon for matrices and AdamW for tables.

        ``budget`` in seconds, unless ``steps`` is given; ``batch_size`` windows a step, each of ``2 * before`` symbols;
        ``learning_rate`` of the matrices (half of it for tables), linear to zero over the last share ``descent``;
        ``validation``: share of windows held out to choose the best state, 64 of them at most; ``bfloat16``: whether to
        multiply in it, None where the processor has instructions for it. The objective is in nats a symbol.
        """
        data = self.layout.packed(self.layout.sequences(x))
        held = min(validation, _HELD / len(data)) if len(data) >= 50 else 0.0
        plan = Ramp(
            steps=steps, budget=budget, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup, clip=0.0,
            weight_decay=weight_decay, ema=ema, validation=held, patience=patience, grace=0.3, evaluations=8,
            checkpoint=checkpoint, every=every, resume=resume, descent=descent,
        )  # fmt: skip
        if not resume:
            self.network.reset(generator)
        half = halves_well(self.network) if bfloat16 is None else bfloat16
        return train(self, [player(self, half)], data, plan, generator=generator, progress=progress)

    # Questions of its own

    @torch.no_grad()
    def infill(
        self, x: Any, *, known: Any = None, blank: str = "_", steps: int | None = None, seed: int | None = None
    ) -> Any:
        """Draws what is missing in each row from p(missing | known, length), in the form that came in.

        A block is filled given all of its known symbols and those before it; later blocks are not looked at. An end is
        never drawn.

        Arguments:
            x: Data of the event; what stands at missing places is not read.
            known: Which symbols are known, bool, as many as x has: an array like x, or a list of arrays. Not for text.
            blank: In texts of bytes, the character that stands for one missing byte.
        """
        self._check_fitted()
        refuse_broken(self.network)
        checked = self._check(x)
        rows = [row.clone() for row in self.layout.sequences(checked.x)]
        masks = self._known(rows, known, blank)
        generator, count = generator_of(seed), self._steps(steps)
        rows = drawing.infilled(self, rows, masks, count, generator)
        return self.event.restore(self.layout.observations(rows), checked.form)

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
