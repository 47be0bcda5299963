"""Interventions against the truncated factorisation, counterfactuals against structural models that are played out."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from probgen import Kind
from probgen import conditionals as cd
from probgen import events as ev
from probgen.errors import ParameterError, StructureError, SupportError, ZeroEvidenceError
from probgen.models.bayesnet import BayesianNetwork, mechanisms
from probgen.models.bayesnet import dynamic as dy

NO_YES = ev.Category(("no", "yes"))
FAR = 5.2  # standard errors; a false alarm of 2e-7 a number


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_net(seed, nodes=5, levels=(2, 3), learned=False):
    """A random network of tables whose columns come in no topological order."""
    rng = np.random.default_rng(seed)
    names, order = [f"v{i}" for i in range(nodes)], rng.permutation(nodes)
    event = ev.Table({name: ev.Category(tuple("abc"[: rng.choice(levels)])) for name in names})
    pairs = [(names[order[i]], names[order[j]]) for j in range(nodes) for i in range(j)]
    net = BayesianNetwork(event, [pair for pair in pairs if rng.random() < 0.5], learned=learned)
    for part in net.parts:
        part.set_table(rng.dirichlet(np.ones(part.cards[-1]), part.parent_cards))
    return net.imported()


def joint(net, skip=()):
    """The product of the tables but for some nodes, by enumeration; axes are the columns."""
    cards = [len(column.levels) for column in net.event.columns.values()]
    out = np.ones(cards)
    for cell in itertools.product(*map(range, cards)):
        value = dict(zip(net.variables, cell, strict=True))
        for name in net.variables:
            if name not in skip:
                own = net.conditional(name).log_table().exp()
                out[cell] *= own[(*(value[p] for p in net.parents[name]), value[name])].item()
    return out


def everything(net):
    cards = [len(column.levels) for column in net.event.columns.values()]
    return net.event.restore(torch.tensor(list(itertools.product(*map(range, cards))), dtype=torch.float64), "pandas")


# Interventions


@pytest.mark.parametrize("seed", range(12))
def test_an_intervention_is_the_truncated_factorisation(seed):
    net = random_net(seed)
    for names in (("v0",), ("v1", "v3")):
        made = net.do(dict.fromkeys(names, "b"))
        wanted = joint(net, names)
        for name in names:
            axis = net.index[name]
            keep = np.arange(wanted.shape[axis]) == 1
            wanted = np.where(keep.reshape([-1 if i == axis else 1 for i in range(wanted.ndim)]), wanted, 0.0)
        found = np.exp(made.log_prob(everything(net)).nats).reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, atol=1e-12)
        assert made.log_prob(everything(net)).kind == Kind.EXACT


def test_conditioning_in_place_of_setting_is_caught():
    """The planted bug: seeing is not doing where there is a common cause."""
    net = BayesianNetwork.from_tables({
        "cause": {"no": 0.5, "yes": 0.5},
        "smoke": ("cause", {"no": {"no": 0.9, "yes": 0.1}, "yes": {"no": 0.2, "yes": 0.8}}),
        "ill": ("cause", {"no": {"no": 0.9, "yes": 0.1}, "yes": {"no": 0.3, "yes": 0.7}}),
    })  # fmt: skip
    seen = net.marginals({"smoke": ["yes"]})["ill"][0, 1]
    done = net.do({"smoke": "yes"}).marginals()["ill"][0, 1]
    assert done == pytest.approx(0.4, abs=1e-12)
    assert seen > done + 0.2


def test_marginals_after_an_intervention_with_gaps_in_the_data():
    net = random_net(3)
    made = net.do({"v2": "a"})
    table = np.moveaxis(joint(net, ("v2",)), net.index["v2"], 0)[0]
    table = np.expand_dims(table, net.index["v2"])
    seen = net.index["v4"]
    given = np.take(table, [1], axis=seen)
    for name in net.variables:
        if name not in ("v2", "v4"):
            axes = tuple(i for i in range(5) if i != net.index[name])
            wanted = given.sum(axes) / given.sum()
            np.testing.assert_allclose(made.marginals({"v4": ["b"]})[name][0], wanted, atol=1e-12)


def test_the_network_itself_stays_as_it_was():
    net = random_net(4)
    before = net.log_prob(everything(net)).nats
    made = net.do({"v0": "a"})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(net.log_prob(everything(net)).nats, before)


def test_interventions_one_after_the_other_are_one():
    net = random_net(5)
    twice, once = net.do({"v0": "a"}).do({"v1": "b"}), net.do({"v0": "a", "v1": "b"})
    np.testing.assert_allclose(twice.log_prob(everything(net)).nats, once.log_prob(everything(net)).nats, atol=1e-12)


def test_a_set_slice_of_a_dynamic_network_leaves_the_others_tied():
    net = dy.dynamic(ev.Table({"x": NO_YES}), [], [("x", "x")], 5)
    net.conditional("x[1]").set_table([[0.9, 0.1], [0.3, 0.7]])
    made = net.imported().do({"x[1]": "yes"})
    assert made.conditional("x[2]") is made.conditional("x[4]")
    assert made.conditional("x[2]") is not net.conditional("x[2]")
    assert made.marginals()["x[3]"][0, 1] == pytest.approx(0.7 * 0.7 + 0.3 * 0.1, abs=1e-12)


def gaussian_net():
    """x -> y -> z, x -> z, linear."""
    net = BayesianNetwork(
        ev.Table({"z": ev.Real(), "x": ev.Real(), "y": ev.Real()}), [("x", "y"), ("y", "z"), ("x", "z")]
    )
    net.conditional("x").set_natural(intercept=0.5, scale=1.2)
    net.conditional("y").set_natural(intercept=-1.0, coefficients=[2.0], scale=0.5)
    net.conditional("z").set_natural(intercept=0.3, coefficients=[1.5, -0.7], scale=0.8)
    return net.imported()


def test_a_real_variable_is_set_too():
    made = gaussian_net().do({"y": 2.0})
    mean, sd = made.marginals()["z"]
    assert mean[0] == pytest.approx(0.3 + 1.5 * 2.0 - 0.7 * 0.5, abs=1e-12)
    assert sd[0] == pytest.approx(math.hypot(0.7 * 1.2, 0.8), abs=1e-12)


def test_a_learned_graph_refuses_effects_that_the_data_can_not_tell():
    net = BayesianNetwork(
        ev.Table(dict.fromkeys("abcd", NO_YES)), [("a", "b"), ("b", "c"), ("d", "c")], learned=True
    ).imported()  # a - b undirected, b -> c <- d compelled
    with pytest.raises(StructureError, match="a - b points either way"):
        net.do({"a": "yes"})
    with pytest.raises(StructureError, match="assume_graph"):
        net.counterfactual({"a": ["no"]}, do={"b": "yes"})
    assert net.do({"a": "yes"}, assume_graph=True).edges == net.edges
    assert net.do({"a": "yes", "b": "no"}).edges == (("b", "c"), ("d", "c"))
    assert net.do({"d": "yes"}).edges == net.edges
    with pytest.raises(StructureError, match="one do"):
        net.do({"d": "yes"}).do({"c": "yes"})


@pytest.mark.parametrize(
    ("assignments", "error"),
    [({}, ParameterError), ("v0", ParameterError), ({"v9": "a"}, ParameterError), ({"v0": "z"}, SupportError),
     ({"v0": None}, SupportError), ({"v0": float("nan")}, SupportError), ({"v0": 0}, SupportError)],
)  # fmt: skip
def test_interventions_that_make_no_sense_are_refused(assignments, error):
    net = random_net(0)
    with pytest.raises(error):
        net.do(assignments)
    with pytest.raises(error):
        net.counterfactual(None, do=assignments)


@pytest.mark.parametrize("value", [float("inf"), "high", True, None])
def test_a_real_variable_is_set_to_a_number(value):
    with pytest.raises(SupportError):
        gaussian_net().do({"y": value})


# Counterfactuals with the mechanism of a linear Gaussian


def two_worlds(seen):
    """Mean and covariance of (y*, z*) given what was seen, from the noise up: both worlds are linear in it."""
    noise = np.diag([1.2, 0.5, 0.8]) ** 2  # of x, y, z
    factual = np.array([[1, 0, 0], [2, 1, 0], [1.5 * 2 - 0.7, 1.5, 1]])
    start = np.array([0.5, -1 + 2 * 0.5, 0.0])
    start[2] = 0.3 + 1.5 * start[1] - 0.7 * start[0]
    other, base = np.array([[0, 1, 0], [0, 1.5, 1]]), np.array([-1 + 2 * 3.0, 0.0])  # x set to 3
    base[1] = 0.3 + 1.5 * base[0] - 0.7 * 3.0
    there = np.array([i for i, v in enumerate("xyz") if v in seen])
    b = factual[there]
    gain = other @ noise @ b.T @ np.linalg.inv(b @ noise @ b.T)
    mean = base + gain @ (np.array([seen["xyz"[i]] for i in there]) - start[there])
    return mean, other @ noise @ other.T - gain @ b @ noise @ other.T


@pytest.mark.parametrize("names", ["xyz", "xz", "yz", "z", "y", "xy"])
def test_a_linear_gaussian_counterfactual_keeps_the_noise(names):
    seen = {name: value for name, value in {"x": 1.0, "y": 0.4, "z": 2.5}.items() if name in names}
    found = gaussian_net().counterfactual({name: [value] for name, value in seen.items()}, do={"x": 3.0})
    mean, covariance = two_worlds(seen)
    for i, name in enumerate("yz"):
        assert found[name][0][0] == pytest.approx(mean[i], abs=1e-10)
        assert found[name][1][0] == pytest.approx(np.sqrt(max(covariance[i, i], 0.0)), abs=1e-6)
    assert found.kinds == (Kind.EXACT,)


def test_a_counterfactual_that_forgets_what_was_seen_is_caught():
    """The planted bug: do() alone, with fresh noise."""
    net = gaussian_net()
    found = net.counterfactual({"x": [1.0], "y": [0.4], "z": [2.5]}, do={"x": 3.0})["y"][0][0]
    assert abs(found - net.do({"x": 3.0}).marginals()["y"][0][0]) > 0.5


def test_under_what_was_done_anyway_everything_stays_as_it_was():
    rng = np.random.default_rng(1)
    rows = {name: rng.normal(size=20) for name in "xyz"}
    rows["x"] = np.full(20, 1.5)
    found = gaussian_net().counterfactual(rows, do={"x": 1.5})
    np.testing.assert_allclose(found["z"][0], rows["z"], atol=1e-12)
    np.testing.assert_array_equal(found["z"][1], 0.0)


def mixed_net(counted=False):
    """A treatment t, a cause u, a result y whose spread depends on the treatment, and a count beside or below it."""
    event = ev.Table({"t": NO_YES, "u": ev.Real(), "y": ev.Real(), "n": ev.Count()})
    net = BayesianNetwork(event, [("t", "y"), ("u", "y"), ("y", "n") if counted else ("u", "n")])
    net.conditional("u").set_natural(intercept=0.0, scale=1.0)
    net.conditional("y").set_natural(intercept=[1.0, 3.0], coefficients=[[0.5], [2.0]], scale=[1.0, 2.0])
    return net.imported()


def test_the_noise_of_a_conditional_gaussian_is_taken_over_in_its_own_scale():
    net = mixed_net()
    found = net.counterfactual({"t": ["no"], "u": [0.8], "y": [2.0]}, do={"t": "yes"})
    e = (2.0 - (1.0 + 0.5 * 0.8)) / 1.0
    assert found["y"][0][0] == pytest.approx(3.0 + 2.0 * 0.8 + 2.0 * e, abs=1e-12)
    gap = net.counterfactual({"t": ["no"], "y": [2.0]}, do={"t": "yes"})
    # u | y is normal with slope 0.5 / 1.25; y* = 3 + 2 u + 2 (y - 1 - 0.5 u) = 2 y + 1 + u
    assert gap["y"][0][0] == pytest.approx(2 * 2.0 + 1 + 0.4 * (2.0 - 1.0), abs=1e-10)
    assert gap["y"][1][0] == pytest.approx(math.sqrt(1 - 0.25 / 1.25), abs=1e-10)


def test_what_is_drawn_for_gaps_is_what_the_conditional_normal_says():
    """A count below keeps the answer from being exact; y is drawn, and drawn right."""
    found = mixed_net(counted=True).counterfactual({"t": ["no"], "y": [2.0]}, do={"t": "yes"}, draws=40_000, seed=2)
    assert found.kinds == (Kind.ESTIMATE,)
    assert abs(found["y"][0][0] - 5.4) < FAR * found.stderr["y"][0]
    assert found["y"][1][0] == pytest.approx(math.sqrt(0.8), rel=FAR / math.sqrt(2 * 40_000))


def test_counterfactuals_average_to_the_intervention():
    """Over rows drawn from the network, whatever their own treatment was."""
    net = mixed_net()
    rows = net.sample(4000, seed=3)
    kept = {name: rows[name] for name in ("t", "u", "y")}
    y = net.counterfactual(kept, do={"t": "yes"})["y"][0]
    wanted = stats.norm(3.0, math.sqrt(4 + 4))
    assert abs(y.mean() - wanted.mean()) < FAR * wanted.std() / math.sqrt(4000)
    assert stats.kstest(y, wanted.cdf).pvalue > 1e-6
    assert stats.kstest(y / 2 + 1.5, wanted.cdf).pvalue < 1e-6  # the same test would see half the spread


# Deterministic tables


def circuit():
    """Three random switches; either = a or b, lamp = either xor c."""

    def bits(p):
        return {"no": 1 - p, "yes": p}

    def gate(rule):
        rows = itertools.product(("no", "yes"), repeat=2)
        return {row: bits(float(rule(row[0] == "yes", row[1] == "yes"))) for row in rows}

    return BayesianNetwork.from_tables({
        "a": bits(0.3), "b": bits(0.6), "c": bits(0.2),
        "either": (("a", "b"), gate(lambda p, q: p or q)), "lamp": (("either", "c"), gate(lambda p, q: p != q)),
    })  # fmt: skip


@pytest.mark.parametrize("seen", [{"lamp": 1}, {"lamp": 0, "b": 1}, {"either": 1}, {"a": 1, "lamp": 1}, {"c": 0}])
def test_a_deterministic_counterfactual_is_that_of_all_worlds_that_fit(seen):
    net, told = circuit(), ("no", "yes")
    found = net.counterfactual({name: [told[v]] for name, v in seen.items()}, do={"a": "no"})
    mass, yes = 0.0, {"either": 0.0, "lamp": 0.0}
    for a, b, c in itertools.product((0, 1), repeat=3):
        world = {"a": a, "b": b, "c": c, "either": a | b, "lamp": (a | b) ^ c}
        p = (0.3, 0.7)[1 - a] * (0.6, 0.4)[1 - b] * (0.2, 0.8)[1 - c]
        if all(world[name] == v for name, v in seen.items()):
            mass += p
            yes["either"] += p * b
            yes["lamp"] += p * (b ^ c)
    for name, total in yes.items():
        np.testing.assert_allclose(found[name][0], [1 - total / mass, total / mass], atol=1e-12)
    assert found.kinds == (Kind.EXACT,)
    assert found.by == ("twin network",)


def test_what_lies_below_but_was_not_seen_needs_no_mechanism():
    """Its chance was never looked at: the answer is that of do(), given what was seen above."""
    net = random_net(7)
    top, below = net.order[1], [v for v in net.order[2:] if net.order[1] in net.parents[v]]
    seen = {net.order[0]: ["b"]}
    found, done = net.counterfactual(seen, do={top: "a"}), net.do({top: "a"}).marginals(seen)
    assert below
    for name in below:
        np.testing.assert_allclose(found[name], done[name], atol=1e-12)


# One open table: bounds


def stochastic(p, q, f=None):
    """t -> v by two rows of a table, v -> w by a function of levels."""
    card = len(p)
    columns = {"t": NO_YES, "v": ev.Category(tuple(range(card))), "w": NO_YES}
    net = BayesianNetwork(ev.Table(columns), [("t", "v"), ("v", "w")] if f else [("t", "v")])
    net.conditional("v").set_table(np.array([p, q]))
    if f:
        net.conditional("w").set_table([[1.0 - f[i], float(f[i])] for i in range(card)])
    return net.imported()


@pytest.mark.parametrize("seed", range(8))
def test_bounds_are_the_extremes_over_all_joint_worlds(seed):
    rng = np.random.default_rng(seed)
    p, q, f = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3)), (0, 1, 1)
    net = stochastic(p, q, f)
    margins = np.zeros((6, 9))
    for i in range(3):
        margins[i, 3 * i : 3 * i + 3] = 1.0
        margins[3 + i, i::3] = 1.0
    for v in range(3):
        found = net.counterfactual({"t": ["no"], "v": [v], "w": [("no", "yes")[f[v]]]}, do={"t": "yes"})
        assert found.kinds == ("bounds",)
        for name, events in (("v", np.eye(3)), ("w", np.array([[1, 0, 0], [0, 1, 1]]))):
            for level, event in enumerate(events):
                cost = np.zeros(9)
                cost[3 * v : 3 * v + 3] = event / p[v]
                ends = [
                    sign * optimize.linprog(sign * cost, A_eq=margins, b_eq=np.r_[p, q], bounds=(0, None)).fun
                    for sign in (1, -1)
                ]
                assert found.lower[name][0, level] == pytest.approx(ends[0], abs=1e-9)
                assert found.upper[name][0, level] == pytest.approx(ends[1], abs=1e-9)


def test_bounds_close_where_nothing_is_open():
    net = stochastic([0.2, 0.8, 0.0], [0.5, 0.25, 0.25])
    same = net.counterfactual({"t": ["no"], "v": [1]}, do={"t": "no"})
    np.testing.assert_array_equal(same["v"], [[0.0, 1.0, 0.0]])
    assert same.kinds == (Kind.EXACT,)
    sure = stochastic([0.0, 1.0, 0.0], [0.5, 0.25, 0.25]).counterfactual({"t": ["no"], "v": [1]}, do={"t": "yes"})
    np.testing.assert_allclose(sure["v"], [[0.5, 0.25, 0.25]], atol=1e-12)
    open_ones = net.counterfactual({"t": ["no"], "v": [1]}, do={"t": "yes"})
    with pytest.raises(StructureError, match="bounds, no numbers"):
        open_ones["v"]


# Gumbel-max


def test_two_levels_under_gumbel_max_have_a_closed_form():
    """With two levels it is a threshold on one noise: P(v* = 1 | v = 1) = min(1, q / p)."""
    for p, q in ((0.7, 0.2), (0.2, 0.7), (0.5, 0.45)):
        net = stochastic([1 - p, p], [1 - q, q])
        found = net.counterfactual(
            {"t": ["no"], "v": [1]}, do={"t": "yes"}, mechanism="gumbel-max", draws=40_000, seed=1
        )
        wanted = min(1.0, q / p)
        assert abs(found["v"][0, 1] - wanted) < FAR * found.stderr["v"][0, 1]
        assert found.kinds == (Kind.ESTIMATE,)


def play(p, q, v, fresh=False):
    """Counterfactual shares by playing the structural model out and keeping the worlds in which v came up."""
    rng = np.random.default_rng(8)
    noise = rng.gumbel(size=(400_000, len(p)))
    kept = noise[(np.log(p) + noise).argmax(1) == v]
    if fresh:
        kept = rng.gumbel(size=kept.shape)
    return np.bincount((np.log(q) + kept).argmax(1), minlength=len(q)) / len(kept), len(kept)


def test_three_levels_under_gumbel_max_are_those_of_the_structural_model_played_out():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    net, draws = stochastic(p, q), 50_000
    for v in range(3):
        found = net.counterfactual(
            {"t": ["no"], "v": [v]}, do={"t": "yes"}, mechanism="gumbel-max", draws=draws, seed=v
        )["v"][0]
        wanted, kept = play(p, q, v)
        error = np.sqrt(wanted * (1 - wanted) * (1 / kept + 1 / draws)) + 1 / draws
        assert (np.abs(found - wanted) < FAR * error).all()
        wrong, _ = play(p, q, v, fresh=True)  # the planted bug: fresh noise is do(), no counterfactual
        assert (np.abs(found - wrong) > FAR * error).any()
        bounds = net.counterfactual({"t": ["no"], "v": [v]}, do={"t": "yes"})
        assert (found >= bounds.lower["v"][0] - FAR * error).all()
        assert (found <= bounds.upper["v"][0] + FAR * error).all()


def test_posterior_noise_is_gumbel_again_when_the_winner_is_forgotten():
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().expand(30_000, -1)
    winners = torch.multinomial(logits.exp(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    noise = mechanisms.gumbels(logits, winners, torch.Generator().manual_seed(1))
    assert torch.equal((logits + noise).argmax(1), winners)
    for column in noise.T.numpy():
        assert stats.kstest(column, stats.gumbel_r.cdf).pvalue > 1e-6
        assert stats.kstest(column + 0.1, stats.gumbel_r.cdf).pvalue < 1e-6


def test_gumbel_max_with_gaps_agrees_with_the_sum_over_what_was_missing():
    """v missing between t and its noisy report: P(v* | t, report) = sum_v P(v | t, report) P(v* | v)."""
    p, q = np.array([0.7, 0.3]), np.array([0.4, 0.6])
    table = np.array([[0.8, 0.2], [0.1, 0.9]])
    net = BayesianNetwork(
        ev.Table({"t": NO_YES, "v": ev.Category((0, 1)), "r": ev.Category((0, 1))}), [("t", "v"), ("v", "r")]
    )
    net.conditional("v").set_table(np.array([p, q]))
    net.conditional("r").set_table(table)
    found = net.imported().counterfactual(
        {"t": ["no"], "r": [1]}, do={"t": "yes"}, mechanism="gumbel-max", draws=60_000, seed=4
    )
    after = p * table[:, 1] / (p * table[:, 1]).sum()
    stays = np.array([min(1, q[0] / p[0]), min(1, q[1] / p[1])])
    wanted = after[1] * stays[1] + after[0] * (1 - stays[0])
    assert abs(found["v"][0, 1] - wanted) < FAR * found.stderr["v"][0, 1]


def test_standard_errors_are_those_of_repeated_runs():
    net = stochastic([0.5, 0.3, 0.2], [0.2, 0.3, 0.5])
    runs = [
        net.counterfactual({"t": ["no"], "v": [0]}, do={"t": "yes"}, mechanism="gumbel-max", draws=500, seed=i)
        for i in range(200)
    ]
    spread = np.std([run["v"][0] for run in runs], axis=0)
    told = np.mean([run.stderr["v"][0] for run in runs], axis=0)
    assert (np.abs(np.log(spread / told)) < FAR / math.sqrt(2 * 200)).all()


def test_the_same_seed_gives_the_same_answer_and_rows_keep_their_places():
    net = stochastic([0.5, 0.3, 0.2], [0.2, 0.3, 0.5])
    rows = {"t": ["no", "yes", "no", None], "v": [0, 1, 2, 0]}
    ask = {"do": {"t": "yes"}, "mechanism": "gumbel-max", "draws": 300}
    one, two = net.counterfactual(rows, seed=5, **ask), net.counterfactual(rows, seed=5, **ask)
    np.testing.assert_array_equal(one["v"], two["v"])
    np.testing.assert_array_equal(one["v"][1], [0.0, 1.0, 0.0])  # set to what it was
    frame = one.frame()
    assert frame.column_names[:4] == ["row", "variable", "level", "probability"]
    assert frame.num_rows == 4 * 3
    assert set(frame["kind"].to_pylist()) == {"estimate"}


def test_rows_with_different_gaps_are_answered_each_in_its_way():
    net = stochastic([0.5, 0.3, 0.2], [0.2, 0.3, 0.5])
    found = net.counterfactual({"t": ["no", "no", None], "v": [1, None, None]}, do={"t": "yes"})
    assert found.kinds == ("bounds", Kind.EXACT, Kind.EXACT)
    np.testing.assert_allclose(found.lower["v"][1:], [[0.2, 0.3, 0.5]] * 2, atol=1e-12)
    table = found.frame().to_pydict()
    assert table["probability"][:3] == [None] * 3
    assert table["probability"][3:6] == pytest.approx([0.2, 0.3, 0.5])


def test_counterfactuals_without_a_mechanism_are_refused_and_named():
    net = random_net(2, nodes=4, levels=(2,))
    chain = BayesianNetwork(ev.Table(dict.fromkeys("abc", NO_YES)), [("a", "b"), ("b", "c")]).imported()
    with pytest.raises(StructureError, match=r"'b', 'c'.*gumbel-max"):
        chain.counterfactual({"a": ["no"], "b": ["no"], "c": ["no"]}, do={"a": "yes"})
    with pytest.raises(StructureError, match="all cells of the families"):
        stochastic([0.5, 0.5], [0.1, 0.9]).counterfactual({"v": [1]}, do={"t": "yes"})
    with pytest.raises(StructureError, match="no linear Gaussian"):
        mixed_net(counted=True).counterfactual({"t": ["no"], "u": [1.0], "y": [1.0], "n": [2]}, do={"t": "yes"})
    with pytest.raises(StructureError, match="Nothing would differ"):
        chain.counterfactual({"a": ["no"]}, do={"c": "yes"})
    with pytest.raises(ParameterError):
        chain.counterfactual({"a": ["no"]}, do={"a": "yes"}, mechanism="monotone")
    with pytest.raises(ParameterError):
        chain.counterfactual({"a": ["no"]}, do={"a": "yes"}, mechanism={"z": "gumbel-max"})
    with pytest.raises(ParameterError):
        chain.counterfactual({"a": ["no"]}, do={"a": "yes"}, mechanism="gumbel-max", draws=0)
    with pytest.raises(ParameterError):
        net.counterfactual(None, do={"v0": "a"}, seed=-1)


def test_what_can_not_have_happened_has_no_counterfactual():
    net = stochastic([0.5, 0.5, 0.0], [0.1, 0.4, 0.5])
    for mechanism in (None, "gumbel-max"):
        with pytest.raises(ZeroEvidenceError, match="Row 1"):
            net.counterfactual({"t": ["no", "no"], "v": [0, 2]}, do={"t": "yes"}, mechanism=mechanism)
    with pytest.raises(ZeroEvidenceError):
        circuit().counterfactual({"a": ["yes"], "either": ["no"]}, do={"b": "yes"})


def test_a_soft_regression_can_be_declared_gumbel_max():
    """Categories below a real: more of what raises the chance never undoes what came up."""
    net = BayesianNetwork(
        ev.Table({"x": ev.Real(), "v": ev.Category((0, 1))}), [("x", "v")], conditionals={"v": cd.Softmax()}
    )
    with torch.no_grad():
        for parameter in net.conditional("v").parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel(), dtype=torch.float64).reshape(parameter.shape))
    net.imported()
    logit = [math.log(p / (1 - p)) for p in net.do({"x": 0.0}).marginals()["v"][:, 1]]
    up = [net.do({"x": s}).marginals()["v"][0, 1] for s in (-1.0, 1.0)]
    higher = 1.0 if up[1] > up[0] else -1.0
    found = net.counterfactual({"x": [0.0], "v": [1]}, do={"x": higher}, mechanism="gumbel-max", draws=2000, seed=0)
    assert found["v"][0, 1] == 1.0
    lower = net.counterfactual({"x": [0.0], "v": [1]}, do={"x": -higher}, mechanism="gumbel-max", draws=20_000, seed=0)
    wanted = min(up) / (1 / (1 + math.exp(-logit[0])))
    assert abs(lower["v"][0, 1] - wanted) < FAR * lower.stderr["v"][0, 1]
