"""Data sets: densities that integrate to one, known facts, splits that share no row, readers that refuse damage."""

import csv
import gzip
import json
import math
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probgen import datasets
from probgen.datasets.captions import FASHION, TONES, fashion_caption_list
from probgen.errors import DataError, MissingExtra, ParameterError, ShapeError
from probgen.events import Array, Category, Real, Record, Series, Table, Text

TOYS = (datasets.checkerboard, datasets.eight_gaussians, datasets.moons)
FASHION_FILES = Path("/usr/share/datasets/fashion-mnist")


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
@pytest.mark.skipif(not FASHION_FILES.exists(), reason="Debian's dataset-fashion-mnist is not installed")
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


@pytest.mark.parametrize("name", sorted(set(datasets.names()) - {"fashion_mnist", "fashion_captions"}))
def test_every_embedded_set_passes_its_own_event(name):
    loaded = datasets.load(name)
    assert loaded.name == name
    assert len(loaded) == len(loaded.event.check(loaded.x)) > 0
    assert loaded.about


# Captions


def garment(rows, columns, grey=255):
    """A rectangle of one grey on white, (28, 28)."""
    picture = np.zeros((28, 28), dtype=np.uint8)
    picture[slice(*rows), slice(*columns)] = grey
    return picture


def caption(picture, name):
    return fashion_caption_list(picture[None], np.array([list(FASHION).index(name)]))[0]


@pytest.mark.parametrize(
    ("grey", "tone"), [(45, "bright"), (127, "bright"), (128, "grey"), (191, "grey"), (192, "dark")]
)
def test_the_tone_of_a_caption_is_the_mean_of_the_garment(grey, tone):
    assert caption(garment((2, 26), (8, 20), grey), "coat") == f"a {tone} coat"
    faint = garment((2, 26), (8, 20), grey)
    faint[0] = 39  # below the ink threshold: no part of the garment
    assert caption(faint, "coat") == f"a {tone} coat"


def test_widths_sleeves_heels_and_handles_are_measured():
    assert caption(garment((0, 28), (8, 19)), "trousers") == "a pair of dark narrow trousers"
    assert caption(garment((0, 28), (8, 20)), "trousers") == "a pair of dark wide trousers"
    assert caption(garment((0, 28), (6, 20)), "dress") == "a dark narrow dress"
    assert caption(garment((0, 28), (6, 21)), "dress") == "a dark wide dress"
    shirt = garment((1, 27), (8, 20))
    assert caption(shirt, "shirt") == "a dark long-sleeved shirt"
    assert caption(shirt, "t-shirt") == "a dark sleeveless t-shirt"
    shirt[2:9, 5:23] = 255
    assert caption(shirt, "shirt") == "a dark short-sleeved shirt"
    assert caption(shirt, "t-shirt") == "a dark t-shirt"
    boot = garment((5, 24), (2, 26))
    assert caption(boot, "boot") == "a dark boot"
    boot[21:24, 12:15] = 0
    assert caption(boot, "boot") == "a dark boot with a heel"
    boot[21:24, 12] = 255
    assert caption(boot, "sandal") == "a dark sandal"
    assert caption(garment((8, 22), (0, 28)), "sneaker") == "a dark sneaker"
    assert caption(garment((8, 23), (0, 28)), "sneaker") == "a dark high sneaker"
    bag = garment((8, 26), (1, 27))
    assert caption(bag, "bag") == "a dark wide bag"
    bag[4:8, 8] = bag[4:8, 18] = 255
    assert caption(bag, "bag") == "a dark wide bag with a handle"
    assert caption(garment((8, 26), (1, 26)), "bag") == "a dark narrow bag"


def test_a_picture_without_ink_has_a_caption_too():
    assert {caption(np.zeros((28, 28), np.uint8), name).split()[-1] for name in FASHION} >= {"boot", "handle", "coat"}


def fashion_folder(folder, train=12, held=2):
    rng = np.random.default_rng(1)
    for part, n in (("train", train), ("t10k", held)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n, dtype=np.uint8) % 10))
    return folder


def test_fashion_captions_are_dithered_or_cut_into_levels_and_hold_out_the_test_rows(tmp_path):
    grey = datasets.fashion_mnist(fashion_folder(tmp_path)).x
    two, four = (datasets.fashion_captions(tmp_path, levels) for levels in (2, 4))
    screen = np.tile([[40, 150], [200, 100]], (14, 14))
    assert (two.x["image"] == (grey >= screen)).all()
    assert (four.x["image"] == grey // 64).all()
    assert two.x["caption"] == four.x["caption"]
    assert four.event.parts["image"] == Array((28, 28), levels=4)
    train, held = two.split()
    assert (len(train["caption"]), len(held["caption"])) == (12, 2)
    assert held["caption"] == two.x["caption"][12:]


@pytest.mark.parametrize("levels", [1, 257, 2.0, True, None])
def test_fashion_captions_refuse_levels_that_a_picture_has_not(levels, tmp_path):
    with pytest.raises(ParameterError, match="from 2 to 256"):
        datasets.fashion_captions(fashion_folder(tmp_path), levels)


def test_fashion_captions_without_labels_name_the_file(tmp_path):
    (fashion_folder(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        datasets.fashion_captions(tmp_path)


@pytest.mark.debian
@pytest.mark.skipif(not FASHION_FILES.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_captions_are_70000_pictures_with_60_captions():
    fashion = datasets.load("fashion_captions")
    kinds = datasets.questions(fashion)[0]
    assert len(fashion.x["caption"]) == 70_000
    assert set(fashion.x["caption"]) == set(kinds.captions)
    assert len(kinds.captions) == 60
    assert kinds.answer(fashion.x["caption"]).count("boot") == 7000
    assert fashion.held.tolist() == list(range(60_000, 70_000))
    tones = np.array([next(tone for tone in TONES if tone in c) for c in fashion.x["caption"]])
    inked = fashion.x["image"].mean((1, 2))
    means = [inked[tones == tone].mean() for tone in TONES]
    assert np.all(np.diff(means) > 0.08)  # dithering keeps what the words say


def test_digit_words_are_the_digits_by_name():
    words, digits = datasets.load("digit_words"), datasets.load("digits")
    assert (words.x["image"] == digits.x).all()
    assert words.x["caption"][:3] == ["a thin zero", "a thin one", "a bold two"]
    assert len(set(words.x["caption"])) == 20
    assert words.event.parts["image"] == digits.event
    assert 0.3 < np.mean(["bold" in c for c in words.x["caption"]]) < 0.5
    train, held = words.split(0.25, seed=1)
    assert (len(train["caption"]), len(held["image"])) == (1348, 449)


# Questions


@pytest.mark.parametrize("name", ["digit_words", "fashion_captions"])
def test_every_question_has_answers_to_each_choice_and_none_but_its_choices(name):
    asked = datasets.questions(name)
    every = asked[0].captions
    for question in asked:
        assert set(question.answers.values()) == set(question.choices)
        assert set(question.captions) <= set(every)
        assert question.answer(["no such caption", *question.captions])[0] is None


def test_answers_follow_the_words():
    what, dark, *_ = datasets.questions("fashion_captions")
    by_text = {question.text: question for question in datasets.questions("fashion_captions")}
    assert what.answer(["a dark boot with a heel"]) == ["boot"]
    assert dark.answer(["a bright sandal"]) == ["bright"]
    assert by_text["has it a heel?"].answer(["a dark boot with a heel", "a dark boot", "a dark coat"]) == [
        "yes", "no", None,
    ]  # fmt: skip
    sleeves = by_text["has it short sleeves or none?"]
    assert sleeves.answer(["a dark t-shirt", "a grey long-sleeved shirt"]) == ["yes", "no"]
    digits = {question.text: question for question in datasets.questions("digit_words")}
    assert digits["is it even?"].answer(["a thin zero", "a bold seven"]) == ["yes", "no"]
    assert digits["is it more than four?"].answer(["a thin four", "a bold five"]) == ["no", "yes"]


def test_a_posterior_over_captions_becomes_one_over_answers():
    question = datasets.Question("is it dark?", ("yes", "no"), {"a": "yes", "b": "no", "c": "yes"})
    answered = question.of([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    assert answered.tolist() == [[0.5, 0.5], [0.0, 1.0]]
    with pytest.raises(ShapeError, match="a column a caption"):
        question.of([[0.2, 0.8]])


def test_odd_questions_are_refused():
    with pytest.raises(DataError, match="fashion_captions"):
        datasets.questions("iris")
    with pytest.raises(ParameterError, match="maybe"):
        datasets.Question("is it dark?", ("yes", "no"), {"a": "maybe"})
    with pytest.raises(ParameterError):
        datasets.Question("is it dark?", ("yes", "no"), {})


# Folders of pictures with captions


def picture_folder(folder, pictures, captions, kind="csv"):
    from PIL import Image

    rows = []
    for i, (pixels, said) in enumerate(zip(pictures, captions, strict=True)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"file": f"{i}.png", "caption": said})
    if kind == "csv":
        pd.DataFrame(rows).to_csv(folder / "captions.csv", index=False)
    else:
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return folder


GREYS = np.random.default_rng(4).integers(0, 256, (3, 4, 5), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_of_pictures_comes_with_its_captions(tmp_path, kind):
    loaded = datasets.load(picture_folder(tmp_path, GREYS, ['one, or "two"', None, "true"], kind))
    assert (loaded.x["image"] == GREYS).all()
    assert loaded.x["caption"] == ['one, or "two"', None, "true"]
    assert loaded.event == Record(image=Array((4, 5), levels=256), caption=Text())
    assert loaded.event.check(loaded.x).x.seen["caption"].tolist() == [True, False, True]


def test_colours_and_transparency_are_kept_apart_from_greys(tmp_path):
    colour = np.random.default_rng(5).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    clear = np.concatenate([colour, np.zeros((4, 5, 1), np.uint8)], axis=2)
    read = datasets.read(picture_folder(tmp_path, [colour, GREYS[0], clear], ["a", "b", "c"]))
    assert (read["image"][0] == colour).all()
    assert (read["image"][1] == GREYS[0][..., None]).all()
    assert (read["image"][2] == 255).all()
    alike = datasets.read(picture_folder(tmp_path, [np.repeat(GREYS[0][..., None], 3, 2)], ["a"]))
    assert alike["image"].shape == (1, 4, 5)


def test_a_missing_picture_is_named_with_its_row(tmp_path):
    (picture_folder(tmp_path, GREYS, list("abc")) / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png.*row 1"):
        datasets.read(tmp_path)


def test_pictures_of_two_sizes_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"0\.png is 4 x 5 pixels, 1\.png 2 x 5"):
        datasets.read(picture_folder(tmp_path, [GREYS[0], GREYS[1][:2]], ["a", "b"]))


@pytest.mark.parametrize("content", [b"", b"hello", "cut"])
def test_a_damaged_picture_is_refused_by_name(tmp_path, content):
    path = picture_folder(tmp_path, GREYS, list("abc")) / "2.png"
    path.write_bytes(path.read_bytes()[:60] if content == "cut" else content)
    with pytest.raises(DataError, match=r"2\.png can't be read"):
        datasets.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("captions.csv", "picture,caption\na.png,b\n", "has the columns picture, caption"),
        ("captions.csv", "file,text\na.png,b\n", "has the columns file, text"),
        ("captions.csv", "file,caption\n", "no rows"),
        ("captions.csv", "file,caption\n,b\n", "row 0, names None"),
        ("captions.jsonl", "", "is empty"),
        ("captions.jsonl", '{"file": "a.png"\n', "line 1"),
        ("captions.jsonl", '["a.png", "b"]\n', "line 1"),
        ("captions.jsonl", '{"file": "a.png", "caption": 3}\n', "caption 3"),
        ("captions.jsonl", '{"file": 3, "caption": "b"}\n', "names 3"),
    ],
)
def test_a_table_of_captions_that_can_not_be_used_says_why(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=told):
        datasets.read(tmp_path)


def test_pictures_without_pillow_name_the_extra(tmp_path, monkeypatch):
    picture_folder(tmp_path, GREYS, list("abc"))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"probgen\[plots\]"):
        datasets.read(tmp_path)


def test_an_npz_with_captions_is_a_record(tmp_path):
    np.savez(tmp_path / "x.npz", image=GREYS, caption=np.array(["a", "bc", "d"]))
    loaded = datasets.load(tmp_path / "x.npz")
    assert loaded.x["caption"] == ["a", "bc", "d"]
    assert loaded.event == Record(image=Array((4, 5), levels=256), caption=Text())


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
