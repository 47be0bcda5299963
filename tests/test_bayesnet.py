"""Networks of categories: scored, asked and drawn from, against the full joint by enumeration."""

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probgen.conditionals import NoisyOr
from probgen.errors import (
    DataError,
    ParameterError,
    ShapeError,
    StructureError,
    SupportError,
    ZeroEvidenceError,
)
from probgen.events import Category, Table
from probgen.logprob import Kind
from probgen.models.bayesnet import BayesianNetwork, LikelihoodWeighting

ALPHA = 1e-6

SPRINKLER = {
    "wet": (
        ("sprinkler", "rain"),
        {
            ("off", "no"): {"dry": 1.0, "wet": 0.0},
            ("off", "yes"): {"dry": 0.2, "wet": 0.8},
            ("on", "no"): {"dry": 0.1, "wet": 0.9},
            ("on", "yes"): {"dry": 0.01, "wet": 0.99},
        },
    ),
    "rain": {"no": 0.8, "yes": 0.2},
    "sprinkler": ("rain", {"no": {"off": 0.6, "on": 0.4}, "yes": {"off": 0.99, "on": 0.01}}),
}


@pytest.fixture(scope="module")
def sprinkler():
    return BayesianNetwork.from_tables(SPRINKLER)


def random_network(rng, most=6, zeros=0.15):
    """Levels, parents and tables (*parents, levels) of a random network; the columns stand in any order."""
    n = int(rng.integers(1, most + 1))
    names = [f"v{i}" for i in range(n)]
    cards = dict(zip(names, rng.integers(1, 5, n).tolist(), strict=True))
    order = rng.permutation(n)
    tables = {}
    for place, i in enumerate(order):
        earlier = [names[j] for j in order[:place]]
        own = rng.permutation(earlier)[: rng.integers(0, min(3, len(earlier)) + 1)].tolist()
        table = rng.gamma(0.7, size=(*(cards[p] for p in own), cards[names[i]])) + 1e-6
        table[rng.random(table.shape) < zeros] = 0.0
        table[..., rng.integers(table.shape[-1])] += 0.05
        levels = tuple(f"{names[i]}={k}" for k in range(cards[names[i]]))
        table /= table.sum(-1, keepdims=True)
        tables[names[i]] = (levels, tuple(own), table) if own else (levels, table)
    return {name: tables[name] for name in names}


def joint_of(tables):
    """The full joint, one axis a variable, by multiplying tables: nothing of the library."""
    names = list(tables)
    joint = np.ones([len(tables[n][0]) for n in names])
    for name, entry in tables.items():
        family = [*(entry[1] if len(entry) == 3 else ()), name]
        table = np.asarray(entry[-1])
        axes = sorted(range(len(family)), key=lambda k: names.index(family[k]))
        shape = [len(tables[n][0]) if n in family else 1 for n in names]
        joint = joint * table.transpose(axes).reshape(shape)
    return joint


def gappy(rng, joint, n, share):
    """Codes of random cells (n, V), possible or not, NaN where missing."""
    codes = np.stack([rng.integers(0, card, n) for card in joint.shape], 1).astype(float)
    codes[rng.random(codes.shape) < share] = np.nan
    return codes


def slice_of(joint, row):
    """The joint where a row's observed cells are as they are; axes of length 1 there."""
    return joint[tuple(slice(None) if math.isnan(c) else slice(int(c), int(c) + 1) for c in row)]


def frame(net, codes):
    return net.event.restore(torch.as_tensor(codes), "dict")


# The full joint by enumeration


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_scores_marginals_and_completions_are_those_of_the_full_joint(seed):
    rng = np.random.default_rng(seed)
    tables = random_network(rng)
    net, joint = BayesianNetwork.from_tables(tables), joint_of(tables)
    codes = gappy(rng, joint, 5, rng.choice([0.0, 0.3, 0.7, 1.0]))
    sums = np.array([slice_of(joint, row).sum() for row in codes])
    nats = net.log_prob(frame(net, codes)).nats
    assert np.array_equal(np.isneginf(nats), sums == 0)
    np.testing.assert_allclose(np.exp(nats), sums, rtol=1e-10)
    possible = codes[sums > 0]
    if len(possible):
        check_posteriors(net, joint, possible)


def check_posteriors(net, joint, codes):
    found, best = net.marginals(frame(net, codes)), net.event.check(net.mpe(frame(net, codes))).x.numpy()
    for i, row in enumerate(codes):
        part = slice_of(joint, row)
        for v, name in enumerate(net.variables):
            wanted = np.zeros(joint.shape[v])
            levels = slice(None) if math.isnan(row[v]) else slice(int(row[v]), int(row[v]) + 1)
            wanted[levels] = part.sum(tuple(a for a in range(joint.ndim) if a != v)) / part.sum()
            np.testing.assert_allclose(found[name][i], wanted, rtol=1e-9, atol=1e-12)
        assert not np.isnan(best[i]).any()
        assert np.array_equal(best[i][~np.isnan(row)], row[~np.isnan(row)])
        assert joint[tuple(best[i].astype(int))] == pytest.approx(part.max(), rel=1e-9)


def test_a_wrong_axis_order_would_be_caught():
    """The twin: the same check against a joint whose table has its parents exchanged fails."""
    rng = np.random.default_rng(3)
    tables = {
        "a": (("0", "1"), np.array([0.3, 0.7])),
        "b": (("0", "1"), np.array([0.6, 0.4])),
        "c": (("0", "1"), ("a", "b"), rng.dirichlet([1, 1], (2, 2))),
    }
    turned = {**tables, "c": (("0", "1"), ("a", "b"), tables["c"][2].transpose(1, 0, 2))}
    net = BayesianNetwork.from_tables(turned)
    nats = net.log_prob(frame(net, np.array([[0.0, 1.0, 0.0]]))).nats
    assert abs(math.exp(nats[0]) - joint_of(tables)[0, 1, 0]) > 1e-3


def test_all_masses_sum_to_one_and_an_empty_row_has_log_probability_zero():
    rng = np.random.default_rng(11)
    tables = random_network(rng, most=5)
    net = BayesianNetwork.from_tables(tables)
    every = np.array(list(itertools.product(*(range(c) for c in joint_of(tables).shape))), dtype=float)
    assert np.exp(net.log_prob(frame(net, every)).nats).sum() == pytest.approx(1, abs=1e-12)
    nothing = net.log_prob(frame(net, np.full((1, every.shape[1]), np.nan)))
    assert nothing.nats[0] == pytest.approx(0, abs=1e-12)
    assert nothing.kind is Kind.EXACT


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_pgmpy_gives_the_same_numbers(share):
    pytest.importorskip("pgmpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pgmpy.factors.discrete import TabularCPD
        from pgmpy.inference import VariableElimination
        from pgmpy.models import DiscreteBayesianNetwork

        rng = np.random.default_rng(21)
        tables = random_network(rng, most=6, zeros=0.0)
        net = BayesianNetwork.from_tables(tables)
        other = DiscreteBayesianNetwork(list(net.edges))
        other.add_nodes_from(net.variables)
        for name, (levels, *own, table) in tables.items():
            parents = list(own[0]) if own else []
            flat = np.asarray(table).reshape(-1, len(levels)).T
            other.add_cpds(TabularCPD(name, len(levels), flat, parents, [len(tables[p][0]) for p in parents]))
        engine = VariableElimination(other)
        for row in gappy(rng, joint_of(tables), 4, share):
            seen = {n: int(c) for n, c in zip(net.variables, row, strict=True) if not math.isnan(c)}
            nats, known = 0.0, {}
            for name, code in seen.items():
                nats += math.log(engine.query([name], evidence=known, show_progress=False).values[code])
                known[name] = code
            assert net.log_prob(frame(net, row[None])).nats[0] == pytest.approx(nats, abs=1e-9)


# Draws


def counts_of(draws, shape):
    codes = draws.to_numpy() if isinstance(draws, pd.DataFrame) else draws
    return np.bincount(np.ravel_multi_index(codes.T.astype(int), shape), minlength=math.prod(shape))


def goodness(counts, masses):
    """Chi-square p-value; a cell of mass zero that was drawn gives 0."""
    if counts[masses == 0].sum():
        return 0.0
    keep = masses > 0
    expected = counts.sum() * masses[keep] / masses[keep].sum()
    rare = expected < 8
    seen = np.append(counts[keep][~rare], counts[keep][rare].sum())
    wanted = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    return stats.chi2.sf(((seen - wanted) ** 2 / wanted).sum(), max(len(wanted) - 1, 1))


@pytest.mark.parametrize("known", [{}, {2: 1}, {0: 0, 3: 1}])
def test_draws_follow_the_joint_and_the_conditional_and_a_wrong_temperature_is_caught(known):
    rng = np.random.default_rng(5)
    cards, names = (2, 3, 2, 2), ("a", "b", "c", "d")
    tables = {n: (tuple(range(c)), rng.dirichlet([1.0] * c)) for n, c in zip(names, cards, strict=True)}
    for child, own in (("b", ("a",)), ("c", ("b",)), ("d", ("a", "c"))):
        shape = tuple(len(tables[p][0]) for p in own)
        tables[child] = (tables[child][0], own, rng.dirichlet([1.0] * len(tables[child][0]), shape))
    net, joint = BayesianNetwork.from_tables(tables), joint_of(tables)
    given_ = {names[v]: level for v, level in known.items()}
    draws = net.event.check(net.sample(40_000, given=given_ or None, seed=4)).x.numpy()
    masses = np.zeros_like(joint)
    where = tuple(known.get(v, slice(None)) for v in range(4))
    masses[where] = joint[where]
    masses = masses.reshape(-1) / masses.sum()
    warm = masses**0.9 / (masses**0.9).sum()
    assert goodness(counts_of(draws, cards), masses) > ALPHA
    assert goodness(counts_of(draws, cards), warm) < ALPHA


def test_several_conditions_give_their_draws_one_after_the_other(sprinkler):
    draws = sprinkler.event.check(sprinkler.sample(50, given={"rain": ["yes", "no"]}, seed=1)).x
    assert draws.shape == (100, 3)
    assert draws[:, sprinkler.index["rain"]].tolist() == [1.0] * 50 + [0.0] * 50


def test_draws_are_the_same_under_a_seed_and_others_under_another(sprinkler):
    one, same, other = (str(sprinkler.sample(30, seed=s)) for s in (1, 1, 2))
    assert one == same != other
    one, same, other = (str(sprinkler.sample(30, given={"wet": "wet"}, seed=s)) for s in (1, 1, 2))
    assert one == same != other


# Impossible and conditional


def test_impossible_rows_are_minus_infinity_and_refused_as_evidence(sprinkler):
    rows = pd.DataFrame({"wet": ["wet", "wet"], "rain": ["yes", "no"], "sprinkler": ["off", "off"]}, index=["x", "y"])
    lp = sprinkler.log_prob(rows[list(sprinkler.variables)])
    assert lp.nats[0] == pytest.approx(math.log(0.2 * 0.99 * 0.8))
    assert lp.nats[1] == -math.inf
    assert lp.kind is Kind.EXACT
    for ask in (sprinkler.marginals, sprinkler.mpe):
        with pytest.raises(ZeroEvidenceError, match="Row y"):
            ask(rows)
    with pytest.raises(ZeroEvidenceError):
        sprinkler.sample(3, given={"wet": "wet", "rain": "no", "sprinkler": "off"})


def test_a_conditional_likelihood_is_the_ratio_of_two(sprinkler):
    rows = {"wet": ["wet", "dry", None], "rain": ["yes", None, "no"], "sprinkler": [None] * 3}
    lp = sprinkler.log_prob(rows, given={"sprinkler": "on"})
    both = sprinkler.log_prob({**rows, "sprinkler": ["on"] * 3}).nats
    alone = sprinkler.log_prob({"wet": [None], "rain": [None], "sprinkler": ["on"]}).nats
    np.testing.assert_allclose(lp.nats, both - alone, rtol=1e-12)
    assert lp.kind is Kind.EXACT
    assert lp.of == "x|sprinkler"
    assert lp.measure == "counting(rain) x counting(wet)"
    one_each = sprinkler.log_prob(rows, given={"sprinkler": ["on", "on", "on"]})
    np.testing.assert_allclose(one_each.nats, lp.nats, rtol=1e-12)


def test_conditions_that_make_no_sense_are_refused(sprinkler):
    rows = {"wet": ["wet"] * 3, "rain": ["yes"] * 3, "sprinkler": [None] * 3}
    with pytest.raises(ParameterError, match="both scored and given"):
        sprinkler.log_prob(rows, given={"wet": "wet"})
    with pytest.raises(ParameterError, match="'sprinkle'"):
        sprinkler.log_prob(rows, given={"sprinkle": "on"})
    with pytest.raises(ShapeError, match="2 rows for 3"):
        sprinkler.log_prob(rows, given={"sprinkler": ["on", "off"]})
    with pytest.raises(SupportError, match="'maybe'"):
        sprinkler.sample(3, given={"rain": "maybe"})
    for nothing in ([1], {"rain": None}, {}, 3):
        with pytest.raises(ParameterError, match="given"):
            sprinkler.sample(3, given=nothing)
    impossible = {"wet": "wet", "rain": "no", "sprinkler": "off"}
    blank = {name: [None] for name in sprinkler.variables}
    with pytest.raises(ZeroEvidenceError):
        sprinkler.log_prob(blank, given=impossible)
    with pytest.raises(ParameterError, match="given"):
        sprinkler.fit(rows, given={"sprinkler": "on"})


def test_tiny_evidence_has_the_right_posterior():
    """P(evidence) = 1e-400 underflows; its posterior must not."""
    small, n = 1e-40, 10
    tables = {"z": (("a", "b"), [0.25, 0.75])}
    for i in range(n):
        tables[f"x{i}"] = (("no", "yes"), ("z",), np.array([[1 - small, small], [1 - 2 * small, 2 * small]]))
    net = BayesianNetwork.from_tables(tables)
    rare = {f"x{i}": "yes" for i in range(n)}
    lp = net.log_prob({"z": [None], **{name: [level] for name, level in rare.items()}})
    assert lp.nats[0] == pytest.approx(n * math.log(small) + math.log(0.25 + 0.75 * 2**n), rel=1e-12)
    share = 0.25 / (0.25 + 0.75 * 2**n)
    np.testing.assert_allclose(net.marginals(rare)["z"][0], [share, 1 - share], rtol=1e-9)
    assert net.mpe(rare)["z"].tolist() == ["b"]


# Forms


def test_answers_come_back_in_the_form_that_came_in(sprinkler):
    rows = pd.DataFrame({"wet": ["wet", None], "rain": [None, "no"], "sprinkler": [None, "off"]})
    done = sprinkler.mpe(rows)
    assert isinstance(done, pd.DataFrame)
    assert done.loc[0].tolist() == ["wet", "no", "on"]
    assert done.loc[1].tolist() == ["dry", "no", "off"]
    found = sprinkler.marginals(rows)
    table = found.frame().to_pandas()
    assert list(table.columns[:3]) == ["row", "wet=dry", "wet=wet"]
    np.testing.assert_allclose(table["rain=yes"], found["rain"][:, 1])
    assert len(found) == 2
    with pytest.raises(ParameterError, match="'rain'"):
        found["rains"]


def test_evidence_may_name_some_columns_only(sprinkler):
    one = sprinkler.marginals({"wet": "wet"})
    assert one["rain"][0, 1] == pytest.approx(
        (0.2 * 0.99 * 0.8 + 0.2 * 0.01 * 0.99) / (0.8 * 0.4 * 0.9 + 0.1584 + 0.00198)
    )
    assert "rain: no" in repr(one)
    np.testing.assert_allclose(sprinkler.marginals()["rain"], [[0.8, 0.2]])
    np.testing.assert_allclose(sprinkler.marginals({"wet": ["wet", "dry"], "rain": "no"})["rain"], [[1, 0], [1, 0]])
    with pytest.raises(ParameterError, match="'rains'"):
        sprinkler.marginals({"rains": "yes"})
    with pytest.raises(SupportError, match="'soaked'"):
        sprinkler.marginals({"wet": "soaked"})


def test_scoring_wants_known_columns_and_levels(sprinkler):
    with pytest.raises(ShapeError, match="snow"):
        sprinkler.log_prob({"wet": ["wet"], "rain": ["no"], "sprinkler": ["on"], "snow": [1]})
    with pytest.raises(SupportError, match="row 0, column rain: 'sleet'"):
        sprinkler.log_prob({"wet": ["wet"], "rain": ["sleet"], "sprinkler": ["on"]})


# Too large


def grid(side, seed=0):
    """A network of side x side binary cells, each with its left and upper neighbour as parents."""
    rng = np.random.default_rng(seed)
    tables = {}
    for i, j in itertools.product(range(side), repeat=2):
        own = tuple(f"c{a}_{b}" for a, b in ((i - 1, j), (i, j - 1)) if a >= 0 and b >= 0)
        table = rng.dirichlet([1.0, 1.0], (2,) * len(own))
        tables[f"c{i}_{j}"] = ((0, 1), own, table) if own else ((0, 1), table)
    return BayesianNetwork.from_tables(tables)


def test_rows_that_are_too_large_are_refused_and_the_others_scored():
    net = grid(5)
    corner = net.index["c4_4"]
    rows = np.full((3, 25), np.nan)
    rows[:, corner] = 1.0
    rows[1] = 0.0
    truth = net.log_prob(frame(net, rows)).nats
    net.limit = 60
    assert net.plan.cost().entries > 60
    lp = net.log_prob(frame(net, rows), seed=0)
    assert lp.refused.tolist() == [True, False, True]
    assert lp[1].nats[0] == truth[1]
    assert "2 rows" in lp.reason
    assert "LikelihoodWeighting" in lp.instead
    for ask in (net.marginals, net.mpe, lambda x: net.sample(2, given=x)):
        with pytest.raises(StructureError, match="limit=60"):
            ask(frame(net, rows[[0]]))
    bound = net.log_prob(frame(net, rows), by=LikelihoodWeighting(samples=20_000), seed=1)
    assert [str(kind) for kind in bound.kinds] == ["lower", "exact", "lower"]
    assert bound.nats[1] == pytest.approx(truth[1], rel=1e-12)
    assert abs(bound.nats[0] - truth[0]) < 6 * bound.stderr[0]
    assert bound.nats[0] == bound.nats[2]  # equal rows share draws


def test_likelihood_weighting_stays_below_the_truth_on_average_and_a_bias_is_caught():
    rng = np.random.default_rng(8)
    tables = random_network(rng, most=6, zeros=0.0)
    net, joint = BayesianNetwork.from_tables(tables), joint_of(tables)
    codes = gappy(rng, joint, 60, 0.5)
    truth = net.log_prob(frame(net, codes)).nats
    lp = net.log_prob(frame(net, codes), by=LikelihoodWeighting(samples=50), seed=2)
    gain = (lp.nats - truth)[lp.kinds == Kind.LOWER]
    assert len(gain) > 20
    assert upward(gain) > ALPHA
    assert upward(gain + 0.3) < ALPHA


def upward(gain):
    """p-value of 'the mean gain is not above zero'."""
    return stats.norm.sf(gain.mean() / (gain.std(ddof=1) / math.sqrt(len(gain)) + 1e-9))


@pytest.mark.parametrize("samples", [0, 1, 2.5, True, "many"])
def test_likelihood_weighting_wants_a_number_of_draws(samples):
    with pytest.raises(ParameterError, match="samples"):
        LikelihoodWeighting(samples=samples)


COINS = Table({name: Category(("h", "t")) for name in "abc"})


# What it is made of


def test_a_network_says_what_it_is(sprinkler):
    assert sprinkler.variables == ("wet", "rain", "sprinkler")
    assert sprinkler.parents == {"wet": ("sprinkler", "rain"), "rain": (), "sprinkler": ("rain",)}
    assert sprinkler.order == ("rain", "sprinkler", "wet")
    assert sprinkler.offspring["rain"] == ("wet", "sprinkler")
    assert sprinkler.n_params == 1 + 2 + 4
    assert sprinkler.markov_blanket("rain") == ("wet", "sprinkler")
    assert not sprinkler.d_separated("rain", "sprinkler")
    assert sprinkler.report.stopped == "imported"
    assert sprinkler.plan.cost().entries >= 8
    with pytest.raises(ParameterError, match="'rain'"):
        sprinkler.conditional("rian")


def test_tied_nodes_share_their_parameters():
    tables = np.array([[0.9, 0.1], [0.2, 0.8]])
    net = BayesianNetwork(COINS, [("a", "b"), ("b", "c")], tie={"c": "b"})
    net.conditional("a").set_table([0.5, 0.5])
    net.conditional("b").set_table(tables)
    assert net.conditional("c") is net.conditional("b")
    assert net.n_params == 1 + 2
    lp = net.imported().log_prob({"a": ["h"], "b": ["t"], "c": ["t"]})
    assert lp.nats[0] == pytest.approx(math.log(0.5 * 0.1 * 0.8))


def test_other_conditionals_over_categories_are_tables_too():
    net = BayesianNetwork(COINS, [("a", "c"), ("b", "c")], {"c": NoisyOr()}).imported()
    every = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    assert np.exp(net.log_prob(frame(net, every)).nats).sum() == pytest.approx(1, abs=1e-12)


def test_gradients_reach_the_tables_through_rows_with_gaps(sprinkler):
    net = BayesianNetwork.from_tables(SPRINKLER)
    x = net.event.check({"wet": ["wet", None], "rain": [None, "no"], "sprinkler": ["on", None]}).x
    found = net.scored(x)
    from probgen import cliques

    nats = cliques.log_prob(found.plan, found.tables, found.codes).sum()
    logits = net.conditional("rain").logits
    slope = torch.autograd.grad(nats, logits)[0]
    h = 1e-5
    for i in range(2):
        ends = []
        for sign in (1, -1):
            moved = BayesianNetwork.from_tables(SPRINKLER)
            moved.conditional("rain").logits.data[i] += sign * h
            ends.append(moved.log_prob(moved.event.restore(x, "dict")).nats.sum())
        assert slope[i].item() == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-8)


def test_levels_that_are_numbers_and_declared_but_unseen_ones_are_kept():
    net = BayesianNetwork.from_tables({"a": ((3, 1, 2), [0.5, 0.5, 0.0])})
    lp = net.log_prob({"a": [1, 2, 3]})
    np.testing.assert_allclose(lp.nats, [math.log(0.5), -math.inf, math.log(0.5)])
    with pytest.raises(DataError, match="4"):
        net.log_prob({"a": [4]})
