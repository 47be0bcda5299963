"""Embedding: skip-gram with negative sampling, and what one asks of word vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import Categorical

from probgen import store
from probgen.errors import DataError, NotFittedError, ParameterError, ShapeError, StoreError, StructureError
from probgen.events import Text
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, generator_of
from probgen.models.embedding import analogies, density, formats, learning
from probgen.models.embedding.corpus import Corpus, refuse_unknown, words_of
from probgen.plots.words import words_on_a_plane

__all__ = ["Embedding"]

_OPTIONS = ("dim", "window", "negatives", "min_count", "sample", "noise", "lower")


class Embedding:
    """Vectors of words, by skip-gram with negative sampling, and their density p(context word | word).

    Training tells pairs (w, c) of words at most a window apart from pairs whose c is noise, drawn from q, the counts
    to the power ``noise``. At the optimum u_c v_w = log p(c | w) / q(c) - log negatives (Levy and Goldberg 2014), so
    the law that the vectors stand for is log-bilinear:

        p(c | w) = q(c) exp(u_c v_w) / sum over c' of q(c') exp(u_c' v_w)

    ``log_prob(contexts, given=words)`` is its logarithm, summed over the whole vocabulary: kind exact, of a context
    given its word, where both are known words. It is the law of pairs as training draws them: windows uniform from 1
    to ``window``, frequent words thinned by ``sample``. Products of it over all pairs of a text count each word many
    times and are no density of texts: ``log_prob(texts)`` is their sum, kind score.

    It has the verbs of a GenerativeModel but is none: it has no law of texts, nothing to sample them from, and what
    it samples and scores is a context word, given a word.

    Arguments:
        dim: Numbers a word.
        window: Words on either side, at most.
        negatives: Noise words a pair.
        min_count: Words that occur less often are left out.
        sample: Share of all words above which a word is thinned; 0 thins none. Small vocabularies want 0.
        noise: The power of q.
        lower: Whether words are written in small letters, in texts and in questions.

    A text is cut into runs of letters, digits, "_" and inner apostrophes; contexts do not reach across texts.
    Mikolov et al. (2013), "Distributed representations of words and phrases and their compositionality".
    """

    def __init__(
        self,
        dim: int = 100,
        window: int = 5,
        negatives: int = 5,
        min_count: int = 5,
        sample: float = 1e-3,
        noise: float = 0.75,
        lower: bool = True,
    ) -> None:
        for name, value, most in (("dim", dim, 4096), ("window", window, 1000), ("negatives", negatives, 255)):
            _check_whole(name, value, 1, most)
        _check_whole("min_count", min_count, 1, 2**62)
        for name, share in (("sample", sample), ("noise", noise)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ParameterError(f"{name}={share!r}", "a number from 0 to 1")
        self.dim, self.window, self.negatives, self.min_count = dim, window, negatives, min_count
        self.sample_share, self.noise, self.lower = float(sample), float(noise), bool(lower)
        self.words: tuple[str, ...] = ()
        self.rows = torch.zeros(0, dim)
        self.outs: Tensor | None = None
        self.counts: Tensor | None = None
        self.report: FitReport | None = None

    # Verbs

    def fit(
        self,
        texts: Any,
        *,
        epochs: int = 10,
        learning_rate: float = 0.025,
        path: Literal["kernel", "torch"] | None = None,
        seed: int | None = None,
    ) -> Self:
        """Learns the vocabulary and the vectors; ``.report`` says how it went.

        Arguments:
            texts: As Text takes them, or lists of words.
            epochs: Passes over the texts.
            learning_rate: Of the first step; it falls to nothing. On the torch path (Adagrad) four times that.
            path: The compiled kernel where there is one, or torch. Each gives the same vectors for the same seed.

        Raises:
            DataError: unusable rows, or fewer than two words that occur ``min_count`` times.
            FitError: no two words stand beside each other, or numbers became infinite; nothing is changed.
        """
        _check_whole("epochs", epochs, 1, 2**62)
        if isinstance(learning_rate, bool) or not 0 < learning_rate < 100:
            raise ParameterError(f"learning_rate={learning_rate!r}", "a number above 0")
        path = path or ("kernel" if learning.compiled() else "torch")
        if path not in ("kernel", "torch") or (path == "kernel" and not learning.compiled()):
            raise ParameterError(f"path={path!r}", "'torch', or 'kernel' where it was built", "Leave it out")
        generator = generator_of(seed)
        corpus = Corpus.of(words_of(texts, self.lower), self.min_count)
        options = {"window": self.window, "negatives": self.negatives, "noise": self.noise, "path": path}
        options["sample"] = self.sample_share
        rows, outs, report = learning.learn(corpus, self.dim, options, epochs, learning_rate, generator)
        self._put(corpus.words, rows, outs, torch.from_numpy(corpus.counts))
        self.report = FitReport(**{**vars(report), "seed": generator.initial_seed()})
        return self

    def sample(self, n: int, *, given: str | Sequence[str], seed: int | None = None) -> Any:
        """n context words of a word, or a list of n for each of several words: draws from p(c | w).

        Raises:
            DataError: an unknown word. StructureError: a table without vectors of contexts.
        """
        _check_whole("n", n, 1, 2**31)
        several = not isinstance(given, str)
        law = self.distribution(given)
        drawn = torch.multinomial(law.probs, n, replacement=True, generator=generator_of(seed))
        found = [[self.words[i] for i in row] for row in drawn.tolist()]
        return found if several else found[0]

    def log_prob(self, x: Any, *, given: str | Sequence[str] | None = None) -> LogProb:
        """log p(context | word) of pairs, exact; or, without ``given``, the pair score of texts.

        Arguments:
            x: Context words, one or a list; without ``given``, texts.
            given: Their words: one for all, or one each.

        Returns:
            LogProb in nats. Of texts: the sum over all ordered pairs of known words up to ``window`` apart, kind score.

        Raises:
            DataError: an unknown word in a pair, with the nearest spellings.
            StructureError: a table without vectors of contexts.
        """
        rows, outs, log_q = self._law
        if given is None:
            about = Text().check([" ".join(text) for text in x] if _is_lists(x) else x).about
            nats = density.of_texts(words_of(x, self.lower), self._places, rows, outs, log_q, self.window)
            by = f"pairs up to {self.window} apart, {len(self.words)} words"
            return LogProb(Kind.SCORE, nats, by=by, of="contexts|words", measure="counting(pairs)", event=about)
        contexts = _listed(x)
        words = [given] * len(contexts) if isinstance(given, str) else _listed(given)
        if len(words) != len(contexts) or not words:
            raise ShapeError(f"given= has {len(words)} words for {len(contexts)} contexts", "one, or one each")
        nats = density.of_pairs(self._rows_of(words), self._rows_of(contexts), rows, outs, log_q)
        by = f"softmax over {len(self.words)} words"
        about = Text().check([f"{word}\n{context}" for word, context in zip(words, contexts, strict=True)]).about
        about = replace(about, dims=np.ones(len(nats)), event="Pairs", measure="counting(words)", bytes=None)
        return LogProb(Kind.EXACT, nats, by=by, of="context|word", measure="counting(words)", event=about)

    def distribution(self, words: str | Sequence[str]) -> Categorical:
        """p(c | w) of some words over ``.words``, as a torch distribution in float64."""
        rows, outs, log_q = self._law
        places = self._rows_of(_listed(words))
        if not places:
            raise ParameterError("No words", "a word, or several")
        return Categorical(logits=density.log_pmf(rows[places], outs, log_q))

    def model(self, words: Sequence[str], contexts: Sequence[str] | None = None) -> Tensor:
        """The Pyro program: one site "context" a word, over a plate; contexts are rows of ``.words``."""
        seen = None if contexts is None else torch.as_tensor(self._rows_of(contexts))
        with pyro.plate("pairs", len(words)):
            return pyro.sample("context", self.distribution(words), obs=seen)  # type: ignore[arg-type]

    # Questions

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return self._find(word) is not None

    def vector(self, word: str) -> np.ndarray:
        """float32 (dim,). Raises DataError for an unknown word."""
        return self.rows[self._row(word)].numpy().copy()

    def similarity(self, a: str, b: str) -> float:
        """The cosine between two words."""
        return float(self._unit[self._row(a)] @ self._unit[self._row(b)])

    def nearest(self, word: str | np.ndarray, k: int = 10) -> list[tuple[str, float]]:
        """The k words of greatest cosine with a word (itself left out) or a vector (dim,), best first."""
        _check_whole("k", k, 1, 2**31)
        if isinstance(word, str):
            own = [self._row(word)]
            return self._best(analogies.scored(self._unit, own, (), "add"), own, k)
        goal = _numbers(word)
        if goal.shape != (self.dim,):
            raise ShapeError(f"A vector of shape {goal.shape}", f"a word, or a vector of shape ({self.dim},)")
        return self._best(self._unit @ (goal / max(float(np.linalg.norm(goal)), 1e-12)), [], k)

    def analogy(self, a: str, b: str, c: str, k: int = 5, by: Literal["add", "mul"] = "add") -> list[tuple[str, float]]:
        """What a - b + c comes to: ``analogy("moscow", "russia", "japan")`` begins with tokyo. The three are left out.

        Arguments:
            by: "add": the cosine with the sum (3CosAdd); "mul": the ratio of products (3CosMul).
        """
        _check_whole("k", k, 1, 2**31)
        rows = self._rows_of([a, b, c])
        return self._best(analogies.scored(self._unit, (rows[0], rows[2]), (rows[1],), by), rows, k)

    def evaluate(
        self, source: str | PathLike | Iterable[Sequence[str]], by: Literal["add", "mul"] = "add"
    ) -> analogies.Accuracy:
        """How many analogies of a file (questions-words.txt's form), or rows of four words, come out right.

        Of "athens greece baghdad iraq" the answer to greece - athens + baghdad is wanted; questions with unknown words
        are skipped, and counted.
        """
        return analogies.judged(analogies.questions(source), self._find, self._unit, by)

    def plot(self, words: Sequence[str], path: str | PathLike, links: Sequence[tuple[str, str]] = ()) -> np.ndarray:
        """A map of words as a PNG: their first two principal directions, (n, 2), which it returns.

        Arguments:
            words: Three at least.
            links: Pairs of them that a line joins.

        Raises:
            ParameterError: fewer words. DataError: an unknown one. MissingExtra: without matplotlib.
        """
        places = self._rows_of(words)
        if len(set(places)) < 3:
            raise ParameterError(f"{len(set(places))} words on a map", "three at least")
        x = self._unit[places].astype(np.float64)
        x -= x.mean(0)
        left, sizes, _ = np.linalg.svd(x, full_matrices=False)
        points = left[:, :2] * sizes[:2]
        order = {place: i for i, place in enumerate(places)}
        joined = [(self._row(a), self._row(b)) for a, b in links]
        if strange := [pair for pair in joined if not order.keys() >= set(pair)]:
            raise ParameterError(f"A link to {self.words[strange[0][0]]!r} or its other end", "words on the map")
        shares = (sizes[:2] ** 2 / max(float((sizes**2).sum()), 1e-300)).tolist()
        words_on_a_plane(
            [self.words[i] for i in places], points, path, shares, [(order[a], order[b]) for a, b in joined]
        )
        return points

    # Other people's tables

    @classmethod
    def from_table(cls, words: Sequence[str], matrix: Any, outs: Any = None, counts: Any = None) -> Self:
        """Vectors that are there already: a matrix (V, dim), without a density unless ``outs`` and ``counts`` come too.

        Raises:
            DataError: repeated words, numbers that are not finite. ShapeError: another number of rows.
        """
        rows, others = (None if part is None else torch.from_numpy(_numbers(part)) for part in (matrix, outs))
        shape = (len(words), rows.shape[1]) if rows is not None and rows.ndim == 2 else (len(words), -1)
        for part in (rows, others):
            if part is not None and (part.shape != shape or not len(words) or not part.shape[1]):
                raise ShapeError(f"A matrix of shape {tuple(part.shape)} for {len(words)} words", "one row a word")
            if part is not None and not part.isfinite().all():
                row = int((~part.isfinite().all(1)).nonzero()[0])
                raise DataError(f"The vector of {words[row]!r} (row {row}) is not finite", "finite numbers")
        if len(set(words)) < len(words):
            seen: set[str] = set()
            twice = next(word for word in words if word in seen or seen.add(word))  # type: ignore[func-returns-value]
            raise DataError(f"The word {twice!r} comes twice", "different words", "Keep one of them")
        made = cls(dim=shape[1], lower=False)
        known = None if counts is None else torch.as_tensor(np.array(counts, np.int64))
        if (others is None) != (known is None) or (known is not None and known.shape != (len(words),)):
            raise ShapeError("outs= and counts= of other sizes, or one alone", "both, one row a word, or neither")
        made._put(tuple(map(str, words)), rows, others, known)  # type: ignore[arg-type]
        made.report = FitReport((), 0, "imported")
        return made

    @classmethod
    def read(cls, path: str | PathLike, form: formats.Format | None = None) -> Self:
        """A file of word2vec (text, binary) or GloVe; None looks which, .gz is unpacked. It has no density."""
        return cls.from_table(*formats.read_table(path, form))

    @classmethod
    def from_safetensors(cls, path: str | PathLike, tokenizer: str | PathLike, name: str | None = None) -> Self:
        """The input table of a language model on disk, and the pieces of its tokenizer.json as words.

        Arguments:
            name: Of the tensor; None looks for the usual names.
        """
        words = formats.read_words(tokenizer)
        return cls.from_table(words, formats.read_tensor(path, len(words), name))

    @classmethod
    def of(cls, language_model: Any) -> Self:
        """The table of a fitted LanguageModel over text: its tokens are the words, bytes that are no letters as \\xff.

        Raises:
            StructureError: something else.
        """
        event, network = getattr(language_model, "event", None), getattr(language_model, "network", None)
        table = getattr(network, "embedding", None)
        if not isinstance(event, Text) or not isinstance(table, Tensor):
            came = f"The table of {type(language_model).__name__}"
            raise StructureError(came, "a LanguageModel over text", "Embedding.from_table(words, matrix) takes any")
        language_model._check_fitted()
        coder = event.tokenizer
        pieces = [bytes([i]) for i in range(256)] if isinstance(coder, str) else coder.pieces
        words = [piece.decode(errors="backslashreplace") for piece in pieces]
        return cls.from_table(words, table.detach()[: len(words)].numpy())

    def write(self, path: str | PathLike, form: formats.Format = "word2vec") -> None:
        """Writes words and vectors for other programs: "word2vec", "word2vec-binary" or "glove"."""
        self._check_fitted()
        formats.write_table(self.words, self.rows.numpy(), path, form)

    def save(self, folder: str | PathLike) -> Path:
        """Writes everything to a folder, density and options included. Raises StoreError where that can't be."""
        self._check_fitted()
        coded = [word.encode() for word in self.words]
        tensors = {
            "rows": self.rows,
            "words": torch.frombuffer(bytearray(b"".join(coded)), dtype=torch.uint8),
            "sizes": torch.tensor([len(code) for code in coded]),
        }
        if self.outs is not None and self.counts is not None:
            tensors |= {"outs": self.outs, "counts": self.counts}
        options = {**{name: getattr(self, name) for name in _OPTIONS}, "sample": self.sample_share}
        report = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self.report).items()}
        about = {"format": store.FORMAT, "what": "embedding", "arguments": options, "fit": report}
        return store.write(folder, tensors, about)

    @classmethod
    def load(cls, folder: str | PathLike) -> Self:
        """The embedding in a folder; it gives the same answers, bit for bit.

        Raises:
            StoreError: missing, damaged or foreign files.
        """
        about, tensors = store.read(folder)
        try:
            if about.get("what") != "embedding":
                raise ValueError(f"it holds a {about.get('what')!r}")
            made = cls(**about["arguments"])
            ends = np.cumsum(tensors["sizes"].numpy())
            text = tensors["words"].numpy().tobytes()
            words = [text[end - size : end].decode() for end, size in zip(ends, tensors["sizes"].tolist(), strict=True)]
            if tensors["rows"].shape != (len(words), made.dim):
                raise ValueError("its table has another shape")
            made._put(tuple(words), tensors["rows"], tensors.get("outs"), tensors.get("counts"))
            fit: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["fit"].items()}
            made.report = FitReport(**fit)
        except (LookupError, TypeError, ValueError) as problem:
            raise StoreError(f"{folder} is no embedding: {problem!s:.80}", "a folder written by save()") from problem
        return made

    # Inside

    def _put(self, words: tuple[str, ...], rows: Tensor, outs: Tensor | None, counts: Tensor | None) -> None:
        self.words, self.rows, self.outs, self.counts = words, rows, outs, counts
        for name in ("_places", "_unit", "_law"):
            self.__dict__.pop(name, None)

    def _check_fitted(self) -> None:
        if self.report is None:
            raise NotFittedError("This Embedding has not been fitted", "a fitted one", "Call .fit(texts) first")

    @cached_property
    def _places(self) -> dict[str, int]:
        self._check_fitted()
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def _unit(self) -> np.ndarray:
        self._check_fitted()
        rows = self.rows.numpy()
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    @cached_property
    def _law(self) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of words and contexts in float64, and log q."""
        self._check_fitted()
        if self.outs is None or self.counts is None:
            raise StructureError(
                "A density of a table that came without vectors of contexts", "outs= and counts=",
                "Fit an Embedding, or use nearest() and analogy()",
            )  # fmt: skip
        log_q = torch.from_numpy(np.log(learning.noise_of(self.counts.numpy(), self.noise)))
        return self.rows.double(), self.outs.double(), log_q

    def _find(self, word: str) -> int | None:
        """The row of a word as it is written, else in small letters; None where it is unknown."""
        places = self._places
        return places.get(word, places.get(word.lower()) if isinstance(word, str) else None)

    def _row(self, word: str) -> int:
        place = self._find(word) if isinstance(word, str) else None
        if place is None:
            refuse_unknown(word, self.words)
        return place  # type: ignore[return-value]

    def _rows_of(self, words: Sequence[str]) -> list[int]:
        return [self._row(word) for word in words]

    def _best(self, scores: np.ndarray, without: list[int], k: int) -> list[tuple[str, float]]:
        return [(self.words[i], float(scores[i])) for i in analogies.ranked(scores, without, k)]

    def __repr__(self) -> str:
        state = f"{len(self.words)} words, dim {self.dim}" if self.words else f"dim={self.dim}, not fitted"
        return f"<Embedding: {state}>"


def _listed(words: Any) -> list[str]:
    if isinstance(words, str):
        return [words]
    if not isinstance(words, Iterable):
        raise DataError(f"Words {words!r:.60}", "a word, or a list of words")
    return list(words)


def _numbers(values: Any) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float32)
    except (TypeError, ValueError) as problem:
        raise DataError(f"A {type(values).__name__} for vectors: {problem!s:.80}", "numbers") from problem


def _is_lists(x: Any) -> bool:
    return isinstance(x, list | tuple) and any(isinstance(text, list | tuple) for text in x)


def _check_whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ParameterError(f"{name}={value!r}", f"a whole number from {least}" + (f" to {most}" * (most < 2**31)))
