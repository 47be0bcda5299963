"""Two or more models of the same sequences, mixed symbol by symbol. Exact."""

import math
import time
from collections.abc import Sequence
from typing import Any, NoReturn, Self

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from probgen.errors import DataError, ParameterError, StructureError
from probgen.events import Event, Ragged, Series, Text
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel

__all__ = ["Blend"]

_BUCKETS = 12  # of the number of symbols before: 0, 1, 2-3, 4-7, ...


class Blend(GenerativeModel):
    """p(x_t | x_<t) = sum_i w_i(t) p_i(x_t | x_<t): fitted models whose mean predicts each symbol. Exact.

    Arguments:
        models: Fitted, of one event: Text (with one tokenizer) or Series, each with steps: NGram, LanguageModel, HMM.

    Weights depend on how many symbols stand before: one set for each power of two. ``fit`` learns them alone, by EM on
    sequences that the models should not have seen: on their own training data the one that remembers most takes all.
    The mixture of pmfs is a pmf, so its log_prob is exact where theirs is (a lower bound under a BPE).

    Not saved as one: save the models, and fit the weights again.
    """

    def __init__(self, models: Sequence[GenerativeModel]) -> None:
        models = tuple(models)
        if len(models) < 2 or not all(isinstance(model, GenerativeModel) for model in models):
            raise ParameterError(
                f"models={models!r:.80}", "two fitted models or more", "Blend([ngram, language_model])"
            )
        for model in models:
            model._check_fitted()
        if odd := [model.event for model in models if model.event != models[0].event]:
            raise StructureError(f"Models of {models[0].event!r} and {odd[0]!r}", "one event", "Fit both to one event")
        super().__init__(models[0].event)
        self.models = models  # a tuple keeps their parameters out of this one's
        self.logits = nn.Parameter(torch.zeros(_BUCKETS, len(models), dtype=torch.float64))

    @classmethod
    def suits(cls, event: Event) -> str | None:
        return None if isinstance(event, Text | Series) else f"it mixes steps of sequences, not {type(event).__name__}"

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        raise StructureError(f"A Blend of {event!r} without models", "fitted models", "Blend([a, b])")

    @property
    def weights(self) -> Tensor:
        """Of each model where so many symbols stand before (0, 1, 2-3, 4-7, ...), shape (12, models)."""
        return self.logits.softmax(1)

    @property
    def ends(self) -> bool:
        """Whether the end of a sequence is a symbol."""
        return isinstance(self.event, Text)

    @property
    def _by(self) -> str:
        return f"{' + '.join(type(model).__name__ for model in self.models)}, mixed symbol by symbol"

    def _scored(self, x: Ragged, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray, Ragged]:
        """log p_i of each symbol, ends included, (steps, models), and its bucket (steps,); and where they belong."""
        lengths = x.lengths + int(self.ends)
        places = Ragged(torch.zeros(int(lengths.sum())), lengths)
        table = np.empty((len(places.values), len(self.models)))
        last = places.starts.numpy() + lengths.numpy() - 1
        inner = np.ones(len(table), dtype=bool)
        inner[last] = not self.ends
        for column, model in zip(table.T, self.models, strict=True):
            steps = model._log_prob_steps(x, None, generator=generator).nats
            column[inner] = steps
            if self.ends:
                column[last] = model._log_prob(x, None, generator=generator).nats - x.sums(steps)
        buckets = np.minimum(np.frexp(places.places.numpy())[1], _BUCKETS - 1)
        return table, buckets, places

    def _mixed(self, table: np.ndarray, buckets: np.ndarray) -> np.ndarray:
        """log of the weighted mean of each symbol's probabilities, (steps,)."""
        weighted = table + self.logits.detach().log_softmax(1).numpy()[buckets]
        return np.logaddexp.reduce(weighted, axis=1)

    @torch.no_grad()
    def _fit(self, x: Ragged, given: None, *, generator: torch.Generator, max_iter: int = 100) -> FitReport:
        """EM of the weights, ``max_iter`` rounds at most. Half a symbol of each model stands for what was not seen."""
        if isinstance(max_iter, bool) or not isinstance(max_iter, int) or max_iter < 1:
            raise ParameterError(f"max_iter={max_iter!r}", "a whole number, at least 1")
        began = time.perf_counter()
        table, buckets, _ = self._scored(x, generator)
        if np.isneginf(table).all(axis=1).any():
            raise DataError(
                "A symbol is impossible under every model", "data that one of them allows", "Check the data"
            )
        self.logits.zero_()
        history = [float(self._mixed(table, buckets).mean())]
        while len(history) <= max_iter and (len(history) < 3 or history[-1] - history[-2] > 1e-9):
            shares = np.exp(table + self.weights.log().numpy()[buckets] - self._mixed(table, buckets)[:, None])
            taken = np.stack([np.bincount(buckets, share, _BUCKETS) for share in shares.T], axis=1) + 0.5
            self.logits.copy_(torch.from_numpy(taken / taken.sum(axis=1, keepdims=True)).log())
            history.append(float(self._mixed(table, buckets).mean()))
        alone = ", ".join(f"{-column.mean() / math.log(2):.4f}" for column in table.T)
        notes = (f"alone {alone} bits a symbol, mixed {-history[-1] / math.log(2):.4f}",)
        seconds = time.perf_counter() - began
        return FitReport((history[0], max(history)), len(history) - 1, "converged", seconds, notes=notes)

    def _log_prob(self, x: Ragged, given: None, *, generator: torch.Generator) -> LogProb:
        table, buckets, places = self._scored(x, generator)
        exact = not self.ends or self.event.tokenizer == "bytes"  # type: ignore[attr-defined]
        nats = places.sums(self._mixed(table, buckets))
        return LogProb(Kind.EXACT if exact else Kind.LOWER, nats, by=self._by)

    def _log_prob_steps(self, x: Ragged, given: None, *, generator: torch.Generator) -> LogProb:
        """Of each symbol; the end of a text is no step."""
        table, buckets, places = self._scored(x, generator)
        inner = places.places < (places.lengths - int(self.ends)).repeat_interleave(places.lengths)
        return LogProb(Kind.EXACT, self._mixed(table, buckets)[inner.numpy()], by=self._by)

    def _stepper(self, batch: int) -> "_Stepper":
        """The mixed pmf of the next symbol, for codecs."""
        for model in self.models:
            if not hasattr(model, "_stepper"):
                raise StructureError(
                    f"The next symbol under {type(model).__name__}",
                    "models with a stepwise pmf",
                    "NGram, LanguageModel",
                )
        return _Stepper(self, batch)

    def model(self, x: Ragged | None = None, given: None = None, n: int = 1) -> None:
        """A factor of the mixed likelihood, differentiable in the weights."""
        if x is None:
            self._refuse_draws()
        table, buckets, places = self._scored(x, torch.Generator())
        steps = (torch.from_numpy(table) + self.logits.log_softmax(1)[torch.from_numpy(buckets)]).logsumexp(1)
        rows = torch.arange(len(x)).repeat_interleave(places.lengths)
        with pyro.plate("rows", len(x)):
            pyro.factor("x", steps.new_zeros(len(x)).index_add(0, rows, steps))

    def _sample(self, n: int, given: None, *, generator: torch.Generator) -> NoReturn:
        self._refuse_draws()

    def _refuse_draws(self) -> NoReturn:
        raise StructureError("Draws from a Blend", "one of its models", "blend.models[0].sample(n)")


class _Stepper:
    """The steppers of the models side by side."""

    def __init__(self, blend: Blend, batch: int) -> None:
        self.parts = [model._stepper(batch) for model in blend.models]  # type: ignore[operator]
        self.weights, self.place = blend.weights.detach().log(), 0

    def reset(self) -> None:
        for part in self.parts:
            part.reset()
        self.place = 0

    def log_pmf(self) -> Tensor:
        weights = self.weights[min(self.place.bit_length(), _BUCKETS - 1)]
        mixed = [part.log_pmf() + weight for part, weight in zip(self.parts, weights, strict=True)]
        return torch.stack(mixed).logsumexp(0)

    def push(self, ids: Any) -> None:
        self.place += 1
        for part in self.parts:
            part.push(ids)

    def keep(self, rows: Tensor) -> None:
        for part in self.parts:
            part.keep(rows)
