"""Conditional distributions of a network: their probabilities, their draws, their M steps, and what they refuse."""

import copy
import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call

from probgen import conditionals as cd
from probgen.errors import ParameterError, ProbgenError, ShapeError, StructureError
from probgen.events import Category, Count, Real

D = torch.float64
YES, ABC = Category(("no", "yes")), Category(("a", "b", "c"))
MIXED = (ABC, Real(), YES, Count())


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cells(values):
    return torch.tensor(np.asarray(values, dtype=float))


class Rate(nn.Module):
    """A user's module: Poisson with a rate for each level of the first parent."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(-0.5, 1.0, 3))
        self.slope = nn.Parameter(torch.tensor(0.1))

    def forward(self, parents):
        return dist.Poisson((self.rate[parents[..., 0].long()] + self.slope * parents[..., 1]).exp())


class Levels(nn.Module):
    """A user's module: a category whose logits depend on two categories."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.arange(18.0).reshape(3, 2, 3).sin())

    def forward(self, parents):
        return dist.Categorical(logits=self.logits[parents[..., 0].long(), parents[..., 1].long()])


def gamma(parents):
    return dist.Gamma(2.0 + parents[..., 0], parents[..., 1].square() + 0.5)


KINDS = {
    "root table": lambda: cd.Tabular().bind(ABC),
    "table": lambda: cd.Tabular().bind(ABC, (YES, ABC)),
    "noisy-or": lambda: cd.NoisyOr(parent_active=("b", "yes", "no")).bind(YES, (ABC, YES, YES)),
    "noisy-or upside down": lambda: cd.NoisyOr("no", leak=False).bind(YES, (ABC, YES)),
    "logistic": lambda: cd.Softmax().bind(ABC, (YES, ABC)),
    "mixed logistic": lambda: cd.Softmax().bind(ABC, MIXED),
    "root normal": lambda: cd.LinearGaussian().bind(Real()),
    "regression": lambda: cd.LinearGaussian().bind(Real(), (Real(), Count())),
    "mixed regression": lambda: cd.LinearGaussian().bind(Real(), MIXED),
    "counts": lambda: cd.PoissonRegression().bind(Count(), MIXED),
    "root count": lambda: cd.PoissonRegression().bind(Count()),
    "program": lambda: cd.Program(Rate()).bind(Count(), (ABC, Real())),
    "program of levels": lambda: cd.Program(Levels()).bind(ABC, (ABC, YES)),
    "program of positives": lambda: cd.Program(gamma).bind(Real(positive=True), (YES, Real())),
    "point": lambda: cd.Point("yes").bind(YES, (ABC, YES)),
    "real point": lambda: cd.Point(1.5).bind(Real(), MIXED),
}
FIXED = {"point", "real point", "program of positives"}
everything = pytest.mark.parametrize("kind", KINDS)
learned = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FIXED])


def made(kind, seed=0):
    """A bound conditional with random parameters."""
    c = KINDS[kind]()
    c.reset(torch.Generator().manual_seed(seed), 0.6)
    return c


def parents_of(c, n, seed=1):
    rng = np.random.default_rng(seed)
    draw = {Category: lambda p: rng.integers(0, len(p.levels), n), Real: lambda p: rng.normal(1, 1.5, n)}
    draw[Count] = lambda p: rng.poisson(3, n)
    return cells(np.stack([draw[type(p)](p) for p in c.parents], 1)) if c.parents else torch.zeros(n, 0, dtype=D)


def rows(c, n=60, seed=1):
    """Parents, and children drawn from them."""
    parents = parents_of(c, n, seed)
    return c.sample(parents, torch.Generator().manual_seed(seed)), parents


def picked(c, factor, child, parents):
    """The entry of each row's own configuration."""
    flat = factor.reshape(len(child), -1)
    place = c.configuration(parents) * (c.cards[-1] if c.discrete else 1) + (child.long() if c.discrete else 0)
    return flat.gather(1, place[:, None])[:, 0]


def agree(a, b, tolerance=1e-12):
    assert torch.equal(a.isinf(), b.isinf())
    assert ((a - b).nan_to_num() / (1 + b.abs()).where(~b.isinf(), torch.tensor(1.0))).abs().max() <= tolerance


# Probabilities


@everything
def test_rows_factors_tables_and_pyro_distributions_say_the_same(kind):
    c = made(kind)
    child, parents = rows(c)
    nats = c.log_prob(child, parents)
    assert nats.shape == (60,)
    assert nats.dtype == D
    assert nats.isfinite().all()
    gaps = parents.clone()
    gaps[:, list(c.discrete_parents)] = math.nan
    factor = c.log_factor(torch.full_like(child, math.nan) if c.discrete else child, gaps)
    assert factor.shape == (60, *c.cards)
    agree(picked(c, factor, child, parents), nats)
    agree(c.cells(parents).log_prob(child), nats)
    agree(functional_call(c, dict(c.named_parameters()), (child, parents)), nats)
    if c.tabular:
        agree(c.log_table().expand_as(factor), factor)
    else:
        with pytest.raises(StructureError, match="not all"):
            c.log_table()
    if c.discrete:
        assert (factor.exp().sum(-1) - 1).abs().max() < 1e-12


@everything
def test_pyro_distributions_broadcast_over_enumerated_parents(kind):
    c = made(kind)
    child, parents = rows(c, 5)
    wide = parents[:, None, None].expand(5, 2, 3, len(c.parents))
    assert c.cells(wide).batch_shape == (5, 2, 3)
    agree(c.cells(wide).log_prob(child[:, None, None].expand(5, 2, 3))[:, 1, 2], c.log_prob(child, parents))


def test_a_noisy_or_sums_over_which_causes_come_through():
    c = made("noisy-or")
    found, active = c.natural(), [1, 1, 0]
    strength = [*found["probs"].tolist(), found["leak"].item()]
    for levels in itertools.product(range(3), range(2), range(2)):
        present = [level == a for level, a in zip(levels, active, strict=True)] + [True]
        on = 0.0
        for through in itertools.product([False, True], repeat=4):
            weight = math.prod(p if comes else 1 - p for p, comes in zip(strength, through, strict=True))
            on += weight * any(here and comes for here, comes in zip(present, through, strict=True))
        assert c.log_table()[levels].exp().tolist() == pytest.approx([1 - on, on], abs=1e-14)


def test_a_mixed_regression_is_scipys_normal_about_each_configurations_line():
    c = made("mixed regression")
    child, parents = rows(c)
    found = {name: value.detach().numpy() for name, value in c.natural().items()}
    for y, row, nats in zip(child.numpy(), parents.numpy(), c.log_prob(child, parents).tolist(), strict=True):
        at = (int(row[0]), int(row[2]))
        mean = found["intercept"][at] + found["coefficients"][at] @ row[[1, 3]]
        assert nats == pytest.approx(stats.norm.logpdf(y, mean, found["scale"][at]), rel=1e-12)
        assert c.mean(cells(row)).item() == pytest.approx(mean, rel=1e-12)


def test_a_mixed_logistic_regression_adds_effects_and_slopes():
    c = made("mixed logistic")
    found = {name: value.detach().numpy() for name, value in c.natural().items()}
    row = np.array([2, -0.7, 1, 4.0])
    logits = found["intercept"] + found["effects"][:, [2, 4]].sum(1) + found["coefficients"] @ row[[1, 3]]
    wanted = np.exp(logits) / np.exp(logits).sum()
    assert c.cells(cells(row)).probs.tolist() == pytest.approx(wanted.tolist(), rel=1e-12)


def test_counts_have_poisson_mass_of_a_log_linear_mean():
    c = made("counts")
    child, parents = rows(c)
    rate = c.mean(parents).detach().numpy()
    assert c.log_prob(child, parents).tolist() == pytest.approx(stats.poisson.logpmf(child.numpy(), rate).tolist())
    assert torch.equal(c.variance(parents), c.mean(parents))
    found = c.natural()
    at, row = (1, 1), cells([1, 0.3, 1, 2])
    wanted = found["intercept"][at] + found["coefficients"][at] @ row[[1, 3]]
    assert c.mean(row).log().item() == pytest.approx(wanted.item(), rel=1e-12)


def test_zeros_and_ones_are_exact_and_their_gradients_finite():
    table = cd.Tabular.of([[1.0, 0.0], [0.25, 0.75]])
    assert table.log_table()[0].tolist() == [0.0, -math.inf]
    causes = KINDS["noisy-or"]().set_natural(probs=[0.0, 1.0, 0.3], leak=0.0)
    assert causes.log_table()[0, 0, 1].tolist() == [0.0, -math.inf]
    assert causes.log_table()[0, 1, 1].tolist() == [-math.inf, 0.0]
    for c in (table, causes):
        nats = torch.where(c.log_table().isfinite(), c.log_table(), 0.0).sum()
        for slope in torch.autograd.grad(nats, list(c.parameters())):
            assert slope.isfinite().all()


def test_a_programs_values_outside_its_support_have_probability_zero():
    c = KINDS["program of positives"]()
    nats = c.log_prob(cells([-1.0, 2.0]), cells([[1, 0.5], [1, 0.5]]))
    assert nats.tolist() == pytest.approx([-math.inf, stats.gamma.logpdf(2.0, 3, scale=1 / 0.75)])
    binary = cd.Program(lambda u: dist.Bernoulli(0.3 + 0.2 * u[..., 0])).bind(ABC, (YES,))
    assert binary.log_table()[:, 2].tolist() == [-math.inf] * 2
    assert binary.log_table()[1, 1].exp().item() == pytest.approx(0.5)


# Draws


def off_by_draws(c, seed=5, n=40_000, bug=lambda c: None):
    """Of n draws of a row, or of few rows, the p-value that the distribution drew them."""
    parents = parents_of(c, 4, seed).repeat(n // 4, 1)
    drawing = copy.deepcopy(c)
    with torch.no_grad():
        bug(drawing)
    child = drawing.sample(parents, torch.Generator().manual_seed(seed))
    if isinstance(c.child, Real):
        made = c.cells(parents)
        below = made.cdf(child).detach().numpy()
        return stats.kstest(below, "uniform").pvalue
    p = []
    for k in range(4):
        log_mass = c.cells(parents[k]).log_prob(torch.arange(c.cards[-1] if c.discrete else 60, dtype=D))
        mass, drawn = log_mass.exp().detach().numpy(), np.bincount(child[k::4].long().numpy(), minlength=len(log_mass))
        often = mass * n / 4 >= 5
        seen, wanted = (np.append(v[often], v[~often].sum()) for v in (drawn[: len(mass)], mass * n / 4))
        kept = wanted > 1e-6 if wanted[-1] < 1e-6 and seen[-1] == 0 else slice(None)
        p.append(stats.chisquare(seen[kept], wanted[kept] / wanted[kept].sum() * seen[kept].sum()).pvalue)
    return min(1.0, 4 * min(p))


def shifted(c):
    """The planted bug: parameters that are a little off."""
    for name, parameter in c.named_parameters():
        if name in ("logits", "intercept", "module.logits") and not isinstance(c, cd.NoisyOr):
            parameter.add_(0.12 * torch.arange(parameter.shape[-1]))
        elif name in ("logits", "leak_logit", "loc", "log_scale", "module.rate"):
            parameter.add_(0.2)


@learned
def test_draws_follow_the_distribution_and_a_slightly_other_ones_do_not(kind):
    c = made(kind)
    assert off_by_draws(c) > 1e-6
    assert off_by_draws(c, bug=shifted) < 1e-6


def test_impossible_levels_are_never_drawn():
    c = cd.Tabular.of([0.0, 0.3, 0.0, 0.7, 0.0])
    child = c.sample(torch.zeros(50_000, 0, dtype=D), torch.Generator().manual_seed(0))
    assert sorted(set(child.tolist())) == [1.0, 3.0]


@everything
def test_priors_cover_the_parameters_and_natural_numbers_set_them(kind):
    c = made(kind)
    priors = c.priors()
    assert {n: p.event_shape for n, p in priors.items()} == {n: p.shape for n, p in c.named_parameters()}
    for name, parameter in c.named_parameters():
        assert priors[name].log_prob(parameter).isfinite()
    if isinstance(c, cd.Program | cd.Point):
        return
    child, parents = rows(c)
    other = KINDS[kind]().set_natural(**{n: v.detach().numpy() for n, v in c.natural().items()})
    agree(other.log_prob(child, parents), c.log_prob(child, parents), 1e-11)
    agree(c.bind(c.child, c.parents).log_prob(child, parents), c.log_prob(child, parents))


def test_columns_get_the_conditional_that_suits_them():
    wanted = {cd.Tabular: (YES, (ABC,)), cd.Softmax: (YES, (ABC, Real())), cd.LinearGaussian: (Real(), (YES,))}
    wanted[cd.PoissonRegression] = (Count(), (Real(),))
    for kind, (child, parents) in wanted.items():
        found = cd.default_for(child, parents)
        assert type(found) is kind
        assert found.suits(child, parents) is None
    assert KINDS["mixed regression"]().n_params == 6 * 4
    assert KINDS["table"]().n_params == 6 * 2


# What is refused


@pytest.mark.parametrize(
    ("c", "child", "parents", "why"),
    [(cd.Tabular(), Real(), (), "category as the child"), (cd.Tabular(), YES, (Real(),), "Softmax"),
     (cd.Softmax(), Count(), (), "category"), (cd.LinearGaussian(), YES, (), "real column"),
     (cd.LinearGaussian(), Real(positive=True), (), "mass below 0"),
     (cd.LinearGaussian(), Real(resolution=0.1), (), "interval masses"),
     (cd.PoissonRegression(), Real(), (), "count"), (cd.NoisyOr(), ABC, (), "two levels"),
     (cd.NoisyOr("maybe"), YES, (), "no level"), (cd.NoisyOr(), YES, (Real(),), "categories"),
     (cd.NoisyOr(parent_active=("a",)), YES, (ABC, ABC), "1 levels for 2"), (cd.NoisyOr(leak=False), YES, (), "leak"),
     (cd.NoisyOr(parent_active=("z",)), YES, (ABC,), "'z'"), (cd.Point("z"), YES, (), "no level"),
     (cd.Point(math.nan), Real(), (), "finite"), (cd.Point(1.5), Count(), (), "count"),
     (cd.Point([1]), YES, (), "level"),
     (cd.Point(-1), Real(positive=True), (), "positive"), (cd.Program(gamma), YES, (YES, Real()), "together"),
     (cd.Program(gamma), Count(), (YES, Real()), "masses"), (cd.Program(Levels()), Real(), (ABC, YES), "density"),
     (cd.Program(lambda u: 3), YES, (), "returned 3"), (cd.Program(Levels()), YES, (ABC, YES), "together"),
     (cd.Program(lambda u: dist.Normal(torch.zeros(7), 1.0)), Real(), (YES,), "batch shape")],
    ids=str,
)  # fmt: skip
def test_columns_that_do_not_suit_are_refused_and_told_why(c, child, parents, why):
    with pytest.raises(StructureError, match=why):
        c.bind(child, parents)


@pytest.mark.parametrize(
    ("table", "error", "why"),
    [([[0.5, 0.5]], ShapeError, r"\(2, 2\)"), ([[0.5, 0.5], [1.2, -0.2]], ParameterError, r"-0.2 is negative.*'yes'"),
     ([[0.5, 0.5], [0.5, math.nan]], ParameterError, "NaN"), ([[0.5, 0.5], [0.5, 0.50001]], ParameterError, "1.00001"),
     ([[0, 0], [0.5, 0.5]], ParameterError, "0 is the sum.*'no'"), ([[math.inf, 0], [1, 0]], ParameterError, "inf"),
     ("abc", ShapeError, "numbers"), ([[1], [0.5, 0.5]], ShapeError, "numbers"), (None, ShapeError, "numbers")],
    ids=str,
)  # fmt: skip
def test_tables_that_are_no_conditional_probabilities_are_refused(table, error, why):
    c = cd.Tabular().bind(YES, (YES,))
    with pytest.raises(error, match=why):
        c.set_table(table)
    assert c.natural()["probs"].tolist() == [[0.5, 0.5]] * 2


def test_rows_a_little_off_are_renormalised_and_the_correction_told():
    c = cd.Tabular().bind(YES, (YES,))
    assert c.set_table([[0.5, 0.5], [0.3, 0.7000005]]) == pytest.approx(5e-7, rel=1e-6)
    assert c.natural()["probs"].sum(-1).tolist() == pytest.approx([1, 1], abs=1e-15)
    assert c.set_table(np.log([[0.25, 0.75], [0.3, 0.7]]), log=True) < 1e-15
    assert c.natural()["probs"].flatten().tolist() == pytest.approx([0.25, 0.75, 0.3, 0.7], rel=1e-14)


@pytest.mark.parametrize(
    "ask",
    [lambda: cd.LinearGaussian(0), lambda: cd.Softmax(-1), lambda: cd.PoissonRegression(math.inf),
     lambda: cd.NoisyOr(parent_active="yes"), lambda: cd.Program(3), lambda: cd.Program(Levels),
     lambda: cd.Tabular.of(1.0),
     lambda: cd.Tabular.of([[0.5, 0.5]]).bind(YES), lambda: cd.Tabular().child, lambda: cd.Tabular.of([]),
     lambda: KINDS["table"]().mean(torch.zeros(1, 2)), lambda: KINDS["table"]().maximise(torch.ones(3)),
     lambda: KINDS["table"]().maximise(torch.full((2, 3, 3), math.nan)),
     lambda: KINDS["regression"]().maximise(torch.ones(2)),
     lambda: KINDS["table"]().maximise(-torch.ones(2, 3, 3)), lambda: KINDS["table"]().maximise_moments(torch.ones(1)),
     lambda: KINDS["regression"]().maximise_moments(torch.ones(1, 3, 3)),
     lambda: KINDS["regression"]().set_natural(intercept=0, coefficients=[1, 1], scale=0),
     lambda: KINDS["counts"]().set_natural(intercept=1),
     lambda: KINDS["noisy-or"]().set_natural(probs=[0, 0, 2], leak=0),
     lambda: KINDS["noisy-or"]().set_natural(probs=[0, 0, 1])],
)  # fmt: skip
def test_senseless_arguments_and_questions_are_refused(ask):
    with pytest.raises(ProbgenError):
        ask()
