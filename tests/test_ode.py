"""The probability flow against closed forms: its solver, its error figure, Hutchinson's trace, its kinds."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from probgen.errors import Incomparable, ParameterError
from probgen.estimate.ode import Flowing, ProbabilityFlow
from probgen.events import Array
from probgen.logprob import Kind, LogProb
from probgen.models.mixture import Mixture

ALPHA = 1e-6  # false-alarm rate of each statistical test
D = torch.float64


class Exact(torch.nn.Module):
    """The true velocity of a mixture of normals N(mean_k, cov) in trigonometric time."""

    flow_random = False

    def __init__(self, means, cov, extra=0.0):
        super().__init__()
        self.means, self.cov, self.extra = torch.tensor(means, dtype=D), torch.tensor(cov, dtype=D), extra
        self.flow_dim, self.eigen = self.means.shape[1], torch.linalg.eigh(self.cov)
        self.scale = torch.nn.Parameter(torch.ones((), dtype=D))

    def _flow_start(self, x, given, noise):
        return x, 0.0, torch.zeros(len(x), dtype=D)

    def _flow_velocity(self, y, t, given):
        cos, sin = t[:, None].cos(), t[:, None].sin()
        values, vectors = self.eigen
        spread = cos.square() * values + sin.square()  # of y, in the eigenbasis
        off = ((y[:, None] - cos[:, None] * self.means) @ vectors) / spread[:, None].sqrt()
        share = (-0.5 * off.square().sum(-1)).softmax(1)
        back = (off / spread[:, None].sqrt()) @ vectors.T
        score = -(share[..., None] * back).sum(1)
        own = (score @ vectors) * values @ vectors.T
        data = (share[..., None] * self.means).sum(1) - cos * own  # E[x | y] about each mean
        noise = -sin * score
        return cos * noise - sin * data + self.extra * y

    def nats(self, x):
        parts = [stats.multivariate_normal(mean, self.cov.numpy()).logpdf(x) for mean in self.means.numpy()]
        return np.logaddexp.reduce(parts, 0) - math.log(len(parts))

    def rows(self, n, seed=0):
        rng = np.random.default_rng(seed)
        root = np.linalg.cholesky(self.cov.numpy())
        return torch.tensor(
            self.means.numpy()[rng.integers(len(self.means), size=n)] + rng.normal(size=(n, self.flow_dim)) @ root.T
        )


def gaussian():
    """Five coordinates of condition 98."""
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    return Exact(np.zeros((1, 5)), turn @ np.diag(np.geomspace(0.02, 1.96, 5)) @ turn.T)


def eight(extra=0.0):
    angles = np.arange(8) * math.pi / 4
    return Exact(math.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], 1), 0.02 * np.eye(2), extra)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def flow(model, x, seed=0, **options):
    with torch.no_grad():
        return ProbabilityFlow(**options)(model, x, generator=seeded(seed))


def off(model, x, **options):
    answer = flow(model, x, **options)
    return np.abs(answer.nats - model.nats(x.numpy())), answer


def test_default_settings_are_within_a_ten_thousandth_of_a_nat_of_a_gaussian_at_a_hundred_evaluations():
    model = gaussian()
    error, answer = off(model, model.rows(200))
    assert isinstance(model, Flowing)
    assert error.max() < 1e-4
    assert (answer.diagnostics["evaluations"] <= 100).mean() > 0.95
    assert answer.kind is Kind.EXACT
    assert answer.stderr is None
    assert answer.target == "p^ODE"


def test_eight_gaussians_are_certified_row_by_row_and_the_twin_with_a_wrong_field_is_caught():
    model = eight()
    error, answer = off(model, model.rows(150))
    assert (answer.kinds == Kind.EXACT).all()
    assert (error < 1e-2).mean() > 0.985  # a row between two modes may look settled at the first two grids
    assert error.max() < 0.05
    assert np.median(error) < 1e-4
    assert np.unique(answer.diagnostics["evaluations"]).size > 1, "every row got the same steps"
    wrong, _ = off(eight(extra=0.01), model.rows(100))
    assert np.median(wrong) > 1e-3


@pytest.mark.parametrize("solver", ["rk4", "heun"])
def test_the_solver_error_covers_the_true_one_and_a_tenth_of_it_would_not(solver):
    model = eight()
    x = model.rows(300, seed=4)
    error, answer = off(model, x, solver=solver, steps=24, most=24)
    figure = answer.diagnostics["solver_error"]
    assert (error <= figure + 1e-9).mean() > 0.98
    assert (error <= figure / 100 + 1e-9).mean() < 0.9, "the twin"


@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("heun", 2)])
def test_the_error_falls_at_least_at_the_solvers_order(solver, order):
    model = gaussian()
    x = model.rows(20)
    errors = [off(model, x, solver=solver, steps=n, most=n)[0].mean() for n in (16, 32)]
    assert math.log2(errors[0] / errors[1]) > order - 0.3
    figures = [flow(model, x, solver=solver, steps=n, most=n).diagnostics["solver_error"].mean() for n in (32, 64)]
    assert math.log2(figures[0] / figures[1]) == pytest.approx(order, abs=0.5)


def test_a_row_that_can_not_be_certified_is_an_estimate():
    model = eight()
    answer = flow(model, model.rows(40), steps=4, most=4, tolerance=1e-8)
    assert set(answer.kinds) == {Kind.ESTIMATE}
    assert (answer.diagnostics["solver_error"] > 1e-8).all()


def test_an_answer_depends_on_its_row_alone():
    model = eight()
    x = model.rows(12)
    for trace in ("exact", "hutchinson"):
        whole = flow(model, x, trace=trace, most=32)
        part = flow(model, x[[7, 3, 3]], trace=trace, most=32)
        np.testing.assert_allclose(part.nats, whole.nats[[7, 3, 3]], rtol=1e-11)
        assert (part.diagnostics["evaluations"] == whole.diagnostics["evaluations"][[7, 3, 3]]).all()


def test_hutchinsons_trace_is_unbiased_with_an_error_that_covers_and_a_forgotten_probe_is_caught():
    model = gaussian()
    x = model.rows(300, seed=8)
    answer = flow(model, x, trace="hutchinson", probes=16)
    assert (answer.kinds == Kind.ESTIMATE).all()
    miss, spread = answer.nats - model.nats(x.numpy()), answer.stderr

    def pvalue(shift):
        z = (miss + shift).mean() / (math.sqrt((spread**2).sum()) / len(x))
        return 2 * stats.norm.sf(abs(z))

    assert pvalue(0.0) > ALPHA
    assert pvalue(6 * spread.mean() / math.sqrt(len(x)) + abs(miss.mean())) < ALPHA
    z = miss / spread
    assert 0.8 < z.std() < 1.3  # a t of 15 degrees deviates by 1.07
    assert z.std() * math.sqrt(16) > 1.3, "the twin whose error is not divided by the root of the probes"


def test_probes_that_agree_by_chance_print_no_error():
    model = eight()
    answer = flow(model, model.rows(200), trace="hutchinson", probes=2, steps=4, most=4)
    assert np.isnan(answer.stderr).any()
    assert (answer.stderr[~np.isnan(answer.stderr)] > 0).all()


def test_two_distributions_of_one_network_are_never_subtracted():
    model = eight()
    ode = flow(model, model.rows(5))
    sde = LogProb(Kind.EXACT, ode.nats - 1, by="a chain", target="p^SDE")
    for pair in ((ode, sde), (sde, ode)):
        with pytest.raises(Incomparable, match="two different distributions"):
            _ = pair[0] - pair[1]
    assert float((ode - ode.replace(nats=ode.nats - 1.0)).mean()) == pytest.approx(1)


def test_a_hutchinson_number_is_not_importance_weighted():
    with pytest.raises(ParameterError, match="biased upwards"):
        ProbabilityFlow(trace="hutchinson", importance=True)


class Wide(Exact):
    """A hundred coordinates: the trace is Hutchinson's without a word."""

    flow_random = True

    def __init__(self):
        super().__init__(np.zeros((1, 100)), np.eye(100))


def test_neither_is_one_of_many_coordinates():
    model = Wide()
    with pytest.raises(ParameterError, match="biased upwards"):
        flow(model, model.rows(2), importance=True)
    answer = flow(model, model.rows(2), steps=4, most=4, tolerance=1.0, probes=2)
    assert (answer.kinds == Kind.LOWER).all()
    np.testing.assert_allclose(answer.nats, model.nats(model.rows(2)), atol=1e-8)  # v = 0


class Exploding(Exact):
    def _flow_velocity(self, y, t, given):
        return torch.where(y[:, :1] > 0, 1e200 * y**3, super()._flow_velocity(y, t, given))


def test_a_row_whose_flow_leaves_all_numbers_is_refused_and_the_others_are_not():
    model = Exploding(np.zeros((1, 2)), np.eye(2))
    answer = flow(model, torch.tensor([[1.0, 1.0], [-1.0, 0.5]], dtype=D), most=32)
    assert answer.refused.tolist() == [True, False]
    assert "finite" in answer.reason
    assert answer[1].nats[0] == pytest.approx(stats.norm.logpdf([-1, 0.5]).sum(), abs=1e-9)


WRONG = [
    {"trace": "full"}, {"probes": 1}, {"probes": 0}, {"steps": 5}, {"steps": 0}, {"solver": "euler"}, {"samples": 1},
    {"tolerance": 0}, {"tolerance": math.nan}, {"most": 8}, {"importance": 1}, {"probes": 2.5},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG, ids=repr)
def test_wrong_arguments_are_refused(options):
    with pytest.raises(ParameterError):
        ProbabilityFlow(**options)


def test_its_name_is_the_constructor_call():
    for by in (ProbabilityFlow(), ProbabilityFlow(trace="hutchinson", probes=4), ProbabilityFlow(steps=8)):
        assert eval(repr(by)) == by


def test_a_model_without_a_flow_gets_a_refusal():
    x = np.random.default_rng(0).normal(size=(40, 2))
    answer = Mixture(Array((2,)), 2).fit(x, seed=0, restarts=1).log_prob(x, by=ProbabilityFlow())
    assert answer.kind is Kind.UNAVAILABLE
    assert "flow" in answer.reason
