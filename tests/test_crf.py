"""Linear-chain conditional random fields against enumeration."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

from probgen import store
from probgen.errors import NotFittedError, ParameterError, ShapeError, StructureError, SupportError
from probgen.estimate import Enumerate
from probgen.events import Array, Series, Table
from probgen.events.table import Real
from probgen.logprob import Kind
from probgen.model import FitReport
from probgen.models.crf import LinearChainCRF

K, P = 3, 2
INPUTS = Series((P,), missing=False)


def planted(seed=0, scale=1.0):
    m = LinearChainCRF(Series(levels=K), INPUTS)
    g = torch.Generator().manual_seed(seed)
    for p in m.parameters():
        p.data = scale * torch.randn(p.shape, generator=g, dtype=torch.float64)
    m.report = FitReport((), 0, "imported")
    return m


def data(seed=0, lengths=(1, 2, 4)):
    rng = np.random.default_rng(seed)
    return [rng.integers(K, size=t).astype(float) for t in lengths], [rng.normal(size=(t, P)) for t in lengths]


def score(m, y, u):
    """The exponent, in plain loops."""
    w, b, first, moves = (getattr(m, n).detach().numpy() for n in ("weight", "bias", "initial", "transition"))
    y = [int(v) for v in y]
    total = first[y[0]] + sum(u[t] @ w[:, y[t]] + b[y[t]] for t in range(len(y)))
    return total + sum(moves[y[t - 1], y[t]] for t in range(1, len(y)))


def all_labels(t):
    return list(itertools.product(range(K), repeat=t))


def by_hand(m, y, u):
    agree = [own for own in all_labels(len(y)) if all(np.isnan(a) or a == b for a, b in zip(y, own, strict=True))]
    total = np.logaddexp.reduce([score(m, own, u) for own in all_labels(len(y))])
    return np.logaddexp.reduce([score(m, own, u) for own in agree]) - total


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_likelihoods_with_and_without_gaps_equal_sums_over_all_labels(scale):
    m, (ys, us) = planted(1, scale), data()
    ys[2][[0, 2]] = math.nan
    found = m.log_prob(ys, given=us)
    assert found.kind is Kind.EXACT
    np.testing.assert_allclose(
        found.nats, [by_hand(m, y, u) for y, u in zip(ys, us, strict=True)], rtol=1e-11, atol=1e-9
    )


def test_probabilities_of_all_labels_of_some_inputs_sum_to_one():
    m, u = planted(2), data()[1][2]
    labels = [np.array(own, dtype=float) for own in all_labels(4)]
    assert np.exp(m.log_prob(labels, given=[u] * len(labels)).nats).sum() == pytest.approx(1, abs=1e-12)


def test_steps_are_scored_given_the_labels_before_them_and_all_inputs():
    m, (ys, us) = planted(12), data()
    ys[2][1] = math.nan
    steps, at = m.log_prob_steps(ys, given=us).nats, 0
    for y, u in zip(ys, us, strict=True):
        prefixes = [by_hand(m, np.where(np.arange(len(y)) <= t, y, math.nan), u) for t in range(len(y))]
        np.testing.assert_allclose(steps[at : at + len(y)], np.diff([0.0, *prefixes]), atol=1e-11)
        at += len(y)


def test_decoding_and_marginals_are_those_of_the_enumeration_and_keep_known_labels():
    m, u = planted(3), data()[1][2]
    y = np.array([math.nan, 2.0, math.nan, math.nan])
    agree = [own for own in all_labels(4) if own[1] == 2]
    weights = np.exp([score(m, own, u) for own in agree])
    assert m.decode([y], given=[u])[0].tolist() == list(agree[int(weights.argmax())])
    shares = np.zeros((4, K))
    for label, w in zip(agree, weights / weights.sum(), strict=True):
        shares[np.arange(4), label] += w
    np.testing.assert_allclose(m.marginals([y], given=[u])[0], shares, atol=1e-12)
    best = max(all_labels(4), key=lambda own: score(m, own, u))
    assert m.decode(given=[u])[0].tolist() == list(best)


def pvalue(draws, m, u):
    labels = all_labels(len(u))
    p = np.exp([by_hand(m, np.array(own, dtype=float), u) for own in labels])
    seen = np.array([sum(1 for d in draws if tuple(d.astype(int)) == own) for own in labels])
    return stats.chisquare(seen, p * len(draws)).pvalue


def test_samples_follow_the_density():
    m, u = planted(4, 0.5), data()[1][1]
    assert pvalue(m.sample(4000, given=[u], seed=0), m, u) > 1e-6
    twin = copy.deepcopy(m)
    twin.transition.data *= 0.3
    assert pvalue(twin.sample(4000, given=[u], seed=0), m, u) < 1e-6


def test_the_gradient_is_that_of_the_enumerated_likelihood():
    m, (ys, us) = planted(5), data()
    checked, given = m.event.check(ys).x, m.context.check(us).x
    m._nats(checked, given).sum().backward()
    for name in ("weight", "bias", "initial", "transition"):
        p = m.get_parameter(name)
        twin, step = copy.deepcopy(m), 1e-5
        twin.get_parameter(name).data.view(-1)[0] += step
        up = sum(by_hand(twin, y, u) for y, u in zip(ys, us, strict=True))
        twin.get_parameter(name).data.view(-1)[0] -= 2 * step
        down = sum(by_hand(twin, y, u) for y, u in zip(ys, us, strict=True))
        assert float(p.grad.view(-1)[0]) == pytest.approx((up - down) / (2 * step), abs=1e-7)


def labelled(n=150, seed=6):
    truth, rng = planted(7), np.random.default_rng(seed)
    us = [rng.normal(size=(8, P)) for _ in range(n)]
    return truth, [truth.sample(1, given=[u], seed=i)[0].astype(float) for i, u in enumerate(us)], us


def test_a_fit_comes_near_the_truth_and_labels_left_out_still_teach():
    truth, ys, us = labelled()
    m = LinearChainCRF(Series(levels=K), INPUTS).fit(ys, given=us, seed=0)
    assert m.report.stopped == "converged"
    assert m.report.objective[-1] > m.report.objective[0]
    _, fresh, inputs = labelled(seed=8)
    full = m.log_prob(fresh, given=inputs).nats.mean()
    assert full > truth.log_prob(fresh, given=inputs).nats.mean() - 0.3
    assert m.log_likelihood == pytest.approx(m.log_prob(ys, given=us).nats.sum())
    rng = np.random.default_rng(0)
    gappy = [np.where(rng.random(8) < 0.5, math.nan, y) for y in ys]
    semi = LinearChainCRF(Series(levels=K), INPUTS).fit(gappy, given=us, seed=0)
    some = LinearChainCRF(Series(levels=K), INPUTS).fit(ys[:5], given=us[:5], seed=0, l2=0.001)
    scores = [n.log_prob(fresh, given=inputs).nats.mean() for n in (semi, some)]
    assert full > scores[0] > scores[1]


def test_without_inputs_it_is_a_chain_of_labels():
    m = LinearChainCRF.for_event(Series(levels=2)).fit([np.array([0.0, 0, 1, 1, 1, 0])] * 3, seed=0, l2=0.01)
    assert m.log_prob([np.array([0.0, 0.0])]).nats[0] < 0
    assert len(m.sample(2, length=5, seed=0)[0]) == 5


def test_the_program_scores_what_log_prob_scores():
    m, (ys, us) = planted(9), data()
    x, given = m.event.check(ys).x, m.context.check(us).x
    assert Enumerate()(m, x, given, generator=torch.Generator()).nats == pytest.approx(m.log_prob(ys, given=us).nats)
    trace = poutine.trace(m.model).get_trace(None, given[[0]], n=3)
    assert torch.isfinite(trace.log_prob_sum())


def test_a_saved_one_gives_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setitem(store.FAMILIES, "LinearChainCRF", "probgen.models.crf")
    m, (ys, us) = planted(10), data()
    store.save(m, tmp_path / "m")
    again = store.load(tmp_path / "m")
    assert repr(again) == repr(m)
    assert (again.log_prob(ys, given=us).nats == m.log_prob(ys, given=us).nats).all()


@pytest.mark.parametrize("build", [
    lambda: LinearChainCRF(Array((2,))), lambda: LinearChainCRF(Series()),
    lambda: LinearChainCRF(Series((2,), levels=3)),
    lambda: LinearChainCRF(Table({"a": Real()})), lambda: LinearChainCRF(Series(levels=2), Series((2,))),
    lambda: LinearChainCRF(Series(levels=2), 3),
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused(build):
    with pytest.raises(StructureError):
        build()


def test_questions_that_make_no_sense_are_refused():
    m, (ys, us) = planted(11), data()
    with pytest.raises(SupportError):
        m.log_prob([np.array([3.0])], given=[us[0]])
    with pytest.raises(ShapeError):
        m.log_prob(ys, given=us[:2])
    for ask in (lambda: m.log_prob(ys), lambda: m.decode(), lambda: m.sample(2), lambda: m.fit(ys, given=us, l2=-1),
                lambda: m.fit(ys, given=us, max_iter=0), lambda: m.fit(ys, given=us, tol=math.nan)):  # fmt: skip
        with pytest.raises(ParameterError):
            ask()
    with pytest.raises(ShapeError):
        m.sample(2, given=us)
    with pytest.raises(StructureError):
        m.fit([np.full(2, math.nan)], given=[us[1]])
    with pytest.raises(NotFittedError):
        LinearChainCRF(Series(levels=2)).decode([np.zeros(2)])
    m.bias.data[0] = math.nan
    with pytest.raises(ParameterError):
        m.log_prob(ys, given=us)
