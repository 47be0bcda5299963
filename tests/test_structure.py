"""Learning graphs: scores against closed forms and pgmpy, searches against all graphs, what is refused."""

import importlib.machinery
import itertools
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from probgen import kernels
from probgen.errors import DataError, ParameterError, ShapeError, StructureError
from probgen.events import Category, Count, Real, Table
from probgen.models.bayesnet import BayesianNetwork, graph
from probgen.models.bayesnet import structure as st
from probgen.models.bayesnet.structure.exact import _code_words
from probgen.models.bayesnet.structure.strengths import bootstrap

CRITERIA = [
    st.Criterion("loglik"),
    st.Criterion("bic"),
    st.Criterion("aic"),
    st.Criterion("bdeu", 3.5),
    st.Criterion("k2"),
]
needs_kernel = pytest.mark.skipif(kernels.counting is None, reason="the kernel was not built")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def table(cards):
    return Table({f"x{i}": Category(tuple(f"v{j}" for j in range(card))) for i, card in enumerate(cards)})


def drawn(cards, parents, n, seed, sharp=0.4):
    """Rows of a random network: (n, V) codes."""
    rng, x = np.random.default_rng(seed), np.zeros((n, len(cards)), dtype=int)
    for v, own in enumerate(parents):
        labels = np.zeros(n, dtype=int)
        for p in own:
            labels = labels * cards[p] + x[:, p]
        rows = rng.dirichlet(np.full(cards[v], sharp), math.prod(cards[p] for p in own))
        x[:, v] = (rng.random(n)[:, None] > rows.cumsum(1)[labels][:, :-1]).sum(1)
    return x


def chain(V, n, seed, flips=0.1):
    """Rows of two levels, each column the one before with some cells flipped."""
    rng = np.random.default_rng(seed)
    return np.cumsum(np.c_[rng.random(n) < 0.5, rng.random((n, V - 1)) < flips], axis=1) % 2


def noise(cards, n, seed):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, card, n) for card in cards], axis=1)


def data_of(cards, x, share=1.0):
    return st.read(table(cards), x.astype(float), share)


def frame_of(x):
    return pd.DataFrame({f"x{i}": [f"v{j}" for j in column] for i, column in enumerate(x.T)})


def parents_in(found):
    return [np.flatnonzero(column).tolist() for column in found.T]


def without_kernel(monkeypatch):
    monkeypatch.setattr(kernels, "counting", None)


SMALL, CHAIN = (2, 3, 2, 4, 2), [(), (0,), (1,), (0, 2), (3,)]


# Counting and scores


@needs_kernel
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
def test_contingency_tables_are_those_of_numpy(dtype):
    cards, rng = np.array([2, 5, 1, 60, 3]), np.random.default_rng(0)
    x = noise(cards, 700, 1)
    families = [rng.permutation(5)[: rng.integers(1, 5)] for _ in range(20)]
    sizes = [int(cards[f].prod()) for f in families]
    out, starts = np.empty(sum(sizes), dtype=np.int64), np.cumsum([0, *map(len, families)])
    codes = np.ascontiguousarray(x.T.astype(dtype))
    kernels.counting.counts(codes, cards, np.concatenate(families), starts, out)
    for family, found in zip(families, np.split(out, np.cumsum(sizes)[:-1]), strict=True):
        axes = [*family[1:], family[0]]
        flat = np.ravel_multi_index([x[:, v] for v in axes], cards[axes])
        np.testing.assert_array_equal(found, np.bincount(flat, minlength=len(found)))


@needs_kernel
@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda c: c.name)
@pytest.mark.parametrize("share", [1.0, 0.125])
def test_the_kernel_scores_as_numpy_does(monkeypatch, criterion, share):
    """Constant columns, columns too wide to be packed, more configurations than rows, rows that count in part."""
    rng = np.random.default_rng(2)
    for cards in [(2, 3, 4, 1, 2, 3), (60, 2, 300, 5, 49), (9, 9, 9, 9, 9, 9, 9), (2,)]:
        data = data_of(cards, drawn(cards, [tuple(range(max(v - 1, 0), v)) for v in range(len(cards))], 400, 3), share)
        families = [(0, ())] + [
            (int(f[0]), tuple(map(int, f[1:])))
            for f in (rng.permutation(len(cards))[: rng.integers(1, len(cards) + 1)] for _ in range(8))
        ]
        compiled = st.Scorer(data, criterion).rows(families)
        with monkeypatch.context() as patch:
            without_kernel(patch)
            plain = st.Scorer(data, criterion).rows(families)
        np.testing.assert_allclose(compiled, plain, rtol=1e-11, atol=1e-9)


def test_bdeu_and_k2_are_their_closed_forms():
    """Heckerman et al. 1995 equation 35, Cooper and Herskovits 1992 equation 5: cell by cell with factorials."""
    x = drawn(SMALL, CHAIN, 60, 4)
    data = data_of(SMALL, x)
    for child, parents in [(3, (0, 2)), (1, ()), (0, (1, 3))]:
        r, configurations = SMALL[child], list(itertools.product(*(range(SMALL[p]) for p in parents)))
        bdeu = k2 = 0.0
        for own in configurations:
            rows = (x[:, parents] == own).all(1)
            counts = [int((x[rows, child] == level).sum()) for level in range(r)]
            alpha = 3.5 / len(configurations)
            bdeu += math.lgamma(alpha) - math.lgamma(alpha + sum(counts))
            bdeu += sum(math.lgamma(alpha / r + c) - math.lgamma(alpha / r) for c in counts)
            k2 += math.log(math.factorial(r - 1)) - math.log(math.factorial(sum(counts) + r - 1))
            k2 += sum(math.log(math.factorial(c)) for c in counts)
        assert st.Scorer(data, CRITERIA[3]).local(child, parents) == pytest.approx(bdeu, abs=1e-9)
        assert st.Scorer(data, CRITERIA[4]).local(child, parents) == pytest.approx(k2, abs=1e-9)


def test_scores_are_those_of_pgmpy_on_random_graphs():
    scores = pytest.importorskip("pgmpy.structure_score")
    x, rng = drawn(SMALL, CHAIN, 500, 5), np.random.default_rng(6)
    event, frame = table(SMALL), frame_of(x)
    levels = {name: list(column.levels) for name, column in event.columns.items()}
    theirs = [
        scores.BIC(frame, state_names=levels), scores.AIC(frame, state_names=levels),
        scores.BDeu(frame, equivalent_sample_size=3.5, state_names=levels), scores.K2(frame, state_names=levels),
    ]  # fmt: skip
    for ours, other in zip(CRITERIA[1:], theirs, strict=True):
        scorer = st.Scorer(data_of(SMALL, x), ours)
        for _ in range(6):
            order = rng.permutation(5)
            family = int(order[0]), tuple(map(int, order[1 : rng.integers(1, 4)]))
            wanted = other.local_score(f"x{family[0]}", tuple(f"x{p}" for p in family[1]))
            assert scorer.local(*family) == pytest.approx(wanted, abs=1e-9), (ours, family)


def all_graphs(V):
    """Every directed acyclic graph of V columns, as the parents of each."""
    pairs = [(a, b) for a in range(V) for b in range(V) if a != b]
    for chosen in itertools.product((0, 1), repeat=len(pairs)):
        found = np.zeros((V, V), dtype=np.uint8)
        for (a, b), there in zip(pairs, chosen, strict=True):
            found[a, b] = there
        power = found.astype(int)
        if not any((power := power @ found).trace() for _ in range(V - 1)) and not found.trace():
            yield found


def test_markov_equivalent_graphs_score_alike_and_k2_shows_that_the_check_can_fail():
    cards, names = (2, 3, 2), ("x0", "x1", "x2")
    data = data_of(cards, drawn(cards, [(), (0,), (0, 1)], 200, 7))
    for criterion in CRITERIA:
        scorer, classes = st.Scorer(data, criterion), {}
        for found in all_graphs(3):
            own = {names[v]: [names[p] for p in p_own] for v, p_own in enumerate(parents_in(found))}
            classes.setdefault(str(graph.cpdag(own)), []).append(scorer.total(parents_in(found)))
        assert len(classes) == 11
        spread = max(max(own) - min(own) for own in classes.values())
        assert (spread < 1e-9) == (criterion.name != "k2")


# Searches


@pytest.mark.parametrize("criterion", CRITERIA[1:], ids=lambda c: c.name)
def test_exact_search_finds_the_best_of_all_543_graphs(criterion):
    cards = (2, 3, 2, 2)
    scorer = st.Scorer(data_of(cards, drawn(cards, [(), (), (0, 1), (2,)], 120, 8)), criterion)
    totals = {scorer.total(parents_in(found)) for found in all_graphs(4)}
    found = st.exact(scorer, st.Constraints.of(scorer.data))
    assert scorer.total(parents_in(found)) == pytest.approx(max(totals), abs=1e-9)
    assert len(totals) > 100


def test_exact_search_meets_constraints_and_is_best_among_the_graphs_that_do():
    cards = (2, 2, 2, 2)
    scorer = st.Scorer(data_of(cards, drawn(cards, [(), (0,), (0, 1), (2,)], 200, 9)), st.Criterion())
    rules = {"forbidden": [("x0", "x2")], "required": [("x3", "x0")], "max_parents": 2, "tiers": [["x1", "x3"], ["x2"]]}
    bounds = st.Constraints.of(scorer.data, **rules)

    def meets(found):
        return found[3, 0] and not found[0, 2] and not found[2, [1, 3]].any() and found.sum(0).max() <= 2

    best = max(scorer.total(parents_in(found)) for found in all_graphs(4) if meets(found))
    for found in (st.exact(scorer, bounds), st.greedy(scorer, bounds, st.Greedy(), bounds.required)[0]):
        assert meets(found)
        assert scorer.total(parents_in(found)) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("length", range(12))
def test_code_words_cover_every_set_with_one_change(length):
    words = _code_words(length)
    near = {int(w) ^ flip for w in words for flip in (0, *(1 << bit for bit in range(length)))}
    assert near == set(range(2**length))
    assert len(words) <= 2**length / 2 ** ((length + 1).bit_length() - 1)


def random_case(seed, V=9):
    rng = np.random.default_rng(seed)
    cards = tuple(map(int, rng.integers(2, 4, V)))
    parents = [tuple(map(int, rng.permutation(v)[: rng.integers(0, 3)])) for v in range(V)]
    return cards, parents


@needs_kernel
@pytest.mark.parametrize("seed", range(6))
def test_the_kernel_takes_the_steps_of_the_search_in_numpy(monkeypatch, seed):
    cards, parents = random_case(seed)
    data = data_of(cards, drawn(cards, parents, 300, seed))
    rules = [{}, {"max_parents": 2}, {"forbidden": [("x0", "x1"), ("x1", "x0")], "required": [("x5", "x2")]}][seed % 3]
    criterion = CRITERIA[1 + seed % 4]
    how = st.Greedy(restarts=4, kicks=5, seed=seed) if seed % 2 else st.Greedy.hill(restarts=4, kicks=5, seed=seed)
    bounds = st.Constraints.of(data, **rules)
    found, steps = st.greedy(st.Scorer(data, criterion), bounds, how, bounds.required)
    without_kernel(monkeypatch)
    plain, plain_steps = st.greedy(st.Scorer(data, criterion), bounds, how, bounds.required)
    np.testing.assert_array_equal(found, plain)
    assert [s[:3] for s in steps] == [s[:3] for s in plain_steps]
    np.testing.assert_allclose([s.total for s in steps], [s.total for s in plain_steps], rtol=1e-11)
    assert len(steps) > 20


@pytest.mark.parametrize("seed", range(4))
def test_tabu_search_finds_the_best_graph_of_small_networks_and_one_climb_may_not(seed):
    cards, parents = random_case(seed, 8)
    data = data_of(cards, drawn(cards, parents, 1000, seed))
    scorer, bounds = st.Scorer(data, st.Criterion()), st.Constraints.of(data)
    best = scorer.total(parents_in(st.exact(scorer, bounds)))
    tabu = scorer.total(parents_in(st.greedy(scorer, bounds, st.Greedy(seed=1), bounds.required)[0]))
    climb = scorer.total(parents_in(st.greedy(scorer, bounds, st.Greedy.hill(restarts=0), bounds.required)[0]))
    assert tabu == pytest.approx(best, abs=1e-8)
    assert climb <= best + 1e-8


def test_every_step_is_legal_and_says_the_total_it_leads_to():
    cards, parents = random_case(3, 12)
    data = data_of(cards, drawn(cards, parents, 500, 3))
    scorer, bounds = st.Scorer(data, st.Criterion()), st.Constraints.of(data, max_parents=3)
    _, steps = st.greedy(scorer, bounds, st.Greedy(restarts=0, seed=0), bounds.required)
    edges = set()
    for action, parent, child, total in steps:
        edge = (parent, child)
        assert (edge in edges) == (action != "add")
        edges = edges - {edge} | ({edge} if action == "add" else {edge[::-1]} if action == "reverse" else set())
        own = graph.parents_of(data.names, sorted(edges))
        assert graph.find_cycle(own) is None
        numbers = [[data.names.index(p) for p in own[name]] for name in data.names]
        assert scorer.total(numbers) == pytest.approx(total, abs=1e-8)
        assert max(map(len, numbers)) <= 3


def test_a_seed_gives_the_same_graph_and_another_one_other_steps():
    x = frame_of(drawn(SMALL, CHAIN, 300, 10))
    one, same, other = (st.learn(x, seed=seed).structure for seed in (1, 1, 2))
    assert one.edges == same.edges
    assert one.history == same.history
    assert one.history != other.history


# Trees


def spanning_trees(V):
    for edges in itertools.combinations(itertools.combinations(range(V), 2), V - 1):
        reached = {0}
        for _ in range(V):
            reached |= {v for edge in edges if reached & set(edge) for v in edge}
        if len(reached) == V:
            yield edges


def information(x, a, b, given=None):
    """Mutual information of two columns (given a third) times the rows, by definition."""
    total = 0.0
    for value in [None] if given is None else np.unique(x[:, given]):
        own = x if given is None else x[x[:, given] == value]
        for u, v in itertools.product(np.unique(own[:, a]), np.unique(own[:, b])):
            both = ((own[:, a] == u) & (own[:, b] == v)).sum()
            if both:
                total += both * math.log(both * len(own) / ((own[:, a] == u).sum() * (own[:, b] == v).sum()))
    return total


def test_chow_liu_is_the_heaviest_of_all_125_trees():
    x = drawn(SMALL, CHAIN, 300, 11)
    found = st.chow_liu(data_of(SMALL, x), "x3")
    weight = {pair: information(x, *pair) for pair in itertools.combinations(range(5), 2)}
    totals = sorted(sum(weight[edge] for edge in tree) for tree in spanning_trees(5))
    assert sum(weight[tuple(sorted(edge))] for edge in np.argwhere(found)) == pytest.approx(totals[-1], abs=1e-9)
    assert totals[-1] > totals[-2] + 1e-6
    assert found.sum(0).tolist() == [1, 1, 1, 0, 1]


def test_tan_is_the_heaviest_tree_given_the_class():
    x = drawn(SMALL, CHAIN, 300, 12)
    found = st.tan(data_of(SMALL, x), "x4")
    weight = {pair: information(x, *pair, given=4) for pair in itertools.combinations(range(4), 2)}
    best = max(sum(weight[edge] for edge in tree) for tree in spanning_trees(4))
    assert found[4].tolist() == [1, 1, 1, 1, 0]
    between = [tuple(sorted(edge)) for edge in np.argwhere(found[:4, :4])]
    assert sum(weight[edge] for edge in between) == pytest.approx(best, abs=1e-9)


# Real columns and counts


def mixed_rows(n=600, seed=13):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, n), rng.integers(0, 3, n)
    h = 1e3 + np.where(a, 4.0, -3.0) + rng.normal(size=n)
    k = 0.7 * h + b * 2.0 + 0.5 * rng.normal(size=n)
    frame = pd.DataFrame({"a": a.astype(str), "b": b.astype(str), "h": h, "k": k, "w": rng.normal(size=n)})
    event = Table({"a": Category(("0", "1")), "b": Category(("0", "1", "2")), "h": Real(), "k": Real(), "w": Real()})
    return event, frame


def test_conditional_gaussian_scores_are_least_squares_in_each_configuration():
    event, frame = mixed_rows()
    scorer = st.Scorer(st.read(event, event.check(frame).x.numpy()), st.Criterion())
    wanted = 0.0
    for _, own in frame.groupby(["a", "b"]):
        inputs = np.c_[np.ones(len(own)), own[["h", "w"]]]
        rest = own["k"] - inputs @ np.linalg.lstsq(inputs, own["k"], rcond=None)[0]
        wanted += -0.5 * len(own) * (math.log(2 * math.pi * (rest**2).mean()) + 1)
    wanted -= 0.5 * math.log(len(frame)) * 6 * 4
    assert scorer.local(3, (0, 1, 2, 4)) == pytest.approx(wanted, abs=1e-7)
    assert scorer.local(0, (2,)) == -math.inf


def test_gaussian_scores_are_those_of_pgmpy():
    scores = pytest.importorskip("pgmpy.structure_score")
    event, frame = mixed_rows()
    real = frame[["h", "k", "w"]]
    event = Table({name: event.columns[name] for name in real})
    scorer = st.Scorer(st.read(event, real.to_numpy()), st.Criterion())
    for child, parents in [(0, ()), (1, (0,)), (2, (0, 1)), (1, (0, 2))]:
        names = [real.columns[v] for v in (child, *parents)]
        assert scorer.local(child, parents) == pytest.approx(
            scores.BICGauss(real).local_score(names[0], tuple(names[1:]))
        )


def test_mixed_columns_give_the_graph_they_came_from_and_its_bic():
    event, frame = mixed_rows(1500)
    net = st.learn(frame, event=event, seed=0)
    assert set(net.edges) == {("a", "h"), ("h", "k"), ("b", "k")}
    assert net.structure.score == pytest.approx(-net.bic() / 2, rel=1e-9)
    assert "a category has no continuous parents" in net.structure.notes
    best = st.learn(frame, event=event, method="exact", seed=0).structure
    assert best.score == pytest.approx(net.structure.score, abs=1e-7)


@pytest.mark.filterwarnings("ignore::probgen.model.TiesWarning")
def test_collinear_and_constant_real_columns_have_finite_scores():
    rng = np.random.default_rng(14)
    h = rng.normal(size=300)
    frame = pd.DataFrame({"h": h, "twice": 2 * h, "sum": h + rng.normal(size=300), "still": np.full(300, 3.0)})
    found = st.learn(frame, event=Table({name: Real() for name in frame}), seed=0).structure
    assert math.isfinite(found.score)
    assert "constant, so left without edges: still" in found.notes
    assert not any("still" in edge for edge in found.edges)


def test_counts_are_read_as_normal_in_the_score_and_that_is_said():
    rng = np.random.default_rng(15)
    h = rng.normal(size=500)
    frame = pd.DataFrame({"h": h, "visits": rng.poisson(np.exp(1 + h))})
    net = st.learn(frame, event=Table({"h": Real(), "visits": Count()}), seed=0)
    assert len(net.edges) == 1
    assert any("counts" in note and "visits" in note for note in net.structure.notes)


# Missing cells


def test_structural_em_finds_the_graph_behind_the_gaps():
    cards, x = (2, 2, 2, 2), chain(4, 1500, 16)
    frame = frame_of(x).mask(np.random.default_rng(17).random(x.shape) < 0.2)
    net = st.learn(frame, event=table(cards), seed=0)
    whole = st.learn(frame_of(x), event=table(cards), seed=0)
    assert net.structure.distance(whole.edges) == 0
    assert len(net.edges) == 3
    observed = float(net.log_prob(frame).nats.sum()) - 0.5 * net.n_params * math.log(len(frame))
    assert net.structure.score == pytest.approx(observed, rel=1e-6)
    assert st.learn(frame, event=table(cards), seed=0).edges == net.edges
    assert any("structural EM" in note for note in net.structure.notes)


def test_structural_em_takes_real_columns_too():
    event, frame = mixed_rows(800)
    frame = frame.mask(np.random.default_rng(18).random(frame.shape) < 0.05)
    assert set(st.learn(frame, event=event, seed=0).edges) == {("a", "h"), ("h", "k"), ("b", "k")}


def test_completed_rows_count_once():
    x = drawn(SMALL, CHAIN, 200, 19)
    for criterion in CRITERIA:
        once = st.Scorer(data_of(SMALL, x), criterion).local(3, (0, 2))
        eight = st.Scorer(data_of(SMALL, np.repeat(x, 8, axis=0), 1 / 8), criterion).local(3, (0, 2))
        assert eight == pytest.approx(once, abs=1e-9)


# Bootstrap


def test_strengths_do_not_depend_on_the_workers_and_know_edges_from_noise():
    cards = (2, 2, 2, 2)
    x = drawn(cards, [(), (0,), (), ()], 400, 20, sharp=0.2)
    frame = frame_of(x)
    one, three = (st.learn(frame, bootstrap=30, workers=w, seed=5).structure.strengths for w in (1, 3))
    np.testing.assert_array_equal(one.shares, three.shares)
    assert one[("x0", "x1")] == 1.0
    assert one.direction(("x0", "x1")) == 0.5
    assert max(one[pair] for pair in itertools.combinations(one.names, 2) if pair != ("x0", "x1")) < 0.5
    assert [edge[:2] for edge in one.edges()] == [("x0", "x1")]
    assert math.isnan(one.direction(("x2", "x2")))


def test_strengths_are_shares_of_the_learned_graphs():
    found = iter([np.array([[0, 1, 0], [0, 0, 0], [0, 1, 0]]), np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])])
    own = bootstrap(("a", "b", "c"), 10, 2, lambda rows, seed: next(found), seed=0)
    np.testing.assert_array_equal(own.shares, [[0, 0.75, 0], [0.25, 0, 0.25], [0, 0.75, 0]])
    assert own.edges(0.5) == [("a", "b", 1.0, 0.75), ("c", "b", 1.0, 0.75)]


# The whole of it


def test_a_frame_becomes_a_fitted_network_that_says_how():
    x = drawn(SMALL, CHAIN, 2000, 21, sharp=0.3)
    net = BayesianNetwork.learn(frame_of(x), event=table(SMALL), seed=0)
    found = net.structure
    assert net.learned
    assert found.score == pytest.approx(-net.bic() / 2, rel=1e-9)
    assert found.score == pytest.approx(sum(found.families.values()))
    assert found.distance([(f"x{p}", f"x{v}") for v, own in enumerate(CHAIN) for p in own]) <= 1
    assert found.cpdag == net.cpdag()
    assert len(found.frame()) == len(net.edges)
    assert set(net.report.notes) >= set(found.notes)


def test_more_rows_bring_the_learned_graph_to_the_true_one():
    """A planted twin: shuffled columns hold nothing, and stay as far away as the graph has edges."""
    cards, parents = random_case(7, 12)
    edges = [(f"x{p}", f"x{v}") for v, own in enumerate(parents) for p in own]
    x = drawn(cards, parents, 20_000, 22, sharp=0.3)
    distances = [st.learn(frame_of(x[:n]), event=table(cards), seed=0).structure.distance(edges) for n in (100, 20_000)]
    assert distances[1] <= 2 < distances[0]
    shuffled = np.random.default_rng(23).permuted(x, axis=0)
    assert st.learn(frame_of(shuffled), event=table(cards), seed=0).structure.distance(edges) >= len(edges)


def test_bdeu_brings_its_prior_to_the_tables():
    frame = frame_of(drawn(SMALL, CHAIN, 40, 24))
    net = st.learn(frame, event=table(SMALL), score="bdeu", ess=4.0, seed=0)
    assert all(bool(torch.isfinite(net.conditional(name).log_table()).all()) for name in net.variables)
    assert net.structure.criterion == "bdeu(4)"


def test_directions_that_are_known_direct_the_class():
    cards, frame = (2, 2, 2), frame_of(chain(3, 800, 25))
    free = st.learn(frame, event=table(cards), seed=0).structure.cpdag
    tiered = st.learn(frame, event=table(cards), tiers=[["x0"], ["x1", "x2"]], seed=0).structure.cpdag
    assert free == ([], [("x0", "x1"), ("x1", "x2")])
    assert tiered == ([("x0", "x1"), ("x1", "x2")], [])


def test_notes_tell_constant_columns_unseen_levels_and_numbers_taken_as_categories():
    event = Table({"n": Category((0, 1, 2)), "s": Category(("a", "b")), "still": Category(("x", "y"))})
    frame = pd.DataFrame({"n": [0, 1] * 50, "s": ["a", "b"] * 50, "still": ["x"] * 100})
    found = st.learn(frame, event=event, seed=0).structure
    assert len(found.edges) == 1
    assert "numbers read as categories: n (3 levels)" in found.notes
    assert "constant, so left without edges: still" in found.notes
    assert "levels that never occur, but count as parameters: n=2, still='y'" in found.notes


def test_one_row_gives_no_edges_and_says_so():
    found = st.learn(pd.DataFrame({"a": ["u"], "b": ["v"]}), seed=0).structure
    assert found.edges == ()
    assert "one row: it can show no edge" in found.notes


# What is refused


def rows(n=60, V=4):
    return frame_of(noise((2,) * V, n, 26))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"score": "bik"}, ParameterError, "bic"),
        ({"ess": 0}, ParameterError, "above 0"),
        ({"method": "pc"}, ParameterError, "chow-liu"),
        ({"method": "tan"}, ParameterError, "target"),
        ({"method": "tan", "target": "y"}, ParameterError, "Known"),
        ({"target": "x0"}, ParameterError, "tan"),
        ({"method": "chow-liu", "root": "y"}, ParameterError, "Known"),
        ({"method": "chow-liu", "max_parents": 2}, ParameterError, "tabu"),
        ({"method": "exact", "restarts": 3}, ParameterError, "no option"),
        ({"restart": 3}, ParameterError, "restarts"),
        ({"restarts": -1}, ParameterError, "whole number"),
        ({"kicks": 1.5}, ParameterError, "whole number"),
        ({"seed": -1}, ParameterError, "seed"),
        ({"bootstrap": 1.5}, ParameterError, "whole number"),
        ({"bootstrap": 2, "workers": 0}, ParameterError, "workers"),
        ({"max_parents": -1}, ParameterError, "max_parents"),
        ({"max_parents": True}, ParameterError, "max_parents"),
        ({"forbidden": "x0"}, ParameterError, "pairs"),
        ({"forbidden": [("x0", "x1", "x2")]}, ParameterError, "pair"),
        ({"required": [("x0", "y")]}, ParameterError, "Did you mean|Known"),
        ({"required": [("x0", "x0")]}, StructureError, "two different"),
        ({"required": [("x0", "x1"), ("x1", "x2"), ("x2", "x0")]}, StructureError, "cycle: x. -> x. -> x. -> x."),
        ({"required": [("x0", "x1")], "forbidden": [("x0", "x1")]}, StructureError, "required and forbidden"),
        ({"required": [("x0", "x1")], "tiers": [["x1"], ["x0"]]}, StructureError, "earlier tier"),
        ({"required": [("x0", "x3"), ("x1", "x3")], "max_parents": 1}, StructureError, "max_parents is 1"),
        ({"tiers": [["x0"], ["x0"]]}, ParameterError, "twice"),
        ({"tiers": [["y"]]}, ParameterError, "Known"),
        ({"tiers": "x0"}, ParameterError, "groups"),
        ({"event": Real()}, StructureError, "Table"),
    ],
)  # fmt: skip
def test_questions_that_make_no_sense_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        st.learn(rows(), **{"seed": 0, **options})


def test_data_that_no_graph_can_be_learned_from_are_refused():
    with pytest.raises(DataError):
        st.learn(pd.DataFrame({"a": []}))
    with pytest.raises(StructureError, match="Table"):
        st.learn(np.zeros((5, 2)))
    with pytest.raises(ShapeError):
        st.learn(rows(), event=table((2, 2)))
    with pytest.raises(DataError, match="at least two rows"):
        st.learn(pd.DataFrame({"h": [1.0]}), event=Table({"h": Real()}))
    with pytest.raises(StructureError, match="at most 20"):
        st.learn(rows(V=21), method="exact")
    with pytest.raises(DataError, match="no values"):
        st.learn(pd.DataFrame({"x0": ["v0", "v1"], "x1": [None, None]}), event=table((2, 2)))


def test_bayesian_scores_of_real_columns_or_gaps_are_refused():
    event, frame = mixed_rows(50)
    with pytest.raises(ParameterError, match="'bic' or 'aic'"):
        st.learn(frame, event=event, score="bdeu")
    with pytest.raises(ParameterError, match="'bic' or 'aic'"):
        st.learn(rows().mask(noise((2,) * 4, 60, 27) == 0), event=table((2,) * 4), score="k2")
    with pytest.raises(StructureError, match="continuous"):
        st.learn(frame, event=event, method="chow-liu")
    with pytest.raises(StructureError, match="to a category"):
        st.learn(frame, event=event, required=[("h", "a")])


def test_parents_that_the_data_can_not_bear_are_told_or_refused():
    cards = (6, 6, 6, 2)
    frame = frame_of(noise(cards, 30, 28))
    everything = [(f"x{p}", "x3") for p in range(3)]
    found = st.learn(frame, event=table(cards), required=everything, seed=0).structure
    assert any("216 configurations" in note for note in found.notes)
    wide = frame_of(noise((2,) * 28, 30, 29))
    with pytest.raises(StructureError, match="cells"):
        st.learn(wide, event=table((2,) * 28), required=[(f"x{p}", "x27") for p in range(27)])
    frame = pd.DataFrame({"g": list("abcdefgh") * 2, "h": np.arange(16.0), "k": np.arange(16.0) ** 2})
    event = Table({"g": Category(tuple("abcdefgh")), "h": Real(), "k": Real()})
    with pytest.raises(DataError, match="fewer rows"):
        st.learn(frame, event=event, required=[("g", "k"), ("h", "k")])


@needs_kernel
def test_the_kernel_refuses_what_would_lead_it_astray():
    codes, cards = np.array([[0, 1, 1], [2, 0, 1]], dtype=np.uint8), np.array([2, 3])
    members, starts, out = np.array([0, 1]), np.array([0, 2]), np.empty((1, 2))
    good = [codes, cards, members, starts, 1, 1.0, 1.0, out]
    kernels.counting.toggled(*good)
    for place, bad in [
        (0, codes.astype(float)), (0, codes.T), (0, codes + 1), (1, np.array([2, 2])), (1, np.array([2, 0])),
        (1, np.array([2, 70_000])), (2, np.array([0, 2])), (2, np.array([0, -1])), (2, np.array([1, 1])),
        (3, np.array([0, 3])), (3, np.array([1, 2])), (3, np.array([0, 0, 2])), (4, 5), (5, 0.0), (6, math.nan),
        (7, np.empty((1, 3))), (7, np.empty((2, 2), dtype=np.float32)),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="wanted"):
            kernels.counting.toggled(*good[:place], bad, *good[place + 1 :])
    square, most, history = np.ones((2, 2), dtype=np.uint8), np.array([2, 2]), np.empty((5, 4))
    options = (1, 1, 1, 1, 9, 0)
    with pytest.raises(ValueError, match="without cycles"):
        kernels.counting.search(codes, cards, 1, 1.0, 1.0, square, square, most, options, square.copy(), history)
    with pytest.raises(ValueError, match="product"):
        kernels.counting.counts(codes, cards, members, starts, np.empty(5, dtype=np.int64))


DRIVER = """
import importlib.machinery, importlib.util
import numpy as np
loader = importlib.machinery.ExtensionFileLoader("_counting", {path!r})
kernel = importlib.util.module_from_spec(importlib.util.spec_from_loader("_counting", loader))
loader.exec_module(kernel)
rng = np.random.default_rng(0)
for case in range(150):
    V, n = int(rng.integers(1, 9)), int(rng.integers(1, 600))
    cards = rng.choice([1, 2, 3, 5, 40, 49, 60, 300], V).astype(np.int64)
    codes = np.stack([rng.integers(0, card, n) for card in cards]).astype(rng.choice([np.uint16, np.int32]))
    families = [rng.permutation(V)[: rng.integers(1, V + 1)] for _ in range(3)]
    members, starts = np.concatenate(families), np.cumsum([0, *map(len, families)])
    out, kind = np.zeros((3, V)), int(rng.integers(0, 5))
    kernel.toggled(codes, cards, members, starts, kind, 1.5, float(rng.choice([1, 0.25])), out)
    assert np.isfinite(out).all()
    allowed, none = (rng.random((V, V)) < 0.8).astype(np.uint8), np.zeros((V, V), dtype=np.uint8)
    most, history = rng.integers(0, V + 1, V), np.zeros((50, 4))
    kernel.search(codes, cards, kind, 1.0, 1.0, allowed, none, most, (3, 4, 5, 4, 500, case), none.copy(), history)
    cells = int(sum(cards[family].prod() for family in families))
    if cells < 1e6:
        kernel.counts(codes, cards, members, starts, np.zeros(cells, dtype=np.int64))
print("sound")
"""


@pytest.mark.long
def test_no_byte_is_touched_out_of_turn(tmp_path):
    """The kernel under AddressSanitizer and UBSan."""
    compiler, source = shutil.which("g++"), Path(kernels.__file__).parent / "counting.cpp"
    if compiler is None:
        pytest.skip("needs g++")
    path = tmp_path / f"_counting{importlib.machinery.EXTENSION_SUFFIXES[-1]}"
    flags = ["-O1", "-g", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = f"-I{sysconfig.get_paths()['include']}"
    subprocess.run([compiler, *flags, *checks, include, str(source), "-o", str(path)], check=True)
    find = [[compiler, f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
    library = " ".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout.strip() for each in find)
    values = {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    command = [sys.executable, "-c", DRIVER.format(path=str(path))]
    done = subprocess.run(command, env=os.environ | values, capture_output=True, text=True, timeout=900)
    assert done.stdout.strip() == "sound", done.stderr[-4000:]
