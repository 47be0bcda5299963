"""Learning with hidden variables, reals with gaps, and neural conditionals."""

import numpy as np
import pytest
import torch
from learned import MIXED, MIXED_EDGES, discrete, drawn, learn, nats_of, randomised, seeded, slope, tables_of
from scipy import stats

from probgen.conditionals import Program
from probgen.errors import StructureError
from probgen.events import Category, Real, Table
from probgen.models.bayesnet import BayesianNetwork, em


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_hidden_class_is_recovered_up_to_its_labels():
    """Latent classes with six binary marks, 4000 rows: estimates within six standard errors of the truth."""
    cards = {"h": 2, **{f"x{i}": 2 for i in range(6)}}
    edges = [("h", f"x{i}") for i in range(6)]
    truth = discrete(cards, edges)
    truth.conditional("h").set_table([0.4, 0.6])
    for i in range(6):
        truth.conditional(f"x{i}").set_table([[0.85, 0.15], [0.2 + 0.02 * i, 0.8 - 0.02 * i]])
    x = drawn(truth.imported(), 4000, 1)
    x[:, 0] = torch.nan
    net = discrete(cards, edges)
    report = learn(net, x, max_iter=500, tol=1e-9)
    found = tables_of(net)
    flip = slice(None, None, 1 if found["x0"][0, 0] > 0.5 else -1)
    for i in range(6):
        assert found[f"x{i}"][flip] == pytest.approx(tables_of(truth)[f"x{i}"], abs=0.07)
    assert found["h"][flip] == pytest.approx([0.4, 0.6], abs=0.07)
    assert len(report.optima) == 5
    assert (np.diff(report.optima) <= 0).all()
    assert report.optima[0] == report.objective[-1] > nats_of(truth, x).sum() / 4000
    assert any("hidden: 'h'" in note for note in report.notes)


def test_a_symmetric_start_would_have_found_nothing():
    """The planted bug: from uniform tables of a hidden class EM does not move."""
    cards, edges = {"h": 2, "x": 2, "y": 2}, [("h", "x"), ("h", "y")]
    truth = discrete(cards, edges)
    truth.conditional("x").set_table([[0.9, 0.1], [0.1, 0.9]])
    truth.conditional("y").set_table([[0.9, 0.1], [0.1, 0.9]])
    x = drawn(truth.imported(), 500, 1)
    x[:, 0] = torch.nan
    stuck, free = discrete(cards, edges), discrete(cards, edges)
    stuck_at = learn(stuck, x, start="current", max_iter=200).objective[-1]
    assert learn(free, x, max_iter=200).objective[-1] > stuck_at + 0.15


def test_a_hidden_class_of_reals_finds_the_clusters():
    columns = {"h": Category((0, 1, 2)), "u": Real(), "v": Real()}
    net = BayesianNetwork(Table(columns), [("h", "u"), ("h", "v")])
    rng = np.random.default_rng(0)
    which = rng.integers(0, 3, 900)
    points = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])[which] + rng.normal(size=(900, 2))
    x = torch.from_numpy(np.column_stack([np.full(900, np.nan), points]))
    x[:200, 2] = torch.nan
    report = learn(net, x, max_iter=300)
    means = torch.stack([net.conditional(n).natural()["intercept"] for n in "uv"], 1).detach().numpy()
    found = means[np.lexsort((means[:, 0], means[:, 1]))]
    assert found[np.argsort(found @ [1.0, 2.0])] == pytest.approx(np.array([[0, 0], [6, 0], [0, 6]]), abs=0.6)
    assert np.diff(report.objective).min() > -1e-12
    assert slope(net, x) < 1e-3


# Reals with gaps


def normal_em(x, iterations):
    """EM of one multivariate normal with missing cells (Little and Rubin 2019, 11.2): its log-likelihood."""
    x = x.numpy()
    mean, cov = np.nanmean(x, 0), np.diag(np.nanvar(x, 0))
    for _ in range(iterations):
        first, second = np.zeros(len(mean)), np.zeros_like(cov)
        for row in x:
            o, m = ~np.isnan(row), np.isnan(row)
            gain = cov[np.ix_(m, o)] @ np.linalg.inv(cov[np.ix_(o, o)])
            full, extra = row.copy(), np.zeros_like(cov)
            full[m] = mean[m] + gain @ (row[o] - mean[o])
            extra[np.ix_(m, m)] = cov[np.ix_(m, m)] - gain @ cov[np.ix_(o, m)]
            first += full
            second += np.outer(full, full) + extra
        mean = first / len(x)
        cov = second / len(x) - np.outer(mean, mean)
    nats = 0.0
    for row in x:
        o = ~np.isnan(row)
        nats += stats.multivariate_normal(mean[o], cov[np.ix_(o, o)]).logpdf(row[o]) if o.any() else 0.0
    return nats


def test_a_full_graph_of_reals_is_one_normal_with_gaps():
    edges = [("u", "v"), ("u", "w"), ("v", "w")]
    event = Table({n: Real() for n in "uvw"})
    x = drawn(randomised(BayesianNetwork(event, edges), 5), 150, 6, gaps=0.3)
    net = BayesianNetwork(event, edges)
    report = learn(net, x, max_iter=2000, tol=1e-13)
    assert net.log_likelihood == pytest.approx(normal_em(x, 150), abs=1e-6)
    assert np.diff(report.objective).min() > -1e-12
    assert net.log_likelihood == pytest.approx(nats_of(net, x).sum(), rel=1e-10)


def test_em_of_mixed_columns_with_gaps_ends_where_the_slope_is_zero():
    event = Table(MIXED)
    x = drawn(randomised(BayesianNetwork(event, MIXED_EDGES), 1), 250, 2, gaps=0.25)
    net = BayesianNetwork(event, MIXED_EDGES)
    report = learn(net, x, max_iter=1000, tol=1e-12)
    assert np.diff(report.objective).min() > -1e-12
    assert slope(net, x) < 2e-4
    assert net.log_likelihood == pytest.approx(nats_of(net, x).sum(), rel=1e-10)


def test_one_m_step_of_mixed_columns_raises_the_slope_free_bound_by_what_autograd_says():
    """Fisher's identity: expected statistics give the gradient of the log-likelihood at any parameters."""
    event = Table(MIXED)
    net = randomised(BayesianNetwork(event, MIXED_EDGES), 1)
    x = drawn(net, 100, 2, gaps=0.3)
    net = randomised(BayesianNetwork(event, MIXED_EDGES), 7)
    problem = em.Problem(net, x)
    nats, found = em.expect(problem)
    assert nats == pytest.approx(nats_of(net, x).sum(), rel=1e-10)
    exact = torch.autograd.grad(em.log_likelihood(problem), net.conditional("v").loc)[0]
    own, key = net.conditional("v"), problem.keys["v"]
    second = found.moments[key] + sum(em._moments(own, *part) for part in found.rows.get(key, []))
    line = torch.cat([-(own.loc - own.centre[-1])[:, None], -own.weight, torch.ones(3, 1, dtype=torch.float64)], 1)
    line[:, 0] = line[:, 0] - (own.weight @ (own.centre[:-1] - own.input_mean))
    slopes = (line[:, None] @ second)[:, 0, 0] * (-2 * own.log_scale).exp()
    assert slopes.detach().numpy() == pytest.approx(exact.numpy(), rel=1e-8)


def test_data_far_from_zero_stay_monotone():
    event = Table({n: Real() for n in "uvw"})
    edges = [("u", "v"), ("v", "w")]
    x = drawn(randomised(BayesianNetwork(event, edges), 5), 200, 6, gaps=0.3)
    near, far = BayesianNetwork(event, edges), BayesianNetwork(event, edges)
    first = learn(near, x, max_iter=30, tol=0.0)
    second = learn(far, x + 1e6, max_iter=30, tol=0.0)
    assert second.objective[-1] == pytest.approx(first.objective[-1], abs=1e-6)


def test_a_hidden_real_explains_its_children():
    """One factor behind four columns, 600 rows: better than independence, and near the likelihood of the truth."""
    event = Table({"f": Real(), **{f"x{i}": Real() for i in range(4)}})
    edges = [("f", f"x{i}") for i in range(4)]
    truth = BayesianNetwork(event, edges)
    for i in range(4):
        truth.conditional(f"x{i}").set_natural(intercept=0.0, coefficients=[(-1.0) ** i * 2], scale=1.0)
    x = drawn(truth.imported(), 600, 3)
    x[:, 0] = torch.nan
    net = BayesianNetwork(event, edges)
    learn(net, x, max_iter=500, tol=1e-7, restarts=1)
    assert nats_of(truth, x).sum() < net.log_likelihood < nats_of(truth, x).sum() + 30
    slopes = np.array([net.conditional(f"x{i}").weight.item() for i in range(4)])
    assert slopes / slopes[0] == pytest.approx([1, -1, 1, -1], abs=0.3)


def test_gaps_without_an_exact_sum_are_refused_and_barren_ones_are_not():
    event = Table({"u": Real(), "s": Category((0, 1))})
    x = drawn(randomised(BayesianNetwork(event, [("u", "s")]), 1), 100, 2)
    net = BayesianNetwork(event, [("u", "s")])
    x[4] = torch.nan
    x[5:20, 1] = torch.nan
    assert learn(net, x).stopped == "converged"
    x[3, 0] = torch.nan
    with pytest.raises(StructureError, match="'s'"):
        learn(net, x)


# Neural conditionals


class Curve(torch.nn.Module):
    """A normal whose mean is a small network of the parent."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, parents):
        return torch.distributions.Normal(self.net(parents)[..., 0], self.log_scale.exp())


@pytest.mark.parametrize("options", [{}, {"method": "gradient"}, {"method": "gradient", "steps": 300}], ids=str)
def test_a_curve_is_learned_by_em_by_quasi_newton_and_by_adam(options):
    u = torch.randn(300, generator=seeded(1), dtype=torch.float64)
    y = torch.sin(2 * u) + 0.1 * torch.randn(300, generator=seeded(2), dtype=torch.float64)
    net = BayesianNetwork(Table({"u": Real(), "y": Real()}), [("u", "y")], {"y": Program(Curve())})
    line = BayesianNetwork(Table({"u": Real(), "y": Real()}), [("u", "y")])
    x = torch.stack([u, y], 1)
    learn(net, x, max_iter=60, **options)
    learn(line, x)
    assert net.log_likelihood > line.log_likelihood + 100
    assert net.log_likelihood == pytest.approx(nats_of(net, x).sum(), rel=1e-10)
