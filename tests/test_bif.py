"""BIF files: what is read, what is refused and by which line, and that what is written comes back bit for bit."""

import gzip
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probgen import conditionals
from probgen.errors import StoreError, StructureError
from probgen.events import Category, Real, Table
from probgen.models.bayesnet import BayesianNetwork, bif
from probgen.models.bayesnet.bif import Bif, read_bif, write_bif

SHIPPED = Path(str(files("pgmpy"))) / "utils" / "example_models"
SMALL = """network small {
}
variable a {
  type discrete [ 2 ] { t, f };
}
variable b {
  type discrete [ 3 ] { x, y, z };
}
variable c {
  type discrete [ 2 ] { u, v };
}
probability ( a ) {
  table 0.3, 0.7;
}
probability ( c ) {
  table 0.4, 0.6;
}
probability ( b | a, c ) {
  (t, u) 0.1, 0.5, 0.4;
  (f, u) 0.3, 0.25, 0.45;
  (t, v) 0.2, 0.15, 0.65;
  (f, v) 0.4, 0.35, 0.25;
}
"""
B = np.array([[[0.1, 0.5, 0.4], [0.2, 0.15, 0.65]], [[0.3, 0.25, 0.45], [0.4, 0.35, 0.25]]])  # axes a, c, b
ENTRIES = SMALL[SMALL.index("  (t, u)") : -2]


def read(text, tmp_path, name="net.bif"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_bif(tmp_path / name)


def same_bits(one, other):
    assert one.names == other.names
    assert one.levels == other.levels
    assert one.parents == other.parents
    for name in one.names:
        np.testing.assert_array_equal(one.tables[name], other.tables[name])


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.bif.gz")), ids=lambda path: path.name)
def test_every_shipped_network_is_read(path):
    found = read_bif(path)
    text = gzip.decompress(path.read_bytes()).decode()
    assert len(found.names) == text.count("variable ") == len(found.tables)
    for name, table in found.tables.items():
        assert table.shape == tuple(len(found.levels[v]) for v in (*found.parents[name], name))
        assert table.dtype == np.float64
        assert (table >= 0).all()
        np.testing.assert_allclose(table.sum(axis=-1), 1, rtol=0, atol=1e-14)
    assert max(found.corrections.values(), default=0) <= 1e-6


@pytest.mark.parametrize("name", ["asia", "child", "sachs", "insurance", "alarm"])
def test_the_tables_are_those_that_pgmpy_reads(name):
    from pgmpy.readwrite import BIFReader

    found = read_bif(SHIPPED / f"{name}.bif.gz")
    text = gzip.decompress((SHIPPED / f"{name}.bif.gz").read_bytes()).decode()
    for theirs in BIFReader(string=text).get_model().get_cpds():
        axes = (*found.parents[theirs.variable], theirs.variable)
        values = np.transpose(theirs.values, [theirs.variables.index(v) for v in axes])
        for axis, v in enumerate(axes):
            values = values.take([theirs.state_names[v].index(level) for level in found.levels[v]], axis=axis)
        values = values / values.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(found.tables[theirs.variable], values, rtol=0, atol=1e-15)


def test_numbers_are_read_in_double_precision():
    tables = read_bif(SHIPPED / "asia.bif.gz").tables
    assert tables["asia"].tolist() == [0.01, 0.99]
    assert tables["either"].tolist() == [[[1, 0], [1, 0]], [[1, 0], [0, 1]]]


def test_odd_levels_of_shipped_networks_are_kept():
    levels = read_bif(SHIPPED / "child.bif.gz").levels
    assert "Asy/Patch" in levels["ChestXray"]
    assert levels["LowerBodyO2"] == ("<5", "5-12", "12+")
    assert read_bif(SHIPPED / "pigs.bif.gz").levels["p630400490"] == ("0", "1", "2")


def test_entries_may_stand_in_any_order_and_spacing(tmp_path):
    lines = ENTRIES.strip().splitlines()
    shuffled = "  \n".join(lines[i].replace(", ", " ,\t").replace("(", "(  ") for i in (2, 0, 3, 1))
    for text in (SMALL, SMALL.replace(ENTRIES, shuffled + "\n"), SMALL.replace("\n", "\r\n"), "\ufeff" + SMALL):
        np.testing.assert_array_equal(read(text, tmp_path).tables["b"], B)


def test_a_table_with_parents_runs_through_its_own_levels_last_parent_fastest(tmp_path):
    """As in Cozman's definition; pgmpy and pyAgrum read the same."""
    numbers = ", ".join(map(repr, np.moveaxis(B, -1, 0).reshape(-1).tolist()))
    text = SMALL.replace(ENTRIES, f"table {numbers};\n")
    np.testing.assert_array_equal(read(text, tmp_path).tables["b"], B)
    from pgmpy.readwrite import BIFReader

    theirs = BIFReader(string=text).get_model().get_cpds("b")
    assert theirs.variables == ["b", "a", "c"]
    np.testing.assert_allclose(np.moveaxis(theirs.values, 0, -1), B, rtol=0, atol=1e-15)


def test_a_default_row_fills_what_is_not_said(tmp_path):
    text = SMALL.replace(ENTRIES, "  default 0.2 0.3 0.5;\n  (t, v) 0.2, 0.15, 0.65;\n")
    found = read(text, tmp_path).tables["b"]
    np.testing.assert_array_equal(found[0, 1], B[0, 1])
    np.testing.assert_array_equal(found[1], [[0.2, 0.3, 0.5]] * 2)


def test_comments_properties_and_quotes_are_understood(tmp_path):
    text = SMALL.replace(
        "network small {", '// made by hand; "of course"\nnetwork "small // net" {\n property x "a; b {";'
    )
    text = text.replace("variable a {", "variable /* first\n of all */ a { property position = (3, 4) ; property q 1;")
    text = text.replace("{ x, y, z };", '{ "x", "y y", "z;}(|" };\n  property "weight // none";')
    text = text.replace("variable c", 'variable "c c"').replace("( c )", '( "c c" )').replace("a, c )", 'a "c c" )')
    found = read(text.replace("table 0.4, 0.6;", "table 0.4 /* u */ 0.6; // v"), tmp_path)
    assert found.names == ("a", "b", "c c")
    assert found.levels["b"] == ("x", "y y", "z;}(|")
    assert found.parents == {"a": (), "b": ("a", "c c"), "c c": ()}
    np.testing.assert_array_equal(found.tables["b"], B)


def test_levels_with_slashes_and_signs_are_no_comments(tmp_path):
    text = SMALL.replace("x, y, z", "a//b, <=5/*6, +12")
    assert read(text, tmp_path).levels["b"] == ("a//b", "<=5/*6", "+12")


def test_a_gzip_is_known_by_its_content(tmp_path):
    (tmp_path / "net.bif").write_bytes(gzip.compress(SMALL.encode()))
    np.testing.assert_array_equal(read_bif(tmp_path / "net.bif").tables["b"], B)


# Rows that do not sum to 1


def test_rows_off_by_a_millionth_are_renormalised_and_reported(tmp_path):
    text = SMALL.replace("0.1, 0.5, 0.4", "0.333333, 0.333333, 0.333333").replace("0.3, 0.7", "0.3, 0.6999999")
    found = read(text, tmp_path)
    assert found.corrections == {"a": pytest.approx(1e-7, rel=1e-6), "b": pytest.approx(1e-6, rel=1e-6)}
    assert found.tables["b"][0, 0].tolist() == [1 / 3] * 3
    np.testing.assert_array_equal(found.tables["b"][1], B[1])
    (note,) = bif.load(tmp_path / "net.bif").report.notes
    assert "2 of 3 tables" in note
    assert "1e-06 (b)" in note


def test_a_network_without_corrections_has_no_note(tmp_path):
    read(SMALL, tmp_path)
    net = bif.load(tmp_path / "net.bif")
    assert net.report.notes == ()
    assert net.report.stopped == "imported"


@pytest.mark.parametrize("row", ["0.1, 0.5, 0.4000011", "0.1, 0.5, 0.3999989", "0.1, 0.5, 0.5", "0, 0, 0"])
def test_rows_further_off_are_refused_by_line_and_configuration(tmp_path, row):
    with pytest.raises(StoreError, match=r"line 19: the row .* of 'b' given \['t', 'u'\].*sum to 1 within 1e-06"):
        read(SMALL.replace("0.1, 0.5, 0.4", row), tmp_path)


# Refusals

BAD = [
    ("table 0.3, 0.7", "table 0.3, -0.7", 13, "-0.7"),
    ("table 0.3, 0.7", "table 1.3, -0.3", 13, "-0.3"),
    ("table 0.3, 0.7", "table 0.3, nan", 13, "plain numbers"),
    ("table 0.3, 0.7", "table 0.3, inf", 13, "plain numbers"),
    ("table 0.3, 0.7", "table 0.3, 1e999", 13, "sum to inf"),
    ("table 0.3, 0.7", "table 0.3, 0_7", 13, "plain numbers"),
    ("table 0.3, 0.7", "table 0.3, 0.7.1", 13, "could not convert"),
    ("table 0.3, 0.7", "table 0.3, 0.3, 0.4", 13, "3 numbers"),
    ("table 0.3, 0.7", "table", 13, "0 numbers"),
    ("table 0.3, 0.7", "tabel 0.3, 0.7", 13, "tabel"),
    ("table 0.3, 0.7", "0.3, 0.7", 13, "0.3, 0.7"),
    ("table 0.3, 0.7;", "table 0.3, 0.7; table 0.3, 0.7;", 13, "again"),
    ("table 0.3, 0.7;", "table 0.3, 0.7", 12, "do not end in ;"),
    ("table 0.3, 0.7;", "", 12, "do not end in ;"),
    ("(t, u) 0.1, 0.5, 0.4", "(t, u) 0.1, 0.9", 19, "2 numbers"),
    ("(t, u) 0.1, 0.5, 0.4;\n  (f, u) 0.3", "(t, u) 0.1, 0.5, 0.4, 0.3;\n  (f, u) ", 19, "4 numbers"),
    ("(t, u)", "(t, w)", 19, "no level 'w' of 'c'"),
    ("(t, u)", "(t)", 19, "a level a parent"),
    ("(t, u)", "(t, v)", 21, "again"),
    ("(t, u)", "t, u", 19, "t, u"),
    ("(t, u)", "((t, u)", 18, "parentheses"),
    ("  (t, u) 0.1, 0.5, 0.4;\n", "", 18, r"no row of 'b' given \['t', 'u'\] \(1 lack\)"),
    ("probability ( a )", "probability ( d )", 12, "no variable 'd'"),
    ("( b | a, c )", "( b | a, d )", 18, "no variable 'd'"),
    ("( b | a, c )", "( b | a, a )", 18, "each variable once"),
    ("( b | a, c )", "( b c | a )", 18, "child"),
    ("( b | a, c )", "( )", 18, "child"),
    ("probability ( c )", "probability ( a )", 15, "a second probability block of 'a'"),
    ("variable c", "variable a", 9, "a second variable 'a'"),
    ("[ 3 ] { x, y, z }", "[ 2 ] { x, y, z }", 7, r"3 levels .* under \[ 2 \]"),
    ("{ x, y, z }", "{ x, y, y }", 7, "each level once"),
    ("[ 2 ] { t, f }", "[ 0 ] { }", 4, "0 levels"),
    ("type discrete [ 2 ] { t, f }", "type continuous", 4, "type discrete"),
    ("network small {\n}\n", "", 1, "network"),
    ("variable a", "network two { }\nvariable a", 3, "two of them"),
    ("variable b {", "variable b", 7, "in place of {"),
    ("variable b", "varable b", 6, "in place of a network, variable or probability block"),
    ("{ t, f }", '{ "t, f }', 4, "quotation"),
    ("{ t, f }", '{ "", f }', 4, "an empty name"),
]


@pytest.mark.parametrize(("old", "new", "line", "says"), BAD, ids=lambda v: str(v)[:25])
def test_a_fault_is_refused_by_its_line(tmp_path, old, new, line, says):
    assert old in SMALL
    with pytest.raises(StoreError, match=rf"net\.bif, line {line}: (?s:.*)(?:{says})") as refused:
        read(SMALL.replace(old, new, 1), tmp_path)
    assert refused.value.wanted


def test_the_planted_good_file_is_read(tmp_path):
    """The twin of the refusals: without a fault nothing is refused."""
    np.testing.assert_array_equal(read(SMALL, tmp_path).tables["b"], B)


def test_a_variable_without_probabilities_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"no probabilities of \['b'\]"):
        read(SMALL[: SMALL.index("probability ( b")], tmp_path)


def test_a_file_that_ends_anywhere_is_refused(tmp_path):
    text = SMALL.rstrip()
    for end in range(len(text)):
        with pytest.raises(StoreError, match=r"net\.bif, line \d+: "):
            read(text[:end], tmp_path)


@pytest.mark.parametrize(
    "text", ["", " \n", "{}", "<?xml version='1.0'?>\n<BIF/>", "net\n{\n}\nnode a\n", "MARKOV\n2\n"]
)
def test_empty_and_foreign_files_are_refused(tmp_path, text):
    with pytest.raises(StoreError, match="line 1: "):
        read(text, tmp_path)


def test_damaged_bytes_are_refused(tmp_path):
    whole = gzip.compress(SMALL.encode())
    for raw in (whole[:-20], whole[:40] + b"\0" + whole[41:], b"\xff\xfe" + SMALL.encode("utf-16-le"), b"\x89PNG\0\0"):
        (tmp_path / "net.bif.gz").write_bytes(raw)
        with pytest.raises(StoreError, match=r"net\.bif\.gz"):
            read_bif(tmp_path / "net.bif.gz")
    for missing in (tmp_path / "nets.bif", tmp_path):
        with pytest.raises(StoreError):
            read_bif(missing)


@pytest.mark.parametrize("suffix", [".xmlbif", ".bifxml", ".xml", ".net", ".uai", ".xdsl"])
def test_other_formats_are_sent_to_wrap(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    path.write_text("<BIF/>")
    with pytest.raises(StoreError, match=re.escape(f"probgen.wrap({str(path)!r})")):
        bif.load(path)


def test_a_cycle_is_refused_with_the_file(tmp_path):
    text = SMALL.replace("( c ) {\n  table 0.4, 0.6;", "( c | b ) {\n  default 0.4, 0.6;")
    read(text, tmp_path)
    with pytest.raises(StructureError, match=r"net\.bif: "):
        bif.load(tmp_path / "net.bif")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bytes_changed_at_random_give_a_network_or_an_error(tmp_path_factory, data):
    raw = bytearray(SMALL.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    path = tmp_path_factory.mktemp("fuzz") / "net.bif"
    path.write_bytes(raw)
    try:
        found = read_bif(path)
    except StoreError:
        return
    for table in found.tables.values():
        np.testing.assert_allclose(table.sum(axis=-1), 1, rtol=0, atol=1e-14)


# Writing

NAMES = st.text(st.characters(exclude_characters='"\0', exclude_categories=("Cs",)), min_size=1, max_size=6)


@st.composite
def networks(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    levels = {n: tuple(draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))) for n in names}
    parents = {n: tuple(p for p in names[:i] if draw(st.booleans())) for i, n in enumerate(names)}
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tables = {}
    for n in names:
        table = rng.gamma(draw(st.sampled_from([0.01, 0.3, 3.0])), size=[len(levels[v]) for v in (*parents[n], n)])
        table[..., 0] += 1e-300
        tables[n] = table / table.sum(axis=-1, keepdims=True)
    return Bif(tuple(names), levels, parents, tables)


@settings(max_examples=100, deadline=None)
@given(networks(), st.sampled_from([".bif", ".bif.gz"]))
def test_what_is_written_comes_back_bit_for_bit(tmp_path_factory, net, suffix):
    path = tmp_path_factory.mktemp("net") / f"net{suffix}"
    write_bif(net, path)
    back = read_bif(path)
    same_bits(back, net)
    assert back.corrections == {}


@settings(max_examples=50, deadline=None)
@given(networks())
def test_a_network_that_came_from_a_file_goes_through_another_with_the_same_bits(tmp_path_factory, net):
    folder = tmp_path_factory.mktemp("net")
    write_bif(net, folder / "one.bif")
    first = bif.load(folder / "one.bif")
    bif.save(first, folder / "two.bif")
    second = bif.load(folder / "two.bif")
    for name in net.names:
        assert torch.equal(first.conditional(name).logits, second.conditional(name).logits)
        np.testing.assert_allclose(
            first.conditional(name).log_table().detach().exp(), net.tables[name], rtol=1e-13, atol=0
        )


def test_alarm_goes_through_a_file_with_the_same_bits(tmp_path):
    first = BayesianNetwork.load_file(SHIPPED / "alarm.bif.gz")
    first.save_file(tmp_path / "alarm.bif")
    second = BayesianNetwork.load_file(tmp_path / "alarm.bif")
    assert (first.variables, first.parents, first.event) == (second.variables, second.parents, second.event)
    for name in first.variables:
        assert torch.equal(first.conditional(name).logits, second.conditional(name).logits)
    assert "largest correction is 1e-07" in first.report.notes[0]
    assert second.report.notes == ()


def test_a_file_that_exists_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    found = read(SMALL, tmp_path)
    odd = Bif(("a",), {"a": ("x", 'y"')}, {"a": ()}, {"a": np.array([0.5, 0.5])})
    with pytest.raises(StoreError, match="quotation"):
        write_bif(odd, tmp_path / "net.bif")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StoreError, match="No space"):
        write_bif(found, tmp_path / "net.bif")
    assert [path.name for path in tmp_path.iterdir()] == ["net.bif"]
    assert (tmp_path / "net.bif").read_text() == SMALL


@pytest.mark.parametrize("name", ["net.txt", "net.gz", "net", "net.xmlbif"])
def test_only_bif_is_written(tmp_path, name):
    with pytest.raises(StoreError, match=r"ends in \.bif or \.bif\.gz"):
        write_bif(read(SMALL, tmp_path), tmp_path / name)


def test_variables_that_bif_can_not_hold_are_named(tmp_path):
    event = Table({"a": Category(("t", "f")), "size": Real(), "b": Category(("x", "y"))})
    net = BayesianNetwork(event, [("a", "size"), ("size", "b")]).imported()
    with pytest.raises(StructureError, match=r"\['size', 'b'\]"):
        bif.save(net, tmp_path / "net.bif")
    assert not list(tmp_path.iterdir())


def test_levels_that_are_no_text_are_written_as_text(tmp_path):
    event = Table({"n": Category((0, 1, 2)), "on": Category((True, False))})
    net = BayesianNetwork(event, [("n", "on")]).imported()
    bif.save(net, tmp_path / "net.bif")
    assert read_bif(tmp_path / "net.bif").levels == {"n": ("0", "1", "2"), "on": ("True", "False")}
    with pytest.raises(StoreError, match="texts that differ"):
        bif.save(BayesianNetwork(Table({"n": Category((1, "1"))})).imported(), tmp_path / "other.bif")


def test_conditionals_that_make_a_table_are_written(tmp_path):
    two = Category(("off", "on"))
    event = Table({"a": two, "b": two, "c": two})
    net = BayesianNetwork(event, [("a", "c"), ("b", "c")], {"c": conditionals.NoisyOr()}).imported()
    bif.save(net, tmp_path / "net.bif")
    wanted = net.conditional("c").log_table().exp().detach()
    np.testing.assert_allclose(read_bif(tmp_path / "net.bif").tables["c"], wanted, rtol=0, atol=1e-15)


def test_a_byte_of_value_0_is_refused_by_its_line(tmp_path):
    path = tmp_path / "n.bif"
    path.write_bytes(b"network a {\n}\nvariable b\0 {\n type discrete [ 2 ] { n, y };\n}\n")
    with pytest.raises(StoreError, match="line 3: a byte of value 0"):
        read_bif(path)
