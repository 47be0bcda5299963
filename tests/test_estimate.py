"""Estimators against closed forms: probabilistic PCA for the bounds, brute force for enumeration."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from latents import ALPHA, CRITICAL, LOG_2PI, PPCA, D, Uneven, generator, z_of
from scipy import special, stats

from probgen import emissions as em
from probgen.errors import LikelihoodUnavailable, ParameterError
from probgen.estimate import ELBO, IWAE, Enumerate, Ladder
from probgen.estimate.weights import Weights, log_mean, pareto_k, quality
from probgen.events import Array
from probgen.logprob import Kind
from probgen.model import Latent
from probgen.models.mixture import Mixture
from probgen.models.vae import VAE


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Bounds


def test_the_toy_satisfies_the_latent_protocol():
    assert isinstance(PPCA(), Latent)
    assert not isinstance(Mixture(Array((2,))), Latent)


@pytest.mark.parametrize("by", [ELBO(2), ELBO(64), IWAE(2), IWAE(500), Ladder()])
def test_with_the_exact_posterior_every_bound_is_the_likelihood(by):
    model = PPCA()
    x = model.draw(50)
    answer = by(model, x, generator=generator())
    np.testing.assert_allclose(answer.nats, model.exact(x), atol=1e-8, rtol=0)
    assert answer.kind is Kind.LOWER


def test_a_tenth_of_a_width_off_would_be_seen():
    model = PPCA(width=1.1)
    x = model.draw(50)
    assert abs(ELBO(64)(model, x, generator=generator()).nats - model.exact(x)).max() > 1e-3


GUIDES = {
    "narrow": {"width": 0.6},
    "shifted": {"shift": 0.7},
    "wide": {"width": 2.0},
    "narrow and shifted": {"width": 0.7, "shift": 0.5},
}


@pytest.mark.parametrize("guide", GUIDES)
def test_elbo_below_iwae_below_more_iwae_below_the_truth(guide):
    model = PPCA(**GUIDES[guide])
    x = model.draw(4000)
    rungs = [ELBO(8), IWAE(2), IWAE(8), IWAE(64)]
    steps = [by(model, x, generator=generator(i)).nats for i, by in enumerate(rungs)] + [model.exact(x)]
    for low, high in itertools.pairwise(steps):
        assert z_of(low - high) < CRITICAL
        assert (
            z_of(high - low + 0.02) > CRITICAL
        )  # planted: the same test refuses the order turned round, and 0.02 nats


def test_the_elbo_is_the_closed_form_minus_the_divergence():
    c, s = 1.5, 0.4
    model = PPCA(width=c, shift=s)
    x = model.draw(4000)
    divergence = 2 * (0.5 * (c**2 + s**2 - 1) - math.log(c))
    errors = ELBO(16)(model, x, generator=generator()).nats - model.exact(x)
    assert abs(z_of(errors + divergence)) < CRITICAL
    assert abs(z_of(errors + 1.05 * divergence)) > CRITICAL


def test_the_mean_weight_is_unbiased():
    model = PPCA(width=1.4, shift=0.3)
    x = model.draw(4000)
    ratio = np.exp(IWAE(8)(model, x, generator=generator()).nats - model.exact(x))
    assert abs(z_of(ratio - 1)) < CRITICAL
    assert abs(z_of(1.05 * ratio - 1)) > CRITICAL


def covered(answer, truth, shrink=1.0):
    printed = np.isfinite(answer.stderr)
    hit = abs(answer.nats - truth) <= 1.96 * shrink * answer.stderr + 1e-9
    return hit[printed], printed


@pytest.mark.parametrize("guide", [{"width": 0.75}, {"width": 1.5}, {"shift": 0.8}])
def test_elbo_errors_cover_the_elbo_and_halved_ones_do_not(guide):
    model = PPCA(**guide)
    x = model.draw(3000)
    c, s = model.width, model.shift
    truth = model.exact(x) - 2 * (0.5 * (c**2 + s**2 - 1) - math.log(c))
    answer = ELBO(256)(model, x, generator=generator())
    hit, half = covered(answer, truth)[0], covered(answer, truth, 0.5)[0]
    assert stats.binom.cdf(hit.sum(), 3000, 0.935) > ALPHA
    assert stats.binom.cdf(half.sum(), 3000, 0.935) < ALPHA


@pytest.mark.parametrize("by", [IWAE(500), IWAE(2000), Ladder((500, 2000), refine=False)], ids=repr)
def test_a_far_too_narrow_guide_prints_no_error(by):
    model = PPCA(width=0.2)
    answer = by(model, model.draw(60), generator=generator())
    assert np.isnan(answer.stderr).all()
    assert np.isfinite(answer.nats).all()


@pytest.mark.parametrize("samples", [2, 100, 399])
def test_fewer_than_four_hundred_draws_print_no_error(samples):
    model = PPCA()
    assert np.isnan(IWAE(samples)(model, model.draw(5), generator=generator()).stderr).all()


class Box(PPCA):
    """x | z is uniform around z, and the guide looks elsewhere: every weight is zero though p(x) is not."""

    def _propose(self, x, given, noise):
        return noise.to(D) + 50.0, torch.zeros(noise.shape[:2], dtype=D)

    def _log_joint(self, x, z, given):
        inside = (z[..., :1] - x[:, :1]).abs() < 0.5
        return torch.where(inside[..., 0], 0.0, -math.inf) - 0.5 * (z.square() + LOG_2PI).sum(-1)


@pytest.mark.parametrize("by", [IWAE(500), Ladder((500,))], ids=repr)
def test_a_guide_that_misses_the_support_prints_no_error(by):
    answer = by(Box(), torch.zeros(3, 3, dtype=D), generator=generator())
    assert (answer.nats == -math.inf).all()
    assert np.isnan(answer.stderr).all()


def test_the_mean_of_weights_is_that_of_plain_arithmetic():
    log_w = torch.tensor(np.random.default_rng(0).normal(0, 1, (50, 4)))
    w = log_w.exp().numpy()
    nats, stderr = log_mean(log_w)
    np.testing.assert_allclose(nats, np.log(w.mean(0)), rtol=1e-12)
    np.testing.assert_allclose(stderr, w.std(0, ddof=1) / math.sqrt(50) / w.mean(0), rtol=1e-10)
    np.testing.assert_allclose(log_mean(log_w - 5000)[0], np.log(w.mean(0)) - 5000, rtol=1e-12)
    np.testing.assert_allclose(quality(log_w)[0], w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-10)


# Pareto k


def scalar_k(log_w):
    """Zhang and Stephens (2009) as ArviZ writes it, one row, no vectors over rows."""
    x = np.sort(log_w) - log_w.max()
    tail = int(min(0.2 * len(x), 3 * math.sqrt(len(x))))
    y = np.exp(x[-tail:]) - np.exp(x[-tail - 1])
    n, m = tail, 30 + int(math.sqrt(tail))
    b = (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * y[int(n / 4 + 0.5) - 1]) + 1 / y[-1]
    k = np.array([np.log1p(-one * y).mean() for one in b])
    fit = n * (np.log(-b / k) - k - 1)
    b_mean = (b * special.softmax(fit)).sum()
    return (n * np.log1p(-b_mean * y).mean() + 5) / (n + 10)


@pytest.mark.parametrize("samples", [25, 100, 1000, 5000])
@pytest.mark.parametrize("spread", [0.01, 0.5, 1.0, 3.0, 10.0, 30.0])
def test_pareto_k_is_the_scalar_references(samples, spread):
    log_w = spread * np.random.default_rng(0).normal(0, 1, (samples, 6)) - 300
    ours = pareto_k(torch.tensor(log_w))
    np.testing.assert_allclose(ours, [scalar_k(column) for column in log_w.T], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [0.1, 0.3, 0.5, 0.7, 1.0, 1.5])
def test_pareto_k_of_pareto_draws_is_their_shape(k):
    log_w = torch.tensor(k * np.random.default_rng(1).exponential(1, (4000, 400)))  # w = U^-k
    tail = int(3 * math.sqrt(4000))
    found, expected = pareto_k(log_w).numpy(), (tail * k + 5) / (tail + 10)
    assert abs(found.mean() - expected) < 0.04
    assert abs(pareto_k(1.3 * log_w).numpy().mean() - expected) > 0.5 * 0.3 * k  # planted: weights to the power 1.3


def test_pareto_k_of_hopeless_weights_does_not_look_good():
    log_w = torch.tensor(np.random.default_rng(0).normal(0, 300, (1000, 6)))
    assert (pareto_k(log_w) > 0.7).all()


def test_pareto_k_of_a_bounded_weight_is_negative():
    w = torch.tensor(np.random.default_rng(2).uniform(0, 1, (4000, 100)))
    assert (pareto_k(w.log()) < -0.3).all()


def test_pareto_k_of_equal_weights_is_zero_and_of_too_few_unknown():
    assert (pareto_k(torch.full((100, 3), -7.0, dtype=D)) == 0).all()
    assert pareto_k(torch.zeros(24, 3, dtype=D)).isnan().all()


# Streams


class Echo:
    """Log weights are the noise itself, so that draws can be compared bit for bit."""

    latent_dim = 2

    def __init__(self, dim=3):
        self.event = Array((dim,))

    def _propose(self, x, given, noise):
        return noise, torch.zeros(noise.shape[:2], dtype=D)

    def _log_joint(self, x, z, given):
        return z[..., 0].to(D) + 1e-9 * z[..., 1].to(D)


def echo(x, seed=0, samples=40, salt="main"):
    return Weights(Echo(x.shape[1]), x, None, generator(seed)).draw(samples, salt)


@pytest.mark.parametrize("dim", [3, 4096])  # the wide rows come in several chunks
def test_draws_do_not_depend_on_batch_order_or_slice(dim):
    x = torch.tensor(np.random.default_rng(0).normal(0, 1, (25, dim)))
    whole, order = echo(x), torch.randperm(25, generator=generator())
    assert torch.equal(echo(x[order]), whole[:, order])
    assert torch.equal(echo(x[7:13]), whole[:, 7:13])
    assert torch.equal(torch.cat([echo(x[i : i + 1]) for i in range(25)], 1), whole)


def test_equal_rows_share_draws_and_others_do_not():
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], dtype=D)
    w = echo(x)
    assert torch.equal(w[:, 0], w[:, 2])
    assert len({tuple(column.tolist()) for column in w.T}) == 3
    answer = IWAE(20)(PPCA(), x, generator=generator())
    assert answer.draws[0] == answer.draws[2]
    assert len(set(answer.draws.tolist())) == 3


def test_other_seeds_and_other_salts_give_other_draws():
    x = torch.tensor(np.random.default_rng(0).normal(0, 1, (5, 3)))
    seen = [echo(x, seed, salt=salt) for seed in (0, 1, 2**62) for salt in ("main", "pilot")]
    assert all((a != b).all() for a, b in itertools.combinations(seen, 2))
    assert torch.equal(echo(x, 1), echo(x, 1))


def test_draws_are_standard_normal_and_uncorrelated_over_rows_and_salts():
    x = torch.tensor(np.random.default_rng(0).normal(0, 1, (400, 3)))
    a, b = echo(x, samples=100).numpy(), echo(x, samples=100, salt="pilot").numpy()
    assert stats.kstest(a.ravel(), "norm").pvalue > ALPHA
    assert stats.kstest(1.15 * a.ravel(), "norm").pvalue < ALPHA
    for u, v in ((a, b), (a[:, :-1], a[:, 1:]), (a[:-1], a[1:])):
        assert abs(np.corrcoef(u.ravel(), v.ravel())[0, 1]) * math.sqrt(u.size) < CRITICAL


@pytest.mark.parametrize("by", [ELBO(30), IWAE(600), Ladder((500, 1000))], ids=repr)
def test_answers_do_not_depend_on_batch_order_or_slice(by):
    model = Uneven()
    x = model.draw(60)
    whole = by(model, x, generator=generator())
    order = np.random.default_rng(0).permutation(60)
    turned, part = by(model, x[order], generator=generator()), by(model, x[20:31], generator=generator())
    for name in ("nats", "stderr"):
        np.testing.assert_allclose(getattr(turned, name), getattr(whole, name)[order], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[20:31], rtol=1e-12, atol=1e-12)
    other = by(model, x, generator=generator(1)).nats
    assert (other != whole.nats).sum() > 10


@pytest.mark.parametrize("by", [ELBO(30), IWAE(600), Ladder((500, 1000))], ids=repr)
def test_estimators_leave_the_global_generator_alone(by):
    model = PPCA()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    by(model, model.draw(5), generator=generator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("by", [ELBO(64), IWAE(64), Ladder((500, 1000))], ids=repr)
def test_covariates_stay_with_their_rows(by):
    model = Uneven()
    x = model.draw(40)
    given = torch.linspace(-1, 1, 40, dtype=D)[:, None]
    whole = by(model, x, given, generator=generator()).nats
    single = [by(model, x[i : i + 1], given[i : i + 1], generator=generator()).nats[0] for i in range(0, 40, 7)]
    np.testing.assert_allclose(whole[::7], single, rtol=1e-12)
    assert (whole != by(model, x, generator=generator()).nats).sum() > 30


# The ladder


def test_the_ladder_stops_row_by_row_and_marks_each():
    model = Uneven()
    x = model.draw(200)
    good = (x[:, 0] > 0).numpy()
    answer = Ladder((500, 1000, 2000), refine=False)(model, x, generator=generator())
    figures = answer.diagnostics
    assert set(figures) == {"ess", "pareto_k", "samples", "temperatures", "refined"}
    assert (figures["samples"] == np.where(good, 500, 16)).all()
    assert (figures["temperatures"] == np.where(good, 1, 200)).all()
    assert (figures["refined"] == 0).all()
    assert (np.isfinite(answer.stderr) == good).all()
    assert (figures["ess"][good] >= 400).all()
    assert (figures["pareto_k"][good] <= 0.4).all()
    assert answer.by == "IWAE(samples=500) | AIS(chains=16, temperatures=200)"
    assert (answer.kinds == Kind.LOWER).all()


def test_the_ladder_puts_another_guide_in_the_place_of_a_bad_one():
    model = Uneven()
    x = model.draw(200)
    good = (x[:, 0] > 0).numpy()
    answer = Ladder()(model, x, generator=generator())
    assert (answer.diagnostics["samples"] == np.where(good, 500, 2000)).all()
    assert (answer.diagnostics["refined"] == ~good).all()
    assert np.isfinite(answer.stderr).all()
    assert answer.by == "IWAE(samples=500) | IWAE(samples=2000, refine=True)"
    np.testing.assert_allclose(answer.nats, model.exact(x), atol=0.1)


def test_without_annealing_the_ladder_ends_with_its_last_rung_of_draws():
    model = Uneven()
    x = model.draw(200)
    good = (x[:, 0] > 0).numpy()
    answer = Ladder((500, 1000, 2000), (), refine=False)(model, x, generator=generator())
    assert (answer.diagnostics["samples"] == np.where(good, 500, 2000)).all()
    assert (answer.diagnostics["temperatures"] == 1).all()
    assert (np.isfinite(answer.stderr) == good).all()
    assert answer.by == "IWAE(samples=500..2000)"


def gate(answer):
    """What the pilots' figures allow, written out again."""
    ess, k, samples = (answer.diagnostics[name] for name in ("ess", "pareto_k", "samples"))
    noise = (1 + np.maximum(k, 0)) / np.sqrt(np.floor(np.minimum(0.2 * samples, 3 * np.sqrt(samples))))
    return (ess >= 400) & (k + noise <= np.minimum(0.4, 1 - 1 / np.log10(samples)))


@pytest.mark.parametrize("width", [0.6, 0.7])
def test_the_ladder_prints_an_error_only_where_the_gate_is_open(width):
    model = PPCA(width=width)
    answer = Ladder((500, 1000, 1500), (), refine=False)(model, model.draw(400), generator=generator())
    assert (np.isfinite(answer.stderr) == gate(answer)).all()
    assert len(set(answer.diagnostics["samples"].tolist())) > 1


def test_annealed_rows_print_an_error_only_where_the_chains_weights_are_nearly_equal():
    model = PPCA(shift=1.0)
    answer = Ladder((500,), temperatures=(10, 20), refine=False)(model, model.draw(400), generator=generator())
    annealed, printed = answer.diagnostics["temperatures"] > 1, np.isfinite(answer.stderr)
    assert (printed == gate(answer))[~annealed].all()
    variance = 16 / answer.diagnostics["ess"][annealed] - 1
    assert variance[printed[annealed]].max() <= 0.25
    assert (variance > 0.25).any(), "nothing was refused"
    assert printed[annealed].any(), "nothing was printed"


def test_iwae_prints_an_error_only_where_the_gate_is_open():
    model = PPCA(width=0.75)
    answer = IWAE(1000)(model, model.draw(400), generator=generator())
    assert (np.isfinite(answer.stderr) == gate(answer)).all()
    assert 0 < gate(answer).mean() < 1


SALTS = {  # rungs and temperatures, of which a hopeless row takes the last: the draws that are reported
    ((500, 2000, 8000), ()): {"main8000"},
    ((500, 5000), (2, 3)): {"main Plan(chains=16, temperatures=3, leapfrogs=2, start='guide', schedule='sigmoid')"},
}


@pytest.mark.parametrize(("rungs", "temperatures"), SALTS)
def test_what_is_reported_is_drawn_afresh_and_never_by_a_pilot(monkeypatch, rungs, temperatures):
    seen, keys = [], Weights.keys

    def watched(self, salt):
        seen.append(salt)
        return keys(self, salt)

    monkeypatch.setattr(Weights, "keys", watched)
    model = PPCA(width=0.2)
    Ladder(rungs, temperatures, refine=False)(model, model.draw(1), generator=generator())
    mains = [salt for salt in seen if salt.startswith("main")]
    assert set(mains) == SALTS[rungs, temperatures]
    assert len(mains) == 1
    assert len(seen) > 3, "no pilot was drawn"


def test_the_budget_leaves_rungs_out_from_the_top():
    whole = Ladder()
    assert (whole.draws, whole.plans) == ((500, 2000, 8000), (50, 200))
    tight = Ladder(budget=30_000)
    assert (tight.draws, tight.plans) == ((500, 2000), ())
    assert sum(tight.cost("draws", size) for size in tight.draws) <= 30_000
    with pytest.raises(ParameterError, match="at least"):
        Ladder(budget=100)


class Counting(PPCA):
    """Counts evaluations of log p(x, z), those with a gradient three times, as a budget does."""

    spent = 0

    def _log_joint(self, x, z, given):
        self.spent += (z.numel() // z.shape[-1]) * (3 if z.requires_grad else 1)
        return super()._log_joint(x, z, given)


@pytest.mark.parametrize("budget", [10_000, 30_000, 60_000, 90_000, 150_000])
def test_no_row_costs_more_than_its_budget(budget):
    model = Counting(width=0.2)
    Ladder(budget=budget, refine=False)(model, model.draw(1), generator=generator())
    assert 0.05 * budget < model.spent <= budget


@pytest.mark.parametrize("rungs", [(), (1,), (500, 500), (900, 300), (2.5, 10), (True, 10), 500, None, ("500",)])
def test_wrong_rungs_are_a_parameter_error(rungs):
    with pytest.raises(ParameterError):
        Ladder(rungs)


@pytest.mark.parametrize("estimator", [ELBO, IWAE])
@pytest.mark.parametrize("samples", [0, 1, -3, 2.5, True, None, "64", math.nan])
def test_a_wrong_number_of_samples_is_a_parameter_error(estimator, samples):
    with pytest.raises(ParameterError):
        estimator(samples)


@pytest.mark.parametrize("by", [ELBO(), IWAE(), Ladder()], ids=repr)
def test_a_model_without_a_guide_gets_a_refusal(by):
    x = np.random.default_rng(0).normal(0, 1, (30, 2))
    answer = Mixture(Array((2,)), 2).fit(x, seed=0).log_prob(x, by=by, seed=0)
    assert answer.kind is Kind.UNAVAILABLE
    assert "Mixture" in answer.reason
    assert answer.instead
    assert len(answer) == 30
    with pytest.raises(LikelihoodUnavailable):
        _ = answer.nats


@pytest.mark.parametrize("by", [ELBO(8), IWAE(500), Ladder()], ids=repr)
def test_names_in_results_are_constructor_calls(by):
    model = PPCA()
    assert eval(repr(by)) == by
    answer = by(model, model.draw(3), generator=generator())
    assert answer.by == ("IWAE(samples=500)" if isinstance(by, Ladder) else repr(by))


# Enumeration


def enumerate_(program, x, **options):
    return Enumerate(**options)(program, x, generator=generator())


def table(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1]))


class Chain:
    """Two discrete latents in a chain: a in 0..2, b | a in 0..3, x | b normal, y | a, b categorical."""

    first, second, third = table(3), table(3, 4, seed=1), table(3, 4, 2, seed=2)

    def model(self, x, given=None):
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Categorical(self.first))
            b = pyro.sample("b", dist.Categorical(self.second[a]))
            pyro.sample("x", dist.Normal(b.to(D), 0.5), obs=x[:, 0])
            pyro.sample("y", dist.Categorical(self.third[a, b]), obs=x[:, 1])

    def brute(self, x):
        total = np.zeros(len(x))
        for a, b in itertools.product(range(3), range(4)):
            y = self.third[a, b].numpy()[x[:, 1].long()]
            total += self.first[a].item() * self.second[a, b].item() * stats.norm.pdf(x[:, 0], b, 0.5) * y
        return np.log(total)


class Impossible:
    """A hidden coin, then a hidden die that never shows 2; x is the die."""

    dice = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]], dtype=D).log()

    def model(self, x, given=None):
        with pyro.plate("rows", len(x)):
            coin = pyro.sample("coin", dist.Bernoulli(torch.tensor(0.3, dtype=D))).long()
            die = pyro.sample("die", dist.Categorical(logits=self.dice[coin]))
            same = torch.where(die == x, 0.0, -math.inf).to(D)
            pyro.factor("shown", same)


def test_enumeration_of_a_chain_is_the_brute_force_sum():
    rng = np.random.default_rng(0)
    x = torch.tensor(np.stack([rng.normal(1.5, 2, 40), rng.integers(0, 2, 40)], 1))
    answer = enumerate_(Chain(), x)
    np.testing.assert_allclose(answer.nats, Chain().brute(x), rtol=1e-12)
    assert answer.kind is Kind.EXACT
    assert answer.stderr is None
    np.testing.assert_allclose(enumerate_(Chain(), x[:1]).nats, answer.nats[:1], rtol=1e-12)


def test_an_impossible_row_is_minus_infinity_among_possible_ones():
    answer = enumerate_(Impossible(), torch.tensor([0, 1, 2, 0]))
    possible = np.log([0.7 * 0.5 + 0.3 * 0.9, 0.7 * 0.5 + 0.3 * 0.1])
    np.testing.assert_allclose(answer.nats[[0, 1, 3]], possible[[0, 1, 0]], rtol=1e-12)
    assert answer.nats[2] == -math.inf


MIXTURES = {
    "full": (Array((2,)), em.Normal(2, "full")),
    "diag": (Array((2,)), em.Normal(2, "diag")),
    "positive": (Array((2,), "positive"), em.LogNormal(2)),
    "levels": (Array((2,), levels=5), em.Categorical(5, 2)),
    "rounded": (Array((2,), resolution=0.5), em.DiscretisedNormal(2, 0.5)),
    "counts": (Array((2,), "count"), em.Poisson(2)),
    "product": (Array((2,)), em.Product([em.Normal(1), em.Normal(1)])),
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("components", [1, 3])
def test_enumeration_of_a_mixture_is_its_log_prob(name, components):
    event, emission = MIXTURES[name]
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (50, 2)) if not event.discrete else rng.integers(0, 5, (50, 2)).astype(float)
    x = np.exp(x) if event.support == "positive" else x
    m = Mixture(event, components, emission).fit(x, seed=0, restarts=1, max_iter=5)
    np.testing.assert_allclose(m.log_prob(x, by=Enumerate()).nats, m.log_prob(x).nats, rtol=1e-10)


def test_parts_that_pull_a_latent_far_apart_do_not_underflow():
    class Torn:
        def model(self, x, given=None):
            with pyro.plate("rows", len(x)):
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5], dtype=D))).to(D)
                pyro.sample("x", dist.Normal(100 * k, 1.0), obs=x[:, 0])
                pyro.sample("y", dist.Normal(100 * k, 1.0), obs=x[:, 1])

    truth = -5000 - LOG_2PI  # one part is at home, the other 100 deviations away, either way round
    nats = enumerate_(Torn(), torch.tensor([[0.0, 100.0], [0.0, 0.0]], dtype=D)).nats
    np.testing.assert_allclose(nats, [truth, math.log(0.5) - LOG_2PI], rtol=1e-12)


def test_masked_sites_do_not_count():
    class Masked:
        def model(self, x, given=None):
            with pyro.plate("rows", len(x)):
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6], dtype=D))).to(D)
                with pyro.poutine.mask(mask=~x.isnan()):
                    pyro.sample("x", dist.Normal(k, 1.0), obs=x.nan_to_num())

    nats = enumerate_(Masked(), torch.tensor([0.0, math.nan], dtype=D)).nats
    seen = math.log(0.4 * stats.norm.pdf(0) + 0.6 * stats.norm.pdf(1))
    np.testing.assert_allclose(nats, [seen, 0.0], atol=1e-12)


class Long:
    """A hidden Markov chain of so many binary steps, seen at its end."""

    def __init__(self, steps):
        self.steps, self.start, self.move = steps, table(2), table(2, 2, seed=4)

    def model(self, x, given=None):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z0", dist.Categorical(self.start))
            for t in range(1, self.steps):
                z = pyro.sample(f"z{t}", dist.Categorical(self.move[z]))
            pyro.sample("x", dist.Normal(z.to(D), 1.0), obs=x)


@pytest.mark.parametrize("steps", [1, 20, 40, 55])
def test_a_long_chain_is_summed_in_linear_time_or_refused(steps):
    program, x = Long(steps), torch.tensor([0.3, 2.0], dtype=D)
    answer = enumerate_(program, x)
    if answer.kind is Kind.UNAVAILABLE:
        assert steps > 50
        return
    end = program.start.numpy() @ np.linalg.matrix_power(program.move.numpy(), steps - 1)
    np.testing.assert_allclose(answer.nats, np.log(stats.norm.pdf(x.numpy()[:, None], [0, 1]) @ end), rtol=1e-10)


@pytest.mark.parametrize("latent", [dist.Normal(0.0, 1.0), dist.Poisson(2.0), dist.Beta(1.0, 1.0)])
def test_a_latent_without_finite_support_is_refused_by_name(latent):
    class Open:
        def model(self, x, given=None):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("depth", latent)
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    answer = enumerate_(Open(), torch.zeros(4))
    assert answer.kind is Kind.UNAVAILABLE
    assert "depth" in answer.reason
    assert "IWAE" in answer.instead
    assert len(answer) == 4


def test_a_vae_is_refused_by_enumeration():
    answer = enumerate_(VAE(Array((3,)), 2, (4,)), torch.zeros(4, 3, dtype=D))
    assert answer.kind is Kind.UNAVAILABLE


def test_a_table_over_the_limit_is_refused_and_one_within_is_not():
    x = torch.tensor([[0.5, 1.0]] * 20, dtype=D)
    answer = enumerate_(Chain(), x, limit=10)
    assert answer.kind is Kind.UNAVAILABLE
    assert "limit is 10" in answer.reason
    assert answer.instead
    assert enumerate_(Chain(), x, limit=1000).kind is Kind.EXACT


def test_enumeration_leaves_no_trace_in_the_process():
    torch.manual_seed(0)
    before, checks = torch.get_rng_state(), torch.distributions.Distribution._validate_args
    enumerate_(Chain(), torch.zeros(3, 2, dtype=D))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.distributions.Distribution._validate_args == checks
    assert len(pyro.get_param_store()) == 0
