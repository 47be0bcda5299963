"""Bridges from a guide (or a standard normal) to the posterior, crossed both ways by Hamiltonian Monte Carlo."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.estimate.weights import Weights, at_least, standard_normal

__all__ = ["Bridge", "Crossing", "Plan"]

_ROWS = 512  # at a time: each keeps a generator
_NUMBERS = 8192  # of a row's noise at a time
_WIDENING = 500  # draws that decide by how much
_WIDEST = 4.0  # of the sigmoid schedule, Grosse et al. (2015)


@dataclass(frozen=True)
class Plan:
    """How a bridge is crossed.

    Arguments:
        chains: S, a row.
        temperatures: Steps from 0 to 1.
        leapfrogs: Gradients a transition.
        start: "guide", or "prior": a standard normal.
        schedule: "sigmoid" or "linear".
    """

    chains: int
    temperatures: int
    leapfrogs: int
    start: str = "guide"
    schedule: str = "sigmoid"

    def __post_init__(self) -> None:
        at_least("chains", self.chains, 2)
        at_least("temperatures", self.temperatures, 1)
        at_least("leapfrogs", self.leapfrogs, 1)
        for name, known in {"start": ("guide", "prior"), "schedule": ("sigmoid", "linear")}.items():
            if getattr(self, name) not in known:
                raise ParameterError(f"{name}={getattr(self, name)!r}", " or ".join(map(repr, known)))

    @property
    def betas(self) -> list[float]:
        """0 = beta_0 < ... < beta_T = 1."""
        line = torch.linspace(-1, 1, self.temperatures + 1, dtype=torch.float64)
        if self.schedule == "linear":
            return ((line + 1) / 2).tolist()
        curve = torch.sigmoid(_WIDEST * line)
        return ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()

    def bridges(self, weights: Weights) -> "Iterator[tuple[Tensor, Bridge]]":
        """Row numbers and their bridge, in pieces that fit in the cache."""
        for rows in weights.blocks(self.chains, _ROWS):
            yield rows, Bridge(weights[rows], self)

    @property
    def evaluations(self) -> int:
        """Of log p(x, z) with its gradient, a row and crossing."""
        return self.chains * (1 + (self.temperatures - 1) * self.leapfrogs)


class Crossing(NamedTuple):
    """Log weights (S, n) of a crossing, the step sizes (T - 1, n) and mean acceptance (T - 1, n) of its transitions,
    and where its chains ended, u (S, n, D)."""

    log_w: Tensor
    steps: Tensor
    accepted: Tensor
    last: Tensor


class _State(NamedTuple):
    """Chains (S, n, D) with log w (S, n) and its gradient (S, n, D), float64."""

    u: Tensor
    log_w: Tensor
    slope: Tensor


class Bridge:
    """log f_beta(u) = log N(u; 0, I) + beta * log w(u): the start at beta = 0, the posterior at beta = 1.

    From the guide u is its noise and w = p(x, z(u)) / q(z(u) | x); from the prior u is z and w = p(x, z) / N(z; 0, I).
    The normal part moves exactly, by rotation, and only log w pushes, so that a good guide allows long steps
    (Shahbaba et al. 2014). Step sizes are tuned in a pilot, by temperature and row, and then frozen.

    Arguments:
        rows: Weights of the rows.
        plan: How it is crossed. From the guide, it is first widened on active latents, for chains that start in too
            narrow a guide leave it by rare and heavy weights.
    """

    def __init__(self, rows: Weights, plan: Plan) -> None:
        self.rows, self.plan = rows, plan
        with torch.no_grad():
            self.scale = rows.widening(_WIDENING) if plan.start == "guide" else None
            noise = torch.zeros(1, len(rows), rows.model.latent_dim, dtype=torch.float64)
            self.dtype = rows.model._propose(rows.x, rows.given, noise)[0].dtype

    def __getitem__(self, rows: Tensor) -> "Bridge":
        part = object.__new__(Bridge)
        part.rows, part.plan, part.dtype = self.rows[rows], self.plan, self.dtype
        part.scale = None if self.scale is None else self.scale[rows]
        return part

    def log_w(self, u: Tensor) -> Tensor:
        """log w(u), (S, n), float64."""
        if self.scale is not None:
            return self.rows.at(u, self.scale)
        return self.log_joint(u) - standard_normal(u)

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x, z), (S, n), float64."""
        return self.rows.model._log_joint(self.rows.x, z.to(self.dtype), self.rows.given).to(torch.float64)

    def place(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The chains' coordinates u of latents z (S, n, D), and whether they were found, (S, n)."""
        if self.scale is not None:
            u, found = self.rows.noise_of(z)
            return u / self.scale, found
        return z.to(torch.float64), torch.ones(z.shape[:-1], dtype=torch.bool)

    @torch.enable_grad()
    def state(self, u: Tensor) -> _State:
        """Where log w has no gradient, none pushes."""
        u = u.detach().requires_grad_()
        log_w = self.log_w(u)
        slope = None
        if log_w.requires_grad:
            (slope,) = torch.autograd.grad(log_w.sum(), u, allow_unused=True)
        log_w = log_w.detach().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        slope = torch.zeros_like(u) if slope is None else slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return _State(u.detach(), log_w, slope)

    def step(self, state: _State, beta: float, size: Tensor, draws: Tensor) -> tuple[_State, Tensor]:
        """One transition that leaves f_beta alone and is its own reversal; and the share of chains accepted, (n,).

        Arguments:
            size: Angle of a leapfrog step, (n,); each chain's is up to a quarter longer or shorter.
            draws: Standard normals (S, n, D + 2): momentum, jitter, acceptance.
        """
        p, jitter, threshold = draws[..., :-2], draws[..., -2], torch.special.log_ndtr(draws[..., -1])
        h = (size * (0.75 + 0.5 * torch.special.ndtr(jitter)))[..., None]
        turn, lift, new = h.cos(), h.sin(), state
        before = self._energy(state, p, beta)
        for _ in range(self.plan.leapfrogs):
            p = p + 0.5 * h * beta * new.slope
            u, p = turn * new.u + lift * p, turn * p - lift * new.u
            new = self.state(u)
            p = p + 0.5 * h * beta * new.slope
        gain = (before - self._energy(new, p, beta)).nan_to_num(nan=-math.inf)
        return self._accept(state, new, gain, threshold)

    @staticmethod
    def _energy(state: _State, p: Tensor, beta: float) -> Tensor:
        return 0.5 * (state.u.square() + p.square()).sum(-1) - beta * state.log_w

    @staticmethod
    def _accept(old: _State, new: _State, gain: Tensor, threshold: Tensor) -> tuple[_State, Tensor]:
        """Metropolis's rule: accept where log uniform < gain."""
        taken = threshold < gain
        kept = [torch.where(taken[..., None] if a.ndim == 3 else taken, a, b) for a, b in zip(new, old, strict=True)]
        return _State(*kept), gain.clamp(max=0).exp().mean(0)

    def forward(self, salt: str, steps: Tensor | None = None) -> Crossing:
        """Chains from the start. exp(log weight) has mean p(x), Neal (2001) eq. 10.

        Arguments:
            steps: Frozen step sizes (T - 1, n); None tunes them as it goes, a pilot, whose weights only advise.
        """
        noise = self._noise(salt, self.plan.temperatures)
        state, betas = self.state(next(noise)[..., :-2]), self.plan.betas
        total = betas[1] * state.log_w
        sizes = _Sizes(steps, len(self.rows), self.plan.leapfrogs)
        for t in range(1, self.plan.temperatures):
            state, share = self.step(state, betas[t], sizes[t - 1], next(noise))
            sizes.see(share)
            total = total + (betas[t + 1] - betas[t]) * state.log_w
        return Crossing(total, *sizes.seen(), state.u)

    def backward(self, u: Tensor, salt: str, steps: Tensor) -> Crossing:
        """Chains from exact draws u (S, n, D) of the posterior. exp(-log weight) has mean 1 / p(x)."""
        noise = self._noise(salt, self.plan.temperatures - 1)
        state, betas = self.state(u), self.plan.betas
        total = (betas[-1] - betas[-2]) * state.log_w
        sizes = _Sizes(steps, len(self.rows), self.plan.leapfrogs)
        for t in range(self.plan.temperatures - 1, 0, -1):
            state, share = self.step(state, betas[t], sizes[t - 1], next(noise))
            sizes.see(share)
            total = total + (betas[t] - betas[t - 1]) * state.log_w
        return Crossing(total, *sizes.seen(), state.u)

    def _noise(self, salt: str, count: int) -> Iterator[Tensor]:
        """Standard normals (S, n, D + 2) for one transition after the other, each row's from its own stream."""
        chains, width = self.plan.chains, self.rows.model.latent_dim + 2
        sources = [torch.Generator().manual_seed(int(key)) for key in self.rows.keys(salt)]
        each = max(1, _NUMBERS // (chains * width))
        for done in range(0, count, each):
            shape = (min(each, count - done), chains, width)
            drawn = [torch.randn(shape, generator=source, dtype=torch.float32) for source in sources]
            yield from torch.stack(drawn, dim=2).to(torch.float64)


class _Sizes:
    """Step sizes (T - 1, n): frozen ones, or tuned towards an acceptance of 0.8 as the chains go."""

    def __init__(self, frozen: Tensor | None, rows: int, leapfrogs: int) -> None:
        self.frozen, self.rows = frozen, rows
        self.longest = 0.5 * math.pi / leapfrogs  # together a quarter turn: independent draws of a normal
        self.now = torch.full((rows,), self.longest, dtype=torch.float64)
        self.used: list[Tensor] = []
        self.shares: list[Tensor] = []

    def __getitem__(self, t: int) -> Tensor:
        size = self.now if self.frozen is None else self.frozen[t]
        self.used.append(size)
        return size

    def see(self, share: Tensor) -> None:
        self.shares.append(share)
        self.now = (self.now * (share - 0.8).exp()).clamp(1e-4, self.longest)

    def seen(self) -> tuple[Tensor, Tensor]:
        if not self.used:
            nothing = torch.zeros(0, self.rows, dtype=torch.float64)
            return nothing, nothing
        return torch.stack(self.used), torch.stack(self.shares)
