"""Weighted draws of p(z | what is seen): from guides and the prior together, annealed where those fall short."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probgen.estimate.hmc import Plan
from probgen.estimate.refine import refine
from probgen.estimate.weights import Frame, Weights, standard_normal
from probgen.events import Parts

if TYPE_CHECKING:
    from probgen.models.multimodal.family import MultimodalVAE

__all__ = ["Draws", "Proposal", "annealed", "drawn", "effective", "prior_draws", "proposal"]


class Draws(NamedTuple):
    """z (S, n, latent_dim) and log weights (S, n), float64, whose mean weight estimates p(what is seen)."""

    z: Tensor
    log_w: Tensor


class Proposal(NamedTuple):
    """A guide's normal over z of each row, in a frame of its own where that is better; float64."""

    loc: Tensor
    scale: Tensor
    frame: Frame | None

    def place(self, noise: Tensor) -> Tensor:
        """z (S, n, D) of standard normal noise."""
        u = noise.to(torch.float64) if self.frame is None else self.frame.move(noise)
        return self.loc + self.scale * u

    def log_prob(self, z: Tensor) -> Tensor:
        """Of z (S, n, D): (S, n)."""
        u, volume = (z - self.loc) / self.scale, self.scale.log().sum(-1)
        if self.frame is None:
            return standard_normal(u) - volume
        back = torch.linalg.solve(self.frame.factor, (u - self.frame.centre)[..., None])[..., 0]
        return standard_normal(back) - volume - self.frame.log_volume


def proposal(model: "MultimodalVAE", x: Parts, generator: torch.Generator, refined: bool = False) -> Proposal:
    """The guide of what x holds; ``refined``: moved to the posterior's mode where that promises better weights."""
    loc, scale = (part.to(torch.float64) for part in model._posterior(x))
    frame = refine(Weights(model, x, None, generator), torch.arange(len(x))).frame if refined else None
    return Proposal(loc, scale, frame)


def drawn(
    model: "MultimodalVAE", x: Parts, sources: Sequence[Proposal], samples: int, generator: torch.Generator,
    salt: str = "mixed",
) -> Draws:  # fmt: skip
    """Draws from the equal mixture of proposals and the prior, weighted towards p(z | x).

    Every source gives its share of the draws, and each draw is weighed against the whole mixture (Veach and Guibas
    1995, "balance heuristic"; Owen and Zhou 2000): where what is seen says little the prior covers the posterior, and
    no weight exceeds p(x | z) times the number of sources, the prior included.
    """
    streams, each = Weights(model, x, None, generator), max(2, samples // (len(sources) + 1))
    parts = [source.place(streams.noise(each, f"{salt}{i}")) for i, source in enumerate(sources)]
    z = torch.cat([*parts, prior_draws(model, streams, each, salt)])
    log_p = log_prior(model, z)
    log_q = torch.stack([log_p, *(source.log_prob(z) for source in sources)]).logsumexp(0) - math.log(len(sources) + 1)
    return Draws(z, log_likelihood(model, x, z) + log_p - log_q)


def annealed(model: "MultimodalVAE", x: Parts, plan: Plan, generator: torch.Generator) -> Draws:
    """Ends of annealed chains from the guide to p(z | x), with their weights (Neal 2001)."""
    streams = Weights(model, x, None, generator)
    z = torch.zeros(plan.chains, len(x), model.latent_dim, dtype=torch.float64)
    log_w = torch.zeros(plan.chains, len(x), dtype=torch.float64)
    for rows, bridge in plan.bridges(streams):
        steps = bridge.forward("posterior pilot").steps
        crossing = bridge.forward("posterior", steps)
        u = crossing.last if bridge.scale is None else crossing.last * bridge.scale
        z[:, rows] = bridge.rows.place(u) if bridge.scale is not None else u
        log_w[:, rows] = crossing.log_w
    return Draws(z, log_w)


def prior_draws(model: "MultimodalVAE", streams: Weights, samples: int, salt: str) -> Tensor:
    """(samples, n, latent_dim), float64, each row's from its own stream."""
    private = torch.Generator()
    keys = streams.keys(f"prior {salt}")
    found = [model.latent.draw(samples, private.manual_seed(int(key))) for key in keys]
    return torch.stack(found, 1).to(torch.float64)


def log_prior(model: "MultimodalVAE", z: Tensor) -> Tensor:
    return model.latent.log_prob(z.to(model.dtype)).to(torch.float64)


def log_likelihood(model: "MultimodalVAE", x: Any, z: Tensor) -> Tensor:
    """log p(x | z) of what x holds, z (S, n, D): (S, n), float64, in pieces that fit in the cache."""
    packed, step = model._packed(x), max(1, (1 << 22) // (model.draw_cost * max(len(x), 1)))
    found = []
    for some in z.split(step):
        total = torch.zeros(some.shape[:-1], dtype=torch.float64)
        for name, part in model.named_parts():
            if x[name] is not None:
                total = total + part.nats(some.to(model.dtype), packed[name]).to(torch.float64)
        found.append(total)
    return torch.cat(found)


def effective(log_w: Tensor) -> Tensor:
    """Effective sample size of weights (S, n): (n,); 0 where all vanish."""
    shares = log_w.log_softmax(0)
    return torch.where(log_w.isfinite().any(0), (-(2 * shares).logsumexp(0)).exp(), 0.0)
