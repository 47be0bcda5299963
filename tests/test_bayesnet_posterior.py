"""What data leave open about tables: Dirichlet posteriors and marginal likelihoods."""

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from learned import (
    CARDS,
    discrete,
    drawn,
    learn,
    nats_of,
    randomised,
    seeded,
)
from scipy import stats

from probgen.errors import DataError, NotFittedError, ParameterError, StructureError
from probgen.events import Real, Table
from probgen.models.bayesnet import BayesianNetwork, em, learning
from probgen.models.bayesnet.posterior import log_dirichlet

ALPHA = 1e-6  # false alarms of each statistical test


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_concentrations_are_counts_and_pseudo_counts():
    x = drawn(randomised(discrete(), 3), 200, 5)
    net = discrete()
    learn(net, x, prior="dirichlet", strength=0.5)
    counts = np.zeros((3, 2, 3))
    np.add.at(counts, tuple(x[:, i].long().numpy() for i in (1, 2, 3)), 1)
    assert learning.table_posterior(net, "d").numpy() == pytest.approx(counts + 0.5, abs=1e-12)
    x[:20, 0] = torch.nan  # not in the family of d, whose posterior stays exact
    learn(net, x, prior="dirichlet", strength=0.5)
    assert learning.table_posterior(net, "d").numpy() == pytest.approx(counts + 0.5, abs=1e-9)
    with pytest.raises(StructureError, match="no single Dirichlet"):
        learning.table_posterior(net, "b")
    assert float(learning.table_posterior(net, "b", approximate=True).sum()) == pytest.approx(203, abs=1e-6)


def predictive_score(wrong=0.0):
    """How far the mean probability over posterior networks is from the network's own, in standard errors."""
    x = drawn(randomised(discrete(), 3), 12, 5)
    net = discrete()
    learn(net, x, prior="bdeu", strength=4.0)
    net.imported()
    rows = torch.tensor(list(itertools.product(*(range(k) for k in CARDS.values()))), dtype=torch.float64)
    if wrong:
        for name in net.variables:
            net.conditional(name).counts[..., 0] += wrong
    draws = learning.sample_networks(net, 400, seeded(4))
    found = np.stack([_joint(other, rows) for other in draws])
    scores = (found.mean(0) - _joint(net, rows)) / (found.std(0) / math.sqrt(len(draws)))
    return np.abs(scores).max()


def _joint(net, rows):
    logs = sum(net.conditional(n).log_prob(*em.cells_of(net, rows, n)) for n in net.variables)
    return logs.detach().exp().numpy()


def test_networks_of_the_posterior_average_to_the_posterior_predictive():
    """36 cells, each a normal score: beyond 5.6 about once in a million."""
    assert predictive_score() < stats.norm.isf(ALPHA / 72)


def test_that_average_notices_wrong_concentrations():
    assert predictive_score(wrong=1.0) > stats.norm.isf(ALPHA / 72)


def test_draws_of_small_concentrations_do_not_underflow():
    small = torch.full((2000, 3), 1e-4, dtype=torch.float64)
    logs = log_dirichlet(small, seeded(1))
    assert torch.isfinite(logs).all()
    assert logs.logsumexp(-1).abs().max() < 1e-12
    share = (logs[:, 0] > math.log(0.5)).double().mean().item()
    assert abs(share - 1 / 3) < stats.norm.isf(ALPHA / 2) * math.sqrt(2 / 9 / 2000)


@pytest.mark.parametrize(("prior", "strength"), [("bdeu", 2.0), ("dirichlet", 0.3), ("k2", 1.0)])
def test_the_marginal_likelihood_is_the_product_of_predictives(prior, strength):
    """Each row given those before it, by the posterior predictive: what the fit's own tables give."""
    x = drawn(randomised(discrete(), 3), 15, 5)
    net, total = discrete(), 0.0
    for i in range(len(x)):
        if i:
            learn(net, x[:i], prior=prior, strength=strength)
        else:
            net.imported()  # uniform tables: the prior's means
        total += nats_of(net, x[i : i + 1])[0]
    assert learning.log_marginal(net, x, prior, strength) == pytest.approx(total, abs=1e-10)


def test_pgmpy_scores_bdeu_the_same():
    pytest.importorskip("pgmpy")
    x = drawn(randomised(discrete(), 3), 200, 5)
    frame = pd.DataFrame(x.numpy().astype(int), columns=list(CARDS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pgmpy.structure_score import BDeu

        score = BDeu(frame, equivalent_sample_size=3, state_names={n: list(range(k)) for n, k in CARDS.items()})
        net = discrete()
        expected = sum(score.local_score(n, tuple(net.parents[n])) for n in CARDS)
    assert learning.log_marginal(net, x, "bdeu", 3.0) == pytest.approx(expected, abs=1e-8)


def test_posteriors_that_do_not_exist_are_refused():
    x = drawn(randomised(discrete(), 3), 10, 5)
    net = discrete()
    with pytest.raises(NotFittedError):
        learning.table_posterior(net, "d")
    learn(net, x)
    with pytest.raises(ParameterError, match="no data and no pseudo-counts"):
        learning.table_posterior(net, "d")
    learn(net, x, prior="k2")
    for n in (0, -1, 2.5, True):
        with pytest.raises(ParameterError):
            learning.sample_networks(net, n, seeded())
    with pytest.raises(ParameterError):
        learning.log_marginal(net, x, "none")
    x[0, 0] = torch.nan
    with pytest.raises(DataError):
        learning.log_marginal(net, x)
    mixed = BayesianNetwork(Table({"u": Real()}))
    learn(mixed, torch.randn(20, 1, generator=seeded(), dtype=torch.float64))
    with pytest.raises(StructureError, match="LinearGaussian"):
        learning.table_posterior(mixed, "u")
