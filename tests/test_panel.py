"""Sequences as they come in: frames whose rows are steps, arrays with lengths, and the steps as rows of their own."""

import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import probgen as pg
from probgen import datasets
from probgen.errors import DataError, ParameterError, ProbgenError, ShapeError, StructureError, SupportError
from probgen.events import (
    Array,
    Category,
    Count,
    Panel,
    Ragged,
    Real,
    Record,
    Series,
    Table,
    Text,
    arguments,
    infer,
    row_hash,
    steps_of,
    take,
)
from probgen.events.cells import prefix_hash

nan = math.nan
COLUMNS = {"x": Real("cm"), "k": Category(("u", "v")), "n": Count()}
EVENT = Panel(COLUMNS, sequence="id")
ROWS = {
    "id": ["b", "a", "b", "a", "c"],
    "x": [1.5, 2.0, nan, 4.0, 5.0],
    "k": ["u", "v", "u", None, "v"],
    "n": [3, 1, 4, 1, 5],
}
FORMS = {
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas nullable": lambda: pd.DataFrame(ROWS).astype({"n": "Int64", "id": "string"}),
    "pandas categories": lambda: pd.DataFrame(ROWS).astype({"id": "category", "k": "category"}),
    "polars": lambda: pl.DataFrame(ROWS),
    "polars lazy": lambda: pl.LazyFrame(ROWS),
    "Arrow": lambda: pa.table(ROWS),
    "dict": lambda: dict(ROWS),
    "other order of columns": lambda: pd.DataFrame(ROWS)[["n", "id", "k", "x"]],
}


def refusal(call, *given, **named):
    with pytest.raises(ProbgenError) as caught:
        call(*given, **named)
    return caught.value


# --- panels: what comes in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_frame_gives_the_same_sequences(form):
    checked = EVENT.check(FORMS[form]())
    cells = [[1.5, 0, 3], [nan, 0, 4], [2.0, 1, 1], [4.0, nan, 1], [5.0, 1, 5]]
    assert np.array_equal(checked.x.values.numpy(), cells, equal_nan=True)
    assert checked.x.lengths.tolist() == [2, 2, 1]
    assert list(checked.about.keys) == ["b", "a", "c"]
    assert checked.about.dims.tolist() == [5, 5, 3]
    np.testing.assert_array_equal(checked.about.content, row_hash(checked.x))


@pytest.mark.parametrize("labels", [np.arange(7), np.arange(7) / 4, np.array(list("gfedcba")), [1, "1", 2.5, "b", 0]])
def test_rows_of_a_sequence_keep_their_order_wherever_they_stand(labels):
    rng = np.random.default_rng(3)
    of = rng.integers(len(labels), size=60)
    x = rng.normal(size=60)
    column = np.empty(60, dtype=object)
    column[:] = [labels[i] for i in of]
    frame = {"id": column if isinstance(labels, list) else np.asarray(labels)[of], "x": x}
    checked = Panel({"x": Real()}, "id").check(frame)
    order = list(dict.fromkeys(of.tolist()))
    assert [part[:, 0].tolist() for part in checked.x.split()] == [x[of == i].tolist() for i in order]
    assert list(checked.about.keys) == [labels[i] for i in order]


def test_a_path_is_the_panel_it_holds(tmp_path):
    pd.DataFrame(ROWS).to_csv(tmp_path / "x.csv", index=False)
    one, other = EVENT.check(str(tmp_path / "x.csv")), EVENT.check(ROWS)
    np.testing.assert_array_equal(one.about.content, other.about.content)


def test_without_a_sequence_column_the_frame_is_one_sequence():
    frame = pd.DataFrame(ROWS).drop(columns="id")
    checked = Panel(COLUMNS).check(frame)
    assert checked.x.lengths.tolist() == [5]
    assert np.array_equal(checked.x.values.numpy(), Table(COLUMNS).check(frame).x.numpy(), equal_nan=True)
    numbers = Panel({"a": Real(), "b": Real()})
    assert numbers.check(np.ones((4, 2))).x.lengths.tolist() == [4]


def test_each_frame_of_a_list_is_a_sequence():
    frame = pd.DataFrame(ROWS)
    parts = [frame[["x", "k", "n"]][:2], {"n": [7], "k": ["u"], "x": [0.5]}]
    checked = Panel(COLUMNS).check(parts)
    assert checked.x.lengths.tolist() == [2, 1]
    assert checked.x.values[2].tolist() == [0.5, 0, 7]
    assert checked.about.keys.tolist() == [0, 1]


def test_frames_of_a_list_that_name_their_sequences_are_one_frame():
    frame = pl.DataFrame(ROWS)
    one, other = EVENT.check([frame[:3], frame[3:]]), EVENT.check(frame)
    np.testing.assert_array_equal(one.about.content, other.about.content)
    assert list(one.about.keys) == list(other.about.keys)


MISSING_LABELS = {
    "None": pd.DataFrame(ROWS).assign(id=["b", None, "b", "a", "c"]),
    "NaN": pd.DataFrame(ROWS).assign(id=[1.0, nan, 1.0, 2.0, 2.0]),
    "NA": pd.DataFrame(ROWS).assign(id=pd.array([1, None, 1, 2, 2], dtype="Int64")),
    "NaN of polars": pl.DataFrame({**ROWS, "id": [1.0, nan, 1.0, 2.0, 2.0]}),
    "null of Arrow": pa.table({**ROWS, "id": ["b", None, "b", "a", "c"]}),
}


@pytest.mark.parametrize("form", MISSING_LABELS)
def test_a_missing_label_is_refused_by_row(form):
    problem = refusal(EVENT.check, MISSING_LABELS[form])
    assert isinstance(problem, DataError)
    assert "row 1, column id" in problem.came
    assert problem.wanted
    assert problem.do


def test_a_sequence_column_that_is_not_there_gets_the_nearest():
    for call in (
        lambda: EVENT.check(pd.DataFrame(ROWS).rename(columns={"id": "ids"})),
        lambda: infer(ROWS, sequence="idd"),
    ):
        assert "Did you mean 'id" in str(refusal(call))


BAD = [
    (pd.DataFrame(ROWS, index=list("pqrst")).assign(x=[1, 2, 3, math.inf, 5]), DataError, "row s, column x: inf"),
    (pd.DataFrame(ROWS).assign(k=["u", "v", "w", "u", "v"]), SupportError, "row 2, column k: 'w'"),
    (pd.DataFrame(ROWS).drop(columns="n"), ShapeError, "lacks ['n']"),
    (pd.DataFrame(ROWS).assign(more=1), ShapeError, "has ['more']"),
    (pd.DataFrame(ROWS)[:0], DataError, "0 rows"),
    (pd.DataFrame(ROWS).assign(id=[[1], [1], [2], [2], [3]]), DataError, "list"),
    (np.ones((3, 3)), ShapeError, "ndarray"),
    ([], ShapeError, "list"),
    ([pd.DataFrame(ROWS), pd.DataFrame(ROWS)[["id", "x"]]], ShapeError, "Frame 1"),
    ([pd.DataFrame(ROWS), pd.DataFrame(ROWS)[:0]], DataError, "Frame 1"),
    (None, ShapeError, "NoneType"),
    ("gone.csv", DataError, "gone.csv"),
]


@pytest.mark.parametrize(("data", "error", "came"), BAD)
def test_bad_panels_are_refused_by_name(data, error, came):
    problem = refusal(EVENT.check, data)
    assert isinstance(problem, error)
    assert came in problem.came


@pytest.mark.parametrize(("columns", "sequence"), [(COLUMNS, "x"), (COLUMNS, 3), ({}, None), ({"x": "real"}, "id")])
def test_a_panel_that_makes_no_sense_is_a_parameter_error(columns, sequence):
    assert isinstance(refusal(Panel, columns, sequence), ParameterError)


def test_gaps_can_be_forbidden():
    assert "row 2, column x" in refusal(Panel(COLUMNS, "id", missing=False).check, ROWS).came


# --- panels: what they are, and back ----------------------------------------------------------------------------------


def test_a_panel_is_measured_as_the_table_of_its_steps():
    assert EVENT.measure == Table(COLUMNS).measure == "counting(k) x counting(n) x lebesgue(x cm)"
    assert not EVENT.discrete
    assert EVENT.shape == (3,)
    assert EVENT.step == Table(COLUMNS)


def test_the_repr_of_a_panel_is_its_constructor_call():
    namespace = {"Panel": Panel, "Real": Real, "Category": Category, "Count": Count}
    for event in (EVENT, Panel({"x": Real()}), Panel({"x": Real()}, "id", missing=False)):
        assert eval(repr(event), namespace) == event
        assert type(event)(**arguments(event)) == event


@pytest.mark.parametrize("form", ["pandas", "polars", "Arrow", "dict"])
def test_a_panel_comes_back_with_its_labels(form):
    checked = EVENT.check(FORMS[form]())
    back = EVENT.restore(checked.x, checked.form, checked.about.keys)
    again = EVENT.check(back)
    assert type(back) is type(FORMS[form]())
    np.testing.assert_array_equal(again.about.content, checked.about.content)
    assert list(again.about.keys) == ["b", "a", "c"]


def test_draws_of_a_panel_are_numbered_and_can_be_scored():
    model = pg.Independent(EVENT).fit(pd.DataFrame(ROWS), seed=1)
    drawn = model.sample(3, seed=2, length=4)
    assert list(drawn.columns) == ["id", "x", "k", "n"]
    assert drawn["id"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(model.log_prob(drawn)) == 3


def test_a_panel_without_a_sequence_column_comes_back_as_frames():
    event, frame = Panel({"x": Real()}), pd.DataFrame({"x": [1.0, 2.0, 3.0]})
    one, two = event.check(frame), event.check([frame, frame[:1]])
    assert event.restore(one.x, one.form).equals(frame)
    assert [part["x"].tolist() for part in event.restore(two.x, two.form)] == [[1, 2, 3], [1]]
    array = event.check(np.ones((3, 1)))
    assert (event.restore(array.x, array.form) == np.ones((3, 1))).all()


def test_some_sequences_of_a_panel_keep_their_keys_and_hashes():
    checked = EVENT.check(ROWS)
    some = checked[np.array([2, 0])]
    assert list(some.about.keys) == ["c", "b"]
    np.testing.assert_array_equal(row_hash(take(checked.x, np.array([2, 0]))), some.about.content)


def test_a_panel_may_be_a_part_of_a_record():
    record = Record(steps=Panel({"x": Real()}, "id"), tag=Array())
    checked = record.check({"steps": {"id": [1, 1, 2], "x": [0.5, 1, 2]}, "tag": [3.0, 4.0]})
    assert checked.x["steps"].lengths.tolist() == [2, 1]


def test_rounded_columns_of_a_panel_are_told_to_declare_their_step():
    x = np.round(np.random.default_rng(0).normal(size=200), 1)
    assert "column 'x'" in Panel({"x": Real()}).ties(Panel({"x": Real()}).check({"x": x}).x)


# --- infer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sequence", "event"),
    [
        (pd.DataFrame(ROWS), "id", Panel({"x": Real(), "k": COLUMNS["k"], "n": Category((1, 3, 4, 5))}, "id")),
        (pl.DataFrame({"x": [0.5, 1.0]}), True, Panel({"x": Real()})),
        ([pd.DataFrame({"x": [0.5]}), pd.DataFrame({"x": [1.5, 2.5]})], None, Panel({"x": Real()})),
        (np.arange(40), True, Series(levels=40)),
        (np.ones((5, 2)), True, Series((2,))),
        ([0.5, None], True, Series()),
    ],
)
def test_infer_reads_sequences(data, sequence, event):
    found = infer(data, sequence=sequence)
    assert found == event
    assert len(found.check(data)) >= 1


def test_infer_refuses_a_sequence_column_of_data_without_columns():
    for data in (np.ones(3), [[1.0], [2.0, 3.0]], ["a", "b"]):
        assert isinstance(refusal(infer, data, sequence="id"), ParameterError)
    assert "'x' has no values" in refusal(infer, {"id": [1], "x": [None]}, sequence="id").came


# --- series -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [pd.DataFrame(ROWS), pl.DataFrame(ROWS), pa.table(ROWS), "rows.csv"])
def test_a_frame_for_a_series_is_told_both_ways(frame):
    text = str(refusal(Series((2,)).check, frame))
    assert 'Panel(columns, sequence="id")' in text
    assert "lengths" in text


def test_a_column_for_single_numbers_is_refused_and_told_the_ways():
    problem = refusal(Series().check, np.ones((5, 1)))
    assert isinstance(problem, ShapeError)
    assert "one sequence, or 5 of one step" in problem.came
    assert "x[:, 0]" in problem.wanted
    assert "Series((1,))" in problem.do
    assert isinstance(refusal(Series().check, torch.ones(5, 1)), ShapeError)


def test_what_is_no_ambiguous_column_comes_in():
    assert Series().check(np.ones((1, 1))).x.lengths.tolist() == [1]
    assert Series((1,)).check(np.ones((5, 1))).x.lengths.tolist() == [5]
    assert Series().check(np.ones(5)).x.lengths.tolist() == [5]
    assert Series().check([[1.0]] * 5).x.lengths.tolist() == [1] * 5


def test_a_column_with_lengths_is_single_numbers():
    one, other = Series().check((np.arange(5.0)[:, None], [2, 3])), Series().check((np.arange(5.0), [2, 3]))
    np.testing.assert_array_equal(one.about.content, other.about.content)
    assert one.x.values.shape == (5,)
    assert isinstance(refusal(Series().check, (np.ones((5, 2)), [2, 3])), ShapeError)
    assert isinstance(refusal(Series((2,)).check, (np.ones((5, 1)), [2, 3])), ShapeError)


def test_an_empty_sequence_is_named():
    for data in ([np.ones(3), np.ones(0)], [[1.0], []], [np.ones((3, 2)), np.ones((0, 2))]):
        event = Series((2,)) if isinstance(data[0], np.ndarray) and data[0].ndim == 2 else Series()
        assert "Sequence 1 is empty" in refusal(event.check, data).came


def test_draws_of_one_step_can_be_scored():
    model = pg.Independent(Series()).fit(np.random.default_rng(0).normal(size=(6, 5)), seed=1)
    assert len(model.log_prob(model.sample(4, seed=1, length=1))) == 4


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16, bool, ">f8"])
def test_arrays_are_joined_as_cell_by_cell_reading_joins_them(kind):
    parts = [np.arange(n * 2).reshape(n, 2).astype(kind) for n in (3, 1, 2)]
    fast, slow = Series((2,)).check(parts), Series((2,)).check([part.tolist() for part in parts])
    assert torch.equal(fast.x.values, slow.x.values)
    assert torch.equal(fast.x.lengths, slow.x.lengths)
    np.testing.assert_array_equal(fast.about.content, slow.about.content)


@pytest.mark.parametrize("cells", [[math.inf, -math.inf], [math.inf, 1.0], [-math.inf, nan], [1e308, 1e308, math.inf]])
def test_infinite_cells_are_seen_whatever_they_add_up_to(cells):
    assert "infinite" in refusal(Series().check, [cells]).came
    assert "infinite" in refusal(Array().check, cells).came


def test_finite_cells_whose_sum_overflows_are_taken():
    assert Series().check([[1e308] * 9]).about.dims.tolist() == [9]
    assert "missing" in refusal(Array().check, [1e308, 1e308, nan]).came


def test_rows_are_hashed_only_when_the_hash_is_read():
    checked = Series().check([[1.0, 2.0], [3.0]])
    assert callable(vars(checked.about)["content"])
    np.testing.assert_array_equal(checked.about.content, row_hash(checked.x))
    assert not callable(vars(checked.about)["content"])


# --- steps ------------------------------------------------------------------------------------------------------------


def test_a_steps_content_is_that_of_its_sequence_up_to_it():
    checked = Series((2,)).check([np.arange(6.0).reshape(3, 2), [[5.0, nan]], np.ones((2, 2))])
    prefixes = [Ragged(part[: t + 1], torch.tensor([t + 1])) for part in checked.x.split() for t in range(len(part))]
    direct = [row_hash(prefix)[0] for prefix in prefixes]
    np.testing.assert_array_equal(prefix_hash(checked.x), direct)
    np.testing.assert_array_equal(steps_of(checked).content, direct)


def test_equal_steps_after_another_past_are_other_rows():
    one, other = (steps_of(Series().check([[first, 2.0]])) for first in (1.0, 0.0))
    assert one.content[1] != other.content[1]
    assert not one.same_rows(other)


def test_steps_are_keyed_by_sequence_and_number_and_count_observed_cells():
    steps = steps_of(EVENT.check(ROWS))
    assert steps.keys.tolist() == ["b:0", "b:1", "a:0", "a:1", "c:0"]
    assert steps.dims.tolist() == [3, 2, 3, 2, 3]
    assert (steps.event, steps.measure) == (repr(EVENT), EVENT.measure)
    assert steps_of(Series().check([1.0, 2.0])).keys.tolist() == [0, 1]
    assert steps_of(Text().check(["ab"])).dims.tolist() == [1, 1]


def test_rows_that_are_no_sequences_have_no_steps():
    assert isinstance(refusal(steps_of, Array().check([1.0])), StructureError)
    model = pg.Independent(Array()).fit(np.random.default_rng(0).normal(size=30), seed=1)
    assert isinstance(refusal(model.log_prob_steps, [1.0]), StructureError)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (EVENT, pd.DataFrame(ROWS)),
        (Series(support="count"), [[3, 1, 4], [1, 5]]),
        (Series((2,)), [[[0.5, 1], [2, nan]], [[nan, nan]]]),
        (Series(levels=3), [[0, 2], [1]]),
    ],
    ids=repr,
)
def test_independent_steps_add_up_to_their_sequence(event, data):
    model = pg.Independent(event).fit(data, seed=1)
    steps, whole = model.log_prob_steps(data), model.log_prob(data)
    lengths = event.check(data).x.lengths.numpy()
    sums = [part.sum() for part in np.split(steps.nats, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(sums, whole.nats, rtol=1e-12)
    assert (steps.kind, steps.of, steps.measure) == (whole.kind, "x_t|x_<t", whole.measure)
    assert len(steps) == len(steps.event) == lengths.sum()


# --- data sets --------------------------------------------------------------------------------------------------------


def test_a_panel_is_split_by_sequences_that_keep_their_labels(tmp_path):
    rng = np.random.default_rng(1)
    pd.DataFrame({"id": rng.permutation(np.repeat(list("abcdefgh"), 5)), "x": rng.normal(size=40)}).to_csv(
        tmp_path / "p.csv", index=False
    )
    loaded = datasets.load(tmp_path / "p.csv", sequence="id")
    train, held = loaded.split(0.25, seed=3)
    every, first, second = (loaded.event.check(x) for x in (loaded.x, train, held))
    content = dict(zip(every.about.keys, every.about.content, strict=True))
    for part in (first, second):
        assert [content[key] for key in part.about.keys] == part.about.content.tolist()
    assert sorted([*first.about.keys, *second.about.keys]) == list("abcdefgh")
    assert len(second) == 2


def test_one_single_panel_is_split_in_time(tmp_path):
    pd.DataFrame({"x": np.arange(10) / 4}).to_csv(tmp_path / "p.csv", index=False)
    loaded = datasets.load(tmp_path / "p.csv", sequence=True)
    train, held = loaded.split(0.3)
    assert loaded.in_time
    assert train.to_pydict()["x"] + held.to_pydict()["x"] == (np.arange(10) / 4).tolist()
    assert len(held) == 3


def test_embedded_tables_can_be_read_as_sequences_and_others_not():
    assert datasets.load("iris", sequence="species").event.sequence == "species"
    assert len(datasets.load("iris", sequence="species")) == 3
    assert datasets.load("iris", sequence=True).in_time
    assert "Did you mean 'species'" in str(refusal(datasets.load, "iris", sequence="specie"))
    assert isinstance(refusal(datasets.load, "earthquakes", sequence="x"), ParameterError)
    assert not datasets.load("melodies").in_time
