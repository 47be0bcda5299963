"""What a network is told: rows that lack columns, single values, conditions, and in which form its answers come."""

import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from probgen import LikelihoodWeighting, load, save
from probgen.errors import DataError, Incomparable, ParameterError, ShapeError, StructureError, SupportError
from probgen.events import Category, Count, Real, Table
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.bayesnet.likelihood import PosteriorWeighting

nan = math.nan
TABLES = {
    "ill": {"None": 0.3, "Mild": 0.7},
    "rash": ("ill", {"None": {"x": 0.5, "y": 0.5}, "Mild": {"x": 0.1, "y": 0.9}}),
    "cough": ("ill", {"None": {0: 0.8, 1: 0.2}, "Mild": {0: 0.4, 1: 0.6}}),
}
FRAMES = {
    "pandas": pd.DataFrame, "polars": pl.DataFrame, "lazy": lambda d: pl.DataFrame(d).lazy(), "arrow": pa.table,
    "dict": dict, "dicts": lambda d: pl.DataFrame(d).to_dicts(),
}  # fmt: skip


@pytest.fixture(scope="module")
def net():
    return BayesianNetwork.from_tables(TABLES)


@pytest.fixture(scope="module")
def mixed():
    """A category, a real and a category below it."""
    event = Table({"g": Category((0, 1)), "s": Real(), "d": Category(("lo", "hi"))})
    rng = np.random.default_rng(3)
    g = rng.integers(0, 2, 200)
    s = g + rng.normal(size=200)
    d = np.where(s + rng.normal(size=200) > 0.5, "hi", "lo")
    return BayesianNetwork(event, [("g", "s"), ("s", "d")]).fit(pd.DataFrame({"g": g, "s": s, "d": d}), seed=0)


# Columns that are lacking


@pytest.mark.parametrize("form", FRAMES)
def test_a_lacking_column_is_missing_in_every_row(net, form):
    cells = {"rash": ["x", "y", None], "ill": ["Mild", None, None]}
    part = net.log_prob(FRAMES[form](cells))
    np.testing.assert_allclose(part.nats, np.log([0.07, 0.3 * 0.5 + 0.7 * 0.9, 1.0]), atol=1e-14)
    whole = net.log_prob(pd.DataFrame({**cells, "cough": [None, None, None]}))
    np.testing.assert_array_equal((part - whole).nats, 0)  # of the same rows, by their fingerprints
    assert part.measure == whole.measure == net.event.measure


def test_a_file_may_lack_columns(net, tmp_path):
    pd.DataFrame({"rash": ["x", "y"], "cough": [0, None]}).to_csv(tmp_path / "rows.csv", index=False)
    wanted = [np.log(0.3 * 0.5 * 0.8 + 0.7 * 0.1 * 0.4), np.log(0.3 * 0.5 + 0.7 * 0.9)]
    np.testing.assert_allclose(net.log_prob(tmp_path / "rows.csv").nats, wanted)


def test_a_dict_of_single_values_is_one_row(net):
    np.testing.assert_allclose(net.log_prob({"rash": "x", "ill": "Mild"}).nats, np.log([0.07]))
    np.testing.assert_allclose(net.log_prob({"ill": "Mild", "rash": ["x", "y"]}).nats, np.log([0.07, 0.63]))


@pytest.mark.parametrize("rows", [{"rush": ["x"]}, {"ill": ["Mild"], "Rash": ["x"]}, {"ill": ["Mild"], "other": [1]}])
def test_unknown_columns_are_refused_before_what_is_lacking_is_filled(net, rows):
    with pytest.raises(ShapeError, match="besides") as caught:
        net.log_prob(rows)
    assert ("Perhaps" in str(caught.value)) == ("other" not in rows)


@pytest.mark.parametrize("rows", [{}, pd.DataFrame(), {"ill": []}])
def test_rows_without_any_column_or_any_row_are_refused(net, rows):
    for ask in (net.log_prob, net.marginals, net.mpe):
        with pytest.raises(DataError, match=r"at least one"):
            ask(rows)


def test_fit_wants_every_column_and_takes_one_of_gaps_as_hidden(net):
    fresh = BayesianNetwork(net.event, net.edges)
    with pytest.raises(ShapeError, match=r"lacks \['cough'\].*None"):
        fresh.fit({"ill": ["Mild", "None"], "rash": ["x", "y"]})
    fresh.fit({"ill": ["Mild", "None"], "rash": ["x", "y"], "cough": [None, None]}, seed=0)
    assert any("'cough'; the data do not determine" in note for note in fresh.report.notes)


def test_an_event_that_forbids_gaps_forbids_lacking_columns_too(net):
    strict = BayesianNetwork(Table(net.event.columns, missing=False), net.edges).imported()
    with pytest.raises(ShapeError, match="lacks"):
        strict.log_prob({"ill": ["Mild"], "rash": ["x"]})
    assert strict.marginals({"ill": ["Mild"]})["rash"].shape == (1, 2)


# Single values and conditions


@pytest.mark.parametrize("value", [1.0, np.float64(1), np.array(1.0), torch.tensor(1.0), [1.0]], ids=repr)
def test_a_single_value_comes_as_a_number_or_an_array_without_dimensions(mixed, value):
    assert mixed.mpe({"s": value})["s"].tolist() == [1.0]
    assert mixed.marginals({"s": value})["s"][0].tolist() == [1.0]
    drawn = mixed.sample(3, given={"s": value}, seed=0)
    assert np.asarray(drawn["s"]).tolist() == [1.0] * 3


@pytest.mark.parametrize("given", ["a", "", {}, [], 3, ["a"], pd.Series({"g": 1})], ids=str)
def test_given_that_is_no_table_is_refused_in_one_line(mixed, given):
    with pytest.raises(ParameterError, match="cells by column name") as caught:
        mixed.sample(2, given=given)
    assert ("to_dict" in str(caught.value)) == isinstance(given, pd.Series)
    assert "\n" not in str(caught.value)


def test_conditions_come_as_a_list_of_dicts_or_a_file(mixed, tmp_path):
    given = [{"g": 0}, {"g": 1, "s": 0.5}]
    pd.DataFrame(given).to_csv(tmp_path / "given.csv", index=False)
    for form in (given, pd.DataFrame(given), str(tmp_path / "given.csv")):
        np.testing.assert_array_equal(np.asarray(mixed.sample(2, given=form, seed=0)["g"]), [0, 0, 1, 1])


# The form of answers


@pytest.mark.parametrize("kind", [object, "category"])
def test_a_completed_frame_keeps_its_index(net, kind):
    frame = pd.DataFrame({"ill": ["Mild", None, "None"], "rash": ["x", "y", None]}, index=[5, 3, 9]).astype(kind)
    full = net.mpe(frame)
    assert full.index.tolist() == [5, 3, 9]
    pd.testing.assert_series_equal(frame["rash"].astype(object).fillna(full["rash"].astype(object)),
                                   full["rash"].astype(object))  # fmt: skip
    twice = frame.set_axis(pd.MultiIndex.from_product([["a"], [1, 2, 3]]))
    assert net.mpe(twice).index.equals(twice.index)
    assert net.mpe({"rash": ["x", "y"]}).keys() == {"ill", "rash", "cough"}


def test_a_network_scores_its_own_samples_whatever_its_levels_are():
    for levels in [(0, "1"), (1, "1"), (True, "yes"), (0, 0.5), (2, True, "a")]:
        net = BayesianNetwork.from_tables({"a": dict.fromkeys(levels, 1 / len(levels))})
        drawn = net.sample(200, seed=0)
        seen = net.event.check(drawn).x[:, 0]
        assert seen.unique().tolist() == list(range(len(levels)))
        np.testing.assert_allclose(net.log_prob(drawn).nats, -np.log(len(levels)))


def test_missing_text_stays_missing_after_the_hint_is_followed(net):
    """As ``astype(str)`` it would be the level "None", silently."""
    frame = pd.DataFrame({"ill": pd.Series(["Mild", None], dtype=object)})
    np.testing.assert_allclose(net.log_prob(frame.astype("string")).nats, [np.log(0.7), 0.0])
    np.testing.assert_allclose(net.log_prob(frame.map(str)).nats, np.log([0.7, 0.3]))  # the twin


def test_the_number_of_rows_is_whole_after_loading(mixed, tmp_path):
    save(mixed, tmp_path / "net")
    back = load(tmp_path / "net")
    assert (back.n_rows, type(back.n_rows)) == (200, int)
    assert back.bic() == mixed.bic()


# What the numbers are relative to


def test_a_real_that_is_set_has_a_mass_and_no_density(mixed):
    done, rows = mixed.do({"s": 2.0}), {"g": [0, 1], "s": [2.0, 2.0], "d": ["lo", "hi"]}
    assert mixed.log_prob(rows).measure == "counting(d) x counting(g) x lebesgue(s)"
    assert done.log_prob(rows).measure == "counting(d) x counting(g) x counting(s)"
    for answer in (done.log_prob(rows, by=LikelihoodWeighting(50)), done.log_prob(rows, by=PosteriorWeighting(50))):
        assert answer.measure == done.log_prob(rows).measure
    with pytest.raises(Incomparable, match="measure"):
        done.log_prob(rows) - mixed.log_prob(rows)
    assert done.log_prob({"s": 2.0, "d": "lo"}, given={"g": 0}).measure == "counting(d) x counting(s)"
    other = done.do({"g": 1})
    np.testing.assert_allclose((other.log_prob(rows) - done.log_prob(rows)).nats[1], -mixed.log_prob({"g": 1}).nats[0])
    assert mixed.do({"g": 1}).log_prob(rows).measure == mixed.log_prob(rows).measure


def test_bounded_rows_say_why_they_have_no_standard_error_beside_exact_ones(mixed):
    rows = {"g": [0, 0], "s": [0.5, None], "d": ["hi", "hi"]}
    answer = mixed.log_prob(rows, by=PosteriorWeighting(100), seed=0)
    assert [str(kind) for kind in answer.kinds] == ["exact", "lower"]
    assert answer.diagnostics["samples"].tolist() == [0, 100]
    assert np.isnan(answer.diagnostics["ess"]).tolist() == [True, False]
    assert answer.diagnostics["ess"][1] < 400
    assert np.isnan(answer.stderr[1])


def test_a_missing_count_is_named_with_the_question_that_answers():
    event = Table({"b": Category((0, 1)), "n": Count()})
    net = BayesianNetwork(event, [("b", "n")]).fit({"b": [0, 1, 0, 1], "n": [3, 5, 2, 7]})
    with pytest.raises(StructureError, match=r"value of 'n'.*marginals"):
        net.mpe({"b": [1]})
    assert net.marginals({"b": [1]})["n"][0] == pytest.approx(6.0, rel=1e-3)


def test_unseen_levels_of_a_file_network_are_still_refused(tmp_path):
    table = BayesianNetwork.from_tables({"a": {0: 0.25, 1: 0.75}, "b": {True: 0.5, False: 0.5}})
    table.save_file(tmp_path / "net.bif")
    back = BayesianNetwork.load_file(tmp_path / "net.bif")
    np.testing.assert_allclose(back.log_prob({"a": [0, 1, None]}).nats, np.log([0.25, 0.75, 1.0]))
    pd.DataFrame({"a": [0, 1, None]}).to_csv(tmp_path / "rows.csv", index=False)
    np.testing.assert_allclose(back.log_prob(tmp_path / "rows.csv").nats, np.log([0.25, 0.75, 1.0]))
    with pytest.raises(SupportError, match=r"row 1, column a: 2.0"):
        back.log_prob({"a": [0.0, 2.0, nan]})
    with pytest.raises(SupportError, match=r"map\(\{True: 'True'\}\)"):
        back.log_prob({"b": [True]})


def test_answers_about_many_levels_or_variables_print_in_few_words():
    wide = BayesianNetwork.from_tables({"a": {f"level {i}": 1 / 500 for i in range(500)}})
    assert "level 7 0.002" in repr(wide.marginals())
    assert len(repr(wide.marginals())) < 400
    many = BayesianNetwork.from_tables({f"v{i}": {"x": 0.25, "y": 0.75} for i in range(300)})
    for answer in (many.marginals(), many.marginals({"v1": ["x", "y"]})):
        assert "292 more" in repr(answer)
        assert len(repr(answer)) < 400
