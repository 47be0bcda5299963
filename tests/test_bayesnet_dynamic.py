"""Two-slice templates: an unrolled network is the hidden Markov model that it stands for, and the Kalman filter."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

import probgen as pg
from probgen import conditionals as cd
from probgen import emissions as em
from probgen import events as ev
from probgen.errors import DataError, ParameterError, ShapeError, StructureError
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.bayesnet import dynamic as dy

RNG = np.random.default_rng(4)
START, MOVES, SYMBOLS = RNG.dirichlet(np.ones(3)), RNG.dirichlet(np.ones(3), 3), RNG.dirichlet(np.ones(4), 3)
SLICE = ev.Table({"z": ev.Category(("a", "b", "c")), "x": ev.Category((0, 1, 2, 3))})


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def chain(length):
    net = dy.dynamic(SLICE, [("z", "x")], [("z", "z")], length)
    net.conditional("z[0]").set_table(START)
    net.conditional("x[0]").set_table(SYMBOLS)
    if length > 1:
        net.conditional("z[1]").set_table(MOVES)
    return net.imported()


def hmm(sequences):
    """The same model, by other code."""
    model = pg.HMM(states=3, emission=em.Categorical(4)).fit(sequences, seed=0, max_iter=1, restarts=1)
    shape = model.emission.logits.shape
    model.emission.logits.data.copy_(torch.from_numpy(SYMBOLS).log().reshape(shape))
    model.transitions.logits.data.copy_(torch.from_numpy(MOVES).log())
    model.transitions.initial_logits.data.copy_(torch.from_numpy(START).log())
    return model


def ragged(lengths):
    rng = np.random.default_rng(5)
    return [rng.integers(0, 4, n).astype(float) for n in lengths]


def test_a_hidden_chain_scores_sequences_as_the_hidden_markov_model():
    data = ragged([12, 1, 7, 12, 3])
    data[2][[0, 3, 4]] = np.nan
    found = chain(12).log_prob(dy.rows(chain(12), data, ["x"]))
    wanted = hmm(data).log_prob(data)
    np.testing.assert_allclose(found.nats, wanted.nats, rtol=0, atol=1e-10)
    assert found.kind == pg.Kind.EXACT


def test_a_template_that_forgets_to_share_is_caught():
    """The planted bug: the third slice moves by a table of its own."""
    data = ragged([5])
    net = chain(5)
    net.parts[net.index["z[3]"]] = cd.Tabular.of(MOVES[::-1].copy(), *net.columns_of("z[3]"))
    difference = net.log_prob(dy.rows(net, data, ["x"])).nats - hmm(data).log_prob(data).nats
    assert abs(difference[0]) > 1e-3


def test_the_posterior_of_the_hidden_chain_is_that_of_forward_backward():
    data = ragged([6])
    net, model = chain(6), hmm(data)
    found = net.marginals(dy.rows(net, data, ["x"]))
    np.testing.assert_allclose(
        np.stack([found[f"z[{t}]"][0] for t in range(6)]), model.posterior(data).marginals[0], atol=1e-10
    )


def test_slices_share_parameters_and_the_first_has_its_own_start():
    net = chain(9)
    assert net.n_params == 2 + 3 * 2 + 3 * 3
    assert net.conditional("z[1]") is net.conditional("z[8]")
    assert net.conditional("z[0]") is not net.conditional("z[1]")
    assert net.conditional("x[0]") is net.conditional("x[8]")
    own = dy.dynamic(SLICE, [("z", "x")], [("z", "z")], 4, first={"x": cd.Tabular()})
    assert own.conditional("x[0]") is not own.conditional("x[1]")
    assert own.n_params == net.n_params + 9


def test_past_parents_come_before_those_of_the_same_slice():
    net = dy.dynamic(SLICE, [("z", "x")], [("x", "x"), ("z", "x")], 3)
    assert net.parents["x[0]"] == ("z[0]",)
    assert net.parents["x[2]"] == ("x[1]", "z[1]", "z[2]")


def test_two_coupled_chains_sum_to_what_enumeration_says():
    event = ev.Table({name: ev.Category((0, 1)) for name in "abx"})
    net = dy.dynamic(event, [("a", "x"), ("b", "x")], [("a", "a"), ("b", "b"), ("a", "b")], 3)
    rng = np.random.default_rng(6)
    for part in {id(part): part for part in net.parts}.values():
        part.set_table(rng.dirichlet(np.ones(2), part.parent_cards))
    net.imported()
    data = [[1, 0, 1], [0, 0]]
    found = net.log_prob(dy.rows(net, [np.array(own) for own in data], ["x"])).nats
    hidden = [f"{name}[{t}]" for t in range(3) for name in "ab"]
    for own, nats in zip(data, found, strict=True):
        total = 0.0
        for states in itertools.product((0, 1), repeat=6):
            value = dict(zip(hidden, states, strict=True)) | {f"x[{t}]": v for t, v in enumerate(own)}
            total += np.prod([
                net.conditional(n).log_table().exp()[(*(value[p] for p in net.parents[n]), value[n])].item()
                for n in net.variables if n in value
            ])  # fmt: skip
        assert nats == pytest.approx(np.log(total), abs=1e-12)


def test_a_linear_gaussian_template_is_its_dense_normal():
    """A local level with noise: cov(y_s, y_t) = P0 + min(s, t) q + [s = t] r."""
    event = ev.Table({"level": ev.Real(), "y": ev.Real()})
    net = dy.dynamic(event, [("level", "y")], [("level", "level")], 5)
    net.conditional("level[0]").set_natural(intercept=1.0, scale=1.5)
    net.conditional("level[1]").set_natural(intercept=0.0, coefficients=[1.0], scale=0.7)
    net.conditional("y[0]").set_natural(intercept=0.0, coefficients=[1.0], scale=0.4)
    net.imported()
    y = np.array([0.3, 1.2, np.nan, 2.0, 1.1])
    seen, t = ~np.isnan(y), np.arange(5)
    covariance = 1.5**2 + np.minimum.outer(t, t) * 0.7**2 + 0.4**2 * np.eye(5)
    dense = torch.distributions.MultivariateNormal(
        torch.ones(4, dtype=torch.float64), torch.from_numpy(covariance[np.ix_(seen, seen)])
    )
    found = net.log_prob(dy.rows(net, [y], ["y"])).nats[0]
    assert found == pytest.approx(dense.log_prob(torch.from_numpy(y[seen])).item(), abs=1e-10)


def test_a_network_of_another_length_has_the_same_parameters():
    data = ragged([30, 11])
    longer = dy.of_length(chain(4), 30)
    np.testing.assert_allclose(
        longer.log_prob(dy.rows(longer, data, ["x"])).nats, hmm(data).log_prob(data).nats, atol=1e-10
    )
    assert longer.n_params == chain(4).n_params
    assert dy.of_length(longer, 1).variables == ("z[0]", "x[0]")


def test_steps_come_as_arrays_frames_dicts_or_one_frame_with_a_label():
    net = chain(3)
    x = [np.array([1, 2, 3]), np.array([0])]
    long = pd.DataFrame({"who": ["p", "p", "p", "q"], "x": np.concatenate(x)})
    forms = [
        dy.rows(net, x, ["x"]),
        dy.rows(net, [pd.DataFrame({"x": own}) for own in x]),
        dy.rows(net, [{"x": own} for own in x]),
        dy.rows(net, long, sequence="who"),
    ]
    wanted = net.log_prob(forms[0]).nats
    for frame in forms[1:]:
        np.testing.assert_array_equal(net.log_prob(frame).nats, wanted)
    full = dy.rows(net, [pd.DataFrame({"z": ["a", "b"], "x": [1, 2]})])
    assert full["z[1]"].tolist() == ["b"]
    assert full["x[2]"].isna().all()


def test_sequences_that_do_not_fit_are_refused():
    net = chain(3)
    with pytest.raises(DataError, match="4 steps"):
        dy.rows(net, [np.zeros(2), np.zeros(4)], ["x"])
    with pytest.raises(ShapeError):
        dy.rows(net, [np.zeros((2, 3))], ["x"])
    with pytest.raises(ParameterError, match="'y' is no variable"):
        dy.rows(net, [np.zeros(2)], ["y"])
    with pytest.raises(DataError):
        dy.rows(net, [np.array([9.0])], ["x"])
    with pytest.raises(DataError):
        dy.rows(net, [], ["x"])


@pytest.mark.parametrize(
    "build",
    [
        lambda: dy.dynamic(SLICE, [("z", "x")], [], 0), lambda: dy.dynamic(SLICE, [("z", "x")], [], 2.0),
        lambda: dy.dynamic(SLICE, [("z", "y")], [], 2), lambda: dy.dynamic(SLICE, [], [("z", "y")], 2),
        lambda: dy.dynamic(SLICE, [("z", "x"), ("x", "z")], [], 2), lambda: dy.dynamic(SLICE, ["zx"], [], 2),
        lambda: dy.dynamic(SLICE, [("z", "x"), ("z", "x")], [], 2), lambda: dy.dynamic(SLICE, [("z", "z")], [], 2),
        lambda: dy.dynamic(SLICE, [], [], 2, {"y": cd.Tabular()}),
        lambda: dy.dynamic(SLICE, [], [], 2, first={"y": cd.Tabular()}),
        lambda: dy.dynamic(SLICE, [], [], 2, {"x": cd.LinearGaussian()}),
        lambda: dy.of_length(chain(1), 4),
        lambda: dy.slices(BayesianNetwork(SLICE, [("z", "x")])),
        lambda: dy.slices(BayesianNetwork(ev.Table({"a[0]": SLICE.columns["x"], "b[1]": SLICE.columns["x"]}))),
    ],
)  # fmt: skip
def test_templates_that_make_no_network_are_refused(build):
    with pytest.raises((ParameterError, StructureError)):
        build()


def test_what_is_no_dynamic_network_is_told_in_whole_words():
    coin = BayesianNetwork(ev.Table({"a": ev.Category((0, 1))})).imported()
    with pytest.raises(StructureError) as caught:
        coin.of_length(3)
    assert " . " not in str(caught.value)
    assert "BayesianNetwork.dynamic" in str(caught.value)
    net = BayesianNetwork.dynamic(ev.Table({n: ev.Category((0, 1)) for n in "ho"}), [("h", "o")], [("h", "h")], 3)
    with pytest.raises(ShapeError, match=r"name them: columns=\['x'\]\.$"):
        net.rows([[0, 1]])
