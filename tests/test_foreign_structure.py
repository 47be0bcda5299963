"""Graphs by pgmpy's PC and GES: the class that made the data, near our own search's, the same at every run."""

import itertools
import sys
import warnings
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen import foreign
from probgen.errors import DataError, FitError, MissingExtra, ParameterError, StructureError
from probgen.events import Category, Count, Real, Table
from probgen.models.bayesnet import BayesianNetwork, graph

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    searches = pytest.importorskip("pgmpy.causal_discovery")
    from pgmpy.structure_score import AIC, BIC

from probgen.foreign.pgmpy.graphs import extension

BOTH = pytest.mark.parametrize("method", ["pc", "ges"])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def learn(method, data, **options):
    return getattr(pg.foreign.pgmpy, method)(data, **options)


def shipped(name):
    return BayesianNetwork.load_file(str(files("pgmpy") / "utils" / "example_models" / f"{name}.bif.gz"))


def shuffled(frame):
    """The same columns, each in an order of its own: no edge is left."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({name: rng.permutation(column.to_numpy()) for name, column in frame.items()})


def joins(cpdag):
    return set(cpdag[0]), set(map(frozenset, cpdag[1]))


def known():
    """a -> c <- b, c -> d - the collider and what follows from it - and e - f - g, whose directions stay open."""
    levels = {"a": (0, 1), "b": ("x", "y", "z"), "c": ("lo", "hi"), "d": (True, False), "e": (7, 3), "f": (0, 1, 2),
              "g": ("n", "y")}  # fmt: skip
    edges = [("a", "c"), ("b", "c"), ("c", "d"), ("e", "f"), ("f", "g")]
    net = BayesianNetwork(Table({name: Category(own) for name, own in levels.items()}), edges)
    net.conditional("a").set_table([0.4, 0.6])
    net.conditional("b").set_table([0.3, 0.4, 0.3])
    net.conditional("c").set_table([[[0.95, 0.05], [0.7, 0.3], [0.4, 0.6]], [[0.6, 0.4], [0.3, 0.7], [0.05, 0.95]]])
    net.conditional("d").set_table([[0.8, 0.2], [0.25, 0.75]])
    net.conditional("e").set_table([0.45, 0.55])
    net.conditional("f").set_table([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])
    net.conditional("g").set_table([[0.85, 0.15], [0.5, 0.5], [0.1, 0.9]])
    return net.imported()


@BOTH
def test_much_data_gives_the_class_of_the_graph_that_made_it(method):
    net = known()
    rows = net.sample(20_000, seed=1)
    found = learn(method, rows, event=net.event, **({"significance": 1e-5} if method == "pc" else {}))
    assert joins(found.cpdag()) == joins(graph.cpdag(net.parents))
    assert joins(found.structure.cpdag) == joins(net.cpdag())
    assert found.structure.distance(net.edges) == 0
    assert found.learned
    assert found.structure.method == method
    again = learn(method, shuffled(rows.to_pandas()), event=net.event)
    assert again.structure.distance(net.edges) >= 4  # the same look sees another graph


@BOTH
def test_the_tables_are_ours_on_the_graph_that_was_found(method):
    net = known()
    rows = net.sample(3000, seed=2)
    found = learn(method, rows, event=net.event)
    by_hand = BayesianNetwork(net.event, found.edges).fit(rows)
    np.testing.assert_array_equal(found.log_prob(rows).nats, by_hand.log_prob(rows).nats)
    assert found.event.columns["e"].levels == (7, 3)
    assert found.structure.score == pytest.approx(-found.bic() / 2, rel=1e-12)
    assert sum(found.structure.families.values()) == pytest.approx(found.structure.score, rel=1e-12)
    assert "pgmpy" in found.structure.notes[0]


def test_on_asia_both_are_near_our_own_search():
    net = shipped("asia")
    rows = net.sample(5000, seed=0)
    ours = BayesianNetwork.learn(rows, event=net.event, seed=0).structure
    theirs = {method: learn(method, rows, event=net.event).structure for method in ("pc", "ges")}
    assert theirs["ges"].distance(net.edges) <= ours.distance(net.edges) + 1
    assert theirs["ges"].score == pytest.approx(ours.score, abs=1.0)
    assert theirs["pc"].distance(net.edges) <= ours.distance(net.edges) + 3
    assert theirs["pc"].score <= ours.score
    lost = learn("ges", shuffled(rows.to_pandas()), event=net.event).structure
    assert lost.distance(net.edges) >= 7


def test_on_alarm_pc_finds_most_edges_and_ours_more():
    net = shipped("alarm")
    rows = net.sample(2000, seed=0)
    ours = BayesianNetwork.learn(rows, event=net.event, seed=0).structure
    theirs = learn("pc", rows, event=net.event, max_cond_vars=2).structure
    true = set(map(frozenset, net.edges))
    assert len(true & set(map(frozenset, theirs.edges))) >= 35  # of 46
    assert ours.distance(net.edges) < theirs.distance(net.edges) <= 25


def as_theirs(net, rows):
    x = net.event.check(rows).x.numpy().astype(int)
    cards = [len(column.levels) for column in net.event.columns.values()]
    frame = pd.DataFrame({v + 1: pd.Categorical.from_codes(x[:, v], range(card)) for v, card in enumerate(cards)})
    return frame, {v + 1: list(range(card)) for v, card in enumerate(cards)}


def test_ges_with_our_scores_is_ges_with_pgmpys():
    net = known()
    rows = net.sample(400, seed=4)
    frame, states = as_theirs(net, rows)
    names = list(net.variables)

    def their_graph(kind):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = searches.GES(scoring_method=kind(frame, state_names=states)).fit(frame).causal_graph_
        named = [[(names[a - 1], names[b - 1]) for a, b in e] for e in (found.directed_edges, found.undirected_edges)]
        return joins(named)

    by_bic, by_aic = their_graph(BIC), their_graph(AIC)
    assert joins(learn("ges", rows, event=net.event).cpdag()) == by_bic
    assert joins(learn("ges", rows, event=net.event, score="aic").cpdag()) == by_aic
    assert by_aic != by_bic


@pytest.mark.parametrize("score", ["bdeu", "k2"])
def test_bayesian_scores_bring_their_prior(score):
    net = known()
    rows = net.sample(2000, seed=5)
    found = learn("ges", rows, event=net.event, score=score, ess=2.0)
    by_hand = BayesianNetwork(net.event, found.edges).fit(rows, prior=score, strength=2.0)
    np.testing.assert_array_equal(found.log_prob(rows).nats, by_hand.log_prob(rows).nats)
    assert found.structure.criterion == {"bdeu": "bdeu(2)", "k2": "k2"}[score]
    assert joins(graph.cpdag(net.parents))[0] <= joins(found.cpdag())[0]
    without = learn("ges", rows, event=net.event, score=score, ess=2.0, prior="none")
    assert without.edges == found.edges
    assert without.log_likelihood > found.log_likelihood


@BOTH
def test_names_and_levels_do_not_matter(method):
    """pgmpy walks through sets of names: columns go in as numbers, or each renaming would be another run."""
    x = known()._sample(600, None, generator=torch.Generator().manual_seed(3)).numpy().astype(int)
    rng, edges = np.random.default_rng(1), set()
    for _ in range(6):
        names = [f"{word}{i}" for i, word in enumerate(rng.permutation(list("zyxwvut")))]
        columns = {
            n: Category(tuple(rng.permutation(50)[: c.max() + 1].tolist())) for n, c in zip(names, x.T, strict=True)
        }
        frame = pd.DataFrame({n: np.array(columns[n].levels)[c] for n, c in zip(names, x.T, strict=True)})
        found = learn(method, frame, event=Table(columns), **({"significance": 0.3} if method == "pc" else {}))
        edges.add(tuple((found.index[a], found.index[b]) for a, b in found.edges))
    assert len(edges) == 1


@BOTH
def test_real_columns_become_linear_gaussians(method):
    rng = np.random.default_rng(0)
    a, b, e = rng.normal(size=(3, 3000))
    c = a - b + 0.5 * e
    frame = pd.DataFrame({"a": a * 1e3 + 7, "b": b, "c": c, "d": 0.7 * c + rng.normal(size=3000)})
    edges = [("a", "c"), ("b", "c"), ("c", "d")]
    found = learn(method, frame, **({"significance": 1e-5} if method == "pc" else {}))
    assert joins(found.cpdag()) == joins(graph.cpdag(graph.parents_of("abcd", edges)))
    assert found.log_prob(frame).nats.mean() > learn(method, shuffled(frame)).log_prob(frame).nats.mean() + 1
    if method == "pc":
        assert found.edges == learn("pc", frame, ci_test="fisher_z", significance=1e-5).edges


@BOTH
def test_constant_columns_and_single_ones_have_no_edges(method):
    rows = {"x": ["a", "b"] * 50, "still": ["s"] * 100, "y": ["a", "b"] * 50}
    found = learn(method, rows)
    assert set(map(frozenset, found.edges)) == {frozenset("xy")}
    assert learn(method, {"x": ["a", "b"] * 50}).edges == ()
    assert learn(method, {"x": ["a"] * 5, "y": ["b"] * 5}).edges == ()


@BOTH
def test_nothing_is_printed(method, capfd):
    learn(method, known().sample(300, seed=0))
    assert capfd.readouterr() == ("", "")


def test_the_door_is_there_without_an_import_of_its_own():
    assert pg.foreign.pgmpy.pc is foreign.pgmpy.pc
    with pytest.raises(AttributeError, match="pgmpy"):
        foreign.pgmppy  # noqa: B018


# What has no graph


GOOD = {"x": ["a", "b"] * 20, "y": ["a", "b", "b", "a"] * 10}


@BOTH
@pytest.mark.parametrize(
    ("data", "options", "error", "named"),
    [({**GOOD, "z": ["a", None] * 20}, {}, DataError, "20 of 40 rows.*row 1 first.*learn"),
     ({**GOOD, "z": np.linspace(0, 1, 40)}, {}, StructureError, "'z' is Real.*learn"),
     ({"k": np.arange(100)}, {"event": Table({"k": Count()})}, StructureError, "'k' is Count"),
     ({"x": ["a"], "y": ["b"]}, {}, DataError, "1 row"), (np.zeros((5, 2)), {}, StructureError, "named columns"),
     (GOOD, {"event": Category(("a",))}, StructureError, "named columns"), (GOOD, {"prior": "x"}, ParameterError, "x")],
    ids=["gaps", "mixed", "counts", "one row", "array", "no table", "prior"],
)  # fmt: skip
def test_what_pgmpy_can_not_search_is_refused_with_the_way_out(method, data, options, error, named):
    with pytest.raises(error, match=named):
        learn(method, data, **options)


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [("pc", {"significance": 0}, "significance=0"), ("pc", {"significance": 5}, "between"),
     ("pc", {"significance": True}, "significance"), ("pc", {"max_cond_vars": -1}, "max_cond_vars"),
     ("pc", {"max_cond_vars": 1.5}, "whole"), ("pc", {"ci_test": "pearsonr"}, "chi_square"),
     ("ges", {"score": "bicc"}, "score"), ("ges", {"ess": 0}, "ess"), ("ges", {"min_improvement": -1}, "nats"),
     ("ges", {"min_improvement": np.nan}, "nats")],
)  # fmt: skip
def test_options_out_of_range_are_named(method, options, named):
    with pytest.raises(ParameterError, match=named):
        learn(method, GOOD, **options)


def test_real_columns_have_no_bayesian_score():
    with pytest.raises(ParameterError, match="bdeu"):
        learn(
            "ges", {"x": [0.5, 1.25, 3.0], "y": [1.5, 2.0, 0.25]}, event=Table({"x": Real(), "y": Real()}), score="bdeu"
        )


def test_what_goes_wrong_inside_is_an_error_of_ours(monkeypatch):
    monkeypatch.setattr(searches.GES, "_fit", lambda self, X: [].pop())
    with pytest.raises(FitError, match=r"GES ends with IndexError.*BayesianNetwork\.learn"):
        learn("ges", GOOD)


def test_without_pgmpys_searches_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pgmpy.causal_discovery", None)
    with pytest.raises(MissingExtra, match=r"probgen\[pgmpy\]"):
        learn("pc", GOOD)


# Patterns as graphs


def random_parents(rng, size):
    names = [f"v{i}" for i in rng.permutation(size)]
    return {n: tuple(p for p in names[:i] if rng.random() < 0.4) for i, n in enumerate(names)}


def test_the_extension_of_a_class_is_one_of_its_graphs():
    rng = np.random.default_rng(0)
    for _ in range(300):
        parents = random_parents(rng, rng.integers(2, 9))
        names = sorted(parents)
        edges, bent = extension(names, *graph.cpdag(parents))
        assert bent == 0
        assert graph.equivalent(graph.parents_of(names, edges), parents)
        assert edges == sorted(edges, key=lambda e: (e[1], e[0]))


def test_partly_directed_classes_keep_their_directions():
    """Any consistent subset of a graph's edges beyond its class, as tiers would give."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        parents = random_parents(rng, 6)
        names, (directed, undirected) = list(parents), graph.cpdag(parents)
        extra = {(p, c) for c, own in parents.items() for p in own if rng.random() < 0.3}
        more = graph.meek(names, {*directed, *extra}, [e for e in undirected if not {e, e[::-1]} & extra])
        edges, bent = extension(names, *more)
        assert bent == 0
        assert set(more[0]) <= set(edges)
        assert graph.equivalent(graph.parents_of(names, edges), parents)


@pytest.mark.parametrize(
    ("directed", "undirected"),
    [([], ["ab", "bc", "cd", "da"]), (["ab", "bc", "ca"], []), (["ab", "cd"], ["bc", "da"])],
    ids=["a ring without chords", "a cycle", "a ring half directed"],
)
def test_a_pattern_without_a_graph_still_gives_one_and_it_is_said(directed, undirected):
    pairs = [tuple(e) for e in directed], [tuple(e) for e in undirected]
    edges, bent = extension("abcde", *pairs)
    assert bent > 0
    assert graph.find_cycle(graph.parents_of("abcde", edges)) is None
    assert set(map(frozenset, edges)) == set(map(frozenset, itertools.chain(*pairs)))
