"""Questions about what was not seen: the most probable text, and what stands between two pieces."""

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError, ZeroEvidenceError
from probgen.events import Ragged
from probgen.logprob import LogProb
from probgen.models.language.choosing import draw
from probgen.models.language.decoding import Stepper
from probgen.models.language.scoring import Reading, Windows, score
from probgen.models.language.texts import bytes_of, refuse_no_text, string

if TYPE_CHECKING:
    from probgen.models.language.family import LanguageModel

__all__ = ["Beams", "Infill", "beam", "infill"]


@dataclass(frozen=True, eq=False)
class Beams:
    """What a beam search found, the most probable first.

    Arguments:
        texts: Whole texts, or what follows the prefix; each came to its end.
        scores: Their log_prob (of what follows, given the prefix), scored again from the text.
        open: Pieces that were still open at the last step, most probable first.
    """

    texts: list[str]
    scores: LogProb | None
    open: list[str]


def beam(model: "LanguageModel", prefix: Ragged | None, width: int, length: int) -> Beams:
    """See LanguageModel.beam. Paths whose bytes are no Unicode are left out."""
    refuse_no_text(model, "A beam search")
    for name, value in {"width": width, "length": length}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name}={value!r}", "a whole number, at least 1")
    ended, paths, totals = _paths(model, prefix, width, length)
    texts = [text for path in ended if (text := string(model, path))]
    texts = list(dict.fromkeys(texts))
    still = [bytes_of(model, path).decode(errors="replace") for _, path in sorted(zip(-totals, paths, strict=True))]
    if not texts:
        return Beams([], None, still)
    nats, by = model._totals(model.event.check(texts).x, prefix)
    order = np.argsort(-nats.numpy(), kind="stable")[:width]
    of, checked = "x" if prefix is None else "x|prefix", model.event.check([texts[i] for i in order])
    scores = LogProb(model._kind, nats[order], by=by, of=of, event=checked.about, measure=checked.about.measure)
    return Beams([texts[i] for i in order], scores, still)


def _paths(
    model: "LanguageModel", prefix: Ragged | None, width: int, length: int
) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
    """Symbols of paths that ended, and of those still open with their totals, after ``length`` steps."""
    stepper, end = model._stepper(1), model.alphabet.size
    if prefix is not None:
        stepper.read(prefix.values)
    totals, paths = np.zeros(1), [[]]  # type: tuple[np.ndarray, list[list[int]]]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(length):
        found = totals[:, None] + stepper.log_pmf().numpy()
        if len(paths[0]):
            ended += [(float(total), path) for total, path in zip(found[:, end], paths, strict=True)]
        ended = sorted(ended, key=lambda one: -one[0])[:width]
        best = np.argsort(-found[:, :end].ravel(), kind="stable")[:width]
        rows, symbols = np.divmod(best, end)
        totals = found[rows, symbols]
        paths = [[*paths[row], int(symbol)] for row, symbol in zip(rows, symbols, strict=True)]
        if len(ended) == width and totals[0] < ended[-1][0]:  # what is open can only become less probable
            break
        stepper.keep(torch.from_numpy(rows))
        stepper.push(symbols)
    else:
        last = totals + stepper.log_pmf().numpy()[:, end]
        ended += [(float(total), path) for total, path in zip(last, paths, strict=True)]
    return [path for _, path in sorted(ended, key=lambda one: -one[0])], paths, totals


@dataclass(frozen=True, eq=False)
class Infill:
    """p(middle | before, after), over middles of one length.

    Arguments:
        middles: What may stand between, most probable first: texts, or arrays of symbol ids.
        log_prob: Of each, given both sides, (n,); under SMC an estimate, equal middles put together.
        log_evidence: log p(before, any middle of that length, after, end), in nats; under SMC the log of an unbiased
            estimate.
        by: "enumeration", or how many particles.
        ess: Effective sample size of the last weights; None where nothing was drawn.
    """

    middles: list
    log_prob: np.ndarray
    log_evidence: float
    by: str
    ess: float | None


def infill(
    model: "LanguageModel", before: Ragged, after: Ragged, length: int, particles: int, limit: int,
    generator: torch.Generator,
) -> Infill:  # fmt: skip
    """See LanguageModel.infill.

    Raises:
        ParameterError: a length or a number of particles below 1, or a piece that lacks.
        ZeroEvidenceError: no middle of that length joins the two.
    """
    for name, value in {"length": length, "particles": particles}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name}={value!r}", "a whole number, at least 1")
    if before is None or after is None or model.alphabet.length is not None:
        raise ParameterError("infill without a piece before and one after", "two sequences", "sample(n, given=before)")
    size = model.alphabet.size
    if size**length <= limit:
        ids = torch.tensor(list(itertools.product(range(size), repeat=length)))
        joint = _whole(model, before.values, ids, after.values)
        return _infill(model, ids, joint, math.nan, "enumeration", None)
    return _sequential(model, before.values, after.values, length, particles, generator)


def _whole(model: "LanguageModel", before: Tensor, middles: Tensor, after: Tensor, skip: int = 0) -> Tensor:
    """log p(before, middle, after, end) of each middle (n, k), without the first ``skip`` symbols' share."""
    n = len(middles)
    rows = torch.cat([before.expand(n, -1), middles, after.expand(n, -1)], 1)
    reading = model._reading(Ragged(rows.flatten(), torch.full((n,), rows.shape[1])))
    nats = score(model.network, reading, Windows.of(reading, model.window, model.stride), model.alphabet)
    return nats.reshape(n, -1)[:, skip:].sum(1)


def _infill(
    model: "LanguageModel", ids: Tensor, weights: Tensor, evidence: float, by: str, ess: float | None
) -> Infill:
    total = weights.logsumexp(0)
    if total == -torch.inf:
        raise ZeroEvidenceError("No middle of that length joins the two pieces", "pieces that the model can join")
    unique, places = torch.unique(ids, dim=0, return_inverse=True)
    mass = torch.zeros(len(unique), dtype=torch.float64).index_add_(0, places, (weights - total).exp())
    order = mass.argsort(descending=True, stable=True)
    rows = unique[order]
    middles = rows.numpy() if not model.alphabet.ends else [
        bytes_of(model, row).decode(errors="replace") for row in rows.tolist()
    ]  # fmt: skip
    evidence = float(total) if math.isnan(evidence) else evidence
    return Infill(list(middles), mass[order].log().numpy(), evidence, by, ess)


def _sequential(
    model: "LanguageModel", before: Tensor, after: Tensor, length: int, particles: int, generator: torch.Generator
) -> Infill:
    """Sequential Monte Carlo: after k of K symbols the target is p(middle_k | before) p(after | .)^(k / K).

    Symbols are proposed by the model; particles are drawn again, systematically, where their effective number falls
    below half (Del Moral, Doucet and Jasra 2006).
    """
    stepper = Stepper(model, particles)
    stepper.read(before)
    path = torch.empty(particles, 0, dtype=torch.int64)
    weights, evidence = torch.zeros(particles, dtype=torch.float64), _open(model, before)
    looked = torch.zeros(particles, dtype=torch.float64)
    for step in range(1, length + 1):
        logits = stepper.log_pmf()
        allowed = logits[:, :-1].logsumexp(1)
        logits[:, -1] = -torch.inf  # a middle has no end; what that leaves out is weighed
        symbols = draw(logits, torch.rand(particles, generator=generator, dtype=torch.float64))
        path = torch.cat([path, symbols[:, None]], 1)
        ahead = _whole(model, before, path, after, len(before) + step) * (step / length)
        weights, looked = weights + allowed + ahead - looked, ahead
        if step < length:
            if _ess(weights) < particles / 2:
                rows = _systematic(weights, generator)
                evidence += float(weights.logsumexp(0)) - math.log(particles)
                path, looked, symbols = path[rows], looked[rows], symbols[rows]
                weights = torch.zeros_like(weights)
                stepper.keep(rows)
            stepper.push(symbols)
    evidence += float(weights.logsumexp(0)) - math.log(particles)
    return _infill(model, path, weights, evidence, f"SMC, {particles} particles", _ess(weights))


def _open(model: "LanguageModel", before: Tensor) -> float:
    reading = Reading.of(Ragged(before, torch.tensor([len(before)])), model.alphabet.size, False)
    return float(score(model.network, reading, Windows.of(reading, model.window, model.stride), model.alphabet).sum())


def _ess(weights: Tensor) -> float:
    shares = weights.softmax(0)
    return float(1 / shares.square().sum())


def _systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    n = len(weights)
    points = (torch.arange(n, dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)) / n
    return torch.searchsorted(weights.softmax(0).cumsum(0), points).clamp_max(n - 1)
