"""The door to zuko, spline maps, and the standardisation of cells: inverses, log-determinants, masses."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch.autograd.functional import jacobian

from probgen.bijections import Cell, CellFlow, SplineFlow, Standardise
from probgen.errors import ParameterError
from probgen.nn import reset

D = torch.float64
STRUCTURES = ("autoregressive", "coupling")
structures = pytest.mark.parametrize("structure", STRUCTURES)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bent(structure, features, context=0, seed=0, **options):
    """A flow that is not the identity."""
    flow = SplineFlow(features, context, structure, **{"hidden": (16, 16), **options}).double()
    reset(flow, generator(seed))
    with torch.no_grad():
        for layer in flow.of:
            last = layer.network[-1]
            last.weight.copy_(0.1 * torch.randn(last.weight.shape, generator=generator(seed + 1), dtype=D))
            last.bias.copy_(0.5 * torch.randn(last.bias.shape, generator=generator(seed + 2), dtype=D))
    return flow


def rows(n, width, seed=3, scale=1.5):
    return scale * torch.randn(n, width, generator=generator(seed), dtype=D)


# The door


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.split()


TRY = """
import sys
import torch
from torch.distributions import Distribution, Normal
from torch.distributions.transforms import ExpTransform
def look(normal):
    try:
        normal(0.0, -1.0)
        return "silent"
    except ValueError:
        return "raises"
print(look(Normal), Distribution._validate_args, type(Distribution.__dict__["arg_constraints"]).__name__)
print(type(ExpTransform().inv).__name__)
if "pyro" in sys.modules:
    print(look(sys.modules["pyro"].distributions.Normal))
"""


def test_importing_the_door_leaves_validation_as_it_was_and_importing_zuko_would_not():
    ours = run("import probgen.bijections" + TRY)
    assert ours == ["raises", "True", "property", "_InverseTransform", "raises"]
    assert run("import zuko" + TRY)[0] == "silent"  # the same look sees what zuko does


# Splines


@structures
@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("context", [0, 3])
def test_a_flow_comes_back_and_its_log_determinant_is_that_of_the_jacobian(structure, features, context):
    flow, x = bent(structure, features, context), rows(40, features)
    given = rows(40, context) if context else None
    with torch.no_grad():
        z, log_det = flow(given).call_and_ladj(x)
        torch.testing.assert_close(flow(given).inv(z), x, rtol=0, atol=1e-7)
    assert (z - x).abs().max() > 0.1
    for i in range(5):
        own = None if given is None else given[i]
        exact = torch.linalg.slogdet(jacobian(lambda v, own=own: flow(own)(v), x[i]))[1]
        assert float(log_det[i]) == pytest.approx(float(exact), abs=1e-8)


@pytest.mark.parametrize("features", [2, 4])
def test_an_autoregressive_layer_sees_only_the_cells_before(features):
    flow = bent("autoregressive", features, layers=1)
    slopes = jacobian(lambda v: flow()(v), rows(1, features)[0])
    assert (slopes.triu(1) == 0).all()
    assert (slopes.tril(-1).abs().sum(1)[1:] > 0).all()
    falling = bent("autoregressive", features, layers=2).of[1]
    assert (jacobian(lambda v: falling(None)(v), rows(1, features)[0]).tril(-1) == 0).all()


@pytest.mark.parametrize("features", [2, 3, 5, 8])
def test_couplings_bend_every_cell_and_each_pair_meets(features):
    flow = bent("coupling", features, layers=2 * max(1, (features - 1).bit_length()))
    orders = torch.stack([layer.order for layer in flow.of])
    assert (orders.sum(0) > 0).all()
    assert ((orders == 0).any(1) & (orders == 1).any(1)).all()
    for a in range(features):
        for b in range(a):
            assert (orders[:, a] != orders[:, b]).any(), (a, b)


@structures
def test_a_fresh_flow_is_the_identity_and_draws_no_numbers(structure):
    before = torch.get_rng_state()
    flow = SplineFlow(3, 0, structure).double()
    assert torch.equal(before, torch.get_rng_state())
    reset(flow, generator())
    x = rows(20, 3)
    z, log_det = flow().call_and_ladj(x)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det, torch.zeros(20, dtype=D), rtol=0, atol=1e-12)


@structures
def test_far_away_rows_have_finite_answers(structure):
    flow = bent(structure, 3)
    x = torch.tensor([[1e150, -1e150, 0.0], [40.0, 0.1, -7.0], [-1e9, 1.0, 1.0]], dtype=D)
    z, log_det = flow().call_and_ladj(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [{"structure": "ring"}, {"layers": 0}, {"bins": 1}, {"hidden": ()}, {"hidden": (0,)}, {"context": -1}],
)
def test_a_wrong_argument_of_a_flow_is_a_parameter_error(wrong):
    with pytest.raises(ParameterError):
        SplineFlow(2, **wrong)


# Standardising


SUPPORTS = {
    "real": (Cell(), lambda rng: rng.normal(5, 3, (300, 1))),
    "positive": (Cell("positive"), lambda rng: rng.lognormal(1, 2, (300, 1))),
    "unit": (Cell("unit"), lambda rng: rng.beta(0.7, 2, (300, 1))),
    "levels": (Cell(levels=5), lambda rng: rng.binomial(4, 0.3, (300, 1))),
    "many levels": (Cell(levels=2000), lambda rng: rng.binomial(1999, 0.3, (300, 1))),
    "count": (Cell("count"), lambda rng: rng.poisson(6.0, (300, 1))),
    "large counts": (Cell("count"), lambda rng: rng.negative_binomial(2, 0.001, (300, 1))),
    "step": (Cell("real", None, 0.5), lambda rng: np.round(2 * rng.normal(0, 2, (300, 1))) / 2),
    "positive step": (Cell("positive", None, 0.5), lambda rng: np.ceil(2 * rng.lognormal(0, 1, (300, 1))) / 2),
    "unit step": (Cell("unit", None, 0.3), lambda rng: 0.3 * rng.integers(0, 4, (300, 1))),
}
supports = pytest.mark.parametrize("name", SUPPORTS)


def measured(name):
    cell, draw = SUPPORTS[name]
    x = torch.as_tensor(np.asarray(draw(np.random.default_rng(1)), dtype=np.float64))
    standardise = Standardise([cell])
    standardise.measure(x)
    return standardise, x


def inside(standardise, x, seed=0):
    low, high = standardise.intervals(x)
    return low + (high - low) * torch.rand(x.shape, generator=generator(seed), dtype=D)


@supports
def test_standardised_cells_come_back_and_the_slope_is_the_derivative(name):
    standardise, x = measured(name)
    v = inside(standardise, x)
    y, log_det = standardise(v)
    torch.testing.assert_close(standardise.inverse(y), v, rtol=1e-9, atol=1e-9)
    slope = jacobian(lambda t: standardise(t)[0].sum(), v)
    torch.testing.assert_close(log_det, slope.log()[:, 0], rtol=1e-7, atol=1e-7)
    assert y.mean().abs() < 0.2
    assert 0.7 < y.std() < 1.3


@supports
def test_a_value_inside_its_interval_is_seen_as_the_cell(name):
    standardise, x = measured(name)
    for seed in range(3):
        seen = standardise.round(inside(standardise, x, seed))
        if SUPPORTS[name][0].discrete:
            torch.testing.assert_close(seen, x, rtol=0, atol=1e-9)
        else:
            assert not torch.equal(seen, x.round())


ORDERED = {
    "levels": np.arange(5.0), "count": np.arange(40.0), "step": np.arange(-9, 9) * 0.5,
    "positive step": np.arange(1, 30) * 0.5, "unit step": np.arange(4) * 0.3,
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERED)
def test_the_intervals_of_neighbours_meet_and_cover_the_support(name):
    standardise, _ = measured(name)
    low, high = standardise.intervals(torch.as_tensor(ORDERED[name])[:, None])
    torch.testing.assert_close(low[1:], high[:-1], rtol=0, atol=1e-9)
    assert low[0] == (-4.75 if name == "step" else 0.0)
    if name == "unit step":
        assert high[-1] == 1.0


def interval_masses(standardise, x):
    """Of a standard normal on the standardised interval of each cell."""
    low, high = standardise.intervals(x)
    ends = [standardise(v.clamp(min=1e-12) if v is low else torch.nextafter(v, low))[0] for v in (low, high)]
    return torch.special.ndtr(ends[1]) - torch.special.ndtr(ends[0])


def test_standardised_levels_have_exactly_the_smoothed_frequencies():
    standardise, x = measured("levels")
    truth = (np.bincount(x[:, 0].long(), minlength=5) + 1 / 5) / 301
    mass = interval_masses(standardise, torch.arange(5, dtype=D)[:, None])[:, 0]
    np.testing.assert_allclose(mass, truth, atol=1e-9)


@pytest.mark.parametrize("name", ["count", "large counts"])
def test_standardised_counts_have_mass_one_with_their_tail(name):
    standardise, x = measured(name)
    top = int(x.max()) + 1
    below = interval_masses(standardise, torch.arange(top, dtype=D)[:, None]).sum()
    beyond = interval_masses(standardise, torch.arange(top, 60 * top + 200, dtype=D)[:, None]).sum()
    assert float(below + beyond) == pytest.approx(1, abs=1e-6)
    assert float(beyond) == pytest.approx(1 / 302, abs=1e-3)


@pytest.mark.parametrize("count", [1e3, 1e6, 1e9, 1e15])
def test_a_count_far_beyond_the_data_has_a_finite_place_and_comes_back(count):
    standardise, _ = measured("count")
    v = torch.tensor([[count + 0.5]], dtype=D)
    y, log_det = standardise(v)
    assert y.isfinite().all()
    nats = float(log_det - y[0, 0] ** 2 / 2 - 0.5 * math.log(2 * math.pi))
    tail, reach, edge = (float(t) for t in (standardise.tail[0], standardise.reach[0], standardise.edges[0, -1]))
    assert nats == pytest.approx(math.log(tail / reach) - (count + 0.5 - edge) / reach, rel=1e-9)
    torch.testing.assert_close(standardise.inverse(y), v, rtol=1e-7, atol=0)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_of_the_unit_interval_have_finite_answers(end):
    standardise, _ = measured("unit")
    y, log_det = standardise(torch.tensor([[end]], dtype=D))
    assert y.isfinite().all()
    assert log_det.isfinite().all()


@supports
def test_no_normal_number_leaves_the_support(name):
    standardise = measured(name)[0]
    v = standardise.round(standardise.inverse(torch.linspace(-38, 38, 2001, dtype=D)[:, None]))
    cell = SUPPORTS[name][0]
    assert v.isfinite().all()
    assert cell.support != "positive" or (v > 0).all()
    assert cell.support != "unit" or ((v >= 0) & (v <= 1)).all()
    assert not cell.tabled or ((v >= 0) & (v == v.floor()) & (v < (cell.levels or math.inf))).all()


def test_a_constant_column_is_no_obstacle():
    standardise = Standardise([Cell(), Cell("positive"), Cell(levels=3), Cell("count"), Cell("unit")])
    x = torch.tensor([[7.0, 2.0, 1.0, 0.0, 0.5]], dtype=D).repeat(5, 1)
    standardise.measure(x)
    y, log_det = standardise(inside(standardise, x))
    assert y.isfinite().all()
    assert log_det.isfinite().all()


# Together


@structures
def test_the_density_of_a_cell_flow_integrates_to_one_and_an_unlogged_scale_does_not(structure):
    standardise = measured("positive")[0]
    flow = bent(structure, 1)
    map_ = CellFlow(standardise, flow(), D)
    edges = torch.linspace(-22, 22, 20001, dtype=D)
    v = edges.exp()[:, None]
    z = map_.inv(v)
    log_density = stats.norm.logpdf(z.detach()[:, 0]) - map_.log_abs_det_jacobian(z, v).detach().numpy()
    total = np.trapezoid(np.exp(log_density) * v[:, 0].numpy(), edges.numpy())
    assert total == pytest.approx(1, abs=1e-4)
    assert np.trapezoid(
        np.exp(log_density + math.log(standardise.spread[0])) * v[:, 0].numpy(), edges
    ) != pytest.approx(1, abs=0.1)


def test_the_log_determinant_is_of_the_row_asked_for_and_not_of_the_last():
    standardise, _ = measured("real")
    map_ = CellFlow(standardise, bent("coupling", 1)(), D)
    a, b = rows(5, 1, 1), rows(5, 1, 2)
    za = map_.inv(a)
    map_.inv(b)
    fresh = CellFlow(standardise, bent("coupling", 1)(), D)
    torch.testing.assert_close(map_.log_abs_det_jacobian(za, a), fresh.log_abs_det_jacobian(fresh.inv(a), a))
