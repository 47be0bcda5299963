"""Networks in a newcomer's hands: every kind of frame and file, slips of the pen, saving after everything."""

import copy
import itertools

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import probgen as pg
from probgen.errors import ProbgenError, SupportError, ZeroEvidenceError
from probgen.events import Category, Table

ROOM = {"size": {0: 0.2, 1: 0.5, 2: 0.3}}
LIGHT = {"light": ("size", {0: {False: 0.9, True: 0.1}, 1: {False: 0.4, True: 0.6}, 2: {False: 0.25, True: 0.75}})}
MOOD = {
    "mood": (
        ["light", "size"],
        {
            (light, size): {"low": 0.1 + 0.2 * size, "high": 0.6 - 0.2 * size - 0.1 * light, "odd": 0.3 + 0.1 * light}
            for light, size in itertools.product((False, True), (0, 1, 2))
        },
    )
}
HOUSE = ROOM | LIGHT | MOOD
CELLS = {
    "size": [0, None, 2, 1, None, 2, None],
    "light": [True, False, None, None, None, None, True],
    "mood": ["low", "odd", None, "high", None, "odd", None],
}
LEVELS = {"size": (0, 1, 2), "light": (False, True), "mood": ("low", "high", "odd")}


def _house(tables=None):
    return pg.BayesianNetwork.from_tables(HOUSE if tables is None else tables)


def _joint(size, light, mood):
    return HOUSE["size"][size] * HOUSE["light"][1][size][light] * HOUSE["mood"][1][light, size][mood]


def _completions(i):
    seen = [[CELLS[name][i]] if CELLS[name][i] is not None else LEVELS[name] for name in LEVELS]
    return list(itertools.product(*seen))


TRUTH = np.array([np.log(sum(_joint(*c) for c in _completions(i))) for i in range(7)])


def _frame():
    typed = pd.DataFrame(CELLS).astype(object)
    return typed.assign(size=typed["size"].astype("Int64"), light=typed["light"].astype("boolean"))


FORMS = {
    "dict": lambda: CELLS,
    "objects": lambda: pd.DataFrame(CELLS).astype(object),
    "array of objects": lambda: np.array(list(zip(*CELLS.values(), strict=True)), dtype=object),
    "nullable": _frame,
    "floats": lambda: _frame().assign(size=_frame()["size"].astype("Float64").astype(float)),
    "text type": lambda: _frame().assign(mood=_frame()["mood"].astype("string")),
    "categoricals": lambda: _frame().astype("category"),
    "levels in another order": lambda: _frame().assign(
        mood=pd.Categorical(CELLS["mood"], categories=["odd", "never", "high", "low"])
    ),
    "columns in another order": lambda: _frame()[["mood", "size", "light"]],
    "index": lambda: _frame().set_index(pd.Index([9, 7, 5, 3, 1, 0, 2])),
    "arrow": lambda: pa.table(CELLS),
    "arrow dictionary": lambda: pa.table({**CELLS, "mood": pa.array(CELLS["mood"]).dictionary_encode()}),
    "polars": lambda: pl.DataFrame(CELLS),
    "polars categorical": lambda: pl.DataFrame(CELLS).with_columns(pl.col("mood").cast(pl.Categorical)),
    "polars lazy": lambda: pl.DataFrame(CELLS).lazy(),
    "numbers for truth values": lambda: {**CELLS, "light": [1, 0, None, None, None, None, 1.0]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_frame_gives_the_sum_over_its_gaps(form):
    np.testing.assert_allclose(_house().log_prob(FORMS[form]()).nats, TRUTH, rtol=0, atol=1e-12)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("form", ["nullable", "floats", "categoricals"])
def test_files_with_gaps_give_the_same_numbers_as_frames(tmp_path, suffix, form):
    path = tmp_path / f"rows.{suffix}"
    getattr(FORMS[form](), f"to_{suffix}")(path, index=False)
    np.testing.assert_allclose(_house().log_prob(path).nats, TRUTH, rtol=0, atol=1e-12)


def test_taking_codes_for_levels_would_be_caught():
    turned = {**CELLS, "mood": [{"low": "high", "high": "low"}.get(cell, cell) for cell in CELLS["mood"]]}
    assert np.abs(_house().log_prob(turned).nats - TRUTH).max() > 0.1


def test_the_order_of_variables_configurations_and_levels_by_hand_is_of_no_matter():
    turned = {
        "mood": (
            ["size", "light"],
            {(size, light): dict(reversed(row.items())) for (light, size), row in reversed(HOUSE["mood"][1].items())},
        ),
        "light": ("size", {size: HOUSE["light"][1][size] for size in (2, 0, 1)}),
        "size": {level: HOUSE["size"][level] for level in (1, 2, 0)},
    }
    np.testing.assert_allclose(_house(turned).log_prob(CELLS).nats, TRUTH, rtol=0, atol=1e-12)


def test_completions_fill_every_gap_keep_what_was_seen_and_are_the_most_probable():
    best = _house().mpe(_frame())
    assert not best.isna().any().any()
    for i in range(7):
        row = best.iloc[i]
        assert all(CELLS[name][i] in (None, row[name]) for name in LEVELS)
        assert _joint(*row) == pytest.approx(max(_joint(*c) for c in _completions(i)), abs=1e-15)


def test_gaps_of_a_shuffled_frame_are_filled_by_their_own_rows():
    net, data = _house(), _data(60)
    shuffled = data.sample(frac=1, random_state=0)
    assert not shuffled.index.equals(data.index)
    filled = shuffled.astype(object).fillna(net.mpe(shuffled).astype(object))
    assert filled.sort_index().equals(net.mpe(data).astype(object))


def test_marginals_are_named_by_the_rows_of_the_frame_and_sum_to_one():
    frame = _frame().set_index(pd.Index([9, 7, 5, 3, 1, 0, 2]))
    found = _house().marginals(frame)
    assert found.frame()["row"].to_pylist() == [9, 7, 5, 3, 1, 0, 2]
    for v, (name, levels) in enumerate(LEVELS.items()):
        by_hand = [[sum(_joint(*c) for c in _completions(i) if c[v] == level) for level in levels] for i in range(7)]
        np.testing.assert_allclose(found[name], by_hand / np.exp(TRUTH)[:, None], rtol=0, atol=1e-12)


LOOKS = [("None", "Mild"), ("NA", "EU"), ("01", "1"), ("1.0", "2.50"), ("2020-01-01", "0-10"), ("1e5", "<5"),
         ("TRUE", "FALSE"), ("nan", "inf"), (" a", "a")]  # fmt: skip


@pytest.mark.parametrize("levels", LOOKS)
def test_declared_levels_that_look_like_something_else_are_read_from_csv_as_they_are(tmp_path, levels):
    net = pg.BayesianNetwork.from_tables({"a": dict(zip(levels, (0.3, 0.7), strict=True)), "b": {"u": 0.5, "v": 0.5}})
    pd.DataFrame({"a": [*levels, None], "b": ["u", "u", "v"]}).to_csv(tmp_path / "rows.csv", index=False)
    np.testing.assert_allclose(np.exp(net.log_prob(tmp_path / "rows.csv").nats), [0.15, 0.35, 0.5], atol=1e-12)


def _data(n=400):
    rng = np.random.default_rng(3)
    full = _house().sample(n, seed=4).to_pandas()
    return full.astype({"size": "Int64", "light": "boolean"}).mask(rng.random(full.shape) < 0.2)


def test_what_is_learned_does_not_depend_on_the_kind_of_frame_or_file(tmp_path):
    frame = _data()
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    forms = [frame, frame.astype(object), frame.astype("category"), pl.from_pandas(frame), tmp_path / "rows.csv",
             tmp_path / "rows.parquet"]  # fmt: skip
    nets = [pg.BayesianNetwork(_house().event, _house().edges).fit(form, seed=0) for form in forms]
    first = nets[0].log_prob(frame).nats
    for net, form in itertools.product(nets, forms):
        np.testing.assert_array_equal(net.log_prob(form).nats, first)
    assert np.abs(_house().log_prob(frame).nats - first).max() > 1e-3


def test_rows_alone_have_the_numbers_that_they_have_among_others():
    frame, net = _data(60), _house()
    alone = [net.log_prob(frame.iloc[[i]]).nats[0] for i in range(60)]
    np.testing.assert_allclose(net.log_prob(frame).nats, alone, rtol=0, atol=1e-12)


def _nets():
    bare = pg.BayesianNetwork(_house().event, _house().edges)
    learned = pg.BayesianNetwork.learn(_data(), seed=0)
    bdeu = copy.deepcopy(bare).fit(_house().sample(100, seed=1), prior="bdeu", strength=5.0)
    hidden = copy.deepcopy(bare).fit(_data().assign(size=pd.NA), seed=0, max_iter=5)
    return {
        "tables": _house(),
        "EM": bare.fit(_data(), seed=0),
        "hidden": hidden,
        "posterior": bdeu,
        "a draw of the posterior": bdeu.sample_networks(1, seed=0)[0],
        "intervened": _house().do({"light": True}),
        "learned": learned,
        "learned and intervened": learned.do({"light": True}, assume_graph=True),
    }


def test_after_everything_a_network_is_saved_and_copied_with_its_bits(tmp_path):
    for name, net in _nets().items():
        rows = net.sample(40, seed=5)
        want = net.log_prob(rows).nats
        again = pg.load(pg.save(net, tmp_path / name))
        assert (again.report, again.learned, repr(again)) == (net.report, net.learned, repr(net)), name
        for other in (again, copy.deepcopy(net)):
            np.testing.assert_array_equal(other.log_prob(rows).nats, want, err_msg=name)
            assert other.sample(5, seed=6).equals(net.sample(5, seed=6)), name


def test_a_learned_graph_that_was_saved_still_refuses_what_data_can_not_tell(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.random(500) < 0.5
    frame = pd.DataFrame({"a": a, "b": a ^ (rng.random(500) < 0.1)})
    net = pg.load(pg.save(pg.BayesianNetwork.learn(frame, seed=0), tmp_path / "net"))
    with pytest.raises(ProbgenError, match="assume_graph=True"):
        net.do({"a": True})


def test_posteriors_and_criteria_are_there_after_loading(tmp_path):
    net = _nets()["posterior"]
    again = pg.load(pg.save(net, tmp_path / "net"))
    np.testing.assert_array_equal(again.table_posterior("mood"), net.table_posterior("mood"))
    assert (again.bic(), again.aic()) == (net.bic(), net.aic())


HALF = {"n": 0.5, "y": 0.5}
SLIPS = [
    ({"a": HALF, "b": ("a", {"n": {"u": 1.0, "v": 0.2}, "y": {"u": 1.0, "v": 0.0}})}, r"1\.2.*\['n'\]"),
    ({"b": ("a", {"n": HALF, "y": HALF})}, "'b' has the parent 'a', which has no table"),
    ({"a": HALF, "b": ("a", {"n": HALF})}, r"'b' has no row for \('y',\)"),
    ({"a": HALF, "b": ("a", {"n": HALF, "y": HALF, "z": HALF})}, r"'b' has a row for \('z',\)"),
    ({"a": HALF, "b": ("a", {"n": HALF, "y": {"n": 0.5, "Y": 0.5}})}, r"'b' has levels \['n', 'Y'\]"),
    ({"a": ("b", {"n": HALF, "y": HALF}), "b": ("a", {"n": HALF, "y": HALF})}, "cycle: . -> . -> ."),
    ({"a": HALF, "b": (("u", "v", "w"), ["a"], np.full((3, 2), 1 / 3))}, r"'b' has shape \(3, 2\).*\(2, 3\)"),
    ({"a": HALF, "b": (("u", "v"), ["a", "a"], np.full((2, 2, 2), 0.5))}, "'a' -> 'b' comes twice"),
    ({"a": (("n", "n"), [0.5, 0.5])}, "each level once"),
    ({"a": {None: 0.5, "y": 0.5}}, "Leave None and NaN out"),
    ({"a": {"n": -0.5, "y": 1.5}}, "negative"),
    ({"a": {"n": 30, "y": 70}}, "100 is the sum"),
]


@pytest.mark.parametrize(("tables", "says"), SLIPS)
def test_slips_of_the_pen_are_refused_in_words_that_point_to_them(tables, says):
    with pytest.raises(ProbgenError, match=says) as caught:
        pg.BayesianNetwork.from_tables(tables)
    assert "Wanted:" in str(caught.value) or "Known:" in str(caught.value)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda net: net.d_separated("size", "lihgt"), "'lihgt'.*'light'"),
        (lambda net: net.markov_blanket("q"), "'q'"),
        (lambda net: net.do({"lihgt": True}), "'lihgt'.*'light'"),
        (lambda net: net.do({"mood": "Low"}), "Low.*low"),
        (lambda net: net.do({}), "do="),
        (lambda net: net.marginals({"mood": "Low"}), "row 0, column mood.*Low"),
        (lambda net: net.marginals({"lihgt": True}), "'lihgt'.*'light'"),
        (lambda net: net.sample(2, given={"size": 7}), "column size: 7"),
        (lambda net: net.sample(2, given={"size": None}), "at least one observed cell"),
        (lambda net: net.log_prob(_frame().assign(extra=1)), "extra"),
        (lambda net: net.log_prob(_frame().rename(columns={"mood": "Mood"})), "Mood"),
        (lambda net: net.log_prob(_frame().iloc[:0]), "0 rows"),
        (lambda net: net.log_prob(CELLS, given={"size": 1}), "both scored and given"),
        (lambda net: net.fit(_frame(), prior="jeffreys"), "bdeu"),
        (lambda net: net.fit(_frame(), n_iter=3), "max_iter"),
        (lambda net: net.fit(_frame().assign(size=pd.NA, light=pd.NA, mood=None)), "without any observed cell"),
        (lambda net: net.counterfactual({"size": 1}, do={"size": 2}, mechanism="gumble"), "gumbel-max"),
        (lambda net: net.save_file("house.xml"), r"\.bif"),
        (lambda net: net.plot("house.txt"), r"\.png"),
        (lambda net: pg.export(net, "hugin"), "pgmpy"),
    ],
)
def test_questions_with_a_slip_are_refused_in_words_that_point_to_it(ask, says):
    with pytest.raises(ProbgenError, match=says):
        ask(_house())


def test_every_unknown_level_is_told_by_row_and_column():
    with pytest.raises(SupportError, match="row 1, column mood: 'meh'") as caught:
        _house().log_prob({"size": [0, 1], "light": [True, False], "mood": ["low", "meh"]})
    assert "'low', 'high', 'odd'" in str(caught.value)


def test_impossible_rows_have_minus_infinity_and_no_posterior():
    net = _house().do({"light": True})
    rows = {"size": [1, 1], "light": [True, False], "mood": [None, None]}
    assert net.log_prob(rows).nats.tolist() == [pytest.approx(np.log(0.5)), -np.inf]
    for ask in (net.marginals, net.mpe, lambda rows: net.sample(1, given=rows)):
        with pytest.raises(ZeroEvidenceError, match="Row 1"):
            ask(rows)


def test_declared_levels_that_no_row_has_are_kept_and_what_was_not_seen_is_told():
    event = Table({"a": Category(("n", "y", "never")), "b": Category(("u", "v", "nor"))})
    net = pg.BayesianNetwork(event, [("a", "b")]).fit({"a": ["n", "y"] * 5, "b": ["u", "u", "v", "v", "u"] * 2})
    assert net.event == event
    assert any("'b': 1 of 3" in note for note in net.report.notes)
    assert net.log_prob({"a": ["n"], "b": ["nor"]}).nats[0] == -np.inf
    smooth = pg.BayesianNetwork(event, [("a", "b")]).fit({"a": ["n"], "b": ["u"]}, prior="dirichlet")
    assert np.isfinite(smooth.log_prob({"a": ["never"], "b": ["nor"]}).nats[0])


def test_pgmpy_and_back_and_a_bif_file_and_back_score_the_same(tmp_path):
    pytest.importorskip("pgmpy")
    third = {level: {"u": p, "v": 1 - p} for level, p in (("n", 0.9), ("y", 0.2), ("m", 0.0))}
    net = pg.BayesianNetwork.from_tables({"a": {"n": 0.3, "y": 0.5, "m": 0.2}, "b": ("a", third)})
    rows = {"a": ["n", None, "m", None], "b": [None, "u", "u", None]}
    want = net.log_prob(rows).nats
    np.testing.assert_allclose(pg.wrap(pg.export(net, "pgmpy")).log_prob(rows).nats, want, rtol=0, atol=1e-12)
    net.save_file(tmp_path / "net.bif.gz")
    np.testing.assert_array_equal(pg.BayesianNetwork.load_file(tmp_path / "net.bif.gz").log_prob(rows).nats, want)
