"""Somebody's pair of functions that fail: what was called is told, and the error itself is the cause."""

import numpy as np
import pytest

import probgen as pg
from probgen.errors import DataError, StructureError
from probgen.events import Array

ROWS = np.random.default_rng(0).normal(size=(50, 2))


def wrapped(sample=None, log_prob=lambda x: x.sum(1)):
    return pg.wrap((sample, log_prob), event=Array((2,)), by="mine", kind="exact")


def refusing(x):
    raise DataError("a row that is refused by its owner")


def absent(x):
    raise NotImplementedError


def test_a_log_density_that_fails_is_named_with_the_rows_that_it_was_given():
    with pytest.raises(
        StructureError, match=r"mine failed: its log_prob with rows of shape \(50, 2\) raised Val"
    ) as caught:
        wrapped(log_prob=lambda x: x @ np.ones(3)).log_prob(ROWS)
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.do
    with pytest.raises(DataError, match="refused by its owner"):  # what is raised on purpose goes through
        wrapped(log_prob=refusing).log_prob(ROWS)
    assert "has no density" in wrapped(log_prob=absent).log_prob(ROWS).reason


def test_a_sampler_that_fails_is_named_with_the_number_of_draws():
    with pytest.raises(StructureError, match=r"its sample with n=3 raised ZeroDivisionError") as caught:
        wrapped(lambda n: 1 / 0).sample(3)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(StructureError, match="what its sample gave, as numbers raised ValueError"):
        wrapped(lambda n: "abc").sample(3)
    assert wrapped(lambda n: np.zeros((n, 2))).sample(3).tolist() == [[0.0, 0.0]] * 3


def test_a_model_that_fails_is_left_out_of_a_comparison_with_that_reason():
    models = {"own": pg.Independent(Array((2,))).fit(ROWS, seed=0), "mine": wrapped(log_prob=lambda x: x @ np.ones(3))}
    found = pg.compare(models, ROWS, seed=0, samples=False)
    assert "mine was left out: it could not score: mine failed: its log_prob" in str(found)
    assert [entry.name for entry in found.entries] == ["own"]
