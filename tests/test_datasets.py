"""Data sets: densities that integrate to one, known facts, splits that share no row, readers that refuse damage."""

import csv
import gzip
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probgen import datasets
from probgen.errors import DataError, ParameterError
from probgen.events import Array, Category, Real, Series, Table, Text

TOYS = (datasets.checkerboard, datasets.eight_gaussians, datasets.moons)
FASHION = Path("/usr/share/datasets/fashion-mnist")


def as_array(x):
    return np.stack(list(x.values()), axis=1) if isinstance(x, dict) else np.asarray(x)


# Densities


@pytest.mark.parametrize("toy", TOYS, ids=lambda f: f.__name__)
def test_the_density_of_a_toy_integrates_to_one(toy):
    step = 0.05
    grid = np.arange(-4, 4, step) + step / 2
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    log_density = toy(10).log_density
    total = sum(np.exp(log_density(part)).sum() for part in np.array_split(points, 40)) * step**2
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("toy", TOYS, ids=lambda f: f.__name__)
def test_the_draws_of_a_toy_follow_its_density(toy):
    """Shares of draws in the cells of a coarse grid against the density summed over a fine one (chi-squared)."""
    drawn, step = toy(20_000, seed=3), 0.05
    grid = np.arange(-3, 3, step) + step / 2
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    density = np.concatenate([np.exp(drawn.log_density(part)) for part in np.array_split(points, 40)])
    edges = [np.arange(-3, 3.5, 0.5)] * 2
    expected = np.histogramdd(points, edges, weights=density * step**2)[0] * len(drawn.x)
    seen = np.histogramdd(drawn.x, edges)[0]
    large = expected > 20
    chi = ((seen - expected)[large] ** 2 / expected[large]).sum()
    freedom = large.sum() - 1
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)
    assert seen[~large].sum() < 1.3 * expected[~large].sum() + 30


def test_the_checkerboard_is_zero_off_its_black_squares_and_covers_each_once():
    log_density = datasets.checkerboard(10).log_density
    corners = np.stack(np.meshgrid(np.arange(-3, 3), np.arange(-3, 3)), axis=-1).reshape(-1, 2)
    black = np.isfinite(log_density(corners + 0.5))
    assert black.sum() == 8
    assert (np.isfinite(log_density(corners)) == black).all()  # a square holds its lower left corner, also at the rim


def test_eight_gaussians_have_the_density_of_scipy():
    from scipy.stats import multivariate_normal

    toy = datasets.eight_gaussians(50)
    centres = [(2 * math.cos(i * math.pi / 4), 2 * math.sin(i * math.pi / 4)) for i in range(8)]
    direct = np.mean([multivariate_normal(c, 0.04).pdf(toy.x) for c in centres], axis=0)
    assert np.allclose(toy.log_density(toy.x), np.log(direct), atol=1e-10)


@pytest.mark.parametrize("toy", TOYS, ids=lambda f: f.__name__)
def test_a_toy_depends_on_its_seed_alone(toy):
    assert (toy(50, seed=1).x == toy(50, seed=1).x).all()
    assert (toy(50, seed=1).x != toy(50, seed=2).x).any()


# Facts


def test_digits_are_1797_pictures_of_17_levels():
    digits = datasets.load("digits")
    assert digits.x.shape == (1797, 8, 8)
    assert (digits.x.min(), digits.x.max(), digits.event.levels) == (0, 16, 17)
    assert len(digits) == 1797


def test_iris_is_150_flowers_of_three_species_in_tenths_of_a_centimetre():
    iris = datasets.load("iris")
    assert len(iris) == 150
    assert {name: list(iris.x["species"]).count(name) for name in set(iris.x["species"])} == dict.fromkeys(
        ("setosa", "versicolor", "virginica"), 50
    )
    assert iris.x["sepal_length"].mean() == pytest.approx(5.8433, abs=1e-4)
    assert iris.event.columns["petal_width"] == Real("cm", 0.1)


def test_earthquakes_are_107_years_with_a_mean_of_19_36():
    (counts,) = datasets.load("earthquakes").x
    assert len(counts) == 107
    assert counts.mean() == pytest.approx(19.36, abs=0.005)
    assert counts.var(ddof=1) == pytest.approx(51.57, abs=0.005)  # the book's
    assert (counts[0], counts[-1], counts.max()) == (13, 11, 41)


def test_melodies_are_39_tunes_whose_codes_are_in_range():
    melodies = datasets.load("melodies")
    assert len(melodies) == len(melodies.x) == 39
    codes = np.concatenate(melodies.x)
    assert (codes >= 0).all()
    assert (codes.max(axis=0) == np.array(melodies.event.levels) - 1).all()
    assert (codes[:, 1] >= 1).all()  # every note lasts
    with open(Path(datasets.__file__).parent / "data" / "melodies.csv", newline="") as file:
        notes = [(int(row["pitch"]), int(row["duration"])) for row in csv.DictReader(file)]
    assert codes.tolist() == [[max(pitch - 51, 0), duration] for pitch, duration in notes]


@pytest.mark.debian
@pytest.mark.skipif(not FASHION.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_70000_pictures():
    fashion = datasets.load("fashion_mnist")
    assert fashion.x.shape == (70_000, 28, 28)
    assert fashion.event.levels == 256
    assert fashion.x[:60_000].mean() / 255 == pytest.approx(0.2860, abs=1e-4)


def test_fashion_mnist_is_read_from_a_folder_of_idx_files_plain_or_compressed(tmp_path):
    train, held = (np.arange(n * 784, dtype=np.uint8).reshape(n, 28, 28) for n in (3, 2))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(train))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(held)))
    assert (datasets.fashion_mnist(tmp_path).x == np.concatenate([train, held])).all()


def test_fashion_mnist_without_its_files_names_the_package(tmp_path):
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        datasets.fashion_mnist(tmp_path)


@pytest.mark.parametrize("name", sorted(set(datasets.names()) - {"fashion_mnist"}))
def test_every_embedded_set_passes_its_own_event(name):
    loaded = datasets.load(name)
    assert loaded.name == name
    assert len(loaded) == len(loaded.event.check(loaded.x)) > 0
    assert loaded.about


# Splits


@pytest.mark.parametrize("name", ["moons", "digits", "melodies", "iris"])
def test_a_split_shares_no_row_and_loses_none(name):
    loaded = datasets.load(name)
    train, held = loaded.split(0.3, seed=5)
    every, first, second = (loaded.event.check(x).about.content for x in (loaded.x, train, held))
    assert sorted([*first, *second]) == sorted(every)
    assert len(second) == round(0.3 * len(every))


def test_a_split_is_the_same_for_a_seed_and_another_for_another():
    moons = datasets.load("moons")
    one, again, other = moons.split(seed=1)[1], moons.split(seed=1)[1], moons.split(seed=2)[1]
    assert (one == again).all()
    assert (one != other).any()


def test_the_split_of_one_series_keeps_the_order_of_time():
    quakes = datasets.load("earthquakes")
    train, held = quakes.split(0.2)
    assert (len(train[0]), len(held[0])) == (86, 21)
    assert (np.concatenate([*train, *held]) == quakes.x[0]).all()


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, math.nan])
def test_a_split_refuses_a_share_outside_0_and_1(share):
    with pytest.raises(ParameterError, match="share"):
        datasets.load("moons").split(share)


def test_a_split_refuses_a_negative_seed():
    with pytest.raises(ParameterError, match="seed=-1"):
        datasets.load("moons").split(seed=-1)


@pytest.mark.parametrize(
    ("x", "event", "share"),
    [
        (np.ones((1, 2)), Array((2,)), 0.2),
        (np.ones((3, 2)), Array((2,)), 0.9),
        ([np.ones(1)], Series(), 0.2),
        ([np.ones(3)], Series(), 0.99),
    ],
    ids=["one row", "three rows", "one step", "three steps"],
)
def test_a_split_that_leaves_a_side_empty_is_refused(x, event, share):
    with pytest.raises(ParameterError, match="each side"):
        datasets.Dataset("few", x, event, "").split(share)


# Names and paths


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        datasets.load("digit")


@pytest.mark.parametrize("name", ["nowhere.csv", "no/where", "a" * 5000, "nul\0.csv"])
def test_a_path_that_leads_nowhere_is_refused(name):
    with pytest.raises(DataError, match="There is no"):
        datasets.load(name)


def test_a_folder_without_tables_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(DataError, match="folder without Parquet"):
        datasets.load(tmp_path)


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    for i in range(3):
        pd.DataFrame({"a": [i + 0.5]}).to_parquet(tmp_path / f"part{i}.parquet")
    assert len(datasets.load(tmp_path)) == 3


# Readers


def idx(array, kind=8):
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype({8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}[kind]).tobytes()


@pytest.mark.parametrize("kind", [8, 9, 11, 12, 13, 14])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_of_every_type_come_back_as_written(tmp_path, kind, suffix):
    array = np.arange(24).reshape(2, 3, 4)
    path = tmp_path / f"t-images-idx3{suffix}"
    path.write_bytes(gzip.compress(idx(array, kind)) if suffix else idx(array, kind))
    read = datasets.read(path)
    assert (read == array).all()
    assert read.dtype.isnative


def test_arrays_come_back_from_npy_and_npz(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "one.npz", rows=x)
    np.savez_compressed(tmp_path / "two.npz", x=x, y=np.ones(5))
    for name in ("x.npy", "one.npz", "two.npz"):
        assert (datasets.read(tmp_path / name) == x).all()
    assert datasets.load(tmp_path / "x.npy").event == Array((3,))


def test_an_npz_of_several_arrays_without_x_says_what_it_holds(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(2), b=np.ones(2))
    with pytest.raises(DataError, match=r"\['a', 'b'\].*one named x"):
        datasets.read(tmp_path / "x.npz")


def test_a_text_file_is_a_string_a_line_without_its_byte_order_mark(tmp_path):
    (tmp_path / "x.txt").write_text("\ufeffå rose\n\n  \nis a rose\n", encoding="utf-8")
    assert datasets.read(tmp_path / "x.txt") == ["å rose", "is a rose"]
    assert isinstance(datasets.load(tmp_path / "x.txt").event, Text)


FRAME = pd.DataFrame({"height": [1.25, 2.5, math.nan], "colour": ["red", None, "blue"]})


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.parquet", "x.pq", "X.CSV"])
def test_tables_come_back_with_their_gaps(tmp_path, name):
    path, kind = tmp_path / name, Path(name).suffix.lower()
    if kind in (".csv", ".tsv"):
        FRAME.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",")
    else:
        FRAME.to_parquet(path, engine="pyarrow")
    loaded = datasets.load(path)
    assert loaded.event == Table({"height": Real(), "colour": Category(("blue", "red"))})
    cells = loaded.event.check(loaded.x).x.numpy()
    assert np.array_equal(cells, [[1.25, 1], [2.5, math.nan], [math.nan, 0]], equal_nan=True)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "pq", "npy", "npz", "txt", "idx", "idx.gz", "gz", "xlsx"])
@pytest.mark.parametrize("content", [b"", b"\xc3(\xa0\xa1,\x00\x01\n\xff,\n" * 9], ids=["empty", "garbage"])
def test_wrong_bytes_are_refused_with_the_path(tmp_path, suffix, content):
    path = tmp_path / f"wrong.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="wrong") as caught:
        datasets.load(path)
    assert caught.value.wanted
    assert "unsafe" not in str(caught.value)  # NumPy's advice to trust a pickle


def test_pickles_are_never_read(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"x\.npy"):
        datasets.read(tmp_path / "x.npy")


def whole_files(folder):
    x = np.random.default_rng(1).normal(size=(7, 3))
    np.save(folder / "x.npy", x)
    np.savez_compressed(folder / "x.npz", x=x)
    (folder / "x.idx").write_bytes(idx(x, 14))
    (folder / "x.idx.gz").write_bytes(gzip.compress(idx(x, 14)))
    FRAME.to_parquet(folder / "x.parquet")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    for name, raw in whole_files(tmp_path).items():
        for share in (0.02, 0.3, 0.6, 0.97):
            (tmp_path / name).write_bytes(raw[: int(share * len(raw))])
            with pytest.raises(DataError, match=name.replace(".", r"\.")):
                datasets.read(tmp_path / name)


def test_a_file_with_changed_bytes_is_read_or_refused_but_never_breaks(tmp_path):
    rng, refused = np.random.default_rng(2), 0
    for name, raw in whole_files(tmp_path).items():
        for _ in range(40):
            bad = bytearray(raw)
            for _ in range(3):
                bad[rng.integers(min(len(bad), 120))] = rng.integers(256)
            (tmp_path / name).write_bytes(bad)
            try:
                datasets.read(tmp_path / name)
            except DataError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "raw",
    [b"\0\0\x08\0\x05", b"\0\0\x08\x01\0\0\0\x09abc", b"\0\0\x07\x01\0\0\0\x01a", b"\0\0\x08\xff\0\0", b"\0\0\x08"],
    ids=["no dimensions", "too short", "unknown type", "255 dimensions", "three bytes"],
)
def test_idx_files_with_wrong_heads_are_refused(tmp_path, raw):
    (tmp_path / "x-idx").write_bytes(raw)
    with pytest.raises(DataError, match="x-idx"):
        datasets.read(tmp_path / "x-idx")


def test_a_zip_without_arrays_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(DataError, match=r"x\.npz"):
        datasets.load(tmp_path / "x.npz")
