"""Networks that are refused: graphs, parts and tables that make none, and questions that come too early."""

import math

import numpy as np
import pytest

from probgen.conditionals import LinearGaussian, Softmax, Tabular
from probgen.errors import NotFittedError, ParameterError, ProbgenError, StructureError
from probgen.events import Category, Real, Table
from probgen.models.bayesnet import BayesianNetwork

RAIN = {"rain": {"no": 0.8, "yes": 0.2}, "wet": ("rain", {"no": {"n": 0.9, "y": 0.1}, "yes": {"n": 0.0, "y": 1.0}})}
COINS = Table({name: Category(("h", "t")) for name in "abc"})


@pytest.mark.parametrize(
    ("edges", "named"),
    [([("a", "b"), ("b", "c"), ("c", "a")], "-> a|-> b|-> c"), ([("a", "z")], "'z'"), ([("a", "a")], "'a' -> 'a'"),
     ([("a", "b"), ("a", "b")], "twice"), (["ab"], "pair"), ([("a", "b", "c")], "pair"), ("ab", "pairs"), (3, "pairs"),
     ([(0, 1)], "pair")],
)  # fmt: skip
def test_edges_that_make_no_network_are_refused(edges, named):
    with pytest.raises(StructureError, match=named):
        BayesianNetwork(COINS, edges)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"conditionals": {"z": Tabular()}}, "'z'"), ({"conditionals": {"a": 3}}, "probgen.conditionals"),
     ({"conditionals": {"a": LinearGaussian()}}, "real"), ({"conditionals": [Tabular()]}, "dict"),
     ({"tie": {"a": "b", "b": "a"}}, "circle"), ({"tie": {"a": "z"}}, "'z'"), ({"learned": 1}, "learned"),
     ({"tie": {"b": "a"}, "edges": [("a", "c"), ("c", "b")]}, "differ"),
     ({"tie": {"b": "a"}, "conditionals": {"b": Tabular()}}, "one of the two")],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(options, named):
    with pytest.raises((StructureError, ParameterError), match=named):
        BayesianNetwork(COINS, **options)


def test_columns_that_do_not_suit_a_conditional_are_refused():
    mixed = Table({"a": Category(("h", "t")), "x": Real(), "w": Real(positive=True)})
    with pytest.raises(StructureError, match="below 0"):
        BayesianNetwork(mixed)
    with pytest.raises(StructureError, match="'a'"):
        BayesianNetwork(Table({"a": COINS.columns["a"], "x": Real()}), [("x", "a")], {"a": Tabular()})
    with pytest.raises(StructureError, match="'x'"):
        BayesianNetwork(Table({"x": Real()}), conditionals={"x": Tabular()})
    assert isinstance(
        BayesianNetwork(Table({"a": COINS.columns["a"], "x": Real()}), [("x", "a")]).conditional("a"), Softmax
    )


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({}, "dict of variable"),
        ({"a": {"x": 0.5, "y": 0.6}}, "1.1"),
        ({"a": {"x": 1.5, "y": -0.5}}, "negative"),
        ({"a": {"x": math.nan, "y": 1.0}}, "NaN"),
        ({"a": {"x": "much", "y": 1.0}}, "no number"),
        ({"a": (("x", "y"), [0.2, 0.3, 0.5])}, r"\(3,\)"),
        ({"a": ("b", {"x": {"p": 1.0}})}, "'b'"),
        ({"a": {"x": 0.5, "y": 0.5}, "b": ("a", {"x": {"p": 1.0, "q": 0.0}})}, "no row"),
        ({"a": {"x": 1.0}, "b": ("a", {"x": {"p": 1.0}, "z": {"p": 1.0}})}, "'z'"),
        ({"a": {"x": 0.5, "y": 0.5}, "b": ("a", {"x": {"p": 1.0, "q": 0}, "y": {"p": 1.0, "r": 0}})}, "'r'"),
        ({"a": ("b", {"x": {"p": 1.0}}), "b": ("a", {"p": {"x": 1.0}})}, "cycle"),
        ({"a": 3}, "level"),
        ({"a": ("yes", [0.5, 0.5])}, "levels"),
        ({"a": ((1, 1.0), [0.5, 0.5])}, "each level once"),
        ({"a": ((1, 2), (), [0.5, 0.5])}, "parents"),
    ],
)  # fmt: skip
def test_tables_by_hand_that_are_wrong_are_refused_by_name(tables, named):
    with pytest.raises(ProbgenError, match=named):
        BayesianNetwork.from_tables(tables)


def test_rows_a_little_off_one_are_renormalised():
    net = BayesianNetwork.from_tables({"a": {"x": 0.3, "y": 0.7000005}})
    assert np.exp(net.log_prob({"a": ["x", "y"]}).nats).sum() == pytest.approx(1, abs=1e-12)


def test_before_tables_are_there_nothing_is_answered():
    net = BayesianNetwork(COINS, [("a", "b")])
    rows = {name: ["h"] for name in "abc"}
    for ask in (net.log_prob, net.marginals, net.mpe, lambda x: net.sample(1), lambda x: net.do({"a": "h"})):
        with pytest.raises(NotFittedError):
            ask(rows)
    by_hand = BayesianNetwork.from_tables(RAIN)
    for ask in (by_hand.aic, by_hand.bic):
        with pytest.raises(NotFittedError, match="data"):
            ask()


def test_parameters_that_are_no_numbers_never_give_one():
    net = BayesianNetwork.from_tables(RAIN)
    net.conditional("rain").logits.data[0] = math.nan
    blank = {name: [None] for name in net.variables}
    for ask in (net.log_prob, net.marginals, net.mpe, lambda x: net.sample(2)):
        with pytest.raises(ParameterError, match="NaN"):
            ask(blank)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"x": 0.5, "y": 0.6}, "1.1 is the sum"),
        ({"x": 1.5, "y": -0.5}, "-0.5 is negative at the level 'y'"),
        ({"x": math.nan, "y": 1.0}, r"NaN at \[0\]"),
        ({"x": math.inf, "y": 0.0}, "inf is the sum"),
        (
            ("rain", {"no": {"x": 1.0, "y": 0.0}, "yes": {"x": 2.0, "y": -1.0}}),
            "level 'y' where the parents are .'yes'",
        ),
        ((("x", "y"), [["p", "q"]]), "shape"),
        ({(0, 1): 0.5, "y": 0.5}, "tuple"),
        ({"no": {"x": 1.0, "y": 0.0}, "yes": {"x": 0.5, "y": 0.5}}, "names no parent"),
    ],
)
def test_a_bad_table_by_hand_is_named(table, says):
    with pytest.raises(ProbgenError, match=f"'seventh'.*{says}"):
        BayesianNetwork.from_tables({**RAIN, "seventh": table})


def test_things_that_are_no_program_are_refused():
    with pytest.raises(StructureError, match=r"model=3.*pyro.sample"):
        BayesianNetwork.from_pyro(3)
