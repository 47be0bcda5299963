"""Markov fields against enumeration: likelihoods, questions, draws, learning, files, refusals."""

import copy
import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from scipy import stats

from probgen import store
from probgen.errors import (
    DataError,
    FitError,
    LikelihoodUnavailable,
    NotFittedError,
    ParameterError,
    ProbgenError,
    ShapeError,
    StoreError,
    StructureError,
    SupportError,
    ZeroEvidenceError,
)
from probgen.estimate import Enumerate
from probgen.events import Array, Category, Real, Table
from probgen.logprob import Kind
from probgen.models.markovfield import RAISE, LoopyBP, MarkovField, PartitionAIS, PseudoLikelihood, partition
from probgen.models.markovfield.local import colours


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(seed=0, scale=1.0, hidden=(), zero=False):
    """Four variables of 2, 3, 2, 2 levels in a loop with a factor over three of them."""
    rng = np.random.default_rng(seed)
    cards = {"a": 2, "b": 3, "c": 2, "d": 2}
    scopes = [("a",), ("b", "a"), ("b", "c", "d"), ("d", "a")]
    tables = {scope: scale * rng.normal(size=[cards[n] for n in scope]) for scope in scopes}
    if zero:
        tables["b", "a"][1] = -math.inf
    return MarkovField(tables, hidden=hidden)


def configurations(m):
    return np.array(list(itertools.product(*map(range, m.cards))), dtype=float)


def energies(m, codes):
    """Sums of log-potentials, by look-up."""
    total = np.zeros(len(codes))
    for scope in m.factors:
        table = m.potential(*scope)
        total += table[tuple(codes[:, m.index[n]].astype(int) for n in scope)]
    return total


def summed(m, rows=None):
    """log of the sum over gaps and hidden variables, row by row; rows (n, visible)."""
    codes = configurations(m)
    logs = energies(m, codes)
    if rows is None:
        return np.logaddexp.reduce(logs)
    agree = [(np.isnan(row) | (row == codes[:, : len(row)])).all(1) for row in rows]
    return np.array([np.logaddexp.reduce(logs[own]) for own in agree])


def gappy(m, n=25, seed=1, share=0.4):
    rng = np.random.default_rng(seed)
    width = len(m.event.columns)
    rows = np.stack([rng.integers(c, size=n) for c in m.cards[:width]], 1).astype(float)
    rows[rng.random(rows.shape) < share] = np.nan
    return rows


def rbm(visible=5, hidden=3, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    sizes = {"weights": (visible, hidden), "visible_bias": (visible,), "hidden_bias": (hidden,)}
    return MarkovField.rbm(visible, hidden, **{k: scale * rng.normal(size=s) for k, s in sizes.items()})


FIELDS = {
    "loop": lambda: small(1), "zeros": lambda: small(2, zero=True), "strong": lambda: small(3, 400.0),
    "hidden": lambda: small(4, hidden=("b", "d")), "rbm": rbm,
    "ising": lambda: MarkovField.ising(3, 3, 0.5, -0.2, True),
    "grid": lambda: MarkovField.grid(2, 3, unary=np.arange(18.0).reshape(2, 3, 3) / 9, across=np.eye(3), levels=3),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_log_z_and_rows_with_gaps_equal_sums_over_all_configurations(name):
    m = FIELDS[name]()
    assert float(m.log_partition()) == pytest.approx(summed(m), rel=1e-13, abs=1e-12)
    assert float(partition._by_sides(m)) == pytest.approx(summed(m), rel=1e-13, abs=1e-12)
    rows = gappy(m)
    found = m.log_prob(m.event.restore(torch.from_numpy(rows), "dict"))
    assert found.kind is Kind.EXACT
    np.testing.assert_allclose(found.nats, summed(m, rows) - summed(m), rtol=1e-12, atol=1e-10)
    whole = configurations(m)[:, : rows.shape[1]]
    whole = np.unique(whole, axis=0)
    everything = m.log_prob(m.event.restore(torch.from_numpy(whole), "dict"))
    np.testing.assert_allclose(everything.nats, summed(m, whole) - summed(m), rtol=1e-12, atol=1e-10)
    assert np.exp(everything.nats).sum() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("name", ["loop", "hidden", "rbm"])
def test_marginals_and_the_best_completion_are_those_of_the_enumeration(name):
    m = FIELDS[name]()
    rows, codes = gappy(m, 8), configurations(m)
    logs = energies(m, codes)
    found, best = (
        m.marginals(m.event.restore(torch.from_numpy(rows), "dict")),
        m.mpe(m.event.restore(torch.from_numpy(rows), "dict")),
    )
    for i, row in enumerate(rows):
        agree = (np.isnan(row) | (row == codes[:, : len(row)])).all(1)
        weights = np.exp(logs[agree] - logs[agree].max())
        for v, name_of in enumerate(m.variables):
            shares = np.bincount(codes[agree, v].astype(int), weights, m.cards[v]) / weights.sum()
            np.testing.assert_allclose(found[name_of][i], shares, atol=1e-12)
        top = codes[agree][weights.argmax()]
        assert [m.levels_of[n].index(best[n][i]) for n in m.event.columns] == top[: len(row)].astype(int).tolist()
    assert found.frame().num_columns == 1 + sum(m.cards)


def test_conditional_likelihoods_are_ratios_and_need_no_log_z():
    m = small(5)
    rest = {"a": [0, 1], "b": [None, None], "c": [1, None], "d": [None, 0]}
    answer = m.log_prob(rest, given={"b": 2})
    rows = np.array([[0, np.nan, 1, np.nan], [1, np.nan, np.nan, 0]])
    both = np.where([False, True, False, False], 2.0, rows)
    np.testing.assert_allclose(
        answer.nats, summed(m, both) - summed(m, np.array([[np.nan, 2, np.nan, np.nan]])), rtol=1e-12
    )
    large = MarkovField.ising(20, 20, 0.3)
    rows = np.ones((1, 400))
    known = {f"x{i}_{j}": 1 for i in range(20) for j in range(20) if (i, j) != (3, 3)}
    row = pd.DataFrame(np.where([n in known for n in large.variables], np.nan, rows), columns=list(large.variables))
    assert large.log_prob(row, given=known).nats[0] == pytest.approx(-math.log1p(math.exp(-2 * 4 * 0.3)))
    assert large.log_prob(row).refused.all()


def test_closed_forms_are_met():
    """An Ising chain: Z = 2 (2 cosh J)^(n - 1); an RBM: its free energy."""
    chain = MarkovField.ising(1, 30, 0.7)
    assert float(chain.log_partition()) == pytest.approx(math.log(2) + 29 * math.log(2 * math.cosh(0.7)), abs=1e-11)
    m = rbm(4, 3, 2)
    v = gappy(m, 6, share=0.0)
    w = np.array([[m.potential(f"v{i}", f"h{j}")[1, 1] for j in range(3)] for i in range(4)])
    a, b = ([m.potential(f"{k}{i}")[1] for i in range(n)] for k, n in (("v", 4), ("h", 3)))
    free = v @ np.array(a) + np.logaddexp(0, v @ w + np.array(b)).sum(1)
    np.testing.assert_allclose(m.log_prob(v).nats + float(m.log_partition()), free, rtol=1e-12)


def test_the_larger_side_of_a_bipartite_field_is_summed_where_the_plan_is_too_large():
    m = rbm(40, 6)
    m.limit = 100
    exact = rbm(40, 6).log_partition()
    assert m.log_partition().by == "one side summed"
    assert float(m.log_partition()) == pytest.approx(float(exact), rel=1e-13)
    x = m.sample(500, seed=0)
    np.testing.assert_allclose(m.log_prob(x).nats, rbm(40, 6).log_prob(x).nats, rtol=1e-12)
    assert m.sample_target() == "p"
    assert pvalue_of_means(m, x) > 1e-6


def pvalue_of_means(m, x):
    """A z test of the first variables' means against exact marginals."""
    full = rbm(40, 6)
    probs = full.marginals()
    n, worst = 500, 1.0
    for name in list(m.event.columns)[:8]:
        p = probs[name][0, 1]
        worst = min(worst, stats.binomtest(int(np.asarray(x[name]).sum()), n, p).pvalue)
    return worst


def test_a_field_that_is_too_large_refuses_and_names_the_estimators():
    m = MarkovField.ising(20, 20)
    assert m.plan.cost().entries > m.limit
    x = m.sample(2, seed=0, sweeps=3)
    assert m.sample_target() == "p^Gibbs(1000 sweeps)"
    answer = m.log_prob(x)
    assert answer.refused.all()
    for name in ("TreeReweighted", "PartitionAIS", "LoopyBP"):
        assert name in answer.instead
    with pytest.raises(LikelihoodUnavailable):
        answer.nats  # noqa: B018
    for ask in (m.log_partition, m.marginals, m.mpe, lambda: m.sample(1, method="exact"), lambda: m.fit(x)):
        with pytest.raises(StructureError):
            ask()


# Draws


def chi_square(m, x):
    """p-value of draws against the enumerated probabilities of the visible configurations."""
    cells = m.event.check(x).x.numpy()
    rows = np.unique(configurations(m)[:, : cells.shape[1]], axis=0)
    p = np.exp(summed(m, rows) - summed(m))
    seen = np.array([(cells == row).all(1).sum() for row in rows])
    assert seen.sum() == len(cells)
    keep = p * len(cells) >= 5
    pooled = [np.append(v[keep], v[~keep].sum()) for v in (seen, p * len(cells))]
    return stats.chisquare(*(v[pooled[1] > 0] for v in pooled)).pvalue


def warmer(m):
    """The same field at temperature 0.9: what a planted bug would draw from."""
    twin = copy.deepcopy(m)
    for block in twin.blocks:
        block.data *= 1 / 0.9
    return twin


@pytest.mark.parametrize("method", ["exact", "gibbs"])
@pytest.mark.parametrize("name", ["loop", "rbm", "ising3"])
def test_draws_follow_the_density(method, name):
    m = {
        "loop": lambda: small(6, 0.7),
        "rbm": lambda: rbm(5, 3, 4, 0.8),
        "ising3": lambda: MarkovField.ising(2, 3, 0.3),
    }[name]()
    options = {"method": method, "sweeps": 60, "seed": 0}
    assert chi_square(m, m.sample(20_000, **options)) > 1e-6
    assert chi_square(m, warmer(warmer(m)).sample(20_000, **options)) < 1e-6


def test_draws_of_one_side_follow_the_density():
    m = rbm(5, 3, 4, 0.8)
    m.limit = 10
    assert chi_square(m, m.sample(20_000, seed=1)) > 1e-6
    twin = warmer(warmer(m))
    assert chi_square(m, twin.sample(20_000, seed=1)) < 1e-6


@pytest.mark.parametrize("method", ["exact", "gibbs"])
def test_conditional_draws_keep_what_is_given_and_follow_the_rest(method):
    m = small(7)
    x = m.sample(20_000, given={"b": [2, 0]}, seed=0, method=method, sweeps=60)
    cells = m.event.check(x).x.numpy().reshape(2, 20_000, 4)
    assert (cells[0, :, 1] == 2).all()
    assert (cells[1, :, 1] == 0).all()
    for b, part in zip((2, 0), cells, strict=True):
        p = m.marginals({"b": b})["d"][0]
        assert stats.binomtest(int(part[:, 3].sum()), 20_000, p[1]).pvalue > 1e-6
        assert stats.binomtest(int(part[:, 3].sum()), 20_000, m.marginals()["d"][0, 1] * 0.5).pvalue < 1e-6


def test_variables_of_one_colour_never_share_a_factor():
    m = MarkovField.ising(5, 4, periodic=False)
    classes = colours(m.cards, m.groups)
    assert len(classes) == 2
    for m in (small(), rbm(), MarkovField.ising(3, 3, periodic=True)):
        for own in colours(m.cards, m.groups):
            assert not [scope for scope in m.plan.scopes if len(set(scope) & set(own.tolist())) > 1]


# Learning


def shares_of(m, x):
    cells = m.event.check(x).x
    found = []
    for scope in m.plan.scopes:
        table = np.zeros([m.cards[v] for v in scope])
        np.add.at(table, tuple(cells[:, v].long().numpy() for v in scope), 1 / len(cells))
        found.append(table)
    return found


def expected_of(m):
    codes = configurations(m)
    p = np.exp(energies(m, codes) - summed(m))
    found = []
    for scope in m.plan.scopes:
        table = np.zeros([m.cards[v] for v in scope])
        np.add.at(table, tuple(codes[:, v].astype(int) for v in scope), p)
        found.append(table)
    return found


def test_exact_gradients_end_where_moments_match():
    truth = small(8, 0.7)
    x = truth.sample(3000, seed=0)
    m = MarkovField(truth.factors, truth.event).fit(x, seed=0, tol=1e-12)
    assert m.report.stopped == "converged"
    assert list(m.report.objective) == sorted(m.report.objective)
    gap = max(np.abs(a - b).max() for a, b in zip(shares_of(m, x), expected_of(m), strict=True))
    assert gap < 1e-5
    assert max(np.abs(a - b).max() for a, b in zip(shares_of(m, x), expected_of(truth), strict=True)) > 1e-3
    assert m.log_likelihood == pytest.approx(m.log_prob(x).nats.sum(), rel=1e-10)
    assert m.log_likelihood > truth.log_prob(x).nats.sum()
    assert m.n_params == 1 + 2 + 1 + 1 + 2 + 1 + (2 + 2 + 1) + 2
    assert m.bic() > m.aic()


def test_free_parameters_are_the_rank_of_the_statistics():
    for m in (small(), MarkovField.ising(2, 3), MarkovField.grid(1, 3, levels=3)):
        codes = configurations(m)
        columns = [np.ones(len(codes))]
        for scope in m.plan.scopes:
            for level in itertools.product(*(range(m.cards[v]) for v in scope)):
                columns.append((codes[:, list(scope)] == level).all(1).astype(float))
        assert m.n_params == np.linalg.matrix_rank(np.stack(columns, 1)) - 1


@pytest.mark.parametrize("how", ["gaps", "hidden", "sides"])
def test_gradients_through_gaps_and_hidden_variables_vanish_at_the_fit(how):
    truth = rbm(5, 2, 9, 1.5)
    rows = truth.event.check(truth.sample(400, seed=0)).x.numpy()
    if how == "gaps":
        rows[np.random.default_rng(0).random(rows.shape) < 0.2] = np.nan
    m = MarkovField.rbm(5, 2)
    if how == "sides":
        m.limit = 10
        assert partition.affordable(m) == "sides"
    m.fit(rows, seed=1, l2=0.01, max_iter=2000, tol=1e-13)
    assert m.report.objective[-1] > m.report.objective[0]

    def penalised():
        return m.log_prob(rows).nats.mean() - 0.005 * sum(float(b.square().sum()) for b in m.detached())

    top = penalised()
    assert m.report.objective[-1] == pytest.approx(top, abs=1e-9)
    rng = np.random.default_rng(3)
    for block in m.blocks:
        way, step = torch.from_numpy(rng.normal(size=tuple(block.shape))), 1e-4
        block.data += step * way
        up = penalised()
        block.data -= 2 * step * way
        down = penalised()
        block.data += step * way
        assert abs(up - down) / (2 * step) < 2e-4


def test_persistent_chains_come_near_the_exact_fit_and_say_what_they_did():
    truth = rbm(6, 2, 10, 1.5)
    x = truth.event.check(truth.sample(2000, seed=0)).x.numpy()
    m = MarkovField.rbm(6, 2).fit(x, seed=0, method="persistent", steps=600, learning_rate=0.03)
    blank = MarkovField(m.factors, m.event, hidden=m.hidden).imported()
    score, start = m.log_prob(x).nats.mean(), blank.log_prob(x).nats.mean()
    assert score > truth.log_prob(x).nats.mean() - 0.15 > start
    assert m.report.objective == ()
    assert "never computed" in m.report.notes[0]
    with pytest.raises(NotFittedError):
        m.aic()


def test_pseudo_likelihood_is_a_score_and_its_fit_is_consistent():
    m = small(11, 0.8)
    x = m.sample(20_000, seed=0)
    score = m.pseudo_log_prob(x)
    assert score.kind is Kind.SCORE
    codes = m.event.check(x).x.numpy()[:20]
    by_hand = np.zeros(20)
    for v in range(4):
        row = codes.copy()
        row[:, v] = np.nan
        by_hand += summed(m, codes) - summed(m, row)
    np.testing.assert_allclose(score.nats[:20], by_hand, rtol=1e-10)
    fitted = MarkovField(m.factors, m.event).fit(x, seed=0, method="pseudo")
    apart = np.abs(np.exp(fitted.log_prob(x).nats) - np.exp(m.log_prob(x).nats)).max()
    assert apart < 0.01
    assert fitted.report.objective[-1] == pytest.approx(fitted.pseudo_log_prob(x).nats.mean(), abs=1e-9)
    gaps = {"a": [1, 0], "b": [None, 0], "c": [0, 1], "d": [1, 1]}
    assert m.log_prob(gaps, by=PseudoLikelihood()).refused.tolist() == [True, False]
    assert rbm().log_prob(np.zeros((1, 5)), by=PseudoLikelihood()).refused.all()


def test_structural_zeros_stay_and_rows_they_forbid_are_named():
    m = small(12, zero=True)
    x = m.event.check(m.sample(500, seed=0)).x.numpy()
    m.fit(x, seed=0, l2=0.01)
    assert np.isneginf(m.potential("b", "a")[1]).all()
    assert m.log_prob({"a": [0], "b": [1], "c": [0], "d": [0]}).impossible.all()
    with pytest.raises(DataError, match="Row 1 is impossible"):
        m.fit(np.array([[0.0, 0, 0, 0], [0, 1, 0, 0]]))
    for ask in (m.marginals, m.mpe, lambda given: m.sample(2, given=given)):
        with pytest.raises(ZeroEvidenceError):
            ask({"b": 1})
    with pytest.raises(ZeroEvidenceError):
        m.marginals({"b": 1}, by=LoopyBP())


# The program, files, the store


@pytest.mark.parametrize("name", ["loop", "hidden", "rbm"])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_enumerated_program_gives_the_likelihood(name, share):
    m = FIELDS[name]()
    rows = gappy(m, 5, share=share)
    x = m.event.check(m.event.restore(torch.from_numpy(rows), "dict")).x
    exact = m.log_prob(m.event.restore(x, "dict")).nats
    assert Enumerate()(m, x, generator=torch.Generator()).nats == pytest.approx(exact, abs=1e-10)
    loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False).loss(lambda: m.model(x), lambda: None)
    assert -loss == pytest.approx(exact.sum(), abs=1e-10)
    trace = pyro.poutine.trace(m.model).get_trace(x)
    assert sum(site.startswith("potential_") for site in trace.nodes) == len(m.factors)
    assert -loss - float(trace.nodes["log_partition"]["fn"].log_factor.detach().sum()) == pytest.approx(
        summed(m, rows).sum(), abs=1e-9
    )


@pytest.mark.parametrize("limit", [1 << 20, 4])
def test_the_program_trains_by_the_gradient_of_the_likelihood(limit):
    m = rbm(4, 2, 3)
    rows = gappy(m, 6, share=0.0)
    x = torch.from_numpy(rows)
    m.limit = limit
    TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(m.model, lambda x: None, x).backward()
    for block in m.blocks:
        way, step = torch.from_numpy(np.random.default_rng(0).normal(size=tuple(block.shape))), 1e-5
        block.data += step * way
        up = m.log_prob(rows).nats.sum()
        block.data -= 2 * step * way
        down = m.log_prob(rows).nats.sum()
        block.data += step * way
        assert -float((block.grad * way).sum()) == pytest.approx((up - down) / (2 * step), abs=1e-6)


def test_a_file_keeps_every_bit_of_the_potentials(tmp_path):
    m = small(13, zero=True)
    m.save_file(tmp_path / "m.uai")
    again = MarkovField.load_file(tmp_path / "m.uai")
    assert again.cards == m.cards
    np.testing.assert_allclose(float(again.log_partition()), float(m.log_partition()), rtol=1e-13)
    for a, b in zip(m.factors, again.factors, strict=True):
        names = [f"x{m.index[n]}" for n in a]
        np.testing.assert_allclose(again.potential(*names), m.potential(*a), rtol=1e-14, atol=1e-15)
        assert len(a) == len(b)
    again.save_file(tmp_path / "b.uai")
    once = MarkovField.load_file(tmp_path / "b.uai")
    assert once.log_prob(np.zeros((1, 4))).nats == pytest.approx(again.log_prob(np.zeros((1, 4))).nats, abs=1e-14)


def test_pgmpy_reads_our_files_the_same_way(tmp_path):
    readwrite = pytest.importorskip("pgmpy.readwrite")
    m = MarkovField.grid(2, 2, unary=np.array([0.3, -0.2]), across=np.eye(2), down=-np.eye(2))
    m.save_file(tmp_path / "m.uai")
    theirs = readwrite.UAIReader(path=str(tmp_path / "m.uai")).get_model()
    assert math.log(theirs.get_partition_function()) == pytest.approx(float(m.log_partition()), rel=1e-5)


GOOD = "MARKOV\n3\n2 2 3\n2\n2 0 1\n2 1 2\n\n4\n 4.0 2.4\n 1.0 0.0\n\n6\n 2 2 2\n 3 3 3\n"


def test_the_format_is_read_as_published(tmp_path):
    (tmp_path / "f.uai").write_text(GOOD)
    m = MarkovField.load_file(tmp_path / "f.uai")
    assert float(m.log_partition()) == pytest.approx(math.log(4 * 6 + 2.4 * 9 + 6))
    assert m.report.stopped == "imported"
    (tmp_path / "g.uai").write_text(
        GOOD.replace("\n2\n2 0 1", "\n3\n2 0 1\n2 1 0").replace("\n4\n", "\n4\n1 2 3 4\n4\n")
    )
    twice = MarkovField.load_file(tmp_path / "g.uai")
    assert "joined" in twice.report.notes[1]
    # (0, 1): 1 2 3 4, (1, 0): 4 2.4 1 0
    assert float(twice.log_partition()) == pytest.approx(math.log(4 * 6 + 2 * 1 * 9 + 3 * 2.4 * 6))


@pytest.mark.parametrize(("old", "new", "line"), [
    ("4.0", "-1", 9), ("4.0", "nan", 9), ("4.0", "inf", 9), ("4.0", "x", 9), ("4.0", "1_0", 9), ("MARKOV", "BAYES", 1),
    ("MARKOV", "NET", 1), ("2 2 3", "2 0 3", 3), ("2 2 3", "2 2 x", 3), ("2 0 1", "2 0 7", 5), ("2 0 1", "2 0 0", 5),
    ("2 1 2", "2 0 1", 6), ("\n4\n", "\n5\n", 8), (" 3 3 3\n", "", 13), (" 3 3 3\n", " 3 3 3\n9\n", 15),
    (" 4.0 2.4\n 1.0 0.0", " 0 0\n 0 0", 10), ("2 0 1", "0", 5), ("MARKOV\n3", "MARKOV\n0", 2),
])  # fmt: skip
def test_a_faulty_file_is_refused_with_its_line(tmp_path, old, new, line):
    path = tmp_path / "f.uai"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(StoreError, match=f"line {line}:"):
        MarkovField.load_file(path)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty.uai").write_text("")
    (tmp_path / "binary.uai").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("empty.uai", "binary.uai", "absent.uai"):
        with pytest.raises(StoreError):
            MarkovField.load_file(tmp_path / name)
    with pytest.raises(StoreError, match="800"):
        MarkovField({("a",): [800.0, 0.0]}).save_file(tmp_path / "m.uai")
    assert not (tmp_path / "m.uai").exists()


def test_evidence_files_become_rows_with_gaps(tmp_path):
    m, path = small(14), tmp_path / "e.evid"
    path.write_text("2 1 2 3 0\n")
    m.load_evidence(path)
    assert m.mpe(m.load_evidence(path))["b"][0].as_py() == 2
    path.write_text("2\n1 0 1\n2 3 0 2 1\n")
    rows = m.event.check(m.load_evidence(path)).x
    np.testing.assert_array_equal(rows, [[1, np.nan, np.nan, np.nan], [np.nan, np.nan, 1, 0]])
    path.write_text("0\n")
    assert m.event.check(m.load_evidence(path)).x.isnan().all()
    for bad in ("1 9 0", "1 0 2", "2 0 1", "2 0 1 0 0", "1 0 1 5", "x"):
        path.write_text(bad)
        with pytest.raises(StoreError, match="line 1"):
            m.load_evidence(path)


@pytest.mark.parametrize("name", ["loop", "hidden", "rbm"])
def test_a_saved_field_gives_the_same_bits_and_its_repr_builds_it(name, tmp_path, monkeypatch):
    monkeypatch.setitem(store.FAMILIES, "MarkovField", "probgen.models.markovfield")
    m = FIELDS[name]()
    store.save(m, tmp_path / "m")
    again = store.load(tmp_path / "m")
    assert repr(again) == repr(m)
    x = m.event.restore(torch.from_numpy(gappy(m)), "dict")
    assert (again.log_prob(x).nats == m.log_prob(x).nats).all()
    built = eval(repr(m), {"MarkovField": MarkovField, "Table": Table, "Category": Category})
    assert built.factors == m.factors
    assert built.report is None


def test_answers_do_not_depend_on_batch_order_or_form():
    m = small(15)
    rows = gappy(m, 12)
    frame = pd.DataFrame(rows, columns=list("abcd"))
    whole = m.log_prob(frame).nats
    np.testing.assert_array_equal(m.log_prob(frame[::-1]).nats[::-1], whole)
    np.testing.assert_array_equal(np.concatenate([m.log_prob(frame[i : i + 1]).nats for i in range(12)]), whole)
    np.testing.assert_array_equal(m.log_prob(frame[["d", "b", "a", "c"]]).nats, whole)


def test_a_picture_is_drawn(tmp_path):
    for name in ("m.png", "m.dot"):
        assert (
            rbm(3, 2).plot(tmp_path / name, **({} if name.endswith("dot") else {"engine": "own"})).stat().st_size > 100
        )
    with pytest.raises(ParameterError):
        rbm(3, 2).plot(tmp_path / "m.txt")


# Refusals

Z22 = np.zeros((2, 2))


@pytest.mark.parametrize("build", [
    lambda: MarkovField({("a", "b"): np.array([[0, math.nan], [0, 0]])}),
    lambda: MarkovField({("a",): [0.0, math.inf]}),
    lambda: MarkovField({("a",): [-math.inf, -math.inf]}), lambda: MarkovField({("a",): []}),
    lambda: MarkovField({("a",): ["x", "y"]}), lambda: MarkovField({("a",): [[0, 1], [2]]}),
    lambda: MarkovField({("a", "b"): np.zeros(2)}), lambda: MarkovField({("a",): np.zeros(3), ("a", "b"): Z22}),
    lambda: MarkovField({("a", "a"): Z22}), lambda: MarkovField({("a", "b"): Z22, ("b", "a"): Z22}),
    lambda: MarkovField({}), lambda: MarkovField({(): 0.0}), lambda: MarkovField({(1, 2): Z22}), lambda: MarkovField(3),
    lambda: MarkovField("ab"), lambda: MarkovField([("a", "b")]), lambda: MarkovField([("a", "b")], levels={"a": 2}),
    lambda: MarkovField({("a",): [0, 1]}, levels={"a": 2, "b": 2}),
    lambda: MarkovField({("a",): [0, 1]}, levels={"a": 3}),
    lambda: MarkovField({("a",): [0, 1]}, levels={"a": ("x", "x")}), lambda: MarkovField({("a",): [0, 1]}, levels=2),
    lambda: MarkovField({("a",): [0, 1]}, hidden=("a",)), lambda: MarkovField({("a",): [0, 1]}, hidden=("h",)),
    lambda: MarkovField({("a",): [0, 1]}, hidden="a"), lambda: MarkovField({("a",): [0, 1]}, Table({"a": Real()})),
    lambda: MarkovField({("a",): [0, 1]}, Array((2,))), lambda: MarkovField({("a",): [0, 1]}, 3),
    lambda: MarkovField({("b",): [0, 1]}, Table({"a": Category((0, 1))})),
    lambda: MarkovField({("a",): [0, 1]}, Table({"a": Category((0, 1)), "b": Category((0, 1))})),
    lambda: MarkovField({("a",): [0, 1]}, Table({"a": Category((0, 1))}), levels={"a": 2}),
    lambda: MarkovField.grid(0, 2), lambda: MarkovField.grid(2, 2, unary=np.zeros((3, 2))),
    lambda: MarkovField.ising(2, 2, periodic=True), lambda: MarkovField.ising(2, 2, math.nan),
    lambda: MarkovField.rbm(2, 0), lambda: MarkovField.rbm(2, 2, weights=np.zeros((2, 3))),
    lambda: MarkovField.rbm(2, 2, columns=["a", "a"]), lambda: MarkovField.for_event(Table({"a": Real()})),
])  # fmt: skip
def test_fields_that_make_no_sense_are_refused(build):
    with pytest.raises((ParameterError, StructureError, ShapeError)):
        build()


def test_a_variable_without_factors_is_named():
    with pytest.raises(StructureError, match="'b'"):
        MarkovField({("a",): [0.0, 1.0]}, Table({"a": Category((0, 1)), "b": Category((0, 1))}))


@pytest.mark.parametrize("ask", [
    lambda m: m.sample(2, method="exactly"), lambda m: m.sample(2, sweeps=0), lambda m: m.sample(2, given={}),
    lambda m: m.sample(2, given={"e": 1}), lambda m: m.sample(2, given=3), lambda m: m.log_partition(by=3),
    lambda m: m.log_partition(by=RAISE()), lambda m: m.marginals(by=PartitionAIS()), lambda m: m.marginals({"e": 1}),
    lambda m: m.fit(np.zeros((2, 4)), method="mcmc"), lambda m: m.fit(np.zeros((2, 4)), l2=-1.0),
    lambda m: m.fit(np.zeros((2, 4)), max_iter=0), lambda m: m.fit(np.zeros((2, 4)), tol=math.nan),
    lambda m: m.fit(np.zeros((2, 4)), chains=True), lambda m: m.potential("a", "c"), lambda m: PartitionAIS(chains=1),
    lambda m: PartitionAIS(temperatures=0), lambda m: LoopyBP(damping=1.0), lambda m: LoopyBP(tol=-1),
    lambda m: m.log_partition(seed=-1),
    lambda m: m.log_prob({"a": [0], "b": [0], "c": [0], "d": [0]}, given={"a": 0}),
])  # fmt: skip
def test_questions_that_make_no_sense_are_refused(ask):
    with pytest.raises(ParameterError):
        ask(small())


def test_odd_data_are_refused_by_name():
    m = small()
    with pytest.raises(SupportError, match="column b"):
        m.log_prob({"a": [0], "b": [3], "c": [0], "d": [0]})
    with pytest.raises(SupportError):
        m.marginals({"b": 9})
    with pytest.raises(ShapeError):
        m.log_prob(np.zeros((2, 3)))
    with pytest.raises(StructureError):
        m.fit(np.array([[0, 1, np.nan, 1.0]]), method="pseudo")
    with pytest.raises(NotFittedError):
        MarkovField(m.factors, m.event).log_prob(np.zeros((1, 4)))
    with pytest.raises(FitError):
        m.fit(np.zeros((3, 4)), method="persistent", learning_rate=1e308, steps=5)
    for value in (math.nan, math.inf):
        broken = copy.deepcopy(m)
        broken.blocks[0].data[0, 0] = value
        for ask in (lambda b=broken: b.log_prob(np.zeros((1, 4))), broken.marginals, lambda b=broken: b.sample(1)):
            with pytest.raises(ProbgenError):
                ask()
