"""Hidden semi-Markov models: every segmentation weighed, and the best one of long sequences."""

import numpy as np
import pytest
import torch
from enumerated import (
    cells,
    counts_model,
    counts_table,
    segments,
)

from probgen import transitions as tr
from probgen.transitions import visits as visit_room


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "transitions", [tr.Durations(phases=1), tr.Durations(phases=3), tr.Durations("categorical", longest=4)]
)
def test_explicit_durations_are_those_of_all_segmentations(transitions):
    model = counts_model(transitions, seed=2)
    x = [np.random.default_rng(i).poisson(4.0, (n, 2)).astype(float) for i, n in enumerate((8, 1, 5))]
    x[0][3, 1] = np.nan
    found = model.posterior(x, pairs=True)
    for i, part in enumerate(x):
        every = segments(model, counts_table(model, part))
        assert model.log_prob(x).nats[i] == pytest.approx(every.nats, rel=1e-12)
        np.testing.assert_allclose(found.marginals[i], every.marginals(), atol=1e-12)
        np.testing.assert_allclose(found.pairs[i], every.pairs(), atol=1e-12)
        np.testing.assert_array_equal(model.decode(x, "marginal")[i], every.marginals().argmax(1))
        np.testing.assert_allclose(model.filter(x)[i][-1], every.marginals()[-1], atol=1e-12)


@pytest.mark.parametrize(
    ("transitions", "seed"), [(tr.Durations("categorical", longest=4), 34), (tr.Durations(phases=3), 75)], ids=str
)
def test_decoding_with_durations_finds_the_best_path(transitions, seed):
    model = counts_model(transitions, seed)
    if "leaving" in model.transitions.natural():
        model.transitions.duration.data -= 0.5
    x = np.random.default_rng(seed).poisson(4.0, (6 + (seed == 75), 2)).astype(float)
    np.testing.assert_array_equal(model.decode([x])[0], segments(model, counts_table(model, x)).best)


def by_ages(first, moves, law, beyond, table):
    """Viterbi over (state, age): every age a visit can have, none left out."""
    most, states = table.shape
    with np.errstate(invalid="ignore"):
        ending = np.nan_to_num(law - beyond, nan=-np.inf, neginf=-np.inf)
        lasting = np.nan_to_num(np.diff(beyond, axis=1), nan=-np.inf, neginf=-np.inf)
    value = np.full((states, most), -np.inf)
    value[:, 0] = first + table[0]
    arrived, left_at = np.zeros((most, states), int), np.zeros((most, states), int)
    for t in range(1, most):
        leaving = value + ending
        left_at[t] = leaving.argmax(1)
        through = leaving.max(1)[:, None] + moves
        arrived[t] = through.argmax(0)
        value = np.c_[through.max(0), value[:, :-1] + lasting] + table[t][:, None]
    state, age = np.unravel_index(value.argmax(), value.shape)
    path, t = np.empty(most, int), most - 1
    while True:
        path[t - age : t + 1] = state
        t -= age
        if not t:
            return path, value.max()
        state, age = arrived[t, state], left_at[t, arrived[t, state]]
        t -= 1


def visits_scene(seed, phases, most=120):
    """What ``best_visits`` takes, for random parameters and potentials."""
    rng = np.random.default_rng(seed)
    t = tr.Durations(phases=phases, states=3)
    for p in t.parameters():
        p.data = cells(rng.normal(size=p.shape))
    t.duration.data -= rng.uniform(-1, 3)
    given = [part.detach().numpy() for part in t.visits(most)]
    return *given, rng.normal(size=(most, 3)) * rng.uniform(0.3, 6)


@pytest.mark.parametrize(("seed", "phases"), [(6, 5), (15, 8), (19, 6), (41, 6), (73, 7)])
def test_decoding_long_visits_drops_no_entry_that_could_win(seed, phases, monkeypatch):
    given = visits_scene(seed, phases)
    path, nats = by_ages(*given)
    *law, table = given
    for many in (visit_room._MANY, 4):
        monkeypatch.setattr(visit_room, "_MANY", many)
        found = visit_room.best_visits(*law, np.r_[table, table[:1], table], np.array([120, 1, 120]))
        np.testing.assert_array_equal(found[0][:120], path)
        np.testing.assert_array_equal(found[0][121:], path)
        assert found[1][[0, 2]] == pytest.approx(nats, rel=1e-12)
    after = visit_room._best_after
    monkeypatch.setattr(visit_room, "_best_after", lambda values: after(values) + 30.0)  # drops some that are ahead
    assert (visit_room.best_visits(*law, table, np.array([120]))[0] != path).any()


def test_decoding_long_visits_keeps_few_entries():
    """What makes sequences of 100,000 steps possible."""
    *law, table = visits_scene(15, 3, 4000)
    kept = []

    class Counted(visit_room._Way):
        def _beaten(self, left):
            kept.append(left.shape[2])
            return super()._beaten(left)

    way = Counted(*law, table[None], np.array([4000]))
    way.forward()
    assert max(kept) < 200
    assert way.nats[0] == pytest.approx(by_ages(*law, table)[1], rel=1e-12)
