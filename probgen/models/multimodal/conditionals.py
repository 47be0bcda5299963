"""log p(a | b): some parts given others, and posteriors over finitely many choices."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probgen.estimate.auto import Ladder
from probgen.estimate.hmc import Plan
from probgen.estimate.weights import Weights, at_least, call, log_mean, pareto_k, quality, reliable
from probgen.events import Parts, take
from probgen.logprob import Kind, LogProb
from probgen.models.multimodal import posteriors
from probgen.models.multimodal.posteriors import Draws

if TYPE_CHECKING:
    from probgen.models.multimodal.family import MultimodalVAE

__all__ = ["Choice", "Defensive", "SelfNormalised", "choose", "united"]


_CHAINS = 32
_PLAN = Plan(_CHAINS, 60, 2)


@dataclass(frozen=True, repr=False)
class SelfNormalised:
    """log p(a | b) as the logarithm of a ratio of weighted means over the same draws of z. Kind estimate.

    p(a | b) = E[p(a | z) | b]: draws from the guide of b, the guide of a and b, and the prior together, weighed against
    their mixture; the numerator has weights p(a | z) p(b | z) p(z) / q(z), the denominator p(b | z) p(z) / q(z). Rows
    whose effective sample sizes stay below ``enough`` try guides at the posteriors' modes; then ends of 32 annealed
    chains for b alone, good enough where both sums have an effective sample size of 8; and at last the difference of
    log p(a, b) by the ladder and log p(b): each is a lower bound, so the side of the error is unknown. Standard errors
    are the delta method's, NaN where the weights forbid to trust them (Pareto k above 0.5, chains worth less than 16).

    Arguments:
        samples: Draws a row.
        enough: Effective sample size of both sums.
        climb: Whether rows below go on to chains and ladders.

    Diagnostics, a row: ``ess``, the smaller of the two; ``pareto_k``, the larger; ``rung``: 1 for plain guides, 2 for
    refined ones, 3 for chains, 4 for ladders. Owen (2013), "Monte Carlo theory, methods and examples", chapter 9.
    """

    samples: int = 1500
    enough: int = 100
    climb: bool = True

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 6)
        at_least("enough", self.enough, 2)

    def __repr__(self) -> str:
        return call(self, "samples")

    def __call__(self, model: Any, x: Parts, given: Parts, *, generator: torch.Generator) -> LogProb:
        n, whole = len(x), united(x, given)
        names = ("nats", "stderr", "ess", "pareto_k", "rung")
        found = {name: torch.full((n,), math.nan, dtype=torch.float64) for name in names}
        rows = torch.arange(n)
        for rung in (1, 2):
            self._weigh(model, take(whole, rows), take(given, rows), rung, found, rows, generator)
            rows = rows[found["ess"][rows] < self.enough]
            if not len(rows):
                break
        for some in rows.split(64) if self.climb and len(rows) else ():
            self._anneal(model, take(whole, some), take(given, some), found, some, generator)
        rows = rows[found["ess"][rows] < _CHAINS // 4]
        if len(rows) and self.climb:
            self._climb(model, take(whole, rows), take(given, rows), found, rows, generator)
        columns = {name: values.numpy() for name, values in found.items()}
        nats, stderr = columns.pop("nats"), columns.pop("stderr")
        streams = Weights(model, whole, None, generator).streams
        return LogProb(
            Kind.ESTIMATE, nats, by=self._by(found["rung"]), stderr=stderr, draws=streams, diagnostics=columns
        )

    def _by(self, rungs: Tensor) -> str:
        names = {repr(self): rungs < 3, f"AIS(chains={_CHAINS}) of b": rungs == 3, "Ladder - Defensive": rungs == 4}
        return " | ".join(name for name, rows in names.items() if bool(rows.any()))

    def _weigh(
        self, model: "MultimodalVAE", whole: Parts, given: Parts, rung: int, found: dict[str, Tensor], rows: Tensor,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        sources = [posteriors.proposal(model, x, generator, refined=rung == 2) for x in (given, whole)]
        below = posteriors.drawn(model, given, sources, self.samples, generator, f"rung{rung}")
        rest = _without(whole, given)
        above = below.log_w + posteriors.log_likelihood(model, rest, below.z)
        nats, stderr = ratio(above, below.log_w)
        k = torch.maximum(pareto_k(above), pareto_k(below.log_w))
        found["nats"][rows], found["pareto_k"][rows], found["rung"][rows] = nats, k, float(rung)
        found["stderr"][rows] = torch.where(k <= 0.5, stderr, math.nan)
        found["ess"][rows] = torch.minimum(posteriors.effective(above), posteriors.effective(below.log_w))

    def _anneal(
        self, model: "MultimodalVAE", whole: Parts, given: Parts, found: dict[str, Tensor], rows: Tensor,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        below = posteriors.annealed(model, given, _PLAN, generator)
        above = below.log_w + posteriors.log_likelihood(model, _without(whole, given), below.z)
        nats, stderr = ratio(above, below.log_w)
        ess = torch.minimum(posteriors.effective(above), posteriors.effective(below.log_w))
        found["nats"][rows], found["ess"][rows], found["rung"][rows] = nats, ess, 3.0
        found["stderr"][rows] = torch.where(ess >= _CHAINS // 2, stderr, math.nan)
        found["pareto_k"][rows] = math.nan

    def _climb(
        self, model: "MultimodalVAE", whole: Parts, given: Parts, found: dict[str, Tensor], rows: Tensor,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        above = Ladder()(model, whole, None, generator=generator)
        below = Defensive()(model, given, None, generator=generator)
        found["nats"][rows] = torch.from_numpy(above.nats - below.nats)
        found["stderr"][rows] = torch.from_numpy(np.hypot(_errors(above), _errors(below)))
        found["rung"][rows] = 4.0


@dataclass(frozen=True, repr=False)
class Defensive:
    """log p of some parts by draws from their guide and the prior together, the others integrated out. Kind lower.

    Where what is seen says little, as a caption does, the posterior is about as wide as the prior, and no single normal
    covers it. Rows that a pilot of as many draws does not trust (as of ``IWAE``) climb the ladder.

    Arguments:
        samples: Draws a row.

    Hesterberg (1995), "Weighted average importance sampling and defensive mixture distributions".
    """

    samples: int = 2000

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 50)

    def __repr__(self) -> str:
        return call(self, "samples")

    def __call__(self, model: Any, x: Parts, given: Any = None, *, generator: torch.Generator) -> LogProb:
        source = posteriors.proposal(model, x, generator)
        first = max(50, self.samples // 10)
        look = posteriors.drawn(model, x, [source], first, generator, "look").log_w
        rows = (quality(look)[0] * self.samples / first >= 400).nonzero()[:, 0]
        nats, stderr, ess, k = torch.full((4, len(x)), math.nan, dtype=torch.float64)
        if len(rows):
            own, part = model, take(x, rows)
            source = posteriors.proposal(own, part, generator)
            pilot = posteriors.drawn(own, part, [source], self.samples, generator, "pilot").log_w
            main = posteriors.drawn(own, part, [source], self.samples, generator, "main").log_w
            ess[rows], k[rows] = quality(pilot)
            nats[rows], error = log_mean(main)
            stderr[rows] = torch.maximum(error, log_mean(pilot)[1])
        left = (~reliable(ess, k, self.samples)).nonzero()[:, 0]
        samples = torch.full_like(nats, self.samples)
        if len(left):
            climbed = Ladder()(model, take(x, left), None, generator=generator)
            nats[left], stderr[left] = torch.from_numpy(climbed.nats), torch.from_numpy(_errors(climbed))
            for column, name in ((ess, "ess"), (k, "pareto_k"), (samples, "samples")):
                column[left] = torch.from_numpy(climbed.diagnostics[name])
        by = [repr(self)] * (len(left) < len(x)) + ([climbed.by] if len(left) else [])
        rows_of = {"ess": ess.numpy(), "pareto_k": k.numpy(), "samples": samples.numpy()}
        streams = Weights(model, x, None, generator).streams
        return LogProb(Kind.LOWER, nats, by=" | ".join(by), stderr=stderr.numpy(), draws=streams, diagnostics=rows_of)


def _errors(answer: LogProb) -> np.ndarray:
    return np.zeros(len(answer)) if answer.stderr is None else np.asarray(answer.stderr)


def ratio(above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """log (sum exp above / sum exp below) of log weights over the same draws (S, n), and its delta-method error."""
    samples, spread = len(above), above.softmax(0) - below.softmax(0)
    error = (samples / (samples - 1) * spread.square().sum(0)).sqrt()
    return above.logsumexp(0) - below.logsumexp(0), error


class Choice(NamedTuple):
    """A posterior over finitely many values of a part, row by row.

    Arguments:
        choices: The values, in order.
        p: (n, choices), rows sum to 1.
        stderr: Monte Carlo standard error of each, (n, choices); infinite where too few draws carry the weight.
        ess: Effective sample size of the draws of z behind each row, (n,).
    """

    choices: list
    p: np.ndarray
    stderr: np.ndarray
    ess: np.ndarray

    def best(self) -> list:
        """The likeliest value of each row."""
        return [self.choices[i] for i in self.p.argmax(1)]

    def grouped(self, labels: Any) -> "Choice":
        """Summed by a label of each choice: the posterior over answers to a question about the part.

        Arguments:
            labels: One a choice, such as the answer that it gives; None leaves a choice out, and the rest is divided
                by what remains.
        """
        labels = list(labels)
        names = list(dict.fromkeys(label for label in labels if label is not None))
        member = np.array([[label == name for name in names] for label in labels], dtype=float)
        p = self.p @ member
        total = p.sum(1, keepdims=True)
        stderr = np.minimum(np.sqrt(np.square(self.stderr) @ member), self.stderr @ member)
        return Choice(names, p / total, stderr / total, self.ess)


def choose(
    model: "MultimodalVAE", part: str, choices: Parts, given: Parts | None, samples: int, enough: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """p(choice | given), normalised over the choices, its standard error, both (n, choices), and the ESS (n,)."""
    if given is None:
        z = model.latent.draw(samples, generator)[:, None].to(torch.float64)
        draws = Draws(z, torch.zeros(samples, 1, dtype=torch.float64))
        return *_shares(model, part, choices, draws), torch.full((1,), float(samples), dtype=torch.float64)
    p = torch.zeros(len(given), len(choices), dtype=torch.float64)
    stderr, ess = torch.zeros_like(p), torch.zeros(len(given), dtype=torch.float64)
    rows = torch.arange(len(given))
    for rung in (1, 2, 3):
        for some in rows.split(64):
            draws = _draws(model, take(given, some), rung, samples, generator)
            p[some], stderr[some] = _shares(model, part, choices, draws)
            ess[some] = posteriors.effective(draws.log_w)
        rows = rows[ess[rows] < (enough if rung == 1 else 0.3 * enough)]
        if not len(rows):
            break
    return p, stderr, ess


def _draws(model: "MultimodalVAE", given: Parts, rung: int, samples: int, generator: torch.Generator) -> Draws:
    if rung == 3:
        return posteriors.annealed(model, given, _PLAN, generator)
    source = posteriors.proposal(model, given, generator, refined=rung == 2)
    return posteriors.drawn(model, given, [source], samples, generator, f"choices{rung}")


def _shares(model: "MultimodalVAE", part: str, choices: Parts, draws: Draws) -> tuple[Tensor, Tensor]:
    """Of each choice, (n, C), and the delta-method errors, from weighted draws of z."""
    shares = draws.log_w.softmax(0)
    likelihood = _each(model, part, choices, draws.z, shares)
    top = likelihood.amax((0, 2))
    masses = (likelihood - top[:, None]).exp()  # (S, n, C)
    total = torch.einsum("sn,snc->nc", shares, masses)
    p = total / total.sum(1, keepdim=True)
    gain = shares[..., None] * (masses - p * masses.sum(-1, keepdim=True)) / total.sum(1)[:, None]
    samples = len(shares)
    return p, (samples / (samples - 1) * gain.square().sum(0)).sqrt()


def _each(model: "MultimodalVAE", part: str, choices: Parts, z: Tensor, shares: Tensor) -> Tensor:
    """log p(choice | z), (S, n, C), float64; -inf for draws that carry next to no weight."""
    net = dict(model.named_parts())[part]
    packed = net.pack(choices[part], len(choices))
    heavy = shares > 1e-7 * shares.amax(0)
    found = torch.full((*z.shape[:-1], len(choices)), -math.inf, dtype=torch.float64)
    chosen = z[heavy].to(model.dtype)
    step = max(1, (1 << 22) // (net.cost * len(choices)))
    parts = [
        net.nats(some[:, None].expand(-1, len(choices), -1), packed).to(torch.float64) for some in chosen.split(step)
    ]
    found[heavy] = torch.cat(parts)
    return found


def united(x: Parts, given: Parts) -> Parts:
    """The parts of both, which share none."""
    values, seen = {}, {}
    for name in x:
        source = x if x[name] is not None else given
        values[name], seen[name] = source[name], source.seen[name]
    return Parts(values, seen)


def _without(whole: Parts, given: Parts) -> Parts:
    """What is not given."""
    values = {name: None if given[name] is not None else value for name, value in whole.items()}
    return Parts(values, {name: seen & (given[name] is None) for name, seen in whole.seen.items()})
