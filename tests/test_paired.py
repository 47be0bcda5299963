"""Comparisons of sequences: steps scored given their past, paired differences, errors that know about time."""

import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen import store
from probgen.errors import ParameterError, ShapeError, StructureError
from probgen.evaluate.compare import Comparison, Entry, compare, fit_suitable, panels
from probgen.evaluate.paired import against_best, error_of_total
from probgen.events import Array, Category, Panel, Ragged, Real, Series
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel

QUAKES = pg.datasets.load("earthquakes")


class Drift(GenerativeModel):
    """Poisson counts whose rate is pulled towards the last count: a step's score needs the step before it."""

    missing_cells = True

    def __init__(self, event, pull: float = 0.5):
        super().__init__(event)
        self.pull = pull
        self.mean = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    @classmethod
    def suits(cls, event):
        return None if isinstance(event, Series) and event.support == "count" else "it takes counts over time"

    @classmethod
    def for_event(cls, event, **options):
        return cls(event, **options)

    @classmethod
    def variants(cls, event):
        return {"Drift(0.2)": {"pull": 0.2}, "Drift(0.6)": {"pull": 0.6}}

    def model(self, x=None, given=None, n=1):
        raise NotImplementedError

    @torch.no_grad()
    def _fit(self, x, given, *, generator):
        self.mean.copy_(x.values.mean())
        return FitReport((0.0, 1.0), 1, "closed form")

    def _log_prob_steps(self, x, given, *, generator):
        last = torch.cat([self.mean[None], x.values[:-1]])
        last[x.starts] = self.mean
        rates = (1 - self.pull) * self.mean + self.pull * last
        return LogProb(Kind.EXACT, dist.Poisson(rates).log_prob(x.values), by="drift")

    def _log_prob(self, x, given, *, generator):
        steps = self._log_prob_steps(x, given, generator=generator).nats
        return LogProb(Kind.EXACT, np.add.reduceat(steps, x.starts.numpy()), by="drift")

    def _sample(self, n, given, *, generator, length: int = 20):
        return Ragged(torch.poisson(self.mean.expand(n * length), generator=generator), torch.full((n,), length))


@pytest.fixture
def offered(monkeypatch):
    """Drift among the families, beside Independent."""
    monkeypatch.setitem(sys.modules, "room_of_drift", SimpleNamespace(Drift=Drift))
    monkeypatch.setattr(store, "FAMILIES", {"Drift": "room_of_drift", "Independent": "probgen.models.baseline"})


@pytest.fixture(scope="module")
def models():
    train, _ = QUAKES.split(0.2)
    return {
        "drift": Drift(QUAKES.event).fit(train, seed=1),
        "independent": pg.Independent(QUAKES.event).fit(train, seed=1),
    }


# --- steps given their past -------------------------------------------------------------------------------------------


def test_held_out_steps_are_scored_given_everything_before_them(models):
    train, held = QUAKES.split(0.2)
    result = compare(models, held, history=train)
    for entry in result.entries:
        whole = models[entry.name].log_prob_steps(QUAKES.x)
        np.testing.assert_array_equal(entry.log_prob.nats, whole.nats[86:])
        assert entry.log_prob.event.keys.tolist() == list(range(86, 107))
        assert entry.log_prob.of == "x_t|x_<t"
    assert result.lengths == (21,)
    forgetful = models["drift"].log_prob_steps(held).nats  # the twin: without a past the first step scores otherwise
    assert (
        abs(forgetful[0] - compare({"drift": models["drift"]}, held, history=train).entries[0].log_prob.nats[0]) > 0.1
    )


def test_several_sequences_go_on_each_from_its_own_history():
    event = Series(support="count")
    x = [np.array([3, 5, 9, 2]), np.array([30, 20, 35]), np.array([1, 1])]
    model = Drift(event).fit(x, seed=1)
    past, held = [part[:-1] for part in x], [part[-1:] for part in x]
    entry = compare({"drift": model}, held, history=past).entries[0]
    whole = model.log_prob_steps(x).nats
    assert entry.log_prob.nats.tolist() == whole[[3, 6, 8]].tolist()
    assert entry.log_prob.event.keys.tolist() == ["0:3", "1:2", "2:1"]


def test_the_past_of_a_panel_is_found_by_its_label():
    event = Panel({"x": Real(), "k": Category(("u", "v"))}, "id")
    frame = pd.DataFrame({"id": list("abcabcabc"), "x": np.arange(9) / 3, "k": list("uvuvuvuvu")})
    model = pg.Independent(event).fit(frame, seed=1)
    past, held = frame[:6].iloc[::-1], frame[6:]
    steps = compare({"m": model}, held, history=past).entries[0].log_prob
    assert steps.event.keys.tolist() == ["a:2", "b:2", "c:2"]
    direct = model.log_prob_steps(pd.concat([past, held]))
    order = [direct.event.keys.tolist().index(key) for key in steps.event.keys]
    assert steps.nats.tolist() == direct.nats[order].tolist()


def test_a_history_that_does_not_fit_is_refused(models):
    train, held = QUAKES.split(0.2)
    with pytest.raises(ShapeError, match="history of 2 sequences"):
        compare(models, held, history=[train[0], train[0]])
    with pytest.raises(ParameterError, match="beside history"):
        compare(models, held, history=train, by={"drift": pg.IWAE()})
    rows = pg.Independent(Array()).fit(np.random.default_rng(0).normal(size=30), seed=1)
    with pytest.raises(StructureError, match="no sequences"):
        compare({"rows": rows}, [1.0], history=[2.0])
    event = Panel({"x": Real()}, "id")
    labelled = pg.Independent(event).fit({"id": [1, 1, 2], "x": [0.5, 1, 2]}, seed=1)
    with pytest.raises(ShapeError, match="same labels"):
        compare({"m": labelled}, {"id": [1, 3], "x": [0.5, 1]}, history={"id": [1, 2], "x": [0.5, 1]})


def test_whole_sequences_are_rows_where_no_history_is_given(models):
    result = compare(models, QUAKES.x)
    assert result.lengths is None
    assert len(result.entries[0].log_prob) == 1


# --- errors in time ---------------------------------------------------------------------------------------------------


def autoregressive(pull, n, runs, seed):
    rng = np.random.default_rng(seed)
    x = np.zeros((runs, n))
    noise = rng.normal(size=(runs, n))
    x[:, 0] = noise[:, 0] / math.sqrt(1 - pull**2)
    for t in range(1, n):
        x[:, t] = pull * x[:, t - 1] + noise[:, t]
    return x


def test_the_error_of_a_total_of_steps_is_its_spread_over_repetitions():
    """Simulated AR(1), whose total over n steps has long-run standard deviation sqrt(n) / (1 - pull). The mean of 300
    estimates has a relative error below 1 %, Bartlett weights take a known 8 % away; independence misses 42 %."""
    x = autoregressive(0.5, 2000, 300, seed=4)
    spread = math.sqrt(2000) / 0.5
    steps, rows = (np.mean([error_of_total(run, lengths) for run in x]) for lengths in ([2000], None))
    assert abs(np.std(x.sum(axis=1)) / spread - 1) < 5 / math.sqrt(2 * 300)
    assert 0.88 < steps / spread < 1.0
    assert rows / spread < 0.62  # the planted twin: the same check refuses errors of independent rows


def test_the_long_run_error_is_the_textbook_sum():
    values = np.random.default_rng(2).normal(size=37).cumsum()
    centred, most = values - values.mean(), int(4 * 0.37 ** (2 / 9))
    direct = sum(
        (1 - abs(i - j) / (most + 1)) * centred[i] * centred[j]
        for i in range(37) for j in range(37) if abs(i - j) <= most
    )  # fmt: skip
    assert most == 3
    assert error_of_total(values, [37]) == pytest.approx(math.sqrt(direct * 37 / 36), rel=1e-12)


def test_steps_of_two_runs_are_not_multiplied():
    values = np.array([5.0, 4.0, 3.0, -3.0, -4.0, -5.0])
    assert error_of_total(values, [1] * 6) == pytest.approx(error_of_total(values), rel=1e-12)
    assert error_of_total(values, [6]) > 1.1 * error_of_total(values)
    assert error_of_total(values) == pytest.approx(values.std(ddof=1) * math.sqrt(6), rel=1e-12)


@pytest.mark.parametrize("values", [[1.0], [1.0, -math.inf], [1.0, math.inf]])
def test_where_there_is_no_spread_there_is_no_error(values):
    assert math.isnan(error_of_total(np.array(values), [len(values)]))


# --- differences ------------------------------------------------------------------------------------------------------


def answer(nats, kind=Kind.EXACT, measure="counting"):
    return LogProb(kind, np.asarray(nats, dtype=np.float64), by="test", measure=measure)


def ranked(**answers):
    order = sorted(answers.items(), key=lambda item: (item[1].measure, -item[1].mean().value))
    return {name: against_best(name, lp, order, None) for name, lp in answers.items()}


def test_a_difference_is_the_total_over_the_rows_with_its_paired_error():
    a, b = np.random.default_rng(1).normal(size=(2, 50))
    b -= 3 + 0.1 * a
    found = ranked(a=answer(a), b=answer(b))
    assert found["a"] is None
    assert found["b"].against == "a"
    assert found["b"].total == pytest.approx((b - a).sum())
    assert found["b"].error == pytest.approx((b - a).std(ddof=1) * math.sqrt(50))
    assert found["b"].kind is Kind.EXACT


def test_measures_are_never_mixed():
    found = ranked(mass=answer([-1.0, -2]), density=answer([5.0, 6], measure="lebesgue"))
    assert found == {"mass": None, "density": None}


def test_a_bound_is_compared_on_one_side_and_two_bounds_not_at_all():
    found = ranked(
        top=answer([-1.0, -1], Kind.LOWER), middle=answer([-2.0, -2]), low=answer([-3.0, -3], Kind.LOWER),
        last=answer([-4.0, -4]),
    )  # fmt: skip
    assert found["top"] is None
    assert (found["middle"].against, found["middle"].kind) == ("top", Kind.UPPER)
    assert (found["low"].against, found["low"].kind, found["low"].total) == ("middle", Kind.LOWER, -2)
    assert found["last"].against == "top"
    bounds = {"top": Kind.LOWER, "middle": Kind.EXACT, "low": Kind.LOWER}
    entries = [Entry(name, answer([-i - 1.0] * 2, kind)) for i, (name, kind) in enumerate(bounds.items())]
    notes = "\n".join(Comparison(tuple(entries)).notes())
    assert "sequence" not in notes
    assert "low: vs best is against middle" in notes
    assert "low: the true difference is at least this" in notes
    assert "middle: the true difference is at most this" in notes


def test_rows_that_are_impossible_under_both_models_have_no_difference():
    assert ranked(a=answer([-1.0, -math.inf]), b=answer([-2.0, -math.inf])) == {"a": None, "b": None}


def notes_of(n, gap):
    a = np.random.default_rng(0).normal(size=n)
    return "\n".join(Comparison((Entry("a", answer(a)), Entry("b", answer(a - gap / n)))).notes())


@pytest.mark.parametrize(
    ("n", "gap", "said"),
    [(100, 4.1, False), (100, 3.9, True), (99, 50.0, True), (5000, 3.9, True), (99, math.inf, False)],
)
def test_few_rows_or_few_nats_are_not_distinguishable(n, gap, said):
    few, close = (text in notes_of(n, gap) for text in ("b: not surely worse than a", "b: not distinguishable from a"))
    assert (few, close) == (said and n < 100, said and n >= 100)


@pytest.mark.parametrize(("spread", "said"), [(0.4, False), (0.6, True)])
def test_a_difference_within_two_of_its_errors_is_not_distinguishable(spread, said):
    """400 rows, 18 nats apart in all; the error of that total is 20 spreads, and a hair more."""
    a, noise = np.zeros(400), spread * np.tile([1.0, -1.0], 200)
    notes = Comparison((Entry("a", answer(a)), Entry("b", answer(a - 18 / 400 + noise)))).notes()
    assert any("b: not distinguishable from a" in note for note in notes) is said


def test_the_table_shows_differences_and_says_that_rows_are_steps(models):
    train, held = QUAKES.split(0.2)
    result = compare(models, held, history=train)
    rows = {row["family"]: row for row in result.frame().to_pylist()}
    best, other = (entry.log_prob.nats for entry in result.entries)
    assert rows["drift"]["vs best"] is None
    assert rows["independent"]["vs best"] == pytest.approx((other - best).sum())
    assert rows["independent"]["paired ±"] == pytest.approx(error_of_total(other - best, [21]))
    assert rows["independent"]["against"] == "drift"
    assert rows["drift"]["between rows ±"] == pytest.approx(error_of_total(best, [21]) / 21)
    text = str(result)
    assert "A row is one step" in text
    assert "independent: not surely worse than drift (21 rows, fewer than 100: too few" in text
    assert "whole sequence" not in text
    whole = str(compare(models, QUAKES.x))
    assert "A row is one step" not in whole
    assert "A row is one whole sequence" in whole


def test_the_table_fits_120_columns():
    noisy = LogProb(
        Kind.LOWER, np.full(500, -1234.5678), by="IWAE(samples=500..8000)", stderr=np.full(500, 0.1), measure="counting"
    )
    entries = (Entry("GaussianCopula", answer(np.full(500, -1230.5)), 123.4), Entry("VAE", noisy, 123.4))
    lines = str(Comparison(entries)).splitlines()
    assert max(map(len, lines[:4])) <= 120
    assert [len(re.split(r"\s{2,}", line)) for line in lines[2:4]] == [10, 10]


# --- variants ---------------------------------------------------------------------------------------------------------


def test_a_family_may_offer_several_models_of_itself(offered):
    train, _ = QUAKES.split(0.2)
    began = []
    fitted, skipped = fit_suitable(train, QUAKES.event, seed=1, on_start=lambda name, share: began.append(name))
    assert began == ["Drift(0.2)", "Drift(0.6)", "Independent"]
    assert {name: getattr(m, "pull", None) for name, m in fitted.items()} == {
        "Drift(0.2)": 0.2, "Drift(0.6)": 0.6, "Independent": None,
    }  # fmt: skip
    assert skipped == {}


def test_a_variant_that_fails_is_left_out_by_its_own_name(offered, monkeypatch):
    fit = Drift._fit

    def failing(self, x, given, *, generator):
        if self.pull == 0.2:
            raise ArithmeticError("too slow a pull")
        return fit(self, x, given, generator=generator)

    monkeypatch.setattr(Drift, "_fit", failing)
    fitted, skipped = fit_suitable(QUAKES.x, QUAKES.event, families=["drift"], seed=1)
    assert list(fitted) == ["Drift(0.6)"]
    assert "too slow a pull" in skipped["Drift(0.2)"]


def test_a_family_that_does_not_suit_offers_nothing(offered):
    fitted, skipped = fit_suitable([[0.5, 1.0, 2.0]], Series(), seed=1)
    assert list(fitted) == ["Independent"]
    assert list(skipped) == ["Drift"]


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_series_are_drawn_beside_samples_as_long_as_they_are(models):
    shown = panels(models, QUAKES.x, QUAKES.event, seed=1)
    assert {title: [len(x) for x in series] for title, series in shown.items()} == {
        "data": [107], "drift": [107], "independent": [107],
    }  # fmt: skip
    many = [np.arange(n) for n in range(1, 12)]
    model = pg.Independent(Series(support="count")).fit(many, seed=1)
    shown = panels({"m": model}, many, model.event, seed=1)
    assert [len(x) for x in shown["data"]] == [1, 2, 3, 4, 5, 6]
    assert [len(x) for x in shown["m"]] == [6] * 6
