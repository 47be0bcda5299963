"""Sequences of a size that only the right recursion survives."""

import math

import numpy as np
import pytest
import torch

import probgen as pg
from probgen import chains, kernels
from probgen.emissions.diagonal import diagonal_log_prob
from probgen.model import FitReport


def given_model(states, seed=0):
    """A model with drawn parameters, as if it had been fitted."""
    rng = np.random.default_rng(seed)
    model = pg.HMM(states=states, emission=pg.emissions.Normal(1))
    for parameter in model.transitions.parameters():
        parameter.data = torch.as_tensor(rng.normal(0, 1, tuple(parameter.shape)))
    model.emission.loc.data = torch.as_tensor(rng.normal(0, 5, (states, 1)))
    model.report = FitReport((), 0, "imported")
    return model, rng


def in_blocks(model, x, blocks):
    """log p(x), one block after the other, each begun with what the one before ended with."""
    first, moves = (part.detach() for part in model.transitions())
    total, initial = 0.0, first
    for block in np.array_split(x, blocks):
        table = diagonal_log_prob(torch.as_tensor(block)[:, None], model.emission.loc, model.emission.scale()).detach()
        nats, last = chains.advance(chains.Chain(initial, moves, table, torch.tensor([len(block)])))
        total, initial = total + nats.item(), (last[0][:, None] + moves).logsumexp(0)
    return total


@pytest.mark.parametrize("native", [True, False], ids=["kernel", "torch"])
def test_a_long_sequence_is_scored_in_blocks_to_the_same_number(native, monkeypatch):
    if not native:
        monkeypatch.setattr(kernels, "native", None)
    model, rng = given_model(7)
    x = rng.normal(0, 5, 30_000)
    assert float(model.log_prob([x]).nats[0]) == pytest.approx(in_blocks(model, x, 13), rel=1e-12)


@pytest.mark.long
def test_a_million_steps_of_a_hundred_states_say_what_blocks_say():
    model, rng = given_model(100)
    x = rng.normal(0, 5, 1_000_000)
    nats = float(model.log_prob([x]).nats[0])
    assert math.isfinite(nats)
    assert nats == pytest.approx(in_blocks(model, x, 97), rel=1e-12)


def test_cells_that_need_a_gradient_get_theirs():
    model, rng = given_model(3)
    x = torch.tensor(rng.normal(size=(6, 1)), requires_grad=True)
    chain = chains.Chain(
        *(part.detach() for part in model.transitions()),
        chains.Normals(x, model.emission.loc.detach(), model.emission.scale().detach()),
        torch.tensor([4, 2]),
    )
    slope = torch.autograd.grad(chains.log_likelihood(chain).sum(), x)[0]
    step = torch.zeros(6, 1, dtype=torch.float64)
    step[2] = 1e-6
    with torch.no_grad():
        moved = [
            chains.log_likelihood(
                chains.Chain(
                    chain.initial,
                    chain.transition,
                    chains.Normals(x + side * step, chain.potentials.loc, chain.potentials.scale),
                    chain.lengths,
                )
            ).sum()
            for side in (1, -1)
        ]
    assert float(slope[2]) == pytest.approx(float(moved[0] - moved[1]) / 2e-6, rel=1e-6)
