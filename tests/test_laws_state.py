"""Laws that every family obeys (see laws.py): the same seed, the same answer, and no verb leaves a trace."""

import copy
import random
import warnings

import numpy as np
import pyro
import torch
from laws import (
    briefly_fitted,
    draws,
    every,
    few,
    numbers,
    unfitted,
)
from pyro import poutine

from probgen.estimate import IWAE


@every("seeds")
def test_the_same_seed_gives_the_same_answer(family, event):
    model, twin, x = briefly_fitted(family, event), briefly_fitted(family, event), few(event)
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    assert draws(model, 9, seed=1) == draws(twin, 9, seed=1)
    assert draws(model, 9, seed=1) != draws(model, 9, seed=2)
    np.testing.assert_array_equal(numbers(model.log_prob(x, seed=1)), numbers(twin.log_prob(x, seed=1)))


@every("deepcopy")
def test_a_deep_copy_works_after_every_verb(family, event):
    fresh = unfitted(family, event)
    model = copy.deepcopy(briefly_fitted(family, event, copy.deepcopy(fresh)))
    draws(model, 2)
    model.log_prob(few(event))
    assert repr(copy.deepcopy(model)) == repr(fresh)


def process_state():
    """What a library must leave as it was."""
    return (
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002
        random.getstate(),
        len(pyro.get_param_store()),
        torch.distributions.Distribution._validate_args,
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        tuple(map(str, warnings.filters)),
        len(poutine.runtime._PYRO_STACK),
    )


@every("global state")
def test_no_verb_touches_global_state(family, event):
    x, before = few(event), process_state()
    model = briefly_fitted(family, event)
    draws(model, 3)
    model.log_prob(x)
    model.log_prob(x, by=IWAE(10))
    assert process_state() == before
