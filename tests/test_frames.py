"""Frames in and out: every library's columns mean the same, and a file is wholly the old one or wholly the new one."""

import errno
import math
import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probgen import frames
from probgen.errors import DataError, ProbgenError, StoreError

searched = settings(derandomize=True, deadline=None, max_examples=40)
NAN = math.nan
LIBRARIES = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table}


def cells(values, missing):
    """Values with None where they are missing: what a column says, whatever marks its gaps."""
    assert values.shape == missing.shape
    assert missing.dtype == bool
    return [None if m else v for v, m in zip(values.tolist(), missing, strict=True)]


def column(data, name="a"):
    return cells(*frames.columns(data)[0][name])


# Columns


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("given_values", "kind"),
    [
        ([1, 2, 3], "i"),
        ([1.5, -0.0, 1e300], "f"),
        (["x", "", "y"], "O"),
        ([True, False, True], "O"),
        (["x", None, "y"], "O"),
        ([True, None, False], "O"),
        ([1.5, None, 2.5], "f"),
    ],
    ids=repr,
)
def test_one_column_is_the_same_in_every_library(library, given_values, kind):
    values, missing = frames.columns(LIBRARIES[library]({"a": given_values}))[0]["a"]
    assert cells(values, missing) == given_values
    assert values.dtype.kind == kind


@pytest.mark.parametrize(
    ("series", "expected", "kind"),
    [
        (pd.array([1, None, 3], dtype="Int64"), [1.0, None, 3.0], "f"),
        (pd.array([1, 2**53 + 1], dtype="Int64"), [1, 2**53 + 1], "i"),
        (pd.array([0.5, None], dtype="Float64"), [0.5, None], "f"),
        (pd.array([True, None], dtype="boolean"), [True, None], "O"),
        (pd.array(["x", None], dtype="string"), ["x", None], "O"),
        (pd.array([1, None], dtype="int64[pyarrow]"), [1.0, None], "f"),
        (pd.array(["x", None], dtype="string[pyarrow]"), ["x", None], "O"),
        (pd.Series(["x", NAN], dtype=object), ["x", None], "O"),
        (pd.Series([1, None, 2.5], dtype=object), [1, None, 2.5], "O"),
        (np.array([1.0, NAN]), [1.0, None], "f"),
        (np.array([1, 2], dtype=np.uint8), [1, 2], "u"),
        (pd.Categorical([1, None], categories=[2, 1]), [1, None], "O"),
    ],
    ids=lambda v: str(getattr(v, "dtype", "")),
)
def test_pandas_columns_of_every_type_keep_values_and_gaps(series, expected, kind):
    values, missing = frames.columns(pd.DataFrame({"a": series}))[0]["a"]
    assert cells(values, missing) == expected
    assert values.dtype.kind == kind
    if kind == "f":
        assert np.isnan(values).tolist() == [v is None for v in expected]


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_null_and_nan_are_both_nan_but_only_null_is_missing(library):
    values, missing = frames.columns(LIBRARIES[library]({"a": [1.0, None, NAN]}))[0]["a"]
    assert np.isnan(values).tolist() == [False, True, True]
    assert missing.tolist() == [False, True, False]


def test_a_lazy_frame_is_collected():
    assert column(pl.LazyFrame({"a": [1, 2]}).filter(pl.col("a") > 1)) == [2]


CATEGORIES = {
    "pandas": lambda: pd.DataFrame({"a": pd.Categorical(["z", None, "x"], categories=["z", "y", "x"])}),
    "pandas ordered": lambda: pd.DataFrame(
        {"a": pd.Categorical(["z", None, "x"], categories=["z", "y", "x"], ordered=True)}
    ),
    "polars": lambda: pl.DataFrame({"a": pl.Series(["z", None, "x"], dtype=pl.Enum(["z", "y", "x"]))}),
    "pyarrow": lambda: pa.table(
        {"a": pa.DictionaryArray.from_arrays(pa.array([0, None, 2]), pa.array(["z", "y", "x"]))}
    ),
}  # fmt: skip


@pytest.mark.parametrize("frame", CATEGORIES.values(), ids=CATEGORIES)
def test_declared_categories_keep_their_order_and_the_unused_ones(frame):
    _, _, levels = frames.columns(frame())
    assert levels == {"a": ["z", "y", "x"]}
    assert column(frame()) == ["z", None, "x"]


@pytest.mark.parametrize("categories", [[7, 8, 9], [0.5, 1.5, 2.5], [True, False], ["a", 1], [1, "a"]], ids=repr)
def test_categories_keep_their_type(categories):
    frame = pd.DataFrame({"a": pd.Categorical(categories, categories=categories)})
    assert frames.columns(frame)[2] == {"a": categories}
    assert column(frame) == categories
    assert [type(v) for v in column(frame)] == [type(v) for v in categories]


def test_whole_number_categories_stay_whole_in_arrow():
    arrow = pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array([7, 8]))})
    assert frames.columns(arrow)[2] == {"a": [7, 8]}
    assert column(arrow) == [8, 7]


def test_polars_categories_are_those_of_this_column():
    kept = pl.Series(["elsewhere"], dtype=pl.Categorical)
    frame = pl.DataFrame({"a": pl.Series(["u", None, "v"], dtype=pl.Categorical)})
    assert set(frames.columns(frame)[2]["a"]) == {"u", "v"}
    assert len(kept) == 1


def test_plain_strings_declare_no_categories():
    for library in LIBRARIES.values():
        assert frames.columns(library({"a": ["x", "y"]}))[2] == {}


@pytest.mark.parametrize(
    ("index", "keys"),
    [
        (["p", "q", "r"], ["p", "q", "r"]),
        ([30, 10, 20], [30, 10, 20]),
        ([0.5, 1.5, 2.5], [0.5, 1.5, 2.5]),
        (["p", "p", "q"], ["p", "p", "q"]),
        (pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)]), ["('a', 1)", "('a', 2)", "('b', 1)"]),
        (pd.RangeIndex(3), [0, 1, 2]),
    ],
    ids=["strings", "numbers", "floats", "repeated", "levels", "range"],
)
def test_a_pandas_index_gives_the_row_keys(index, keys):
    assert frames.columns(pd.DataFrame({"a": [1, 2, 3]}, index=index))[1].tolist() == keys


@pytest.mark.parametrize(
    ("cut", "keys"), [(slice(5, 8), [5, 6, 7]), (slice(None, None, -3), [9, 6, 3, 0]), (slice(0, 2), [0, 1])]
)
def test_a_slice_of_a_pandas_frame_keeps_its_row_labels(cut, keys):
    assert frames.columns(pd.DataFrame({"a": range(10)})[cut])[1].tolist() == keys


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_rows_without_an_index_are_numbered(library):
    assert frames.columns(LIBRARIES[library]({"a": ["x", "y"]}))[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
        pa.table([[1], [2]], names=["a", "a"]),
        pd.DataFrame([[1, 2]], columns=[1, "1"]),
    ],
    ids=["pandas", "pyarrow", "1 and '1'"],
)
def test_duplicate_column_names_are_refused(frame):
    with pytest.raises(DataError, match="Duplicate column") as caught:
        frames.columns(frame)
    assert caught.value.do


def test_columns_with_numbers_for_names_are_named_by_their_text():
    assert list(frames.columns(pd.DataFrame([[1, 2]], columns=[0, 1]))[0]) == ["0", "1"]


def test_no_columns_are_no_columns():
    values, keys, levels = frames.columns(pd.DataFrame(index=["p", "q"]))
    assert (values, levels) == ({}, {})
    assert keys.tolist() == ["p", "q"]


@searched
@given(
    rows=st.lists(
        st.tuples(st.none() | st.integers(-(2**40), 2**40), st.none() | st.text("ab,\"'é ", max_size=3)),
        min_size=1,
        max_size=6,
    )
)  # fmt: skip
def test_the_three_libraries_agree_on_any_table(rows):
    ages, names = (list(side) for side in zip(*rows, strict=True))
    arrow = pa.table({"age": pa.array(ages, pa.int64()), "name": pa.array(names, pa.string())})
    for frame in (arrow, pl.from_arrow(arrow), arrow.to_pandas()):
        assert column(frame, "age") == ages
        assert column(frame, "name") == names


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pd.DataFrame(), True),
        (pl.DataFrame(), True),
        (pl.LazyFrame(), True),
        (pa.table({}), True),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), True),
        (pd.Series([1]), False),
        (pa.array([1]), False),
        ([1], False),
        ({}, False),
        (None, False),
        ("a.csv", False),
        (Path("a.csv"), False),
        (np.zeros(2), False),
        (np.ma.zeros(2), False),
        (torch.zeros(2), False),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_frame_is_known_as_one_and_nothing_else_is(data, expected):
    assert frames.is_frame(data) is expected


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_library_of_a_frame_has_its_name(library):
    assert frames.form(LIBRARIES[library]({"a": [1]})) == library


# Tables


@pytest.mark.parametrize(
    ("values", "expected", "kind"),
    [
        ([1, None], [1, None], pa.int64()),
        ([1.5, None], [1.5, None], pa.float64()),
        (["x", None], ["x", None], pa.string()),
        (np.array([1.5, -math.inf]), [1.5, -math.inf], pa.float64()),
        (np.array(["x", "y"]), ["x", "y"], pa.string()),
        (np.ma.MaskedArray([1.5, NAN, -math.inf], [False, True, False]), [1.5, None, -math.inf], pa.float64()),
        (np.ma.MaskedArray([1, 2]), [1, 2], pa.int64()),
        (np.ma.MaskedArray(np.array(["x", "y"]), [False, True]), ["x", None], pa.string()),
        (np.array(["x", None], dtype=object), ["x", None], pa.string()),
        (np.array(["x", 7, None], dtype=object), ["x", "7", None], pa.string()),
        (np.array([1.5, None], dtype=object), [1.5, None], pa.float64()),
        (np.array([1.5, 2], dtype=object), [1.5, 2.0], pa.float64()),
        (np.array(["x", NAN], dtype=object), ["x", None], pa.string()),
        (np.array(["x", pd.NA], dtype=object), ["x", None], pa.string()),
    ],
    ids=lambda v: repr(v).replace("\n", ""),
)
def test_a_table_keeps_values_types_and_gaps(values, expected, kind):
    made = frames.table({"a": values})["a"]
    assert made.to_pylist() == expected
    assert made.type == kind


@pytest.mark.parametrize("data", [{"a": [1], "b": [1, 2]}, {"a": np.zeros((2, 2))}], ids=["lengths", "matrix"])
def test_columns_that_make_no_table_are_refused_as_data(data):
    with pytest.raises(DataError):
        frames.table(data)


@pytest.mark.parametrize("library", [*LIBRARIES, "dict"])
def test_native_gives_the_library_that_was_asked_for(library):
    frame = frames.native({"a": np.array([1.5, 2.5]), "b": np.array(["x", "y"])}, library)
    assert frames.form(frame) == ("pyarrow" if library == "dict" else library)
    assert column(frame) == [1.5, 2.5]
    assert column(frame, "b") == ["x", "y"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_masked_cells_are_missing_in_every_library(library):
    frame = frames.native({"a": np.ma.MaskedArray([1.5, 2.5], [False, True])}, library)
    assert column(frame) == [1.5, None]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([1], [2], [1, 2]),
        ([1], [1.5], [1.0, 1.5]),
        ([None], ["x"], [None, "x"]),
        ([1], [None], [1, None]),
        ([1], ["x"], ["1", "x"]),
        (["x"], [1.5], ["x", "1.5"]),
    ],
)
def test_stacked_tables_keep_every_row_whatever_the_types(one, two, expected):
    stacked = frames.stack([frames.table({"a": one}), frames.table({"a": two})])
    assert stacked["a"].to_pylist() == expected


def test_stacking_fills_lacking_columns_with_nulls():
    stacked = frames.stack([frames.table({"a": [1]}), frames.table({"b": ["x"]})])
    assert stacked.to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


# Files

TABLE = pa.table({"n": [1, 2, None], "x": [0.1, -1e-300, None], "s": ["x", "a,b", 'q"\n'], "m": ["x", None, "y"]})


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".PARQUET", ".CSV"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    frames.write(TABLE, tmp_path / f"t{suffix}")
    assert frames.read(tmp_path / f"t{suffix}").to_pydict() == TABLE.to_pydict()
    assert frames.read(str(tmp_path / f"t{suffix}")).to_pydict() == TABLE.to_pydict()


@searched
@given(
    x=st.lists(st.floats(allow_nan=False), min_size=1, max_size=5), s=st.text('ab,;"\n\té', min_size=1, max_size=5)
)  # fmt: skip
def test_floats_and_text_survive_a_file_to_the_last_bit(tmp_path_factory, x, s):
    folder = tmp_path_factory.mktemp("t")
    for name in ("t.csv", "t.parquet"):
        frames.write(frames.table({"x": np.array(x), "s": [f"s{s}"] * len(x)}), folder / name)
        back = frames.read(folder / name)
        assert np.array(back["x"], dtype=float).tobytes() == np.array(x).tobytes()
        assert back["s"].to_pylist() == [f"s{s}"] * len(x)


@pytest.mark.parametrize("name", ["t.tsv", "t.TSV"])
def test_tabs_separate_a_tsv_file(tmp_path, name):
    (tmp_path / name).write_text("a\tb,c\n1\tx\n")
    assert frames.read(tmp_path / name).to_pydict() == {"a": [1], "b,c": ["x"]}


def test_an_empty_cell_of_a_csv_is_missing_whatever_its_column(tmp_path):
    (tmp_path / "t.csv").write_text("sex,age\nm,1.5\n,2.5\nf,\n")
    frame = frames.read(tmp_path / "t.csv")
    assert column(frame, "age") == [1.5, 2.5, None]
    assert column(frame, "sex") == ["m", None, "f"]


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    for i in range(3):
        frames.write(pa.table({"a": [i]}), tmp_path / f"part-{i}.parquet")
    assert sorted(frames.read(tmp_path)["a"].to_pylist()) == [0, 1, 2]


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": list(range(100))}), sink)
    return sink.getvalue().to_pybytes()


WHOLE = parquet()
DAMAGED = {
    "empty.csv": b"",
    "header.csv": b"a,b\n",
    "ragged.csv": b"a,b\n1,2\n3\n",
    "empty.parquet": b"",
    "magic.parquet": WHOLE[:4],
    "half.parquet": WHOLE[: len(WHOLE) // 2],
    "last byte.pq": WHOLE[:-1],
    "text.parquet": b"a,b\n1,2\n",
    "page.parquet": WHOLE[:10] + b"\xff" * 20 + WHOLE[30:],
    "latin header.csv": "é,b\n1,2\n".encode("latin-1"),
    "notes.txt": b"a,b\n1,2\n",
    "no suffix": b"a,b\n1,2\n",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_no_table_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(DataError) as caught:
        frames.read(path)
    assert str(path) in caught.value.came
    assert caught.value.wanted
    assert caught.value.do
    assert caught.value.code == "data"


def test_duplicate_names_in_a_csv_header_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="Duplicate column"):
        frames.columns(frames.read(tmp_path / "t.csv"))


@pytest.mark.parametrize("name", ["iriss.csv", "lost/iris.csv", "n" * 300 + ".csv"], ids=["typo", "folder", "too long"])
def test_a_missing_file_is_named(tmp_path, name):
    (tmp_path / "iris.csv").write_text("a\n1\n")
    with pytest.raises(DataError) as caught:
        frames.read(tmp_path / name)
    assert str(tmp_path / name) in caught.value.came
    assert caught.value.do


def test_a_misspelt_file_brings_the_nearest_name(tmp_path):
    (tmp_path / "iris.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"Did you mean 'iris\.csv'"):
        frames.read(tmp_path / "iriss.csv")


def test_an_empty_folder_has_no_rows(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        frames.read(tmp_path)


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.tsv"])
def test_an_output_of_another_type_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(StoreError, match="parquet") as caught:
        frames.write(TABLE, tmp_path / name)
    assert str(tmp_path / name) in caught.value.came
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_a_csv_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"old")
    with pytest.raises(ProbgenError):
        frames.write(pa.table({"a": [[1], [2]]}), path)
    assert path.read_bytes() == b"old"


# Whole or not at all


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


class Failing:
    """A file whose write, flush or close fails, after some bytes went out."""

    def __init__(self, file, verb, error):
        self.file, self.verb, self.error = file, verb, error

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()
        if self.verb == "close" and exception == (None, None, None):
            raise self.error

    def write(self, chunk):
        if self.verb == "write":
            self.file.write(chunk[: len(chunk) // 2])
            raise self.error
        return self.file.write(chunk)

    def flush(self):
        self.file.flush()
        if self.verb == "flush":
            raise self.error


def break_open(monkeypatch, verb, error):
    def opened(*args):
        return Failing(open(*args), verb, error)

    monkeypatch.setattr(frames.files, "open", opened, raising=False)


DENIED = PermissionError(errno.EACCES, "Permission denied")
FULL = OSError(errno.ENOSPC, "No space left on device")
BREAKS = {
    "open": lambda m: m.setattr(frames.files, "open", failing(DENIED), raising=False),
    "write": lambda m: break_open(m, "write", FULL),
    "flush": lambda m: break_open(m, "flush", FULL),
    "close": lambda m: break_open(m, "close", FULL),
    "fsync": lambda m: m.setattr(os, "fsync", failing(OSError(errno.EIO, "Input/output error"))),
    "replace": lambda m: m.setattr(os, "replace", failing(PermissionError(errno.EPERM, "Operation not permitted"))),
}  # fmt: skip


def aftermath(write, folder, monkeypatch, breaks):
    """What a failed write did: its error, and whether the folder is as it was."""
    path = folder / "t.csv"
    path.write_bytes(b"old and whole")
    with monkeypatch.context() as m:
        breaks(m)
        try:
            write(path, [b"new ", b"and longer than before"])
        except Exception as problem:
            error = problem
        else:
            error = None
    return error, path.read_bytes() == b"old and whole", [p.name for p in folder.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("stage", BREAKS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, stage):
    error, old, alone = aftermath(frames.write_whole, tmp_path, monkeypatch, BREAKS[stage])
    assert isinstance(error, StoreError)
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.strerror in error.came
    assert str(tmp_path / "t.csv") in error.came
    assert error.wanted
    assert error.do
    assert error.code == "store"
    assert old
    assert alone


def in_place(path, chunks):
    """Planted bug: the file is overwritten where it stands."""
    with frames.files.open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)


def test_twin_writing_in_place_is_detected(tmp_path, monkeypatch):
    _, old, _ = aftermath(in_place, tmp_path, monkeypatch, BREAKS["write"])
    assert not old


def test_twin_a_forgotten_temporary_file_is_detected(tmp_path, monkeypatch):
    def breaks(m):
        BREAKS["fsync"](m)
        m.setattr(os, "unlink", lambda path: None)

    _, old, alone = aftermath(frames.write_whole, tmp_path, monkeypatch, breaks)
    assert old
    assert not alone


@pytest.mark.parametrize("error", [ValueError("no chunk"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_source_that_breaks_half_way_leaves_the_old_file_and_nothing_else(tmp_path, error):
    def chunks():
        yield b"new"
        raise error

    (tmp_path / "t").write_bytes(b"old")
    with pytest.raises(type(error)):
        frames.write_whole(tmp_path / "t", chunks())
    assert (tmp_path / "t").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_whole_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path):
    (tmp_path / "t").write_bytes(b"old and longer")
    frames.write_whole(tmp_path / "t", [b"n", b"", memoryview(b"ew")])
    assert (tmp_path / "t").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_bytes_are_on_the_disk_before_the_name_is_and_the_name_after(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle):
        status = os.fstat(handle)
        done.append(("fsync folder" if stat.S_ISDIR(status.st_mode) else "fsync file", status.st_size))
        fsync(handle)

    def watched_replace(source, target):
        assert Path(source).parent == Path(target).parent, "a rename between file systems is no rename"
        done.append(("replace", os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    frames.write_whole(tmp_path / "t", [b"12345"])
    assert done[:2] == [("fsync file", 5), ("replace", 5)]
    assert [step for step, _ in done[2:]] == ["fsync folder"]


def test_a_folder_that_cannot_be_synced_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", failing(OSError(errno.EACCES, "Permission denied")))
    frames.sync_folder(tmp_path)


PLACES = {
    "no folder": lambda folder: folder / "lost" / "t.csv",
    "a file as folder": lambda folder: folder / "file" / "t.csv",
    "a folder as file": lambda folder: folder / "folder.csv",
    "too long": lambda folder: folder / ("n" * 300 + ".csv"),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_place_that_takes_no_file_is_named(tmp_path, place):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder.csv").mkdir()
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(StoreError) as caught:
        frames.write(TABLE, place(tmp_path))
    assert str(place(tmp_path)) in caught.value.came
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_unwritable_folder_is_named(tmp_path, monkeypatch):
    """By a refused open: the tests may run as root, whom no mode bits stop."""
    BREAKS["open"](monkeypatch)
    with pytest.raises(StoreError, match="Permission denied") as caught:
        frames.write(TABLE, tmp_path / "t.csv")
    assert str(tmp_path / "t.csv") in caught.value.came
    assert list(tmp_path.iterdir()) == []


def test_words_that_are_gaps_among_numbers_and_texts_among_texts_are_told(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sex,age,code\nf,3,NA\nNA,NA,b\nm,5,b\nNA,2,\n")
    with pytest.warns(UserWarning, match="column 'sex': 'NA' in 2 rows is read as text.*missing cell") as told:
        found = frames.read(path, ["code"])
    assert len(told) == 1  # the levels of "code" are declared
    assert found["age"].null_count == 1
    assert found["sex"].to_pylist() == ["f", "NA", "m", "NA"]
    path.write_text("sex,age\nf,3\n,NA\n")
    assert frames.read(path)["sex"].to_pylist() == ["f", None]  # the twin: nothing is told
