"""What hidden Markov models refuse, and odd data that they take."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from enumerated import (
    counts_model,
    steps_of_two,
    symbols_model,
)

import probgen as pg
from probgen import emissions as em
from probgen import events as ev
from probgen import transitions as tr
from probgen.errors import (
    DataError,
    NotFittedError,
    ParameterError,
    ProbgenError,
    ShapeError,
    StructureError,
    SupportError,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are slower on two threads, much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain():
    return pg.HMM(states=2, emission=em.Normal()).fit(steps_of_two()[1], seed=0, restarts=1, max_iter=5)


X = np.arange(6.0)


@pytest.mark.parametrize(
    "data",
    [(X, [-1, 7]), (X, [0, 6]), (X, [2, 2]), (X, [3.0, 3.0]), [], np.array([]), [X, np.array([])], None, 3.0, "abc",
     [np.array([1.0, np.inf])], [np.array(["a", "b"])], np.zeros((2, 3, 2)), [np.zeros((4, 2))], [X, None],
     pd.DataFrame({"x": X})],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_data_that_are_no_sequences_are_refused(plain, data):
    for ask in (plain.log_prob, plain.decode, plain.posterior, plain.log_prob_steps, plain.forecast):
        with pytest.raises(DataError):
            ask(data)
    with pytest.raises(DataError):
        pg.HMM(states=2, emission=em.Normal()).fit(data)


@pytest.mark.parametrize("value", [3, -1, 0.5, 1e300])
def test_symbols_that_were_never_declared_are_refused(value):
    with pytest.raises(SupportError, match="row 0, step 1"):
        symbols_model().log_prob([np.array([0.0, value])])


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.sample(-3), lambda m: m.sample(0), lambda m: m.sample(1.5), lambda m: m.sample(2, length=0),
        lambda m: m.sample(2, length=2.5), lambda m: m.sample(2, steps=3), lambda m: m.sample_paths([X], -3),
        lambda m: m.sample_paths([X], 0), lambda m: m.sample_paths([X], True), lambda m: m.sample_paths([X], seed=1.5),
        lambda m: m.sample_paths([X], seed="a"), lambda m: m.sample_paths([X], seed=-1),
        lambda m: m.forecast([X], 0), lambda m: m.forecast([X], -1), lambda m: m.forecast([X], 1.5),
        lambda m: m.forecast([X], future=X), lambda m: m.forecast([X]).quantile(0.0),
        lambda m: m.forecast([X]).quantile(1.0), lambda m: m.forecast([X]).quantile(math.nan),
        lambda m: m.forecast([X]).quantile("a"), lambda m: m.forecast([X]).quantile([0.1, 0.9]),
        lambda m: m.forecast([X]).sample(0), lambda m: m.forecast([X]).sample(seed=1.5),
        lambda m: m.decode([X], "map"), lambda m: m.log_prob([X], given=[X]), lambda m: m.fit([X], method="nutz"),
        lambda m: m.fit([X], start="here"), lambda m: m.fit([X], restarts=0), lambda m: m.fit([X], max_iter=0),
        lambda m: m.fit([X], tol=-1.0), lambda m: m.fit([X], tol=math.nan), lambda m: m.fit([X], tol="a"),
        lambda m: m.fit([X], restart=3), lambda m: m.fit([X], max_iter=2.5),
    ],
)  # fmt: skip
def test_questions_that_make_no_sense_are_refused(plain, ask):
    with pytest.raises((ParameterError, StructureError)):
        ask(copy.deepcopy(plain))


def test_futures_of_another_shape_are_refused(plain):
    f = plain.forecast([X, X], 3)
    for x in ([X[:3]], [X[:3], X[:2]], [X[:3]] * 3):
        with pytest.raises(ShapeError):
            f.log_prob(x)


@pytest.mark.parametrize(
    "build",
    [
        lambda: pg.HMM(), lambda: pg.HMM(3), lambda: pg.HMM(states=0, emission=em.Normal()),
        lambda: pg.HMM(states=2.0, emission=em.Normal()), lambda: pg.HMM(states=True, emission=em.Normal()),
        lambda: pg.HMM(ev.Series((3,)), emission=em.Normal(2)), lambda: pg.HMM(ev.Series(), emission="normal"),
        lambda: pg.HMM(states=2, emission=em.Normal(), tie=(0, 0, 0)),
        lambda: pg.HMM(states=2, emission=em.Normal(), tie=(0, 2)),
        lambda: pg.HMM(states=2, emission=em.Normal(), tie=(0, -1)),
        lambda: pg.HMM(states=2, emission=em.Normal(), tie="01"), lambda: pg.HMM(states=2, emission=em.Normal(), tie=5),
        lambda: pg.HMM(states=2, emission=em.Normal(), transitions="free"),
        lambda: pg.HMM(states=2, emission=em.Normal(), transitions=tr.Markov),
        lambda: pg.HMM(states=2, emission=em.Normal(), transitions=tr.Markov((0.5, 0.6))),
        lambda: pg.HMM(states=2, emission=em.Normal(), transitions=tr.Markov((-0.5, 1.5))),
        lambda: pg.HMM(states=2, emission=em.Normal(), transitions=tr.Markov(allowed=tr.cyclic(3))),
        lambda: pg.HMM(states=3, emission=em.Normal(), transitions=tr.Factorial((2, 2))),
        lambda: pg.HMM(states=1, emission=em.Normal(), transitions=tr.Factorial((2, 2))),
        lambda: pg.HMM(states=1, emission=em.Normal(), transitions=tr.Markov((0.2, 0.8))),
        lambda: pg.HMM(states=1, emission=em.Normal(), transitions=tr.Markov((0.5,))),
        lambda: pg.HMM(states=1, emission=em.Normal(), transitions=tr.Markov(allowed=tr.cyclic(3))),
        lambda: pg.HMM(states=2, emission=em.Normal(), transitions=tr.InputDriven(2)),
        lambda: pg.HMM(states=2, emission=em.Normal(), context=ev.Series((2,), missing=False)),
        lambda: pg.HMM(states=2, emission=em.Normal(), transitions=tr.InputDriven(2), context=ev.Series((2,))),
        lambda: pg.HMM(ev.Table({"a": ev.Real()}), 2),
    ],
)  # fmt: skip
def test_models_whose_parts_do_not_fit_are_refused(build):
    with pytest.raises((ParameterError, StructureError)):
        build()


@pytest.mark.parametrize(
    ("event", "emission"),
    [(ev.Series(), em.Poisson()), (ev.Series(), em.Categorical(3)), (ev.Series(), em.LogNormal()),
     (ev.Series(support="count"), em.Normal()), (ev.Series(levels=5), em.Categorical(3)),
     (ev.Series(levels=3), em.Normal())],
    ids=repr,
)  # fmt: skip
def test_an_emission_of_another_support_than_the_event_is_refused(event, emission):
    """A Poisson mass of 1.5, a density of counts: numbers that mean nothing."""
    with pytest.raises(StructureError):
        pg.HMM(event, 2, emission)


def test_before_a_fit_there_is_nothing_to_ask():
    m = pg.HMM(states=2, emission=em.Normal())
    for ask in (m.log_prob, m.decode, m.posterior, m.filter, m.predict, m.sample_paths, m.forecast, m.standard_errors):
        with pytest.raises(NotFittedError):
            ask([X])
    for ask in (m.aic, m.bic):
        with pytest.raises(NotFittedError):
            ask()


@pytest.mark.parametrize("where", ["emission.loc", "transitions.logits", "transitions.initial_logits"])
def test_parameters_that_are_no_numbers_never_give_one(plain, where):
    m = copy.deepcopy(plain)
    m.get_parameter(where).data[0] = math.nan
    for ask in (m.log_prob, m.decode, m.posterior, m.filter, m.forecast, lambda x: m.sample(2)):
        with pytest.raises(ProbgenError):
            ask([X])


def test_sequences_of_a_third_column_are_refused():
    with pytest.raises(ShapeError):
        counts_model().log_prob([np.zeros((4, 3))])


@pytest.mark.filterwarnings("ignore::probgen.model.TiesWarning")
def test_odd_but_honest_data_are_learned():
    """One step, constant values, a column that was never seen."""
    for x in ([np.array([1.0])], [np.ones(10)], [np.array([1.0]), np.array([2.0, 2.5])]):
        m = pg.HMM(states=2, emission=em.Normal()).fit(x, seed=0, restarts=1)
        assert np.isfinite(m.log_prob(x).nats).all()
    x = np.c_[steps_of_two()[1], np.full(180, np.nan)]
    m = pg.HMM(states=2, emission=em.Normal(2)).fit([x], seed=0, restarts=1)
    one = pg.HMM(states=2, emission=em.Normal()).fit(x[:, 0], seed=0, restarts=1)
    assert m.log_prob([x]).nats[0].item() == pytest.approx(one.log_prob(x[:, 0]).nats[0].item(), rel=1e-4)
