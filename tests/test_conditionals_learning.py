"""How conditional distributions of a network learn: M steps, their optima, their starts."""

import copy
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize
from test_conditionals import ABC, KINDS, YES, D, Rate, agree, cells, learned, made, one_thread, picked, rows, shifted
from torch import nn

from probgen import conditionals as cd
from probgen.errors import FitError
from probgen.events import Count, Real

__all__ = ["one_thread"]


def expected(c, n=80, seed=2):
    """Rows with random posterior weights over their configurations, shown to the conditional."""
    child, parents = rows(c, n, seed)
    rng = np.random.default_rng(seed)
    size = max(1, math.prod(c.cards))
    weights = cells(rng.dirichlet(np.full(size, 0.3), n)).reshape(n, *c.cards)
    if isinstance(c, cd.NoisyOr):
        weights = torch.where(c.log_table() > -torch.inf, weights, 0.0)
    c.prepare(child, parents)
    return child, parents, weights


def objective(c, child, parents, weights):
    nats = c.log_factor(child, parents)
    return torch.where(weights > 0, weights * nats, 0.0).sum() + c.penalty()


@learned
def test_an_m_step_ends_where_the_penalised_objective_has_no_slope(kind):
    c = made(kind)
    data = expected(c)
    before = objective(c, *data).item()
    for _ in range(8 if isinstance(c, cd.Program) else 1):
        assert c.maximise_rows(*data) == []
    after = objective(c, *data)
    assert after.item() > before
    loose = 1e-4 if isinstance(c, cd.Program) else 1e-9
    slopes = torch.autograd.grad(after, list(c.parameters()))
    assert max(s.abs().max() for s in slopes if s.numel()) < loose * len(data[0])
    with torch.no_grad():
        shifted(c)
    moved = objective(c, *data)
    assert moved.item() < after.item()
    slopes = torch.autograd.grad(moved, list(c.parameters()))
    assert max(s.abs().max() for s in slopes if s.numel()) > loose * len(data[0])


@learned
def test_a_second_m_step_changes_nothing(kind):
    c = made(kind)
    data = expected(c)
    for _ in range(10 if isinstance(c, cd.Program) else 1):
        c.maximise_rows(*data)
    once = objective(c, *data).item()
    c.maximise_rows(*data)
    assert once - 1e-12 * abs(once) <= objective(c, *data).item() <= once + 1e-7 * abs(once)


@learned
def test_looking_at_data_does_not_change_the_distribution(kind):
    c = made(kind)
    child, parents = rows(c)
    before = c.log_prob(child, parents).detach()
    gaps = parents + 7.0
    gaps[::5] = math.nan
    c.prepare(torch.cat([child[:30] + 3, child[30:] * math.nan]), gaps)
    agree(c.log_prob(child, parents).detach(), before, 1e-11)


def test_table_estimates_are_shares_with_pseudo_counts_and_name_what_is_unseen():
    c = KINDS["table"]()
    counts = cells(np.random.default_rng(0).integers(1, 5, c.cards))
    counts[1, 2] = 0
    assert c.maximise(counts) == [5]
    shares = (counts / counts.sum(-1, keepdim=True))[:1]
    assert torch.allclose(c.natural()["probs"][:1], shares, rtol=1e-14)
    assert c.natural()["probs"][1, 2].tolist() == pytest.approx([1 / 3] * 3)
    c.pseudo.fill_(0.5)
    assert c.maximise(counts) == [5]
    wanted = (counts + 0.5) / (counts + 0.5).sum(-1, keepdim=True)
    assert torch.allclose(c.natural()["probs"], wanted, rtol=1e-14)
    assert c.penalty().item() == pytest.approx(0.5 * wanted.log().sum().item())


def test_a_logistic_regression_finds_scikit_learns_coefficients():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(4)
    x = rng.normal(3, 2, (300, 2))
    y = (x @ [1.0, -0.5] + rng.logistic(size=300) > 1).astype(float) + (rng.random(300) < 0.3)
    c = cd.Softmax(1e-8).bind(ABC, (Real(), Real()))
    c.prepare(cells(y), cells(x))
    c.maximise_rows(cells(y), cells(x), nn.functional.one_hot(cells(y).long(), 3).to(D))
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000).fit(x, y)
    ours = c.natural()["coefficients"].detach().numpy()
    assert np.abs(ours - ours.mean(0) - theirs.coef_ + theirs.coef_.mean(0)).max() < 1e-5
    assert c.n_params == 2 * 3


def test_separable_data_and_levels_never_seen_have_an_optimum():
    c = cd.Softmax().bind(ABC, (Real(),))
    x, y = cells(np.linspace(-1, 1, 20)[:, None]), cells([0] * 10 + [1] * 10)
    c.prepare(y, x)
    c.maximise_rows(y, x, nn.functional.one_hot(y.long(), 3).to(D))
    table = c.log_factor(y, x)
    assert table.isfinite().all()
    assert picked(c, table, y, x).exp().min() > 0.9
    assert table[:, 2].exp().max() < 0.01


def test_counts_find_scikit_learns_regression_and_zeros_stay_possible():
    from sklearn.linear_model import PoissonRegressor

    rng = np.random.default_rng(5)
    x, group = rng.normal(10, 3, (400, 2)), rng.integers(0, 2, 400)
    y = rng.poisson(np.exp(0.1 * x[:, 0] - 0.05 * x[:, 1])) * group
    c = cd.PoissonRegression(1e-9).bind(Count(), (YES, Real(), Real()))
    parents = cells(np.column_stack([group, x]))
    c.prepare(cells(y), parents)
    assert c.maximise_rows(cells(y), parents, nn.functional.one_hot(parents[:, 0].long(), 2).to(D)) == []
    theirs = PoissonRegressor(alpha=0, tol=1e-12, max_iter=5000, solver="newton-cholesky").fit(
        x[group == 1], y[group == 1]
    )
    assert c.natural()["coefficients"][1].tolist() == pytest.approx(theirs.coef_.tolist(), abs=1e-6)
    assert c.natural()["intercept"][1].item() == pytest.approx(theirs.intercept_, abs=1e-5)
    assert 0 < c.mean(parents[group == 0]).max() < 1e-3


def test_a_noisy_or_is_fitted_as_a_bounded_optimiser_fits_it():
    for seed in range(8):
        c = KINDS["noisy-or"]()
        truth = made("noisy-or", seed).log_table().detach().exp().numpy()
        rng = np.random.default_rng(seed)
        counts = np.array([rng.multinomial(rng.integers(0, 8), row) for row in truth.reshape(-1, 2)])
        present = c._present().numpy().astype(float)

        def loss(links, counts=counts, present=present):
            total = np.maximum(present @ links, 1e-300)
            return -(counts[:, 1] * np.log(-np.expm1(-total)) - counts[:, 0] * total).sum()

        found = min(
            (optimize.minimize(loss, np.full(4, s), method="L-BFGS-B", bounds=[(0, 50)] * 4) for s in (0.1, 1.0)),
            key=lambda r: r.fun,
        )
        c.maximise(cells(counts).reshape(c.cards))
        table = c.log_table().detach().reshape(-1, 2)
        ours = -torch.where(cells(counts) > 0, cells(counts) * table, 0.0).sum().item()
        assert ours <= found.fun + 1e-9
        assert ours == pytest.approx(found.fun, abs=1e-4)


def least_squares(x, y):
    design = np.column_stack([np.ones(len(x)), x])
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    return beta, ((y - design @ beta) ** 2).mean()


def test_regressions_are_least_squares_in_each_configuration_even_far_from_zero():
    rng = np.random.default_rng(6)
    group, x = rng.integers(0, 3, 200), 1e6 + rng.normal(0, 1, (200, 2))
    y = -1e6 + (x - 1e6) @ [2.0, -1.0] * (group + 1) + rng.normal(0, 0.3, 200)
    parents, hard = cells(np.column_stack([group, x])), nn.functional.one_hot(torch.tensor(group), 3).to(D)
    by_rows, by_moments = (cd.LinearGaussian().bind(Real(), (ABC, Real(), Real())) for _ in range(2))
    for c in (by_rows, by_moments):
        c.prepare(cells(y), parents)
    assert by_rows.maximise_rows(cells(y), parents, hard) == []
    u = torch.cat(
        [torch.ones(200, 1, dtype=D), torch.cat([parents[:, 1:], cells(y)[:, None]], 1) - by_moments.centre], 1
    )
    second = torch.einsum("nk,ni,nj->kij", hard, u, u)
    assert by_moments.maximise_moments(second, by_moments.centre) == []
    for k in range(3):
        beta, variance = least_squares(x[group == k] - 1e6, y[group == k])
        for c in (by_rows, by_moments):
            assert c.natural()["coefficients"][k].tolist() == pytest.approx(beta[1:].tolist(), abs=1e-7)
            assert c.natural()["scale"][k].item() ** 2 == pytest.approx(variance, rel=1e-6)
    assert by_rows.maximise_rows(cells(y), parents, hard * cells([1, 0, 1])) == [1]


def test_moments_about_any_centre_give_the_same_regression():
    c = made("regression")
    child, parents, _ = expected(c)
    found = []
    for centre in (None, cells([0.5, 2, -1]), c.centre):
        other = copy.deepcopy(c)
        u = torch.cat([parents, child[:, None]], 1) - (0 if centre is None else centre)
        u = torch.cat([torch.ones(len(u), 1, dtype=D), u], 1)
        other.maximise_moments((u.T @ u)[None], centre)
        found.append(torch.cat([v.detach().reshape(-1) for v in other.natural().values()]))
    agree(found[0], found[1], 1e-10)
    agree(found[0], found[2], 1e-10)
    beta, variance = least_squares(parents.numpy(), child.numpy())
    assert found[0].tolist() == pytest.approx([*beta, math.sqrt(variance)], rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_collinear_parents_keep_the_directions_without_data_and_the_fit_is_finite(seed):
    c = made("regression")
    x = np.random.default_rng(seed).normal(0, 1, 50)
    parents, y = cells(np.column_stack([x, x / 3 + 5])), cells(3 * x + 1)
    c.prepare(y, parents)
    apart = c.input_scale * cells([1.0, -1.0])  # of the scaled inputs, which are the same
    before = c.weight.detach() @ apart
    assert before.abs() > 0.1
    assert c.maximise_rows(y, parents, torch.ones(50, dtype=D)) == []
    assert (c.mean(parents) - y).abs().max() < 1e-9
    assert (c.weight.detach() @ apart).item() == pytest.approx(before.item(), abs=1e-9)
    assert c.natural()["scale"].item() ** 2 == pytest.approx(1e-6 * c.data_variance.item(), rel=1e-6)


def test_hidden_variables_start_off_their_symmetry_and_restarts_repeat_by_seed():
    for kind in KINDS:
        first, again, plain = made(kind, 3), made(kind, 3), KINDS[kind]()
        plain.reset()
        for a, b, p in zip(first.parameters(), again.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a, b)
            assert not a.numel() or not torch.equal(a, p)


def test_a_noisy_or_without_leak_says_when_data_contradict_it():
    c = cd.NoisyOr(leak=False).bind(YES, (YES,))
    with pytest.raises(FitError, match="leak=True"):
        c.maximise(cells([[3, 1], [2, 2]]))
    assert c.maximise(cells([[3, 0], [0, 2]])) == []
    assert c.natural()["probs"].tolist() == [1.0]
    assert c.log_table().tolist() == [[0.0, -math.inf], [-math.inf, 0.0]]


@learned
def test_without_data_nothing_is_learned_but_the_prior_and_every_configuration_is_named(kind):
    c = made(kind)
    child, parents, weights = expected(c)
    nats = objective(c, child, parents, 0 * weights).item()
    empty = c.maximise_rows(child, parents, 0 * weights)
    assert empty == list(range(c.configurations))
    assert objective(c, child, parents, 0 * weights).item() >= nats
    assert all(p.isfinite().all() for p in c.parameters())


def test_a_program_learns_its_own_copy_and_undoes_steps_that_its_distribution_refuses():
    module = Rate()
    first = copy.deepcopy(module.state_dict())
    c, other = (cd.Program(module).bind(Count(), (ABC, Real())) for _ in range(2))
    data = expected(c)
    c.maximise_rows(*data)
    for name, value in first.items():
        assert torch.equal(module.state_dict()[name], value)
        assert torch.equal(other.module.state_dict()[name], value.double())
        assert not torch.equal(c.module.state_dict()[name], value.double())

    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, parents):
            return dist.Normal(torch.zeros(parents.shape[:-1], dtype=D), self.scale * (self.scale > 0.9) - 0.5)

    c = cd.Program(Fragile()).bind(Real())
    y, none, one = cells([1e-3, -1e-3]), torch.zeros(2, 0, dtype=D), torch.ones(2, dtype=D)
    before = c.log_prob(y, none).sum().item()
    c.maximise_rows(y, none, one)
    assert c.log_prob(y, none).sum().item() >= before


def test_a_function_and_a_point_have_nothing_to_learn():
    plain = KINDS["program of positives"]()
    child, parents, weights = expected(plain)
    assert plain.maximise_rows(child, parents, weights) == []
    assert plain.n_params == 0
    assert torch.equal(plain.mean(parents), (2 + parents[:, 0]) / (parents[:, 1].square() + 0.5))
    assert torch.equal(plain.variance(parents), plain.cells(parents).variance)
    point = KINDS["real point"]()
    child, parents, weights = expected(point)
    assert point.maximise_rows(child, parents, weights) == point.maximise_moments(weights) == []
    assert point.mean(parents).tolist() == [1.5] * len(child)
    assert point.variance(parents).tolist() == [0.0] * len(child)
    assert KINDS["point"]().maximise(torch.ones(3, 2, 2)) == []
    assert KINDS["point"]().natural()["value"] == 1
