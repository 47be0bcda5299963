"""Networks as Pyro programs: the same numbers whatever cells are missing."""

import copy
import itertools
import math
import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, TraceEnum_ELBO, infer_discrete
from scipy import stats

from probgen import cliques
from probgen import conditionals as cd
from probgen import events as ev
from probgen.errors import StructureError
from probgen.estimate import Enumerate
from probgen.model import pyro_pair
from probgen.models.bayesnet import BayesianNetwork

ALPHA = 1e-6


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def moved(net, seed, zeros=False):
    """The network with random parameters; ``zeros``: some levels are impossible."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(seed), dtype=p.dtype))
    if zeros:
        for part in net.parts:
            with torch.no_grad():
                part.logits[..., 0][torch.rand(part.logits.shape[:-1], generator=seeded(seed)) < 0.4] = -torch.inf
    return net.imported()


def random_network(seed, zeros=False, most=6):
    """Categories of 2 to 4 levels, columns in an order of their own, up to 3 parents."""
    rng = np.random.default_rng(seed)
    names = [f"v{i}" for i in range(rng.integers(2, most + 1))]
    edges = []
    for i, name in enumerate(names):
        parents = rng.permutation(names[:i])[: rng.integers(0, 4)]
        edges += [(str(parent), name) for parent in parents]
    columns = {str(name): ev.Category(tuple(range(rng.integers(2, 5)))) for name in rng.permutation(names)}
    return moved(BayesianNetwork(ev.Table(columns), edges), seed, zeros)


def rows_of(net, n, missing, seed):
    """Drawn rows (n, columns) with a share of cells missing."""
    with torch.no_grad():
        x = net._sample(n, None, generator=seeded(seed))
    x[torch.rand(x.shape, generator=seeded(seed + 1)) < missing] = math.nan
    return x


def no_guide(*args):
    pass


def enumerated(program, x):
    """log p of all rows together, by Pyro."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TraceEnum_ELBO found no sample sites")  # nothing is missing
        return -TraceEnum_ELBO(max_plate_nesting=1).loss(program, no_guide, x)


def exact(net, x):
    with torch.no_grad():
        return net._log_prob(x, None, generator=seeded(0))


# A network as a program


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_enumeration_by_pyro_gives_the_log_probability_of_any_pattern_of_gaps(seed, missing):
    net = random_network(seed, zeros=seed % 2 == 1)
    x = rows_of(net, 12, missing, seed)
    assert enumerated(net.model, x) == pytest.approx(float(exact(net, x).nats.sum()), rel=1e-9, abs=1e-9)


def test_pyros_own_mask_draws_the_missing_cells_and_is_caught():
    """The trap that the program avoids: obs_mask drops the mark for enumeration, and nothing says so."""
    net = random_network(3)
    x = rows_of(net, 12, 0.4, 0)
    single = copy.deepcopy(net).float()  # its deterministic sites are in single precision

    def trapped(x):
        values = {}
        with pyro.plate("rows", len(x)):
            for name in net.order:
                cells = x[:, net.index[name]]
                parents = [values[p].float() for p in net.parents[name]]
                made = single.conditional(name).cells(torch.stack(parents, -1) if parents else torch.zeros(len(x), 0))
                seen = ~cells.isnan()
                infer = {"enumerate": "parallel"}
                values[name] = pyro.sample(name, made, obs=cells.nan_to_num(), obs_mask=seen, infer=infer)

    wanted = float(exact(net, x).nats.sum())
    pyro.set_rng_seed(0)
    assert enumerated(net.model, x) == pytest.approx(wanted, rel=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert abs(enumerated(trapped, x.float()) - wanted) > 0.1


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_the_enumerating_estimator_agrees_row_by_row(missing):
    net = random_network(4, zeros=True)
    x = rows_of(net, 15, missing, 1)
    found = Enumerate()(net, x, generator=seeded(0))
    np.testing.assert_allclose(found.nats, exact(net, x).nats, rtol=1e-9, atol=1e-9)


def mixed_network(seed=0):
    """Categories, reals and a count; a category with a real parent."""
    event = ev.Table(
        {"y": ev.Real(), "a": ev.Category(("n", "y")), "b": ev.Category((0, 1, 2)), "k": ev.Count(), "z": ev.Real(),
         "c": ev.Category(("u", "v"))}
    )  # fmt: skip
    edges = [("a", "b"), ("b", "y"), ("a", "y"), ("y", "z"), ("b", "k"), ("z", "c"), ("b", "c")]
    return moved(BayesianNetwork(event, edges), seed)


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_reals_and_counts_that_are_seen_are_sites_like_the_others(missing):
    net = mixed_network()
    x = rows_of(net, 20, 0.0, 0)
    gaps = torch.rand(x.shape, generator=seeded(5)) < missing
    x[gaps & torch.tensor([isinstance(c, ev.Category) for c in net.event.columns.values()])] = math.nan
    assert enumerated(net.model, x) == pytest.approx(float(exact(net, x).nats.sum()), rel=1e-9)


def test_there_is_one_site_a_node_in_topological_order():
    net = mixed_network()
    trace = poutine.trace(net.model).get_trace(rows_of(net, 3, 0.0, 0))
    sites = [name for name, site in trace.nodes.items() if site["type"] == "sample" and name != "rows"]
    assert sites == list(net.order)
    assert all(trace.nodes[name]["is_observed"] for name in sites)


def test_impossible_rows_are_minus_infinity_and_their_gradient_is_no_nan():
    net = BayesianNetwork.from_tables(
        {
            "a": {"n": 1.0, "y": 0.0},
            "b": ("a", {"n": {"p": 0.5, "q": 0.5, "r": 0.0}, "y": {"p": 0.2, "q": 0, "r": 0.8}}),
        }
    )
    possible = torch.tensor([[0, 1], [math.nan, 0], [0, math.nan]], dtype=torch.float64)
    impossible = torch.tensor([[0, 1], [math.nan, 2]], dtype=torch.float64)
    assert enumerated(net.model, impossible) == -math.inf
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(net.model, no_guide, possible)
    assert float(loss.detach()) == pytest.approx(2 * math.log(2), rel=1e-12)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_gradients_through_pyro_are_those_of_the_clique_tree():
    net = random_network(5)
    x = rows_of(net, 10, 0.5, 2)
    program, guide = pyro_pair(net, "net")
    pyro.clear_param_store()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(program, guide, x)
    by_pyro = torch.autograd.grad(-loss, list(net.parameters()))
    pyro.clear_param_store()
    scored = net.scored(x)
    ours = cliques.log_prob(scored.plan, scored.tables, scored.codes).sum()
    for a, b in zip(by_pyro, torch.autograd.grad(ours, list(net.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_draws_of_the_program_follow_the_network_and_another_network_is_told_apart():
    net, other = random_network(0, most=3), random_network(0, most=3)
    with torch.no_grad():
        other.parts[0].logits.add_(0.2 * torch.randn(other.parts[0].logits.shape, generator=seeded(9)))
    n, cards = 40_000, [len(c.levels) for c in net.event.columns.values()]
    pyro.set_rng_seed(1)
    with torch.no_grad():
        drawn = net.model(n=n).long().numpy()
    counts = np.bincount(np.ravel_multi_index(drawn.T, cards), minlength=math.prod(cards))
    grid = torch.tensor(list(itertools.product(*map(range, cards))), dtype=torch.float64)

    def pvalue(model):
        return stats.chisquare(counts, n * np.exp(exact(model, grid).nats)).pvalue

    assert pvalue(net) > ALPHA
    assert pvalue(other) < ALPHA


def test_the_most_probable_completion_by_pyro_is_ours():
    net = random_network(2)
    x = rows_of(net, 8, 0.6, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = infer_discrete(net.model, first_available_dim=-2, temperature=0)
        trace = poutine.trace(found).get_trace(x)
    theirs = torch.stack([trace.nodes[name]["value"].double() for name in net.variables], -1)
    seen = ~x.isnan()
    assert torch.equal(theirs[seen], x[seen])
    scored = net.scored(x)
    best = cliques.mpe(scored.plan, [t.detach() for t in scored.tables], scored.codes)[1]
    np.testing.assert_allclose(exact(net, theirs).nats, best, rtol=1e-9)


def test_missing_cells_that_nothing_seen_depends_on_integrate_to_one():
    """Reals and counts without a seen cell below, row by row and whole columns."""
    net = mixed_network()
    x = rows_of(net, 12, 0.0, 0)
    z, c, k, y, b = (net.index[name] for name in ("z", "c", "k", "y", "b"))
    x[:4, [z, c]] = math.nan
    x[2:6, k] = math.nan
    x[:2, [y, b]] = math.nan
    wanted = exact(net, x)
    assert set(wanted.kinds) == {"exact"}
    assert enumerated(net.model, x) == pytest.approx(float(wanted.nats.sum()), rel=1e-9)
    x[:, [z, c, k]] = math.nan
    assert enumerated(net.model, x) == pytest.approx(float(exact(net, x).nats.sum()), rel=1e-9)


def test_a_missing_real_with_a_seen_cell_below_is_a_latent_where_it_is_missing_only():
    net = moved(BayesianNetwork(ev.Table({"u": ev.Real(), "w": ev.Real()}), [("u", "w")]), 1)
    x = torch.tensor([[0.3, 1.0], [math.nan, 2.0], [0.5, math.nan]], dtype=torch.float64)
    trace = poutine.trace(net.model).get_trace(x)
    assert trace.nodes["u_observed"]["is_observed"]
    assert not trace.nodes["u_unobserved"]["is_observed"]
    filled = x.clone()
    filled[1, 0] = trace.nodes["u_unobserved"]["value"][1]
    assert float(trace.log_prob_sum().detach()) == pytest.approx(
        float(exact(net, filled.detach()).nats.sum()), rel=1e-9
    )


def test_a_missing_real_is_inferred_by_nuts_as_the_exact_posterior_has_it():
    """By the joint normal: u ~ N(1, 4), w | u ~ N(u / 2, 1), w = 3."""
    net = BayesianNetwork(
        ev.Table({"a": ev.Category((0, 1)), "u": ev.Real(), "w": ev.Real()}), [("u", "w"), ("a", "w")]
    )
    net.conditional("u").set_natural(intercept=1.0, scale=2.0)
    net.conditional("w").set_natural(intercept=[0.0, 0.0], coefficients=[[0.5], [0.5]], scale=[1.0, 1.0])
    net.imported()
    x = torch.tensor([[math.nan, math.nan, 3.0]], dtype=torch.float64)
    pyro.set_rng_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chain = MCMC(NUTS(net.model), num_samples=150, warmup_steps=60, disable_progbar=True)
        chain.run(x)
    drawn = chain.get_samples()["u_unobserved"].flatten()
    mean, variance = 1 + (4 * 0.5 / 2) * (3 - 0.5), 4 - (4 * 0.5) ** 2 / 2
    assert abs(float(drawn.mean()) - mean) < 6 * math.sqrt(variance / 100)
    assert abs(float(drawn.mean()) - 1) > 6 * math.sqrt(variance / 100)  # not the prior


def test_missing_counts_with_a_seen_cell_below_are_refused_by_row():
    event = ev.Table({"k": ev.Count(), "c": ev.Category(("u", "v"))})
    net = moved(BayesianNetwork(event, [("k", "c")]), 0)
    x = torch.tensor([[3, 0], [math.nan, 1]], dtype=torch.float64)
    with pytest.raises(StructureError, match="'k' is missing in row 1"):
        net.model(x)
    assert torch.equal(net.model(x[:1]), x[:1])


def chain(length):
    names = [f"x{i}" for i in range(length)]
    return moved(
        BayesianNetwork(ev.Table(dict.fromkeys(names, ev.Category((0, 1)))), list(itertools.pairwise(names))), 0
    )


def test_as_many_enumerated_nodes_as_tensors_have_dimensions_run_and_one_more_is_refused():
    net = chain(62)
    x = torch.full((2, 62), math.nan, dtype=torch.float64)
    x[0, -1] = 1
    assert enumerated(net.model, x) == pytest.approx(float(exact(net, x).nats.sum()), rel=1e-9)
    with pytest.raises(StructureError, match="62"):
        enumerated(chain(63).model, torch.full((2, 63), math.nan, dtype=torch.float64))
    assert chain(80).model(n=3).shape == (3, 80)


def test_conditionals_of_every_kind_are_enumerated():
    yes = ev.Category(("no", "yes"))
    event = ev.Table({"a": yes, "b": yes, "c": yes, "d": yes})
    parts = {"c": cd.NoisyOr(), "d": cd.Softmax()}
    edges = [("a", "c"), ("b", "c"), ("c", "d"), ("a", "d")]
    net = moved(BayesianNetwork(event, edges, parts), 2)
    x = rows_of(net, 10, 0.5, 0)
    assert enumerated(net.model, x) == pytest.approx(float(exact(net, x).nats.sum()), rel=1e-9)
