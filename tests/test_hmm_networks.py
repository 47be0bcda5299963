"""Networks of inputs as emissions: one likelihood in Pyro and here, and learning through it."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated import D, cells, fitted, oracle
from pyro.infer import TraceEnum_ELBO
from scipy import stats

import probgen as pg
from probgen import emissions as em
from probgen import events as ev
from probgen import transitions as tr


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Network(torch.nn.Module):
    """A small net from inputs to the cells' law in each state."""

    def __init__(self, law, states=2, width=1):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.law, self.states, self.width = law, states, width
        self.hidden, self.out = (
            torch.nn.Parameter(0.5 * torch.randn(shape, generator=draw, dtype=D))
            for shape in ((2, 4), (4, states * width))
        )
        self.base = torch.nn.Parameter(torch.linspace(-1, 2, states, dtype=D))

    def forward(self, inputs):
        loc = ((inputs @ self.hidden).tanh() @ self.out).reshape(-1, self.states, self.width) + self.base[:, None]
        return self.law(loc)


NETS = {
    "cells": (2, lambda loc: dist.Normal(loc, 1.0).to_event(1)),
    "joint": (2, lambda loc: dist.MultivariateNormal(loc, torch.eye(2, dtype=D))),
    "one number": (1, lambda loc: dist.Normal(loc[..., 0], 1.0)),
    "a count": (1, lambda loc: dist.Poisson(loc[..., 0].exp())),
}


def net_scene(kind, transitions=None):
    width, law = NETS[kind]
    emission = em.Program(Network(law, 2, width), width=width, covariates=2)
    model = fitted(pg.HMM(None, 2, emission, transitions, context=ev.Series((2,), missing=False)))
    rng = np.random.default_rng(0)
    x = [rng.poisson(2.0, (n, width)).astype(float) for n in (6, 1, 3)]
    x[0][1] = np.nan
    u = [rng.normal(size=(n, 2)) for n in (6, 1, 3)]
    return model, [part if width > 1 else part[:, 0] for part in x], u


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("transitions", [None, tr.InputDriven(2), tr.Durations(phases=2)], ids=str)
def test_a_network_of_inputs_enumerated_is_the_likelihood(kind, transitions):
    """Under Pyro's own checks, and with particles side by side."""
    model, x, u = net_scene(kind, transitions)
    wanted = model.log_prob(x, given=u).nats
    checked, inputs = model.event.check(x).x, model.context.check(u).x
    for side_by_side in ({}, {"num_particles": 2, "vectorize_particles": True}):
        with pyro.validation_enabled(True):
            elbo = TraceEnum_ELBO(max_plate_nesting=1 + len(side_by_side) // 2, **side_by_side)
            loss = elbo.loss(model.model, lambda *a: None, checked, inputs)
        assert -loss == pytest.approx(wanted.sum(), rel=1e-10)
    late = [np.roll(part, 1, 0) for part in u]  # each step given the inputs of another
    assert abs(model.log_prob(x, given=late).nats[0] - wanted[0]) > 1e-3


def test_a_network_of_inputs_is_all_paths():
    model, x, u = net_scene("one number")
    wanted = model.log_prob(x, given=u).nats
    loc = [model.emission.build(cells(part)).mean.detach().numpy() for part in u]
    for nats, part, mean in zip(wanted, x, loc, strict=True):
        table = np.nan_to_num(stats.norm.logpdf(part[:, None], mean))
        assert nats == pytest.approx(oracle(model, table).nats, rel=1e-12)


@pytest.mark.parametrize("method", ["em", "gradient"])
@pytest.mark.parametrize("kind", ["cells", "a count"])
def test_a_network_of_inputs_is_learned(kind, method):
    model, x, u = net_scene(kind)
    before = model.log_prob(x, given=u).nats.sum()
    model.fit(x, given=u, start="current", method=method, max_iter=8)
    climbed = np.array(model.report.objective)
    assert climbed[0] * 10 == pytest.approx(before, rel=1e-9)
    assert (np.diff(climbed) >= -1e-9).all()
    assert climbed[-1] > climbed[0] + 0.05
    assert climbed[-1] * 10 == pytest.approx(model.log_prob(x, given=u).nats.sum(), rel=1e-9)
    drawn = model.sample(2, given=[u[0]], seed=0)
    assert [len(part) for part in drawn] == [6, 6]
    assert np.isfinite(model.log_prob(drawn, given=[u[0], u[0]]).nats).all()
