"""Discrete Pyro programs as networks: the same probabilities, or a refusal that names the site."""

import itertools
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex

from probgen import events as ev
from probgen.errors import StructureError
from probgen.models.bayesnet import BayesianNetwork


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def nats(net, x):
    with torch.no_grad():
        return net._log_prob(x, None, generator=seeded(0)).nats


def table(*shape, seed=1):
    rows = torch.rand(shape, generator=seeded(seed), dtype=torch.float64) + 0.05
    return rows / rows.sum(-1, keepdim=True)


def sprinkler():
    rain = pyro.sample("rain", dist.Bernoulli(torch.tensor(0.2)))
    on = pyro.sample("on", dist.Bernoulli(torch.tensor([0.4, 0.01])[rain.long()]))
    wet = pyro.sample("wet", dist.Categorical(Vindex(table(2, 2, 3))[on.long(), rain.long()]))
    pyro.sample("slips", dist.Binomial(3, table(3, seed=2)[wet]))
    pyro.sample("both", dist.Delta(rain * on))
    return pyro.deterministic("sum", rain + on)


def hidden_chain(length=8):
    state = torch.tensor(0)
    for t in pyro.markov(range(length)):
        state = pyro.sample(f"z{t}", dist.Categorical(table(3, 3)[state]), infer={"enumerate": "parallel"})
        pyro.sample(f"x{t}", dist.Categorical(logits=table(3, 4, seed=2)[state].log()))


def plain_python():
    """Values that leave torch: an if, an index, an array."""
    z = pyro.sample("z", dist.Categorical(table(3)))
    w = pyro.sample("w", dist.Bernoulli(0.3 if z == 1 else 0.6))
    v = pyro.sample("v", dist.Bernoulli([0.2, 0.9][int(w)]))
    pyro.sample("u", dist.Bernoulli(torch.as_tensor(z.numpy() * 0.2 + 0.1)))
    filled = torch.zeros(2)
    filled[1] = 0.5 * v + 0.2
    pyro.sample("t", dist.Bernoulli(filled[1]))


def made_anew():
    """Functions that make tensors of numbers."""
    z = pyro.sample("z", dist.Bernoulli(0.4))
    pyro.sample("full", dist.Bernoulli(torch.full((2,), 0.2 + 0.5 * z)[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of copies
        copied = torch.tensor(0.3 + 0.1 * z)
    pyro.sample("tensor", dist.Bernoulli(copied))
    pyro.sample("new", dist.Bernoulli(torch.zeros(2).new_full((2,), 0.2 + 0.5 * z)[0]))


def plated(n=3):
    c = pyro.sample("c", dist.Categorical(table(3)))
    with pyro.plate("features", n):
        w = pyro.sample("w", dist.Categorical(table(3, n, 4)[c]))
        with pyro.plate("twice", 2):
            pyro.sample("v", dist.Bernoulli(table(4, seed=3)[w]))
    pyro.sample("any", dist.Bernoulli((w == 0).any().double() * 0.5 + 0.2))


def rows(x=None, n=5):
    with pyro.plate("rows", n):
        z = pyro.sample("z", dist.Categorical(table(3)))
        return pyro.sample("x", dist.Categorical(table(3, 4)[z]), obs=x)


def impossible():
    a = pyro.sample("a", dist.Categorical(torch.tensor([0.0, 1.0, 0.0])))
    pyro.sample("b", dist.Categorical(torch.eye(3, dtype=torch.float64)[a]))


PROGRAMS = {
    "sprinkler": (sprinkler, {"on": ("rain",), "wet": ("rain", "on"), "slips": ("wet",), "both": ("rain", "on")}),
    "hidden chain": (hidden_chain, {f"x{t}": (f"z{t}",) for t in range(8)} | {"z7": ("z6",)}),
    "plain python": (plain_python, {"w": ("z",), "v": ("w",), "u": ("z",), "t": ("v",)}),
    "made anew": (made_anew, {"full": ("z",), "tensor": ("z",), "new": ("z",)}),
    "plates": (plated, {"w[1]": ("c",), "v[0,2]": ("w[2]",), "any": ("w[0]", "w[1]", "w[2]")}),
    "impossible levels": (impossible, {"b": ("a",)}),
}


def values_of(net, trace):
    """A trace's values as one row of the network."""
    row = []
    for name in net.variables:
        site, _, index = name.partition("[")
        value = trace.nodes[site]["value"]
        place = tuple(int(i) for i in index[:-1].split(",")) if index else ()
        level = float(value[place])
        row.append(net.event.columns[name].levels.index(level))
    return torch.tensor([row], dtype=torch.float64)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_traced_program_scores_its_own_traces_as_pyro_does(name):
    program, parents = PROGRAMS[name]
    net = BayesianNetwork.from_pyro(program)
    assert parents.items() <= net.parents.items()
    pyro.set_rng_seed(0)
    scores = []
    for _ in range(25):
        trace = poutine.trace(program).get_trace()
        scores.append(float(trace.log_prob_sum()))
        assert float(nats(net, values_of(net, trace))[0]) == pytest.approx(scores[-1], rel=1e-5, abs=1e-6)
    assert name == "impossible levels" or np.ptp(scores) > 0.1


def test_double_precision_is_kept():
    net = BayesianNetwork.from_pyro(hidden_chain)
    trace = poutine.trace(hidden_chain).get_trace()
    wanted = float(trace.log_prob_sum())
    assert float(nats(net, values_of(net, trace))[0]) == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_a_network_comes_back_from_its_own_program(seed):
    rng = np.random.default_rng(seed)
    names = [f"v{i}" for i in range(5)]
    edges = [(str(p), v) for i, v in enumerate(names) for p in rng.permutation(names[:i])[: rng.integers(0, 4)]]
    columns = {str(name): ev.Category(tuple(range(rng.integers(2, 5)))) for name in rng.permutation(names)}
    net = BayesianNetwork(ev.Table(columns), edges).imported()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(seed), dtype=p.dtype))
        net.parts[0].logits.view(-1)[0] = -torch.inf
    back = BayesianNetwork.from_pyro(net.model, n=3)
    x = torch.stack([torch.as_tensor(rng.integers(0, len(c.levels), 20)) for c in columns.values()], -1).double()
    x[torch.as_tensor(rng.random(x.shape) < 0.3)] = torch.nan
    places = [net.index[name] for name in back.variables]
    np.testing.assert_allclose(nats(back, x[:, places]), nats(net, x), rtol=1e-12)
    assert {name: set(parents) for name, parents in back.parents.items()} == {
        name: set(parents) for name, parents in net.parents.items()
    }


def test_a_plate_of_rows_is_one_row_and_observations_are_columns():
    net = BayesianNetwork.from_pyro(rows, torch.zeros(5, dtype=torch.int64))
    assert net.parents == {"z": (), "x": ("z",)}
    assert any("x" in note for note in net.report.notes)
    frame = {"x": np.array([0, 3])}
    assert net.marginals(frame).probs["z"].shape == (2, 3)
    torch.testing.assert_close(net.conditional("x").log_table().exp().detach(), table(3, 4))


def test_parents_that_change_nothing_are_dropped():
    def program():
        a = pyro.sample("a", dist.Bernoulli(0.5))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("c", dist.Bernoulli(torch.where(a == 1, 0.2, 0.4) + 0 * b))

    assert BayesianNetwork.from_pyro(program).parents["c"] == ("a",)


def test_tracing_leaves_the_process_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state().clone()
    validation = torch.distributions.Distribution._validate_args
    nets = [BayesianNetwork.from_pyro(sprinkler) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.distributions.Distribution._validate_args == validation
    assert not poutine.runtime._PYRO_STACK
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


# Refusals


def until_tails():
    i = 0
    while pyro.sample(f"coin{i}", dist.Bernoulli(0.5)):
        i += 1


def without_end():
    for i in itertools.count():
        pyro.sample(f"coin{i}", dist.Bernoulli(0.5))


def branching():
    if pyro.sample("a", dist.Bernoulli(0.5)):
        pyro.sample("sometimes", dist.Bernoulli(0.5))


def continuous():
    pyro.sample("a", dist.Bernoulli(0.5))
    pyro.sample("height", dist.Normal(0.0, 1.0))


def random_parameter():
    pyro.sample("odd", dist.Bernoulli(torch.rand(())))


def covariates():
    with pyro.plate("rows", 4):
        pyro.sample("differs", dist.Bernoulli(table(4)))


def across_rows():
    with pyro.plate("rows", 4):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("mixing", dist.Bernoulli((z.sum() + 1) / 6))


def across_elements():
    a = pyro.sample("a", dist.Bernoulli(0.5))
    with pyro.plate("three", 3):
        z = pyro.sample("z", dist.Bernoulli((a + 1) / 4))
        pyro.sample("mixing", dist.Bernoulli((z.sum() + 1) / 6))


def unseen():
    """vmap hides what it reads."""
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("hidden", dist.Bernoulli(torch.func.vmap(lambda p: 0.3 + 0.2 * p)(z.reshape(1))[0]))


def factored():
    z = pyro.sample("z", dist.Bernoulli(0.4))
    pyro.factor("extra", z)


def too_many_parents():
    coins = [pyro.sample(f"coin{i}", dist.Bernoulli(0.4)) for i in range(20)]
    pyro.sample("heads", dist.Bernoulli(sum(coins) / 20))


def subsampled():
    with pyro.plate("rows", 10, subsample_size=2):
        pyro.sample("few", dist.Bernoulli(0.3))


def joint():
    pyro.sample("vector", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))


def masked():
    with poutine.mask(mask=False):
        pyro.sample("hidden", dist.Bernoulli(0.3))


def unplated():
    pyro.sample("loose", dist.Bernoulli(torch.full((3,), 0.3)))


def twice():
    pyro.sample("again", dist.Bernoulli(0.3))
    pyro.sample("again", dist.Bernoulli(0.3))


def failing():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("w", dist.Bernoulli(table(2)[z.long() + 1]))


def unsure():
    pyro.sample("weight", dist.Delta(torch.tensor(1.0), log_density=torch.tensor(-2.0)))


def empty():
    return 1


@pytest.mark.parametrize(
    ("program", "named"),
    [(until_tails, "coin"), (without_end, "coin"), (branching, "sometimes"), (continuous, "height"),
     (random_parameter, "odd"), (covariates, "differs"), (across_rows, "mixing"), (across_elements, "mixing"),
     (unseen, "hidden"), (factored, "extra"), (too_many_parents, "heads"), (subsampled, "few"),
     (joint, "vector"), (masked, "hidden"),
     (unplated, "loose"), (twice, "again"), (failing, "z"), (unsure, "weight"), (empty, "without sample sites")],
    ids=lambda v: getattr(v, "__name__", v),
)  # fmt: skip
def test_programs_that_are_no_networks_are_refused_by_the_site(program, named):
    with pytest.raises(StructureError, match=named):
        BayesianNetwork.from_pyro(program)
    assert not poutine.runtime._PYRO_STACK
