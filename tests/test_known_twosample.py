"""Neighbourhood measures and KID beside frozen figures of others: tests/benchmarks/bench_twosample.py freeze."""

import json
from pathlib import Path

import numpy as np
import pytest

from probgen.evaluate.twosample import two_sample

KNOWN = Path(__file__).parent / "known"
MEASURES = ("precision", "recall", "density", "coverage")


def cases(name):
    return json.loads((KNOWN / f"{name}.json").read_text())["cases"]


def rows(n, m, d, shift, seed):
    """As the freezing script draws them."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    y[:, -1] = 0.6 * y[:, 0] + 0.8 * y[:, -1]
    return x, y + shift


def measured(case, tests, features=lambda a: a, **options):
    x, y = rows(**{name: case[name] for name in ("n", "m", "d", "shift", "seed")})
    return two_sample(x, y, features=features, tests=list(tests), floor=False, permutations=19, seed=0, **options)


def label(case):
    return f"{case['n']}x{case['m']}x{case['d']}"


@pytest.mark.parametrize("case", cases("prdc"), ids=label)
def test_neighbourhood_measures_are_those_of_the_prdc_package(case):
    found = measured(case, MEASURES, neighbours=case["k"])
    for name in MEASURES:
        assert found[name].value == pytest.approx(case["expected"][name], abs=1e-12), name


def test_another_number_of_neighbours_gives_other_figures():
    case = cases("prdc")[1]
    found = measured(case, MEASURES, neighbours=case["k"] + 1)
    assert any(abs(found[name].value - case["expected"][name]) > 1e-3 for name in MEASURES)


@pytest.mark.parametrize("case", cases("kid"), ids=label)
def test_kid_is_the_one_that_was_found_pair_by_pair(case):
    assert measured(case, ["kid"])["kid"].value == pytest.approx(case["expected"], rel=1e-9, abs=1e-12)


def test_kid_of_features_on_another_scale_is_another_number():
    case = cases("kid")[1]
    found = measured(case, ["kid"], features=lambda a: 1.01 * a)["kid"].value
    assert found != pytest.approx(case["expected"], rel=1e-3)
