"""Sums over discrete factors: both paths against enumeration, underflow, draws, limits, broken arguments, memory."""

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
import pytest
import torch
from scipy import stats

from probgen import cliques, kernels
from probgen.cliques import logspace
from probgen.errors import ShapeError, StructureError

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "probgen/kernels/cliques.cpp"
ALPHA = 1e-6
PATHS = ["kernel", "torch"]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(kernels, "cliques", None)
    elif kernels.cliques is None:
        pytest.skip("the kernel is not built")
    return request.param


def random_case(seed, variables=6, rows=12, directed=None, zeros=0.2, spread=1.0, own=0.2, gaps=None):
    """A plan, log tables (some one a row) and codes with gaps; directed ones sum to one over their head."""
    g = torch.Generator().manual_seed(seed)

    def below(high, *shape):
        return torch.randint(0, high, shape, generator=g)

    directed = seed % 2 == 0 if directed is None else directed
    cards = tuple((1 + below(4, variables)).tolist())
    scopes, heads = [], []
    for v in range(variables):
        others = torch.randperm(v if directed else variables, generator=g).tolist()
        scope = others[: int(below(4))] + [v] * directed
        scopes.append(tuple(scope[i] for i in torch.randperm(len(scope), generator=g).tolist()))
        heads.append(v if directed else -1)
    tables = []
    for scope, head in zip(scopes, heads, strict=True):
        mine = bool(torch.rand((), generator=g) < own)
        shape = [rows] * mine + [cards[v] for v in scope]
        table = spread * torch.randn(shape, generator=g, dtype=torch.float64)
        table = torch.where(torch.rand(table.shape, generator=g) < zeros, -torch.inf, table)
        if head >= 0:
            axis = scope.index(head) + mine
            table = torch.where((table > -torch.inf).any(axis, keepdim=True), table, 0.0).log_softmax(axis)
        tables.append(table)
    codes = torch.stack([below(card, rows) for card in cards], 1).double()
    share = torch.rand((), generator=g) if gaps is None else gaps
    codes[torch.rand(rows, variables, generator=g) < share] = math.nan
    return cliques.Plan.compile(cards, scopes, heads), tables, codes


def joint_of(plan, tables, row):
    """The log product of the factors at every configuration of all variables."""
    total = torch.zeros(plan.cards, dtype=torch.float64)
    for scope, table in zip(plan.scopes, tables, strict=True):
        table = table[row] if table.ndim > len(scope) else table
        order = sorted(range(len(scope)), key=lambda i: scope[i])
        shape = [plan.cards[v] if v in scope else 1 for v in range(len(plan.cards))]
        total = total + table.permute(order).reshape(shape)
    return total


def restricted(plan, tables, codes, row):
    """The joint log table with everything that contradicts the row at -inf."""
    joint = joint_of(plan, tables, row)
    for v, code in enumerate(codes[row].tolist()):
        if not math.isnan(code):
            keep = torch.arange(plan.cards[v]) == int(code)
            joint = torch.where(keep.reshape([-1 if u == v else 1 for u in range(joint.ndim)]), joint, -torch.inf)
    return joint


def add(x):
    return float(x.reshape(-1).logsumexp(0)) if (x > -torch.inf).any() else -math.inf


@pytest.mark.parametrize("seed", range(250))
def test_likelihoods_and_posteriors_are_those_of_the_enumerated_joint(path, seed):
    if path == "torch" and seed >= 50:
        pytest.skip("the definition is slow")
    plan, tables, codes = random_case(seed, variables=2 + seed % 6, spread=3.0 if seed % 7 else 100.0)
    nats, found = cliques.marginals(plan, tables, codes)
    assert torch.equal(nats.isinf(), cliques.log_prob(plan, tables, codes).isinf())
    torch.testing.assert_close(cliques.log_prob(plan, tables, codes), nats, rtol=1e-11, atol=1e-11)
    best, top = cliques.mpe(plan, tables, codes)
    starts = np.cumsum([0, *plan.cards])
    for row in range(len(codes)):
        joint = restricted(plan, tables, codes, row)
        truth = add(joint)
        assert nats[row] == pytest.approx(truth, rel=1e-12, abs=1e-11)
        if truth == -math.inf:
            assert found[row].isnan().all()
            continue
        posterior = (joint - truth).exp()
        for v in range(len(plan.cards)):
            others = [u for u in range(len(plan.cards)) if u != v]
            wanted = posterior.sum(others) if others else posterior
            assert found[row, starts[v] : starts[v + 1]].tolist() == pytest.approx(wanted.tolist(), abs=1e-11)
        assert top[row] == pytest.approx(float(joint.max()), rel=1e-12, abs=1e-11)
        assert float(joint[tuple(best[row].long())]) == pytest.approx(float(joint.max()), rel=1e-12, abs=1e-11)


@pytest.mark.parametrize("seed", range(20))
def test_expected_counts_are_those_of_the_enumerated_posterior(path, seed):
    plan, tables, codes = random_case(seed)
    weights = torch.rand(len(codes), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    _, counts = cliques.expected(plan, tables, codes, weights)
    wanted = [torch.zeros_like(table) for table in tables]
    for row in range(len(codes)):
        joint = restricted(plan, tables, codes, row)
        if (truth := add(joint)) == -math.inf:
            continue
        posterior = (joint - truth).exp() * weights[row]
        for scope, table, want in zip(plan.scopes, tables, wanted, strict=True):
            others = [u for u in range(len(plan.cards)) if u not in scope]
            share = posterior.sum(others) if others else posterior
            rank = {v: i for i, v in enumerate(sorted(scope))}
            share = share.permute([rank[v] for v in scope])
            (want[row] if table.ndim > len(scope) else want).add_(share)
    for got, want in zip(counts, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", [1, 2, 4, 7])
def test_the_gradient_is_the_expected_counts_and_can_be_derived_again(path, seed):
    plan, tables, codes = random_case(seed, variables=4, rows=4, zeros=0.0)
    leaves = [table.clone().requires_grad_() for table in tables]
    nats = cliques.log_prob(plan, leaves, codes)
    found = torch.autograd.grad(nats.sum(), leaves)
    for got, want in zip(found, cliques.expected(plan, tables, codes)[1], strict=True):
        torch.testing.assert_close(got, want)

    def score(*tables):
        return cliques.log_prob(plan, tables, codes)

    assert torch.autograd.gradcheck(score, leaves)
    assert torch.autograd.gradgradcheck(score, leaves)


def test_evidence_of_probability_1e_400_has_the_right_posterior(path):
    """A cause of five symptoms, each of probability 1e-80 or thrice that."""
    likely = torch.tensor([1e-80, 3e-80], dtype=torch.float64)
    symptom = torch.stack([likely, 1 - likely], 1).log()
    prior = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    plan = cliques.Plan.compile([2] * 6, [(0,)] + [(0, i) for i in range(1, 6)], range(6))
    codes = torch.tensor([[math.nan] + [0.0] * 5], dtype=torch.float64)
    nats, found = cliques.marginals(plan, [prior] + [symptom] * 5, codes)
    odds = [0.75, 0.25 * 3**5]
    assert nats.item() == pytest.approx(math.log(sum(odds)) - 400 * math.log(10), rel=1e-13)
    assert found[0, :2].tolist() == pytest.approx([odd / sum(odds) for odd in odds], abs=1e-9)


def test_tables_below_the_range_of_doubles_multiply_without_loss(path):
    """Two ways to the same evidence, of e^-2000 and e^-2001, beside impossible ones."""
    first = torch.tensor([-1000.0, -1000.0, 0.0], dtype=torch.float64).log_softmax(0)
    second = torch.tensor([[-1000.0, 0.0], [-1001.0, 0.0], [-math.inf, 0.0]], dtype=torch.float64).log_softmax(1)
    plan = cliques.Plan.compile([3, 2], [(0,), (0, 1)], [0, 1])
    nats, found = cliques.marginals(plan, [first, second], torch.tensor([[math.nan, 0.0]], dtype=torch.float64))
    assert nats.item() == pytest.approx(-2000 + math.log1p(math.exp(-1)), rel=1e-14)
    share = 1 / (1 + math.exp(-1))
    assert found[0].tolist() == pytest.approx([share, 1 - share, 0, 1, 0], abs=1e-12)


def test_an_unobserved_field_gives_its_partition_function(path):
    plan, tables, _ = random_case(11, variables=7, directed=False, own=0.0, zeros=0.0)
    codes = torch.full((1, 7), math.nan, dtype=torch.float64)
    assert cliques.log_prob(plan, tables, codes).item() == pytest.approx(add(joint_of(plan, tables, 0)), rel=1e-13)
    lonely = cliques.Plan.compile([5, 3], [(0,)], None)
    flat = cliques.log_prob(lonely, [torch.zeros(5, dtype=torch.float64)], codes[:, :2])
    assert flat.item() == pytest.approx(math.log(15))


def drawn(seed, temper=1.0):
    """p-value of draws given the row against the enumerated posterior (of tempered tables)."""
    plan, tables, codes = random_case(seed, variables=4, rows=1, zeros=0.1, own=0.0, gaps=0.6)
    codes[0, 0] = math.nan
    twins = codes.repeat(200, 1)  # equal rows, each with draws of its own: the definition loops over draws, not rows
    draws = cliques.sample(plan, tables, twins, 100, torch.Generator().manual_seed(5)).reshape(20_000, -1)
    if draws.isnan().any():  # the row is impossible
        return None
    joint = restricted(plan, [table * temper for table in tables], codes, 0)
    probabilities = (joint - add(joint)).exp().reshape(-1)
    cells = np.ravel_multi_index(draws.long().T.numpy(), plan.cards)
    counts = torch.bincount(torch.as_tensor(cells), minlength=len(probabilities))
    assert (counts[probabilities == 0] == 0).all()
    kept = probabilities * 20_000 >= 5
    if int(kept.sum()) < 2:
        return None
    got = torch.cat([counts[kept], counts[~kept].sum()[None]]).numpy()
    want = torch.cat([probabilities[kept], probabilities[~kept].sum()[None]]).numpy() * 20_000
    got, want = got[want > 0], want[want > 0]
    return float(stats.chisquare(got, want * got.sum() / want.sum()).pvalue)


def test_draws_follow_the_posterior(path):
    found = [p for seed in range(0, 16, 2) if (p := drawn(seed)) is not None]
    assert len(found) >= 4
    assert min(found) > ALPHA


def test_draws_of_tempered_factors_are_told_apart(path):
    found = [p for seed in range(0, 16, 2) if (p := drawn(seed, temper=0.8)) is not None]
    assert min(found) < ALPHA


def test_an_impossible_row_is_minus_infinity_and_has_no_draws(path):
    tables = [torch.tensor([1.0, 0.0], dtype=torch.float64).log(), torch.eye(2, dtype=torch.float64).log()]
    plan = cliques.Plan.compile([2, 2], [(0,), (0, 1)], [0, 1])
    codes = torch.tensor([[math.nan, 1.0], [math.nan, 0.0], [1.0, math.nan]], dtype=torch.float64)
    assert cliques.log_prob(plan, tables, codes).tolist() == [-math.inf, 0.0, -math.inf]
    draws = cliques.sample(plan, tables, codes, 3, torch.Generator())
    assert draws[[0, 2]].isnan().all()
    assert (draws[1] == 0).all()
    _, counts = cliques.expected(plan, tables, codes)
    assert counts[1].tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_variables_that_sum_to_one_may_be_left_out_or_not(path):
    plan, tables, codes = random_case(8, variables=8, directed=True, own=0.0, gaps=0.7)
    undirected = cliques.Plan.compile(plan.cards, plan.scopes)
    a, b = (cliques.log_prob(each, tables, codes) for each in (plan, undirected))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(kernels.cliques is None, reason="the kernel is not built")
def test_rows_threads_and_order_do_not_change_a_bit():
    plan, tables, codes = random_case(20, variables=9, rows=700, own=0.0, gaps=0.5)
    threads = torch.get_num_threads()
    try:
        answers = []
        for n in (1, 2):
            torch.set_num_threads(n)
            answers.append((cliques.marginals(plan, tables, codes)[1], cliques.expected(plan, tables, codes)[1]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(answers[0][0].nan_to_num(), answers[1][0].nan_to_num())
    assert all(map(torch.equal, answers[0][1], answers[1][1]))
    backwards = cliques.log_prob(plan, tables, codes.flip(0)).flip(0)
    assert torch.equal(backwards, cliques.log_prob(plan, tables, codes))


def grid(side):
    places = list(itertools.product(range(side), repeat=2))
    pairs = [(p, (p[0] + a, p[1] + b)) for p in places for a, b in ((0, 1), (1, 0))]
    number = {place: i for i, place in enumerate(places)}
    scopes = [(number[p], number[q]) for p, q in pairs if q in number]
    return cliques.Plan.compile([2] * len(places), scopes), [torch.zeros(2, 2, dtype=torch.float64)] * len(scopes)


def test_rows_above_the_limit_are_refused_with_their_number(path):
    plan, tables = grid(6)
    codes = torch.full((3, 36), math.nan, dtype=torch.float64)
    codes[1] = 0.0
    costs = cliques.row_cost(plan, codes)
    assert costs[1] == 0
    assert costs[0] == costs[2] <= plan.cost().entries
    with pytest.raises(StructureError, match=r"2 of 3 rows.*limit=100"):
        cliques.log_prob(plan, tables, codes, limit=100)
    assert cliques.log_prob(plan, tables, codes)[0].item() == pytest.approx(36 * math.log(2))


def test_a_raised_limit_holds_for_gradients_too(path, monkeypatch):
    plan, tables = grid(4)
    monkeypatch.setattr(cliques.queries, "LIMIT", 10)
    codes = torch.full((1, 16), math.nan, dtype=torch.float64)
    leaves = [table.clone().requires_grad_() for table in tables]
    nats = cliques.log_prob(plan, leaves, codes, limit=10_000)
    assert torch.autograd.grad(nats.sum(), leaves)[0].sum().item() == pytest.approx(1.0)
    with pytest.raises(StructureError, match="limit=10 "):
        cliques.log_prob(plan, leaves, codes, limit=10)


def test_the_cost_of_a_plan_is_told_before_anything_runs():
    plan, _ = grid(6)
    cost = plan.cost()
    assert cost.width >= 6  # the treewidth of that grid
    assert cost.largest >= 2**7
    assert cost.entries * 16 < cost.bytes
    tree = cliques.Plan.compile([2, 3, 4], [(0,), (0, 1), (1, 2)]).cost()
    assert tree.width == 1
    assert tree.entries in (2 * 3 + 3 * 4 + 4, 4 * 3 + 3 * 2 + 2)


@pytest.mark.parametrize(
    ("cards", "scopes", "heads"),
    [([2, 0], [(0, 1)], None), ([2, 2], [(0, 0)], None), ([2, 2], [(0, 2)], None), ([2, 2], [(0,)], [1])],
)
def test_a_plan_of_broken_factors_is_refused(cards, scopes, heads):
    with pytest.raises(StructureError):
        cliques.Plan.compile(cards, scopes, heads)


def test_tables_and_codes_that_do_not_fit_are_refused(path):
    plan, tables, codes = random_case(2, own=0.0)
    with pytest.raises(ShapeError, match="one column a variable"):
        cliques.log_prob(plan, tables, codes[:, 1:])
    with pytest.raises(ShapeError, match="one a factor"):
        cliques.log_prob(plan, tables[1:], codes)
    with pytest.raises(ShapeError, match="A table of shape"):
        cliques.log_prob(plan, [tables[0][..., None, None], *tables[1:]], codes)


def test_single_precision_takes_the_torch_path():
    plan, tables, codes = random_case(4, own=0.0)
    found = cliques.log_prob(plan, [table.float() for table in tables], codes.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), cliques.log_prob(plan, tables, codes), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(kernels.cliques is None, reason="the kernel is not built")
def test_the_kernel_refuses_broken_arguments():
    native = kernels.cliques
    plan, tables, codes = random_case(2, own=0.0, rows=5, gaps=0.3)
    flat = torch.cat([table.reshape(-1) for table in tables]).numpy()
    mine = np.zeros(len(tables), dtype=np.int64)
    net = [*plan.arrays, flat, mine, None]
    nats, status = np.empty(5), np.empty(5, dtype=np.int64)
    native.log_prob(tuple(net), codes.numpy(), 1e6, 1, nats, status)
    broken = [
        None,
        3,
        np.empty(0),
        np.empty((2, 2)),
        np.full(3, -5, dtype=np.int64),
        np.full(6, 10**9),
        np.empty(4, "i4"),
    ]
    for place, part in itertools.product(range(len(net)), broken):
        if place == 7 and part is None:
            continue
        wrong = [*net[:place], part, *net[place + 1 :]]
        with pytest.raises((ValueError, TypeError)):
            native.log_prob(tuple(wrong), codes.numpy(), 1e6, 1, nats, status)
    for cells in (
        codes.numpy() + 9,
        codes.numpy()[:, :2],
        np.full((5, len(plan.cards)), -1.0),
        np.full((5, 6), np.inf),
    ):
        with pytest.raises(ValueError, match="codes"):
            native.log_prob(tuple(net), np.ascontiguousarray(cells), 1e6, 1, nats, status)
    with pytest.raises(ValueError, match="nats"):
        native.log_prob(tuple(net), codes.numpy(), 1e6, 1, nats[:3], status)


def test_a_row_of_its_own_order_gives_the_same(monkeypatch):
    """Large clusters are arranged anew for each row: a 9 x 9 grid with scattered evidence, against the other path."""
    plan, tables = grid(9)
    g = torch.Generator().manual_seed(3)
    tables = [torch.randn(2, 2, generator=g, dtype=torch.float64) for _ in tables]
    codes = torch.randint(0, 2, (6, 81), generator=g).double()
    codes[torch.rand(6, 81, generator=g) < 0.9] = math.nan
    fast = cliques.log_prob(plan, tables, codes), cliques.marginals(plan, tables, codes)[1]
    torch.testing.assert_close(fast[0], logspace.log_prob(plan, tables, codes), rtol=1e-12, atol=0)
    torch.testing.assert_close(fast[1], logspace.marginals(plan, tables, codes)[1], rtol=1e-10, atol=1e-12)


DRIVER = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("_cliques", {path!r})
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_cliques", loader))
loader.exec_module(module)
import torch
torch.set_num_threads(1)
from probgen import kernels
kernels.cliques = module
import test_cliques as t
from probgen import cliques
for seed in range(60):
    plan, tables, codes = t.random_case(seed, variables=2 + seed % 9, spread=3.0 if seed % 5 else 300.0)
    cliques.log_prob(plan, tables, codes), cliques.marginals(plan, tables, codes), cliques.mpe(plan, tables, codes)
    cliques.expected(plan, tables, codes), cliques.sample(plan, tables, codes, 3, torch.Generator())
    cliques.row_cost(plan, codes)
t.test_a_row_of_its_own_order_gives_the_same(None)
t.test_the_kernel_refuses_broken_arguments()
print("sound")
"""


@pytest.mark.long
def test_no_byte_is_touched_out_of_turn(tmp_path):
    """The kernel under AddressSanitizer and UBSan."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    path = tmp_path / f"_cliques{importlib.machinery.EXTENSION_SUFFIXES[-1]}"
    flags = ["-O1", "-g", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = f"-I{sysconfig.get_paths()['include']}"
    subprocess.run([compiler, *flags, *checks, include, str(SOURCE), "-o", str(path)], check=True)
    find = [[compiler, f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]  # the latter for throw
    library = " ".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout.strip() for each in find)
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    values = {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", "PYTHONPATH": paths}
    command = [sys.executable, "-c", DRIVER.format(path=str(path))]
    done = subprocess.run(command, env=os.environ | values, capture_output=True, text=True, timeout=900)
    assert done.stdout.strip() == "sound", done.stderr[-4000:]
