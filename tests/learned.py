"""Networks and rows for the tests of learning, and what they are asked."""

import numpy as np
import torch

from probgen.conditionals import LinearGaussian, Tabular
from probgen.events import Category, Real, Table
from probgen.models.bayesnet import BayesianNetwork, em, learning

EDGES = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
CARDS = {"a": 2, "b": 3, "c": 2, "d": 3}
MIXED = {"a": Category(("x", "y")), "b": Category((0, 1, 2)), "u": Real(), "v": Real("cm"), "w": Real(), "z": Real()}
MIXED_EDGES = [("a", "b"), ("a", "u"), ("b", "v"), ("u", "v"), ("u", "w"), ("v", "w"), ("a", "w"), ("v", "z")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def discrete(cards=CARDS, edges=EDGES, **options):
    return BayesianNetwork(Table({n: Category(tuple(range(k))) for n, k in cards.items()}), edges, **options)


def randomised(net, seed):
    rng = np.random.default_rng(seed)
    for name in net.variables:
        part = net.conditional(name)
        if isinstance(part, Tabular):
            part.set_table(rng.dirichlet([1.5] * part.cards[-1], part.parent_cards))
        elif isinstance(part, LinearGaussian):
            reals = len(part.continuous_parents)
            part.set_natural(
                intercept=rng.normal(size=part.parent_cards) * 2,
                coefficients=rng.normal(size=(*part.parent_cards, reals)),
                scale=rng.gamma(4.0, 0.25, part.parent_cards),
            )
    return net.imported()


def drawn(net, n, seed, gaps=0.0):
    """Rows of a network (n, columns), some cells of which are missing completely at random."""
    x = net._sample(n, None, generator=seeded(seed))
    return x.masked_fill(torch.rand(x.shape, generator=seeded(seed + 1), dtype=torch.float64) < gaps, torch.nan)


def tables_of(net):
    return {name: net.conditional(name).log_table().detach().exp().numpy() for name in net.variables}


def nats_of(net, x):
    """The network's own answer, through its verb."""
    return net.log_prob(net.event.restore(x, "pandas")).nats


def learn(net, x, seed=0, **options):
    net.report = learning.fit(net, x, generator=seeded(seed), **options)
    return net.report


def slope(net, x):
    """Largest derivative of the penalised log-likelihood in nats a row, straight from the definition."""
    problem = em.Problem(net, x)
    found = torch.autograd.grad(
        (em.log_likelihood(problem) + problem.penalty()) / len(x), list(net.parameters()), allow_unused=True
    )
    return max(float(g.abs().max()) for g in found if g is not None and g.numel())
