"""Contrastive: two encoders whose codes agree for what belongs together. Similarities, which are no likelihoods."""

import math
from collections.abc import Sequence
from typing import Any, NoReturn, Self

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from probgen.errors import DataError, ParameterError, ShapeError, StructureError
from probgen.events import Array, Event, Parts, Record, Table, Text, row_hash, take
from probgen.features import image_shape
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.contrastive import codes
from probgen.models.contrastive.retrieval import Retrieval, recalls
from probgen.nn import reset
from probgen.training import Player, Schedule, of_kept_state, train

__all__ = ["Contrastive"]

_HOTTEST = 100.0  # of the scale, as in the paper
_COLD = 0.07  # temperature to begin with
_ROWS = 1024  # encoded at once


class Contrastive(GenerativeModel):
    """Similarity of the two parts of a record, learnt by telling true pairs from shuffled ones.

    Each part has an encoder to unit vectors f(a) and g(b) of ``dim`` numbers; s(a, b) = f(a) g(b) / temperature, with a
    learned temperature. Trained on batches by the symmetric InfoNCE loss: find the own partner among all of a batch.

    ``log_prob`` is s(a, b) of each row, kind score. It is no likelihood: at the optimum it is log p(a, b) / (p(a) p(b))
    but for an unknown constant, so scores rank pairs among themselves, and adding them to likelihoods is refused. The
    model draws nothing. What it is for: ``retrieve``, ``classify``, ``similarity``.

    Arguments:
        event: A Record of two parts, each an Array, a Table or Text.
        dim: Numbers of a code.
        hidden: Widths of the hidden layers of arrays and tables.
        channels: Of convolutions, for images; () for none.
        text: Width of the recurrent net that reads text.

    Radford et al. (2021), "Learning transferable visual models from natural language supervision"; van den Oord, Li and
    Vinyals (2018) on what the loss estimates.
    """

    def __init__(
        self,
        event: Event,
        dim: int = 64,
        hidden: Sequence[int] = (256,),
        channels: Sequence[int] = (),
        text: int = 64,
    ) -> None:
        super().__init__(event)
        sizes = {"dim": [dim], "text": [text], "hidden": list(hidden), "channels": list(channels)}
        for name, values in sizes.items():
            if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
                raise ParameterError(f"{name}={values}", "whole numbers, at least 1")
        self.dim, self.hidden, self.channels, self.text = dim, tuple(hidden), tuple(channels), text
        images = {name: self.channels if image_shape(part) else () for name, part in self._parts.items()}
        self.nets = nn.ModuleDict(
            {f"of_{name}": codes.code_for(p, dim, self.hidden, images[name], text) for name, p in self._parts.items()}
        )
        self.heat = nn.Parameter(torch.tensor(0.0))

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Record) or len(event.parts) != 2:
            return "it compares the two parts of a Record"
        odd = [part for part in event.parts.values() if not isinstance(part, Array | Table | Text)]
        return f"it reads arrays, tables and text, not {type(odd[0]).__name__}" if odd else None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        parts = getattr(event, "parts", {}).values()
        large = any((image := image_shape(part)) and min(image[1:]) >= 16 for part in parts)
        return cls(event, **{**({"channels": (32, 64), "hidden": (128,)} if large else {}), **options})

    @property
    def _parts(self) -> dict[str, Event]:
        return dict(self.event.parts)  # type: ignore[attr-defined]

    @property
    def names(self) -> tuple[str, str]:
        """Of the two parts, in the event's order."""
        first, second = self._parts
        return first, second

    @property
    def temperature(self) -> float:
        """What similarities of unit vectors are divided by."""
        return 1 / float(self.scale().detach())

    def scale(self) -> Tensor:
        """1 / temperature, at most 100."""
        return (self.heat.exp() / _COLD).clamp(max=_HOTTEST)

    # The verbs

    def _fit(
        self,
        x: Parts,
        given: None,
        *,
        generator: torch.Generator,
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        validation: float = 0.1,
        patience: int = 12,
        ema: float = 0.0,
        checkpoint: str | None = None,
        every: int = 500,
        resume: bool = False,
        progress: bool | None = None,
    ) -> FitReport:
        """Symmetric InfoNCE. ``budget`` in seconds, unless ``steps`` is given; rows that lack a part teach nothing.

        Arguments:
            batch_size: Rows a step, among whom each finds its partner: more are harder, and less noisy.

        Raises:
            DataError: fewer than two rows with both parts.
        """
        whole = self._whole(x)
        if int(whole.sum()) < 2:
            came = f"{int(whole.sum())} rows of {len(x)} have both parts"
            raise DataError(came, "two at least", "Pairs are learnt from pairs")
        pairs = take(x, whole)
        plan = Schedule(
            steps=steps, budget=budget, batch_size=max(batch_size, 2), learning_rate=learning_rate,
            weight_decay=weight_decay, validation=validation if len(pairs) >= 50 else 0.0, patience=patience, grace=0.3,
            ema=ema, checkpoint=checkpoint, every=every, resume=resume,
        )  # fmt: skip
        if not resume:
            reset(self, generator)
        for name in self.names:
            self.nets[f"of_{name}"].measure(pairs[name])  # type: ignore[operator]
        packed = [self.nets[f"of_{name}"].pack(pairs[name]) for name in self.names]  # type: ignore[operator]
        players = [Player(codes.InfoNCE(self, packed[0].shape[1]), list(self.parameters()), whole=True)]
        report = train(self, players, torch.cat(packed, 1), plan, generator=generator, progress=progress)
        left = len(x) - len(pairs)
        told = (f"{left} rows lack a part and were left out",) if left else ()
        report = of_kept_state(report, "training gained nothing on held-out rows") if plan.validation else report
        return FitReport(**{**vars(report), "notes": (*report.notes, *told)})

    def _whole(self, x: Parts) -> Tensor:
        """Which rows have both parts, (n,), bool."""
        return torch.stack([x.seen[name] for name in self.names]).all(0)

    def _log_prob(self, x: Parts, given: None, *, generator: torch.Generator) -> LogProb:
        whole = self._whole(x)
        scores = torch.full((len(x),), math.nan, dtype=torch.float64)
        if bool(whole.any()):
            scores[whole] = self._similarities(take(x, whole))
        kinds = [Kind.SCORE if one else Kind.UNAVAILABLE for one in whole.tolist()]
        about: dict[str, Any] = {"by": f"InfoNCE(dim={self.dim})", "target": "InfoNCE", "measure": "similarity"}
        if not bool(whole.all()):
            told = {"reason": "one of the two parts is missing", "instead": "MultimodalVAE scores the other alone"}
            about |= {name: np.array([None if one else text for one in whole]) for name, text in told.items()}
        return LogProb(kinds, scores, **about)

    def _similarities(self, x: Parts) -> Tensor:
        first, second = (self._encoded(name, x[name]) for name in self.names)
        return (first * second).sum(1) * self.scale().to(torch.float64)

    def model(self, x: Parts | None = None, given: None = None, n: int = 1) -> None:
        """A factor of the similarities: there is no program that draws."""
        if x is None:
            self._refuse_draws()
        with pyro.plate("rows", len(x)):
            pyro.factor("x", self._similarities(x))

    def _sample(self, n: int, given: None, *, generator: torch.Generator) -> NoReturn:
        self._refuse_draws()

    def _refuse_draws(self) -> NoReturn:
        raise StructureError(
            "Draws from a Contrastive",
            "a model that draws",
            "It only compares; MultimodalVAE draws pictures and captions",
        )

    # What codes are for

    @torch.no_grad()
    def encode(self, name: str, x: Any) -> np.ndarray:
        """Unit vectors of one part, float64 (n, dim).

        Arguments:
            name: Of the part.
            x: Its data, n rows.

        Raises:
            ParameterError: no such part.
        """
        self._check_fitted()
        if name not in self._parts:
            raise ParameterError(f"The part {name!r}", f"one of {', '.join(self.names)}")
        return self._encoded(name, self._parts[name].check(x).x).numpy()

    def similarity(self, first: Any, second: Any) -> np.ndarray:
        """s(a_i, b_j) of all pairs, float64 (n, m), of data of the first and of the second part (images, captions)."""
        one, other = (self.encode(name, x) for name, x in zip(self.names, (first, second), strict=True))
        return one @ other.T / self.temperature

    def classify(self, first: Any, second: Sequence[Any], prior: Sequence[float] | None = None) -> np.ndarray:
        """Zero-shot classes: which of some captions each image has, as probabilities (n, m) that sum to 1.

        Softmax of the similarities, times the prior: at the optimum of the loss that is p(b | a) over these captions.

        Arguments:
            first: Data of the first part, n rows (images).
            second: Candidates of the second part, m rows (captions).
            prior: How frequent each candidate is; None counts all alike.

        Raises:
            ShapeError, ParameterError: another number of priors, or negative ones.
        """
        scores = self.similarity(first, second)
        weights = np.ones(scores.shape[1]) if prior is None else np.asarray(prior, dtype=np.float64)
        if weights.shape != (scores.shape[1],):
            raise ShapeError(f"prior of shape {weights.shape}", f"one number a candidate, ({scores.shape[1]},)")
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise ParameterError(f"prior={weights.tolist()!r:.80}", "frequencies from 0, some above")
        weighted = np.exp(scores - scores.max(1, keepdims=True)) * weights
        return weighted / weighted.sum(1, keepdims=True)

    def retrieve(self, first: Any, second: Any, k: Sequence[int] = (1, 5, 10)) -> Retrieval:
        """Recall at k both ways: is the own caption among the k nearest to an image, an own image among those to it?

        Equal candidates count once, and every candidate that comes with the query somewhere in these rows is right.

        Arguments:
            first, second: Data of the two parts, n rows each: pairs.

        Raises:
            ShapeError: parts of different lengths.
        """
        contents = [row_hash(self._parts[name].check(x).x) for name, x in zip(self.names, (first, second), strict=True)]
        if len(contents[0]) != len(contents[1]):
            raise ShapeError(f"Parts of {len(contents[0])} and {len(contents[1])} rows", "pairs: as many of each")
        scores = self.similarity(first, second)
        (rows, a), (columns, b) = (np.unique(part, return_index=True, return_inverse=True)[1:] for part in contents)
        scores, right = scores[np.ix_(rows, columns)], np.zeros((len(rows), len(columns)), dtype=bool)
        right[a, b] = True
        ways = (f"{self.names[1]} given {self.names[0]}", f"{self.names[0]} given {self.names[1]}")
        asked = {way: recalls(s, r, k) for way, s, r in zip(ways, (scores, scores.T), (right, right.T), strict=True)}
        pool = dict(zip(ways, (len(columns), len(rows)), strict=True))
        found, chance = ({way: both[i] for way, both in asked.items()} for i in range(2))
        return Retrieval(found, chance, pool, dict(zip(ways, (len(rows), len(columns)), strict=True)))

    def _encoded(self, name: str, value: Any) -> Tensor:
        """Unit vectors of checked data, float64 (n, dim), batch by batch."""
        net = self.nets[f"of_{name}"]
        packed = net.pack(value)  # type: ignore[operator]
        return torch.cat([net(part) for part in packed.split(_ROWS)]).to(torch.float64)
