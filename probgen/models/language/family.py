"""The family LanguageModel: exact likelihoods of text, and of any sequence of symbols."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from probgen.errors import DataError, ParameterError, StructureError
from probgen.events import Event, Ragged, Series, Text
from probgen.events.symbols import Alphabet, why_not
from probgen.logprob import Kind, LogProb
from probgen.logprob.kinds import Summary
from probgen.model import FitReport, GenerativeModel, generator_of
from probgen.models.language import coding, learning, program, search
from probgen.models.language.choosing import Choice, grow, known_choices
from probgen.models.language.decoding import Stepper
from probgen.models.language.sampler import Sampler, streamed
from probgen.models.language.scoring import Reading, Windows, score
from probgen.models.language.texts import cut_at, joined
from probgen.nn import refuse_broken
from probgen.nn.transformer import Transformer
from probgen.training import train
from probgen.training.muon import Ramp, halves_well
from probgen.training.tokens import with_tokens

__all__ = ["LanguageModel", "TokenPath"]

_MOST = 4096  # symbols of a text that is drawn
_HELD = 256  # windows held out, at most
_MEMORY = 1 << 26  # bytes of keys and values of the sequences that are drawn together


@dataclass(frozen=True)
class TokenPath:
    """log p of the tokens that the tokenizer gives, the end included, as the variable itself. Kind exact.

    ``log_prob`` of a string under BPE is a lower bound: other tokens spell the same bytes. Of its tokens it is exact.
    """

    def __call__(self, model: "LanguageModel", x: Any, given: Any = None, *, generator: torch.Generator) -> LogProb:
        by_tokens: Any = getattr(model, "_log_prob_tokens", None)  # of somebody else's model
        if by_tokens is not None:
            return by_tokens(x, given, generator=generator)
        if not isinstance(model, LanguageModel):
            raise ParameterError(f"TokenPath for {type(model).__name__}", "a LanguageModel", "Leave by= out")
        nats, by = model._totals(x, given)
        of = "tokens" if given is None else "tokens|prefix"
        return LogProb(Kind.EXACT, nats, by=f"TokenPath(), {by}", of=of, measure="counting(tokens)")


class LanguageModel(GenerativeModel):
    """A decoder-only transformer over symbols: p(x) is the product of p(x_t | x_<t), and of p(end | x) for text. Exact.

    The first symbol counts, and so does the end of a text: all texts of any length, the empty one among them, have
    mass one. Under bytes ``log_prob`` is exact. Under BPE it is that of the tokenizer's own tokens, a lower bound for
    the string, which other tokens spell as well; ``by=TokenPath()`` scores the tokens, exactly. A Series has no end
    symbol: its length is given, as in every family over series. An Array is read in raster order: an exact pmf of
    images.

    A symbol is predicted from all symbols before it, as far as they fit into the window, which moves on by
    ``stride`` symbols, so from at least window - stride of them. The window is part of the model:
    sampling obeys it too, and ``by`` of every answer names it.

    ``given`` is a prefix (text, or one sequence): ``log_prob(x, given=prefix)`` is that of the continuation x, the end
    included; ``sample(n, given=prefix)`` gives whole texts that begin with it. Under BPE both are given the tokens of
    the prefix alone.

    Arguments:
        event: Text() by default; Series or Array of levels. ``LanguageModel.learn(texts)`` learns a BPE too.
        layers, width, heads: Of the transformer (see nn.Transformer).
        window: Symbols that it holds.
        stride: Symbols by which it moves on; 0 takes half the window.
        hidden: Width inside the perceptrons; 0 takes 4 * width.
        pairs: Rows of a hashed table that adds features of symbol pairs; 0 for none.
        precision: "single" (text) or "double" (the rest) by default. Scores in single agree to 1e-5.

    Vaswani et al. (2017); Radford et al. (2019).
    """

    def __init__(
        self,
        event: Event | None = None,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        window: int = 256,
        stride: int = 0,
        hidden: int = 0,
        pairs: int = 16384,
        precision: Literal["single", "double"] | None = None,
    ) -> None:
        super().__init__(Text() if event is None else event)
        least = {"layers": 1, "width": 2, "heads": 1, "window": 2, "stride": 0, "hidden": 0, "pairs": 0}
        given = {"layers": layers, "width": width, "heads": heads, "window": window, "stride": stride}
        for name, value in {**given, "hidden": hidden, "pairs": pairs}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]:
                raise ParameterError(f"{name}={value!r}", f"a whole number from {least[name]}")
        if width % (2 * heads):
            raise StructureError(f"width={width} with heads={heads}", "a width that 2 * heads divides")
        if stride > window:
            raise StructureError(f"stride={stride} with window={window}", "a stride up to the window")
        if precision not in (None, "single", "double"):
            raise ParameterError(f"precision={precision!r}", "'single' or 'double'")
        self.layers, self.width, self.heads, self.window = layers, width, heads, window
        self.stride, self.hidden, self.pairs = stride or window // 2, hidden or 4 * width, pairs
        self.precision = precision or ("single" if isinstance(self.event, Text) else "double")
        self.alphabet = Alphabet(self.event)
        symbols = self.alphabet.size + 1
        table = min(pairs, symbols * symbols)
        self.network = Transformer(symbols, layers, width, heads, self.hidden, table)
        self.network.to(torch.float32 if self.precision == "single" else torch.float64)

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return why_not(event)

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
            **options: The constructor's (layers=, window=, ...) and fit's (budget=, steps=, ...).

        Raises:
            MissingExtra: without the package tokenizers. ParameterError: an option that neither has.
        """
        return with_tokens(cls, texts, tokens, seed, options)

    # What it reads

    def _reading(self, ids: Ragged) -> Reading:
        return Reading.of(ids, self.alphabet.size, self.alphabet.ends)

    def _check_given(self, given: Any, data: Any) -> Any:
        """A prefix for all rows, or one a row: a Ragged of ids."""
        if given is None or not isinstance(self.event, Text | Series):
            return super()._check_given(given, data)
        plain = isinstance(given, list | tuple) and any(isinstance(part, int | float) for part in given)
        try:
            prefix = self.alphabet.ids(self.event.check([None] if plain else given).x)
        except DataError as problem:
            wanted = "a text" if isinstance(self.event, Text) else "a list of one array, or of one for each row"
            came = f"given={given!r:.80} is no prefix" + ("" if plain else f": {problem.came}")
            raise ParameterError(came, wanted, problem.do) from problem
        if len(prefix) not in (1, 1 if data is None else len(data)):
            wanted = "one prefix" if data is None else f"one prefix, or {len(data)}"
            raise ParameterError(f"given= holds {len(prefix)} prefixes", wanted, "Ask prefix by prefix")
        return prefix

    def _totals(
        self, x: Any, given: Ragged | None, stride: int = 0, choice: Choice | None = None
    ) -> tuple[Tensor, str]:
        """log p of each sequence after its prefix, float64, and by which windows."""
        nats, reading, known = self._each(x, given, stride, choice)
        wanted = reading.places >= torch.from_numpy(np.repeat(known, reading.lengths))
        row = torch.from_numpy(np.repeat(np.arange(len(known)), reading.lengths))
        total = torch.zeros(len(known), dtype=torch.float64).index_add_(0, row, nats.where(wanted, 0.0))
        return total, self._way(reading, stride)

    def _each(
        self, x: Any, given: Ragged | None, stride: int = 0, choice: Choice | None = None
    ) -> tuple[Tensor, Reading, np.ndarray]:
        """log p of each target, the reading that holds them, and how many targets of each sequence are its prefix's."""
        refuse_broken(self.network)
        ids, known = joined(given, self.alphabet.ids(x))
        reading = self._reading(ids)
        windows = Windows.of(reading, self.window, stride or self.stride)
        if given is not None:
            row = np.searchsorted(reading.starts, windows.begin, side="right") - 1
            windows = windows.after((reading.starts + known)[row])
        nats = score(self.network, reading, windows, self.alphabet, choice)
        return nats, reading, known

    def _way(self, reading: Reading, stride: int = 0) -> str:
        tokens = ", canonical tokens" * (self._kind is Kind.LOWER)
        if reading.lengths.max() <= self.window:
            return f"left to right{tokens}"
        return f"left to right{tokens}, window {self.window}, stride {stride or self.stride}"

    @property
    def _kind(self) -> Kind:
        """What a number about the event is: other tokens may spell the same text."""
        return Kind.LOWER if isinstance(self.event, Text) and self.event.tokenizer != "bytes" else Kind.EXACT

    # Hooks

    def model(self, x: Any = None, given: Ragged | None = None, n: int = 1) -> Any:
        """One Pyro site a symbol, "x_0", "x_1", ..., over a plate of rows; ends are sites too."""
        return program.stepwise(self, x, given, n)

    def distribution(self, rows: int = 1, length: int = 0) -> program.Sequences:
        """The model as one torch distribution over padded ids (rows, length): see Sequences."""
        return program.Sequences(self, torch.Size([rows]), length or self.alphabet.length or self.window)

    def _log_prob(self, x: Any, given: Ragged | None, *, generator: torch.Generator) -> LogProb:
        nats, by = self._totals(x, given)
        return LogProb(self._kind, nats, by=by, of="x" if given is None else "x|prefix")

    def _log_prob_steps(self, x: Any, given: Ragged | None, *, generator: torch.Generator) -> LogProb:
        """Of each symbol; the end of a text is no step: log_prob minus their sum is log p(end | text)."""
        nats, reading, known = self._each(x, given)
        first = torch.from_numpy(np.repeat(known, reading.lengths))
        last = torch.from_numpy(np.repeat(reading.lengths - self.alphabet.ends, reading.lengths))
        wanted = (reading.places >= first) & (reading.places < last)
        return LogProb(Kind.EXACT, nats[wanted], by=self._way(reading))

    def _stepper(self, batch: int = 1) -> Stepper:
        """The pmf of each next symbol of ``batch`` sequences: .reset(), .log_pmf(), .push(ids)."""
        refuse_broken(self.network)
        return Stepper(self, batch)

    def _sample(
        self,
        n: int,
        given: Ragged | None,
        *,
        generator: torch.Generator,
        length: int | None = None,
        stop: str | tuple[str, ...] = (),
    ) -> Any:
        """``length``: symbols of each sequence (20 of a Series), at most that many of a text (4096).

        ``stop``: strings at which a text is cut, after them.
        """
        return self._drawn(n, given, generator, Choice(), length, stop)

    def _drawn(
        self,
        n: int,
        given: Ragged | None,
        generator: torch.Generator,
        choice: Choice,
        length: int | None,
        stop: str | tuple[str, ...],
    ) -> Any:
        most = self._room(length)
        prefix = None if given is None else given.values
        room = min(self.window, most + 1 + (0 if prefix is None else len(prefix)))
        together = max(1, min(4096, _MEMORY // (room * self.layers * self.width * 8)))
        refuse_broken(self.network)
        parts: list[np.ndarray] = []
        while len(parts) < n:
            stepper = Stepper(self, min(n - len(parts), together), room=room)
            if prefix is not None:
                stepper.read(prefix)
            parts += grow(stepper, choice, generator, most, may_be_empty=prefix is not None, stop=cut_at(self, stop))
        if prefix is not None:
            parts = [np.concatenate([prefix.numpy(), part]) for part in parts]
        return self.alphabet.observations(parts)

    def _room(self, length: int | None) -> int:
        fixed = self.alphabet.length
        if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
            raise ParameterError(f"length={length!r}", "a whole number of symbols, at least 1")
        if fixed is not None:
            if length not in (None, fixed):
                raise ParameterError(f"length={length}", f"no length: every array has {fixed} cells", "Leave it out")
            return fixed
        return length or (_MOST if self.alphabet.ends else 20)

    def sample_target(self, length: int | None = None, stop: str | tuple[str, ...] = (), **options: Any) -> str:
        """Texts are drawn given that they are not empty, and cut where they grow too long."""
        if not self.alphabet.ends:
            return "p"
        at = f" and at {stop!r}" if stop else ""
        return f"p(x | x is not empty), cut at {self._room(length)} tokens{at}"

    # Fitting

    def _fit(
        self,
        x: Any,
        given: None,
        *,
        generator: torch.Generator,
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int = 8,
        learning_rate: float = 0.02,
        validation: float = 0.02,
        weight_decay: float = 0.0,
        warmup: int = 20,
        descent: float = 0.6,
        patience: int = 0,
        ema: float = 0.0,
        checkpoint: str | PathLike | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
        bfloat16: bool | None = None,
    ) -> FitReport:
        """Maximum likelihood by Muon for matrices and AdamW for tables.

        ``budget`` in seconds, unless ``steps`` is given; ``batch_size`` windows of ``window`` symbols a step;
        ``learning_rate`` of the matrices (half of it for tables), linear to zero over the last share ``descent``;
        ``validation``: share of windows held out to choose the best state, 256 of them at most; ``bfloat16``: whether
        to multiply in it, None where the processor has instructions for it. The report's objective is in nats a symbol.
        """
        if given is not None:
            raise ParameterError("given= for fit", "no prefix: whole sequences are learnt", "Leave it out")
        data = learning.windows(self.alphabet.ids(x), self.alphabet.size, self.window)
        held = min(validation, _HELD / len(data)) if len(data) >= 50 else 0.0
        plan = Ramp(
            steps=steps, budget=budget, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup,
            weight_decay=weight_decay, clip=0.0, ema=ema, validation=held,
            patience=patience, grace=0.3, evaluations=8, checkpoint=checkpoint, every=every, resume=resume,
            descent=descent,
        )  # fmt: skip
        if not resume:
            self.network.reset(generator)
        half = halves_well(self.network) if bfloat16 is None else bfloat16
        made = learning.player(self.network, self.alphabet, half)
        return train(self, [made], data, plan, generator=generator, progress=progress)

    # Questions of its own

    @torch.no_grad()
    def bits_per_byte(
        self, texts: Any, *, stride: int = 0, adapting: bool = False, learning_rate: float = 1e-3, block: int = 8
    ) -> Summary:
        """Code length of texts in bits a byte of the original, ends included; between_rows is a block standard error.

        Arguments:
            stride: Of the window; 0 takes the model's own. A smaller one sees more and takes longer.
            adapting: Prequential: a copy of the model takes a gradient step on each ``block`` windows once it has
                scored them, so that later texts are coded by what earlier ones taught. The model stays as it is.
            learning_rate: Of those steps.

        Raises:
            StructureError: a model of something else than text.
        """
        self._check_fitted()
        return coding.bits_per_byte(self, self._check(texts), stride, adapting, learning_rate, block)

    @torch.no_grad()
    def perplexity(self, texts: Any, *, per: Literal["token", "byte"] = "token", stride: int = 0) -> Summary:
        """exp of minus the mean log p a token (ends counted), or a byte of the original text: ``unit`` says which."""
        self._check_fitted()
        return coding.perplexity(self, self._check(texts), per, stride)

    def sampler(self, **options: Any) -> Sampler:
        """This model under temperature=, top_k=, top_p=, min_p=, repetition_penalty=: a model of its own."""
        return Sampler(self, **known_choices(options))

    def stream(
        self, given: str | None = None, *, length: int | None = None, seed: int | None = None, **options: Any
    ) -> Iterator[str]:
        """Pieces of one text as they are drawn, the prefix first. ``options`` are those of ``sampler``."""
        self._check_fitted()
        return streamed(self, given, self._room(length), generator_of(seed), Choice(**known_choices(options)))

    @torch.no_grad()
    def beam(self, given: Any = None, *, width: int = 4, length: int = 64) -> search.Beams:
        """The most probable texts that a beam of ``width`` finds, up to ``length`` symbols after a prefix.

        Raises:
            NotFittedError: before ``fit``. StructureError: a model of something else than text.
        """
        self._check_fitted()
        return search.beam(self, self._check_given(given, None), width, length)

    @torch.no_grad()
    def infill(
        self,
        before: Any,
        after: Any,
        length: int,
        *,
        particles: int = 256,
        limit: int = 1 << 16,
        seed: int | None = None,
    ) -> search.Infill:
        """What stands between two pieces: p(middle | before, after) over middles of ``length`` symbols.

        By enumeration where there are at most ``limit`` of them, else by sequential Monte Carlo with ``particles``.
        """
        self._check_fitted()
        ends = self._check_given(before, None), self._check_given(after, None)
        return search.infill(self, *ends, length, particles, limit, generator_of(seed))
