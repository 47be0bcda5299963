"""The solver that is fitted to one network's flow: nearer than the others, and kept only where it is."""

import math

import numpy as np
import pytest
import torch

import probgen as pg
from probgen.errors import ParameterError
from probgen.events import Array, Category, Table
from probgen.models.diffusion import Diffusion
from probgen.models.diffusion.fitted import FittedSampler, fit_solver
from probgen.models.diffusion.trig import flow_times, solve

D = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_modes(y, t, at=0.9, s=0.2):
    """The flow of a half N(-at, s^2), half N(at, s^2)."""
    cos, sin = t.cos()[:, None], t.sin()[:, None]
    square = cos**2 * s**2 + sin**2
    side = (cos * at * y / square).tanh() * at
    mean = side + cos * s**2 / square * (y - cos * side)
    return (cos * y - mean) / sin.clamp(min=1e-3)


def still(y, t):
    return two_modes(y, torch.full((len(y),), t, dtype=y.dtype))


@pytest.fixture(scope="module")
def fitted():
    sampler, noise = FittedSampler(), torch.randn(3000, 1, generator=seeded(), dtype=D)
    return sampler, fit_solver(sampler, lambda some: two_modes, noise, 0.01, 8, 150, 30, seeded(1))


def test_fitted_coefficients_end_several_times_nearer_to_the_converged_flow_on_fresh_noise(fitted):
    sampler, report = fitted
    z = torch.randn(1000, 1, generator=seeded(9), dtype=D)
    truth = solve(still, z, flow_times(200, 0.01), "rk4")
    with torch.no_grad():
        off = float((sampler(two_modes, z) - truth).square().mean().sqrt())
    for other in ("ab2", "ab4"):
        assert off < float((solve(still, z, flow_times(8, 0.01), other) - truth).square().mean().sqrt()) / 3
    assert report.after < report.before / 3
    assert (report.evaluations, int(sampler.calls)) == (8, 8)


def test_a_solver_that_is_no_nearer_on_unseen_rows_is_not_kept():
    def other(y, t):
        return two_modes(y, t, at=1.5, s=0.02)

    def field_of(some):  # the last quarter of the rows judges
        return two_modes if int(some[0]) >= 1024 else other

    sampler, z = FittedSampler(), torch.randn(1366, 1, generator=seeded(), dtype=D)
    report = fit_solver(sampler, field_of, z, 0.01, 6, 60, 10, seeded(1))
    assert report.after == report.before
    with torch.no_grad():
        torch.testing.assert_close(sampler(two_modes, z), solve(still, z, flow_times(6, 0.01), "ab4"))


@pytest.fixture(scope="module")
def model():
    x = np.random.default_rng(0).normal(size=(300, 2)) @ [[1.0, 0.5], [0.0, 0.4]]
    made = Diffusion(Array((2,)), hidden=16, blocks=1, chain=4).fit(x, steps=60, seed=0)
    made.fit_sampler(8, rows=64, iterations=5, seed=0)
    return made


def test_fitted_samples_are_the_same_for_a_seed_and_after_saving(model, tmp_path):
    drawn = model.sample(20, sampler="fitted", seed=3)
    assert np.array_equal(drawn, model.sample(20, sampler="fitted", seed=3))
    assert not np.array_equal(drawn, model.sample(20, sampler="ab4", steps=8, seed=3))
    assert model.sample_target(sampler="fitted") == "p^ODE (fitted in 8 steps)"
    pg.save(model, str(tmp_path / "m"))
    again = pg.load(str(tmp_path / "m"))
    assert np.array_equal(drawn, again.sample(20, sampler="fitted", seed=3))


def test_a_new_fit_forgets_the_solver_and_without_one_it_is_refused(model):
    x = np.random.default_rng(1).normal(size=(60, 2))
    fresh = Diffusion(Array((2,)), hidden=8, blocks=1, chain=4).fit(x, steps=2, seed=0)
    with pytest.raises(ParameterError, match="fit_sampler"):
        fresh.sample(2, sampler="fitted")
    fresh.fit_sampler(4, rows=16, iterations=1, seed=0)
    assert fresh.sample(2, sampler="fitted", seed=0).shape == (2, 2)
    fresh.fit(x, steps=2, seed=0)
    with pytest.raises(ParameterError, match="fit_sampler"):
        fresh.sample(2, sampler="fitted")
    with pytest.raises(ParameterError, match="fitted to"):
        model.sample(2, sampler="fitted", steps=9)


@pytest.mark.parametrize("options", [{"evaluations": 3}, {"evaluations": 33}, {"rows": 7}, {"iterations": 0}], ids=repr)
def test_wrong_options_of_fit_sampler_are_refused(model, options):
    with pytest.raises(ParameterError, match=next(iter(options))):
        model.fit_sampler(**options)


def test_a_model_with_covariates_is_fitted_under_given_rows_and_not_to_guidance():
    rng = np.random.default_rng(0)
    k = rng.integers(0, 2, 200)
    event = Table({"k": Category((0, 1))}, missing=False)
    made = Diffusion(Array(()), context=event, hidden=8, blocks=1, chain=4)
    made.fit(4.0 * k + rng.normal(size=200), given={"k": k}, steps=40, seed=0)
    report = made.fit_sampler(6, given={"k": [0, 1]}, rows=32, iterations=3, seed=0)
    assert 0 < report.after <= report.before < math.inf
    assert made.sample(3, given={"k": [0, 1]}, sampler="fitted", seed=0).shape == (2, 3)
    with pytest.raises(ParameterError, match="plain flow"):
        made.sample(3, given={"k": [1]}, sampler="fitted", guidance=2.0)
