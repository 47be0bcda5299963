"""Hidden Markov models with known parameters, and what they should say by enumerating every path."""

import itertools

import numpy as np
import pytest
import torch
from scipy import special, stats

import probgen as pg
from probgen import emissions as em
from probgen import transitions as tr
from probgen.model import FitReport

D = torch.float64
ALPHA = 1e-6


def cells(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))


def steps_of_two(n=180, seed=0, apart=4.0):
    """Two well separated regimes, in long runs."""
    z = np.repeat([0, 1, 0, 1, 0, 1], n // 6)
    return z, np.random.default_rng(seed).normal(apart * z, 1.0)


def fitted(model, seed=0, spread=1.0):
    """Random transitions, as if they had been fitted."""
    draw = torch.Generator().manual_seed(seed)
    for p in model.transitions.parameters():
        if p.requires_grad:
            p.data = spread * torch.randn(p.shape, generator=draw, dtype=D)
    model.report = FitReport((0.0,), 0, "closed form")
    return model


def probabilities(model):
    return tuple(part.exp().detach().numpy() for part in model.transitions())


class Enumerated:
    """All paths of one sequence, weighed one by one.

    Arguments:
        first: log p(z_1), (K,).
        moves: log p(z_t | z_{t-1}), (T, K, K), the first entry unread; or of whole paths, a function.
        table: log p(x_t | z_t), (T, K).
    """

    def __init__(self, first, moves, table):
        steps, states = table.shape
        self.paths = np.array(list(itertools.product(range(states), repeat=steps)))
        self.logs = first[self.paths[:, 0]] + table[np.arange(steps), self.paths].sum(1)
        for t in range(1, steps):
            self.logs = self.logs + moves[t][self.paths[:, t - 1], self.paths[:, t]]
        self.size = states
        self._weigh()

    def _weigh(self):
        self.nats = special.logsumexp(self.logs)
        self.weights = np.exp(self.logs - self.nats)
        self.best = self.paths[self.logs.argmax()]

    def marginals(self):
        return np.stack([(self.weights[:, None] * (self.paths == k)).sum(0) for k in range(self.size)], 1)

    def pairs(self):
        out = np.zeros((self.paths.shape[1] - 1, self.size, self.size))
        for t in range(len(out)):
            np.add.at(out[t], (self.paths[:, t], self.paths[:, t + 1]), self.weights)
        return out


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


def oracle(model, table):
    first, matrix = probabilities(model)
    return Enumerated(log(first), np.broadcast_to(log(matrix), (len(table), *matrix.shape)), table)


def counts_model(transitions=None, seed=0):
    m = fitted(pg.HMM(states=3, emission=em.Poisson(2), transitions=transitions), seed)
    m.emission.log_rate.data = cells(np.log([[1.0, 9.0], [4.0, 3.0], [9.0, 0.5]]))
    return m


def counts_table(model, x):
    rates = model.emission.log_rate.exp().detach().numpy()
    return np.where(np.isnan(x)[:, None], 0.0, stats.poisson.logpmf(np.nan_to_num(x)[:, None], rates)).sum(-1)


def symbols_model(transitions=None, seed=0):
    m = fitted(pg.HMM(states=3, emission=em.Categorical(3, smoothing=0.0), transitions=transitions), seed)
    m.emission.logits.data = cells(log(np.array([[[0.7, 0.3, 0.0]], [[0.0, 0.2, 0.8]], [[0.1, 0.0, 0.9]]])))
    return m


def symbols_table(model, x):
    table = model.emission.logits.softmax(-1).detach().numpy()[:, 0]
    seen = ~np.isnan(x)
    return np.where(seen[:, None], log(table[:, np.nan_to_num(x).astype(int)]).T, 0.0)


def points_model(transitions=None, seed=0):
    m = fitted(pg.HMM(states=3, emission=em.Normal(2, "full"), transitions=transitions), seed)
    m.emission.loc.data = cells([[0.0, 0.0], [1.5, -1.0], [-1.0, 2.0]])
    m.emission._set_factor(cells([[[1.0, 0.0], [0.5, 0.8]], [[0.7, 0.0], [-0.4, 1.0]], [[1.2, 0.0], [0.1, 0.6]]]))
    return m


def points_table(model, x):
    scale = model.emission.scale().detach().numpy()
    out = np.zeros((len(x), 3))
    for (t, row), k in itertools.product(enumerate(x), range(3)):
        seen = ~np.isnan(row)
        if seen.any():
            covariance = (scale[k] @ scale[k].T)[np.ix_(seen, seen)]
            out[t, k] = stats.multivariate_normal.logpdf(row[seen], model.emission.loc[k].detach()[seen], covariance)
    return out


def gaps(x, share, seed):
    return np.where(np.random.default_rng(seed).uniform(size=x.shape) < share, np.nan, x)


RAGGED = (9, 1, 4)
MODELS = {"counts": (counts_model, counts_table), "symbols": (symbols_model, symbols_table),
          "points": (points_model, points_table)}  # fmt: skip
STRUCTURES = {"free": None, "cyclic": tr.Markov(allowed=tr.cyclic(3)), "stationary": tr.Markov("stationary"),
              "left_right": tr.Markov((1.0, 0.0, 0.0), allowed=tr.left_right(3))}  # fmt: skip


def scene(kind, structure="free", seed=0):
    """A model, three sequences with missing cells, and the enumeration of each."""
    build, table = MODELS[kind]
    model = build(STRUCTURES[structure], seed)
    drawn = [model.sample(1, length=length, seed=seed + i)[0] for i, length in enumerate(RAGGED)]
    x = [gaps(part, 0.25, seed + i) for i, part in enumerate(drawn)]
    return model, x, [oracle(model, table(model, part)) for part in x]


scenes = pytest.mark.parametrize(
    ("kind", "structure"),
    [*itertools.product(MODELS, ("free", "cyclic")), ("points", "stationary"), ("symbols", "left_right")],
)


def switching_inputs(t, u):
    raw = t.logits.detach().numpy() + np.einsum("tp,pij->tij", u, t.weight.detach().numpy())
    return special.log_softmax(raw, axis=-1)


class Segmented(Enumerated):
    """Paths read as visits: each has its length's probability, the last one may go on."""

    def __init__(self, first, moves, table, law, beyond):
        super().__init__(first, np.zeros((len(table), len(first), len(first))), table)
        self.logs = self.logs + [self._visits(path, moves, law, beyond) for path in self.paths]
        self._weigh()

    @staticmethod
    def _visits(path, moves, law, beyond):
        runs = [(state, len(list(same))) for state, same in itertools.groupby(path)]
        total = sum(law(k, d) for k, d in runs[:-1]) + beyond(*runs[-1])
        return total + sum(moves[a, b] for (a, _), (b, _) in itertools.pairwise(runs))


def segments(model, table):
    natural = {name: value.detach().numpy() for name, value in model.transitions.natural().items()}
    if "leaving" in natural:
        phases = model.transitions.phases

        def law(k, d):
            return stats.nbinom.logpmf(d - phases, phases, natural["leaving"][k])

        def beyond(k, d):
            return stats.nbinom.logsf(d - 1 - phases, phases, natural["leaving"][k])
    else:

        def law(k, d):
            return log(natural["duration"][k][d - 1]) if d <= model.transitions.longest else -np.inf

        def beyond(k, d):
            return log(natural["duration"][k][d - 1 :].sum())

    return Segmented(log(natural["initial"]), log(natural["transition"]), table, law, beyond)


def fails(observed, share, merge=5.0):
    """p-value of counts against shares, cells of few expected draws pooled."""
    expected = share * observed.sum()
    rare = expected < merge
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    if observed[~keep].any():
        return 0.0
    return stats.chisquare(observed[keep], expected[keep] * observed.sum() / expected[keep].sum()).pvalue


def cooled(share, power=0.9):
    share = np.where(share > 0, share**power, 0.0)
    return share / share.sum()
