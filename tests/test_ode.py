"""The probability flow against closed forms: its solver, its error figure, Hutchinson's trace, its kinds."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from probgen.errors import Incomparable, ParameterError
from probgen.estimate import ode
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
    error, answer = off(model, model.rows(150), most=32)
    sure = answer.kinds == Kind.EXACT
    assert sure.mean() > 0.95
    assert error[sure].max() < 1e-2
    assert np.median(error) < 2e-4
    assert np.unique(answer.diagnostics["evaluations"]).size > 1, "every row got the same steps"
    wrong, _ = off(eight(extra=0.01), model.rows(50), most=16)
    assert np.median(wrong) > 1e-3


def test_two_grids_that_agree_by_chance_are_not_believed(monkeypatch):
    model, x = eight(), eight().rows(150)
    monkeypatch.setattr(ode, "_SETTLED", 0)  # the twin: the stages' disagreement counts for nothing
    blind, answer = off(model, x, most=16)
    false = (answer.kinds == Kind.EXACT) & (blind > 1e-2)
    assert false.any()
    monkeypatch.undo()
    _, answer = off(model, x[false], most=16)
    assert (answer.kinds == Kind.ESTIMATE).all()


@pytest.mark.long
@pytest.mark.parametrize("solver", ["rk4", "heun"])
def test_no_row_of_twenty_thousand_is_certified_falsely(solver):
    model = eight()
    error, answer = off(model, model.rows(20_000, seed=11), solver=solver)
    sure = answer.kinds == Kind.EXACT
    assert sure.mean() > 0.97
    assert error[sure].max() < 2e-3
    assert (error <= 0.5 * answer.diagnostics["solver_error"] + 1e-9).all()


@pytest.mark.parametrize("solver", ["rk4", "heun"])
def test_the_solver_error_covers_the_true_one_and_a_tenth_of_it_would_not(solver):
    model = eight()
    error, answer = off(model, model.rows(300, seed=4), solver=solver, steps=16, most=16)
    figure = answer.diagnostics["solver_error"]
    assert (error <= figure).all()
    assert (error > figure / 10).any(), "the twin"


@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("heun", 2)])
def test_the_error_falls_at_least_at_the_solvers_order(solver, order):
    model = gaussian()
    x = model.rows(20)
    runs = [off(model, x, solver=solver, steps=n, most=n) for n in (16, 32)]
    errors, figures = zip(*((e.mean(), a.diagnostics["solver_error"].mean()) for e, a in runs), strict=True)
    assert math.log2(errors[0] / errors[1]) > order - 0.3
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
        whole = flow(model, x, trace=trace, steps=4, most=8, tolerance=0.1)
        part = flow(model, x[[7, 3, 3]], trace=trace, steps=4, most=8, tolerance=0.1)
        assert np.unique(whole.diagnostics["evaluations"]).size > 1
        np.testing.assert_allclose(part.nats, whole.nats[[7, 3, 3]], rtol=1e-11)
        assert (part.diagnostics["evaluations"] == whole.diagnostics["evaluations"][[7, 3, 3]]).all()


def test_hutchinsons_trace_is_unbiased_with_an_error_that_covers_and_a_forgotten_probe_is_caught():
    model = gaussian()
    x = model.rows(300, seed=8)
    answer = flow(model, x, trace="hutchinson", probes=16, steps=8, most=8)
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


class Backward(torch.autograd.Function):
    """The identity, with a rule for reverse mode alone: forward mode raises, as in attention on some machines."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y):
        return y.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


class Net(torch.nn.Module):
    """A small network of random weights as a velocity, whose input passes ``through`` something."""

    flow_dim, flow_random = 3, False

    def __init__(self, through=torch.clone):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
        self.through = through

    def _flow_start(self, x, given, noise):
        return x, 0.0, torch.zeros(len(x), dtype=D)

    def _flow_velocity(self, y, t, given):
        return self.net(torch.cat([self.through(y), t[:, None]], 1))


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_a_network_without_forward_derivatives_gets_the_same_numbers_by_reverse_mode(trace):
    y = torch.randn(6, 3, generator=seeded(3), dtype=D)
    probes = None if trace == "exact" else torch.randn(4, 6, 3, generator=seeded(4), dtype=D).sign()
    ode._load_forward_rules()
    forward, reverse = ode._Field(Net()), ode._Field(Net(Backward.apply))
    with torch.no_grad():
        for mine, other in zip(reverse(y, 0.3, None, probes), forward(y, 0.3, None, probes), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-10)
            assert not mine.requires_grad
    assert (forward.forward, reverse.forward) == (True, False)
    through, plain = (flow(net, y, trace=trace, steps=4, most=4) for net in (Net(Backward.apply), Net()))
    np.testing.assert_allclose(through.nats, plain.nats, rtol=1e-10)


def test_a_fault_of_the_network_itself_is_told():
    def broken(y):
        raise RuntimeError("a fault of its own")

    with pytest.raises(RuntimeError, match="a fault of its own"):
        flow(Net(broken), torch.zeros(2, 3, dtype=D))


def test_probes_that_agree_by_chance_print_no_error():
    model = eight()
    answer = flow(model, model.rows(200), trace="hutchinson", probes=2, steps=4, most=4)
    assert np.isnan(answer.stderr).any()
    assert (answer.stderr[~np.isnan(answer.stderr)] > 0).all()


def test_two_distributions_of_one_network_are_never_subtracted():
    model = eight()
    one = flow(model, model.rows(5), steps=4, most=4, tolerance=100)
    other = LogProb(Kind.EXACT, one.nats - 1, by="a chain", target="p^SDE")
    for pair in ((one, other), (other, one)):
        with pytest.raises(Incomparable, match="two different distributions"):
            _ = pair[0] - pair[1]
    assert float((one - one.replace(nats=one.nats - 1.0)).mean()) == pytest.approx(1)


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
    answer = flow(model, torch.tensor([[1.0, 1.0], [-1.0, 0.5]], dtype=D), most=16)
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
