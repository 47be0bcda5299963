"""A causal language model of another library and its tokenizer, behind the verbs of every other model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError, StructureError
from probgen.events import Event, Ragged, Text
from probgen.foreign.logits import (
    LOGITS,
    ids_of,
    logits_of,
    next_logits,
    refuse_bad_weights,
    refuse_looking_ahead,
    spell,
    vocabulary,
    window_of,
)  # fmt: skip
from probgen.logprob import Kind, LogProb
from probgen.logprob.kinds import Summary
from probgen.model import FitReport, GenerativeModel
from probgen.models.language.scoring import Reading, Windows, first_symbol

__all__ = ["CausalLM"]

_PIECE = 512  # positions whose logits are taken to float64 together
_MOST = 256  # tokens of a text that is drawn


@dataclass(frozen=True, eq=False)
class Encoded:
    """Texts as tokens.

    Arguments:
        ids: Of prefix and text, one list a row.
        known: How many of them are the prefix's, (n,).
        changed: Of each row, what its tokens spell where that is not the text, else None.
    """

    ids: list[list[int]]
    known: np.ndarray
    changed: list[str | None]


class CausalLM(GenerativeModel):
    """A causal language model of transformers and its tokenizer, behind the verbs of every other model.

    A text is its tokens, then the end token; its probability includes the first token and the end. The first token
    is predicted from the tokenizer's beginning-of-text token: without one, numbers are about the rest given the first
    token, and ``of`` says "x|first token". Without an end token they are about all texts that begin so: "x...".

    ``log_prob`` of a string is that of the tokenizer's own tokens: LOWER, since other tokens may spell the same bytes.
    ``log_prob_tokens`` is about those tokens: EXACT. A row whose tokens do not spell it (the tokenizer normalises, or
    reads a special token in it) has no number, unless ``normalised=True`` declares that what they spell is scored.

    Rows are padded behind, with a mask and positions, in batches of like length: no row's number depends on the
    others. ``given`` is a prefix: ``log_prob(x, given=prefix)`` is about the continuation x; each is cut into tokens
    alone.

    Arguments:
        network: Called with input_ids, attention_mask, and position_ids and past_key_values where it takes them;
            gives ``.logits`` (n, T, tokens).
        tokenizer: Its tokenizer.
        window: Tokens that it sees; None reads it from the config.
        stride: By how much the window moves on in longer texts; 0 takes half the window. Each token is predicted
            from at least window - stride tokens, or all before it.
        bos: The id that stands before a text; None takes the tokenizer's.
        ends: Whether the end token belongs to a text; None: where the tokenizer has one.
        normalised: Whether to score what the tokens of a text spell in place of the text.

    Raises:
        StructureError: a network that looks ahead, an encoder-decoder, or one without a known window.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        window: int | None = None,
        stride: int = 0,
        bos: int | None = None,
        ends: bool | None = None,
        normalised: bool = False,
    ) -> None:
        super().__init__(Text())
        self.network, self.tokenizer, self.normalised = network.eval().requires_grad_(False), tokenizer, normalised
        self.window = window_of(network, window)
        if isinstance(stride, bool) or not isinstance(stride, int) or not 0 <= stride <= self.window:
            raise ParameterError(f"stride={stride!r}", f"a whole number up to the window, {self.window}; 0 for half")
        self.stride = stride or max(1, self.window // 2)
        self.bos = tokenizer.bos_token_id if bos is None else bos
        self.eos = tokenizer.eos_token_id
        if ends and self.eos is None:
            raise ParameterError("ends=True", "a tokenizer with an end token", "Leave it out")
        self.ends = self.eos is not None if ends is None else ends
        size = vocabulary(network)
        for name, token in {"bos": self.bos, "the end token": self.eos if self.ends else None}.items():
            if token is not None and not 0 <= token < size:
                raise ParameterError(f"{name} is {token!r}", f"a token id of the network, 0 to {size - 1}")
        refuse_looking_ahead(network, size)
        self.report, self.form = FitReport((), 0, "imported"), "list"
        self.eval()

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return None if event == Text() else f"its texts are strings, Text(), not {event!r}"

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        raise StructureError("A transformers model for an event", "a trained one", "probgen.from_pretrained(folder)")

    def __repr__(self) -> str:
        return f"CausalLM({type(self.network).__name__}, window={self.window}, stride={self.stride})"

    # What it reads

    def _check_given(self, given: Any, data: Any) -> Any:
        """Prefixes as strings: one for all rows, or one a row."""
        if given is None:
            return None
        prefix = self.event.restore(self.event.check(given).x, "list")
        if len(prefix) not in (1, 1 if data is None else len(data)):
            wanted = "one prefix" if data is None else f"one prefix, or {len(data)}"
            raise ParameterError(f"given= holds {len(prefix)} prefixes", wanted, "Ask prefix by prefix")
        return prefix

    def _encode(self, texts: Sequence[str], prefix: Sequence[str] | None) -> Encoded:
        """Tokens of each text after those of its prefix."""
        heads = [""] * len(texts) if prefix is None else list(prefix) * (len(texts) if len(prefix) == 1 else 1)
        before = [[] if prefix is None else ids for ids in ids_of(self.tokenizer, heads)]
        after = ids_of(self.tokenizer, texts)
        ids = [a + b for a, b in zip(before, after, strict=True)]
        spelt = [spell(self.tokenizer, one) for one in ids]
        wholes = [head + text for head, text in zip(heads, texts, strict=True)]
        changed = [None if got == text else got for got, text in zip(spelt, wholes, strict=True)]
        return Encoded(ids, np.array([len(one) for one in before]), changed)

    def _reading(self, ids: Sequence[Sequence[int]]) -> Reading:
        """Inputs and targets; without a first symbol the first token is no target."""
        inputs: list[int] = []
        targets: list[int] = []
        for one in ids:
            path = [*([] if self.bos is None else [self.bos]), *one, *([self.eos] if self.ends else [])]
            inputs += path[:-1]
            targets += path[1:]
        extra = (self.bos is not None) + self.ends - 1
        return Reading(torch.tensor(inputs), torch.tensor(targets), np.array([len(one) + extra for one in ids]))

    def _totals(self, coded: Encoded, stride: int) -> tuple[Tensor, str]:
        """log p of each row's tokens after its prefix, float64, and by which windows."""
        reading = self._reading(coded.ids)
        first = reading.starts + np.maximum(coded.known - (self.bos is None), 0)
        windows = Windows.of(reading, self.window, stride)
        windows = windows[windows.end > windows.begin]
        if coded.known.any():
            row = np.searchsorted(reading.starts, windows.begin, side="right") - 1
            windows = windows.after(first[row])
        total = torch.zeros(len(coded.ids), dtype=torch.float64)
        for places, nats in self._scores(reading, windows):
            total = total.index_add(0, reading.rows[places], nats)
        short = reading.lengths.max(initial=0) <= self.window
        return total, "left to right" if short else f"left to right, window {self.window}, stride {stride}"

    def _scores(self, reading: Reading, windows: Windows) -> Iterator[tuple[Tensor, Tensor]]:
        """The targets of each batch of windows and their log p."""
        most = max(1, LOGITS // vocabulary(self.network))
        order = np.argsort(windows.begin - windows.end, kind="stable")
        while len(order):
            rows = max(1, most // int(windows.end[order[0]] - windows.begin[order[0]]))
            yield self._score(reading, windows[order[:rows]])
            order = order[rows:]

    def _score(self, reading: Reading, some: Windows) -> tuple[Tensor, Tensor]:
        steps = np.arange((some.end - some.begin).max())
        places = some.begin[:, None] + steps
        inside = places < some.end[:, None]
        ids = reading.inputs[torch.from_numpy(np.minimum(places, some.end[:, None] - 1))]
        wanted = torch.from_numpy(inside & (places >= some.first[:, None]))
        logits = logits_of(self.network, ids, torch.from_numpy(inside)).cpu()[wanted]
        where = torch.from_numpy(places)[wanted]
        targets = reading.targets[where]
        nats = [
            part.double().log_softmax(-1).gather(1, target[:, None])[:, 0]
            for part, target in zip(logits.split(_PIECE), targets.split(_PIECE), strict=True)
        ]
        found = torch.cat(nats)
        if found.isnan().any():
            refuse_bad_weights(self.network)
        return where, found

    # Answers

    def _of(self, what: str, given: Any) -> str:
        """The variable: what counts as its end, and what it is given."""
        open_end = "" if self.ends else "..."
        if given is not None:
            return f"{what}{open_end}|prefix"
        return f"{what}{open_end}" + ("" if self.bos is not None else "|first token")

    def _log_prob(self, x: Ragged, given: Any, *, generator: torch.Generator | None = None, stride: int = 0) -> LogProb:
        coded = self._encode(self.event.restore(x, "list"), given)
        nats, by = self._totals(coded, stride or self.stride)
        about: dict[str, Any] = {}
        what, kinds = "x", np.full(len(x), Kind.LOWER, dtype=object)
        if self.normalised:
            what = "decode(encode(x))"
        elif refused := [i for i, spelt in enumerate(coded.changed) if spelt is not None]:
            kinds[refused], nats[refused] = Kind.UNAVAILABLE, math.nan
            about = {
                "reason": f"the tokenizer changes texts: row {refused[0]} becomes {coded.changed[refused[0]]!r:.60}, "
                f"so that its tokens do not spell it ({len(refused)} of {len(x)} rows)",
                "instead": "log_prob_tokens(x), about the tokens; or wrap with normalised=True, about what they spell",
            }
        return LogProb(kinds, nats, by=f"{by}, canonical tokens", of=self._of(what, given), **about)

    def _log_prob_tokens(self, x: Ragged, given: Any, *, generator: torch.Generator | None = None) -> LogProb:
        nats, by = self._totals(self._encode(self.event.restore(x, "list"), given), self.stride)
        return LogProb(Kind.EXACT, nats, by=by, of=self._of("tokens", given), measure="counting(tokens)")

    def log_prob_tokens(self, texts: Any, *, given: Any = None) -> LogProb:
        """log p of the tokens that the tokenizer gives, as the variable itself: EXACT."""
        return self._answer(self._log_prob_tokens, texts, given, None, lambda checked: checked.about)

    def bits_per_byte(self, texts: Any, *, given: Any = None, stride: int = 0) -> Summary:
        """Code length of texts in bits a byte of the original; ``stride`` of the window, 0 for the model's own."""
        if isinstance(stride, bool) or not isinstance(stride, int) or not 0 <= stride <= self.window:
            raise ParameterError(f"stride={stride!r}", f"a whole number up to the window, {self.window}; 0 for its own")
        how = partial(self._log_prob, stride=stride)
        return self._answer(how, texts, given, None, lambda checked: checked.about).bits_per_byte()

    def model(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        """One factor a row: log p of its tokens. Without x, n texts are drawn."""
        if x is None:
            seed = int(torch.randint(2**62, ()))
            return self._sample(n, given, generator=torch.Generator().manual_seed(seed))
        coded = self._encode(self.event.restore(x, "list"), given)
        with pyro.plate("rows", len(x)):
            pyro.factor("x", self._totals(coded, self.stride)[0])
        return x

    def _fit(self, x: Any, given: None, *, generator: torch.Generator) -> FitReport:
        raise StructureError("fit of a transformers model", "training by transformers", "Or fit a LanguageModel")

    # Drawing

    def _sample(
        self,
        n: int,
        given: Any,
        *,
        generator: torch.Generator,
        length: int = _MOST,
        temperature: float = 1.0,
    ) -> Ragged:
        """At most ``length`` tokens of each; temperature=1 is the model itself. Special tokens are never drawn."""
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ParameterError(f"length={length!r}", "a whole number of tokens, at least 1")
        if not 0 < temperature < math.inf:
            raise ParameterError(f"temperature={temperature!r}", "a number above 0")
        head = ([] if self.bos is None else [self.bos]) + ([] if given is None else ids_of(self.tokenizer, given)[0])
        if not head:
            raise StructureError(
                "Sampling without a beginning-of-text token", "a first token", "sample(n, given='The'), or bos="
            )
        ids, ended = torch.tensor([head]).expand(n, -1), torch.zeros(n, dtype=torch.bool)
        state, begin = None, 0
        for step in range(length):
            wanted = first_symbol(ids.shape[1] - 1, self.window, self.stride)
            state = state if wanted == begin else None
            begin = wanted
            logits, state = next_logits(self.network, ids[:, begin:], state)
            logits = logits.double().cpu() / temperature
            logits[:, self._barred] = -torch.inf
            if step == 0 and given is None and self.ends:
                logits[:, self.eos] = -torch.inf
            token = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            ended |= (token == self.eos) & self.ends
            ids = torch.cat([ids, token.where(~ended, self._filler)[:, None]], 1)
            if ended.all():
                break
        return self._texts(ids[:, self.bos is not None :], n)

    @cached_property
    def _filler(self) -> int:
        return 0 if self.eos is None else self.eos

    @cached_property
    def _barred(self) -> list[int]:
        size = vocabulary(self.network)
        special = {i for i in getattr(self.tokenizer, "all_special_ids", []) if i < size}
        beyond = range(len(self.tokenizer), size) if hasattr(self.tokenizer, "__len__") else ()
        return sorted({*special, *beyond} - ({self.eos} if self.ends else set()))

    def _texts(self, ids: Tensor, n: int) -> Ragged:
        rows = [one[: one.index(self.eos)] if self.ends and self.eos in one else one for one in ids.tolist()]
        parts = [torch.tensor(list(spell(self.tokenizer, row).encode()), dtype=torch.int64) for row in rows]
        return Ragged(torch.cat(parts), torch.tensor([len(part) for part in parts]))

    def sample_target(self, length: int = _MOST, temperature: float = 1.0) -> str:
        at = "" if temperature == 1 else f"[temperature={temperature}]"
        return f"p{at}(x | not empty, no special token), cut at {length} tokens"
