"""Another guide at the posterior's mode: where it is put, that the bound stays one, and where the old guide is kept."""

import numpy as np
import pytest
import torch
from latents import ALPHA, LOG_2PI, PPCA, D, Folded, Uneven, generator, z_of
from scipy import stats

from probgen.errors import ParameterError
from probgen.estimate import IWAE, Ladder
from probgen.estimate.refine import refine
from probgen.estimate.weights import Frame, Weights

CRITICAL = stats.norm.isf(ALPHA / 2)  # two-sided


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def refined(model, x, rows=None):
    weights = Weights(model, x, None, generator())
    return refine(weights, torch.arange(len(weights)) if rows is None else rows)


@pytest.mark.parametrize(
    "guide", [{"width": 0.2}, {"width": 5.0}, {"shift": 4.0}, {"width": 0.3, "shift": 20.0}], ids=str
)
def test_the_new_guide_of_a_normal_posterior_is_the_posterior_a_fifth_wider(guide):
    model = PPCA(**guide)
    x = model.draw(30)
    weights = refined(model, x)
    noise = torch.randn(4, 30, 2, generator=generator(), dtype=D)
    z = weights.place(noise)
    mean = (x - model.mu) @ model.gain.T
    np.testing.assert_allclose(weights.place(0 * noise)[0], mean, atol=1e-8)
    spread = (z - mean) @ torch.linalg.inv(model.factor).T  # posterior deviations
    np.testing.assert_allclose(spread.norm(dim=-1), 1.2 * noise.norm(dim=-1), rtol=1e-7)


def test_the_density_of_the_new_guide_is_that_of_its_draws():
    model = PPCA(width=0.2, shift=1.0)
    x = model.draw(5)
    weights = refined(model, x)
    noise = torch.randn(100, 5, 2, generator=generator(), dtype=D)
    z = weights.place(noise)
    mean, factor = (x - model.mu) @ model.gain.T, 1.2 * model.factor
    solved = torch.linalg.solve(factor, (z - mean)[..., None])[..., 0]
    log_q = -0.5 * (solved.square() + LOG_2PI).sum(-1) - factor.diagonal().log().sum()
    np.testing.assert_allclose(weights.log_q(noise), log_q, rtol=1e-7)
    found, reached = weights.noise_of(z)
    np.testing.assert_allclose(found, noise, atol=1e-8)
    assert reached.all()


def test_a_good_guide_is_kept():
    model = Uneven()
    x = model.draw(100)
    good = x[:, 0] > 0
    frame = refined(model, x).frame
    identity = (frame.centre == 0).all(-1) & (frame.factor == torch.eye(2, dtype=D)).all(-1).all(-1)
    assert torch.equal(identity, good)


def test_rows_that_were_not_asked_for_keep_their_guide():
    model = PPCA(width=0.2)
    rows = torch.tensor([3, 7])
    frame = refined(model, model.draw(10), rows).frame
    changed = (frame.factor != torch.eye(2, dtype=D)).any(-1).any(-1)
    assert changed.nonzero()[:, 0].tolist() == [3, 7]


class Steps(PPCA):
    """A density without slopes."""

    def _log_joint(self, x, z, given):
        return super()._log_joint(x, z.detach().round(decimals=1), given)


class Once(PPCA):
    """A density with slopes that can't be differentiated again."""

    def _log_joint(self, x, z, given):
        return super()._log_joint(x, _Identity.apply(z), given)


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, slope):
        return _NoSlope.apply(slope)


class _NoSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, slope):
        return slope.clone()

    @staticmethod
    def backward(ctx, curvature):
        raise NotImplementedError("derivative of this is not implemented")


@pytest.mark.parametrize("model", [Once(0.7), PPCA(0.7, latent_dim=65, dim=66)], ids=["once", "many latents"])
def test_where_there_is_no_curvature_or_too_much_of_it_the_guide_is_kept(model):
    assert refined(model, model.draw(3)).frame is None
    assert np.isfinite(IWAE(50, refine=True)(model, model.draw(3), generator=generator()).nats).all()


def test_a_density_without_slopes_keeps_its_guide():
    model = Steps()
    frame = refined(model, model.draw(20)).frame
    assert (frame.centre == 0).all()
    assert (frame.factor == torch.eye(2, dtype=D)).all()


EXCESS = {
    "narrow": (PPCA(width=0.3), IWAE(4, refine=True)),
    "skew": (Folded(noise=0.8), IWAE(8, refine=True, widen=True)),
}


def excess(model, by):
    """z of mean exp(bound - log p(x)) against 1, on rows where the posterior has one mode."""
    x = model.draw(8000, seed=4)
    x = x[:3000] if isinstance(model, PPCA) else x[x[:, 0] < 0][:800]
    return z_of(np.exp(by(model, x, generator=generator()).nats - model.exact(x)) - 1)


@pytest.mark.parametrize("case", EXCESS)
def test_the_exponential_of_a_refined_bound_has_mean_p_of_x(case):
    assert abs(excess(*EXCESS[case])) < CRITICAL


def test_a_volume_that_was_forgotten_would_be_seen(monkeypatch):
    monkeypatch.setattr(Frame, "log_volume", property(lambda frame: torch.zeros(len(frame.centre), dtype=D)))
    assert abs(excess(*EXCESS["narrow"])) > CRITICAL


def test_annealing_from_the_new_guide_is_unbiased():
    model = Folded(noise=0.8)
    x = model.draw(4000, seed=4)
    x = x[x[:, 0] < 0][:600]
    ladder = Ladder((2,), (4,), chains=4)
    assert ladder.plans
    answer = ladder(model, x, generator=generator())
    assert (answer.diagnostics["temperatures"] == 4).all()
    assert abs(z_of(np.exp(answer.nats - model.exact(x)) - 1)) < CRITICAL


@pytest.mark.parametrize(
    "by", [IWAE(50, refine=True), IWAE(450, refine=True, widen=True), Ladder((500, 2000))], ids=repr
)
def test_refined_rows_do_not_depend_on_batch_order_or_slice(by):
    model = Folded(noise=0.5)
    x = model.draw(40)
    whole, order = by(model, x, generator=generator()), np.random.default_rng(0).permutation(40)
    turned, part = by(model, x[order], generator=generator()), by(model, x[20:31], generator=generator())
    for name in ("nats", "stderr"):
        np.testing.assert_allclose(getattr(turned, name), getattr(whole, name)[order], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[20:31], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by", [IWAE(500, refine=True), Ladder()], ids=repr)
def test_no_rows_give_no_numbers(by):
    assert len(by(PPCA(), PPCA().draw(0), generator=generator())) == 0


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_refine_is_true_or_false(value):
    for by in (IWAE, Ladder):
        with pytest.raises(ParameterError, match="refine"):
            by(refine=value)


def test_a_refined_bound_names_itself():
    assert eval(repr(IWAE(700, refine=True))) == IWAE(700, refine=True)
