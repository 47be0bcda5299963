"""Annealing against closed forms: both directions, the gap between them, and the scores under their own names."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from latents import ALPHA, PPCA, D, Folded, Uneven, generator, z_of
from scipy import stats

from probgen.errors import LikelihoodUnavailable, NotFittedError, ParameterError, ShapeError, StructureError
from probgen.estimate import AIS, bdmc, hmc, log_joint, log_lik_given_latents, reverse_ais
from probgen.estimate.bidirectional import simulate
from probgen.events import Array
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.mixture import Mixture

CRITICAL = stats.norm.isf(ALPHA / 2)  # two-sided


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Forwards: exp(AIS) has mean p(x)


def excess(model, by, n, seed=5):
    """z of mean exp(AIS - log p(x)) against 1."""
    x = model.draw(n, seed=seed)
    return z_of(np.exp(by(model, x, generator=generator()).nats - model.exact(x)) - 1)


CASES = {
    "narrow guide": (PPCA(width=0.6), AIS(4, 8)),
    "shifted guide": (PPCA(shift=0.8), AIS(4, 8)),
    "wide guide": (PPCA(width=1.8), AIS(4, 5)),
    "one temperature": (PPCA(width=1.5), AIS(4, 1)),
    "prior": (PPCA(), AIS(4, 12, start="prior")),
    "prior, linear": (PPCA(), AIS(4, 12, start="prior", schedule="linear")),
    "two modes": (Folded(), AIS(8, 20, start="prior")),
    "two uneven modes": (Folded(tilt=0.3), AIS(8, 20, start="prior")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_exponential_of_an_annealed_bound_has_mean_p_of_x(case):
    assert abs(excess(*CASES[case], n=2500)) < CRITICAL


PLANTED = {
    "everything is accepted": lambda gain: gain + 1e9,
    "the sign of the energy": lambda gain: -gain,
    "half of the energy": lambda gain: 0.5 * gain,
}
ROUGH = AIS(2, 5, leapfrogs=1, start="prior")


def test_chains_that_are_often_rejected_stay_unbiased():
    assert abs(excess(PPCA(), ROUGH, n=6000)) < CRITICAL


@pytest.mark.parametrize("bug", PLANTED)
def test_a_wrong_rule_of_acceptance_would_be_seen(monkeypatch, bug):
    accept = hmc.Bridge._accept

    def wrong(old, new, gain, threshold):
        return accept(old, new, PLANTED[bug](gain), threshold)

    monkeypatch.setattr(hmc.Bridge, "_accept", staticmethod(wrong))
    assert abs(excess(PPCA(), ROUGH, n=6000)) > CRITICAL


def test_step_sizes_tuned_in_the_main_run_would_be_seen(monkeypatch):
    by, forward = AIS(2, 20, leapfrogs=1, start="prior"), hmc.Bridge.forward
    assert abs(excess(PPCA(), by, n=14_000)) < CRITICAL
    monkeypatch.setattr(hmc.Bridge, "forward", lambda self, salt, steps=None: forward(self, salt))
    assert abs(excess(PPCA(), by, n=14_000)) > CRITICAL


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_many_temperatures_come_near_the_closed_form_and_few_do_not(start):
    model = PPCA(shift=2.0)
    x = model.draw(60)
    errors = [abs(AIS(16, t, start=start)(model, x, generator=generator()).nats - model.exact(x)) for t in (3, 200)]
    assert errors[1].mean() < 0.1
    assert errors[1].max() < 0.4
    assert errors[0].mean() > 5 * errors[1].mean()


def test_from_the_exact_posterior_every_chain_is_the_closed_form():
    model = PPCA()
    x = model.draw(20)
    answer = AIS(16, 10)(model, x, generator=generator())
    np.testing.assert_allclose(answer.nats, model.exact(x), atol=1e-8, rtol=0)
    assert np.isfinite(answer.stderr).all()
    assert answer.kind is Kind.LOWER


def test_both_modes_are_found_from_the_prior_and_one_from_the_guide():
    model = Folded()
    x = model.draw(200)
    x = x[x[:, 0] > 1][:40]  # there the modes lie apart
    prior, guide = (AIS(32, 100, start=s)(model, x, generator=generator()) for s in ("prior", "guide"))
    assert abs(prior.nats - model.exact(x)).mean() < 0.15
    assert abs(guide.nats - model.exact(x) + math.log(2)).mean() < 0.15
    assert np.isnan(guide.stderr).all(), "an error was printed though half of the mass was missed"


# Backwards: exp(-reverse AIS) has mean 1 / p(x)


def shortfall(model, by, n, z=None):
    x = model.draw(n, seed=5)
    z = model.posterior(x, by.chains) if z is None else z(model, x)
    return z_of(np.exp(model.exact(x) - reverse_ais(model, x, z, by=by, generator=generator()).nats) - 1)


REVERSED = {
    "guide": (PPCA(width=1.5), AIS(4, 8)),
    "shifted guide": (PPCA(shift=0.5), AIS(4, 8)),
    "prior": (PPCA(), AIS(4, 40, start="prior")),
    "one draw for all chains": (PPCA(width=1.5), AIS(4, 8), lambda model, x: model.posterior(x, 1)[0]),
}


@pytest.mark.parametrize("case", REVERSED)
def test_the_inverse_exponential_of_a_reverse_bound_has_mean_one_over_p_of_x(case):
    model, by, *z = REVERSED[case]
    assert abs(shortfall(model, by, 2500, *z)) < CRITICAL


def test_backwards_from_draws_that_are_none_of_the_posterior_would_be_seen():
    shifted = lambda model, x: model.posterior(x, 4) + 0.3  # noqa: E731
    assert abs(shortfall(PPCA(width=1.5), AIS(4, 8), 2500, shifted)) > CRITICAL


@pytest.mark.parametrize("bug", PLANTED)
def test_backwards_a_wrong_rule_of_acceptance_would_be_seen(monkeypatch, bug):
    model, by, accept = PPCA(shift=0.5), AIS(4, 8, leapfrogs=1), hmc.Bridge._accept
    assert abs(shortfall(model, by, 2500)) < CRITICAL
    monkeypatch.setattr(hmc.Bridge, "_accept", staticmethod(lambda a, b, g, t: accept(a, b, PLANTED[bug](g), t)))
    assert abs(shortfall(model, by, 2500)) > CRITICAL


def test_a_reverse_bound_is_an_upper_bound_with_an_error_from_independent_draws_only():
    model, by = PPCA(width=1.3), AIS(16, 20)
    x = model.draw(400)
    many = reverse_ais(model, x, model.posterior(x, 16), by=by, generator=generator())
    one = reverse_ais(model, x, model.posterior(x, 1)[0], by=by, generator=generator())
    assert many.kind is Kind.UPPER
    assert many.by == "reverse AIS(chains=16, temperatures=20)"
    assert np.isfinite(many.stderr).mean() > 0.9
    assert np.isnan(one.stderr).all()
    assert z_of(many.nats - model.exact(x)) > -stats.norm.isf(ALPHA)


@pytest.mark.parametrize("shape", [(16, 5, 3), (15, 5, 2), (16, 4, 2), (5,), (4, 2)])
def test_latents_of_another_shape_are_refused(shape):
    model = PPCA()
    z = torch.zeros(shape, dtype=D)
    z = z if z.ndim > 1 else z[:, None].expand(5, 1)
    with pytest.raises(ShapeError, match="One draw a chain and row"):
        reverse_ais(model, model.draw(5), z, by=AIS(16, 5), generator=generator())


class Stuck(PPCA):
    """A guide that bends back on itself: its map can't be turned round everywhere."""

    def _propose(self, x, given, noise):
        z, log_q = super()._propose(x, given, noise.to(D).sin())
        return z, log_q


def test_a_guide_that_can_not_be_turned_round_is_refused_and_the_prior_does():
    model = Stuck()
    x = model.draw(20)
    z = model.posterior(x, 16)
    with pytest.raises(ParameterError, match="start='prior'"):
        reverse_ais(model, x, z, by=AIS(16, 5), generator=generator())
    reverse_ais(model, x, z, by=AIS(16, 5, start="prior"), generator=generator())


# Bidirectional Monte Carlo


@pytest.mark.parametrize("by", [AIS(8, 4), AIS(8, 5, start="prior")], ids=lambda by: by.start)
def test_the_gap_brackets_the_truth(by):
    model, n = PPCA(width=1.6, shift=0.6), 1000
    gap = bdmc(model, rows=n, by=by, seed=3)
    truth = model.exact(simulate(model, n, None, generator(3))[0])
    one_sided = stats.norm.isf(ALPHA)
    assert z_of(gap.lower - truth) < one_sided
    assert z_of(gap.upper - truth) > -one_sided
    assert z_of(gap.upper - truth) > one_sided, "bounds that were exchanged would not be seen"
    assert 0 < gap.mean < 1
    assert gap.mean > 3 * gap.stderr


def test_the_gap_shrinks_as_temperatures_are_added():
    gaps = [bdmc(PPCA(), rows=400, by=AIS(8, t, start="prior"), seed=0).mean for t in (3, 100)]
    assert gaps[1] < 0.3 * gaps[0]


def test_real_rows_unlike_the_simulated_have_no_certificate():
    model = PPCA(shift=0.3)
    alike, unlike = model.draw(60, seed=8), model.mu + torch.linspace(100, 200, 40, dtype=D)[:, None] * model.W[:, 0]
    gap = bdmc(model, torch.cat([alike, unlike]), rows=100, by=AIS(16, 10, start="prior"), seed=0)
    assert gap.outside[60:].all()
    assert gap.outside[:60].mean() < 0.15
    assert len(gap.gaps) == 100
    assert {len(values) for values in gap.simulated.values()} == {100}
    assert {len(values) for values in gap.real.values()} == {100}
    assert f"{gap.outside.sum()} of 100 real rows lie outside" in repr(gap)
    assert "real" not in repr(bdmc(model, rows=2, by=AIS(4, 3), seed=0))


def test_a_gap_is_that_of_its_seed():
    first, again, other = (bdmc(PPCA(shift=0.3), rows=5, by=AIS(4, 5), seed=s) for s in (1, 1, 2))
    assert (first.gaps == again.gaps).all()
    assert (first.gaps != other.gaps).all()


class Line(GenerativeModel):
    """x | z, c ~ N(slope z + c, 0.5^2), z ~ N(0, 1): marginally N(c, slope^2 + 0.25)."""

    def __init__(self, event, slope=1.5, context=None):
        super().__init__(event)
        self.slope, self.context, self.latent_dim = slope, context, 1

    def model(self, x=None, given=None, n=1):
        n = n if x is None else len(x)
        loc = torch.zeros(n, 1, dtype=D) if given is None else given[:n]
        with pyro.plate("rows", n):
            z = pyro.sample("z", dist.Normal(torch.zeros(n, 1, dtype=D), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(loc + self.slope * z, 0.5).to_event(1), obs=x)

    def guide(self, x=None, given=None, n=1):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(*self._posterior(x, given)).to_event(1))

    def _posterior(self, x, given):
        precision = 1 + self.slope**2 / 0.25
        shift = x if given is None else x - given
        return self.slope / 0.25 / precision * shift, torch.tensor(1.3 / math.sqrt(precision), dtype=D)

    def _propose(self, x, given, noise):
        q = dist.Normal(*self._posterior(x, given))
        z = q.mean + q.stddev * noise.to(D)
        return z, q.log_prob(z).sum(-1)

    def _log_joint(self, x, z, given):
        loc = self.slope * z + (0 if given is None else given)
        return (dist.Normal(loc, 0.5).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z)).sum(-1)

    def exact(self, x, given=0.0):
        return stats.norm.logpdf(x - given, 0, math.sqrt(self.slope**2 + 0.25))[:, 0]

    def _fit(self, x, given, *, generator):
        return FitReport((0.0,), 0, "closed form")

    def _sample(self, n, given, *, generator):
        return torch.randn(n, 1, generator=generator, dtype=D)

    def _log_prob(self, x, given, *, generator):
        return AIS(4, 3)(self, x, given, generator=generator)

    @classmethod
    def suits(cls, event):
        return None

    @classmethod
    def for_event(cls, event):
        return cls(event)


def line(n=50, **options):
    x = np.random.default_rng(0).normal(0, 1.5, (n, 1))
    return Line(Array((1,)), **options), x


def test_rows_are_simulated_by_the_models_own_program():
    model, x = line()
    x, z = simulate(model.fit(x, seed=0), 4000, None, generator())
    assert stats.kstest(x[:, 0], "norm", (0, math.sqrt(2.5))).pvalue > ALPHA
    assert stats.kstest((x - 1.5 * z)[:, 0], "norm", (0, 0.5)).pvalue > ALPHA
    assert stats.kstest((x + 1.5 * z)[:, 0], "norm", (0, 0.5)).pvalue < ALPHA
    gap = bdmc(model, x[:20].numpy(), rows=50, by=AIS(4, 5), seed=0)
    assert 0 < gap.mean < 0.3


def test_simulated_rows_take_the_real_rows_covariates_in_turn():
    model, x = line(context=Array((1,)))
    c = np.linspace(-300, 300, 50)[:, None]
    model.fit(x, given=c, seed=0)
    drawn = simulate(model, 120, torch.tensor(c), generator())[0]
    assert np.abs(drawn[:, 0].numpy() - c[np.arange(120) % 50, 0]).max() < 12
    assert not bdmc(model, x + c, given=c, rows=200, by=AIS(8, 10), seed=0).outside[5:].all()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rows": 1}, ParameterError, "rows=1"),
        ({"rows": 2.5}, ParameterError, "rows=2.5"),
        ({"by": "AIS"}, ParameterError, "AIS"),
        ({"seed": -1}, ParameterError, "seed"),
    ],
)
def test_bdmc_refuses_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        bdmc(PPCA(), **options)


def test_bdmc_refuses_models_without_a_guide_and_models_that_are_not_fitted():
    with pytest.raises(StructureError, match="Mixture"):
        bdmc(Mixture(Array((2,))))
    with pytest.raises(NotFittedError):
        bdmc(line()[0])


# Rows on their own

ROWS = [AIS(16, 6), AIS(16, 6, start="prior"), AIS(4, 1)]


@pytest.mark.parametrize("by", ROWS, ids=lambda by: f"{by.start}-{by.temperatures}")
def test_annealed_rows_do_not_depend_on_batch_order_or_slice(by):
    model = Uneven()
    x = model.draw(40)
    whole, order = by(model, x, generator=generator()), np.random.default_rng(0).permutation(40)
    turned, part = by(model, x[order], generator=generator()), by(model, x[20:31], generator=generator())
    for name in ("nats", "stderr"):
        np.testing.assert_allclose(getattr(turned, name), getattr(whole, name)[order], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[20:31], rtol=1e-12, atol=1e-12)
    assert (by(model, x, generator=generator(1)).nats != whole.nats).sum() > 15


def test_reverse_rows_do_not_depend_on_order():
    model, by = PPCA(shift=0.4), AIS(16, 6)
    x = model.draw(30)
    z, order = model.posterior(x, 16), np.random.default_rng(0).permutation(30)
    whole = reverse_ais(model, x, z, by=by, generator=generator())
    turned = reverse_ais(model, x[order], z[:, order], by=by, generator=generator())
    np.testing.assert_allclose(turned.nats, whole.nats[order], rtol=1e-12, atol=1e-12)


def test_covariates_stay_with_their_annealed_rows():
    model, by = PPCA(shift=0.3), AIS(4, 6)
    x, given = model.draw(20), torch.linspace(-1, 1, 20, dtype=D)[:, None]
    whole = by(model, x, given, generator=generator()).nats
    single = [by(model, x[i : i + 1], given[i : i + 1], generator=generator()).nats[0] for i in range(0, 20, 7)]
    np.testing.assert_allclose(whole[::7], single, rtol=1e-12)
    assert (whole != by(model, x, generator=generator()).nats).sum() > 15


def test_annealing_leaves_the_global_generator_alone():
    model = PPCA()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    AIS(4, 5)(model, model.draw(5), generator=generator())
    bdmc(model, rows=3, by=AIS(4, 3), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_no_rows_give_no_numbers():
    model, by = PPCA(), AIS(4, 5)
    assert len(by(model, model.draw(0), generator=generator())) == 0
    empty = reverse_ais(model, model.draw(0), torch.zeros(4, 0, 2, dtype=D), by=by, generator=generator())
    assert len(empty) == 0
    assert len(bdmc(model, model.draw(0), rows=3, by=by, seed=0).outside) == 0


# Arguments


@pytest.mark.parametrize(
    "options",
    [
        {"chains": 0},
        {"chains": 1},
        {"chains": -4},
        {"chains": 2.5},
        {"chains": True},
        {"temperatures": 0},
        {"temperatures": None},
        {"leapfrogs": 0},
        {"leapfrogs": "2"},
        {"start": "posterior"},
        {"start": None},
        {"schedule": "cosine"},
        {"schedule": [0.0, 0.5, 1.0]},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(options):
    with pytest.raises(ParameterError, match=next(iter(options))):
        AIS(**options)


@pytest.mark.parametrize("schedule", ["sigmoid", "linear"])
@pytest.mark.parametrize("temperatures", [1, 2, 7, 100])
def test_schedules_rise_from_zero_to_one(schedule, temperatures):
    betas = AIS(2, temperatures, schedule=schedule).plan.betas
    assert len(betas) == temperatures + 1
    assert (betas[0], betas[-1]) == (0.0, pytest.approx(1.0, abs=1e-15))
    assert (np.diff(betas) > 0).all()
    assert np.allclose(np.diff(betas), 1 / temperatures) == (schedule == "linear" or temperatures <= 2)


def test_a_model_without_a_guide_is_refused_and_told_what_to_do():
    x = np.random.default_rng(0).normal(0, 1, (30, 2))
    answer = Mixture(Array((2,)), 2).fit(x, seed=0).log_prob(x, by=AIS(), seed=0)
    assert answer.kind is Kind.UNAVAILABLE
    assert "Mixture" in answer.reason
    with pytest.raises(LikelihoodUnavailable):
        _ = answer.nats


def test_the_name_in_results_is_the_constructor_call():
    for by in (AIS(), AIS(4, 7), AIS(4, 7, leapfrogs=3, start="prior", schedule="linear")):
        assert eval(repr(by)) == by
        assert by(PPCA(), PPCA().draw(2), generator=generator()).by == repr(by)


# log p(x, z) and log p(x | z)


def test_the_joint_and_the_likelihood_given_latents_are_the_closed_forms():
    model, x = line()
    model.fit(x, seed=0)
    z = np.random.default_rng(1).normal(0, 1, (50, 1))
    likelihood = stats.norm.logpdf(x, 1.5 * z, 0.5)[:, 0]
    np.testing.assert_allclose(log_lik_given_latents(model, x, torch.tensor(z)), likelihood, rtol=1e-12)
    joint = log_joint(model, x, torch.tensor(z))
    np.testing.assert_allclose(joint, likelihood + stats.norm.logpdf(z)[:, 0], rtol=1e-12)
    assert not isinstance(joint, LogProb)
    np.testing.assert_allclose(log_joint(model, x, {"z": torch.tensor(z)}), joint, rtol=1e-14)


def test_draws_of_latents_are_scored_one_by_one():
    model, x = line()
    model.fit(x, seed=0)
    z = torch.tensor(np.random.default_rng(1).normal(0, 1, (7, 50, 1)))
    for score in (log_joint, log_lik_given_latents):
        many = score(model, x, z)
        assert many.shape == (7, 50)
        np.testing.assert_allclose(many[3], score(model, x, z[3]), rtol=1e-14)
    mean = log_joint(model, x, z.expand(7, 50, 1)).logsumexp(0)
    assert (mean != many.logsumexp(0)).all()


def test_the_joint_integrates_to_the_likelihood():
    model, x = line(5)
    model.fit(x, seed=0)
    grid = torch.linspace(-9, 9, 2001, dtype=D)[:, None, None].expand(-1, 5, 1)
    total = log_joint(model, x, grid).logsumexp(0) + math.log(18 / 2000)
    np.testing.assert_allclose(total, model.exact(x), rtol=1e-10)


def test_scores_take_covariates():
    model, x = line(context=Array((1,)))
    c = np.linspace(-3, 3, 50)[:, None]
    model.fit(x, given=c, seed=0)
    z = torch.zeros(50, 1, dtype=D)
    wanted = stats.norm.logpdf(x - c, 0, 0.5)[:, 0]
    np.testing.assert_allclose(log_lik_given_latents(model, x, z, given=c), wanted, rtol=1e-12)


@pytest.mark.parametrize("score", [log_joint, log_lik_given_latents])
def test_latents_of_other_rows_and_other_names_are_refused(score):
    model, x = line()
    with pytest.raises(NotFittedError):
        score(model, x, torch.zeros(50, 1))
    model.fit(x, seed=0)
    for shape in [(49, 1), (50, 2), (3, 49, 1), (50,)]:
        with pytest.raises(ShapeError, match="z"):
            score(model, x, torch.zeros(shape))
    for z in ({"w": torch.zeros(50, 1)}, {}, {"z": torch.zeros(50, 1), "w": torch.zeros(50, 1)}):
        with pytest.raises(StructureError, match="'z'"):
            score(model, x, z)
