"""Random chains, and what they should say: every path enumerated, or plain recursions in 80 bits."""

import itertools
import math

import numpy as np
import torch

from probgen import chains

INF = math.inf
D = torch.float64


def rows(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def logs(values):
    return rows(values).log()


def random_chain(lengths, states, seed=0, zeros=0.0, own_initial=False, moving=False, spread=2.0):
    """Random log-probabilities; initials and moves are impossible with probability ``zeros``."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)

    def simplex(*shape):
        p = rng.dirichlet(np.full(shape[-1], 0.7), shape[:-1])
        p = np.where(rng.uniform(size=shape) < zeros, 0.0, p)
        p[..., 0] += p.sum(-1) == 0
        return logs(p / p.sum(-1, keepdims=True))

    initial = simplex(*((len(lengths), states) if own_initial else (states,)))
    moves = simplex(*((total, states, states) if moving else (states, states)))
    potentials = spread * rows(rng.normal(size=(total, states)))
    potentials[torch.as_tensor(rng.uniform(size=(total, states)) < zeros / 3)] = -INF
    return chains.Chain(initial, moves, potentials, torch.tensor(lengths))


def long(part):
    """80 bits: the sums of a path of size 1e5 keep 14 digits of its share."""
    return part.numpy().astype(np.longdouble)


class Paths:
    """Every path of every sequence, weighed one by one."""

    def __init__(self, chain):
        self.chain = chain
        self.each = list(map(self.weighed, range(len(chain.lengths))))

    def weighed(self, n):
        chain, start, length = self.chain, int(self.chain.starts[n]), int(self.chain.lengths[n])
        initial = chain.initial if chain.initial.ndim == 1 else chain.initial[n]
        z = np.array(list(itertools.product(range(chain.size), repeat=length)))
        nats = long(initial)[z[:, 0]] + long(chain.potentials[start])[z[:, 0]]
        for t in range(1, length):
            moves = chain.transition if chain.homogeneous else chain.transition[start + t]
            nats = nats + long(moves)[z[:, t - 1], z[:, t]] + long(chain.potentials[start + t])[z[:, t]]
        top = nats.max()
        share = np.exp(nats - top) if top > -INF else np.zeros(len(z))
        total = top + np.log(share.sum()) if top > -INF else -INF
        return z, nats, share / max(share.sum(), 1e-300), total

    @property
    def nats(self):
        return rows([total for *_, total in self.each])

    @property
    def best(self):
        return rows([nats.max() for _, nats, _, _ in self.each])

    @property
    def winners(self):
        return np.concatenate([z[nats.argmax()] for z, nats, _, _ in self.each])

    @property
    def marginals(self):
        k = range(self.chain.size)
        return rows(np.concatenate([[[w[z[:, t] == i].sum() for i in k] for t in range(z.shape[1])]
                                    for z, _, w, _ in self.each]))  # fmt: skip

    @property
    def pairs(self):
        out = np.zeros((len(self.chain.potentials), self.chain.size, self.chain.size))
        for start, (z, _, w, _) in zip(self.chain.starts.tolist(), self.each, strict=True):
            for t in range(1, z.shape[1]):
                np.add.at(out[start + t], (z[:, t - 1], z[:, t]), w)
        return rows(out)


def close(found, wanted, apart=1e-12):
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    return bool(((found == wanted) | ((found - wanted).abs() <= apart * wanted.abs().clamp(min=1))).all())


def score(chain, path):
    """Joint log-probability of a path of each sequence."""
    out = []
    for n, (start, length) in enumerate(zip(chain.starts.tolist(), chain.lengths.tolist(), strict=True)):
        initial = chain.initial if chain.initial.ndim == 1 else chain.initial[n]
        z = path[start : start + length]
        total = initial[z[0]] + chain.potentials[start, z[0]]
        for t in range(1, length):
            moves = chain.transition if chain.homogeneous else chain.transition[start + t]
            total = total + moves[z[t - 1], z[t]] + chain.potentials[start + t, z[t]]
        out.append(total)
    return torch.stack(out)


class Exact:
    """Forward and backward in long doubles, whose exponents reach 1e-4932: no shift, no window, no logarithm."""

    def __init__(self, chain):
        self.chain = chain
        self.moves = np.exp(long(chain.transition))
        self.top = long(chain.potentials.amax(1).clamp(min=-1e300))
        self.weights = np.exp(long(chain.potentials) - self.top[:, None])
        self.counts = np.zeros_like(self.moves)
        each = [self.swept(n) for n in range(len(chain.lengths))]
        self.nats, self.filtered, self.marginals = (rows(np.concatenate(part)) for part in zip(*each, strict=True))
        self.counts = rows(self.counts)

    def swept(self, n):
        chain, start, steps = self.chain, int(self.chain.starts[n]), int(self.chain.lengths[n])
        weights, message = self.weights[start : start + steps], np.ones(chain.size, np.longdouble)
        state = np.exp(long(chain.initial if chain.initial.ndim == 1 else chain.initial[n]))
        forth, nats = [], self.top[start : start + steps].sum()
        for t in range(steps):
            state = (state @ self.moves if t else state) * weights[t]
            if not state.any():
                return [-INF], np.zeros((steps, chain.size)), np.zeros((steps, chain.size))
            nats, state = nats + np.log(state.sum()), state / state.sum()
            forth.append(state)
        shares = []
        for t in range(steps - 1, -1, -1):
            share = forth[t] * message
            shares.append(share / share.sum())
            if t:
                moved = forth[t - 1][:, None] * self.moves * (weights[t] * message)
                self.counts += moved / moved.sum()
                message = self.moves @ (weights[t] * message)
                message = message / message.sum()
        return [nats], np.stack(forth), np.stack(shares[::-1])


def recursions_agree(chain):
    """The answers of chains beside those of Exact, to 1e-12; says which one is off, if any."""
    truth = Exact(chain)
    possible = truth.nats > -INF
    steps = possible.repeat_interleave(chain.lengths)
    found, filtered = chains.posterior(chain), chains.filter(chain)
    path, best = chains.viterbi(chain)
    checks = {
        "log_likelihood": close(chains.log_likelihood(chain), truth.nats),
        "nats": close(found.nats, truth.nats),
        "marginals": close(found.marginals, truth.marginals),
        "transitions": close(found.transitions, truth.counts),
        "filtered": close(filtered.probabilities[steps], truth.filtered[steps]),
        "path": close(score(chain, path)[possible], best[possible]),
        "best": bool(((best <= truth.nats + 1e-9) & ((best > -INF) == possible)).all()),
    }
    return [name for name, right in checks.items() if not right]


def survey(seed, examples, long=0):
    """Chains of all sorts from one seed; those whose answers are off, as they were drawn."""
    rng = np.random.default_rng(seed)
    wrong = []
    for i in range(examples):
        lengths = rng.integers(1, 40, rng.integers(1, 24)).tolist() + [4500] * (i < long)
        states = int(rng.integers(1, 20 if i < long else 70))
        zeros, spread = float(rng.choice([0.0, 0.0, 0.3])), float(rng.choice([0.1, 3.0, 100.0]))
        own = bool(rng.integers(2))
        off = recursions_agree(random_chain(lengths, states, i, zeros, own, spread=spread))
        if off:
            wrong.append((lengths, states, i, zeros, own, spread, off))
    return wrong
